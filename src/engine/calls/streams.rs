//! `GET /v1/streams`, `GET` and `DELETE /v1/streams/{stream}`: operators see who is connected, and
//! end a stream. Other nodes of the fleet ask the same below `/v1/node/streams`.
//!
//! Owns both ends: the request, which asks one shard after the other, and what a shard tells of its
//! streams. Streams have no index by user, which would cost each of them memory: a shard looks
//! through its places, some in each turn. Whoever asks is told what was found within
//! [`PAGE_MS_MAX`], and where to go on.

use std::sync::Arc;

use super::audit::audit_end;
use super::caller::Caller;
use super::cursor::{CursorFault, Walk};
use super::errands::WAIT_MS_MAX;
use super::ignored::Ignored;
use super::page::Page;
use super::refused::Refused;
use super::served::{Served, Then, Waits};
use super::stream_id;
use super::streams_in_fleet::Abroad;
use crate::engine::errand::{Asker, Seek, Task, Verdict};
use crate::engine::mail::{Mail, ShardId, Sought};
use crate::engine::parts::Engine;
use crate::engine::role::Role;
use crate::metrics::Counter;
use crate::realtime::ConnId;
use crate::slot::Slot;
use crate::time::{Mono, Now};
use crate::wire::json::{write_str, write_u64};
use crate::wire::response::{Answer, problems};
use crate::wire::sse;
use crate::wire::{User, UserBuf};

/// A page is told after so long, however little has been found, in ms.
const PAGE_MS_MAX: u64 = 500;
const _: () = assert!(
    PAGE_MS_MAX < WAIT_MS_MAX,
    "it is told before it is given up"
);
/// Streams that a shard describes in a turn: some microseconds each.
const ROWS_PER_TURN: usize = 256;
/// The walk's name in its cursors.
const WALK: &str = "streams";
/// A reader whose stream an operator has ended comes back after so long, in ms.
const RETRY_MS: std::ops::RangeInclusive<u64> = 1_000..=3_000;

const UNANSWERED: &str = "a shard of the server has not answered in time; ask again";

/// A page of streams, as far as it has come.
#[derive(Debug)]
pub(in crate::engine) struct Listing {
    pub(super) user: Option<UserBuf>,
    ignored: Ignored,
    /// So many more fit.
    pub(super) left: usize,
    /// The shard that is asked, and from which place on.
    shard: ShardId,
    from: u32,
    /// Where it was asked to begin.
    began: (ShardId, u32),
    pub(super) rows: Vec<u8>,
    until: Mono,
    /// It goes on at other nodes of the fleet. None: it does not.
    pub(super) abroad: Option<Abroad>,
}

impl Listing {
    /// Whether it is further than where it began.
    pub(super) fn has_moved(&self) -> bool {
        (self.shard, self.from) != self.began || self.abroad.as_ref().is_some_and(Abroad::has_moved)
    }

    fn seek(&self) -> Seek {
        Seek {
            user: self.user.clone(),
            from: self.from,
            most: self.left,
            until: self.until,
        }
    }

    fn take(&mut self, sought: &Sought) {
        if !self.rows.is_empty() && !sought.rows.is_empty() {
            self.rows.push(b',');
        }
        self.rows.extend_from_slice(&sought.rows);
        self.left = self.left.saturating_sub(sought.found);
        match sought.next {
            Some(next) => self.from = next,
            None => (self.shard, self.from) = (self.shard + 1, 0),
        }
    }
}

/// `GET /v1/streams`.
pub(super) fn list(engine: &mut Engine, conn: ConnId, page: Page, _: &Caller, now: Now) -> Served {
    let in_fleet = matches!(engine.node.role, Role::Fleet(_));
    begin(engine, conn, page, in_fleet, now)
}

/// `GET /v1/node/streams`: another node of the fleet asks for those of this one.
pub(super) fn own(engine: &mut Engine, conn: ConnId, page: Page, _: &Caller, now: Now) -> Served {
    begin(engine, conn, page, false, now)
}

