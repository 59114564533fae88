//! Streams: opening one, editing its watch list from any shard.
//!
//! Owns the stream's id and the order in which a watch is indexed before its state is read, so that
//! no change falls between the two. Edits for a stream on another shard travel as mail; whoever
//! asked waits.

use constant_time_eq::constant_time_eq_16;

use super::{BAD_ESCAPE, RETRY_AFTER, intern_detail};
use crate::engine::conn::http::Asked;
use crate::engine::mail::{Edit, EditOutcome, Mail, ShardId};
use crate::engine::{Engine, horizon};
use crate::metrics::{Call, Counter};
use crate::realtime::conn::flag;
use crate::realtime::watches::Target;
use crate::realtime::{ConnId, Phase};
use crate::slot::Slot;
use crate::time::{Now, Unix};
use crate::wire::User;
use crate::wire::record::{BodyFault, StreamAsk, parse_stream_ask, parse_watch_edit};
use crate::wire::request::{Head, Method, query_pairs};
use crate::wire::response::problems;
use crate::wire::sse;

impl Engine {
    /// `GET` or `POST /v1/stream`.
    pub(in crate::engine) fn stream(
        &mut self,
        id: ConnId,
        asked: &Asked,
        head: &Head<'_>,
        body: &[u8],
        now: Now,
    ) {
        if asked.head_only {
            return self.stream_head(id, asked, now);
        }
        let ask = if head.method == Method::Post {
            match parse_stream_ask(body, self.settings.watches_per_stream_max) {
                Ok(ask) => ask,
                Err(fault) => {
                    return self.bad_body(id, asked, &fault, Counter::LimitWatchesPerStream, now);
                }
            }
        } else {
            match self.stream_query(head.query.unwrap_or("")) {
                Ok(ask) => ask,
                Err(Refused::Query(detail)) => {
                    return self.problem(id, asked, problems::BAD_QUERY, &detail, "", now);
                }
                Err(Refused::Body(fault)) => {
                    return self.bad_body(id, asked, &fault, Counter::LimitWatchesPerStream, now);
                }
            }
        };
        if self.upkeep.is_draining() {
            return self.overloaded(id, asked, "draining", now);
        }
        if self.watches.len() + ask.watch.len() > self.settings.watches_per_shard_max {
            self.counters.add(Counter::LimitWatchesPerShard, 1);
            return self.overloaded(id, asked, "watches", now);
        }
        // The header is newer: a reconnecting EventSource repeats its first URL.
        let asked_for = ask.last_event_id.as_deref().map(str::as_bytes);
        let last_event_id = head.last_event_id.or(asked_for);
        self.open_stream(id, asked, &ask, last_event_id, now);
    }

    fn open_stream(
        &mut self,
        id: ConnId,
        asked: &Asked,
        ask: &StreamAsk,
        last_event_id: Option<&[u8]>,
        now: Now,
    ) {
        let publisher = match ask
            .user
            .as_deref()
            .and_then(|user| User::parse(user.as_bytes()).ok())
        {
            None => None,
            Some(user) => match self.presence.intern(user) {
                Ok(slot) => Some(slot),
                Err(fault) => {
                    self.book_intern_fault(fault);
                    return self.overloaded(id, asked, intern_detail(fault), now);
                }
            },
        };
        self.counters.add_request(Call::Stream, 200);
        // Indexed first, read later: what changes in between is told twice rather than never.
        let mut targets: Vec<Target> = ask.watch.iter().map(|user| self.target(user)).collect();
        self.watches.add(id.index, &mut targets, false);
        let since = last_event_id.and_then(|last| self.resumes_from(last, now));
        let presence = &self.presence;
        self.watches
            .mark_where(id.index, |target| match (since, target.as_slot()) {
                (None, _) => true,
                // Never seen by anybody; unless that is yet to be asked.
                (Some(_), None) => presence.is_mirror(),
                (Some(since), Some(slot)) => presence.changed_since(Slot::new(slot), since),
            });
        self.begin_stream(id, asked, publisher, now);
        #[cfg(feature = "planted")]
        if crate::planted::is(crate::planted::Planted::SnapshotBeforeWatch) {
            self.index_later(id, &ask.watch, now);
        }
    }

    /// Since when a stream that was told this event id is told what has changed; None: it is told
    /// everything.
    fn resumes_from(&mut self, last_event_id: &[u8], now: Now) -> Option<Unix> {
        let judge = |id| self.presence.resumable(id, now);
        let since = horizon::resumes_from(last_event_id, judge);
        if let Err(why) = since {
            self.counters.add(why.counter(), 1);
        }
        let kind = match since {
            Ok(_) => Counter::ResumesPartial,
            Err(_) => Counter::ResumesFull,
        };
        self.counters.add(kind, 1);
        since.ok()
    }

