//! What one function imports changes nothing for another: pairs of functions on one package node, the first
//! absent, benign or hostile. Starts workers; needs root.
//!
//! ```text
//! A  import pkg.patch ─▶ json.dumps, sys.meta_path, warnings, … of whoever imports it
//! B  import pkg       ─▶ its answers and its modules: the same with each A
//! ```

mod support;

#[path = "tree/site.rs"]
#[allow(dead_code, reason = "the tree's suite uses the rest")]
mod site;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use site::{ONE_SHOT, fixture_tree, site};
use support::Worker;

/// Calls of each function, by turns.
const ROUNDS: usize = 12;

/// A module that changes what others rely on, as a package's own `patch_all()` at import would.
const PATCH: &str = "
import atexit, builtins, json, os, sys, warnings
plain = json.dumps
json.dumps = lambda value, *rest, **named: plain({'patched': value}, *rest, **named)
class Finder:
    def find_spec(self, *given): return None
sys.meta_path.insert(0, Finder())
warnings.simplefilter('error')
atexit.register(print)
builtins.meddled = True
sys.setrecursionlimit(777)
os.environ['MEDDLED'] = '1'
";

/// And this one shows only after a fork.
const HOOK: &str = "
import builtins, os
os.register_at_fork(after_in_child=lambda: setattr(builtins, 'forked', True))
";

/// What a function can see of all this, by the functions that it calls and by its modules.
const SEEN: &str = "
def seen():
    import atexit, builtins, json, sys, warnings
    return {'dumps': json.dumps([1]), 'finders': len(sys.meta_path), 'filters': len(warnings.filters),
        'exits': atexit._ncallbacks(), 'builtins': sorted(dir(builtins)), 'depth': sys.getrecursionlimit(),
        'modules': sorted(sys.modules)}
";

/// A package of this name: next to nothing at its top, and modules below it.
fn package(name: &str) -> String {
    let files = [
        ("__init__.py", "def tool():\n    return 'a function'\n"),
        ("patch.py", PATCH),
        ("hook.py", HOOK),
        ("plain.py", "import colorsys, calendar\nVALUE = 1\n"),
        ("tool.py", "VALUE = 3\n"),
    ];
    fixture_tree(name, &files)
}

fn importing(module: &str) -> String {
    format!("import {module}\ndef f(event):\n    return 1\n")
}

/// Where B runs, and what is asked of its starts.
struct Stage<'a> {
    pin: &'a str,
    /// The operator's tree file.
    tree: Option<&'a str>,
    /// The `ol.yaml` of B.
    config: &'a str,
    /// A kind of start that B must have had.
    start: &'a str,
}

impl<'a> Stage<'a> {
    fn of(pin: &'a str) -> Self {
        Self { pin, tree: None, config: ONE_SHOT, start: "blank" }
    }
}

