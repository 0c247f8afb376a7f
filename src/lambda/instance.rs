//! A robust virtual sandbox of one function: one task that owns at most one
//! sandbox. Runs in the worker.
//!
//! ```text
//!            request: start                        idle for pause_after
//!   Empty ───────────────▶ serving ──▶ Idle(running) ───────────────▶ Idle(paused)
//!     ▲                       ▲             │  request: warm               │
//!     │                       └─────────────┴──────────────────────────────┘ request: unpause
//!     └── died, spoke unasked, idle for idle_ttl, place wanted, reuse-sandbox: false,
//!         ran too long, broke the protocol, its module failed to load
//! ```
//!
//! One change of state at a time, all of them here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hosier_zygote::wire::Request;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::Instrument;

use super::code::Declared;
use super::idle::IdleInstances;
use super::line::Turn;
use super::log::FunctionLog;
use super::packages::{Depth, PackageError, Packages};
use super::places::Places;
use super::requirements::{Pins, Requirements};
use super::steps;
use super::{Answer, Invocation, InvokeError, Start, Timings, Version};
use crate::sandbox::{Limits, Network, SandboxError, Sandboxes};
use crate::zygote::{
    Forest, Leaf, Need, Observed, OwnModules, Owner, POOLS, Reply, Snapshot, Spent, ZygoteError,
};

/// Longest wait for the place of a blank that was given up.
const BLANK_BOUND: Duration = Duration::from_millis(500);

/// How long an instance may serve what waits for it, once it has a sandbox, before others that
/// need its place get it: a sandbox for each call would cost more than the calls.
const KEEP: Duration = Duration::from_millis(250);

/// Sandboxes that one request may lose before anything of its function ran.
const LOST_LEAVES: u32 = 3;

/// What all instances of a worker share.
#[derive(Clone)]
pub struct Shared {
    pub forest: Arc<Forest>,
    pub sandboxes: Arc<Sandboxes>,
    pub idle: Arc<IdleInstances>,
    pub packages: Packages<Sandboxes>,
    pub places: Arc<Places>,
    pub limits: Limits,
    pub network: Network,
    pub pause_after: Duration,
    pub idle_ttl: Duration,
}

impl Shared {
    /// Sees to it that every requirement has an entry in the package store; these entries. Nodes that
    /// may have imported from one that was damaged are let go.
    ///
    /// # Errors
    /// One cannot be installed.
    pub(super) async fn install(&self, requirements: &Requirements) -> Result<Pins, PackageError> {
        let installed = self.packages.install(requirements, Depth::Times, Arc::new(())).await;
        let damaged = match &installed {
            Ok(installed) => &installed.mended[..],
            Err(PackageError::NotMended { pin, .. }) => std::slice::from_ref(pin),
            Err(_) => &[],
        };
        self.forest.discard(damaged).await;
        installed.map(|installed| installed.pins)
    }
}

/// One request on its way.
pub(super) struct Job {
    pub turn: Arc<Turn>,
    pub reply: oneshot::Sender<Result<Answer, InvokeError>>,
}

/// The task's other end: it serves what it was handed and ends when this is dropped.
pub struct Instance {
    jobs: mpsc::Sender<Job>,
    task: JoinHandle<()>,
}

impl Instance {
    /// Starts the task of a function's version.
    pub fn start(shared: Shared, version: Arc<Version>, log: Arc<FunctionLog>) -> Self {
        let (jobs, inbox) = mpsc::channel(1);
        let task = tokio::spawn(Task::new(shared, version, log).run(inbox));
        Self { jobs, task }
    }

    /// Hands over nothing more; the task, which ends with what it has.
    pub fn retire(self) -> JoinHandle<()> {
        self.task
    }

    /// Hands a request over; waits while another is being served.
    pub async fn serve(&self, job: Job) {
        if let Err(mpsc::error::SendError(job)) = self.jobs.send(job).await {
            let _ = job.reply.send(Err(InvokeError::Stopping));
        }
    }
}

enum State {
    Empty,
    Idle { leaf: Box<Leaf>, since: Instant },
}

struct Task {
    shared: Shared,
    version: Arc<Version>,
    log: Arc<FunctionLog>,
    /// Its packages, as entries of the store: others than the version's once one was mended.
    pins: Pins,
    limits: Limits,
    env: Vec<(String, String)>,
    /// Modules that this version imports by itself.
    modules: Arc<OwnModules>,
    /// What its own node would be made of, if it asks for one.
    snapshot: Option<Arc<Snapshot>>,
    id: u64,
    /// How often packages were mended when its sandbox was started.
    mends: u64,
    state: State,
    /// When it got its sandbox.
    acquired: Instant,
}

