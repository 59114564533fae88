//! What clients and devices do, what goes wrong, and the last act in which all heals.

use std::collections::{BTreeMap, BTreeSet};

use greendot::time::Unix;
use greendot::wire::User as Id;
use greendot::wire::beat::Writer;

use super::node::Who;
use super::{CLIENTS, Parcel, Seen, Split, WALL_OFF_MS_MAX};
use crate::client::{json_list, post};
use crate::sse::Told;

/// One in so many steps has a fault.
const FAULT_ONE_IN: u32 = 14;
/// So long after an outage that is to be seen by itself everybody has been told, in ms.
const UNDISTURBED_MS: u64 = 14_000;
/// Of the runs in which beats are rare.
pub(super) const LONG_SILENCE_MS: u64 = 30_000;
/// Devices that beat on their own.
const DEVICES: usize = 3;
/// Most whom a stream watches from its beginning.
const WATCHED_MAX: usize = 8;

/// Somebody who holds a stream most of the time.
pub(super) struct Client {
    /// Whom its streams vouch for.
    pub(super) user: Option<usize>,
    pub(super) watched: BTreeSet<usize>,
    /// What an edit under way adds, and the connection that it waits on.
    pub(super) edit: Option<(usize, u32)>,
    pub(super) conn: Option<u32>,
    /// The real-time node of the last stream.
    node: Option<usize>,
    /// The stream's id, once it has said hello.
    pub(super) stream: Option<String>,
    pub(super) snapshot_seen: bool,
    /// Its node holds the stream since then (mono).
    pub(super) live_since: Option<u64>,
    /// What it believes; None: unknown.
    pub(super) views: BTreeMap<usize, Option<Told>>,
    /// What the stream has told that is older than what it believes from a former one.
    pub(super) held: BTreeMap<usize, Told>,
    /// Whose state the stream has told, and the last `since` of each.
    pub(super) known: BTreeMap<usize, Option<u64>>,
    pub(super) last_id: Option<u64>,
    /// The last event had no id.
    pub(super) told_without_id: bool,
    /// The list is longer than it was when `last_id` was told: that id says nothing of whom an edit
    /// has added.
    pub(super) outgrown: bool,
    /// It has said goodbye to its stream, which ends for it.
    pub(super) leaving: bool,
    /// When it connects again (mono), while it has no stream.
    retry_at: u64,
}

/// Something that beats on its own for its user.
pub(super) struct Device {
    user: usize,
    /// When next (mono).
    pub(super) due: u64,
}

impl Client {
    pub(super) fn due(&self) -> Option<u64> {
        self.conn.is_none().then_some(self.retry_at)
    }
}

impl Split {
    pub(super) fn populate(&mut self) {
        for index in 0..CLIENTS {
            let count = self.workload.usize(1..=WATCHED_MAX);
            let client = Client {
                user: (index % 4 != 3).then(|| self.workload.usize(0..self.names.len())),
                watched: self
                    .workload
                    .choose_multiple(0..self.names.len(), count)
                    .into_iter()
                    .collect(),
                edit: None,
                conn: None,
                node: None,
                stream: None,
                snapshot_seen: false,
                live_since: None,
                views: BTreeMap::new(),
                held: BTreeMap::new(),
                known: BTreeMap::new(),
                last_id: None,
                told_without_id: false,
                outgrown: false,
                leaving: false,
                retry_at: self.mono + self.workload.u64(0..2_000),
            };
            self.clients.push(client);
        }
        for _ in 0..DEVICES {
            self.devices.push(Device {
                user: self.workload.usize(0..self.names.len()),
                due: self.mono + self.workload.u64(0..5_000),
            });
        }
    }

    /// One step: an action, now and then a fault, and some time.
    pub(super) fn next_step(&mut self) {
        if self.forgetful {
            match self.workload.u8(0..16) {
                0 | 1 => self.erase(),
                2 => self.write_back(),
                _ => {}
            }
        }
        match self.workload.u8(0..16) {
            0 | 1 => self.end_stream(),
            2 => self.edit(),
            3 => self.say_goodbye(),
            9 if self.forgetful => self.say_goodbye_over_http(),
            10 if self.forgetful && !self.is_undisturbed() => self.leave_stream(),
            4 => self.move_device(),
            5..=8 => self.put_again(),
            _ => {}
        }
        if self.faults.u32(0..FAULT_ONE_IN) == 0 && self.mono >= self.undisturbed_until {
            match self.faults.u8(0..12) {
                0..=3 => self.partition(),
                4 | 5 => self.crash(true),
                6 | 7 => self.crash(false),
                8 | 9 => self.stall(),
                _ => self.step_clock(),
            }
        }
        let pause_ms = match self.workload.u8(0..10) {
            0 | 1 => 0,
            2 | 3 => self.workload.u64(1..50),
            4..=8 => self.workload.u64(50..400),
            _ => self.workload.u64(400..1_500),
        };
        self.run_until(self.mono + pause_ms);
    }

