//! The kernel's side of a shard: sockets, mail, the clock and sleep. The only place that uses mio.
//!
//! Owns one shard's descriptors and makes the system calls that its driver asks for. Decides
//! nothing: what is done, in which order and how much of it in a turn is the driver's
//! (`engine/turn/`), what is said is the engine's.

mod accept;
mod bind;
mod datagrams;
pub mod mailbox;
mod peer;
mod refused;
mod spawn;
pub mod tls;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use socket2::SockRef;

use self::accept::{Acceptor, Arrival};
use self::datagrams::Datagrams;
use self::refused::{Line, RefusedLines};
use self::spawn::{Door, DrainTeller};
use self::tls::Tls;
use crate::engine::turn::{
    Accepted, Driver, Edge, Inbox, Kernel, Notice, Order, Peer, Shakes, Sign,
};
use crate::engine::{Entrance, Mail, Outbound, Refused, ShardId};
use crate::metrics::Counters;
use crate::realtime::ConnId;
use crate::time::{Clock, Mono, Now, boottime};

pub use bind::{BindFault, BindOptions, Bound, bind};
pub use spawn::{Drained, Shards, Teller, spawn, vital_thread};

/// Edges taken from the kernel at once.
const EVENTS_MAX: usize = 1_024;

// A generation reaches u32::MAX after four billion lives of one index, and no shard has 2^32 - 4
// connections.
const LISTENER: Token = Token(usize::MAX - 1);
const BEATS: Token = Token(usize::MAX - 2);
const WAKER: Token = Token(usize::MAX - 3);
const ADMIN: Token = Token(usize::MAX - 4);
const HTTPS: Token = Token(usize::MAX - 5);
/// The generation in the token of a socket whose handshake is not over, whose index is its
/// descriptor. A connection of that generation may have the same token: an edge is then told to
/// both, and one that is of no use costs an attempt.
const SHAKING: u32 = u32::MAX;

const _: () = assert!(size_of::<usize>() == 8, "a token holds a ConnId");
const _: () = assert!(
    size_of::<Option<TcpStream>>() == 4,
    "the shard's share of a connection's memory"
);

/// Where what is for other nodes goes; it does not block.
pub type Outlet = Box<dyn FnMut(Outbound) + Send>;

/// One shard's descriptors, and what it shares with other threads.
struct Os {
    id: ShardId,
    poll: Poll,
    events: Events,
    clock: Arc<Clock>,
    /// None once nobody is accepted any more.
    acceptor: Option<Acceptor>,
    /// None where nothing speaks TLS.
    tls: Option<Tls>,
    /// When the connection came that was accepted last, if it has had a handshake since.
    came_at: Option<Mono>,
    /// None where no beats are received.
    datagrams: Option<Datagrams>,
    refused_lines: Arc<RefusedLines>,
    /// TCP_USER_TIMEOUT of a connection whose window is not full.
    user_timeout: Duration,
    doors: Arc<[Door]>,
    outbound: Outlet,
    /// Told that no connection is left.
    on_drained: DrainTeller,
}

/// Turns until told to stop. Fails only if the kernel refuses to poll.
fn run(mut driver: Driver<TcpStream>, mut os: Os) -> io::Result<()> {
    while driver.order() < Order::Stop {
        let sleep_micros = driver.turn(&mut os);
        os.sleep(sleep_micros)?;
        os.tell_edges(|sign| driver.note(sign));
    }
    Ok(())
}

