//! The second step: a plain GET of what the resolve found, in a sandbox that
//! reaches the index, by a script of ours (pyruntime/hosier_fetch.py). The
//! worker hashes each file while it copies it out, and believes no other digest.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::failure::{self, Failure};
use super::installer::{Installer, Reach};
use super::lock::Artifact;
use super::step::{INPUT, OUT, Ran, Room, StepError};
use crate::sandbox::Command;

const SCRIPT: &str = "hosier_fetch.py";
const JOB: &str = "job.json";
const RESULT: &str = "result.json";
const RESULT_LIMIT_BYTES: u64 = 1 << 20;

/// Files fetched at one time.
const THREADS: u32 = 4;
/// Longest silence of a server, in seconds; the whole step has the installer's `runtime_sec`.
const READ_TIMEOUT_S: u32 = 60;

#[derive(Serialize)]
struct Job<'a> {
    files: Vec<Wanted<'a>>,
    limit_bytes: u64,
    threads: u32,
    timeout_s: u32,
}

#[derive(Serialize)]
struct Wanted<'a> {
    url: &'a str,
    name: &'a str,
    sha256: Option<&'a str>,
}

/// What the script says became of one file.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Fetched {
    Size(#[allow(dead_code, reason = "the file itself says")] u64),
    Failed(String),
    Wrong(String),
    /// All files together are larger than a step's disk may be.
    Large(#[allow(dead_code, reason = "the settings say")] u64),
}

impl Installer {
    /// Writes the job into `room`, and returns the command that does it.
    pub(super) fn fetch(&self, artifacts: &[Artifact], room: &Room) -> Result<Command, StepError> {
        let files = artifacts
            .iter()
            .map(|artifact| Wanted {
                url: &artifact.url,
                name: &artifact.file,
                sha256: artifact.sha256.as_deref(),
            })
            .collect();
        let limit_bytes = u64::from(self.space.mib) << 20;
        let job = Job { files, limit_bytes, threads: THREADS, timeout_s: READ_TIMEOUT_S };
        let text = serde_json::to_vec(&job).map_err(|error| StepError::io(&room.input)(error.into()))?;
        room.put(JOB, &text)?;
        room.put(SCRIPT, include_bytes!("../../../pyruntime/hosier_fetch.py"))?;
        let python = self.python.display().to_string();
        let (script, job) = (format!("{INPUT}/{SCRIPT}"), format!("{INPUT}/{JOB}"));
        Ok(self.command(Reach::Index, &[&python, "-I", "-S", &script, &job, OUT], room, &[]))
    }

    /// Copies what was fetched to the worker's directory `to`, each file checked;
    /// each with the digest that it has. Blocks.
    pub(super) fn fetched(
        &self,
        ran: &Ran,
        artifacts: &[Artifact],
        room: &Room,
        to: &Path,
    ) -> Result<Vec<Result<String, StepError>>, StepError> {
        if let Some(failure) = self.explain(ran, |output| Failure::Network { tail: failure::tail(output) }) {
            return Err(failure.into());
        }
        let text = room.answer(RESULT, RESULT_LIMIT_BYTES)?;
        let mut said: BTreeMap<String, Fetched> = serde_json::from_str(&text)
            .map_err(|error| StepError::io(&room.out.join(RESULT))(error.into()))?;
        Ok(artifacts
            .iter()
            .map(|artifact| self.check(ran, artifact, said.remove(&artifact.file), room, to))
            .collect())
    }

    fn check(
        &self,
        ran: &Ran,
        artifact: &Artifact,
        said: Option<Fetched>,
        room: &Room,
        to: &Path,
    ) -> Result<String, StepError> {
        let file = artifact.file.clone();
        // A server chose these words.
        let bounded = |said: &str| failure::tail(&self.operator.redact(said));
        match said {
            Some(Fetched::Size(_)) => {}
            Some(Fetched::Large(_)) => return Err(self.space.failure().into()),
            Some(Fetched::Wrong(said)) => {
                return Err(Failure::Digest { file, said: bounded(&said) }.into());
            }
            Some(Fetched::Failed(said)) => {
                let said = ran.complaint.as_ref().map_or(said.clone(), |why| format!("{said}\n{why}"));
                return Err(Failure::Fetch { file, said: bounded(&said) }.into());
            }
            None => {
                return Err(Failure::Fetch { file, said: "the fetcher says nothing of it".to_owned() }.into());
            }
        }
        let digest = room.take(&artifact.file, &to.join(&artifact.file), u64::from(self.space.mib) << 20)?;
        match &artifact.sha256 {
            Some(expected) if *expected != digest => {
                let said = format!("its sha256 is {digest}, and the index says {expected}");
                Err(Failure::Digest { file, said }.into())
            }
            _ => Ok(digest),
        }
    }
}
