//! What the machine has: which hierarchies are mounted, where, with which
//! controllers. Mount points differ between distributions and v1 controllers may
//! share one, so it is read from `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use procfs::process::{MountInfo, Process};

use super::CgroupError;
use super::dir::Dir;
use super::level::Level;
use super::v1::{Alone, Places, V1};
use super::v2::{CONTROLLERS, V2};

/// How the machine's control groups are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One v2 hierarchy with every controller.
    V2,
    /// v1 hierarchies alone.
    V1,
    /// Controllers on v1, beside a v2 hierarchy that can freeze and kill.
    Hybrid,
}

/// The machine's cgroup hierarchies, open at their mount points.
#[derive(Debug, Clone)]
pub struct Hierarchies(pub(super) Arc<Level>);

impl Hierarchies {
    /// Finds them through the mounts of this process.
    pub fn detect() -> Result<Self, CgroupError> {
        let mounts = mounts()?;
        let unified = match pick(&mounts, |mount| mount.fs_type == "cgroup2") {
            Some(point) => {
                let controllers =
                    Dir::open(&point)?.read("cgroup.controllers", |text| Some(text.to_owned()))?;
                Some((point, controllers))
            }
            None => None,
        };
        Self::open(Plan::choose(&mounts, unified)?)
    }

    /// As on a machine whose v2 hierarchy is not mounted.
    #[cfg(test)]
    pub(super) fn detect_without_v2() -> Result<Self, CgroupError> {
        Self::open(Plan::choose(&mounts()?, None)?)
    }

    pub fn layout(&self) -> Layout {
        self.0.layout()
    }

