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
mod spawn;
mod wrong_keys;

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use socket2::SockRef;

use self::accept::Acceptor;
use self::datagrams::Datagrams;
use self::spawn::{Door, DrainTeller};
use self::wrong_keys::WrongKeys;
use crate::engine::turn::{Accepted, Driver, Edge, Inbox, Kernel, Notice, Order, Peer};
use crate::engine::{Mail, Outbound, ShardId, WrongKey};
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
    /// None where no beats are received.
    datagrams: Option<Datagrams>,
    wrong_keys: Arc<WrongKeys>,
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
        for event in &os.events {
            match event.token() {
                WAKER => {}
                BEATS => driver.note_datagrams(),
                LISTENER => driver.note_listener(),
                ADMIN => {
                    os.acceptor.iter_mut().for_each(Acceptor::note_admin);
                    driver.note_listener();
                }
                token => driver.note_edge(conn_of(token), edge_of(event)),
            }
        }
    }
    Ok(())
}

impl Os {
    /// Sleeps until an edge or the waker, and no longer than that.
    fn sleep(&mut self, micros: u64) -> io::Result<()> {
        // mio rounds up to whole milliseconds, so a deadline is past when its turn begins.
        let timeout = Duration::from_micros(micros);
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.events.clear();
                Ok(())
            }
            done => done,
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

    fn refused(&mut self, wrong_key: WrongKey) {
        let datagrams = self.datagrams.as_ref();
        let source = datagrams.and_then(|datagrams| datagrams.source_of(wrong_key.nth));
        let now = self.mono();
        let line = source.and_then(|source| self.wrong_keys.note(wrong_key, source, now));
        if let Some(line) = line {
            tracing::warn!("{line}");
        }
    }

    fn accept(&mut self) -> Accepted<TcpStream> {
        self.acceptor
            .as_mut()
            .map_or(Accepted::Empty, Acceptor::accept)
    }

    fn accept_on_reserve(&mut self) -> Accepted<TcpStream> {
        self.acceptor
            .as_mut()
            .map_or(Accepted::Empty, Acceptor::accept_on_reserve)
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
    }

    fn watch(&mut self, conn: ConnId, socket: &TcpStream) -> io::Result<()> {
        // Once for its whole life: an edge each for data, room and end, and no call per write.
        let both = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        let watched =
            self.poll
                .registry()
                .register(&mut SourceFd(&socket.as_raw_fd()), token_of(conn), both);
        if let Err(error) = &watched {
            tracing::warn!(shard = self.id, %error, "a connection could not be polled and was \
             closed");
        }
        watched
    }

    fn read(&mut self, socket: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        socket.read(buffer)
    }

    fn write(&mut self, socket: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
        socket.write(bytes)
    }

    fn shut_down(&mut self, socket: &mut TcpStream) -> io::Result<()> {
        socket.shutdown(Shutdown::Write)
    }

    fn close(&mut self, socket: TcpStream) {
        // Closing the only descriptor of a socket takes it out of the poll as well.
        drop(socket);
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
