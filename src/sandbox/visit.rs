//! A moment in a sandbox's mount namespace. Runs in the worker, on the calling thread.
//!
//! ```text
//! home ── setns ──▶ the sandbox's mounts ── move_mount ──▶ attached ── setns ──▶ home
//! ```
//!
//! What a sandbox has not given up yet it could attach itself; one that has given up
//! everything is visited. A visiting thread has a root and a working directory of its own:
//! the others' stay where they are.
//!
//! Packages of a hostile node may have arranged what is in there, so nothing in there is
//! run, read or believed: no link is followed (`move_mount` does not at its end, and the
//! targets have one component), and the kernel attaches in the visited namespace alone.

use std::cell::RefCell;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use hosier_zygote::sys::mount;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{chroot, fchdir};

use super::SandboxError;
use super::error::{About, During};

/// A detached mount, and where it goes in a sandbox.
#[derive(Debug)]
pub struct Placed {
    /// Relative to the root.
    pub target: &'static str,
    pub mount: OwnedFd,
}

/// Attaches mounts in the mount namespace of a process.
///
/// # Errors
/// It is gone, or has no such directory; what was attached stays.
pub fn attach_inside(pidfd: &OwnedFd, mounts: &[Placed]) -> Result<(), SandboxError> {
    thread_local! {
        static HOME: RefCell<Option<Home>> = const { RefCell::new(None) };
    }
    HOME.with_borrow_mut(|home| {
        let home = match home {
            Some(home) => home,
            None => home.insert(Home::new()?),
        };
        let _away = home.leave(pidfd)?;
        for Placed { target, mount } in mounts {
            let target = CString::new(format!("/{target}")).map_err(std::io::Error::from).about(*target)?;
            mount::attach(mount.as_fd(), &target).during("attaching in a sandbox")?;
        }
        Ok(())
    })
}

/// Where a thread comes back to.
struct Home {
    namespace: OwnedFd,
    root: OwnedFd,
    directory: OwnedFd,
}

/// A thread that is elsewhere, until this is dropped.
struct Away<'a>(&'a Home);

impl Home {
    fn new() -> Result<Self, SandboxError> {
        let place = |path: &str, flag| open(path, flag | OFlag::O_CLOEXEC, Mode::empty()).about(path);
        Ok(Self {
            namespace: place("/proc/thread-self/ns/mnt", OFlag::O_RDONLY)?,
            root: place("/", OFlag::O_PATH)?,
            directory: place(".", OFlag::O_PATH)?,
        })
    }

    fn leave(&self, pidfd: &OwnedFd) -> Result<Away<'_>, SandboxError> {
        // Threads share both with whom they were started by, and the kernel lets no such
        // thread into a mount namespace. Nothing is done if it has none to share with.
        unshare(CloneFlags::CLONE_FS).about("a thread's own root directory")?;
        match setns(pidfd, CloneFlags::CLONE_NEWNS) {
            Ok(()) => Ok(Away(self)),
            Err(nix::errno::Errno::ESRCH) => Err(SandboxError::Ended),
            Err(error) => Err(error).about("the mount namespace of a sandbox"),
        }
    }

    /// Entering a mount namespace leads to its root: the thread's own may be another.
    fn enter(&self) -> nix::Result<()> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNS)?;
        fchdir(&self.root)?;
        chroot(".")?;
        fchdir(&self.directory)
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        // It fails for want of memory alone; until then the thread must do nothing else.
        while let Err(error) = self.0.enter() {
            tracing::error!(%error, "a thread cannot leave a sandbox's mounts yet");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
