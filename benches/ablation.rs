//! What each mechanism is worth: pandas starts with one after the other switched off,
//! from a blank after quiet, and forked on the path. Needs root.
//!
//! ```text
//! each round:  everything on ─▶ without blanks ─▶ without solidify ─▶ …     one start each
//! ```
//!
//! A ratio is the median of each round's own, so that noise hits all alike. It is above 1
//! where the mechanism saves time; a wall's is below 1: what it costs.

mod support;

use serde_json::json;
use support::QUIET;
use support::client::Client;
use support::functions::PANDAS;
use support::report::report;
use support::samples::{Samples, number, paired_ratio};
use support::worker::Worker;
use support::workers::{beside, home};

/// What is switched off: its name, the options, and whether a forked start has it at all.
const SWITCHES: [(&str, &str, bool); 16] = [
    ("everything on", "", true),
    ("zygote.blanks", "zygote.blanks=0", false),
    ("zygote.prefault", "zygote.prefault=false", false),
    ("zygote.solidify", "zygote.solidify=false", true),
    ("zygote.immortal", "zygote.immortal=false", true),
    ("zygote.gc_freeze", "zygote.gc_freeze=false", true),
    ("zygote.replicas", "zygote.replicas=1", true),
    ("sandbox.cgroup_pool", "sandbox.cgroup_pool=0", true),
    ("sandbox.netns_pool", "sandbox.netns_pool=0", true),
    ("read-only root", "sandbox.rootfs=rw", true),
    ("seccomp", "features.enable_seccomp=false", true),
    ("net namespace", "sandbox.namespaces.net=false", true),
    ("ipc namespace", "sandbox.namespaces.ipc=false", true),
    ("uts namespace", "sandbox.namespaces.uts=false", true),
    ("cgroup namespace", "sandbox.namespaces.cgroup=false", true),
    (
        "all of these walls",
        "features.enable_seccomp=false,sandbox.namespaces.net=false,sandbox.namespaces.ipc=false,\
         sandbox.namespaces.uts=false,sandbox.namespaces.cgroup=false",
        true,
    ),
];

struct Variant {
    worker: Worker,
    took: Samples,
    /// The one it is compared with.
    start: &'static str,
    switch: &'static str,
}

fn main() {
    let rounds = support::rounds(150);
    let home = home(&[PANDAS]);
    let mut variants = Vec::new();
    for (start, blanks) in [("blank", "zygote.blanks=4"), ("forked", "zygote.blanks=0")] {
        for (switch, options, forked) in SWITCHES {
            if start == "blank" || forked {
                let worker = beside(&home, &[blanks, options]);
                Client::new(worker.port).settle(&PANDAS.once());
                variants.push(Variant { worker, took: Samples::default(), start, switch });
            }
        }
    }
    for round in 0..rounds {
        eprint!("\r{}/{rounds} ", round + 1);
        for variant in &mut variants {
            std::thread::sleep(QUIET);
            // Idle connections are closed meanwhile; making one is not what is measured.
            variant.took.add(Client::new(variant.worker.port).call(&PANDAS.once()).took);
        }
    }
    eprintln!();
    report("ablation", table(&variants));
    variants.iter().for_each(|variant| variant.worker.down());
}

/// Milliseconds after quiet, and the ratio to everything on.
fn table(variants: &[Variant]) -> serde_json::Value {
    println!("\n{:8}{:20}{:>9}{:>9}{:>9}{:>9}", "pandas", "without", "quiet50", "90", "99", "ratio");
    let mut results = Vec::new();
    for Variant { took, start, switch, .. } in variants {
        let everything = variants.iter().find(|other| other.start == *start).map(|first| &first.took);
        let ratio = everything.map_or(f64::NAN, |everything| paired_ratio(took, everything));
        let [p50, p90, p99] = [50, 90, 99].map(|percent| took.ms(percent));
        println!("{start:8}{switch:20}{p50:>9}{p90:>9}{p99:>9}{:>9}", number(ratio, 2));
        results.push(json!({ "start": start, "without": switch, "quiet": took.json(), "ratio": ratio }));
    }
    results.into()
}
