//! Hosier: a worker that runs Python functions in lean Linux sandboxes, which
//! are forked from a tree of zygotes (interpreters with packages imported).
//!
//! ```text
//! cli/        parses, builds a worker, runs it                     (top)
//! trigger/    HTTP: turns an outside event into an invocation
//! lambda/     functions, instances, registry, packages, limits
//! zygote/     the tree of pre-imported interpreters; forks from it
//! sandbox/    one lean container; knows nothing of Python
//! hosier_zygote   the crate below: system calls, containment, wire  (bottom)
//! ```
//!
//! A floor uses the floors below it, never one above. [`settings`] and
//! [`stats`] are plain data that every floor may read.

#![forbid(unsafe_code)]
#![warn(clippy::unwrap_used)]

pub mod cli;
pub mod lambda;
pub mod sandbox;
pub mod settings;
pub mod stats;
pub mod trigger;
pub mod zygote;
