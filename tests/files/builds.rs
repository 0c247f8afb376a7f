//! Source packages whose build leaves what a careless installer trips over. What is held
//! here is what the host sees afterwards, however many steps an install has.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::{part, source};
use crate::worker;

/// Longest time of one install, far more than one takes: an open of a FIFO has none.
const INSTALL_BOUND: Duration = Duration::from_secs(100);

/// A place of the host's that no build may reach.
struct Host {
    dir: tempfile::TempDir,
    secret: PathBuf,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("hosier-host-").tempdir().unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "as it was").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        Self { dir, secret }
    }

    fn is_untouched(&self) -> bool {
        let meta = fs::metadata(&self.secret).unwrap();
        fs::read_to_string(&self.secret).unwrap() == "as it was"
            && (meta.mode() & 0o7777, meta.uid()) == (0o600, 0)
            && fs::metadata(self.dir.path()).unwrap().mode() & 0o7777 == 0o700
            && fs::read_dir(self.dir.path()).unwrap().count() == 1
    }
}

#[test]
fn a_build_that_leaves_a_link_for_the_description_overwrites_nothing_of_the_host() {
    let host = Host::new();
    let link = format!(
        "replace(os.path.join(where, 'meta.json'), lambda path: os.symlink({:?}, path))",
        host.secret
    );
    install(&format!("def attack(where):\n    {link}\n"));
    assert!(host.is_untouched(), "the host's files were changed by a build");
}

#[test]
fn a_build_that_leaves_links_for_directories_opens_nothing_of_the_host() {
    let host = Host::new();
    // A process that outlives the build waits until the package is in place, and takes
    // the place of its directory while the installer is still at work beside it.
    let attack = format!(
        "def attack(where):\n    if os.fork():\n        return\n    try:\n        os.setsid()\n        \
         for fd in range(3):\n            os.dup2(os.open('/dev/null', os.O_RDWR), fd)\n        \
         files, end = os.path.join(where, 'files'), time.monotonic() + 20\n        \
         while not os.path.exists(os.path.join(files, 'hostile.py')) and time.monotonic() < end:\n            \
         time.sleep(0.0005)\n        os.rename(files, files + '.old')\n        os.symlink({:?}, files)\n    \
         finally:\n        os._exit(0)\n",
        host.dir.path(),
    );
    install(&attack);
    assert!(host.is_untouched(), "the host's files were changed by a build");
}

#[test]
fn a_build_that_leaves_a_fifo_for_the_description_is_waited_for_by_nobody() {
    install("def attack(where):\n    replace(os.path.join(where, 'meta.json'), os.mkfifo)\n");
}

#[test]
fn a_build_that_leaves_fifos_among_its_files_is_waited_for_by_nobody() {
    install(
        "def attack(where):\n    for name in ('x.dist-info/RECORD', 'x.dist-info/METADATA', 'pipe'):\n        \
         path = os.path.join(where, 'files', name)\n        os.makedirs(os.path.dirname(path), exist_ok=True)\n        \
         replace(path, os.mkfifo)\n",
    );
}

#[test]
fn a_build_that_leaves_a_deep_nest_ends_nobody() {
    install(
        "def attack(where):\n    if where != '/out':\n        return\n    try:\n        at = os.open(where, os.O_DIRECTORY)\n        for _ in range(30000):\n            \
         os.mkdir('d', dir_fd=at)\n            below = os.open('d', os.O_DIRECTORY, dir_fd=at)\n            os.close(at)\n            \
         at = below\n    finally:\n        os.close(at)\n",
    );
}

