//! Accepts connections: within a budget, and without spinning when there is no file descriptor left.
//!
//! Owns the listener and the reserve descriptor. Decides nothing about who may connect: that is the engine's.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;

use crate::time::{Mono, Now};
use crate::wire::response::{Answer, problems, write_answer};
use crate::wire::sse;

/// Time without accepting after the descriptors ran out, in ms.
const PAUSE_MS: u64 = 100;
/// Connections refused through the reserve descriptor before each pause.
const REFUSALS_MAX: usize = 32;
/// Reconnect delay told to streams that are refused so, in ms: the mean; half as much either way.
const REFUSED_RETRY_MS: u64 = 20_000;
/// What became of one attempt to accept.
pub(super) enum Accepted {
    /// A connection.
    Conn(TcpStream),
    /// One that ended before it was accepted, or the like: try the next.
    Aborted,
    /// None is waiting.
    Empty,
    /// No descriptor or no memory for one; accepting pauses.
    NoDescriptor,
}

/// One shard's listener.
pub(super) struct Acceptor {
    listener: TcpListener,
    /// Kept so that, when no other is left, one connection at a time can be told so.
    reserve: Option<File>,
    /// Connections may be waiting: the edge was seen and no attempt has come back empty since.
    ready: bool,
    resume_at: Mono,
    /// The answer to those who ask for no stream.
    refusal: Vec<u8>,
    /// Whom the fixed jitter spreads: counts the refused.
    refused: u64,
}

impl Acceptor {
    /// Takes over a listening socket and registers it.
    pub(super) fn new(listener: TcpListener, registry: &Registry, token: Token) -> io::Result<Acceptor> {
        registry.register(&mut SourceFd(&listener.as_raw_fd()), token, Interest::READABLE)?;
        Ok(Acceptor {
            listener,
            reserve: open_reserve(),
            ready: true,
            resume_at: Mono::default(),
            refusal: refusal(),
            refused: 0,
        })
    }

    /// The listener's edge was seen.
    pub(super) fn set_ready(&mut self) {
        self.ready = true;
    }

    /// Whether an attempt is worth its system call now.
    pub(super) fn is_ready(&self, now: Now) -> bool {
        self.ready && now.mono >= self.resume_at
    }

    /// When accepting resumes, if it pauses and something is waiting.
    pub(super) fn resume_at(&self) -> Mono {
        if self.ready { self.resume_at } else { Mono::NEVER }
    }

    /// Accepts one connection, non-blocking and with the listener's options.
    pub(super) fn accept(&mut self, now: Now) -> Accepted {
        let error = match self.accept_one() {
            Ok(stream) => return Accepted::Conn(stream),
            Err(error) => error,
        };
        match Errno::from_io_error(&error) {
            Some(Errno::AGAIN) => {
                self.ready = false;
                Accepted::Empty
            }
            Some(Errno::MFILE | Errno::NFILE) => {
                self.refuse_some();
                self.resume_at = now.mono.plus_ms(PAUSE_MS);
                Accepted::NoDescriptor
            }
            Some(Errno::NOBUFS | Errno::NOMEM) => {
                self.resume_at = now.mono.plus_ms(PAUSE_MS);
                Accepted::NoDescriptor
            }
            // accept(2): errors already pending on the new socket are passed on here; they are that peer's, not ours.
            _ => Accepted::Aborted,
        }
    }

    fn accept_one(&self) -> io::Result<TcpStream> {
        let flags = rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC;
        Ok(TcpStream::from(rustix::net::accept_with(&self.listener, flags)?))
    }

    /// Answers some of those that wait, one at a time, with the descriptor kept for that.
    fn refuse_some(&mut self) {
        // Another thread may have taken the descriptor since; then nobody is answered until it is back.
        let had_reserve = self.reserve.take().is_some();
        if had_reserve {
            for _ in 0..REFUSALS_MAX {
                match self.accept_one() {
                    Ok(stream) => self.refuse(&stream),
                    Err(_) => break,
                }
            }
        }
        self.reserve = open_reserve();
    }

    /// Writes what fits into a fresh socket's buffer, which the whole answer does, and reads what has come, so that closing
    /// does not reset the connection before the answer is read. Whatever fails here, the connection is closed next.
    fn refuse(&mut self, mut stream: &TcpStream) {
        self.refused += 1;
        let mut request = [0; 4_096];
        let len = stream.read(&mut request).unwrap_or(0);
        let answered = if is_stream_request(&request[..len]) {
            // An EventSource never comes back after a status other than 200 (WHATWG HTML 9.2.3).
            let mut answer = Vec::with_capacity(512);
            sse::write_stream_head("", &mut answer);
            let retry_ms = REFUSED_RETRY_MS / 2 + self.refused * 977 % REFUSED_RETRY_MS;
            sse::write_overloaded(retry_ms, "nofile", &mut answer);
            stream.write(&answer)
        } else {
            stream.write(&self.refusal)
        };
        let shut = answered.and_then(|_| stream.shutdown(Shutdown::Write));
        if let Err(error) = shut {
            tracing::debug!(%error, "a refused connection did not take its answer");
        }
    }
}

fn refusal() -> Vec<u8> {
    let problem = problems::OVERLOADED;
    let (mut body, mut out) = (Vec::new(), Vec::new());
    problem.write("no file descriptor is free; try again later", &mut body);
    let answer = Answer {
        status: problem.status,
        content_type: "application/problem+json",
        body: &body,
        extra: "Retry-After: 20\r\n",
        head_only: false,
        keep_alive: false,
        http10: false,
    };
    write_answer(&mut out, &answer);
    out
}

fn is_stream_request(request: &[u8]) -> bool {
    let path = request.strip_prefix(b"GET ").or_else(|| request.strip_prefix(b"POST "));
    let Some(rest) = path.and_then(|path| path.strip_prefix(b"/v1/stream")) else {
        return false;
    };
    matches!(rest.first(), Some(b' ' | b'?'))
}

fn open_reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_told_from_the_rest() {
        assert!(is_stream_request(b"GET /v1/stream?user=a HTTP/1.1\r\n"));
        assert!(is_stream_request(b"POST /v1/stream HTTP/1.1\r\n"));
        assert!(!is_stream_request(b"POST /v1/stream/1.2.3/watch HTTP/1.1\r\n"));
        assert!(!is_stream_request(b"GET /v1/presence/a HTTP/1.1\r\n"));
        assert!(!is_stream_request(b""));
    }

    #[test]
    fn a_refused_client_reads_why() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let poll = mio::Poll::new().unwrap();
        let mut acceptor = Acceptor::new(listener, poll.registry(), Token(0)).unwrap();
        for (request, start) in [
            (
                "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n",
                "HTTP/1.1 503 Service Unavailable\r\n",
            ),
            (
                "GET /v1/stream?user=a HTTP/1.1\r\nHost: a\r\n\r\n",
                "HTTP/1.1 200 OK\r\n",
            ),
        ] {
            let mut client = TcpStream::connect(addr).unwrap();
            client.write_all(request.as_bytes()).unwrap();
            acceptor.refuse_some();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with(start), "{answer}");
            assert!(acceptor.reserve.is_some());
        }
    }
}
