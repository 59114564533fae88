//! The threads that drive the links: one for each node of the other role.
//!
//! Owns the hand-over from the shards (a lock held for a push), the waiting, and what is told back: answers and sightings. Never
//! holds a lock while it talks to a node.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::http::{Peer, Said};
use super::inquiry::{Inquiry, Sighting};
use super::publisher::Publisher;
use crate::engine::{Decided, Mail, adopt_answers, doubt_known};
use crate::metrics::{Board, Counter, Gauge};
use crate::presence::Presence;
use crate::time::{Clock, Mono, Unix, boottime};
use crate::wire::nodes::Nodes;
use crate::wire::record::{Told, parse_told_list};

/// Tells all shards.
pub type Tell = Arc<dyn Fn(&Mail) + Send + Sync>;

/// What the links of a node share.
struct Shared {
    board: Arc<Board>,
    clock: Arc<Clock>,
    presence: Arc<Presence>,
    stopping: AtomicBool,
    /// Sums over the links, for the gauges.
    queued: AtomicU64,
    down: AtomicU64,
    behind: AtomicU64,
}

/// A link's core, and what wakes its thread.
struct Station<L> {
    link: Mutex<L>,
    changed: Condvar,
}

/// The running links of a node.
pub struct Links<L> {
    stations: Arc<[Station<L>]>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl<L> Clone for Handle<L> {
    fn clone(&self) -> Self {
        Handle {
            stations: Arc::clone(&self.stations),
        }
    }
}

/// What a shard needs to hand something over.
pub struct Handle<L> {
    stations: Arc<[Station<L>]>,
}

impl Handle<Publisher> {
    /// Every real-time node is to be told of these.
    pub fn publish(&self, decided: &Decided) {
        for station in &*self.stations {
            station.link.lock().mark(&decided.transitions);
            station.changed.notify_one();
        }
    }
}

impl Handle<Inquiry> {
    /// A presence node is to be asked about these.
    pub fn ask(&self, node: usize, users: Vec<Box<str>>) {
        let station = &self.stations[node];
        station.link.lock().ask(users, boottime());
        station.changed.notify_one();
    }
}

/// What a link says of itself before and after a request.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Standing {
    queued: u64,
    down: bool,
    /// There may be changes that it knows and this node does not.
    behind: bool,
}

impl Shared {
    fn note(&self, before: &mut Standing, after: Standing) {
        let moved = |sum: &AtomicU64, before: u64, after: u64| {
            sum.fetch_add(after.wrapping_sub(before), Ordering::AcqRel)
                .wrapping_add(after.wrapping_sub(before))
        };
        let queued = moved(&self.queued, before.queued, after.queued);
        let down = moved(&self.down, u64::from(before.down), u64::from(after.down));
        let behind = moved(&self.behind, u64::from(before.behind), u64::from(after.behind));
        *before = after;
        self.board.process.set(Gauge::RelayQueue, queued);
        self.board.process.set(Gauge::NodesDown, down);
        self.presence.set_behind(behind > 0);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn count(&self, done: bool, states: usize) {
        let process = &self.board.process;
        if done {
            process.add(Counter::RelayRequestsDone, 1);
            process.add(Counter::RelayStates, states as u64);
        } else {
            process.add(Counter::RelayRequestsFailed, 1);
        }
    }
}

impl<L> Station<L> {
    /// Sleeps until something is handed over, or until `until`.
    fn wait(&self, link: &mut parking_lot::MutexGuard<'_, L>, until: Mono) {
        let micros = until.micros_since(boottime()).min(60_000_000);
        if micros > 0 {
            self.changed.wait_for(link, Duration::from_micros(micros));
        }
    }
}

impl<L: Send + 'static> Links<L> {
    fn start(
        peers: Vec<(Peer, L)>,
        name: &str,
        shared: Shared,
        run: impl Fn(usize, &Peer, &Station<L>, &Shared) + Send + Clone + 'static,
    ) -> io::Result<Links<L>> {
        let shared = Arc::new(shared);
        let (peers, links): (Vec<Peer>, Vec<L>) = peers.into_iter().unzip();
        let station = |link| Station {
            link: Mutex::new(link),
            changed: Condvar::new(),
        };
        let stations: Arc<[Station<L>]> = links.into_iter().map(station).collect();
        let thread = |(node, peer): (usize, Peer)| {
            let (stations, shared, run) = (Arc::clone(&stations), Arc::clone(&shared), run.clone());
            std::thread::Builder::new()
                .name(format!("{name}-{node}"))
                .spawn(move || run(node, &peer, &stations[node], &shared))
        };
        let threads = peers.into_iter().enumerate().map(thread).collect::<io::Result<_>>()?;
        Ok(Links {
            stations,
            shared,
            threads,
        })
    }

