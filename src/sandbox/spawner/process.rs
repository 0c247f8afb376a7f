//! The spawner's side: a loop over its socket and its children. One thread; it
//! outlives the worker by the time that clearing up takes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use hosier_zygote::birth;
use hosier_zygote::nets;
use hosier_zygote::sys::mount::{Attr, FsContext};
use hosier_zygote::sys::process::{self, CloneOptions, Forked, fork_into};
use hosier_zygote::sys::{privilege, socket};
use hosier_zygote::wire::{self, Failure, Step};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::outbox::{Gone, Outbox, RETRY_MS};
use super::{Ask, Tell};
use crate::sandbox::SandboxError;
use crate::sandbox::cgroup::{Group, Hierarchies};
use crate::sandbox::error::During;
use crate::sandbox::foreign;
use crate::sandbox::ids::Claims;
use crate::sandbox::quotas;

/// What a dead worker leaves: removed by the spawner, or by the next start.
#[derive(Debug, Clone)]
pub struct Leftovers {
    pub hierarchies: Hierarchies,
    /// Names of [`Group`]s.
    pub groups: Vec<String>,
    /// The mount point in the run-time directory.
    pub mnt: PathBuf,
    /// The run-time directory.
    pub run: PathBuf,
    /// The worker's own socket, where it has one.
    pub socket: Option<PathBuf>,
}

impl Leftovers {
    /// Removes them; nothing there is fine.
    ///
    /// # Errors
    /// What could not be removed, as text: this runs where nobody logs.
    pub fn remove(&self) -> Result<(), String> {
        let mut wrong = Vec::new();
        for group in &self.groups {
            if let Err(error) = Group::remove_leftovers(&self.hierarchies, group) {
                wrong.push(error.to_string());
            }
        }
        // The mounts below are the worker's views of the host's files.
        while nix::mount::umount2(&self.mnt, nix::mount::MntFlags::MNT_DETACH).is_ok() {}
        // The removal enters no mount; a directory that holds one can still be renamed.
        if let Err(error) = foreign::remove(&self.run) {
            match foreign::set_aside(&self.run) {
                Ok(aside) => eprintln!("hosier: {error}; it is out of the way as {}", aside.display()),
                Err(_) => wrong.push(error.to_string()),
            }
        }
        if let Some(socket) = &self.socket {
            match std::fs::remove_file(socket) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    wrong.push(format!("{}: {error}", socket.display()));
                }
                _ => {}
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }
}

/// Forks the spawner. Returns in the worker only: its socket and its pidfd.
///
/// # Errors
/// As `clone3(2)`. The caller must be single-threaded.
pub fn start(leftovers: Leftovers, claims: &Claims) -> Result<(OwnedFd, OwnedFd), SandboxError> {
    let (ours, theirs) = socket::seqpacket_pair().during("the spawner's socket")?;
    // A new pid namespace has a `pid_max` of its own.
    let processes = quotas::processes();
    let options = CloneOptions { namespaces: nix::libc::CLONE_NEWPID, cgroup: None };
    match fork_into(&options).during("starting the spawner")? {
        Forked::Parent { pidfd, .. } => Ok((ours, pidfd)),
        Forked::Child => {
            drop(ours);
            // Ctrl-C at the worker's terminal is the worker's business.
            let _ = nix::unistd::setsid();
            let _ = nix::sys::prctl::set_name(c"hosier-spawner");
            match privilege::limit_owners(processes) {
                Ok(()) => run(&theirs),
                Err(error) => eprintln!("hosier: no sandbox is made without limits: {error}"),
            }
            clear_up(&leftovers);
            claims.retire();
            process::exit_now(0)
        }
    }
}

struct Child {
    id: u64,
    pid: i32,
    pidfd: Rc<OwnedFd>,
}

/// Number of times in a row that a call on the worker's socket may fail: with a pause
/// each, half a minute.
const FAILURES: u32 = 3000;

/// Serves until the worker is gone.
fn run(socket: &OwnedFd) {
    let Ok(proc) = own_proc() else { return };
    let mut children: Vec<Child> = Vec::new();
    let mut outbox = Outbox::default();
    let mut buffer = vec![0; wire::MAX_MESSAGE];
    let mut failures = 0;
    loop {
        let wanted = if outbox.is_full() { PollFlags::empty() } else { PollFlags::POLLIN };
        let mut ready: Vec<_> = std::iter::once(PollFd::new(socket.as_fd(), wanted))
            .chain(children.iter().map(|child| PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN)))
            .collect();
        let timeout = if outbox.is_empty() { PollTimeout::NONE } else { RETRY_MS.into() };
        let polled = poll(&mut ready, timeout);
        let asked = ready[0].any().unwrap_or(false);
        let ended = ready[1..].iter().any(|fd| fd.any().unwrap_or(false));
        let served = match polled {
            Err(Errno::EINTR) => continue,
            Err(_) => Err(Trouble::Passing),
            Ok(_) => (|| {
                if ended {
                    reap(socket, &mut outbox, &mut children)?;
                }
                if asked {
                    serve(socket, &mut outbox, &mut buffer, proc.as_fd(), &mut children)?;
                }
                Ok(outbox.flush(socket)?)
            })(),
        };
        match served {
            Ok(()) => failures = 0,
            Err(Trouble::Passing) if failures < FAILURES => {
                failures += 1;
                std::thread::sleep(Duration::from_millis(RETRY_MS.into()));
            }
            Err(_) => return,
        }
    }
}

