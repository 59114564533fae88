//! What must hold: at each datagram, at each state published, at each event read, and whenever
//! nothing is on its way.
//!
//! The truth of a publisher is what its presence node has published, and `model.rs` says what that
//! may be. A real-time node may only repeat it.

use greendot::presence::Presence;
use greendot::slot::Slot;
use greendot::time::Now;
use greendot::wire::User as Id;

use super::act::Client;
use super::erasures::Erased;
use super::links::{Core, Link};
use super::{Seen, Split};
use crate::checks::is_told_active;
use crate::model::{Left, User};
use crate::sse::{Event, Response, Told, record};

/// A publisher with a stream is heard of within two intervals (a table that shrinks puts it later
/// in the next pass), and so many ms: a datagram that is not full, the steps of the vouching, the
/// network.
pub(super) const VOUCH_SLACK_MS: u64 = 1_000;
/// While a node has not been told for longer than this, in ms, what its streams are told is no news
/// up to their ids: a node that answers questions and takes nothing is not known to be cut off.
/// Resuming elsewhere forgives 10 s of it, less the clocks' distance.
const UNTOLD_MS_MAX: u64 = 3_000;

/// A shorter cut may end before it is noticed that beats may be lost.
const CUT_MS_MIN: u64 = 10_000;
/// Both nodes notice that a cut is over within so many ms, or requests were lost: a request that
/// times out and the longest pause.
const NOTICED_MS: u64 = 4_300;
/// So long after a cut somebody may be told for whom nobody has vouched, in ms: `SETTLE_MS` and
/// some.
const SETTLED_MS: u64 = 7_000;
/// A change may come so much later than an id that should count it, in ms: a silent node is noticed
/// in 3 s.
const FORGIVEN_MS: u64 = 7_000;
/// What an id says of the time just before it may be off by this, in ms: what a node takes for
/// another's clock.
const CLOCKS_APART_MS: u64 = 4_000;
/// Of a user without a slot.
const NEVER_SEEN: Told = Told {
    online: false,
    since: None,
    last_active: None,
};

/// One publisher.
pub(super) struct Truth {
    pub(super) model: User,
    /// What has been published, each with the moment since which it has been so (mono).
    history: Vec<(u64, bool, Option<u64>)>,
    /// When (mono) a datagram last vouched for it, and when one last said goodbye.
    pub(super) heard_at: u64,
    pub(super) left_at: u64,
    /// When (mono) a client last held a stream of theirs, and when somebody last logged them out.
    pub(super) held_at: u64,
    pub(super) logged_out_at: u64,
    /// When (mono) a node last read that.
    pub(super) log_out_read_at: u64,
    /// When (mono) one was last refused on its way between nodes.
    pub(super) log_out_lost_at: u64,
    /// Its slot at its presence node, as far as it has been looked up; in runs that erase.
    pub(super) slot: Option<Slot>,
    pub(super) erased: Option<Erased>,
    /// Until then (mono) it may be erased.
    pub(super) erased_until: u64,
}

/// The way of datagrams from a real-time node to a presence node.
#[derive(Clone, Default)]
pub(super) struct Path {
    /// When (mono) it last lost or held up something; may lie ahead.
    pub(super) rough_at: u64,
    /// When (mono) a request on the way back last went wrong, or waited.
    pub(super) asks_rough_at: u64,
    /// The same of a request this way.
    pub(super) tells_rough_at: u64,
    /// From when to when (mono) it was so for another reason than a cut.
    faults: Vec<(u64, u64)>,
    cut: Cut,
}

/// The last time that a real-time and a presence node did not reach each other.
#[derive(Clone, Copy, Default)]
struct Cut {
    /// From when to when (mono); may last.
    from: u64,
    to: u64,
    /// The lives of both nodes then.
    lives: [u64; 2],
    /// When (mono) each of them first reached the other again.
    noticed_at: [Option<u64>; 2],
}

impl Path {
    /// When (mono) something last stood in the way of what is told, either way; may lie ahead.
    pub(super) fn hindered_at(&self) -> u64 {
        self.rough_at
            .max(self.asks_rough_at)
            .max(self.tells_rough_at)
    }
}

