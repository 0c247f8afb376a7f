//! Code versions: a function's files as they run, made once for each content.
//! Runs in the worker, which alone uses the directory.
//!
//! ```text
//! registry ─ fetch ─ inspect ─ digest ─ compile (sandbox) ─ settle ─ rename
//!            └──────── CODE_DIR/~staging-N/ ─────────────┘        │
//!                                            CODE_DIR/NAME/<digest>/
//! ```
//!
//! A version never changes: instances of the old one run on while the new one
//! is made, and none sees both. Nothing half-made has a version's name.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::config::{CONFIG_FILE, ConfigError, Entry, FunctionConfig};
use super::registry::{Registry, RegistryError};
use super::requirements::{self, Pins, PythonVersion, Requirements, RequirementsError};
use super::tree::{self, Bounds, TreeError, make_dir};
use super::{Blame, FunctionName};
use crate::sandbox::foreign::{self, ForeignError};
use crate::sandbox::memory::MachineMemory;
use crate::sandbox::{Bind, Code, Command, Ended, Limits, Network, RunError, Runner};
use crate::settings::Settings;
use crate::zygote::Head;

/// No function's name begins with it.
const STAGING: &str = "~staging-";

/// A program for the interpreter: writes bytecode beside the code, and [`HEAD`].
const COMPILE: &str = include_str!("../../pyruntime/hosier_compile.py");

/// File below the code that says what the head of the entry file imports.
const HEAD: &str = "__pycache__/hosier-head.json";

/// Bytes of that file that are read, at most: 512 names of 200 bytes.
const HEAD_LIMIT_BYTES: u64 = 128 << 10;

/// Where a function's code is in its sandbox; tracebacks show it.
const HANDLER: &str = "/handler";

/// A function cannot be made ready to run.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Requirements(#[from] RequirementsError),
    #[error(
        "there is no {file}{}: name the entry file in {CONFIG_FILE}, \
         environment: {{OL_ENTRY_FILE: FILE.py}}",
        beside(others)
    )]
    NoEntry { file: String, others: Vec<String> },
    #[error(transparent)]
    Files(#[from] TreeError),
    #[error("its code cannot be compiled: {0}")]
    Sandbox(#[from] RunError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the work was given up")]
    Abandoned,
}

fn beside(others: &[String]) -> String {
    match others {
        [] => " and no other Python file".to_owned(),
        others => format!(" (there is {})", others.join(", ")),
    }
}

impl CodeError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| CodeError::Io { path, source }
    }

    pub fn blame(&self) -> Blame {
        match self {
            CodeError::Registry(error) => error.blame(),
            CodeError::Config(error) => error.blame(),
            CodeError::Requirements(RequirementsError::Read(_)) => Blame::Worker,
            CodeError::Requirements(_) | CodeError::NoEntry { .. } => Blame::Function,
            CodeError::Files(error) => error.blame(),
            CodeError::Sandbox(_) | CodeError::Io { .. } | CodeError::Abandoned => Blame::Worker,
        }
    }
}

/// What a function's files say of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    pub config: FunctionConfig,
    pub entry: Entry,
    pub requirements: Requirements,
}

/// What a function must fit, to be stored and to be served.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    pub python: PythonVersion,
    /// The most that its own limits may be.
    pub most: Limits,
}

impl Terms {
    /// As the settings say, for an interpreter of this version.
    pub fn new(settings: &Settings, python: PythonVersion) -> Self {
        let mut most = settings.max_limits;
        if most.mem_mb == 0 {
            let machine = MachineMemory::now().map_or(u64::MAX, |memory| memory.total >> 20);
            most.mem_mb = u32::try_from(machine).unwrap_or(u32::MAX);
        }
        Self { python, most }
    }
}

/// Reads and checks what the files in `dir` declare. `hosier deploy` asks this
/// before anything is stored.
///
/// # Errors
/// `ol.yaml` or `requirements.txt` cannot be used, or the entry file is not there.
pub fn inspect(dir: &Path, terms: &Terms) -> Result<Declared, CodeError> {
    let config = FunctionConfig::load(dir)?;
    config.check_limits(&terms.most)?;
    let entry = config.entry()?;
    let requirements = requirements::load(dir, terms.python)?;
    if !dir.join(&entry.file).is_file() {
        let names = fs::read_dir(dir).map_err(CodeError::io(dir))?;
        let mut others: Vec<_> = names
            .filter_map(|name| name.ok()?.file_name().into_string().ok())
            .filter(|name| name.ends_with(".py"))
            .collect();
        others.sort();
        others.truncate(5);
        return Err(CodeError::NoEntry { file: entry.file, others });
    }
    Ok(Declared { config, entry, requirements })
}

