//! The way out of an install: a real sandbox, its outlet, and what is tried through it and around it.
//!
//! ```text
//! lab       a spawner, roots and a runtime: what a worker makes sandboxes with
//! probe     python in the sandbox: CONNECT, plain requests, direct connections ─▶ JSON
//! world     listeners on this machine that notice whoever reaches them
//!
//! reach     what a command reaches                bounds    what it cannot use up
//! chained   through the operator's own proxy      real      uv and the real index
//! deployed  a source package's build, in a real worker
//! ```

#[path = "../support/mod.rs"]
mod support;

mod bounds;
mod chained;
mod deployed;
mod lab;
mod probe;
mod reach;
mod real;
mod world;
