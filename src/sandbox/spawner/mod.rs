//! The spawner: the one process that starts fresh processes, and clears up
//! after a worker that died.
//!
//! ```text
//! worker (threads, never forks)      spawner (one thread, pid 1 of its namespace)
//!   client ───── Start + fds ──────▶ process ── clone3, maps ──▶ root zygotes,
//!          ◀──── Started + pidfd ───         ◀── reaps ───────── installers, fresh leaves
//!          ◀──── Ended ─────────────
//!          ───── Map ──────────────▶          ── clone3, maps ──▶ nobody: the user
//!          ◀──── Mapped + namespace               namespace of an id-mapped mount
//!          ───── Nets + socket ────▶          ── clone3 ──▶ a maker of network namespaces
//!          ◀───────────────────── a namespace a message ────────┘
//!   (dies) ───── end of stream ────▶ kill all, reap, remove cgroups and run dir, exit
//! ```
//!
//! No failed system call ends either side: it fails the one request that it was made for.
//!
//! It is forked before the runtime's threads exist. When the worker dies it sees
//! its socket close; when it dies itself, the kernel kills all of its pid namespace.

mod client;
mod outbox;
mod process;

pub use client::Spawner;
pub use process::{Leftovers, start};

use hosier_zygote::birth::{Birth, Extent};
use hosier_zygote::wire::Failure;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    /// Descriptors: those of [`Birth`].
    Start { id: u64, birth: Birth },
    /// A user namespace with these ids, for an id-mapped mount.
    Map { id: u64, extents: Vec<Extent> },
    /// Network namespaces. Descriptors: the socket where they come out, a pidfd of a
    /// process in the user namespace that they will belong to.
    Nets { id: u64, count: u32 },
    /// The end of a started process whose pidfd did not arrive.
    Kill { id: u64 },
}

#[derive(Debug, Serialize, Deserialize)]
enum Tell {
    /// The pidfd comes along.
    Started {
        id: u64,
    },
    /// The user namespace comes along.
    Mapped {
        id: u64,
    },
    Failed {
        id: u64,
        failure: Failure,
    },
    /// A started process ended, with this `wait` status.
    Ended {
        id: u64,
        status: i32,
    },
}
