//! A leaf's side of its socket: born, specialized once, then one request at
//! a time. Runs in a leaf; every call blocks.
//!
//! ```text
//! Born ──▶ Prepare? ──▶ Specialize ──▶ Specialized ──▶ ( Invoke ──▶ Answer ──▶ reap )*      end of stream: exit
//! ```

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use crate::contain::{self, SOCKET};
use crate::sys::{self, SysError, mount, process, socket};
use crate::wire::{
    self, At, Failure, GiveUp, Handler, Header, Kind, Prepare, Request, Response, Specialize, Step,
};

/// Sends a frame without payload, and when that was: the worker may be slow to read it.
///
/// # Errors
/// As `sendmsg(2)`.
pub fn send_bare(kind: Kind) -> sys::Result<()> {
    let header = Header { kind, head: 0, body: 0, id: sys::time::monotonic_ns() };
    socket::write_all(process::borrow(SOCKET), &[&header.encode()])
}

/// A fresh leaf says that it stands. Its socket had to live through the `execve` of
/// the interpreter; the programs that its function starts do not get it.
///
/// # Errors
/// As `sendmsg(2)`.
pub fn born_fresh() -> sys::Result<()> {
    process::place(process::borrow(SOCKET), SOCKET, false)?;
    send_bare(Kind::Born)
}

/// Says which step failed, and ends.
pub fn fail(socket: &impl AsFd, failure: Failure) -> ! {
    let head = wire::encode(&failure);
    let header = Header { kind: Kind::Failed, head: head.len() as u32, body: 0, id: 0 };
    let _ = socket::write_all(socket.as_fd(), &[&header.encode(), &head]);
    process::exit_now(1)
}

/// Waits to be specialized and becomes a leaf of one function. Ends the
/// process when the worker hangs up or a step fails.
pub fn specialize() -> Handler {
    let control = process::borrow(SOCKET);
    match await_specialize() {
        Ok((message, fds)) => match attach(&message.targets, &fds).and_then(|()| give_up(&message.give_up)) {
            Ok(()) => match send_bare(Kind::Specialized) {
                Ok(()) => message.handler,
                Err(_) => process::exit_now(0),
            },
            Err(failure) => fail(&control, failure),
        },
        Err(_) => process::exit_now(0),
    }
}

fn await_specialize() -> sys::Result<(Specialize, Vec<OwnedFd>)> {
    loop {
        let (kind, head, fds) = receive_frame()?;
        let garbage = |_| SysError { call: "recvmsg", errno: Errno::EBADMSG };
        match kind {
            Kind::Specialize => return Ok((wire::decode(&head).map_err(garbage)?, fds)),
            Kind::Prepare => {
                let message = wire::decode(&head).map_err(garbage)?;
                prepare(&message, &fds).unwrap_or_else(|failure| fail(&process::borrow(SOCKET), failure));
            }
            _ => return Err(SysError { call: "recvmsg", errno: Errno::EBADMSG }),
        }
    }
}

/// A frame without a body, with its descriptors.
fn receive_frame() -> sys::Result<(Kind, Vec<u8>, Vec<OwnedFd>)> {
    let control = process::borrow(SOCKET);
    let mut bytes = [0; Header::SIZE];
    // Descriptors travel with the first byte.
    let first = socket::receive(control, &mut bytes)?;
    if first.len == 0 {
        return Err(SysError { call: "recvmsg", errno: Errno::ECONNRESET });
    }
    socket::read_exact(control, &mut bytes[first.len..])?;
    let header = Header::decode(&bytes).map_err(|_| SysError { call: "recvmsg", errno: Errno::EBADMSG })?;
    let mut head = vec![0; header.head as usize];
    socket::read_exact(control, &mut head)?;
    Ok((header.kind, head, first.fds))
}

/// What a blank does while it waits.
fn prepare(message: &Prepare, fds: &[OwnedFd]) -> Result<(), Failure> {
    attach(&message.targets, fds)?;
    contain::confine_waiting(&message.confinement)?;
    crate::prefault::prefault(&message.prefault);
    Ok(())
}

fn attach(targets: &[String], fds: &[OwnedFd]) -> Result<(), Failure> {
    let bad = Failure { step: Step::Message, errno: Errno::EBADMSG as i32 };
    if targets.len() != fds.len() {
        return Err(bad);
    }
    for (target, fd) in targets.iter().zip(fds) {
        let target = CString::new(format!("/{target}")).map_err(|_| bad)?;
        mount::attach(fd.as_fd(), &target).at(Step::Code)?;
    }
    Ok(())
}

fn give_up(what: &GiveUp) -> Result<(), Failure> {
    match what {
        GiveUp::Nothing => Ok(()),
        GiveUp::All(confinement) => contain::confine(confinement),
        GiveUp::Rest { filter } => contain::confine_rest(filter),
    }
}

/// One request.
pub struct Invocation {
    pub id: u64,
    /// An encoded [`Request`], decoded only by who needs it.
    pub head: Vec<u8>,
    pub body: Vec<u8>,
}

/// Waits for a request. Ends the process when the worker hangs up.
pub fn next() -> Invocation {
    let control = process::borrow(SOCKET);
    let read = || -> sys::Result<Invocation> {
        let garbage = SysError { call: "read", errno: Errno::EBADMSG };
        let mut bytes = [0; Header::SIZE];
        socket::read_exact(control, &mut bytes)?;
        let header = Header::decode(&bytes).map_err(|_| garbage)?;
        if header.kind != Kind::Invoke {
            return Err(garbage);
        }
        let mut head = vec![0; header.head as usize];
        socket::read_exact(control, &mut head)?;
        let mut body = vec![0; header.body as usize];
        socket::read_exact(control, &mut body)?;
        Ok(Invocation { id: header.id, head, body })
    };
    read().unwrap_or_else(|_| process::exit_now(0))
}

/// Reads the head of a request.
///
/// # Errors
/// The bytes are none.
pub fn parse(head: &[u8]) -> Result<Request, postcard::Error> {
    wire::decode(head)
}

/// Answers a request. Ends the process when the worker hung up.
pub fn answer(id: u64, response: &Response, body: &[u8]) {
    let head = wire::encode(response);
    let header = Header { kind: Kind::Answer, head: head.len() as u32, body: body.len() as u32, id };
    if socket::write_all(process::borrow(SOCKET), &[&header.encode(), &head, body]).is_err() {
        process::exit_now(0);
    }
}

/// A request owns the processes that it started: with its answer they end.
/// As pid 1 of its namespace a leaf reaches them all, daemons included.
pub fn reap() {
    if process::wait_any(false).is_err_and(|error| error.errno == Errno::ECHILD) {
        // No child, so no orphan either: an orphan would be a child of pid 1.
        return;
    }
    process::kill_all_others();
    while process::wait_any(true).is_ok() {}
}
