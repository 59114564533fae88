//! The connection table: a slab of small fixed records with generations.
//!
//! Owns a connection's phase and the buffers of one that has bytes waiting. An idle stream has
//! none: its record is 24 bytes. Never reads a socket; the shard keeps those, by the same index.
//! The lowest free place is used first and free places at the end are cut off, so that what a crowd
//! took is given back once it has gone.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::time::Mono;

use super::give_back;
use super::timers::Tick;

/// Names one life of one connection: `index` is dense and reused, `generation` tells the lives
/// apart, so that a late event finds nobody rather than a stranger.
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
    /// Everything is sent and our half is shut: input is thrown away until the peer closes or the
    /// linger time is over, so that a peer still sending reads the refusal instead of a reset (RFC
    /// 9112 9.6).
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
    /// The moment that matters to the phase: a deadline, or for a stream the time of its last
    /// written byte.
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

    /// Drops the sent bytes in front once they are half of all, so that each byte is moved once at
    /// most.
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
    fn free(generation: u32) -> Conn {
        Conn {
            generation,
            phase: Phase::Free,
            flags: 0,
            publisher: 0,
            moment: Tick::default(),
            io: None,
        }
    }

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
    /// Free places, lowest first, and places that have been cut off since they were freed. The
    /// table grows only when this is empty, so no place stands in it twice.
    free: BinaryHeap<Reverse<u32>>,
    live: usize,
    /// The first generation of a place that is made (again): see [`first_generation`].
    generation_floor: u32,
}

impl Conns {
    /// A new connection, in phase [`Phase::Idle`].
    pub fn insert(&mut self) -> ConnId {
        let places = self.places();
        let index = match self.free.pop() {
            Some(Reverse(index)) if index < places => index,
            _ => {
                // The lowest has been cut off, so all have.
                self.free.clear();
                self.table.push(Conn::free(self.generation_floor));
                places
            }
        };
        self.live += 1;
        let conn = &mut self.table[index as usize];
        conn.go(Phase::Idle);
        ConnId {
            index,
            generation: conn.generation,
        }
    }

    /// Ends a life; its place is free for the next, or cut off with the free places at the end.
    /// True if places were cut off.
    pub fn remove(&mut self, id: ConnId) -> bool {
        let Some(conn) = self.get_mut(id) else {
            return false;
        };
        *conn = Conn::free(conn.generation.wrapping_add(1));
        self.live -= 1;
        if id.index + 1 < self.places() {
            self.free.push(Reverse(id.index));
            return false;
        }
        while let Some(conn) = self.table.pop_if(|conn| conn.phase == Phase::Free) {
            self.generation_floor = first_generation(self.generation_floor, conn.generation);
        }
        give_back(&mut self.table);
        self.forget_cut_off();
        true
    }

    /// Drops places that have been cut off from `free` once they are most of it: as many lives
    /// ended since as are looked at.
    fn forget_cut_off(&mut self) {
        let (places, free) = (self.places(), self.table.len() - self.live);
        if self.free.len() > 2 * free {
            self.free.retain(|Reverse(index)| *index < places);
            let mut kept = std::mem::take(&mut self.free).into_vec();
            give_back(&mut kept);
            self.free = kept.into();
        }
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
        self.live
    }

    /// No live connection.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Places, live or free: the bound of [`Conns::id_at`].
    pub fn places(&self) -> u32 {
        self.table.len() as u32
    }
}

/// The generation at which a place that was cut off at `cut` may begin again, if others may at
/// `floor`: one that is later than all its lives, so that a stale [`ConnId`] still finds nobody.
/// Later is meant around the wrap of a u32, and of its low 24 bits, which are all that the table of
/// sockets keeps.
fn first_generation(floor: u32, cut: u32) -> u32 {
    const LOW_BITS: u32 = (1 << 24) - 1;
    let ahead = cut.wrapping_sub(floor);
    if ahead < 1 << 31 {
        return cut;
    }
    let low_ahead = ahead & LOW_BITS;
    floor.wrapping_add(if low_ahead < 1 << 23 { low_ahead } else { 0 })
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
        assert_eq!(
            (second.index, second.generation),
            (first.index, first.generation + 1)
        );
        assert!(conns.get(first).is_none());
        conns.remove(first);
        assert_eq!(
            (conns.len(), conns.get(second).unwrap().publisher()),
            (1, None)
        );
    }

    #[test]
    fn a_place_that_was_cut_off_begins_after_all_its_lives() {
        let mut conns = Conns::default();
        let ids: Vec<ConnId> = (0..3).map(|_| conns.insert()).collect();
        // The highest place has three lives, the others one.
        assert!(conns.remove(ids[2]));
        let second = conns.insert();
        assert_eq!((second.index, second.generation), (2, 1));
        assert!(conns.remove(second));
        assert!(!conns.remove(ids[0]));
        assert!(conns.remove(ids[1]));
        assert_eq!((conns.places(), conns.len()), (0, 0));
        for (index, generation) in [(0, 2), (1, 2), (2, 2)] {
            assert_eq!(conns.insert(), ConnId { index, generation });
        }
        for stale in ids.into_iter().chain([second]) {
            assert!(conns.get(stale).is_none(), "{stale:?}");
        }
    }

    #[test]
    fn generations_go_on_around_their_wraps() {
        assert_eq!(first_generation(5, 7), 7);
        assert_eq!(first_generation(7, 5), 7);
        assert_eq!(first_generation(u32::MAX, 1), 1);
        assert_eq!(first_generation(1, u32::MAX), 1);
        // Far ahead, but a table that keeps 24 bits would take the next lives for the last ones.
        assert_eq!(first_generation((1 << 24) + 1, 9), (1 << 24) + 9);
        assert_eq!(first_generation((1 << 24) + 9, 1), (1 << 24) + 9);
    }

    /// The lowest place is used first; the table ends with the last who lives, and its memory with
    /// it.
    #[test]
    fn what_a_crowd_took_is_given_back() {
        let mut conns = Conns::default();
        let ids: Vec<ConnId> = (0..100_000).map(|_| conns.insert()).collect();
        let stays = ids[1_000];
        for id in ids.iter().filter(|id| **id != stays) {
            conns.remove(*id);
        }
        assert_eq!(
            (conns.len(), conns.places(), conns.free.len()),
            (1, 1_001, 1_000)
        );
        assert!(conns.table.capacity() <= 4_096 && conns.free.capacity() <= 4_096);
        assert_eq!(conns.insert().index, 0);
        assert!(conns.get(stays).is_some());
        let last = conns.insert();
        assert!(conns.remove(stays));
        assert_eq!((conns.len(), conns.places(), last.index), (2, 2, 1));
        assert_eq!([conns.insert().index, conns.insert().index], [2, 3]);
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
