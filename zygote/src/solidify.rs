//! Solidify: moves a process's private writable memory into a sealed memfd,
//! mapped back in place. Runs in a zygote, after its imports, before its first fork.
//!
//! ```text
//! before   [heap] [arena] [libx .data]      anonymous pages: a fork copies their page tables
//! after    ─────────── one memfd ──────     file-backed, no anonymous page: a fork skips them,
//!             private, same addresses       children share one copy
//! ```
//!
//! A fork skips a mapping only while nothing has been written to it since, so the
//! garbage collector stays off and the fork loop is native.
//!
//! From reading the map to the last replacement nothing may be allocated, and
//! only one thread may run: what is written in between would be lost. The
//! tables live in a scratch mapping of their own.
//!
//! What a fork treats specially keeps its nature: wipe-on-fork pages (glibc's and
//! BoringSSL's random state), `MADV_DONTFORK`, locked and huge pages are left alone.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;

use crate::sys::{self, Named, SysError, process};

const PAGE: usize = 4096;
/// Room for the text of `/proc/self/smaps`: about 700 bytes a mapping.
const TEXT: usize = 8 << 20;
/// Mappings, at most; further ones stay as they are.
const MAPPINGS: usize = 8192;

/// A mapping is moved in pieces that share no page table, a page apart in the
/// memfd so that the kernel does not join them: a fork copies a whole mapping again
/// once one page of it was written, and the loop itself writes a few.
const CHUNK: usize = 2 << 20;

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Mappings that were moved.
    pub moved: u32,
    /// Bytes that were copied: pages that are not all zero.
    pub bytes: u64,
    /// Writable private mappings that were left alone.
    pub left: u32,
}

#[derive(Clone, Copy)]
struct Region {
    start: usize,
    end: usize,
    protection: i32,
}

