//! An entry's record: every file, directory and link of it as it was put into the store.
//! Blocking; the worker's or the command's process, never a sandbox's.
//!
//! ```text
//! installed ─▶ Record::of ─▶ record.json        beside `files`, where no sandbox writes
//!
//! check:  kinds, sizes and times as recorded? ── yes ──────────────▶ sound (or hashed, if wanted)
//!              │ no: a copy, a backup put back, or damage
//!              ▼
//!         hash all ── as recorded ─▶ sound; the new times are recorded
//!              └───── not ─────────▶ Damage, which names the file
//! ```
//!
//! A time of change (ctime) cannot be set by who changes a file, so that a flipped byte shows in the
//! cheap comparison as well, unless the medium itself flipped it: only hashing finds that.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::Digest;

use crate::lambda::requirements::Sha256;
use crate::lambda::tree;

/// The record's name in an entry.
pub(super) const RECORD: &str = "record.json";
/// The recorded directory's name in an entry.
const FILES: &str = "files";

/// Entries of one record, at most.
const ENTRIES_LIMIT: usize = 1_000_000;
/// Size of a record, in bytes.
const RECORD_LIMIT_BYTES: u64 = 256 << 20;
/// Bytes that are hashed at one time.
const CHUNK_BYTES: usize = 64 << 10;

/// How closely an entry is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Kinds, sizes and times; everything is hashed only if one of them is not as recorded.
    Times,
    /// Every byte.
    Whole,
}

/// What is wrong with an entry, and with which file of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", file.display())]
pub struct Damage {
    /// Relative to the entry.
    pub file: PathBuf,
    pub reason: String,
}

impl Damage {
    pub(super) fn new(file: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self { file: file.into(), reason: reason.into() }
    }

    fn io(file: &Path, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::new(file, "it is not there"),
            _ => Self::new(file, error.to_string()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Dir,
    File,
    Link,
}

/// One line of a record. Times are in nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    /// Relative to the entry.
    path: PathBuf,
    kind: Kind,
    /// In bytes; 0 of what is no file.
    size: u64,
    modified_ns: i64,
    changed_ns: i64,
    /// Of a file's content, or of a link's target.
    sha256: Option<Sha256>,
}

impl Row {
    /// Everything but the digest.
    fn of(path: PathBuf, meta: &fs::Metadata) -> io::Result<Self> {
        let kind = match meta.file_type() {
            kind if kind.is_dir() => Kind::Dir,
            kind if kind.is_file() => Kind::File,
            kind if kind.is_symlink() => Kind::Link,
            _ => return Err(io::Error::other("it is neither a file, a directory nor a link")),
        };
        let ns = |seconds: i64, ns: i64| seconds.saturating_mul(1_000_000_000).saturating_add(ns);
        Ok(Self {
            path,
            kind,
            size: if kind == Kind::File { meta.len() } else { 0 },
            modified_ns: ns(meta.mtime(), meta.mtime_nsec()),
            changed_ns: ns(meta.ctime(), meta.ctime_nsec()),
            sha256: None,
        })
    }

    fn same_content(&self, other: &Row) -> bool {
        (&self.path, self.kind, self.size, self.sha256) == (&other.path, other.kind, other.size, other.sha256)
    }
}

/// All that an entry holds, sorted by path.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record(Vec<Row>);

impl Record {
    /// Reads and hashes all of `entry`'s files.
    ///
    /// # Errors
    /// One cannot be read, has a name that is not UTF-8, or is of another kind; it is named.
    pub(super) fn of(entry: &Path) -> Result<Self, Damage> {
        let mut rows = list(entry)?;
        for row in &mut rows {
            let hashed = match row.kind {
                Kind::Dir => continue,
                Kind::File => hash_file(&entry.join(&row.path)),
                Kind::Link => fs::read_link(entry.join(&row.path))
                    .map(|target| hash(target.as_os_str().as_encoded_bytes())),
            };
            row.sha256 = Some(hashed.map_err(|error| Damage::io(&row.path, &error))?);
        }
        Ok(Self(rows))
    }

    /// Digest of the names, kinds and contents, without their times. Bytecode is left out if `code`
    /// is set: what it is made of is there, and two interpreters make it differently.
    pub(super) fn digest(&self, code: bool) -> Sha256 {
        let mut all = sha2::Sha256::new();
        for row in self.0.iter().filter(|row| !code || !is_bytecode(&row.path)) {
            // Lengths go first, so that no two lists of parts read the same.
            let path = row.path.as_os_str().as_encoded_bytes();
            all.update((path.len() as u64).to_le_bytes());
            all.update(path);
            all.update([row.kind as u8]);
            all.update(row.sha256.map_or_else(String::new, |digest| digest.to_string()));
        }
        Sha256::from(<[u8; 32]>::from(all.finalize()))
    }

    /// The digest of one file, by its path below `files`.
    pub(super) fn file(&self, path: &str) -> Option<Sha256> {
        let path = Path::new(FILES).join(path);
        let at = self.0.binary_search_by(|row| row.path.cmp(&path)).ok()?;
        self.0[at].sha256
    }

    /// Paths of the files, relative to the entry.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|row| row.path.as_path())
    }

    /// Writes the record into `entry`, where there is none.
    ///
    /// # Errors
    /// As `open(2)` with `O_EXCL`.
    pub(super) fn write(&self, entry: &Path) -> io::Result<()> {
        self.write_as(&entry.join(RECORD))
    }

