//! The turn of one shard, without a kernel: the same code in production, in the simulators, in the
//! tests and in the benches.
//!
//! Owns the engine, its inbox, the sockets, the budgets and the order of a turn's steps, one
//! function each. Decides when to read, what an edge means, what becomes of what a write left over,
//! and how long to sleep. Never makes a system call: a [`Kernel`] does. Decides nothing about
//! requests, streams or presence: that is the engine's. No step allocates per event.
//!
//! Each step works in pieces and stops when its budget is used up; what it leaves over makes the
//! next sleep zero. A clock could be looked at between any two pieces.

mod accepting;
mod kernel;
mod sockets;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

pub use kernel::{Accepted, Edge, Kernel, Notice, Order, Peer, Piece};

use super::settings::Settings;
use super::{CloseHow, Engine, EngineParts, Mail, Refusals, ShardId, To};
use crate::metrics::{Board, Counter, Gauge, Histogram};
use crate::planted::{self, Planted};
use crate::realtime::ConnId;
use crate::time::{Mono, Now};
use accepting::Accepting;
use sockets::{Sockets, fact};

/// Longest sleep, in microseconds: every shard turns at least once a second, by which the others
/// know that it lives.
const SLEEP_MICROS_MAX: u64 = 1_000_000;

/// What a turn may cost, by kind of work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budgets {
    /// Mail of other threads, by [`Mail::weight`].
    pub mail: usize,
    pub beats: usize,
    pub accepts: usize,
    /// Reads: each connection that has more than one buffer's worth waits for the others in
    /// between.
    pub reads: usize,
    pub read_bytes: usize,
    /// Bytes of one read: a read that fills the buffer less has emptied the socket (epoll(7)).
    pub read_buffer_bytes: usize,
    pub flushes: usize,
    pub closes: usize,
}

impl Budgets {
    /// Those that are settings, and the fixed ones.
    pub fn of(settings: &Settings) -> Budgets {
        Budgets {
            mail: settings.mail_per_turn_max,
            beats: settings.beats_per_turn_max,
            accepts: 256,
            reads: 1_024,
            read_bytes: 4 << 20,
            read_buffer_bytes: 65_536,
            flushes: settings.flushes_per_turn_max,
            closes: 1_024,
        }
    }
}

/// One shard but for its kernel.
pub struct Driver<S> {
    shard: ShardId,
    engine: Engine,
    budgets: Budgets,
    board: Arc<Board>,

    now: Now,
    /// A step left work over.
    more: bool,
    /// Working time of the sweep under way so far.
    sweep_micros: u64,

    sockets: Sockets<S>,
    read_buffer: Box<[u8]>,
    accepting: Accepting<S>,
    /// The socket may hold datagrams: its edge was seen and no read has come back empty since.
    datagrams_wait: bool,

    inbox: VecDeque<Mail>,
    /// Mail of this turn, by shard; the vectors are kept.
    outgoing: Vec<Vec<Mail>>,
    bounced: Vec<Mail>,
    order: Order,
    is_drained: bool,
}

impl<S> Driver<S> {
    /// A shard without connections, whose sockets may hold something already.
    pub fn new(parts: EngineParts, budgets: Budgets) -> Driver<S> {
        let (shard, shards) = (parts.shard, usize::from(parts.shards));
        Driver {
            shard,
            budgets,
            board: Arc::clone(&parts.board),
            now: parts.now,
            more: false,
            sweep_micros: 0,
            sockets: Sockets::new(parts.settings.conns_max),
            read_buffer: vec![0; budgets.read_buffer_bytes].into_boxed_slice(),
            accepting: Accepting::new(Refusals::new(Arc::clone(&parts.settings))),
            datagrams_wait: true,
            inbox: VecDeque::new(),
            outgoing: (0..shards).map(|_| Vec::new()).collect(),
            bounced: Vec::new(),
            order: Order::Run,
            is_drained: false,
            engine: Engine::new(parts),
        }
    }

    /// The engine, for what is outside of turns.
    pub fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// The latest order.
    pub fn order(&self) -> Order {
        self.order
    }

    /// All of a turn but its sleep, which may last so many microseconds; an edge or
    /// [`Kernel::fall_asleep`]'s waking ends it sooner.
    pub fn turn(&mut self, kernel: &mut impl Kernel<Socket = S>) -> u64 {
        self.begin(kernel);
        self.take_mail(kernel);
        self.receive_beats(kernel);
        self.serve_sockets(kernel);
        self.fire_timers(kernel);
        self.flush(kernel);
        self.close(kernel);
        self.post_mail(kernel);
        let ended = self.report(kernel);
        self.rest(ended, kernel)
    }

