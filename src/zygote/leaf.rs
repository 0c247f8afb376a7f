//! A started sandbox that answers requests, one at a time. Runs in the worker.
//!
//! ```text
//! started ──▶ Specialize ──▶ ( Invoke ──▶ Answer )*
//!     └─ Born, with the kernel's word for who sent it, before the first answer
//! ```
//!
//! Specialize and the first request go out together, and before Born came back: nothing
//! waits for a round trip. Whatever is not the expected frame ends the sandbox.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hosier_zygote::sys::time;
use hosier_zygote::wire::{self, Confinement, Failure, Handler, Header, Kind, Prepare, Response, Specialize};

use super::node::Zygote;
use super::working_set::observe;
use crate::sandbox::{Channel, Output, Placed, Sandbox, SandboxError, Started, pidfd};

/// Longest wait for what a leaf that hung up said before.
const LAST_WORD_BOUND: Duration = Duration::from_secs(1);

/// Longest wait for a leaf to give up everything.
const CONFINE_BOUND: Duration = Duration::from_secs(10);

/// A leaf of one function.
#[derive(Debug)]
pub struct Leaf {
    // Dropped before the zygote whose stub it lives under.
    sandbox: Sandbox,
    channel: Channel,
    output: Option<Output>,
    born: Option<Instant>,
    specialized: Option<Instant>,
    begun: Instant,
    /// It was forked ahead of need.
    blank: bool,
    next: u64,
    /// What makes it a function's, until its first request takes it along.
    first: Option<(Vec<u8>, Vec<Placed>)>,
    /// It ended, and had not read what it was sent last.
    unread: bool,
    zygote: Option<Arc<Zygote>>,
}

/// One answer, and when its leaf was born.
#[derive(Debug)]
pub struct Reply {
    pub response: Response,
    pub body: Bytes,
}

impl Leaf {
    pub(super) fn new(started: Started, zygote: Option<Arc<Zygote>>, begun: Instant) -> Self {
        let Started { sandbox, channel, output, .. } = started;
        Self {
            sandbox,
            channel,
            output: Some(output),
            born: None,
            specialized: None,
            begun,
            blank: false,
            next: 1,
            first: None,
            unread: false,
            zygote,
        }
    }

    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    pub fn sandbox_mut(&mut self) -> &mut Sandbox {
        &mut self.sandbox
    }

    /// The node it was forked from; `None` for a fresh one.
    pub fn node(&self) -> Option<u64> {
        self.zygote.as_ref().map(|zygote| zygote.id)
    }

    /// Whether it was forked from this zygote.
    pub(super) fn is_of(&self, zygote: &Arc<Zygote>) -> bool {
        self.zygote.as_ref().is_some_and(|own| Arc::ptr_eq(own, zygote))
    }

    /// Where its output comes out, once.
    pub fn take_output(&mut self) -> Option<Output> {
        self.output.take()
    }

    /// When its start was asked for, when it stood behind its walls, and when it
    /// began to load its handler.
    pub fn birth(&self) -> (Instant, Option<Instant>, Option<Instant>) {
        (self.begun, self.born, self.specialized)
    }

    /// Whether the request at hand can have run: not if it ended without having read it.
    pub fn has_begun(&self) -> bool {
        !self.unread
    }

    /// Whether it was forked ahead of need.
    pub fn was_blank(&self) -> bool {
        self.blank
    }

    /// Waits until it stands behind its walls, to be kept for later.
    ///
    /// # Errors
    /// It did not get there.
    pub(super) async fn wait_as_blank(&mut self) -> Result<(), SandboxError> {
        self.await_birth().await?;
        self.blank = true;
        self.sandbox.describe(format!("a blank{}", self.origin()));
        Ok(())
    }

    fn origin(&self) -> String {
        self.node().map_or_else(String::new, |node| format!(" of zygote {node}"))
    }

    /// Why it ended before it could be spoken to, if it said so; else `error`.
    pub(super) async fn last_word(&mut self, error: SandboxError) -> SandboxError {
        match tokio::time::timeout(LAST_WORD_BOUND, self.await_birth()).await {
            Ok(Err(said @ SandboxError::Contain(_))) => said,
            _ => error,
        }
    }

