//! One way to start, what was measured of it, and the table of all.

use std::collections::BTreeMap;

use serde_json::json;

use super::kind::{Cost, Kind};
use crate::support::QUIET;
use crate::support::baselines::Baselines;
use crate::support::functions::Function;
use crate::support::samples::{Samples, number};

/// Starts of a fast kind in a round: back to back, and after quiet.
const FAST: [usize; 2] = [10, 10];
const SLOW: [usize; 2] = [1, 1];

pub struct Row {
    label: &'static str,
    slow: bool,
    kind: Kind,
    /// Back to back, and after quiet; so are the others.
    answered: [Samples; 2],
    /// What the worker measured itself.
    engine: [Samples; 2],
    gone: [Samples; 2],
    /// How often the worker said what, after quiet.
    starts: BTreeMap<String, usize>,
}

impl Row {
    pub fn new(label: &'static str, slow: bool, kind: Kind) -> Self {
        let (answered, engine, gone) = Default::default();
        Self { label, slow, kind, answered, engine, gone, starts: BTreeMap::new() }
    }

    pub fn fast(label: &'static str, kind: Kind) -> Self {
        Self::new(label, false, kind)
    }

    pub fn slow(label: &'static str, kind: Kind) -> Self {
        Self::new(label, true, kind)
    }

    /// One round: some starts back to back, then some after quiet.
    pub fn measure(&mut self, baselines: &mut Baselines) {
        self.kind.wake();
        for (at, count) in if self.slow { SLOW } else { FAST }.into_iter().enumerate() {
            for _ in 0..count {
                if at == 1 {
                    std::thread::sleep(QUIET);
                }
                let cost = self.kind.start(baselines);
                self.add(at, cost);
            }
        }
    }

    fn add(&mut self, at: usize, cost: Cost) {
        self.answered[at].add(cost.answered);
        if let Some(gone) = cost.gone {
            self.gone[at].add(gone);
        }
        if let Some(answer) = cost.hosier {
            self.engine[at].add_us(answer.engine_us());
            if at == 1 {
                *self.starts.entry(answer.start).or_default() += 1;
            }
        }
    }

    pub fn json(&self, function: Function) -> serde_json::Value {
        let both = |[tight, quiet]: &[Samples; 2]| json!({ "tight": tight.json(), "quiet": quiet.json() });
        let mut value = both(&self.answered);
        value["function"] = function.name.into();
        value["start"] = self.label.into();
        if self.gone[0].len() > 0 {
            value["gone"] = both(&self.gone);
        }
        if self.engine[0].len() > 0 {
            value["engine"] = both(&self.engine);
            value["quiet_starts"] = json!(self.starts);
        }
        value
    }
}

/// Milliseconds; ratios are of the medians after quiet.
pub fn print(function: Function, rows: &[Row]) {
    let quiet = |label| {
        let row = rows.iter().find(|row| row.label == label);
        row.map_or(f64::NAN, |row| row.answered[1].median())
    };
    let (fork, warm) = (quiet("fork"), quiet("warm"));
    let heads = ["tight50", "90", "99", "quiet50", "90", "99", "engine50", "gone50", "÷ fork", "÷ warm"];
    let heads: String = heads.iter().map(|head| format!("{head:>9}")).collect();
    println!("\n{:12}{:>7}{heads}", function.name, "starts");
    for row in rows {
        let [tight, quiet] = &row.answered;
        let mut line = format!("{:12}{:>7}", row.label, tight.len() + quiet.len());
        let times = [tight, quiet].into_iter().flat_map(|samples| [50, 90, 99].map(|at| samples.ms(at)));
        let more = [row.engine[1].ms(50), row.gone[1].ms(50)];
        let ratios = [fork, warm].map(|unit| number(quiet.median() / unit, 2));
        for cell in times.chain(more).chain(ratios) {
            line += &format!("{cell:>9}");
        }
        let starts: Vec<_> = row.starts.iter().map(|(start, count)| format!("{count} {start}")).collect();
        // Only where it is not the same for all.
        println!(
            "{line}{}",
            if starts.len() > 1 { format!("  {}", starts.join(", ")) } else { String::new() }
        );
    }
}
