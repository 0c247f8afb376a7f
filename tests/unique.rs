//! Siblings are unlike: a thousand leaves of one node, which had drawn from every
//! source of random numbers and names before they were forked, draw from each. No two
//! draw the same; what cannot differ does not (docs/design/0007).
//!
//! ```text
//! node: import sources.py (draws from each) ─┬▶ leaf: draw from each ─┐
//!                                            ├▶ leaf: draw from each ─┼▶ a set a source, as large as the leaves are many
//!                                            └▶ …                    ─┘
//! ```

mod support;

#[allow(dead_code, reason = "made for another suite")]
#[path = "tree/site.rs"]
mod site;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use site::{fixture, node, site};
use support::Worker;

/// What `sources.py` draws from. Each is installed without what it asks for, so all are named.
const PINS: [&str; 11] = [
    "cffi==2.0.0",
    "cryptography==46.0.3",
    "grpcio==1.76.0",
    "numpy==1.26.4",
    "pandas==2.2.3",
    "pycparser==2.23",
    "python-dateutil==2.9.0.post0",
    "pytz==2024.2",
    "six==1.16.0",
    "typing-extensions==4.15.0",
    "tzdata==2024.2",
];
const CONFIG: &str = "reuse-sandbox: false\nlimits:\n  mem_mb: 500\n  procs: 64\n";
const HANDLER: &str = "import sys\nHAD = 'drawsfromall' in sys.modules\nimport drawsfromall\n\
    def f(event):\n    assert HAD\n    return [drawsfromall.draw(event['grpc']), [drawsfromall.OWN.random(), hash('siblings'), \
    id(None)]]\n";
const CLIENTS: usize = 4;
/// One sibling in so many draws from grpcio too, which starts threads and takes as long as all others together.
const GRPC: usize = 5;

/// What siblings drew, and how they came to be.
#[derive(Default)]
struct Drawn {
    /// By source.
    unlike: BTreeMap<String, Vec<String>>,
    /// What is the same in all.
    alike: BTreeSet<String>,
    starts: BTreeMap<String, usize>,
}

fn worker(options: &[&str]) -> Worker {
    let pin = fixture("drawsfromall", include_str!("unique/sources.py"));
    let mut worker = site(None);
    let pins = [&PINS[..], &[pin.as_str()]].concat().join("\n");
    worker.deploy("draw", &[("f.py", HANDLER), ("requirements.txt", &pins), ("ol.yaml", CONFIG)]);
    // One zygote, from the first leaf to the last: they are to be siblings.
    let one = ["zygote.replicas=1", "zygote.learn=false", "zygote.max_forks=0", "zygote.grow_wait_ms=60000"];
    worker.up(&[&one, options].concat());
    worker
}

/// Cold starts of so many siblings, by clients side by side.
fn draw(worker: &Worker, siblings: usize) -> Drawn {
    let (next, drawn) = (AtomicUsize::new(0), Mutex::new(Drawn::default()));
    let client = || {
        while let number = next.fetch_add(1, Ordering::Relaxed)
            && number < siblings
        {
            let event = serde_json::json!({ "grpc": number % GRPC == 0 }).to_string();
            let answer = worker.call("draw", &event);
            assert_eq!(answer.status, 200, "{answer:?}");
            let said = answer.json();
            let mut drawn = drawn.lock().unwrap();
            for (source, value) in said[0].as_object().unwrap() {
                drawn.unlike.entry(source.clone()).or_default().push(value.to_string());
            }
            drawn.alike.insert(said[1].to_string());
            *drawn.starts.entry(answer.start().to_owned()).or_default() += 1;
        }
    };
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(client);
        }
    });
    drawn.into_inner().unwrap()
}

fn expect_unlike(worker: &Worker, drawn: &Drawn, siblings: usize) {
    assert!(drawn.unlike.len() > 20, "{:?}", drawn.unlike.keys());
    for (source, values) in &drawn.unlike {
        let grpc = source.starts_with("grpcio");
        assert_eq!(values.len(), if grpc { siblings.div_ceil(GRPC) } else { siblings }, "{source}");
        let different: BTreeSet<_> = values.iter().collect();
        assert_eq!(different.len(), values.len(), "{source} is the same in siblings");
    }
    // The control, and a fact that is documented: a package's own generator without a hook, the seed of
    // string hashes and the addresses are their node's.
    assert_eq!(drawn.alike.len(), 1, "{:?}", drawn.alike);
    assert!(node(worker, &packages()).forks >= siblings as u64, "all of them are siblings");
}

