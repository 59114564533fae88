//! What must hold: at each turn, at each byte offered, at each event read, and whenever nothing is
//! on its way.

use greendot::slot::Slot;
use greendot::wire::User as Id;

use crate::client::{Conn, Want};
use crate::model::{AHEAD_MS, Left};
use crate::sse::{Event, Read, Response, Told, record};
use crate::store;
use crate::world::{Answering, Datagram, Parcel, VOUCH_SLACK_MS, World};

/// A shard may not know for so long that somebody has a slot, in ms: mail is late by 400 at most.
const UNSEEN_MS: u64 = 1_000;
/// Whoever was erased is on the way out for so long at least, in ms.
const LEAVING_MS: u64 = 6_000;

impl World {
    /// A datagram reaches the presence service: what should it make of it?
    pub(crate) fn heard(&mut self, datagram: &Datagram) {
        let stale = self.wall().abs_diff(datagram.sent_at) > self.rules.beat_skew_max_ms;
        if datagram.forged || stale {
            return;
        }
        for user in &datagram.users {
            if datagram.leave {
                self.leave(*user, datagram.sent_at);
            } else {
                self.beat(*user, datagram.sent_at);
            }
        }
    }

    pub(crate) fn beat(&mut self, user: usize, sent_at: u64) {
        let erased_at = self.erased_at.get(&user);
        let before = erased_at.is_some_and(|at| sent_at <= *at && *at <= self.wall() + AHEAD_MS);
        if before && !self.users[user].known {
            self.say(|| format!("beat of {user} sent at {sent_at}, before the erasure"));
            return;
        }
        let known = self.users.iter().filter(|user| user.known).count();
        let room = (store::users_max() - store::template_slots()) as usize;
        if !self.users[user].known && known >= store::known_users() + room && !self.forgetful {
            return;
        }
        self.users[user].known = true;
        let wall = self.wall();
        self.doubt_partings(user);
        self.users[user].beat(sent_at, self.mono, wall, &self.rules);
        if self.users[user].left == Left::No {
            self.take_back(user);
        }
        self.doubt_partings(user);
        self.doubt_activity(user);
        self.say(|| {
            format!(
                "beat of {user} sent at {sent_at}, now {wall}: {:?}",
                self.users[user]
            )
        });
    }

    pub(crate) fn leave(&mut self, user: usize, sent_at: u64) {
        let wall = self.wall();
        match self.is_held(user) {
            // It is another device's.
            Some(true) => {}
            Some(false) => self.users[user].leave(sent_at, self.mono, wall),
            None => self.users[user].leave_perhaps(sent_at, self.mono, wall),
        }
        self.doubt_activity(user);
        self.say(|| {
            format!(
                "goodbye of {user} sent at {sent_at}, now {wall}: {:?}",
                self.users[user]
            )
        });
    }

    /// Whether a stream of the user's is open; None where the server may have ended it already, or
    /// not yet.
    fn is_held(&self, user: usize) -> Option<bool> {
        self.is_held_but(user, None)
    }

    /// The same, one stream aside.
    pub(crate) fn is_held_but(&self, user: usize, but: Option<u32>) -> Option<bool> {
        let streams = self.conns.iter().filter(|(key, _)| Some(**key) != but);
        let live =
            |conn: &&Conn| conn.user == Some(user) && (conn.live_since.is_some() || conn.opening);
        let mut live = streams.map(|(_, conn)| conn).filter(live).peekable();
        if live.peek().is_none() {
            return Some(false);
        }
        let ending = |conn: &Conn| {
            let told = conn.end_told || conn.reset || conn.ended || conn.leaving;
            // One that beats for itself holds until it has let three turns pass: where the table
            // grows these take little more than an interval.
            let silent_ms = self.mono - conn.heard_at.min(self.mono);
            let silent = conn.by_holder && silent_ms > self.rules.beat_interval_ms;
            let uncertain = silent || conn.vanished_at.is_some();
            told || uncertain || conn.opening || conn.blocked || self.drain
        };
        live.any(|conn| !ending(conn)).then_some(true)
    }

