//! Bad input and the edges of the interface, through the real command and HTTP.
//!
//! ```text
//! caller     names, bodies, methods ── HTTP ──┐
//! archives   POST /registry/NAME ─────────────┼─▶ one answer that says which and what to do,
//! packages   requirements.txt; build: sdists  │   nothing half-made, the next request is served
//! commands, settings, root ── hosier … ───────┘
//! ```
//!
//! Packages come from the real index: what these tests install is small.

#[path = "../support/mod.rs"]
mod support;

mod archives;
mod build;
mod caller;
mod commands;
mod packages;
mod root;
mod settings;

use std::fs;
use std::path::Path;
use std::process::Output;

use support::{Answer, Worker};

const HELLO: &str = "def f(event):\n    return {'hello': event.get('name', 'world')}\n";
/// Pure Python, 11 kB, no dependencies.
const SIX: &str = "six==1.16.0\n";
const USES_SIX: &str = "import six\ndef f(event):\n    return [six.__version__, six.__file__]\n";

fn up(mut worker: Worker, options: &[&str]) -> Worker {
    worker.up(options);
    worker
}

/// Runs a command that must fail: code 1, nothing on stdout; its stderr.
fn fails(worker: &Worker, args: &[&str]) -> String {
    refusal(&worker.hosier(args))
}

fn refusal(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(said.contains("hosier: "), "{said}");
    said
}

fn reason(answer: &Answer) -> String {
    answer.json()["reason"].as_str().unwrap_or_default().to_owned()
}

fn error(answer: &Answer) -> String {
    answer.json()["error"].as_str().unwrap_or_default().to_owned()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn below(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    found.push(dir.to_owned());
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
        if entry.file_type().unwrap().is_dir() {
            below(&entry.path(), found)
        } else {
            found.push(entry.path())
        }
    }
}

fn write_settings(worker: &Worker, text: &str) {
    fs::write(worker.path().join("hosier.toml"), text).unwrap();
}
