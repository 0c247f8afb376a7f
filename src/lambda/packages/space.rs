//! The disk that a step of an install may fill: measured while it runs, since
//! the host's file system gives no quota to a directory. The worker's process.
//!
//! ```text
//! every 100 ms   free space and inodes of the file system: also what has no name is seen
//! every 500 ms   a walk of the step's directory, by descriptor, with bounds
//! ```
//!
//! A sandbox that writes more is ended. Between two looks it can write more than
//! it may, and no more than the disk takes in that time (docs/design/0010).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, fstatat};
use nix::sys::statvfs::statvfs;

use super::failure::Failure;

const FREE_EVERY: Duration = Duration::from_millis(100);
/// Looks at the free space for one walk.
const FREE_PER_WALK: u32 = 5;
/// Directories above a file; deeper is more than it may.
const DEPTH_LIMIT: usize = 64;
/// How often the bound the whole file system may shrink while a step runs: others write too.
const SHRINK_FACTOR: u64 = 2;

/// Bounds of one step's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub mib: u32,
    pub inodes: u64,
}

impl Space {
    /// Returns as soon as what is below `dir` is more than it may be. A directory
    /// that cannot be measured is.
    pub(super) async fn exceeded(self, dir: &Path) -> Failure {
        let before = Free::of(dir);
        let mut looks = 0_u32;
        loop {
            tokio::time::sleep(FREE_EVERY).await;
            looks = looks.wrapping_add(1);
            let shrunk =
                matches!((before, Free::of(dir)), (Some(before), Some(now)) if self.shrunk(before, now));
            if shrunk || (looks.is_multiple_of(FREE_PER_WALK) && !self.holds(dir).await) {
                return self.failure();
            }
        }
    }

    /// Returns whether what is below `dir` is within the bounds.
    pub(super) async fn holds(self, dir: &Path) -> bool {
        let dir = dir.to_owned();
        let measured = tokio::task::spawn_blocking(move || self.measure(&dir)).await;
        matches!(measured, Ok(Ok(true)))
    }

    pub(super) fn failure(self) -> Failure {
        Failure::OutOfDisk { mib: self.mib, inodes: self.inodes }
    }

    fn bytes(self) -> u64 {
        u64::from(self.mib) << 20
    }

    fn shrunk(self, before: Free, now: Free) -> bool {
        before.bytes.saturating_sub(now.bytes) > SHRINK_FACTOR * self.bytes()
            || before.inodes.saturating_sub(now.inodes) > SHRINK_FACTOR * self.inodes
    }

    fn measure(self, dir: &Path) -> io::Result<bool> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let root = open(dir, flags, Mode::empty())?;
        let (mut waiting, mut bytes, mut inodes) = (vec![PathBuf::from(".")], 0, 0);
        while let Some(below) = waiting.pop() {
            let opened = match open_below(&root, &below, flags) {
                // It is being written: what was there a moment ago need not be.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EAGAIN) => continue,
                opened => opened?,
            };
            let mut opened = Dir::from_fd(opened)?;
            let mut names = Vec::new();
            for entry in opened.iter() {
                let entry = entry?;
                if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                    inodes += 1;
                    names.push((entry.file_name().to_owned(), entry.file_type() == Some(Type::Directory)));
                }
                if inodes > self.inodes {
                    return Ok(false);
                }
            }
            for (name, is_directory) in names {
                bytes += size(&opened, &name);
                if is_directory {
                    if below.components().count() > DEPTH_LIMIT {
                        return Ok(false);
                    }
                    waiting.push(
                        below.join(std::ffi::OsStr::new(std::str::from_utf8(name.to_bytes()).unwrap_or("?"))),
                    );
                }
            }
            if bytes > self.bytes() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn open_below(root: &OwnedFd, below: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    openat2(root.as_fd(), below, OpenHow::new().flags(flags).resolve(resolve))
}

/// Bytes on disk that one name holds; of a file with several names, its share.
fn size(directory: &Dir, name: &CStr) -> u64 {
    let Ok(stat) = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { return 0 };
    let links = if stat.st_mode & libc::S_IFMT == libc::S_IFDIR { 1 } else { stat.st_nlink.max(1) };
    (stat.st_blocks.max(0) as u64) * 512 / links
}

/// Free space of a file system.
#[derive(Debug, Clone, Copy)]
struct Free {
    bytes: u64,
    inodes: u64,
}

impl Free {
    fn of(dir: &Path) -> Option<Self> {
        let stat = statvfs(dir).ok()?;
        Some(Self { bytes: stat.blocks_available() * stat.fragment_size(), inodes: stat.files_available() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn space(mib: u32, inodes: u64) -> Space {
        Space { mib, inodes }
    }

    #[test]
    fn bytes_and_names_are_counted_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a/b");
        std::fs::create_dir_all(&below).unwrap();
        std::fs::write(below.join("file"), vec![1; 3 << 20]).unwrap();
        symlink("/", dir.path().join("all")).unwrap();
        symlink("/proc/self/root", below.join("all")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), Mode::S_IRWXU).unwrap();
        assert!(space(4, 10).measure(dir.path()).unwrap());
        assert!(!space(2, 10).measure(dir.path()).unwrap());
        assert!(!space(4, 3).measure(dir.path()).unwrap());
        // A second name takes no more.
        std::fs::hard_link(below.join("file"), below.join("again")).unwrap();
        assert!(space(4, 10).measure(dir.path()).unwrap());
    }

    #[test]
    fn a_nest_is_more_than_a_step_may_make() {
        let dir = tempfile::tempdir().unwrap();
        let deep = "d/".repeat(DEPTH_LIMIT + 3);
        std::fs::create_dir_all(dir.path().join(deep)).unwrap();
        assert!(!space(100, 1000).measure(dir.path()).unwrap());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn it_returns_while_a_file_without_a_name_grows() {
        use std::io::Write;
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let mut file = tempfile::tempfile_in(dir.path()).unwrap();
        let writing = async {
            for _ in 0..40 {
                file.write_all(&[7; 1 << 20]).unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            std::future::pending::<()>().await;
        };
        let watched = tokio::time::timeout(Duration::from_secs(10), space(8, 1000).exceeded(dir.path()));
        tokio::select! {
            found = watched => assert_eq!(found.unwrap(), Failure::OutOfDisk { mib: 8, inodes: 1000 }),
            () = writing => {}
        }
    }
}
