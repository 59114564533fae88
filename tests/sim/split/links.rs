//! The links between nodes, and the network that carries them.
//!
//! Owns what the network does to a datagram, a request and an answer: it loses, delays, repeats,
//! reorders and refuses them. A request is real bytes on a connection of its own to the other
//! node's engine; its answer is read from what that engine writes. What an answer means is decided
//! by the links themselves, which are the ones that serve (`greendot::links`); what they want done
//! is carried out here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use greendot::auth::Revoked;
use greendot::engine::{Mail, instance_of};
use greendot::links::{
    Answerer, Asking, Effect, Fault, Notice, Publishing, Reply, Request, Said, Standing,
};
use greendot::metrics::Counter;
use greendot::time::Unix;
use greendot::wire::beat::read_bundle;
use greendot::wire::feed::{FEED_HEADER, Held};
use greendot::wire::record::{Entry, parse_leave, parse_told, parse_told_list, parse_users};

use super::node::{Who, secret_of};
use super::{Parcel, Seen, Split};
use crate::sse::Response;

/// A request that takes longer has failed, in ms (`src/links/http.rs`).
const TIMEOUT_MS: u64 = 2_000;
/// A datagram that takes longer makes its path a rough one, in ms.
const LATE_MS: u64 = 300;
/// A node is made to miss a number no later than this after a state was passed over, in ms:
/// `GAP_MS` of `src/links/announcer.rs`, and requests that fail.
const GAP_LATE_MS: u64 = 20_000;
/// Where datagrams go that do not arrive by UDP, and who was logged out.
const BUNDLES: &str = "/v1/datagrams";
const LOG_OUTS: &str = "/v1/leave";
/// Where a presence node says whose streams end.
const ENDS: &str = "/v1/streams/end";
/// Requests that are kept, to be sent again.
const CAPTURED_MAX: usize = 40;
/// What a node, or something before it, may answer instead of taking a request.
const REFUSALS: [u16; 9] = [400, 401, 413, 414, 421, 422, 431, 500, 503];
/// Those that are about what is in the request.
const OF_CONTENT: [u16; 5] = [400, 413, 414, 422, 431];

/// What a link is made of.
pub(super) enum Core {
    Publishing(Box<Publishing>),
    Asking(Box<Asking>),
}

/// A link from one node to another.
pub(super) struct Link {
    pub(super) peer: usize,
    pub(super) core: Core,
    /// The last request was answered as it should be, by this life of the peer.
    pub(super) met: Option<u64>,
    /// What it last said to the log.
    said: Option<Notice>,
    /// Of a presence node: who was last refused alone, and who is passed over.
    refused: Option<usize>,
    pub(super) passed_over: BTreeSet<usize>,
    /// When (mono) it last passed over somebody: a number is left out for it, within a while.
    passed_over_at: Option<u64>,
    /// Of a real-time node: the life of the peer that it follows, and how often it may yet find
    /// that it missed something.
    followed: Option<u64>,
    misses: u64,
    /// Since when (mono) something has been waiting to be told.
    pub(super) waiting_since: Option<u64>,
    /// By user, how often it was told, and what last: online, since.
    pub(super) delivered: BTreeMap<usize, (u64, bool, Option<u64>)>,
}

/// A request that published something, as it was sent.
#[derive(Clone)]
pub(super) struct Captured {
    from: usize,
    from_life: u64,
    to: usize,
    /// Of the node that it is for.
    life: u64,
    bytes: Arc<[u8]>,
}

/// A request under way.
pub(super) struct Call {
    pub(super) from: usize,
    link: usize,
    /// Of the peer.
    life: u64,
    /// How many are asked about, or who is told to be what.
    asked: usize,
    told: Vec<(usize, bool, Option<u64>)>,
    /// It publishes.
    is_put: bool,
    /// It brings datagrams, or tells of a log-out.
    is_word: bool,
}

impl Link {
    pub(super) fn due(&self) -> u64 {
        let next = match &self.core {
            Core::Publishing(link) => link.next(),
            Core::Asking(link) => link.next(),
        };
        next.micros().div_ceil(1_000)
    }
}

