//! The same directory in every hierarchy of a layout: the roots, our top
//! directory, or one sandbox's. Here the layouts differ; above, none is named.

use std::path::PathBuf;

use nix::errno::Errno;

use super::dir::Dir;
use super::layout::Layout;
use super::v1::{Alone, V1};
use super::v2::V2;
use super::{CgroupError, Owner, Usage, within};
use crate::sandbox::Limits;

#[derive(Debug)]
pub(super) enum Level {
    V2(V2),
    V1 { v1: V1, alone: Alone },
    Hybrid { v2: V2, v1: V1 },
}

impl Level {
    pub fn layout(&self) -> Layout {
        match self {
            Self::V2(_) => Layout::V2,
            Self::V1 { .. } => Layout::V1,
            Self::Hybrid { .. } => Layout::Hybrid,
        }
    }

    pub fn v2(&self) -> Option<&V2> {
        match self {
            Self::V2(v2) | Self::Hybrid { v2, .. } => Some(v2),
            Self::V1 { .. } => None,
        }
    }

    pub fn v1_dirs(&self) -> &[Dir] {
        match self {
            Self::V2(_) => &[],
            Self::V1 { v1, .. } | Self::Hybrid { v1, .. } => &v1.dirs,
        }
    }

    pub fn dirs(&self) -> impl Iterator<Item = &Dir> {
        self.v2().map(|v2| &v2.0).into_iter().chain(self.v1_dirs())
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        self.dirs().map(|dir| dir.path().to_owned()).collect()
    }

    /// Makes `name` in every hierarchy, or in none.
    pub fn make(&self, name: &str) -> Result<Self, CgroupError> {
        for (made, dir) in self.dirs().enumerate() {
            dir.make(name).inspect_err(|_| self.unmake(name, made))?;
        }
        self.child(name).inspect_err(|_| self.unmake(name, usize::MAX))
    }

    /// The first error is the one to tell, so this one's are not.
    fn unmake(&self, name: &str, made: usize) {
        self.dirs().take(made).for_each(|dir| drop(dir.remove(name)));
    }

    fn child(&self, name: &str) -> Result<Self, CgroupError> {
        let v2 = |parent: &V2| parent.0.child(name).map(V2);
        let v1 = |parent: &V1| {
            let dirs = parent.dirs.iter().map(|dir| dir.child(name)).collect::<Result<_, _>>()?;
            Ok::<_, CgroupError>(V1 { dirs, places: parent.places })
        };
        Ok(match self {
            Self::V2(above) => Self::V2(v2(above)?),
            Self::V1 { v1: above, alone } => Self::V1 { v1: v1(above)?, alone: *alone },
            Self::Hybrid { v2: above, v1: beside } => Self::Hybrid { v2: v2(above)?, v1: v1(beside)? },
        })
    }

    /// Removes `name` from every hierarchy, waiting for processes that are about
    /// to be gone. Goes on after a failure and reports the first.
    pub fn remove(&self, name: &str, bound_ms: u64) -> Result<(), CgroupError> {
        let pass = || self.dirs().map(|dir| dir.remove(name)).fold(Ok(()), Result::and);
        let gone = within(bound_ms, || match pass() {
            Err(error) if error.errno() == Some(Errno::EBUSY) => Ok(false),
            removed => removed.map(|()| true),
        })?;
        // A last pass, for the kernel's own words about it.
        if gone { Ok(()) } else { pass() }
    }

    /// What a directory needs before its children can have limits.
    pub fn enable_controllers(&self) -> Result<(), CgroupError> {
        match self {
            Self::V2(v2) => v2.enable_controllers(),
            Self::V1 { .. } | Self::Hybrid { .. } => Ok(()),
        }
    }

    /// What a sandbox's directory gets once.
    pub fn prepare(&self, limits: &Limits, owner: Option<Owner>) -> Result<(), CgroupError> {
        self.limit(None, limits)?;
        if let Self::V2(v2) = self {
            v2.end_as_one_when_out_of_memory()?;
        }
        owner.map_or(Ok(()), |owner| self.give_procs(owner))
    }

    /// Undoes what [`Self::prepare`] said about a want of memory.
    pub fn spare_the_others(&self) -> Result<(), CgroupError> {
        if let Self::V2(v2) = self { v2.0.write("memory.oom.group", "0") } else { Ok(()) }
    }

    /// v1 needs no owner: the kernel asks there for the rights of whoever opened
    /// `tasks`, and that is us.
    pub fn give_procs(&self, owner: Owner) -> Result<(), CgroupError> {
        self.v2().map_or(Ok(()), |v2| v2.0.give("cgroup.procs", owner))
    }

    pub fn limit(&self, old: Option<&Limits>, new: &Limits) -> Result<(), CgroupError> {
        match self {
            Self::V2(v2) => v2.limit(old, new),
            Self::V1 { v1, .. } | Self::Hybrid { v1, .. } => v1.limit(old, new),
        }
    }

    pub fn freeze(&self) -> Result<(), CgroupError> {
        match self {
            Self::V2(v2) | Self::Hybrid { v2, .. } => v2.freeze(),
            Self::V1 { v1, alone } => v1.freeze(*alone),
        }
    }

    pub fn thaw(&self) -> Result<(), CgroupError> {
        match self {
            Self::V2(v2) | Self::Hybrid { v2, .. } => v2.thaw(),
            Self::V1 { v1, alone } => v1.thaw(*alone),
        }
    }

    pub fn kill(&self) -> Result<(), CgroupError> {
        match self {
            Self::V2(v2) => v2.kill(),
            // One may have been moved in on v1 alone, by whoever kept a way in.
            Self::Hybrid { v2, v1 } => v2.kill().and_then(|()| v1.kill_strays()),
            Self::V1 { v1, alone } => v1.kill(*alone),
        }
    }

    pub fn populated(&self) -> Result<bool, CgroupError> {
        match self {
            Self::V2(v2) | Self::Hybrid { v2, .. } => v2.populated(),
            Self::V1 { v1, .. } => v1.populated(),
        }
    }

    pub fn usage(&self) -> Result<Usage, CgroupError> {
        let (mem_bytes, cpu_us, procs) = match self {
            Self::V2(v2) => (v2.mem_bytes()?, v2.cpu_us()?, v2.procs()?),
            Self::Hybrid { v2, v1 } => (v1.mem_bytes()?, v2.cpu_us()?, v1.procs()?),
            Self::V1 { v1, alone } => (v1.mem_bytes()?, v1.cpu_us(*alone)?, v1.procs()?),
        };
        Ok(Usage { mem_bytes, cpu_us, procs })
    }

    pub fn memory_held(&self) -> Result<u64, CgroupError> {
        match self {
            Self::V2(v2) => v2.memory_held(),
            Self::V1 { v1, .. } | Self::Hybrid { v1, .. } => v1.memory_held(),
        }
    }

    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        match self {
            Self::V2(v2) => v2.oom_kills(),
            Self::V1 { v1, .. } | Self::Hybrid { v1, .. } => v1.oom_kills(),
        }
    }
}
