//! The sandbox floor: one lean container. Knows nothing of Python.
//!
//! ```text
//! floor      Sandboxes: makes walls, starts processes behind them
//!   ├ cell       walls that wait for a process
//!   ├ base       what a sandbox sees as /        ├ cgroup/    limits, freeze, kill
//!   ├ view       its packages and code           ├ seccomp/   what it may ask the kernel
//!   ├ writable   a root of its own to write      │
//!   ├ homes      names of its namespaces' control groups
//!   ├ ids        private ranges of host ids      └ spawner/   starts fresh processes
//!   ├ nets       network namespaces ahead of need
//!   ├ life       Running, Paused, Dead; the undertaker
//!   ├ visit      mounts for one that can attach none itself
//!   └ roster     who lives, for whoever looks
//! channel    the worker's end of a socket
//! output     what a sandbox prints              pidfd      whose it is, is it there
//! confined   the kernel's word that a leaf has given up everything
//! command    a program run once (an installer)  memory     of a process, of the machine
//! outlet/    the one way out of a command's network namespace
//! foreign    files that strangers wrote: by descriptor, without recursion
//! quotas     a sandbox's share of what the kernel has for everybody
//! host       what the machine must have; the run-time directory
//! ```

mod base;
mod cell;
pub mod cgroup;
mod channel;
pub mod command;
mod confined;
mod error;
mod floor;
pub mod foreign;
mod homes;
pub mod host;
mod ids;
mod life;
pub mod limits;
pub mod memory;
mod nets;
pub mod outlet;
mod output;
pub mod pidfd;
pub mod quotas;
mod roster;
pub mod seccomp;
mod spawner;
mod view;
mod visit;
mod writable;

pub use base::{Base, RuntimeFile};
pub use cell::{Cell, Order, Purpose, UserNamespace};
pub use channel::Channel;
pub use command::{Bind, Code, Command, Ended, Outcome, RunError, Runner};
pub use error::SandboxError;
pub use floor::{Parts, Program, Sandboxes, Started, Tuning};
pub use ids::Claims;
pub use life::{Sandbox, Undertaker};
pub use limits::{Limits, Network, PartialLimits};
pub use nets::NetPool;
pub use outlet::Outlet;
pub use output::{Output, OutputGuard};
pub use spawner::{Leftovers, Spawner, start as start_spawner};
pub use view::{HANDLER, PACKAGES, Spares, View, open_sealed};
pub use visit::Placed;
pub use writable::MountPoint;
