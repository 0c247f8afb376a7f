//! All trees, one a network. Runs in the worker.
//!
//! ```text
//! start(need):  plan ─▶ best node ─▶ grow it, root to leaf ─▶ fork ─▶ specialize
//!                 │                      │                     │
//!        template or the pins      fails: its parent     node died: grown again,
//!        themselves name nodes     serves instead        once; else its parent
//! ```
//!
//! An entry is a node that may exist; its zygote is the process, if it stands.
//!
//! ```text
//! Dormant ──grow──▶ Standing ──died──▶ Dormant (once more) ──died──▶ Unfit
//!    └──────────── its imports fail it ──────────────────────────────▶ Unfit(reason)
//! ```
//!
//! | file | is |
//! |---|---|
//! | `plan` | which nodes may serve some pins, and the best of them |
//! | `grow` | a node's zygote, its ancestors grown first |
//! | `entry` | a node that may exist, and its state |
//! | `replicate` | more zygotes of a busy node |
//! | `renew` | nodes that came of age, grown again |
//! | `distrust` | leaves whose node's packages may have changed what they run |
//! | `charge` | functions charged for their nodes, which go with the last of them |
//! | `ahead` | blanks and control groups, made while nobody waits |
//! | `snapshot` | nodes that are one function's own |
//! | `modules` | nodes that import more of their packages, for who imports that too |
//! | `watch` | gives blanks up when memory is short |
//!
//! What is not the node's fault (no place is free, say) passes it over for one start.

mod ahead;
mod charge;
mod distrust;
mod entry;
mod grow;
mod modules;
mod plan;
mod renew;
mod replicate;
mod snapshot;
mod watch;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use hosier_zygote::birth::{Pid1, Role};
use hosier_zygote::wire::{Confinement, Handler};
use tokio::sync::OwnedSemaphorePermit;

use super::age::Ageing;
use super::node::{self, Zygote};
use super::select::Asking;
use super::{Leaf, OwnModules, Pin, Pins, Snapshot, Template, ZygoteError};
use crate::sandbox::{
    HANDLER, Limits, Network, Order, PACKAGES, Placed, Program, Purpose, SandboxError, Sandboxes, Spares,
    View,
};
use crate::stats::Stats;
pub use ahead::OnPath;
use ahead::{Busy, janitor};
use entry::{Entry, Tree, draw, lost};
pub use modules::Observed;
use watch::{Watch, watchman};

/// Attempts of one start, at most: each finds one dead node, and a path is no longer than this.
const ATTEMPTS: usize = 20;
/// Longest wait for another place, where a fork failed and its own went with it.
const PLACE_BOUND: Duration = Duration::from_secs(5);

/// What the zygote floor must know of packages on disk; the floor above has them.
pub trait Packages: Send + Sync {
    /// The directory of an installed package.
    fn directory(&self, pin: &Pin) -> PathBuf;
    /// Its top-level modules.
    fn modules(&self, pin: &Pin) -> Vec<String>;
    /// Normalised names of what it depends on.
    fn requires(&self, pin: &Pin) -> Vec<String>;
    /// Looks whether the files of these packages are as they were installed. What was looked at lately
    /// is not looked at again; after a failure that is `sooner`. Blocks.
    ///
    /// # Errors
    /// The first that is damaged or not there, and which file of it.
    fn check(&self, pins: &Pins, sooner: bool) -> Result<(), (Pin, String)>;
}

/// What a forest is made of.
pub struct ForestParts {
    pub sandboxes: Arc<Sandboxes>,
    pub packages: Arc<dyn Packages>,
    pub stats: Arc<Stats>,
    /// `None`: the tree grows itself.
    pub template: Option<Template>,
    /// Off: every start is fresh.
    pub enabled: bool,
    pub python: String,
    /// Limits of a zygote.
    pub limits: Limits,
    /// Limits that most leaves will have.
    pub leaf_limits: Limits,
    pub grow_bound: Duration,
    /// Longest wait of a start for a node that an ancestor can serve for.
    pub grow_wait: Duration,
    /// Zygotes of one node, at most.
    pub replicas: usize,
    pub max_nodes: usize,
    /// How long a node serves.
    pub ageing: Ageing,
    pub immortal: bool,
    pub gc_freeze: bool,
    pub solidify: bool,
    /// Blanks that one node keeps, at most; 0 is off.
    pub blanks: usize,
    /// Blanks populate the pages that earlier leaves touched.
    pub prefault: bool,
    /// Functions that ask for one get a snapshot node.
    pub snapshot: bool,
    /// What all sandboxes together may use; `None`: what the machine has, but for a little.
    pub mem_pool_mib: Option<u32>,
    /// Nodes of modules are grown with what leaves were seen to import.
    pub learn: bool,
    /// Leaves may write anywhere.
    pub writable_root: bool,
}

