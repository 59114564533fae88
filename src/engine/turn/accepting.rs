//! Accepting: within a budget, and without spinning when there is no file descriptor left.
//!
//! Owns when an attempt is worth its system call, and the one connection at a time that is heard on
//! the reserve descriptor to be refused. Decides nothing about who may connect, which is the
//! engine's, and nothing about what a refusal says, which is [`Refusals`]'.

use std::io;

use super::kernel::{Accepted, Kernel};
use crate::engine::Refusals;
use crate::time::{Mono, Now};

/// Time without accepting after the descriptors ran out, in ms.
const PAUSE_MS: u64 = 100;
/// Time that a connection on the reserve descriptor has to say what it asks for, in ms. Its request
/// comes with the handshake's last packet or right behind it; one that says nothing holds up the
/// others.
const HEARING_MS: u64 = 100;
/// Most bytes of a request that is to be refused which are read, so that closing does not reset the
/// connection.
const HEARD_BYTES_MAX: usize = 65_536;
/// Connections refused through the reserve descriptor before each pause.
const REFUSALS_MAX: usize = 32;

/// A connection that is to be refused and has not said yet in which words.
struct Held<S> {
    socket: S,
    /// What it has sent.
    heard: Vec<u8>,
    /// When it is refused in any case.
    until: Mono,
    /// An edge was seen since its last read: it may be its own.
    ready: bool,
}

/// One shard's listeners, but for their descriptors.
pub(super) struct Accepting<S> {
    /// Somebody may still connect.
    is_open: bool,
    /// Connections may be waiting: an edge was seen and no attempt has come back empty since.
    waits: bool,
    resume_at: Mono,
    /// The connection on the reserve descriptor.
    held: Option<Held<S>>,
    refusals: Refusals,
}

impl<S> Accepting<S> {
    /// A listener that somebody may have come to already.
    pub(super) fn new(refusals: Refusals) -> Accepting<S> {
        Accepting {
            is_open: true,
            waits: true,
            resume_at: Mono::default(),
            held: None,
            refusals,
        }
    }

    /// An edge of a listener was seen, or of the connection on the reserve descriptor.
    pub(super) fn note_edge(&mut self) {
        self.waits = true;
        if let Some(held) = &mut self.held {
            held.ready = true;
        }
    }

    /// Whether an attempt is worth its system call now.
    pub(super) fn is_ready(&self, now: Now) -> bool {
        match &self.held {
            _ if !self.is_open => false,
            Some(held) => held.ready || now.mono >= held.until,
            None => self.waits && now.mono >= self.resume_at,
        }
    }

    /// When there is something to do, if no edge says so before.
    pub(super) fn due(&self) -> Mono {
        match &self.held {
            _ if !self.is_open => Mono::NEVER,
            Some(held) => held.until,
            None if self.waits => self.resume_at,
            None => Mono::NEVER,
        }
    }

    /// Closes the listeners: those who come from now on are refused by the kernel.
    pub(super) fn stop(&mut self, now: Now, kernel: &mut impl Kernel<Socket = S>) {
        if let Some(held) = self.held.take()
            && let Some(answer) = self.refusals.answer(&held.heard, false, now.unix)
        {
            refuse(held.socket, &answer, kernel);
        }
        if std::mem::take(&mut self.is_open) {
            kernel.stop_listening();
        }
    }

    /// One attempt. Where no descriptor is left, some of those who wait are refused.
    pub(super) fn accept(&mut self, now: Now, kernel: &mut impl Kernel<Socket = S>) -> Accepted<S> {
        self.hear_held(now, kernel);
        if self.held.is_some() {
            return Accepted::Empty;
        }
        let accepted = kernel.accept();
        match &accepted {
            Accepted::Socket(_) | Accepted::Admin(_) | Accepted::Aborted => {}
            Accepted::Empty => self.waits = false,
            Accepted::NoDescriptor => {
                self.resume_at = now.mono.plus_ms(PAUSE_MS);
                self.refuse_some(now, kernel);
            }
            Accepted::NoMemory => self.resume_at = now.mono.plus_ms(PAUSE_MS),
        }
        accepted
    }

    /// Answers some of those who wait, one at a time, on the descriptor that is kept for that. The
    /// first that has not said what it asks for stays on it, and the others wait.
    fn refuse_some(&mut self, now: Now, kernel: &mut impl Kernel<Socket = S>) {
        for _ in 0..REFUSALS_MAX {
            match kernel.accept_on_reserve() {
                Accepted::Socket(socket) | Accepted::Admin(socket) => {
                    let mut held = Held {
                        socket,
                        heard: Vec::new(),
                        until: now.mono.plus_ms(HEARING_MS),
                        ready: false,
                    };
                    let mut answer = self.hear(&mut held, now, kernel);
                    if answer.is_none() && kernel.watch_held(&held.socket).is_err() {
                        answer = self.refusals.answer(&held.heard, false, now.unix);
                    }
                    match answer {
                        Some(answer) => refuse(held.socket, &answer, kernel),
                        None => {
                            self.held = Some(held);
                            return;
                        }
                    }
                }
                Accepted::Aborted => {}
                // Without a free descriptor the kernel does not say whether anybody waits; now it
                // does.
                Accepted::Empty => {
                    self.waits = false;
                    break;
                }
                Accepted::NoDescriptor | Accepted::NoMemory => break,
            }
        }
        kernel.keep_reserve();
    }

    /// Refuses the one on the reserve descriptor once it has said what it asks for, or has had its
    /// time.
    fn hear_held(&mut self, now: Now, kernel: &mut impl Kernel<Socket = S>) {
        let Some(mut held) = self.held.take() else {
            return;
        };
        match self.hear(&mut held, now, kernel) {
            Some(answer) => {
                refuse(held.socket, &answer, kernel);
                kernel.keep_reserve();
            }
            None => self.held = Some(held),
        }
    }

    /// Reads what has come, but no more than [`HEARD_BYTES_MAX`] in all. None: what it asks for,
    /// and from which origin, has not come yet, and may still come.
    fn hear(
        &mut self,
        held: &mut Held<S>,
        now: Now,
        kernel: &mut impl Kernel<Socket = S>,
    ) -> Option<Vec<u8>> {
        held.ready = false;
        let mut bytes = [0; 4_096];
        let may_say_more = loop {
            if held.heard.len() >= HEARD_BYTES_MAX {
                break false;
            }
            match kernel.read(&mut held.socket, &mut bytes) {
                Ok(0) => break false,
                Ok(n) => held.heard.extend_from_slice(&bytes[..n]),
                Err(error) => match error.kind() {
                    // The deadline reads again, should a signal have interrupted this.
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {
                        break now.mono < held.until;
                    }
                    _ => break false,
                },
            }
        };
        self.refusals.answer(&held.heard, may_say_more, now.unix)
    }
}

/// Writes what fits into a fresh socket's buffer, which the whole answer does; what has come has
/// been read, so that closing does not reset the connection before the answer is read. Whatever
/// fails here, the connection is closed next.
fn refuse<K: Kernel>(mut socket: K::Socket, answer: &[u8], kernel: &mut K) {
    if kernel.write(&mut socket, answer).is_ok() {
        let _closed_next = kernel.shut_down(&mut socket);
    }
    kernel.close(socket);
}
