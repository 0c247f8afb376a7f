//! The package store: each package at each version once, read-only for all,
//! installed by `uv` in a fresh sandbox. The worker's or the command's process;
//! both may share one store.
//!
//! ```text
//! PKGS_DIR/cpython-311-x86_64-linux-gnu/      one interpreter's; no other is served from it
//!   numpy==2.1.0/<ID>/                        an entry (entries.rs)
//!   .staging-numpy==2.1.0/                    being installed, under the pin's lock
//!   .locks/numpy==2.1.0                       flock: one installer of a pin at a time
//!
//! asked for ─▶ found? ─▶ as recorded? ─▶ served
//!                │ no        │ no: set aside (mend.rs)
//!                └─▶ fetched ◀┘
//! ```
//!
//! An entry is there complete, by a rename at the end, or not at all.

mod abi;
mod build;
mod contents;
mod digests;
mod entries;
mod failure;
mod fetch;
mod installer;
mod lock;
mod mend;
mod operator;
mod resolve;
mod space;
mod step;
mod supply;
mod takeover;
mod tools;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

pub use abi::Abi;
pub use contents::Contents;
pub use digests::{Damage, Depth};
pub use entries::{Entries, Meta, Origin};
pub use failure::Failure;
pub use installer::{BuildPolicy, Installer};
pub use mend::Installed;
pub use operator::Operator;
pub use space::Space;
pub use tools::{Interpreter, ToolError, ensure_uv, find_uv, interpreter, python_version};

use digests::Record;
use entries::META;
use lock::Artifact;
use mend::{Looks, Ready};
use step::Steps;
use supply::{Supplied, Supply};

use super::requirements::{Hashes, Pin, Pins, Requirements, Sha256};
use super::tree::{self, TreeError};
use super::{Blame, registry::fresh_dir};
use crate::sandbox::foreign::{self, ForeignError};
use crate::sandbox::{RunError, Runner};
use crate::stats::Stats;

const STAGING: &str = ".staging-";
const LOCKS: &str = ".locks";
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
    #[error("{pin} is not installed: what it brought cannot be recorded: {damage}")]
    Record { pin: Pin, damage: Box<Damage> },
    #[error(
        "{pin} was damaged in the package store ({damage}), is set aside and cannot be fetched again: {source}"
    )]
    NotMended { pin: Pin, damage: Box<Damage>, source: Box<PackageError> },
    #[error(
        "{pin} is damaged in the package store for the {times}th time since the worker was started \
         ({damage}): check the disk, then restart the worker"
    )]
    DamagedAgain { pin: Pin, damage: Box<Damage>, times: u32 },
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
            PackageError::Record { .. } => Blame::Function,
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
    /// The whole store's, with the entries of every interpreter.
    pkgs_dir: PathBuf,
    entries: Entries,
    python: Interpreter,
    installer: Installer,
    runner: Arc<R>,
    stats: Arc<Stats>,
    /// How many installers may run.
    slots: Arc<Semaphore>,
    /// Who installs a pin in this process; others wait without a thread.
    turns: Mutex<HashMap<Pin, Weak<tokio::sync::Mutex<()>>>>,
    looks: Looks,
}

