//! The new mount API: mounts that are descriptors until somebody attaches them.
//!
//! A mount made by a privileged process and not attached yet (`open_tree`,
//! `fsmount`) can be handed over a socket and attached by a process that is
//! root only in its own user namespace: this is how sandboxes get their files.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::{Named, Result, check};

/// A dozen lines instead of a dependency: named bits with `|`.
macro_rules! bitflags_lite {
    ($(#[$doc:meta])* pub struct $name:ident: $bits:ty { $($flag:ident = $value:expr;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name($bits);
        #[allow(missing_docs)]
        impl $name {
            $(pub const $flag: Self = Self($value as $bits);)*
            pub const fn bits(self) -> $bits { self.0 }
            pub const fn union(self, other: Self) -> Self { Self(self.0 | other.0) }
        }
        impl std::ops::BitOr for $name {
            type Output = Self;
            fn bitor(self, other: Self) -> Self { self.union(other) }
        }
    };
}

bitflags_lite! {
    /// Attributes of a mount (`mount_setattr(2)`).
    pub struct Attr: u64 {
        RDONLY = libc::MOUNT_ATTR_RDONLY;
        NOSUID = libc::MOUNT_ATTR_NOSUID;
        NODEV = libc::MOUNT_ATTR_NODEV;
        NOEXEC = libc::MOUNT_ATTR_NOEXEC;
        IDMAP = libc::MOUNT_ATTR_IDMAP;
    }
}

/// Opens `path` for use as a directory or mount point (`O_PATH`).
///
/// # Errors
/// As `open(2)`.
pub fn open_path(path: &CStr) -> Result<OwnedFd> {
    // SAFETY: `path` is NUL-terminated by its type and outlives the call; the
    // kernel returns a descriptor that nobody else owns.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
    check("open", fd.into())?;
    // SAFETY: as above, `fd` is fresh and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Clones the mount at `path` below `dir` (with its submounts if `recursive`)
/// into a detached mount.
///
/// # Errors
/// As `open_tree(2)`; `EINVAL` where the mount is not of the caller's namespace.
pub fn clone_tree(dir: BorrowedFd<'_>, path: &CStr, recursive: bool) -> Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32;
    if recursive {
        flags |= libc::AT_RECURSIVE as u32;
    }
    // SAFETY: `path` is NUL-terminated and read only during the call; `dir` is open.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) };
    let fd = check("open_tree", fd)?;
    // SAFETY: the kernel just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A file system context being configured (`fsopen(2)`).
pub struct FsContext(OwnedFd);

impl FsContext {
    /// # Errors
    /// As `fsopen(2)`: `ENODEV` where the kernel lacks the file system.
    pub fn new(fs: &CStr) -> Result<Self> {
        // SAFETY: `fs` is NUL-terminated and read only during the call.
        let fd = unsafe { libc::syscall(libc::SYS_fsopen, fs.as_ptr(), FSOPEN_CLOEXEC) };
        let fd = check("fsopen", fd)?;
        // SAFETY: a fresh descriptor of ours.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// # Errors
    /// As `fsconfig(2)`: `EINVAL` for an option that the file system does not know.
    pub fn set(&self, key: &CStr, value: &CStr) -> Result<()> {
        self.config(FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr())
    }

    /// # Errors
    /// As `fsconfig(2)`.
    pub fn flag(&self, key: &CStr) -> Result<()> {
        self.config(FSCONFIG_SET_FLAG, key.as_ptr(), std::ptr::null())
    }

    /// Creates the file system and a detached mount of it.
    ///
    /// # Errors
    /// As `fsconfig(2)` and `fsmount(2)`: for proc, `EPERM` while no fully visible one is mounted.
    pub fn mount(self, attr: Attr) -> Result<OwnedFd> {
        self.config(FSCONFIG_CMD_CREATE, std::ptr::null(), std::ptr::null())?;
        // SAFETY: only integers are passed; the context is open.
        let fd = unsafe {
            libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attr.bits() as u32)
        };
        let fd = check("fsmount", fd)?;
        // SAFETY: a fresh descriptor of ours.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    fn config(
        &self,
        command: libc::c_uint,
        key: *const libc::c_char,
        value: *const libc::c_char,
    ) -> Result<()> {
        // SAFETY: `key` and `value` are null or come from a `CStr` that the two
        // callers above borrow for the whole call.
        let done = unsafe { libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, key, value, 0) };
        check("fsconfig", done).map(drop)
    }
}

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;

/// Attaches a detached mount at `path`.
///
/// # Errors
/// As `move_mount(2)`.
pub fn attach(mount: BorrowedFd<'_>, path: &CStr) -> Result<()> {
    // SAFETY: both strings are NUL-terminated constants or borrowed for the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    check("move_mount", done).map(drop)
}

/// Sets attributes of a mount, and of those below it if `recursive`. With
/// [`Attr::IDMAP`], `userns` says which user namespace maps the owners.
///
/// # Errors
/// As `mount_setattr(2)`: `EINVAL` where the file system cannot be id-mapped.
pub fn set_attr(
    mount: BorrowedFd<'_>,
    set: Attr,
    recursive: bool,
    userns: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let attr = libc::mount_attr {
        attr_set: set.bits(),
        attr_clr: 0,
        // What the host mounts later below such a tree must not appear in it.
        propagation: libc::MS_PRIVATE,
        userns_fd: userns.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: `attr` lives on this stack until the call returns and its true
    // size is passed; the path is a constant.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    check("mount_setattr", done).map(drop)
}

/// A new tmpfs with bounds on bytes and inodes, detached.
///
/// # Errors
/// As `fsopen(2)` and `fsmount(2)`.
pub fn tmpfs(size: &CStr, inodes: &CStr, mode: &CStr, attr: Attr) -> Result<OwnedFd> {
    let fs = FsContext::new(c"tmpfs")?;
    fs.set(c"size", size)?;
    fs.set(c"nr_inodes", inodes)?;
    fs.set(c"mode", mode)?;
    fs.mount(attr)
}

/// Makes `new_root`, a mount point, the root of this mount namespace, and
/// leaves the old root and all that is below it behind.
///
/// # Errors
/// As `pivot_root(2)` and `umount2(2)`.
pub fn pivot_into(new_root: &CStr) -> Result<()> {
    nix::unistd::chdir(new_root).named("chdir")?;
    // `.` twice stacks the old root over the new one, whence it is taken off:
    // no directory for the old one is needed (pivot_root(2), NOTES).
    nix::unistd::pivot_root(c".", c".").named("pivot_root")?;
    nix::mount::umount2(c".", nix::mount::MntFlags::MNT_DETACH).named("umount2")?;
    nix::unistd::chdir(c"/").named("chdir")
}

/// Keeps this namespace's mounts from propagating out; the host's still come in if `slave`.
///
/// # Errors
/// As `mount(2)`.
pub fn isolate_propagation(slave: bool) -> Result<()> {
    use nix::mount::MsFlags;
    let how = if slave { MsFlags::MS_SLAVE } else { MsFlags::MS_PRIVATE };
    nix::mount::mount(None::<&CStr>, c"/", None::<&CStr>, MsFlags::MS_REC | how, None::<&CStr>).named("mount")
}
