//! `hosier up`: a worker, until SIGTERM or SIGINT.
//!
//! ```text
//! lock ─▶ foundation (floor.rs) ─▶ bind ─▶ plant the tree ─▶ ready ─▶ serve
//! stop: no new connection ─▶ requests end ─▶ hang up on the spawner ─▶ wait until it has cleared up
//! ```

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::floor::{Foundation, Site, clear_dead_deploys};
use super::place::{Place, make_dirs};
use super::{CliError, UpArgs, descriptors, own_socket};
use crate::lambda::function::Floor;
use crate::lambda::packages::{Installer, Packages, interpreter, python_version};
use crate::lambda::registry::Registry;
use crate::lambda::tree::Bounds;
use crate::lambda::{Compiler, IdleInstances, Places, Shared, Terms, Versions, Worker};
use crate::sandbox::cgroup::Hierarchies;
use crate::sandbox::{Limits, SandboxError, Sandboxes, foreign, host, quotas};
use crate::settings::{self, Rootfs, Settings, Tree};
use crate::stats::Stats;
use crate::trigger::{self, Access, Token};
use crate::zygote::{Ageing, Forest, ForestParts, Template};

/// How long `up -d` waits for the worker to be ready.
const READY_BOUND: Duration = Duration::from_secs(60);
/// How long it waits if the package store is hashed first.
const VERIFY_BOUND: Duration = Duration::from_secs(1800);
/// How long a stop waits for the spawner to clear up.
pub const CLEAR_BOUND: Duration = Duration::from_secs(20);
/// Bytes of a block from which on its memory goes back to the kernel when it is freed: bodies.
const GIVE_BACK_BYTES: i32 = 128 * 1024;

/// Runs a worker, here or detached.
///
/// # Errors
/// It could not be started.
pub fn run(args: &UpArgs) -> Result<(), CliError> {
    let mut settings = Settings::load(&args.place.dir, &args.options)?;
    super::begin_log(settings.trace_latency);
    let place = Place::of(&settings);
    place.check()?;
    let clamped = descriptors::clamp(&mut settings, host::descriptor_limit())?;
    let shares = quotas::notes(&quotas::Host::read(), settings.sandbox.max_sandboxes);
    for note in settings.notes().iter().chain(&clamped).chain(&shares) {
        eprintln!("hosier: {note}");
    }
    if args.detach {
        return detach(args, &place);
    }
    if args.detached {
        let _ = nix::unistd::setsid();
        // Nothing is open yet but what the caller left open: another's lock, say.
        let _ = hosier_zygote::sys::process::close_from(3);
    }
    let lock = place.lock()?;
    let site = Site { run: place.run(), group: place.group(), socket: Some(place.socket()) };
    clear_dead_deploys(&place, &Hierarchies::detect().map_err(SandboxError::from)?);
    let foundation = Foundation::lay(&site)?;
    let leftovers = foundation.leftovers();
    // The spawner is forked: threads may begin.
    foreign::sweep(&place.worker);
    hosier_zygote::sys::memory::give_back_blocks_from(GIVE_BACK_BYTES);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.worker_threads)
        .enable_all()
        .build()
        .map_err(|source| CliError::File { path: "the runtime".into(), source })?;
    let (result, spawner) = runtime.block_on(serve(settings, place, foundation, args.verify));
    if let Some(spawner) = spawner {
        wait_for(&spawner, CLEAR_BOUND);
    }
    runtime.shutdown_timeout(Duration::from_secs(1));
    if matches!(result, Err(CliError::Sandbox(SandboxError::SpawnerGone))) {
        // The kernel took its processes along; the rest was its to remove.
        leftovers.remove().map_err(CliError::Leftovers)?;
    }
    drop(lock);
    result
}

/// What came of it, and the spawner, which clears up, unless it could not be reached.
async fn serve(
    settings: Settings,
    place: Place,
    foundation: Foundation,
    verify: bool,
) -> (Result<(), CliError>, Option<OwnedFd>) {
    let stats = Arc::new(Stats::default());
    let sandboxes = match foundation.connect(&settings, place.seed(), &stats) {
        Ok(sandboxes) => sandboxes,
        Err(error) => return (Err(error), None),
    };
    let spawner = sandboxes.spawner.clone();
    let result = work(&settings, &place, sandboxes, stats, verify).await;
    (result, spawner.hang_up().ok())
}

