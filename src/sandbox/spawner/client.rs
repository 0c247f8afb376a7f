//! The worker's side of the spawner. One task reads its socket; callers wait
//! on channels of their own.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hosier_zygote::birth::{Birth, Extent};
use hosier_zygote::sys::process::kill_pidfd;
use hosier_zygote::sys::socket::{self, MAX_FDS};
use hosier_zygote::wire;
use tokio::sync::{oneshot, watch};

use super::{Ask, Tell};
use crate::sandbox::SandboxError;
use crate::sandbox::channel::Channel;
use crate::sandbox::error::{About, During};

/// Longest wait for a fresh process to run its program.
const START_BOUND: Duration = Duration::from_secs(30);

/// A fresh process, as the worker knows it.
#[derive(Debug)]
pub struct Process {
    pub pidfd: OwnedFd,
    /// Its `wait` status, once.
    pub ended: oneshot::Receiver<i32>,
}

/// The worker's handle of the spawner.
#[derive(Debug, Clone)]
pub struct Spawner(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    channel: Channel,
    pidfd: OwnedFd,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, Waiting>>,
    gone: watch::Sender<bool>,
}

#[derive(Debug)]
enum Waiting {
    Start(oneshot::Sender<Result<Process, SandboxError>>),
    End(oneshot::Sender<i32>),
    Map(oneshot::Sender<Result<OwnedFd, SandboxError>>),
}

impl Spawner {
    /// Takes over the socket that [`super::start`] returned. Inside a runtime.
    ///
    /// # Errors
    /// The socket cannot be polled.
    pub fn connect(socket: OwnedFd, pidfd: OwnedFd) -> Result<Self, SandboxError> {
        let channel = Channel::new(socket).about("the spawner's socket")?;
        let shared = Arc::new(Shared {
            channel,
            pidfd,
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
            gone: watch::Sender::new(false),
        });
        tokio::spawn(listen(Arc::clone(&shared)));
        Ok(Self(shared))
    }

    /// Starts a process. `fds` are those of [`Birth`]; the caller keeps them.
    ///
    /// # Errors
    /// The step that failed, or the spawner is gone.
    pub async fn spawn(&self, birth: Birth, fds: &[RawFd]) -> Result<Process, SandboxError> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (sender, started) = oneshot::channel();
        self.0.waiting().insert(id, Waiting::Start(sender));
        let message = wire::encode(&Ask::Start { id, birth });
        if message.len() > wire::MAX_MESSAGE || fds.len() > MAX_FDS {
            self.0.waiting().remove(&id);
            return Err(SandboxError::Protocol("a start larger than a message may be"));
        }
        let asked = async {
            self.0.channel.send(&message, fds).await.map_err(|_| SandboxError::SpawnerGone)?;
            started.await.unwrap_or(Err(SandboxError::SpawnerGone))
        };
        let answer = tokio::time::timeout(START_BOUND, asked).await;
        let answer = answer.unwrap_or(Err(SandboxError::TimedOut(START_BOUND.as_secs())));
        if answer.is_err() {
            // A late answer finds nobody, and its process is killed.
            self.0.waiting().remove(&id);
        }
        answer
    }

    /// A user namespace with these ids, in which nobody lives.
    ///
    /// # Errors
    /// The kernel refuses one, or the spawner is gone or does not answer.
    pub async fn map(&self, extents: Vec<Extent>) -> Result<OwnedFd, SandboxError> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (sender, mapped) = oneshot::channel();
        self.0.waiting().insert(id, Waiting::Map(sender));
        let message = wire::encode(&Ask::Map { id, extents });
        let asked = async {
            self.0.channel.send(&message, &[]).await.map_err(|_| SandboxError::SpawnerGone)?;
            mapped.await.unwrap_or(Err(SandboxError::SpawnerGone))
        };
        let answer = tokio::time::timeout(START_BOUND, asked).await;
        self.0.waiting().remove(&id);
        answer.unwrap_or(Err(SandboxError::TimedOut(START_BOUND.as_secs())))
    }

    /// Has network namespaces made in the user namespace of the process behind
    /// `member`. They come out of the channel, one a message, until its end.
    ///
    /// # Errors
    /// The spawner is gone.
    pub async fn nets(&self, member: &OwnedFd, count: u32) -> Result<Channel, SandboxError> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (ours, theirs) = socket::seqpacket_pair().during("a socket for network namespaces")?;
        let message = wire::encode(&Ask::Nets { id, count });
        let fds = [theirs.as_raw_fd(), member.as_raw_fd()];
        self.0.channel.send(&message, &fds).await.map_err(|_| SandboxError::SpawnerGone)?;
        Channel::new(ours).about("a socket for network namespaces")
    }

    /// Resolves when the spawner is gone, and with it every sandbox.
    pub async fn gone(&self) {
        let mut gone = self.0.gone.subscribe();
        // An error means that the sender is gone too.
        let _ = gone.wait_for(|gone| *gone).await;
    }

    /// Whether it is gone.
    pub fn is_gone(&self) -> bool {
        *self.0.gone.borrow()
    }

    /// Hangs up and gives the spawner's pidfd, which tells when it has cleared up.
    ///
    /// # Errors
    /// As `shutdown(2)` and `dup(2)`.
    pub fn hang_up(&self) -> std::io::Result<OwnedFd> {
        let pidfd = self.0.pidfd.try_clone()?;
        nix::sys::socket::shutdown(self.0.channel.as_raw_fd(), nix::sys::socket::Shutdown::Both)?;
        Ok(pidfd)
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, message: Tell, fds: Vec<OwnedFd>) {
        match message {
            Tell::Started { id } => {
                let (end, ended) = oneshot::channel();
                let waiting = self.waiting().insert(id, Waiting::End(end));
                let Some(pidfd) = fds.into_iter().next() else { return };
                let process = Process { pidfd, ended };
                let unwanted = match waiting {
                    Some(Waiting::Start(sender)) => sender.send(Ok(process)).err().and_then(Result::ok),
                    _ => Some(process),
                };
                // Whoever asked has gone away meanwhile.
                if let Some(process) = unwanted {
                    let _ = kill_pidfd(process.pidfd.as_fd());
                }
            }
            Tell::Mapped { id } => {
                let waiting = self.waiting().remove(&id);
                if let (Some(Waiting::Map(sender)), Some(namespace)) = (waiting, fds.into_iter().next()) {
                    let _ = sender.send(Ok(namespace));
                }
            }
            // Whoever asked may have gone away meanwhile.
            Tell::Failed { id, failure } => match self.waiting().remove(&id) {
                Some(Waiting::Start(sender)) => drop(sender.send(Err(failure.into()))),
                Some(Waiting::Map(sender)) => drop(sender.send(Err(failure.into()))),
                Some(Waiting::End(_)) | None => {}
            },
            Tell::Ended { id, status } => {
                if let Some(Waiting::End(sender)) = self.waiting().remove(&id) {
                    let _ = sender.send(status);
                }
            }
        }
    }
}

async fn listen(shared: Arc<Shared>) {
    let mut buffer = vec![0; wire::MAX_MESSAGE];
    while let Ok(received) = shared.channel.receive(&mut buffer).await {
        if received.len == 0 {
            break;
        }
        if let Ok(message) = wire::decode(&buffer[..received.len]) {
            shared.hear(message, received.fds);
        }
    }
    shared.waiting().clear();
    shared.gone.send_replace(true);
}
