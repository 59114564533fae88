//! The holders' side of streams that vouch for themselves: a connection of its own for each stream,
//! on which each ping is answered by a request.
//!
//! Owns those sockets. An answer that is late is not repeated; the next ping asks again. Never
//! blocks.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::clock;
use crate::fleet;
use crate::stats::Latencies;

const EVENTS_PER_POLL_MAX: usize = 1_024;

/// How many pings were answered, and what was said to it.
#[derive(Clone, Debug, Default)]
pub struct Answered {
    /// Answers of 2xx.
    pub good: u64,
    /// Other answers, and connections that failed or ended.
    pub bad: u64,
    /// From the ping to the answer's answer.
    pub latency: Latencies,
}

#[derive(Default)]
struct Line {
    socket: Option<TcpStream>,
    /// Of the stream that stands.
    request: Box<[u8]>,
    /// When the ping came that waits for an answer, us; 0: none does.
    asked_us: u64,
    connected: bool,
}

/// The connections.
pub struct Answers {
    poll: Poll,
    events: Events,
    lines: Vec<Line>,
    targets: Vec<SocketAddr>,
    first: usize,
    /// See [`Answered`].
    pub answered: Answered,
}

impl Answers {
    /// For `count` streams to `targets` in turn, none of them connected.
    pub fn new(targets: Vec<SocketAddr>, first: usize, count: usize) -> io::Result<Answers> {
        Ok(Answers {
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS_PER_POLL_MAX),
            lines: std::iter::repeat_with(Line::default).take(count).collect(),
            targets,
            first,
            answered: Answered::default(),
        })
    }

    fn target(&self, conn: usize) -> SocketAddr {
        self.targets[(self.first + conn) % self.targets.len()]
    }

    /// Stream `conn` has said its id.
    pub fn hello(&mut self, conn: usize, stream: &str) {
        let host = self.target(conn);
        let request = format!(
            "POST /v1/stream/{stream}/beat HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"
        );
        self.lines[conn].request = request.into_bytes().into();
    }

    /// Stream `conn` was pinged.
    pub fn ping(&mut self, conn: usize, now_us: u64) {
        if self.lines[conn].request.is_empty() {
            return;
        }
        self.lines[conn].asked_us = now_us.max(1);
        if let Err(error) = self.ask(conn) {
            self.lines[conn].socket = None;
            self.answered.bad += 1;
            debug_assert!(error.kind() != ErrorKind::InvalidInput, "{error}");
        }
    }

    fn ask(&mut self, conn: usize) -> io::Result<()> {
        if self.lines[conn].socket.is_none() {
            let mut socket = fleet::connect(self.target(conn), self.first + conn)?;
            let both = Interest::READABLE | Interest::WRITABLE;
            self.poll
                .registry()
                .register(&mut socket, Token(conn), both)?;
            let line = &mut self.lines[conn];
            (line.socket, line.connected) = (Some(socket), false);
            return Ok(());
        }
        self.lines[conn].send()
    }

    /// Reads what has come, without waiting.
    pub fn poll(&mut self) -> io::Result<()> {
        match self.poll.poll(&mut self.events, Some(Duration::ZERO)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        let now_us = clock::now_us();
        for event in &self.events {
            let Token(conn) = event.token();
            let line = &mut self.lines[conn];
            if line.ready(now_us, &mut self.answered).is_err() {
                line.socket = None;
                self.answered.bad += 1;
            }
        }
        Ok(())
    }
}

impl Line {
    /// A request of so few bytes is taken whole, or the connection is of no use.
    fn send(&mut self) -> io::Result<()> {
        let (Some(socket), true) = (&mut self.socket, self.connected) else {
            return Ok(());
        };
        let sent = socket.write(&self.request)?;
        (sent == self.request.len())
            .then_some(())
            .ok_or_else(|| ErrorKind::WriteZero.into())
    }

    fn ready(&mut self, now_us: u64, answered: &mut Answered) -> io::Result<()> {
        let Some(socket) = &mut self.socket else {
            return Ok(());
        };
        if !self.connected {
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
            if socket.peer_addr().is_err() {
                return Ok(());
            }
            self.connected = true;
            self.send()?;
        }
        let mut bytes = [0; 1_024];
        let Some(socket) = &mut self.socket else {
            return Ok(());
        };
        match socket.read(&mut bytes) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                if bytes[..n].starts_with(b"HTTP/1.1 2") {
                    answered.good += 1;
                    answered
                        .latency
                        .record(now_us.saturating_sub(self.asked_us));
                } else {
                    answered.bad += 1;
                }
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }
}
