//! What a resolve found: `pylock.toml` (PEP 751), read into the files to fetch.
//! Pure; the text comes out of a sandbox, so everything in it is checked.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::lambda::requirements::normalize;

/// Packages that one lock may hold.
const PACKAGES_LIMIT: usize = 1000;
/// Bytes of one URL.
const URL_LIMIT_BYTES: usize = 4096;
/// Bytes of a file's name: what a directory entry holds.
const NAME_LIMIT_BYTES: usize = 255;

/// Kind of a file that an index has of a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Wheel,
    Source,
}

/// One file of an index, chosen for this Python and machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// The package's name, normalised.
    pub name: String,
    pub version: String,
    pub kind: Kind,
    /// The last part of the URL: a plain file name.
    pub file: String,
    /// `http` or `https`, without credentials.
    pub url: String,
    /// The digest that the index gives, as hexadecimal digits.
    pub sha256: Option<String>,
    /// The size that the index gives, in bytes.
    pub size: Option<u64>,
}

/// A lock cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    #[error("the resolver's answer is not a lock: {0}")]
    Syntax(String),
    #[error("the resolver's answer holds more than {PACKAGES_LIMIT} packages")]
    TooMany,
    #[error("the resolver's answer has nothing to fetch for {0:?}")]
    Nothing(String),
    #[error("the resolver's answer names the file {0:?}, which is not a URL of a wheel or a source archive")]
    Url(String),
    #[error("the resolver's answer gives {file} the sha256 {digest:?}, which is not one")]
    Digest { file: String, digest: String },
}

#[derive(Deserialize)]
struct Lock {
    #[serde(default)]
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: Option<String>,
    #[serde(default)]
    wheels: Vec<File>,
    sdist: Option<File>,
}

#[derive(Deserialize)]
struct File {
    url: Option<String>,
    size: Option<u64>,
    #[serde(default)]
    hashes: BTreeMap<String, String>,
}

/// Reads a lock: of each package the wheel, and then the source, as far as there are any.
///
/// # Errors
/// It is not TOML of that shape, or a file of it cannot be fetched. A source beside a wheel
/// that cannot be fetched is left out.
pub(super) fn read(text: &str) -> Result<Vec<Artifact>, LockError> {
    let lock: Lock = toml::from_str(text).map_err(|error| LockError::Syntax(error.message().to_owned()))?;
    if lock.packages.len() > PACKAGES_LIMIT {
        return Err(LockError::TooMany);
    }
    let mut all = Vec::new();
    for package in lock.packages {
        let Package { name, version, wheels, sdist } = package;
        let (wheel, version) = (wheels.into_iter().next(), version.unwrap_or_default());
        let source = sdist.map(|sdist| artifact(&name, &version, Kind::Source, sdist));
        match (wheel, source) {
            (Some(wheel), source) => {
                all.push(artifact(&name, &version, Kind::Wheel, wheel)?);
                all.extend(source.and_then(Result::ok));
            }
            (None, Some(source)) => all.push(source?),
            (None, None) => return Err(LockError::Nothing(name)),
        }
    }
    Ok(all)
}

fn artifact(package: &str, version: &str, kind: Kind, found: File) -> Result<Artifact, LockError> {
    let nothing = || LockError::Nothing(package.to_owned());
    let name = normalize(package).ok_or_else(nothing)?;
    let version = Some(version.to_owned()).filter(|version| !version.is_empty()).ok_or_else(nothing)?;
    let url = found.url.ok_or_else(nothing)?;
    let file = file_name(&url, kind).ok_or_else(|| LockError::Url(url.clone()))?;
    let sha256 = found.hashes.get("sha256").map(|digest| digest.to_ascii_lowercase());
    if let Some(digest) = sha256.as_ref().filter(|digest| !is_sha256(digest)) {
        return Err(LockError::Digest { file, digest: digest.clone() });
    }
    Ok(Artifact { name, version, kind, file, url, sha256, size: found.size })
}