    /// Moves the connection into its new life and says hello.
    fn begin_stream(&mut self, id: ConnId, asked: &Asked, publisher: Option<Slot>, now: Now) {
        let stream = self.stream_id(id);
        let retry_ms = self.settings.retry_ms + self.random.u64(0..=self.settings.retry_ms / 2);
        let hello = sse::Hello {
            stream: &stream,
            watching: self.watches.of(id.index),
            server_time: now.unix.ms(),
            beat_interval_ms: self.settings.beat_interval_ms,
            offline_after_ms: self.settings.offline_after_ms,
            keep_alive_ms: self.settings.keep_alive_ms,
            retry_ms,
        };
        let conn = self.conns.at(id.index);
        conn.go(Phase::Streaming);
        conn.moment = self.timers.tick_at(now.mono);
        conn.put(flag::SNAPSHOT | flag::SERVED, true);
        conn.put(flag::PAUSED, false);
        conn.put(flag::UNSURE, self.presence.is_mirror());
        let io = conn.io();
        io.input = Vec::new();
        sse::write_stream_head(&asked.cors, &mut io.unsent);
        hello.write(&mut io.unsent);
        self.counters.add(Counter::EventsHello, 1);
        self.streams += 1;
        self.queue.push(id.index, conn, now.mono);
        let look = self.timers.tick_in(now.mono, self.keep_alive_ms(id.index));
        self.look_at(id.index, look);
        if let Some(slot) = publisher {
            self.conns.at(id.index).set_publisher(slot.index());
            self.vouch_for(slot, true, now);
            self.settle(now);
        }
    }

    /// `HEAD /v1/stream`.
    fn stream_head(&mut self, id: ConnId, asked: &Asked, now: Now) {
        self.counters.add_request(Call::Stream, 200);
        sse::write_stream_head(&asked.cors, &mut self.conns.at(id.index).io().unsent);
        self.end(id, Counter::ClosedDone, now);
    }

    /// Refuses a stream for load in the one way after which an EventSource comes back: 200, a long
    /// jittered `retry:`, the event `overloaded`, and the end.
    pub(in crate::engine) fn overloaded(
        &mut self,
        id: ConnId,
        asked: &Asked,
        reason: &str,
        now: Now,
    ) {
        self.counters.add_request(Call::Stream, 200);
        let retry_ms = self.wide_retry_ms();
        let io = self.conns.at(id.index).io();
        sse::write_stream_head(&asked.cors, &mut io.unsent);
        if !asked.head_only {
            sse::write_overloaded(retry_ms, reason, &mut io.unsent);
            self.counters.add(Counter::EventsOverloaded, 1);
        }
        self.end(id, Counter::ClosedOverloaded, now);
    }

    /// A reconnect delay that spreads a crowd over ten times the usual one, or over the drain.
    pub(in crate::engine) fn wide_retry_ms(&mut self) -> u64 {
        let base = self.settings.retry_ms;
        base + self.random.u64(0..=(base * 10).max(self.settings.drain_ms))
    }

    /// What a user id stands for on this shard: its slot, or its name until it has one.
    pub(in crate::engine) fn target(&mut self, user: &str) -> Target {
        let target = match self.slot_of(user) {
            Some(slot) => Target::slot(slot.index()),
            None => self.watches.name(user),
        };
        self.ask_if_unsure(user, target);
        target
    }

    fn slot_of(&self, user: &str) -> Option<Slot> {
        User::parse(user.as_bytes())
            .ok()
            .and_then(|user| self.presence.lookup(user))
    }

    fn stream_query(&self, query: &str) -> Result<StreamAsk, Refused> {
        let mut ask = StreamAsk::default();
        for pair in query_pairs(query) {
            let (name, value) = pair.ok_or_else(|| Refused::Query(BAD_ESCAPE.to_owned()))?;
            let user = |member, index| match User::parse(&value) {
                Ok(user) => Ok(user.as_str().to_owned()),
                Err(fault) => Err(Refused::Body(BodyFault::User {
                    member,
                    index,
                    fault,
                })),
            };
            match &*name {
                b"watch" => {
                    ask.watch.push(user("watch", ask.watch.len())?);
                    let max = self.settings.watches_per_stream_max;
                    if ask.watch.len() > max {
                        let given = ask.watch.len();
                        return Err(Refused::Body(BodyFault::TooMany {
                            member: "watch",
                            max,
                            given,
                        }));
                    }
                }
                b"user" if ask.user.is_none() => ask.user = Some(user("user", 0)?),
                b"last_event_id" if ask.last_event_id.is_none() => {
                    ask.last_event_id = Some(String::from_utf8_lossy(&value).into_owned());
                }
                b"user" => {
                    return Err(Refused::Query(
                        "user stands twice: a stream has one holder".to_owned(),
                    ));
                }
                b"last_event_id" => {
                    return Err(Refused::Query("last_event_id stands twice".to_owned()));
                }
                other => {
                    let other = String::from_utf8_lossy(other);
                    let detail = format!(
                        "{other:?} is not known here; a stream takes user, watch (repeated) and \
                         last_event_id"
                    );
                    return Err(Refused::Query(detail));
                }
            }
        }
        Ok(ask)
    }

