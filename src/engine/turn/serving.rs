//! What a turn does with its sockets: steps 4, 7 and 8.
//!
//! Owns what an edge means and what becomes of what a read or a write left over.

use std::io;

use super::budgets::Step;
use super::kernel::{Accepted, Edge, Kernel, Order, Peer, Piece};
use super::sockets::fact;
use super::{Driver, FLUSHES_AHEAD};
use crate::engine::{CloseHow, Entrance};
use crate::metrics::Counter;
use crate::planted::{self, Planted};
use crate::realtime::ConnId;

/// Flushes between two looks at the clock: some 50 microseconds of `send`.
const FLUSHES_PER_LOOK: usize = 8;

impl<S> Driver<S> {
    /// Step 4: new connections, then those with something to read.
    pub fn serve_sockets(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        self.accept(kernel);
        self.queue_resumed();
        let mut bytes_left = self.budgets.read_bytes;
        let ahead_max = self.engine.awaiting_flush() + FLUSHES_AHEAD;
        for read in 0..self.budgets.reads {
            // Answers go out first, and the next turn begins at once.
            let crowded = self.engine.awaiting_flush() >= ahead_max;
            if bytes_left == 0 || crowded || self.is_over(Step::Read, read, kernel) {
                break;
            }
            let Some(conn) = self.sockets.pop_ready() else {
                break;
            };
            bytes_left = bytes_left.saturating_sub(self.serve(conn, kernel));
        }
        if self.sockets.has_ready() {
            self.left_over(if bytes_left == 0 {
                Counter::LimitReadBytesPerTurn
            } else {
                Counter::LimitReadsPerTurn
            });
        }
    }

    fn accept(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        for accepted in 0..self.budgets.accepts {
            if !self.accepting.is_ready(self.now) || self.is_over(Step::Accept, accepted, kernel) {
                break;
            }
            match self.accepting.accept(self.now, kernel) {
                Accepted::Socket(socket) => self.admit(Entrance::Public, socket, kernel),
                Accepted::Admin(socket) => self.admit(Entrance::Admin, socket, kernel),
                Accepted::Aborted | Accepted::Empty => {}
                Accepted::NoDescriptor | Accepted::NoMemory => {
                    let counters = self.engine.counters();
                    counters.add(Counter::LimitFileDescriptors, 1);
                }
            }
        }
        if self.accepting.is_ready(self.now) {
            self.left_over(Counter::LimitAcceptsPerTurn);
        } else if self.order >= Order::Close {
            // Those who were waiting have been accepted, and will be answered.
            self.accepting.stop(self.now, kernel);
        }
    }

    fn admit(&mut self, entrance: Entrance, socket: S, kernel: &mut impl Kernel<Socket = S>) {
        let address = kernel.address(&socket);
        let came_at = kernel.came_at().unwrap_or(self.now.mono);
        let accepted = self
            .engine
            .handle_accept(entrance, address, came_at, self.now);
        let Some(conn) = accepted else {
            return kernel.close(socket);
        };
        let watched = kernel.watch(conn, &socket);
        let holds_more = kernel.holds_more(&socket);
        if let Some(stale) = self.sockets.insert(conn, socket) {
            kernel.close(stale);
        }
        if let Err(error) = watched {
            self.fail(conn, Some(error), kernel);
        } else if holds_more {
            self.sockets.queue(conn, 0);
        }
    }

    /// Connections whose edge was used up while the engine took no bytes.
    pub(super) fn queue_resumed(&mut self) {
        while let Some(conn) = self.engine.poll_resume() {
            self.sockets.clear(conn, fact::PAUSED);
            if !planted::is(Planted::ResumedUnread) {
                self.sockets.queue(conn, 0);
            }
        }
    }

    /// Acts on what the edges of one connection said: at most one read. Returns the bytes read.
    fn serve(&mut self, conn: ConnId, kernel: &mut impl Kernel<Socket = S>) -> usize {
        if self.sockets.any(conn, fact::FAILED) {
            self.fail(conn, None, kernel);
            return 0;
        }
        if self.sockets.any(conn, fact::WRITABLE) {
            self.sockets.clear(conn, fact::WRITABLE | fact::BLOCKED);
            self.engine.handle_writable(conn, self.now);
        }
        if self.sockets.any(conn, fact::PAUSED | fact::EOF) {
            return 0;
        }
        let Some(socket) = self.sockets.get_mut(conn) else {
            return 0;
        };
        match kernel.read(socket, &mut self.read_buffer) {
            Ok(0) => {
                self.sockets.note(conn, fact::EOF);
                self.engine.handle_eof(conn, self.now);
                0
            }
            Ok(n) => {
                let bytes = &self.read_buffer[..n];
                let takes_more = self.engine.handle_bytes(conn, bytes, self.now);
                kernel.worked(Piece::Bytes(socket), &mut self.engine);
                let is_full =
                    n == self.read_buffer.len() && !planted::is(Planted::FullReadForgotten);
                let holds_more = kernel.holds_more(socket);
                if !takes_more {
                    self.sockets.note(conn, fact::PAUSED);
                } else if is_full || holds_more || self.sockets.any(conn, fact::READ_CLOSED) {
                    self.sockets.queue(conn, 0);
                }
                n
            }
            Err(error) => {
                match error.kind() {
                    io::ErrorKind::WouldBlock => {}
                    io::ErrorKind::Interrupted => self.sockets.queue(conn, 0),
                    _ => self.fail(conn, Some(error), kernel),
                }
                0
            }
        }
    }

