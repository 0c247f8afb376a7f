//! A function's own node takes over after its first start, with what its import left.

use crate::site;
use crate::stage::{GROWN_BOUND, SNAPSHOT, call, line, stands, take_snapshot, worker};
use crate::support::{Worker, wait_until};

/// Says when its module was imported, and how often this copy of it was called.
const STATE: &str = "import time\nBORN = time.time_ns()\nCALLS = []\n\
    def f(event):\n    CALLS.append(event)\n    return [BORN, CALLS]\n";

#[test]
fn the_first_start_is_served_by_a_package_node_and_the_next_by_the_snapshot() {
    let worker = worker(&[("f", STATE)], &[]);
    take_snapshot(&worker, "f", "0");
    let answers: Vec<_> = (1..4).map(|n| call(&worker, "f", &n.to_string()).json()).collect();
    for (n, answer) in (1..).zip(&answers) {
        assert_eq!(answer[0], answers[0][0], "imported once");
        assert_eq!(answer[1], serde_json::json!([n]), "each leaf has a copy of its own");
    }
    worker.down();
}

#[test]
fn a_sandbox_of_a_snapshot_is_reused_as_any_other() {
    let mut worker = Worker::new();
    worker.deploy("f", &[("f.py", STATE), ("ol.yaml", "snapshot: true\n")]);
    worker.up(&["sandbox.idle_ttl_s=1"]);
    take_snapshot(&worker, "f", "0");
    wait_until("the first sandbox is given up", GROWN_BOUND, || {
        std::thread::sleep(std::time::Duration::from_secs(2));
        worker.call("f", "1").start() == "snapshot"
    });
    let again = worker.call("f", "2");
    assert!(["warm", "unpaused"].contains(&again.start()), "{again:?}");
    assert_eq!(again.json()[1], serde_json::json!([1, 2]));
    worker.down();
}

#[test]
fn the_warm_up_event_is_handled_once_and_by_the_node() {
    let code = "import os\nCALLS = []\n\
        def f(event):\n    print('called with', event)\n    CALLS.append([event, os.getuid() == 0])\n    return CALLS\n";
    let mut worker = Worker::new();
    let yaml = "reuse-sandbox: false\nsnapshot: {warmup: {n: 7}}\n";
    worker.deploy("f", &[("f.py", code), ("ol.yaml", yaml)]);
    worker.up(&[]);
    take_snapshot(&worker, "f", "0");
    for _ in 0..3 {
        assert_eq!(call(&worker, "f", "1").json(), serde_json::json!([[{"n": 7}, true], [1, false]]));
    }
    let log = worker.function_log("f");
    assert_eq!(log.matches("{'n': 7}").count(), 1, "what a node prints is in its function's log once: {log}");
    let config = worker.get("/registry/f/config").json();
    assert_eq!(config["snapshot"], serde_json::json!({"warmup": {"n": 7}}));
    worker.down();
}

#[test]
fn hooks_run_last_first_before_the_snapshot_and_first_first_after_the_restore() {
    let code = "import os\nfrom snapshot_restore_py import register_after_restore, register_before_snapshot\n\
        LOG = []\nroot = lambda: os.getuid() == 0\n\
        @register_before_snapshot\ndef one():\n    LOG.append(['before 1', root()])\n\
        def note(text, more=''):\n    LOG.append([text + more, root()])\n\
        register_before_snapshot(note, 'before', more=' 2')\n\
        register_after_restore(note, 'after 1')\n\
        @register_after_restore\ndef two():\n    LOG.append(['after 2', root()])\n\
        def f(event):\n    return LOG\n";
    let worker = worker(&[("f", code)], &[]);
    assert_eq!(worker.result("f", ""), serde_json::json!([]), "no snapshot, no hook");
    wait_until("the snapshot node stands", GROWN_BOUND, || stands(&worker, "f"));
    let order =
        serde_json::json!([["before 2", true], ["before 1", true], ["after 1", false], ["after 2", false]]);
    for _ in 0..2 {
        assert_eq!(call(&worker, "f", "").json(), order);
    }
    worker.down();
}

