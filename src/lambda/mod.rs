//! The lambda floor: functions and instances, code registry, packages, limits.

pub mod archive;
pub mod config;
pub mod engine;
pub mod invocation;
pub mod name;
pub mod packages;
pub mod registry;
pub mod requirements;
pub mod tree;

pub use engine::{Engine, RegistryFault};
pub use invocation::{Answer, Blame, Invocation, InvokeError, Start, Timings};
pub use name::{BadName, FunctionName};
