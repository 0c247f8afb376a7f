//! What clients may do to the worker: nothing but fail themselves. Silent ones, slow ones,
//! greedy ones, and more calls than can be served.
//!
//! ```text
//! attackers hold connections, heads or bodies ─▶ a healthy call is answered ─▶ they let go ─▶ nothing is kept
//! ```

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use support::{Answer, Worker, wait_until};

const HELLO: &str = "def f(event):\n    return {'hello': event.get('name', 'world')}\n";
/// Counts its calls and sleeps.
const COUNTER: &str = "
import time
calls = 0
def f(event):
    global calls
    calls += 1
    time.sleep(event.get('s', 0))
    return calls
";
/// Nothing healthy takes longer on a loaded machine; what starves takes longer than this.
const PROMPT: Duration = Duration::from_secs(5);
const MIB: u64 = 1 << 20;

fn connect(worker: &Worker) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", worker.port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Resident memory of the worker, in bytes.
fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// A call that must be answered soon, whatever others do.
fn prompt(worker: &Worker) -> Answer {
    let begun = Instant::now();
    let answer = worker.call("hello", "");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
    answer
}

/// Whether the worker has closed this connection.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    match stream.read(&mut [0; 512]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

fn hello(options: &[&str]) -> Worker {
    let mut worker = Worker::new();
    worker.deploy("hello", &[("f.py", HELLO)]);
    worker.up(options);
    worker.result("hello", "");
    worker
}

#[test]
fn silent_connections_and_half_heads_keep_nobody_out() {
    let worker = hello(&["http.max_connections=16"]);
    let mut silent: Vec<_> = (0..200).map(|_| connect(&worker)).collect();
    prompt(&worker);
    let mut half: Vec<_> = (0..200).map(|_| connect(&worker)).collect();
    half.iter_mut().for_each(|stream| {
        let _ = stream.write_all(b"POST /run/hello HTTP/1.1\r\nHost: h\r\n");
    });
    prompt(&worker);
    drop((silent.split_off(1), half.split_off(1)));
    worker.down();
}

#[test]
fn connections_whose_bodies_stay_away_keep_nobody_out() {
    let worker = hello(&["http.max_connections=16"]);
    let mut slow: Vec<_> = (0..100).map(|_| connect(&worker)).collect();
    for stream in &mut slow {
        let _ = stream.write_all(b"POST /run/hello HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nx");
    }
    std::thread::sleep(Duration::from_millis(200));
    prompt(&worker);
    drop(slow);
    worker.down();
}

