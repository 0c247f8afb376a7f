//! The same work without Hosier: plain interpreters that import what a function does,
//! from the same store.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use super::PYTHON;
use super::functions::Function;
use super::worker::Worker;

/// What a new process runs: imports, the first call, the answer.
pub const SCRIPT: &str = "import json, f; print(json.dumps(f.f({})), flush=True)";

/// Until the answer is read, and until the process is gone.
pub type Took = (Duration, Duration);

pub struct Baselines {
    /// `benches/baselines.py`, which forks when told.
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    code: tempfile::TempDir,
    /// Where its imports are.
    places: Vec<String>,
}

impl Baselines {
    pub fn new(home: &Worker, function: Function) -> Self {
        let code = tempfile::Builder::new().prefix("hosier-bench-").tempdir().unwrap();
        std::fs::copy(function.source().join("f.py"), code.path().join("f.py")).unwrap();
        let compiled = Command::new(PYTHON).args(["-I", "-m", "compileall", "-q"]).arg(code.path()).status();
        assert!(compiled.unwrap().success());
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
        let packages = function.pins();
        let packages = packages.iter().map(|pin| files(&home.path().join("packages"), pin));
        let places = [here, code.path().to_owned()].into_iter().chain(packages);
        let places: Vec<_> = places.map(|place| place.to_string_lossy().into_owned()).collect();
        let mut command = python("import baselines; baselines.main()");
        with_environment(&mut command, &places);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let ask = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, ask, answers, code, places }
    }

    /// Where the imports are: the code of the function and its packages.
    pub fn places(&self) -> &[String] {
        &self.places
    }

    /// One start of `kind`, of those that `benches/baselines.py` knows.
    pub fn start(&mut self, kind: &str) -> Took {
        writeln!(self.ask, "{kind}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
        let took = |key: &str| Duration::from_secs_f64(answer[key].as_f64().unwrap() / 1e6);
        (took("answered_us"), took("gone_us"))
    }

    /// A new interpreter.
    pub fn python3(&self) -> Took {
        let mut command = python(SCRIPT);
        with_environment(&mut command, &self.places);
        process(command)
    }
}

/// The files of a pin in a store: there is one interpreter, and one entry for each pin.
fn files(store: &Path, pin: &str) -> PathBuf {
    let below = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let entry = below(store).iter().find_map(|abi| below(&abi.join(pin)).pop());
    entry.unwrap_or_else(|| panic!("{pin} is not in {}", store.display())).join("files")
}

impl Drop for Baselines {
    fn drop(&mut self) {
        // Its input's end would do as well, if it still reads.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One run of a command that prints a line and ends.
pub fn process(mut command: Command) -> Took {
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let answered = begun.elapsed();
    assert!(child.wait().unwrap().success() && !line.is_empty(), "{command:?} failed");
    (answered, begun.elapsed())
}

/// As isolated as PYTHONPATH allows.
pub fn python(script: &str) -> Command {
    let mut command = Command::new(PYTHON);
    command.args(["-s", "-B", "-c", script]);
    command
}

/// One thread a library, as a zygote has it.
pub fn environment(places: &[String]) -> Vec<(&'static str, String)> {
    let fixed = [("LANG", "C.UTF-8"), ("OPENBLAS_NUM_THREADS", "1"), ("OMP_NUM_THREADS", "1")];
    let fixed = fixed.map(|(name, value)| (name, value.to_owned()));
    fixed.into_iter().chain([("PYTHONPATH", places.join(":"))]).collect()
}

pub fn with_environment(command: &mut Command, places: &[String]) {
    command.env_clear().envs(environment(places));
}
