//! `POST /v1/stream/{stream}/watch`, `/token`: a stream's watch list is edited, or it gets another
//! token, from any shard.
//!
//! Owns both ends: what asks, and what is done where the stream is. An edit for a stream on another
//! shard travels as mail, and the request is parked until the outcome is back.

use super::caller::{Caller, NAMED_MAX, NewPermit};
use super::refused::Refused;
use super::served::{Served, overloaded};
use super::stream_id;
use crate::auth::{Grant, Refusal};
use crate::engine::mail::{Change, Edit, EditOutcome, Mail, Renewed, ShardId};
use crate::engine::parts::Engine;
use crate::metrics::Counter;
use crate::realtime::ConnId;
use crate::realtime::watches::{Marked, Target};
use crate::slot::Slot;
use crate::time::Now;
use crate::wire::record::WatchEdit;
use crate::wire::response::{Answer, problems};
use crate::wire::{User, UserBuf};

pub(super) fn edit(
    engine: &mut Engine,
    asker: ConnId,
    stream: &str,
    edit: WatchEdit,
    caller: &Caller,
    now: Now,
) -> Served {
    // Who makes an id up is told so here: only real ones cost another shard anything.
    let Some((shard, stream)) = stream_id::parse(&engine.node.secret, stream) else {
        return engine
            .edited(EditOutcome::Unknown, &Refused::default())
            .into();
    };
    let mut refused = Refused::default();
    let change = Change::List {
        add: refused.sift(Some("add"), edit.add, &mut engine.counters),
        remove: refused.sift(Some("remove"), edit.remove, &mut engine.counters),
    };
    engine.send_edit(asker, (shard, stream), caller, (change, refused), now)
}

/// `POST /v1/stream/{stream}/token`: the token that is shown takes the place of the one by which
/// the stream is open. Longer or shorter, it needs no new connection.
pub(super) fn renew(
    engine: &mut Engine,
    asker: ConnId,
    stream: &str,
    caller: &Caller,
    now: Now,
) -> Served {
    let Caller::User(grant) = caller else {
        let detail = "nobody is asked for a token here, so streams have none (--jwt-keys)";
        return Answer::problem(problems::NOT_FOUND, detail).into();
    };
    let Some(stream) = stream_id::parse(&engine.node.secret, stream) else {
        return engine
            .edited(EditOutcome::Unknown, &Refused::default())
            .into();
    };
    let change = Change::Token(grant.clone(), engine.permit(grant, now));
    engine.send_edit(asker, stream, caller, (change, Refused::default()), now)
}

impl Engine {
    /// Edits a stream, wherever it is.
    fn send_edit(
        &mut self,
        asker: ConnId,
        (shard, stream): (ShardId, ConnId),
        caller: &Caller,
        (change, refused): (Change, Refused),
        now: Now,
    ) -> Served {
        let until = now.mono.plus_ms(self.settings.request_deadline_ms);
        let edit = Edit {
            stream,
            holder: self.holder_of(caller),
            change,
            asker: (self.node.shard, asker),
            until,
        };
        if shard == self.node.shard {
            let outcome = self.apply_edit(&edit, now);
            return self.edited(outcome, &refused).into();
        }
        self.posts.letter(shard, Mail::Edit(edit.into()));
        Served::Parked {
            until,
            unanswered: "the shard that holds the stream has not answered; the edit may have \
                         happened",
            refused,
            waits: None,
        }
    }

    /// The outcome of an edit that a parked request waits for.
    pub(in crate::engine) fn finish_edit(&mut self, id: ConnId, outcome: EditOutcome, now: Now) {
        if let Some(pending) = self.conns.unpark(id) {
            let answer = self.edited(outcome, &pending.refused);
            self.answer(id, pending, answer, now);
        }
    }

    fn edited(&mut self, outcome: EditOutcome, refused: &Refused) -> Answer {
        match outcome {
            EditOutcome::Watching(watching) => {
                let mut body = format!("{{\"watching\":{watching}").into_bytes();
                refused.write(usize::MAX, &mut body);
                body.push(b'}');
                Answer::json(body)
            }
            EditOutcome::Renewed(renewed) => {
                let Renewed {
                    watching,
                    dropped,
                    dropped_total,
                } = *renewed;
                let dropped: Vec<&str> = dropped.iter().map(UserBuf::as_str).collect();
                let body = serde_json::json!({
                    "watching": watching, "dropped": dropped, "dropped_total": dropped_total,
                });
                Answer::json(body.to_string().into_bytes())
            }
            EditOutcome::Revoked => self.refused_token(Refusal::Revoked),
            EditOutcome::Viewer => {
                let detail = "the token is a viewer's (publish is false), and the stream's user is \
                              online by it; open another stream";
                Answer::problem(problems::NOT_THE_USER, detail)
            }
            EditOutcome::Unknown => {
                let detail = "no stream with this id is open; a stream's id is in its hello event \
                              and ends with it";
                Answer::problem(problems::UNKNOWN_STREAM, detail)
            }
            EditOutcome::StreamFull => {
                self.counters.add(Counter::LimitWatchesPerStream, 1);
                let max = self.settings.watches_per_stream_max;
                let detail =
                    format!("the stream would watch more than {max} users; nothing was changed");
                Answer::problem(problems::TOO_MANY_USERS, &detail)
            }
            EditOutcome::ShardFull => {
                self.counters.add(Counter::LimitWatchesPerShard, 1);
                overloaded("the server holds as many watches as it may; nothing was changed")
            }
            EditOutcome::NamesFull => {
                self.counters.add(Counter::LimitNamesBytes, 1);
                overloaded(
                    "the server holds as many names of users who were never seen as it may; \
                     nothing was changed",
                )
            }
            EditOutcome::Busy => {
                overloaded("the shard that holds the stream is busy; nothing was changed")
            }
        }
    }