    /// Lets go of a connection whose socket failed: with `error`, or as an edge told, which does
    /// not say why.
    fn fail(
        &mut self,
        conn: ConnId,
        error: Option<io::Error>,
        kernel: &mut impl Kernel<Socket = S>,
    ) {
        let Some(socket) = self.sockets.remove(conn) else {
            return;
        };
        let error = error.or_else(|| kernel.error(&socket));
        // What TCP_USER_TIMEOUT ends a connection with.
        if error.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            self.engine.handle_timed_out(conn, self.now);
            kernel.reset(socket);
        } else {
            self.engine.handle_closed(conn, self.now);
            kernel.close(socket);
        }
    }

    /// Whether the peers of streams whose turn it is acknowledge what is written to them.
    pub(super) fn ask_kernel(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        while let Some(conn) = self.engine.poll_asked() {
            let socket = self.sockets.get_mut(conn);
            let unacknowledged_ms = socket.and_then(|socket| kernel.unacknowledged_ms(socket));
            self.engine.handle_acknowledged(unacknowledged_ms, self.now);
        }
    }

    /// Step 7: writes what streams and requesters must be told.
    pub fn flush(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        for flushed in 0..self.budgets.flushes {
            if flushed.is_multiple_of(FLUSHES_PER_LOOK)
                && self.is_over(Step::Flush, flushed, kernel)
            {
                break;
            }
            let Some(flush) = self.engine.poll_flush(self.now) else {
                return;
            };
            let (conn, offered) = (flush.conn, flush.bytes.len());
            if let Some(next) = flush.next.and_then(|next| self.sockets.at(next)) {
                kernel.expect_write(next);
            }
            let untimed = self.sockets.any(conn, fact::UNTIMED);
            let Some(socket) = self.sockets.get_mut(conn) else {
                self.engine.handle_closed(conn, self.now);
                continue;
            };
            let peer = untimed.then(|| kernel.peer(socket));
            let written = match peer {
                Some(Peer::Dead) => Err(io::ErrorKind::TimedOut.into()),
                _ => write_some(socket, flush.bytes, kernel),
            };
            let n = match written {
                Ok(n) => n,
                Err(error) => {
                    self.fail(conn, Some(error), kernel);
                    continue;
                }
            };
            // Leaves a peer whose window is full to the engine, which lets it go when no write gets
            // on. TCP_USER_TIMEOUT would end it however steadily it reads: Linux counts it from the
            // first probe of a closed window, and a window that opens by less than the next segment
            // does not begin the count anew (tcp_probe_timer, tcp_ack_probe).
            if n < offered && !untimed {
                kernel.watch_over(socket, false);
            }
            // The peer has caught up: the kernel may watch over it again. Until then each flush
            // asks whether it is dead, and a stream is flushed at least once in its keep-alive
            // period.
            let caught_up = n == offered && peer == Some(Peer::CaughtUp);
            if caught_up {
                kernel.watch_over(socket, true);
            }
            self.engine.handle_flushed(conn, n, self.now);
            kernel.worked(Piece::Flush(socket), &mut self.engine);
            if n < offered {
                self.sockets.note(conn, fact::BLOCKED | fact::UNTIMED);
            } else if caught_up {
                self.sockets.clear(conn, fact::UNTIMED);
            }
        }
        self.left_over(Counter::LimitFlushesPerTurn);
    }

    /// Step 8: ends what the engine has done with.
    pub fn close(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        for closed in 0..self.budgets.closes {
            if self.is_over(Step::Close, closed, kernel) {
                break;
            }
            let Some(close) = self.engine.poll_close() else {
                return;
            };
            match close.how {
                CloseHow::Close => {
                    let untimed = self.sockets.any(close.conn, fact::UNTIMED);
                    if let Some(socket) = self.sockets.remove(close.conn) {
                        // Nobody else sees to it that a peer takes what it has not taken yet.
                        if untimed {
                            kernel.watch_over(&socket, true);
                        }
                        kernel.close(socket);
                    }
                }
                CloseHow::Reset => {
                    if let Some(socket) = self.sockets.remove(close.conn) {
                        kernel.reset(socket);
                    }
                }
                CloseHow::ShutdownWrite => {
                    if let Some(socket) = self.sockets.get_mut(close.conn)
                        && let Err(error) = kernel.shut_down(socket)
                    {
                        // Reset in the meantime.
                        self.fail(close.conn, Some(error), kernel);
                    }
                }
            }
        }
        self.left_over(Counter::LimitClosesPerTurn);
    }

    /// An edge of a connection's socket.
    pub fn note_edge(&mut self, conn: ConnId, edge: Edge) {
        let mut facts = 0;
        if edge.read_closed || edge.urgent {
            facts |= fact::READ_CLOSED;
        }
        let waits = self.sockets.any(conn, fact::BLOCKED);
        if edge.writable && waits && !planted::is(Planted::RoomForgotten) {
            facts |= fact::WRITABLE;
        }
        // Closed both ways after the end was told: no other edge will say so.
        if edge.error || (edge.write_closed && self.sockets.any(conn, fact::EOF)) {
            facts |= fact::FAILED;
        }
        if edge.readable || facts != 0 {
            self.sockets.queue(conn, facts);
        }
    }
}

/// Writes what the socket takes now: 0 if it is full.
fn write_some<K: Kernel>(
    socket: &mut K::Socket,
    bytes: &[u8],
    kernel: &mut K,
) -> io::Result<usize> {
    loop {
        match kernel.write(socket, bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
