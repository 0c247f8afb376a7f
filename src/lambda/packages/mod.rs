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

mod contents;
mod installer;
mod operator;
mod tools;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

pub use contents::Contents;
pub use installer::{Failure, Installer};
pub use operator::Operator;
pub use tools::{ToolError, ensure_uv, find_uv, python_version};

use super::requirements::{Pin, Pins, PythonVersion};
use super::tree::{self, TreeError};
use super::{Blame, registry::fresh_dir};
use crate::sandbox::{Command, Outcome, RunError, Runner};
use crate::stats::Stats;

const STAGING: &str = ".staging-";
const LOCKS: &str = ".locks";
const META: &str = "meta.json";

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
    slots: Semaphore,
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
            slots: Semaphore::new(parallel.max(1)),
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
        let mut running = JoinSet::new();
        for (index, pin) in missing.into_iter().enumerate() {
            let (store, progress) = (self.0.clone(), progress.clone());
            running.spawn(async move {
                let result = store.install(&pin).await;
                if result.is_ok() {
                    progress.installed(&pin);
                }
                (index, result)
            });
        }
        let mut first: Option<(usize, PackageError)> = None;
        while let Some(joined) = running.join_next().await {
            match joined {
                Ok((_, Ok(()))) => {}
                Ok((index, Err(error))) if first.as_ref().is_none_or(|(known, _)| index < *known) => {
                    first = Some((index, error));
                }
                Ok(_) => {}
                Err(_) => return Err(PackageError::Abandoned),
            }
        }
        first.map_or(Ok(()), |(_, error)| Err(error))
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

    async fn install(self: &Arc<Self>, pin: &Pin) -> Result<(), PackageError> {
        let turn = self.turn(pin);
        let _turn = turn.lock().await;
        if self.has(pin) {
            return Ok(());
        }
        // The slot before the lock: who waits holds no descriptor and no thread.
        let _slot = self.slots.acquire().await.map_err(|_| PackageError::Abandoned)?;
        let uv = self.installer.find_uv()?;
        let lock = {
            let (locks, pin) = (self.dir.join(LOCKS), pin.clone());
            let locked = tokio::task::spawn_blocking(move || lock(&locks, &pin, FlockArg::LockExclusive));
            locked.await.map_err(|_| PackageError::Abandoned)?.map_err(PackageError::io(&self.dir))?
        };
        if self.has(pin) {
            return Ok(());
        }
        let began = Instant::now();
        // Below the lock until it is dropped, also if this future is.
        let staging = Staging { path: self.dir.join(format!("{STAGING}{pin}")), _lock: lock };
        for dir in ["", "files", "home", "tmp", "cache"] {
            let path = staging.path.join(dir);
            fresh_dir(&path).map_err(PackageError::io(&path))?;
        }
        let command = self.installer.install(&uv, pin, &staging.path);
        let outlet = command.outlet.clone();
        let outcome = self.run(pin, command).await?;
        if let Some(failure) = self.installer.explain(outcome.ended, &outcome.output, outlet.as_deref()) {
            let failure = self.with_newest(&uv, pin, failure, &staging.path).await;
            return Err(PackageError::Install { pin: pin.clone(), failure });
        }
        let (store, owned) = (self.clone(), pin.clone());
        let finished = tokio::task::spawn_blocking(move || store.finish(&owned, &staging));
        finished.await.map_err(|_| PackageError::Abandoned)??;
        self.stats.record("pull-package", began.elapsed());
        tracing::info!(package = %pin, took_ms = began.elapsed().as_millis(), "package installed");
        Ok(())
    }

    /// Looks at what the sandbox left, describes it, and puts it in place.
    fn finish(&self, pin: &Pin, staging: &Staging) -> Result<(), PackageError> {
        let path = &staging.path;
        let files = path.join("files");
        for scrap in ["home", "tmp", "cache", "probe", "files/.lock"] {
            remove(&path.join(scrap)).map_err(PackageError::io(path))?;
        }
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

    async fn run(&self, pin: &Pin, command: Command) -> Result<Outcome, PackageError> {
        let run = self.runner.run(command).await;
        run.map_err(|source| PackageError::Sandbox { pin: pin.clone(), source })
    }

    /// Adds which version there is, if that can be found out.
    async fn with_newest(&self, uv: &Path, pin: &Pin, failure: Failure, out: &Path) -> Failure {
        if failure != (Failure::NoSuchVersion { newest: None }) {
            return failure;
        }
        let asked = self.run(pin, self.installer.ask_newest(uv, pin, out)).await;
        Failure::NoSuchVersion { newest: asked.ok().and_then(|asked| installer::newest(pin, &asked.output)) }
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

/// A directory that goes away unless it was renamed, under its pin's lock.
struct Staging {
    path: PathBuf,
    _lock: Flock<File>,
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
