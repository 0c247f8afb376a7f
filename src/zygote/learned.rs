//! Which modules of its packages the leaves of a node import by themselves. Runs in
//! the worker; pure.
//!
//! ```text
//! first answer ─▶ names of modules ─▶ Learned ─┐ a few leaves
//!             the node, grown again ◀── usual ─┘
//! ```
//!
//! A package's own module may be next to empty (`import PIL`), and what its users need is
//! below it (`PIL.Image`): each leaf would import that again. What at least half of the leaves
//! imported, the node's next incarnation imports, once.
//!
//! The names come from sandboxes: only those below the node's own packages count, so a
//! node never imports what its functions did not ask for; their number is bounded.

use std::collections::{BTreeMap, BTreeSet};

/// Leaves that are listened to.
const SAMPLES: u32 = 4;
/// Modules that are kept in mind.
const NAMES: usize = 256;
/// Bytes of a name, at most.
const NAME_BYTES: usize = 200;

/// What leaves of one zygote imported so far.
#[derive(Debug, Default)]
pub struct Learned {
    /// Top-level modules of the node's packages.
    packages: BTreeSet<String>,
    samples: u32,
    seen: BTreeMap<String, u32>,
}

impl Learned {
    /// Nothing yet, of a node whose packages have these top-level modules.
    pub fn of(packages: BTreeSet<String>) -> Self {
        Self { packages, ..Self::default() }
    }

    /// A leaf's first answer named these modules.
    pub fn learn(&mut self, names: &[String]) {
        if self.samples == SAMPLES {
            return;
        }
        self.samples += 1;
        let fitting = names.iter().take(NAMES).filter(|name| is_below(name, &self.packages));
        for name in fitting.collect::<BTreeSet<_>>() {
            if self.seen.len() < NAMES || self.seen.contains_key(name) {
                *self.seen.entry(name.clone()).or_default() += 1;
            }
        }
    }

    /// Whether another leaf's answer is of interest.
    pub fn wants_more(&self) -> bool {
        self.samples < SAMPLES
    }

    /// What at least half of the leaves imported, once enough of them were listened to.
    pub fn usual(&self) -> BTreeSet<String> {
        let enough = !self.wants_more();
        let often = self.seen.iter().filter(|(_, count)| enough && **count * 2 >= self.samples);
        often.map(|(name, _)| name.clone()).collect()
    }
}

fn is_below(name: &str, packages: &BTreeSet<String>) -> bool {
    let part = |part: &str| !part.is_empty() && part.chars().all(|c| c == '_' || c.is_alphanumeric());
    let top = name.split('.').next().unwrap_or_default();
    name.len() <= NAME_BYTES && packages.contains(top) && name.split('.').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(leaves: &[&[&str]]) -> Learned {
        let mut learned = Learned::of(["PIL", "numpy"].map(str::to_owned).into());
        for names in leaves {
            learned.learn(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        }
        learned
    }

    #[test]
    fn what_half_of_the_leaves_imported_is_usual() {
        let some: &[&str] = &["PIL.Image"];
        let more: &[&str] = &["PIL.Image", "PIL.ImageFilter"];
        assert!(learned(&[some, some, some]).usual().is_empty(), "too few to tell");
        assert_eq!(learned(&[more, some, some, &[]]).usual(), ["PIL.Image".to_owned()].into());
        assert_eq!(learned(&[more, more, some, some]).usual().len(), 2);
    }

    #[test]
    fn a_leaf_cannot_make_a_node_import_what_is_not_of_its_packages() {
        let bad: &[&str] = &["os", "antigravity", "PILx", "PIL..x", "PIL.a/b", "PIL.a b", "", ".PIL"];
        assert!(learned(&[bad; 4]).usual().is_empty());
    }

    #[test]
    fn a_leaf_that_names_thousands_of_modules_is_bounded() {
        let names: Vec<String> = (0..10_000).map(|n| format!("PIL.m{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(learned(&[&names, &names, &names, &names]).usual().len() <= NAMES);
    }

    #[test]
    fn later_leaves_are_not_listened_to() {
        let some: &[&str] = &["PIL.Image"];
        assert!(learned(&[&[], &[], &[], &[], some, some, some, some, some]).usual().is_empty());
    }
}
