//! The place of a walk in a tree of any depth.
//!
//! ```text
//! root ─ a ─ b ─ … ─ x ─ y ─ here
//! └ closed: names, ids ┘ └ open ┘   at most OPEN directories are open
//! ```
//!
//! A directory that was closed is entered again by `..` from the one below it, and must
//! be the one that it was: a directory moved meanwhile ends the walk.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, fstat};

use super::{DIRECTORY, Wrong, beneath, retry};

/// Number of directories of one walk that are open at a time.
const OPEN: usize = 12;

/// Number of names at each end of a deep path that an error shows.
const SHOWN_NAMES: usize = 8;

/// A directory on the way, and what is left to do in it.
pub(super) struct Level {
    /// Empty for the root.
    name: CString,
    /// Empty while the level is closed.
    dir: Option<Dir>,
    /// Device and inode, known of a level that was closed.
    id: Option<(u64, u64)>,
    /// Directories that are still to be entered.
    pub todo: Vec<CString>,
    /// Whether there are entries that no listing has shown yet.
    pub more: bool,
}

/// A place in a tree.
pub(super) struct Cursor {
    levels: Vec<Level>,
    /// Index of the first level that is open.
    first_open: usize,
}

impl Cursor {
    /// Begins at `root`, a directory opened for reading.
    pub fn new(root: OwnedFd) -> nix::Result<Self> {
        let root = Level::new(CString::default(), Dir::from_fd(root)?);
        Ok(Self { levels: vec![root], first_open: 0 })
    }

    /// Enters the directory `name`.
    pub fn enter(&mut self, name: CString) -> Result<(), Wrong> {
        let fd = beneath(self.fd()?, name.as_c_str(), DIRECTORY, Mode::empty())?;
        let dir = Dir::from_fd(fd)?;
        if self.levels.len() - self.first_open == OPEN {
            let level = &mut self.levels[self.first_open];
            if let Some(dir) = level.dir.take() {
                level.id = Some(id(dir.as_fd())?);
            }
            self.first_open += 1;
        }
        self.levels.push(Level::new(name, dir));
        Ok(())
    }

    /// Leaves the directory for the one above it; the name of the one left. `None` at the root.
    pub fn leave(&mut self) -> Result<Option<CString>, Wrong> {
        if self.levels.len() < 2 {
            return Ok(None);
        }
        let Some(left) = self.levels.pop() else { return Ok(None) };
        if self.first_open == self.levels.len() {
            let here = left.dir.as_ref().ok_or(Wrong::Changed)?;
            let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
            let how = OpenHow::new().flags(DIRECTORY | OFlag::O_CLOEXEC).resolve(resolve);
            let up = retry(|| openat2(here, c"..", how))?;
            let level = self.here();
            if level.id != Some(id(up.as_fd())?) {
                return Err(Wrong::Changed);
            }
            level.dir = Some(Dir::from_fd(up)?);
            self.first_open -= 1;
        }
        Ok(Some(left.name))
    }

    /// The level that the cursor is at.
    pub fn here(&mut self) -> &mut Level {
        let last = self.levels.len() - 1;
        &mut self.levels[last]
    }

    /// The open directory that the cursor is at.
    pub fn fd(&self) -> Result<BorrowedFd<'_>, Wrong> {
        let level = self.levels.last().and_then(|level| level.dir.as_ref());
        level.map(AsFd::as_fd).ok_or(Wrong::Changed)
    }

    /// The directory's listing, and the directory itself for the time of it.
    pub fn listing(&mut self) -> Result<(&mut Dir, OwnedFd), Wrong> {
        let own = self.fd()?.try_clone_to_owned().map_err(Wrong::Io)?;
        Ok((self.here().dir.as_mut().ok_or(Wrong::Changed)?, own))
    }

    /// Number of directories above the one that the cursor is at.
    pub fn depth(&self) -> usize {
        self.levels.len() - 1
    }

    /// Path of `name` here, from the root of the tree, for an error.
    pub fn path(&self, name: &CStr) -> PathBuf {
        let names: Vec<&CStr> =
            self.levels[1..].iter().map(|level| level.name.as_c_str()).chain([name]).collect();
        let part = |name: &&CStr| Path::new(OsStr::from_bytes(name.to_bytes())).to_owned();
        if names.len() <= 2 * SHOWN_NAMES {
            return names.iter().map(part).collect();
        }
        let gap = PathBuf::from(format!("({} more)", names.len() - 2 * SHOWN_NAMES));
        let head = names[..SHOWN_NAMES].iter().map(part);
        head.chain([gap]).chain(names[names.len() - SHOWN_NAMES..].iter().map(part)).collect()
    }
}

impl Level {
    fn new(name: CString, dir: Dir) -> Self {
        Self { name, dir: Some(dir), id: None, todo: Vec::new(), more: true }
    }
}

fn id(fd: BorrowedFd<'_>) -> nix::Result<(u64, u64)> {
    let stat = fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}
