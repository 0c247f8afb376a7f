//! What processes and the machine have of memory, as `/proc` tells it. Runs in
//! the worker, away from every request's path: a look at one leaf of a large
//! node costs the kernel a walk over hundreds of mappings.
//!
//! | of a process | is |
//! |---|---|
//! | faults | pages that it touched first: minor ones, and major ones that waited for a disk |
//! | private | what its end would give back (USS) |
//! | shared | what it has in common with its zygote, its siblings, or anybody |
//! | pss | private, and of each shared page its share |

use std::io;
use std::os::fd::OwnedFd;

use super::pidfd;

/// The memory of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessMemory {
    pub minor_faults: u64,
    pub major_faults: u64,
    pub private_kib: u64,
    pub shared_kib: u64,
    pub pss_kib: u64,
}

/// The memory of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineMemory {
    pub total: u64,
    /// What could be had without swapping.
    pub available: u64,
}

impl ProcessMemory {
    /// Looks at the process behind `pidfd`. Blocks for up to a millisecond.
    ///
    /// # Errors
    /// The process is gone.
    pub fn of(pidfd: &OwnedFd) -> io::Result<Self> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let pid = pidfd::number(pidfd).filter(|pid| *pid > 0).ok_or_else(gone)?;
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
        let (stat, rollup) = (read("stat")?, read("smaps_rollup")?);
        // Whoever has the pid now, it was this process while its pidfd lives.
        if !pidfd::is_alive(pidfd) {
            return Err(gone());
        }
        Self::parse(&stat, &rollup).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn parse(stat: &str, rollup: &str) -> Option<Self> {
        // The name in parentheses is the process' own choice and may hold any of these characters.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(7);
        let minor_faults = fields.next()?.parse().ok()?;
        let major_faults = fields.nth(1)?.parse().ok()?;
        let kib = |key| kib(rollup, key);
        Some(Self {
            minor_faults,
            major_faults,
            private_kib: kib("Private_Clean:")? + kib("Private_Dirty:")?,
            shared_kib: kib("Shared_Clean:")? + kib("Shared_Dirty:")?,
            pss_kib: kib("Pss:")?,
        })
    }
}

impl MachineMemory {
    /// # Errors
    /// `/proc/meminfo` cannot be read.
    pub fn now() -> io::Result<Self> {
        let text = std::fs::read_to_string("/proc/meminfo")?;
        let bytes = |key| kib(&text, key).map(|kib| kib << 10).ok_or(io::ErrorKind::InvalidData);
        Ok(Self { total: bytes("MemTotal:")?, available: bytes("MemAvailable:")? })
    }
}

/// A number in lines of `Key:   number kB`.
fn kib(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLLUP: &str = "55d0-7ffe ---p 00000000 00:00 0 [rollup]\n\
        Rss:               12000 kB\nPss:                4000 kB\nPss_Dirty:          1000 kB\n\
        Shared_Clean:       7000 kB\nShared_Dirty:       3000 kB\n\
        Private_Clean:       500 kB\nPrivate_Dirty:      1500 kB\n";

    #[test]
    fn a_process_that_names_itself_after_the_format_is_read_as_any_other() {
        let stat = "7 (a) R 1 (b) S 1 7 7 0 -1 4194560 398 11 2 33 4 5 6 7";
        let read = ProcessMemory::parse(stat, ROLLUP).unwrap();
        let expected = ProcessMemory {
            minor_faults: 398,
            major_faults: 2,
            private_kib: 2000,
            shared_kib: 10_000,
            pss_kib: 4000,
        };
        assert_eq!(read, expected);
        assert_eq!(ProcessMemory::parse(stat, "Pss: 1 kB\n"), None);
    }

    #[test]
    fn what_a_process_writes_is_private_to_it() {
        let me = hosier_zygote::sys::process::open_pidfd(std::process::id() as i32).unwrap();
        let before = ProcessMemory::of(&me).unwrap();
        let memory = std::hint::black_box(vec![7u8; 32 << 20]);
        let after = ProcessMemory::of(&me).unwrap();
        assert!(after.private_kib >= before.private_kib + (30 << 10), "{before:?} {after:?}");
        assert!(after.minor_faults > before.minor_faults && after.pss_kib >= after.private_kib);
        drop(memory);
    }

    #[test]
    fn a_process_that_is_gone_has_none() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pidfd = hosier_zygote::sys::process::open_pidfd(child.id() as i32).unwrap();
        child.wait().unwrap();
        assert!(ProcessMemory::of(&pidfd).is_err());
    }

    #[test]
    fn a_machine_has_no_more_available_than_it_has() {
        let machine = MachineMemory::now().unwrap();
        assert!(machine.available > 0 && machine.available < machine.total);
    }
}
