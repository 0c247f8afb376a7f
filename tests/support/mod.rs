//! What the integration tests share: a real worker in a directory of its own,
//! HTTP to it, and a census of what is left when it is gone.
//!
//! ```text
//! Worker::new ─▶ deploy… ─▶ up ─▶ call… ─▶ down or kill ─▶ census (also when dropped)
//! ```
//!
//! Nothing is faked: the binary that users run, its spawner, its sandboxes.

#![allow(dead_code, reason = "no suite uses all of it")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// The program under test.
pub const HOSIER: &str = env!("CARGO_BIN_EXE_hosier");

/// How long things may linger that are on their way out.
const GONE_BOUND: Duration = Duration::from_secs(10);

/// A worker directory, and the worker in it while it is up.
pub struct Worker {
    pub dir: tempfile::TempDir,
    pub port: u16,
    group: Option<String>,
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// How the sandbox came to be.
    pub fn start(&self) -> &str {
        self.header("x-hosier-start")
    }
}

impl Worker {
    /// A fresh worker directory; nothing runs yet.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("hosier-test-").tempdir().unwrap();
        let worker = Self { dir, port: 0, group: None };
        worker.ok(&["init"]);
        worker
    }

    /// A worker with these functions (name, code of `f.py`), up.
    pub fn with(functions: &[(&str, &str)]) -> Self {
        let mut worker = Self::new();
        for (name, code) in functions {
            worker.deploy(name, &[("f.py", code)]);
        }
        worker.up(&[]);
        worker
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Runs `hosier ARGS -p DIR`.
    pub fn hosier(&self, args: &[&str]) -> Output {
        Command::new(HOSIER).args(args).arg("-p").arg(self.path()).output().unwrap()
    }

    /// Runs it and expects success; its stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.hosier(args);
        assert!(output.status.success(), "hosier {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs it and expects failure; its stderr.
    pub fn refused(&self, args: &[&str]) -> String {
        let output = self.hosier(args);
        assert!(!output.status.success(), "hosier {args:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Deploys a function from file contents, by the command.
    pub fn deploy(&self, name: &str, files: &[(&str, &str)]) {
        let source = source(files);
        self.ok(&["deploy", source.path().to_str().unwrap(), "-n", name]);
    }

    /// Starts the worker in the background, on any free port.
    pub fn up(&mut self, options: &[&str]) {
        self.up_by(Command::new(HOSIER), options);
    }

    /// As [`Self::up`], by a command that ends in running `hosier` with the
    /// arguments that are added here.
    pub fn up_by(&mut self, mut command: Command, options: &[&str]) {
        let output = command.args(Self::up_args(options)).arg("-p").arg(self.path()).output().unwrap();
        assert!(output.status.success(), "hosier up: {}", String::from_utf8_lossy(&output.stderr));
        let log = self.worker_log();
        let port = log.lines().find_map(|line| line.rsplit_once("http://127.0.0.1:")?.1.trim().parse().ok());
        self.port = port.unwrap_or_else(|| panic!("no address in the worker's log: {log}"));
        self.group = self.find_group();
    }

    pub fn up_args<'a>(options: &[&'a str]) -> Vec<&'a str> {
        let mut args = vec!["up", "-d", "-o", "worker_port=0,zygote.blanks=0"];
        for option in options {
            args.extend(["-o", option]);
        }
        args
    }

    /// The part of its package store that this machine's interpreter uses, once there is one.
    pub fn packages(&self) -> PathBuf {
        part(&self.path().join("packages"))
    }

    /// The directory of the one entry that the package store has of a pin.
    pub fn package(&self, pin: &str) -> PathBuf {
        let entries = fs::read_dir(self.packages().join(pin)).unwrap();
        let mut entries: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        assert_eq!(entries.len(), 1, "{pin}: {entries:?}");
        entries.remove(0)
    }

    pub fn worker_log(&self) -> String {
        fs::read_to_string(self.path().join("worker/worker.log")).unwrap_or_default()
    }

    /// What a function printed.
    pub fn function_log(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(format!("logs/{name}.log"))).unwrap_or_default()
    }

    /// The name that our control groups begin with.
    pub fn group(&self) -> Option<&str> {
        self.group.as_deref()
    }

    /// The name that our control groups begin with, as a directory of ours shows it.
    fn find_group(&self) -> Option<String> {
        let debug = self.get("/debug").body;
        let at = debug.find("/hosier-")?;
        debug.get(at + 1..at + 1 + "hosier-12345678".len()).map(str::to_owned)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    /// Calls a function with a JSON event.
    pub fn call(&self, name: &str, event: &str) -> Answer {
        self.request("POST", &format!("/run/{name}"), &[], event.as_bytes())
    }

    /// Calls a function and expects 200; its result.
    pub fn result(&self, name: &str, event: &str) -> serde_json::Value {
        let answer = self.call(name, event);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// One request over a connection of its own: on the port, but for what the port
    /// answers only with the token, which goes to the worker's own socket.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_request(method, path, headers, body).unwrap()
    }

    pub fn try_request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<Answer> {
        if path.starts_with("/registry") || path == "/debug" {
            let stream = UnixStream::connect(self.path().join("worker/hosier.sock"))?;
            return exchange(stream, method, path, headers, body);
        }
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_nodelay(true)?;
        exchange(stream, method, path, headers, body)
    }

    /// The worker's pid, from its own socket.
    pub fn pid(&self) -> i32 {
        let status: serde_json::Value = serde_json::from_str(&self.ok(&["status", "--json"])).unwrap();
        status["pid"].as_i64().unwrap() as i32
    }

    /// Kills the worker as an operator's `kill -9` would.
    pub fn kill_9(&self) {
        let pid = self.pid();
        kill(pid);
        wait_until("the worker is gone", GONE_BOUND, || !alive(pid));
    }

    /// Stops the worker and expects that nothing is left.
    pub fn down(&self) {
        self.ok(&["down"]);
        self.census();
    }

    /// Processes in our control groups, or with our directory among their arguments.
    pub fn processes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
            let cmdline = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let cgroup = String::from_utf8_lossy(&read("cgroup")).into_owned();
            let ours = cmdline.contains(&*self.path().to_string_lossy())
                || self.group.as_ref().is_some_and(|group| cgroup.contains(group.as_str()));
            if ours && pid != std::process::id() as i32 {
                found.push(format!("process {pid}: {cmdline}"));
            }
        }
        found
    }

    /// Everything of this worker that is on the machine, one thing a line.
    pub fn remains(&self) -> Vec<String> {
        let mut found = self.processes();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let dir = self.path().to_string_lossy().into_owned();
        found.extend(mounts.lines().filter(|line| line.contains(&dir)).map(|line| format!("mount {line}")));
        if let Some(group) = &self.group {
            found.extend(cgroups(Path::new("/sys/fs/cgroup"), group, 3));
        }
        for file in ["worker/run", "worker/hosier.sock"] {
            let path = self.path().join(file);
            if path.exists() {
                found.push(format!("file {}", path.display()));
            }
        }
        found
    }

    /// Expects that nothing of this worker is left.
    pub fn census(&self) {
        let end = Instant::now() + GONE_BOUND;
        loop {
            let remains = self.remains();
            if remains.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "left behind:\n{}", remains.join("\n"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.hosier(&["down"]);
        if std::thread::panicking() {
            eprintln!("the worker's log:\n{}", self.worker_log());
        } else {
            self.census();
        }
    }
}

/// The part of a package store that this machine's interpreter uses; the store itself until there is one.
pub fn part(store: &Path) -> PathBuf {
    let parts = fs::read_dir(store).into_iter().flatten().flatten();
    let part = parts.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains("/cpython-"));
    part.unwrap_or_else(|| store.to_owned())
}

/// A directory with these files.
pub fn source(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("hosier-source-").tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

/// Sends one request and reads the answer to its end.
fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Answer> {
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    parse(&bytes).ok_or_else(|| std::io::Error::other("no HTTP answer"))
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let split = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..split]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Some(Answer { status, headers, body: String::from_utf8_lossy(&bytes[split + 4..]).into_owned() })
}

fn cgroups(dir: &Path, group: &str, depth: usize) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path: PathBuf = entry.path();
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().starts_with(group) {
            found.push(format!("cgroup {}", path.display()));
        } else if depth > 0 {
            found.extend(cgroups(&path, group, depth - 1));
        }
    }
    found
}

pub fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// SIGKILL to one process that a test started or found to be its own.
pub fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// Waits for something that must happen, with a wide margin.
pub fn wait_until(what: &str, bound: Duration, mut reached: impl FnMut() -> bool) {
    let end = Instant::now() + bound;
    while !reached() {
        assert!(Instant::now() < end, "{what}: not within {bound:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
