//! Blanks and the memory that all sandboxes may use together: they are the first to go, and
//! requests are served all the same.

mod support;

use std::time::Duration;

use support::{Worker, wait_until};

const BOUND: Duration = Duration::from_secs(20);
const ONCE: &str = "reuse-sandbox: false\n";
const NOOP: &str = "def f(event):\n    return 1\n";
/// Fills memory, and holds it for as long as it is told.
const EATS: &str = "import time\ndef f(event):\n    own = b'a' * (event['mb'] << 20)\n    \
    time.sleep(event['s'])\n    return len(own)\n";

fn blanks(worker: &Worker) -> usize {
    worker.get("/debug").body.matches("    a blank of zygote").count()
}

fn memory(worker: &Worker) -> String {
    let debug = worker.get("/debug").body;
    debug.lines().find_map(|line| line.strip_prefix("memory: ")).expect("a line on memory").to_owned()
}

#[test]
fn a_pool_that_the_zygote_alone_fills_has_no_room_for_blanks_and_requests_are_served() {
    let mut worker = Worker::new();
    worker.deploy("f", &[("f.py", NOOP), ("ol.yaml", ONCE)]);
    worker.up(&["zygote.blanks=4,mem_pool_mb=4"]);
    for _ in 0..5 {
        assert_eq!(worker.call("f", "").start(), "forked");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(blanks(&worker), 0);
    let memory = memory(&worker);
    assert!(
        memory.contains(" of 4 MiB in use") && memory.contains("pressed, blanks are given up"),
        "{memory}"
    );
    worker.down();

    // The control: the same worker with a pool that has room.
    worker.up(&["zygote.blanks=4,mem_pool_mb=400"]);
    worker.result("f", "");
    wait_until("blanks stand", BOUND, || blanks(&worker) > 0);
    worker.down();
}

#[test]
fn blanks_go_when_a_function_fills_the_pool_and_come_back_when_it_is_gone() {
    let mut worker = Worker::new();
    worker.deploy("f", &[("f.py", NOOP), ("ol.yaml", ONCE)]);
    let limits = format!("{ONCE}limits: {{mem_mb: 300}}\n");
    worker.deploy("eats", &[("f.py", EATS), ("ol.yaml", &limits)]);
    worker.up(&["zygote.blanks=4,mem_pool_mb=200"]);
    worker.result("f", "");
    wait_until("blanks stand", BOUND, || blanks(&worker) > 0);
    assert!(memory(&worker).contains("room for blanks"), "{}", memory(&worker));
    std::thread::scope(|scope| {
        let eating = scope.spawn(|| worker.result("eats", r#"{"mb": 170, "s": 3}"#));
        wait_until("blanks are gone", BOUND, || memory(&worker).contains("pressed") && blanks(&worker) == 0);
        assert_eq!(worker.call("f", "").start(), "forked", "served all the same");
        assert_eq!(eating.join().unwrap(), 170 << 20);
    });
    // Nobody asks for anything: they come by themselves.
    wait_until("blanks are back", BOUND, || blanks(&worker) > 0);
    assert!(memory(&worker).contains("room for blanks"), "{}", memory(&worker));
    worker.down();
}
