//! One walk over a stranger's tree, and what is done on it: settle its modes, give it to
//! an owner, copy it out.
//!
//! A look (`fstatat`) decides what an entry is. A file is then opened, looked at once
//! more, and changed by its descriptor; a look alone would be outdated at once. An
//! `O_PATH` descriptor would do for the look but not for the change: `fchmod(2)` on one
//! is `EBADF`.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, fchown, fchownat, symlinkat};

use super::cursor::Cursor;
use super::{
    Bounds, DIRECTORY, ForeignError, READ, Tree, Wrong, beneath, create_file, is_dots, kind, kind_name,
    regular,
};

/// Size of a tree that was walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    /// Number of files, directories and links.
    pub entries: usize,
    /// Sum of the sizes of files, in bytes.
    pub bytes: u64,
}

/// Whether a link at `path` cannot lead out of the tree: its target is
/// relative, goes up at its beginning only, and not above the root. The way
/// up is through real directories and the way down through links of which
/// the same holds, so no chain of links leaves either.
pub fn link_stays(path: &Path, target: &Path) -> bool {
    stays(path.components().count().saturating_sub(1), target)
}

fn stays(depth: usize, target: &Path) -> bool {
    let mut ups = 0;
    let mut down = false;
    for part in target.components() {
        match part {
            Component::ParentDir if !down => ups += 1,
            Component::Normal(_) => down = true,
            Component::CurDir => {}
            _ => return false,
        }
    }
    ups <= depth && (down || ups > 0)
}

impl Tree {
    /// Makes all of the tree readable for everybody and writable for its owner only,
    /// without set-id bits: directories 0755, files 0644, or 0755 if anybody may execute them.
    ///
    /// # Errors
    /// Names the first entry that is of another kind, leads out by a link, or has a hard
    /// link outside of the tree, and what is over `bounds`.
    pub fn settle(&self, bounds: Bounds) -> Result<Sum, ForeignError> {
        let mut settle = Settle::default();
        let sum = self.walk(bounds, &mut settle)?;
        if settle.linked.is_empty() {
            return Ok(sum);
        }
        if let Some(linked) = settle.linked.into_values().find(|linked| linked.seen < linked.names) {
            return Err(ForeignError::new(self.path.join(linked.name), Wrong::Linked));
        }
        // All names of each file are in the tree, so that changing it changes nothing else.
        self.walk(bounds, &mut Settle { linked: HashMap::new(), is_whole: true })
    }

    /// Gives all of the tree to `owner`, as user and as group, links themselves included.
    ///
    /// # Errors
    /// As `fchownat(2)`, or the tree is over `bounds`: what was reached has its new owner.
    pub fn give(&self, owner: u32, bounds: Bounds) -> Result<Sum, ForeignError> {
        self.walk(bounds, &mut Give(owner))
    }

    /// Copies what is in the tree into the directory `to`, where none of its names is yet:
    /// regular files, directories, and links that stay. Modes are those of [`Self::settle`],
    /// the owner is this process; times, hard links and attributes are not copied.
    ///
    /// # Errors
    /// Names the first entry that is of another kind, leads out by a link, changed
    /// meanwhile, or brings the copy over `bounds`. What was copied stays in `to`.
    pub fn copy_into(&self, to: &Tree, bounds: Bounds) -> Result<Sum, ForeignError> {
        let again = beneath(to.as_fd(), c".", DIRECTORY, Mode::empty());
        let target = again.and_then(Cursor::new).map_err(|errno| ForeignError::io(&to.path, errno))?;
        self.walk(bounds, &mut Copy { to: target, left: bounds.bytes })
    }

    /// Size of the tree. Looks at every entry and opens directories only.
    ///
    /// # Errors
    /// The tree is over `bounds`, or cannot be read.
    pub fn measure(&self, bounds: Bounds) -> Result<Sum, ForeignError> {
        self.walk(bounds, &mut Measure)
    }

