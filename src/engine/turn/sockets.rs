//! A shard's sockets, by connection: eight bytes each where a socket is a descriptor, and the queue
//! of those that may have something to read.
//!
//! Owns the sockets and what their edges said. Knows no request and no stream: what the bytes mean
//! is the engine's. A [`ConnId`] of a connection that is gone finds nothing; it never finds the
//! stranger that has its index now.

use std::collections::VecDeque;

use crate::realtime::ConnId;

/// Facts about one socket that an edge told, or that a later edge must find.
pub(super) mod fact {
    /// Stands in the ready queue.
    pub(super) const QUEUED: u32 = 1 << 0;
    /// The engine takes no bytes until it says so.
    pub(in crate::engine::turn) const PAUSED: u32 = 1 << 1;
    /// No edge will follow, or a read may stop short of what has come: read on until the end or an
    /// error.
    pub(in crate::engine::turn) const READ_CLOSED: u32 = 1 << 2;
    /// The end was read and told; there is nothing behind it.
    pub(in crate::engine::turn) const EOF: u32 = 1 << 3;
    /// The last write was cut short.
    pub(in crate::engine::turn) const BLOCKED: u32 = 1 << 4;
    /// Since then an edge has told of room.
    pub(in crate::engine::turn) const WRITABLE: u32 = 1 << 5;
    /// Reset, timed out, or closed both ways.
    pub(in crate::engine::turn) const FAILED: u32 = 1 << 6;
    /// The kernel's own timeout has been lifted: its last long write was cut short.
    pub(in crate::engine::turn) const UNTIMED: u32 = 1 << 7;
    /// Bits that hold facts.
    pub(super) const BITS: u32 = 8;
    pub(super) const MASK: u32 = (1 << BITS) - 1;
}

struct Place<S> {
    socket: Option<S>,
    /// The generation's low 24 bits, then facts. A stale id lives for a turn or two, within which
    /// an index is not reused 2^24 times.
    tag: u32,
}

// A descriptor's Option needs no more room than the descriptor.
const _: () = assert!(
    size_of::<Place<std::num::NonZeroU32>>() == 8,
    "the shard's share of a connection's memory"
);

/// Most connections for which address space is reserved at start (8 bytes each); beyond it the
/// table grows by doubling.
const PLACES_RESERVED_MAX: usize = 1 << 24;
/// Places that are not worth giving back.
const PLACES_KEPT: usize = 4_096;

/// The sockets and the ready queue.
pub(super) struct Sockets<S> {
    places: Vec<Place<S>>,
    reserved: usize,
    /// Most places since memory was last given back.
    places_peak: usize,
    ready: VecDeque<ConnId>,
}

impl<S> Sockets<S> {
    /// Room for `conns_max` connections; memory that no index has reached yet is reserved, not
    /// used.
    pub(super) fn new(conns_max: usize) -> Sockets<S> {
        let reserved = conns_max.min(PLACES_RESERVED_MAX);
        Sockets {
            places: Vec::with_capacity(reserved),
            reserved,
            places_peak: 0,
            ready: VecDeque::new(),
        }
    }

    /// Keeps a new connection's socket. Returns what the index had: the engine ends a life before
    /// the socket's turn to close comes.
    #[must_use]
    pub(super) fn insert(&mut self, conn: ConnId, socket: S) -> Option<S> {
        let index = conn.index as usize;
        if index >= self.places.len() {
            self.places.resize_with(index + 1, || Place {
                socket: None,
                tag: 0,
            });
            self.places_peak = self.places_peak.max(index + 1);
        }
        let place = &mut self.places[index];
        place.tag = conn.generation << fact::BITS;
        place.socket.replace(socket)
    }

    fn place(&self, conn: ConnId) -> Option<&Place<S>> {
        let place = self.places.get(conn.index as usize)?;
        (place.socket.is_some()
            && place.tag >> fact::BITS == conn.generation << fact::BITS >> fact::BITS)
            .then_some(place)
    }

    fn place_mut(&mut self, conn: ConnId) -> Option<&mut Place<S>> {
        self.place(conn)?;
        self.places.get_mut(conn.index as usize)
    }

    /// The socket of a connection that lives.
    pub(super) fn get_mut(&mut self, conn: ConnId) -> Option<&mut S> {
        self.place_mut(conn)?.socket.as_mut()
    }

    /// The socket at a place, whoever has it.
    pub(super) fn at(&self, index: u32) -> Option<&S> {
        self.places.get(index as usize)?.socket.as_ref()
    }

    /// Lets go of a connection.
    pub(super) fn remove(&mut self, conn: ConnId) -> Option<S> {
        let socket = self.place_mut(conn)?.socket.take();
        if conn.index as usize + 1 == self.places.len() {
            while self.places.pop_if(|place| place.socket.is_none()).is_some() {}
            self.give_back();
        }
        socket
    }

    /// Gives back the memory of a crowd that has gone, and reserves address space for the next: two
    /// calls of mremap(2).
    fn give_back(&mut self) {
        if self.places_peak > PLACES_KEPT && self.places.len() <= self.places_peak / 4 {
            self.places.shrink_to_fit();
            self.places
                .reserve_exact(self.reserved.saturating_sub(self.places.len()));
            self.places_peak = self.places.len();
        }
    }

    /// Whether any of `facts` holds; false if the connection is gone.
    pub(super) fn any(&self, conn: ConnId, facts: u32) -> bool {
        self.place(conn)
            .is_some_and(|place| place.tag & fact::MASK & facts != 0)
    }

