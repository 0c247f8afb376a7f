//! Names the nodes that may serve a function, and picks one. Runs in the worker.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::Forest;
use super::entry::{Entry, Grown, State, Tree, choose};
use super::modules::yield_modules;
use super::replicate::count;
use super::snapshot::Private;
use crate::zygote::evict::{Kept, victim};
use crate::zygote::node::Zygote;
use crate::zygote::select::Asking;
use crate::zygote::users::Users;
use crate::zygote::{Modules, Pin, Pins, Template};

impl Forest {
    /// Names the nodes that may serve a function, and picks one.
    pub(super) fn plan(&self, tree: &Tree, asking: &Asking<'_>) -> Arc<Entry> {
        let pins = asking.pins;
        let mut entries = tree.entries();
        match &self.parts.template {
            Some(template) => {
                let root = Arc::clone(&entries[0]);
                self.instantiate(template, &root, pins, &mut entries);
            }
            None => match entries.iter().find(|entry| &entry.closure == pins && entry.is_of_packages()) {
                Some(known) => known.touch(),
                None => {
                    // It will serve others, who import no modules of this function's.
                    let alone = Asking { modules: &Modules::new(), ..*asking };
                    let parent = choose(&entries, &alone, Grown::OrNot);
                    if self.make_room(&mut entries, Duration::ZERO) {
                        let own = pins.difference(&parent.closure).cloned().collect();
                        entries.push(self.entry(Some(parent), own, pins.clone()));
                    }
                }
            },
        }
        let chosen = choose(&entries, asking, Grown::OrNot);
        if chosen.has_modules() {
            chosen.touch();
        }
        chosen
    }

    /// Whether there is room for another node: where there is none, one that nothing depends on goes
    /// that was not used for so long.
    pub(super) fn make_room(&self, entries: &mut Vec<Arc<Entry>>, unused_for: Duration) -> bool {
        if count(entries) < self.parts.max_nodes {
            return true;
        }
        if yield_modules(entries, |_| true, unused_for) {
            return true;
        }
        let free = |zygote: &Arc<Zygote>| Arc::strong_count(zygote) == 1;
        for entry in entries.iter() {
            // A node's first knows its packages; another only saves time.
            if entry.state().replicas.pop_if(|zygote| free(zygote)).is_some() {
                tracing::info!(node = entry.id, "a replica makes room for another node");
                return true;
            }
        }
        let kept = entries.iter().map(|entry| {
            let state = entry.state();
            // Others that hold it are its children and starts under way; a zygote's are its leaves.
            let held = entry.parent.is_none()
                || Arc::strong_count(entry) > 1
                || state.used.elapsed() < unused_for
                || state.zygote.as_ref().is_some_and(|zygote| Arc::strong_count(zygote) > 1);
            Kept { id: entry.id, used: state.used, held }
        });
        let Some(id) = victim(kept) else { return false };
        tracing::info!(node = id, "a node makes room for another");
        entries.retain(|entry| entry.id != id);
        true
    }

    /// Walks the template along every node whose packages are all pinned.
    pub(super) fn instantiate(
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
                entry.is_of_packages()
                    && entry.closure == closure
                    && entry.own == own
                    && entry.parent.as_ref().is_some_and(|p| p.id == parent.id)
            });
            let node = match found.cloned() {
                Some(node) => {
                    node.touch();
                    node
                }
                None if !self.make_room(entries, Duration::ZERO) => return,
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
    pub(super) fn with_dependencies(&self, base: &Pins, own: &Pins, pins: &Pins) -> Pins {
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

    pub(super) fn entry(&self, parent: Option<Arc<Entry>>, own: Pins, closure: Pins) -> Arc<Entry> {
        self.entry_of(parent, own, closure, Modules::new(), None)
    }

    pub(super) fn entry_of(
        &self,
        parent: Option<Arc<Entry>>,
        own: Pins,
        closure: Pins,
        modules: Modules,
        private: Option<Private>,
    ) -> Arc<Entry> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let state = State {
            zygote: None,
            replicas: Vec::new(),
            growing: None,
            import_us: None,
            deaths: 0,
            users: Users::default(),
            unfit: None,
            used: Instant::now(),
        };
        Arc::new(Entry {
            id,
            parent,
            own,
            closure,
            modules,
            tops: Default::default(),
            state: state.into(),
            growing: Default::default(),
            blanks: Mutex::default(),
            private,
        })
    }
}
