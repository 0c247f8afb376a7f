//! What can go wrong with a cgroup: which file, why, and what to do next.

use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// Something about a control group could not be done.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("cannot read the mounts of this process: {0}; mount proc on /proc")]
    Mounts(#[from] procfs::ProcError),

    #[error(
        "no mounted cgroup hierarchy offers the controller `{controller}`; boot with \
         `cgroup_enable={controller}` and without `cgroup_disable={controller}`, or, inside a container or \
         a service, have the controller delegated (`Delegate=yes`, `--cgroupns=private` with a writable \
         /sys/fs/cgroup)"
    )]
    NoController { controller: &'static str },

    #[error(
        "the controller `{controller}` is on cgroup v2 while others are on v1; boot with \
         `systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all`"
    )]
    Split { controller: &'static str },

    #[error("{path} does not exist; the kernel must be 5.14 or newer for `cgroup.kill`")]
    NoKill { path: PathBuf },

    #[error(
        "{name:?} is no name for a cgroup; use letters, digits, `-` and `_`, and begin that of a worker's group \
         with `hosier-`"
    )]
    BadName { name: String },

    #[error("cannot {action} {path}: {errno}; {}", advice(*errno, path))]
    Failed { action: &'static str, path: PathBuf, errno: Errno },

    #[error(
        "{path} says {text:?}, which this version does not understand; report it with the kernel's version"
    )]
    Malformed { path: PathBuf, text: String },

    #[error("{path} is not {state} after {bound_ms} ms; see /proc/PID/stack of the processes in it")]
    TooLate { path: PathBuf, state: &'static str, bound_ms: u64 },

    #[error("{path} was killed or has had its birth; take another cgroup for the next process")]
    Spent { path: PathBuf },
}

impl CgroupError {
    /// Whether the machine has no room for another cgroup, descriptor or byte:
    /// nothing is broken, and a later try may succeed.
    pub fn is_capacity(&self) -> bool {
        use Errno::{EAGAIN, EMFILE, ENFILE, ENOMEM, ENOSPC};
        matches!(self, Self::Failed { errno: EAGAIN | EMFILE | ENFILE | ENOMEM | ENOSPC, .. })
    }

    pub(super) fn failed(action: &'static str, path: PathBuf) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Failed { action, path, errno }
    }

    /// The kernel's answer, where there is one.
    pub(super) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Failed { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// What to do about `errno` at `path`.
fn advice(errno: Errno, path: &Path) -> &'static str {
    let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match (errno, file) {
        (Errno::EBUSY, "cgroup.subtree_control") => {
            "processes live in that cgroup (a container's root, or a service's): move them into a child of it first"
        }
        (Errno::EBUSY, "memory.limit_in_bytes") => {
            "more than that is in use and cannot be reclaimed; take another cgroup"
        }
        (Errno::EBUSY, _) => "a process or a child cgroup is still in it: kill it first",
        (Errno::EACCES | Errno::EPERM, _) => "run the worker as root of the host",
        (Errno::EROFS, _) => "remount the hierarchy read-write",
        (Errno::EEXIST, _) => "remove what an earlier worker left of that name first",
        (Errno::ENOENT, "cpu.max" | "cpu.cfs_quota_us") => "the kernel needs CONFIG_CFS_BANDWIDTH",
        (Errno::ENOENT, _) => "the kernel lacks the file or somebody removed the cgroup",
        (Errno::ENODEV, _) => "somebody removed the cgroup",
        (Errno::ENOSPC | Errno::EAGAIN, _) => {
            "the machine's limit of cgroups is reached (cgroup.max.descendants, or 65535 of memory): remove some"
        }
        (Errno::EMFILE | Errno::ENFILE, _) => "raise the limit of open files (LimitNOFILE, fs.file-max)",
        (Errno::ENOMEM, _) => "the machine is out of memory",
        _ => "see cgroups(7)",
    }
}
