//! CPythons of this machine, and packages for them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The one that every machine has on which Hosier runs.
pub const SYSTEM: &str = "/usr/bin/python3";

/// What Hosier serves.
const VERSIONS: [&str; 5] = ["3.9", "3.10", "3.11", "3.12", "3.13"];

/// 3.12.
const FIRST_WITH_IMMORTALS: u32 = 12;

/// An interpreter that runs.
pub struct Interpreter {
    pub path: PathBuf,
    /// As `3.11.2`.
    pub version: String,
}

impl Interpreter {
    /// Asks it for its version; `None` if it is no CPython that runs.
    pub fn at(path: &Path) -> Option<Self> {
        // What runs may be a wrapper, which would need an environment.
        let ask = "import sys; assert sys.implementation.name == 'cpython'; \
                   print(sys.executable, '%d.%d.%d' % sys.version_info[:3])";
        let output = Command::new(path).args(["-I", "-S", "-c", ask]).output().ok()?;
        let said = String::from_utf8(output.stdout).ok()?;
        let (path, version) = said.trim().rsplit_once(' ')?;
        output.status.success().then(|| Self { path: path.into(), version: version.to_owned() })
    }

    /// `3.11`.
    fn minor(&self) -> &str {
        self.version.rsplit_once('.').map_or(&self.version, |(minor, _)| minor)
    }

    /// Whether it has immortal objects (PEP 683).
    pub fn has_immortals(&self) -> bool {
        let minor = self.minor().split_once('.').and_then(|(_, minor)| minor.parse().ok());
        minor.is_some_and(|minor: u32| minor >= FIRST_WITH_IMMORTALS)
    }

    /// Installs these, with what they need and as `constraints` pin them, to `place/files`.
    pub fn install(&self, packages: &[&str], constraints: &Path, place: &Path) {
        let uv = Path::new(crate::support::HOSIER).with_file_name("uv");
        let mut command = Command::new(&uv);
        command.args([
            "pip",
            "install",
            "--quiet",
            "--only-binary",
            ":all:",
            "--compile-bytecode",
            "--no-config",
        ]);
        command.args(["--system-certs", "--no-python-downloads", "--python"]).arg(&self.path);
        command.arg("--target").arg(place.join("files")).arg("--constraints").arg(constraints).args(packages);
        let output = command.env("UV_CACHE_DIR", place.join("cache")).output();
        let output = output.unwrap_or_else(|error| panic!("{}: {error}; run `make setup`", uv.display()));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// One of each version, the system's first, and the versions that are not there.
pub fn find() -> (Vec<Interpreter>, Vec<&'static str>) {
    let mut found: Vec<Interpreter> = Vec::new();
    for path in std::iter::once(PathBuf::from(SYSTEM)).chain(places()) {
        let Some(interpreter) = Interpreter::at(&path) else { continue };
        let wanted = VERSIONS.contains(&interpreter.minor());
        if wanted && !found.iter().any(|known| known.minor() == interpreter.minor()) {
            found.push(interpreter);
        }
    }
    let missing =
        VERSIONS.into_iter().filter(|version| !found.iter().any(|known| known.minor() == *version)).collect();
    (found, missing)
}

fn places() -> Vec<PathBuf> {
    if let Some(named) = std::env::var_os("HOSIER_TEST_PYTHONS") {
        return std::env::split_paths(&named).collect();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path)
        .flat_map(|dir| VERSIONS.map(|version| dir.join(format!("python{version}"))));
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let versions = std::fs::read_dir(home.join(".pyenv/versions")).into_iter().flatten().flatten();
    in_path.chain(versions.map(|entry| entry.path().join("bin/python3"))).collect()
}
