//! Packages: refused, installed once, read-only.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use tar::EntryType;

use crate::archives::archive;
use crate::support::{HOSIER, Worker, source};
use crate::*;

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
    assert_eq!(names(&worker.packages()), [".locks"]);
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
    let package = worker.package("six==1.16.0");
    assert_eq!(names(&worker.packages()), [".locks", "six==1.16.0"]);
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
    assert_eq!(names(&worker.packages()), [".locks"]);
    worker.census();
}