    /// A user has been erased: nobody was ever here by that name, and nobody is.
    pub(crate) fn forgotten(&mut self, user: usize) {
        self.say(|| format!("user {user} is erased"));
        self.users[user] = crate::model::User::new(false);
        let slot = self.slots[user].take();
        self.left_slots.extend(slot.map(Slot::index));
        self.published[user].push((self.mono, false, None));
        for sub in &mut self.subs {
            sub.floors.remove(&user);
        }
        // Its streams end as soon as their shards hear of it.
        let streams = self.conns.values_mut();
        for conn in streams.filter(|conn| conn.user == Some(user)) {
            (conn.live_since, conn.opening) = (None, false);
        }
        self.answers.retain(|answer| answer.user != user);
        self.erased.insert(user);
        self.erased_at.insert(user, self.wall());
        self.leaving_until = self.mono + LEAVING_MS;
    }

    /// While the clock has not caught up with where it has been, a stamp may be ahead of it by less
    /// than a second, and stay.
    fn doubt_activity(&mut self, user: usize) {
        if self.wall() < self.wall_max {
            self.users[user].active_exactly = None;
        }
    }

    /// A shard's turn has vouched for some of its streams' publishers.
    pub(crate) fn note_vouching(&mut self, at: usize) {
        let streams: Vec<(u32, usize)> = self.shards[at]
            .conns
            .values()
            .filter_map(|key| {
                let conn = &self.conns[key];
                conn.user
                    .filter(|_| !conn.by_holder || conn.opening)
                    .map(|user| (*key, user))
            })
            .collect();
        for (key, user) in streams {
            self.note_vouched(at, key, user);
        }
    }

    /// A shard has read its mail: streams may have begun that waited for it.
    pub(crate) fn note_openings(&mut self, at: usize) {
        let keys: Vec<u32> = self.shards[at].conns.values().copied().collect();
        for key in keys {
            let conn = &self.conns[&key];
            if let Some(user) = conn.user.filter(|_| conn.opening) {
                self.note_vouched(at, key, user);
            }
        }
    }

    /// A stream's holder who has answered a ping may have been heard of by now.
    pub(crate) fn note_answers(&mut self) {
        for at in 0..self.answers.len() {
            let user = self.answers[at].user;
            let wall = self.wall();
            self.users[user].vouched(None, self.mono, wall);
        }
    }

    /// What a holder's answer to a ping came to.
    fn answered_ping(&mut self, key: u32, status: u16) {
        let Some(at) = self.answers.iter().position(|answer| answer.key == key) else {
            return;
        };
        let Answering {
            user,
            sent_at,
            stream,
            ..
        } = self.answers[at];
        match status {
            204 => {
                self.answers.remove(at);
                let wall = self.wall();
                self.users[user].vouched(Some(sent_at), self.mono, wall);
                if let Some(conn) = self.conns.get_mut(&stream) {
                    conn.heard_at = conn.heard_at.max(sent_at);
                }
            }
            404 => drop(self.answers.remove(at)),
            // It may count yet.
            _ => self.answers[at].open = false,
        }
    }

    /// How long a stream may vouch for its holder at most whose peer has vanished.
    fn vouches_until(&self, vanished_at: u64) -> u64 {
        let shown_ms = self.settings.keep_alive_ms + self.settings.ack_max_ms;
        // After a stall of ours what was written is on its way for a while.
        vanished_at.max(self.calm_since) + shown_ms + 1_500 + VOUCH_SLACK_MS
    }

    pub(crate) fn note_vouched(&mut self, at: usize, key: u32, user: usize) {
        let conn = &self.conns[&key];
        let wall = self.wall();
        let Some(since) = conn.live_since else {
            if conn.opening {
                self.users[user].vouched(None, self.mono, wall);
            }
            return;
        };
        if let Some(vanished_at) = self.conns[&key].vanished_at {
            if self.mono <= self.vouches_until(vanished_at) {
                self.users[user].vouched(None, self.mono, wall);
            }
            return;
        }
        let late_ms = self.rules.beat_interval_ms + VOUCH_SLACK_MS;
        let from = self.mono.saturating_sub(late_ms);
        let driven = since.max(self.shards[at].driven_since);
        let in_time = self.mono - self.shards[at].last_turn <= VOUCH_SLACK_MS / 2;
        let ends = conn.leaving;
        let certain = (!ends && from >= driven && in_time && !self.drain).then_some(from);
        self.users[user].vouched(certain, self.mono, wall);
        self.doubt_partings(user);
    }

