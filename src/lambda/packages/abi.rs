//! The interpreter that an entry of the store is for. Pure.

use std::fmt;

/// Longest name, in bytes.
const LIMIT_BYTES: usize = 80;

/// An interpreter's binary interface, as its extension modules are named:
/// `cpython-311-x86_64-linux-gnu`. It is the name of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Abi(String);

impl Abi {
    /// Reads what an interpreter calls its own extension modules: `.cpython-311-x86_64-linux-gnu.so`.
    /// `None` if it is not of CPython's form.
    pub fn from_suffix(suffix: &str) -> Option<Self> {
        let name = suffix.strip_prefix('.')?.strip_suffix(".so")?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let version = name.strip_prefix("cpython-")?;
        let fits = version.starts_with(|c: char| c.is_ascii_digit())
            && name.len() <= LIMIT_BYTES
            && name.bytes().all(plain);
        fits.then(|| Self(name.to_owned()))
    }

    /// Returns whether a file of this name can be used by the interpreter, as far as its name says:
    /// extension modules of CPython and bytecode name theirs, others fit all.
    pub(super) fn fits_file(&self, name: &str) -> bool {
        let Some(at) = name.find(".cpython-") else { return true };
        let tag = &name[at + 1..];
        if let Some(module) = tag.strip_suffix(".so") {
            return module == self.0;
        }
        match tag.split_once('.') {
            Some((tag, rest)) if rest.ends_with("pyc") => tag == self.cache_tag(),
            _ => true,
        }
    }

    /// Returns whether a wheel with this tag (`cp311-cp311-manylinux…`, `py3-none-any`) can be used.
    pub(super) fn fits_tag(&self, tag: &str) -> bool {
        let mut parts = tag.trim().split('-');
        let (Some(python), Some(abi)) = (parts.next(), parts.next()) else { return false };
        let own = self.cache_tag().replace("cpython-", "cp");
        python.split('.').any(|python| python.starts_with("py") || python == own || abi == "abi3")
    }

    /// What bytecode of this interpreter is named after: `cpython-311`.
    fn cache_tag(&self) -> &str {
        let digits = self.0.bytes().skip("cpython-".len()).take_while(u8::is_ascii_digit).count();
        &self.0[.."cpython-".len() + digits]
    }
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abi_is_a_directory_and_only_cpythons() {
        let abi = Abi::from_suffix(".cpython-311-x86_64-linux-gnu.so").unwrap();
        assert_eq!(abi.to_string(), "cpython-311-x86_64-linux-gnu");
        for suffix in ["", ".so", ".abi3.so", ".pypy39-pp73.so", ".cpython-../x.so", ".cpython-311.x.so"] {
            assert!(Abi::from_suffix(suffix).is_none(), "{suffix}");
        }
        assert!(Abi::from_suffix(&format!(".cpython-3{}.so", "1".repeat(100))).is_none());
    }

    #[test]
    fn files_of_another_interpreter_do_not_fit() {
        let abi = Abi::from_suffix(".cpython-311-x86_64-linux-gnu.so").unwrap();
        for (name, fits) in [
            ("a.py", true),
            ("a.abi3.so", true),
            ("a.cpython-311-x86_64-linux-gnu.so", true),
            ("a.cpython-312-x86_64-linux-gnu.so", false),
            ("a.cpython-311-aarch64-linux-gnu.so", false),
            ("a.cpython-311.pyc", true),
            ("a.cpython-311.opt-1.pyc", true),
            ("a.cpython-312.pyc", false),
        ] {
            assert_eq!(abi.fits_file(name), fits, "{name}");
        }
        let threads = Abi::from_suffix(".cpython-313t-x86_64-linux-gnu.so").unwrap();
        assert!(
            threads.fits_file("a.cpython-313.pyc") && !threads.fits_file("a.cpython-313-x86_64-linux-gnu.so")
        );
        for (tag, fits) in [
            ("py3-none-any", true),
            ("cp311-cp311-manylinux_2_17_x86_64", true),
            ("cp38-abi3-manylinux_2_17_x86_64", true),
            ("cp312-cp312-manylinux_2_17_x86_64", false),
            ("", false),
        ] {
            assert_eq!(abi.fits_tag(tag), fits, "{tag}");
        }
    }
}
