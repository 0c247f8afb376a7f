//! Our top directory, the same name in each hierarchy, and clearing up what a
//! dead worker left. Runs in the worker; the clearing up also in the spawner and
//! at the next start.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;

use super::dir::Dir;
use super::level::Level;
use super::v1::sigkill;
use super::{Cgroup, CgroupError, Hierarchies, LEFTOVERS_BOUND_MS, Owner, within};
use crate::sandbox::Limits;

/// A worker's top directory. No process is ever in it, so that v2 lets its
/// children have controllers. It stays when dropped: see [`Group::remove`].
#[derive(Debug)]
pub struct Group {
    name: String,
    hierarchies: Hierarchies,
    level: Arc<Level>,
    named: AtomicU64,
}

impl Group {
    /// Makes the directory `name`, which must not be there.
    pub fn create(hierarchies: &Hierarchies, name: &str) -> Result<Self, CgroupError> {
        check_group_name(name)?;
        let roots = &hierarchies.0;
        roots.enable_controllers()?;
        let level = Arc::new(roots.make(name)?);
        let group =
            Self { name: name.to_owned(), hierarchies: hierarchies.clone(), level, named: AtomicU64::new(0) };
        match group.check() {
            Ok(()) => Ok(group),
            Err(error) => {
                // The first error is the one to tell.
                let _ = roots.remove(name, 0);
                Err(error)
            }
        }
    }

    fn check(&self) -> Result<(), CgroupError> {
        if let Some(v2) = self.level.v2()
            && !v2.0.has("cgroup.kill")
        {
            return Err(CgroupError::NoKill { path: v2.0.path().join("cgroup.kill") });
        }
        self.level.enable_controllers()
    }

    /// Its directories, one a hierarchy, for whoever clears up.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.level.paths()
    }

    /// Lets a zygote give birth with `CLONE_INTO_CGROUP` from one child of this
    /// group into another: the kernel asks for the right to write `cgroup.procs`
    /// of their common ancestor too. There is one owner: the zygotes of one worker
    /// share the host id of their root. Does nothing on v1.
    pub fn delegate_procs(&self, owner: Owner) -> Result<(), CgroupError> {
        self.level.give_procs(owner)
    }

    /// Makes one sandbox's cgroup. `owner` is who may put a process there with
    /// `CLONE_INTO_CGROUP`.
    pub fn child(&self, name: &str, limits: &Limits, owner: Option<Owner>) -> Result<Cgroup, CgroupError> {
        check_name(name)?;
        Cgroup::make(&self.level, name.to_owned(), limits, owner)
    }

    /// As [`Self::child`], under a name that no other child has had from here.
    pub fn unnamed_child(&self, limits: &Limits, owner: Option<Owner>) -> Result<Cgroup, CgroupError> {
        let number = self.named.fetch_add(1, Ordering::Relaxed);
        Cgroup::make(&self.level, format!("c{number}"), limits, owner)
    }

    /// Bytes that its sandboxes have and that the kernel cannot take back: without the
    /// cache of files, which stays charged here when its sandbox is long gone.
    pub fn memory_held(&self) -> Result<u64, CgroupError> {
        self.level.memory_held()
    }

    /// Kills everything in it and removes it.
    pub fn remove(self) -> Result<(), CgroupError> {
        Self::remove_leftovers(&self.hierarchies, &self.name)
    }

    /// Kills whatever is in the group `name` and removes its directories, whoever
    /// made them and whatever state they are in. Nothing there is fine. The caller
    /// must not be a member.
    pub fn remove_leftovers(hierarchies: &Hierarchies, name: &str) -> Result<(), CgroupError> {
        check_group_name(name)?;
        let pass = || hierarchies.0.dirs().map(|root| sweep(root, name)).fold(Ok(()), Result::and);
        let gone = within(LEFTOVERS_BOUND_MS, || match pass() {
            // Processes take a moment to leave, and somebody else may be clearing
            // up too: ask again.
            Err(error) if matches!(error.errno(), Some(Errno::EBUSY | Errno::ENOENT | Errno::ENODEV)) => {
                Ok(false)
            }
            swept => swept.map(|()| true),
        })?;
        if gone { Ok(()) } else { pass() }
    }
}

/// What is swept is killed to the last process: a name that could lead to a
/// hierarchy's root, or to a directory that is not of a worker, must not get there.
fn check_group_name(name: &str) -> Result<(), CgroupError> {
    check_name(name)?;
    match name.strip_prefix("hosier-") {
        Some(own) if !own.is_empty() => Ok(()),
        _ => Err(CgroupError::BadName { name: name.to_owned() }),
    }
}

fn check_name(name: &str) -> Result<(), CgroupError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !name.is_empty() && name.bytes().all(fits) {
        return Ok(());
    }
    Err(CgroupError::BadName { name: name.to_owned() })
}

/// Kills and removes one directory and all below it, children first. One pass:
/// what has not ended yet answers `EBUSY`.
fn sweep(parent: &Dir, name: &str) -> Result<(), CgroupError> {
    let dir = match parent.child(name) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(()),
        dir => dir?,
    };
    // A task in the v1 freezer cannot be killed: its SIGKILL waits for the thaw.
    dir.write_if_there("freezer.state", "THAWED")?;
    if dir.has("cgroup.kill") {
        dir.write("cgroup.kill", "1")?;
    } else {
        dir.processes()?.into_iter().try_for_each(sigkill)?;
    }
    let below = dir.children()?.iter().map(|child| sweep(&dir, child)).fold(Ok(()), Result::and);
    below.and_then(|()| parent.remove(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_our_directories() {
        for name in ["", ".", "..", "/", "a/b", "hosier-/..", "cgroup.procs", "a b"] {
            assert!(check_name(name).is_err(), "{name:?}");
            assert!(check_group_name(name).is_err(), "{name:?}");
        }
        for name in ["hosier-", "system", "docker"] {
            assert!(check_name(name).is_ok() && check_group_name(name).is_err(), "{name:?}");
        }
        assert!(check_group_name("hosier-1a2b3c4d").is_ok());
    }
}