/// The answers of B beside A, which is not there at all if it has no code.
fn answers(stage: &Stage<'_>, a: Option<&str>, b: &str) -> BTreeSet<String> {
    let mut worker = site(stage.tree);
    let deploy = |worker: &Worker, name: &str, code: &str, config: &str| {
        let code = format!("{code}{SEEN}");
        worker.deploy(name, &[("f.py", &code), ("requirements.txt", stage.pin), ("ol.yaml", config)]);
    };
    if let Some(a) = a {
        deploy(&worker, "a", a, ONE_SHOT);
    }
    deploy(&worker, "b", b, stage.config);
    worker.up(&["zygote.blanks=2", "zygote.grow_wait_ms=60000"]);
    let (mut all, mut starts) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..ROUNDS {
        if a.is_some() {
            let answer = worker.call("a", "{}");
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        let answer = worker.call("b", &json!({ "round": round }).to_string());
        assert_eq!(answer.status, 200, "{answer:?}");
        starts.insert(answer.start().to_owned());
        all.insert(answer.body);
        // Nodes are grown, and blanks made, away from the path: each round gives them time.
        std::thread::sleep(Duration::from_millis(40));
    }
    assert!(starts.contains(stage.start), "B was never {}: {starts:?}", stage.start);
    // The test could not fail if no node had imported what A does.
    if let Some(a) = a {
        let module = a.lines().next().unwrap().rsplit(' ').next().unwrap();
        let debug = worker.get("/debug").body;
        assert!(debug.contains(&format!("[+{module}] sandbox ")), "no node with {module}:\n{debug}");
    }
    worker.down();
    all
}

/// B's answers are one and the same, whichever A is beside it; they are returned.
fn same_beside_each(stage: &Stage<'_>, others: &[&str], b: &str) -> Value {
    let alone = answers(stage, None, b);
    assert_eq!(alone.len(), 1, "B alone does not answer alike: {alone:#?}");
    for module in others {
        assert_eq!(answers(stage, Some(&importing(module)), b), alone, "beside who imports {module}");
    }
    serde_json::from_str(alone.first().unwrap()).unwrap()
}

fn has(seen: &Value, module: &str) -> bool {
    seen["modules"].as_array().unwrap().contains(&module.into())
}

#[test]
fn a_function_that_imports_the_package_alone_has_nothing_of_the_others_modules() {
    let pin = package("meddlera");
    let b = "import meddlera\ndef f(event):\n    return seen()\n";
    let seen = same_beside_each(&Stage::of(&pin), &["meddlera.plain", "meddlera.patch", "meddlera.hook"], b);
    assert_eq!(seen["dumps"], "[1]");
    assert!(has(&seen, "meddlera") && !has(&seen, "meddlera.plain") && !has(&seen, "colorsys"), "{seen}");
}

#[test]
fn what_a_handler_imports_when_it_is_called_is_not_there_before() {
    let pin = package("meddlerb");
    let b = "def f(event):\n    found = seen()\n    import meddlerb.patch\n    return found\n";
    let seen = same_beside_each(&Stage::of(&pin), &["meddlerb.plain", "meddlerb.patch"], b);
    assert!(!has(&seen, "meddlerb.patch"), "{seen}");
}

#[test]
fn a_function_that_imports_the_same_module_accepts_what_it_does() {
    let pin = package("meddlerc");
    let b = "import meddlerc.plain, meddlerc.patch\ndef f(event):\n    return seen()\n";
    let seen = same_beside_each(&Stage::of(&pin), &["meddlerc.plain", "meddlerc.patch"], b);
    // The answer itself went through it.
    let seen = &seen["patched"];
    assert_eq!(seen["dumps"], r#"{"patched": [1]}"#);
    assert!(has(seen, "meddlerc.plain") && has(seen, "colorsys"), "{seen}");
}

#[test]
fn a_name_that_is_taken_out_of_a_package_is_no_module_of_that_name() {
    let pin = package("meddlerd");
    let b = "from meddlerd import tool\ndef f(event):\n    return [tool(), seen()]\n";
    let seen = same_beside_each(&Stage::of(&pin), &["meddlerd.plain", "meddlerd.tool"], b);
    assert_eq!(seen[0], "a function");
    assert!(!has(&seen[1], "meddlerd.tool"), "{seen}");
}

#[test]
fn a_function_with_a_snapshot_and_one_below_a_tree_file_are_as_alone() {
    let pin = package("meddlere");
    let b = "import meddlere\nX = 1\nimport meddlere.plain\ndef f(event):\n    return seen()\n";
    let config = "reuse-sandbox: false\nsnapshot: true\n";
    let snapshot = Stage { config, start: "snapshot", ..Stage::of(&pin) };
    let seen = same_beside_each(&snapshot, &["meddlere.patch"], b);
    assert!(has(&seen, "meddlere.plain") && !has(&seen, "meddlere.patch"), "{seen}");
    let tree = Stage { tree: Some(r#"{"children": [{"packages": ["meddlere"]}]}"#), ..Stage::of(&pin) };
    let seen = same_beside_each(&tree, &["meddlere.patch"], b);
    assert!(has(&seen, "meddlere.plain") && !has(&seen, "meddlere.patch"), "{seen}");
}