    fn walk(&self, bounds: Bounds, visit: &mut impl Visit) -> Result<Sum, ForeignError> {
        let root = beneath(self.as_fd(), c".", DIRECTORY, Mode::empty());
        let at = root.and_then(Cursor::new).map_err(|errno| ForeignError::io(&self.path, errno))?;
        let mut walk = Walk { at, bounds, sum: Sum::default(), entry: CString::default() };
        match walk.run(visit) {
            Ok(()) => Ok(walk.sum),
            Err(wrong) => Err(ForeignError::new(self.path.join(walk.at.path(&walk.entry)), wrong)),
        }
    }
}

/// What is done at each entry.
trait Visit {
    /// At a directory that was just opened; the root's name is empty.
    fn enter(&mut self, name: &CStr, dir: BorrowedFd<'_>) -> Result<(), Wrong>;
    /// At an entry of `dir` that is no directory, below `depth` directories.
    fn leaf(&mut self, dir: BorrowedFd<'_>, name: &CStr, stat: &FileStat, depth: usize) -> Result<(), Wrong>;
    /// After the last entry of a directory, but the root.
    fn leave(&mut self) -> Result<(), Wrong> {
        Ok(())
    }
}

struct Walk {
    at: Cursor,
    bounds: Bounds,
    sum: Sum,
    /// The entry that is being looked at, for an error.
    entry: CString,
}

impl Walk {
    fn run(&mut self, visit: &mut impl Visit) -> Result<(), Wrong> {
        visit.enter(c"", self.at.fd()?)?;
        loop {
            if self.at.here().more {
                self.list(visit)?;
                self.at.here().more = false;
            } else if let Some(name) = self.at.here().todo.pop() {
                self.entry.clone_from(&name);
                if self.at.depth() == self.bounds.depth {
                    return Err(Wrong::TooDeep { limit: self.bounds.depth });
                }
                self.at.enter(name)?;
                let name = std::mem::take(&mut self.entry);
                visit.enter(&name, self.at.fd()?)?;
            } else {
                match self.at.leave()? {
                    None => return Ok(()),
                    Some(_) => visit.leave()?,
                }
            }
        }
    }

    fn list(&mut self, visit: &mut impl Visit) -> Result<(), Wrong> {
        let (bounds, depth) = (self.bounds, self.at.depth());
        let (dir, own) = self.at.listing()?;
        let device = fstat(&own)?.st_dev;
        let mut dirs = Vec::new();
        for entry in dir.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if is_dots(name) {
                continue;
            }
            self.entry = name.to_owned();
            if self.sum.entries == bounds.entries {
                return Err(Wrong::TooMany { limit: bounds.entries });
            }
            self.sum.entries += 1;
            let stat = fstatat(&own, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            if stat.st_dev != device {
                return Err(Wrong::Mount);
            }
            match kind(&stat) {
                SFlag::S_IFDIR => dirs.push(name.to_owned()),
                found => {
                    if found == SFlag::S_IFREG {
                        self.sum.bytes = self.sum.bytes.saturating_add(stat.st_size.unsigned_abs());
                    }
                    if self.sum.bytes > bounds.bytes {
                        return Err(Wrong::TooLarge { limit: bounds.bytes });
                    }
                    visit.leaf(own.as_fd(), name, &stat, depth)?;
                }
            }
        }
        self.entry = CString::default();
        self.at.here().todo = dirs;
        Ok(())
    }
}

/// The target of a link, if it stays in the tree.
fn target(dir: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<PathBuf, Wrong> {
    let target = match readlinkat(dir, name) {
        Err(Errno::EINVAL) => return Err(Wrong::Changed),
        target => PathBuf::from(target?),
    };
    if stays(depth, &target) { Ok(target) } else { Err(Wrong::Leaves(target)) }
}

/// Opens the file that `stat` was of.
fn same(dir: BorrowedFd<'_>, name: &CStr, stat: &FileStat) -> Result<std::fs::File, Wrong> {
    let (file, found) = regular(beneath(dir, name, READ, Mode::empty())?)?;
    let is_same = (found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino);
    if is_same { Ok(file) } else { Err(Wrong::Changed) }
}

fn settled(stat: &FileStat) -> u32 {
    if stat.st_mode & 0o111 != 0 { 0o755 } else { 0o644 }
}

#[derive(Default)]
struct Settle {
    /// Files with several names, by device and inode.
    linked: HashMap<(u64, u64), LinkedFile>,
    /// Whether all names of such files are known to be in the tree.
    is_whole: bool,
}

struct LinkedFile {
    /// Number of its names, and of those in the tree.
    names: u64,
    seen: u64,
    /// One of those in the tree.
    name: PathBuf,
}

impl Visit for Settle {
    fn enter(&mut self, _: &CStr, dir: BorrowedFd<'_>) -> Result<(), Wrong> {
        Ok(fchmod(dir, Mode::from_bits_truncate(0o755))?)
    }

    fn leaf(&mut self, dir: BorrowedFd<'_>, name: &CStr, stat: &FileStat, depth: usize) -> Result<(), Wrong> {
        match kind(stat) {
            SFlag::S_IFREG if stat.st_nlink > 1 && !self.is_whole => {
                let name = Path::new(OsStr::from_bytes(name.to_bytes())).to_owned();
                let new = LinkedFile { names: stat.st_nlink, seen: 0, name };
                self.linked.entry((stat.st_dev, stat.st_ino)).or_insert(new).seen += 1;
                Ok(())
            }
            SFlag::S_IFREG => Ok(fchmod(&same(dir, name, stat)?, Mode::from_bits_truncate(settled(stat)))?),
            SFlag::S_IFLNK => target(dir, name, depth).map(drop),
            other => Err(Wrong::Kind(kind_name(other))),
        }
    }
}

struct Give(u32);

impl Visit for Give {
    fn enter(&mut self, _: &CStr, dir: BorrowedFd<'_>) -> Result<(), Wrong> {
        Ok(fchown(dir, Some(Uid::from_raw(self.0)), Some(Gid::from_raw(self.0)))?)
    }

    fn leaf(&mut self, dir: BorrowedFd<'_>, name: &CStr, _: &FileStat, _: usize) -> Result<(), Wrong> {
        let (user, group) = (Uid::from_raw(self.0), Gid::from_raw(self.0));
        Ok(fchownat(dir, name, Some(user), Some(group), AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }
}

struct Measure;

impl Visit for Measure {
    fn enter(&mut self, _: &CStr, _: BorrowedFd<'_>) -> Result<(), Wrong> {
        Ok(())
    }

    fn leaf(&mut self, _: BorrowedFd<'_>, _: &CStr, _: &FileStat, _: usize) -> Result<(), Wrong> {
        Ok(())
    }
}

struct Copy {
    to: Cursor,
    left: u64,
}

impl Visit for Copy {
    fn enter(&mut self, name: &CStr, _: BorrowedFd<'_>) -> Result<(), Wrong> {
        if name.is_empty() {
            return Ok(());
        }
        mkdirat(self.to.fd()?, name, Mode::from_bits_truncate(0o755))?;
        self.to.enter(name.to_owned())?;
        Ok(fchmod(self.to.fd()?, Mode::from_bits_truncate(0o755))?)
    }

    fn leaf(&mut self, dir: BorrowedFd<'_>, name: &CStr, stat: &FileStat, depth: usize) -> Result<(), Wrong> {
        match kind(stat) {
            SFlag::S_IFREG => {
                let source = same(dir, name, stat)?;
                let mut file = create_file(self.to.fd()?, name, settled(stat))?;
                let limit = self.left;
                let size =
                    io::copy(&mut source.take(limit.saturating_add(1)), &mut file).map_err(Wrong::Io)?;
                self.left = limit.checked_sub(size).ok_or(Wrong::TooLarge { limit })?;
                Ok(())
            }
            SFlag::S_IFLNK => {
                let target = target(dir, name, depth)?;
                Ok(symlinkat(target.as_path(), self.to.fd()?, name)?)
            }
            other => Err(Wrong::Kind(kind_name(other))),
        }
    }

    fn leave(&mut self) -> Result<(), Wrong> {
        self.to.leave().map(drop)
    }
}
