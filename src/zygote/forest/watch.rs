//! Looks at the memory while there are blanks or may be. Runs in the worker.
//!
//! ```text
//!            a start wakes it             no node is hot
//!   asleep ──────────────────▶ looking ──────────────────▶ asleep
//!                                │ every 200 ms: control groups, /proc/meminfo
//!                                └─▶ Pressed: blanks go     Room again: refills
//! ```
//!
//! A look costs about 0.2 ms when the machine is quiet, so nobody looks for a worker that
//! has nothing to do, and no start waits for one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Forest;
use crate::sandbox::memory::MachineMemory;
use crate::zygote::pressure::{Gauge, Reading, Verdict, pool, surplus};

/// The time between two looks.
const EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
pub(super) struct Watch {
    gauge: Mutex<Gauge>,
    looked: Mutex<Option<Instant>>,
    wanted: Arc<Notify>,
}

impl Watch {
    /// A node is in use.
    pub fn wake(&self) {
        self.wanted.notify_one();
    }

    pub fn gauge(&self) -> MutexGuard<'_, Gauge> {
        self.gauge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn looked(&self) -> MutexGuard<'_, Option<Instant>> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_fresh(&self) -> bool {
        self.looked().is_some_and(|looked| looked.elapsed() < EVERY)
    }
}

impl Forest {
    /// Whether there is memory for another blank, by a look that is not old.
    pub(super) async fn has_room(self: &Arc<Self>) -> bool {
        if !self.watch.is_fresh() {
            self.look().await;
        }
        self.watch.gauge().last() == Some(Verdict::Room)
    }

    /// What the memory was judged before and what it is now.
    async fn look(self: &Arc<Self>) -> (Option<Verdict>, Option<Verdict>) {
        let forest = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || forest.read()).await;
        *self.watch.looked() = Some(Instant::now());
        let mut gauge = self.watch.gauge();
        let before = gauge.last();
        match read {
            Ok(Some(reading)) => (before, Some(gauge.judge(reading))),
            _ => (before, before),
        }
    }

    fn read(&self) -> Option<Reading> {
        let read = || -> Result<Reading, String> {
            let MachineMemory { total, available } =
                MachineMemory::now().map_err(|error| error.to_string())?;
            let in_use = self.parts.sandboxes.memory_in_use().map_err(|error| error.to_string())?;
            Ok(Reading { pool: pool(self.parts.mem_pool_mib, total), in_use, total, available })
        };
        read().inspect_err(|error| tracing::warn!(error, "the memory in use cannot be read")).ok()
    }

    /// Does what a look asks for.
    async fn obey(self: &Arc<Self>) {
        match self.look().await {
            (_, Some(Verdict::Pressed)) => {
                let gone = self.give_up_blanks(surplus).await;
                if gone > 0 {
                    tracing::info!(blanks = gone, "blanks were given up for want of memory");
                }
            }
            (before, Some(Verdict::Room)) if before != Some(Verdict::Room) => {
                for tree in self.trees.lock().await.values() {
                    let entries = tree.entries().clone();
                    entries.iter().for_each(|entry| self.replenish(tree, entry));
                }
            }
            _ => {}
        }
    }

    /// Whether a node has blanks, or may.
    async fn is_in_use(&self) -> bool {
        let in_use = |entry: &Arc<super::Entry>| {
            let blanks = entry.blanks();
            blanks.len() > 0 || blanks.demand.is_hot(Instant::now())
        };
        self.trees.lock().await.values().any(|tree| tree.entries().iter().any(in_use))
    }
}

pub(super) async fn watchman(forest: Weak<Forest>) {
    loop {
        let Some(wanted) = forest.upgrade().map(|forest| Arc::clone(&forest.watch.wanted)) else { return };
        wanted.notified().await;
        loop {
            let Some(forest) = forest.upgrade() else { return };
            if !forest.is_in_use().await {
                break;
            }
            forest.obey().await;
            drop(forest);
            tokio::time::sleep(EVERY).await;
        }
    }
}
