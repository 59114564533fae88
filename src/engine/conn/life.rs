//! The lives of a shard's connections, from accept to the last byte.
//!
//! Owns the table of connections, their timers, the queue of those to flush, their watches, whom
//! their streams hold, the requests that wait for another shard, and who is to be closed or read
//! again. A connection changes its phase by a verb of this type alone, which keeps all of these in
//! step. Never reads what a peer said, never decides what it is answered, never looks at a
//! publisher's state.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use super::addresses::{Addresses, Client, CountsFor};
use super::pending::Pending;
use super::permits::{Origin, Permit, Permits, Tag};
use super::readers::{Reader, Readers};
use crate::auth::LastActive;
use crate::engine::calls::caller::NewPermit;
use crate::engine::calls::served::Waits;
use crate::engine::operators::Entrance;
use crate::engine::settings::{OUTBOX_BYTES_FLOOR, SURPLUS_CONNS, SURPLUS_HEARING_MS, Settings};
use crate::metrics::{Counter, Counters};
use crate::presence::Presence;
use crate::realtime::outbox::FlushQueue;
use crate::realtime::timers::Timers;
use crate::realtime::watches::Watches;
use crate::realtime::{Conn, ConnId, ConnTable, Phase};
use crate::slot::Slot;
use crate::time::Mono;

/// Most room in bytes that one answer leaves for the next. A longer one takes longer to make than
/// to allocate for.
const SCRATCH_BYTES_MAX: usize = 16_384;

/// Room for connections whose requests wait that is not worth giving back.
const DEFERRED_KEPT: usize = 1_024;

/// A connection to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Close {
    pub conn: ConnId,
    pub how: CloseHow,
}

/// How a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseHow {
    /// The engine has forgotten it; drop the socket.
    Close,
    /// The same of one whose peer does not read: what it has not read is thrown away with it.
    Reset,
    /// Shut down our sending half and go on reading into the engine, until it says Close.
    ShutdownWrite,
}

/// The bytes that wait for the socket's word on how many of them it took.
#[derive(Clone, Copy)]
pub(super) struct Flushing {
    pub(super) conn: ConnId,
    /// They are in the buffer that all share, not in the connection's own.
    pub(super) shared: bool,
    pub(super) offered_bytes: usize,
}

/// The connections of a shard.
pub(in crate::engine) struct Conns {
    pub(super) settings: Arc<Settings>,
    /// Where it is counted whom streams hold.
    pub(super) presence: Arc<Presence>,
    /// Whose streams have begun or ended; None: nobody asks.
    held: Option<Vec<Slot>>,
    pub(super) table: ConnTable,
    pub(super) timers: Timers,
    pub(super) queue: FlushQueue,
    pub(super) permits: Permits,
    addresses: Addresses,
    readers: Readers,
    streams: usize,
    /// The flush that waits for [`Conns::wrote`].
    pub(super) flushing: Option<Flushing>,
    /// Requests that wait for another shard, by connection.
    parked: HashMap<u32, Pending, foldhash::fast::RandomState>,
    /// Those whose whole requests wait for a slice of a turn, and some that have gone meanwhile.
    deferred: VecDeque<ConnId>,
    closes: VecDeque<Close>,
    resumes: VecDeque<ConnId>,
    /// Memory of all connections' buffers as last counted, in bytes.
    buffered_bytes: usize,
    /// Room for the body of an answer.
    scratch: Vec<u8>,
    /// Whom streams watch. A connection that ends takes its own out.
    pub(in crate::engine) watches: Watches,
}

impl Conns {
    pub(in crate::engine) fn new(
        settings: Arc<Settings>,
        presence: Arc<Presence>,
        now: Mono,
    ) -> Conns {
        Conns {
            readers: Readers::new(settings.stream_life_ms),
            settings,
            presence,
            held: None,
            table: ConnTable::default(),
            timers: Timers::new(now),
            queue: FlushQueue::default(),
            permits: Permits::default(),
            addresses: Addresses::default(),
            streams: 0,
            flushing: None,
            parked: HashMap::default(),
            deferred: VecDeque::new(),
            closes: VecDeque::new(),
            resumes: VecDeque::new(),
            buffered_bytes: 0,
            scratch: Vec::new(),
            watches: Watches::default(),
        }
    }