/// Moves what can be moved.
///
/// # Errors
/// More than one thread runs, or memory is short. The process goes on unharmed:
/// each mapping is either moved, content and all, or as it was.
pub fn solidify() -> sys::Result<Report> {
    if process::thread_count()? != 1 {
        return Err(SysError { call: "solidify", errno: Errno::EBUSY });
    }
    let memfd = nix::sys::memfd::memfd_create(
        c"hosier-zygote",
        nix::sys::memfd::MFdFlags::MFD_CLOEXEC | nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING,
    )
    .named("memfd_create")?;
    let maps = nix::fcntl::open(
        c"/proc/self/smaps",
        nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
    .named("open")?;
    let mut scratch = Scratch::new()?;
    // From here on: no allocation.
    let mut report = Report::default();
    let count = scratch.read(&maps, &mut report)?;
    let total: usize = (0..count).flat_map(|index| scratch.regions()[index].chunks()).map(room).sum();
    nix::unistd::ftruncate(&memfd, total as libc::off_t).named("ftruncate")?;
    let mut offset = 0;
    for index in 0..count {
        for chunk in scratch.regions()[index].chunks() {
            report.bytes += copy(&memfd, chunk, offset)?;
            replace(&memfd, chunk, offset)?;
            offset += room(chunk);
        }
        report.moved += 1;
    }
    seal(&memfd);
    Ok(report)
}

impl Region {
    fn chunks(self) -> impl Iterator<Item = Region> {
        let mut start = self.start;
        std::iter::from_fn(move || {
            let end = self.end.min((start / CHUNK + 1) * CHUNK);
            let chunk = Region { start, end, protection: self.protection };
            start = end;
            (chunk.start < chunk.end).then_some(chunk)
        })
    }
}

/// What a chunk takes of the memfd.
fn room(chunk: Region) -> usize {
    chunk.end - chunk.start + PAGE
}

/// The pass's own memory: outside of what it moves.
struct Scratch {
    base: *mut u8,
}

impl Scratch {
    const SIZE: usize = TEXT + MAPPINGS * size_of::<Region>();

    fn new() -> sys::Result<Self> {
        // SAFETY: a new anonymous mapping anywhere touches nothing that exists.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(SysError { call: "mmap", errno: Errno::last() });
        }
        Ok(Self { base: base.cast() })
    }

    fn text(&mut self) -> &mut [u8] {
        // SAFETY: the first TEXT bytes of a mapping that lives as long as self.
        unsafe { std::slice::from_raw_parts_mut(self.base, TEXT) }
    }

    fn regions(&mut self) -> &mut [Region] {
        // SAFETY: the rest of the mapping, after TEXT bytes (a multiple of the page
        // size, so aligned); zeroed memory is a valid Region. It is disjoint from `text`.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(TEXT).cast(), MAPPINGS) }
    }

    /// Reads the map and keeps what can be moved; how many.
    fn read(&mut self, maps: &OwnedFd, report: &mut Report) -> sys::Result<usize> {
        let mut filled = 0;
        loop {
            match nix::unistd::read(maps, &mut self.text()[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(SysError { call: "read", errno }),
            }
            if filled == TEXT {
                return Err(SysError { call: "solidify", errno: Errno::E2BIG });
            }
        }
        let own = self.base as usize..self.base as usize + Self::SIZE;
        let (text, regions) = {
            // SAFETY: two disjoint parts of the mapping, as above.
            let text = unsafe { std::slice::from_raw_parts(self.base.cast_const(), filled) };
            (text, self.regions())
        };
        let (mut count, mut current) = (0, None);
        for line in text.split(|byte| *byte == b'\n') {
            if let Some(region) = header(line) {
                // `[stack]` grows and is this function's own; kernel pages are not ours.
                let fit = region.filter(|region| !own.contains(&region.start));
                current = fit;
            } else if let Some(flags) = line.strip_prefix(b"VmFlags:")
                && let Some(region) = current.take()
            {
                if special(flags) || count == MAPPINGS {
                    report.left += 1;
                } else {
                    regions[count] = region;
                    count += 1;
                }
            }
        }
        Ok(count)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; no reference outlives self.
        unsafe { libc::munmap(self.base.cast(), Self::SIZE) };
    }
}

/// A mapping's first line: `Some(Some)` if it is private and writable, `Some(None)`
/// if not, `None` if the line is no first line.
fn header(line: &[u8]) -> Option<Option<Region>> {
    let (start, rest) = hex(line)?;
    let (end, rest) = hex(rest.strip_prefix(b"-")?)?;
    let rest = rest.strip_prefix(b" ")?;
    let [read, write, execute, share, ..] = rest else { return None };
    let private = (*read, *write, *share) == (b'r', b'w', b'p');
    let ours = !contains(rest, b"[stack") && !contains(rest, b"[v");
    let protection = libc::PROT_READ | libc::PROT_WRITE | if *execute == b'x' { libc::PROT_EXEC } else { 0 };
    Some((private && ours).then_some(Region { start, end, protection }))
}

/// Mappings that a fork or the pager treats specially: wipe-on-fork, not copied
/// by a fork, locked, not dumped, stack-like, huge, device memory.
fn special(flags: &[u8]) -> bool {
    const SPECIAL: [&[u8]; 9] = [b"wf", b"dc", b"lo", b"dp", b"gd", b"ht", b"io", b"pf", b"um"];
    flags.split(|byte| *byte == b' ').any(|flag| SPECIAL.contains(&flag))
}

fn hex(text: &[u8]) -> Option<(usize, &[u8])> {
    let (mut value, mut digits) = (0usize, 0);
    for byte in text {
        let Some(digit) = (*byte as char).to_digit(16) else { break };
        value = value << 4 | digit as usize;
        digits += 1;
    }
    (1..=16).contains(&digits).then(|| (value, &text[digits..]))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Copies the pages that are not all zero; the others stay holes.
fn copy(memfd: &OwnedFd, region: Region, offset: usize) -> sys::Result<u64> {
    let (mut copied, mut at) = (0, region.start);
    while at < region.end {
        if !is_zero(at) {
            // SAFETY: the kernel reads one page of a readable mapping of ours.
            let written = unsafe {
                libc::pwrite(
                    memfd.as_raw_fd(),
                    at as *const libc::c_void,
                    PAGE,
                    (offset + at - region.start) as libc::off_t,
                )
            };
            if written != PAGE as isize {
                let errno = if written < 0 { Errno::last() } else { Errno::ENOSPC };
                return Err(SysError { call: "pwrite64", errno });
            }
            copied += PAGE as u64;
        }
        at += PAGE;
    }
    Ok(copied)
}

fn is_zero(page: usize) -> bool {
    // SAFETY: a whole page of a readable mapping; volatile, since it may be
    // memory that Rust knows by another name.
    (0..PAGE / 8).all(|word| unsafe { std::ptr::read_volatile((page as *const u64).add(word)) } == 0)
}

fn replace(memfd: &OwnedFd, region: Region, offset: usize) -> sys::Result<()> {
    // SAFETY: the new mapping has the size, the protection and, as just copied, the
    // content of the one that it replaces, and no other thread runs: no reference into it can tell.
    let mapped = unsafe {
        libc::mmap(
            region.start as *mut libc::c_void,
            region.end - region.start,
            region.protection,
            libc::MAP_PRIVATE | libc::MAP_FIXED,
            memfd.as_raw_fd(),
            offset as libc::off_t,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(SysError { call: "mmap", errno: Errno::last() });
    }
    Ok(())
}

/// Nobody changes the copy any more: a child that found the descriptor could
/// otherwise write into its siblings.
fn seal(memfd: &OwnedFd) {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    let _ = fcntl(memfd, FcntlArg::F_ADD_SEALS(seals));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_told_from_the_lines_below_it() {
        let line = b"7f00-7f10 rw-p 00000000 00:00 0                          [heap]";
        assert!(matches!(header(line), Some(Some(Region { start: 0x7f00, end: 0x7f10, .. }))));
        for unfit in [
            &b"7f00-7f10 r--p 00000000 00:00 0"[..],
            b"7f00-7f10 rw-s 00000000 00:00 0",
            b"7f00-7f10 rw-p 0 00:00 0 [stack]",
        ] {
            assert!(matches!(header(unfit), Some(None)), "{unfit:?}");
        }
        for other in [&b"Size:                  4 kB"[..], b"VmFlags: rd wr", b"AnonHugePages: 0 kB", b""] {
            assert!(header(other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn chunks_cover_a_region_and_share_no_page_table() {
        let region = Region { start: CHUNK - PAGE, end: 3 * CHUNK + PAGE, protection: 0 };
        let chunks: Vec<_> = region.chunks().map(|chunk| (chunk.start, chunk.end)).collect();
        let edges = [CHUNK - PAGE, CHUNK, 2 * CHUNK, 3 * CHUNK, 3 * CHUNK + PAGE];
        assert_eq!(chunks, edges.windows(2).map(|edge| (edge[0], edge[1])).collect::<Vec<_>>());
    }

    #[test]
    fn what_a_fork_treats_specially_is_left_alone() {
        assert!(special(b" rd wr mr mw me ac wf"));
        assert!(special(b" rd wr lo"));
        assert!(!special(b" rd wr mr mw me ac sd "));
    }
}
