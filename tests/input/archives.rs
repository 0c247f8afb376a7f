//! Archives from strangers, and the registry over HTTP.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::EntryType;

use crate::support::{Worker, wait_until};
use crate::*;

#[test]
fn a_malformed_archive_is_refused_by_the_entry_and_nothing_is_stored() {
    let worker = Worker::with(&[("hello", HELLO)]);
    let file = (EntryType::Regular, "f.py", "", HELLO.as_bytes());
    let good = archive(&[file]);
    let python = "f.py";
    let mut header_only = archive(&[]);
    header_only.truncate(header_only.len() / 2);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("garbage", b"this is no archive".to_vec(), "no .tar.gz"),
        ("empty", Vec::new(), "archive"),
        ("cut short", good[..good.len() / 2].to_vec(), "cut short"),
        ("only gzip", gzip(b"no tar in here"), "archive"),
        ("nothing in it", archive(&[]), "empty"),
        ("half of nothing", header_only, "archive"),
        ("goes up", archive(&[file, (EntryType::Regular, "../up.py", "", b"")]), "../up.py"),
        ("goes up inside", archive(&[file, (EntryType::Regular, "a/../../up.py", "", b"")]), "a/../../up.py"),
        ("absolute", archive(&[file, (EntryType::Regular, "/etc/evil", "", b"")]), "/etc/evil"),
        ("device", archive(&[file, (EntryType::Char, "null", "", b"")]), "null"),
        ("pipe", archive(&[file, (EntryType::Fifo, "pipe", "", b"")]), "pipe"),
        ("link up", archive(&[file, (EntryType::Symlink, "link", "../../etc/passwd", b"")]), "link"),
        ("link to the root", archive(&[file, (EntryType::Symlink, "link", "/etc/passwd", b"")]), "link"),
        ("hard link up", archive(&[file, (EntryType::Link, "hard", "../../etc/passwd", b"")]), "hard"),
        ("twice", archive(&[file, file]), python),
        (
            "through a link",
            archive(&[file, (EntryType::Symlink, "d", "e", b""), (EntryType::Regular, "d/x.py", "", b"")]),
            "d",
        ),
        (
            "no entry file",
            archive(&[(EntryType::Regular, "g.py", "", b"")]),
            "there is no f.py (there is g.py)",
        ),
        (
            "a range, no pin",
            archive(&[file, (EntryType::Regular, "requirements.txt", "", b"# ok\nsix>=1\n")]),
            "requirements.txt:2",
        ),
        (
            "bad settings",
            archive(&[file, (EntryType::Regular, "ol.yaml", "", b"limits: {memory: 3}")]),
            "memory",
        ),
        ("bomb", bomb(513 << 20), "big"),
    ];
    for (what, body, named) in &cases {
        let answer = worker.request("POST", "/registry/bad", &[], body);
        assert_eq!((answer.status, reason(&answer).as_str()), (400, "bad-function"), "{what}: {answer:?}");
        assert!(error(&answer).contains(named), "{what}: {answer:?}");
        // And over one that is there: it stays.
        assert_eq!(worker.request("POST", "/registry/hello", &[], body).status, 400, "{what}");
    }
    assert_eq!(names(&worker.path().join("registry")), ["hello.tar.gz"]);
    assert_eq!(worker.get("/registry/").json(), serde_json::json!(["hello"]));
    assert_eq!(worker.call("bad", "").status, 404);
    assert_eq!(worker.result("hello", "")["hello"], "world");
    // The same by the command.
    for (what, body, named) in &cases {
        let path = worker.path().join("bad.tar.gz");
        fs::write(&path, body).unwrap();
        let said = fails(&worker, &["deploy", path.to_str().unwrap()]);
        assert!(said.contains(named), "{what}: {said}");
    }
    assert_eq!(names(&worker.path().join("registry")), ["hello.tar.gz"]);
    let left: Vec<_> =
        names(&std::env::temp_dir()).into_iter().filter(|n| n.starts_with("hosier-deploy-")).collect();
    assert!(left.is_empty(), "{left:?}");
    // Control: the good one is taken.
    assert_eq!(worker.request("POST", "/registry/good", &[], &good).status, 201);
    assert_eq!(worker.result("good", "")["hello"], "world");
    worker.down();
}

