//! Cgroups on the real kernel: hybrid as the machine is, and pure v1 as if its v2
//! hierarchy were not mounted. The controller files of a pure v2 machine are for
//! the smoke test that boots one; on such a machine these tests run on it.
//!
//! Each ends with a census: no directory of the test's name in any hierarchy.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::unistd::dup;

use super::*;
use crate::sandbox::Limits;

const LIMITS: Limits = Limits { procs: 12, mem_mb: 32, cpu_percent: 150, swappiness: 0, runtime_sec: 30 };
/// Nobody's uid: it has no right to anything here.
const STRANGER: u32 = 64_321;

/// The hierarchies under test and a group in them.
struct Scene {
    hierarchies: Hierarchies,
    name: String,
    group: Arc<Group>,
}

impl Scene {
    fn new(hierarchies: Hierarchies) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("hosier-test-{}-{number}", std::process::id());
        let group = Arc::new(Group::create(&hierarchies, &name).unwrap());
        Self { hierarchies, name, group }
    }

    /// Everything that was made was removed by its maker; the group is the last.
    fn end(self) {
        for path in self.group.paths() {
            let left: Vec<_> = fs::read_dir(&path).unwrap().flatten().map(|entry| entry.path()).collect();
            let left: Vec<_> = left.into_iter().filter(|path| path.is_dir()).collect();
            assert!(left.is_empty(), "left: {left:?}");
        }
        Group::remove_leftovers(&self.hierarchies, &self.name).unwrap();
        self.census();
    }

    fn census(&self) {
        let left: Vec<_> = self.group.paths().into_iter().filter(|path| path.exists()).collect();
        assert!(left.is_empty(), "left: {left:?}");
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = Group::remove_leftovers(&self.hierarchies, &self.name);
    }
}

/// Runs `test` on each layout that this machine can show.
fn on_each_layout(test: impl Fn(Scene)) {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: cgroups can be made by root only");
    }
    test(Scene::new(Hierarchies::detect().unwrap()));
    match Hierarchies::detect_without_v2() {
        Ok(v1) => test(Scene::new(v1)),
        Err(CgroupError::NoController { controller }) => {
            eprintln!("skipped on v1: no v1 hierarchy has {controller}");
        }
        Err(error) => panic!("{error}"),
    }
}

/// A process of a stranger that moves itself into `cgroup` by the descriptors it
/// inherits, then becomes `program`. On v2 the shell is put there first, since
/// only a clone can be born there.
fn inhabit(cgroup: &Cgroup, program: &str) -> Child {
    let birth = cgroup.birth().unwrap();
    let into_v2 = birth.into.is_some();
    // `dup` is what makes a descriptor that an exec keeps.
    let tasks: Vec<OwnedFd> = birth.tasks.iter().map(|fd| dup(fd).unwrap()).collect();
    let joins: String =
        tasks.iter().map(|fd| format!("echo 0 >&{0} && exec {0}>&- && ", fd.as_raw_fd())).collect();
    let child = Command::new("bash")
        .args(["-c", &format!("read && {joins} exec {program}")])
        .uid(STRANGER)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    if into_v2 {
        fs::write(cgroup.paths()[0].join("cgroup.procs"), child.id().to_string()).unwrap();
    }
    use std::io::Write;
    child.stdin.as_ref().unwrap().write_all(b"go\n").unwrap();
    let inside = |path: &Path| {
        let procs = fs::read_to_string(path.join("cgroup.procs")).unwrap();
        procs.lines().any(|pid| pid == child.id().to_string())
    };
    let end = Instant::now() + Duration::from_secs(5);
    while !cgroup.paths().iter().all(|path| inside(path)) && program.starts_with("sleep") {
        assert!(Instant::now() < end, "the child did not get into {:?}", cgroup.paths());
        sleep(Duration::from_millis(1));
    }
    child
}

fn signal_that_ended(mut child: Child) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt;
    child.wait().unwrap().signal()
}

