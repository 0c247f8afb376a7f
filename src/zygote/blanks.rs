//! Blanks: leaves forked ahead of need. Runs in the worker; the policy is pure.
//!
//! ```text
//! start ── take ──▶ a blank is specialized            nothing ready: fork on the path
//!   └─ afterwards ──▶ refill, when no start is on the path (or none is ready)
//! a node unused for a while, or a place wanted: blanks are given up first
//! ```
//!
//! How many: what arrives while one is being made, and one more for bursts (the
//! square root, as for a Poisson stream), after Android's pool of unspecialized
//! app processes. A blank has seen no function's data and is specialized once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Leaf;
use crate::sandbox::Limits;

/// A node that was not used for so long keeps no blanks.
pub const COLD_AFTER: Duration = Duration::from_secs(60);
/// How fast the measured rate follows the present: weight of the newest gap.
const NEWEST: f64 = 0.2;

/// What is known of the starts from one node.
#[derive(Debug, Clone, Copy, Default)]
pub struct Demand {
    last: Option<Instant>,
    /// Mean time between starts, in seconds.
    gap_s: f64,
    /// Mean time that making a blank takes, in seconds.
    refill_s: f64,
}

impl Demand {
    /// A start at `now`.
    pub fn started(&mut self, now: Instant) {
        if let Some(last) = self.last {
            let gap = now.duration_since(last).as_secs_f64();
            self.gap_s = if self.gap_s == 0.0 { gap } else { self.gap_s + NEWEST * (gap - self.gap_s) };
        }
        self.last = Some(now);
    }

    /// A blank took so long to make.
    pub fn refilled(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.refill_s =
            if self.refill_s == 0.0 { took } else { self.refill_s + NEWEST * (took - self.refill_s) };
    }

    /// Whether the node was used lately.
    pub fn is_hot(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now.duration_since(last) < COLD_AFTER)
    }
}

/// How many blanks a node should have, given `limit` for one node and the places
/// that are free for all: half of those stay for starts.
pub fn wanted(demand: &Demand, now: Instant, limit: usize, free: usize) -> usize {
    if !demand.is_hot(now) {
        return 0;
    }
    // No gap measured yet: one start is expected to be followed by another.
    let during_refill = if demand.gap_s > 0.0 { demand.refill_s / demand.gap_s } else { 0.0 };
    let count = during_refill + during_refill.sqrt();
    (count.ceil() as usize + 1).min(limit).min(free / 2)
}

/// The blanks of one node.
#[derive(Debug, Default)]
pub struct Blanks {
    pub demand: Demand,
    /// What the last start's leaf may use.
    pub limits: Option<Limits>,
    ready: VecDeque<Leaf>,
    /// Being made.
    pub coming: usize,
}

impl Blanks {
    /// A start from this node.
    pub fn started(&mut self, now: Instant, limits: &Limits) {
        self.demand.started(now);
        self.limits = Some(*limits);
    }

    /// The next one that is still what it was.
    pub fn take(&mut self) -> Option<Leaf> {
        while let Some(leaf) = self.ready.pop_front() {
            if leaf.is_quiet() {
                return Some(leaf);
            }
        }
        None
    }

    pub fn add(&mut self, leaf: Leaf) {
        self.ready.push_back(leaf);
    }

    pub fn len(&self) -> usize {
        self.ready.len()
    }

    /// How many are missing.
    pub fn lacking(&self, now: Instant, limit: usize, free: usize) -> usize {
        wanted(&self.demand, now, limit, free).saturating_sub(self.ready.len() + self.coming)
    }

    /// Gives all up.
    pub fn clear(&mut self) {
        self.ready.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(gap_ms: u64, refill_ms: u64, starts: u32) -> (Demand, Instant) {
        let (mut demand, mut now) = (Demand::default(), Instant::now());
        for _ in 0..starts {
            demand.started(now);
            demand.refilled(Duration::from_millis(refill_ms));
            now += Duration::from_millis(gap_ms);
        }
        (demand, now)
    }

    #[test]
    fn a_node_that_nobody_used_has_none() {
        assert_eq!(wanted(&Demand::default(), Instant::now(), 8, 100), 0);
        let (demand, now) = demand(10, 3, 5);
        assert_eq!(wanted(&demand, now + COLD_AFTER, 8, 100), 0);
    }

    #[test]
    fn a_rare_function_has_one_spare_and_a_busy_one_more() {
        let (rare, now) = demand(5_000, 3, 5);
        assert_eq!(wanted(&rare, now, 8, 100), 2);
        let (busy, now) = demand(1, 5, 50);
        assert!(wanted(&busy, now, 100, 1000) >= 8);
    }

    #[test]
    fn blanks_never_take_the_places_that_starts_need() {
        let (busy, now) = demand(1, 5, 50);
        assert_eq!(wanted(&busy, now, 4, 1000), 4);
        assert_eq!(wanted(&busy, now, 100, 5), 2);
        assert_eq!(wanted(&busy, now, 100, 1), 0);
    }
}
