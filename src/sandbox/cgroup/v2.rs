//! The files of a v2 hierarchy: with the controllers on a pure v2 machine, with
//! only `cgroup.*` and `cpu.stat` on a hybrid one.

use nix::errno::Errno;

use super::dir::Dir;
use super::{CgroupError, EMPTY_BOUND_MS, FREEZE_BOUND_MS, within};
use crate::sandbox::Limits;

/// What a sandbox's limits need.
pub(super) const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// The kernel's default, which v1 and v2 share.
pub(super) const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses a smaller quota.
const CPU_QUOTA_LEAST_US: u64 = 1_000;

#[derive(Debug)]
pub(super) struct V2(pub Dir);

impl V2 {
    /// Lets the children of this cgroup have limits. The machine may have enabled
    /// some already; those are left alone.
    pub fn enable_controllers(&self) -> Result<(), CgroupError> {
        match self.0.read("cgroup.subtree_control", |text| Some(missing(text)))? {
            lacking if lacking.is_empty() => Ok(()),
            lacking => self.0.write("cgroup.subtree_control", &lacking),
        }
    }

    /// Writes the limits that differ from `old`; all of them when it is `None`.
    pub fn limit(&self, old: Option<&Limits>, new: &Limits) -> Result<(), CgroupError> {
        let before = old.map(values);
        for (at, (file, value)) in values(new).iter().enumerate() {
            if before.as_ref().is_none_or(|before| before[at].1 != *value) {
                // Without CONFIG_SWAP or with `swapaccount=0` there is no such file.
                match *file {
                    "memory.swap.max" => self.0.write_if_there(file, value)?,
                    file => self.0.write(file, value)?,
                }
            }
        }
        Ok(())
    }

    /// A sandbox that reaches its memory limit ends as a whole: what survives of
    /// it would be in no known state.
    pub fn end_as_one_when_out_of_memory(&self) -> Result<(), CgroupError> {
        self.0.write("memory.oom.group", "1")
    }

    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.0.write("cgroup.freeze", "1")?;
        let frozen = || self.0.read("cgroup.events", |text| flag(text, "frozen"));
        if within(FREEZE_BOUND_MS, frozen)? {
            return Ok(());
        }
        self.thaw()?;
        Err(CgroupError::TooLate {
            path: self.0.path().to_owned(),
            state: "frozen",
            bound_ms: FREEZE_BOUND_MS,
        })
    }

    /// The state needs no reading back: the kernel clears it within this write and
    /// has woken every process when the write returns.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.0.write("cgroup.freeze", "0")
    }

    /// Everything below it gets a SIGKILL, frozen or not, and a fork cannot escape.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match self.0.write("cgroup.kill", "1") {
            Err(error) if error.errno() == Some(Errno::ENOENT) => {
                return Err(CgroupError::NoKill { path: self.0.path().join("cgroup.kill") });
            }
            written => written?,
        }
        if within(EMPTY_BOUND_MS, || Ok(!self.populated()?))? {
            return Ok(());
        }
        Err(CgroupError::TooLate { path: self.0.path().to_owned(), state: "empty", bound_ms: EMPTY_BOUND_MS })
    }

    pub fn populated(&self) -> Result<bool, CgroupError> {
        self.0.read("cgroup.events", |text| flag(text, "populated"))
    }

    pub fn mem_bytes(&self) -> Result<u64, CgroupError> {
        self.0.read("memory.current", number)
    }

    pub fn memory_held(&self) -> Result<u64, CgroupError> {
        let cache = |text: &str| Some(keyed(text, "active_file")? + keyed(text, "inactive_file")?);
        Ok(self.mem_bytes()?.saturating_sub(self.0.read("memory.stat", cache)?))
    }

    /// Needs no controller: every v2 cgroup counts its time.
    pub fn cpu_us(&self) -> Result<u64, CgroupError> {
        self.0.read("cpu.stat", |text| keyed(text, "usage_usec"))
    }

    pub fn procs(&self) -> Result<u64, CgroupError> {
        self.0.read("pids.current", number)
    }

    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        self.0.read("memory.events", |text| keyed(text, "oom_kill"))
    }
}

/// What is to be written to `cgroup.subtree_control` that has `enabled` already.
fn missing(enabled: &str) -> String {
    let enabled: Vec<&str> = enabled.split_whitespace().collect();
    let lacking = CONTROLLERS.iter().filter(|controller| !enabled.contains(controller));
    lacking.map(|controller| format!("+{controller}")).collect::<Vec<_>>().join(" ")
}

