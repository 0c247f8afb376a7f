//! Entries that are not as they were recorded: found, set aside, and fetched again. The worker's or
//! the command's process.
//!
//! ```text
//! a function's code is new   ─┐                        ┌─ sound: nobody looks again for LOOK_AGAIN
//! a view is made             ─┼─▶ looked at lately? ─▶ sizes and times
//! a call failed              ─┘     yes: not again     └─ damaged ─▶ set aside ─▶ fetched
//! ```
//!
//! A look takes a call of the system for each file, so a start that finds its view made takes none.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::digests::{Damage, Depth};
use super::{LOCKS, PackageError, Packages, Store, lock, takeover};
use crate::lambda::requirements::{Hashes, Pin, Pins, Requirements};
use crate::sandbox::Runner;

/// How long an entry that was looked at is taken for sound.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// The same after a call that failed: whoever makes calls fail costs the worker one look in that time.
const LOOK_SOONER: Duration = Duration::from_secs(1);
/// How often an entry is fetched again in one run of the worker; then its disk is to blame.
const MENDS: u32 = 5;

/// What an install came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Installed {
    /// An entry for each requirement.
    pub pins: Pins,
    /// Entries that were damaged and are set aside: whatever was imported from them is not to be
    /// used any more.
    pub mended: Vec<Pin>,
}

/// What is known of entries from earlier looks.
#[derive(Debug, Default)]
pub(super) struct Looks {
    entries: Mutex<HashMap<Pin, Look>>,
    /// How often any entry was set aside.
    mends: AtomicU64,
}

#[derive(Debug, Default)]
struct Look {
    /// When it was found sound. `None`: it was not.
    sound: Option<Instant>,
    /// How often it was set aside.
    mends: u32,
}

impl Looks {
    /// Notes that an entry is sound now.
    pub(super) fn looked(&self, pin: &Pin) {
        self.lock().entry(pin.clone()).or_default().sound = Some(Instant::now());
    }

    fn is_due(&self, pin: &Pin, after: Duration) -> bool {
        let sound = self.lock().get(pin).and_then(|look| look.sound);
        sound.is_none_or(|sound| sound.elapsed() >= after)
    }

    /// Notes that an entry is not sound.
    fn suspect(&self, pin: &Pin) {
        self.lock().entry(pin.clone()).or_default().sound = None;
    }

