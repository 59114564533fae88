//! The table of calls: a row an endpoint.
//!
//! Owns which paths take which methods, which nodes serve them, who may call, and what stands in
//! for them beyond the limit of connections. A new endpoint is a row here and a function in a file
//! beside; docs/PROTOCOL.md and `web/openapi.json` list the same rows, and tests hold that they do.
//! Never looks at more of a request than its method and path.
//!
//! Operators' calls are `inner` rows: on the public listener of a node that has another for them
//! they are not there.

#[cfg(test)]
mod tests;

use super::beat::beat;
use super::caller::Caller;
use super::datagrams::take;
use super::device_key::make as device;
use super::edit::{edit, renew};
use super::forget::forget;
use super::held::held;
use super::ignored::Ignored;
use super::leave::{end_streams as end, leave};
use super::node::{about, dashboard, follow, live, metrics, ready};
use super::online::online;
use super::page::{Filter, Page as Asked};
use super::query::{many, one, query};
use super::revoke::{revoke, told};
use super::served::Served;
use super::session::{sign_in, sign_out};
use super::status::set;
use super::stream::open;
use super::stream_beat::beat as stream_beat;
use super::streams::{end as cut, list, one as seen, own};
use super::ticket::make;
use crate::auth::Scope;
use crate::engine::parts::Engine;
use crate::engine::role::Role;
use crate::engine::told::put;
use crate::metrics::Call;
use crate::pages::{API, CLIENT, CLIENT_TYPES, DEMO as DEMO_PAGE, ELEMENT, File};
use crate::realtime::ConnId;
use crate::time::Now;
use crate::wire::User;
use crate::wire::record::{
    BeatAsk, Entry, ItemFault, LeaveAsk, RevokeAsk, StatusAsk, StreamAsk, Told, WatchEdit,
};
use crate::wire::request::Method;
use crate::wire::response::Answer;

use Call::{
    Datagrams, DeviceKey, Health, Leave, Online, Page, PresenceForget, PresenceMany, PresenceOne,
    PresencePut, PresenceQuery, Revocations, Session, Status, Stream, StreamBeat, StreamToken,
    StreamWatch, StreamsCut, StreamsEnd, StreamsHeld, StreamsList, StreamsOne, Ticket,
};
use Filter::{Prefix as ByPrefix, User as ByUser};
use Method::{Delete, Get, Post, Put};
use Roles::{Decides, Every, Keeps, Mirrors, Passes, Shares, Streams};
use Scope::{Admin, Beat, Metrics, Publish, Query, Revoke};
use Serve::{
    Bare, Beaten, Bundles, Devices, Edits, Fixed, Follows, InPath, Listed, Mints, Notes, One,
    Opens, Parts, Pinned, Record, Records, Says, SignsIn, Users, Voids, Walks,
};
use Surplus::{Allowed, Fleet, Later, Refused};
use Who::{Either, Here, Holder, Local, Nodes, Open, Peers, Services};

