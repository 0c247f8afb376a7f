//! Quotas that belong to everybody: whatever a sandbox uses up of the kernel, another
//! function and the host's root still get theirs. `docs/quotas.md` has the same rows.
//!
//! ```text
//! exhaust.py ─┬─ attacker:  takes until it is refused, and holds it   ≤ its share
//!             ├─ other:     a function, gets its own
//!             └─ outside:   python3 as the host's root, gets its own
//! ```

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Worker, wait_until};

const EXHAUST: &str = include_str!("quotas/exhaust.py");
/// Forked from a zygote, and each started anew.
const STARTS: [&str; 2] = ["features.import_cache=tree", "features.import_cache="];
/// `sandbox.max_sandboxes` of these tests.
const SANDBOXES: u64 = 100;
/// Memory of the kernel's that one process with 1,024 sockets holds, at most.
const SOCKETS_MIB: u64 = 32;

/// A resource: its name in `exhaust.py`, the number that an attacker asks for, and the
/// number that it may get.
struct Row {
    resource: &'static str,
    asked: u64,
    most: u64,
}

fn rows() -> Vec<Row> {
    let share = |total: u64| (total / SANDBOXES).max(1);
    let row = |resource, asked, most| Row { resource, asked, most };
    let instances = number("/proc/sys/fs/inotify/max_user_instances");
    let signals = pending_signals();
    vec![
        row("inotify_instance", 2 * instances, share(instances)),
        row("inotify_watch", 5_000, share(number("/proc/sys/fs/inotify/max_user_watches"))),
        row("queued_signal", 2 * signals, share(signals)),
        row("timer", 2 * signals, share(signals)),
        // The next are counted for a host user, of whom each sandbox is one of its own.
        row("pipe_pages", 200, 64),
        row("descriptor_in_flight", 3_000, 1_100),
        row("epoll_watch", 50_000, 50_000),
        // And these for a process or a control group.
        row("descriptor", 3_000, 1_024),
        row("process", 100, 10),
        row("locked_memory", 100, 50),
        row("file_lock", 1_000, 1_000),
    ]
}

#[test]
fn what_one_function_uses_up_another_and_the_hosts_root_still_get() {
    for start in STARTS {
        let mut worker = Worker::new();
        for row in rows() {
            worker.deploy(&format!("takes-{}", row.resource), &[("f.py", EXHAUST)]);
        }
        worker.deploy("other", &[("f.py", EXHAUST), ("ol.yaml", "reuse-sandbox: false\n")]);
        worker.up(&[start]);
        let mut wrong = Vec::new();
        for Row { resource, asked, most } in rows() {
            let attack = worker.result(&format!("takes-{resource}"), &event(resource, asked));
            let got = attack["taken"].as_u64().unwrap();
            if got == 0 || got > most {
                wrong.push(format!("{resource}: the attacker may have {most} and got {attack}"));
            }
            for (who, outcome) in [
                ("another function", worker.result("other", &event(resource, 1))),
                ("root", outside(resource)),
            ] {
                if outcome != json!({"taken": 1}) {
                    wrong.push(format!("{resource}: {who} gets {outcome}"));
                }
            }
        }
        assert!(wrong.is_empty(), "with {start}:\n{}", wrong.join("\n"));
        worker.down();
    }
}

/// A snapshot node runs its function's module with a zygote's capabilities: it may take
/// every id of its own range. It never says that it is ready, and keeps all that it took.
#[test]
fn what_a_zygote_uses_up_the_hosts_root_and_other_workers_still_get() {
    const ATTACK: &str = "
import time
if os.getuid() == 0:
    for uid in range(1000, 1400):
        os.seteuid(uid)
        take('inotify_instance', 400)
        os.seteuid(0)
    take('queued_signal', 200000)
    kept.append(os.open('/dev/full', os.O_RDONLY))
    time.sleep(60)
";
    let mut worker = Worker::new();
    let code = format!("{EXHAUST}{ATTACK}");
    worker.deploy("hostile", &[("f.py", &code), ("ol.yaml", "snapshot: true\nreuse-sandbox: false\n")]);
    worker.up(&[]);
    worker.result("hostile", &event("descriptor", 1));
    let open = |pid: &i32, name: &str| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let targets = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        targets.filter(|target| target.to_string_lossy().contains(name)).count()
    };
    let mut hostile = None;
    wait_until("a zygote has taken all", Duration::from_secs(30), || {
        hostile = processes(&worker).into_iter().find(|pid| open(pid, "/dev/full") > 0);
        hostile.is_some()
    });
    let taken = open(&hostile.unwrap(), "inotify");
    assert!(taken > 10, "the control: its user has all that one may have: {taken}");
    let mut other = Worker::new();
    other.deploy("other", &[("f.py", EXHAUST), ("ol.yaml", "reuse-sandbox: false\n")]);
    other.up(&[]);
    for resource in ["inotify_instance", "inotify_watch", "queued_signal", "timer"] {
        assert_eq!(outside(resource), json!({"taken": 1}), "{resource} of the host's root");
        assert_eq!(other.result("other", &event(resource, 1)), json!({"taken": 1}), "{resource}");
    }
    other.down();
    worker.down();
}

