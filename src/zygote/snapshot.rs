//! A snapshot: what a node needs to become one function's own, its handler
//! imported. Runs in the worker; whose it is and what it may use are plain data.
//!
//! ```text
//! package node ──▶ snapshot node: /handler, environment, import, warm-up, hooks ──▶ leaves of this function
//! ```
//!
//! It is private to one version of one function: [`super::select`] never
//! offers it to another.

use std::fmt;
use std::path::PathBuf;

use hosier_zygote::wire;

use super::ZygoteError;
use crate::sandbox::{Channel, Limits, Output};

/// A zygote and its stub, beside what the function itself may have running.
const OWN_PROCS: u32 = 2;
/// A zygote forks on its own account, whatever share its function has, in percent.
const FORKING_PERCENT: u32 = 100;

/// Whose node it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub function: String,
    /// The digest of its code.
    pub version: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:.8})", self.function, self.version)
    }
}

/// What a function's snapshot node is made of.
pub struct Snapshot {
    pub owner: Owner,
    /// The directory of its code.
    pub code: PathBuf,
    /// Entry file below it.
    pub file: String,
    /// The whole environment of its leaves.
    pub env: Vec<(String, String)>,
    /// Limits of its leaves.
    pub limits: Limits,
    /// An event as JSON text: its handler is called with it once.
    pub warmup: Option<String>,
    /// Takes what its import prints.
    pub follow: Box<dyn Fn(Output) + Send + Sync>,
}

impl Snapshot {
    /// Tells a new node, which waits for it, what function it is to be.
    ///
    /// # Errors
    /// It is gone, or the function says more than a message holds.
    pub(super) async fn tell(&self, node: u64, channel: &Channel) -> Result<(), ZygoteError> {
        let (file, env, warmup) = (self.file.clone(), self.env.clone(), self.warmup.clone());
        let message = wire::encode(&wire::Snapshot { file, env, warmup });
        if message.len() > wire::MAX_MESSAGE {
            let reason = "its environment and warm-up event are too long for one message".to_owned();
            return Err(ZygoteError::Unfit { node, reason });
        }
        channel.send(&message, &[]).await.map_err(|_| ZygoteError::Died { node })
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("owner", &self.owner).finish_non_exhaustive()
    }
}

/// What a snapshot node may use: its function's memory twice, for a solid node is copied
/// once, and what it may come to copy of its parent's, but no more than any zygote;
/// never less than its function. It runs the function's code, so its processes and its
/// share of the processor are the function's.
pub fn node_limits(function: &Limits, zygote: &Limits, parent_bytes: u64) -> Limits {
    let parent_mib = u32::try_from(parent_bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX);
    let needed = function.mem_mb.saturating_mul(2).saturating_add(parent_mib);
    Limits {
        procs: function.procs.saturating_add(OWN_PROCS),
        mem_mb: needed.min(zygote.mem_mb).max(function.mem_mb),
        cpu_percent: function.cpu_percent.max(FORKING_PERCENT),
        ..*zygote
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mem(function_mb: u32, zygote_mb: u32, parent_bytes: u64) -> u32 {
        let limits = |mem_mb| Limits { mem_mb, ..Limits::default() };
        node_limits(&limits(function_mb), &limits(zygote_mb), parent_bytes).mem_mb
    }

    #[test]
    fn a_snapshot_node_has_room_for_what_a_leaf_may_use_and_no_more_than_a_zygote() {
        assert_eq!(mem(50, 2048, 45 << 20), 145);
        assert_eq!(mem(50, 2048, (45 << 20) + 1), 146);
        assert_eq!(mem(50, 128, 45 << 20), 128);
        assert_eq!(mem(4096, 2048, 45 << 20), 4096, "never less than its function");
        assert_eq!(mem(u32::MAX, 2048, u64::MAX), u32::MAX);
    }

    #[test]
    fn a_function_gains_no_process_and_no_core_by_its_node() {
        let zygote = Limits { procs: 64, cpu_percent: 400, ..Limits::default() };
        let function = Limits { procs: 5, cpu_percent: 20, ..Limits::default() };
        let limits = node_limits(&function, &zygote, 0);
        assert_eq!((limits.procs, limits.cpu_percent), (7, 100));
    }
}
