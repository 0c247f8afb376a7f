//! The local registry: a directory with an entry a function, `NAME/` or
//! `NAME.tar.gz`. Users may edit it while a worker runs; if both forms are
//! there, the archive counts. Blocking; the worker's or the command's process.
//!
//! A function is gone if its entry is not in a registry that is there. All else that hides it (a registry
//! that is not there or not mounted, no permission, a failing disk, no descriptor left) is an error.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::archive::{self, ArchiveError};
use super::tree::{self, Bounds, TreeError, make_dir};
use super::{Blame, FunctionName};
use crate::sandbox::foreign::{self, ForeignError};

const SUFFIX: &str = ".tar.gz";

/// What is being written or thrown away begins with this: no function's name
/// can.
const STAGING: &str = "~staging-";

/// Staging this old was left by a process that died.
const STALE_S: u64 = 3600;

/// The registry cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("the registry: {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "the registry {} is not there: mount it or make it again; `hosier` made it where the setting `registry` says", dir.display()
    )]
    Gone { dir: PathBuf },
    #[error("{0} is not in the registry; deploy it with `hosier deploy PATH -n {0}`")]
    Unknown(FunctionName),
    #[error("{0}: {1}")]
    Archive(FunctionName, ArchiveError),
    #[error("{0}: {1}")]
    Files(FunctionName, TreeError),
}

impl RegistryError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| RegistryError::Io { path, source }
    }

    pub fn blame(&self) -> Blame {
        match self {
            RegistryError::Io { .. } | RegistryError::Gone { .. } => Blame::Worker,
            RegistryError::Unknown(_) => Blame::Caller,
            RegistryError::Archive(_, error) => error.blame(),
            RegistryError::Files(_, error) => error.blame(),
        }
    }
}

/// What an entry looks like from outside: another one means that it may have
/// been changed, in place or by replacing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// The registry in one directory.
#[derive(Debug, Clone)]
pub struct Registry {
    dir: PathBuf,
    /// The device of `dir` when it was opened: another one is not what was mounted there.
    device: u64,
    bounds: Bounds,
}

enum Form {
    Dir(PathBuf),
    Archive(PathBuf),
}

