//! Socket pairs that carry messages with descriptors and credentials.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};

use super::{Named, Result, SysError};

/// Descriptors in one message, at most.
pub const MAX_FDS: usize = 64;
/// The kernel's own bound (`SCM_MAX_FD`).
const KERNEL_MAX_FDS: usize = 253;

/// A connected pair whose messages keep their bounds.
///
/// # Errors
/// As `socketpair(2)`.
pub fn seqpacket_pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).named("socketpair")
}

/// A connected pair of byte streams.
///
/// # Errors
/// As `socketpair(2)`.
pub fn stream_pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).named("socketpair")
}

/// Asks for the sender's credentials with each message.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn want_credentials(socket: BorrowedFd<'_>) -> Result<()> {
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::PassCred, &true).named("setsockopt")
}

/// Whether a failed call says that the peer is gone, or that the socket is of no use.
/// Every other errno is of one message: memory, descriptors or buffers were short.
pub fn is_gone(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EPIPE
            | Errno::ECONNRESET
            | Errno::ENOTCONN
            | Errno::ESHUTDOWN
            | Errno::EBADF
            | Errno::ENOTSOCK
    )
}

/// What arrived with some bytes.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes read; 0 is the end of the stream.
    pub len: usize,
    /// Descriptors, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// The sender's process id as this process sees it, if asked for.
    pub pid: Option<i32>,
    /// The message or its descriptors did not fit.
    pub truncated: bool,
}

/// Sends one message.
///
/// # Errors
/// As `sendmsg(2)`; `EPIPE` without a signal when the peer is gone.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[RawFd]) -> Result<usize> {
    let parts = [IoSlice::new(bytes)];
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            done => return done.named("sendmsg"),
        }
    }
}

/// Receives into `buffer`.
///
/// # Errors
/// As `recvmsg(2)`.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Received> {
    // Room for as many descriptors as the kernel lets through, and one set of
    // credentials: those that do not fit would be ours without anybody knowing.
    // Aligned as cmsghdr wants it.
    let mut control = [0u64; (24 + KERNEL_MAX_FDS * 4 + 32) / 8 + 1];
    // SAFETY: a view of the same stack memory as bytes.
    let control =
        unsafe { std::slice::from_raw_parts_mut(control.as_mut_ptr().cast::<u8>(), size_of_val(&control)) };
    let mut parts = [IoSliceMut::new(buffer)];
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut *control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            done => break done.named("recvmsg")?,
        }
    };
    let mut received = Received {
        len: message.bytes,
        truncated: message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC),
        ..Received::default()
    };
    for part in message.cmsgs().map_err(|_| SysError { call: "recvmsg", errno: Errno::ENOBUFS })? {
        match part {
            ControlMessageOwned::ScmRights(fds) => {
                // SAFETY: the kernel installed these for this message; nobody else owns them.
                received.fds.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
            ControlMessageOwned::ScmCredentials(credentials) => received.pid = Some(credentials.pid()),
            _ => {}
        }
    }
    if received.fds.len() > MAX_FDS {
        received.fds.clear();
        received.truncated = true;
    }
    Ok(received)
}

/// Succeeds if something can be read, the end of the stream included.
///
/// # Errors
/// `EAGAIN` if not.
pub fn peek(socket: BorrowedFd<'_>) -> Result<()> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    nix::sys::socket::recv(socket.as_raw_fd(), &mut [0], flags).named("recv").map(drop)
}

/// Reads exactly `buffer`, or fails with `ECONNRESET` at the end of the stream.
///
/// # Errors
/// As `read(2)`.
pub fn read_exact(socket: BorrowedFd<'_>, mut buffer: &mut [u8]) -> Result<()> {
    while !buffer.is_empty() {
        match nix::unistd::read(socket, buffer) {
            Ok(0) => return Err(SysError { call: "read", errno: Errno::ECONNRESET }),
            Ok(count) => buffer = &mut buffer[count..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(SysError { call: "read", errno }),
        }
    }
    Ok(())
}

/// Writes all of several parts.
///
/// # Errors
/// As `sendmsg(2)`.
pub fn write_all(socket: BorrowedFd<'_>, parts: &[&[u8]]) -> Result<()> {
    let total: usize = parts.iter().map(|part| part.len()).sum();
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut rest = &mut slices[..];
    let mut sent = 0;
    while sent < total {
        match sendmsg::<()>(socket.as_raw_fd(), rest, &[], MsgFlags::MSG_NOSIGNAL, None) {
            Ok(count) => {
                sent += count;
                IoSlice::advance_slices(&mut rest, count);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(SysError { call: "sendmsg", errno }),
        }
    }
    Ok(())
}
