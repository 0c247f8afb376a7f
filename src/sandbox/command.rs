//! A program run once in a fresh sandbox: what an installer is.

use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hosier_zygote::birth::{Pid1, Role};
use hosier_zygote::sys::mount;
use hosier_zygote::sys::process::kill_pidfd;
use nix::libc;
use tokio::runtime::RuntimeFlavor;

use super::error::{About, During};
use super::foreign::{self, ForeignError, Tree};
use super::{
    Limits, MountPoint, Network, Order, Outlet, Output, Program, Purpose, SandboxError, Sandboxes, Started,
    open_sealed, outlet,
};

/// A host directory shown inside a sandbox.
#[derive(Debug, Clone)]
pub struct Bind {
    /// The directory (or file) on the host.
    pub source: PathBuf,
    /// Where it appears, an absolute path below `/`.
    pub target: String,
    /// Writable binds belong to the sandbox's root while it runs and are given
    /// back to the host's root, recursively, when it ended.
    pub writable: bool,
}

/// A program to run once in a fresh sandbox, as root of its user namespace.
#[derive(Debug, Clone)]
pub struct Command {
    /// The program's absolute path inside the sandbox, and its arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// What of the host is shown.
    pub binds: Vec<Bind>,
    /// `runtime_sec` bounds the run.
    pub limits: Limits,
    /// `Host` also shows the host's resolver.
    pub network: Network,
    /// The one way out of a network namespace with `lo` alone; needs network `None`. It is open while
    /// the command runs, and found by the variables of [`Outlet::env`], which replace those of `env`.
    pub outlet: Option<Arc<Outlet>>,
    /// Whose code it runs.
    pub code: Code,
}

/// The code that a [`Command`] runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// A tool of the operator's, or ours: it has the installer's filter.
    Tool,
    /// A stranger's: it has a leaf's filter.
    Foreign,
}

/// How a [`Command`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this code.
    Exited(i32),
    /// A signal ended it.
    Signaled(i32),
    /// It reached its memory limit.
    OutOfMemory,
    /// It reached `runtime_sec`.
    TimedOut,
}

/// What a [`Command`] left.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub ended: Ended,
    /// The last 64 KiB of stdout and stderr together.
    pub output: String,
}

/// The sandbox around a [`Command`] could not be made; says what failed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct RunError(#[from] Box<dyn std::error::Error + Send + Sync>);

impl RunError {
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

/// Runs commands in fresh sandboxes: the spawner, as the floors above see it.
pub trait Runner: Send + Sync + 'static {
    /// Runs `command` to its end. When this returns, or is dropped, no process
    /// of it is left and its writable binds are the host's again.
    fn run(&self, command: Command) -> impl Future<Output = Result<Outcome, RunError>> + Send;
}

impl Runner for Sandboxes {
    async fn run(&self, command: Command) -> Result<Outcome, RunError> {
        self.run_command(&command).await.map_err(RunError::new)
    }
}

/// The end of a program's output that is kept, in bytes.
const OUTPUT_KEPT: usize = 64 * 1024;

impl Sandboxes {
    /// Runs a program to its end. Dropping the future kills it.
    ///
    /// # Errors
    /// It could not be started. How it ended is no error.
    pub async fn run_command(&self, command: &Command) -> Result<Outcome, SandboxError> {
        let points: Vec<_> = command
            .binds
            .iter()
            .map(|bind| MountPoint { path: bind.target.clone(), is_file: bind.source.is_file() })
            .collect();
        let cell = self.cell(Order {
            purpose: Purpose::Command,
            namespace: None,
            network: command.network,
            limits: &command.limits,
            permit: None,
            writable: Some(&points),
            net: None,
        });
        let mut cell = cell.await?;
        let mut env = command.env.clone();
        if command.network == Network::None {
            // Also where the operator took this wall down: a build would be in the host's network, and
            // an outlet's port the host's.
            cell.walls.namespaces |= libc::CLONE_NEWNET;
            cell.walls.loopback = true;
        }
        if command.outlet.is_some() {
            if command.network != Network::None {
                let wrong = "an outlet is for a command with network \"none\"";
                return Err(SandboxError::Unsupported(wrong.to_owned()));
            }
            cell.outlet = Some(outlet::PORT);
            env.retain(|(name, _)| !Outlet::replaces(name));
            env.extend(Outlet::env());
        }
        let mut lent = lend(&command.binds, cell.root_id())?;
        for bind in &command.binds {
            let tree = if bind.writable { open_writable(&bind.source)? } else { open_sealed(&bind.source)? };
            cell.mount(bind.target.trim_start_matches('/'), tree);
        }
        let mut confinement = self.confinement(&cell, Purpose::Command);
        if command.code == Code::Foreign {
            confinement.filter = self.filter(self.filters.leaf.as_bytes());
        }
        let role = Role::Confined(confinement);
        let program = Program { pid1: Pid1::Stub, role, argv: command.argv.clone(), env: &env };
        let started = self.spawn(cell, program, None).await?;
        lent.to = Some(started.sandbox.pidfd());
        let _serving = match &command.outlet {
            Some(outlet) => Some(outlet.serve(&started.channel).await?),
            None => None,
        };
        let bound = Duration::from_secs(command.limits.runtime_sec.into());
        Ok(watch(started, bound).await)
    }
}

