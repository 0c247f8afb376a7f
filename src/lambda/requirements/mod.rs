//! `requirements.txt`, pinned, as `pip-compile` and `uv pip compile` write it:
//! the exact set of packages that a function may import. Pure, but for
//! [`load`]; every process may use it.

mod hashes;
mod marker;

use std::collections::BTreeMap;
use std::path::Path;

pub use crate::zygote::{BadPin, EntryId, Pin, Pins, normalize};
pub use hashes::{BadSha256, Hashes, Sha256};
pub use marker::PythonVersion;
pub(super) use marker::holds as marker_holds;

/// The file's name in a function's directory.
pub const REQUIREMENTS_FILE: &str = "requirements.txt";

/// The largest file that is read, in bytes, and the most pins in it.
const SIZE_LIMIT_BYTES: u64 = 1 << 20;
const PINS_LIMIT: usize = 1000;

/// Everything that a function asks for: each pin, and the files that it accepts for it.
pub type Requirements = BTreeMap<Pin, Hashes>;

/// The file cannot be used. Says which line, what is there, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum RequirementsError {
    #[error("{REQUIREMENTS_FILE} cannot be read: {0}")]
    Read(std::io::Error),
    #[error("{REQUIREMENTS_FILE} is longer than {SIZE_LIMIT_BYTES} bytes or {PINS_LIMIT} packages")]
    TooLarge,
    #[error(
        "{REQUIREMENTS_FILE}:{line}: {text:?}: {reason}; pin it: \
         `uv pip compile requirements.in -o {REQUIREMENTS_FILE}`"
    )]
    NotPinned { line: usize, text: String, reason: String },
    #[error(
        "{REQUIREMENTS_FILE}:{line}: {text:?}: the package index is the operator's choice: remove the line, \
         and set `pip_mirror` in hosier.toml if the package is not on PyPI"
    )]
    IndexOption { line: usize, text: String },
    #[error(
        "{REQUIREMENTS_FILE}:{line}: {text:?}: {reason}; write the hashes anew: \
         `uv pip compile --generate-hashes requirements.in -o {REQUIREMENTS_FILE}`"
    )]
    BadHash { line: usize, text: String, reason: String },
    #[error(
        "{REQUIREMENTS_FILE}:{line}: {without} has no --hash, and {with} has one: with one hash in the file \
         every package needs one; write them all: `uv pip compile --generate-hashes requirements.in -o \
         {REQUIREMENTS_FILE}`, or remove them all"
    )]
    NoHash { line: usize, without: Box<Pin>, with: Box<Pin> },
    #[error("{REQUIREMENTS_FILE}:{line}: {second} is asked for, and {first} above it: keep one")]
    TwoVersions { line: usize, first: Box<Pin>, second: Box<Pin> },
}

/// Reads the file in `dir`; without one, nothing is asked for.
///
/// # Errors
/// It cannot be read, or a line is not a pin.
pub fn load(dir: &Path, python: PythonVersion) -> Result<Requirements, RequirementsError> {
    let path = dir.join(REQUIREMENTS_FILE);
    match std::fs::metadata(&path) {
        Ok(meta) if meta.len() > SIZE_LIMIT_BYTES => Err(RequirementsError::TooLarge),
        Ok(_) => parse(&std::fs::read_to_string(&path).map_err(RequirementsError::Read)?, python),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Requirements::new()),
        Err(error) => Err(RequirementsError::Read(error)),
    }
}

/// The requirements of a file with this text, for a base with this Python.
///
/// # Errors
/// A line is neither empty, nor a comment, nor an exact pin with or without hashes; or some pins
/// have hashes and others have none, which is as `pip --require-hashes` has it: a file that nobody
/// vouched for would run beside those that somebody did.
pub fn parse(text: &str, python: PythonVersion) -> Result<Requirements, RequirementsError> {
    let mut found = Requirements::new();
    let mut without: Option<(usize, Pin)> = None;
    for (line, text) in logical_lines(text.trim_start_matches('\u{feff}')) {
        let Some((pin, hashes)) = read_line(line, &text, python)? else { continue };
        if let Some(first) = found.keys().find(|other| other.name() == pin.name() && **other != pin) {
            return Err(RequirementsError::TwoVersions {
                line,
                first: Box::new(first.clone()),
                second: Box::new(pin),
            });
        }
        if hashes.is_empty() && without.is_none() {
            without = Some((line, pin.clone()));
        }
        found.entry(pin).or_default().extend(hashes);
        if found.len() > PINS_LIMIT {
            return Err(RequirementsError::TooLarge);
        }
    }
    match (without, found.iter().find(|(_, hashes)| !hashes.is_empty())) {
        (Some((line, without)), Some((with, _))) => {
            Err(RequirementsError::NoHash { line, without: Box::new(without), with: Box::new(with.clone()) })
        }
        _ => Ok(found),
    }
}

