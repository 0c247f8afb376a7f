//! The memory of a worker's sandboxes, as the kernel counts it. `/debug` names their
//! control groups; the rest is read from `/proc`.

use std::fs;

use super::worker::Worker;

/// What one process has, in KiB.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Its own alone: what its end would free.
    pub uss_kib: u64,
    /// The same, and its part of what it shares.
    pub pss_kib: u64,
}

/// Processes of the leaves that run a function: a blank has no code attached.
pub fn instances(worker: &Worker) -> Vec<i32> {
    let debug = worker.get("/debug").body;
    let leaves = debug.lines().filter(|line| line.contains(" Leaf "));
    let groups = leaves.filter_map(|line| line.split("cgroup ").nth(1)?.split_whitespace().next());
    let pids = groups.flat_map(|group| members(group.trim_end_matches(',')));
    pids.filter(|pid| has_code(*pid)).collect()
}

/// Of a process that still lives.
pub fn memory(pid: i32) -> Option<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let sum = |keys: &[&str]| keys.iter().map(|key| field(&text, key)).sum();
    Some(Memory { uss_kib: sum(&["Private_Clean:", "Private_Dirty:"]), pss_kib: sum(&["Pss:"]) })
}

/// What the machine could still give, in KiB.
pub fn available_kib() -> u64 {
    field(&fs::read_to_string("/proc/meminfo").unwrap(), "MemAvailable:")
}

fn members(group: &str) -> Vec<i32> {
    let text = fs::read_to_string(format!("{group}/cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|pid| pid.parse().ok()).collect()
}

fn has_code(pid: i32) -> bool {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4) == Some("/handler"))
}

fn field(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
