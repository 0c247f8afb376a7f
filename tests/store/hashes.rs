//! `--hash` of requirements: checked at the fetch, and part of what an entry is.

use super::*;
use crate::support::source;

fn pinned(digests: &[&str]) -> String {
    let hashes: Vec<_> = digests.iter().map(|digest| format!(" \\\n    --hash=sha256:{digest}")).collect();
    format!("{SIX}{}\n", hashes.concat())
}

fn deploy(worker: &Worker, name: &str, requirements: &str) -> Result<(), String> {
    let function = source(&[("f.py", USES_SIX), ("requirements.txt", requirements), ("ol.yaml", COLD)]);
    let output = worker.hosier(&["deploy", function.path().to_str().unwrap(), "-n", name]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}

fn entries(worker: &Worker) -> Vec<String> {
    let entries = fs::read_dir(worker.packages().join(SIX)).into_iter().flatten().flatten();
    let mut entries: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    entries.sort();
    entries
}

#[test]
fn a_file_that_no_hash_of_the_requirement_names_is_not_installed() {
    let worker = Worker::new();
    let other = "0".repeat(64);
    let said = deploy(&worker, "other", &pinned(&[&other])).unwrap_err();
    for part in [SIX, "six-1.16.0-py2.py3-none-any.whl", WHEEL, "--generate-hashes"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    for (requirements, part) in [
        (pinned(&[&WHEEL[1..]]), "requirements.txt:1"),
        (format!("{SIX} --hash=md5:{}\n", &WHEEL[..32]), "only sha256"),
        (format!("{}attrs==23.2.0\n", pinned(&[WHEEL])), "attrs==23.2.0 has no --hash"),
    ] {
        let said = deploy(&worker, "other", &requirements).unwrap_err();
        assert!(said.contains(part), "{part} in {said}");
    }
    assert_eq!(entries(&worker), [""; 0]);
    // The control: any of several.
    deploy(&worker, "right", &pinned(&[&other, WHEEL])).unwrap();
    assert_eq!(entries(&worker), [WHEEL[..32].to_owned()]);
}

#[test]
fn two_functions_that_accept_two_files_of_a_version_share_neither_files_nor_nodes() {
    let mut worker = Worker::new();
    // Whoever names no file gets the one that is there, now and later.
    deploy(&worker, "any", SIX).unwrap();
    deploy(&worker, "wheel", &pinned(&[WHEEL])).unwrap();
    assert_eq!(entries(&worker), [WHEEL[..32].to_owned()]);
    deploy(&worker, "source", &pinned(&[SOURCE])).unwrap();
    assert_eq!(entries(&worker), [SOURCE[..32].to_owned(), WHEEL[..32].to_owned()]);
    // Each entry is made to tell which one it is; as a whole, so that it is no damage.
    let told = "def f(event):\n    import six\n    return six.__file__, open('/packages/six==1.16.0/meta.json').read()\n";
    for (name, requirements) in
        [("any", SIX.to_owned()), ("wheel", pinned(&[WHEEL])), ("source", pinned(&[SOURCE]))]
    {
        worker.deploy(name, &[("f.py", told), ("requirements.txt", &requirements), ("ol.yaml", COLD)]);
    }
    worker.up(&[]);
    let seen = |name: &str| {
        let seen = worker.result(name, "");
        assert_eq!(seen[0], "/packages/six==1.16.0/files/six.py");
        let meta: serde_json::Value = serde_json::from_str(seen[1].as_str().unwrap()).unwrap();
        meta["origin"]["sha256"].as_str().unwrap().to_owned()
    };
    // In turns: a view or a node that was one's is not another's.
    for _ in 0..2 {
        assert_eq!(["any", "wheel", "source"].map(seen), [WHEEL, WHEEL, SOURCE]);
    }
    let debug = worker.get("/debug").body;
    let nodes = debug.lines().filter(|line| line.contains("zygote ") && line.contains(SIX)).count();
    assert_eq!(nodes, 2, "one node a file: {debug}");
    worker.down();
}
