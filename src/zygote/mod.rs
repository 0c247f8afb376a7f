//! The zygote floor: the tree of pre-imported interpreters; picks a node,
//! grows one, forks from it. Runs in the worker.
//!
//! ```text
//! forest     all trees, one a network; start(need) ──▶ Leaf
//!   ├ template   the operator's tree file: which nodes may exist
//!   ├ blanks     leaves forked ahead of need, how many (pure)
//!   ├ prefault   whether they populate their pages (pure)
//!   ├ pressure   whether there is memory for them (pure)
//!   ├ age        which node has served long enough (pure)
//!   ├ evict      which node goes when there is no room (pure)
//!   ├ replicas   when a node needs another zygote (pure)
//!   ├ select     which node serves a set of pins and modules (pure)
//!   ├ snapshot   what makes a node one function's own
//!   └ node       one zygote process: forks, grows children
//! modules      the modules that a function imports by itself (pure)
//! users        the functions that a node is charged to
//! working_set  the pages that leaves of a node touch
//! leaf       a started sandbox that answers requests
//! pin        a package at a version
//! ```
//!
//! The subset rule, which is also the security rule: a function is forked only from a
//! node whose packages are all among its own, by name and exact version, and whose modules
//! below these packages are all among those that the function imports by itself.

mod age;
mod blanks;
mod error;
mod evict;
mod forest;
mod leaf;
mod modules;
mod node;
mod pin;
mod prefault;
mod pressure;
mod replicas;
mod select;
mod snapshot;
mod template;
mod users;
mod working_set;

pub use age::Ageing;
pub use error::ZygoteError;
pub use forest::{Forest, ForestParts, Need, Observed, OnPath, Packages, Spent};
pub use leaf::{Leaf, Reply};
pub use modules::{Head, Modules, OwnModules};
pub use node::POOLS;
pub use pin::{BadPin, EntryId, Pin, Pins, normalize};
pub use snapshot::{Owner, Snapshot};
pub use template::{Template, TemplateError};
