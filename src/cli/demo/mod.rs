//! `hosier demo`: the main job on real input. Three functions are deployed,
//! called cold and warm over HTTP, and set beside a plain `python3` process that
//! does the same work in the same run.
//!
//! ```text
//! init ─▶ deploy each twice ─▶ up -d ─▶ calls, round by round ─▶ table, picture ─▶ down ─▶ remove
//!                                           └ an error, Ctrl-C, SIGTERM ───────────▶ ┘
//! ```
//!
//! Each step is this same program, called as a user would. The steps run in a
//! process group of their own, so that a Ctrl-C reaches only this process, which
//! then stops what it started, in order.

mod functions;
mod measure;
mod picture;
mod plain;
mod run;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::CliError;
use crate::sandbox::foreign;
use run::{Commands, Interrupt};

/// What the demo can fail with, beside what its steps say themselves.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("interrupted; nothing was left running")]
    Interrupted,
    #[error("`hosier {command}` failed ({status}); its reason is above")]
    Step { command: String, status: std::process::ExitStatus },
    #[error("the worker's log, {}, names no address", log.display())]
    NoAddress { log: PathBuf },
    #[error(
        "{name} started {found:?} where {expected:?} was expected; run `hosier demo -p DIR` and see DIR/worker/worker.log"
    )]
    Start { name: String, expected: &'static [&'static str], found: String },
    #[error("{name} has no compiled code in {}", dir.display())]
    NoCode { name: String, dir: PathBuf },
    #[error("a plain python3 cannot run {name}: {said}")]
    Plain { name: String, said: String },
    #[error("{name} answered {hosier} in a sandbox and {plain} in a plain process")]
    Differs { name: String, hosier: String, plain: String },
    #[error("the thumbnail is no PNG")]
    NoPicture,
}

/// Runs the demo in `place`, or in a temporary directory that is removed.
///
/// # Errors
/// A step failed, or a signal asked to stop. Nothing runs any more then.
pub fn run(place: Option<PathBuf>, json: bool) -> Result<(), CliError> {
    let file = |source| CliError::File { path: "the runtime".into(), source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(file)?;
    let interrupt = Arc::new(Interrupt::default());
    let asked = Arc::clone(&interrupt);
    runtime.block_on(async move {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [mut int, mut term, mut hup] = kinds.map(signal);
        let (Ok(int), Ok(term), Ok(hup)) = (&mut int, &mut term, &mut hup) else {
            return Err(file(std::io::Error::last_os_error()));
        };
        let mut work = tokio::task::spawn_blocking(move || whole(place, json, interrupt));
        loop {
            tokio::select! {
                done = &mut work => return done.unwrap_or(Err(DemoError::Interrupted.into())),
                _ = int.recv() => asked.ask(),
                _ = term.recv() => asked.ask(),
                _ = hup.recv() => asked.ask(),
            }
        }
    })
}

fn whole(place: Option<PathBuf>, json: bool, interrupt: Arc<Interrupt>) -> Result<(), CliError> {
    let stay = place.is_some();
    let home = Home::new(place)?;
    // The picture is the user's: it goes where they are, not into what is removed.
    let pictures = if stay { home.path.clone() } else { PathBuf::from(".") };
    let commands = Commands::new(&home.path, interrupt)?;
    let done = act(&commands, &home.path, &pictures, json);
    let stopped = commands.stop_worker();
    let removed = home.leave();
    done.and(stopped).and(removed)
}

fn act(commands: &Commands, dir: &Path, pictures: &Path, json: bool) -> Result<(), CliError> {
    commands.run("init", &[])?;
    let sources = dir.join("demo");
    for function in &functions::ALL {
        for deployed in function.deployed() {
            let source = deployed.write(&sources)?;
            commands.run("deploy", &[&source.to_string_lossy(), "-n", &deployed.name])?;
        }
    }
    foreign::remove(&sources).map_err(|error| CliError::File { path: sources, source: error.into_io() })?;
    commands.start_worker()?;
    let address = run::address(dir)?;
    let mut measured = Vec::new();
    for function in &functions::ALL {
        eprintln!("hosier: calling {}", function.name);
        measured.push(measure::function(commands, dir, &address, function)?);
    }
    let saved = picture::save(&measured, pictures)?;
    if json { table::json(&measured, &saved) } else { table::print(&measured, &saved) }
}

/// The directory that the demo works in.
struct Home {
    path: PathBuf,
    temporary: bool,
}

impl Home {
    fn new(place: Option<PathBuf>) -> Result<Self, CliError> {
        if let Some(path) = place {
            return Ok(Self { path, temporary: false });
        }
        let path = std::env::temp_dir().join(format!("hosier-demo-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|source| CliError::File { path: path.clone(), source })?;
        Ok(Self { path, temporary: true })
    }

    fn leave(self) -> Result<(), CliError> {
        if !self.temporary {
            eprintln!(
                "hosier: the functions stay in {0}: `hosier up -p {0}` serves them",
                self.path.display()
            );
            return Ok(());
        }
        let path = self.path.clone();
        foreign::remove(&path).map_err(|error| CliError::File { path, source: error.into_io() })
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.temporary {
            // Nothing is there if all went well; after a panic something may be.
            let _ = foreign::remove(&self.path);
        }
    }
}
