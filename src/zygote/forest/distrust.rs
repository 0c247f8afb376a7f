//! Leaves of nodes in which foreign code ran: confined, and the kernel asked, before
//! anything of a function is near them. Runs in the worker.
//!
//! ```text
//! forked ──▶ confine ─┬─ the kernel agrees ──▶ attached by a visit, as a blank is
//!                     ├─ it died             ──▶ its function's request will find that out
//!                     └─ it lied             ──▶ the node is unfit: its parent serves
//! ```
//!
//! A package that was imported may have changed all that its node's leaves run, the code
//! that confines them too. The root has imported nothing foreign: its leaves confine
//! themselves with their first message, which saves a round trip.

use hosier_zygote::wire::{Confinement, Prepare};

use super::Forest;
use super::entry::Entry;
use crate::sandbox::SandboxError;
use crate::zygote::Leaf;

impl Forest {
    /// Confines a leaf that was forked on the path. Returns what it has yet to give up:
    /// nothing, unless its node is to be trusted.
    ///
    /// # Errors
    /// It lied; its node is unfit then.
    pub(super) async fn confine(
        &self,
        entry: &Entry,
        leaf: &mut Leaf,
        confinement: Confinement,
    ) -> Result<Option<Confinement>, SandboxError> {
        if entry.parent.is_none() {
            return Ok(Some(confinement));
        }
        match leaf.confine(Prepare { confinement, prefault: Default::default() }).await {
            // Whoever calls it will know what it died of.
            Ok(()) | Err(SandboxError::Ended) => Ok(None),
            Err(error) => {
                entry.convict(&error);
                Err(error)
            }
        }
    }
}

impl Entry {
    /// Takes the node out of service if a leaf of it was not what it said.
    pub(super) fn convict(&self, error: &SandboxError) {
        let lied =
            matches!(error, SandboxError::Unconfined(_) | SandboxError::Protocol(_) | SandboxError::Frame(_));
        if lied && self.parent.is_some() {
            tracing::warn!(node = self.id, %error, "a leaf of a node is not confined");
            let mut state = self.state();
            state.unfit = Some(format!("a leaf of it: {error}"));
            state.replicas.clear();
            state.zygote = None;
            drop(state);
            self.blanks().clear();
        }
    }
}
