//! Nodes of modules: what a function imports below its packages' top level, a node imports for those who
//! import it themselves. What one function may do to another by that is the influence suite's.

use std::time::Duration;

use crate::site::{ONE_SHOT, fixture_tree, node, nodes, site};
use crate::support::{Worker, wait_until};

const BOUND: Duration = Duration::from_secs(20);

/// Whether a module was there before the function's own code ran.
const BEFORE: &str = "
def f(event):
    import sys
    known = list(sys.modules)
    here = known.index('f')
    return [name in known[:here] for name in event['modules']]
";

/// A package of this name, with modules that import each other, read their environment, fail in a node.
fn package(name: &str) -> String {
    let files = [
        ("__init__.py", ""),
        ("image.py", &format!("from . import mode\nimport {name}.mode\n")),
        ("mode.py", "VALUE = 1\n"),
        ("filter.py", "from . import mode\n"),
        ("late.py", "VALUE = 2\n"),
        (
            "shy.py",
            "import os\nif 'HOSIER_FUNCTION' not in os.environ:\n    raise OSError('not in a node')\n",
        ),
    ];
    fixture_tree(name, &files)
}

/// Deploys a function whose module begins with these statements.
fn deploy(worker: &Worker, name: &str, pin: &str, head: &str) {
    deploy_files(worker, name, pin, &[("f.py", &format!("{head}{BEFORE}"))], ONE_SHOT);
}

fn deploy_files(worker: &Worker, name: &str, pin: &str, files: &[(&str, &str)], config: &str) {
    worker.deploy(name, &[files, &[("requirements.txt", pin), ("ol.yaml", config)]].concat());
}

/// Which of these modules the function's node had.
fn had(worker: &Worker, name: &str, modules: &[&str]) -> Vec<bool> {
    let answer = worker.call(name, &serde_json::json!({ "modules": modules }).to_string());
    assert_eq!(answer.status, 200, "{name}: {answer:?}\n{}", worker.get("/debug").body);
    serde_json::from_str(&answer.body).unwrap()
}

fn stands(worker: &Worker, modules: &str) -> bool {
    nodes(worker).iter().any(|node| node.packages == modules && node.sandbox.is_some())
}

#[test]
fn a_node_has_what_a_function_imports_for_who_imports_it_too_and_replaces_none() {
    let mut worker = site(None);
    let pin = package("learnta");
    let all = ["learnta.image", "learnta.mode", "learnta.filter"];
    deploy(&worker, "image", &pin, "import learnta.image\n");
    deploy(&worker, "same", &pin, "'A text.'\nimport json\nfrom learnta.image import mode\n");
    deploy(&worker, "more", &pin, "import sys\nimport learnta.filter, learnta.image\n");
    deploy(&worker, "plain", &pin, "import learnta\n");
    deploy(&worker, "later", &pin, "import learnta\nX = 1\nimport learnta.image\n");
    worker.up(&["zygote.blanks=2"]);
    assert_eq!(had(&worker, "image", &all), [false; 3]);
    let first = node(&worker, &pin).sandbox;
    wait_until("a node below has it", BOUND, || stands(&worker, "+learnta.image"));
    assert_eq!(had(&worker, "image", &all), [true, true, false], "its second start");
    assert_eq!(node(&worker, "+learnta.image").parent.as_deref(), Some(&*pin));
    // The head of its file says so: from its first start on.
    assert_eq!(had(&worker, "same", &all), [true, true, false]);
    assert_eq!(had(&worker, "plain", &all), [false; 3]);
    // Not at the head: what was before it may change what it does. Its own leaf shows that it is imported.
    assert_eq!(had(&worker, "later", &all), [false; 3]);
    wait_until("it was seen to", BOUND, || had(&worker, "later", &all) == [true, true, false]);
    assert_eq!(had(&worker, "more", &all), [true, true, false], "what it imports besides, it imports itself");
    wait_until("both are there", BOUND, || had(&worker, "more", &all) == [true; 3]);
    assert_eq!(had(&worker, "image", &all), [true, true, false], "not the other's");
    assert_eq!(had(&worker, "plain", &all), [false; 3]);
    assert_eq!(node(&worker, &pin).sandbox, first, "the package's own node is the one that it was");
    assert_eq!(nodes(&worker).iter().filter(|node| node.packages.starts_with('+')).count(), 2);
    worker.down();
}

#[test]
fn what_other_files_of_a_function_import_is_its_own_too_and_what_its_calls_import_is_not() {
    let mut worker = site(None);
    let pin = package("learntb");
    let code = format!("import learntb.filter\nimport part\n{BEFORE}\n    import learntb.late\n");
    let code = code.replace("    return", "    import learntb.late\n    return");
    deploy_files(&worker, "f", &pin, &[("f.py", &code), ("part.py", "import learntb.image\n")], ONE_SHOT);
    worker.up(&[]);
    let all = ["learntb.filter", "learntb.image", "learntb.late"];
    wait_until("a node has all of it", BOUND, || had(&worker, "f", &all) == [true, true, false]);
    for _ in 0..8 {
        assert_eq!(had(&worker, "f", &all), [true, true, false]);
    }
    worker.down();
}

