//! Accepts connections, and keeps a descriptor back for when there is no other.
//!
//! Owns the listener and the reserve descriptor. Decides nothing: when to accept, who may connect
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

/// One shard's listener.
pub(super) struct Acceptor {
    listener: TcpListener,
    /// Kept so that, when no other is left, one connection at a time can be told so.
    reserve: Option<File>,
    /// When the log may be told again.
    tell_at: Mono,
}

impl Acceptor {
    /// Takes over a listening socket and registers it.
    pub(super) fn new(
        listener: TcpListener,
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
            tell_at: Mono::default(),
        })
    }

    /// Accepts one connection, non-blocking and with the listener's options.
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
    fn attempt(&self) -> (Accepted<TcpStream>, Option<io::Error>) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let errno = match rustix::net::accept_with(&self.listener, flags) {
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

    fn tell(&mut self, error: &io::Error) {
        let now = boottime();
        if now >= self.tell_at {
            self.tell_at = now.plus_ms(TELL_INTERVAL_MS);
            tracing::warn!(%error, "no connection can be accepted; raise the limit (ulimit -n, \
                                    LimitNOFILE=)");
        }
    }
}

fn open_reserve() -> Option<File> {
    File::open("/dev/null").ok()
}
