//! One request, from its head to its answer.
//!
//! ```text
//! head ──route, access──> body (bounded) ──> engine ──> answer
//!    └─────── refusal ───────┴─────────────────┴──> status
//! ```
//!
//! Nothing is spawned: the future lives in its connection's task and is dropped
//! with it. A panic in it is caught, answered with 500, and ends nothing else.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::Value;
use tokio::time::timeout;

use super::HttpSettings;
use super::access::is_public;
use super::answer;
use super::body::{Bounds, Upload};
use super::budget::Budget;
use super::route::{Door, Route, route};
use super::socket::Progress;
use super::status::Refusal;
use crate::lambda::{Engine, FunctionName, Invocation, InvokeError};
use crate::stats::Stats;

/// What every request is answered with.
pub(super) struct Desk<E> {
    pub(super) engine: Arc<E>,
    pub(super) stats: Arc<Stats>,
    pub(super) settings: HttpSettings,
    pub(super) bodies: Budget,
}

impl<E> Desk<E> {
    fn bounds(&self) -> Bounds<'_> {
        let HttpSettings { body_limit_bytes, body_timeout, .. } = self.settings;
        Bounds { limit_bytes: body_limit_bytes, limit: body_timeout, budget: &self.bodies }
    }
}

type Reply = Result<Response<Full<Bytes>>, Refusal>;

/// Answers one request, whatever happens.
pub(super) async fn respond<E: Engine>(
    desk: &Desk<E>,
    door: Door,
    request: Request<Incoming>,
    progress: &Progress,
) -> Response<Full<Bytes>> {
    let (head, incoming) = request.into_parts();
    let mut upload = Upload::new(incoming);
    progress.call_begins();
    let reply = caught(reply(desk, door, &head, &mut upload, progress)).await;
    let mut response = reply.unwrap_or_else(Refusal::into_response);
    if upload.is_left_unread() {
        progress.body_is_left();
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    progress.call_ends();
    response
}

async fn reply<E: Engine>(
    desk: &Desk<E>,
    door: Door,
    head: &Parts,
    upload: &mut Upload,
    progress: &Progress,
) -> Reply {
    let engine = &desk.engine;
    let path = head.uri.path();
    let routed = route(door, &head.method, path);
    let is_nothing = matches!(routed, Err(Refusal::UnknownPath { .. }));
    if door == Door::Tcp && !is_public(path) && !is_nothing {
        desk.settings.access.check(head.uri.authority(), &head.headers)?;
    }
    match routed? {
        Route::Run { name, rest } => {
            let began = Instant::now();
            let reply = run(desk, head, name, rest, upload, progress).await;
            desk.stats.record("web-request", began.elapsed());
            reply
        }
        Route::Status => Ok(text(StatusCode::OK, "ready\n".into())),
        Route::Pid => Ok(text(StatusCode::OK, format!("{}\n", std::process::id()))),
        Route::Debug => {
            progress.takes_slot()?;
            Ok(text(StatusCode::OK, engine.debug().await))
        }
        Route::Stats => {
            let mut stats = engine.stats();
            stats.append(&mut desk.stats.snapshot());
            Ok(json(&Value::Object(stats)))
        }
        Route::Store(name) => {
            let archive = upload.read(desk.bounds()).await?;
            progress.takes_slot()?;
            engine.store(&name, archive).await?;
            Ok(text(StatusCode::CREATED, format!("stored {name}\n")))
        }
        Route::Remove(name) => {
            progress.takes_slot()?;
            match engine.remove(&name).await? {
                true => Ok(text(StatusCode::OK, format!("removed {name}\n"))),
                false => Err(unknown(&name)),
            }
        }
        Route::List => {
            progress.takes_slot()?;
            Ok(json(&engine.list().await?.into()))
        }
        Route::Config(name) => {
            progress.takes_slot()?;
            let config = engine.config(&name).await?.ok_or_else(|| unknown(&name))?;
            Ok(json(&config))
        }
    }
}

async fn run<E: Engine>(
    desk: &Desk<E>,
    head: &Parts,
    function: FunctionName,
    rest: &str,
    upload: &mut Upload,
    progress: &Progress,
) -> Reply {
    let total_timeout = desk.settings.total_timeout;
    let call = async {
        let body = upload.read(desk.bounds()).await?;
        progress.takes_slot()?;
        let invocation = Invocation {
            function: function.clone(),
            method: head.method.as_str().to_owned(),
            path: rest.to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            headers: answer::request_headers(&head.headers, body.len()),
            body,
        };
        let answer = desk.engine.invoke(invocation).await?;
        answer::into_response(answer, &function, head.method == Method::HEAD)
    };
    match total_timeout {
        None => call.await,
        Some(limit) => timeout(limit, call).await.unwrap_or(Err(Refusal::TookTooLong { timeout: limit })),
    }
}

/// Turns a panic of `future` into a refusal. The future is not polled again after
/// one, and what it shared is the engine's, which must bear a dropped call anyway.
async fn caught(future: impl Future<Output = Reply>) -> Reply {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        polled.unwrap_or(Poll::Ready(Err(Refusal::Panicked)))
    })
    .await
}

fn unknown(name: &FunctionName) -> Refusal {
    InvokeError::UnknownFunction(name.to_string()).into()
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", body)
}

fn json(value: &Value) -> Response<Full<Bytes>> {
    typed(StatusCode::OK, "application/json", format!("{value}\n"))
}

fn typed(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
