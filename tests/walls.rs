//! The walls, as a handler meets them: the probes of `walls/probes.py` run as a
//! function of a real worker, and beside it, as a control, as a plain process
//! of the host's root. Each refusal is known by its errno.
//!
//! ```text
//! probes.py ─┬─ inside:  deployed, called over HTTP       {"errno": "EPERM"}
//!            └─ outside: python3, in scratch namespaces   {"ok": …}   the arguments are valid
//! ```

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::{HOSIER, Worker};

const PROBES: &str = include_str!("walls/probes.py");
/// Where a sandbox may write, each place with limits of its own.
const SCRATCH: [&str; 3] = ["/tmp", "/host", "/dev/shm"];
/// Forked from a zygote, and each started anew.
const STARTS: [(&str, &str); 2] =
    [("forked", "features.import_cache=tree"), ("fresh", "features.import_cache=")];

/// A worker whose functions `a` and `b` are the probes.
fn worker(options: &[&str]) -> Worker {
    let mut worker = Worker::new();
    deploy(&worker);
    worker.up(options);
    worker
}

fn deploy(worker: &Worker) {
    worker.deploy("a", &[("f.py", PROBES)]);
    worker.deploy("b", &[("f.py", PROBES)]);
}

fn inside(worker: &Worker, event: &Value) -> Value {
    worker.result("a", &event.to_string())
}

/// The same probes outside, as root. Scratch namespaces keep the host as it is.
fn outside(event: &Value) -> Value {
    let probes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/walls/probes.py");
    let output =
        Command::new("/usr/bin/python3").arg("-I").arg(probes).arg(event.to_string()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn outcomes(answer: &Value) -> impl Iterator<Item = (&String, &Value)> {
    answer.as_object().unwrap().iter().filter(|(name, _)| !matches!(name.as_str(), "calls" | "exist"))
}

fn ok<'a>(answer: &'a Value, step: &str) -> &'a Value {
    answer[step].get("ok").unwrap_or_else(|| panic!("{step}: {}", answer[step]))
}

/// Says what a control could not show, and why.
fn skip(name: &str, control: &Value) {
    eprintln!("no control for {name}: this host itself answers {control}");
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect()
}

#[test]
fn a_leaf_is_refused_by_errno_what_root_outside_is_granted() {
    let refused = json!({"group": "refused"});
    let unknown = json!({"group": "unknown"});
    let (control, control_unknown) = (outside(&refused), outside(&unknown));
    for (start, option) in STARTS {
        let worker = worker(&[option]);
        expect(start, &inside(&worker, &refused), &control, "EPERM");
        expect(start, &inside(&worker, &unknown), &control_unknown, "ENOSYS");
        // A call by the numbers of another architecture ends the process (SIGSYS).
        let int80 = inside(&worker, &json!({"run": ["int80"]}));
        assert_eq!(int80["int80"], json!({"signal": 31}), "{start}");
        worker.down();
    }
}

/// Every probe was refused with `errno`; most of their controls succeed.
fn expect(start: &str, answer: &Value, control: &Value, errno: &str) {
    let wrong: Vec<_> =
        outcomes(answer).filter(|(_, outcome)| **outcome != json!({"errno": errno})).collect();
    assert!(wrong.is_empty(), "{start}: not refused with {errno}: {wrong:?}");
    assert_eq!(outcomes(answer).count(), outcomes(control).count());
    let shown = outcomes(control).filter(|(_, outcome)| outcome.get("ok").is_some()).count();
    for (name, outcome) in outcomes(control) {
        assert!(outcome.get("error").is_none(), "the probe {name} is broken: {outcome}");
        if outcome.get("ok").is_none() {
            skip(name, outcome);
        }
    }
    assert!(2 * shown > outcomes(control).count(), "only {shown} controls succeed outside");
}

#[test]
fn without_the_filter_the_same_probes_get_other_answers() {
    // The proof that this suite can fail. What the other walls hold, they still hold.
    let worker = worker(&["features.enable_seccomp=false"]);
    let answer = inside(&worker, &json!({"group": "refused", "run": ["status", "int80", "mseal", "clone3"]}));
    assert_eq!(ok(&answer, "status")["Seccomp"], "0");
    for open in ["splice", "tee", "vmsplice", "keyctl", "socket-netlink", "clone3", "shmget"] {
        assert!(answer[open].get("ok").is_some(), "{open}: {}", answer[open]);
    }
    // No user namespace can be made below a sandbox's, whatever the filter says.
    assert_eq!(answer["unshare-NEWUSER"]["errno"], "ENOSPC");
    let capabilities = [
        "mount",
        "umount2",
        "pivot_root",
        "chroot",
        "fsopen",
        "open_tree",
        "sethostname",
        "mknod-device",
        "unshare-NEWNS",
        "unshare-NEWNET",
        "clone-NEWPID",
        "setns-uts",
        "socket-packet",
        "socket-raw",
    ];
    for held in capabilities {
        assert_eq!(answer[held], json!({"errno": "EPERM"}), "{held} without a filter");
    }
    worker.down();
}

