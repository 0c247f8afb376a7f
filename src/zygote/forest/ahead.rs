//! What is made ahead of need, away from the path of starts: blanks, control
//! groups. Runs in the worker.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use hosier_zygote::wire::{Prefault, Prepare};
use tokio::sync::Notify;

use super::Forest;
use super::entry::{Entry, Tree};
use crate::sandbox::{HANDLER, Limits, PACKAGES, Placed, open_sealed};
use crate::zygote::blanks::{COLD_AFTER, Demand, Marks, marks};
use crate::zygote::prefault::{Circumstances, worthwhile};
use crate::zygote::{Leaf, ZygoteError};

/// A start that somebody waits for.
#[derive(Debug)]
pub struct OnPath(Arc<Busy>);

#[derive(Debug, Default)]
pub(super) struct Busy {
    pub(super) starts: AtomicUsize,
    pub(super) clear: Notify,
}

impl Drop for OnPath {
    fn drop(&mut self) {
        if self.0.starts.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.clear.notify_waiters();
        }
    }
}

impl Forest {
    pub(super) fn on_path(&self) -> OnPath {
        self.busy.starts.fetch_add(1, Ordering::SeqCst);
        OnPath(Arc::clone(&self.busy))
    }

    /// Makes the blanks that a node lacks, one after the other, away from the path.
    pub(super) fn replenish(self: &Arc<Self>, tree: &Arc<Tree>, entry: &Arc<Entry>) {
        if self.parts.blanks > 0 {
            self.watch.wake();
        }
        let wanted = self.claim_refill(entry, false);
        let lacks = || entry.zygote().is_some_and(|zygote| zygote.namespace.lacks() || zygote.lacks_nets());
        if !wanted && !lacks() {
            return;
        }
        let (forest, tree, entry) = (Arc::clone(self), Arc::clone(tree), Arc::clone(entry));
        tokio::spawn(async move {
            if !wanted {
                forest.until_quiet(&entry).await;
                forest.refill(&entry);
                return;
            }
            loop {
                forest.until_quiet(&entry).await;
                if !forest.has_room().await {
                    // Whoever sees that there is room again asks again.
                    entry.blanks().coming -= 1;
                    return;
                }
                let made = forest.make_blank(&tree, &entry).await;
                // A node that was replaced meanwhile has no use for one of the old.
                let current =
                    made.as_ref().is_ok_and(|made| made.as_ref().is_some_and(|(leaf, _)| entry.is_of(leaf)));
                let mut blanks = entry.blanks();
                blanks.coming -= 1;
                match made {
                    Ok(Some((leaf, took))) => {
                        blanks.demand.refilled(took);
                        if current {
                            blanks.add(leaf);
                        }
                    }
                    Ok(None) => return,
                    Err(error) => {
                        drop(blanks);
                        if let ZygoteError::Sandbox(error) = &error {
                            entry.convict(error);
                        }
                        tracing::warn!(node = entry.id, %error, "a blank could not be made");
                        return;
                    }
                }
                drop(blanks);
                if !forest.claim_refill(&entry, true) {
                    return;
                }
            }
        });
    }

    /// Whether a blank is lacking and a zygote has time for one; the caller then does.
    pub(super) fn claim_refill(&self, entry: &Entry, refilling: bool) -> bool {
        if self.parts.blanks == 0 {
            return false;
        }
        let zygotes = entry.zygotes().len().max(1);
        let mut blanks = entry.blanks();
        // Each zygote makes one at a time.
        let lacks = blanks.coming < zygotes && blanks.lacks(self.marks(&blanks.demand), refilling);
        if lacks {
            blanks.coming += 1;
        }
        lacks
    }

    /// Between which numbers the blanks of a node with this demand are kept now.
    pub(super) fn marks(&self, demand: &Demand) -> Marks {
        let sandboxes = &self.parts.sandboxes;
        let free = sandboxes.tuning.max_sandboxes - sandboxes.taken();
        marks(demand, Instant::now(), self.parts.blanks, free)
    }

    /// A node's blanks as text.
    pub(super) fn ahead(&self, entry: &Entry) -> String {
        let blanks = entry.blanks();
        let Marks { low, high } =
            if self.parts.blanks > 0 { self.marks(&blanks.demand) } else { Marks::default() };
        let mut text = format!("blanks={} of {low} to {high}", blanks.len());
        if let Some((times, reason)) = &blanks.skipped {
            text.push_str(&format!(" ({times} not prefaulted: {reason})"));
        }
        text
    }

    /// Waits for the starts on the path, unless none is ready.
    pub(super) async fn until_quiet(&self, entry: &Entry) {
        self.quiet_or(|| entry.blanks().len() == 0).await;
    }

