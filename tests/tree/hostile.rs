//! Packages that misbehave at import: their node stands in spite of it, or is
//! unfit and says why; the function is served, and the worker does not notice.

use std::thread;
use std::time::{Duration, Instant};

use hosier_zygote::wire::{self, FromZygote, Ready};

use crate::site::{ONE_SHOT, SIX, ask, before, fixture, fixture_of, node, nodes, probe, probe_with, site};

#[test]
fn a_module_that_cannot_be_imported_is_reported_and_does_not_stop_its_node() {
    let exits = "raise SystemExit(3)";
    let pin = fixture_of("halffails", &[("halfbad", "1 / 0"), ("halfexits", exits), ("halfgood", "")]);
    let mut worker = site(None);
    probe(&worker, "half", &[&pin]);
    worker.up(&[]);
    assert_eq!(before(&worker, "half", &["halfbad", "halfexits", "halfgood"]), ["halfgood"]);
    assert!(node(&worker, &pin).sandbox.is_some());
    let debug = worker.get("/debug").body;
    for reason in ["halfbad failed: ZeroDivisionError: division by zero", "halfexits failed: SystemExit: 3"] {
        assert!(debug.contains(reason), "{debug}");
    }
    worker.down();
}

#[test]
fn a_hostile_package_makes_its_node_unfit_and_its_function_is_served_from_the_parent() {
    let thread =
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()";
    let forks = "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        time.sleep(1e6)";
    let daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        \
                  time.sleep(1e6)\n    os._exit(0)";
    let twin = "import os\nos.fork()";
    let hostile = [
        ("startsathread", thread, "2 threads after its imports"),
        ("exitsatimport", "import os\nos._exit(0)", "ended during its imports"),
        ("killsitself", "import os\nos.kill(os.getpid(), 9)", "ended during its imports"),
        ("stopsitself", "import os\nos.kill(os.getpid(), 19)", "longer than the 2 s"),
        ("eatsmemory", "x = [b'x' * (1 << 20) for _ in range(4096)]", "more memory than zygote.mem_mb"),
        ("closesitssocket", "import os\nos.close(3)", "ended during its imports"),
        ("writesgarbage", "import os\nos.write(3, b'garbage' * 99)", "said what it must not"),
        ("sendsnothing", "import os\nos.write(3, b'')\nos.dup2(2, 3)", "ended during its imports"),
        ("forksatimport", forks, "left 3 processes running"),
        ("leavesadaemon", daemon, "left 1 processes running"),
        ("forksatwin", twin, "processes running"),
    ];
    let mut worker = site(None);
    for (name, code, _) in hostile {
        probe(&worker, name, &[&fixture(name, code)]);
    }
    probe(&worker, "good", &[SIX]);
    worker.up(&["zygote.grow_timeout_s=2", "zygote.mem_mb=96"]);
    for (name, _, reason) in hostile {
        assert_eq!(before(&worker, name, &[name]), [] as [&str; 0], "{name}");
        let state = node(&worker, &format!("{name}==1.0")).state;
        assert!(state.starts_with("unfit: ") && state.contains(reason), "{name}: {state}");
    }
    assert_eq!(before(&worker, "good", &["six"]), ["six"]);
    let debug = worker.get("/debug").body;
    assert_eq!(debug.matches(" Zygote ").count(), 2, "the root and the good one stand: {debug}");
    worker.down();
}

#[test]
fn a_growth_that_never_ends_is_waited_for_once_by_all_who_need_it() {
    let pin = fixture("loopsforever", "while True: pass");
    let mut worker = site(None);
    let names = ["a", "b", "c"];
    for name in names {
        probe(&worker, name, &[&pin]);
    }
    worker.up(&["zygote.grow_timeout_s=2"]);
    let begun = Instant::now();
    thread::scope(|scope| {
        for name in names {
            scope.spawn(|| assert!(before(&worker, name, &["loopsforever"]).is_empty()));
        }
    });
    assert!(begun.elapsed() < Duration::from_millis(3900), "{:?}", begun.elapsed());
    assert!(node(&worker, &pin).state.contains("zygote.grow_timeout_s"));
    worker.down();
}

