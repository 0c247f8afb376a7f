//! A browser on the worker's machine, and the pages that it shows: of another origin, and of a name that was
//! rebound to the worker's address.
//!
//! ```text
//! Chromium ──▶ Pages (page, reports) ◀── what the page's attempts came to
//!     │  └───▶ Pages as proxy: elsewhere.example:PORT, the page once, then the worker (DNS rebinding)
//!     └──────▶ the worker's port
//! ```
//!
//! All but loopback goes to the proxy, which knows nothing else: no request leaves this machine.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::archive;
use crate::support::{Worker, wait_until};

/// The bound on one page, on a loaded machine.
const BOUND: Duration = Duration::from_secs(60);
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const HELLO: &str = "def f(event):\n    print('called', flush=True)\n    return 'hello'\n";

/// Makes each attempt at `TARGET` and reports what it came to.
const PAGE: &str = r#"<!doctype html><title>a page</title><body><script>
const code = new Uint8Array(CODE);
async function attempt(path, options) {
  try {
    const answer = await fetch("TARGET" + path, options);
    return answer.type === "opaque" ? "opaque" : answer.status + " " + (await answer.text()).slice(0, 80);
  } catch (error) { return "blocked"; }
}
function form(path, kind) {
  return new Promise(done => {
    const frame = document.createElement("iframe"), form = document.createElement("form");
    frame.name = "f" + Math.random();
    document.body.append(frame, form);
    Object.assign(form, { method: "post", action: "TARGET" + path, target: frame.name, enctype: kind });
    const field = document.createElement("input"), files = new DataTransfer();
    files.items.add(new File([code], "a.tar.gz"));
    Object.assign(field, { type: "file", name: "a", files: files.files });
    form.append(field);
    frame.onload = () => done("sent");
    setTimeout(() => done("no answer"), 2000);
    form.submit();
  });
}
(async () => {
  const said = {};
  said.call = await attempt("/run/hello", { method: "POST", mode: "no-cors", body: "{}" });
  said.status = await attempt("/status");
  said.debug = await attempt("/debug");
  said.list = await attempt("/registry/");
  said.config = await attempt("/registry/hello/config");
  said.post = await attempt("/registry/by-fetch", { method: "POST", body: code });
  said.opaque = await attempt("/registry/by-opaque", { method: "POST", mode: "no-cors", body: code });
  said.beacon = navigator.sendBeacon("TARGET/registry/by-beacon", new Blob([code]));
  said.remove = await attempt("/registry/hello", { method: "DELETE" });
  said.bearer = await attempt("/registry/", { headers: { Authorization: "Bearer x" } });
  said.form = await form("/registry/by-form", "multipart/form-data");
  said.text = await form("/registry/by-text", "text/plain");
  await fetch("REPORTS/report", { method: "POST", mode: "no-cors", body: JSON.stringify(said) });
})();
</script>"#;

#[test]
fn a_page_in_a_browser_learns_nothing_and_changes_nothing() {
    besiege(&["http.admin=open"], 1);
}

#[test]
fn soak_pages_in_a_browser_learn_nothing_and_change_nothing_in_either_mode() {
    besiege(&["http.admin=open"], 5);
    besiege(&[], 5);
}

/// Shows a worker's operator the pages, `rounds` times each.
fn besiege(options: &[&str], rounds: usize) {
    let Some(browser) = browser() else {
        eprintln!("skipped: this machine has no Chromium (Debian: apt-get install chromium)");
        return;
    };
    let mut worker = Worker::new();
    worker.deploy("hello", &[("f.py", HELLO)]);
    worker.up(options);
    let pages = Pages::serve(worker.port);
    // From here on, when the worker has got another parent, what a browser leaves is ours to reap.
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let calls = |worker: &Worker| worker.function_log("hello").matches("called").count();
    for round in 1..=rounds {
        for (host, address) in [("localhost", pages.url()), ("127.0.0.1", pages.url())] {
            let before = calls(&worker);
            let said = pages.show(&browser, &address, &format!("http://{host}:{}", worker.port));
            assert_eq!(said["call"], "opaque", "the page reaches the port: {said}");
            assert_eq!(calls(&worker), before + 1, "the page calls a function: {said}");
            for attempt in ["debug", "list", "config", "post", "remove", "bearer"] {
                assert_eq!(said[attempt], "blocked", "{attempt} of round {round}: {said}");
            }
            assert_untouched(&worker);
        }
        let rebound = format!("http://elsewhere.example:{}", worker.port);
        let said = pages.show(&browser, &format!("{rebound}/page"), &rebound);
        assert_eq!(said["status"], "200 ready\n", "the page reaches the port as its own origin: {said}");
        for attempt in ["debug", "list", "config", "post", "opaque", "remove", "bearer"] {
            assert!(said[attempt].as_str().is_some_and(|got| got.starts_with("403 ")), "{attempt}: {said}");
        }
        assert_untouched(&worker);
    }
    worker.down();
}

fn assert_untouched(worker: &Worker) {
    assert_eq!(worker.get("/registry/").json(), serde_json::json!(["hello"]));
}

fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let dirs: Vec<_> = std::env::split_paths(&path).collect();
    NAMES.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name))).find(|path| path.is_file())
}

