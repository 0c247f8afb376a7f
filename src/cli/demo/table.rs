//! What was measured, for people and for programs.

use std::io::Write;
use std::path::Path;

use super::measure::{Call, Measured};
use crate::cli::CliError;

/// The steps in the order that they are taken.
const STEPS: [&str; 7] = ["queue", "node", "cgroup", "fork", "specialize", "import", "exec"];

const NOTES: &str = "\
first  the function's first call of all: compiled its code, grew the zygote that has its packages imported
cold   a new sandbox for each call (a copy of the function, with reuse-sandbox: false) after 50 ms of quiet: a blank,
       which was forked from that zygote ahead of need, or forked when the call came
warm   the sandbox of the call before
total  as the client saw it, with its connection; the steps are the worker's own (Server-Timing)
python3  a new process with the same packages, bytecode ready, from its start until the same answer is read
cold and warm are the median call of the rounds, python3 the median; all of one run, round by round";

/// Prints the table, where the picture is, and what the statistics said.
///
/// # Errors
/// stdout is gone.
pub fn print(measured: &[Measured], picture: &Path) -> Result<(), CliError> {
    write(&(text(measured) + &results(measured, picture) + "\n" + NOTES + "\n"))
}

/// Prints the same as one JSON object.
///
/// # Errors
/// stdout is gone.
pub fn json(measured: &[Measured], picture: &Path) -> Result<(), CliError> {
    let functions: Vec<_> = measured
        .iter()
        .map(|one| {
            serde_json::json!({
                "function": one.function.name,
                "calls": [call_json("first", &one.first), call_json("cold", &one.cold), call_json("warm", &one.warm)],
                "python3_ms": one.plain_ms,
                "python3_to_cold": one.plain_ms / one.cold.total_ms,
                "python3_to_warm": one.plain_ms / one.warm.total_ms,
            })
        })
        .collect();
    write(&format!("{:#}\n", serde_json::json!({ "functions": functions, "picture": picture })))
}

fn call_json(kind: &str, call: &Call) -> serde_json::Value {
    let steps: serde_json::Map<_, _> =
        call.steps.iter().map(|(name, took)| (name.clone(), (*took).into())).collect();
    serde_json::json!({ "call": kind, "start": call.start, "total_ms": call.total_ms, "steps_ms": steps })
}

fn text(measured: &[Measured]) -> String {
    let mut out = format!("{:10}{:6}{:9}{:>9}", "function", "call", "start", "total ms");
    for step in STEPS {
        out += &format!("{step:>11}");
    }
    out += &format!("{:>12}{:>8}\n", "python3 ms", "ratio");
    for one in measured {
        let rows = [("first", &one.first), ("cold", &one.cold), ("warm", &one.warm)];
        for (kind, call) in rows {
            out += &row(one, kind, call);
        }
    }
    out + "\n"
}

fn row(one: &Measured, kind: &str, call: &Call) -> String {
    let name = if kind == "first" { one.function.name } else { "" };
    let mut out = format!("{name:10}{kind:6}{:9}{:>9.2}", call.start, call.total_ms);
    for step in STEPS {
        let took = call.steps.iter().find(|(name, _)| name == step);
        out += &took.map_or(format!("{:>11}", "-"), |(_, took)| format!("{took:>11.2}"));
    }
    out += &format!("{:>12.1}{:>7.1}x", one.plain_ms, one.plain_ms / call.total_ms);
    out.trim_end().to_owned() + "\n"
}

fn results(measured: &[Measured], picture: &Path) -> String {
    let mut out = String::new();
    for one in measured {
        let body = &one.cold.body;
        match one.function.name {
            "hello" => out += &format!("hello: {}\n", body["message"].as_str().unwrap_or_default()),
            "stats" => {
                let means = body["mean_fahrenheit"].as_object();
                let mean =
                    |month: &str| means.and_then(|means| means.get(month)?.as_f64()).unwrap_or_default();
                let (rows, january, july) = (&body["rows"], mean("1"), mean("7"));
                out += &format!(
                    "stats: {rows} hourly readings in Seattle; mean of January {january:.1} °F, of July {july:.1} °F\n"
                );
            }
            _ => {
                let size = format!("{} x {}", body["width"], body["height"]);
                let original = format!("{} x {}", body["original_width"], body["original_height"]);
                out += &format!("thumbnail: {original} to {size}, saved as {}\n", picture.display());
            }
        }
    }
    out
}

fn write(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).map_err(|source| CliError::File { path: "stdout".into(), source })
}