/// Installs a package whose build does `attack` in each directory that it can write,
/// for the command and for a worker; both must go on, and a worker must start again.
fn install(attack: &str) {
    let index = serve("hostile-1.0.tar.gz", package(attack));
    let (mut worker, packages) = worker();
    let settings = worker.path().join("hosier.toml");
    fs::write(&settings, format!("pip_mirror = {index:?}\n{}", fs::read_to_string(&settings).unwrap()))
        .unwrap();
    let function =
        source(&[("f.py", "def f(event):\n    return 1\n"), ("requirements.txt", "hostile==1.0\n")]);
    let began = Instant::now();
    let output = worker.hosier(&["deploy", function.path().to_str().unwrap(), "-n", "hostile"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(began.elapsed() < INSTALL_BOUND, "the command waited: {said}");
    // Installed or refused; not ended by a signal.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{:?}: {said}", output.status);
    if !output.status.success() {
        assert!(said.contains("hostile==1.0"), "names no culprit: {said}");
    }
    clean(packages.path());
    worker.census();
    // A worker that meets the same package goes on serving.
    let _ = fs::remove_dir_all(part(packages.path()).join("hostile==1.0"));
    worker.deploy("kind", &[("f.py", "def f(event):\n    return 'fine'\n")]);
    worker.up(&["registry_cache_ms=0"]);
    let copied = worker.path().join("registry/hostile");
    fs::create_dir_all(&copied).unwrap();
    for file in ["f.py", "requirements.txt"] {
        fs::copy(function.path().join(file), copied.join(file)).unwrap();
    }
    let began = Instant::now();
    let answer = worker.call("hostile", "");
    assert!(began.elapsed() < INSTALL_BOUND, "the worker waited: {answer:?}");
    assert!(matches!(answer.status, 200 | 500), "{answer:?}");
    assert_eq!(worker.result("kind", ""), "fine");
    worker.down();
    worker.up(&[]);
    assert_eq!(worker.result("kind", ""), "fine");
    clean(packages.path());
    worker.down();
}

/// Expects that the store holds finished packages and locks only. What is aside goes soon.
fn clean(packages: &Path) {
    let unfinished = || -> Vec<String> {
        let names = fs::read_dir(part(packages)).into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with(".staging") || name.starts_with(".trash")).collect()
    };
    let end = Instant::now() + Duration::from_secs(20);
    while !unfinished().is_empty() {
        assert!(Instant::now() < end, "left in the store: {:?}", unfinished());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A source package with its own build backend, which attacks and then builds a good wheel.
const BACKEND: &str = r#"
import os, shutil, tempfile, time, zipfile

def replace(path, make):
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)
        make(path)
    except OSError:
        pass

def build_wheel(directory, settings=None, metadata=None):
    name = "hostile-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as wheel:
        wheel.writestr("hostile.py", "x = 1\n")
        wheel.writestr("hostile-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")
        wheel.writestr("hostile-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("hostile-1.0.dist-info/RECORD", "hostile.py,,\nhostile-1.0.dist-info/RECORD,,\n")
    own = [directory, os.getcwd(), os.path.expanduser("~"), tempfile.gettempdir()]
    above = [path for path in os.listdir("/") if path not in ("proc", "dev", "sys", "usr", "etc")]
    for where in sorted({os.path.realpath(path) for path in own + ["/" + path for path in above]}):
        if os.path.isdir(where) and os.access(where, os.W_OK):
            try:
                attack(where)
            except OSError:
                pass
    return name

"#;

fn package(attack: &str) -> Vec<u8> {
    let project = "[build-system]\nrequires = []\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n";
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, text) in [
        ("pyproject.toml", project.to_owned()),
        ("PKG-INFO", "Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n".to_owned()),
        ("backend.py", format!("{BACKEND}{attack}")),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, Path::new("hostile-1.0").join(name), text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

/// An index with one file, on loopback; ends with the test's process.
fn serve(name: &'static str, content: Vec<u8>) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let size = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..size]).into_owned();
            let is_file = request.contains(&format!(" /files/{name} "));
            let page = format!("<a href=\"/files/{name}\">{name}</a>\n").into_bytes();
            let (kind, body) = if is_file { ("application/gzip", &content) } else { ("text/html", &page) };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let body = if request.starts_with("HEAD") { &[][..] } else { body };
            let _ = stream.write_all(&[head.as_bytes(), body].concat());
        }
    });
    url
}