fn begin(engine: &mut Engine, conn: ConnId, page: Page, in_fleet: bool, now: Now) -> Served {
    let shards = engine.node.shards;
    let (shard, from, abroad) = match &page.cursor {
        None => (0, 0, in_fleet.then(|| Abroad::new(&[], now.mono)).flatten()),
        Some(cursor) => match engine.streams_walk(page.filter()).long_place(cursor) {
            Ok(([s0, s1, p0, p1, p2, p3], rest)) => {
                let shard = ShardId::from_be_bytes([s0, s1]);
                let place = u32::from_be_bytes([p0, p1, p2, p3]);
                let abroad = Abroad::new(&rest, now.mono).filter(|_| in_fleet);
                // Where nobody else is asked a walk ends with the last shard.
                if shard >= shards && abroad.is_none() {
                    return Answer::from(CursorFault::Gone).into();
                }
                (shard, place, abroad)
            }
            Err(fault) => return Answer::from(fault).into(),
        },
    };
    let given_up = abroad.as_ref().map(Abroad::given_up);
    let listing = Listing {
        user: page.filter,
        ignored: page.ignored,
        left: page.limit,
        shard,
        from,
        began: (shard, from),
        rows: Vec::new(),
        until: now.mono.plus_ms(PAGE_MS_MAX),
        abroad,
    };
    let asker = engine.asker_of_streams(conn, now);
    if let Some(ask) = listing
        .ask(engine.node.shard, conn, now)
        .filter(|_| shard >= shards)
    {
        engine.ask_abroad(ask);
    } else {
        engine.send_seek(shard, listing.seek(), asker);
    }
    let until = given_up.unwrap_or(asker.until);
    parked(Then::Streams(Box::new(listing)), Asker { until, ..asker })
}

/// `GET /v1/streams/{stream}`, and `GET /v1/node/streams/{stream}`.
pub(super) fn one(engine: &mut Engine, conn: ConnId, stream: &str, _: &Caller, now: Now) -> Served {
    let Some((shard, stream)) = stream_id::parse(&engine.node.secret, stream) else {
        return unknown().into();
    };
    if shard == engine.node.shard {
        let sought = engine.describe(stream, now);
        return described(&sought).into();
    }
    let asker = engine.asker_of_streams(conn, now);
    engine.send_errand(shard, Task::Describe(stream), asker);
    parked(Then::Described, asker)
}

/// `DELETE /v1/streams/{stream}`, and `DELETE /v1/node/streams/{stream}`.
pub(super) fn end(
    engine: &mut Engine,
    conn: ConnId,
    stream: &str,
    caller: &Caller,
    now: Now,
) -> Served {
    let Some((shard, stream)) = stream_id::parse(&engine.node.secret, stream) else {
        return unknown().into();
    };
    let by = caller.name();
    if shard == engine.node.shard {
        return ended(engine.end_for(stream, &by, now)).into();
    }
    let asker = engine.asker_of_streams(conn, now);
    engine.send_errand(shard, Task::End(stream, by), asker);
    parked(Then::Ended, asker)
}

/// What ending a stream came to.
pub(super) fn ended(verdict: Verdict) -> Answer {
    match verdict {
        Verdict::Done => Answer::no_content(),
        Verdict::UnknownStream | Verdict::Full | Verdict::NotKept | Verdict::Spent => unknown(),
    }
}

fn described(sought: &Sought) -> Answer {
    match sought.found {
        0 => unknown(),
        _ => Answer::json(sought.rows.clone()),
    }
}

fn unknown() -> Answer {
    let detail = "no stream with this id is open; GET /v1/streams lists those that are";
    Answer::problem(problems::UNKNOWN_STREAM, detail)
}

/// A request that waits for one shard at a time.
fn parked(then: Then, asker: Asker) -> Served {
    Served::Parked {
        until: asker.until,
        unanswered: UNANSWERED,
        refused: Refused::default(),
        waits: Some(Box::new(Waits {
            errands: 1,
            verdict: Verdict::Done,
            then,
        })),
    }
}

