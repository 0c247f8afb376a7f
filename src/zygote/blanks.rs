//! Blanks: leaves forked ahead of need. Runs in the worker; the policy is pure.
//!
//! ```text
//! start ── take ──▶ a blank is specialized            nothing ready: fork on the path
//!   └─ afterwards ──▶ refill, when no start is on the path (or none is ready)
//! a node unused for a while, or a place wanted: blanks are given up first
//! ```
//!
//! How many is the longest queue of late: of the starts that would have waited,
//! had there been no blank, while one after the other is made (Lindley's recursion).
//!
//! ```text
//!   backlog = max(0, backlog − gap ÷ time to make one) + 1      at each start
//!   peak    = the highest backlog, forgotten over some dozens of starts
//!
//!   ready:  0 ─────── low = peak + 1 ─────── high = half a peak more
//!                refill from below here ─▶ up to here
//! ```
//!
//! So one number has the rate, the burstiness and the refill time in it: a function
//! that comes alone needs one and a spare, bursts of six need six, and what comes faster than
//! blanks can be made needs all that there may be. Between the marks nothing is
//! made: not each start is followed by a fork. Android's pool of unspecialized
//! app processes has the same two marks. A blank has seen no function's data and is
//! specialized once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Leaf;
use super::prefault::Skipped;
use crate::sandbox::Limits;

/// A node that was not used for so long keeps no blanks.
pub const COLD_AFTER: Duration = Duration::from_secs(60);
/// How fast the measured refill time follows the present: weight of the newest.
const NEWEST: f64 = 0.2;
/// How fast a peak is forgotten: what a start takes of its distance to the present.
const FORGOTTEN: f64 = 1.0 / 32.0;
/// A longer queue says no more than this one.
const LONGEST_QUEUE: f64 = 64.0;

/// What is known of the starts from one node.
#[derive(Debug, Clone, Copy, Default)]
pub struct Demand {
    last: Option<Instant>,
    /// Mean time that making a blank takes, in seconds.
    refill_s: f64,
    backlog: f64,
    peak: f64,
}

/// Between which numbers a node's blanks are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks {
    /// With fewer a refill begins …
    pub low: usize,
    /// … and goes on to here.
    pub high: usize,
}

impl Demand {
    /// A start at `now`.
    pub fn started(&mut self, now: Instant) {
        let gap_s = self.last.map_or(f64::INFINITY, |last| now.duration_since(last).as_secs_f64());
        let made = if self.refill_s > 0.0 { gap_s / self.refill_s } else { f64::INFINITY };
        self.backlog = ((self.backlog - made).max(0.0) + 1.0).min(LONGEST_QUEUE);
        let faded = self.peak + FORGOTTEN * (self.backlog - self.peak);
        self.peak = faded.max(self.backlog);
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

    /// When it was last used.
    pub fn last(&self) -> Option<Instant> {
        self.last
    }
}

/// How many blanks a node should have, given `limit` for one node and the places
/// that are free for all: half of those stay for starts.
pub fn marks(demand: &Demand, now: Instant, limit: usize, free: usize) -> Marks {
    if !demand.is_hot(now) {
        return Marks::default();
    }
    let burst = demand.peak.ceil() as usize;
    // One more than a burst takes, so that the next refill need not begin beside a start.
    let high = (burst + 1 + burst / 2).min(limit).min(free / 2);
    // Some way below, also where the limit is all there is.
    let low = (burst + 1).min(high - high / 4);
    Marks { low, high }
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
    /// Starts that found none.
    pub missed: u64,
    /// How often one populated nothing, and why the last time.
    pub skipped: Option<(u64, Skipped)>,
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

    /// Whether a refill should begin, or go on.
    pub fn lacks(&self, marks: Marks, refilling: bool) -> bool {
        let mark = if refilling { marks.high } else { marks.low };
        self.ready.len() + self.coming < mark
    }

    /// One of them populated nothing.
    pub fn skip(&mut self, reason: Skipped) {
        self.skipped = Some((self.skipped.map_or(1, |(times, _)| times + 1), reason));
    }

    /// Gives all up.
    pub fn clear(&mut self) {
        self.ready.clear();
    }
}

#[cfg(test)]
#[path = "blanks_tests.rs"]
mod tests;
