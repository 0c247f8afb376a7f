//! Network namespaces made ahead of need, so that a cold start enters one instead
//! of making it. Runs in the worker.
//!
//! ```text
//! take ──▶ a cell, whose process enters it         none ready: made on the path
//!   └─ half of them are gone ──▶ refill: a child of the spawner makes the rest
//! ```
//!
//! They belong to one user namespace, as only its root can enter them: a root
//! zygote and all that grows from it share a pool. Each serves one sandbox, once:
//! a used one may hold sockets.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hosier_zygote::nets::MAX_BATCH;
use hosier_zygote::sys::net;
use nix::sys::stat::fstat;

use super::error::{About, During};
use super::{Channel, SandboxError, Spawner, pidfd};

/// Longest wait for the next namespace of a batch.
const NEXT_BOUND: Duration = Duration::from_secs(5);
/// After a batch that failed, how long the pool does without.
const PAUSE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct NetPool {
    /// How many to keep ready.
    size: usize,
    spawner: Spawner,
    /// A process in the user namespace: its pid 1.
    member: Arc<OwnedFd>,
    /// Device and inode of the user namespace.
    owner: (u64, u64),
    ready: Mutex<Vec<OwnedFd>>,
    refilling: AtomicBool,
    not_before: Mutex<Option<Instant>>,
}

impl NetPool {
    /// An empty pool for the user namespace that `member` is in.
    pub(super) fn new(size: usize, spawner: Spawner, member: Arc<OwnedFd>) -> Result<Self, SandboxError> {
        let pid = pidfd::number(&member).filter(|pid| *pid > 0).ok_or(SandboxError::Ended)?;
        let path = format!("/proc/{pid}/ns/user");
        let owner = nix::sys::stat::stat(path.as_str()).about(&path)?;
        // Its number was its own while its pidfd says that it lives.
        if !pidfd::is_alive(&member) {
            return Err(SandboxError::Ended);
        }
        Ok(Self {
            size,
            spawner,
            member,
            owner: (owner.st_dev, owner.st_ino),
            ready: Mutex::default(),
            refilling: AtomicBool::new(false),
            not_before: Mutex::default(),
        })
    }

    /// One that nobody was in, if any is ready.
    pub fn take(&self) -> Option<OwnedFd> {
        self.ready().pop()
    }

    /// How many are ready.
    pub fn count(&self) -> usize {
        self.ready().len()
    }

    /// Whether a refill has something to do.
    pub fn lacks(&self) -> bool {
        lacking(self.count(), self.size) > 0
    }

    /// Has what is lacking made, unless somebody does already.
    pub async fn refill(&self) {
        if !self.lacks() || self.refilling.swap(true, Ordering::SeqCst) {
            return;
        }
        let pausing = self.not_before().is_some_and(|then| Instant::now() < then);
        if !pausing && let Err(error) = self.batch(lacking(self.count(), self.size)).await {
            tracing::warn!(%error, "network namespaces are made on the path for a while");
            *self.not_before() = Some(Instant::now() + PAUSE);
        }
        self.refilling.store(false, Ordering::SeqCst);
    }

    async fn batch(&self, count: usize) -> Result<(), SandboxError> {
        let maker = self.spawner.nets(&self.member, count as u32).await?;
        for _ in 0..count {
            let made = tokio::time::timeout(NEXT_BOUND, self.receive(&maker)).await;
            let made = made.unwrap_or(Err(SandboxError::TimedOut(NEXT_BOUND.as_secs())))?;
            self.ready().push(made);
        }
        Ok(())
    }

    async fn receive(&self, maker: &Channel) -> Result<OwnedFd, SandboxError> {
        let received = maker.receive(&mut [0; 1]).await.about("a socket for network namespaces")?;
        let mut fds = received.fds;
        let Some(made) = fds.pop() else { return Err(SandboxError::Ended) };
        // Entered by a process that trusts it: of the right kind, and its own tree's.
        let owner = net::owner(made.as_fd()).during("a network namespace")?;
        let owner = fstat(&owner).about("the owner of a network namespace")?;
        if !fds.is_empty() || (owner.st_dev, owner.st_ino) != self.owner {
            return Err(SandboxError::Protocol("a network namespace of another tree"));
        }
        Ok(made)
    }

    fn ready(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_before(&self) -> MutexGuard<'_, Option<Instant>> {
        self.not_before.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many the next batch makes: nothing while more than half are there, as a batch
/// has a price of its own.
fn lacking(ready: usize, size: usize) -> usize {
    if ready > size / 2 { 0 } else { (size - ready).min(MAX_BATCH as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_filled_in_batches_and_a_batch_is_bounded() {
        assert_eq!(lacking(0, 16), 16);
        assert_eq!(lacking(9, 16), 0);
        assert_eq!(lacking(8, 16), 8);
        assert_eq!(lacking(0, 1000), MAX_BATCH as usize);
    }

    #[test]
    fn the_smallest_pool_is_filled_too_and_none_lacks_nothing() {
        assert_eq!(lacking(0, 1), 1);
        assert_eq!(lacking(1, 1), 0);
        assert_eq!(lacking(0, 0), 0);
    }
}
