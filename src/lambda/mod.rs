//! The lambda floor: functions and instances, code registry, packages, limits.

pub mod archive;
pub mod code;
pub mod config;
pub mod invocation;
pub mod name;
pub mod packages;
pub mod registry;
pub mod requirements;
pub mod tree;

pub use invocation::{Answer, Blame, Invocation, InvokeError, Start, Timings};
pub use name::{BadName, FunctionName};
pub use requirements::{Pin, Pins};
