//! A call about a stream of another node of the fleet is sent there, and answered as that node
//! answers it.
//!
//! Owns which calls these are, and how long they wait. So a balancer may send any call to any node.
//! The other node judges all of it, who calls included: what is sent is the request as it came. Of
//! operators' calls this node judges who calls, for the other may know no such service.

use super::audit::audit_end_elsewhere;
use super::caller::Caller;
use super::refused::Refused;
use super::served::{RETRY_AFTER, Served, Then, Waits, overloaded};
use super::stream_id;
use super::table::{NODE_STREAMS, Row};
use crate::auth::Shown;
use crate::engine::conn::pending::Pending;
use crate::engine::errand::{Asker, Goodbye, Verdict};
use crate::engine::parts::Engine;
use crate::engine::upstream::{Forward, Forwarded, Onward, Outbound, Shows};
use crate::metrics::{Call, Counter};
use crate::realtime::ConnId;
use crate::time::Now;
use crate::wire::record::{LeaveAsk, parse_leave};
use crate::wire::request::{Head, has_come_by_a_node};
use crate::wire::response::{Answer, PROBLEM_CONTENT_TYPE, StatusCode, problems};

impl Engine {
    /// The id of one of this shard's streams.
    pub(super) fn id_of(&self, id: ConnId) -> String {
        let node = &self.node;
        stream_id::write(&node.secret, node.name, node.shard, id)
    }

    /// Sends a call on if it is about a stream of another node. None: it is not.
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
        let (stream, left) = match row.call {
            Call::StreamWatch
            | Call::StreamToken
            | Call::StreamBeat
            | Call::StreamsOne
            | Call::StreamsCut => (Some(segment), None),
            Call::Leave => {
                // What is wrong with it is told by who serves it.
                let left = parse_leave(body, self.settings.query_users_max).ok()?;
                self.check_leave(&left).ok()?;
                caller.check_speaks_all(&left.users).ok()?;
                (None, Some(left))
            }
            _ => return None,
        };
        let stream = stream.or_else(|| left.as_ref()?.stream.as_deref())?;
        let node = stream_id::node(stream).filter(|node| *node != own)?;
        if has_come_by_a_node(head.lines) {
            // One that is reached where another one answers would be sent it for ever.
            return None;
        }
        let request = self.onward(row, stream, head, body);
        if row.call == Call::StreamsCut {
            audit_end_elsewhere(&caller.name(), stream);
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
            unanswered: "the node that has the stream has not answered; it may have happened",
            refused: Refused::default(),
            waits,
        })
    }

    /// What the stream's node is sent.
    fn onward(&self, row: &Row, stream: &str, head: &Head<'_>, body: &[u8]) -> Onward {
        let method = row.method;
        match row.call {
            Call::StreamsOne | Call::StreamsCut => Onward {
                method,
                path: format!("{NODE_STREAMS}/{stream}").into(),
                host: None,
                shows: Shows::Fleets,
                body: Box::default(),
            },
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
        let then = pending.waits.take().map(|waits| waits.then);
        if let (Some(Then::Left(left)), false) = (then, matches!(told, Forwarded::Answered { .. }))
            && !left.0.users.is_empty()
        {
            return self.leave_here(id, pending, *left, now);
        }
        let answer = match told {
            Forwarded::Nobody => {
                let detail = "the node that had the stream has gone, and the stream with it";
                Answer::problem(problems::UNKNOWN_STREAM, detail)
            }
            Forwarded::Busy => {
                overloaded("as many calls wait for other nodes as may; send it again")
            }
            Forwarded::Silent => {
                overloaded("the node that has the stream has not answered; it may have happened")
            }
            Forwarded::Answered { status, body } => answered(*status, body),
        };
        self.answer(id, pending, answer, now);
    }
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
