//! TLS of one shard: handshakes before a connection is the driver's, records after that.
//!
//! Owns which of the shard's sockets speak TLS, by descriptor, those whose handshake is not over,
//! and what all of these may cost: how many at a time, for how long, and for how much of a turn.
//! The driver and the engine see plaintext, and do not know. Makes no system call but on the
//! sockets it is handed.
//!
//! `session` is one connection, and the one file in which the library's connections are named.

mod certificate;
mod cipher;
mod clients;
mod fault;
#[doc(hidden)]
pub mod fuzz;
mod server;
mod session;
#[cfg(test)]
mod tests;
mod tickets;

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use hashbrown::HashMap;

pub use self::certificate::{Certificate, TlsFault, TlsFiles};
use self::cipher::Sealer;
use self::clients::{Clients, Place};
use self::fault::Fault;
pub use self::server::{TlsMin, TlsRead, TlsServer};
use self::session::{Desk, Session, Shaken};
use crate::engine::Entrance;
use crate::engine::settings::{CLIENTS_AT_LEAST, SharedSettings};
use crate::engine::turn::Shakes;
use crate::metrics::{Counter, Counters, Gauge};
use crate::time::Mono;

/// Time that a handshake may take from accept, in ms.
const HANDSHAKE_MS: u64 = 10_000;
/// Time between two looks for handshakes that take too long, in ms.
const LOOK_MS: u64 = 250;
/// Time that handshakes may take of a turn, in microseconds: some twenty steps.
const MICROS_PER_TURN: u64 = 2_000;
/// Sessions that are not worth giving the room of their table back.
const SESSIONS_KEPT: usize = 4_096;
/// Most of what a refused peer has sent that is read before it is left, so that it reads why.
const DRAINED_BYTES_MAX: usize = 65_536;

type Table<T> = HashMap<RawFd, T, foldhash::fast::RandomState>;

/// What a shard is told of TLS.
#[derive(Clone)]
pub struct TlsParts {
    pub server: Arc<TlsServer>,
    /// The operators' listener speaks it as well.
    pub admin: bool,
    /// Most handshakes of one shard at a time.
    pub handshakes_max: usize,
    /// Who counts for whom, and what may wait.
    pub settings: SharedSettings,
}

const _: () = assert!(size_of::<(RawFd, Pending)>() <= 32);

/// A connection whose handshake is not over.
struct Pending {
    socket: TcpStream,
    /// None: it has said nothing yet.
    session: Option<Box<Session>>,
    entrance: Entrance,
    /// For whom it counts.
    client: Option<Place>,
    /// When it began, in ms, of which the high bits are left out.
    began_ms: u32,
    /// Stands in the queue.
    queued: bool,
}

impl Pending {
    fn waits_for_room(&self) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(|session| session.waits_for_room())
    }
}

/// A connection of the driver's.
struct Kept {
    session: Box<Session>,
    /// The session knows it too, but a look there would wait for what is being fetched.
    sealer: Sealer,
}

/// The TLS of one shard's sockets.
pub(super) struct Tls {
    parts: TlsParts,
    /// Those that are the driver's.
    sessions: Table<Kept>,
    sessions_peak: usize,
    /// Memory that these take for what waits.
    waiting_bytes: usize,
    pending: Table<Pending>,
    /// How many of these each client has.
    clients: Clients,
    /// Those of the pending with something to do, or gone.
    queue: VecDeque<RawFd>,
    /// Those that are to be the driver's, and when they began.
    ready: VecDeque<(Entrance, TcpStream, u32)>,
    /// Somebody found no room, and the listener was left.
    turned_away: bool,
    look_at: Mono,
    desk: Desk,
    /// What happened since the last turn's handshakes, and is counted with them.
    uncounted: Vec<Counter>,
}

impl Tls {
    pub(super) fn new(parts: TlsParts) -> Tls {
        Tls {
            parts,
            sessions: Table::default(),
            sessions_peak: 0,
            waiting_bytes: 0,
            pending: Table::default(),
            clients: Clients::default(),
            queue: VecDeque::new(),
            ready: VecDeque::new(),
            turned_away: false,
            look_at: Mono::default(),
            desk: Desk::new(),
            uncounted: Vec::new(),
        }
    }

    /// Whether the operators' listener speaks TLS.
    pub(super) fn is_for_admin(&self) -> bool {
        self.parts.admin
    }

    /// Whether another handshake may begin.
    pub(super) fn has_room(&self) -> bool {
        self.pending.len() + self.ready.len() < self.parts.handshakes_max
    }

    /// Somebody waits for whom there is none.
    pub(super) fn note_no_room(&mut self) {
        self.uncounted.push(Counter::LimitTlsHandshakes);
        self.turned_away = true;
    }