impl Registry {
    /// Opens the registry in `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(dir: &Path, bounds: Bounds) -> Result<Self, RegistryError> {
        fs::create_dir_all(dir).map_err(RegistryError::io(dir))?;
        foreign::sweep(dir);
        let device = fs::metadata(dir).map_err(RegistryError::io(dir))?.dev();
        let registry = Self { dir: dir.to_owned(), device, bounds };
        for path in registry.names()?.iter().filter(|name| name.starts_with(STAGING)).map(|n| dir.join(n)) {
            let age = fs::symlink_metadata(&path).and_then(|meta| meta.modified()).map(|time| time.elapsed());
            if matches!(age, Ok(Ok(age)) if age.as_secs() > STALE_S) {
                foreign::remove_late_or_warn(&path);
            }
        }
        Ok(registry)
    }

    /// The functions, sorted.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<Vec<FunctionName>, RegistryError> {
        let mut found = BTreeSet::new();
        for name in self.names()? {
            let is_dir = self.dir.join(&name).is_dir();
            let name = if is_dir { Some(name.as_str()) } else { name.strip_suffix(SUFFIX) };
            found.extend(name.and_then(|name| FunctionName::new(name).ok()));
        }
        Ok(found.into_iter().collect())
    }

    /// What `name` looks like from outside; None if it is not there. Reads no
    /// file's content.
    ///
    /// # Errors
    /// It cannot be read, or has files that are refused.
    pub fn fingerprint(&self, name: &FunctionName) -> Result<Option<Fingerprint>, RegistryError> {
        let mut hash = Sha256::new();
        match self.find(name)? {
            None => return Ok(None),
            Some(Form::Archive(path)) => {
                let meta = fs::metadata(&path).map_err(RegistryError::io(&path))?;
                hash.update(format!("{} {} {}.{}", meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()));
            }
            Some(Form::Dir(path)) => {
                let nodes = tree::walk(&path, self.bounds);
                for node in nodes.map_err(|error| RegistryError::Files(name.clone(), error))? {
                    hash.update(format!("{:?} {:?} {}\n", node.path, node.kind, node.changed_ns));
                }
            }
        }
        Ok(Some(Fingerprint(hash.finalize().into())))
    }

    /// Stores an archive as `name`, in place of what was there in either form,
    /// once `check` likes the files that are in it. It is on disk when this
    /// returns, or nothing has changed.
    ///
    /// # Errors
    /// It cannot be read, written or unpacked, or `check` refuses it.
    pub fn store<E: From<RegistryError>>(
        &self,
        name: &FunctionName,
        mut archive: impl Read,
        check: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let write =
            |file: &mut File| io::copy(&mut archive, file).map(|_| ()).map_err(RegistryError::io(&self.dir));
        self.replace(name, write, check)
    }

    /// Stores the files of `source` as `name`; otherwise as [`Registry::store`].
    ///
    /// # Errors
    /// They cannot be read or written, some are refused, or `check` refuses them.
    pub fn store_dir<E: From<RegistryError>>(
        &self,
        name: &FunctionName,
        source: &Path,
        check: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let refused = |error| RegistryError::Files(name.clone(), error);
        self.replace(name, |file| archive::pack(source, file, self.bounds).map_err(refused), check)
    }

    fn replace<E: From<RegistryError>>(
        &self,
        name: &FunctionName,
        write: impl FnOnce(&mut File) -> Result<(), RegistryError>,
        check: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let staging = Staging(self.staging());
        let mut file = tree::new_file(&staging.0, false).map_err(RegistryError::io(&staging.0))?;
        write(&mut file)?;
        file.flush().and_then(|()| file.sync_all()).map_err(RegistryError::io(&staging.0))?;
        let unpacked = Staging(self.staging());
        make_dir(&unpacked.0).map_err(RegistryError::io(&unpacked.0))?;
        self.unpack(name, &staging.0, &unpacked.0)?;
        check(&unpacked.0)?;
        let target = self.dir.join(format!("{name}{SUFFIX}"));
        fs::rename(&staging.0, &target).map_err(RegistryError::io(&target))?;
        self.sync()?;
        self.remove_entry(&self.dir.join(name.as_str()))?;
        Ok(())
    }

    fn unpack(&self, name: &FunctionName, archive: &Path, into: &Path) -> Result<(), RegistryError> {
        let file = File::open(archive).map_err(RegistryError::io(archive))?;
        archive::unpack(file, into, name.as_str(), self.bounds)
            .map_err(|error| RegistryError::Archive(name.clone(), error))
    }

    /// Removes `name` in either form. False if it was not there.
    ///
    /// # Errors
    /// It cannot be looked for or removed.
    pub fn remove(&self, name: &FunctionName) -> Result<bool, RegistryError> {
        if self.find(name)?.is_none() {
            return Ok(false);
        }
        // The directory first: it must not come to light for a moment.
        let dir = self.remove_entry(&self.dir.join(name.as_str()))?;
        let archive = self.dir.join(format!("{name}{SUFFIX}"));
        let file = archive.is_file() && self.remove_entry(&archive)?;
        Ok(dir || file)
    }

    /// Puts the files of `name` into the empty directory `into`.
    ///
    /// # Errors
    /// It is not there, cannot be read, or has files that are refused.
    pub fn fetch(&self, name: &FunctionName, into: &Path) -> Result<(), RegistryError> {
        match self.find(name)?.ok_or_else(|| RegistryError::Unknown(name.clone()))? {
            Form::Archive(path) => self.unpack(name, &path, into),
            Form::Dir(path) => tree::walk(&path, self.bounds)
                .and_then(|nodes| tree::copy(&path, &nodes, into, self.bounds))
                .map_err(|error| RegistryError::Files(name.clone(), error)),
        }
    }

    /// Finds the entry of `name`; `None` if it is not in the registry, which was looked at.
    fn find(&self, name: &FunctionName) -> Result<Option<Form>, RegistryError> {
        let archive = self.dir.join(format!("{name}{SUFFIX}"));
        let dir = self.dir.join(name.as_str());
        if look(&archive)?.is_some_and(|meta| meta.is_file()) {
            return Ok(Some(Form::Archive(archive)));
        }
        if look(&dir)?.is_some_and(|meta| meta.is_dir()) {
            return Ok(Some(Form::Dir(dir)));
        }
        // Not there: that says something only of the registry itself.
        match look(&self.dir)? {
            Some(meta) if meta.is_dir() && meta.dev() == self.device => Ok(None),
            _ => Err(RegistryError::Gone { dir: self.dir.clone() }),
        }
    }

    fn names(&self) -> Result<Vec<String>, RegistryError> {
        let entries = fs::read_dir(&self.dir).map_err(RegistryError::io(&self.dir))?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name().into_string().ok()));
        let names: io::Result<Vec<_>> = names.collect();
        Ok(names.map_err(RegistryError::io(&self.dir))?.into_iter().flatten().collect())
    }

    /// A path that nobody uses, on the same file system.
    fn staging(&self) -> PathBuf {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos());
        self.dir.join(format!("{STAGING}{}-{now}-{count}", std::process::id()))
    }

    /// Takes an entry out of sight at once, then removes it.
    fn remove_entry(&self, path: &Path) -> Result<bool, RegistryError> {
        let staging = self.staging();
        match fs::rename(path, &staging) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(RegistryError::io(path)(error)),
        }
        self.sync()?;
        // It is out of the registry, whatever becomes of its files.
        foreign::remove_late_or_warn(&staging);
        Ok(true)
    }

    fn sync(&self) -> Result<(), RegistryError> {
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(RegistryError::io(&self.dir))
    }
}