impl Task {
    fn new(shared: Shared, version: Arc<Version>, log: Arc<FunctionLog>) -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let limits = version.declared.config.limits.or(shared.limits);
        let env = environment(&version, &limits);
        let snapshot = snapshot(&version, &log, limits, &env).map(Arc::new);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let modules = Arc::new(OwnModules::new(version.head.clone()));
        let pins = version.pins.clone();
        Self {
            shared,
            version,
            log,
            pins,
            limits,
            env,
            modules,
            snapshot,
            id,
            mends: 0,
            state: State::Empty,
            acquired: Instant::now(),
        }
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Job>) {
        loop {
            let event = match &self.state {
                State::Empty => inbox.recv().await.map_or(Event::End, Event::Job),
                State::Idle { leaf, since } => {
                    if self.acquired.elapsed() < KEEP
                        && let Ok(job) = inbox.try_recv()
                    {
                        self.serve(job).await;
                        continue;
                    }
                    let entry = self.shared.idle.enter(self.id);
                    let wait = if leaf.sandbox().is_paused() {
                        self.shared.idle_ttl
                    } else {
                        self.shared.pause_after.min(self.shared.idle_ttl)
                    };
                    tokio::select! {
                        biased;
                        () = leaf.unasked() => Event::Lost,
                        // Before the next request: who asked has waited longer.
                        () = entry.asked() => Event::GiveUp,
                        job = inbox.recv() => job.map_or(Event::End, Event::Job),
                        () = tokio::time::sleep_until((*since + wait).into()) => Event::Waited,
                    }
                }
            };
            match event {
                Event::Job(job) => self.serve(job).await,
                Event::Waited => self.waited(),
                Event::Lost => {
                    tracing::info!(function = %self.version.name, "a sandbox ended while idle");
                    self.state = State::Empty;
                }
                Event::GiveUp => self.state = State::Empty,
                Event::End => return,
            }
        }
    }

    /// Idle long enough: pause, or give up.
    fn waited(&mut self) {
        let State::Idle { leaf, since, .. } = &mut self.state else { return };
        if leaf.sandbox().is_paused() || since.elapsed() >= self.shared.idle_ttl {
            self.state = State::Empty;
        } else if let Err(error) = leaf.sandbox_mut().pause() {
            tracing::warn!(function = %self.version.name, %error, "a sandbox could not be paused");
            self.state = State::Empty;
        }
    }

    async fn serve(&mut self, job: Job) {
        // None: its client went away while it was queued, or it was refused.
        let Some(invocation) = job.turn.begin() else { return };
        let queue = job.turn.entered().elapsed();
        let mut timings = Timings::default();
        timings.0.push(("queue", queue));
        let (mut left, span) = (Left::default(), steps::span(&self.version.name));
        let answer = self.answer(&invocation, &job.turn, timings, &mut left).instrument(span.clone()).await;
        if let Ok(answer) = &answer {
            steps::tell(&span, &answer.timings);
        }
        let failed = match &answer {
            Ok(answer) => answer.status >= 500,
            Err(error) => matches!(error, InvokeError::Died { .. } | InvokeError::Protocol { .. }),
        };
        job.turn.end();
        let _ = job.reply.send(answer);
        // Whoever waits for the answer goes first: to end a sandbox, and to make the next
        // one's, takes system calls.
        tokio::task::yield_now().await;
        if left.spent.is_some() {
            self.shared.forest.lay_out(self.version.name.as_str(), &self.version.dir);
        }
        if let Some((node, imported)) = left.imported.take() {
            self.shared.forest.observe_modules(Observed {
                network: self.shared.network,
                node,
                own: Arc::clone(&self.modules),
                snapshot: self.snapshot.clone(),
                limits: self.limits,
                imported,
            });
        }
        left.let_go();
        if failed && !self.pins.is_empty() {
            self.suspect().await;
        }
    }

    async fn answer(
        &mut self,
        invocation: &Invocation,
        turn: &Turn,
        mut timings: Timings,
        left: &mut Left,
    ) -> Result<Answer, InvokeError> {
        let request = Request {
            method: invocation.method.clone(),
            path: invocation.path.clone(),
            query: invocation.query.clone(),
            headers: invocation.headers.clone(),
        };
        let bound = Duration::from_secs(self.limits.runtime_sec.into());
        let mut lost = 0;
        let (leaf, start, spent, reply) = loop {
            let (mut leaf, start, spent) = self.leaf(turn).await?;
            match tokio::time::timeout(bound, leaf.call(&request, &invocation.body)).await {
                Ok(Ok(reply)) => break (leaf, start, spent, reply),
                // It died before anything of the function ran: another one serves.
                Ok(Err(SandboxError::Ended))
                    if !leaf.has_begun() && leaf.sandbox().oom_kills() == 0 && lost < LOST_LEAVES =>
                {
                    lost += 1;
                }
                Ok(Err(error)) => return Err(self.explain(error, *leaf).await),
                Err(_elapsed) => {
                    leaf.sandbox().kill();
                    let limit_s = self.limits.runtime_sec;
                    return Err(InvokeError::TimedOut { function: self.name(), limit_s });
                }
            }
        };
        steps::served_by(&leaf, start);
        if let Some(spent) = &spent {
            break_down(&mut timings, &leaf, spent, &reply);
            left.imported = leaf.node().map(|node| (node, reply.response.imported));
            left.observer = self.shared.forest.observer(&leaf);
        }
        let exec = Duration::from_micros(reply.response.exec_us.into());
        timings.0.push(("exec", exec));
        if self.version.declared.config.reuse_sandbox && !reply.response.broken {
            self.state = State::Idle { leaf, since: Instant::now() };
        } else {
            left.leaf = Some(leaf);
        }
        left.spent = spent;
        Ok(Answer {
            status: reply.response.status,
            headers: reply.response.headers,
            body: reply.body,
            start,
            timings,
        })
    }

    /// A sandbox for one request: the one at hand, or a new one.
    async fn leaf(&mut self, turn: &Turn) -> Result<(Box<Leaf>, Start, Option<Spent>), InvokeError> {
        if let State::Idle { mut leaf, .. } = std::mem::replace(&mut self.state, State::Empty) {
            // A request may come before the news of what its sandbox did since the
            // last answer: died, or wrote what would be taken for this one's.
            if !leaf.is_quiet() {
                tracing::info!(function = %self.version.name, "a sandbox was lost while idle");
            } else if !leaf.sandbox().is_paused() {
                return Ok((leaf, Start::Warm, None));
            } else {
                match leaf.sandbox_mut().unpause() {
                    Ok(()) => return Ok((leaf, Start::Unpaused, None)),
                    Err(error) => tracing::warn!(%error, "a sandbox could not be unpaused"),
                }
            }
        }
        self.mends = self.shared.packages.mends();
        let mut started = self.start(turn).await?;
        if matches!(started, Err(ZygoteError::Damaged { .. })) {
            self.mend().await?;
            started = self.start(turn).await?;
        }
        let (mut leaf, spent) = started.map_err(|error| match error {
            ZygoteError::Sandbox(SandboxError::Full { limit }) => InvokeError::NoSandbox { limit },
            error => InvokeError::Sandbox(error.to_string()),
        })?;
        if let Some(output) = leaf.take_output() {
            self.log.follow(output);
        }
        let start = match leaf.node() {
            None => Start::Fresh,
            Some(_) if spent.snapshot => Start::Snapshot,
            Some(_) if leaf.was_blank() => Start::Blank,
            Some(_) => Start::Forked,
        };
        Ok((Box::new(leaf), start, Some(spent)))
    }

    async fn start(&mut self, turn: &Turn) -> Result<Result<(Leaf, Spent), ZygoteError>, InvokeError> {
        let permit = self.place(turn).await?;
        self.acquired = Instant::now();
        let need = Need {
            pins: &self.pins,
            modules: &self.modules,
            network: self.shared.network,
            limits: &self.limits,
            code: &self.version.dir,
            function: self.version.name.as_str(),
            file: &self.version.declared.entry.file,
            env: &self.env,
            snapshot: self.snapshot.as_ref(),
            permit,
        };
        Ok(self.shared.forest.start(need).await)
    }

    /// Has damaged packages fetched again.
    async fn mend(&mut self) -> Result<(), InvokeError> {
        let installed = self.shared.install(&self.version.declared.requirements).await;
        self.pins = installed
            .map_err(|error| InvokeError::NotReady { function: self.name(), reason: error.to_string() })?;
        self.mends = self.shared.packages.mends();
        Ok(())
    }

    /// Looks whether a call failed for a damaged file of its packages, and has it mended: the next
    /// call then gets a new sandbox. The caller of this one has its answer.
    async fn suspect(&mut self) {
        if self.shared.packages.is_damaged(&self.pins).await
            && let Err(error) = self.mend().await
        {
            tracing::warn!(%error, "a damaged package could not be mended");
        } else if self.mends == self.shared.packages.mends() {
            return;
        }
        // It sees the damaged files, whoever had them mended.
        self.state = State::Empty;
    }

    /// A place among `max_sandboxes`: a free one, or an idle instance's.
    async fn place(&self, turn: &Turn) -> Result<tokio::sync::OwnedSemaphorePermit, InvokeError> {
        if let Some(permit) = self.shared.sandboxes.place() {
            return Ok(permit);
        }
        // Whoever waits for a function first, then whoever waits for a request.
        if self.shared.forest.give_up_blank().await
            && let Ok(permit) = self.shared.sandboxes.wait_for_place(BLANK_BOUND).await
        {
            return Ok(permit);
        }
        let limit = self.shared.sandboxes.tuning.max_sandboxes;
        let left = turn.left();
        let Some(in_turn) = self.shared.places.enter(left) else {
            return Err(InvokeError::NoSandbox { limit });
        };
        let _wanted = self.shared.idle.want_one();
        let waited = self.shared.sandboxes.wait_for_place(left).await;
        let permit = waited.map_err(|_| InvokeError::NoSandbox { limit })?;
        in_turn.given();
        Ok(permit)
    }

    /// What a lost sandbox died of.
    async fn explain(&self, error: SandboxError, leaf: Leaf) -> InvokeError {
        let function = self.name();
        match error {
            SandboxError::Ended => {
                // The kernel counts the kill before the process is gone.
                if leaf.sandbox().oom_kills() > 0 {
                    InvokeError::OutOfMemory { function, limit_mib: self.limits.mem_mb }
                } else {
                    InvokeError::Died { function }
                }
            }
            SandboxError::Protocol(what) => InvokeError::Protocol { function, what: what.to_owned() },
            SandboxError::Frame(what) => InvokeError::Protocol { function, what: what.to_string() },
            other => InvokeError::Sandbox(other.to_string()),
        }
    }

    fn name(&self) -> String {
        self.version.name.to_string()
    }
}

