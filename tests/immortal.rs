//! Objects of a node that are immortal: which are, that data are not, and that leaves
//! write fewer pages for it. From CPython 3.12 on; before, nothing changes.
//!
//! ```text
//! python3 kept.py ──▶ immortalize ─┬▶ what is immortal
//!                                  └▶ fork: drop data, collect, change, end
//! ```
//!
//! Interpreters are found as `solid` finds them. A worker's must be below /usr: one that is
//! elsewhere is mounted there, in a mount namespace of the test's own.

mod support;

#[path = "solid/interpreters.rs"]
#[allow(dead_code, reason = "made for another suite")]
mod interpreters;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use interpreters::{Interpreter, SYSTEM};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use support::Worker;

/// More than any count that was counted.
const IMMORTAL: i64 = 1 << 31;

/// Draws on most of what numpy is; says what the leaf wrote, in KiB, and a module's reference count.
const HANDLER: &str = "import sys\nimport numpy\ndef f(event):\n    values = numpy.arange(12.0)\n    \
    total = float((values ** 2).sum() + numpy.sqrt(values).mean())\n    \
    rollup = open('/proc/self/smaps_rollup').read()\n    \
    return [round(total), sys.getrefcount(numpy), int(rollup.split('Private_Dirty:')[1].split()[0])]\n";
const ROUNDED: i64 = 508;
const CONFIG: &str = "reuse-sandbox: false\nlimits: {mem_mb: 300}\n";

fn kept(python: &Interpreter) -> Value {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let boot = format!(
        "import sys; sys.path += [{:?}, {:?}]; import kept",
        tests.join("immortal"),
        tests.join("solid")
    );
    let module = Path::new(support::HOSIER).with_file_name("libhosier_native.so");
    let mut command = Command::new(&python.path);
    let output = command.args(["-I", "-S", "-B", "-c", &boot]).arg(module).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "CPython {}: {} {said}", python.version, output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn what_an_interpreter_is_made_of_is_immortal_and_data_is_not() {
    let (found, missing) = interpreters::find();
    for version in missing {
        println!("not found: CPython {version}");
    }
    for python in found {
        let (version, said) = (&python.version, kept(&python));
        println!("CPython {version}: {} objects", said["made"]);
        assert_eq!(said["data"], json!([]), "CPython {version}");
        assert_eq!(said["again"], 0, "CPython {version}: what is immortal is not made so again");
        if python.has_immortals() {
            assert_eq!((&said["missing"], &said["before"]), (&json!([]), &json!([])), "CPython {version}");
            assert!(said["made"].as_u64().unwrap() > 5000, "CPython {version}: {said}");
        } else {
            assert_eq!((&said["parts"], &said["made"]), (&json!([]), &json!(0)), "CPython {version}");
        }
        let gone =
            json!(["alone", "of a dict", "of a list", "of a method's dict", "of a set", "of an instance"]);
        assert_eq!(said["drops"], gone, "CPython {version}: data go when their last name does");
        let kept = python.has_immortals();
        let collected = json!([["of a cycle"], 0, "a constant of Owner", kept]);
        assert_eq!(said["collects"], collected, "CPython {version}");
        let changed = json!(["made when imported!", 3, 2, "goneam", ["b", "d"], "Owner"]);
        assert_eq!(said["changes"], changed, "CPython {version}");
        assert_eq!(said["changes"], said["ends"], "CPython {version}: an interpreter that ends ends well");
        assert_eq!(said["after"], 1, "CPython {version}: what a leaf changes is its own");
    }
}

/// What two leaves answer, and the tree as `/debug` draws it.
fn leaves(python: &str, option: &str) -> ([Value; 2], String) {
    let mut worker = Worker::new();
    let path = worker.path().join("hosier.toml");
    let settings = fs::read_to_string(&path).unwrap();
    assert!(settings.contains("#python = "), "{settings}");
    fs::write(&path, settings.replace("#python = ", &format!("python = {python:?} #"))).unwrap();
    worker.deploy("f", &[("f.py", HANDLER), ("requirements.txt", "numpy==2.2.6\n"), ("ol.yaml", CONFIG)]);
    // Pages of a solid node count as written where but one leaf has them.
    worker.up(&[option, "zygote.solidify=false", "zygote.learn=false", "zygote.grow_wait_ms=60000"]);
    worker.result("f", "");
    let said = [(); 2].map(|()| worker.result("f", ""));
    let debug = worker.get("/debug").body;
    worker.down();
    (said, debug)
}

/// Shows an interpreter below /usr to this test and to what it starts; where.
fn below_usr(python: &Interpreter, place: &Path) -> PathBuf {
    if python.path.starts_with("/usr") {
        return python.path.clone();
    }
    let real = python.path.canonicalize().unwrap();
    let prefix = real.parent().and_then(Path::parent).unwrap();
    fs::create_dir_all(place.join("local/python")).unwrap();
    fs::create_dir_all(place.join("lib")).unwrap();
    fs::set_permissions(place, fs::Permissions::from_mode(0o755)).unwrap();
    for entry in fs::read_dir(prefix.join("lib")).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("libpython") && entry.path().is_file() {
            fs::copy(entry.path(), place.join("lib").join(entry.file_name())).unwrap();
        }
    }
    let (none, lower) = (None::<&str>, format!("lowerdir={}:/usr", place.display()));
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("overlay"), "/usr", Some("overlay"), MsFlags::empty(), Some(lower.as_str())).unwrap();
    mount(Some(prefix), "/usr/local/python", none, MsFlags::MS_BIND, none).unwrap();
    Path::new("/usr/local/python/bin").join(real.file_name().unwrap())
}

#[test]
fn a_leaf_writes_fewer_pages_where_its_nodes_objects_are_immortal() {
    let (found, _) = interpreters::find();
    let Some(python) = found.iter().rev().find(|python| python.has_immortals()) else {
        println!("skipped: no CPython from 3.12 on is found");
        return;
    };
    let place = tempfile::Builder::new().prefix("usr-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = below_usr(python, place.path());
    let path = path.to_str().unwrap();
    let (mortal, without) = leaves(path, "zygote.immortal=false");
    let (immortal, with) = leaves(path, "zygote.immortal=true");
    println!("CPython {}: {mortal:?} without, {immortal:?} with", python.version);
    for (off, on) in mortal.iter().zip(&immortal) {
        let numbers = |said: &Value, at: usize| said[at].as_i64().unwrap();
        assert_eq!((numbers(off, 0), numbers(on, 0)), (ROUNDED, ROUNDED));
        assert!(numbers(off, 1) < IMMORTAL && numbers(on, 1) >= IMMORTAL, "{off} {on}");
        let (off_kib, on_kib) = (numbers(off, 2), numbers(on, 2));
        assert!(on_kib * 5 <= off_kib * 4, "at least a fifth fewer: {on_kib} KiB and {off_kib} KiB");
    }
    assert!(!without.contains(" immortal=") && with.matches(" immortal=").count() == 2, "{without}{with}");
}

#[test]
fn on_an_older_python_nothing_changes() {
    let python = Interpreter::at(Path::new(SYSTEM)).unwrap();
    if python.has_immortals() {
        println!("skipped: {SYSTEM} is CPython {}", python.version);
        return;
    }
    let (said, debug) = leaves(SYSTEM, "zygote.immortal=true");
    for said in &said {
        assert!(said[0] == ROUNDED && said[1].as_i64().unwrap() < IMMORTAL, "{said}");
    }
    assert!(!debug.contains(" immortal="), "{debug}");
}
