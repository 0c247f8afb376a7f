//! Accepts, caps, and stops. Runs in the worker, on tokio.
//!
//! ```text
//! Serving ──stop──> Draining ──all ended, or stop_timeout──> Over
//!   accept           no accept, no keep-alive                 what is left is cut
//! ```
//!
//! A connection takes a slot *before* it is accepted and gives it back by
//! ending: at the cap, clients wait in the kernel's queue rather than be refused
//! (their connect succeeds, their answer takes longer), and all slots back means
//! that every connection has ended. The own socket has slots of its own, so that
//! whoever looks after a full worker still gets in.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::handler::{Desk, respond};
use super::route::Door;
use super::socket::{Progress, Socket};
use super::{HttpSettings, OwnSocket};
use crate::lambda::Engine;
use crate::stats::Stats;

/// Connections on the worker's own socket at once.
const OWN_CONNECTIONS: u32 = 16;
/// How long to wait when the kernel refuses to accept (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long the last connections may take to notice that they are cut.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// How far a stop has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    Draining,
    Over,
}

/// Serves until `stop` ends, then lets requests in flight end, and returns.
///
/// Dropping it does not stop what it started: let `stop` end, and await it.
pub async fn serve<E: Engine>(
    listeners: Vec<TcpListener>,
    own: OwnSocket,
    engine: Arc<E>,
    stats: Arc<Stats>,
    settings: HttpSettings,
    stop: impl Future<Output = ()>,
) {
    let (phase, watched) = watch::channel(Phase::Serving);
    let stop_timeout = settings.stop_timeout;
    let cap = u32::try_from(settings.max_connections).unwrap_or(u32::MAX).clamp(1, 1 << 20);
    let (slots, own_slots) =
        (Arc::new(Semaphore::new(cap as usize)), Arc::new(Semaphore::new(OWN_CONNECTIONS as usize)));
    let desk = Arc::new(Desk { engine, stats, settings });

    let mut loops = JoinSet::new();
    for listener in listeners {
        loops.spawn(accept_all(listener, desk.clone(), slots.clone(), watched.clone()));
    }
    loops.spawn(accept_all(own, desk, own_slots.clone(), watched));

    stop.await;
    phase.send_replace(Phase::Draining);
    loops.join_all().await;
    let all_ended = || async {
        // Neither semaphore is ever closed.
        let _ = tokio::join!(slots.acquire_many(cap), own_slots.acquire_many(OWN_CONNECTIONS));
    };
    if timeout(stop_timeout, all_ended()).await.is_err() {
        let left = cap as usize - slots.available_permits();
        tracing::warn!(connections = left, "connections are cut at the stop timeout");
        phase.send_replace(Phase::Over);
        let _ = timeout(CUT_TIMEOUT, all_ended()).await;
    }
}

/// What connections come from.
trait Listener: Send + 'static {
    const DOOR: Door;
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    const DOOR: Door = Door::Tcp;
    type Stream = TcpStream;
    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = TcpListener::accept(self).await?;
        // An answer is written whole: there is nothing to wait for and join it with.
        // Where it fails, the client is gone, and the first read says so.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

impl Listener for OwnSocket {
    const DOOR: Door = Door::Own;
    type Stream = UnixStream;
    async fn accept(&self) -> io::Result<UnixStream> {
        Ok(UnixListener::accept(&self.listener).await?.0)
    }
}

async fn accept_all<L: Listener + Sync, E: Engine>(
    listener: L,
    desk: Arc<Desk<E>>,
    slots: Arc<Semaphore>,
    mut phase: watch::Receiver<Phase>,
) {
    let mut http = http1::Builder::new();
    // Without a timer hyper ignores the timeout.
    http.timer(TokioTimer::new()).header_read_timeout(desk.settings.header_timeout);
    loop {
        let next = async {
            let slot = slots.clone().acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            biased;
            () = reached(&mut phase, Phase::Draining) => return,
            next = next => next,
        };
        match (slot, accepted) {
            (Ok(slot), Ok(stream)) => {
                let connection = drive(stream, L::DOOR, http.clone(), desk.clone(), phase.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            (Err(_), _) => return,
            (_, Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            (_, Err(error)) => {
                tracing::warn!(%error, "accept failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection, from its first request to its end.
async fn drive<S, E>(
    stream: S,
    door: Door,
    http: http1::Builder,
    desk: Arc<Desk<E>>,
    mut phase: watch::Receiver<Phase>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    E: Engine,
{
    let progress = Progress::default();
    let socket = Socket::new(stream, desk.settings.body_timeout, progress.clone());
    let service = service_fn(|request| {
        let (desk, progress) = (desk.clone(), progress.clone());
        async move { Ok::<_, Infallible>(respond(&desk, door, request, &progress).await) }
    });
    let mut connection = pin!(http.serve_connection(TokioIo::new(socket), service));
    let mut ended = None;
    tokio::select! {
        biased;
        end = connection.as_mut() => ended = Some(end),
        () = reached(&mut phase, Phase::Draining) => connection.as_mut().graceful_shutdown(),
    }
    if ended.is_none() {
        tokio::select! {
            biased;
            end = connection.as_mut() => ended = Some(end),
            () = reached(&mut phase, Phase::Over) => {}
        }
    }
    if let Some(Err(error)) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// Waits for a phase; one whose sender is gone is over.
async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    let _ = phase.wait_for(|now| *now >= wanted).await;
}
