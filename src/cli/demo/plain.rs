//! What the same work costs a plain `python3` process: a new interpreter that
//! imports the same packages, bytecode ready, and runs the same handler once.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::DemoError;
use super::functions::Function;
use super::run::Interrupt;
use crate::cli::CliError;
use crate::cli::place::Place;
use crate::lambda::packages::{Entries, interpreter};
use crate::lambda::requirements::Hashes;
use crate::settings::Settings;

const SCRIPT: &str = "import json, sys; sys.path[:0] = sys.argv[2:]; import f; \
                      print(json.dumps(f.f(json.loads(sys.argv[1]))), flush=True)";

/// A plain process's way to a function.
pub struct Plain {
    python: PathBuf,
    path: Vec<PathBuf>,
}

impl Plain {
    /// The packages of the store in `dir`, and the code as the worker compiled it.
    ///
    /// # Errors
    /// The worker has not compiled it.
    pub fn new(dir: &Path, function: &Function) -> Result<Self, CliError> {
        let settings = Settings::load(dir, &[])?;
        let versions = Place::of(&settings).code().join(function.warm());
        let code = std::fs::read_dir(&versions).ok().and_then(|mut entries| entries.next()?.ok());
        let code = code
            .ok_or_else(|| DemoError::NoCode { name: function.name.to_owned(), dir: versions.clone() })?
            .path();
        let entries = Entries::new(&settings.pkgs_dir, &interpreter(&settings.sandbox.python)?.abi);
        let pins = function.pins().filter_map(|pin| entries.find(&pin.parse().ok()?, &Hashes::default()));
        let packages = pins.map(|pin| entries.path(&pin).join("files"));
        Ok(Self { python: settings.sandbox.python, path: std::iter::once(code).chain(packages).collect() })
    }

    /// Runs it once: from its start until its answer is read, its end not counted.
    ///
    /// # Errors
    /// It said nothing, or failed.
    pub fn run(&self, interrupt: &Interrupt, function: &Function) -> Result<(Duration, String), CliError> {
        let mut command = Command::new(&self.python);
        // As isolated as a sandbox's, and with one thread a library, as a zygote has it.
        command.args(["-I", "-B", "-c", SCRIPT, function.event]).args(&self.path).env_clear();
        command.envs([("LANG", "C.UTF-8"), ("OPENBLAS_NUM_THREADS", "1"), ("OMP_NUM_THREADS", "1")]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let begun = Instant::now();
        let mut child = interrupt.start(&mut command)?;
        let mut line = String::new();
        let read = child.stdout.take().map(|out| BufReader::new(out).read_line(&mut line));
        let took = begun.elapsed();
        let mut said = String::new();
        let _ = child.stderr.take().map(|mut err| err.read_to_string(&mut said));
        let ended = interrupt.ended(&mut child);
        interrupt.check()?;
        match (read, ended) {
            (Some(Ok(1..)), Ok(status)) if status.success() => Ok((took, line.trim().to_owned())),
            _ => {
                let said = said.lines().last().unwrap_or("it said nothing").to_owned();
                Err(DemoError::Plain { name: function.name.to_owned(), said }.into())
            }
        }
    }
}
