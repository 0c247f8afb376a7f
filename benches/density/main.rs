//! Many sandboxes on one machine: the memory of idle pandas instances, and what a start
//! takes beside others that live. Needs root, and some gigabytes of memory.
//!
//! ```text
//! cargo bench --bench density
//! cargo bench --bench density -- latency                    starts beside others alone
//! HOSIER_BENCH_INSTANCES=50 cargo bench --bench density     no more than so many
//! ```

mod latency;
mod memory;
#[path = "../support/mod.rs"]
mod support;

use support::functions::{NOOP, PANDAS};
use support::report::report;
use support::workers::home;

/// Sandboxes that a worker may have: more than are wanted, for blanks and zygotes.
const ROOM: &str = "sandbox.max_sandboxes=2000,sandbox.idle_ttl_s=36000";

fn main() {
    let home = home(&[NOOP, PANDAS]);
    let only_latency = std::env::args().any(|arg| arg == "latency");
    let memory = if only_latency { Default::default() } else { memory::measure(&home) };
    let latency = latency::measure(&home);
    report("density", serde_json::json!({ "memory": memory, "latency": latency }));
}

/// These counts, as far as `HOSIER_BENCH_INSTANCES` allows them.
fn levels(counts: &[usize]) -> Vec<usize> {
    let most = support::number("HOSIER_BENCH_INSTANCES").unwrap_or(usize::MAX);
    counts.iter().copied().filter(|count| *count <= most).collect()
}