impl Engine {
    fn asker_of_streams(&self, conn: ConnId, now: Now) -> Asker {
        Asker {
            shard: self.node.shard,
            conn,
            until: now.mono.plus_ms(WAIT_MS_MAX),
        }
    }

    fn streams_walk<'w>(&'w self, filter: &'w str) -> Walk<'w> {
        Walk {
            secret: &self.node.secret,
            node: self.node.name,
            name: WALK,
            filter,
        }
    }

    fn send_seek(&mut self, shard: ShardId, seek: Seek, asker: Asker) {
        match shard == self.node.shard {
            // In the next turn: this one has had a request's share.
            true => self.passes.seeking.begin(asker, seek),
            false => self.send_errand(shard, Task::Seek(seek), asker),
        }
    }

    /// Looks for streams that somebody waits for: a bounded piece.
    pub(in crate::engine) fn seek_streams(&mut self, now: Now) {
        let places = self.conns.places();
        let Some(stretch) = self.passes.seeking.step(places, now.mono) else {
            return;
        };
        let most = stretch.seek.most.min(ROWS_PER_TURN);
        let user = stretch.seek.user.as_ref();
        let slot = user.and_then(|user| self.presence.lookup(user.user()));
        let mut rows = std::mem::take(self.passes.seeking.rows());
        let (mut found, mut next) = (0, stretch.places.end);
        for index in stretch.places {
            let is_meant = |id: ConnId| match user {
                None => true,
                Some(user) => self.is_stream_of(id, user.user(), slot),
            };
            let stream = self.conns.id_at(index);
            let stream = stream.filter(|id| self.conns.is_stream(*id) && is_meant(*id));
            let Some(stream) = stream else {
                continue;
            };
            if found == most {
                next = index;
                break;
            }
            rows.extend_from_slice(if rows.is_empty() { b"" } else { b"," });
            self.write_stream(stream, &mut rows, now);
            found += 1;
        }
        *self.passes.seeking.rows() = rows;
        if let Some((asker, sought)) = self.passes.seeking.note(found, next, places, now.mono) {
            self.tell_sought(asker, sought, now);
        }
    }

    /// Whether a stream's holder is this user, who has this slot.
    fn is_stream_of(&self, id: ConnId, user: User<'_>, slot: Option<Slot>) -> bool {
        let publisher = self.conns.get(id).and_then(|conn| conn.publisher());
        match publisher {
            Some(publisher) => slot.is_some_and(|slot| slot.index() == publisher),
            None => self.arrivals.coming(id) == Some(user),
        }
    }

    /// What is known of a stream of this shard.
    pub(super) fn describe(&self, stream: ConnId, now: Now) -> Sought {
        let mut rows = Vec::new();
        let found = usize::from(self.conns.is_stream(stream));
        if found > 0 {
            self.write_stream(stream, &mut rows, now);
        }
        let next = None;
        Sought { rows, found, next }
    }

    /// Writes what operators are told of an open stream.
    fn write_stream(&self, id: ConnId, out: &mut Vec<u8>, now: Now) {
        let Some(conn) = self.conns.get(id) else {
            return;
        };
        let text = |name: &[u8], text: Option<&str>, out: &mut Vec<u8>| {
            out.extend_from_slice(name);
            match text {
                Some(text) => write_str(text, out),
                None => out.extend_from_slice(b"null"),
            }
        };
        let number = |name: &[u8], number: u64, out: &mut Vec<u8>| {
            out.extend_from_slice(name);
            write_u64(number, out);
        };
        let publisher = conn.publisher().map(Slot::new);
        let user = publisher.map(|slot| self.presence.user(slot));
        let user = user.or_else(|| self.arrivals.coming(id));
        let address = self.conns.client(id.index).map(|client| client.to_string());
        let reader = self.conns.reader(id.index, now.mono);
        let since = now.unix.minus_ms(now.mono.ms_since(reader.opened));
        let watches = &self.conns.watches;
        let id_text = self.id_of(id);
        text(b"{\"stream\":", Some(&id_text), out);
        text(b",\"user\":", user.map(User::as_str), out);
        text(b",\"address\":", address.as_deref(), out);
        text(b",\"client\":", reader.name, out);
        number(b",\"since\":", since.ms(), out);
        number(b",\"watching\":", watches.of(id.index) as u64, out);
        number(b",\"behind_bytes\":", conn.unsent_bytes() as u64, out);
        number(b",\"behind_states\":", watches.marks(id.index) as u64, out);
        out.push(b'}');
    }

