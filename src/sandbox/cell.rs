//! Walls that wait for a process: what [`super::Sandboxes::cell`] is asked for and
//! makes. Runs in the worker.
//!
//! ```text
//! Order ──▶ Cell ──▶ Started        a process was born in it
//!              └───▶ abandon        nobody knows who is in it: whoever is, ends
//! ```

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hosier_zygote::wire::Walls;
use tokio::sync::OwnedSemaphorePermit;

use super::cgroup::{Cgroup, Pool};
use super::homes::Home;
use super::ids::{IdRange, LeafId, LeafIds};
use super::life::Kept;
use super::view::{PACKAGES, View};
use super::{Limits, MountPoint, Network, SandboxError, pidfd};

/// Longest wait for a process to join its v1 control groups.
const JOIN_BOUND: Duration = Duration::from_secs(2);

/// What walls are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It will fork others.
    Zygote,
    /// It runs a handler.
    Leaf,
    /// It runs a program once.
    Command,
}

/// A user namespace's ids and its control groups: one a root zygote and all that descends
/// from it. Its group goes when nobody lives there any more.
#[derive(Debug)]
pub struct UserNamespace {
    pub(super) pool: Pool,
    // Dropped after the pool, whose groups are in it.
    #[expect(dead_code, reason = "given back by its drop")]
    pub(super) home: Home,
    pub(super) ids: IdRange,
    pub(super) leaf_ids: LeafIds,
}

/// Walls that wait for a process.
#[derive(Debug)]
pub struct Cell {
    pub walls: Walls,
    pub network: Network,
    /// The worker's end.
    pub socket: OwnedFd,
    /// Where the sandbox's output comes out.
    pub log: OwnedFd,
    /// How long the control group took.
    pub cgroup_time: Duration,
    pub(super) id: u64,
    pub(super) purpose: Purpose,
    pub(super) child_socket: OwnedFd,
    pub(super) child_log: OwnedFd,
    pub(super) mounts: Vec<OwnedFd>,
    /// Made ahead of need, for nobody else.
    pub(super) net: Option<OwnedFd>,
    pub(super) cgroup: Cgroup,
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// Its own range, where it gets a user namespace of its own.
    pub(super) ids: Option<IdRange>,
    /// Its unprivileged id inside the user namespace.
    pub(super) uid: u32,
    /// Holds that id, where others of the user namespace have theirs.
    pub(super) leaf_id: Option<LeafId>,
    /// The same, as the host numbers it.
    pub(super) host_id: u32,
    pub(super) kept: Vec<Kept>,
    /// Port of its loopback address on which it listens for the worker.
    pub(super) outlet: Option<u16>,
}

/// What is asked of [`Sandboxes::cell`].
pub struct Order<'a> {
    pub purpose: Purpose,
    /// Whose zygote will fork it, or whose root it will be; `None` for a user
    /// namespace of its own.
    pub namespace: Option<&'a Arc<UserNamespace>>,
    pub network: Network,
    pub limits: &'a Limits,
    pub permit: Option<OwnedSemaphorePermit>,
    /// A root to write anywhere, with these mount points made.
    pub writable: Option<&'a [MountPoint]>,
    /// A network namespace to enter; `None` for a new one.
    pub net: Option<OwnedFd>,
}

impl Cell {
    /// Adds a mount at `target`, relative to the root.
    pub fn mount(&mut self, target: &str, tree: OwnedFd) {
        self.walls.targets.push(target.to_owned());
        self.mounts.push(tree);
    }

    /// Shows it these packages. What is in the cell may read them for as long as it
    /// lives, so the view stays that long: its end takes the mounts off in every
    /// namespace (a removed mount point is detached from all that use it).
    ///
    /// # Errors
    /// As [`View::open`].
    pub fn show(&mut self, view: Arc<View>) -> Result<(), SandboxError> {
        self.mount(PACKAGES, view.open()?);
        self.kept.push(Kept::View(view));
        Ok(())
    }

    /// The descriptors that go along with [`Walls`], in their order.
    ///
    /// # Errors
    /// The control group was used before.
    pub fn fds(&self) -> Result<Vec<RawFd>, SandboxError> {
        let birth = self.cgroup.birth()?;
        let mut fds = vec![self.child_socket.as_raw_fd(), self.child_log.as_raw_fd()];
        fds.extend(self.mounts.iter().map(AsRawFd::as_raw_fd));
        fds.extend(birth.into.iter().map(AsRawFd::as_raw_fd));
        fds.extend(birth.tasks.iter().map(AsRawFd::as_raw_fd));
        fds.extend(self.net.iter().map(AsRawFd::as_raw_fd));
        Ok(fds)
    }

    /// Whether a pidfd that a zygote sent is of a process in this cell, or of none
    /// any more: either can be killed without harm to anybody else.
    pub async fn holds(&self, pidfd: &OwnedFd) -> bool {
        let end = Instant::now() + JOIN_BOUND;
        loop {
            match pidfd::number(pidfd) {
                None => return false,
                Some(pid) if pid < 0 => return true,
                // Its number is its own while its pidfd says that it lives.
                Some(0) => return false,
                Some(pid) if self.cgroup.has_member(pid) => {
                    return pidfd::number(pidfd).is_some_and(|again| again == pid || again < 0);
                }
                // On pure v1 it joins by itself, in a moment.
                Some(_) if self.walls.into_cgroup || Instant::now() >= end => return false,
                Some(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// Nobody knows who is in it: whoever is, ends.
    pub fn abandon(mut self) {
        tokio::task::spawn_blocking(move || {
            if let Err(error) = self.cgroup.kill().and_then(|()| self.cgroup.remove()) {
                tracing::warn!(%error, "an abandoned control group could not be removed");
                // Its ids may still be in use.
                std::mem::forget((self.ids.take(), self.leaf_id.take()));
            }
        });
    }

    /// The host id of the root of its own user namespace.
    pub(super) fn root_id(&self) -> u32 {
        self.ids.as_ref().map_or(0, IdRange::first)
    }
}

impl UserNamespace {
    /// Makes the control groups that are lacking. Blocks.
    pub fn refill(&self) {
        if let Err(error) = self.pool.refill() {
            tracing::warn!(%error, "the pool of control groups could not be refilled");
        }
    }

    /// Whether [`Self::refill`] has something to do.
    pub fn lacks(&self) -> bool {
        self.pool.lacking() > 0
    }
}
