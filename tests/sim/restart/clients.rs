//! Readers who do what `retry:` says, and a watcher among them.
//!
//! Owns when a client tries to connect and what it has been told. Judges nothing.

use super::Restarts;
use super::kernel::Conn;
use crate::sse::{Read, Reader, record};

/// Somebody with a stream.
pub(super) struct Client {
    /// What follows `/v1/stream?`.
    pub(super) query: String,
    /// None: it will never come back.
    pub(super) obeys: bool,
    pub(super) conn: Option<u32>,
    /// When it tries again (mono).
    pub(super) due: u64,
    pub(super) retry_ms: u64,
    /// In percent, of what it is told.
    pub(super) jitter: u64,
    pub(super) last_id: Option<u64>,
}

impl Restarts {
    /// A client tries to connect: refused where nobody listens, and again after as long.
    pub(super) fn connect(&mut self, at: usize) {
        if !self.clients[at].obeys {
            return;
        }
        let listening: Vec<usize> = (0..self.shards.len())
            .filter(|at| self.shards[*at].listens)
            .collect();
        if listening.is_empty() {
            return self.come_back(at);
        }
        let shard = listening[self.random.usize(0..listening.len())];
        let client = &mut self.clients[at];
        let last = client
            .last_id
            .map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
        let ask = format!(
            "GET /v1/stream?{} HTTP/1.1\r\nHost: sim\r\n{last}\r\n",
            client.query
        );
        self.conns_made += 1;
        client.conn = Some(self.conns_made);
        let conn = Conn {
            client: at,
            shard,
            id: None,
            inbound: ask.into_bytes(),
            reader: Reader::default(),
            hung_up: false,
        };
        self.conns.insert(self.conns_made, conn);
        let shard = &mut self.shards[shard];
        shard.backlog.push_back(self.conns_made);
        shard.edges.push(self.conns_made);
        shard.wake = 0;
    }

    fn come_back(&mut self, at: usize) {
        let client = &mut self.clients[at];
        client.due = self.mono + (client.retry_ms * client.jitter / 100).max(1);
        self.dues.insert((client.due, at));
    }

    /// A connection has ended.
    pub(super) fn lost(&mut self, at: usize, key: u32) {
        if self.clients[at].conn == Some(key) {
            self.clients[at].conn = None;
            self.come_back(at);
        }
    }

    /// What the node says on a connection.
    pub(super) fn reads(&mut self, key: u32, bytes: &[u8]) {
        let conn = self.conns.get_mut(&key).expect("it is open");
        let (at, mut reads) = (conn.client, Vec::new());
        if let Err(why) = conn.reader.feed(bytes, &mut reads) {
            self.fail(&why);
        }
        for read in reads {
            let Read::Event(event) = read else { continue };
            let client = &mut self.clients[at];
            client.retry_ms = event.retry_ms.unwrap_or(client.retry_ms);
            client.last_id = event.id.or(client.last_id);
            let records = match event.name.as_str() {
                "presence" => vec![event.data.clone()],
                "snapshot" => event.data["presence"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default(),
                _ => Vec::new(),
            };
            for value in records {
                let (user, told) = record(&value).unwrap_or_else(|why| self.fail(&why));
                self.views.insert(user, told);
            }
        }
    }
}