impl Truth {
    pub(super) fn new(known: bool) -> Truth {
        Truth {
            model: User::new(known),
            history: vec![(0, false, None)],
            heard_at: 0,
            left_at: 0,
            held_at: 0,
            logged_out_at: 0,
            log_out_read_at: 0,
            log_out_lost_at: 0,
            slot: None,
            erased: None,
            erased_until: 0,
        }
    }

    pub(super) fn push(&mut self, mono: u64, online: bool, since: Option<u64>) {
        self.history.push((mono, online, since));
    }

    pub(super) fn last_since(&self) -> Option<u64> {
        self.history.last().and_then(|(.., since)| *since)
    }

    pub(super) fn was(&self, online: bool, since: Option<u64>) -> bool {
        self.history
            .iter()
            .any(|(_, on, at)| (*on, *at) == (online, since))
    }
}

impl Split {
    pub(super) fn user(&self, name: &str) -> usize {
        let user = self.names.iter().position(|other| other == name);
        user.unwrap_or_else(|| self.fail(format!("{name:?} is nobody's name")))
    }

    /// A datagram is lost or late.
    pub(super) fn rough(&mut self, from: Option<usize>, to: usize) {
        if let Some(from) = from {
            let cut = self.is_cut(from, to);
            let path = &mut self.paths[from - self.presences][to];
            path.rough_at = path.rough_at.max(self.mono);
            if !cut {
                path.faults.push((self.mono, self.mono));
            }
        }
    }

    /// A presence and a real-time node do not reach each other until then (mono).
    pub(super) fn cut_off(&mut self, presence: usize, realtime: usize, until: u64) {
        let mono = self.mono;
        let lives = [presence, realtime].map(|node| self.nodes[node].life);
        let path = &mut self.paths[realtime - self.presences][presence];
        path.rough_at = path.rough_at.max(until);
        if path.cut.to > mono && path.cut.lives == lives {
            path.cut.to = until;
        } else {
            path.cut = Cut {
                from: mono,
                to: until,
                lives,
                noticed_at: [None; 2],
            };
        }
    }

    /// A node's request to another was answered as it should be.
    pub(super) fn noticed(&mut self, from: usize, to: usize) {
        let mono = self.mono;
        let (presence, realtime) = (from.min(to), from.max(to));
        let cut = &mut self.paths[realtime - self.presences][presence].cut;
        if mono > cut.to {
            cut.noticed_at[usize::from(from == realtime)].get_or_insert(mono);
        }
    }

    fn owned(&self, presence: usize) -> impl Iterator<Item = usize> + use<> {
        let owners = self.owners.clone();
        (0..owners.len()).filter(move |user| owners[*user] == presence)
    }

    /// A node has started: what a presence node had published it still publishes, and it expires
    /// nobody for a while.
    pub(super) fn node_started(&mut self, node: usize) {
        self.stalled(node, self.mono);
        if !self.is_presence(node) {
            return;
        }
        self.nodes[node].hold_until = self.mono + self.rules.offline_after_ms;
        for user in self.owned(node) {
            self.truths[user].model.restarted();
            let state = self.state(user);
            let (_, online, since) = *self.truths[user].history.last().expect("begins with one");
            if (state.online, state.since) != (online, since) {
                self.fail(format!(
                    "user {user} was {online} {since:?} before a restart and is {state:?}"
                ));
            }
        }
    }

    /// A node does less than it should until then (mono).
    pub(super) fn stalled(&mut self, node: usize, until: u64) {
        for (realtime, paths) in self.paths.iter_mut().enumerate() {
            for (presence, path) in paths.iter_mut().enumerate() {
                if presence == node || realtime + self.presences == node {
                    path.rough_at = path.rough_at.max(until);
                    path.faults.push((self.mono, until));
                }
            }
        }
        self.disturbed(node, until);
    }

    /// Nothing need be in time before this, and a little later if stamps may be ahead of the clock.
    fn disturbed(&mut self, node: usize, mono: u64) {
        let node = &mut self.nodes[node];
        let ahead_ms = if node.clock_went_back_at > 0 {
            1_300
        } else {
            0
        };
        node.calm_since = node.calm_since.max(mono + ahead_ms + 1);
    }

