//! What the nodes of a fleet share beside who is online: which tokens are void, and which tickets
//! have been used.
//!
//! Owns who waits for the fleet's word on these, and what becomes of them if it does not come. Its
//! commands go over the same link as the core's. Decides nothing about users.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::auth::{Added, Revocation, Revoked, TICKET_ID_BYTES, TICKET_MS};
use crate::engine::{Asker, Listed, Mail, Verdict};
use crate::fleet::flags::UserFlags;
use crate::fleet::partition::Partitions;
use crate::fleet::revocations::{REVOKED, Record, Revocations};
use crate::fleet::tickets;
use crate::fleet::ticks::Ticks;
use crate::fleet::traffic::{Command, Event, Failed, Reply, Server, Tag, To};
use crate::fleet::walk::{Place, Walk};
use crate::metrics::{Board, Counter};
use crate::status::Status;
use crate::time::{Mono, Now, Unix};
use crate::wire::record::Told;

/// Its commands' tags have this bit, and the core's have not.
const OURS: u64 = 1 << 63;
/// Revocations that are read from the journal at a time.
const JOURNAL_MAX: usize = 1_000;
/// A ticket's stream is opened so long before its request would be given up, in ms.
const TICKET_RESERVE_MS: u64 = 300;

/// A page of a walk is told so long before its request would be given up, in ms.
const WALK_RESERVE_MS: u64 = 400;

/// Which page of those who are online is wanted.
pub(super) struct Listing {
    pub(super) since: Option<Unix>,
    pub(super) prefix: Box<str>,
    pub(super) limit: usize,
    pub(super) place: Box<[u8]>,
}

/// Hands a piece of mail to one shard.
pub type TellOne = Arc<dyn Fn(u16, Mail) + Send + Sync>;

/// See the module.
pub struct Desk {
    revoked: Arc<Revoked>,
    revocations: Revocations,
    /// So far the journal has been read.
    journal: u64,
    /// Requests whose revocation the fleet is to have: up to which number.
    revoking: VecDeque<(u64, Asker)>,
    /// Whose ticket is asked for.
    tickets: HashMap<Tag, Asker>,
    /// The same in the order in which they are given up.
    given_up: VecDeque<(Mono, Tag)>,
    reading: Option<Tag>,
    walks: HashMap<Tag, (Asker, Walk)>,
    /// Of each partition's users who are offline.
    buckets: u32,
    outbox: VecDeque<Command>,
    next_tag: u64,
    partitions: Arc<Partitions>,
    tell_one: TellOne,
    board: Arc<Board>,
    /// That the table is full, or the stream no such, has been said.
    warned: bool,
}

impl Desk {
    /// What the node knows of tokens that are void is shared by `revoked`.
    pub fn new(
        revoked: Arc<Revoked>,
        partitions: Arc<Partitions>,
        buckets: u32,
        ticks: Ticks,
        tell_one: TellOne,
        board: Arc<Board>,
    ) -> Desk {
        Desk {
            revocations: Revocations::new(revoked.life_ms(), ticks),
            revoked,
            journal: 0,
            revoking: VecDeque::new(),
            tickets: HashMap::new(),
            given_up: VecDeque::new(),
            reading: None,
            walks: HashMap::new(),
            buckets,
            outbox: VecDeque::new(),
            next_tag: OURS,
            partitions,
            tell_one,
            board,
            warned: false,
        }
    }

    /// Whether what the fleet had revoked before this node came is known.
    pub(super) fn has_read(&self) -> bool {
        self.revocations.has_read()
    }

    /// The journal has news; this request waits until the fleet has them.
    pub(super) fn revoke(&mut self, asker: Option<Asker>, now: Now) {
        let number = self.read_journal(now);
        self.revoking.extend(asker.map(|asker| (number, asker)));
    }

    /// Everything that this node knows is to be known to all. Returns how much was said by then.
    fn read_journal(&mut self, now: Now) -> u64 {
        let mut number = self.revocations.taken();
        loop {
            let (news, end) = self.revoked.journal(self.journal, JOURNAL_MAX);
            self.journal = end;
            if news.is_empty() {
                return number;
            }
            for it in news.iter().filter(|it| it.until > now.unix) {
                number = number.max(self.revocations.say(record(it)));
            }
        }
    }

