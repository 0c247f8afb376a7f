//! When a node is the bottleneck and gets another zygote of the same imports. Pure:
//! no I/O; the clock's readings are data. Runs in the worker.
//!
//! ```text
//! starts ──▶ the zygote with the fewest waiting ──▶ one fork at a time
//!              all of them busy most of the time: one more, up to the limit
//!              one that was not needed for a while: given up
//! ```
//!
//! The first is taken where none waits, so that a second has work only while the first
//! is busy: what was unused for long is not missed.

use std::time::{Duration, Instant};

/// A replica that was not used for so long goes.
pub const UNUSED_AFTER: Duration = Duration::from_secs(60);
/// How fast the measured load follows the present: weight of the newest fork.
const NEWEST: f64 = 0.1;
/// Forks in a row before the load is believed: one burst is none.
const SETTLED: u32 = 16;
/// Share of its time that a zygote may fork before it gets company.
const BUSY: f64 = 0.7;
/// Places that must be left for leaves, for each one that a replica takes.
const PLACES: usize = 4;

/// How much of its time a zygote forks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    last: Option<Instant>,
    forks: u32,
    /// Mean time between the ends of two forks, in seconds.
    gap_s: f64,
    /// Mean time that a fork takes, in seconds.
    fork_s: f64,
}

impl Load {
    /// A fork that took so long ended at `now`.
    pub fn forked(&mut self, now: Instant, took: Duration) {
        let gap = self.last.map(|last| now.duration_since(last));
        match gap {
            Some(gap) if gap < UNUSED_AFTER => {
                let follow = |mean: f64, new: Duration| mean + NEWEST * (new.as_secs_f64() - mean);
                self.gap_s = if self.forks < 2 { gap.as_secs_f64() } else { follow(self.gap_s, gap) };
                self.fork_s = follow(self.fork_s, took);
                self.forks += 1;
            }
            _ => *self = Self { forks: 1, fork_s: took.as_secs_f64(), ..Self::default() },
        }
        self.last = Some(now);
    }

    /// The share of its time that it forks; 0 while too little is known.
    pub fn utilisation(&self, now: Instant) -> f64 {
        let Some(last) = self.last else { return 0.0 };
        let gap = self.gap_s.max(now.duration_since(last).as_secs_f64());
        if self.forks < SETTLED || gap == 0.0 { 0.0 } else { (self.fork_s / gap).min(1.0) }
    }

    /// Whether it forked lately.
    pub fn is_used(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now.duration_since(last) < UNUSED_AFTER)
    }
}

/// Whether a node whose zygotes are loaded like this should get one more: none of
/// them has time to spare, and neither `limit` nor the free places forbid it.
pub fn wants_another(loads: &[f64], limit: usize, free: usize) -> bool {
    !loads.is_empty() && loads.len() < limit && free > PLACES && loads.iter().all(|load| *load > BUSY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(gap_ms: u64, fork_ms: u64, forks: u32) -> (Load, Instant) {
        let (mut load, mut now) = (Load::default(), Instant::now());
        for _ in 0..forks {
            now += Duration::from_millis(gap_ms);
            load.forked(now, Duration::from_millis(fork_ms));
        }
        (load, now)
    }

    #[test]
    fn a_zygote_that_forks_most_of_the_time_gets_company_and_an_idle_one_does_not() {
        let (busy, now) = load(10, 9, 100);
        assert!(wants_another(&[busy.utilisation(now)], 2, 100));
        let (idle, now) = load(100, 9, 100);
        assert!(!wants_another(&[idle.utilisation(now)], 2, 100));
    }

    #[test]
    fn one_that_has_time_to_spare_is_enough() {
        assert!(!wants_another(&[0.95, 0.4], 4, 100));
        assert!(wants_another(&[0.95, 0.9], 4, 100));
    }

    #[test]
    fn neither_the_limit_nor_the_last_places_are_taken() {
        assert!(!wants_another(&[1.0], 1, 100));
        assert!(!wants_another(&[1.0, 1.0], 2, 100));
        assert!(!wants_another(&[1.0], 2, PLACES));
        assert!(!wants_another(&[], 2, 100));
    }

    #[test]
    fn a_burst_that_is_over_counts_for_nothing() {
        let (burst, now) = load(10, 9, 5);
        assert_eq!(burst.utilisation(now), 0.0);
        let (busy, now) = load(10, 9, 100);
        assert!(busy.utilisation(now + Duration::from_secs(1)) < 0.1);
        assert!(busy.is_used(now) && !busy.is_used(now + UNUSED_AFTER));
    }
}
