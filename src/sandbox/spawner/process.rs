//! The spawner's side: a loop over its socket and its children. One thread; it
//! outlives the worker by the time that clearing up takes.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use hosier_zygote::birth;
use hosier_zygote::nets;
use hosier_zygote::sys::mount::{Attr, FsContext};
use hosier_zygote::sys::process::{self, CloneOptions, Forked, fork_into};
use hosier_zygote::sys::{privilege, socket};
use hosier_zygote::wire;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Ask, Tell};
use crate::sandbox::SandboxError;
use crate::sandbox::cgroup::{Group, Hierarchies};
use crate::sandbox::error::During;
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
        // The mounts below are the worker's views of the host's files. Only an
        // empty mount point is taken away, so no removal can ever follow one.
        while nix::mount::umount2(&self.mnt, nix::mount::MntFlags::MNT_DETACH).is_ok() {}
        match std::fs::remove_dir(&self.mnt) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                wrong.push(format!("{}: {error}", self.mnt.display()));
            }
            _ => match std::fs::remove_dir_all(&self.run) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    wrong.push(format!("{}: {error}", self.run.display()));
                }
                _ => {}
            },
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
    pidfd: OwnedFd,
}

/// Serves until the worker is gone.
fn run(socket: &OwnedFd) {
    let proc = match own_proc() {
        Ok(proc) => proc,
        Err(_) => return,
    };
    let mut children: Vec<Child> = Vec::new();
    let mut buffer = vec![0; wire::MAX_MESSAGE];
    loop {
        let mut ready: Vec<_> = std::iter::once(socket.as_fd())
            .chain(children.iter().map(|child| child.pidfd.as_fd()))
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(_) => return,
        }
        let asked = ready[0].any().unwrap_or(false);
        let ended = ready[1..].iter().any(|fd| fd.any().unwrap_or(false));
        if ended && !reap(socket, &mut children) {
            return;
        }
        if asked && !serve(socket, &mut buffer, proc.as_fd(), &mut children) {
            return;
        }
    }
}

/// Serves one message; false when the worker is gone.
fn serve(socket: &OwnedFd, buffer: &mut [u8], proc: BorrowedFd<'_>, children: &mut Vec<Child>) -> bool {
    let Ok(message) = socket::receive(socket.as_fd(), buffer) else { return false };
    if message.len == 0 {
        return false;
    }
    // The worker is trusted; what does not decode is a bug that its timeout tells.
    let (id, birth) = match wire::decode(&buffer[..message.len]) {
        Ok(Ask::Start { id, birth }) => (id, birth),
        Ok(Ask::Map { id, extents }) => {
            return match birth::user_namespace(&extents, proc) {
                Ok(namespace) => tell(socket, &Tell::Mapped { id }, &[namespace.as_raw_fd()]),
                Err(failure) => tell(socket, &Tell::Failed { id, failure }, &[]),
            };
        }
        Ok(Ask::Nets { id, count }) => {
            // Its end is told by its own socket; it is a child to be reaped like any other.
            children.extend(make_nets(id, count, message.fds));
            return true;
        }
        Err(_) => return true,
    };
    match birth::spawn(birth, message.fds, proc) {
        Ok(born) => {
            let told = tell(socket, &Tell::Started { id }, &[born.pidfd.as_raw_fd()]);
            children.push(Child { id, pid: born.pid, pidfd: born.pidfd });
            told
        }
        Err(failure) => {
            // It killed or ended itself: not a child to report again.
            tell(socket, &Tell::Failed { id, failure }, &[])
        }
    }
}

/// Network namespaces take half a millisecond each: a child's time, not ours.
fn make_nets(id: u64, count: u32, fds: Vec<OwnedFd>) -> Option<Child> {
    let [worker, member] = <[OwnedFd; 2]>::try_from(fds).ok()?;
    match fork_into(&CloneOptions::default()).ok()? {
        Forked::Parent { pid, pidfd } => Some(Child { id, pid, pidfd }),
        Forked::Child => nets::make(&worker, &member, count),
    }
}

/// Collects every child that ended; false when the worker is gone.
fn reap(socket: &OwnedFd, children: &mut Vec<Child>) -> bool {
    while let Ok(Some((pid, status))) = process::wait_any(false) {
        if let Some(at) = children.iter().position(|child| child.pid == pid) {
            let child = children.swap_remove(at);
            if !tell(socket, &Tell::Ended { id: child.id, status }, &[]) {
                return false;
            }
        }
    }
    true
}

fn tell(socket: &OwnedFd, message: &Tell, fds: &[i32]) -> bool {
    socket::send(socket.as_fd(), &wire::encode(message), fds).is_ok()
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