    pub(crate) fn slot(&mut self, user: usize) -> Option<Slot> {
        if self.slots[user].is_none() {
            let id = Id::parse(self.names[user].as_bytes()).expect("a legal name");
            self.slots[user] = self.presence().lookup(id);
            let slot = self.slots[user].map(Slot::index);
            let again = slot.is_some_and(|slot| self.left_slots.remove(&slot));
            self.slots_used_again += u64::from(again);
            self.used_again |= again;
        }
        self.slots[user]
    }

    /// After a power cut each user has the slot that users.log says, and nothing in it is somebody
    /// else's. Who is `unstamped` or `new` has cells that were not written back since they have the
    /// slot: there is no stamp, or nothing published but by this start.
    pub(crate) fn check_slots(&mut self, slots: &[Option<Slot>], unstamped: &[bool], new: &[bool]) {
        let wall = self.wall();
        for user in 0..self.names.len() {
            let (slot, state) = (self.slot(user), self.state(user));
            let stamp = state.last_active.filter(|_| unstamped[user]);
            let since = state.since.filter(|since| new[user] && *since < wall);
            let own =
                slot.is_none_or(|slot| self.presence().user(slot).as_str() == self.names[user]);
            if slot != slots[user] || !own || stamp.or(since).is_some() {
                self.fail(format!(
                    "user {user} has {slot:?} and is {state:?}; users.log says {:?}",
                    slots[user]
                ));
            }
        }
    }

    /// What is published of a user: online, and since when by its own account.
    pub(crate) fn state(&mut self, user: usize) -> Told {
        let (slot, now) = (self.slot(user), self.now());
        slot.map_or(
            Told {
                online: false,
                since: None,
                last_active: None,
            },
            |slot| {
                let state = self.presence().state(slot, now);
                Told {
                    online: state.status.is_online(),
                    since: state.since.map(|since| since.ms()),
                    last_active: state.last_active.map(|at| at.ms()),
                }
            },
        )
    }

    /// Looks at what is published and holds each change against the model.
    pub(crate) fn observe(&mut self) {
        for user in 0..self.names.len() {
            let state = self.state(user);
            if state.online {
                self.users[user].online_due = None;
            } else {
                self.users[user].leave_due = None;
            }
            let (_, online, since) = *self.published[user].last().expect("begins with one");
            if (online, since) == (state.online, state.since) {
                continue;
            }
            self.published[user].push((self.mono, state.online, state.since));
            self.note(format!("{user} {} {:?}", state.online, state.since).as_bytes());
            self.say(|| format!("published: {user} {state:?}"));
            if state.since <= since {
                self.fail(format!(
                    "user {user}: since went from {since:?} to {:?}",
                    state.since
                ));
            }
            if !state.online {
                self.doubt_partings(user);
            }
            let model = &self.users[user];
            let verdict = match (online, state.online) {
                (false, true) => {
                    model.may_go_online(self.mono, self.clock_went_back_at, &self.rules)
                }
                (true, false) => model.may_go_offline(self.mono, self.hold_until, &self.rules),
                _ => Ok(()),
            };
            if let Err(why) = verdict {
                self.fail(format!("user {user} was published {why}: {model:?}"));
            }
            if !state.online {
                self.check_faithful(user);
                self.users[user].offline_since = self.mono;
            }
        }
    }

    /// Our silence is not theirs: whoever beats all the time is not found silent because a shard
    /// did not read its socket. (The usual settings of these runs are too impatient for that: the
    /// others notice a stalled shard after two seconds.)
    fn check_faithful(&self, user: usize) {
        let beats = self
            .devices
            .iter()
            .any(|device| device.faithful && device.user == user);
        let settled = self.mono > self.jolted_at + 12_000;
        if self.patient && beats && settled && self.users[user].left == Left::No {
            self.fail(format!(
                "user {user} was published offline and had never been silent: {:?}",
                self.users[user]
            ));
        }
    }

    /// Takes what is published as it is, without asking how it came about.
    /// A start took everybody for gone because nobody had been heard for so long: no beat that is
    /// known to the millisecond may be newer than that.
    pub(crate) fn check_outage(&mut self, outage_ms: u64) {
        let (wall, grace_ms) = (self.wall(), self.settings.restart_grace_ms);
        self.say(|| format!("taken for an outage of {outage_ms} ms"));
        for (user, model) in self.users.iter().enumerate() {
            let heard = model.active_exactly.filter(|at| *at <= wall);
            if heard.is_some_and(|at| wall - at <= grace_ms) || outage_ms <= grace_ms {
                self.fail(format!(
                    "no outage of {outage_ms} ms: user {user} is {model:?}"
                ));
            }
        }
        self.accept_published();
        for user in &mut self.users {
            user.offline_since = self.mono;
        }
    }

