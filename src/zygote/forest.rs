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
//! What is not the node's fault (no place is free, say) passes it over for one start.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use hosier_zygote::birth::{Pid1, Role};
use hosier_zygote::wire::{Confinement, Handler, Imports, Specialize, Step};
use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::blanks::{Blanks, COLD_AFTER};
use super::evict::{Kept, victim};
use super::node::{self, Zygote};
use super::select::{Candidate, best};
use super::{Leaf, Pin, Pins, Template, ZygoteError};
use crate::sandbox::{Limits, Network, Order, Program, Purpose, Sandboxes, UserNamespace, View, open_sealed};
use crate::stats::Stats;

/// Attempts of one start, at most: each finds one dead node, and a path is no longer than this.
const ATTEMPTS: usize = 20;
/// Rounds of one choice, at most: each finds a node unfit or a parent lost.
const ROUNDS: usize = 40;
/// Longest wait for another place, where a fork failed and its own went with it.
const PLACE_BOUND: Duration = Duration::from_secs(5);
/// How long a dying parent may take to be seen dead after its child.
const DEATH_BOUND: Duration = Duration::from_millis(100);

/// What the zygote floor must know of packages on disk; the floor above has them.
pub trait Packages: Send + Sync {
    /// The directory of an installed package.
    fn directory(&self, pin: &Pin) -> PathBuf;
    /// Its top-level modules.
    fn modules(&self, pin: &Pin) -> Vec<String>;
    /// Normalised names of what it depends on.
    fn requires(&self, pin: &Pin) -> Vec<String>;
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
    pub max_nodes: usize,
    pub gc_freeze: bool,
    pub solidify: bool,
    /// Blanks that one node keeps, at most; 0 is off.
    pub blanks: usize,
    /// Blanks populate the pages that earlier leaves touched.
    pub prefault: bool,
    /// Leaves may write anywhere.
    pub writable_root: bool,
}

/// What a function needs of a start.
pub struct Need<'a> {
    pub pins: &'a Pins,
    pub network: Network,
    pub limits: &'a Limits,
    pub code: &'a Path,
    pub function: &'a str,
    /// Entry file below the code directory.
    pub file: &'a str,
    pub env: &'a [(String, String)],
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
}

/// A start that somebody waits for.
#[derive(Debug)]
pub struct OnPath(Arc<Busy>);

#[derive(Debug, Default)]
struct Busy {
    starts: AtomicUsize,
    clear: Notify,
}

/// The trees of a running worker.
pub struct Forest {
    parts: ForestParts,
    trees: tokio::sync::Mutex<HashMap<Network, Arc<Tree>>>,
    views: Mutex<HashMap<Pins, Weak<View>>>,
    next: AtomicU64,
    busy: Arc<Busy>,
}

struct Tree {
    network: Network,
    namespace: Arc<UserNamespace>,
    entries: Mutex<Vec<Arc<Entry>>>,
}

struct Entry {
    id: u64,
    parent: Option<Arc<Entry>>,
    /// What it imports itself.
    own: Pins,
    /// What it and its ancestors can have imported: its sandbox shows no more.
    closure: Pins,
    state: Mutex<State>,
    /// Held while it is being grown.
    growing: tokio::sync::Mutex<()>,
    blanks: Mutex<Blanks>,
}

struct State {
    zygote: Option<Arc<Zygote>>,
    /// Measured, ancestors included.
    import_us: Option<u64>,
    deaths: u32,
    unfit: Option<String>,
    /// When a function last asked for it.
    used: Instant,
}

