//! Users are erased at their presence nodes, and others get their slots.
//!
//! Owns who was erased, and the streams that must end: of whoever is erased, and of whoever is
//! logged out. What must hold: nobody is told one user's state as another's, nor one of before the
//! erasure; watchers are told offline without a last activity; and no older stream of theirs stays
//! open on any node that can be told.

use greendot::slot::Slot;
use greendot::wire::User as Id;

use super::node::Who;
use super::{Seen, Split};
use crate::client::escape;
use crate::model::{AHEAD_MS, User};
use crate::sse::Told;
use crate::store;

/// Within so many ms of its request somebody is erased.
const ERASED_MS: u64 = 20_000;
/// A stream ends so long after the last hindrance at the latest, in ms: two links that try again,
/// and mail.
const ENDED_MS: u64 = 8_000;
/// A real-time node that is told of an erasure later than this may not end streams for it, in ms.
const TOLD_MS: u64 = 8_000;
/// A stream that is older than this, in ms, was opened before a log-out by any clock.
const OLDER_MS: u64 = 12_000;

/// When somebody was last erased.
#[derive(Clone, Copy)]
pub(super) struct Erased {
    /// What real-time nodes are told.
    pub(super) since: u64,
    /// By the presence node's clock, and by the virtual one.
    wall: u64,
    pub(super) at: u64,
    /// Of the presence node.
    life: u64,
}

/// A stream that must end.
pub(super) struct Ending {
    key: u32,
    user: usize,
    /// Where the log-out was said; None: the user was erased.
    said_to: Option<usize>,
    /// Since when (mono).
    since: u64,
    /// When (mono) the node was told that the user was erased.
    told_at: Option<u64>,
    /// Of all nodes.
    lives: Vec<u64>,
}

impl Split {
    /// A user is erased: anybody, a holder of a stream, or one of those who came last.
    pub(super) fn erase(&mut self) {
        let user = match self.workload.u8(0..3) {
            0 => self.workload.usize(0..self.names.len()),
            1 => self.some_user(),
            _ => self.workload.usize(store::known_users()..self.names.len()),
        };
        let node = self.owners[user];
        if self.nodes[node].up.is_none() || self.is_undisturbed() {
            return;
        }
        let (name, token) = (escape(&self.names[user]), self.key.service_token());
        let bytes = format!(
            "DELETE /v1/presence/{name} HTTP/1.1\r\nHost: sim\r\nAuthorization: Bearer {token}\r\n\
             \r\n"
        );
        self.say(|| format!("node {node} is to erase user {user}"));
        self.truths[user].erased_until = self.mono + ERASED_MS;
        let shard = self.workload.usize(0..self.up(node).shards.len());
        self.open(node, shard, Who::Nobody, bytes.into_bytes().into());
    }

    /// The stores are written back: slots that nobody holds any more are another's from here on.
    pub(super) fn write_back(&mut self) {
        for node in 0..self.presences {
            let now = self.now(node);
            let Some(up) = &mut self.nodes[node].up else {
                continue;
            };
            let writer = up.writer.as_mut().expect("a presence node has files");
            let mut cycles = 0;
            while cycles < 2 {
                let report = writer.slice(now).expect("there is room");
                cycles += u32::from(report.cycle_ms.is_some());
            }
        }
    }

    /// Who has a slot at a presence node, and who has none any more.
    pub(super) fn note_slots(&mut self, node: usize) {
        for user in 0..self.names.len() {
            if self.owners[user] != node {
                continue;
            }
            let id = Id::parse(self.names[user].as_bytes()).expect("a legal name");
            let slot = self.up(node).presence.lookup(id);
            let before = std::mem::replace(&mut self.truths[user].slot, slot);
            if slot == before {
                continue;
            }
            if let Some(before) = before {
                self.forgotten(node, user, before);
            }
            if slot.is_some_and(|slot| self.left_slots.remove(&(node, slot.index()))) {
                self.say(|| format!("user {user} has {slot:?}, which was another's"));
                self.saw(Seen::SlotUsedAgain);
            }
        }
    }

