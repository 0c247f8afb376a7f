//! Which node goes when there is no room for another. Pure: no I/O; the clock's
//! readings are data. Runs in the worker.

use std::time::{Duration, Instant};

/// A node, as the choice sees it.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    pub id: u64,
    /// When a function last asked for it.
    pub used: Instant,
    /// The root, or something depends on it: a child, a leaf, a start under way.
    pub held: bool,
}

/// The node that was unused longest among those that nothing depends on.
pub fn victim(nodes: impl IntoIterator<Item = Kept>) -> Option<u64> {
    nodes.into_iter().filter(|node| !node.held).min_by_key(|node| (node.used, node.id)).map(|node| node.id)
}

/// Whether a node that nobody else depends on was unused for longer than `bound`.
pub fn cold(node: &Kept, now: Instant, bound: Duration) -> bool {
    !node.held && now.saturating_duration_since(node.used) > bound
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(held: [bool; 3]) -> Vec<Kept> {
        let now = Instant::now();
        let kept = |(id, held)| Kept { id, used: now + Duration::from_secs(10 - id), held };
        (0..3).zip(held).map(kept).collect()
    }

    #[test]
    fn the_node_that_was_unused_longest_goes() {
        assert_eq!(victim(nodes([false, false, false])), Some(2));
    }

    #[test]
    fn a_node_that_something_depends_on_never_goes() {
        assert_eq!(victim(nodes([false, true, true])), Some(0));
        assert_eq!(victim(nodes([true, true, true])), None);
    }

    #[test]
    fn a_node_is_cold_once_it_was_unused_for_longer_than_its_bound() {
        let (used, bound) = (Instant::now(), Duration::from_secs(5));
        let node = Kept { id: 1, used, held: false };
        assert!(!cold(&node, used + bound, bound) && cold(&node, used + 2 * bound, bound));
        assert!(!cold(&Kept { held: true, ..node }, used + 2 * bound, bound));
    }
}