/// The lines without comments, joined where one ends in a backslash, each with
/// the number of its first. As pip does it: lines are joined first, and a
/// comment ends a continuation.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut out: Vec<(usize, String)> = Vec::new();
    let mut continued = false;
    for (index, line) in text.lines().enumerate() {
        let is_comment = line.trim_start().starts_with('#');
        let body = if is_comment { "" } else { line };
        let (body, more) = match body.trim_end().strip_suffix('\\') {
            Some(body) => (body, true),
            None => (body, false),
        };
        match out.last_mut() {
            Some((_, open)) if continued => {
                open.push(' ');
                open.push_str(body);
            }
            _ => out.push((index + 1, body.to_owned())),
        }
        continued = more;
    }
    for (_, line) in &mut out {
        let end = line.match_indices('#').find(|(at, _)| line[..*at].ends_with(char::is_whitespace));
        if let Some((at, _)) = end {
            line.truncate(at);
        }
    }
    out
}

/// The pin of one line and its hashes; None for a line that asks for nothing here.
fn read_line(
    line: usize,
    text: &str,
    python: PythonVersion,
) -> Result<Option<(Pin, Hashes)>, RequirementsError> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let not_pinned = |reason: String| RequirementsError::NotPinned { line, text: text.to_owned(), reason };
    if text.starts_with('-') {
        let option = text.split([' ', '=']).next().unwrap_or(text);
        return match option {
            "-i" | "--index-url" | "--extra-index-url" | "-f" | "--find-links" | "--no-index"
            | "--trusted-host" => Err(RequirementsError::IndexOption { line, text: text.to_owned() }),
            "-r" | "-c" | "-e" | "--requirement" | "--constraint" | "--editable" => {
                Err(not_pinned("other files and editable packages are not followed".to_owned()))
            }
            _ => Err(not_pinned("options are not read".to_owned())),
        };
    }
    // Hashes follow after a space; a marker cannot contain ` --hash`.
    let (requirement, options) = text.split_at(text.find(" --hash").unwrap_or(text.len()));
    let hashes = hashes::read(options).map_err(|reason| RequirementsError::BadHash {
        line,
        text: text.to_owned(),
        reason,
    })?;
    let (requirement, marker) = match requirement.split_once(';') {
        Some((requirement, marker)) => (requirement, Some(marker)),
        None => (requirement, None),
    };
    let pin = read_pin(requirement.trim()).map_err(not_pinned)?;
    match marker.map(|marker| marker_holds(marker.trim(), python)) {
        None | Some(Ok(true)) => Ok(Some((pin, hashes))),
        Some(Ok(false)) => Ok(None),
        Some(Err(reason)) => Err(not_pinned(format!("its marker is not understood ({reason})"))),
    }
}