impl Split {
    pub(super) fn links_of(&self, node: usize, shards: usize, seed: u64) -> Vec<Link> {
        let peers = if self.is_presence(node) {
            self.presences..self.presences + self.paths.len()
        } else {
            0..self.presences
        };
        let revoked = Arc::new(Revoked::new(1_000, 86_400_000));
        let link = |peer: usize| Link {
            peer,
            core: match self.is_presence(node) {
                true => Core::Publishing(Box::new(Publishing::new(
                    seed ^ peer as u64,
                    instance_of(&secret_of(node, self.nodes[node].life)),
                    (shards + peer - self.presences) as u16,
                    &revoked,
                ))),
                false => {
                    let link = Asking::new(seed ^ peer as u64, peer, shards, &revoked);
                    Core::Asking(Box::new(link))
                }
            },
            met: None,
            said: None,
            refused: None,
            passed_over: BTreeSet::new(),
            passed_over_at: None,
            followed: None,
            misses: 0,
            waiting_since: None,
            delivered: BTreeMap::new(),
        };
        peers.map(link).collect()
    }

    /// Sends what a node's links have to send; false if that is nothing.
    pub(super) fn drive_links(&mut self, node: usize) -> bool {
        let mut sent = false;
        for at in 0..self.up(node).links.len() {
            let (now, mono) = (self.now(node), self.mono);
            let up = self.up_mut(node);
            let link = &mut up.links[at];
            let peer = link.peer;
            let request = match &mut link.core {
                Core::Publishing(link) => {
                    // What was decided before has been handed over in the same turn.
                    let up_to = up.presence.published_up_to();
                    link.poll_request(&up.presence, up_to, now)
                }
                Core::Asking(link) => link.poll_request(now.mono),
            };
            let waits = self.standing(node, at).queued > 0;
            let link = &mut self.up_mut(node).links[at];
            link.waiting_since = link
                .waiting_since
                .filter(|_| waits)
                .or(waits.then_some(mono));
            if self.standing(node, at).down {
                self.spoiled(node, peer);
            }
            self.check_queue(node, at);
            if let Some(request) = request {
                self.call(node, at, peer, &request);
                sent = true;
            }
        }
        sent
    }

    /// How a link stands.
    pub(super) fn standing(&self, node: usize, at: usize) -> Standing {
        let up = self.up(node);
        match &up.links[at].core {
            Core::Publishing(link) => link.standing(),
            Core::Asking(link) => link.standing(),
        }
    }

    /// Nothing that its node knows is missed by the other, for all that it can say.
    pub(super) fn is_link_settled(&self, node: usize, at: usize) -> bool {
        let standing = self.standing(node, at);
        let caught_up = match &self.up(node).links[at].core {
            Core::Publishing(_) => true,
            Core::Asking(link) => link.is_caught_up() && self.up(node).presence.is_in_step(at),
        };
        standing.queued == 0 && !standing.down && caught_up
    }

    /// A real-time node has missed nothing of a presence node's life.
    pub(super) fn is_in_step(&self, realtime: usize, presence: usize) -> bool {
        let told = &self.up(presence).links[realtime - self.presences];
        let heard = self.nodes[realtime]
            .up
            .as_ref()
            .map(|up| &up.links[presence]);
        told.passed_over_at.is_none()
            && heard.is_some_and(|link| link.followed == Some(self.nodes[presence].life))
            && self.up(realtime).presence.is_in_step(presence)
    }

