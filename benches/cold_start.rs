//! What a start costs, end to end over HTTP, beside what others cost in the same
//! run, round by round. Needs root, and the package index for the first minute.
//!
//! ```text
//! HOSIER_BENCH_ROUNDS=20 cargo bench --bench cold_start
//! HOSIER_BENCH_OPTIONS=zygote.prefault=false cargo bench --bench cold_start    a mechanism off in every worker
//! ```
//!
//! | start | what it is |
//! |---|---|
//! | fresh | a new interpreter in a sandbox (`features.import_cache` off) |
//! | root | forked from the root zygote: packages are imported in the leaf (`zygote.max_nodes=1`) |
//! | node | forked from the zygote that has the function's packages |
//! | blank | the same, forked ahead of need where one was ready: after quiet, hardly ever back to back |
//! | unpaused, warm | the sandbox of the call before, frozen or not |
//! | fork | bare `os.fork()` of a plain interpreter with the same imports, and the handler's first call |
//! | forkserver | `multiprocessing`'s, with the same preload |
//! | python3 | a new plain process: imports with bytecode ready, and the first call |

mod support;

use std::time::Duration;

use support::worker::Worker;
use support::{Baselines, Client, FUNCTIONS, Function, QUIET, Samples};

/// Starts of a fast kind in a round: back to back, and after quiet.
const FAST: [usize; 2] = [10, 5];
/// As long as pausing an idle sandbox may take.
const PAUSING: Duration = Duration::from_millis(5);
const TRIES: usize = 100;

/// How a start is made.
enum Kind<'a> {
    Hosier { port: u16, client: Client, name: String, start: &'static str },
    Fork(&'a str),
    Subprocess,
}

struct Row<'a> {
    label: &'static str,
    slow: bool,
    kind: Kind<'a>,
    /// Back to back, and after quiet.
    answered: [Samples; 2],
    gone: [Samples; 2],
}

struct Workers {
    home: Worker,
    node: Worker,
    blank: Worker,
    root: Worker,
    fresh: Worker,
    paused: Worker,
}

fn main() {
    let rounds = support::rounds(20);
    let workers = Workers::up();
    let mut results = Vec::new();
    for function in FUNCTIONS {
        let mut baselines = Baselines::new(&workers.home, function);
        let mut rows = rows(&workers, function);
        for round in 0..rounds {
            eprint!("\r{} {}/{rounds} ", function.name, round + 1);
            for row in &mut rows {
                row.measure(&mut baselines);
            }
        }
        eprintln!();
        print(function, &rows);
        results.extend(rows.iter().map(|row| row.json(function)));
    }
    support::report("cold_start", results.into());
    for worker in [&workers.node, &workers.blank, &workers.root, &workers.fresh, &workers.paused] {
        worker.down();
    }
}

impl Workers {
    fn up() -> Self {
        let home = support::home();
        let beside = |options: &[&str]| support::beside(&home, options);
        let awake = "sandbox.pause_after_ms=60000";
        let node = beside(&[awake]);
        let blank = beside(&[awake, "zygote.blanks=4"]);
        let root = beside(&[awake, "zygote.max_nodes=1"]);
        let fresh = beside(&[awake, "features.import_cache="]);
        let paused = beside(&["sandbox.pause_after_ms=0"]);
        Self { home, node, blank, root, fresh, paused }
    }
}

