//! Snapshot nodes: a function's own zygote, its handler imported. What a start from
//! one must not show, but by its time, and whom it must never serve.
//!
//! ```text
//! snapshot/serving     the node takes over, hooks, warm-up, blanks
//! snapshot/likeness    a leaf of it is like any leaf: environment, walls, randomness
//! snapshot/ownership   never shared, dropped with its code, its death costs nothing
//! snapshot/unfit       imports that no zygote can be made of
//! ```

#[path = "snapshot/likeness.rs"]
mod likeness;
#[path = "snapshot/ownership.rs"]
mod ownership;
#[path = "snapshot/serving.rs"]
mod serving;
#[path = "tree/site.rs"]
#[allow(dead_code, reason = "the tree's suite uses all of it")]
mod site;
#[path = "snapshot/stage.rs"]
mod stage;
mod support;
#[path = "snapshot/unfit.rs"]
mod unfit;
