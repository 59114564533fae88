//! What only a kernel can do for a turn, and the words in which it is asked and answers.
//!
//! Owns the seam: [`Kernel`] has one implementation that makes system calls and several that make
//! them up. An implementation does what it is told and reports what came of it. It decides nothing:
//! what a result means, and what is done next, is the driver's.

use core::net::IpAddr;
use std::collections::VecDeque;
use std::io;

use crate::engine::{Engine, Mail, Outbound, Refused, ShardId};
use crate::metrics::Counters;
use crate::realtime::ConnId;
use crate::time::{Mono, Now};

/// What only a kernel can do for a [`Driver`](super::Driver). No call blocks.
pub trait Kernel {
    /// One connection's socket.
    type Socket;

    /// The time; read once a turn.
    fn now(&mut self) -> Now;

    /// The time within a turn, asked for between two pieces of work: it says how long they took.
    fn mono(&mut self) -> Mono;

    /// Swaps the mail that has come for what is empty of `inbox`, and tells what else has come.
    fn take_mail(&mut self, inbox: &mut Inbox) -> Notice;

    /// Posts all of `batch` to another shard, in order; what bounces is pushed to `bounced`.
    /// Returns how many pieces found its mailbox full.
    fn post(&mut self, to: ShardId, batch: &mut Vec<Mail>, bounced: &mut Vec<Mail>) -> u64;

    /// Takes what is for other nodes.
    fn send(&mut self, outbound: Outbound);

    /// One system call's worth of datagrams, handed over in batches to `take`, which answers how
    /// many beats each was. No more than `beats_max` datagrams are asked for; one buffer may hold
    /// several that the kernel merged. Returns the beats; an error if there are no datagrams.
    fn receive(
        &mut self,
        beats_max: usize,
        take: impl FnMut(&[&[u8]]) -> usize,
    ) -> io::Result<usize>;

    /// Datagrams of the last [`Kernel::receive`] were refused; told once for each reason.
    fn refused(&mut self, _refused: Refused) {}

    /// Passes on what has come since the last sleep, without sleeping: asked within a step that may
    /// go on for long while nobody else waits.
    fn look(&mut self, _note: impl FnMut(Sign)) {}

    /// Accepts one connection, an operator's first.
    fn accept(&mut self) -> Accepted<Self::Socket>;

    /// When the connection came that was accepted last, if that was before this turn: it has had a
    /// handshake since.
    fn came_at(&mut self) -> Option<Mono> {
        None
    }

    /// Accepts one connection on the descriptor that is kept for when there is no other. Closing
    /// it, and no other call, makes room for the next on the same descriptor.
    fn accept_on_reserve(&mut self) -> Accepted<Self::Socket>;

    /// Those accepted on the reserve descriptor are closed: keeps it again.
    fn keep_reserve(&mut self);

    /// Has the edges of a connection on the reserve descriptor told as the listener's.
    fn watch_held(&mut self, socket: &Self::Socket) -> io::Result<()>;

    /// Closes the listeners: those who come from now on are refused by the kernel.
    fn stop_listening(&mut self);

    /// The address that a connection comes from. None: it has none, or has gone already.
    fn address(&mut self, _socket: &Self::Socket) -> Option<IpAddr> {
        None
    }

    /// Has the edges of a socket told from now on, for the whole of its life.
    fn watch(&mut self, conn: ConnId, socket: &Self::Socket) -> io::Result<()>;

    /// Reads what has come, at most as much as `buffer` holds; 0 is the end. Less than it holds
    /// means that the socket is empty: what comes later is told by an edge.
    fn read(&mut self, socket: &mut Self::Socket, buffer: &mut [u8]) -> io::Result<usize>;

    /// Whether a read has something to give although the last one did not fill its buffer, and no
    /// edge will tell of it: what came was sealed, and is opened as it is taken.
    fn holds_more(&self, _socket: &Self::Socket) -> bool {
        false
    }

    /// Datagrams that the kernel has dropped since the last call, for want of room.
    fn lost_datagrams(&mut self) -> u64 {
        0
    }

    /// Goes on with handshakes of connections that are not accepted before these are over, for no
    /// longer than they may take of a turn.
    fn shake_hands(&mut self, _counters: &mut Counters) -> Shakes {
        Shakes::default()
    }

    /// What a write to this socket needs is fetched into the cache: one is soon to come.
    fn expect_write(&self, _socket: &Self::Socket) {}

    /// Writes as much as the socket takes now. What it does not take now is offered again after an
    /// edge has told of room.
    fn write(&mut self, socket: &mut Self::Socket, bytes: &[u8]) -> io::Result<usize>;

    /// Shuts our sending half.
    fn shut_down(&mut self, socket: &mut Self::Socket) -> io::Result<()>;

    /// Closes a socket, which ends its edges.
    fn close(&mut self, socket: Self::Socket);