    pub(crate) fn accept_published(&mut self) {
        for user in 0..self.names.len() {
            let state = self.state(user);
            self.published[user].push((self.mono, state.online, state.since));
        }
    }

    /// What an engine has just encoded must be true now, and must concern somebody whom the stream
    /// watches.
    pub(crate) fn check_offer(&mut self, key: u32, bytes: &[u8]) {
        let conn = self.conns.get_mut(&key).expect("open");
        let known = (conn.offered_bytes - conn.taken_bytes) as usize;
        if bytes.len() < known {
            self.fail(format!("conn {key} is offered less than before"));
        }
        conn.offered_bytes = conn.taken_bytes + bytes.len() as u64;
        let Some(sub) = conn.sub else { return };
        let mut reads = Vec::new();
        if let Err(why) = conn.offers.feed(&bytes[known..], &mut reads) {
            self.fail(format!("conn {key}: {why}"));
        }
        for read in reads {
            let Read::Event(event) = read else { continue };
            if event.name == "hello" {
                self.opened(key);
            }
            if let Some(id) = event.id {
                let conn = self.conns.get_mut(&key).expect("open");
                let last = conn.last_id.replace((id, self.mono));
                if last.is_some_and(|(last, at)| id < last && at > self.clock_went_back_at) {
                    self.fail(format!("conn {key}: id {id} after {last:?}"));
                }
            }
            for (user, told) in self.told(&event) {
                let subscriber = &self.subs[sub];
                if !subscriber.watched.contains(&user) && !subscriber.perhaps.contains(&user) {
                    self.fail(format!(
                        "conn {key} is told of user {user}, whom it does not watch"
                    ));
                }
                let state = self.state(user);
                // A watch by name does not see the slot before the mail that says so.
                let never = !told.online && told.since.is_none();
                let unseen = never && self.mono <= self.came_at(user) + UNSEEN_MS;
                if (told.online, told.since) != (state.online, state.since) && !unseen {
                    self.fail(format!(
                        "conn {key} is told {told:?} of user {user}, who is {state:?}"
                    ));
                }
            }
        }
    }

    /// When (mono) a user was first published who had no slot before, or when all was calm again
    /// since.
    fn came_at(&self, user: usize) -> u64 {
        let states = self.published[user].iter().rev();
        let own = states.take_while(|(.., since)| since.is_some());
        own.last().map_or(0, |(at, ..)| *at).max(self.calm_since)
    }

    /// The records of an event that has any.
    fn told(&self, event: &Event) -> Vec<(usize, Told)> {
        let records = match event.name.as_str() {
            "presence" => vec![&event.data],
            "snapshot" => event.data["presence"]
                .as_array()
                .into_iter()
                .flatten()
                .collect(),
            _ => Vec::new(),
        };
        records
            .into_iter()
            .map(|value| self.known_record(value))
            .collect()
    }

    fn known_record(&self, value: &serde_json::Value) -> (usize, Told) {
        let (name, told) = record(value).unwrap_or_else(|why| self.fail(why));
        match self.names.iter().position(|other| *other == name) {
            Some(user) => (user, told),
            None => self.fail(format!("a record of {name:?}, whom nobody knows")),
        }
    }

    /// The client reads what its socket has.
    pub(crate) fn client_reads(&mut self, key: u32) {
        let conn = self.conns.get_mut(&key).expect("kept until read");
        let bytes = std::mem::take(&mut conn.unread);
        let mut reads = std::mem::take(&mut self.reads);
        if let Err(why) = conn.reader.feed(&bytes, &mut reads) {
            self.fail(format!("conn {key}: {why}"));
        }
        for read in reads.drain(..) {
            match read {
                Read::Response(response) => self.answered(key, response),
                Read::StreamHead => {
                    let conn = self.conns.get_mut(&key).expect("kept until read");
                    // One that has no room says so on a stream.
                    let want = conn.wants.pop_front();
                    if !matches!(want, Some(Want::Stream | Want::Refusal | Want::SentAway)) {
                        self.fail(format!("conn {key} became a stream without asking"));
                    }
                }
                Read::Event(event) => self.event(key, &event),
            }
        }
        self.reads = reads;
    }

