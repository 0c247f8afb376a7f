//! What a command can fail with; each says what to do next.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use super::demo::DemoError;
use crate::lambda::archive::ArchiveError;
use crate::lambda::packages::{PackageError, ToolError};
use crate::lambda::registry::RegistryError;
use crate::lambda::{BadName, CodeError};
use crate::sandbox::SandboxError;
use crate::settings::SettingsError;
use crate::trigger::{TokenError, TriggerError};
use crate::zygote::{TemplateError, ZygoteError};

#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error("{0} is no worker directory: run `hosier init -p {0}`", .dir.display())]
    NotInitialized { dir: PathBuf },
    #[error("a worker runs in {0}: stop it with `hosier down -p {0}`, or name another directory with -p", .dir.display())]
    Taken { dir: PathBuf },
    #[error("no worker runs in {0}: start one with `hosier up -p {0}`", .dir.display())]
    NotRunning { dir: PathBuf },
    #[error("{said} (the worker ended with {status})")]
    NotUp { status: ExitStatus, said: String },
    #[error("the worker was not ready within {bound_s} s and was ended; its log is {}", log.display())]
    NotReady { bound_s: u64, log: PathBuf },
    #[error("the worker did not end within {bound_s} s; `kill -9 {pid}` ends it, and its spawner clears up")]
    NotDown { bound_s: u64, pid: i32 },
    #[error("{} is missing: build with `cargo build --release`, which puts it beside hosier", path.display())]
    NoModule { path: PathBuf },
    #[error("what a dead worker left could not be removed: {0}")]
    Leftovers(String),
    #[error("the tree file {}: {source}; set import_cache_tree, or \"\" for a tree that grows itself", path.display())]
    Tree { path: PathBuf, source: io::Error },
    #[error("{} is neither a directory nor a .tar.gz", path.display())]
    NoFunction { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Archive { path: PathBuf, source: ArchiveError },
    #[error("interrupted; nothing was stored")]
    Interrupted,
    #[error("{name} answered {status}: {body}")]
    Refused { name: String, status: u16, body: String },
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Demo(#[from] DemoError),
    #[error(transparent)]
    Name(#[from] BadName),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Trigger(#[from] TriggerError),
    #[error(
        "the limit of open files is {limit}, and a worker with these settings needs {least} at least and {all} for all that they \
         allow: raise it (`ulimit -n {all}`; LimitNOFILE={all} in a systemd unit)"
    )]
    Descriptors { limit: u64, least: u64, all: u64 },
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Zygote(#[from] ZygoteError),
    #[error("{place}: {source}")]
    Template { place: String, source: TemplateError },
    #[error(transparent)]
    Package(#[from] PackageError),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Code(#[from] CodeError),
}
