//! What a build and an index try to reach: the network, the worker, passwords, files.

use std::io::Read;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::index::{File, Index};
use crate::sources::{wheel, with_backend};
use crate::support::wait_until;
use crate::{deploy, names, refused, said, worker};

/// Tries what `TARGETS` names, and tells what answered. Serves the build and, as a
/// control, a plain process of the host's.
const PROBE: &str = r#"
import ctypes, errno, glob, os, socket

LIBC = ctypes.CDLL(None, use_errno=True)

def tries(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(2)
        try:
            sock.connect(address)
            return "connected"
        except OSError as error:
            return errno.errorcode.get(error.errno, str(error))

def reads(path):
    try:
        with open(path, "rb") as file:
            return file.read(1 << 16)
    except OSError as error:
        return errno.errorcode[error.errno].encode()

def writes(path):
    try:
        open(path, "a").close()
        return "written"
    except OSError as error:
        return errno.errorcode[error.errno]

def look():
    places = {name: tries(socket.AF_INET, ("127.0.0.1", port)) for name, port in PORTS.items()}
    places["metadata"] = tries(socket.AF_INET, ("169.254.169.254", 80))
    places["abstract"] = tries(socket.AF_UNIX, "\0" + ABSTRACT)
    everything = repr(dict(os.environ)).encode()
    for pattern in ("/proc/*/environ", "/proc/*/cmdline", "/input/*", "/out/*", "/installer/*.pem", "/source/*.json"):
        everything += b"".join(reads(path) for path in glob.glob(pattern))
    return {
        "places": places,
        "secret": b"hunter2" in everything or b"127.0.0.1:%d" % PORTS["index"] in everything,
        "files": {path: reads(path)[:40].decode("ascii", "replace") for path in FILES},
        "written": {path: writes(path) for path in ("/input/x", "/wheels/x", "/installer/uv")},
        "cache": sorted(os.listdir(os.environ["UV_CACHE_DIR"])) if "UV_CACHE_DIR" in os.environ else [],
        "status": {
            key: value.strip()
            for key, _, value in (line.partition(":") for line in open("/proc/self/status"))
            if key in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
        },
        # shmget: an installer's filter lets it pass, a leaf's does not.
        "shmget": "done" if LIBC.shmget(0, 4096, 0o1600) >= 0 else errno.errorcode[ctypes.get_errno()],
        "host_uid": int(open("/proc/self/uid_map").read().split()[1]),
    }
"#;

#[test]
fn a_build_reaches_no_network_no_password_and_no_file_of_the_hosts() {
    let accepted = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = listener.local_addr().unwrap().port();
    let counted = Arc::clone(&accepted);
    std::thread::spawn(move || listener.incoming().for_each(|_| _ = counted.fetch_add(1, Ordering::SeqCst)));
    let name = format!("hosier-test-{}", std::process::id());
    let abstract_socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    std::thread::spawn(move || {
        abstract_socket.incoming().for_each(|stream| drop::<Option<UnixStream>>(stream.ok()))
    });

    let settings = "[installer_limits]\nprocs = 64\n";
    let mut running = crate::support::Worker::new();
    running.up(&[]);
    let code = |index: u16| {
        let (port, own) = (running.port, running.path().join("hosier.toml"));
        format!(
            "PORTS = {{'worker': {port}, 'other': {other}, 'index': {index}, 'outlet': 3128}}\n\
             ABSTRACT = {name:?}\nFILES = ['/etc/shadow', {own:?}, '/root/.profile']\n{PROBE}\n"
        )
    };
    // Writes where a later install would find it, if anything were shared.
    let leaves = "\n_look = look\ndef look():\n    seen = _look()\n    open(os.environ['UV_CACHE_DIR'] + '/left', 'w')\n    return seen\n";
    let sources = |port: u16| {
        let one = |version: &str| with_backend("evil", version, "[]", &(code(port) + leaves));
        [one("1.0"), one("2.0")].map(|(file, content)| (file, File::from(content))).into()
    };
    let index = Index::start(sources, Some("me:hunter2"));
    let worker = worker(&index, settings);
    for (name, pin) in [("one", "evil==1.0\n"), ("two", "evil==2.0\n")] {
        let output = deploy(&worker, name, pin, "evil", &[("A_SECRET", "hunter2")]);
        assert!(output.status.success(), "{}", said(&output));
        assert!(!said(&output).contains("hunter2"), "{}", said(&output));
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 0, "a build reached a port of the host");
    let mut worker = worker;
    worker.up(&[]);
    for name in ["one", "two"] {
        let seen = worker.result(name, "");
        for place in ["worker", "other", "index", "outlet", "metadata", "abstract"] {
            let refused = ["ECONNREFUSED", "ENETUNREACH"].map(serde_json::Value::from);
            assert!(refused.contains(&seen["places"][place]), "{place}: {seen}");
        }
        assert_eq!(seen["secret"], false, "{seen}");
        let files = seen["files"].as_object().unwrap();
        assert!(files.len() == 3 && files.values().all(|said| said == "ENOENT"), "{seen}");
        assert!(seen["written"].as_object().unwrap().values().all(|said| said != "written"), "{seen}");
        assert!(!seen["cache"].as_array().unwrap().contains(&"left".into()), "{seen}");
        assert_eq!(seen["status"]["CapEff"], "0000000000000000", "{seen}");
        assert_eq!((&seen["status"]["NoNewPrivs"], &seen["status"]["Seccomp"]), (&"1".into(), &"2".into()));
        assert_eq!(seen["shmget"], "EPERM", "not a leaf's filter: {seen}");
        assert_ne!(seen["host_uid"], 0, "{seen}");
    }
    worker.down();

    // The control: the same probe where nothing holds it.
    let outside = format!("{}\nimport json\nprint(json.dumps(look()))\n", code(index.port));
    let output =
        Command::new("/usr/bin/python3").args(["-I", "-c", &outside]).env("A", "hunter2").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for place in ["worker", "other", "index", "abstract"] {
        assert_eq!(seen["places"][place], "connected", "{seen}");
    }
    assert!(seen["secret"] == true && seen["files"]["/etc/shadow"] != "ENOENT", "{seen}");
    wait_until("the control was counted", Duration::from_secs(5), || accepted.load(Ordering::SeqCst) == 1);
}

#[test]
fn a_source_package_runs_nothing_where_it_is_resolved_and_is_refused_where_it_may_not_be_built() {
    let hangs = "import time\ntime.sleep(1000)\n";
    let (file, content) = with_backend("evil", "1.0", "[]", hangs);
    let index = Index::new(vec![(file, content.into())]);
    let worker = worker(&index, "[installer]\nbuild = [\"other\"]\n");
    let begun = Instant::now();
    let said = refused(&worker, "evil==1.0\n");
    assert!(said.contains("evil==1.0") && said.contains("installer.build"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(60), "its code ran where it was resolved");
    // Nor does the look for a version that there is.
    let said = refused(&worker, "evil==3.0\n");
    assert!(said.contains("evil==3.0") && said.contains("the newest is 1.0"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(60), "its code ran where it was asked for");
}

#[test]
fn a_file_that_is_not_what_the_index_describes_is_refused_and_others_stay() {
    let (file, content) = wheel("evil", "1.0", &[], "SEEN = 1\n");
    let lie = File { content, sha256: Some("0".repeat(64)), moved: None };
    let (good, content) = wheel("good", "1.0", &[], "SEEN = 2\n");
    let index = Index::new(vec![(file, lie), (good, content.into())]);
    let worker = worker(&index, "");
    let output = deploy(&worker, "a", "evil==1.0\ngood==1.0\n", "evil", &[]);
    let told = said(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    for part in ["evil==1.0", "evil-1.0-py3-none-any.whl", "sha256", "0000000000"] {
        assert!(told.contains(part), "{part} in {told}");
    }
    assert!(names(&worker, "packages").iter().any(|name| name.contains("good==1.0")));
    assert!(!names(&worker, "packages").iter().any(|name| name.contains("evil")));
    worker.census();
}

#[test]
fn an_index_leads_a_fetch_nowhere_else() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let elsewhere = listener.local_addr().unwrap().port();
    let heard = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&heard);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(stream.unwrap().read(&mut [0; 1024]).unwrap_or(0), Ordering::SeqCst);
        }
    });
    for moved in
        [format!("http://127.0.0.1:{elsewhere}/evil-1.0-py3-none-any.whl"), "file:///etc/passwd".to_owned()]
    {
        let (file, content) = wheel("evil", "1.0", &[], "SEEN = 1\n");
        // With a digest nobody but the fetcher asks for the file.
        let lies = File { content, sha256: Some("0".repeat(64)), moved: Some(moved.clone()) };
        let index = Index::start(|_| vec![(file, lies)], Some("me:hunter2"));
        let said = refused(&worker(&index, ""), "evil==1.0\n");
        assert!(said.contains("evil-1.0-py3-none-any.whl cannot be fetched"), "{moved}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
        assert_eq!(heard.load(Ordering::SeqCst), 0, "{moved} was asked for something");
    }
}
