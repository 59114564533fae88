//! What users have said of themselves at a real-time node, for their presence node to take.
//!
//! Owns it until the node has answered, in order, and until nobody waits for it any more: what came
//! late could undo what has been said elsewhere since. So nothing is sent twice. Without a kernel.

use std::collections::VecDeque;

use super::STATES_PER_REQUEST_MAX;
use super::reply::{JSON, Reply, Request};
use crate::engine::{Say, Taken};
use crate::presence::Presence;
use crate::time::Mono;
use crate::wire::record::{Said, Told, parse_own_list};

/// Most that wait, some 200 bytes each. Beyond, they are not taken.
const WAITING_MAX: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct Statuses {
    waiting: VecDeque<Say>,
    /// Those of the request under way.
    under_way: Vec<Say>,
}

impl Statuses {
    /// A user has said this. Some: there is no room for it.
    pub(super) fn push(&mut self, say: Say) -> Option<Taken> {
        if self.waiting.len() >= WAITING_MAX {
            return Some(Statuses::untaken(say));
        }
        self.waiting.push_back(say);
        None
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn is_under_way(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// The next request: the first that somebody waits for, and those behind it that say the same.
    pub(super) fn poll_request(&mut self, now: Mono) -> Option<Request> {
        while self.waiting.front()?.asker.until <= now {
            self.waiting.pop_front();
        }
        let Say { said, attended, .. } = *self.waiting.front()?;
        let same = |say: &&Say| say.said == said && say.attended == attended;
        let count = self.waiting.iter().take_while(same).count();
        let count = count.min(STATES_PER_REQUEST_MAX);
        self.under_way = self.waiting.drain(..count).collect();
        let users: Vec<&str> = self.under_way.iter().map(|say| say.user.as_str()).collect();
        let mut body = serde_json::json!({ "users": users });
        let Said { status, invisible } = said;
        if let Some(status) = status {
            body["status"] = status.name().into();
        }
        if let Some(invisible) = invisible {
            body["invisible"] = invisible.into();
        }
        if attended {
            body["idle_ms"] = 0.into();
        }
        Some(Request {
            method: "POST",
            path: "/v1/status".into(),
            media: JSON,
            field: None,
            body: body.to_string().into_bytes(),
            states: count,
        })
    }

    /// What came of it: what was taken is noted of users who have streams here.
    pub(super) fn handle_reply(&mut self, reply: &Reply, presence: &Presence) -> Vec<Taken> {
        let sent = std::mem::take(&mut self.under_way);
        let said = reply.as_ref().ok().filter(|said| said.status == 200);
        let own = said.and_then(|said| parse_own_list(&said.body, sent.len()).ok());
        let is_answer = own.is_some();
        // In the order in which they were sent, but for those whom the node has not made.
        let mut own = own.unwrap_or_default().into_iter().peekable();
        let taken = |say: Say| {
            let found = own.next_if(|(told, _)| told.user == say.user);
            let Some((told, invisible)) = found.or_else(|| unheard_of(&say, is_answer)) else {
                return Statuses::untaken(say);
            };
            if let Some(slot) = presence.lookup(say.user.user()) {
                let invisible = Some(invisible);
                let status = say.said.status;
                presence.note_said(slot, Said { status, invisible });
            }
            Taken {
                asker: say.asker,
                own: Some((told, invisible)),
            }
        };
        sent.into_iter().map(taken).collect()
    }

    /// It can not be told.
    pub(super) fn untaken(say: Say) -> Taken {
        let (asker, own) = (say.asker, None);
        Taken { asker, own }
    }

    /// The node does not answer: nobody is to wait.
    pub(super) fn forget(&mut self) -> Vec<Taken> {
        self.waiting.drain(..).map(Statuses::untaken).collect()
    }
}

/// What somebody is told who has said nothing, and of whom the node has never heard: for that it
/// makes nobody.
fn unheard_of(say: &Say, is_answer: bool) -> Option<(Told, bool)> {
    let says_nothing = say.said.is_empty() && !say.attended;
    (is_answer && says_nothing).then(|| (Told::unseen(say.user.clone()), false))
}
