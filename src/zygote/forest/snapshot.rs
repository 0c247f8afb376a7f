//! Snapshot nodes: grown after a function's first start, away from its path;
//! let go when nobody can use them. Runs in the worker.
//!
//! ```text
//! start: own node stands? ── yes ──▶ fork from it
//!             │ no                                       code changed, function removed,
//!             ▼                                          cold, or room is needed
//!   package node serves; afterwards, once quiet:                    ▼
//!   claim an entry ──▶ a root of its own ──▶ grow ──▶ stands, blanks ──▶ gone; leaves live on
//! ```
//!
//! In the picture it hangs below the node of its packages, which serves while it does not
//! stand. As a process it descends from a root of its own: the function's code runs as root
//! of that user namespace, so nobody else may be in it.
//!
//! What fails leaves the function where it was: on its package node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hosier_zygote::wire::Imports;

use super::Forest;
use super::entry::{Entry, Grown, Tree, choose};
use crate::sandbox::{Order, Purpose};
use crate::zygote::blanks::COLD_AFTER;
use crate::zygote::evict::{Kept, cold};
use crate::zygote::node::Zygote;
use crate::zygote::select::Asking;
use crate::zygote::snapshot::{Owner, Snapshot};
use crate::zygote::{Modules, Pins, ZygoteError};

/// Longest wait for a moment without a start on the path: a busy worker has none.
pub(super) const QUIET_BOUND: Duration = Duration::from_secs(1);
/// A snapshot node that was not used for so long is let go.
const KEPT_FOR: Duration = Duration::from_secs(600);

/// What makes an entry one function's own.
pub(super) struct Private {
    pub(super) snapshot: Arc<Snapshot>,
    /// Somebody sees to its growth.
    coming: AtomicBool,
}

impl Entry {
    pub(super) fn snapshot(&self) -> Option<&Arc<Snapshot>> {
        self.private.as_ref().map(|private| &private.snapshot)
    }

    pub(super) fn owner(&self) -> Option<&Owner> {
        self.snapshot().map(|snapshot| &snapshot.owner)
    }

    /// Whether nobody saw to its growth yet; the caller then does.
    fn claim(&self) -> bool {
        self.private.as_ref().is_some_and(|private| !private.coming.swap(true, Ordering::SeqCst))
    }

    fn release(&self) {
        if let Some(private) = &self.private {
            private.coming.store(false, Ordering::SeqCst);
        }
    }

    /// Ends its zygote, as soon as the leaves that live under it are gone.
    pub(super) fn let_go(&self) {
        self.blanks().clear();
        let mut state = self.state();
        state.replicas.clear();
        state.zygote = None;
    }
}

impl Forest {
    /// The function's own node, if it stands.
    pub(super) fn own_node(
        &self,
        tree: &Tree,
        pins: &Pins,
        snapshot: Option<&Arc<Snapshot>>,
    ) -> Option<(Arc<Entry>, Arc<Zygote>)> {
        let owner = &snapshot.filter(|_| self.parts.snapshot)?.owner;
        let asking = Asking { pins, modules: &Modules::new(), owner: Some(owner) };
        let entry = choose(&tree.entries(), &asking, Grown::Only);
        entry.owner()?;
        let zygote = entry.freest()?;
        entry.touch();
        Some((entry, zygote))
    }

    /// Sees to it that a function which was served by `parent` has a node of its own
    /// before long, if it asks for one.
    pub(super) fn take_snapshot(
        self: &Arc<Self>,
        tree: &Arc<Tree>,
        parent: &Arc<Entry>,
        pins: &Pins,
        snapshot: Option<&Arc<Snapshot>>,
    ) {
        let Some(snapshot) = snapshot.filter(|_| self.parts.snapshot && parent.private.is_none()) else {
            return;
        };
        // No other function's modules come into it.
        let parent = &parent.of_packages();
        let Some(entry) = self.claim_snapshot(tree, parent, pins, snapshot) else { return };
        let (forest, tree, own) = (Arc::clone(self), Arc::clone(tree), Arc::clone(snapshot));
        let asked = Instant::now();
        tokio::spawn(async move {
            // Over or not: it must come some time.
            let _ = tokio::time::timeout(QUIET_BOUND, forest.quiet_or(|| false)).await;
            let stands = forest.standing(&tree, &entry).await;
            entry.release();
            match stands {
                Ok(_) if tree.entries().iter().any(|known| Arc::ptr_eq(known, &entry)) => {
                    // What it was grown for counts as its first start: another may follow.
                    entry.blanks().started(asked, &own.limits);
                    forest.replenish(&tree, &entry);
                }
                // Nobody's any more: the code changed meanwhile.
                Ok(_) => entry.let_go(),
                // Said already, by the node's verdict.
                Err(ZygoteError::Unfit { .. }) => {}
                Err(error) => tracing::info!(node = entry.id, %error, "no snapshot was taken"),
            }
        });
    }