    fn answered(&mut self, key: u32, response: Response) {
        let conn = self.conns.get_mut(&key).expect("kept until read");
        let Some(want) = conn.wants.pop_front() else {
            // A server that has waited too long for a request says so unasked, and so does one that
            // has no descriptor for who says nothing.
            let refused = !conn.accepted && response.status == 503;
            if response.status != 408 && !refused {
                self.fail(format!(
                    "conn {key} is answered {response:?} and has asked nothing"
                ));
            }
            return;
        };
        let status = response.status;
        let refused = status == 503 || status == 408;
        let right = match want {
            Want::Query { users, asked_at } => {
                if status == 200 {
                    self.check_query(&users, asked_at, &response);
                }
                status == 200 || refused
            }
            Want::Beat(_) | Want::Leave(_) => matches!(status, 200 | 204) || refused,
            Want::Farewell { user, after_ms } => {
                self.say(|| format!("goodbye of {user}, {after_ms} ms later: {response:?}"));
                self.parted(key, status == 204);
                matches!(status, 204 | 404) || refused
            }
            Want::LogOut { streams } => {
                self.parted(key, status == 204);
                if status == 204 {
                    self.must_end(&streams, false);
                }
                status == 204 || refused
            }
            Want::SentAway => status == 204 || refused,
            Want::Forget { streams, .. } => {
                if status == 204 {
                    self.must_end(&streams, true);
                }
                status == 204 || refused
            }
            Want::Edit { sub } => {
                self.edited(sub, key, &response);
                matches!(status, 200 | 404 | 413) || refused
            }
            Want::Stream => (400..=503).contains(&status),
            Want::Answer => {
                self.answered_ping(key, status);
                // Nobody needs it any more, and whoever asks too much is refused.
                if let Some(conn) = self.conns.get_mut(&key) {
                    conn.half_closed = true;
                }
                matches!(status, 204 | 404) || refused
            }
            Want::Refusal => status >= 400,
            Want::Anything => true,
        };
        if !right {
            self.fail(format!("conn {key} is answered {response:?}"));
        }
    }

    /// Each state told was published at some moment between the question and now.
    fn check_query(&mut self, users: &[usize], asked_at: u64, response: &Response) {
        let body = &response.body;
        let one = [body.clone()];
        let records = body["presence"].as_array().map_or(&one[..], |list| list);
        if records.len() != users.len() {
            self.fail(format!(
                "{} records for {} users",
                records.len(),
                users.len()
            ));
        }
        for (value, asked) in records.iter().zip(users) {
            let (user, told) = self.known_record(value);
            let states = &self.published[user];
            let held = states.iter().enumerate().any(|(at, (_, online, since))| {
                let until = states.get(at + 1).map_or(u64::MAX, |(next, ..)| *next);
                (*online, *since) == (told.online, told.since) && until >= asked_at
            });
            // Requests of one write may change a state and change it back between two looks.
            let between = states.windows(2).any(|pair| {
                let ((.., before), (at, _, after)) = (pair[0], pair[1]);
                before < told.since && told.since < after && at >= asked_at
            });
            if user != *asked || !(held || between) {
                self.fail(format!(
                    "asked for user {asked} at {asked_at}: {told:?} of user {user}, who was \
                     {states:?}"
                ));
            }
        }
    }

    /// The outcome of an edit of a watch list.
    fn edited(&mut self, sub: usize, key: u32, response: &Response) {
        let subscriber = &mut self.subs[sub];
        let Some((add, remove, _)) = subscriber.edit.take_if(|(.., asker)| *asker == key) else {
            return;
        };
        self.say(|| format!("sub {sub} +{add:?} -{remove:?}: {response:?}"));
        let subscriber = &mut self.subs[sub];
        let nothing_changed = matches!(response.status, 404 | 413)
            || response.body["detail"].as_str().is_some_and(|detail| {
                detail.ends_with("nothing was changed") || detail.ends_with("try again later")
            });
        if response.status == 200 {
            for user in remove.iter().filter(|user| !add.contains(user)) {
                subscriber.perhaps.remove(user);
                subscriber.views.remove(user);
            }
            for user in add {
                subscriber.perhaps.remove(&user);
                subscriber.watched.insert(user);
            }
            let watching = response.body["watching"].as_u64();
            let expected = subscriber.watched.len() as u64;
            if subscriber.perhaps.is_empty() && watching != Some(expected) {
                self.fail(format!(
                    "sub {sub} watches {expected} users; the server says {watching:?}"
                ));
            }
        } else if nothing_changed {
            for user in &add {
                subscriber.perhaps.remove(user);
            }
            for user in remove {
                subscriber.perhaps.remove(&user);
                subscriber.watched.insert(user);
            }
        }
    }

