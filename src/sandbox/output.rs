//! What a sandbox prints, as the worker reads it: until the sandbox is gone,
//! whoever else holds the other end of the pipe.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;
/// Bytes still read when the sandbox is gone: a pipe holds no more.
const REST: usize = 1 << 20;

/// The reading end of a sandbox's output.
#[derive(Debug)]
pub struct Output {
    pipe: OwnedFd,
    gone: oneshot::Receiver<()>,
}

/// Dropped when the sandbox is gone.
#[derive(Debug)]
pub struct OutputGuard {
    _gone: oneshot::Sender<()>,
}

impl Output {
    pub fn new(pipe: OwnedFd) -> (Self, OutputGuard) {
        let (sender, gone) = oneshot::channel();
        (Self { pipe, gone }, OutputGuard { _gone: sender })
    }

    /// Hands on what is printed, piece by piece.
    pub async fn read_all(self, mut each: impl FnMut(&[u8]) + Send) {
        let Ok(mut pipe) = pipe::Receiver::from_owned_fd(self.pipe) else { return };
        let mut gone = self.gone;
        let mut buffer = vec![0; CHUNK];
        loop {
            tokio::select! {
                biased;
                read = pipe.read(&mut buffer) => match read {
                    Ok(count @ 1..) => each(&buffer[..count]),
                    Ok(0) | Err(_) => return,
                },
                _ = &mut gone => break,
            }
        }
        let mut left = REST;
        while left > 0 {
            match pipe.try_read(&mut buffer) {
                Ok(count @ 1..) => {
                    each(&buffer[..count]);
                    left = left.saturating_sub(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
            }
        }
    }
}