    /// Keeps a socket until its handshake is over. One of a client that has its share of the room
    /// already is closed: nobody can be told anything before a handshake.
    pub(super) fn begin(&mut self, entrance: Entrance, socket: TcpStream, now: Mono) {
        let fd = socket.as_raw_fd();
        let address = socket.peer_addr().ok().map(|peer| peer.ip());
        let client = address.and_then(|address| self.parts.settings.load().client_at(address));
        let share = (self.parts.handshakes_max / CLIENTS_AT_LEAST).max(1);
        let place = client.map(|client| self.clients.enter(client, share));
        if place == Some(None) {
            self.uncounted.push(Counter::LimitTlsHandshakes);
            return;
        }
        let pending = Pending {
            socket,
            session: None,
            entrance,
            client: place.flatten(),
            began_ms: low_ms(now),
            queued: false,
        };
        self.pending.insert(fd, pending);
    }

    /// The driver has a socket whose handshake has not begun: it goes on with each read.
    pub(super) fn begin_in_driver(&mut self, socket: &TcpStream) {
        self.keep(socket.as_raw_fd(), Box::new(Session::new()));
    }

    /// A socket of this descriptor speaks no TLS, whatever had it before.
    pub(super) fn forget(&mut self, socket: &TcpStream) {
        if let Some(kept) = self.sessions.remove(&socket.as_raw_fd()) {
            self.waiting_bytes -= kept.session.waiting_bytes();
        }
    }

    /// An edge of a descriptor, if it is that of a pending one.
    pub(super) fn note_edge(&mut self, fd: RawFd) {
        if let Some(pending) = self.pending.get_mut(&fd)
            && !std::mem::replace(&mut pending.queued, true)
        {
            self.queue.push_back(fd);
        }
    }

    /// One whose handshake is over, and when it came.
    pub(super) fn take_ready(&mut self, now: Mono) -> Option<(Entrance, TcpStream, Mono)> {
        let (entrance, socket, began_ms) = self.ready.pop_front()?;
        let came_at = Mono::default().plus_ms(now.ms() - age_ms(began_ms, now));
        Some((entrance, socket, came_at))
    }

    /// Goes on with handshakes for as long as they may take of a turn, and leaves those that take
    /// too long.
    pub(super) fn shake(&mut self, counters: &mut Counters, clock: impl Fn() -> Mono) -> Shakes {
        let began = clock();
        let mut spent_micros = 0;
        while spent_micros < MICROS_PER_TURN
            && let Some(fd) = self.queue.pop_front()
        {
            self.step(fd, counters);
            spent_micros = clock().micros_since(began);
        }
        if !self.pending.is_empty() && began >= self.look_at {
            self.look_at = began.plus_ms(LOOK_MS);
            let is_late = |pending: &Pending| age_ms(pending.began_ms, began) >= HANDSHAKE_MS;
            for (_, late) in self.pending.extract_if(|_, pending| is_late(pending)) {
                counters.add(Counter::TlsTimedOut, 1);
                late.client
                    .into_iter()
                    .for_each(|place| self.clients.leave(place));
            }
            self.queue_blocked();
        }
        for counter in self.uncounted.drain(..) {
            counters.add(counter, 1);
        }
        counters.set(Gauge::TlsHandshakes, self.pending.len() as u64);
        counters.set(Gauge::TlsBufferedBytes, self.waiting_bytes as u64);
        let room_again = self.turned_away && self.has_room();
        self.turned_away &= !room_again;
        Shakes {
            more: !self.queue.is_empty(),
            ready: !self.ready.is_empty() || room_again,
        }
    }

    fn step(&mut self, fd: RawFd, counters: &mut Counters) {
        let Some(pending) = self.pending.get_mut(&fd) else {
            return;
        };
        pending.queued = false;
        let config = self.parts.server.config();
        let mut io = &pending.socket;
        let session = pending
            .session
            .get_or_insert_with(|| Box::new(Session::new()));
        match session.shake(&mut io, &config, &mut self.desk) {
            Ok(None) => {
                if session.holds_more() {
                    self.note_edge(fd);
                }
            }
            Ok(Some(shaken)) => {
                counters.add(
                    match shaken {
                        Shaken::Full => Counter::TlsFull,
                        Shaken::Resumed => Counter::TlsResumed,
                    },
                    1,
                );
                if let Some(pending) = self.take_pending(fd)
                    && let Some(session) = pending.session
                {
                    self.keep(fd, session);
                    self.ready
                        .push_back((pending.entrance, pending.socket, pending.began_ms));
                }
            }
            Err(fault) => {
                counters.add(fault.of_handshake(), 1);
                if let Some(pending) = self.take_pending(fd) {
                    leave(&pending.socket);
                }
            }
        }
    }

    fn take_pending(&mut self, fd: RawFd) -> Option<Pending> {
        let pending = self.pending.remove(&fd)?;
        let place = pending.client;
        place
            .into_iter()
            .for_each(|place| self.clients.leave(place));
        Some(pending)
    }

    /// Those whose flight the socket did not take as a whole try again. No edge tells of room: a
    /// flight is far shorter than what a fresh socket takes, unless its buffers are tiny.
    fn queue_blocked(&mut self) {
        let blocked = self.pending.iter_mut().filter_map(|(fd, pending)| {
            let queued = pending.waits_for_room() && !std::mem::replace(&mut pending.queued, true);
            queued.then_some(*fd)
        });
        self.queue.extend(blocked);
    }

