//! What the benchmarks share. Each runs real workers from a process of its own and
//! measures from outside, as a user does.
//!
//! ```text
//! functions   benches/functions, and copies of them        workers    on one registry and one store
//! client      calls, and what a call cost                  samples    percentiles
//! baselines   the same without Hosier, in plain Python     peers      the same in other people's sandboxes
//! load        closed and open loops                        leaves     memory of sandboxes, from /proc
//! report      JSON with the machine and the commit
//! ```

#![allow(dead_code, reason = "no benchmark uses all of it")]

#[path = "../../tests/support/mod.rs"]
pub mod worker;

pub mod baselines;
pub mod client;
pub mod functions;
pub mod leaves;
pub mod load;
pub mod peers;
pub mod report;
pub mod samples;
pub mod workers;

use std::time::Duration;

/// The pause before a start that is to meet a quiet machine.
pub const QUIET: Duration = Duration::from_millis(50);

pub const PYTHON: &str = "/usr/bin/python3";

/// How often things are measured; `HOSIER_BENCH_ROUNDS` changes it.
pub fn rounds(default: usize) -> usize {
    number("HOSIER_BENCH_ROUNDS").unwrap_or(default)
}

/// A number that the environment sets.
pub fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok()?.parse().ok()
}
