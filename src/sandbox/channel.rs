//! The worker's end of a socket to a sandbox, without blocking a thread.
//!
//! Plain reads throw descriptors away that nobody asked for: the kernel closes
//! them. Only [`Channel::receive`] takes any.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use hosier_zygote::sys::SysError;
use hosier_zygote::sys::socket::{self, Received};
use nix::errno::Errno;
use tokio::io::Interest;
use tokio::net::UnixStream;

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
        let sent =
            self.0.async_io(Interest::WRITABLE, || socket::send(self.0.as_fd(), bytes, fds).map_err(plain));
        // Descriptors went along with the first byte; a stream may have taken a part.
        let sent = sent.await?;
        self.write_all(&bytes[sent..]).await
    }

    /// # Errors
    /// As `write(2)`.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = self
                .0
                .async_io(Interest::WRITABLE, || socket::send(self.0.as_fd(), bytes, &[]).map_err(plain));
            bytes = &bytes[sent.await?..];
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
