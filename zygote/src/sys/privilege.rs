//! Giving privileges up: ids, capabilities, `no_new_privs`, rlimits, seccomp.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::{Named, Result, SysError, check};

/// Becomes `uid` and `gid` for good, without supplementary groups.
///
/// # Errors
/// `EINVAL` where the user namespace does not map them.
pub fn become_ids(uid: u32, gid: u32) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&[]).named("setgroups")?;
    setresgid(gid, gid, gid).named("setresgid")?;
    setresuid(uid, uid, uid).named("setresuid")
}

/// Takes every capability but those in the mask `keep` out of the bounding
/// set, so that no `execve` ever gives one back.
///
/// # Errors
/// `EPERM` without `CAP_SETPCAP`.
pub fn bound_capabilities(keep: u64) -> Result<()> {
    for capability in (0..64).filter(|bit| keep & (1 << bit) == 0) {
        // Looking first is a tenth of the price, and a leaf inherits an empty set.
        // SAFETY: integers only.
        let done = match unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) } {
            0 => 0,
            // SAFETY: as above.
            1 => unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) },
            failed => failed,
        };
        if done < 0 {
            return match Errno::last() {
                // Past the newest capability of this kernel.
                Errno::EINVAL => Ok(()),
                errno => Err(SysError { call: "prctl", errno }),
            };
        }
    }
    Ok(())
}

/// What a zygote needs of its user namespace: `SETGID`, `SETUID`, `SETPCAP`
/// (to drop all of them in a leaf), `NET_ADMIN` (`lo`), `SYS_ADMIN` (mounts, namespaces).
pub const ZYGOTE_CAPABILITIES: u64 = 1 << 6 | 1 << 7 | 1 << 8 | 1 << 12 | 1 << 21;

/// Reduces the effective and permitted sets to the mask `keep`; empties the
/// inheritable and ambient ones.
///
/// # Errors
/// As `capset(2)`.
pub fn keep_capabilities(keep: u64) -> Result<()> {
    // SAFETY: integers only; ambient capabilities go first, as each needs the other sets.
    let done = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    check("prctl", done.into())?;
    let header = [CAPABILITY_VERSION_3, 0];
    let (low, high) = (keep as u32, (keep >> 32) as u32);
    let sets = [low, low, 0, high, high, 0];
    // SAFETY: the kernel reads 8 bytes of header and, for version 3, 24 of data.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    check("capset", done).map(drop)
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// # Errors
/// As `prctl(2)`.
pub fn no_new_privs() -> Result<()> {
    // SAFETY: integers only.
    let done = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    check("prctl", done.into()).map(drop)
}

/// A change of ids makes a process unreadable to itself (`/proc/self` becomes
/// root's); this gives it back what it owns.
///
/// # Errors
/// As `prctl(2)`.
pub fn set_dumpable() -> Result<()> {
    // SAFETY: integers only.
    let done = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
    check("prctl", done.into()).map(drop)
}

/// Installs a ready filter: `struct sock_filter` instructions as bytes.
///
/// # Errors
/// `EINVAL` for a malformed program; `EACCES` without `no_new_privs`.
pub fn install_filter(program: &[u8]) -> Result<()> {
    #[repr(C)]
    struct SockFprog {
        len: libc::c_ushort,
        filter: *const u8,
    }
    let instructions = program.len() / 8;
    let len = libc::c_ushort::try_from(instructions)
        .map_err(|_| SysError { call: "seccomp", errno: Errno::EINVAL })?;
    let fprog = SockFprog { len, filter: program.as_ptr() };
    // SAFETY: the kernel reads `len` instructions of 8 bytes, all inside
    // `program`, and needs no alignment: it copies them in.
    let done =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const fprog) };
    check("seccomp", done).map(drop)
}

/// Bounds the number of descriptors.
///
/// # Errors
/// As `setrlimit(2)`.
pub fn limit_resources(files: u64) -> Result<()> {
    setrlimit(Resource::RLIMIT_NOFILE, files, files).named("setrlimit")
}

/// Bounds what is counted for a user: queued signals and timers; no message queues. All
/// children inherit it.
///
/// # Errors
/// As `setrlimit(2)`.
pub fn limit_quotas(signals: u64) -> Result<()> {
    setrlimit(Resource::RLIMIT_MSGQUEUE, 0, 0).named("setrlimit")?;
    setrlimit(Resource::RLIMIT_SIGPENDING, signals, signals).named("setrlimit")
}

/// Bounds what is counted for the owner of a user namespace that is made under this limit:
/// processes and threads, at most `processes`. No core files: a limit of one byte also keeps
/// the kernel from starting a handler (`do_coredump`), which 0 does not. All children inherit it.
///
/// # Errors
/// As `setrlimit(2)`.
pub fn limit_owners(processes: u64) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NPROC).named("getrlimit")?;
    let processes = processes.min(hard);
    setrlimit(Resource::RLIMIT_NPROC, processes, processes).named("setrlimit")?;
    setrlimit(Resource::RLIMIT_CORE, CORE_BYTES, CORE_BYTES)
        // The operator forbade them, and this process cannot raise the limit.
        .or_else(|_| setrlimit(Resource::RLIMIT_CORE, 0, 0))
        .named("setrlimit")
}

const CORE_BYTES: u64 = 1;

/// Runs `action` as the host's user `uid` with every capability that root has, and becomes
/// root again. A user namespace that `action` makes is owned by that user: the kernel counts
/// what is used in it for the owner too.
///
/// A child that `action` forks returns from here as root of its new user namespace or not
/// at all, and goes on as `uid` until it takes ids of its own.
///
/// # Errors
/// As `setresuid(2)` and `capset(2)`.
pub fn as_owner<T>(uid: u32, action: impl FnOnce() -> Result<T>, is_child: fn(&T) -> bool) -> Result<T> {
    let (root, owner) = (Uid::from_raw(0), Uid::from_raw(uid));
    // The saved id stays 0: it keeps the permitted set, and is the way back.
    setresuid(owner, owner, root).named("setresuid")?;
    let done = raise_capabilities().and_then(|()| action());
    if !done.as_ref().is_ok_and(is_child) {
        setresuid(root, root, root).named("setresuid")?;
    }
    done
}

/// Makes every permitted capability effective.
fn raise_capabilities() -> Result<()> {
    let header = [CAPABILITY_VERSION_3, 0];
    let mut sets = [0u32; 6];
    // SAFETY: the kernel reads 8 bytes of header and, for version 3, writes 24 of data.
    let done = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) };
    check("capget", done)?;
    let [_, low, _, _, high, _] = sets;
    let sets = [low, low, 0, high, high, 0];
    // SAFETY: as in `keep_capabilities`.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    check("capset", done).map(drop)
}
