//! The one remover of what strangers wrote.
//!
//! `std::fs::remove_dir_all` recurses, so that a deep tree ends the process. This one
//! walks with a [`Cursor`]: a dozen descriptors and a bounded number of names, whatever
//! the depth and the width; names of any length, since each is resolved alone.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::cursor::Cursor;
use super::{DIRECTORY, ForeignError, Wrong, beneath, is_dots, parent_of};

/// Number of names that one removal keeps in memory, over all levels: then a directory is
/// listed again, once those of it that were seen are gone.
const WAITING: usize = 64 * 1024;

/// Number of directories that may have to be cleared once more because somebody wrote to
/// them meanwhile.
const AGAIN: usize = 64;

/// Removes a file, a link, or a directory with all that is in it; nothing there is fine.
/// Follows no link, enters no other mount, holds at most sixteen descriptors. Goes on
/// after an entry that cannot be removed.
///
/// # Errors
/// The first entry that could not be removed, and why; [`Wrong::Mount`] if something is
/// mounted on it.
pub fn remove(path: &Path) -> Result<(), ForeignError> {
    match parent_of(path) {
        Ok((parent, name)) => {
            // `remove_at` names entries from the parent on.
            let relative = |error: ForeignError| match path.parent() {
                Some(parent) => ForeignError { path: parent.join(error.path), ..error },
                None => error,
            };
            remove_at(parent.as_fd(), name).map_err(relative)
        }
        Err(ForeignError { wrong: Wrong::Io(error), .. }) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// As [`remove`], of the entry `name` of an open directory.
///
/// # Errors
/// As [`remove`]; the path begins with `name`.
pub fn remove_at(dir: BorrowedFd<'_>, name: impl AsRef<Path>) -> Result<(), ForeignError> {
    remove_some(dir, name.as_ref(), usize::MAX).map(drop)
}

/// As [`remove_at`], but ends after about `entries` entries; false if some are left.
pub(super) fn remove_some(dir: BorrowedFd<'_>, name: &Path, entries: usize) -> Result<bool, ForeignError> {
    let failed = |errno: Errno| ForeignError::new(name, busy(errno));
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(true),
        // EPERM is what POSIX asks for where unlinking a directory is refused.
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(errno) => return Err(failed(errno)),
    }
    match unlinkat(dir, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(true),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let root = beneath(dir, name, DIRECTORY, Mode::empty()).map_err(failed)?;
    let at = Cursor::new(root).map_err(failed)?;
    let mut removal = Removal { at, waiting: 0, again: 0, left: entries, failed: None };
    let cleared = removal.clear();
    let wrong = |(path, wrong): (PathBuf, Wrong)| ForeignError::new(name.join(path), wrong);
    if let Some(first) = removal.failed {
        return Err(wrong(first));
    }
    if !cleared.map_err(|found| wrong((PathBuf::new(), found)))? {
        return Ok(false);
    }
    match unlinkat(dir, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(errno) => Err(failed(errno)),
    }
}

/// A removal on its way: the root's entries go, the root itself stays.
struct Removal {
    at: Cursor,
    /// Number of names that wait in all levels.
    waiting: usize,
    /// Number of directories that were cleared more than once.
    again: usize,
    /// Number of entries that may still be removed.
    left: usize,
    /// The first entry that could not be removed.
    failed: Option<(PathBuf, Wrong)>,
}

impl Removal {
    /// False if the number of entries was over before the end.
    fn clear(&mut self) -> Result<bool, Wrong> {
        while self.left > 0 {
            if let Some(name) = self.at.here().todo.pop() {
                self.waiting -= 1;
                self.descend(name);
            } else if self.at.here().more {
                self.list()?;
            } else {
                match self.at.leave()? {
                    None => return Ok(true),
                    Some(name) => self.finish(name)?,
                }
            }
        }
        Ok(false)
    }

    /// Unlinks all that is no directory, and notes the directories.
    fn list(&mut self) -> Result<(), Wrong> {
        let room = WAITING.saturating_sub(self.waiting).max(1);
        let (dir, own) = self.at.listing()?;
        let listed = listed(dir, own.as_fd(), room, self.left);
        self.left -= listed.unlinked;
        let level = self.at.here();
        // After a failure a second listing would show the same.
        level.more = listed.more && listed.failed.is_none();
        self.waiting += listed.dirs.len();
        level.todo = listed.dirs;
        if let Some((name, wrong)) = listed.failed {
            self.note(name, wrong);
        }
        Ok(())
    }

    fn descend(&mut self, name: CString) {
        let entered = match self.at.enter(name.clone()) {
            Err(Wrong::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            entered => entered,
        };
        if let Err(wrong) = entered {
            self.at.here().more = false;
            self.note(name, wrong);
        }
    }

    /// Removes a directory that was cleared.
    fn finish(&mut self, name: CString) -> Result<(), Wrong> {
        self.left = self.left.saturating_sub(1);
        match unlinkat(self.at.fd()?, name.as_c_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            // Somebody wrote to it meanwhile.
            Err(Errno::ENOTEMPTY | Errno::EEXIST) if self.failed.is_none() && self.again < AGAIN => {
                self.again += 1;
                self.waiting += 1;
                self.at.here().todo.push(name);
            }
            Err(errno) => {
                self.at.here().more = false;
                self.note(name, busy(errno));
            }
        }
        Ok(())
    }

    fn note(&mut self, name: CString, wrong: Wrong) {
        if self.failed.is_none() {
            self.failed = Some((self.at.path(&name), wrong));
        }
    }
}

#[derive(Default)]
struct Listed {
    dirs: Vec<CString>,
    /// Number of entries that were unlinked.
    unlinked: usize,
    /// The room was over before the end.
    more: bool,
    failed: Option<(CString, Wrong)>,
}

/// One listing of `dir`; `own` is the same directory.
fn listed(dir: &mut Dir, own: BorrowedFd<'_>, room: usize, left: usize) -> Listed {
    let mut listed = Listed::default();
    for entry in dir.iter() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(errno) => {
                listed.failed.get_or_insert((CString::default(), errno.into()));
                break;
            }
        };
        let name = entry.file_name();
        if is_dots(name) {
            continue;
        }
        if listed.unlinked == left {
            listed.more = true;
            break;
        }
        if entry.file_type() != Some(Type::Directory) {
            match unlinkat(own, name, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {
                    listed.unlinked += 1;
                    continue;
                }
                // A file system that tells no kinds.
                Err(Errno::EISDIR | Errno::EPERM) if entry.file_type().is_none() => {}
                Err(errno) => {
                    listed.failed.get_or_insert((name.to_owned(), busy(errno)));
                    continue;
                }
            }
        }
        if listed.dirs.len() == room {
            listed.more = true;
            break;
        }
        listed.dirs.push(name.to_owned());
    }
    listed
}

fn busy(errno: Errno) -> Wrong {
    match errno {
        Errno::EBUSY => Wrong::Mount,
        errno => errno.into(),
    }
}
