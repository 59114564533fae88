//! Webhooks: transitions, told to servers that are not greendot's.
//!
//! Owns the hand-over from the shards, and a thread for each hook, so that a receiver that is slow
//! holds up nobody else. Which states are told and when is [`Hook`]'s, or in a fleet [`Queue`]'s,
//! which have no kernel; how a receiver is spoken to is [`Receiver`]'s. Never decides who is
//! online, and never waits for a disk: up to when each receiver has been told everything is left
//! for whoever keeps it.

mod hook;
mod outcome;
mod pace;
mod queue;
mod receiver;
mod told;
mod walk;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

pub use hook::{Handed, Hook, HookOptions, HookStanding, Message};
pub use outcome::{Failure, Outcome, Why};
use parking_lot::Mutex;
pub use queue::Queue;
pub use receiver::{Receiver, ReceiverOptions};
pub use told::{Prepared, Said, Told, Wake};

use super::station::Station;
use super::threads::{Spawn, carry_out};
use crate::auth::Keyrings;
use crate::engine::{HookOrder, HookReport, Outbound};
use crate::metrics::{Board, Gauge};
use crate::time::{Clock, Mono, Unix, boottime};

/// How a hook stands is looked at so often, in ms.
const LOOK_MS: u64 = 1_000;
/// A node that stops tells what is queued for no longer than this, in ms.
const STOP_MS_MAX: u64 = 2_000;
/// And looks so often whether that is done.
const STOP_LOOK: Duration = Duration::from_millis(10);

/// What the hooks of a node share.
struct Shared {
    board: Arc<Board>,
    clock: Arc<Clock>,
    keyrings: Arc<Keyrings>,
    queue_max: usize,
    /// When whoever stops the node will wait no longer; NEVER: it goes on. In microseconds.
    stop_by: AtomicU64,
    stopping: AtomicBool,
    standings: Mutex<Vec<HookStanding>>,
}

/// What all hooks need.
pub struct WebhookParts<'s> {
    pub board: Arc<Board>,
    pub clock: Arc<Clock>,
    /// By what messages are signed.
    pub keyrings: Arc<Keyrings>,
    /// Most users in the queue of one hook, and most transitions that wait to be put there.
    pub queue_max: usize,
    /// Starts the threads.
    pub spawn: Spawn<'s>,
}

/// The running hooks of a node.
pub struct Webhooks {
    stations: Stations,
    shared: Arc<Shared>,
    threads: Vec<(String, JoinHandle<()>)>,
}

/// Where each hook's thread finds what is for it.
type Stations = Arc<[Station<Left>]>;

/// What has been left for a hook's thread: by shards, or by the bridge to a fleet.
#[derive(Default)]
struct Left {
    handed: Handed,
    orders: Vec<HookOrder>,
    /// States in them.
    states: usize,
}

/// Up to when each receiver has been told everything, Unix ms.
#[derive(Clone, Debug)]
pub struct Positions(Arc<[AtomicU64]>);

/// What a shard needs to hand something over.
#[derive(Clone)]
pub struct WebhookHandle {
    stations: Stations,
    queue_max: usize,
}

/// What the bridge to a fleet needs of one hook.
pub struct FleetHandle {
    stations: Stations,
    at: usize,
    told: Arc<Fleet>,
    queue_max: usize,
}

/// What a hook of a fleet tells its bridge.
#[derive(Default)]
struct Fleet {
    reports: Mutex<Vec<HookReport>>,
    /// Users in the queue, and states that wait to be put there.
    queued: AtomicUsize,
    left: AtomicUsize,
}

impl Left {
    fn is_empty(&self) -> bool {
        self.handed.is_empty() && self.orders.is_empty()
    }
}

impl Positions {
    /// Of receivers that have been told so much.
    pub fn new(told: impl Iterator<Item = Unix>) -> Positions {
        Positions(told.map(|told| AtomicU64::new(told.ms())).collect())
    }

    /// As of now.
    pub fn read(&self) -> Vec<Unix> {
        let positions = self.0.iter();
        positions
            .map(|position| Unix::from_ms(position.load(Ordering::Acquire)))
            .collect()
    }
}

impl WebhookHandle {
    /// Hands over what hooks are about; it does not block. What a full inbox does not take is found
    /// by a walk.
    pub fn hand(&self, outbound: &Outbound) {
        let max = self.queue_max;
        for station in self.stations.iter() {
            match outbound {
                Outbound::Publish(decided) => {
                    station.leave(|left| left.handed.decided(decided, max));
                }
                Outbound::Erased(erasure) => {
                    station.leave(|left| left.handed.erased(erasure, max));
                }
                _ => {}
            }
        }
    }
}

impl FleetHandle {
    /// Hands something over; it does not block.
    pub fn hand(&self, order: HookOrder) {
        let states = match &order {
            HookOrder::States(states) => states.states.len(),
            HookOrder::Permit { .. } | HookOrder::Drop { .. } => 0,
        };
        self.told.left.fetch_add(states, Ordering::AcqRel);
        self.stations[self.at].leave(|left| {
            left.orders.push(order);
            left.states += states;
        });
    }

