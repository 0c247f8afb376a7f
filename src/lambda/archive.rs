//! `.tar.gz` of a function: unpacked without trusting a byte of it, packed so
//! that the same files give the same bytes. Blocking; any process.
//!
//! Nothing is written through a link: links are made last, when every file is
//! in place, and only those that cannot lead out.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use tar::EntryType;

use super::tree::{self, Bounds, Kind, TreeError, link_stays, make_dir, new_file};

/// What the headers of one entry may be, long names included, in bytes.
const HEADERS_LIMIT_BYTES: u64 = 64 << 10;

/// The longest name of one file or directory, in bytes (`NAME_MAX`).
const NAME_LIMIT_BYTES: usize = 255;

/// The archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("the archive is no .tar.gz, or is cut short: {0}")]
    Malformed(io::Error),
    #[error("the archive cannot be used: {0}")]
    Entry(#[from] TreeError),
    #[error("the archive is empty")]
    Empty,
}

impl ArchiveError {
    pub fn blame(&self) -> super::Blame {
        match self {
            ArchiveError::Entry(error) => error.blame(),
            _ => super::Blame::Function,
        }
    }
}

/// Unpacks `archive` into the empty directory `into`. If all of it is below
/// one directory called `name`, that directory is left out.
///
/// # Errors
/// The archive is malformed, too large, or has an entry that is refused.
pub fn unpack(archive: impl Read, into: &Path, name: &str, bounds: Bounds) -> Result<(), ArchiveError> {
    let allowance = Rc::new(Cell::new(0));
    let metered = Metered { inner: MultiGzDecoder::new(archive), allowance: allowance.clone() };
    let mut tar = tar::Archive::new(metered);
    let mut unpacking = Unpacking { into, bounds, bytes: 0, entries: BTreeMap::new(), links: Vec::new() };
    let mut entries = tar.entries().map_err(ArchiveError::Malformed)?;
    loop {
        allowance.set(HEADERS_LIMIT_BYTES);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(ArchiveError::Malformed)?;
        allowance.set(entry.size().min(bounds.bytes) + 1024);
        unpacking.take(&mut entry)?;
    }
    unpacking.finish(name)
}

/// What was unpacked so far.
struct Unpacking<'a> {
    into: &'a Path,
    bounds: Bounds,
    bytes: u64,
    /// Every path that was made, and whether it is a directory.
    entries: BTreeMap<PathBuf, bool>,
    /// Paths and targets of links to make.
    links: Vec<(PathBuf, PathBuf)>,
}

impl Unpacking<'_> {
    fn take(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<(), ArchiveError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(()); // `git archive` writes one
        }
        let raw = entry.path().map_err(ArchiveError::Malformed)?.into_owned();
        let Some(path) = inside(&raw) else { return Err(TreeError::Leaves(raw).into()) };
        if path.components().any(|part| part.as_os_str() == "__pycache__") {
            return Ok(()); // bytecode is made here, from the code
        }
        if path.as_os_str().is_empty() {
            return match kind {
                EntryType::Directory => Ok(()),
                _ => Err(TreeError::Kind(raw).into()),
            };
        }
        self.make_parents(&path)?;
        match kind {
            EntryType::Directory => self.directory(&path)?,
            EntryType::Regular | EntryType::Continuous => {
                let executable = entry.header().mode().map_err(ArchiveError::Malformed)? & 0o111 != 0;
                self.file(&path, executable, entry.size(), entry)?;
            }
            EntryType::Symlink => {
                let target = link_name(entry)?;
                self.insert(&path, false)?;
                self.links.push((path, target));
            }
            EntryType::Link => {
                // A copy: a second name of one file is not kept.
                let target = link_name(entry)?;
                let target = inside(&target).ok_or(TreeError::Leaves(raw))?;
                let source = tree::open_file(&self.into.join(target)).map_err(TreeError::io(&path))?;
                let meta = source.metadata().map_err(TreeError::io(&path))?;
                let executable = std::os::unix::fs::MetadataExt::mode(&meta) & 0o111 != 0;
                self.file(&path, executable, meta.len(), source)?;
            }
            _ => return Err(TreeError::Kind(path).into()),
        }
        Ok(())
    }

    /// Notes an entry, within the bounds.
    fn insert(&mut self, path: &Path, is_dir: bool) -> Result<(), TreeError> {
        if self.entries.len() >= self.bounds.entries {
            return Err(TreeError::TooMany(path.to_owned(), self.bounds.entries));
        }
        match self.entries.insert(path.to_owned(), is_dir) {
            None => Ok(()),
            Some(_) => Err(TreeError::Collides(path.to_owned())),
        }
    }

    fn directory(&mut self, path: &Path) -> Result<(), TreeError> {
        if self.entries.get(path) == Some(&true) {
            return Ok(());
        }
        self.insert(path, true)?;
        make_dir(&self.into.join(path)).map_err(TreeError::io(path))
    }

    fn make_parents(&mut self, path: &Path) -> Result<(), TreeError> {
        if path.components().count() > self.bounds.depth {
            return Err(TreeError::TooDeep(path.to_owned(), self.bounds.depth));
        }
        let mut parents: Vec<_> = path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
        parents.reverse();
        parents.into_iter().try_for_each(|parent| self.directory(parent))
    }

    fn file(
        &mut self,
        path: &Path,
        executable: bool,
        size: u64,
        content: impl Read,
    ) -> Result<(), TreeError> {
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.bounds.bytes {
            return Err(TreeError::TooLarge(path.to_owned(), self.bounds.bytes));
        }
        self.insert(path, false)?;
        let mut file = new_file(&self.into.join(path), executable).map_err(TreeError::io(path))?;
        io::copy(&mut content.take(size), &mut file).map_err(TreeError::io(path))?;
        Ok(())
    }

    /// Leaves out the directory around everything, then makes the links.
    fn finish(mut self, name: &str) -> Result<(), ArchiveError> {
        if self.entries.is_empty() {
            return Err(ArchiveError::Empty);
        }
        let around = Path::new(name);
        if self.entries.get(around) == Some(&true) && self.entries.keys().all(|path| path.starts_with(around))
        {
            lift(self.into, name).map_err(TreeError::io(around))?;
            for (path, _) in &mut self.links {
                *path = path.strip_prefix(around).map(Path::to_owned).unwrap_or_default();
            }
        }
        for (path, target) in &self.links {
            if !link_stays(path, target) {
                return Err(TreeError::Leaves(path.clone()).into());
            }
            symlink(target, self.into.join(path)).map_err(TreeError::io(path))?;
        }
        Ok(())
    }
}

