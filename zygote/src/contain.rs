//! The walls: how a new process gets behind them, and what it gives up before
//! foreign code runs in it. One implementation for a fresh process (spawner's
//! child) and a forked one (zygote's child).
//!
//! ```text
//! Walls::prepare     before the fork: everything is decided and allocated
//! enter              after it: groups, namespaces, root; still root inside
//! confine            last: ids, capabilities, no_new_privs, filter; never undone
//! ```

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use crate::quotas;
use crate::sys::{self, Named, mount, privilege, process};
use crate::wire::{At, Confinement, Failure, ProcView, Step, Walls};

/// Walls with their descriptors, ready to be entered without an allocation.
pub struct Prepared {
    root: OwnedFd,
    mounts: Vec<(OwnedFd, CString)>,
    cgroup: Option<OwnedFd>,
    tasks: Vec<OwnedFd>,
    net: Option<OwnedFd>,
    staging: CString,
    walls: Walls,
}

impl Prepared {
    /// Pairs walls with the descriptors that came along.
    ///
    /// # Errors
    /// Step `Message` where their number or a path does not fit.
    pub fn new(walls: Walls, fds: &mut impl Iterator<Item = OwnedFd>) -> Result<Self, Failure> {
        let bad = Failure { step: Step::Message, errno: Errno::EBADMSG as i32 };
        let mut next = || fds.next().ok_or(bad);
        let root = next()?;
        let mut mounts = Vec::with_capacity(walls.targets.len());
        for target in &walls.targets {
            mounts.push((next()?, CString::new(target.as_str()).map_err(|_| bad)?));
        }
        let cgroup = if walls.into_cgroup { Some(next()?) } else { None };
        let tasks = (0..walls.tasks).map(|_| next()).collect::<Result<_, _>>()?;
        let net = if walls.into_net { Some(next()?) } else { None };
        let staging = CString::new(walls.staging.as_str()).map_err(|_| bad)?;
        Ok(Self { root, mounts, cgroup, tasks, net, staging, walls })
    }

    /// What `clone3` must be told.
    pub fn clone_options(&self) -> process::CloneOptions<'_> {
        process::CloneOptions {
            namespaces: self.walls.namespaces,
            cgroup: self.cgroup.as_ref().map(AsFd::as_fd),
        }
    }
}

/// Goes behind the walls, in a child of [`process::fork_into`]. Still root in
/// the user namespace afterwards.
///
/// # Errors
/// The step that failed. The process must end then.
pub fn enter(prepared: &Prepared) -> Result<(), Failure> {
    join_cgroups(&prepared.tasks).at(Step::Cgroups)?;
    if prepared.walls.cgroup_namespace {
        // Only now: one made by clone3 would be rooted at the parent's group.
        unshare(CloneFlags::CLONE_NEWCGROUP).named("unshare").at(Step::CgroupNamespace)?;
    }
    if prepared.walls.loopback {
        // Through the old /proc too: a leaf's own has no sysctls.
        sys::net::loopback_up().at(Step::Loopback)?;
        quotas::small_sockets().at(Step::Loopback)?;
    }
    // While the old /proc is still visible: later the kernel refuses (EPERM).
    let proc = mount_proc(prepared.walls.proc).at(Step::Proc)?;
    mount::attach(prepared.root.as_fd(), &prepared.staging).at(Step::Root)?;
    nix::unistd::chdir(prepared.staging.as_c_str()).named("chdir").at(Step::Root)?;
    mount::attach(proc.as_fd(), c"proc").at(Step::Proc)?;
    for (mount, target) in &prepared.mounts {
        mount::attach(mount.as_fd(), target).at(Step::Root)?;
    }
    mount::pivot_into(c".").at(Step::Pivot)?;
    if let Some(name) = &prepared.walls.hostname {
        nix::unistd::sethostname(name).named("sethostname").at(Step::Hostname)?;
    }
    if let Some(net) = &prepared.net {
        nix::sched::setns(net, CloneFlags::CLONE_NEWNET).named("setns").at(Step::Loopback)?;
    }
    Ok(())
}

/// Gives everything up, for good.
///
/// # Errors
/// The step that failed. The process must end then.
pub fn confine(confinement: &Confinement) -> Result<(), Failure> {
    privilege::limit_resources(confinement.files).at(Step::Rlimits)?;
    privilege::bound_capabilities(0).at(Step::Capabilities)?;
    privilege::become_ids(confinement.uid, confinement.gid).at(Step::Identity)?;
    privilege::keep_capabilities(0).at(Step::Capabilities)?;
    privilege::set_dumpable().at(Step::Identity)?;
    privilege::no_new_privs().at(Step::NoNewPrivs)?;
    install(&confinement.filter)
}

fn install(filter: &[u8]) -> Result<(), Failure> {
    // Empty: the operator switched seccomp off.
    if filter.is_empty() { Ok(()) } else { privilege::install_filter(filter).at(Step::Filter) }
}

/// What a root zygote gives up before its interpreter starts: all but what
/// forking and containing children takes.
///
/// # Errors
/// The step that failed. The process must end then.
pub fn confine_zygote(filter: &[u8]) -> Result<(), Failure> {
    privilege::bound_capabilities(privilege::ZYGOTE_CAPABILITIES).at(Step::Capabilities)?;
    privilege::keep_capabilities(privilege::ZYGOTE_CAPABILITIES).at(Step::Capabilities)?;
    privilege::no_new_privs().at(Step::NoNewPrivs)?;
    install(filter)
}

/// The descriptor that every process of ours talks to the worker through.
pub const SOCKET: i32 = 3;

/// Standard streams: nothing to read, both outputs into the log; the socket at
/// [`SOCKET`]. All else is closed.
///
/// # Errors
/// Step `Descriptors`.
pub fn settle_descriptors(socket: &OwnedFd, log: &OwnedFd, inherit: bool) -> Result<(), Failure> {
    settle(socket, log, inherit).at(Step::Descriptors)
}

fn settle(socket: &OwnedFd, log: &OwnedFd, inherit: bool) -> sys::Result<()> {
    place_streams(socket, log, inherit)?;
    process::close_from(SOCKET + 1)
}

/// The first half of [`settle_descriptors`]: closes nothing.
pub(crate) fn place_streams(socket: &OwnedFd, log: &OwnedFd, inherit: bool) -> sys::Result<()> {
    use nix::fcntl::{OFlag, open};
    let null = open(c"/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
        .named("open")?;
    // Through high numbers first: the targets may be in use by the sources.
    let (socket, log, null) =
        (process::out_of_the_way(socket)?, process::out_of_the_way(log)?, process::out_of_the_way(&null)?);
    process::place(null.as_fd(), 0, true)?;
    process::place(log.as_fd(), 1, true)?;
    process::place(log.as_fd(), 2, true)?;
    process::place(socket.as_fd(), SOCKET, inherit)
}

fn join_cgroups(tasks: &[OwnedFd]) -> sys::Result<()> {
    for group in tasks {
        // A thread that moves itself skips the lock that costs an outsider
        // milliseconds; "0" is whoever writes.
        nix::unistd::write(group, b"0").named("write")?;
    }
    Ok(())
}

fn mount_proc(view: ProcView) -> sys::Result<OwnedFd> {
    let fs = mount::FsContext::new(c"proc")?;
    if view == ProcView::Pids {
        fs.set(c"subset", c"pid")?;
    }
    fs.mount(mount::Attr::NOSUID | mount::Attr::NODEV | mount::Attr::NOEXEC)
}
