//! The two programs of the host that packages need: `uv`, and the base's
//! Python. Plain processes of the operator's, before any sandbox.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::abi::Abi;
use crate::lambda::requirements::PythonVersion;

/// A program is not there, or cannot be put there.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("{}, which the setting installer.uv names, is not there or cannot be run", .0.display())]
    NamedUv(PathBuf),
    #[error("uv is neither in {}, nor beside hosier, nor in PATH: run `hosier init`, or set installer.uv", .0.display())]
    NoUv(PathBuf),
    #[error(
        "uv could not be installed to {}: {output}; run `apt install python3-venv` and `hosier init` again, \
         or put a uv binary there",
        dir.display()
    )]
    InstallUv { dir: PathBuf, output: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is not a CPython 3.9 or newer ({said}); set sandbox.python", python.display())]
    Python { python: PathBuf, said: String },
    #[error(
        "{} is {}, and a sandbox sees of the host only /usr; set sandbox.python to one there",
        python.display(), real.display()
    )]
    OutsideUsr { python: PathBuf, real: PathBuf },
}

/// Finds `uv`: the one that is named, or in `DIR/tools`, beside the running
/// program, in PATH.
///
/// # Errors
/// There is none.
pub fn find_uv(dir: &Path, named: Option<&Path>) -> Result<PathBuf, ToolError> {
    if let Some(named) = named {
        return if runs(named) { Ok(named.to_owned()) } else { Err(ToolError::NamedUv(named.to_owned())) };
    }
    let tools = dir.join("tools");
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = [tools.clone()].into_iter().chain(beside).chain(std::env::split_paths(&path));
    let found =
        places.filter(|place| place.is_absolute() || place.starts_with(dir)).map(|place| place.join("uv"));
    // The sandbox shows this very file: no link that ends elsewhere.
    found.filter(|uv| runs(uv)).find_map(|uv| uv.canonicalize().ok()).ok_or(ToolError::NoUv(tools))
}

/// Finds `uv`, or installs it from the package index to `DIR/tools/uv`.
///
/// # Errors
/// It is not there and Python can install nothing.
pub fn ensure_uv(dir: &Path, named: Option<&Path>, python: &Path) -> Result<PathBuf, ToolError> {
    match find_uv(dir, named) {
        Err(ToolError::NoUv(_)) => {}
        found => return found,
    }
    let tools = dir.join("tools");
    let staging = tools.join(".uv-staging");
    let io = |source| ToolError::Io { path: tools.clone(), source };
    std::fs::create_dir_all(&tools).map_err(io)?;
    crate::lambda::registry::fresh_dir(&staging).map_err(io)?;
    let result = install_uv(python, &staging).and_then(|uv| {
        std::fs::set_permissions(&uv, std::fs::Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
        std::fs::rename(&uv, tools.join("uv")).map_err(|e| e.to_string())
    });
    crate::sandbox::foreign::remove(&staging).map_err(|error| io(error.into_io()))?;
    result.map_err(|output| ToolError::InstallUv { dir: tools.clone(), output })?;
    find_uv(dir, None)
}

/// Installs `uv` below `staging` and says where it is: by a virtual
/// environment, or by the pip that the interpreter has.
fn install_uv(python: &Path, staging: &Path) -> Result<PathBuf, String> {
    let venv = staging.join("venv");
    let flat = staging.join("flat");
    let made = output(Command::new(python).args(["-m", "venv"]).arg(&venv)).and_then(|()| {
        let pip = venv.join("bin/python3");
        output(Command::new(pip).args(["-m", "pip", "install", "--quiet", "--only-binary", ":all:", "uv"]))
    });
    let Err(first) = made else { return Ok(venv.join("bin/uv")) };
    let pip = ["-m", "pip", "install", "--quiet", "--only-binary", ":all:", "--target"];
    match output(Command::new(python).args(pip).arg(&flat).arg("uv")) {
        Ok(()) => Ok(flat.join("bin/uv")),
        Err(second) => Err(format!("{first}; {second}")),
    }
}

/// Runs a command; Err is the last line that it said.
fn output(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stderr, output.stdout].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let last = said.iter().flat_map(|text| text.lines().rev()).find(|line| !line.trim().is_empty());
    Err(last.unwrap_or("it said nothing").trim().to_owned())
}

fn runs(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// An interpreter's version and binary interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interpreter {
    pub version: PythonVersion,
    pub abi: Abi,
}

/// Asks an interpreter for its version.
///
/// # Errors
/// As [`interpreter`].
pub fn python_version(python: &Path) -> Result<PythonVersion, ToolError> {
    interpreter(python).map(|found| found.version)
}

/// Asks an interpreter for its version and its binary interface.
///
/// # Errors
/// It cannot be run, or is none that Hosier serves.
pub fn interpreter(python: &Path) -> Result<Interpreter, ToolError> {
    let ask = "import sys, _imp; print(sys.implementation.name, '%d.%d.%d' % sys.version_info[:3], \
               _imp.extension_suffixes()[0])";
    let refused = |said: String| ToolError::Python { python: python.to_owned(), said };
    let output = Command::new(python).args(["-I", "-S", "-c", ask]).env_clear().output();
    let output = output.map_err(|error| refused(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let words: Vec<_> = said.split(' ').collect();
    let found = match words[..] {
        ["cpython", version, suffix] => PythonVersion::parse(version).zip(Abi::from_suffix(suffix)),
        _ => None,
    };
    match found {
        Some((version, abi)) if (version.major, version.minor) >= (3, 9) => {
            let real = python.canonicalize().unwrap_or_else(|_| python.to_owned());
            if real.starts_with("/usr") {
                return Ok(Interpreter { version, abi });
            }
            Err(ToolError::OutsideUsr { python: python.to_owned(), real })
        }
        _ => Err(refused(said)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uv_is_found_in_the_tools_of_the_worker() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tools")).unwrap();
        let uv = dir.path().join("tools/uv");
        std::fs::write(&uv, "").unwrap();
        assert!(find_uv(dir.path(), Some(&uv)).unwrap_err().to_string().contains("installer.uv"));
        std::fs::set_permissions(&uv, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_uv(dir.path(), None).unwrap(), uv.canonicalize().unwrap());
    }

    #[test]
    fn a_program_that_is_no_python_is_named() {
        let found = interpreter(Path::new("/usr/bin/python3")).unwrap();
        let PythonVersion { major, minor, .. } = found.version;
        assert!(found.abi.to_string().starts_with(&format!("cpython-{major}{minor}-")), "{found:?}");
        let elsewhere = tempfile::tempdir().unwrap();
        let python = elsewhere.path().join("python3");
        let script = "#!/bin/sh\nexec /usr/bin/python3 \"$@\"\n";
        std::fs::write(&python, script).unwrap();
        std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(python_version(&python).unwrap_err().to_string().contains("only /usr"));
        for python in ["/bin/true", "/nowhere"] {
            let error = python_version(Path::new(python)).unwrap_err().to_string();
            assert!(error.contains(python) && error.contains("sandbox.python"), "{error}");
        }
    }
}
