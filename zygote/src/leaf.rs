//! A leaf's side of its socket: born, specialized once, then one request at
//! a time. Runs in a leaf; every call blocks.
//!
//! ```text
//! Born ──▶ Prepare, Confined? ──▶ Specialize and the first Invoke ─┬▶ Answer ──▶ reap ─┐      end of stream: exit
//!                                                        └───── Invoke ◀─────┘
//! ```

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use crate::contain::{self, SOCKET};
use crate::sys::{self, SysError, mount, process, socket};
use crate::wire::{self, At, Failure, Handler, Header, Kind, Prepare, Request, Response, Specialize, Step};

/// Says that this leaf stands, and since when: the worker may be slow to read it.
///
/// # Errors
/// As `sendmsg(2)`.
pub fn born() -> sys::Result<()> {
    let header = Header { kind: Kind::Born, head: 0, body: 0, id: sys::time::monotonic_ns() };
    socket::write_all(process::borrow(SOCKET), &[&header.encode()])
}

/// A fresh leaf says that it stands. Its socket had to live through the `execve` of
/// the interpreter; the programs that its function starts do not get it.
///
/// # Errors
/// As `sendmsg(2)`.
pub fn born_fresh() -> sys::Result<()> {
    process::place(process::borrow(SOCKET), SOCKET, false)?;
    born()
}

/// Says which step failed, and ends.
pub fn fail(socket: &impl AsFd, failure: Failure) -> ! {
    let head = wire::encode(&failure);
    let header = Header { kind: Kind::Failed, head: head.len() as u32, body: 0, id: 0 };
    let _ = socket::write_all(socket.as_fd(), &[&header.encode(), &head]);
    process::exit_now(1)
}

/// Waits to be specialized and becomes a leaf of one function. Ends the process when
/// the worker hangs up or a step fails.
pub fn specialize() -> Handler {
    let mut inbox = inbox();
    match inbox.specialize() {
        Ok(Ok(handler)) => handler,
        Ok(Err(failure)) => fail(&process::borrow(SOCKET), failure),
        Err(_) => process::exit_now(0),
    }
}

/// A file's bytes, in three calls if it is small.
///
/// # Errors
/// As `open(2)` and `read(2)`.
pub fn read_code(path: &Path) -> io::Result<Vec<u8>> {
    let (mut file, mut bytes, mut chunk) = (File::open(path)?, Vec::new(), [0; CHUNK]);
    loop {
        let read = file.read(&mut chunk)?;
        bytes.extend_from_slice(&chunk[..read]);
        if read < CHUNK {
            return Ok(bytes);
        }
    }
}

/// Waits for a request. Ends the process when the worker hangs up.
pub fn next() -> Invocation {
    inbox().next().unwrap_or_else(|_| process::exit_now(0))
}

/// One request.
pub struct Invocation {
    pub id: u64,
    /// An encoded [`Request`], decoded only by who needs it.
    pub head: Vec<u8>,
    pub body: Vec<u8>,
}

/// What came and was not asked for yet: a frame costs one call, not one for each part.
struct Inbox {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    first: Option<Invocation>,
    specialized_ns: u64,
}

static INBOX: Mutex<Inbox> =
    Mutex::new(Inbox { bytes: Vec::new(), fds: Vec::new(), first: None, specialized_ns: 0 });

fn inbox() -> MutexGuard<'static, Inbox> {
    INBOX.lock().unwrap_or_else(PoisonError::into_inner)
}

const GARBAGE: SysError = SysError { call: "recvmsg", errno: Errno::EBADMSG };
const HUNG_UP: SysError = SysError { call: "recvmsg", errno: Errno::ECONNRESET };
/// Bytes asked for at once.
const CHUNK: usize = 8 * 1024;

impl Inbox {
    fn specialize(&mut self) -> sys::Result<Result<Handler, Failure>> {
        loop {
            let (header, head, _) = self.frame()?;
            let fds = std::mem::take(&mut self.fds);
            match header.kind {
                Kind::Prepare => {
                    let message = wire::decode(&head).map_err(|_| GARBAGE)?;
                    if let Err(failure) = prepare(&message) {
                        return Ok(Err(failure));
                    }
                }
                Kind::Specialize => {
                    let message: Specialize = wire::decode(&head).map_err(|_| GARBAGE)?;
                    if let Err(failure) = become_function(&message, &fds) {
                        return Ok(Err(failure));
                    }
                    // All of it, before anything of the function runs: see `Kind::Specialize`.
                    self.first = Some(self.next()?);
                    self.specialized_ns = sys::time::monotonic_ns();
                    return Ok(Ok(message.handler));
                }
                _ => return Err(GARBAGE),
            }
        }
    }

    fn next(&mut self) -> sys::Result<Invocation> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        let (header, head, body) = self.frame()?;
        if header.kind != Kind::Invoke {
            return Err(GARBAGE);
        }
        Ok(Invocation { id: header.id, head, body })
    }

    fn frame(&mut self) -> sys::Result<(Header, Vec<u8>, Vec<u8>)> {
        while self.bytes.len() < Header::SIZE {
            self.fill()?;
        }
        let mut bytes = [0; Header::SIZE];
        self.read(&mut bytes)?;
        let header = Header::decode(&bytes).map_err(|_| GARBAGE)?;
        let (mut head, mut body) = (vec![0; header.head as usize], vec![0; header.body as usize]);
        self.read(&mut head)?;
        self.read(&mut body)?;
        Ok((header, head, body))
    }

    /// One message: descriptors come with the first byte of a frame, and the kernel
    /// never lets bytes behind them run into the next frame that has any.
    fn fill(&mut self) -> sys::Result<()> {
        let mut chunk = [0; CHUNK];
        let received = socket::receive(process::borrow(SOCKET), &mut chunk)?;
        if received.len == 0 {
            return Err(HUNG_UP);
        }
        self.bytes.extend_from_slice(&chunk[..received.len]);
        self.fds.extend(received.fds);
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> sys::Result<()> {
        let here = buffer.len().min(self.bytes.len());
        let (first, rest) = buffer.split_at_mut(here);
        first.copy_from_slice(&self.bytes[..here]);
        self.bytes.drain(..here);
        socket::read_exact(process::borrow(SOCKET), rest)
    }
}

/// Gives everything up, says so, and then does what a blank does while it waits.
fn prepare(message: &Prepare) -> Result<(), Failure> {
    contain::confine(&message.confinement)?;
    let header = Header { kind: Kind::Confined, head: 0, body: 0, id: 0 };
    socket::write_all(process::borrow(SOCKET), &[&header.encode()]).at(Step::Message)?;
    crate::prefault::prefault(&message.prefault);
    Ok(())
}

fn become_function(message: &Specialize, fds: &[OwnedFd]) -> Result<(), Failure> {
    attach(&message.targets, fds)?;
    message.confinement.as_ref().map_or(Ok(()), contain::confine)
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

/// Reads the head of a request.
///
/// # Errors
/// The bytes are none.
pub fn parse(head: &[u8]) -> Result<Request, postcard::Error> {
    wire::decode(head)
}

/// Answers a request. Ends the process when the worker hung up.
pub fn answer(id: u64, mut response: Response, body: &[u8]) {
    response.specialized_ns = std::mem::take(&mut inbox().specialized_ns);
    let head = wire::encode(&response);
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
