//! The worker's end of a socket to a sandbox, without blocking a thread.
//!
//! Plain reads throw descriptors away that nobody asked for: the kernel closes
//! them. Only [`Channel::receive`] takes any.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use hosier_zygote::sys::SysError;
use hosier_zygote::sys::socket::{self, Received};
use nix::errno::Errno;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Number of tries of one message, and the pause between two: a tenth of a second.
const SEND_TRIES: u32 = 10;
const SEND_PAUSE: Duration = Duration::from_millis(10);

/// An asynchronous socket. The type serves for pairs that keep message bounds
/// too: only its readiness is used.
#[derive(Debug)]
pub struct Channel(UnixStream);

impl Channel {
    /// # Errors
    /// The descriptor cannot be polled.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let stream = std::os::unix::net::UnixStream::from(fd);
        stream.set_nonblocking(true)?;
        Ok(Self(UnixStream::from_std(stream)?))
    }

    /// One message with its descriptors and credentials.
    ///
    /// # Errors
    /// As `recvmsg(2)`.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        self.0.async_io(Interest::READABLE, || socket::receive(self.0.as_fd(), buffer).map_err(plain)).await
    }

    /// Sends one message, whole, with descriptors.
    ///
    /// # Errors
    /// As `sendmsg(2)`.
    pub async fn send(&self, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
        // Descriptors went along with the first byte; a stream may have taken a part.
        let sent = self.send_some(bytes, fds).await?;
        self.write_all(&bytes[sent..]).await
    }

    /// One `sendmsg(2)`. Nothing of a message went if memory was short: it is tried again.
    async fn send_some(&self, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
        let mut tries = 1;
        loop {
            let sent = self
                .0
                .async_io(Interest::WRITABLE, || socket::send(self.0.as_fd(), bytes, fds).map_err(plain));
            match sent.await {
                Err(error) if tries < SEND_TRIES && is_short_of_memory(&error) => tries += 1,
                done => return done,
            }
            tokio::time::sleep(SEND_PAUSE).await;
        }
    }

    /// # Errors
    /// As `write(2)`.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            bytes = &bytes[self.send_some(bytes, &[]).await?..];
        }
        Ok(())
    }

    /// # Errors
    /// `UnexpectedEof` at the end of the stream; else as `read(2)`.
    pub async fn read_exact(&self, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let read = self.0.async_io(Interest::READABLE, || {
                nix::unistd::read(&self.0, &mut buffer[filled..]).map_err(io::Error::from)
            });
            match read.await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        Ok(())
    }

    /// Whether there is nothing to read, not even the end of the stream.
    pub fn is_quiet(&self) -> bool {
        socket::peek(self.0.as_fd()).is_err_and(|error| error.errno == Errno::EAGAIN)
    }

    /// Ready when there is something to read, the end of the stream included.
    ///
    /// # Errors
    /// The runtime is ending.
    pub async fn readable(&self) -> io::Result<()> {
        // A look at the socket itself: the runtime's own note of its readiness
        // may be older than the last read.
        self.0.async_io(Interest::READABLE, || socket::peek(self.0.as_fd()).map_err(plain)).await
    }
}

/// The kernel's bounds on memory and on descriptors in flight; neither is the peer's fault.
fn is_short_of_memory(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOBUFS | Errno::ENOMEM | Errno::ETOOMANYREFS))
}

fn plain(error: SysError) -> io::Error {
    error.errno.into()
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
