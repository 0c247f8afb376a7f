//! Prefault: takes the page faults of a first request ahead of it. Runs in a
//! blank, while it waits; what to touch comes from the worker, which saw what
//! earlier leaves of the same zygote touched.

#![allow(unsafe_code)]

use crate::wire::{PageRange, Prefault};

const PAGE: u64 = 4096;

/// Populates the ranges. One that is not mapped here is passed over: a leaf
/// may have had mappings that its zygote has not.
pub fn prefault(wanted: &Prefault) {
    for range in &wanted.read {
        populate(*range, libc::MADV_POPULATE_READ);
    }
    for range in &wanted.write {
        populate(*range, libc::MADV_POPULATE_WRITE);
    }
}

fn populate(range: PageRange, advice: libc::c_int) {
    let PageRange { page, count } = range;
    // SAFETY: populating changes no content: it takes the faults that a read, or a
    // write of the same value, would take. Where nothing is mapped it fails.
    unsafe { libc::madvise((page * PAGE) as *mut libc::c_void, (u64::from(count) * PAGE) as usize, advice) };
}
