//! Every key of the settings as data: what it is for, and what it may be. The
//! default file, the checks, their errors and `-o` all read this one list.

use super::near::near;

/// What a key may be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Allowed {
    Bool,
    /// What cannot be switched off.
    True,
    /// A whole number between two, both included.
    Number(i64, i64),
    /// A text that `fits`; `what` says which do.
    Text {
        fits: fn(&str) -> bool,
        what: &'static str,
    },
    /// A path, JSON text, or a table.
    Tree,
    /// `true`, `false`, or a list of packages' names.
    BoolOrNames,
}

/// One key.
#[derive(Debug)]
pub(super) struct Key {
    /// Its path, as `-o` takes it.
    pub path: &'static str,
    /// What it is for, for the default file.
    pub doc: &'static str,
    pub allowed: Allowed,
    /// OpenLambda's, taken so that its files load, and not used here (yet).
    pub inert: bool,
}

impl Allowed {
    /// What is allowed, for an error.
    pub(super) fn what(self) -> String {
        match self {
            Allowed::Bool => "true or false".to_owned(),
            Allowed::True => "true (no sandbox stands without it)".to_owned(),
            Allowed::Number(low, high) => format!("a whole number from {low} to {high}"),
            Allowed::Text { what, .. } => what.to_owned(),
            Allowed::Tree => {
                "\"\", the path of a tree file, or the tree itself as JSON text or table".to_owned()
            }
            Allowed::BoolOrNames => "true, false, or a list of packages' names ([\"a\", \"b\"])".to_owned(),
        }
    }

    pub(super) fn fits(self, value: &toml::Value) -> bool {
        match (self, value) {
            (Allowed::Bool, toml::Value::Boolean(_)) => true,
            (Allowed::True, toml::Value::Boolean(on)) => *on,
            (Allowed::Number(low, high), toml::Value::Integer(n)) => (low..=high).contains(n),
            (Allowed::Text { fits, .. }, toml::Value::String(text)) => fits(text),
            (Allowed::Tree, toml::Value::Table(_)) => true,
            (Allowed::BoolOrNames, toml::Value::Boolean(_)) => true,
            (Allowed::BoolOrNames, toml::Value::Array(names)) => {
                names.iter().all(|name| name.as_str().is_some_and(name_fits))
            }
            (Allowed::Tree, toml::Value::String(text)) => {
                !text.trim_start().starts_with('{')
                    || serde_json::from_str::<serde_json::Map<_, _>>(text).is_ok()
            }
            _ => false,
        }
    }

    /// Reads the text that `-o` gave. None: it does not fit.
    pub(super) fn read(self, text: &str) -> Option<toml::Value> {
        let value = match self {
            Allowed::Bool | Allowed::True => toml::Value::Boolean(text.parse().ok()?),
            Allowed::Number(..) => toml::Value::Integer(text.parse().ok()?),
            Allowed::Text { .. } | Allowed::Tree => toml::Value::String(text.to_owned()),
            Allowed::BoolOrNames => {
                format!("value = {text}").parse::<toml::Table>().ok()?.get("value")?.clone()
            }
        };
        self.fits(&value).then_some(value)
    }
}

/// The key of that path.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Keys whose names look like `path`.
pub(super) fn near_keys(path: &str) -> Vec<&'static str> {
    near(path, KEYS.iter().map(|key| key.path))
}

const fn key(path: &'static str, allowed: Allowed, doc: &'static str) -> Key {
    Key { path, doc, allowed, inert: false }
}

const fn inert(path: &'static str, allowed: Allowed) -> Key {
    Key { path, doc: "OpenLambda's key: accepted, no effect yet.", allowed, inert: true }
}

const fn text(fits: fn(&str) -> bool, what: &'static str) -> Allowed {
    Allowed::Text { fits, what }
}

const YEAR_S: i64 = 365 * 86_400;
const MIB_MAX: i64 = 1 << 22; // 4 TiB
const BOOL: Allowed = Allowed::Bool;
const ALWAYS: Allowed = Allowed::True;
const MS: Allowed = Allowed::Number(1, 86_400_000);
const PATH: Allowed = text(|text| !text.contains('\0'), "a path, absolute or below the worker directory");
const STORAGE: Allowed =
    text(|text| matches!(text, "" | "memory" | "private"), "\"\", \"memory\" or \"private\"");

