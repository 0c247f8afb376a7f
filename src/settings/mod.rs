//! The settings of one worker: `DIR/hosier.toml` and `-o`, checked once. Plain
//! data for every floor; nobody validates after this.
//!
//! ```text
//! hosier.toml ──┐
//!               ├─ each key checked against keys.rs ── Raw (serde) ── Settings
//! -o a=1,b.c=2 ─┘
//! ```

mod default_file;
mod keys;
mod load;
mod near;
mod raw;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use default_file::default_file;
pub use load::SettingsError;

use crate::sandbox::outlet::Place;
use crate::sandbox::{Limits, Network};
use raw::Raw;

/// What a worker runs by. Every value is final.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The directory that `-p` names.
    pub dir: PathBuf,
    /// What a running worker needs: sockets, code, logs.
    pub worker_dir: PathBuf,
    pub worker_url: String,
    /// 0: any free one.
    pub worker_port: u16,
    /// Threads that serve requests.
    pub worker_threads: usize,
    pub registry: PathBuf,
    pub registry_cache: Duration,
    pub pkgs_dir: PathBuf,
    pub pip_mirror: Option<String>,
    /// None: what the machine has, but for a little.
    pub mem_pool_mib: Option<u32>,
    pub import_cache_tree: Tree,
    /// None: what functions print is thrown away.
    pub log_limit_kib: Option<u64>,
    pub stop_timeout: Duration,
    pub limits: Limits,
    pub installer_limits: Limits,
    /// The most that a function's own limits may be; where memory is 0, what the machine has.
    pub max_limits: Limits,
    pub features: Features,
    pub sandbox: SandboxSettings,
    pub zygote: ZygoteSettings,
    pub http: HttpSettings,
    pub installer: InstallerSettings,
    /// Log the steps of each call.
    pub trace_latency: bool,
    notes: Vec<String>,
}

/// Where the tree of zygotes comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tree {
    /// It grows itself.
    Grown,
    File(PathBuf),
    /// The tree as JSON text.
    Text(String),
}

#[derive(Debug, Clone, Copy)]
pub struct Features {
    /// Fork from zygotes.
    pub import_cache: bool,
    pub enable_seccomp: bool,
    pub reuse_cgroups: bool,
    pub downsize_paused_mem: bool,
}

/// Whether a sandbox's root can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rootfs {
    ReadOnly,
    /// An upper of its own, limited.
    Writable,
}

#[derive(Debug, Clone)]
pub struct SandboxSettings {
    pub rootfs: Rootfs,
    pub network: Network,
    pub python: PathBuf,
    pub max_sandboxes: usize,
    pub idle_ttl: Duration,
    pub pause_after: Duration,
    pub queue_len: usize,
    pub queue_max_wait: Duration,
    pub tmp_mib: u32,
    pub tmp_inodes: u32,
    pub cgroup_pool: usize,
    pub netns_pool: usize,
    pub namespaces: Namespaces,
}

/// Which namespaces a sandbox has, beside the user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespaces {
    pub mount: bool,
    pub pid: bool,
    pub ipc: bool,
    pub uts: bool,
    pub cgroup: bool,
    pub net: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct ZygoteSettings {
    pub mem_mib: u32,
    pub procs: u32,
    pub grow_timeout: Duration,
    pub grow_wait: Duration,
    /// Zygotes of one node, at most.
    pub replicas: usize,
    pub max_nodes: usize,
    /// 0: never too many.
    pub max_forks: u64,
    /// None: never too old.
    pub max_age: Option<Duration>,
    pub learn: bool,
    pub immortal: bool,
    pub gc_freeze: bool,
    pub solidify: bool,
    pub blanks: usize,
    pub prefault: bool,
    pub snapshot: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct HttpSettings {
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    /// None: the function's run time and what its start may take.
    pub total_timeout: Option<Duration>,
    pub body_limit_bytes: usize,
    pub max_connections: usize,
    pub max_pending: usize,
    pub body_budget_bytes: usize,
    pub admin: Admin,
}

/// Who may use, at the port, all that is not a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admin {
    /// Clients that send the worker's token.
    Token,
    /// Every client that reaches the port.
    Open,
}

