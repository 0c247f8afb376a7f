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
use nix::errno::Errno;
use tokio::sync::{oneshot, watch};

use super::{Ask, Tell};
use crate::sandbox::SandboxError;
use crate::sandbox::channel::Channel;
use crate::sandbox::error::{About, During};

/// Longest wait for a fresh process to run its program.
const START_BOUND: Duration = Duration::from_secs(30);

/// Number of receipts that may fail in a row, with a pause each: half a minute.
const RECEIVE_FAILURES: u32 = 3000;
const PAUSE: Duration = Duration::from_millis(10);

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
            self.ask(&message, fds).await?;
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
            self.ask(&message, &[]).await?;
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
        self.ask(&message, &fds).await?;
        Channel::new(ours).about("a socket for network namespaces")
    }

    /// Sends one message. A failure is this request's alone, unless the spawner is gone.
    async fn ask(&self, message: &[u8], fds: &[RawFd]) -> Result<(), SandboxError> {
        match self.0.channel.send(message, fds).await {
            Err(error) if is_gone(&error) => Err(SandboxError::SpawnerGone),
            sent => sent.about("the spawner's socket"),
        }
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

    /// Takes one message. Gives the process to be ended whose pidfd did not arrive.
    fn hear(&self, message: Tell, fds: Vec<OwnedFd>) -> Option<u64> {
        match message {
            Tell::Started { id } => {
                let (end, ended) = oneshot::channel();
                let waiting = self.waiting().insert(id, Waiting::End(end));
                let Some(pidfd) = fds.into_iter().next() else {
                    if let Some(Waiting::Start(sender)) = waiting {
                        let _ = sender.send(Err(no_descriptor()));
                    }
                    return Some(id);
                };
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
                if let Some(Waiting::Map(sender)) = waiting {
                    let _ = sender.send(fds.into_iter().next().ok_or_else(no_descriptor));
                }
            }
            // Whoever asked may have gone away meanwhile.
            Tell::Failed { id, failure } => match self.waiting().remove(&id) {
                Some(Waiting::Start(sender)) => drop(sender.send(Err(failure.into()))),
                Some(Waiting::Map(sender)) => drop(sender.send(Err(failure.into()))),
                Some(Waiting::End(_)) | None => {}
            },
            Tell::Ended { id, status } => match self.waiting().remove(&id) {
                Some(Waiting::End(sender)) => drop(sender.send(status)),
                // Its start could not be told, so that the spawner ended it.
                Some(Waiting::Start(sender)) => drop(sender.send(Err(SandboxError::Ended))),
                Some(Waiting::Map(_)) | None => {}
            },
        }
        None
    }
}

/// The kernel dropped a descriptor for which this process had no room.
fn no_descriptor() -> SandboxError {
    let source = Errno::EMFILE.into();
    SandboxError::File { path: "a descriptor of the spawner's".into(), source }
}

fn is_gone(error: &std::io::Error) -> bool {
    error.raw_os_error().is_some_and(|errno| socket::is_gone(Errno::from_raw(errno)))
}

/// Hears until the spawner is gone. A `recvmsg` that fails for want of memory is tried again.
async fn listen(shared: Arc<Shared>) {
    let mut buffer = vec![0; wire::MAX_MESSAGE];
    let mut failures = 0;
    loop {
        let received = match shared.channel.receive(&mut buffer).await {
            Ok(received) if received.len == 0 => break,
            Ok(received) => received,
            Err(error) if is_gone(&error) || failures >= RECEIVE_FAILURES => break,
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(%error, "the spawner cannot be heard for now");
                }
                failures += 1;
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        failures = 0;
        let Ok(message) = wire::decode(&buffer[..received.len]) else { continue };
        if let Some(id) = shared.hear(message, received.fds) {
            let spawner = Spawner(Arc::clone(&shared));
            // Not here: while the spawner waits for this task to read, it reads nothing.
            tokio::spawn(async move { spawner.ask(&wire::encode(&Ask::Kill { id }), &[]).await });
        }
    }
    shared.waiting().clear();
    shared.gone.send_replace(true);
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
