//! A sandbox floor of a test's own, in the test's process: nextest gives each test one.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hosier::sandbox::cgroup::Hierarchies;
use hosier::sandbox::{
    Base, Claims, Command, Leftovers, Limits, Network, Outcome, Outlet, Parts, Runner, Sandboxes, Spawner,
    Tuning, host, pidfd, start_spawner,
};
use hosier::stats::Stats;

const TUNING: Tuning = Tuning {
    ipc: true,
    uts: true,
    cgroup: true,
    net: true,
    seccomp: true,
    tmp_mib: 16,
    tmp_inodes: 1024,
    cgroup_pool: 0,
    netns_pool: 0,
    max_sandboxes: 4,
};
pub const LIMITS: Limits =
    Limits { procs: 64, mem_mb: 250, cpu_percent: 200, swappiness: 0, runtime_sec: 60 };
/// Longest time that a test's spawner takes to clear up, in ms.
const CLEARED_MS: u64 = 10_000;

#[derive(Clone)]
pub struct Lab {
    pub sandboxes: Arc<Sandboxes>,
}

/// Runs `test` with a sandbox floor, and expects that nothing of it is left.
pub fn lab<F: Future<Output = ()>>(test: impl FnOnce(Lab) -> F) {
    lab_after(|| {}, test);
}

/// The same, after `prepare` has run in the mount namespace that the floor will have.
pub fn lab_after<F: Future<Output = ()>>(prepare: impl FnOnce(), test: impl FnOnce(Lab) -> F) {
    let dir = tempfile::Builder::new().prefix("hosier-outlet-").tempdir().unwrap();
    let group = format!("hosier-outlet-{}", std::process::id());
    host::check().unwrap();
    host::private_mounts().unwrap();
    prepare();
    let leftovers = Leftovers {
        hierarchies: Hierarchies::detect().unwrap(),
        groups: vec![group.clone()],
        mnt: dir.path().join("run/mnt"),
        run: dir.path().join("run"),
        socket: None,
    };
    std::fs::create_dir_all(&leftovers.mnt).unwrap();
    let claims = Claims::open().0;
    let (socket, spawner) = start_spawner(leftovers.clone(), &claims).unwrap();
    let base = Base::prepare(&leftovers.mnt, &[]).unwrap();
    host::trim_capabilities().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let cleared = runtime.block_on(async {
        let (lab, cleared) = floor(socket, spawner, base, claims, &leftovers);
        test(lab).await;
        cleared.hang_up().unwrap()
    });
    assert!(pidfd::gone(&cleared, CLEARED_MS), "the spawner did not end");
    assert!(!leftovers.run.exists(), "{} is left", leftovers.run.display());
    let left = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!left.contains(&*dir.path().to_string_lossy()), "mounts are left: {left}");
    let end = Instant::now() + Duration::from_millis(CLEARED_MS);
    while groups(&group) > 0 {
        assert!(Instant::now() < end, "control groups of {group} are left");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn floor(socket: OwnedFd, pid: OwnedFd, base: Base, claims: Claims, leftovers: &Leftovers) -> (Lab, Spawner) {
    let spawner = Spawner::connect(socket, pid).unwrap();
    let parts = Parts {
        spawner: spawner.clone(),
        base,
        hierarchies: leftovers.hierarchies.clone(),
        group_names: leftovers.groups.clone(),
        seed: std::process::id(),
        limits: LIMITS,
        tuning: TUNING,
        stats: Arc::new(Stats::default()),
        claims,
    };
    (Lab { sandboxes: Sandboxes::new(parts).unwrap() }, spawner)
}

/// Directories of that name in the control group hierarchies.
fn groups(name: &str) -> usize {
    fn count(dir: &Path, name: &str, depth: usize) -> usize {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories
            .map(|entry| match entry.file_name() == name {
                true => 1,
                false if depth > 0 => count(&entry.path(), name, depth - 1),
                false => 0,
            })
            .sum()
    }
    count(Path::new("/sys/fs/cgroup"), name, 2)
}

impl Lab {
    /// Runs python code with this way out (or in the host's network) to its end.
    pub async fn python(&self, code: &str, arguments: &[&str], outlet: Option<&Arc<Outlet>>) -> Outcome {
        let network = if outlet.is_some() { Network::None } else { Network::Host };
        self.command(code, arguments, network, outlet).await
    }

    async fn command(
        &self,
        code: &str,
        arguments: &[&str],
        network: Network,
        outlet: Option<&Arc<Outlet>>,
    ) -> Outcome {
        let python = ["/usr/bin/python3", "-I", "-c", code];
        let command = Command {
            argv: python.iter().chain(arguments).map(|text| (*text).to_owned()).collect(),
            // The last two would lead past the outlet.
            env: [("PATH", "/usr/bin:/bin"), ("http_proxy", "http://127.0.0.1:1"), ("NO_PROXY", "*")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            binds: Vec::new(),
            limits: LIMITS,
            network,
            outlet: outlet.cloned(),
            code: hosier::sandbox::Code::Tool,
        };
        self.sandboxes.run(command).await.unwrap()
    }
}
