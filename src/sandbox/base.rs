//! What a sandbox sees as `/`. Runs in the worker, whose mount namespace holds
//! the prepared roots; a sandbox gets a clone.
//!
//! ```text
//! run/mnt                    a tmpfs, in the worker's private mount namespace only
//!   layers/base/             usr (a mount point), bin -> usr/bin, lib -> usr/lib, …
//!   layers/common/           dev, etc, handler, host, hosier, packages, proc, tmp, …
//!   layers/network/          etc: the resolver, for network "host"
//!   layers/tools/            etc: CA files and links to compilers, for that and for commands
//!   roots/none               overlay of common:base, read-only, and the host's /usr
//!   roots/host               overlay of network:tools:common:base, the same
//!   views/N                  the packages of one closure, each a bind mount
//!   uppers/N                 a writable root, see `writable`
//! ```

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use hosier_zygote::sys::mount::{self, Attr, FsContext};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::error::{About, During};
use super::{Network, SandboxError};

/// A file that every sandbox finds below `/hosier`.
pub struct RuntimeFile {
    pub name: &'static str,
    pub content: Vec<u8>,
}

/// The prepared roots.
#[derive(Debug)]
pub struct Base {
    mnt: PathBuf,
}

/// Where a new root is attached before it is entered: any directory of the old
/// root does, and this is the one that each has, the host's and a sandbox's.
pub const STAGING: &str = "/usr";

/// Links of a host with merged /usr (Debian, Ubuntu, Fedora, Arch).
const USR_LINKS: [&str; 6] = ["bin", "sbin", "lib", "lib64", "lib32", "libx32"];
const DIRECTORIES: [&str; 12] =
    ["dev", "dev/shm", "etc", "handler", "home", "host", "hosier", "mnt", "out", "packages", "proc", "tmp"];
/// Name, major, minor.
const DEVICES: [(&str, u64, u64); 5] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9)];

impl Base {
    /// Builds the layers and roots below `mnt`, a fresh mount point.
    ///
    /// # Errors
    /// The host's /usr is not merged, or a mount failed.
    pub fn prepare(mnt: &Path, runtime: &[RuntimeFile]) -> Result<Self, SandboxError> {
        let tmpfs = mount::tmpfs(c"64m", c"65536", c"0755", Attr::NOSUID).during("run-time tmpfs")?;
        attach(&tmpfs, mnt)?;
        let base = Self { mnt: mnt.to_owned() };
        for directory in ["layers", "roots", "views", "uppers"] {
            make_dir(&base.mnt.join(directory))?;
        }
        base.base_layer()?;
        base.common_layer(runtime)?;
        base.network_layer()?;
        base.tools_layer()?;
        base.root(Network::None, &["common", "base"])?;
        base.root(Network::Host, &["network", "tools", "common", "base"])?;
        Ok(base)
    }

    /// A detached clone of the read-only root.
    ///
    /// # Errors
    /// As `open_tree(2)`.
    pub fn clone_root(&self, network: Network) -> Result<OwnedFd, SandboxError> {
        clone(&self.mnt.join("roots").join(root_name(network)))
    }

    /// The directory for [`super::View`]s.
    pub fn views(&self) -> PathBuf {
        self.mnt.join("views")
    }

    /// The directory for writable roots.
    pub(super) fn uppers(&self) -> PathBuf {
        self.mnt.join("uppers")
    }

    pub(super) fn layer(&self, name: &str) -> PathBuf {
        self.mnt.join("layers").join(name)
    }