    /// Its start begins now: it stood ready.
    pub(super) fn taken(&mut self) {
        self.begun = Instant::now();
        self.born = Some(self.begun);
    }

    /// Has it give up everything before anything of a function is near it, and asks the
    /// kernel whether it did: its memory is its node's, which packages can write. A blank
    /// then does what else the message says, while it waits.
    ///
    /// # Errors
    /// It did not, or not within a bound.
    pub(super) async fn confine(&mut self, message: Prepare) -> Result<(), SandboxError> {
        let done = tokio::time::timeout(CONFINE_BOUND, async {
            self.prepare(message).await?;
            if self.born.is_none() {
                self.await_birth().await?;
            }
            let said = self.read_header().await?;
            match said.kind {
                Kind::Confined if said.head == 0 && said.body == 0 => Ok(()),
                Kind::Failed => Err(self.failure(said).await?.into()),
                _ => Err(SandboxError::Protocol("a frame before it was confined")),
            }
        });
        done.await.unwrap_or(Err(SandboxError::TimedOut(CONFINE_BOUND.as_secs())))?;
        self.sandbox.check_confined()
    }

    async fn prepare(&mut self, mut message: Prepare) -> Result<(), SandboxError> {
        let prepare = |message: &Prepare| frame(Kind::Prepare, 0, &wire::encode(message), &[]);
        let frame = prepare(&message).or_else(|| {
            message.prefault = Default::default();
            prepare(&message)
        });
        // It must not become a function's without this.
        let frame = frame.ok_or(SandboxError::Protocol("a confinement beyond the wire's bounds"))?;
        self.channel.write_all(&frame).await.map_err(|error| self.ended(error))
    }

    /// What looks at the pages that it touched up to now, if its zygote wants to
    /// know. It blocks; the leaf must live until it ends.
    pub(super) fn observer(&self) -> Option<Box<dyn FnOnce() + Send>> {
        let (zygote, pidfd) = (self.zygote.clone()?, self.sandbox.pidfd());
        if !zygote.working_set().wants_more() {
            return None;
        }
        Some(Box::new(move || {
            if let Some(touched) = pidfd::number(&pidfd).and_then(|pid| observe(pid, &pidfd).ok()) {
                zygote.working_set().learn(&touched);
            }
        }))
    }

    /// Makes it a leaf of one function, with its first request: both go out at once.
    ///
    /// # Errors
    /// The function's environment is beyond the wire's bounds.
    pub(super) fn specialize(
        &mut self,
        confinement: Option<Confinement>,
        handler: Handler,
        mounts: Vec<Placed>,
    ) -> Result<(), SandboxError> {
        let role = format!("function {}{}", handler.function, self.origin());
        let targets = mounts.iter().map(|placed| placed.target.to_owned()).collect();
        let head = wire::encode(&Specialize { targets, confinement, handler });
        let frame = frame(Kind::Specialize, 0, &head, &[])
            .ok_or(SandboxError::Protocol("an environment beyond the wire's bounds"))?;
        self.sandbox.describe(role);
        self.first = Some((frame, mounts));
        Ok(())
    }

    /// Sends one request and waits for its answer. Not to be used again after an
    /// error or if the future was dropped.
    ///
    /// # Errors
    /// It ended, or broke the protocol.
    pub async fn call(&mut self, request: &wire::Request, body: &[u8]) -> Result<Reply, SandboxError> {
        let id = self.next;
        self.next += 1;
        let frame = frame(Kind::Invoke, id, &wire::encode(request), body)
            .ok_or(SandboxError::Protocol("a request beyond the wire's bounds"))?;
        self.send(frame).await?;
        if self.born.is_none() {
            self.await_birth().await?;
        }
        let answer = self.read_header().await?;
        // Its first steps may fail, up to its handler; later it has none to tell of.
        if answer.kind == Kind::Failed && id == 1 {
            return Err(self.failure(answer).await?.into());
        }
        if answer.kind != Kind::Answer || answer.id != id {
            return Err(SandboxError::Protocol("an answer to no request"));
        }
        let head = self.read_bytes(answer.head as usize).await?;
        let body = self.read_bytes(answer.body as usize).await?;
        let response: Response =
            wire::decode(&head).map_err(|_| SandboxError::Protocol("a malformed answer"))?;
        if id == 1 {
            self.specialized = Some(self.said_at(response.specialized_ns));
        }
        Ok(Reply { response, body: body.into() })
    }

