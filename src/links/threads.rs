//! The threads that drive the links: one for each node of the other role.
//!
//! Owns the hand-over from the shards (a lock held for a push), the waiting, and the sending; the
//! links decide ([`Publishing`], [`Asking`]), and what they want done is carried out here. Never
//! holds a lock while it talks to a node.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::asking::Asking;
use super::effect::Effect;
use super::http::Remote;
use super::publishing::Publishing;
use super::station::Station;
use super::{Standing, Trouble};
use crate::auth::Revoked;
use crate::engine::{Mail, Outbound};
use crate::metrics::{Board, Gauge};
use crate::presence::Presence;
use crate::time::{Clock, boottime};
use crate::wire::nodes::Nodes;

/// Tells all shards.
pub type Tell = Arc<dyn Fn(&Mail) + Send + Sync>;

/// Starts a thread without which the process is of no use.
pub type Spawn<'s> = &'s dyn Fn(String, Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>>;

/// What the links of a node share.
struct Shared {
    board: Arc<Board>,
    clock: Arc<Clock>,
    presence: Arc<Presence>,
    stopping: AtomicBool,
    /// How each link stands, and where it goes.
    standings: Mutex<Vec<Standing>>,
    bases: Vec<String>,
}

/// The running links of a node; `I` is what shards hand over. What is left for a link while it
/// talks to its node, for 2 s at most, is a pointer a turn and shard; the transitions behind it are
/// shared by all links, and dropped when the slowest has taken over whom they are about.
pub struct Links<I> {
    stations: Arc<[Station<Vec<I>>]>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What a shard needs to hand something over.
pub struct Handle<I> {
    stations: Arc<[Station<Vec<I>>]>,
}

impl<I> Clone for Handle<I> {
    fn clone(&self) -> Self {
        Handle {
            stations: Arc::clone(&self.stations),
        }
    }
}

impl Handle<Outbound> {
    /// For the link to the node that this names, or for all links.
    pub fn hand(&self, outbound: Outbound) {
        match outbound.node() {
            Some(node) => self.stations[node].leave(|inbox| inbox.push(outbound)),
            None => {
                for station in self.stations.iter() {
                    station.leave(|inbox| inbox.push(outbound.clone()));
                }
            }
        }
    }
}

impl Shared {
    fn note(&self, node: usize, standing: Standing) {
        let mut standings = self.standings.lock();
        let before = std::mem::replace(&mut standings[node], standing);
        let queued: usize = standings.iter().map(|each| each.queued).sum();
        let down = standings.iter().filter(|each| each.down).count();
        let gone = standings.iter().filter(|each| each.beats_gone).count();
        self.board.process.set(Gauge::RelayQueue, queued as u64);
        self.board.process.set(Gauge::NodesDown, down as u64);
        self.board.process.set(Gauge::BeatsGone, gone as u64);
        if before.trouble() != standing.trouble() {
            self.tell_troubles(&standings);
        }
    }

    /// For whoever asks the node how it is.
    fn tell_troubles(&self, standings: &[Standing]) {
        let links = self.bases.iter().zip(standings);
        let trouble = |(base, standing): (&String, &Standing)| match standing.trouble()? {
            Trouble::Down => Some(format!("{base} does not answer")),
            Trouble::BeatsGone => Some(format!("beats do not arrive at {base} as datagrams")),
        };
        self.board.set_troubles(links.filter_map(trouble).collect());
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

impl<I: Send + 'static> Links<I> {
    fn start(
        remotes: Vec<Remote>,
        name: &str,
        unseen: Standing,
        parts: LinkParts<'_>,
        run: impl Fn(usize, &Remote, &Station<Vec<I>>, &Shared) + Send + Clone + 'static,
    ) -> io::Result<Links<I>> {
        let stations: Arc<[Station<Vec<I>>]> = remotes.iter().map(|_| Station::default()).collect();
        let shared = Arc::new(Shared {
            board: parts.board,
            clock: parts.clock,
            presence: parts.presence,
            stopping: AtomicBool::new(false),
            // In a follower nothing is known before its sources have answered.
            standings: Mutex::new(vec![unseen; remotes.len()]),
            bases: remotes.iter().map(|remote| remote.base().into()).collect(),
        });
        shared.tell_troubles(&shared.standings.lock());
        let thread = |(node, remote): (usize, Remote)| {
            let (stations, shared, run) = (Arc::clone(&stations), Arc::clone(&shared), run.clone());
            let work = move || run(node, &remote, &stations[node], &shared);
            (parts.spawn)(format!("{name}-{node}"), Box::new(work))
        };
        let threads = remotes
            .into_iter()
            .enumerate()
            .map(thread)
            .collect::<io::Result<_>>()?;
        Ok(Links {
            stations,
            shared,
            threads,
        })
    }

    /// For the shards.
    pub fn handle(&self) -> Handle<I> {
        Handle {
            stations: Arc::clone(&self.stations),
        }
    }

    /// Ends the threads: what is queued is sent first, unless its node does not answer.
    pub fn stop(self) {
        self.shared.stopping.store(true, Ordering::Release);
        for station in &*self.stations {
            station.wake();
        }
        for thread in self.threads {
            thread
                .join()
                .expect("a link's thread returns or ends the process");
        }
    }
}

/// What every link needs.
pub struct LinkParts<'s> {
    pub seed: u64,
    /// What is counted.
    pub board: Arc<Board>,
    pub clock: Arc<Clock>,
    /// What is published from, or answered into.
    pub presence: Arc<Presence>,
    /// What the nodes are told of tokens.
    pub revoked: Arc<Revoked>,
    /// Starts the threads.
    pub spawn: Spawn<'s>,
}

impl Links<Outbound> {
    /// Publishes to these real-time nodes; `birth` tells this life of this node from others; `tell`
    /// brings to all shards what the nodes have answered.
    ///
    /// Errors: a thread could not be started.
    pub fn publish_to(
        remotes: Vec<Remote>,
        birth: u64,
        parts: LinkParts<'_>,
        tell: Tell,
    ) -> io::Result<Links<Outbound>> {
        let (seed, revoked) = (parts.seed, Arc::clone(&parts.revoked));
        parts.presence.expect_links(remotes.len() as u16);
        let run =
            move |node, remote: &Remote, station: &Station<Vec<Outbound>>, shared: &Shared| {
                let holder = shared.presence.link(node);
                let link = Publishing::new(seed ^ node as u64, birth, holder, &revoked);
                publish(node, link, remote, station, shared, &tell);
            };
        Links::start(remotes, "publish", Standing::default(), parts, run)
    }

    /// Asks these presence nodes, whose users `nodes` tells; `tell` brings to all shards what came
    /// of it.
    ///
    /// Errors: a thread could not be started.
    pub fn ask_at(
        remotes: Vec<Remote>,
        nodes: Arc<Nodes>,
        parts: LinkParts<'_>,
        tell: Tell,
    ) -> io::Result<Links<Outbound>> {
        let (seed, revoked) = (parts.seed, Arc::clone(&parts.revoked));
        let unseen = Standing {
            down: true,
            ..Standing::default()
        };
        let run =
            move |node, remote: &Remote, station: &Station<Vec<Outbound>>, shared: &Shared| {
                let shards = shared.presence.shards();
                let link = Asking::new(seed ^ node as u64, node, shards, &revoked);
                ask(node, link, remote, station, shared, &nodes, &tell);
            };
        Links::start(remotes, "ask", unseen, parts, run)
    }
}

fn publish(
    node: usize,
    mut link: Publishing,
    remote: &Remote,
    station: &Station<Vec<Outbound>>,
    shared: &Shared,
    tell: &Tell,
) {
    loop {
        station.wait(link.next(), |inbox| {
            inbox.is_empty() && !shared.is_stopping()
        });
        // Before what has been left is taken: of that everything is told then.
        let up_to = shared.presence.published_up_to();
        for outbound in station.take() {
            let lost = link.take(outbound, &shared.presence, boottime());
            carry_out(
                lost.into_iter().collect(),
                &shared.board,
                remote.base(),
                &**tell,
            );
        }
        shared.note(node, link.standing());
        if shared.is_stopping() && link.may_stop(boottime()) {
            return;
        }
        let Some(request) = link.poll_request(&shared.presence, up_to, shared.clock.now()) else {
            continue;
        };
        let reply = remote.send(&request);
        carry_out(
            link.handle_reply(&reply, boottime()),
            &shared.board,
            remote.base(),
            &**tell,
        );
    }
}

fn ask(
    node: usize,
    mut link: Asking,
    remote: &Remote,
    station: &Station<Vec<Outbound>>,
    shared: &Shared,
    nodes: &Nodes,
    tell: &Tell,
) {
    loop {
        station.wait(link.next(), |inbox| {
            inbox.is_empty() && !shared.is_stopping()
        });
        for outbound in station.take() {
            let lost = link.take(outbound, boottime());
            carry_out(
                lost.into_iter().collect(),
                &shared.board,
                remote.base(),
                &**tell,
            );
        }
        if shared.is_stopping() {
            return;
        }
        if let Some(request) = link.poll_request(boottime()) {
            let reply = remote.send(&request);
            let effects = link.handle_reply(&reply, &shared.presence, nodes, shared.clock.now());
            carry_out(effects, &shared.board, remote.base(), &**tell);
        }
        let effects = link.look(&shared.presence, boottime());
        carry_out(effects, &shared.board, remote.base(), &**tell);
        shared.note(node, link.standing());
    }
}

/// Carries out what a link wants done; `to` is where it goes.
pub(super) fn carry_out(effects: Vec<Effect>, board: &Board, to: &str, tell: &dyn Fn(&Mail)) {
    for effect in effects {
        match effect {
            Effect::Count(counter, by) => board.process.add(counter, by),
            Effect::Tell(mail) => tell(&mail),
            Effect::Say(notice) if notice.is_warning() => tracing::warn!(node = to, "{notice}"),
            Effect::Say(notice) => tracing::info!(node = to, "{notice}"),
        }
    }
}