    fn event(&mut self, key: u32, event: &Event) {
        let Some(sub) = self.conns[&key].sub else {
            // A stream that was never to be: it would have been refused for its list, had there
            // been room to read it.
            if event.name == "overloaded" {
                return;
            }
            self.fail(format!("conn {key} is no subscriber's and reads {event:?}"));
        };
        if self.subs[sub].conn != Some(key) {
            return;
        }
        self.say(|| format!("sub {sub} reads {event:?}"));
        let subscriber = &mut self.subs[sub];
        match (event.name.as_str(), &subscriber.stream) {
            ("hello", None) => {
                subscriber.stream = event.data["stream"].as_str().map(str::to_owned);
                let list = (subscriber.watched.len() + subscriber.perhaps.len()) as u64;
                if event.data["watching"] != list {
                    self.fail(format!("sub {sub} asked for {list} watches: {event:?}"));
                }
                return;
            }
            ("overloaded", None) | ("goodbye", Some(_)) => return,
            ("bye", Some(_)) => {
                // It logs in anew.
                subscriber.last_id = None;
                return;
            }
            ("ping", Some(_)) => {
                self.conns.get_mut(&key).expect("it is read").pinged_at = self.mono;
                return self.answer_ping(sub);
            }
            ("snapshot", Some(_)) => {}
            ("presence", Some(_)) if subscriber.snapshot_seen => {}
            _ => self.fail(format!("sub {sub} reads out of turn: {event:?}")),
        }
        subscriber.snapshot_seen = true;
        if let Some(id) = event.id {
            subscriber.last_id = Some(id);
        }
        for (user, told) in self.told(event) {
            let subscriber = &mut self.subs[sub];
            if let Some(since) = told.since {
                let floor = subscriber.floors.get(&user).copied();
                let erased = self.erased.contains(&user) && self.clock_went_back_at > 0;
                if floor.filter(|_| !erased).is_some_and(|(last, online)| {
                    since < last || (since == last && online != told.online)
                }) {
                    self.fail(format!(
                        "sub {sub} is told {told:?} of user {user} after {floor:?}"
                    ));
                }
                subscriber.floors.insert(user, (since, told.online));
            }
            subscriber.views.insert(user, told);
        }
    }

    /// Who reads slowly is left to the engine: the kernel's own timeout would end it however
    /// steadily it reads.
    pub(crate) fn check_watched_over(&self, key: u32) {
        let conn = &self.conns[&key];
        if conn.blocked && conn.watched_over {
            self.fail(format!("conn {key} is full, and the kernel may end it"));
        }
    }

    /// The server's sending half is shut: the client reads the rest and goes.
    pub(crate) fn ended(&mut self, key: u32) {
        let conn = self
            .conns
            .get_mut(&key)
            .expect("kept until both ends are gone");
        if !conn.ended {
            conn.ended = true;
            if !conn.reset {
                self.client_reads(key);
            }
            let conn = &self.conns[&key];
            if conn.listens && !conn.reset && !self.drain && !conn.wants.is_empty() {
                self.fail(format!(
                    "conn {key} said no more, and is not answered: {:?}",
                    conn.wants
                ));
            }
            let conn = self
                .conns
                .get_mut(&key)
                .expect("kept until both ends are gone");
            conn.half_closed = true;
            self.client_gone(key);
        }
        if self.conns[&key].id.is_none() {
            self.conns.remove(&key);
        }
    }

    /// The client has no use for this conn any more: whoever waited on it goes on without.
    pub(crate) fn client_gone(&mut self, key: u32) {
        let retry_at = self.mono + self.workload.u64(0..400);
        self.parted(key, false);
        for sub in &mut self.subs {
            if sub.conn == Some(key) {
                sub.disconnected(retry_at);
            }
            // Its outcome is not known now.
            sub.edit.take_if(|(.., asker)| *asker == key);
        }
        for answer in self.answers.iter_mut().filter(|answer| answer.key == key) {
            answer.open = false;
        }
    }