fn values(limits: &Limits) -> [(&'static str, String); 4] {
    // v2 has no swappiness of its own per cgroup: none, or as the machine does.
    let swap = if limits.swappiness == 0 { "0" } else { "max" };
    [
        ("memory.max", mem_bytes(limits).to_string()),
        ("memory.swap.max", swap.to_owned()),
        ("cpu.max", format!("{} {CPU_PERIOD_US}", cpu_quota_us(limits))),
        ("pids.max", limits.procs.to_string()),
    ]
}

pub(super) fn mem_bytes(limits: &Limits) -> u64 {
    u64::from(limits.mem_mb) << 20
}

pub(super) fn cpu_quota_us(limits: &Limits) -> u64 {
    (u64::from(limits.cpu_percent) * CPU_PERIOD_US / 100).max(CPU_QUOTA_LEAST_US)
}

/// A file that is one number.
pub(super) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// A number in a file of `key value` lines.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).and_then(number)
}

fn flag(text: &str, key: &str) -> Option<bool> {
    keyed(text, key).map(|value| value != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { procs: 10, mem_mb: 50, cpu_percent: 150, swappiness: 0, runtime_sec: 30 };

    #[test]
    fn limits_become_the_values_that_v2_reads() {
        let expected = [
            ("memory.max", "52428800"),
            ("memory.swap.max", "0"),
            ("cpu.max", "150000 100000"),
            ("pids.max", "10"),
        ];
        assert_eq!(values(&LIMITS), expected.map(|(file, value)| (file, value.to_owned())));
        assert_eq!(values(&Limits { swappiness: 60, ..LIMITS })[1].1, "max");
    }

    #[test]
    fn the_smallest_share_is_what_the_kernel_accepts() {
        assert_eq!(cpu_quota_us(&Limits { cpu_percent: 0, ..LIMITS }), 1_000);
        assert_eq!(cpu_quota_us(&Limits { cpu_percent: 1, ..LIMITS }), 1_000);
    }

    #[test]
    fn the_largest_values_do_not_overflow() {
        let most = Limits { mem_mb: u32::MAX, cpu_percent: u32::MAX, ..LIMITS };
        assert_eq!(mem_bytes(&most), 4_503_599_626_321_920);
        assert_eq!(cpu_quota_us(&most), 4_294_967_295_000);
    }

    #[test]
    fn only_controllers_that_are_off_are_enabled() {
        assert_eq!(missing(""), "+memory +cpu +pids");
        assert_eq!(missing("cpuset cpu io memory hugetlb\n"), "+pids");
        assert_eq!(missing("cpu memory pids\n"), "");
        assert_eq!(missing("cpuset\n"), "+memory +cpu +pids");
    }

    #[test]
    fn a_key_is_matched_whole() {
        let events = "low 0\nhigh 0\nmax 31\noom 4\noom_kill 3\noom_group_kill 1\n";
        assert_eq!(keyed(events, "oom_kill"), Some(3));
        assert_eq!(keyed(events, "oom"), Some(4));
        assert_eq!(keyed(events, "oom_"), None);
        assert_eq!(flag("populated 1\nfrozen 0\n", "populated"), Some(true));
        assert_eq!(flag("populated 1\nfrozen 0\n", "frozen"), Some(false));
        assert_eq!(flag("populated 1\n", "frozen"), None);
        assert_eq!(number("max\n"), None);
    }

    /// The writes themselves, on plain files: this machine's v2 may have no
    /// controllers. Real ones are for the smoke test that boots a pure v2 kernel.
    #[test]
    fn only_a_limit_that_differs_is_written() {
        let place = tempfile::tempdir().unwrap();
        let contents = || {
            let read = |file| std::fs::read_to_string(place.path().join(file)).unwrap();
            ["memory.max", "cpu.max", "pids.max"].map(read)
        };
        for file in ["memory.max", "cpu.max", "pids.max"] {
            std::fs::write(place.path().join(file), "").unwrap();
        }
        let v2 = V2(Dir::open(place.path()).unwrap());
        v2.limit(Some(&LIMITS), &LIMITS).unwrap();
        assert_eq!(contents(), ["", "", ""]);
        v2.limit(Some(&LIMITS), &Limits { procs: 3, runtime_sec: 9, ..LIMITS }).unwrap();
        assert_eq!(contents(), ["", "", "3"]);
        v2.limit(None, &LIMITS).unwrap();
        assert_eq!(
            contents(),
            ["52428800", "150000 100000", "10"],
            "with no memory.swap.max, as without swap"
        );
    }

    #[test]
    fn an_old_kernel_is_told_from_a_failure() {
        let place = tempfile::tempdir().unwrap();
        let error = V2(Dir::open(place.path()).unwrap()).kill().unwrap_err();
        assert!(error.to_string().contains("5.14"), "{error}");
    }
}
