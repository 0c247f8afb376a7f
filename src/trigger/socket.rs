//! A client's connection with deadlines where hyper has none: for the client to
//! take an answer, and for a good end.
//!
//! ```text
//! write blocked ──> answer clock starts ──> flushed: it stops
//!                          └─ body_timeout: error, the connection is cut
//! client's FIN during a call ──> held back for HALF_CLOSE_GRACE, then told to hyper
//! end ──> FIN ──> body left unread? ──> read and discard until the client's FIN
//! ```
//!
//! The clock runs until all of an answer is in the kernel's hands, so a client
//! that takes a byte now and then cannot hold it open. And a client that still
//! sends when we close would get a reset, which throws away an answer it has not
//! read yet (the 413 that told it to stop, or the 431): so we listen for a while.
//!
//! A FIN does not tell a client that left from one that has only said all it had
//! to say (`nc -N`). hyper drops the call at once in both cases; holding the FIN
//! back for a moment lets short answers reach the second kind.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::seat::Seat;
use super::status::Refusal;

/// How long a client may be silent while we wait for the end of what it sends.
const QUIET_LIMIT: Duration = Duration::from_secs(2);

/// How long a call goes on after its client has closed its side.
const HALF_CLOSE_GRACE: Duration = Duration::from_secs(1);

/// What the handler tells the socket below it. Both run in the connection's one
/// task, so no order between the fields matters.
#[derive(Debug, Clone)]
pub(super) struct Progress(Arc<Told>);

#[derive(Debug)]
struct Told {
    call: AtomicU8,
    unread: AtomicBool,
    seat: Seat,
}

const IDLE: u8 = 0;
const CALLING: u8 = 1;
/// The answer is made, but not yet in the kernel's hands.
const ANSWERED: u8 = 2;

impl Progress {
    pub(super) fn new(seat: Seat) -> Self {
        Self(Arc::new(Told { call: AtomicU8::new(IDLE), unread: AtomicBool::new(false), seat }))
    }

    pub(super) fn seat(&self) -> &Seat {
        &self.0.seat
    }

    /// The request is whole: it takes a slot.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if none is free.
    pub(super) fn takes_slot(&self) -> Result<(), Refusal> {
        if self.0.seat.take_slot() { Ok(()) } else { Err(Refusal::Busy) }
    }

    pub(super) fn call_begins(&self) {
        self.0.call.store(CALLING, Ordering::Relaxed);
    }

    pub(super) fn call_ends(&self) {
        self.0.call.store(ANSWERED, Ordering::Relaxed);
        self.0.seat.wait_for_client();
    }

    /// The client may still be sending a body that nobody will read.
    pub(super) fn body_is_left(&self) {
        self.0.unread.store(true, Ordering::Relaxed);
    }

    /// Whether that ended a call.
    fn all_is_flushed(&self) -> bool {
        self.0.call.compare_exchange(ANSWERED, IDLE, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Whether no request is in hand: none whose head is complete and whose answer is not flushed.
    pub(super) fn is_idle(&self) -> bool {
        self.0.call.load(Ordering::Relaxed) == IDLE
    }

    fn is_body_left(&self) -> bool {
        self.0.unread.load(Ordering::Relaxed)
    }
}

/// How far the end of a connection has come.
enum Parting {
    Open,
    /// Our side is closed; theirs is read until it ends or a clock does.
    Listening {
        deadline: Pin<Box<Sleep>>,
        quiet: Pin<Box<Sleep>>,
    },
}

/// A stream with the deadlines above.
pub(super) struct Socket<S> {
    stream: S,
    body_timeout: Duration,
    progress: Progress,
    answer_clock: Option<Pin<Box<Sleep>>>,
    /// Runs from the client's FIN, once that was read.
    fin_clock: Option<Pin<Box<Sleep>>>,
    /// Whether bytes came since the last answer: of a head that is not complete, or no head.
    heard: bool,
    parting: Parting,
}

impl<S> Socket<S> {
    pub(super) fn new(stream: S, body_timeout: Duration, progress: Progress) -> Self {
        let parting = Parting::Open;
        Self { stream, body_timeout, progress, answer_clock: None, fin_clock: None, heard: false, parting }
    }

    /// What a blocked write comes to: more waiting, or the end.
    fn poll_blocked(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let limit = self.body_timeout;
        let clock = self.answer_clock.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(clock.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.fin_clock.is_none() {
            let (before, room) = (buf.filled().len(), buf.remaining());
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
            if buf.filled().len() > before || room == 0 {
                this.heard = true;
                return Poll::Ready(Ok(()));
            }
        }
        if this.progress.is_idle() {
            return Poll::Ready(Ok(()));
        }
        let clock = this.fin_clock.get_or_insert_with(|| Box::pin(sleep(HALF_CLOSE_GRACE)));
        clock.as_mut().poll(cx).map(Ok)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match Pin::new(&mut this.stream).poll_write(cx, buf) {
            Poll::Pending => this.poll_blocked(cx),
            done => done,
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match Pin::new(&mut this.stream).poll_write_vectored(cx, bufs) {
            Poll::Pending => this.poll_blocked(cx),
            done => done,
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper comes here once all it had is written.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.answer_clock = None;
        if this.progress.all_is_flushed() {
            this.heard = false;
            if this.fin_clock.is_some() {
                // hyper waits for this socket to be readable, which only the clock would
                // make it: it may learn of the FIN now.
                cx.waker().wake_by_ref();
            }
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.parting {
                Parting::Open => {
                    ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
                    let is_refused_head = this.heard && this.progress.is_idle();
                    if !this.progress.is_body_left() && !is_refused_head {
                        return Poll::Ready(Ok(()));
                    }
                    let deadline = Box::pin(sleep(this.body_timeout));
                    this.parting = Parting::Listening { deadline, quiet: Box::pin(sleep(QUIET_LIMIT)) };
                }
                Parting::Listening { deadline, quiet } => {
                    if deadline.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(Ok(()));
                    }
                    let mut space = [0; 16 * 1024];
                    let mut buf = ReadBuf::new(&mut space);
                    match Pin::new(&mut this.stream).poll_read(cx, &mut buf) {
                        Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                            quiet.as_mut().reset(Instant::now() + QUIET_LIMIT);
                        }
                        // Its FIN, or its reset: either way it has ended.
                        Poll::Ready(_) => return Poll::Ready(Ok(())),
                        Poll::Pending => return quiet.as_mut().poll(cx).map(Ok),
                    }
                }
            }
        }
    }
}
