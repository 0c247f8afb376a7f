//! One sandbox from its birth to its end. Runs in the worker.
//!
//! ```text
//!              freeze            kill, or it ended by itself
//!   Running ───────────▶ Paused ───────────────────────────▶ Dead
//!      ▲     ◀───────────  │                                  │
//!      │        thaw                                     undertaker: wait until
//!   walls made, process born                             gone, remove cgroup
//! ```
//!
//! A [`Sandbox`] owns its control group, its process (by pidfd) and its place
//! among `max_sandboxes`. However it goes out of scope, it goes to the undertaker.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hosier_zygote::sys::process::kill_pidfd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::OwnedSemaphorePermit;

use super::cgroup::{Cgroup, Usage};
use super::ids::IdRange;
use super::writable::WritableRoot;
use super::{SandboxError, View};

/// Longest wait for a killed process to be gone.
const GONE_MS: u64 = 5_000;

/// What a sandbox owns besides its process.
#[derive(Debug)]
pub(super) struct Estate {
    pub cgroup: Cgroup,
    /// Its own range of ids, where it has a user namespace of its own.
    pub ids: Option<IdRange>,
    pub permit: Option<OwnedSemaphorePermit>,
    /// Prepared mounts that it has clones of.
    pub kept: Vec<Kept>,
}

/// A prepared mount that must outlive a sandbox's birth.
#[derive(Debug)]
#[expect(dead_code, reason = "kept for their drop")]
pub(super) enum Kept {
    View(Arc<View>),
    Root(WritableRoot),
}

/// The living sandboxes of a worker, for whoever looks.
#[derive(Debug, Clone, Default)]
pub(super) struct Roster(Arc<Mutex<BTreeMap<u64, Line>>>);

/// What the roster says of one.
#[derive(Debug)]
pub(super) struct Line {
    pub purpose: super::Purpose,
    pub since: Instant,
    pub paused: bool,
    pub cgroup: std::path::PathBuf,
}

impl Roster {
    pub fn lines(&self) -> MutexGuard<'_, BTreeMap<u64, Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A living sandbox.
#[derive(Debug)]
pub struct Sandbox {
    id: u64,
    pidfd: Arc<OwnedFd>,
    paused: bool,
    estate: Option<Estate>,
    undertaker: Undertaker,
    roster: Roster,
}

impl Sandbox {
    pub(super) fn new(
        id: u64,
        purpose: super::Purpose,
        pidfd: OwnedFd,
        mut estate: Estate,
        undertaker: Undertaker,
        roster: Roster,
    ) -> Self {
        estate.cgroup.born();
        let cgroup = estate.cgroup.paths().into_iter().next().unwrap_or_default();
        roster.lines().insert(id, Line { purpose, since: Instant::now(), paused: false, cgroup });
        Self { id, pidfd: Arc::new(pidfd), paused: false, estate: Some(estate), undertaker, roster }
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Stops it where it is; it keeps its memory and uses no processor time.
    ///
    /// # Errors
    /// The kernel did not freeze it in time. It is thawed again then.
    pub fn pause(&mut self) -> Result<(), SandboxError> {
        if let Some(estate) = &self.estate
            && !self.paused
        {
            if let Err(error) = estate.cgroup.freeze() {
                let _ = estate.cgroup.thaw();
                return Err(error.into());
            }
            self.mark(true);
        }
        Ok(())
    }

    /// # Errors
    /// As the control group's file.
    pub fn unpause(&mut self) -> Result<(), SandboxError> {
        if let Some(estate) = &self.estate
            && self.paused
        {
            estate.cgroup.thaw()?;
            self.mark(false);
        }
        Ok(())
    }

    fn mark(&mut self, paused: bool) {
        self.paused = paused;
        if let Some(line) = self.roster.lines().get_mut(&self.id) {
            line.paused = paused;
        }
    }

    /// How often the kernel killed one of its processes for want of memory.
    pub fn oom_kills(&self) -> u64 {
        self.estate.as_ref().and_then(|estate| estate.cgroup.oom_kills().ok()).unwrap_or(0)
    }

    pub fn usage(&self) -> Option<Usage> {
        self.estate.as_ref()?.cgroup.usage().ok()
    }

    /// The directories of its control group.
    pub fn cgroup_paths(&self) -> Vec<std::path::PathBuf> {
        self.estate.as_ref().map(|estate| estate.cgroup.paths()).unwrap_or_default()
    }

    /// Adds what it keeps alive.
    pub fn keep(&mut self, view: Arc<View>) {
        if let Some(estate) = &mut self.estate {
            estate.kept.push(Kept::View(view));
        }
    }

    /// Kills everything in it now; the rest follows when it is dropped.
    pub fn kill(&self) {
        // Pid 1 of its namespace takes all others along.
        let _ = kill_pidfd(self.pidfd.as_fd());
    }

    /// Whether its first process is gone, and with it all others.
    pub fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Its first process, for whoever must know when it is gone.
    pub fn pidfd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.pidfd)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.kill();
        self.roster.lines().remove(&self.id);
        if let Some(estate) = self.estate.take() {
            if self.paused {
                // In the v1 freezer a SIGKILL waits for the thaw, and meets it first.
                let _ = estate.cgroup.thaw();
            }
            self.undertaker.take(Remains { pidfd: Arc::clone(&self.pidfd), estate });
        }
    }
}

struct Remains {
    pidfd: Arc<OwnedFd>,
    estate: Estate,
}

/// A thread that waits for killed sandboxes to be gone and removes their
/// control groups: nobody on a request's path waits for that. Its queue is
/// bounded by the sandboxes that exist, each of which enters once.
#[derive(Debug, Clone)]
pub struct Undertaker(mpsc::Sender<Order>);

enum Order {
    Bury(Box<Remains>),
    /// Answer when all before this is done.
    Flush(mpsc::Sender<()>),
}

impl Undertaker {
    /// # Errors
    /// No thread could be started.
    pub fn start() -> std::io::Result<Self> {
        let (sender, orders) = mpsc::channel();
        std::thread::Builder::new().name("undertaker".into()).spawn(move || {
            for order in orders {
                match order {
                    Order::Bury(remains) => bury(*remains),
                    Order::Flush(done) => drop(done.send(())),
                }
            }
        })?;
        Ok(Self(sender))
    }

    /// Waits until everything handed over so far is removed, or the time is over.
    pub fn flush(&self, bound: Duration) {
        let (sender, done) = mpsc::channel();
        if self.0.send(Order::Flush(sender)).is_ok() {
            let _ = done.recv_timeout(bound);
        }
    }

    fn take(&self, remains: Remains) {
        // The thread lives as long as any sender.
        let _ = self.0.send(Order::Bury(Box::new(remains)));
    }
}

fn bury(mut remains: Remains) {
    if !gone(&remains.pidfd) {
        // Frozen in the v1 freezer, most likely: this thaws before it kills.
        if let Err(error) = remains.estate.cgroup.kill() {
            tracing::warn!(%error, "a sandbox could not be killed");
        }
        gone(&remains.pidfd);
    }
    let cgroup = remains.estate.cgroup;
    let name = cgroup.name().to_owned();
    if let Err(error) = cgroup.remove() {
        tracing::warn!(cgroup = name, %error, "a control group could not be removed");
    }
}

/// Waits for a process to be gone; first a while, for a frozen one never ends.
pub(super) fn gone(pidfd: &OwnedFd) -> bool {
    let end = Instant::now() + Duration::from_millis(GONE_MS);
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
