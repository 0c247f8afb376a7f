//! Solidify, and immortal objects, on real interpreters and packages: what a process computes must
//! not depend on either, in the process or in the children that it forks. Packages are PyPI's,
//! into a directory that goes with the test.
//!
//! ```text
//! python3 process.py … plain ──▶ what each package comes to ─┐ the same?
//! python3 process.py … solid ──▶ immortalize, solidify, 200 × (fork, use, exit), use, exit
//! ```
//!
//! `make test` takes the machine's own Python and four packages; `make soak` all
//! packages and each CPython from 3.9 to 3.13 that it finds: in `HOSIER_TEST_PYTHONS`
//! (paths, by `:`), else in PATH and below `~/.pyenv/versions`. It prints which it did not find.

mod support;

#[path = "solid/interpreters.rs"]
mod interpreters;
#[allow(dead_code, reason = "made for another suite")]
#[path = "tree/site.rs"]
mod site;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use interpreters::{Interpreter, SYSTEM};
use site::{fixture, node, probe_with, site};

const FORKS: usize = 200;
/// What installs each and what imports it.
const PACKAGES: [(&str, &str); 9] = [
    ("numpy", "numpy"),
    ("pandas", "pandas"),
    ("pillow", "PIL"),
    ("cryptography", "cryptography"),
    ("scipy", "scipy"),
    ("scikit-learn", "sklearn"),
    ("lxml", "lxml"),
    ("grpcio", "grpc"),
    ("pyarrow", "pyarrow"),
];
const QUICK: usize = 4;

fn here(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/solid").join(file)
}

fn module() -> PathBuf {
    Path::new(support::HOSIER).with_file_name("libhosier_native.so")
}

