//! Connections that wait for their clients, and the one that goes when there are too many.
//! Pure: no I/O, no clock. Runs in the worker.
//!
//! ```text
//! peer A   7 ── 9 ── 12 ── 13     the most: its longest-pending one, 7, goes
//! peer B   3 ── 11                 though B's 3 is older
//! ```
//!
//! One client that opens thousands of connections takes room from itself, not from others.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// One client as far as an address tells: an IPv4 address, or the /64 network of an IPv6 one,
/// whose other addresses its owner has as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Peer(Option<IpAddr>);

impl Peer {
    /// Whoever may use the worker's own socket.
    pub(super) const OWN: Self = Self(None);

    pub(super) fn of(address: SocketAddr) -> Self {
        Self(Some(match address.ip().to_canonical() {
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
            v4 => v4,
        }))
    }
}

/// The pending connections of one door, each with what closes it.
#[derive(Debug)]
pub(super) struct Pending<V> {
    /// Connections that may be pending.
    cap: usize,
    count: usize,
    next: u64,
    /// Of each peer, in the order in which they became pending.
    peers: HashMap<Peer, BTreeMap<u64, V>>,
}

impl<V> Pending<V> {
    pub(super) fn new(cap: usize) -> Self {
        Self { cap: cap.max(1), count: 0, next: 0, peers: HashMap::new() }
    }

    /// Adds a connection that is pending from now on. Returns its number, and at the cap
    /// the connection that goes for it.
    pub(super) fn enter(&mut self, peer: Peer, value: V) -> (u64, Option<V>) {
        let victim = if self.count >= self.cap { self.take_victim() } else { None };
        let number = self.next;
        self.next += 1;
        self.peers.entry(peer).or_default().insert(number, value);
        self.count += 1;
        (number, victim)
    }

    /// Removes a connection. False if it had to go already.
    pub(super) fn leave(&mut self, peer: Peer, number: u64) -> bool {
        let Some(own) = self.peers.get_mut(&peer) else { return false };
        let was_there = own.remove(&number).is_some();
        if own.is_empty() {
            self.peers.remove(&peer);
        }
        self.count -= usize::from(was_there);
        was_there
    }

    /// The longest-pending connection of the peer with the most; among equals, the oldest.
    fn take_victim(&mut self) -> Option<V> {
        let most = self.peers.iter().filter_map(|(peer, own)| {
            let oldest = *own.first_key_value()?.0;
            Some((own.len(), std::cmp::Reverse(oldest), *peer))
        });
        let (_, std::cmp::Reverse(oldest), peer) = most.max()?;
        let victim = self.peers.get_mut(&peer)?.remove(&oldest);
        if self.peers.get(&peer).is_some_and(BTreeMap::is_empty) {
            self.peers.remove(&peer);
        }
        self.count -= usize::from(victim.is_some());
        victim
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> Peer {
        Peer::of(format!("{address}:1").parse().expect("an address"))
    }

    #[test]
    fn below_the_cap_nobody_goes() {
        let mut pending = Pending::new(3);
        for n in 0..3 {
            assert_eq!(pending.enter(peer("10.0.0.1"), n).1, None);
        }
        assert_eq!(pending.enter(peer("10.0.0.1"), 3).1, Some(0));
    }

    #[test]
    fn the_peer_with_the_most_loses_its_longest_pending_one() {
        let mut pending = Pending::new(4);
        pending.enter(peer("10.0.0.2"), "old, alone");
        for name in ["first", "second", "third"] {
            pending.enter(peer("10.0.0.1"), name);
        }
        assert_eq!(pending.enter(peer("10.0.0.3"), "new").1, Some("first"));
        assert_eq!(pending.enter(peer("10.0.0.3"), "newer").1, Some("second"));
        // Now one, one and two: the two of the last peer, though the first is older.
        assert_eq!(pending.enter(peer("10.0.0.4"), "last").1, Some("new"));
    }

    #[test]
    fn among_equals_the_longest_pending_one_goes() {
        let mut pending = Pending::new(3);
        let peers = ["10.0.0.3", "10.0.0.1", "10.0.0.2"].map(peer);
        for peer in peers {
            pending.enter(peer, peer);
        }
        assert_eq!(pending.enter(Peer::OWN, Peer::OWN).1, Some(peers[0]));
    }

    #[test]
    fn one_that_left_makes_room_and_leaves_once() {
        let mut pending = Pending::new(2);
        let (first, _) = pending.enter(Peer::OWN, 1);
        pending.enter(Peer::OWN, 2);
        assert!(pending.leave(Peer::OWN, first) && !pending.leave(Peer::OWN, first));
        assert_eq!(pending.enter(Peer::OWN, 3).1, None);
        let (fourth, victim) = pending.enter(Peer::OWN, 4);
        assert_eq!(victim, Some(2));
        assert!(pending.leave(Peer::OWN, fourth));
        assert_eq!(pending.count, 1);
    }

    #[test]
    fn a_storm_of_connections_never_closes_the_one_of_somebody_else() {
        let mut pending = Pending::new(100);
        pending.enter(peer("10.0.0.9"), u32::MAX);
        for n in 0..10_000 {
            let (_, victim) = pending.enter(peer("10.0.0.1"), n);
            assert_ne!(victim, Some(u32::MAX));
        }
        assert_eq!((pending.count, pending.peers.len()), (100, 2));
    }

    #[test]
    fn addresses_of_one_network_are_one_peer() {
        let [a, b, c] = ["[2001:db8::1]", "[2001:db8::ffff:1]", "[2001:db8:0:1::1]"].map(peer);
        assert!(a == b && a != c);
        assert_eq!(peer("[::ffff:10.0.0.1]"), peer("10.0.0.1"));
    }
}