/// Reads `name[extra,...]==version`. Extras add packages, which are pinned in
/// lines of their own.
fn read_pin(text: &str) -> Result<Pin, String> {
    if text.contains('@') || text.contains("://") {
        return Err("a package from a URL has no version here".to_owned());
    }
    let (name, version) = text.split_once("==").ok_or("it has no exact version")?;
    let name = name.trim();
    let name = match name.split_once('[') {
        Some((name, extras)) => {
            let inner = extras.strip_suffix(']').ok_or("its extras are not closed")?;
            if let Some(bad) = inner.split(',').map(str::trim).find(|extra| normalize(extra).is_none()) {
                return Err(format!("{bad:?} is not an extra"));
            }
            name.trim_end()
        }
        None => name,
    };
    Pin::new(name, version.trim()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PYTHON: PythonVersion = PythonVersion { major: 3, minor: 11, micro: 2 };

    fn read(text: &str) -> Result<Vec<String>, String> {
        let found = parse(text, PYTHON).map_err(|error| error.to_string())?;
        Ok(found.keys().map(ToString::to_string).collect())
    }

    /// A digest as 64 hexadecimal digits.
    fn digest(byte: &str) -> String {
        byte.repeat(32)
    }

    #[test]
    fn what_pip_compile_writes_is_read() {
        let [a, b, c] = ["aa", "bb", "cc"].map(digest);
        let text = format!(
            "\u{feff}#\n# This file is autogenerated\r\n\nNumPy==2.1.0 \\\n    --hash=sha256:{a} \\\n    \
             --hash=sha256:{b}\n    # via pandas\npandas==2.2.3 --hash sha256:{a}  # why\n\
             requests[socks,security] == 2.32.0 ; python_version >= \"3.8\" --hash=sha256:{c}\n\
             colorama==0.4.6 ; sys_platform == 'win32'\nzope_interface==6.0 --hash=sha256:{b}\n\
             zope.interface==6.0 --hash=sha256:{c}"
        );
        let pins = ["numpy==2.1.0", "pandas==2.2.3", "requests==2.32.0", "zope-interface==6.0"];
        assert_eq!(read(&text).unwrap(), pins);
        assert_eq!(read("NumPy==2.1.0\npandas==2.2.3  # why").unwrap(), pins[..2]);
        let found = parse(&text, PYTHON).unwrap();
        let hashes = |pin: &str| -> Vec<String> {
            found[&pin.parse::<Pin>().unwrap()].iter().map(ToString::to_string).collect()
        };
        assert_eq!(hashes("numpy==2.1.0"), [a.clone(), b.clone()]);
        assert_eq!((hashes("pandas==2.2.3"), hashes("zope-interface==6.0")), (vec![a], vec![b, c]));
        assert!(read("\n# nothing\n").unwrap().is_empty());
    }

    #[test]
    fn what_is_not_an_exact_pin_names_its_line_and_the_next_step() {
        for text in [
            "numpy",
            "numpy>=2",
            "numpy==2.*",
            "numpy===2.0",
            "numpy==2,<3",
            "numpy==",
            "==1",
            "numpy==1 extra",
            "numpy @ https://x/y.whl",
            "https://x/y==1.whl",
            "./local==1",
            "../up==1",
            "-r other.txt",
            "-e .",
            "--pre",
            "numpy==1; extra == 'x'",
            "numpy==1;",
            "a[b==1",
            "a[..]==1",
            "a==1\\\nb==2",
            "numpy==1\0",
        ] {
            let error = read(&format!("# first\n{text}")).unwrap_err();
            assert!(
                error.contains("requirements.txt:2") && error.contains("uv pip compile"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn a_hash_that_cannot_be_checked_names_its_line() {
        let digest = digest("ab");
        for text in [
            format!("six==1 --hash=sha256:{}", &digest[2..]),
            format!("six==1 --hash=sha512:{digest}{digest}"),
            format!("six==1 --hash=sha256:{digest} --pre"),
            format!("six==1 --hashes=sha256:{digest}"),
        ] {
            let error = read(&format!("\n{text}")).unwrap_err();
            assert!(error.contains("requirements.txt:2") && error.contains("--generate-hashes"), "{error}");
        }
    }

    #[test]
    fn with_one_hash_every_package_needs_one() {
        let digest = digest("ab");
        let error = read(&format!("a==1 --hash=sha256:{digest}\nb==2\nc==3")).unwrap_err();
        assert!(["txt:2", "b==2 has no", "a==1 has one"].iter().all(|part| error.contains(part)), "{error}");
        let elsewhere = format!("a==1 --hash=sha256:{digest}\nb==2; sys_platform == 'win32'");
        assert_eq!(read(&elsewhere).unwrap(), ["a==1"]);
    }

    #[test]
    fn an_index_is_not_the_functions_choice() {
        for text in ["--index-url https://evil", "-i https://evil", "--extra-index-url=https://evil"] {
            assert!(read(text).unwrap_err().contains("pip_mirror"), "{text}");
        }
    }

    #[test]
    fn two_versions_of_one_package_are_refused() {
        let error = read("numpy==1.0\nsix==1\nNumPy==2.0").unwrap_err();
        assert!(
            error.contains(":3") && error.contains("numpy==1.0") && error.contains("numpy==2.0"),
            "{error}"
        );
        assert_eq!(read("numpy==1.0\nnumpy==1.0").unwrap().len(), 1);
        assert_eq!(read("a==1; python_version<'3'\na==2; python_version>='3'").unwrap(), ["a==2"]);
    }

    #[test]
    fn a_line_that_never_ends_is_read_in_time() {
        assert!(read(&"\\\n".repeat(200_000)).unwrap().is_empty());
        assert!(parse(&(0..2000).map(|n| format!("a{n}==1\n")).collect::<String>(), PYTHON).is_err());
    }
}
