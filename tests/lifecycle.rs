//! How workers, sandboxes and code come and go: killed, stopped, idle, crowded,
//! replaced. What is measured is printed (`cargo nextest run --no-capture`).

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Answer, Worker, alive, wait_until};

const HELLO: &str = "def f(event):\n    return 'hello'\n";
/// Takes as long as it is told.
const SLEEPER: &str = "
import time
def f(event):
    time.sleep(event.get('s', 0))
    return 'slept'
";
/// How long after a `kill -9` something may be left. The promise is 1 s, on a
/// machine that does nothing else.
const KILLED_BOUND: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_secs(10);

/// Counts how often its sandbox was used.
const COUNTER: &str = "
calls = 0
def f(event):
    global calls
    calls += 1
    return calls
";

/// A worker with these functions and no leaf ahead of need: each is of a function.
fn plain(functions: &[(&str, &str)]) -> Worker {
    let mut worker = Worker::new();
    for (name, code) in functions {
        worker.deploy(name, &[("f.py", code)]);
    }
    worker.up(&["zygote.blanks=0"]);
    worker
}

fn sleep(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// The children of a process with this name.
fn children(parent: i32, name: &str) -> Vec<i32> {
    let child = |pid: i32| -> Option<i32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (head, tail) = stat.rsplit_once(") ")?;
        let is_child = tail.split(' ').nth(1)?.parse() == Ok(parent);
        (is_child && head.ends_with(&format!("({name}"))).then_some(pid)
    };
    pids().into_iter().filter_map(child).collect()
}

fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect()
}

fn spawner(worker: i32) -> i32 {
    let found = children(worker, "hosier-spawner");
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

/// How many sandboxes `/debug` shows with this text.
fn count(worker: &Worker, what: &str) -> usize {
    worker
        .get("/debug")
        .body
        .lines()
        .filter(|line| line.contains("  sandbox ") && line.contains(what))
        .count()
}

/// The processes in the control group of each sandbox with this text.
fn members(worker: &Worker, what: &str) -> Vec<i32> {
    let picture = worker.get("/debug").body;
    let groups = picture.lines().filter(|line| line.contains("  sandbox ") && line.contains(what));
    let groups = groups.filter_map(|line| Some(line.rsplit_once("cgroup ")?.1.trim()));
    let read = |group| fs::read_to_string(format!("{group}/cgroup.procs")).unwrap_or_default();
    groups.flat_map(|group| read(group).lines().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()).collect()
}

/// What is left, files apart.
fn left(worker: &Worker) -> Vec<String> {
    worker.remains().into_iter().filter(|line| !line.starts_with("file ")).collect()
}

/// Waits until nothing is left of a killed worker; how long that took.
fn gone(worker: &Worker, killed: Instant) -> Duration {
    loop {
        let left = left(worker);
        if left.is_empty() {
            return killed.elapsed();
        }
        assert!(killed.elapsed() < KILLED_BOUND, "left behind:\n{}", left.join("\n"));
        sleep(1);
    }
}

#[test]
fn a_busy_worker_that_is_killed_leaves_nothing_alone() {
    let mut worker = Worker::with(&[("busy", SLEEPER), ("paused", HELLO), ("stuck", SLEEPER)]);
    // Installed by the worker, at the first call.
    let heavy = worker.path().join("registry/heavy");
    fs::create_dir_all(&heavy).unwrap();
    fs::write(heavy.join("f.py"), HELLO).unwrap();
    fs::write(heavy.join("requirements.txt"), "pandas==2.2.3\nnumpy==2.2.4\n").unwrap();
    worker.result("paused", "");
    wait_until("one is paused", STEP, || count(&worker, "Leaf paused") == 1);
    // And some may wait ahead of need.
    let (pid, over) = (worker.pid(), AtomicBool::new(false));
    let took = std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let _ = worker.try_request("POST", "/run/busy", &[], b"{\"s\": 0.001}");
                }
            });
        }
        scope.spawn(|| worker.try_request("POST", "/run/heavy", &[], b""));
        scope.spawn(|| worker.try_request("POST", "/run/stuck", &[], b"{\"s\": 1000}"));
        wait_until("one is installing, one at work", STEP, || {
            count(&worker, "Command running") > 0 && count(&worker, "Leaf running") > 0
        });
        sleep(300);
        assert!(count(&worker, "Command running") > 0 && count(&worker, "Leaf paused") == 1);
        let killed = Instant::now();
        support::kill(pid);
        let took = gone(&worker, killed);
        over.store(true, Ordering::Relaxed);
        took
    });
    eprintln!("measured: nothing left {took:?} after kill -9 of the worker");
    worker.census();
    let begun = Instant::now();
    worker.up(&[]);
    eprintln!("measured: up again in {:?}", begun.elapsed());
    worker.result("paused", "");
    worker.down();
}

