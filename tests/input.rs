//! Bad input and the edges of the interface, through the real command and HTTP.
//!
//! ```text
//! names, bodies, methods ── HTTP ──┐
//! archives ──── POST /registry ────┼─▶ one answer that says which and what to do,
//! files, settings, machine ── CLI ─┘   nothing half-made, the next request is served
//! ```
//!
//! Packages come from the real index: what these tests install is small.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use support::{Answer, HOSIER, Worker, source, wait_until};
use tar::EntryType;

const HELLO: &str = "def f(event):\n    return {'hello': event.get('name', 'world')}\n";
/// Pure Python, 11 kB, no dependencies.
const SIX: &str = "six==1.16.0\n";
const USES_SIX: &str = "import six\ndef f(event):\n    return [six.__version__, six.__file__]\n";

// --- what a caller can send ---------------------------------------------------------------------

#[test]
fn a_name_that_is_none_is_refused_before_anything_is_looked_for() {
    let worker = Worker::with(&[("hello", HELLO)]);
    let long = "x".repeat(129);
    for name in ["..", ".", "%2e%2e", "a%2Fb", "%252e", "a%20b", "%C3%A4", "%ff", &long, ""] {
        for (method, path) in [("GET", format!("/run/{name}")), ("DELETE", format!("/registry/{name}"))] {
            if name.is_empty() && method == "DELETE" {
                continue; // the list, which cannot be deleted: 405
            }
            let answer = worker.request(method, &path, &[], b"");
            assert_eq!(
                (answer.status, reason(&answer).as_str()),
                (400, "bad-name"),
                "{method} {path}: {answer:?}"
            );
        }
    }
    // A name, and no function: nothing of it stays.
    let unknown = worker.call("nobody", "{}");
    assert_eq!((unknown.status, reason(&unknown).as_str()), (404, "unknown-function"), "{unknown:?}");
    assert!(error(&unknown).contains("hosier deploy"), "{unknown:?}");
    assert!(!worker.get("/debug").body.contains("nobody"));
    // `a/b` is the function `a` with the path `/b`.
    assert_eq!(worker.get("/run/hello/b").status, 200);
    assert_eq!(worker.get("/run/a/b").status, 404);
    assert_eq!(worker.get("/nothing").status, 404);
    // 128 characters are a name.
    assert_eq!(worker.get(&format!("/run/{}", "x".repeat(128))).status, 404);
    worker.down();
}

#[test]
fn a_body_that_is_too_large_or_not_json_is_the_callers_fault() {
    let mut worker = Worker::new();
    worker.deploy("hello", &[("f.py", HELLO)]);
    worker.up(&["http.body_limit_bytes=1000"]);
    let large = worker.request("POST", "/run/hello", &[], &[b' '; 1001]);
    assert_eq!((large.status, reason(&large).as_str()), (413, "body-too-large"), "{large:?}");
    assert!(error(&large).contains("1000"), "{large:?}");
    let large = worker.request("POST", "/registry/large", &[], &[0; 1001]);
    assert_eq!(large.status, 413, "{large:?}");
    for body in ["{", "nope", "{'single': 1}", "[1,]", "\u{fe}"] {
        let answer = worker.call("hello", body);
        assert_eq!((answer.status, reason(&answer).as_str()), (400, "bad-json"), "{body}: {answer:?}");
    }
    // At the limit, and after all that.
    let event = format!("{{\"name\": \"{}\"}}", "x".repeat(1000 - 12));
    assert_eq!(event.len(), 1000);
    assert_eq!(worker.result("hello", &event)["hello"].as_str().unwrap().len(), 988);
    assert_eq!(worker.result("hello", "")["hello"], "world");
    worker.down();
}

#[test]
fn the_default_limit_of_a_body_is_six_megabytes() {
    let worker = Worker::with(&[("length", "def f(event):\n    return len(event)\n")]);
    let event = format!("\"{}\"", "x".repeat((6 << 20) - 2));
    assert_eq!(worker.result("length", &event), (6 << 20) - 2);
    assert_eq!(worker.call("length", &format!("{event} ")).status, 413);
    worker.down();
}

#[test]
fn methods_and_environment_are_what_ol_yaml_says() {
    let worker = Worker::new();
    let code = "import os\ndef f(event):\n    return dict(os.environ)\n";
    let config = "triggers:\n  http: [{method: GET}, {method: POST}]\nenvironment: {GREETING: hi there, PATH: /mine}\n";
    worker.deploy("asks", &[("f.py", code), ("ol.yaml", config)]);
    let worker = up(worker, &[]);
    let refused = worker.request("PUT", "/run/asks", &[], b"");
    assert_eq!(refused.status, 405);
    assert_eq!(refused.body, "HTTP method not allowed. Sent: PUT, Allowed: [GET POST]\n");
    assert_eq!(refused.header("allow"), "GET, POST");
    let env = worker.result("asks", "");
    assert_eq!((&env["GREETING"], &env["PATH"]), (&"hi there".into(), &"/mine".into()));
    let names: Vec<_> = env.as_object().unwrap().keys().cloned().collect();
    for (name, _) in std::env::vars() {
        let ours = ["PATH", "HOME", "LANG", "USER", "LOGNAME", "TMPDIR", "PWD", "SHLVL", "LC_CTYPE"];
        assert!(
            ours.contains(&name.as_str()) || !names.contains(&name),
            "{name} of the worker's is in {names:?}"
        );
    }
    worker.down();
}

