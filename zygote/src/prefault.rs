//! Prefault: takes the page faults of a first request ahead of it. Runs in a
//! blank, while it waits; what to touch comes from the worker, which saw what
//! earlier leaves of the same zygote touched.

use crate::sys::memory::{Touch, populate};
use crate::wire::Prefault;

const PAGE: u64 = 4096;

/// Populates the ranges. One that is not mapped here is passed over: a leaf
/// may have had mappings that its zygote has not.
pub fn prefault(wanted: &Prefault) {
    for (ranges, touch) in [(&wanted.read, Touch::Read), (&wanted.write, Touch::Write)] {
        for range in ranges {
            let (address, len) = (range.page.wrapping_mul(PAGE), u64::from(range.count) * PAGE);
            let _ = populate(address as usize, len as usize, touch);
        }
    }
}
