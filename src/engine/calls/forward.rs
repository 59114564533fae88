//! A call about a stream of another node of the fleet, and the next page of a list that another one
//! began, is sent there, and answered as that node answers it.
//!
//! Owns which calls these are, and how long they wait. So a balancer may send any call to any node.
//! The other node judges all of it, who calls included: what is sent is the request as it came. Of
//! operators' calls this node judges who calls, for the other may know no such service.

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};

use super::audit::audit_end_elsewhere;
use super::caller::Caller;
use super::cursor::{self, CursorFault};
use super::refused::Refused;
use super::served::{RETRY_AFTER, Served, Then, Waits, overloaded};
use super::stream_id;
use super::table::{NODE_LISTS_ONLINE, NODE_LISTS_STREAMS, NODE_STREAMS, Row};
use crate::auth::Shown;
use crate::engine::conn::pending::Pending;
use crate::engine::errand::{Asker, Goodbye, Verdict};
use crate::engine::parts::Engine;
use crate::engine::upstream::{Forward, Forwarded, NodeName, Onward, Outbound, Shows};
use crate::metrics::{Call, Counter};
use crate::realtime::ConnId;
use crate::time::Now;
use crate::wire::record::{LeaveAsk, parse_leave};
use crate::wire::request::{Head, has_come_by_a_node, query_pairs};
use crate::wire::response::{Answer, PROBLEM_CONTENT_TYPE, StatusCode, problems};

const UNANSWERED: &str = "the node that has to answer this has not; it may have happened";

impl Engine {
    /// The id of one of this shard's streams.
    pub(super) fn id_of(&self, id: ConnId) -> String {
        let node = &self.node;
        stream_id::write(&node.secret, node.name, node.shard, id)
    }

    /// Sends a call on if it is another node's to answer. None: it is not.
    pub(super) fn forward(
        &mut self,
        id: ConnId,
        (row, segment): (&Row, &str),
        head: &Head<'_>,
        body: &[u8],
        caller: &Caller,
        now: Now,
    ) -> Option<Served> {
        let own = self.node.name?;
        let mut left = None;
        let node = match row.call {
            Call::StreamWatch
            | Call::StreamToken
            | Call::StreamBeat
            | Call::StreamsOne
            | Call::StreamsCut => stream_id::node(segment),
            Call::StreamsList | Call::Online if row.inner => cursor_node(head.query?),
            Call::Leave => {
                // What is wrong with it is told by who serves it.
                let ask = parse_leave(body, self.settings.query_users_max).ok()?;
                self.check_leave(&ask).ok()?;
                caller.check_speaks_all(&ask.users).ok()?;
                stream_id::node(left.insert(ask).stream.as_deref()?)
            }
            _ => None,
        };
        let node = node.filter(|node| *node != own)?;
        if has_come_by_a_node(head.lines) {
            // One that is reached where another one answers would be sent it for ever.
            return None;
        }
        let request = self.onward(row, segment, head, body);
        if row.call == Call::StreamsCut {
            audit_end_elsewhere(&caller.name(), segment);
        }
        let waits = left.map(|left| self.leaves(left, caller));
        let upstream = self.upstream.as_mut()?;
        let until = now.mono.plus_ms(self.settings.request_deadline_ms);
        upstream
            .outbound
            .push_back(Outbound::Forward(Box::new(Forward {
                asker: Asker {
                    shard: self.node.shard,
                    conn: id,
                    until,
                },
                node,
                request,
            })));
        self.counters.add(Counter::CallsForwarded, 1);
        Some(Served::Parked {
            until,
            unanswered: UNANSWERED,
            refused: Refused::default(),
            waits,
        })
    }

    /// What the other node is sent.
    fn onward(&self, row: &Row, segment: &str, head: &Head<'_>, body: &[u8]) -> Onward {
        let method = row.method;
        let of_fleet = |path: String| Onward {
            method,
            path: path.into(),
            host: None,
            shows: Shows::Fleets,
            body: Box::default(),
        };
        let query = head.query.unwrap_or_default();
        match row.call {
            Call::StreamsOne | Call::StreamsCut => of_fleet(format!("{NODE_STREAMS}/{segment}")),
            Call::StreamsList => of_fleet(format!("{NODE_LISTS_STREAMS}?{}", rewritten(query))),
            Call::Online => of_fleet(format!("{NODE_LISTS_ONLINE}?{}", rewritten(query))),
            call => Onward {
                method,
                path: head.path.into(),
                host: head.host.map(Box::from),
                shows: Shows::Callers(self.authorization(head)),
                body: match call {
                    // It takes none.
                    Call::StreamToken => Box::default(),
                    _ => body.into(),
                },
            },
        }
    }

