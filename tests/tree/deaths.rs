//! Nodes that are killed: who lives on, who dies along, and what grows again.

use std::thread;
use std::time::Duration;

use crate::site::{DATEUTIL, IDNA, Node, SIX, ask, before, node, pids, probe, site};
use crate::support::{Worker, alive, kill, wait_until};

const MODULES: [&str; 3] = ["six", "dateutil", "idna"];
const BOUND: Duration = Duration::from_secs(10);

/// root ─── six ─── python-dateutil ─── idna
fn chain() -> String {
    serde_json::json!({ "children": [{ "packages": [SIX], "children": [
        { "packages": [DATEUTIL], "children": [{ "packages": [IDNA] }] }] }] })
    .to_string()
}

fn kill_and_wait(pid: i32) {
    kill(pid);
    wait_until("the process is gone", BOUND, || !alive(pid));
}

fn kill_interpreter(worker: &Worker, packages: &str) -> Node {
    let node = node(worker, packages);
    kill_and_wait(pids(worker, packages).1);
    node
}

#[test]
fn what_was_forked_from_a_killed_node_lives_on_and_the_node_is_grown_again_once() {
    let mut worker = site(Some(&chain()));
    for name in ["deep", "deep-2", "deep-3"] {
        probe(&worker, name, &[SIX, DATEUTIL, IDNA]);
    }
    for name in ["middle", "middle-2", "middle-3"] {
        probe(&worker, name, &[SIX, DATEUTIL]);
    }
    worker.up(&[]);
    before(&worker, "deep", &MODULES);
    before(&worker, "middle", &MODULES);
    let child = node(&worker, IDNA).sandbox;

    let killed = kill_interpreter(&worker, DATEUTIL);
    for name in ["deep", "middle"] {
        let answer = ask(&worker, name, "len(CALLS)");
        assert_eq!(answer.body.trim(), "2", "{name} is the same process");
    }
    // A child that stands needs no parent.
    assert_eq!(before(&worker, "deep-2", &MODULES), MODULES);
    assert_eq!(node(&worker, IDNA).sandbox, child);
    assert_eq!(before(&worker, "middle-2", &MODULES), ["six", "dateutil"]);
    let again = node(&worker, DATEUTIL);
    assert!(again.sandbox.is_some() && again.sandbox != killed.sandbox, "{again:?}");

    kill_interpreter(&worker, DATEUTIL);
    assert_eq!(before(&worker, "middle-3", &MODULES), ["six"], "served from the parent");
    let state = node(&worker, DATEUTIL).state;
    assert!(state.contains("unfit") && state.contains("died 2 times"), "{state}");
    assert_eq!(before(&worker, "deep-3", &MODULES), MODULES);
    for (name, calls) in [("deep", "3"), ("middle", "3"), ("middle-2", "2"), ("middle-3", "2")] {
        assert_eq!(ask(&worker, name, "len(CALLS)").body.trim(), calls, "{name}");
    }
    worker.down();
}

#[test]
fn a_killed_node_costs_none_of_the_ten_requests_that_run_below_it() {
    let mut worker = site(Some(&chain()));
    let names: Vec<_> = (0..10).map(|number| format!("f{number}")).collect();
    for name in &names {
        probe(&worker, name, &[SIX]);
    }
    worker.up(&[]);
    thread::scope(|scope| {
        let running: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(|| ask(&worker, name, "[time.sleep(2.5), 'six' in BEFORE]")))
            .collect();
        wait_until("all ten run", BOUND, || worker.get("/debug").body.matches(" Leaf ").count() == 10);
        kill_interpreter(&worker, SIX);
        for thread in running {
            let answer = thread.join().unwrap();
            assert_eq!((answer.start(), answer.body.trim()), ("forked", "[null, true]"));
        }
    });
    worker.down();
}

#[test]
fn a_killed_stub_takes_all_below_along_and_the_next_requests_are_served() {
    let mut worker = site(Some(&chain()));
    probe(&worker, "deep", &[SIX, DATEUTIL, IDNA]);
    probe(&worker, "idle", &[SIX, DATEUTIL]);
    probe(&worker, "aside", &[]);
    worker.up(&[]);
    before(&worker, "deep", &MODULES);
    before(&worker, "idle", &MODULES);
    before(&worker, "aside", &MODULES);
    thread::scope(|scope| {
        let event = r#"{"x": "time.sleep(20)"}"#;
        let running = scope.spawn(|| worker.call("deep", event));
        wait_until("it runs", BOUND, || {
            !worker.get("/debug").body.contains("Leaf running for 0 s, cgroup -")
        });
        thread::sleep(Duration::from_millis(300));
        let below = pids(&worker, IDNA).1;
        kill_and_wait(pids(&worker, SIX).0);
        wait_until("its descendants are gone", BOUND, || !alive(below));
        let answer = running.join().unwrap();
        assert_eq!((answer.status, answer.json()["reason"].as_str()), (502, Some("died")), "{answer:?}");
    });
    assert_eq!(before(&worker, "deep", &MODULES), MODULES, "all three grew again");
    assert_eq!(before(&worker, "idle", &MODULES), ["six", "dateutil"]);
    assert_eq!(ask(&worker, "aside", "len(CALLS)").body.trim(), "2", "beside it nothing happened");
    worker.down();
}

#[test]
fn a_killed_root_is_grown_again_however_often() {
    let mut worker = site(None);
    for name in ["a", "b", "c", "d"] {
        probe(&worker, name, &[]);
    }
    probe(&worker, "pinned", &[SIX]);
    probe(&worker, "pinned-2", &[SIX]);
    worker.up(&[]);
    before(&worker, "pinned", &MODULES);
    for name in ["a", "b", "c"] {
        kill_interpreter(&worker, "");
        before(&worker, name, &MODULES);
    }
    // What grew from the first root has outlived it.
    assert_eq!(ask(&worker, "pinned", "len(CALLS)").body.trim(), "2");
    assert_eq!(before(&worker, "pinned-2", &MODULES), ["six"]);
    kill_and_wait(pids(&worker, "").0);
    before(&worker, "d", &MODULES);
    worker.down();
}
