//! A root that its sandbox may write anywhere: an overlay with an upper of its
//! own on a bounded tmpfs. Runs in the worker.
//!
//! ```text
//! run/mnt/uppers/N         a tmpfs: size and inodes bounded
//!   upper/  work/          upper starts with a copy of the small layers, owned by the sandbox
//!   root/                  overlay of upper over base
//!   root/usr               overlay of usr-upper over the host's /usr, id-mapped if it can be
//! ```
//!
//! Id-mapping makes the host's root, who owns /usr, the sandbox's root: what is
//! copied up then belongs to the sandbox. Without it (a file system that cannot,
//! a kernel that lacks it) /usr stays read-only.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{chown, lchown};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use hosier_zygote::sys::mount::{self, Attr, FsContext};

use super::base::{Layer, attach, c_string, clone, make_dir, seal};
use super::error::{About, During};
use super::{Base, Network, SandboxError};

/// A prepared writable root. Unmounted when dropped; clones live on.
#[derive(Debug)]
pub struct WritableRoot {
    path: PathBuf,
}

/// A place for a mount, made on a writable root.
#[derive(Debug, Clone)]
pub struct MountPoint {
    /// An absolute path in the sandbox.
    pub path: String,
    /// A file is mounted there, not a directory.
    pub is_file: bool,
}

/// What a writable root is for.
pub struct Wanted<'a> {
    pub network: Network,
    /// Whether the host's CA files, and links to its compilers, are shown.
    pub tools: bool,
    /// Host id of who owns it.
    pub owner: u32,
    pub size_mib: u32,
    pub inodes: u32,
    pub mount_points: &'a [MountPoint],
    /// A user namespace that maps 0 to `owner`.
    pub userns: Option<BorrowedFd<'a>>,
}

static NUMBER: AtomicU64 = AtomicU64::new(0);
/// One word about the host's file system is enough.
static SAID: Once = Once::new();

impl WritableRoot {
    /// # Errors
    /// A mount failed; nothing is left then.
    pub fn new(base: &Base, wanted: &Wanted<'_>) -> Result<Self, SandboxError> {
        let path = base.uppers().join(NUMBER.fetch_add(1, Ordering::Relaxed).to_string());
        make_dir(&path)?;
        let made = Self { path };
        made.build(base, wanted)?;
        Ok(made)
    }

    /// A detached clone.
    ///
    /// # Errors
    /// As `open_tree(2)`.
    pub fn open(&self) -> Result<OwnedFd, SandboxError> {
        clone(&self.path.join("root"))
    }

    fn build(&self, base: &Base, wanted: &Wanted<'_>) -> Result<(), SandboxError> {
        let text = |value: String| c_string(Path::new(&value));
        let (size, inodes) = (text(format!("{}m", wanted.size_mib))?, text(wanted.inodes.to_string())?);
        let tmpfs = mount::tmpfs(&size, &inodes, c"0755", Attr::NOSUID).during("a writable root's tmpfs")?;
        attach(&tmpfs, &self.path)?;
        for directory in ["upper", "work", "usr-upper", "usr-work", "root"] {
            make_dir(&self.path.join(directory))?;
        }
        let upper = self.path.join("upper");
        copy_tree(&base.layer("common"), &upper, wanted.owner)?;
        if wanted.tools {
            copy_tree(&base.layer("tools"), &upper, wanted.owner)?;
        }
        if wanted.network == Network::Host {
            copy_tree(&base.layer("network"), &upper, wanted.owner)?;
        }
        for point in wanted.mount_points {
            make_point(&upper, point, wanted.owner)?;
        }
        let root = self.path.join("root");
        // Its /dev has devices.
        let overlay =
            self.detached_overlay(&base.layer("base"), "upper", "work", wanted.owner, Attr::NOSUID)?;
        attach(&overlay, &root)?;
        let usr = self.usr(wanted)?;
        attach(&usr, &root.join("usr"))
    }