#[derive(Debug, Clone)]
pub struct InstallerSettings {
    /// None: looked for.
    pub uv: Option<PathBuf>,
    pub parallel: usize,
    pub build: Build,
    /// Disk that one step of an install may fill, in MiB.
    pub disk_mib: u32,
    /// Files and directories that it may make.
    pub disk_inodes: u64,
    /// Places that installs may reach beside the index and public addresses.
    pub hosts: Vec<Place>,
    /// Most that one step of an install moves over the network, in MiB.
    pub transfer_mib: u64,
}

/// Packages that may be built from source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Build {
    All,
    Never,
    /// Those of these names, as they are written.
    Only(Vec<String>),
}

impl Settings {
    /// The settings of the worker directory `dir`, overridden by each of
    /// `overrides` (`key=value,b.c=2`), the last first. No file: the defaults.
    ///
    /// # Errors
    /// The file cannot be read or parsed, or a key or value is not allowed.
    pub fn load(dir: &Path, overrides: &[String]) -> Result<Self, SettingsError> {
        let (raw, notes) = load::raw(&dir.join("hosier.toml"), overrides)?;
        Ok(Self::check(dir, raw, notes))
    }

    /// What the operator should know: keys that are accepted and do nothing yet.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Turns what was written into what it means. Each value fits its key's
    /// [`keys::Allowed`] already.
    fn check(dir: &Path, raw: Raw, notes: Vec<String>) -> Self {
        let below = |text: &str, default: &str| dir.join(if text.is_empty() { default } else { text });
        let ms = Duration::from_millis;
        let s = Duration::from_secs;
        let functions = Limits::default();
        let installers =
            Limits { procs: 64, mem_mb: 250, cpu_percent: 200, runtime_sec: 300, ..Limits::default() };
        let most =
            Limits { procs: 4096, mem_mb: 0, cpu_percent: 102_400, swappiness: 100, runtime_sec: 86_400 };
        Self {
            worker_dir: below(&raw.worker_dir, "worker"),
            worker_url: raw.worker_url,
            worker_port: raw.worker_port,
            worker_threads: threads(raw.worker_threads),
            registry: below(raw.registry.strip_prefix("file://").unwrap_or(&raw.registry), "registry"),
            registry_cache: ms(raw.registry_cache_ms),
            pkgs_dir: below(&raw.pkgs_dir, "packages"),
            pip_mirror: Some(raw.pip_mirror).filter(|url| !url.is_empty()),
            mem_pool_mib: Some(raw.mem_pool_mb).filter(|mib| *mib > 0),
            import_cache_tree: tree(dir, raw.import_cache_tree),
            log_limit_kib: raw.log_output.then_some(raw.log_limit_kib),
            stop_timeout: s(raw.stop_timeout_s),
            limits: raw.limits.or(functions),
            installer_limits: raw.installer_limits.or(installers),
            max_limits: raw.max_limits.or(most),
            features: Features {
                import_cache: !raw.features.import_cache.is_empty(),
                enable_seccomp: raw.features.enable_seccomp,
                reuse_cgroups: raw.features.reuse_cgroups,
                downsize_paused_mem: raw.features.downsize_paused_mem,
            },
            sandbox: SandboxSettings {
                rootfs: if raw.sandbox.rootfs == "rw" { Rootfs::Writable } else { Rootfs::ReadOnly },
                network: if raw.sandbox.network == "host" { Network::Host } else { Network::None },
                python: raw.sandbox.python.into(),
                max_sandboxes: raw.sandbox.max_sandboxes as usize,
                idle_ttl: s(raw.sandbox.idle_ttl_s),
                pause_after: ms(raw.sandbox.pause_after_ms),
                queue_len: raw.sandbox.queue_len as usize,
                queue_max_wait: ms(raw.sandbox.queue_max_wait_ms),
                tmp_mib: raw.sandbox.tmp_mb,
                tmp_inodes: raw.sandbox.tmp_inodes,
                cgroup_pool: raw.sandbox.cgroup_pool as usize,
                netns_pool: raw.sandbox.netns_pool as usize,
                namespaces: Namespaces {
                    mount: raw.sandbox.namespaces.mount,
                    pid: raw.sandbox.namespaces.pid,
                    ipc: raw.sandbox.namespaces.ipc,
                    uts: raw.sandbox.namespaces.uts,
                    cgroup: raw.sandbox.namespaces.cgroup,
                    net: raw.sandbox.namespaces.net,
                },
            },
            zygote: ZygoteSettings {
                mem_mib: raw.zygote.mem_mb,
                procs: raw.zygote.procs,
                grow_timeout: s(raw.zygote.grow_timeout_s),
                grow_wait: ms(raw.zygote.grow_wait_ms),
                replicas: raw.zygote.replicas as usize,
                max_nodes: raw.zygote.max_nodes as usize,
                max_forks: u64::from(raw.zygote.max_forks),
                max_age: Some(s(raw.zygote.max_age_s)).filter(|age| !age.is_zero()),
                learn: raw.zygote.learn,
                immortal: raw.zygote.immortal,
                gc_freeze: raw.zygote.gc_freeze,
                solidify: raw.zygote.solidify,
                blanks: raw.zygote.blanks as usize,
                prefault: raw.zygote.prefault,
                snapshot: raw.zygote.snapshot,
            },
            http: HttpSettings {
                header_timeout: ms(raw.http.header_timeout_ms),
                body_timeout: ms(raw.http.body_timeout_ms),
                total_timeout: Some(ms(raw.http.total_timeout_ms)).filter(|time| !time.is_zero()),
                body_limit_bytes: raw.http.body_limit_bytes as usize,
                max_connections: raw.http.max_connections as usize,
                max_pending: raw.http.max_pending as usize,
                body_budget_bytes: (raw.http.body_budget_mb as usize) << 20,
                admin: if raw.http.admin == "open" { Admin::Open } else { Admin::Token },
            },
            installer: InstallerSettings {
                uv: Some(raw.installer.uv).filter(|path| !path.is_empty()).map(|path| dir.join(path)),
                parallel: raw.installer.parallel as usize,
                build: build(raw.installer.build),
                disk_mib: raw.installer.disk_mb,
                disk_inodes: raw.installer.disk_inodes,
                hosts: raw
                    .installer
                    .hosts
                    .split_whitespace()
                    .filter_map(|place| place.parse().ok())
                    .collect(),
                transfer_mib: raw.installer.transfer_mb.into(),
            },
            trace_latency: raw.trace.latency,
            dir: dir.to_owned(),
            notes,
        }
    }
}

/// Reads `installer.build`, which was checked.
fn build(value: toml::Value) -> Build {
    match value {
        toml::Value::Boolean(true) => Build::All,
        toml::Value::Array(names) => {
            Build::Only(names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
        }
        _ => Build::Never,
    }
}

/// Where `import_cache_tree` says the tree is.
fn tree(dir: &Path, value: toml::Value) -> Tree {
    match value {
        toml::Value::String(text) if text.is_empty() => Tree::Grown,
        toml::Value::String(text) if text.trim_start().starts_with('{') => Tree::Text(text),
        toml::Value::String(path) => Tree::File(dir.join(path)),
        table => Tree::Text(serde_json::json!(table).to_string()),
    }
}

/// A request that changes threads wakes a processor for each change: few threads are
/// faster until they are busy, and what a request costs is spent in its sandbox.
fn threads(asked: usize) -> usize {
    match asked {
        0 => (std::thread::available_parallelism().map_or(1, usize::from) / 4).max(1),
        some => some,
    }
}
