//! Calls that fail in the spawner and in the worker's talk with it: each costs the one
//! request that it was made for, and the next one is served.
//!
//! ```text
//! prlimit --nofile ─▶ spawner: no descriptor arrives     ─▶ that start fails, both go on
//!                 └─▶ worker:  none can be opened, taken ─▶ that call fails, both go on
//! ```

mod support;

use std::fs;
use std::process::Command;
use std::time::Duration;

use support::{Worker, alive, wait_until};

const FINE: &str = "def f(event):\n    return 'fine'\n";

/// Every start is the spawner's work: no zygote, and nothing stays warm.
const FRESH: &[&str] = &["features.import_cache=,sandbox.netns_pool=0,sandbox.idle_ttl_s=1"];

/// The spawner of a worker: its child of that name.
fn spawner_of(worker: i32) -> i32 {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_it = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let Some((name, rest)) = stat.rsplit_once(") ") else { return false };
        name.ends_with("(hosier-spawner") && rest.split(' ').nth(1) == Some(&worker.to_string())
    };
    pids.find(is_it).expect("a spawner")
}

/// Bounds the descriptors of a process of this test's.
fn bound_descriptors(pid: i32, soft: &str) {
    let status =
        Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--nofile={soft}:")]).status();
    assert!(status.unwrap().success());
}

fn soft_bound(pid: i32) -> String {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(3).unwrap().to_owned()
}

fn open_descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn names() -> impl Iterator<Item = String> + Clone {
    (0..4).map(|number| format!("f{number}"))
}

fn worker() -> Worker {
    let mut worker = Worker::new();
    for name in names() {
        worker.deploy(&name, &[("f.py", FINE)]);
    }
    worker.up(FRESH);
    worker
}

#[test]
fn a_spawner_without_room_for_a_descriptor_fails_that_start_and_goes_on() {
    let worker = worker();
    assert_eq!(worker.result("f0", ""), "fine");
    let (pid, spawner) = (worker.pid(), spawner_of(worker.pid()));
    let before = soft_bound(spawner);
    // From no room at all to room for a part of what a start needs.
    for (room, name) in [0, 1, 3, 6].into_iter().zip(names().cycle().skip(1)) {
        bound_descriptors(spawner, &(open_descriptors(spawner) + room).to_string());
        let answer = worker.call(&name, "");
        assert!(matches!(answer.status, 200 | 500 | 503), "{room}: {answer:?}");
        if room < 3 {
            assert_ne!(answer.status, 200, "there was room: the test proves nothing");
        }
        assert!(alive(spawner) && worker.pid() == pid, "{room}: {answer:?}");
        bound_descriptors(spawner, &before);
        assert_eq!(worker.result(&name, ""), "fine", "after {room}");
    }
    worker.down();
}

#[test]
fn a_worker_without_room_for_a_descriptor_fails_those_calls_and_goes_on() {
    let worker = worker();
    assert_eq!(worker.result("f0", ""), "fine");
    let (pid, spawner) = (worker.pid(), spawner_of(worker.pid()));
    let before = soft_bound(pid);
    for room in [0, 2, 5, 9, 14] {
        let bound = open_descriptors(pid) + room;
        bound_descriptors(pid, &bound.to_string());
        let calls: Vec<_> = names()
            .map(|name| {
                let (port, path) = (worker.port, format!("/run/{name}"));
                std::thread::spawn(move || ask(port, &path))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        bound_descriptors(pid, &before);
        // Answered or cut off, not forgotten.
        for call in calls {
            call.join().unwrap();
        }
        assert!(alive(pid) && alive(spawner), "with room for {room}:\n{}", worker.worker_log());
        for name in names() {
            wait_until("the function is served again", Duration::from_secs(20), || {
                worker.call(&name, "").status == 200
            });
        }
    }
    worker.down();
}

/// One call, whatever comes of it.
fn ask(port: u16, path: &str) -> Option<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(40))).ok()?;
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}
