//! A worker under a small limit of open files: refused where it would be useless, else smaller and of use.

#[path = "support/mod.rs"]
mod support;

use std::net::TcpStream;
use std::process::{Command, Output};

use support::{HOSIER, Worker};

const HELLO: &str = "def f(event):\n    return 'hello'\n";

/// `hosier`, below a shell that lowered the limit for good.
fn limited(files: u32) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("ulimit -n {files} && exec \"$@\""), "sh", HOSIER]);
    command
}

fn up(worker: &Worker, files: u32) -> Output {
    let mut command = limited(files);
    command.args(Worker::up_args(&[])).arg("-p").arg(worker.path()).output().unwrap()
}

#[test]
fn a_limit_too_small_to_serve_with_is_refused_with_the_number_it_takes() {
    let worker = Worker::new();
    for files in [64, 256] {
        let output = up(&worker, files);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "ready with {files} descriptors: {said}");
        for part in [&format!("open files is {files}"), "ulimit -n", "LimitNOFILE"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    worker.census();
}

#[test]
fn a_worker_with_few_descriptors_says_what_it_lowered_and_serves_while_nearly_all_connections_idle() {
    let mut worker = Worker::new();
    let names: Vec<_> = (0..10).map(|number| format!("f{number}")).collect();
    for name in &names {
        worker.deploy(name, &[("f.py", HELLO)]);
    }
    worker.up_by(limited(512), &["http.max_connections=1000"]);
    let log = worker.worker_log();
    let lowered = |name: &str| -> usize {
        let note = log
            .lines()
            .find_map(|line| line.split_once(&format!("{name} is ")))
            .unwrap_or_else(|| panic!("{log}"));
        note.1.split(' ').next().unwrap().parse().unwrap()
    };
    let connections = lowered("http.max_connections");
    assert!((64..512).contains(&connections) && lowered("sandbox.max_sandboxes") >= 8, "{log}");
    // A few are held by who waits to accept.
    let idle: Vec<_> =
        (8..connections).map(|_| TcpStream::connect(("127.0.0.1", worker.port)).unwrap()).collect();
    for name in &names {
        assert_eq!(worker.result(name, "{}"), "hello");
    }
    drop(idle);
    let log = worker.worker_log();
    assert!(!log.contains("EMFILE") && !log.contains("Too many open files"), "{log}");
    worker.down();
}
