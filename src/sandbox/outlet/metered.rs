//! A connection to the outside that counts its bytes and ends when it is idle. Runs in the worker.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::Outlet;

/// Longest time without a byte in either direction.
const IDLE: Duration = Duration::from_secs(300);

/// A stream whose bytes are an outlet's.
pub(super) struct Metered {
    stream: TcpStream,
    outlet: Arc<Outlet>,
    idle: Pin<Box<Sleep>>,
}

impl Metered {
    pub(super) fn new(stream: TcpStream, outlet: Arc<Outlet>) -> Self {
        Self { stream, outlet, idle: Box::pin(sleep(IDLE)) }
    }

    /// Counts bytes that went through.
    fn count(&mut self, bytes: usize) -> io::Result<()> {
        if bytes > 0 {
            self.idle.as_mut().reset(Instant::now() + IDLE);
        }
        if self.outlet.spend(bytes as u64) { Ok(()) } else { Err(io::ErrorKind::QuotaExceeded.into()) }
    }

    /// Ends the wait of a stream that has been idle for too long.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        self.idle.as_mut().poll(context).map(|()| io::ErrorKind::TimedOut.into())
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Ready(Ok(())) => Poll::Ready(self.count(buffer.filled().len() - before)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => self.wait(context).map(Err),
        }
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(context, bytes) {
            Poll::Ready(Ok(count)) => Poll::Ready(self.count(count).map(|()| count)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Ready(Err(ready!(self.wait(context)))),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
