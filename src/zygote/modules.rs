//! Modules below the top level of packages: those that a node imported, and those that a version of a
//! function imports by itself. Runs in the worker; no I/O.
//!
//! ```text
//! head of the entry file ──▶ Head ─┐
//! first answer ──▶ names seen ─────┴▶ OwnModules ─┬▶ all: a node with no others may serve the function
//!                  before the first call          └▶ ask: the modules of a node that would save it time
//! ```
//!
//! A package's own module may be next to empty (`import PIL`), and what its users need is below it
//! (`PIL.Image`). A node that imported that too serves only functions that import it themselves, for a
//! module may change whatever it likes when it is imported.
//!
//! All names come from sandboxes. A name that is not the truth changes what nodes serve the function that
//! said it, and no other: another function's modules are never asked of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

use super::Pin;

/// Dotted names of modules.
pub type Modules = BTreeSet<String>;

/// Modules that a node imports with a package, beyond its top level: those that the package imports by itself
/// when it is used. They are fixed here, and so the same for all functions whatever others do.
pub fn usual(pin: &Pin) -> &'static [&'static str] {
    let major = pin.version().split('.').next().and_then(|major| major.parse::<u32>().ok());
    match (pin.name(), major) {
        // The first `DataFrame` or `Series` of pandas takes it out of numpy, 0.4 ms of a first call.
        ("numpy", Some(2..)) => &["numpy.rec"],
        // The formats that its first `Image.open` loads (`Image.preinit`), 10 ms of a first call.
        ("pillow", _) => &[
            "PIL.BmpImagePlugin",
            "PIL.GifImagePlugin",
            "PIL.JpegImagePlugin",
            "PIL.PngImagePlugin",
            "PIL.PpmImagePlugin",
        ],
        _ => &[],
    }
}

/// Names of one function that are remembered, at most.
const NAMES: usize = 256;
/// Bytes of a name, at most.
const NAME_BYTES: usize = 200;
/// Nodes that are grown for one version of a function, one after the other, at most: a version whose
/// leaves import something else each time would have one grown at each start.
const NODES: usize = 3;

/// Names that the leading import statements of an entry file give.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Head {
    /// Modules that these statements import for certain, and the packages that they are in.
    imported: Modules,
    /// Names that a `from` statement takes out of a module. Each is a module or something else that the
    /// module has, which only its import tells.
    taken: Modules,
}

impl Head {
    /// Reads the JSON text that a sandbox made of the entry file. Names beyond the bounds are left out, and
    /// a text that is not such JSON has no names.
    pub fn parse(json: &[u8]) -> Self {
        let Self { imported, taken } = serde_json::from_slice(json).unwrap_or_default();
        let bounded = |names: Modules| names.into_iter().filter(|name| is_name(name)).take(NAMES).collect();
        Self { imported: bounded(imported), taken: bounded(taken) }
    }
}

/// The modules that one version of a function imports before its handler is called.
#[derive(Debug, Default)]
pub struct OwnModules {
    head: Head,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Modules of the head, and those that leaves were seen to import.
    all: Arc<Modules>,
    /// Modules of the nodes that were asked for, at most [`NODES`].
    asked: Vec<Modules>,
}

impl OwnModules {
    /// Modules of a version that has not run yet.
    pub fn new(head: Head) -> Self {
        let all = Arc::new(head.imported.clone());
        Self { head, known: Known { all, asked: Vec::new() }.into() }
    }

    /// All modules that a node which serves the function may have been told to import.
    pub fn all(&self) -> Arc<Modules> {
        Arc::clone(&self.known().all)
    }

    /// Takes in the names of modules that a leaf imported by itself before its handler's first call, and returns
    /// those that count: what is below `packages`, the names that the packages of its node are imported by.
    pub fn see(&self, names: &[String], packages: &Modules) -> Modules {
        let fits = |name: &&String| is_name(name) && is_below(name, packages);
        let mut seen: Modules = names.iter().take(NAMES).filter(fits).cloned().collect();
        let mut known = self.known();
        let all = Arc::make_mut(&mut known.all);
        let new: Vec<_> = seen.difference(all).take(NAMES.saturating_sub(all.len())).cloned().collect();
        all.extend(new);
        seen.retain(|name| all.contains(name));
        seen
    }

    /// Returns the modules of a node that spares a leaf of the function what it was seen to import, if there is any
    /// and one may be grown. `node` is what the leaf's own node was told to import.
    pub fn ask(&self, node: &Modules, seen: Modules) -> Option<Modules> {
        // The function's own statements say it shortest, and the rest comes with them. What does not, such as
        // imports of its other files, the next leaf imports by itself.
        let direct = |name: &&String| self.head.imported.contains(*name) || self.head.taken.contains(*name);
        let mut wanted: Modules = seen.iter().filter(direct).cloned().collect();
        if wanted.is_empty() {
            wanted = seen;
        }
        if wanted.is_subset(node) {
            return None;
        }
        wanted.extend(node.iter().cloned());
        let mut known = self.known();
        if !known.asked.contains(&wanted) {
            if known.asked.len() == NODES {
                return None;
            }
            known.asked.push(wanted.clone());
        }
        Some(wanted)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether it can be the name of a module.
fn is_name(name: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part.chars().all(|c| c == '_' || c.is_alphanumeric());
    name.len() <= NAME_BYTES && name.split('.').all(part)
}

/// Whether a module is in one of these packages, and not one of them.
fn is_below(name: &str, packages: &Modules) -> bool {
    !packages.contains(name) && name.match_indices('.').any(|(at, _)| packages.contains(&name[..at]))
}

#[cfg(test)]
#[path = "modules_tests.rs"]
mod tests;
