//! Leaves forked ahead of need: what a start takes is a blank, and nothing that
//! a blank is may be noticed, but for the time.

mod support;

use std::time::Duration;

use support::{Answer, Worker, kill, wait_until};

const ONCE: &str = "reuse-sandbox: false\n";

/// A worker that keeps blanks, with functions that each have a fresh sandbox a call.
fn worker(functions: &[(&str, &str)], options: &[&str]) -> Worker {
    let mut worker = Worker::new();
    for (name, code) in functions {
        worker.deploy(name, &[("f.py", code), ("ol.yaml", ONCE)]);
    }
    let options: Vec<_> = ["zygote.blanks=2"].iter().chain(options).copied().collect();
    worker.up(&options);
    worker
}

/// Blanks that the root node has ready.
fn blanks(worker: &Worker) -> usize {
    let debug = worker.get("/debug").body;
    let at = debug.find("blanks=").expect("a node") + "blanks=".len();
    debug[at..].split(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn wait_for_blank(worker: &Worker) {
    wait_until("a blank is ready", Duration::from_secs(20), || blanks(worker) > 0);
}

/// A call that finds a blank ready.
fn call_blank(worker: &Worker, name: &str, event: &str) -> Answer {
    wait_for_blank(worker);
    let answer = worker.call(name, event);
    assert_eq!((answer.status, answer.start()), (200, "blank"), "{answer:?}");
    answer
}

#[test]
fn a_start_takes_a_blank_once_its_node_is_in_use() {
    let worker = worker(&[("f", "def f(event):\n    return 1\n")], &[]);
    assert_eq!(worker.call("f", "").start(), "forked", "nothing was asked for before");
    for _ in 0..5 {
        let answer = call_blank(&worker, "f", "");
        assert!(answer.header("server-timing").contains("specialize;dur="), "{answer:?}");
    }
    worker.down();
}

#[test]
fn a_blank_has_seen_nothing_of_another_function() {
    let leave = "import os, sys, builtins\n\
        def f(event):\n    builtins.trace = 1\n    os.environ['TRACE'] = '1'\n    sys.modules['trace_of'] = sys\n    \
        open('/tmp/trace', 'w').close()\n    open('/dev/shm/trace', 'w').close()\n    return os.getpid()\n";
    let look = "import os, sys, builtins\n\
        def f(event):\n    return [hasattr(builtins, 'trace'), 'TRACE' in os.environ, 'trace_of' in sys.modules, \
        os.listdir('/tmp'), os.listdir('/dev/shm'), os.listdir('/host'), sorted(os.listdir('/handler'))]\n";
    let worker = worker(&[("leave", leave), ("look", look)], &[]);
    worker.call("leave", "");
    for _ in 0..3 {
        call_blank(&worker, "leave", "");
        let seen = call_blank(&worker, "look", "").json();
        let nothing = serde_json::json!([false, false, false, [], [], []]);
        assert_eq!(seen.as_array().unwrap()[..6], nothing.as_array().unwrap()[..], "{seen}");
        assert!(seen[6].to_string().contains("f.py"), "{seen}");
    }
    worker.down();
}

#[test]
fn a_blank_behind_its_walls_is_confined_like_any_leaf() {
    let status = "def f(event):\n    \
        return {k: v.strip() for k, v in (l.split(':', 1) for l in open('/proc/self/status'))}\n";
    let worker = worker(&[("status", status)], &[]);
    worker.call("status", "");
    let status = call_blank(&worker, "status", "").json();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), (Some("1"), Some("2")));
    assert_ne!(status["Uid"].as_str().unwrap().split('\t').next(), Some("0"));
    worker.down();
}

#[test]
fn a_blank_that_waits_has_given_up_everything() {
    let worker = worker(&[("f", "def f(event):\n    return 1\n")], &[]);
    worker.call("f", "");
    wait_for_blank(&worker);
    let prepared = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().split_whitespace().next().unwrap_or_default().to_owned()
        };
        let sets = ["CapPrm:", "CapEff:", "CapInh:", "CapBnd:", "CapAmb:"];
        let none = sets.map(|set| field(set) == "0000000000000000");
        let closed = field("NoNewPrivs:") == "1" && field("Seccomp_filters:") == "2";
        none.iter().all(|held| *held) && closed && field("Uid:") != "0"
    };
    // It stands before it has done this.
    wait_until("the blanks are prepared", Duration::from_secs(5), || {
        let waiting = leaves(&worker);
        !waiting.is_empty() && waiting.iter().all(prepared)
    });
    worker.down();
}

#[test]
fn siblings_that_waited_together_do_not_share_randomness() {
    let code = "import random, uuid, os\n\
        def f(event):\n    return [random.random(), str(uuid.uuid4()), os.urandom(8).hex()]\n";
    let worker = worker(&[("f", code)], &["zygote.blanks=4"]);
    worker.call("f", "");
    let drawn: Vec<_> = (0..12).map(|_| call_blank(&worker, "f", "").json()).collect();
    for source in 0..3 {
        let different: std::collections::BTreeSet<_> =
            drawn.iter().map(|draw| draw[source].to_string()).collect();
        assert_eq!(different.len(), drawn.len(), "source {source}: {drawn:?}");
    }
    worker.down();
}

