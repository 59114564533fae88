//! `POST /v1/revoke`: tokens become void before their time; and what nodes tell each other of it.
//!
//! Owns that a revocation is answered when it is on disk, that it ends the streams that are open by
//! what it means, and that a stream that opens meanwhile is not missed. What is revoked is kept by
//! `auth`.

use super::audit::{Deed, audit};
use super::caller::Caller;
use super::errands::WAIT_MS_MAX;
use super::served::{Served, Then, overloaded};
use crate::auth::{Added, Digest, Full, ISSUED_AHEAD_MS_MAX, Keyring, Revocation};
use crate::engine::calls::caller::NewPermit;
use crate::engine::conn::permits::Origin;
use crate::engine::errand::{Asker, Verdict};
use crate::engine::parts::Engine;
use crate::engine::role::Role;
use crate::metrics::Counter;
use crate::realtime::ConnId;
use crate::time::{Now, Unix};
use crate::wire::record::RevokeAsk;
use crate::wire::response::{Answer, problems};

const UNTOLD: &str = "the fleet's database has not answered: the revocation is in force at this \
                      node alone, which will tell the others; say it again to be sure of them";

pub(super) fn revoke(
    engine: &mut Engine,
    asker: ConnId,
    ask: RevokeAsk,
    caller: &Caller,
    now: Now,
) -> Served {
    let revoked = &engine.node.revoked;
    let revocation = match &ask {
        RevokeAsk::Token(jti) => revoked.of_token(jti, now.unix),
        RevokeAsk::Device { user, device } => {
            revoked.of_device(user.user(), device.as_str().as_bytes(), now.unix)
        }
        RevokeAsk::User { user, before } => {
            let before = before.map(|before| Unix::from_ms(before.saturating_mul(1_000)));
            if before.is_some_and(|before| before > now.unix.plus_ms(ISSUED_AHEAD_MS_MAX)) {
                let detail = "before lies ahead; it is a time in seconds since 1970";
                return Answer::problem(problems::BAD_JSON, detail).into();
            }
            revoked.of_user(user.user(), before, now.unix)
        }
    };
    if let Err(Full) = revoked.add(revocation, now.unix) {
        return engine.refuse_revocation().into();
    }
    let (deed, whose) = match &ask {
        RevokeAsk::User { user, .. } => (Deed::RevokeUser, Some(user.user())),
        RevokeAsk::Device { user, .. } => (Deed::RevokeDevice, Some(user.user())),
        RevokeAsk::Token(_) => (Deed::RevokeToken, None),
    };
    audit(caller, deed, whose.into_iter());
    // Also if it was known: who asks again may have been told that it is not on disk.
    let asker = Asker {
        shard: engine.node.shard,
        conn: asker,
        until: now.mono.plus_ms(WAIT_MS_MAX),
    };
    engine.keeping.push_back(asker);
    let then = Then::Answer(Answer::no_content());
    let mut served = engine.parked_for(1, Verdict::Done, then, asker, now);
    if let (Served::Parked { unanswered, .. }, Role::Fleet(_)) = (&mut served, &engine.node.role) {
        *unanswered = UNTOLD;
    }
    served
}

/// `POST /v1/revocations`: another node tells what it was told.
pub(super) fn told(engine: &mut Engine, message: &[u8], now: Now) -> Answer {
    let Some(told) = engine.node.revoked.read_told(message, now.unix) else {
        let detail = "the body is not revocations of 24 bytes each, 1000 at most";
        return Answer::problem(problems::BAD_BUNDLE, detail);
    };
    let mut news = false;
    for revocation in told {
        match engine.node.revoked.add(revocation, now.unix) {
            Ok(added) => news |= added == Added::News,
            Err(Full) => return engine.refuse_revocation(),
        }
    }
    engine.passes_revocations_on |= news;
    Answer::no_content()
}

impl Engine {
    fn refuse_revocation(&mut self) -> Answer {
        self.counters.add(Counter::LimitRevocations, 1);
        overloaded("as many revocations are in force as may be (revocations-max)")
    }

    /// Ends streams of tokens that have been revoked: a bounded piece of the pass over all.
    pub(in crate::engine) fn end_revoked(&mut self, now: Now) {
        let places = self.conns.places();
        if let Some((from, most)) = self.passes.revoking.unread(self.node.revoked.end()) {
            let (revocations, behind) = self.node.revoked.journal(from, most);
            self.passes.revoking.has_read(behind);
            for revocation in revocations {
                let tag = self.tag(revocation.digest);
                self.passes.revoking.begin(tag, revocation.before, places);
            }
        }
        let steps = self.issue_steps();
        for index in self.passes.revoking.step(places) {
            let origin = self.conns.origin(index);
            let ends =
                origin.is_some_and(|origin| self.passes.revoking.ends(origin, steps, now.unix));
            if ends && let Some(id) = self.conns.id_at(index) {
                self.say_revoked(id, now);
            }
        }
    }

    /// Streams end that were opened by service keys which are listed no more.
    pub(in crate::engine) fn end_unlisted(&mut self, before: &Keyring) {
        let places = self.conns.places();
        for service in before.services.iter() {
            if !self.node.keyring.services.lists(service.hash) {
                let tag = self.tag(Digest::of_service(service.hash));
                self.passes.revoking.begin(tag, Unix::LATEST, places);
            }
        }
    }

    /// Whether a stream's token has been revoked since it was looked at: the pass over all streams
    /// may be past its place.
    pub(super) fn is_revoked_since(&self, permit: &NewPermit, now: Now) -> bool {
        if permit.judged == self.node.revoked.end() {
            return false;
        }
        let (since, _) = self.node.revoked.journal(permit.judged, usize::MAX);
        since
            .iter()
            .any(|revocation| self.means(revocation, permit.origin, now))
    }

    fn means(&self, revocation: &Revocation, origin: Origin, now: Now) -> bool {
        let tag = self.tag(revocation.digest);
        (tag == origin.holder() || Some(tag) == origin.token())
            && origin.is_from_before(revocation.before, self.issue_steps(), now.unix)
    }
}