#[test]
fn a_hook_that_fails_after_the_restore_is_told_with_its_traceback() {
    let code = "import os, snapshot_restore_py\n\
        def connect():\n    raise ConnectionError('no database')\n\
        snapshot_restore_py.register_after_restore(connect)\n\
        def f(event):\n    return 1\n";
    let worker = worker(&[("f", code)], &[]);
    take_snapshot(&worker, "f", "");
    for _ in 0..2 {
        let answer = worker.call("f", "");
        assert_eq!((answer.status, answer.start()), (500, "snapshot"), "{answer:?}");
        for part in ["in connect", "ConnectionError: no database", "/handler/f.py"] {
            assert!(answer.body.contains(part), "{answer:?}");
        }
    }
    worker.down();
}

#[test]
fn a_pinned_package_of_hooks_goes_before_ours() {
    let pinned = "PINNED = 1\nbefore, after = [], []\n\
        def register_before_snapshot(func, *args, **kwargs):\n    before.append((func, args, kwargs))\n    return func\n\
        def register_after_restore(func, *args, **kwargs):\n    after.append((func, args, kwargs))\n    return func\n\
        def get_before_snapshot():\n    return before\n\
        def get_after_restore():\n    return after\n";
    let pin = site::fixture_of("snapshot-restore-py", &[("snapshot_restore_py", pinned)]);
    let code = "import snapshot_restore_py as hooks\nLOG = []\n\
        hooks.register_before_snapshot(LOG.append, 'before')\nhooks.register_after_restore(LOG.append, 'after')\n\
        def f(event):\n    return [hooks.PINNED, LOG]\n";
    let mut worker = site::site(None);
    worker.deploy("f", &[("f.py", code), ("requirements.txt", &pin), ("ol.yaml", SNAPSHOT)]);
    worker.up(&[]);
    take_snapshot(&worker, "f", "");
    assert_eq!(call(&worker, "f", "").json(), serde_json::json!([1, ["before", "after"]]));
    let debug = worker.get("/debug").body;
    let depth = |mark: &str| debug.lines().find(|line| line.contains(mark)).unwrap().find("zygote").unwrap();
    let (package, own) = (depth(&format!("[{pin}]")), depth("snapshot of f ("));
    assert_eq!(own, package + 2, "it grew below the node of its packages:\n{debug}");
    worker.down();
}

#[test]
fn a_snapshot_node_keeps_blanks_and_learns_what_they_touch() {
    let worker = worker(&[("f", STATE)], &["zygote.blanks=2"]);
    take_snapshot(&worker, "f", "0");
    let blank =
        || line(&worker, "f").is_some_and(|line| line.contains("blanks=") && !line.contains("blanks=0"));
    for n in 1..4 {
        wait_until("a blank of the snapshot node is ready", GROWN_BOUND, blank);
        let answer = call(&worker, "f", &n.to_string());
        assert_eq!(answer.json()[1], serde_json::json!([n]));
        assert!(answer.header("server-timing").contains("fork;dur=0.0"), "it was forked before: {answer:?}");
    }
    let learnt = || line(&worker, "f").is_some_and(|line| line.contains("working set of"));
    wait_until("its leaves' pages are known", GROWN_BOUND, learnt);
    worker.down();
}

#[test]
fn pyproject_can_ask_for_a_snapshot_and_the_operator_can_refuse_all() {
    let mut worker = Worker::new();
    let project = "[project]\nname = \"x\"\n[tool.hosier]\nsnapshot = true\n";
    worker
        .deploy("f", &[("f.py", STATE), ("pyproject.toml", project), ("ol.yaml", "reuse-sandbox: false\n")]);
    worker.up(&[]);
    take_snapshot(&worker, "f", "0");
    call(&worker, "f", "1");
    worker.down();

    worker.up(&["zygote.snapshot=false"]);
    for n in 0..3 {
        assert_eq!(worker.call("f", &n.to_string()).start(), "forked");
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    assert_eq!(line(&worker, "f"), None);
    worker.down();
}
