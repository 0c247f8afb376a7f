//! From a place to a connection: look up, check, connect to what was checked. Runs in the worker.
//!
//! ```text
//! place ─▶ standing ─▶ the operator's proxy is for it? ─ yes ─▶ connect to that proxy; `CONNECT` or SOCKS through it
//!                          │ no
//!                      look up once ─▶ each address: kind, may_connect ─▶ connect to the first that answers
//! ```
//!
//! A proxy of the operator's looks names up by itself, so where it leads is its own rule. A stranger's place is
//! looked up here too, and refused if this machine knows the name for an address that would be refused.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::PROXY_AUTHORIZATION;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Outlet;
use super::address::{self, Kind};
use super::metered::Metered;
use super::policy::{Place, Refusal, Standing};
use super::proxies::ProxyKind;
use super::serve::HEAD;
use super::socks;

/// Longest wait for a name to be looked up.
const LOOK_UP: Duration = Duration::from_secs(10);
/// Longest wait for a look-up that only forbids, on the way to the operator's proxy.
const LOOK_UP_BESIDE: Duration = Duration::from_secs(2);
/// Look-ups of the whole worker at a time. Each holds a thread, for as long as the resolver likes.
const LOOK_UPS: usize = 32;
/// Look-ups of one command at a time: names that are slow take nothing from another command.
pub(super) const LOOK_UPS_EACH: usize = 4;
/// Longest wait for one address to answer.
const CONNECT: Duration = Duration::from_secs(10);
/// Addresses of one name that are tried, at most.
const ADDRESSES: usize = 4;
/// Longest wait for the operator's proxy to connect.
const PROXY_ANSWER: Duration = Duration::from_secs(30);

static LOOKING_UP: Semaphore = Semaphore::const_new(LOOK_UPS);

/// A way to a place.
pub(super) enum Way {
    /// A connection to the place itself.
    Straight(Metered),
    /// A tunnel to it through the operator's proxy.
    Tunnel(Upgraded),
    /// A connection to the operator's HTTP proxy, which takes plain requests for it, and its login.
    Proxy(Metered, Option<String>),
}

/// Reason that there is no way to a place.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoWay {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{place} was not reached: {reason}")]
    Failed { place: Place, reason: String },
}

/// Finds a way to `place`, for a tunnel (`connect`) or for plain HTTP.
pub(super) async fn dial(outlet: &Arc<Outlet>, place: &Place, connect: bool) -> Result<Way, NoWay> {
    let standing = outlet.policy.standing(place)?;
    let failed = |reason: String| NoWay::Failed { place: place.clone(), reason };
    let Some(proxy) = outlet.policy.proxies.of(place, connect) else {
        let addresses = look_up(outlet, place, LOOK_UP).await.map_err(|error| failed(reason(&error)))?;
        let allowed = allowed(outlet, place, standing, &addresses)?;
        let stream = first(&allowed).await.map_err(|error| failed(reason(&error)))?;
        return Ok(Way::Straight(Metered::new(stream, Arc::clone(outlet))));
    };
    let told = match &proxy.kind {
        ProxyKind::Socks { looks_up: false, .. } => {
            let addresses = look_up(outlet, place, LOOK_UP).await.map_err(|error| failed(reason(&error)))?;
            allowed(outlet, place, standing, &addresses)?.first().map(|address| address.ip().to_string())
        }
        _ if standing == Standing::Stranger => {
            if let Ok(addresses) = look_up(outlet, place, LOOK_UP_BESIDE).await {
                allowed(outlet, place, standing, &addresses)?;
            }
            None
        }
        _ => None,
    };
    let failed = |reason: String| failed(format!("the operator's proxy {}: {reason}", proxy.place));
    let addresses = look_up(outlet, &proxy.place, LOOK_UP).await.map_err(|error| failed(reason(&error)))?;
    let stream = first(&addresses).await.map_err(|error| failed(reason(&error)))?;
    let stream = Metered::new(stream, Arc::clone(outlet));
    let host = told.as_deref().unwrap_or(&place.host);
    let through = timeout(PROXY_ANSWER, through(stream, place, host, &proxy.kind, connect)).await;
    through.unwrap_or_else(|_| Err("it did not answer in time".to_owned())).map_err(failed)
}

