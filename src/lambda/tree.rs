//! A function's files as a list: what may be among them, and the digest and
//! the copy made from it. One walk serves archives, versions and fingerprints.
//! Blocking; the worker's or the command's process.
//!
//! A directory of the registry may be edited by its user while it is read, so
//! nothing here follows a link, and each file is opened and then looked at.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub(super) use crate::sandbox::foreign::link_stays;
use crate::sandbox::foreign::{self, ForeignError, Tree, Wrong};

/// How much a function's files may be.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub bytes: u64,
    pub entries: usize,
    /// Directories above a file.
    pub depth: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { bytes: 512 << 20, entries: 20_000, depth: 32 }
    }
}

/// The files cannot be used. Names the entry.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: leaves the function's directory", .0.display())]
    Leaves(PathBuf),
    #[error("{}: is neither a file, a directory nor a link", .0.display())]
    Kind(PathBuf),
    #[error("{}: appears twice, or where a file or link is", .0.display())]
    Collides(PathBuf),
    #[error("{}: is one entry more than the {} that a function may have", .0.display(), .1)]
    TooMany(PathBuf, usize),
    #[error("{}: brings the function over its {} bytes", .0.display(), .1)]
    TooLarge(PathBuf, u64),
    #[error("{}: is below more than {} directories", .0.display(), .1)]
    TooDeep(PathBuf, usize),
    #[error(transparent)]
    Foreign(#[from] ForeignError),
}

impl TreeError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| TreeError::Io { path, source }
    }

    pub fn blame(&self) -> super::Blame {
        match self {
            TreeError::Io { .. } => super::Blame::Worker,
            TreeError::Foreign(error) if !error.wrong.is_foreign() => super::Blame::Worker,
            _ => super::Blame::Function,
        }
    }
}

/// One entry below a function's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Relative to the directory.
    pub path: PathBuf,
    pub kind: Kind,
    /// When it was last changed in any way (ctime), in nanoseconds. Unlike the
    /// time of modification nobody can set it.
    pub changed_ns: i128,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Dir,
    File { size: u64, executable: bool },
    Link { target: PathBuf },
}

/// What is below `dir`, sorted; directories before what is in them. Bytecode
/// caches are left out: they are made here.
///
/// # Errors
/// A link leaves, an entry is of another kind, or there is too much.
pub fn walk(dir: &Path, bounds: Bounds) -> Result<Vec<Node>, TreeError> {
    let mut nodes = Vec::new();
    let mut open = vec![PathBuf::new()];
    let mut bytes = 0;
    while let Some(below) = open.pop() {
        let full = dir.join(&below);
        for entry in fs::read_dir(&full).map_err(TreeError::io(&full))? {
            let entry = entry.map_err(TreeError::io(&full))?;
            if entry.file_name() == "__pycache__" {
                continue;
            }
            let path = below.join(entry.file_name());
            let meta = entry.metadata().map_err(TreeError::io(&path))?;
            let kind = if meta.is_dir() {
                if path.components().count() > bounds.depth {
                    return Err(TreeError::TooDeep(path, bounds.depth));
                }
                open.push(path.clone());
                Kind::Dir
            } else if meta.is_symlink() {
                let target = fs::read_link(entry.path()).map_err(TreeError::io(&path))?;
                if !link_stays(&path, &target) {
                    return Err(TreeError::Leaves(path));
                }
                Kind::Link { target }
            } else if meta.is_file() {
                bytes += meta.len();
                Kind::File { size: meta.len(), executable: meta.mode() & 0o111 != 0 }
            } else {
                return Err(TreeError::Kind(path));
            };
            if bytes > bounds.bytes {
                return Err(TreeError::TooLarge(path, bounds.bytes));
            }
            if nodes.len() == bounds.entries {
                return Err(TreeError::TooMany(path, bounds.entries));
            }
            let changed_ns = i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec());
            nodes.push(Node { path, kind, changed_ns });
        }
    }
    nodes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(nodes)
}

/// Copies `nodes` of `from` to the empty directory `to`, readable for all.
///
/// # Errors
/// An entry cannot be read or written, is no longer what it was, or has grown too large.
pub fn copy(from: &Path, nodes: &[Node], to: &Path, bounds: Bounds) -> Result<(), TreeError> {
    let mut left = bounds.bytes;
    for Node { path, kind, .. } in nodes {
        let target = to.join(path);
        match kind {
            Kind::Dir => make_dir(&target).map_err(TreeError::io(path))?,
            Kind::Link { target: leads_to } => symlink(leads_to, &target).map_err(TreeError::io(path))?,
            Kind::File { executable, .. } => {
                let source = open_file(&from.join(path)).map_err(TreeError::io(path))?;
                let mut file = new_file(&target, *executable).map_err(TreeError::io(path))?;
                let size = io::copy(&mut source.take(left + 1), &mut file).map_err(TreeError::io(path))?;
                left = left.checked_sub(size).ok_or(TreeError::TooLarge(path.clone(), bounds.bytes))?;
            }
        }
    }
    Ok(())
}