    /// The entry of a function's own node, to be grown by the caller; `None` if it need
    /// not or cannot be.
    fn claim_snapshot(
        &self,
        tree: &Tree,
        parent: &Arc<Entry>,
        pins: &Pins,
        snapshot: &Arc<Snapshot>,
    ) -> Option<Arc<Entry>> {
        let mut entries = tree.entries();
        if let Some(at) = entries.iter().position(|entry| entry.owner() == Some(&snapshot.owner)) {
            let known = Arc::clone(&entries[at]);
            if known.may_serve() || known.state().unfit.is_some() {
                return (known.may_serve() && known.zygote().is_none() && known.claim()).then_some(known);
            }
            // Its parent is unfit since: the node that served instead takes its place.
            entries.remove(at);
        }
        // For a node that was used lately there is no room: two functions would
        // otherwise take each other's by turns.
        if !self.make_room(&mut entries, COLD_AFTER) {
            return None;
        }
        let private = Private { snapshot: Arc::clone(snapshot), coming: AtomicBool::new(true) };
        let entry =
            self.entry_of(Some(Arc::clone(parent)), Pins::new(), pins.clone(), Modules::new(), Some(private));
        entries.push(Arc::clone(&entry));
        Some(entry)
    }

    /// A root for a function's own node: a user namespace that nobody else is in, since the
    /// function's own code runs as its root.
    pub(super) async fn own_root(&self, tree: &Tree, entry: &Entry) -> Result<Arc<Zygote>, ZygoteError> {
        let parts = &self.parts;
        let namespace = parts.sandboxes.user_namespace(parts.leaf_limits)?;
        // It takes no place, as no root does: its node does.
        let cell = parts.sandboxes.cell(Order {
            purpose: Purpose::Zygote,
            namespace: Some(&namespace),
            network: tree.network,
            limits: &parts.limits,
            permit: None,
            writable: None,
            net: None,
        });
        let imports = Imports {
            immortal: parts.immortal,
            gc_freeze: parts.gc_freeze,
            solidify: parts.solidify,
            ..Imports::default()
        };
        let (cell, python, bound) = (cell.await?, &parts.python, parts.grow_bound);
        let root = Zygote::root(entry.id, &parts.sandboxes, &namespace, cell, python, &imports, bound);
        Ok(Arc::new(root.await?))
    }

    /// Lets a function's snapshot nodes and code go, but for the version that is still served.
    pub async fn forget(&self, function: &str, kept: Option<(&str, &Pins)>) {
        let (kept, pins) = kept.unzip();
        self.code.forget(function, kept);
        let goes = |entry: &Entry| {
            entry.owner().is_some_and(|owner| owner.function == function && Some(&*owner.version) != kept)
        };
        self.remove_nodes(goes).await;
        self.discharge(function, pins).await;
    }

    /// Lets the nodes of one function, and those of modules, go that were not used for long.
    pub(super) async fn drop_cold_nodes(&self) {
        let goes = |entry: &Entry| {
            let kept = Kept { id: entry.id, used: entry.state().used, held: entry.is_of_packages() };
            cold(&kept, Instant::now(), KEPT_FOR)
        };
        self.remove_nodes(goes).await;
    }

    pub(super) async fn remove_nodes(&self, goes: impl Fn(&Entry) -> bool) {
        for tree in self.trees.lock().await.values() {
            let gone: Vec<_> = tree.entries().extract_if(.., |entry| goes(entry)).collect();
            for entry in gone {
                tracing::info!(node = entry.id, "a node is let go");
                entry.let_go();
            }
        }
    }
}