#[test]
fn a_function_is_stored_called_shown_and_removed_over_http() {
    let mut worker = Worker::new();
    worker.up(&["registry_cache_ms=200"]);
    let entry =
        |name: &'static str, content: &'static str| (EntryType::Regular, name, "", content.as_bytes());
    let config = "environment: {OL_ENTRY_FILE: src/main.py}\nlimits: {mem_mb: 60}\n";
    let first = archive(&[entry("src/main.py", "def f(event):\n    return 1\n"), entry("ol.yaml", config)]);
    let stored = worker.request("POST", "/registry/posted", &[], &first);
    assert_eq!(stored.status, 201, "{stored:?}");
    assert_eq!(worker.result("posted", ""), 1);
    let config = worker.get("/registry/posted/config").json();
    assert_eq!(
        (&config["limits"]["mem_mb"], &config["limits"]["procs"]),
        (&60.into(), &10.into()),
        "{config}"
    );
    assert_eq!(config["environment"], serde_json::json!({ "OL_ENTRY_FILE": "(hidden)" }));
    assert_eq!(worker.get("/registry/").json(), serde_json::json!(["posted"]));
    // New code is seen within registry_cache_ms.
    let second = archive(&[entry("f.py", "def f(event):\n    return 2\n")]);
    assert_eq!(worker.request("POST", "/registry/posted", &[], &second).status, 201);
    let stored = Instant::now();
    wait_until("the new code is served", Duration::from_secs(5), || worker.result("posted", "") == 2);
    eprintln!("new code after {:?}", stored.elapsed());
    // The same by the command, and as a directory that the user edits in place.
    worker.deploy("posted", &[("f.py", "def f(event):\n    return 3\n")]);
    wait_until("what was deployed is served", Duration::from_secs(5), || worker.result("posted", "") == 3);
    let dir = worker.path().join("registry/edited");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("f.py"), "def f(event):\n    return 4\n").unwrap();
    assert_eq!(worker.result("edited", ""), 4);
    fs::write(dir.join("f.py"), "def f(event):\n    return 5\n").unwrap();
    wait_until("an edit is served", Duration::from_secs(5), || worker.result("edited", "") == 5);

    assert_eq!(worker.request("DELETE", "/registry/posted", &[], b"").status, 200);
    assert_eq!(worker.call("posted", "").status, 404);
    assert_eq!(worker.get("/registry/posted/config").status, 404);
    assert_eq!(worker.request("DELETE", "/registry/posted", &[], b"").status, 404);
    assert_eq!(names(&worker.path().join("registry")), ["edited"]);
    worker.down();
}

#[test]
fn what_is_stored_and_cannot_run_says_so_when_it_is_called() {
    let mut worker = Worker::new();
    worker.up(&["registry_cache_ms=0"]);
    let dir = worker.path().join("registry/odd");
    fs::create_dir(&dir).unwrap();
    let expect = |part: &str| {
        let answer = worker.call("odd", "");
        assert_eq!((answer.status, reason(&answer).as_str()), (500, "not-ready"), "{answer:?}");
        assert!(error(&answer).contains(part), "{part} in {answer:?}");
    };
    expect("there is no f.py and no other Python file");
    fs::write(dir.join("f.py"), "def f(event:\n").unwrap();
    let syntax = worker.call("odd", "");
    assert_eq!(syntax.status, 500);
    assert!(syntax.body.contains("SyntaxError") && syntax.body.contains("/handler/f.py"), "{syntax:?}");
    fs::write(dir.join("f.py"), "def g(event): pass\n").unwrap();
    assert!(worker.call("odd", "").body.contains("f(event)"));
    fs::write(dir.join("f.py"), HELLO).unwrap();
    fs::write(dir.join("requirements.txt"), "\n\nnumpy\n").unwrap();
    expect("requirements.txt:3: \"numpy\"");
    expect("uv pip compile");
    fs::remove_file(dir.join("requirements.txt")).unwrap();
    assert_eq!(worker.result("odd", "")["hello"], "world");
    worker.down();
}

pub type Entry<'a> = (EntryType, &'a str, &'a str, &'a [u8]);

/// A `.tar.gz` with these entries (kind, name, link, content), whatever they are.
pub fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (kind, name, link, content) in entries {
        tar.append(&header(*kind, name, link, content.len() as u64), *content).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

/// By the bytes: what `tar` itself would refuse to write is the point.
pub fn header(kind: EntryType, name: &str, link: &str, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    let fields = header.as_gnu_mut().unwrap();
    fields.name[..name.len()].copy_from_slice(name.as_bytes());
    fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    header
}

/// Much in little: one file of `bytes` zeros.
pub fn bomb(bytes: u64) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    tar.append(&header(EntryType::Regular, "f.py", "", 4), &b"pass"[..]).unwrap();
    tar.append(&header(EntryType::Regular, "big", "", bytes), std::io::repeat(0).take(bytes)).unwrap();
    tar.into_inner().unwrap().finish().unwrap()
}

pub fn gzip(content: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(content).unwrap();
    gz.finish().unwrap()
}
