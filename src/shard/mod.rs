//! The loop around one engine: sockets, mail and the clock in, bytes out. The only place that uses
//! mio.
//!
//! Owns one shard's sockets and its budgets. Decides nothing about requests, streams or presence:
//! that is the engine's. A turn is one pass of ten steps, each with a budget; what a step leaves
//! over makes the next sleep zero. No step allocates per event.

mod accept;
mod bind;
mod conns;
mod datagrams;
mod mailbox;
mod peer;
mod spawn;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use socket2::SockRef;

use self::accept::{Accepted, Acceptor};
use self::conns::{Conns, conn_of, flag, token_of};
use self::datagrams::Datagrams;
use self::mailbox::{Care, Order};
use self::peer::Peer;
use self::spawn::Door;
use crate::engine::{CloseHow, Engine, Mail, Outbound, ShardId, To};
use crate::metrics::{Board, Counter, Gauge, Histogram};
use crate::realtime::ConnId;
use crate::time::{Clock, Mono, Now, boottime};

pub use bind::{BindFault, BindOptions, Bound, bind};
pub use spawn::{Drained, Shards, Teller, spawn, vital_thread};

/// Bytes of the one buffer that all reads share. A read that fills it less has emptied the socket
/// (epoll(7)).
const READ_BUFFER_BYTES: usize = 65_536;
/// Edges taken from the kernel at once.
const EVENTS_MAX: usize = 1_024;
/// Connections accepted in one turn.
const ACCEPTS_PER_TURN_MAX: usize = 256;
/// Reads in one turn: each connection that has more than one buffer's worth waits for the others in
/// between.
const READS_PER_TURN_MAX: usize = 1_024;
/// Bytes read in one turn.
const READ_BYTES_PER_TURN_MAX: usize = 4 << 20;
/// Connections closed in one turn.
const CLOSES_PER_TURN_MAX: usize = 1_024;
/// Longest sleep, in microseconds: every shard turns at least once a second, by which the others
/// know that it lives.
const SLEEP_MAX_MICROS: u64 = 1_000_000;

// A generation reaches u32::MAX after four billion lives of one index, and no shard has 2^32 - 3
// connections.
const LISTENER: Token = Token(usize::MAX - 1);
const BEATS: Token = Token(usize::MAX - 2);
const WAKER: Token = Token(usize::MAX - 3);

/// Budgets that are settings.
#[derive(Clone, Copy, Debug)]
struct Budgets {
    mail: usize,
    beats: usize,
    flushes: usize,
}

/// Where what is for other nodes goes; it does not block.
pub type Outlet = Box<dyn FnMut(Outbound) + Send>;

/// One shard: its engine and everything between that and the kernel.
struct Shard {
    id: ShardId,
    engine: Engine,
    budgets: Budgets,

    poll: Poll,
    events: Events,
    clock: Arc<Clock>,
    now: Now,
    /// A step left work over.
    more: bool,
    /// Working time of the sweep under way so far.
    sweep_micros: u64,

    /// None once draining.
    acceptor: Option<Acceptor>,
    conns: Conns,
    /// TCP_USER_TIMEOUT of a connection whose window is not full.
    user_timeout: Duration,
    read_buffer: Box<[u8]>,
    /// None where no beats are received.
    datagrams: Option<Datagrams>,
    /// Takes what is for other nodes.
    outbound: Outlet,

    doors: Arc<[Door]>,
    inbox: VecDeque<Mail>,
    /// Mail of this turn, by shard; the vectors are kept.
    outgoing: Vec<Vec<Mail>>,
    bounced: Vec<Mail>,
    order: Order,
    /// Told once that the engine has drained.
    on_drained: Option<Drained>,

    board: Arc<Board>,
}