impl Forest {
    pub fn new(parts: ForestParts) -> Self {
        Self {
            parts,
            trees: Default::default(),
            views: Mutex::default(),
            next: AtomicU64::new(1),
            busy: Arc::default(),
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
        let view = self.view(need.pins)?;
        let begun = Instant::now();
        let tree = self.tree(need.network).await?;
        let mut permit = Some(need.permit);
        let mut last = None;
        // A node may die between its choice and its fork; each attempt has a new one.
        for _ in 0..ATTEMPTS {
            let (entry, zygote) = self.usable(&tree, need.pins).await?;
            let node = begun.elapsed();
            entry.blanks().demand.started(Instant::now());
            let (mut leaf, confinement, cgroup) = match self.ready_blank(&entry, need.limits) {
                Some(leaf) => {
                    let confinement = self.parts.sandboxes.confinement_of(leaf.sandbox());
                    (leaf, confinement, Duration::ZERO)
                }
                None => match self.fork_leaf(&tree, &zygote, need.limits, permit.take()).await {
                    Ok(forked) => forked,
                    Err(error) if lost(&entry, &zygote, &error) => {
                        // The first went with its cell.
                        permit = Some(self.parts.sandboxes.wait_for_place(PLACE_BOUND).await?);
                        last = Some(error);
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            let message = Specialize {
                targets: vec!["packages".to_owned(), "handler".to_owned()],
                confinement: Some(confinement),
                handler: handler(need.env, need.pins, need.function, need.file),
            };
            let mounts = [view.open()?, open_sealed(need.code)?];
            match leaf.specialize(&message, &mounts).await {
                Ok(()) => {}
                // A blank that died while it waited costs no request.
                Err(_) if leaf.was_blank() => continue,
                Err(error) => return Err(leaf.last_word(error).await.into()),
            }
            leaf.sandbox_mut().keep(view);
            self.refill(&tree);
            self.replenish(&tree, &entry);
            return Ok((leaf, Spent { on_path, node, cgroup }));
        }
        Err(last.unwrap_or(ZygoteError::Died { node: 0 }))
    }

    /// A leaf that stood ready, with these limits.
    fn ready_blank(&self, entry: &Entry, limits: &Limits) -> Option<Leaf> {
        let mut leaf = entry.blanks().take()?;
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
            namespace: Some(&tree.namespace),
            network: tree.network,
            limits,
            permit,
            writable: self.parts.writable_root.then_some(&[]),
        });
        let cell = cell.await?;
        let confinement = self.parts.sandboxes.confinement(&cell, Purpose::Leaf);
        let cgroup = cell.cgroup_time;
        let started = self.fork(zygote, cell).await?;
        Ok((Leaf::new(started, Some(Arc::clone(zygote)), begun), confinement, cgroup))
    }

    fn on_path(&self) -> OnPath {
        self.busy.starts.fetch_add(1, Ordering::SeqCst);
        OnPath(Arc::clone(&self.busy))
    }

    /// Makes the blanks that a node lacks, one after the other, away from the path.
    fn replenish(self: &Arc<Self>, tree: &Arc<Tree>, entry: &Arc<Entry>) {
        if self.parts.blanks == 0 || !self.claim_refill(entry) {
            return;
        }
        let (forest, tree, entry) = (Arc::clone(self), Arc::clone(tree), Arc::clone(entry));
        tokio::spawn(async move {
            loop {
                forest.until_quiet(&entry).await;
                let made = forest.make_blank(&tree, &entry).await;
                let mut blanks = entry.blanks();
                blanks.coming = 0;
                match made {
                    Ok(Some((leaf, took))) => {
                        blanks.demand.refilled(took);
                        blanks.add(leaf);
                    }
                    Ok(None) => return,
                    Err(error) => {
                        tracing::warn!(node = entry.id, %error, "a blank could not be made");
                        return;
                    }
                }
                drop(blanks);
                if !forest.claim_refill(&entry) {
                    return;
                }
            }
        });
    }

    /// Whether a blank is lacking and nobody makes one; the caller then does.
    fn claim_refill(&self, entry: &Entry) -> bool {
        let sandboxes = &self.parts.sandboxes;
        let free = sandboxes.tuning.max_sandboxes - sandboxes.taken();
        let mut blanks = entry.blanks();
        let lacking = blanks.coming == 0 && blanks.lacking(Instant::now(), self.parts.blanks, free) > 0;
        if lacking {
            blanks.coming = 1;
        }
        lacking
    }

    /// Waits for the starts on the path, unless none is ready.
    async fn until_quiet(&self, entry: &Entry) {
        loop {
            // Listens before it looks, so that no end is missed in between.
            let mut cleared = std::pin::pin!(self.busy.clear.notified());
            cleared.as_mut().enable();
            if self.busy.starts.load(Ordering::SeqCst) == 0 || entry.blanks().len() == 0 {
                return;
            }
            cleared.await;
        }
    }

    async fn make_blank(
        self: &Arc<Self>,
        tree: &Tree,
        entry: &Entry,
    ) -> Result<Option<(Leaf, Duration)>, ZygoteError> {
        let (Some(permit), Some(zygote)) = (self.parts.sandboxes.place(), entry.zygote()) else {
            return Ok(None);
        };
        let begun = Instant::now();
        let limits = &self.parts.leaf_limits;
        let (mut leaf, _, _) = self.fork_leaf(tree, &zygote, limits, Some(permit)).await?;
        leaf.wait_as_blank().await?;
        let known = if self.parts.prefault { zygote.working_set().prefault() } else { None };
        if let Some(wanted) = known {
            leaf.prefault(&wanted).await?;
        }
        self.refill_now(tree);
        Ok(Some((leaf, begun.elapsed())))
    }

    /// Gives up one blank, of the node that was used least lately; false if there is none.
    pub async fn give_up_blank(&self) -> bool {
        for tree in self.trees.lock().await.values() {
            for entry in tree.entries().iter() {
                if entry.blanks().take().is_some() {
                    return true;
                }
            }
        }
        false
    }

    /// Lets the blanks of nodes go that were not used lately.
    async fn drop_cold_blanks(&self) {
        for tree in self.trees.lock().await.values() {
            for entry in tree.entries().iter() {
                let mut blanks = entry.blanks();
                if !blanks.demand.is_hot(Instant::now()) {
                    blanks.clear();
                }
            }
        }
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
        });
        let mut cell = cell.await?;
        cell.mount("packages", view.open()?);
        cell.mount("handler", open_sealed(need.code)?);
        let spent = Spent { on_path: self.on_path(), node: Duration::ZERO, cgroup: cell.cgroup_time };
        let program = Program {
            pid1: Pid1::Program,
            role: Role::Confined(sandboxes.confinement(&cell, Purpose::Leaf)),
            argv: node::interpreter(&self.parts.python, BOOT_LEAF),
            env: &[("LANG".to_owned(), "C.UTF-8".to_owned())],
        };
        let mut leaf = Leaf::new(sandboxes.spawn(cell, program, None).await?, None, begun);
        let message = Specialize {
            targets: Vec::new(),
            confinement: None,
            handler: handler(need.env, need.pins, need.function, need.file),
        };
        if let Err(error) = leaf.specialize(&message, &[]).await {
            return Err(leaf.last_word(error).await.into());
        }
        leaf.sandbox_mut().keep(view);
        Ok((leaf, spent))
    }

