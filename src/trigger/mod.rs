//! The trigger floor: turns an HTTP request into an invocation, and what comes
//! of it into an HTTP answer. Runs in the worker, on tokio.
//!
//! ```text
//! bind ──> serve: accept, cap, stop ──> one task a connection (hyper, http1)
//!                                          │  socket: deadlines on the wire
//!                                          v
//!          route: path, method ──> access: may it? ──> handler: body (bounded) ──> lambda::Engine
//!                                          │
//!          status: refusal ──> code   <────┴────>   answer: the function's own
//! ```
//!
//! | what is bounded | by |
//! |---|---|
//! | a request's head, and idle time between requests | `header_timeout` |
//! | a request's body to arrive, an answer to be taken | `body_timeout` |
//! | a request from its head to its answer | `total_timeout` |
//! | bytes of a request's head | [`HEAD_LIMIT_BYTES`]: 431 |
//! | bytes of a request's body | `body_limit_bytes`: 413 |
//! | bytes of all bodies together | `body_budget_bytes`: 503 |
//! | whole requests that are served | `max_connections`: 503 |
//! | connections that wait for their clients | `max_pending`: the longest-pending one goes |
//! | the end of requests in flight, when stopping | `stop_timeout` |
//!
//! A client that closed its side gets what is ready within a second; then it
//! counts as gone, its invocation is dropped, and the engine learns of it by that. Cron and queues come later,
//! as further sources of an `Invocation` beside HTTP.

use std::time::Duration;

mod access;
mod answer;
mod bind;
mod body;
mod budget;
mod handler;
mod pending;
mod route;
mod seat;
mod serve;
mod socket;
mod status;
mod token;

#[cfg(test)]
mod tests;

pub use access::{Access, Admin};
pub use bind::{OwnSocket, TriggerError, bind, bind_own};
pub use serve::serve;
pub use token::{Token, TokenError};

/// Bytes of a request's head (its first line and headers), at most.
pub const HEAD_LIMIT_BYTES: usize = 64 * 1024;

// Each byte of a head may become two on its way to a leaf (Latin-1 to UTF-8): whatever is taken here must fit there,
// since a frame that does not costs a warm sandbox.
const _: () = assert!(2 * HEAD_LIMIT_BYTES + 4096 <= hosier_zygote::wire::MAX_HEAD);

/// The bounds of the HTTP side.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// How long a head may take to arrive; also how long a connection may idle.
    pub header_timeout: Duration,
    /// How long a body may take: the request's to arrive, the answer's to be taken.
    pub body_timeout: Duration,
    /// How long a call may take in all; `None` leaves it to the function's own limit.
    pub total_timeout: Option<Duration>,
    pub body_limit_bytes: usize,
    /// Bytes that the bodies of all requests may have together, until each is answered.
    pub body_budget_bytes: usize,
    /// Connections whose request is whole and not answered yet; more are refused with 503.
    pub max_connections: usize,
    /// Connections that wait for their clients; at the cap the longest-pending one of the
    /// client with the most is closed.
    pub max_pending: usize,
    /// How long requests in flight may go on after a stop was asked for.
    pub stop_timeout: Duration,
    /// Who is let in, at the port, to all that is not a call.
    pub access: Access,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            total_timeout: None,
            body_limit_bytes: 6 * 1024 * 1024,
            body_budget_bytes: 256 * 1024 * 1024,
            max_connections: 1024,
            max_pending: 1024,
            stop_timeout: Duration::from_secs(5),
            access: Access::default(),
        }
    }
}
