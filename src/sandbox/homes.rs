//! Names for the top control groups of user namespaces: known to the spawner from the
//! start, so that it can remove them all, and lent to one namespace at a time. Runs in the
//! worker.
//!
//! ```text
//! free ──take──▶ lent to a namespace ──its last sandbox is gone──▶ group removed ──▶ free
//! ```

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::SandboxError;
use super::cgroup::{Group, Hierarchies};

/// Names that are free.
#[derive(Debug, Clone)]
pub struct Homes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hierarchies: Hierarchies,
    free: Mutex<BTreeSet<String>>,
}

/// A name that one namespace has. When it is dropped, the group of that name goes, with
/// whoever is in it, and the name is free again.
#[derive(Debug)]
pub struct Home {
    name: String,
    homes: Homes,
}

impl Homes {
    pub fn new(hierarchies: Hierarchies, names: impl IntoIterator<Item = String>) -> Self {
        Self(Arc::new(Inner { hierarchies, free: Mutex::new(names.into_iter().collect()) }))
    }

    /// Takes a name, and makes its group.
    ///
    /// # Errors
    /// [`SandboxError::NoHome`] if all are taken; the group cannot be made.
    pub fn take(&self) -> Result<(Home, Group), SandboxError> {
        let name = self.free().pop_first().ok_or(SandboxError::NoHome)?;
        let home = Home { name, homes: self.clone() };
        let group = Group::create(&self.0.hierarchies, &home.name)?;
        Ok((home, group))
    }

    fn free(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        match Group::remove_leftovers(&self.homes.0.hierarchies, &self.name) {
            Ok(()) => _ = self.homes.free().insert(std::mem::take(&mut self.name)),
            // Not lent again; the spawner tries once more when the worker ends.
            Err(error) => {
                tracing::warn!(group = self.name, %error, "a namespace's control group could not be removed");
            }
        }
    }
}
