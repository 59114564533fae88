//! The kernel that the drivers run on: sockets that take what they are told to, mailboxes, a
//! clock that stands still.
//!
//! Owns what is outside of the shards. Nothing happens that `harness.rs` was not told.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;

use greendot::engine::turn::{
    Accepted, Edge, Inbox, Kernel, Notice, Order, Peer as Acknowledged, Piece, Sign,
};
use greendot::engine::{Engine, Entrance, Mail, Outbound, Refused, ShardId, Verdict};
use greendot::realtime::ConnId;
use greendot::shard::mailbox::Mailbox;
use greendot::time::{Mono, Now};

use super::chunks::Chunks;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Socket {
    Open,
    WriteShut,
    Closed,
}

/// A client's end of a connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) shard: usize,
    pub(crate) address: Option<IpAddr>,
    /// The engine's name for it, once accepted.
    pub(crate) id: Option<ConnId>,
    pub(crate) socket: Socket,
    /// What has arrived since the last `expect`, without the frames of chunks.
    pub(crate) received: Vec<u8>,
    pub(crate) chunks: Chunks,
    /// So many bytes have come in all.
    pub(crate) received_bytes: usize,
    /// Bytes that the socket still takes.
    pub(crate) window: usize,
    pub(crate) blocked: bool,
    /// Sent, and not yet read by the server.
    pub(crate) sent: VecDeque<u8>,
    /// Nothing comes behind that.
    pub(crate) ended: bool,
    /// The server has thrown away what it had not read.
    pub(crate) was_reset: bool,
    /// Its kernel acknowledges nothing any more.
    pub(crate) vanished: bool,
    /// Something that was written is not acknowledged.
    pub(crate) owes: bool,
    pub(crate) acknowledged_at: Mono,
    /// What the server's end says of it.
    pub(crate) error: Option<io::ErrorKind>,
}

impl Client {
    pub(crate) fn new(shard: usize) -> Client {
        Client {
            shard,
            address: None,
            id: None,
            socket: Socket::Open,
            received: Vec::new(),
            chunks: Chunks::default(),
            received_bytes: 0,
            window: usize::MAX,
            blocked: false,
            sent: VecDeque::new(),
            ended: false,
            was_reset: false,
            vanished: false,
            owes: false,
            acknowledged_at: Mono::default(),
            error: None,
        }
    }
}

/// Where other shards reach one.
pub(crate) struct Door {
    pub(crate) mailbox: Mailbox<Mail>,
    /// Its owner was asleep and has been woken.
    pub(crate) woken: bool,
    /// Mail is posted into it and not taken out.
    pub(crate) held: bool,
    /// A piece of mail has found it full.
    pub(crate) overflowed: bool,
}

impl Door {
    pub(crate) fn new(mail_max: usize, held_bytes_max: usize) -> Door {
        Door {
            mailbox: Mailbox::new(mail_max, held_bytes_max),
            woken: false,
            held: false,
            overflowed: false,
        }
    }

    pub(crate) fn wants_a_turn(&self) -> bool {
        !self.held && (self.overflowed || self.woken)
    }
}

/// All that is around the shards.
pub(crate) struct Outside {
    pub(crate) now: Now,
    /// How long the work between two looks at the clock takes, and what this turn's has taken.
    pub(crate) slice_micros: u64,
    pub(crate) spent_micros: u64,
    /// Pieces of work of the turn under way.
    pub(crate) pieces: Vec<&'static str>,
    pub(crate) order: Order,
    pub(crate) doors: Vec<Door>,
    /// What the engines had for other nodes since the last look, and which shard had it.
    pub(crate) outbound: Vec<(usize, Outbound)>,
    /// What is said at once of revocations that are to be kept; None: the disk stands still.
    pub(crate) keeps: Option<Verdict>,
    pub(crate) clients: Vec<Client>,
    /// Clients to accept.
    pub(crate) backlog: VecDeque<usize>,
    /// By which listener they come.
    pub(crate) entrance: Entrance,
    /// And from where.
    pub(crate) address: Option<IpAddr>,
    /// When they came, if they have had a handshake since.
    pub(crate) came_at: Option<Mono>,
    /// Accepted, and no edge has told of what they have sent already.
    pub(crate) accepted: Vec<usize>,
    /// No descriptor is free but the reserve, which may be with a client.
    pub(crate) is_full: bool,
    pub(crate) on_reserve: Option<usize>,
    /// This datagram comes without end.
    pub(crate) flood: Option<Flood>,
    /// How long a read takes.
    pub(crate) read_micros: u64,
    /// What comes when a turn has received so many times.
    pub(crate) meanwhile: VecDeque<(usize, ConnId, Edge)>,
    /// What arrives together, and what it cost of a turn's budget of beats.
    pub(crate) datagrams: Vec<Vec<u8>>,
    pub(crate) beats: usize,
    /// Told of datagrams since the last look.
    pub(crate) refused: Vec<Refused>,
}

