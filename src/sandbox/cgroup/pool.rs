//! Cgroups made ahead of need, so that a cold start takes one instead of making
//! directories in each hierarchy. Runs in the worker.
//!
//! A cgroup serves one sandbox and is removed: its counters, its charged page
//! cache and, once killed, the kernel's memory of the kill would pass to the next.
//! Only one that nobody was in goes back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Cgroup, CgroupError, Group, Owner};
use crate::sandbox::Limits;

#[derive(Debug)]
pub struct Pool {
    group: Arc<Group>,
    /// How many to keep ready; 0 is switched off.
    size: usize,
    limits: Limits,
    owner: Option<Owner>,
    ready: Mutex<VecDeque<Cgroup>>,
    /// Held by the one that refills, so that two do not make too many.
    refilling: Mutex<()>,
}

impl Pool {
    /// An empty pool. `limits` are those that most takers will ask for.
    pub fn new(group: Arc<Group>, size: usize, limits: Limits, owner: Option<Owner>) -> Self {
        let ready = Mutex::new(VecDeque::with_capacity(size));
        Self { group, size, limits, owner, ready, refilling: Mutex::new(()) }
    }

    /// A cgroup with these limits: a ready one, of which only the limits that
    /// differ are written, or one made now.
    pub fn take(&self, limits: &Limits) -> Result<Cgroup, CgroupError> {
        let taken = locked(&self.ready).pop_front();
        let Some(mut cgroup) = taken else { return self.group.unnamed_child(limits, self.owner) };
        cgroup.set_limits(limits)?;
        Ok(cgroup)
    }

    /// How many a refill would make.
    pub fn lacking(&self) -> usize {
        self.size.saturating_sub(locked(&self.ready).len())
    }

    /// Makes what is lacking. Blocks: call it from a thread that may.
    pub fn refill(&self) -> Result<(), CgroupError> {
        let _alone = locked(&self.refilling);
        while self.lacking() > 0 {
            let made = self.group.unnamed_child(&self.limits, self.owner)?;
            locked(&self.ready).push_back(made);
        }
        Ok(())
    }

    /// Takes back one that is not needed. One that had a process, and one too
    /// many, is removed, which waits for its processes to leave.
    pub fn give_back(&self, mut cgroup: Cgroup) -> Result<(), CgroupError> {
        if cgroup.is_unborn() && !cgroup.populated()? && self.lacking() > 0 {
            cgroup.set_limits(&self.limits)?;
            locked(&self.ready).push_back(cgroup);
            return Ok(());
        }
        cgroup.remove()
    }

    /// Removes all that are ready. The first error is told, the others' directories
    /// stay until the group is removed.
    pub fn drain(&self) -> Result<(), CgroupError> {
        let ready = std::mem::take(&mut *locked(&self.ready));
        ready.into_iter().map(Cgroup::remove).fold(Ok(()), Result::and)
    }
}

/// A panic while the lock was held leaves a list that is still a list.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
