//! The tree of zygotes: which node a function is forked from, how nodes come
//! and go, and what packages cannot do to it. Packages are PyPI's, from a store
//! that the tests share; hostile ones are laid into it by hand.
//!
//! ```text
//! tree/shape      a tree file: nodes, siblings, versions, depth
//! tree/grown      no tree file: it grows itself, within bounds
//! tree/ages       nodes that came of age
//! tree/charged    whose a node's memory is
//! tree/deaths     nodes that are killed
//! tree/hostile    packages that misbehave at import
//! tree/kept       leaves that keep what they must give up
//! tree/replicas   a busy node, a slow growth
//! tree/learned    what leaves import, nodes import
//! tree/leaves     what a forked leaf is: randomness, hooks, path, pandas
//! ```

mod support;

#[path = "tree/ages.rs"]
mod ages;
#[path = "tree/charged.rs"]
mod charged;
#[path = "tree/deaths.rs"]
mod deaths;
#[path = "tree/grown.rs"]
mod grown;
#[path = "tree/hostile.rs"]
mod hostile;
#[path = "tree/kept.rs"]
mod kept;
#[path = "tree/learned.rs"]
mod learned;
#[path = "tree/leaves.rs"]
mod leaves;
#[path = "tree/replicas.rs"]
mod replicas;
#[path = "tree/shape.rs"]
mod shape;
#[path = "tree/site.rs"]
mod site;