impl<R: Runner> Packages<R> {
    /// Opens the entries of one interpreter in the store `pkgs_dir`, which is made if it is not
    /// there, and removes what installers left that died.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(
        pkgs_dir: &Path,
        python: Interpreter,
        installer: Installer,
        parallel: usize,
        runner: Arc<R>,
        stats: Arc<Stats>,
    ) -> Result<Self, PackageError> {
        let entries = Entries::new(pkgs_dir, &python.abi);
        let dir = entries.dir();
        let locks = dir.join(LOCKS);
        fs::create_dir_all(&locks).map_err(PackageError::io(&locks))?;
        // Above are those of the store's older layout.
        for dir in [pkgs_dir, dir] {
            clear(dir).map_err(PackageError::io(dir))?;
        }
        entries.sweep();
        Ok(Self(Arc::new(Store {
            pkgs_dir: pkgs_dir.to_owned(),
            entries,
            python,
            installer,
            runner,
            stats,
            slots: Arc::new(Semaphore::new(parallel.max(1))),
            turns: Mutex::default(),
            looks: Looks::default(),
        })))
    }

    /// The directory of `pin`'s entry that goes on `sys.path`, as `/packages/PIN/files`
    /// in a sandbox. It need not be there.
    pub fn files(&self, pin: &Pin) -> PathBuf {
        self.0.entries.path(pin).join("files")
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

    /// Sees to it that every requirement has an entry that is as it was recorded. Those that are
    /// missing or damaged are fetched, several at a time; one that somebody else is installing is
    /// waited for.
    ///
    /// # Errors
    /// One cannot be installed; of several the first by name is told, and
    /// the others stay.
    pub async fn install(
        &self,
        requirements: &Requirements,
        depth: Depth,
        progress: Arc<dyn Progress>,
    ) -> Result<Installed, PackageError> {
        let (mut installed, missing) = self.0.look(requirements, depth).await?;
        if missing.is_empty() {
            return Ok(installed);
        }
        progress.begin(missing.len());
        let mut failed: BTreeMap<Pin, PackageError> = BTreeMap::new();
        for batch in missing.chunks(BATCH_PINS) {
            failed.extend(self.0.install(batch, depth, &progress, &mut installed).await?);
        }
        failed.into_values().next().map_or(Ok(installed), Err)
    }
}

/// What the zygote floor asks. A package that cannot be read imports nothing:
/// its node stands without it, and the function's own import tells.
impl<R: Runner> crate::zygote::Packages for Packages<R> {
    fn directory(&self, pin: &Pin) -> PathBuf {
        self.0.entries.path(pin)
    }

    fn check(&self, pins: &Pins, sooner: bool) -> Result<(), (Pin, String)> {
        self.0.check(pins, sooner).map_err(|(pin, damage)| (pin, damage.to_string()))
    }

    fn modules(&self, pin: &Pin) -> Vec<String> {
        self.top_level(pin).unwrap_or_default()
    }

    fn requires(&self, pin: &Pin) -> Vec<String> {
        Packages::requires(self, pin).unwrap_or_default()
    }
}

