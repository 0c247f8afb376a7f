//! Which modules are a function's own, and which node it asks for. No process, no file.

use super::*;

fn set(names: &[&str]) -> Modules {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn list(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn own(imported: &[&str], taken: &[&str]) -> OwnModules {
    OwnModules::new(Head { imported: set(imported), taken: set(taken) })
}

fn packages() -> Modules {
    set(&["PIL", "numpy", "google.protobuf"])
}

fn next(own: &OwnModules, node: &[&str], seen: &[&str]) -> Option<Modules> {
    own.ask(&set(node), own.see(&list(seen), &packages()))
}

#[test]
fn what_a_package_brings_along_is_known_by_its_version_alone() {
    let of = |pin: &str| usual(&pin.parse().unwrap()).len();
    assert_eq!((of("numpy==2.2.6"), of("numpy==1.26.4"), of("numpy-other==2.0")), (1, 0, 0));
    assert_eq!((of("pillow==11.3.0"), of("Pillow==8.0"), of("six==1.16.0")), (5, 5, 0));
}

#[test]
fn what_the_head_imports_is_the_function_s_own_before_it_ever_ran() {
    let own = own(&["PIL", "PIL.Image"], &["PIL.ImageFilter"]);
    assert_eq!(*own.all(), set(&["PIL", "PIL.Image"]), "what is taken may be no module");
}

#[test]
fn what_a_leaf_was_seen_to_import_is_too() {
    let own = own(&[], &[]);
    assert!(own.all().is_empty());
    next(&own, &[], &["PIL.Image", "PIL._imaging"]);
    assert_eq!(*own.all(), set(&["PIL.Image", "PIL._imaging"]));
}

#[test]
fn a_node_is_told_what_the_head_says_and_the_rest_comes_along() {
    let seen = ["PIL.Image", "PIL._imaging", "PIL.ImageMode"];
    assert_eq!(next(&own(&["PIL.Image"], &[]), &[], &seen), Some(set(&["PIL.Image"])));
    assert_eq!(next(&own(&[], &["PIL.Image"]), &[], &seen), Some(set(&["PIL.Image"])));
    assert_eq!(next(&own(&[], &[]), &[], &seen), Some(set(&seen)), "no head: all that was seen");
}

#[test]
fn what_the_head_does_not_say_is_added_in_a_second_node() {
    let own = own(&["PIL.Image"], &[]);
    assert_eq!(next(&own, &[], &["PIL.Image", "numpy.random"]), Some(set(&["PIL.Image"])));
    let second = next(&own, &["PIL.Image"], &["numpy.random"]);
    assert_eq!(second, Some(set(&["PIL.Image", "numpy.random"])));
    assert_eq!(next(&own, &["PIL.Image", "numpy.random"], &[]), None, "nothing is left to import");
}

#[test]
fn only_what_is_below_the_node_s_packages_counts() {
    let bad =
        ["os", "wave", "PIL", "google", "google.protobuf", "google.other", "PILx.a", "PIL..x", "PIL.a/b"];
    let own = own(&["wave", "PIL.absent"], &["os.path"]);
    assert_eq!(next(&own, &[], &bad), None);
    assert_eq!(*own.all(), set(&["PIL.absent", "wave"]), "of the head alone");
    assert_eq!(next(&own, &[], &["google.protobuf.json_format"]).map(|wanted| wanted.len()), Some(1));
}

#[test]
fn a_name_that_the_head_claims_and_no_leaf_imported_is_told_to_no_node() {
    let own = own(&["PIL.absent", "PIL.Image"], &[]);
    assert_eq!(next(&own, &[], &["PIL.Image"]), Some(set(&["PIL.Image"])));
}

#[test]
fn a_leaf_that_names_thousands_of_modules_is_bounded() {
    let own = own(&[], &[]);
    for round in 0..10 {
        let names: Vec<_> = (0..10_000).map(|n| format!("PIL.m{round}_{n}")).collect();
        let wanted = own.ask(&Modules::new(), own.see(&names, &packages()));
        assert!(wanted.is_none_or(|wanted| wanted.len() <= NAMES));
        assert!(own.all().len() <= NAMES);
    }
    assert_eq!(next(&own, &[], &[&format!("PIL.{}", "a".repeat(NAME_BYTES))]), None);
}

#[test]
fn a_version_that_imports_something_else_each_time_has_few_nodes_grown() {
    let own = own(&[], &[]);
    let asked = |n: usize| next(&own, &[], &[&format!("PIL.m{n}")]);
    assert_eq!((0..100).filter(|n| asked(*n).is_some()).count(), NODES);
    assert!(asked(0).is_some(), "one that was asked for may be grown again");
}

#[test]
fn the_head_of_a_file_is_json_within_bounds_or_nothing() {
    let head = Head::parse(br#"{"imported": ["PIL", "PIL.Image", "a b", ""], "taken": ["numpy.array"]}"#);
    assert_eq!(head, Head { imported: set(&["PIL", "PIL.Image"]), taken: set(&["numpy.array"]) });
    let bad: [&[u8]; 4] = [b"", b"[]", br#"{"imported": 7}"#, b"\xff{}"];
    assert!(bad.iter().all(|text| Head::parse(text) == Head::default()));
    let many: Vec<_> = (0..10_000).map(|n| format!("m{n}")).collect();
    let head = Head::parse(serde_json::json!({ "imported": many }).to_string().as_bytes());
    assert_eq!(head.imported.len(), NAMES);
}
