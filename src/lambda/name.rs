//! A function's name, checked once.

use std::fmt;

/// A function's name: `[A-Za-z0-9._-]{1,128}`, and neither `.` nor `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FunctionName(String);

/// The text is no function name.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a function name: use 1 to 128 of A-Z a-z 0-9 . _ - (not . or ..)")]
pub struct BadName(pub String);

impl FunctionName {
    /// # Errors
    /// The text breaks the rule above.
    pub fn new(text: &str) -> Result<Self, BadName> {
        let fits = (1..=128).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            && text != "."
            && text != "..";
        if fits { Ok(Self(text.to_owned())) } else { Err(BadName(text.to_owned())) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_directory() {
        for bad in ["", ".", "..", "a/b", "a b", "ä", "%2e", &"x".repeat(129)] {
            assert!(FunctionName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["hello", "a.b-c_D9", "...", &"x".repeat(128)] {
            assert!(FunctionName::new(good).is_ok(), "{good:?}");
        }
    }
}
