//! The kernel's word that a leaf has given up everything. Runs in the worker.
//!
//! A leaf confines itself, with code that lies in memory which its node's packages could
//! write. So the worker does not believe it: it reads what the kernel says of the process
//! before it hands anything of a function over.
//!
//! ```text
//! leaf: confine, say so ──▶ worker: /proc/PID/status, tasks of its control group ──▶ the function
//! ```
//!
//! All of it holds for good: a single thread without a capability, which may gain none,
//! cannot have another id or a shorter filter later, nor can whatever it starts.

use std::fs;

/// What a confined leaf has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Expected {
    /// Its user and group, as the host numbers them.
    pub id: u32,
    /// Seccomp filters on it, at least.
    pub filters: u64,
}

/// Sets of capabilities, by their names in `/proc/PID/status`.
const CAPABILITY_SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

/// Returns what a process still has beyond `expected`, by the text of its
/// `/proc/PID/status`; `None` if it has given everything up.
pub(super) fn kept(status: &str, expected: Expected) -> Option<String> {
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    let id = expected.id.to_string();
    for name in ["Uid", "Gid"] {
        let found = field(name).unwrap_or_default();
        let (all, count) = (found.split_whitespace(), found.split_whitespace().count());
        if count != 4 || !all.into_iter().all(|own| own == id) {
            return Some(format!("{name} {found} instead of {id}"));
        }
    }
    if let Some(groups) = field("Groups").filter(|groups| !groups.is_empty()) {
        return Some(format!("the groups {groups}"));
    }
    for name in CAPABILITY_SETS {
        let found = field(name).unwrap_or("no such line");
        if found.is_empty() || !found.bytes().all(|digit| digit == b'0') {
            return Some(format!("{name} {found}"));
        }
    }
    let number = |name: &str| field(name).and_then(|text| text.parse::<u64>().ok());
    if number("NoNewPrivs") != Some(1) {
        return Some("the right to gain privileges".to_owned());
    }
    if number("Seccomp_filters").unwrap_or(0) < expected.filters {
        return Some(format!(
            "system calls: {:?} filters of {}",
            number("Seccomp_filters"),
            expected.filters
        ));
    }
    match number("Threads") {
        Some(1) => None,
        threads => Some(format!("{threads:?} threads instead of one")),
    }
}

/// Number of seccomp filters on the worker itself, which all of its sandboxes inherit.
pub(super) fn own_filters() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"));
    line.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECTED: Expected = Expected { id: 1_000_070, filters: 2 };
    const CONFINED: &str = "Name:\tpython3\nUid:\t1000070\t1000070\t1000070\t1000070\n\
        Gid:\t1000070\t1000070\t1000070\t1000070\nGroups:\t \nThreads:\t1\nCapInh:\t0000000000000000\n\
        CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n\
        CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n";

    #[test]
    fn a_confined_leaf_has_kept_nothing() {
        assert_eq!(kept(CONFINED, EXPECTED), None);
    }

    #[test]
    fn each_thing_that_was_kept_is_named() {
        for (from, to, named) in [
            ("Uid:\t1000070\t1000070\t1000070", "Uid:\t1000070\t1000070\t0", "Uid"),
            ("Gid:\t1000070", "Gid:\t1000071", "Gid"),
            ("Uid:\t1000070\t1000070\t1000070\t1000070", "Uid:\t1000070", "Uid"),
            ("Groups:\t ", "Groups:\t27 ", "groups"),
            ("CapPrm:\t0000000000000000", "CapPrm:\t0000000000200000", "CapPrm"),
            ("CapBnd:\t0000000000000000\n", "", "CapBnd"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "gain"),
            ("Seccomp_filters:\t2", "Seccomp_filters:\t1", "filters"),
            ("Threads:\t1", "Threads:\t2", "threads"),
        ] {
            let status = CONFINED.replace(from, to);
            assert_ne!(status, CONFINED, "{from}");
            let said = kept(&status, EXPECTED);
            assert!(said.as_ref().is_some_and(|said| said.contains(named)), "{from}: {said:?}");
        }
        assert!(kept("", EXPECTED).is_some());
    }

    #[test]
    fn this_process_is_not_confined() {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        assert!(kept(&status, EXPECTED).is_some());
    }
}
