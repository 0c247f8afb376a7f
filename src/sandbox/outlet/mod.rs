//! The one way out of a command's network namespace: a small proxy of the worker, for HTTP.
//!
//! ```text
//! command in a sandbox: `lo` alone               worker
//!   HTTPS_PROXY=http://127.0.0.1:3128 ──▶ accept ─▶ serve    CONNECT host:port, GET http://host/…
//!          (a socket of its own namespace,            │ policy   which host and port
//!           made before the command runs, and        dial       look up, check each address,
//!           handed to the worker)                      │        connect to the address that was checked
//!                                                      ▼
//!                                          the host, or the operator's own proxy
//! ```
//!
//! The worker never dials into a sandbox and the sandbox sees no other socket, abstract ones of the host
//! included: those belong to a network namespace. All bounds are per command but the one on look-ups.

mod address;
mod dial;
mod metered;
mod policy;
mod proxies;
mod serve;
mod socks;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

pub use policy::{NoPlace, Place, Policy, Refusal};
pub use proxies::{BadProxy, Proxies, Proxy};

use super::error::About;
use super::{Channel, SandboxError};

/// Port of 127.0.0.1 in the sandbox on which the outlet listens.
pub const PORT: u16 = 3128;

/// Longest wait for the listening socket of a process that was born.
const HAND_OVER: Duration = Duration::from_secs(5);
/// Refusals and failures that are kept to be told, of each.
const TOLD: usize = 8;

/// One command's way out, and what went wrong on it. A [`super::Command`] takes it as
/// [`super::Command::outlet`], with network `None`; when the command has ended it can be asked
/// what was refused.
///
/// Several commands may share one, one after another or at a time: they share its bound on bytes.
#[derive(Debug)]
pub struct Outlet {
    policy: Arc<Policy>,
    /// Bytes that may be moved, both ways together.
    limit: u64,
    moved: AtomicU64,
    /// Places of its own among the worker's look-ups.
    looking_up: Arc<Semaphore>,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    refusals: Vec<Refusal>,
    failures: Vec<String>,
}

/// An outlet at work. It ends, and all its connections with it, when this is dropped.
#[derive(Debug)]
pub(super) struct Serving {
    #[expect(dead_code, reason = "aborts its task when it is dropped")]
    task: JoinSet<()>,
}

impl Outlet {
    /// Makes a way out by `policy`, over which at most `limit_mib` MiB are moved.
    pub fn new(policy: Arc<Policy>, limit_mib: u64) -> Arc<Self> {
        let limit = limit_mib.saturating_mul(1 << 20);
        let looking_up = Arc::new(Semaphore::new(dial::LOOK_UPS_EACH));
        Arc::new(Self { policy, limit, moved: AtomicU64::new(0), looking_up, told: Mutex::default() })
    }

    /// The variables by which programs in the sandbox find the outlet, in both cases of letters.
    pub fn env() -> impl Iterator<Item = (String, String)> {
        let names = ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"];
        names.into_iter().map(|name| (name.to_owned(), format!("http://127.0.0.1:{PORT}")))
    }

    /// Whether a variable would lead a program past the outlet.
    pub(super) fn replaces(name: &str) -> bool {
        ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"]
            .iter()
            .any(|own| name.eq_ignore_ascii_case(own))
    }

    /// Places that were asked for and refused, first come first, each once; the first few.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.told().refusals.clone()
    }

    /// Places that could not be reached, as sentences, first come first, each once; the first few.
    pub fn failures(&self) -> Vec<String> {
        self.told().failures.clone()
    }

    /// Refusals and then failures as one text, for an error about the command; `None` if all went well.
    pub fn complaint(&self) -> Option<String> {
        let told = self.told();
        let refusals = told.refusals.iter().map(Refusal::to_string);
        let sentences: Vec<_> = refusals.chain(told.failures.iter().cloned()).collect();
        if sentences.is_empty() { None } else { Some(sentences.join("\n")) }
    }

    /// Number of bytes that were moved so far, both ways together.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Takes the listening socket that a process sent before anything foreign ran in it, and serves it.
    ///
    /// # Errors
    /// Returns [`SandboxError::TimedOut`] if nothing came, [`SandboxError::Protocol`] if something else did.
    pub(super) async fn serve(self: &Arc<Self>, channel: &Channel) -> Result<Serving, SandboxError> {
        let mut byte = [0; 1];
        let received = tokio::time::timeout(HAND_OVER, channel.receive(&mut byte)).await;
        let received = received.map_err(|_| SandboxError::TimedOut(HAND_OVER.as_secs()))?;
        let mut fds = received.about("a sandbox's socket")?.fds;
        let listener = fds
            .pop()
            .filter(|fd| fds.is_empty() && getsockopt(&fd.as_fd(), sockopt::AcceptConn).unwrap_or(false));
        let listener = listener.ok_or(SandboxError::Protocol("no listening socket for its outlet"))?;
        let listener = std::net::TcpListener::from(listener);
        listener.set_nonblocking(true).about("an outlet's socket")?;
        let listener = TcpListener::from_std(listener).about("an outlet's socket")?;
        let mut task = JoinSet::new();
        task.spawn(serve::accept(listener, Arc::clone(self)));
        Ok(Serving { task })
    }

    /// Keeps a refusal.
    fn refused(&self, refusal: &Refusal) {
        let refusals = &mut self.told().refusals;
        if refusals.len() < TOLD && !refusals.contains(refusal) {
            tracing::info!(%refusal, "an outlet refused");
            refusals.push(refusal.clone());
        }
    }

    /// Keeps a failure.
    fn failed(&self, failure: &str) {
        let failures = &mut self.told().failures;
        if failures.len() < TOLD && !failures.iter().any(|known| known == failure) {
            failures.push(failure.to_owned());
        }
    }

    /// Notes that bytes are moved; false when they are more than may be.
    fn spend(&self, bytes: u64) -> bool {
        let moved = self.moved.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        moved <= self.limit || {
            self.refused(&self.spent());
            false
        }
    }

    fn is_spent(&self) -> bool {
        self.moved() > self.limit
    }

    fn spent(&self) -> Refusal {
        Refusal::Spent(self.limit >> 20)
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