#[test]
fn a_leaf_has_no_privilege_and_nothing_of_the_host_or_the_worker() {
    const TOKEN: &str = "hosier-walls-secret";
    let host = outside(&json!({"run": ["facts", "status"], "scratch": false}));
    assert!(ok(&host, "facts")["there"].as_array().unwrap().contains(&json!("/sys")));
    for (start, option) in STARTS {
        let mut worker = Worker::new();
        deploy(&worker);
        // The worker's own: a variable, a descriptor that is inherited, an umask, an
        // ignored signal, protection from the OOM killer.
        let mut command = Command::new("/bin/sh");
        let script =
            r#"umask 077; trap "" HUP; echo -500 > /proc/self/oom_score_adj; exec 9<"$0"; exec "$@""#;
        let secret = support::source(&[(TOKEN, "secret")]);
        command.args(["-c", script]).arg(secret.path().join(TOKEN)).arg(HOSIER).env("HOSIER_WALLS", TOKEN);
        worker.up_by(command, &[option]);
        assert!(!holds(worker.pid(), TOKEN), "a detached worker keeps nothing open of who started it");
        assert!(holds(worker.pid(), "/worker/lock"), "the control: descriptors of its own");
        assert!(environment(worker.pid()).contains(TOKEN), "the control: the worker has the variable");

        let answer = inside(&worker, &json!({"run": ["facts", "status"]}));
        privileges(start, ok(&answer, "status"));
        surroundings(start, ok(&answer, "facts"), ok(&host, "facts"));
        let facts = ok(&answer, "facts");
        assert_eq!(facts["oom_score_adj"], 0, "{start}: protected from the OOM killer");
        assert!(!facts.to_string().contains(TOKEN), "{start}: {facts}");
        assert_eq!(facts["umask"], 0o022, "{start}: the umask");
        let descriptors = inside(&worker, &json!({"descriptors": true}));
        let expected = json!({
            "0": ["/dev/null", true], "1": ["pipe", true], "2": ["pipe", true], "3": ["socket", false],
        });
        assert_eq!(descriptors, expected, "{start}: open descriptors and whether a program inherits them");

        let sandboxes = in_cgroups(&worker);
        assert!(!sandboxes.is_empty());
        for pid in sandboxes {
            from_outside(start, pid, TOKEN);
        }
        worker.down();
    }
}

fn privileges(start: &str, status: &Value) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{start}: {set}");
    }
    assert_eq!((&status["NoNewPrivs"], &status["Seccomp"]), (&json!("1"), &json!("2")), "{start}");
    assert_eq!(status["Groups"].as_str().unwrap().trim(), "", "{start}: supplementary groups");
    // HUP (bit 0) was ignored by the worker's parent; PIPE and XFSZ are Python's own.
    let ignored = u64::from_str_radix(status["SigIgn"].as_str().unwrap(), 16).unwrap();
    let blocked = u64::from_str_radix(status["SigBlk"].as_str().unwrap(), 16).unwrap();
    assert_eq!((ignored & 1, blocked), (0, 0), "{start}: ignored {ignored:x}, blocked {blocked:x}");
}

