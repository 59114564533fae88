//! Calls: from a whole request to what it is answered.
//!
//! Owns the order in which a request is checked: path, method, for whom it is and whose page sent
//! it (`guard`), role, room, body, who calls, arguments. `table` has a row for each endpoint,
//! `arguments` reads what a row takes, and a function in a file beside serves it. Those functions
//! get checked arguments and return what is to be answered: none sees a head, and none writes to a
//! connection (`conn/http.rs` does).

mod arguments;
mod audit;
mod beat;
pub(super) mod caller;
mod cursor;
mod datagrams;
mod device_key;
mod edit;
mod errands;
mod forget;
mod forward;
mod guard;
mod held;
mod ignored;
mod leave;
pub(super) mod node;
mod online;
mod online_in_fleet;
mod page;
pub(super) mod passed_on;
mod preflight;
mod query;
mod rate;
pub(in crate::engine) mod refusal;
pub(super) mod refused;
mod revoke;
pub(super) mod served;
mod session;
pub(super) mod status;
mod stream;
mod stream_beat;
mod stream_id;
pub(super) mod streams;
mod streams_in_fleet;
mod table;
mod ticket;

use super::arrivals::Maker;
use super::conn::addresses::{Client, CountsFor};
use super::conn::pending::Pending;
use super::conn::readers::name_of;
use super::operators::Entrance;
use super::parts::Engine;
use super::role::Role;
use crate::auth::Proof;
use crate::metrics::{Call, Counter};
use crate::realtime::ConnId;
use crate::time::Now;
use crate::wire::request::{Framing, Head, Method, client_of};
use crate::wire::response::{Answer, Asker, problems};
pub(super) use errands::{Errands, WAIT_MS_MAX};
use served::{Served, Then, overloaded};
use table::{DEMO, JSON, Roles, Row, Rows, Surplus};

pub use node::note_users;
pub use query::{NODE_HEADER, REFUSES_NEW, instance_of};
pub use refusal::Refusals;
#[cfg(feature = "cluster")]
pub(crate) use status::own_in_fleet;

impl Engine {
    /// Serves one whole request.
    pub(super) fn dispatch(&mut self, id: ConnId, head: &Head<'_>, body: &[u8], now: Now) {
        let cors = self.cors_lines(id, head.origin);
        let mut pending = Pending::new(Call::Other, Asker::of(head, cors));
        let served = self.call(id, &mut pending, head, body, now);
        self.carry_out(id, pending, served.unwrap_or_else(|refused| refused), now);
    }

    /// Does what a request comes to.
    fn carry_out(&mut self, id: ConnId, mut pending: Pending, served: Served, now: Now) {
        match served {
            Served::Answer(answer) => self.answer(id, pending, answer, now),
            Served::Stream(new) => self.begin_stream(id, &pending, *new, now),
            Served::Overloaded(why) => self.refuse_stream(id, &pending, why, now),
            Served::Parked {
                until,
                unanswered,
                refused,
                waits,
            } => {
                self.counters.add(Counter::AnswersParked, 1);
                pending.unanswered = unanswered;
                pending.refused = refused;
                pending.waits = waits;
                self.conns.park(id.index, pending, until);
            }
        }
    }

    /// Answers a request of which only the head has come, if that decides already: its body need
    /// not come then. False: it does not.
    pub(super) fn refuse_by_head(&mut self, id: ConnId, head: &Head<'_>, now: Now) -> bool {
        let cors = self.cors_lines(id, head.origin);
        let mut pending = Pending::new(Call::Other, Asker::of(head, cors));
        let Err(refused) = self.find(id, &mut pending, head, now) else {
            return false;
        };
        // Whether the body comes all the same is the client's choice.
        pending.asker.keep_alive = false;
        self.conns.at(id.index).linger();
        match refused {
            Served::Overloaded(why) => self.refuse_stream(id, &pending, why, now),
            Served::Answer(answer) => self.answer(id, pending, answer, now),
            Served::Stream(_) | Served::Parked { .. } => unreachable!("a head is only refused"),
        }
        true
    }