#[test]
fn a_node_that_starts_a_thread_after_its_imports_no_longer_serves() {
    let code = "import os, threading, time\nos.register_at_fork(after_in_parent=lambda: threading.Thread(\
                target=time.sleep, args=(1e6,), daemon=True).start())";
    let pin = fixture("latethread", code);
    let mut worker = site(None);
    probe_with(&worker, "late", &[&pin], ONE_SHOT);
    worker.up(&[]);
    assert_eq!(before(&worker, "late", &["latethread"]), ["latethread"]);
    assert_eq!(before(&worker, "late", &["latethread"]), [] as [&str; 0]);
    let state = node(&worker, &pin).state;
    assert!(state.contains("more than one thread"), "{state}");
    worker.down();
}

#[test]
fn a_template_below_an_unfit_node_is_not_grown() {
    let pin = fixture("exitsatimport", "import os\nos._exit(0)");
    let tree = r#"{"children": [{"packages": ["exitsatimport"], "children": [{"packages": ["six"]}]}]}"#;
    let mut worker = site(Some(tree));
    probe(&worker, "f", &[&pin, SIX]);
    probe(&worker, "g", &[&pin]);
    worker.up(&[]);
    for name in ["f", "g"] {
        assert_eq!(before(&worker, name, &["six", "exitsatimport"]), [] as [&str; 0]);
    }
    assert_eq!(nodes(&worker).iter().filter(|node| node.sandbox.is_some()).count(), 1);
    let log = worker.worker_log();
    assert_eq!(log.matches("a node is unfit").count(), 1, "{log}");
    worker.down();
}

#[test]
fn a_leaf_that_plays_zygote_ends_alone() {
    let mut worker = site(None);
    probe_with(&worker, "plays", &[SIX], "limits:\n  runtime_sec: 2\n");
    probe(&worker, "good", &[SIX]);
    worker.up(&[]);
    before(&worker, "good", &["six"]);
    // What a zygote says first is half a frame of a leaf; then it waits for orders that never come.
    for (play, status) in [("serve_forks(0, [], [], None, 0, False)", 504), ("born()", 502)] {
        let event = serde_json::json!({ "x": format!("__import__('hosier_native').{play}") });
        let answer = worker.call("plays", &event.to_string());
        assert_eq!(
            (answer.status, answer.json()["reason"].is_string()),
            (status, true),
            "{play}: {answer:?}"
        );
        assert_eq!(ask(&worker, "plays", "1 + 1").start(), "forked", "{play}");
    }
    assert_eq!(ask(&worker, "good", "len(CALLS)").body.trim(), "2");
    worker.down();
}

/// Plays a zygote's part on the wire, and hands the worker the worker's own pidfd for a child's.
const NAMES_THE_WORKER: &str = r"
import socket, struct
control = socket.socket(fileno=3)
control.send(bytes(READY))
while control.recvmsg(1 << 17, 4096)[0]:
    worker = control.getsockopt(socket.SOL_SOCKET, 77)  # SO_PEERPIDFD
    control.sendmsg([bytes([1])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack('i', worker))])
";

#[test]
fn a_zygote_that_names_another_process_as_its_child_has_nobody_killed() {
    let mut worker = site(None);
    let ready = wire::encode(&FromZygote::Ready(Ready { threads: 1, ..Ready::default() }));
    let code = NAMES_THE_WORKER.replace("READY", &format!("{ready:?}"));
    probe_with(&worker, "evil", &[&fixture("namestheworker", &code)], ONE_SHOT);
    probe(&worker, "good", &[SIX]);
    worker.up(&[]);
    let pid = worker.pid();
    for _ in 0..3 {
        // From the parent: its own node lies.
        assert_eq!(before(&worker, "evil", &["namestheworker"]), [] as [&str; 0]);
    }
    let state = node(&worker, "namestheworker==1.0").state;
    assert!(
        state.starts_with("unfit: ") && state.contains("said what it must not") && state.contains("it died"),
        "{state}"
    );
    assert_eq!(before(&worker, "good", &["six"]), ["six"]);
    assert_eq!(worker.pid(), pid);
    worker.down();
}
