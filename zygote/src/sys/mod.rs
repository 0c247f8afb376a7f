//! Typed system calls: the one place that owns `unsafe`. Runs in every process.
//!
//! `nix` covers most of the kernel; here is what it lacks (the new mount API,
//! `clone3`, seccomp from ready bytes) in the same manner. Everything here is
//! safe to call between a fork and an `execve`: no allocation on success, no lock.
//! A failed call reads like a line of `strace`.

#![allow(unsafe_code)]

pub mod memory;
pub mod mount;
pub mod net;
pub mod privilege;
pub mod process;
pub mod socket;
pub mod time;

use std::fmt;

use nix::errno::Errno;

/// A system call that failed: its name and its errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub struct SysError {
    pub call: &'static str,
    pub errno: Errno,
}

impl fmt::Display for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}() = -1 {:?} ({})", self.call, self.errno, self.errno.desc())
    }
}

pub type Result<T> = std::result::Result<T, SysError>;

/// Gives a `nix` result the name of its call.
pub trait Named<T> {
    /// # Errors
    /// The errno of the failed call, under `call`.
    fn named(self, call: &'static str) -> Result<T>;
}

impl<T> Named<T> for nix::Result<T> {
    fn named(self, call: &'static str) -> Result<T> {
        self.map_err(|errno| SysError { call, errno })
    }
}

/// The value of a raw call, or its errno.
fn check(call: &'static str, value: libc::c_long) -> Result<libc::c_long> {
    if value < 0 { Err(SysError { call, errno: Errno::last() }) } else { Ok(value) }
}