fn packages() -> String {
    let mut pins: Vec<_> = PINS.into_iter().chain(["drawsfromall==1.0"]).collect();
    pins.sort_unstable();
    pins.join(" ")
}

#[test]
fn a_thousand_siblings_from_blanks_and_twenty_sources_without_a_duplicate() {
    let worker = worker(&["zygote.blanks=6"]);
    let drawn = draw(&worker, 1000);
    expect_unlike(&worker, &drawn, 1000);
    assert!(drawn.starts["blank"] > 100, "{:?}", drawn.starts);
    worker.down();
}

#[test]
fn siblings_that_are_forked_on_the_path_draw_no_duplicate() {
    let worker = worker(&["zygote.blanks=0", "zygote.solidify=false"]);
    let drawn = draw(&worker, 60);
    expect_unlike(&worker, &drawn, 60);
    assert_eq!(drawn.starts["forked"], 60, "{:?}", drawn.starts);
    worker.down();
}

/// Caches of pids, names and descriptors that CPython does not empty after a fork.
#[test]
fn a_leaf_finds_no_pid_name_or_loop_of_its_node() {
    let code = "import asyncio, multiprocessing, platform, threading, uuid, warnings\nuuid.uuid1()\nNODE = \
                uuid.getnode()\nNAME = platform.node()\nKEY = bytes(multiprocessing.current_process().authkey)\n\
                with warnings.catch_warnings():\n    warnings.simplefilter('ignore')\n    LOOP = \
                asyncio.get_event_loop_policy().new_event_loop()\n    asyncio.set_event_loop(LOOP)\n";
    let pin = fixture("fillscaches", code);
    let mut worker = site(None);
    site::probe(&worker, "look", &[&pin]);
    worker.up(&[]);
    let look = "(lambda own, module: [module('threading').main_thread().native_id, \
                module('threading').get_native_id(), module('multiprocessing').current_process().pid, \
                module('logging').makeLogRecord({}).process, \
                module('platform').node() == module('os').uname().nodename, \
                own.NAME == module('platform').node(), own.NODE == module('uuid').getnode(), \
                own.KEY == bytes(module('multiprocessing').current_process().authkey), \
                module('asyncio').run(module('asyncio').sleep(0, 5)), \
                getattr(module('asyncio').get_event_loop_policy()._local, '_loop', None) is own.LOOP, \
                module('multiprocessing').current_process().name])(sys.modules['fillscaches'], __import__)";
    let seen = site::ask(&worker, "look", look).json();
    let expected = serde_json::json!([1, 1, 1, 1, true, false, false, false, 5, false, "MainProcess"]);
    assert_eq!(seen, expected);
    worker.down();
}

#[test]
fn a_global_generator_that_a_package_chose_is_replaced_by_one_of_its_kind() {
    let code = "import numpy\nnumpy.random.set_bit_generator(numpy.random.PCG64())\n";
    let pin = fixture("choosesgenerator", code);
    let mut worker = site(None);
    site::probe_with(
        &worker,
        "look",
        &[&pin, "numpy==1.26.4"],
        "reuse-sandbox: false\nlimits: {mem_mb: 200}\n",
    );
    worker.up(&[]);
    let look = "(lambda random: [type(random.get_bit_generator()).__name__, random.random()])\
                (sys.modules['choosesgenerator'].numpy.random)";
    let seen = [0; 5].map(|_| site::ask(&worker, "look", look).json());
    assert!(seen.iter().all(|seen| seen[0] == "PCG64"), "{seen:?}");
    let different: BTreeSet<_> = seen.iter().map(|seen| seen[1].to_string()).collect();
    assert_eq!(different.len(), seen.len(), "{seen:?}");
    worker.down();
}

#[test]
fn a_leaf_has_the_time_zone_that_its_function_asks_for() {
    let mut worker = site(None);
    site::probe_with(&worker, "far", &[], "environment: {TZ: Far-5}\n");
    site::probe(&worker, "here", &[]);
    worker.up(&[]);
    let hour = |name| site::ask(&worker, name, "[time.localtime(0).tm_hour, time.tzname[0]]").json();
    assert_eq!(hour("far"), serde_json::json!([5, "Far"]));
    assert_eq!(hour("here"), serde_json::json!([0, "UTC"]));
    worker.down();
}