/// Stores an archive as function `name`, if it can run; what it declares.
///
/// # Errors
/// As [`inspect`], or the registry cannot store it. Nothing has changed then.
pub fn store(
    registry: &Registry,
    name: &FunctionName,
    archive: impl io::Read,
    terms: &Terms,
) -> Result<Declared, CodeError> {
    let mut declared = None;
    registry.store(name, archive, |files| inspect(files, terms).map(|found| declared = Some(found)))?;
    declared.ok_or(CodeError::Abandoned)
}

/// Stores the files of `source` as function `name`; otherwise as [`store`].
///
/// # Errors
/// As [`store`].
pub fn store_dir(
    registry: &Registry,
    name: &FunctionName,
    source: &Path,
    terms: &Terms,
) -> Result<Declared, CodeError> {
    let mut declared = None;
    registry.store_dir(name, source, |files| inspect(files, terms).map(|found| declared = Some(found)))?;
    declared.ok_or(CodeError::Abandoned)
}

/// One version of a function, ready to run but for its packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub name: FunctionName,
    /// Of the files and the interpreter: 32 hexadecimal digits.
    pub digest: String,
    /// What `/handler` shows: readable for all, bytecode included.
    pub dir: PathBuf,
    pub declared: Declared,
    /// Its requirements as entries of the store; empty until they are installed.
    pub pins: Pins,
    /// Modules that its entry file imports first, as far as that is known.
    pub head: Head,
}

/// How code is compiled.
#[derive(Debug, Clone)]
pub struct Compiler {
    /// The interpreter, on the host and in the sandbox.
    pub python: PathBuf,
    pub terms: Terms,
    pub limits: Limits,
}

impl Compiler {
    /// As the settings say.
    pub fn from_settings(settings: &Settings, terms: Terms) -> Self {
        Self { python: settings.sandbox.python.clone(), terms, limits: settings.installer_limits }
    }
}

/// The versions in one directory.
#[derive(Debug)]
pub struct Versions<R> {
    dir: PathBuf,
    registry: Registry,
    compiler: Compiler,
    bounds: Bounds,
    runner: Arc<R>,
}

