//! One connection to `/v1/stream`: request out, response head in, then the stream's bytes.
//!
//! A bare socket rather than an HTTP client: what matters here is the silence between two reads,
//! which clients do not offer to bound.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::tools::endpoint::Endpoint;
use crate::trust::{Sealed, Trust};

/// How often a read gives up waiting, so that the caller can look at the time and at signals.
const READ_TIMEOUT: Duration = Duration::from_millis(200);
const HEAD_BYTES_MAX: usize = 16_384;
/// Most of a refusal's body that is read.
const REFUSAL_BYTES_MAX: u64 = 65_536;

/// What a read brought.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Got<'a> {
    /// Bytes of the stream.
    Bytes(&'a [u8]),
    /// Nothing for a while.
    Nothing,
    /// The stream has ended, and why.
    End(String),
}

/// Why there is no stream.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// Nobody answers: the network may be back any moment.
    Unanswered(String),
    /// Trying again may help.
    ForNow(String),
    /// It will not.
    ForGood(String),
}

/// What is asked of the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) user: Option<&'a str>,
    pub(super) watch: &'a [String],
    pub(super) token: Option<&'a str>,
    /// Empty: no stream came before.
    pub(super) last_event_id: &'a str,
}

/// A connection, sealed or not.
#[derive(Debug)]
enum Wire {
    Plain(TcpStream),
    Sealed(Box<Sealed>),
}

impl Wire {
    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        let socket = match self {
            Wire::Plain(socket) => socket,
            Wire::Sealed(sealed) => sealed.get_ref(),
        };
        socket.set_read_timeout(Some(timeout))
    }
}

impl Read for Wire {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(socket) => socket.read(room),
            Wire::Sealed(sealed) => sealed.read(room),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(socket) => socket.write(bytes),
            Wire::Sealed(sealed) => sealed.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Wire::Plain(socket) => socket.flush(),
            Wire::Sealed(sealed) => sealed.flush(),
        }
    }
}

/// An open stream.
#[derive(Debug)]
pub(super) struct Link {
    wire: Wire,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that came with the head and were not handed out yet.
    early: std::ops::Range<usize>,
}

impl Link {
    /// Connects and asks for the stream. Each of the two may take so long.
    pub(super) fn open(
        to: &Endpoint,
        wanted: Wanted<'_>,
        timeout: Duration,
    ) -> Result<Link, Refusal> {
        let for_now = |error: std::io::Error| Refusal::ForNow(format!("{to}: {error}"));
        let trust = to.trust().map_err(Refusal::ForGood)?;
        let socket = connect(to, timeout)?;
        socket.set_read_timeout(Some(timeout)).map_err(for_now)?;
        let mut wire = match trust {
            None => Wire::Plain(socket),
            Some(trust) => Wire::Sealed(Box::new(seal(&trust, to, socket)?)),
        };
        wire.write_all(&request(to, wanted)).map_err(for_now)?;
        wire.flush().map_err(for_now)?;
        let mut buffer = Vec::new();
        let (status, head_bytes) = read_head(&mut wire, &mut buffer, to)?;
        if status != 200 {
            let mut body = buffer.split_off(head_bytes);
            // What can be read of the reason is enough.
            let _ = wire.take(REFUSAL_BYTES_MAX).read_to_end(&mut body);
            return Err(refusal(to, status, &body));
        }
        wire.set_read_timeout(READ_TIMEOUT).map_err(for_now)?;
        let early = head_bytes..buffer.len();
        buffer.resize(buffer.len().max(HEAD_BYTES_MAX), 0);
        Ok(Link {
            wire,
            buffer,
            early,
        })
    }

    /// What came next, within [`READ_TIMEOUT`].
    pub(super) fn read(&mut self) -> Got<'_> {
        if !self.early.is_empty() {
            let early = std::mem::take(&mut self.early);
            return Got::Bytes(&self.buffer[early]);
        }
        match self.wire.read(&mut self.buffer) {
            Ok(0) => Got::End("the server closed the stream".into()),
            Ok(n) => Got::Bytes(&self.buffer[..n]),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {
                    Got::Nothing
                }
                _ => Got::End(error.to_string()),
            },
        }
    }
}

/// Tries each address in turn; the last one's error is told.
fn connect(to: &Endpoint, timeout: Duration) -> Result<TcpStream, Refusal> {
    let mut refusal = Refusal::ForNow(format!("{to}: no address"));
    for address in to.resolve().map_err(Refusal::Unanswered)? {
        refusal = match TcpStream::connect_timeout(&address, timeout) {
            Ok(socket) => return Ok(socket),
            Err(error) => {
                let why = format!("{to}: {error}");
                match error.kind() {
                    ErrorKind::ConnectionRefused => Refusal::ForNow(why),
                    _ => Refusal::Unanswered(why),
                }
            }
        };
    }
    Err(refusal)
}

/// Shakes hands.
fn seal(trust: &Trust, to: &Endpoint, socket: TcpStream) -> Result<Sealed, Refusal> {
    let (host, _) = to.authority().rsplit_once(':').unwrap_or_default();
    trust
        .seal(host, socket)
        .map_err(|error| match error.kind() {
            // Whom it does not believe now it will not believe soon.
            ErrorKind::InvalidData | ErrorKind::InvalidInput => {
                Refusal::ForGood(format!("{to}: {error}"))
            }
            _ => Refusal::ForNow(format!("{to}: {error}")),
        })
}