impl Os {
    /// Sleeps until an edge or the waker, and no longer than that.
    fn sleep(&mut self, micros: u64) -> io::Result<()> {
        // mio rounds up to whole milliseconds, so a deadline is past when its turn begins.
        let mut timeout = Duration::from_micros(micros);
        if let Some(tls) = self.tls.as_ref().filter(|_| micros > 0) {
            let due_micros = tls.due().micros_since(boottime());
            timeout = timeout.min(Duration::from_micros(due_micros));
        }
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.events.clear();
                Ok(())
            }
            done => done,
        }
    }

    /// Passes on what the last sleep was ended by, or a look has found.
    fn tell_edges(&mut self, mut note: impl FnMut(Sign)) {
        for event in &self.events {
            let sign = match event.token() {
                WAKER => Sign::Mail,
                BEATS => Sign::Datagrams,
                LISTENER => Sign::Listener,
                ADMIN => {
                    self.acceptor.iter_mut().for_each(Acceptor::note_admin);
                    Sign::Listener
                }
                HTTPS => {
                    self.acceptor.iter_mut().for_each(Acceptor::note_https);
                    Sign::Listener
                }
                token => {
                    let conn = conn_of(token);
                    // Its handshake is not over. The driver is told of it as well, and knows no
                    // such connection.
                    if conn.generation == SHAKING
                        && let (Some(tls), Ok(fd)) = (&mut self.tls, RawFd::try_from(conn.index))
                    {
                        tls.note_edge(fd);
                    }
                    Sign::Conn(conn, edge_of(event))
                }
            };
            note(sign);
        }
    }

    /// What an arrival is to the driver.
    fn take(&mut self, arrival: Arrival) -> Accepted<TcpStream> {
        let (entrance, socket) = match arrival {
            Arrival::Came {
                entrance,
                tls: true,
                socket,
            } => {
                self.begin(entrance, socket);
                return Accepted::Aborted;
            }
            Arrival::Came {
                entrance,
                tls: false,
                socket,
            } => (entrance, socket),
            Arrival::NoRoom => {
                self.tls.iter_mut().for_each(Tls::note_no_room);
                return Accepted::Empty;
            }
            Arrival::None(other) => return other,
        };
        if let Some(tls) = &mut self.tls {
            tls.forget(&socket);
        }
        by(entrance, socket)
    }

    /// Keeps a connection until its handshake is over. What it has said already is an edge.
    fn begin(&mut self, entrance: Entrance, socket: TcpStream) {
        let token = token_of(ConnId {
            index: socket.as_raw_fd() as u32,
            generation: SHAKING,
        });
        let mut source = SourceFd(&socket.as_raw_fd());
        // Room there is, and an edge of it would be a turn for nothing.
        let readable = Interest::READABLE;
        match (
            &mut self.tls,
            self.poll.registry().register(&mut source, token, readable),
        ) {
            (Some(tls), Ok(())) => tls.begin(entrance, socket, boottime()),
            (_, Ok(())) => {}
            (_, Err(error)) => tracing::warn!(shard = self.id, %error, "a connection could not be \
             polled and was closed"),
        }
    }

    fn door(&self) -> &Door {
        &self.doors[usize::from(self.id)]
    }
}

impl Kernel for Os {
    type Socket = TcpStream;

    fn now(&mut self) -> Now {
        self.clock.now()
    }

    fn mono(&mut self) -> Mono {
        boottime()
    }

    fn take_mail(&mut self, inbox: &mut Inbox) -> Notice {
        self.door().mailbox.take(inbox)
    }

    fn post(&mut self, to: ShardId, batch: &mut Vec<Mail>, bounced: &mut Vec<Mail>) -> u64 {
        self.doors[usize::from(to)].post(batch, bounced)
    }

    fn fall_asleep(&mut self, seen: Order) -> bool {
        self.door().mailbox.fall_asleep(seen)
    }

    fn send(&mut self, outbound: Outbound) {
        (self.outbound)(outbound);
    }

    fn drained(&mut self, order: Order) {
        self.on_drained.tell(order);
    }

