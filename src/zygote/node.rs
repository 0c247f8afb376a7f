//! One zygote process, as the worker knows it. Runs in the worker.
//!
//! ```text
//!   start (root) ─┐                       fork ──▶ a leaf
//!                 ├──▶ imports ──▶ Ready ─┤
//!   parent.grow ──┘                       grow ──▶ a child zygote
//! ```
//!
//! It does one thing at a time. Who uses a zygote holds it by `Arc`: its pid 1
//! is the stub that its leaves live under, so the last leaf must be gone before
//! the sandbox is dropped, even if the interpreter died long ago.

use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hosier_zygote::birth::{Pid1, Role};
use hosier_zygote::wire::{self, FromZygote, Imports, Ready, ToZygote};

use super::replicas::Load;
use super::working_set::WorkingSet;
use super::{Snapshot, ZygoteError};
use crate::sandbox::{Cell, Channel, NetPool, Output, Program, Sandbox, Sandboxes, Started, UserNamespace};

/// Longest wait for one fork.
const FORK_BOUND_S: u64 = 10;
/// Looks at a new zygote's processes, 10 ms apart, until none is too many.
const REAP_ROUNDS: usize = 5;
/// Characters of what a zygote says against itself that are kept, at most.
const REASON_LIMIT: usize = 500;
/// Bytes of a zygote's output that are logged, at most.
const LOG_LIMIT: usize = 64 * 1024;

/// A zygote that stands.
#[derive(Debug)]
pub struct Zygote {
    pub id: u64,
    pub ready: Ready,
    /// When it stood.
    pub since: Instant,
    /// The sandbox of the root that it descends from, its own if it is one: no number
    /// is given twice.
    pub root: u64,
    /// Children made so far.
    pub forks: AtomicU64,
    /// `None` once it broke off in the middle of a question.
    channel: tokio::sync::Mutex<Option<Channel>>,
    sandbox: Sandbox,
    working_set: Mutex<WorkingSet>,
    load: Mutex<Load>,
    /// Forks under way or waited for.
    waiting: AtomicUsize,
    /// Shared by all that grew from one root.
    nets: Option<Arc<NetPool>>,
    /// Likewise.
    pub namespace: Arc<UserNamespace>,
    /// Killing a parent's stub kills its descendants: it must outlive them.
    _parent: Option<Arc<Zygote>>,
}

