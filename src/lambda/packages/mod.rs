//! The package store: each package at each version once, read-only for all,
//! installed by `uv` in a fresh sandbox. The worker's or the command's process;
//! both may share one store.
//!
//! ```text
//! PKGS_DIR/numpy==2.1.0/files        on sys.path of who pins it
//! PKGS_DIR/numpy==2.1.0/meta.json    its Contents; with it, it is complete
//! PKGS_DIR/.staging-numpy==2.1.0/    being installed, under the pin's lock
//! PKGS_DIR/.locks/numpy==2.1.0       flock: one installer of a pin at a time
//! ```
//!
//! A pin is there complete, by a rename at the end, or not at all.

mod build;
mod contents;
mod failure;
mod fetch;
mod installer;
mod lock;
mod operator;
mod resolve;
mod space;
mod step;
mod supply;
mod tools;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

pub use contents::Contents;
pub use failure::Failure;
pub use installer::{BuildPolicy, Installer};
pub use operator::Operator;
pub use space::Space;
pub use tools::{ToolError, ensure_uv, find_uv, python_version};

use step::{Room, Steps};
use supply::{Supplied, Supply};

use super::requirements::{Pin, Pins, PythonVersion};
use super::tree::{self, TreeError};
use super::{Blame, registry::fresh_dir};
use crate::sandbox::{RunError, Runner};
use crate::stats::Stats;

const STAGING: &str = ".staging-";
const LOCKS: &str = ".locks";
const META: &str = "meta.json";
/// Pins that are resolved and fetched together; each holds a lock's descriptor.
const BATCH_PINS: usize = 64;

/// A package cannot be made ready.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    #[error("{pin} is not installed: {failure}")]
    Install { pin: Pin, failure: Failure },
    #[error("{pin} is not installed: its sandbox could not be made: {source}")]
    Sandbox { pin: Pin, source: RunError },
    #[error("{pin} is not installed: what it brought cannot be used: {source}")]
    Files { pin: Pin, source: TreeError },
    #[error("the package store: {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("{0} is not installed")]
    Missing(Pin),
    #[error("an installer ended before it was done")]
    Abandoned,
}

impl PackageError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| PackageError::Io { path, source }
    }

    pub fn blame(&self) -> Blame {
        match self {
            PackageError::Install { failure, .. } => failure.blame(),
            PackageError::Files { source, .. } => source.blame(),
            _ => Blame::Worker,
        }
    }
}

/// Hears how an install goes on.
pub trait Progress: Send + Sync {
    /// So many packages are missing and are being installed.
    fn begin(&self, _missing: usize) {}
    /// One of them is there.
    fn installed(&self, _pin: &Pin) {}
}

/// Nobody listens.
impl Progress for () {}

/// The store in one directory. Cheap to clone.
#[derive(Debug)]
pub struct Packages<R>(Arc<Store<R>>);

impl<R> Clone for Packages<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Debug)]
struct Store<R> {
    dir: PathBuf,
    python: PythonVersion,
    installer: Installer,
    runner: Arc<R>,
    stats: Arc<Stats>,
    /// How many installers may run.
    slots: Arc<Semaphore>,
    /// Who installs a pin in this process; others wait without a thread.
    turns: Mutex<HashMap<Pin, Weak<tokio::sync::Mutex<()>>>>,
}