    /// `POST /v1/stream/{stream}/watch`.
    pub(in crate::engine) fn edit(
        &mut self,
        id: ConnId,
        asked: Asked,
        stream: &str,
        body: &[u8],
        now: Now,
    ) {
        let edit = match parse_watch_edit(body, self.settings.watches_per_stream_max) {
            Ok(edit) => edit,
            Err(fault) => {
                return self.bad_body(id, &asked, &fault, Counter::LimitWatchesPerStream, now);
            }
        };
        // Whoever makes an id up is told so here: only real ones cost another shard anything.
        let Some((shard, stream)) = self.parse_stream_id(stream) else {
            return self.edited(id, &asked, EditOutcome::Unknown, now);
        };
        let edit = Edit {
            stream,
            add: edit.add,
            remove: edit.remove,
            asker: (self.shard, id),
            until: now.mono.plus_ms(self.settings.request_deadline_ms),
        };
        if shard == self.shard {
            let outcome = self.apply_edit(&edit, now);
            return self.edited(id, &asked, outcome, now);
        }
        let deadline = self.timers.tick_at(edit.until);
        let conn = self.conns.at(id.index);
        conn.go(Phase::Waiting);
        conn.moment = deadline;
        self.look_at(id.index, deadline);
        self.waiting.insert(id.index, asked);
        self.posts.letter(shard, Mail::Edit(edit.into()));
    }

    /// Answers an edit.
    fn edited(&mut self, id: ConnId, asked: &Asked, outcome: EditOutcome, now: Now) {
        let (problem, detail) = match outcome {
            EditOutcome::Watching(watching) => {
                let body = format!("{{\"watching\":{watching}}}");
                return self.answer_json(id, asked, body.as_bytes(), now);
            }
            EditOutcome::Unknown => {
                let detail = "no stream with this id is open; a stream's id is in its hello \
                              event and ends with it";
                return self.problem(id, asked, problems::UNKNOWN_STREAM, detail, "", now);
            }
            EditOutcome::StreamFull => {
                self.counters.add(Counter::LimitWatchesPerStream, 1);
                let max = self.settings.watches_per_stream_max;
                let detail =
                    format!("the stream would watch more than {max} users; nothing was changed");
                return self.problem(id, asked, problems::TOO_MANY_USERS, &detail, "", now);
            }
            EditOutcome::ShardFull => {
                self.counters.add(Counter::LimitWatchesPerShard, 1);
                (
                    problems::OVERLOADED,
                    "the server holds as many watches as it may; nothing was changed",
                )
            }
            EditOutcome::Busy => (
                problems::OVERLOADED,
                "the shard that holds the stream is busy; nothing was changed",
            ),
        };
        self.problem(id, asked, problem, detail, RETRY_AFTER, now);
    }

    /// The outcome of an edit that this connection waits for.
    pub(in crate::engine) fn finish_edit(&mut self, id: ConnId, outcome: EditOutcome, now: Now) {
        // The asker may be gone, and another one may wait in its place.
        let waits = self
            .conns
            .get(id)
            .is_some_and(|conn| conn.phase() == Phase::Waiting);
        if waits && let Some(asked) = self.waiting.remove(&id.index) {
            self.edited(id, &asked, outcome, now);
        }
    }

    /// The other shard has not answered in time.
    pub(in crate::engine) fn abandon_edit(&mut self, id: ConnId, now: Now) {
        if let Some(asked) = self.waiting.remove(&id.index) {
            // Closed, so that an outcome that comes late is not taken for that of a later edit.
            let asked = Asked {
                keep_alive: false,
                ..asked
            };
            let detail =
                "the shard that holds the stream has not answered; the edit may have happened";
            self.problem(id, &asked, problems::OVERLOADED, detail, RETRY_AFTER, now);
        }
    }

