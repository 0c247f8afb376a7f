//! A function: one task with a bounded queue, which sees to it that the code is
//! current and hands requests on to its instance. Runs in the worker.
//!
//! ```text
//! invoke ──▶ queue (bounded in length and time: 429) ──▶ task: code older than registry_cache_ms? look again
//!                                       │     changed: new version, new instance; the old one
//!                                       │     serves what it has, ends, and only then its code goes
//!                                       ▼
//!                                    instance (one; scaling chooses how many, later)
//! ```
//!
//! The task ends when its function is no longer in the registry and nobody runs its code. A registry that
//! cannot be read says nothing: the code that is known is served.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::instance::{Instance, Job, Shared};
use super::line::{Line, Turn};
use super::log::FunctionLog;
use super::registry::{Fingerprint, Registry};
use super::{Answer, Blame, CodeError, FunctionName, Invocation, InvokeError, Terms, Version, Versions};
use crate::sandbox::Sandboxes;

/// What all functions of a worker share.
pub struct Floor {
    pub registry: Registry,
    pub versions: Versions<Sandboxes>,
    pub terms: Terms,
    pub shared: Shared,
    pub registry_cache: Duration,
    pub queue_len: usize,
    /// Longest wait of a request before it begins.
    pub queue_max_wait: Duration,
}

/// A function's queue.
#[derive(Clone)]
pub struct Function {
    name: FunctionName,
    queue: mpsc::Sender<Job>,
    line: Arc<Line>,
    limit: usize,
    removed: Arc<Notify>,
}

impl Function {
    /// Starts the task.
    pub fn start(name: FunctionName, floor: Arc<Floor>, log: Arc<FunctionLog>) -> Self {
        let limit = floor.queue_len.max(1);
        let (queue, inbox) = mpsc::channel(limit);
        let removed = Arc::new(Notify::new());
        let line = Line::new(floor.queue_max_wait, Arc::clone(&floor.shared.places));
        let task = Task {
            name: name.clone(),
            floor,
            log,
            line: Arc::clone(&line),
            code: Code::Unknown,
            retired: JoinSet::new(),
            removed: Arc::clone(&removed),
        };
        tokio::spawn(task.run(inbox));
        Self { name, queue, line, limit, removed }
    }

    /// Its code was removed: its sandbox goes, after the request that it serves.
    pub fn remove(&self) {
        self.removed.notify_one();
    }

    /// Whether its task has ended.
    pub fn is_gone(&self) -> bool {
        self.queue.is_closed()
    }

    /// Queues a request and waits for its answer.
    ///
    /// # Errors
    /// See [`InvokeError`].
    pub async fn invoke(&self, invocation: Invocation) -> Result<Answer, InvokeError> {
        let (reply, answer) = oneshot::channel();
        let turn = self.line.enter(invocation).map_err(|_| self.too_slow())?;
        let job = Job { turn: Arc::clone(&turn), reply };
        match self.queue.try_send(job) {
            Ok(()) => self.answer(&Leaving(turn), answer).await,
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(InvokeError::QueueFull { function: self.name.to_string(), limit: self.limit })
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                Err(InvokeError::UnknownFunction(self.name.to_string()))
            }
        }
    }

    /// The answer; a request that does not begin within the bound is refused then. The first in
    /// the line needs no clock: what it waits for has bounds of its own.
    async fn answer(
        &self,
        Leaving(turn): &Leaving,
        mut answer: oneshot::Receiver<Result<Answer, InvokeError>>,
    ) -> Result<Answer, InvokeError> {
        while !turn.is_first() {
            match timeout(self.line.bound(), &mut answer).await {
                Ok(answer) => return answer.unwrap_or(Err(InvokeError::Stopping)),
                Err(_) if self.line.is_preparing() => {}
                Err(_) if turn.give_up() => return Err(self.too_slow()),
                Err(_) => break,
            }
        }
        answer.await.unwrap_or(Err(InvokeError::Stopping))
    }

    fn too_slow(&self) -> InvokeError {
        InvokeError::QueueSlow { function: self.name.to_string(), bound: self.line.bound() }
    }
}

