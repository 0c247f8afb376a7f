//! A worker with functions that ask for snapshots, and their nodes as `/debug` draws them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::{Answer, Worker, wait_until};

/// A sandbox of its own for each call, from a node of its own.
pub const SNAPSHOT: &str = "reuse-sandbox: false\nsnapshot: true\n";

/// How long a node may take to grow on a busy machine.
pub const GROWN_BOUND: Duration = Duration::from_secs(30);

/// A worker with functions (name, code) that ask for a snapshot each.
pub fn worker(functions: &[(&str, &str)], options: &[&str]) -> Worker {
    let mut worker = Worker::new();
    for (name, code) in functions {
        worker.deploy(name, &[("f.py", code), ("ol.yaml", SNAPSHOT)]);
    }
    worker.up(options);
    worker
}

/// The line of a function's own node, if there is one.
pub fn line(worker: &Worker, name: &str) -> Option<String> {
    let mark = format!("snapshot of {name} (");
    let debug = worker.get("/debug").body;
    debug.lines().find(|line| line.contains(&mark)).map(str::to_owned)
}

/// Whether a function's own node stands.
pub fn stands(worker: &Worker, name: &str) -> bool {
    line(worker, name).is_some_and(|line| line.contains(" sandbox "))
}

/// Calls a function for the first time, and waits until its own node stands.
pub fn take_snapshot(worker: &Worker, name: &str, event: &str) {
    let first = worker.call(name, event);
    assert_eq!((first.status, first.start()), (200, "forked"), "{first:?}");
    wait_until("the snapshot node stands", GROWN_BOUND, || stands(worker, name));
}

/// A call that a leaf of the function's own node answers.
pub fn call(worker: &Worker, name: &str, event: &str) -> Answer {
    let answer = worker.call(name, event);
    assert_eq!((answer.status, answer.start()), (200, "snapshot"), "{answer:?}");
    answer
}

/// Why a function's own node is not fit.
pub fn unfit(worker: &Worker, name: &str) -> String {
    let said = || line(worker, name)?.split_once("unfit: ").map(|(_, reason)| reason.to_owned());
    wait_until("the snapshot node is unfit", GROWN_BOUND, || said().is_some());
    said().unwrap()
}

/// The processes in the sandbox of a function's own node, as the host numbers them:
/// the stub first, then its interpreter.
pub fn processes(worker: &Worker, name: &str) -> Vec<i32> {
    let line = line(worker, name).expect("a snapshot node");
    let id = line.split(" sandbox ").nth(1).and_then(|rest| rest.split(' ').next()).expect("it stands");
    let debug = worker.get("/debug").body;
    let mark = format!("sandbox {id} ");
    let line = debug.lines().find(|line| line.trim_start().starts_with(&mark)).unwrap();
    let cgroup = line.rsplit_once("cgroup ").unwrap().1;
    let members = fs::read_to_string(Path::new(cgroup).join("cgroup.procs")).unwrap();
    let inside = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("NSpid:")).unwrap_or_default().to_owned();
        line.split_whitespace().last().and_then(|pid| pid.parse::<i32>().ok())
    };
    let mut pids: Vec<i32> = members.lines().map(|pid| pid.parse().unwrap()).collect();
    pids.sort_by_key(inside);
    pids
}