/// What a file says in whichever of the directories has it.
fn file(cgroup: &Cgroup, name: &str) -> Option<String> {
    let text = cgroup.paths().iter().find_map(|path| fs::read_to_string(path.join(name)).ok())?;
    Some(text.trim().to_owned())
}

fn assert_limits(cgroup: &Cgroup, layout: Layout, limits: &Limits) {
    let memory = (u64::from(limits.mem_mb) << 20).to_string();
    let quota = (u64::from(limits.cpu_percent) * 1_000).to_string();
    let quota_of_period = format!("{quota} 100000");
    let procs = limits.procs.to_string();
    let expected = match layout {
        Layout::V2 => [("memory.max", &memory), ("cpu.max", &quota_of_period), ("pids.max", &procs)],
        _ => [("memory.limit_in_bytes", &memory), ("cpu.cfs_quota_us", &quota), ("pids.max", &procs)],
    };
    for (name, value) in expected {
        assert_eq!(file(cgroup, name).as_ref(), Some(value), "{name}");
    }
    if layout != Layout::V2 {
        assert_eq!(file(cgroup, "cpu.cfs_period_us").as_deref(), Some("100000"));
        assert_eq!(file(cgroup, "memory.swappiness"), Some(limits.swappiness.to_string()));
    }
}

#[test]
fn limits_are_in_force_and_change() {
    on_each_layout(|scene| {
        let layout = scene.hierarchies.layout();
        let mut cgroup = scene.group.child("one", &LIMITS, None).unwrap();
        assert_limits(&cgroup, layout, &LIMITS);
        let other = Limits { procs: 3, mem_mb: 64, cpu_percent: 20, swappiness: 10, runtime_sec: 1 };
        cgroup.set_limits(&other).unwrap();
        assert_limits(&cgroup, layout, &other);
        assert!(!cgroup.populated().unwrap());
        cgroup.remove().unwrap();
        scene.end();
    });
}

#[test]
fn a_stranger_moves_itself_in_and_is_counted() {
    on_each_layout(|scene| {
        let mut cgroup = scene.group.child("one", &LIMITS, None).unwrap();
        let child = inhabit(&cgroup, "sleep 100");
        assert!(cgroup.populated().unwrap());
        // Time is charged when the process next leaves the processor, or at a tick.
        let charged = within(5_000, || cgroup.usage().map(|usage| usage.cpu_us > 0));
        assert!(charged.unwrap(), "no processor time is charged");
        let usage = cgroup.usage().unwrap();
        assert_eq!(usage.procs, 1);
        assert!(usage.mem_bytes > 0 && usage.mem_bytes <= 32 << 20, "{usage:?}");
        assert!(usage.cpu_us < 5_000_000, "{usage:?}");
        cgroup.kill().unwrap();
        assert!(!cgroup.populated().unwrap());
        assert_eq!(signal_that_ended(child), Some(9));
        cgroup.remove().unwrap();
        scene.end();
    });
}

#[test]
fn what_sandboxes_hold_is_counted_together_and_without_the_cache_of_files() {
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
    // Forty MiB of a file, twenty of its own.
    let script = "import sys, time\nopen(sys.argv[1], 'wb').write(bytes(40 << 20))\n\
        own = b'a' * (20 << 20)\nopen(sys.argv[1] + '.done', 'w')\ntime.sleep(100)\n";
    fs::write(place.path().join("eat.py"), script).unwrap();
    on_each_layout(|scene| {
        let held = || scene.group.memory_held().unwrap() >> 20;
        let limits = Limits { mem_mb: 128, ..LIMITS };
        let eat = |name: &str| {
            let cgroup = scene.group.child(name, &limits, None).unwrap();
            let dir = place.path().display();
            let child = inhabit(&cgroup, &format!("/usr/bin/python3 {dir}/eat.py {dir}/{name}"));
            let done = place.path().join(format!("{name}.done"));
            assert!(within(20_000, || Ok(done.exists())).unwrap());
            fs::remove_file(done).unwrap();
            (cgroup, child)
        };
        let eaters = [eat("one"), eat("two")];
        assert!((40..76).contains(&held()), "{} MiB", held());
        for (mut cgroup, child) in eaters {
            let usage = cgroup.usage().unwrap().mem_bytes >> 20;
            assert!(usage >= 55, "the control: {usage} MiB with the file");
            cgroup.kill().unwrap();
            signal_that_ended(child);
            cgroup.remove().unwrap();
        }
        assert!(held() < 20, "{} MiB", held());
        scene.end();
    });
}