    /// For how many more users there is room.
    pub fn room(&self) -> usize {
        let queued = self.told.queued.load(Ordering::Acquire);
        let left = self.told.left.load(Ordering::Acquire);
        self.queue_max.saturating_sub(queued + left)
    }

    /// What the hook has said since the last call.
    pub fn reports(&self) -> Vec<HookReport> {
        std::mem::take(&mut *self.told.reports.lock())
    }
}

impl Shared {
    fn note(&self, at: usize, standing: HookStanding) {
        let mut standings = self.standings.lock();
        standings[at] = standing;
        let queued: usize = standings.iter().map(|each| each.queued).sum();
        let failing = standings.iter().filter(|each| each.is_failing).count();
        let behind_ms = standings.iter().map(|each| each.behind_ms).max();
        let process = &self.board.process;
        process.set(Gauge::WebhookQueue, queued as u64);
        process.set(Gauge::WebhooksFailing, failing as u64);
        let behind_micros = behind_ms.unwrap_or(0).saturating_mul(1_000);
        process.set(Gauge::WebhookBehind, behind_micros);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Nobody waits any more for what is queued.
    fn is_late(&self) -> bool {
        boottime() >= Mono::from_micros(self.stop_by.load(Ordering::Acquire))
    }
}

impl Webhooks {
    /// Starts a thread for each.
    ///
    /// Errors: one could not be started.
    pub fn start(hooks: Vec<Prepared>, parts: WebhookParts<'_>) -> io::Result<Webhooks> {
        let stations: Stations = hooks.iter().map(|_| Station::default()).collect();
        let shared = Arc::new(Shared {
            board: parts.board,
            clock: parts.clock,
            keyrings: parts.keyrings,
            queue_max: parts.queue_max,
            stop_by: AtomicU64::new(Mono::NEVER.micros()),
            stopping: AtomicBool::new(false),
            standings: Mutex::new(vec![HookStanding::default(); hooks.len()]),
        });
        let thread = |(at, prepared): (usize, Prepared)| {
            let Prepared { told, receiver } = prepared;
            let (stations, shared) = (Arc::clone(&stations), Arc::clone(&shared));
            let place = receiver.place().to_owned();
            let work = move || tell(at, told, &receiver, &stations[at], &shared);
            let thread = (parts.spawn)(format!("webhook-{at}"), Box::new(work))?;
            Ok((place, thread))
        };
        let threads = hooks.into_iter().enumerate().map(thread);
        let threads = threads.collect::<io::Result<_>>()?;
        Ok(Webhooks {
            stations,
            shared,
            threads,
        })
    }

    /// For the shards.
    pub fn handle(&self) -> WebhookHandle {
        WebhookHandle {
            stations: Arc::clone(&self.stations),
            queue_max: self.shared.queue_max,
        }
    }

    /// Ends the threads: what is queued is sent first, unless its receiver does not take it, for
    /// two seconds at most. What is not is told after the next start.
    pub fn stop(self) {
        let stop_by = boottime().plus_ms(STOP_MS_MAX);
        let shared = &self.shared;
        shared.stop_by.store(stop_by.micros(), Ordering::Release);
        shared.stopping.store(true, Ordering::Release);
        self.stations.iter().for_each(Station::wake);
        for (place, thread) in self.threads {
            while !thread.is_finished() && !shared.is_late() {
                std::thread::sleep(STOP_LOOK);
            }
            if thread.is_finished() {
                thread
                    .join()
                    .expect("a hook's thread returns or ends the process");
            } else {
                tracing::warn!(
                    node = place,
                    "the webhook's receiver has not answered yet; the message is sent again after \
                     the next start"
                );
            }
        }
    }
}

fn tell(at: usize, mut told: Told, receiver: &Receiver, station: &Station<Left>, shared: &Shared) {
    let say = |effects| carry_out(effects, &shared.board, receiver.place(), &|_| {});
    let (mut look_at, mut noted) = (boottime(), HookStanding::default());
    loop {
        let may_rest = told.is_idle() && !told.has_news();
        let look = if may_rest { Mono::NEVER } else { look_at };
        station.wait(told.next().min(look), |left| {
            left.is_empty() && !shared.is_stopping()
        });
        // Before what has been left is taken: of that everything is told then.
        let up_to = told.published_up_to();
        let now = shared.clock.now();
        say(told.take(station.take(), up_to, now));
        if now.mono >= look_at {
            noted = told.standing(now.unix);
            shared.note(at, noted);
            look_at = now.mono.plus_ms(LOOK_MS);
        }
        let has_told_all = told.is_idle() || told.is_failing();
        if shared.is_stopping() && (has_told_all || shared.is_late()) {
            return;
        }
        let (message, effects) = told.poll_message(now);
        say(effects);
        if let Some(message) = message {
            let keyring = shared.keyrings.load_full();
            let secrets = keyring.signs_webhook(at);
            let secrets = secrets.expect("a node does not start without a secret for each hook");
            let outcome = receiver.send(&message, secrets, shared.clock.now().unix);
            say(told.handle(outcome, boottime()));
        }
        told.leave_word();
        if told.is_idle() && noted != HookStanding::default() {
            noted = HookStanding::default();
            shared.note(at, noted);
        }
    }
}
