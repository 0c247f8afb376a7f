//! Grows nodes again that came of age, while the old ones serve. Runs in the worker.
//!
//! ```text
//! a start, or the janitor ──▶ due? ──▶ one path of a tree at a time, root to node:
//!     grow another ──▶ it takes over ──▶ blanks of the old one go, its leaves live on
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Forest;
use super::entry::{Entry, Tree};
use crate::zygote::ZygoteError;
use crate::zygote::age::{Aged, Due};

/// After a node could not be grown again, how long its tree stays as it is.
const PAUSE: Duration = Duration::from_secs(60);

impl Forest {
    /// Replaces a node that came of age, and its root with it, away from the path.
    pub(super) fn renew(self: &Arc<Self>, tree: &Arc<Tree>, entry: &Arc<Entry>) {
        if self.due(tree, entry) == Due::Nothing {
            return;
        }
        let (forest, tree, entry) = (Arc::clone(self), Arc::clone(tree), Arc::clone(entry));
        tokio::spawn(async move {
            // One at a time: it takes a processor and, for a moment, twice the memory.
            let Ok(mut not_before) = tree.renewing.try_lock() else { return };
            if not_before.is_some_and(|then| Instant::now() < then) {
                return;
            }
            if let Err(error) = forest.renew_path(&tree, &entry).await {
                tracing::warn!(node = entry.id, %error, "a node that was to be replaced serves on");
                *not_before = Some(Instant::now() + PAUSE);
            }
        });
    }

    async fn renew_path(self: &Arc<Self>, tree: &Arc<Tree>, entry: &Arc<Entry>) -> Result<(), ZygoteError> {
        // Asked again: whoever held the lock before may have seen to it.
        let due = self.due(tree, entry);
        if due == Due::Nothing {
            return Ok(());
        }
        if entry.snapshot().is_some() {
            return self.renew_one(tree, entry).await;
        }
        for node in entry.path() {
            let wanted = if node.parent.is_none() { Due::Root } else { Due::Node };
            if due == wanted || self.due(tree, &node) == wanted {
                self.renew_one(tree, &node).await?;
            }
        }
        Ok(())
    }

    async fn renew_one(self: &Arc<Self>, tree: &Arc<Tree>, entry: &Arc<Entry>) -> Result<(), ZygoteError> {
        let parent = match &entry.parent {
            Some(parent) => Some(self.standing(tree, parent).await?),
            None => None,
        };
        // Starts do not wait for this: they find the old one.
        let _alone = entry.growing.lock().await;
        if entry.zygote().is_none() {
            return Ok(());
        }
        let zygote = self.grow(tree, entry, parent).await?;
        tracing::info!(node = entry.id, sandbox = zygote.sandbox(), "a node is replaced");
        zygote.refill_nets().await;
        entry.blanks().clear();
        self.replenish(tree, entry);
        Ok(())
    }

    fn due(&self, tree: &Tree, entry: &Entry) -> Due {
        let root = tree.entries()[0].zygote();
        let (Some(zygote), Some(root)) = (entry.zygote(), root) else { return Due::Nothing };
        let aged = Aged { forks: zygote.forked(), age: zygote.since.elapsed(), root: zygote.root };
        // Its root is its own, and as old.
        let root = if entry.snapshot().is_some() { zygote.root } else { root.root };
        self.parts.ageing.due(&aged, root)
    }

    /// Looks at every node that stands, for those that nobody asks for.
    pub(super) async fn renew_old(self: &Arc<Self>) {
        let trees: Vec<_> = self.trees.lock().await.values().map(Arc::clone).collect();
        for tree in trees {
            let entries = tree.entries().clone();
            for entry in &entries {
                self.renew(&tree, entry);
            }
        }
    }
}