async fn work(
    settings: &Settings,
    place: &Place,
    sandboxes: Arc<Sandboxes>,
    stats: Arc<Stats>,
    verify: bool,
) -> Result<(), CliError> {
    let listeners = trigger::bind(&settings.worker_url, settings.worker_port)?;
    let own = trigger::bind_own(&place.socket())?;
    let access = access(settings, place, &listeners)?;
    let packages = packages(settings, &sandboxes, &stats)?;
    if verify {
        let (all, damaged) = tokio::task::block_in_place(|| packages.verify());
        eprintln!("hosier: {all} packages of the store were hashed, {} are damaged", damaged.len());
        for (pin, damage) in damaged {
            eprintln!(
                "hosier: {pin} is damaged ({damage}): it is set aside, and fetched when it is asked for"
            );
        }
    }
    let forest = Arc::new(Forest::new(ForestParts {
        sandboxes: Arc::clone(&sandboxes),
        packages: Arc::new(packages.clone()),
        stats: Arc::clone(&stats),
        template: template(&settings.import_cache_tree)?,
        enabled: settings.features.import_cache,
        python: settings.sandbox.python.display().to_string(),
        limits: Limits {
            procs: settings.zygote.procs,
            mem_mb: settings.zygote.mem_mib,
            cpu_percent: 400,
            swappiness: 0,
            runtime_sec: 0,
        },
        leaf_limits: settings.limits,
        grow_bound: settings.zygote.grow_timeout,
        grow_wait: settings.zygote.grow_wait,
        replicas: settings.zygote.replicas,
        // Leaves must find a place as well.
        // The root of a tree takes no place.
        max_nodes: settings.zygote.max_nodes.min(settings.sandbox.max_sandboxes / 2 + 1).max(1),
        ageing: Ageing { max_forks: settings.zygote.max_forks, max_age: settings.zygote.max_age },
        learn: settings.zygote.learn,
        immortal: settings.zygote.immortal,
        gc_freeze: settings.zygote.gc_freeze,
        solidify: settings.zygote.solidify,
        blanks: settings.zygote.blanks,
        prefault: settings.zygote.prefault,
        mem_pool_mib: settings.mem_pool_mib,
        snapshot: settings.zygote.snapshot,
        writable_root: settings.sandbox.rootfs == Rootfs::Writable,
    }));
    forest.plant(settings.sandbox.network).await?;
    let worker = Arc::new(worker(settings, place, &sandboxes, packages, &forest, &stats)?);
    for listener in &listeners {
        if let Ok(address) = listener.local_addr() {
            eprintln!("hosier: ready on http://{address}");
        }
    }
    let spawner = sandboxes.spawner.clone();
    let stop = stopped(spawner.clone());
    let http = http(settings, access);
    let ending = Arc::clone(&worker);
    trigger::serve(listeners, own, worker, stats, http, stop).await;
    eprintln!("hosier: stopping");
    let lost = spawner.is_gone();
    ending.stop();
    forest.fell().await;
    if lost { Err(SandboxError::SpawnerGone.into()) } else { Ok(()) }
}

pub fn packages(
    settings: &Settings,
    sandboxes: &Arc<Sandboxes>,
    stats: &Arc<Stats>,
) -> Result<Packages<Sandboxes>, CliError> {
    let python = interpreter(&settings.sandbox.python)?;
    let installer = Installer::from_settings(settings);
    let (parallel, stats) = (settings.installer.parallel, Arc::clone(stats));
    Ok(Packages::open(&settings.pkgs_dir, python, installer, parallel, Arc::clone(sandboxes), stats)?)
}

fn worker(
    settings: &Settings,
    place: &Place,
    sandboxes: &Arc<Sandboxes>,
    packages: Packages<Sandboxes>,
    forest: &Arc<Forest>,
    stats: &Arc<Stats>,
) -> Result<Worker, CliError> {
    let bounds = Bounds::default();
    let registry = Registry::open(&settings.registry, bounds)?;
    let python = python_version(&settings.sandbox.python)?;
    let terms = Terms::new(settings, python);
    let compiler = Compiler::from_settings(settings, terms);
    let versions = Versions::open(&place.code(), registry.clone(), compiler, bounds, Arc::clone(sandboxes))?;
    let shared = Shared {
        forest: Arc::clone(forest),
        sandboxes: Arc::clone(sandboxes),
        idle: Arc::new(IdleInstances::default()),
        packages,
        places: Arc::new(Places::new(settings.sandbox.queue_max_wait)),
        limits: settings.limits,
        network: settings.sandbox.network,
        pause_after: settings.sandbox.pause_after,
        idle_ttl: settings.sandbox.idle_ttl,
    };
    let floor = Floor {
        registry,
        versions,
        terms,
        shared,
        registry_cache: settings.registry_cache,
        queue_len: settings.sandbox.queue_len,
        queue_max_wait: settings.sandbox.queue_max_wait,
    };
    let limit = settings.log_limit_kib.unwrap_or(0) * 1024;
    Ok(Worker::new(floor, Arc::clone(stats), place.logs(), limit))
}