/// Runs one of the scripts as a zygote's interpreter runs: isolated, one thread a library. Its
/// line of JSON, or what it said when it failed.
fn run(python: &Path, script: &str, arguments: &[&str], input: &str) -> Result<serde_json::Value, String> {
    let boot = format!("import sys; sys.path.append({:?}); import {script}", here(""));
    let mut command = Command::new(python);
    command.args(["-I", "-S", "-B", "-c", &boot]).arg(module()).args(arguments);
    command.env_clear().envs([
        ("HOME", "/tmp"),
        ("OPENBLAS_NUM_THREADS", "1"),
        ("OMP_NUM_THREADS", "1"),
        ("MKL_NUM_THREADS", "1"),
        ("JE_ARROW_MALLOC_CONF", "background_thread:false"),
    ]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    match serde_json::from_str(&said) {
        Ok(value) if output.status.success() => Ok(value),
        _ => Err(format!("{}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr))),
    }
}

/// Compares a solid process with a plain one; what is wrong.
fn compare(python: &Path, packages: &Path, name: &str) -> Result<serde_json::Value, String> {
    let packages = packages.to_str().unwrap();
    let plain = run(python, "process", &[packages, "plain", "0", name], "")?;
    let forks = FORKS.to_string();
    let solid = run(python, "process", &[packages, "solid", &forks, name], &plain.to_string())?;
    match &solid["differs"] {
        _ if solid["uses"] != plain["uses"] => Err(format!("its process: {plain} {solid}")),
        differs if differs.as_array().is_none_or(|found| !found.is_empty()) => {
            Err(format!("its children: {plain} {differs}"))
        }
        _ => Ok(solid),
    }
}

/// Each of these packages in processes of its own; prints a row each and returns what is wrong.
fn verify(python: &Interpreter, packages: &[(&str, &str)]) -> Vec<String> {
    let place = tempfile::Builder::new().prefix("solid-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let names: Vec<_> = packages.iter().map(|(name, _)| *name).collect();
    python.install(&names, &here("requirements.txt"), place.path());
    let mut wrong = Vec::new();
    for (name, import) in packages {
        match compare(&python.path, &place.path().join("files"), import) {
            Ok(solid) if (solid["immortal"] == 0) == python.has_immortals() => {
                wrong.push(format!(
                    "CPython {} {name}: {} objects are immortal",
                    python.version, solid["immortal"]
                ));
            }
            Ok(solid) => println!(
                "CPython {} {name}: {FORKS} forks the same; {} immortal objects, {} mappings, {} KiB moved, {} left",
                python.version,
                solid["immortal"],
                solid["moved"],
                solid["bytes"].as_u64().unwrap_or(0) / 1024,
                solid["left"]
            ),
            Err(what) => wrong.push(format!("CPython {} {name}: {what}", python.version)),
        }
    }
    wrong
}

#[test]
fn a_solid_process_and_its_children_compute_what_a_plain_one_does() {
    let wrong = verify(&Interpreter::at(Path::new(SYSTEM)).unwrap(), &PACKAGES[..QUICK]);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn soak_every_package_on_every_python_that_is_found() {
    let (found, missing) = interpreters::find();
    for version in missing {
        println!("not found: CPython {version}");
    }
    let wrong: Vec<_> = found.iter().flat_map(|python| verify(python, &PACKAGES)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The proof that the comparison can fail: a package that says something else in a child.
#[test]
fn a_difference_in_a_child_is_noticed() {
    let plain = serde_json::json!({ "uses": { "numpy": "something else" } }).to_string();
    let python = Interpreter::at(Path::new(SYSTEM)).unwrap();
    let place = tempfile::Builder::new().prefix("solid-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    python.install(&["numpy"], &here("requirements.txt"), place.path());
    let packages = place.path().join("files");
    let arguments = [packages.to_str().unwrap(), "solid", "2", "numpy"];
    let said = run(&python.path, "process", &arguments, &plain).unwrap();
    assert_eq!(said["differs"].as_array().unwrap().len(), 2, "{said}");
}

#[test]
fn what_a_fork_treats_specially_stays_special() {
    let said = run(Path::new(SYSTEM), "special", &[], "").unwrap();
    assert!(said["flags"]["plain"].to_string().contains("memfd:hosier-zygote"), "the control: {said}");
    for (name, flag) in [("wiped", "\"wf\""), ("locked", "\"lo\"")] {
        let flags = said["flags"][name].to_string();
        assert!(flags.contains(flag) && !flags.contains("memfd"), "{name}: {flags}");
    }
    assert!(said["left"].as_u64().unwrap() >= 2, "{said}");
    let own = serde_json::json!(["plain\0", "wiped\0", "locked", "mine\0\0"]);
    assert_eq!((&said["parent"], &said["after"]), (&own, &own), "{said}");
    let wiped = serde_json::json!(["plain\0", "\0\0\0\0\0\0", "locked", "mine\0\0"]);
    assert_eq!(said["children"], serde_json::json!([wiped, wiped, wiped]), "no child sees another's writes");
    // Where the map has more lines than there is room for, nothing is touched.
    let expected = serde_json::json!(["solidify() = -1 E2BIG (Argument list too long)", true, 77]);
    assert_eq!(said["too_many"], expected);
}

#[test]
fn a_node_that_cannot_be_solid_serves_and_says_why() {
    let code = "import mmap\nBOTH = mmap.PROT_READ | mmap.PROT_WRITE\nMANY = [mmap.mmap(-1, 4096, \
                flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=p) for _ in range(6500) for p in (BOTH, \
                mmap.PROT_READ)]\nMANY[0][:4] = b'kept'\n";
    let pin = fixture("manymappings", code);
    let mut worker = site(None);
    probe_with(&worker, "f", &[&pin], "limits:\n  mem_mb: 200\n");
    worker.up(&[]);
    let answer = site::ask(
        &worker,
        "f",
        "[sys.modules['manymappings'].MANY[0][:4].decode(), 'manymappings' in BEFORE]",
    );
    assert_eq!((answer.start(), answer.json()), ("forked", serde_json::json!(["kept", true])));
    let state = node(&worker, &pin).state;
    assert!(state.contains("not solid") && state.contains("Solidify") && state.contains("E2BIG"), "{state}");
    worker.down();
}

const POLARS: [&str; 1] = ["polars==1.31.0"];

#[test]
fn polars_keeps_a_thread_so_its_functions_are_forked_from_the_parent() {
    let mut worker = site(None);
    probe_with(&worker, "frames", &POLARS, "limits:\n  mem_mb: 500\n  procs: 64\n");
    worker.up(&[]);
    let sum = "['polars' in BEFORE, __import__('polars').DataFrame({'a': [1, 2, 4]})['a'].sum()]";
    let answer = site::ask(&worker, "frames", sum);
    assert_eq!((answer.start(), answer.json()), ("forked", serde_json::json!([false, 7])));
    let unfit = node(&worker, POLARS[0]);
    assert!(unfit.state.contains("unfit: it has ") && unfit.state.contains("threads"), "{unfit:?}");
    assert_eq!(unfit.sandbox, None, "it does not stand");
    assert_eq!(node(&worker, "").forks, 2, "the node that was tried, and the leaf");
    worker.down();
}
