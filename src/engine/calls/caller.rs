//! Who calls, and what they may.
//!
//! Owns what becomes of a call without a token, with a bad one, or with one that does not allow it.
//! The rule is all or nothing: a call that names one user too many is refused, and changes nothing.
//! Never reads a key: `auth` verifies.

use std::sync::Arc;

use super::Found;
use super::guard::Pages;
use super::served::{RETRY_AFTER, Served};
use super::table::{self, Row, Who};
use crate::auth::{
    Digest, Full, Grant, Judged, LastActive, Proof, Refusal, Reserved, SESSION_COOKIE, SESSION_MS,
    Scope, Scopes, Service, Shown, TicketRefusal, cookie,
};
use crate::engine::conn::permits::{Origin, Steps, Tag};
use crate::engine::operators::Entrance;
use crate::engine::parts::Engine;
use crate::metrics::{Call, Counter};
use crate::realtime::{Conn, ConnId};
use crate::time::{Mono, Now, Unix};
use crate::wire::record::{Entry, Record};
use crate::wire::request::Head;
use crate::wire::response::{Answer, problems};
use crate::wire::{User, UserBuf};

/// Most users whom a refusal names.
pub(super) const NAMED_MAX: usize = 16;

/// By this word a stream's holder is whoever the token is of.
const ME: &str = "me";

/// Who calls.
#[derive(Debug)]
pub(in crate::engine) enum Caller {
    /// Whoever it is: nobody is asked, or the row asks for something else.
    Anybody,
    /// A node of the fleet.
    Node,
    /// A service of this name, which has the scope that the row wants.
    Service {
        name: Arc<str>,
        scopes: Scopes,
        /// Stands for its key.
        key: Digest,
        /// When its session ends, if it shows one.
        ends: Option<Unix>,
    },
    /// The holder of a token.
    User(Box<Grant>),
}

/// What a stream keeps of its opener's token: 12 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) struct NewPermit {
    /// When it is void, by the clock that never steps.
    pub(in crate::engine) until: Mono,
    /// Of which token it is.
    pub(in crate::engine) origin: Origin,
    /// Up to where in their journal no revocation means it.
    pub(in crate::engine) judged: u64,
    pub(in crate::engine) last_active: LastActive,
}

impl Caller {
    /// Who shows a service's key.
    pub(super) fn service(service: &Service) -> Caller {
        Caller::Service {
            name: service.name.clone(),
            scopes: service.scopes,
            key: Digest::of_service(service.hash),
            ends: None,
        }
    }

    /// Who shows a session of it.
    fn session(service: &Service, until: Unix) -> Caller {
        Caller::Service {
            name: service.name.clone(),
            scopes: service.scopes,
            key: Digest::of_service(service.hash),
            ends: Some(until),
        }
    }