    fn detached_overlay(
        &self,
        lower: &Path,
        upper: &str,
        work: &str,
        owner: u32,
        flags: Attr,
    ) -> Result<OwnedFd, SandboxError> {
        let (upper, work) = (self.path.join(upper), self.path.join(work));
        chown(&upper, Some(owner), Some(owner)).about(&upper)?;
        let layers = [Layer::open(lower)?, Layer::open(&upper)?, Layer::open(&work)?];
        let overlay = FsContext::new(c"overlay").during("overlayfs")?;
        for (option, layer) in [c"lowerdir", c"upperdir", c"workdir"].into_iter().zip(&layers) {
            overlay.set(option, &c_string(Path::new(&layer.path()))?).during("overlayfs layer")?;
        }
        overlay.mount(flags).during("overlayfs")
    }

    /// The host's /usr: under an upper of its own if it can be id-mapped, else read-only.
    fn usr(&self, wanted: &Wanted<'_>) -> Result<OwnedFd, SandboxError> {
        let plain = || {
            let usr = clone(Path::new("/usr"))?;
            seal(&usr, true)?;
            Ok(usr)
        };
        let Some(userns) = wanted.userns else { return plain() };
        let mapped = clone(Path::new("/usr"))?;
        if let Err(error) = mount::set_attr(mapped.as_fd(), Attr::IDMAP, false, Some(userns)) {
            SAID.call_once(|| {
                tracing::warn!(%error, "/usr stays read-only in writable roots: its file system cannot be id-mapped");
            });
            return plain();
        }
        let lower = self.path.join("usr-lower");
        make_dir(&lower)?;
        attach(&mapped, &lower)?;
        let flags = Attr::NOSUID | Attr::NODEV;
        self.detached_overlay(&lower, "usr-upper", "usr-work", wanted.owner, flags)
    }
}

impl Drop for WritableRoot {
    fn drop(&mut self) {
        use nix::mount::{MntFlags, umount2};
        let _ = umount2(&self.path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        let _ = fs::remove_dir(&self.path);
    }
}

/// Copies one of our small layers, giving all of it to `owner`.
fn copy_tree(from: &Path, to: &Path, owner: u32) -> Result<(), SandboxError> {
    for entry in fs::read_dir(from).about(from)? {
        let entry = entry.about(from)?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().about(&source)?;
        if kind.is_dir() {
            if !target.exists() {
                make_dir(&target)?;
            }
            copy_tree(&source, &target, owner)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source).about(&source)?, &target).about(&target)?;
        } else if kind.is_file() {
            fs::copy(&source, &target).about(&target)?;
        } else {
            copy_device(&source, &target)?;
            continue;
        }
        lchown(&target, Some(owner), Some(owner)).about(&target)?;
    }
    Ok(())
}

/// Devices stay the host root's: their mode lets everybody use them.
fn copy_device(source: &Path, target: &Path) -> Result<(), SandboxError> {
    use nix::sys::stat::{Mode, SFlag, mknod};
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(source).about(source)?;
    mknod(target, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), metadata.rdev()).about(target)?;
    fs::set_permissions(target, metadata.permissions()).about(target)
}

fn make_point(root: &Path, point: &MountPoint, owner: u32) -> Result<(), SandboxError> {
    let mut path = root.to_owned();
    let mut parts = Path::new(point.path.trim_start_matches('/')).components().peekable();
    while let Some(part) = parts.next() {
        let std::path::Component::Normal(part) = part else {
            return Err(SandboxError::Unsupported(format!("{} is no place for a mount", point.path)));
        };
        path.push(part);
        if !path.exists() {
            if point.is_file && parts.peek().is_none() {
                fs::write(&path, b"").about(&path)?;
            } else {
                make_dir(&path)?;
            }
            chown(&path, Some(owner), Some(owner)).about(&path)?;
        }
    }
    Ok(())
}
