//! Files that strangers leave, through the real command and the real worker: the host's
//! files stay as they are, nothing waits for ever, and the worker starts afterwards.
//!
//! ```text
//! builds     a source package whose build leaves links, FIFOs, 30,000 nested directories
//! leftovers  what a worker that died left, removed late or not at all, and `up` works
//! ```

#[path = "../support/mod.rs"]
mod support;

mod builds;
mod leftovers;

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};

use support::Worker;

/// Number of nested directories on whose removal by recursion a process ends.
const DEEP: usize = 30_000;

/// A worker whose packages are in memory, where that is possible: on a disk each of the many
/// directories is a block to write, and to free.
fn worker() -> (Worker, tempfile::TempDir) {
    let packages = tempfile::Builder::new().prefix("hosier-packages-").tempdir_in("/dev/shm");
    let packages = packages.or_else(|_| tempfile::tempdir()).unwrap();
    let worker = Worker::new();
    std::fs::write(worker.path().join("hosier.toml"), format!("pkgs_dir = {:?}\n", packages.path())).unwrap();
    (worker, packages)
}

/// Nests directories below `path`, deeper than any path can say.
fn nest(path: &Path, depth: usize) {
    let mut at: OwnedFd = std::fs::File::open(path).unwrap().into();
    for _ in 0..depth {
        mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
        at = openat(&at, "d", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
    }
}
