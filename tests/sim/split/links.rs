//! The links between nodes, driven as `src/links/link.rs` drives them, and the network that carries
//! them.
//!
//! Owns what the network does to a datagram, a request and an answer: it loses, delays, repeats and
//! reorders them. A request is real bytes on a connection of its own to the other node's engine;
//! its answer is read from what that engine writes.

use std::collections::BTreeMap;
use std::sync::Arc;

use greendot::engine::{Mail, NODE_HEADER, Why, adopt_answers, doubt_known, instance_of};
use greendot::links::{Announcer, Answerer, Inquiry, Sighting, UNHEARD_MS, sender};
use greendot::time::Unix;
use greendot::wire::record::{parse_told, parse_told_list};

use super::node::{Who, secret_of};
use super::{Parcel, Seen, Split};
use crate::client::post;
use crate::sse::Response;

/// A request that takes longer has failed, in ms (`src/links/http.rs`).
const TIMEOUT_MS: u64 = 2_000;
/// A datagram that takes longer makes its path a rough one, in ms.
const LATE_MS: u64 = 300;
/// Requests that are kept, to be sent again.
const CAPTURED_MAX: usize = 40;

/// What a link is made of.
pub(super) enum Core {
    Announcer(Announcer),
    Inquiry(Inquiry),
}

/// A link from one node to another.
pub(super) struct Link {
    pub(super) peer: usize,
    pub(super) core: Core,
    /// The last request was answered as it should be, by this life of the peer.
    pub(super) met: Option<u64>,
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
}

impl Link {
    pub(super) fn due(&self) -> u64 {
        let next = match &self.core {
            Core::Announcer(announcer) => announcer.next(),
            Core::Inquiry(inquiry) => inquiry.next(),
        };
        next.micros().div_ceil(1_000)
    }

    /// Users who wait in it.
    pub(super) fn len(&self) -> usize {
        match &self.core {
            Core::Announcer(announcer) => announcer.len(),
            Core::Inquiry(inquiry) => inquiry.len(),
        }
    }

    /// Nothing that its node knows is missed by the other, for all that it can say.
    pub(super) fn is_settled(&self) -> bool {
        self.len() == 0
            && match &self.core {
                Core::Announcer(announcer) => !announcer.is_failing(),
                Core::Inquiry(inquiry) => inquiry.is_in_sight() && inquiry.is_caught_up(),
            }
    }
}

