//! From pins to wheels: runs the steps in their order. The worker's or the
//! command's process.
//!
//! ```text
//! all pins together   resolve ─▶ fetch ─┬─▶ a wheel
//! each by itself                        └─▶ a source ─▶ build, in rounds ─▶ a wheel
//! each by itself      a wheel ─▶ unpack into its staging
//! ```
//!
//! If the resolve of all fails, each pin is resolved alone, so that an error is that
//! of its pin and the others are installed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::build::{ROUNDS, Round};
use super::failure::Failure;
use super::installer::{Installer, UV};
use super::lock::{Artifact, Kind};
use super::resolve::Question;
use super::step::{self, Ran, Room, StepError, Steps};
use crate::lambda::registry::fresh_dir;
use crate::lambda::requirements::{Pin, Requirements, Sha256};
use crate::sandbox::foreign::Tree;
use crate::sandbox::{Bind, Command, RunError, Runner};

/// One install's way from pins to wheels.
pub(super) struct Supply<R> {
    pub installer: Installer,
    /// On the host.
    pub uv: PathBuf,
    pub runner: Arc<R>,
    /// Sandboxes that may run at one time.
    pub slots: Arc<Semaphore>,
    pub steps: Steps,
    /// The files that each pin accepts.
    pub accepted: Requirements,
    number: AtomicUsize,
}

/// A file that was fetched or built, in a directory of the worker's.
#[derive(Debug)]
pub(super) struct Supplied {
    pub artifact: Artifact,
    /// Of the artifact as it was fetched: what identifies the entry.
    pub sha256: String,
    pub dir: PathBuf,
    /// What its build was given, each with the digest that it had.
    pub built_with: Vec<(Artifact, String)>,
}

impl<R: Runner> Supply<R> {
    pub(super) fn new(
        installer: Installer,
        uv: PathBuf,
        runner: Arc<R>,
        slots: Arc<Semaphore>,
        steps: Steps,
        accepted: Requirements,
    ) -> Self {
        Self { installer, uv, runner, slots, steps, accepted, number: AtomicUsize::new(0) }
    }

    /// Fetches the file of each pin, in the pins' order.
    pub(super) async fn fetch_all(self: &Arc<Self>, pins: &[Pin]) -> Vec<Result<Supplied, StepError>> {
        let mut found = self.resolve_all(pins).await;
        for (pin, found) in pins.iter().zip(&mut found) {
            let refused = |artifact: &Artifact| {
                artifact.kind == Kind::Source && !self.installer.build.allows(pin.name())
            };
            if found.as_ref().is_ok_and(refused) {
                *found = Err(Failure::BuildRefused { name: pin.name().to_owned() }.into());
            }
        }
        let wanted: Vec<_> = found.iter().filter_map(|found| found.as_ref().ok()).cloned().collect();
        let fetched = self.fetch(&wanted).await;
        let mut fetched = match fetched {
            Ok(fetched) => fetched.into_iter(),
            Err(error) => {
                return found.into_iter().map(|found| found.and(Err(error.again()))).collect();
            }
        };
        let missing = || StepError::from(RunError::new("a file was not fetched"));
        found
            .into_iter()
            .map(|found| found.and_then(|_| fetched.next().unwrap_or_else(|| Err(missing()))))
            .collect()
    }

    /// Makes a wheel of what was fetched, where it is none.
    pub(super) async fn wheel(&self, pin: &Pin, supplied: Supplied) -> Result<Supplied, StepError> {
        match supplied.artifact.kind {
            Kind::Wheel => Ok(supplied),
            Kind::Source => self.build(pin, supplied).await,
        }
    }

    /// Unpacks a wheel into the room, as `out/files`.
    pub(super) async fn unpack(&self, wheel: &Supplied, room: &Room) -> Result<(), StepError> {
        let command = self.installer.unpack(&wheel.dir, &wheel.artifact.file, room);
        let ran = self.run(command, room).await?;
        self.installer.explain_other(&ran).map_or(Ok(()), |failure| Err(failure.into()))
    }