    /// For the shards.
    pub fn handle(&self) -> Handle<L> {
        Handle {
            stations: Arc::clone(&self.stations),
        }
    }

    /// Ends the threads: what is queued is sent first, unless its node does not answer.
    pub fn stop(self) {
        self.shared.stopping.store(true, Ordering::Release);
        for station in &*self.stations {
            // Under the lock, so that no thread is between looking and sleeping.
            let _link = station.link.lock();
            station.changed.notify_one();
        }
        for thread in self.threads {
            thread.join().expect("a link's thread does not panic");
        }
    }
}

/// What every link needs.
pub struct LinkParts {
    /// Of jitter.
    pub seed: u64,
    /// What is counted.
    pub board: Arc<Board>,
    /// The process's.
    pub clock: Arc<Clock>,
    /// What is published from, or answered into.
    pub presence: Arc<Presence>,
}

impl LinkParts {
    fn shared(self) -> Shared {
        Shared {
            board: self.board,
            clock: self.clock,
            presence: self.presence,
            stopping: AtomicBool::new(false),
            queued: AtomicU64::new(0),
            down: AtomicU64::new(0),
            behind: AtomicU64::new(0),
        }
    }
}

impl Links<Publisher> {
    /// Publishes to these real-time nodes.
    pub fn publish_to(peers: Vec<Peer>, parts: LinkParts) -> io::Result<Links<Publisher>> {
        let seed = parts.seed;
        let publisher = |(node, peer)| (peer, Publisher::new(seed ^ node as u64));
        let peers = peers.into_iter().enumerate().map(publisher).collect();
        Links::start(peers, "publish", parts.shared(), |_, peer, station, shared| {
            publish(peer, station, shared);
        })
    }
}

impl Links<Inquiry> {
    /// Asks these presence nodes, whose shares `nodes` knows; `tell` brings to all shards what came of it.
    pub fn ask_at(peers: Vec<Peer>, nodes: Arc<Nodes>, parts: LinkParts, tell: Tell) -> io::Result<Links<Inquiry>> {
        let seed = parts.seed;
        // Until each has been seen there is no telling what is missed.
        parts.presence.set_behind(true);
        parts.board.process.set(Gauge::NodesDown, peers.len() as u64);
        let inquiry = |(node, peer)| (peer, Inquiry::new(seed ^ node as u64));
        let peers: Vec<_> = peers.into_iter().enumerate().map(inquiry).collect();
        let shared = parts.shared();
        for sum in [&shared.down, &shared.behind] {
            sum.store(peers.len() as u64, Ordering::Release);
        }
        Links::start(peers, "ask", shared, move |node, peer, station, shared| {
            inquire(node, peer, &nodes, station, shared, &*tell);
        })
    }
}

fn publish(peer: &Peer, station: &Station<Publisher>, shared: &Shared) {
    let mut standing = Standing::default();
    let mut link = station.link.lock();
    loop {
        let after = Standing {
            queued: link.len() as u64,
            down: link.is_failing(),
            behind: false,
        };
        shared.note(&mut standing, after);
        if shared.is_stopping() && (link.is_failing() || link.next() > boottime()) {
            return;
        }
        let Some(put) = link.poll_request(&shared.presence, shared.clock.now()) else {
            let next = link.next();
            station.wait(&mut link, next);
            continue;
        };
        drop(link);
        let said = peer.put(&put.path, &put.body);
        link = station.link.lock();
        let done = matches!(&said, Ok(said) if matches!(said.status, 200 | 204));
        shared.count(done, put.states);
        if done {
            if link.is_failing() {
                tracing::info!(node = peer.base(), "the real-time node answers again");
            }
            link.handle_done(boottime());
            if let Ok(Said { status: 200, body, .. }) = said {
                let refused = refused_of(&body);
                shared.board.process.add(Counter::RelayStatesRefused, refused);
                tracing::warn!(
                    node = peer.base(),
                    refused,
                    "the real-time node has no room for some users; raise its --users-max"
                );
            }
            continue;
        }
        let too_long = matches!(&said, Ok(said) if said.status == 413);
        if !link.is_failing() {
            tracing::warn!(
                node = peer.base(),
                "the real-time node does not take what is published ({}); trying again",
                reason(&said)
            );
        }
        link.handle_failure(too_long, boottime());
    }
}

