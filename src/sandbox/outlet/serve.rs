//! The proxy's face to the sandbox: accepts, reads requests, moves bytes. Runs in the worker.
//!
//! ```text
//! CONNECT host:port          ─▶ 200, then bytes both ways
//! GET http://host:port/path  ─▶ the same request to host:port, its answer back
//! anything else              ─▶ 400; refused: 403 and why; not reached: 502
//! ```

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{
    CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHORIZATION,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Outlet;
use super::dial::{NoWay, Way, dial};
use super::policy::Place;

/// Connections of one command at a time; more wait to be accepted.
const CONNECTIONS: usize = 32;
/// Bytes of a request's or an answer's head, at most. Hyper takes no less than 8 KiB.
pub(super) const HEAD: usize = 64 * 1024;
/// Longest time for a request's head, and between two requests of one connection.
const HEAD_TIME: Duration = Duration::from_secs(60);
/// Longest wait for an answer's head.
const ANSWER_TIME: Duration = Duration::from_secs(300);
/// Pause after a connection could not be accepted (no descriptors, no memory).
const PAUSE: Duration = Duration::from_millis(100);

/// Headers that are about one connection and not about the message (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
];

type Answer = Response<BoxBody<Bytes, hyper::Error>>;
/// Two ends to copy between once `CONNECT` was answered.
type Tunnel = Mutex<Option<(hyper::upgrade::OnUpgrade, Way)>>;

/// Serves connections for ever. Whoever drops this ends them all.
pub(super) async fn accept(listener: TcpListener, outlet: Arc<Outlet>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let outlet = Arc::clone(&outlet);
                connections.spawn(async move {
                    serve(stream, &outlet).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection to an outlet could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Serves one connection to its end. What goes wrong on it is the client's to notice.
async fn serve(stream: TcpStream, outlet: &Arc<Outlet>) {
    let tunnel = Tunnel::default();
    let service = service_fn(|request| async { Ok::<_, Infallible>(answer(request, outlet, &tunnel).await) });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    let tunnel = tunnel.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let (Ok(()), Some((client, way))) = (served, tunnel)
        && let Ok(client) = client.await
    {
        let mut client = TokioIo::new(client);
        let _ = match way {
            Way::Straight(mut outside) => copy_bidirectional(&mut client, &mut outside).await,
            Way::Tunnel(outside) => copy_bidirectional(&mut client, &mut TokioIo::new(outside)).await,
            Way::Proxy(..) => return,
        };
    }
}

async fn answer(request: Request<Incoming>, outlet: &Arc<Outlet>, tunnel: &Tunnel) -> Answer {
    if outlet.is_spent() {
        return text(StatusCode::FORBIDDEN, outlet.spent().to_string());
    }
    let connect = request.method() == Method::CONNECT;
    let place = match asked_for(request.uri(), connect) {
        Ok(place) => place,
        Err(wrong) => return text(StatusCode::BAD_REQUEST, wrong.to_owned()),
    };
    let answered = match dial(outlet, &place, connect).await {
        Ok(way) if connect => {
            let client = hyper::upgrade::on(request);
            *tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some((client, way));
            return text(StatusCode::OK, String::new());
        }
        Ok(way) => forward(request, &place, way).await.map_err(|reason| NoWay::Failed { place, reason }),
        Err(no_way) => Err(no_way),
    };
    match answered {
        Ok(answer) => answer,
        Err(NoWay::Refused(refusal)) => {
            outlet.refused(&refusal);
            text(StatusCode::FORBIDDEN, refusal.to_string())
        }
        Err(failed) => {
            outlet.failed(&failed.to_string());
            text(StatusCode::BAD_GATEWAY, failed.to_string())
        }
    }
}

/// The place that a request is for.
fn asked_for(uri: &Uri, connect: bool) -> Result<Place, &'static str> {
    let authority = uri.authority().ok_or("this is a proxy: ask for a whole URL, http://HOST/PATH")?.as_str();
    let default_port = match uri.scheme_str() {
        None if connect && uri.port().is_some() => 0,
        None => return Err("CONNECT needs a host and a port"),
        Some("http") => 80,
        Some(_) => return Err("only http is forwarded; use CONNECT for https"),
    };
    Place::of_authority(authority, default_port).map_err(|_| "the host or the port is not valid")
}

/// Sends a plain request on and brings its answer back.
async fn forward(mut request: Request<Incoming>, place: &Place, way: Way) -> Result<Answer, String> {
    end_to_end(request.headers_mut());
    let (stream, is_proxy) = match way {
        Way::Straight(stream) => (stream, false),
        Way::Proxy(stream, login) => {
            if let Some(login) = login {
                let login = HeaderValue::from_str(&login).map_err(|error| error.to_string())?;
                request.headers_mut().insert(PROXY_AUTHORIZATION, login);
            }
            (stream, true)
        }
        Way::Tunnel(_) => return Err("a tunnel is not for plain requests".to_owned()),
    };
    // The place that was checked, and not another reading of what the client wrote.
    let authority = place.to_string();
    let host = authority.strip_suffix(":80").unwrap_or(&authority);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let uri = if is_proxy { format!("http://{host}{path}") } else { path.to_owned() };
    let host = HeaderValue::from_str(host).map_err(|error| error.to_string())?;
    *request.uri_mut() = uri.parse().map_err(|error: hyper::http::uri::InvalidUri| error.to_string())?;
    request.headers_mut().insert(HOST, host);
    let shake = hyper::client::conn::http1::Builder::new().max_buf_size(HEAD).handshake(TokioIo::new(stream));
    let (mut sender, connection) = shake.await.map_err(|error| error.to_string())?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        let _ = connection.await;
    });
    let answer = timeout(ANSWER_TIME, sender.send_request(request)).await;
    let answer = answer.map_err(|_| "it did not answer in time".to_owned())?;
    let (mut head, body) = answer.map_err(|error| error.to_string())?.into_parts();
    end_to_end(&mut head.headers);
    Ok(Response::from_parts(head, Driven { body, _driver: driver }.boxed()))
}

/// Takes off what is about one connection only.
fn end_to_end(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

fn text(status: StatusCode, text: String) -> Answer {
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    if status != StatusCode::OK {
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    }
    answer
}

/// An answer's body, and the task that reads it from the outside; they end together.
struct Driven {
    body: Incoming,
    _driver: JoinSet<()>,
}

impl Body for Driven {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
