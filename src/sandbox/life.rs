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

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use hosier_zygote::sys::process::kill_pidfd;
use tokio::sync::OwnedSemaphorePermit;

use super::cgroup::{Cgroup, Usage};
use super::confined::{Expected, kept};
use super::ids::{IdRange, LeafId};
use super::pidfd;
use super::roster::{Line, Roster};
use super::visit::{Placed, attach_inside};
use super::writable::WritableRoot;
use super::{Limits, OutputGuard, SandboxError, UserNamespace, View};
use crate::stats::Stats;

/// Longest wait for a killed process to be gone.
pub(super) const GONE_MS: u64 = 5_000;
/// How long the next in line waits for it.
const PROMPT_MS: u64 = 100;

/// What a sandbox owns besides its process.
#[derive(Debug)]
pub(super) struct Estate {
    pub cgroup: Cgroup,
    /// Its own range of ids, where it has a user namespace of its own.
    pub ids: Option<IdRange>,
    /// Its id among those of its tree.
    pub leaf_id: Option<LeafId>,
    #[expect(dead_code, reason = "given back by its drop")]
    pub permit: Option<OwnedSemaphorePermit>,
    /// Prepared mounts that it has clones of.
    pub kept: Vec<Kept>,
    /// Ends the reading of its output.
    pub _printing: OutputGuard,
}

/// Who a sandbox is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    pub id: u64,
    pub purpose: super::Purpose,
    /// What it has left once it is confined.
    pub expected: Expected,
}

/// What must outlive a sandbox, not only its birth.
#[derive(Debug)]
#[expect(dead_code, reason = "kept for their drop")]
pub(super) enum Kept {
    View(Arc<View>),
    Root(WritableRoot),
    /// The namespace that it is the root of.
    Namespace(Arc<UserNamespace>),
}

/// A living sandbox.
#[derive(Debug)]
pub struct Sandbox {
    id: u64,
    pidfd: Arc<OwnedFd>,
    expected: Expected,
    paused: bool,
    estate: Option<Estate>,
    undertaker: Undertaker,
    roster: Roster,
}

impl Sandbox {
    pub(super) fn new(
        identity: Identity,
        pidfd: OwnedFd,
        mut estate: Estate,
        undertaker: Undertaker,
        roster: Roster,
    ) -> Self {
        estate.cgroup.born();
        let Identity { id, purpose, expected } = identity;
        let cgroup = estate.cgroup.paths().into_iter().next().unwrap_or_default();
        let pidfd = Arc::new(pidfd);
        let (since, shown) = (Instant::now(), Arc::clone(&pidfd));
        let role = String::new();
        roster.lines().insert(id, Line { purpose, since, paused: false, cgroup, pidfd: shown, role });
        Self { id, pidfd, expected, paused: false, estate: Some(estate), undertaker, roster }
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Attaches mounts in it, though it may have given up all it needs for that.
    ///
    /// # Errors
    /// It is gone, or has no such directory.
    pub fn attach(&self, mounts: &[Placed]) -> Result<(), SandboxError> {
        attach_inside(&self.pidfd, mounts)
    }

    /// Asks the kernel whether its first process has given up everything and is alone.
    ///
    /// # Errors
    /// [`SandboxError::Unconfined`] names what it kept; [`SandboxError::Ended`] if it is gone.
    pub fn check_confined(&self) -> Result<(), SandboxError> {
        let pid = pidfd::number(&self.pidfd).filter(|pid| *pid > 0).ok_or(SandboxError::Ended)?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let alone = self.estate.as_ref().is_some_and(|estate| estate.cgroup.has_only(pid).unwrap_or(false));
        let kept = match kept(&status, self.expected) {
            None if !alone => Some("company in its control group".to_owned()),
            kept => kept,
        };
        // Its number was its own all the while, if it still lives.
        if self.has_ended() {
            return Err(SandboxError::Ended);
        }
        kept.map_or(Ok(()), |kept| Err(SandboxError::Unconfined(kept)))
    }

    /// Changes what it may use.
    ///
    /// # Errors
    /// As the control group's files.
    pub fn set_limits(&mut self, limits: &Limits) -> Result<(), SandboxError> {
        if let Some(estate) = &mut self.estate {
            estate.cgroup.set_limits(limits)?;
        }
        Ok(())
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

    /// Says what it does, for whoever looks.
    pub fn describe(&self, role: String) {
        if let Some(line) = self.roster.lines().get_mut(&self.id) {
            line.role = role;
        }
    }

    /// How often the kernel killed one of its processes for want of memory.
    pub fn oom_kills(&self) -> u64 {
        self.estate.as_ref().and_then(|estate| estate.cgroup.oom_kills().ok()).unwrap_or(0)
    }

    pub fn usage(&self) -> Option<Usage> {
        self.estate.as_ref()?.cgroup.usage().ok()
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
        !pidfd::is_alive(&self.pidfd)
    }

    /// Its first process, for whoever must know when it is gone.
    pub fn pidfd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.pidfd)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let killed = Instant::now();
        self.kill();
        self.roster.lines().remove(&self.id);
        if let Some(estate) = self.estate.take() {
            if self.paused {
                // In the v1 freezer a SIGKILL waits for the thaw, and meets it first.
                let _ = estate.cgroup.thaw();
            }
            self.undertaker.take(Remains { killed, pidfd: Arc::clone(&self.pidfd), estate });
        }
    }
}

