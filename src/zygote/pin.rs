//! One package at one version. Its text becomes a directory's name and an
//! installer's argument, so it is strict.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A package at an exact version. Shown as `name==version`, its name normalised.
///
/// Once it is installed it also names the entry of the store that it stands for, which takes part in
/// every comparison: two files of one version are two packages to a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pin {
    name: Box<str>,
    version: Box<str>,
    /// `None`: not chosen yet.
    entry: Option<EntryId>,
}

/// Identity of one entry of the package store: the first 128 bits of the sha256 of the file that it
/// was made of. Shown as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId([u8; 16]);

impl EntryId {
    /// The identity with these bytes.
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl FromStr for EntryId {
    type Err = BadPin;

    fn from_str(text: &str) -> Result<Self, BadPin> {
        let digits = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let bits = u128::from_str_radix(text, 16).ok().filter(|_| digits);
        bits.map(|bits| Self(bits.to_be_bytes())).ok_or_else(|| BadPin::Entry(text.to_owned()))
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a function asks for: its own packages and theirs.
pub type Pins = BTreeSet<Pin>;

/// The text is no pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPin {
    #[error("{0:?} is not a package name")]
    Name(String),
    #[error("{0:?} is not a version")]
    Version(String),
    #[error("{0:?} is not of the form name==version")]
    Form(String),
    #[error("{0:?} is not 32 hexadecimal digits")]
    Entry(String),
}

impl Pin {
    /// # Errors
    /// The name is none of Python's packaging rules, or the version is none of PEP 440.
    pub fn new(name: &str, version: &str) -> Result<Self, BadPin> {
        let name = normalize(name).ok_or_else(|| BadPin::Name(name.to_owned()))?;
        let version = version_text(version).ok_or_else(|| BadPin::Version(version.to_owned()))?;
        Ok(Self { name: name.into(), version: version.into(), entry: None })
    }

    /// Returns the pin of this entry of the store.
    pub fn of_entry(&self, entry: EntryId) -> Self {
        Self { entry: Some(entry), ..self.clone() }
    }

    /// Returns the pin as a function writes it, without an entry.
    pub fn without_entry(&self) -> Self {
        Self { entry: None, ..self.clone() }
    }

    /// Returns the entry of the store that it stands for, if that was chosen.
    pub fn entry(&self) -> Option<EntryId> {
        self.entry
    }

    /// The normalised name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn version(&self) -> &str {
        &self.version
    }
}

/// A package's name by PEP 503: lower case, runs of `-_.` as one `-`. None if
/// it is none.
pub fn normalize(name: &str) -> Option<String> {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    let fits = bytes.len() <= 100
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b));
    if !fits {
        return None;
    }
    let parts: Vec<_> = name.split(['-', '_', '.']).filter(|part| !part.is_empty()).collect();
    Some(parts.join("-").to_ascii_lowercase())
}

/// A version in lower case without a leading `v`; None if its characters or
/// their order cannot be a version's: a digit first, no empty segment.
fn version_text(version: &str) -> Option<String> {
    let version = version.to_ascii_lowercase();
    let version = version.strip_prefix('v').unwrap_or(&version);
    let segments = version.split(['.', '-', '_', '+', '!']).all(|part| !part.is_empty());
    let fits = version.len() <= 64
        && version.starts_with(|c: char| c.is_ascii_digit())
        && segments
        && version.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_+!".contains(&b))
        && version.matches('!').count() <= 1
        && version.matches('+').count() <= 1;
    fits.then(|| version.to_owned())
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=={}", self.name, self.version)
    }
}

impl FromStr for Pin {
    type Err = BadPin;

    fn from_str(text: &str) -> Result<Self, BadPin> {
        let (name, version) = text.split_once("==").ok_or_else(|| BadPin::Form(text.to_owned()))?;
        Self::new(name, version)
    }
}

impl TryFrom<String> for Pin {
    type Error = BadPin;

    fn try_from(text: String) -> Result<Self, BadPin> {
        text.parse()
    }
}

impl From<Pin> for String {
    fn from(pin: Pin) -> Self {
        pin.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_normalised_and_a_version_lowered() {
        let pin = Pin::new("Typing_.Extensions", "4.0.0RC1").unwrap();
        assert_eq!(pin.to_string(), "typing-extensions==4.0.0rc1");
        assert_eq!(pin.to_string().parse::<Pin>().unwrap(), pin);
    }

    #[test]
    fn two_entries_of_one_version_are_two_packages_that_look_alike() {
        let pin = Pin::new("six", "1.16.0").unwrap();
        let [a, b] = [1, 2].map(|byte| pin.of_entry(EntryId::new([byte; 16])));
        assert!(a != b && a != pin && a.to_string() == b.to_string());
        assert_eq!(Pins::from([a.clone(), b, a.clone()]).len(), 2);
        let shown = a.entry().unwrap().to_string();
        assert_eq!(shown.parse(), Ok(a.entry().unwrap()));
        assert_eq!((a.without_entry(), shown), (pin, "01".repeat(16)));
        for text in ["", "none", &"0".repeat(31), &"A".repeat(32), &format!("+{}", "0".repeat(31))] {
            assert!(text.parse::<EntryId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_pin_cannot_become_a_path_or_an_option() {
        for name in ["", ".", "..", "-r", "a/b", "../a", "a\0", "a b", "é", "a-", &"x".repeat(101)] {
            assert!(Pin::new(name, "1.0").is_err(), "{name:?}");
        }
        for version in ["", "=1", "1.*", "1/2", "..", "1..2", "1 0", "a", "1;x", "1.0\n", ">1", "1+", "1!2!3"]
        {
            assert!(Pin::new("a", version).is_err(), "{version:?}");
        }
        for version in ["1", "1!2.0", "2024.1.1", "1.0.post1", "1.0+cu121", "1.0a1.dev2", "v2.0"] {
            assert!(Pin::new("a", version).is_ok(), "{version:?}");
        }
    }

    #[test]
    fn a_pin_from_json_is_checked_too() {
        assert!(serde_json::from_str::<Pin>("\"six==1.16.0\"").is_ok());
        assert!(serde_json::from_str::<Pin>("\"../six==1\"").is_err());
    }
}
