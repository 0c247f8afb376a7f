//! A fresh process, from `clone3` to `execve`. Runs in the spawner (which is
//! root) and in its child.
//!
//! ```text
//! spawner                              child (pid 1 of its namespace)
//!   prepare, clone3 as user first_id ──▶ wait at the gate
//!   write uid_map, gid_map
//!   open the gate ─────────────────────▶ become root inside; enter the walls
//!                                        listen for the worker, if it asked for an outlet
//!   read the report until it closes      │ Pid1::Program: confine, execve
//!                                        └ Pid1::Stub: fork pid 2, which does; reap
//! ```
//!
//! The report pipe is close-on-exec: it says which step failed, or closes.

use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::contain::{self, Prepared};
use crate::quotas::{self, Quotas};
use crate::sys::process::{CStringArray, Forked, fork_into};
use crate::sys::{self, Named, privilege, process};
use crate::wire::{At, Confinement, Failure, Step, Walls};

/// A process to start. Descriptors: its socket, its log, then those of [`Walls`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Birth {
    pub walls: Walls,
    /// First host id of the user namespace's private range.
    pub first_id: u32,
    /// Ids in the range.
    pub ids: u32,
    pub quotas: Quotas,
    pub pid1: Pid1,
    pub role: Role,
    /// Port of 127.0.0.1 to listen on for the worker, in a network namespace that is new.
    pub outlet: Option<u16>,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
}

/// Who is pid 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pid1 {
    /// A stub that reaps and outlives the program for its orphans' sake.
    LingeringStub,
    /// A stub that reaps and ends with the program.
    Stub,
    /// The program itself.
    Program,
}

/// What the program may.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Role {
    /// Root inside, able to fork and contain children, behind this filter.
    Zygote { filter: Vec<u8> },
    /// Confined before its first instruction.
    Confined(Confinement),
}

/// A started process: pid 1 of the new namespace.
pub struct Born {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// Starts a process and waits until it runs its program.
///
/// `proc` is a mount of the caller's own `/proc`.
///
/// # Errors
/// The step that failed; nothing is left of the process then.
pub fn spawn(birth: Birth, fds: Vec<OwnedFd>, proc: BorrowedFd<'_>) -> Result<Born, Failure> {
    let bad = Failure { step: Step::Message, errno: Errno::EBADMSG as i32 };
    let mut fds = fds.into_iter();
    let socket = fds.next().ok_or(bad)?;
    let log = fds.next().ok_or(bad)?;
    let prepared = Prepared::new(birth.walls, &mut fds)?;
    let program = Program {
        path: CString::new(birth.argv.first().ok_or(bad)?.as_str()).map_err(|_| bad)?,
        argv: CStringArray::new(&birth.argv).map_err(|_| bad)?,
        env: CStringArray::new(birth.env.iter().map(|(key, value)| format!("{key}={value}")))
            .map_err(|_| bad)?,
        role: birth.role,
        outlet: birth.outlet,
        quotas: birth.quotas.prepare(),
    };
    let (gate_read, gate_write) = pipe().at(Step::Fork)?;
    let (report_read, report_write) = pipe().at(Step::Fork)?;

    let fork = || fork_into(&prepared.clone_options());
    let is_child = |forked: &Forked| matches!(forked, Forked::Child);
    match privilege::as_owner(birth.first_id, fork, is_child).at(Step::Fork)? {
        Forked::Child => {
            drop((gate_write, report_read));
            let failure = match wait_at(gate_read) {
                Ok(()) => be_born(&prepared, &socket, &log, birth.pid1, &program),
                Err(errno) => Failure { step: Step::Ids, errno: errno as i32 },
            };
            report(report_write, failure)
        }
        Forked::Parent { pid, pidfd } => {
            drop((gate_read, report_write));
            let started = write_maps(proc, pid, &[(0, birth.first_id, birth.ids)])
                .and_then(|()| end_oom_protection(proc, pid))
                .at(Step::Ids)
                .and_then(|()| nix::unistd::write(&gate_write, b"g").named("write").at(Step::Ids))
                .and_then(|_| read_report(report_read));
            if let Err(failure) = started {
                let _ = process::kill_pidfd(pidfd.as_fd());
                return Err(failure);
            }
            Ok(Born { pid, pidfd })
        }
    }
}

/// First id inside, first id outside, how many.
pub type Extent = (u32, u32, u32);

/// A user namespace in which nobody lives: what a mount is id-mapped by.
///
/// `proc` is a mount of the caller's own `/proc`.
///
/// # Errors
/// Step `Ids`.
pub fn user_namespace(extents: &[Extent], proc: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    use nix::fcntl::{OFlag, openat};
    let (gate_read, gate_write) = pipe().at(Step::Ids)?;
    let options = process::CloneOptions { namespaces: libc::CLONE_NEWUSER, cgroup: None };
    match fork_into(&options).at(Step::Ids)? {
        Forked::Child => {
            drop(gate_write);
            // Ends when the parent has the namespace, or is gone.
            let _ = wait_at(gate_read);
            process::exit_now(0)
        }
        Forked::Parent { pid, .. } => {
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            let namespace = write_maps(proc, pid, extents).and_then(|()| {
                openat(proc, format!("{pid}/ns/user").as_str(), flags, nix::sys::stat::Mode::empty())
                    .named("openat")
            });
            drop(gate_write);
            let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
            namespace.at(Step::Ids)
        }
    }
}

struct Program {
    path: CString,
    argv: CStringArray,
    env: CStringArray,
    role: Role,
    outlet: Option<u16>,
    quotas: quotas::Prepared,
}

/// The child's way, one step a line. Returns only what failed.
fn be_born(prepared: &Prepared, socket: &OwnedFd, log: &OwnedFd, pid1: Pid1, program: &Program) -> Failure {
    process::default_signals();
    let walls = || {
        privilege::become_ids(0, 0).at(Step::Ids)?;
        program.quotas.set().at(Step::Quotas)?;
        nix::unistd::setsid().named("setsid").at(Step::Ids)?;
        contain::enter(prepared)?;
        // Before foreign code runs: the worker's first message is then surely this one.
        program.outlet.map_or(Ok(()), |port| hand_over_outlet(socket, port).at(Step::Outlet))
    };
    if let Err(failure) = walls() {
        return failure;
    }
    if pid1 != Pid1::Program {
        match fork_into(&process::CloneOptions::default()).at(Step::Fork) {
            Ok(Forked::Parent { pid, .. }) => crate::stub::run(pid, pid1 == Pid1::LingeringStub),
            Ok(Forked::Child) => {}
            Err(failure) => return failure,
        }
    }
    start(socket, log, program)
}

/// Sends the worker a listening socket of this network namespace, and keeps none.
fn hand_over_outlet(socket: &OwnedFd, port: u16) -> sys::Result<()> {
    let listener = sys::net::listen_on_loopback(port)?;
    sys::socket::send(socket.as_fd(), b"o", &[listener.as_raw_fd()]).map(drop)
}

fn start(socket: &OwnedFd, log: &OwnedFd, program: &Program) -> Failure {
    let ready = || {
        place_streams(socket, log).at(Step::Descriptors)?;
        match &program.role {
            Role::Zygote { filter } => contain::confine_zygote(filter),
            Role::Confined(confinement) => contain::confine(confinement),
        }
    };
    match ready() {
        Err(failure) => failure,
        Ok(()) => {
            let error = process::exec(&program.path, &program.argv, &program.env);
            Failure { step: Step::Exec, errno: error.errno as i32 }
        }
    }
}

/// As [`contain::settle_descriptors`], but leaves the rest to `execve`: the report
/// pipe must stay until then. Ours are close-on-exec from birth; one that the
/// worker itself inherited is not.
fn place_streams(socket: &OwnedFd, log: &OwnedFd) -> sys::Result<()> {
    contain::place_streams(socket, log, true)?;
    process::cloexec_from(contain::SOCKET + 1)
}

fn pipe() -> sys::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).named("pipe2")?;
    Ok((process::out_of_the_way(&read)?, process::out_of_the_way(&write)?))
}

