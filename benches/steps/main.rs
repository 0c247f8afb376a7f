//! Where the time of a cold start goes: the steps that the worker measures itself
//! (`Server-Timing`), and what the kernel asks for the parts of one. Needs root.
//!
//! ```text
//! HOSIER_BENCH_ROUNDS=200 cargo bench --bench steps
//! cargo bench --bench steps -- picture     draws docs/cold-start.svg from what was measured last
//! ```

mod picture;
mod prices;
mod starts;
#[path = "../support/mod.rs"]
mod support;

use support::functions;
use support::report::report;
use support::samples::{Samples, number};
use support::workers::{beside, home};

fn main() {
    if std::env::args().any(|argument| argument == "picture") {
        return picture::save();
    }
    let rounds = support::rounds(100);
    // Before anything of this process has threads or much memory.
    let mut results = vec![prices::measure(rounds)];
    let functions = functions::chosen();
    let home = home(&functions);
    let node = beside(&home, &[]);
    let blank = beside(&home, &["zygote.blanks=4"]);
    for function in functions {
        results.push(starts::measure(&node, function, "forked", rounds));
        results.push(starts::measure(&blank, function, "blank", rounds));
        results.push(starts::measure(&blank, function, "snapshot", rounds));
    }
    report("steps", results.into());
    node.down();
    blank.down();
}

/// Prints milliseconds, back to back and after quiet, and returns µs as JSON.
fn table(
    title: &str,
    rows: impl IntoIterator<Item = (impl Into<String>, [Samples; 2])>,
) -> serde_json::Value {
    println!("\n{title:18}{:>9}{:>9}{:>10}{:>9}", "tight50", "99", "quiet50", "99");
    let mut steps = Vec::new();
    for (name, [tight, quiet]) in rows {
        let name: String = name.into();
        let ms = |samples: &Samples, percent| number(samples.percentile(percent) / 1e3, 3);
        let (tight_ms, quiet_ms) = ([50, 99].map(|at| ms(&tight, at)), [50, 99].map(|at| ms(&quiet, at)));
        println!("{name:18}{:>9}{:>9}{:>10}{:>9}", tight_ms[0], tight_ms[1], quiet_ms[0], quiet_ms[1]);
        steps.push(serde_json::json!({ "step": name, "tight": tight.json(), "quiet": quiet.json() }));
    }
    serde_json::json!({ "of": title, "steps": steps })
}
