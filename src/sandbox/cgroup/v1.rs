//! The files of the v1 hierarchies. Their directories are kept in one list, since
//! controllers may share a hierarchy (`cpu,cpuacct`), and each is known by its
//! place in the list.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::dir::Dir;
use super::v2::{cpu_quota_us, keyed, mem_bytes, number};
use super::{CgroupError, EMPTY_BOUND_MS, FREEZE_BOUND_MS, within};
use crate::sandbox::Limits;

/// Memory that the sockets of one sandbox may hold, in bytes, beside its memory: v1 counts
/// it apart, and only where a limit is set. A TCP socket's first buffers are granted beyond it.
const SOCKET_BYTES: u64 = 8 << 20;

/// Where each controller is in the list of directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Places {
    pub memory: usize,
    pub cpu: usize,
    pub pids: usize,
}

/// Where those are that only a machine without any v2 hierarchy needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alone {
    pub freezer: usize,
    pub cpuacct: usize,
}

#[derive(Debug)]
pub(super) struct V1 {
    pub dirs: Vec<Dir>,
    pub places: Places,
}

impl V1 {
    pub fn limit(&self, old: Option<&Limits>, new: &Limits) -> Result<(), CgroupError> {
        let before = old.map(|old| self.values(old));
        if before.is_none() {
            // Absent where the kernel was built or told not to count it (`cgroup.memory=nosocket`).
            self.memory().write_if_there("memory.kmem.tcp.limit_in_bytes", &SOCKET_BYTES.to_string())?;
        }
        for (at, (dir, file, value)) in self.values(new).iter().enumerate() {
            if before.as_ref().is_none_or(|before| before[at].2 != *value) {
                dir.write(file, value)?;
            }
        }
        Ok(())
    }

    /// The period stays the kernel's default of 100 ms.
    fn values(&self, limits: &Limits) -> [(&Dir, &'static str, String); 4] {
        [
            (self.memory(), "memory.limit_in_bytes", mem_bytes(limits).to_string()),
            (self.memory(), "memory.swappiness", limits.swappiness.min(100).to_string()),
            (&self.dirs[self.places.cpu], "cpu.cfs_quota_us", cpu_quota_us(limits).to_string()),
            (self.pids(), "pids.max", limits.procs.to_string()),
        ]
    }

    pub fn mem_bytes(&self) -> Result<u64, CgroupError> {
        self.memory().read("memory.usage_in_bytes", number)
    }

    /// The plain names are of the directory alone, `total_` ones of all below it.
    pub fn memory_held(&self) -> Result<u64, CgroupError> {
        let cache =
            |text: &str| Some(keyed(text, "total_active_file")? + keyed(text, "total_inactive_file")?);
        Ok(self.mem_bytes()?.saturating_sub(self.memory().read("memory.stat", cache)?))
    }

    pub fn procs(&self) -> Result<u64, CgroupError> {
        self.pids().read("pids.current", number)
    }

    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        self.memory().read("memory.oom_control", |text| keyed(text, "oom_kill"))
    }

    pub fn cpu_us(&self, alone: Alone) -> Result<u64, CgroupError> {
        self.dirs[alone.cpuacct].read("cpuacct.usage", number).map(|nanoseconds| nanoseconds / 1_000)
    }

    pub fn populated(&self) -> Result<bool, CgroupError> {
        Ok(!self.members()?.is_empty())
    }

    pub fn freeze(&self, alone: Alone) -> Result<(), CgroupError> {
        let freezer = &self.dirs[alone.freezer];
        freezer.write("freezer.state", "FROZEN")?;
        if within(FREEZE_BOUND_MS, || freezer.read("freezer.state", frozen))? {
            return Ok(());
        }
        self.thaw(alone)?;
        Err(CgroupError::TooLate {
            path: freezer.path().to_owned(),
            state: "frozen",
            bound_ms: FREEZE_BOUND_MS,
        })
    }

    pub fn thaw(&self, alone: Alone) -> Result<(), CgroupError> {
        self.dirs[alone.freezer].write("freezer.state", "THAWED")
    }

    /// Kills until nobody is left. A frozen process can neither fork nor exit, so
    /// while the signals are sent no pid escapes and none can come to name
    /// somebody else; the signals take effect with the thaw, never before it.
    pub fn kill(&self, alone: Alone) -> Result<(), CgroupError> {
        let ended = within(EMPTY_BOUND_MS, || {
            let members = self.members()?;
            if members.is_empty() {
                // An empty cgroup that stayed frozen would trap whoever joins.
                self.thaw(alone)?;
                return Ok(true);
            }
            // Best effort: what cannot be frozen is signalled all the same.
            let _ = self.freeze(alone);
            let signalled = self.members().and_then(|members| members.into_iter().try_for_each(sigkill));
            self.thaw(alone)?;
            signalled.map(|()| false)
        })?;
        if ended {
            return Ok(());
        }
        let path = self.dirs[alone.freezer].path().to_owned();
        Err(CgroupError::TooLate { path, state: "empty", bound_ms: EMPTY_BOUND_MS })
    }

    /// Kills who is in it on v1 and cannot be frozen from here. A number may have
    /// passed to another process since it was read, so the process is held by a
    /// pidfd and its number looked up again before it is signalled.
    pub fn kill_strays(&self) -> Result<(), CgroupError> {
        for pid in self.members()? {
            let Ok(process) = hosier_zygote::sys::process::open_pidfd(pid) else { continue };
            if self.members()?.contains(&pid) {
                let _ = hosier_zygote::sys::process::kill_pidfd(process.as_fd());
            }
        }
        Ok(())
    }

    /// Of every hierarchy: one that moves itself may be in some already.
    fn members(&self) -> Result<BTreeSet<i32>, CgroupError> {
        let mut all = BTreeSet::new();
        for dir in &self.dirs {
            all.extend(dir.processes()?);
        }
        Ok(all)
    }

    fn memory(&self) -> &Dir {
        &self.dirs[self.places.memory]
    }

    fn pids(&self) -> &Dir {
        &self.dirs[self.places.pids]
    }
}

/// One that is gone already is fine.
pub(super) fn sigkill(pid: i32) -> Result<(), CgroupError> {
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(CgroupError::Failed { action: "kill", path: format!("/proc/{pid}").into(), errno }),
    }
}

fn frozen(state: &str) -> Option<bool> {
    match state.trim() {
        "FROZEN" => Some(true),
        "FREEZING" | "THAWED" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freezer_that_is_on_its_way_is_not_frozen() {
        assert_eq!(frozen("FREEZING\n"), Some(false));
        assert_eq!(frozen("FROZEN\n"), Some(true));
        assert_eq!(frozen("1\n"), None);
    }

    #[test]
    fn the_count_of_kills_is_not_the_state_of_the_killer() {
        assert_eq!(keyed("oom_kill_disable 1\nunder_oom 0\noom_kill 7\n", "oom_kill"), Some(7));
    }
}