    /// Whether they may learn of all these users.
    ///
    /// Err: of some they may not.
    pub(super) fn check_watch<'u>(
        &self,
        users: impl Iterator<Item = User<'u>>,
    ) -> Result<(), Answer> {
        let Caller::User(grant) = self else {
            return Ok(());
        };
        let mut denied = users.filter(|user| !grant.may_watch(*user)).peekable();
        if denied.peek().is_none() {
            return Ok(());
        }
        let named: Vec<&str> = denied.by_ref().take(NAMED_MAX).map(User::as_str).collect();
        let more = match denied.count() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let named = serde_json::to_string(&named).expect("strings are JSON");
        let detail = format!("the token does not let its holder learn of {named}{more}");
        Err(Answer::problem(problems::WATCH_DENIED, &detail))
    }

    /// Whether they may learn of all users of a list; what is no user is refused elsewhere.
    pub(super) fn check_watch_all(&self, entries: &[Entry]) -> Result<(), Answer> {
        self.check_watch(entries.iter().flatten().map(UserBuf::user))
    }

    /// Whether they may speak for all users of a list: be online as they, beat, say goodbye.
    ///
    /// Err: somebody else's token, or a viewer's.
    pub(super) fn check_speaks<'u>(
        &self,
        mut users: impl Iterator<Item = User<'u>>,
    ) -> Result<(), Answer> {
        let Caller::User(grant) = self else {
            return Ok(());
        };
        let Some(first) = users.next() else {
            return Ok(());
        };
        if first != grant.user.user() || users.any(|user| user != grant.user.user()) {
            let detail = "the token lets its holder speak for nobody but its sub";
            return Err(Answer::problem(problems::NOT_THE_USER, detail));
        }
        self.check_publishes()
    }

    /// Whether they may be online at all.
    ///
    /// Err: the token is a viewer's.
    pub(super) fn check_publishes(&self) -> Result<(), Answer> {
        match self {
            Caller::User(grant) if !grant.publish => {
                let detail = "the token is a viewer's (publish is false), who is never online";
                Err(Answer::problem(problems::NOT_THE_USER, detail))
            }
            _ => Ok(()),
        }
    }

    /// Whether they may hold a stream that makes them this user.
    ///
    /// Err: a service is nobody.
    pub(super) fn check_holds(&self, user: Option<&UserBuf>) -> Result<(), Answer> {
        if user.is_some() && matches!(self, Caller::Service { .. }) {
            let detail = "a service key opens a stream to look, and is nobody; leave user out";
            return Err(Answer::problem(problems::NOT_THE_USER, detail));
        }
        self.check_speaks(user.into_iter().map(UserBuf::user))
    }

    /// The same of a list; what is no user is refused elsewhere.
    pub(super) fn check_speaks_all(&self, entries: &[Entry]) -> Result<(), Answer> {
        self.check_speaks(entries.iter().flatten().map(UserBuf::user))
    }

    /// Puts the caller's own id in the place of `me`.
    pub(super) fn resolve_me(&self, user: UserBuf) -> UserBuf {
        match self {
            Caller::User(grant) if user.as_str() == ME => grant.user.clone(),
            _ => user,
        }
    }

    /// Who they are, if a token says so.
    pub(super) fn own(&self) -> Option<UserBuf> {
        match self {
            Caller::User(grant) => Some(grant.user.clone()),
            _ => None,
        }
    }

    /// Whether a token says that they are this user.
    pub(super) fn is(&self, user: User<'_>) -> bool {
        matches!(self, Caller::User(grant) if grant.user.user() == user)
    }

    /// Whether they may what takes this scope too, where they were let in by another.
    pub(super) fn may(&self, scope: Scope) -> bool {
        match self {
            Caller::Service { scopes, .. } => scopes.has(scope),
            Caller::Anybody | Caller::Node => true,
            Caller::User(_) => false,
        }
    }

    /// As the log names whoever acts as an operator.
    pub(super) fn name(&self) -> Arc<str> {
        match self {
            Caller::Service { name, .. } => Arc::clone(name),
            Caller::Node => "(a node)".into(),
            Caller::Anybody | Caller::User(_) => "(anybody)".into(),
        }
    }

    /// Whether it is a node of the fleet.
    pub(super) fn is_node(&self) -> bool {
        matches!(self, Caller::Node)
    }

    /// How exactly they are told when others were last active.
    pub(super) fn last_active(&self) -> LastActive {
        match self {
            Caller::User(grant) => grant.last_active,
            Caller::Anybody | Caller::Node | Caller::Service { .. } => LastActive::Exact,
        }
    }

    /// A record as they are told it.
    pub(super) fn told<'r>(&self, record: Record<'r>) -> Record<'r> {
        record.told_at(self.last_active())
    }
}