fn wait_at(gate: OwnedFd) -> Result<(), Errno> {
    let mut byte = [0];
    match nix::unistd::read(&gate, &mut byte) {
        Ok(1) => Ok(()),
        Ok(_) => Err(Errno::EPIPE),
        Err(errno) => Err(errno),
    }
}

fn write_maps(proc: BorrowedFd<'_>, pid: i32, extents: &[Extent]) -> sys::Result<()> {
    use nix::fcntl::{OFlag, openat};
    let lines = extents.iter().map(|(inside, outside, count)| format!("{inside} {outside} {count}\n"));
    let map: String = lines.collect();
    for name in ["uid_map", "gid_map"] {
        let path = format!("{pid}/{name}");
        let file =
            openat(proc, path.as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
                .named("openat")?;
        nix::unistd::write(&file, map.as_bytes()).named("write")?;
    }
    Ok(())
}

/// An operator may protect the worker from the OOM killer; its sandboxes are not meant.
fn end_oom_protection(proc: BorrowedFd<'_>, pid: i32) -> sys::Result<()> {
    use nix::fcntl::{OFlag, openat};
    let path = format!("{pid}/oom_score_adj");
    let file = openat(proc, path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
        .named("openat")?;
    let mut text = [0; 16];
    nix::unistd::read(&file, &mut text).named("read")?;
    if text[0] == b'-' {
        nix::unistd::write(&file, b"0").named("write")?;
    }
    Ok(())
}

fn report(pipe: OwnedFd, failure: Failure) -> ! {
    let _ = std::fs::File::from(pipe).write_all(&crate::wire::encode(&failure));
    process::exit_now(127)
}

fn read_report(pipe: OwnedFd) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    let read = std::fs::File::from(pipe).take(64).read_to_end(&mut bytes);
    match read {
        Ok(0) => Ok(()),
        Ok(_) => Err(crate::wire::decode(&bytes)
            .unwrap_or(Failure { step: Step::Message, errno: Errno::EBADMSG as i32 })),
        Err(error) => Err(Failure { step: Step::Message, errno: error.raw_os_error().unwrap_or(libc::EIO) }),
    }
}
