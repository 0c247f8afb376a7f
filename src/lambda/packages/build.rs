//! The third step, where only source fits: a wheel made of it, in rounds, each a
//! sandbox without network, password or cache of others. Runs foreign code, so
//! that nothing that comes out is believed.
//!
//! ```text
//! round 1   reads what the build needs      ─▶ resolve, fetch (wheels only)
//! round 2   asks the backend what else      ─▶ resolve, fetch
//! round 3   builds                          ─▶ a wheel of that name and version
//! ```
//!
//! A round that needs nothing new goes on at once; there are [`ROUNDS`] at most.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::failure::{self, Failure};
use super::installer::{Installer, Reach, UV, WHEELS};
use super::lock::{Artifact, is_plain};
use super::step::{INPUT, OUT, Ran, Room, StepError};
use crate::lambda::requirements::{Pin, normalize};
use crate::sandbox::{Bind, Code, Command};

/// Sandboxes that one build may take.
pub(super) const ROUNDS: usize = 4;
/// Requirements that a build may name, and bytes of each.
const NEEDS_LIMIT: usize = 64;
const NEED_LIMIT_BYTES: usize = 300;

const SCRIPT: &str = "hosier_build.py";
const JOB: &str = "job.json";
const RESULT: &str = "result.json";
const RESULT_LIMIT_BYTES: u64 = 64 * 1024;

/// Where a sandbox shows the source archive's directory.
const SOURCE: &str = "/source";

#[derive(Serialize)]
struct Job<'a> {
    source: String,
    uv: &'static str,
    python: String,
    wheels: Vec<String>,
    known: Option<&'a [String]>,
    file_limit_bytes: u64,
}

/// What a round came to.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Round {
    /// All that the build asks for.
    Needs(Vec<String>),
    /// A wheel's name, in the step's directory.
    Wheel(String),
}

impl Installer {
    /// Writes a round's job into `room`, and returns the command that does it.
    ///
    /// `source` is the archive, `wheels` the directory of the worker's with the files
    /// of `with` in it, and `known` the requirements that these fulfil.
    pub(super) fn build(
        &self,
        source: &Path,
        (wheels, with): (&Path, &[Artifact]),
        known: Option<&[String]>,
        room: &Room,
    ) -> Result<Command, StepError> {
        let file = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let shown = format!("{SOURCE}/{file}");
        let job = Job {
            source: shown.clone(),
            uv: UV,
            python: self.python.display().to_string(),
            wheels: with.iter().map(|wheel| format!("{WHEELS}/{}", wheel.file)).collect(),
            known,
            file_limit_bytes: u64::from(self.space.mib) << 20,
        };
        let text = serde_json::to_vec(&job).map_err(|error| StepError::io(&room.input)(error.into()))?;
        room.put(JOB, &text)?;
        room.put(SCRIPT, include_bytes!("../../../pyruntime/hosier_build.py"))?;
        let python = self.python.display().to_string();
        let (script, job) = (format!("{INPUT}/{SCRIPT}"), format!("{INPUT}/{JOB}"));
        let binds = [
            Bind { source: source.to_owned(), target: shown, writable: false },
            Bind { source: wheels.to_owned(), target: WHEELS.to_owned(), writable: false },
        ];
        let command = self.command(Reach::Nothing, &[&python, "-I", "-S", &script, &job, OUT], room, &binds);
        Ok(Command { code: Code::Foreign, ..command })
    }

    /// Reads what a round came to, after its sandbox is gone.
    pub(super) fn built(&self, pin: &Pin, ran: &Ran, room: &Room) -> Result<Round, StepError> {
        if let Some(failure) = self.explain(ran, |output| Failure::Build { tail: failure::tail(output) }) {
            return Err(failure.into());
        }
        let text = room.answer(RESULT, RESULT_LIMIT_BYTES).map_err(|_| lies("it leaves no answer"))?;
        judge(pin, &text).map_err(StepError::Failure)
    }
}

/// Judges a round's answer.
fn judge(pin: &Pin, text: &str) -> Result<Round, Failure> {
    let round: Round = serde_json::from_str(text).map_err(|_| lies("its answer is not readable"))?;
    match &round {
        Round::Needs(needs) if needs.is_empty() || needs.len() > NEEDS_LIMIT => {
            Err(lies(&format!("it asks for {} packages; up to {NEEDS_LIMIT} are fetched", needs.len())))
        }
        Round::Needs(needs) => match needs.iter().find(|need| !is_requirement(need)) {
            Some(need) => {
                Err(lies(&format!("it asks for {:?}, which is no name with versions", shortened(need))))
            }
            None => Ok(round),
        },
        Round::Wheel(file) if !is_wheel_of(pin, file) => {
            Err(lies(&format!("its wheel {:?} is not one of {pin}", shortened(file))))
        }
        Round::Wheel(_) => Ok(round),
    }
}