impl Shard {
    /// Turns until told to stop. Fails only if the kernel refuses to poll.
    fn run(mut self) -> io::Result<()> {
        while self.order < Order::Stop {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        self.more = false;
        self.read_clock();
        self.take_mail();
        self.receive_beats();
        self.serve_conns();
        self.fire_timers();
        self.flush();
        self.close();
        self.post_mail();
        let ended = self.publish_counters();
        self.sleep(ended)
    }

    /// Step 1: everything in this turn happens at this moment.
    fn read_clock(&mut self) {
        let before = self.now;
        self.now = self.clock.now();
        let elapsed_micros = self.now.mono.micros_since(before.mono);
        self.engine
            .counters()
            .add(Counter::TurnElapsed, elapsed_micros);
        self.engine.begin_turn(self.now);
    }

    /// Step 2: orders and mail of other threads.
    fn take_mail(&mut self) {
        let notice = self.doors[usize::from(self.id)]
            .mailbox
            .take(&mut self.inbox);
        if notice.order > Order::Run && self.order == Order::Run {
            self.engine.begin_drain(self.now);
            if let Some(acceptor) = &mut self.acceptor {
                // A last look at who waits.
                acceptor.set_ready();
            }
        }
        self.order = notice.order;
        if notice.resync {
            self.engine.handle_resync(self.now);
        }
        self.engine
            .counters()
            .set(Gauge::MailboxDepth, self.inbox.len() as u64);
        let mut budget = self.budgets.mail;
        while budget > 0 {
            let Some(mail) = self.inbox.pop_front() else {
                return;
            };
            budget = budget.saturating_sub(mail.weight());
            self.engine.handle_mail(mail, self.now);
        }
        if !self.inbox.is_empty() {
            self.engine.counters().add(Counter::LimitMailPerTurn, 1);
            self.more = true;
        }
    }

    /// Step 3: beat datagrams.
    fn receive_beats(&mut self) {
        let Some(datagrams) = self
            .datagrams
            .as_mut()
            .filter(|datagrams| datagrams.is_ready())
        else {
            return;
        };
        let (engine, now) = (&mut self.engine, self.now);
        let received =
            datagrams.receive(self.budgets.beats, |batch| engine.handle_beats(batch, now));
        if let Some(error) = received.fault {
            tracing::warn!(shard = self.id, %error, "receiving beats failed; the next datagram \
             tries again");
        }
        if datagrams.is_ready() {
            self.engine.counters().add(Counter::LimitBeatsPerTurn, 1);
            self.more = true;
        }
    }

    /// Step 4: new connections, then those with something to read.
    fn serve_conns(&mut self) {
        self.accept();
        self.queue_resumed();
        let mut bytes_left = READ_BYTES_PER_TURN_MAX;
        for _ in 0..READS_PER_TURN_MAX {
            if bytes_left == 0 {
                break;
            }
            let Some(conn) = self.conns.pop_ready() else {
                break;
            };
            bytes_left = bytes_left.saturating_sub(self.serve(conn));
        }
        if self.conns.ready_len() > 0 {
            let reached = if bytes_left == 0 {
                Counter::LimitReadBytesPerTurn
            } else {
                Counter::LimitReadsPerTurn
            };
            self.engine.counters().add(reached, 1);
        }
    }

    fn accept(&mut self) {
        let Some(acceptor) = &mut self.acceptor else {
            return;
        };
        for _ in 0..ACCEPTS_PER_TURN_MAX {
            if !acceptor.is_ready(self.now) {
                break;
            }
            match acceptor.accept(self.now, self.poll.registry(), LISTENER) {
                Accepted::Conn(socket) => {
                    let Some(conn) = self.engine.handle_accept(self.now) else {
                        continue;
                    };
                    let fd = socket.as_raw_fd();
                    self.conns.insert(conn, socket);
                    // Once for its whole life: an edge each for data, room and end, and no call per
                    // write.
                    let both = Interest::READABLE | Interest::WRITABLE;
                    if let Err(error) =
                        self.poll
                            .registry()
                            .register(&mut SourceFd(&fd), token_of(conn), both)
                    {
                        tracing::warn!(shard = self.id, %error, "a connection could not be \
                         polled and was closed");
                        self.conns.remove(conn);
                        self.engine.handle_closed(conn, self.now);
                    }
                }
                Accepted::Aborted | Accepted::Empty => {}
                Accepted::NoDescriptor => {
                    let counters = self.engine.counters();
                    counters.add(Counter::LimitFileDescriptors, 1);
                }
            }
        }
        if acceptor.is_ready(self.now) {
            self.engine.counters().add(Counter::LimitAcceptsPerTurn, 1);
            self.more = true;
        }
        if self.order >= Order::Drain && !acceptor.is_ready(self.now) {
            // Those who were waiting have been accepted, and will be answered; those who come now
            // are refused by the kernel.
            self.acceptor = None;
        }
    }

    /// Connections whose edge was used up while the engine took no bytes.
    fn queue_resumed(&mut self) {
        while let Some(conn) = self.engine.poll_resume() {
            self.conns.clear(conn, flag::PAUSED);
            self.conns.queue(conn, 0);
        }
    }

    /// Acts on what the edges of one connection said: at most one read. Returns the bytes read.
    fn serve(&mut self, conn: ConnId) -> usize {
        if self.conns.has(conn, flag::FAILED) {
            self.fail(conn, None);
            return 0;
        }
        if self.conns.has(conn, flag::WRITABLE) {
            self.conns.clear(conn, flag::WRITABLE | flag::BLOCKED);
            self.engine.handle_writable(conn, self.now);
        }
        if self.conns.has(conn, flag::PAUSED | flag::EOF) {
            return 0;
        }
        let Some(mut socket) = self.conns.socket(conn) else {
            return 0;
        };
        match socket.read(&mut self.read_buffer) {
            Ok(0) => {
                self.conns.set(conn, flag::EOF);
                self.engine.handle_eof(conn, self.now);
                0
            }
            Ok(n) => {
                if !self
                    .engine
                    .handle_bytes(conn, &self.read_buffer[..n], self.now)
                {
                    self.conns.set(conn, flag::PAUSED);
                } else if n == READ_BUFFER_BYTES || self.conns.has(conn, flag::READ_CLOSED) {
                    self.conns.queue(conn, 0);
                }
                n
            }
            Err(error) => {
                match error.kind() {
                    io::ErrorKind::WouldBlock => {}
                    io::ErrorKind::Interrupted => self.conns.queue(conn, 0),
                    _ => self.fail(conn, Some(error)),
                }
                0
            }
        }
    }

    /// Lets go of a connection whose socket failed: with `error`, or as an edge told, which does
    /// not say why.
    fn fail(&mut self, conn: ConnId, error: Option<io::Error>) {
        let Some(socket) = self.conns.remove(conn) else {
            return;
        };
        let error = error.or_else(|| socket.take_error().ok().flatten());
        // What TCP_USER_TIMEOUT ends a connection with.
        if error.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            self.engine.handle_timed_out(conn, self.now);
        } else {
            self.engine.handle_closed(conn, self.now);
        }
    }