/// Moves what is in `into/name` up, by way of a name that is in neither.
fn lift(into: &Path, name: &str) -> io::Result<()> {
    let around = into.join(".lift");
    fs::rename(into.join(name), &around)?;
    let mut own = None;
    for entry in fs::read_dir(&around)? {
        let entry = entry?;
        if entry.file_name() == ".lift" {
            own = Some(entry.path());
            continue;
        }
        fs::rename(entry.path(), into.join(entry.file_name()))?;
    }
    match own {
        // The function has a file of that name: refuse rather than shuffle.
        Some(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, ".lift is a reserved name")),
        None => fs::remove_dir(&around),
    }
}

/// The path below the directory; None if it is absolute, goes up, or has a
/// name that is too long.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) if name.len() <= NAME_LIMIT_BYTES => out.push(name),
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(out)
}

fn link_name(entry: &tar::Entry<'_, impl Read>) -> Result<PathBuf, ArchiveError> {
    let name = entry.link_name().map_err(ArchiveError::Malformed)?;
    name.map(std::borrow::Cow::into_owned).ok_or_else(|| {
        ArchiveError::Malformed(io::Error::new(io::ErrorKind::InvalidData, "a link without target"))
    })
}

/// A reader that gives no more than it is allowed at a time: a long name is
/// read into memory by `tar`, whatever size it claims.
struct Metered<R> {
    inner: R,
    allowance: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let allowed = usize::try_from(self.allowance.get()).unwrap_or(usize::MAX).min(buffer.len());
        if allowed == 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an entry's header is too long"));
        }
        let taken = self.inner.read(&mut buffer[..allowed])?;
        self.allowance.set(self.allowance.get() - taken as u64);
        Ok(taken)
    }
}

/// Packs what is in `dir`, without bytecode caches. The same files give the
/// same bytes.
///
/// # Errors
/// A file cannot be read or is refused, or `out` cannot be written.
pub fn pack(dir: &Path, out: impl Write, bounds: Bounds) -> Result<(), TreeError> {
    let mut tar = tar::Builder::new(GzEncoder::new(out, Compression::default()));
    for node in tree::walk(dir, bounds)? {
        let path = &node.path;
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        let appended = match &node.kind {
            Kind::Dir => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(0o755);
                header.set_size(0);
                tar.append_data(&mut header, path, io::empty())
            }
            Kind::Link { target } => {
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                tar.append_link(&mut header, path, target)
            }
            Kind::File { size, executable } => {
                header.set_mode(if *executable { 0o755 } else { 0o644 });
                header.set_size(*size);
                let file = tree::open_file(&dir.join(path)).map_err(TreeError::io(path))?;
                // A file that grew meanwhile must not spoil the archive.
                tar.append_data(&mut header, path, file.take(*size))
            }
        };
        appended.map_err(TreeError::io(path))?;
    }
    let gzip = tar.into_inner().map_err(TreeError::io(dir))?;
    gzip.finish().and_then(|mut out| out.flush()).map_err(TreeError::io(dir))
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
