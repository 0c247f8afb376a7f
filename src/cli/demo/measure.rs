//! Calls one function, round by round, and keeps what each call cost.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use super::DemoError;
use super::functions::Function;
use super::plain::Plain;
use super::run::Commands;
use crate::cli::CliError;
use crate::cli::own_socket::{self, Answer};

/// Rounds of a cold call, a plain process and a warm call.
const ROUNDS: usize = 7;

/// Time without a call before each cold one.
const QUIET: Duration = Duration::from_millis(50);
/// How a new sandbox may have come to be.
const NEW: &[&str] = &["forked", "blank"];

/// One call, as the client saw it.
#[derive(Debug, Clone)]
pub struct Call {
    pub start: String,
    pub total_ms: f64,
    /// The steps of `Server-Timing`.
    pub steps: Vec<(String, f64)>,
    pub body: serde_json::Value,
}

/// What one function cost.
pub struct Measured {
    pub function: &'static Function,
    /// The first call of all.
    pub first: Call,
    /// Medians of the rounds.
    pub cold: Call,
    pub warm: Call,
    pub plain_ms: f64,
}

/// Calls a function of the worker at `address`.
///
/// # Errors
/// A call failed, or was interrupted.
pub fn function(
    commands: &Commands,
    dir: &Path,
    address: &SocketAddr,
    function: &'static Function,
) -> Result<Measured, CliError> {
    let call = |name: &str, expected: &'static [&'static str]| {
        commands.interrupt.check()?;
        call(address, name, expected, function.event)
    };
    let (cold_name, warm_name) = (function.cold(), function.warm());
    let first = call(&warm_name, NEW)?;
    // The copy's first call compiles its code: it is neither here nor there.
    call(&cold_name, NEW)?;
    let plain = Plain::new(dir, function)?;
    let (mut colds, mut warms, mut plains) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        // As after a quiet spell, in which blanks are made.
        std::thread::sleep(QUIET);
        colds.push(call(&cold_name, NEW)?);
        let (took, answer) = plain.run(&commands.interrupt, function)?;
        plains.push(milliseconds(took));
        same_work(function, &first, &answer)?;
        // Meanwhile the sandbox was paused: the next call finds it awake.
        call(&warm_name, &["warm", "unpaused"])?;
        warms.push(call(&warm_name, &["warm"])?);
    }
    plains.sort_by(f64::total_cmp);
    Ok(Measured {
        function,
        first,
        cold: median(colds),
        warm: median(warms),
        plain_ms: plains[plains.len() / 2],
    })
}

fn call(
    address: &SocketAddr,
    name: &str,
    expected: &'static [&'static str],
    event: &str,
) -> Result<Call, CliError> {
    let begun = Instant::now();
    let answer = own_socket::request_tcp(address, "POST", &format!("/run/{name}"), event.as_bytes())
        .map_err(|source| CliError::File { path: format!("http://{address}").into(), source })?;
    let total_ms = milliseconds(begun.elapsed());
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    if answer.status != 200 {
        return Err(CliError::Refused { name: name.to_owned(), status: answer.status, body: text });
    }
    let found = answer.header("x-hosier-start").unwrap_or_default().to_owned();
    if !expected.contains(&found.as_str()) {
        return Err(DemoError::Start { name: name.to_owned(), expected, found }.into());
    }
    let body = serde_json::from_str(&text).unwrap_or_default();
    Ok(Call { start: found, total_ms, steps: steps(&answer), body })
}

/// `queue;dur=0.012, fork;dur=1.250` as names and milliseconds.
fn steps(answer: &Answer) -> Vec<(String, f64)> {
    let header = answer.header("server-timing").unwrap_or_default();
    let step = |part: &str| {
        let (name, took) = part.trim().split_once(";dur=")?;
        Some((name.to_owned(), took.parse().ok()?))
    };
    header.split(',').filter_map(step).collect()
}

/// The call with the median total: its steps belong together.
fn median(mut calls: Vec<Call>) -> Call {
    calls.sort_by(|a, b| a.total_ms.total_cmp(&b.total_ms));
    let middle = calls.len() / 2;
    calls.swap_remove(middle)
}

fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// A comparison says something only of the same work.
fn same_work(function: &Function, first: &Call, plain: &str) -> Result<(), DemoError> {
    if serde_json::from_str::<serde_json::Value>(plain).is_ok_and(|answer| answer == first.body) {
        return Ok(());
    }
    let short = |text: &str| text.chars().take(200).collect();
    let (name, hosier) = (function.name.to_owned(), short(&first.body.to_string()));
    Err(DemoError::Differs { name, hosier, plain: short(plain) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_keeps_the_steps_of_one_call() {
        let call = |total_ms| Call {
            start: "forked".to_owned(),
            total_ms,
            steps: vec![("fork".to_owned(), total_ms / 2.0)],
            body: serde_json::Value::Null,
        };
        let found = median([9.0, 1.0, 4.0].map(call).to_vec());
        assert_eq!((found.total_ms, found.steps[0].1), (4.0, 2.0));
    }
}
