//! Warm calls of a no-op function: how many a second and how long each, beside a bare
//! hyper server that answers the same. Needs root.
//!
//! ```text
//! this process ── keep-alive ──▶ worker ──▶ sandboxes
//!       └──────── keep-alive ──▶ a process of its own: hyper and tokio as the worker has them
//! ```
//!
//! A function has one instance, which serves one call at a time: eight connections are
//! measured on one function and on eight.

mod support;

use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use hosier::settings::Settings;
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use support::client::Client;
use support::functions::NOOP;
use support::load;
use support::report::report;
use support::samples::{Samples, number, paired_ratio};
use support::workers::{beside, home};

/// This program, as the bare server.
const BARE: &str = "bare";
const LASTS: Duration = Duration::from_secs(2);

struct Row {
    label: &'static str,
    port: u16,
    /// One a connection.
    names: Vec<String>,
    /// The one it is compared with, of as many connections.
    bare: usize,
    took: Samples,
    /// Calls a second and the median of each round.
    rate: Samples,
    median: Samples,
}

fn main() {
    if std::env::args().any(|argument| argument == BARE) {
        return serve_bare();
    }
    let rounds = support::rounds(10);
    let home = home(&[NOOP]);
    let names = NOOP.copies(&home, 8, "");
    let worker = beside(&home, &["sandbox.pause_after_ms=60000"]);
    let bare = Bare::start();
    names.iter().for_each(|name| Client::new(worker.port).settle(name));
    let row = |label, port, names: &[String], bare| {
        let (took, rate, median) = Default::default();
        Row { label, port, names: names.to_vec(), bare, took, rate, median }
    };
    let same = vec![names[0].clone(); 8];
    let mut rows = [
        row("hyper, 1 connection", bare.port, &names[..1], 0),
        row("hyper, 8 connections", bare.port, &names, 1),
        row("noop, 1 connection", worker.port, &names[..1], 0),
        row("noop, 8 connections", worker.port, &same, 1),
        row("8 noops, 8 connections", worker.port, &names, 1),
    ];
    for round in 0..rounds {
        eprint!("\r{}/{rounds} ", round + 1);
        for row in &mut rows {
            let load = load::closed(row.port, &row.names, LASTS);
            row.rate.add_us(load.a_second);
            row.median.add_us(load.took.median());
            row.took.extend(load.took);
        }
    }
    eprintln!();
    report("throughput", table(&rows));
    worker.down();
}

fn table(rows: &[Row]) -> serde_json::Value {
    println!("\n{:24}{:>9}{:>9}{:>9}{:>9}", "warm", "a second", "p50 ms", "p99", "÷ hyper");
    let mut results = Vec::new();
    for Row { label, took, rate, median, bare, .. } in rows {
        let ratio = paired_ratio(median, &rows[*bare].median);
        let [p50, p99] = [50, 99].map(|percent| number(took.percentile(percent) / 1e3, 3));
        println!("{label:24}{:>9}{p50:>9}{p99:>9}{:>9}", number(rate.median(), 0), number(ratio, 2));
        results.push(json!({
            "what": label, "calls_a_second": rate.median(), "took": took.json(), "p50_ratio": ratio,
        }));
    }
    results.into()
}

/// The bare server, until this is dropped.
struct Bare {
    child: Child,
    port: u16,
}

impl Bare {
    fn start() -> Self {
        let this = std::env::current_exe().unwrap();
        let mut child = Command::new(this).arg(BARE).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, port: line.trim().parse().unwrap() }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill(); // It never ends by itself.
        let _ = self.child.wait();
    }
}

/// Says its port and serves for ever, set up as the worker's trigger is.
fn serve_bare() {
    // No file there: the defaults, which the worker beside it has too.
    let settings = Settings::load(Path::new("/nonexistent"), &[]).unwrap();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(settings.worker_threads).enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap().port());
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(settings.http.header_timeout);
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let connection = http.serve_connection(TokioIo::new(stream), service_fn(answer));
            tokio::spawn(connection);
        }
    });
}

/// The body that came, as the no-op does, with as many headers as a worker's answer has.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let response = Response::builder()
        .header("content-type", "application/json")
        .header("x-hosier-start", "warm")
        .header("server-timing", "queue;dur=0.012, exec;dur=0.012");
    Ok(response.body(Full::new(body)).unwrap())
}