/// Every endpoint. Where two paths match, the row is the first that takes the method: a user may be
/// called "query".
#[rustfmt::skip] // A row a line.
static TABLE: &[Row] = &[
    row(Post, "/v1/presence/query", PresenceQuery, Passes, Either(Query), Fleet, Users(query)),
    row(Get,  ONE_USER,            PresenceOne,  Passes,  Either(Query),  Refused, One(one)),
    inner(Put, ONE_USER,           PresencePut,  Mirrors, Peers(Publish), Allowed, Record(put)),
    inner(Delete, ONE_USER,        PresenceForget, Keeps, Services(Admin), Allowed, One(forget)),
    row(Get,  "/v1/presence",      PresenceMany, Passes,  Either(Query),  Refused, Listed(many)),
    inner(Put, "/v1/presence",     PresencePut,  Mirrors, Peers(Publish), Allowed, Records(put)),
    row(Get,  STREAM,              Stream,       Streams, Holder,         Later,   Opens(open)),
    row(Post, STREAM,              Stream,       Streams, Holder,         Later,   Opens(open)),
    row(Post, STREAM_WATCH,        StreamWatch,  Streams, Holder,         Refused, Edits(edit)),
    row(Post, STREAM_TOKEN,        StreamToken,  Streams, Holder,         Allowed, InPath(renew)),
    row(Post, STREAM_BEAT,         StreamBeat,   Streams, Holder,  Allowed, Beaten(stream_beat)),
    inner(Post, "/v1/streams/held", StreamsHeld, Mirrors, Peers(Admin),   Allowed, Users(held)),
    inner(Post, "/v1/streams/end", StreamsEnd,   Mirrors, Peers(Admin),   Allowed, Parts(end)),
    inner(Get, STREAMS,           StreamsList, Streams, Here(Admin), Allowed, Walks(ByUser, list)),
    row(Get, NODE_STREAMS,         StreamsList,  Streams, Nodes, Allowed, Walks(ByUser, own)),
    row(Get, NODE_STREAM,          StreamsOne,   Streams, Nodes,          Allowed, InPath(seen)),
    row(Delete, NODE_STREAM,       StreamsCut,   Streams, Nodes,          Allowed, InPath(cut)),
    inner(Get, ONE_STREAM,         StreamsOne,   Streams, Here(Admin),    Allowed, InPath(seen)),
    inner(Delete, ONE_STREAM,      StreamsCut,   Streams, Services(Admin), Allowed, InPath(cut)),
    inner(Get, ONLINE,             Online, Shares, Here(Admin), Allowed, Walks(ByPrefix, online)),
    row(Get, NODE_LISTS_STREAMS,   StreamsList,  Streams, Nodes, Allowed, Walks(ByUser, list)),
    row(Get, NODE_LISTS_ONLINE,    Online, Shares, Nodes,        Allowed, Walks(ByPrefix, online)),
    row(Post, "/v1/beat",          Call::Beat,   Passes,  Either(Beat),   Refused, Notes(beat)),
    row(Post, "/v1/datagrams",     Datagrams,    Decides, Nodes,          Fleet,   Bundles(take)),
    row(Post, "/v1/status",        Status,       Every,   Either(Beat),   Refused, Says(set)),
    row(Post, "/v1/leave",         Leave,        Every,   Either(Beat),   Refused, Parts(leave)),
    row(Post, "/v1/ticket",        Ticket, Every, Either(Scope::Ticket),  Refused, Mints(make)),
    row(Post, "/v1/device-key",    DeviceKey,    Every,   Holder,         Refused, Devices(device)),
    inner(Post, "/v1/revoke",      Call::Revoke, Shares,  Services(Revoke), Allowed, Voids(revoke)),
    row(Post, "/v1/revocations",   Revocations,  Every,   Nodes,          Allowed, Bundles(told)),
    row(Get,  "/livez",            Health,       Every,   Open,           Allowed, Bare(live)),
    row(Get,  "/readyz",           Health,       Every,   Open,           Allowed, Bare(ready)),
    inner(Get, METRICS,            Call::Metrics, Every,  Local(Metrics), Allowed, Bare(metrics)),
    inner(Get, "/v1/node",         Call::Node,   Every,   Local(Admin),   Allowed, Bare(about)),
    inner(Get, "/v1/node/stream",  Call::Node,   Every,   Local(Metrics), Later,  Follows(follow)),
    inner(Post, SESSION,           Session,      Every,   Open,         Allowed, SignsIn(sign_in)),
    inner(Delete, SESSION,         Session,      Every,   Open,           Allowed, Bare(sign_out)),
    inner(Get, "/",                Page,         Every,   Open,           Refused, Bare(dashboard)),
    row(Get,  DEMO,                Page,         Streams, Open,      Refused, Fixed(&DEMO_PAGE)),
    row(Get,  "/client.js",        Page,         Every,   Open,           Refused, Fixed(&CLIENT)),
    row(Get,  "/green-dot.js",     Page,         Every,   Open,          Refused, Fixed(&ELEMENT)),
    row(Get,  "/client.d.ts",      Page,         Every,   Open,      Refused, Fixed(&CLIENT_TYPES)),
    row(Get,  PINNED_CLIENT,       Page,         Every,   Open,          Refused, Pinned(&CLIENT)),
    row(Get,  PINNED_ELEMENT,      Page,         Every,   Open,        Refused, Pinned(&ELEMENT)),
    row(Get,  "/openapi.json",     Page,         Every,   Open,           Refused, Fixed(&API)),
];

const ONE_USER: &str = "/v1/presence/{user}";
const METRICS: &str = "/metrics";
const SESSION: &str = "/v1/session";
/// Not served by every node: see [`Operators::demo`](crate::engine::Operators::demo).
pub(super) const DEMO: &str = "/demo";
/// The type of most bodies.
pub(super) const JSON: &str = "application/json";

