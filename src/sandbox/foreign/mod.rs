//! Files that strangers wrote: a directory that a sandbox could write, touched by the
//! worker or a command afterwards. Blocking.
//!
//! ```text
//! Tree        a directory, by descriptor: read, create, open below it
//!   ├ walk      every entry once: settle modes, give to an owner, copy out
//!   └ cursor    the place of a walk: at most twelve open directories, any depth
//! remove      a whole tree, by the same cursor; never recursion, never through a link
//! aside       renamed at once, removed later by one thread
//! ```
//!
//! A stranger chooses every name, kind, depth and size here. So nothing is touched by a
//! path: `openat2(2)` resolves beneath an open directory, through no link and into no
//! other mount; a file is opened without blocking, looked at, and only then changed. All
//! that a stranger can make large has a bound, and an error names the entry.

mod aside;
mod cursor;
mod error;
mod remove;
mod walk;

#[cfg(test)]
mod tests;

pub use aside::{TRASH, is_trash, remove_late, remove_late_or_warn, set_aside, sweep, wait_until_removed};
pub use error::{ForeignError, Wrong};
pub use remove::{remove, remove_at};
pub use walk::{Sum, link_stays};

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat};

/// Largest tree that a walk goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Number of files, directories and links.
    pub entries: usize,
    /// Sum of the sizes of files, in bytes. A hole in a file counts.
    pub bytes: u64,
    /// Number of directories above a file, the tree's own not counted.
    pub depth: usize,
}

/// A directory that a stranger wrote, held by its descriptor. Whoever renames or replaces
/// the directory's name changes nothing about which one is meant.
#[derive(Debug)]
pub struct Tree {
    dir: OwnedFd,
    /// For errors only; nothing is opened by it.
    path: PathBuf,
}

impl Tree {
    /// Opens a directory at a path that the worker chose. Its last part may not be a link.
    ///
    /// # Errors
    /// As `open(2)`: [`Wrong::Io`] with `ENOTDIR` if it is a link or no directory.
    pub fn open(path: &Path) -> Result<Self, ForeignError> {
        let dir = open(path, DIRECTORY, Mode::empty()).map_err(|errno| ForeignError::io(path, errno))?;
        Ok(Self { dir, path: path.to_owned() })
    }

    /// Opens the directory `path` below this one, through no link and into no other mount.
    ///
    /// # Errors
    /// As `openat2(2)`; [`Wrong::Link`] if a part of `path` is a link.
    pub fn below(&self, path: impl AsRef<Path>) -> Result<Self, ForeignError> {
        let path = path.as_ref();
        let dir = beneath(self.dir.as_fd(), path, DIRECTORY, Mode::empty())
            .map_err(|errno| self.wrong(path, errno))?;
        Ok(Self { dir, path: self.path.join(path) })
    }