    /// Step 5: timers, a slice of the sweep, vouching, drain.
    fn fire_timers(&mut self) {
        let cycles = self.engine.counters().counter(Counter::SweepCycles);
        let began = boottime();
        self.engine.handle_timeout(self.now);
        // Turns without a slice of a sweep add next to nothing.
        self.sweep_micros += boottime().micros_since(began);
        let counters = self.engine.counters();
        if counters.counter(Counter::SweepCycles) > cycles {
            counters.observe(
                Histogram::SweepDuration,
                std::mem::take(&mut self.sweep_micros),
            );
        }
        if self.order == Order::Drain
            && self.engine.is_drained()
            && let Some(on_drained) = self.on_drained.take()
        {
            on_drained.tell();
        }
    }

    /// Step 6: writes what streams and requesters must be told.
    fn flush(&mut self) {
        for _ in 0..self.budgets.flushes {
            let Some(flush) = self.engine.poll_flush(self.now) else {
                return;
            };
            let (conn, offered) = (flush.conn, flush.bytes.len());
            let untimed = self.conns.has(conn, flag::UNTIMED);
            let peer = self
                .conns
                .socket(conn)
                .filter(|_| untimed)
                .map(|socket| peer::ask(socket, self.user_timeout));
            let written = match self.conns.socket(conn) {
                Some(_) if peer == Some(Peer::Dead) => Err(io::ErrorKind::TimedOut.into()),
                Some(socket) => write_some(socket, flush.bytes),
                None => Err(io::ErrorKind::NotConnected.into()),
            };
            match written {
                Ok(n) => {
                    if n < offered {
                        self.conns.set(conn, flag::BLOCKED);
                        self.lift_user_timeout(conn);
                    } else if peer == Some(Peer::CaughtUp) {
                        self.restore_user_timeout(conn);
                    }
                    self.engine.handle_flushed(conn, n, self.now);
                }
                Err(error) => self.fail(conn, Some(error)),
            }
        }
        self.engine.counters().add(Counter::LimitFlushesPerTurn, 1);
        self.more = true;
    }

    /// Leaves a peer whose window is full to the engine, which lets it go when no write gets on.
    /// TCP_USER_TIMEOUT would end it however steadily it reads: Linux counts it from the first
    /// probe of a closed window, and a window that opens by less than the next segment does not
    /// begin the count anew (tcp_probe_timer, tcp_ack_probe).
    fn lift_user_timeout(&mut self, conn: ConnId) {
        if !self.conns.has(conn, flag::UNTIMED) {
            self.conns.set(conn, flag::UNTIMED);
            self.set_user_timeout(conn, None);
        }
    }

    /// The peer has caught up: the kernel may watch over it again. Until then each flush asks
    /// whether it is dead, and a stream is flushed at least once in its keep-alive period.
    fn restore_user_timeout(&mut self, conn: ConnId) {
        self.conns.clear(conn, flag::UNTIMED);
        self.set_user_timeout(conn, Some(self.user_timeout));
    }

    fn set_user_timeout(&self, conn: ConnId, timeout: Option<Duration>) {
        if let Some(socket) = self.conns.socket(conn)
            && let Err(error) = SockRef::from(socket).set_tcp_user_timeout(timeout)
        {
            tracing::debug!(shard = self.id, %error, "a connection's timeout could not be changed");
        }
    }