    fn base_layer(&self) -> Result<(), SandboxError> {
        let layer = self.layer("base");
        make_dir(&layer)?;
        make_dir(&layer.join("usr"))?;
        for name in USR_LINKS {
            let host = Path::new("/").join(name);
            match fs::read_link(&host) {
                Ok(target) => {
                    let target = target.strip_prefix("/").map(Path::to_owned).unwrap_or(target);
                    symlink(&target, layer.join(name)).about(&host)?;
                }
                Err(_) if host.exists() => {
                    return Err(SandboxError::Unsupported(format!(
                        "{} is not a link into /usr: base \"host\" needs a machine with merged /usr \
                         (Debian 12, Ubuntu 20.04 or newer)",
                        host.display()
                    )));
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn common_layer(&self, runtime: &[RuntimeFile]) -> Result<(), SandboxError> {
        let layer = self.layer("common");
        make_dir(&layer)?;
        for name in DIRECTORIES {
            make_dir(&layer.join(name))?;
        }
        make_dir(&layer.join("var"))?;
        symlink("../tmp", layer.join("var/tmp")).about(&layer)?;
        for (name, major, minor) in DEVICES {
            let path = layer.join("dev").join(name);
            mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))
                .about(&path)?;
            // The worker's umask has taken bits off.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).about(&path)?;
        }
        for (name, target) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
        ] {
            symlink(target, layer.join("dev").join(name)).about(&layer)?;
        }
        etc(&layer.join("etc"))?;
        for file in runtime {
            write(&layer.join("hosier").join(file.name), &file.content)?;
        }
        Ok(())
    }

    fn network_layer(&self) -> Result<(), SandboxError> {
        let layer = self.layer("network");
        make_dir(&layer)?;
        let etc = layer.join("etc");
        make_dir(&etc)?;
        for name in ["resolv.conf", "hosts", "gai.conf", "services"] {
            copy_if_there(&Path::new("/etc").join(name), &etc.join(name))?;
        }
        Ok(())
    }

    fn tools_layer(&self) -> Result<(), SandboxError> {
        let layer = self.layer("tools");
        make_dir(&layer)?;
        let etc = layer.join("etc");
        make_dir(&etc)?;
        for directory in ["ssl", "ssl/certs", "pki", "pki/tls", "pki/tls/certs"] {
            make_dir(&etc.join(directory))?;
        }
        let bundles = ["ssl/certs/ca-certificates.crt", "ssl/openssl.cnf", "pki/tls/certs/ca-bundle.crt"];
        for name in bundles {
            copy_if_there(&Path::new("/etc").join(name), &etc.join(name))?;
        }
        // Compilers and the like are often links through here.
        copy_links(Path::new("/etc/alternatives"), &etc.join("alternatives"))
    }

    fn root(&self, network: Network, layers: &[&str]) -> Result<(), SandboxError> {
        let root = self.mnt.join("roots").join(root_name(network));
        make_dir(&root)?;
        let lower =
            layers.iter().map(|name| Layer::open(&self.layer(name))).collect::<Result<Vec<_>, _>>()?;
        let overlay = FsContext::new(c"overlay").during("overlayfs")?;
        let paths: Vec<_> = lower.iter().map(Layer::path).collect();
        overlay.set(c"lowerdir", &c_string(Path::new(&paths.join(":")))?).during("overlayfs lower layers")?;
        let overlay = overlay.mount(Attr::NOSUID | Attr::RDONLY).during("overlayfs")?;
        attach(&overlay, &root)?;
        let usr = clone(Path::new("/usr"))?;
        seal(&usr, true)?;
        attach(&usr, &root.join("usr"))
    }
}

/// A directory as overlayfs is told of it: by a descriptor, since an option holds no
/// more than 255 bytes, colons part layers, and a sandbox sees the options of its root.
pub(super) struct Layer(OwnedFd);

impl Layer {
    pub fn open(path: &Path) -> Result<Self, SandboxError> {
        let opened = mount::open_path(&c_string(path)?);
        opened.map(Self).map_err(|error| std::io::Error::from(error.errno)).about(path)
    }

    /// Holds while this is open.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

/// Makes a detached mount read-only, without set-uid programs and devices.
pub(super) fn seal(tree: &OwnedFd, recursive: bool) -> Result<(), SandboxError> {
    mount::set_attr(tree.as_fd(), Attr::RDONLY | Attr::NOSUID | Attr::NODEV, recursive, None)
        .during("read-only mount")
}

/// A detached clone of what is mounted at `path`, submounts included.
pub(super) fn clone(path: &Path) -> Result<OwnedFd, SandboxError> {
    let directory =
        mount::open_path(&c_string(path)?).map_err(|error| std::io::Error::from(error.errno)).about(path)?;
    mount::clone_tree(directory.as_fd(), c"", true).during("clone of a mount")
}

pub(super) fn attach(tree: &OwnedFd, path: &Path) -> Result<(), SandboxError> {
    mount::attach(tree.as_fd(), &c_string(path)?).during("attaching a mount")
}

pub(super) fn make_dir(path: &Path) -> Result<(), SandboxError> {
    fs::create_dir(path).about(path)?;
    // Sandboxes are "others" here, whatever the worker's umask says.
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).about(path)
}

pub(super) fn c_string(path: &Path) -> Result<CString, SandboxError> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| SandboxError::Unsupported(format!("{}: a path with a NUL", path.display())))
}

fn root_name(network: Network) -> &'static str {
    match network {
        Network::None => "none",
        Network::Host => "host",
    }
}

fn etc(etc: &Path) -> Result<(), SandboxError> {
    let files = [
        ("passwd", "root:x:0:0:root:/:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"),
        ("group", "root:x:0:\nnogroup:x:65534:\n"),
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
        ("hosts", "127.0.0.1 localhost\n::1 localhost\n"),
        ("hostname", "sandbox\n"),
    ];
    for (name, content) in files {
        write(&etc.join(name), content.as_bytes())?;
    }
    // The loader's index of libraries, and the host's time zone.
    for name in ["ld.so.cache", "localtime", "os-release"] {
        copy_if_there(&Path::new("/etc").join(name), &etc.join(name))?;
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> Result<(), SandboxError> {
    fs::write(path, content).about(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).about(path)
}

fn copy_if_there(from: &Path, to: &Path) -> Result<(), SandboxError> {
    match fs::read(from) {
        Ok(content) => write(to, &content),
        Err(_) => Ok(()),
    }
}

fn copy_links(from: &Path, to: &Path) -> Result<(), SandboxError> {
    make_dir(to)?;
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        if let Ok(target) = fs::read_link(entry.path()) {
            symlink(target, to.join(entry.file_name())).about(to)?;
        }
    }
    Ok(())
}
