//! Accepts connections: within a budget, and without spinning when there is no file descriptor
//! left.
//!
//! Owns the listener and the reserve descriptor. Decides nothing about who may connect: that is the
//! engine's.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;

use crate::engine::settings::Settings;
use crate::engine::turn::Accepted;
use crate::time::{Mono, Now};
use crate::wire::request::{Parsed, RequestLimits, parse_head};
use crate::wire::response::{Answer, Asker, problems, write_answer};
use crate::wire::sse;

/// Time without accepting after the descriptors ran out, in ms.
const PAUSE_MS: u64 = 100;
/// Time that a connection on the reserve descriptor has to say what it asks for, in ms. Its request
/// comes with the handshake's last packet or right behind it; whoever says nothing holds up the
/// others.
const HEARING_MS: u64 = 100;
/// Most bytes of a request that is to be refused which are read, so that closing does not reset the
/// connection.
const HEARD_BYTES_MAX: usize = 65_536;
/// Connections refused through the reserve descriptor before each pause.
const REFUSALS_MAX: usize = 32;
/// Time between two log lines about it, in ms.
const TELL_INTERVAL_MS: u64 = 10_000;
/// Reconnect delay told to streams that are refused so, in ms: the mean; half as much either way.
const REFUSED_RETRY_MS: u64 = 20_000;

/// A connection that is to be refused and has not said yet in which words.
struct Held {
    stream: TcpStream,
    /// What it has sent.
    seen: Vec<u8>,
    /// When it is refused in any case.
    until: Mono,
    /// An edge was seen since its last read: it may be its own.
    ready: bool,
}

/// One shard's listener.
pub(super) struct Acceptor {
    listener: TcpListener,
    /// Kept so that, when no other is left, one connection at a time can be told so.
    reserve: Option<File>,
    /// Who is on the reserve descriptor instead.
    held: Option<Held>,
    /// Connections may be waiting: the edge was seen and no attempt has come back empty since.
    ready: bool,
    resume_at: Mono,
    /// When the log may be told of a pause again.
    tell_at: Mono,
    settings: Arc<Settings>,
    limits: RequestLimits,
    /// Whom the fixed jitter spreads: counts the refused.
    refused: u64,
}