impl Engine {
    /// Who calls.
    ///
    /// Err: they do not prove it.
    pub(super) fn caller(
        &mut self,
        found: &Found<'_>,
        head: &Head<'_>,
        now: Now,
    ) -> Result<Caller, Answer> {
        match (&found.proof, found.row.who) {
            (Proof::Service(service), _) => return Ok(Caller::service(service)),
            (Proof::Session(service, ends), _) => return Ok(Caller::session(service, *ends)),
            // It holds no stream: there its token is taken for a user's.
            (Proof::Node, Who::Holder) => {}
            (Proof::Node, _) => return Ok(Caller::Node),
            _ => {}
        }
        let asks = matches!(found.row.who, Who::Holder | Who::Either(_));
        let Some(identity) = self.node.keyring.identity.as_ref().filter(|_| asks) else {
            return Ok(Caller::Anybody);
        };
        let shown = identity.shown(head, table::opens_stream(head.path));
        let shown = shown.ok_or_else(no_token)?;
        let token = match &shown {
            Shown::Ticket(ticket) => {
                let fleet = &self.node.keyring.fleet;
                return match identity.tickets.verify(ticket, fleet, now) {
                    Ok(grant) => self.unless_revoked(grant),
                    Err(refusal) => Err(self.refuse_ticket(refusal)),
                };
            }
            Shown::Token(token) => token,
            Shown::Cookie(token) => token.as_bytes(),
        };
        let micros = identity.rules.keys.micros_max();
        self.verifying_micros_left = self.verifying_micros_left.saturating_sub(micros);
        match identity.rules.verify(token, now.unix) {
            Ok(grant) => self.unless_revoked(grant),
            Err(refusal) => Err(self.refused_token(refusal)),
        }
    }

    /// The holder of a token that is genuine.
    ///
    /// Err: it is revoked, or nobody knows here whether it is.
    fn unless_revoked(&mut self, grant: Grant) -> Result<Caller, Answer> {
        match self.node.revoked.judge(&grant) {
            Judged::Good => Ok(Caller::User(Box::new(grant))),
            Judged::Void => Err(self.refused_token(Refusal::Revoked)),
            Judged::Unknown => {
                let detail = "the node has begun and has not yet read from the fleet's database \
                              which tokens are revoked; come back, or go to another node";
                Err(Answer::problem(problems::FLEET_AWAY, detail).with_lines(RETRY_AFTER))
            }
        }
    }

    pub(super) fn refused_token(&mut self, refusal: Refusal) -> Answer {
        self.counters.add(counter_of(refusal), 1);
        let detail = format!("{}: {}", refusal.reason(), refusal.explain());
        let lines = "WWW-Authenticate: Bearer error=\"invalid_token\"\r\n";
        Answer::problem(problems::UNAUTHORIZED, &detail).with_lines(lines)
    }

    /// By which listener a request came.
    pub(super) fn entrance(&self, id: ConnId) -> Entrance {
        match self.conns.get(id).is_some_and(Conn::is_admin) {
            true => Entrance::Admin,
            false => Entrance::Public,
        }
    }

    /// Whether a request finds operators' calls.
    pub(in crate::engine) fn finds_operators(&self, id: ConnId) -> bool {
        self.node.operators.served_at(self.entrance(id))
    }

    /// What a request proves by a hash alone. A session counts where operators' calls are: a
    /// browser sends it to all ports of the host.
    pub(in crate::engine) fn proof(&self, id: ConnId, head: &Head<'_>, now: Now) -> Proof {
        let keyring = &self.node.keyring;
        if head.authorization.is_none()
            && let Some(session) = cookie(head, SESSION_COOKIE)
            && self.finds_operators(id)
        {
            return keyring.session(session, now.unix);
        }
        keyring.proof(head.authorization)
    }

    /// Whether the name under which the node is reached is all that keeps a visitor's browser out.
    /// A page whose name is pointed at this machine has no token to show: a cookie is not sent to
    /// its name. Where operators come in the name counts all the same.
    pub(super) fn is_open_by_name(&self, row: &Row, entrance: Entrance) -> bool {
        let asks = self.node.keyring.identity.is_some();
        !asks || entrance == Entrance::Admin || matches!(row.who, Who::Local(_) | Who::Here(_))
    }

