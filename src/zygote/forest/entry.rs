//! An entry: a node that may exist. Its zygote is the process, if it stands. Runs
//! in the worker.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use hosier_zygote::wire::Step;

use super::snapshot::Private;
use crate::sandbox::{Network, UserNamespace};
use crate::zygote::blanks::Blanks;
use crate::zygote::node::Zygote;
use crate::zygote::select::{Asking, Candidate, best};
use crate::zygote::users::Users;
use crate::zygote::{Leaf, Modules, Pin, Pins, ZygoteError};

pub(super) struct Tree {
    pub(super) network: Network,
    pub(super) namespace: Arc<UserNamespace>,
    pub(super) entries: Mutex<Vec<Arc<Entry>>>,
    /// Held while nodes that came of age are replaced; not again before then.
    pub(super) renewing: tokio::sync::Mutex<Option<Instant>>,
}

pub(super) struct Entry {
    pub(super) id: u64,
    pub(super) parent: Option<Arc<Entry>>,
    /// What it imports itself.
    pub(super) own: Pins,
    /// What it and its ancestors can have imported: its sandbox shows no more.
    pub(super) closure: Pins,
    /// Modules below its packages' top level that it imports; none, but in a node of modules.
    pub(super) modules: Modules,
    /// Names that its packages are imported by, once they were asked for.
    pub(super) tops: OnceLock<Modules>,
    pub(super) state: Mutex<State>,
    /// Held while it is being grown.
    pub(super) growing: tokio::sync::Mutex<()>,
    pub(super) blanks: Mutex<Blanks>,
    /// `None`: it serves every function that pins its packages.
    pub(super) private: Option<Private>,
}

pub(super) struct State {
    /// The one that others grow from.
    pub(super) zygote: Option<Arc<Zygote>>,
    /// More of the same, where one is not enough; none without the first.
    pub(super) replicas: Vec<Arc<Zygote>>,
    /// Since when the first is being grown.
    pub(super) growing: Option<Instant>,
    /// Measured, ancestors included; of a node of modules its own alone.
    pub(super) import_us: Option<u64>,
    pub(super) deaths: u32,
    /// Functions that its memory is charged to.
    pub(super) users: Users,
    pub(super) unfit: Option<String>,
    /// When a function last asked for it.
    pub(super) used: Instant,
}

