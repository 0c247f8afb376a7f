//! Ids that nobody else has: ranges of host ids, one a user namespace, and inside of it an
//! id for each leaf. Runs in the worker; the spawner holds the claims until it has cleared up.
//!
//! ```text
//! host     0x7000_0000 … ──── range 17 ──── …     claimed: a lock on byte 17 of CLAIMS
//! inside               0 (zygotes) … 1000, 1001, … (leaves)
//! ```

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::SandboxError;

/// Ids in one range.
pub const RANGE: u32 = 65_536;
/// Leaves of a tree take their ids from here up, inside the tree's range.
pub const FIRST_LEAF_ID: u32 = 1_000;
/// Above the ranges that distributions and systemd hand out, below 2^31, from
/// where on some programs take an id for a negative number.
const FIRST: u32 = 0x7000_0000;
const RANGES: u32 = 4_096;
/// The last thousand of a range (`nobody` and its like) is no leaf's.
const LEAF_IDS: u32 = RANGE - 2 * FIRST_LEAF_ID;
/// A file of the whole machine, empty: each process claims its ranges in it. The last one
/// to end removes it.
const CLAIMS: &str = "/run/hosier-ids.lock";
/// The byte that all who use the file share; whoever has it alone may remove the file.
const IN_USE: u32 = RANGES;
/// Number of times that the file is opened anew because somebody removed it meanwhile.
const OPENINGS: usize = 100;

/// Claims on ranges, against other processes of this machine. The kernel gives up those of
/// an open file when nobody has it open any more, so that a dead worker leaves none.
#[derive(Debug)]
pub struct Claims(Option<File>);

impl Claims {
    /// Opens the machine's file of claims. Without one, two workers can get the same
    /// range; the second value says why there is none.
    pub fn open() -> (Self, Option<String>) {
        match Self::at(Path::new(CLAIMS)) {
            Ok(claims) => (claims, None),
            Err(error) => {
                let note = format!(
                    "{CLAIMS}: {error}: two workers on this machine may give their sandboxes the same \
                     ids; make /run writable"
                );
                (Self(None), Some(note))
            }
        }
    }

    fn at(path: &Path) -> std::io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.custom_flags(libc::O_NOFOLLOW);
        for _ in 0..OPENINGS {
            let file = options.open(path)?;
            let shared = fcntl(&file, FcntlArg::F_OFD_SETLK(&byte(IN_USE, libc::F_RDLCK)));
            // Removed between the opening and the claim: a name that nobody else will find.
            if shared.is_ok() && file.metadata()?.nlink() > 0 {
                return Ok(Self(Some(file)));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(std::io::ErrorKind::ResourceBusy.into())
    }

    /// Removes the file if no other process uses it. Nothing may be claimed afterwards.
    pub(super) fn retire(&self) {
        self.retire_at(Path::new(CLAIMS));
    }

    fn retire_at(&self, path: &Path) {
        let Some(file) = &self.0 else { return };
        if fcntl(file, FcntlArg::F_OFD_SETLK(&byte(IN_USE, libc::F_WRLCK))).is_ok() {
            // It may be gone; an empty file that stays harms nobody.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Whether the range is this process's now.
    fn claim(&self, number: u32) -> bool {
        let Some(file) = &self.0 else { return true };
        fcntl(file, FcntlArg::F_OFD_SETLK(&byte(number, libc::F_WRLCK))).is_ok()
    }

    fn give_up(&self, number: u32) {
        if let Some(file) = &self.0 {
            let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&byte(number, libc::F_UNLCK)));
        }
    }
}

fn byte(number: u32, kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: number.into(),
        l_len: 1,
        l_pid: 0,
    }
}

/// Numbers below a bound, of which some are taken; the one that was given back last comes last.
#[derive(Debug)]
struct Numbers {
    next: u32,
    count: u32,
    /// A bit a number.
    taken: Vec<u64>,
}

impl Numbers {
    fn new(next: u32, count: u32) -> Self {
        Self { next, count, taken: vec![0; count.div_ceil(64) as usize] }
    }

    /// Takes one that is free and that `fits`.
    fn take(&mut self, fits: impl Fn(u32) -> bool) -> Option<u32> {
        for _ in 0..self.count {
            let number = self.next;
            self.next = (number + 1) % self.count;
            let (word, bit) = place(number);
            if self.taken[word] & bit == 0 && fits(number) {
                self.taken[word] |= bit;
                return Some(number);
            }
        }
        None
    }

    fn give_back(&mut self, number: u32) {
        let (word, bit) = place(number);
        self.taken[word] &= !bit;
    }
}

fn place(number: u32) -> (usize, u64) {
    (number as usize / 64, 1 << (number % 64))
}

/// Hands out ranges, each to one user namespace at a time.
#[derive(Debug, Clone)]
pub struct Ids(Arc<(Mutex<Numbers>, Claims)>);

/// A range, given back when dropped.
#[derive(Debug)]
pub struct IdRange {
    number: u32,
    ids: Ids,
}

