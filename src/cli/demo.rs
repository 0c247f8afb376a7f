//! `hosier demo`: the main job on real input.

use std::path::PathBuf;

use super::CliError;

/// # Errors
/// A step failed.
pub fn run(_place: Option<PathBuf>) -> Result<(), CliError> {
    Err(CliError::Demo("not yet".to_owned()))
}
