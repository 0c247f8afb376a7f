//! The first step: which file of the index each package is. `uv pip compile`,
//! in a sandbox that reaches the index and knows its password, where no source
//! package's code runs:
//!
//! ```text
//! pins               --no-deps, and uv.toml says that each needs nothing: uv has no reason to
//!                    look into a source package
//! a build's wishes   with what they need in turn, --no-build: wheels only
//! ```

use std::fmt::Write;

use super::failure::{self, Failure};
use super::installer::{Installer, Reach, UV};
use super::lock::{self, Artifact};
use super::step::{INPUT, OUT, Ran, Room, StepError};
use crate::lambda::requirements::Pin;
use crate::sandbox::Command;

/// Bytes of a lock.
const LOCK_LIMIT_BYTES: u64 = 4 << 20;
const REQUIREMENTS: &str = "requirements.txt";
const CONFIG: &str = "uv.toml";
const LOCK: &str = "pylock.toml";

/// A question to the index.
#[derive(Debug, Clone, Copy)]
pub(super) enum Question<'a> {
    /// Exactly these versions, and nothing that they need.
    Pins(&'a [Pin]),
    /// Any version of this package, the newest.
    Newest(&'a str),
    /// Wheels for these requirements, and for what they need.
    ForBuild(&'a [String]),
}

impl Question<'_> {
    fn requirements(&self) -> String {
        let lines: Vec<_> = match self {
            Question::Pins(pins) => pins.iter().map(Pin::to_string).collect(),
            Question::Newest(name) => vec![(*name).to_owned()],
            Question::ForBuild(requirements) => requirements.to_vec(),
        };
        lines.join("\n") + "\n"
    }

    fn config(&self) -> String {
        let mut text = String::new();
        let mut known = |name: &str, version: Option<&str>| {
            let _ = writeln!(text, "[[dependency-metadata]]\nname = \"{name}\"\nrequires-dist = []");
            let _ = version.map(|version| writeln!(text, "version = \"{version}\""));
        };
        match self {
            Question::Pins(pins) => pins.iter().for_each(|pin| known(pin.name(), Some(pin.version()))),
            Question::Newest(name) => known(name, None),
            Question::ForBuild(_) => {}
        }
        text
    }

    fn mode(&self) -> &'static str {
        match self {
            Question::Pins(_) | Question::Newest(_) => "--no-deps",
            Question::ForBuild(_) => "--no-build",
        }
    }
}

impl Installer {
    /// Writes the question into `room`, and the command that answers it.
    pub(super) fn resolve(&self, question: Question<'_>, room: &Room) -> Result<Command, StepError> {
        room.put(REQUIREMENTS, question.requirements().as_bytes())?;
        room.put(CONFIG, question.config().as_bytes())?;
        let python = self.python.display().to_string();
        let (requirements, config) = (format!("{INPUT}/{REQUIREMENTS}"), format!("{INPUT}/{CONFIG}"));
        let lock = format!("{OUT}/{LOCK}");
        let argv = [
            UV,
            "pip",
            "compile",
            question.mode(),
            "--format",
            "pylock.toml",
            "--no-header",
            "--quiet",
            "--python",
            &python,
            "--system-certs",
            "--no-progress",
            "--color",
            "never",
            "--no-python-downloads",
            "--config-file",
            &config,
            "--output-file",
            &lock,
            &requirements,
        ];
        Ok(self.command(Reach::Index, &argv, room, &[]))
    }

    /// Reads the answer, after the sandbox is gone.
    pub(super) fn resolved(&self, ran: &Ran, room: &Room) -> Result<Vec<Artifact>, StepError> {
        if let Some(failure) = self.explain(ran, failure::explain) {
            return Err(failure.into());
        }
        let text = room.answer(LOCK, LOCK_LIMIT_BYTES)?;
        lock::read(&text)
            .map_err(|error| Failure::Other { tail: self.operator.redact(&error.to_string()) }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_pin_everything_is_known_so_that_nothing_is_built_to_learn_it() {
        let pins: [Pin; 2] = ["a==1".parse().unwrap(), "b==2".parse().unwrap()];
        let question = Question::Pins(&pins);
        assert_eq!(question.requirements(), "a==1\nb==2\n");
        let config: toml::Table = question.config().parse().unwrap();
        let known = config["dependency-metadata"].as_array().unwrap();
        assert_eq!((known.len(), known[1]["version"].as_str()), (2, Some("2")));
        assert!(known.iter().all(|known| known["requires-dist"].as_array().unwrap().is_empty()));
        assert_eq!(Question::ForBuild(&[]).mode(), "--no-build");
    }
}
