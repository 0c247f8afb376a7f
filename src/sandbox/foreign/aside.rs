//! Out of the way at once, removed later.
//!
//! ```text
//! name ─ rename ─▶ .trash~PID-N ─▶ one thread removes it, one tree after the other
//!                       └ left behind by a process that ended: swept by the next one
//! ```
//!
//! A stranger decides how long removing takes, so nobody waits for it. What cannot be
//! removed is told to the operator and hinders nobody: no name that anybody looks for
//! begins with [`TRASH`].

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{RenameFlags, renameat2};

use super::remove::remove_some;
use super::{ForeignError, parent_of, remove};

/// Beginning of the name of a tree that was set aside. No function's name and no pin has
/// a tilde.
pub const TRASH: &str = ".trash~";

/// Number of trees that may wait for the thread; more are left to the next sweep.
const WAITING: usize = 256;

/// Number of entries that are removed at once, by whoever asks.
const AT_ONCE: usize = 1000;

/// Number of names that are tried for one tree.
const NAMES: usize = 16;

/// Whether a name is that of a tree that was set aside.
pub fn is_trash(name: impl AsRef<std::ffi::OsStr>) -> bool {
    name.as_ref().as_encoded_bytes().starts_with(TRASH.as_bytes())
}

/// Renames a file or tree to a name in the same directory that nobody uses; the new path.
///
/// # Errors
/// As `renameat2(2)`: `ENOENT` if it is not there.
pub fn set_aside(path: &Path) -> Result<PathBuf, ForeignError> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let (parent, name) = parent_of(path)?;
    let mut tried = Errno::EEXIST;
    for _ in 0..NAMES {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos());
        let fresh = format!("{TRASH}{}-{now}-{count}", std::process::id());
        match renameat2(&parent, name, &parent, fresh.as_str(), RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => return Ok(path.with_file_name(fresh)),
            Err(errno @ Errno::EEXIST) => tried = errno,
            Err(errno) => return Err(ForeignError::io(path, errno)),
        }
    }
    Err(ForeignError::io(path, tried))
}

/// Sets a tree aside and removes it: at once, if it is small, else by a thread of this
/// process; nothing there is fine. Returns within milliseconds. May start the thread, so
/// the caller may not be about to fork.
///
/// # Errors
/// As [`set_aside`]; a tree that cannot be removed later is a warning in the log.
pub fn remove_late(path: &Path) -> Result<(), ForeignError> {
    match set_aside(path) {
        Ok(aside) => {
            let small =
                parent_of(&aside).and_then(|(dir, name)| remove_some(dir.as_fd(), Path::new(name), AT_ONCE));
            // What fails here fails there again, and is told.
            if !matches!(small, Ok(true)) {
                queue(aside);
            }
            Ok(())
        }
        Err(ForeignError { wrong: super::Wrong::Io(error), .. })
            if error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// As [`remove_late`]; a tree that cannot even be set aside is a warning in the log.
pub fn remove_late_or_warn(path: &Path) {
    if let Err(error) = remove_late(path) {
        tracing::warn!(%error, "a leftover cannot be removed or renamed; it stays, remove it by hand");
    }
}

/// Has all that was set aside in `dir`, by whomever, removed by the thread. Returns at
/// once; what cannot be listed or removed is a warning in the log.
pub fn sweep(dir: &Path) {
    let listed = std::fs::read_dir(dir);
    let names = listed.into_iter().flatten().flatten().map(|entry| entry.file_name());
    for name in names.filter(|name| is_trash(name)) {
        queue(dir.join(name));
    }
}

/// Waits until the thread has removed all that it was given; false if `bound` was over before.
pub fn wait_until_removed(bound: Duration) -> bool {
    let until = Instant::now() + bound;
    let mut pending = pending();
    while *pending > 0 {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        pending = REMOVED.wait_timeout(pending, left).unwrap_or_else(PoisonError::into_inner).0;
    }
    true
}

/// Number of trees that the thread was given and has not removed.
static PENDING: Mutex<usize> = Mutex::new(0);
static REMOVED: Condvar = Condvar::new();
/// The thread's queue, once there is one.
static QUEUE: Mutex<Option<SyncSender<PathBuf>>> = Mutex::new(None);

fn pending() -> MutexGuard<'static, usize> {
    PENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn queue(path: PathBuf) {
    let mut queue = QUEUE.lock().unwrap_or_else(PoisonError::into_inner);
    if queue.is_none() {
        *queue = start();
    }
    let Some(sender) = &*queue else { return };
    *pending() += 1;
    match sender.try_send(path) {
        Ok(()) => {}
        Err(TrySendError::Full(path) | TrySendError::Disconnected(path)) => {
            *pending() -= 1;
            tracing::warn!(path = %path.display(), "too much waits to be removed; the next start removes this");
        }
    }
}

fn start() -> Option<SyncSender<PathBuf>> {
    let (sender, receiver) = sync_channel::<PathBuf>(WAITING);
    let work = move || {
        for path in receiver {
            if let Err(error) = remove(&path) {
                tracing::warn!(%error, "a leftover cannot be removed; it stays aside, remove it by hand");
            }
            *pending() -= 1;
            REMOVED.notify_all();
        }
    };
    match std::thread::Builder::new().name("hosier-remover".to_owned()).spawn(work) {
        Ok(_) => Some(sender),
        Err(error) => {
            tracing::warn!(%error, "no thread to remove leftovers; the next start removes them");
            None
        }
    }
}