/// What is let go once the answer is on its way.
#[derive(Default)]
struct Left {
    leaf: Option<Box<Leaf>>,
    spent: Option<Spent>,
    /// Number of the leaf's node, and modules that the leaf had to import.
    imported: Option<(u64, Vec<String>)>,
    /// Looks at the leaf, which must still be there.
    observer: Option<Box<dyn FnOnce() + Send>>,
}

impl Left {
    fn let_go(self) {
        if let Some(observer) = self.observer {
            let leaf = self.leaf;
            tokio::task::spawn_blocking(move || {
                observer();
                drop(leaf);
            });
        }
    }
}

enum Event {
    Job(Job),
    Waited,
    Lost,
    GiveUp,
    End,
}

/// The steps of a start, as far as they follow each other on the request's path.
fn break_down(timings: &mut Timings, leaf: &Leaf, spent: &Spent, reply: &Reply) {
    let (begun, born, specialized) = leaf.birth();
    let born = born.unwrap_or(begun);
    let inside = specialized.unwrap_or(born).duration_since(born);
    let import = Duration::from_micros(reply.response.import_us.into());
    timings.0.extend([
        ("node", spent.node),
        ("cgroup", spent.cgroup),
        ("fork", born.duration_since(begun).saturating_sub(spent.cgroup)),
        ("specialize", inside),
        ("import", import),
    ]);
}

