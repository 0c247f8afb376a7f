//! One run of `uv`: the command for a fresh sandbox, and what its failure
//! means. Pure, but for the look for `uv`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::operator::Operator;
use super::tools::{self, ToolError};
use crate::lambda::Blame;
use crate::lambda::requirements::Pin;
use crate::sandbox::{Bind, Command, Ended, Limits, Network, Outlet};
use crate::settings::Settings;

/// Where a sandbox shows `uv` and the directory that it fills.
const UV: &str = "/installer/uv";
const OUT: &str = "/out";

/// How much of what `uv` said an error repeats.
const TAIL_LINES: usize = 12;

/// What every install is made with.
#[derive(Debug, Clone)]
pub struct Installer {
    /// The worker's directory, where [`find_uv`] looks first.
    pub dir: PathBuf,
    /// `uv` on the host, if the settings name it.
    pub uv: Option<PathBuf>,
    /// The interpreter, on the host and in the sandbox.
    pub python: PathBuf,
    pub limits: Limits,
    pub operator: Operator,
    /// Most that one step moves over the network, in MiB.
    pub transfer_mib: u64,
}

/// Why a package is not installed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("no package of that name is on the index; check the name")]
    NoSuchPackage,
    #[error("the index has no such version{}; pin one that it has", newest.as_ref().map(|v| format!(" (the newest is {v})")).unwrap_or_default())]
    NoSuchVersion { newest: Option<String> },
    #[error("that version has nothing for this Python and machine; pin another version")]
    NotForThisPython,
    #[error("the index cannot be reached; check the network, pip_mirror, proxy and certificates: {tail}")]
    Network { tail: String },
    #[error("it is installed from source and that failed; pin a version with a wheel: {tail}")]
    Build { tail: String },
    #[error("the installer needed more than {mem_mib} MiB; raise installer_limits.mem_mb")]
    OutOfMemory { mem_mib: u32 },
    #[error("the installer needed more than {runtime_s} s; raise installer_limits.runtime_sec")]
    TimedOut { runtime_s: u32 },
    #[error("the installer failed: {tail}")]
    Other { tail: String },
}

impl Failure {
    pub fn blame(&self) -> Blame {
        match self {
            Failure::NoSuchPackage | Failure::NoSuchVersion { .. } => Blame::Function,
            Failure::NotForThisPython | Failure::Build { .. } => Blame::Function,
            _ => Blame::Worker,
        }
    }
}

impl Installer {
    /// As the settings and the operator's own say.
    pub fn from_settings(settings: &Settings) -> Self {
        Self {
            dir: settings.dir.clone(),
            uv: settings.installer.uv.clone(),
            python: settings.sandbox.python.clone(),
            limits: settings.installer_limits,
            operator: Operator::from_host(settings.pip_mirror.as_deref(), &settings.installer.hosts),
            transfer_mib: settings.installer.transfer_mib,
        }
    }

    /// Looked for at each install: functions without packages need none, and
    /// one that is put there later is found.
    pub(super) fn find_uv(&self) -> Result<PathBuf, ToolError> {
        tools::find_uv(&self.dir, self.uv.as_deref())
    }

    /// Installs `pin`, without its dependencies, into `files` of the host's
    /// directory `out`.
    pub(super) fn install(&self, uv: &Path, pin: &Pin, out: &Path) -> Command {
        let files = format!("{OUT}/files");
        self.command(&["--compile-bytecode", "--target", &files, &pin.to_string()], uv, out)
    }

    /// Asks the index for the newest version of `pin`'s package.
    pub(super) fn ask_newest(&self, uv: &Path, pin: &Pin, out: &Path) -> Command {
        let probe = format!("{OUT}/probe");
        self.command(&["--dry-run", "--target", &probe, pin.name()], uv, out)
    }

    fn command(&self, arguments: &[&str], uv: &Path, out: &Path) -> Command {
        let python = self.python.display().to_string();
        let fixed = [
            UV,
            "pip",
            "install",
            "--no-deps",
            "--python",
            &python,
            "--system-certs",
            "--no-config",
            "--no-progress",
            "--color",
            "never",
            "--no-python-downloads",
            "--link-mode",
            "hardlink",
        ];
        let argv = fixed.iter().chain(arguments).map(|text| (*text).to_owned()).collect();
        let own = [
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("LANG", "C.UTF-8"),
            ("HOME", "/out/home"),
            ("TMPDIR", "/out/tmp"),
            ("UV_CACHE_DIR", "/out/cache"),
            ("PYC_INVALIDATION_MODE", "UNCHECKED_HASH"),
            // Threads and compilers count as processes: not one a core.
            ("UV_CONCURRENT_INSTALLS", "2"),
            ("UV_CONCURRENT_BUILDS", "1"),
            ("TOKIO_WORKER_THREADS", "2"),
        ];
        let mut env: Vec<_> = own.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        env.extend(self.operator.env.iter().cloned());
        let mut binds = vec![
            Bind { source: uv.to_owned(), target: UV.to_owned(), writable: false },
            Bind { source: out.to_owned(), target: OUT.to_owned(), writable: true },
        ];
        binds.extend(self.operator.binds.iter().cloned());
        Command { argv, env, binds, limits: self.limits, network: Network::None, outlet: Some(self.outlet()) }
    }

