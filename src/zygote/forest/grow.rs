//! Grows nodes, root to leaf. Runs in the worker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hosier_zygote::wire::Imports;

use super::entry::{Entry, Grown, Tree, choose, lost};
use super::{Forest, Packages, paths};
use crate::sandbox::{HANDLER, Order, Purpose, open_sealed};
use crate::zygote::modules::usual;
use crate::zygote::node::{Above, Zygote};
use crate::zygote::select::Asking;
use crate::zygote::snapshot::node_limits;
use crate::zygote::{Pin, Pins, ZygoteError};

/// Rounds of one choice, at most: each finds a node unfit or a parent lost.
const ROUNDS: usize = 40;
/// How long a dying parent may take to be seen dead after its child.
const DEATH_BOUND: Duration = Duration::from_millis(100);

impl Forest {
    /// The best node that stands, grown if need be; at worst the root.
    pub(super) async fn usable(
        self: &Arc<Self>,
        tree: &Arc<Tree>,
        asking: &Asking<'_>,
    ) -> Result<(Arc<Entry>, Arc<Zygote>), ZygoteError> {
        for _ in 0..ROUNDS {
            let entry = self.plan(tree, asking);
            match self.awaited(tree, &entry).await {
                Ok(Some(first)) => {
                    let zygote = entry.freest().unwrap_or(first);
                    return Ok((entry, zygote));
                }
                // An ancestor serves meanwhile.
                Ok(None) => break,
                // The root has none above it.
                Err(error) if entry.parent.is_none() => return Err(error),
                // The next round finds another, or grows the parent again.
                Err(ZygoteError::LostParent { .. } | ZygoteError::Unfit { .. }) => {}
                Err(error) => {
                    tracing::warn!(node = entry.id, %error, "a node is passed over");
                    break;
                }
            }
        }
        let entry = choose(&tree.entries(), asking, Grown::Only);
        let first = self.standing(tree, &entry).await?;
        let zygote = entry.freest().unwrap_or(first);
        Ok((entry, zygote))
    }

