//! Commands: what each says, where, and what the machine must have.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use crate::support::{HOSIER, Worker, source, wait_until};
use crate::*;

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