    /// Sends a request, the first one behind what makes it a function's.
    async fn send(&mut self, request: Vec<u8>) -> Result<(), SandboxError> {
        let Some((mut frame, mounts)) = self.first.take() else {
            return self.channel.write_all(&request).await.map_err(|error| self.ended(error));
        };
        frame.extend(request);
        let fds: Vec<_> = mounts.iter().map(|placed| placed.mount.as_raw_fd()).collect();
        if let Err(error) = self.channel.send(&frame, &fds).await {
            let error = self.ended(error);
            return Err(self.last_word(error).await);
        }
        Ok(())
    }

    /// Whether it has said nothing unasked and is not known to be gone.
    pub fn is_quiet(&self) -> bool {
        self.channel.is_quiet()
    }

    /// Resolves when it says something unasked, or is gone: either ends it.
    pub async fn unasked(&self) {
        let _ = self.channel.readable().await;
    }

    /// Waits for the first frame, which the kernel signs with its sender.
    async fn await_birth(&mut self) -> Result<(), SandboxError> {
        let mut bytes = [0; Header::SIZE];
        let received = self.channel.receive(&mut bytes).await.map_err(|error| self.ended(error))?;
        if received.len == 0 {
            return Err(SandboxError::Ended);
        }
        if received.len != Header::SIZE || received.truncated || !received.fds.is_empty() {
            return Err(SandboxError::Protocol("a malformed first frame"));
        }
        let header = Header::decode(&bytes)?;
        match header.kind {
            Kind::Failed => Err(self.failure(header).await?.into()),
            Kind::Born if received.pid.is_some() && received.pid == pidfd::number(&self.sandbox.pidfd()) => {
                self.born = Some(self.said_at(header.id));
                Ok(())
            }
            Kind::Born => Err(SandboxError::Protocol("a first frame of another process")),
            _ => Err(SandboxError::Protocol("no first frame")),
        }
    }

    /// When it said something, by its own clock, which is the worker's: reading it may
    /// have had to wait for a processor. It may lie, but not leave its own start.
    fn said_at(&self, monotonic_ns: u64) -> Instant {
        let now = Instant::now();
        let ago = Duration::from_nanos(time::monotonic_ns().saturating_sub(monotonic_ns));
        now.checked_sub(ago).unwrap_or(now).max(self.born.unwrap_or(self.begun))
    }

    async fn failure(&mut self, header: Header) -> Result<Failure, SandboxError> {
        if header.head > 64 {
            return Err(SandboxError::Protocol("a malformed failure"));
        }
        let head = self.read_bytes(header.head as usize).await?;
        wire::decode(&head).map_err(|_| SandboxError::Protocol("a malformed failure"))
    }

    /// It is gone. The kernel says whether it left something unread.
    fn ended(&mut self, error: io::Error) -> SandboxError {
        self.unread = matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
        SandboxError::Ended
    }

    async fn read_header(&mut self) -> Result<Header, SandboxError> {
        let mut bytes = [0; Header::SIZE];
        self.channel.read_exact(&mut bytes).await.map_err(|error| self.ended(error))?;
        Ok(Header::decode(&bytes)?)
    }

    async fn read_bytes(&mut self, len: usize) -> Result<Vec<u8>, SandboxError> {
        let mut bytes = vec![0; len];
        self.channel.read_exact(&mut bytes).await.map_err(|error| self.ended(error))?;
        Ok(bytes)
    }
}

/// `None` beyond the wire's bounds.
fn frame(kind: Kind, id: u64, head: &[u8], body: &[u8]) -> Option<Vec<u8>> {
    let within = head.len() <= wire::MAX_HEAD && body.len() <= wire::MAX_BODY;
    let header = Header { kind, head: head.len() as u32, body: body.len() as u32, id };
    within.then(|| [&header.encode(), head, body].concat())
}