    /// What a request comes to; Err: it was refused.
    fn call(
        &mut self,
        id: ConnId,
        pending: &mut Pending,
        head: &Head<'_>,
        body: &[u8],
        now: Now,
    ) -> Result<Served, Served> {
        let found = self.find(id, pending, head, now)?;
        let caller = self.caller(&found, head, now)?;
        if found.row.makes_users() && self.conns.is_proxy(id) {
            let client = self.client_behind(head);
            if table::opens_stream(head.path) {
                self.check_client(client)?;
                pending.address = client;
            }
            if !found.proof.is_trusted() {
                self.arrivals.called_by(Some(Maker::of(id, client)));
            }
        }
        if found.row.surplus == Surplus::Later {
            pending.client = head.user_agent.and_then(name_of);
        }
        let (row, segment) = (found.row, found.segment);
        if let Some(parked) = self.forward(id, (row, segment), head, body, &caller, now) {
            return Ok(parked);
        }
        Ok(self.serve_call(id, (row, segment), head, body, &caller, now)?)
    }

    /// For whom a request counts that a proxy passes on.
    fn client_behind(&self, head: &Head<'_>) -> CountsFor {
        let is_proxy = |address| self.settings.trusts(address);
        let client = client_of(head.lines, is_proxy);
        match client.map(|client| self.settings.counts_for(client)) {
            Some(CountsFor::Exempt) => CountsFor::Exempt,
            Some(CountsFor::Client(client)) => CountsFor::Client(client),
            // None is told from another.
            Some(CountsFor::Proxy) | None => CountsFor::Client(Client::UNNAMED),
        }
    }

    /// Err: a client has as many connections as one may.
    fn check_client(&mut self, client: CountsFor) -> Result<(), Served> {
        if !self.conns.has_enough(client) {
            return Ok(());
        }
        self.counters.add(Counter::LimitConnsPerAddress, 1);
        Err(Served::Overloaded("address"))
    }

    /// The row that serves a request. Looks at the head alone.
    ///
    /// Err: what the head comes to, whatever the body is.
    fn find<'h>(
        &mut self,
        id: ConnId,
        pending: &mut Pending,
        head: &Head<'h>,
        now: Now,
    ) -> Result<Found<'h>, Served> {
        if head.path == "*" {
            return Err(allowing("GET, HEAD, POST, OPTIONS").into());
        }
        let rows = Rows::of(head.path, self.finds_operators(id));
        let is_served = |rows: &Rows<'_>| {
            !rows.hide(head.method) && (head.path != DEMO || self.node.operators.demo)
        };
        let Some(rows) = rows.filter(is_served) else {
            let detail = "see /openapi.json for the paths that are served";
            return Err(Answer::problem(problems::NOT_FOUND, detail).into());
        };
        pending.call = rows.call();
        if head.method == Method::Options {
            if !pending.asker.cors.is_empty() {
                preflight::allow(head.asked_headers, &mut pending.asker.cors);
            }
            return Err(allowing(&rows.allow(&self.node.role)).into());
        }
        let Some((row, segment)) = rows.row(head.method, &self.node.role) else {
            let allow = rows.allow(&self.node.role);
            let detail = format!("the path takes {allow}");
            let lines = format!("Allow: {allow}\r\n");
            let problem = Answer::problem(problems::METHOD_NOT_ALLOWED, &detail);
            return Err(problem.with_lines(lines).into());
        };
        pending.call = row.call;
        if row.is_for_all() && pending.asker.cors.is_empty() {
            "Access-Control-Allow-Origin: *\r\n".clone_into(&mut pending.asker.cors);
        }
        let (entrance, proof) = (self.entrance(id), self.proof(id, head, now));
        // Health is asked for under any name, and nodes and services show that they know it.
        if row.call != Call::Health
            && self.is_open_by_name(row, entrance)
            && let Err(refused) = guard::check_host(&self.settings, head)
            && !proof.is_trusted()
        {
            return Err(refused.into());
        }
        let pages = self.pages(row, head, &proof, entrance);
        guard::check_origin(&self.settings, row, head, pages)?;
        // A node asks those that decide: two that take each other for such would ask for ever.
        let passes_on = row.roles == Roles::Passes && self.node.role.passes_on();
        let is_node = matches!(proof, Proof::Node);
        if !row.roles.include(&self.node.role) || passes_on && is_node {
            let detail = self.elsewhere();
            return Err(Answer::problem(problems::WRONG_ROLE, detail).into());
        }
        if self.conns.at(id.index).is_surplus() {
            check_room(row, &proof, self.conns.is_one_too_many(id))?;
        }
        if let Some(media) = row.media() {
            check_body(head, media)?;
        }
        self.check_credentials(row, head, &proof, entrance)?;
        let maker = (!proof.is_trusted()).then_some(Maker::Conn(id));
        self.arrivals.called_by(maker);
        Ok(Found {
            row,
            segment,
            proof,
        })
    }

    /// The CORS lines that answer an origin; none where operators come in.
    pub(super) fn cors_lines(&self, id: ConnId, origin: Option<&str>) -> String {
        match self.entrance(id) {
            Entrance::Public => self.settings.cors_lines(origin),
            Entrance::Admin => String::new(),
        }
    }

    /// Whether a call takes long however few its words are: its answer is long.
    pub(super) fn takes_long(&self, id: ConnId, head: &Head<'_>) -> bool {
        table::answers_long(head.path) && self.finds_operators(id)
    }

    /// Where else to go with a call that this role does not serve.
    fn elsewhere(&self) -> &'static str {
        match self.node.role {
            Role::Realtime(_) => {
                "this is a real-time node, which decides nothing; send this to a presence node"
            }
            Role::Fleet(_) => "nodes of a fleet do not serve this yet",
            _ => "this is a presence node; open and edit streams at a real-time node",
        }
    }

    /// The other shard has not said in time what a parked request is answered.
    pub(super) fn abandon_parked(&mut self, id: ConnId, now: Now) {
        if let Some(why) = self.conns.unanswered(id) {
            self.give_up(id, why, now);
        }
    }

    /// A parked request is refused for load.
    pub(super) fn give_up(&mut self, id: ConnId, why: &'static str, now: Now) {
        if let Some(mut pending) = self.conns.unpark(id) {
            // Closed, so that an outcome that comes late is not taken for that of a later request.
            pending.asker.keep_alive = false;
            let then = pending.waits.take().map(|waits| waits.then);
            match then {
                Some(Then::Stream(_) | Then::Opens(_)) => {
                    self.refuse_stream(id, &pending, "busy", now)
                }
                Some(Then::PassedOn(call)) => {
                    let answer = self.unreached(&call);
                    self.answer(id, pending, answer, now);
                }
                // What has been found, and where to go on.
                Some(Then::Streams(listing)) if listing.has_moved() => {
                    let answer = self.listed_streams(*listing);
                    self.answer(id, pending, answer, now);
                }
                Some(Then::Left(left)) if !left.0.users.is_empty() => {
                    self.leave_here(id, pending, *left, now)
                }
                _ => self.answer(id, pending, overloaded(why), now),
            }
        }
    }
}

