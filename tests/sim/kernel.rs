//! The kernel that the drivers run on: sockets, edges, mailboxes and a clock, all made up.
//!
//! Owns what a system call comes to and when an edge is told: once for each thing that happens, as
//! epoll does it, so that what a driver forgets of an edge is lost. Decides nothing about when
//! bytes are read or mail is taken.

use std::io;

use greendot::engine::turn::{
    Accepted, Budgets, Driver, Edge, Inbox, Kernel, Notice, Order, Peer, Piece,
};
use greendot::engine::{Engine, Mail, Outbound, ShardId};
use greendot::metrics::{Call, Counter, Counters, StatusClass};
use greendot::realtime::ConnId;
use greendot::time::{Mono, Now};

use crate::client::Tear;
use crate::world::{Parcel, World};

/// Datagrams that one system call brings.
const DATAGRAMS_PER_RECEIVE: usize = 2;
/// What a slice of a turn's work takes, in microseconds.
const SLICE_MICROS: u64 = 150;
/// Most bytes of a piece into which the network tears what a client sends.
const PIECE_BYTES_MAX: usize = 40;

/// Small ones, so that each is used up now and then.
pub(crate) fn budgets(settings: &greendot::engine::settings::Settings) -> Budgets {
    Budgets {
        accepts: 3,
        reads: 6,
        read_bytes: 1_500,
        read_buffer_bytes: 300,
        closes: 3,
        ..Budgets::of(settings)
    }
}

/// What a shard has answered so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Served {
    pub(crate) answered: u64,
    pub(crate) hellos: u64,
    pub(crate) beats: u64,
    pub(crate) leaves: u64,
    /// Not yet: done, and the answer waits for other shards.
    pub(crate) parked: u64,
    pub(crate) forgotten: u64,
}

impl Served {
    fn of(counters: &Counters) -> Served {
        let mut answered = 0;
        for call in Call::ALL {
            for class in [StatusClass::Good, StatusClass::Client, StatusClass::Server] {
                answered += counters.requests(*call, class);
            }
        }
        Served {
            answered,
            hellos: counters.counter(Counter::EventsHello),
            beats: counters.requests(Call::Beat, StatusClass::Good),
            leaves: counters.requests(Call::Leave, StatusClass::Good),
            parked: counters.counter(Counter::AnswersParked),
            forgotten: counters.counter(Counter::UsersForgotten),
        }
    }
}

impl World {
    /// One turn of one shard. Returns how long it would sleep, in microseconds.
    pub(crate) fn drive(&mut self, at: usize) -> u64 {
        let mut driver = self.shards[at].driver.take().expect("one turn at a time");
        self.tell_edges(at, &mut driver);
        let sleep_micros = driver.turn(&mut Simulated {
            world: self,
            at,
            spent_micros: 0,
        });
        if self.step.is_multiple_of(8) {
            driver.engine().check_invariants();
        }
        self.shards[at].driver = Some(driver);
        sleep_micros
    }

    /// What epoll would say now. Bytes arrive as the network has torn them, a piece at each look.
    fn tell_edges(&mut self, at: usize, driver: &mut Driver<u32>) {
        if std::mem::take(&mut self.shards[at].datagrams_came) {
            driver.note_datagrams();
        }
        if std::mem::take(&mut self.shards[at].clients_came) {
            driver.note_listener();
        }
        for key in self.sockets(at) {
            let conn = self.conns.get_mut(&key).expect("open");
            let mut edge = Edge::default();
            let under_way = conn.inbound.len() - conn.arrived;
            if under_way > 0 {
                conn.arrived += match conn.tear {
                    Tear::Whole => under_way,
                    Tear::Pieces => self.network.usize(1..=under_way.min(PIECE_BYTES_MAX)),
                    Tear::Bytes => 1,
                };
                edge.readable = true;
            }
            if conn.half_closed && conn.arrived == conn.inbound.len() && !conn.end_told {
                conn.end_told = true;
                (edge.readable, edge.read_closed) = (true, true);
            }
            if conn.blocked && conn.room > 0 {
                conn.blocked = false;
                edge.writable = true;
            }
            if conn.reset && !conn.reset_told {
                conn.reset_told = true;
                edge.error = true;
            }
            if edge != Edge::default() {
                match conn.id {
                    Some(id) => driver.note_edge(id, edge),
                    None => driver.note_listener(),
                }
            }
        }
    }

