//! Which pages the leaves of one zygote touch up to their first answer. Runs in
//! the worker; the merging is pure.
//!
//! ```text
//! first answer ─▶ observe (/proc/PID/maps, pagemap) ─▶ WorkingSet::learn ─┐ a few leaves
//!                                        blank ◀── Prefault ── WorkingSet ┘
//! ```
//!
//! It belongs to one incarnation of a node: addresses are the same in all its
//! children, and in no other's. What a sandbox did decides what is in it, so
//! it is bounded in samples, pages and ranges; populating a page that is not
//! needed costs memory and time, and nothing else.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use hosier_zygote::wire::{PageRange, Prefault};

/// Leaves that are observed.
const SAMPLES: u32 = 8;
/// Pages that a blank writes to, at most: 8 MiB.
const WRITTEN: usize = 2_048;
/// Pages that a blank maps for reading, at most.
const READ: usize = 16_384;
/// Pages of one leaf that are looked at, at most: 2 GiB.
const LOOKED_AT: u64 = 512 * 1024;
const PAGE: u64 = 4096;

/// What one leaf touched: pages by number.
#[derive(Debug, Default)]
pub struct Touched {
    pub written: Vec<u64>,
    pub read: Vec<u64>,
}

/// What leaves of one zygote touched so far.
#[derive(Debug, Default)]
pub struct WorkingSet {
    samples: u32,
    written: BTreeMap<u64, u32>,
    read: BTreeMap<u64, u32>,
}

impl WorkingSet {
    /// Whether another leaf should be observed.
    pub fn wants_more(&self) -> bool {
        self.samples < SAMPLES
    }

    pub fn learn(&mut self, touched: &Touched) {
        self.samples += 1;
        for (known, pages) in [(&mut self.written, &touched.written), (&mut self.read, &touched.read)] {
            for page in pages {
                // Enough for what may be sent, whatever a leaf did.
                if known.len() < 4 * READ || known.contains_key(page) {
                    *known.entry(*page).or_default() += 1;
                }
            }
        }
    }

    /// Leaves that were observed, and pages that a blank would write to and read.
    pub fn size(&self) -> (u32, usize, usize) {
        let usual =
            |pages: &BTreeMap<u64, u32>| pages.values().filter(|count| **count * 2 >= self.samples).count();
        (self.samples, usual(&self.written), usual(&self.read))
    }

    /// The pages that at least half of the leaves touched; `None` before the first.
    pub fn prefault(&self) -> Option<Prefault> {
        let usual = |pages: &BTreeMap<u64, u32>, limit| {
            let often = pages.iter().filter(|(_, count)| **count * 2 >= self.samples);
            ranges(often.map(|(page, _)| *page).take(limit))
        };
        (self.samples > 0)
            .then(|| Prefault { read: usual(&self.read, READ), write: usual(&self.written, WRITTEN) })
    }
}

/// Joins sorted page numbers that follow each other.
fn ranges(pages: impl Iterator<Item = u64>) -> Vec<PageRange> {
    let mut ranges: Vec<PageRange> = Vec::new();
    for page in pages {
        match ranges.last_mut() {
            Some(last) if last.page + u64::from(last.count) == page => last.count += 1,
            _ => ranges.push(PageRange { page, count: 1 }),
        }
    }
    ranges
}

/// Looks at what a leaf has touched. Blocks for a few milliseconds.
///
/// `pid` is the process behind `pidfd`, which is asked at the end whether it
/// still was that process.
///
/// # Errors
/// The process is gone.
pub fn observe(pid: i32, pidfd: &OwnedFd) -> io::Result<Touched> {
    let maps = BufReader::new(File::open(format!("/proc/{pid}/maps"))?);
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let (mut touched, mut looked) = (Touched::default(), 0);
    let mut entries = vec![0; 8 * 512];
    for line in maps.lines() {
        let Some((start, end)) = private(&line?) else { continue };
        let mut page = start / PAGE;
        while page < end / PAGE && looked < LOOKED_AT {
            let count = (end / PAGE - page).min(512);
            let bytes = &mut entries[..8 * count as usize];
            pagemap.read_exact_at(bytes, page * 8)?;
            for (index, entry) in bytes.chunks_exact(8).enumerate() {
                let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
                sort(&mut touched, page + index as u64, entry);
            }
            page += count;
            looked += count;
        }
    }
    // Whoever has the pid now, it was this process while its pidfd lives.
    if crate::sandbox::pidfd::is_alive(pidfd) { Ok(touched) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Bits of an entry of pagemap (Documentation/admin-guide/mm/pagemap.rst).
fn sort(touched: &mut Touched, page: u64, entry: u64) {
    const PRESENT: u64 = 1 << 63;
    const FILE_OR_SHARED: u64 = 1 << 61;
    const EXCLUSIVE: u64 = 1 << 56;
    if entry & PRESENT == 0 {
        return;
    }
    if entry & FILE_OR_SHARED != 0 {
        touched.read.push(page);
    } else if entry & EXCLUSIVE != 0 {
        // Anonymous and mapped here alone: copied when this leaf wrote to it.
        touched.written.push(page);
    }
}

/// The bounds of a private mapping that can be populated.
fn private(line: &str) -> Option<(u64, u64)> {
    let (range, rest) = line.split_once(' ')?;
    let special = ["[stack", "[v"].iter().any(|name| rest.contains(name));
    if special || !rest.starts_with('r') || rest.as_bytes().get(3) != Some(&b'p') {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_only_one_of_many_leaves_touched_are_left_out() {
        let mut set = WorkingSet::default();
        assert_eq!(set.prefault(), None);
        for leaf in 0..4 {
            set.learn(&Touched { written: vec![10, 11, 100 + leaf], read: vec![50] });
        }
        let wanted = set.prefault().unwrap();
        assert_eq!(wanted.write, [PageRange { page: 10, count: 2 }]);
        assert_eq!(wanted.read, [PageRange { page: 50, count: 1 }]);
    }

    #[test]
    fn a_leaf_that_touches_everything_cannot_make_a_blank_expensive() {
        let mut set = WorkingSet::default();
        set.learn(&Touched { written: (0..1_000_000).map(|page| page * 2).collect(), read: Vec::new() });
        let pages: u32 = set.prefault().unwrap().write.iter().map(|range| range.count).sum();
        assert!(pages as usize <= WRITTEN);
        assert!(set.written.len() <= 4 * READ);
    }

    #[test]
    fn a_page_is_written_if_it_is_this_leafs_alone() {
        let mut touched = Touched::default();
        for (page, entry) in [(1, 1 << 63 | 1 << 56), (2, 1 << 63), (3, 1 << 63 | 1 << 61), (4, 0)] {
            sort(&mut touched, page, entry);
        }
        assert_eq!((touched.written, touched.read), (vec![1], vec![3]));
    }

    #[test]
    fn what_a_process_wrote_is_found_in_itself() {
        let memory = std::hint::black_box(vec![7u8; 64 * 4096]);
        let me = std::process::id() as i32;
        let pidfd = hosier_zygote::sys::process::open_pidfd(me).unwrap();
        let touched = observe(me, &pidfd).unwrap();
        let page = memory.as_ptr() as u64 / PAGE + 1;
        assert!(touched.written.contains(&page));
    }
}
