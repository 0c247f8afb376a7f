//! What a function may do to the worker: nothing but fail itself. Each attack
//! gets exactly one clean answer, the next request is served, nothing is left.
//!
//! ```text
//! cold attack ─▶ calm: 200 ─▶ warm attack ─▶ calm: 200 ─▶ count processes ─▶ down ─▶ census
//! ```

mod support;

use std::fs;
use std::time::{Duration, Instant};

use support::{Answer, Worker, wait_until};

/// Attacks when asked to.
const HANDLER: &str = "
def f(event):
    return attack(event) if event.get('attack') else 'calm'
";
/// What a raw frame is made of (see `zygote/src/wire.rs`).
const FRAMES: &str = "
import os, struct
ANSWER, FAILED = 5, 4
HEAD = b'\\xc8\\x01' + bytes(6)  # status 200, no headers
def frame(kind, number, head=HEAD, body=b'\"forged\"', size=None):
    size = len(body) if size is None else size
    return struct.pack('<IIIQ', kind, len(head), size, number) + head + body
";
const ATTACK: &str = r#"{"attack": true}"#;
const SHORT: &str = "limits: {runtime_sec: 1}\n";
/// An idle sandbox goes on running.
const RUNNING: &[&str] = &["sandbox.pause_after_ms=60000"];

/// One function that attacks, and a worker for it.
struct Target(Worker);

impl Target {
    fn new(code: &str) -> Self {
        Self::with(code, "", &[])
    }

    fn with(code: &str, settings: &str, options: &[&str]) -> Self {
        let mut worker = Worker::new();
        worker.deploy("f", &[("f.py", &format!("{code}{HANDLER}")), ("ol.yaml", settings)]);
        // None ahead of need: a leaf then is one of the function.
        worker.up(&[&["zygote.blanks=0"], options].concat());
        Self(worker)
    }

    /// One attack; its answer is whole.
    fn attack(&self) -> Answer {
        clean(self.0.call("f", ATTACK))
    }

    /// A request that means no harm.
    fn calm(&self) -> Answer {
        let answer = clean(self.0.call("f", ""));
        assert_eq!((answer.status, answer.body.as_str()), (200, "\"calm\""), "{answer:?}");
        answer
    }

    /// Attacks a cold and a warm sandbox; both answers must have this status.
    fn attacked(self, status: u16) -> [Answer; 2] {
        let pid = self.0.pid();
        let attack = || {
            let answer = self.attack();
            assert_eq!(answer.status, status, "{answer:?}");
            self.settle(1);
            self.calm();
            answer
        };
        let answers = [attack(), attack()];
        self.settle(1);
        assert_eq!(self.0.pid(), pid, "the worker is another");
        self.0.down();
        answers
    }

    /// Attacks; the worker itself says why there is no better answer.
    fn refused(self, status: u16, reason: &str) {
        for answer in self.attacked(status) {
            assert_eq!(answer.header("content-type"), "application/json");
            assert_eq!(answer.json()["reason"], reason, "{answer:?}");
        }
    }

    /// Attacks; the answer is the traceback, which says this.
    fn traced(self, text: &str) {
        for answer in self.attacked(500) {
            assert!(answer.header("content-type").starts_with("text/plain"), "{answer:?}");
            assert!(answer.body.starts_with("Traceback") && answer.body.contains(text), "{answer:?}");
        }
    }

    /// Waits until there are at most so many leaves, each of one process, beside
    /// the zygote and its stub.
    fn settle(&self, leaves: usize) {
        let mut seen = (0, 0);
        wait_until("nothing leaks", Duration::from_secs(5), || {
            seen = (self.leaves().len(), self.contained());
            seen.0 <= leaves && seen.1 == 2 + seen.0
        });
    }

    /// The control groups of the living leaves.
    fn leaves(&self) -> Vec<String> {
        let picture = self.0.get("/debug").body;
        let leaves = picture.lines().filter(|line| line.contains(" Leaf "));
        leaves.filter_map(|line| Some(line.rsplit_once("cgroup ")?.1.trim().to_owned())).collect()
    }