/// Where a zygote comes from.
pub enum Above<'a> {
    /// It is the root of this namespace.
    Nothing(&'a Arc<UserNamespace>),
    Parent(&'a Arc<Zygote>),
}

/// What an interpreter runs first. `/hosier` comes last on the path, and `__main__` stays
/// clean for handlers.
pub(super) fn boot_script(then: &str) -> String {
    let wire = wire::WIRE;
    let stale = "hosier: libhosier_native.so is of another build than the worker";
    format!(
        "import sys; sys.path.append('/hosier'); import hosier_native\n\
         if getattr(hosier_native, 'WIRE', 0) != {wire}: sys.exit('{stale}')\n{then}"
    )
}

/// What a root zygote's interpreter runs.
fn boot(imports: &Imports) -> String {
    let python = |on| if on { "True" } else { "False" };
    let [immortal, freeze, solidify] = [imports.immortal, imports.gc_freeze, imports.solidify].map(python);
    boot_script(&format!("import hosier_zygote as z; z.main({immortal}, {freeze}, {solidify})"))
}

impl Zygote {
    /// Starts a root zygote.
    ///
    /// # Errors
    /// It could not be started, or did not become ready in time.
    pub async fn root(
        id: u64,
        sandboxes: &Sandboxes,
        namespace: &Arc<UserNamespace>,
        cell: Cell,
        python: &str,
        imports: &Imports,
        bound: Duration,
    ) -> Result<Self, ZygoteError> {
        let program = Program {
            pid1: Pid1::LingeringStub,
            role: Role::Zygote { filter: sandboxes.zygote_filter() },
            argv: interpreter(python, &boot(imports)),
            env: &environment(),
        };
        let network = cell.network;
        let started = sandboxes.spawn(cell, program, Some(namespace)).await?;
        let mut root = Self::stand(id, started, Above::Nothing(namespace), bound, None).await?;
        root.nets = sandboxes.net_pool(&root.sandbox, network)?;
        Ok(root)
    }

    /// Forks a child zygote into `cell`, which then has to [`Self::stand`].
    ///
    /// # Errors
    /// This zygote is lost, or refused.
    pub async fn grow(
        &self,
        sandboxes: &Sandboxes,
        cell: Cell,
        imports: Imports,
    ) -> Result<Started, ZygoteError> {
        let walls = cell.walls.clone();
        self.ask(&ToZygote::Grow { walls, imports }, sandboxes, cell).await
    }

    /// Forks a leaf into `cell`. Not to be cancelled: a zygote whose answer nobody
    /// reads is lost.
    ///
    /// # Errors
    /// This zygote is lost, or refused.
    pub async fn fork(&self, sandboxes: &Sandboxes, cell: Cell) -> Result<Started, ZygoteError> {
        let walls = cell.walls.clone();
        self.ask(&ToZygote::Fork { walls }, sandboxes, cell).await
    }

    /// What its leaves touch.
    pub(super) fn working_set(&self) -> MutexGuard<'_, WorkingSet> {
        self.working_set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How busy it is.
    pub(super) fn load(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forks under way or waited for.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// A network namespace for one leaf, if any is ready.
    pub(super) fn take_net(&self) -> Option<OwnedFd> {
        self.nets.as_ref()?.take()
    }

    /// Network namespaces that are ready.
    pub(super) fn nets(&self) -> usize {
        self.nets.as_ref().map_or(0, |pool| pool.count())
    }

    /// Whether [`Self::refill_nets`] has something to do.
    pub(super) fn lacks_nets(&self) -> bool {
        self.nets.as_ref().is_some_and(|pool| pool.lacks())
    }

    /// Has network namespaces made for the next leaves.
    pub(super) async fn refill_nets(&self) {
        if let Some(pool) = &self.nets {
            pool.refill().await;
        }
    }

    /// Bytes that it and its stub have charged.
    pub fn memory(&self) -> u64 {
        self.sandbox.usage().map_or(0, |usage| usage.mem_bytes)
    }

    /// Children made so far.
    pub fn forked(&self) -> u64 {
        self.forks.load(Ordering::Relaxed)
    }

    /// The number of its sandbox.
    pub fn sandbox(&self) -> u64 {
        self.sandbox.id()
    }

    /// Whether its stub has ended, and with it everything below; waits for that up to `bound`.
    pub async fn is_gone(&self, bound: Duration) -> bool {
        let end = tokio::time::Instant::now() + bound;
        while !self.sandbox.has_ended() {
            if tokio::time::Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }

    async fn ask(
        &self,
        message: &ToZygote,
        sandboxes: &Sandboxes,
        cell: Cell,
    ) -> Result<Started, ZygoteError> {
        let _waiting = Waiting::new(&self.waiting);
        let mut slot = self.channel.lock().await;
        let begun = Instant::now();
        let fds = cell.fds()?;
        let message = wire::encode(message);
        // Out of its place until the answer is here: one that comes late would be the next one's.
        let channel = slot.take().ok_or(ZygoteError::Died { node: self.id })?;
        let asked = self.exchange(&channel, &message, &fds);
        let bound = Duration::from_secs(FORK_BOUND_S);
        let answer = tokio::time::timeout(bound, asked).await;
        let answer = answer.unwrap_or(Err(ZygoteError::TimedOut { node: self.id, bound_s: FORK_BOUND_S }));
        if answer.as_ref().err().is_none_or(|error| !error.lost_node()) {
            *slot = Some(channel);
        }
        drop(slot);
        self.load().forked(Instant::now(), begun.elapsed());
        let pidfd = match answer {
            Ok(pidfd) => pidfd,
            Err(error) => {
                cell.abandon();
                return Err(error);
            }
        };
        self.forks.fetch_add(1, Ordering::Relaxed);
        // It names whom we may kill: nobody but who is in the cell.
        if !cell.holds(&pidfd).await {
            *self.channel.lock().await = None;
            cell.abandon();
            return Err(ZygoteError::Protocol { node: self.id });
        }
        Ok(sandboxes.started(cell, pidfd)?)
    }

    async fn exchange(
        &self,
        channel: &Channel,
        message: &[u8],
        fds: &[RawFd],
    ) -> Result<OwnedFd, ZygoteError> {
        let died = |_| ZygoteError::Died { node: self.id };
        channel.send(message, fds).await.map_err(died)?;
        let (answer, mut fds) = hear(channel, self.id).await?;
        match answer {
            FromZygote::Forked if fds.len() == 1 => Ok(fds.remove(0)),
            FromZygote::Failed(failure) => Err(ZygoteError::Refused { node: self.id, failure }),
            _ => Err(ZygoteError::Protocol { node: self.id }),
        }
    }

    /// Waits for a new zygote's first word, which comes after its imports. `own` is the
    /// function that it is a snapshot of.
    ///
    /// # Errors
    /// It died, or did not become ready in time.
    pub async fn stand(
        id: u64,
        started: Started,
        above: Above<'_>,
        bound: Duration,
        own: Option<&Snapshot>,
    ) -> Result<Self, ZygoteError> {
        let Started { sandbox, channel, output, .. } = started;
        match own {
            Some(own) => (own.follow)(output),
            None => drop(tokio::spawn(relay(id, output))),
        }
        let heard = tokio::time::timeout(bound, hear(&channel, id)).await;
        let ready = match heard {
            Err(_) => return Err(ZygoteError::TimedOut { node: id, bound_s: bound.as_secs() }),
            Ok(Err(ZygoteError::Died { node })) if sandbox.oom_kills() > 0 => {
                let limit = if own.is_some() { "its function's limits" } else { "zygote.mem_mb" };
                let reason = format!("its imports need more memory than {limit}");
                return Err(ZygoteError::Unfit { node, reason });
            }
            Ok(answer) => match answer?.0 {
                FromZygote::Ready(ready) => ready,
                FromZygote::Failed(failure) => return Err(ZygoteError::Refused { node: id, failure }),
                FromZygote::Forked => return Err(ZygoteError::Protocol { node: id }),
            },
        };
        let unfit = |reason| Err(ZygoteError::Unfit { node: id, reason });
        if let Some(reason) = &ready.unfit {
            return unfit(reason.chars().filter(|c| !c.is_control()).take(REASON_LIMIT).collect());
        }
        if ready.threads != 1 {
            return unfit(format!("it has {} threads after its imports", ready.threads));
        }
        let others = others(&sandbox).await;
        if others > 0 {
            return unfit(format!("its imports left {others} processes running"));
        }
        let channel = tokio::sync::Mutex::new(Some(channel));
        let (parent, namespace) = match above {
            Above::Nothing(namespace) => (None, Arc::clone(namespace)),
            Above::Parent(parent) => (Some(Arc::clone(parent)), Arc::clone(&parent.namespace)),
        };
        Ok(Self {
            id,
            ready,
            since: Instant::now(),
            root: parent.as_ref().map_or(sandbox.id(), |parent| parent.root),
            forks: AtomicU64::new(0),
            channel,
            sandbox,
            working_set: Mutex::default(),
            load: Mutex::default(),
            waiting: AtomicUsize::new(0),
            namespace,
            nets: parent.as_ref().and_then(|parent| parent.nets.clone()),
            _parent: parent,
        })
    }
}

/// One who waits for a zygote, counted while this lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Processes in a new zygote's sandbox beside itself and its stub. An orphan that
/// has ended is still one until the stub has reaped it.
async fn others(sandbox: &Sandbox) -> u64 {
    let mut others = 0;
    for _ in 0..REAP_ROUNDS {
        others = sandbox.usage().map_or(0, |usage| usage.procs.saturating_sub(2));
        if others == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    others
}

async fn hear(channel: &Channel, id: u64) -> Result<(FromZygote, Vec<OwnedFd>), ZygoteError> {
    let mut buffer = vec![0; wire::MAX_MESSAGE];
    let received = channel.receive(&mut buffer).await.map_err(|_| ZygoteError::Died { node: id })?;
    if received.len == 0 {
        return Err(ZygoteError::Died { node: id });
    }
    // More descriptors than asked for, or half a message: the node is not what it was.
    if received.truncated || received.fds.len() > 1 {
        return Err(ZygoteError::Protocol { node: id });
    }
    let message = wire::decode(&buffer[..received.len]).map_err(|_| ZygoteError::Protocol { node: id })?;
    Ok((message, received.fds))
}

/// Passes what a zygote prints on to the worker's log, up to a bound; then throws it away.
async fn relay(node: u64, output: Output) {
    let mut left = LOG_LIMIT;
    let pass_on = |bytes: &[u8]| {
        if left > 0 {
            left = left.saturating_sub(bytes.len());
            let text = String::from_utf8_lossy(bytes);
            tracing::info!(node, text = text.trim_end(), "zygote output");
        }
    };
    output.read_all(pass_on).await;
}

/// An isolated interpreter without `site`: no host package, no environment variable, no `.pth` reaches it.
pub(super) fn interpreter(python: &str, boot: &str) -> Vec<String> {
    [python, "-I", "-S", "-B", "-c", boot].map(str::to_owned).to_vec()
}

/// Where libraries read how many threads their pools may have.
pub const POOLS: [&str; 3] = ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"];

/// What every interpreter is started with. One thread a library: a second one would
/// make a node unfit to fork; a leaf is told if it may have more.
pub(super) fn environment() -> Vec<(String, String)> {
    let fixed = [
        ("PATH", "/usr/local/bin:/usr/bin:/bin"),
        ("HOME", "/tmp"),
        ("LANG", "C.UTF-8"),
        ("JE_ARROW_MALLOC_CONF", "background_thread:false"),
    ];
    let all = fixed.into_iter().chain(POOLS.map(|pool| (pool, "1")));
    all.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
