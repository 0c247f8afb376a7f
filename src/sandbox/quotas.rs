//! A sandbox's share of what the kernel has for everybody: the host's limit of a user, by the
//! sandboxes that there may be. Pure but for [`Host::read`]. Runs in the worker.
//!
//! ```text
//! /proc/sys, rlimits ──▶ Host ──┬▶ shares ──▶ Quotas, for each user namespace
//!                               └▶ notes ───▶ what the operator should raise
//! ```
//!
//! `docs/quotas.md` has a row for each resource, and who pays for it.

use hosier_zygote::nets::MAX_BATCH;
use hosier_zygote::quotas::Quotas;
use nix::sys::resource::{Resource, getrlimit};

/// Namespaces of a kind for each sandbox: it has one; of those that ended, the kernel takes a
/// moment to remove them.
const NAMESPACES_EACH: u64 = 8;
/// Namespaces of a kind beside those.
const NAMESPACES_MORE: u64 = 512;
/// Process numbers of a kernel that does not tell, as `pid_max` has it by default.
const PIDS: u64 = 32_768;

/// Limits of one user on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    pub inotify_instances: u64,
    pub inotify_watches: u64,
    pub signals: u64,
}

impl Host {
    /// Reads them. A limit that the kernel does not tell is as good as none.
    pub fn read() -> Self {
        Self {
            inotify_instances: number("/proc/sys/fs/inotify/max_user_instances"),
            inotify_watches: number("/proc/sys/fs/inotify/max_user_watches"),
            signals: getrlimit(Resource::RLIMIT_SIGPENDING).map_or(u64::MAX, |(soft, _)| soft),
        }
    }
}

/// Shares of each sandbox's user, where `sandboxes` may live at one time.
pub fn shares(host: &Host, sandboxes: usize, netns_pool: usize) -> Quotas {
    // The files take no more than an `int`.
    let share = |total| share(total, sandboxes).min(i32::MAX as u64);
    let ready = netns_pool as u64 + u64::from(MAX_BATCH);
    Quotas {
        inotify_instances: share(host.inotify_instances),
        inotify_watches: share(host.inotify_watches),
        signals: share(host.signals),
        namespaces: NAMESPACES_EACH * sandboxes as u64 + NAMESPACES_MORE + ready,
    }
}

/// Limits of the host that are too low for one share a sandbox, and where to raise each.
pub fn notes(host: &Host, sandboxes: usize) -> Vec<String> {
    let limits = [
        ("inotify instances", host.inotify_instances, "sysctl -w fs.inotify.max_user_instances="),
        ("inotify watches", host.inotify_watches, "sysctl -w fs.inotify.max_user_watches="),
        ("pending signals", host.signals, "ulimit -i "),
    ];
    let short = limits.into_iter().filter(|(_, limit, _)| *limit < sandboxes as u64);
    short
        .map(|(what, limit, raise)| {
            format!(
                "this host has {limit} {what} for each user, fewer than sandbox.max_sandboxes \
                 ({sandboxes}): a function may find none left; raise it with `{raise}{sandboxes}`"
            )
        })
        .collect()
}

/// Processes and threads of one user namespace: half of the machine's numbers, so that
/// nobody in it uses them up.
pub(super) fn processes() -> u64 {
    let all = number("/proc/sys/kernel/pid_max");
    if all == u64::MAX { PIDS / 2 } else { all / 2 }
}

fn share(total: u64, sandboxes: usize) -> u64 {
    (total / sandboxes.max(1) as u64).max(1)
}

/// The number in a file, or the largest there is.
fn number(path: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host { inotify_instances: 128, inotify_watches: 65_536, signals: 96_000 };

    #[test]
    fn all_sandboxes_together_have_no_more_than_the_host_gives_one_user() {
        for sandboxes in [1, 7, 100, 128] {
            let shares = shares(&HOST, sandboxes, 16);
            assert!(shares.inotify_instances * sandboxes as u64 <= HOST.inotify_instances);
            assert!(shares.signals * sandboxes as u64 <= HOST.signals);
            assert!(notes(&HOST, sandboxes).is_empty());
        }
    }

    #[test]
    fn where_there_is_too_little_each_has_one_and_the_operator_is_told() {
        assert_eq!(shares(&HOST, 1_000, 16).inotify_instances, 1);
        let notes = notes(&HOST, 1_000);
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].contains("fs.inotify.max_user_instances=1000"), "{notes:?}");
    }

    #[test]
    fn a_limit_that_is_none_is_a_share_that_the_kernel_takes() {
        let none = Host { inotify_instances: u64::MAX, ..HOST };
        assert_eq!(shares(&none, 1, 0).inotify_instances, i32::MAX as u64);
    }
}
