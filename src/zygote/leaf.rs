//! A started sandbox that answers requests, one at a time. Runs in the worker.
//!
//! ```text
//! started ──▶ Specialize ──▶ ( Invoke ──▶ Answer )*
//!     └─ Born, with the kernel's word for who sent it, before the first answer
//! ```
//!
//! Specialize and the first request go out before Born came back: nothing waits
//! for a round trip. Whatever is not the expected frame ends the sandbox.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hosier_zygote::sys::time;
use hosier_zygote::wire::{self, Failure, Header, Kind, Prepare, Response, Specialize};

use super::node::Zygote;
use super::working_set::observe;
use crate::sandbox::{Channel, Output, Sandbox, SandboxError, Started, pidfd};

/// Longest wait for what a leaf that hung up said before.
const LAST_WORD_BOUND: Duration = Duration::from_secs(1);

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

    /// Whether anything of its function can have run.
    pub fn has_begun(&self) -> bool {
        self.specialized.is_some()
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

    /// Tells a blank what to do while it waits. `fds` are the mounts for `targets`.
    pub(super) async fn prepare(&self, mut message: Prepare, fds: &[OwnedFd]) -> Result<(), SandboxError> {
        let mut head = wire::encode(&message);
        if head.len() > wire::MAX_HEAD {
            message.prefault = Default::default();
            head = wire::encode(&message);
        }
        self.tell(Kind::Prepare, &head, fds).await
    }

    /// Its first answer said what it had to import.
    pub(super) fn teach(&self, imported: &[String]) {
        if let Some(zygote) = &self.zygote {
            zygote.learned().learn(imported);
        }
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

    /// Makes it a leaf of one function. `fds` are the mounts for `targets`.
    ///
    /// # Errors
    /// It is gone.
    pub(super) async fn specialize(&self, message: &Specialize, fds: &[OwnedFd]) -> Result<(), SandboxError> {
        let head = wire::encode(message);
        if head.len() > wire::MAX_HEAD {
            return Err(SandboxError::Protocol("an environment beyond the wire's bounds"));
        }
        self.tell(Kind::Specialize, &head, fds).await?;
        let role = format!("function {}{}", message.handler.function, self.origin());
        self.sandbox.describe(role);
        Ok(())
    }

    async fn tell(&self, kind: Kind, head: &[u8], fds: &[OwnedFd]) -> Result<(), SandboxError> {
        let header = Header { kind, head: head.len() as u32, body: 0, id: 0 };
        let frame = [&header.encode(), head].concat();
        let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        self.channel.send(&frame, &fds).await.map_err(ended)
    }

    /// Sends one request and waits for its answer. Not to be used again after an
    /// error or if the future was dropped.
    ///
    /// # Errors
    /// It ended, or broke the protocol.
    pub async fn call(&mut self, request: &wire::Request, body: &[u8]) -> Result<Reply, SandboxError> {
        let head = wire::encode(request);
        if head.len() > wire::MAX_HEAD || body.len() > wire::MAX_BODY {
            return Err(SandboxError::Protocol("a request beyond the wire's bounds"));
        }
        let id = self.next;
        self.next += 1;
        let header = Header { kind: Kind::Invoke, head: head.len() as u32, body: body.len() as u32, id };
        let frame = [&header.encode(), head.as_slice(), body].concat();
        self.channel.write_all(&frame).await.map_err(ended)?;
        if self.born.is_none() {
            self.await_birth().await?;
        }
        let mut answer = self.read_header().await?;
        if answer.kind == Kind::Specialized && id == 1 {
            self.specialized = Some(self.said_at(answer.id));
            answer = self.read_header().await?;
        }
        // Its first steps may fail, up to its handler; later it has none to tell of.
        if answer.kind == Kind::Failed && id == 1 {
            return Err(self.failure(answer).await?.into());
        }
        if answer.kind != Kind::Answer || answer.id != id {
            return Err(SandboxError::Protocol("an answer to no request"));
        }
        let head = self.read_bytes(answer.head as usize).await?;
        let body = self.read_bytes(answer.body as usize).await?;
        let response = wire::decode(&head).map_err(|_| SandboxError::Protocol("a malformed answer"))?;
        Ok(Reply { response, body: body.into() })
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
        let received = self.channel.receive(&mut bytes).await.map_err(ended)?;
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

    async fn failure(&self, header: Header) -> Result<Failure, SandboxError> {
        if header.head > 64 {
            return Err(SandboxError::Protocol("a malformed failure"));
        }
        let head = self.read_bytes(header.head as usize).await?;
        wire::decode(&head).map_err(|_| SandboxError::Protocol("a malformed failure"))
    }

    async fn read_header(&self) -> Result<Header, SandboxError> {
        let mut bytes = [0; Header::SIZE];
        self.channel.read_exact(&mut bytes).await.map_err(ended)?;
        Ok(Header::decode(&bytes)?)
    }

    async fn read_bytes(&self, len: usize) -> Result<Vec<u8>, SandboxError> {
        let mut bytes = vec![0; len];
        self.channel.read_exact(&mut bytes).await.map_err(ended)?;
        Ok(bytes)
    }
}

fn ended(_: io::Error) -> SandboxError {
    SandboxError::Ended
}