/// What a function needs of a start.
pub struct Need<'a> {
    pub pins: &'a Pins,
    /// Modules that it imports by itself.
    pub modules: &'a OwnModules,
    pub network: Network,
    pub limits: &'a Limits,
    pub code: &'a Path,
    pub function: &'a str,
    /// Entry file below the code directory.
    pub file: &'a str,
    pub env: &'a [(String, String)],
    /// Where the function asks for a node of its own.
    pub snapshot: Option<&'a Arc<Snapshot>>,
    pub permit: OwnedSemaphorePermit,
}

/// What the steps of a start cost that the worker itself took.
#[derive(Debug)]
pub struct Spent {
    /// Nothing is prepared ahead of need beside this start while this lives.
    pub on_path: OnPath,
    /// Finding, and perhaps growing, the node.
    pub node: Duration,
    pub cgroup: Duration,
    /// The node was the function's own.
    pub snapshot: bool,
}

/// The trees of a running worker.
pub struct Forest {
    parts: ForestParts,
    trees: tokio::sync::Mutex<HashMap<Network, Arc<Tree>>>,
    views: Mutex<HashMap<Pins, Weak<View>>>,
    /// Code for next starts.
    code: Spares,
    next: AtomicU64,
    busy: Arc<Busy>,
    watch: Watch,
}

impl Forest {
    pub fn new(parts: ForestParts) -> Self {
        Self {
            parts,
            trees: Default::default(),
            views: Mutex::default(),
            code: Spares::default(),
            next: AtomicU64::new(1),
            busy: Arc::default(),
            watch: Watch::default(),
        }
    }

    /// Starts a leaf of a function.
    ///
    /// # Errors
    /// No sandbox could be made.
    pub async fn start(self: &Arc<Self>, need: Need<'_>) -> Result<(Leaf, Spent), ZygoteError> {
        let begun = Instant::now();
        let started = if self.parts.enabled { self.forked(need).await } else { self.fresh(need).await };
        self.parts.stats.record("Create()", begun.elapsed());
        started
    }

