//! Who has a connection to wait for: its client, or the worker. Runs in the worker.
//!
//! ```text
//! accepted ──> Pending ──request is whole, a slot is free──> Served ──answer is made──> Pending
//!                 │ too many are pending                                                  │
//!                 └──> closed <───────────────────────────────────────────────────────────┘
//! ```
//!
//! A connection is pending while its client is to act: to send a head, or a body, to take an
//! answer, or to ask again. Pending ones cost the worker little, and clients decide how many
//! there are: at the cap one of them is closed ([`super::pending`] says which). A slot belongs
//! to a whole request; where none is free the request is refused at once, and nothing of it ran.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::pending::{Peer, Pending};

/// The slots of one door, and those that wait for clients there.
#[derive(Debug)]
pub(super) struct Room {
    slots: Arc<Semaphore>,
    pending: Mutex<Pending<Arc<Notify>>>,
}

impl Room {
    pub(super) fn new(slots: usize, pending: usize) -> Arc<Self> {
        Arc::new(Self { slots: Arc::new(Semaphore::new(slots)), pending: Mutex::new(Pending::new(pending)) })
    }

    fn pending(&self) -> MutexGuard<'_, Pending<Arc<Notify>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, peer: Peer, close: &Arc<Notify>) -> Standing {
        let (number, victim) = self.pending().enter(peer, Arc::clone(close));
        if let Some(victim) = victim {
            victim.notify_one();
        }
        Standing::Pending(number)
    }
}

/// The seat of one connection, given up when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    room: Arc<Room>,
    peer: Peer,
    close: Arc<Notify>,
    standing: Mutex<Standing>,
}

#[derive(Debug)]
enum Standing {
    /// Its number among the pending ones.
    Pending(u64),
    Served(#[expect(dead_code, reason = "given back by its drop")] OwnedSemaphorePermit),
}

impl Seat {
    /// A connection that was just accepted. The one that has to go for it is told.
    pub(super) fn new(room: Arc<Room>, peer: Peer) -> Self {
        let close = Arc::new(Notify::new());
        let standing = Mutex::new(room.enter(peer, &close));
        Self { room, peer, close, standing }
    }

    /// Takes a slot for a request that is whole. False where none is free, or where the
    /// connection has to go.
    pub(super) fn take_slot(&self) -> bool {
        let mut standing = self.standing();
        let Standing::Pending(number) = *standing else { return true };
        let Ok(slot) = Arc::clone(&self.room.slots).try_acquire_owned() else { return false };
        if !self.room.pending().leave(self.peer, number) {
            return false;
        }
        *standing = Standing::Served(slot);
        true
    }

    /// Gives the slot back: the client is to act.
    pub(super) fn wait_for_client(&self) {
        let mut standing = self.standing();
        if matches!(*standing, Standing::Served(_)) {
            *standing = self.room.enter(self.peer, &self.close);
        }
    }

    /// Resolves when the connection has to go.
    pub(super) async fn must_go(&self) {
        self.close.notified().await;
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let standing = self.standing.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Standing::Pending(number) = *standing {
            self.room.pending().leave(self.peer, number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a connection was told to go.
    async fn is_told(seat: &Seat) -> bool {
        tokio::select! {
            biased;
            () = seat.must_go() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn a_served_connection_does_not_go_for_a_pending_one() {
        let room = Room::new(1, 1);
        let served = Seat::new(room.clone(), Peer::OWN);
        assert!(served.take_slot() && served.take_slot(), "it has one");
        let first = Seat::new(room.clone(), Peer::OWN);
        let second = Seat::new(room.clone(), Peer::OWN);
        assert!(is_told(&first).await && !is_told(&second).await && !is_told(&served).await);
        assert!(!second.take_slot(), "there is one slot");
        served.wait_for_client();
        assert!(is_told(&second).await, "it is pending for longer");
        assert!(served.take_slot());
    }

    #[tokio::test]
    async fn one_that_was_told_to_go_takes_no_slot_and_keeps_none() {
        let room = Room::new(1, 1);
        let first = Seat::new(room.clone(), Peer::OWN);
        let second = Seat::new(room.clone(), Peer::OWN);
        assert!(!first.take_slot());
        drop(first);
        assert!(second.take_slot());
        drop(second);
        assert!(Seat::new(room, Peer::OWN).take_slot());
    }
}
