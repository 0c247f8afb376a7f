//! Nodes of modules: grown below a package node, away from the path of starts, with what a function was seen
//! to import below its packages' top level. Runs in the worker.
//!
//! ```text
//! root ── numpy ─┬─ + numpy.random          serves who imports numpy.random
//!                └─ + numpy.fft, .random    serves who imports both
//! ```
//!
//! A node of modules has its parent's packages and no others. It is known by its modules: no matter for
//! which function it was grown, it imports them in the order of their names. It never takes its parent's place, and gives
//! its own up first.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Forest;
use super::entry::{Entry, Grown, Tree, choose};
use super::replicate::count;
use super::snapshot::QUIET_BOUND;
use crate::sandbox::{Limits, Network};
use crate::zygote::blanks::COLD_AFTER;
use crate::zygote::evict::{Kept, victim};
use crate::zygote::select::Asking;
use crate::zygote::{Modules, OwnModules, Packages, Pins, Snapshot, ZygoteError};

/// Nodes of modules below one package node, at most.
const BELOW_ONE: usize = 8;
/// Places that must be free for leaves before a node of modules takes one.
const PLACES: usize = 4;

/// What a leaf of a function had to import before its handler's first call.
pub struct Observed {
    pub network: Network,
    /// Number of the node that the leaf was forked from.
    pub node: u64,
    pub own: Arc<OwnModules>,
    /// Snapshot node that the function asks for.
    pub snapshot: Option<Arc<Snapshot>>,
    /// Limits of the function's leaves.
    pub limits: Limits,
    /// Names that the leaf gave: a stranger's word.
    pub imported: Vec<String>,
}

impl Entry {
    /// Whether it is a node of modules.
    pub(super) fn has_modules(&self) -> bool {
        !self.modules.is_empty()
    }

    /// Whether it may serve every function that pins its packages.
    pub(super) fn is_of_packages(&self) -> bool {
        self.modules.is_empty() && self.private.is_none()
    }

    /// The node of its packages alone: itself, or its parent.
    pub(super) fn of_packages(self: &Arc<Self>) -> Arc<Entry> {
        let parent = self.parent.as_ref().filter(|_| self.has_modules());
        Arc::clone(parent.unwrap_or(self))
    }

    /// Names that its packages are imported by.
    fn tops(&self, packages: &dyn Packages) -> &Modules {
        let read = |closure: &Pins| closure.iter().flat_map(|pin| packages.modules(pin)).collect();
        self.tops.get_or_init(|| read(&self.closure))
    }
}

impl Forest {
    /// Takes in what a leaf had to import, and grows a node that spares the next one that, away from the path.
    pub fn observe_modules(self: &Arc<Self>, observed: Observed) {
        if self.parts.learn && !observed.imported.is_empty() {
            let forest = Arc::clone(self);
            tokio::spawn(async move { forest.grow_modules(observed).await });
        }
    }

    async fn grow_modules(self: &Arc<Self>, observed: Observed) {
        let tree = self.trees.lock().await.get(&observed.network).map(Arc::clone);
        let Some(tree) = tree else { return };
        let served = tree.entries().iter().find(|entry| entry.id == observed.node).map(Arc::clone);
        let Some(served) = served.filter(|served| served.private.is_none()) else { return };
        let tops = served.tops(&*self.parts.packages);
        let seen = observed.own.see(&observed.imported, tops);
        let asking = Asking { pins: &served.closure, modules: &observed.own.all(), owner: None };
        let better = choose(&tree.entries(), &asking, Grown::Only).id != served.id;
        if better || self.has_snapshot(&tree, observed.snapshot.as_deref()) {
            // The next leaf is another node's, and tells what that one lacks.
            return;
        }
        let Some(wanted) = observed.own.ask(&served.modules, seen) else { return };
        // Over or not: it must come some time.
        let _ = tokio::time::timeout(QUIET_BOUND, self.quiet_or(|| false)).await;
        if !self.has_room().await {
            return;
        }
        let Some(entry) = self.claim_modules(&tree, &served.of_packages(), wanted) else { return };
        match self.standing(&tree, &entry).await {
            Ok(_) => {
                // What it was grown for counts as its first start: another may follow.
                entry.blanks().started(Instant::now(), &observed.limits);
                self.replenish(&tree, &entry);
            }
            // Said already, by the node's verdict.
            Err(ZygoteError::Unfit { .. }) => {}
            Err(error) => tracing::info!(node = entry.id, %error, "no node of modules was grown"),
        }
    }

    /// Whether the function has, or is to have, a node of its own that imports its modules.
    fn has_snapshot(&self, tree: &Tree, snapshot: Option<&Snapshot>) -> bool {
        let Some(snapshot) = snapshot.filter(|_| self.parts.snapshot) else { return false };
        let entries = tree.entries();
        let own = entries.iter().find(|entry| entry.owner() == Some(&snapshot.owner));
        own.is_none_or(|own| own.state().unfit.is_none())
    }

    /// The entry of a node with these modules, to be grown by the caller; `None` if it stands, is unfit or has no
    /// room.
    fn claim_modules(&self, tree: &Tree, parent: &Arc<Entry>, wanted: Modules) -> Option<Arc<Entry>> {
        let sandboxes = &self.parts.sandboxes;
        if sandboxes.tuning.max_sandboxes.saturating_sub(sandboxes.taken()) <= PLACES {
            return None;
        }
        let mut entries = tree.entries();
        let is_below = |entry: &Entry| {
            entry.has_modules() && entry.parent.as_ref().is_some_and(|above| Arc::ptr_eq(above, parent))
        };
        if let Some(known) = entries.iter().find(|entry| is_below(entry) && entry.modules == wanted) {
            let known = Arc::clone(known);
            let dormant = {
                let state = known.state();
                state.zygote.is_none() && state.unfit.is_none()
            };
            return dormant.then_some(known);
        }
        let full = entries.iter().filter(|entry| is_below(entry)).count() >= BELOW_ONE;
        if full && !yield_modules(&mut entries, is_below, COLD_AFTER) {
            return None;
        }
        // It takes no package node's room.
        if count(&entries) >= self.parts.max_nodes && !yield_modules(&mut entries, |_| true, COLD_AFTER) {
            return None;
        }
        let entry =
            self.entry_of(Some(Arc::clone(parent)), Pins::new(), parent.closure.clone(), wanted, None);
        entries.push(Arc::clone(&entry));
        Some(entry)
    }
}

/// Lets that node of modules go, among those that `may`, which was unused longest, and for at least so long; false
/// if there is none. Its leaves live on.
pub(super) fn yield_modules(
    entries: &mut Vec<Arc<Entry>>,
    may: impl Fn(&Entry) -> bool,
    unused_for: Duration,
) -> bool {
    let kept = entries.iter().filter(|entry| entry.has_modules() && may(entry)).map(|entry| {
        let used = entry.state().used;
        // Others that hold it are starts and growths under way.
        Kept { id: entry.id, used, held: Arc::strong_count(entry) > 1 || used.elapsed() < unused_for }
    });
    let Some(id) = victim(kept) else { return false };
    tracing::info!(node = id, "a node of modules makes room for another node");
    entries.retain(|entry| entry.id != id);
    true
}