    /// Tells a request what was seen of this shard's streams.
    pub(super) fn tell_sought(&mut self, asker: Asker, sought: Sought, now: Now) {
        let (conn, sought) = (asker.conn, Arc::new(sought));
        if asker.shard == self.node.shard {
            self.streams_sought(conn, &sought, now);
        } else {
            let mail = Mail::Sought { conn, sought };
            self.posts.letter(asker.shard, mail);
        }
    }

    /// A shard has told of its streams.
    pub(in crate::engine) fn streams_sought(&mut self, conn: ConnId, sought: &Sought, now: Now) {
        let shards = self.node.shards;
        let Some(waits) = self.conns.waits(conn) else {
            return;
        };
        if let Then::Streams(listing) = &mut waits.then {
            listing.take(sought);
            let (shard, until) = (listing.shard, listing.until);
            if listing.left > 0 && shard < shards && now.mono < until {
                let seek = listing.seek();
                let asker = Asker {
                    shard: self.node.shard,
                    conn,
                    // As long as the request that waits: it was parked when the page began.
                    until: until.plus_ms(WAIT_MS_MAX - PAGE_MS_MAX),
                };
                return self.send_seek(shard, seek, asker);
            }
            if shard >= shards
                && let Some(ask) = listing.ask(self.node.shard, conn, now)
            {
                return self.ask_abroad(ask);
            }
        }
        let Some(mut pending) = self.conns.unpark(conn) else {
            return;
        };
        let answer = match pending.waits.take().map(|waits| waits.then) {
            Some(Then::Streams(listing)) => self.listed_streams(*listing),
            Some(Then::Described) => described(sought),
            _ => unreachable!("nobody else waits for streams to be told of"),
        };
        self.answer(conn, pending, answer, now);
    }

    /// A page, as far as it has come.
    pub(super) fn listed_streams(&self, listing: Listing) -> Answer {
        let mut body = b"{\"streams\":[".to_vec();
        body.extend_from_slice(&listing.rows);
        let abroad = listing.abroad.as_ref();
        let is_over = listing.shard >= self.node.shards && abroad.is_none_or(Abroad::is_over);
        body.extend_from_slice(b"],\"cursor\":");
        if is_over {
            body.extend_from_slice(b"null");
        } else {
            let filter = listing.user.as_ref().map_or("", UserBuf::as_str);
            let mut place = listing.shard.to_be_bytes().to_vec();
            place.extend(listing.from.to_be_bytes());
            place.extend(abroad.map(Abroad::place).unwrap_or_default());
            write_str(&self.streams_walk(filter).cursor(&place), &mut body);
        }
        if let Some(abroad) = abroad {
            abroad.write(&mut body);
        }
        listing.ignored.write(usize::MAX, &mut body);
        body.push(b'}');
        Answer::json(body)
    }

    /// Ends a stream of this shard, for an operator. Its reader may come back, in a while.
    pub(super) fn end_for(&mut self, id: ConnId, by: &str, now: Now) -> Verdict {
        if !self.conns.is_stream(id) {
            return Verdict::UnknownStream;
        }
        let retry_ms = self.random.u64(RETRY_MS);
        let conn = self.conns.at(id.index);
        let publisher = conn.publisher().map(Slot::new);
        if conn.unsent_bytes() + sse::GOODBYE_BYTES_MAX <= self.settings.outbox_bytes_max {
            conn.say(|out| sse::write_goodbye(retry_ms, "ended", out));
            self.counters.add(Counter::EventsGoodbye, 1);
        }
        let user = publisher.map(|slot| self.presence.user(slot));
        audit_end(by, self.node.shard, id, user);
        self.conns
            .end(id, Counter::ClosedEnded, now.mono, &mut self.counters);
        Verdict::Done
    }
}
