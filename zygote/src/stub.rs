//! Pid 1 of a node's pid namespace: it only reaps.
//!
//! ```text
//! stub (pid 1) ── zygote (pid 2) ── leaves (each pid 1 of a namespace of its own)
//! ```
//!
//! Were the zygote pid 1, its death would take every leaf along; and OpenSSL,
//! which notices a fork by `getpid()`, would see a pid-1 child of a pid-1 parent
//! and hand the same keys to both. When the zygote dies, its leaves become
//! the stub's children and live on; the stub ends with the last of them.

use crate::sys::{privilege, process};

/// Reaps until nothing is left, then ends with the status of `main`, the
/// first child. With `linger`, children of a dead `main` are waited for;
/// without, they end with it.
pub fn run(main: i32, linger: bool) -> ! {
    // What it inherited is not its business: sockets, capabilities.
    let _ = process::close_from(0);
    let _ = privilege::keep_capabilities(0);
    let mut code = 0;
    while let Ok(Some((pid, status))) = process::wait_any(true) {
        if pid == main {
            code = exit_code(status);
            if !linger {
                break;
            }
        }
    }
    process::exit_now(code)
}

/// The shell's convention: the code itself, or 128 and the signal.
fn exit_code(status: i32) -> i32 {
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) }
}