impl<R: Runner> Packages<R> {
    /// Opens the store in `dir`, which is made if it is not there, and removes
    /// what installers left that died.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(
        dir: &Path,
        python: PythonVersion,
        installer: Installer,
        parallel: usize,
        runner: Arc<R>,
        stats: Arc<Stats>,
    ) -> Result<Self, PackageError> {
        let locks = dir.join(LOCKS);
        fs::create_dir_all(&locks).map_err(PackageError::io(&locks))?;
        for entry in fs::read_dir(dir).map_err(PackageError::io(dir))? {
            let entry = entry.map_err(PackageError::io(dir))?;
            let name = entry.file_name().into_string().unwrap_or_default();
            step::clear_dead(dir, &name).map_err(PackageError::io(&entry.path()))?;
            let Some(pin) = name.strip_prefix(STAGING).and_then(|pin| pin.parse::<Pin>().ok()) else {
                continue;
            };
            // Locked: somebody is at work on it.
            if lock(&locks, &pin, FlockArg::LockExclusiveNonblock).is_ok() {
                fs::remove_dir_all(entry.path()).map_err(PackageError::io(&entry.path()))?;
            }
        }
        Ok(Self(Arc::new(Store {
            dir: dir.to_owned(),
            python,
            installer,
            runner,
            stats,
            slots: Arc::new(Semaphore::new(parallel.max(1))),
            turns: Mutex::default(),
        })))
    }

    /// The directory of `pin` that goes on `sys.path`, as `/packages/PIN/files`
    /// in a sandbox. It need not be there.
    pub fn files(&self, pin: &Pin) -> PathBuf {
        self.0.dir.join(pin.to_string()).join("files")
    }

    /// Whether `pin` is there.
    pub fn has(&self, pin: &Pin) -> bool {
        self.0.has(pin)
    }

    /// What can be imported of `pin`.
    ///
    /// # Errors
    /// It is not installed, or its description cannot be read.
    pub fn top_level(&self, pin: &Pin) -> Result<Vec<String>, PackageError> {
        self.0.contents(pin).map(|contents| contents.top_level)
    }

    /// Normalised names of the packages that `pin` depends on.
    ///
    /// # Errors
    /// As [`Packages::top_level`].
    pub fn requires(&self, pin: &Pin) -> Result<Vec<String>, PackageError> {
        self.0.contents(pin).map(|contents| contents.requires)
    }

    /// Installs those of `pins` that are missing, several at a time; one that
    /// somebody else is installing is waited for.
    ///
    /// # Errors
    /// One cannot be installed; of several the first by name is told, and
    /// the others stay.
    pub async fn install(&self, pins: &Pins, progress: Arc<dyn Progress>) -> Result<(), PackageError> {
        let missing: Vec<_> = pins.iter().filter(|pin| !self.has(pin)).cloned().collect();
        if missing.is_empty() {
            return Ok(());
        }
        progress.begin(missing.len());
        let mut failed: BTreeMap<Pin, PackageError> = BTreeMap::new();
        for batch in missing.chunks(BATCH_PINS) {
            failed.extend(self.0.install(batch, &progress).await?);
        }
        failed.into_values().next().map_or(Ok(()), Err)
    }
}

/// What the zygote floor asks. A package that cannot be read imports nothing:
/// its node stands without it, and the function's own import tells.
impl<R: Runner> crate::zygote::Packages for Packages<R> {
    fn directory(&self, pin: &Pin) -> PathBuf {
        self.0.dir.join(pin.to_string())
    }

    fn modules(&self, pin: &Pin) -> Vec<String> {
        self.top_level(pin).unwrap_or_default()
    }

    fn requires(&self, pin: &Pin) -> Vec<String> {
        Packages::requires(self, pin).unwrap_or_default()
    }
}

impl<R: Runner> Store<R> {
    fn has(&self, pin: &Pin) -> bool {
        self.dir.join(pin.to_string()).join(META).is_file()
    }

    fn contents(&self, pin: &Pin) -> Result<Contents, PackageError> {
        let path = self.dir.join(pin.to_string()).join(META);
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|error| PackageError::io(&path)(error.into()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(PackageError::Missing(pin.clone())),
            Err(error) => Err(PackageError::io(&path)(error)),
        }
    }

    /// Installs `pins`, which are sorted, and returns those that failed. Pins are
    /// claimed in their order, here and in every other process, so that no two
    /// installs wait for each other.
    async fn install(
        self: &Arc<Self>,
        pins: &[Pin],
        progress: &Arc<dyn Progress>,
    ) -> Result<Vec<(Pin, PackageError)>, PackageError> {
        let began = Instant::now();
        let uv = self.installer.find_uv()?;
        let mut claims = Vec::new();
        for pin in pins {
            match self.claim(pin).await? {
                Some(claim) => claims.push(claim),
                None => progress.installed(pin),
            }
        }
        let Some(first) = claims.first() else { return Ok(Vec::new()) };
        let steps = Steps::new(&self.dir).map_err(|error| error.of(&first.pin))?;
        let (installer, runner) = (self.installer.clone(), self.runner.clone());
        let supply = Arc::new(Supply::new(installer, uv, runner, self.slots.clone(), steps));
        let claimed: Vec<_> = claims.iter().map(|claim| claim.pin.clone()).collect();
        let mut running = JoinSet::new();
        let mut failed = Vec::new();
        for (claim, supplied) in claims.into_iter().zip(supply.fetch_all(&claimed).await) {
            let (store, supply, progress) = (self.clone(), supply.clone(), progress.clone());
            let pin = claim.pin.clone();
            match supplied {
                Ok(supplied) => running.spawn(async move {
                    store.complete(claim, supplied, &supply).await.map_err(|error| (pin.clone(), error))?;
                    store.stats.record("pull-package", began.elapsed());
                    tracing::info!(package = %pin, took_ms = began.elapsed().as_millis(), "package installed");
                    progress.installed(&pin);
                    Ok(())
                }),
                Err(error) => {
                    failed.push((pin.clone(), error.of(&pin)));
                    continue;
                }
            };
        }
        while let Some(joined) = running.join_next().await {
            failed.extend(joined.map_err(|_| PackageError::Abandoned)?.err());
        }
        Ok(failed)
    }