/// All keys, in the order of the default file: plain ones before the sections.
pub(super) const KEYS: &[Key] = &[
    key(
        "worker_url",
        text(|host| !host.is_empty() && !host.contains("/"), "a host name or address, without a scheme"),
        "The host name or address to listen on. \"0.0.0.0\" is every interface: whoever reaches it may call\nevery function. All else is for http.admin to say.",
    ),
    key(
        "worker_port",
        Allowed::Number(0, 65_535),
        "The port. 0 takes any free one (`hosier status` tells which).",
    ),
    key(
        "server_mode",
        text(|mode| mode == "lambda", "\"lambda\" (\"sock\" is not served yet)"),
        "\"lambda\": functions over HTTP. (\"sock\", bare sandboxes, is not served yet.)",
    ),
    key(
        "worker_threads",
        Allowed::Number(0, 1024),
        "Threads that serve requests; the sandboxes need the other processors. 0 is a quarter of them.",
    ),
    key("worker_dir", PATH, "Where what a running worker needs lives. \"\" is DIR/worker."),
    key(
        "registry",
        text(registry_fits, "\"\", a directory, or file:///DIRECTORY (object stores are not served yet)"),
        "Where functions are kept. \"\" is file://DIR/registry.",
    ),
    key(
        "registry_cache_ms",
        Allowed::Number(0, 86_400_000),
        "New code is seen within this time of being stored.",
    ),
    key("pkgs_dir", PATH, "Where installed packages are kept. \"\" is DIR/packages."),
    key(
        "pip_mirror",
        text(mirror_fits, "\"\" or a URL that starts with http:// or https://"),
        "The package index. \"\" takes the operator's (UV_DEFAULT_INDEX, UV_INDEX_URL, PIP_INDEX_URL), else PyPI.",
    ),
    key(
        "mem_pool_mb",
        Allowed::Number(0, MIB_MAX),
        "Memory that all sandboxes together may use, in MiB. 0: the machine's but for 500 MiB. Near\nit leaves that were forked ahead of need are given up.",
    ),
    key(
        "import_cache_tree",
        Allowed::Tree,
        "The tree of zygotes: a path, or the tree itself (JSON text or a table). \"\": it grows itself.",
    ),
    inert("sock_base_path", PATH),
    key("log_output", BOOL, "Keep what functions print, in a bounded log each."),
    key("log_limit_kib", Allowed::Number(1, 1 << 20), "How much of it, in KiB per function."),
    key(
        "stop_timeout_s",
        Allowed::Number(0, 3600),
        "How long running calls may take to end when the worker stops.",
    ),
    key(
        "limits.procs",
        Allowed::Number(0, 65_536),
        "What one sandbox of a function may use; 0 is the default, and a function's `ol.yaml` goes\nfirst. Processes and threads (default 10).",
    ),
    key("limits.mem_mb", Allowed::Number(0, MIB_MAX), "Memory in MiB (default 50)."),
    key("limits.cpu_percent", Allowed::Number(0, 102_400), "Share of one core in percent (default 100)."),
    key("limits.swappiness", Allowed::Number(0, 100), "Willingness to swap (default 0)."),
    key("limits.runtime_sec", Allowed::Number(0, YEAR_S), "Longest run of one call in seconds (default 30)."),
    key("installer_limits.procs", Allowed::Number(0, 65_536), "The same for an installer (default 64)."),
    key("installer_limits.mem_mb", Allowed::Number(0, MIB_MAX), "Memory in MiB (default 250)."),
    key(
        "installer_limits.cpu_percent",
        Allowed::Number(0, 102_400),
        "Share of one core in percent (default 200).",
    ),
    key("installer_limits.swappiness", Allowed::Number(0, 100), "Willingness to swap (default 0)."),
    key("installer_limits.runtime_sec", Allowed::Number(0, YEAR_S), "Longest run in seconds (default 300)."),
    key(
        "max_limits.procs",
        Allowed::Number(0, 65_536),
        "What a function's `ol.yaml` may ask for at most; 0 is the default. Processes and threads\n(default 4096).",
    ),
    key("max_limits.mem_mb", Allowed::Number(0, MIB_MAX), "Memory in MiB (default: what the machine has)."),
    key(
        "max_limits.cpu_percent",
        Allowed::Number(0, 102_400),
        "Share of one core in percent (default 102400).",
    ),
    key("max_limits.swappiness", Allowed::Number(0, 100), "Willingness to swap (default 100)."),
    key(
        "max_limits.runtime_sec",
        Allowed::Number(0, YEAR_S),
        "Longest run of one call in seconds (default 86400).",
    ),
    key(
        "features.import_cache",
        text(|kind| matches!(kind, "" | "tree" | "multitree"), "\"tree\", \"multitree\" or \"\""),
        "\"tree\": fork sandboxes from zygotes. \"multitree\" is the same: see zygote.replicas.\n\"\": start each one anew.",
    ),
    key("features.enable_seccomp", BOOL, "Filter system calls. Off is for experiments only."),
    inert("features.reuse_cgroups", BOOL),
    inert("features.downsize_paused_mem", BOOL),
    key(
        "sandbox.base",
        text(|base| base == "host", "\"host\" (other bases are not served yet)"),
        "What a sandbox's root is made of: \"host\" shows the host's /usr.",
    ),
    key(
        "sandbox.rootfs",
        text(|kind| matches!(kind, "ro" | "rw"), "\"ro\" or \"rw\""),
        "\"ro\", or \"rw\" for a writable root of its own.",
    ),
    key(
        "sandbox.network",
        text(|kind| matches!(kind, "none" | "host"), "\"none\" or \"host\""),
        "What functions see of the network: \"none\" or \"host\".",
    ),
    key(
        "sandbox.python",
        text(|path| path.starts_with('/'), "the absolute path of a CPython 3.9 or newer below /usr"),
        "The interpreter.",
    ),
    key(
        "sandbox.max_sandboxes",
        Allowed::Number(1, 10_000),
        "Sandboxes alive at one time, grown zygotes among them; the first one of a tree is not counted.",
    ),
    key("sandbox.idle_ttl_s", Allowed::Number(1, YEAR_S), "An idle sandbox is given up after this time."),
    key(
        "sandbox.pause_after_ms",
        Allowed::Number(0, 86_400_000),
        "An idle sandbox is frozen after this time.",
    ),
    key(
        "sandbox.queue_len",
        Allowed::Number(1, 100_000),
        "Requests that may wait for one function; more are answered 429.",
    ),
    key(
        "sandbox.queue_max_wait_ms",
        MS,
        "Longest wait of a request before it begins, for its function or for a sandbox. One that could not begin\nby then is answered 429 at once, one that did not, then; nothing of either ran.",
    ),
    key("sandbox.tmp_mb", Allowed::Number(1, MIB_MAX), "Size of each of /tmp, /host and /dev/shm, in MiB."),
    key("sandbox.tmp_inodes", Allowed::Number(16, 1 << 24), "Files in each of them."),
    key("sandbox.cgroup_pool", Allowed::Number(0, 1024), "Cgroups kept ready."),
    key(
        "sandbox.netns_pool",
        Allowed::Number(0, 1024),
        "Network namespaces kept ready for a tree; 0 is off.",
    ),
    key(
        "sandbox.namespaces.mount",
        ALWAYS,
        "Namespaces of a sandbox; ipc, uts, cgroup and net can be left out for experiments. Those of\nusers, mounts and pids carry the sandbox and are always made.",
    ),
    key("sandbox.namespaces.pid", ALWAYS, ""),
    key("sandbox.namespaces.ipc", BOOL, ""),
    key("sandbox.namespaces.uts", BOOL, ""),
    key("sandbox.namespaces.cgroup", BOOL, ""),
    key("sandbox.namespaces.net", BOOL, ""),
    key("zygote.mem_mb", Allowed::Number(16, MIB_MAX), "Memory of one zygote, in MiB."),
    key("zygote.procs", Allowed::Number(2, 65_536), "Processes and threads of one zygote, while it imports."),
    key("zygote.grow_timeout_s", Allowed::Number(1, 3600), "Longest time for a zygote's imports."),
    key(
        "zygote.grow_wait_ms",
        Allowed::Number(0, 86_400_000),
        "Longest time that a start waits for a zygote that is being grown, before an ancestor serves it.",
    ),
    key(
        "zygote.replicas",
        Allowed::Number(1, 64),
        "Zygotes of one node, at most, while it is busy; 1 is off.",
    ),
    key("zygote.max_nodes", Allowed::Number(1, 4096), "Zygotes alive at one time."),
    key(
        "zygote.max_forks",
        Allowed::Number(0, u32::MAX as i64),
        "A zygote that forked so often is replaced, and its tree with it, so that address layouts and\nhash seeds change; 0 is never.",
    ),
    key("zygote.max_age_s", Allowed::Number(0, YEAR_S), "One that stands for so long is, too; 0 is never."),
    key(
        "zygote.learn",
        BOOL,
        "Grow zygotes that import, below their packages' top level, what a function was seen to import before its\nfirst call; they serve functions that import the same.",
    ),
    key(
        "zygote.immortal",
        BOOL,
        "Make a zygote's modules, classes and code immortal, so that sandboxes write fewer pages.\nFrom CPython 3.12 on; before, it changes nothing.",
    ),
    key("zygote.gc_freeze", BOOL, "Run gc.collect() and gc.freeze() before a zygote serves."),
    key(
        "zygote.blanks",
        Allowed::Number(0, 256),
        "Leaves that a node in use keeps forked ahead of need, at most; 0 is off.",
    ),
    key("zygote.prefault", BOOL, "Blanks populate the pages that earlier leaves touched."),
    key(
        "zygote.solidify",
        BOOL,
        "Move a zygote's memory into a memfd, so that a fork copies fewer page tables.",
    ),
    key(
        "zygote.snapshot",
        BOOL,
        "Give functions whose `ol.yaml` says `snapshot: true` a zygote of their own, handler imported.",
    ),
    key("http.header_timeout_ms", MS, "Longest time for a request's header."),
    key("http.body_timeout_ms", MS, "Longest time for its body."),
    key(
        "http.total_timeout_ms",
        Allowed::Number(0, YEAR_S * 1000),
        "Longest time for the whole request. 0: the function's runtime_sec and what its start may take.",
    ),
    key(
        "http.body_limit_bytes",
        Allowed::Number(1, 1 << 30),
        "Largest body, of a call or of a stored archive.",
    ),
    key(
        "http.max_connections",
        Allowed::Number(1, 65_536),
        "Requests served at one time, each whole and on a connection of its own; more are answered 503.",
    ),
    key(
        "http.max_pending",
        Allowed::Number(1, 65_536),
        "Connections that wait for their clients (to send a request, to take an answer, idle ones). At the cap the\nlongest-pending one of the client with the most is closed.",
    ),
    key(
        "http.body_budget_mb",
        Allowed::Number(1, MIB_MAX),
        "Memory that the bodies of all requests may have together, in MiB; what finds none in two seconds is\nanswered 503. Bodies of up to 64 KiB need none.",
    ),
    key(
        "http.admin",
        text(|kind| matches!(kind, "token" | "open"), "\"token\" or \"open\""),
        "Who may use all that is not a call (/registry, /debug) at the port: \"token\", who sends the token in\nDIR/token; \"open\", who reaches the port, as OpenLambda has it. The worker's own socket needs neither.\nThe port is to be addressed as localhost, as an address it listens on, or as worker_url, and from no foreign page.",
    ),
    key(
        "installer.uv",
        PATH,
        "The `uv` that installs packages. \"\" looks in DIR/tools, beside `hosier`, and in PATH.",
    ),
    key("installer.parallel", Allowed::Number(1, 64), "Packages installed at one time."),
    key(
        "installer.build",
        Allowed::BoolOrNames,
        "Whether packages without a fitting wheel are built from source, in a sandbox without network:\ntrue, false, or a list of the packages that are.",
    ),
    key(
        "installer.disk_mb",
        Allowed::Number(16, MIB_MAX),
        "Disk that one step of an install (resolve, fetch, build, unpack) may fill, in MiB.",
    ),
    key("installer.disk_inodes", Allowed::Number(1000, 1 << 24), "Files and directories it may make."),
    key(
        "installer.hosts",
        text(hosts_fit, "places as HOST or HOST:PORT, with spaces between"),
        "What installs may reach beside the package index and port 443 of public addresses: HOST:PORT\n(or HOST, for port 443), several with spaces between. What is named here may be in a private\nnetwork or on this machine.",
    ),
    key(
        "installer.transfer_mb",
        Allowed::Number(1, MIB_MAX),
        "What one step of an install may move over the network, in MiB.",
    ),
    inert("trace.cgroups", BOOL),
    inert("trace.memory", BOOL),
    inert("trace.evictor", BOOL),
    inert("trace.package", BOOL),
    key(
        "trace.latency",
        BOOL,
        "Log each step of each call with its microseconds, as HOSIER_LOG=hosier::latency=debug does.",
    ),
    inert("storage.root", STORAGE),
    inert("storage.scratch", STORAGE),
    inert("storage.code", STORAGE),
];

fn registry_fits(text: &str) -> bool {
    match text.split_once("://") {
        Some((scheme, path)) => scheme == "file" && path.starts_with('/'),
        None => !text.contains('\0'),
    }
}

fn name_fits(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn hosts_fit(text: &str) -> bool {
    text.split_whitespace().all(|place| place.parse::<crate::sandbox::outlet::Place>().is_ok())
}

fn mirror_fits(text: &str) -> bool {
    text.is_empty()
        || ((text.starts_with("http://") || text.starts_with("https://"))
            && !text.contains(char::is_whitespace))
}