async fn watch(started: Started, bound: Duration) -> Outcome {
    let Started { sandbox, output, ended, .. } = started;
    let reader = tokio::spawn(tail(output));
    let status = match ended {
        Some(ended) => tokio::time::timeout(bound, ended).await,
        None => Ok(Ok(0)),
    };
    let out_of_memory = sandbox.oom_kills() > 0;
    // Ends what it left running, and then the reader.
    drop(sandbox);
    let ended = match status {
        Err(_) => Ended::TimedOut,
        Ok(Ok(0)) => Ended::Exited(0),
        Ok(_) if out_of_memory => Ended::OutOfMemory,
        Ok(Ok(status)) if libc::WIFEXITED(status) => match libc::WEXITSTATUS(status) {
            // The stub's word for a signal, as a shell's.
            code @ 129..=192 => Ended::Signaled(code - 128),
            code => Ended::Exited(code),
        },
        Ok(Ok(status)) => Ended::Signaled(libc::WTERMSIG(status)),
        Ok(Err(_)) => Ended::Signaled(libc::SIGKILL),
    };
    let output = reader.await.unwrap_or_default();
    Outcome { ended, output: String::from_utf8_lossy(&output).into_owned() }
}

/// Keeps the last bytes.
async fn tail(output: Output) -> Vec<u8> {
    let mut kept = Vec::new();
    output
        .read_all(|bytes| {
            kept.extend_from_slice(bytes);
            let excess = kept.len().saturating_sub(OUTPUT_KEPT);
            kept.drain(..excess);
        })
        .await;
    kept
}

/// Writable directories belong to the sandbox until this is dropped, which
/// waits until nobody is left there who could write.
struct Lent {
    /// Opened before anything foreign ran in them: no name means another one later.
    trees: Vec<Tree>,
    to: Option<Arc<OwnedFd>>,
}

fn lend(binds: &[Bind], owner: u32) -> Result<Lent, SandboxError> {
    let mut lent = Lent { trees: Vec::new(), to: None };
    for bind in binds.iter().filter(|bind| bind.writable) {
        let tree = Tree::open(&bind.source).map_err(ForeignError::into_io).about(&bind.source)?;
        lent.trees.push(tree);
        let given = lent.trees.last().map_or(Ok(()), |tree| give(tree, owner));
        given.map_err(ForeignError::into_io).about(&bind.source)?;
    }
    Ok(lent)
}

impl Drop for Lent {
    fn drop(&mut self) {
        let (trees, to) = (std::mem::take(&mut self.trees), self.to.take());
        let take_back = move || {
            if let Some(process) = &to {
                let _ = kill_pidfd(process.as_fd());
                if !super::pidfd::gone(process, super::life::GONE_MS) {
                    tracing::warn!("a command's sandbox could not be killed; its files stay its own");
                    return;
                }
            }
            for tree in &trees {
                if let Err(error) = give(tree, 0) {
                    tracing::warn!(path = %tree.path().display(), %error, "a directory could not be taken back");
                }
            }
        };
        // A tree of files takes its time; whoever uses them next must find them given back.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::MultiThread => {
                tokio::task::block_in_place(take_back);
            }
            _ => take_back(),
        }
    }
}

/// Largest tree whose owner is changed. What is larger stays the sandbox's: the walks of
/// those who use it have narrower bounds, so that they refuse it.
const GIVEN: foreign::Bounds = foreign::Bounds { entries: 1_000_000, bytes: u64::MAX, depth: usize::MAX };

fn give(tree: &Tree, owner: u32) -> Result<(), ForeignError> {
    tree.give(owner, GIVEN).map(drop)
}

fn open_writable(source: &Path) -> Result<OwnedFd, SandboxError> {
    let tree = super::base::clone(source)?;
    let safe = mount::Attr::NOSUID | mount::Attr::NODEV;
    mount::set_attr(tree.as_fd(), safe, true, None).during("a writable mount")?;
    Ok(tree)
}