    /// A node's wall clock is stepped.
    pub(super) fn shift_clock(&mut self, node: usize, by_ms: i64) {
        self.say(|| format!("the clock of node {node} is stepped by {by_ms}"));
        let before = self.wall(node);
        self.nodes[node].anchor += by_ms;
        if let Some(up) = &mut self.nodes[node].up {
            up.shards.iter_mut().for_each(|shard| shard.wake = 0);
        }
        if !self.is_presence(node) {
            return;
        }
        let (mono, rules) = (self.mono, self.rules);
        if by_ms > 0 {
            let at = &mut self.nodes[node];
            at.hold_until = at.hold_until.max(mono + rules.offline_after_ms);
        } else {
            let at = &mut self.nodes[node];
            at.wall_max = at.wall_max.max(before);
            at.clock_went_back_at = mono;
        }
        self.disturbed(node, mono + rules.sweep_interval_ms);
        for user in self.owned(node) {
            let model = &mut self.truths[user].model;
            if by_ms > 0 {
                model.active_exactly = None;
                model.online_due = None;
            } else {
                model.clock_went_back(mono, before);
            }
        }
    }

    /// A datagram reaches a presence node: read as docs/PROTOCOL.md has it.
    pub(super) fn heard(&mut self, node: usize, bytes: &[u8]) {
        let Some((head, rest)) = bytes.split_at_checked(16) else {
            self.fail(format!("a datagram of {} bytes", bytes.len()));
        };
        let leave = head[3] & 1 == 1;
        let sent_at = u64::from_be_bytes(*head.last_chunk().expect("16 bytes have 8"));
        let mut entries = &rest[..rest.len().saturating_sub(16)];
        let (wall, mono, rules) = (self.wall(node), self.mono, self.rules);
        let stale = wall.abs_diff(sent_at) > rules.beat_skew_max_ms;
        while let Some((length, more)) = entries.split_first() {
            let (name, more) = more.split_at(usize::from(*length));
            entries = more;
            let user = self.user(std::str::from_utf8(name).expect("names are UTF-8"));
            if self.owners[user] != node {
                self.fail(format!(
                    "node {node} hears of user {user}, whose node is {}",
                    self.owners[user]
                ));
            }
            if stale {
                continue;
            }
            if leave {
                self.hear_goodbye(node, user, sent_at);
            }
            let before = self.is_before_erasure(node, user, sent_at);
            let truth = &mut self.truths[user];
            if !leave {
                truth.heard_at = mono;
            }
            if !leave && !before {
                truth.model.known = true;
                truth.model.beat(sent_at, mono, wall, &rules);
                self.doubt_log_out(user, sent_at, wall);
            }
            let truth = &mut self.truths[user];
            if wall < self.nodes[node].wall_max {
                truth.model.active_exactly = None;
            }
            self.say(|| {
                format!(
                    "node {node} hears of {user}, leave {leave}: {:?}",
                    self.truths[user].model
                )
            });
        }
    }

    /// What the user's presence node publishes. The node must be up.
    pub(super) fn state(&self, user: usize) -> Told {
        let node = self.owners[user];
        let state = self.published(&self.up(node).presence, user, self.now(node));
        state.map_or(NEVER_SEEN, |(_, state)| state)
    }

    /// What a node's database has of a user with a slot.
    fn published(&self, presence: &Presence, user: usize, now: Now) -> Option<(Slot, Told)> {
        let slot =
            presence.lookup(Id::parse(self.names[user].as_bytes()).expect("a legal name"))?;
        let state = presence.state(slot, now);
        let told = Told {
            online: state.status.is_online(),
            since: state.since.map(|at| at.ms()),
            last_active: state.last_active.map(|at| at.ms()),
        };
        Some((slot, told))
    }

