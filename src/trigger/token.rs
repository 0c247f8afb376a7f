//! The token of a worker directory: the secret that a client on the port shows to be let in. Made by `hosier init`, and
//! read once by the worker when it starts.
//!
//! ```text
//! make:  32 bytes of /dev/random ─▶ DIR/token.new-… (0600) ─sync─▶ link to DIR/token, if none is there
//! read:  no link, a file, no bit for others, 32 to 256 visible characters
//! ```
//!
//! The link makes the token whole or not at all, and two that make one agree on the first.

use std::fmt;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Random bytes in a token that is made here; it is their hexadecimal digits.
const RANDOM_BYTES: usize = 32;

/// Random bytes in the name of the file that becomes the token.
const NAME_BYTES: usize = 8;

/// Lengths of a token, in characters; an operator may put one of their own in the file.
const SHORTEST: usize = 32;
const LONGEST: usize = 256;

/// The token cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("the token {} cannot be read or made: {source}; remove it, and the next `hosier up` makes another", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "the token {} is a link or no file; remove it, and the next `hosier up` makes another", path.display()
    )]
    NotAFile { path: PathBuf },
    #[error(
        "the token {} can be read by others (mode {mode:o}); remove it, and the next `hosier up` makes another, or \
         keep it with `chmod 600`", path.display()
    )]
    Readable { path: PathBuf, mode: u32 },
    #[error(
        "the token {} is not one line of {SHORTEST} to {LONGEST} visible ASCII characters; remove it, and the next \
         `hosier up` makes another", path.display()
    )]
    Malformed { path: PathBuf },
}

/// A worker's token.
#[derive(Clone)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

impl Token {
    /// Reads the token at `path`; makes it first if there is none.
    ///
    /// # Errors
    /// Returns [`TokenError`] if what is there can be read by others, is no token, or cannot be read or made.
    pub fn ensure(path: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::Io { path: path.to_owned(), source };
        match Self::read(path) {
            Err(TokenError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            read => return read,
        }
        make(path).map_err(failed)?;
        Self::read(path)
    }

    fn read(path: &Path) -> Result<Self, TokenError> {
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::ELOOP) => TokenError::NotAFile { path: path.to_owned() },
            _ => TokenError::Io { path: path.to_owned(), source },
        };
        // A FIFO would hold the start up.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() {
            return Err(TokenError::NotAFile { path: path.to_owned() });
        }
        let mode = meta.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(TokenError::Readable { path: path.to_owned(), mode });
        }
        let mut text = Vec::new();
        file.take(LONGEST as u64 + 2).read_to_end(&mut text).map_err(failed)?;
        let text = text.trim_ascii();
        let fits = (SHORTEST..=LONGEST).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic);
        match String::from_utf8(text.to_vec()) {
            Ok(text) if fits => Ok(Self(text)),
            _ => Err(TokenError::Malformed { path: path.to_owned() }),
        }
    }

    /// Whether `shown` is this token, in a time that does not depend on how much of it is right.
    pub(super) fn is(&self, shown: &[u8]) -> bool {
        let own = self.0.as_bytes();
        let wrong = own.iter().zip(shown).fold(0, |wrong, (a, b)| black_box(wrong | (a ^ b)));
        own.len() == shown.len() && wrong == 0
    }

    #[cfg(test)]
    pub(super) fn of(text: &str) -> Self {
        Self(text.to_owned())
    }
}

fn make(path: &Path) -> io::Result<()> {
    let mut random = [0; RANDOM_BYTES + NAME_BYTES];
    // As getrandom(2): it waits until the kernel has enough of it, and never afterwards.
    File::open("/dev/random")?.read_exact(&mut random)?;
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let (digits, name) = digits.split_at(2 * RANDOM_BYTES);
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".new-{name}"));
    let fresh = PathBuf::from(fresh);
    let made = (|| {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&fresh)?;
        writeln!(file, "{digits}")?;
        file.sync_all()?;
        match fs::hard_link(&fresh, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    })();
    let _ = fs::remove_file(&fresh);
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_who_make_a_token_at_once_read_the_same_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        let tokens: Vec<String> = std::thread::scope(|scope| {
            let makers: Vec<_> =
                (0..8).map(|_| scope.spawn(|| Token::ensure(&path).expect("one").0)).collect();
            makers.into_iter().map(|maker| maker.join().expect("no panic")).collect()
        });
        assert!(tokens.iter().all(|token| *token == tokens[0] && token.len() == 2 * RANDOM_BYTES));
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1);
    }

    #[test]
    fn an_operators_own_token_is_taken_and_a_weak_one_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        let read = |text: &str| {
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
            Token::ensure(&path)
        };
        let own = "x".repeat(SHORTEST);
        assert!(read(&format!("{own}\n")).expect("a token").is(own.as_bytes()));
        for bad in [
            String::new(),
            own[1..].to_owned(),
            format!("{own} {own}"),
            "x".repeat(LONGEST + 1),
            own.replace('x', "é"),
        ] {
            let error = read(&bad).expect_err("no token");
            assert!(
                matches!(error, TokenError::Malformed { .. }) && error.to_string().contains("remove it"),
                "{bad:?}"
            );
        }
        assert_eq!(format!("{:?}", Token::of("secret")), "Token(hidden)");
        assert!(
            !Token::of("secret").is(b"secre")
                && !Token::of("secret").is(b"secret1")
                && !Token::of("s").is(b"")
        );
    }
}
