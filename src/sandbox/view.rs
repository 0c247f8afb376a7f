//! The packages of one closure as a tree of read-only bind mounts. Runs in the
//! worker; a sandbox gets a clone and sees nothing of the store beside it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::base::{attach, clone, make_dir, seal};
use super::error::About;
use super::{Base, SandboxError};

/// Where a sandbox sees its view, relative to its root.
pub const PACKAGES: &str = "packages";

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

fn bind(source: &Path, target: &Path) -> Result<(), SandboxError> {
    if !source.is_dir() {
        return Err(std::io::Error::from(std::io::ErrorKind::NotFound)).about(source);
    }
    attach(&open_sealed(source)?, target)
}
