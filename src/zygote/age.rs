//! When a node has served long enough and another takes its place. Pure: no I/O, no
//! clock. Runs in the worker.
//!
//! ```text
//! root 1 ── node, of root 1      one of them is old: root 2 is started
//! root 2 ── node, of root 1      behind: grown again, when it is next asked for
//! root 2 ── node, of root 2
//! ```
//!
//! All that descends from one start of the interpreter has its address layout and its
//! seed of string hashes, and no fork changes them: only another root does.

use std::time::Duration;

/// How long a node may serve.
#[derive(Debug, Clone, Copy)]
pub struct Ageing {
    /// Children that it forked; 0 is for ever.
    pub max_forks: u64,
    /// `None` is for ever.
    pub max_age: Option<Duration>,
}

/// A standing node.
#[derive(Debug, Clone, Copy)]
pub struct Aged {
    pub forks: u64,
    pub age: Duration,
    /// The root that it descends from; its own number if it is one.
    pub root: u64,
}

/// What is to be grown again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    Nothing,
    /// The node alone.
    Node,
    /// The root, and all on the way down to the node.
    Root,
}

impl Ageing {
    /// What is due for a node of a tree whose root now is number `root`.
    pub fn due(&self, node: &Aged, root: u64) -> Due {
        let old = (self.max_forks > 0 && node.forks >= self.max_forks)
            || self.max_age.is_some_and(|bound| node.age >= bound);
        match (self.is_off(), node.root == root) {
            (true, _) => Due::Nothing,
            (false, false) => Due::Node,
            (false, true) if old => Due::Root,
            (false, true) => Due::Nothing,
        }
    }

    fn is_off(&self) -> bool {
        self.max_forks == 0 && self.max_age.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Ageing = Ageing { max_forks: 100, max_age: Some(Duration::from_secs(60)) };
    const OFF: Ageing = Ageing { max_forks: 0, max_age: None };

    fn node(forks: u64, age_s: u64, root: u64) -> Aged {
        Aged { forks, age: Duration::from_secs(age_s), root }
    }

    #[test]
    fn a_node_within_both_bounds_stays() {
        assert_eq!(BOUNDS.due(&node(99, 59, 1), 1), Due::Nothing);
    }

    #[test]
    fn a_node_beyond_either_bound_has_the_root_grown_again() {
        assert_eq!(BOUNDS.due(&node(100, 0, 1), 1), Due::Root);
        assert_eq!(BOUNDS.due(&node(0, 60, 1), 1), Due::Root);
    }

    #[test]
    fn a_node_of_an_earlier_root_is_grown_again_whatever_its_age_and_the_root_stays() {
        assert_eq!(BOUNDS.due(&node(0, 0, 1), 2), Due::Node);
        assert_eq!(BOUNDS.due(&node(1000, 1000, 1), 2), Due::Node);
    }

    #[test]
    fn each_bound_can_be_off_and_with_both_off_nothing_ever_goes() {
        let forks = Ageing { max_age: None, ..BOUNDS };
        assert_eq!(forks.due(&node(0, 1_000_000, 1), 1), Due::Nothing);
        assert_eq!(forks.due(&node(100, 0, 1), 1), Due::Root);
        assert_eq!(OFF.due(&node(u64::MAX, 1_000_000, 1), 1), Due::Nothing);
        assert_eq!(OFF.due(&node(0, 0, 1), 2), Due::Nothing);
    }
}
