//! Giving privileges up: ids, capabilities, `no_new_privs`, rlimits, seccomp.

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
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

/// No core files, a bounded number of descriptors.
///
/// # Errors
/// As `setrlimit(2)`.
pub fn limit_resources(files: u64) -> Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).named("setrlimit")?;
    setrlimit(Resource::RLIMIT_NOFILE, files, files).named("setrlimit")
}