    /// Looks at what a presence node publishes and holds each change against the model.
    pub(super) fn observe(&mut self, node: usize) {
        if !self.is_presence(node) {
            return;
        }
        self.doubt_later(node);
        if self.forgetful {
            self.note_slots(node);
        }
        let (mono, rules) = (self.mono, self.rules);
        for user in self.owned(node) {
            let state = self.state(user);
            let truth = &mut self.truths[user];
            if state.online {
                truth.model.online_due = None;
            } else {
                truth.model.leave_due = None;
            }
            let (_, online, since) = *truth.history.last().expect("begins with one");
            if (online, since) == (state.online, state.since) {
                continue;
            }
            truth.history.push((mono, state.online, state.since));
            self.say(|| format!("node {node} publishes: {user} {state:?}"));
            self.note(format!("{user} {} {:?}", state.online, state.since).as_bytes());
            *self.up_mut(node).changes.entry(user).or_default() += 1;
            if state.since <= since {
                self.fail(format!(
                    "user {user}: since went from {since:?} to {:?}",
                    state.since
                ));
            }
            self.check_return(node, user, state.since);
            let (at, model) = (&self.nodes[node], &self.truths[user].model);
            let verdict = match (online, state.online) {
                (false, true) => model.may_go_online(mono, at.clock_went_back_at, &rules),
                (true, false) => model.may_go_offline(mono, at.hold_until, &rules),
                _ => Ok(()),
            };
            if let Err(why) = verdict {
                self.fail(format!("user {user} was published {why}: {model:?}"));
            }
            if !state.online {
                self.check_faithful(user);
                self.check_held(user);
                self.truths[user].model.offline_since = mono;
            }
        }
    }

    /// Whoever has a stream at a node whose datagrams all arrive is not found silent.
    fn check_faithful(&self, user: usize) {
        let long_ms = self.rules.offline_after_ms + VOUCH_SLACK_MS;
        let held = self
            .streams_of(user)
            .any(|smooth_since| smooth_since + long_ms < self.mono);
        if held && self.truths[user].model.left == Left::No {
            let model = &self.truths[user].model;
            self.fail(format!(
                "user {user} was published offline and had a stream all the time: {model:?}"
            ));
        }
    }

    /// For each stream of a user, since when (mono) it has been vouched for on a way that loses
    /// nothing.
    fn streams_of(&self, user: usize) -> impl Iterator<Item = u64> {
        let streams = self
            .clients
            .iter()
            .filter(move |client| client.user == Some(user));
        streams.filter_map(move |client| {
            let conn = self.conns.get(&client.conn?)?;
            let path = &self.paths[conn.node - self.presences][self.owners[user]];
            let since = client.live_since.filter(|_| !client.leaving)?;
            Some(since.max(path.rough_at))
        })
    }

    /// A queue keeps one entry a publisher, and one more while it is being told.
    pub(super) fn check_queue(&self, node: usize, at: usize) {
        let link = &self.up(node).links[at];
        let most = match link.core {
            Core::Publishing(_) => 2 * self.owned(node).count(),
            Core::Asking(_) => self.owned(link.peer).count(),
        };
        // And one for each slot whose user was erased.
        let most = most + self.left_slots.len();
        let queued = self.standing(node, at).queued;
        if queued > most {
            self.fail(format!(
                "{queued} users wait in a link of node {node}; at most {most} can"
            ));
        }
    }

    /// A real-time node has taken these states: each was published, and none is told more often
    /// than it changed.
    pub(super) fn check_delivered(
        &mut self,
        node: usize,
        at: usize,
        told: &[(usize, bool, Option<u64>)],
    ) {
        for (user, online, since) in told {
            if !self.truths[*user].was(*online, *since) {
                self.fail(format!(
                    "node {node} tells of user {user} {online} {since:?}, which it never published"
                ));
            }
            let erased = self.truths[*user].erased;
            if erased.is_some_and(|erased| *since == Some(erased.since)) {
                let link = &self.up(node).links[at];
                let realtime = link.peer;
                let in_step = self.is_in_step(realtime, node);
                self.erasure_told(realtime, *user, in_step);
            }
            let up = self.up_mut(node);
            let changes = up.changes.get(user).copied().unwrap_or(0);
            // An erasure that is told late says nothing of who is back.
            if erased.is_none_or(|erased| *since != Some(erased.since)) {
                up.links[at].passed_over.remove(user);
            }
            let entry = up.links[at].delivered.entry(*user).or_default();
            entry.0 += 1;
            // An erasure may be told behind who is back, and is older than that.
            if entry.0 == 1 || *since >= entry.2 {
                (entry.1, entry.2) = (*online, *since);
            }
            if entry.0 > changes {
                let times = entry.0;
                self.fail(format!(
                    "user {user} was told {times} times after {changes} changes"
                ));
            }
        }
    }

    pub(super) fn stream_began(&mut self, client: usize, key: u32) {
        if self.clients[client].conn == Some(key) {
            self.clients[client].live_since = Some(self.mono);
        }
    }