    /// An empty buffer for the body of an answer, with the room that others took before.
    pub(in crate::engine) fn scratch(&mut self) -> Vec<u8> {
        let mut room = std::mem::take(&mut self.scratch);
        room.clear();
        room
    }

    /// Keeps the room of a body for [`Conns::scratch`], unless it is uncommonly much.
    pub(in crate::engine) fn give_back(&mut self, room: Vec<u8>) {
        if self.scratch.capacity() == 0 && room.capacity() <= SCRATCH_BYTES_MAX {
            self.scratch = room;
        }
    }

    /// Other settings count from here on.
    pub(in crate::engine) fn take_settings(&mut self, settings: Arc<Settings>) {
        self.settings = settings;
    }

    /// Counts the memory of a connection's buffers anew: after each call that may have changed it.
    pub(in crate::engine) fn count(&mut self, id: ConnId) {
        if let Some(conn) = self.table.get_mut(id) {
            let (before, bytes) = conn.count();
            self.buffered_bytes = self.buffered_bytes - before + bytes;
        }
    }

    /// Memory of all connections' buffers, in bytes.
    pub(in crate::engine) fn buffered_bytes(&self) -> usize {
        self.buffered_bytes
    }

    /// Whether buffers take as much as they may.
    pub(in crate::engine) fn is_crowded(&self) -> bool {
        self.buffered_bytes >= self.settings.buffer_bytes_max
    }

    /// Bytes that may wait for one connection's socket now.
    pub(in crate::engine) fn outbox_bytes_max(&self) -> usize {
        match self.is_crowded() {
            true => OUTBOX_BYTES_FLOOR,
            false => self.settings.outbox_bytes_max,
        }
    }

    /// One was accepted, by this listener, from this address: when it came, and now. None: more
    /// than can even be refused politely.
    pub(in crate::engine) fn accept(
        &mut self,
        entrance: Entrance,
        address: CountsFor,
        [came_at, now]: [Mono; 2],
        counters: &mut Counters,
    ) -> Option<ConnId> {
        let crowded = self.table.len() >= self.settings.conns_max;
        if crowded {
            counters.add(Counter::LimitConns, 1);
            if self.table.len() >= self.settings.conns_max + SURPLUS_CONNS {
                return None;
            }
        }
        let many = self.has_enough(address);
        if many {
            counters.add(Counter::LimitConnsPerAddress, 1);
            if self.addresses.surplus() >= SURPLUS_CONNS {
                return None;
            }
        }
        let surplus = crowded || many;
        counters.add(Counter::ConnsAccepted, 1);
        let id = self.table.insert();
        match many {
            true => self.addresses.enter_surplus(id.index),
            false => self.addresses.enter(id.index, address),
        }
        let request_ms = self.settings.request_deadline_ms;
        // A handshake is part of the first request's time. Whoever is refused is heard in any case.
        let mut deadline = self.timers.tick_in(came_at, request_ms);
        if surplus {
            deadline = self.timers.tick_in(now, request_ms.min(SURPLUS_HEARING_MS));
            self.table.at(id.index).admit_as_surplus();
        }
        if entrance == Entrance::Admin {
            self.table.at(id.index).admit_as_admin();
        }
        self.table.at(id.index).moment = deadline;
        self.timers.set(id.index, deadline);
        Some(id)
    }

    /// Whether an address has as many connections as one may.
    pub(in crate::engine) fn has_enough(&self, address: CountsFor) -> bool {
        match address {
            CountsFor::Exempt | CountsFor::Proxy => false,
            CountsFor::Client(client) => {
                self.addresses.conns(client) >= self.settings.conns_per_address_max()
            }
        }
    }

    /// Whether a proxy has it, whose word of its clients is taken.
    pub(in crate::engine) fn is_proxy(&self, id: ConnId) -> bool {
        self.addresses.is_proxy(id.index)
    }