const PINNED_CLIENT: &str = "/client/{version}/client.js";
const PINNED_ELEMENT: &str = "/client/{version}/green-dot.js";
const STREAM: &str = "/v1/stream";
const STREAMS: &str = "/v1/streams";
/// What nodes of a fleet ask each other.
pub(super) const NODE_STREAMS: &str = "/v1/node/streams";
/// Where nodes send on what goes on at another one.
pub(super) const NODE_LISTS_STREAMS: &str = "/v1/node/lists/streams";
pub(super) const NODE_LISTS_ONLINE: &str = "/v1/node/lists/online";
const NODE_STREAM: &str = "/v1/node/streams/{stream}";
const ONE_STREAM: &str = "/v1/streams/{stream}";
const ONLINE: &str = "/v1/online";
const STREAM_WATCH: &str = "/v1/stream/{stream}/watch";
const STREAM_TOKEN: &str = "/v1/stream/{stream}/token";
/// Served beyond the limit of connections too: whom a full server does not hear is offline.
const STREAM_BEAT: &str = "/v1/stream/{stream}/beat";

pub(super) struct Row {
    /// Its method; what takes GET takes HEAD, and every path takes OPTIONS.
    pub(super) method: Method,
    /// Its path as openapi writes it: one segment may be in braces.
    pub(super) path: &'static str,
    /// Where in `path` the segment in braces begins and ends.
    braces: Option<(usize, usize)>,
    /// What its requests are counted as.
    pub(super) call: Call,
    /// Which nodes serve it.
    pub(super) roles: Roles,
    /// Who may call.
    pub(super) who: Who,
    /// It is operators' business.
    pub(super) inner: bool,
    /// What it is worth beyond the limit of connections.
    pub(super) surplus: Surplus,
    /// What it takes, and the function that serves it with that.
    pub(super) serve: Serve,
}

/// Which nodes serve a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Roles {
    Every,
    /// All: a real-time node passes it on to those that decide who is online, though not for nodes.
    Passes,
    /// Those that decide who is online. A real-time node says that it does not.
    Decides,
    /// The same, and nodes of a fleet: its database has what all of them must know.
    Shares,
    /// Those that decide who is online, or have a fleet decide. On all others the path does not
    /// take the method.
    Keeps,
    /// Those that hold streams. A presence node says that it does not.
    Streams,
    /// Those that are told who is online. On all others the path does not take the method.
    Mirrors,
}

/// Who may call. Whoever shows a service key that is known is held to its scopes, even where
/// nobody is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Who {
    Open,
    /// Who shows a user's token, where users have any. No service: none holds a stream.
    Holder,
    /// The same, nodes of the fleet, and services of this scope.
    Either(Scope),
    /// Nodes of the fleet, by the token that they derive from its key, and services of this scope.
    Peers(Scope),
    /// Nodes of the fleet alone.
    Nodes,
    /// Services of this scope. Where no service key is configured, nodes of the fleet.
    Services(Scope),
    /// The same, and whoever reaches a listener of operators' calls that is there for its machine
    /// alone, or a node that asks nobody.
    Local(Scope),
    /// The same, whoever may read the metrics: it names users.
    Here(Scope),
}

/// What becomes of a call on a connection that was admitted beyond the limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Surplus {
    /// It is refused.
    Refused,
    /// It is refused in the one way after which an EventSource comes back.
    Later,
    /// It is served if a node or a service calls: those of the other role must reach this one.
    Fleet,
    /// It is served: a full node must be seen to live.
    Allowed,
}

/// A record of a list, or why it is none.
type Item = Result<Told, ItemFault>;