/// Goes on from a connection to the operator's proxy, which is told `host` for `place`.
async fn through(
    mut stream: Metered,
    place: &Place,
    host: &str,
    kind: &ProxyKind,
    connect: bool,
) -> Result<Way, String> {
    match kind {
        ProxyKind::Socks { login, .. } => {
            let connected = socks::connect(&mut stream, login.as_ref(), host, place.port).await;
            connected.map(|()| Way::Straight(stream)).map_err(|error| reason(&error))
        }
        ProxyKind::Http(login) if connect => tunnel(stream, place, login.as_deref()).await.map(Way::Tunnel),
        ProxyKind::Http(login) => Ok(Way::Proxy(stream, login.clone())),
    }
}

/// Those of `addresses` that `place` may be reached at; the first refusal, if there are none.
fn allowed(
    outlet: &Outlet,
    place: &Place,
    standing: Standing,
    addresses: &[SocketAddr],
) -> Result<Vec<SocketAddr>, NoWay> {
    let own = address::of_this_machine().map_err(|error| NoWay::Failed {
        place: place.clone(),
        reason: format!("the addresses of this machine cannot be read: {error}"),
    })?;
    let check = |ip: IpAddr, kind: Kind| outlet.policy.may_connect(place, standing, ip, kind);
    let mut refusal = None;
    let mut allowed = Vec::new();
    for address in addresses {
        let kind = match address::kind(address.ip(), &own) {
            Kind::Public | Kind::Private if address::leads_here(*address) => Kind::ThisMachine,
            kind => kind,
        };
        match check(address.ip(), kind) {
            Ok(()) => allowed.push(*address),
            Err(refused) => refusal = refusal.or(Some(refused)),
        }
    }
    match refusal {
        Some(refusal) if allowed.is_empty() => Err(refusal.into()),
        _ => Ok(allowed),
    }
}

/// Looks a place up. The thread that does cannot be interrupted, so it keeps its places among
/// [`LOOK_UPS`] and [`LOOK_UPS_EACH`] until it is done, whether or not somebody still waits.
async fn look_up(outlet: &Outlet, place: &Place, bound: Duration) -> io::Result<Vec<SocketAddr>> {
    if let Some(address) = place.address() {
        return Ok(vec![SocketAddr::new(address, place.port)]);
    }
    let late = || io::Error::new(io::ErrorKind::TimedOut, "its name was not looked up in time");
    let (host, port) = (place.host.clone(), place.port);
    let looking = async {
        let own = Arc::clone(&outlet.looking_up).acquire_owned().await.map_err(io::Error::other)?;
        let permits = (LOOKING_UP.acquire().await.map_err(io::Error::other)?, own);
        let found = tokio::task::spawn_blocking(move || {
            let _permits = permits;
            (host.as_str(), port).to_socket_addrs().map(|found| found.take(ADDRESSES).collect())
        });
        found.await.map_err(io::Error::other)?
    };
    let found: Vec<_> = timeout(bound, looking).await.map_err(|_| late())??;
    if found.is_empty() { Err(io::Error::other("its name has no address")) } else { Ok(found) }
}

/// Connects to the first address that answers.
async fn first(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut failed = io::Error::other("its name has no address");
    for address in addresses {
        match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => failed = error,
            Err(_) => failed = io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time"),
        }
    }
    Err(failed)
}

/// Asks the operator's proxy for a tunnel.
async fn tunnel(stream: Metered, place: &Place, login: Option<&str>) -> Result<Upgraded, String> {
    let shake = hyper::client::conn::http1::Builder::new().max_buf_size(HEAD).handshake(TokioIo::new(stream));
    let (mut sender, connection) = shake.await.map_err(|error| error.to_string())?;
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(connection.with_upgrades());
    let authority = place.to_string();
    let mut request = Request::builder().method(Method::CONNECT).uri(&authority).header("host", &authority);
    if let Some(login) = login {
        request = request.header(PROXY_AUTHORIZATION, login);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    if !response.status().is_success() {
        return Err(format!("it answered {} to CONNECT", response.status()));
    }
    // The driver's work is done when it has handed the connection over.
    let upgraded = hyper::upgrade::on(response).await.map_err(|error| error.to_string())?;
    drop(driver);
    Ok(upgraded)
}

/// An error without the operating system's number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}
