//! Source packages whose build backend is their own, and wheels, made by the test.

use std::io::Write;
use std::process::{Command, Stdio};

use flate2::{Compression, write::GzEncoder};

/// A source package `NAME-VERSION.tar.gz` with these files.
pub fn archive(name: &str, version: &str, files: &[(&str, &str)]) -> (String, Vec<u8>) {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let info = format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n");
    for (file, content) in files.iter().copied().chain([("PKG-INFO", info.as_str())]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        let path = format!("{name}-{version}/{file}");
        tar.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    (format!("{name}-{version}.tar.gz"), tar.into_inner().unwrap().finish().unwrap())
}

/// A source package that is built by `backend`: Python code that runs while it is
/// built, after [`PRELUDE`].
pub fn with_backend(name: &str, version: &str, requires: &str, backend: &str) -> (String, Vec<u8>) {
    let project = format!(
        "[build-system]\nrequires = {requires}\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n"
    );
    let code = format!("NAME, VERSION = {name:?}, {version:?}\n{PRELUDE}\n{backend}");
    archive(name, version, &[("pyproject.toml", &project), ("backend.py", &code)])
}

/// `wheel(directory, seen)` writes a wheel whose module says what was seen. A backend
/// without a `build_wheel` of its own gets one that calls `look()`.
const PRELUDE: &str = r#"
import os, sys, zipfile

def wheel(directory, seen=None, name=None):
    name = name or "%s-%s-py3-none-any.whl" % (NAME, VERSION)
    info = "%s-%s.dist-info/" % (NAME, VERSION)
    with zipfile.ZipFile(os.path.join(directory, name), "w") as file:
        file.writestr(NAME + ".py", "SEEN = " + repr(seen))
        file.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: %s\nVersion: %s\n" % (NAME, VERSION))
        file.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(info + "RECORD", "%s.py,,\n%sMETADATA,,\n%sWHEEL,,\n%sRECORD,,\n" % (NAME, info, info, info))
    return name

def build_wheel(directory, settings=None, metadata=None):
    return wheel(directory, look())
"#;

/// A wheel of one module with this code; `requires` are lines of METADATA.
pub fn wheel(name: &str, version: &str, requires: &[&str], code: &str) -> (String, Vec<u8>) {
    let script = r#"
import io, sys, zipfile
name, version, requires, code = sys.argv[1:]
info, out = "%s-%s.dist-info/" % (name, version), io.BytesIO()
with zipfile.ZipFile(out, "w") as file:
    file.writestr(name + ".py", code)
    needs = "".join("Requires-Dist: %s\n" % line for line in requires.splitlines())
    file.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: %s\nVersion: %s\n%s" % (name, version, needs))
    file.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    file.writestr(info + "RECORD", "%s.py,,\n%sMETADATA,,\n%sWHEEL,,\n%sRECORD,,\n" % (name, info, info, info))
sys.stdout.buffer.write(out.getvalue())
"#;
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-I", "-c", script, name, version, &requires.join("\n"), code]).stdout(Stdio::piped());
    let output = python.spawn().unwrap().wait_with_output().unwrap();
    assert!(output.status.success());
    std::io::stdout().flush().unwrap();
    (format!("{name}-{version}-py3-none-any.whl"), output.stdout)
}
