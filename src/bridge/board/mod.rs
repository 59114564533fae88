//! What all connections of a link know together: who has which partition, who hears it, what is
//! to be sent, and what is to be told.
//!
//! Owns the order of events: all of one partition's stand in one order, whatever connection they
//! come from. Never waits for a socket.

mod hearing;
mod map;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub(super) use self::hearing::Wanted;
pub(super) use self::queue::Work;
use super::about::{Identity, Kind};
use super::{Figures, Options, ServerStatus};
use crate::fleet::partition::{Partition, Partitions};
use crate::fleet::traffic::{Event, Failed, Server};
use crate::redis_url::Address;

/// A server that answered no read for so long is silent.
const SILENCE: Duration = Duration::from_secs(2);

/// How long a server that has no slots any more may still answer what it was sent.
const RETIRES_AFTER: Duration = Duration::from_secs(3);

/// An address that connections are held to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Site(u32);

/// What the board is, beside its locked part.
pub(super) struct Board {
    pub(super) options: Options,
    pub(super) partitions: Arc<Partitions>,
    /// One of the moments at which signs of life are read.
    pub(super) beat_at: Instant,
    by_channel: HashMap<Box<[u8]>, Partition>,
    state: Mutex<State>,
    /// There are events.
    events: Notify,
    /// There is room for more.
    room: Notify,
    /// Somebody should look who has which slots.
    pub(super) look: Notify,
    pub(super) counted: Counted,
}

/// Counters that the connections add to.
#[derive(Default)]
pub(super) struct Counted {
    pub(super) commands: AtomicU64,
    pub(super) messages: AtomicU64,
    pub(super) moved: AtomicU64,
    pub(super) reconnects: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
}

struct State {
    events: VecDeque<Event>,
    event_bytes: usize,
    sites: BTreeMap<Site, Seat>,
    next_site: u32,
    next_server: u32,
    /// Of each partition, who should be listened to, and who is.
    homes: Vec<Option<Site>>,
    heard_at: Vec<Option<Site>>,
    /// Who has the key of a partition whose slot is still its home's.
    importers: BTreeMap<Partition, Site>,
    ranges: Vec<(u16, u16, Site)>,
    kind: Option<Kind>,
    epoch: u64,
    viewed_at: Option<Instant>,
    hint: Option<Address>,
    others: Vec<Address>,
    fault: Option<String>,
    /// Faults that the log has named lately.
    told: Vec<(String, Instant)>,
}

/// What is known of a site.
struct Seat {
    address: Address,
    identity: Option<Identity>,
    server: Option<Server>,
    queue: VecDeque<Work>,
    queue_bytes: usize,
    takes_commands: bool,
    is_subscribed: bool,
    wakes: Wakes,
    tasks: Vec<AbortHandle>,
    /// The newest read that was answered, or since when one is waited for.
    answered_at: Instant,
    is_silent: bool,
    idle_since: Option<Instant>,
    fault: Option<String>,
}

/// How the two connections of a site are told that something is to be done.
#[derive(Clone)]
pub(super) struct Wakes {
    pub(super) commands: Arc<Notify>,
    pub(super) subscriptions: Arc<Notify>,
}

impl Board {
    pub(super) fn new(options: Options, partitions: Arc<Partitions>, beat_at: Instant) -> Board {
        let channel = |partition| (partitions.hot_key(partition).into_bytes().into(), partition);
        let count = usize::from(partitions.count());
        Board {
            by_channel: partitions.all().map(channel).collect(),
            options,
            beat_at,
            state: Mutex::new(State {
                events: VecDeque::new(),
                event_bytes: 0,
                sites: BTreeMap::new(),
                next_site: 0,
                next_server: 1,
                homes: vec![None; count],
                heard_at: vec![None; count],
                importers: BTreeMap::new(),
                ranges: Vec::new(),
                kind: None,
                epoch: 0,
                viewed_at: None,
                hint: None,
                others: Vec::new(),
                fault: None,
                told: Vec::new(),
            }),
            partitions,
            events: Notify::new(),
            room: Notify::new(),
            look: Notify::new(),
            counted: Counted::default(),
        }
    }

