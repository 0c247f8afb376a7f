//! What can go wrong on the sandbox floor. Runs in the worker.

use std::io;
use std::path::PathBuf;

use hosier_zygote::sys::SysError;
use hosier_zygote::wire::{BadFrame, Failure};

use super::cgroup::CgroupError;
use super::seccomp::SeccompError;

/// A sandbox that could not be made, or that had to end.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("the sandbox could not be contained: {0}")]
    Contain(#[from] Failure),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    #[error("{what}: {source}")]
    System { what: &'static str, source: SysError },
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("the spawner process is gone; restart the worker")]
    SpawnerGone,
    #[error("the sandbox broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("the sandbox broke the protocol: {0}")]
    Frame(#[from] BadFrame),
    /// It said that it had given everything up, and the kernel says otherwise.
    #[error("the sandbox kept what it must give up: {0}")]
    Unconfined(String),
    #[error("the sandbox ended")]
    Ended,
    #[error("the sandbox did not answer within {0} s")]
    TimedOut(u64),
    #[error("all {limit} sandboxes are in use; raise sandbox.max_sandboxes")]
    Full { limit: usize },
    #[error("no range of ids is left for another user namespace")]
    NoIds,
    #[error("no id is left for another sandbox: all {count} of its tree are in use; restart the worker")]
    NoLeafIds { count: u32 },
    #[error("no name of a control group is left for another user namespace")]
    NoHome,
    #[error("{0}")]
    Unsupported(String),
}

/// Says what a failed system call was for.
pub(crate) trait During<T> {
    fn during(self, what: &'static str) -> Result<T, SandboxError>;
}

impl<T> During<T> for Result<T, SysError> {
    fn during(self, what: &'static str) -> Result<T, SandboxError> {
        self.map_err(|source| SandboxError::System { what, source })
    }
}

/// Says which file a failed operation was about.
pub(crate) trait About<T> {
    fn about(self, path: impl Into<PathBuf>) -> Result<T, SandboxError>;
}

impl<T> About<T> for io::Result<T> {
    fn about(self, path: impl Into<PathBuf>) -> Result<T, SandboxError> {
        self.map_err(|source| SandboxError::File { path: path.into(), source })
    }
}

impl<T> About<T> for nix::Result<T> {
    fn about(self, path: impl Into<PathBuf>) -> Result<T, SandboxError> {
        self.map_err(io::Error::from).about(path)
    }
}
