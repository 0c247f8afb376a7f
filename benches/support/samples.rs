//! What was measured of one thing, and its percentiles.

use std::time::Duration;

/// Values of one thing, in µs.
#[derive(Debug, Default, Clone)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn add(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1e6);
    }

    pub fn add_us(&mut self, us: f64) {
        self.0.push(us);
    }

    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The value that `percent` of all are not above (nearest rank).
    pub fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
    }

    pub fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// A percentile in milliseconds for a column of a table; `-` where nothing was measured.
    pub fn ms(&self, percent: usize) -> String {
        number(self.percentile(percent) / 1e3, 2)
    }

    pub fn json(&self) -> serde_json::Value {
        let [p50, p90, p99] = [50, 90, 99].map(|percent| self.percentile(percent));
        serde_json::json!({ "starts": self.len(), "p50_us": p50, "p90_us": p90, "p99_us": p99 })
    }
}

/// The median of each one's quotient with its neighbour of the same round, so that what
/// slowed a whole round down does not count.
pub fn paired_ratio(these: &Samples, those: &Samples) -> f64 {
    Samples(these.0.iter().zip(&those.0).map(|(this, that)| this / that).collect()).median()
}

/// A number for a table; `-` where there is none.
pub fn number(value: f64, decimals: usize) -> String {
    if value.is_nan() { "-".to_owned() } else { format!("{value:.decimals$}") }
}
