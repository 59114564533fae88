//! What a client makes of the bytes it reads: an HTTP/1.1 response reader and an event-stream
//! reader of the simulator's own.
//!
//! Shares no code with the server: what the server writes is held against the standards as read
//! here. Anything out of form is an `Err` with what was wrong, which the world turns into a failed
//! run.

use serde_json::Value;

/// One dispatched block of a stream.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: Value,
    pub(crate) id: Option<u64>,
    pub(crate) retry_ms: Option<u64>,
}

/// One answer.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Of the header that tells which life of a presence node answers, and its clock.
    pub(crate) node: Option<String>,
    /// Of the header that tells which number of a feed a real-time node holds.
    pub(crate) held: Option<String>,
    pub(crate) body: Value,
}

/// What came out of a read.
#[derive(Clone, Debug)]
pub(crate) enum Read {
    Response(Response),
    /// The head of a stream: from here on there are events.
    StreamHead,
    Event(Event),
}

/// Where in a chunk the next byte is.
#[derive(Debug)]
enum Chunk {
    /// In the line of its size.
    Size(Vec<u8>),
    /// So many bytes before its end, the CR LF behind it counted.
    Data(usize),
    /// Behind the last one.
    Ended,
}

/// One connection's reading side: responses until one is a stream.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    bytes: Vec<u8>,
    streaming: bool,
    /// The stream goes in chunks: where in one the next byte is.
    chunk: Option<Chunk>,
    name: String,
    data: Option<String>,
    id: Option<u64>,
    retry_ms: Option<u64>,
}