fn template(tree: &Tree) -> Result<Option<Template>, CliError> {
    let (place, text) = match tree {
        Tree::Grown => return Ok(None),
        Tree::Text(text) => ("the setting import_cache_tree".to_owned(), text.clone()),
        Tree::File(path) => {
            let read = std::fs::read_to_string(path);
            let text = read.map_err(|source| CliError::Tree { path: path.clone(), source })?;
            (path.display().to_string(), text)
        }
    };
    let parsed = Template::parse(&text).map_err(|source| CliError::Template { place, source });
    parsed.map(Some)
}

/// Who is let in, at the port, to all that is not a call; says so where that is everyone.
fn access(settings: &Settings, place: &Place, listeners: &[TcpListener]) -> Result<Access, CliError> {
    let bound: Vec<_> = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
    let admin = match settings.http.admin {
        settings::Admin::Token => trigger::Admin::Token(Token::ensure(&place.token())?),
        settings::Admin::Open => {
            eprintln!(
                "hosier: http.admin is \"open\": whoever reaches the port may deploy, remove and inspect functions"
            );
            trigger::Admin::Open
        }
    };
    Ok(Access::new(admin, &settings.worker_url, &bound))
}

fn http(settings: &Settings, access: Access) -> trigger::HttpSettings {
    trigger::HttpSettings {
        header_timeout: settings.http.header_timeout,
        body_timeout: settings.http.body_timeout,
        total_timeout: settings.http.total_timeout,
        body_limit_bytes: settings.http.body_limit_bytes.min(hosier_zygote::wire::MAX_BODY),
        body_budget_bytes: settings.http.body_budget_bytes,
        max_connections: settings.http.max_connections,
        max_pending: settings.http.max_pending,
        stop_timeout: settings.stop_timeout,
        access,
    }
}

/// Resolves at SIGTERM or SIGINT, or when the spawner is gone and nothing can run any more.
async fn stopped(spawner: crate::sandbox::Spawner) {
    let term = signal(SignalKind::terminate());
    let int = signal(SignalKind::interrupt());
    let (Ok(mut term), Ok(mut int)) = (term, int) else { return };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        () = spawner.gone() => tracing::error!("the spawner is gone, and every sandbox with it: stopping"),
    }
}

/// Waits for a process to end; false if the time was over before.
pub fn wait_for(pidfd: &OwnedFd, bound: Duration) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let until = Instant::now() + bound;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(ready) => return ready > 0,
            Err(_) if left.is_zero() => return false,
            Err(_) => {}
        }
    }
}

/// Starts the worker in a session of its own and returns when it is ready.
fn detach(args: &UpArgs, place: &Place) -> Result<(), CliError> {
    // Before its log is begun anew.
    if place.answers() {
        return Err(CliError::Taken { dir: place.dir.clone() });
    }
    make_dirs(&place.worker)?;
    let path = place.worker_log();
    let file = |source| CliError::File { path: path.clone(), source };
    let log = std::fs::File::create(&path).map_err(file)?;
    let exe = std::env::current_exe().map_err(file)?;
    let mut command = Command::new(exe);
    command.arg("up").arg("-p").arg(&args.place.dir).arg("--detached");
    for option in &args.options {
        command.arg("-o").arg(option);
    }
    if args.verify {
        command.arg("--verify");
    }
    let bound = if args.verify { VERIFY_BOUND } else { READY_BOUND };
    command.stdin(Stdio::null()).stdout(log.try_clone().map_err(file)?).stderr(log);
    let mut child = command.spawn().map_err(file)?;
    let until = Instant::now() + bound;
    loop {
        if let Some(status) = child.try_wait().map_err(file)? {
            let said = std::fs::read_to_string(&path).unwrap_or_default();
            let said = said.trim().strip_prefix("hosier: ").unwrap_or(said.trim()).to_owned();
            return Err(CliError::NotUp { status, said });
        }
        if own_socket::get(&place.socket(), "/status").is_ok_and(|answer| answer.status == 200) {
            eprintln!("hosier: worker {} is ready; its log is {}", child.id(), path.display());
            return Ok(());
        }
        if Instant::now() >= until {
            let _ = child.kill();
            let _ = child.wait();
            return Err(CliError::NotReady { bound_s: bound.as_secs(), log: path });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
