//! `hosier deploy`: checks a function, installs its packages, stores it. Needs
//! no worker; one that runs sees the new code within `registry_cache_ms`.
//!
//! The packages come first: what is stored can run.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};

use indicatif::{ProgressBar, ProgressStyle};

use super::floor::{Foundation, deploy_site};
use super::place::{Place, make_dirs};
use super::{CliError, PlaceArgs, up};
use crate::lambda::packages::{Depth, Entries, Interpreter, Progress, interpreter};
use crate::lambda::registry::Registry;
use crate::lambda::requirements::{Pin, Requirements};
use crate::lambda::tree::Bounds;
use crate::lambda::{FunctionName, Terms, archive, code};
use crate::sandbox::foreign;
use crate::settings::Settings;
use crate::stats::Stats;

/// Longest wait for the removal of what an install left.
const REMOVING_BOUND: std::time::Duration = std::time::Duration::from_secs(10);

/// # Errors
/// The function is malformed, or a package cannot be installed: nothing is stored then.
pub fn run(
    path: &Path,
    args: &PlaceArgs,
    name: Option<&str>,
    verify: bool,
    json: bool,
) -> Result<(), CliError> {
    let result = deploy(path, args, name, verify, json);
    // What is not removed by then, the next command or worker removes.
    foreign::wait_until_removed(REMOVING_BOUND);
    result
}

fn deploy(
    path: &Path,
    args: &PlaceArgs,
    name: Option<&str>,
    verify: bool,
    json: bool,
) -> Result<(), CliError> {
    let settings = Settings::load(&args.dir, &[])?;
    let place = Place::of(&settings);
    place.check()?;
    let name = FunctionName::new(&name.map_or_else(|| name_of(path), str::to_owned))?;
    let Interpreter { version, abi } = interpreter(&settings.sandbox.python)?;
    let terms = Terms::new(&settings, version);
    let registry = Registry::open(&settings.registry, Bounds::default())?;
    let declared = inspect(path, &name, &terms)?;
    let wanted = &declared.requirements;
    let depth = if verify { Depth::Whole } else { Depth::Times };
    if Entries::new(&settings.pkgs_dir, &abi).find_all(wanted, depth).is_none() {
        install(&settings, &place, wanted, depth)?;
    }
    if path.is_dir() {
        code::store_dir(&registry, &name, path, &terms)?;
    } else {
        code::store(&registry, &name, open(path)?, &terms)?;
    }
    eprintln!("hosier: {name} is deployed ({} packages)", wanted.len());
    if json {
        let packages: Vec<_> = wanted.keys().map(Pin::to_string).collect();
        println!("{}", serde_json::json!({ "name": name.as_str(), "packages": packages }));
    }
    Ok(())
}

fn inspect(path: &Path, name: &FunctionName, terms: &Terms) -> Result<code::Declared, CliError> {
    if path.is_dir() {
        return Ok(code::inspect(path, terms)?);
    }
    let unpacked = tempdir()?;
    let result = archive::unpack(open(path)?, &unpacked.0, name.as_str(), Bounds::default())
        .map_err(|source| CliError::Archive { path: path.to_owned(), source })
        .and_then(|()| Ok(code::inspect(&unpacked.0, terms)?));
    drop(unpacked);
    result
}

struct TempDir(std::path::PathBuf);

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = foreign::remove(&self.0);
    }
}

fn tempdir() -> Result<TempDir, CliError> {
    use std::os::unix::fs::DirBuilderExt;
    let path = std::env::temp_dir().join(format!("hosier-deploy-{}", std::process::id()));
    match std::fs::DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => Ok(TempDir(path)),
        Err(source) => Err(CliError::File { path, source }),
    }
}

fn open(path: &Path) -> Result<File, CliError> {
    if !path.is_file() {
        return Err(CliError::NoFunction { path: path.to_owned() });
    }
    File::open(path).map_err(|source| CliError::File { path: path.to_owned(), source })
}

fn name_of(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.strip_suffix(".tar.gz").map(str::to_owned).unwrap_or(name)
}

/// Installs what is missing or damaged, in sandboxes of this process's own.
fn install(settings: &Settings, place: &Place, wanted: &Requirements, depth: Depth) -> Result<(), CliError> {
    make_dirs(&place.worker)?;
    let number = std::process::id();
    let site = deploy_site(place, number);
    let foundation = Foundation::lay(&site)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::File { path: "the runtime".into(), source })?;
    let (result, cleared) = runtime.block_on(async {
        let stats = Arc::new(Stats::default());
        let sandboxes = foundation.connect(settings, place.seed() ^ number, &stats)?;
        let spawner = sandboxes.spawner.clone();
        let installed = async {
            let packages = up::packages(settings, &sandboxes, &stats)?;
            packages.install(wanted, depth, Arc::new(Bar::default())).await?;
            Ok::<_, CliError>(())
        };
        let result = tokio::select! {
            result = installed => result,
            _ = tokio::signal::ctrl_c() => Err(CliError::Interrupted),
        };
        let cleared = spawner
            .hang_up()
            .map_err(|source| CliError::File { path: "the spawner's socket".into(), source })?;
        Ok::<_, CliError>((result, cleared))
    })?;
    up::wait_for(&cleared, up::CLEAR_BOUND);
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

/// A progress bar on stderr, where that is a terminal; else a line a package.
#[derive(Default)]
struct Bar(Mutex<Option<ProgressBar>>);

impl Progress for Bar {
    fn begin(&self, missing: usize) {
        let bar = ProgressBar::new(missing as u64);
        if let Ok(style) = ProgressStyle::with_template("installing {bar:30} {pos}/{len} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        *self.lock() = Some(bar);
    }

    fn installed(&self, pin: &Pin) {
        if let Some(bar) = &*self.lock() {
            bar.inc(1);
            bar.set_message(pin.to_string());
            if bar.is_hidden() {
                eprintln!("hosier: installed {pin}");
            }
            if bar.length() == Some(bar.position()) {
                bar.finish_and_clear();
            }
        }
    }
}

impl Bar {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<ProgressBar>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
