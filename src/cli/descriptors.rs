//! Fits a worker's settings into the limit of open files: refuses a limit with which it would be useless, and lowers
//! what the settings allow where the limit does not carry it. Pure; asked by `hosier up` before anything is made.
//!
//! ```text
//! limit ─ what stands at any time (pools, own) = what sandboxes and connections share, as the settings weigh them
//! ```
//!
//! A worker without descriptors accepts nobody and starts nothing, and finds out one request at a time.

use super::CliError;
use crate::settings::Settings;

/// Descriptors of an idle worker, without pools: its ports, logs, runtime, trees, and the own socket's clients.
const OWN: u64 = 64;
/// Descriptors of one cgroup kept ready, in the layout with most hierarchies.
const READY_CGROUP: u64 = 6;
/// Trees that have pools: one for each kind of network.
const TREES: u64 = 2;
/// Descriptors of one sandbox while it starts, which is when it has most: 14 were counted on a hybrid layout.
const SANDBOX: u64 = 16;

/// Sandboxes and connections below which a worker serves nobody well.
const LEAST_SANDBOXES: u64 = 8;
const LEAST_CONNECTIONS: u64 = 64;

/// Lowers `sandbox.max_sandboxes` and `http.max_connections` to what `limit` descriptors carry; returns a note for
/// each that was lowered.
///
/// # Errors
/// Returns [`CliError::Descriptors`] if the limit carries too few of either.
pub fn clamp(settings: &mut Settings, limit: u64) -> Result<Vec<String>, CliError> {
    let count = |setting: usize| u64::try_from(setting).unwrap_or(u64::MAX);
    let pools = READY_CGROUP * count(settings.sandbox.cgroup_pool) + count(settings.sandbox.netns_pool);
    let fixed = OWN + TREES * pools;
    let (sandboxes, connections) =
        (count(settings.sandbox.max_sandboxes), count(settings.http.max_connections));
    let shared = SANDBOX * sandboxes + connections;
    if limit >= fixed + shared {
        return Ok(Vec::new());
    }
    let (least_sandboxes, least_connections) =
        (sandboxes.min(LEAST_SANDBOXES), connections.min(LEAST_CONNECTIONS));
    let least = fixed + SANDBOX * least_sandboxes + least_connections;
    if limit < least {
        return Err(CliError::Descriptors { limit, least, all: fixed + shared });
    }
    // Each gets its share, but not less than its least, which then is the other's to give.
    let left = limit - fixed;
    let share = (left * connections / shared).max(least_connections);
    let connections = share.min(left - SANDBOX * least_sandboxes);
    let sandboxes = ((left - connections) / SANDBOX).min(sandboxes);
    let mut notes = Vec::new();
    let mut lower = |name: &str, setting: &mut usize, to: u64| {
        let to = usize::try_from(to).unwrap_or(usize::MAX);
        if to < *setting {
            notes.push(format!(
                "{name} is {to} and not {setting}: the limit of open files is {limit}, and all that the settings allow \
                 needs {}; raise it (`ulimit -n`), or set {name} to {to}",
                fixed + shared
            ));
            *setting = to;
        }
    };
    lower("sandbox.max_sandboxes", &mut settings.sandbox.max_sandboxes, sandboxes);
    lower("http.max_connections", &mut settings.http.max_connections, connections);
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn settings(overrides: &str) -> Settings {
        Settings::load(Path::new("/nowhere"), &[overrides.to_owned()]).unwrap()
    }

    fn clamped(overrides: &str, limit: u64) -> Result<(usize, usize, usize), CliError> {
        let mut settings = settings(overrides);
        let notes = clamp(&mut settings, limit)?;
        Ok((settings.sandbox.max_sandboxes, settings.http.max_connections, notes.len()))
    }

    #[test]
    fn a_limit_that_carries_all_changes_nothing() {
        assert_eq!(clamped("", 1 << 20).unwrap(), (100, 1024, 0));
        assert_eq!(clamped("", 64 + 2 * (48 + 16) + 1600 + 1024).unwrap(), (100, 1024, 0));
    }

    #[test]
    fn a_smaller_one_is_shared_and_each_lowered_setting_is_noted() {
        let (sandboxes, connections, notes) = clamped("", 1024).unwrap();
        assert!(
            (8..100).contains(&sandboxes) && (64..1024).contains(&connections),
            "{sandboxes} {connections}"
        );
        assert!(64 + 128 + 16 * sandboxes + connections <= 1024);
        assert_eq!(notes, 2);
        let few = clamped("sandbox.max_sandboxes=2", 1024).unwrap();
        assert!(few.0 == 2 && few.1 > 700 && few.2 == 1, "{few:?}");
        let mut some = settings("");
        let notes = clamp(&mut some, 1024).unwrap();
        for (note, part) in notes.iter().zip(["sandbox.max_sandboxes", "http.max_connections"]) {
            assert!(note.starts_with(part) && note.contains("ulimit -n") && note.contains("1024"), "{note}");
        }
    }

    #[test]
    fn whatever_the_limit_a_worker_is_refused_or_fits_and_is_of_use() {
        for overrides in
            ["", "sandbox.max_sandboxes=10000", "http.max_connections=65536", "http.max_connections=10"]
        {
            for limit in (0..8192).step_by(7) {
                match clamped(overrides, limit) {
                    Ok((sandboxes, connections, _)) => {
                        assert!(
                            64 + 128 + 16 * sandboxes + connections <= limit as usize,
                            "{overrides} {limit}"
                        );
                        assert!(sandboxes >= 8 && connections >= 10, "{overrides} {limit}");
                    }
                    Err(error) => {
                        assert!(limit < 64 + 128 + 128 + 64, "{overrides} {limit}");
                        assert!(error.to_string().contains("ulimit -n"), "{error}");
                    }
                }
            }
        }
    }

    #[test]
    fn pools_that_the_limit_does_not_carry_are_refused() {
        let error = clamped("sandbox.cgroup_pool=1024,sandbox.netns_pool=1024", 8192).unwrap_err();
        assert!(matches!(error, CliError::Descriptors { limit: 8192, least, .. } if least > 8192), "{error}");
    }
}
