//! Which functions a node's memory is charged to. Pure: no I/O, no clock. Runs in the
//! worker.
//!
//! ```text
//! start of f ──▶ f is a user of the node and of all above it
//! f removed  ──▶ it is none any more; a node whose last user it was goes
//! ```
//!
//! A node's memory is nobody's own: it is there for every function that is forked from the
//! node or from one below it. So it is divided among them, and it does not outlive them.

use std::collections::BTreeSet;

/// Functions that were started from a node, or from one below it.
#[derive(Debug, Default)]
pub struct Users(BTreeSet<String>);

impl Users {
    /// Notes a start of `function`.
    pub fn note(&mut self, function: &str) {
        if !self.0.contains(function) {
            self.0.insert(function.to_owned());
        }
    }

    /// Forgets a function that is no longer there. Returns whether it was the last user.
    pub fn forget(&mut self, function: &str) -> bool {
        self.0.remove(function) && self.0.is_empty()
    }

    /// Number of functions that use the node.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns what each user is charged of `bytes`.
    pub fn share(&self, bytes: u64) -> u64 {
        bytes / (self.0.len().max(1) as u64)
    }

    /// Whether `function` is charged for the node.
    pub fn has(&self, function: &str) -> bool {
        self.0.contains(function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_memory_is_divided_among_its_users() {
        let mut users = Users::default();
        assert_eq!(users.share(90), 90);
        for function in ["a", "b", "a", "c"] {
            users.note(function);
        }
        assert_eq!((users.count(), users.share(90)), (3, 30));
        assert!(users.has("b") && !users.has("d"));
    }

    #[test]
    fn only_the_last_user_takes_the_node_along() {
        let mut users = Users::default();
        assert!(!users.forget("a"), "a node that nobody used yet is kept");
        users.note("a");
        users.note("b");
        assert!(!users.forget("a") && !users.forget("a") && users.forget("b"));
    }
}
