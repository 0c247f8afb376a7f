//! A registry that cannot be read while its worker runs: what is known is served, and only a deletion deletes.

#[path = "support/mod.rs"]
mod support;

use std::fs;
use std::os::unix::fs::symlink;

use support::Worker;

const HELLO: &str = "def f(event):\n    return 'hello'\n";
const SAID: &str = "the registry cannot be read";

#[test]
fn a_registry_that_cannot_be_read_takes_no_function_away() {
    let mut worker = Worker::new();
    worker.deploy("archive", &[("f.py", HELLO)]);
    let registry = worker.path().join("registry");
    fs::create_dir(registry.join("files")).unwrap();
    fs::write(registry.join("files/f.py"), HELLO).unwrap();
    worker.up(&["registry_cache_ms=0"]);
    let names = ["archive", "files"];
    for name in names {
        assert_eq!(worker.result(name, "{}"), "hello");
    }
    let away = worker.path().join("away");
    let served_and_said = |what: &str, times: usize| {
        for name in names.iter().chain(&names) {
            let answer = worker.call(name, "{}");
            assert_eq!((answer.status, answer.start()), (200, "warm"), "{name}, {what}: {answer:?}");
        }
        let log = worker.worker_log();
        assert_eq!(log.matches(SAID).count(), times * names.len(), "{what}: {log}");
        // A name that nobody knows may be there.
        let other = worker.call("other", "{}");
        assert_eq!(other.status, 500, "{what}: {other:?}");
        assert!(other.body.contains("registry"), "{what}: {other:?}");
        for (method, path) in
            [("GET", "/registry/"), ("DELETE", "/registry/archive"), ("GET", "/registry/archive/config")]
        {
            let answer = worker.request(method, path, &[], b"");
            assert_eq!(answer.status, 500, "{method} {path}, {what}: {answer:?}");
        }
    };
    fs::rename(&registry, &away).unwrap();
    served_and_said("it is not there", 1);
    fs::write(&registry, "").unwrap();
    served_and_said("a file is in its place", 1);
    fs::remove_file(&registry).unwrap();
    symlink("registry", &registry).unwrap();
    served_and_said("a link leads nowhere", 1);
    fs::remove_file(&registry).unwrap();
    fs::rename(&away, &registry).unwrap();
    for name in names {
        assert_eq!(worker.result(name, "{}"), "hello");
    }
    fs::rename(&registry, &away).unwrap();
    served_and_said("it is not there again", 2);
    fs::rename(&away, &registry).unwrap();
    // New code, and a deletion, count as before.
    fs::write(registry.join("files/f.py"), "def f(event):\n    return 'new'\n").unwrap();
    assert_eq!(worker.result("files", "{}"), "new");
    fs::remove_dir_all(registry.join("files")).unwrap();
    assert_eq!(worker.call("files", "{}").status, 404);
    assert_eq!(worker.request("DELETE", "/registry/archive", &[], b"").status, 200);
    assert_eq!(worker.call("archive", "{}").status, 404);
    worker.down();
}