/// Keeps for good what somebody who could not be killed may still use: ids, and mounts.
fn never_give_back(range: &mut Option<IdRange>, leaf_id: &mut Option<LeafId>, kept: &mut Vec<Kept>) {
    std::mem::forget((range.take(), leaf_id.take(), std::mem::take(kept)));
}

#[derive(Debug)]
struct Remains {
    killed: Instant,
    pidfd: Arc<OwnedFd>,
    estate: Estate,
}

/// Two threads that wait for killed sandboxes to be gone and remove their
/// control groups: nobody on a request's path waits for that. What does not die
/// at once goes to the second, so that it holds nobody up. The queues are bounded
/// by the sandboxes that exist, each of which enters once.
#[derive(Debug, Clone)]
pub struct Undertaker(mpsc::Sender<Box<Remains>>);

impl Undertaker {
    /// # Errors
    /// No thread could be started.
    pub fn start(stats: Arc<Stats>) -> std::io::Result<Self> {
        let (sender, remains) = mpsc::channel::<Box<Remains>>();
        let (later, lingering) = mpsc::channel::<Box<Remains>>();
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        let late_stats = Arc::clone(&stats);
        thread("undertaker").spawn(move || {
            for mut remains in remains {
                if end(&mut remains, PROMPT_MS) {
                    remove(*remains, &stats);
                } else {
                    let _ = later.send(remains);
                }
            }
        })?;
        thread("undertaker-late").spawn(move || {
            for mut remains in lingering {
                if !end(&mut remains, GONE_MS) {
                    tracing::warn!(cgroup = remains.estate.cgroup.name(), "a sandbox could not be killed");
                    let Estate { ids, leaf_id, kept, .. } = &mut remains.estate;
                    never_give_back(ids, leaf_id, kept);
                }
                remove(*remains, &late_stats);
            }
        })?;
        Ok(Self(sender))
    }

    fn take(&self, remains: Remains) {
        // The thread lives as long as any sender.
        let _ = self.0.send(Box::new(remains));
    }
}

/// Kills whoever is in the control group, not only the process that is known:
/// a zygote may have put others there. Thaws it where that must come first.
fn end(remains: &mut Remains, bound_ms: u64) -> bool {
    if let Err(error) = remains.estate.cgroup.kill() {
        // When the worker stops, the spawner may have removed it already.
        tracing::debug!(%error, "a control group could not be killed");
    }
    pidfd::gone(&remains.pidfd, bound_ms)
}

fn remove(remains: Remains, stats: &Stats) {
    let Remains { killed, mut estate, .. } = remains;
    let name = estate.cgroup.name().to_owned();
    if let Err(error) = estate.cgroup.remove() {
        tracing::warn!(cgroup = name, %error, "a control group could not be removed");
        never_give_back(&mut estate.ids, &mut estate.leaf_id, &mut estate.kept);
    }
    stats.record("Destroy()", killed.elapsed());
}
