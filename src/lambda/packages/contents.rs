//! What an installed package holds and needs, read from its own metadata
//! once, after the install, and kept beside its files.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::lambda::requirements::{PythonVersion, marker_holds, normalize};
use crate::sandbox::foreign::{ForeignError, Tree};

/// What is known of one installed package.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Contents {
    /// What can be imported: top-level modules, and of a namespace without
    /// code of its own the packages in it (`google.protobuf`).
    pub top_level: Vec<String>,
    /// Names of the packages that it depends on here, normalised, extras not counted.
    pub requires: Vec<String>,
}

/// Top-level names that wheels ship by mistake; importing them runs things.
const BY_MISTAKE: [&str; 10] =
    ["test", "tests", "testing", "doc", "docs", "examples", "benchmarks", "scripts", "setup", "conftest"];

/// The most that is read of one metadata file, in bytes.
const SIZE_LIMIT_BYTES: u64 = 16 << 20;
/// Number of entries that a package's directory may have.
const NAMES_LIMIT: usize = 20_000;

/// Reads the contents of what was installed into `files`.
pub(super) fn read(files: &Path, python: PythonVersion) -> io::Result<Contents> {
    let mut contents = Contents::default();
    let tree = Tree::open(files).map_err(ForeignError::into_io)?;
    for name in tree.names(NAMES_LIMIT).map_err(ForeignError::into_io)? {
        let info = Path::new(&name);
        if info.extension().is_none_or(|extension| extension != "dist-info") {
            continue;
        }
        let record = text(&tree, &info.join("RECORD"))?;
        contents.top_level.extend(top_level(record.lines().filter_map(record_path)));
        contents.requires.extend(requires(&text(&tree, &info.join("METADATA"))?, python));
    }
    Ok(contents)
}

pub(super) fn text(tree: &Tree, path: &Path) -> io::Result<String> {
    let bytes = tree.read_small(path, SIZE_LIMIT_BYTES).map_err(ForeignError::into_io)?;
    Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
}

/// The path of a line of RECORD, which is CSV.
fn record_path(line: &str) -> Option<String> {
    match line.strip_prefix('"') {
        Some(quoted) => Some(quoted.split("\",").next()?.replace("\"\"", "\"")),
        None => line.split(',').next().filter(|path| !path.is_empty()).map(str::to_owned),
    }
}

/// Returns the path and the sha256 of a line of RECORD that has one, as base 64.
pub(super) fn record_digest(line: &str) -> Option<(String, &str)> {
    let (rest, _size) = line.rsplit_once(',')?;
    let (_, digest) = rest.rsplit_once(',')?;
    Some((record_path(line)?, digest.strip_prefix("sha256=")?))
}

/// The importable names among a package's files.
fn top_level(paths: impl Iterator<Item = String>) -> BTreeSet<String> {
    // Directories of code, as dotted names, and those among them with an __init__.
    let (mut modules, mut packages, mut namespaces) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for path in paths {
        let mut parts: Vec<_> = path.split('/').collect();
        let Some(module) = parts.pop().and_then(module_name) else { continue };
        if !parts.iter().all(|part| is_identifier(part)) {
            continue;
        }
        match (parts.as_slice(), module) {
            ([], module) => _ = modules.insert(module.to_owned()),
            (parts, "__init__") => _ = packages.insert(parts.join(".")),
            (parts, _) => _ = namespaces.insert(parts.join(".")),
        }
    }
    // Only the outermost: what is in a package comes with it.
    let below = |name: &str, others: &BTreeSet<String>| {
        name.match_indices('.').any(|(at, _)| others.contains(&name[..at]))
    };
    let outer: BTreeSet<_> = packages.iter().filter(|name| !below(name, &packages)).cloned().collect();
    // A namespace that holds modules and no package at all is imported itself.
    let bare = namespaces.iter().filter(|name| {
        let inside = |package: &String| package == *name || package.starts_with(&format!("{name}."));
        !name.contains('.') && !below(name, &packages) && !packages.iter().any(inside)
    });
    let names: BTreeSet<_> = modules.into_iter().chain(outer).chain(bare.cloned()).collect();
    let meant = |name: &&String| {
        let first = name.split('.').next().unwrap_or(name);
        !BY_MISTAKE.contains(&first) && !first.starts_with("__") && first != "bin"
    };
    match names.iter().filter(meant).cloned().collect::<BTreeSet<_>>() {
        meant if meant.is_empty() => names,
        meant => meant,
    }
}