    fn keep(&mut self, fd: RawFd, session: Box<Session>) {
        self.waiting_bytes += session.waiting_bytes();
        let sealer = session.sealer();
        if let Some(before) = self.sessions.insert(fd, Kept { session, sealer }) {
            self.waiting_bytes -= before.session.waiting_bytes();
        }
        self.sessions_peak = self.sessions_peak.max(self.sessions.len());
    }

    /// When there is something to do, whatever comes.
    pub(super) fn due(&self) -> Mono {
        match self.pending.is_empty() {
            true => Mono::NEVER,
            false => self.look_at,
        }
    }

    /// Whether a socket of the driver's speaks TLS.
    pub(super) fn has(&self, socket: &TcpStream) -> bool {
        self.sessions.contains_key(&socket.as_raw_fd())
    }

    /// Whether a read has something to give although no edge will tell of it.
    pub(super) fn holds_more(&self, socket: &TcpStream) -> bool {
        let kept = self.sessions.get(&socket.as_raw_fd());
        kept.is_some_and(|kept| kept.session.holds_more())
    }

    /// Reads plaintext. None: the socket speaks no TLS.
    pub(super) fn read(
        &mut self,
        mut socket: &TcpStream,
        room: &mut [u8],
    ) -> Option<io::Result<usize>> {
        let session = &mut self.sessions.get_mut(&socket.as_raw_fd())?.session;
        let config = self.parts.server.config();
        let before = session.waiting_bytes();
        let mut read = session.read(&mut socket, &config, &mut self.desk, room);
        self.waiting_bytes = self.waiting_bytes - before + session.waiting_bytes();
        if self.waiting_bytes > self.parts.settings.load().buffer_bytes_max
            && session.holds_much_of_a_record()
            && matches!(read, Err(Fault::Io(_)))
        {
            self.uncounted.push(Counter::LimitBufferBytes);
            read = Err(Fault::Crowded);
        }
        Some(read.map_err(|fault| self.broke(fault)))
    }

    /// A write is soon to come.
    pub(super) fn expect_write(&self, socket: &TcpStream) {
        if let Some(kept) = self.sessions.get(&socket.as_raw_fd()) {
            kept.session.prefetch();
            kept.sealer.prefetch();
        }
    }

    /// Writes plaintext. None: the socket speaks no TLS.
    pub(super) fn write(
        &mut self,
        mut socket: &TcpStream,
        bytes: &[u8],
    ) -> Option<io::Result<usize>> {
        let session = &mut self.sessions.get_mut(&socket.as_raw_fd())?.session;
        let before = session.waiting_bytes();
        let written = session.write(&mut socket, &mut self.desk, bytes);
        self.waiting_bytes = self.waiting_bytes - before + session.waiting_bytes();
        Some(written.map_err(|fault| self.broke(fault)))
    }

    fn broke(&mut self, fault: Fault) -> io::Error {
        self.uncounted.extend(fault.of_connection());
        fault.into()
    }

    /// Says that nothing more comes, before our sending half is shut.
    pub(super) fn shut_down(&mut self, mut socket: &TcpStream) {
        if let Some(kept) = self.sessions.get_mut(&socket.as_raw_fd()) {
            let session = &mut kept.session;
            let before = session.waiting_bytes();
            session.close(&mut socket, &mut self.desk);
            self.waiting_bytes = self.waiting_bytes - before + session.waiting_bytes();
        }
    }

    /// A socket of the driver's is to be closed: its descriptor may be another's next.
    pub(super) fn close(&mut self, socket: &TcpStream) {
        self.shut_down(socket);
        self.forget(socket);
        if self.sessions_peak > SESSIONS_KEPT && self.sessions.len() <= self.sessions_peak / 4 {
            self.sessions.shrink_to_fit();
            self.sessions_peak = self.sessions.len();
        }
    }

    /// Nobody is accepted any more: those whose handshake is not over come to nothing.
    pub(super) fn stop(&mut self) {
        self.pending.clear();
        self.clients = Clients::default();
        self.queue.clear();
        while let Some((_, socket, _)) = self.ready.pop_front() {
            self.close(&socket);
        }
    }
}

/// Low bits of a time in ms: enough for a handshake's.
fn low_ms(now: Mono) -> u32 {
    (now.micros_since(Mono::default()) / 1_000) as u32
}

/// Time since a moment of which these low bits were kept, in ms.
fn age_ms(low: u32, now: Mono) -> u64 {
    u64::from(low_ms(now).wrapping_sub(low))
}

/// Leaves a peer that has been told why: what it has sent is read, so that closing does not reset
/// the connection before it has read that.
fn leave(mut socket: &TcpStream) {
    use io::Read;
    // It is closed next, whatever comes of this.
    let _closed_next = socket.shutdown(Shutdown::Write);
    let mut dropped = [0; 4_096];
    let mut left = DRAINED_BYTES_MAX;
    while left > 0
        && let Ok(n @ 1..) = socket.read(&mut dropped)
    {
        left = left.saturating_sub(n);
    }
}