/// What each call brings, and how long its work takes.
pub(crate) struct Flood {
    pub(crate) datagram: Vec<u8>,
    pub(crate) datagrams: usize,
    pub(crate) micros: u64,
}

/// One shard's kernel.
pub(crate) struct Made<'a> {
    pub(crate) outside: &'a mut Outside,
    pub(crate) shard: usize,
}

/// How many pieces there are of a kind.
pub(crate) fn count(pieces: &[&str], kind: &str) -> usize {
    pieces.iter().filter(|piece| **piece == kind).count()
}

impl Made<'_> {
    fn door(&mut self) -> &mut Door {
        &mut self.outside.doors[self.shard]
    }
}

impl Kernel for Made<'_> {
    /// The client's place.
    type Socket = usize;

    fn address(&mut self, client: &usize) -> Option<IpAddr> {
        self.outside.clients[*client].address
    }

    fn now(&mut self) -> Now {
        self.outside.spent_micros = 0;
        self.outside.pieces.clear();
        self.outside.now
    }

    fn mono(&mut self) -> Mono {
        self.outside.spent_micros += self.outside.slice_micros;
        Mono::from_micros(self.outside.now.mono.micros() + self.outside.spent_micros)
    }

    fn take_mail(&mut self, inbox: &mut Inbox) -> Notice {
        let order = self.outside.order;
        let door = self.door();
        if door.held {
            return Notice {
                resync: false,
                refused: 0,
                order,
            };
        }
        door.woken = false;
        let notice = door.mailbox.take(inbox);
        let resync = std::mem::take(&mut door.overflowed) || notice.resync;
        Notice {
            resync,
            order,
            ..notice
        }
    }

    fn post(&mut self, to: ShardId, batch: &mut Vec<Mail>, bounced: &mut Vec<Mail>) -> u64 {
        assert_ne!(usize::from(to), self.shard, "mail to oneself");
        let door = &mut self.outside.doors[usize::from(to)];
        let posted = door.mailbox.post(batch, bounced);
        door.woken |= posted.wake;
        posted.refused
    }

    fn fall_asleep(&mut self, _seen: Order) -> bool {
        let door = self.door();
        let asleep = door.mailbox.fall_asleep(Order::Run);
        asleep || door.held
    }

    fn send(&mut self, outbound: Outbound) {
        if let (Outbound::Revoked(Some(asker)), Some(verdict)) = (&outbound, self.outside.keeps) {
            let (conn, more) = (asker.conn, 0);
            let door = &mut self.outside.doors[usize::from(asker.shard)];
            door.woken |= door.mailbox.tell(Mail::Ran {
                conn,
                more,
                verdict,
            });
        }
        self.outside.outbound.push((self.shard, outbound));
    }

    fn drained(&mut self, _order: Order) {}

    fn receive(
        &mut self,
        _beats_max: usize,
        mut take: impl FnMut(&[&[u8]]) -> usize,
    ) -> io::Result<usize> {
        if let Some(flood) = &self.outside.flood {
            self.outside.spent_micros += flood.micros;
            return Ok(take(&vec![&*flood.datagram; flood.datagrams]));
        }
        let datagrams = std::mem::take(&mut self.outside.datagrams);
        if datagrams.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let batch: Vec<&[u8]> = datagrams.iter().map(Vec::as_slice).collect();
        self.outside.beats = take(&batch);
        Ok(self.outside.beats)
    }

    fn look(&mut self, mut note: impl FnMut(Sign)) {
        let received = count(&self.outside.pieces, "beats");
        let meanwhile = &mut self.outside.meanwhile;
        while let Some((_, conn, edge)) = meanwhile.pop_front_if(|(after, ..)| *after <= received) {
            note(Sign::Conn(conn, edge));
        }
        // More of them have come as well.
        note(Sign::Datagrams);
    }

    fn refused(&mut self, refused: Refused) {
        self.outside.refused.push(refused);
    }

    fn accept(&mut self) -> Accepted<usize> {
        if self.outside.is_full {
            return Accepted::NoDescriptor;
        }
        match (self.outside.backlog.pop_front(), self.outside.entrance) {
            (Some(client), Entrance::Public) => Accepted::Socket(client),
            (Some(client), Entrance::Admin) => Accepted::Admin(client),
            (None, _) => Accepted::Empty,
        }
    }

    fn came_at(&mut self) -> Option<Mono> {
        self.outside.came_at
    }

    fn accept_on_reserve(&mut self) -> Accepted<usize> {
        assert_eq!(self.outside.on_reserve, None, "one at a time");
        self.outside.on_reserve = self.outside.backlog.pop_front();
        self.outside
            .on_reserve
            .map_or(Accepted::Empty, Accepted::Socket)
    }

    fn keep_reserve(&mut self) {
        assert_eq!(self.outside.on_reserve, None, "it is in use");
    }

    fn watch_held(&mut self, _client: &usize) -> io::Result<()> {
        Ok(())
    }

    fn stop_listening(&mut self) {}

    fn watch(&mut self, conn: ConnId, client: &usize) -> io::Result<()> {
        self.outside.clients[*client].id = Some(conn);
        self.outside.accepted.push(*client);
        Ok(())
    }

    fn read(&mut self, client: &mut usize, buffer: &mut [u8]) -> io::Result<usize> {
        self.outside.spent_micros += self.outside.read_micros;
        let client = &mut self.outside.clients[*client];
        let n = client.sent.len().min(buffer.len());
        if n == 0 && !client.ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        for (to, byte) in buffer.iter_mut().zip(client.sent.drain(..n)) {
            *to = byte;
        }
        Ok(n)
    }

    fn write(&mut self, client: &mut usize, bytes: &[u8]) -> io::Result<usize> {
        let now = self.outside.now.mono;
        let client = &mut self.outside.clients[*client];
        match client.vanished {
            true => client.owes = true,
            false => client.acknowledged_at = now,
        }
        assert!(!client.blocked, "offered to a socket that takes nothing");
        let n = bytes.len().min(client.window);
        let body = client.chunks.take(&bytes[..n]);
        client.received.extend(body);
        client.received_bytes += n;
        client.window -= if client.window == usize::MAX { 0 } else { n };
        client.blocked = n < bytes.len();
        match n {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            n => Ok(n),
        }
    }

    fn shut_down(&mut self, client: &mut usize) -> io::Result<()> {
        self.outside.clients[*client].socket = Socket::WriteShut;
        Ok(())
    }

    fn close(&mut self, client: usize) {
        self.outside.on_reserve.take_if(|other| *other == client);
        self.outside.clients[client].socket = Socket::Closed;
    }

    fn reset(&mut self, client: usize) {
        self.outside.clients[client].was_reset = true;
        self.close(client);
    }

    fn error(&mut self, client: &usize) -> Option<io::Error> {
        self.outside.clients[*client].error.map(io::Error::from)
    }

    fn peer(&mut self, client: &usize) -> Acknowledged {
        if self.outside.clients[*client].blocked {
            Acknowledged::Behind
        } else {
            Acknowledged::CaughtUp
        }
    }

    fn unacknowledged_ms(&mut self, client: &usize) -> Option<u64> {
        let (client, now) = (&self.outside.clients[*client], self.outside.now.mono);
        client.owes.then(|| now.ms_since(client.acknowledged_at))
    }

    fn watch_over(&mut self, _client: &usize, _on: bool) {}

    fn worked(&mut self, piece: Piece<'_, usize>, _engine: &mut Engine) {
        self.outside.pieces.push(match piece {
            Piece::Mail => "mail",
            Piece::Beats => "beats",
            Piece::Bytes(_) => "bytes",
            Piece::Request(_) => "request",
            Piece::Timers => "timers",
            Piece::Work => "work",
            Piece::Flush(_) => "flush",
        });
    }
}
