//! Starts the shards' threads, gives them orders, waits for them.
//!
//! Owns the doors (a mailbox and what wakes its owner) and the rule that no thread of the process dies alone: a server
//! that serves some of its users is worse than one that a supervisor starts again.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::Sender;
use mio::{Events, Poll, Waker};

use super::accept::Acceptor;
use super::conns::Conns;
use super::datagrams::Datagrams;
use super::mailbox::{Mailbox, Order, Posted};
use super::{BEATS, Bound, Budgets, EVENTS_MAX, LISTENER, READ_BUFFER_BYTES, Shard, WAKER, care};
use crate::engine::{Engine, EngineParts, Mail, ShardId};
use crate::metrics::Board;
use crate::time::Clock;

/// Exit status of a process one of whose threads panicked; Rust's own for its main thread.
const PANIC_STATUS: i32 = 101;

/// Where other threads reach a shard.
pub(super) struct Door {
    pub(super) mailbox: Mailbox<Mail>,
    waker: Waker,
}

impl Door {
    /// Posts a batch and wakes its reader if that sleeps.
    pub(super) fn post(&self, batch: &mut Vec<Mail>, bounced: &mut Vec<Mail>) -> Posted {
        let posted = self.mailbox.post(batch, care, bounced);
        if posted.wake {
            self.wake();
        }
        posted
    }

    fn order(&self, order: Order) {
        if self.mailbox.order(order) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            // Its own next deadline, at most a sweep interval away, wakes it instead.
            tracing::error!(%error, "a sleeping shard could not be woken");
        }
    }
}

/// A shard's way to say that its streams are closed and its answers written.
pub struct Drained {
    shard: ShardId,
    channel: Sender<ShardId>,
}

impl Drained {
    pub(super) fn tell(self) {
        if self.channel.send(self.shard).is_err() {
            tracing::debug!(shard = self.shard, "drained after the wait for it had ended");
        }
    }
}

/// The running shards.
pub struct Shards {
    doors: Arc<[Door]>,
    threads: Vec<JoinHandle<()>>,
}

/// Starts one thread per set of parts, on the sockets of `bound`; each tells `drained` once it has drained.
pub fn spawn(
    bound: Bound,
    parts: Vec<EngineParts>,
    board: &Arc<Board>,
    clock: &Arc<Clock>,
    drained: &Sender<ShardId>,
) -> io::Result<Shards> {
    let mut polls = Vec::with_capacity(parts.len());
    let mut doors = Vec::with_capacity(parts.len());
    for parts in &parts {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        doors.push(Door {
            mailbox: Mailbox::new(parts.settings.mailbox_max),
            waker,
        });
        polls.push(poll);
    }
    let doors: Arc<[Door]> = doors.into();

    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let pinned = parts.len() <= cores.len();
    let sockets = bound.listeners.into_iter().zip(bound.datagrams);
    let mut threads = Vec::with_capacity(parts.len());
    for ((parts, poll), (listener, datagrams)) in parts.into_iter().zip(polls).zip(sockets) {
        let id = parts.shard;
        let acceptor = Acceptor::new(listener, poll.registry(), LISTENER)?;
        let datagrams = Datagrams::new(datagrams, poll.registry(), BEATS)?;
        let core = if pinned {
            cores.get(usize::from(id)).copied()
        } else {
            None
        };
        let (board, clock, doors) = (Arc::clone(board), Arc::clone(clock), Arc::clone(&doors));
        let on_drained = Drained {
            shard: id,
            channel: drained.clone(),
        };
        let thread = vital_thread(format!("shard-{id}"), move || {
            if let Some(core) = core
                && !core_affinity::set_for_current(core)
            {
                tracing::warn!(shard = id, core = core.id, "could not be pinned to its core");
            }
            let settings = Arc::clone(&parts.settings);
            let shard = Shard {
                id,
                budgets: Budgets {
                    mail: settings.mail_per_turn_max,
                    datagrams: settings.datagrams_per_turn_max,
                    flushes: settings.flushes_per_turn_max,
                },
                now: parts.now,
                // Made here, on the core that will use its memory.
                engine: Engine::new(parts),
                poll,
                events: Events::with_capacity(EVENTS_MAX),
                clock,
                more: false,
                acceptor: Some(acceptor),
                conns: Conns::new(settings.conns_max),
                read_buffer: vec![0; READ_BUFFER_BYTES].into_boxed_slice(),
                datagrams,
                outgoing: (0..doors.len()).map(|_| Vec::new()).collect(),
                doors,
                inbox: VecDeque::new(),
                bounced: Vec::new(),
                order: Order::Run,
                on_drained: Some(on_drained),
                board,
            };
            shard.run()
        })?;
        threads.push(thread);
    }
    Ok(Shards { doors, threads })
}

impl Shards {
    /// Begins the graceful shutdown of every shard.
    pub fn drain(&self) {
        self.doors.iter().for_each(|door| door.order(Order::Drain));
    }

    /// Ends every shard's loop, closing what is still open, and waits for the threads.
    pub fn stop(self) {
        self.doors.iter().for_each(|door| door.order(Order::Stop));
        for thread in self.threads {
            // A thread that panicked has ended the process before it could be joined.
            thread.join().expect("a vital thread returns or ends the process");
        }
    }
}

/// Runs `work` on a thread without which the process is of no use: if it fails or panics, that is logged and the process
/// exits, with 1 or 101. What was accepted is in the mapped files.
pub fn vital_thread(
    name: String,
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.clone()).spawn(move || {
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(thread = name, %error, "failed; the server cannot go on");
                std::process::exit(1);
            }
            Err(_) => {
                // The panic's own message and place have been written by the hook.
                tracing::error!(thread = name, "panicked; the server cannot go on");
                std::process::exit(PANIC_STATUS);
            }
        }
    })
}
