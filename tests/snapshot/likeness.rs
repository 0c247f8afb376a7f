//! A leaf of a snapshot node is like any leaf: what its module saw when it was
//! imported, its walls, its randomness.

use crate::site::{fixture, site};
use crate::stage::{SNAPSHOT, call, take_snapshot, worker};

#[test]
fn a_module_sees_the_same_environment_path_and_directory_as_in_any_leaf() {
    let code = "import gc, os, sys\nimport likeness\nos.environ['SET_BY_IMPORT'] = '1'\n\
        def look():\n    return [dict(os.environ), sys.path, os.getcwd(), gc.isenabled(), __name__, __file__, \
        sorted(os.listdir('/handler')), sorted(os.listdir('/packages')), 'NO_SUCH' in os.environ]\n\
        SEEN = look()\n\
        def f(event):\n    return [SEEN, look(), os.popen('echo $OWN$OMP_NUM_THREADS$SET_BY_IMPORT').read()]\n";
    let pin = fixture("likeness", "X = 1\n");
    let mut worker = site(None);
    let yaml = format!("{SNAPSHOT}environment: {{OWN: own, HOSIER_FUNCTION: same}}\n");
    let plain = yaml.replace("snapshot: true", "snapshot: false");
    for (name, yaml) in [("f", &yaml), ("plain", &plain)] {
        worker.deploy(name, &[("f.py", code), ("requirements.txt", &pin), ("ol.yaml", yaml)]);
    }
    worker.up(&[]);
    let usual = worker.result("plain", "");
    take_snapshot(&worker, "f", "");
    let own = call(&worker, "f", "").json();
    assert_eq!(own, usual);
    assert_eq!(own[2], "own11\n", "its own, one thread as in any leaf, and what the import set");
    worker.down();
}

#[test]
fn a_directory_or_collector_that_the_import_changed_stays_changed() {
    let code = "import gc, os\ngc.disable()\nos.chdir('/handler')\n\
        def f(event):\n    return [gc.isenabled(), os.getcwd()]\n";
    let worker = worker(&[("f", code)], &[]);
    let usual = worker.result("f", "");
    assert_eq!(usual, serde_json::json!([false, "/handler"]));
    crate::support::wait_until("the snapshot node stands", crate::stage::GROWN_BOUND, || {
        crate::stage::stands(&worker, "f")
    });
    assert_eq!(call(&worker, "f", "").json(), usual);
    worker.down();
}

/// As `tests/blanks.rs` asks of a leaf that was a blank.
#[test]
fn a_leaf_of_a_snapshot_has_given_up_what_any_leaf_gives_up() {
    let code = "import os\ndef f(event):\n    \
        status = dict(l.rstrip('\\n').split(':\\t', 1) for l in open('/proc/self/status'))\n    \
        status['pid'], status['fds'] = os.getpid(), sorted(int(fd) for fd in os.listdir('/proc/self/fd'))[:4]\n    \
        status['files'] = [os.listdir(d) for d in ('/tmp', '/host', '/dev/shm')]\n    return status\n\
        if os.getuid() == 0:\n    open('/tmp/of-the-node', 'w').close()\n";
    let worker = worker(&[("f", code)], &[]);
    take_snapshot(&worker, "f", "");
    let status = call(&worker, "f", "").json();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), (Some("1"), Some("2")));
    for ids in ["Uid", "Gid"] {
        assert!(status[ids].as_str().unwrap().split('\t').all(|id| id != "0"), "{ids}: {}", status[ids]);
    }
    assert_eq!(status["pid"], 1, "a namespace of its own");
    assert_eq!(status["files"], serde_json::json!([[], [], []]), "the node's files are the node's");
    worker.down();
}

#[test]
fn an_import_in_a_node_has_what_a_zygote_s_packages_have_and_no_more() {
    let code = "import os, errno\n\
        def refused(path):\n    try:\n        open(path, 'w')\n    except OSError as error:\n        return errno.errorcode[error.errno]\n\
        STATUS = dict(l.rstrip('\\n').split(':\\t', 1) for l in open('/proc/self/status'))\n\
        SEEN = [sorted(p for p in os.listdir('/proc') if p.isdigit()), os.listdir('/sys') if os.path.isdir('/sys') else [], \
        [l.split(':')[0].strip() for l in open('/proc/net/dev') if ':' in l] if os.getuid() == 0 else None, \
        refused('/handler/f.py'), refused('/usr/bin/python3'), refused('/proc/sys/kernel/hostname')]\n\
        def f(event):\n    return [STATUS, SEEN]\n";
    let worker = worker(&[("f", code)], &[]);
    take_snapshot(&worker, "f", "");
    let seen = call(&worker, "f", "").json();
    assert_eq!(seen[1][0], serde_json::json!(["1", "2"]), "its stub and itself");
    assert_eq!(seen[1][2], serde_json::json!(["lo"]));
    assert_eq!([&seen[1][3], &seen[1][4]], ["EROFS", "EROFS"], "{}", seen[1]);
    let status = &seen[0];
    assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), (Some("1"), Some("2")));
    let effective = u64::from_str_radix(status["CapEff"].as_str().unwrap(), 16).unwrap();
    assert_eq!(effective, hosier_zygote::sys::privilege::ZYGOTE_CAPABILITIES, "{effective:x}");
    worker.down();
}

#[test]
fn leaves_of_one_snapshot_do_not_share_randomness() {
    let code = "import random, uuid, os, secrets, tempfile\nfrom snapshot_restore_py import register_after_restore\n\
        OWN = random.Random(1)\nOWN.random()\nregister_after_restore(OWN.seed)\n\
        BEFORE = [random.random(), uuid.uuid4(), tempfile.mktemp()]\n\
        def f(event):\n    return [random.random(), str(uuid.uuid4()), os.urandom(8).hex(), secrets.token_hex(8), \
        tempfile.mktemp(), OWN.random()]\n";
    let worker = worker(&[("f", code)], &["zygote.blanks=2"]);
    take_snapshot(&worker, "f", "");
    let drawn: Vec<_> = (0..12).map(|_| call(&worker, "f", "").json()).collect();
    for source in 0..6 {
        let different: std::collections::BTreeSet<_> =
            drawn.iter().map(|draw| draw[source].to_string()).collect();
        assert_eq!(different.len(), drawn.len(), "source {source}: {drawn:?}");
    }
    worker.down();
}
