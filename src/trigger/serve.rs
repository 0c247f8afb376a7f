//! Accepts, caps, and stops. Runs in the worker, on tokio.
//!
//! ```text
//! Serving ──stop──> Draining ──all ended, or stop_timeout──> Over
//!   accept           no accept, no keep-alive                 what is left is cut
//! ```
//!
//! Every connection is accepted: too many of those that wait for their clients close each
//! other, and whole requests that find no slot are refused ([`super::seat`]). So the
//! connections that exist are bounded, and the permits of that bound are the stop's count:
//! all of them back means that every connection has ended. The own socket has room of its
//! own, so that whoever looks after a full worker still gets in.

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

use super::budget::Budget;
use super::handler::{Desk, respond};
use super::pending::Peer;
use super::route::Door;
use super::seat::{Room, Seat};
use super::socket::{Progress, Socket};
use super::{HEAD_LIMIT_BYTES, HttpSettings, OwnSocket};
use crate::lambda::Engine;
use crate::stats::Stats;

/// Requests served on the worker's own socket at once.
const OWN_SLOTS: usize = 64;
/// Connections on the worker's own socket that wait for their clients.
const OWN_PENDING: usize = 64;
/// Connections that were told to go and have not ended yet.
const GOING: usize = 64;
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
    let (rooms, own_rooms) =
        (House::new(settings.max_connections, settings.max_pending), House::new(OWN_SLOTS, OWN_PENDING));
    let bodies = Budget::new(settings.body_budget_bytes, settings.body_limit_bytes);
    let desk = Arc::new(Desk { engine, stats, settings, bodies });

    let mut loops = JoinSet::new();
    for listener in listeners {
        loops.spawn(accept_all(listener, desk.clone(), rooms.clone(), watched.clone()));
    }
    loops.spawn(accept_all(own, desk, own_rooms.clone(), watched));

    stop.await;
    phase.send_replace(Phase::Draining);
    loops.join_all().await;
    let all_ended = || async {
        tokio::join!(rooms.all_ended(), own_rooms.all_ended());
    };
    if timeout(stop_timeout, all_ended()).await.is_err() {
        tracing::warn!(connections = rooms.open(), "connections are cut at the stop timeout");
        phase.send_replace(Phase::Over);
        let _ = timeout(CUT_TIMEOUT, all_ended()).await;
    }
}

/// The connections of one door.
#[derive(Clone)]
struct House {
    room: Arc<Room>,
    /// A permit for each connection that may exist.
    connections: Arc<Semaphore>,
    cap: u32,
}

impl House {
    fn new(slots: usize, pending: usize) -> Self {
        let cap = slots.saturating_add(pending).saturating_add(GOING).min(1 << 20);
        let connections = Arc::new(Semaphore::new(cap));
        Self { room: Room::new(slots.max(1), pending), connections, cap: cap as u32 }
    }

    /// Connections that have not ended.
    fn open(&self) -> usize {
        self.cap as usize - self.connections.available_permits()
    }

    async fn all_ended(&self) {
        // The semaphore is never closed.
        let _ = self.connections.acquire_many(self.cap).await;
    }
}

/// What connections come from.
trait Listener: Send + 'static {
    const DOOR: Door;
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

impl Listener for TcpListener {
    const DOOR: Door = Door::Tcp;
    type Stream = TcpStream;
    async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, address) = TcpListener::accept(self).await?;
        // An answer is written whole: there is nothing to wait for and join it with.
        // Where it fails, the client is gone, and the first read says so.
        let _ = stream.set_nodelay(true);
        Ok((stream, Peer::of(address)))
    }
}

impl Listener for OwnSocket {
    const DOOR: Door = Door::Own;
    type Stream = UnixStream;
    async fn accept(&self) -> io::Result<(UnixStream, Peer)> {
        Ok((UnixListener::accept(&self.listener).await?.0, Peer::OWN))
    }
}

async fn accept_all<L: Listener + Sync, E: Engine>(
    listener: L,
    desk: Arc<Desk<E>>,
    house: House,
    mut phase: watch::Receiver<Phase>,
) {
    let mut http = http1::Builder::new();
    // Without a timer hyper ignores the timeout.
    http.timer(TokioTimer::new()).header_read_timeout(desk.settings.header_timeout);
    // The first bounds a head that is not complete, and what is read at a time; the second one that came whole.
    http.max_buf_size(HEAD_LIMIT_BYTES).max_header_size(HEAD_LIMIT_BYTES);
    loop {
        let next = async {
            let permit = house.connections.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            biased;
            () = reached(&mut phase, Phase::Draining) => return,
            next = next => next,
        };
        match (permit, accepted) {
            (Ok(permit), Ok((stream, peer))) => {
                let seat = Seat::new(house.room.clone(), peer);
                let connection = drive(stream, L::DOOR, seat, http.clone(), desk.clone(), phase.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop(permit);
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
    seat: Seat,
    http: http1::Builder,
    desk: Arc<Desk<E>>,
    mut phase: watch::Receiver<Phase>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    E: Engine,
{
    let progress = Progress::new(seat);
    let socket = Socket::new(stream, desk.settings.body_timeout, progress.clone());
    let service = service_fn(|request| {
        let (desk, progress) = (desk.clone(), progress.clone());
        async move { Ok::<_, Infallible>(respond(&desk, door, request, &progress).await) }
    });
    let mut connection = pin!(http.serve_connection(TokioIo::new(socket), service));
    let mut must_go = pin!(progress.seat().must_go());
    let mut ended = None;
    tokio::select! {
        biased;
        end = connection.as_mut() => ended = Some(end),
        () = must_go.as_mut() => return,
        () = reached(&mut phase, Phase::Draining) => {
            // A head that is not complete is no request in flight.
            if progress.is_idle() {
                return;
            }
            connection.as_mut().graceful_shutdown();
        }
    }
    if ended.is_none() {
        tokio::select! {
            biased;
            end = connection.as_mut() => ended = Some(end),
            () = must_go => {}
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