fn lies(what: &str) -> Failure {
    Failure::Build { tail: what.to_owned() }
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Returns whether a text from a build may be a line of a requirements file: a
/// name with extras, versions and a marker, and neither an option, nor a URL, a
/// path or a second line.
fn is_requirement(text: &str) -> bool {
    let (requirement, marker) = text.split_once(';').unwrap_or((text, ""));
    let name_end = requirement.find(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c));
    let (name, rest) = requirement.split_at(name_end.unwrap_or(requirement.len()));
    text.len() <= NEED_LIMIT_BYTES
        && normalize(name).is_some()
        && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b" [],()<>=!~.*+_".contains(&byte))
        && marker.bytes().all(|byte| byte.is_ascii_alphanumeric() || b" ()<>=!~.*+_'\",-".contains(&byte))
        && !marker.contains("--")
}

/// Returns whether a file's name is that of a wheel of `pin`.
fn is_wheel_of(pin: &Pin, file: &str) -> bool {
    let Some(stem) = file.strip_suffix(".whl").filter(|_| is_plain(file) && file.len() <= 255) else {
        return false;
    };
    let parts: Vec<_> = stem.split('-').collect();
    // name-version(-build)?-python-abi-platform
    matches!(parts.len(), 5 | 6)
        && normalize(parts[0]).as_deref() == Some(pin.name())
        && same_version(parts[1], pin.version())
}

/// Returns whether two versions are one, as PEP 440 writes it: 1.0 and 1.0.0, 1.0+a.b and 1.0+a_b.
fn same_version(one: &str, other: &str) -> bool {
    let canonical = |version: &str| {
        let version = version.trim_start_matches('v').to_ascii_lowercase().replace(['_', '-'], ".");
        let (public, local) = version.split_once('+').map_or((version.as_str(), ""), |(p, l)| (p, l));
        let end = public.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(public.len());
        let (release, rest) = public.split_at(end);
        let release = release.trim_end_matches('.');
        let mut numbers: Vec<_> = release.split('.').map(|part| part.trim_start_matches('0')).collect();
        while numbers.last().is_some_and(|last| last.is_empty()) {
            numbers.pop();
        }
        (numbers.join("."), rest.replace('.', ""), local.to_owned())
    };
    canonical(one) == canonical(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requirement_of_a_build_is_a_name_with_versions_and_nothing_else() {
        for text in [
            "setuptools>=40.8.0",
            "setuptools >= 40.8.0",
            "wheel",
            "numpy==2.0.*; python_version >= '3.9'",
            "hatchling[cli,x]>=1,<2",
            "a (>=1)",
        ] {
            assert!(is_requirement(text), "{text}");
        }
        for text in [
            "",
            "-r /etc/shadow",
            "--index-url http://evil",
            "a --hash=sha256:00",
            "a\nb",
            "a\\",
            "a @ http://evil/a.whl",
            "a@file:///etc/shadow",
            "./a",
            "/etc/a",
            "http://evil/a.whl",
            "a==${HOME}",
            "a; x --index-url http://evil",
            "a # b",
            &"a".repeat(400),
        ] {
            assert!(!is_requirement(text), "{text}");
        }
    }

    #[test]
    fn a_wheel_is_that_of_the_pin_however_its_name_is_written() {
        let pin: Pin = "my-thing==1.0".parse().unwrap();
        for file in ["my_thing-1.0-py3-none-any.whl", "My.Thing-1.0.0-1-cp311-cp311-linux_x86_64.whl"] {
            assert!(is_wheel_of(&pin, file), "{file}");
        }
        for file in [
            "my_thing-1.1-py3-none-any.whl",
            "other-1.0-py3-none-any.whl",
            "../my_thing-1.0-py3-none-any.whl",
            "x",
        ] {
            assert!(!is_wheel_of(&pin, file), "{file}");
        }
        for (one, other, same) in [
            ("1.0", "1", true),
            ("1.0.post0", "1.0.post0", true),
            ("2.9.0.post0", "2.9.post0", true),
            ("1.0rc1", "1.0", false),
            ("1.0+cu118", "1.0", false),
            ("1.0+a_b", "1.0+a.b", true),
            ("1.10", "1.1", false),
            ("2024.01", "2024.1", true),
        ] {
            assert_eq!(same_version(one, other), same, "{one} {other}");
        }
    }

    #[test]
    fn nothing_that_a_build_says_is_believed() {
        let pin: Pin = "a==1".parse().unwrap();
        assert_eq!(judge(&pin, r#"{"needs": ["b"]}"#).unwrap(), Round::Needs(vec!["b".to_owned()]));
        for text in [
            "",
            "[]",
            r#"{"needs": []}"#,
            r#"{"needs": ["-r /etc/shadow"]}"#,
            r#"{"wheel": "../../../etc/shadow"}"#,
            r#"{"wheel": "b-1-py3-none-any.whl"}"#,
            r#"{"other": 1}"#,
        ] {
            assert!(matches!(judge(&pin, text), Err(Failure::Build { .. })), "{text}");
        }
        let many = serde_json::json!({ "needs": vec!["b"; 65] }).to_string();
        assert!(judge(&pin, &many).unwrap_err().to_string().contains("65"));
    }
}
