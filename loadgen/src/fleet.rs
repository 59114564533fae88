//! Very many event streams on one thread: connect, ask, read, tell.
//!
//! Owns the sockets and what each needs between two reads (about 60 bytes); what a stream means is
//! its [`Handler`]'s business. Edge-triggered, one registration a stream, one read buffer for all.
//! Never blocks except in [`Fleet::poll`].

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustls::ClientConnection;
use socket2::{Domain, Protocol, Socket, Type};

use crate::chunked::Chunked;
use crate::clock;
use crate::gone::Gone;
use crate::seal::{Seal, shake};
use crate::sse::{Event, Lasting, Reader};

/// Streams that share one source address. Far below the number of ephemeral ports: the kernel
/// searches for a free one, even ones first, and once half of them are taken a connect costs ten
/// times as much.
const STREAMS_PER_SOURCE: usize = 4_000;
/// So long before something is due it is awaited without sleeping, us: a thread sleeps 50 us longer
/// than it asks for (`timerslack_ns` of prctl(2)).
const SPUN_US: u64 = 60;
const EVENTS_PER_POLL_MAX: usize = 256;
const READ_BYTES: usize = 256 << 10;
const HEAD_BYTES_MAX: usize = 16 << 10;

/// What the streams of a fleet are for.
pub trait Handler {
    /// Appends the request that opens stream `conn` at `host`; `lasting`: what its predecessor was
    /// told.
    fn request(&mut self, conn: usize, host: SocketAddr, lasting: Lasting, out: &mut Vec<u8>);
    /// The connection stands; the request is being sent.
    fn connected(&mut self, conn: usize, now_us: u64) {
        let _ = (conn, now_us);
    }
    /// The head of a 200 answer has come.
    fn opened(&mut self, conn: usize, now_us: u64) {
        let _ = (conn, now_us);
    }
    /// An event has come.
    fn event(&mut self, conn: usize, now_us: u64, event: &Event<'_>, lasting: Lasting);
    /// The stream ended, and not by [`Fleet::close`].
    fn gone(&mut self, conn: usize, now_us: u64, why: Gone, lasting: Lasting);
}

#[derive(Default)]
struct Conn {
    socket: Option<TcpStream>,
    phase: Phase,
    reader: Reader,
    lasting: Lasting,
    /// Request bytes not yet sent, then answer bytes before the head's end.
    #[expect(
        clippy::box_collection,
        reason = "one word for an idle stream; a Vec would be three"
    )]
    pending: Option<Box<Vec<u8>>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Phase {
    #[default]
    Closed,
    Connecting,
    /// TLS is being agreed on.
    Shaking,
    Sending,
    Head,
    Body(Chunked),
}

/// What an edge of a socket said.
#[derive(Clone, Copy)]
struct Edge {
    writable: bool,
    /// The other end has sent its last byte.
    closed: bool,
}

/// Begins a connection to `target`, for the stream of this number among those of all processes.
pub fn connect(target: SocketAddr, number: usize) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(target),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    if let (SocketAddr::V4(_), true) = (target, target.ip().is_loopback()) {
        let number = number / STREAMS_PER_SOURCE;
        let source = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 0, 2)) + number as u32);
        choose_port_at_connect(&socket)?;
        socket.bind(&SocketAddr::V4(SocketAddrV4::new(source, 0)).into())?;
    }
    match socket.connect(&target.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    Ok(TcpStream::from_std(socket.into()))
}

/// Streams to some servers.
pub struct Fleet {
    poll: Poll,
    events: Events,
    conns: Vec<Conn>,
    buffer: Box<[u8]>,
    /// Never empty.
    targets: Vec<SocketAddr>,
    /// Number of the first stream among those of all processes, for the choice of servers and
    /// source addresses.
    first: usize,
    /// By how many servers each stream has moved on from its own; empty while none has.
    moved: Vec<u16>,
    /// None: streams are plain.
    seal: Option<Seal>,
    /// The TLS of each stream that is open; empty where streams are plain.
    sealed: Vec<Option<Box<ClientConnection>>>,
    asleep_us: u64,
}

