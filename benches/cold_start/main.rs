//! What a start costs, end to end over HTTP, beside what others cost in the same
//! run, round by round. Needs root, and the package index for the first minute.
//!
//! ```text
//! HOSIER_BENCH_ROUNDS=20 cargo bench --bench cold_start
//! HOSIER_BENCH_FUNCTIONS=noop,pandas cargo bench --bench cold_start            these alone
//! HOSIER_BENCH_OPTIONS=zygote.gc_freeze=false cargo bench --bench cold_start   a mechanism off in every worker
//! ```
//!
//! | start | what it is |
//! |---|---|
//! | fresh | a new interpreter in a sandbox (`features.import_cache` off) |
//! | root | forked from the root zygote: packages are imported in the leaf (`zygote.max_nodes=1`) |
//! | node | forked from the zygote that has the function's packages |
//! | blank | the same, forked ahead of need where one was ready: after quiet, hardly ever back to back |
//! | prefault | and the pages that earlier leaves touched are there: what a worker does unless told otherwise |
//! | snapshot | and the zygote has the handler imported (`snapshot: true`) |
//! | unpaused, warm | the sandbox of the call before, frozen or not |
//! | fork | bare `os.fork()` of a plain interpreter with the same imports, and the handler's first call |
//! | forkserver | `multiprocessing`'s, with the same preload |
//! | python3 | a new plain process: imports with bytecode ready, and the first call |
//! | bwrap, crun, runc, docker | the same process in other people's sandboxes, where they run (`make bench-peers`) |
//!
//! `engine50` is the sum of the steps that the worker measured itself, so without HTTP. Where it
//! is slow to hear of a leaf's step, that overlaps with the next one, and the sum is above the whole.

mod kind;
mod row;
#[path = "../support/mod.rs"]
mod support;

use kind::Kind;
use row::Row;
use support::baselines::Baselines;
use support::functions::{self, Function};
use support::peers::{Peer, Tool};
use support::report::report;
use support::worker::Worker;
use support::workers::{beside, home};

/// One for each way to start: what is ready ahead of need is not shared.
struct Workers {
    home: Worker,
    fresh: Worker,
    root: Worker,
    node: Worker,
    blank: Worker,
    prefault: Worker,
    snapshot: Worker,
    paused: Worker,
}

fn main() {
    let rounds = support::rounds(50);
    let functions = functions::chosen();
    let workers = Workers::up(&functions);
    let mut results = Vec::new();
    for function in functions {
        let mut baselines = Baselines::new(&workers.home, function);
        let (mut rows, skipped) = rows(&workers, function, &baselines);
        for round in 0..rounds {
            eprint!("\r{} {}/{rounds} ", function.name, round + 1);
            for row in &mut rows {
                row.measure(&mut baselines);
            }
        }
        eprintln!();
        row::print(function, &rows);
        for (name, why) in &skipped {
            println!("{name:12}skipped: {why}");
            results.push(serde_json::json!({ "function": function.name, "start": name, "skipped": why }));
        }
        results.extend(rows.iter().map(|row| row.json(function)));
    }
    report("cold_start", results.into());
    workers.down();
}

impl Workers {
    fn up(functions: &[Function]) -> Self {
        let home = home(functions);
        let awake = |options: &[&str]| {
            let awake = ["sandbox.pause_after_ms=60000"];
            beside(&home, &awake.iter().chain(options).copied().collect::<Vec<_>>())
        };
        Self {
            fresh: awake(&["features.import_cache="]),
            root: awake(&["zygote.max_nodes=1"]),
            node: awake(&[]),
            blank: awake(&["zygote.blanks=4,zygote.prefault=false"]),
            prefault: awake(&["zygote.blanks=4"]),
            snapshot: awake(&["zygote.blanks=4"]),
            paused: beside(&home, &["sandbox.pause_after_ms=0"]),
            home,
        }
    }

    fn down(&self) {
        let Self { home: _, fresh, root, node, blank, prefault, snapshot, paused } = self;
        for worker in [fresh, root, node, blank, prefault, snapshot, paused] {
            worker.down();
        }
    }
}

/// What is measured, and what cannot be here.
fn rows(
    workers: &Workers,
    function: Function,
    baselines: &Baselines,
) -> (Vec<Row>, Vec<(&'static str, String)>) {
    let (once, name) = (function.once(), function.name.to_owned());
    // Back to back no blank is ready in time: then that is what a start is.
    let ahead = &["blank", "forked", "snapshot"];
    let mut rows = vec![
        Row::slow("fresh", Kind::hosier(&workers.fresh, once.clone(), &["fresh"])),
        Row::new("root", function.packages, Kind::hosier(&workers.root, once.clone(), &["forked"])),
    ];
    if function.packages {
        rows.push(Row::fast("node", Kind::hosier(&workers.node, once.clone(), &["forked"])));
    }
    rows.extend([
        Row::fast("blank", Kind::hosier(&workers.blank, once.clone(), ahead)),
        Row::fast("prefault", Kind::hosier(&workers.prefault, once, ahead)),
        Row::fast("snapshot", Kind::hosier(&workers.snapshot, function.snapshot(), ahead)),
        Row::fast("unpaused", Kind::hosier(&workers.paused, name.clone(), &["unpaused"])),
        Row::fast("warm", Kind::hosier(&workers.node, name, &["warm"])),
        Row::fast("fork", Kind::Fork("fork")),
        Row::fast("forkserver", Kind::Fork("forkserver")),
        Row::slow("python3", Kind::Python),
    ]);
    let mut skipped = Vec::new();
    for tool in Tool::ALL {
        match Peer::new(tool, function, baselines.places()) {
            Ok(peer) => rows.push(Row::slow(tool.name(), Kind::Peer(peer))),
            Err(why) => skipped.push((tool.name(), why)),
        }
    }
    (rows, skipped)
}
