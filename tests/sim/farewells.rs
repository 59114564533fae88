//! Goodbyes over a connection that name a stream, are put off, or log a user out.
//!
//! Owns what they may have done. A request is carried out somewhere between its first byte and its
//! answer, on one shard or several, so the oracle is in doubt meanwhile. What it claims all the
//! same: nobody goes offline who holds another stream, nor by a goodbye that was put off and that a
//! beat took back; and who was logged out has no stream left.

use serde_json::json;

use crate::client::{Want, get, post};
use crate::world::World;

/// A request that was not answered well is carried out so much later at the latest, in ms.
const LATE_MS: u64 = 15_000;

/// A goodbye that may be carried out at any moment.
pub(crate) struct Parting {
    user: usize,
    /// The stream that it names.
    key: Option<u32>,
    /// It counts whoever holds a stream.
    everywhere: bool,
    asker: u32,
    /// Not after this (mono).
    until: u64,
}

/// A goodbye that was put off.
pub(crate) struct Later {
    user: usize,
    /// Not before this (mono).
    due: u64,
    asker: u32,
    /// The server has taken it by then (mono): a beat that comes later takes it back.
    taken_by: u64,
    /// That has happened.
    taken_back: bool,
}

/// A stream that must end: its user was logged out, or erased.
pub(crate) struct Ending {
    key: u32,
    /// Since when (mono).
    since: u64,
    /// Its user was erased, and it counts as nobody's.
    erased: bool,
}

/// Whether a stream of this user's that opens now may end by a log-out under way.
pub(crate) fn may_end(partings: &[Parting], user: Option<usize>) -> bool {
    let mut log_outs = partings.iter().filter(|parting| parting.everywhere);
    log_outs.any(|parting| Some(parting.user) == user)
}

impl World {
    /// A subscriber's page says goodbye: for its stream, perhaps put off, perhaps by name as well.
    pub(crate) fn farewell(&mut self) {
        let subs: Vec<usize> = (0..self.subs.len())
            .filter(|sub| self.subs[*sub].stream.is_some() && self.subs[*sub].user.is_some())
            .collect();
        if subs.is_empty() {
            return;
        }
        let sub = &self.subs[subs[self.workload.usize(0..subs.len())]];
        let (Some(user), Some(key), Some(stream)) = (sub.user, sub.conn, sub.stream.clone()) else {
            return;
        };
        let mut body = json!({ "stream": stream });
        if self.workload.bool() {
            body["users"] = json!([self.names[user]]);
        }
        let after_ms = match self.workload.u8(0..3) {
            0 => 0,
            _ => self
                .workload
                .u64(1..=self.rules.offline_after_ms.min(2_000)),
        };
        if after_ms > 0 {
            body["after_ms"] = json!(after_ms);
        }
        let asker = self.connect();
        if let Some(conn) = self.conns.get_mut(&key) {
            conn.leaving = true;
        }
        self.say(|| format!("user {user} says goodbye: {body}"));
        let want = Want::Farewell { user, after_ms };
        self.ask(asker, &post("/v1/leave", "", &body.to_string(), None), want);
        if after_ms == 0 {
            self.partings.push(Parting {
                user,
                key: Some(key),
                everywhere: false,
                asker,
                until: u64::MAX,
            });
            self.doubt_partings(user);
        } else {
            self.later.push(Later {
                user,
                due: self.mono + after_ms,
                asker,
                taken_by: u64::MAX,
                taken_back: false,
            });
        }
    }

    /// Somebody is logged out, by whoever may.
    pub(crate) fn log_out(&mut self) {
        let user = self.any_user();
        let body = json!({"users": [self.names[user]], "everywhere": true}).to_string();
        let asker = self.connect();
        self.say(|| format!("user {user} is logged out"));
        let mut streams = Vec::new();
        for (key, conn) in &mut self.conns {
            if conn.live_since.is_some() && conn.user == Some(user) {
                conn.leaving = true;
                streams.push(*key);
            }
        }
        let want = Want::LogOut { streams };
        self.ask(asker, &post("/v1/leave", "", &body, None), want);
        self.partings.push(Parting {
            user,
            key: None,
            everywhere: true,
            asker,
            until: u64::MAX,
        });
        self.doubt_partings(user);
    }