#[test]
fn a_function_that_takes_a_blank_has_its_own_limits() {
    let worker = worker(&[("first", "def f(event):\n    return 1\n")], &[]);
    let bomb = "def f(event):\n    return len(bytearray(event['mb'] << 20))\n";
    worker.deploy("bomb", &[("f.py", bomb), ("ol.yaml", "reuse-sandbox: false\nlimits: {mem_mb: 100}\n")]);
    worker.call("first", "");
    call_blank(&worker, "bomb", r#"{"mb": 70}"#);
    wait_for_blank(&worker);
    let answer = worker.call("bomb", r#"{"mb": 300}"#);
    assert!([500, 502].contains(&answer.status), "{answer:?}");
    assert_eq!(call_blank(&worker, "first", "").json(), 1);
    worker.down();
}

#[test]
fn a_blank_that_is_killed_while_it_waits_costs_no_request() {
    let worker = worker(&[("f", "def f(event):\n    return 1\n")], &[]);
    worker.call("f", "");
    for _ in 0..3 {
        wait_for_blank(&worker);
        // Nothing runs a function: every leaf there is waits.
        for pid in leaves(&worker) {
            kill(pid);
        }
        assert_eq!(worker.result("f", ""), 1);
    }
    worker.down();
}

#[test]
fn blanks_give_way_to_functions_that_need_their_places() {
    let code = "def f(event):\n    return 1\n";
    let names = ["a", "b", "c"];
    let mut worker = Worker::new();
    for name in names {
        worker.deploy(name, &[("f.py", code)]);
    }
    worker.up(&["zygote.blanks=4", "sandbox.max_sandboxes=3"]);
    for _ in 0..3 {
        for name in names {
            assert_eq!(worker.result(name, ""), 1, "{name}");
        }
    }
    worker.down();
}

#[test]
fn a_pool_that_runs_empty_is_refilled_beside_starts_that_last() {
    let slow = "import time\ndef f(event):\n    time.sleep(event.get('s', 0))\n    return 1\n";
    // They wait for one another: there is one instance.
    let worker = worker(&[("slow", slow)], &["sandbox.queue_max_wait_ms=60000"]);
    worker.call("slow", "");
    std::thread::scope(|scope| {
        let starts: Vec<_> = (0..4)
            .map(|_| {
                wait_for_blank(&worker);
                let start = scope.spawn(|| worker.call("slow", r#"{"s": 4}"#).start().to_owned());
                wait_until("it runs", Duration::from_secs(5), || {
                    worker.get("/debug").body.contains("function slow of zygote 1: ")
                });
                start
            })
            .collect();
        assert!(starts.iter().all(|start| !start.is_finished()), "the control: all last until here");
        for start in starts {
            assert_eq!(start.join().unwrap(), "blank");
        }
    });
    worker.down();
}

/// The processes of the sandboxes that `/debug` calls leaves.
fn leaves(worker: &Worker) -> Vec<i32> {
    let debug = worker.get("/debug").body;
    let groups =
        debug.lines().filter(|line| line.contains(" Leaf ")).filter_map(|line| line.split("cgroup ").nth(1));
    let members = groups.map(|group| format!("{}/cgroup.procs", group.trim()));
    let texts = members.filter_map(|file| std::fs::read_to_string(file).ok());
    texts.flat_map(|text| text.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

#[test]
fn with_every_mechanism_off_functions_still_answer() {
    let off = "zygote.blanks=0,zygote.solidify=false,zygote.prefault=false,zygote.snapshot=false,zygote.learn=false,\
        zygote.immortal=false,zygote.gc_freeze=false,zygote.replicas=1,zygote.max_forks=0,zygote.max_age_s=0,sandbox.cgroup_pool=0,\
        sandbox.netns_pool=0,sandbox.rootfs=rw,sandbox.namespaces.ipc=false,sandbox.namespaces.uts=false,\
        sandbox.namespaces.cgroup=false,sandbox.namespaces.net=false";
    let mut worker = Worker::new();
    let code = "import os\ndef f(event):\n    open('/anywhere', 'w').close()\n    return os.getuid() != 0\n";
    worker.deploy("once", &[("f.py", code), ("ol.yaml", ONCE)]);
    worker.deploy("snapshot", &[("f.py", code), ("ol.yaml", "reuse-sandbox: false\nsnapshot: true\n")]);
    worker.up(&[off]);
    for name in ["once", "snapshot", "once", "snapshot"] {
        let answer = worker.call(name, "");
        assert_eq!(
            (answer.status, answer.start(), answer.json()),
            (200, "forked", true.into()),
            "{answer:?}"
        );
    }
    worker.down();
}