impl<R: Runner> Versions<R> {
    /// Opens the directory, which is made if it is not there, and removes what
    /// a worker left that died.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(
        dir: &Path,
        registry: Registry,
        compiler: Compiler,
        bounds: Bounds,
        runner: Arc<R>,
    ) -> Result<Self, CodeError> {
        fs::create_dir_all(dir).map_err(CodeError::io(dir))?;
        foreign::sweep(dir);
        for entry in fs::read_dir(dir).map_err(CodeError::io(dir))? {
            let path = entry.map_err(CodeError::io(dir))?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(STAGING)) {
                foreign::remove_late_or_warn(&path);
            }
        }
        Ok(Self { dir: dir.to_owned(), registry, compiler, bounds, runner })
    }

    /// The version of what the registry holds as `name` now; made, if it is new.
    ///
    /// # Errors
    /// The function is not there, cannot be used, or no sandbox compiles it. A
    /// file that is no valid Python is no error: its import will be.
    pub async fn prepare(&self, name: &FunctionName) -> Result<Version, CodeError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let staging = self.dir.join(format!("{STAGING}{count}"));
        let fetch = {
            let (registry, name, bounds) = (self.registry.clone(), name.clone(), self.bounds);
            let compiler = self.compiler.clone();
            move || fetch(&registry, &name, staging, &compiler, bounds)
        };
        let (staging, digest, declared) = blocking(fetch).await?;
        let dir = self.dir.join(name.as_str()).join(&digest);
        let mut version =
            Version { name: name.clone(), digest, dir, declared, pins: Pins::new(), head: Head::default() };
        if !version.dir.is_dir() {
            self.compile(&staging.code(), &version).await?;
            let target = version.dir.clone();
            blocking(move || publish(&staging.code(), &target)).await?;
        }
        let dir = version.dir.clone();
        version.head = blocking(move || Ok(read_head(&dir))).await?;
        Ok(version)
    }

    /// Removes all versions of `name` but those whose digests are kept.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn prune(&self, name: &FunctionName, keep: &[&str]) -> Result<(), CodeError> {
        let dir = self.dir.join(name.as_str());
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(CodeError::io(&dir))?,
        };
        for entry in entries {
            let entry = entry.map_err(CodeError::io(&dir))?;
            if !keep.iter().any(|digest| entry.file_name() == *digest) {
                let removed = foreign::remove(&entry.path()).map_err(ForeignError::into_io);
                removed.map_err(CodeError::io(&entry.path()))?;
            }
        }
        if keep.is_empty() {
            fs::remove_dir(&dir).map_err(CodeError::io(&dir))?;
        }
        Ok(())
    }

    /// Writes bytecode beside the code, and what the entry file imports first. Without it the function runs too, only
    /// slower: a compiler that fails is told to the operator, and no more.
    async fn compile(&self, code: &Path, version: &Version) -> Result<(), CodeError> {
        let python = self.compiler.python.display().to_string();
        let rest = ["-I", "-c", COMPILE, &version.declared.entry.file, HANDLER];
        let command = Command {
            argv: [python.as_str()].iter().chain(&rest).map(|text| (*text).to_owned()).collect(),
            env: [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("LANG", "C.UTF-8"), ("HOME", "/tmp")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            binds: vec![Bind { source: code.to_owned(), target: HANDLER.to_owned(), writable: true }],
            limits: self.compiler.limits,
            network: Network::None,
            outlet: None,
            code: Code::Tool,
        };
        let outcome = self.runner.run(command).await?;
        if !matches!(outcome.ended, Ended::Exited(_)) {
            tracing::warn!(function = %version.name, ended = ?outcome.ended, "code not compiled");
        }
        Ok(())
    }
}

/// Gets the files, and reads what they say.
fn fetch(
    registry: &Registry,
    name: &FunctionName,
    staging: PathBuf,
    compiler: &Compiler,
    bounds: Bounds,
) -> Result<(Staging, String, Declared), CodeError> {
    let staging = Staging(staging);
    let code = &staging.code();
    for dir in [&staging.0, code] {
        make_dir(dir).map_err(CodeError::io(dir))?;
    }
    registry.fetch(name, code)?;
    let declared = inspect(code, &compiler.terms)?;
    // Bytecode is of one interpreter.
    let PythonVersion { major, minor, .. } = compiler.terms.python;
    let digest = tree::digest(code, &tree::walk(code, bounds)?, &format!("cpython-{major}.{minor}"))?;
    Ok((staging, digest, declared))
}

/// Reads what the head of a version's entry file imports: nothing, where its compiler did not say.
fn read_head(dir: &Path) -> Head {
    let mut json = Vec::new();
    let read = tree::open_file(&dir.join(HEAD))
        .and_then(|file| io::Read::read_to_end(&mut io::Read::take(file, HEAD_LIMIT_BYTES), &mut json));
    read.map_or_else(|_| Head::default(), |_| Head::parse(&json))
}

/// Puts a finished version in place.
fn publish(code: &Path, target: &Path) -> Result<(), CodeError> {
    tree::settle(code)?;
    let dir = target.parent().unwrap_or(target);
    fs::create_dir_all(dir).map_err(CodeError::io(dir))?;
    // On disk before its name is: bytecode is not checked again.
    let opened = File::open(dir).map_err(CodeError::io(dir))?;
    nix::unistd::syncfs(&opened).map_err(|error| CodeError::io(dir)(error.into()))?;
    match fs::rename(code, target) {
        // Somebody else made the same one meanwhile.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        renamed => renamed.map_err(CodeError::io(target)),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CodeError> + Send + 'static,
) -> Result<T, CodeError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| CodeError::Abandoned)?
}

/// A directory that goes away with what was not taken from it. Whoever works
/// in it owns it: a caller that gives up does not pull it away.
struct Staging(PathBuf);

impl Staging {
    fn code(&self) -> PathBuf {
        self.0.join("code")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        foreign::remove_late_or_warn(&self.0);
    }
}

#[cfg(test)]
#[path = "code_tests.rs"]
mod tests;
