//! `hosier cleanup`: removes what a dead worker left when its spawner died with
//! it. `hosier up` does the same before it starts.

use super::floor::{Site, clear_dead_deploys, leftovers};
use super::place::Place;
use super::{CliError, PlaceArgs};
use crate::sandbox::cgroup::Hierarchies;
use crate::sandbox::host;
use crate::settings::Settings;

/// # Errors
/// A worker runs, or something could not be removed.
pub fn run(args: &PlaceArgs) -> Result<(), CliError> {
    let place = Place::of(&Settings::load(&args.dir, &[])?);
    place.check()?;
    host::check()?;
    let _lock = place.lock()?;
    let hierarchies = Hierarchies::detect().map_err(crate::sandbox::SandboxError::from)?;
    let site = Site { run: place.run(), group: place.group(), socket: Some(place.socket()) };
    leftovers(&site, &hierarchies).remove().map_err(CliError::Leftovers)?;
    clear_dead_deploys(&place, &hierarchies)
}
