//! The living sandboxes of a worker, for whoever looks. Runs in the worker.
//!
//! ```text
//!   sandbox 7 Leaf running for 3 s, cgroup /sys/fs/cgroup/hosier-1a2b3c4d-0/c9
//!     function resize of zygote 2: 398 minor and 0 major faults; 2100 KiB private, ...
//! ```

use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Purpose;
use super::memory::ProcessMemory;

/// Leaves whose memory one picture shows, the oldest first: one costs up to a millisecond.
const LOOKED_AT: usize = 100;

#[derive(Debug, Clone, Default)]
pub(super) struct Roster(Arc<Mutex<BTreeMap<u64, Line>>>);

/// What the roster says of one.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub purpose: Purpose,
    pub since: Instant,
    pub paused: bool,
    pub cgroup: PathBuf,
    pub pidfd: Arc<OwnedFd>,
    /// What the floors above say that it does.
    pub role: String,
}

impl Roster {
    pub fn lines(&self) -> MutexGuard<'_, BTreeMap<u64, Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them as text. Blocks for as long as [`LOOKED_AT`] looks take.
    pub fn picture(&self) -> String {
        // Not under the lock: each birth and end of a sandbox takes it.
        let lines = self.lines().clone();
        let (mut text, mut looked) = (String::new(), 0);
        for (id, line) in lines {
            let Line { purpose, since, paused, cgroup, pidfd, role } = line;
            let (state, age) = (if paused { "paused" } else { "running" }, since.elapsed().as_secs());
            let cgroup = cgroup.display();
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  sandbox {id} {purpose:?} {state} for {age} s, cgroup {cgroup}");
            if purpose != Purpose::Leaf {
                continue;
            }
            let role = if role.is_empty() { "being made" } else { &role };
            looked += 1;
            let memory = if looked > LOOKED_AT {
                format!("not looked at, as more than {LOOKED_AT} leaves live")
            } else {
                ProcessMemory::of(&pidfd).map_or_else(|_| "gone".to_owned(), |memory| memory.to_string())
            };
            let _ = writeln!(text, "    {role}: {memory}");
        }
        text
    }
}

impl std::fmt::Display for ProcessMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { minor_faults, major_faults, private_kib, shared_kib, pss_kib } = self;
        write!(f, "{minor_faults} minor and {major_faults} major faults; ")?;
        write!(f, "{private_kib} KiB private, {shared_kib} KiB shared, {pss_kib} KiB pss")
    }
}
