//! What the benchmarks share: workers on one registry and one package store, a
//! client that keeps its connection, baselines, percentiles, and the report.

#![allow(dead_code, reason = "no benchmark uses all of it")]

#[path = "../../tests/support/mod.rs"]
pub mod worker;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use worker::Worker;

/// The pause before a start that is to meet a quiet machine.
pub const QUIET: Duration = Duration::from_millis(50);

pub const PYTHON: &str = "/usr/bin/python3";

/// A function of `benches/functions`.
#[derive(Debug, Clone, Copy)]
pub struct Function {
    pub name: &'static str,
    pub packages: bool,
}

pub const FUNCTIONS: [Function; 3] = [
    Function { name: "noop", packages: false },
    Function { name: "pandas", packages: true },
    Function { name: "pillow", packages: true },
];

impl Function {
    fn source(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/functions").join(self.name)
    }

    /// The copy that gets a new sandbox for each call.
    pub fn once(self) -> String {
        format!("{}-once", self.name)
    }

    /// Its packages, as the store names them.
    fn pins(self) -> Vec<String> {
        let text = std::fs::read_to_string(self.source().join("requirements.txt")).unwrap_or_default();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    }
}

/// How often things are measured; `HOSIER_BENCH_ROUNDS` changes it.
pub fn rounds(default: usize) -> usize {
    std::env::var("HOSIER_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A worker with every function deployed, once as it is and once for cold starts.
pub fn home() -> Worker {
    let home = Worker::new();
    for function in FUNCTIONS {
        eprintln!("deploying {}", function.name);
        let source = function.source();
        home.ok(&["deploy", &source.to_string_lossy(), "-n", function.name]);
        let files: Vec<_> = std::fs::read_dir(&source)
            .unwrap()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file())
            .map(|path| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                (name, std::fs::read_to_string(path).unwrap())
            })
            .collect();
        let mut files: BTreeMap<_, _> = files.into_iter().collect();
        files.entry("ol.yaml".to_owned()).or_default().push_str("reuse-sandbox: false\n");
        let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        home.deploy(&function.once(), &files);
    }
    home
}

/// One more worker, on the functions and packages of another.
pub fn beside(home: &Worker, options: &[&str]) -> Worker {
    let mut worker = Worker::new();
    let path = worker.path().join("hosier.toml");
    let shared = |name: &str| format!("{:?}", home.path().join(name).to_string_lossy());
    let settings = std::fs::read_to_string(&path).unwrap();
    let (registry, packages) = (shared("registry"), shared("packages"));
    std::fs::write(path, format!("registry = {registry}\npkgs_dir = {packages}\n{settings}")).unwrap();
    // An experiment's: `zygote.prefault=false`, say.
    let more = std::env::var("HOSIER_BENCH_OPTIONS").unwrap_or_default();
    let more = Some(more.as_str()).filter(|more| !more.is_empty());
    worker.up(&options.iter().copied().chain(more).collect::<Vec<_>>());
    worker
}

/// A connection that is kept. An idle one is closed after `http.header_timeout_ms`.
pub struct Client(BufReader<TcpStream>);

/// An answer and what it cost.
#[derive(Debug)]
pub struct Answer {
    pub took: Duration,
    pub start: String,
    pub steps: Vec<(String, f64)>,
}

impl Client {
    pub fn new(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    /// Calls a function and expects 200.
    pub fn call(&mut self, name: &str) -> Answer {
        let request =
            format!("POST /run/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}");
        let begun = Instant::now();
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
        let (head, body) = self.read();
        let took = begun.elapsed();
        assert!(head.starts_with("HTTP/1.1 200"), "{name}: {head}\n{}", String::from_utf8_lossy(&body));
        let start = field(&head, "x-hosier-start").to_owned();
        let step = |part: &str| {
            let (name, took) = part.trim().split_once(";dur=")?;
            Some((name.to_owned(), took.parse::<f64>().ok()? * 1e3))
        };
        Answer { took, start, steps: field(&head, "server-timing").split(',').filter_map(step).collect() }
    }

    fn read(&mut self) -> (String, Vec<u8>) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.0.read_line(&mut head).unwrap() > 0, "the worker hung up: {head}");
        }
        let mut body = vec![0; field(&head, "content-length").parse().unwrap()];
        self.0.read_exact(&mut body).unwrap();
        (head, body)
    }
}