    /// Whether a ticket was used before. The stream that comes by it waits.
    pub(super) fn ask_for_ticket(&mut self, id: [u8; TICKET_ID_BYTES], asker: Asker) {
        let (partition, call) = tickets::take(&self.partitions, &id, 2 * TICKET_MS);
        let tag = self.send(To::Partition(partition), vec![call]);
        self.tickets.insert(tag, asker);
        let until = before(asker.until, TICKET_RESERVE_MS);
        self.given_up.push_back((until, tag));
    }

    /// A page of those who are online. `place` is where the last one has ended.
    pub(super) fn list(&mut self, asker: Asker, wanted: Listing) {
        let Listing {
            since,
            prefix,
            limit,
            place,
        } = wanted;
        match Place::read(&place) {
            Ok(place) => {
                let walk = Walk::new(since, &prefix, limit, place, self.buckets);
                self.walk_on(asker, walk);
            }
            Err(_) => self.tell_listed(asker, None, None),
        }
    }

    fn walk_on(&mut self, asker: Asker, walk: Walk) {
        match walk.call(&self.partitions) {
            Some((partition, call)) => {
                let tag = self.send(To::Partition(partition), vec![call]);
                self.walks.insert(tag, (asker, walk));
            }
            None => self.tell_walked(asker, walk),
        }
    }

    fn walked(
        &mut self,
        (asker, mut walk): (Asker, Walk),
        server: Server,
        replies: &[Reply],
        now: Now,
    ) {
        if let Err(malformed) = walk.answered(server, replies, &self.partitions) {
            tracing::error!("who is online can not be listed: {malformed}");
            return self.tell_listed(asker, None, None);
        }
        match now.mono < before(asker.until, WALK_RESERVE_MS) {
            true => self.walk_on(asker, walk),
            false => self.tell_walked(asker, walk),
        }
    }

    fn tell_walked(&self, asker: Asker, walk: Walk) {
        let (found, next) = walk.page();
        let states = found.into_iter().map(|it| Told {
            status: it.here.map_or(Status::Offline, UserFlags::shown),
            user: it.user,
            since: Some(it.since),
            last_active: it.last_active.or(Some(it.since)),
            stale: false,
            heard: None,
        });
        let next = next.map(|place| place.encode().into());
        self.tell_listed(asker, Some(states.collect()), next);
    }

    fn tell_listed(&self, asker: Asker, states: Option<Vec<Told>>, next: Option<Box<[u8]>>) {
        let listed = Arc::new(Listed { states, next });
        let conn = asker.conn;
        (self.tell_one)(asker.shard, Mail::Listed { conn, listed });
    }

    fn send(&mut self, to: To, calls: Vec<crate::fleet::calls::Call>) -> Tag {
        self.next_tag += 1;
        let tag = Tag(self.next_tag);
        self.outbox.push_back(Command { tag, to, calls });
        tag
    }

    /// Takes an event that answers one of its own commands. Other events come back.
    pub(super) fn handle_event(&mut self, event: Event, now: Now) -> Option<Event> {
        match event {
            Event::Answered {
                tag: Tag(OURS..), ..
            }
            | Event::Failed {
                tag: Tag(OURS..), ..
            } => {}
            other => return Some(other),
        }
        match event {
            Event::Answered {
                tag,
                server,
                replies,
            } => self.answered(tag, server, &replies, now),
            Event::Failed { tag, why } => self.failed(tag, why, now),
            _ => {}
        }
        None
    }

