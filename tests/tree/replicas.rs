//! A node that is the bottleneck gets another zygote; nobody waits for a growth for
//! longer than he must.

use std::thread;
use std::time::Duration;

use crate::site::{ONE_SHOT, SIX, ask, before, fixture, node, pids, probe, probe_with, site};
use crate::support::{Worker, kill, wait_until};

const BOUND: Duration = Duration::from_secs(30);
/// Each fork of its node takes 20 ms.
const SLOW: &str = "import os, time\nos.register_at_fork(before=lambda: time.sleep(0.02))";

fn busy_site(options: &[&str]) -> (Worker, String) {
    let pin = fixture("forksslowly", SLOW);
    let mut worker = site(None);
    probe_with(&worker, "once", &[&pin], ONE_SHOT);
    worker.up(options);
    (worker, pin)
}

/// Four callers at once, so many calls each.
fn rush(worker: &Worker, calls: usize) {
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..calls).for_each(|_| assert!(asks(worker))));
        }
    });
}

fn asks(worker: &Worker) -> bool {
    ask(worker, "once", "'forksslowly' in BEFORE").json() == true
}

fn replicas(worker: &Worker, pin: &str) -> usize {
    let state = node(worker, pin).state;
    let count = state.split_once("replicas=").map(|(_, rest)| rest.split(' ').next().unwrap().parse());
    count.map_or(0, Result::unwrap)
}

#[test]
fn a_busy_node_gets_a_replica_which_serves_on_when_the_first_dies() {
    let (worker, pin) = busy_site(&["features.import_cache=multitree"]);
    assert!(asks(&worker));
    assert_eq!(replicas(&worker, &pin), 0, "one is enough for one caller");
    wait_until("it has a replica", BOUND, || {
        rush(&worker, 5);
        replicas(&worker, &pin) == 1
    });
    rush(&worker, 20);
    assert_eq!(replicas(&worker, &pin), 1, "no more than zygote.replicas");
    assert_eq!(worker.get("/debug").body.matches(" Zygote ").count(), 3);
    let first = node(&worker, &pin).sandbox;
    kill(pids(&worker, &pin).1);
    rush(&worker, 3);
    let now = node(&worker, &pin);
    assert!(now.sandbox.is_some() && now.sandbox != first, "the other took its part: {now:?}");
    worker.down();
}

#[test]
fn a_busy_node_has_no_replica_where_there_is_no_room_for_one_or_it_is_off() {
    for option in ["zygote.replicas=1", "zygote.max_nodes=2"] {
        let (worker, pin) = busy_site(&[option]);
        rush(&worker, 20);
        assert_eq!(replicas(&worker, &pin), 0, "{option}");
        assert_eq!(worker.get("/debug").body.matches(" Zygote ").count(), 2, "{option}");
        worker.down();
    }
}

#[test]
fn a_replica_makes_room_for_another_node() {
    let pin = fixture("forksslowly", SLOW);
    let mut worker = site(None);
    probe_with(&worker, "once", &[&pin], ONE_SHOT);
    probe(&worker, "other", &[SIX]);
    worker.up(&["zygote.max_nodes=3"]);
    wait_until("it has a replica", BOUND, || {
        rush(&worker, 5);
        replicas(&worker, &pin) == 1
    });
    wait_until("its leaves are gone", BOUND, || !worker.get("/debug").body.contains(" Leaf "));
    assert_eq!(before(&worker, "other", &["six"]), ["six"]);
    assert_eq!(replicas(&worker, &pin), 0);
    worker.down();
}

#[test]
fn a_start_that_does_not_wait_for_a_growth_is_served_from_an_ancestor() {
    let mut worker = site(None);
    probe_with(&worker, "once", &[SIX], ONE_SHOT);
    worker.up(&["zygote.grow_wait_ms=0"]);
    assert_eq!(before(&worker, "once", &["six"]), [] as [&str; 0]);
    wait_until("the node stands", BOUND, || node(&worker, SIX).sandbox.is_some());
    assert_eq!(before(&worker, "once", &["six"]), ["six"]);
    worker.down();
}

#[test]
fn a_growth_that_takes_long_is_waited_for_once_and_then_an_ancestor_serves() {
    let pin = fixture("loopsforlong", "import time\ntime.sleep(1e6)");
    let mut worker = site(None);
    probe_with(&worker, "once", &[&pin], ONE_SHOT);
    worker.up(&["zygote.grow_wait_ms=300", "zygote.grow_timeout_s=600"]);
    for _ in 0..3 {
        assert_eq!(before(&worker, "once", &["loopsforlong"]), [] as [&str; 0]);
        assert_eq!(node(&worker, &pin).state, "dormant", "it is still being grown");
    }
    worker.down();
}