/// What a call takes, parsed and checked, and the function that serves it with that. An entry of a
/// list that is none comes as why: the call refuses it, and serves the others.
#[derive(Clone, Copy)]
pub(super) enum Serve {
    Bare(fn(&mut Engine, Now) -> Answer),
    /// Nothing, and its answer is always the same.
    Fixed(&'static File),
    /// The version in the path, and its answer is always the same.
    Pinned(&'static File),
    /// Who asks, and the user in the path.
    One(fn(&mut Engine, ConnId, User<'_>, &Caller, Now) -> Served),
    /// Who asks, the users of the query `user=a&user=b`, and what else is in it.
    Listed(fn(&mut Engine, ConnId, Vec<Entry>, Ignored, &Caller, Now) -> Served),
    /// Who asks, and the users of the body `{"users":[..]}`.
    Users(fn(&mut Engine, ConnId, Vec<Entry>, &Caller, Now) -> Served),
    /// Who asks, and the users of the body `{"users":[..]}`, with what they say of themselves.
    Notes(fn(&mut Engine, ConnId, BeatAsk, &Caller, Now) -> Served),
    /// Who asks, and the status of the body.
    Says(fn(&mut Engine, ConnId, StatusAsk, &Caller, Now) -> Served),
    /// Who asks, and the goodbye of the body.
    Parts(fn(&mut Engine, ConnId, LeaveAsk, &Caller, Now) -> Served),
    /// The state of the user in the path, from the body, and which life of a node says so.
    Record(fn(&mut Engine, &[Item], Option<&str>, Now) -> Answer),
    /// The states of the body `{"presence":[..]}`, and which life of a node says so.
    Records(fn(&mut Engine, &[Item], Option<&str>, Now) -> Answer),
    /// Who asks, and what a stream is to be: in the query of a GET, in the body of a POST; and what
    /// else is in the query.
    Opens(fn(&mut Engine, ConnId, StreamAsk, Ignored, &Caller, Now) -> Served),
    /// Who asks to be told of the node, again and again.
    Follows(fn(&mut Engine, &Caller, Now) -> Served),
    /// Who asks, and what the body revokes.
    Voids(fn(&mut Engine, ConnId, RevokeAsk, &Caller, Now) -> Served),
    /// The body as it came.
    Bundles(fn(&mut Engine, &[u8], Now) -> Answer),
    /// Who asks, and for which page of a walk that may look for this.
    Walks(
        Filter,
        fn(&mut Engine, ConnId, Asked, &Caller, Now) -> Served,
    ),
    /// Who asks, and the stream in the path.
    InPath(fn(&mut Engine, ConnId, &str, &Caller, Now) -> Served),
    /// Who asks, the stream in the path, and for how long nobody has been at its device; the body
    /// that says so need not be there.
    Beaten(fn(&mut Engine, ConnId, &str, Option<u64>, &Caller, Now) -> Served),
    /// The device of the body `{"device":".."}`.
    Devices(fn(&mut Engine, User<'_>, &Caller, Now) -> Answer),
    /// The body as it came, which a user's call need not have.
    Mints(fn(&mut Engine, &[u8], &Caller, Now) -> Answer),
    /// The service key of the body, and whether its page came over TLS.
    SignsIn(fn(&mut Engine, &str, bool, Now) -> Answer),
    /// Who asks, the stream in the path, and the edit of the body.
    Edits(fn(&mut Engine, ConnId, &str, WatchEdit, &Caller, Now) -> Served),
}

const fn row(
    method: Method,
    path: &'static str,
    call: Call,
    roles: Roles,
    who: Who,
    surplus: Surplus,
    serve: Serve,
) -> Row {
    Row {
        method,
        path,
        braces: braces_of(path.as_bytes()),
        call,
        roles,
        who,
        inner: false,
        surplus,
        serve,
    }
}

/// The same of what is operators' business.
const fn inner(
    method: Method,
    path: &'static str,
    call: Call,
    roles: Roles,
    who: Who,
    surplus: Surplus,
    serve: Serve,
) -> Row {
    Row {
        inner: true,
        ..row(method, path, call, roles, who, surplus, serve)
    }
}

const fn braces_of(path: &[u8]) -> Option<(usize, usize)> {
    let (mut at, mut open) = (0, None);
    while at < path.len() {
        match (path[at], open) {
            (b'{', None) => open = Some(at),
            (b'}', Some(open)) => return Some((open, at + 1)),
            _ => {}
        }
        at += 1;
    }
    None
}

impl Row {
    /// What stands in `path` for the segment in braces, nothing if there are none; None if the path
    /// is another.
    fn segment<'p>(&self, path: &'p str) -> Option<&'p str> {
        let Some((open, close)) = self.braces else {
            return (self.path == path).then_some("");
        };
        let rest = path.strip_prefix(&self.path[..open])?;
        let segment = rest.strip_suffix(&self.path[close..])?;
        (!segment.is_empty() && !segment.contains('/')).then_some(segment)
    }

    fn takes(&self, method: Method) -> bool {
        self.method == method || (self.method == Get && method == Method::Head)
    }

    /// Whether a user who is named in it may be made.
    pub(super) fn makes_users(&self) -> bool {
        matches!(self.serve, Opens(_) | Notes(_) | Says(_))
    }

    /// Whether a stream may begin.
    pub(super) fn begins_stream(&self) -> bool {
        matches!(self.serve, Opens(_))
    }

    /// Whether pages of every origin may have the answer.
    pub(super) fn is_for_all(&self) -> bool {
        matches!(self.serve, Fixed(page) | Pinned(page) if page.for_all)
    }

    /// Whether it is for looking at users, and a service may call that may do all.
    pub(super) fn is_to_look(&self) -> bool {
        matches!(self.serve, Opens(_) | Edits(_))
    }

    /// Whether it is answered everybody alike, and says nothing of users.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self.call, Page | Health)
    }

    /// The type of the call's body. None: it has none.
    pub(super) fn media(&self) -> Option<&'static str> {
        match self.serve {
            Bare(_) | Fixed(_) | Pinned(_) | One(_) | Listed(_) | InPath(_) | Beaten(_)
            | Mints(_) | Follows(_) | Walks(..) => None,
            Users(_) | Notes(_) | Says(_) | Parts(_) | Record(_) | Records(_) | Edits(_)
            | Devices(_) | Voids(_) | SignsIn(_) => Some(JSON),
            Bundles(_) => Some("application/octet-stream"),
            Opens(_) => (self.method == Post).then_some(JSON),
        }
    }
}

impl Who {
    /// The scope by which a service may call. None: by none.
    pub(super) fn scope(self) -> Option<Scope> {
        match self {
            Who::Open | Who::Holder | Who::Nodes => None,
            Who::Either(scope)
            | Who::Peers(scope)
            | Who::Services(scope)
            | Who::Local(scope)
            | Who::Here(scope) => Some(scope),
        }
    }
}

impl Roles {
    /// Whether a node of this role serves the call.
    pub(super) fn include(self, role: &Role) -> bool {
        match (self, role) {
            (Roles::Every | Roles::Passes, _) => true,
            // In a fleet nobody decides alone; what all nodes must hear is not passed on yet.
            (Roles::Decides, role) => matches!(role, Role::All | Role::Presence),
            (Roles::Shares | Roles::Keeps, role) => !role.passes_on(),
            (Roles::Streams, role) => !matches!(role, Role::Presence),
            (Roles::Mirrors, role) => matches!(role, Role::Realtime(_)),
        }
    }
}

/// Whether a path is where streams are opened.
pub(super) fn opens_stream(path: &str) -> bool {
    path == STREAM
}

/// Whether what is served at a path has a long answer, however few words ask for it.
pub(super) fn answers_long(path: &str) -> bool {
    matches!(path, METRICS | STREAMS | ONLINE)
}

/// Whether a call begins a stream, on the nodes that hold streams.
pub(super) fn begins_stream(method: Method, path: &str) -> bool {
    Rows::of(path, true).is_some_and(|rows| {
        let mut rows = rows.iter();
        rows.any(|(row, _)| row.takes(method) && row.surplus == Later)
    })
}

/// The rows of one path that somebody finds.
pub(super) struct Rows<'p> {
    path: &'p str,
    /// Operators' too.
    inner: bool,
    first: &'static Row,
}

impl<'p> Rows<'p> {
    /// The rows of a path, operators' too if `inner`. None if there are none.
    pub(super) fn of(path: &'p str, inner: bool) -> Option<Rows<'p>> {
        let found = |row: &&Row| (inner || !row.inner) && row.segment(path).is_some();
        let first = TABLE.iter().find(found)?;
        Some(Rows { path, inner, first })
    }

    fn iter(&self) -> impl Iterator<Item = (&'static Row, &'p str)> {
        let (path, inner) = (self.path, self.inner);
        TABLE
            .iter()
            .filter(move |row| inner || !row.inner)
            .filter_map(move |row| Some((row, row.segment(path)?)))
    }

    /// Whether the path takes the method, and not here: who asks is not to know that it does.
    pub(super) fn hide(&self, method: Method) -> bool {
        let hidden = |row: &Row| row.inner && row.takes(method) && row.segment(self.path).is_some();
        !self.inner && TABLE.iter().any(hidden)
    }

    /// What requests are counted as that no row of the path takes.
    pub(super) fn call(&self) -> Call {
        self.first.call
    }

    /// The row that takes the method, and the segment of the path that it has in braces. It may be
    /// one that nodes of another role serve.
    pub(super) fn row(&self, method: Method, role: &Role) -> Option<(&'static Row, &'p str)> {
        let (row, segment) = self.iter().find(|(row, _)| row.takes(method))?;
        let strict = matches!(row.roles, Roles::Mirrors | Roles::Keeps);
        let known = !strict || row.roles.include(role);
        known.then_some((row, segment))
    }

    /// The methods that the path takes on a node of this role, as `Allow` lists them; if other
    /// nodes serve it, those that it takes there.
    pub(super) fn allow(&self, role: &Role) -> String {
        let here = |row: &Row| row.roles.include(role);
        let elsewhere = !self.iter().any(|(row, _)| here(row));
        let mut allow = String::new();
        for (method, names) in [
            (Get, "GET, HEAD, "),
            (Post, "POST, "),
            (Put, "PUT, "),
            (Delete, "DELETE, "),
        ] {
            let mut rows = self.iter().filter(|(row, _)| row.method == method);
            if rows.any(|(row, _)| elsewhere || here(row)) {
                allow.push_str(names);
            }
        }
        allow + "OPTIONS"
    }
}