    /// How many processes are in control groups of the worker.
    fn contained(&self) -> usize {
        let group = self.0.group().expect("a control group");
        let inside = |process: &String| {
            let pid = process.trim_start_matches("process ").split(':').next().unwrap_or_default();
            fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroup| cgroup.contains(group))
        };
        self.0.processes().iter().filter(|process| inside(process)).count()
    }
}

/// An answer that says how long it is, and is.
fn clean(answer: Answer) -> Answer {
    assert_eq!(answer.header("content-length"), answer.body.len().to_string(), "{answer:?}");
    answer
}

#[test]
fn a_memory_bomb_is_told_from_other_deaths() {
    let target = Target::new("def attack(event):\n    return len(b'x' * 10**9)\n");
    for _ in 0..20 {
        // A new sandbox each time: none outlives it.
        assert_eq!(target.attack().json()["reason"], "out-of-memory");
    }
    target.refused(502, "out-of-memory");
}

#[test]
fn a_fork_bomb_meets_its_limit() {
    Target::new("import os\ndef attack(event):\n    while True:\n        os.fork()\n")
        .traced("BlockingIOError");
}

#[test]
fn a_fork_bomb_that_ignores_its_limit_ends_with_its_time() {
    let code = "
import os
def attack(event):
    while True:
        try:
            os.fork()
        except OSError:
            pass
";
    Target::with(code, SHORT, &[]).refused(504, "timed-out");
}

#[test]
fn an_endless_loop_ends_with_its_time() {
    let target = Target::with("def attack(event):\n    while True:\n        pass\n", SHORT, &[]);
    let begun = Instant::now();
    target.attack();
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(3), "{took:?}");
    target.refused(504, "timed-out");
}

#[test]
fn a_function_that_ends_its_process_has_died() {
    Target::new("import os\ndef attack(event):\n    os._exit(0)\n").refused(502, "died");
}

#[test]
fn a_segmentation_fault_is_a_death() {
    Target::new("def attack(event):\n    import ctypes\n    ctypes.string_at(0)\n").refused(502, "died");
}

#[test]
fn a_100_mb_print_neither_blocks_nor_fills_the_disk() {
    let code = "
def attack(event):
    line = 'x' * 999
    for _ in range(100_000):
        print(line)
    print('the end')
    return 'printed'
";
    let target = Target::with(code, "", &["log_limit_kib=1024"]);
    let logs = target.0.path().join("logs");
    let kept = || -> u64 {
        fs::read_dir(&logs).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    };
    for _ in 0..2 {
        assert_eq!(target.attack().body, "\"printed\"");
        wait_until("the end is in the log", Duration::from_secs(5), || {
            target.0.function_log("f").ends_with("the end\n")
        });
        assert!(kept() <= 1024 * 1024, "{} bytes", kept());
    }
    target.attacked(200);
}

#[test]
fn daemonised_grandchildren_are_gone_after_the_answer() {
    let code = "
import os, time
def attack(event):
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(1000)
            os._exit(0)
        os.wait()
    return sum(name.isdigit() for name in os.listdir('/proc'))
";
    let target = Target::new(code);
    let answer = target.attack();
    assert_eq!((answer.status, answer.body.as_str()), (200, "4"), "while it ran they were there");
    let leaf = target.leaves().remove(0);
    wait_until("only pid 1 is left in the leaf", Duration::from_secs(2), || {
        let processes = fs::read_to_string(format!("{leaf}/cgroup.procs")).unwrap_or_default();
        processes.lines().count() == 1
    });
    target.attacked(200);
}

#[test]
fn a_child_that_returns_from_the_handler_does_not_answer() {
    let code = "
import os
def attack(event):
    return 'child' if os.fork() == 0 else 'parent'
";
    let target = Target::new(code);
    for _ in 0..20 {
        let answer = target.attack();
        assert_eq!((answer.status, answer.body.as_str()), (200, "\"parent\""), "{answer:?}");
    }
    target.attacked(200);
}

