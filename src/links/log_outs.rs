//! Who has been logged out at a real-time node, of which a presence node has yet to be told.
//!
//! Owns them until the node has taken them, in order. Without a kernel.

use std::collections::VecDeque;

use super::reply::{JSON, Meaning, Request};
use crate::engine::LoggedOut;
use crate::time::Mono;

/// Most that wait, each of up to 1,000 users. Beyond, the oldest is forgotten.
const WAITING_MAX: usize = 1_024;
/// Pause after one that the node has not taken, in ms.
const AGAIN_MS: u64 = 500;

#[derive(Debug)]
pub(super) struct LogOuts {
    waiting: VecDeque<LoggedOut>,
    /// The request under way tells of the first.
    under_way: bool,
    next_at: Mono,
}

impl LogOuts {
    pub(super) fn new() -> LogOuts {
        LogOuts {
            waiting: VecDeque::new(),
            under_way: false,
            next_at: Mono::default(),
        }
    }

    /// These have been logged out. Returns how many had to be forgotten for it.
    pub(super) fn push(&mut self, logged_out: LoggedOut) -> usize {
        self.waiting.push_back(logged_out);
        // Not the one that may be under way.
        let lost = (self.waiting.len() > WAITING_MAX).then(|| self.waiting.remove(1));
        lost.flatten().map_or(0, |lost| lost.users.len())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// When [`LogOuts::poll_request`] has something, if anything waits.
    pub(super) fn next(&self) -> Mono {
        self.next_at
    }

    /// The next request, if it is time.
    pub(super) fn poll_request(&mut self, now: Mono) -> Option<Request> {
        let LoggedOut { users, at } = self.waiting.front().filter(|_| now >= self.next_at)?;
        let sent_at = at.ms();
        let body = serde_json::json!({
            "users": users, "everywhere": true, "sent_at": sent_at,
        });
        self.under_way = true;
        Some(Request {
            method: "POST",
            path: "/v1/leave".into(),
            media: JSON,
            field: None,
            body: body.to_string().into_bytes(),
            states: 0,
        })
    }

    /// What came of it: it is told until the node has taken it. One that is refused for what is in
    /// it is made two, or passed over.
    pub(super) fn handle_reply(&mut self, meaning: Meaning, now: Mono) {
        self.under_way = false;
        if meaning == Meaning::Failed {
            self.next_at = now.plus_ms(AGAIN_MS);
            return;
        }
        let Some(mut first) = self.waiting.pop_front() else {
            return;
        };
        if meaning != Meaning::Done && first.users.len() > 1 {
            let users = first.users.split_off(first.users.len() / 2);
            let at = first.at;
            self.waiting.push_front(LoggedOut { users, at });
            self.waiting.push_front(first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Unix;

    fn at(ms: u64) -> Mono {
        Mono::default().plus_ms(ms)
    }

    fn push(log_outs: &mut LogOuts, users: &[&str]) -> usize {
        let users = users.iter().map(|user| Box::from(*user)).collect();
        let at = Unix::from_ms(17);
        log_outs.push(LoggedOut { users, at })
    }

    fn body(log_outs: &mut LogOuts, ms: u64) -> Option<String> {
        let request = log_outs.poll_request(at(ms))?;
        assert_eq!((request.method, &*request.path), ("POST", "/v1/leave"));
        Some(String::from_utf8(request.body).unwrap())
    }

    fn naming(users: &str) -> Option<String> {
        let members = r#""everywhere":true,"sent_at":17"#;
        Some(format!("{{{members},\"users\":[{users}]}}"))
    }

    #[test]
    fn each_is_told_until_it_is_taken() {
        let mut log_outs = LogOuts::new();
        assert_eq!(body(&mut log_outs, 0), None);
        push(&mut log_outs, &["a", "b"]);
        assert_eq!(body(&mut log_outs, 0), naming(r#""a","b""#));
        assert!(log_outs.is_under_way());
        log_outs.handle_reply(Meaning::Failed, at(0));
        assert_eq!(body(&mut log_outs, AGAIN_MS - 1), None);
        assert_eq!(body(&mut log_outs, AGAIN_MS), naming(r#""a","b""#));
        log_outs.handle_reply(Meaning::TooLong, at(AGAIN_MS));
        for user in [r#""a""#, r#""b""#] {
            assert_eq!(body(&mut log_outs, AGAIN_MS), naming(user));
            // One that is refused alone is passed over.
            log_outs.handle_reply(Meaning::Refused, at(AGAIN_MS));
        }
        assert!(log_outs.is_empty());
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut log_outs = LogOuts::new();
        let lost: usize = (0..=WAITING_MAX)
            .map(|_| push(&mut log_outs, &["a", "b"]))
            .sum();
        assert_eq!(lost, 2);
    }
}
