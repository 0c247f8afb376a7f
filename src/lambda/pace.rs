//! How long a request would wait, from what went before it. Pure: no I/O, no clock.
//!
//! ```text
//! waited-for ── running (its rest) ── waiting ── waiting ── ?
//!                    └────── each as long as the last ones were on average ──────┘
//! ```
//!
//! An estimate refuses requests, so it errs on the low side: few samples are none, the
//! longest of them (a cold start, say) does not count, and whoever is first is never asked.
//! One that was too low costs a wait as long as the bound, not more.

use std::collections::VecDeque;
use std::time::Duration;

/// Samples that an average is of, at most.
const SAMPLES: usize = 16;
/// Samples without which there is no average.
const FEWEST: usize = 4;

/// What the last ones took.
#[derive(Debug, Default)]
pub(super) struct Pace(VecDeque<Duration>);

impl Pace {
    /// Adds what one took.
    pub(super) fn took(&mut self, time: Duration) {
        if self.0.len() == SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(time);
    }

    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    /// The average without the longest; none where too little is known.
    pub(super) fn mean(&self) -> Option<Duration> {
        if self.0.len() < FEWEST {
            return None;
        }
        let longest = self.0.iter().max().copied().unwrap_or_default();
        let sum: Duration = self.0.iter().sum();
        Some((sum - longest) / (self.0.len() as u32 - 1))
    }

    /// The time until one that comes now begins: `waiting` are before it, and one runs since
    /// `running`. Nothing where too little is known.
    pub(super) fn wait(&self, waiting: usize, running: Option<Duration>) -> Duration {
        let Some(mean) = self.mean() else { return Duration::ZERO };
        let rest = running.map_or(Duration::ZERO, |since| mean.saturating_sub(since));
        mean.saturating_mul(u32::try_from(waiting).unwrap_or(u32::MAX)).saturating_add(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn pace(times: &[u64]) -> Pace {
        let mut pace = Pace::default();
        times.iter().for_each(|time| pace.took(MS(*time)));
        pace
    }

    #[test]
    fn little_is_nothing() {
        assert_eq!(pace(&[]).wait(1000, Some(MS(0))), Duration::ZERO);
        assert_eq!(pace(&[9000, 9000, 9000]).wait(1000, None), Duration::ZERO);
    }

    #[test]
    fn one_cold_start_does_not_count() {
        assert_eq!(pace(&[60_000, 10, 10, 10]).mean(), Some(MS(10)));
        assert_eq!(pace(&[10; 100]).mean(), Some(MS(10)));
    }

    #[test]
    fn the_old_fades() {
        let mut pace = pace(&[1000; SAMPLES]);
        (0..SAMPLES).for_each(|_| pace.took(MS(1)));
        assert_eq!(pace.mean(), Some(MS(1)));
        pace.forget();
        assert_eq!(pace.mean(), None);
    }

    #[test]
    fn the_wait_is_the_rest_of_the_one_that_runs_and_all_that_wait() {
        let pace = pace(&[100; 8]);
        assert_eq!(pace.wait(0, None), Duration::ZERO);
        assert_eq!(pace.wait(0, Some(MS(30))), MS(70));
        assert_eq!(pace.wait(3, Some(MS(30))), MS(370));
        // Longer than ever: it may end any time.
        assert_eq!(pace.wait(3, Some(MS(5000))), MS(300));
        assert!(pace.wait(usize::MAX, Some(MS(0))) > MS(1 << 38));
    }
}
