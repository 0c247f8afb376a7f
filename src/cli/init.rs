//! `hosier init`: makes a worker directory.

use std::io::Write;

use super::place::{Place, make_dirs};
use super::{CliError, PlaceArgs};
use crate::lambda::packages::{ToolError, ensure_uv};
use crate::settings::{Settings, default_file};
use crate::trigger::Token;

/// # Errors
/// A directory cannot be made.
pub fn run(args: &PlaceArgs) -> Result<(), CliError> {
    let dir = &args.dir;
    make_dirs(dir)?;
    let path = dir.join("hosier.toml");
    let file = |source| CliError::File { path: path.clone(), source };
    // Never over an operator's own settings.
    match std::fs::File::options().write(true).create_new(true).open(&path) {
        Ok(mut new) => new.write_all(default_file().as_bytes()).map_err(file)?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(file(error)),
    }
    let settings = Settings::load(dir, &[])?;
    for directory in [&settings.registry, &settings.pkgs_dir, &settings.worker_dir] {
        make_dirs(directory)?;
    }
    Token::ensure(&Place::of(&settings).token())?;
    // Only functions with packages need it: a machine without an index is no reason to stop.
    if let Err(error @ (ToolError::InstallUv { .. } | ToolError::NoUv(_))) =
        ensure_uv(dir, settings.installer.uv.as_deref(), &settings.sandbox.python)
    {
        eprintln!("hosier: functions with packages cannot be deployed yet: {error}");
    }
    eprintln!("hosier: {} is ready: `hosier deploy -p {0} PATH`, then `hosier up -p {0}`", dir.display());
    Ok(())
}
