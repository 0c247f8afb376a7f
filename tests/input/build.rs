//! A source package runs its code where it can do no harm.

use std::io::{Read, Write};
use std::process::Command;

use tar::EntryType;

use crate::archives::archive;
use crate::support::{HOSIER, Worker, source};
use crate::*;

#[test]
fn a_package_that_is_built_from_source_runs_its_code_behind_walls() {
    let worker = Worker::new();
    let index = Index::serve(vec![("evil-1.0.tar.gz", source_package())]);
    write_settings(&worker, &format!("pip_mirror = \"{}\"\n", index.url));
    let code = "import evil\ndef f(event):\n    return evil.SEEN\n";
    let function = source(&[("f.py", code), ("requirements.txt", "evil==1.0\n")]);
    let mut command = Command::new(HOSIER);
    command.args(["deploy", function.path().to_str().unwrap(), "-n", "evil", "-p"]).arg(worker.path());
    let output = command.env("A_SECRET_OF_THE_OPERATOR", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    worker.census();
    let worker = up(worker, &[]);
    let seen = worker.result("evil", "");
    assert_eq!(seen["status"]["CapEff"], "0000000000000000", "{seen}");
    assert_eq!(seen["status"]["CapBnd"], "0000000000000000", "{seen}");
    assert_eq!(
        (&seen["status"]["NoNewPrivs"], &seen["status"]["Seccomp"]),
        (&"1".into(), &"2".into()),
        "{seen}"
    );
    assert_ne!(seen["host_uid"], 0, "{seen}");
    assert!(seen["pids"].as_u64().unwrap() < 10, "it sees the host's processes: {seen}");
    for name in ["A_SECRET_OF_THE_OPERATOR", "PIP_CERT", "CARGO", "SUDO_USER"] {
        assert!(!seen["environment"].as_array().unwrap().contains(&name.into()), "{name} in {seen}");
    }
    for path in ["/root", "/sys", "/boot", "/opt", "/srv", "/var/lib"] {
        assert!(!seen["there"].as_array().unwrap().contains(&path.into()), "{path} in {seen}");
    }
    assert!(!seen["passwd"].as_str().unwrap().contains("daemon"), "the host's /etc: {seen}");
    for call in ["mount", "unshare", "setns", "ptrace", "bpf", "keyctl"] {
        assert_eq!(seen["calls"][call], "EPERM", "{call} in {seen}");
    }
    // Written while it was built: into its own root, gone with it.
    assert_eq!(seen["wrote"], serde_json::json!(["/etc/evil", "/tmp/evil", "/usr/evil"]), "{seen}");
    for path in ["/etc/evil", "/tmp/evil", "/usr/evil"] {
        assert!(!Path::new(path).exists(), "{path} is on the host");
    }
    worker.down();
}

/// What looks around while it is built: a source package with its own build backend.
const BACKEND: &str = r#"
import ctypes, errno, json, os, zipfile

def build_wheel(directory, settings=None, metadata=None):
    name = "evil-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as wheel:
        wheel.writestr("evil.py", "SEEN = " + repr(look()))
        wheel.writestr("evil-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
        wheel.writestr("evil-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("evil-1.0.dist-info/RECORD", "evil.py,,\nevil-1.0.dist-info/RECORD,,\n")
    return name

def look():
    status = dict(line.rstrip("\n").split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
    return {
        "status": {key: status[key].strip() for key in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")},
        "host_uid": int(open("/proc/self/uid_map").read().split()[1]),
        "pids": sum(name.isdigit() for name in os.listdir("/proc")),
        "environment": sorted(os.environ),
        "there": [path for path in ("/root", "/sys", "/boot", "/opt", "/srv", "/var/lib") if os.path.exists(path)],
        "passwd": open("/etc/passwd").read(),
        "calls": {name: call(*args) for name, args in CALLS.items()},
        "wrote": [path for path in ("/etc/evil", "/tmp/evil", "/usr/evil") if write(path)],
    }

CALLS = {"mount": (165, b"none", b"/tmp", b"tmpfs", 0, None), "unshare": (272, 0x10000000), "setns": (308, 0, 0),
         "ptrace": (101, 0, 0, 0, 0), "bpf": (321, 0, None, 0), "keyctl": (250, 0, -1, 0)}

def call(number, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    return "done" if libc.syscall(number, *args) >= 0 else errno.errorcode[ctypes.get_errno()]

def write(path):
    try:
        open(path, "w").close()
        return True
    except OSError:
        return False
"#;

fn source_package() -> Vec<u8> {
    let project = "[build-system]\nrequires = []\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n";
    let info = "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n";
    let file = |name: &'static str, content: &'static str| (EntryType::Regular, name, "", content.as_bytes());
    archive(&[
        file("evil-1.0/pyproject.toml", project),
        file("evil-1.0/PKG-INFO", info),
        file("evil-1.0/backend.py", BACKEND),
    ])
}

/// A package index of this machine's own, with these files of `evil`.
struct Index {
    url: String,
}

impl Index {
    fn serve(files: Vec<(&'static str, Vec<u8>)>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 4096];
                let size = stream.read(&mut request).unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..size]).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default();
                let links: String =
                    files.iter().map(|(name, _)| format!("<a href=\"/files/{name}\">{name}</a>\n")).collect();
                let found = files.iter().find(|(name, _)| path == format!("/files/{name}"));
                let (kind, body) = match found {
                    Some((_, content)) => ("application/gzip", content.clone()),
                    None => ("text/html", links.into_bytes()),
                };
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                );
                let body = if request.starts_with("HEAD") { Vec::new() } else { body };
                let _ = stream.write_all(&[head.into_bytes(), body].concat());
            }
        });
        Self { url }
    }
}
