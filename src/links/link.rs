//! The threads that drive the links: one for each node of the other role.
//!
//! Owns the hand-over from the shards (a lock held for a push), the waiting, and what is told back:
//! answers and sightings. Never holds a lock while it talks to a node.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::announcer::Announcer;
use super::http::{Answerer, Remote, Said};
use super::inquiry::{Inquiry, Sighting};
use crate::engine::{Decided, Mail, Why, adopt_answers, doubt_known};
use crate::metrics::{Board, Counter, Gauge};
use crate::presence::Presence;
use crate::time::{Clock, Mono, boottime};
use crate::wire::nodes::Nodes;
use crate::wire::record::{Told, parse_told_list};

/// A presence node that has not said for so long, in ms, that everything is told, as it does each
/// second, does not reach this node or holds something back.
pub const UNHEARD_MS: u64 = 4_000;

/// The status of what is too long.
const TOO_LONG: u16 = 413;
/// The statuses that say that a request is refused for what is in it, and would be again. Others
/// are about the node.
const REFUSALS: [u16; 5] = [400, TOO_LONG, 414, 422, 431];

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
    /// How each link stands.
    standings: Mutex<Vec<Standing>>,
}

/// Where shards leave what is for a link. Held for a push or a swap, never while the link talks to
/// its node. What is left while it does, for 2 s at most, is a pointer a turn and shard; the
/// transitions behind it are shared by all links, and dropped when the slowest has taken over whom
/// they are about.
struct Station<I> {
    inbox: Mutex<Vec<I>>,
    changed: Condvar,
}

/// The running links of a node; `I` is what shards hand over.
pub struct Links<I> {
    stations: Arc<[Station<I>]>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Transitions, for every real-time node.
pub type Publish = Arc<Decided>;

/// A question to one presence node.
pub struct Ask {
    users: Vec<Box<str>>,
    anew: bool,
}

/// What a shard needs to hand something over.
pub struct Handle<I> {
    stations: Arc<[Station<I>]>,
}

impl<I> Clone for Handle<I> {
    fn clone(&self) -> Self {
        Handle {
            stations: Arc::clone(&self.stations),
        }
    }
}

impl Handle<Publish> {
    /// Every real-time node is to be told of these.
    pub fn publish(&self, decided: &Publish) {
        for station in &*self.stations {
            station.leave(Arc::clone(decided));
        }
    }
}

impl Handle<Ask> {
    /// A presence node is to be asked about these; `anew`: because it was out of sight.
    pub fn ask(&self, node: usize, users: Vec<Box<str>>, anew: bool) {
        self.stations[node].leave(Ask { users, anew });
    }
}

/// What a link says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Standing {
    queued: usize,
    down: bool,
    /// There may be changes that its node knows and this one does not.
    behind: bool,
}