#[test]
fn a_stranger_without_our_descriptor_stays_out() {
    on_each_layout(|scene| {
        let cgroup = scene.group.child("one", &LIMITS, None).unwrap();
        for path in cgroup.paths() {
            let to = path.join("cgroup.procs");
            let try_it = |uid| {
                let script = format!("echo 0 2>/dev/null > {}", to.display());
                Command::new("bash").args(["-c", &script]).uid(uid).stderr(Stdio::null()).status().unwrap()
            };
            assert!(!try_it(STRANGER).success(), "{to:?}");
            assert!(try_it(0).success(), "the control, as root: {to:?}");
        }
        cgroup.remove().unwrap();
        scene.end();
    });
}

#[test]
fn a_frozen_sandbox_stands_still_and_goes_on() {
    on_each_layout(|scene| {
        let mut cgroup = scene.group.child("one", &LIMITS, None).unwrap();
        let child = inhabit(&cgroup, "bash -c 'while :; do :; done'");
        let moves = || {
            let before = cgroup.usage().unwrap().cpu_us;
            sleep(Duration::from_millis(30));
            cgroup.usage().unwrap().cpu_us - before > 1_000
        };
        while !moves() {}
        for _ in 0..3 {
            cgroup.freeze().unwrap();
            assert!(!moves(), "frozen");
            cgroup.thaw().unwrap();
            assert!(moves(), "thawed");
        }
        cgroup.kill().unwrap();
        assert_eq!(signal_that_ended(child), Some(9));
        cgroup.remove().unwrap();
        scene.end();
    });
}

#[test]
fn a_frozen_sandbox_can_be_killed() {
    on_each_layout(|scene| {
        let mut cgroup = scene.group.child("one", &LIMITS, None).unwrap();
        let child = inhabit(&cgroup, "sleep 100");
        cgroup.freeze().unwrap();
        cgroup.kill().unwrap();
        assert_eq!(signal_that_ended(child), Some(9));
        cgroup.remove().unwrap();
        scene.end();
    });
}

#[test]
fn a_fork_bomb_is_held_and_killed() {
    on_each_layout(|scene| {
        let mut cgroup = scene.group.child("one", &LIMITS, None).unwrap();
        let child = inhabit(&cgroup, "bash -c 'bomb() { bomb | bomb & }; bomb; sleep 100' 2>/dev/null");
        let end = Instant::now() + Duration::from_secs(5);
        while cgroup.usage().unwrap().procs < 6 {
            assert!(Instant::now() < end, "the bomb did not go off");
        }
        assert!(cgroup.usage().unwrap().procs <= u64::from(LIMITS.procs));
        cgroup.kill().unwrap();
        assert!(!cgroup.populated().unwrap());
        signal_that_ended(child);
        cgroup.remove().unwrap();
        scene.end();
    });
}

#[test]
fn a_process_killed_for_memory_is_counted() {
    on_each_layout(|scene| {
        let cgroup = scene.group.child("one", &LIMITS, None).unwrap();
        assert_eq!(cgroup.oom_kills().unwrap(), 0);
        // `tail` keeps a line that never ends.
        let child = inhabit(&cgroup, "tail /dev/zero");
        assert_eq!(signal_that_ended(child), Some(9));
        assert_eq!(cgroup.oom_kills().unwrap(), 1);
        cgroup.remove().unwrap();
        scene.end();
    });
}

