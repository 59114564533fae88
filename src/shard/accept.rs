//! Accepts connections, and keeps a descriptor back for when there is no other.
//!
//! Owns the listeners and the reserve descriptor. Decides nothing: when to accept, who may connect
//! and what a refusal says is the driver's and the engine's.

use std::fs::File;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::tls::Tls;
use crate::engine::Entrance;
use crate::engine::turn::Accepted;
use crate::time::{Mono, boottime};

/// Time between two log lines about a limit that was reached, in ms.
const TELL_INTERVAL_MS: u64 = 10_000;

/// One shard's listeners.
pub(super) struct Acceptor {
    listener: TcpListener,
    /// The one that speaks TLS, if there is one.
    https: Option<Other>,
    /// The operators', if they have one.
    admin: Option<Other>,
    /// Kept so that, when no other is left, one connection at a time can be told so.
    reserve: Option<File>,
    /// When the log may be told again.
    tell_at: Mono,
}

/// A listener beside the one for everybody.
struct Other {
    listener: TcpListener,
    /// Somebody may be waiting there: an edge was seen and no attempt has come back empty since.
    waits: bool,
}

/// A connection that has come, or what else came of an attempt.
pub(super) enum Arrival {
    /// By which listener, and whether that speaks TLS.
    Came {
        entrance: Entrance,
        tls: bool,
        socket: TcpStream,
    },
    /// One waits for which there is no room among the handshakes, and nobody else.
    NoRoom,
    None(Accepted<TcpStream>),
}

/// The tokens of the listeners' edges.
pub(super) struct Tokens {
    pub(super) http: Token,
    pub(super) https: Token,
    pub(super) admin: Token,
}

impl Acceptor {
    /// Takes over listening sockets and registers them.
    pub(super) fn new(
        [listener, https, admin]: [Option<TcpListener>; 3],
        registry: &Registry,
        tokens: &Tokens,
    ) -> io::Result<Acceptor> {
        let listen = |listener: &TcpListener, token| {
            let mut source = SourceFd(&listener.as_raw_fd());
            registry.register(&mut source, token, Interest::READABLE)
        };
        let other = |listener: Option<TcpListener>, token| match listener {
            None => Ok(None),
            Some(listener) => listen(&listener, token).map(|()| {
                let waits = true;
                Some(Other { listener, waits })
            }),
        };
        let listener = listener.ok_or(io::ErrorKind::NotConnected)?;
        listen(&listener, tokens.http)?;
        Ok(Acceptor {
            listener,
            https: other(https, tokens.https)?,
            admin: other(admin, tokens.admin)?,
            reserve: open_reserve(),
            tell_at: Mono::default(),
        })
    }

    /// An edge of the operators' listener was seen.
    pub(super) fn note_admin(&mut self) {
        self.admin.iter_mut().for_each(|admin| admin.waits = true);
    }

    /// An edge of the listener that speaks TLS was seen.
    pub(super) fn note_https(&mut self) {
        self.https.iter_mut().for_each(|https| https.waits = true);
    }

    /// Accepts one connection, an operator's first, non-blocking and with the listener's options.
    /// None whose handshake would find no room.
    pub(super) fn accept(&mut self, tls: Option<&Tls>) -> Arrival {
        let (arrival, error) = self.attempt(tls);
        if let Some(error) = error {
            self.tell(&error);
        }
        arrival
    }

    /// The same, with the reserve descriptor. Another thread may take it first.
    pub(super) fn accept_on_reserve(&mut self, tls: Option<&Tls>) -> Arrival {
        drop(self.reserve.take());
        self.attempt(tls).0
    }

    /// Keeps a descriptor back again, if there is one.
    pub(super) fn keep_reserve(&mut self) {
        if self.reserve.is_none() {
            self.reserve = open_reserve();
        }
    }

    /// And the error, where it is one of the machine's and not of the peer's.
    fn attempt(&mut self, tls: Option<&Tls>) -> (Arrival, Option<io::Error>) {
        let has_room = tls.is_some_and(Tls::has_room);
        let admin_tls = tls.is_some_and(Tls::is_for_admin);
        let mut no_room = false;
        if let Some(admin) = &mut self.admin {
            if admin_tls && !has_room {
                no_room |= admin.waits;
            } else if let Some(arrived) = admin.attempt(Entrance::Admin, admin_tls) {
                return arrived;
            }
        }
        let (arrived, error) = attempt(&self.listener);
        let public = arrival(arrived, Entrance::Public, false);
        if !matches!(public, Arrival::None(Accepted::Empty)) {
            return (public, error);
        }
        if let Some(https) = &mut self.https {
            if !has_room {
                no_room |= https.waits;
            } else if let Some(arrived) = https.attempt(Entrance::Public, true) {
                return arrived;
            }
        }
        match no_room {
            true => (Arrival::NoRoom, None),
            false => (public, None),
        }
    }

    fn tell(&mut self, error: &io::Error) {
        let now = boottime();
        if now >= self.tell_at {
            self.tell_at = now.plus_ms(TELL_INTERVAL_MS);
            tracing::warn!(%error, "no connection can be accepted; raise the limit (ulimit -n, \
                                    LimitNOFILE=)");
        }
    }
}

impl Other {
    /// None: nobody waits.
    fn attempt(&mut self, entrance: Entrance, tls: bool) -> Option<(Arrival, Option<io::Error>)> {
        if !self.waits {
            return None;
        }
        match attempt(&self.listener) {
            (Accepted::Empty, _) => {
                self.waits = false;
                None
            }
            (accepted, error) => Some((arrival(accepted, entrance, tls), error)),
        }
    }
}

fn arrival(accepted: Accepted<TcpStream>, entrance: Entrance, tls: bool) -> Arrival {
    match accepted {
        Accepted::Socket(socket) => Arrival::Came {
            entrance,
            tls,
            socket,
        },
        other => Arrival::None(other),
    }
}

fn attempt(listener: &TcpListener) -> (Accepted<TcpStream>, Option<io::Error>) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let errno = match rustix::net::accept_with(listener, flags) {
        Ok(socket) => return (Accepted::Socket(TcpStream::from(socket)), None),
        Err(errno) => errno,
    };
    match errno {
        Errno::AGAIN => (Accepted::Empty, None),
        Errno::MFILE | Errno::NFILE => (Accepted::NoDescriptor, Some(errno.into())),
        Errno::NOBUFS | Errno::NOMEM => (Accepted::NoMemory, Some(errno.into())),
        // accept(2): errors already pending on the new socket are passed on here; they are that
        // peer's, not ours.
        _ => (Accepted::Aborted, None),
    }
}

fn open_reserve() -> Option<File> {
    File::open("/dev/null").ok()
}
