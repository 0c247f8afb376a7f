//! The memory that the bodies of all requests share. Runs in the worker.
//!
//! ```text
//! body grows ──> beyond its free part: a granule each ──> none left: waits, then 503
//! answer is made, or the client is gone ──> all of them go back
//! ```
//!
//! A body pays for what has come, never for what its head says will come: a client that
//! announces 6 MiB and sends a byte has taken a byte. A small body pays nothing, so that
//! small calls go on when large bodies have taken all.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Bytes that are taken and given back together.
const GRANULE_BYTES: usize = 64 * 1024;
/// Bytes of each body that are not counted.
const FREE_BYTES: usize = 64 * 1024;
/// Longest wait of a body for others to go.
const WAIT: Duration = Duration::from_secs(1);

/// The budget.
#[derive(Debug)]
pub(super) struct Budget(Arc<Semaphore>);

/// The part of the budget that one body has, given back when dropped.
#[derive(Debug, Default)]
pub(super) struct Share(Option<OwnedSemaphorePermit>);

impl Budget {
    /// As many bytes, and at least one body of `largest_body` bytes.
    pub(super) fn new(bytes: usize, largest_body: usize) -> Self {
        let granules = bytes.max(largest_body).div_ceil(GRANULE_BYTES);
        Self(Arc::new(Semaphore::new(granules.clamp(1, Semaphore::MAX_PERMITS))))
    }
}

impl Share {
    /// Makes the share that of a body of so many bytes. False if that could not be had in time.
    pub(super) async fn grow(&mut self, budget: &Budget, body_bytes: usize) -> bool {
        let wanted = body_bytes.saturating_sub(FREE_BYTES).div_ceil(GRANULE_BYTES);
        let has = self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let Ok(more) = u32::try_from(wanted.saturating_sub(has)) else { return false };
        if more == 0 {
            return true;
        }
        let Ok(Ok(granules)) = timeout(WAIT, Arc::clone(&budget.0).acquire_many_owned(more)).await else {
            return false;
        };
        match &mut self.0 {
            Some(share) => share.merge(granules),
            none => *none = Some(granules),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_takes_as_it_grows_and_gives_all_back() {
        let budget = Budget::new(4 * GRANULE_BYTES, 0);
        let (mut one, mut other) = (Share::default(), Share::default());
        assert!(one.grow(&budget, FREE_BYTES).await && budget.0.available_permits() == 4);
        assert!(one.grow(&budget, FREE_BYTES + 1).await && budget.0.available_permits() == 3);
        assert!(one.grow(&budget, FREE_BYTES + 3 * GRANULE_BYTES).await);
        assert!(other.grow(&budget, FREE_BYTES + GRANULE_BYTES).await);
        assert!(!other.grow(&budget, FREE_BYTES + GRANULE_BYTES + 1).await, "nothing is left");
        assert!(Share::default().grow(&budget, FREE_BYTES).await, "a small one needs none");
        drop(one);
        assert!(other.grow(&budget, FREE_BYTES + 4 * GRANULE_BYTES).await);
        drop(other);
        assert_eq!(budget.0.available_permits(), 4);
    }

    #[tokio::test]
    async fn the_largest_body_always_fits_alone() {
        let budget = Budget::new(1, 10 * GRANULE_BYTES);
        assert!(Share::default().grow(&budget, 10 * GRANULE_BYTES).await);
    }
}