#[test]
fn nobody_is_born_twice_or_after_a_kill() {
    on_each_layout(|scene| {
        let mut killed = scene.group.child("killed", &LIMITS, None).unwrap();
        assert!(killed.birth().is_ok());
        killed.kill().unwrap();
        assert!(matches!(killed.birth(), Err(CgroupError::Spent { .. })));
        let mut lived = scene.group.child("lived", &LIMITS, None).unwrap();
        lived.born();
        assert!(matches!(lived.birth(), Err(CgroupError::Spent { .. })));
        killed.remove().unwrap();
        lived.remove().unwrap();
        scene.end();
    });
}

#[test]
fn an_inhabited_cgroup_is_not_removed_and_says_why() {
    on_each_layout(|scene| {
        let cgroup = scene.group.child("one", &LIMITS, None).unwrap();
        let paths = cgroup.paths();
        let child = inhabit(&cgroup, "sleep 100");
        let error = cgroup.remove().unwrap_err();
        assert!(error.to_string().contains("still in it: kill it first"), "{error}");
        assert!(paths.iter().all(|path| path.exists()));
        Group::remove_leftovers(&scene.hierarchies, &scene.name).unwrap();
        assert_eq!(signal_that_ended(child), Some(9));
        scene.census();
    });
}

#[test]
fn a_dropped_cgroup_leaves_nothing() {
    on_each_layout(|scene| {
        drop(scene.group.child("one", &LIMITS, None).unwrap());
        scene.end();
    });
}

#[test]
fn leftovers_go_whatever_their_state() {
    on_each_layout(|scene| {
        let frozen = scene.group.child("frozen", &LIMITS, None).unwrap();
        let running = scene.group.child("running", &LIMITS, None).unwrap();
        let children = [inhabit(&frozen, "sleep 100"), inhabit(&running, "sleep 100")];
        frozen.freeze().unwrap();
        for path in scene.group.paths() {
            fs::create_dir(path.join("running/deeper")).unwrap();
        }
        // A worker that died runs no destructor.
        std::mem::forget((frozen, running));
        // The frozen child is ours to reap, from another thread.
        let reaper = std::thread::spawn(|| children.map(signal_that_ended));
        Group::remove_leftovers(&scene.hierarchies, &scene.name).unwrap();
        scene.census();
        assert_eq!(reaper.join().unwrap(), [Some(9), Some(9)]);
        Group::remove_leftovers(&scene.hierarchies, &scene.name).unwrap();
    });
}

#[test]
fn a_name_that_is_taken_is_left_as_it_is() {
    on_each_layout(|scene| {
        let error = Group::create(&scene.hierarchies, &scene.name).unwrap_err();
        assert!(error.to_string().contains("earlier worker"), "{error}");
        assert!(scene.group.paths().iter().all(|path| path.exists()));
        let one = scene.group.child("one", &LIMITS, None).unwrap();
        scene.group.child("one", &LIMITS, None).unwrap_err();
        assert!(one.paths().iter().all(|path| path.exists()));
        one.remove().unwrap();
        // Taken in the last hierarchy only: the others are left as they were.
        let paths: Vec<_> = scene.group.paths().into_iter().map(|path| path.join("two")).collect();
        let (last, others) = paths.split_last().unwrap();
        fs::create_dir(last).unwrap();
        scene.group.child("two", &LIMITS, None).unwrap_err();
        assert!(last.exists() && others.iter().all(|path| !path.exists()));
        fs::remove_dir(last).unwrap();
        scene.end();
    });
}

#[test]
fn the_pool_hands_out_what_is_asked_for() {
    on_each_layout(|scene| {
        let layout = scene.hierarchies.layout();
        let pool = Pool::new(Arc::clone(&scene.group), 2, LIMITS, None);
        assert_eq!(pool.lacking(), 2);
        pool.refill().unwrap();
        assert_eq!(pool.lacking(), 0);
        let other = Limits { mem_mb: 100, ..LIMITS };
        let taken = [pool.take(&LIMITS), pool.take(&other), pool.take(&other)].map(Result::unwrap);
        assert_eq!(pool.lacking(), 2, "the third was made on the spot");
        for (cgroup, limits) in taken.iter().zip([LIMITS, other, other]) {
            assert_limits(cgroup, layout, &limits);
        }
        let [first, mut second, third] = taken;
        pool.give_back(third).unwrap();
        assert_eq!(pool.lacking(), 1, "nobody was in it");
        second.kill().unwrap();
        pool.give_back(second).unwrap();
        assert_eq!(pool.lacking(), 1, "a killed one is not for another");
        assert_limits(&pool.take(&LIMITS).unwrap(), layout, &LIMITS);
        first.remove().unwrap();
        pool.drain().unwrap();
        scene.end();
    });
}

