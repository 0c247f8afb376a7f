//! A request's body: read whole, within a size and a time.
//!
//! A body that says it is too large is refused before a byte of it is read (and
//! before `100 Continue`); one that turns out to be is refused on the way. What
//! was left unread is remembered, since it decides how the connection ends.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::timeout;

use super::status::Refusal;

/// A request's body, and whether all of it was taken.
pub(super) struct Upload {
    incoming: Incoming,
    whole: bool,
}

impl Upload {
    pub(super) fn new(incoming: Incoming) -> Self {
        let whole = incoming.is_end_stream();
        Self { incoming, whole }
    }

    /// Bytes of this body may still be on their way.
    pub(super) fn is_left_unread(&self) -> bool {
        !self.whole
    }

    /// # Errors
    /// The body is too large, too slow, or ends before it should.
    pub(super) async fn read(&mut self, limit_bytes: usize, limit: Duration) -> Result<Bytes, Refusal> {
        if self.whole {
            return Ok(Bytes::new());
        }
        let declared = self.incoming.size_hint().lower();
        if declared > limit_bytes as u64 {
            return Err(Refusal::BodyTooLarge { limit_bytes });
        }
        let body = match timeout(limit, collect(&mut self.incoming, declared as usize, limit_bytes)).await {
            Ok(body) => body?,
            Err(_) => return Err(Refusal::BodyTooSlow { timeout: limit }),
        };
        self.whole = true;
        Ok(body)
    }
}

/// A body that came in one piece is handed on without a copy.
async fn collect(incoming: &mut Incoming, declared: usize, limit_bytes: usize) -> Result<Bytes, Refusal> {
    let mut first = Bytes::new();
    let mut joined = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame.map_err(|_| Refusal::BodyBroken)?.into_data() else {
            continue; // trailers
        };
        if first.len() + joined.len() + data.len() > limit_bytes {
            return Err(Refusal::BodyTooLarge { limit_bytes });
        }
        if first.is_empty() && joined.is_empty() {
            first = data;
            continue;
        }
        if joined.is_empty() {
            joined.reserve(declared.max(first.len() + data.len()));
            joined.extend_from_slice(&std::mem::take(&mut first));
        }
        joined.extend_from_slice(&data);
    }
    Ok(if joined.is_empty() { first } else { joined.freeze() })
}
