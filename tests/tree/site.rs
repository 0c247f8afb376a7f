//! A worker on the shared package store, and its tree as `/debug` draws it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Answer, Worker};

/// A function that evaluates what it is sent; `BEFORE` is what was imported before it was.
pub const PROBE: &str = "import sys\nBEFORE = frozenset(sys.modules)\nPATH = list(sys.path)\n\
    import gc, os, time\nCALLS = []\ndef f(event):\n    CALLS.append(1)\n    return eval(event['x'])\n";

pub const SIX: &str = "six==1.16.0";
pub const OLD_SIX: &str = "six==1.15.0";
pub const DATEUTIL: &str = "python-dateutil==2.9.0.post0";
pub const IDNA: &str = "idna==3.7";
pub const ATTRS: &str = "attrs==23.2.0";

/// Where packages are kept between runs.
pub fn store() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages")
}

/// The files of a pin in it: there is one interpreter, and one entry for each pin.
pub fn files(pin: &str) -> PathBuf {
    let below = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let entry = below(&store()).iter().find_map(|abi| below(&abi.join(pin)).pop());
    entry.unwrap_or_else(|| panic!("{pin} is not in the store")).join("files")
}

/// A worker directory on the shared store, perhaps with a tree file.
pub fn site(tree: Option<&str>) -> Worker {
    let worker = Worker::new();
    let mut lines = format!("pkgs_dir = {:?}\n", store());
    if let Some(tree) = tree {
        fs::write(worker.path().join("tree.json"), tree).unwrap();
        lines.push_str("import_cache_tree = \"tree.json\"\n");
    }
    let path = worker.path().join("hosier.toml");
    let rest = fs::read_to_string(&path).unwrap();
    fs::write(&path, lines + &rest).unwrap();
    worker
}

/// Deploys a probe with these packages.
pub fn probe(worker: &Worker, name: &str, pins: &[&str]) {
    probe_with(worker, name, pins, "");
}

/// The same, with an `ol.yaml`.
pub fn probe_with(worker: &Worker, name: &str, pins: &[&str], config: &str) {
    worker.deploy(name, &[("f.py", PROBE), ("requirements.txt", &pins.join("\n")), ("ol.yaml", config)]);
}

/// A sandbox of its own for each call.
pub const ONE_SHOT: &str = "reuse-sandbox: false\n";

/// What a probe makes of an expression.
pub fn ask(worker: &Worker, name: &str, expression: &str) -> Answer {
    let answer = worker.call(name, &serde_json::json!({ "x": expression }).to_string());
    assert_eq!(answer.status, 200, "{name}: {answer:?}\n{}", worker.get("/debug").body);
    answer
}

/// Which of these modules a probe's node had imported; it must have been forked for this.
pub fn before(worker: &Worker, name: &str, modules: &[&str]) -> Vec<String> {
    let answer = ask(worker, name, &format!("[m for m in {modules:?} if m in BEFORE]"));
    assert_eq!(answer.start(), "forked", "{name}");
    serde_json::from_str(&answer.body).unwrap()
}

/// A node, as `/debug` draws it.
#[derive(Debug, Clone)]
pub struct Node {
    pub packages: String,
    /// Packages of its parent; none for a root.
    pub parent: Option<String>,
    /// What comes after its packages.
    pub state: String,
    /// The sandbox it stands in.
    pub sandbox: Option<u64>,
    pub forks: u64,
}

/// Every node that may exist, root first.
pub fn nodes(worker: &Worker) -> Vec<Node> {
    let debug = worker.get("/debug").body;
    let mut above: Vec<String> = Vec::new();
    let mut nodes = Vec::new();
    for line in debug.lines() {
        let text = line.trim_start();
        let Some(rest) = text.strip_prefix("zygote ") else { continue };
        let depth = (line.len() - text.len()) / 2 - 1;
        let (packages, state) = rest.split_once('[').unwrap().1.split_once(']').unwrap();
        above.truncate(depth);
        let number = |word: &str| {
            let rest = state.split_once(word)?.1;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        nodes.push(Node {
            packages: packages.to_owned(),
            parent: above.last().cloned(),
            state: state.trim().to_owned(),
            sandbox: number("sandbox "),
            forks: number("forks=").unwrap_or(0),
        });
        above.push(packages.to_owned());
    }
    nodes
}

/// The node that imports just these packages.
pub fn node(worker: &Worker, packages: &str) -> Node {
    let nodes = nodes(worker);
    let found = nodes.iter().find(|node| node.packages == packages);
    found.unwrap_or_else(|| panic!("no node [{packages}] among {nodes:#?}")).clone()
}

/// A node's stub and its interpreter: pids 1 and 2 of its namespace, as the host numbers them.
pub fn pids(worker: &Worker, packages: &str) -> (i32, i32) {
    let node = node(worker, packages);
    let id = node.sandbox.unwrap_or_else(|| panic!("{node:?} does not stand"));
    let debug = worker.get("/debug").body;
    let line = debug.lines().find(|line| line.trim_start().starts_with(&format!("sandbox {id} "))).unwrap();
    let cgroup = line.rsplit_once("cgroup ").unwrap().1;
    let procs = fs::read_to_string(Path::new(cgroup).join("cgroup.procs")).unwrap();
    let inside = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("NSpid:")).unwrap().to_owned();
        line.split_whitespace().last().unwrap().to_owned()
    };
    let find = |number: &str| {
        let pid = procs.lines().find(|pid| inside(pid) == number);
        pid.unwrap_or_else(|| panic!("no pid {number} in {procs:?}")).parse().unwrap()
    };
    (find("1"), find("2"))
}

/// Lays a package of one module into the store; its pin.
pub fn fixture(name: &str, code: &str) -> String {
    fixture_of(name, &[(name, code)])
}

/// The same, of several modules.
pub fn fixture_of(name: &str, modules: &[(&str, &str)]) -> String {
    let names: Vec<_> = modules.iter().map(|(module, _)| *module).collect();
    let files: Vec<_> = modules.iter().map(|(module, code)| (format!("{module}.py"), *code)).collect();
    lay(name, &names, &files)
}

/// Lays a package with files below its one top-level module into the store; its pin.
pub fn fixture_tree(name: &str, files: &[(&str, &str)]) -> String {
    let files: Vec<_> = files.iter().map(|(file, code)| (format!("{name}/{file}"), *code)).collect();
    lay(name, &[name], &files)
}

/// Lays files into the store's older layout, which the worker takes over: no index knows them.
fn lay(name: &str, top_level: &[&str], files: &[(String, &str)]) -> String {
    let pin = format!("{name}==1.0");
    let is_same = |dir: &Path| {
        let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
        files.iter().all(|(file, code)| read(file) == *code)
    };
    let below = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    for entry in below(&store()).flat_map(|abi| below(&abi.join(&pin)).collect::<Vec<_>>()) {
        if is_same(&entry.join("files")) {
            return pin;
        }
        fs::remove_dir_all(entry).unwrap();
    }
    fs::create_dir_all(store()).unwrap();
    let laid = tempfile::Builder::new().prefix(".fixture-").tempdir_in(store()).unwrap();
    let dir = laid.path().join("package");
    for (file, code) in files {
        let path = dir.join("files").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, code).unwrap();
    }
    let meta = serde_json::json!({ "top_level": top_level, "requires": [] });
    fs::write(dir.join("meta.json"), meta.to_string()).unwrap();
    // Another test may have laid the same one meanwhile.
    let _ = fs::remove_dir_all(store().join(&pin));
    let _ = fs::rename(dir, store().join(&pin));
    pin
}
