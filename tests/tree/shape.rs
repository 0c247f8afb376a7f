//! A tree file: which nodes come to be, and which of them serves a function.

use crate::site::{ATTRS, DATEUTIL, IDNA, OLD_SIX, SIX, ask, before, node, nodes, probe, site};

const MODULES: [&str; 4] = ["six", "dateutil", "idna", "attr"];

/// root ─┬─ six ─┬─ python-dateutil ─── idna
///       │       └─ attrs
///       └─ idna
fn three_levels() -> String {
    serde_json::json!({ "packages": [], "note": "other keys are ignored", "children": [
        { "packages": [SIX], "children": [
            { "packages": [DATEUTIL], "children": [{ "packages": [IDNA] }] },
            { "packages": [ATTRS], "children": [] },
        ] },
        { "packages": [IDNA] },
        { "packages": ["nobody-pins-this==1.0"], "children": [{ "packages": [SIX] }] },
    ] })
    .to_string()
}

#[test]
fn nodes_grow_on_first_use_from_root_to_leaf_and_each_function_gets_the_right_one() {
    let mut worker = site(Some(&three_levels()));
    probe(&worker, "deep", &[SIX, DATEUTIL, IDNA]);
    probe(&worker, "middle", &[SIX, DATEUTIL]);
    probe(&worker, "sibling", &[SIX, ATTRS]);
    probe(&worker, "short", &[IDNA]);
    probe(&worker, "without-six", &[DATEUTIL, ATTRS]);
    probe(&worker, "old", &[OLD_SIX]);
    probe(&worker, "bare", &[]);
    worker.up(&[]);
    assert_eq!(nodes(&worker).len(), 1, "nothing but the root before the first call");

    assert_eq!(before(&worker, "deep", &MODULES), ["six", "dateutil", "idna"]);
    let path: Vec<_> = nodes(&worker).iter().filter(|node| node.sandbox.is_some()).cloned().collect();
    let names: Vec<_> = path.iter().map(|node| node.packages.as_str()).collect();
    assert_eq!(names, ["", SIX, DATEUTIL, IDNA], "{path:#?}");
    assert!(path.iter().all(|node| node.forks == 1), "each forked the next, the last the leaf: {path:#?}");

    assert_eq!(before(&worker, "middle", &MODULES), ["six", "dateutil"]);
    assert_eq!(node(&worker, DATEUTIL).forks, 2);
    assert_eq!(before(&worker, "sibling", &MODULES), ["six", "attr"]);
    assert_eq!(node(&worker, ATTRS).parent.as_deref(), Some(SIX));
    // A node that has it, and more, does not serve; one below the root does.
    assert_eq!(before(&worker, "short", &MODULES), ["idna"]);
    // Its packages are in the tree, but below one that it did not pin.
    assert_eq!(before(&worker, "without-six", &MODULES), [] as [&str; 0]);
    assert_eq!(before(&worker, "old", &MODULES), [] as [&str; 0]);
    assert_eq!(before(&worker, "bare", &MODULES), [] as [&str; 0]);
    let all = nodes(&worker);
    assert_eq!(all.len(), 6, "no node twice, none for what nobody pins: {all:#?}");
    for (name, packages) in [("deep", vec![IDNA, DATEUTIL, SIX]), ("short", vec![IDNA]), ("bare", vec![])] {
        let seen = ask(&worker, name, "sorted(os.listdir('/packages'))").json();
        assert_eq!(seen, serde_json::json!(packages), "{name} sees its own packages and no other");
    }
    worker.down();
}

#[test]
fn a_name_without_a_version_is_grown_once_for_each_version_that_is_pinned() {
    let mut worker =
        site(Some(r#"{"children": [{"packages": ["six"], "children": [{"packages": ["IDNA"]}]}]}"#));
    let functions = [
        ("new", SIX, "1.16.0"),
        ("old", OLD_SIX, "1.15.0"),
        ("again", SIX, "1.16.0"),
        ("more", OLD_SIX, "1.15.0"),
    ];
    for (name, pin, _) in functions {
        let pins = if name == "more" { vec![pin, IDNA] } else { vec![pin] };
        probe(&worker, name, &pins);
    }
    worker.up(&[]);
    for (name, pin, version) in functions {
        assert!(before(&worker, name, &MODULES).contains(&"six".to_owned()), "{name}");
        let seen = "[__import__('six').__version__, sorted(os.listdir('/packages')), \
                    sys.modules['six'].__file__]";
        let seen = ask(&worker, name, seen).json();
        assert_eq!(seen[0], version, "{name}");
        assert!(seen[1].as_array().unwrap().contains(&pin.into()), "{name}: {seen}");
        let other = if pin == SIX { OLD_SIX } else { SIX };
        assert!(!seen.to_string().contains(other), "{name} sees another's version: {seen}");
    }
    let all = nodes(&worker);
    let count = |packages: &str| all.iter().filter(|node| node.packages == packages).count();
    assert_eq!((count(SIX), count(OLD_SIX), count(IDNA), all.len()), (1, 1, 1, 4), "{all:#?}");
    assert_eq!(node(&worker, IDNA).parent.as_deref(), Some(OLD_SIX));
    worker.down();
}

#[test]
fn a_tree_of_sixteen_levels_stands() {
    let (open, close) = (r#"{"packages": [], "children": ["#, "]}");
    let tree = format!("{}{{\"packages\": [\"six\"]}}{}", open.repeat(16), close.repeat(16));
    let mut worker = site(Some(&tree));
    probe(&worker, "deep", &[SIX]);
    worker.up(&[]);
    assert_eq!(before(&worker, "deep", &MODULES), ["six"]);
    assert_eq!(nodes(&worker).iter().filter(|node| node.sandbox.is_some()).count(), 17);
    worker.down();
}

#[test]
fn a_tree_that_cannot_be_is_refused_and_the_error_names_the_culprit() {
    let deep = format!("{}{{}}{}", r#"{"children": ["#.repeat(17), "]}".repeat(17));
    let cases = [
        (deep.as_str(), vec!["deeper than 16", "pid namespaces"]),
        (r#"{"packages": ["six=1.16.0"]}"#, vec!["six=1.16.0", "name==version"]),
        (r#"{"packages": ["six=="]}"#, vec!["six=="]),
        (r#"{"packages": ["../six"]}"#, vec!["../six"]),
        (r#"{"packages": "six"}"#, vec!["string \"six\"", "line 1"]),
        (r#"{"packages": ["six"], "children": [{"packages": [7]}]}"#, vec!["`7`", "line 1"]),
        ("[", vec!["not JSON", "line 1"]),
    ];
    for (tree, words) in cases {
        let worker = site(Some(tree));
        let said = worker.refused(&["up", "-d", "-o", "worker_port=0"]);
        for word in words.iter().chain(&["tree.json"]) {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
        worker.census();
    }
    let worker = site(Some("{}"));
    std::fs::remove_file(worker.path().join("tree.json")).unwrap();
    let said = worker.refused(&["up", "-d", "-o", "worker_port=0"]);
    assert!(said.contains("tree.json"), "{said}");
}
