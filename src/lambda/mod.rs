//! The lambda floor: functions and instances, code registry, packages, limits.
//! Runs in the worker; `hosier deploy` uses its cold side too.
//!
//! ```text
//! engine       what triggers need of this floor
//! worker       all functions
//!   function   one function: a queue, its code, kept current
//!     line     who waits in it, and for how long    pace   what that is estimated from
//!     instance one place where it runs: at most one sandbox
//!       idle   who may be asked to give one up      places who waits for one
//!       log    what it prints            steps    what a call's steps cost, in the log
//! code         versions of a function's files, ready to run
//!   registry   the stored functions       archive, tree   files from strangers
//!   config     ol.yaml                    requirements    requirements.txt
//!   snapshot   what it says of a node of its own
//! packages/    the store that uv fills
//! invocation   what crosses to and from triggers          name
//! ```

pub mod archive;
pub mod code;
pub mod config;
pub mod engine;
pub mod function;
mod idle;
mod instance;
pub mod invocation;
mod line;
mod log;
pub mod name;
mod pace;
pub mod packages;
mod places;
pub mod registry;
pub mod requirements;
mod snapshot;
pub mod steps;
pub mod tree;
mod worker;

pub use code::{CodeError, Compiler, Terms, Version, Versions};
pub use engine::{Engine, RegistryFault};
pub use idle::IdleInstances;
pub use instance::Shared;
pub use invocation::{Answer, Blame, Invocation, InvokeError, Start, Timings};
pub use name::{BadName, FunctionName};
pub use places::Places;
pub use requirements::{Pin, Pins, Requirements};
pub use worker::Worker;