/// The module that a file is: Python code or an extension module.
fn module_name(file: &str) -> Option<&str> {
    let (name, rest) = file.split_once('.')?;
    let is_code = rest == "py" || rest == "so" || rest == "abi3.so";
    let is_code = is_code || (rest.starts_with("cpython-") && rest.ends_with(".so"));
    (is_code && is_identifier(name)).then_some(name)
}

fn is_identifier(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric())
}

/// The dependencies that METADATA names for this Python, without its extras'.
fn requires(metadata: &str, python: PythonVersion) -> BTreeSet<String> {
    let headers = metadata.lines().take_while(|line| !line.is_empty());
    let lines = headers.filter_map(|line| line.strip_prefix("Requires-Dist:"));
    lines
        .filter_map(|line| {
            let (requirement, marker) = line.split_once(';').unwrap_or((line, ""));
            if marker.contains("extra") {
                return None;
            }
            // A marker that is not understood: better one dependency too many.
            let holds = marker.trim().is_empty() || marker_holds(marker.trim(), python).unwrap_or(true);
            let end = requirement.trim().find(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c));
            let name = requirement.trim();
            holds.then(|| normalize(&name[..end.unwrap_or(name.len())])).flatten()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PYTHON: PythonVersion = PythonVersion { major: 3, minor: 11, micro: 2 };

    fn names(paths: &[&str]) -> Vec<String> {
        top_level(paths.iter().map(|path| (*path).to_owned())).into_iter().collect()
    }

    #[test]
    fn modules_packages_and_extensions_are_importable_and_nothing_else() {
        let files = [
            "six.py",
            "numpy/__init__.py",
            "numpy/core/__init__.py",
            "numpy.libs/libopenblas.so",
            "_cffi_backend.cpython-311-x86_64-linux-gnu.so",
            "fast.abi3.so",
            "plain.so",
            "bin/tool.py",
            "numpy-2.1.0.dist-info/RECORD",
            "tests/__init__.py",
            "__pycache__/six.cpython-311.pyc",
            "../../bin/f2py",
            "data/readme.txt",
            "x.pth",
            "lib-name.py",
            "numpy/core/tests/t.py",
        ];
        assert_eq!(names(&files), ["_cffi_backend", "fast", "numpy", "plain", "six"]);
    }

    #[test]
    fn of_a_namespace_the_packages_in_it_are_importable() {
        let google =
            ["google/protobuf/__init__.py", "google/protobuf/internal/__init__.py", "google/api/x.py"];
        assert_eq!(names(&google), ["google.protobuf"]);
        assert_eq!(names(&["ns/module.py", "ns/deep/x.py"]), ["ns"]);
        assert_eq!(
            names(&["pandas/_libs/x.cpython-311-x86_64-linux-gnu.so", "pandas/__init__.py"]),
            ["pandas"]
        );
        assert_eq!(names(&["tests/__init__.py"]), ["tests"]);
    }

    #[test]
    fn dependencies_of_extras_and_of_other_pythons_are_left_out() {
        let metadata = "Name: pandas\nRequires-Dist: numpy>=1.22.4; python_version < \"3.11\"\n\
                        Requires-Dist: numpy>=1.23.2; python_version == \"3.11\"\nRequires-Dist: python-dateutil>=2.8\n\
                        Requires-Dist: Typing_Extensions (>=4)\nRequires-Dist: x; extra == 'test'\n\
                        Requires-Dist: colorama; sys_platform == 'win32'\n\nRequires-Dist: body\n";
        let found: Vec<_> = requires(metadata, PYTHON).into_iter().collect();
        assert_eq!(found, ["numpy", "python-dateutil", "typing-extensions"]);
    }

    #[test]
    fn a_record_line_is_csv() {
        assert_eq!(record_path("a/b.py,sha256=x,1").as_deref(), Some("a/b.py"));
        assert_eq!(record_path("\"a,b.py\",sha256=x,1").as_deref(), Some("a,b.py"));
        assert_eq!(record_digest("\"a,b.py\",sha256=x,1"), Some(("a,b.py".to_owned(), "x")));
        assert_eq!(record_digest("a-1.dist-info/RECORD,,"), None);
    }
}
