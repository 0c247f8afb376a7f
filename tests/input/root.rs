//! A root to write: the sandbox's own.

use crate::support::Worker;
use crate::*;

const WRITES: &str = "import os, errno\n\
def f(event):\n    said = {}\n    for path in event['paths']:\n        try:\n            \
with open(path, 'a') as file:\n                file.write('mine')\n            said[path] = os.stat(path).st_uid == os.getuid()\n        \
except OSError as error:\n            said[path] = errno.errorcode[error.errno]\n    return said\n";

#[test]
fn a_writable_root_is_the_sandboxes_own_and_goes_with_it() {
    let worker = Worker::new();
    worker.deploy("writes", &[("f.py", WRITES), ("ol.yaml", "reuse-sandbox: false\n")]);
    worker.deploy("fills", &[("f.py", FILLS)]);
    let paths = ["/etc/x", "/etc/hosts", "/new", "/home/x", "/usr/local/x", "/usr/bin/x", "/usr/share/x"];
    let event = serde_json::json!({ "paths": paths }).to_string();
    // The control: a root that is not to be written.
    let worker = up(worker, &[]);
    let refused = worker.result("writes", &event);
    assert!(paths.iter().all(|path| refused[path] == "EROFS"), "{refused}");
    worker.ok(&["down"]);
    let mut worker = worker;
    // Forked from a zygote, then a process of its own.
    for cache in ["tree", ""] {
        worker.up(&["sandbox.rootfs=rw", "sandbox.tmp_mb=8", &format!("features.import_cache={cache}")]);
        for _ in 0..2 {
            let written = worker.result("writes", &event);
            assert!(paths.iter().all(|path| written[path] == true), "import_cache={cache}: {written}");
        }
        let closed = r#"{"paths": ["/handler/x", "/packages/x", "/proc/sys/kernel/hostname", "/hosier/x"]}"#;
        let refused = worker.result("writes", closed);
        assert_eq!(
            (&refused["/handler/x"], &refused["/packages/x"]),
            (&"EROFS".into(), &"EROFS".into()),
            "{refused}"
        );
        let full = worker.result("fills", "");
        assert_eq!(full[0], "ENOSPC", "{full}");
        // Beside what the sandbox may write there is room for the worker's own small layers.
        assert!(full[1].as_u64().unwrap() <= (8 + 32) << 20, "{full}");
        worker.down();
    }
    for path in ["/etc/x", "/new", "/home/x", "/usr/local/x", "/usr/bin/x", "/usr/share/x"] {
        assert!(!Path::new(path).exists(), "{path} is on the host");
    }
    assert!(!fs::read_to_string("/etc/hosts").unwrap().contains("mine"));
}

/// Writes to /usr until it is full.
const FILLS: &str = "import os, errno\n\
def f(event):\n    size = 0\n    with open('/usr/big', 'wb', buffering=0) as file:\n        try:\n            \
while True:\n                size += file.write(b'x' * 65536)\n        \
except OSError as error:\n            return [errno.errorcode[error.errno], size]\n";
