//! A plain HTTP/1.1 client: one connection, whole answers.
//!
//! Shares no code with the server. Writes what it is told, so that requests may be cut, glued
//! together or wrong.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Deadline, PATIENCE_MS};

/// One connection.
pub(crate) struct Conn {
    pub(crate) socket: TcpStream,
    /// Read, and not yet used.
    pub(crate) buffer: Vec<u8>,
    /// None: it speaks plain HTTP.
    pub(crate) tls: Option<Box<rustls::ClientConnection>>,
}

/// What a wait for bytes brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Got {
    Bytes,
    /// The end, orderly or not.
    End,
    Nothing,
}

impl Conn {
    pub(crate) fn to(http: SocketAddr) -> Conn {
        Conn::over(
            TcpStream::connect_timeout(&http, Duration::from_millis(PATIENCE_MS))
                .expect("the server listens"),
        )
    }

    pub(crate) fn over(socket: TcpStream) -> Conn {
        socket.set_nodelay(true).expect("a socket has the option");
        Conn {
            socket,
            buffer: Vec::new(),
            tls: None,
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let sent = match &mut self.tls {
            Some(tls) => rustls::Stream::new(&mut **tls, &mut self.socket).write_all(bytes),
            None => self.socket.write_all(bytes),
        };
        sent.expect("the server takes it");
    }

    /// Reads once, waiting no longer than the deadline.
    pub(crate) fn read(&mut self, deadline: Deadline) -> Got {
        let Some(left) = deadline.left() else {
            return Got::Nothing;
        };
        self.socket
            .set_read_timeout(Some(left))
            .expect("the wait is not zero");
        let mut chunk = [0; 65_536];
        let read = match &mut self.tls {
            Some(tls) => rustls::Stream::new(&mut **tls, &mut self.socket).read(&mut chunk),
            None => self.socket.read(&mut chunk),
        };
        match read {
            Ok(0) => Got::End,
            Ok(n) => {
                self.buffer.extend_from_slice(&chunk[..n]);
                Got::Bytes
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {
                    Got::Nothing
                }
                _ => Got::End,
            },
        }
    }

    /// Reads to the end, which must come.
    pub(crate) fn read_to_end(&mut self) -> Vec<u8> {
        let deadline = Deadline::in_ms(PATIENCE_MS);
        loop {
            match self.read(deadline) {
                Got::Bytes => {}
                Got::End => return std::mem::take(&mut self.buffer),
                Got::Nothing => assert!(deadline.left().is_some(), "the connection does not end"),
            }
        }
    }

    pub(crate) fn get(&mut self, target: &str) -> Answer {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: e2e\r\n\r\n").as_bytes());
        self.answer()
    }

    pub(crate) fn post(&mut self, target: &str, body: &Value) -> Answer {
        self.post_bytes(target, body.to_string().as_bytes())
    }

    pub(crate) fn post_bytes(&mut self, target: &str, body: &[u8]) -> Answer {
        self.send_post(target, body);
        self.answer()
    }

    /// Asks, and leaves the answer for later.
    pub(crate) fn send_post(&mut self, target: &str, body: &[u8]) {
        let head = format!(
            "POST {target} HTTP/1.1\r\nHost: e2e\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        self.send(&[head.as_bytes(), body].concat());
    }

    /// The head of the next answer: its status and its fields, names in lower case.
    pub(crate) fn head(&mut self) -> Answer {
        let deadline = Deadline::in_ms(PATIENCE_MS);
        let end = loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                break end;
            }
            let got = self.read(deadline);
            let read = String::from_utf8_lossy(&self.buffer);
            assert!(got == Got::Bytes, "no answer, but {got:?} after {read:?}");
        };
        let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
        let head = String::from_utf8(head).expect("a head is text");
        let mut lines = head.split("\r\n").filter(|line| !line.is_empty());
        let status_line = lines.next().expect("a status line");
        let status = status_line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3));
        let field = |line: &str| {
            let (name, value) = line.split_once(": ").expect("a field");
            (name.to_lowercase(), value.to_owned())
        };
        Answer {
            status: status
                .and_then(|status| status.parse().ok())
                .expect("a status"),
            fields: lines.map(field).collect(),
            body: Vec::new(),
        }
    }

    /// The next answer.
    pub(crate) fn answer(&mut self) -> Answer {
        let mut answer = self.head();
        let length = answer
            .field("content-length")
            .map_or(0, |length| length.parse().expect("digits"));
        let deadline = Deadline::in_ms(PATIENCE_MS);
        while self.buffer.len() < length {
            assert_eq!(self.read(deadline), Got::Bytes, "the body is not whole");
        }
        answer.body = self.buffer.drain(..length).collect();
        answer
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(given, _)| given == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("text")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// That it is a problem of this type.
    pub(crate) fn expect_problem(&self, status: u16, name: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.field("content-type"), Some("application/problem+json"));
        let problem = self.json();
        assert_eq!(
            problem["type"],
            format!("https://greendot.dev/problems/{name}"),
            "{problem}"
        );
        assert_eq!(problem["status"], status);
    }
}
