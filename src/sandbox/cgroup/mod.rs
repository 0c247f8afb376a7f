//! Control groups: what a sandbox may use, and how it is stopped. Runs in the
//! worker, and its clearing up also in the spawner.
//!
//! Three layouts of the machine stand behind one face:
//!
//! ```text
//!            V2                     Hybrid                        V1
//!   /sys/fs/cgroup        memory/ cpu/ pids/   unified/   memory/ cpu/ pids/ freezer/ cpuacct/
//!        │                   │     │    │         │          │     │    │      │        │
//!   hosier-1a2b3c4d        one `Group` of the same name in each hierarchy
//!        │                   │     │    │         │          │     │    │      │        │
//!        └ c17             one `Cgroup` a sandbox, the same name in each
//!
//!   limits   v2              v1                              v1
//!   freeze   v2              v2                              v1 freezer
//!   kill     v2              v2                              freeze, signal, thaw
//!   birth    clone3 into     clone3 into, then 0 to tasks    0 to tasks
//! ```
//!
//! Nobody is moved from outside: that waits for a grace period of a global lock
//! of the kernel, 5 to 13 ms on a quiet machine. [`Cgroup::birth`] hands out what
//! a process needs to be born inside, or to move itself.
//!
//! ```text
//!   Unborn ──born()──> Lived ──kill()──> Killed ──remove()──> gone
//!     │  └────────────────────kill()───────┘                   ↑
//!     └──────────────────────remove()──────────────────────────┘
//! ```
//!
//! | file | is |
//! |---|---|
//! | `layout` | what the machine has: [`Hierarchies`] |
//! | `dir` | one open cgroup directory; every system call is here |
//! | `v1`, `v2` | what the files of one kind of hierarchy are called and mean |
//! | `level` | the same directory in every hierarchy of a layout |
//! | `group` | our top directory, and clearing up after a dead worker |
//! | `member` | one sandbox's cgroup |
//! | `pool` | cgroups made ahead of need |
//!
//! Everything here blocks: microseconds mostly, and up to the named bounds where
//! it waits for the kernel. Only [`Pool::take`], [`Cgroup::set_limits`] and the
//! freezing are meant for a request's path.

mod dir;
mod error;
mod group;
mod layout;
mod level;
mod member;
mod pool;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

pub use error::CgroupError;
pub use group::Group;
pub use layout::{Hierarchies, Layout};
pub use member::{Birth, Cgroup, Usage};
pub use pool::Pool;

use std::thread;
use std::time::{Duration, Instant};

/// Who owns `cgroup.procs`: the host ids of a zygote's root.
pub type Owner = (u32, u32);

/// Longest wait for a cgroup to be frozen. A process in an uninterruptible
/// system call cannot be.
const FREEZE_BOUND_MS: u64 = 500;
/// Longest wait for killed processes to leave, and so for one removal.
const EMPTY_BOUND_MS: u64 = 2_000;
/// Longest wait for everything that a dead worker left.
const LEFTOVERS_BOUND_MS: u64 = 10_000;

/// Asks until the answer is yes or the bound is over; answers which. The first
/// questions follow at once, since most states are reached within microseconds;
/// `poll` on `cgroup.events` would take 16 ms.
fn within(
    bound_ms: u64,
    mut reached: impl FnMut() -> Result<bool, CgroupError>,
) -> Result<bool, CgroupError> {
    const EAGER: u32 = 32;
    const LONGEST_PAUSE_US: u64 = 2_000;
    let end = Instant::now() + Duration::from_millis(bound_ms);
    let mut pause_us = 50;
    for asked in 0u32.. {
        if reached()? {
            return Ok(true);
        }
        if Instant::now() >= end {
            break;
        }
        if asked < EAGER {
            thread::yield_now();
        } else {
            thread::sleep(Duration::from_micros(pause_us));
            pause_us = (pause_us * 2).min(LONGEST_PAUSE_US);
        }
    }
    Ok(false)
}
