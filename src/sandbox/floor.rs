//! The face of the sandbox floor: makes walls, and starts processes behind
//! them. Runs in the worker.
//!
//! ```text
//! cell(purpose) ──▶ Cell: walls + descriptors + control group + socket + log
//!                     │
//!        ┌────────────┴──────────────┐
//!   spawn: the spawner         handed to a zygote, which
//!   starts a fresh process     forks a child into it
//!        └────────────┬──────────────┘
//!                  Started
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use hosier_zygote::birth::{Birth, Pid1, Role};
use hosier_zygote::quotas::Quotas;
use hosier_zygote::sys::mount::{Attr, tmpfs};
use hosier_zygote::sys::socket;
use hosier_zygote::wire::{Confinement, ProcView, Walls};
use nix::libc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::base::{STAGING, c_string};
use super::cell::{Cell, Order, Purpose, UserNamespace};
use super::cgroup::{Group, Pool};
use super::confined::{self, Expected};
use super::error::{About, During};
use super::homes::Homes;
use super::ids::{Claims, FIRST_LEAF_ID, IdRange, Ids, LeafId, LeafIds, RANGE};
use super::life::{Estate, Identity, Kept};
use super::quotas::{self, Host};
use super::roster::Roster;
use super::seccomp::Filters;
use super::writable::{Wanted, WritableRoot};
use super::{
    Base, Channel, Limits, MountPoint, NetPool, Network, Output, Sandbox, SandboxError, Spawner, Undertaker,
};
use crate::stats::Stats;

/// Open descriptors of a confined process, at most.
const FILES: u64 = 1024;

/// What a writable root holds of our own, beside what its sandbox may write.
const OWN_MIB: u32 = 32;
const OWN_INODES: u32 = 1024;

/// Writable places of every sandbox, each a tmpfs of its own.
const SCRATCH: [&str; 3] = ["tmp", "host", "dev/shm"];

/// Which walls are up; all of them by default. Each can be taken down, so that
/// its price can be measured.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    pub ipc: bool,
    pub uts: bool,
    pub cgroup: bool,
    pub net: bool,
    pub seccomp: bool,
    pub tmp_mib: u32,
    pub tmp_inodes: u32,
    pub cgroup_pool: usize,
    /// Network namespaces that a tree keeps ready; 0 is off.
    pub netns_pool: usize,
    pub max_sandboxes: usize,
}

/// A process behind its walls.
#[derive(Debug)]
pub struct Started {
    pub sandbox: Sandbox,
    pub channel: Channel,
    pub output: Output,
    /// Its `wait` status, where the spawner started it.
    pub ended: Option<oneshot::Receiver<i32>>,
}

/// The sandbox floor of a running worker.
#[derive(Debug)]
pub struct Sandboxes {
    pub spawner: Spawner,
    pub base: Base,
    pub filters: Filters,
    pub undertaker: Undertaker,
    pub tuning: Tuning,
    homes: Homes,
    ids: Ids,
    fresh: Pool,
    /// Of fresh processes, and of each user namespace that stands.
    groups: Mutex<Vec<Weak<Group>>>,
    quotas: Quotas,
    places: Arc<Semaphore>,
    roster: Roster,
    /// Seccomp filters on the worker itself.
    own_filters: u64,
    next: AtomicU64,
    /// Descriptors that a process below this one may have: no sandbox can be given more.
    descriptor_limit: u64,
}

/// What [`Sandboxes`] is made of.
pub struct Parts {
    pub spawner: Spawner,
    pub base: Base,
    pub hierarchies: super::cgroup::Hierarchies,
    /// The first for fresh processes, the others for user namespaces.
    pub group_names: Vec<String>,
    pub seed: u32,
    pub claims: Claims,
    pub limits: Limits,
    pub tuning: Tuning,
    pub stats: Arc<Stats>,
}