    async fn forked(self: &Arc<Self>, need: Need<'_>) -> Result<(Leaf, Spent), ZygoteError> {
        let on_path = self.on_path();
        let begun = Instant::now();
        let tree = self.tree(need.network).await?;
        let modules = need.modules.all();
        let asking = Asking { pins: need.pins, modules: &modules, owner: None };
        let mut permit = Some(need.permit);
        let mut last = None;
        // A node may die between its choice and its fork; each attempt has a new one.
        for _ in 0..ATTEMPTS {
            let (entry, zygote) = match self.own_node(&tree, need.pins, need.snapshot) {
                Some(own) => own,
                None => self.usable(&tree, &asking).await?,
            };
            let node = begun.elapsed();
            entry.blanks().started(Instant::now(), need.limits);
            let (mut leaf, confinement, cgroup) = match self.ready_blank(&entry, need.limits) {
                Some(leaf) => (leaf, None, Duration::ZERO),
                None => match self.fork_leaf(&tree, &zygote, need.limits, permit.take()).await {
                    Ok((leaf, confinement, cgroup)) => (leaf, Some(confinement), cgroup),
                    Err(error) if lost(&entry, &zygote, &error) => {
                        // The first went with its cell.
                        permit = Some(self.parts.sandboxes.wait_for_place(PLACE_BOUND).await?);
                        last = Some(error);
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            let confinement = match confinement {
                Some(confinement) => match self.confine(&entry, &mut leaf, confinement).await {
                    Ok(left) => left,
                    Err(error) => {
                        drop(leaf);
                        permit = Some(self.parts.sandboxes.wait_for_place(PLACE_BOUND).await?);
                        last = Some(error.into());
                        continue;
                    }
                },
                None => None,
            };
            let own = entry.snapshot().is_some();
            let mut mounts = Vec::new();
            // A blank of its own node has its code already,
            if !(own && leaf.was_blank()) {
                mounts.push(Placed { target: HANDLER, mount: self.code.take(need.code)? });
            }
            // and any blank its node's packages: mostly all that its function asks for.
            if !leaf.was_blank() || entry.closure != *need.pins {
                let view = self.view(need.pins)?;
                mounts.push(Placed { target: PACKAGES, mount: view.open()? });
                leaf.sandbox_mut().keep(view);
            }
            if confinement.is_none() {
                match leaf.sandbox().attach(&mounts) {
                    Ok(()) => mounts.clear(),
                    // A blank that died while it waited costs no request.
                    Err(SandboxError::Ended) if leaf.was_blank() => continue,
                    // Nor does a leaf that did so before it was anybody's: its first call finds out.
                    Err(SandboxError::Ended) => mounts.clear(),
                    Err(error) => return Err(error.into()),
                }
            }
            // Nor does it need what its node has done with them.
            let (env, path) = if own { (&[][..], &Pins::new()) } else { (need.env, need.pins) };
            let handler = handler(env, path, need.function, need.file);
            leaf.specialize(confinement, handler, mounts)?;
            entry.charge(need.function);
            self.replenish(&tree, &entry);
            self.renew(&tree, &entry);
            self.replicate(&tree, &entry);
            self.take_snapshot(&tree, &entry, need.pins, need.snapshot);
            return Ok((leaf, Spent { on_path, node, cgroup, snapshot: own }));
        }
        Err(last.unwrap_or(ZygoteError::Died { node: 0 }))
    }

    /// Lays a function's code out for its next start, once a start is over.
    pub fn lay_out(&self, function: &str, code: &Path) {
        self.code.lay_out(function, code);
    }

    /// A leaf that stood ready, with these limits.
    fn ready_blank(&self, entry: &Entry, limits: &Limits) -> Option<Leaf> {
        let (taken, left) = {
            let mut blanks = entry.blanks();
            let taken = blanks.take();
            blanks.missed += u64::from(taken.is_none());
            (taken, blanks.len())
        };
        if left == 0 {
            // A refill waits for no start any more.
            self.busy.clear.notify_waiters();
        }
        let mut leaf = taken?;
        leaf.sandbox_mut().set_limits(limits).ok()?;
        leaf.taken();
        Some(leaf)
    }

    async fn fork_leaf(
        self: &Arc<Self>,
        tree: &Tree,
        zygote: &Arc<Zygote>,
        limits: &Limits,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<(Leaf, Confinement, Duration), ZygoteError> {
        let begun = Instant::now();
        let cell = self.parts.sandboxes.cell(Order {
            purpose: Purpose::Leaf,
            namespace: Some(&zygote.namespace),
            network: tree.network,
            limits,
            permit,
            writable: self.parts.writable_root.then_some(&[]),
            net: zygote.take_net(),
        });
        let cell = cell.await?;
        let confinement = self.parts.sandboxes.confinement(&cell, Purpose::Leaf);
        let cgroup = cell.cgroup_time;
        let started = self.fork(zygote, cell).await?;
        Ok((Leaf::new(started, Some(Arc::clone(zygote)), begun), confinement, cgroup))
    }

    /// In a task of its own: a fork must not be given up halfway.
    async fn fork(
        self: &Arc<Self>,
        zygote: &Arc<Zygote>,
        cell: crate::sandbox::Cell,
    ) -> Result<crate::sandbox::Started, ZygoteError> {
        let (zygote, sandboxes) = (Arc::clone(zygote), Arc::clone(&self.parts.sandboxes));
        let node = zygote.id;
        let forking = tokio::spawn(async move { zygote.fork(&sandboxes, cell).await });
        forking.await.unwrap_or(Err(ZygoteError::Died { node }))
    }

    async fn fresh(&self, need: Need<'_>) -> Result<(Leaf, Spent), ZygoteError> {
        let view = self.view(need.pins)?;
        let begun = Instant::now();
        let sandboxes = &self.parts.sandboxes;
        let cell = sandboxes.cell(Order {
            purpose: Purpose::Leaf,
            namespace: None,
            network: need.network,
            limits: need.limits,
            permit: Some(need.permit),
            writable: self.parts.writable_root.then_some(&[]),
            net: None,
        });
        let mut cell = cell.await?;
        cell.show(view)?;
        cell.mount(HANDLER, self.code.take(need.code)?);
        let spent = Spent {
            on_path: self.on_path(),
            node: Duration::ZERO,
            cgroup: cell.cgroup_time,
            snapshot: false,
        };
        let program = Program {
            pid1: Pid1::Program,
            role: Role::Confined(sandboxes.confinement(&cell, Purpose::Leaf)),
            argv: node::interpreter(&self.parts.python, &node::boot_script(BOOT_LEAF)),
            env: &node::environment(),
        };
        let mut leaf = Leaf::new(sandboxes.spawn(cell, program, None).await?, None, begun);
        leaf.specialize(None, handler(need.env, need.pins, need.function, need.file), Vec::new())?;
        Ok((leaf, spent))
    }

    async fn tree(&self, network: Network) -> Result<Arc<Tree>, ZygoteError> {
        let mut trees = self.trees.lock().await;
        if let Some(tree) = trees.get(&network) {
            return Ok(Arc::clone(tree));
        }
        let namespace = self.parts.sandboxes.user_namespace(self.parts.leaf_limits)?;
        let root = self.entry(None, Pins::new(), Pins::new());
        let tree = Arc::new(Tree {
            network,
            namespace,
            entries: Mutex::new(vec![root]),
            renewing: Default::default(),
        });
        trees.insert(network, Arc::clone(&tree));
        Ok(tree)
    }

    /// The mounts of a set of packages, shared by all who need the same.
    fn view(&self, pins: &Pins) -> Result<Arc<View>, ZygoteError> {
        if let Some(view) = self.views().get(pins).and_then(Weak::upgrade) {
            return Ok(view);
        }
        self.check(pins, false)?;
        let mut views = self.views();
        if let Some(view) = views.get(pins).and_then(Weak::upgrade) {
            return Ok(view);
        }
        views.retain(|_, view| view.strong_count() > 0);
        let entries: Vec<_> =
            pins.iter().map(|pin| (self.parts.packages.directory(pin), pin.to_string())).collect();
        let view = match View::new(&self.parts.sandboxes.base, &entries) {
            Ok(view) => view,
            Err(error) => {
                drop(views);
                // An entry was taken away since it was looked at.
                self.check(pins, true)?;
                return Err(error.into());
            }
        };
        views.insert(pins.clone(), Arc::downgrade(&view));
        Ok(view)
    }

    fn views(&self) -> MutexGuard<'_, HashMap<Pins, Weak<View>>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, pins: &Pins, sooner: bool) -> Result<(), ZygoteError> {
        let checked = self.parts.packages.check(pins, sooner);
        checked.map_err(|(pin, damage)| ZygoteError::Damaged { pin, damage })
    }

    /// Uses no longer what was made with these entries of the package store: the views that show them
    /// and the nodes that may have imported from them. Leaves that run stay as they are.
    pub async fn discard(&self, damaged: &[Pin]) {
        let has = |pins: &Pins| damaged.iter().any(|pin| pins.contains(pin));
        if damaged.is_empty() {
            return;
        }
        self.views().retain(|pins, _| !has(pins));
        self.remove_nodes(|entry| has(&entry.closure)).await;
    }

    /// Grows the roots of a network ahead of its first request.
    ///
    /// # Errors
    /// The root could not be grown: no function could either.
    pub async fn plant(self: &Arc<Self>, network: Network) -> Result<(), ZygoteError> {
        if self.parts.enabled {
            let tree = self.tree(network).await?;
            let root = Arc::clone(&tree.entries()[0]);
            let zygote = self.standing(&tree, &root).await?;
            zygote.refill_nets().await;
            let namespace = Arc::clone(&tree.namespace);
            let _ = tokio::task::spawn_blocking(move || namespace.refill()).await;
            tokio::spawn(janitor(Arc::downgrade(self)));
            if self.parts.blanks > 0 {
                tokio::spawn(watchman(Arc::downgrade(self)));
            }
        }
        Ok(())
    }

    /// A leaf gave its first answer: what looks at the pages that this took, if
    /// that is still of interest. It blocks; the leaf must live until it ends.
    pub fn observer(&self, leaf: &Leaf) -> Option<Box<dyn FnOnce() + Send>> {
        let wanted = self.parts.prefault && self.parts.blanks > 0;
        if wanted { leaf.observer() } else { None }
    }

    /// Lets every zygote go.
    pub async fn fell(&self) {
        for tree in self.trees.lock().await.values() {
            for entry in tree.entries().iter() {
                entry.blanks().clear();
                entry.state().replicas.clear();
                entry.state().zygote = None;
            }
        }
    }

    /// The trees as text, a node a line.
    pub async fn picture(self: &Arc<Self>) -> String {
        let trees: Vec<_> = self.trees.lock().await.values().cloned().collect();
        let forest = Arc::clone(self);
        // A node's memory is in a file of its control group.
        let drawn = tokio::task::spawn_blocking(move || {
            let mut text = format!("memory: {}\n", forest.watch.gauge());
            for tree in trees {
                let entries = tree.entries().clone();
                let nets = entries[0].zygote().map_or(0, |root| root.nets());
                text.push_str(&format!("tree (network {:?}) nets={nets}\n", tree.network));
                draw(&mut text, &entries, &|entry| forest.ahead(entry), None, 1);
            }
            text
        });
        drawn.await.unwrap_or_default()
    }
}

/// What a fresh leaf's interpreter runs.
const BOOT_LEAF: &str = "import hosier_leaf as l; l.fresh()";

fn paths(pins: &Pins) -> Vec<String> {
    pins.iter().map(|pin| format!("/packages/{pin}/files")).collect()
}

fn handler(env: &[(String, String)], pins: &Pins, function: &str, file: &str) -> Handler {
    Handler { function: function.to_owned(), file: file.to_owned(), path: paths(pins), env: env.to_vec() }
}
