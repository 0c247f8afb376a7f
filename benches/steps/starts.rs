//! Every step of a function's cold starts, back to back and after quiet.

use std::time::Duration;

use crate::support::QUIET;
use crate::support::client::Client;
use crate::support::functions::Function;
use crate::support::samples::Samples;
use crate::support::worker::Worker;

/// Measures and prints the starts of one kind; others, as where no blank was ready in a
/// tight loop, do not count.
pub fn measure(worker: &Worker, function: Function, start: &str, rounds: usize) -> serde_json::Value {
    let name = if start == "snapshot" { function.snapshot() } else { function.once() };
    // What a blank of a snapshot's node is called.
    let counts = |found: &str| found == start || (start == "snapshot" && found == "blank");
    let mut client = Client::new(worker.port);
    client.settle(&name);
    let mut samples: Vec<(String, [Samples; 2])> = Vec::new();
    for _ in 0..rounds {
        for (at, quiet) in [Duration::ZERO, QUIET].into_iter().enumerate() {
            std::thread::sleep(quiet);
            let answer = client.call(&name);
            if !counts(&answer.start) {
                continue;
            }
            let total = answer.took.as_secs_f64() * 1e6;
            // What the client sees beside the worker's own steps.
            let rest = total - answer.engine_us();
            let more = [("rest".to_owned(), rest), ("total".to_owned(), total)];
            for (step, took) in answer.steps.into_iter().chain(more) {
                add(&mut samples, step, at, took);
            }
        }
    }
    let mut result = super::table(&format!("{}, {start}", function.name), samples);
    result["function"] = function.name.into();
    result["start"] = start.into();
    result
}

/// Steps keep the order in which they are taken.
fn add(samples: &mut Vec<(String, [Samples; 2])>, step: String, at: usize, took: f64) {
    let place = samples.iter().position(|(known, _)| *known == step).unwrap_or_else(|| {
        samples.push((step, Default::default()));
        samples.len() - 1
    });
    samples[place].1[at].add_us(took);
}