#[test]
fn a_leaf_cannot_have_a_node_import_what_is_not_of_its_packages() {
    let mut worker = site(None);
    let pin = package("learntc");
    let lie = "import sys, wave\nimport learntc.image\n\
        for name in ('six', 'learntc.absent', 'learntd.image'):\n    \
            module = sys.modules[name] = type(sys)(name)\n    module.__file__ = '/packages/x/files/x.py'\n";
    deploy(&worker, "liar", &pin, lie);
    deploy(&worker, "f", &pin, "import learntc.image\n");
    worker.up(&[]);
    let all = ["learntc.image", "wave", "six", "learntd.image", "learntc.absent"];
    for _ in 0..6 {
        had(&worker, "liar", &all);
        std::thread::sleep(Duration::from_millis(30));
    }
    assert!(!worker.get("/debug").body.contains("+six"), "{}", worker.get("/debug").body);
    wait_until("who tells no lie has its node", BOUND, || had(&worker, "f", &all)[0]);
    assert_eq!(had(&worker, "f", &all), [true, false, false, false, false]);
    worker.down();
}

#[test]
fn a_module_that_cannot_be_imported_in_a_node_is_imported_in_leaves_and_the_reason_is_shown() {
    let mut worker = site(None);
    let pin = package("learnte");
    deploy(&worker, "f", &pin, "import learnte.shy\n");
    worker.up(&[]);
    let reason = "learnte.shy: OSError: not in a node";
    let shown = || {
        assert_eq!(had(&worker, "f", &["learnte.shy"]), [false]);
        worker.get("/debug").body.contains(reason)
    };
    wait_until("it is unfit", BOUND, shown);
    assert!(node(&worker, "+learnte.shy").state.starts_with("unfit"));
    assert_eq!(had(&worker, "f", &["learnte.shy"]), [false]);
    worker.down();
}

#[test]
fn a_node_of_modules_gives_its_room_to_a_node_of_packages() {
    let mut worker = site(None);
    let (one, other) = (package("learntf"), package("learntg"));
    deploy_files(&worker, "warm", &one, &[("f.py", &format!("import learntf.image\n{BEFORE}"))], "");
    deploy(&worker, "once", &one, "import learntf.image\n");
    deploy(&worker, "f", &other, "import learntg.image\n");
    // Room for the root, one node of packages and one more.
    worker.up(&["zygote.max_nodes=3", "zygote.blanks=2"]);
    had(&worker, "once", &[]);
    wait_until("a node of modules stands", BOUND, || stands(&worker, "+learntf.image"));
    // Its leaf stays, and so do blanks.
    assert_eq!(had(&worker, "warm", &["learntf.image"]), [true]);
    had(&worker, "f", &[]);
    let names: Vec<_> = nodes(&worker).into_iter().map(|node| node.packages).collect();
    assert_eq!(names, ["", &*one, &*other], "{}", worker.get("/debug").body);
    assert_eq!(had(&worker, "warm", &["learntf.image"]), [true], "the leaf lives on");
    for _ in 0..4 {
        had(&worker, "f", &[]);
        std::thread::sleep(Duration::from_millis(30));
    }
    assert_eq!(nodes(&worker).len(), 3, "and it takes no room from one: {}", worker.get("/debug").body);
    worker.down();
}

#[test]
fn a_node_of_modules_that_is_killed_costs_no_request_and_comes_back() {
    let mut worker = site(None);
    let pin = package("learnth");
    deploy(&worker, "f", &pin, "import learnth.image\n");
    worker.up(&[]);
    had(&worker, "f", &[]);
    wait_until("it stands", BOUND, || stands(&worker, "+learnth.image"));
    let (_, interpreter) = crate::site::pids(&worker, "+learnth.image");
    crate::support::kill(interpreter);
    wait_until("it comes back", BOUND, || had(&worker, "f", &["learnth.image"]) == [true]);
    worker.down();
}

#[test]
fn a_function_with_a_node_of_its_own_has_no_node_of_modules_grown() {
    let mut worker = site(None);
    let pin = package("learnti");
    let code = format!("import learnti.image\n{BEFORE}");
    deploy_files(&worker, "f", &pin, &[("f.py", &code)], "reuse-sandbox: false\nsnapshot: true\n");
    worker.up(&[]);
    let served = || worker.call("f", r#"{"modules": []}"#).start() == "snapshot";
    wait_until("its own node serves it", BOUND, served);
    assert!(!worker.get("/debug").body.contains("[+"), "{}", worker.get("/debug").body);
    worker.down();
}

#[test]
fn learning_can_be_switched_off() {
    let mut worker = site(None);
    let pin = package("learntj");
    deploy(&worker, "f", &pin, "import learntj.image\n");
    worker.up(&["zygote.learn=false"]);
    for _ in 0..8 {
        assert_eq!(had(&worker, "f", &["learntj.image"]), [false]);
    }
    assert!(!worker.get("/debug").body.contains("[+"));
    worker.down();
}