    fn receive(
        &mut self,
        beats_max: usize,
        take: impl FnMut(&[&[u8]]) -> usize,
    ) -> io::Result<usize> {
        let Some(datagrams) = &mut self.datagrams else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let received = datagrams.receive(beats_max, take);
        if let Err(error) = &received
            && !matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            )
        {
            tracing::warn!(shard = self.id, %error, "receiving beats failed; the next datagram \
             tries again");
        }
        received
    }

    fn look(&mut self, mut note: impl FnMut(Sign)) {
        match self.poll.poll(&mut self.events, Some(Duration::ZERO)) {
            Ok(()) => self.tell_edges(&mut note),
            // The next sleep says what it is.
            Err(_) => self.events.clear(),
        }
        if self.door().mailbox.has_mail() {
            note(Sign::Mail);
        }
    }

    fn lost_datagrams(&mut self) -> u64 {
        let datagrams = self.datagrams.as_mut();
        datagrams.map_or(0, |datagrams| u64::from(datagrams.lost()))
    }

    fn refused(&mut self, refused: Refused) {
        let datagrams = self.datagrams.as_ref();
        let source = || datagrams.and_then(|datagrams| datagrams.source_of(refused.nth));
        match self.refused_lines.note(refused, source, boottime()) {
            Some(Line {
                is_warning: true,
                text,
            }) => tracing::warn!("{text}"),
            Some(line) => tracing::info!("{}", line.text),
            None => {}
        }
    }

    fn accept(&mut self) -> Accepted<TcpStream> {
        let Some(acceptor) = &mut self.acceptor else {
            return Accepted::Empty;
        };
        self.came_at = None;
        let ready = self.tls.as_mut().and_then(|tls| tls.take_ready(boottime()));
        if let Some((entrance, socket, came_at)) = ready {
            self.came_at = Some(came_at);
            return by(entrance, socket);
        }
        let arrival = acceptor.accept(self.tls.as_ref());
        self.take(arrival)
    }

    fn came_at(&mut self) -> Option<Mono> {
        self.came_at
    }

    fn accept_on_reserve(&mut self) -> Accepted<TcpStream> {
        let Some(acceptor) = &mut self.acceptor else {
            return Accepted::Empty;
        };
        match acceptor.accept_on_reserve(self.tls.as_ref()) {
            // The driver hears it, be it for a moment: it is told inside TLS, if it is quick.
            Arrival::Came {
                entrance,
                tls: true,
                socket,
            } => {
                if let Some(tls) = &mut self.tls {
                    tls.begin_in_driver(&socket);
                }
                by(entrance, socket)
            }
            arrival => self.take(arrival),
        }
    }

    fn keep_reserve(&mut self) {
        self.acceptor.iter_mut().for_each(Acceptor::keep_reserve);
    }

    fn watch_held(&mut self, socket: &TcpStream) -> io::Result<()> {
        // Closing ends the registration; bytes that have come since are an edge.
        self.poll.registry().register(
            &mut SourceFd(&socket.as_raw_fd()),
            LISTENER,
            Interest::READABLE,
        )
    }

    fn stop_listening(&mut self) {
        self.acceptor = None;
        self.tls.iter_mut().for_each(Tls::stop);
    }

    fn shake_hands(&mut self, counters: &mut Counters) -> Shakes {
        let Some(tls) = &mut self.tls else {
            return Shakes::default();
        };
        tls.shake(counters, boottime)
    }

    fn watch(&mut self, conn: ConnId, socket: &TcpStream) -> io::Result<()> {
        // Once for its whole life: an edge each for data, room and end, and no call per write.
        let both = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        let (registry, token) = (self.poll.registry(), token_of(conn));
        let descriptor = socket.as_raw_fd();
        let mut source = SourceFd(&descriptor);
        // One whose handshake was polled has an edge anew for what has come since.
        let watched = match self.tls.as_ref().is_some_and(|tls| tls.has(socket)) {
            true => registry.reregister(&mut source, token, both),
            false => registry.register(&mut source, token, both),
        };
        if let Err(error) = &watched {
            tracing::warn!(shard = self.id, %error, "a connection could not be polled and was \
             closed");
        }
        watched
    }

    fn read(&mut self, socket: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        let sealed = self.tls.as_mut().and_then(|tls| tls.read(socket, buffer));
        sealed.unwrap_or_else(|| socket.read(buffer))
    }

    fn holds_more(&self, socket: &TcpStream) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.holds_more(socket))
    }

    fn expect_write(&self, socket: &TcpStream) {
        self.tls.iter().for_each(|tls| tls.expect_write(socket));
    }

    fn write(&mut self, socket: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
        let sealed = self.tls.as_mut().and_then(|tls| tls.write(socket, bytes));
        sealed.unwrap_or_else(|| socket.write(bytes))
    }

    fn shut_down(&mut self, socket: &mut TcpStream) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.shut_down(socket);
        }
        socket.shutdown(Shutdown::Write)
    }

    fn close(&mut self, socket: TcpStream) {
        if let Some(tls) = &mut self.tls {
            tls.close(&socket);
        }
        // Closing the only descriptor of a socket takes it out of the poll as well.
        drop(socket);
    }

    fn reset(&mut self, socket: TcpStream) {
        if let Err(error) = SockRef::from(&socket).set_linger(Some(Duration::ZERO)) {
            tracing::debug!(shard = self.id, %error, "a connection could not be reset");
        }
        self.close(socket);
    }

    fn address(&mut self, socket: &TcpStream) -> Option<IpAddr> {
        socket.peer_addr().ok().map(|peer| peer.ip())
    }

    fn error(&mut self, socket: &TcpStream) -> Option<io::Error> {
        socket.take_error().ok().flatten()
    }

    fn peer(&mut self, socket: &TcpStream) -> Peer {
        peer::ask(socket, self.user_timeout)
    }

    fn unacknowledged_ms(&mut self, socket: &TcpStream) -> Option<u64> {
        peer::unacknowledged_ms(socket)
    }

    fn watch_over(&mut self, socket: &TcpStream, on: bool) {
        let timeout = on.then_some(self.user_timeout);
        if let Err(error) = SockRef::from(socket).set_tcp_user_timeout(timeout) {
            tracing::debug!(shard = self.id, %error, "a connection's timeout could not be changed");
        }
    }
}

fn by(entrance: Entrance, socket: TcpStream) -> Accepted<TcpStream> {
    match entrance {
        Entrance::Public => Accepted::Socket(socket),
        Entrance::Admin => Accepted::Admin(socket),
    }
}

fn edge_of(event: &Event) -> Edge {
    Edge {
        readable: event.is_readable(),
        writable: event.is_writable(),
        read_closed: event.is_read_closed(),
        urgent: event.is_priority(),
        write_closed: event.is_write_closed(),
        error: event.is_error(),
    }
}

/// The token under which a connection's socket is registered.
fn token_of(conn: ConnId) -> Token {
    Token(((conn.generation as usize) << 32) | conn.index as usize)
}

/// The connection of a token made by [`token_of`].
fn conn_of(token: Token) -> ConnId {
    ConnId {
        index: token.0 as u32,
        generation: (token.0 >> 32) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_carry_the_whole_id() {
        for (index, generation) in [(0, 0), (7, u32::MAX), (u32::MAX - 8, 1)] {
            let conn = ConnId { index, generation };
            assert_eq!(conn_of(token_of(conn)), conn);
        }
    }
}
