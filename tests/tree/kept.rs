//! Packages whose code keeps, in a leaf, what a leaf must give up: the kernel is asked
//! before anything of a function is near such a leaf, and the node no longer serves.

use crate::site::{SIX, ask, before, fixture, node, probe, probe_with, site};
use crate::support::wait_until;
use std::time::Duration;

/// Says that it has given everything up, and gives up nothing.
const LIES: &str = r"
import json, os, socket, struct
import hosier_native as native

def lie():
    leaf = socket.socket(fileno=os.dup(3))

    def take(size):
        data = b''
        while len(data) < size:
            data += leaf.recv(size - len(data))
        return data

    while True:
        kind, head, body, number = struct.unpack('<IIIQ', take(20))
        take(head), take(body)
        if kind == 6:
            leaf.sendall(struct.pack('<IIIQ', 7, 0, 0, 0))
        elif kind == 2:
            said = json.dumps(open('/proc/self/status').read()).encode()
            answer = bytes([200, 1, 0, 0, 0, 0, 0, 0])
            leaf.sendall(struct.pack('<IIIQ', 5, len(answer), len(said), number) + answer + said)

native.specialize = lie
";

/// Confines its first thread; a second one keeps all.
const THREAD: &str = r"
import _thread, time
import hosier_leaf as leaf

def keep(then=leaf.leave_the_zygote):
    _thread.start_new_thread(time.sleep, (1e6,))
    then()

leaf.leave_the_zygote = keep
";

/// Confines itself; a child keeps all.
const CHILD: &str = r"
import os, time
import hosier_leaf as leaf

def keep(then=leaf.leave_the_zygote):
    if os.fork() == 0:
        time.sleep(1e6)
    then()

leaf.leave_the_zygote = keep
";

const STATUS: &str = "open('/proc/self/status').read()";

#[test]
fn a_leaf_that_keeps_what_it_must_give_up_gets_no_function() {
    let hostile =
        [("keepsall", LIES, "Uid"), ("keepsathread", THREAD, "threads"), ("keepsachild", CHILD, "company")];
    for blanks in ["zygote.blanks=0", "zygote.blanks=2"] {
        let mut worker = site(None);
        for (name, code, _) in hostile {
            probe_with(&worker, name, &[&fixture(name, code)], "reuse-sandbox: false\n");
        }
        probe(&worker, "good", &[SIX]);
        worker.up(&[blanks]);
        for (name, _, kept) in hostile {
            for _ in 0..3 {
                let status = ask(&worker, name, STATUS).json();
                let status = status.as_str().unwrap().to_owned();
                let field =
                    |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
                assert!(!field("Uid:").split_whitespace().any(|id| id == "0"), "{name}: {status}");
                assert_eq!(field("CapEff:"), "0000000000000000", "{name}: {status}");
                assert_eq!(field("Threads:"), "1", "{name}: {status}");
            }
            let state = node(&worker, &format!("{name}==1.0")).state;
            assert!(state.starts_with("unfit: a leaf of it: ") && state.contains(kept), "{name}: {state}");
        }
        assert_eq!(before(&worker, "good", &["six"]), ["six"]);
        worker.down();
    }
}

/// As [`LIES`], by a function that asks for a node of its own.
#[test]
fn a_snapshot_of_a_function_that_keeps_privileges_serves_nobody() {
    let mut worker = site(None);
    let code = format!("{LIES}\ndef f(event):\n    return {STATUS}\n");
    worker.deploy("snap", &[("f.py", &code), ("ol.yaml", "reuse-sandbox: false\nsnapshot: true\n")]);
    worker.up(&[]);
    let line = |worker: &crate::support::Worker| {
        let debug = worker.get("/debug").body;
        debug.lines().find(|line| line.contains("snapshot of snap")).unwrap_or_default().to_owned()
    };
    wait_until("its node stood and is unfit", Duration::from_secs(30), || {
        let answer = worker.call("snap", "{}");
        assert_eq!(answer.status, 200, "{answer:?}");
        let status = answer.json().as_str().unwrap().to_owned();
        let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
        assert!(!ids.split_whitespace().any(|id| id == "0"), "{status}");
        line(&worker).contains("unfit: a leaf of it: the sandbox kept")
    });
    worker.down();
}

/// Allows itself user namespaces, and makes one: in it, it would have every capability again.
const NESTS: &str = r"
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
said = {}
for name in sorted(os.listdir('/proc/sys/user')):
    try:
        with open('/proc/sys/user/' + name, 'w') as file:
            file.write('100')
        said[name] = 'written'
    except OSError as error:
        said[name] = type(error).__name__
said['unshare'] = libc.unshare(0x10000000), ctypes.get_errno()
";

#[test]
fn a_zygote_cannot_raise_what_its_user_namespace_may_have() {
    let mut worker = site(None);
    probe(&worker, "nests", &[&fixture("nests", NESTS)]);
    worker.up(&[]);
    assert_eq!(before(&worker, "nests", &["nests"]), ["nests"]);
    let said = ask(&worker, "nests", "sys.modules['nests'].said").json();
    let said = said.as_object().unwrap();
    assert!(said.contains_key("max_user_namespaces"), "{said:?}");
    for (name, outcome) in said {
        let refused =
            if name == "unshare" { serde_json::json!([-1, libc::ENOSPC]) } else { "PermissionError".into() };
        assert_eq!(*outcome, refused, "{name}");
    }
    worker.down();
}