    /// Devices beat and clients connect when it is their time.
    pub(super) fn fire_clients(&mut self) {
        for at in 0..self.devices.len() {
            if self.devices[at].due <= self.mono {
                self.devices[at].due = self.mono + self.rules.beat_interval_ms;
                self.send_word(self.devices[at].user, false);
            }
        }
        for client in 0..self.clients.len() {
            if self.clients[client]
                .due()
                .is_some_and(|due| due <= self.mono)
            {
                self.connect(client);
            }
        }
    }

    /// A device's own datagram to the presence node of its user.
    fn send_word(&mut self, user: usize, leave: bool) {
        let to = self.owners[user];
        let off_ms = self.workload.i64(-200..=200);
        let sent_at = Unix::from_ms(self.wall(to).saturating_add_signed(off_ms));
        let mut writer = Writer::new(leave, sent_at, &self.key);
        let id = Id::parse(self.names[user].as_bytes()).expect("a legal name");
        assert!(writer.push(id), "one entry fits");
        let bytes = writer.seal(&self.key);
        self.send_datagram(None, to, bytes);
    }

    fn move_device(&mut self) {
        let at = self.workload.usize(0..self.devices.len());
        self.devices[at] = Device {
            user: self.workload.usize(0..self.names.len()),
            due: self.mono + self.workload.u64(0..15_000),
        };
    }

    fn say_goodbye(&mut self) {
        if self.workload.bool() && !self.is_undisturbed() {
            return self.say_goodbye_over_http();
        }
        let user = self.workload.usize(0..self.names.len());
        self.send_word(user, true);
    }

    /// Opens the client's stream at some real-time node that is up: from where it was, or anew.
    fn connect(&mut self, client: usize) {
        let up: Vec<usize> = (self.presences..self.nodes.len())
            .filter(|node| self.nodes[*node].up.is_some())
            .collect();
        if up.is_empty() {
            self.clients[client].retry_at = self.mono + 500;
            return;
        }
        let node = up[self.workload.usize(0..up.len())];
        let shard = self.workload.usize(0..self.up(node).shards.len());
        if !self.healed && self.workload.u8(0..8) == 0 {
            // Another list: what was told of the old one is forgotten.
            let count = self.workload.usize(1..=WATCHED_MAX);
            let watched = self.workload.choose_multiple(0..self.names.len(), count);
            self.clients[client].watched = watched.into_iter().collect();
            self.clients[client].last_id = None;
        }
        if std::mem::take(&mut self.clients[client].outgrown) {
            self.clients[client].last_id = None;
        }
        let names = |user: &usize| self.names[*user].as_str();
        let watched: Vec<&str> = self.clients[client].watched.iter().map(names).collect();
        let mut body = format!("{{\"watch\":{}", json_list(&watched));
        if let Some(user) = self.clients[client].user {
            let user = serde_json::to_string(&self.names[user]).expect("strings are JSON");
            body.push_str(&format!(",\"user\":{user}"));
        }
        body.push('}');
        let last_id = self.clients[client].last_id;
        let header = last_id.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
        self.say(|| format!("client {client} connects to node {node} from {last_id:?}: {body}"));
        let bytes = post("/v1/stream", &header, &body, None).into();
        let key = self.open(node, shard, Who::Stream(client), bytes);
        let client = &mut self.clients[client];
        client.conn = Some(key);
        let elsewhere = client
            .node
            .replace(node)
            .is_some_and(|before| before != node);
        client.known.clear();
        client.held.clear();
        if last_id.is_none() {
            client.views.clear();
        } else if elsewhere {
            self.saw(Seen::ResumedElsewhere);
        }
    }

    fn end_stream(&mut self) {
        let client = self.workload.usize(0..self.clients.len());
        if self.mono < self.undisturbed_until {
            return;
        }
        let away_ms = match self.workload.u8(0..3) {
            0 => self.workload.u64(0..200),
            1 => self.workload.u64(200..4_000),
            _ => self.workload.u64(4_000..20_000),
        };
        self.disconnect(client, away_ms);
    }

    pub(super) fn disconnect(&mut self, client: usize, away_ms: u64) {
        if let Some(key) = self.clients[client].conn {
            self.hang_up(key);
            self.client_lost(client, key);
            self.clients[client].retry_at = self.mono + away_ms;
        }
    }

    /// One of a client's connections has ended.
    pub(super) fn client_lost(&mut self, client: usize, key: u32) {
        let retry_at = self.mono + self.workload.u64(0..1_000);
        let client = &mut self.clients[client];
        if client.conn == Some(key) {
            client.conn = None;
            client.stream = None;
            client.live_since = None;
            client.leaving = false;
            client.snapshot_seen = false;
            client.edit = None;
            client.retry_at = retry_at;
        }
        client.edit.take_if(|(_, asker)| *asker == key);
    }

