//! A shard's sockets, by connection: eight bytes each, and the queue of those that may have
//! something to read.
//!
//! Owns the sockets and what their edges said. Knows no request and no stream: what the bytes mean
//! is the engine's. A [`ConnId`] or event of a connection that is gone finds nothing; it never
//! finds the stranger that has its index now.

use std::collections::VecDeque;
use std::net::TcpStream;

use mio::Token;

use crate::realtime::ConnId;

/// Facts about one socket that an edge told, or that a later edge must find.
pub(super) mod flag {
    /// Stands in the ready queue.
    pub(in crate::shard) const QUEUED: u32 = 1 << 0;
    /// The engine takes no bytes until it says so.
    pub(in crate::shard) const PAUSED: u32 = 1 << 1;
    /// No edge will follow: read on until the end or an error.
    pub(in crate::shard) const READ_CLOSED: u32 = 1 << 2;
    /// The end was read and told; there is nothing behind it.
    pub(in crate::shard) const EOF: u32 = 1 << 3;
    /// The last write was cut short.
    pub(in crate::shard) const BLOCKED: u32 = 1 << 4;
    /// Takes bytes again since.
    pub(in crate::shard) const WRITABLE: u32 = 1 << 5;
    /// Reset, timed out, or closed both ways.
    pub(in crate::shard) const FAILED: u32 = 1 << 6;
    /// The kernel's own timeout has been lifted: its last long write was cut short.
    pub(in crate::shard) const UNTIMED: u32 = 1 << 7;
    /// Bits that hold flags.
    pub(super) const BITS: u32 = 8;
    pub(super) const MASK: u32 = (1 << BITS) - 1;
}

struct Entry {
    socket: Option<TcpStream>,
    /// The generation's low 24 bits, then flags. A stale id lives for a turn or two, within which
    /// an index is not reused 2^24 times.
    tag: u32,
}

const _: () = assert!(
    size_of::<Entry>() == 8,
    "the shard's share of a connection's memory"
);
const _: () = assert!(size_of::<usize>() == 8, "a token holds a ConnId");

/// Most connections for which address space is reserved at start (8 bytes each); beyond it the
/// table grows by doubling.
const CONNS_RESERVED_MAX: usize = 1 << 24;
/// Entries that are not worth giving back.
const ENTRIES_KEPT: usize = 4_096;

/// The sockets and the ready queue.
pub(super) struct Conns {
    entries: Vec<Entry>,
    reserved: usize,
    /// Most entries since memory was last given back.
    entries_peak: usize,
    ready: VecDeque<ConnId>,
}

impl Conns {
    /// Room for `conns_max` connections; memory that no index has reached yet is reserved, not
    /// used.
    pub(super) fn new(conns_max: usize) -> Conns {
        let reserved = conns_max.min(CONNS_RESERVED_MAX);
        Conns {
            entries: Vec::with_capacity(reserved),
            reserved,
            entries_peak: 0,
            ready: VecDeque::new(),
        }
    }

    /// Keeps a new connection's socket.
    pub(super) fn insert(&mut self, conn: ConnId, socket: TcpStream) {
        let index = conn.index as usize;
        if index >= self.entries.len() {
            self.entries.resize_with(index + 1, || Entry {
                socket: None,
                tag: 0,
            });
            self.entries_peak = self.entries_peak.max(index + 1);
        }
        let entry = &mut self.entries[index];
        // What the index had may still be there: the engine ends a life before the socket's turn to
        // close comes.
        *entry = Entry {
            socket: Some(socket),
            tag: conn.generation << flag::BITS,
        };
    }

    fn entry(&self, conn: ConnId) -> Option<&Entry> {
        let entry = self.entries.get(conn.index as usize)?;
        (entry.socket.is_some()
            && entry.tag >> flag::BITS == conn.generation << flag::BITS >> flag::BITS)
            .then_some(entry)
    }

    fn entry_mut(&mut self, conn: ConnId) -> Option<&mut Entry> {
        self.entry(conn)?;
        self.entries.get_mut(conn.index as usize)
    }

    /// The socket of a connection that lives.
    pub(super) fn socket(&self, conn: ConnId) -> Option<&TcpStream> {
        self.entry(conn)?.socket.as_ref()
    }

    /// Lets go of a connection. Closing the only descriptor of a socket takes it out of the poll as
    /// well.
    pub(super) fn remove(&mut self, conn: ConnId) -> Option<TcpStream> {
        let socket = self.entry_mut(conn)?.socket.take();
        if conn.index as usize + 1 == self.entries.len() {
            while self
                .entries
                .pop_if(|entry| entry.socket.is_none())
                .is_some()
            {}
            self.give_back();
        }
        socket
    }

    /// Gives back the memory of a crowd that has gone, and reserves address space for the next: two
    /// calls of mremap(2).
    fn give_back(&mut self) {
        if self.entries_peak > ENTRIES_KEPT && self.entries.len() <= self.entries_peak / 4 {
            self.entries.shrink_to_fit();
            self.entries
                .reserve_exact(self.reserved.saturating_sub(self.entries.len()));
            self.entries_peak = self.entries.len();
        }
    }

    /// Whether any of `flags` is set; false if the connection is gone.
    pub(super) fn has(&self, conn: ConnId, flags: u32) -> bool {
        self.entry(conn)
            .is_some_and(|entry| entry.tag & flag::MASK & flags != 0)
    }

