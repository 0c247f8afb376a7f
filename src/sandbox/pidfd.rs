//! What the worker asks of a pidfd: whose it is, and whether that one is still there.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The process behind a pidfd as this process numbers it; -1 if it is gone, 0
/// if it is out of sight, `None` if the descriptor is no pidfd.
pub fn number(pidfd: &OwnedFd) -> Option<i32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let info = std::fs::read_to_string(path).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
}

/// Whether the process is still there.
pub fn is_alive(pidfd: &OwnedFd) -> bool {
    !gone(pidfd, 0)
}

/// Waits for the process to be gone.
pub fn gone(pidfd: &OwnedFd, bound_ms: u64) -> bool {
    let end = Instant::now() + Duration::from_millis(bound_ms);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(_) if left.is_zero() => return false,
            Err(_) => {}
        }
    }
}