    /// The same, and throws away what its peer has not taken, which a reset tells it. A kernel
    /// keeps that otherwise, for as long as the peer answers its probes.
    fn reset(&mut self, socket: Self::Socket) {
        self.close(socket);
    }

    /// The error that an edge told of.
    fn error(&mut self, socket: &Self::Socket) -> Option<io::Error>;

    /// How a peer is getting on with what was written to it.
    fn peer(&mut self, socket: &Self::Socket) -> Peer;

    /// None: the peer has acknowledged all that was written. Else the time since it last
    /// acknowledged anything, in ms.
    fn unacknowledged_ms(&mut self, socket: &Self::Socket) -> Option<u64>;

    /// Whether the kernel itself ends a connection whose peer acknowledges nothing for
    /// `write_stall_max_ms` (TCP_USER_TIMEOUT); it does so from the beginning.
    fn watch_over(&mut self, socket: &Self::Socket, on: bool);

    /// False if something has come that must be looked at before sleeping. From true until the next
    /// [`Kernel::take_mail`] whoever posts mail or an order later than `seen` wakes this shard.
    fn fall_asleep(&mut self, seen: Order) -> bool;

    /// No connection is left, while this order holds; told once for each.
    fn drained(&mut self, order: Order);

    /// The engine has just done a piece of work. For simulators, which look at it in between.
    fn worked(&mut self, _piece: Piece<'_, Self::Socket>, _engine: &mut Engine) {}
}

/// Mail that has been taken and not been read: what is small and told to many, and behind it what
/// is long and somebody waits for.
#[derive(Debug)]
pub struct Inbox<M = Mail> {
    /// Transitions, looks, replies.
    pub hints: VecDeque<M>,
    /// Edits of watch lists.
    pub edits: VecDeque<M>,
}

impl<M> Default for Inbox<M> {
    fn default() -> Inbox<M> {
        Inbox {
            hints: VecDeque::new(),
            edits: VecDeque::new(),
        }
    }
}

impl<M> Inbox<M> {
    /// Pieces in all.
    pub fn len(&self) -> usize {
        self.hints.len() + self.edits.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A piece of a turn's work.
#[derive(Debug)]
pub enum Piece<'a, S> {
    /// A piece of mail.
    Mail,
    /// A batch of datagrams.
    Beats,
    /// Bytes of one connection.
    Bytes(&'a S),
    /// A request of one connection that took a slice of its own.
    Request(&'a S),
    /// Timers, sweep and the like.
    Timers,
    /// A slice of what waits.
    Work,
    Flush(&'a S),
}

/// What the process wants of a shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Order {
    Run,
    /// Shut down gracefully; go on turning, others may need this shard's answers.
    Drain,
    /// The same, with all streams closed now: somebody waits at a terminal.
    DrainAtOnce,
    /// Accept nobody any more but those who wait; answer them.
    Close,
    /// Leave the loop.
    Stop,
}

/// What a shard finds besides mail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Notice {
    /// Mail was dropped since the last look.
    pub resync: bool,
    /// Pieces that found the mailbox full and whose sender has no counters.
    pub refused: u64,
    /// The latest order.
    pub order: Order,
}

/// What became of one attempt to accept.
#[derive(Debug)]
pub enum Accepted<S> {
    Socket(S),
    /// One that came by the operators' listener.
    Admin(S),
    /// One that ended before it was accepted, or is not accepted before a handshake is over: try
    /// the next.
    Aborted,
    /// None is waiting.
    Empty,
    /// There is no descriptor for one.
    NoDescriptor,
    /// There is no memory for one.
    NoMemory,
}

/// What became of a turn's handshakes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shakes {
    /// Some have more to do.
    pub more: bool,
    /// The listener is worth an attempt: some are over, or there is room for others.
    pub ready: bool,
}

/// What has come, and for whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sign {
    /// Datagrams, at the beat socket.
    Datagrams,
    /// An edge of a listener, or of the connection on the reserve descriptor.
    Listener,
    /// An edge of a connection's socket.
    Conn(ConnId, Edge),
    /// Mail or an order: [`Kernel::take_mail`] has it.
    Mail,
}

/// What an edge told of one socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Edge {
    /// Bytes have come, or the end.
    pub readable: bool,
    /// There is room for bytes.
    pub writable: bool,
    /// The peer has shut its sending half: no other edge will tell of bytes.
    pub read_closed: bool,
    /// Urgent data have come. A read stops short where they stood, and does not mean that the
    /// socket is empty.
    pub urgent: bool,
    /// Nothing can be sent any more.
    pub write_closed: bool,
    /// Reset, timed out, or the like.
    pub error: bool,
}

/// How a peer is getting on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// It has acknowledged all that was written.
    CaughtUp,
    /// Something is not acknowledged yet.
    Behind,
    /// Something is not acknowledged, and no acknowledgement of any kind has come for
    /// `write_stall_max_ms`.
    Dead,
}
