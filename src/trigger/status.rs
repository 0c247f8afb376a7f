//! The one place that maps what went wrong to an HTTP status.
//!
//! ```text
//! caller     400 401 403 404 405 408 413      capacity   429 503, with Retry-After
//! function   500 502 504                      worker     500
//! ```
//!
//! The body is `{"error": "...", "reason": "<kind>"}`; a method that a function's
//! triggers do not allow is OpenLambda's text instead.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};

use crate::lambda::{BadName, Blame, InvokeError, RegistryFault};

/// How long a caller should wait before it tries a full worker again.
const RETRY_AFTER_S: u32 = 1;

/// Why a request gets no answer of a function's own.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Invoke(#[from] InvokeError),
    #[error(transparent)]
    Registry(#[from] RegistryFault),
    #[error(transparent)]
    BadName(#[from] BadName),
    #[error("nothing is at {path:?}; functions are at /run/NAME, the registry at /registry/")]
    UnknownPath { path: String },
    #[error(
        "{} is only for the worker's operator: ask over the worker's own socket (as `hosier` does), or send the header \
         `Authorization: Bearer TOKEN` with the content of the file `token` in the worker's directory; with http.admin = \
         \"open\" the worker lets in everyone who reaches the port",
        if *shown { "the token that was sent is not this worker's, and this" } else { "this" }
    )]
    NotLetIn { shown: bool },
    #[error(
        "{header} {value:?} is foreign to this worker, and all but calls is only for requests that were meant for it: \
         address it as localhost:{port}, by the address it listens on, or by its worker_url, with the port, and from no page \
         of another origin"
    )]
    Foreign { kind: &'static str, header: &'static str, value: String, port: u16 },
    #[error("{method} is not possible here; allowed: {allow}")]
    WrongMethod { method: String, allow: &'static str },
    #[error("the body is larger than the limit of {limit_bytes} bytes")]
    BodyTooLarge { limit_bytes: usize },
    #[error("the body did not arrive within {timeout:?}")]
    BodyTooSlow { timeout: Duration },
    #[error("the body ended early or is malformed")]
    BodyBroken,
    #[error("the memory for bodies is in use (http.body_budget_mb); nothing ran, try again later")]
    BodiesFull,
    #[error("as many requests are served as may be (http.max_connections); nothing ran, try again later")]
    Busy,
    #[error("the call took longer than the {timeout:?} a request may take in all")]
    TookTooLong { timeout: Duration },
    #[error("{function} answered what HTTP cannot carry: {what}")]
    BadAnswer { function: String, what: String },
    #[error("the worker failed on this request; its log says where")]
    Panicked,
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Refusal::Invoke(error) => invoke_status(error),
            Refusal::Registry(fault) => match fault.blame {
                // Who uploads a function is its author as far as HTTP can tell.
                Blame::Caller | Blame::Function => StatusCode::BAD_REQUEST,
                Blame::Capacity => StatusCode::TOO_MANY_REQUESTS,
                Blame::Worker => StatusCode::INTERNAL_SERVER_ERROR,
            },
            Refusal::BadName(_) | Refusal::BodyBroken => StatusCode::BAD_REQUEST,
            Refusal::NotLetIn { .. } => StatusCode::UNAUTHORIZED,
            Refusal::Foreign { .. } => StatusCode::FORBIDDEN,
            Refusal::UnknownPath { .. } => StatusCode::NOT_FOUND,
            Refusal::WrongMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Refusal::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::BodyTooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
            Refusal::BodiesFull | Refusal::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::TookTooLong { .. } => StatusCode::GATEWAY_TIMEOUT,
            Refusal::BadAnswer { .. } => StatusCode::BAD_GATEWAY,
            Refusal::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The kind in kebab case, for programs.
    fn reason(&self) -> &'static str {
        match self {
            Refusal::Invoke(error) => invoke_reason(error),
            Refusal::Registry(fault) => match fault.blame {
                Blame::Caller | Blame::Function => "bad-function",
                Blame::Capacity => "registry-full",
                Blame::Worker => "registry",
            },
            Refusal::BadName(_) => "bad-name",
            Refusal::NotLetIn { shown: true } => "wrong-token",
            Refusal::NotLetIn { shown: false } => "no-token",
            Refusal::Foreign { kind, .. } => kind,
            Refusal::UnknownPath { .. } => "unknown-path",
            Refusal::WrongMethod { .. } => "wrong-method",
            Refusal::BodyTooLarge { .. } => "body-too-large",
            Refusal::BodyTooSlow { .. } => "body-timeout",
            Refusal::BodyBroken => "body-broken",
            Refusal::BodiesFull => "bodies-full",
            Refusal::Busy => "busy",
            Refusal::TookTooLong { .. } => "total-timeout",
            Refusal::BadAnswer { .. } => "protocol",
            Refusal::Panicked => "panic",
        }
    }

    /// The value of `Allow`, which a 405 must carry.
    fn allow(&self) -> Option<HeaderValue> {
        match self {
            Refusal::WrongMethod { allow, .. } => Some(HeaderValue::from_static(allow)),
            Refusal::Invoke(InvokeError::MethodNotAllowed { allowed, .. }) => {
                let list = allowed.split_whitespace().collect::<Vec<_>>().join(", ");
                HeaderValue::try_from(list).ok()
            }
            _ => None,
        }
    }

    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let text = self.to_string();
        let (kind, body) = match &self {
            Refusal::Invoke(InvokeError::MethodNotAllowed { .. }) => ("text/plain; charset=utf-8", text),
            _ => {
                let json = serde_json::json!({ "error": text, "reason": self.reason() });
                ("application/json", format!("{json}\n"))
            }
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        let status = self.status();
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if let Some(allow) = self.allow() {
            headers.insert(ALLOW, allow);
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"hosier\""));
        }
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
        }
        response
    }
}

