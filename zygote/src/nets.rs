//! Network namespaces, made ahead of need inside a tree's user namespace: one of
//! another owner could not be entered from there. Runs in a child of the spawner
//! that lives for one batch; no foreign code ever ran in it.
//!
//! ```text
//! join the tree's user namespace ─▶ ( unshare ─▶ lo up, small sockets ─▶ send its descriptor )* ─▶ exit
//! ```
//!
//! The worker sees the end of the stream, however many came before it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};

use crate::quotas;
use crate::sys::{self, Named, net, privilege, process, socket};

/// Namespaces of one batch, at most.
pub const MAX_BATCH: u32 = 64;

/// Makes `count` of them in the user namespace of the process behind the pidfd
/// `member`, and ends.
pub fn make(worker: &OwnedFd, member: &OwnedFd, count: u32) -> ! {
    let _ = nix::sys::prctl::set_name(c"hosier-nets");
    // Whoever is on the path of a start goes first.
    process::be_patient();
    // Why it failed nobody needs to know: the worker does without, and says so.
    let made = join(member).and_then(|()| (0..count.min(MAX_BATCH)).try_for_each(|_| make_one(worker)));
    process::exit_now(i32::from(made.is_err()))
}

/// Becomes root of the user namespace, and nobody outside of it.
fn join(member: &OwnedFd) -> sys::Result<()> {
    setns(member, CloneFlags::CLONE_NEWUSER).named("setns")?;
    privilege::become_ids(0, 0)
}

fn make_one(worker: &OwnedFd) -> sys::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).named("unshare")?;
    net::loopback_up()?;
    quotas::small_sockets()?;
    let made = net::current()?;
    socket::send(worker.as_fd(), b"n", &[made.as_raw_fd()]).map(drop)
}