    /// Waits until no start is on the path, or for no longer than until `enough`, which
    /// is asked whenever the path may have cleared.
    pub(super) async fn quiet_or(&self, enough: impl Fn() -> bool) {
        loop {
            // Listens before it looks, so that no end is missed in between.
            let mut cleared = std::pin::pin!(self.busy.clear.notified());
            cleared.as_mut().enable();
            if self.busy.starts.load(Ordering::SeqCst) == 0 || enough() {
                return;
            }
            cleared.await;
        }
    }

    pub(super) async fn make_blank(
        self: &Arc<Self>,
        tree: &Arc<Tree>,
        entry: &Entry,
    ) -> Result<Option<(Leaf, Duration)>, ZygoteError> {
        let (Some(permit), Some(zygote)) = (self.parts.sandboxes.place(), entry.freest()) else {
            return Ok(None);
        };
        let (begun, missed) = (Instant::now(), entry.blanks().missed);
        let view = self.view(&entry.closure)?;
        // Those of the last start: the next one's are likely the same.
        let limits = entry.blanks().limits.unwrap_or(self.parts.leaf_limits);
        let (mut leaf, confinement, _) = self.fork_leaf(tree, &zygote, &limits, Some(permit)).await?;
        leaf.wait_as_blank().await?;
        let forked = begun.elapsed();
        let known = if self.parts.prefault { zygote.working_set().prefault() } else { None };
        let known = self.worth_populating(entry, known, missed, &limits).await;
        let mut mounts = vec![Placed { target: PACKAGES, mount: view.open()? }];
        if let Some(own) = entry.snapshot() {
            // It can become no other function's.
            mounts.push(Placed { target: HANDLER, mount: open_sealed(&own.code)? });
        }
        leaf.sandbox().attach(&mounts)?;
        leaf.confine(Prepare { confinement, prefault: known.unwrap_or_default() }).await?;
        leaf.sandbox_mut().keep(view);
        self.refill(entry);
        Ok(Some((leaf, forked)))
    }

    /// What a blank should populate of what is known, while no start is on the path.
    async fn worth_populating(
        &self,
        entry: &Entry,
        known: Option<Prefault>,
        missed: u64,
        limits: &Limits,
    ) -> Option<Prefault> {
        let known = known?;
        self.until_quiet(entry).await;
        let now = Circumstances {
            missed: entry.blanks().missed - missed,
            written: known.write.iter().map(|range| u64::from(range.count)).sum(),
            limit_mib: limits.mem_mb,
        };
        match worthwhile(now) {
            Ok(()) => Some(known),
            Err(reason) => {
                entry.blanks().skip(reason);
                None
            }
        }
    }

    /// Gives up the oldest blank of the node that was used least lately; false if there is none.
    pub async fn give_up_blank(&self) -> bool {
        self.give_up_blanks(|_| 1).await > 0
    }

    /// Gives up as many of all blanks as `count` says, the coldest first; how many went.
    pub(super) async fn give_up_blanks(&self, count: impl FnOnce(usize) -> usize) -> usize {
        let mut nodes = Vec::new();
        for tree in self.trees.lock().await.values() {
            nodes.extend(tree.entries().iter().map(Arc::clone));
        }
        nodes.sort_by_key(|entry| entry.blanks().demand.last());
        let wanted = count(nodes.iter().map(|entry| entry.blanks().len()).sum());
        let blanks = nodes.iter().flat_map(|entry| std::iter::from_fn(|| entry.blanks().take()));
        blanks.take(wanted).count()
    }

    /// Lets the blanks of nodes go that were not used lately.
    pub(super) async fn drop_cold_blanks(&self) {
        for tree in self.trees.lock().await.values() {
            for entry in tree.entries().iter() {
                let mut blanks = entry.blanks();
                if !blanks.demand.is_hot(Instant::now()) {
                    blanks.clear();
                }
            }
        }
    }

    /// Makes control groups and network namespaces for the next starts, away from this one's path.
    pub(super) fn refill(&self, entry: &Entry) {
        let Some(zygote) = entry.zygote() else { return };
        if zygote.namespace.lacks() {
            let namespace = Arc::clone(&zygote.namespace);
            tokio::task::spawn_blocking(move || namespace.refill());
        }
        tokio::spawn(async move { zygote.refill_nets().await });
    }
}

/// Looks now and then for nodes that nobody uses any more.
pub(super) async fn janitor(forest: Weak<Forest>) {
    loop {
        tokio::time::sleep(COLD_AFTER / 4).await;
        let Some(forest) = forest.upgrade() else { return };
        forest.drop_cold_blanks().await;
        forest.drop_cold_nodes().await;
        forest.drop_unused_replicas().await;
        forest.renew_old().await;
    }
}
