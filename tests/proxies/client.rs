//! A client behind a proxy: one request, and the events of its answer, however these are framed.
//!
//! Shares no code with the server.

use serde_json::Value;

use crate::harness::{Deadline, PATIENCE_MS};
use crate::http::{Conn, Got};

/// One dispatched event.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) kind: String,
    pub(crate) id: Option<String>,
    pub(crate) retry_ms: Option<u64>,
    pub(crate) data: Value,
}

/// A stream behind a proxy.
pub(crate) struct Stream {
    conn: Conn,
    framing: Framing,
    /// What has come, without its framing, and is not read yet.
    text: Vec<u8>,
}

/// How the body is framed.
enum Framing {
    /// To the end of the connection.
    Close,
    /// In chunks; so much of the one under way has yet to come.
    Chunks {
        rest: usize,
    },
    Ended,
}

impl Stream {
    /// Asks for a stream. Err: the status of an answer that is none.
    pub(crate) fn open(mut conn: Conn, query: &str, last_id: Option<&str>) -> Result<Stream, u16> {
        let last_id = last_id.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
        let head = format!("GET /v1/stream?{query} HTTP/1.1\r\nHost: e2e\r\n{last_id}\r\n");
        conn.send(head.as_bytes());
        let head = conn.head();
        let media = head.field("content-type").unwrap_or("");
        if head.status != 200 || !media.starts_with("text/event-stream") {
            return Err(head.status);
        }
        let framing = match head.field("transfer-encoding") {
            Some("chunked") => Framing::Chunks { rest: 0 },
            _ => Framing::Close,
        };
        Ok(Stream {
            conn,
            framing,
            text: Vec::new(),
        })
    }

    /// The next event that is no ping; None: the stream has ended.
    pub(crate) fn next(&mut self) -> Option<Event> {
        loop {
            let event = self.next_of_all()?;
            if event.kind != "ping" {
                return Some(event);
            }
        }
    }

    /// Waits for the next ping.
    pub(crate) fn expect_ping(&mut self) {
        let event = self.next_of_all().expect("the stream goes on");
        assert_eq!(event.kind, "ping", "{event:?}");
    }

    fn next_of_all(&mut self) -> Option<Event> {
        let deadline = Deadline::in_ms(PATIENCE_MS);
        loop {
            self.unframe();
            if let Some(event) = self.block() {
                match event {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            if matches!(self.framing, Framing::Ended) {
                return None;
            }
            match self.conn.read(deadline) {
                Got::Bytes => {}
                Got::End => return None,
                Got::Nothing => assert!(deadline.left().is_some(), "held back: no event comes"),
            }
        }
    }

    pub(crate) fn expect(&mut self, kind: &str) -> Event {
        let event = self
            .next()
            .unwrap_or_else(|| panic!("no {kind}, but the end"));
        assert_eq!(event.kind, kind, "{event:?}");
        event
    }

    /// The next event tells that a user is here or not.
    pub(crate) fn expect_presence(&mut self, user: &str, status: &str) {
        let event = self.expect("presence");
        assert_eq!(
            (&event.data["user"], &event.data["status"]),
            (&user.into(), &status.into())
        );
    }

    /// Takes what has come out of its framing.
    fn unframe(&mut self) {
        let buffer = &mut self.conn.buffer;
        loop {
            match &mut self.framing {
                Framing::Close => return self.text.append(buffer),
                Framing::Ended => return,
                Framing::Chunks { rest: 0 } => {
                    let Some(end) = buffer.windows(2).position(|two| two == b"\r\n") else {
                        return;
                    };
                    let head = String::from_utf8(buffer[..end].to_vec()).expect("a chunk's head");
                    let size = head.split(';').next().unwrap_or("").trim();
                    let size =
                        usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("{head:?}"));
                    buffer.drain(..end + 2);
                    self.framing = match size {
                        0 => Framing::Ended,
                        // And the line's end behind it.
                        size => Framing::Chunks { rest: size + 2 },
                    };
                }
                Framing::Chunks { rest } => {
                    if buffer.is_empty() {
                        return;
                    }
                    let taken = (*rest).min(buffer.len());
                    let of_data = taken.min(rest.saturating_sub(2));
                    self.text.extend_from_slice(&buffer[..of_data]);
                    buffer.drain(..taken);
                    *rest -= taken;
                }
            }
        }
    }

    /// The first block of the text, if it is whole; an event, unless it is a comment.
    fn block(&mut self) -> Option<Option<Event>> {
        let end = self.text.windows(2).position(|two| two == b"\n\n")? + 2;
        let block: Vec<u8> = self.text.drain(..end).collect();
        let block = String::from_utf8(block).expect("a stream is text");
        let field = |name: &str| {
            let lines = block.lines().filter_map(|line| line.split_once(": "));
            lines
                .filter(|(field, _)| *field == name)
                .map(|(_, value)| value.to_owned())
                .next_back()
        };
        let data = field("data")?;
        Some(Some(Event {
            kind: field("event").unwrap_or_default(),
            id: field("id"),
            retry_ms: field("retry").map(|ms| ms.parse().expect("digits")),
            data: serde_json::from_str(&data).expect("data is JSON"),
        }))
    }
}