    /// The zygote of an entry, which is grown in a task of its own; `None` where that
    /// takes longer than a start is to wait.
    async fn awaited(
        self: &Arc<Self>,
        tree: &Arc<Tree>,
        entry: &Arc<Entry>,
    ) -> Result<Option<Arc<Zygote>>, ZygoteError> {
        if entry.parent.is_none() || entry.zygote().is_some() {
            return self.standing(tree, entry).await.map(Some);
        }
        // What a growth under way took already is not waited for again.
        let path = entry.path();
        let since = path.iter().filter_map(|entry| entry.state().growing).min();
        let waited = since.map_or(Duration::ZERO, |since| since.elapsed());
        let (forest, grown_tree, grown) = (Arc::clone(self), Arc::clone(tree), Arc::clone(entry));
        let growing = tokio::spawn(async move { forest.standing(&grown_tree, &grown).await });
        match tokio::time::timeout(self.parts.grow_wait.saturating_sub(waited), growing).await {
            Ok(ended) => ended.unwrap_or(Err(ZygoteError::Died { node: entry.id })).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// The zygote of an entry. Where it does not stand, it is grown from the nearest
    /// ancestor that does.
    pub(super) async fn standing(
        self: &Arc<Self>,
        tree: &Arc<Tree>,
        entry: &Arc<Entry>,
    ) -> Result<Arc<Zygote>, ZygoteError> {
        let path = entry.path();
        let nearest = path.iter().rposition(|entry| entry.zygote().is_some()).unwrap_or(0);
        let mut above = None;
        for entry in &path[nearest..] {
            let standing = self.ensure(tree, entry, above).await?;
            above = Some(standing);
        }
        above.ok_or(ZygoteError::Died { node: entry.id })
    }

    pub(super) async fn ensure(
        self: &Arc<Self>,
        tree: &Arc<Tree>,
        entry: &Arc<Entry>,
        parent: Option<Arc<Zygote>>,
    ) -> Result<Arc<Zygote>, ZygoteError> {
        if let Some(zygote) = entry.zygote() {
            return Ok(zygote);
        }
        // A growth goes on if the request that began it is given up.
        let (forest, tree, grown) = (Arc::clone(self), Arc::clone(tree), Arc::clone(entry));
        let growing = tokio::spawn(async move {
            let _alone = grown.growing.lock().await;
            // Others waited for the same growth, or for its failure.
            let (zygote, unfit) = {
                let state = grown.state();
                (state.zygote.clone(), state.unfit.clone())
            };
            match (zygote, unfit) {
                (Some(zygote), _) => Ok(zygote),
                (None, Some(reason)) => Err(ZygoteError::Unfit { node: grown.id, reason }),
                (None, None) => forest.grow(&tree, &grown, parent).await.map_err(|error| grown.judge(error)),
            }
        });
        growing.await.unwrap_or(Err(ZygoteError::Died { node: entry.id }))
    }

    /// Grows an entry's first zygote, which takes the place of one that stands.
    pub(super) async fn grow(
        self: &Arc<Self>,
        tree: &Tree,
        entry: &Entry,
        parent: Option<Arc<Zygote>>,
    ) -> Result<Arc<Zygote>, ZygoteError> {
        entry.state().growing = Some(Instant::now());
        let grown = self.grown(tree, entry, parent).await;
        let mut state = entry.state();
        state.growing = None;
        let zygote = Arc::new(grown?);
        state.zygote = Some(Arc::clone(&zygote));
        state.replicas.clear();
        Ok(zygote)
    }

    /// A zygote of an entry.
    pub(super) async fn grown(
        self: &Arc<Self>,
        tree: &Tree,
        entry: &Entry,
        parent: Option<Arc<Zygote>>,
    ) -> Result<Zygote, ZygoteError> {
        if parent.is_none() && entry.parent.is_some() {
            return Err(ZygoteError::LostParent { node: entry.id });
        }
        let parts = &self.parts;
        let permit = match &parent {
            // The root takes no place: without it there is no leaf to take one.
            None => None,
            Some(_) => Some(parts.sandboxes.place().ok_or_else(|| parts.sandboxes.full())?),
        };
        let own = entry.snapshot().map(|snapshot| &**snapshot);
        let limits = match (own, &parent) {
            (Some(own), Some(parent)) => node_limits(&own.limits, &parts.limits, parent.memory()),
            _ => parts.limits,
        };
        let parent = match own {
            Some(_) => Some(self.own_root(tree, entry).await?),
            None => parent,
        };
        let cell = parts.sandboxes.cell(Order {
            purpose: Purpose::Zygote,
            namespace: Some(parent.as_ref().map_or(&tree.namespace, |parent| &parent.namespace)),
            network: tree.network,
            limits: &limits,
            permit,
            writable: None,
            net: None,
        });
        let mut cell = cell.await?;
        let begun = Instant::now();
        let imports = Imports {
            path: paths(&entry.closure),
            modules: imports(entry, &*parts.packages),
            immortal: parts.immortal,
            gc_freeze: parts.gc_freeze,
            solidify: parts.solidify,
            private: own.is_some(),
        };
        let zygote = match parent {
            None => {
                let python = &parts.python;
                let bound = parts.grow_bound;
                Zygote::root(entry.id, &parts.sandboxes, &tree.namespace, cell, python, &imports, bound)
                    .await?
            }
            Some(parent) => {
                cell.show(self.view(&entry.closure)?)?;
                if let Some(own) = own {
                    cell.mount(HANDLER, open_sealed(&own.code)?);
                }
                let lost_parent = |error: &ZygoteError| match own {
                    // Its root is nobody else's, and goes with it.
                    Some(_) => error.lost_node(),
                    None => entry.parent.as_ref().is_some_and(|above| lost(above, &parent, error)),
                };
                let started = match parent.grow(&parts.sandboxes, cell, imports).await {
                    Err(error) if lost_parent(&error) => {
                        return Err(ZygoteError::LostParent { node: entry.id });
                    }
                    started => started?,
                };
                if let Some(own) = own {
                    own.tell(entry.id, &started.channel).await?;
                }
                let bound = parts.grow_bound;
                match Zygote::stand(entry.id, started, Above::Parent(&parent), bound, own).await {
                    // A parent's stub takes what it grew along: that is no fault of the child's.
                    Err(error @ ZygoteError::Died { .. }) if parent.is_gone(DEATH_BOUND).await => {
                        lost_parent(&error);
                        return Err(ZygoteError::LostParent { node: entry.id });
                    }
                    stood => stood?,
                }
            }
        };
        stood(entry, &zygote, begun.elapsed());
        match zygote.ready.failed.first() {
            // It would serve functions whose own import might fare otherwise.
            Some((module, reason)) if entry.has_modules() => {
                Err(ZygoteError::Unfit { node: entry.id, reason: format!("{module}: {reason}") })
            }
            _ => Ok(zygote),
        }
    }
}

/// Modules that a node imports itself, in order: of its packages, or below those of its parent by name, whoever
/// asked for them. A function's own node descends from no package node: it imports all that its package node has.
fn imports(entry: &Entry, packages: &dyn Packages) -> Vec<String> {
    let usual = |pin: &Pin| usual(pin).iter().map(|module| (*module).to_owned());
    let of = |pins: &Pins| -> Vec<String> {
        pins.iter().flat_map(|pin| packages.modules(pin).into_iter().chain(usual(pin))).collect()
    };
    let above = entry.parent.as_ref().filter(|_| entry.snapshot().is_some()).map(Entry::path);
    let mut modules: Vec<_> = above.unwrap_or_default().iter().flat_map(|node| of(&node.own)).collect();
    modules.extend(of(if entry.snapshot().is_some() { &entry.closure } else { &entry.own }));
    modules.extend(entry.modules.iter().cloned());
    modules
}

fn stood(entry: &Entry, zygote: &Zygote, took: Duration) {
    let ready = &zygote.ready;
    tracing::info!(
        node = entry.id,
        parent = entry.parent.as_ref().map(|parent| parent.id),
        packages = entry.own.len(),
        import_ms = ready.import_us / 1000,
        took_ms = took.as_millis() as u64,
        "node stands"
    );
    if let Some(failure) = &ready.not_solid {
        tracing::warn!(node = entry.id, %failure, "node is not solid");
    }
    for (module, reason) in &ready.failed {
        tracing::warn!(node = entry.id, module, reason, "a module could not be imported");
    }
    let alone = entry.has_modules() || entry.snapshot().is_some();
    let parent = entry.parent.as_ref().filter(|_| !alone);
    let above = parent.and_then(|parent| parent.state().import_us).unwrap_or(0);
    entry.state().import_us = Some(above + ready.import_us);
}
