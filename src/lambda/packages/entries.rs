//! The entries of one interpreter in the store: where they are, what is known of each, and which of
//! them serves a requirement. Blocking; the worker's or the command's process.
//!
//! ```text
//! PKGS_DIR/cpython-311-x86_64-linux-gnu/      the interpreter's
//!   numpy==2.1.0/<ID>/files                   on sys.path of who pins it
//!   numpy==2.1.0/<ID>/record.json             its files and their digests (digests.rs)
//!   numpy==2.1.0/<ID>/meta.json               its Meta; with it, it is complete
//!   .damaged-numpy==2.1.0-<ID>                set aside; what runs may still have it mounted
//! ```
//!
//! ID is the beginning of the sha256 of the file that the entry was made of. A requirement with
//! hashes is served by an entry whose file has one of them. One without is served by the entry that
//! was there first: what others ask for later changes nothing for it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::abi::Abi;
use super::contents::Contents;
use super::digests::{self, Damage, Depth};
use crate::lambda::requirements::{Hashes, Pin, Sha256};
use crate::sandbox::foreign;

/// The description's name in an entry.
pub(super) const META: &str = "meta.json";
const DAMAGED: &str = ".damaged-";
/// How long an entry that was set aside stays: sandboxes that have it mounted may run on.
const DAMAGED_KEPT: Duration = Duration::from_secs(3600);

/// A file of an index, as it was fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The file's name on the index.
    pub file: String,
    pub sha256: Sha256,
}

/// Everything that is known of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    #[serde(flatten)]
    pub contents: Contents,
    /// The file that it was made of. `None` of one that an older version of the worker installed:
    /// such an entry serves no requirement with hashes.
    pub origin: Option<Origin>,
    /// Files that its build was given.
    #[serde(default)]
    pub built_with: Vec<Origin>,
    /// Digest of the names, kinds and contents of its files.
    pub content: Sha256,
    /// When it was installed, in nanoseconds since 1970.
    pub installed_ns: u64,
}

impl Meta {
    /// Returns the description of an entry that is installed now.
    pub(super) fn new(
        contents: Contents,
        origin: Option<Origin>,
        built_with: Vec<Origin>,
        content: Sha256,
    ) -> Self {
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos());
        let installed_ns = u64::try_from(now).unwrap_or(u64::MAX);
        Self { contents, origin, built_with, content, installed_ns }
    }
}

/// The entries of one interpreter.
#[derive(Debug, Clone)]
pub struct Entries {
    dir: PathBuf,
}

impl Entries {
    /// Names the entries of `abi` in the store `pkgs_dir`, which need not be there.
    pub fn new(pkgs_dir: &Path, abi: &Abi) -> Self {
        Self { dir: pkgs_dir.join(abi.to_string()) }
    }

    /// The directory that holds all of them.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of the entry that `pin` stands for. It need not be there.
    pub fn path(&self, pin: &Pin) -> PathBuf {
        // Without an entry: a name that no entry has.
        let id = pin.entry().map_or_else(|| "none".to_owned(), |id| id.to_string());
        self.dir.join(pin.to_string()).join(id)
    }

    /// Reads the description of the entry that `pin` stands for.
    ///
    /// # Errors
    /// It is not there, or is not JSON of that form.
    pub(super) fn meta(&self, pin: &Pin) -> io::Result<Meta> {
        Ok(serde_json::from_slice(&fs::read(self.path(pin).join(META))?)?)
    }

    /// Returns the entry that serves a requirement: of those that its hashes allow the one that was
    /// installed first, and those whose file is known before those whose file is not. `None` if
    /// there is none. Of its files nothing is looked at.
    pub fn find(&self, pin: &Pin, hashes: &Hashes) -> Option<Pin> {
        let known = |meta: &Meta| match &meta.origin {
            Some(origin) => hashes.allow(&origin.sha256),
            None => hashes.is_empty(),
        };
        let found = self.of(pin).into_iter().filter_map(|pin| Some((self.meta(&pin).ok()?, pin)));
        let allowed = found.filter(|(meta, _)| known(meta));
        let first = allowed.min_by_key(|(meta, pin)| (meta.origin.is_none(), meta.installed_ns, pin.entry()));
        first.map(|(_, pin)| pin)
    }

    /// Returns one entry for each requirement, if all are there and sound.
    pub fn find_all<'a>(
        &self,
        requirements: impl IntoIterator<Item = (&'a Pin, &'a Hashes)>,
        depth: Depth,
    ) -> Option<Vec<Pin>> {
        let sound = |(pin, hashes)| self.find(pin, hashes).filter(|pin| self.check(pin, depth).is_ok());
        requirements.into_iter().map(sound).collect()
    }

    /// Compares an entry with its record.
    ///
    /// # Errors
    /// The first file that is not as it was recorded.
    pub fn check(&self, pin: &Pin, depth: Depth) -> Result<(), Damage> {
        let meta = self.meta(pin).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Damage::new(META, "it is not there"),
            _ => Damage::new(META, error.to_string()),
        })?;
        digests::check(&self.path(pin), &meta.content, depth)
    }

    /// Returns every entry, complete or not.
    pub(super) fn all(&self) -> Vec<Pin> {
        let names = names(&self.dir);
        names.iter().filter_map(|name| name.parse().ok()).flat_map(|pin: Pin| self.of(&pin)).collect()
    }

    fn of(&self, pin: &Pin) -> Vec<Pin> {
        let ids = names(&self.dir.join(pin.to_string()));
        ids.iter().filter_map(|id| Some(pin.of_entry(id.parse().ok()?))).collect()
    }

    /// Takes a damaged entry out of the store, if it is there. The caller holds the pin's lock. An
    /// older one that was set aside goes for good.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub(super) fn set_aside(&self, pin: &Pin) -> io::Result<()> {
        if fs::symlink_metadata(self.path(pin)).is_err() {
            return Ok(());
        }
        let id = pin.entry().map(|id| id.to_string()).unwrap_or_default();
        let aside = self.dir.join(format!("{DAMAGED}{pin}-{id}"));
        foreign::remove_late(&aside).map_err(foreign::ForeignError::into_io)?;
        fs::rename(self.path(pin), &aside)
    }

    /// Removes what was set aside long ago. Returns at once.
    pub(super) fn sweep(&self) {
        use std::os::unix::fs::MetadataExt;
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs());
        for name in names(&self.dir).iter().filter(|name| name.starts_with(DAMAGED)) {
            let path = self.dir.join(name);
            // The time of change is that of the rename.
            let since = fs::symlink_metadata(&path).map_or(0, |meta| meta.ctime().unsigned_abs());
            if now.saturating_sub(since) > DAMAGED_KEPT.as_secs()
                && let Err(error) = foreign::remove_late(&path)
            {
                tracing::warn!(%error, "a damaged package that was set aside is not removed");
            }
        }
    }
}

/// Names in a directory, sorted; none if it cannot be read.
fn names(dir: &Path) -> Vec<String> {
    let read = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = read.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}
