//! The digests that a requirement accepts: `--hash=sha256:…`, as `pip-compile
//! --generate-hashes` writes them. Pure; every process may use it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::zygote::EntryId;

/// Most digests of one requirement: a package has a file for each machine and Python.
const HASHES_LIMIT: usize = 1000;

/// A sha256, shown as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256([u8; 32]);

/// The text is not 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a sha256: it has 64 hexadecimal digits")]
pub struct BadSha256(String);

impl Sha256 {
    /// The digest's 32 bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Identity of the store's entry that a file with this digest becomes.
    pub fn entry(&self) -> EntryId {
        let mut id = [0; 16];
        id.copy_from_slice(&self.0[..16]);
        EntryId::new(id)
    }
}

impl From<[u8; 32]> for Sha256 {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Sha256 {
    type Err = BadSha256;

    fn from_str(text: &str) -> Result<Self, BadSha256> {
        let bad = || BadSha256(text.chars().take(80).collect());
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Sha256 {
    type Error = BadSha256;

    fn try_from(text: String) -> Result<Self, BadSha256> {
        text.parse()
    }
}

impl From<Sha256> for String {
    fn from(digest: Sha256) -> Self {
        digest.to_string()
    }
}

/// The files that a requirement accepts, by their digests. Empty: any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hashes(BTreeSet<Sha256>);

impl Hashes {
    /// Returns whether a file with this digest is accepted.
    pub fn allow(&self, digest: &Sha256) -> bool {
        self.is_empty() || self.0.contains(digest)
    }

    /// Returns whether the requirement names no digest, and so accepts any file.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the digests in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Sha256> {
        self.0.iter()
    }

    /// Accepts what `other` accepts as well.
    pub(super) fn extend(&mut self, other: Hashes) {
        self.0.extend(other.0);
    }
}

impl FromIterator<Sha256> for Hashes {
    fn from_iter<T: IntoIterator<Item = Sha256>>(digests: T) -> Self {
        Self(digests.into_iter().collect())
    }
}

/// Reads the options of a requirement: `--hash=sha256:HEX`, or with a space for the `=`.
/// Err says what is wrong and what to do.
pub(super) fn read(options: &str) -> Result<Hashes, String> {
    let mut hashes = BTreeSet::new();
    let mut words = options.split_whitespace();
    while let Some(word) = words.next() {
        let value = match word.strip_prefix("--hash") {
            Some("") => words.next().ok_or("--hash has no value")?,
            Some(rest) => rest.strip_prefix('=').ok_or_else(|| format!("{word:?} is not an option"))?,
            None => return Err(format!("{word:?} is not an option that is read here")),
        };
        let (algorithm, digest) =
            value.split_once(':').ok_or_else(|| format!("{value:?} is not of the form sha256:DIGEST"))?;
        if algorithm != "sha256" {
            return Err(format!("{algorithm} is not checked here, only sha256"));
        }
        hashes.insert(digest.parse().map_err(|error: BadSha256| error.to_string())?);
        if hashes.len() > HASHES_LIMIT {
            return Err(format!("it has more than {HASHES_LIMIT} hashes"));
        }
    }
    Ok(Hashes(hashes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "1e61c37477a1626458e36f7b1d82aa5c9b094fa4802892072e49de9c60c4c926";

    #[test]
    fn each_form_of_the_option_is_read_and_any_digest_of_several_is_accepted() {
        let b = A.replace('1', "2").to_uppercase();
        let hashes = read(&format!("--hash=sha256:{A}  --hash sha256:{b}")).unwrap();
        assert_eq!(hashes.iter().count(), 2);
        assert!(hashes.allow(&A.parse().unwrap()) && hashes.allow(&b.parse().unwrap()));
        let other: Sha256 = A.replace('c', "d").parse().unwrap();
        assert!(!hashes.allow(&other) && Hashes::default().allow(&other));
        assert_eq!(other.to_string().parse(), Ok(other));
        assert_eq!(A.parse::<Sha256>().unwrap().entry().to_string(), A[..32]);
    }

    #[test]
    fn another_algorithm_length_or_option_is_refused() {
        for (options, part) in [
            (format!("--hash=md5:{}", &A[..32]), "md5 is not checked"),
            (format!("--hash=sha512:{A}{A}"), "only sha256"),
            (format!("--hash=sha256:{}", &A[1..]), "64 hexadecimal"),
            (format!("--hash=sha256:{}", A.replace('c', "g")), "64 hexadecimal"),
            (format!("--hash=sha256:{}", A.replace("c9", "é")), "64 hexadecimal"),
            (format!("--hash={A}"), "sha256:DIGEST"),
            ("--hash".to_owned(), "no value"),
            (format!("--hashes=sha256:{A}"), "not an option"),
            (format!("--hash=sha256:{A} --pre"), "not an option"),
        ] {
            let error = read(&options).unwrap_err();
            assert!(error.contains(part), "{options}: {error}");
        }
    }
}