    /// Notes that an entry is set aside; how often that was.
    fn mended(&self, pin: &Pin) -> u32 {
        let mut looks = self.lock();
        let look = looks.entry(pin.clone()).or_default();
        look.sound = None;
        look.mends += 1;
        self.mends.fetch_add(1, Ordering::Relaxed);
        look.mends
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Pin, Look>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What there is of a requirement.
pub(super) struct Ready {
    /// The entry that serves it, if there is one.
    pub(super) pin: Option<Pin>,
    /// What was set aside.
    pub(super) damaged: Vec<(Pin, Damage)>,
}

/// Adds to the failure of a fetch that the package was there, and is damaged.
pub(super) fn failed(error: PackageError, damaged: Option<(Pin, Damage)>) -> PackageError {
    match damaged {
        Some((pin, damage)) => {
            PackageError::NotMended { pin, damage: Box::new(damage), source: Box::new(error) }
        }
        None => error,
    }
}

impl<R: Runner> Packages<R> {
    /// Looks at the entries of `pins`, for a call that failed; whether one of them is damaged.
    pub async fn is_damaged(&self, pins: &Pins) -> bool {
        let (store, pins) = (self.0.clone(), pins.clone());
        tokio::task::spawn_blocking(move || store.check(&pins, true).is_err()).await.unwrap_or(false)
    }

    /// How often this process set an entry aside: a sandbox that was started before may see one.
    pub fn mends(&self) -> u64 {
        self.0.looks.mends.load(Ordering::Relaxed)
    }

    /// Hashes every entry of this interpreter, and sets aside those that are damaged: the next
    /// function that asks for one fetches it. Returns how many entries there are, and the damaged ones.
    /// Blocks.
    pub fn verify(&self) -> (usize, Vec<(Pin, Damage)>) {
        let all = self.0.entries.all();
        let damaged = all.iter().filter_map(|pin| {
            let _lock = self.0.try_lock(pin)?;
            match self.0.entries.check(pin, Depth::Whole) {
                Ok(()) => {
                    self.0.looks.looked(pin);
                    None
                }
                Err(damage) => {
                    let aside = self.0.set_aside(pin, &damage);
                    aside.map_err(|error| tracing::warn!(%error, "a damaged package stays")).ok()?;
                    Some((pin.clone(), damage))
                }
            }
        });
        let damaged = damaged.collect();
        (all.len(), damaged)
    }
}

impl<R: Runner> Store<R> {
    /// Splits requirements into those that a sound entry serves, and those that are to be installed.
    pub(super) async fn look(
        self: &Arc<Self>,
        requirements: &Requirements,
        depth: Depth,
    ) -> Result<(Installed, Vec<(Pin, Hashes)>), PackageError> {
        if requirements.is_empty() {
            return Ok(Default::default());
        }
        let (store, requirements) = (self.clone(), requirements.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let (mut installed, mut missing) = (Installed::default(), Vec::new());
            for (pin, hashes) in requirements {
                match store.entries.find(&pin, &hashes).filter(|entry| store.is_sound(entry, depth).is_ok()) {
                    Some(entry) => _ = installed.pins.insert(entry),
                    None => missing.push((pin, hashes)),
                }
            }
            (installed, missing)
        });
        looked.await.map_err(|_| PackageError::Abandoned)
    }

    /// Looks at entries, those left out that were found sound lately; `sooner` if a call failed.
    ///
    /// # Errors
    /// The first that is damaged.
    pub(super) fn check(&self, pins: &Pins, sooner: bool) -> Result<(), (Pin, Damage)> {
        let after = if sooner { LOOK_SOONER } else { LOOK_AGAIN };
        for pin in pins.iter().filter(|pin| self.looks.is_due(pin, after)) {
            match self.entries.check(pin, Depth::Times) {
                Ok(()) => self.looks.looked(pin),
                Err(damage) => {
                    self.looks.suspect(pin);
                    return Err((pin.clone(), damage));
                }
            }
        }
        Ok(())
    }

    fn is_sound(&self, entry: &Pin, depth: Depth) -> Result<(), Damage> {
        if depth == Depth::Times && !self.looks.is_due(entry, LOOK_AGAIN) && self.entries.path(entry).is_dir()
        {
            return Ok(());
        }
        self.entries.check(entry, depth)?;
        self.looks.looked(entry);
        Ok(())
    }

    /// Finds an entry for a requirement, and sets aside those that are damaged. The caller holds
    /// the pin's lock.
    pub(super) fn ready(&self, pin: &Pin, hashes: &Hashes, depth: Depth) -> Result<Ready, PackageError> {
        let mut damaged = Vec::new();
        // Each round takes one entry away.
        while let Some(entry) = self.entries.find(pin, hashes) {
            match self.entries.check(&entry, depth) {
                Ok(()) => {
                    self.looks.looked(&entry);
                    return Ok(Ready { pin: Some(entry), damaged });
                }
                Err(damage) => {
                    let times = self.set_aside(&entry, &damage)?;
                    if times > MENDS {
                        return Err(PackageError::DamagedAgain {
                            pin: pin.clone(),
                            damage: Box::new(damage),
                            times,
                        });
                    }
                    damaged.push((entry, damage));
                }
            }
        }
        // An entry of the older layout says nothing of its file.
        let old = hashes
            .is_empty()
            .then(|| takeover::take_over(&self.pkgs_dir, &self.entries, &self.python.abi, pin));
        Ok(Ready { pin: old.flatten(), damaged })
    }

    /// Takes the lock of a pin if nobody has it.
    fn try_lock(&self, pin: &Pin) -> Option<Flock<File>> {
        lock(&self.entries.dir().join(LOCKS), pin, FlockArg::LockExclusiveNonblock).ok()
    }

    fn set_aside(&self, entry: &Pin, damage: &Damage) -> Result<u32, PackageError> {
        let (file, reason) = (damage.file.display(), &damage.reason);
        tracing::warn!(package = %entry, %file, reason, "a package is damaged: it is set aside to be fetched again");
        self.entries.set_aside(entry).map_err(PackageError::io(&self.entries.path(entry)))?;
        Ok(self.looks.mended(entry))
    }
}
