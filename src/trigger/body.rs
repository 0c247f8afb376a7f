//! A request's body: read whole, within a size and a time.
//!
//! A body that says it is too large is refused before a byte of it is read (and
//! before `100 Continue`); one that turns out to be is refused on the way. What
//! was left unread is remembered, since it decides how the connection ends.
//! What has come is paid for from the budget that all bodies share
//! ([`super::budget`]), until the request is answered.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::timeout;

use super::budget::{Budget, Share};
use super::status::Refusal;

/// A request's body, whether all of it was taken, and its part of the budget.
pub(super) struct Upload {
    incoming: Incoming,
    whole: bool,
    share: Share,
}

/// The bounds of one body.
pub(super) struct Bounds<'a> {
    pub(super) limit_bytes: usize,
    /// Time for all of it to arrive.
    pub(super) limit: Duration,
    pub(super) budget: &'a Budget,
}

impl Upload {
    pub(super) fn new(incoming: Incoming) -> Self {
        let whole = incoming.is_end_stream();
        Self { incoming, whole, share: Share::default() }
    }

    /// Bytes of this body may still be on their way.
    pub(super) fn is_left_unread(&self) -> bool {
        !self.whole
    }

    /// # Errors
    /// The body is too large, too slow, ends before it should, or the budget is used up.
    pub(super) async fn read(&mut self, bounds: Bounds<'_>) -> Result<Bytes, Refusal> {
        if self.whole {
            return Ok(Bytes::new());
        }
        if self.incoming.size_hint().lower() > bounds.limit_bytes as u64 {
            return Err(Refusal::BodyTooLarge { limit_bytes: bounds.limit_bytes });
        }
        let collected = collect(&mut self.incoming, &mut self.share, &bounds);
        let body = match timeout(bounds.limit, collected).await {
            Ok(body) => body?,
            Err(_) => return Err(Refusal::BodyTooSlow { timeout: bounds.limit }),
        };
        self.whole = true;
        Ok(body)
    }
}

/// A body that came in one piece is handed on without a copy. The buffer of another grows with
/// what comes, by doubling: what a head announces is nothing to make room for.
async fn collect(incoming: &mut Incoming, share: &mut Share, bounds: &Bounds<'_>) -> Result<Bytes, Refusal> {
    let mut first = Bytes::new();
    let mut joined = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame.map_err(|_| Refusal::BodyBroken)?.into_data() else {
            continue; // trailers
        };
        let size = first.len() + joined.len() + data.len();
        if size > bounds.limit_bytes {
            return Err(Refusal::BodyTooLarge { limit_bytes: bounds.limit_bytes });
        }
        if !share.grow(bounds.budget, size).await {
            return Err(Refusal::BodiesFull);
        }
        if first.is_empty() && joined.is_empty() {
            first = data;
            continue;
        }
        if joined.is_empty() {
            joined.reserve(size);
            joined.extend_from_slice(&std::mem::take(&mut first));
        }
        joined.extend_from_slice(&data);
    }
    Ok(if joined.is_empty() { first } else { joined.freeze() })
}
