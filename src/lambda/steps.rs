//! The steps of a call as `tracing` tells them. Runs in the worker.
//!
//! ```text
//! span   invocation{function, start, sandbox, node}     around everything that serves the call
//! event    step{step, us}                               one a step, when the answer is there
//! ```
//!
//! `trace.latency = true`, or `HOSIER_LOG=hosier::latency=debug`, switches it on. Off, a
//! call pays for the question whether it is, which is one load.

use std::time::Duration;

use tracing::field::Empty;
use tracing::{Span, debug, debug_span};

use super::{FunctionName, Start, Timings};
use crate::zygote::Leaf;

/// Where the filter of the log finds it.
pub const TARGET: &str = "hosier::latency";

/// What a call is served in.
pub(super) fn span(function: &FunctionName) -> Span {
    debug_span!(target: TARGET, "invocation", %function, start = Empty, sandbox = Empty, node = Empty)
}

/// Says in the current span who serves the call.
pub(super) fn served_by(leaf: &Leaf, start: Start) {
    if tracing::enabled!(target: TARGET, tracing::Level::DEBUG) {
        let span = Span::current();
        span.record("start", start.as_str());
        span.record("sandbox", leaf.sandbox().id());
        if let Some(node) = leaf.node() {
            span.record("node", node);
        }
    }
}

/// Tells the steps of an answered call.
pub(super) fn tell(span: &Span, timings: &Timings) {
    span.in_scope(|| {
        for (step, took) in &timings.0 {
            debug!(target: TARGET, step, us = us(*took), "step");
        }
    });
}

fn us(took: Duration) -> u64 {
    took.as_micros().try_into().unwrap_or(u64::MAX)
}
