//! The worker's doors: its port, and its own Unix socket. Runs at start-up,
//! inside the tokio runtime.
//!
//! ```text
//! bind_own:  socket ──fchmod 0600──> bind PATH.new ──listen──> rename to PATH
//! ```
//!
//! `fchmod` before `bind` sets the mode that the file is made with, whatever the
//! umask is, and the rename replaces what a killed worker left: at no moment can
//! anyone else connect, and at no moment does PATH name a socket nobody answers.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};
use tokio::net::{TcpListener, TcpSocket, UnixListener};

/// Connections that may wait to be accepted.
const BACKLOG: u16 = 1024;

/// Why the worker cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum TriggerError {
    #[error(
        "port {port} of {ip} is in use: stop its holder (`hosier down -p DIR` for a worker; `ss -ltnp 'sport = :{port}'` \
         names it), or take another port with `-o worker_port=N`"
    )]
    PortInUse { ip: IpAddr, port: u16 },
    #[error("{url:?} names no address of this machine ({cause}); set one with `-o worker_url=localhost`")]
    BadUrl { url: String, cause: io::Error },
    #[error("cannot listen on {addr}: {cause}; choose with `-o worker_url=…,worker_port=…`")]
    Listen { addr: SocketAddr, cause: io::Error },
    #[error(
        "another worker answers at {path:?}; stop it with `hosier down`, or use another directory (`-p DIR`)"
    )]
    OwnSocketInUse { path: PathBuf },
    #[error("{path:?} is no socket; move it away, it is in the place of the worker's own")]
    NotASocket { path: PathBuf },
    #[error("cannot make the worker's socket {path:?}: {cause}; its directory must exist, its path be short")]
    OwnSocket { path: PathBuf, cause: io::Error },
}

/// Listens on `port` of the address that `url` names; `localhost` is both
/// loopback addresses, or the one that exists. Port 0 is any free one.
///
/// # Errors
/// The address is none of ours, or the port is taken.
pub fn bind(url: &str, port: u16) -> Result<Vec<TcpListener>, TriggerError> {
    let addrs: Vec<IpAddr> = match url {
        "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        _ => resolve(url, port)?,
    };
    let mut listeners: Vec<TcpListener> = Vec::with_capacity(addrs.len());
    for ip in addrs {
        // The second loopback address follows the first to whatever port that got.
        let port =
            listeners.first().and_then(|first| first.local_addr().ok()).map_or(port, |addr| addr.port());
        let addr = SocketAddr::new(ip, port);
        match listen(addr) {
            Ok(listener) => listeners.push(listener),
            Err(cause) if cause.kind() == io::ErrorKind::AddrInUse => {
                return Err(TriggerError::PortInUse { ip, port });
            }
            Err(cause) if is_absent(&cause) && !listeners.is_empty() => {}
            Err(cause) => return Err(TriggerError::Listen { addr, cause }),
        }
    }
    Ok(listeners)
}

/// The machine has no such address or no such protocol (IPv6 switched off).
fn is_absent(cause: &io::Error) -> bool {
    let errno = cause.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT))
}

fn resolve(url: &str, port: u16) -> Result<Vec<IpAddr>, TriggerError> {
    let bare = url.trim_start_matches('[').trim_end_matches(']');
    let bad = |cause| TriggerError::BadUrl { url: url.to_owned(), cause };
    let first = (bare, port).to_socket_addrs().map_err(bad)?.next();
    first.map(|addr| vec![addr.ip()]).ok_or_else(|| bad(io::ErrorKind::NotFound.into()))
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG.into())
}

/// The worker's own Unix socket; its file goes when this is dropped.
#[derive(Debug)]
pub struct OwnSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        // Nobody can be told, and the next start replaces what is left.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes the worker's own socket at `path`, mode 0600, in place of a stale one.
///
/// # Errors
/// A worker answers there, something else is there, or the kernel refuses.
pub fn bind_own(path: &Path) -> Result<OwnSocket, TriggerError> {
    let fail = |cause: io::Error| TriggerError::OwnSocket { path: path.to_owned(), cause };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(TriggerError::NotASocket { path: path.to_owned() });
        }
        Ok(_) if is_answered(path).map_err(|errno| fail(errno.into()))? => {
            return Err(TriggerError::OwnSocketInUse { path: path.to_owned() });
        }
        Ok(_) => {}
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
        Err(cause) => return Err(fail(cause)),
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let listener = listen_own(&fresh).map_err(fail)?;
    fs::rename(&fresh, path).map_err(fail)?;
    Ok(OwnSocket { listener, path: path.to_owned() })
}

fn listen_own(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket::bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    socket::listen(&fd, Backlog::new(BACKLOG)?)?;
    UnixListener::from_std(StdUnixListener::from(fd))
}

/// Someone listens at `path`. Non-blocking: a worker that hangs has a full queue
/// and would hang us too.
fn is_answered(path: &Path) -> nix::Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}