fn invoke_status(error: &InvokeError) -> StatusCode {
    match error {
        InvokeError::UnknownFunction(_) => StatusCode::NOT_FOUND,
        InvokeError::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
        InvokeError::QueueFull { .. } | InvokeError::QueueSlow { .. } | InvokeError::NoSandbox { .. } => {
            StatusCode::TOO_MANY_REQUESTS
        }
        InvokeError::OutOfMemory { .. } | InvokeError::Died { .. } | InvokeError::Protocol { .. } => {
            StatusCode::BAD_GATEWAY
        }
        InvokeError::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
        InvokeError::NotReady { .. } | InvokeError::Sandbox(_) => StatusCode::INTERNAL_SERVER_ERROR,
        InvokeError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn invoke_reason(error: &InvokeError) -> &'static str {
    match error {
        InvokeError::UnknownFunction(_) => "unknown-function",
        InvokeError::MethodNotAllowed { .. } => "method-not-allowed",
        InvokeError::QueueFull { .. } => "queue-full",
        InvokeError::QueueSlow { .. } => "queue-slow",
        InvokeError::NoSandbox { .. } => "no-sandbox",
        InvokeError::NotReady { .. } => "not-ready",
        InvokeError::OutOfMemory { .. } => "out-of-memory",
        InvokeError::TimedOut { .. } => "timed-out",
        InvokeError::Died { .. } => "died",
        InvokeError::Protocol { .. } => "protocol",
        InvokeError::Sandbox(_) => "sandbox",
        InvokeError::Stopping => "stopping",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_worker_says_when_to_come_back() {
        let full = InvokeError::QueueFull { function: "f".into(), limit: 3 };
        for (error, status) in [(full, 429), (InvokeError::Stopping, 503)] {
            let response = Refusal::from(error).into_response();
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()[RETRY_AFTER], "1");
        }
    }

    #[test]
    fn a_method_that_triggers_forbid_lists_the_others() {
        let error = InvokeError::MethodNotAllowed { sent: "PUT".into(), allowed: "GET POST".into() };
        let response = Refusal::from(error).into_response();
        assert_eq!(response.status(), 405);
        assert_eq!(response.headers()[ALLOW], "GET, POST");
    }
}