impl Acceptor {
    /// Takes over a listening socket and registers it.
    pub(super) fn new(
        listener: TcpListener,
        settings: Arc<Settings>,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Acceptor> {
        registry.register(
            &mut SourceFd(&listener.as_raw_fd()),
            token,
            Interest::READABLE,
        )?;
        Ok(Acceptor {
            listener,
            reserve: open_reserve(),
            held: None,
            ready: true,
            resume_at: Mono::default(),
            tell_at: Mono::default(),
            limits: settings.request_limits(),
            settings,
            refused: 0,
        })
    }

    /// An edge of the listener was seen, or of the connection on the reserve descriptor.
    pub(super) fn set_ready(&mut self) {
        self.ready = true;
        if let Some(held) = &mut self.held {
            held.ready = true;
        }
    }

    /// Whether an attempt is worth its system call now.
    pub(super) fn is_ready(&self, now: Now) -> bool {
        match &self.held {
            Some(held) => held.ready || now.mono >= held.until,
            None => self.ready && now.mono >= self.resume_at,
        }
    }

    /// When accepting resumes, if it pauses and something is waiting.
    pub(super) fn resume_at(&self) -> Mono {
        match &self.held {
            Some(held) => held.until,
            None if self.ready => self.resume_at,
            None => Mono::NEVER,
        }
    }

    /// Accepts one connection, non-blocking and with the listener's options. `registry` and `token`
    /// are those of [`Acceptor::new`].
    pub(super) fn accept(
        &mut self,
        now: Now,
        registry: &Registry,
        token: Token,
    ) -> Accepted<TcpStream> {
        self.hear_held(now);
        if self.held.is_some() {
            return Accepted::Empty;
        }
        let error = match self.accept_one() {
            Ok(stream) => return Accepted::Socket(stream),
            Err(error) => error,
        };
        match Errno::from_io_error(&error) {
            Some(Errno::AGAIN) => {
                self.ready = false;
                Accepted::Empty
            }
            Some(Errno::MFILE | Errno::NFILE) => {
                self.pause(now, &error);
                self.refuse_some(now, registry, token);
                Accepted::NoDescriptor
            }
            Some(Errno::NOBUFS | Errno::NOMEM) => {
                self.pause(now, &error);
                Accepted::NoDescriptor
            }
            // accept(2): errors already pending on the new socket are passed on here; they are that
            // peer's, not ours.
            _ => Accepted::Aborted,
        }
    }

    fn accept_one(&self) -> io::Result<TcpStream> {
        let flags = rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC;
        Ok(TcpStream::from(rustix::net::accept_with(
            &self.listener,
            flags,
        )?))
    }

    fn pause(&mut self, now: Now, error: &io::Error) {
        self.resume_at = now.mono.plus_ms(PAUSE_MS);
        if now.mono >= self.tell_at {
            self.tell_at = now.mono.plus_ms(TELL_INTERVAL_MS);
            tracing::warn!(%error, "no connection can be accepted; raise the limit (ulimit -n, \
                                    LimitNOFILE=)");
        }
    }

    /// Answers some of those that wait, one at a time, with the descriptor kept for that. The first
    /// that has not said what it asks for stays on it, and the others wait.
    fn refuse_some(&mut self, now: Now, registry: &Registry, token: Token) {
        // Another thread may have taken the descriptor since; then nobody is answered until it is
        // back.
        let had_reserve = self.reserve.take().is_some();
        if had_reserve {
            for _ in 0..REFUSALS_MAX {
                match self.accept_one() {
                    Ok(stream) => {
                        let mut held = Held {
                            stream,
                            seen: Vec::new(),
                            until: now.mono.plus_ms(HEARING_MS),
                            ready: false,
                        };
                        let heard = held.hear(&self.limits).or_else(|| {
                            // Closing ends the registration; bytes that have come since are an
                            // edge.
                            let fd = held.stream.as_raw_fd();
                            let polled =
                                registry.register(&mut SourceFd(&fd), token, Interest::READABLE);
                            polled.is_err().then_some(Ask::Other)
                        });
                        match heard {
                            Some(ask) => self.refuse(&held, ask),
                            None => {
                                self.held = Some(held);
                                return;
                            }
                        }
                    }
                    Err(error) => {
                        // Without a free descriptor the kernel does not say whether anybody waits;
                        // now it does.
                        self.ready = Errno::from_io_error(&error) != Some(Errno::AGAIN);
                        break;
                    }
                }
            }
        }
        self.reserve = open_reserve();
    }

    /// Refuses who is on the reserve descriptor once it has said what it asks for, or has had its
    /// time.
    fn hear_held(&mut self, now: Now) {
        let Some(mut held) = self.held.take() else {
            return;
        };
        let heard = held.hear(&self.limits);
        match heard.or_else(|| {
            (now.mono >= held.until).then(|| asks_for(&held.seen).unwrap_or(Ask::Other))
        }) {
            Some(ask) => {
                self.refuse(&held, ask);
                drop(held);
                self.reserve = open_reserve();
            }
            None => self.held = Some(held),
        }
    }

    /// Writes what fits into a fresh socket's buffer, which the whole answer does; what has come
    /// has been read, so that closing does not reset the connection before the answer is read.
    /// Whatever fails here, the connection is closed next.
    fn refuse(&mut self, held: &Held, ask: Ask) {
        self.refused += 1;
        let origin = match parse_head(&held.seen, &self.limits) {
            Parsed::Head { head, .. } => head.origin,
            Parsed::Partial | Parsed::Fault(_) => None,
        };
        // Without them a page of another origin is told of an error that it must not look at, and
        // an EventSource never comes back.
        let asker = Asker {
            cors: self.settings.cors_lines(origin),
            ..Asker::default()
        };
        let answer = match ask {
            Ask::Stream => {
                // An EventSource never comes back after a status other than 200 (WHATWG HTML
                // 9.2.3).
                let mut body = Vec::new();
                let retry_ms = REFUSED_RETRY_MS / 2 + self.refused * 977 % REFUSED_RETRY_MS;
                sse::write_overloaded(retry_ms, "nofile", &mut body);
                Answer::events(body)
            }
            Ask::Other => {
                let detail = "no file descriptor is free; try again later";
                Answer::problem(problems::OVERLOADED, detail).with_lines("Retry-After: 20\r\n")
            }
        };
        let mut bytes = Vec::new();
        write_answer(&mut bytes, &answer, &asker);
        let mut stream = &held.stream;
        let shut = stream
            .write(&bytes)
            .and_then(|_| stream.shutdown(Shutdown::Write));
        if let Err(error) = shut {
            tracing::debug!(%error, "a refused connection did not take its answer");
        }
    }
}

/// What a request asks for, as far as refusing it goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ask {
    Stream,
    Other,
}