fn field<'a>(head: &'a str, name: &str) -> &'a str {
    let named = |line: &'a str| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then_some(value.trim())
    };
    head.lines().find_map(named).unwrap_or_default()
}

/// Plain interpreters: no Hosier in them.
pub struct Baselines {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    code: tempfile::TempDir,
    path: String,
}

impl Baselines {
    /// Interpreters that import what the function does, from the same store.
    pub fn new(home: &Worker, function: Function) -> Self {
        let code = tempfile::Builder::new().prefix("hosier-bench-").tempdir().unwrap();
        std::fs::copy(function.source().join("f.py"), code.path().join("f.py")).unwrap();
        let compiled = Command::new(PYTHON).args(["-I", "-m", "compileall", "-q"]).arg(code.path()).status();
        assert!(compiled.unwrap().success());
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
        let packages = function.pins();
        let packages = packages.iter().map(|pin| home.path().join("packages").join(pin).join("files"));
        let places = [here, code.path().to_owned()].into_iter().chain(packages);
        let path = std::env::join_paths(places).unwrap().to_string_lossy().into_owned();
        let mut child =
            python(&path, "import baselines; baselines.main()").stdin(Stdio::piped()).spawn().unwrap();
        let ask = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, ask, answers, code, path }
    }

    /// One start of `kind`: until its answer is read, and until its process is gone.
    pub fn start(&mut self, kind: &str) -> (Duration, Duration) {
        writeln!(self.ask, "{kind}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
        let took = |key: &str| Duration::from_secs_f64(answer[key].as_f64().unwrap() / 1e6);
        (took("answered_us"), took("gone_us"))
    }

    /// A new interpreter that imports, calls the handler once and answers.
    pub fn subprocess(&self) -> (Duration, Duration) {
        let script = "import json, f; print(json.dumps(f.f({})), flush=True)";
        let begun = Instant::now();
        let mut child = python(&self.path, script).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let answered = begun.elapsed();
        assert!(child.wait().unwrap().success() && !line.is_empty());
        (answered, begun.elapsed())
    }
}

impl Drop for Baselines {
    fn drop(&mut self) {
        // Its input's end would do as well, if it still reads.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As isolated as PYTHONPATH allows, and with one thread a library, as a zygote has it.
fn python(path: &str, script: &str) -> Command {
    let mut command = Command::new(PYTHON);
    command.args(["-s", "-B", "-c", script]).env_clear().env("PYTHONPATH", path).env("LANG", "C.UTF-8");
    command.envs([("OPENBLAS_NUM_THREADS", "1"), ("OMP_NUM_THREADS", "1")]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// What was measured of one thing, in µs.
#[derive(Debug, Default, Clone)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn add(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1e6);
    }

    pub fn add_us(&mut self, us: f64) {
        self.0.push(us);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The value that `percent` of all are not above (nearest rank).
    pub fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
    }

    pub fn json(&self) -> serde_json::Value {
        let [p50, p90, p99] = [50, 90, 99].map(|percent| self.percentile(percent));
        serde_json::json!({ "starts": self.len(), "p50_us": p50, "p90_us": p90, "p99_us": p99 })
    }
}

/// Writes `NAME.json` with the machine, its kernel, its load, and the commit.
pub fn report(name: &str, results: serde_json::Value) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    let report = serde_json::json!({
        "benchmark": name,
        "machine": {
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
            "model": after(&read("/proc/cpuinfo"), "model name"),
            "memory": after(&read("/proc/meminfo"), "MemTotal"),
            "kernel": read("/proc/sys/kernel/osrelease").trim(),
            "python": said(PYTHON, &["--version"]),
            "load": read("/proc/loadavg").trim(),
        },
        "commit": said("git", &["describe", "--always", "--dirty"]),
        "results": results,
    });
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join(format!("{name}.json"));
    std::fs::write(&path, format!("{report:#}\n")).unwrap();
    eprintln!("written to {}", path.display());
}
