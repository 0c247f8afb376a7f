//! A store as an older worker left it: `PKGS_DIR/six==1.16.0/{files,meta.json}`.

use super::*;

/// Moves the entry of six to where an older worker had it.
fn aged(worker: &Worker) -> PathBuf {
    let (entry, old) = (worker.package(SIX), worker.path().join("packages").join(SIX));
    fs::rename(&entry, &old).unwrap();
    fs::remove_file(old.join("record.json")).unwrap();
    let meta = r#"{"top_level":["six"],"requires":[]}"#;
    fs::write(old.join("meta.json"), meta).unwrap();
    fs::remove_dir_all(worker.packages()).unwrap();
    old
}

#[test]
fn an_older_store_is_taken_over_without_an_index() {
    let mut worker = deployed("");
    let old = aged(&worker);
    fs::write(worker.path().join("hosier.toml"), "pip_mirror = \"http://127.0.0.1:9/simple\"\n").unwrap();
    worker.up(&[]);
    works(&worker, "uses");
    assert!(!old.exists() && worker.package(SIX).join("record.json").is_file());
    worker.down();
    worker.up(&[]);
    works(&worker, "uses");
    worker.down();
}

#[test]
fn what_an_older_store_has_for_another_interpreter_or_damaged_is_fetched() {
    let mut worker = deployed("");
    let old = aged(&worker);
    // The wheel's own RECORD knows better.
    flip(&old.join("files/six.py"), "text_type = str", "text_type = int");
    worker.up(&[]);
    works(&worker, "uses");
    worker.down();
    fs::remove_dir_all(&old).unwrap();

    let old = aged(&worker);
    let cached = bytecode(&old);
    fs::rename(&cached, cached.with_file_name("six.cpython-399.pyc")).unwrap();
    worker.up(&[]);
    works(&worker, "uses");
    assert!(old.exists(), "another interpreter's worker may still take it over");
    worker.down();
}
