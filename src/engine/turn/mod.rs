//! The turn of one shard, without a kernel: the same code in production, in the simulators, in the
//! tests and in the benches.
//!
//! Owns the engine, its inbox, the sockets, the budgets and the order of a turn's steps, one
//! function each. Decides when to read, what an edge means, what becomes of what a write left over,
//! and how long to sleep. Never makes a system call: a [`Kernel`] does. Decides nothing about
//! requests, streams or presence: that is the engine's. No step allocates per event.
//!
//! One deadline holds for the whole turn. Each step works in slices of counted work, looks at the
//! clock between two of them, and stops when its budget or its share of the turn's time is used up;
//! what it leaves over makes the next sleep zero. Every step does its first slice in every turn, so
//! that none starves. So a turn takes no longer than its time and a slice of each step, whatever
//! peers have sent: all others wait for no more than that.

mod accepting;
mod beats;
mod budgets;
mod kernel;
mod serving;
mod sockets;

use std::collections::VecDeque;
use std::sync::Arc;

pub use budgets::Budgets;
pub use kernel::{Accepted, Edge, Inbox, Kernel, Notice, Order, Peer, Piece, Shakes, Sign};

use super::{Engine, EngineParts, Mail, Refusals, ShardId, To};
use crate::metrics::{Board, Counter, Gauge, Histogram};
use crate::time::{Mono, Now};
use accepting::Accepting;
use budgets::Step;
use sockets::Sockets;

/// Longest sleep, in microseconds: every shard turns at least once a second, by which the others
/// know that it lives.
const SLEEP_MICROS_MAX: u64 = 1_000_000;
/// Connections that may wait to be written to when another request that takes long is begun; and
/// answers of this turn when another connection is read. Each is in a buffer until then, and what a
/// burst takes of the heap lies between what stays there.
const FLUSHES_AHEAD: usize = 32;

/// One shard but for its kernel.
pub struct Driver<S> {
    shard: ShardId,
    engine: Engine,
    budgets: Budgets,
    board: Arc<Board>,

    now: Now,
    /// A step left work over.
    more: bool,
    /// The turn's time was over before its work.
    is_late: bool,
    /// Beats that one datagram's buffer has brought lately: how many one call may ask for.
    beats_per_buffer: usize,
    /// Working time of this turn's beats, and of all else in the turn before.
    beats_micros: u64,
    others_micros: u64,
    /// Handshakes were left over by the turn before.
    shakes_wait: bool,
    /// Requests that take long have waited for a whole turn.
    deferred_wait: bool,
    /// Working time of the sweep under way so far.
    sweep_micros: u64,

    sockets: Sockets<S>,
    read_buffer: Box<[u8]>,
    accepting: Accepting<S>,
    /// The socket may hold datagrams: its edge was seen and no read has come back empty since.
    datagrams_wait: bool,
    /// When the kernel is next asked what it dropped.
    losses_at: Mono,