/// The digest of `nodes` of `dir`: the same for the same names, kinds and
/// contents, whatever their times and owners. `salt` goes into it. 128 bits as
/// hexadecimal digits.
///
/// # Errors
/// A file cannot be read.
pub fn digest(dir: &Path, nodes: &[Node], salt: &str) -> Result<String, TreeError> {
    let mut all = Sha256::new();
    // Lengths go first, so that no two lists of parts read the same.
    let part = |bytes: &[u8], hash: &mut Sha256| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(salt.as_bytes(), &mut all);
    for Node { path, kind, .. } in nodes {
        part(path.as_os_str().as_encoded_bytes(), &mut all);
        match kind {
            Kind::Dir => all.update(b"d"),
            Kind::Link { target } => {
                all.update(b"l");
                part(target.as_os_str().as_encoded_bytes(), &mut all);
            }
            Kind::File { executable, .. } => {
                all.update(if *executable { b"x" } else { b"f" });
                let mut file = open_file(&dir.join(path)).map_err(TreeError::io(path))?;
                let mut content = Sha256::new();
                io::copy(&mut file, &mut content).map_err(TreeError::io(path))?;
                part(&content.finalize(), &mut all);
            }
        }
    }
    Ok(all.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

/// Largest tree of a package, or of a function with its bytecode, that is put in place.
const SETTLED: foreign::Bounds = foreign::Bounds { entries: 400_000, bytes: 32 << 30, depth: 64 };

/// Makes everything below `dir` readable for all and writable for its owner
/// only, without set-id bits: what a sandbox wrote, before others see it.
///
/// # Errors
/// A link leaves, an entry is of another kind or one too many, or a mode cannot be set.
pub fn settle(dir: &Path) -> Result<(), TreeError> {
    let settled = Tree::open(dir).and_then(|tree| tree.settle(SETTLED));
    settled.map(drop).map_err(|error| {
        let path = error.path.strip_prefix(dir).unwrap_or(&error.path).to_owned();
        match error.wrong {
            Wrong::Leaves(_) => TreeError::Leaves(path),
            Wrong::Kind(_) => TreeError::Kind(path),
            wrong => TreeError::Foreign(ForeignError { path, wrong }),
        }
    })
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Opens a regular file; a link or a pipe that took its place since is refused.
pub(super) fn open_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "is no file any more")),
    }
}

/// Makes a file that was not there, 0644 or 0755 whatever the umask.
pub(super) fn new_file(path: &Path, executable: bool) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(if executable { 0o755 } else { 0o644 }))?;
    Ok(file)
}

/// Makes a directory that was not there, 0755 whatever the umask.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    set_mode(path, 0o755)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_stays_only_if_no_chain_can_leave() {
        for (path, target, stays) in [
            ("a", "b", true),
            ("a/b", "../c", true),
            ("a/b/c", "../../d/e", true),
            ("a/b", "..", true),
            ("a", "..", false),
            ("a", "../x", false),
            ("a/b", "../../x", false),
            ("a", "/etc/passwd", false),
            // With b a link up to the root, b/.. is above it.
            ("x/y/c", "b/..", false),
            ("a", "", false),
        ] {
            assert_eq!(link_stays(Path::new(path), Path::new(target)), stays, "{path} -> {target}");
        }
    }

    fn digest(dir: &Path) -> String {
        let nodes = walk(dir, Bounds::default()).unwrap();
        let out = tempfile::tempdir().unwrap();
        copy(dir, &nodes, out.path(), Bounds::default()).unwrap();
        let copied = walk(out.path(), Bounds::default()).unwrap();
        let digest = super::digest(dir, &nodes, "").unwrap();
        assert_eq!(super::digest(out.path(), &copied, "").unwrap(), digest);
        digest
    }

    #[test]
    fn a_digest_knows_names_and_contents_but_no_times_and_no_bytecode() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f.py"), "1").unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        let first = digest(dir.path());
        assert_eq!(first.len(), 32);
        fs::write(dir.path().join("f.py"), "1").unwrap();
        fs::create_dir(dir.path().join("__pycache__")).unwrap();
        fs::write(dir.path().join("__pycache__/f.pyc"), "x").unwrap();
        assert_eq!(digest(dir.path()), first);
        fs::write(dir.path().join("f.py"), "2").unwrap();
        let second = digest(dir.path());
        fs::rename(dir.path().join("f.py"), dir.path().join("sub/f.py")).unwrap();
        assert!(second != first && digest(dir.path()) != second);
    }

    #[test]
    fn what_is_no_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(
            matches!(walk(dir.path(), Bounds::default()), Err(TreeError::Kind(path)) if path == Path::new("pipe"))
        );
        fs::remove_file(dir.path().join("pipe")).unwrap();
        symlink("/etc/passwd", dir.path().join("out")).unwrap();
        assert!(matches!(walk(dir.path(), Bounds::default()), Err(TreeError::Leaves(_))));
    }
}
