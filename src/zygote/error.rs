//! What can go wrong on the zygote floor. Runs in the worker.

use super::Pin;
use crate::sandbox::SandboxError;

/// A node that could not be grown, or a leaf that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ZygoteError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("zygote {node} died")]
    Died { node: u64 },
    #[error("the parent of zygote {node} died")]
    LostParent { node: u64 },
    #[error("zygote {node} refused to fork: {failure}")]
    Refused { node: u64, failure: hosier_zygote::wire::Failure },
    #[error("zygote {node} said what it must not")]
    Protocol { node: u64 },
    #[error("zygote {node} did not answer within {bound_s} s")]
    TimedOut { node: u64, bound_s: u64 },
    #[error("zygote {node} is unfit: {reason}")]
    Unfit { node: u64, reason: String },
    /// Nothing was started; the package is to be installed again.
    #[error("{pin} is damaged in the package store: {damage}")]
    Damaged { pin: Pin, damage: String },
}

impl ZygoteError {
    /// Whether the node is lost and another attempt, on a new one, makes sense.
    pub fn lost_node(&self) -> bool {
        matches!(self, Self::Died { .. } | Self::Protocol { .. } | Self::TimedOut { .. })
    }
}