    /// A client's stream has told something.
    pub(super) fn event(&mut self, client: usize, key: u32, event: &Event) {
        if self.clients[client].conn != Some(key) {
            return;
        }
        self.say(|| format!("client {client} reads {event:?}"));
        let (node, reader) = (self.conns[&key].node, &mut self.clients[client]);
        match (event.name.as_str(), &reader.stream) {
            ("hello", None) => {
                reader.stream = event.data["stream"].as_str().map(str::to_owned);
                if event.data["watching"] != reader.watched.len() as u64 {
                    self.fail(format!("client {client} is told {event:?}"));
                }
                return;
            }
            ("ping" | "goodbye", Some(_)) => return,
            ("bye", Some(_)) => return self.saw(Seen::LoggedOut),
            ("snapshot", Some(_)) => reader.snapshot_seen = true,
            ("presence", Some(_)) if reader.snapshot_seen => {}
            _ => self.fail(format!("client {client} reads out of turn: {event:?}")),
        }
        let records = match event.data["presence"].as_array() {
            Some(list) => list.as_slice(),
            None => std::slice::from_ref(&event.data),
        };
        for value in records {
            self.told(client, key, value);
        }
        self.clients[client].told_without_id = event.id.is_none();
        if let Some(id) = event.id {
            self.check_id(node, client);
            self.take_back(client, id);
            let untold = |link: &Link| {
                link.peer == node
                    && link
                        .waiting_since
                        .is_some_and(|at| at + UNTOLD_MS_MAX < self.mono)
            };
            let presences = self.nodes[..self.presences].iter();
            if presences
                .filter_map(|node| node.up.as_ref())
                .any(|up| up.links.iter().any(untold))
            {
                self.saw(Seen::IdTooNew);
            } else {
                self.check_told(client, node, id);
                self.clients[client].last_id = Some(id);
                self.clients[client].outgrown = false;
            }
        }
    }

    /// An id says that everything up to it has been told: not while a presence node does not
    /// answer.
    fn check_id(&self, node: usize, client: usize) {
        if let Some(link) = self.up(node).links.iter().find(|link| link.met.is_none()) {
            let peer = link.peer;
            self.fail(format!(
                "client {client} is told an id by node {node}, which has lost node {peer}"
            ));
        }
    }

    /// An id says that what its stream told counts against what is not newer than the id (client.js
    /// does the same).
    fn take_back(&mut self, client: usize, id: u64) {
        let Client { views, held, .. } = &mut self.clients[client];
        held.retain(|user, told| {
            let view = views.get(user).copied().flatten();
            let counted = view.is_some_and(|view| view.since <= Some(id));
            if counted {
                views.insert(*user, Some(*told));
            }
            !counted
        });
    }

    /// After an id the client knows each last change, unless it is so recent that whoever resumes
    /// is told of it again.
    fn check_told(&self, client: usize, node: usize, id: u64) {
        // When it was that time, by the node's clock.
        let up_to = id.saturating_add_signed(-self.nodes[node].anchor);
        for user in &self.clients[client].watched {
            let (at, _, since) = *self.truths[*user].history.last().expect("begins with one");
            let view = self.clients[client].views.get(user).copied().flatten();
            let counts = at + FORGIVEN_MS < self.mono || at + CLOCKS_APART_MS < up_to;
            let erased = self.truths[*user].erased.is_some() && since.is_none();
            let behind = view.is_none_or(|view| view.since < since || erased && view.online);
            if counts && behind {
                self.fail(format!(
                    "client {client} is told an id by node {node} and believes {view:?} of user \
                     {user}, who changed at {at} ms"
                ));
            }
        }
    }