/// A v1 control group does not count what sockets hold as its memory, unless told to.
#[test]
fn sockets_hold_little_memory_outside_of_a_sandboxs_limit_alone() {
    const ATTACKS: [&str; 3] = ["pin_streams", "pin_large_streams", "pin_datagrams"];
    for start in [STARTS[0], STARTS[1], "sandbox.netns_pool=0"] {
        let mut worker = Worker::new();
        for attack in ATTACKS {
            worker.deploy(attack, &[("f.py", EXHAUST)]);
        }
        worker.up(&[start]);
        for attack in ATTACKS {
            let before = socket_memory_kib();
            let answer = worker.call(attack, &json!({"run": attack}).to_string());
            let held = socket_memory_kib().saturating_sub(before) / 1024;
            if answer.status == 200 {
                assert!(answer.json()["taken"].as_u64().unwrap() > 900, "{answer:?}");
            } else {
                // On v2 the sandbox is out of memory, which is as good.
                assert!(v2(), "{answer:?}");
            }
            assert!(held <= SOCKETS_MIB, "{attack} with {start}: {held} MiB are held in sockets");
        }
        worker.down();
    }
}

#[test]
fn what_nobody_shares_out_is_refused() {
    let worker = Worker::with(&[("f", EXHAUST)]);
    let answer = worker.result("f", r#"{"run": "refused"}"#);
    let granted: Vec<_> =
        answer["calls"].as_object().unwrap().iter().filter(|(_, outcome)| **outcome != "EPERM").collect();
    assert!(granted.is_empty(), "{granted:?}");
    assert_eq!(answer["there"], json!([]), "devices and file systems with quotas of their own");
    worker.down();
}

#[test]
fn every_process_of_a_sandbox_has_the_rlimits_that_keep_it_to_its_share() {
    let worker = Worker::with(&[("f", EXHAUST)]);
    worker.result("f", &event("descriptor", 1));
    let signals = (pending_signals() / SANDBOXES).max(1).to_string();
    let pids = processes(&worker);
    assert!(pids.len() >= 3, "a stub, a zygote and a leaf: {pids:?}");
    for pid in pids {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let hard = |name: &str| {
            let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
            line[name.len()..].split_whitespace().nth(1).unwrap().to_owned()
        };
        // One byte is too little for a file, and keeps a core from a host's handler as well.
        assert_eq!(hard("Max core file size"), "1", "{limits}");
        assert_eq!(hard("Max msgqueue size"), "0", "{limits}");
        assert_eq!(hard("Max pending signals"), signals, "{limits}");
        let processes: u64 = hard("Max processes").parse().unwrap();
        assert!(processes <= number("/proc/sys/kernel/pid_max") / 2, "{limits}");
    }
    worker.down();
}

/// A newer kernel may have a quota more.
#[test]
fn every_quota_of_a_user_namespace_is_set() {
    let worker = Worker::with(&[("f", EXHAUST)]);
    worker.result("f", &event("descriptor", 1));
    let pid = processes(&worker)[0].to_string();
    for file in fs::read_dir("/proc/sys/user").unwrap().map(|entry| entry.unwrap().path()) {
        let mut inside = Command::new("nsenter");
        let inside = inside.args(["--user", "--preserve-credentials", "-t", &pid, "cat"]).arg(&file);
        let inside = inside.output().unwrap();
        let text = String::from_utf8_lossy(&inside.stdout).trim().to_owned();
        let value: u64 = text.parse().unwrap_or_else(|_| panic!("{}: {inside:?}", file.display()));
        assert!(value < i32::MAX as u64, "{} is not set", file.display());
        for none in ["user", "time", "fanotify"] {
            assert!(!file.to_string_lossy().contains(&format!("max_{none}")) || value == 0, "{file:?}");
        }
    }
    worker.down();
}

#[test]
fn up_names_the_sysctl_where_the_host_has_too_little_for_each_sandbox() {
    let mut worker = Worker::new();
    let said = |worker: &Worker, sandboxes: &str| {
        let output = Command::new(support::HOSIER)
            .args(Worker::up_args(&[sandboxes]))
            .arg("-p")
            .arg(worker.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        worker.ok(&["down"]);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let limit = number("/proc/sys/fs/inotify/max_user_instances");
    if limit >= 10_000 {
        eprintln!("skipped: this host has {limit} inotify instances for each user");
        return;
    }
    let sysctl = "fs.inotify.max_user_instances";
    let text = said(&worker, "sandbox.max_sandboxes=10000");
    assert!(text.contains(sysctl), "{text}");
    assert!(!said(&worker, "sandbox.max_sandboxes=1").contains(sysctl));
    worker.port = 0;
}

fn event(resource: &str, most: u64) -> String {
    json!({"take": resource, "most": most}).to_string()
}

/// One of it, for the host's root.
fn outside(resource: &str) -> Value {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/quotas/exhaust.py");
    let output =
        Command::new("/usr/bin/python3").arg("-I").arg(program).args([resource, "1"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Pids of all that runs in the control groups that `/debug` names.
fn processes(worker: &Worker) -> Vec<i32> {
    let debug = worker.get("/debug").body;
    let groups = debug.lines().filter_map(|line| line.rsplit_once("cgroup ").map(|(_, path)| path.trim()));
    let texts = groups.filter_map(|group| fs::read_to_string(PathBuf::from(group).join("cgroup.procs")).ok());
    texts.flat_map(|text| text.lines().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()).collect()
}

fn number(path: &str) -> u64 {
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

fn pending_signals() -> u64 {
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_SIGPENDING).unwrap();
    hard
}

/// Memory of all TCP and UDP sockets of the machine, in KiB.
fn socket_memory_kib() -> u64 {
    let text = fs::read_to_string("/proc/net/sockstat").unwrap();
    let lines = text.lines().filter(|line| line.starts_with("TCP:") || line.starts_with("UDP:"));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap() * 4).sum()
}

fn v2() -> bool {
    fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").is_ok_and(|text| text.contains("memory"))
}
