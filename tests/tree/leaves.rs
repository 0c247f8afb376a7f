//! What a forked leaf is like inside: its randomness, its hooks, its path, and
//! that nothing is imported in it that its node had.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Instant;

use crate::site::{ATTRS, IDNA, ONE_SHOT, SIX, ask, before, files, fixture, node, probe, probe_with, site};
use crate::support::Worker;

const SIBLINGS: usize = 20;
const PANDAS: [&str; 6] = [
    "numpy==1.26.4",
    "pandas==2.2.3",
    "python-dateutil==2.9.0.post0",
    "pytz==2024.2",
    "six==1.16.0",
    "tzdata==2024.2",
];

/// Asks as many siblings as there are for each of these, and expects that no two say the same.
fn expect_unlike(worker: &Worker, name: &str, sources: &[&str]) {
    let mut seen = vec![BTreeSet::new(); sources.len()];
    let expression = format!("[repr(source) for source in ({},)]", sources.join(", "));
    for _ in 0..SIBLINGS {
        let answer = ask(worker, name, &expression);
        assert_eq!(answer.start(), "forked");
        for (seen, said) in seen.iter_mut().zip(answer.json().as_array().unwrap()) {
            seen.insert(said.as_str().unwrap().to_owned());
        }
    }
    for (source, seen) in sources.iter().zip(&seen) {
        assert_eq!(seen.len(), SIBLINGS, "{source} is the same in siblings");
    }
}

#[test]
fn siblings_are_unlike_although_their_node_used_every_source_of_randomness() {
    let code = "import os, random, secrets, ssl, tempfile, uuid, hashlib\nOWN = random.Random(); \
                random.random(); uuid.uuid4(); \
                uuid.uuid1(); secrets.token_hex(); ssl.RAND_bytes(16); os.urandom(8); tempfile.mktemp(); \
                next(tempfile._get_candidate_names())";
    let pin = fixture("usesrandomness", code);
    let mut worker = site(None);
    probe_with(&worker, "sibling", &[&pin], ONE_SHOT);
    worker.up(&[]);
    let import = |module: &str, rest: &str| format!("__import__('{module}').{rest}");
    let sources = [
        import("random", "random()"),
        import("random", "SystemRandom().random()"),
        import("random", "Random().random()"),
        import("uuid", "uuid4()"),
        import("os", "urandom(16)"),
        import("ssl", "RAND_bytes(16)"),
        import("secrets", "token_hex(16)"),
        import("tempfile", "mkstemp()[1]"),
        import("tempfile", "mktemp()"),
    ];
    expect_unlike(&worker, "sibling", &sources.each_ref().map(String::as_str));
    assert_eq!(node(&worker, &pin).forks, SIBLINGS as u64, "all of them are siblings");
    // The control: what a package made before the fork and nobody can reseed is the same in all.
    let own = || ask(&worker, "sibling", "sys.modules['usesrandomness'].OWN.random()").json();
    assert_eq!(own(), own());
    worker.down();
}

#[test]
fn pandas_is_not_imported_in_the_leaf_and_its_randomness_is_the_leafs_own() {
    let mut worker = site(None);
    let config = format!("{ONE_SHOT}limits:\n  mem_mb: 400\n");
    probe_with(&worker, "frames", &PANDAS, &config);
    worker.up(&[]);
    assert_eq!(before(&worker, "frames", &["numpy", "pandas"]), ["numpy", "pandas"]);

    let begun = Instant::now();
    let timed = "[('pandas' in BEFORE, s := time.perf_counter(), __import__('pandas'), \
                 time.perf_counter() - s)[i] for i in (0, 3)]";
    let answer = ask(&worker, "frames", timed);
    let cold = begun.elapsed();
    assert_eq!(answer.start(), "forked");
    let seen = answer.json();
    assert_eq!(seen[0], true);
    assert!(seen[1].as_f64().unwrap() < 0.005, "the import took {seen} s");
    let import = answer.header("server-timing").split("import;dur=").nth(1).unwrap();
    let import: f64 = import.split([',', ' ']).next().unwrap().parse().unwrap();
    assert!(import < 50.0, "{answer:?}");

    let path = PANDAS.map(|pin| files(pin).display().to_string()).join(":");
    let begun = Instant::now();
    let fresh =
        Command::new("/usr/bin/python3").env("PYTHONPATH", path).args(["-c", "import pandas"]).status();
    assert!(fresh.unwrap().success());
    assert!(cold * 2 < begun.elapsed(), "forked {cold:?}, fresh {:?}", begun.elapsed());

    let numpy = "__import__('numpy').random";
    let sources = [
        format!("{numpy}.random()"),
        format!("{numpy}.default_rng().random()"),
        format!("{numpy}.RandomState().random()"),
        "list(__import__('pandas').Series(range(10**6)).sample(4))".to_owned(),
    ];
    expect_unlike(&worker, "frames", &sources.each_ref().map(String::as_str));
    worker.down();
}

#[test]
fn fork_hooks_run_in_the_leaf_and_collection_is_on_there_only() {
    let code = "import gc, os\nRAN = []\nENABLED = gc.isenabled()\n\
                os.register_at_fork(after_in_child=lambda: RAN.append(os.getpid()))";
    let pin = fixture("hashooks", code);
    let mut worker = site(None);
    probe(&worker, "hooked", &[&pin]);
    probe(&worker, "below", &[&pin, SIX]);
    worker.up(&[]);
    let hooks = "[sys.modules['hashooks'].RAN, sys.modules['hashooks'].ENABLED, gc.isenabled(), \
                 gc.get_freeze_count() > 1000, gc.collect() >= 0]";
    assert_eq!(ask(&worker, "hooked", hooks).json(), serde_json::json!([[1], false, true, true, true]));
    // One for the child zygote, which is pid 2 under its stub, one for the leaf.
    assert_eq!(ask(&worker, "below", "sys.modules['hashooks'].RAN").json(), serde_json::json!([2, 1]));
    worker.down();
}

#[test]
fn the_path_is_the_same_whichever_node_a_leaf_was_forked_from() {
    let pins = [ATTRS, IDNA, SIX];
    let mut paths = Vec::new();
    let half = serde_json::json!({ "children": [{ "packages": [SIX] }] }).to_string();
    for (tree, option) in [
        (None, "features.import_cache="),
        (None, "features.import_cache=tree"),
        (Some("{}"), ""),
        (Some(half.as_str()), ""),
    ] {
        let mut worker = site(tree);
        probe(&worker, "f", &pins);
        worker.up(if option.is_empty() { &[] } else { std::slice::from_ref(&option) });
        paths.push(ask(&worker, "f", "PATH").json());
        worker.down();
    }
    let path: Vec<_> = paths[0].as_array().unwrap().iter().map(|entry| entry.as_str().unwrap()).collect();
    assert!(paths.iter().all(|other| *other == paths[0]), "{paths:#?}");
    assert_eq!(path[0], "/handler");
    assert!(!path.iter().any(|entry| entry.contains("dist-packages") || entry.contains("site-packages")));
    let own: Vec<_> = path.iter().filter(|entry| entry.starts_with("/packages/")).copied().collect();
    assert_eq!(own, pins.map(|pin| format!("/packages/{pin}/files")));
    let rest = path.iter().filter(|entry| !entry.starts_with("/packages/") && **entry != "/handler");
    let rest: Vec<_> = rest.copied().collect();
    assert!(
        rest.iter().all(|entry| entry.starts_with("/usr/lib/python3") || *entry == "/hosier"),
        "{rest:?}"
    );
}