    /// Step 1: everything in this turn happens at this moment.
    pub fn begin(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        self.more = false;
        let before = self.now;
        self.now = kernel.now();
        let elapsed_micros = self.now.mono.micros_since(before.mono);
        self.engine
            .counters()
            .add(Counter::TurnElapsed, elapsed_micros);
        self.engine.begin_turn(self.now);
    }

    /// Step 2: orders and mail of other threads.
    pub fn take_mail(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        let notice = kernel.take_mail(&mut self.inbox);
        if notice.order > Order::Run && self.order == Order::Run {
            self.engine.begin_drain(self.now);
            // A last look at who waits.
            self.accepting.note_edge();
        }
        self.order = notice.order;
        if notice.resync {
            self.engine.handle_resync(self.now);
        }
        let counters = self.engine.counters();
        counters.add(Counter::MailOverflows, notice.refused);
        counters.set(Gauge::MailboxDepth, self.inbox.len() as u64);
        let mut budget = self.budgets.mail;
        while budget > 0
            && let Some(mail) = self.inbox.pop_front()
        {
            budget = budget.saturating_sub(mail.weight());
            self.engine.handle_mail(mail, self.now);
        }
        if !self.inbox.is_empty() {
            self.left_over(Counter::LimitMailPerTurn);
        }
        kernel.worked(Piece::Mail, &mut self.engine);
    }

    /// Step 3: beat datagrams.
    pub fn receive_beats(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        let mut beats = 0;
        while self.datagrams_wait && beats < self.budgets.beats {
            let (engine, now) = (&mut self.engine, self.now);
            let received = kernel.receive(self.budgets.beats - beats, |batch| {
                engine.handle_beats(batch, now)
            });
            match received {
                Ok(received) => {
                    beats += received;
                    kernel.worked(Piece::Beats, &mut self.engine);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Anything but "empty" is an error of the socket (ENOMEM, ENETDOWN) that the next
                // edge finds cured or not.
                Err(_) => self.datagrams_wait = false,
            }
        }
        if self.datagrams_wait {
            self.left_over(Counter::LimitBeatsPerTurn);
        }
    }

    /// Step 4: new connections, then those with something to read.
    pub fn serve_sockets(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        self.accept(kernel);
        self.queue_resumed();
        let mut bytes_left = self.budgets.read_bytes;
        for _ in 0..self.budgets.reads {
            if bytes_left == 0 {
                break;
            }
            let Some(conn) = self.sockets.pop_ready() else {
                break;
            };
            bytes_left = bytes_left.saturating_sub(self.serve(conn, kernel));
        }
        if self.sockets.has_ready() {
            self.left_over(if bytes_left == 0 {
                Counter::LimitReadBytesPerTurn
            } else {
                Counter::LimitReadsPerTurn
            });
        }
    }

    fn accept(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        for _ in 0..self.budgets.accepts {
            if !self.accepting.is_ready(self.now) {
                break;
            }
            match self.accepting.accept(self.now, kernel) {
                Accepted::Socket(socket) => self.admit(socket, kernel),
                Accepted::Aborted | Accepted::Empty => {}
                Accepted::NoDescriptor | Accepted::NoMemory => {
                    let counters = self.engine.counters();
                    counters.add(Counter::LimitFileDescriptors, 1);
                }
            }
        }
        if self.accepting.is_ready(self.now) {
            self.left_over(Counter::LimitAcceptsPerTurn);
        } else if self.order >= Order::Drain {
            // Those who were waiting have been accepted, and will be answered.
            self.accepting.stop(kernel);
        }
    }

    fn admit(&mut self, socket: S, kernel: &mut impl Kernel<Socket = S>) {
        let Some(conn) = self.engine.handle_accept(self.now) else {
            return kernel.close(socket);
        };
        let watched = kernel.watch(conn, &socket);
        if let Some(stale) = self.sockets.insert(conn, socket) {
            kernel.close(stale);
        }
        if let Err(error) = watched {
            self.fail(conn, Some(error), kernel);
        }
    }

    /// Connections whose edge was used up while the engine took no bytes.
    fn queue_resumed(&mut self) {
        while let Some(conn) = self.engine.poll_resume() {
            self.sockets.clear(conn, fact::PAUSED);
            if !planted::is(Planted::ResumedUnread) {
                self.sockets.queue(conn, 0);
            }
        }
    }

    /// Acts on what the edges of one connection said: at most one read. Returns the bytes read.
    fn serve(&mut self, conn: ConnId, kernel: &mut impl Kernel<Socket = S>) -> usize {
        if self.sockets.any(conn, fact::FAILED) {
            self.fail(conn, None, kernel);
            return 0;
        }
        if self.sockets.any(conn, fact::WRITABLE) {
            self.sockets.clear(conn, fact::WRITABLE | fact::BLOCKED);
            self.engine.handle_writable(conn, self.now);
        }
        if self.sockets.any(conn, fact::PAUSED | fact::EOF) {
            return 0;
        }
        let Some(socket) = self.sockets.get_mut(conn) else {
            return 0;
        };
        match kernel.read(socket, &mut self.read_buffer) {
            Ok(0) => {
                self.sockets.note(conn, fact::EOF);
                self.engine.handle_eof(conn, self.now);
                0
            }
            Ok(n) => {
                let bytes = &self.read_buffer[..n];
                let takes_more = self.engine.handle_bytes(conn, bytes, self.now);
                kernel.worked(Piece::Bytes(socket), &mut self.engine);
                let is_full =
                    n == self.read_buffer.len() && !planted::is(Planted::FullReadForgotten);
                if !takes_more {
                    self.sockets.note(conn, fact::PAUSED);
                } else if is_full || self.sockets.any(conn, fact::READ_CLOSED) {
                    self.sockets.queue(conn, 0);
                }
                n
            }
            Err(error) => {
                match error.kind() {
                    io::ErrorKind::WouldBlock => {}
                    io::ErrorKind::Interrupted => self.sockets.queue(conn, 0),
                    _ => self.fail(conn, Some(error), kernel),
                }
                0
            }
        }
    }

    /// Lets go of a connection whose socket failed: with `error`, or as an edge told, which does
    /// not say why.
    fn fail(
        &mut self,
        conn: ConnId,
        error: Option<io::Error>,
        kernel: &mut impl Kernel<Socket = S>,
    ) {
        let Some(socket) = self.sockets.remove(conn) else {
            return;
        };
        let error = error.or_else(|| kernel.error(&socket));
        // What TCP_USER_TIMEOUT ends a connection with.
        if error.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            self.engine.handle_timed_out(conn, self.now);
        } else {
            self.engine.handle_closed(conn, self.now);
        }
        kernel.close(socket);
    }

