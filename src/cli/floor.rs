//! Brings the sandbox floor up, for a worker (`up`) or for one command
//! (`deploy`). The first half runs with one thread, before the runtime.
//!
//! ```text
//! check ─▶ clear what a dead one left ─▶ own mounts ─▶ fork the spawner
//!       ─▶ prepare the roots ─▶ give up capabilities ─▶ (runtime) connect
//! ```

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::CliError;
use super::place::make_dirs;
use crate::sandbox::cgroup::Hierarchies;
use crate::sandbox::{Base, Leftovers, Parts, RuntimeFile, Sandboxes, Spawner, Tuning, host, start_spawner};
use crate::settings::Settings;
use crate::stats::Stats;

/// The trees of a worker: one for each kind of network.
const TREES: usize = 2;

/// A spawner and roots, not yet connected to a runtime.
pub struct Foundation {
    socket: OwnedFd,
    pidfd: OwnedFd,
    base: Base,
    leftovers: Leftovers,
}

/// What to build on.
pub struct Site {
    /// The run-time directory: made here, removed by the spawner.
    pub run: PathBuf,
    /// The name of the control groups.
    pub group: String,
}

impl Foundation {
    /// Lays it. The caller has one thread.
    ///
    /// # Errors
    /// The machine lacks something, or what a dead worker left cannot be removed.
    pub fn lay(site: &Site) -> Result<Self, CliError> {
        host::check()?;
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        let hierarchies = Hierarchies::detect().map_err(crate::sandbox::SandboxError::from)?;
        let leftovers = leftovers(site, &hierarchies);
        leftovers.remove().map_err(CliError::Leftovers)?;
        host::private_mounts()?;
        let mnt = leftovers.mnt.clone();
        make_dirs(&mnt)?;
        let (socket, pidfd) = start_spawner(leftovers.clone())?;
        let base = Base::prepare(&mnt, &runtime_files()?)?;
        host::trim_capabilities()?;
        Ok(Self { socket, pidfd, base, leftovers })
    }

    /// What is the spawner's to remove, in case that it dies first.
    pub fn leftovers(&self) -> Leftovers {
        self.leftovers.clone()
    }

    /// Connects it to the runtime that this is called in.
    ///
    /// # Errors
    /// A control group could not be made.
    pub fn connect(
        self,
        settings: &Settings,
        seed: u32,
        stats: &Arc<Stats>,
    ) -> Result<Arc<Sandboxes>, CliError> {
        let spawner = Spawner::connect(self.socket, self.pidfd)?;
        Ok(Sandboxes::new(Parts {
            spawner,
            base: self.base,
            hierarchies: self.leftovers.hierarchies,
            group_names: self.leftovers.groups,
            seed,
            limits: settings.limits,
            tuning: tuning(settings),
            stats: Arc::clone(stats),
        })?)
    }
}

/// What a worker on this site leaves if it dies.
pub fn leftovers(site: &Site, hierarchies: &Hierarchies) -> Leftovers {
    let trees = (0..TREES).map(|tree| format!("{}-{tree}", site.group));
    Leftovers {
        hierarchies: hierarchies.clone(),
        groups: std::iter::once(site.group.clone()).chain(trees).collect(),
        mnt: site.run.join("mnt"),
        run: site.run.clone(),
    }
}

fn tuning(settings: &Settings) -> Tuning {
    let namespaces = settings.sandbox.namespaces;
    Tuning {
        ipc: namespaces.ipc,
        uts: namespaces.uts,
        cgroup: namespaces.cgroup,
        net: namespaces.net,
        seccomp: settings.features.enable_seccomp,
        tmp_mib: settings.sandbox.tmp_mib,
        tmp_inodes: settings.sandbox.tmp_inodes,
        cgroup_pool: settings.sandbox.cgroup_pool,
        max_sandboxes: settings.sandbox.max_sandboxes,
    }
}

/// What every sandbox finds below `/hosier`.
fn runtime_files() -> Result<Vec<RuntimeFile>, CliError> {
    let exe =
        std::env::current_exe().map_err(|source| CliError::File { path: "/proc/self/exe".into(), source })?;
    let module = exe.with_file_name("libhosier_native.so");
    let native = fs::read(&module).map_err(|_| CliError::NoModule { path: module })?;
    Ok(vec![
        RuntimeFile { name: "hosier_native.abi3.so", content: native },
        RuntimeFile {
            name: "hosier_zygote.py",
            content: include_bytes!("../../pyruntime/hosier_zygote.py").to_vec(),
        },
        RuntimeFile {
            name: "hosier_leaf.py",
            content: include_bytes!("../../pyruntime/hosier_leaf.py").to_vec(),
        },
    ])
}
