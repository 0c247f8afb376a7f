//! An install's four steps (resolve, fetch, build, unpack) against hostile packages
//! and a hostile index, and with what people really have. Starts whole workers and an
//! index of its own on loopback.
//!
//! ```text
//! index     a package index: wheels, sources, a password, lies
//! sources   source packages with a build backend of their own
//! reach     what a build tries to reach       rounds    what a build asks for
//! left      what a build leaves               real      what people have, built and called
//! ```

#[path = "../support/mod.rs"]
mod support;

mod index;
mod left;
mod reach;
mod real;
mod rounds;
mod sources;

use std::fs;
use std::process::{Command, Output};

use index::Index;
use support::{HOSIER, Worker, source};

/// A worker directory whose only index is `index`.
fn worker(index: &Index, settings: &str) -> Worker {
    let worker = Worker::new();
    let text = format!("pip_mirror = \"{}\"\n{settings}", index.url());
    fs::write(worker.path().join("hosier.toml"), text).unwrap();
    worker
}

/// Deploys a function that imports `module` and returns its `SEEN`.
fn deploy(worker: &Worker, name: &str, pins: &str, module: &str, env: &[(&str, &str)]) -> Output {
    let code = format!("import {module}\ndef f(event):\n    return {module}.SEEN\n");
    let function = source(&[("f.py", &code), ("requirements.txt", pins)]);
    let mut command = Command::new(HOSIER);
    command.args(["deploy", function.path().to_str().unwrap(), "-n", name, "-p"]).arg(worker.path());
    command.envs(env.iter().copied()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Deploys a function that cannot be; what the command said. Nothing is left of it.
fn refused(worker: &Worker, pins: &str) -> String {
    let output = deploy(worker, "refused", pins, "evil", &[]);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    worker.census();
    let left: Vec<_> = names(worker, "packages").into_iter().filter(|name| name != ".locks").collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    said
}

fn names(worker: &Worker, dir: &str) -> Vec<String> {
    let dir = if dir == "packages" { worker.packages() } else { worker.path().join(dir) };
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