impl Split {
    pub(super) fn links_of(&self, node: usize, seed: u64) -> Vec<Link> {
        let peers = if self.is_presence(node) {
            self.presences..self.presences + self.paths.len()
        } else {
            0..self.presences
        };
        let link = |peer: usize| Link {
            peer,
            core: match self.is_presence(node) {
                true => Core::Announcer(Announcer::new(seed ^ peer as u64)),
                false => Core::Inquiry(Inquiry::new(seed ^ peer as u64)),
            },
            met: None,
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
                Core::Announcer(announcer) => announcer
                    .poll_request(&up.presence, now)
                    .map(|put| (put.path, put.body, put.states, put.complete)),
                Core::Inquiry(inquiry) => inquiry.poll_request(now.mono).map(|users| {
                    let body = serde_json::json!({ "users": users }).to_string();
                    (
                        "/v1/presence/query".to_owned(),
                        body.into_bytes(),
                        users.len(),
                        true,
                    )
                }),
            };
            let waits = link.len() > 0;
            link.waiting_since = link
                .waiting_since
                .filter(|_| waits)
                .or(waits.then_some(mono));
            self.check_queue(node, at);
            if let Some((path, body, users, complete)) = request {
                self.call(node, at, peer, &path, &body, users, complete);
                sent = true;
            }
        }
        sent
    }

    #[expect(clippy::too_many_arguments, reason = "a request has these parts")]
    fn call(
        &mut self,
        from: usize,
        link: usize,
        to: usize,
        path: &str,
        body: &[u8],
        users: usize,
        complete: bool,
    ) {
        let text = std::str::from_utf8(body).expect("JSON is UTF-8");
        let told = if self.is_presence(from) {
            self.told_by(path, body, users)
        } else {
            Vec::new()
        };
        let bytes: Arc<[u8]> = match self.is_presence(from) {
            true => format!(
                "PUT {path} HTTP/1.1\r\nHost: sim\r\nAuthorization: Bearer {}\r\n{NODE_HEADER}: \
                 {}\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
                self.key.service_token(),
                sender(
                    instance_of(&secret_of(from, self.nodes[from].life)),
                    complete
                ),
                body.len()
            )
            .into_bytes()
            .into(),
            false => {
                let authorization = format!(
                    "Authorization: Bearer \
                 {}\r\n",
                    self.key.service_token()
                );
                post(path, &authorization, text, None).into()
            }
        };
        self.note(&bytes);
        self.parcels_sent += 1;
        let (call, life) = (self.parcels_sent, self.nodes[to].life);
        self.say(|| format!("call {call} from node {from} to node {to}: {path} {text}"));
        if self.is_presence(from) {
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
        let made = Call {
            from,
            link,
            life,
            asked: users,
            told,
        };
        self.calls.insert(call, made);
        self.send(Parcel::Answer { call, answer: None }, TIMEOUT_MS);
        let delay_ms = self.request_delay_ms();
        if self.is_rough() {
            self.saw(Seen::RequestLost);
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

    /// Who is told to be what by a request that publishes.
    fn told_by(&self, path: &str, body: &[u8], states: usize) -> Vec<(usize, bool, Option<u64>)> {
        let told = match path {
            "/v1/presence" => parse_told_list(body, states),
            _ => parse_told(body).map(|told| vec![told]),
        };
        let told = told.unwrap_or_else(|fault| self.fail(format!("{path} is sent {fault:?}")));
        let known = told.iter().map(|told| {
            (
                self.user(&told.user),
                told.status.is_online(),
                told.since.map(Unix::ms),
            )
        });
        known.collect()
    }

    /// Now and then a request or an answer gets lost.
    fn is_rough(&mut self) -> bool {
        !self.healed && self.network.u8(0..24) == 0
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
            bytes,
            ..
        } = sent;
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
        self.open(to, shard, who, Arc::clone(bytes));
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
        if self.is_rough() || self.is_cut(node, to) {
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
        let status = answer.map(|answer| answer.status);
        let link = &mut self.up_mut(call.from).links[call.link];
        let Core::Announcer(announcer) = &mut link.core else {
            unreachable!("a presence node's links publish")
        };
        let mut given_up = None;
        match status {
            Some(204) => given_up = announcer.handle_done(mono),
            Some(413) => announcer.handle_refusal(true, mono),
            // 503: the node has not seen this life of the other yet.
            None | Some(503) => announcer.handle_failure(mono),
            Some(status) => self.fail(format!("what was published is answered {status}")),
        }
        if let Some(slot) = given_up {
            self.fail(format!(
                "{slot:?} is not told, and nothing is too long alone"
            ));
        }
        if status == Some(413) {
            self.saw(Seen::TooLong);
        }
        if status == Some(204) {
            self.noticed(call.from, self.up(call.from).links[call.link].peer);
            self.check_delivered(call.from, call.link, &call.told);
        }
    }

    fn query_outcome(&mut self, call: &Call, answer: Option<Response>) {
        let (rt, now) = (call.from, self.now(call.from));
        let status = answer.as_ref().map(|answer| answer.status);
        let answers = answer.filter(|answer| answer.status == 200).map(|answer| {
            let node = answer.node.as_deref().and_then(Answerer::parse);
            let body = answer.body.to_string();
            let told = parse_told_list(body.as_bytes(), call.asked).ok();
            match (node, told) {
                (Some(node), Some(told)) if told.len() == call.asked => (node, told),
                _ => self.fail(format!("node {rt} is answered {body} by {:?}", answer.node)),
            }
        });
        if let Some((answerer, _)) = &answers {
            self.up(rt).presence.note_life(call.link, answerer.instance);
            self.up(rt)
                .presence
                .note_clock(call.link, answerer.clock, now.mono);
        }
        if answers.is_some() {
            self.noticed(rt, call.link);
        }
        let mut outdated = Vec::new();
        if let Some((answerer, told)) = answers.as_ref().filter(|(_, told)| !told.is_empty()) {
            let (mut answered, refused) =
                adopt_answers(&self.up(rt).presence, told, answerer.as_of, now);
            outdated = std::mem::take(&mut answered.outdated);
            if refused > 0 {
                self.fail(format!("node {rt} had no room for {refused} users"));
            }
            self.tell(rt, &Mail::Answered(Arc::new(answered)));
        }
        let link = &mut self.up_mut(rt).links[call.link];
        let Core::Inquiry(inquiry) = &mut link.core else {
            unreachable!("a real-time node's links ask")
        };
        let (met, sighting) = match (&answers, status) {
            (Some((answerer, _)), _) => (
                Some(call.life),
                inquiry.handle_answer(answerer.instance, now.mono),
            ),
            (None, Some(413)) => {
                inquiry.handle_too_many(now.mono);
                (link.met, Sighting::Same)
            }
            (None, _) => (None, inquiry.handle_failure(now.mono)),
        };
        let is_outdated = !outdated.is_empty();
        inquiry.ask_again(outdated, now.mono);
        link.met = met;
        if is_outdated {
            self.saw(Seen::Outdated);
        }
        let node = call.link;
        match sighting {
            Sighting::Same => {}
            Sighting::Found | Sighting::Back => {
                self.saw(Seen::Found);
                doubt_known(&self.up(rt).presence, &self.hashing, node);
                let why = if sighting == Sighting::Back {
                    Why::Back
                } else {
                    Why::Found
                };
                let found_at = now.mono;
                self.tell(
                    rt,
                    &Mail::Reask {
                        node,
                        why,
                        found_at,
                    },
                );
            }
            Sighting::Rest => {
                let (why, found_at) = (Why::Rest, now.mono);
                self.tell(
                    rt,
                    &Mail::Reask {
                        node,
                        why,
                        found_at,
                    },
                );
            }
            Sighting::Lost => self.saw(Seen::Lost),
        }
        let caught_up =
            |link: &Link| matches!(&link.core, Core::Inquiry(inquiry) if inquiry.is_caught_up());
        let up = self.up(rt);
        let told = |node: usize| {
            up.presence
                .told_age_ms(node, now.mono)
                .is_some_and(|ms| ms <= UNHEARD_MS)
        };
        up.presence
            .set_behind(!up.links.iter().all(caught_up) || !(0..up.links.len()).all(told));
        self.say(|| {
            format!(
                "node {rt} of node {node}: {sighting:?}, behind: {}",
                up.presence.is_behind()
            )
        });
    }

    /// A datagram goes on its way, once, twice or not at all.
    pub(super) fn send_datagram(&mut self, from: Option<usize>, to: usize, bytes: Vec<u8>) {
        self.note(&bytes);
        let cut = from.is_some_and(|from| self.is_cut(from, to));
        if cut || (!self.healed && self.network.u8(..) < self.loss) {
            self.saw(Seen::DatagramLost);
            return self.rough(from, to);
        }
        let delay_ms = match self.network.u8(0..64) {
            0 if !self.healed => self.network.u64(LATE_MS + 1..4_000),
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