    /// Whether it is one too many for its address.
    pub(in crate::engine) fn is_one_too_many(&self, id: ConnId) -> bool {
        self.addresses.is_surplus(id.index)
    }

    /// It is the stream of this client of a proxy from here on.
    pub(in crate::engine) fn count_for(&mut self, index: u32, address: CountsFor) {
        self.addresses.enter(index, address);
    }

    /// Something of a request has come to one that was idle.
    pub(in crate::engine) fn request_begins(&mut self, index: u32, now: Mono) {
        let conn = self.table.at(index);
        conn.go(Phase::Reading);
        // The first request's time runs from accept, whatever arrives; a surplus connection's short
        // one was for its first byte.
        if conn.was_served() || conn.is_surplus() {
            let deadline = self.timers.tick_in(now, self.settings.request_deadline_ms);
            conn.moment = deadline;
            self.timers.set_sooner(index, deadline);
        }
    }

    /// Its request has been answered, and it may ask again.
    pub(in crate::engine) fn request_ends(&mut self, index: u32, now: Mono) {
        let idle = self.timers.tick_in(now, self.settings.keep_alive_idle_ms);
        let conn = self.table.at(index);
        conn.go(Phase::Idle);
        conn.moment = idle;
        self.look_at(index, idle);
        self.queue_if_due(index, now);
    }

    /// Its request has come whole, and waits for a slice of a turn; not for longer than a request
    /// may take to come.
    pub(in crate::engine) fn defer(&mut self, id: ConnId, now: Mono) {
        let deadline = self.timers.tick_in(now, self.settings.request_deadline_ms);
        let conn = self.table.at(id.index);
        conn.go(Phase::Deferred);
        conn.moment = deadline;
        self.look_at(id.index, deadline);
        self.deferred.push_back(id);
    }

    /// The one whose request has waited longest for its slice.
    pub(in crate::engine) fn next_deferred(&mut self) -> Option<ConnId> {
        while let Some(id) = self.deferred.pop_front() {
            if self.is_deferred(id) {
                return Some(id);
            }
        }
        self.deferred.shrink_to(DEFERRED_KEPT);
        None
    }

    fn is_deferred(&self, id: ConnId) -> bool {
        let conn = self.table.get(id);
        conn.is_some_and(|conn| conn.phase() == Phase::Deferred)
    }

    /// Whether requests wait for their slices.
    pub(in crate::engine) fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    /// Its request is served now. False: it waits no more.
    pub(in crate::engine) fn take_up(&mut self, id: ConnId) -> bool {
        let waits = self.is_deferred(id);
        if waits {
            self.table.at(id.index).go(Phase::Reading);
        }
        waits
    }

    /// Its request waits for another shard until then.
    pub(in crate::engine) fn park(&mut self, index: u32, pending: Pending, until: Mono) {
        let deadline = self.timers.tick_at(until);
        let conn = self.table.at(index);
        conn.go(Phase::Waiting);
        conn.moment = deadline;
        self.look_at(index, deadline);
        self.parked.insert(index, pending);
    }

    /// The request that waits on it, which is to be answered now. None: whoever waited is gone, and
    /// another may be in its place.
    pub(in crate::engine) fn unpark(&mut self, id: ConnId) -> Option<Pending> {
        let waits = self
            .table
            .get(id)
            .is_some_and(|conn| conn.phase() == Phase::Waiting);
        waits.then(|| self.parked.remove(&id.index)).flatten()
    }

    /// What the request that waits on it waits for, if that is errands.
    pub(in crate::engine) fn waits(&mut self, id: ConnId) -> Option<&mut Waits> {
        self.table.get(id)?;
        self.parked.get_mut(&id.index)?.waits.as_deref_mut()
    }

