//! Nodes import what their leaves were seen to import, of their own packages alone.

use std::time::Duration;

use crate::site::{IDNA, ONE_SHOT, SIX, ask, node, probe_with, site};
use crate::support::{Worker, wait_until};

const BOUND: Duration = Duration::from_secs(20);
/// `import idna` leaves this one out.
const BELOW: &str = "idna.codec";

/// Imports some modules; which of them were there before.
fn import(worker: &Worker, name: &str, modules: &[&str]) -> serde_json::Value {
    ask(worker, name, &format!("[[m in BEFORE, __import__(m)][0] for m in {modules:?}]")).json()
}

#[test]
fn a_node_imports_what_its_leaves_were_seen_to_import() {
    let mut worker = site(None);
    probe_with(&worker, "f", &[IDNA], ONE_SHOT);
    probe_with(&worker, "other", &[SIX], ONE_SHOT);
    worker.up(&["zygote.blanks=2"]);
    assert_eq!(import(&worker, "f", &[BELOW]), serde_json::json!([false]));
    let first = node(&worker, IDNA).sandbox;
    wait_until("the node has it", BOUND, || import(&worker, "f", &[BELOW])[0] == true);
    assert_ne!(node(&worker, IDNA).sandbox, first, "grown again");
    assert!(worker.get("/debug").body.contains("learned=1 modules"), "{}", worker.get("/debug").body);
    assert_eq!(ask(&worker, "other", "[m for m in BEFORE if m.startswith('idna')]").body.trim(), "[]");
    worker.down();
}

#[test]
fn a_leaf_cannot_have_its_node_import_what_is_not_of_its_packages() {
    let mut worker = site(None);
    probe_with(&worker, "f", &[IDNA], ONE_SHOT);
    worker.up(&[]);
    // The standard library's, and one that says it is of another package.
    let lie = "[[m in BEFORE, __import__(m)][0] for m in ['wave', 'idna.codec']] + \
        [sys.modules.update(six=type(sys)('six')), setattr(sys.modules['six'], '__file__', '/packages/six/six.py')]";
    wait_until("the node has what is its own", BOUND, || ask(&worker, "f", lie).json()[1] == true);
    let seen = ask(&worker, "f", "['wave' in BEFORE, 'six' in BEFORE, 'idna.codec' in BEFORE]").json();
    assert_eq!(seen, serde_json::json!([false, false, true]));
    worker.down();
}

#[test]
fn learning_can_be_switched_off() {
    let mut worker = site(None);
    probe_with(&worker, "f", &[IDNA], ONE_SHOT);
    worker.up(&["zygote.learn=false"]);
    for _ in 0..12 {
        assert_eq!(import(&worker, "f", &[BELOW]), serde_json::json!([false]));
    }
    assert!(!worker.get("/debug").body.contains("learned="));
    worker.down();
}
