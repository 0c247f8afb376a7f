//! What a build asks for, and how often.

use crate::index::{File, Index};
use crate::sources::{wheel, with_backend};
use crate::{deploy, refused, said, worker};

fn files(all: Vec<(String, Vec<u8>)>) -> Vec<(String, File)> {
    all.into_iter().map(|(name, content)| (name, content.into())).collect()
}

#[test]
fn what_a_build_needs_is_fetched_between_its_rounds() {
    let backend = r#"
import needed, deeper

def get_requires_for_build_wheel(settings=None):
    return ["asked>=2; python_version >= '3'"]

def look():
    import asked
    return [needed.SEEN, deeper.SEEN, asked.SEEN, os.path.dirname(asked.__file__).startswith("/out/env/")]
"#;
    let index = Index::new(files(vec![
        with_backend("evil", "1.0", "[\"needed >= 1\"]", backend),
        wheel("needed", "1.0", &["deeper"], "SEEN = 'needed'\n"),
        wheel("deeper", "0.3", &[], "SEEN = 'deeper'\n"),
        wheel("asked", "1.0", &[], "SEEN = 'too old'\n"),
        wheel("asked", "2.0", &[], "SEEN = 'asked'\n"),
    ]));
    let mut worker = worker(&index, "");
    let output = deploy(&worker, "a", "evil==1.0\n", "evil", &[]);
    assert!(output.status.success(), "{}", said(&output));
    worker.up(&[]);
    assert_eq!(worker.result("a", ""), serde_json::json!(["needed", "deeper", "asked", true]));
    let asked = index.asked();
    assert!(!asked.iter().any(|path| path.ends_with("asked-1.0-py3-none-any.whl")), "{asked:?}");
    worker.down();
}

#[test]
fn a_build_that_asks_for_ever_is_ended() {
    // The next one after the one that it was given.
    let backend = "def get_requires_for_build_wheel(settings=None):\n    \
                   from importlib.metadata import distributions\n    \
                   given = [d.metadata['Name'] for d in distributions() if d.metadata['Name'].startswith('more')]\n    \
                   return ['more%d' % (max([int(name[4:]) for name in given], default=0) + 1)]\n";
    let mut all: Vec<_> = (1..8).map(|n| wheel(&format!("more{n}"), "1", &[], "")).collect();
    all.push(with_backend("evil", "1.0", "[]", backend));
    let index = Index::new(files(all));
    let said = refused(&worker(&index, ""), "evil==1.0\n");
    assert!(said.contains("evil==1.0") && said.contains("something new 4 times"), "{said}");
}

#[test]
fn what_a_build_asks_for_is_a_name_with_versions_and_comes_as_a_wheel() {
    let asks = |version: &str, need: &str| {
        let backend = format!("def get_requires_for_build_wheel(settings=None):\n    return [{need:?}]\n");
        with_backend("evil", version, "[]", &backend)
    };
    let index = Index::new(files(vec![
        asks("1.0", "-r /etc/shadow"),
        asks("2.0", "x @ http://127.0.0.1:1/x-1-py3-none-any.whl"),
        asks("3.0", "absent"),
        asks("4.0", "sourceful"),
        with_backend("sourceful", "1.0", "[]", "import time\ntime.sleep(1000)\n"),
    ]));
    let worker = worker(&index, "");
    for (pin, parts) in [
        ("evil==1.0\n", ["-r /etc/shadow", "no name with versions"]),
        ("evil==2.0\n", ["x @ http", "no name with versions"]),
        ("evil==3.0\n", ["(absent)", "no package of that name"]),
        ("evil==4.0\n", ["(sourceful)", "cannot be had as wheels"]),
    ] {
        let said = refused(&worker, pin);
        assert!(
            said.contains(pin.trim()) && parts.iter().all(|part| said.contains(part)),
            "{parts:?} in {said}"
        );
    }
}
