//! A zygote's loop: waits for the worker, forks, answers. Runs in a zygote; it
//! returns only in a child, which then is something else.
//!
//! ```text
//!            ┌── Fork ──▶ child enters its walls ──▶ Role::Leaf
//! receive ───┤
//!            └── Grow ──▶ child enters its walls ─┬▶ pid 1: the stub
//!                                                 └▶ pid 2: Role::Zygote(imports, one function?)
//! ```
//!
//! The worker's end of the socket closing is the order to end.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;

use crate::contain::{self, Prepared, SOCKET};
use crate::solidify;
use crate::sys::process::{self, Forked, fork_into};
use crate::sys::{privilege, socket};
use crate::wire::{self, At, Failure, FromZygote, Imports, Ready, Snapshot, Solid, Step, ToZygote, Walls};

/// What a language runtime must be told around a fork.
pub trait Interpreter {
    fn before_fork(&self);
    fn after_fork_in_parent(&self);
    fn after_fork_in_child(&self);
}

/// What a child of the loop is.
#[derive(Debug, PartialEq, Eq)]
pub enum Role {
    /// A leaf that waits to be specialized.
    Leaf,
    /// A zygote that has these to import, and perhaps one function's handler.
    Zygote(Imports, Option<Snapshot>),
}

/// Says that this zygote stands and serves forks until the worker hangs up. Returns
/// in children only.
pub fn serve(interpreter: &dyn Interpreter, mut ready: Ready, solidify: bool) -> Role {
    let control = process::borrow(SOCKET);
    // Children that the imports started and that have ended are none.
    while let Ok(Some(_)) = process::wait_any(false) {}
    process::ignore_children(true);
    // It runs no program any more; its leaves find the set empty.
    let _ = privilege::bound_capabilities(0);
    let mut buffer = vec![0; wire::MAX_MESSAGE];
    ready.threads = process::thread_count().map_or(0, |count| count as u32);
    if solidify && ready.threads == 1 {
        make_solid(&mut ready);
    }
    answer(control, &FromZygote::Ready(ready), &[]);
    loop {
        let message = match socket::receive(control, &mut buffer) {
            Ok(message) if message.len > 0 => message,
            _ => process::exit_now(0),
        };
        let asked = wire::decode::<ToZygote>(&buffer[..message.len]).ok().filter(|_| !message.truncated);
        let done = match asked {
            None => Err(Failure { step: Step::Message, errno: Errno::EBADMSG as i32 }),
            Some(ToZygote::Fork { walls }) => fork_leaf(interpreter, walls, message.fds),
            Some(ToZygote::Grow { walls, imports }) => grow(interpreter, walls, imports, message.fds),
        };
        match done {
            Ok(Side::Child(role)) => return role,
            Ok(Side::Parent(pidfd)) => answer(control, &FromZygote::Forked, &[pidfd.as_raw_fd()]),
            Err(failure) => answer(control, &FromZygote::Failed(failure), &[]),
        }
    }
}

enum Side {
    Parent(OwnedFd),
    Child(Role),
}

fn fork_leaf(interpreter: &dyn Interpreter, walls: Walls, fds: Vec<OwnedFd>) -> Result<Side, Failure> {
    let (socket, log, prepared) = unpack(walls, fds)?;
    match fork(interpreter, &prepared)? {
        Forked::Parent { pidfd, .. } => Ok(Side::Parent(pidfd)),
        Forked::Child => {
            let walled =
                enter_as_child(&prepared).and_then(|()| contain::settle_descriptors(&socket, &log, false));
            if let Err(failure) = walled {
                crate::leaf::fail(&socket, failure);
            }
            // Their numbers are closed already.
            std::mem::forget((socket, log, prepared));
            interpreter.after_fork_in_child();
            if crate::leaf::born().is_err() {
                process::exit_now(1);
            }
            Ok(Side::Child(Role::Leaf))
        }
    }
}

fn grow(
    interpreter: &dyn Interpreter,
    walls: Walls,
    imports: Imports,
    fds: Vec<OwnedFd>,
) -> Result<Side, Failure> {
    let (socket, log, prepared) = unpack(walls, fds)?;
    if let Forked::Parent { pidfd, .. } = fork(interpreter, &prepared)? {
        return Ok(Side::Parent(pidfd));
    }
    // Pid 1 of the node's namespace; its second child-to-be is the zygote.
    let second =
        enter_as_child(&prepared).and_then(|()| fork_into(&process::CloneOptions::default()).at(Step::Fork));
    match second {
        Ok(Forked::Parent { pid, .. }) => crate::stub::run(pid, true),
        Ok(Forked::Child) => {}
        Err(failure) => fail(&socket, failure),
    }
    if let Err(failure) = contain::settle_descriptors(&socket, &log, false) {
        fail(&socket, failure);
    }
    std::mem::forget((socket, log, prepared));
    interpreter.after_fork_in_child();
    let own = imports.private.then(await_snapshot);
    Ok(Side::Child(Role::Zygote(imports, own)))
}

/// The function that this node is to be. Ends the process where the worker hangs up.
fn await_snapshot() -> Snapshot {
    let mut buffer = vec![0; wire::MAX_MESSAGE];
    let received = socket::receive(process::borrow(SOCKET), &mut buffer).ok().filter(|got| !got.truncated);
    let message = received.and_then(|got| wire::decode(&buffer[..got.len]).ok());
    message.unwrap_or_else(|| process::exit_now(1))
}

fn unpack(walls: Walls, fds: Vec<OwnedFd>) -> Result<(OwnedFd, OwnedFd, Prepared), Failure> {
    let mut fds = fds.into_iter();
    let (Some(socket), Some(log)) = (fds.next(), fds.next()) else {
        return Err(Failure { step: Step::Message, errno: Errno::EBADMSG as i32 });
    };
    Ok((socket, log, Prepared::new(walls, &mut fds)?))
}

fn fork(interpreter: &dyn Interpreter, prepared: &Prepared) -> Result<Forked, Failure> {
    // A copy of another thread's locks would be held for ever.
    if process::thread_count().at(Step::Threads)? != 1 {
        return Err(Failure { step: Step::Threads, errno: Errno::EBUSY as i32 });
    }
    interpreter.before_fork();
    let forked = fork_into(&prepared.clone_options()).at(Step::Fork);
    if !matches!(forked, Ok(Forked::Child)) {
        interpreter.after_fork_in_parent();
    }
    forked
}

fn enter_as_child(prepared: &Prepared) -> Result<(), Failure> {
    process::ignore_children(false);
    let _ = nix::unistd::setsid();
    contain::enter(prepared)
}

fn answer(control: BorrowedFd<'_>, message: &FromZygote, fds: &[i32]) {
    if socket::send(control, &wire::encode(message), fds).is_err() {
        process::exit_now(0);
    }
}

fn make_solid(ready: &mut Ready) {
    let begun = Instant::now();
    match solidify::solidify().at(Step::Solidify) {
        Ok(done) => {
            let took_us = begun.elapsed().as_micros() as u64;
            ready.solid = Some(Solid { moved: done.moved, left: done.left, bytes: done.bytes, took_us });
        }
        Err(failure) => ready.not_solid = Some(failure),
    }
}

fn fail(socket: &OwnedFd, failure: Failure) -> ! {
    use std::os::fd::AsFd;
    let _ = socket::send(socket.as_fd(), &wire::encode(&FromZygote::Failed(failure)), &[]);
    process::exit_now(1)
}