    /// Step 5: timers, a slice of the sweep, vouching, drain.
    pub fn fire_timers(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        let cycles = self.engine.counters().counter(Counter::SweepCycles);
        let began = kernel.mono();
        self.engine.handle_timeout(self.now);
        // Turns without a slice of a sweep add next to nothing.
        self.sweep_micros += kernel.mono().micros_since(began);
        let counters = self.engine.counters();
        if counters.counter(Counter::SweepCycles) > cycles {
            let sweep_micros = std::mem::take(&mut self.sweep_micros);
            counters.observe(Histogram::SweepDuration, sweep_micros);
        }
        if self.order == Order::Drain && !self.is_drained && self.engine.is_drained() {
            self.is_drained = true;
            kernel.drained();
        }
        kernel.worked(Piece::Timers, &mut self.engine);
    }

    /// Step 6: writes what streams and requesters must be told.
    pub fn flush(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        for _ in 0..self.budgets.flushes {
            let Some(flush) = self.engine.poll_flush(self.now) else {
                return;
            };
            let (conn, offered) = (flush.conn, flush.bytes.len());
            let untimed = self.sockets.any(conn, fact::UNTIMED);
            let Some(socket) = self.sockets.get_mut(conn) else {
                self.engine.handle_closed(conn, self.now);
                continue;
            };
            let peer = untimed.then(|| kernel.peer(socket));
            let written = match peer {
                Some(Peer::Dead) => Err(io::ErrorKind::TimedOut.into()),
                _ => write_some(socket, flush.bytes, kernel),
            };
            let n = match written {
                Ok(n) => n,
                Err(error) => {
                    self.fail(conn, Some(error), kernel);
                    continue;
                }
            };
            // Leaves a peer whose window is full to the engine, which lets it go when no write gets
            // on. TCP_USER_TIMEOUT would end it however steadily it reads: Linux counts it from the
            // first probe of a closed window, and a window that opens by less than the next segment
            // does not begin the count anew (tcp_probe_timer, tcp_ack_probe).
            if n < offered && !untimed {
                kernel.watch_over(socket, false);
            }
            // The peer has caught up: the kernel may watch over it again. Until then each flush
            // asks whether it is dead, and a stream is flushed at least once in its keep-alive
            // period.
            let caught_up = n == offered && peer == Some(Peer::CaughtUp);
            if caught_up {
                kernel.watch_over(socket, true);
            }
            self.engine.handle_flushed(conn, n, self.now);
            kernel.worked(Piece::Flush(socket), &mut self.engine);
            if n < offered {
                self.sockets.note(conn, fact::BLOCKED | fact::UNTIMED);
            } else if caught_up {
                self.sockets.clear(conn, fact::UNTIMED);
            }
        }
        self.left_over(Counter::LimitFlushesPerTurn);
    }