    /// Names of the directory's entries, sorted.
    ///
    /// # Errors
    /// [`Wrong::TooMany`] if there are more than `limit`; else as `getdents(2)`.
    pub fn names(&self, limit: usize) -> Result<Vec<OsString>, ForeignError> {
        let again = beneath(self.dir.as_fd(), Path::new("."), DIRECTORY, Mode::empty());
        let mut dir = again.and_then(Dir::from_fd).map_err(|errno| self.wrong(Path::new(""), errno))?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(|errno| self.wrong(Path::new(""), errno))?;
            let name = entry.file_name();
            if is_dots(name) {
                continue;
            }
            if names.len() == limit {
                return Err(ForeignError::new(&self.path, Wrong::TooMany { limit }));
            }
            names.push(std::ffi::OsStr::from_bytes(name.to_bytes()).to_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Opens the regular file `path` below this directory for reading. `None` if nothing
    /// is there. Never waits: a FIFO is refused, not read.
    ///
    /// # Errors
    /// [`Wrong::Link`] or [`Wrong::Kind`] if it is no regular file; else as `openat2(2)`.
    pub fn open_file(&self, path: impl AsRef<Path>) -> Result<Option<File>, ForeignError> {
        let path = path.as_ref();
        let opened = beneath(self.dir.as_fd(), path, READ, Mode::empty()).map_err(Wrong::from);
        match opened.and_then(regular) {
            Ok((file, _)) => Ok(Some(file)),
            Err(Wrong::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(wrong) => Err(ForeignError::new(self.path.join(path), wrong)),
        }
    }

    /// Reads the regular file `path` below this directory. `None` if nothing is there.
    ///
    /// # Errors
    /// [`Wrong::TooLarge`] if it has more than `limit` bytes; else as [`Self::open_file`].
    pub fn read_small(&self, path: impl AsRef<Path>, limit: u64) -> Result<Option<Vec<u8>>, ForeignError> {
        let path = path.as_ref();
        let Some(file) = self.open_file(path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let read = file.take(limit.saturating_add(1)).read_to_end(&mut bytes);
        match read {
            Err(error) => Err(ForeignError::new(self.path.join(path), Wrong::Io(error))),
            Ok(count) if count as u64 > limit => {
                Err(ForeignError::new(self.path.join(path), Wrong::TooLarge { limit }))
            }
            Ok(_) => Ok(Some(bytes)),
        }
    }

    /// Makes the file `path`, 0644 whatever the umask, and writes `bytes` to it. Not on
    /// disk yet when this returns.
    ///
    /// # Errors
    /// [`Wrong::Io`] with `EEXIST` if anything has that name, a link that leads nowhere
    /// included; else as `openat2(2)` and `write(2)`.
    pub fn create(&self, path: impl AsRef<Path>, bytes: &[u8]) -> Result<(), ForeignError> {
        let path = path.as_ref();
        let mut file = create_file(self.dir.as_fd(), path, 0o644).map_err(|errno| self.wrong(path, errno))?;
        file.write_all(bytes).map_err(|error| ForeignError::new(self.path.join(path), Wrong::Io(error)))
    }

    /// Path that the tree was opened by, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn wrong(&self, path: &Path, errno: Errno) -> ForeignError {
        ForeignError::new(self.path.join(path), errno.into())
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// A directory to read; `O_NOFOLLOW` turns a link into `ENOTDIR`.
const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Without `O_NONBLOCK` the opening of a FIFO waits for its other end, for ever.
const READ: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// Opens `path` below `dir`, through no link and into no other mount.
fn beneath<P: ?Sized + nix::NixPath>(
    dir: BorrowedFd<'_>,
    path: &P,
    flags: OFlag,
    mode: Mode,
) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    let how = OpenHow::new().flags(flags).mode(mode).resolve(resolve);
    retry(|| openat2(dir, path, how))
}

/// Number of tries of a lookup beneath a directory: the kernel answers `EAGAIN` where a
/// rename somewhere on the machine might have changed what `..` is (`openat2(2)`).
const LOOKUPS: usize = 32;

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    for _ in 1..LOOKUPS {
        match call() {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            done => return done,
        }
    }
    call()
}

/// Makes a file that was not there; `mode` is the file's whatever the umask.
fn create_file<P: ?Sized + nix::NixPath>(dir: BorrowedFd<'_>, name: &P, mode: u32) -> nix::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = beneath(dir, name, flags, Mode::from_bits_truncate(mode))?;
    fchmod(&file, Mode::from_bits_truncate(mode))?;
    Ok(file.into())
}

/// The file behind `fd`, if it is a regular one, which a look before cannot promise.
fn regular(fd: OwnedFd) -> Result<(File, FileStat), Wrong> {
    let stat = fstat(&fd)?;
    match kind(&stat) {
        SFlag::S_IFREG => Ok((fd.into(), stat)),
        other => Err(Wrong::Kind(kind_name(other))),
    }
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn kind_name(kind: SFlag) -> &'static str {
    match kind {
        SFlag::S_IFREG => "a file",
        SFlag::S_IFDIR => "a directory",
        SFlag::S_IFLNK => "a link",
        SFlag::S_IFIFO => "a FIFO",
        SFlag::S_IFSOCK => "a socket",
        SFlag::S_IFBLK | SFlag::S_IFCHR => "a device",
        _ => "of an unknown kind",
    }
}

fn is_dots(name: &std::ffi::CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Opens the directory that holds `path`, and gives the last part of `path`.
fn parent_of(path: &Path) -> Result<(OwnedFd, &std::ffi::OsStr), ForeignError> {
    let Some(name) = path.file_name() else { return Err(ForeignError::io(path, Errno::EINVAL)) };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let dir = nix::fcntl::openat(AT_FDCWD, parent, flags, Mode::empty());
    Ok((dir.map_err(|errno| ForeignError::io(path, errno))?, name))
}