    async fn resolve_all(self: &Arc<Self>, pins: &[Pin]) -> Vec<Result<Artifact, StepError>> {
        match self.resolve(Question::Pins(pins)).await {
            Ok(found) => pins.iter().map(|pin| self.pick(&found, pin)).collect(),
            Err(StepError::Failure(failure)) if pins.len() > 1 && failure.is_of_one_package() => {
                self.resolve_each(pins).await
            }
            Err(StepError::Failure(failure)) if pins.len() == 1 => {
                vec![Err(self.with_newest(&pins[0], failure).await.into())]
            }
            Err(error) => pins.iter().map(|_| Err(error.again())).collect(),
        }
    }

    async fn resolve_each(self: &Arc<Self>, pins: &[Pin]) -> Vec<Result<Artifact, StepError>> {
        let mut asking = JoinSet::new();
        for (at, pin) in pins.iter().cloned().enumerate() {
            let supply = Arc::clone(self);
            asking.spawn(async move {
                let found = match supply.resolve(Question::Pins(std::slice::from_ref(&pin))).await {
                    Ok(found) => supply.pick(&found, &pin),
                    Err(StepError::Failure(failure)) => Err(supply.with_newest(&pin, failure).await.into()),
                    Err(error) => Err(error),
                };
                (at, found)
            });
        }
        let abandoned = || StepError::from(RunError::new("the resolve was given up"));
        let mut all: Vec<_> = pins.iter().map(|_| Err(abandoned())).collect();
        while let Some(joined) = asking.join_next().await {
            if let Ok((at, found)) = joined {
                all[at] = found;
            }
        }
        all
    }

    /// Adds which version there is, if that can be found out.
    async fn with_newest(&self, pin: &Pin, failure: Failure) -> Failure {
        if failure != (Failure::NoSuchVersion { newest: None }) {
            return failure;
        }
        let found = self.resolve(Question::Newest(pin.name())).await.unwrap_or_default();
        let newest = found.into_iter().find(|found| found.name == pin.name()).map(|found| found.version);
        Failure::NoSuchVersion { newest }
    }

    async fn resolve(&self, question: Question<'_>) -> Result<Vec<Artifact>, StepError> {
        let room = self.room("resolve")?;
        let command = self.installer.resolve(question, &room)?;
        let ran = self.run(command, &room).await?;
        self.installer.resolved(&ran, &room)
    }