    /// Step 7: ends what the engine has done with.
    pub fn close(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        for _ in 0..self.budgets.closes {
            let Some(close) = self.engine.poll_close() else {
                return;
            };
            match close.how {
                CloseHow::Close => {
                    if let Some(socket) = self.sockets.remove(close.conn) {
                        kernel.close(socket);
                    }
                }
                CloseHow::ShutdownWrite => {
                    if let Some(socket) = self.sockets.get_mut(close.conn)
                        && let Err(error) = kernel.shut_down(socket)
                    {
                        // Reset in the meantime.
                        self.fail(close.conn, Some(error), kernel);
                    }
                }
            }
        }
        self.left_over(Counter::LimitClosesPerTurn);
    }

    /// Step 8: hands this turn's mail over, one batch per shard; and what is for other nodes.
    pub fn post_mail(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        let own = usize::from(self.shard);
        while let Some(letter) = self.engine.poll_mail() {
            match letter.to {
                To::Shard(shard) => self.outgoing[usize::from(shard)].push(letter.mail),
                To::Others => {
                    for (shard, batch) in self.outgoing.iter_mut().enumerate() {
                        if shard != own {
                            batch.push(letter.mail.clone());
                        }
                    }
                }
            }
        }
        let mut refused = 0;
        for (shard, batch) in (0..).zip(&mut self.outgoing) {
            if !batch.is_empty() {
                refused += kernel.post(shard, batch, &mut self.bounced);
            }
        }
        self.engine.counters().add(Counter::MailOverflows, refused);
        // Answered by the engine; the answers are written next turn.
        self.more |= !self.bounced.is_empty();
        for mail in self.bounced.drain(..) {
            self.engine.handle_bounced(mail, self.now);
        }
        while let Some(outbound) = self.engine.poll_outbound(self.now) {
            kernel.send(outbound);
        }
    }

    /// Step 9: lets other threads see what was counted. Returns the end of the turn's work.
    pub fn report(&mut self, kernel: &mut impl Kernel<Socket = S>) -> Mono {
        let ended = kernel.mono();
        let busy_micros = ended.micros_since(self.now.mono);
        let counters = self.engine.counters();
        counters.add(Counter::TurnBusy, busy_micros);
        counters.observe(Histogram::TurnDuration, busy_micros);
        self.board.shards[usize::from(self.shard)].publish(counters);
        ended
    }

    /// Step 10: how long this shard may sleep, in microseconds, until an edge, mail, or the next
    /// deadline.
    fn rest(&mut self, ended: Mono, kernel: &mut impl Kernel<Socket = S>) -> u64 {
        // Flushes and closes of this turn may have made room for more bytes.
        self.queue_resumed();
        if self.more || self.sockets.has_ready() {
            return 0;
        }
        let sleep_micros = self.deadline().micros_since(ended).min(SLEEP_MICROS_MAX);
        if sleep_micros > 0 && !kernel.fall_asleep(self.order) {
            return 0;
        }
        sleep_micros
    }

    /// When there is something to do, whatever comes.
    pub fn deadline(&self) -> Mono {
        self.engine.poll_timeout().min(self.accepting.due())
    }

    /// An edge of the listener, or of the connection on the reserve descriptor.
    pub fn note_listener(&mut self) {
        self.accepting.note_edge();
    }

    /// An edge of the beat socket.
    pub fn note_datagrams(&mut self) {
        self.datagrams_wait = true;
    }

    /// An edge of a connection's socket.
    pub fn note_edge(&mut self, conn: ConnId, edge: Edge) {
        let mut facts = 0;
        if edge.read_closed {
            facts |= fact::READ_CLOSED;
        }
        let waits = self.sockets.any(conn, fact::BLOCKED);
        if edge.writable && waits && !planted::is(Planted::RoomForgotten) {
            facts |= fact::WRITABLE;
        }
        // Closed both ways after the end was told: no other edge will say so.
        if edge.error || (edge.write_closed && self.sockets.any(conn, fact::EOF)) {
            facts |= fact::FAILED;
        }
        if edge.readable || facts != 0 {
            self.sockets.queue(conn, facts);
        }
    }

    /// A budget is used up and there is more.
    fn left_over(&mut self, reached: Counter) {
        self.engine.counters().add(reached, 1);
        self.more = true;
    }
}

/// Writes what the socket takes now: 0 if it is full.
fn write_some<K: Kernel>(
    socket: &mut K::Socket,
    bytes: &[u8],
    kernel: &mut K,
) -> io::Result<usize> {
    loop {
        match kernel.write(socket, bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
