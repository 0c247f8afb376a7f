//! The worker's end of a socket to a sandbox, without blocking a thread.
//!
//! Plain reads throw descriptors away that nobody asked for: the kernel closes
//! them. Only [`Channel::receive`] takes any.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use hosier_zygote::sys::socket::{self, Received};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::unix::AsyncFd;

/// An asynchronous socket.
#[derive(Debug)]
pub struct Channel(AsyncFd<OwnedFd>);

impl Channel {
    /// # Errors
    /// The descriptor cannot be polled.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self(AsyncFd::new(fd)?))
    }

    /// One message with its descriptors and credentials.
    ///
    /// # Errors
    /// As `recvmsg(2)`.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            let mut ready = self.0.readable().await?;
            let tried = ready.try_io(|fd| {
                socket::receive(fd.as_fd(), buffer).map_err(|error| io::Error::from(error.errno))
            });
            if let Ok(done) = tried {
                return done;
            }
        }
    }

    /// Sends one message, whole, with descriptors.
    ///
    /// # Errors
    /// As `sendmsg(2)`.
    pub async fn send(&self, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
        let sent = loop {
            let mut ready = self.0.writable().await?;
            let tried = ready.try_io(|fd| {
                socket::send(fd.as_fd(), bytes, fds).map_err(|error| io::Error::from(error.errno))
            });
            if let Ok(done) = tried {
                break done?;
            }
        };
        // Descriptors went along with the first byte; a stream may have taken a part.
        self.write_all(&bytes[sent..]).await
    }

    /// # Errors
    /// As `write(2)`.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            let tried = ready.try_io(|fd| {
                socket::send(fd.as_fd(), bytes, &[]).map_err(|error| io::Error::from(error.errno))
            });
            match tried {
                Ok(Ok(count)) => bytes = &bytes[count..],
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    /// Reads what there is; 0 is the end of the stream.
    ///
    /// # Errors
    /// As `read(2)`.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            let tried = ready.try_io(|fd| match nix::unistd::read(fd, buffer) {
                Err(Errno::EINTR) => Err(io::ErrorKind::WouldBlock.into()),
                done => done.map_err(io::Error::from),
            });
            if let Ok(done) = tried {
                return done;
            }
        }
    }

    /// # Errors
    /// `UnexpectedEof` at the end of the stream; else as `read(2)`.
    pub async fn read_exact(&self, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        Ok(())
    }

    /// Ready when there is something to read, the end of the stream included.
    ///
    /// # Errors
    /// The runtime is ending.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.get_ref().as_raw_fd()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
