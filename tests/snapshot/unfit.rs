//! Imports that no zygote can be made of: their function is served as one that never
//! asked, and `/debug` says why.

use crate::stage::{call, stands, unfit, worker};
use crate::support::{Worker, wait_until};

/// (name, what its module does in a node, what `/debug` says). In a leaf it does nothing.
const CASES: [(&str, &str, &str); 9] = [
    ("thread", "threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()", "2 threads"),
    ("raises", "raise KeyError('not here')", "could not be imported: KeyError: 'not here'"),
    ("exits", "sys.exit(3)", "could not be imported: SystemExit: 3"),
    ("vanishes", "os._exit(0)", "it ended during its imports"),
    ("hangs", "time.sleep(3600)", "longer than the 3 s of zygote.grow_timeout_s"),
    (
        "eats",
        "global x; x = [b'x' * (1 << 20) for _ in range(1024)]",
        "more memory than its function's limits",
    ),
    (
        "opens",
        "global x; x = open('/etc/passwd' if os.path.exists('/etc/passwd') else '/handler/f.py')",
        "open: close it",
    ),
    ("leaves", "os.fork() or time.sleep(3600)", "processes running"),
    (
        "hooks",
        "snapshot_restore_py.register_before_snapshot(int, 'x')",
        "before the snapshot failed: ValueError",
    ),
];

#[test]
fn what_a_node_cannot_hold_is_served_without_and_the_reason_is_shown() {
    let mut worker = Worker::new();
    for (name, act, _) in CASES {
        let code = format!(
            "import os, sys, threading, time, snapshot_restore_py\n\
             def act():\n    {act}\nif os.getuid() == 0:\n    act()\ndef f(event):\n    return event\n"
        );
        worker.deploy(name, &[("f.py", &code), ("ol.yaml", crate::stage::SNAPSHOT)]);
    }
    worker.up(&["zygote.grow_timeout_s=3"]);
    for (name, ..) in CASES {
        assert_eq!(worker.call(name, "1").start(), "forked", "{name}");
    }
    for (name, _, reason) in CASES {
        let said = unfit(&worker, name);
        assert!(said.contains(reason), "{name}: {said}");
        let answer = worker.call(name, "2");
        assert_eq!((answer.start(), answer.json()), ("forked", 2.into()), "{name}");
    }
    worker.down();
}

#[test]
fn a_module_that_cannot_be_imported_at_all_tells_its_traceback() {
    let worker = worker(&[("f", "def f(event):\n    return 1\nimport nowhere_to_be_found\n")], &[]);
    for _ in 0..2 {
        let answer = worker.call("f", "");
        assert_eq!((answer.status, answer.start()), (500, "forked"), "{answer:?}");
        assert!(answer.body.contains("line 3") && answer.body.contains("nowhere_to_be_found"), "{answer:?}");
        assert!(unfit(&worker, "f").contains("ModuleNotFoundError"));
    }
    worker.down();
}

#[test]
fn a_warm_up_call_that_fails_makes_the_node_unfit() {
    let mut worker = Worker::new();
    let yaml = "reuse-sandbox: false\nsnapshot: {warmup: {n: 0}}\n";
    worker.deploy("f", &[("f.py", "def f(event):\n    return 1 // event['n']\n"), ("ol.yaml", yaml)]);
    worker.up(&[]);
    assert_eq!(worker.result("f", r#"{"n": 1}"#), 1);
    assert!(unfit(&worker, "f").contains("its warm-up call failed: ZeroDivisionError"));
    assert_eq!(worker.call("f", r#"{"n": 1}"#).start(), "forked");
    worker.down();
}

/// The child must not serve as a zygote beside its parent.
#[test]
fn a_module_that_forks_and_comes_back_twice_is_imported_once() {
    let code =
        "import os\nPID = os.fork()\nif PID:\n    os.waitpid(PID, 0)\ndef f(event):\n    return PID > 0\n";
    let worker = worker(&[("f", code)], &[]);
    assert_eq!(worker.result("f", ""), true);
    wait_until("the snapshot node stands", crate::stage::GROWN_BOUND, || stands(&worker, "f"));
    assert_eq!(call(&worker, "f", "").json(), true);
    worker.down();
}

#[test]
fn settings_that_cannot_be_meant_are_refused_at_deploy() {
    let worker = Worker::new();
    let source =
        crate::support::source(&[("f.py", "def f(event): pass\n"), ("ol.yaml", "snapshot: {warm: 1}\n")]);
    let said = worker.refused(&["deploy", source.path().to_str().unwrap(), "-n", "f"]);
    assert!(said.contains("warm") && said.contains("ol.yaml"), "{said}");
}
