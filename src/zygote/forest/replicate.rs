//! Gives a busy node another zygote, and takes it away again. Runs in the worker.

use std::sync::Arc;
use std::time::Instant;

use super::Forest;
use super::entry::{Entry, Tree};
use crate::zygote::ZygoteError;
use crate::zygote::node::Zygote;
use crate::zygote::replicas::{UNUSED_AFTER, wants_another};

/// Zygotes that stand or may come to stand.
pub(super) fn count(entries: &[Arc<Entry>]) -> usize {
    entries.iter().map(|entry| 1 + entry.state().replicas.len()).sum()
}

impl Forest {
    /// Grows another zygote of a node that is the bottleneck, away from the path.
    pub(super) fn replicate(self: &Arc<Self>, tree: &Arc<Tree>, entry: &Arc<Entry>) {
        if !self.wants_replica(tree, entry) {
            return;
        }
        let (forest, tree, entry) = (Arc::clone(self), Arc::clone(tree), Arc::clone(entry));
        tokio::spawn(async move {
            if let Err(error) = forest.grow_replica(&tree, &entry).await {
                tracing::warn!(node = entry.id, %error, "a busy node has no replica");
            }
        });
    }

    fn wants_replica(&self, tree: &Tree, entry: &Entry) -> bool {
        let now = Instant::now();
        let loads: Vec<f64> = entry.zygotes().iter().map(|zygote| zygote.load().utilisation(now)).collect();
        let sandboxes = &self.parts.sandboxes;
        let free = sandboxes.tuning.max_sandboxes - sandboxes.taken();
        wants_another(&loads, self.parts.replicas, free) && count(&tree.entries()) < self.parts.max_nodes
    }

    async fn grow_replica(self: &Arc<Self>, tree: &Arc<Tree>, entry: &Arc<Entry>) -> Result<(), ZygoteError> {
        // Perhaps it is grown already, or replaced.
        let Ok(_alone) = entry.growing.try_lock() else { return Ok(()) };
        if !self.wants_replica(tree, entry) {
            return Ok(());
        }
        let parent = match &entry.parent {
            Some(parent) => Some(self.standing(tree, parent).await?),
            None => None,
        };
        let replica = Arc::new(self.grown(tree, entry, parent).await?);
        tracing::info!(node = entry.id, sandbox = replica.sandbox(), "a busy node has another zygote");
        entry.state().replicas.push(Arc::clone(&replica));
        replica.refill_nets().await;
        Ok(())
    }

    /// Lets replicas go that were not used lately.
    pub(super) async fn drop_unused_replicas(&self) {
        let now = Instant::now();
        // A young one was not needed yet.
        let young = |zygote: &Zygote| now.duration_since(zygote.since) < UNUSED_AFTER;
        for tree in self.trees.lock().await.values() {
            for entry in tree.entries().iter() {
                entry.state().replicas.retain(|zygote| young(zygote) || zygote.load().is_used(now));
            }
        }
    }
}
