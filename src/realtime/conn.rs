//! The connection table: a slab of small fixed records with generations.
//!
//! Owns a connection's phase and the buffers of one that has bytes waiting. An idle stream has none: its record is 24 bytes.
//! Never reads a socket; the shard keeps those, by the same index.

use crate::time::Mono;

use super::timers::Tick;

/// Names one life of one connection: `index` is dense and reused, `generation` tells the lives apart, so that a late event finds
/// nobody rather than a stranger.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ConnId {
    /// Place in the table.
    pub index: u32,
    /// Which life of that place.
    pub generation: u32,
}

/// What a connection is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The place is empty.
    Free,
    /// Between requests: nothing of the next one has arrived.
    Idle,
    /// Part of a request has arrived.
    Reading,
    /// Its request is with another shard; input waits.
    Waiting,
    /// It has become a stream.
    Streaming,
    /// What is unsent goes out, then it is closed; input is thrown away.
    Closing,
    /// Everything is sent and our half is shut: input is thrown away until the peer closes or the linger time is over, so that
    /// a peer still sending reads the refusal instead of a reset (RFC 9112 9.6).
    Lingering,
}

/// Bits of [`Conn::flags`].
pub mod flag {
    /// In the queue of connections to flush.
    pub const QUEUED: u16 = 1;
    /// The socket took less than was offered; it says when it takes more.
    pub const BLOCKED: u16 = 1 << 1;
    /// The marks are a snapshot's: told as parts of one, not as changes.
    pub const SNAPSHOT: u16 = 1 << 2;
    /// A keep-alive comment is due.
    pub const COMMENT: u16 = 1 << 3;
    /// Admitted beyond the limit, to be refused politely.
    pub const SURPLUS: u16 = 1 << 4;
    /// Reading was paused: its input waits for its output.
    pub const PAUSED: u16 = 1 << 5;
    /// The close drains the peer's input first.
    pub const LINGER: u16 = 1 << 6;
    /// The peer has closed its sending half.
    pub const EOF: u16 = 1 << 7;
    /// It has been answered at least once.
    pub const SERVED: u16 = 1 << 8;
    /// It may watch somebody about whom a question is under way.
    pub const UNSURE: u16 = 1 << 9;
}

/// A connection's record.
#[derive(Debug)]
pub struct Conn {
    generation: u32,
    /// Bits of [`flag`].
    pub flags: u16,
    /// What it is doing; moved by [`Conn::go`] alone.
    phase: Phase,
    /// The slot that a stream vouches for, plus one; 0: none.
    publisher: u32,
    /// The moment that matters to the phase: a deadline, or for a stream the time of its last written byte.
    pub moment: Tick,
    /// Bytes that wait, either way. None for an idle one.
    pub io: Option<Box<Io>>,
}

/// The buffers of a connection with bytes waiting.
#[derive(Debug, Default)]
pub struct Io {
    /// Received and not used yet.
    pub input: Vec<u8>,
    /// Bytes of `input` below which parsing again is pointless.
    pub need_bytes: usize,
    /// A chunked body under way.
    pub chunked: Option<Box<Chunked>>,
    /// `100 Continue` has been sent for the request under way.
    pub continued: bool,
    /// To send; the first `sent_bytes` are gone already.
    pub unsent: Vec<u8>,
    /// See `unsent`.
    pub sent_bytes: usize,
    /// Since when the socket has taken nothing while bytes wait.
    pub stalled_since: Option<Mono>,
}

/// A chunked body under way: its head, the decoder's state and what it has decoded.
#[derive(Debug, Default)]
pub struct Chunked {
    /// The request's head as received.
    pub head: Vec<u8>,
    /// State.
    pub decoder: crate::wire::request::ChunkDecoder,
    /// Decoded bytes.
    pub body: Vec<u8>,
}

impl Io {
    /// Bytes still to send.
    pub fn unsent(&self) -> &[u8] {
        &self.unsent[self.sent_bytes..]
    }

    /// Drops the sent bytes in front once they are half of all, so that each byte is moved once at most.
    pub fn forget_sent(&mut self) {
        if self.sent_bytes * 2 >= self.unsent.len() {
            self.unsent.drain(..self.sent_bytes);
            self.sent_bytes = 0;
        }
    }

    fn is_empty(&self) -> bool {
        self.input.is_empty() && self.unsent().is_empty() && self.chunked.is_none()
    }
}

impl Conn {
    /// What it is doing.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Moves it to another phase.
    pub fn go(&mut self, next: Phase) {
        use Phase::{Closing, Free, Idle, Lingering, Reading, Streaming, Waiting};
        match (self.phase, next) {
            (Idle, Reading | Waiting | Streaming | Closing)
            | (Reading, Idle | Waiting | Streaming | Closing)
            | (Waiting, Idle | Closing)
            | (Streaming, Closing)
            | (Closing, Lingering)
            | (Free, Idle) => self.phase = next,
            (same, next) if same == next => {}
            (from, to) => unreachable!("a connection went from {from:?} to {to:?}"),
        }
    }