// --- archives -----------------------------------------------------------------------------------

#[test]
fn a_malformed_archive_is_refused_by_the_entry_and_nothing_is_stored() {
    let worker = Worker::with(&[("hello", HELLO)]);
    let file = (EntryType::Regular, "f.py", "", HELLO.as_bytes());
    let good = archive(&[file]);
    let python = "f.py";
    let mut header_only = archive(&[]);
    header_only.truncate(header_only.len() / 2);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("garbage", b"this is no archive".to_vec(), "no .tar.gz"),
        ("empty", Vec::new(), "archive"),
        ("cut short", good[..good.len() / 2].to_vec(), "cut short"),
        ("only gzip", gzip(b"no tar in here"), "archive"),
        ("nothing in it", archive(&[]), "empty"),
        ("half of nothing", header_only, "archive"),
        ("goes up", archive(&[file, (EntryType::Regular, "../up.py", "", b"")]), "../up.py"),
        ("goes up inside", archive(&[file, (EntryType::Regular, "a/../../up.py", "", b"")]), "a/../../up.py"),
        ("absolute", archive(&[file, (EntryType::Regular, "/etc/evil", "", b"")]), "/etc/evil"),
        ("device", archive(&[file, (EntryType::Char, "null", "", b"")]), "null"),
        ("pipe", archive(&[file, (EntryType::Fifo, "pipe", "", b"")]), "pipe"),
        ("link up", archive(&[file, (EntryType::Symlink, "link", "../../etc/passwd", b"")]), "link"),
        ("link to the root", archive(&[file, (EntryType::Symlink, "link", "/etc/passwd", b"")]), "link"),
        ("hard link up", archive(&[file, (EntryType::Link, "hard", "../../etc/passwd", b"")]), "hard"),
        ("twice", archive(&[file, file]), python),
        (
            "through a link",
            archive(&[file, (EntryType::Symlink, "d", "e", b""), (EntryType::Regular, "d/x.py", "", b"")]),
            "d",
        ),
        (
            "no entry file",
            archive(&[(EntryType::Regular, "g.py", "", b"")]),
            "there is no f.py (there is g.py)",
        ),
        (
            "a range, no pin",
            archive(&[file, (EntryType::Regular, "requirements.txt", "", b"# ok\nsix>=1\n")]),
            "requirements.txt:2",
        ),
        (
            "bad settings",
            archive(&[file, (EntryType::Regular, "ol.yaml", "", b"limits: {memory: 3}")]),
            "memory",
        ),
        ("bomb", bomb(513 << 20), "big"),
    ];
    for (what, body, named) in &cases {
        let answer = worker.request("POST", "/registry/bad", &[], body);
        assert_eq!((answer.status, reason(&answer).as_str()), (400, "bad-function"), "{what}: {answer:?}");
        assert!(error(&answer).contains(named), "{what}: {answer:?}");
        // And over one that is there: it stays.
        assert_eq!(worker.request("POST", "/registry/hello", &[], body).status, 400, "{what}");
    }
    assert_eq!(names(&worker.path().join("registry")), ["hello.tar.gz"]);
    assert_eq!(worker.get("/registry/").json(), serde_json::json!(["hello"]));
    assert_eq!(worker.call("bad", "").status, 404);
    assert_eq!(worker.result("hello", "")["hello"], "world");
    // The same by the command.
    for (what, body, named) in &cases {
        let path = worker.path().join("bad.tar.gz");
        fs::write(&path, body).unwrap();
        let said = fails(&worker, &["deploy", path.to_str().unwrap()]);
        assert!(said.contains(named), "{what}: {said}");
    }
    assert_eq!(names(&worker.path().join("registry")), ["hello.tar.gz"]);
    let left: Vec<_> =
        names(&std::env::temp_dir()).into_iter().filter(|n| n.starts_with("hosier-deploy-")).collect();
    assert!(left.is_empty(), "{left:?}");
    // Control: the good one is taken.
    assert_eq!(worker.request("POST", "/registry/good", &[], &good).status, 201);
    assert_eq!(worker.result("good", "")["hello"], "world");
    worker.down();
}

