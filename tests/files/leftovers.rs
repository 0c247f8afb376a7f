//! What a worker that died left in its directories: no obstacle to the next one.

use std::fs;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::support::{Worker, wait_until};
use crate::{DEEP, nest, worker};

const FINE: (&str, &str) = ("f.py", "def f(event):\n    return 'fine'\n");

/// Directories where staging may be left, and names that are staging there.
const PLACES: [(&str, &str); 4] = [
    ("packages", ".staging-six==1.16.0"),
    ("packages", ".trash~1-2-3"),
    ("worker/code", "~staging-0"),
    ("registry", ".trash~1-2-3"),
];

#[test]
fn a_deep_leftover_in_any_directory_is_removed_and_the_worker_starts() {
    let (mut worker, packages) = worker();
    worker.deploy("kind", &[FINE]);
    let place = |dir: &str| match dir {
        "packages" => packages.path().to_owned(),
        dir => worker.path().join(dir),
    };
    let places = PLACES.map(|(dir, name)| (place(dir), name));
    // Those in memory as deep as a stack is; the others too deep for a path.
    for ((dir, name), depth) in places.iter().zip([DEEP, DEEP, 2100, 2100]) {
        let left = dir.join(name).join("files");
        fs::create_dir_all(&left).unwrap();
        nest(&left, depth);
    }
    worker.up(&[]);
    assert_eq!(worker.result("kind", ""), "fine");
    wait_until("the leftovers are removed", Duration::from_secs(90), || {
        places.iter().all(|(dir, _)| {
            let names = fs::read_dir(dir).unwrap();
            names.map(|entry| entry.unwrap().file_name()).all(|name| {
                let name = name.to_string_lossy();
                !name.contains("trash") && !name.contains("staging")
            })
        })
    });
    worker.down();
}

#[test]
fn a_leftover_that_cannot_be_removed_is_told_and_hinders_nobody() {
    // Mounts of this test's own: something is mounted where the leftover is.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let mut worker = Worker::new();
    worker.deploy("kind", &[FINE]);
    let mounts = PLACES.map(|(dir, name)| worker.path().join(dir).join(name).join("mounted"));
    for path in &mounts {
        fs::create_dir_all(path).unwrap();
        mount(Some("none"), path, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
        fs::write(path.join("precious"), "x").unwrap();
    }
    for _ in 0..2 {
        worker.up(&[]);
        assert_eq!(worker.result("kind", ""), "fine");
        wait_until("the operator is told", Duration::from_secs(10), || {
            worker.worker_log().matches("cannot be removed").count() >= PLACES.len()
        });
        // Whatever it was renamed to, what is mounted there is whole.
        let whole = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let whole =
            whole.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| at.ends_with("/mounted"));
        let whole: Vec<_> = whole.map(|at| at.replace("\\040", " ")).collect();
        assert_eq!(whole.len(), PLACES.len(), "{whole:?}");
        assert!(whole.iter().all(|at| fs::read_to_string(format!("{at}/precious")).unwrap() == "x"));
        worker.ok(&["down"]);
    }
    let mounted = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    for at in mounted.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| at.ends_with("/mounted"))
    {
        umount2(at, MntFlags::MNT_DETACH).unwrap();
    }
    worker.census();
}
