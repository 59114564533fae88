//! From a request's parts to the arguments of a row's function.
//!
//! Owns how a refusal of an argument reads. What a body looks like is the wire's.

use std::borrow::Cow;

use super::caller::Caller;
use super::ignored::Ignored;
use super::page::{PAGE_MAX, Page};
use super::served::Served;
use super::table::{Row, Serve};
use crate::auth::Asked;
use crate::engine::parts::Engine;
use crate::metrics::Counter;
use crate::pages::Page as File;
use crate::realtime::ConnId;
use crate::time::Now;
use crate::wire::record::{
    BAD_INVISIBLE, BAD_STATUS, BAD_VOUCH, BodyFault, Entry, Said, StreamAsk, Told, Vouch,
    parse_beat, parse_device, parse_idle, parse_leave, parse_revoke, parse_session, parse_status,
    parse_stream_ask, parse_told, parse_told_list, parse_users, parse_watch_edit,
};
use crate::wire::request::{Head, Method, decode_segment, query_pairs};
use crate::wire::response::{Answer, Cache, StatusCode, problems};
use crate::wire::{User, UserBuf, UserFault};

/// Why an argument was refused.
pub(super) enum Fault {
    /// The query is not understood; what and what would be.
    Query(Cow<'static, str>),
    /// A user in the path or the query of a question is none; why.
    User(&'static str),
    /// The body, or what a query says in its place.
    Body(BodyFault),
}

impl From<BodyFault> for Fault {
    fn from(fault: BodyFault) -> Fault {
        Fault::Body(fault)
    }
}

impl From<UserFault> for Fault {
    fn from(fault: UserFault) -> Fault {
        Fault::User(fault.explain())
    }
}

impl Engine {
    /// Reads what a row takes and serves it. Err: it was refused.
    pub(super) fn serve_call(
        &mut self,
        id: ConnId,
        (row, segment): (&Row, &str),
        head: &Head<'_>,
        body: &[u8],
        caller: &Caller,
        now: Now,
    ) -> Result<Served, Answer> {
        let (users_max, watch_max) = (
            self.settings.query_users_max,
            self.settings.watches_per_stream_max,
        );
        let query = head.query.unwrap_or("");
        let users_limit = Counter::LimitQueryUsers;
        let watch_limit = Counter::LimitWatchesPerStream;
        Ok(match row.serve {
            Serve::Bare(serve) => serve(self, now).into(),
            Serve::Fixed(page) => fixed(page, Cache::Revalidate, head).into(),
            Serve::Pinned(page) => pinned(page, segment, head).into(),
            Serve::One(serve) => {
                let bytes = self.read(unescaped(segment), users_limit)?;
                let user = self.read(User::parse(&bytes), users_limit)?;
                self.take_rate(caller, &[(Asked::Queries, 1), (Asked::Ids, 1)], now)?;
                caller.check_watch([user].into_iter())?;
                serve(self, id, user, caller, now)
            }
            Serve::Listed(serve) => {
                let (users, ignored) = self.read(listed(query, users_max), users_limit)?;
                self.take_query(caller, &users, now)?;
                caller.check_watch_all(&users)?;
                serve(self, id, users, ignored, caller, now)
            }
            Serve::Users(serve) => {
                let users = self.read(parse_users(body, users_max), users_limit)?;
                self.take_query(caller, &users, now)?;
                caller.check_watch_all(&users)?;
                serve(self, id, users, caller, now)
            }
            Serve::Notes(serve) => {
                let ask = self.read(parse_beat(body, users_max), users_limit)?;
                caller.check_speaks_all(&ask.users)?;
                serve(self, id, ask, caller, now)
            }
            Serve::Says(serve) => {
                let mut ask = self.read(parse_status(body, users_max), users_limit)?;
                ask.user = ask.user.map(|user| caller.resolve_me(user));
                caller.check_speaks(ask.user.iter().map(UserBuf::user))?;
                caller.check_publishes()?;
                serve(self, id, ask, caller, now)
            }
            Serve::Parts(serve) => {
                let ask = self.read(parse_leave(body, users_max), users_limit)?;
                caller.check_speaks_all(&ask.users)?;
                serve(self, id, ask, caller, now)
            }
            Serve::Record(serve) => {
                let told = self.read(record(segment, body), users_limit)?;
                serve(self, &[Ok(told)], head.feed, now).into()
            }
            Serve::Records(serve) => {
                let told = self.read(parse_told_list(body, users_max), users_limit)?;
                serve(self, &told, head.feed, now).into()
            }
            // Its head alone: no stream begins.
            Serve::Follows(_) if head.method == Method::Head => Answer::stream().into(),
            Serve::Follows(serve) => serve(self, caller, now),
            Serve::Opens(serve) => {
                let shown = self.credentials_in_query();
                let ask = match head.method {
                    Method::Post => stream_posted(query, body, watch_max, shown),
                    _ => stream_asked(query, watch_max, shown),
                };
                let (mut ask, ignored) = self.read(ask, watch_limit)?;
                let asks = [(Asked::Streams, 1), (Asked::Watches, ask.watch.len())];
                if self.take_rate(caller, &asks, now).is_err() {
                    return Ok(Served::Overloaded("rate"));
                }
                // The header is newer: a reconnecting EventSource repeats its first URL.
                if let Some(id) = head.last_event_id {
                    ask.last_event_id = Some(text(id));
                }
                if ask.user.is_none() && !ask.said.is_empty() {
                    let detail = "status and invisible are a user's, and the stream has none";
                    return Err(Answer::problem(problems::BAD_QUERY, detail));
                }
                ask.user = ask.user.map(|user| caller.resolve_me(user));
                caller.check_holds(ask.user.as_ref())?;
                caller.check_watch_all(&ask.watch)?;
                // Whoever asks why a stream is refused asks for its head alone: none begins.
                match head.method {
                    Method::Head => Answer::stream().into(),
                    _ => serve(self, id, ask, ignored, caller, now),
                }
            }
            Serve::Bundles(serve) => serve(self, body, now).into(),
            Serve::Devices(serve) => {
                let device = self.read(parse_device(body), users_limit)?;
                caller.check_publishes()?;
                self.take_rate(caller, &[(Asked::Tickets, 1)], now)?;
                serve(self, device.user(), caller, now).into()
            }
            Serve::Mints(serve) => {
                self.take_rate(caller, &[(Asked::Tickets, 1)], now)?;
                serve(self, body, caller, now).into()
            }
            Serve::Voids(serve) => {
                let ask = self.read(parse_revoke(body), users_limit)?;
                serve(self, id, ask, caller, now)
            }
            Serve::SignsIn(serve) => {
                let over_tls = head.origin.is_some_and(|it| it.starts_with("https://"));
                // What a parser complains of it quotes, and this is a secret.
                let key = parse_session(body).ok_or_else(|| {
                    let detail = "the body is {\"key\":\"..\"}, with a service key";
                    Answer::problem(problems::BAD_JSON, detail)
                })?;
                serve(self, &key, over_tls, now).into()
            }
            Serve::Walks(filter, serve) => {
                let most = users_max.min(PAGE_MAX);
                let page = self.read(Page::asked(query, filter, most), users_limit)?;
                serve(self, id, page, caller, now)
            }
            Serve::InPath(serve) => serve(self, id, segment, caller, now),
            Serve::Beaten(serve) => {
                let idle_ms = self.read(parse_idle(body), users_limit)?;
                serve(self, id, segment, idle_ms, caller, now)
            }
            Serve::Edits(serve) => {
                let edit = self.read(parse_watch_edit(body, watch_max), watch_limit)?;
                let asks = [(Asked::Edits, 1), (Asked::Watches, edit.add.len())];
                self.take_rate(caller, &asks, now)?;
                caller.check_watch_all(&edit.add)?;
                serve(self, id, segment, edit, caller, now)
            }
        })
    }

    /// Takes a query of so many of what a caller may ask.
    fn take_query(&mut self, caller: &Caller, users: &[Entry], now: Now) -> Result<(), Answer> {
        let asks = [(Asked::Queries, 1), (Asked::Ids, users.len())];
        self.take_rate(caller, &asks, now)
    }

    /// Refuses what was not understood; `limit` is what it hit if it was too long a list.
    fn read<T>(
        &mut self,
        result: Result<T, impl Into<Fault>>,
        limit: Counter,
    ) -> Result<T, Answer> {
        result.map_err(|fault| self.refusal(&fault.into(), limit))
    }

    fn refusal(&mut self, fault: &Fault, limit: Counter) -> Answer {
        let fault = match fault {
            Fault::Query(detail) => return Answer::problem(problems::BAD_QUERY, detail),
            Fault::User(detail) => return Answer::problem(problems::BAD_USER, detail),
            Fault::Body(fault) => fault,
        };
        match fault {
            BodyFault::Malformed(detail) => Answer::problem(problems::BAD_JSON, detail),
            BodyFault::TooDeep => {
                self.counters.add(Counter::LimitBodyDepth, 1);
                Answer::problem(problems::BAD_JSON, "the body is nested more than 8 deep")
            }
            BodyFault::User { member, fault } => {
                let detail = format!("{member}: {}", fault.explain());
                Answer::problem(problems::BAD_USER, &detail)
            }
            BodyFault::TooMany { member, max, given } => {
                self.counters.add(limit, 1);
                let detail = format!(
                    "{member} names {given} users or more; at most {max} are taken at once"
                );
                Answer::problem(problems::TOO_MANY_USERS, &detail)
            }
        }
    }
}

/// A file, or that the asker has it already.
fn fixed(page: &'static File, cache: Cache, head: &Head<'_>) -> Answer {
    let tag = &page.tag;
    let known = head.if_none_match.unwrap_or_default();
    // A proxy that compresses weakens the tag (RFC 9110 section 13.1.2 compares weakly).
    let mut tags = known.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    let is_known = tags.any(|known| known.strip_prefix(b"W/").unwrap_or(known) == tag.as_bytes());
    let status = if is_known {
        StatusCode::NotModified
    } else {
        StatusCode::Ok
    };
    Answer {
        status,
        cache,
        ..Answer::ok(page.content_type, page.body.as_bytes())
    }
    .with_lines(format!("ETag: {tag}\r\n"))
}

/// A file under the name that has its version, which is this server's.
fn pinned(page: &'static File, version: &str, head: &Head<'_>) -> Answer {
    const OWN: &str = env!("CARGO_PKG_VERSION");
    if version == OWN {
        return fixed(page, Cache::Forever, head);
    }
    let detail = format!("this server has the client of version {OWN}");
    Answer::problem(problems::NOT_FOUND, &detail)
}

fn unescaped(segment: &str) -> Result<Cow<'_, [u8]>, UserFault> {
    decode_segment(segment).ok_or(UserFault::BadEscape)
}

/// The user that a value of a query names; None: its escapes are broken.
pub(super) fn entry(value: Option<&[u8]>) -> Entry {
    Ok(User::parse(value.ok_or(UserFault::BadEscape)?)?.into())
}

/// The users of `user=a&user=b`, at most `max`, and what else stands there.
fn listed(query: &str, max: usize) -> Result<(Vec<Entry>, Ignored), Fault> {
    let (mut users, mut ignored) = (Vec::new(), Ignored::default());
    for (name, value) in query_pairs(query) {
        match &*name {
            b"user" => users.push(entry(value.as_deref())),
            other => ignored.add(other),
        }
        if users.len() > max {
            return Err(too_many("user", max, users.len()));
        }
    }
    if users.is_empty() {
        let detail = "the query names nobody; it takes user=.., as often as there are users to \
                      ask for";
        return Err(Fault::Query(detail.into()));
    }
    Ok((users, ignored))
}

fn too_many(member: &'static str, max: usize, given: usize) -> Fault {
    Fault::Body(BodyFault::TooMany { member, max, given })
}

/// The state in a body, of the user in the path.
fn record(segment: &str, body: &[u8]) -> Result<Told, Fault> {
    let bytes = unescaped(segment)?;
    let told = parse_told(body)?;
    if told.user.as_str().as_bytes() != &*bytes {
        return Err(Fault::User("the path and the record name different users"));
    }
    Ok(told)
}

/// What the query of a stream asks for, and what else stands there; of what it shows of its caller,
/// named by `shown`, nothing is said here.
fn stream_asked(
    query: &str,
    watch_max: usize,
    shown: &[&str],
) -> Result<(StreamAsk, Ignored), Fault> {
    let (mut ask, mut ignored) = (StreamAsk::default(), Ignored::default());
    let mut vouch = None;
    for (name, value) in query_pairs(query) {
        match &*name {
            b"watch" => {
                ask.watch.push(entry(value.as_deref()));
                if ask.watch.len() > watch_max {
                    return Err(too_many("watch", watch_max, ask.watch.len()));
                }
            }
            b"user" if ask.user.is_none() => {
                let member = "user";
                let user = entry(value.as_deref());
                ask.user = Some(user.map_err(|fault| BodyFault::User { member, fault })?);
            }
            b"vouch" if vouch.is_none() => {
                let said = value.as_deref().and_then(Vouch::parse);
                vouch = Some(said.ok_or(Fault::Query(BAD_VOUCH.into()))?);
            }
            b"vouch" => return Err(Fault::Query("vouch stands twice".into())),
            b"status" if ask.said.status.is_none() => {
                let said = value.as_deref().and_then(Said::status_of);
                ask.said.status = Some(said.ok_or(Fault::Query(BAD_STATUS.into()))?);
            }
            b"invisible" if ask.said.invisible.is_none() => {
                let said = value.as_deref().and_then(Said::invisible_of);
                ask.said.invisible = Some(said.ok_or(Fault::Query(BAD_INVISIBLE.into()))?);
            }
            b"status" | b"invisible" => {
                let detail = "status and invisible may stand once each";
                return Err(Fault::Query(detail.into()));
            }
            b"user" => {
                let detail = "user stands twice: a stream has one holder";
                return Err(Fault::Query(detail.into()));
            }
            other if is_last_event_id(other) || is_one_of(shown, other) => {}
            other => ignored.add(other),
        }
    }
    ask.last_event_id = last_event_id(query);
    ask.vouch = vouch.unwrap_or_default();
    Ok((ask, ignored))
}

/// What the body of a stream asks for. Readers that resume add to the query whatever the method is.
fn stream_posted(
    query: &str,
    body: &[u8],
    watch_max: usize,
    shown: &[&str],
) -> Result<(StreamAsk, Ignored), Fault> {
    let mut ask = parse_stream_ask(body, watch_max)?;
    let mut ignored = Ignored::default();
    for (name, _) in query_pairs(query) {
        if !is_last_event_id(&name) && !is_one_of(shown, &name) {
            ignored.add(&name);
        }
    }
    ask.last_event_id = last_event_id(query).or(ask.last_event_id);
    Ok((ask, ignored))
}

/// The names of a stream's last event id in a query, oldest first: its own, which is part of the
/// first URL, and those that readers add when they come back (event-source-polyfill; the header's).
const LAST_EVENT_IDS: [&[u8]; 3] = [b"last_event_id", b"lastEventId", b"Last-Event-ID"];

fn is_last_event_id(name: &[u8]) -> bool {
    LAST_EVENT_IDS.contains(&name)
}

fn is_one_of(names: &[&str], name: &[u8]) -> bool {
    names.iter().any(|known| known.as_bytes() == name)
}

/// The newest last event id of a query. One that can not be read is no time, and resumes nothing.
fn last_event_id(query: &str) -> Option<String> {
    let ids = query_pairs(query).filter_map(|(name, value)| {
        let age = LAST_EVENT_IDS.iter().position(|known| *known == &*name)?;
        Some((age.min(1), text(&value.unwrap_or_default())))
    });
    // Of two that are as old as each other the last: what is added is added behind.
    ids.max_by_key(|(age, _)| *age).map(|(_, id)| id)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