fn surroundings(start: &str, facts: &Value, host: &Value) {
    assert!(
        facts["ids"].as_array().unwrap().iter().all(|id| id.as_i64().unwrap() >= 1000),
        "{start}: {facts}"
    );
    // No other process, and the parent is outside of what can be seen.
    assert_eq!((&facts["pids"], &facts["own"], &facts["parent"]), (&facts["own"], &facts["pids"], &json!(1)));
    assert_eq!(facts["pids"].as_array().unwrap().len(), 2, "{start}: {}", facts["pids"]);
    assert!(host["pids"].as_array().unwrap().len() > 3, "the control sees processes");
    assert_eq!(facts["proc"], json!(["self", "thread-self"]), "{start}: /proc beside pids");
    assert_eq!(facts["there"], json!([]), "{start}");
    assert_eq!(facts["links"], json!(["lo"]), "{start}");
    assert_eq!(facts["cgroups"], json!(["/"]), "{start}: its control groups look like roots");
    assert_ne!(facts["hostname"], host["hostname"], "{start}");
    assert_eq!(facts["packages"], json!([]), "{start}: a function without pins sees no package");
    for (name, inode) in facts["namespaces"].as_object().unwrap() {
        if !name.starts_with("time") {
            assert_ne!(*inode, host["namespaces"][name], "{start}: the host's {name} namespace");
        }
    }
    let mut seen = BTreeSet::new();
    for mount in facts["mounts"].as_array().unwrap() {
        let [at, options, kind] = strings(mount)[..] else { panic!("{mount}") };
        seen.insert(at);
        assert!(options.split(',').any(|option| option == "nosuid"), "{start}: {mount}");
        let read_only = options.split(',').any(|option| option == "ro");
        let scratch = ["/tmp", "/host", "/dev/shm"].contains(&at) && kind == "tmpfs";
        assert!(read_only || scratch || (at == "/proc" && kind == "proc"), "{start}: writable: {mount}");
        let expected = ["/", "/proc", "/tmp", "/host", "/dev/shm", "/packages", "/handler"].contains(&at)
            || at == "/usr"
            || at.starts_with("/usr/");
        assert!(expected, "{start}: an unexpected mount: {mount}");
    }
    assert!(seen.is_superset(&["/", "/proc", "/usr", "/tmp", "/handler"].into()), "{start}: {seen:?}");
}

/// Pids of all that runs in the control groups that `/debug` names.
fn in_cgroups(worker: &Worker) -> Vec<i32> {
    let debug = worker.get("/debug").body;
    let directories =
        debug.lines().filter_map(|line| line.rsplit_once("cgroup ").map(|(_, path)| path.trim()));
    let mut pids = Vec::new();
    for directory in directories {
        let path = PathBuf::from(directory).join("cgroup.procs");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        pids.extend(text.lines().map(|pid| pid.parse::<i32>().unwrap()));
    }
    pids
}

/// A process of a sandbox (zygote, stub or leaf), as the host sees it.
fn from_outside(start: &str, pid: i32, token: &str) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        line.unwrap_or_else(|| panic!("no {name} in {status}")).to_owned()
    };
    for name in ["Uid", "Gid"] {
        for id in field(name).split_whitespace() {
            let id: u32 = id.parse().unwrap();
            assert!((0x7000_0000..0x8000_0000).contains(&id), "{start}: {name} {id} of {status}");
        }
    }
    assert!(!holds(pid, token), "{start}: the worker's descriptor reached {status}");
    // A copy of the spawner's memory is there for a stub; but it is root's alone.
    let reachable = fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid() != 0;
    if environment(pid).contains(token) {
        assert!(!reachable, "{start}: the worker's environment can be read in {status}");
        assert_eq!(field("CapEff"), "0000000000000000", "{start}");
    } else if reachable {
        assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".into(), "2".into()), "{start}: {status}");
    }
}

fn environment(pid: i32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/environ")).unwrap()).into_owned()
}

/// Whether a process has a descriptor of a file of that name.
fn holds(pid: i32, name: &str) -> bool {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    fds.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| target.to_string_lossy().contains(name))
}

#[test]
fn no_file_of_the_host_can_be_written_and_scratch_has_its_limits() {
    let control = outside(&json!({"run": [
        ["writable", "/etc", false], ["fill-bytes", "/tmp", 20], ["fill-inodes", "/tmp", 1100],
        ["open-for-writing", "/tmp"],
    ]}));
    assert!(ok(&control, "writable /etc False")["writable"].as_array().unwrap().len() > 10);
    for name in ["fill-bytes /tmp 20", "fill-inodes /tmp 1100", "open-for-writing /tmp"] {
        ok(&control, name);
    }
    for (start, option) in STARTS {
        let worker = worker(&[option, "sandbox.tmp_mb=16", "sandbox.tmp_inodes=1024"]);
        // All of /usr once is enough: both starts have a clone of the same mounts.
        let (root, least) = if start == "forked" { ("/", 5_000) } else { ("/etc", 5) };
        let walk = inside(&worker, &json!({"run": [["writable", root, true]]}));
        let walk = ok(&walk, &format!("writable {root} True"));
        assert!(walk["tried"].as_u64().unwrap() > least, "{start}: {walk}");
        let devices = ["null", "zero", "full", "random", "urandom"].map(|name| format!("/dev/{name}"));
        let foreign: Vec<_> = strings(&walk["writable"])
            .into_iter()
            .filter(|path| !SCRATCH.contains(path) && !devices.iter().any(|device| device == path))
            .collect();
        assert!(foreign.is_empty(), "{start}: writable: {foreign:?}");

        let places = [
            "/",
            "/handler",
            "/handler/f.py",
            "/packages",
            "/usr",
            "/usr/bin/python3",
            "/etc/passwd",
            "/hosier/hosier_leaf.py",
            "/dev",
        ];
        let steps: Vec<_> = places.iter().map(|place| json!(["open-for-writing", place])).collect();
        let answer = inside(&worker, &json!({"run": steps}));
        for (step, outcome) in outcomes(&answer) {
            // Permission is looked at before the mount for what the host's root owns.
            assert!(
                ["EROFS", "EACCES"].contains(&outcome["errno"].as_str().unwrap_or("")),
                "{start}: {step}: {outcome}"
            );
        }
        let steps: Vec<_> = SCRATCH
            .iter()
            .flat_map(|place| {
                [
                    json!(["fill-bytes", place, 14]),
                    json!(["fill-inodes", place, 900]),
                    json!(["fill-bytes", place, 20]),
                    json!(["fill-inodes", place, 1100]),
                ]
            })
            .collect();
        let answer = inside(&worker, &json!({"run": steps}));
        for place in SCRATCH {
            ok(&answer, &format!("fill-bytes {place} 14"));
            ok(&answer, &format!("fill-inodes {place} 900"));
            for over in [format!("fill-bytes {place} 20"), format!("fill-inodes {place} 1100")] {
                assert_eq!(answer[&over], json!({"errno": "ENOSPC"}), "{start}: {over}");
            }
        }
        worker.down();
    }
}

