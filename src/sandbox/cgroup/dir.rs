//! One open cgroup directory. Runs in the worker and in the spawner.
//!
//! Files are reached from the directory's descriptor, never again by path: no
//! lookup through mounts, and a cgroup that was removed and made anew by somebody
//! else is never mistaken for ours. The path is kept for messages.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use hosier_zygote::sys::mount::clone_tree;
use nix::dir;
use nix::errno::Errno;
use nix::fcntl::{self, OFlag};
use nix::sys::stat::{self, Mode};
use nix::unistd::{self, Gid, Uid, UnlinkatFlags};

use super::CgroupError;

/// Larger than any state file of ours; `cgroup.procs` is read whole.
const STATE_BYTES: usize = 4096;

#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    pub fn open(path: &Path) -> Result<Self, CgroupError> {
        let fd = fcntl::open(path, dir_flags(), Mode::empty())
            .map_err(CgroupError::failed("open", path.to_owned()))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same directory through a mount of its own, attached nowhere: whoever is
    /// handed it cannot get out of it by `..`, which through this one leads to the
    /// host's root, whatever root the process has.
    pub fn apart(&self) -> Result<OwnedFd, CgroupError> {
        let failed = |errno| CgroupError::Failed { action: "mount", path: self.path.clone(), errno };
        let mount = clone_tree(self.fd.as_fd(), c"", false).map_err(|error| failed(error.errno))?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        fcntl::openat(&mount, ".", flags, Mode::empty()).map_err(failed)
    }

    pub fn child(&self, name: &str) -> Result<Self, CgroupError> {
        let path = self.path.join(name);
        match fcntl::openat(&self.fd, name, dir_flags(), Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path }),
            Err(errno) => Err(CgroupError::Failed { action: "open", path, errno }),
        }
    }

    pub fn make(&self, name: &str) -> Result<(), CgroupError> {
        stat::mkdirat(&self.fd, name, Mode::from_bits_truncate(0o755))
            .map_err(CgroupError::failed("make", self.path.join(name)))
    }

    /// Removes a child. One that is gone already is fine.
    pub fn remove(&self, name: &str) -> Result<(), CgroupError> {
        match unistd::unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(CgroupError::Failed { action: "remove", path: self.path.join(name), errno }),
        }
    }

    /// The names of the child cgroups.
    pub fn children(&self) -> Result<Vec<String>, CgroupError> {
        let failed = || CgroupError::failed("list", self.path.clone());
        let mut listing =
            dir::Dir::openat(&self.fd, ".", dir_flags(), Mode::empty()).map_err(|errno| failed()(errno))?;
        let mut names = Vec::new();
        for entry in listing.iter() {
            let entry = entry.map_err(|errno| failed()(errno))?;
            let name = entry.file_name().to_string_lossy();
            if entry.file_type() == Some(dir::Type::Directory) && name != "." && name != ".." {
                names.push(name.into_owned());
            }
        }
        Ok(names)
    }

    pub fn has(&self, file: &str) -> bool {
        stat::fstatat(&self.fd, file, fcntl::AtFlags::empty()).is_ok()
    }

    pub fn open_for_writing(&self, file: &str) -> Result<File, CgroupError> {
        self.file(file, OFlag::O_WRONLY)
    }

    /// Writes a value in one `write(2)`, as these files require.
    pub fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        self.open_for_writing(file)?
            .write_all(value.as_bytes())
            .map_err(|error| CgroupError::failed("write", self.path.join(file))(errno_of(&error)))
    }

    /// As [`Self::write`], where a kernel may be built without the file.
    pub fn write_if_there(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        match self.write(file, value) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
            written => written,
        }
    }

    /// Reads a small file of state and has `parse` understand it.
    pub fn read<T>(&self, file: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, CgroupError> {
        let mut bytes = [0; STATE_BYTES];
        let length = self
            .file(file, OFlag::O_RDONLY)?
            .read(&mut bytes)
            .map_err(|error| CgroupError::failed("read", self.path.join(file))(errno_of(&error)))?;
        let text = String::from_utf8_lossy(&bytes[..length]);
        parse(&text)
            .ok_or_else(|| CgroupError::Malformed { path: self.path.join(file), text: text.into_owned() })
    }

    /// The processes in it, as this process' pid namespace numbers them. One that
    /// the namespace does not show reads as 0 on v2, and is left out: `kill(0)`
    /// would hit ourselves.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        let mut text = String::new();
        self.file("cgroup.procs", OFlag::O_RDONLY)?
            .read_to_string(&mut text)
            .map_err(|error| CgroupError::failed("read", self.path.join("cgroup.procs"))(errno_of(&error)))?;
        Ok(visible_pids(&text))
    }

    /// Gives one file to another owner.
    pub fn give(&self, file: &str, (uid, gid): super::Owner) -> Result<(), CgroupError> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        unistd::fchownat(&self.fd, file, uid, gid, fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(CgroupError::failed("change the owner of", self.path.join(file)))
    }

    fn file(&self, file: &str, mode: OFlag) -> Result<File, CgroupError> {
        match fcntl::openat(&self.fd, file, mode | OFlag::O_CLOEXEC, Mode::empty()) {
            Ok(fd) => Ok(File::from(fd)),
            Err(errno) => Err(CgroupError::Failed { action: "open", path: self.path.join(file), errno }),
        }
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Not `O_PATH`: `CLONE_INTO_CGROUP` refuses such a descriptor.
fn dir_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

fn visible_pids(text: &str) -> Vec<i32> {
    text.lines().filter_map(|line| line.trim().parse().ok()).filter(|pid| *pid > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_another_pid_namespace_is_never_a_target() {
        assert_eq!(visible_pids("0\n17\n-1\n\n4194304\n"), [17, 4194304]);
    }
}