    /// The keys of a shard's connections, and of the one on its reserve descriptor.
    fn sockets(&self, at: usize) -> Vec<u32> {
        let shard = &self.shards[at];
        let conns = shard.conns.values().copied();
        conns.chain(shard.on_reserve).collect()
    }

    /// Whether an edge would end a sleep.
    pub(crate) fn has_edges(&self, at: usize) -> bool {
        let shard = &self.shards[at];
        let has_edge = |key: &u32| {
            let conn = &self.conns[key];
            let whole = conn.arrived == conn.inbound.len();
            let readable = !whole || (conn.half_closed && !conn.end_told);
            readable || (conn.reset && !conn.reset_told) || (conn.blocked && conn.room > 0)
        };
        shard.datagrams_came || shard.clients_came || self.sockets(at).iter().any(has_edge)
    }
}

/// One shard's kernel.
struct Simulated<'a> {
    world: &'a mut World,
    at: usize,
    /// Virtual time that the slices of this turn have taken.
    spent_micros: u64,
}

impl Kernel for Simulated<'_> {
    /// The connection's key.
    type Socket = u32;

    fn now(&mut self) -> Now {
        self.world.now()
    }

    fn mono(&mut self) -> Mono {
        let micros = self.world.now().mono.micros() + self.spent_micros;
        Mono::from_micros(micros)
    }

    fn take_mail(&mut self, inbox: &mut Inbox) -> Notice {
        let mut notice = self.world.shards[self.at].mailbox.take(inbox);
        notice.resync &= !self.world.plan.flagless_mailbox;
        notice
    }

    fn post(&mut self, to: ShardId, batch: &mut Vec<Mail>, bounced: &mut Vec<Mail>) -> u64 {
        let (world, to) = (&mut *self.world, usize::from(to));
        if to == self.at || to >= world.shards.len() {
            world.fail(format!("mail from {} to {to}", self.at));
        }
        let mut prompt = Vec::new();
        for mail in batch.drain(..) {
            world.note(format!("{to}{mail:?}").as_bytes());
            if !world.healed && world.network.u8(0..6) == 0 {
                let delay_ms = world.network.u64(1..400);
                world.send(Parcel::Mail(to, mail), delay_ms);
            } else {
                prompt.push(mail);
            }
        }
        let posted = world.shards[to].mailbox.post(&mut prompt, bounced);
        if posted.wake {
            world.wake(to);
        }
        posted.refused
    }

    fn fall_asleep(&mut self, seen: Order) -> bool {
        self.world.shards[self.at].mailbox.fall_asleep(seen)
    }

    fn send(&mut self, outbound: Outbound) {
        self.world
            .fail(format!("a node of its own has {outbound:?} for others"));
    }

    fn drained(&mut self, order: Order) {
        self.world.shards[self.at].drained = Some(order);
    }

    fn receive(
        &mut self,
        beats_max: usize,
        mut take: impl FnMut(&[&[u8]]) -> usize,
    ) -> io::Result<usize> {
        let arrived = &mut self.world.shards[self.at].datagrams;
        let taken = arrived.len().min(beats_max).min(DATAGRAMS_PER_RECEIVE);
        if taken == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let batch: Vec<_> = arrived.drain(..taken).collect();
        for datagram in &batch {
            self.world.heard(datagram);
        }
        let bytes: Vec<&[u8]> = batch.iter().map(|datagram| &datagram.bytes[..]).collect();
        Ok(take(&bytes))
    }

    fn accept(&mut self) -> Accepted<u32> {
        let mono = self.world.mono;
        let shard = &mut self.world.shards[self.at];
        if mono < shard.nofile_until {
            return Accepted::NoDescriptor;
        }
        let Some(key) = shard.backlog.pop_front() else {
            return Accepted::Empty;
        };
        let conn = self.world.conns.get_mut(&key);
        conn.expect("kept until both ends are gone").accepted = true;
        Accepted::Socket(key)
    }

    fn accept_on_reserve(&mut self) -> Accepted<u32> {
        let shard = &mut self.world.shards[self.at];
        if let Some(key) = shard.on_reserve {
            self.world
                .fail(format!("conn {key} is on the reserve, too"));
        }
        shard.on_reserve = shard.backlog.pop_front();
        shard.on_reserve.map_or(Accepted::Empty, Accepted::Socket)
    }

    fn keep_reserve(&mut self) {
        if let Some(key) = self.world.shards[self.at].on_reserve {
            self.world
                .fail(format!("conn {key} is on the reserve still"));
        }
    }

    fn watch_held(&mut self, _key: &u32) -> io::Result<()> {
        Ok(())
    }

    fn stop_listening(&mut self) {}

    fn watch(&mut self, conn: ConnId, key: &u32) -> io::Result<()> {
        self.world.conns.get_mut(key).expect("just accepted").id = Some(conn);
        let conns = &mut self.world.shards[self.at].conns;
        if let Some(other) = conns.insert((conn.index, conn.generation), *key) {
            self.world
                .fail(format!("conn {other} lives, and {key} is {conn:?}, too"));
        }
        Ok(())
    }

    fn read(&mut self, key: &mut u32, buffer: &mut [u8]) -> io::Result<usize> {
        let conn = self.world.conns.get_mut(key).expect("open");
        if conn.reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let n = conn.arrived.min(buffer.len());
        if n == 0 {
            let ended = conn.end_told && conn.inbound.is_empty();
            return ended
                .then_some(0)
                .ok_or_else(|| io::ErrorKind::WouldBlock.into());
        }
        conn.arrived -= n;
        for (to, byte) in buffer.iter_mut().zip(conn.inbound.drain(..n)) {
            *to = byte;
        }
        Ok(n)
    }

    fn write(&mut self, key: &mut u32, bytes: &[u8]) -> io::Result<usize> {
        match self.world.offered(*key, bytes) {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            n => Ok(n),
        }
    }

    fn shut_down(&mut self, key: &mut u32) -> io::Result<()> {
        self.world.note(format!("shut {key}").as_bytes());
        // One on the reserve descriptor is closed next, and is read then.
        if self.world.conns[key].id.is_some() {
            self.world.ended(*key);
        }
        Ok(())
    }

    fn close(&mut self, key: u32) {
        self.world.note(format!("close {key}").as_bytes());
        let conn = self.world.conns.get_mut(&key).expect("open");
        if conn.id.is_some() {
            return self.world.gone(key);
        }
        let on_reserve = &mut self.world.shards[self.at].on_reserve;
        if on_reserve.take_if(|other| *other == key).is_none() {
            // One too many even to be refused in words.
            conn.listens = false;
        }
        self.world.ended(key);
    }

    fn error(&mut self, _key: &u32) -> Option<io::Error> {
        Some(io::ErrorKind::ConnectionReset.into())
    }

    fn peer(&mut self, key: &u32) -> Peer {
        if self.world.conns[key].unread.is_empty() {
            Peer::CaughtUp
        } else {
            Peer::Behind
        }
    }

    fn unacknowledged_ms(&mut self, key: &u32) -> Option<u64> {
        let conn = &self.world.conns[key];
        conn.owes.then(|| self.world.mono - conn.acknowledged_at)
    }

    fn watch_over(&mut self, key: &u32, on: bool) {
        self.world.conns.get_mut(key).expect("open").watched_over = on;
    }

    fn worked(&mut self, piece: Piece<'_, u32>, engine: &mut Engine) {
        self.world.note_answers();
        let served = Served::of(engine.counters());
        let before = std::mem::replace(&mut self.world.shards[self.at].served, served);
        match piece {
            Piece::Bytes(key) | Piece::Request(key) => {
                self.world.settle_served(*key, before, served)
            }
            Piece::Flush(key) => {
                self.world.settle_served(*key, before, served);
                self.world.check_watched_over(*key);
            }
            Piece::Timers => self.world.note_vouching(self.at),
            // What was parked may have become a stream.
            Piece::Mail => self.world.note_openings(self.at),
            Piece::Beats | Piece::Work => {}
        }
        self.spent_micros += SLICE_MICROS;
        self.world.observe();
    }
}
