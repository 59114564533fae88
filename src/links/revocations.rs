//! What a node tells another of tokens that have been revoked.
//!
//! Owns how far the other has been told of the journal. It is told from the beginning when it is
//! another life of it, for a real-time node keeps none; what it knows already is no news to it.
//! Without a kernel.

use std::sync::Arc;

use super::reply::{Meaning, Request};
use crate::auth::{REVOCATIONS_PER_MESSAGE, Revoked};
use crate::time::Mono;

/// Pause after a message that the node has not taken, in ms.
const AGAIN_MS: u64 = 500;

#[derive(Debug)]
pub(super) struct Revocations {
    revoked: Arc<Revoked>,
    /// It has been told up to there.
    told_to: u64,
    /// The request under way tells up to there.
    under_way: Option<u64>,
    next_at: Mono,
    /// Which life of the node has been told.
    life: Option<u64>,
}

impl Revocations {
    pub(super) fn new(revoked: Arc<Revoked>) -> Revocations {
        Revocations {
            revoked,
            told_to: 0,
            under_way: None,
            next_at: Mono::default(),
            life: None,
        }
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Something is to be told.
    pub(super) fn has_news(&self) -> bool {
        self.told_to < self.revoked.end()
    }

    /// When [`Revocations::poll_request`] has something.
    pub(super) fn next(&self) -> Mono {
        match self.under_way.is_none() && self.has_news() {
            true => self.next_at,
            false => Mono::NEVER,
        }
    }

    /// The next request, if it is time.
    pub(super) fn poll_request(&mut self, now: Mono) -> Option<Request> {
        if now < self.next() {
            return None;
        }
        let (news, end) = self.revoked.journal(self.told_to, REVOCATIONS_PER_MESSAGE);
        let mut body = Vec::new();
        news.iter().for_each(|each| each.write_told(&mut body));
        self.under_way = Some(end);
        Some(Request {
            method: "POST",
            path: "/v1/revocations".into(),
            media: "application/octet-stream",
            field: None,
            body,
            states: 0,
        })
    }

    /// What came of it. One that is refused for what is in it is passed over.
    pub(super) fn handle_reply(&mut self, meaning: Meaning, now: Mono) {
        let Some(end) = self.under_way.take() else {
            return;
        };
        match meaning {
            Meaning::Failed => self.next_at = now.plus_ms(AGAIN_MS),
            Meaning::Done | Meaning::TooLong | Meaning::Refused => self.told_to = end,
        }
    }

    /// The node has said which life of it this is.
    pub(super) fn lives(&mut self, life: u64) {
        if self.life.replace(life) != Some(life) {
            self.told_to = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Unix;

    const NOW: Unix = Unix::from_ms(100);

    fn at(ms: u64) -> Mono {
        Mono::default().plus_ms(ms)
    }

    fn revoke(revoked: &Revoked, jti: &str) {
        let revocation = revoked.of_token(jti, NOW);
        revoked.add(revocation, NOW).unwrap();
    }

    /// How many the next request tells.
    fn told(link: &mut Revocations, ms: u64) -> Option<usize> {
        let request = link.poll_request(at(ms))?;
        assert_eq!(&*request.path, "/v1/revocations");
        Some(request.body.len() / 24)
    }

    #[test]
    fn all_is_told_once_until_the_node_has_another_life() {
        let revoked = Arc::new(Revoked::new(10_000, 1_000));
        let mut link = Revocations::new(Arc::clone(&revoked));
        assert_eq!((link.next(), told(&mut link, 0)), (Mono::NEVER, None));
        (0..1_001).for_each(|jti| revoke(&revoked, &jti.to_string()));
        assert_eq!(told(&mut link, 0), Some(1_000));
        assert_eq!((link.next(), told(&mut link, 0)), (Mono::NEVER, None));
        link.handle_reply(Meaning::Done, at(0));
        assert_eq!(told(&mut link, 0), Some(1));
        link.handle_reply(Meaning::Failed, at(0));
        assert_eq!(told(&mut link, AGAIN_MS - 1), None);
        assert_eq!(told(&mut link, AGAIN_MS), Some(1));
        link.handle_reply(Meaning::Done, at(AGAIN_MS));
        assert!(!link.has_news());
        link.lives(7);
        assert_eq!(told(&mut link, AGAIN_MS), Some(1_000));
        link.handle_reply(Meaning::Done, at(AGAIN_MS));
        link.lives(7);
        assert_eq!(told(&mut link, AGAIN_MS), Some(1));
        link.handle_reply(Meaning::Refused, at(AGAIN_MS));
        assert_eq!(told(&mut link, AGAIN_MS), None);
    }
}
