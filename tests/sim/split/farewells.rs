//! Goodbyes in all their forms, said to either half: a presence node asks its real-time nodes
//! before it believes one, and a log-out ends streams everywhere.
//!
//! What must hold: nobody goes offline by a goodbye who holds a stream that can be asked about, and
//! whoever holds none and is heard no more goes in time.

use super::node::{MAIL_LATE_MS, Who};
use super::{Seen, Split};
use crate::client::{json_list, post};
use crate::model::Left;

/// A goodbye is believed so long after it came at the latest, in ms: the time for which real-time
/// nodes are waited for, and what mail and a sweep take.
const BELIEVED_MS: u64 = 2_000 + 3_500;
/// So long after a client has gone its node may not know, in ms: it stalls.
const UNNOTICED_MS: u64 = 5_000;
/// A stream that has been open for so long is known as one, in ms.
const OPEN_MS: u64 = 2_000;
/// So long a request that went wrong keeps what is asked behind it, in ms.
const SPOILED_MS: u64 = 3_000;

/// A goodbye that a presence node has heard and may not believe.
pub(super) struct Farewell {
    user: usize,
    node: usize,
    life: u64,
    at: u64,
}

/// A goodbye that a presence node has put off.
pub(super) struct Later {
    user: usize,
    node: usize,
    life: u64,
    /// When it was taken, and not before when it counts (mono).
    taken_at: u64,
    due: u64,
    /// When it was taken, by the node's clock.
    said_at: u64,
}

impl Farewell {
    pub(super) fn user(&self) -> usize {
        self.user
    }
}

impl Later {
    pub(super) fn user(&self) -> usize {
        self.user
    }
}

impl Split {
    /// Somebody says goodbye over HTTP: for a user, by name, put off, or everywhere.
    pub(super) fn say_goodbye_over_http(&mut self) {
        if self.is_undisturbed() {
            return;
        }
        let user = self.some_user();
        let everywhere = self.workload.u8(0..4) == 0;
        let up: Vec<usize> = (0..self.nodes.len())
            .filter(|node| self.nodes[*node].up.is_some())
            .filter(|node| !self.is_presence(*node) || *node == self.owners[user])
            .collect();
        if up.is_empty() {
            return;
        }
        let node = up[self.workload.usize(0..up.len())];
        let users = json_list(&[&self.names[user]]);
        let after_ms = match everywhere || !self.forgetful || self.workload.bool() {
            true => 0,
            false => self.after_ms(),
        };
        let body = match everywhere {
            true => format!("{{\"users\":{users},\"everywhere\":true}}"),
            false if after_ms > 0 => format!("{{\"users\":{users},\"after_ms\":{after_ms}}}"),
            false => format!("{{\"users\":{users}}}"),
        };
        let who = match everywhere {
            true => Who::LogOut(user),
            false => Who::Nobody,
        };
        self.say(|| format!("user {user} says goodbye to node {node}: {body}"));
        if everywhere {
            self.logs_out(user);
        }
        self.saw(Seen::Goodbye);
        let shard = self.workload.usize(0..self.up(node).shards.len());
        let bytes = post("/v1/leave", "", &body, None).into();
        let key = self.open(node, shard, who, bytes);
        let conn = self.conns.get_mut(&key).expect("it is open");
        (conn.leaves, conn.after_ms) = (vec![user], after_ms);
    }

    fn after_ms(&mut self) -> u64 {
        let most_ms = self
            .rules
            .offline_after_ms
            .min(self.rules.beat_skew_max_ms / 2);
        self.workload.u64(1..=most_ms)
    }

    /// A client's page says goodbye: for its stream, perhaps put off, perhaps by name as well.
    pub(super) fn leave_stream(&mut self) {
        let streams = |client: &usize| self.clients[*client].stream.is_some();
        let clients: Vec<usize> = (0..self.clients.len()).filter(streams).collect();
        if clients.is_empty() {
            return;
        }
        let client = clients[self.workload.usize(0..clients.len())];
        let after_ms = match self.workload.bool() {
            true => 0,
            false => self.after_ms(),
        };
        let by_name = self.workload.bool();
        let Some((user, key)) = self.clients[client].user.zip(self.clients[client].conn) else {
            return;
        };
        let node = self.conns[&key].node;
        let mut body = serde_json::json!({"stream": self.clients[client].stream});
        if by_name {
            body["users"] = serde_json::json!([self.names[user]]);
        }
        if after_ms > 0 {
            body["after_ms"] = serde_json::json!(after_ms);
        }
        self.clients[client].leaving = true;
        self.say(|| format!("client {client} leaves node {node}: {body}"));
        self.saw(Seen::StreamLeft);
        let shard = self.workload.usize(0..self.up(node).shards.len());
        let bytes = post("/v1/leave", "", &body.to_string(), None).into();
        self.open(node, shard, Who::Leave(client), bytes);
    }

    /// More often than not one who holds a stream.
    pub(super) fn some_user(&mut self) -> usize {
        let holders: Vec<usize> = self.clients.iter().filter_map(|at| at.user).collect();
        match self.workload.u8(0..4) {
            0 => self.workload.usize(0..self.names.len()),
            _ => holders[self.workload.usize(0..holders.len())],
        }
    }

    /// Of whose streams nothing is claimed for a while.
    pub(super) fn logs_out(&mut self, user: usize) {
        self.truths[user].logged_out_at = self.mono;
    }