/// A site of somebody else's on this machine, and a proxy in which one of its names is rebound.
struct Pages {
    port: u16,
    worker: u16,
    target: Sender<String>,
    reports: Receiver<String>,
}

impl Pages {
    /// Serves until the test's process ends.
    fn serve(worker: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (target, targets) = channel::<String>();
        let (report, reports) = channel();
        std::thread::spawn(move || {
            let mut page = String::new();
            for stream in listener.incoming() {
                if let Some(target) = targets.try_iter().last() {
                    let code = archive(&[("f.py", HELLO)]);
                    page = PAGE.replace("TARGET", &target).replace("CODE", &format!("{code:?}"));
                    page = page.replace("REPORTS", &format!("http://127.0.0.1:{port}"));
                }
                let (stream, page, report) = (stream.unwrap(), page.clone(), report.clone());
                // A browser opens connections that it may never use.
                std::thread::spawn(move || answer(stream, worker, &page, &report));
            }
        });
        Self { port, worker, target, reports }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// Opens `address` in a browser of its own; what the page's attempts at `target` came to.
    fn show(&self, browser: &PathBuf, address: &str, target: &str) -> serde_json::Value {
        assert_ne!(self.port, self.worker);
        self.target.send(target.to_owned()).unwrap();
        let home = tempfile::Builder::new().prefix("hosier-browser-").tempdir().unwrap();
        let mut command = Command::new(browser);
        command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
        command.args(["--no-first-run", "--disable-sync", "--disable-background-networking"]);
        command.args(["--disable-component-update", "--disable-breakpad", "--disable-default-apps"]);
        command.arg(format!("--proxy-server=http://127.0.0.1:{}", self.port));
        command.arg(format!("--user-data-dir={}", home.path().join("profile").display())).arg(address);
        command
            .env("HOME", home.path())
            .env("XDG_CONFIG_HOME", home.path())
            .env("XDG_CACHE_HOME", home.path());
        command.env("TMPDIR", home.path());
        let log = std::fs::File::create(home.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let mut running = Browser(Some(command.spawn().unwrap()));
        let report = self.reports.recv_timeout(BOUND).ok();
        running.end();
        let report = report.unwrap_or_else(|| {
            let log = std::fs::read_to_string(home.path().join("log")).unwrap_or_default();
            panic!("no report of the page at {address} within {BOUND:?}: {log}")
        });
        serde_json::from_str(&report).unwrap()
    }
}

/// A browser and its processes, which end with it.
struct Browser(Option<Child>);

impl Browser {
    fn end(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
        let _ = child.wait();
        // What it left is this process's, and goes by itself when the browser is gone.
        wait_until("the browser's processes are gone", BOUND, || {
            while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
            {
            }
            waitpid(None, Some(WaitPidFlag::WNOHANG)) == Err(Errno::ECHILD)
        });
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.end();
    }
}

/// Answers one request: as the site, or as the proxy.
fn answer(mut stream: TcpStream, worker: u16, page: &str, report: &Sender<String>) {
    let Some((line, headers, body)) = read_request(&mut stream) else { return };
    let rebound = format!("http://elsewhere.example:{worker}");
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let html = "Content-Type: text/html\r\n";
    match (method, target.strip_prefix(&rebound)) {
        ("GET", Some("/page")) => reply(&mut stream, "200 OK", html, page),
        (_, Some(path)) => {
            // From here on the name is the worker's address.
            let Ok(mut to) = TcpStream::connect(("127.0.0.1", worker)) else { return };
            let kept = headers.lines().filter(|line| !line.to_ascii_lowercase().starts_with("proxy-"));
            let kept: String = kept.map(|line| format!("{line}\r\n")).collect();
            let head = format!("{method} {path} HTTP/1.1\r\n{kept}Connection: close\r\n\r\n");
            let _ = to.write_all(&[head.as_bytes(), &body].concat());
            let mut answer = Vec::new();
            let _ = to.read_to_end(&mut answer);
            let _ = stream.write_all(&answer);
        }
        ("GET", None) if target == "/" => reply(&mut stream, "200 OK", html, page),
        ("POST", None) if target == "/report" => {
            reply(&mut stream, "200 OK", "", "");
            let _ = report.send(String::from_utf8_lossy(&body).into_owned());
        }
        _ => reply(&mut stream, "404 Not Found", "", ""),
    }
}

fn reply(stream: &mut TcpStream, status: &str, headers: &str, body: &str) {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all((head + body).as_bytes());
}

/// The first line, the other lines of the head, and the body.
fn read_request(stream: &mut TcpStream) -> Option<(String, String, Vec<u8>)> {
    stream.set_read_timeout(Some(BOUND)).unwrap();
    let mut bytes = Vec::new();
    let mut read = |bytes: &mut Vec<u8>| {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&piece[..count]);
        Some(())
    };
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        read(&mut bytes)?;
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let (line, headers) = head.split_once("\r\n").unwrap_or((&head, ""));
    let length = headers.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    while bytes.len() < end + 4 + length.unwrap_or(0) {
        read(&mut bytes)?;
    }
    Some((line.to_owned(), headers.to_owned(), bytes[end + 4..].to_vec()))
}
