//! A program run once in a fresh sandbox: what an installer is.

use std::future::Future;
use std::path::PathBuf;

use super::{Limits, Network};

/// A host directory shown inside a sandbox.
#[derive(Debug, Clone)]
pub struct Bind {
    /// The directory (or file) on the host.
    pub source: PathBuf,
    /// Where it appears, an absolute path below `/`.
    pub target: String,
    /// Writable binds belong to the sandbox's root while it runs and are given
    /// back to the host's root, recursively, when it ended.
    pub writable: bool,
}

/// A program to run once in a fresh sandbox, as root of its user namespace.
#[derive(Debug, Clone)]
pub struct Command {
    /// The program's absolute path inside the sandbox, and its arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// What of the host is shown.
    pub binds: Vec<Bind>,
    /// `runtime_sec` bounds the run.
    pub limits: Limits,
    /// `Host` also shows the host's CA files and resolver.
    pub network: Network,
}

/// How a [`Command`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this code.
    Exited(i32),
    /// A signal ended it.
    Signaled(i32),
    /// It reached its memory limit.
    OutOfMemory,
    /// It reached `runtime_sec`.
    TimedOut,
}

/// What a [`Command`] left.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub ended: Ended,
    /// The last 64 KiB of stdout and stderr together.
    pub output: String,
}

/// The sandbox around a [`Command`] could not be made; says what failed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct RunError(#[from] Box<dyn std::error::Error + Send + Sync>);

impl RunError {
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

/// Runs commands in fresh sandboxes: the spawner, as the floors above see it.
pub trait Runner: Send + Sync + 'static {
    /// Runs `command` to its end. When this returns, or is dropped, no process
    /// of it is left and its writable binds are the host's again.
    fn run(&self, command: Command) -> impl Future<Output = Result<Outcome, RunError>> + Send;
}
