//! The engine end to end: from an HTTP request to a forked sandbox and back.

mod support;

use std::time::Duration;

use support::Worker;

const HELLO: &str = "def f(event):\n    return {'hello': event.get('name', 'world')}\n";

#[test]
fn a_first_request_is_answered_by_a_forked_leaf_and_a_second_by_the_same() {
    let worker = Worker::with(&[("hello", HELLO)]);
    let cold = worker.call("hello", r#"{"name": "you"}"#);
    assert_eq!((cold.status, cold.start()), (200, "forked"), "{cold:?}");
    assert_eq!(cold.json(), serde_json::json!({ "hello": "you" }));
    for step in ["queue", "node", "fork", "cgroup", "specialize", "import", "exec"] {
        assert!(cold.header("server-timing").contains(&format!("{step};dur=")), "{step} in {cold:?}");
    }
    let warm = worker.call("hello", "");
    assert_eq!(
        (warm.status, warm.start(), warm.json()),
        (200, "warm", serde_json::json!({ "hello": "world" }))
    );
    worker.down();
}

#[test]
fn an_idle_sandbox_is_paused_and_answers_again() {
    let worker = Worker::with(&[("hello", HELLO)]);
    worker.result("hello", "");
    support::wait_until("the sandbox is paused", Duration::from_secs(10), || {
        worker.get("/debug").body.contains("Leaf paused")
    });
    let again = worker.call("hello", "");
    assert_eq!((again.status, again.start()), (200, "unpaused"));
    worker.down();
}

#[test]
fn a_census_sees_a_running_worker() {
    // The proof that the census can fail.
    let worker = Worker::with(&[("hello", HELLO)]);
    worker.result("hello", "");
    let remains = worker.remains().join("\n");
    for kind in ["process", "cgroup", "file"] {
        assert!(remains.contains(kind), "no {kind} in:\n{remains}");
    }
    worker.down();
}
