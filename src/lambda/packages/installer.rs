//! Everything that an install's sandboxes are made with. Pure, but for the look
//! for `uv`.
//!
//! ```text
//! resolve   the index, its password   uv pip compile       no package's code
//! fetch     the index, its password   hosier_fetch.py      no package's code
//! build     nothing                   hosier_build.py      the package's code
//! unpack    nothing                   uv pip install       no package's code
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::failure::{self, Failure};
use super::operator::Operator;
use super::space::Space;
use super::step::{INPUT, OUT, Ran, Room};
use super::tools::{self, ToolError};
use crate::lambda::requirements::normalize;
use crate::sandbox::{Bind, Code, Command, Ended, Limits, Network, Outlet};
use crate::settings::{Build, Settings};

/// Where a sandbox shows `uv`.
pub(super) const UV: &str = "/installer/uv";
/// Where it shows wheels, read-only.
pub(super) const WHEELS: &str = "/wheels";

/// Everything that an install is made with.
#[derive(Debug, Clone)]
pub struct Installer {
    /// The worker's directory, where [`tools::find_uv`] looks first.
    pub dir: PathBuf,
    /// `uv` on the host, if the settings name it.
    pub uv: Option<PathBuf>,
    /// The interpreter, on the host and in the sandbox.
    pub python: PathBuf,
    pub limits: Limits,
    pub space: Space,
    pub build: BuildPolicy,
    pub operator: Operator,
    /// Most that one step moves over the network, in MiB.
    pub transfer_mib: u64,
}

/// Packages that may be built from source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildPolicy {
    All,
    /// Those of these normalised names.
    Only(BTreeSet<String>),
}

impl BuildPolicy {
    fn new(setting: &Build) -> Self {
        match setting {
            Build::All => BuildPolicy::All,
            Build::Never => BuildPolicy::Only(BTreeSet::new()),
            Build::Only(names) => {
                BuildPolicy::Only(names.iter().filter_map(|name| normalize(name)).collect())
            }
        }
    }

    pub(super) fn allows(&self, name: &str) -> bool {
        match self {
            BuildPolicy::All => true,
            BuildPolicy::Only(names) => names.contains(name),
        }
    }
}

/// The part of the network that a step reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// The index, with the operator's certificates and passwords.
    Index,
    /// Nothing.
    Nothing,
}

impl Installer {
    /// As the settings and the operator's own say.
    pub fn from_settings(settings: &Settings) -> Self {
        let installer = &settings.installer;
        Self {
            dir: settings.dir.clone(),
            uv: installer.uv.clone(),
            python: settings.sandbox.python.clone(),
            limits: settings.installer_limits,
            space: Space { mib: installer.disk_mib, inodes: installer.disk_inodes },
            build: BuildPolicy::new(&installer.build),
            operator: Operator::from_host(settings.pip_mirror.as_deref(), &installer.hosts),
            transfer_mib: installer.transfer_mib,
        }
    }

    /// Looked for at each install: functions without packages need none, and
    /// one that is put there later is found.
    pub(super) fn find_uv(&self) -> Result<PathBuf, ToolError> {
        tools::find_uv(&self.dir, self.uv.as_deref())
    }

    /// Returns the command of one step. Its `uv` is added by whoever runs it.
    pub(super) fn command(&self, reach: Reach, argv: &[&str], room: &Room, more: &[Bind]) -> Command {
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
        let mut binds = vec![
            Bind { source: room.input.clone(), target: INPUT.to_owned(), writable: false },
            Bind { source: room.out.clone(), target: OUT.to_owned(), writable: true },
        ];
        binds.extend(more.iter().cloned());
        if reach == Reach::Index {
            env.extend(self.operator.env.iter().cloned());
            binds.extend(self.operator.binds.iter().cloned());
        }
        let outlet = (reach == Reach::Index).then(|| Outlet::new(self.operator.policy(), self.transfer_mib));
        let argv = argv.iter().map(|text| (*text).to_owned()).collect();
        let code = Code::Tool;
        Command { argv, env, binds, limits: self.limits, network: Network::None, outlet, code }
    }

