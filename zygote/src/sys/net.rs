//! Network namespaces: `lo` comes up and is listened on, one becomes a descriptor, whose one is.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, socket};

use super::{Named, Result, SysError, check, process};

/// Brings the loopback device of this network namespace up.
///
/// # Errors
/// `EPERM` where the namespace is not the caller's.
pub fn loopback_up() -> Result<()> {
    let socket =
        socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).named("socket")?;
    // SAFETY: an all-zero ifreq is a valid value of this plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives until the call returns.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    check("ioctl", done.into()).map(drop)
}

/// Connections that wait to be accepted from [`listen_on_loopback`], at most.
const BACKLOG: i32 = 64;

/// Listens on a TCP port of 127.0.0.1 in this network namespace.
///
/// # Errors
/// `EADDRINUSE` if the port is taken.
pub fn listen_on_loopback(port: u16) -> Result<OwnedFd> {
    let socket =
        socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).named("socket")?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port)).named("bind")?;
    listen(&socket, Backlog::new(BACKLOG).named("listen")?).named("listen")?;
    Ok(socket)
}

/// The network namespace that this thread is in, without a `/proc`.
///
/// # Errors
/// `EPERM` where the namespace is not the caller's.
pub fn current() -> Result<OwnedFd> {
    let socket =
        socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).named("socket")?;
    // SAFETY: SIOCGSKNS takes no argument and returns a new descriptor, close-on-exec.
    let fd = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) };
    check("ioctl", fd.into()).map(|fd| process::own(fd as i32))
}

/// The user namespace that a network namespace belongs to.
///
/// # Errors
/// `EINVAL` where the descriptor is of no network namespace; `EPERM` where its
/// owner is out of sight.
pub fn owner(net: BorrowedFd<'_>) -> Result<OwnedFd> {
    // SAFETY: NS_GET_NSTYPE takes no argument and returns a number.
    let kind = unsafe { libc::ioctl(net.as_raw_fd(), NS_GET_NSTYPE) };
    if check("ioctl", kind.into())? != libc::CLONE_NEWNET.into() {
        return Err(SysError { call: "ioctl", errno: nix::errno::Errno::EINVAL });
    }
    // SAFETY: NS_GET_USERNS takes no argument and returns a new descriptor, close-on-exec.
    let fd = unsafe { libc::ioctl(net.as_raw_fd(), NS_GET_USERNS) };
    check("ioctl", fd.into()).map(|fd| process::own(fd as i32))
}

/// `linux/sockios.h` and `linux/nsfs.h`.
const SIOCGSKNS: libc::Ioctl = 0x894C;
const NS_GET_USERNS: libc::Ioctl = 0xb701;
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