    fn write_as(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        io::Write::write_all(&mut tree::new_file(path, false)?, &text)
    }

    fn read(entry: &Path) -> Result<Self, Damage> {
        let damage = |error: io::Error| Damage::io(Path::new(RECORD), &error);
        let mut text = Vec::new();
        let file = tree::open_file(&entry.join(RECORD)).map_err(damage)?;
        file.take(RECORD_LIMIT_BYTES).read_to_end(&mut text).map_err(damage)?;
        serde_json::from_slice(&text).map_err(|error| Damage::new(RECORD, error.to_string()))
    }
}

/// Compares `entry` with its record; `content` is what the record's digest must be.
///
/// # Errors
/// The first file that is not as it was recorded.
pub(super) fn check(entry: &Path, content: &Sha256, depth: Depth) -> Result<(), Damage> {
    let recorded = Record::read(entry)?;
    let kept = recorded.0.iter().all(|row| {
        let found =
            fs::symlink_metadata(entry.join(&row.path)).and_then(|meta| Row::of(PathBuf::new(), &meta));
        let expected = (row.kind, row.size, row.modified_ns, row.changed_ns);
        found.is_ok_and(|found| (found.kind, found.size, found.modified_ns, found.changed_ns) == expected)
    });
    if kept && depth == Depth::Times {
        return Ok(());
    }
    let found = Record::of(entry)?;
    if let Some(damage) = difference(&recorded.0, &found.0) {
        return Err(damage);
    }
    if found.digest(false) != *content {
        return Err(Damage::new(RECORD, "it is not the record that was made of this entry"));
    }
    if !kept {
        renew(entry, &found);
    }
    Ok(())
}

/// Records the times anew. If that fails, the next check hashes once more.
fn renew(entry: &Path, record: &Record) {
    let fresh = entry.join(format!(".{RECORD}-{}", std::process::id()));
    let written = record.write_as(&fresh).and_then(|()| fs::rename(&fresh, entry.join(RECORD)));
    if let Err(error) = written {
        let _ = fs::remove_file(&fresh);
        tracing::warn!(path = %entry.display(), %error, "a record could not be renewed");
    }
}

/// The first row that the two do not share.
fn difference(recorded: &[Row], found: &[Row]) -> Option<Damage> {
    let mut found = found.iter().peekable();
    for row in recorded {
        if let Some(extra) = found.next_if(|found| found.path < row.path) {
            return Some(Damage::new(&extra.path, "it was not there when the package was installed"));
        }
        match found.next_if(|found| found.path == row.path) {
            None => return Some(Damage::new(&row.path, "it is not there")),
            Some(found) if found.same_content(row) => {}
            Some(found) if found.kind != row.kind => {
                return Some(Damage::new(&row.path, "it is of another kind than was recorded"));
            }
            Some(found) if found.size != row.size => {
                let reason = format!("it has {} bytes, and {} were recorded", found.size, row.size);
                return Some(Damage::new(&row.path, reason));
            }
            Some(_) => return Some(Damage::new(&row.path, "its content is not what was recorded")),
        }
    }
    found.next().map(|extra| Damage::new(&extra.path, "it was not there when the package was installed"))
}

/// Everything in `entry`'s files, sorted, without digests.
fn list(entry: &Path) -> Result<Vec<Row>, Damage> {
    let top = PathBuf::from(FILES);
    let meta = fs::symlink_metadata(entry.join(&top)).map_err(|error| Damage::io(&top, &error))?;
    let row = Row::of(top.clone(), &meta).map_err(|error| Damage::io(&top, &error))?;
    if row.kind != Kind::Dir {
        return Err(Damage::new(top, "it is not a directory"));
    }
    let mut rows = vec![row];
    let mut open = vec![top];
    while let Some(below) = open.pop() {
        let damage = |error: io::Error| Damage::io(&below, &error);
        for found in fs::read_dir(entry.join(&below)).map_err(damage)? {
            let found = found.map_err(damage)?;
            let path = below.join(found.file_name());
            if path.to_str().is_none() {
                return Err(Damage::new(path, "its name is not UTF-8"));
            }
            let row = found.metadata().and_then(|meta| Row::of(path.clone(), &meta));
            let row = row.map_err(|error| Damage::io(&path, &error))?;
            if row.kind == Kind::Dir {
                open.push(path);
            }
            if rows.len() == ENTRIES_LIMIT {
                return Err(Damage::new(row.path, format!("it is one of more than {ENTRIES_LIMIT} files")));
            }
            rows.push(row);
        }
    }
    rows.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(rows)
}

fn is_bytecode(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "__pycache__")
}

fn hash_file(path: &Path) -> io::Result<Sha256> {
    let mut file = tree::open_file(path)?;
    let (mut all, mut chunk) = (sha2::Sha256::new(), vec![0; CHUNK_BYTES]);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(Sha256::from(<[u8; 32]>::from(all.finalize()))),
            count => all.update(&chunk[..count]),
        }
    }
}

fn hash(bytes: &[u8]) -> Sha256 {
    Sha256::from(<[u8; 32]>::from(sha2::Sha256::digest(bytes)))
}

#[cfg(test)]
#[path = "digests_tests.rs"]
mod tests;