#[test]
fn up_right_after_a_kill_works() {
    let mut worker = Worker::with(&[("hello", HELLO)]);
    for _ in 0..3 {
        worker.result("hello", "");
        support::kill(worker.pid());
        worker.up(&[]);
    }
    worker.result("hello", "");
    worker.down();
}

#[test]
fn a_worker_whose_spawner_is_killed_stops_with_an_error_and_leaves_nothing() {
    let mut worker = plain(&[("hello", HELLO), ("slow", SLEEPER)]);
    worker.result("hello", "");
    // Its code is compiled by then.
    worker.result("slow", r#"{"s": 0}"#);
    let pid = worker.pid();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| worker.call("slow", r#"{"s": 1000}"#));
        wait_until("its sandbox is there", STEP, || worker.get("/debug").body.contains("function slow of"));
        sleep(200);
        support::kill(spawner(pid));
        let answer = slow.join().unwrap();
        assert_eq!((answer.status, &answer.json()["reason"]), (502, &"died".into()), "{answer:?}");
    });
    wait_until("the worker is gone", STEP, || !alive(pid));
    assert!(worker.worker_log().contains("the spawner process is gone"), "{}", worker.worker_log());
    worker.census();
    worker.up(&[]);
    worker.result("hello", "");
    worker.down();
}

#[test]
fn what_is_left_when_both_are_killed_is_removed_by_the_next() {
    let mut worker = Worker::with(&[("hello", HELLO)]);
    let kill_both = |worker: &Worker| {
        worker.result("hello", "");
        let pid = worker.pid();
        let spawner = spawner(pid);
        // The spawner first: it must not live to clear up.
        support::kill(spawner);
        support::kill(pid);
        wait_until("both are gone", STEP, || !alive(pid) && !alive(spawner));
        wait_until("the kernel took all processes", STEP, || worker.processes().is_empty());
        let left = left(worker).join("\n");
        assert!(left.contains("cgroup"), "nothing was left to remove: {left}");
    };
    kill_both(&worker);
    worker.ok(&["cleanup"]);
    worker.census();
    worker.up(&[]);
    kill_both(&worker);
    worker.up(&[]);
    worker.result("hello", "");
    worker.down();
}