/// A client's end of a turn: one that leaves gives up what has not begun.
struct Leaving(Arc<Turn>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

struct Task {
    name: FunctionName,
    floor: Arc<Floor>,
    log: Arc<FunctionLog>,
    line: Arc<Line>,
    code: Code,
    /// Instances of older code that still serve.
    retired: JoinSet<()>,
    removed: Arc<Notify>,
}

/// What is known of the code.
enum Code {
    /// Not looked at, or unusable.
    Unknown,
    Served(Current),
    /// No longer in the registry.
    Removed,
}

/// The code that is served.
struct Current {
    fingerprint: Fingerprint,
    looked: Instant,
    /// Whether the registry could not be read at the last look, which was said.
    unread: bool,
    version: Arc<Version>,
    instance: Instance,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::Receiver<Job>) {
        loop {
            let job = tokio::select! {
                biased;
                () = self.removed.notified() => {
                    self.retire(Code::Removed);
                    None
                }
                Some(_) = self.retired.join_next() => None,
                job = inbox.recv() => match job {
                    None => return,
                    job => job,
                },
            };
            match job {
                Some(job) => self.serve(job).await,
                None => self.prune().await,
            }
            if matches!(self.code, Code::Removed) && self.retired.is_empty() {
                self.prune().await;
                // Who comes from here on finds another task, or is told here.
                if inbox.is_empty() {
                    break;
                }
            }
        }
        inbox.close();
        while let Some(job) = inbox.recv().await {
            let _ = job.reply.send(Err(InvokeError::UnknownFunction(self.name.to_string())));
        }
    }

    async fn serve(&mut self, job: Job) {
        match self.refresh().await {
            Ok(current) => {
                let config = &current.version.declared.config;
                // None: its client has left, or it was refused.
                let Some(sent) = job.turn.method() else { return };
                if config.allows(&sent) {
                    current.instance.serve(job).await;
                } else {
                    let refused = InvokeError::MethodNotAllowed { sent, allowed: config.allowed_list() };
                    let _ = job.reply.send(Err(refused));
                }
            }
            Err(error) => {
                let _ = job.reply.send(Err(error));
            }
        }
    }

    /// Removes the code that no instance runs, and the nodes that no new request will use.
    async fn prune(&self) {
        let served = match &self.code {
            Code::Served(current) => Some(&current.version),
            Code::Unknown | Code::Removed => None,
        };
        let kept = served.map(|version| (version.digest.as_str(), &version.pins));
        self.floor.shared.forest.forget(self.name.as_str(), kept).await;
        let digest = served.map(|version| version.digest.clone());
        if !self.retired.is_empty() {
            return;
        }
        let (floor, name) = (Arc::clone(&self.floor), self.name.clone());
        let keep = move || {
            let kept: Vec<&str> = digest.iter().map(String::as_str).collect();
            floor.versions.prune(&name, &kept)
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(keep).await {
            tracing::warn!(function = %self.name, %error, "old code could not be removed");
        }
    }

    /// The current version; looks at the registry if it was not looked at lately.
    async fn refresh(&mut self) -> Result<&Current, InvokeError> {
        let fresh = match &self.code {
            Code::Served(current) => current.looked.elapsed() < self.floor.registry_cache,
            Code::Unknown | Code::Removed => false,
        };
        if !fresh {
            self.line.set_preparing(true);
            let looked = self.look().await;
            self.line.set_preparing(false);
            looked?;
        }
        match &self.code {
            Code::Served(current) => Ok(current),
            Code::Unknown | Code::Removed => Err(InvokeError::UnknownFunction(self.name.to_string())),
        }
    }

    async fn look(&mut self) -> Result<(), InvokeError> {
        let (registry, name) = (self.floor.registry.clone(), self.name.clone());
        let looked = Instant::now();
        let found = tokio::task::spawn_blocking(move || registry.fingerprint(&name)).await;
        let fingerprint = match found.map_err(|_| InvokeError::Stopping)? {
            Ok(Some(fingerprint)) => fingerprint,
            Ok(None) => {
                self.retire(Code::Removed);
                return Err(InvokeError::UnknownFunction(self.name.to_string()));
            }
            Err(error) => return self.serve_on(looked, error.into()),
        };
        match &mut self.code {
            Code::Served(current) if current.fingerprint == fingerprint => {
                current.looked = looked;
                current.unread = false;
            }
            _ => match self.floor.versions.prepare(&self.name).await {
                Ok(mut version) => {
                    let installed = self.floor.shared.install(&version.declared.requirements).await;
                    version.pins = installed.map_err(|error| self.not_ready(&error))?;
                    self.adopt(fingerprint, looked, Arc::new(version)).await;
                }
                Err(error) => return self.serve_on(looked, error),
            },
        }
        Ok(())
    }

    /// Goes on with the code that is served where the registry cannot be read: that is no
    /// word of its owner's. Says so once, until it can be read again.
    fn serve_on(&mut self, looked: Instant, error: CodeError) -> Result<(), InvokeError> {
        let is_unread = matches!(&error, CodeError::Registry(error) if error.blame() == Blame::Worker);
        match &mut self.code {
            Code::Served(current) if is_unread => {
                if !current.unread {
                    let function = &self.name;
                    tracing::warn!(%function, %error, "the registry cannot be read: the code that is known is served");
                }
                current.looked = looked;
                current.unread = true;
                Ok(())
            }
            _ => Err(self.not_ready(&error)),
        }
    }

    async fn adopt(&mut self, fingerprint: Fingerprint, looked: Instant, version: Arc<Version>) {
        let changed = match &self.code {
            Code::Served(current) => current.version.digest != version.digest,
            Code::Unknown | Code::Removed => true,
        };
        if changed {
            self.retire(Code::Unknown);
        }
        let instance = match std::mem::replace(&mut self.code, Code::Unknown) {
            // Touched, not changed.
            Code::Served(current) => current.instance,
            Code::Unknown | Code::Removed => {
                Instance::start(self.floor.shared.clone(), Arc::clone(&version), Arc::clone(&self.log))
            }
        };
        self.code = Code::Served(Current { fingerprint, looked, unread: false, version, instance });
        self.prune().await;
    }

    /// The current instance gets no more requests.
    fn retire(&mut self, next: Code) {
        if let Code::Served(current) = std::mem::replace(&mut self.code, next) {
            let ended = current.instance.retire();
            self.retired.spawn(async move { drop(ended.await) });
        }
    }

    fn not_ready(&self, error: &dyn std::error::Error) -> InvokeError {
        InvokeError::NotReady { function: self.name.to_string(), reason: error.to_string() }
    }
}