    /// Which pages may do what a request does.
    pub(super) fn pages(
        &self,
        row: &Row,
        head: &Head<'_>,
        proof: &Proof,
        entrance: Entrance,
    ) -> Pages {
        let is_session = matches!(proof, Proof::Session(..));
        match entrance {
            _ if is_session || row.call == Call::Session => Pages::Own,
            Entrance::Admin => Pages::Own,
            Entrance::Public if self.is_by_cookie(row, head) => Pages::ListedToRead,
            Entrance::Public => Pages::Listed,
        }
    }

    /// The parameters of a stream's query that show who opens it.
    pub(super) fn credentials_in_query(&self) -> &'static [&'static str] {
        match &self.node.keyring.identity {
            Some(identity) if identity.query => &["ticket", "token"],
            _ => &["ticket"],
        }
    }

    /// Whether a call takes a token, and this one's comes by cookie.
    fn is_by_cookie(&self, row: &Row, head: &Head<'_>) -> bool {
        let identity = self.node.keyring.identity.as_ref();
        let shown = identity.and_then(|it| it.shown(head, row.begins_stream()));
        matches!(row.who, Who::Holder | Who::Either(_)) && matches!(shown, Some(Shown::Cookie(_)))
    }

    /// Whether a request shows what its row asks for, as far as that is seen without arithmetic.
    ///
    /// Err: it does not.
    pub(super) fn check_credentials(
        &mut self,
        row: &Row,
        head: &Head<'_>,
        proof: &Proof,
        entrance: Entrance,
    ) -> Result<(), Answer> {
        let (keyring, operators) = (&self.node.keyring, self.node.operators);
        let identity = keyring.identity.as_ref();
        let stands_for_services = keyring.services.is_empty();
        match (row.who, proof) {
            (Who::Open, _) => Ok(()),
            (_, Proof::UnknownKey) => {
                self.counters.add(Counter::TokenService, 1);
                Err(refused(
                    "service: no service key of this name and value is known",
                ))
            }
            (_, Proof::Service(service) | Proof::Session(service, _)) => {
                check_scope(row, service, operators.served_at(entrance))
            }
            (Who::Either(_) | Who::Peers(_) | Who::Nodes, Proof::Node) => Ok(()),
            (Who::Services(scope) | Who::Local(scope) | Who::Here(scope), Proof::Node)
                if !stands_for_services =>
            {
                let detail = format!(
                    "the token of a node lacks the scope {}; show the key of a service that has it",
                    scope.name()
                );
                Err(Answer::problem(problems::NOT_PERMITTED, &detail))
            }
            (Who::Services(_) | Who::Local(_) | Who::Here(_), Proof::Node) => Ok(()),
            (Who::Holder | Who::Either(_), _) => match identity {
                Some(identity) if identity.shown(head, row.begins_stream()).is_none() => {
                    Err(no_token())
                }
                None if operators.guarded_at(entrance) => Err(unauthorized(row)),
                _ => Ok(()),
            },
            (Who::Local(_), _) if operators.are_open || operators.metrics_are_open => Ok(()),
            (Who::Here(_), _) if operators.are_open => Ok(()),
            (Who::Peers(_) | Who::Nodes | Who::Services(_) | Who::Local(_) | Who::Here(_), _) => {
                Err(unauthorized(row))
            }
        }
    }

    /// Whether a token waits for a slice of its own: verifying others has taken the time that a
    /// turn has for it while others wait.
    pub(in crate::engine) fn has_verified_enough(&self, head: &Head<'_>) -> bool {
        let identity = self
            .node
            .keyring
            .identity
            .as_ref()
            .filter(|_| self.verifying_micros_left == 0);
        let opens = table::opens_stream(head.path);
        let shown = identity.and_then(|identity| identity.shown(head, opens));
        matches!(shown, Some(Shown::Token(_) | Shown::Cookie(_)))
    }

    /// Counts a ticket that is refused. One that was genuine once is answered 204, after which an
    /// EventSource does not come back with it.
    pub(super) fn refuse_ticket(&mut self, refusal: TicketRefusal) -> Answer {
        self.counters.add(ticket_counter(refusal), 1);
        match refusal.is_forged() {
            true => Answer::problem(problems::UNAUTHORIZED, refusal.explain()),
            false => Answer::no_content(),
        }
    }

    /// Takes a caller's ticket, if they have come with one, so that nobody else can use it.
    ///
    /// Err: somebody else has, or no more used ones can be kept.
    pub(super) fn reserve_ticket(
        &mut self,
        caller: &Caller,
        now: Now,
    ) -> Result<Option<Reserved>, Served> {
        let (Caller::User(grant), Some(identity)) = (caller, &self.node.keyring.identity) else {
            return Ok(None);
        };
        let Some(id) = grant.ticket else {
            return Ok(None);
        };
        match identity.tickets.reserve(id, now) {
            Ok(Some(reserved)) => Ok(Some(reserved)),
            Ok(None) => Err(self.refuse_ticket(TicketRefusal::Used).into()),
            Err(Full) => {
                self.counters.add(Counter::LimitTicketsBytes, 1);
                Err(Served::Overloaded("tickets"))
            }
        }
    }

    /// Stands for a user or a token, without keeping who or which it is. Nobody can say who else
    /// has the same, which takes this process's secret.
    pub(in crate::engine) fn tag(&self, digest: Digest) -> Tag {
        let hash = blake3::keyed_hash(&self.node.secret, &digest.bytes());
        let bytes = hash.as_bytes().first_chunk();
        Tag::of(u32::from_be_bytes(
            *bytes.expect("a BLAKE3 hash has 32 bytes"),
        ))
    }

    /// By what a stream must have been opened for a caller to touch it; none: by anything.
    pub(super) fn holder_of(&self, caller: &Caller) -> Option<Tag> {
        match caller {
            Caller::User(grant) => Some(self.tag(Digest::of_user(grant.user.user()))),
            Caller::Anybody | Caller::Node | Caller::Service { .. } => None,
        }
    }

    /// What a caller's stream keeps.
    pub(super) fn permit_of(&self, caller: &Caller, now: Now) -> Option<NewPermit> {
        match caller {
            Caller::User(grant) => Some(self.permit(grant, now)),
            Caller::Service { key, ends, .. } => {
                let left_ms = ends.map_or(SESSION_MS, |ends| ends.ms_since(now.unix));
                Some(NewPermit {
                    until: now.mono.plus_ms(left_ms),
                    origin: Origin::new(self.tag(*key), None, None, self.issue_steps()),
                    judged: self.node.revoked.end(),
                    last_active: LastActive::Exact,
                })
            }
            Caller::Anybody | Caller::Node => None,
        }
    }

    /// What a stream keeps of a token.
    pub(super) fn permit(&self, grant: &Grant, now: Now) -> NewPermit {
        let judged = self.node.revoked.end();
        let is_revoked = self.node.revoked.covers(grant);
        let holder = self.tag(Digest::of_user(grant.user.user()));
        let token = grant.token.map(|token| self.tag(token));
        let steps = self.issue_steps();
        NewPermit {
            until: now.mono.plus_ms(grant.expires.ms_since(now.unix)),
            origin: Origin::new(holder, token, grant.issued, steps),
            judged: if is_revoked { 0 } else { judged },
            last_active: grant.last_active,
        }
    }

    /// In which steps it is kept when tokens were made.
    pub(in crate::engine) fn issue_steps(&self) -> Steps {
        let identity = self.node.keyring.identity.as_ref();
        Steps::of(identity.map_or(0, |identity| identity.rules.ttl_max_ms))
    }
}

