//! The lambda floor: functions and instances, code registry, packages, limits.

pub mod config;
pub mod invocation;
pub mod name;
pub mod requirements;

pub use invocation::{Answer, Blame, Invocation, InvokeError, Start, Timings};
pub use name::{BadName, FunctionName};
