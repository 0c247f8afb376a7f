//! Load on a server for a while.
//!
//! ```text
//! closed loop   each client calls again as soon as it has its answer: how many a second
//! open loop     calls come at times that were drawn before, ready or not: how long they take
//! ```
//!
//! In the open loop a call counts from when it was due, also where all clients were still
//! busy then: a server that stalls cannot keep the calls away that would have shown it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::scope;
use std::time::{Duration, Instant};

use super::client::Client;
use super::samples::Samples;

/// What came of it.
pub struct Load {
    pub calls: usize,
    pub a_second: f64,
    pub took: Samples,
}

/// A client for each name, for so long.
pub fn closed(port: u16, names: &[String], lasts: Duration) -> Load {
    let begun = Instant::now();
    let client = |name: &String| {
        let (mut client, mut took) = (Client::new(port), Samples::default());
        while begun.elapsed() < lasts {
            took.add(client.call(name).took);
        }
        took
    };
    let took = together(names, client);
    let a_second = took.len() as f64 / begun.elapsed().as_secs_f64();
    Load { calls: took.len(), a_second, took }
}

/// Calls at `a_second` on average, each served by the first client that is free.
pub fn open(port: u16, names: &[String], a_second: f64, lasts: Duration) -> Load {
    let due = arrivals(a_second, lasts);
    let next = AtomicUsize::new(0);
    let begun = Instant::now();
    let client = |name: &String| {
        let (mut client, mut took) = (Client::new(port), Samples::default());
        while let Some(due) = due.get(next.fetch_add(1, Ordering::Relaxed)) {
            let due = begun + *due;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            client.call(name);
            took.add(due.elapsed());
        }
        took
    };
    let took = together(names, client);
    Load { calls: took.len(), a_second: took.len() as f64 / begun.elapsed().as_secs_f64(), took }
}

fn together(names: &[String], client: impl Fn(&String) -> Samples + Sync) -> Samples {
    let client = &client;
    let mut all = Samples::default();
    scope(|scope| {
        let clients: Vec<_> = names.iter().map(|name| scope.spawn(move || client(name))).collect();
        clients.into_iter().for_each(|client| all.extend(client.join().unwrap()));
    });
    all
}

/// Gaps as of a Poisson stream, the same in each run.
fn arrivals(a_second: f64, lasts: Duration) -> Vec<Duration> {
    let (mut state, mut at) = (0x9e37_79b9_7f4a_7c15_u64, 0.0);
    let mut due = Vec::new();
    loop {
        // xorshift64: 53 bits of it are a number in (0, 1).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let uniform = ((state >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        at -= uniform.ln() / a_second;
        if at >= lasts.as_secs_f64() {
            return due;
        }
        due.push(Duration::from_secs_f64(at));
    }
}