#[test]
fn a_pool_of_none_makes_each_when_it_is_asked_for() {
    on_each_layout(|scene| {
        let pool = Pool::new(Arc::clone(&scene.group), 0, LIMITS, None);
        pool.refill().unwrap();
        let cgroup = pool.take(&LIMITS).unwrap();
        pool.give_back(cgroup).unwrap();
        scene.end();
    });
}

/// `CLONE_INTO_CGROUP` as a zygote does it: from one child of the group into
/// another, without any right but the owner's. Prints how the born one ended.
#[test]
fn who_is_handed_a_cgroup_cannot_get_out_of_it() {
    use nix::sys::stat::{fstat, fstatat};
    on_each_layout(|scene| {
        let cgroup = scene.group.child("handed", &LIMITS, None).unwrap();
        let birth = cgroup.birth().unwrap();
        let Some(handed) = birth.into else { return };
        let identity = |stat: nix::sys::stat::FileStat| (stat.st_dev, stat.st_ino);
        let here = identity(fstat(handed).unwrap());
        let above = |from| identity(fstatat(from, "..", nix::fcntl::AtFlags::empty()).unwrap());
        assert_eq!(above(handed), here);
        // The proof that `..` would lead somewhere: it does from the directory itself.
        let plain = fs::File::open(&cgroup.paths()[0]).unwrap();
        assert_ne!(above(std::os::fd::AsFd::as_fd(&plain)), here);
    });
}

const CLONE_INTO: &str = r"
import ctypes, os, struct, sys
clone_args = struct.pack('<11Q', 0x200000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, int(sys.argv[1]))
buffer = ctypes.create_string_buffer(clone_args)
libc = ctypes.CDLL(None, use_errno=True)
input()
pid = libc.syscall(435, buffer, len(clone_args))
if pid == 0:
    os._exit(7)
print(ctypes.get_errno() if pid < 0 else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";

/// From inside `from`, as a stranger.
fn clone_into(from: &Cgroup, into: &OwnedFd) -> String {
    use std::io::Write;
    let inherited = dup(into).unwrap();
    let mut child = Command::new("python3")
        .args(["-c", CLONE_INTO, &inherited.as_raw_fd().to_string()])
        .uid(STRANGER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    fs::write(from.paths()[0].join("cgroup.procs"), child.id().to_string()).unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().trim().to_owned()
}

#[test]
fn an_owner_gives_birth_into_another_cgroup_and_nobody_else_does() {
    on_each_layout(|scene| {
        if scene.hierarchies.layout() == Layout::V1 {
            return scene.end();
        }
        let owner = Some((STRANGER, STRANGER));
        let zygote = scene.group.child("zygote", &LIMITS, owner).unwrap();
        let leaf = scene.group.child("leaf", &LIMITS, owner).unwrap();
        let unowned = scene.group.child("unowned", &LIMITS, None).unwrap();
        let fd = |cgroup: &Cgroup| cgroup.birth().unwrap().into.unwrap().try_clone_to_owned().unwrap();
        let eacces = (nix::errno::Errno::EACCES as i32).to_string();
        let leaf_fd = fd(&leaf);
        assert_eq!(clone_into(&zygote, &leaf_fd), eacces, "before the common ancestor is delegated");
        scene.group.delegate_procs((STRANGER, STRANGER)).unwrap();
        assert_eq!(clone_into(&zygote, &leaf_fd), "7");
        assert_eq!(clone_into(&zygote, &fd(&unowned)), eacces);
        for cgroup in [zygote, leaf, unowned] {
            cgroup.remove().unwrap();
        }
        scene.end();
    });
}
