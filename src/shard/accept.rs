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

use crate::engine::turn::Accepted;
use crate::time::{Mono, boottime};

/// Time between two log lines about a limit that was reached, in ms.
const TELL_INTERVAL_MS: u64 = 10_000;

/// One shard's listeners.
pub(super) struct Acceptor {
    listener: TcpListener,
    /// The operators', if they have one.
    admin: Option<TcpListener>,
    /// An operator may be waiting there: an edge was seen and no attempt has come back empty since.
    admin_waits: bool,
    /// Kept so that, when no other is left, one connection at a time can be told so.
    reserve: Option<File>,
    /// When the log may be told again.
    tell_at: Mono,
}

impl Acceptor {
    /// Takes over listening sockets and registers them.
    pub(super) fn new(
        listener: TcpListener,
        admin: Option<TcpListener>,
        registry: &Registry,
        [token, admin_token]: [Token; 2],
    ) -> io::Result<Acceptor> {
        let listen = |listener: &TcpListener, token| {
            let mut source = SourceFd(&listener.as_raw_fd());
            registry.register(&mut source, token, Interest::READABLE)
        };
        listen(&listener, token)?;
        if let Some(admin) = &admin {
            listen(admin, admin_token)?;
        }
        Ok(Acceptor {
            listener,
            admin_waits: admin.is_some(),
            admin,
            reserve: open_reserve(),
            tell_at: Mono::default(),
        })
    }

    /// An edge of the operators' listener was seen.
    pub(super) fn note_admin(&mut self) {
        self.admin_waits = self.admin.is_some();
    }

    /// Accepts one connection, an operator's first, non-blocking and with the listener's options.
    pub(super) fn accept(&mut self) -> Accepted<TcpStream> {
        let (accepted, error) = self.attempt();
        if let Some(error) = error {
            self.tell(&error);
        }
        accepted
    }

    /// The same, with the reserve descriptor. Another thread may take it first.
    pub(super) fn accept_on_reserve(&mut self) -> Accepted<TcpStream> {
        drop(self.reserve.take());
        self.attempt().0
    }

    /// Keeps a descriptor back again, if there is one.
    pub(super) fn keep_reserve(&mut self) {
        if self.reserve.is_none() {
            self.reserve = open_reserve();
        }
    }

    /// And the error, where it is one of the machine's and not of the peer's.
    fn attempt(&mut self) -> (Accepted<TcpStream>, Option<io::Error>) {
        if let Some(admin) = self.admin.as_ref().filter(|_| self.admin_waits) {
            match attempt(admin) {
                (Accepted::Empty, _) => self.admin_waits = false,
                (Accepted::Socket(socket), _) => return (Accepted::Admin(socket), None),
                other => return other,
            }
        }
        attempt(&self.listener)
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
