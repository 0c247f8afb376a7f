//! Files of the store that are damaged.

use std::time::Duration;

use super::*;
use crate::support::wait_until;

/// What is done to an entry, and the file that is named then.
type Harm = (fn(&Path), &'static str);

const HARMS: [Harm; 3] = [
    (|entry| truncate(&bytecode(entry)), "files/__pycache__/six."),
    // Served as it is, nothing would fail.
    (|entry| flip(&entry.join("files/six.py"), "text_type = str", "text_type = int"), "files/six.py"),
    (|entry| fs::remove_file(entry.join("files/six.py")).unwrap(), "files/six.py"),
];

#[test]
fn a_package_that_was_damaged_while_no_worker_ran_is_fetched_again_by_itself() {
    let mut worker = deployed("");
    for (harm, file) in HARMS {
        harm(&worker.package(SIX));
        worker.up(&[]);
        works(&worker, "uses");
        let log = worker.worker_log();
        let told: Vec<_> = log.lines().filter(|line| line.contains("is damaged")).collect();
        assert!(told.len() == 1 && told[0].contains(SIX) && told[0].contains(file), "{log}");
        works(&worker, "uses");
        worker.down();
    }
    // Fetched once each time, and set aside once: the next of the same entry takes its place.
    let names: Vec<_> =
        fs::read_dir(worker.packages()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let aside = names.iter().filter(|name| name.to_string_lossy().starts_with(".damaged-")).count();
    assert_eq!(aside, 1, "{names:?}");
}

#[test]
fn a_package_that_is_damaged_under_a_running_worker_costs_a_function_one_call() {
    let mut worker = deployed("");
    // A function whose sandbox stays, and has not imported it yet.
    let late =
        "def f(event):\n    if event.get('now'):\n        import six\n        return six.__version__\n";
    worker.deploy("late", &[("f.py", late), ("requirements.txt", SIX)]);
    // Without a tree nobody has imported it ahead.
    worker.up(&["features.import_cache="]);
    works(&worker, "uses");
    worker.result("late", "{}");
    // A check is not repeated at once.
    std::thread::sleep(Duration::from_millis(1100));
    truncate(&bytecode(&worker.package(SIX)));
    let broken = worker.call("uses", "");
    assert_eq!(broken.status, 500, "{broken:?}");
    wait_until("it is mended", Duration::from_secs(20), || worker.call("uses", "").status == 200);
    works(&worker, "uses");
    let stats = worker.get("/stats").json();
    assert_eq!(stats["pull-package.cnt"], 1, "{stats}");
    // The sandbox that was there before sees the old files: it fails once, and goes.
    let first = worker.call("late", r#"{"now": true}"#);
    assert!(matches!(first.status, 200 | 500), "{first:?}");
    assert_eq!(worker.result("late", r#"{"now": true}"#), "1.16.0");
    worker.down();
}

#[test]
fn a_node_that_imported_from_a_damaged_package_serves_nobody_after_it_is_mended() {
    let mut worker = Worker::new();
    let reads = "import six\ndef f(event):\n    return len(open(six.__file__).read()) > 1000\n";
    for name in ["reads", "other"] {
        worker.deploy(name, &[("f.py", reads), ("requirements.txt", SIX), ("ol.yaml", COLD)]);
    }
    worker.up(&[]);
    let node = || {
        let debug = worker.get("/debug").body;
        let line = debug.lines().find(|line| line.contains("zygote ") && line.contains(SIX));
        line.and_then(|line| line.split_whitespace().nth(1).map(str::to_owned))
    };
    assert_eq!(worker.result("reads", ""), true);
    let before = node().expect("a node with six");
    std::thread::sleep(Duration::from_millis(1100));
    fs::remove_file(worker.package(SIX).join("files/six.py")).unwrap();
    let broken = worker.call("reads", "");
    assert_eq!(broken.status, 500, "{broken:?}");
    wait_until("it is mended", Duration::from_secs(20), || worker.call("reads", "").status == 200);
    assert_eq!(worker.result("other", ""), true);
    assert_ne!(node().expect("a new node"), before);
    worker.down();
}

#[test]
fn a_damaged_package_that_cannot_be_fetched_is_told_with_the_next_step() {
    let mut worker = deployed("");
    worker.deploy("plain", &[("f.py", "def f(event):\n    return 1\n")]);
    truncate(&bytecode(&worker.package(SIX)));
    let mirror = "pip_mirror = \"http://127.0.0.1:9/simple\"\n";
    fs::write(worker.path().join("hosier.toml"), mirror).unwrap();
    worker.up(&[]);
    let said = error(&worker.call("uses", ""));
    for part in [SIX, "was damaged", "six.", "cannot be fetched again", "check the network"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    // The others are served; and once there is an index again, so is this one.
    assert_eq!(worker.result("plain", ""), 1);
    worker.down();
    fs::write(worker.path().join("hosier.toml"), "").unwrap();
    worker.up(&[]);
    works(&worker, "uses");
    worker.down();
}

#[test]
fn what_shows_in_no_time_is_found_where_everything_is_hashed() {
    let mut worker = deployed("");
    let entry = worker.package(SIX);
    let forge = || {
        let path = entry.join("files/six.py");
        flip(&path, "text_type = str", "text_type = int");
        // As a medium does that loses a bit: times and record agree.
        use std::os::unix::fs::MetadataExt;
        let meta = fs::metadata(&path).unwrap();
        let mut rows: serde_json::Value =
            serde_json::from_slice(&fs::read(entry.join("record.json")).unwrap()).unwrap();
        let row = rows.as_array_mut().unwrap().iter_mut().find(|row| row["path"] == "files/six.py").unwrap();
        row["modified_ns"] = (meta.mtime() * 1_000_000_000 + meta.mtime_nsec()).into();
        row["changed_ns"] = (meta.ctime() * 1_000_000_000 + meta.ctime_nsec()).into();
        fs::write(entry.join("record.json"), rows.to_string()).unwrap();
    };
    forge();
    let function = support::source(&[("f.py", USES_SIX), ("requirements.txt", SIX), ("ol.yaml", COLD)]);
    let output = worker.hosier(&["deploy", function.path().to_str().unwrap(), "-n", "uses", "--verify"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && said.contains("files/six.py") && said.contains("installed six"),
        "{said}"
    );
    forge();
    // The command that ends in `hosier up …` may add to it.
    let mut up = std::process::Command::new("sh");
    up.args(["-c", "exec \"$0\" \"$@\" --verify", support::HOSIER]);
    worker.up_by(up, &[]);
    assert!(worker.worker_log().contains("1 packages of the store were hashed, 1 are damaged"));
    works(&worker, "uses");
    worker.down();
}