    fn call(&mut self, from: usize, link: usize, to: usize, request: &Request) {
        let (method, path, body) = (request.method, &request.path, &request.body);
        let is_put = method == "PUT";
        let told = if is_put {
            self.told_by(path, body, request.states)
        } else {
            Vec::new()
        };
        let field = request.field.as_ref();
        let field = field.map_or(String::new(), |(name, value)| {
            format!("{name}: {value}\r\n")
        });
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: sim\r\nAuthorization: Bearer \
             {}\r\n{field}Content-Type: {}\r\nContent-Length: {}\r\n\r\n",
            self.key.service_token(),
            request.media,
            body.len()
        );
        let bytes: Arc<[u8]> = [head.as_bytes(), body].concat().into();
        self.note(&bytes);
        self.parcels_sent += 1;
        let (call, life) = (self.parcels_sent, self.nodes[to].life);
        self.say(|| {
            format!(
                "call {call} from node {from} to node {to}: {path} {}",
                body.escape_ascii()
            )
        });
        if is_put {
            if self.captured.len() >= CAPTURED_MAX {
                self.captured.remove(0);
            }
            self.captured.push(Captured {
                from,
                from_life: self.nodes[from].life,
                to,
                life,
                bytes: Arc::clone(&bytes),
            });
        }
        // Questions name a user more, whose beat is looked for.
        let asked = match path.as_str() {
            "/v1/presence/query" => {
                let users = parse_users(body, request.states + 1).expect("a list of users");
                users.len()
            }
            _ => 0,
        };
        let is_word = *path == BUNDLES || *path == LOG_OUTS;
        if *path == LOG_OUTS {
            for user in self.named(body) {
                self.logs_out(user);
            }
        }
        let made = Call {
            from,
            link,
            life,
            asked,
            told,
            is_put,
            is_word,
        };
        self.calls.insert(call, made);
        self.send(Parcel::Answer { call, answer: None }, TIMEOUT_MS);
        let delay_ms = self.request_delay_ms();
        if delay_ms > LATE_MS || self.is_cut(from, to) {
            self.spoiled(from, to);
        }
        if self.is_rough() {
            self.spoiled(from, to);
            self.saw(Seen::RequestLost);
        } else if let Some(status) = self.refusal() {
            self.saw(Seen::Refused);
            self.spoiled(from, to);
            if [LOG_OUTS, ENDS].contains(&path.as_str()) {
                for user in self.named(body) {
                    self.log_out_passed_over(user);
                }
            }
            let answer = Response {
                status,
                node: None,
                held: None,
                body: serde_json::Value::Null,
            };
            self.send(
                Parcel::Answer {
                    call,
                    answer: Some(answer),
                },
                delay_ms,
            );
        } else {
            let call = Some(call);
            let parcel = Parcel::Request {
                call,
                from,
                to,
                life,
                bytes,
            };
            self.send(parcel, delay_ms);
        }
    }

    /// Whom a request of a link names that tells of a log-out.
    fn named(&self, body: &[u8]) -> Vec<usize> {
        let ask = parse_leave(body, 1_000).expect("a goodbye");
        let users = ask.users.iter();
        let user = |user: &Entry| self.user(user.as_ref().expect("a legal user").as_str());
        users.map(user).collect()
    }

    /// Whose goodbye a request of a link brings.
    fn leaving(&self, bytes: &[u8]) -> Vec<usize> {
        body_to(LOG_OUTS, bytes).map_or_else(Vec::new, |body| self.named(body))
    }

    /// Now and then a request is not let through.
    fn refusal(&mut self) -> Option<u16> {
        if self.network.u8(0..24) > 0 || self.is_undisturbed() {
            return None;
        }
        let status = REFUSALS[self.network.usize(0..REFUSALS.len())];
        Some(status)
    }

    /// Who is told to be what by a request that publishes.
    fn told_by(&self, path: &str, body: &[u8], states: usize) -> Vec<(usize, bool, Option<u64>)> {
        let told = match path {
            "/v1/presence" => parse_told_list(body, states),
            _ => parse_told(body).map(|told| vec![Ok(told)]),
        };
        let told = told.unwrap_or_else(|fault| self.fail(format!("{path} is sent {fault:?}")));
        let known = told.iter().map(|told| {
            let told = told.as_ref().unwrap_or_else(|fault| {
                self.fail(format!("{path} is sent an item that is {fault:?}"))
            });
            (
                self.user(told.user.as_str()),
                told.status.is_online(),
                told.since.map(Unix::ms),
            )
        });
        known.collect()
    }

    /// Now and then a request or an answer gets lost.
    fn is_rough(&mut self) -> bool {
        let drawn = self.network.u8(0..24) == 0;
        drawn && !self.is_undisturbed()
    }

    /// All has healed, or an outage is to be seen by itself: nothing else goes wrong.
    pub(super) fn is_undisturbed(&self) -> bool {
        self.healed || self.mono < self.undisturbed_until
    }

    fn request_delay_ms(&mut self) -> u64 {
        match self.network.u8(0..32) {
            0 if !self.healed => {
                self.saw(Seen::RequestLate);
                self.network.u64(300..4_000)
            }
            1..=9 => self.network.u64(5..100),
            _ => self.network.u64(0..5),
        }
    }

    /// A request that published something reaches its node once more.
    pub(super) fn put_again(&mut self) {
        // More often than not one of a node's life before this one: what that life had still to
        // tell is lost.
        let all = self.network.u8(0..3) == 0;
        let picked = |sent: &&Captured| all || sent.from_life < self.nodes[sent.from].life;
        let sent: Vec<&Captured> = self.captured.iter().filter(picked).collect();
        if sent.is_empty() {
            return;
        }
        let sent = sent[self.network.usize(0..sent.len())].clone();
        let Captured {
            from,
            to,
            life,
            mut bytes,
            ..
        } = sent;
        if self.network.u8(0..4) == 0 {
            // Outside of any feed, as by hand.
            bytes = without_feed(&bytes);
            self.saw(Seen::ByHand);
        }
        let parcel = Parcel::Request {
            call: None,
            from,
            to,
            life,
            bytes,
        };
        let delay_ms = self.network.u64(0..3_000);
        self.send(parcel, delay_ms);
    }

    /// A request reaches its node, if that node still lives. (A connection does not outlive its
    /// node: a new life of it never sees what was sent to the one before.)
    pub(super) fn deliver_request(
        &mut self,
        call: Option<u64>,
        from: usize,
        to: usize,
        life: u64,
        bytes: &Arc<[u8]>,
    ) {
        if self.is_cut(from, to) {
            return;
        }
        let shard = self.network.usize(..);
        if self.nodes[to].life != life || self.nodes[to].up.is_none() {
            if let Some(call) = call {
                self.send(Parcel::Answer { call, answer: None }, 1);
            }
            return;
        }
        let who = match call {
            Some(call) => Who::Call(call),
            None => {
                self.saw(Seen::PutAgain);
                Who::Nobody
            }
        };
        let shard = shard % self.up(to).shards.len();
        let key = self.open(to, shard, who, Arc::clone(bytes));
        let conn = self.conns.get_mut(&key).expect("it is open");
        conn.bundle = bundled(bytes);
        let leaves = self.leaving(bytes);
        self.conns.get_mut(&key).expect("it is open").leaves = leaves;
    }

    /// A node has answered: the answer goes back, unless it gets lost.
    pub(super) fn answer_call(&mut self, key: u32, call: u64, response: Response) {
        self.conns
            .get_mut(&key)
            .expect("kept until it has ended")
            .who = Who::Nobody;
        self.hang_up(key);
        let mut delay_ms = self.request_delay_ms();
        if !self.healed && self.network.u8(0..8) == 0 {
            // Long enough for what is published meanwhile to overtake it.
            delay_ms += self.network.u64(100..1_200);
        }
        let Some(to) = self.calls.get(&call).map(|call| call.from) else {
            return;
        };
        let node = self.conns[&key].node;
        if delay_ms > LATE_MS || self.is_cut(node, to) {
            self.spoiled(to, node);
        }
        if self.is_rough() || self.is_cut(node, to) {
            self.spoiled(to, node);
            self.saw(Seen::AnswerLost);
        } else {
            let answer = Some(response);
            self.send(Parcel::Answer { call, answer }, delay_ms);
        }
    }

    /// The outcome of a call, if it is the first of this call.
    pub(super) fn deliver_answer(&mut self, call: u64, answer: Option<Response>) {
        let cut = |call: &Call| self.is_cut(call.from, self.up(call.from).links[call.link].peer);
        if answer.is_some() && self.calls.get(&call).is_some_and(cut) {
            return;
        }
        let Some(made) = self.calls.remove(&call) else {
            return;
        };
        self.say(|| format!("call {call}: {answer:?}"));
        if self.is_presence(made.from) {
            self.put_outcome(&made, answer);
        } else {
            self.query_outcome(&made, answer);
        }
    }

    fn put_outcome(&mut self, call: &Call, answer: Option<Response>) {
        let mono = self.now(call.from).mono;
        let reply = reply_of(answer);
        let status = reply.as_ref().map_or(0, |said| said.status);
        let link = &mut self.up_mut(call.from).links[call.link];
        let Core::Publishing(core) = &mut link.core else {
            unreachable!("a presence node's links publish")
        };
        let effects = core.handle_reply(&reply, mono);
        self.carry_out(call.from, call.link, effects);
        if !call.is_put {
            let known = [0, 200, 204].contains(&status) || REFUSALS.contains(&status);
            if !matches!(status, 200 | 204) {
                self.spoiled(call.from, call.link + self.presences);
            }
            return match known {
                true => {}
                false => self.fail(format!("what is asked or told is answered {status}")),
            };
        }
        match status {
            204 => {
                self.noticed(call.from, self.up(call.from).links[call.link].peer);
                self.check_delivered(call.from, call.link, &call.told);
            }
            status if OF_CONTENT.contains(&status) => {
                self.saw(Seen::TooLong);
                if let [(user, ..)] = call.told[..] {
                    self.up_mut(call.from).links[call.link].refused = Some(user);
                }
            }
            status if status == 0 || REFUSALS.contains(&status) => {}
            status => self.fail(format!("what was published is answered {status}")),
        }
    }

    fn query_outcome(&mut self, call: &Call, answer: Option<Response>) {
        let (rt, now) = (call.from, self.now(call.from));
        let reply = reply_of(answer);
        let is_word = call.is_word;
        let done = if is_word { 204 } else { 200 };
        let answered = reply.as_ref().is_ok_and(|said| said.status == done);
        let in_it = call.asked > 0 || is_word;
        let refused = |said: &Said| OF_CONTENT.contains(&said.status) && in_it;
        let refused = reply.as_ref().is_ok_and(refused);
        let hashing = Arc::clone(&self.hashing);
        let up = self.up_mut(rt);
        let link = &mut up.links[call.link];
        let Core::Asking(core) = &mut link.core else {
            unreachable!("a real-time node's links ask")
        };
        let looks = core.is_looking();
        let mut effects = core.handle_reply(&reply, &up.presence, &hashing, now);
        effects.extend(core.look(&up.presence, now.mono));
        let is_done =
            |effect: &Effect| matches!(effect, Effect::Count(Counter::RelayRequestsDone, _));
        if answered && !effects.iter().any(is_done) {
            self.fail(format!(
                "{} users are asked about, and the answer is {reply:?}",
                call.asked
            ));
        }
        let was_met = link.met.is_some();
        if looks || is_word && reply.is_ok() {
            // It is there, and does not say who it is; or nothing is concluded of it.
        } else if answered {
            link.met = Some(call.life);
        } else if !refused {
            link.met = None;
        }
        let link_lost = !looks && !answered && !refused && (!is_word || reply.is_err());
        if answered && !is_word && !looks {
            self.noticed(rt, call.link);
        } else if link_lost && was_met {
            self.saw(Seen::Lost);
        }
        self.carry_out(rt, call.link, effects);
        let (link, behind) = (call.link, self.up(rt).presence.is_behind(now.mono));
        self.say(|| format!("node {rt} of node {link}, behind: {behind}"));
    }

    /// What a link wants done.
    fn carry_out(&mut self, node: usize, at: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Count(Counter::RelayStatesUntold, 1) => self.passed_over(node, at),
                Effect::Count(Counter::RelayStatesUnasked, 1) => self.saw(Seen::Unasked),
                Effect::Count(Counter::RelayStatesRefused, states @ 1..) => {
                    self.fail(format!("there was no room for {states} users"))
                }
                Effect::Count(..) => {}
                Effect::Tell(mail) => {
                    if matches!(mail, Mail::Revouch { .. }) {
                        self.saw(Seen::Found);
                    }
                    self.tell(node, &mail);
                }
                Effect::Say(notice) => self.check_notice(node, at, notice),
            }
        }
    }

    /// A node is warned of once for each reason in a row.
    fn check_notice(&mut self, node: usize, at: usize, notice: Notice) {
        self.say(|| format!("node {node} says of link {at}: {notice}"));
        let said = &mut self.up_mut(node).links[at].said;
        let once = notice.is_warning() && notice != Notice::Untold;
        let again = once && said.as_ref() == Some(&notice);
        *said = Some(notice.clone());
        if again {
            self.fail(format!("node {node} says twice of link {at}: {notice}"));
        }
        if notice.is_warning() {
            self.saw(Seen::Warned);
        }
        if notice == Notice::Missed {
            self.check_missed(node, at);
        }
    }

    /// A presence node's link passes over the state that was refused alone.
    fn passed_over(&mut self, node: usize, at: usize) {
        let link = &mut self.up_mut(node).links[at];
        let (peer, user) = (link.peer, link.refused);
        let user = user.unwrap_or_else(|| self.fail("nobody was refused alone".into()));
        let mono = self.mono;
        let link = &mut self.up_mut(node).links[at];
        link.passed_over.insert(user);
        link.passed_over_at = Some(mono);
        self.say(|| format!("node {node} passes over user {user} at node {peer}"));
        self.saw(Seen::PassedOver);
        if let Some(up) = &mut self.nodes[peer].up {
            up.links[node].misses += 1;
        }
    }

    /// A real-time node finds that it missed something only of another life of a presence node, or
    /// where something was passed over.
    fn check_missed(&mut self, node: usize, at: usize) {
        let life = self.nodes[at].life;
        let told = self.nodes[at].up.as_ref();
        let told = told.map(|up| &up.links[node - self.presences]);
        let gap_until = told.and_then(|link| Some(link.passed_over_at? + GAP_LATE_MS));
        let gap_due = gap_until.is_some_and(|until| until > self.mono);
        let link = &mut self.up_mut(node).links[at];
        let another = link.followed.replace(life) != Some(life);
        if another {
            // What was told to a life of this node before is a gap, too; and so is what that one
            // was not told, if it has not been made to miss a number yet.
            link.misses = 1 + u64::from(gap_due);
        } else if link.misses > 0 {
            link.misses -= 1;
            self.saw(Seen::Gap);
        } else {
            self.fail(format!(
                "node {node} finds that it missed something of node {at}, and nothing was"
            ));
        }
    }

    /// A datagram goes on its way, once, twice or not at all.
    pub(super) fn send_datagram(&mut self, from: Option<usize>, to: usize, bytes: Vec<u8>) {
        self.note(&bytes);
        let cut = from.is_some_and(|from| self.is_cut(from, to));
        if cut || (self.network.u8(..) < self.loss && !self.is_undisturbed()) {
            self.saw(Seen::DatagramLost);
            return self.rough(from, to);
        }
        let delay_ms = match self.network.u8(0..64) {
            0 if !self.is_undisturbed() => self.network.u64(LATE_MS + 1..4_000),
            1..=15 => self.network.u64(1..=LATE_MS),
            _ => 0,
        };
        if delay_ms > LATE_MS {
            self.saw(Seen::DatagramLate);
            self.rough(from, to);
        }
        if !self.healed && self.network.u8(0..32) == 0 {
            self.saw(Seen::DatagramTwice);
            let again_ms = self.network.u64(0..5_000);
            let bytes = bytes.clone();
            self.send(Parcel::Datagram { from, to, bytes }, again_ms);
        }
        self.send(Parcel::Datagram { from, to, bytes }, delay_ms);
    }
}