    /// A way out for one step of an install.
    pub(super) fn outlet(&self) -> Arc<Outlet> {
        Outlet::new(self.operator.policy(), self.transfer_mib)
    }

    /// What a run that ended so means. None: it did what it should. `outlet` was its way out.
    pub(super) fn explain(&self, ended: Ended, output: &str, outlet: Option<&Outlet>) -> Option<Failure> {
        let complaint = outlet.and_then(Outlet::complaint);
        match ended {
            Ended::Exited(0) => None,
            Ended::OutOfMemory => Some(Failure::OutOfMemory { mem_mib: self.limits.mem_mb }),
            Ended::TimedOut => Some(Failure::TimedOut { runtime_s: self.limits.runtime_sec }),
            Ended::Exited(_) | Ended::Signaled(_) => Some(match (explain(output), complaint) {
                // uv does not repeat the outlet's reasons.
                (Failure::Network { tail } | Failure::Other { tail }, Some(reasons)) => {
                    Failure::Network { tail: format!("{tail}\n{reasons}") }
                }
                (failure, _) => failure,
            }),
        }
    }
}

/// Reads `uv`'s message. Its wording is no interface: what is not known stays
/// readable in [`Failure::Other`].
fn explain(output: &str) -> Failure {
    // uv breaks lines where it likes.
    let text = output.split_whitespace().collect::<Vec<_>>().join(" ");
    let says = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    let lines: Vec<_> = output.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    if says(&["Failed to fetch", "error sending request", "Request failed after", "dns error"]) {
        Failure::Network { tail }
    } else if says(&["was not found in the package registry"]) {
        Failure::NoSuchPackage
    } else if says(&["there is no version of", "There is no version of"]) {
        Failure::NoSuchVersion { newest: None }
    } else if says(&["has no wheels with a matching", "has no usable wheels", "does not satisfy Python"]) {
        Failure::NotForThisPython
    } else if says(&["Failed to build", "Build backend"]) {
        Failure::Build { tail }
    } else {
        Failure::Other { tail }
    }
}

/// The version in the plan (` + six==1.17.0`) of a run of [`Installer::ask_newest`].
pub(super) fn newest(pin: &Pin, output: &str) -> Option<String> {
    let mut planned = output.lines().filter_map(|line| line.trim().strip_prefix("+ "));
    planned
        .find_map(|line| line.parse::<Pin>().ok())
        .filter(|found| found.name() == pin.name())
        .map(|found| found.version().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_failure_says_what_to_do() {
        let none = "error: No solution found when resolving dependencies\n  cause: Because there is no version of \
                    six==99.0.0 and you require six==99.0.0, we can conclude";
        assert_eq!(explain(none), Failure::NoSuchVersion { newest: None });
        let name = "  cause: Because nope was not found in the package\n  registry and you require nope==1.0";
        assert_eq!(explain(name), Failure::NoSuchPackage);
        let network = "error: Request failed after 1 retry in 2.0s\n  cause: Failed to fetch: https://x/simple/six/\n  \
                       cause: dns error";
        assert!(matches!(explain(network), Failure::Network { tail } if tail.ends_with("dns error")));
        let wheels = "cause: Because numpy==1.19.0 has no usable wheels and you require numpy==1.19.0";
        assert_eq!(explain(wheels), Failure::NotForThisPython);
        assert!(matches!(explain("  x Failed to build `a==1`\n"), Failure::Build { .. }));
        assert!(matches!(explain(""), Failure::Other { .. }));
        assert_eq!(explain(name).blame(), Blame::Function);
        assert_eq!(explain(network).blame(), Blame::Worker);
    }

    #[test]
    fn the_newest_version_is_read_from_the_plan() {
        let pin: Pin = "six==99".parse().unwrap();
        let plan = "Resolved 1 package in 5ms\nWould install 1 package\n + six==1.17.0\n";
        assert_eq!(newest(&pin, plan).as_deref(), Some("1.17.0"));
        assert_eq!(newest(&pin, "error"), None);
    }

    #[test]
    fn an_installer_gets_no_environment_of_the_workers() {
        let installer = Installer {
            dir: "/nowhere".into(),
            uv: None,
            python: "/usr/bin/python3".into(),
            limits: Limits::default(),
            operator: Operator::default(),
            transfer_mib: 1,
        };
        let command =
            installer.install(Path::new("/x/uv"), &"six==1.16.0".parse().unwrap(), Path::new("/staging"));
        assert_eq!(command.argv.last().unwrap(), "six==1.16.0");
        assert!(command.env.iter().all(|(name, value)| name != "HOME" || value.starts_with("/out")));
        assert!(
            command
                .binds
                .iter()
                .filter(|bind| bind.writable)
                .all(|bind| bind.source == Path::new("/staging"))
        );
    }
}
