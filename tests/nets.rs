//! Network namespaces made ahead of need: each serves one sandbox, nobody notices
//! where it came from, and a start does without where there is none.

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use support::{HOSIER, Worker, wait_until};

/// Says which network namespace it is in, by a number that no other ever gets
/// (`SO_NETNS_COOKIE`), and what it finds there; and leaves something.
const LOOK: &str = "import os, socket\n\
    def f(event):\n    \
    left = socket.socket(socket.AF_UNIX)\n    \
    try:\n        left.connect('\\0left-behind')\n        found = True\n    \
    except OSError:\n        found = False\n    \
    server = socket.socket(socket.AF_UNIX)\n    server.bind('\\0left-behind')\n    server.listen()\n    \
    lo = socket.create_server(('127.0.0.1', 80 + 8000))\n    \
    socket.create_connection(('127.0.0.1', 8080), 1).close()\n    \
    away = socket.socket().connect_ex(('192.0.2.1', 9))\n    \
    globals()['kept'] = (server, lo)\n    \
    cookie = lo.getsockopt(socket.SOL_SOCKET, 71, 8).hex()\n    \
    return [cookie, found, away]\n";

fn worker(options: &[&str]) -> Worker {
    let mut worker = Worker::new();
    deploy(&worker);
    worker.up(options);
    worker
}

fn deploy(worker: &Worker) {
    worker.deploy("once", &[("f.py", LOOK), ("ol.yaml", "reuse-sandbox: false\n")]);
    worker.deploy("stays", &[("f.py", LOOK)]);
}

/// Namespaces that the tree has ready.
fn ready(worker: &Worker) -> usize {
    let debug = worker.get("/debug").body;
    let text = debug.split_once(" nets=").expect("a tree").1;
    text.split_whitespace().next().unwrap().parse().unwrap()
}

/// What a start finds; the namespace that it was in.
fn look(worker: &Worker, name: &str) -> String {
    let answer = worker.call(name, "");
    assert_eq!((answer.status, answer.start()), (200, "forked"), "{answer:?}");
    let seen = answer.json();
    assert_eq!((&seen[1], &seen[2]), (&json!(false), &json!(nix::libc::ENETUNREACH)), "{seen}");
    seen[0].as_str().unwrap().to_owned()
}

fn wait_for(worker: &Worker, count: usize) {
    wait_until("the pool is full", Duration::from_secs(10), || ready(worker) == count);
}

#[test]
fn every_leaf_has_a_namespace_that_nobody_else_ever_had() {
    let worker = worker(&["sandbox.netns_pool=4"]);
    wait_for(&worker, 4);
    let mut seen = BTreeSet::new();
    let stays = look(&worker, "stays");
    assert_eq!(ready(&worker), 3, "it came from the pool, which is filled again at a half");
    seen.insert(stays);
    // The pool is emptied and filled many times over, and outrun at times.
    for _ in 0..30 {
        assert!(seen.insert(look(&worker, "once")), "a namespace served twice");
    }
    wait_until("it is filled again", Duration::from_secs(10), || ready(&worker) > 2);
    worker.down();
}

#[test]
fn without_a_pool_each_leaf_makes_its_own() {
    let worker = worker(&["sandbox.netns_pool=0"]);
    let seen: BTreeSet<_> = (0..5).map(|_| look(&worker, "once")).collect();
    assert_eq!((seen.len(), ready(&worker)), (5, 0));
    worker.down();
}

#[test]
fn leaves_of_the_hosts_network_take_none() {
    let worker = worker(&["sandbox.network=host", "sandbox.netns_pool=4"]);
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    let code = "import os\nf = lambda event: os.readlink('/proc/self/ns/net')\n";
    worker.deploy("where", &[("f.py", code)]);
    assert_eq!(worker.result("where", ""), host.to_str().unwrap());
    assert_eq!(ready(&worker), 0);
    worker.down();
}

#[test]
fn where_none_can_be_made_ahead_of_need_starts_go_on_without() {
    // setns(_, CLONE_NEWUSER): nobody but a maker of namespaces asks for it.
    let deny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/walls/deny.py");
    let mut command = Command::new("/usr/bin/python3");
    command.arg("-I").arg(deny).args(["308", "1", "268435456", "268435456"]).arg(HOSIER);
    let mut worker = Worker::new();
    deploy(&worker);
    worker.up_by(command, &["sandbox.netns_pool=4"]);
    let seen: BTreeSet<_> = (0..5).map(|_| look(&worker, "once")).collect();
    assert_eq!((seen.len(), ready(&worker)), (5, 0));
    assert_eq!(worker.worker_log().matches("made on the path for a while").count(), 1, "said once");
    worker.down();
}

#[test]
fn a_root_that_is_grown_again_has_a_pool_of_its_own() {
    let worker = worker(&["sandbox.netns_pool=2"]);
    wait_for(&worker, 2);
    let mut seen = BTreeSet::from([look(&worker, "stays")]);
    for pid in zygotes(&worker) {
        support::kill(pid);
    }
    // Those of the first belong to a user namespace that is gone.
    for _ in 0..6 {
        assert!(seen.insert(look(&worker, "once")));
    }
    wait_until("the new one is filled", Duration::from_secs(10), || ready(&worker) > 0);
    worker.down();
}

#[test]
fn a_worker_that_is_killed_while_its_pool_is_filled_leaves_nothing() {
    let worker = worker(&["sandbox.netns_pool=64"]);
    look(&worker, "stays");
    worker.kill_9();
    worker.census();
}

/// The processes of the sandboxes that `/debug` calls zygotes.
fn zygotes(worker: &Worker) -> Vec<i32> {
    let debug = worker.get("/debug").body;
    let groups = debug.lines().filter(|line| line.contains(" Zygote "));
    let files = groups.filter_map(|line| Some(format!("{}/cgroup.procs", line.split_once("cgroup ")?.1)));
    let texts = files.filter_map(|file| std::fs::read_to_string(file).ok());
    texts.flat_map(|text| text.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}
