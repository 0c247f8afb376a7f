//! What the package store remembers of what it holds, against a real worker and a small package of
//! the real index: damaged files are fetched again, hashes are kept, an older store is taken over.
//!
//! ```text
//! damage   while the worker is down, or up; without an index; found by hashing alone
//! hashes   of a wheel, of a source, of neither; two functions with one each
//! older    a store as an older worker left it
//! ```

#[path = "../support/mod.rs"]
mod support;

mod damage;
mod hashes;
mod older;

use std::fs;
use std::path::{Path, PathBuf};

use support::{Answer, Worker};

/// Pure Python, 11 kB, no dependencies.
const SIX: &str = "six==1.16.0";
/// Digests of its two files.
const WHEEL: &str = "8abb2f1d86890a2dfb989f9a77cfcfd3e47c2a354b01111771326f8aa26e0254";
const SOURCE: &str = "1e61c37477a1626458e36f7b1d82aa5c9b094fa4802892072e49de9c60c4c926";

/// Each call is a sandbox of its own.
const COLD: &str = "reuse-sandbox: false\n";
const USES_SIX: &str =
    "def f(event):\n    import six\n    return [six.__version__, six.text_type.__name__]\n";

/// A worker directory with a function that uses six.
fn deployed(settings: &str) -> Worker {
    let worker = Worker::new();
    if !settings.is_empty() {
        fs::write(worker.path().join("hosier.toml"), settings).unwrap();
    }
    worker.deploy("uses", &[("f.py", USES_SIX), ("requirements.txt", SIX), ("ol.yaml", COLD)]);
    worker
}

fn works(worker: &Worker, name: &str) {
    assert_eq!(worker.result(name, ""), serde_json::json!(["1.16.0", "str"]), "{name}");
}

fn error(answer: &Answer) -> String {
    assert_eq!(answer.status, 500, "{answer:?}");
    answer.json()["error"].as_str().unwrap_or_default().to_owned()
}

/// The bytecode of six in an entry.
fn bytecode(entry: &Path) -> PathBuf {
    let cached = fs::read_dir(entry.join("files/__pycache__")).unwrap();
    cached.map(|entry| entry.unwrap().path()).find(|path| path.to_string_lossy().contains("six")).unwrap()
}

/// Cuts a file in half.
fn truncate(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

/// Replaces `from` by `to`, which is as long, in a file.
fn flip(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from) && from.len() == to.len());
    fs::write(path, text.replace(from, to)).unwrap();
}