    /// A user has been erased: nobody was ever here by that name, and nobody is.
    fn forgotten(&mut self, node: usize, user: usize, slot: Slot) {
        let (mono, wall, life) = (self.mono, self.wall(node), self.nodes[node].life);
        if self.truths[user].erased_until < mono {
            self.fail(format!(
                "user {user} is gone, and nobody was asked to erase"
            ));
        }
        let Some(since) = self.up(node).presence.erased_since(slot) else {
            self.fail(format!(
                "user {user} is gone, and {slot:?} may be another's"
            ));
        };
        let since = since.ms();
        self.say(|| format!("user {user} is erased as of {since}"));
        self.saw(Seen::Erased);
        self.note(format!("{user} erased {since}").as_bytes());
        let truth = &mut self.truths[user];
        truth.model = User::new(false);
        if truth.last_since() >= Some(since) {
            let before = truth.last_since();
            self.fail(format!(
                "user {user} is erased as of {since}, after {before:?}"
            ));
        }
        truth.push(mono, false, Some(since));
        truth.push(mono, false, None);
        truth.erased = Some(Erased {
            since,
            wall,
            at: mono,
            life,
        });
        self.left_slots.insert((node, slot.index()));
        *self.up_mut(node).changes.entry(user).or_default() += 1;
        self.farewells.retain(|farewell| farewell.user() != user);
        self.later.retain(|later| later.user() != user);
        let streams: Vec<u32> = self.streams(user).map(|(key, ..)| key).collect();
        self.must_end(&streams, user, None);
    }

    /// A real-time node has been told that a user was erased. If it had missed nothing before, the
    /// user's streams there end.
    pub(super) fn erasure_told(&mut self, realtime: usize, user: usize, in_step: bool) {
        let mono = self.mono;
        let mut endings = std::mem::take(&mut self.endings);
        endings.retain_mut(|ending| {
            let conn = self.conns.get(&ending.key);
            let meant = ending.user == user && ending.said_to.is_none();
            if meant && conn.is_some_and(|conn| conn.node == realtime) {
                ending.told_at.get_or_insert(mono);
                // Later nobody knows which streams are older, if somebody is back.
                return in_step && mono < ending.since + TOLD_MS;
            }
            true
        });
        self.endings = endings;
    }

    /// Streams of a user that are open: connection, node, and since when.
    fn streams(&self, user: usize) -> impl Iterator<Item = (u32, usize, u64)> {
        let clients = self.clients.iter();
        let theirs = clients.filter(move |client| client.user == Some(user));
        theirs.filter_map(|client| {
            let (key, since) = (client.conn?, client.live_since?);
            Some((key, self.conns.get(&key)?.node, since))
        })
    }

    fn must_end(&mut self, streams: &[u32], user: usize, said_to: Option<usize>) {
        let lives: Vec<u64> = self.nodes.iter().map(|node| node.life).collect();
        let endings = streams.iter().map(|key| Ending {
            key: *key,
            user,
            said_to,
            since: self.mono,
            told_at: None,
            lives: lives.clone(),
        });
        self.endings.extend(endings);
    }

    /// A node has taken a log-out that was said at `said_at` (mono): older streams end everywhere.
    pub(super) fn logged_out(&mut self, user: usize, node: usize, said_at: u64) {
        if self.truths[user].log_out_lost_at >= said_at {
            return;
        }
        let older = |(_, _, since): &(u32, usize, u64)| since + OLDER_MS < said_at;
        let streams: Vec<u32> = self
            .streams(user)
            .filter(older)
            .map(|(key, ..)| key)
            .collect();
        self.must_end(&streams, user, Some(node));
    }

