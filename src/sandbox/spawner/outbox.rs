//! Answers of the spawner on their way to the worker, in order.
//!
//! ```text
//! tell ──▶ waiting ── sendmsg ──▶ the worker
//!             └ ENOBUFS, ENOMEM, … : kept, tried again after RETRY_MS, TRIES times
//! ```
//!
//! A `sendmsg(2)` that fails for want of memory says nothing about the worker: the answer
//! waits. One that can never be sent is dropped, and a process that the worker so never
//! hears of is killed; the request then ends at its own timeout.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;

use hosier_zygote::sys::process::kill_pidfd;
use hosier_zygote::sys::socket;
use hosier_zygote::wire;
use nix::errno::Errno;

use super::Tell;

/// Pause before an answer is tried again, in milliseconds.
pub(super) const RETRY_MS: u16 = 10;
/// Number of tries of one answer: two seconds.
const TRIES: u32 = 200;
/// Number of answers that may wait while requests are still read.
const WAITING: usize = 1024;

/// The worker is gone.
#[derive(Debug)]
pub(super) struct Gone;

/// The spawner's answers that are not sent yet.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Answer>,
    /// Number of times that the first of them was tried.
    tries: u32,
}

struct Answer {
    bytes: Vec<u8>,
    fd: Option<Rc<OwnedFd>>,
    /// Whether `fd` is the pidfd of a process that nobody else can end.
    is_process: bool,
}

impl Outbox {
    /// Sends an answer, after those that wait.
    pub fn tell(&mut self, socket: &OwnedFd, message: &Tell, fd: Option<Rc<OwnedFd>>) -> Result<(), Gone> {
        let is_process = matches!(message, Tell::Started { .. });
        self.waiting.push_back(Answer { bytes: wire::encode(message), fd, is_process });
        self.flush(socket)
    }

    /// Sends what waits, as far as the kernel lets it.
    pub fn flush(&mut self, socket: &OwnedFd) -> Result<(), Gone> {
        while let Some(Answer { bytes, fd, is_process }) = self.waiting.front() {
            let raw: Vec<_> = fd.iter().map(|fd| fd.as_raw_fd()).collect();
            match socket::send(socket.as_fd(), bytes, &raw) {
                Ok(_) => {}
                Err(error) if socket::is_gone(error.errno) => return Err(Gone),
                Err(error) if error.errno != Errno::EMSGSIZE && self.tries < TRIES => {
                    self.tries += 1;
                    return Ok(());
                }
                Err(_) => {
                    if let Some(fd) = fd.as_ref().filter(|_| *is_process) {
                        let _ = kill_pidfd(fd.as_fd());
                    }
                }
            }
            self.waiting.pop_front();
            self.tries = 0;
        }
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether no further request may be read.
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= WAITING
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Descriptors in flight are counted for each user, and bounded by `RLIMIT_NOFILE` for
    /// one without capabilities: a `sendmsg` that fails on the real kernel, for a while.
    #[test]
    fn an_answer_that_cannot_be_sent_now_is_sent_later_and_in_order() {
        use caps::{CapSet, Capability};
        use nix::sys::resource::{Resource, setrlimit};
        for capability in [Capability::CAP_SYS_ADMIN, Capability::CAP_SYS_RESOURCE] {
            caps::drop(None, CapSet::Effective, capability).unwrap();
        }
        setrlimit(Resource::RLIMIT_NOFILE, 64, 64).unwrap();
        let (ours, theirs) = socket::seqpacket_pair().unwrap();
        let stuffed = socket::seqpacket_pair().unwrap();
        let fds = [stuffed.0.as_raw_fd(); 50];
        let stuff = (0..10).find_map(|_| socket::send(stuffed.0.as_fd(), b"x", &fds).err());
        assert_eq!(stuff.unwrap().errno, Errno::ETOOMANYREFS);

        let mut outbox = Outbox::default();
        let fd = Rc::new(ours.try_clone().unwrap());
        for id in [1, 2] {
            outbox.tell(&ours, &Tell::Started { id }, Some(Rc::clone(&fd))).unwrap();
        }
        outbox.tell(&ours, &Tell::Ended { id: 1, status: 0 }, None).unwrap();
        assert!(!outbox.is_empty() && socket::peek(theirs.as_fd()).is_err());
        // Those in flight are taken back where their socket is collected.
        drop(stuffed);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while !outbox.is_empty() {
            assert!(std::time::Instant::now() < end, "never sent");
            std::thread::sleep(std::time::Duration::from_millis(RETRY_MS.into()));
            outbox.tries = 0;
            outbox.flush(&ours).unwrap();
        }
        let mut buffer = [0; 256];
        let mut next = || {
            let received = socket::receive(theirs.as_fd(), &mut buffer).unwrap();
            (wire::decode::<Tell>(&buffer[..received.len]).unwrap(), received.fds.len())
        };
        assert!(matches!(next(), (Tell::Started { id: 1 }, 1)));
        assert!(matches!(next(), (Tell::Started { id: 2 }, 1)));
        assert!(matches!(next(), (Tell::Ended { id: 1, .. }, 0)));
    }

    #[test]
    fn only_a_worker_that_is_gone_ends_the_spawner() {
        let (ours, theirs) = socket::seqpacket_pair().unwrap();
        let mut outbox = Outbox::default();
        outbox.tell(&ours, &Tell::Ended { id: 1, status: 0 }, None).unwrap();
        drop(theirs);
        assert!(outbox.tell(&ours, &Tell::Ended { id: 2, status: 0 }, None).is_err());
        for errno in [Errno::ENOBUFS, Errno::ENOMEM, Errno::EMSGSIZE, Errno::EMFILE, Errno::ETOOMANYREFS] {
            assert!(!socket::is_gone(errno), "{errno}");
        }
    }
}
