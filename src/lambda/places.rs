//! Who waits for a place among `max_sandboxes`, and how long that would take. Runs in the worker.
//!
//! ```text
//! none free ──▶ too many wait? refused at once ──▶ wait ──▶ a place: the next sample
//! ```
//!
//! Places are given in turn, so the wait is the number of those that wait, times the time
//! from one place that was given to the next.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::pace::Pace;

/// Those that wait.
#[derive(Debug)]
pub struct Places {
    /// Longest wait.
    bound: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: usize,
    /// Since when somebody has been next in turn.
    next_since: Option<Instant>,
    last_given: Option<Instant>,
    /// Times between two places that were given.
    pace: Pace,
}

/// One that waits, gone when dropped.
#[derive(Debug)]
pub(super) struct InTurn<'a>(&'a Places);

impl Places {
    /// A wait of at most `bound`.
    pub fn new(bound: Duration) -> Self {
        Self { bound, inner: Mutex::default() }
    }

    /// The wait of who comes now.
    pub(super) fn wait(&self) -> Duration {
        let inner = self.inner();
        match inner.waiting {
            0 => Duration::ZERO,
            waiting => inner.pace.wait(waiting, None),
        }
    }

    /// Waits in turn from now on, for `left` at most; `None` if that would not be enough.
    /// The first is always let in.
    pub(super) fn enter(&self, left: Duration) -> Option<InTurn<'_>> {
        let mut inner = self.inner();
        if inner.waiting > 0 && inner.pace.wait(inner.waiting, None) > left {
            return None;
        }
        if inner.waiting == 0 {
            // What was long ago says nothing of now.
            if inner.last_given.is_some_and(|given| given.elapsed() > self.bound) {
                inner.pace.forget();
            }
            inner.next_since = Some(Instant::now());
        }
        inner.waiting += 1;
        drop(inner);
        Some(InTurn(self))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InTurn<'_> {
    /// It has its place.
    pub(super) fn given(self) {
        let mut inner = self.0.inner();
        let now = Instant::now();
        if let Some(since) = inner.next_since.replace(now) {
            inner.pace.took(now.saturating_duration_since(since));
        }
        inner.last_given = Some(now);
    }
}

impl Drop for InTurn<'_> {
    fn drop(&mut self) {
        self.0.inner().waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_millis(500);

    #[test]
    fn nobody_is_refused_where_nobody_waits() {
        let places = Places::new(BOUND);
        (0..8).for_each(|_| places.inner().pace.took(Duration::from_secs(60)));
        assert_eq!(places.wait(), Duration::ZERO);
        let first = places.enter(BOUND).expect("it is the first");
        assert!(places.enter(BOUND).is_none(), "a minute is before it");
        drop(first);
        assert!(places.enter(BOUND).is_some());
    }

    #[test]
    fn as_many_wait_as_find_a_place_in_time() {
        let places = Places::new(BOUND);
        (0..8).for_each(|_| places.inner().pace.took(Duration::from_millis(50)));
        let waiting: Vec<_> = (0..100).map_while(|_| places.enter(BOUND)).collect();
        assert_eq!(waiting.len(), 11);
        assert!(places.enter(Duration::from_secs(1)).is_some(), "who may wait longer does");
        assert_eq!(places.wait(), Duration::from_millis(550));
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let places = Places::new(Duration::from_millis(1));
        (0..8).for_each(|_| places.enter(BOUND).expect("the first").given());
        (0..8).for_each(|_| places.inner().pace.took(Duration::from_secs(60)));
        std::thread::sleep(Duration::from_millis(5));
        let _first = places.enter(BOUND).expect("the first");
        assert!(places.enter(BOUND).is_some(), "nothing is known any more");
    }
}