    /// The best node that stands, grown if need be; at worst the root.
    async fn usable(
        self: &Arc<Self>,
        tree: &Arc<Tree>,
        pins: &Pins,
    ) -> Result<(Arc<Entry>, Arc<Zygote>), ZygoteError> {
        for _ in 0..ROUNDS {
            let entry = self.plan(tree, pins);
            match self.standing(tree, &entry).await {
                Ok(zygote) => return Ok((entry, zygote)),
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
        let entry = choose(&tree.entries(), pins, Grown::Only);
        let zygote = self.standing(tree, &entry).await?;
        Ok((entry, zygote))
    }

    /// Names the nodes that may serve these pins, and picks one.
    fn plan(&self, tree: &Tree, pins: &Pins) -> Arc<Entry> {
        let mut entries = tree.entries();
        match &self.parts.template {
            Some(template) => {
                let root = Arc::clone(&entries[0]);
                self.instantiate(template, &root, pins, &mut entries);
            }
            None => match entries.iter().find(|entry| &entry.closure == pins) {
                Some(known) => known.touch(),
                None => {
                    let parent = choose(&entries, pins, Grown::OrNot);
                    if self.make_room(&mut entries) {
                        let own = pins.difference(&parent.closure).cloned().collect();
                        entries.push(self.entry(Some(parent), own, pins.clone()));
                    }
                }
            },
        }
        choose(&entries, pins, Grown::OrNot)
    }

    /// Whether there is room for another node: where there is none, one that nothing depends on goes.
    fn make_room(&self, entries: &mut Vec<Arc<Entry>>) -> bool {
        if entries.len() < self.parts.max_nodes {
            return true;
        }
        let kept = entries.iter().map(|entry| {
            let state = entry.state();
            // Others that hold it are its children and starts under way; a zygote's are its leaves.
            let held = entry.parent.is_none()
                || Arc::strong_count(entry) > 1
                || state.zygote.as_ref().is_some_and(|zygote| Arc::strong_count(zygote) > 1);
            Kept { id: entry.id, used: state.used, held }
        });
        let Some(id) = victim(kept) else { return false };
        tracing::info!(node = id, "a node makes room for another");
        entries.retain(|entry| entry.id != id);
        true
    }

    /// Walks the template along every node whose packages are all pinned.
    fn instantiate(
        &self,
        template: &Template,
        parent: &Arc<Entry>,
        pins: &Pins,
        entries: &mut Vec<Arc<Entry>>,
    ) {
        for child in &template.children {
            let Some(own) = child.matched(pins) else { continue };
            let closure = self.with_dependencies(&parent.closure, &own, pins);
            let found = entries.iter().find(|entry| {
                entry.closure == closure
                    && entry.own == own
                    && entry.parent.as_ref().is_some_and(|p| p.id == parent.id)
            });
            let node = match found.cloned() {
                Some(node) => {
                    node.touch();
                    node
                }
                None if !self.make_room(entries) => return,
                None => {
                    let node = self.entry(Some(Arc::clone(parent)), own, closure);
                    entries.push(Arc::clone(&node));
                    node
                }
            };
            self.instantiate(child, &node, pins, entries);
        }
    }

    /// A parent's closure and some packages, with what they depend on as far as it is pinned.
    fn with_dependencies(&self, base: &Pins, own: &Pins, pins: &Pins) -> Pins {
        let mut closure = base.clone();
        let mut open: Vec<Pin> = own.iter().cloned().collect();
        while let Some(pin) = open.pop() {
            let names: BTreeSet<String> = self.parts.packages.requires(&pin).into_iter().collect();
            if closure.insert(pin) {
                open.extend(pins.iter().filter(|pin| names.contains(pin.name())).cloned());
            }
        }
        closure
    }

    fn entry(&self, parent: Option<Arc<Entry>>, own: Pins, closure: Pins) -> Arc<Entry> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let state = State { zygote: None, import_us: None, deaths: 0, unfit: None, used: Instant::now() };
        Arc::new(Entry {
            id,
            parent,
            own,
            closure,
            state: state.into(),
            growing: Default::default(),
            blanks: Mutex::default(),
        })
    }

    /// The zygote of an entry. Where it does not stand, it is grown from the nearest
    /// ancestor that does.
    async fn standing(
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

    async fn ensure(
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

    async fn grow(
        self: &Arc<Self>,
        tree: &Tree,
        entry: &Entry,
        parent: Option<Arc<Zygote>>,
    ) -> Result<Arc<Zygote>, ZygoteError> {
        if parent.is_none() && entry.parent.is_some() {
            return Err(ZygoteError::LostParent { node: entry.id });
        }
        let parts = &self.parts;
        let permit = match &parent {
            // The root takes no place: without it there is no leaf to take one.
            None => None,
            Some(_) => Some(parts.sandboxes.place().ok_or_else(|| parts.sandboxes.full())?),
        };
        let cell = parts.sandboxes.cell(Order {
            purpose: Purpose::Zygote,
            namespace: Some(&tree.namespace),
            network: tree.network,
            limits: &parts.limits,
            permit,
            writable: None,
        });
        let mut cell = cell.await?;
        let begun = Instant::now();
        let imports = Imports {
            path: paths(&entry.closure),
            modules: entry.own.iter().flat_map(|pin| parts.packages.modules(pin)).collect(),
            gc_freeze: parts.gc_freeze,
            solidify: parts.solidify,
        };
        let zygote = match parent {
            None => {
                let python = &parts.python;
                let bound = parts.grow_bound;
                Zygote::root(entry.id, &parts.sandboxes, &tree.namespace, cell, python, &imports, bound)
                    .await?
            }
            Some(parent) => {
                let view = self.view(&entry.closure)?;
                cell.mount("packages", view.open()?);
                let lost_parent = |error: &ZygoteError| {
                    entry.parent.as_ref().is_some_and(|above| lost(above, &parent, error))
                };
                let started = match parent.grow(&parts.sandboxes, cell, imports).await {
                    Err(error) if lost_parent(&error) => {
                        return Err(ZygoteError::LostParent { node: entry.id });
                    }
                    started => started?,
                };
                match Zygote::stand(entry.id, started, Some(Arc::clone(&parent)), parts.grow_bound).await {
                    // A parent's stub takes what it grew along: that is no fault of the child's.
                    Err(error @ ZygoteError::Died { .. }) if parent.is_gone(DEATH_BOUND).await => {
                        lost_parent(&error);
                        return Err(ZygoteError::LostParent { node: entry.id });
                    }
                    stood => stood?,
                }
            }
        };
        Ok(self.stood(entry, zygote, begun.elapsed()))
    }

    fn stood(&self, entry: &Entry, zygote: Zygote, took: Duration) -> Arc<Zygote> {
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
        let above = entry.parent.as_ref().and_then(|parent| parent.state().import_us).unwrap_or(0);
        let mut state = entry.state();
        state.import_us = Some(above + ready.import_us);
        let zygote = Arc::new(zygote);
        state.zygote = Some(Arc::clone(&zygote));
        zygote
    }

    async fn tree(&self, network: Network) -> Result<Arc<Tree>, ZygoteError> {
        let mut trees = self.trees.lock().await;
        if let Some(tree) = trees.get(&network) {
            return Ok(Arc::clone(tree));
        }
        let namespace = self.parts.sandboxes.user_namespace(trees.len(), self.parts.leaf_limits)?;
        let root = self.entry(None, Pins::new(), Pins::new());
        let tree = Arc::new(Tree { network, namespace, entries: Mutex::new(vec![root]) });
        trees.insert(network, Arc::clone(&tree));
        Ok(tree)
    }

    /// Makes control groups for the next starts, away from this one's path.
    fn refill(&self, tree: &Arc<Tree>) {
        if tree.namespace.lacks() {
            let namespace = Arc::clone(&tree.namespace);
            tokio::task::spawn_blocking(move || namespace.refill());
        }
    }

    fn refill_now(&self, tree: &Tree) {
        tree.namespace.refill();
    }

    /// The mounts of a set of packages, shared by all who need the same.
    fn view(&self, pins: &Pins) -> Result<Arc<View>, ZygoteError> {
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(view) = views.get(pins).and_then(Weak::upgrade) {
            return Ok(view);
        }
        views.retain(|_, view| view.strong_count() > 0);
        let entries: Vec<_> =
            pins.iter().map(|pin| (self.parts.packages.directory(pin), pin.to_string())).collect();
        let view = View::new(&self.parts.sandboxes.base, &entries)?;
        views.insert(pins.clone(), Arc::downgrade(&view));
        Ok(view)
    }

    /// Grows the roots of a network ahead of its first request.
    ///
    /// # Errors
    /// The root could not be grown: no function could either.
    pub async fn plant(self: &Arc<Self>, network: Network) -> Result<(), ZygoteError> {
        if self.parts.enabled {
            let tree = self.tree(network).await?;
            let root = Arc::clone(&tree.entries()[0]);
            self.standing(&tree, &root).await?;
            let namespace = Arc::clone(&tree.namespace);
            let _ = tokio::task::spawn_blocking(move || namespace.refill()).await;
            tokio::spawn(janitor(Arc::downgrade(self)));
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
                entry.state().zygote = None;
            }
        }
    }

    /// The trees as text, a node a line.
    pub async fn picture(&self) -> String {
        let mut text = String::new();
        for tree in self.trees.lock().await.values() {
            text.push_str(&format!("tree (network {:?})\n", tree.network));
            let entries = tree.entries().clone();
            draw(&mut text, &entries, None, 1);
        }
        text
    }
}

impl Tree {
    fn entries(&self) -> MutexGuard<'_, Vec<Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blanks(&self) -> MutexGuard<'_, Blanks> {
        self.blanks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn zygote(&self) -> Option<Arc<Zygote>> {
        self.state().zygote.clone()
    }

    fn touch(&self) {
        self.state().used = Instant::now();
    }

    /// Whether it can serve: it stands, or nothing speaks against growing it and what it grows from.
    fn may_serve(&self) -> bool {
        let fit = |entry: &Entry| entry.parent.is_none() || entry.state().unfit.is_none();
        let path = std::iter::successors(Some(self), |entry| entry.parent.as_deref());
        self.zygote().is_some() || path.into_iter().all(fit)
    }

    /// Takes a growth's failure in: what its imports did makes it unfit for good, what
    /// the worker could not do does not.
    fn judge(&self, error: ZygoteError) -> ZygoteError {
        let reason = match error {
            _ if self.parent.is_none() => return error,
            ZygoteError::Unfit { reason, .. } => reason,
            ZygoteError::Died { .. } => "it ended during its imports".to_owned(),
            ZygoteError::Protocol { .. } => "it said what it must not during its imports".to_owned(),
            ZygoteError::TimedOut { bound_s, .. } => {
                format!("its imports took longer than the {bound_s} s of zygote.grow_timeout_s")
            }
            other => return other,
        };
        tracing::warn!(node = self.id, reason, "a node is unfit");
        self.state().unfit = Some(reason.clone());
        ZygoteError::Unfit { node: self.id, reason }
    }

    /// The root first, this entry last.
    fn path(self: &Arc<Self>) -> Vec<Arc<Entry>> {
        let mut path = vec![Arc::clone(self)];
        while let Some(parent) = path.last().and_then(|entry| entry.parent.clone()) {
            path.push(parent);
        }
        path.reverse();
        path
    }
}

impl Drop for OnPath {
    fn drop(&mut self) {
        if self.0.starts.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.clear.notify_waiters();
        }
    }
}

/// Looks now and then for nodes that nobody uses any more.
async fn janitor(forest: Weak<Forest>) {
    loop {
        tokio::time::sleep(COLD_AFTER / 4).await;
        let Some(forest) = forest.upgrade() else { return };
        forest.drop_cold_blanks().await;
    }
}

/// What a fresh leaf's interpreter runs.
const BOOT_LEAF: &str = "import sys; sys.path.append('/hosier'); import hosier_leaf as l; l.fresh()";

/// Takes a node out of service that cannot fork any more; false if it still can. A
/// node that died is grown again once; then its functions go elsewhere.
fn lost(entry: &Entry, zygote: &Arc<Zygote>, error: &ZygoteError) -> bool {
    let threads = matches!(error, ZygoteError::Refused { failure, .. } if failure.step == Step::Threads);
    if !threads && !error.lost_node() {
        return false;
    }
    tracing::warn!(node = entry.id, %error, "a node is lost");
    let mut state = entry.state();
    // Perhaps another start saw it first, and it was grown again.
    if state.zygote.as_ref().is_some_and(|known| Arc::ptr_eq(known, zygote)) {
        state.zygote = None;
        state.deaths += 1;
        // The root is what all else depends on: it is always grown again.
        if entry.parent.is_some() && threads {
            state.unfit = Some("it has more than one thread".to_owned());
        } else if entry.parent.is_some() && state.deaths > 1 {
            state.unfit = Some(format!("it died {} times; the last: {error}", state.deaths));
        }
    }
    true
}

/// Which nodes are looked at.
#[derive(PartialEq)]
enum Grown {
    Only,
    OrNot,
}

fn choose(entries: &[Arc<Entry>], pins: &Pins, grown: Grown) -> Arc<Entry> {
    let may_serve = |entry: &Entry| match grown {
        Grown::Only => entry.zygote().is_some(),
        Grown::OrNot => entry.may_serve(),
    };
    let candidates = entries.iter().map(|entry| {
        let unfit = !may_serve(entry);
        let import_us = entry.state().import_us;
        Candidate { id: entry.id, closure: &entry.closure, import_us, unfit }
    });
    let chosen = best(candidates, pins);
    let found = entries.iter().find(|entry| Some(entry.id) == chosen);
    // The root asks for nothing and so fits everything.
    Arc::clone(found.unwrap_or(&entries[0]))
}

fn paths(pins: &Pins) -> Vec<String> {
    pins.iter().map(|pin| format!("/packages/{pin}/files")).collect()
}

fn handler(env: &[(String, String)], pins: &Pins, function: &str, file: &str) -> Handler {
    Handler { function: function.to_owned(), file: file.to_owned(), path: paths(pins), env: env.to_vec() }
}

fn draw(text: &mut String, entries: &[Arc<Entry>], parent: Option<u64>, depth: usize) {
    for entry in entries.iter().filter(|entry| entry.parent.as_ref().map(|p| p.id) == parent) {
        let state = entry.state();
        let packages: Vec<_> = entry.own.iter().map(Pin::to_string).collect();
        text.push_str(&format!("{}zygote {}", "  ".repeat(depth), entry.id));
        text.push_str(&format!(" [{}]", packages.join(" ")));
        match (&state.zygote, &state.unfit) {
            (_, Some(reason)) => text.push_str(&format!(" unfit: {reason}")),
            (None, None) => text.push_str(" dormant"),
            (Some(zygote), None) => text.push_str(&format!(
                " sandbox {} forks={} blanks={} mem={} KiB imports={} ms",
                zygote.sandbox(),
                zygote.forks.load(Ordering::Relaxed),
                entry.blanks().len(),
                zygote.memory() / 1024,
                state.import_us.unwrap_or(0) / 1000,
            )),
        }
        if let Some(zygote) = &state.zygote {
            match (&zygote.ready.solid, &zygote.ready.not_solid) {
                (Some(solid), _) => text.push_str(&format!(
                    " solid={} KiB in {} mappings, {} left",
                    solid.bytes / 1024,
                    solid.moved,
                    solid.left
                )),
                (None, Some(failure)) => text.push_str(&format!(" not solid: {failure}")),
                (None, None) => {}
            }
            for (module, reason) in &zygote.ready.failed {
                text.push_str(&format!("\n{}  {module} failed: {reason}", "  ".repeat(depth)));
            }
        }
        text.push('\n');
        drop(state);
        draw(text, entries, Some(entry.id), depth + 1);
    }
}
