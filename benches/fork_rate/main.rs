//! How many cold starts of pandas a second a worker sustains, with solid nodes and
//! without, and what a start takes below that rate. Needs root.
//!
//! ```text
//! closed   1, 2, 4, 8 clients, each with a function of its own     solidify on, off, in turn
//! open     50, 80, 95 % of the most that the closed loop reached   solidify on
//! fork     one start at a time, forked on the path                 solidify on, off, in turn
//! ```
//!
//! The closed loop also says how much processor time a start takes, everywhere on the
//! machine: what a start spends on its fork bounds what a cheaper fork can gain.

#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use procfs::CurrentSI;
use serde_json::{Value, json};
use support::QUIET;
use support::client::Client;
use support::functions::{ONCE, PANDAS};
use support::load;
use support::report::report;
use support::samples::{Samples, number, paired_ratio};
use support::worker::Worker;
use support::workers::{beside, home};

const CLIENTS: [usize; 4] = [1, 2, 4, 8];
const PERCENT: [usize; 3] = [50, 80, 95];
/// One measurement of a round.
const LASTS: Duration = Duration::from_secs(3);
const OPEN_LASTS: Duration = Duration::from_secs(15);
/// Clients of the open loop: starts that may be under way at once.
const OPEN_CLIENTS: usize = 32;
/// Starts in a round whose fork is looked at.
const FORKS: usize = 20;

fn main() {
    let rounds = support::rounds(7);
    let home = home(&[PANDAS]);
    let names = PANDAS.copies(&home, OPEN_CLIENTS, ONCE);
    let pair = |blanks: &str| {
        ["zygote.solidify=true", "zygote.solidify=false"].map(|solid| beside(&home, &[blanks, solid]))
    };
    let (ahead, on_path) = (pair("zygote.blanks=4"), pair("zygote.blanks=0"));
    for worker in &ahead {
        let mut client = Client::new(worker.port);
        names.iter().for_each(|name| drop(client.call(name)));
    }
    for worker in &on_path {
        Client::new(worker.port).settle(&names[0]);
    }
    let closed = closed(&ahead, &names, rounds);
    let most = closed.iter().map(|row| row.rate[0].median()).fold(0.0, f64::max);
    let mut results: Vec<Value> = closed.iter().map(Closed::json).collect();
    results.extend(PERCENT.map(|percent| open(&ahead[0], &names, most, percent, rounds)));
    results.push(forks(&on_path, &names[0], rounds));
    report("fork_rate", results.into());
    ahead.iter().chain(&on_path).for_each(Worker::down);
}

/// The closed loop with so many clients, with solid nodes first.
struct Closed {
    clients: usize,
    /// Starts a second, one number a round.
    rate: [Samples; 2],
    took: [Samples; 2],
    /// Processor time a start, one number a round.
    busy: [Samples; 2],
}

impl Closed {
    fn ratio(&self) -> f64 {
        paired_ratio(&self.rate[0], &self.rate[1])
    }

    fn json(&self) -> Value {
        let [solid, plain] = [0, 1].map(|at| {
            json!({ "starts_a_second": self.rate[at].median(), "took": self.took[at].json(),
                "busy": self.busy[at].json() })
        });
        json!({ "loop": "closed", "clients": self.clients, "solid": solid, "plain": plain, "ratio": self.ratio() })
    }
}

fn closed(workers: &[Worker; 2], names: &[String], rounds: usize) -> Vec<Closed> {
    let mut rows = CLIENTS.map(|clients| Closed {
        clients,
        rate: Default::default(),
        took: Default::default(),
        busy: Default::default(),
    });
    for round in 0..rounds {
        for row in &mut rows {
            eprint!("\rclosed loop {}/{rounds}, {} clients ", round + 1, row.clients);
            for (at, worker) in workers.iter().enumerate() {
                let before = busy();
                let load = load::closed(worker.port, &names[..row.clients], LASTS);
                row.busy[at].add_us((busy() - before).as_micros() as f64 / load.took.len().max(1) as f64);
                row.rate[at].add_us(load.a_second);
                row.took[at].extend(load.took);
            }
        }
    }
    println!(
        "\n{:16}{:>10}{:>9}{:>9}{:>9}{:>10}{:>9}{:>9}{:>9}{:>9}",
        "pandas, closed", "solid /s", "50", "99", "busy", "plain /s", "50", "99", "busy", "ratio"
    );
    for row in &rows {
        let [solid, plain] = [0, 1].map(|at| {
            let rate = number(row.rate[at].median(), 1);
            format!(
                "{rate:>10}{:>9}{:>9}{:>9}",
                row.took[at].ms(50),
                row.took[at].ms(99),
                row.busy[at].ms(50)
            )
        });
        println!("{:16}{solid}{plain}{:>8}", format!("{} clients", row.clients), number(row.ratio(), 2));
    }
    rows.into()
}

/// What all processors have worked since the machine started.
fn busy() -> Duration {
    let stat = procfs::KernelStats::current().expect("/proc/stat").total;
    let ticks = stat.user + stat.nice + stat.system + stat.irq.unwrap_or(0) + stat.softirq.unwrap_or(0);
    Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64)
}

/// The open loop at a part of the rate that was sustained.
fn open(worker: &Worker, names: &[String], most: f64, percent: usize, rounds: usize) -> Value {
    let rate = most * percent as f64 / 100.0;
    let mut took = Samples::default();
    // As long as a round of the closed loop takes with all its clients.
    for _ in 0..rounds.div_ceil(7) {
        took.extend(load::open(worker.port, names, rate, OPEN_LASTS).took);
    }
    let [p50, p90, p99] = [50, 90, 99].map(|at| took.ms(at));
    let label = format!("open, {percent} %");
    println!("{label:16}{:>10}  p50 {p50}  p90 {p90}  p99 {p99} ms from when it was due", number(rate, 1));
    json!({ "loop": "open", "percent": percent, "starts_a_second": rate, "took": took.json() })
}

/// The `fork` step of starts that fork on the path: until the worker hears that the leaf
/// is born, so with its namespaces.
fn forks(workers: &[Worker; 2], name: &str, rounds: usize) -> Value {
    let mut took: [Samples; 2] = Default::default();
    for _ in 0..rounds * FORKS {
        for (at, worker) in workers.iter().enumerate() {
            std::thread::sleep(QUIET);
            let answer = Client::new(worker.port).call(name);
            let fork = answer.steps.iter().find(|(step, _)| step == "fork");
            took[at].add_us(fork.map_or(f64::NAN, |(_, us)| *us));
        }
    }
    let [solid, plain] = &took;
    let ratio = paired_ratio(solid, plain);
    println!(
        "{:16}solid {} ms, plain {} ms, ratio {} (step `fork`, after quiet, namespaces included)",
        "fork",
        solid.ms(50),
        plain.ms(50),
        number(ratio, 2)
    );
    json!({ "step": "fork", "solid": solid.json(), "plain": plain.json(), "ratio": ratio })
}