#[test]
fn a_function_is_stored_called_shown_and_removed_over_http() {
    let mut worker = Worker::new();
    worker.up(&["registry_cache_ms=200"]);
    let entry =
        |name: &'static str, content: &'static str| (EntryType::Regular, name, "", content.as_bytes());
    let config = "environment: {OL_ENTRY_FILE: src/main.py}\nlimits: {mem_mb: 60}\n";
    let first = archive(&[entry("src/main.py", "def f(event):\n    return 1\n"), entry("ol.yaml", config)]);
    let stored = worker.request("POST", "/registry/posted", &[], &first);
    assert_eq!(stored.status, 201, "{stored:?}");
    assert_eq!(worker.result("posted", ""), 1);
    let config = worker.get("/registry/posted/config").json();
    assert_eq!(
        (&config["limits"]["mem_mb"], &config["limits"]["procs"]),
        (&60.into(), &10.into()),
        "{config}"
    );
    assert_eq!(config["environment"]["OL_ENTRY_FILE"], "src/main.py");
    assert_eq!(worker.get("/registry/").json(), serde_json::json!(["posted"]));
    // New code is seen within registry_cache_ms.
    let second = archive(&[entry("f.py", "def f(event):\n    return 2\n")]);
    assert_eq!(worker.request("POST", "/registry/posted", &[], &second).status, 201);
    let stored = Instant::now();
    wait_until("the new code is served", Duration::from_secs(5), || worker.result("posted", "") == 2);
    eprintln!("new code after {:?}", stored.elapsed());
    // The same by the command, and as a directory that the user edits in place.
    worker.deploy("posted", &[("f.py", "def f(event):\n    return 3\n")]);
    wait_until("what was deployed is served", Duration::from_secs(5), || worker.result("posted", "") == 3);
    let dir = worker.path().join("registry/edited");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("f.py"), "def f(event):\n    return 4\n").unwrap();
    assert_eq!(worker.result("edited", ""), 4);
    fs::write(dir.join("f.py"), "def f(event):\n    return 5\n").unwrap();
    wait_until("an edit is served", Duration::from_secs(5), || worker.result("edited", "") == 5);

    assert_eq!(worker.request("DELETE", "/registry/posted", &[], b"").status, 200);
    assert_eq!(worker.call("posted", "").status, 404);
    assert_eq!(worker.get("/registry/posted/config").status, 404);
    assert_eq!(worker.request("DELETE", "/registry/posted", &[], b"").status, 404);
    assert_eq!(names(&worker.path().join("registry")), ["edited"]);
    worker.down();
}

#[test]
fn what_is_stored_and_cannot_run_says_so_when_it_is_called() {
    let mut worker = Worker::new();
    worker.up(&["registry_cache_ms=0"]);
    let dir = worker.path().join("registry/odd");
    fs::create_dir(&dir).unwrap();
    let expect = |part: &str| {
        let answer = worker.call("odd", "");
        assert_eq!((answer.status, reason(&answer).as_str()), (500, "not-ready"), "{answer:?}");
        assert!(error(&answer).contains(part), "{part} in {answer:?}");
    };
    expect("there is no f.py and no other Python file");
    fs::write(dir.join("f.py"), "def f(event:\n").unwrap();
    let syntax = worker.call("odd", "");
    assert_eq!(syntax.status, 500);
    assert!(syntax.body.contains("SyntaxError") && syntax.body.contains("/handler/f.py"), "{syntax:?}");
    fs::write(dir.join("f.py"), "def g(event): pass\n").unwrap();
    assert!(worker.call("odd", "").body.contains("f(event)"));
    fs::write(dir.join("f.py"), HELLO).unwrap();
    fs::write(dir.join("requirements.txt"), "\n\nnumpy\n").unwrap();
    expect("requirements.txt:3: \"numpy\"");
    expect("uv pip compile");
    fs::remove_file(dir.join("requirements.txt")).unwrap();
    assert_eq!(worker.result("odd", "")["hello"], "world");
    worker.down();
}

// --- packages -----------------------------------------------------------------------------------

#[test]
fn a_package_or_version_that_does_not_exist_is_named_and_nothing_stays() {
    let worker = Worker::new();
    for (pin, parts) in [
        ("six==99.0.0", vec!["six==99.0.0", "no such version", "1."]),
        ("hosier-no-such-package-here==1.0", vec!["hosier-no-such-package-here==1.0", "check the name"]),
    ] {
        let function = source(&[("f.py", HELLO), ("requirements.txt", pin)]);
        let said = fails(&worker, &["deploy", function.path().to_str().unwrap(), "-n", "wants"]);
        assert!(parts.iter().all(|part| said.contains(part)), "{parts:?} in {said}");
    }
    assert!(names(&worker.path().join("registry")).is_empty());
    assert_eq!(names(&worker.path().join("packages")), [".locks"]);
    worker.census();
    // A worker says the same at the first call, and goes on.
    let mut worker = worker;
    worker.up(&["registry_cache_ms=0"]);
    let pinned = archive(&[
        (EntryType::Regular, "f.py", "", HELLO.as_bytes()),
        (EntryType::Regular, "requirements.txt", "", b"six==99.0.0\n"),
    ]);
    assert_eq!(worker.request("POST", "/registry/wants", &[], &pinned).status, 201);
    let answer = worker.call("wants", "");
    assert_eq!(answer.status, 500, "{answer:?}");
    assert!(
        error(&answer).contains("six==99.0.0") && error(&answer).contains("no such version"),
        "{answer:?}"
    );
    worker.down();
}

