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
use super::place::{Place, make_dirs};
use crate::sandbox::cgroup::Hierarchies;
use crate::sandbox::{
    Base, Claims, Leftovers, Parts, RuntimeFile, Sandboxes, Spawner, Tuning, host, start_spawner,
};
use crate::settings::Settings;
use crate::stats::Stats;

/// User namespaces of a worker at once: one for each kind of network, and one for each
/// function's own node.
const NAMESPACES: usize = 2 + 64;

/// A spawner and roots, not yet connected to a runtime.
pub struct Foundation {
    socket: OwnedFd,
    pidfd: OwnedFd,
    base: Base,
    claims: Claims,
    leftovers: Leftovers,
}

/// Places and names that a foundation is built on.
pub struct Site {
    /// The run-time directory: made here, removed by the spawner.
    pub run: PathBuf,
    /// The name of the control groups.
    pub group: String,
    /// The worker's own socket, where there will be one.
    pub socket: Option<PathBuf>,
}

impl Foundation {
    /// Lays it. The caller has one thread.
    ///
    /// # Errors
    /// The machine lacks something, or what a dead worker left cannot be removed.
    pub fn lay(site: &Site) -> Result<Self, CliError> {
        host::check()?;
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        host::raise_descriptor_limit();
        host::private_mounts()?;
        // From the mounts of this namespace: a cgroup is handed on by a clone of them.
        let hierarchies = Hierarchies::detect().map_err(crate::sandbox::SandboxError::from)?;
        let leftovers = leftovers(site, &hierarchies);
        leftovers.remove().map_err(CliError::Leftovers)?;
        let mnt = leftovers.mnt.clone();
        make_dirs(&mnt)?;
        // The spawner has it open as well, until the last sandbox is gone.
        let (claims, note) = Claims::open();
        if let Some(note) = note {
            eprintln!("hosier: {note}");
        }
        let (socket, pidfd) = start_spawner(leftovers.clone(), &claims)?;
        let base = Base::prepare(&mnt, &runtime_files()?)?;
        host::trim_capabilities()?;
        Ok(Self { socket, pidfd, base, claims, leftovers })
    }

    /// Returns the spawner's leftovers, for the case that it dies first.
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
            claims: self.claims,
            limits: settings.limits,
            tuning: tuning(settings),
            stats: Arc::clone(stats),
        })?)
    }
}

/// What a worker on this site leaves if it dies.
pub fn leftovers(site: &Site, hierarchies: &Hierarchies) -> Leftovers {
    let namespaces = (0..NAMESPACES).map(|number| format!("{}-{number:02}", site.group));
    Leftovers {
        hierarchies: hierarchies.clone(),
        groups: std::iter::once(site.group.clone()).chain(namespaces).collect(),
        mnt: site.run.join("mnt"),
        run: site.run.clone(),
        socket: site.socket.clone(),
    }
}

/// What a `deploy` works on beside a worker of the same directory.
pub fn deploy_site(place: &Place, pid: u32) -> Site {
    Site {
        run: place.worker.join(format!("{DEPLOY}{pid}")),
        group: format!("{}-{DEPLOY}{pid}", place.group()),
        socket: None,
    }
}

const DEPLOY: &str = "deploy-";

/// Removes what deploys left that died together with their spawner; what cannot be
/// removed is told.
pub fn clear_dead_deploys(place: &Place, hierarchies: &Hierarchies) {
    for entry in fs::read_dir(&place.worker).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(DEPLOY).and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        // Its spawner clears up while it lives; a number that was taken again waits for the next time.
        if !std::path::Path::new("/proc").join(pid.to_string()).exists() {
            // Its groups and directories have names of their own: nobody needs them gone.
            if let Err(wrong) = leftovers(&deploy_site(place, pid), hierarchies).remove() {
                eprintln!("hosier: what deploy {pid} left could not be removed: {wrong}");
            }
        }
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
        netns_pool: settings.sandbox.netns_pool,
        max_sandboxes: settings.sandbox.max_sandboxes,
    }
}

/// What every sandbox finds below `/hosier`.
fn runtime_files() -> Result<Vec<RuntimeFile>, CliError> {
    let exe =
        std::env::current_exe().map_err(|source| CliError::File { path: "/proc/self/exe".into(), source })?;
    let module = exe.with_file_name("libhosier_native.so");
    let native = fs::read(&module).map_err(|_| CliError::NoModule { path: module })?;
    let python = |name, content: &[u8]| RuntimeFile { name, content: content.to_vec() };
    Ok(vec![
        RuntimeFile { name: "hosier_native.abi3.so", content: native },
        python("hosier_leaf.py", include_bytes!("../../pyruntime/hosier_leaf.py")),
        python("hosier_snapshot.py", include_bytes!("../../pyruntime/hosier_snapshot.py")),
        python("hosier_threads.py", include_bytes!("../../pyruntime/hosier_threads.py")),
        python("hosier_unique.py", include_bytes!("../../pyruntime/hosier_unique.py")),
        python("hosier_zygote.py", include_bytes!("../../pyruntime/hosier_zygote.py")),
        python("snapshot_restore_py.py", include_bytes!("../../pyruntime/snapshot_restore_py.py")),
    ])
}