impl Ids {
    /// `seed` spreads the workers of one machine, which makes a claim that fails rare.
    pub fn new(seed: u32, claims: Claims) -> Self {
        Self(Arc::new((Mutex::new(Numbers::new(seed % RANGES, RANGES)), claims)))
    }

    /// # Errors
    /// All ranges are taken.
    pub fn take(&self) -> Result<IdRange, SandboxError> {
        let (numbers, claims) = &*self.0;
        let number = locked(numbers).take(|number| claims.claim(number)).ok_or(SandboxError::NoIds)?;
        Ok(IdRange { number, ids: self.clone() })
    }
}

impl IdRange {
    /// The host id of the range's root.
    pub fn first(&self) -> u32 {
        FIRST + self.number * RANGE
    }
}

impl Drop for IdRange {
    fn drop(&mut self) {
        let (numbers, claims) = &*self.ids.0;
        let mut numbers = locked(numbers);
        claims.give_up(self.number);
        numbers.give_back(self.number);
    }
}

/// Hands out the ids of the leaves in one user namespace, each to one leaf at a time.
#[derive(Debug, Clone)]
pub struct LeafIds(Arc<Mutex<Numbers>>);

/// An id of a leaf, given back when dropped: nobody runs under it then.
#[derive(Debug)]
pub struct LeafId {
    number: u32,
    ids: LeafIds,
}

impl LeafIds {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Numbers::new(0, LEAF_IDS))))
    }

    /// # Errors
    /// All are in use.
    pub fn take(&self) -> Result<LeafId, SandboxError> {
        let number = locked(&self.0).take(|_| true).ok_or(SandboxError::NoLeafIds { count: LEAF_IDS })?;
        Ok(LeafId { number, ids: self.clone() })
    }
}

impl LeafId {
    /// The id inside the user namespace.
    pub fn inside(&self) -> u32 {
        FIRST_LEAF_ID + self.number
    }
}

impl Drop for LeafId {
    fn drop(&mut self) {
        locked(&self.ids.0).give_back(self.number);
    }
}

/// A panic while the lock was held leaves bits that are still bits.
fn locked(numbers: &Mutex<Numbers>) -> MutexGuard<'_, Numbers> {
    numbers.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn alone(seed: u32) -> Ids {
        Ids::new(seed, Claims(None))
    }

    #[test]
    fn two_living_namespaces_never_share_an_id() {
        let ids = alone(RANGES - 1);
        let (a, b) = (ids.take().unwrap(), ids.take().unwrap());
        assert!(a.first().abs_diff(b.first()) >= RANGE);
        assert!(a.first().checked_add(RANGE).is_some_and(|end| end <= 1 << 31));
    }

    #[test]
    fn a_dropped_range_is_handed_out_again() {
        let ids = alone(0);
        let all: Vec<_> = (0..RANGES).map(|_| ids.take().unwrap()).collect();
        assert!(matches!(ids.take(), Err(SandboxError::NoIds)));
        drop(all);
        assert!(ids.take().is_ok());
    }

    /// The kernel keeps an open file's claims from any other, of this process or another's.
    #[test]
    fn two_processes_of_one_machine_never_have_the_same_range() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("claims");
        let [worker, deploy] = [0, 0].map(|seed| Ids::new(seed, Claims::at(&path).unwrap()));
        let held = [worker.take().unwrap(), worker.take().unwrap()];
        let beside: Vec<_> = (0..8).map(|_| deploy.take().unwrap()).collect();
        let all: BTreeSet<_> = held.iter().chain(&beside).map(IdRange::first).collect();
        assert_eq!(all.len(), 10);
        drop((held, beside));
        let again: Vec<_> = (0..RANGES).map(|_| deploy.take().unwrap()).collect();
        assert_eq!(again.len(), RANGES as usize, "what is given back, another process may take");
        assert!(worker.take().is_err());
        drop((again, deploy));
        assert!(worker.take().is_ok(), "what ends leaves no claim");
    }

    #[test]
    fn the_last_process_removes_the_file_and_no_other_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("claims");
        let [first, last] = [0, 0].map(|_| Claims::at(&path).unwrap());
        first.retire_at(&path);
        assert!(path.exists(), "somebody uses it");
        drop(first);
        last.retire_at(&path);
        assert!(!path.exists());
        // Whoever comes while it is being removed gets one that others will find.
        let next = Claims::at(&path).unwrap();
        assert!(path.exists() && next.claim(7));
    }

    #[test]
    fn an_id_of_a_leaf_is_never_given_twice_while_it_is_in_use() {
        let ids = LeafIds::new();
        let stays = ids.take().unwrap();
        for _ in 0..2 * LEAF_IDS {
            assert_ne!(ids.take().unwrap().inside(), stays.inside());
        }
        let rest: Vec<_> = (1..LEAF_IDS).map(|_| ids.take().unwrap()).collect();
        assert!(rest.iter().all(|id| (FIRST_LEAF_ID..RANGE - FIRST_LEAF_ID).contains(&id.inside())));
        assert!(matches!(ids.take(), Err(SandboxError::NoLeafIds { .. })));
        drop(stays);
        assert!(ids.take().is_ok());
    }
}