    /// One record: what was published at some time, never older than before, or unknown as long as
    /// nothing is known.
    fn told(&mut self, client: usize, key: u32, value: &serde_json::Value) {
        let name = value["user"].as_str().unwrap_or("");
        let user = self.user(name);
        let added = self.clients[client].edit.as_ref().map(|(user, _)| *user);
        if !self.clients[client].watched.contains(&user) && added != Some(user) {
            self.fail(format!(
                "client {client} is told of user {user}, whom it does not watch"
            ));
        }
        let (node, opened_at) = (self.conns[&key].node, self.conns[&key].opened_at);
        if value["status"] == "unknown" {
            let nothing = value["since"].is_null() && value["last_active"].is_null();
            let known_at = self.up(node).known_at[user];
            let told_before = self.clients[client].known.contains_key(&user);
            if !nothing || told_before || known_at.is_some_and(|at| at < opened_at) {
                self.fail(format!(
                    "client {client} is told by node {node}, which has told of user {user}: {value}"
                ));
            }
            self.saw(Seen::UnknownTold);
            // It says nothing to whoever knows more from before (client.js does the same).
            self.clients[client].views.entry(user).or_insert(None);
            return;
        }
        let (_, told) = record(value).unwrap_or_else(|why| self.fail(why));
        if !self.may_be_told(user, told) {
            let history = &self.truths[user].history;
            self.fail(format!(
                "client {client} is told {told:?} of user {user} by node {node}: {history:?}"
            ));
        }
        self.check_outage(client, node, user, told);
        let mono = self.mono;
        let up = self.up_mut(node);
        if told.since.is_some() {
            if up.floors[user] > told.since {
                let floor = up.floors[user];
                self.fail(format!(
                    "client {client} is told {told:?} of user {user} after {floor:?}"
                ));
            }
            up.floors[user] = told.since;
            up.known_at[user].get_or_insert(mono);
        }
        let reader = &mut self.clients[client];
        let before = reader.known.insert(user, told.since);
        // Another node may know less than the one before: what is older waits for an id (client.js
        // does the same).
        let view = reader.views.get(&user).copied().flatten();
        if view.is_none_or(|view| view.since <= told.since) {
            reader.held.remove(&user);
            reader.views.insert(user, Some(told));
        } else {
            reader.held.insert(user, told);
            self.saw(Seen::OlderTold);
        }
        if before.is_some_and(|before| before > told.since) {
            self.fail(format!(
                "client {client} is told {told:?} of user {user} after {before:?}"
            ));
        }
    }

    /// Whoever was connected behind a cut all the time is not told offline there for the silence
    /// that was the cut's.
    fn check_outage(&mut self, client: usize, node: usize, user: usize, told: Told) {
        let cut = self.paths[node - self.presences][self.owners[user]].cut;
        let erased = self.truths[user].erased;
        let erased = erased.is_some_and(|erased| erased.at >= cut.from);
        if erased || !self.stayed_behind(cut, node, user) {
            return;
        }
        let in_cut = |at: u64| at > cut.from && at <= cut.to;
        let mut history = self.truths[user].history.iter();
        let silenced = history.find(|(at, online, _)| in_cut(*at) && !online);
        match silenced {
            Some(_) if told.online => self.saw(Seen::OutageHidden),
            Some((at, _, since)) if *since == told.since => self.fail(format!(
                "client {client} is told by node {node}, cut off from {} to {} ms, that user \
                 {user} is offline since {at} ms, who was connected there",
                cut.from, cut.to
            )),
            _ => {}
        }
    }

    /// Whether a user had a stream at a real-time node before, in and after a cut that is over, and
    /// nothing else stood in the way of its being heard of again before anybody is told.
    fn stayed_behind(&self, cut: Cut, node: usize, user: usize) -> bool {
        let owner = self.owners[user];
        let (mono, long_ms) = (self.mono, CUT_MS_MIN);
        let path = &self.paths[node - self.presences][owner];
        let calm = [cut.to.saturating_sub(SETTLED_MS), cut.to + SETTLED_MS];
        let in_time = |noticed: &Option<u64>| noticed.unwrap_or(mono) <= cut.to + NOTICED_MS;
        cut.to < mono
            && cut.to - cut.from >= long_ms
            && cut.lives == [owner, node].map(|node| self.nodes[node].life)
            && cut.noticed_at.iter().all(in_time)
            && !path
                .faults
                .iter()
                .any(|(from, to)| *from <= calm[1] && *to >= calm[0])
            && self.truths[user].model.left == Left::No
            && self.truths[user].left_at < calm[0]
            && self.clients.iter().any(|client| {
                let here = |key: &u32| self.conns.get(key).is_some_and(|conn| conn.node == node);
                let held = client.live_since.is_some_and(|since| since < cut.from);
                client.user == Some(user) && held && client.conn.as_ref().is_some_and(here)
            })
    }

