//! One connection: what it is doing, what is due to it, and the buffers of one that has bytes
//! waiting.
//!
//! Owns the phase and the facts beside it, each moved by a verb. An idle stream has no buffers: its
//! record is 24 bytes. Never reads a socket; the shard keeps those, by the same index.

use super::timers::Tick;
use crate::time::Mono;
use crate::wire::record::LastActive;
use crate::wire::response::{LAST_CHUNK, open_chunk};

/// What a connection is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The place is empty.
    Free,
    /// Between requests: nothing of the next one has arrived.
    Idle,
    /// Part of a request has arrived.
    Reading,
    /// Its request has come whole and takes long to serve: it waits for its slice of a turn, and
    /// input waits.
    Deferred,
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

/// What is true of a connection beside its phase, a bit each.
mod flag {
    /// In the queue of connections to flush.
    pub(super) const QUEUED: u16 = 1;
    /// The socket took less than was offered; it says when it takes more.
    pub(super) const BLOCKED: u16 = 1 << 1;
    /// The marks are a snapshot's: told as parts of one, not as changes.
    pub(super) const SNAPSHOT: u16 = 1 << 2;
    /// A ping is due.
    pub(super) const PING: u16 = 1 << 3;
    /// Admitted beyond the limit, to be refused politely.
    pub(super) const SURPLUS: u16 = 1 << 4;
    /// Reading was paused: its input waits for its output.
    pub(super) const PAUSED: u16 = 1 << 5;
    /// The close drains the peer's input first.
    pub(super) const LINGER: u16 = 1 << 6;
    /// The peer has closed its sending half.
    pub(super) const EOF: u16 = 1 << 7;
    /// It has been answered at least once.
    pub(super) const SERVED: u16 = 1 << 8;
    /// It may watch somebody about whom a question is under way.
    pub(super) const UNSURE: u16 = 1 << 9;
    /// A stream that vouches for its publisher: no other device's goodbye counts.
    pub(super) const HOLDS: u16 = 1 << 10;
    /// What a stream writes goes in chunks.
    pub(super) const CHUNKED: u16 = 1 << 11;
    /// Its life is over, and its place is not free yet.
    pub(super) const HELD: u16 = 1 << 15;
    /// A stream's holder beats for itself, at each ping.
    pub(super) const HOLDER: u16 = 1 << 12;
    /// It came by the operators' listener. What has become a stream is asked for nothing any more,
    /// so this is the bit of [`HOLDER`].
    pub(super) const ADMIN: u16 = HOLDER;
    /// Its holder learns to the minute when others were last active.
    pub(super) const TO_THE_MINUTE: u16 = 1 << 13;
    /// They do not learn it.
    pub(super) const NO_TIMES: u16 = 1 << 14;
}

/// Where a stream's age begins in [`Conn::turns`].
const AGE_SHIFT: u32 = 5;
/// Most missed turns that are counted.
pub const MISSED_MAX: u8 = (1 << AGE_SHIFT) - 1;

/// Nobody is at a stream's device: a bit of [`Conn::publisher`] that no slot has.
const UNATTENDED: u32 = 1 << 31;

/// A connection's record.
#[derive(Debug)]
pub struct Conn {
    pub(super) generation: u32,
    /// Bits of [`flag`].
    flags: u16,
    /// What it is doing; moved by [`Conn::go`] alone.
    phase: Phase,
    /// Of a stream. Low bits: turns in a row since its holder was last vouched for, or answered a
    /// ping. The other three: its age, in fifths of the longest life.
    turns: u8,
    /// The slot that a stream vouches for, plus one; 0: none. And [`UNATTENDED`].
    publisher: u32,
    /// The moment that matters to the phase: a deadline, or for a stream the time of its last
    /// written byte.
    pub moment: Tick,
    /// Bytes that wait, either way. None for an idle one.
    pub io: Option<Box<Io>>,
}

const _: () = assert!(size_of::<Conn>() <= 24);

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
    /// Memory that these buffers took when it was last counted.
    counted_bytes: usize,
}

/// A chunked body under way: its head, the decoder's state and what it has decoded.
#[derive(Debug, Default)]
pub struct Chunked {
    /// The request's head as received.
    pub head: Vec<u8>,
    pub decoder: crate::wire::request::ChunkDecoder,
    /// Decoded bytes.
    pub body: Vec<u8>,
    /// All of it has come, and it waits to be served.
    pub is_whole: bool,
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

    /// Bytes received of a request that is not whole.
    pub fn received_bytes(&self) -> usize {
        self.input.len()
            + self
                .chunked
                .as_ref()
                .map_or(0, |it| it.head.len() + it.body.len())
    }

