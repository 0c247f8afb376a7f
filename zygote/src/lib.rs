//! What runs in a process between its birth and its handler. The lowest
//! floor: a library for the worker and, through `zygote/module`, an extension
//! module for the interpreter, so that a fresh process and a forked one are
//! contained by one implementation.
//!
//! ```text
//! serve     a zygote's loop: forks leaves and child zygotes     zygote
//! solidify  makes a zygote cheap to fork                        zygote
//! leaf      a leaf's side of its socket                         leaf
//! prefault  takes a first request's page faults ahead of it     blank
//! stub      pid 1 of a node: reaps                              stub
//! birth     a fresh process, from `clone3` to `execve`          spawner, its child
//! nets      network namespaces, made ahead of need              spawner's child
//! quotas    what of the kernel a user namespace may have        spawner's child
//! contain   the walls, one step a line                          all of them
//! wire      messages and frames                                 both ends
//! sys       typed system calls; all `unsafe` but solidify's     everywhere
//! ```

pub mod birth;
pub mod contain;
pub mod leaf;
pub mod nets;
pub mod prefault;
pub mod quotas;
pub mod serve;
pub mod solidify;
pub mod stub;
pub mod sys;
pub mod wire;
