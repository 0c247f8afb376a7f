//! Who may be asked to give up a sandbox when all places are taken: the idle
//! instances, the longest idle first; where none is idle, the next that is.
//! Runs in the worker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

/// The idle instances of a worker, and who waits for one.
#[derive(Debug, Default)]
pub struct IdleInstances(Mutex<Lists>);

#[derive(Debug, Default)]
struct Lists {
    idle: BTreeMap<(Instant, u64), Arc<Notify>>,
    /// Numbers of those that found none idle, the oldest first.
    wanting: BTreeSet<u64>,
    next: u64,
}

/// An entry, gone when dropped.
#[derive(Debug)]
pub struct Idle {
    key: (Instant, u64),
    all: Arc<IdleInstances>,
    asked: Arc<Notify>,
}

/// Somebody waits for a place; given up when dropped.
#[derive(Debug)]
pub struct Wanting {
    number: u64,
    all: Arc<IdleInstances>,
}

impl IdleInstances {
    /// Says that instance `id` is idle since now.
    pub fn enter(self: &Arc<Self>, id: u64) -> Idle {
        let (key, asked) = ((Instant::now(), id), Arc::new(Notify::new()));
        let mut lists = self.lists();
        if lists.wanting.pop_first().is_some() {
            asked.notify_one();
        } else {
            lists.idle.insert(key, Arc::clone(&asked));
        }
        drop(lists);
        Idle { key, all: Arc::clone(self), asked }
    }

    /// Asks the one that has been idle longest to give its sandbox up, or the
    /// next one to become idle.
    pub fn want_one(self: &Arc<Self>) -> Wanting {
        let mut lists = self.lists();
        let number = lists.next;
        lists.next += 1;
        match lists.idle.pop_first() {
            Some((_, asked)) => asked.notify_one(),
            None => drop(lists.wanting.insert(number)),
        }
        drop(lists);
        Wanting { number, all: Arc::clone(self) }
    }

    fn lists(&self) -> MutexGuard<'_, Lists> {
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
        self.all.lists().idle.remove(&self.key);
    }
}

impl Drop for Wanting {
    fn drop(&mut self) {
        self.all.lists().wanting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether an instance was asked.
    async fn is_asked(idle: &Idle) -> bool {
        tokio::select! {
            biased;
            () = idle.asked() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn the_longest_idle_is_asked_first_and_only_once() {
        let all = Arc::new(IdleInstances::default());
        let (first, second) = (all.enter(1), all.enter(2));
        let _wanting = all.want_one();
        assert!(is_asked(&first).await && !is_asked(&second).await);
        assert!(!is_asked(&first).await);
    }

    #[tokio::test]
    async fn where_none_is_idle_the_next_that_is_will_be_asked() {
        let all = Arc::new(IdleInstances::default());
        drop(all.enter(1));
        let (_one, _two) = (all.want_one(), all.want_one());
        drop(all.want_one());
        let entered = [all.enter(2), all.enter(3), all.enter(4)];
        let mut asked = 0;
        for idle in &entered {
            asked += usize::from(is_asked(idle).await);
        }
        assert_eq!(asked, 2, "those that still wait, and nobody who left");
    }
}
