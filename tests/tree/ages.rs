//! Nodes that came of age: another takes over, and no request notices, but that
//! address layout and hash seed are others.

use std::time::Duration;

use crate::site::{ONE_SHOT, SIX, ask, node, probe, probe_with, site};
use crate::support::{Worker, wait_until};

const BOUND: Duration = Duration::from_secs(20);

/// Seed of string hashes and address of what every interpreter has once.
fn layout(worker: &Worker, name: &str) -> serde_json::Value {
    let answer = ask(worker, name, "[hash('x'), id(None), 'six' in BEFORE]");
    assert_eq!(answer.start(), "forked");
    answer.json()
}

#[test]
fn a_node_that_forked_often_is_replaced_with_its_root_and_no_request_fails() {
    let mut worker = site(None);
    probe_with(&worker, "once", &[SIX], ONE_SHOT);
    probe(&worker, "stays", &[SIX]);
    worker.up(&["zygote.max_forks=6"]);
    ask(&worker, "stays", "1");
    let first = (node(&worker, "").sandbox, node(&worker, SIX).sandbox);
    let before = layout(&worker, "once");
    assert_eq!(layout(&worker, "once"), before, "siblings are alike");
    let now = || (node(&worker, "").sandbox, node(&worker, SIX).sandbox);
    wait_until("both are replaced", BOUND, || {
        assert_eq!(layout(&worker, "once")[2], true, "there is a node at every moment");
        now().0 != first.0 && now().1 != first.1
    });
    let after = layout(&worker, "once");
    assert_ne!((&after[0], &after[1]), (&before[0], &before[1]), "{before} and {after}");
    assert_eq!(ask(&worker, "stays", "len(CALLS)").body.trim(), "2", "its leaves live on");
    assert!(!worker.worker_log().contains("serves on"));
    worker.down();
}

#[test]
fn a_node_that_stands_for_long_is_replaced_at_its_next_start() {
    let mut worker = site(None);
    probe_with(&worker, "once", &[SIX], ONE_SHOT);
    worker.up(&["zygote.max_age_s=2", "zygote.blanks=1"]);
    layout_of_any(&worker);
    let first = node(&worker, SIX).sandbox;
    wait_until("it is replaced", BOUND, || {
        layout_of_any(&worker);
        let now = node(&worker, SIX).sandbox;
        now.is_some() && now != first
    });
    worker.down();
}

/// As a start from a blank or not finds it.
fn layout_of_any(worker: &Worker) {
    assert_eq!(ask(worker, "once", "'six' in BEFORE").json(), true);
}

#[test]
fn with_both_bounds_off_a_node_is_never_replaced() {
    let mut worker = site(None);
    probe_with(&worker, "once", &[], ONE_SHOT);
    worker.up(&["zygote.max_forks=0", "zygote.max_age_s=0"]);
    let first = node(&worker, "").sandbox;
    let before = ask(&worker, "once", "hash('x')").json();
    for _ in 0..20 {
        assert_eq!(ask(&worker, "once", "hash('x')").json(), before);
    }
    assert_eq!(node(&worker, "").sandbox, first);
    worker.down();
}
