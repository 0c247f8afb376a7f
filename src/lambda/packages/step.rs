//! One step of an install: a command in a sandbox of its own, with a directory
//! that it reads and one that it fills. The worker's process.
//!
//! ```text
//! PKGS_DIR/.steps-PID-N/       one install's, locked while it is at work
//!   NAME/input/                the worker's; /input in the sandbox, read-only
//!   NAME/out/                  the sandbox's while it runs; /out there, watched (space.rs)
//!     home/ tmp/ cache/        empty at first: no two steps share a cache
//!   files-N/                   the worker's: what was fetched and built, digests checked
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::PackageError;
use super::failure::Failure;
use super::space::Space;
use crate::lambda::registry::fresh_dir;
use crate::lambda::requirements::Pin;
use crate::lambda::tree;
use crate::sandbox::foreign::{self, ForeignError, Tree};
use crate::sandbox::{Command, Ended, RunError, Runner};

/// Where a sandbox shows a step's two directories.
pub(super) const INPUT: &str = "/input";
pub(super) const OUT: &str = "/out";

const STEPS: &str = ".steps-";

/// A step did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error(transparent)]
    Failure(#[from] Failure),
    #[error("its sandbox could not be made: {0}")]
    Sandbox(#[from] RunError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("what it left cannot be used: {0}")]
    Left(#[from] ForeignError),
}

impl StepError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| StepError::Io { path, source }
    }

    /// Returns the same for another package that waited for the same step.
    pub(super) fn again(&self) -> Self {
        match self {
            StepError::Failure(failure) => StepError::Failure(failure.clone()),
            StepError::Sandbox(error) => StepError::Sandbox(RunError::new(error.to_string())),
            StepError::Left(error) => Failure::Other { tail: error.to_string() }.into(),
            StepError::Io { path, source } => StepError::Io {
                path: path.clone(),
                source: io::Error::new(source.kind(), source.to_string()),
            },
        }
    }

    pub(super) fn of(self, pin: &Pin) -> PackageError {
        let pin = pin.clone();
        match self {
            StepError::Failure(failure) => PackageError::Install { pin, failure },
            StepError::Sandbox(source) => PackageError::Sandbox { pin, source },
            StepError::Io { path, source } => PackageError::Io { path, source },
            StepError::Left(error) => {
                let failure = Failure::Other { tail: format!("what a step left cannot be used: {error}") };
                PackageError::Install { pin, failure }
            }
        }
    }
}

/// The two directories of one step, which go away when this is dropped.
#[derive(Debug)]
pub(super) struct Room {
    top: PathBuf,
    pub input: PathBuf,
    pub out: PathBuf,
}

impl Room {
    /// Makes them, empty, as `above/name`.
    pub(super) fn new(above: &Path, name: &str) -> Result<Self, StepError> {
        let (top, input, out) =
            (above.join(name), above.join(name).join("input"), above.join(name).join("out"));
        for dir in [&top, &input, &out, &out.join("home"), &out.join("tmp"), &out.join("cache")] {
            fresh_dir(dir).map_err(StepError::io(dir))?;
        }
        Ok(Self { top, input, out })
    }

    /// Gives the step a file.
    pub(super) fn put(&self, name: &str, content: &[u8]) -> Result<(), StepError> {
        let path = self.input.join(name);
        let made = tree::new_file(&path, false).and_then(|mut file| file.write_all(content));
        made.map_err(StepError::io(&path))
    }

    /// Reads a small file that the step left, whose sandbox is gone.
    pub(super) fn answer(&self, name: &str, limit_bytes: u64) -> Result<String, StepError> {
        let text = Tree::open(&self.out)?.read_small(name, limit_bytes)?;
        let text = text.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
        let text = text.map_err(StepError::io(&self.out.join(name)))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Copies a file that the step left to `to`, which is not there yet, and returns
    /// its sha256. The copy is what was hashed, whoever else holds the original.
    pub(super) fn take(&self, name: &str, to: &Path, limit_bytes: u64) -> Result<String, StepError> {
        let path = self.out.join(name);
        let from = Tree::open(&self.out)?.open_file(name)?;
        let from = from.ok_or_else(|| StepError::io(&path)(io::ErrorKind::NotFound.into()))?;
        let copied = tree::new_file(to, false).and_then(|to| {
            let mut copy = Hashing { to, digest: Sha256::new() };
            match io::copy(&mut from.take(limit_bytes.saturating_add(1)), &mut copy)? {
                size if size > limit_bytes => Err(io::Error::from(io::ErrorKind::FileTooLarge)),
                _ => Ok(copy.digest.finalize()),
            }
        });
        let digest = copied.map_err(StepError::io(&path))?;
        Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Err(error) = foreign::remove(&self.top) {
            tracing::warn!(path = %self.top.display(), %error, "a step's directories were not removed");
        }
    }
}

struct Hashing {
    to: File,
    digest: Sha256,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A step that ended.
#[derive(Debug)]
pub(super) struct Ran {
    pub ended: Ended,
    /// The last of what it printed, and the outlet's complaint if it failed.
    pub output: String,
    /// Places that its outlet refused or did not reach.
    pub complaint: Option<String>,
}

/// Runs one step to its end, as soon as a slot is free, and ends it if it fills
/// more of the disk than it may.
pub(super) async fn run<R: Runner>(
    runner: &R,
    slots: &Semaphore,
    space: Space,
    command: Command,
    room: &Room,
) -> Result<Ran, StepError> {
    let outlet = command.outlet.clone();
    let closed = |_| StepError::Sandbox(RunError::new("the store is closed"));
    let _slot = slots.acquire().await.map_err(closed)?;
    let began = Instant::now();
    let mut outcome = tokio::select! {
        outcome = runner.run(command) => outcome?,
        failure = space.exceeded(&room.out) => return Err(failure.into()),
    };
    let took_ms = began.elapsed().as_millis();
    tracing::debug!(step = %room.top.display(), took_ms, ended = ?outcome.ended, "step ended");
    // It may have ended between two looks.
    if !space.holds(&room.out).await {
        return Err(space.failure().into());
    }
    let complaint = outlet.and_then(|outlet| outlet.complaint());
    if let Some(complaint) = complaint.as_ref().filter(|_| outcome.ended != Ended::Exited(0)) {
        // The program was told by a status, and repeats no reasons.
        outcome.output = format!("{}\n{complaint}", outcome.output.trim_end());
    }
    Ok(Ran { ended: outcome.ended, output: outcome.output, complaint })
}

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// The directory of one install's steps; it goes away when this is dropped.
#[derive(Debug)]
pub(super) struct Steps {
    path: PathBuf,
    /// Of the directory itself.
    _lock: Flock<File>,
}

impl Steps {
    pub(super) fn new(store: &Path) -> Result<Self, StepError> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = store.join(format!("{STEPS}{}-{number}", std::process::id()));
        let made = fresh_dir(&path).and_then(|()| lock(&path));
        made.map(|lock| Self { path: path.clone(), _lock: lock }).map_err(StepError::io(&path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if let Err(error) = foreign::remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "an install's steps were not removed");
        }
    }
}

/// Removes `name` of the store if it is the steps of an install that died.
pub(super) fn clear_dead(store: &Path, name: &str) -> io::Result<()> {
    let path = store.join(name);
    match name.starts_with(STEPS).then(|| lock(&path)) {
        Some(Ok(_lock)) => foreign::remove(&path).map_err(io::Error::other),
        // Somebody is at work on it, or it is none.
        _ => Ok(()),
    }
}

fn lock(path: &Path) -> io::Result<Flock<File>> {
    Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
}
