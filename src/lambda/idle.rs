//! Who may be asked to give up a sandbox when all places are taken: the idle
//! instances, the longest idle first. Runs in the worker.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

/// The idle instances of a worker.
#[derive(Debug, Default)]
pub struct IdleInstances(Mutex<BTreeMap<(Instant, u64), Arc<Notify>>>);

/// An entry, gone when dropped.
#[derive(Debug)]
pub struct Idle {
    key: (Instant, u64),
    all: Arc<IdleInstances>,
    asked: Arc<Notify>,
}

impl IdleInstances {
    /// Says that instance `id` is idle since now.
    pub fn enter(self: &Arc<Self>, id: u64) -> Idle {
        let (key, asked) = ((Instant::now(), id), Arc::new(Notify::new()));
        self.entries().insert(key, Arc::clone(&asked));
        Idle { key, all: Arc::clone(self), asked }
    }

    /// Asks the one that has been idle longest to give its sandbox up; false if none is idle.
    pub fn ask_longest(&self) -> bool {
        let first = self.entries().pop_first();
        first.map(|(_, asked)| asked.notify_one()).is_some()
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<(Instant, u64), Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    /// Resolves when the sandbox is wanted.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.all.entries().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_longest_idle_is_asked_first_and_only_once() {
        let all = Arc::new(IdleInstances::default());
        let (first, second) = (all.enter(1), all.enter(2));
        assert!(all.ask_longest());
        first.asked().await;
        drop(second);
        assert!(!all.ask_longest(), "a busy instance is never asked");
    }
}