    /// A stream that was logged out comes back from where it was.
    pub(crate) fn come_back_from_bye(&mut self) {
        let key = self.connect();
        let bytes = get("/v1/stream?watch=u0&last_event_id=bye", "");
        self.ask(key, &bytes, Want::SentAway);
    }

    /// The server may have carried out a goodbye of this user's by now.
    pub(crate) fn doubt_partings(&mut self, user: usize) {
        let (mono, wall) = (self.mono, self.wall());
        let parts = |parting: &Parting| {
            let held = || self.is_held_but(user, parting.key) == Some(true);
            parting.user == user && parting.until >= mono && (parting.everywhere || !held())
        };
        let is_due = |later: &Later| {
            let counts = later.user == user && later.due <= mono && !later.taken_back;
            counts && self.is_held_but(user, None) != Some(true)
        };
        if self.partings.iter().any(parts) || self.later.iter().any(is_due) {
            self.users[user].leave_perhaps(u64::MAX, mono, wall);
        }
    }

    /// A beat of this user has been accepted for sure.
    pub(crate) fn take_back(&mut self, user: usize) {
        let mono = self.mono;
        self.later
            .retain(|later| !later.taken_back || later.due + LATE_MS > mono);
        let theirs = self.later.iter_mut().filter(|later| later.user == user);
        for later in theirs.filter(|later| later.taken_by < mono) {
            later.taken_back = true;
        }
    }

    /// A goodbye has been answered, well or not; or will not be.
    pub(crate) fn parted(&mut self, asker: u32, well: bool) {
        let mono = self.mono;
        let partings = self.partings.iter();
        let users: Vec<usize> = partings
            .filter(|parting| parting.asker == asker)
            .map(|parting| parting.user)
            .collect();
        // It counts as late as this.
        users.into_iter().for_each(|user| self.doubt_partings(user));
        let partings = self.partings.iter_mut();
        for parting in partings.filter(|parting| parting.asker == asker) {
            parting.until = parting.until.min(mono + if well { 0 } else { LATE_MS });
        }
        let later = self.later.iter_mut();
        for later in later.filter(|later| later.asker == asker) {
            later.taken_by = later.taken_by.min(mono + if well { 0 } else { LATE_MS });
        }
        self.partings.retain(|parting| parting.until >= mono);
    }

    /// Users have been logged out, or erased, and these streams were theirs.
    pub(crate) fn must_end(&mut self, streams: &[u32], erased: bool) {
        let since = self.mono;
        let endings = streams.iter().map(|key| Ending {
            key: *key,
            since,
            erased,
        });
        self.endings.extend(endings);
    }

    /// The process ends: what was put off is lost, and the rest has happened or has not.
    pub(crate) fn forget_partings(&mut self) {
        (0..self.users.len()).for_each(|user| self.doubt_partings(user));
        self.partings.clear();
        self.later.clear();
        self.endings.clear();
    }

    /// Whoever was logged out has no stream left, unless its reader keeps it from ending.
    pub(crate) fn check_endings(&mut self) {
        let (mono, calm) = (self.mono, self.mono >= self.calm_since);
        let conns = &self.conns;
        let is_open = |ending: &Ending| {
            conns.get(&ending.key).is_some_and(|conn| {
                let live = conn.live_since.is_some() || ending.erased && !conn.ended;
                live && !conn.blocked && !conn.half_closed
            })
        };
        self.endings.retain(is_open);
        let late = |ending: &&Ending| calm && mono > ending.since.max(self.calm_since) + 1_000;
        if let Some(Ending { key, since, .. }) = self.endings.iter().find(late) {
            self.fail(format!(
                "conn {key} is open {} ms after its user was logged out",
                mono - since
            ));
        }
    }
}