impl Tree {
    pub(super) fn entries(&self) -> MutexGuard<'_, Vec<Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn blanks(&self) -> MutexGuard<'_, Blanks> {
        self.blanks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn zygote(&self) -> Option<Arc<Zygote>> {
        self.state().zygote.clone()
    }

    /// The first and its replicas.
    pub(super) fn zygotes(&self) -> Vec<Arc<Zygote>> {
        let state = self.state();
        state.zygote.iter().chain(&state.replicas).map(Arc::clone).collect()
    }

    /// The one that fewest wait for, the first among equals.
    pub(super) fn freest(&self) -> Option<Arc<Zygote>> {
        self.zygotes().into_iter().min_by_key(|zygote| zygote.waiting())
    }

    /// Whether a leaf is one of the node as it now is.
    pub(super) fn is_of(&self, leaf: &Leaf) -> bool {
        self.zygotes().iter().any(|zygote| leaf.is_of(zygote))
    }

    pub(super) fn touch(&self) {
        self.state().used = Instant::now();
    }

    /// Measured import time, ancestors included, in µs. A node of modules has what its parent was measured with last:
    /// it saves more than its parent, however much one import differs from another.
    pub(super) fn import_us(&self) -> Option<u64> {
        let own = self.state().import_us?;
        match self.parent.as_ref().filter(|_| self.has_modules()) {
            Some(parent) => Some(parent.state().import_us.unwrap_or(0) + own + 1),
            None => Some(own),
        }
    }

    /// Whether it can serve: it stands, or nothing speaks against growing it and what it grows from.
    pub(super) fn may_serve(&self) -> bool {
        let fit = |entry: &Entry| entry.parent.is_none() || entry.state().unfit.is_none();
        let path = std::iter::successors(Some(self), |entry| entry.parent.as_deref());
        // A node of modules is grown away from the path alone.
        self.zygote().is_some() || (!self.has_modules() && path.into_iter().all(fit))
    }

    /// Takes a growth's failure in: what its imports did makes it unfit for good, what
    /// the worker could not do does not.
    pub(super) fn judge(&self, error: ZygoteError) -> ZygoteError {
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
    pub(super) fn path(self: &Arc<Self>) -> Vec<Arc<Entry>> {
        let mut path = vec![Arc::clone(self)];
        while let Some(parent) = path.last().and_then(|entry| entry.parent.clone()) {
            path.push(parent);
        }
        path.reverse();
        path
    }
}

/// Takes a node out of service that cannot fork any more; false if it still can. A
/// node that died is grown again once; then its functions go elsewhere.
pub(super) fn lost(entry: &Entry, zygote: &Arc<Zygote>, error: &ZygoteError) -> bool {
    let threads = matches!(error, ZygoteError::Refused { failure, .. } if failure.step == Step::Threads);
    if !threads && !error.lost_node() {
        return false;
    }
    tracing::warn!(node = entry.id, %error, "a node is lost");
    let mut state = entry.state();
    if entry.parent.is_some() && threads {
        state.replicas.clear();
    }
    state.replicas.retain(|known| !Arc::ptr_eq(known, zygote));
    // Perhaps another start saw it first, and it was grown again.
    if state.zygote.as_ref().is_some_and(|known| Arc::ptr_eq(known, zygote)) {
        state.zygote = state.replicas.pop();
        state.deaths += 1;
        // The root is what all else depends on: it is always grown again.
        if entry.parent.is_some() && threads {
            state.unfit = Some("it has more than one thread".to_owned());
        } else if entry.parent.is_some() && state.zygote.is_none() && state.deaths > 1 {
            state.unfit = Some(format!("it died {} times; the last: {error}", state.deaths));
        }
    }
    true
}

/// Which nodes are looked at.
#[derive(PartialEq)]
pub(super) enum Grown {
    Only,
    OrNot,
}

pub(super) fn choose(entries: &[Arc<Entry>], asking: &Asking<'_>, grown: Grown) -> Arc<Entry> {
    let may_serve = |entry: &Entry| match grown {
        Grown::Only => entry.zygote().is_some(),
        Grown::OrNot => entry.may_serve(),
    };
    let candidates = entries.iter().map(|entry| {
        let unfit = !may_serve(entry);
        Candidate {
            id: entry.id,
            closure: &entry.closure,
            modules: &entry.modules,
            import_us: entry.import_us(),
            unfit,
            owner: entry.owner(),
        }
    });
    let chosen = best(candidates, asking);
    let found = entries.iter().find(|entry| Some(entry.id) == chosen);
    // The root asks for nothing and so fits everything.
    Arc::clone(found.unwrap_or(&entries[0]))
}

/// Draws the children of `parent`, and below each its own; `ahead` says what a node has ready.
pub(super) fn draw(
    text: &mut String,
    entries: &[Arc<Entry>],
    ahead: &dyn Fn(&Entry) -> String,
    parent: Option<u64>,
    depth: usize,
) {
    for entry in entries.iter().filter(|entry| entry.parent.as_ref().map(|p| p.id) == parent) {
        let state = entry.state();
        let packages: Vec<_> = match entry.has_modules() {
            true => entry.modules.iter().map(|module| format!("+{module}")).collect(),
            false => entry.own.iter().map(Pin::to_string).collect(),
        };
        text.push_str(&format!("{}zygote {}", "  ".repeat(depth), entry.id));
        text.push_str(&format!(" [{}]", packages.join(" ")));
        if let Some(owner) = entry.owner() {
            text.push_str(&format!(" snapshot of {owner}"));
        }
        match (&state.zygote, &state.unfit) {
            (_, Some(reason)) => text.push_str(&format!(" unfit: {reason}")),
            (None, None) => text.push_str(" dormant"),
            (Some(zygote), None) => text.push_str(&format!(
                " sandbox {} forks={} {} mem={} KiB charged to {} functions, {} KiB each imports={} ms",
                zygote.sandbox(),
                zygote.forks.load(Ordering::Relaxed),
                ahead(entry),
                zygote.memory() / 1024,
                state.users.count(),
                state.users.share(zygote.memory()) / 1024,
                state.import_us.unwrap_or(0) / 1000,
            )),
        }
        if !state.replicas.is_empty() {
            text.push_str(&format!(" replicas={}", state.replicas.len()));
        }
        if let Some(zygote) = &state.zygote {
            if zygote.ready.immortal > 0 {
                text.push_str(&format!(" immortal={} objects", zygote.ready.immortal));
            }
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
            let (samples, written, read) = zygote.working_set().size();
            if samples > 0 {
                text.push_str(&format!(" working set of {samples}: {written} pages written, {read} read"));
            }
            for (module, reason) in &zygote.ready.failed {
                text.push_str(&format!("\n{}  {module} failed: {reason}", "  ".repeat(depth)));
            }
        }
        text.push('\n');
        drop(state);
        draw(text, entries, ahead, Some(entry.id), depth + 1);
    }
}