    /// Sets flags of a connection that lives.
    pub(super) fn set(&mut self, conn: ConnId, flags: u32) {
        if let Some(entry) = self.entry_mut(conn) {
            entry.tag |= flags;
        }
    }

    /// Clears flags of a connection that lives.
    pub(super) fn clear(&mut self, conn: ConnId, flags: u32) {
        if let Some(entry) = self.entry_mut(conn) {
            entry.tag &= !flags;
        }
    }

    /// Sets `flags` and puts the connection at the end of the ready queue, once.
    pub(super) fn queue(&mut self, conn: ConnId, flags: u32) {
        if let Some(entry) = self.entry_mut(conn) {
            let queued = entry.tag & flag::QUEUED != 0;
            entry.tag |= flags | flag::QUEUED;
            if !queued {
                self.ready.push_back(conn);
            }
        }
    }

    /// The connection that has waited longest in the ready queue and still lives.
    pub(super) fn pop_ready(&mut self) -> Option<ConnId> {
        while let Some(conn) = self.ready.pop_front() {
            if self.has(conn, flag::QUEUED) {
                self.clear(conn, flag::QUEUED);
                return Some(conn);
            }
        }
        None
    }

    /// How many stand in the ready queue.
    pub(super) fn ready_len(&self) -> usize {
        self.ready.len()
    }
}

/// The token under which a connection's socket is registered.
pub(super) fn token_of(conn: ConnId) -> Token {
    Token(((conn.generation as usize) << 32) | conn.index as usize)
}

/// The connection of a token made by [`token_of`].
pub(super) fn conn_of(token: Token) -> ConnId {
    ConnId {
        index: token.0 as u32,
        generation: (token.0 >> 32) as u32,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn socket() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap()
    }

    fn id(index: u32, generation: u32) -> ConnId {
        ConnId { index, generation }
    }

    #[test]
    fn tokens_carry_the_whole_id() {
        for conn in [id(0, 0), id(7, u32::MAX), id(u32::MAX - 8, 1)] {
            assert_eq!(conn_of(token_of(conn)), conn);
        }
    }

    #[test]
    fn a_stale_id_finds_nothing() {
        let mut conns = Conns::new(4);
        conns.insert(id(2, 5), socket());
        assert!(conns.socket(id(2, 5)).is_some());
        assert!(conns.socket(id(2, 4)).is_none());
        assert!(conns.socket(id(1, 5)).is_none());
        assert!(conns.socket(id(3, 5)).is_none());
        assert!(conns.remove(id(2, 4)).is_none());
        assert!(conns.remove(id(2, 5)).is_some());
        assert!(conns.socket(id(2, 5)).is_none());
        conns.insert(id(2, 6), socket());
        conns.queue(id(2, 5), flag::FAILED);
        assert!(!conns.has(id(2, 6), flag::FAILED | flag::QUEUED));
        assert_eq!(conns.pop_ready(), None);
    }

    #[test]
    fn entries_at_the_end_go_with_their_sockets() {
        let mut conns = Conns::new(64);
        for index in 0..6 {
            conns.insert(id(index, 1), socket());
        }
        assert!(conns.remove(id(4, 1)).is_some());
        assert_eq!(conns.entries.len(), 6);
        assert!(conns.remove(id(5, 1)).is_some());
        assert_eq!(conns.entries.len(), 4);
        assert!(conns.socket(id(5, 1)).is_none() && conns.socket(id(3, 1)).is_some());
        conns.entries_peak = 4 * ENTRIES_KEPT;
        assert!(conns.remove(id(3, 1)).is_some());
        assert_eq!((conns.entries_peak, conns.entries.capacity()), (3, 64));
        conns.insert(id(3, 2), socket());
        assert!(conns.socket(id(2, 1)).is_some() && conns.socket(id(3, 2)).is_some());
    }

    #[test]
    fn large_generations_keep_their_low_bits() {
        let mut conns = Conns::new(4);
        conns.insert(id(0, u32::MAX), socket());
        assert!(conns.socket(id(0, u32::MAX)).is_some());
        assert!(conns.socket(id(0, u32::MAX - 1)).is_none());
        assert!(
            !conns.has(id(0, u32::MAX), flag::MASK),
            "no flag is set at first"
        );
    }

    #[test]
    fn queued_once_and_in_order() {
        let mut conns = Conns::new(4);
        for index in 0..3 {
            conns.insert(id(index, 1), socket());
        }
        conns.queue(id(1, 1), flag::READ_CLOSED);
        conns.queue(id(0, 1), 0);
        conns.queue(id(1, 1), flag::WRITABLE);
        conns.queue(id(2, 1), 0);
        assert!(conns.has(id(1, 1), flag::READ_CLOSED) && conns.has(id(1, 1), flag::WRITABLE));
        // A connection that goes while it waits is passed over, and so is its index's next life.
        conns.remove(id(0, 1));
        conns.insert(id(0, 2), socket());
        assert_eq!(conns.pop_ready(), Some(id(1, 1)));
        assert_eq!(conns.pop_ready(), Some(id(2, 1)));
        assert_eq!(conns.pop_ready(), None);
        conns.queue(id(1, 1), 0);
        assert_eq!(conns.pop_ready(), Some(id(1, 1)));
    }
}