    /// Edits the watch list of one of this shard's streams: all of it, or nothing.
    pub(in crate::engine) fn apply_edit(&mut self, edit: &Edit, now: Now) -> EditOutcome {
        let id = edit.stream;
        if !self.conns.is_stream_of(id, edit.holder) {
            return EditOutcome::Unknown;
        }
        // Its asker has been told that it may have happened, and may have asked for something else
        // since.
        if now.mono > edit.until {
            return EditOutcome::Busy;
        }
        match &edit.change {
            Change::List { add, remove } => self.edit_list(id, add, remove, now),
            Change::Token(grant, permit) => self.replace_token(id, grant, *permit, now),
        }
    }

    /// A stream lives by another token of its holder from here on. Whom that does not let watch is
    /// watched no more.
    fn replace_token(
        &mut self,
        id: ConnId,
        grant: &Grant,
        permit: NewPermit,
        now: Now,
    ) -> EditOutcome {
        if self.is_revoked_since(&permit, now) {
            return EditOutcome::Revoked;
        }
        let publishes = self.conns.at(id.index).publisher().is_some() || self.awaits_holder(id);
        if publishes && !grant.publish {
            return EditOutcome::Viewer;
        }
        self.conns.renew(id.index, permit);
        let mut renewed = Renewed::default();
        let presence = &self.presence;
        self.conns.watches.remove_where(id.index, |watched| {
            let user = match watched {
                Marked::Slot(slot) => presence.user(Slot::new(slot)),
                Marked::Name { user, .. } => user,
            };
            let denied = !grant.may_watch(user);
            if denied && renewed.dropped.len() < NAMED_MAX {
                renewed.dropped.push(UserBuf::from(user));
            }
            renewed.dropped_total += usize::from(denied);
            denied
        });
        renewed.watching = self.conns.watches.of(id.index);
        EditOutcome::Renewed(renewed.into())
    }

    fn edit_list(
        &mut self,
        id: ConnId,
        add_users: &[UserBuf],
        remove: &[UserBuf],
        now: Now,
    ) -> EditOutcome {
        let removed: Vec<Target> = self.known_targets(remove);
        let mut add: Vec<User<'_>> = add_users.iter().map(UserBuf::user).collect();
        add.sort_unstable();
        add.dedup();
        let gone = removed
            .iter()
            .filter(|target| self.conns.watches.has(id.index, **target))
            .count();
        let fresh = add.iter().filter(|user| {
            let target = self.watched_as(id.index, **user);
            target.is_none_or(|target| removed.binary_search(&target).is_ok())
        });
        let fresh = fresh.count();
        if self.conns.watches.of(id.index) - gone + fresh > self.settings.watches_per_stream_max {
            return EditOutcome::StreamFull;
        }
        if self.conns.watches.len() - gone + fresh > self.settings.watches_per_shard_max {
            return EditOutcome::ShardFull;
        }
        if !self.names_fit(add_users) {
            return EditOutcome::NamesFull;
        }
        self.conns.watches.remove_all(id.index, &removed);
        let mut targets = Vec::with_capacity(add.len());
        for user in add {
            let target = self.target(user);
            targets.push(self.watched_as(id.index, user).unwrap_or(target));
        }
        self.conns.watches.add(id.index, &mut targets, true);
        self.conns
            .at(id.index)
            .set_unsure(self.presence.is_follower());
        self.conns.queue_if_due(id.index, now.mono);
        EditOutcome::Watching(self.conns.watches.of(id.index))
    }

    /// All that `users` may be watched as: a user who has just got a slot may still be watched by
    /// name.
    fn known_targets(&self, users: &[UserBuf]) -> Vec<Target> {
        let mut targets = Vec::new();
        for user in users {
            let slot = self.presence.lookup(user.user());
            targets.extend(slot.map(|slot| Target::slot(slot.index())));
            targets.extend(self.conns.watches.find_name(user.as_str()));
            targets.extend(self.leaving_targets(user.user()));
        }
        targets.sort_unstable();
        targets.dedup();
        targets
    }

    /// What a user may still be watched as who has been forgotten, until its watchers are moved.
    fn leaving_targets(&self, user: User<'_>) -> impl Iterator<Item = Target> + use<> {
        let slots = self.presence.leaving_of(user);
        slots.into_iter().map(|slot| Target::slot(slot.index()))
    }

    /// What the stream at `conn` watches a user as, if it does.
    fn watched_as(&self, conn: u32, user: User<'_>) -> Option<Target> {
        let slot = self.presence.lookup(user);
        let slot = slot.map(|slot| Target::slot(slot.index()));
        let name = self.conns.watches.find_name(user.as_str());
        let known = slot.into_iter().chain(name);
        let known = known.chain(self.leaving_targets(user));
        known
            .into_iter()
            .find(|target| self.conns.watches.has(conn, *target))
    }
}