    /// Nothing is on its way between the shards, and none has work left.
    fn is_quiet(&self) -> bool {
        let idle = |shard: &crate::world::Shard| {
            shard.wake > self.mono && shard.stalled_until <= self.mono
        };
        self.shards.iter().all(idle)
            && !self
                .parcels
                .values()
                .any(|parcel| matches!(parcel, Parcel::Mail(..)))
    }

    /// Where nothing is on its way, each reader that keeps up knows what is published, and what is
    /// published is in time.
    pub(crate) fn check_views(&mut self) {
        if self.mono >= self.calm_since
            && self
                .shards
                .iter()
                .all(|shard| shard.stalled_until <= self.mono)
        {
            if self.mono >= self.calm_since + 1_000 {
                let wall = self.wall();
                self.users.iter_mut().for_each(|user| user.settled(wall));
            }
            let caught_up = self.wall() > self.wall_max + self.rules.offline_after_ms + 2_000;
            let ahead_ms = if caught_up { 0 } else { 1_000 };
            for (user, model) in self.users.iter().enumerate() {
                let (_, online, _) = *self.published[user].last().expect("begins with one");
                let since = (self.calm_since, self.hold_until);
                if let Err(why) = model.is_in_time(online, self.mono, since, ahead_ms, &self.rules)
                {
                    self.fail(format!("user {user} is still published {why}: {model:?}"));
                }
            }
        }
        if !self.is_quiet() {
            return;
        }
        // What may have been on its way has come, or never will.
        self.answers.retain(|answer| answer.open);
        for (key, conn) in &self.conns {
            if conn.is_calm() && !conn.reset && conn.arrived > 0 {
                self.fail(format!("conn {key} has bytes that nobody reads"));
            }
            let asked_at = conn.pinged_at.max(self.shards[conn.shard].driven_since);
            let late_ms = self.rules.beat_interval_ms + 2 * VOUCH_SLACK_MS;
            let holds = conn.by_holder && conn.live_since.is_some() && conn.is_calm();
            if holds && !self.drain && self.mono > asked_at.max(self.calm_since) + late_ms {
                self.fail(format!("the holder of conn {key} is not asked: {asked_at}"));
            }
        }
        for sub in 0..self.subs.len() {
            let subscriber = &self.subs[sub];
            let Some(conn) = subscriber.conn.and_then(|key| self.conns.get(&key)) else {
                continue;
            };
            if conn.live_since.is_none() || !conn.is_calm() || !subscriber.snapshot_seen {
                continue;
            }
            for user in subscriber.watched.clone() {
                let state = self.state(user);
                let view = self.subs[sub].views.get(&user);
                if view.map(|view| (view.online, view.since)) != Some((state.online, state.since)) {
                    self.fail(format!(
                        "sub {sub} believes {view:?} of user {user}, who is {state:?}"
                    ));
                }
            }
        }
    }

    /// At the end: online is who has a stream, last active is when the model says.
    pub(crate) fn check_truth(&mut self) {
        if !self.is_quiet() {
            self.fail("nothing happens any more, and yet something is on its way".into());
        }
        for user in 0..self.names.len() {
            let streams = self
                .conns
                .values()
                .filter(|conn| conn.live_since.is_some() && conn.user == Some(user));
            let (online, state) = (streams.count() > 0, self.state(user));
            // One whose life has just ended may not be back yet.
            let silent_since = self.users[user].beat_hi.unwrap_or(0);
            let late_ms = self.rules.offline_after_ms + self.rules.sweep_interval_ms;
            let renewed = state.online && !online && self.mono <= silent_since + late_ms;
            if state.online != online && !renewed {
                self.fail(format!(
                    "in the end user {user} is {state:?}: {:?}",
                    self.users[user]
                ));
            }
            let active = self.users[user].active_exactly;
            if active.is_some() && !is_told_active(active, &state) {
                self.fail(format!(
                    "in the end user {user} was last active at {active:?}: {state:?}"
                ));
            }
        }
    }
}

/// Whether a state may be told of who was last active then: of whoever is offline it says nothing
/// later than `since`, and a goodbye counts when it is published.
pub(crate) fn is_told_active(active: Option<u64>, told: &Told) -> bool {
    let goodbye = !told.online && told.last_active == told.since;
    goodbye || told.last_active == active
}
