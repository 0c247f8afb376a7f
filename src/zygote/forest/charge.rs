//! Charges functions for the nodes that they use, and lets a node go with the last of them.
//! Runs in the worker; who uses a node is plain data, in `users`.
//!
//! ```text
//! a start of f ──▶ its node and all above it have f as a user
//! f is removed, or its new code pins less ──▶ f is discharged ──▶ nodes without a user go
//! ```

use std::sync::Arc;

use super::Forest;
use super::entry::Entry;
use crate::zygote::Pins;

impl Entry {
    /// Notes that a function was started from this node, so that it is charged for it and for
    /// all above it.
    pub(super) fn charge(self: &Arc<Self>, function: &str) {
        if self.state().users.has(function) {
            return;
        }
        let alone = self.snapshot().is_some();
        let nodes = if alone { vec![Arc::clone(self)] } else { self.path() };
        for node in nodes {
            node.state().users.note(function);
        }
    }
}

impl Forest {
    /// Lets the nodes go that a function was the last to use and that none of its pins asks
    /// for any more, children before their parents. Leaves live on.
    pub(super) async fn discharge(&self, function: &str, pins: Option<&Pins>) {
        let used = |entry: &Entry| pins.is_some_and(|pins| entry.closure.is_subset(pins));
        for tree in self.trees.lock().await.values() {
            let mut entries = tree.entries();
            let mut unused: Vec<u64> = entries
                .iter()
                .filter(|entry| {
                    !used(entry) && entry.parent.is_some() && entry.state().users.forget(function)
                })
                .map(|entry| entry.id)
                .collect();
            let is_parent = |entries: &[Arc<Entry>], id: u64| {
                entries.iter().any(|entry| entry.parent.as_ref().is_some_and(|parent| parent.id == id))
            };
            while let Some(at) = unused.iter().position(|id| !is_parent(&entries, *id)) {
                let id = unused.swap_remove(at);
                for entry in entries.extract_if(.., |entry| entry.id == id) {
                    tracing::info!(node = id, function, "a node goes with its last function");
                    entry.let_go();
                }
            }
        }
    }
}