/// HTTP/1.0, so that no proxy on the way cuts the stream into chunks; POST, so that no list is too
/// long.
fn request(to: &Endpoint, wanted: Wanted<'_>) -> Vec<u8> {
    let Wanted { user, watch, .. } = wanted;
    let body = match user {
        Some(user) => serde_json::json!({"user": user, "watch": watch}),
        None => serde_json::json!({"watch": watch}),
    };
    let body = body.to_string();
    let line = |name: &str, value: Option<&str>| {
        value.map_or(String::new(), |value| format!("{name}{value}\r\n"))
    };
    let token = line("Authorization: Bearer ", wanted.token);
    let resumed = Some(wanted.last_event_id).filter(|id| !id.is_empty());
    let resume = line("Last-Event-ID: ", resumed);
    let host = to.authority();
    let head = format!(
        "POST /v1/stream HTTP/1.0\r\nHost: {host}\r\nAccept: text/event-stream\r\nContent-Type: \
         application/json\r\n\
         Content-Length: {}\r\n{token}{resume}\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

/// Reads up to the head's end: status and length of the head. More may be in `buffer`.
fn read_head(
    socket: &mut impl Read,
    buffer: &mut Vec<u8>,
    to: &Endpoint,
) -> Result<(u16, usize), Refusal> {
    let for_now = |why: String| Refusal::ForNow(format!("{to}: {why}"));
    let mut chunk = [0; 4_096];
    while buffer.len() < HEAD_BYTES_MAX {
        let n = match socket.read(&mut chunk) {
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(Refusal::Unanswered(format!("{to}: no answer: {error}"))),
        };
        if n == 0 {
            return Err(for_now("closed without an answer".into()));
        }
        buffer.extend_from_slice(&chunk[..n]);
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            let status = status_of(&buffer[..end])
                .ok_or_else(|| Refusal::ForGood(format!("{to}: no HTTP server")))?;
            return Ok((status, end + 4));
        }
    }
    Err(Refusal::ForGood(format!(
        "{to}: the answer's head does not end"
    )))
}

/// The status code of a head (RFC 9112 section 4); the headers of a stream hold nothing that this
/// client decides on.
fn status_of(head: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(head.split(|&byte| byte == b'\r').next()?).ok()?;
    let code = line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
    let three_digits = code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit());
    if three_digits {
        code.parse().ok()
    } else {
        None
    }
}

fn refusal(to: &Endpoint, status: u16, body: &[u8]) -> Refusal {
    let detail = serde_json::from_slice::<serde_json::Value>(body)
        .ok()
        .and_then(|problem| {
            let text = problem.get("detail").or_else(|| problem.get("title"))?;
            text.as_str().map(String::from)
        });
    let why = format!(
        "{to}: refused with {status}: {}",
        detail.as_deref().unwrap_or("no reason given")
    );
    match status {
        408 | 429 | 500..=599 => Refusal::ForNow(why),
        _ => Refusal::ForGood(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::endpoint::{Port, Said};

    fn at(text: &str) -> Endpoint {
        Endpoint::parse(text, Port::Http, Said::Flag).unwrap()
    }

    #[test]
    fn the_request_is_whole() {
        let to = &at("localhost:8080");
        let mut wanted = Wanted {
            user: Some("me\""),
            watch: &["bob".into()],
            token: Some("a.b.c"),
            last_event_id: "17",
        };
        let asked = String::from_utf8(request(to, wanted)).unwrap();
        assert_eq!(
            asked,
            "POST /v1/stream HTTP/1.0\r\nHost: localhost:8080\r\nAccept: text/event-stream\r\n\
             Content-Type: application/json\r\n\
             Content-Length: 31\r\nAuthorization: Bearer a.b.c\r\nLast-Event-ID: 17\r\n\r\n\
             {\"user\":\"me\\\"\",\"watch\":[\"bob\"]}"
        );
        (wanted.user, wanted.token, wanted.last_event_id) = (None, None, "");
        assert_eq!(
            String::from_utf8(request(to, wanted)).unwrap(),
            "POST /v1/stream HTTP/1.0\r\nHost: localhost:8080\r\nAccept: text/event-stream\r\n\
             Content-Type: application/json\r\nContent-Length: 17\r\n\r\n{\"watch\":[\"bob\"]}"
        );
    }

    #[test]
    fn statuses() {
        assert_eq!(status_of(b"HTTP/1.1 200 OK\r\nA: b"), Some(200));
        assert_eq!(status_of(b"HTTP/1.0 503"), Some(503));
        for bad in [
            "HTTP/2 200",
            "SSH-2.0-x",
            "",
            "HTTP/1.1",
            "HTTP/1.1 +20 x",
            "HTTP/1.1 2000 x",
        ] {
            assert_eq!(status_of(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn refusals() {
        let to = &at("127.0.0.1:80");
        let body = br#"{"title":"t","detail":"too many"}"#;
        assert_eq!(
            refusal(to, 413, body),
            Refusal::ForGood("127.0.0.1:80 (--http): refused with 413: too many".into())
        );
        assert_eq!(
            refusal(to, 503, b"<html>"),
            Refusal::ForNow("127.0.0.1:80 (--http): refused with 503: no reason given".into())
        );
    }
}