#[test]
fn each_package_is_installed_once_ready_to_import_and_read_only() {
    let worker = Worker::new();
    let function = source(&[("f.py", USES_SIX), ("requirements.txt", SIX)]);
    let deploy = |name: &str| {
        let mut command = Command::new(HOSIER);
        command.args(["deploy", function.path().to_str().unwrap(), "--json", "-n", name, "-p"]);
        command.arg(worker.path()).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.spawn().unwrap()
    };
    // Two processes at once, the same pin: one installs, the other waits; both succeed.
    let outputs = [deploy("a"), deploy("b")].map(|child| child.wait_with_output().unwrap());
    let said = outputs.each_ref().map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(outputs.iter().all(|output| output.status.success()), "{said:?}");
    let data: serde_json::Value =
        serde_json::from_slice(&outputs[0].stdout).expect("stdout is JSON and nothing else");
    assert_eq!(data, serde_json::json!({ "name": "a", "packages": ["six==1.16.0"] }));
    let package = worker.path().join("packages/six==1.16.0");
    assert_eq!(names(&worker.path().join("packages")), [".locks", "six==1.16.0"]);
    let installed = fs::metadata(&package).unwrap().ctime_nsec();
    worker.ok(&["deploy", function.path().to_str().unwrap(), "-n", "c"]);
    assert_eq!(fs::metadata(&package).unwrap().ctime_nsec(), installed, "installed again");

    let mut files = Vec::new();
    below(&package, &mut files);
    for path in &files {
        let meta = fs::symlink_metadata(path).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (0, 0), "{path:?}");
        let (need, never) = if meta.is_dir() { (0o555, 0o022) } else { (0o444, 0o6022) };
        assert!(
            meta.mode() & need == need && meta.mode() & never == 0,
            "{path:?} has mode {:o}",
            meta.mode()
        );
    }
    let bytecode = files.iter().find(|path| path.extension().is_some_and(|e| e == "pyc")).expect("bytecode");
    // PEP 552: bit 0 of the flags is "by hash", bit 1 "check the source".
    assert_eq!(fs::read(bytecode).unwrap()[4..8], [1, 0, 0, 0], "{bytecode:?}");

    let probe = "import six, os, errno\ndef f(event):\n    said = []\n    where = os.path.dirname(six.__file__)\n    \
                 for path in (where + '/new', six.__file__, '/packages/new', '/handler/new', '/handler/f.py'):\n        \
                 try:\n            open(path, 'a').close()\n            said.append('open')\n        \
                 except OSError as error:\n            said.append(errno.errorcode[error.errno])\n    \
                 return [six.__cached__, said]\n";
    worker.deploy("probe", &[("f.py", probe), ("requirements.txt", SIX)]);
    let worker = up(worker, &[]);
    let found = worker.result("probe", "");
    assert!(found[0].as_str().unwrap().starts_with("/packages/six==1.16.0/files/"), "{found}");
    // Of a file that it does not own, the kernel says so before it looks at the mount.
    assert_eq!(found[1], serde_json::json!(["EROFS", "EACCES", "EROFS", "EROFS", "EACCES"]));
    for name in ["a", "b", "c"] {
        assert_eq!(worker.result(name, "")[0], "1.16.0");
    }
    assert!(
        worker.get("/stats").json().get("pull-package.cnt").is_none(),
        "the worker had nothing to install"
    );
    worker.down();
}

#[test]
fn packages_of_a_posted_function_are_installed_when_it_is_first_seen() {
    let mut worker = Worker::new();
    worker.up(&[]);
    let pinned = archive(&[
        (EntryType::Regular, "f.py", "", USES_SIX.as_bytes()),
        (EntryType::Regular, "requirements.txt", "", SIX.as_bytes()),
    ]);
    for name in ["one", "two"] {
        assert_eq!(worker.request("POST", &format!("/registry/{name}"), &[], &pinned).status, 201);
        assert_eq!(worker.result(name, "")[0], "1.16.0");
    }
    let stats = worker.get("/stats").json();
    assert_eq!(stats["pull-package.cnt"], 1, "{stats}");
    worker.down();
}

