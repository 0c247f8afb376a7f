//! A snapshot node is one version of one function's, and goes with it.

use crate::stage::{GROWN_BOUND, SNAPSHOT, call, line, processes, stands, take_snapshot, worker};
use crate::support::{alive, kill, wait_until};

/// Says when its module was imported.
const BORN: &str =
    "import time\nBORN = time.time_ns()\ndef f(event):\n    time.sleep(event or 0)\n    return BORN\n";

#[test]
fn functions_with_the_same_code_have_a_node_each() {
    let worker = worker(&[("f", BORN), ("g", BORN)], &[]);
    take_snapshot(&worker, "f", "0");
    let first = call(&worker, "f", "0").json();
    // The node of its twin stands, and is not for it.
    take_snapshot(&worker, "g", "0");
    let twin = call(&worker, "g", "0").json();
    assert_ne!(first, twin, "a module of its own");
    assert_eq!(call(&worker, "f", "0").json(), first);
    assert_eq!(call(&worker, "g", "0").json(), twin);
    worker.down();
}

#[test]
fn new_code_never_answers_with_what_the_old_imported() {
    let versions: Vec<_> =
        (0..4).map(|n| format!("VERSION = {n}\ndef f(event):\n    return VERSION\n")).collect();
    let worker = worker(&[("f", &versions[0])], &["registry_cache_ms=0", "zygote.blanks=2"]);
    for (n, code) in versions.iter().enumerate() {
        worker.deploy("f", &[("f.py", code), ("ol.yaml", SNAPSHOT)]);
        let first = worker.call("f", "");
        assert_eq!(first.json(), n, "{first:?}");
        assert_ne!(first.start(), "snapshot", "no node of its own stands yet");
        wait_until("the snapshot node stands", GROWN_BOUND, || stands(&worker, "f"));
        assert_eq!(call(&worker, "f", "").json(), n);
        let debug = worker.get("/debug").body;
        assert_eq!(debug.matches("snapshot of f (").count(), 1, "the old one is gone:\n{debug}");
    }
    // What changed is not the code.
    worker.deploy("f", &[("f.py", &versions[3]), ("ol.yaml", &format!("{SNAPSHOT}environment: {{A: b}}\n"))]);
    assert_ne!(worker.call("f", "").start(), "snapshot");
    worker.down();
}

#[test]
fn the_node_of_a_function_that_is_removed_goes() {
    let worker = worker(&[("f", BORN)], &["registry_cache_ms=0", "zygote.blanks=2"]);
    take_snapshot(&worker, "f", "0");
    let members = processes(&worker, "f");
    assert_eq!(worker.request("DELETE", "/registry/f", &[], b"").status, 200);
    wait_until("its node is gone", GROWN_BOUND, || line(&worker, "f").is_none());
    wait_until("its processes are gone", GROWN_BOUND, || {
        members.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    });
    assert_eq!(worker.call("f", "").status, 404);
    worker.down();
}

/// Directories of user namespaces' control groups, in the first hierarchy that has them.
fn namespaces(worker: &crate::support::Worker) -> usize {
    let prefix = format!("{}-", worker.group().unwrap());
    let count = |dir: &std::path::Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count()
    };
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    roots.iter().map(|root| count(root.as_ref())).max().unwrap_or(0)
}

#[test]
fn the_code_of_a_snapshot_is_root_of_a_user_namespace_that_nobody_else_is_in() {
    let worker = worker(&[("f", BORN), ("g", BORN)], &["registry_cache_ms=0"]);
    let before = namespaces(&worker);
    for name in ["f", "g"] {
        take_snapshot(&worker, name, "0");
        call(&worker, name, "0");
    }
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    let uid = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("Uid:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u32>().unwrap()
    };
    let (f, g) = (processes(&worker, "f")[1], processes(&worker, "g")[1]);
    let debug = worker.get("/debug").body;
    let line = debug.lines().find(|line| line.contains(" Zygote ")).unwrap();
    let cgroup = line.rsplit_once("cgroup ").unwrap().1;
    let procs = std::fs::read_to_string(format!("{cgroup}/cgroup.procs")).unwrap();
    let root: i32 = procs.lines().next().unwrap().parse().unwrap();
    let all = [namespace(f), namespace(g), namespace(root)];
    assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2], "{all:?}");
    assert!(uid(f).abs_diff(uid(g)) >= 65_536 && uid(f).abs_diff(uid(root)) >= 65_536);
    assert_eq!(namespaces(&worker), before + 2);
    for name in ["f", "g"] {
        assert_eq!(worker.request("DELETE", &format!("/registry/{name}"), &[], b"").status, 200);
    }
    wait_until("their control groups are gone", GROWN_BOUND, || namespaces(&worker) == before);
    worker.down();
}