    /// A node reads that users are logged out.
    pub(super) fn hear_log_out(&mut self, users: &[usize]) {
        for user in users {
            self.truths[*user].log_out_read_at = self.mono;
        }
    }

    /// A beat has come right behind a log-out. That is taken note of by mail, and of what was sent
    /// in one step the later counts.
    pub(super) fn doubt_log_out(&mut self, user: usize, sent_at: u64, wall: u64) {
        let (mono, truth) = (self.mono, &mut self.truths[user]);
        if truth.log_out_read_at > 0 && mono <= truth.log_out_read_at + MAIL_LATE_MS + 500 {
            truth.model.leave_perhaps(sent_at, mono, wall);
        }
    }

    /// A node reads a goodbye that came over a connection. What a real-time node passes on is heard
    /// as a datagram.
    pub(super) fn heard_leaving(&mut self, node: usize, users: &[usize], after_ms: u64) {
        if !self.is_presence(node) {
            return;
        }
        let (mono, said_at, life) = (self.mono, self.wall(node), self.nodes[node].life);
        for user in users {
            if after_ms == 0 {
                self.hear_goodbye(node, *user, u64::MAX);
                continue;
            }
            self.later.push(Later {
                user: *user,
                node,
                life,
                taken_at: mono,
                due: mono + after_ms,
                said_at,
            });
        }
    }

    /// Goodbyes that were put off until now count, unless a beat has come since.
    pub(super) fn doubt_later(&mut self, node: usize) {
        let mono = self.mono;
        let due = |later: &Later| later.node == node && later.due <= mono;
        let (due, wait): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.later).into_iter().partition(due);
        self.later = wait;
        for later in due {
            if later.life != self.nodes[node].life {
                continue;
            }
            let wall = self.wall(node);
            let truth = &mut self.truths[later.user];
            if truth.heard_at < later.taken_at {
                truth.left_at = mono;
                truth.model.leave_perhaps(later.said_at, mono, wall);
                self.saw(Seen::PutOff);
            }
        }
    }

    /// A presence node has heard a goodbye: it asks whether a stream is open.
    pub(super) fn hear_goodbye(&mut self, node: usize, user: usize, sent_at: u64) {
        let (wall, mono, life) = (self.wall(node), self.mono, self.nodes[node].life);
        let truth = &mut self.truths[user];
        truth.left_at = mono;
        let counts = truth.model.is_latest(sent_at, wall);
        truth.model.leave_perhaps(sent_at, mono, wall);
        if counts && wall >= self.nodes[node].wall_max {
            self.farewells.push(Farewell {
                user,
                node,
                life,
                at: mono,
            });
        }
    }

    /// Goodbyes whose time is over: those of users without streams have been believed.
    pub(super) fn check_farewells(&mut self) {
        let mono = self.mono;
        for client in &self.clients {
            if let (Some(user), Some(_)) = (client.user, client.conn) {
                self.truths[user].held_at = mono;
            }
        }
        let over = |farewell: &Farewell| farewell.at + BELIEVED_MS < mono;
        let (over, wait): (Vec<_>, Vec<_>) = std::mem::take(&mut self.farewells)
            .into_iter()
            .partition(over);
        self.farewells = wait;
        for Farewell {
            user,
            node,
            life,
            at,
        } in over
        {
            let (here, truth) = (&self.nodes[node], &self.truths[user]);
            let disturbed = here.up.is_none() || here.life != life || here.calm_since > at;
            let held = truth.held_at + UNNOTICED_MS >= at;
            if disturbed || held || truth.heard_at >= at || truth.left_at > at {
                continue;
            }
            self.saw(Seen::GoodbyeBelieved);
            if self.state(user).online {
                self.fail(format!(
                    "user {user} said goodbye at {at} ms, holds no stream, and is online"
                ));
            }
        }
    }

    /// Nobody goes offline by a goodbye who holds a stream at a node that could be asked.
    pub(super) fn check_held(&self, user: usize) {
        if self.truths[user].model.left == Left::No {
            return;
        }
        let (mono, owner) = (self.mono, self.owners[user]);
        let silent_ms = self.rules.offline_after_ms + super::checks::VOUCH_SLACK_MS;
        let out = self.truths[user].logged_out_at + UNNOTICED_MS + BELIEVED_MS >= mono;
        for client in self.clients.iter().filter(|at| at.user == Some(user)) {
            let (Some(key), Some(live_since)) = (client.conn, client.live_since) else {
                continue;
            };
            let path = &self.paths[self.conns[&key].node - self.presences][owner];
            let asked = path.asks_rough_at + SPOILED_MS + BELIEVED_MS < mono;
            let heard = path.rough_at + silent_ms < mono && live_since + silent_ms < mono;
            if !out && !client.leaving && asked && heard && live_since + OPEN_MS < mono {
                self.fail(format!(
                    "user {user} was published offline for another device's goodbye: {:?}",
                    self.truths[user].model
                ));
            }
        }
    }

    /// A request of one node to another goes wrong, or its link waits.
    pub(super) fn spoiled(&mut self, from: usize, to: usize) {
        let mono = self.mono;
        if self.is_presence(from) {
            let path = &mut self.paths[to - self.presences][from];
            path.asks_rough_at = path.asks_rough_at.max(mono);
        } else {
            let path = &mut self.paths[from - self.presences][to];
            path.tells_rough_at = path.tells_rough_at.max(mono);
        }
    }
}