impl Sandboxes {
    /// # Errors
    /// A control group or filter could not be made.
    pub fn new(parts: Parts) -> Result<Arc<Self>, SandboxError> {
        let mut names = parts.group_names.into_iter();
        let fresh = names.next().ok_or(SandboxError::NoHome)?;
        let group = Arc::new(Group::create(&parts.hierarchies, &fresh)?);
        Ok(Arc::new(Self {
            spawner: parts.spawner,
            base: parts.base,
            filters: Filters::builtin()?,
            undertaker: Undertaker::start(parts.stats).about("the undertaker's thread")?,
            tuning: parts.tuning,
            groups: Mutex::new(vec![Arc::downgrade(&group)]),
            fresh: Pool::new(group, 0, parts.limits, None),
            homes: Homes::new(parts.hierarchies, names),
            ids: Ids::new(parts.seed, parts.claims),
            quotas: quotas::shares(&Host::read(), parts.tuning.max_sandboxes, parts.tuning.netns_pool),
            places: Arc::new(Semaphore::new(parts.tuning.max_sandboxes)),
            roster: Roster::default(),
            own_filters: confined::own_filters(),
            next: AtomicU64::new(1),
            descriptor_limit: super::host::descriptor_limit(),
        }))
    }

    /// A user namespace for a root zygote and its descendants.
    ///
    /// # Errors
    /// Its control group could not be made.
    pub fn user_namespace(&self, limits: Limits) -> Result<Arc<UserNamespace>, SandboxError> {
        let ids = self.ids.take()?;
        let owner = (ids.first(), ids.first());
        let (home, group) = self.homes.take()?;
        group.delegate_procs(owner)?;
        let group = Arc::new(group);
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|group| group.strong_count() > 0);
        groups.push(Arc::downgrade(&group));
        let pool = Pool::new(group, self.tuning.cgroup_pool, limits, Some(owner));
        Ok(Arc::new(UserNamespace { pool, home, ids, leaf_ids: LeafIds::new() }))
    }

    /// A pool of network namespaces for what is forked below a root zygote; `None`
    /// where those have none of their own, or it is switched off.
    ///
    /// # Errors
    /// The zygote is gone.
    pub fn net_pool(&self, root: &Sandbox, network: Network) -> Result<Option<Arc<NetPool>>, SandboxError> {
        if self.tuning.netns_pool == 0 || !self.tuning.net || network != Network::None {
            return Ok(None);
        }
        let pool = NetPool::new(self.tuning.netns_pool, self.spawner.clone(), root.pidfd())?;
        Ok(Some(Arc::new(pool)))
    }

    /// A place among `max_sandboxes`, if one is free.
    pub fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// A place, as soon as one is free.
    ///
    /// # Errors
    /// None was within `bound`.
    pub async fn wait_for_place(&self, bound: Duration) -> Result<OwnedSemaphorePermit, SandboxError> {
        match tokio::time::timeout(bound, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(self.full()),
        }
    }

    /// What to say where no place is free.
    pub fn full(&self) -> SandboxError {
        SandboxError::Full { limit: self.tuning.max_sandboxes }
    }

    /// The living sandboxes as text, with the memory of the first hundred leaves. Blocks.
    pub fn picture(&self) -> String {
        self.roster.picture()
    }

    /// Bytes that all sandboxes together have and that the kernel cannot take back. Blocks.
    ///
    /// # Errors
    /// As the control groups' files.
    pub fn memory_in_use(&self) -> Result<u64, SandboxError> {
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.iter().filter_map(Weak::upgrade).try_fold(0, |sum, group| Ok(sum + group.memory_held()?))
    }

    /// Places that are taken.
    pub fn taken(&self) -> usize {
        self.tuning.max_sandboxes.saturating_sub(self.places.available_permits())
    }

    /// Walls for a process.
    ///
    /// # Errors
    /// A mount or control group could not be made; nothing is left then.
    pub async fn cell(&self, order: Order<'_>) -> Result<Cell, SandboxError> {
        let Order { purpose, namespace, network, limits, permit, writable, net } = order;
        let begun = Instant::now();
        let cgroup = namespace.map_or(&self.fresh, |namespace| &namespace.pool).take(limits)?;
        let cgroup_time = begun.elapsed();
        if purpose == Purpose::Zygote {
            cgroup.spare_the_others()?;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let ids = if namespace.is_none() { Some(self.ids.take()?) } else { None };
        let (uid, leaf_id) = identity(purpose, namespace.map(Arc::as_ref))?;
        let first = ids.as_ref().or(namespace.map(|namespace| &namespace.ids)).map_or(0, IdRange::first);
        let (socket, child_socket) = match purpose {
            Purpose::Leaf => socket::stream_pair(),
            Purpose::Zygote | Purpose::Command => socket::seqpacket_pair(),
        }
        .during("a sandbox's socket")?;
        socket::want_credentials(socket.as_fd()).during("a sandbox's socket")?;
        let (log, child_log) = log_pipe(first + uid)?;
        let mut kept = Vec::new();
        if let Some(namespace) = namespace.filter(|_| purpose == Purpose::Zygote) {
            kept.push(Kept::Namespace(Arc::clone(namespace)));
        }
        let root = match writable {
            None => self.base.clone_root(network)?,
            Some(mount_points) => {
                let tools = purpose == Purpose::Command;
                let root = self.writable_root(network, tools, first, uid, mount_points).await?;
                let tree = root.open()?;
                kept.push(Kept::Root(root));
                tree
            }
        };
        let (targets, mut mounts) = (SCRATCH.map(str::to_owned).to_vec(), vec![root]);
        for _ in &targets {
            mounts.push(self.tmpfs()?);
        }
        let birth = cgroup.birth()?;
        let new_net = self.tuning.net && network == Network::None && net.is_none();
        let walls = Walls {
            namespaces: self.namespaces(new_net),
            cgroup_namespace: self.tuning.cgroup && purpose != Purpose::Zygote,
            staging: STAGING.to_owned(),
            proc: if purpose == Purpose::Leaf { ProcView::Pids } else { ProcView::Full },
            targets,
            into_cgroup: birth.into.is_some(),
            tasks: birth.tasks.len() as u8,
            hostname: self.tuning.uts.then(|| format!("sandbox-{id}")),
            loopback: new_net,
            into_net: net.is_some(),
        };
        Ok(Cell {
            walls,
            network,
            socket,
            log,
            cgroup_time,
            id,
            purpose,
            child_socket,
            child_log,
            mounts,
            net,
            cgroup,
            permit,
            ids,
            uid,
            leaf_id,
            host_id: first + uid,
            kept,
            outlet: None,
        })
    }

    /// A root for `uid` of the range that begins at `first`.
    async fn writable_root(
        &self,
        network: Network,
        tools: bool,
        first: u32,
        uid: u32,
        mount_points: &[MountPoint],
    ) -> Result<WritableRoot, SandboxError> {
        let owner = first + uid;
        // The host's root becomes the owner; the few other owners in /usr stay apart.
        let userns = self.spawner.map(vec![(0, owner, 1), (1, first + 1, FIRST_LEAF_ID - 1)]).await?;
        let wanted = Wanted {
            network,
            tools,
            owner,
            size_mib: self.tuning.tmp_mib.saturating_add(OWN_MIB),
            inodes: self.tuning.tmp_inodes.saturating_add(OWN_INODES),
            mount_points,
            userns: Some(userns.as_fd()),
        };
        WritableRoot::new(&self.base, &wanted)
    }

    fn tmpfs(&self) -> Result<OwnedFd, SandboxError> {
        let text = |value: String| c_string(std::path::Path::new(&value));
        let (size, inodes) =
            (text(format!("{}m", self.tuning.tmp_mib))?, text(self.tuning.tmp_inodes.to_string())?);
        tmpfs(&size, &inodes, c"1777", Attr::NOSUID | Attr::NODEV).during("a sandbox's tmpfs")
    }

    fn namespaces(&self, new_net: bool) -> i32 {
        let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID;
        let optional = [
            (self.tuning.ipc, libc::CLONE_NEWIPC),
            (self.tuning.uts, libc::CLONE_NEWUTS),
            (new_net, libc::CLONE_NEWNET),
        ];
        for (on, flag) in optional {
            if on {
                flags |= flag;
            }
        }
        flags
    }

    /// What the process in `cell` gives up. A forked leaf has its zygote's long
    /// filter already and adds a short one.
    pub fn confinement(&self, cell: &Cell, purpose: Purpose) -> Confinement {
        let filter = match (purpose, &cell.ids) {
            (Purpose::Command, _) => &self.filters.installer,
            (_, Some(_)) => &self.filters.leaf,
            (_, None) => &self.filters.narrow,
        };
        let files = if purpose == Purpose::Command { 4 * FILES } else { FILES };
        let files = files.min(self.descriptor_limit);
        Confinement { uid: cell.uid, gid: cell.uid, files, filter: self.filter(filter.as_bytes()) }
    }

    /// A root zygote's filter.
    pub fn zygote_filter(&self) -> Vec<u8> {
        self.filter(self.filters.zygote.as_bytes())
    }

    pub(super) fn filter(&self, program: &[u8]) -> Vec<u8> {
        if self.tuning.seccomp { program.to_vec() } else { Vec::new() }
    }

    /// Starts a fresh process in a cell.
    ///
    /// # Errors
    /// The step that failed.
    pub async fn spawn(
        &self,
        cell: Cell,
        program: Program<'_>,
        namespace: Option<&UserNamespace>,
    ) -> Result<Started, SandboxError> {
        let ids = cell.ids.as_ref().or(namespace.map(|namespace| &namespace.ids));
        let first_id = ids.map_or(0, IdRange::first);
        let mut walls = cell.walls.clone();
        walls.namespaces |= libc::CLONE_NEWUSER;
        let birth = Birth {
            walls,
            first_id,
            ids: RANGE,
            quotas: self.quotas.clone(),
            pid1: program.pid1,
            role: program.role,
            outlet: cell.outlet,
            argv: program.argv,
            env: program.env.to_vec(),
        };
        let process = self.spawner.spawn(birth, &cell.fds()?).await?;
        let mut started = self.started(cell, process.pidfd)?;
        started.ended = Some(process.ended);
        Ok(started)
    }

    /// What a forked leaf with this host id has left once it is confined: its zygote's long
    /// filter and its own short one, and what the worker has itself.
    fn expected(&self, id: u32) -> Expected {
        Expected { id, filters: if self.tuning.seccomp { self.own_filters + 2 } else { 0 } }
    }

    /// A process was born in `cell`.
    ///
    /// # Errors
    /// Its socket cannot be polled.
    pub fn started(&self, cell: Cell, pidfd: OwnedFd) -> Result<Started, SandboxError> {
        let (output, printing) = Output::new(cell.log);
        let estate = Estate {
            _printing: printing,
            cgroup: cell.cgroup,
            ids: cell.ids,
            leaf_id: cell.leaf_id,
            permit: cell.permit,
            kept: cell.kept,
        };
        let identity = Identity { id: cell.id, purpose: cell.purpose, expected: self.expected(cell.host_id) };
        let sandbox = Sandbox::new(identity, pidfd, estate, self.undertaker.clone(), self.roster.clone());
        let channel = Channel::new(cell.socket).about("a sandbox's socket")?;
        Ok(Started { sandbox, channel, output, ended: None })
    }
}

/// The id that foreign code will run under, inside the user namespace.
fn identity(
    purpose: Purpose,
    namespace: Option<&UserNamespace>,
) -> Result<(u32, Option<LeafId>), SandboxError> {
    match (purpose, namespace) {
        (Purpose::Zygote | Purpose::Command, _) => Ok((0, None)),
        (Purpose::Leaf, None) => Ok((FIRST_LEAF_ID, None)),
        (Purpose::Leaf, Some(namespace)) => {
            let id = namespace.leaf_ids.take()?;
            Ok((id.inside(), Some(id)))
        }
    }
}

/// What a fresh process runs.
pub struct Program<'a> {
    pub pid1: Pid1,
    pub role: Role,
    pub argv: Vec<String>,
    pub env: &'a [(String, String)],
}

/// A pipe whose writing end belongs to the sandbox, so that it can be opened
/// again as `/dev/stdout`.
fn log_pipe(owner: u32) -> Result<(OwnedFd, OwnedFd), SandboxError> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).about("a sandbox's log pipe")?;
    let owner_id = nix::unistd::Uid::from_raw(owner);
    nix::unistd::fchown(&write, Some(owner_id), None).about("a sandbox's log pipe")?;
    Ok((read, write))
}