/// Signals a worker with requests on their way, queued ones among them.
fn stopped_by(signal: Signal) {
    let worker = Worker::with(&[("a", SLEEPER), ("b", SLEEPER), ("hello", HELLO)]);
    worker.result("hello", "");
    let pid = worker.pid();
    std::thread::scope(|scope| {
        let calls: Vec<_> = ["a", "a", "b", "b", "b"]
            .map(|name| scope.spawn(|| worker.call(name, r#"{"s": 0.4}"#)))
            .into_iter()
            .collect();
        sleep(200);
        kill(Pid::from_raw(pid), signal).unwrap();
        for call in calls {
            let answer = call.join().unwrap();
            assert_eq!((answer.status, answer.body.as_str()), (200, "\"slept\""), "{answer:?}");
        }
    });
    let answered = Instant::now();
    wait_until("the worker is gone", STEP, || !alive(pid));
    eprintln!("measured: gone {:?} after the last answer", answered.elapsed());
    assert!(answered.elapsed() < Duration::from_secs(2), "{:?}", answered.elapsed());
    worker.census();
}

#[test]
fn sigterm_lets_requests_end_and_leaves_nothing() {
    stopped_by(Signal::SIGTERM);
}

#[test]
fn sigint_lets_requests_end_and_leaves_nothing() {
    stopped_by(Signal::SIGINT);
}

#[test]
fn down_takes_no_longer_than_it_must() {
    let worker = Worker::with(&[("hello", HELLO)]);
    worker.result("hello", "");
    let begun = Instant::now();
    worker.ok(&["down"]);
    let took = begun.elapsed();
    eprintln!("measured: down in {took:?}");
    assert!(took < Duration::from_millis(700), "{took:?}");
    worker.census();
}

/// What grows if something leaks: KiB, descriptors of each process, control groups.
fn size(worker: &Worker, pids: &[i32]) -> (u64, Vec<usize>, usize) {
    let status = fs::read_to_string(format!("/proc/{}/status", pids[0])).unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let rss = rss.trim().trim_end_matches(" kB").parse().unwrap();
    let fds = pids.iter().map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()).collect();
    let groups = worker.remains().iter().filter(|line| line.starts_with("cgroup ")).count();
    let members = ["unified", "memory"].map(|root| below(&format!("/sys/fs/cgroup/{root}"), worker));
    (rss, fds, groups + members[0] + members[1])
}

/// Directories of sandboxes below the worker's own in one hierarchy.
fn below(root: &str, worker: &Worker) -> usize {
    let group = worker.group().unwrap();
    let own = fs::read_dir(root).into_iter().flatten().flatten();
    let own = own.filter(|entry| entry.file_name().to_string_lossy().starts_with(group));
    own.map(|entry| {
        fs::read_dir(entry.path()).unwrap().flatten().filter(|entry| entry.path().is_dir()).count()
    })
    .sum()
}

#[test]
fn a_thousand_cold_starts_leave_nothing_alone() {
    let mut worker = Worker::new();
    worker.deploy("cold", &[("f.py", COUNTER), ("ol.yaml", "reuse-sandbox: false\n")]);
    worker.up(&["zygote.blanks=0"]);
    let start = |times: usize| {
        for _ in 0..times {
            let answer = worker.call("cold", "");
            assert_eq!((answer.status, answer.start(), answer.body.as_str()), (200, "forked", "1"));
        }
        wait_until("the last is gone", STEP, || count(&worker, "Leaf") == 0);
        sleep(300);
    };
    start(100);
    let pid = worker.pid();
    let mut pids = vec![pid, spawner(pid)];
    pids.extend(members(&worker, "Zygote"));
    assert!(pids.len() >= 4, "worker, spawner, stub and zygote: {pids:?}");
    let before = size(&worker, &pids);
    let begun = Instant::now();
    start(1000);
    let each = begun.elapsed() / 1000;
    let after = size(&worker, &pids);
    eprintln!("measured: {each:?} each; (KiB, descriptors, cgroups) from {before:?} to {after:?}");
    assert!(after.0 < before.0 + 8 * 1024, "the worker grew by {} KiB", after.0 - before.0);
    // Of the worker's, one or two are a connection on its way out.
    assert!(after.1[0] <= before.1[0] + 2, "descriptors of the worker");
    assert_eq!(after.1[1..], before.1[1..], "descriptors of spawner, stub and zygote");
    assert_eq!(after.2, before.2, "control groups");
    worker.down();
}

/// Processor time of a process in ms, its ended threads included.
fn cpu_ms(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let times = stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2);
    times.map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>() * 10
}

#[test]
fn ten_paused_sandboxes_use_no_processor_alone() {
    let names: Vec<String> = (0..10).map(|number| format!("f{number}")).collect();
    let functions: Vec<_> = names.iter().map(|name| (name.as_str(), HELLO)).collect();
    let worker = Worker::with(&functions);
    for name in &names {
        worker.result(name, "");
    }
    wait_until("all are paused", STEP, || count(&worker, "Leaf paused") == 10);
    let pid = worker.pid();
    let mut pids = vec![pid, spawner(pid)];
    pids.extend(members(&worker, "  sandbox "));
    assert!(pids.len() >= 14, "worker, spawner, stub, zygote and ten leaves: {pids:?}");
    sleep(1000);
    let used = || pids.iter().map(|pid| cpu_ms(*pid)).sum::<u64>();
    let (begun, before) = (Instant::now(), used());
    sleep(10_000);
    let percent = (used() - before) as f64 / begun.elapsed().as_millis() as f64 * 100.0;
    eprintln!("measured: {percent:.4} % of a core, {before} ms before");
    assert!(before > 0 && percent < 0.5, "{percent} % of a core");
    worker.down();
}

#[test]
fn more_functions_than_places_are_all_served() {
    let names: Vec<String> = (0..7).map(|number| format!("f{number}")).collect();
    let functions: Vec<_> = names.iter().map(|name| (name.as_str(), SLEEPER)).collect();
    let mut worker = Worker::new();
    for (name, code) in functions {
        worker.deploy(name, &[("f.py", code)]);
    }
    worker.up(&["sandbox.max_sandboxes=3"]);
    let most = AtomicUsize::new(0);
    let call = |name: &str| {
        let answer = worker.call(name, r#"{"s": 0.02}"#);
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
        most.fetch_max(
            worker.get("/stats").json()["sandboxes"].as_u64().unwrap() as usize,
            Ordering::Relaxed,
        );
    };
    for _ in 0..2 {
        names.iter().for_each(|name| call(name));
    }
    std::thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| (0..10).for_each(|_| call(name)));
        }
    });
    assert!(most.load(Ordering::Relaxed) <= 3, "{most:?} at a time");
    worker.down();
}

