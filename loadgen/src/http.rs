//! Plain HTTP requests, one after the other: `/metrics`, beats and goodbyes, edits of watch lists.
//!
//! Owns one blocking keep-alive connection. The paths that are measured never come through here.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const JSON: &str = "application/json";

/// One connection to a server.
pub struct Client {
    socket: TcpStream,
    target: SocketAddr,
    /// Header lines of every request besides the usual ones.
    headers: String,
    buffer: Vec<u8>,
}

/// An answer: status and body.
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body, decoded if it was chunked.
    pub body: Vec<u8>,
}

impl Client {
    /// Connects; each later read or write may take 10 s.
    pub fn connect(target: SocketAddr) -> io::Result<Client> {
        Client::connect_within(target, Duration::from_secs(10))
    }

    /// Connects; that, and each later read or write, may take `limit`.
    pub fn connect_within(target: SocketAddr, limit: Duration) -> io::Result<Client> {
        let socket = TcpStream::connect_timeout(&target, limit)?;
        socket.set_read_timeout(Some(limit))?;
        socket.set_write_timeout(Some(limit))?;
        socket.set_nodelay(true)?;
        Ok(Client {
            socket,
            target,
            headers: String::new(),
            buffer: Vec::new(),
        })
    }

    /// From now on every request shows `token` (RFC 6750).
    pub fn authorise(&mut self, token: &str) {
        self.headers = format!("Authorization: Bearer {token}\r\n");
    }

    /// Asks and waits for the answer.
    pub fn call(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
        self.ask(method, path, body)?;
        self.answer()
    }

    /// Posts what is no JSON and waits for the answer.
    pub fn post_bytes(&mut self, path: &str, body: &[u8]) -> io::Result<Answer> {
        self.send("POST", path, "application/octet-stream", body)?;
        self.answer()
    }

    /// Sends a request without waiting for its answer.
    pub fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<()> {
        self.send(method, path, JSON, body)
    }

    fn send(&mut self, method: &str, path: &str, media: &str, body: &[u8]) -> io::Result<()> {
        let (mut request, headers) = (Vec::new(), &self.headers);
        write_with(
            method,
            path,
            self.target,
            headers,
            media,
            body,
            &mut request,
        );
        self.socket.write_all(&request)
    }

    /// Waits for the next answer.
    pub fn answer(&mut self) -> io::Result<Answer> {
        loop {
            if let Some((answer, length)) = parse_answer(&self.buffer)? {
                self.buffer.drain(..length);
                return Ok(answer);
            }
            let mut piece = [0; 16 << 10];
            match self.socket.read(&mut piece)? {
                0 => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the server closed the connection before its answer was whole",
                    ));
                }
                read => self.buffer.extend_from_slice(&piece[..read]),
            }
        }
    }

    /// The answers that have come so far, without waiting.
    pub fn answers_so_far(&mut self) -> io::Result<Vec<Answer>> {
        self.socket.set_nonblocking(true)?;
        let mut piece = [0; 16 << 10];
        let result = loop {
            match self.socket.read(&mut piece) {
                Ok(0) => {
                    break Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the server closed the connection",
                    ));
                }
                Ok(read) => self.buffer.extend_from_slice(&piece[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.socket.set_nonblocking(false)?;
        result?;
        let mut answers = Vec::new();
        while let Some((answer, length)) = parse_answer(&self.buffer)? {
            self.buffer.drain(..length);
            answers.push(answer);
        }
        Ok(answers)
    }
}

/// Appends a request with the headers that every one here has.
pub fn write_request(method: &str, path: &str, host: SocketAddr, body: &[u8], out: &mut Vec<u8>) {
    write_with(method, path, host, "", JSON, body, out);
}

fn write_with(
    method: &str,
    path: &str,
    host: SocketAddr,
    headers: &str,
    media: &str,
    body: &[u8],
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(
        format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}").as_bytes(),
    );
    if method != "GET" {
        out.extend_from_slice(
            format!(
                "Content-Type: {media}\r\nContent-Length: {}\r\n",
                body.len()
            )
            .as_bytes(),
        );
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
}

/// The answer at the start of `input` and its length; None if it is not whole yet.
pub fn parse_answer(input: &[u8]) -> io::Result<Option<(Answer, usize)>> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP");
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    let head_bytes = match head.parse(input).map_err(|_| malformed())? {
        httparse::Status::Complete(bytes) => bytes,
        httparse::Status::Partial => return Ok(None),
    };
    let status = head.code.ok_or_else(malformed)?;
    let header = |name: &str| {
        head.headers
            .iter()
            .find(|h| h.name.eq_ignore_ascii_case(name))
            .map(|h| h.value)
    };
    let rest = &input[head_bytes..];
    if header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked")) {
        return Ok(dechunk(rest)
            .map_err(|()| malformed())?
            .map(|(body, bytes)| (Answer { status, body }, head_bytes + bytes)));
    }
    let length = match header("content-length") {
        Some(text) => std::str::from_utf8(text)
            .ok()
            .and_then(|t| t.trim().parse().ok())
            .ok_or_else(malformed)?,
        None if matches!(status, 100..=199 | 204 | 304) => 0,
        None => return Err(malformed()),
    };
    Ok(rest.get(..length).map(|body| {
        (
            Answer {
                status,
                body: body.to_vec(),
            },
            head_bytes + length,
        )
    }))
}

/// A whole chunked body without trailers, and its length.
fn dechunk(input: &[u8]) -> Result<Option<(Vec<u8>, usize)>, ()> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some((line, size)) = httparse::parse_chunk_size(&input[at..])
            .map_err(|_| ())?
            .complete()
        else {
            return Ok(None);
        };
        let (data, end) = (at + line, at + line + size as usize);
        if input.len() < end + 2 {
            return Ok(None);
        }
        body.extend_from_slice(&input[data..end]);
        at = end + 2;
        if size == 0 {
            return Ok(Some((body, at)));
        }
    }
}

trait Complete<T> {
    fn complete(self) -> Option<T>;
}

impl<T> Complete<T> for httparse::Status<T> {
    fn complete(self) -> Option<T> {
        if let httparse::Status::Complete(value) = self {
            Some(value)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &[u8]) -> Option<(u16, String, usize)> {
        parse_answer(text)
            .unwrap()
            .map(|(a, length)| (a.status, String::from_utf8(a.body).unwrap(), length))
    }

    #[test]
    fn answers_by_length_and_in_chunks() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP";
        assert_eq!(parse(text), Some((200, "ok".to_owned(), 40)));
        assert_eq!(parse(&text[..39]), None);
        let text =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n1\r\n!\r\n0\r\n\r\nX";
        assert_eq!(parse(text), Some((200, "ok!".to_owned(), text.len() - 1)));
        for cut in 0..text.len() - 1 {
            assert_eq!(parse(&text[..cut]), None);
        }
        assert_eq!(
            parse(b"HTTP/1.1 204 No Content\r\n\r\n"),
            Some((204, String::new(), 27))
        );
        assert!(parse_answer(b"SSH-2.0\r\n").is_err());
    }

    #[test]
    fn requests() {
        let mut out = Vec::new();
        write_request(
            "POST",
            "/v1/beat",
            "127.0.0.1:8080".parse().unwrap(),
            b"{}",
            &mut out,
        );
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "POST /v1/beat HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Type: application/json\r\n\
             Content-Length: 2\r\n\r\n{}"
        );
    }
}