    /// A log-out is refused for what is in it: it is passed over.
    pub(super) fn log_out_passed_over(&mut self, user: usize) {
        self.truths[user].log_out_lost_at = self.mono;
        self.endings
            .retain(|ending| ending.user != user || ending.said_to.is_none());
    }

    /// Streams that must end do, as soon as nothing hinders it.
    pub(super) fn check_endings(&mut self) {
        let endings = std::mem::take(&mut self.endings);
        for ending in endings {
            let Some(conn) = self.conns.get(&ending.key).filter(|conn| !conn.hung_up) else {
                self.saw(match ending.said_to {
                    Some(_) => Seen::LoggedOutEverywhere,
                    None => Seen::ErasedEnds,
                });
                continue;
            };
            let (realtime, owner) = (conn.node, self.owners[ending.user]);
            let among = [Some(realtime), Some(owner), ending.said_to];
            let mut among = among.into_iter().flatten();
            if among.any(|node| {
                self.nodes[node].life != ending.lives[node] || self.nodes[node].up.is_none()
            }) {
                // What it had still to tell is lost.
                continue;
            }
            let ways = [Some(realtime), ending.said_to].into_iter().flatten();
            let ways = ways.filter(|node| !self.is_presence(*node));
            let paths = ways.map(|node| &self.paths[node - self.presences][owner]);
            let hindered = match ending.said_to {
                Some(_) => paths.map(|path| path.hindered_at()).max(),
                None => ending
                    .told_at
                    .map(|at| at.max(self.nodes[realtime].calm_since)),
            };
            if hindered.is_some_and(|at| self.mono > at.max(ending.since) + ENDED_MS) {
                let (user, since) = (ending.user, ending.since);
                let why = ending.said_to.map_or("erased", |_| "logged out");
                self.fail(format!(
                    "user {user} was {why} at {since} ms and has a stream at node {realtime}"
                ));
            }
            self.endings.push(ending);
        }
    }

    /// Whether what was sent at `sent_at` was sent before the user was erased, and makes nobody.
    pub(super) fn is_before_erasure(&self, node: usize, user: usize, sent_at: u64) -> bool {
        let truth = &self.truths[user];
        let before = |erased: Erased| {
            let known = erased.life == self.nodes[node].life;
            known && sent_at <= erased.wall && erased.wall <= self.wall(node) + AHEAD_MS
        };
        !truth.model.known && truth.erased.is_some_and(before)
    }

    /// Whoever comes back after an erasure does so later than that, if the node knows of it.
    pub(super) fn check_return(&self, node: usize, user: usize, since: Option<u64>) {
        let erased = self.truths[user].erased;
        let erased = erased.filter(|erased| erased.life == self.nodes[node].life);
        if erased.is_some_and(|erased| since <= Some(erased.since)) {
            self.fail(format!(
                "user {user} is back since {since:?}, and was erased later"
            ));
        }
    }

    /// Whether a user may be told to be that: it was published, or it is what a real-time node
    /// makes of an answer that nobody was ever seen by that name.
    pub(super) fn may_be_told(&self, user: usize, told: Told) -> bool {
        let truth = &self.truths[user];
        let gone = !told.online && told.last_active.is_none();
        let Some(erased) = truth.erased else {
            return truth.was(told.online, told.since);
        };
        match told.since {
            Some(since) if since == erased.since => gone,
            since => {
                let answered = gone && since <= Some(erased.since);
                answered || truth.was(told.online, since)
            }
        }
    }

    /// Whether that is what is published of a user: of one who was erased, that nobody is here and
    /// nobody ever was.
    pub(super) fn agrees(&self, user: usize, told: Option<Told>, state: Told) -> bool {
        let Some(told) = told else {
            return false;
        };
        let was_erased = self.truths[user].erased.is_some();
        if was_erased && state.since.is_none() {
            return !told.online && told.last_active.is_none();
        }
        (told.online, told.since) == (state.online, state.since)
    }
}