#[test]
fn an_installer_that_needs_more_memory_than_it_may_says_which_setting() {
    let worker = Worker::new();
    write_settings(&worker, "[installer_limits]\nmem_mb = 4\n");
    let function = source(&[("f.py", USES_SIX), ("requirements.txt", SIX)]);
    let said = fails(&worker, &["deploy", function.path().to_str().unwrap(), "-n", "a"]);
    assert!(said.contains("six==1.16.0") && said.contains("installer_limits.mem_mb"), "{said}");
    assert!(names(&worker.path().join("registry")).is_empty());
    assert_eq!(names(&worker.path().join("packages")), [".locks"]);
    worker.census();
}

#[test]
fn a_package_that_is_built_from_source_runs_its_code_behind_walls() {
    let worker = Worker::new();
    let index = Index::serve(vec![("evil-1.0.tar.gz", source_package())]);
    write_settings(&worker, &format!("pip_mirror = \"{}\"\n", index.url));
    let secret = worker.path().join("secret");
    fs::write(&secret, "not for packages").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
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
    for path in ["/root", "/sys", "/boot", "/opt", "/srv", "/work", "/var/lib"] {
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
        "there": [path for path in ("/root", "/sys", "/boot", "/opt", "/srv", "/work", "/var/lib") if os.path.exists(path)],
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

// --- commands -----------------------------------------------------------------------------------

#[test]
fn a_port_or_a_directory_in_use_is_said_and_nothing_is_left() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port().to_string();
    let worker = Worker::with(&[("hello", HELLO)]);
    let other = Worker::new();
    let option = format!("worker_port={port}");
    for detach in [&["up", "-d", "-o", &option][..], &["up", "-o", &option]] {
        let said = fails(&other, detach);
        assert!(said.contains(&format!("port {port}")) && said.contains("worker_port=N"), "{said}");
        assert_eq!(said.matches("hosier: ").count(), 1, "{said}");
        other.census();
    }
    for args in [&["up", "-o", "worker_port=0"][..], &["up", "-d", "-o", "worker_port=0"], &["cleanup"]] {
        let said = fails(&worker, args);
        assert!(said.contains("a worker runs in") && said.contains("hosier down -p"), "{args:?}: {said}");
    }
    assert_eq!(worker.result("hello", "")["hello"], "world");
    worker.down();
}

#[test]
fn commands_without_a_worker_or_a_directory_say_what_to_run() {
    let worker = Worker::new();
    for args in [&["down"][..], &["status"], &["status", "--json"], &["invoke", "hello"]] {
        let said = fails(&worker, args);
        assert!(said.contains("no worker runs in") && said.contains("hosier up -p"), "{args:?}: {said}");
    }
    assert_eq!(worker.ok(&["cleanup"]), "");
    worker.ok(&["init"]); // again: nothing is overwritten
    let nowhere = tempfile::tempdir().unwrap();
    let function = source(&[("f.py", HELLO)]);
    let function = function.path().to_str().unwrap();
    for args in [&["up"][..], &["up", "-d"], &["down"], &["status"], &["cleanup"], &["deploy", function]] {
        let output = Command::new(HOSIER).args(args).arg("-p").arg(nowhere.path()).output().unwrap();
        let said = refusal(&output);
        assert!(said.contains("hosier init -p"), "{args:?}: {said}");
        assert!(names(nowhere.path()).is_empty(), "{args:?} made something");
    }
    for (args, part) in [
        (&["deploy", "/nowhere"][..], "/nowhere"),
        (&["deploy", function, "-n", "a/b"], "not a function name"),
        (&["deploy", "/etc/hostname"], "/etc/hostname"),
    ] {
        assert!(fails(&worker, args).contains(part), "{args:?}");
    }
    assert!(names(&worker.path().join("registry")).is_empty());
}

#[test]
fn data_is_on_stdout_and_progress_on_stderr() {
    let mut worker = Worker::new();
    let dir = source(&[("shown/f.py", HELLO), ("shown/ol.yaml", "limits: {runtime_sec: 1}\n")]);
    let dir = dir.path().join("shown");
    // By the directory's own name, then as an archive of it.
    assert_eq!(worker.ok(&["deploy", dir.to_str().unwrap()]), "");
    let packed = worker.path().join("packed.tar.gz");
    fs::copy(worker.path().join("registry/shown.tar.gz"), &packed).unwrap();
    assert_eq!(worker.ok(&["deploy", packed.to_str().unwrap()]), "");
    let json = worker.ok(&["deploy", packed.to_str().unwrap(), "-n", "other", "--json"]);
    assert_eq!(json, "{\"name\":\"other\",\"packages\":[]}\n");
    worker.deploy("fails", &[("f.py", "def f(event):\n    raise ValueError('on purpose')\n")]);
    worker.up(&[]);

    let invoked = worker.hosier(&["invoke", "packed", "-d", "{\"name\": \"you\"}"]);
    assert_eq!(String::from_utf8_lossy(&invoked.stdout), "{\"hello\": \"you\"}\n");
    let progress = String::from_utf8_lossy(&invoked.stderr).into_owned();
    assert!(progress.contains("forked") && progress.contains("exec;dur="), "{progress}");
    for (args, parts) in [
        (&["invoke", "fails"][..], &["500", "ValueError: on purpose"][..]),
        (&["invoke", "nobody"], &["404", "hosier deploy"]),
        (&["invoke", "a/b"], &["not a function name"]),
        (&["invoke", "packed", "-d", "{"], &["400", "not JSON"]),
    ] {
        let said = fails(&worker, args);
        assert!(parts.iter().all(|part| said.contains(part)), "{args:?}: {said}");
    }
    let status: serde_json::Value = serde_json::from_str(&worker.ok(&["status", "--json"])).unwrap();
    assert_eq!(status["functions"], serde_json::json!(["fails", "other", "packed", "shown"]));
    assert_eq!(status["ready"], true);
    assert!(worker.ok(&["status"]).contains("sandboxes:"));

    let socket = worker.path().join("worker/hosier.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(own(&socket, "/pid").trim(), status["pid"].to_string());
    assert_eq!(own(&socket, "/status"), "ready\n");
    assert_eq!(worker.get("/status").body, "ready\n");
    assert_eq!(worker.get("/pid").status, 404, "the pid is for the machine's root");
    worker.down();
}

#[test]
fn stats_count_requests_starts_and_ends() {
    let worker = Worker::new();
    worker.deploy("once", &[("f.py", HELLO), ("ol.yaml", "reuse-sandbox: false\n")]);
    let worker = up(worker, &[]);
    for _ in 0..3 {
        let start = worker.call("once", "");
        assert!(["forked", "blank"].contains(&start.start()), "{start:?}");
    }
    wait_until("every sandbox is destroyed", Duration::from_secs(10), || {
        // The compiler's sandbox as well.
        worker.get("/stats").json()["Destroy().cnt"].as_u64().is_some_and(|count| count >= 4)
    });
    let stats = worker.get("/stats").json();
    for (step, count) in [("web-request", 3), ("LambdaFunc.Invoke", 3), ("Create()", 3)] {
        assert_eq!(stats[format!("{step}.cnt")], count, "{step} in {stats}");
    }
    for step in ["web-request", "LambdaFunc.Invoke", "Create()", "Destroy()"] {
        let mean = stats[format!("{step}.ms-avg")].as_f64().unwrap();
        assert!(mean > 0.0 && mean < 10_000.0, "{step} took {mean} ms in {stats}");
    }
    let debug = worker.get("/debug").body;
    assert!(debug.contains("sandboxes:") && debug.contains("zygote 1") && debug.contains("once"), "{debug}");
    worker.down();
}

// --- the machine --------------------------------------------------------------------------------

#[test]
fn without_root_every_command_says_that_it_needs_it() {
    let worker = Worker::new();
    fs::set_permissions(worker.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The build directory may be out of an ordinary user's reach.
    let program = readable_hosier();
    for args in [&["up"][..], &["up", "-d"], &["status"], &["down"], &["cleanup"], &["deploy", "/nowhere"]] {
        let output = Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(program.path().join("hosier"))
            .args(args)
            .arg("-p")
            .arg(worker.path())
            .output()
            .unwrap();
        let said = refusal(&output);
        assert!(said.contains("needs root") && said.contains("sudo"), "{args:?}: {said}");
    }
    worker.census();
    assert_eq!(names(&worker.path().join("worker")), [] as [&str; 0]);
}

#[test]
fn a_capability_or_kernel_feature_that_is_missing_is_named() {
    let worker = Worker::new();
    let up = format!("{HOSIER} up -o worker_port=0 -p {}", worker.path().display());
    let without = |caps: &str| format!("setpriv --bounding-set {caps} --inh-caps {caps} {up}");
    let no_users = "echo 0 >$t/n; mount --bind $t/n /proc/sys/user/max_user_namespaces";
    for (prepare, command, parts) in [
        ("true", without("-sys_admin"), &["CAP_SYS_ADMIN", "give the container"][..]),
        ("true", without("-mknod"), &["CAP_MKNOD"]),
        ("true", without("-setuid"), &["CAP_SETUID"]),
        (no_users, up.clone(), &["user namespaces", "sysctl -w user.max_user_namespaces"]),
        ("umount -R -l /sys/fs/cgroup", up.clone(), &["cgroup"]),
    ] {
        let scratch = tempfile::tempdir().unwrap();
        let script = format!("t={}; {prepare} && exec {command}", scratch.path().display());
        let output = Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap();
        let said = refusal(&output);
        assert!(parts.iter().all(|part| said.contains(part)), "{prepare}; {command}: {said}");
        worker.census();
    }
    assert_eq!(names(&worker.path().join("worker")), ["lock"]);
}

#[test]
fn a_setting_that_cannot_be_is_refused_in_the_file_and_on_the_command_line() {
    let worker = Worker::new();
    for (section, key, value, parts) in [
        ("", "worker_prot", "1", &["worker_prot", "did you mean worker_port"][..]),
        ("", "worker_port", "\"x\"", &["worker_port", "0 to 65535"]),
        ("", "worker_port", "70000", &["worker_port = 70000", "0 to 65535"]),
        ("limits", "mem_mb", "-1", &["limits.mem_mb = -1"]),
        ("sandbox", "rootfs", "\"maybe\"", &["sandbox.rootfs", "\\\"ro\\\" or \\\"rw\\\""]),
        (
            "sandbox.namespaces",
            "pid",
            "false",
            &["sandbox.namespaces.pid = false", "no sandbox stands without it"],
        ),
        ("sandbox", "colour", "1", &["sandbox.colour"]),
    ] {
        let unescape = |part: &&str| part.replace("\\\"", "\"");
        let header = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
        write_settings(&worker, &format!("{header}{key} = {value}\n"));
        let said = fails(&worker, &["up"]);
        assert!(parts.iter().map(unescape).all(|part| said.contains(&part)), "{said}");
        assert!(said.contains("hosier.toml"), "{said}");
        write_settings(&worker, "");
        let path = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
        let said = fails(&worker, &["up", "-o", &format!("{path}={}", value.trim_matches('"'))]);
        assert!(said.contains(&path) && said.contains("-o"), "{said}");
    }
    worker.census();
}

#[test]
fn a_setting_without_effect_is_taken_and_said() {
    let mut worker = Worker::new();
    write_settings(&worker, "mem_pool_mb = 1000\n[features]\nreuse_cgroups = false\n");
    let args = ["up", "-d", "-o", "worker_port=0,trace.memory=true,features.downsize_paused_mem=false"];
    let output = worker.hosier(&args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    for key in ["mem_pool_mb", "features.reuse_cgroups", "trace.memory", "features.downsize_paused_mem"] {
        assert!(said.contains(&format!("{key} is accepted and has no effect")), "{key} in {said}");
    }
    worker.ok(&["down"]);
    // Logs off: what functions print goes nowhere.
    worker.deploy("prints", &[("f.py", "def f(event):\n    print('printed')\n")]);
    worker.up(&["log_output=false"]);
    worker.result("prints", "");
    worker.down();
    assert_eq!(worker.function_log("prints"), "");
    worker.up(&[]);
    worker.result("prints", "");
    wait_until("the log is written", Duration::from_secs(5), || worker.function_log("prints") == "printed\n");
    worker.down();
}

const LOOKS: &str = "import os
def f(event):
    seen = {kind: os.readlink('/proc/self/ns/' + kind) for kind in ('ipc', 'uts', 'cgroup', 'net', 'mnt', 'pid', 'user')}
    status = dict(line.rstrip('\\n').split(':\\t', 1) for line in open('/proc/self/status') if ':\\t' in line)
    tmp = os.statvfs('/tmp')
    return dict(seen, seccomp=status['Seccomp'], bytes=tmp.f_blocks * tmp.f_frsize, inodes=tmp.f_files)
";

#[test]
fn each_setting_of_a_sandbox_reaches_it() {
    let mut worker = Worker::new();
    worker.deploy("looks", &[("f.py", LOOKS)]);
    let host = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
    let kinds = ["ipc", "uts", "cgroup", "net", "mnt", "pid", "user"];
    for (option, shared, key, value) in [
        ("", "", "seccomp", serde_json::json!("2")),
        ("features.enable_seccomp=false", "", "seccomp", "0".into()),
        ("sandbox.namespaces.ipc=false", "ipc", "ipc", host("ipc").into()),
        ("sandbox.namespaces.uts=false", "uts", "uts", host("uts").into()),
        ("sandbox.namespaces.cgroup=false", "cgroup", "cgroup", host("cgroup").into()),
        ("sandbox.namespaces.net=false", "net", "net", host("net").into()),
        ("sandbox.network=host", "net", "net", host("net").into()),
        ("sandbox.tmp_mb=3", "", "bytes", (3 << 20).into()),
        ("sandbox.tmp_inodes=100", "", "inodes", 100.into()),
    ] {
        worker.up(&[option]);
        let seen = worker.result("looks", "");
        assert_eq!(seen[key], value, "{option}: {seen}");
        for kind in kinds.into_iter().filter(|kind| *kind != shared) {
            assert_ne!(seen[kind], host(kind), "{option}: {kind} of the host's in {seen}");
        }
        worker.down();
    }
}

// --- a root to write ----------------------------------------------------------------------------

const WRITES: &str = "import os, errno\n\
def f(event):\n    said = {}\n    for path in event['paths']:\n        try:\n            \
with open(path, 'a') as file:\n                file.write('mine')\n            said[path] = os.stat(path).st_uid == os.getuid()\n        \
except OSError as error:\n            said[path] = errno.errorcode[error.errno]\n    return said\n";

#[test]
fn a_writable_root_is_the_sandboxes_own_and_goes_with_it() {
    let worker = Worker::new();
    worker.deploy("writes", &[("f.py", WRITES), ("ol.yaml", "reuse-sandbox: false\n")]);
    worker.deploy("fills", &[("f.py", FILLS)]);
    let paths = ["/etc/x", "/etc/hosts", "/new", "/home/x", "/usr/local/x", "/usr/bin/x", "/usr/share/x"];
    let event = serde_json::json!({ "paths": paths }).to_string();
    // The control: a root that is not to be written.
    let worker = up(worker, &[]);
    let refused = worker.result("writes", &event);
    assert!(paths.iter().all(|path| refused[path] == "EROFS"), "{refused}");
    worker.ok(&["down"]);
    let mut worker = worker;
    // Forked from a zygote, then a process of its own.
    for cache in ["tree", ""] {
        worker.up(&["sandbox.rootfs=rw", "sandbox.tmp_mb=8", &format!("features.import_cache={cache}")]);
        for _ in 0..2 {
            let written = worker.result("writes", &event);
            assert!(paths.iter().all(|path| written[path] == true), "import_cache={cache}: {written}");
        }
        let closed = r#"{"paths": ["/handler/x", "/packages/x", "/proc/sys/kernel/hostname", "/hosier/x"]}"#;
        let refused = worker.result("writes", closed);
        assert_eq!(
            (&refused["/handler/x"], &refused["/packages/x"]),
            (&"EROFS".into(), &"EROFS".into()),
            "{refused}"
        );
        let full = worker.result("fills", "");
        assert_eq!(full[0], "ENOSPC", "{full}");
        assert!(full[1].as_u64().unwrap() <= 8 << 20, "{full}");
        worker.down();
    }
    for path in ["/etc/x", "/new", "/home/x", "/usr/local/x", "/usr/bin/x", "/usr/share/x"] {
        assert!(!Path::new(path).exists(), "{path} is on the host");
    }
    assert!(!fs::read_to_string("/etc/hosts").unwrap().contains("mine"));
}

/// Writes to /usr until it is full.
const FILLS: &str = "import os, errno\n\
def f(event):\n    size = 0\n    with open('/usr/big', 'wb', buffering=0) as file:\n        try:\n            \
while True:\n                size += file.write(b'x' * 65536)\n        \
except OSError as error:\n            return [errno.errorcode[error.errno], size]\n";

// --- what the tests above use -------------------------------------------------------------------

fn up(mut worker: Worker, options: &[&str]) -> Worker {
    worker.up(options);
    worker
}

/// Runs a command that must fail: code 1, nothing on stdout; its stderr.
fn fails(worker: &Worker, args: &[&str]) -> String {
    refusal(&worker.hosier(args))
}

fn refusal(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(said.contains("hosier: "), "{said}");
    said
}

fn reason(answer: &Answer) -> String {
    answer.json()["reason"].as_str().unwrap_or_default().to_owned()
}

fn error(answer: &Answer) -> String {
    answer.json()["error"].as_str().unwrap_or_default().to_owned()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn below(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    found.push(dir.to_owned());
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
        if entry.file_type().unwrap().is_dir() {
            below(&entry.path(), found)
        } else {
            found.push(entry.path())
        }
    }
}

fn write_settings(worker: &Worker, text: &str) {
    fs::write(worker.path().join("hosier.toml"), text).unwrap();
}

/// The body of a GET at the worker's own socket.
fn own(socket: &Path, path: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// The program where everybody can run it.
fn readable_hosier() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(HOSIER, dir.path().join("hosier")).unwrap();
    dir
}

type Entry<'a> = (EntryType, &'a str, &'a str, &'a [u8]);

/// A `.tar.gz` with these entries (kind, name, link, content), whatever they are.
fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (kind, name, link, content) in entries {
        tar.append(&header(*kind, name, link, content.len() as u64), *content).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

/// By the bytes: what `tar` itself would refuse to write is the point.
fn header(kind: EntryType, name: &str, link: &str, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    let fields = header.as_gnu_mut().unwrap();
    fields.name[..name.len()].copy_from_slice(name.as_bytes());
    fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    header
}

/// Much in little: one file of `bytes` zeros.
fn bomb(bytes: u64) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    tar.append(&header(EntryType::Regular, "f.py", "", 4), &b"pass"[..]).unwrap();
    tar.append(&header(EntryType::Regular, "big", "", bytes), std::io::repeat(0).take(bytes)).unwrap();
    tar.into_inner().unwrap().finish().unwrap()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(content).unwrap();
    gz.finish().unwrap()
}
