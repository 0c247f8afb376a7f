//! The memory that the bodies of all requests share. Runs in the worker.
//!
//! ```text
//! body grows ──> beyond its free part: a granule each ──> none left: waits, some longer than others, then 503
//! answer is made, or the client is gone ──> all of them go back
//! ```
//!
//! A body pays for what has come, never for what its head says will come: a client that
//! announces 6 MiB and sends a byte has taken a byte. A small body pays nothing, so that
//! small calls go on when large bodies have taken all. Where bodies wait for each other,
//! each with a part of what it needs, those of one turn are refused first, and the rest go on
//! with what these gave back. When no large body is left, the allocator gives back to the
//! kernel what their pieces were in: it would keep that for good.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use hosier_zygote::sys::memory;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Bytes that are taken and given back together.
const GRANULE_BYTES: usize = 64 * 1024;
/// Bytes of each body that are not counted.
const FREE_BYTES: usize = 64 * 1024;
/// Shortest wait of a body for others to go, and how much longer those of the next turn wait.
const WAIT: Duration = Duration::from_millis(250);
/// Turns: the longest wait is that of the last.
const TURNS: u32 = 8;
/// Time from the end of the last large body to giving memory back: more may come, and
/// connections still end.
const GIVE_BACK_AFTER: Duration = Duration::from_secs(1);

/// The budget.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    granules: Arc<Semaphore>,
    all: usize,
    told: Arc<Told>,
}

#[derive(Debug, Default)]
struct Told {
    shares: AtomicU32,
    /// Whether memory is about to be given back.
    gives_back: AtomicBool,
}

/// The part of the budget that one body has, given back when dropped.
#[derive(Debug, Default)]
pub(super) struct Share {
    granules: Option<OwnedSemaphorePermit>,
    /// Once it took one: its budget, and its longest wait for the next granule.
    of: Option<(Budget, Duration)>,
}

impl Budget {
    /// As many bytes, and at least one body of `largest_body` bytes.
    pub(super) fn new(bytes: usize, largest_body: usize) -> Self {
        let granules = bytes.max(largest_body).div_ceil(GRANULE_BYTES);
        let all = granules.clamp(1, Semaphore::MAX_PERMITS);
        Self { granules: Arc::new(Semaphore::new(all)), all, told: Arc::default() }
    }

    /// The wait of the next share.
    fn wait(&self) -> Duration {
        WAIT * (1 + self.told.shares.fetch_add(1, Ordering::Relaxed) % TURNS)
    }

    /// Has free memory given back soon, if no body has a part of the budget then.
    fn give_back(self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.granules.available_permits() < self.all || self.told.gives_back.swap(true, Ordering::Relaxed)
        {
            return;
        }
        runtime.spawn(async move {
            tokio::time::sleep(GIVE_BACK_AFTER).await;
            self.told.gives_back.store(false, Ordering::Relaxed);
            // Otherwise the last of those that came since sees to it.
            if self.granules.available_permits() == self.all {
                let _ = tokio::task::spawn_blocking(memory::give_back_free).await;
            }
        });
    }
}

impl Share {
    /// Makes the share that of a body of so many bytes. False if that could not be had in time.
    pub(super) async fn grow(&mut self, budget: &Budget, body_bytes: usize) -> bool {
        let wanted = body_bytes.saturating_sub(FREE_BYTES).div_ceil(GRANULE_BYTES);
        let has = self.granules.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let Ok(more) = u32::try_from(wanted.saturating_sub(has)) else { return false };
        if more == 0 {
            return true;
        }
        let wait = self.of.get_or_insert_with(|| (budget.clone(), budget.wait())).1;
        let granules = Arc::clone(&budget.granules).acquire_many_owned(more);
        let Ok(Ok(granules)) = timeout(wait, granules).await else {
            return false;
        };
        match &mut self.granules {
            Some(share) => share.merge(granules),
            none => *none = Some(granules),
        }
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        drop(self.granules.take());
        if let Some((budget, _)) = self.of.take() {
            budget.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_takes_as_it_grows_and_gives_all_back() {
        let budget = Budget::new(4 * GRANULE_BYTES, 0);
        let (mut one, mut other) = (Share::default(), Share::default());
        assert!(one.grow(&budget, FREE_BYTES).await && budget.granules.available_permits() == 4);
        assert!(one.grow(&budget, FREE_BYTES + 1).await && budget.granules.available_permits() == 3);
        assert!(one.grow(&budget, FREE_BYTES + 3 * GRANULE_BYTES).await);
        assert!(other.grow(&budget, FREE_BYTES + GRANULE_BYTES).await);
        assert!(!other.grow(&budget, FREE_BYTES + GRANULE_BYTES + 1).await, "nothing is left");
        assert!(Share::default().grow(&budget, FREE_BYTES).await, "a small one needs none");
        drop(one);
        assert!(other.grow(&budget, FREE_BYTES + 4 * GRANULE_BYTES).await);
        drop(other);
        assert_eq!(budget.granules.available_permits(), 4);
    }

    #[tokio::test]
    async fn the_largest_body_always_fits_alone() {
        let budget = Budget::new(1, 10 * GRANULE_BYTES);
        assert!(Share::default().grow(&budget, 10 * GRANULE_BYTES).await);
    }
}
