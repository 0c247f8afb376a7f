//! The sandbox floor: one lean container. Knows nothing of Python.

pub mod cgroup;
pub mod command;
pub mod limits;
pub mod seccomp;

pub use command::{Bind, Command, Ended, Outcome, RunError, Runner};
pub use limits::{Limits, Network, PartialLimits};
