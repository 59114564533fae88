//! A watcher who keeps everything told of each publisher, in order.
//!
//! Owns the check that no watcher may ever see broken: `since` grows from one change of a publisher
//! to the next, and what was known is never unknown again.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::Value;

use crate::harness::{Deadline, PATIENCE_MS};
use crate::http::Conn;
use crate::stream::{Event, Stream};

/// A state as it was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct State {
    /// None: unknown.
    pub(super) online: Option<bool>,
    pub(super) since: Option<u64>,
    pub(super) last_active: Option<u64>,
}

impl State {
    pub(super) fn since(&self) -> u64 {
        self.since
            .unwrap_or_else(|| panic!("a transition: {self:?}"))
    }

    pub(super) fn last_active(&self) -> u64 {
        self.last_active
            .unwrap_or_else(|| panic!("a beat: {self:?}"))
    }
}

/// A stream that watches, and what it was told.
pub(super) struct Watcher {
    stream: Stream,
    told: BTreeMap<String, Vec<State>>,
}

impl Watcher {
    /// Watches these; what the snapshot says is told already.
    pub(super) fn new(http: SocketAddr, users: &[String]) -> Watcher {
        let mut conn = Conn::to(http);
        let body = serde_json::json!({ "watch": users }).to_string();
        let head = format!(
            "POST /v1/stream HTTP/1.1\r\nHost: e2e\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        conn.send(&[head.as_bytes(), body.as_bytes()].concat());
        let mut watcher = Watcher {
            stream: Stream::answered(conn),
            told: BTreeMap::new(),
        };
        watcher.stream.expect("hello");
        while watcher.told.len() < users.len() {
            let event = watcher.stream.expect("snapshot");
            watcher.take(&event);
        }
        watcher
    }

    fn take(&mut self, event: &Event) {
        match event.kind.as_str() {
            "presence" => self.take_record(&event.data),
            "snapshot" => {
                let records = event.data["presence"].as_array().expect("a list");
                records.iter().for_each(|record| self.take_record(record));
            }
            _ => panic!("{event:?}"),
        }
    }

    fn take_record(&mut self, json: &Value) {
        let user = json["user"].as_str().expect("a user");
        let state = State {
            online: match json["status"].as_str() {
                Some("online") => Some(true),
                Some("offline") => Some(false),
                Some("unknown") => None,
                other => panic!("status {other:?}"),
            },
            since: json["since"].as_u64(),
            last_active: json["last_active"].as_u64(),
        };
        let told = self.told.entry(user.to_owned()).or_default();
        if let Some(before) = told.last() {
            // At least once: the same may be told again.
            let again = state.since == before.since && state.online == before.online;
            let found = before.online.is_none() && state.online.is_some();
            let in_order = state.since > before.since || again || found;
            assert!(in_order, "{user}: {state:?} after {told:?}");
        }
        told.push(state);
    }

    /// Reads until `reached`.
    pub(super) fn read_until(&mut self, what: &str, reached: impl Fn(&Watcher) -> bool) {
        let deadline = Deadline::in_ms(PATIENCE_MS);
        while !reached(self) {
            let Some(event) = self.stream.next_by(deadline) else {
                panic!("waited in vain: {what}; told: {:#?}", self.told);
            };
            self.take(&event);
        }
    }

    /// Reads for so long.
    pub(super) fn read_for(&mut self, ms: u64) {
        let deadline = Deadline::in_ms(ms);
        while let Some(event) = self.stream.next_by(deadline) {
            self.take(&event);
        }
        assert!(deadline.left().is_none(), "the stream has ended");
    }

    /// Waits until all of `users` are online, or all are not, by what was told last.
    pub(super) fn expect_all(&mut self, users: &[String], online: bool) {
        self.read_until(&format!("{users:?} online: {online}"), |watcher| {
            users
                .iter()
                .all(|user| watcher.last(user).online == Some(online))
        });
    }

    /// What was told of a user last.
    pub(super) fn last(&self, user: &str) -> &State {
        self.told[user].last().expect("made with its first state")
    }

    /// All that was told of a user, except that nothing was known.
    pub(super) fn known(&self, user: &str) -> Vec<&State> {
        self.told[user]
            .iter()
            .filter(|state| state.online.is_some())
            .collect()
    }

    /// What is believed of each user: online, and since when.
    pub(super) fn view(&self) -> BTreeMap<&str, (Option<bool>, Option<u64>)> {
        let believed = |user: &String| (self.last(user).online, self.last(user).since);
        self.told
            .keys()
            .map(|user| (user.as_str(), believed(user)))
            .collect()
    }

    /// That each of these came online once and has not turned since.
    pub(super) fn expect_no_flip(&self, users: &[String]) {
        for user in users {
            let mut told = self.known(user);
            told.dedup_by_key(|state| state.since);
            let turns = told
                .iter()
                .skip_while(|state| state.online == Some(false))
                .count();
            assert!(
                turns == 1 && self.last(user).online == Some(true),
                "{user}: {told:?}"
            );
        }
    }
}
