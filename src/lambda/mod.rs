//! The lambda floor: functions and instances, code registry, packages, limits.

pub mod engine;
pub mod invocation;
pub mod name;

pub use engine::{Engine, RegistryFault};
pub use invocation::{Answer, Blame, Invocation, InvokeError, Start, Timings};
pub use name::{BadName, FunctionName};
