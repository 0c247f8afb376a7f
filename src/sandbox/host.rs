//! What the machine must have, and what the worker changes of itself before
//! anything else: its own mount namespace, fewer capabilities.

use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};
use hosier_zygote::sys::mount::{FsContext, isolate_propagation};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::SandboxError;

/// What the worker uses of root's powers; the rest it gives up.
const USED: [Capability; 13] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_FOWNER,
    Capability::CAP_KILL,
    Capability::CAP_MKNOD,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_SYS_PTRACE,
];

/// Checks that this process is root's.
///
/// # Errors
/// It is not.
pub fn check_root() -> Result<(), SandboxError> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(SandboxError::Unsupported(
        "hosier needs root to make and reach sandboxes: run it with sudo".to_owned(),
    ))
}

/// Checks that this machine can run sandboxes.
///
/// # Errors
/// What is missing, and what to do.
pub fn check() -> Result<(), SandboxError> {
    let unsupported = |text: &str| Err(SandboxError::Unsupported(text.to_owned()));
    check_root()?;
    let effective = caps::read(None, CapSet::Effective).unwrap_or_default();
    for capability in USED {
        if !effective.contains(&capability) {
            return unsupported(&format!(
                "root lacks {capability}: run hosier outside a container, or give the container that capability"
            ));
        }
    }
    if FsContext::new(c"overlay").is_err() {
        return unsupported("the kernel has no overlayfs: load it with `modprobe overlay`");
    }
    for name in ["user", "mnt", "pid", "ipc", "uts", "net", "cgroup"] {
        if !Path::new("/proc/self/ns").join(name).exists() {
            return unsupported(&format!("the kernel has no {name} namespaces"));
        }
    }
    let limit = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    if limit.trim() == "0" {
        return unsupported("user namespaces are switched off: `sysctl -w user.max_user_namespaces=10000`");
    }
    Ok(())
}

/// Moves this process into a mount namespace of its own: what it mounts, nobody
/// else sees, and it goes with the last process in it.
///
/// # Errors
/// As `unshare(2)`.
pub fn private_mounts() -> Result<(), SandboxError> {
    let failed = |source| SandboxError::System { what: "a mount namespace of the worker's own", source };
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(|errno| failed(hosier_zygote::sys::SysError { call: "unshare", errno }))?;
    // The host's later mounts still come in.
    isolate_propagation(true).map_err(failed)
}

/// Gives up every capability that the worker does not use.
///
/// # Errors
/// As `capset(2)`.
pub fn trim_capabilities() -> Result<(), SandboxError> {
    let keep: CapsHashSet = USED.into_iter().collect();
    let failed = |error: caps::errors::CapsError| {
        SandboxError::Unsupported(format!("capabilities could not be given up: {error}"))
    };
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new()).map_err(failed)?;
    caps::set(None, CapSet::Effective, &keep).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &keep).map_err(failed)
}

/// Returns the number of descriptors that this process may have, and any that it starts.
pub fn descriptor_limit() -> u64 {
    // It fails for a resource that there is not.
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard)
}

/// Raises the number of descriptors to what this process may have.
pub fn raise_descriptor_limit() {
    let hard = descriptor_limit();
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
}
