//! From a request to its answer: which call it is, whether it is well formed, who serves it.
//!
//! Owns the table of paths and methods. Streams are opened in `stream.rs`.

pub(super) mod stream;

use super::conn::http::Asked;
use super::fanout::record_of;
use super::{Engine, Role};
use crate::metrics::{Call, Counter, Gauge};
use crate::pages;
use crate::presence::{BeatOutcome, InternFault, LeaveOutcome};
use crate::realtime::ConnId;
use crate::realtime::conn::flag;
use crate::time::{Now, Unix};
use crate::wire::User;
use crate::wire::record::{BodyFault, Record, parse_users};
use crate::wire::request::{Framing, Head, Method, decode_segment, query_pairs};
use crate::wire::response::{Status, problems};

/// A path that is served.
enum Route<'h> {
    One(&'h str),
    Many,
    Query,
    Stream,
    Watch(&'h str),
    Beat,
    Leave,
    Live,
    Ready,
    Metrics,
    Page(pages::Page),
}

impl<'h> Route<'h> {
    fn of(path: &'h str) -> Option<Route<'h>> {
        Some(match path {
            "/v1/presence" => Route::Many,
            "/v1/stream" => Route::Stream,
            "/v1/beat" => Route::Beat,
            "/v1/leave" => Route::Leave,
            "/livez" => Route::Live,
            "/readyz" => Route::Ready,
            "/metrics" => Route::Metrics,
            "/v1/presence/query" => Route::Query,
            _ => {
                if let Some(user) = path.strip_prefix("/v1/presence/") {
                    return (!user.is_empty() && !user.contains('/')).then_some(Route::One(user));
                }
                if let Some(rest) = path.strip_prefix("/v1/stream/") {
                    return rest
                        .strip_suffix("/watch")
                        .filter(|id| !id.contains('/'))
                        .map(Route::Watch);
                }
                return pages::page(path).map(Route::Page);
            }
        })
    }

    fn call(&self) -> Call {
        match self {
            Route::One(_) => Call::PresenceOne,
            Route::Many => Call::PresenceMany,
            Route::Query => Call::PresenceQuery,
            Route::Stream => Call::Stream,
            Route::Watch(_) => Call::StreamWatch,
            Route::Beat => Call::Beat,
            Route::Leave => Call::Leave,
            Route::Live | Route::Ready => Call::Health,
            Route::Metrics => Call::Metrics,
            Route::Page(_) => Call::Page,
        }
    }

    fn allow(&self, role: &Role) -> &'static str {
        match self {
            Route::One(_) | Route::Many | Route::Query if is_told(role) => "PUT, OPTIONS",
            Route::Query | Route::Stream => "GET, HEAD, POST, OPTIONS",
            Route::Watch(_) | Route::Beat | Route::Leave => "POST, OPTIONS",
            _ => "GET, HEAD, OPTIONS",
        }
    }

    fn allows(&self, method: Method, role: &Role) -> bool {
        match method {
            Method::Get | Method::Head => {
                !matches!(self, Route::Watch(_) | Route::Beat | Route::Leave)
            }
            Method::Post => matches!(
                self,
                Route::Query | Route::Stream | Route::Watch(_) | Route::Beat | Route::Leave
            ),
            // A user may be called "query".
            Method::Put => {
                is_told(role) && matches!(self, Route::One(_) | Route::Many | Route::Query)
            }
            Method::Options => true,
            _ => false,
        }
    }

    /// The halves of the platform that serve it: states are asked of whoever decides them and
    /// published to whoever tells them.
    fn is_served_by(&self, role: &Role, method: Method) -> bool {
        match (self, method, role) {
            (Route::One(_) | Route::Many | Route::Query, Method::Put | Method::Options, _) => true,
            (
                Route::One(_) | Route::Many | Route::Query | Route::Beat | Route::Leave,
                _,
                Role::Realtime(_),
            )
            | (Route::Stream | Route::Watch(_), _, Role::Presence) => false,
            _ => true,
        }
    }
}

/// Whether the node is told of presence instead of deciding it.
fn is_told(role: &Role) -> bool {
    matches!(role, Role::Realtime(_))
}

impl Engine {
    /// Serves one whole request.
    pub(super) fn dispatch(&mut self, id: ConnId, head: &Head<'_>, body: &[u8], now: Now) {
        if head.path == "*" {
            let asked = self.asked(Call::Other, head);
            let extra = format!("Allow: GET, HEAD, POST, OPTIONS\r\n{}", asked.cors);
            return self.answer_with(id, &asked, Status::NoContent, "", b"", &extra, now);
        }
        let Some(route) = Route::of(head.path) else {
            let asked = self.asked(Call::Other, head);
            let detail = "see /openapi.json for the paths that are served";
            return self.problem(id, &asked, problems::NOT_FOUND, detail, "", now);
        };
        let call = match head.method {
            Method::Put if route.allows(Method::Put, &self.role) => Call::PresencePut,
            _ => route.call(),
        };
        let asked = self.asked(call, head);
        if !route.allows(head.method, &self.role) {
            let allow = format!("Allow: {}\r\n", route.allow(&self.role));
            let detail = format!("the path takes {}", route.allow(&self.role));
            return self.problem(
                id,
                &asked,
                problems::METHOD_NOT_ALLOWED,
                &detail,
                &allow,
                now,
            );
        }
        if head.method == Method::Options {
            return self.preflight(id, &asked, route.allow(&self.role), now);
        }
        if !route.is_served_by(&self.role, head.method) {
            let detail = self.elsewhere(&route, head, body);
            return self.problem(id, &asked, problems::WRONG_ROLE, &detail, "", now);
        }
        if self.conns.at(id.index).has(flag::SURPLUS) && !self.is_never_surplus(&asked, head) {
            return self.refuse_surplus(id, &asked, now);
        }
        if matches!(head.method, Method::Post | Method::Put)
            && !self.check_body(id, &asked, head, now)
        {
            return;
        }
        if head.method == Method::Put && !self.check_service(id, &asked, head, now) {
            return;
        }
        match route {
            Route::One(raw) if head.method == Method::Put => {
                self.put_one(id, &asked, head.node, raw, body, now)
            }
            Route::Query if head.method == Method::Put => {
                self.put_one(id, &asked, head.node, "query", body, now)
            }
            Route::Many if head.method == Method::Put => {
                self.put_many(id, &asked, head.node, body, now)
            }
            Route::One(raw) => self.presence_one(id, &asked, raw, now),
            Route::Query if head.method == Method::Post => {
                self.presence_query(id, &asked, body, now)
            }
            Route::Query => self.presence_one(id, &asked, "query", now),
            Route::Many => self.presence_many(id, &asked, head.query.unwrap_or(""), now),
            Route::Stream => self.stream(id, &asked, head, body, now),
            Route::Watch(stream) => self.edit(id, asked, stream, body, now),
            Route::Beat => self.beat(id, &asked, body, now),
            Route::Leave => self.leave(id, &asked, body, now),
            Route::Live => {
                self.answer_with(id, &asked, Status::Ok, "text/plain", b"ok\n", NO_STORE, now)
            }
            Route::Ready => self.ready(id, &asked, now),
            Route::Metrics => self.metrics(id, &asked, now),
            Route::Page(page) => {
                let extra = format!("Cache-Control: no-cache\r\n{}", asked.cors);
                self.answer_with(
                    id,
                    &asked,
                    Status::Ok,
                    page.content_type,
                    page.body,
                    &extra,
                    now,
                );
            }
        }
    }

    fn preflight(&mut self, id: ConnId, asked: &Asked, allow: &str, now: Now) {
        let mut extra = format!("Allow: {allow}\r\n{}", asked.cors);
        if !asked.cors.is_empty() {
            extra.push_str("Access-Control-Allow-Methods: GET, HEAD, POST\r\n");
            extra.push_str("Access-Control-Allow-Headers: Content-Type, Last-Event-ID\r\n");
            extra.push_str("Access-Control-Max-Age: 86400\r\n");
        }
        self.answer_with(id, asked, Status::NoContent, "", b"", &extra, now);
    }

    /// Where else to go with a path that this role does not serve.
    fn elsewhere(&self, route: &Route<'_>, head: &Head<'_>, body: &[u8]) -> String {
        let Role::Realtime(nodes) = &self.role else {
            return "this is a presence node; open and edit streams at a real-time node".to_owned();
        };
        let users = users_named(route, head, body, self.settings.query_users_max);
        let owner = match nodes.http_of(users.iter().map(|user| &**user)) {
            Some(http) => format!("the presence node of whom this names: {http}"),
            None => "the presence node of each user, whose address a request for one user to this \
                 node is told"
                .to_owned(),
        };
        format!(
            "this is a real-time node, which holds streams; send queries, beats and goodbyes to \
             {owner}"
        )
    }

    /// Whether a request is served beyond the limit of connections too: a full node must be seen to
    /// live, and the nodes of the other role must reach it.
    fn is_never_surplus(&self, asked: &Asked, head: &Head<'_>) -> bool {
        match asked.call {
            Call::Health | Call::Metrics | Call::PresencePut => true,
            Call::PresenceQuery => self.is_of_fleet(head),
            _ => false,
        }
    }

    /// The connection was admitted beyond the limit to be told so.
    fn refuse_surplus(&mut self, id: ConnId, asked: &Asked, now: Now) {
        if asked.call == Call::Stream {
            return self.overloaded(id, asked, "connections", now);
        }
        let detail = "the server has all the connections that it takes; try again later";
        let asked = Asked {
            keep_alive: false,
            ..asked.clone()
        };
        self.problem(id, &asked, problems::OVERLOADED, detail, RETRY_AFTER, now);
    }

    /// Whether a POST has a body that may be read as JSON; otherwise it has been answered.
    fn check_body(&mut self, id: ConnId, asked: &Asked, head: &Head<'_>, now: Now) -> bool {
        if head.framing == Framing::None {
            let detail = "send the JSON body with Content-Length or Transfer-Encoding: chunked";
            self.problem(id, asked, problems::LENGTH_REQUIRED, detail, "", now);
            return false;
        }
        let media = head
            .content_type
            .and_then(|value| value.split(';').next())
            .unwrap_or("");
        if !media.trim().eq_ignore_ascii_case("application/json") {
            let detail = "send Content-Type: application/json";
            self.problem(id, asked, problems::UNSUPPORTED_MEDIA_TYPE, detail, "", now);
            return false;
        }
        true
    }

    fn presence_one(&mut self, id: ConnId, asked: &Asked, raw: &str, now: Now) {
        let Some(bytes) = decode_segment(raw) else {
            return self.problem(id, asked, problems::BAD_USER, BAD_ESCAPE, "", now);
        };
        let user = match User::parse(&bytes) {
            Ok(user) => user,
            Err(fault) => {
                return self.problem(id, asked, problems::BAD_USER, fault.explain(), "", now);
            }
        };
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        self.record(user, now).write(&mut body);
        self.answer_json(id, asked, &body, now);
        self.body = body;
    }

    fn presence_many(&mut self, id: ConnId, asked: &Asked, query: &str, now: Now) {
        let mut users = Vec::new();
        for pair in query_pairs(query) {
            let Some((name, value)) = pair else {
                return self.problem(id, asked, problems::BAD_QUERY, BAD_ESCAPE, "", now);
            };
            if &*name != b"user" {
                let detail = "the query takes user=.., as often as there are users to ask for";
                return self.problem(id, asked, problems::BAD_QUERY, detail, "", now);
            }
            let user = match User::parse(&value) {
                Ok(user) => user.as_str().to_owned(),
                Err(fault) => {
                    return self.problem(id, asked, problems::BAD_USER, fault.explain(), "", now);
                }
            };
            users.push(user);
        }
        if users.len() > self.settings.query_users_max {
            let fault = BodyFault::TooMany {
                member: "user",
                max: self.settings.query_users_max,
                given: users.len(),
            };
            return self.bad_body(id, asked, &fault, Counter::LimitQueryUsers, now);
        }
        self.presence_list(id, asked, &users, "", now);
    }

    fn presence_query(&mut self, id: ConnId, asked: &Asked, body: &[u8], now: Now) {
        if let Some(users) = self.users_of(id, asked, body, now) {
            // Tells a node that mirrors this one which life of it answers, as of when, and what its
            // clock shows.
            let extra = match self.role {
                Role::Presence => format!(
                    "{NODE_HEADER}: {:016x} {} {}\r\n",
                    instance_of(&self.secret),
                    self.presence.published_up_to().ms(),
                    now.unix.ms()
                ),
                Role::All | Role::Realtime(_) => String::new(),
            };
            self.presence_list(id, asked, &users, &extra, now);
        }
    }

    fn presence_list(
        &mut self,
        id: ConnId,
        asked: &Asked,
        users: &[String],
        extra: &str,
        now: Now,
    ) {
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        body.extend_from_slice(b"{\"presence\":[");
        for (at, user) in users.iter().enumerate() {
            if at > 0 {
                body.push(b',');
            }
            // Checked when it was read.
            if let Ok(user) = User::parse(user.as_bytes()) {
                self.record(user, now).write(&mut body);
            }
        }
        body.extend_from_slice(b"]}");
        let extra = [NO_STORE, &asked.cors, extra].concat();
        self.answer_with(
            id,
            asked,
            Status::Ok,
            "application/json",
            &body,
            &extra,
            now,
        );
        self.body = body;
    }

    /// A user's state as told to whoever asks.
    fn record<'u>(&'u self, user: User<'u>, now: Now) -> Record<'u> {
        match self.presence.lookup(user) {
            None => Record::timeless(user, crate::status::Status::Offline),
            Some(slot) => record_of(&self.presence, slot, now),
        }
    }

    /// The users of a body `{"users":[..]}`; None if the request has been refused.
    fn users_of(
        &mut self,
        id: ConnId,
        asked: &Asked,
        body: &[u8],
        now: Now,
    ) -> Option<Vec<String>> {
        match parse_users(body, self.settings.query_users_max) {
            Ok(users) => Some(users),
            Err(fault) => {
                self.bad_body(id, asked, &fault, Counter::LimitQueryUsers, now);
                None
            }
        }
    }

    /// Answers a body that was refused; `limit` is what it hit if it was too long a list.
    pub(super) fn bad_body(
        &mut self,
        id: ConnId,
        asked: &Asked,
        fault: &BodyFault,
        limit: Counter,
        now: Now,
    ) {
        let (problem, detail) = match fault {
            BodyFault::Malformed(detail) => (problems::BAD_JSON, detail.clone()),
            BodyFault::TooDeep => {
                self.counters.add(Counter::LimitBodyDepth, 1);
                (
                    problems::BAD_JSON,
                    "the body is nested more than 8 deep".to_owned(),
                )
            }
            BodyFault::User {
                member,
                index,
                fault,
            } => (
                problems::BAD_USER,
                format!("{member}[{index}]: {}", fault.explain()),
            ),
            BodyFault::TooMany { member, max, given } => {
                self.counters.add(limit, 1);
                (
                    problems::TOO_MANY_USERS,
                    format!(
                        "{member} names {given} users or more; at most {max} are taken at once"
                    ),
                )
            }
        };
        self.problem(id, asked, problem, &detail, "", now);
    }

    fn beat(&mut self, id: ConnId, asked: &Asked, body: &[u8], now: Now) {
        let Some(users) = self.users_of(id, asked, body, now) else {
            return;
        };
        let mut refused = None;
        for user in &users {
            let Ok(user) = User::parse(user.as_bytes()) else {
                continue;
            };
            match self.presence.intern(user) {
                Ok(slot) => {
                    let outcome = self.presence.record_beat(slot, Unix::LATEST, now);
                    self.book_beat(slot, outcome, Counter::BeatsHttp, now);
                }
                Err(fault) => {
                    self.book_intern_fault(fault);
                    refused = Some(fault);
                }
            }
        }
        self.settle(now);
        match refused {
            None => self.answer_with(id, asked, Status::NoContent, "", b"", &asked.cors, now),
            Some(fault) => self.problem(
                id,
                asked,
                problems::OVERLOADED,
                intern_detail(fault),
                RETRY_AFTER,
                now,
            ),
        }
    }

    fn leave(&mut self, id: ConnId, asked: &Asked, body: &[u8], now: Now) {
        let Some(users) = self.users_of(id, asked, body, now) else {
            return;
        };
        for user in &users {
            let slot = User::parse(user.as_bytes())
                .ok()
                .and_then(|user| self.presence.lookup(user));
            let Some(slot) = slot else {
                self.counters.add(Counter::LeavesIgnored, 1);
                continue;
            };
            match self.presence.record_leave(slot, now.unix, now) {
                LeaveOutcome::Left => {
                    self.counters.add(Counter::LeavesHttp, 1);
                    self.look(slot, now);
                }
                LeaveOutcome::Ignored => self.counters.add(Counter::LeavesIgnored, 1),
            }
        }
        self.settle(now);
        self.answer_with(id, asked, Status::NoContent, "", b"", &asked.cors, now);
    }

    /// Counts a beat and has the owner look at a publisher that may have come online.
    pub(super) fn book_beat(
        &mut self,
        slot: crate::slot::Slot,
        outcome: BeatOutcome,
        source: Counter,
        now: Now,
    ) {
        match outcome {
            BeatOutcome::Stored => self.counters.add(source, 1),
            BeatOutcome::StoredOffline => {
                self.counters.add(source, 1);
                self.look(slot, now);
            }
            BeatOutcome::BeforeLeave => self.counters.add(Counter::BeatBeforeLeave, 1),
        }
    }

    pub(super) fn book_intern_fault(&mut self, fault: InternFault) {
        match fault {
            InternFault::Full => {
                self.counters.add(Counter::BeatUsersFull, 1);
                self.counters.add(Counter::LimitUsers, 1);
            }
            InternFault::NoSpace => self.counters.add(Counter::BeatNoSpace, 1),
        }
    }

    fn ready(&mut self, id: ConnId, asked: &Asked, now: Now) {
        if self.upkeep.is_draining() {
            let detail = "the server is shutting down";
            return self.problem(id, asked, problems::DRAINING, detail, RETRY_AFTER, now);
        }
        // Degraded is ready: what is known is served, and sending the streams away would help
        // nobody.
        let degraded = self.board.process.gauge(Gauge::NodesDown) > 0;
        let body: &[u8] = if degraded {
            b"degraded: some nodes of the other role do not answer\n"
        } else {
            b"ready\n"
        };
        self.answer_with(id, asked, Status::Ok, "text/plain", body, NO_STORE, now);
    }

    fn metrics(&mut self, id: ConnId, asked: &Asked, now: Now) {
        let process = &self.board.process;
        process.set(Gauge::Users, u64::from(self.presence.users()));
        process.set(Gauge::UsersOnline, self.presence.online());
        let text = pages::exposition::render(&self.board);
        self.answer_with(
            id,
            asked,
            Status::Ok,
            pages::exposition::CONTENT_TYPE,
            text.as_bytes(),
            NO_STORE,
            now,
        );
    }
}

/// Tells one life of a process from another, by what its engines' secret is.
pub fn instance_of(secret: &[u8; 32]) -> u64 {
    let name = blake3::keyed_hash(secret, b"instance");
    u64::from_be_bytes(
        *name
            .as_bytes()
            .first_chunk()
            .expect("a BLAKE3 hash has 32 bytes"),
    )
}

/// For an answer that must not be kept.
pub(super) const NO_STORE: &str = "Cache-Control: no-store\r\n";
/// Header by which a presence node says which life of it speaks (16 hex digits); in an answer to a
/// query also a moment of its clock (Unix ms) before which it publishes nothing any more.
pub const NODE_HEADER: &str = "Greendot-Node";
/// For a refusal that load explains.
pub(super) const RETRY_AFTER: &str = "Retry-After: 5\r\n";
/// Detail of a bad percent-encoding.
pub(super) const BAD_ESCAPE: &str = "a % is not followed by two hex digits";

/// Whom a query, beat or goodbye names, as far as it is well formed.
fn users_named(route: &Route<'_>, head: &Head<'_>, body: &[u8], users_max: usize) -> Vec<Vec<u8>> {
    match route {
        Route::One(raw) => decode_segment(raw)
            .into_iter()
            .map(|user| user.to_vec())
            .collect(),
        Route::Query if head.method != Method::Post => vec![b"query".to_vec()],
        Route::Many => {
            let pairs = query_pairs(head.query.unwrap_or("")).flatten();
            let users = pairs.filter(|(name, _)| &**name == b"user");
            users.map(|(_, user)| user.to_vec()).collect()
        }
        Route::Query | Route::Beat | Route::Leave => {
            let users = parse_users(body, users_max).unwrap_or_default();
            users.into_iter().map(String::into_bytes).collect()
        }
        _ => Vec::new(),
    }
}

/// Why a user could not be taken in.
pub(super) fn intern_detail(fault: InternFault) -> &'static str {
    match fault {
        InternFault::Full => "the server knows as many users as it may (users_max)",
        InternFault::NoSpace => {
            "the server's data folder cannot grow: its disk is full or its files have reached a \
             limit"
        }
    }
}