impl<R: Runner> Store<R> {
    fn contents(&self, pin: &Pin) -> Result<Contents, PackageError> {
        self.entries.meta(pin).map(|meta| meta.contents).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => PackageError::Missing(pin.clone()),
            _ => PackageError::io(&self.entries.path(pin))(error),
        })
    }

    /// Installs `wanted`, which are sorted, and returns those that failed. Pins are
    /// claimed in their order, here and in every other process, so that no two
    /// installs wait for each other.
    async fn install(
        self: &Arc<Self>,
        wanted: &[(Pin, Hashes)],
        depth: Depth,
        progress: &Arc<dyn Progress>,
        installed: &mut Installed,
    ) -> Result<Vec<(Pin, PackageError)>, PackageError> {
        let began = Instant::now();
        let (mut claims, mut failed) = (Vec::new(), Vec::new());
        for (pin, hashes) in wanted {
            match self.claim(pin, hashes, depth).await {
                Ok((claim, ready)) => {
                    installed.mended.extend(ready.damaged.iter().map(|(pin, _)| pin.clone()));
                    match ready.pin {
                        Some(entry) => {
                            progress.installed(pin);
                            installed.pins.insert(entry);
                        }
                        None => claims.push((claim, ready.damaged.into_iter().next_back())),
                    }
                }
                Err(error) => failed.push((pin.clone(), error)),
            }
        }
        let Some((first, _)) = claims.first() else { return Ok(failed) };
        let uv = self.installer.find_uv()?;
        let steps = Steps::new(self.entries.dir()).map_err(|error| error.of(&first.pin))?;
        let (installer, runner) = (self.installer.clone(), self.runner.clone());
        let accepted = wanted.iter().cloned().collect();
        let supply = Arc::new(Supply::new(installer, uv, runner, self.slots.clone(), steps, accepted));
        let claimed: Vec<_> = claims.iter().map(|(claim, _)| claim.pin.clone()).collect();
        let mut running = JoinSet::new();
        for ((claim, damage), supplied) in claims.into_iter().zip(supply.fetch_all(&claimed).await) {
            let (store, supply, progress) = (self.clone(), supply.clone(), progress.clone());
            let pin = claim.pin.clone();
            match supplied {
                Ok(supplied) => running.spawn(async move {
                    let completed = store.complete(claim, supplied, &supply).await;
                    let entry = completed.map_err(|error| (pin.clone(), mend::failed(error, damage)))?;
                    store.stats.record("pull-package", began.elapsed());
                    tracing::info!(package = %pin, took_ms = began.elapsed().as_millis(), "package installed");
                    progress.installed(&pin);
                    Ok(entry)
                }),
                Err(error) => {
                    failed.push((pin.clone(), mend::failed(error.of(&pin), damage)));
                    continue;
                }
            };
        }
        while let Some(joined) = running.join_next().await {
            match joined.map_err(|_| PackageError::Abandoned)? {
                Ok(entry) => _ = installed.pins.insert(entry),
                Err(error) => failed.push(error),
            }
        }
        Ok(failed)
    }

    /// Makes `pin` this install's to install, unless it is there by now. Waits for whoever
    /// installs it, and sets aside what is damaged.
    async fn claim(
        self: &Arc<Self>,
        pin: &Pin,
        hashes: &Hashes,
        depth: Depth,
    ) -> Result<(Claim, Ready), PackageError> {
        // Within this process without a thread.
        let turn = self.turn(pin).lock_owned().await;
        let (store, owned, hashes) = (self.clone(), pin.clone(), hashes.clone());
        let claimed = tokio::task::spawn_blocking(move || {
            let dir = store.entries.dir();
            let lock =
                lock(&dir.join(LOCKS), &owned, FlockArg::LockExclusive).map_err(PackageError::io(dir))?;
            let ready = store.ready(&owned, &hashes, depth)?;
            Ok((Claim { pin: owned, _lock: lock, _turn: turn }, ready))
        });
        claimed.await.map_err(|_| PackageError::Abandoned)?
    }

    /// Makes an entry of the store from what was fetched for a claimed pin.
    async fn complete(
        self: &Arc<Self>,
        claim: Claim,
        supplied: Supplied,
        supply: &Supply<R>,
    ) -> Result<Pin, PackageError> {
        let pin = claim.pin.clone();
        let origin = origin_of(&supplied.artifact, &supplied.sha256, &pin)?;
        if !supply.accepts(&pin, &origin.sha256) {
            let (file, sha256) = (origin.file, origin.sha256.to_string());
            return Err(PackageError::Install { pin, failure: Failure::NotAccepted { file, sha256 } });
        }
        let wheel = supply.wheel(&pin, supplied).await.map_err(|error| error.of(&pin))?;
        let with = wheel.built_with.iter().map(|(artifact, sha256)| origin_of(artifact, sha256, &pin));
        let built_with = with.collect::<Result<_, _>>()?;
        // Below the lock until it is dropped, also if this future is.
        let path = self.entries.dir().join(format!("{STAGING}{pin}"));
        let staging = Staging { path, _claim: claim };
        fresh_dir(&staging.path).map_err(PackageError::io(&staging.path))?;
        let room = supply.room("unpack").map_err(|error| error.of(&pin))?;
        supply.unpack(&wheel, &room).await.map_err(|error| error.of(&pin))?;
        let store = self.clone();
        let finished = tokio::task::spawn_blocking(move || {
            supply::settle(&room, &staging.path.join("files")).map_err(|error| error.of(&pin))?;
            drop(room);
            store.finish(&pin, origin, built_with, &staging)
        });
        finished.await.map_err(|_| PackageError::Abandoned)?
    }

    /// Looks at what the sandbox left, describes and records it, and puts it in place.
    fn finish(
        &self,
        pin: &Pin,
        origin: Origin,
        built_with: Vec<Origin>,
        staging: &Staging,
    ) -> Result<Pin, PackageError> {
        let path = &staging.path;
        let files = path.join("files");
        remove(&files.join(".lock")).map_err(PackageError::io(path))?;
        tree::settle(&files).map_err(|source| PackageError::Files { pin: pin.clone(), source })?;
        let contents = contents::read(&files, self.python.version).map_err(PackageError::io(&files))?;
        let record = Record::of(path)
            .map_err(|damage| PackageError::Record { pin: pin.clone(), damage: Box::new(damage) })?;
        record.write(path).map_err(PackageError::io(path))?;
        let entry = pin.of_entry(origin.sha256.entry());
        let meta = path.join(META);
        let described = Meta::new(contents, Some(origin), built_with, record.digest(false));
        let text = serde_json::to_vec(&described).map_err(|error| PackageError::io(&meta)(error.into()))?;
        let file = tree::new_file(&meta, false).and_then(|mut file| file.write_all(&text));
        file.map_err(PackageError::io(&meta))?;
        // On disk before its name is: a power cut must not leave empty modules.
        let dir = File::open(self.entries.dir()).map_err(PackageError::io(self.entries.dir()))?;
        nix::unistd::syncfs(&dir).map_err(|error| PackageError::io(path)(error.into()))?;
        let target = self.entries.path(&entry);
        let above = target.parent().unwrap_or(&target);
        fs::create_dir_all(above).map_err(PackageError::io(above))?;
        self.entries.set_aside(&entry).map_err(PackageError::io(&target))?; // without meta.json: not ours
        fs::rename(path, &target).map_err(PackageError::io(&target))?;
        File::open(above).and_then(|above| above.sync_all()).map_err(PackageError::io(above))?;
        dir.sync_all().map_err(PackageError::io(self.entries.dir()))?;
        self.looks.looked(&entry);
        Ok(entry)
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

/// Describes a file as it was fetched.
fn origin_of(artifact: &Artifact, sha256: &str, pin: &Pin) -> Result<Origin, PackageError> {
    let sha256 = sha256.parse::<Sha256>().map_err(|error| {
        let failure = Failure::Digest { file: artifact.file.clone(), said: error.to_string() };
        PackageError::Install { pin: pin.clone(), failure }
    })?;
    Ok(Origin { file: artifact.file.clone(), sha256 })
}

/// A directory that goes away unless it was renamed, under its pin's claim.
struct Staging {
    path: PathBuf,
    _claim: Claim,
}

impl Drop for Staging {
    fn drop(&mut self) {
        foreign::remove_late_or_warn(&self.path);
    }
}

/// Removes what installers left in `dir` that died.
fn clear(dir: &Path) -> io::Result<()> {
    foreign::sweep(dir);
    let locks = dir.join(LOCKS);
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().into_string().unwrap_or_default();
        step::clear_dead(dir, &name)?;
        let Some(pin) = name.strip_prefix(STAGING).and_then(|pin| pin.parse::<Pin>().ok()) else {
            continue;
        };
        // Locked: somebody is at work on it.
        if !locks.is_dir() || lock(&locks, &pin, FlockArg::LockExclusiveNonblock).is_ok() {
            foreign::remove_late_or_warn(&entry.path());
        }
    }
    Ok(())
}

/// Takes the lock of a pin, for this process and others.
fn lock(locks: &Path, pin: &Pin, how: FlockArg) -> io::Result<Flock<File>> {
    let file = File::options().create(true).truncate(false).write(true).open(locks.join(pin.to_string()))?;
    Flock::lock(file, how).map_err(|(_, errno)| errno.into())
}

/// Removes a file or a directory with what is in it, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    foreign::remove(path).map_err(ForeignError::into_io)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;

#[cfg(test)]
mod mend_tests;