impl Reader {
    /// Takes bytes in; appends what they complete.
    pub(crate) fn feed(&mut self, bytes: &[u8], out: &mut Vec<Read>) -> Result<(), String> {
        if self.chunk.is_some() {
            self.dechunk(bytes)?;
        } else {
            self.bytes.extend_from_slice(bytes);
        }
        while !self.streaming {
            let Some(used) = self.response(out)? else {
                return Ok(());
            };
            self.bytes.drain(..used);
            if self.chunk.is_some() {
                let rest = std::mem::take(&mut self.bytes);
                self.dechunk(&rest)?;
            }
        }
        let mut at = 0;
        while let Some(end) = self.bytes[at..].iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8(self.bytes[at..at + end].to_vec())
                .map_err(|_| "a line of a stream is not UTF-8".to_owned())?;
            at += end + 1;
            self.line(&line, out)?;
        }
        self.bytes.drain(..at);
        Ok(())
    }

    /// Takes in what chunks hold (RFC 9112 section 7.1), stricter: no extensions, no trailers.
    fn dechunk(&mut self, bytes: &[u8]) -> Result<(), String> {
        for byte in bytes {
            let next = match self.chunk.take() {
                Some(Chunk::Size(mut line)) => {
                    line.push(*byte);
                    match line.strip_suffix(b"\r\n") {
                        _ if line == b"0\r\n" => Chunk::Size(line),
                        _ if line == b"0\r\n\r\n" => Chunk::Ended,
                        None if line.len() < 16 => Chunk::Size(line),
                        None => return Err(format!("a chunk has the size {line:?}")),
                        Some(digits) => {
                            let digits = String::from_utf8_lossy(digits);
                            let size = usize::from_str_radix(&digits, 16)
                                .ok()
                                .filter(|size| *size > 0);
                            let size = size.ok_or_else(|| format!("a chunk of size {digits}"))?;
                            Chunk::Data(size + 2)
                        }
                    }
                }
                Some(Chunk::Data(left)) => {
                    match left {
                        2 if *byte != b'\r' => return Err("no CR behind a chunk".into()),
                        1 if *byte != b'\n' => return Err("no LF behind a chunk".into()),
                        1 | 2 => {}
                        _ => self.bytes.push(*byte),
                    }
                    match left {
                        1 => Chunk::Size(Vec::new()),
                        left => Chunk::Data(left - 1),
                    }
                }
                Some(Chunk::Ended) | None => return Err("bytes behind the last chunk".into()),
            };
            self.chunk = Some(next);
        }
        Ok(())
    }

    /// One line as WHATWG has it, stricter: fields that this server never sends are faults.
    fn line(&mut self, line: &str, out: &mut Vec<Read>) -> Result<(), String> {
        if line.is_empty() {
            let Some(data) = self.data.take() else {
                return Err("a block of a stream has no data".into());
            };
            let data = serde_json::from_str(&data)
                .map_err(|error| format!("an event's data is not JSON: {error}: {data}"))?;
            out.push(Read::Event(Event {
                name: std::mem::take(&mut self.name),
                data,
                id: self.id.take(),
                retry_ms: self.retry_ms.take(),
            }));
            return Ok(());
        }
        match line.split_once(": ") {
            Some(("event", name)) => self.name = name.to_owned(),
            Some(("data", data)) if self.data.is_none() => self.data = Some(data.to_owned()),
            // Of who has been logged out.
            Some(("id", "bye")) if self.name == "bye" => {}
            Some(("id", id)) => {
                self.id = Some(id.parse().map_err(|_| format!("id {id} is no time"))?)
            }
            Some(("retry", ms)) if ms.parse::<u64>().is_ok_and(|ms| ms > 0) => {
                self.retry_ms = ms.parse().ok();
            }
            _ => return Err(format!("a stream has the line {line:?}")),
        }
        Ok(())
    }

    /// One response at the start of the buffer; returns its length.
    fn response(&mut self, out: &mut Vec<Read>) -> Result<Option<usize>, String> {
        let Some(end) = self.bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        let head = std::str::from_utf8(&self.bytes[..end]).map_err(|_| "a head is not text")?;
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap_or("");
        let status: u16 = status_line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|code| code.parse().ok())
            .ok_or_else(|| format!("a status line reads {status_line:?}"))?;
        let (mut length, mut media, mut node, mut held) = (0, "", None, None);
        let mut chunked = false;
        for line in lines {
            match line.split_once(": ") {
                Some(("Content-Length", value)) => {
                    length = value.parse().map_err(|_| format!("{line:?}"))?
                }
                Some(("Content-Type", value)) => media = value,
                Some(("Transfer-Encoding", value)) => chunked = value == "chunked",
                Some(("Greendot-Node", value)) => node = Some(value.to_owned()),
                Some(("Greendot-Feed", value)) => held = Some(value.to_owned()),
                Some(_) => {}
                None => return Err(format!("a header reads {line:?}")),
            }
        }
        if status == 100 {
            return Ok(Some(end + 4));
        }
        if media == "text/event-stream; charset=utf-8" {
            self.streaming = true;
            self.chunk = chunked.then(|| Chunk::Size(Vec::new()));
            out.push(Read::StreamHead);
            return Ok(Some(end + 4));
        }
        let total = end + 4 + length;
        if self.bytes.len() < total {
            return Ok(None);
        }
        let body = &self.bytes[end + 4..total];
        let body = match media {
            "application/json" | "application/problem+json" => serde_json::from_slice(body)
                .map_err(|error| format!("an answer's body is not JSON: {error}"))?,
            _ => Value::Null,
        };
        if (status >= 400) != (media == "application/problem+json") {
            return Err(format!("status {status} with {media}"));
        }
        if status >= 400 && body["status"] != status {
            return Err(format!("a problem of {status} says {body}"));
        }
        out.push(Read::Response(Response {
            status,
            node,
            held,
            body,
        }));
        Ok(Some(total))
    }
}

/// One publisher's state as the wire has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Told {
    pub(crate) online: bool,
    pub(crate) since: Option<u64>,
    pub(crate) last_active: Option<u64>,
}

/// Reads a record `{"user","status","online","since","last_active"}`, these members and no others.
pub(crate) fn record(value: &Value) -> Result<(String, Told), String> {
    let fault = || format!("a record reads {value}");
    let members = value.as_object().ok_or_else(fault)?;
    let time = |name: &str| match members.get(name) {
        Some(Value::Null) => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(fault),
        None => Err(fault()),
    };
    let online = match value["status"].as_str() {
        Some("online") => true,
        Some("offline") => false,
        _ => return Err(fault()),
    };
    let user = value["user"].as_str().ok_or_else(fault)?.to_owned();
    // A real-time node says of the last state that there may be a newer one.
    let stale = value["stale"] == true;
    if members.len() != 5 + usize::from(stale) || value["online"] != online {
        return Err(fault());
    }
    let told = Told {
        online,
        since: time("since")?,
        last_active: time("last_active")?,
    };
    Ok((user, told))
}
