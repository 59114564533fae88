//! The kernel of the restart world: a listener, connections that take all that is written, no
//! datagrams.
//!
//! Owns what a system call comes to. Decides nothing.

use std::collections::VecDeque;
use std::io;

use greendot::engine::turn::{Accepted, Driver, Edge, Inbox, Kernel, Notice, Order, Peer};
use greendot::engine::{Mail, Outbound, ShardId};
use greendot::realtime::ConnId;
use greendot::shard::mailbox::Mailbox;
use greendot::time::{Mono, Now};

use super::Restarts;
use crate::sse::Reader;

/// One shard.
pub(super) struct Shard {
    /// None during its turn.
    pub(super) driver: Option<Driver<u32>>,
    pub(super) mailbox: Mailbox<Mail>,
    pub(super) backlog: VecDeque<u32>,
    /// Connections of which an edge will tell something.
    pub(super) edges: Vec<u32>,
    pub(super) wake: u64,
    pub(super) listens: bool,
    /// It has said that it has drained, under this order.
    pub(super) drained: Option<Order>,
}

/// A connection, both ends of it.
pub(super) struct Conn {
    pub(super) client: usize,
    pub(super) shard: usize,
    pub(super) id: Option<ConnId>,
    pub(super) inbound: Vec<u8>,
    pub(super) reader: Reader,
    /// The client is gone.
    pub(super) hung_up: bool,
}

pub(super) struct Simulated<'a> {
    pub(super) world: &'a mut Restarts,
    pub(super) at: usize,
}

impl Restarts {
    /// One turn of one shard.
    pub(super) fn turn(&mut self, at: usize) {
        let driver = self.shards[at].driver.take();
        let mut driver = driver.expect("one turn at a time");
        if !self.shards[at].backlog.is_empty() {
            driver.note_listener();
        }
        for key in std::mem::take(&mut self.shards[at].edges) {
            let Some(conn) = self.conns.get(&key) else {
                continue;
            };
            match conn.id {
                Some(id) => driver.note_edge(
                    id,
                    Edge {
                        readable: !conn.inbound.is_empty(),
                        error: conn.hung_up,
                        ..Edge::default()
                    },
                ),
                None => self.shards[at].edges.push(key),
            }
        }
        let sleep_micros = driver.turn(&mut Simulated { world: self, at });
        let mono = self.mono;
        let shard = &mut self.shards[at];
        shard.driver = Some(driver);
        let busy = sleep_micros == 0 || !shard.backlog.is_empty() || !shard.edges.is_empty();
        shard.wake = if busy {
            mono
        } else {
            mono + sleep_micros.div_ceil(1_000)
        };
    }
}

impl Kernel for Simulated<'_> {
    /// The connection's key.
    type Socket = u32;

    fn now(&mut self) -> Now {
        self.world.now()
    }

    fn mono(&mut self) -> Mono {
        self.world.now().mono
    }

    fn take_mail(&mut self, inbox: &mut Inbox) -> Notice {
        self.world.shards[self.at].mailbox.take(inbox)
    }

    fn post(&mut self, to: ShardId, batch: &mut Vec<Mail>, bounced: &mut Vec<Mail>) -> u64 {
        let shard = &mut self.world.shards[usize::from(to)];
        let posted = shard.mailbox.post(batch, bounced);
        if posted.wake {
            shard.wake = 0;
        }
        posted.refused
    }

    fn send(&mut self, outbound: Outbound) {
        self.world
            .fail(&format!("a node of its own has {outbound:?} for others"));
    }

    fn receive(&mut self, _: usize, _: impl FnMut(&[&[u8]]) -> usize) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn accept(&mut self) -> Accepted<u32> {
        let key = self.world.shards[self.at].backlog.pop_front();
        key.map_or(Accepted::Empty, Accepted::Socket)
    }

    fn accept_on_reserve(&mut self) -> Accepted<u32> {
        self.world.fail("descriptors have not run out")
    }

    fn keep_reserve(&mut self) {}

    fn watch_held(&mut self, _key: &u32) -> io::Result<()> {
        Ok(())
    }

    fn stop_listening(&mut self) {
        self.world.shards[self.at].listens = false;
    }

    fn watch(&mut self, conn: ConnId, key: &u32) -> io::Result<()> {
        self.world.conns.get_mut(key).expect("it was accepted").id = Some(conn);
        Ok(())
    }

    fn read(&mut self, key: &mut u32, buffer: &mut [u8]) -> io::Result<usize> {
        let conn = self.world.conns.get_mut(key).expect("it is open");
        let n = conn.inbound.len().min(buffer.len());
        if n == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        buffer[..n].copy_from_slice(&conn.inbound[..n]);
        conn.inbound.drain(..n);
        Ok(n)
    }

    fn write(&mut self, key: &mut u32, bytes: &[u8]) -> io::Result<usize> {
        self.world.reads(*key, bytes);
        Ok(bytes.len())
    }

    fn shut_down(&mut self, key: &mut u32) -> io::Result<()> {
        let conn = self.world.conns.get_mut(key).expect("it is open");
        conn.hung_up = true;
        let client = conn.client;
        self.world.shards[self.at].edges.push(*key);
        self.world.lost(client, *key);
        Ok(())
    }

    fn close(&mut self, key: u32) {
        let conn = self.world.conns.remove(&key).expect("it is open");
        self.world.lost(conn.client, key);
    }

    fn error(&mut self, _key: &u32) -> Option<io::Error> {
        Some(io::ErrorKind::ConnectionReset.into())
    }

    fn peer(&mut self, _key: &u32) -> Peer {
        Peer::CaughtUp
    }

    fn unacknowledged_ms(&mut self, _: &Self::Socket) -> Option<u64> {
        None
    }

    fn watch_over(&mut self, _key: &u32, _on: bool) {}

    fn fall_asleep(&mut self, seen: Order) -> bool {
        self.world.shards[self.at].mailbox.fall_asleep(seen)
    }

    fn drained(&mut self, order: Order) {
        self.world.shards[self.at].drained = Some(order);
    }
}