    /// Finds who has been silent for too long, and who is not needed any more.
    pub(super) fn pulse(&self) {
        let now = Instant::now();
        let mut locked = self.state.lock();
        let state = &mut *locked;
        let mut silent = Vec::new();
        let mut retired = Vec::new();
        for (site, seat) in &mut state.sites {
            let is_idle = seat
                .idle_since
                .is_some_and(|since| now - since > RETIRES_AFTER);
            if is_idle && !state.importers.values().any(|importer| importer == site) {
                retired.push(*site);
            } else if seat.idle_since.is_none()
                && now - seat.answered_at > SILENCE
                && let Some(server) = seat.server
                && !std::mem::replace(&mut seat.is_silent, true)
            {
                silent.push(server);
            }
        }
        for server in silent {
            self.tell(state, Event::Silent { server });
        }
        let mut tasks = Vec::new();
        for site in retired {
            self.deafen(state, site);
            if let Some(seat) = state.sites.remove(&site) {
                tasks.extend(seat.tasks);
                for work in seat.queue {
                    self.fail(state, work, Failed::Unreached);
                }
            }
        }
        drop(locked);
        tasks.iter().for_each(AbortHandle::abort);
    }

    pub(super) fn close(&self) {
        let state = self.state.lock();
        let tasks = state.sites.values().flat_map(|seat| &seat.tasks);
        tasks.for_each(AbortHandle::abort);
    }

    // What operators see.

    pub(super) fn figures(&self) -> Figures {
        let state = self.state.lock();
        let seats = || state.sites.values();
        let up = seats().map(|seat| u32::from(seat.takes_commands) + u32::from(seat.is_subscribed));
        let counted = &self.counted;
        Figures {
            connections: up.sum(),
            subscriptions: state.heard_at.iter().flatten().count() as u32,
            waiting: seats().map(|seat| seat.queue.len() as u32).sum(),
            commands: counted.commands.load(Relaxed),
            messages: counted.messages.load(Relaxed),
            reconnects: counted.reconnects.load(Relaxed),
            moved: counted.moved.load(Relaxed),
            refused: counted.refused.load(Relaxed),
            bytes_in: counted.bytes_in.load(Relaxed),
            bytes_out: counted.bytes_out.load(Relaxed),
        }
    }

    pub(super) fn status(&self) -> (Vec<ServerStatus>, Option<String>) {
        let state = self.state.lock();
        let partitions = |site| {
            state
                .homes
                .iter()
                .filter(|home| **home == Some(site))
                .count()
        };
        let heard = |site| {
            state
                .heard_at
                .iter()
                .filter(|at| **at == Some(site))
                .count()
        };
        let servers = state.sites.iter().map(|(site, seat)| ServerStatus {
            address: seat.address.clone(),
            server: seat.server,
            takes_commands: seat.takes_commands,
            partitions: partitions(*site) as u16,
            heard: heard(*site) as u16,
            fault: seat.fault.clone(),
        });
        (servers.collect(), state.fault.clone())
    }
}

impl State {
    fn site_of(&self, slot: u16) -> Option<Site> {
        let at = self.ranges.partition_point(|range| range.1 < slot);
        let range = self.ranges.get(at).filter(|range| range.0 <= slot)?;
        Some(range.2)
    }

    /// A site is still that server.
    fn is_current(&self, site: Site, server: Server) -> bool {
        self.sites.get(&site).and_then(|seat| seat.server) == Some(server)
    }

    /// What is to be heard from whom may have changed.
    fn wake_subscriptions(&self) {
        let seats = self.sites.values();
        seats.for_each(|seat| seat.wakes.subscriptions.notify_one());
    }

    /// The one that has everything.
    fn home(&self) -> Option<&Seat> {
        match (self.kind, &self.ranges[..]) {
            (Some(Kind::Single), [range]) => self.sites.get(&range.2),
            _ => None,
        }
    }
}

impl Seat {
    fn well(&mut self, options: &Options) {
        if self.takes_commands && self.is_subscribed && self.fault.take().is_some() {
            let sealed = if options.servers.is_sealed {
                " by TLS"
            } else {
                ""
            };
            tracing::info!(server = %self.address, "Redis: connected{sealed} again");
        }
    }
}
