//! Draws the steps of cold starts after quiet, as `docs/cold-start.svg`: a bar a start, a
//! piece a step. Reads the report that was written last; starts nothing.

use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

use crate::support::report;

const FUNCTIONS: [&str; 3] = ["noop", "pandas", "pillow"];

/// Steps in the order of a start, and their colours: readable on white and on black.
const COLOURS: [(&str, &str); 8] = [
    ("queue", "#8b95a1"),
    ("node", "#b5985a"),
    ("cgroup", "#9673b9"),
    ("fork", "#4c80b8"),
    ("specialize", "#4f9d58"),
    ("import", "#c9a227"),
    ("exec", "#d1605e"),
    ("rest", "#5aa6a0"),
];
const OTHER: &str = "#a39b95";

const WIDTH: f64 = 860.0;
const BAR: f64 = 22.0;
const LINE: f64 = 30.0;
/// Where bars begin, and how much is left behind the longest for its total.
const LEFT: f64 = 96.0;
const RIGHT: f64 = 84.0;
/// A piece this wide has room for its number.
const ROOMY: f64 = 34.0;

const STYLE: &str = "text { font: 13px system-ui, sans-serif; fill: #1f2328 } \
    .name { font-weight: 600 } .faint { fill: #656d76 } .in { fill: #fff; font-size: 11px } \
    @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .faint { fill: #9198a1 } .in { fill: #fff } }";

struct Bar {
    start: String,
    /// Steps, in ms.
    pieces: Vec<(String, f64)>,
    /// Its own median, which is not the sum of the steps'.
    total: f64,
}

impl Bar {
    fn width(&self) -> f64 {
        self.pieces.iter().map(|(_, ms)| ms).sum()
    }
}

/// Writes the picture.
pub fn save() {
    let source = report::path("steps");
    let text = std::fs::read_to_string(&source)
        .unwrap_or_else(|error| panic!("{}: {error}; run `cargo bench --bench steps`", source.display()));
    let report: Value = serde_json::from_str(&text).unwrap();
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cold-start.svg");
    std::fs::write(&target, drawing(&report["results"])).unwrap();
    eprintln!("drawn to {}", target.display());
}

fn drawing(results: &Value) -> String {
    let mut body = String::new();
    let mut y = 20.0;
    legend(&mut body, y);
    y += 20.0;
    for function in FUNCTIONS {
        let bars = bars(results, function);
        if bars.is_empty() {
            continue;
        }
        y += LINE;
        put(&mut body, 8.0, y - 8.0, "name", function);
        let longest = bars.iter().map(Bar::width).fold(0.0, f64::max);
        let scale = (WIDTH - LEFT - RIGHT) / longest;
        for bar in &bars {
            draw(&mut body, bar, y, scale);
            y += LINE;
        }
    }
    y += 16.0;
    put(
        &mut body,
        8.0,
        y,
        "faint",
        "Milliseconds at the median, after 50 ms of quiet; a scale for each function.",
    );
    let height = y + 14.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-label=\"Steps of a cold start\">\n\
         <style>{STYLE}</style>\n{body}</svg>\n"
    )
}

/// The starts of a function that were measured.
fn bars(results: &Value, function: &str) -> Vec<Bar> {
    let all = results.as_array().into_iter().flatten();
    all.filter(|result| result["function"] == function)
        .filter_map(|result| {
            let steps = result["steps"].as_array()?;
            let piece = |step: &Value| {
                let name = step["step"].as_str()?.to_owned();
                let ms = step["quiet"]["p50_us"].as_f64()? / 1e3;
                Some((name, ms.max(0.0)))
            };
            let mut pieces: Vec<_> = steps.iter().filter_map(piece).collect();
            let (_, total) = pieces.pop_if(|(name, _)| name == "total")?;
            Some(Bar { start: result["start"].as_str()?.to_owned(), pieces, total })
        })
        .collect()
}

fn draw(body: &mut String, bar: &Bar, y: f64, scale: f64) {
    put(body, 20.0, y + 15.0, "", &bar.start);
    let mut x = LEFT;
    for (step, ms) in &bar.pieces {
        let width = ms * scale;
        // Writing to a string cannot fail.
        let _ = writeln!(
            body,
            "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{}\">\
             <title>{step} {ms:.3} ms</title></rect>",
            colour(step)
        );
        if width > ROOMY {
            let text = format!("{ms:.2}");
            put(body, x + 4.0, y + 15.0, "in", &text);
        }
        x += width;
    }
    put(body, x + 8.0, y + 15.0, "", &format!("{:.2} ms", bar.total));
}

fn legend(body: &mut String, y: f64) {
    let mut x = 8.0;
    for (step, colour) in COLOURS {
        let _ = writeln!(
            body,
            "<rect x=\"{x}\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>",
            y - 11.0
        );
        put(body, x + 17.0, y, "", step);
        x += 40.0 + 7.2 * step.len() as f64;
    }
}

fn colour(step: &str) -> &'static str {
    COLOURS.iter().find(|(known, _)| *known == step).map_or(OTHER, |(_, colour)| colour)
}

fn put(body: &mut String, x: f64, y: f64, class: &str, text: &str) {
    let _ = writeln!(body, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{text}</text>");
}