/// Whether a service may make a call. `looks`: where operators' calls are served it may open a
/// stream to look, if it may do all.
///
/// Err: it lacks the scope.
fn check_scope(row: &Row, service: &Service, looks: bool) -> Result<(), Answer> {
    let name = &service.name;
    let detail = match row.who.scope() {
        Some(scope) if service.scopes.has(scope) => return Ok(()),
        Some(scope) => format!("the service key of {name} lacks the scope {}", scope.name()),
        None if looks && row.is_to_look() && service.scopes.has(Scope::Admin) => return Ok(()),
        None if row.who == Who::Holder => "a service key holds no stream; streams are opened by \
                                           their users, and to look, by the scope admin"
            .to_owned(),
        None => "only nodes say this to each other, by the token of the fleet key".to_owned(),
    };
    Err(Answer::problem(problems::NOT_PERMITTED, &detail))
}

fn no_token() -> Answer {
    let detail = "this call takes a user's token as Authorization: Bearer ..; see docs/SECURITY.md";
    Answer::problem(problems::UNAUTHORIZED, detail).with_lines("WWW-Authenticate: Bearer\r\n")
}

fn unauthorized(row: &Row) -> Answer {
    let scope = row.who.scope().or(row.is_to_look().then_some(Scope::Admin));
    let key = scope.map(|scope| format!("a service key with the scope {}", scope.name()));
    let takes = match (row.who, key) {
        (Who::Either(_) | Who::Holder, Some(key)) => key,
        (Who::Peers(_), Some(key)) => format!("the token of a node, or {key},"),
        (_, Some(key)) => format!("{key}, or while none is configured the token of a node,"),
        (_, None) => "the token of a node".to_owned(),
    };
    let detail = format!(
        "this call takes {takes} as Authorization: Bearer ..; all nodes share one file of fleet \
         keys"
    );
    Answer::problem(problems::UNAUTHORIZED, &detail).with_lines("WWW-Authenticate: Bearer\r\n")
}