    inbox: Inbox,
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
            is_late: false,
            beats_per_buffer: 1,
            beats_micros: 0,
            others_micros: 0,
            shakes_wait: false,
            deferred_wait: false,
            sweep_micros: 0,
            sockets: Sockets::new(parts.settings.load().conns_max),
            read_buffer: vec![0; budgets.read_buffer_bytes].into_boxed_slice(),
            accepting: Accepting::new(Refusals::new(parts.settings.clone())),
            datagrams_wait: true,
            losses_at: Mono::default(),
            inbox: Inbox::default(),
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
        self.work(kernel);
        self.serve_deferred(kernel);
        self.flush(kernel);
        self.shake_hands(kernel);
        self.close(kernel);
        self.post_mail(kernel);
        let ended = self.report(kernel);
        self.rest(ended, kernel)
    }

    /// Step 1: everything in this turn happens at this moment.
    pub fn begin(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        self.more = false;
        self.is_late = false;
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
            let at_once = notice.order > Order::Drain;
            self.engine.begin_drain(at_once, self.now);
        }
        if notice.order == Order::Close && self.order < Order::Close {
            // A last look at who waits.
            self.accepting.note_edge();
            self.is_drained = false;
        }
        self.order = notice.order;
        if notice.resync {
            self.engine.handle_resync(self.now);
        }
        let counters = self.engine.counters();
        counters.add(Counter::MailOverflows, notice.refused);
        counters.set(Gauge::MailboxDepth, self.inbox.len() as u64);
        let mut budget = self.budgets.mail;
        self.read_mail(|inbox| &mut inbox.hints, &mut budget, kernel);
        // One at least, whatever has come before it: somebody waits.
        budget = budget.max(1);
        self.read_mail(|inbox| &mut inbox.edits, &mut budget, kernel);
        // Without mail too: what bounced last turn has been answered since.
        kernel.worked(Piece::Mail, &mut self.engine);
        if !self.inbox.is_empty() {
            self.left_over(Counter::LimitMailPerTurn);
        }
    }

    /// Reads mail of one kind, a piece at least.
    fn read_mail(
        &mut self,
        kind: impl Fn(&mut Inbox) -> &mut VecDeque<Mail>,
        budget: &mut usize,
        kernel: &mut impl Kernel<Socket = S>,
    ) {
        let mut read = 0;
        while *budget > 0
            && !self.is_over(Step::Mail, read, kernel)
            && let Some(mail) = kind(&mut self.inbox).pop_front()
        {
            *budget = budget.saturating_sub(mail.weight());
            read += 1;
            self.engine.handle_mail(mail, self.now);
            kernel.worked(Piece::Mail, &mut self.engine);
        }
    }

    /// Whether a step that has done so many pieces begins no other: its share of the turn's time is
    /// over.
    fn is_over(&mut self, step: Step, pieces: usize, kernel: &mut impl Kernel<Socket = S>) -> bool {
        if pieces < step.pieces_min() {
            return false;
        }
        let spent_micros = kernel.mono().micros_since(self.now.mono);
        let over = spent_micros * 100 >= self.budgets.turn_micros * step.ends_at_percent();
        self.is_late |= over;
        over
    }

    /// Step 5: timers, a slice of the sweep, vouching, drain. Of each stream that vouches for its
    /// holder the kernel is asked first.
    pub fn fire_timers(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        let cycles = self.engine.counters().counter(Counter::SweepCycles);
        let began = kernel.mono();
        self.engine.handle_timeout(self.now);
        self.ask_kernel(kernel);
        // Turns without a slice of a sweep add next to nothing.
        self.sweep_micros += kernel.mono().micros_since(began);
        let counters = self.engine.counters();
        if counters.counter(Counter::SweepCycles) > cycles {
            let sweep_micros = std::mem::take(&mut self.sweep_micros);
            counters.observe(Histogram::SweepDuration, sweep_micros);
        }
        if !self.is_drained && self.engine.is_drained() {
            self.is_drained = true;
            kernel.drained(self.order);
        }
        kernel.worked(Piece::Timers, &mut self.engine);
    }

    /// Step 6: slices of what waits: watchers to be marked, watches of streams that have ended.
    pub fn work(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        let mut slices = 0;
        while self.engine.has_work() {
            if self.is_over(Step::Work, slices, kernel) {
                self.more = true;
                return;
            }
            self.engine.work(self.now);
            kernel.worked(Piece::Work, &mut self.engine);
            slices += 1;
        }
    }

    /// Step 6 also: requests that take long to serve, one a slice, so that short ones of others
    /// wait for one of them at most. None is begun before the answers of those before it are on
    /// their way.
    pub fn serve_deferred(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        let mut served = 0;
        while self.engine.has_deferred() {
            let crowded = served > 0 && self.engine.awaiting_flush() > FLUSHES_AHEAD;
            // Another long piece has made this turn late: one turn later it is these requests'.
            let waits = served == 0 && !self.deferred_wait && self.is_over(Step::Work, 1, kernel);
            if crowded || waits || self.is_over(Step::Work, served, kernel) {
                self.deferred_wait = waits;
                self.more = true;
                return;
            }
            self.deferred_wait = false;
            let Some(conn) = self.engine.poll_deferred() else {
                return;
            };
            self.engine.serve_deferred(conn, self.now);
            if let Some(socket) = self.sockets.get_mut(conn) {
                kernel.worked(Piece::Request(socket), &mut self.engine);
            }
            served += 1;
        }
    }

    /// Step 7 also: handshakes, for a time of their own, behind what everybody waits for.
    pub fn shake_hands(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        let Shakes { more, ready } = kernel.shake_hands(self.engine.counters());
        if ready {
            self.accepting.note_edge();
        }
        self.shakes_wait = more || ready;
        self.more |= self.shakes_wait;
    }

    /// Step 9: hands this turn's mail over, one batch per shard; and what is for other nodes.
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

    /// Step 10: lets other threads see what was counted. Returns the end of the turn's work.
    pub fn report(&mut self, kernel: &mut impl Kernel<Socket = S>) -> Mono {
        let ended = kernel.mono();
        let busy_micros = ended.micros_since(self.now.mono);
        self.others_micros = busy_micros.saturating_sub(self.beats_micros);
        let counters = self.engine.counters();
        counters.add(Counter::LimitTurnTime, u64::from(self.is_late));
        counters.add(Counter::TurnBusy, busy_micros);
        counters.observe(Histogram::TurnDuration, busy_micros);
        self.board.shards[usize::from(self.shard)].publish(counters);
        ended
    }

    /// Step 11: how long this shard may sleep, in microseconds, until an edge, mail, or the next
    /// deadline.
    fn rest(&mut self, ended: Mono, kernel: &mut impl Kernel<Socket = S>) -> u64 {
        // Flushes and closes of this turn may have made room for more bytes.
        self.queue_resumed();
        if self.more || self.sockets.has_ready() || self.engine.has_deferred() {
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

    /// Something has come.
    pub fn note(&mut self, sign: Sign) {
        match sign {
            Sign::Datagrams => self.note_datagrams(),
            Sign::Listener => self.note_listener(),
            Sign::Conn(conn, edge) => self.note_edge(conn, edge),
            Sign::Mail => {}
        }
    }

    /// An edge of a listener, or of the connection on the reserve descriptor.
    pub fn note_listener(&mut self) {
        self.accepting.note_edge();
    }

    /// An edge of the beat socket.
    pub fn note_datagrams(&mut self) {
        self.datagrams_wait = true;
    }

    /// A budget is used up and there is more.
    fn left_over(&mut self, reached: Counter) {
        self.engine.counters().add(reached, 1);
        self.more = true;
    }
}
