//! A worker directory: where things are in it, and who holds it.
//!
//! ```text
//! DIR/hosier.toml            settings
//! DIR/token                  what a client on the port shows to do more than call; mode 0600
//! DIR/registry/              functions as they were stored
//! DIR/packages/              the package store
//! DIR/logs/                  what functions print
//! DIR/tools/                 uv, if the machine has none
//! DIR/worker/lock            held by the worker, and by its spawner until it has cleared up
//! DIR/worker/hosier.sock     the worker's own socket
//! DIR/worker/code/           functions as they run
//! DIR/worker/run/            gone when the worker is
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::CliError;
use crate::settings::Settings;

/// How long a start waits for the spawner of a dead worker to clear up.
const CLEARING_UP: Duration = Duration::from_secs(5);

/// How long a worker may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// The paths of one worker directory.
#[derive(Debug, Clone)]
pub struct Place {
    pub dir: PathBuf,
    pub worker: PathBuf,
}

impl Place {
    pub fn of(settings: &Settings) -> Self {
        Self { dir: settings.dir.clone(), worker: settings.worker_dir.clone() }
    }

    pub fn socket(&self) -> PathBuf {
        self.worker.join("hosier.sock")
    }

    /// The file with the token of [`crate::trigger::Token`].
    pub fn token(&self) -> PathBuf {
        self.dir.join("token")
    }

    pub fn run(&self) -> PathBuf {
        self.worker.join("run")
    }

    pub fn code(&self) -> PathBuf {
        self.worker.join("code")
    }

    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// What the worker itself logs when it is detached.
    pub fn worker_log(&self) -> PathBuf {
        self.worker.join("worker.log")
    }

    /// The name of our control groups, the same for the same directory.
    pub fn group(&self) -> String {
        format!("hosier-{:08x}", self.seed())
    }

    /// A number of this directory's own.
    pub fn seed(&self) -> u32 {
        let path = self.dir.canonicalize().unwrap_or_else(|_| self.dir.clone());
        let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
        u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
    }

    /// Whether `hosier init` was here.
    ///
    /// # Errors
    /// It was not.
    pub fn check(&self) -> Result<(), CliError> {
        if self.dir.join("hosier.toml").is_file() {
            return Ok(());
        }
        Err(CliError::NotInitialized { dir: self.dir.clone() })
    }

    /// Takes the directory for one worker. What a dead one left is being
    /// cleared up for a moment after its end, by its spawner, who holds the lock till then.
    ///
    /// # Errors
    /// A worker runs here.
    pub fn lock(&self) -> Result<Lock, CliError> {
        make_dirs(&self.worker)?;
        let path = self.worker.join("lock");
        let until = Instant::now() + CLEARING_UP;
        loop {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .map_err(|source| CliError::File { path: path.clone(), source })?;
            match file.try_lock() {
                Ok(()) => return Ok(Lock(file)),
                Err(TryLockError::WouldBlock) if self.answers() || Instant::now() >= until => {
                    return Err(CliError::Taken { dir: self.dir.clone() });
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
                Err(TryLockError::Error(source)) => return Err(CliError::File { path, source }),
            }
        }
    }

    /// Whether a living worker answers on its own socket. That somebody can connect
    /// proves nothing: a killed worker's socket listens until the kernel has closed it.
    pub fn answers(&self) -> bool {
        let ask = || -> io::Result<usize> {
            let mut stream = UnixStream::connect(self.socket())?;
            stream.set_read_timeout(Some(ANSWER))?;
            stream.write_all(b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            stream.read(&mut [0])
        };
        ask().is_ok_and(|count| count > 0)
    }
}

/// The directory is ours while this or any copy of it in a child is open: it is
/// never unlocked, only closed, for the spawner's copy must hold on.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "kept for its lock")] File);

/// Makes a directory and those above it.
pub fn make_dirs(path: &Path) -> Result<(), CliError> {
    fs::create_dir_all(path).map_err(|source: io::Error| CliError::File { path: path.to_owned(), source })
}