fn rows<'a>(workers: &Workers, function: Function) -> Vec<Row<'a>> {
    let hosier = |worker: &Worker, name: String, start: &'static str| {
        let port = worker.port;
        let mut client = Client::new(port);
        // The first one compiles the code and grows the node.
        client.call(&name);
        Kind::Hosier { port, client, name, start }
    };
    let row =
        |label, slow, kind| Row { label, slow, kind, answered: Default::default(), gone: Default::default() };
    let (once, name) = (function.once(), function.name.to_owned());
    let mut rows = vec![
        row("fresh", true, hosier(&workers.fresh, once.clone(), "fresh")),
        row("root", function.packages, hosier(&workers.root, once.clone(), "forked")),
    ];
    if function.packages {
        rows.push(row("node", false, hosier(&workers.node, once.clone(), "forked")));
    }
    rows.push(row("blank", false, hosier(&workers.blank, once, "blank")));
    rows.extend([
        row("unpaused", false, hosier(&workers.paused, name.clone(), "unpaused")),
        row("warm", false, hosier(&workers.node, name, "warm")),
        row("fork", false, Kind::Fork("fork")),
        row("forkserver", false, Kind::Fork("forkserver")),
        row("python3", true, Kind::Subprocess),
    ]);
    rows
}

impl Row<'_> {
    /// One round: some starts back to back, then some after quiet.
    fn measure(&mut self, baselines: &mut Baselines) {
        if let Kind::Hosier { port, client, .. } = &mut self.kind {
            // The other kinds' starts took longer than an idle connection is kept.
            *client = Client::new(*port);
        }
        for (at, count) in FAST.into_iter().enumerate() {
            for _ in 0..if self.slow { 1 } else { count } {
                if at == 1 {
                    std::thread::sleep(QUIET);
                }
                self.start(baselines, at);
            }
        }
    }

    fn start(&mut self, baselines: &mut Baselines, at: usize) {
        let (answered, gone) = match &mut self.kind {
            Kind::Hosier { client, name, start, .. } => (call(client, name, start), None),
            Kind::Fork(kind) => both(baselines.start(kind)),
            Kind::Subprocess => both(baselines.subprocess()),
        };
        self.answered[at].add(answered);
        if let Some(gone) = gone {
            self.gone[at].add(gone);
        }
    }

    fn json(&self, function: Function) -> serde_json::Value {
        let [tight, quiet] = &self.answered;
        let mut value = serde_json::json!({
            "function": function.name, "start": self.label, "tight": tight.json(), "quiet": quiet.json(),
        });
        let [tight, quiet] = &self.gone;
        if tight.len() > 0 {
            value["gone"] = serde_json::json!({ "tight": tight.json(), "quiet": quiet.json() });
        }
        value
    }
}

/// A call whose sandbox came to be in this way.
fn call(client: &mut Client, name: &str, start: &str) -> Duration {
    for _ in 0..TRIES {
        if start == "unpaused" {
            std::thread::sleep(PAUSING);
        }
        let answer = client.call(name);
        // Back to back no blank is ready in time: then that is what a start is.
        if answer.start == start || (start == "blank" && answer.start == "forked") {
            return answer.took;
        }
        // On a busy machine an idle sandbox is paused late.
        assert_eq!((start, answer.start.as_str()), ("unpaused", "warm"), "{name}");
    }
    panic!("{name} was not paused in {TRIES} times {PAUSING:?}")
}

fn both((answered, gone): (Duration, Duration)) -> (Duration, Option<Duration>) {
    (answered, Some(gone))
}

/// Milliseconds; a ratio is of the medians after quiet, the bare fork's being 1.
fn print(function: Function, rows: &[Row<'_>]) {
    let fork =
        rows.iter().find(|row| row.label == "fork").map_or(f64::NAN, |row| row.answered[1].percentile(50));
    println!(
        "\n{:12}{:>7}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
        function.name, "starts", "tight50", "90", "99", "quiet50", "90", "99", "gone50", "÷ fork"
    );
    for row in rows {
        let [tight, quiet] = &row.answered;
        let mut line = format!("{:12}{:>7}", row.label, tight.len() + quiet.len());
        for samples in [tight, quiet] {
            for percent in [50, 90, 99] {
                line += &format!("{:>9.2}", samples.percentile(percent) / 1e3);
            }
        }
        let gone = row.gone[1].percentile(50) / 1e3;
        line += &if gone.is_nan() { format!("{:>9}", "-") } else { format!("{gone:>9.2}") };
        println!("{line}{:>9.2}", quiet.percentile(50) / fork);
    }
}