fn inquire(
    node: usize,
    peer: &Peer,
    nodes: &Nodes,
    station: &Station<Inquiry>,
    shared: &Shared,
    tell: &(dyn Fn(&Mail) + Send + Sync),
) {
    let mut standing = Standing {
        queued: 0,
        down: true,
        behind: true,
    };
    let mut link = station.link.lock();
    loop {
        let after = Standing {
            queued: link.len() as u64,
            down: !link.is_in_sight(),
            behind: !link.is_caught_up(),
        };
        shared.note(&mut standing, after);
        if shared.is_stopping() {
            return;
        }
        let Some(users) = link.poll_request(boottime()) else {
            let next = link.next();
            station.wait(&mut link, next);
            continue;
        };
        let asked = users.len();
        let body = serde_json::json!({ "users": users }).to_string();
        drop(link);
        let said = peer.post("/v1/presence/query", body.as_bytes());
        let answers = said.as_ref().ok().and_then(|said| answers_of(said, asked));
        let now = shared.clock.now();
        if let Some((_, as_of, told)) = answers.as_ref().filter(|(.., told)| !told.is_empty()) {
            let (answered, refused) = adopt_answers(&shared.presence, told, *as_of, now);
            shared.board.process.add(Counter::RelayStatesRefused, refused);
            tell(&Mail::Answered(Arc::new(answered)));
        }
        link = station.link.lock();
        shared.count(answers.is_some(), asked);
        let sighting = match answers {
            Some((instance, ..)) => link.handle_answer(instance, now.mono),
            None if matches!(&said, Ok(said) if said.status == 413) => {
                link.handle_too_many(now.mono);
                Sighting::Same
            }
            None => link.handle_failure(now.mono),
        };
        match sighting {
            Sighting::Same => {}
            Sighting::Found | Sighting::Back => {
                shared.board.process.add(Counter::RelayReasks, 1);
                tracing::info!(
                    node = peer.base(),
                    "the presence node is in sight; asking it about everybody who is watched"
                );
                let settle = sighting == Sighting::Back;
                // It takes its time, and shards hand over meanwhile.
                drop(link);
                doubt_known(&shared.presence, nodes, node);
                let found_at = now.mono;
                tell(&Mail::Reask { node, settle, found_at });
                link = station.link.lock();
            }
            Sighting::Lost => tracing::warn!(
                node = peer.base(),
                "the presence node does not answer ({}); what is known of its publishers stands",
                reason(&said)
            ),
        }
    }
}

/// The answers to a question about so many, which life of the node gave them, and as of when.
fn answers_of(said: &Said, asked: usize) -> Option<(u64, Unix, Vec<Told>)> {
    let (instance, as_of) = said.node.filter(|_| said.status == 200)?;
    let told = parse_told_list(&said.body, asked)
        .ok()
        .filter(|told| told.len() == asked)?;
    Some((instance, as_of, told))
}

fn refused_of(body: &[u8]) -> u64 {
    let body: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    body.and_then(|body| body["refused"].as_u64()).unwrap_or(0)
}

fn reason(said: &Result<Said, ureq::Error>) -> String {
    match said {
        Err(error) => error.to_string(),
        Ok(Said { status: 401, .. }) => "401: it has another fleet key; give both the same --key-file".into(),
        Ok(Said { status: 405 | 421, .. }) => "it has another role".into(),
        Ok(Said { status: 200, .. }) => "its answer is not that of a presence node".into(),
        Ok(said) => format!("status {}", said.status),
    }
}