#[test]
fn one_place_is_enough() {
    let mut worker = Worker::new();
    worker.deploy("a", &[("f.py", HELLO)]);
    worker.deploy("b", &[("f.py", HELLO)]);
    worker.up(&["sandbox.max_sandboxes=1"]);
    for name in ["a", "b", "a", "b"] {
        worker.result(name, "");
    }
    worker.down();
}

#[test]
fn where_all_are_busy_a_request_waits_for_the_next_and_then_is_told_to_come_back() {
    let mut worker = Worker::new();
    for name in ["a", "b", "c"] {
        worker.deploy(name, &[("f.py", SLEEPER)]);
    }
    worker.up(&["sandbox.max_sandboxes=2"]);
    let with_busy = |s: u32| {
        std::thread::scope(|scope| {
            let event = format!(r#"{{"s": {s}}}"#);
            let busy = ["a", "b"].map(|name| {
                let event = event.clone();
                scope.spawn(|| {
                    let event = event;
                    worker.call(name, &event)
                })
            });
            sleep(500);
            let answer = worker.call("c", "");
            for call in busy {
                assert_eq!(call.join().unwrap().status, 200);
            }
            answer
        })
    };
    assert_eq!(with_busy(2).status, 200);
    let refused = with_busy(6);
    assert_eq!((refused.status, &refused.json()["reason"]), (429, &"no-sandbox".into()), "{refused:?}");
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(worker.result("c", ""), "slept");
    worker.down();
}

#[test]
fn an_idle_sandbox_is_given_up_after_its_time() {
    let mut worker = Worker::new();
    worker.deploy("hello", &[("f.py", HELLO)]);
    worker.up(&["sandbox.idle_ttl_s=1", "zygote.blanks=0"]);
    worker.result("hello", "");
    wait_until("it is paused", STEP, || count(&worker, "Leaf paused") == 1);
    let begun = Instant::now();
    wait_until("it is given up", Duration::from_secs(4), || count(&worker, "Leaf") == 0);
    assert!(begun.elapsed() > Duration::from_millis(500), "{:?}", begun.elapsed());
    assert_eq!(worker.call("hello", "").start(), "forked");
    worker.down();
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let mut worker = Worker::new();
    worker.deploy("slow", &[("f.py", SLEEPER)]);
    worker.up(&["sandbox.queue_len=2"]);
    worker.result("slow", "");
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..10).map(|_| scope.spawn(|| worker.call("slow", r#"{"s": 0.3}"#))).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let (served, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert!(
        served.len() >= 3 && served.len() <= 5,
        "one served, two queued, at most two between: {answers:?}"
    );
    for answer in refused {
        assert_eq!((answer.status, &answer.json()["reason"]), (429, &"queue-full".into()), "{answer:?}");
        assert_eq!(answer.header("retry-after"), "1");
    }
    worker.result("slow", "");
    worker.down();
}

#[test]
fn clients_that_leave_cost_the_next_one_little() {
    let worker = Worker::with(&[("slow", SLEEPER)]);
    worker.result("slow", "");
    let leave = || {
        let mut stream = TcpStream::connect(("127.0.0.1", worker.port)).unwrap();
        let body = r#"{"s": 0.3}"#;
        let length = body.len();
        write!(stream, "POST /run/slow HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}")
            .unwrap();
        sleep(20);
        // Unread input or not: a reset, as a client makes that is killed.
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
    };
    for _ in 0..20 {
        leave();
    }
    let begun = Instant::now();
    assert_eq!(worker.result("slow", ""), "slept");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(2), "20 x 0.3 s would be 6: {took:?}");
    // One that never sends all of its request.
    let mut half = TcpStream::connect(("127.0.0.1", worker.port)).unwrap();
    half.write_all(b"POST /run/slow HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{").unwrap();
    worker.result("slow", "");
    half.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = String::new();
    let _ = half.read_to_string(&mut rest);
    worker.result("slow", "");
    worker.down();
}

#[test]
fn without_reuse_each_request_has_a_sandbox_of_its_own() {
    let mut worker = Worker::new();
    worker.deploy("own", &[("f.py", COUNTER), ("ol.yaml", "reuse-sandbox: false\n")]);
    worker.deploy("same", &[("f.py", COUNTER)]);
    worker.up(&[]);
    for number in 1..=10 {
        let own = worker.call("own", "");
        assert!(["blank", "forked"].contains(&own.start()) && own.body == "1", "{own:?}");
        assert_eq!(worker.result("same", ""), number, "the control: this one is used again");
    }
    worker.down();
}

#[test]
fn a_paused_sandbox_that_is_killed_is_replaced() {
    let worker = plain(&[("hello", HELLO)]);
    for _ in 0..3 {
        worker.result("hello", "");
        wait_until("it is paused", STEP, || count(&worker, "Leaf paused") == 1);
        let pid = members(&worker, "Leaf paused")[0];
        support::kill(pid);
        while alive(pid) {}
        // The worker may not have noticed yet.
        let answer = worker.call("hello", "");
        assert_eq!((answer.status, answer.start()), (200, "forked"), "{answer:?}");
    }
    worker.down();
}

#[test]
fn a_zygote_that_is_killed_is_grown_again() {
    let worker = plain(&[("a", COUNTER), ("b", COUNTER)]);
    worker.result("a", "");
    for pid in members(&worker, "Zygote") {
        // The interpreter, not the stub that its leaves live under.
        if fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().contains("hosier_zygote")
            && children(pid, "python3").is_empty()
            && status(pid, "NSpid").ends_with("\t2")
        {
            support::kill(pid);
        }
    }
    assert_eq!(worker.result("b", ""), 1);
    assert_eq!(worker.result("a", ""), 2, "its leaf lives on");
    worker.down();
}

fn status(pid: i32, key: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned()
}

/// A version whose parts are read at import, at the call, and late in it.
fn version(number: u32) -> [(&'static str, String); 4] {
    let code = format!(
        "
import time
import early
def f(event):
    time.sleep(event.get('s', 0))
    import late
    with open('/handler/data') as file:
        return [{number}, early.version, late.version, int(file.read())]
"
    );
    let module = format!("version = {number}\n");
    [("f.py", code), ("early.py", module.clone()), ("late.py", module), ("data", number.to_string())]
}

fn deploy(worker: &Worker, name: &str, number: u32) {
    let files = version(number);
    let files: Vec<_> = files.iter().map(|(file, text)| (*file, text.as_str())).collect();
    worker.deploy(name, &files);
}

/// The one version that all of an answer comes from.
fn whole(answer: &Answer) -> u64 {
    assert_eq!(answer.status, 200, "{answer:?}");
    let parts: BTreeSet<u64> =
        answer.json().as_array().unwrap().iter().map(|part| part.as_u64().unwrap()).collect();
    assert_eq!(parts.len(), 1, "mixed: {answer:?}");
    *parts.first().unwrap()
}

#[test]
fn new_code_is_seen_in_time_and_never_mixed_with_the_old() {
    let mut worker = Worker::new();
    for name in ["kept", "fresh"] {
        deploy(&worker, name, 1);
    }
    worker.up(&["registry_cache_ms=200"]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for name in ["kept", "kept", "fresh"] {
            let (worker, over) = (&worker, &over);
            scope.spawn(move || {
                let mut last = 0;
                while !over.load(Ordering::Relaxed) {
                    let seen = whole(&worker.call(name, r#"{"s": 0.005}"#));
                    assert!(seen >= last, "{seen} after {last}");
                    last = seen;
                }
            });
        }
        for number in 2..=5 {
            deploy(&worker, "kept", number);
            deploy(&worker, "fresh", number);
            sleep(250);
            // A request that came later is answered by the new code.
            assert_eq!(whole(&worker.call("kept", "")), u64::from(number));
            assert_eq!(whole(&worker.call("fresh", "")), u64::from(number));
        }
        over.store(true, Ordering::Relaxed);
    });
    worker.down();
}

#[test]
fn old_code_stays_whole_until_its_last_request_is_answered() {
    let mut worker = Worker::new();
    deploy(&worker, "f", 1);
    worker.up(&["registry_cache_ms=100"]);
    whole(&worker.call("f", ""));
    std::thread::scope(|scope| {
        // One that is served and one that waits for it, in the old instance.
        let old = [0, 1].map(|_| {
            let call = scope.spawn(|| whole(&worker.call("f", r#"{"s": 1}"#)));
            sleep(50);
            call
        });
        deploy(&worker, "f", 2);
        sleep(100);
        assert_eq!(whole(&worker.call("f", "")), 2);
        for call in old {
            assert_eq!(call.join().unwrap(), 1);
        }
    });
    let code = worker.path().join("worker/code/f");
    wait_until("the old code is removed", STEP, || fs::read_dir(&code).unwrap().count() == 1);
    assert_eq!(whole(&worker.call("f", "")), 2);
    worker.down();
}

#[test]
fn a_removed_function_ends_its_requests_and_comes_back() {
    let mut worker = Worker::new();
    deploy(&worker, "f", 1);
    worker.up(&["registry_cache_ms=100"]);
    std::thread::scope(|scope| {
        let old = scope.spawn(|| whole(&worker.call("f", r#"{"s": 1}"#)));
        sleep(300);
        assert_eq!(worker.request("DELETE", "/registry/f", &[], b"").status, 200);
        assert_eq!(worker.call("f", "").status, 404);
        deploy(&worker, "f", 2);
        assert_eq!(whole(&worker.call("f", "")), 2);
        assert_eq!(old.join().unwrap(), 1);
    });
    assert_eq!(whole(&worker.call("f", "")), 2);
    worker.down();
}
