//! What the kernel asks for the parts of a start, each alone, in this process or in a
//! child of it.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hosier::sandbox::Limits;
use hosier::sandbox::cgroup::{Group, Hierarchies, Pool};
use hosier::sandbox::seccomp::Filters;
use hosier_zygote::sys::process::{self, CloneOptions, Forked, fork_into};
use hosier_zygote::sys::{mount, net, privilege};

use super::table;
use crate::support::QUIET;
use crate::support::samples::Samples;

type Part = Box<dyn FnMut() -> Duration>;

/// Measures and prints all of them.
pub fn measure(rounds: usize) -> serde_json::Value {
    let parts: Vec<(&str, Part)> = vec![
        ("fork", Box::new(|| forked(0))),
        ("fork +pid", Box::new(|| forked(libc::CLONE_NEWPID))),
        ("fork +mnt", Box::new(|| forked(libc::CLONE_NEWNS))),
        ("fork +ipc", Box::new(|| forked(libc::CLONE_NEWIPC))),
        ("fork +uts", Box::new(|| forked(libc::CLONE_NEWUTS))),
        ("fork +net", Box::new(|| forked(libc::CLONE_NEWNET))),
        ("fork +all", Box::new(|| forked(ALL))),
        ("gone", Box::new(|| gone(0))),
        ("gone +mnt", Box::new(|| gone(libc::CLONE_NEWNS))),
        ("gone +net", Box::new(|| gone(libc::CLONE_NEWNET))),
        ("gone +all", Box::new(|| gone(ALL))),
        ("lo up", Box::new(|| inside(libc::CLONE_NEWNET, || net::loopback_up().is_ok()))),
        ("tmpfs", Box::new(|| timed(|| drop(tmpfs())))),
        ("tmpfs, attached", Box::new(attached)),
        ("proc", Box::new(|| inside(libc::CLONE_NEWPID | libc::CLONE_NEWNS, || proc().is_ok()))),
        ("capabilities", Box::new(|| inside(0, give_up))),
        ("filter, leaf", Box::new(filter(|filters| filters.narrow.as_bytes().to_vec()))),
        ("filter, zygote", Box::new(filter(|filters| filters.zygote.as_bytes().to_vec()))),
    ];
    let mut rows: Vec<(String, [Samples; 2])> = Vec::new();
    for (name, mut part) in parts {
        rows.push((name.to_owned(), measured(rounds, &mut part)));
    }
    let group = format!("hosier-bench-{}", std::process::id());
    let hierarchies = Hierarchies::detect().unwrap();
    let parent = Arc::new(Group::create(&hierarchies, &group).unwrap());
    let limits = Limits::default();
    let pool = Pool::new(Arc::clone(&parent), 2 * rounds, limits, None);
    pool.refill().unwrap();
    let mut kept = Vec::new();
    let mut take = || timed(|| kept.push(pool.take(&limits).unwrap()));
    rows.push(("cgroup, ready".to_owned(), measured(rounds, &mut take)));
    let mut make = || timed(|| kept.push(parent.unnamed_child(&limits, None).unwrap()));
    rows.push(("cgroup, made".to_owned(), measured(rounds, &mut make)));
    drop(kept);
    Group::remove_leftovers(&hierarchies, &group).unwrap();
    rows.push(("wake-up, twice".to_owned(), measured(rounds, &mut echoed())));
    table("part", rows)
}

const ALL: i32 =
    libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNET;

fn measured(rounds: usize, part: &mut dyn FnMut() -> Duration) -> [Samples; 2] {
    [Duration::ZERO, QUIET].map(|quiet| {
        let mut samples = Samples::default();
        for _ in 0..rounds {
            std::thread::sleep(quiet);
            samples.add(part());
        }
        samples
    })
}

fn timed(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// A byte goes to another thread, which waits for it, and comes back.
fn echoed() -> impl FnMut() -> Duration {
    let (mut here, mut there) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let mut byte = [0];
        while there.read(&mut byte).is_ok_and(|read| read == 1) && there.write(&byte).is_ok() {}
    });
    move || {
        timed(|| {
            here.write_all(&[1]).unwrap();
            here.read_exact(&mut [0]).unwrap();
        })
    }
}

/// Until the child runs.
fn forked(namespaces: i32) -> Duration {
    inside_from(namespaces, Instant::now(), || true)
}

/// From the child's last instruction until it is reaped.
fn gone(namespaces: i32) -> Duration {
    let (read, write) = nix::unistd::pipe().unwrap();
    match fork_into(&CloneOptions { namespaces, cgroup: None }).unwrap() {
        Forked::Child => {
            drop(write);
            process::exit_now(0)
        }
        Forked::Parent { .. } => {
            drop(write);
            // It ends when the child's copy is closed, at the start of its end.
            let _ = nix::unistd::read(&read, &mut [0]);
            timed(|| {
                process::wait_any(true).unwrap();
            })
        }
    }
}

/// What a step costs in a child in these namespaces.
fn inside(namespaces: i32, step: impl FnOnce() -> bool) -> Duration {
    inside_from(namespaces, None, step)
}

/// The same, counted from `begun`. Both clocks are one.
fn inside_from(namespaces: i32, begun: impl Into<Option<Instant>>, step: impl FnOnce() -> bool) -> Duration {
    let (read, write) = nix::unistd::pipe().unwrap();
    match fork_into(&CloneOptions { namespaces, cgroup: None }).unwrap() {
        Forked::Child => {
            let begun = begun.into().unwrap_or_else(Instant::now);
            let done = step();
            let took = begun.elapsed().as_nanos() as u64;
            let took = if done { took } else { 0 };
            let _ = nix::unistd::write(&write, &took.to_ne_bytes());
            process::exit_now(0)
        }
        Forked::Parent { .. } => {
            let mut took = [0; 8];
            nix::unistd::read(&read, &mut took).unwrap();
            process::wait_any(true).unwrap();
            let took = u64::from_ne_bytes(took);
            assert!(took > 0, "the step failed");
            Duration::from_nanos(took)
        }
    }
}

fn tmpfs() -> OwnedFd {
    mount::tmpfs(c"64m", c"16384", c"1777", mount::Attr::NOSUID | mount::Attr::NODEV).unwrap()
}

/// One that was made before is attached.
fn attached() -> Duration {
    let tmpfs = tmpfs();
    inside(libc::CLONE_NEWNS, || {
        mount::isolate_propagation(false).and_then(|()| mount::attach(tmpfs.as_fd(), c"/tmp")).is_ok()
    })
}

fn proc() -> hosier_zygote::sys::Result<OwnedFd> {
    let fs = mount::FsContext::new(c"proc")?;
    fs.set(c"subset", c"pid")?;
    fs.mount(mount::Attr::NOSUID | mount::Attr::NODEV | mount::Attr::NOEXEC)
}

fn give_up() -> bool {
    let steps = || {
        privilege::bound_capabilities(0)?;
        privilege::become_ids(65_534, 65_534)?;
        privilege::keep_capabilities(0)
    };
    steps().is_ok()
}

fn filter(which: impl Fn(&Filters) -> Vec<u8>) -> impl FnMut() -> Duration {
    let program = which(&Filters::builtin().unwrap());
    move || inside(0, || privilege::no_new_privs().and_then(|()| privilege::install_filter(&program)).is_ok())
}