    /// Installs `wheel` of the directory `wheels` into `/out/files`. Runs nothing of it.
    pub(super) fn unpack(&self, wheels: &Path, wheel: &str, room: &Room) -> Command {
        let python = self.python.display().to_string();
        let (files, path) = (format!("{OUT}/files"), format!("{WHEELS}/{wheel}"));
        let argv = [
            UV,
            "pip",
            "install",
            "--offline",
            "--no-index",
            "--no-deps",
            "--no-build",
            "--python",
            &python,
            "--no-config",
            "--no-progress",
            "--color",
            "never",
            "--no-python-downloads",
            "--link-mode",
            "hardlink",
            "--compile-bytecode",
            "--target",
            &files,
            &path,
        ];
        let wheel = Bind { source: wheels.join(wheel), target: path.clone(), writable: false };
        self.command(Reach::Nothing, &argv, room, &[wheel])
    }

    /// Returns the meaning of a run that ended so; None if it did what it should.
    /// `explain` reads its output, in which no password is left.
    pub(super) fn explain(&self, ran: &Ran, explain: fn(&str) -> Failure) -> Option<Failure> {
        match ran.ended {
            Ended::Exited(0) => None,
            Ended::OutOfMemory => Some(Failure::OutOfMemory { mem_mib: self.limits.mem_mb }),
            Ended::TimedOut => Some(Failure::TimedOut { runtime_s: self.limits.runtime_sec }),
            Ended::Exited(_) | Ended::Signaled(_) => {
                // uv does not say that its outlet refused.
                Some(match (explain(&self.operator.redact(&ran.output)), &ran.complaint) {
                    (Failure::Other { tail }, Some(_)) => Failure::Network { tail },
                    (failure, _) => failure,
                })
            }
        }
    }

    /// As [`Self::explain`], of a step that talks to no index.
    pub(super) fn explain_other(&self, ran: &Ran) -> Option<Failure> {
        self.explain(ran, |output| Failure::Other { tail: failure::tail(output) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installer() -> Installer {
        let mut operator = Operator::default();
        operator.env.push(("UV_DEFAULT_INDEX".to_owned(), "https://me:hunter2@index/".to_owned()));
        let target = "/installer/ca.pem".to_owned();
        operator.binds.push(Bind { source: "/ca".into(), target, writable: false });
        Installer {
            dir: "/nowhere".into(),
            uv: None,
            python: "/usr/bin/python3".into(),
            limits: Limits::default(),
            space: Space { mib: 100, inodes: 1000 },
            build: BuildPolicy::All,
            operator,
            transfer_mib: 1,
        }
    }

    #[test]
    fn a_step_without_network_knows_nothing_of_the_operators() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::new(dir.path(), "unpack").unwrap();
        let unpacks = installer().unpack(Path::new("/w"), "six-1.whl", &room);
        assert_eq!(unpacks.argv.last().unwrap(), "/wheels/six-1.whl");
        assert!(unpacks.network == Network::None && unpacks.outlet.is_none());
        assert!(!format!("{unpacks:?}").contains("hunter2") && !format!("{unpacks:?}").contains("ca.pem"));
        let writable: Vec<_> = unpacks.binds.iter().filter(|bind| bind.writable).collect();
        assert!(writable.iter().all(|bind| bind.source == room.out), "{writable:?}");
        assert!(unpacks.env.iter().all(|(name, value)| name != "HOME" || value.starts_with(OUT)));
    }

    #[test]
    fn an_error_never_repeats_a_password_of_the_index() {
        let output = "Failed to fetch: https://me:hunter2@index/six".to_owned();
        let failed = Ran { ended: Ended::Exited(1), output, complaint: None };
        let said = installer().explain(&failed, failure::explain).unwrap().to_string();
        assert!(said.contains("index") && !said.contains("hunter2"), "{said}");
    }

    #[test]
    fn a_list_of_names_lets_these_be_built_however_they_are_written() {
        let policy = BuildPolicy::new(&Build::Only(vec!["Py_Thing".to_owned()]));
        assert!(policy.allows("py-thing") && !policy.allows("other"));
        assert!(
            !BuildPolicy::new(&Build::Never).allows("py-thing") && BuildPolicy::new(&Build::All).allows("x")
        );
    }
}