    /// An edit of a client's list was answered.
    pub(super) fn edited(&mut self, client: usize, key: u32, response: &Response) {
        self.hang_up(key);
        let edit = self.clients[client]
            .edit
            .take_if(|(_, asker)| *asker == key);
        let Some((user, _)) = edit else {
            return;
        };
        match response.status {
            200 => {
                self.clients[client].watched.insert(user);
                self.clients[client].outgrown = true;
                self.saw(Seen::Edited);
            }
            // The holder's mailbox was full, or took too long: it may have happened, so the stream
            // is of no use any more.
            503 => self.disconnect(client, 100),
            status => self.fail(format!("an edit of a live stream is answered {status}")),
        }
    }

    /// Between two steps: presence nodes decide in time, streams are vouched for, and where nothing
    /// is on its way all agree.
    pub(super) fn check_moment(&mut self) {
        self.settle();
        self.check_farewells();
        self.check_endings();
        self.check_timeliness();
        self.check_vouching();
        for realtime in self.presences..self.nodes.len() {
            if self.nodes[realtime].up.is_some() {
                self.check_known(realtime);
            }
        }
        for client in 0..self.clients.len() {
            self.check_views(client);
        }
    }

    /// Where nothing is on its way, what a real-time node need not ask about is what is published,
    /// watched or not.
    fn check_known(&self, realtime: usize) {
        for user in 0..self.names.len() {
            if !self.is_settled(realtime, self.owners[user]) {
                continue;
            }
            let follower = &self.up(realtime).presence;
            let known = self.published(follower, user, self.now(realtime));
            let Some((slot, known)) = known.filter(|(slot, _)| follower.is_sure(*slot)) else {
                continue;
            };
            let state = self.state(user);
            if !self.agrees(user, Some(known), state) {
                self.fail(format!(
                    "node {realtime} is sure that user {user} is {known:?}, {slot:?}, who is \
                     {state:?}"
                ));
            }
        }
    }

    /// What a presence node could bring back to its clock, it has.
    fn settle(&mut self) {
        for node in 0..self.presences {
            let at = &self.nodes[node];
            if at.up.is_some() && self.mono >= at.calm_since + 1_000 {
                let wall = self.wall(node);
                for user in self.owned(node) {
                    self.truths[user].model.settled(wall);
                }
            }
        }
    }

    fn check_timeliness(&self) {
        for node in 0..self.presences {
            let at = &self.nodes[node];
            if at.up.is_none() || self.mono < at.calm_since {
                continue;
            }
            let caught_up = self.wall(node) > at.wall_max + self.rules.offline_after_ms + 2_000;
            let ahead_ms = if caught_up { 0 } else { 1_000 };
            for user in self.owned(node) {
                let truth = &self.truths[user];
                let (_, online, _) = *truth.history.last().expect("begins with one");
                let in_time = truth.model.is_in_time(
                    online,
                    self.mono,
                    (at.calm_since, 0),
                    ahead_ms,
                    &self.rules,
                );
                if let Err(why) = in_time {
                    self.fail(format!(
                        "user {user} is still published {why}: {:?}",
                        truth.model
                    ));
                }
            }
        }
    }

    fn check_vouching(&mut self) {
        let late_ms = 2 * self.rules.beat_interval_ms + VOUCH_SLACK_MS;
        let mut checked = 0;
        for user in 0..self.names.len() {
            if self.nodes[self.owners[user]].up.is_none() {
                continue;
            }
            let heard_at = self.truths[user].heard_at;
            if self
                .streams_of(user)
                .any(|since| since + late_ms < self.mono)
            {
                checked += 1;
                if heard_at + late_ms < self.mono {
                    self.fail(format!(
                        "user {user} has a stream and was last heard of at {heard_at} ms"
                    ));
                }
            }
        }
        *self.seen.entry(Seen::VouchingChecked).or_default() += checked;
    }

    /// Nothing that a presence node has published is on its way to a real-time node, and that one
    /// knows it.
    pub(super) fn is_settled(&self, realtime: usize, presence: usize) -> bool {
        let life = self.nodes[presence].life;
        self.nodes[presence].up.is_some()
            && self.is_idle(realtime)
            && self.is_idle(presence)
            && self.is_link_settled(realtime, presence)
            && self.up(realtime).links[presence].met == Some(life)
            && self.is_link_settled(presence, realtime - self.presences)
    }

