//! Which streams to flush, in which order, and what a write leaves over.
//!
//! Owns the queue of connections with something to say and the rule of what happens to bytes that
//! the socket did not take. An outbox holds what to tell (marks, in [`super::watches`]) and at most
//! a bounded rest of bytes already encoded; it never holds a state twice.

use std::collections::VecDeque;

use super::conn::Conn;
use super::{ConnId, ConnTable};
use crate::time::Mono;

/// Connections to flush, first come first served, each with the moment of the first thing it has to
/// say.
#[derive(Debug, Default)]
pub struct FlushQueue {
    queue: VecDeque<(u32, Mono)>,
}

impl FlushQueue {
    /// Queues a connection unless it is queued, or its socket takes nothing (then it is queued when
    /// the socket does).
    pub fn push(&mut self, index: u32, conn: &mut Conn, since: Mono) {
        if !conn.awaits_flush() {
            conn.enqueue();
            self.queue.push_back((index, since));
        }
    }

    /// The next one and since when it has something to say.
    pub fn pop(&mut self, conns: &mut ConnTable) -> Option<(ConnId, Mono)> {
        loop {
            let (index, since) = self.queue.pop_front()?;
            // An entry outlives its connection: there may be nobody, or another life, queued or
            // not.
            let Some(id) = conns.id_at(index) else {
                continue;
            };
            if conns.at(index).dequeue() {
                return Some((id, since));
            }
        }
    }

    /// The place of the next entry, whoever has it.
    pub fn first(&self) -> Option<u32> {
        self.queue.front().map(|(index, _)| *index)
    }

    /// Nothing to flush.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }
}

/// What a write came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// The socket took all.
    All,
    /// It took less: the connection is blocked.
    Some,
}

/// Books a write of `n` bytes. `offered`: the bytes of a connection that had none unsent; None when
/// its unsent ones were offered.
pub fn book(conn: &mut Conn, offered: Option<&[u8]>, n: usize, now: Mono) -> Written {
    if let Some(bytes) = offered {
        debug_assert!(conn.unsent_bytes() == 0 && n <= bytes.len());
        if n == bytes.len() {
            return Written::All;
        }
        let io = conn.io();
        io.unsent.clear();
        io.unsent.extend_from_slice(&bytes[n..]);
        io.sent_bytes = 0;
        io.stalled_since = Some(now);
    } else {
        let io = conn.io();
        debug_assert!(n <= io.unsent().len());
        io.sent_bytes += n;
        if io.sent_bytes == io.unsent.len() {
            io.unsent = Vec::new();
            io.sent_bytes = 0;
            io.stalled_since = None;
            conn.tidy();
            return Written::All;
        }
        if n > 0 || io.stalled_since.is_none() {
            io.stalled_since = Some(now);
        }
        io.forget_sent();
    }
    conn.block();
    Written::Some
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(conn: &Conn) -> (&[u8], Option<Mono>) {
        conn.io
            .as_ref()
            .map(|io| (io.unsent(), io.stalled_since))
            .unwrap()
    }

    #[test]
    fn what_the_socket_did_not_take_waits() {
        let mut conns = ConnTable::default();
        let id = conns.insert();
        let conn = conns.get_mut(id).unwrap();
        assert_eq!(
            book(conn, Some(b"abcdef"), 6, Mono::default()),
            Written::All
        );
        assert!(conn.io.is_none());
        assert_eq!(
            book(conn, Some(b"abcdef"), 2, Mono::from_micros(5)),
            Written::Some
        );
        assert_eq!(waiting(conn), (&b"cdef"[..], Some(Mono::from_micros(5))));
        assert_eq!(book(conn, None, 0, Mono::from_micros(6)), Written::Some);
        assert_eq!(conn.io().stalled_since, Some(Mono::from_micros(5)));
        assert_eq!(book(conn, None, 1, Mono::from_micros(7)), Written::Some);
        assert_eq!(waiting(conn), (&b"def"[..], Some(Mono::from_micros(7))));
        assert_eq!(book(conn, None, 3, Mono::from_micros(8)), Written::All);
        assert!(conn.io.is_none() && conn.is_blocked());
    }

    #[test]
    fn a_reader_that_never_catches_up_costs_no_more_than_its_rest() {
        let mut conns = ConnTable::default();
        let id = conns.insert();
        let conn = conns.get_mut(id).unwrap();
        book(conn, Some(&[7; 1_000]), 0, Mono::default());
        for round in 0..1_000 {
            book(conn, None, 100, Mono::default());
            conn.io().unsent.extend_from_slice(&[7; 100]);
            assert_eq!(conn.unsent_bytes(), 1_000);
            assert!(conn.io().unsent.len() <= 2_000, "round {round}");
        }
    }

    #[test]
    fn queued_once_and_not_while_blocked() {
        let mut conns = ConnTable::default();
        let id = conns.insert();
        let mut queue = FlushQueue::default();
        queue.push(id.index, conns.at(0), Mono::from_micros(1));
        queue.push(id.index, conns.at(0), Mono::from_micros(2));
        assert_eq!(
            (queue.len(), queue.pop(&mut conns)),
            (1, Some((id, Mono::from_micros(1))))
        );
        conns.at(0).block();
        queue.push(id.index, conns.at(0), Mono::from_micros(3));
        assert!(queue.is_empty());
    }

    #[test]
    fn an_entry_that_has_outlived_its_connection_finds_nobody() {
        let mut conns = ConnTable::default();
        let (gone, other) = (conns.insert(), conns.insert());
        let mut queue = FlushQueue::default();
        queue.push(gone.index, conns.at(gone.index), Mono::from_micros(1));
        queue.push(other.index, conns.at(other.index), Mono::from_micros(2));
        conns.remove(gone, false);
        let next = conns.insert();
        assert_eq!(next.index, gone.index);
        assert_eq!(queue.pop(&mut conns), Some((other, Mono::from_micros(2))));
        conns.remove(other, false);
        assert_eq!(queue.pop(&mut conns), None);
    }
}
