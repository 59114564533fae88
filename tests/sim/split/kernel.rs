//! The kernel that a node's drivers run on, all made up.
//!
//! Owns what a system call comes to and when an edge is told. Decides nothing about when bytes are
//! read or mail is taken.

use std::io;

use greendot::engine::turn::{Accepted, Driver, Edge, Inbox, Kernel, Notice, Order, Peer, Piece};
use greendot::engine::{Engine, Mail, Outbound, ShardId};
use greendot::realtime::ConnId;
use greendot::time::{Mono, Now};

use super::node::{Conn, Shard, Who};
use super::{Seen, Split};

impl Split {
    /// What epoll would say now. A request arrives in two pieces.
    pub(super) fn tell_edges(&mut self, node: usize, at: usize, driver: &mut Driver<u32>) {
        let shard = self.shard(node, at);
        if !shard.datagrams.is_empty() {
            driver.note_datagrams();
        }
        if !shard.backlog.is_empty() {
            driver.note_listener();
        }
        let keys = std::mem::take(&mut shard.edges);
        for key in keys {
            let Some(conn) = self.conns.get_mut(&key) else {
                continue;
            };
            let Some(id) = conn.id else {
                // It is in the backlog still.
                self.shard(node, at).edges.push_back(key);
                continue;
            };
            let under_way = conn.inbound.len() - conn.arrived;
            if under_way > 0 {
                conn.arrived += match conn.arrived {
                    0 => self.network.usize(1..=under_way),
                    _ => under_way,
                };
            }
            let edge = Edge {
                readable: under_way > 0,
                error: conn.hung_up,
                ..Edge::default()
            };
            if conn.arrived < conn.inbound.len() {
                self.shard(node, at).edges.push_back(key);
            }
            driver.note_edge(id, edge);
        }
    }
}

/// One shard's kernel.
pub(super) struct Simulated<'a> {
    pub(super) split: &'a mut Split,
    pub(super) node: usize,
    pub(super) at: usize,
}

impl Simulated<'_> {
    fn shard(&mut self) -> &mut Shard {
        self.split.shard(self.node, self.at)
    }

    fn conn(&mut self, key: u32) -> &mut Conn {
        let conn = self.split.conns.get_mut(&key);
        conn.expect("kept until it has ended")
    }
}

impl Kernel for Simulated<'_> {
    /// The connection's key.
    type Socket = u32;

    fn now(&mut self) -> Now {
        self.split.now(self.node)
    }

    fn mono(&mut self) -> Mono {
        self.now().mono
    }

    fn take_mail(&mut self, inbox: &mut Inbox) -> Notice {
        let notice = self.shard().mailbox.take(inbox);
        if notice.resync {
            self.split.saw(Seen::Resync);
        }
        notice
    }

    fn post(&mut self, to: ShardId, batch: &mut Vec<Mail>, bounced: &mut Vec<Mail>) -> u64 {
        let (node, to) = (self.node, usize::from(to));
        let mut prompt = Vec::new();
        for mail in batch.drain(..) {
            self.split.note(format!("{to}{mail:?}").as_bytes());
            prompt.extend(self.split.hold_up(node, to, mail));
        }
        self.split.put(node, to, &mut prompt, bounced)
    }

    fn fall_asleep(&mut self, seen: Order) -> bool {
        self.shard().mailbox.fall_asleep(seen)
    }

    fn send(&mut self, outbound: Outbound) {
        self.split.take_outbound(self.node, outbound);
    }

    fn drained(&mut self, _order: Order) {
        self.split.fail("nobody has asked for a drain".into());
    }

    fn receive(
        &mut self,
        beats_max: usize,
        mut take: impl FnMut(&[&[u8]]) -> usize,
    ) -> io::Result<usize> {
        let queue = &mut self.shard().datagrams;
        let batch: Vec<Vec<u8>> = queue.drain(..beats_max.min(queue.len())).collect();
        if batch.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        for datagram in &batch {
            self.split.heard(self.node, datagram);
        }
        let bytes: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
        Ok(take(&bytes))
    }

    fn accept(&mut self) -> Accepted<u32> {
        let key = self.shard().backlog.pop_front();
        key.map_or(Accepted::Empty, Accepted::Socket)
    }

    fn accept_on_reserve(&mut self) -> Accepted<u32> {
        self.split.fail("descriptors have not run out".into())
    }

    fn keep_reserve(&mut self) {}

    fn watch_held(&mut self, _key: &u32) -> io::Result<()> {
        Ok(())
    }

    fn stop_listening(&mut self) {}

    fn watch(&mut self, conn: ConnId, key: &u32) -> io::Result<()> {
        self.conn(*key).id = Some(conn);
        self.shard().edges.push_back(*key);
        Ok(())
    }

    fn read(&mut self, key: &mut u32, buffer: &mut [u8]) -> io::Result<usize> {
        let conn = self.conn(*key);
        let n = conn.arrived.min(buffer.len());
        if n == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        conn.arrived -= n;
        for (to, byte) in buffer.iter_mut().zip(conn.inbound.drain(..n)) {
            *to = byte;
        }
        if conn.inbound.is_empty() {
            // It is whole, and counts now.
            let leaves = std::mem::take(&mut conn.leaves);
            let (bundle, after_ms) = (std::mem::take(&mut conn.bundle), conn.after_ms);
            let everywhere = matches!(conn.who, Who::LogOut(_) | Who::Call(_));
            if everywhere {
                self.split.hear_log_out(&leaves);
            }
            self.split.heard_leaving(self.node, &leaves, after_ms);
            for datagram in bundle {
                self.split.saw(Seen::Bundled);
                self.split.heard(self.node, &datagram);
            }
        }
        Ok(n)
    }

    fn write(&mut self, key: &mut u32, bytes: &[u8]) -> io::Result<usize> {
        self.split.say_on(*key, bytes);
        Ok(bytes.len())
    }

    fn shut_down(&mut self, key: &mut u32) -> io::Result<()> {
        self.split.hang_up(*key);
        Ok(())
    }

    fn close(&mut self, key: u32) {
        let conn = self.split.conns.remove(&key);
        let conn = conn.expect("kept until it has ended");
        if conn.id.is_none() {
            self.split.fail(format!("conn {key} was not even refused"));
        }
        if !conn.hung_up {
            self.split.conn_lost(key, conn.who);
        }
    }

    fn error(&mut self, _key: &u32) -> Option<io::Error> {
        Some(io::ErrorKind::ConnectionReset.into())
    }

    fn peer(&mut self, _key: &u32) -> Peer {
        Peer::CaughtUp
    }

    fn unacknowledged_ms(&mut self, _: &u32) -> Option<u64> {
        None
    }

    fn watch_over(&mut self, _key: &u32, _on: bool) {}

    fn worked(&mut self, _piece: Piece<'_, u32>, _engine: &mut Engine) {
        self.split.observe(self.node);
    }
}
