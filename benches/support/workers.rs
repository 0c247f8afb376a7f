//! Workers side by side: each has settings of its own, all share one registry and one
//! package store, so that nothing is installed twice.

use super::functions::Function;
use super::worker::Worker;

/// A worker directory with these functions deployed; no worker runs in it.
pub fn home(functions: &[Function]) -> Worker {
    let home = Worker::new();
    functions.iter().for_each(|function| function.deploy(&home));
    home
}

/// One more worker, on the functions and packages of `home`.
pub fn beside(home: &Worker, options: &[&str]) -> Worker {
    let mut worker = Worker::new();
    let path = worker.path().join("hosier.toml");
    let shared = |name: &str| format!("{:?}", home.path().join(name).to_string_lossy());
    let settings = std::fs::read_to_string(&path).unwrap();
    let (registry, packages) = (shared("registry"), shared("packages"));
    std::fs::write(path, format!("registry = {registry}\npkgs_dir = {packages}\n{settings}")).unwrap();
    // An experiment's: `zygote.prefault=false`, say.
    let more = std::env::var("HOSIER_BENCH_OPTIONS").unwrap_or_default();
    let options = options.iter().copied().chain([more.as_str()]).filter(|option| !option.is_empty());
    worker.up(&options.collect::<Vec<_>>());
    worker
}