/// A request without the header that numbers it.
fn without_feed(bytes: &[u8]) -> Arc<[u8]> {
    let text = std::str::from_utf8(bytes).expect("a request of a link is text");
    let lines = text.split_inclusive("\r\n");
    let kept = lines.filter(|line| !line.starts_with(FEED_HEADER));
    kept.collect::<String>().into_bytes().into()
}

/// What is behind the head of a request to this path.
fn body_to<'b>(path: &str, bytes: &'b [u8]) -> Option<&'b [u8]> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let (head, body) = bytes.split_at(end.expect("a head has an end") + 4);
    let is_it = head.starts_with(format!("POST {path} ").as_bytes());
    is_it.then_some(body)
}

/// The datagrams that a request brings.
fn bundled(bytes: &[u8]) -> Vec<Vec<u8>> {
    let Some(body) = body_to(BUNDLES, bytes) else {
        return Vec::new();
    };
    let datagrams = read_bundle(body).expect("a bundle");
    datagrams.into_iter().map(<[u8]>::to_vec).collect()
}

/// As the thread that sends requests hands it over.
fn reply_of(answer: Option<Response>) -> Reply {
    let answer = answer.ok_or_else(|| Fault("no answer".into()))?;
    Ok(Said {
        status: answer.status,
        node: answer.node.as_deref().and_then(Answerer::parse),
        held: answer.held.as_deref().and_then(Held::parse),
        life: None,
        body: answer.body.to_string().into_bytes(),
    })
}
