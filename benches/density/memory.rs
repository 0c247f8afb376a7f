//! Memory of idle pandas instances: paused or not, from blanks that were prefaulted or not.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::support::client::Client;
use super::support::functions::PANDAS;
use super::support::leaves;
use super::support::samples::{Samples, number};
use super::support::worker::{Worker, wait_until};
use super::support::workers::beside;
use super::{ROOM, levels};

const INSTANCES: [usize; 4] = [1, 10, 100, 500];
/// Long enough to make a blank, so that each instance comes from one.
const BETWEEN: Duration = Duration::from_millis(20);
/// How long the last answers may take to become idle, and blanks to be made.
const SETTLED: Duration = Duration::from_secs(1);

struct Variant {
    paused: bool,
    prefault: bool,
}

/// Prints MB an instance.
pub fn measure(home: &Worker) -> Value {
    let levels = levels(&INSTANCES);
    let names = PANDAS.copies(home, levels.last().copied().unwrap_or(0), "");
    println!(
        "\n{:24}{:>10}{:>9}{:>9}{:>9}{:>14}",
        "idle pandas, MB each", "instances", "USS 50", "USS 99", "PSS 50", "MemAvailable"
    );
    let mut results = Vec::new();
    for paused in [false, true] {
        for prefault in [true, false] {
            results.extend(variant(home, &names, &levels, &Variant { paused, prefault }));
        }
    }
    results.into()
}

fn variant(home: &Worker, names: &[String], levels: &[usize], variant: &Variant) -> Vec<Value> {
    let Variant { paused, prefault } = variant;
    let pausing = if *paused { "sandbox.pause_after_ms=0" } else { "sandbox.pause_after_ms=86400000" };
    let worker = beside(home, &[ROOM, pausing, "zygote.blanks=4", &format!("zygote.prefault={prefault}")]);
    // The node is there, and what its leaves touch is known.
    Client::new(worker.port).settle(&PANDAS.once());
    let before = leaves::available_kib();
    let mut starts: BTreeMap<String, usize> = BTreeMap::new();
    let mut results = Vec::new();
    let mut made = 0;
    for &level in levels {
        let mut client = Client::new(worker.port);
        for name in &names[made..level] {
            *starts.entry(client.call(name).start).or_default() += 1;
            std::thread::sleep(BETWEEN);
        }
        made = level;
        std::thread::sleep(SETTLED);
        let mut pids = Vec::new();
        wait_until("all instances are listed", 10 * SETTLED, || {
            pids = leaves::instances(&worker);
            pids.len() == level
        });
        let each: Vec<_> = pids.into_iter().filter_map(leaves::memory).collect();
        let column = |pick: fn(&leaves::Memory) -> u64| {
            let mut samples = Samples::default();
            each.iter().for_each(|memory| samples.add_us(pick(memory) as f64));
            samples
        };
        let (uss, pss) = (column(|memory| memory.uss_kib), column(|memory| memory.pss_kib));
        let machine_kib = before.saturating_sub(leaves::available_kib()) as f64 / level as f64;
        let label = format!(
            "{}, {}",
            if *paused { "paused" } else { "running" },
            if *prefault { "prefault" } else { "no prefault" }
        );
        let mb = |kib: f64| number(kib / 1024.0, 2);
        println!(
            "{label:24}{level:>10}{:>9}{:>9}{:>9}{:>14}",
            mb(uss.median()),
            mb(uss.percentile(99)),
            mb(pss.median()),
            mb(machine_kib)
        );
        results.push(json!({
            "paused": paused, "prefault": prefault, "instances": level, "starts": starts,
            "uss_kib": { "p50": uss.median(), "p99": uss.percentile(99) }, "pss_kib": pss.median(),
            "available_kib": machine_kib,
        }));
    }
    worker.down();
    results
}
