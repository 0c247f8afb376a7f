//! `hosier cleanup`: removes what a dead worker left when its spawner died with
//! it. `hosier up` does the same before it starts.

use super::floor::{Site, clear_dead_deploys, leftovers};
use super::place::Place;
use super::{CliError, PlaceArgs};
use crate::sandbox::cgroup::Hierarchies;
use crate::sandbox::{foreign, host};
use crate::settings::Settings;

/// Longest wait for the removal of what was set aside; `hosier up` goes on with it.
const REMOVING_BOUND: std::time::Duration = std::time::Duration::from_secs(60);

/// # Errors
/// A worker runs, or something could not be removed.
pub fn run(args: &PlaceArgs) -> Result<(), CliError> {
    let settings = Settings::load(&args.dir, &[])?;
    let place = Place::of(&settings);
    place.check()?;
    host::check()?;
    let _lock = place.lock()?;
    let hierarchies = Hierarchies::detect().map_err(crate::sandbox::SandboxError::from)?;
    let site = Site { run: place.run(), group: place.group(), socket: Some(place.socket()) };
    leftovers(&site, &hierarchies).remove().map_err(CliError::Leftovers)?;
    clear_dead_deploys(&place, &hierarchies);
    for dir in [&place.worker, &place.code(), &settings.registry, &settings.pkgs_dir] {
        foreign::sweep(dir);
    }
    foreign::wait_until_removed(REMOVING_BOUND);
    Ok(())
}
