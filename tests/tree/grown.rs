//! No tree file: the tree grows itself, within its bounds.

use std::time::Duration;
use std::{fs, thread};

use crate::site::{ATTRS, IDNA, ONE_SHOT, SIX, ask, before, node, nodes, pids, probe, probe_with, site};
use crate::support::wait_until;

const MODULES: [&str; 3] = ["six", "idna", "attr"];

#[test]
fn a_first_call_grows_a_node_below_its_best_match() {
    let mut worker = site(None);
    probe(&worker, "one", &[SIX]);
    probe(&worker, "two", &[SIX, IDNA]);
    probe(&worker, "other", &[IDNA]);
    probe(&worker, "same", &[SIX]);
    worker.up(&[]);
    assert_eq!(before(&worker, "one", &MODULES), ["six"]);
    assert_eq!(before(&worker, "two", &MODULES), ["six", "idna"]);
    assert_eq!(before(&worker, "other", &MODULES), ["idna"]);
    assert_eq!(before(&worker, "same", &MODULES), ["six"]);
    let all: Vec<_> = nodes(&worker).into_iter().map(|node| (node.parent, node.packages)).collect();
    let below = |parent: &str, own: &str| (Some(parent.to_owned()), own.to_owned());
    assert_eq!(all.len(), 4, "{all:?}");
    for expected in [below("", SIX), below(SIX, IDNA), below("", IDNA)] {
        assert!(all.contains(&expected), "{expected:?} in {all:?}");
    }
    worker.down();
}

#[test]
fn a_full_tree_lets_go_of_the_node_that_was_unused_longest_and_never_of_one_with_leaves() {
    let mut worker = site(None);
    probe(&worker, "keeps", &[SIX]);
    probe_with(&worker, "passes", &[IDNA], ONE_SHOT);
    probe_with(&worker, "comes", &[ATTRS], ONE_SHOT);
    probe(&worker, "stays", &[ATTRS]);
    probe(&worker, "late", &[IDNA]);
    worker.up(&["zygote.max_nodes=3"]);
    assert_eq!(before(&worker, "keeps", &MODULES), ["six"]);
    assert_eq!(before(&worker, "passes", &MODULES), ["idna"]);
    wait_until("the one-shot sandbox is gone", Duration::from_secs(5), || {
        worker.get("/debug").body.matches(" Leaf ").count() == 1
    });
    // The node of `keeps` is older, but has a leaf.
    assert_eq!(before(&worker, "comes", &MODULES), ["attr"]);
    let names: Vec<_> = nodes(&worker).into_iter().map(|node| node.packages).collect();
    assert_eq!(names, ["", SIX, ATTRS]);
    // Now both have one: who comes late is served by the root.
    assert_eq!(before(&worker, "stays", &MODULES), ["attr"]);
    assert_eq!(before(&worker, "late", &MODULES), [] as [&str; 0]);
    assert_eq!(nodes(&worker).len(), 3);
    worker.down();
}

#[test]
fn a_node_that_finds_no_place_is_passed_over_and_grows_when_there_is_one() {
    let mut worker = site(None);
    probe_with(&worker, "a", &[], ONE_SHOT);
    probe_with(&worker, "b", &[], ONE_SHOT);
    probe_with(&worker, "pinned", &[SIX], ONE_SHOT);
    worker.up(&["sandbox.max_sandboxes=3"]);
    thread::scope(|scope| {
        let busy = ["a", "b"].map(|name| scope.spawn(|| ask(&worker, name, "time.sleep(3)")));
        wait_until("both run", Duration::from_secs(10), || {
            worker.get("/debug").body.matches(" Leaf ").count() == 2
        });
        // Both, and this one's leaf: the node would be the fourth.
        assert_eq!(before(&worker, "pinned", &MODULES), [] as [&str; 0]);
        assert_eq!(node(&worker, SIX).state, "dormant");
        for thread in busy {
            thread.join().unwrap();
        }
    });
    wait_until("places are free", Duration::from_secs(5), || !worker.get("/debug").body.contains(" Leaf "));
    assert_eq!(before(&worker, "pinned", &MODULES), ["six"]);
    worker.down();
}

#[test]
fn without_the_import_cache_every_start_is_fresh() {
    let mut worker = site(None);
    probe(&worker, "pinned", &[SIX, IDNA]);
    probe(&worker, "bare", &[]);
    worker.up(&["features.import_cache="]);
    let answer = ask(&worker, "pinned", "[__import__('six').__version__, 'six' in BEFORE]");
    assert_eq!((answer.start(), answer.json()), ("fresh", serde_json::json!(["1.16.0", false])));
    assert_eq!(ask(&worker, "bare", "1 + 1").start(), "fresh");
    assert!(nodes(&worker).is_empty());
    let again = ask(&worker, "pinned", "len(CALLS)");
    assert!(["warm", "unpaused"].contains(&again.start()), "{again:?}");
    worker.down();
}

#[test]
fn a_node_keeps_its_packages_when_no_leaf_uses_them() {
    let mut worker = site(None);
    probe_with(&worker, "first", &[SIX], ONE_SHOT);
    probe_with(&worker, "below", &[SIX, IDNA], ONE_SHOT);
    worker.up(&["zygote.blanks=0"]);
    assert_eq!(before(&worker, "first", &MODULES), ["six"]);
    assert_eq!(before(&worker, "below", &MODULES), ["six", "idna"]);
    wait_until("the one-shot sandboxes are gone", Duration::from_secs(5), || {
        !worker.get("/debug").body.contains(" Leaf ")
    });
    for pin in [SIX, IDNA] {
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", pids(&worker, pin).1)).unwrap();
        assert!(mounts.contains(&format!(" /packages/{pin} ")), "{mounts}");
    }
    worker.down();
}
