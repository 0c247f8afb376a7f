//! What a sandbox sees of the host's files: the packages of one closure as a tree of
//! read-only bind mounts, and its function's code. Runs in the worker; a sandbox gets a
//! clone and sees nothing of the store beside it.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::base::{attach, clone, make_dir, seal};
use super::error::About;
use super::{Base, SandboxError};

/// Where a sandbox sees its view, relative to its root.
pub const PACKAGES: &str = "packages";
/// Where it sees its function's code.
pub const HANDLER: &str = "handler";
/// Code that is laid out for a next start, at most; the oldest goes.
const MAX_SPARES: usize = 64;

/// A directory in which each of some host directories appears under a name.
/// Unmounted when dropped.
#[derive(Debug)]
pub struct View {
    path: PathBuf,
}

static NUMBER: AtomicU64 = AtomicU64::new(0);

impl View {
    /// # Errors
    /// A directory is missing, or a mount failed; nothing is left then.
    pub fn new(base: &Base, entries: &[(PathBuf, String)]) -> Result<Arc<Self>, SandboxError> {
        let path = base.views().join(NUMBER.fetch_add(1, Ordering::Relaxed).to_string());
        make_dir(&path)?;
        // Dropped, it takes off what was mounted so far.
        let view = Arc::new(Self { path });
        attach(&clone(&view.path)?, &view.path)?;
        for (source, name) in entries {
            let target = view.path.join(name);
            make_dir(&target)?;
            bind(source, &target)?;
        }
        Ok(view)
    }

    /// A detached clone, sealed.
    ///
    /// # Errors
    /// As `open_tree(2)`.
    pub fn open(&self) -> Result<OwnedFd, SandboxError> {
        let tree = clone(&self.path)?;
        seal(&tree, true)?;
        Ok(tree)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        use nix::mount::{MntFlags, umount2};
        let _ = umount2(&self.path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        // What is left is a directory of empty directories on our own tmpfs,
        // hidden until now by the mount of itself over itself.
        if let Ok(entries) = std::fs::read_dir(&self.path) {
            for entry in entries.flatten() {
                let _ = std::fs::remove_dir(entry.path());
            }
        }
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// A detached, sealed clone of one host directory.
///
/// # Errors
/// It is missing.
pub fn open_sealed(source: &Path) -> Result<OwnedFd, SandboxError> {
    let tree = clone(source)?;
    seal(&tree, true)?;
    Ok(tree)
}

/// Code of functions that were started, each laid out for one more start: making the
/// mount takes as long as attaching it.
#[derive(Debug, Default)]
pub struct Spares(Mutex<VecDeque<Spare>>);

#[derive(Debug)]
struct Spare {
    function: String,
    code: PathBuf,
    mount: OwnedFd,
}

impl Spares {
    /// A mount of `code`, made now if none lies ready.
    ///
    /// # Errors
    /// As [`open_sealed`].
    pub fn take(&self, code: &Path) -> Result<OwnedFd, SandboxError> {
        let found = {
            let mut spares = self.lock();
            let at = spares.iter().position(|spare| spare.code == code);
            at.and_then(|at| spares.remove(at))
        };
        found.map_or_else(|| open_sealed(code), |spare| Ok(spare.mount))
    }

    /// Lays `code` out for the next start of `function`, if it is not.
    pub fn lay_out(&self, function: &str, code: &Path) {
        if self.lock().iter().any(|spare| spare.code == code) {
            return;
        }
        // If it cannot be made, the next start says so.
        if let Ok(mount) = open_sealed(code) {
            let mut spares = self.lock();
            if spares.len() == MAX_SPARES {
                spares.pop_front();
            }
            spares.push_back(Spare { function: function.to_owned(), code: code.to_owned(), mount });
        }
    }

    /// Lets the code of `function` go, but for the version that is still served.
    pub fn forget(&self, function: &str, kept: Option<&str>) {
        let stays = |spare: &Spare| kept.is_some_and(|version| spare.code.ends_with(version));
        self.lock().retain(|spare| spare.function != function || stays(spare));
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Spare>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bind(source: &Path, target: &Path) -> Result<(), SandboxError> {
    if !source.is_dir() {
        return Err(std::io::Error::from(std::io::ErrorKind::NotFound)).about(source);
    }
    attach(&open_sealed(source)?, target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn functions(spares: &Spares) -> Vec<String> {
        spares.lock().iter().map(|spare| spare.function.clone()).collect()
    }

    #[test]
    fn code_that_lies_ready_is_taken_once_and_made_otherwise() {
        let (dir, spares) = (tempfile::tempdir().unwrap(), Spares::default());
        spares.lay_out("f", dir.path());
        spares.lay_out("f", dir.path());
        assert_eq!(functions(&spares), ["f"]);
        spares.take(dir.path()).unwrap();
        assert!(functions(&spares).is_empty());
        spares.take(dir.path()).unwrap();
        assert!(spares.take(&dir.path().join("gone")).is_err());
        spares.lay_out("f", &dir.path().join("gone"));
        assert!(functions(&spares).is_empty());
    }

    #[test]
    fn the_oldest_code_goes_and_so_does_that_of_another_version() {
        let (dir, spares) = (tempfile::tempdir().unwrap(), Spares::default());
        let code = |name: String| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        for at in 0..=MAX_SPARES {
            spares.lay_out(&format!("f{at}"), &code(format!("v{at}")));
        }
        assert_eq!(functions(&spares).len(), MAX_SPARES);
        assert!(!functions(&spares).contains(&"f0".to_owned()));
        spares.forget("f1", Some("v1"));
        spares.forget("f2", Some("v3"));
        spares.forget("f3", None);
        let left = functions(&spares);
        assert_eq!(
            ["f1", "f2", "f3", "f4"].map(|name| left.contains(&name.to_owned())),
            [true, false, false, true]
        );
    }
}
