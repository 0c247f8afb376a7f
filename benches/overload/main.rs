//! Clients that hold the worker up, and more calls than it can serve. Needs root.
//!
//! ```text
//! crowd     a healthy call alone, beside 2,000 silent connections, 2,000 half heads, 300 slow bodies
//! overload  one function, and a worker with more functions than places, at 1 to 4 times the capacity
//! ```
//!
//! The capacity is what as many clients as can be served at once get in a closed loop. In the
//! open loop calls come at even times, whether or not earlier ones were answered.

#[path = "../support/mod.rs"]
mod support;

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::report::report;
use support::samples::{Samples, number};
use support::worker::Worker;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

const HELLO: &str = "def f(event):\n    return 1\n";
/// A call of about 20 ms that needs no processor.
const SLEEPER: &str = "import time\ndef f(event):\n    time.sleep(0.02)\n    return 1\n";
const FUNCTIONS: usize = 32;
const PLACES: usize = 8;
const LASTS: Duration = Duration::from_secs(8);
const POST: &str = "POST /run/hello HTTP/1.1\r\nHost: localhost\r\n";

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let crowds = crowds();
    println!(
        "\n{:28}{:>8}{:>10}{:>12}{:>10}",
        "capacity ×", "÷ peak", "a second", "refused p99", "answer p99"
    );
    let one = runtime.block_on(overload("one function", 1, &[]));
    let options = [format!("sandbox.max_sandboxes={PLACES}")];
    let all = runtime.block_on(overload("whole worker", FUNCTIONS, &options));
    report("overload", json!({ "crowds": crowds, "one": one, "all": all }));
}

/// A healthy call beside clients that hold the worker up.
fn crowds() -> Value {
    println!(
        "\n{:28}{:>8}{:>8}{:>8}{:>10}{:>8}",
        "a healthy call beside", "p50 ms", "p99", "÷ alone", "MiB", "after"
    );
    let mut rows = Vec::new();
    let mut alone = None;
    for (label, count, sent, body) in [
        ("nobody", 0, "", 0),
        ("2,000 silent connections", 2000, "", 0),
        ("2,000 half heads", 2000, POST, 0),
        ("300 slow bodies", 300, "Content-Length: 6000000\r\n\r\n", 1 << 20),
    ] {
        let mut worker = Worker::new();
        worker.deploy("hello", &[("f.py", HELLO)]);
        worker.up(&["sandbox.pause_after_ms=60000"]);
        (0..8).for_each(|_| drop(worker.call("hello", "")));
        let pid = worker.pid();
        let before = resident_mib(pid);
        let crowd: Vec<_> = (0..count)
            .map(|_| {
                let mut stream = TcpStream::connect(("127.0.0.1", worker.port)).unwrap();
                stream.set_nonblocking(true).unwrap();
                let head = if body > 0 { format!("{POST}{sent}") } else { sent.to_owned() };
                // What has to go is closed already, and what is slow takes less.
                let _ = stream.write_all(head.as_bytes());
                let _ = stream.write_all(&vec![b'x'; body]);
                stream
            })
            .collect();
        let mut took = Samples::default();
        for _ in 0..support::rounds(300) {
            let begun = Instant::now();
            assert_eq!(worker.call("hello", "").status, 200);
            took.add(begun.elapsed());
        }
        let during = resident_mib(pid);
        drop(crowd);
        std::thread::sleep(Duration::from_secs(5));
        let after = resident_mib(pid);
        let median = took.median();
        let ratio = median / *alone.get_or_insert(median);
        println!(
            "{label:28}{:>8}{:>8}{:>8}{:>10}{:>8}",
            number(median / 1e3, 3),
            number(took.percentile(99) / 1e3, 3),
            number(ratio, 2),
            format!("{before} {during}"),
            after
        );
        rows.push(json!({
            "beside": label, "took": took.json(), "ratio": ratio, "mib": [before, during, after],
        }));
        worker.down();
    }
    rows.into()
}

/// Goodput and refusals of so many functions at 1 to 4 times what they can serve.
async fn overload(label: &str, functions: usize, options: &[String]) -> Value {
    let mut worker = Worker::new();
    let names: Arc<Vec<String>> = Arc::new((0..functions).map(|n| format!("f{n}")).collect());
    names.iter().for_each(|name| worker.deploy(name, &[("f.py", SLEEPER)]));
    worker.up(&options.iter().map(String::as_str).collect::<Vec<_>>());
    let port = worker.port;
    for name in names.iter().chain(names.iter()) {
        assert_eq!(call(port, name).await.0, 200);
    }
    // As many clients as can be served at once.
    let mut clients = JoinSet::new();
    let begun = Instant::now();
    for client in 0..functions.min(PLACES) {
        let names = Arc::clone(&names);
        clients.spawn(async move {
            let mut count = 0;
            while begun.elapsed() < LASTS {
                count += usize::from(call(port, &names[client]).await.0 == 200);
            }
            count
        });
    }
    let capacity = clients.join_all().await.into_iter().sum::<usize>() as f64 / begun.elapsed().as_secs_f64();
    let mut rows = Vec::new();
    for times in 1..=4 {
        let begun = Instant::now();
        let mut calls = JoinSet::new();
        for number in 0..(LASTS.as_secs_f64() * capacity * f64::from(times)) as usize {
            let due = Duration::from_secs_f64(number as f64 / (capacity * f64::from(times)));
            tokio::time::sleep_until((begun + due).into()).await;
            let names = Arc::clone(&names);
            calls.spawn(async move { call(port, &names[number % names.len()]).await });
        }
        let answers = calls.join_all().await;
        let elapsed = begun.elapsed().as_secs_f64();
        let (mut served, mut refused) = (Samples::default(), Samples::default());
        for (status, took) in answers {
            if status == 200 { &mut served } else { &mut refused }.add(took);
        }
        rows.push((times, served.len() as f64 / elapsed, served, refused));
    }
    worker.down();
    let peak = rows.iter().map(|row| row.1).fold(0.0, f64::max);
    let mut results = Vec::new();
    for (times, goodput, served, refused) in rows {
        let ms = |samples: &Samples| {
            if samples.len() == 0 { "-".to_owned() } else { number(samples.percentile(99) / 1e3, 1) }
        };
        println!(
            "{:28}{:>8}{:>10}{:>12}{:>10}",
            format!("{label} × {times}"),
            number(goodput / peak, 2),
            number(goodput, 0),
            ms(&refused),
            ms(&served)
        );
        results.push(json!({
            "times": times, "goodput": goodput, "of_peak": goodput / peak,
            "served": served.len(), "refused": refused.len(),
            "refused_p99_ms": ms(&refused), "served_p99_ms": ms(&served),
        }));
    }
    json!({ "capacity": capacity, "rows": results })
}

/// One call on a connection of its own: its status, 0 where there was no answer.
async fn call(port: u16, name: &str) -> (u16, Duration) {
    let begun = Instant::now();
    let exchange = async {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let head = format!(
            "POST /run/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        std::str::from_utf8(answer.get(9..12)?).ok()?.parse().ok()
    };
    (exchange.await.unwrap_or(0), begun.elapsed())
}

fn resident_mib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}
