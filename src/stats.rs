//! Counts and mean times of named steps, as `GET /stats` shows them.
//!
//! Any floor records; one lock, held for a map update, never across an await.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

/// Count and total of each timed step.
#[derive(Debug, Default)]
pub struct Stats(Mutex<BTreeMap<&'static str, (u64, Duration)>>);

impl Stats {
    /// Adds one run of `step`.
    pub fn record(&self, step: &'static str, took: Duration) {
        let mut steps = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (count, total) = steps.entry(step).or_default();
        *count += 1;
        *total += took;
    }

    /// `<step>.cnt` and `<step>.ms-avg` of each step, as OpenLambda names them.
    pub fn snapshot(&self) -> serde_json::Map<String, serde_json::Value> {
        let steps = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut out = serde_json::Map::new();
        for (step, (count, total)) in steps.iter() {
            let mean_ms = total.as_secs_f64() * 1e3 / (*count as f64);
            out.insert(format!("{step}.cnt"), (*count).into());
            out.insert(format!("{step}.ms-avg"), mean_ms.into());
        }
        out
    }
}
