//! What the operations on a cgroup cost on this machine: hot, and after 30 ms of
//! quiet, as a cold start meets them. Needs root.
//!
//! ```text
//! cargo run --release --example cgroup_prices
//! ```

#![forbid(unsafe_code)]

use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hosier::sandbox::Limits;
use hosier::sandbox::cgroup::{Cgroup, CgroupError, Group, Hierarchies, Pool};

const ROUNDS: usize = 200;
const QUIET: Duration = Duration::from_millis(30);

fn main() -> Result<(), CgroupError> {
    let hierarchies = Hierarchies::detect()?;
    let name = format!("hosier-test-prices-{}", std::process::id());
    let group = Arc::new(Group::create(&hierarchies, &name)?);
    println!("{:?}; p50 and p99 of {ROUNDS}, µs", hierarchies.layout());
    println!("{:32}{:>9}{:>9}{:>12}{:>9}", "", "hot", "p99", "quiet", "p99");
    let measured = measure(&group);
    Group::remove_leftovers(&hierarchies, &name)?;
    measured
}

fn measure(group: &Arc<Group>) -> Result<(), CgroupError> {
    let limits = Limits::default();
    let mut made = Vec::new();
    row("child", || {
        made.push(group.unnamed_child(&limits, None)?);
        Ok(())
    })?;
    row("remove, never used", || made.pop().map_or(Ok(()), Cgroup::remove))?;

    let pool = Pool::new(Arc::clone(group), 2 * ROUNDS, limits, None);
    let mut taken = Vec::new();
    pool.refill()?;
    row("take", || {
        taken.push(pool.take(&limits)?);
        Ok(())
    })?;
    taken.clear();
    pool.refill()?;
    let larger = Limits { mem_mb: 100, ..limits };
    row("take, other memory limit", || {
        taken.push(pool.take(&larger)?);
        Ok(())
    })?;
    taken.clear();

    let cgroup = group.unnamed_child(&limits, None)?;
    let mut sleeper = Sleeper::inhabit(&cgroup);
    let mut even = 0;
    row("freeze, thaw in turn", || {
        even += 1;
        if even % 2 == 0 { cgroup.thaw() } else { cgroup.freeze() }
    })?;
    row("usage", || cgroup.usage().map(drop))?;
    row("oom_kills", || cgroup.oom_kills().map(drop))?;
    row("populated", || cgroup.populated().map(drop))?;
    sleeper.end();
    cgroup.remove()?;

    // The inhabitants are made ahead: only the kill and the removal are timed.
    let mut inhabited = Vec::new();
    for _ in 0..2 * ROUNDS {
        let cgroup = group.unnamed_child(&limits, None)?;
        inhabited.push((Sleeper::inhabit(&cgroup), cgroup));
    }
    let (mut sleepers, mut killed) = (Vec::new(), Vec::new());
    row("kill, until empty", || {
        let Some((sleeper, mut cgroup)) = inhabited.pop() else { return Ok(()) };
        cgroup.kill()?;
        sleepers.push(sleeper);
        killed.push(cgroup);
        Ok(())
    })?;
    row("remove, killed", || killed.pop().map_or(Ok(()), Cgroup::remove))
}

/// A process that is ended and reaped however the measuring ends.
struct Sleeper(Child);

impl Sleeper {
    /// Moved from outside, which takes milliseconds and is not what is measured.
    fn inhabit(cgroup: &Cgroup) -> Self {
        let sleeper = Self(Command::new("sleep").arg("1000").spawn().expect("sleep starts"));
        for path in cgroup.paths() {
            std::fs::write(path.join("cgroup.procs"), sleeper.0.id().to_string()).expect("it can be moved");
        }
        sleeper
    }

    fn end(&mut self) {
        // One that was killed and reaped already is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.end();
    }
}

fn row(name: &str, mut step: impl FnMut() -> Result<(), CgroupError>) -> Result<(), CgroupError> {
    print!("{name:32}");
    for (quiet, width) in [(Duration::ZERO, 9), (QUIET, 12)] {
        let mut times_us = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            if !quiet.is_zero() {
                std::thread::sleep(quiet);
            }
            let start = Instant::now();
            step()?;
            times_us.push(start.elapsed().as_nanos() as f64 / 1_000.0);
        }
        times_us.sort_by(f64::total_cmp);
        print!("{:>width$.1}{:>9.1}", times_us[ROUNDS / 2], times_us[ROUNDS * 99 / 100]);
    }
    println!();
    Ok(())
}