    fn answered(&mut self, tag: Tag, server: Server, replies: &[Reply], now: Now) {
        if let Some(asker) = self.tickets.remove(&tag) {
            return self.ticket_told(asker, tickets::taken(replies));
        }
        if let Some(walk) = self.walks.remove(&tag) {
            return self.walked(walk, server, replies, now);
        }
        if self.reading.take_if(|reading| *reading == tag).is_none() {
            return;
        }
        match self.revocations.answered(server, replies, now) {
            Ok(read) => {
                let heard = read.news.iter();
                let heard = heard.map(|(record, until)| (revocation(record, *until), now.unix));
                let mut is_full = false;
                for (revocation, now) in heard {
                    match self.revoked.add(revocation, now) {
                        Ok(Added::News | Added::Known) => {}
                        Err(_) => is_full = true,
                    }
                }
                if self.revocations.has_read() {
                    self.revoked.have_been_read();
                }
                if is_full {
                    self.warn("more tokens are void than may be: raise --revocations-max");
                }
                if read.foreign > 0 {
                    let (many, key) = (read.foreign, REVOKED);
                    self.warn(&format!(
                        "{many} entries of {key} were passed over: no greendot of this version \
                         has made them"
                    ));
                }
                if read.is_whole {
                    // Whatever the database has lost.
                    self.journal = 0;
                }
                self.read_journal(now);
            }
            Err(malformed) => self.warn(&malformed.to_string()),
        }
        self.tell_revoked();
    }

    fn failed(&mut self, tag: Tag, _why: Failed, now: Now) {
        if let Some(asker) = self.tickets.remove(&tag) {
            self.ticket_told(asker, None);
        } else if let Some((asker, _)) = self.walks.remove(&tag) {
            self.tell_listed(asker, None, None);
        } else if self.reading.take_if(|reading| *reading == tag).is_some() {
            self.revocations.failed(now);
        }
    }

    /// Answers those whose revocation the fleet has, and forgets those who have been told that it
    /// may not.
    fn tell_revoked(&mut self) {
        let taken = self.revocations.taken();
        while let Some((_, asker)) = self.revoking.pop_front_if(|(number, _)| *number <= taken) {
            self.tell(asker, Verdict::Done);
        }
    }

    /// `is_ours`: nobody else has used it; None: the database does not say.
    fn ticket_told(&mut self, asker: Asker, is_ours: Option<bool>) {
        if is_ours.is_none() {
            self.board.process.add(Counter::TicketsUnasked, 1);
        }
        let verdict = match is_ours {
            Some(false) => Verdict::Spent,
            Some(true) | None => Verdict::Done,
        };
        self.tell(asker, verdict);
    }

    fn tell(&self, asker: Asker, verdict: Verdict) {
        let (conn, more) = (asker.conn, 0);
        let ran = Mail::Ran {
            conn,
            more,
            verdict,
        };
        (self.tell_one)(asker.shard, ran);
    }

    fn warn(&mut self, what: &str) {
        if !std::mem::replace(&mut self.warned, true) {
            tracing::error!("revocations of the fleet: {what}");
        }
    }

    /// Does what is due by now.
    pub(super) fn handle_timeout(&mut self, now: Now) {
        while let Some((_, tag)) = self.given_up.pop_front_if(|(due, _)| *due <= now.mono) {
            if let Some(asker) = self.tickets.remove(&tag) {
                self.ticket_told(asker, None);
            }
        }
        let is_late = |asker: &Asker| asker.until <= now.mono;
        while self
            .revoking
            .pop_front_if(|(_, asker)| is_late(asker))
            .is_some()
        {}
        self.tell_revoked();
        if let Some(calls) = self.revocations.poll_calls(now) {
            self.reading = Some(self.send(To::Key(REVOKED), calls));
        }
    }

    pub(super) fn poll_command(&mut self) -> Option<Command> {
        self.outbox.pop_front()
    }

    pub(super) fn poll_timeout(&self) -> Mono {
        let tickets = self.given_up.front().map_or(Mono::NEVER, |(due, _)| *due);
        tickets.min(self.revocations.next())
    }
}

/// So many ms before then.
pub(super) fn before(then: Mono, ms: u64) -> Mono {
    Mono::from_micros(then.micros().saturating_sub(ms * 1_000))
}

fn record(revocation: &Revocation) -> Record {
    let mut bytes = Vec::with_capacity(size_of::<Record>());
    revocation.write_told(&mut bytes);
    bytes.try_into().expect("a revocation is told in 24 bytes")
}

fn revocation(record: &Record, until: Unix) -> Revocation {
    Revocation::from_told(record, until)
}
