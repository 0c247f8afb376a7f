//! Quotas of the kernel that are counted for a user and not for a control group. Plain
//! data, decided in the worker; a fresh process puts them on its own user namespace.
//!
//! ```text
//! host     user `first` of the range       owns the namespace: all below is counted here too,
//!            │                             and never for the host's root
//! inside     ├─ root (0)     a zygote      each user: at most what `/proc/sys/user` says in
//!            ├─ 1000         a leaf        the namespace, and its own rlimits
//!            └─ 1001         a leaf
//! ```

use std::ffi::{CStr, CString};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::sys::{self, Named, privilege};

/// Quotas of one user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quotas {
    /// Inotify instances of one user.
    pub inotify_instances: u64,
    /// Inotify watches of one user.
    pub inotify_watches: u64,
    /// Namespaces of each kind that are made for sandboxes, in the whole user namespace.
    pub namespaces: u64,
    /// Queued signals and timers of one user.
    pub signals: u64,
}

/// [`Quotas`] as files and values, so that nothing is allocated after the fork.
pub struct Prepared {
    files: Vec<(CString, String)>,
    signals: u64,
}

impl Quotas {
    /// Writes them down.
    pub fn prepare(&self) -> Prepared {
        let values = [
            // In a user namespace below it, a zygote would have every capability again.
            ("max_user_namespaces", 0),
            ("max_time_namespaces", 0),
            ("max_fanotify_groups", 0),
            ("max_fanotify_marks", 0),
            ("max_inotify_instances", self.inotify_instances),
            ("max_inotify_watches", self.inotify_watches),
            ("max_cgroup_namespaces", self.namespaces),
            ("max_ipc_namespaces", self.namespaces),
            ("max_mnt_namespaces", self.namespaces),
            ("max_net_namespaces", self.namespaces),
            ("max_pid_namespaces", self.namespaces),
            ("max_uts_namespaces", self.namespaces),
        ];
        // A name of this file has no NUL.
        let path = |name| CString::new(format!("/proc/sys/user/{name}")).unwrap_or_default();
        let files = values.map(|(name, value)| (path(name), value.to_string())).into();
        Prepared { files, signals: self.signals }
    }
}

impl Prepared {
    /// Puts them on the caller's user namespace, for good, and its rlimits on the caller.
    /// Through the old root's `/proc`, which the kernel takes for the writer's own user namespace.
    ///
    /// # Errors
    /// As `open(2)`, `write(2)` and `setrlimit(2)`.
    pub fn set(&self) -> sys::Result<()> {
        for (path, value) in &self.files {
            match overwrite(path, value) {
                // The kernel was built without what is counted there.
                Err(error) if error.errno == Errno::ENOENT => {}
                done => done?,
            }
        }
        privilege::limit_quotas(self.signals)
    }
}

/// `min`, `default` and `max` of a TCP socket's buffer, in bytes: what a socket may always
/// hold, however much its sandbox has in sockets, is what it begins with.
const TCP_BUFFER: &str = "4096 8192 16384";

/// Keeps what one TCP socket may hold small in this network namespace, which must be new:
/// beside the limit of a v1 control group a socket is granted its first buffer always.
///
/// # Errors
/// As `open(2)` and `write(2)`.
pub fn small_sockets() -> sys::Result<()> {
    overwrite(c"/proc/sys/net/ipv4/tcp_rmem", TCP_BUFFER)?;
    overwrite(c"/proc/sys/net/ipv4/tcp_wmem", TCP_BUFFER)
}

fn overwrite(path: &CStr, value: &str) -> sys::Result<()> {
    let flags = nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_CLOEXEC;
    let file = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty()).named("open")?;
    nix::unistd::write(&file, value.as_bytes()).named("write").map(drop)
}
