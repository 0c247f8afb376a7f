//! What a node's memory costs whom: it is divided among the functions that use it, and goes
//! with the last of them.

use std::time::Duration;

use crate::site::{IDNA, SIX, before, node, nodes, probe, probe_with, site};
use crate::support::{Worker, wait_until};

/// How long a removed function's nodes may take to go.
const GONE_BOUND: Duration = Duration::from_secs(20);

fn remove(worker: &Worker, name: &str) {
    assert_eq!(worker.request("DELETE", &format!("/registry/{name}"), &[], b"").status, 200);
}

/// Whether the node of these packages stands.
fn stands(worker: &Worker, packages: &str) -> bool {
    nodes(worker).iter().any(|node| node.packages == packages && node.sandbox.is_some())
}

#[test]
fn a_node_is_charged_to_its_functions_and_goes_with_the_last() {
    let tree =
        format!(r#"{{"children": [{{"packages": ["{SIX}"], "children": [{{"packages": ["{IDNA}"]}}]}}]}}"#);
    let mut worker = site(Some(&tree));
    probe(&worker, "one", &[SIX]);
    probe(&worker, "both", &[SIX, IDNA]);
    worker.up(&["registry_cache_ms=0"]);
    assert_eq!(before(&worker, "one", &["six"]), ["six"]);
    assert_eq!(before(&worker, "both", &["six", "idna"]), ["six", "idna"]);
    assert!(node(&worker, SIX).state.contains("charged to 2 functions"), "{:?}", node(&worker, SIX));
    assert!(node(&worker, IDNA).state.contains("charged to 1 functions"), "{:?}", node(&worker, IDNA));

    // New code with the same pins keeps its nodes; with others it does not.
    probe_with(&worker, "both", &[SIX, IDNA], "environment: {A: b}\n");
    assert_eq!(before(&worker, "both", &["six", "idna"]), ["six", "idna"]);
    assert!(stands(&worker, IDNA));
    probe(&worker, "both", &[SIX]);
    assert_eq!(before(&worker, "both", &["six"]), ["six"]);
    wait_until("the node that new code does not use is gone", GONE_BOUND, || !stands(&worker, IDNA));
    probe(&worker, "both", &[SIX, IDNA]);
    assert_eq!(before(&worker, "both", &["six", "idna"]), ["six", "idna"]);

    remove(&worker, "both");
    wait_until("the node that it alone used is gone", GONE_BOUND, || !stands(&worker, IDNA));
    assert!(node(&worker, SIX).state.contains("charged to 1 functions"), "{:?}", node(&worker, SIX));
    remove(&worker, "one");
    wait_until("the last node is gone", GONE_BOUND, || !stands(&worker, SIX));
    assert!(
        nodes(&worker).iter().any(|node| node.parent.is_none() && node.sandbox.is_some()),
        "the root stays"
    );

    // And it comes back with its next function.
    probe(&worker, "again", &[SIX]);
    assert_eq!(before(&worker, "again", &["six"]), ["six"]);
    worker.down();
}
