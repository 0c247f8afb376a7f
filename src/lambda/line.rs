//! The requests of one function that wait, bounded by how long that takes. Runs in the worker.
//!
//! ```text
//! enter ──▶ Waiting ──begin──▶ Running ──end──▶ Over
//!   │          └── waited for the bound, or its client left ──▶ Over: nothing of it ran
//!   └── could not begin within the bound ──▶ refused at once
//! ```
//!
//! A turn owns its request until it begins, so that one that is given up holds no body,
//! though it is in the function's channel still. Whether it begins or is given up is decided
//! under one lock: a request that was refused has run nowhere.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Invocation;
use super::pace::Pace;
use super::places::Places;

/// The line of one function.
#[derive(Debug)]
pub(super) struct Line {
    /// Longest wait.
    bound: Duration,
    places: Arc<Places>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: usize,
    /// When the one that runs began.
    running: Option<Instant>,
    /// Calls, from when they begin to when they end: waits for a place are in it.
    pace: Pace,
    /// Whether the function's code is being made ready: that has bounds of its own.
    preparing: bool,
}

/// A request could not begin within the bound.
#[derive(Debug)]
pub(super) struct TooSlow;

impl Line {
    pub(super) fn new(bound: Duration, places: Arc<Places>) -> Arc<Self> {
        Arc::new(Self { bound, places, inner: Mutex::default() })
    }

    pub(super) fn bound(&self) -> Duration {
        self.bound
    }

    /// Takes a request in.
    ///
    /// # Errors
    /// It would wait longer than the bound. The first in the line is always taken.
    pub(super) fn enter(self: &Arc<Self>, invocation: Invocation) -> Result<Arc<Turn>, TooSlow> {
        let entered = Instant::now();
        let mut inner = self.inner();
        let is_first = inner.waiting == 0 && inner.running.is_none();
        if !is_first {
            let running = inner.running.map(|since| entered.saturating_duration_since(since));
            let wait = inner.pace.wait(inner.waiting, running).saturating_add(self.places.wait());
            if wait > self.bound {
                return Err(TooSlow);
            }
        }
        inner.waiting += 1;
        drop(inner);
        let stage = Mutex::new(Stage::Waiting(Box::new(invocation)));
        Ok(Arc::new(Turn { line: Arc::clone(self), is_first, entered, stage }))
    }

    /// Says that the function's code is being made ready, or is.
    pub(super) fn set_preparing(&self, preparing: bool) {
        self.inner().preparing = preparing;
    }

    pub(super) fn is_preparing(&self) -> bool {
        self.inner().preparing
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request's place in the line, given up when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    line: Arc<Line>,
    is_first: bool,
    entered: Instant,
    stage: Mutex<Stage>,
}

#[derive(Debug)]
enum Stage {
    Waiting(Box<Invocation>),
    Running(Instant),
    Over,
}

impl Turn {
    /// Whether nobody was before it.
    pub(super) fn is_first(&self) -> bool {
        self.is_first
    }

    pub(super) fn entered(&self) -> Instant {
        self.entered
    }

    /// Time that is left of the bound for a wait for a place. One that was first has all of it:
    /// others did not make it wait.
    pub(super) fn left(&self) -> Duration {
        let waited = match *self.stage() {
            _ if self.is_first => Duration::ZERO,
            Stage::Running(began) => began.saturating_duration_since(self.entered),
            _ => self.entered.elapsed(),
        };
        self.line.bound.saturating_sub(waited)
    }

    /// The method of a request that waits.
    pub(super) fn method(&self) -> Option<String> {
        match &*self.stage() {
            Stage::Waiting(invocation) => Some(invocation.method.clone()),
            _ => None,
        }
    }

    /// Begins: hands the request over. `None` where it was given up.
    pub(super) fn begin(&self) -> Option<Invocation> {
        let mut stage = self.stage();
        if !matches!(*stage, Stage::Waiting(_)) {
            return None;
        }
        let now = Instant::now();
        let Stage::Waiting(invocation) = std::mem::replace(&mut *stage, Stage::Running(now)) else {
            return None;
        };
        let mut inner = self.line.inner();
        inner.waiting -= 1;
        inner.running = Some(now);
        Some(*invocation)
    }

    /// Gives it up if it still waits; whether it did.
    pub(super) fn give_up(&self) -> bool {
        let mut stage = self.stage();
        if !matches!(*stage, Stage::Waiting(_)) {
            return false;
        }
        *stage = Stage::Over;
        self.line.inner().waiting -= 1;
        true
    }

    /// Its answer is there.
    pub(super) fn end(&self) {
        let mut stage = self.stage();
        if let Stage::Running(began) = *stage {
            *stage = Stage::Over;
            let mut inner = self.line.inner();
            inner.running = None;
            inner.pace.took(began.elapsed());
        }
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.give_up() {
            self.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const BOUND: Duration = Duration::from_millis(500);

    fn line() -> Arc<Line> {
        Line::new(BOUND, Arc::new(Places::new(BOUND)))
    }

    fn invocation() -> Invocation {
        Invocation {
            function: crate::lambda::FunctionName::new("f").expect("a name"),
            method: "GET".into(),
            path: String::new(),
            query: String::new(),
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    /// A line whose calls take so long.
    fn of_calls(took: Duration) -> Arc<Line> {
        let line = line();
        (0..8).for_each(|_| line.inner().pace.took(took));
        line
    }

    #[test]
    fn the_first_is_taken_however_long_calls_take() {
        let line = of_calls(Duration::from_secs(60));
        for _ in 0..3 {
            let turn = line.enter(invocation()).expect("nobody is before it");
            assert!(turn.is_first() && line.enter(invocation()).is_err());
            assert!(turn.begin().is_some() && line.enter(invocation()).is_err());
            turn.end();
        }
    }

    #[test]
    fn a_burst_that_can_begin_within_the_bound_is_taken() {
        let line = of_calls(Duration::from_millis(10));
        let turns: Vec<_> = (0..100).map_while(|_| line.enter(invocation()).ok()).collect();
        assert_eq!(turns.len(), 51, "fifty of ten milliseconds are before the last");
        drop(turns);
        assert!(line.enter(invocation()).expect("all have left").is_first());
    }

    #[test]
    fn where_nothing_is_known_all_are_taken() {
        let line = line();
        let turns: Vec<_> = (0..1000).map_while(|_| line.enter(invocation()).ok()).collect();
        assert_eq!(turns.len(), 1000);
    }

    #[test]
    fn one_that_was_given_up_does_not_begin_and_one_that_began_is_not_given_up() {
        let line = line();
        let (first, second) =
            (line.enter(invocation()).expect("taken"), line.enter(invocation()).expect("taken"));
        assert!(first.give_up() && first.begin().is_none() && !first.give_up());
        assert!(second.begin().is_some() && !second.give_up() && second.begin().is_none());
        second.end();
        let inner = line.inner();
        assert_eq!((inner.waiting, inner.running), (0, None));
    }
}
