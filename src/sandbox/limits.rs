//! What one sandbox may use, as plain data. Read by every floor above.

use serde::{Deserialize, Serialize};

/// What one sandbox may use. Zero in a settings file means "the default";
/// here every value is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Processes and threads, at most.
    pub procs: u32,
    /// Memory, in MiB.
    pub mem_mb: u32,
    /// Share of one core, in percent (200 is two cores).
    pub cpu_percent: u32,
    /// Willingness to swap, 0 to 100 (v1 only).
    pub swappiness: u32,
    /// Longest run of one invocation, in seconds.
    pub runtime_sec: u32,
}

impl Default for Limits {
    /// OpenLambda's defaults for a function.
    fn default() -> Self {
        Self { procs: 10, mem_mb: 50, cpu_percent: 100, swappiness: 0, runtime_sec: 30 }
    }
}

impl Limits {
    /// Threads that a library's pool may have: one for each core's worth of processor
    /// time, of which the pools leave half of the processes to others.
    pub fn pool_threads(&self) -> u32 {
        (self.cpu_percent / 100).min(self.procs / 2).max(1)
    }
}

/// What a sandbox sees of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// A namespace of its own with `lo` up and nothing else.
    #[default]
    None,
    /// The host's network.
    Host,
}

/// Limits as a file gives them: a key that is absent or 0 is the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PartialLimits {
    pub procs: u32,
    pub mem_mb: u32,
    pub cpu_percent: u32,
    pub swappiness: u32,
    pub runtime_sec: u32,
}

impl PartialLimits {
    /// These where given, `default` elsewhere.
    pub fn or(self, default: Limits) -> Limits {
        let pick = |given, default| if given == 0 { default } else { given };
        Limits {
            procs: pick(self.procs, default.procs),
            mem_mb: pick(self.mem_mb, default.mem_mb),
            cpu_percent: pick(self.cpu_percent, default.cpu_percent),
            swappiness: pick(self.swappiness, default.swappiness),
            runtime_sec: pick(self.runtime_sec, default.runtime_sec),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_has_as_many_threads_as_there_is_processor_time_and_room_for() {
        let threads = |cpu_percent, procs| Limits { cpu_percent, procs, ..Limits::default() }.pool_threads();
        assert_eq!([threads(100, 10), threads(50, 10), threads(0, 0)], [1, 1, 1]);
        assert_eq!([threads(200, 10), threads(399, 10), threads(1600, 10)], [2, 3, 5]);
    }

    #[test]
    fn a_limit_that_is_not_given_is_the_default() {
        let given = PartialLimits { mem_mb: 300, ..PartialLimits::default() };
        assert_eq!(given.or(Limits::default()), Limits { mem_mb: 300, ..Limits::default() });
    }
}
