//! The settings as they are written: serde's view of `DIR/hosier.toml`, with
//! the defaults. Plain data for every process; read once, by [`super::Settings`].

use serde::{Deserialize, Serialize};

use crate::sandbox::PartialLimits;

/// A section: a struct whose every key is optional and whose defaults are here.
macro_rules! section {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $kind:ty = $default:expr),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Deserialize, Serialize)]
        #[serde(default, deny_unknown_fields)]
        pub(super) struct $name { $(pub(super) $field: $kind),* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default),* }
            }
        }
    };
}

section!(
    /// The whole file. Plain values first: TOML wants them before its tables.
    Raw {
        worker_url: String = "localhost".to_owned(),
        worker_port: u16 = 5000,
        worker_threads: usize = 0,
        server_mode: String = "lambda".to_owned(),
        worker_dir: String = String::new(),
        registry: String = String::new(),
        registry_cache_ms: u64 = 5000,
        pkgs_dir: String = String::new(),
        pip_mirror: String = String::new(),
        mem_pool_mb: u32 = 0,
        import_cache_tree: toml::Value = toml::Value::String(String::new()),
        sock_base_path: String = String::new(),
        log_output: bool = true,
        log_limit_kib: u64 = 1024,
        stop_timeout_s: u64 = 10,
        limits: PartialLimits = PartialLimits::default(),
        installer_limits: PartialLimits = PartialLimits::default(),
        max_limits: PartialLimits = PartialLimits::default(),
        features: RawFeatures = RawFeatures::default(),
        sandbox: RawSandbox = RawSandbox::default(),
        zygote: RawZygote = RawZygote::default(),
        http: RawHttp = RawHttp::default(),
        installer: RawInstaller = RawInstaller::default(),
        trace: RawTrace = RawTrace::default(),
        storage: RawStorage = RawStorage::default(),
    }
);

section!(RawFeatures {
    import_cache: String = "tree".to_owned(),
    enable_seccomp: bool = true,
    reuse_cgroups: bool = true,
    downsize_paused_mem: bool = true,
});

section!(RawSandbox {
    base: String = "host".to_owned(),
    rootfs: String = "ro".to_owned(),
    network: String = "none".to_owned(),
    python: String = "/usr/bin/python3".to_owned(),
    max_sandboxes: u32 = 100,
    idle_ttl_s: u64 = 300,
    pause_after_ms: u64 = 100,
    queue_len: u32 = 100,
    queue_max_wait_ms: u64 = 5_000,
    tmp_mb: u32 = 64,
    tmp_inodes: u32 = 16384,
    cgroup_pool: u32 = 8,
    netns_pool: u32 = 16,
    namespaces: RawNamespaces = RawNamespaces::default(),
});

section!(RawNamespaces {
    mount: bool = true,
    pid: bool = true,
    ipc: bool = true,
    uts: bool = true,
    cgroup: bool = true,
    net: bool = true,
});

section!(RawZygote {
    mem_mb: u32 = 2048,
    procs: u32 = 64,
    grow_timeout_s: u64 = 120,
    grow_wait_ms: u64 = 5_000,
    replicas: u32 = 2,
    max_nodes: u32 = 64,
    max_forks: u32 = 100_000,
    max_age_s: u64 = 86_400,
    learn: bool = true,
    immortal: bool = true,
    gc_freeze: bool = true,
    solidify: bool = true,
    blanks: u32 = 4,
    prefault: bool = true,
    snapshot: bool = true,
});

section!(RawHttp {
    header_timeout_ms: u64 = 10_000,
    body_timeout_ms: u64 = 30_000,
    total_timeout_ms: u64 = 0,
    body_limit_bytes: u64 = 6 << 20,
    max_connections: u32 = 1024,
    max_pending: u32 = 1024,
    body_budget_mb: u32 = 256,
    admin: String = "token".to_owned(),
});

section!(RawInstaller {
    uv: String = String::new(),
    parallel: u32 = 2,
    build: toml::Value = toml::Value::Boolean(true),
    disk_mb: u32 = 8192,
    disk_inodes: u64 = 300_000,
    hosts: String = String::new(),
    transfer_mb: u32 = 16_384,
});

section!(RawTrace {
    cgroups: bool = false,
    memory: bool = false,
    evictor: bool = false,
    package: bool = false,
    latency: bool = false,
});

section!(RawStorage {
    root: String = String::new(),
    scratch: String = String::new(),
    code: String = String::new()
});