#[test]
fn a_child_that_returns_from_the_import_takes_no_request() {
    let target =
        Target::new("import os, time\nos.fork()\ntime.sleep(0.05)\ndef attack(event):\n    return 1\n");
    for _ in 0..5 {
        target.calm();
    }
    target.attacked(200);
}

#[test]
fn stopping_itself_does_nothing_to_pid_1() {
    let code = "
import os, signal
def attack(event):
    os.kill(os.getpid(), signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGKILL)
    return 'still here'
";
    Target::new(code).attacked(200);
}

#[test]
fn a_closed_control_socket_is_a_death() {
    Target::new("import os\ndef attack(event):\n    os.close(3)\n").refused(502, "died");
}

#[test]
fn another_socket_in_place_of_the_control_socket_is_a_death() {
    let code = "
import os, socket
def attack(event):
    global pair
    pair = socket.socketpair()
    os.dup2(pair[0].fileno(), 3)
";
    Target::new(code).refused(502, "died");
}

#[test]
fn garbage_in_the_control_socket_breaks_the_protocol() {
    Target::new("import os\ndef attack(event):\n    os.write(3, b'\\xff' * 64)\n").refused(502, "protocol");
}

#[test]
fn one_byte_too_many_breaks_the_protocol() {
    Target::new("import os\ndef attack(event):\n    os.write(3, b'x')\n").refused(502, "protocol");
}

#[test]
fn a_frame_that_never_ends_ends_with_its_time() {
    let code = format!(
        "{FRAMES}
import time
def attack(event):
    os.write(3, struct.pack('<II', ANSWER, len(HEAD)))
    time.sleep(1000)
"
    );
    Target::with(&code, SHORT, &[]).refused(504, "timed-out");
}

#[test]
fn an_answer_to_another_request_breaks_the_protocol() {
    let code = format!("{FRAMES}\ndef attack(event):\n    os.write(3, frame(ANSWER, 999))\n");
    Target::new(&code).refused(502, "protocol");
}

#[test]
fn a_frame_of_4_gib_breaks_the_protocol() {
    let code = format!("{FRAMES}\ndef attack(event):\n    os.write(3, frame(ANSWER, 1, size=2**32 - 1))\n");
    Target::new(&code).refused(502, "protocol");
}

#[test]
fn a_head_that_is_no_answer_breaks_the_protocol() {
    let code = format!(
        "{FRAMES}\ndef attack(event):\n    for n in range(1, 9):\n        os.write(3, frame(ANSWER, n, head=b'\\xff' * 30))\n"
    );
    Target::new(&code).refused(502, "protocol");
}

#[test]
fn a_frame_of_a_kind_that_only_the_worker_sends_breaks_the_protocol() {
    for kind in [1, 2, 3] {
        let code = format!("{FRAMES}\ndef attack(event):\n    os.write(3, frame({kind}, 1))\n");
        Target::new(&code).refused(502, "protocol");
    }
}

#[test]
fn what_http_cannot_carry_breaks_the_protocol() {
    // Status 99; then a header with a line break.
    for head in ["bytes([99]) + bytes(5)", "b'\\xc8\\x01\\x01\\x01a\\x04b\\r\\nc' + bytes(4)"] {
        let code = format!(
            "{FRAMES}
def attack(event):
    os.write(3, frame(ANSWER, 1, head={head}))
    os._exit(0)
"
        );
        let target = Target::new(&code);
        let answer = target.attack();
        assert_eq!((answer.status, &answer.json()["reason"]), (502, &"protocol".into()), "{answer:?}");
        wait_until("it is lost", Duration::from_secs(5), || target.leaves().is_empty());
        target.calm();
        target.0.down();
    }
}

#[test]
fn an_answer_before_it_is_asked_for_ends_the_sandbox_and_answers_nobody() {
    let code = format!(
        "{FRAMES}
import threading, time
def attack(event):
    def later():
        time.sleep(0.1)
        for number in range(1, 100):
            os.write(3, frame(ANSWER, number))
    threading.Thread(target=later).start()
    return 'soon'
"
    );
    let target = Target::with(&code, "", RUNNING);
    for _ in 0..3 {
        assert_eq!(target.attack().body, "\"soon\"");
        wait_until("the sandbox is ended", Duration::from_secs(5), || target.leaves().is_empty());
        assert_eq!(target.calm().start(), "forked");
    }
    target.0.down();
}

