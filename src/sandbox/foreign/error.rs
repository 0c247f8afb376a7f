//! What can be wrong with a stranger's tree, and with which entry of it.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// Number of characters of a path that an error shows: a stranger chose its length.
const SHOWN_CHARS: usize = 300;

/// An entry of a stranger's tree that cannot be used, or cannot be touched.
#[derive(Debug, thiserror::Error)]
#[error("{}: {wrong}", shown(path))]
pub struct ForeignError {
    /// The entry. A very deep path is cut in its middle.
    pub path: PathBuf,
    pub wrong: Wrong,
}

/// A reason to refuse an entry.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    #[error("{0}")]
    Io(#[source] io::Error),
    #[error("is {0}, which is neither a file, a directory nor a link")]
    Kind(&'static str),
    #[error("is a link, or below one, where a file or directory must be")]
    Link,
    #[error("is a link to {}, which leaves the tree", shown(.0))]
    Leaves(PathBuf),
    #[error("has another name outside of the tree (a hard link)")]
    Linked,
    #[error("is on another mount")]
    Mount,
    #[error("changed while it was read")]
    Changed,
    #[error("is one entry more than the {limit} that are allowed")]
    TooMany { limit: usize },
    #[error("is over the {limit} bytes that are allowed")]
    TooLarge { limit: u64 },
    #[error("is below more than the {limit} directories that are allowed")]
    TooDeep { limit: usize },
}

impl From<Errno> for Wrong {
    fn from(errno: Errno) -> Self {
        match errno {
            // RESOLVE_NO_SYMLINKS, O_NOFOLLOW.
            Errno::ELOOP => Wrong::Link,
            // RESOLVE_NO_XDEV.
            Errno::EXDEV => Wrong::Mount,
            // Opening a socket as a file.
            Errno::ENXIO => Wrong::Kind("a socket or a device"),
            errno => Wrong::Io(errno.into()),
        }
    }
}

impl Wrong {
    /// Whether the stranger's files are at fault; otherwise the machine is.
    pub fn is_foreign(&self) -> bool {
        !matches!(self, Wrong::Io(_))
    }
}

impl ForeignError {
    pub(super) fn new(path: impl Into<PathBuf>, wrong: Wrong) -> Self {
        Self { path: path.into(), wrong }
    }

    pub(super) fn io(path: &Path, errno: Errno) -> Self {
        Self::new(path, errno.into())
    }

    /// As an `io::Error` of the same kind and the whole message.
    pub fn into_io(self) -> io::Error {
        let kind = match &self.wrong {
            Wrong::Io(error) => error.kind(),
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, self)
    }
}

/// A path without control characters, cut in its middle.
fn shown(path: &Path) -> String {
    let text: String = path.to_string_lossy().chars().flat_map(escaped).collect();
    let count = text.chars().count();
    if count <= SHOWN_CHARS {
        return text;
    }
    let half = SHOWN_CHARS / 2;
    let head: String = text.chars().take(half).collect();
    let tail: String = text.chars().skip(count - half).collect();
    format!("{head} … {tail}")
}

fn escaped(c: char) -> impl Iterator<Item = char> {
    let (plain, code) = if c.is_control() { (None, Some(c.escape_default())) } else { (Some(c), None) };
    plain.into_iter().chain(code.into_iter().flatten())
}