/// What a node of this version alone is made of, if its function asks for one.
fn snapshot(
    version: &Version,
    log: &Arc<FunctionLog>,
    limits: Limits,
    env: &[(String, String)],
) -> Option<Snapshot> {
    let Declared { config, entry, .. } = &version.declared;
    let log = Arc::clone(log);
    config.snapshot.is_on().then(|| Snapshot {
        owner: Owner { function: version.name.to_string(), version: version.digest.clone() },
        code: version.dir.clone(),
        file: entry.file.clone(),
        env: env.to_vec(),
        limits,
        warmup: config.snapshot.warmup(),
        follow: Box::new(move |output| log.follow(output)),
    })
}

/// What a leaf's environment has beyond what every leaf's has: nothing of the worker's.
fn environment(version: &Version, limits: &Limits) -> Vec<(String, String)> {
    let mut env = vec![("HOSIER_FUNCTION".to_owned(), version.name.to_string())];
    // One is what every leaf is born with; each variable that is set costs a start some pages.
    if limits.pool_threads() > 1 {
        env.extend(POOLS.map(|pool| (pool.to_owned(), limits.pool_threads().to_string())));
    }
    for (key, value) in &version.declared.config.environment {
        env.retain(|(known, _)| known != key);
        env.push((key.clone(), value.clone()));
    }
    env
}