impl Held {
    /// Reads what has come, but no more than [`HEARD_BYTES_MAX`] in all. None: what it asks for,
    /// and from which origin, has not come yet.
    fn hear(&mut self, limits: &RequestLimits) -> Option<Ask> {
        self.ready = false;
        let mut bytes = [0; 4_096];
        while self.seen.len() < HEARD_BYTES_MAX {
            match self.stream.read(&mut bytes) {
                Ok(0) => return Some(asks_for(&self.seen).unwrap_or(Ask::Other)),
                Ok(n) => self.seen.extend_from_slice(&bytes[..n]),
                // The deadline reads again, should a signal have interrupted this.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) =>
                {
                    let whole = !matches!(parse_head(&self.seen, limits), Parsed::Partial);
                    return whole.then(|| asks_for(&self.seen).unwrap_or(Ask::Other));
                }
                Err(_) => return Some(Ask::Other),
            }
        }
        Some(asks_for(&self.seen).unwrap_or(Ask::Other))
    }
}

/// What a request asks for. None: its first bytes do not tell yet.
fn asks_for(request: &[u8]) -> Option<Ask> {
    let starts: [&[u8]; 2] = [b"GET /v1/stream", b"POST /v1/stream"];
    if let Some(rest) = starts.iter().find_map(|start| request.strip_prefix(*start)) {
        return rest.first().map(|next| match next {
            b' ' | b'?' => Ask::Stream,
            _ => Ask::Other,
        });
    }
    let may_come = starts.iter().any(|start| start.starts_with(request));
    (!may_come).then_some(Ask::Other)
}