    /// Memory of the buffers, in bytes.
    fn bytes(&self) -> usize {
        let chunked = self.chunked.as_ref();
        let chunked = chunked.map_or(0, |it| it.head.capacity() + it.body.capacity());
        self.input.capacity() + self.unsent.capacity() + chunked
    }

    fn is_empty(&self) -> bool {
        self.input.is_empty() && self.unsent().is_empty() && self.chunked.is_none()
    }
}

impl Conn {
    pub(super) fn free(generation: u32) -> Conn {
        Conn {
            generation,
            phase: Phase::Free,
            turns: 0,
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
        use Phase::{Closing, Deferred, Free, Idle, Lingering, Reading, Streaming, Waiting};
        match (self.phase, next) {
            (Idle, Reading | Deferred | Waiting | Streaming | Closing)
            | (Reading, Idle | Deferred | Waiting | Streaming | Closing)
            | (Deferred, Reading | Closing)
            | (Waiting, Idle | Streaming | Closing)
            | (Streaming, Closing)
            | (Closing, Lingering)
            | (Free, Idle) => {
                if next == Streaming {
                    self.put(flag::ADMIN, false);
                }
                self.phase = next;
            }
            (same, next) if same == next => {}
            (from, to) => unreachable!("a connection went from {from:?} to {to:?}"),
        }
    }

    /// Whether it ends: what has yet to come of it goes nowhere.
    pub fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Closing | Phase::Lingering)
    }

    /// The publisher that a stream vouches for, as a slot index.
    pub fn publisher(&self) -> Option<u32> {
        (self.publisher & !UNATTENDED).checked_sub(1)
    }

    /// Whether nobody is at the stream's device, as that says.
    pub fn set_unattended(&mut self, unattended: bool) {
        let word = if unattended { UNATTENDED } else { 0 };
        self.publisher = self.publisher & !UNATTENDED | word;
    }

    /// See [`Conn::set_unattended`].
    pub fn is_unattended(&self) -> bool {
        self.publisher & UNATTENDED != 0
    }

    /// Makes the stream's holder a publisher.
    pub fn set_publisher(&mut self, slot_index: u32) {
        debug_assert!(slot_index < UNATTENDED - 1, "there are fewer slots");
        self.publisher = slot_index + 1;
    }

    /// Its stream vouches for its publisher, or does no more; whether that is news.
    pub fn set_holding(&mut self, holds: bool) -> bool {
        let news = self.has(flag::HOLDS) != holds;
        self.put(flag::HOLDS, holds);
        news
    }

    /// See [`Conn::set_holding`].
    pub fn is_holding(&self) -> bool {
        self.has(flag::HOLDS)
    }

    /// The stream's holder beats for itself.
    pub fn leave_beats_to_holder(&mut self) {
        self.put(flag::HOLDER, true);
    }

    /// See [`Conn::leave_beats_to_holder`].
    pub fn beats_by_holder(&self) -> bool {
        self.has(flag::HOLDER)
    }

    /// How exactly a stream's holder learns when others were last active.
    pub fn set_last_active(&mut self, level: LastActive) {
        self.put(flag::TO_THE_MINUTE, level == LastActive::Minutes);
        self.put(flag::NO_TIMES, level == LastActive::None);
    }

    /// See [`Conn::set_last_active`].
    pub fn last_active(&self) -> LastActive {
        match (self.has(flag::TO_THE_MINUTE), self.has(flag::NO_TIMES)) {
            (_, true) => LastActive::None,
            (true, false) => LastActive::Minutes,
            (false, false) => LastActive::Exact,
        }
    }

    /// The holder's turn has come, and nothing is known of it yet.
    pub fn miss(&mut self) {
        if self.missed() < MISSED_MAX {
            self.turns += 1;
        }
    }

    /// The holder is here.
    pub fn hear(&mut self) {
        self.turns &= !MISSED_MAX;
    }

    /// Turns in a row of which nothing has come; [`MISSED_MAX`] stands for more, too.
    pub fn missed(&self) -> u8 {
        self.turns & MISSED_MAX
    }

    /// Another fifth of the longest life is over. Returns how many are.
    pub fn grow_older(&mut self) -> u8 {
        let age = (self.turns >> AGE_SHIFT) + 1;
        self.turns = self.missed() | age.min(u8::MAX >> AGE_SHIFT) << AGE_SHIFT;
        age
    }

    /// Whether it has no life: an empty place has no facts either.
    pub fn is_free(&self) -> bool {
        self.phase == Phase::Free && self.flags == 0
    }

    /// Its life is over; its place is for nobody as long as this is `on`.
    pub(super) fn hold(&mut self, on: bool) {
        self.put(flag::HELD, on);
    }

    /// Its life is over, and its place is not free yet.
    pub fn is_held(&self) -> bool {
        self.has(flag::HELD)
    }

    fn has(&self, bits: u16) -> bool {
        self.flags & bits != 0
    }

    fn put(&mut self, bits: u16, on: bool) {
        if on {
            self.flags |= bits;
        } else {
            self.flags &= !bits;
        }
    }

    /// It was admitted beyond the limit, to be refused politely.
    pub fn admit_as_surplus(&mut self) {
        self.put(flag::SURPLUS, true);
    }

    /// It came by the operators' listener.
    pub fn admit_as_admin(&mut self) {
        self.put(flag::ADMIN, true);
    }

    /// See [`Conn::admit_as_admin`]; of what is no stream.
    pub fn is_admin(&self) -> bool {
        self.phase != Phase::Streaming && self.has(flag::ADMIN)
    }

    pub fn is_surplus(&self) -> bool {
        self.has(flag::SURPLUS)
    }

    /// Its input waits for its output: its socket is read no more.
    pub fn pause(&mut self) {
        self.put(flag::PAUSED, true);
    }

    /// The input that waited is looked at again.
    pub fn unpause(&mut self) {
        self.put(flag::PAUSED, false);
    }

    pub fn is_paused(&self) -> bool {
        self.has(flag::PAUSED)
    }

    /// The peer has closed its sending half.
    pub fn hang_up(&mut self) {
        self.put(flag::EOF, true);
    }

    pub fn has_hung_up(&self) -> bool {
        self.has(flag::EOF)
    }

    /// A request of it has been answered.
    pub fn serve(&mut self) {
        self.put(flag::SERVED, true);
    }

    pub fn was_served(&self) -> bool {
        self.has(flag::SERVED)
    }

    /// When it is closed, the peer's input is drained first.
    pub fn linger(&mut self) {
        self.put(flag::LINGER, true);
    }

    /// Whether its close drains the peer's input first: one that has said its last needs no drain.
    pub fn lingers(&self) -> bool {
        self.has(flag::LINGER) && !self.has(flag::EOF)
    }

    /// From here on its marks are told as parts of a snapshot.
    pub fn begin_snapshot(&mut self) {
        self.put(flag::SNAPSHOT, true);
    }

    /// The snapshot is told: from here on its marks are changes.
    pub fn end_snapshot(&mut self) {
        self.put(flag::SNAPSHOT, false);
    }

    pub fn is_told_snapshot(&self) -> bool {
        self.has(flag::SNAPSHOT)
    }

    /// It has been silent for long: a ping is due.
    pub fn owe_ping(&mut self) {
        self.put(flag::PING, true);
    }

    /// Whether a ping was due; it is no more.
    pub fn take_ping(&mut self) -> bool {
        let due = self.has(flag::PING);
        self.put(flag::PING, false);
        due
    }

    /// It may watch somebody about whom a question is under way, or watches nobody such.
    pub fn set_unsure(&mut self, unsure: bool) {
        self.put(flag::UNSURE, unsure);
    }

    pub fn is_unsure(&self) -> bool {
        self.has(flag::UNSURE)
    }

    /// Nothing but unsent bytes is owed to it any more.
    pub fn owe_nothing_new(&mut self) {
        self.put(flag::SNAPSHOT | flag::PING, false);
    }

    /// What it writes from here on goes in chunks.
    pub fn begin_chunks(&mut self) {
        self.put(flag::CHUNKED, true);
    }

    /// See [`Conn::begin_chunks`].
    pub fn is_chunked(&self) -> bool {
        self.has(flag::CHUNKED)
    }

    /// Appends what a stream says outside of its marks, in a chunk of its own if it has chunks.
    pub fn say(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let chunked = self.is_chunked();
        let out = &mut self.io().unsent;
        let chunk = chunked.then(|| open_chunk(out));
        write(out);
        if let Some(chunk) = chunk {
            chunk.close(out);
        }
    }

    /// Appends the end of a stream's body: who reads knows that nothing is missing.
    pub fn end_body(&mut self) {
        if self.is_chunked() {
            self.io().unsent.extend_from_slice(LAST_CHUNK);
        }
    }

    /// Whether something is to be written to it, marks aside.
    pub fn is_owed(&self) -> bool {
        self.unsent_bytes() > 0 || self.has(flag::SNAPSHOT | flag::PING)
    }

    /// The socket took less than was offered.
    pub(super) fn block(&mut self) {
        self.put(flag::BLOCKED, true);
    }

    /// The socket takes bytes again.
    pub fn unblock(&mut self) {
        self.put(flag::BLOCKED, false);
    }

    /// Whether its socket takes nothing now.
    pub fn is_blocked(&self) -> bool {
        self.has(flag::BLOCKED)
    }

    /// Whether it will be flushed: it is queued, or is when its socket takes bytes again.
    pub fn awaits_flush(&self) -> bool {
        self.has(flag::QUEUED | flag::BLOCKED)
    }

    pub(super) fn enqueue(&mut self) {
        self.put(flag::QUEUED, true);
    }

    /// Whether it was queued; it is no more.
    pub(super) fn dequeue(&mut self) -> bool {
        let queued = self.has(flag::QUEUED);
        self.put(flag::QUEUED, false);
        queued
    }

    /// The buffers, made if need be.
    pub fn io(&mut self) -> &mut Io {
        self.io.get_or_insert_default()
    }

    /// Bytes still to send.
    pub fn unsent_bytes(&self) -> usize {
        self.io.as_ref().map_or(0, |io| io.unsent().len())
    }

    /// Drops buffers that hold nothing; not before [`Conn::count`] if they were counted.
    pub fn tidy(&mut self) {
        let io = self.io.as_mut().filter(|io| io.is_empty());
        match io {
            Some(io) if io.counted_bytes > 0 => {
                io.input = Vec::new();
                io.unsent = Vec::new();
                io.sent_bytes = 0;
            }
            Some(_) => self.io = None,
            None => {}
        }
    }

    /// Counts the memory of its buffers anew, in bytes. Returns what it was when it was last
    /// counted, and what it is.
    pub fn count(&mut self) -> (usize, usize) {
        let Some(io) = &mut self.io else {
            return (0, 0);
        };
        let before = std::mem::take(&mut io.counted_bytes);
        if io.is_empty() {
            self.io = None;
            return (before, 0);
        }
        io.counted_bytes = io.bytes();
        (before, io.counted_bytes)
    }

    /// Memory of its buffers when it was last counted, in bytes.
    pub fn counted_bytes(&self) -> usize {
        self.io.as_ref().map_or(0, |io| io.counted_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_buffers_are_dropped() {
        let mut conn = Conn::free(0);
        conn.go(Phase::Idle);
        conn.io().unsent.extend_from_slice(b"ab");
        conn.io().sent_bytes = 1;
        conn.tidy();
        assert_eq!(conn.unsent_bytes(), 1);
        conn.io().sent_bytes = 2;
        conn.tidy();
        assert!(conn.io.is_none());
    }

    #[test]
    fn a_place_is_free_of_facts_too() {
        let mut conn = Conn::free(7);
        assert!(conn.is_free());
        conn.pause();
        assert!(!conn.is_free() && conn.is_paused());
        conn.unpause();
        assert!(conn.is_free());
    }

    #[test]
    fn age_and_missed_turns_share_a_byte() {
        let mut conn = Conn::free(0);
        for _ in 0..40 {
            conn.miss();
        }
        assert_eq!((conn.missed(), conn.grow_older()), (MISSED_MAX, 1));
        conn.hear();
        conn.miss();
        assert_eq!((conn.missed(), conn.grow_older()), (1, 2));
        let ages: Vec<u8> = (0..8).map(|_| conn.grow_older()).collect();
        assert_eq!(ages, [3, 4, 5, 6, 7, 8, 8, 8]);
        assert_eq!(conn.missed(), 1);
    }

    #[test]
    fn what_is_owed() {
        let mut conn = Conn::free(0);
        assert!(!conn.is_owed() && !conn.take_ping());
        conn.owe_ping();
        assert!(conn.is_owed() && conn.take_ping() && !conn.is_owed());
        conn.begin_snapshot();
        assert!(conn.is_owed() && conn.is_told_snapshot());
        conn.owe_nothing_new();
        assert!(!conn.is_owed() && !conn.is_told_snapshot());
        conn.io().unsent.push(b'a');
        assert!(conn.is_owed());
    }

    #[test]
    fn one_that_has_hung_up_is_not_lingered_for() {
        let mut conn = Conn::free(0);
        assert!(!conn.lingers());
        conn.linger();
        assert!(conn.lingers());
        conn.hang_up();
        assert!(!conn.lingers());
    }
}
