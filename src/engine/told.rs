//! What presence nodes publish to a real-time node: `PUT /v1/presence/{user}` and `PUT
//!/v1/presence`.
//!
//! Owns who may (the service key) and what is said back. Taken over means told: the transitions go
//! the way of all others.

use super::Engine;
use super::calls::{BAD_ESCAPE, NO_STORE, RETRY_AFTER};
use super::conn::http::Asked;
use crate::metrics::Counter;
use crate::presence::{InternFault, Source};
use crate::realtime::ConnId;
use crate::time::Now;
use crate::wire::User;
use crate::wire::record::{Told, parse_told, parse_told_list};
use crate::wire::request::{Head, decode_segment};
use crate::wire::response::{Status, problems};

impl Engine {
    /// Whether the request shows the service key.
    pub(super) fn is_of_fleet(&self, head: &Head<'_>) -> bool {
        head.authorization
            .is_some_and(|header| self.keys.authorises(header))
    }

    /// Whether the request shows the service key; otherwise it has been answered.
    pub(super) fn check_service(
        &mut self,
        id: ConnId,
        asked: &Asked,
        head: &Head<'_>,
        now: Now,
    ) -> bool {
        if self.is_of_fleet(head) {
            return true;
        }
        let detail = "publishing takes the service token of a fleet key as Authorization: Bearer \
                      ..; all nodes share one key file";
        let extra = "WWW-Authenticate: Bearer\r\n";
        self.problem(id, asked, problems::UNAUTHORIZED, detail, extra, now);
        false
    }

    /// `PUT /v1/presence/{user}`.
    pub(super) fn put_one(
        &mut self,
        id: ConnId,
        asked: &Asked,
        sender: Option<&str>,
        raw: &str,
        body: &[u8],
        now: Now,
    ) {
        let Some(bytes) = decode_segment(raw) else {
            return self.problem(id, asked, problems::BAD_USER, BAD_ESCAPE, "", now);
        };
        let told = match parse_told(body) {
            Ok(told) => told,
            Err(fault) => return self.bad_body(id, asked, &fault, Counter::LimitQueryUsers, now),
        };
        if told.user.as_bytes() != &*bytes {
            let detail = "the path and the record name different users";
            return self.problem(id, asked, problems::BAD_USER, detail, "", now);
        }
        self.take_told(id, asked, sender, &[told], now);
    }

    /// `PUT /v1/presence`.
    pub(super) fn put_many(
        &mut self,
        id: ConnId,
        asked: &Asked,
        sender: Option<&str>,
        body: &[u8],
        now: Now,
    ) {
        match parse_told_list(body, self.settings.query_users_max) {
            Ok(told) => self.take_told(id, asked, sender, &told, now),
            Err(fault) => self.bad_body(id, asked, &fault, Counter::LimitQueryUsers, now),
        }
    }

    /// The index of the presence node that a `Greendot-Node` header names, if this node has seen
    /// that life of it.
    fn node_of(&self, sender: &str, now: Now) -> Option<usize> {
        let (instance, more) = sender.split_once(' ').unwrap_or((sender, ""));
        let instance = u64::from_str_radix(instance, 16).ok()?;
        self.presence.note_told(instance, more != "more", now.mono)
    }

    fn take_told(
        &mut self,
        id: ConnId,
        asked: &Asked,
        sender: Option<&str>,
        list: &[Told],
        now: Now,
    ) {
        // None: by hand. Whoever has the service token may say anything.
        let node = sender.map(|sender| self.node_of(sender, now));
        if node == Some(None) {
            let detail = "this node has not seen the presence node that publishes; it asks all \
                          of its --presence each second";
            return self.problem(id, asked, problems::OVERLOADED, detail, RETRY_AFTER, now);
        }
        let mut refused = 0;
        for told in list {
            // Checked when it was read.
            let Ok(user) = User::from_text(&told.user) else {
                continue;
            };
            if node
                .flatten()
                .is_some_and(|node| !self.belongs_to(user, node))
            {
                // It had the user before another node was added, and hears no more beats.
                self.counters.add(Counter::ToldForeign, 1);
                continue;
            }
            let slot = match self.presence.intern(user) {
                Ok(slot) => slot,
                Err(fault) => {
                    if fault == InternFault::Full {
                        self.counters.add(Counter::LimitUsers, 1);
                    }
                    refused += 1;
                    continue;
                }
            };
            match self.presence.adopt(slot, told, Source::Published, now) {
                Some(transition) => {
                    self.counters.add(Counter::ToldAdopted, 1);
                    self.transitions.push(transition);
                }
                None => self.counters.add(Counter::ToldKnown, 1),
            }
        }
        self.settle(now);
        if refused == 0 {
            return self.answer_with(id, asked, Status::NoContent, "", b"", "", now);
        }
        // Not an error: repeating it would not help, and must not hold up the publishers behind.
        let body = format!("{{\"refused\":{refused}}}");
        self.answer_with(
            id,
            asked,
            Status::Ok,
            "application/json",
            body.as_bytes(),
            NO_STORE,
            now,
        );
    }
}