fn open_reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Clock;

    #[test]
    fn streams_are_told_from_the_rest() {
        for (request, ask) in [
            ("GET /v1/stream?user=a HTTP/1.1\r\n", Some(Ask::Stream)),
            ("POST /v1/stream HTTP/1.1\r\n", Some(Ask::Stream)),
            ("GET /v1/stream?", Some(Ask::Stream)),
            ("POST /v1/stream/1.2.3/watch HTTP/1.1\r\n", Some(Ask::Other)),
            ("GET /v1/presence/a HTTP/1.1\r\n", Some(Ask::Other)),
            ("GET /v1/p", Some(Ask::Other)),
            ("\r\n", Some(Ask::Other)),
            ("GET /v1/stream", None),
            ("POST /v1/s", None),
            ("P", None),
            ("", None),
        ] {
            assert_eq!(asks_for(request.as_bytes()), ask, "{request:?}");
        }
    }

    struct Rig {
        acceptor: Acceptor,
        poll: mio::Poll,
        addr: std::net::SocketAddr,
        now: Now,
    }

    impl Rig {
        fn new() -> Rig {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let addr = listener.local_addr().unwrap();
            let poll = mio::Poll::new().unwrap();
            let settings = Settings {
                cors_origins: vec!["https://app.example".into()],
                ..Settings::default()
            };
            let acceptor =
                Acceptor::new(listener, Arc::new(settings), poll.registry(), Token(0)).unwrap();
            let now = Clock::new().now();
            Rig {
                acceptor,
                poll,
                addr,
                now,
            }
        }

        fn client(&self, sends: &str) -> TcpStream {
            let mut client = TcpStream::connect(self.addr).unwrap();
            client.write_all(sends.as_bytes()).unwrap();
            client
        }

        /// What is done when no descriptor is free.
        fn refuse_some(&mut self) {
            self.acceptor.ready = true;
            self.acceptor
                .refuse_some(self.now, self.poll.registry(), Token(0));
        }

        /// Waits for an edge, notes it as the loop does, and turns.
        fn next_edge(&mut self) {
            let mut events = mio::Events::with_capacity(8);
            self.poll
                .poll(&mut events, Some(std::time::Duration::from_secs(30)))
                .unwrap();
            assert!(!events.is_empty(), "no edge came");
            self.acceptor.set_ready();
            assert!(self.acceptor.is_ready(self.now));
            self.acceptor.hear_held(self.now);
        }
    }

    fn answer(mut client: TcpStream) -> String {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    const OK: &str = "HTTP/1.1 200 OK\r\n";
    const REFUSED: &str = "HTTP/1.1 503 Service Unavailable\r\n";

    #[test]
    fn a_refused_client_reads_why() {
        let mut rig = Rig::new();
        for (request, start) in [
            ("GET /livez HTTP/1.1\r\nHost: a\r\n\r\n", REFUSED),
            ("GET /v1/stream?user=a HTTP/1.1\r\nHost: a\r\n\r\n", OK),
        ] {
            let client = rig.client(request);
            rig.refuse_some();
            assert!(!rig.acceptor.ready, "nobody else waits");
            let answer = answer(client);
            assert!(answer.starts_with(start), "{answer}");
            assert!(rig.acceptor.reserve.is_some());
        }
    }

    #[test]
    fn who_has_not_asked_yet_is_heard_first() {
        let mut rig = Rig::new();
        let mut slow = rig.client("");
        let next = rig.client("GET /livez HTTP/1.1\r\nHost: a\r\n\r\n");
        rig.refuse_some();
        assert!(rig.acceptor.held.is_some() && rig.acceptor.reserve.is_none());
        assert!(!rig.acceptor.is_ready(rig.now), "there is nothing to do");
        assert_eq!(rig.acceptor.resume_at(), rig.now.mono.plus_ms(HEARING_MS));
        // The edge of the listener, which is not theirs.
        rig.next_edge();
        assert!(rig.acceptor.held.is_some() && !rig.acceptor.is_ready(rig.now));

        slow.write_all(b"GET /v1/str").unwrap();
        rig.next_edge();
        assert!(
            rig.acceptor.held.is_some(),
            "it may still be one or the other"
        );
        slow.write_all(b"eam?user=a HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        rig.next_edge();
        let told = answer(slow);
        assert!(
            told.starts_with(OK) && told.contains("event: overloaded"),
            "{told}"
        );
        assert!(rig.acceptor.held.is_none() && rig.acceptor.reserve.is_some());
        rig.refuse_some();
        let told = answer(next);
        assert!(told.starts_with(REFUSED), "{told}");
    }

    #[test]
    fn a_page_of_an_allowed_origin_may_read_why() {
        const ALLOWED: &str =
            "\r\nAccess-Control-Allow-Origin: https://app.example\r\nVary: Origin\r\n";
        let mut rig = Rig::new();
        for target in ["/v1/stream?user=a", "/v1/presence/a"] {
            for (origin, allowed) in [
                ("https://app.example", true),
                ("https://other.example", false),
            ] {
                // The line that matters comes behind the one that says what is asked for.
                let mut client = rig.client(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n"));
                rig.refuse_some();
                assert!(rig.acceptor.held.is_some());
                client
                    .write_all(format!("Origin: {origin}\r\n\r\n").as_bytes())
                    .unwrap();
                rig.next_edge();
                let told = answer(client);
                assert_eq!(told.contains(ALLOWED), allowed, "{target} {origin}: {told}");
            }
        }
    }

    #[test]
    fn who_never_ends_its_head_is_refused_in_the_end() {
        let mut rig = Rig::new();
        let endless = rig.client("GET /v1/stream?user=a HTTP/1.1\r\nHost: a\r\n");
        rig.refuse_some();
        rig.acceptor.hear_held(rig.now);
        assert!(rig.acceptor.held.is_some());
        rig.now.mono = rig.now.mono.plus_ms(HEARING_MS);
        rig.acceptor.hear_held(rig.now);
        let told = answer(endless);
        assert!(
            told.starts_with(OK) && told.contains("event: overloaded"),
            "{told}"
        );
    }

    #[test]
    fn who_says_nothing_is_refused_in_the_end() {
        let mut rig = Rig::new();
        let silent = rig.client("");
        rig.refuse_some();
        rig.now.mono = rig.now.mono.plus_ms(HEARING_MS - 1);
        assert!(!rig.acceptor.is_ready(rig.now));
        rig.now.mono = rig.now.mono.plus_ms(1);
        assert!(rig.acceptor.is_ready(rig.now));
        rig.acceptor.hear_held(rig.now);
        let told = answer(silent);
        assert!(told.starts_with(REFUSED), "{told}");
        assert!(rig.acceptor.held.is_none() && rig.acceptor.reserve.is_some());
    }

    #[test]
    fn who_goes_away_unheard_holds_nobody_up() {
        let mut rig = Rig::new();
        let gone = rig.client("");
        rig.refuse_some();
        assert!(rig.acceptor.held.is_some());
        drop(gone);
        rig.next_edge();
        assert!(rig.acceptor.held.is_none() && rig.acceptor.reserve.is_some());
    }
}