/// What is at `path`, through links; `None` if nothing is, not even a link to what is not there.
fn look(path: &Path) -> Result<Option<fs::Metadata>, RegistryError> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
            Ok(None)
        }
        Err(error) => Err(RegistryError::io(path)(error)),
    }
}

/// A file or directory that goes away unless it was renamed.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        foreign::remove_late_or_warn(&self.0); // renamed, or never made, if all went well
    }
}

/// Makes an empty directory at `path`, removing what was there, or setting it aside.
pub(super) fn fresh_dir(path: &Path) -> io::Result<()> {
    if foreign::remove(path).is_err() {
        foreign::set_aside(path).map_err(ForeignError::into_io)?;
    }
    make_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("registry"), Bounds::default()).unwrap();
        (dir, registry)
    }

    fn name(text: &str) -> FunctionName {
        FunctionName::new(text).unwrap()
    }

    fn fetched(registry: &Registry, function: &str) -> String {
        let into = tempfile::tempdir().unwrap();
        registry.fetch(&name(function), into.path()).unwrap();
        fs::read_to_string(into.path().join("f.py")).unwrap()
    }

    fn source(text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f.py"), text).unwrap();
        dir
    }

    fn put(registry: &Registry, text: &str) {
        registry.store_dir(&name("a"), source(text).path(), |_| Ok::<_, RegistryError>(())).unwrap();
    }

    #[test]
    fn storing_replaces_either_form_and_leaves_nothing_beside_it() {
        let (_dir, registry) = registry();
        fs::create_dir(registry.dir.join("a")).unwrap();
        fs::write(registry.dir.join("a/f.py"), "old").unwrap();
        assert_eq!(fetched(&registry, "a"), "old");
        put(&registry, "new");
        assert_eq!(fetched(&registry, "a"), "new");
        put(&registry, "newer");
        assert_eq!(fetched(&registry, "a"), "newer");
        assert_eq!(registry.names().unwrap(), ["a.tar.gz"]);
        assert_eq!(registry.list().unwrap(), [name("a")]);
        assert!(registry.remove(&name("a")).unwrap() && !registry.remove(&name("a")).unwrap());
        assert!(registry.list().unwrap().is_empty());
        let gone = registry.fetch(&name("a"), source("").path()).unwrap_err();
        assert_eq!(gone.blame(), Blame::Caller);
    }

    #[test]
    fn a_fingerprint_sees_an_edit_in_place_even_of_the_same_size() {
        let (_dir, registry) = registry();
        let seen = || registry.fingerprint(&name("a")).unwrap();
        assert_eq!(seen(), None);
        fs::create_dir_all(registry.dir.join("a/sub")).unwrap();
        fs::write(registry.dir.join("a/sub/x.py"), "1").unwrap();
        let first = seen();
        assert_eq!(first, seen());
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(registry.dir.join("a/sub/x.py"), "2").unwrap();
        assert_ne!(first, seen());
        let second = seen();
        put(&registry, "x");
        assert_ne!(second, seen());
    }

    #[test]
    fn an_upload_that_breaks_off_or_is_refused_changes_nothing() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let (_dir, registry) = registry();
        put(&registry, "good");
        let like = |_: &Path| Ok::<_, RegistryError>(());
        assert!(registry.store(&name("a"), Broken, like).is_err());
        assert_eq!(registry.store(&name("a"), &b"no gzip"[..], like).unwrap_err().blame(), Blame::Function);
        let mut good = Vec::new();
        archive::pack(source("x").path(), &mut good, Bounds::default()).unwrap();
        let refuse = |_: &Path| Err(RegistryError::Unknown(name("a")));
        assert!(registry.store(&name("a"), good.as_slice(), refuse).is_err());
        assert_eq!(fetched(&registry, "a"), "good");
        assert_eq!(registry.names().unwrap(), ["a.tar.gz"]);
    }

    #[test]
    fn only_an_entry_that_is_missing_from_a_registry_that_is_there_is_a_deletion() {
        let (dir, mut registry) = registry();
        fs::create_dir(registry.dir.join("a")).unwrap();
        fs::write(registry.dir.join("a/f.py"), "x").unwrap();
        let unreadable = |registry: &Registry, what: &str| {
            let error = registry.fingerprint(&name("a")).expect_err(what);
            assert_eq!(error.blame(), Blame::Worker, "{what}: {error}");
            assert!(registry.remove(&name("a")).is_err() && registry.fetch(&name("a"), dir.path()).is_err());
        };
        assert!(registry.fingerprint(&name("a")).unwrap().is_some());
        assert_eq!(registry.fingerprint(&name("b")).unwrap(), None);
        let away = dir.path().join("away");
        fs::rename(&registry.dir, &away).unwrap();
        unreadable(&registry, "a registry that is not there");
        fs::write(&registry.dir, "").unwrap();
        unreadable(&registry, "a file in its place");
        fs::remove_file(&registry.dir).unwrap();
        fs::create_dir(&registry.dir).unwrap();
        assert_eq!(registry.fingerprint(&name("a")).unwrap(), None, "a new one, which is empty");
        registry.device += 1;
        unreadable(&registry, "the directory below a mount that is gone");
        registry.device -= 1;
        std::os::unix::fs::symlink("a.tar.gz", registry.dir.join("a.tar.gz")).unwrap();
        unreadable(&registry, "a link to itself");
        fs::remove_file(registry.dir.join("a.tar.gz")).unwrap();
        std::os::unix::fs::symlink("/nowhere/a", registry.dir.join("a")).unwrap();
        unreadable(&registry, "a link to what is not there");
    }

    #[test]
    fn a_registry_that_no_descriptor_is_left_for_is_no_deletion() {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let (_dir, registry) = registry();
        fs::create_dir(registry.dir.join("a")).unwrap();
        fs::write(registry.dir.join("a/f.py"), "x").unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
        let found = registry.fingerprint(&name("a"));
        let listed = registry.list();
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        assert!(found.unwrap_err().to_string().contains("Too many open files"));
        assert!(listed.is_err());
    }

    #[test]
    fn what_is_no_function_is_not_listed() {
        let (_dir, registry) = registry();
        for file in ["notes.txt", "~staging-1-1-1", "a b.tar.gz"] {
            fs::write(registry.dir.join(file), "").unwrap();
        }
        assert!(registry.list().unwrap().is_empty());
    }
}
