//! One sandbox's cgroup. Runs in the worker.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use super::level::Level;
use super::{CgroupError, EMPTY_BOUND_MS, Owner};
use crate::sandbox::Limits;

/// What a sandbox uses at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub mem_bytes: u64,
    /// Since the cgroup was made.
    pub cpu_us: u64,
    /// Processes and threads, as its limit counts them.
    pub procs: u64,
}

/// How a process gets into a cgroup.
#[derive(Debug)]
pub struct Birth<'a> {
    /// For `CLONE_INTO_CGROUP`, where there is a v2 hierarchy.
    pub into: Option<BorrowedFd<'a>>,
    /// The child then writes `0` to each of these, whatever its rights are: the
    /// kernel asks for those of whoever opened the file. That moves the thread that
    /// writes, so the child has one. They stay as powerful after it has dropped
    /// everything, so it closes them before the handler.
    pub tasks: Vec<BorrowedFd<'a>>,
}

/// What has happened to it.
#[derive(Debug)]
enum Life {
    /// Nobody has been in it. The ways in are open: the v2 directory, `tasks` of
    /// each v1 hierarchy.
    Unborn { into: Option<OwnedFd>, tasks: Vec<File> },
    /// Somebody was handed its way in, and the worker closed its own.
    Lived,
    /// After `cgroup.kill` kernel 6.18 kills whoever is born into the same
    /// cgroup with `CLONE_INTO_CGROUP`: nobody may be again.
    Killed,
    /// Its directories were removed.
    Removed,
}

/// One sandbox's directories, one a hierarchy.
///
/// Dropping it tries once to remove them, and leaves them to [`super::Group::remove`]
/// where that fails; [`Cgroup::remove`] waits.
#[derive(Debug)]
#[must_use = "a cgroup stays until it is removed"]
pub struct Cgroup {
    name: String,
    parent: Arc<Level>,
    level: Level,
    /// Those in force; unknown after a failure to write some.
    limits: Option<Limits>,
    life: Life,
}

impl Cgroup {
    pub(super) fn make(
        parent: &Arc<Level>,
        name: String,
        limits: &Limits,
        owner: Option<Owner>,
    ) -> Result<Self, CgroupError> {
        let level = parent.make(&name)?;
        // From here on a failure drops it, which removes the directories.
        let life = Life::Unborn { into: None, tasks: Vec::new() };
        let mut cgroup = Self { name, parent: Arc::clone(parent), level, limits: Some(*limits), life };
        cgroup.level.prepare(limits, owner)?;
        let tasks = cgroup.level.v1_dirs().iter().map(|dir| dir.open_for_writing("tasks"));
        let tasks = tasks.collect::<Result<_, _>>()?;
        let into = cgroup.level.v2().map(|v2| v2.0.apart()).transpose()?;
        cgroup.life = Life::Unborn { into, tasks };
        Ok(cgroup)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        self.level.paths()
    }

    /// The way in for a process. Refused once it was killed or [`Self::born`].
    pub fn birth(&self) -> Result<Birth<'_>, CgroupError> {
        match &self.life {
            Life::Unborn { into, tasks } => Ok(Birth {
                into: into.as_ref().map(AsFd::as_fd),
                tasks: tasks.iter().map(AsFd::as_fd).collect(),
            }),
            Life::Lived | Life::Killed | Life::Removed => Err(CgroupError::Spent { path: self.first_path() }),
        }
    }

    /// The sandbox's first process is in: closes what only a birth needs, one
    /// descriptor for each v1 hierarchy.
    pub fn born(&mut self) {
        if matches!(self.life, Life::Unborn { .. }) {
            self.life = Life::Lived;
        }
    }

    /// Whether nobody can have been in it: it may serve another sandbox.
    pub(super) fn is_unborn(&self) -> bool {
        matches!(self.life, Life::Unborn { .. })
    }

    /// Writes the limits that differ from those in force. After a failure all are
    /// written the next time.
    pub fn set_limits(&mut self, limits: &Limits) -> Result<(), CgroupError> {
        let old = self.limits.take();
        self.level.limit(old.as_ref(), limits)?;
        self.limits = Some(*limits);
        Ok(())
    }

    /// Stops every process in it, and returns when they have stopped.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.level.freeze()
    }

    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.level.thaw()
    }

    /// Kills every process in it, frozen or not, and returns when they are gone.
    /// A zombie that its parent has not reaped counts as gone.
    pub fn kill(&mut self) -> Result<(), CgroupError> {
        self.life = Life::Killed;
        self.level.kill()
    }

    pub fn usage(&self) -> Result<Usage, CgroupError> {
        self.level.usage()
    }

    /// Lets the kernel kill one process of it for want of memory, not all at
    /// once (v2): a zygote's cgroup holds the stub that its leaves live under.
    pub fn spare_the_others(&self) -> Result<(), CgroupError> {
        self.level.spare_the_others()
    }

    /// Whether a process is in it, by what the kernel says of the process.
    pub fn has_member(&self, pid: i32) -> bool {
        let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return false };
        let own = self.first_path();
        let (name, group) = (own.file_name(), own.parent().and_then(|parent| parent.file_name()));
        let (Some(name), Some(group)) = (name, group) else { return false };
        let end = format!("/{}/{}", group.to_string_lossy(), name.to_string_lossy());
        // The first directory is of v2 where there is one, else of the first v1 hierarchy.
        let v2 = self.level.v2().is_some();
        text.lines().any(|line| (line.starts_with("0::") == v2) && line.ends_with(&end))
    }

    /// Whether the one thread of this process is all that is in it, by its first hierarchy.
    pub fn has_only(&self, pid: i32) -> Result<bool, CgroupError> {
        let file = if self.level.v2().is_some() { "cgroup.threads" } else { "tasks" };
        let tasks = self
            .level
            .dirs()
            .next()
            .map(|dir| dir.read(file, |text| Some(text.trim() == pid.to_string())))
            .transpose()?;
        Ok(tasks.unwrap_or(false))
    }

    /// How many processes of it the kernel has killed for want of memory.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        self.level.oom_kills()
    }

    pub fn populated(&self) -> Result<bool, CgroupError> {
        self.level.populated()
    }

    /// Removes its directories. Processes that were killed may still be on their
    /// way out: waits for them, within a bound.
    pub fn remove(mut self) -> Result<(), CgroupError> {
        self.life = Life::Removed;
        self.parent.remove(&self.name, EMPTY_BOUND_MS)
    }

    fn first_path(&self) -> PathBuf {
        self.level.dirs().next().map(|dir| dir.path().to_owned()).unwrap_or_default()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if !matches!(self.life, Life::Removed)
            && let Err(error) = self.parent.remove(&self.name, 0)
        {
            tracing::warn!(cgroup = self.name, %error, "a dropped cgroup stays until the worker ends");
        }
    }
}