#[test]
fn a_leaf_reaches_itself_and_nobody_else() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let name = format!("hosier-walls-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let worker = worker(&[]);
    let steps = json!({"group": "working", "run": [
        "reach-4", "reach-6", ["reach-port", worker.port], ["abstract", name], ["signalable", 4000],
    ]});
    let control = outside(&steps);
    let answer = inside(&worker, &steps);
    for working in ["threads", "subprocess", "asyncio", "multiprocessing", "own-memory", "loopback"] {
        assert_eq!(ok(&answer, working), ok(&control, working));
    }
    let unreachable = [
        ("reach-4".to_owned(), "ENETUNREACH"),
        ("reach-6".to_owned(), "ENETUNREACH"),
        (format!("reach-port {}", worker.port), "ECONNREFUSED"),
        (format!("abstract {name}"), "ECONNREFUSED"),
    ];
    for (step, errno) in unreachable {
        assert_eq!(answer[&step], json!({"errno": errno}), "{step}");
        if control[&step].get("ok").is_none() {
            skip(&step, &control[&step]);
        }
    }
    // Itself and its pid 1, of all numbers.
    assert_eq!(ok(&answer, "signalable 4000").as_array().unwrap().len(), 2, "{answer}");
    assert!(ok(&control, "signalable 4000").as_array().unwrap().len() > 2);
    worker.down();
}

#[test]
fn two_sandboxes_can_neither_see_nor_signal_each_other() {
    let worker = worker(&["sandbox.pause_after_ms=60000"]);
    let files = SCRATCH.map(|place| format!("{place}/left-by-a"));
    let write: serde_json::Map<_, _> = files.iter().map(|file| (file.clone(), json!("a"))).collect();
    let a = worker.result("a", &json!({"run": ["facts"], "write": write, "look": files}).to_string());
    assert_eq!(a["exist"], json!(files), "the control: its own files are there");
    let b = worker.call("b", &json!({"run": ["facts"], "look": files, "kill": 9}).to_string());
    assert_eq!((b.status, b.start()), (200, "forked"), "{b:?}");
    let b = b.json();
    assert_eq!(b["exist"], json!([]), "files of a sandbox next door");
    let (facts_a, facts_b) = (ok(&a, "facts"), ok(&b, "facts"));
    assert_ne!(facts_a["ids"], facts_b["ids"]);
    for (name, inode) in facts_a["namespaces"].as_object().unwrap() {
        // Leaves of one tree share its user namespace, in which neither has any capability.
        if !["user", "time", "time_for_children"].contains(&name.as_str()) {
            assert_ne!(*inode, facts_b["namespaces"][name], "{name}");
        }
    }
    // B has killed all that it could reach: A is the same process as before.
    let again = worker.call("a", &json!({"look": files}).to_string());
    assert_eq!((again.status, again.start()), (200, "warm"), "{again:?}");
    assert_eq!((&again.json()["calls"], &again.json()["exist"]), (&json!(2), &json!(files)));
    worker.down();
}

