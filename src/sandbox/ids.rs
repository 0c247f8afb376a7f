//! Private ranges of host ids, one a user namespace. Runs in the worker.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::SandboxError;

/// Ids in one range.
pub const RANGE: u32 = 65_536;
/// Above the ranges that distributions and systemd hand out, below 2^31, from
/// where on some programs take an id for a negative number.
const FIRST: u32 = 0x7000_0000;
const RANGES: u32 = 4_096;

/// Hands out ranges, each to one user namespace at a time.
#[derive(Debug, Clone)]
pub struct Ids(Arc<Mutex<Taken>>);

#[derive(Debug)]
struct Taken {
    next: u32,
    ranges: BTreeSet<u32>,
}

/// A range, given back when dropped.
#[derive(Debug)]
pub struct IdRange {
    number: u32,
    ids: Ids,
}

impl Ids {
    /// `seed` spreads the workers of one machine.
    pub fn new(seed: u32) -> Self {
        Self(Arc::new(Mutex::new(Taken { next: seed % RANGES, ranges: BTreeSet::new() })))
    }

    /// # Errors
    /// All ranges are taken.
    pub fn take(&self) -> Result<IdRange, SandboxError> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..RANGES {
            let number = taken.next;
            taken.next = (number + 1) % RANGES;
            if taken.ranges.insert(number) {
                return Ok(IdRange { number, ids: self.clone() });
            }
        }
        Err(SandboxError::NoIds)
    }
}

impl IdRange {
    /// The host id of the range's root.
    pub fn first(&self) -> u32 {
        FIRST + self.number * RANGE
    }
}

impl Drop for IdRange {
    fn drop(&mut self) {
        let mut taken = self.ids.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.ranges.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_living_namespaces_never_share_an_id() {
        let ids = Ids::new(RANGES - 1);
        let (a, b) = (ids.take().unwrap(), ids.take().unwrap());
        assert!(a.first().abs_diff(b.first()) >= RANGE);
        assert!(a.first().checked_add(RANGE).is_some_and(|end| end <= 1 << 31));
    }

    #[test]
    fn a_dropped_range_is_handed_out_again() {
        let ids = Ids::new(0);
        let all: Vec<_> = (0..RANGES).map(|_| ids.take().unwrap()).collect();
        assert!(matches!(ids.take(), Err(SandboxError::NoIds)));
        drop(all);
        assert!(ids.take().is_ok());
    }
}