impl Fleet {
    /// `count` streams to `targets` in turn (always the same stream to the same one), none of them
    /// open; `first`: how many streams other processes of this run have before these.
    pub fn new(targets: Vec<SocketAddr>, first: usize, count: usize) -> io::Result<Fleet> {
        Ok(Fleet {
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS_PER_POLL_MAX),
            conns: std::iter::repeat_with(Conn::default).take(count).collect(),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            targets,
            first,
            moved: Vec::new(),
            seal: None,
            sealed: Vec::new(),
            asleep_us: 0,
        })
    }

    /// The same over TLS, if `seal` is something.
    pub fn sealed_by(mut self, seal: Option<Seal>) -> Fleet {
        let count = seal.as_ref().map_or(0, |_| self.conns.len());
        self.sealed.resize_with(count, || None);
        self.seal = seal;
        self
    }

    /// Begins to connect stream `conn`, which is closed.
    pub fn open(&mut self, conn: usize) -> io::Result<()> {
        let host = self.target(conn);
        let mut socket = connect(host, self.first + conn)?;
        if let Some(seal) = &self.seal {
            self.sealed[conn] = Some(seal.open(host)?);
        }
        self.poll.registry().register(
            &mut socket,
            Token(conn),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        let lasting = self.conns[conn].lasting;
        self.conns[conn] = Conn {
            socket: Some(socket),
            phase: Phase::Connecting,
            lasting,
            ..Conn::default()
        };
        Ok(())
    }

    fn target(&self, conn: usize) -> SocketAddr {
        self.targets[self.at(conn)]
    }

    /// Which of the servers stream `conn` is at, or is to be opened at.
    pub fn at(&self, conn: usize) -> usize {
        let moved = self.moved.get(conn).copied().unwrap_or(0);
        (self.first + conn + usize::from(moved)) % self.targets.len()
    }

    /// Has stream `conn`, which is closed, be opened at that server from now on. What it was told
    /// of ids holds there too.
    pub fn move_to(&mut self, conn: usize, server: usize) {
        let count = self.targets.len();
        let moved = (server + count - self.at(conn)) % count;
        if moved == 0 {
            return;
        }
        self.moved.resize(self.conns.len(), 0);
        let all = (usize::from(self.moved[conn]) + moved) % count;
        self.moved[conn] = all as u16;
    }

    /// Ends stream `conn`; with a reset if `abrupt`, as a phone that lost its network never would,
    /// but a middlebox does.
    pub fn close(&mut self, conn: usize, abrupt: bool) {
        self.sealed.get_mut(conn).map(Option::take);
        let conn = &mut self.conns[conn];
        if let (Some(socket), true) = (&conn.socket, abrupt) {
            // Without the option it is an orderly close, which ends the stream as well.
            let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
        *conn = Conn {
            lasting: conn.lasting,
            ..Conn::default()
        };
    }

    /// Streams of this process, open or not.
    pub fn len(&self) -> usize {
        self.conns.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.conns.is_empty()
    }

    /// Whether stream `conn` is closed.
    pub fn is_closed(&self, conn: usize) -> bool {
        self.conns[conn].phase == Phase::Closed
    }

    /// What stream `conn` was last told of ids and delays; outlives the stream, for its successor.
    pub fn lasting(&self, conn: usize) -> Lasting {
        self.conns[conn].lasting
    }

    /// How long [`Fleet::poll`] has waited in all, us: the rest of the time the generator was busy.
    pub fn asleep_us(&self) -> u64 {
        self.asleep_us
    }

    /// Waits for so long, or until something has come: epoll itself knows only whole ms.
    fn nap(&self, us: u64) -> io::Result<()> {
        let left = Timespec {
            tv_sec: 0,
            tv_nsec: us as i64 * 1_000,
        };
        let mut epoll = [PollFd::new(self.poll.registry(), PollFlags::IN)];
        match rustix::event::poll(&mut epoll, Some(&left)) {
            Err(Errno::INTR) | Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until `deadline_us` at most and handles what has come, one batch. Shortly before the
    /// deadline it polls without sleeping: a schedule kept to the ms, or late by what it takes to
    /// wake, would be charged to the server.
    pub fn poll(&mut self, deadline_us: u64, handler: &mut impl Handler) -> io::Result<()> {
        let before_us = clock::now_us();
        let left_us = deadline_us.saturating_sub(before_us);
        let left_ms = left_us / 1_000;
        if left_ms == 0 && left_us > SPUN_US {
            self.nap(left_us - SPUN_US)?;
        }
        match self
            .poll
            .poll(&mut self.events, Some(Duration::from_millis(left_ms)))
        {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        let mut now_us = clock::now_us();
        self.asleep_us += now_us - before_us;
        for event in &self.events {
            let Token(index) = event.token();
            let host = self.target(index);
            let conn = &mut self.conns[index];
            let edge = Edge {
                writable: event.is_writable(),
                closed: event.is_read_closed(),
            };
            let mut tls = self.sealed.get_mut(index).and_then(Option::as_deref_mut);
            let step = conn.ready(
                index,
                host,
                edge,
                now_us,
                &mut tls,
                &mut self.buffer,
                handler,
            );
            now_us = clock::now_us();
            if let Err(why) = step {
                self.sealed.get_mut(index).map(Option::take);
                *conn = Conn {
                    lasting: conn.lasting,
                    ..Conn::default()
                };
                handler.gone(index, now_us, why, conn.lasting);
            }
        }
        Ok(())
    }
}

/// A stream's bytes on their way, sealed or plain.
struct Line<'a> {
    socket: &'a mut TcpStream,
    tls: Option<&'a mut ClientConnection>,
}

impl Read for Line<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            Some(tls) => rustls::Stream::new(*tls, self.socket).read(buffer),
            None => self.socket.read(buffer),
        }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            Some(tls) => rustls::Stream::new(*tls, self.socket).write(bytes),
            None => self.socket.write(bytes),
        }
    }

    /// What is sealed has gone, or `WouldBlock`.
    fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => rustls::Stream::new(*tls, self.socket).flush(),
            None => Ok(()),
        }
    }
}