#[test]
fn a_snapshot_node_that_is_killed_costs_no_request() {
    let worker = worker(&[("f", BORN)], &["zygote.blanks=2"]);
    take_snapshot(&worker, "f", "0");
    let first = call(&worker, "f", "0").json();
    std::thread::scope(|scope| {
        // One is running when its node's interpreter dies, and lives on under the stub.
        let running = scope.spawn(|| worker.result("f", "1.5"));
        std::thread::sleep(std::time::Duration::from_millis(500));
        kill(processes(&worker, "f")[1]);
        assert_eq!(running.join().unwrap(), first);
    });
    // Blanks that stood ready, then the node of its packages, then a node grown again.
    for _ in 0..6 {
        assert_eq!(worker.call("f", "0").status, 200);
    }
    wait_until("it was grown again", GROWN_BOUND, || {
        let answer = worker.call("f", "0");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.start() == "snapshot" && answer.json() != first
    });
    // Killed stub and all, it takes what waits along, and costs no request either.
    let stub = processes(&worker, "f")[0];
    kill(stub);
    wait_until("all below the stub are gone", GROWN_BOUND, || !alive(stub));
    for _ in 0..6 {
        let answer = worker.call("f", "0");
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    worker.down();
}

#[test]
fn a_snapshot_counts_as_a_node_and_takes_no_place_that_is_in_use() {
    // The root, and one more.
    let worker = worker(&[("f", BORN), ("g", BORN)], &["zygote.max_nodes=2"]);
    take_snapshot(&worker, "f", "0");
    for _ in 0..3 {
        assert_eq!(worker.call("g", "0").start(), "forked");
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    assert_eq!(line(&worker, "g"), None, "the other's was used just now");
    call(&worker, "f", "0");
    worker.down();
}

/// What a snapshot node is told goes past the node that it is forked from: that one's
/// memory is in the leaves of others.
#[test]
fn nothing_of_a_function_is_in_the_memory_of_another_that_shares_its_packages() {
    let code = "import os, re\n\
        def f(event):\n    found = 0\n    mem = os.open('/proc/self/mem', os.O_RDONLY)\n    \
        for line in open('/proc/self/maps'):\n        \
        ends, mode = line.split(' ')[:2]\n        start, end = (int(number, 16) for number in ends.split('-'))\n        \
        if 'r' not in mode or '[v' in line:\n            continue\n        \
        found += len(re.findall(rb'leak-me-[0-9]{20}', os.pread(mem, end - start, start)))\n    os.close(mem)\n    return found\n";
    let mut worker = crate::support::Worker::new();
    // Many and long, for what is freed is partly used again, its beginning first.
    let secrets: String = (0..50).map(|n| format!("  S{n}: {0:.<64}leak-me-{n:020}\n", "")).collect();
    let keeper = format!("{SNAPSHOT}environment:\n{secrets}");
    worker.deploy("keeper", &[("f.py", code), ("ol.yaml", &keeper)]);
    worker.deploy("other", &[("f.py", code), ("ol.yaml", "reuse-sandbox: false\nlimits: {mem_mb: 200}\n")]);
    worker.up(&[]);
    take_snapshot(&worker, "keeper", "");
    assert_ne!(call(&worker, "keeper", "").json(), 0, "its own memory has it");
    assert_eq!(worker.result("other", ""), 0);
    worker.down();
}
