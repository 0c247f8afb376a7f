//! What functions print: one bounded file a function. Runs in the worker, a
//! task for each sandbox.
//!
//! ```text
//! DIR/logs/NAME.log     the newest; at half the bound it becomes
//! DIR/logs/NAME.log.1   the older half, replacing the one before
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::FunctionName;
use crate::sandbox::Output;

/// A function's log.
#[derive(Debug)]
pub struct FunctionLog {
    path: PathBuf,
    /// Bytes of both files together; 0 throws everything away.
    limit: u64,
    open: Mutex<Option<(File, u64)>>,
}

impl FunctionLog {
    pub fn new(dir: &Path, name: &FunctionName, limit: u64) -> Arc<Self> {
        Arc::new(Self { path: dir.join(format!("{name}.log")), limit, open: Mutex::default() })
    }

    /// Reads a sandbox's output until the sandbox is gone, so that it never blocks
    /// on a full pipe. Somebody else may hold the other end open for longer.
    pub fn follow(self: &Arc<Self>, output: Output) {
        let log = Arc::clone(self);
        tokio::spawn(output.read_all(move |bytes| {
            if let Err(error) = log.append(bytes) {
                tracing::warn!(path = %log.path.display(), %error, "a function's log cannot be written");
            }
        }));
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        if self.limit == 0 {
            return Ok(());
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut file, mut size) = match open.take() {
            Some(open) => open,
            None => self.open()?,
        };
        if size + bytes.len() as u64 > self.limit / 2 && size > 0 {
            drop(file);
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            (file, size) = self.open()?;
        }
        file.write_all(bytes)?;
        *open = Some((file, size + bytes.len() as u64));
        Ok(())
    }

    fn open(&self) -> io::Result<(File, u64)> {
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir)?;
        }
        let file = File::options().create(true).append(true).open(&self.path)?;
        let size = file.metadata()?.len();
        Ok((file, size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_never_exceeds_its_bound_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let log = FunctionLog::new(dir.path(), &FunctionName::new("a.b").unwrap(), 1000);
        for number in 0..500 {
            log.append(format!("line {number:03}\n").as_bytes()).unwrap();
        }
        let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap()).collect();
        let total: u64 = files.iter().map(|file| file.metadata().unwrap().len()).sum();
        assert!(total <= 1000 && files.len() == 2, "{total} bytes in {files:?}");
        assert!(fs::read_to_string(dir.path().join("a.b.log")).unwrap().ends_with("line 499\n"));
    }
}
