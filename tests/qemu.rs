//! Pure cgroup v2 and the oldest kernel we promise: Debian's cloud kernel under emulation.
//!
//! ```text
//! this test ─> tests/qemu/run.sh BINARIES ─> qemu: kernel ─> init ─> guest.py ─> hosier
//!     └──── the guest's console: `SMOKE ok NAME …`, `SMOKE fail NAME …`, `SMOKE done` ──┘
//! ```
//!
//! It takes about twenty seconds, and the first time a download of 27 MB, kept in `target/qemu/cache`. The kernel
//! is the one that the machine's apt offers: 6.1 on Debian 12. On the host this process starts an emulator and
//! makes no sandbox, cgroup or mount.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What `guest.py` must report, in its order.
const CHECKS: [&str; 19] = [
    "boot",
    "kernel",
    "cgroup_v2_only",
    "pivot_root",
    "overlay",
    "user_namespace",
    "clone_into_cgroup",
    "cgroup_kill_then_reuse",
    "init",
    "deploy",
    "up",
    "cold_call",
    "warm_call",
    "memory_bomb",
    "endless_loop",
    "killed_under_load",
    "up_again",
    "down",
    "writable_root",
];

/// `run.sh` says so when the machine cannot run the guest; the last line of its stderr says why.
const SKIPPED: i32 = 77;

#[test]
fn a_cgroup_v2_guest_serves_survives_a_bomb_and_is_clean_after_kill_9() {
    let output = Command::new(smoke_dir().join("run.sh"))
        .arg(binaries())
        .stdin(Stdio::null())
        .output()
        .expect("tests/qemu/run.sh can be started");
    let console = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);

    if output.status.code() == Some(SKIPPED) {
        eprintln!("{}", stderr.lines().last().unwrap_or("skipped without a reason"));
        return;
    }
    println!("{console}");
    assert!(output.status.success(), "run.sh ended with {}:\n{stderr}", output.status);
    assert_eq!(missing(&console), Vec::<String>::new());
}

#[test]
fn a_failed_a_lost_and_an_unfinished_check_are_all_noticed() {
    let clean = CHECKS.map(|name| format!("SMOKE ok {name} facts\n")).concat();
    let finished = format!("{clean}SMOKE done\n");
    assert!(missing(&finished).is_empty());

    assert_eq!(missing(&clean), ["SMOKE done never came"]);
    assert_eq!(missing(&finished.replace("SMOKE ok down facts\n", "")), ["no word of down"]);
    assert_eq!(missing(&finished.replace("ok down facts", "fail down why")), ["SMOKE fail down why"]);
}

/// What the console lacks, one line a fault.
fn missing(console: &str) -> Vec<String> {
    let verdicts: Vec<&str> = console.lines().filter(|line| line.starts_with("SMOKE ")).collect();
    let mut faults: Vec<String> = Vec::new();
    for name in CHECKS {
        let of_check = |line: &&&str| line.split(' ').nth(2) == Some(name);
        match verdicts.iter().find(of_check) {
            Some(line) if line.starts_with("SMOKE ok ") => {}
            Some(line) => faults.push((*line).to_owned()),
            None => faults.push(format!("no word of {name}")),
        }
    }
    if verdicts.last() != Some(&"SMOKE done") {
        faults.push("SMOKE done never came".to_owned());
    }
    faults
}

fn smoke_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/qemu")
}

/// Where cargo put `hosier`; `cargo build` puts the extension module beside it.
fn binaries() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_hosier")).parent().expect("a binary lies in a directory")
}