    /// Edits the watch list of one of this shard's streams: all of it, or nothing.
    pub(in crate::engine) fn apply_edit(&mut self, edit: &Edit, now: Now) -> EditOutcome {
        let id = edit.stream;
        if self
            .conns
            .get(id)
            .is_none_or(|conn| conn.phase() != Phase::Streaming)
        {
            return EditOutcome::Unknown;
        }
        // Its asker has been told that it may have happened, and may have asked for something else
        // since.
        if now.mono > edit.until {
            return EditOutcome::Busy;
        }
        let removed: Vec<Target> = self.known_targets(&edit.remove);
        let mut add: Vec<&str> = edit.add.iter().map(String::as_str).collect();
        add.sort_unstable();
        add.dedup();
        let gone = removed
            .iter()
            .filter(|target| self.watches.has(id.index, **target))
            .count();
        let fresh = add.iter().filter(|user| {
            let target = self.watched_as(id.index, user);
            target.is_none_or(|target| removed.binary_search(&target).is_ok())
        });
        let fresh = fresh.count();
        if self.watches.of(id.index) - gone + fresh > self.settings.watches_per_stream_max {
            return EditOutcome::StreamFull;
        }
        if self.watches.len() - gone + fresh > self.settings.watches_per_shard_max {
            return EditOutcome::ShardFull;
        }
        self.watches.remove_all(id.index, &removed);
        let mut targets = Vec::with_capacity(add.len());
        for user in add {
            let target = self.target(user);
            targets.push(self.watched_as(id.index, user).unwrap_or(target));
        }
        self.watches.add(id.index, &mut targets, true);
        self.conns
            .at(id.index)
            .put(flag::UNSURE, self.presence.is_mirror());
        self.queue_if_due(id.index, now.mono);
        EditOutcome::Watching(self.watches.of(id.index))
    }

    /// All that `users` may be watched as: a user who has just got a slot may still be watched by
    /// name.
    fn known_targets(&self, users: &[String]) -> Vec<Target> {
        let mut targets = Vec::new();
        for user in users {
            targets.extend(self.slot_of(user).map(|slot| Target::slot(slot.index())));
            targets.extend(self.watches.find_name(user));
        }
        targets.sort_unstable();
        targets.dedup();
        targets
    }

    /// What the stream at `conn` watches a user as, if it does.
    fn watched_as(&self, conn: u32, user: &str) -> Option<Target> {
        let slot = self.slot_of(user).map(|slot| Target::slot(slot.index()));
        let known = slot.into_iter().chain(self.watches.find_name(user));
        known
            .into_iter()
            .find(|target| self.watches.has(conn, *target))
    }

    /// The id of a stream: shard, place, life, and a tag that only this process can make for them.
    fn stream_id(&self, id: ConnId) -> String {
        let tag = u128::from_be_bytes(self.stream_tag(self.shard, id));
        format!("{}.{}.{}.{tag:032x}", self.shard, id.index, id.generation)
    }

    /// Which stream an id names, if this process made it; the stream may have ended since.
    fn parse_stream_id(&self, text: &str) -> Option<(ShardId, ConnId)> {
        let (shard, id, tag) = split_stream_id(text)?;
        constant_time_eq_16(&self.stream_tag(shard, id), &tag).then_some((shard, id))
    }

    fn stream_tag(&self, shard: ShardId, id: ConnId) -> [u8; 16] {
        let mut name = [0; 10];
        name[..2].copy_from_slice(&shard.to_be_bytes());
        name[2..6].copy_from_slice(&id.index.to_be_bytes());
        name[6..].copy_from_slice(&id.generation.to_be_bytes());
        let mut tag = [0; 16];
        tag.copy_from_slice(&blake3::keyed_hash(&self.secret, &name).as_bytes()[..16]);
        tag
    }
}

/// Why a stream's query was refused.
enum Refused {
    Query(String),
    Body(BodyFault),
}

fn split_stream_id(text: &str) -> Option<(ShardId, ConnId, [u8; 16])> {
    let mut parts = text.split('.');
    let (shard, index, generation, tag) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = tag.len() == 32 && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
    let tag = hex.then(|| u128::from_str_radix(tag, 16).ok()).flatten()?;
    let whole = parts.next().is_none();
    let id = ConnId {
        index: index.parse().ok()?,
        generation: generation.parse().ok()?,
    };
    Some((shard.parse().ok()?, id, tag.to_be_bytes())).filter(|_| whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_ids() {
        let tag = "00112233445566778899aabbccddeeff";
        let expected = u128::from_str_radix(tag, 16).unwrap().to_be_bytes();
        let id = ConnId {
            index: 51,
            generation: 7,
        };
        assert_eq!(
            split_stream_id(&format!("2.51.7.{tag}")),
            Some((2, id, expected))
        );
        for bad in [
            "",
            "2",
            "2.51",
            "2.51.7",
            "2.51.7.",
            "2.51.7.00",
            "x.51.7.00112233445566778899aabbccddeeff",
            "2.51.7.+0112233445566778899aabbccddeeff",
            "2.51.00112233445566778899aabbccddeeff",
        ] {
            assert_eq!(split_stream_id(bad), None, "{bad}");
        }
        assert_eq!(split_stream_id(&format!("2.51.7.{tag}.1")), None);
    }
}