#[test]
fn a_sandbox_that_dies_while_idle_costs_nobody_a_request() {
    let code = "
import os, threading, time
def attack(event):
    def later():
        time.sleep(event['after'])
        os._exit(1)
    threading.Thread(target=later).start()
    return 'soon'
";
    let target = Target::with(code, "", RUNNING);
    for after in ["0.05", "0.2"] {
        let event = format!(r#"{{"attack": true, "after": {after}}}"#);
        assert_eq!(clean(target.0.call("f", &event)).status, 200);
        wait_until("the sandbox is gone", Duration::from_secs(5), || target.leaves().is_empty());
        assert_eq!(target.calm().start(), "forked");
    }
    target.0.down();
}

#[test]
fn out_of_band_bytes_are_refused() {
    let code = "
import os, socket
def attack(event):
    control = socket.socket(fileno=os.dup(3))
    refused = 0
    for send in control.send, lambda byte, flags: control.sendmsg([byte], [], flags):
        try:
            send(b'x', socket.MSG_OOB)
        except PermissionError:
            refused += 1
    return refused
";
    for answer in Target::new(code).attacked(200) {
        assert_eq!(answer.body, "2", "both ways");
    }
}

#[test]
fn a_control_socket_that_is_half_closed_hangs_nobody() {
    for way in ["shutdown(socket.SHUT_RD)", "shutdown(socket.SHUT_WR)", "setblocking(False)"] {
        let code = format!(
            "import os, socket\ndef attack(event):\n    socket.socket(fileno=os.dup(3)).{way}\n    return 1\n"
        );
        let target = Target::new(&code);
        for _ in 0..3 {
            let answer = target.attack();
            let status = if way.ends_with("WR)") { 502 } else { 200 };
            assert_eq!(answer.status, status, "{way}: {answer:?}");
            // Its sandbox goes when it waits for the next request.
            wait_until("the sandbox is gone", Duration::from_secs(5), || target.leaves().is_empty());
            target.calm();
        }
        target.settle(1);
        target.0.down();
    }
}

#[test]
fn the_worker_keeps_no_descriptor_that_a_leaf_sends() {
    let code = format!(
        "{FRAMES}
import array, socket
def attack(event):
    control = socket.socket(fileno=os.dup(3))
    fds = array.array('i', [os.open('/dev/null', os.O_RDONLY) for _ in range(20)])
    control.sendmsg([frame(ANSWER, event['id'])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    return 'too late'
"
    );
    let target = Target::new(&code);
    target.calm();
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", target.0.pid())).unwrap().count();
    target.settle(1);
    let before = descriptors();
    for _ in 0..10 {
        // The sandbox has answered once: this is its second request.
        let answer = clean(target.0.call("f", r#"{"attack": true, "id": 2}"#));
        assert_eq!((answer.status, answer.body.as_str()), (200, "\"forged\""), "it was sent: {answer:?}");
        wait_until("the sandbox is ended", Duration::from_secs(5), || target.leaves().is_empty());
        target.calm();
    }
    target.settle(1);
    wait_until("the worker keeps none", Duration::from_secs(5), || descriptors() <= before);
    target.0.down();
}

#[test]
fn a_result_that_is_not_json_is_a_traceback() {
    Target::new("def attack(event):\n    return object()\n").traced("not JSON serializable");
}

#[test]
fn an_answer_beyond_6_mib_is_a_traceback() {
    Target::new("def attack(event):\n    return 'x' * (6 << 20)\n").traced("6291456 are allowed");
}

#[test]
fn deep_recursion_is_a_traceback() {
    Target::new("def attack(event):\n    return attack(event)\n").traced("RecursionError");
}

#[test]
fn a_deep_result_is_a_traceback() {
    let code = "
def attack(event):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    return deep
";
    Target::new(code).traced("RecursionError");
}

#[test]
fn an_exception_is_its_traceback() {
    Target::new("def attack(event):\n    raise KeyError('it is \\udc80 broken')\n").traced("in attack");
}

#[test]
fn an_exception_that_cannot_be_printed_is_a_traceback_too() {
    let code = "
class Evil(BaseException):
    def __str__(self):
        raise SystemExit
def attack(event):
    raise Evil
";
    Target::new(code).traced("Evil");
}

#[test]
fn leaving_is_a_traceback() {
    Target::new("import sys\ndef attack(event):\n    sys.exit(3)\n").traced("SystemExit: 3");
}

#[test]
fn a_thread_that_stays_harms_no_later_request() {
    let code = "
import threading, time
def attack(event):
    threading.Thread(target=time.sleep, args=(1000,)).start()
    return 'started'
";
    Target::new(code).attacked(200);
}

#[test]
fn standard_input_is_empty() {
    let code = "import sys\ndef attack(event):\n    return sys.stdin.read()\n";
    for answer in Target::new(code).attacked(200) {
        assert_eq!(answer.body, "\"\"");
    }
}

#[test]
fn closed_and_broken_standard_streams_harm_nobody() {
    let code = "
import os, sys
class Broken:
    def flush(self):
        raise SystemExit
def attack(event):
    for stream in 1, 2:
        try:
            os.close(stream)
        except OSError:
            pass  # the second attack
    sys.stdout, sys.stderr = Broken(), None
    return 'silent'
";
    Target::new(code).attacked(200);
}

#[test]
fn a_module_that_cannot_be_imported_is_a_traceback_until_it_is_mended() {
    let broken =
        ["raise ImportError('not yet')\n", "import sys\nsys.exit(1)\n", "def g(event):\n    return 1\n"];
    let mut worker = Worker::new();
    worker.deploy("f", &[("f.py", "def f(event):\n    return 'first'\n")]);
    worker.up(&["registry_cache_ms=200"]);
    for code in broken {
        worker.deploy("f", &[("f.py", code)]);
        std::thread::sleep(Duration::from_millis(250));
        for _ in 0..2 {
            let answer = clean(worker.call("f", ""));
            assert_eq!(answer.status, 500, "{answer:?}");
            assert!(answer.header("content-type").starts_with("text/plain"), "{answer:?}");
            assert!(answer.body.starts_with("Traceback"), "{answer:?}");
        }
        worker.deploy("f", &[("f.py", "def f(event):\n    return 'mended'\n")]);
        std::thread::sleep(Duration::from_millis(250));
        assert_eq!(worker.result("f", ""), "mended");
    }
    worker.down();
}

#[test]
fn an_import_that_never_ends_ends_with_its_time() {
    let worker = Worker::with(&[("calm", "def f(event):\n    return 1\n")]);
    for (code, status, reason) in
        [("while True:\n    pass\n", 504, "timed-out"), ("import os\nos._exit(0)\n", 502, "died")]
    {
        worker.deploy(reason, &[("f.py", code), ("ol.yaml", SHORT)]);
        let answer = clean(worker.call(reason, ""));
        assert_eq!((answer.status, &answer.json()["reason"]), (status, &reason.into()), "{answer:?}");
        worker.result("calm", "");
    }
    worker.down();
}

/// Another sandbox serves a request whose first one died, unless it had read it.
#[test]
fn a_function_that_ends_its_sandbox_ran_once_however_large_the_request() {
    let code = "import os\nprint('begun', flush=True)\nos._exit(0)\n";
    let worker = Worker::with(&[("f", code), ("warm", "def f(event):\n    return 1\n")]);
    for (begun, event) in [(1, "{}".to_owned()), (2, format!("\"{}\"", "x".repeat(5 << 20)))] {
        let answer = clean(worker.call("f", &event));
        assert_eq!((answer.status, &answer.json()["reason"]), (502, &"died".into()), "{answer:?}");
        worker.result("warm", "");
        wait_until("it is in the log", Duration::from_secs(5), || {
            worker.function_log("f").matches("begun").count() == begun
        });
    }
    worker.down();
    assert_eq!(worker.function_log("f").matches("begun").count(), 2);
}