impl Shared {
    fn note(&self, node: usize, standing: Standing) {
        let mut standings = self.standings.lock();
        standings[node] = standing;
        let queued: usize = standings.iter().map(|each| each.queued).sum();
        let down = standings.iter().filter(|each| each.down).count();
        self.board.process.set(Gauge::RelayQueue, queued as u64);
        self.board.process.set(Gauge::NodesDown, down as u64);
        self.presence
            .set_behind(standings.iter().any(|each| each.behind));
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

impl<I> Station<I> {
    fn leave(&self, item: I) {
        self.inbox.lock().push(item);
        self.changed.notify_one();
    }

    /// What has been left; sleeps until there is something, until `until`, or until the links are
    /// stopped.
    fn take(&self, until: Mono, shared: &Shared) -> Vec<I> {
        let mut inbox = self.inbox.lock();
        let micros = until.micros_since(boottime()).min(60_000_000);
        if inbox.is_empty() && micros > 0 && !shared.is_stopping() {
            self.changed
                .wait_for(&mut inbox, Duration::from_micros(micros));
        }
        std::mem::take(&mut *inbox)
    }
}

impl<I: Send + 'static> Links<I> {
    fn start(
        remotes: Vec<Remote>,
        name: &str,
        parts: LinkParts<'_>,
        run: impl Fn(usize, &Remote, &Station<I>, &Shared) + Send + Clone + 'static,
    ) -> io::Result<Links<I>> {
        let station = |_: &Remote| Station {
            inbox: Mutex::default(),
            changed: Condvar::new(),
        };
        let stations: Arc<[Station<I>]> = remotes.iter().map(station).collect();
        let shared = Arc::new(Shared {
            board: parts.board,
            clock: parts.clock,
            presence: parts.presence,
            stopping: AtomicBool::new(false),
            // In a mirror nothing is known before its nodes have been seen.
            standings: Mutex::new(vec![parts.unseen; remotes.len()]),
        });
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
            // Under the lock, so that no thread is between looking and sleeping.
            let _inbox = station.inbox.lock();
            station.changed.notify_one();
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
    /// Of jitter.
    pub seed: u64,
    /// What is counted.
    pub board: Arc<Board>,
    /// The process's.
    pub clock: Arc<Clock>,
    /// What is published from, or answered into.
    pub presence: Arc<Presence>,
    /// Starts the threads.
    pub spawn: Spawn<'s>,
    unseen: Standing,
}

impl<'s> LinkParts<'s> {
    /// Of these.
    pub fn new(
        seed: u64,
        board: &Arc<Board>,
        clock: &Arc<Clock>,
        presence: &Arc<Presence>,
        spawn: Spawn<'s>,
    ) -> LinkParts<'s> {
        LinkParts {
            seed,
            board: Arc::clone(board),
            clock: Arc::clone(clock),
            presence: Arc::clone(presence),
            spawn,
            unseen: Standing::default(),
        }
    }
}

impl Links<Publish> {
    /// Publishes to these real-time nodes.
    pub fn publish_to(remotes: Vec<Remote>, parts: LinkParts<'_>) -> io::Result<Links<Publish>> {
        let seed = parts.seed;
        Links::start(
            remotes,
            "publish",
            parts,
            move |node, remote, station, shared| {
                publish(
                    node,
                    Announcer::new(seed ^ node as u64),
                    remote,
                    station,
                    shared,
                );
            },
        )
    }
}

impl Links<Ask> {
    /// Asks these presence nodes, whose users `nodes` tells; `tell` brings to all shards what came
    /// of it.
    pub fn ask_at(
        remotes: Vec<Remote>,
        nodes: Arc<Nodes>,
        parts: LinkParts<'_>,
        tell: Tell,
    ) -> io::Result<Links<Ask>> {
        let seed = parts.seed;
        let unseen = Standing {
            queued: 0,
            down: true,
            behind: true,
        };
        let parts = LinkParts { unseen, ..parts };
        Links::start(
            remotes,
            "ask",
            parts,
            move |node, remote, station, shared| {
                let inquiry = Inquiry::new(seed ^ node as u64);
                inquire(node, inquiry, remote, station, shared, &nodes, &*tell);
            },
        )
    }
}

fn publish(
    node: usize,
    mut link: Announcer,
    remote: &Remote,
    station: &Station<Publish>,
    shared: &Shared,
) {
    // Why it was last warned.
    let mut warned = None;
    // Why a request was last refused for what is in it, and whether that was said.
    let (mut refusal, mut refused_one) = (None, false);
    loop {
        for decided in station.take(link.next(), shared) {
            link.mark(&decided.transitions);
        }
        let standing = Standing {
            queued: link.len(),
            down: link.is_failing(),
            behind: false,
        };
        shared.note(node, standing);
        if shared.is_stopping()
            && (link.is_empty() || link.is_failing() || link.next() > boottime())
        {
            return;
        }
        let Some(put) = link.poll_request(&shared.presence, shared.clock.now()) else {
            continue;
        };
        let said = remote.put(&put.path, &put.body, put.complete);
        let done = matches!(&said, Ok(said) if matches!(said.status, 200 | 204));
        shared.count(done, put.states);
        if done {
            if warned.take().is_some() {
                tracing::info!(node = remote.base(), "the real-time node answers again");
            }
            if link.handle_done(boottime()).is_some() {
                shared.board.process.add(Counter::RelayStatesUntold, 1);
                if !std::mem::replace(&mut refused_one, true) {
                    tracing::warn!(
                        node = remote.base(),
                        "the real-time node refuses some states each by itself ({}); they are \
                         passed over. Give all nodes the same \
                         version and no smaller --body-bytes-max and --head-bytes-max than the \
                         default",
                        refusal.as_deref().unwrap_or("it does not say why")
                    );
                }
            }
            if let Ok(Said {
                status: 200, body, ..
            }) = said
            {
                let refused = refused_of(&body);
                shared
                    .board
                    .process
                    .add(Counter::RelayStatesRefused, refused);
                tracing::warn!(
                    node = remote.base(),
                    refused,
                    "the real-time node has no room for some users; raise its --users-max"
                );
            }
            continue;
        }
        if let Ok(Said { status, .. }) = &said
            && REFUSALS.contains(status)
        {
            refusal = Some(reason(&said));
            link.handle_refusal(*status == TOO_LONG, boottime());
            continue;
        }
        // One that has just started will have seen this node in a moment.
        let unseen = matches!(&said, Ok(said) if said.status == 503) && !link.was_away(boottime());
        // Once for each reason in a row: one that was not listening yet may have another key.
        let why = reason(&said);
        if !unseen && warned.as_ref() != Some(&why) {
            tracing::warn!(
                node = remote.base(),
                "the real-time node does not take what is published ({why}); trying again"
            );
            warned = Some(why);
        }
        link.handle_failure(boottime());
    }
}

fn inquire(
    node: usize,
    mut link: Inquiry,
    remote: &Remote,
    station: &Station<Ask>,
    shared: &Shared,
    nodes: &Nodes,
    tell: &(dyn Fn(&Mail) + Send + Sync),
) {
    let mut deaf = false;
    let mut warned = None;
    loop {
        for ask in station.take(link.next(), shared) {
            link.ask(ask.users, ask.anew, boottime());
        }
        if shared.is_stopping() {
            return;
        }
        if let Some(users) = link.poll_request(boottime()) {
            let asked = users.len();
            let body = serde_json::json!({ "users": users }).to_string();
            let said = remote.post("/v1/presence/query", body.as_bytes());
            let answers = said.as_ref().ok().and_then(|said| answers_of(said, asked));
            let now = shared.clock.now();
            let mut outdated = Vec::new();
            if let Some((answerer, told)) = &answers {
                shared.presence.note_life(node, answerer.instance);
                shared.presence.note_clock(node, answerer.clock, now.mono);
                if !told.is_empty() {
                    let (mut answered, refused) =
                        adopt_answers(&shared.presence, told, answerer.as_of, now);
                    outdated = std::mem::take(&mut answered.outdated);
                    shared
                        .board
                        .process
                        .add(Counter::RelayStatesRefused, refused);
                    tell(&Mail::Answered(Arc::new(answered)));
                }
            }
            shared.count(answers.is_some(), asked);
            let sighting = match answers {
                Some((answerer, _)) => link.handle_answer(answerer.instance, now.mono),
                None if matches!(&said, Ok(said) if said.status == TOO_LONG) => {
                    link.handle_too_many(now.mono);
                    Sighting::Same
                }
                None => link.handle_failure(now.mono),
            };
            link.ask_again(outdated, now.mono);
            let why = match sighting {
                Sighting::Same | Sighting::Lost => None,
                Sighting::Found => Some(Why::Found),
                Sighting::Back => Some(Why::Back),
                Sighting::Rest => Some(Why::Rest),
            };
            // Once for each reason in a row, and for a node that was never in sight too.
            if link.is_in_sight() {
                warned = None;
            } else {
                let why = reason(&said);
                if warned.as_ref() != Some(&why) {
                    tracing::warn!(
                        node = remote.base(),
                        "the presence node does not answer ({why}); what is known of its \
                         publishers stands"
                    );
                    warned = Some(why);
                }
            }
            if let Some(why) = why {
                if why != Why::Rest {
                    shared.board.process.add(Counter::RelayReasks, 1);
                    tracing::info!(
                        node = remote.base(),
                        "the presence node is in sight; asking it about everybody who is watched"
                    );
                    doubt_known(&shared.presence, nodes, node);
                }
                let found_at = now.mono;
                tell(&Mail::Reask {
                    node,
                    why,
                    found_at,
                });
            }
        }
        // A node that answers and does not publish here: what changes there is not heard of.
        let silent_ms = shared.presence.told_age_ms(node, boottime());
        let unheard = link.is_in_sight() && silent_ms.is_none_or(|ms| ms > UNHEARD_MS);
        if link.is_caught_up() && unheard && !std::mem::replace(&mut deaf, unheard) {
            tracing::warn!(
                node = remote.base(),
                "the presence node answers and does not tell this node everything; is this one \
                 in its --realtime, and reachable from it?"
            );
        }
        deaf &= unheard;
        let standing = Standing {
            queued: link.len(),
            down: !link.is_in_sight(),
            behind: !link.is_caught_up() || unheard,
        };
        shared.note(node, standing);
    }
}

/// The answers to a question about so many, and who gave them.
fn answers_of(said: &Said, asked: usize) -> Option<(Answerer, Vec<Told>)> {
    let answerer = said.node.filter(|_| said.status == 200)?;
    let told = parse_told_list(&said.body, asked)
        .ok()
        .filter(|told| told.len() == asked)?;
    Some((answerer, told))
}

fn refused_of(body: &[u8]) -> u64 {
    let body: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    body.and_then(|body| body["refused"].as_u64()).unwrap_or(0)
}

fn reason(said: &Result<Said, ureq::Error>) -> String {
    match said {
        Err(error) => error.to_string(),
        Ok(Said { status: 401, .. }) => {
            "401: it has another fleet key; give both the same --key-file".into()
        }
        Ok(Said { status: 503, .. }) => {
            "503: it has not seen this node, which may be missing in its --presence".into()
        }
        Ok(Said {
            status: 405 | 421, ..
        }) => "it has another role".into(),
        Ok(Said { status: 200, .. }) => "its answer is not that of a presence node".into(),
        Ok(said) => format!("status {}", said.status),
    }
}
