//! The report of a benchmark: its results as JSON, with the machine, its kernel, its load,
//! and the commit.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::PYTHON;

/// Where `NAME.json` is, or will be.
pub fn path(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    dir.join(format!("{name}.json"))
}

/// Writes `NAME.json`.
pub fn report(name: &str, results: serde_json::Value) {
    let report = serde_json::json!({
        "benchmark": name,
        "machine": {
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
            "model": after("/proc/cpuinfo", "model name"),
            "memory": after("/proc/meminfo", "MemTotal"),
            "kernel": read("/proc/sys/kernel/osrelease"),
            "python": said(PYTHON, &["--version"]),
            "load": read("/proc/loadavg"),
        },
        "commit": said("git", &["describe", "--always", "--dirty"]),
        "results": results,
    });
    let path = path(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, format!("{report:#}\n")).unwrap();
    eprintln!("written to {}", path.display());
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// What follows `KEY:` in a file.
fn after(path: &str, key: &str) -> String {
    let text = read(path);
    let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
    line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}