#[test]
fn a_connection_that_idles_longest_goes_first_and_others_go_on() {
    let worker = hello(&["http.max_pending=8"]);
    let mut idle: Vec<_> = (0..9).map(|_| connect(&worker)).collect();
    wait_until("the first is closed", PROMPT, || is_closed(&mut idle[0]));
    for stream in &mut idle[1..] {
        assert!(!is_closed(stream));
    }
    let mut last = idle.pop().unwrap();
    last.write_all(b"GET /status HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    last.set_read_timeout(Some(PROMPT)).unwrap();
    last.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    worker.down();
}

#[test]
fn a_head_that_is_too_large_is_a_431_and_leaves_the_sandbox_warm() {
    let worker = hello(&["sandbox.pause_after_ms=60000"]);
    for size in [65 << 10, 200 << 10, 300 << 10, 390 << 10, 1 << 20] {
        // In one header, in many, and in bytes that become two each on the way.
        let many: Vec<_> = (0..64).map(|n| (format!("x-{n}"), "v".repeat(size / 64))).collect();
        let many: Vec<_> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let (one, latin) = ("v".repeat(size), "\u{e9}".repeat(size / 2));
        for headers in [&[("x-one", one.as_str())][..], &[("x-one", latin.as_str())], &many] {
            let refused = worker.request("POST", "/run/hello", headers, b"{}");
            assert_eq!(refused.status, 431, "{size}: {refused:?}");
            assert_eq!(prompt(&worker).start(), "warm", "after a head of {size} bytes");
        }
    }
    // The largest head that is taken fits the wire, its bytes doubled.
    let latin = "\u{e9}".repeat(31 << 10);
    assert_eq!(worker.request("POST", "/run/hello", &[("x-one", &latin)], b"{}").status, 200);
    assert_eq!(prompt(&worker).start(), "warm");
    worker.down();
}

#[test]
fn bodies_share_a_budget_and_their_memory_goes_back() {
    let worker = hello(&["http.body_budget_mb=16,http.body_timeout_ms=4000"]);
    let pid = worker.pid();
    let before = resident(pid);
    let mut slow: Vec<_> = (0..60).map(|_| connect(&worker)).collect();
    let part = vec![b'x'; 2 << 20];
    std::thread::scope(|scope| {
        for stream in &mut slow {
            scope.spawn(|| {
                let head = "POST /run/hello HTTP/1.1\r\nHost: h\r\nContent-Length: 6000000\r\n\r\n";
                let _ = stream.write_all(head.as_bytes());
                // 120 MB in all, where 16 MiB are to be had.
                stream.set_write_timeout(Some(Duration::from_secs(3))).unwrap();
                let _ = stream.write_all(&part);
            });
        }
    });
    prompt(&worker);
    // Of some the parts are kept, within the budget; the others are told.
    let mut said = Vec::new();
    let mut during = 0;
    wait_until("the others are told", Duration::from_secs(10), || {
        during = during.max(resident(pid));
        for stream in &mut slow {
            stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            let mut answer = [0; 2048];
            let count = stream.read(&mut answer).unwrap_or(0);
            said.extend((count > 0).then(|| String::from_utf8_lossy(&answer[..count]).into_owned()));
        }
        said.len() >= 20
    });
    assert!(during < before + 48 * MIB, "{} MiB more", (during - before) / MIB);
    for answer in &said {
        let is_full = answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: ");
        assert!(is_full || answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
    assert!(said.iter().any(|answer| answer.contains("bodies-full")), "{said:?}");
    drop(slow);
    let mut after = 0;
    let until = Instant::now() + Duration::from_secs(15);
    while Instant::now() < until && {
        after = resident(pid);
        after >= before + 16 * MIB
    } {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(
        after < before + 16 * MIB,
        "MiB: {} before, {} during, {} after",
        before / MIB,
        during / MIB,
        after / MIB
    );
    // A body of the whole size fits once the others are gone.
    let large = format!("{{\"name\": \"{}\"}}", "n".repeat(5 << 20));
    assert_eq!(worker.call("hello", &large).status, 200);
    worker.down();
}

#[test]
fn a_full_house_refuses_at_once_and_nothing_of_it_ran() {
    let mut worker = Worker::new();
    worker.deploy("counter", &[("f.py", COUNTER)]);
    worker.up(&["sandbox.queue_max_wait_ms=1000", "sandbox.pause_after_ms=60000"]);
    // It learns what a call takes.
    for _ in 0..6 {
        worker.result("counter", r#"{"s": 0.3}"#);
    }
    let answers: Vec<(Answer, Duration)> = std::thread::scope(|scope| {
        let call = || {
            let begun = Instant::now();
            (worker.call("counter", r#"{"s": 0.3}"#), begun.elapsed())
        };
        let calls: Vec<_> = (0..20).map(|_| scope.spawn(call)).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let (served, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|(answer, _)| answer.status == 200);
    assert!((2..=6).contains(&served.len()), "{answers:?}");
    for (answer, took) in refused {
        assert_eq!((answer.status, &answer.json()["reason"]), (429, &"queue-slow".into()), "{answer:?}");
        assert!(answer.header("retry-after").parse::<u32>().unwrap() >= 1);
        assert!(*took < Duration::from_millis(900), "refused after {took:?}");
    }
    // As many calls as were answered: of a refused one nothing ran.
    let ran = worker.result("counter", "").as_u64().unwrap() as usize;
    assert_eq!(ran, 6 + served.len() + 1);
    worker.down();
}

#[test]
fn a_call_that_waited_too_long_is_refused_then_and_did_not_run() {
    let mut worker = Worker::new();
    worker.deploy("counter", &[("f.py", COUNTER)]);
    worker.up(&["sandbox.queue_max_wait_ms=500", "sandbox.pause_after_ms=60000"]);
    worker.result("counter", "");
    std::thread::scope(|scope| {
        let long = scope.spawn(|| worker.call("counter", r#"{"s": 3}"#));
        std::thread::sleep(Duration::from_millis(300));
        let begun = Instant::now();
        // Nothing said that a call would take so long.
        let refused = worker.call("counter", "");
        let took = begun.elapsed();
        assert_eq!((refused.status, &refused.json()["reason"]), (429, &"queue-slow".into()), "{refused:?}");
        assert!(took >= Duration::from_millis(450) && took < Duration::from_secs(2), "{took:?}");
        assert_eq!(long.join().unwrap().status, 200);
    });
    assert_eq!(worker.result("counter", ""), 3);
    worker.down();
}

#[test]
fn calls_for_more_places_than_there_are_wait_no_longer_than_the_bound() {
    let mut worker = Worker::new();
    let names: Vec<String> = (0..12).map(|n| format!("f{n}")).collect();
    names.iter().for_each(|name| worker.deploy(name, &[("f.py", COUNTER)]));
    worker.up(&["sandbox.max_sandboxes=2", "sandbox.queue_max_wait_ms=1000"]);
    let round = || -> Vec<(Answer, Duration)> {
        std::thread::scope(|scope| {
            let call = |name: String| {
                let begun = Instant::now();
                (worker.call(&name, r#"{"s": 0.4}"#), begun.elapsed())
            };
            let calls: Vec<_> = names.iter().map(|name| scope.spawn(move || call(name.clone()))).collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        })
    };
    for _ in 0..2 {
        let answers = round();
        let served = answers.iter().filter(|(answer, _)| answer.status == 200).count();
        assert!(served >= 3, "{answers:?}");
        for (answer, took) in answers.iter().filter(|(answer, _)| answer.status != 200) {
            assert_eq!((answer.status, &answer.json()["reason"]), (429, &"no-sandbox".into()), "{answer:?}");
            assert!(*took < Duration::from_millis(2500), "refused after {took:?}");
        }
    }
    assert_eq!(worker.call("f0", "").status, 200);
    worker.down();
}