    /// Notes facts of a connection that lives.
    pub(super) fn note(&mut self, conn: ConnId, facts: u32) {
        if let Some(place) = self.place_mut(conn) {
            place.tag |= facts;
        }
    }

    /// Facts of a connection that lives hold no longer.
    pub(super) fn clear(&mut self, conn: ConnId, facts: u32) {
        if let Some(place) = self.place_mut(conn) {
            place.tag &= !facts;
        }
    }

    /// Notes `facts` and puts the connection at the end of the ready queue, once.
    pub(super) fn queue(&mut self, conn: ConnId, facts: u32) {
        if let Some(place) = self.place_mut(conn) {
            let queued = place.tag & fact::QUEUED != 0;
            place.tag |= facts | fact::QUEUED;
            if !queued {
                self.ready.push_back(conn);
            }
        }
    }

    /// The connection that has waited longest in the ready queue and still lives.
    pub(super) fn pop_ready(&mut self) -> Option<ConnId> {
        while let Some(conn) = self.ready.pop_front() {
            if self.any(conn, fact::QUEUED) {
                self.clear(conn, fact::QUEUED);
                return Some(conn);
            }
        }
        None
    }

    /// Whether some stand in the ready queue.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u32, generation: u32) -> ConnId {
        ConnId { index, generation }
    }

    /// A table with these, each with a socket of its index's name.
    fn table(conns: &[ConnId]) -> Sockets<u32> {
        let mut sockets = Sockets::new(64);
        for conn in conns {
            assert_eq!(sockets.insert(*conn, conn.index), None);
        }
        sockets
    }

    #[test]
    fn a_stale_id_finds_nothing() {
        let mut sockets = table(&[id(2, 5)]);
        assert_eq!(sockets.get_mut(id(2, 5)), Some(&mut 2));
        assert_eq!(sockets.get_mut(id(2, 4)), None);
        assert_eq!(sockets.get_mut(id(1, 5)), None);
        assert_eq!(sockets.get_mut(id(3, 5)), None);
        assert_eq!(sockets.remove(id(2, 4)), None);
        assert_eq!(sockets.remove(id(2, 5)), Some(2));
        assert_eq!(sockets.get_mut(id(2, 5)), None);
        assert_eq!(sockets.insert(id(2, 6), 20), None);
        sockets.queue(id(2, 5), fact::FAILED);
        assert!(!sockets.any(id(2, 6), fact::FAILED | fact::QUEUED));
        assert_eq!(sockets.pop_ready(), None);
    }

    #[test]
    fn a_new_life_turns_the_old_socket_out() {
        let mut sockets = table(&[id(0, 1)]);
        sockets.note(id(0, 1), fact::EOF);
        assert_eq!(sockets.insert(id(0, 2), 10), Some(0));
        assert_eq!(sockets.remove(id(0, 1)), None);
        assert!(!sockets.any(id(0, 2), fact::EOF));
    }

    #[test]
    fn places_at_the_end_go_with_their_sockets() {
        let mut sockets = table(&[0, 1, 2, 3, 4, 5].map(|index| id(index, 1)));
        assert_eq!(sockets.remove(id(4, 1)), Some(4));
        assert_eq!(sockets.places.len(), 6);
        assert_eq!(sockets.remove(id(5, 1)), Some(5));
        assert_eq!(sockets.places.len(), 4);
        assert_eq!(sockets.get_mut(id(5, 1)), None);
        assert_eq!(sockets.get_mut(id(3, 1)), Some(&mut 3));
        sockets.places_peak = 4 * PLACES_KEPT;
        assert_eq!(sockets.remove(id(3, 1)), Some(3));
        assert_eq!((sockets.places_peak, sockets.places.capacity()), (3, 64));
        assert_eq!(sockets.insert(id(3, 2), 30), None);
        assert_eq!(sockets.get_mut(id(2, 1)), Some(&mut 2));
        assert_eq!(sockets.get_mut(id(3, 2)), Some(&mut 30));
    }

    #[test]
    fn large_generations_keep_their_low_bits() {
        let mut sockets = table(&[id(0, u32::MAX)]);
        assert_eq!(sockets.get_mut(id(0, u32::MAX)), Some(&mut 0));
        assert_eq!(sockets.get_mut(id(0, u32::MAX - 1)), None);
        assert!(
            !sockets.any(id(0, u32::MAX), fact::MASK),
            "no fact holds at first"
        );
    }

    #[test]
    fn queued_once_and_in_order() {
        let mut sockets = table(&[0, 1, 2].map(|index| id(index, 1)));
        sockets.queue(id(1, 1), fact::READ_CLOSED);
        sockets.queue(id(0, 1), 0);
        sockets.queue(id(1, 1), fact::WRITABLE);
        sockets.queue(id(2, 1), 0);
        assert!(sockets.any(id(1, 1), fact::READ_CLOSED));
        assert!(sockets.any(id(1, 1), fact::WRITABLE));
        // A connection that goes while it waits is passed over, and so is its index's next life.
        assert_eq!(sockets.remove(id(0, 1)), Some(0));
        assert_eq!(sockets.insert(id(0, 2), 0), None);
        assert_eq!(sockets.pop_ready(), Some(id(1, 1)));
        assert_eq!(sockets.pop_ready(), Some(id(2, 1)));
        assert_eq!(sockets.pop_ready(), None);
        sockets.queue(id(1, 1), 0);
        assert_eq!(sockets.pop_ready(), Some(id(1, 1)));
    }
}