    async fn fetch(&self, wanted: &[Artifact]) -> Result<Vec<Result<Supplied, StepError>>, StepError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let room = self.room("fetch")?;
        let dir = self.files()?;
        let command = self.installer.fetch(wanted, &room)?;
        let ran = self.run(command, &room).await?;
        let (installer, to, owned) = (self.installer.clone(), dir.clone(), wanted.to_vec());
        let checked = tokio::task::spawn_blocking(move || installer.fetched(&ran, &owned, &room, &to));
        let digests = checked.await.map_err(RunError::new)??;
        let supplied = wanted.iter().zip(digests).map(|(artifact, digest)| {
            let artifact = artifact.clone();
            digest.map(|sha256| Supplied { artifact, sha256, dir: dir.clone(), built_with: Vec::new() })
        });
        Ok(supplied.collect())
    }

    async fn build(&self, pin: &Pin, source: Supplied) -> Result<Supplied, StepError> {
        let archive = source.dir.join(&source.artifact.file);
        let mut known: Option<Vec<String>> = None;
        let (mut wheels, mut with) = (self.files()?, Vec::new());
        for round in 1..=ROUNDS {
            let room = self.room("build")?;
            let installable: Vec<_> =
                with.iter().map(|(wheel, _): &(Artifact, String)| wheel.clone()).collect();
            let command = self.installer.build(&archive, (&wheels, &installable), known.as_deref(), &room)?;
            let ran = self.run(command, &room).await?;
            let needs = match self.installer.built(pin, &ran, &room)? {
                Round::Wheel(file) => {
                    tracing::info!(package = %pin, round, with = with.len(), "package built from source");
                    return self.built(source, file, with, &room).await;
                }
                Round::Needs(needs) => needs,
            };
            if known.as_ref().is_some_and(|known| needs.iter().all(|need| known.contains(need))) {
                let tail = format!("it asks again for {}, which it was given", needs.join(", "));
                return Err(Failure::Build { tail }.into());
            }
            (wheels, with) = self.for_build(&needs).await?;
            known = Some(needs);
        }
        let needs = known.unwrap_or_default().join(", ");
        let tail = format!("it asked for something new {ROUNDS} times, the last time for {needs}");
        Err(Failure::Build { tail }.into())
    }

    /// Takes the wheel out of a build's directory.
    async fn built(
        &self,
        source: Supplied,
        file: String,
        built_with: Vec<(Artifact, String)>,
        room: &Room,
    ) -> Result<Supplied, StepError> {
        let dir = self.files()?;
        let limit_bytes = u64::from(self.installer.space.mib) << 20;
        room.take(&file, &dir.join(&file), limit_bytes)
            .map_err(|error| Failure::Build { tail: error.to_string() })?;
        let artifact = Artifact { kind: Kind::Wheel, file, ..source.artifact };
        Ok(Supplied { artifact, sha256: source.sha256, dir, built_with })
    }

    /// Fetches the wheels that a build asks for, and what they need.
    async fn for_build(&self, needs: &[String]) -> Result<(PathBuf, Vec<(Artifact, String)>), StepError> {
        let refuse = |error| match error {
            StepError::Failure(failure) => {
                Failure::BuildRequirements { needs: needs.join(", "), failure: Box::new(failure) }.into()
            }
            error => error,
        };
        let mut found = self.resolve(Question::ForBuild(needs)).await.map_err(refuse)?;
        found.retain(|artifact| artifact.kind == Kind::Wheel);
        let fetched = self.fetch(&found).await.map_err(refuse)?;
        let mut dir = None;
        let mut all = Vec::new();
        for supplied in fetched {
            let supplied = supplied.map_err(refuse)?;
            dir = Some(supplied.dir);
            all.push((supplied.artifact, supplied.sha256));
        }
        Ok((dir.map_or_else(|| self.files(), Ok)?, all))
    }

    async fn run(&self, mut command: Command, room: &Room) -> Result<Ran, StepError> {
        command.binds.push(Bind { source: self.uv.clone(), target: UV.to_owned(), writable: false });
        step::run(&*self.runner, &self.slots, self.installer.space, command, room).await
    }

    /// Returns the file of `pin` among what was found: the first that its hashes allow, as far as the
    /// index says what the file's is; what was fetched is looked at once more.
    fn pick(&self, found: &[Artifact], pin: &Pin) -> Result<Artifact, StepError> {
        let nothing = || Failure::Other { tail: format!("the resolver says nothing of {pin}") };
        let mut of_pin = found.iter().filter(|found| found.name == pin.name()).peekable();
        let first = *of_pin.peek().ok_or_else(nothing)?;
        let allowed = |artifact: &&Artifact| {
            let digest = artifact.sha256.as_ref().and_then(|digest| digest.parse().ok());
            digest.is_none_or(|digest: Sha256| self.accepts(pin, &digest))
        };
        let refused = || Failure::NotAccepted {
            file: first.file.clone(),
            sha256: first.sha256.clone().unwrap_or_default(),
        };
        Ok(of_pin.find(allowed).ok_or_else(refused)?.clone())
    }

    /// Returns whether a file with this digest may become `pin`.
    pub(super) fn accepts(&self, pin: &Pin, digest: &Sha256) -> bool {
        self.accepted.get(pin).is_none_or(|hashes| hashes.allow(digest))
    }

    /// Makes the directories of one step, which no entry of the store is made in.
    pub(super) fn room(&self, name: &str) -> Result<Room, StepError> {
        Room::new(self.steps.path(), &self.numbered(name))
    }

    /// Makes an empty directory of the worker's.
    fn files(&self) -> Result<PathBuf, StepError> {
        let dir = self.steps.path().join(self.numbered("files"));
        fresh_dir(&dir).map_err(StepError::io(&dir))?;
        Ok(dir)
    }

    fn numbered(&self, name: &str) -> String {
        format!("{name}-{}", self.number.fetch_add(1, Ordering::Relaxed))
    }
}

/// Moves the files that a room's sandbox unpacked to `to`, which is not there.
pub(super) fn settle(room: &Room, to: &Path) -> Result<(), StepError> {
    // A link of that name stays where it is.
    Tree::open(&room.out)?.below("files")?;
    std::fs::rename(room.out.join("files"), to).map_err(StepError::io(to))
}