    /// A client watches one more, by a request to any shard of its node.
    fn edit(&mut self) {
        let client = self.workload.usize(0..self.clients.len());
        let user = self.workload.usize(0..self.names.len());
        let Client {
            stream: Some(stream),
            edit: None,
            conn: Some(conn),
            watched,
            ..
        } = &self.clients[client]
        else {
            return;
        };
        if watched.contains(&user) || watched.len() > 2 * WATCHED_MAX - 2 {
            return;
        }
        let node = self.conns[conn].node;
        let target = format!("/v1/stream/{stream}/watch");
        let body = format!(
            "{{\"add\":{},\"remove\":[]}}",
            json_list(&[&self.names[user]])
        );
        let shard = self.workload.usize(0..self.up(node).shards.len());
        let key = self.open(
            node,
            shard,
            Who::Edit(client),
            post(&target, "", &body, None).into(),
        );
        self.clients[client].edit = Some((user, key));
    }

    /// A presence and a real-time node lose sight of each other, now and then for longer than a
    /// silence may last.
    fn partition(&mut self) {
        let presence = self.faults.usize(0..self.presences);
        let realtime = self.faults.usize(self.presences..self.nodes.len());
        let silence_ms = self.rules.offline_after_ms;
        let length_ms = match self.faults.u8(0..3) {
            0 => self.faults.u64(100..3_000),
            1 if silence_ms < LONG_SILENCE_MS => self.faults.u64(3_000..9_000),
            // Where beats are rare only a longer one than a silence tells anything new.
            _ if silence_ms >= LONG_SILENCE_MS => {
                self.faults.u64(silence_ms + 1..15_000 + silence_ms)
            }
            _ => self.faults.u64(9_000..15_000 + silence_ms),
        };
        let until = self.mono + length_ms;
        self.say(|| format!("nodes {presence} and {realtime} are cut off until {until}"));
        if length_ms > self.rules.offline_after_ms && self.faults.u8(0..4) > 0 {
            self.undisturbed_until = until + UNDISTURBED_MS;
        }
        self.cuts.insert((presence, realtime), until);
        self.cut_off(presence, realtime, until);
        self.saw(Seen::Partition);
    }

    fn crash(&mut self, presence: bool) {
        let node = match presence {
            true => self.faults.usize(0..self.presences),
            false => self.faults.usize(self.presences..self.nodes.len()),
        };
        let down_ms = match self.faults.u8(0..3) {
            0 => self.faults.u64(0..100),
            1 => self.faults.u64(100..3_000),
            _ => self.faults.u64(3_000..12_000),
        };
        if self.nodes[node].up.is_some() {
            self.saw(if presence {
                Seen::PresenceCrash
            } else {
                Seen::RealtimeCrash
            });
            self.kill(node, down_ms);
        }
    }

    /// Some shards of a node are not driven for a while: those of a presence node for less than
    /// would make it forgive others.
    fn stall(&mut self) {
        let node = self.faults.usize(0..self.nodes.len());
        let most_ms = if self.is_presence(node) { 900 } else { 4_000 };
        let until = self.mono + self.faults.u64(50..most_ms);
        let picks = self.faults.u8(1..);
        let Some(up) = &mut self.nodes[node].up else {
            return;
        };
        for (at, shard) in up.shards.iter_mut().enumerate() {
            if picks >> at & 1 == 1 {
                shard.stalled_until = until;
            }
        }
        self.say(|| format!("node {node} stalls until {until}"));
        self.stalled(node, until);
        self.saw(Seen::Stall);
    }

    /// A node's wall clock is stepped, by more than what is left to slewing.
    fn step_clock(&mut self) {
        let node = self.faults.usize(0..self.nodes.len());
        let off_ms = self.faults.i64(-WALL_OFF_MS_MAX..=WALL_OFF_MS_MAX);
        let by_ms = crate::store::EPOCH_MS as i64 - 1_000 + off_ms - self.nodes[node].anchor;
        if by_ms.abs() > 1_000 {
            self.saw(Seen::ClockStep);
            self.shift_clock(node, by_ms);
        }
    }

    /// The last act: everything heals, and everybody must end up knowing the truth.
    pub(super) fn converge(&mut self) {
        self.healed = true;
        for (presence, realtime) in std::mem::take(&mut self.cuts).into_keys() {
            self.cut_off(presence, realtime, self.mono);
        }
        self.devices.clear();
        self.parcels
            .retain(|_, parcel| !matches!(parcel, Parcel::Request { call: None, .. }));
        for node in &mut self.nodes {
            node.down_until = node.down_until.min(self.mono);
        }
        for client in &mut self.clients {
            client.retry_at = client.retry_at.min(self.mono + 500);
        }
        // Links find their nodes again (5 s of backoff and a request that fails), the silent are
        // found silent.
        self.run_until(self.mono + 10_000 + 2 * self.rules.offline_after_ms);
        self.check_truth();
        // Streams that have been there all the time are told with ids of those who come, if not for
        // the first time, and go now.
        for client in &mut self.clients {
            client.told_without_id = false;
        }
        for user in 0..self.names.len() {
            self.send_word(user, false);
        }
        self.run_until(self.mono + self.rules.offline_after_ms + 4_000);
        self.check_ids();
        // Whoever comes back from where it was knows the same, wherever it comes back.
        for client in 0..self.clients.len() {
            self.disconnect(client, 10);
        }
        self.run_until(self.mono + 3_000);
        self.check_truth();
        for node in 0..self.nodes.len() {
            self.up(node).presence.check_invariants();
        }
    }
}