    /// The publisher that a stream vouches for, as a slot index.
    pub fn publisher(&self) -> Option<u32> {
        self.publisher.checked_sub(1)
    }

    /// Makes the stream's holder a publisher.
    pub fn set_publisher(&mut self, slot_index: u32) {
        self.publisher = slot_index + 1;
    }

    /// Whether `bits` of [`flag`] are all set.
    pub fn has(&self, bits: u16) -> bool {
        self.flags & bits == bits
    }

    /// Sets or clears `bits`.
    pub fn put(&mut self, bits: u16, on: bool) {
        if on {
            self.flags |= bits;
        } else {
            self.flags &= !bits;
        }
    }

    /// The buffers, made if need be.
    pub fn io(&mut self) -> &mut Io {
        self.io.get_or_insert_default()
    }

    /// Bytes still to send.
    pub fn unsent_bytes(&self) -> usize {
        self.io.as_ref().map_or(0, |io| io.unsent().len())
    }

    /// Drops buffers that hold nothing.
    pub fn tidy(&mut self) {
        if self.io.as_ref().is_some_and(|io| io.is_empty()) {
            self.io = None;
        }
    }
}

/// The table.
#[derive(Debug, Default)]
pub struct Conns {
    table: Vec<Conn>,
    free: Vec<u32>,
}

impl Conns {
    /// A new connection, in phase [`Phase::Idle`].
    pub fn insert(&mut self) -> ConnId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.table.push(Conn {
                generation: 0,
                phase: Phase::Free,
                flags: 0,
                publisher: 0,
                moment: Tick::default(),
                io: None,
            });
            (self.table.len() - 1) as u32
        });
        let conn = &mut self.table[index as usize];
        conn.go(Phase::Idle);
        ConnId {
            index,
            generation: conn.generation,
        }
    }

    /// Ends a life; its place is free for the next.
    pub fn remove(&mut self, id: ConnId) {
        let Some(conn) = self.get_mut(id) else { return };
        let generation = conn.generation.wrapping_add(1);
        *conn = Conn {
            generation,
            phase: Phase::Free,
            flags: 0,
            publisher: 0,
            moment: Tick::default(),
            io: None,
        };
        self.free.push(id.index);
    }

    /// The connection, if this life of it goes on.
    pub fn get(&self, id: ConnId) -> Option<&Conn> {
        self.table
            .get(id.index as usize)
            .filter(|conn| conn.generation == id.generation && conn.phase != Phase::Free)
    }

    /// The connection, if this life of it goes on.
    pub fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.table
            .get_mut(id.index as usize)
            .filter(|conn| conn.generation == id.generation && conn.phase != Phase::Free)
    }

    /// The connection at an index that the caller knows to be live.
    pub fn at(&mut self, index: u32) -> &mut Conn {
        &mut self.table[index as usize]
    }

    /// The id of the life at `index`, if there is one.
    pub fn id_at(&self, index: u32) -> Option<ConnId> {
        let conn = self.table.get(index as usize)?;
        (conn.phase != Phase::Free).then_some(ConnId {
            index,
            generation: conn.generation,
        })
    }

    /// Live connections.
    pub fn len(&self) -> usize {
        self.table.len() - self.free.len()
    }

    /// No live connection.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Places, live or free: the bound of [`Conns::id_at`]. It never shrinks.
    pub fn places(&self) -> u32 {
        self.table.len() as u32
    }
}

const _: () = assert!(size_of::<Conn>() <= 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_id_finds_nobody() {
        let mut conns = Conns::default();
        let first = conns.insert();
        conns.get_mut(first).unwrap().set_publisher(0);
        conns.remove(first);
        assert!(conns.get(first).is_none() && conns.is_empty());
        let second = conns.insert();
        assert_eq!((second.index, second.generation), (first.index, first.generation + 1));
        assert!(conns.get(first).is_none());
        conns.remove(first);
        assert_eq!((conns.len(), conns.get(second).unwrap().publisher()), (1, None));
    }

    #[test]
    fn empty_buffers_are_dropped() {
        let mut conns = Conns::default();
        let id = conns.insert();
        let conn = conns.get_mut(id).unwrap();
        conn.io().unsent.extend_from_slice(b"ab");
        conn.io().sent_bytes = 1;
        conn.tidy();
        assert_eq!(conn.unsent_bytes(), 1);
        conn.io().sent_bytes = 2;
        conn.tidy();
        assert!(conn.io.is_none());
    }
}
