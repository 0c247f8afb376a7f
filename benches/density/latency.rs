//! What a start takes beside sandboxes that live: idle and paused, as a worker's are.

use serde_json::{Value, json};

use super::support::client::Client;
use super::support::functions::{Function, NOOP, PANDAS};
use super::support::samples::{Samples, number};
use super::support::worker::Worker;
use super::support::workers::beside;
use super::support::{QUIET, rounds};
use super::{ROOM, levels};

const LIVE: [usize; 5] = [0, 10, 100, 500, 1000];
/// What the ratio is to.
const UNIT: usize = 10;
const PROBES: [Function; 2] = [NOOP, PANDAS];

/// Prints milliseconds after quiet.
pub fn measure(home: &Worker) -> Value {
    let (rounds, levels) = (rounds(200), levels(&LIVE));
    let names = NOOP.copies(home, levels.last().copied().unwrap_or(0), "");
    let worker = beside(home, &[ROOM, "zygote.blanks=4"]);
    let mut made = 0;
    let mut measured: Vec<(usize, [Samples; 2])> = Vec::new();
    for level in levels {
        let mut client = Client::new(worker.port);
        names[made..level].iter().for_each(|name| drop(client.call(name)));
        made = level;
        let mut took: [Samples; 2] = Default::default();
        PROBES.iter().for_each(|function| client.settle(&function.once()));
        for _ in 0..rounds {
            for (at, function) in PROBES.iter().enumerate() {
                std::thread::sleep(QUIET);
                took[at].add(client.call(&function.once()).took);
            }
        }
        measured.push((level, took));
    }
    let live = worker.get("/debug").body;
    eprintln!("{}", live.lines().next().unwrap_or_default());
    worker.down();
    table(&measured)
}

fn table(measured: &[(usize, [Samples; 2])]) -> Value {
    println!("\n{:10}{:>8}{:>9}{:>9}{:>9}{:>11}", "start", "live", "quiet50", "90", "99", "÷ with 10");
    let mut results = Vec::new();
    for (at, function) in PROBES.iter().enumerate() {
        let unit = measured.iter().find(|(level, _)| *level == UNIT);
        let unit = unit.map_or(f64::NAN, |(_, took)| took[at].median());
        for (level, took) in measured {
            let took = &took[at];
            let ratio = took.median() / unit;
            let [p50, p90, p99] = [50, 90, 99].map(|percent| took.ms(percent));
            println!("{:10}{level:>8}{p50:>9}{p90:>9}{p99:>9}{:>11}", function.name, number(ratio, 2));
            results.push(json!({
                "function": function.name, "live": level, "quiet": took.json(), "ratio": ratio,
            }));
        }
    }
    results.into()
}