    /// A node holds a stream of a user who is published offline: it does not believe that yet.
    fn is_doubted(&self, node: usize, user: usize) -> bool {
        let presence = &self.up(node).presence;
        let id = Id::parse(self.names[user].as_bytes()).expect("a legal name");
        let slot = presence.lookup(id);
        slot.is_some_and(|slot| presence.is_stale(slot))
    }

    /// Where nothing is on its way, a client believes what is published.
    fn check_views(&mut self, client: usize) {
        let reader = &self.clients[client];
        let Some(conn) = reader.conn.and_then(|key| self.conns.get(&key)) else {
            return;
        };
        if !reader.snapshot_seen {
            return;
        }
        let mut compared = 0;
        for presence in 0..self.presences {
            if !self.is_settled(conn.node, presence) {
                continue;
            }
            for user in reader
                .watched
                .iter()
                .copied()
                .filter(|user| self.owners[*user] == presence)
            {
                if self.is_doubted(conn.node, user) {
                    continue;
                }
                let (state, view) = (self.state(user), reader.views.get(&user));
                // What is older than what it believes waits for an id.
                let waits = reader.held.get(&user).copied();
                let waits = waits.is_some_and(|held| self.agrees(user, Some(held), state));
                let seen = view.copied().flatten();
                if !waits && !self.agrees(user, seen, state) {
                    let node = conn.node;
                    self.fail(format!(
                        "client {client} of node {node} believes {view:?} of user {user}, who is \
                         {state:?}"
                    ));
                }
                compared += 1;
                // Else its events would have no ids any more.
                let (node, follower) = (conn.node, &self.up(conn.node).presence);
                let slot =
                    follower.lookup(Id::parse(self.names[user].as_bytes()).expect("a legal name"));
                let is_unsure = |slot: Slot| {
                    follower.state(slot, self.now(node)).is_known() && !follower.is_sure(slot)
                };
                if slot.is_some_and(is_unsure) {
                    self.fail(format!(
                        "client {client} of node {node} watches user {user}, whom nobody confirms"
                    ));
                }
            }
        }
        *self.seen.entry(Seen::ViewsCompared).or_default() += compared;
    }

    /// All has been settled for long: what streams were told last came with an id, that is, they
    /// have been told everything.
    pub(super) fn check_ids(&mut self) {
        for client in 0..self.clients.len() {
            if std::mem::take(&mut self.clients[client].told_without_id) {
                self.fail(format!(
                    "in the end client {client} is told states and no id"
                ));
            }
            self.saw(Seen::IdsAwaited);
        }
    }

    /// At the end: all is settled, all agree, online is who has a stream, and each last state was
    /// told.
    pub(super) fn check_truth(&mut self) {
        for node in 0..self.nodes.len() {
            if !self.is_idle(node) {
                self.fail(format!("in the end node {node} has something to do"));
            }
            for (at, link) in self.up(node).links.iter().enumerate() {
                if !self.is_link_settled(node, at) {
                    self.fail(format!(
                        "in the end the link of node {node} to node {} is not settled",
                        link.peer
                    ));
                }
            }
        }
        for client in 0..self.clients.len() {
            if !self.clients[client].snapshot_seen {
                self.fail(format!("in the end client {client} has no stream"));
            }
            self.check_views(client);
        }
        for user in 0..self.names.len() {
            let (online, state) = (self.streams_of(user).count() > 0, self.state(user));
            let active = self.truths[user].model.active_exactly;
            if state.online != online || (active.is_some() && !is_told_active(active, &state)) {
                self.fail(format!(
                    "in the end user {user} is {state:?}: {:?}",
                    self.truths[user].model
                ));
            }
        }
        for node in 0..self.presences {
            for link in &self.up(node).links {
                let told = |user: &&usize| !link.passed_over.contains(user);
                for user in self.up(node).changes.keys().filter(told) {
                    let told = link
                        .delivered
                        .get(user)
                        .map(|(_, online, since)| (*online, *since));
                    let state = self.state(*user);
                    // Behind an erasure the node asks who is back.
                    let erased = self.truths[*user].erased;
                    let erased =
                        erased.is_some_and(|erased| told == Some((false, Some(erased.since))));
                    if !erased && told != Some((state.online, state.since)) {
                        let peer = link.peer;
                        self.fail(format!(
                            "node {peer} was last told {told:?} of user {user}, who is {state:?}"
                        ));
                    }
                }
            }
        }
    }
}