    /// Step 7: ends what the engine has done with.
    fn close(&mut self) {
        for _ in 0..CLOSES_PER_TURN_MAX {
            let Some(close) = self.engine.poll_close() else {
                return;
            };
            match close.how {
                CloseHow::Close => drop(self.conns.remove(close.conn)),
                CloseHow::ShutdownWrite => {
                    if let Some(socket) = self.conns.socket(close.conn)
                        && let Err(error) = socket.shutdown(Shutdown::Write)
                    {
                        // Reset in the meantime.
                        self.fail(close.conn, Some(error));
                    }
                }
            }
        }
        self.engine.counters().add(Counter::LimitClosesPerTurn, 1);
        self.more = true;
    }

    /// Step 8: hands this turn's mail over, one lock per shard, and wakes who sleeps; and what is
    /// for other nodes.
    fn post_mail(&mut self) {
        while let Some(letter) = self.engine.poll_mail() {
            match letter.to {
                To::Shard(shard) => self.outgoing[usize::from(shard)].push(letter.mail),
                To::Others => {
                    let own = usize::from(self.id);
                    let others = self
                        .outgoing
                        .iter_mut()
                        .enumerate()
                        .filter(|(shard, _)| *shard != own);
                    others.for_each(|(_, batch)| batch.push(letter.mail.clone()));
                }
            }
        }
        let mut refused = self.doors[usize::from(self.id)].take_refused();
        for (door, batch) in self.doors.iter().zip(&mut self.outgoing) {
            if !batch.is_empty() {
                refused += door.post(batch, &mut self.bounced).refused;
            }
        }
        let counters = self.engine.counters();
        counters.add(Counter::MailOverflows, refused);
        // Answered by the engine; the answers are written next turn.
        self.more |= !self.bounced.is_empty();
        for mail in self.bounced.drain(..) {
            self.engine.handle_bounced(mail, self.now);
        }
        while let Some(outbound) = self.engine.poll_outbound(self.now) {
            (self.outbound)(outbound);
        }
    }

    /// Step 9: lets other threads see what was counted. Returns the end of the turn's work.
    fn publish_counters(&mut self) -> Mono {
        let ended = boottime();
        let busy_micros = ended.micros_since(self.now.mono);
        let counters = self.engine.counters();
        counters.add(Counter::TurnBusy, busy_micros);
        counters.observe(Histogram::TurnDuration, busy_micros);
        self.board.shards[usize::from(self.id)].publish(counters);
        ended
    }

    /// Step 10: sleeps until an edge, mail, or the next deadline, and notes what woke it.
    fn sleep(&mut self, ended: Mono) -> io::Result<()> {
        // Flushes and closes of this turn may have made room for more bytes.
        self.queue_resumed();
        self.more |= self.conns.ready_len() > 0;
        let accepting = self
            .acceptor
            .as_ref()
            .map_or(Mono::NEVER, Acceptor::resume_at);
        let deadline = self.engine.poll_timeout().min(accepting);
        let mut sleep_micros = if self.more {
            0
        } else {
            deadline.micros_since(ended).min(SLEEP_MAX_MICROS)
        };
        if sleep_micros > 0
            && !self.doors[usize::from(self.id)]
                .mailbox
                .fall_asleep(self.order)
        {
            sleep_micros = 0;
        }
        // mio rounds up to whole milliseconds, so a deadline is past when its turn begins.
        match self
            .poll
            .poll(&mut self.events, Some(Duration::from_micros(sleep_micros)))
        {
            Ok(()) => self.note_events(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.events.clear(),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn note_events(&mut self) {
        for event in &self.events {
            match event.token() {
                WAKER => {}
                BEATS => {
                    if let Some(datagrams) = &mut self.datagrams {
                        datagrams.set_ready();
                    }
                }
                LISTENER => {
                    if let Some(acceptor) = &mut self.acceptor {
                        acceptor.set_ready();
                    }
                }
                token => {
                    let conn = conn_of(token);
                    let mut flags = 0;
                    if event.is_read_closed() {
                        flags |= flag::READ_CLOSED;
                    }
                    if event.is_writable() && self.conns.has(conn, flag::BLOCKED) {
                        flags |= flag::WRITABLE;
                    }
                    // Closed both ways after the end was told: no other edge will say so.
                    if event.is_error()
                        || (event.is_write_closed() && self.conns.has(conn, flag::EOF))
                    {
                        flags |= flag::FAILED;
                    }
                    if event.is_readable() || flags != 0 {
                        self.conns.queue(conn, flags);
                    }
                }
            }
        }
    }
}

/// What becomes of mail that finds a full mailbox.
fn care(mail: &Mail) -> Care {
    if mail.must_arrive() {
        Care::Deliver
    } else if mail.bounces() {
        Care::Bounce
    } else {
        Care::Resync
    }
}

/// Writes what the socket takes now: 0 if it is full.
fn write_some(mut socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match socket.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