/// What the head of a request comes to.
struct Found<'h> {
    row: &'static Row,
    /// The segment of the path that the row has in braces.
    segment: &'h str,
    proof: Proof,
}

/// Whether a call is served on a connection that was admitted beyond the limit to be told so.
/// `of_one`: beyond what one address may have, and not the server.
fn check_room(row: &Row, proof: &Proof, of_one: bool) -> Result<(), Served> {
    match row.surplus {
        Surplus::Allowed => Ok(()),
        Surplus::Fleet if proof.is_trusted() => Ok(()),
        Surplus::Later if of_one => Err(Served::Overloaded("address")),
        Surplus::Later => Err(Served::Overloaded("connections")),
        Surplus::Refused | Surplus::Fleet if of_one => {
            let detail = "this address has all the connections that one may have; close some";
            Err(overloaded(detail).into())
        }
        Surplus::Refused | Surplus::Fleet => {
            let detail = "the server has all the connections that it takes; try again later";
            Err(overloaded(detail).into())
        }
    }
}

/// Whether a request has a body that may be read as of this type.
fn check_body(head: &Head<'_>, media: &str) -> Result<(), Answer> {
    if head.framing == Framing::None {
        let body = if media == JSON { "JSON body" } else { "body" };
        let detail = format!("send the {body} with Content-Length or Transfer-Encoding: chunked");
        return Err(Answer::problem(problems::LENGTH_REQUIRED, &detail));
    }
    let said = head
        .content_type
        .and_then(|value| value.split(';').next())
        .unwrap_or("");
    if !said.trim().eq_ignore_ascii_case(media) {
        let detail = format!("send Content-Type: {media}");
        return Err(Answer::problem(problems::UNSUPPORTED_MEDIA_TYPE, &detail));
    }
    Ok(())
}

fn allowing(methods: &str) -> Answer {
    Answer::no_content().with_lines(format!("Allow: {methods}\r\n"))
}
