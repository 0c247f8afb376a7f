//! The one clock that all processes of a machine read alike: in leaves, to say when
//! something happened; in the worker, to place it.

use nix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` in ns: the same in all processes of a machine. 0 if it cannot be read.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).ok();
    now.map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}