    /// Makes `pin` this install's to install; None if it is there. Waits for whoever
    /// installs it.
    async fn claim(self: &Arc<Self>, pin: &Pin) -> Result<Option<Claim>, PackageError> {
        // Within this process without a thread.
        let turn = self.turn(pin).lock_owned().await;
        if self.has(pin) {
            return Ok(None);
        }
        let (locks, owned) = (self.dir.join(LOCKS), pin.clone());
        let locked = tokio::task::spawn_blocking(move || lock(&locks, &owned, FlockArg::LockExclusive));
        let lock = locked.await.map_err(|_| PackageError::Abandoned)?.map_err(PackageError::io(&self.dir))?;
        let claim = Claim { pin: pin.clone(), _lock: lock, _turn: turn };
        Ok((!self.has(pin)).then_some(claim))
    }

    /// Makes an entry of the store from what was fetched for a claimed pin.
    async fn complete(
        self: &Arc<Self>,
        claim: Claim,
        supplied: Supplied,
        supply: &Supply<R>,
    ) -> Result<(), PackageError> {
        let pin = claim.pin.clone();
        let wheel = supply.wheel(&pin, supplied).await.map_err(|error| error.of(&pin))?;
        // Below the lock until it is dropped, also if this future is.
        let staging = Staging { path: self.dir.join(format!("{STAGING}{pin}")), _claim: claim };
        fresh_dir(&staging.path).map_err(PackageError::io(&staging.path))?;
        let room = Room::new(&staging.path, "unpack").map_err(|error| error.of(&pin))?;
        supply.unpack(&wheel, &room).await.map_err(|error| error.of(&pin))?;
        let store = self.clone();
        let finished = tokio::task::spawn_blocking(move || {
            supply::settle(&room, &staging.path.join("files")).map_err(PackageError::io(&staging.path))?;
            drop(room);
            store.finish(&pin, &staging)
        });
        finished.await.map_err(|_| PackageError::Abandoned)?
    }

    /// Looks at what the sandbox left, describes it, and puts it in place.
    fn finish(&self, pin: &Pin, staging: &Staging) -> Result<(), PackageError> {
        let path = &staging.path;
        let files = path.join("files");
        remove(&files.join(".lock")).map_err(PackageError::io(path))?;
        tree::settle(&files).map_err(|source| PackageError::Files { pin: pin.clone(), source })?;
        let contents = contents::read(&files, self.python).map_err(PackageError::io(&files))?;
        let meta = path.join(META);
        let text = serde_json::to_vec(&contents).map_err(|error| PackageError::io(&meta)(error.into()))?;
        fs::write(&meta, text).map_err(PackageError::io(&meta))?;
        // On disk before its name is: a power cut must not leave empty modules.
        let dir = File::open(&self.dir).map_err(PackageError::io(&self.dir))?;
        nix::unistd::syncfs(&dir).map_err(|error| PackageError::io(path)(error.into()))?;
        let target = self.dir.join(pin.to_string());
        remove(&target).map_err(PackageError::io(&target))?; // without meta.json: not ours
        fs::rename(path, &target).map_err(PackageError::io(&target))?;
        dir.sync_all().map_err(PackageError::io(&self.dir))
    }

    fn turn(&self, pin: &Pin) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(pin).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(tokio::sync::Mutex::new(()));
        turns.insert(pin.clone(), Arc::downgrade(&turn));
        turn
    }
}

/// The right to install a pin: one in this process, and one among all.
struct Claim {
    pin: Pin,
    // In this order they are given up.
    _lock: Flock<File>,
    _turn: tokio::sync::OwnedMutexGuard<()>,
}

/// A directory that goes away unless it was renamed, under its pin's claim.
struct Staging {
    path: PathBuf,
    _claim: Claim,
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "staging was not removed");
        }
    }
}

/// Takes the lock of a pin, for this process and others.
fn lock(locks: &Path, pin: &Pin, how: FlockArg) -> io::Result<Flock<File>> {
    let file = File::options().create(true).truncate(false).write(true).open(locks.join(pin.to_string()))?;
    Flock::lock(file, how).map_err(|(_, errno)| errno.into())
}

/// Removes a file or a directory with what is in it, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
