//! What a worker tells of itself: the steps of a call in its log, and in `/debug` the
//! memory of each leaf and what its nodes keep ready.

mod support;

use std::time::Duration;

use support::{Worker, wait_until};

const BOUND: Duration = Duration::from_secs(20);

/// The line of `/debug` below the sandbox whose line says `what`, if there is one.
fn below(worker: &Worker, what: &str) -> Option<String> {
    let debug = worker.get("/debug").body;
    let mut lines = debug.lines().skip_while(|line| !line.contains(what));
    Some(lines.nth(1)?.trim().to_owned())
}

/// The number before `unit` in a leaf's line.
fn number(line: &str, unit: &str) -> u64 {
    let before = line.split(unit).next().unwrap_or_else(|| panic!("no {unit} in {line}")).trim();
    let digits = before.rsplit(' ').next().unwrap();
    digits.parse().unwrap_or_else(|_| panic!("{digits:?} before {unit} in {line}"))
}

#[test]
fn a_leaf_shows_its_faults_its_memory_and_what_it_runs_paused_or_not() {
    let mut worker = Worker::new();
    let code =
        "own = []\ndef f(event):\n    own.append(bytearray(b'a' * (event['mb'] << 20)))\n    return 1\n";
    worker.deploy("eats", &[("f.py", code)]);
    worker.up(&["sandbox.pause_after_ms=60000"]);
    worker.result("eats", r#"{"mb": 1}"#);
    let small = below(&worker, " Leaf running").unwrap();
    worker.result("eats", r#"{"mb": 20}"#);
    let large = below(&worker, " Leaf running").unwrap();
    for line in [&small, &large] {
        assert!(line.starts_with("function eats of zygote 1: "), "{line}");
        assert!(number(line, " KiB shared") > 1_000 && number(line, " minor") > 100, "{line}");
    }
    let grew = number(&large, " KiB private") - number(&small, " KiB private");
    assert!((19 << 10..30 << 10).contains(&grew), "{small}\n{large}");
    assert!(number(&large, " KiB pss") >= number(&large, " KiB private"), "{large}");
    worker.down();

    worker.up(&["sandbox.pause_after_ms=1"]);
    worker.result("eats", r#"{"mb": 20}"#);
    wait_until("it is paused", BOUND, || worker.get("/debug").body.contains(" Leaf paused"));
    let paused = below(&worker, " Leaf paused").unwrap();
    assert!(number(&paused, " KiB private") > 20 << 10, "{paused}");
    worker.down();
}

#[test]
fn a_blank_shows_that_it_is_one_until_a_function_takes_it() {
    let mut worker = Worker::new();
    worker.deploy("f", &[("f.py", "def f(event):\n    return 1\n"), ("ol.yaml", "reuse-sandbox: false\n")]);
    worker.deploy("stays", &[("f.py", "def f(event):\n    return 2\n")]);
    worker.up(&["zygote.blanks=1"]);
    worker.result("f", "");
    let is_blank =
        || below(&worker, " Leaf running").is_some_and(|line| line.starts_with("a blank of zygote 1: "));
    wait_until("a blank stands", BOUND, is_blank);
    let line = below(&worker, " Leaf running").unwrap();
    assert!(number(&line, " KiB private") > 0 && number(&line, " minor") > 0, "{line}");
    let node = worker.get("/debug").body;
    assert!(node.contains(" blanks=1 of 1 to 1 "), "{node}");
    assert_eq!(worker.call("stays", "").start(), "blank");
    assert!(worker.get("/debug").body.contains("    function stays of zygote 1: "));
    worker.down();
}

#[test]
fn a_blank_whose_pages_are_beyond_its_budget_populates_none_and_its_node_says_so() {
    let mut worker = Worker::new();
    // Six MiB written before the first answer, at the same place in each leaf.
    let code = "def f(event):\n    global own\n    own = b'a' * (6 << 20)\n    return 1\n";
    worker.deploy("writes", &[("f.py", code), ("ol.yaml", "reuse-sandbox: false\n")]);
    let faults_of_a_blank = |worker: &Worker| {
        let line = below(worker, " Leaf running").filter(|line| line.starts_with("a blank"));
        line.map(|line| number(&line, " minor"))
    };
    let blank_after_calls = |worker: &Worker| {
        for _ in 0..3 {
            worker.result("writes", "");
            wait_until("a blank stands", BOUND, || faults_of_a_blank(worker).is_some());
        }
    };
    worker.up(&["zygote.blanks=1,limits.mem_mb=16"]);
    blank_after_calls(&worker);
    let node = worker.get("/debug").body;
    assert!(node.contains(" not prefaulted: ") && node.contains("more than a blank's 4096 KiB"), "{node}");
    worker.down();

    // The control: with more memory the same pages are within the budget.
    worker.up(&["zygote.blanks=1,limits.mem_mb=100"]);
    blank_after_calls(&worker);
    let node = worker.get("/debug").body;
    assert!(!node.contains("not prefaulted"), "{node}");
    worker.down();
}

#[test]
fn the_steps_of_a_call_are_in_the_log_where_the_settings_say_so() {
    let mut worker = Worker::with(&[("f", "def f(event):\n    return 1\n")]);
    worker.result("f", "");
    worker.down();
    assert!(!worker.worker_log().contains("invocation"), "{}", worker.worker_log());

    worker.up(&["trace.latency=true"]);
    assert_eq!(worker.call("f", "").start(), "forked");
    let step = |name: &str| {
        let log = worker.worker_log();
        let line = log.lines().find(|line| line.contains(&format!("step=\"{name}\""))).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no step {name} in {log}"))
    };
    wait_until("the steps are logged", BOUND, || worker.worker_log().contains("step=\"exec\""));
    for name in ["queue", "node", "cgroup", "fork", "specialize", "import", "exec"] {
        let line = step(name);
        assert!(line.contains("invocation{function=f start=\"forked\" sandbox="), "{line}");
        assert!(line.contains(" node=1}"), "{line}");
    }
    let us = step("fork").rsplit_once("us=").unwrap().1.trim().parse::<u64>().unwrap();
    assert!((1..10_000_000).contains(&us), "{us}");
    worker.down();
}
