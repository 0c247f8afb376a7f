//! Commands that talk to a running worker: `invoke`, `status`, `down`.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::Duration;

use hosier_zygote::sys::SysError;
use hosier_zygote::sys::process::{open_pidfd, signal_pidfd};

use super::own_socket::{self, Answer};
use super::place::Place;
use super::up::wait_for;
use super::{CliError, PlaceArgs};
use crate::lambda::FunctionName;
use crate::settings::Settings;

/// How much longer than its own `stop_timeout_s` a stop may take.
const DOWN_MARGIN: Duration = Duration::from_secs(30);

/// Calls a function; its answer is data, how it was started is progress.
///
/// # Errors
/// No worker runs, or the function did not answer well.
pub fn invoke(args: &PlaceArgs, name: &str, data: &str) -> Result<(), CliError> {
    let place = running(args)?;
    let name = FunctionName::new(name)?;
    let path = format!("/run/{name}");
    let answer = own_socket::request(&place.socket(), "POST", &path, data.as_bytes())
        .map_err(|source| CliError::File { path: place.socket(), source })?;
    if answer.status >= 400 {
        return Err(CliError::Refused { name: name.to_string(), status: answer.status, body: text(&answer) });
    }
    let start = answer.header("x-hosier-start").unwrap_or("?");
    eprintln!("hosier: {start}; {}", answer.header("server-timing").unwrap_or_default());
    let mut out = std::io::stdout().lock();
    let written = out.write_all(&answer.body).and_then(|()| out.write_all(b"\n"));
    written.map_err(|source| CliError::File { path: "stdout".into(), source })
}

/// Says whether a worker runs, and what it has.
///
/// # Errors
/// No worker runs.
pub fn status(args: &PlaceArgs, json: bool) -> Result<(), CliError> {
    let place = running(args)?;
    let pid = pid(&place)?;
    let functions = text(&ask(&place, "/registry/")?);
    let functions: serde_json::Value = serde_json::from_str(&functions).unwrap_or_default();
    if json {
        println!("{}", serde_json::json!({ "ready": true, "pid": pid, "functions": functions }));
    } else {
        println!("worker {pid} is ready");
        print!("{}", text(&ask(&place, "/debug")?));
    }
    Ok(())
}

/// Stops the worker and waits until all of it is gone.
///
/// # Errors
/// No worker runs, or it did not end.
pub fn down(args: &PlaceArgs) -> Result<(), CliError> {
    let place = running(args)?;
    let pid = pid(&place)?;
    let bound = Settings::load(&args.dir, &[])?.stop_timeout + DOWN_MARGIN;
    let failed =
        |error: SysError| CliError::File { path: format!("worker {pid}").into(), source: error.errno.into() };
    // Ready when the worker has ended, though whoever inherited it may take a
    // second to reap it; and no other process can get in the signal's way.
    let worker = open_pidfd(pid).map_err(failed)?;
    signal_pidfd(worker.as_fd(), nix::libc::SIGTERM).map_err(failed)?;
    if !wait_for(&worker, bound) {
        return Err(CliError::NotDown { bound_s: bound.as_secs(), pid });
    }
    // Its lock is free when its spawner has cleared up.
    place.lock().map(drop)
}

fn running(args: &PlaceArgs) -> Result<Place, CliError> {
    let place = Place::of(&Settings::load(&args.dir, &[])?);
    place.check()?;
    if place.answers() { Ok(place) } else { Err(CliError::NotRunning { dir: place.dir }) }
}

fn pid(place: &Place) -> Result<i32, CliError> {
    let pid = text(&ask(place, "/pid")?).trim().parse::<i32>().ok().filter(|pid| *pid > 1);
    pid.ok_or_else(|| CliError::NotRunning { dir: place.dir.clone() })
}

fn ask(place: &Place, path: &str) -> Result<Answer, CliError> {
    own_socket::get(&place.socket(), path).map_err(|source| CliError::File { path: place.socket(), source })
}

fn text(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}