    fn open(plan: Plan) -> Result<Self, CgroupError> {
        let open_v1 = |points: Vec<PathBuf>, places| {
            let dirs = points.iter().map(|point| Dir::open(point)).collect::<Result<_, _>>()?;
            Ok::<_, CgroupError>(V1 { dirs, places })
        };
        Ok(Self(Arc::new(match plan {
            Plan::V2 { unified } => Level::V2(V2(Dir::open(&unified)?)),
            Plan::V1 { points, places, alone } => Level::V1 { v1: open_v1(points, places)?, alone },
            Plan::Hybrid { unified, points, places } => {
                Level::Hybrid { v2: V2(Dir::open(&unified)?), v1: open_v1(points, places)? }
            }
        })))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Plan {
    V2 { unified: PathBuf },
    V1 { points: Vec<PathBuf>, places: Places, alone: Alone },
    Hybrid { unified: PathBuf, points: Vec<PathBuf>, places: Places },
}

impl Plan {
    /// `unified`: where v2 is mounted and the controllers it offers there.
    fn choose(mounts: &[MountInfo], unified: Option<(PathBuf, String)>) -> Result<Self, CgroupError> {
        let on_v2 = |controller: &str| {
            unified.as_ref().is_some_and(|(_, offered)| offered.split_whitespace().any(|at| at == controller))
        };
        if CONTROLLERS.iter().all(|controller| on_v2(controller))
            && let Some((unified, _)) = unified
        {
            return Ok(Self::V2 { unified });
        }
        let mut points = Vec::new();
        let mut place = |controller: &'static str| {
            let offers =
                |mount: &MountInfo| mount.fs_type == "cgroup" && mount.super_options.contains_key(controller);
            let Some(point) = pick(mounts, offers) else {
                return Err(match on_v2(controller) {
                    true => CgroupError::Split { controller },
                    false => CgroupError::NoController { controller },
                });
            };
            Ok(points.iter().position(|known| *known == point).unwrap_or_else(|| {
                points.push(point);
                points.len() - 1
            }))
        };
        let places = Places { memory: place("memory")?, cpu: place("cpu")?, pids: place("pids")? };
        match unified {
            Some((unified, _)) => Ok(Self::Hybrid { unified, points, places }),
            None => {
                let alone = Alone { freezer: place("freezer")?, cpuacct: place("cpuacct")? };
                Ok(Self::V1 { points, places, alone })
            }
        }
    }
}

fn mounts() -> Result<Vec<MountInfo>, CgroupError> {
    Ok(Process::myself()?.mountinfo()?.0)
}

/// The mount to use of those that fit: the first that may be written to, since a
/// container shows read-only ones beside its own.
fn pick(mounts: &[MountInfo], fits: impl Fn(&MountInfo) -> bool) -> Option<PathBuf> {
    let writable = |mount: &&MountInfo| mount.mount_options.contains_key("rw");
    let fitting = || mounts.iter().filter(|mount| fits(mount));
    fitting().find(writable).or_else(|| fitting().next()).map(|mount| unescape(&mount.mount_point))
}

/// `mountinfo` writes a space in a path as `\040`, and so on; see proc(5).
fn unescape(path: &Path) -> PathBuf {
    let mut rest = path.as_os_str().as_bytes();
    let mut plain = Vec::with_capacity(rest.len());
    while let [first, others @ ..] = rest {
        let code = others
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(code.unwrap_or(*first));
        rest = if code.is_some() { &others[3..] } else { others };
    }
    OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(lines: &str) -> Vec<MountInfo> {
        lines.lines().map(|line| MountInfo::from_line(line.trim()).unwrap()).collect()
    }

    fn unified(point: &str, controllers: &str) -> Option<(PathBuf, String)> {
        Some((point.into(), controllers.to_owned()))
    }

    const V1_SHARED: &str = "\
        33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
        35 31 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:10 - cgroup cgroup rw,memory
        37 31 0:34 / /sys/fs/cgroup/freezer rw,nosuid shared:11 - cgroup cgroup rw,freezer
        39 31 0:36 / /sys/fs/cgroup/pids rw,nosuid shared:12 - cgroup cgroup rw,pids";

    #[test]
    fn every_controller_on_v2_is_v2() {
        let mounts = mounts("31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate");
        let plan = Plan::choose(&mounts, unified("/sys/fs/cgroup", "cpuset cpu io memory hugetlb pids\n"));
        assert_eq!(plan.unwrap(), Plan::V2 { unified: "/sys/fs/cgroup".into() });
    }

    #[test]
    fn v1_controllers_that_share_a_hierarchy_share_a_directory() {
        let Plan::V1 { points, places, alone } = Plan::choose(&mounts(V1_SHARED), None).unwrap() else {
            panic!("not v1")
        };
        assert_eq!(places.cpu, alone.cpuacct);
        assert_eq!(points[places.cpu], Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(points[places.memory], Path::new("/sys/fs/cgroup/memory"));
        assert_eq!(points[alone.freezer], Path::new("/sys/fs/cgroup/freezer"));
        assert_eq!(points.len(), 4);
    }

    #[test]
    fn a_v2_without_controllers_beside_v1_is_hybrid_and_needs_no_freezer() {
        let no_freezer: Vec<_> = V1_SHARED.lines().filter(|line| !line.contains("freezer")).collect();
        let plan = Plan::choose(&mounts(&no_freezer.join("\n")), unified("/sys/fs/cgroup/unified", "\n"));
        let Plan::Hybrid { unified, points, .. } = plan.unwrap() else { panic!("not hybrid") };
        assert_eq!(unified, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(points.len(), 3);
    }

    #[test]
    fn a_missing_controller_is_named_with_its_kernel_parameter() {
        let error = Plan::choose(&[], unified("/sys/fs/cgroup", "cpu pids\n")).unwrap_err();
        assert!(matches!(error, CgroupError::NoController { controller: "memory" }));
        assert!(error.to_string().contains("`cgroup_enable=memory`"), "{error}");
    }

    #[test]
    fn controllers_torn_between_v1_and_v2_are_refused() {
        let no_pids: Vec<_> = V1_SHARED.lines().filter(|line| !line.contains("pids")).collect();
        let plan = Plan::choose(&mounts(&no_pids.join("\n")), unified("/sys/fs/cgroup/unified", "pids\n"));
        assert!(matches!(plan, Err(CgroupError::Split { controller: "pids" })));
    }

    #[test]
    fn a_writable_mount_is_preferred() {
        let mounts = mounts(
            "1 2 0:28 / /host/cgroup ro - cgroup2 cgroup2 rw
             3 4 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
        );
        assert_eq!(pick(&mounts, |_| true).unwrap(), Path::new("/sys/fs/cgroup"));
        assert_eq!(pick(&mounts[..1], |_| true).unwrap(), Path::new("/host/cgroup"));
    }

    #[test]
    fn an_escaped_mount_point_is_read_as_it_is() {
        assert_eq!(unescape(Path::new(r"/a\040b\134c")), Path::new(r"/a b\c"));
        assert_eq!(unescape(Path::new(r"/a\04")), Path::new(r"/a\04"));
    }
}