pub(super) fn is_sha256(digest: &str) -> bool {
    digest.len() == 64 && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns the file's name at the end of a URL that can be fetched.
fn file_name(url: &str, kind: Kind) -> Option<String> {
    if url.len() > URL_LIMIT_BYTES || !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let (authority, path) = rest.split_once('/')?;
    if authority.is_empty() || authority.contains('@') {
        return None;
    }
    let path = path.split(['?', '#']).next()?;
    let name = percent_decoded(path.rsplit('/').next()?)?;
    let plain = is_plain(&name) && name.len() <= NAME_LIMIT_BYTES;
    let fits = match kind {
        Kind::Wheel => name.ends_with(".whl"),
        Kind::Source => SOURCES.iter().any(|ending| name.ends_with(ending)),
    };
    (plain && fits).then_some(name)
}

const SOURCES: [&str; 5] = [".tar.gz", ".zip", ".tgz", ".tar.bz2", ".tar.xz"];

/// Returns whether `name` is a file's name without any meaning to a path or a shell.
pub(super) fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+!~".contains(&byte))
}

/// Returns the text that `%XX` stands for.
pub(super) fn percent_decoded(text: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
        out.push((high * 16 + low) as u8);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"
lock-version = "1.0"
created-by = "uv"
requires-python = ">=3.11.2"

[[packages]]
name = "A.b"
version = "1.0+local"
sdist = { url = "https://h/a/a_b-1.0.tar.gz" }
wheels = [{ url = "https://h/x/a_b-1.0%2Blocal-py3-none-any.whl#frag", upload-time = 2024-08-18T21:47:29Z, size = 9, hashes = { sha256 = "F5EBBF9FBDABED208D4ECD2E1DFD2C0741AF2F876E7AE522C2537D404CA895C3" } }]

[[packages]]
name = "c"
version = "1"
sdist = { url = "https://h/c-1.tar.gz", hashes = { sha256 = "00" } }
wheels = [{ url = "https://h/c-1-py3-none-any.whl" }]

[[packages]]
name = "docopt"
version = "0.6.2"
sdist = { url = "http://h/docopt-0.6.2.tar.gz" }
"#;

    #[test]
    fn a_wheel_goes_before_a_source_and_names_are_decoded() {
        let found = read(LOCK).unwrap();
        assert_eq!((found[0].name.as_str(), found[0].kind), ("a-b", Kind::Wheel));
        assert_eq!(found[0].file, "a_b-1.0+local-py3-none-any.whl");
        assert!(found[0].sha256.as_ref().unwrap().starts_with("f5eb") && found[0].size == Some(9));
        assert_eq!((found[1].name.as_str(), found[1].kind), ("a-b", Kind::Source));
        assert_eq!((found[2].name.as_str(), found[2].kind), ("c", Kind::Wheel), "its source is left out");
        assert_eq!((found[3].kind, &found[3].sha256), (Kind::Source, &None));
    }

    #[test]
    fn a_file_whose_name_leads_elsewhere_or_whose_url_is_not_http_is_refused() {
        for url in [
            "file:///etc/a.whl",
            "ftp://h/a.whl",
            "https://user:secret@h/a.whl",
            "https://h/..%2Fa.whl",
            "https://h/.hidden.whl",
            "https://h/a%00.whl",
            "https://h/a.exe",
            "https://h/a b.whl",
            "https:///a.whl",
        ] {
            let text = format!("[[packages]]\nname='a'\nversion='1'\nwheels=[{{url='{url}'}}]");
            assert!(matches!(read(&text), Err(LockError::Url(_))), "{url}: {:?}", read(&text));
        }
        let text =
            "[[packages]]\nname='a'\nversion='1'\nwheels=[{url='https://h/a.whl',hashes={sha256='../..'}}]";
        assert!(matches!(read(text), Err(LockError::Digest { .. })));
        assert!(matches!(read("[[packages]]\nname='a'\nversion='1'"), Err(LockError::Nothing(_))));
        assert!(matches!(read("x = ["), Err(LockError::Syntax(_))));
    }
}