impl Conn {
    #[expect(
        clippy::too_many_arguments,
        reason = "parts of one fleet, borrowed apart"
    )]
    fn ready(
        &mut self,
        index: usize,
        host: SocketAddr,
        edge: Edge,
        now_us: u64,
        tls: &mut Option<&mut ClientConnection>,
        buffer: &mut [u8],
        handler: &mut impl Handler,
    ) -> Result<(), Gone> {
        // An event of a socket that was closed earlier in the same batch.
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        if self.phase == Phase::Connecting {
            if socket.take_error().is_ok_and(|error| error.is_some()) || socket.peer_addr().is_err()
            {
                return if edge.writable {
                    Err(Gone::Refused)
                } else {
                    Ok(())
                };
            }
            let mut request = Vec::new();
            handler.connected(index, now_us);
            handler.request(index, host, self.lasting, &mut request);
            self.pending = Some(Box::new(request));
            self.phase = Phase::Shaking;
        }
        if self.phase == Phase::Shaking {
            let (Some(socket), Some(tls)) = (&mut self.socket, tls.as_deref_mut()) else {
                self.phase = Phase::Sending;
                return self.go_on(index, edge, tls, buffer, handler);
            };
            match shake(tls, socket) {
                Ok(true) => self.phase = Phase::Sending,
                Ok(false) => return Ok(()),
                Err(error) => return Err(broken(&error)),
            }
        }
        self.go_on(index, edge, tls, buffer, handler)
    }

    /// The connection stands: sends what is not sent, and reads.
    fn go_on(
        &mut self,
        index: usize,
        edge: Edge,
        tls: &mut Option<&mut ClientConnection>,
        buffer: &mut [u8],
        handler: &mut impl Handler,
    ) -> Result<(), Gone> {
        if self.phase == Phase::Sending {
            self.send(tls)?;
        }
        // What answers a request that is not whole yet is read when it is.
        if self.phase == Phase::Sending {
            return Ok(());
        }
        self.read(index, edge.closed, tls, buffer, handler)
    }

    fn send(&mut self, tls: &mut Option<&mut ClientConnection>) -> Result<(), Gone> {
        let (Some(socket), Some(pending)) = (&mut self.socket, &mut self.pending) else {
            return Ok(());
        };
        let tls = tls.as_deref_mut();
        let mut line = Line { socket, tls };
        loop {
            let sent = match pending.is_empty() {
                true => line.flush().map(|()| 0),
                false => line.write(pending),
            };
            match sent {
                Ok(_) if pending.is_empty() => break,
                Ok(sent) => drop(pending.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(&error)),
            }
        }
        self.pending = None;
        self.phase = Phase::Head;
        Ok(())
    }

    /// Reads what has come. The last bytes and the end may come in one edge (`closed`), of which
    /// there is no second: then to the end.
    fn read(
        &mut self,
        index: usize,
        closed: bool,
        tls: &mut Option<&mut ClientConnection>,
        buffer: &mut [u8],
        handler: &mut impl Handler,
    ) -> Result<(), Gone> {
        // A read of what is sealed brings one record at a time.
        let to_the_end = closed || tls.is_some();
        while let Some(socket) = &mut self.socket {
            let tls = tls.as_deref_mut();
            match (Line { socket, tls }).read(buffer) {
                Ok(0) => return Err(Gone::Eof),
                Ok(read) => {
                    self.bytes(index, clock::now_us(), &buffer[..read], handler)?;
                    // Less than was asked for: the socket is empty, and an edge will tell when it
                    // no longer is.
                    if read < buffer.len() && !to_the_end {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // An end without a goodbye; what was cut short is noticed by what it is of.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(Gone::Eof),
                Err(error) => return Err(broken(&error)),
            }
        }
        Ok(())
    }

    fn bytes(
        &mut self,
        index: usize,
        now_us: u64,
        bytes: &[u8],
        handler: &mut impl Handler,
    ) -> Result<(), Gone> {
        let Phase::Body(mut chunked) = self.phase else {
            return self.head(index, now_us, bytes, handler);
        };
        let (reader, lasting) = (&mut self.reader, &mut self.lasting);
        let mut each =
            |event: &Event<'_>, lasting: Lasting| handler.event(index, now_us, event, lasting);
        let whole = chunked.decode(bytes, |body| {
            reader
                .feed(body, lasting, &mut each)
                .map_err(|_| Gone::Malformed)
        })?;
        self.phase = Phase::Body(chunked);
        if whole { Err(Gone::Eof) } else { Ok(()) }
    }

    fn head(
        &mut self,
        index: usize,
        now_us: u64,
        bytes: &[u8],
        handler: &mut impl Handler,
    ) -> Result<(), Gone> {
        let mut head = self.pending.take().unwrap_or_default();
        head.extend_from_slice(bytes);
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut answer = httparse::Response::new(&mut headers);
        let head_bytes = match answer.parse(&head) {
            Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
            Ok(httparse::Status::Partial) if head.len() <= HEAD_BYTES_MAX => {
                self.pending = Some(head);
                return Ok(());
            }
            _ => return Err(Gone::Malformed),
        };
        match answer.code {
            Some(200) => {}
            Some(status) => return Err(Gone::Status(status)),
            None => return Err(Gone::Malformed),
        }
        let header = |name: &str, value: &str| {
            answer.headers.iter().any(|h| {
                h.name.eq_ignore_ascii_case(name)
                    && h.value.to_ascii_lowercase().starts_with(value.as_bytes())
            })
        };
        if !header("content-type", "text/event-stream") {
            return Err(Gone::Malformed);
        }
        self.phase = Phase::Body(Chunked::new(header("transfer-encoding", "chunked")));
        handler.opened(index, now_us);
        self.bytes(index, now_us, &head[head_bytes..], handler)
    }
}

/// What an error of a stream's line says of its end.
fn broken(error: &io::Error) -> Gone {
    match error.kind() {
        ErrorKind::InvalidData => Gone::Malformed,
        _ => Gone::Reset,
    }
}

/// Lets the kernel choose the port when the peer is known, so that a port serves many peers and
/// none is searched for.
fn choose_port_at_connect(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for as long as `socket` is borrowed; the option's value is one
    // int that outlives the call.
    let failed = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if failed == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Raises this process's limit of descriptors as far as it may be, and says what it is then.
pub fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // A refusal leaves the limit that is reported below.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a stream was told.
    #[derive(Default)]
    struct Told {
        events: Vec<String>,
        gone: Vec<(Gone, u32)>,
    }

    impl Handler for Told {
        fn request(
            &mut self,
            _conn: usize,
            _host: SocketAddr,
            _lasting: Lasting,
            out: &mut Vec<u8>,
        ) {
            out.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
        }

        fn event(&mut self, _conn: usize, _now_us: u64, event: &Event<'_>, _lasting: Lasting) {
            self.events
                .push(String::from_utf8(event.name.to_vec()).unwrap());
        }

        fn gone(&mut self, _conn: usize, _now_us: u64, why: Gone, lasting: Lasting) {
            self.gone.push((why, lasting.retry_ms));
        }
    }

    /// A server may say its last and close before the stream is looked at again: `overloaded`,
    /// `goodbye`.
    #[test]
    fn the_last_bytes_and_the_end_may_come_together() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut fleet = Fleet::new(vec![listener.local_addr().unwrap()], 0, 1).unwrap();
        let mut told = Told::default();
        fleet.open(0).unwrap();
        let (mut socket, _) = listener.accept().unwrap();
        while fleet.conns[0].phase != Phase::Head {
            fleet.poll(clock::now_us() + 10_000, &mut told).unwrap();
        }
        let mut request = [0; 18];
        socket.read_exact(&mut request).unwrap();
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
        socket
            .write_all(format!("{head}event: overloaded\nretry: 700\ndata: {{}}\n\n").as_bytes())
            .unwrap();
        // Both are in the kernel before the fleet looks.
        drop(socket);
        for _ in 0..5 {
            fleet.poll(clock::now_us() + 10_000, &mut told).unwrap();
        }
        assert_eq!(
            (told.events, told.gone),
            (vec!["overloaded".to_owned()], vec![(Gone::Eof, 700)])
        );
        assert!(fleet.is_closed(0));
    }

    #[test]
    fn an_idle_stream_takes_few_bytes() {
        assert!(size_of::<Conn>() <= 64, "{}", size_of::<Conn>());
    }
}