/// A reason not to have served.
enum Trouble {
    /// The worker is gone.
    Gone,
    /// A call failed for want of memory or descriptors; the next one may not.
    Passing,
}

impl From<Gone> for Trouble {
    fn from(Gone: Gone) -> Self {
        Trouble::Gone
    }
}

/// Serves one message.
fn serve(
    socket: &OwnedFd,
    outbox: &mut Outbox,
    buffer: &mut [u8],
    proc: BorrowedFd<'_>,
    children: &mut Vec<Child>,
) -> Result<(), Trouble> {
    let message = match socket::receive(socket.as_fd(), buffer) {
        Ok(message) if message.len == 0 => return Err(Trouble::Gone),
        Ok(message) => message,
        Err(error) if socket::is_gone(error.errno) => return Err(Trouble::Gone),
        Err(_) => return Err(Trouble::Passing),
    };
    // The worker is trusted; what does not decode is a bug that its timeout tells.
    let Ok(ask) = wire::decode(&buffer[..message.len]) else { return Ok(()) };
    let started = match ask {
        // This process has no room for the descriptors: the kernel has dropped some.
        Ask::Start { id, .. } if message.truncated => {
            Err((id, Failure { step: Step::Message, errno: Errno::EMFILE as i32 }))
        }
        Ask::Start { id, birth } => match birth::spawn(birth, message.fds, proc) {
            Ok(born) => Ok(Child { id, pid: born.pid, pidfd: Rc::new(born.pidfd) }),
            // It killed or ended itself: not a child to report again.
            Err(failure) => Err((id, failure)),
        },
        Ask::Map { id, extents } => match birth::user_namespace(&extents, proc) {
            Ok(namespace) => {
                return Ok(outbox.tell(socket, &Tell::Mapped { id }, Some(Rc::new(namespace)))?);
            }
            Err(failure) => Err((id, failure)),
        },
        Ask::Nets { id, count } => {
            // Its end is told by its own socket; it is a child to be reaped like any other.
            children.extend(make_nets(id, count, message.fds));
            return Ok(());
        }
        Ask::Kill { id } => {
            if let Some(child) = children.iter().find(|child| child.id == id) {
                let _ = process::kill_pidfd(child.pidfd.as_fd());
            }
            return Ok(());
        }
    };
    match started {
        Ok(child) => {
            let told = outbox.tell(socket, &Tell::Started { id: child.id }, Some(Rc::clone(&child.pidfd)));
            children.push(child);
            Ok(told?)
        }
        Err((id, failure)) => Ok(outbox.tell(socket, &Tell::Failed { id, failure }, None)?),
    }
}

/// Network namespaces take half a millisecond each: a child's time, not ours.
fn make_nets(id: u64, count: u32, fds: Vec<OwnedFd>) -> Option<Child> {
    let [worker, member] = <[OwnedFd; 2]>::try_from(fds).ok()?;
    match fork_into(&CloneOptions::default()).ok()? {
        Forked::Parent { pid, pidfd } => Some(Child { id, pid, pidfd: Rc::new(pidfd) }),
        Forked::Child => nets::make(&worker, &member, count),
    }
}

/// Collects every child that ended.
fn reap(socket: &OwnedFd, outbox: &mut Outbox, children: &mut Vec<Child>) -> Result<(), Gone> {
    while let Ok(Some((pid, status))) = process::wait_any(false) {
        if let Some(at) = children.iter().position(|child| child.pid == pid) {
            let child = children.swap_remove(at);
            outbox.tell(socket, &Tell::Ended { id: child.id, status }, None)?;
        }
    }
    Ok(())
}

/// A mount of this pid namespace's `/proc`, attached nowhere: `/proc` itself
/// shows the worker's.
fn own_proc() -> hosier_zygote::sys::Result<OwnedFd> {
    FsContext::new(c"proc")?.mount(Attr::NOSUID | Attr::NODEV | Attr::NOEXEC)
}

fn clear_up(leftovers: &Leftovers) {
    process::kill_all_others();
    // Before the wait: a process in the v1 freezer dies of its SIGKILL only when
    // it is thawed, which removing its group does. The walls of the others may
    // hold a group for a moment after it, which removing waits for.
    let removed = leftovers.remove();
    while process::wait_any(true).is_ok() {}
    if let Err(wrong) = removed.or_else(|_| leftovers.remove()) {
        // Standard error is the worker's, perhaps gone; the next start removes the rest.
        eprintln!("hosier: not everything could be removed: {wrong}");
    }
}