#[test]
fn set_uid_programs_give_nothing() {
    let programs = ["/usr/bin/passwd", "/usr/bin/su", "/usr/bin/mount", "/usr/bin/newgrp"];
    let there: Vec<_> = programs.into_iter().filter(|path| Path::new(path).exists()).collect();
    let steps: Vec<_> = there.iter().map(|program| json!(["set-uid", program])).collect();
    let control = outside(&json!({"run": steps}));
    let granted: Vec<_> = there
        .into_iter()
        .filter(|program| control[format!("set-uid {program}")]["ok"]["uids"][1] == 0)
        .collect();
    if granted.is_empty() {
        eprintln!("skipped: no set-uid program of this host made a control root: {control}");
        return;
    }
    // Without no_new_privs' companion, the filter, as well: mounts and user namespace hold.
    for option in ["features.enable_seccomp=true", "features.enable_seccomp=false"] {
        let worker = worker(&[option]);
        let answer = inside(&worker, &json!({"run": steps}));
        for program in &granted {
            let found = ok(&answer, &format!("set-uid {program}"));
            assert_eq!(found["set_uid"], true, "{program}");
            let own = &found["own"];
            assert_eq!(found["uids"], json!([own, own, own, own]), "{program} with {option}");
        }
        worker.down();
    }
}

#[test]
fn a_function_sees_the_packages_that_it_pins_and_no_others() {
    let mut worker = Worker::new();
    worker.deploy("a", &[("f.py", PROBES), ("requirements.txt", "six==1.16.0\n")]);
    worker.deploy("b", &[("f.py", PROBES), ("requirements.txt", "six==1.17.0\n")]);
    worker.deploy("c", &[("f.py", PROBES)]);
    worker.up(&[]);
    for _ in 0..2 {
        for (name, packages) in
            [("a", json!(["six==1.16.0"])), ("b", json!(["six==1.17.0"])), ("c", json!([]))]
        {
            let answer = worker.result(name, r#"{"run": ["facts"]}"#);
            assert_eq!(ok(&answer, "facts")["packages"], packages, "{name}");
        }
    }
    worker.down();
}

/// A layer: the call that makes it, and which values of which argument, as `deny.py` takes them.
struct Layer {
    name: &'static str,
    call: u32,
    argument: &'static str,
    values: (u32, u32),
    step: &'static str,
}

const fn layer(
    name: &'static str,
    call: u32,
    argument: &'static str,
    values: (u32, u32),
    step: &'static str,
) -> Layer {
    Layer { name, call, argument, values, step }
}

#[test]
fn a_sandbox_that_lacks_a_layer_does_not_start() {
    const ANY: (u32, u32) = (0, u32::MAX);
    // What only a leaf does, so that its zygote stands.
    let leaf = [
        layer("its own uid", 117, "0", (1000, 65_535), "Identity"),
        layer("rlimits", 302, "1+2", (7, 7), "Rlimits"),
        layer("a cgroup namespace", 272, "0", (0x0200_0000, 0x0200_0000), "CgroupNamespace"),
    ];
    // What a fresh process does and the worker itself does not.
    let fresh = [
        layer("a hostname", 170, "0", ANY, "Hostname"),
        layer("the old root gone", 155, "0", ANY, "Pivot"),
        layer("lo up", 16, "1", (0x8914, 0x8914), "Loopback"),
        layer("the bounding set", 157, "0", (24, 24), "Capabilities"),
        layer("no_new_privs", 157, "0", (38, 38), "NoNewPrivs"),
        layer("quotas", 302, "1+2", (11, 11), "Quotas"),
        // SECCOMP_SET_MODE_FILTER: libseccomp, in the worker, asks by others.
        layer("the filter", 317, "0", (1, 1), "Filter"),
    ];
    for layer in &leaf {
        denied(layer, "features.import_cache=tree");
    }
    for layer in &fresh {
        denied(layer, "features.import_cache=");
    }
}

fn denied(layer: &Layer, option: &str) {
    let deny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/walls/deny.py");
    let Layer { name, call, argument, values: (low, high), step } = layer;
    let mut command = Command::new("/usr/bin/python3");
    command.arg("-I").arg(deny).arg(call.to_string()).arg(argument);
    command.args([low, high].map(ToString::to_string)).arg(HOSIER);
    let mut worker = Worker::new();
    worker.deploy("a", &[("f.py", "import os\nos.system('echo it ran')\nf = lambda event: 'it ran'\n")]);
    worker.up_by(command, &[option]);
    let answer = worker.call("a", "");
    assert!(answer.status >= 500, "without {name}: {answer:?}");
    assert!(answer.body.contains(step), "without {name}, not at step {step}: {answer:?}");
    assert!(!worker.function_log("a").contains("it ran"), "without {name}, the code ran");
    worker.down();
}