    /// What is said to the request that waits on it if no answer comes.
    pub(in crate::engine) fn unanswered(&self, id: ConnId) -> Option<&'static str> {
        self.table.get(id)?;
        Some(self.parked.get(&id.index)?.unanswered)
    }

    /// It has become a stream; its watches stand, and are told as a snapshot.
    pub(in crate::engine) fn stream_begins(
        &mut self,
        index: u32,
        unsure: bool,
        permit: Option<NewPermit>,
        now: Mono,
    ) {
        let opened = self.timers.tick_at(now);
        let kept = permit.map(|new| self.kept(new));
        self.permits.set(index, kept);
        let conn = self.table.at(index);
        conn.go(Phase::Streaming);
        conn.moment = opened;
        conn.serve();
        conn.unpause();
        conn.begin_snapshot();
        conn.set_unsure(unsure);
        conn.set_last_active(permit.map_or(LastActive::Exact, |new| new.last_active));
        conn.io().input = Vec::new();
        self.streams += 1;
        let look = self.timers.tick_in(now, self.keep_alive_ms(index));
        self.look_at(index, look);
        self.queue_if_due(index, now);
    }

    /// By what name a stream's client goes. False: it is one name too many, and is not kept.
    pub(in crate::engine) fn note_reader(
        &mut self,
        index: u32,
        name: Option<&str>,
        now: Mono,
    ) -> bool {
        self.readers.enter(index, name, now)
    }

    /// Who reads the stream at a place.
    pub(in crate::engine) fn reader(&self, index: u32, now: Mono) -> Reader<'_> {
        self.readers.of(index, now)
    }

    /// For which client the connection at a place counts, if anybody says for which.
    pub(in crate::engine) fn client(&self, index: u32) -> Option<Client> {
        self.addresses.client(index)
    }

    fn kept(&self, new: NewPermit) -> Permit {
        Permit::new(self.timers.tick_at(new.until), new.origin)
    }

    /// A stream lives by another token from here on.
    pub(in crate::engine) fn renew(&mut self, index: u32, permit: NewPermit) {
        let kept = self.kept(permit);
        self.permits.set(index, Some(kept));
        self.timers.set_sooner(index, kept.until);
        let conn = self.table.at(index);
        conn.set_last_active(permit.last_active);
    }

    /// A stream's publisher is held from here on, until [`Conns::release`] or its end: the goodbye
    /// of another device does not count. One that does already goes on.
    pub(in crate::engine) fn hold(&mut self, index: u32) {
        let conn = self.table.at(index);
        if let Some(slot) = conn.publisher()
            && conn.set_holding(true)
        {
            self.presence.hold(Slot::new(slot));
            self.held_news(slot);
        }
    }

    /// A stream's holder is here: its publisher is held again, if it was not any more.
    pub(in crate::engine) fn hear(&mut self, index: u32) {
        self.table.at(index).hear();
        self.hold(index);
    }

    /// A stream's publisher is held by it no more.
    pub(in crate::engine) fn release(&mut self, index: u32) {
        let conn = self.table.at(index);
        if let Some(slot) = conn.publisher()
            && conn.set_holding(false)
        {
            self.presence.release(Slot::new(slot));
            self.held_news(slot);
        }
    }

    /// In a fleet its nodes are told who holds a stream.
    fn held_news(&mut self, slot: u32) {
        if let Some(held) = &mut self.held {
            held.push(Slot::new(slot));
        }
    }

    /// Whoever's streams have begun or ended is noted from here on.
    pub(in crate::engine) fn note_held(&mut self) {
        self.held = Some(Vec::new());
    }

    /// Whose streams have begun or ended since the last call.
    pub(in crate::engine) fn take_held(&mut self, out: &mut Vec<Slot>) {
        if let Some(held) = &mut self.held {
            out.append(held);
        }
    }

    /// Ends one: what is unsent goes out first.
    pub(in crate::engine) fn end(
        &mut self,
        id: ConnId,
        reason: Counter,
        now: Mono,
        counters: &mut Counters,
    ) {
        counters.add(reason, 1);
        let stall = self.timers.tick_in(now, self.settings.write_stall_max_ms);
        let Some(conn) = self.table.get_mut(id) else {
            return;
        };
        if conn.phase() == Phase::Streaming {
            conn.owe_nothing_new();
            conn.end_body();
            self.stream_ends(id.index);
        }
        let conn = self.table.at(id.index);
        conn.go(Phase::Closing);
        conn.moment = stall;
        if let Some(io) = &mut conn.io {
            io.input = Vec::new();
            io.chunked = None;
        }
        if conn.unsent_bytes() == 0 {
            self.finish(id, now);
        } else {
            self.timers.set(id.index, stall);
            self.queue_if_due(id.index, now);
        }
        self.count(id);
    }

    /// The last byte of one in [`Phase::Closing`] is out.
    pub(super) fn finish(&mut self, id: ConnId, now: Mono) {
        let conn = self.table.at(id.index);
        if conn.lingers() && self.settings.linger_ms > 0 {
            conn.go(Phase::Lingering);
            conn.tidy();
            let deadline = self.timers.tick_in(now, self.settings.linger_ms);
            self.timers.set(id.index, deadline);
            self.close(id, CloseHow::ShutdownWrite);
        } else {
            self.cut(id);
        }
    }

    /// Ends one at once and has the shard drop its socket.
    pub(in crate::engine) fn cut(&mut self, id: ConnId) {
        self.forget(id);
        self.close(id, CloseHow::Close);
    }

    /// The same of one whose peer does not read.
    pub(super) fn reset(&mut self, id: ConnId) {
        self.forget(id);
        self.close(id, CloseHow::Reset);
    }

    fn close(&mut self, conn: ConnId, how: CloseHow) {
        self.closes.push_back(Close { conn, how });
    }

    /// Its socket is gone already.
    pub(in crate::engine) fn gone(&mut self, id: ConnId, reason: Counter, counters: &mut Counters) {
        if let Some(conn) = self.table.get(id) {
            // One that was ending has been counted with its reason.
            if !conn.is_ending() {
                counters.add(reason, 1);
            }
            self.forget(id);
        }
    }

    fn stream_ends(&mut self, index: u32) {
        self.permits.set(index, None);
        self.readers.leave(index);
        self.streams -= 1;
        self.watches.end(index);
        self.release(index);
    }

    /// Takes one out of every table.
    fn forget(&mut self, id: ConnId) {
        if self.is_stream(id) {
            self.stream_ends(id.index);
        }
        self.timers.clear(id.index);
        self.addresses.leave(id.index);
        self.parked.remove(&id.index);
        let conn = self.table.get(id);
        self.buffered_bytes -= conn.map_or(0, |conn| conn.counted_bytes());
        // Who came next in its place would be found where it is still watching.
        let held = self.watches.is_ending(id.index);
        if self.table.remove(id, held) {
            self.cut_off();
        }
    }

    fn cut_off(&mut self) {
        let places = self.table.places();
        self.timers.cut_off(places);
        self.watches.cut_off(places);
        self.permits.cut_off(places);
        self.addresses.cut_off(places);
        self.readers.cut_off(places);
    }

    /// Of which token the stream at a place is; None: there is none, or it takes no token.
    pub(in crate::engine) fn origin(&self, index: u32) -> Option<Origin> {
        self.permits.of(index).map(Permit::origin)
    }

    /// Whether a stream is open that a caller may touch: one that was opened by a token of the same
    /// holder, if it takes a token.
    pub(in crate::engine) fn is_stream_of(&self, id: ConnId, holder: Option<Tag>) -> bool {
        let is_theirs = holder.is_none_or(|holder| {
            let origin = self.origin(id.index);
            origin.is_some_and(|origin| origin.holder() == holder)
        });
        is_theirs && self.is_stream(id)
    }

    /// Ends at most `max` watches of streams that have ended. Returns how many were ended.
    pub(in crate::engine) fn end_some(&mut self, max: usize) -> usize {
        let mut left = max;
        while left > 0 && self.watches.has_ending() {
            let (ended, stream) = self.watches.end_some(left);
            left -= ended;
            if stream.is_some_and(|index| self.table.release(index)) {
                self.cut_off();
            }
        }
        max - left
    }

    /// Whether this life is a stream.
    pub(in crate::engine) fn is_stream(&self, id: ConnId) -> bool {
        self.table
            .get(id)
            .is_some_and(|conn| conn.phase() == Phase::Streaming)
    }

    /// Its reading was paused and may go on.
    pub(in crate::engine) fn resume(&mut self, id: ConnId) {
        self.resumes.push_back(id);
    }

    /// One to end.
    pub(in crate::engine) fn next_close(&mut self) -> Option<Close> {
        self.closes.pop_front()
    }

    /// One to be read again.
    pub(in crate::engine) fn next_resume(&mut self) -> Option<ConnId> {
        self.resumes.pop_front()
    }

    /// The peer has closed its sending half: a request that is whole is answered, a stream's reader
    /// is gone.
    pub(in crate::engine) fn hang_up(&mut self, id: ConnId, now: Mono, counters: &mut Counters) {
        let Some(conn) = self.table.get_mut(id) else {
            return;
        };
        conn.hang_up();
        let waits = conn.is_paused();
        match conn.phase() {
            Phase::Streaming => {
                counters.add(Counter::ClosedPeer, 1);
                self.cut(id);
            }
            Phase::Lingering => self.cut(id),
            Phase::Idle | Phase::Reading if !waits => {
                self.end(id, Counter::ClosedPeer, now, counters)
            }
            _ => {}
        }
    }

    /// A live connection, if this life of it goes on.
    pub(in crate::engine) fn get(&self, id: ConnId) -> Option<&Conn> {
        self.table.get(id)
    }

    /// A live connection, if this life of it goes on.
    pub(in crate::engine) fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.table.get_mut(id)
    }

    /// The connection at an index that the caller knows to be live.
    pub(in crate::engine) fn at(&mut self, index: u32) -> &mut Conn {
        self.table.at(index)
    }

    /// The id of the life at `index`, if there is one.
    pub(in crate::engine) fn id_at(&self, index: u32) -> Option<ConnId> {
        self.table.id_at(index)
    }

    /// Places, live or free: the bound of [`Conns::id_at`].
    pub(in crate::engine) fn places(&self) -> u32 {
        self.table.places()
    }

    pub(in crate::engine) fn len(&self) -> usize {
        self.table.len()
    }

    /// Those of them that are streams.
    pub(in crate::engine) fn streams(&self) -> usize {
        self.streams
    }

    /// Panics if two tables disagree. For tests and the simulator.
    pub(in crate::engine) fn check_invariants(&mut self) {
        self.watches.check_invariants();
        let (mut streams, mut buffered) = (0, 0);
        for index in 0..self.table.places() {
            let live = self.table.id_at(index).is_some();
            let conn = self.table.at(index);
            let streaming = conn.phase() == Phase::Streaming;
            streams += usize::from(streaming);
            buffered += conn.counted_bytes();
            assert!(
                streaming || self.watches.of(index) == 0,
                "conn {index} watches and is no stream"
            );
            assert!(
                !streaming || conn.unsent_bytes() <= self.settings.outbox_bytes_max,
                "stream {index} has {} bytes unsent",
                conn.unsent_bytes()
            );
            assert!(
                !streaming || conn.awaits_flush() || self.watches.marks(index) == 0,
                "stream {index} has marks and nobody will flush it"
            );
            assert!(
                streaming || !conn.is_holding(),
                "conn {index} holds somebody and is no stream"
            );
            assert!(
                live || conn.is_free() || conn.is_held(),
                "a free place has facts"
            );
            assert!(
                !conn.is_held() || self.watches.is_ending(index),
                "a place is held and nobody will release it"
            );
            let (phase, id) = (conn.phase(), self.table.id_at(index));
            assert!(
                phase != Phase::Deferred || id.is_some_and(|id| self.deferred.contains(&id)),
                "conn {index} waits for a slice that it will not have"
            );
            let waits = phase == Phase::Waiting;
            assert_eq!(
                waits,
                self.parked.contains_key(&index),
                "conn {index} waits for an answer, or one waits for nobody"
            );
        }
        assert_eq!(streams, self.streams, "streams");
        assert_eq!(buffered, self.buffered_bytes, "bytes in buffers");
    }
}