    /// By what the other node knows the caller, too.
    fn authorization(&self, head: &Head<'_>) -> Option<Box<str>> {
        if let Some(shown) = head.authorization {
            return Some(shown).filter(|shown| is_plain(shown)).map(Box::from);
        }
        let identity = self.node.keyring.identity.as_ref()?;
        match identity.shown(head, false)? {
            Shown::Cookie(token) if is_plain(token) => Some(format!("Bearer {token}").into()),
            _ => None,
        }
    }

    /// What a goodbye comes to if the node that has its stream has gone.
    fn leaves(&mut self, left: LeaveAsk, caller: &Caller) -> Box<Waits> {
        Box::new(Waits {
            errands: 0,
            verdict: Verdict::Done,
            then: Then::Left(Box::new(self.goodbye_of(left, caller))),
        })
    }

    /// Nobody comes again to say goodbye.
    pub(super) fn leave_here(
        &mut self,
        id: ConnId,
        pending: Pending,
        (left, answer): (Goodbye, Answer),
        now: Now,
    ) {
        let served = self.farewell(id, self.node.shard, left, answer, now);
        self.carry_out(id, pending, served, now);
    }

    /// What became of it.
    pub(in crate::engine) fn finish_forward(&mut self, id: ConnId, told: &Forwarded, now: Now) {
        let Some(mut pending) = self.conns.unpark(id) else {
            return;
        };
        let is_list = matches!(pending.call, Call::StreamsList | Call::Online);
        let then = pending.waits.take().map(|waits| waits.then);
        if let (Some(Then::Left(left)), false) = (then, matches!(told, Forwarded::Answered { .. }))
            && !left.0.users.is_empty()
        {
            return self.leave_here(id, pending, *left, now);
        }
        let answer = match told {
            Forwarded::Nobody if is_list => CursorFault::Gone.into(),
            Forwarded::Nobody => {
                let detail = "the node that had the stream has gone, and the stream with it";
                Answer::problem(problems::UNKNOWN_STREAM, detail)
            }
            Forwarded::Busy => {
                overloaded("as many calls wait for other nodes as may; send it again")
            }
            Forwarded::Silent => overloaded(UNANSWERED),
            Forwarded::Answered { status, body } => answered(*status, body),
        };
        self.answer(id, pending, answer, now);
    }
}

/// Which node began the list that a query goes on with.
fn cursor_node(query: &str) -> Option<NodeName> {
    let cursor = query_pairs(query)
        .find(|(name, _)| **name == *b"cursor")?
        .1?;
    cursor::node(std::str::from_utf8(&cursor).ok()?)
}

/// A query with all that may not stand in one escaped.
fn rewritten(query: &str) -> String {
    let escaped = |bytes: &[u8]| percent_encode(bytes, NON_ALPHANUMERIC).to_string();
    let pairs = query_pairs(query).map(|(name, value)| {
        // What is no escape stays none.
        let value = value.map_or_else(|| "%".to_owned(), |value| escaped(&value));
        format!("{}={value}", escaped(&name))
    });
    pairs.collect::<Vec<_>>().join("&")
}

/// What a header of HTTP may say anywhere (RFC 9110, 5.5).
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// Another node's answer, as it gave it.
fn answered(status: u16, body: &[u8]) -> Answer {
    let Some(status) = StatusCode::of(status) else {
        return overloaded("the node that has the stream has answered what no node answers");
    };
    if !status.has_body() {
        return Answer::no_content();
    }
    let content_type = match status {
        StatusCode::Ok => "application/json",
        _ => PROBLEM_CONTENT_TYPE,
    };
    let answer = Answer {
        status,
        ..Answer::ok(content_type, body.to_vec())
    };
    match status {
        StatusCode::ServiceUnavailable | StatusCode::TooManyRequests => {
            answer.with_lines(RETRY_AFTER)
        }
        StatusCode::Unauthorized => answer.with_lines("WWW-Authenticate: Bearer\r\n"),
        _ => answer,
    }
}