/// A token or a key is none that is taken.
pub(super) fn refused(detail: &str) -> Answer {
    let lines = "WWW-Authenticate: Bearer error=\"invalid_token\"\r\n";
    Answer::problem(problems::UNAUTHORIZED, detail).with_lines(lines)
}

fn counter_of(refusal: Refusal) -> Counter {
    match refusal {
        Refusal::TooLong => Counter::TokenTooLong,
        Refusal::Form => Counter::TokenForm,
        Refusal::Header => Counter::TokenHeader,
        Refusal::Type => Counter::TokenType,
        Refusal::Key => Counter::TokenKey,
        Refusal::Algorithm => Counter::TokenAlgorithm,
        Refusal::Signature => Counter::TokenSignature,
        Refusal::Claims => Counter::TokenClaims,
        Refusal::Subject => Counter::TokenSubject,
        Refusal::NoExpiry => Counter::TokenNoExpiry,
        Refusal::Expired => Counter::TokenExpired,
        Refusal::LongLived => Counter::TokenLongLived,
        Refusal::Early => Counter::TokenEarly,
        Refusal::Audience => Counter::TokenAudience,
        Refusal::Issuer => Counter::TokenIssuer,
        Refusal::Revoked => Counter::TokenRevoked,
        Refusal::Grant => Counter::TokenGrant,
    }
}

fn ticket_counter(refusal: TicketRefusal) -> Counter {
    match refusal {
        TicketRefusal::Form => Counter::TicketForm,
        TicketRefusal::Key => Counter::TicketKey,
        TicketRefusal::Mac => Counter::TicketMac,
        TicketRefusal::Old => Counter::TicketOld,
        TicketRefusal::Future => Counter::TicketFuture,
        TicketRefusal::BeforeStart => Counter::TicketBeforeStart,
        TicketRefusal::Used => Counter::TicketUsed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_under_their_names() {
        for (refusal, reason) in TicketRefusal::ALL {
            let row = ticket_counter(refusal).row();
            assert_eq!(
                (row.family, row.labels),
                ("tickets_refused", &[("reason", reason)][..])
            );
        }
        for (refusal, reason) in Refusal::ALL {
            let row = counter_of(refusal).row();
            assert_eq!(
                (row.family, row.labels),
                ("tokens_refused", &[("reason", reason)][..])
            );
        }
    }
}
