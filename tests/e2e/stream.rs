//! A reader of event streams (WHATWG HTML, "Server-sent events"), written from the standard; shares
//! no code with the server.

use std::collections::VecDeque;

use serde_json::Value;

use crate::harness::{Deadline, PATIENCE_MS, Record};
use crate::http::{Conn, Got};

/// One dispatched event.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) kind: String,
    pub(crate) id: Option<u64>,
    pub(crate) retry_ms: Option<u64>,
    pub(crate) data: Value,
}

/// An open stream. Its pings are counted; they are none of the events that it gives.
pub(crate) struct Stream {
    pub(crate) conn: Conn,
    /// What has been taken out of its chunks, and not yet read.
    body: Vec<u8>,
    chunks: Chunks,
    ready: VecDeque<Event>,
    kind: String,
    data: String,
    id: Option<u64>,
    retry_ms: Option<u64>,
    pub(crate) pings: usize,
    ended: bool,
}

impl Stream {
    /// Asks for a stream with GET and reads the head.
    pub(crate) fn open(mut conn: Conn, target: &str) -> Stream {
        conn.send(format!("GET {target} HTTP/1.1\r\nHost: e2e\r\n\r\n").as_bytes());
        Stream::answered(conn)
    }

    /// The stream that a request which has been sent is answered with.
    pub(crate) fn answered(mut conn: Conn) -> Stream {
        let head = conn.head();
        assert_eq!(head.status, 200, "{head:?}");
        assert_eq!(
            head.field("content-type"),
            Some("text/event-stream; charset=utf-8")
        );
        assert_eq!(head.field("cache-control"), Some("no-store, no-transform"));
        assert_eq!(head.field("connection"), Some("close"));
        assert_eq!(head.field("transfer-encoding"), Some("chunked"));
        Stream {
            conn,
            body: Vec::new(),
            chunks: Chunks::default(),
            ready: VecDeque::new(),
            kind: String::new(),
            data: String::new(),
            id: None,
            retry_ms: None,
            pings: 0,
            ended: false,
        }
    }

    /// The next event; None: the stream has ended, or the deadline has passed.
    pub(crate) fn next_by(&mut self, deadline: Deadline) -> Option<Event> {
        loop {
            self.take_lines();
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            match self.conn.read(deadline) {
                Got::Bytes => {}
                Got::End => {
                    self.ended = true;
                    return None;
                }
                Got::Nothing if deadline.left().is_some() => {}
                Got::Nothing => return None,
            }
        }
    }

    pub(crate) fn next(&mut self) -> Event {
        let event = self.next_by(Deadline::in_ms(PATIENCE_MS));
        event.unwrap_or_else(|| panic!("no event; ended: {}", self.ended))
    }

    pub(crate) fn expect(&mut self, kind: &str) -> Event {
        let event = self.next();
        assert_eq!(event.kind, kind, "{event:?}");
        event
    }

    /// The two events with which every stream begins: the data of hello, and the snapshot's
    /// records.
    pub(crate) fn begin(&mut self) -> (Value, Vec<Record>) {
        let hello = self.expect("hello");
        let snapshot = self.expect("snapshot");
        assert!(snapshot.id.is_some(), "{snapshot:?}");
        (hello.data, records(&snapshot))
    }

    /// The next event, which tells one user's state.
    pub(crate) fn presence(&mut self) -> Record {
        Record::of(&self.expect("presence").data)
    }

    /// The next event, which says that `user` is online or not.
    pub(crate) fn expect_presence(&mut self, user: &str, online: bool) -> Record {
        let record = self.presence();
        assert_eq!(
            (record.user.as_str(), record.online),
            (user, online),
            "{record:?}"
        );
        record
    }

    /// That no event comes for so long, and that the stream goes on.
    pub(crate) fn expect_quiet(&mut self, ms: u64) {
        let event = self.next_by(Deadline::in_ms(ms));
        assert!(event.is_none(), "{event:?}");
        assert!(!self.ended, "the stream has ended");
    }

    /// Reads to the stream's end: what was still told.
    pub(crate) fn rest(&mut self) -> Vec<Event> {
        let deadline = Deadline::in_ms(PATIENCE_MS);
        let events = std::iter::from_fn(|| self.next_by(deadline)).collect();
        assert!(self.ended, "the stream does not end");
        events
    }

    /// Whether its body has ended as a whole one does.
    pub(crate) fn is_whole(&self) -> bool {
        self.chunks.whole
    }

    fn take_lines(&mut self) {
        self.chunks.take(&mut self.conn.buffer, &mut self.body);
        let Some(end) = self.body.iter().rposition(|byte| *byte == b'\n') else {
            return;
        };
        let whole: Vec<u8> = self.body.drain(..=end).collect();
        for line in String::from_utf8(whole).expect("a stream is text").lines() {
            self.take_line(line);
        }
    }

    fn take_line(&mut self, line: &str) {
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.kind = value.into(),
            "data" => self.data.push_str(value),
            // Of who has been logged out.
            "id" if value == "bye" => self.id = None,
            "id" => self.id = Some(value.parse().expect("ids are times")),
            "retry" => self.retry_ms = Some(value.parse().expect("a retry is a number of ms")),
            _ => panic!("an unknown field: {line:?}"),
        }
    }

    fn dispatch(&mut self) {
        let data = std::mem::take(&mut self.data);
        if data.is_empty() {
            return;
        }
        let kind = std::mem::take(&mut self.kind);
        if kind == "ping" {
            self.pings += 1;
            return;
        }
        self.ready.push_back(Event {
            kind,
            id: self.id.take(),
            retry_ms: self.retry_ms.take(),
            data: serde_json::from_str(&data).expect("data is JSON"),
        });
    }
}

/// Where in a chunked body (RFC 9112 section 7.1) a reader is.
#[derive(Default)]
struct Chunks {
    /// Bytes of the chunk that is being read which are to come, the CR LF behind it counted.
    left: usize,
    /// The last chunk has come.
    whole: bool,
}

impl Chunks {
    /// Moves what chunks hold from `read` to `body`.
    fn take(&mut self, read: &mut Vec<u8>, body: &mut Vec<u8>) {
        let mut at = 0;
        while at < read.len() && !self.whole {
            if self.left > 0 {
                let taken = self.left.min(read.len() - at);
                let data = taken.min(self.left.saturating_sub(2));
                body.extend_from_slice(&read[at..at + data]);
                at += taken;
                self.left -= taken;
                continue;
            }
            let rest = &read[at..];
            let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else {
                break;
            };
            let digits = std::str::from_utf8(&rest[..end]).expect("a size is text");
            let size = usize::from_str_radix(digits, 16).expect("a size is hexadecimal");
            if size == 0 {
                self.whole = rest.starts_with(b"0\r\n\r\n");
                at += if self.whole { 5 } else { 0 };
                break;
            }
            at += end + 2;
            self.left = size + 2;
        }
        read.drain(..at);
    }
}

/// A stream's head and what its chunks hold, of all the bytes of its answer.
pub(crate) fn without_chunks(answer: &str) -> String {
    let (head, rest) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains("\r\nTransfer-Encoding: chunked"), "{head}");
    let mut body = Vec::new();
    Chunks::default().take(&mut rest.into(), &mut body);
    format!("{head}\r\n\r\n{}", String::from_utf8_lossy(&body))
}

/// The records of a snapshot.
pub(crate) fn records(snapshot: &Event) -> Vec<Record> {
    let list = snapshot.data["presence"].as_array().expect("a list");
    list.iter().map(Record::of).collect()
}
