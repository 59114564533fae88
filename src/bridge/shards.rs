//! Between a node's shards and the core of its fleet: what shards say becomes the core's, and what
//! the core says becomes their mail.
//!
//! Owns the calls that wait for the fleet's answer, and the feed by which event ids count. Decides
//! nothing about users.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};

use super::Observer;
use super::abroad::Abroad;
use super::databases::{Databases, News};
use super::desk::{Desk, Listing};
use super::driver::Core;
use super::hooks::Hooks;
use super::neighbours::Neighbours;
use super::story::Story;
use crate::engine::{Asker, Came, Mail, Outbound, Part, Passed, Taken, Wanted, own_in_fleet};
use crate::fleet::flags::Saying;
use crate::fleet::member::{Counts, Local, Member, Standing, Ticket};
use crate::fleet::ticks::Ticks;
use crate::fleet::traffic::{Command, Event};
use crate::metrics::{Board, Counter, Gauge};
use crate::slot::Slot;
use crate::status::Status;
use crate::time::{Mono, Now};
use crate::wire::feed::Place;
use crate::wire::record::Told;
use crate::wire::{User, UserBuf};

/// A call waits so long for the fleet, in ms; then it is answered by what is known here, which is
/// marked as old.
const ANSWER_MS_MAX: u64 = 1_000;
/// And no longer than until so many ms before its shard gives it up.
const ANSWERS_MS: u64 = 100;
/// Time between two words of the feed, in ms.
const FEED_MS: u64 = 500;

/// Slots that one turn looks at because mail was lost.
const LOOKED_AT: u32 = 8_192;

/// Hands a piece of mail to all shards.
pub type Tell = Arc<dyn Fn(&Mail) + Send + Sync>;

/// The core of one node, with all that is around it but sockets.
pub struct Shards {
    member: Member<Databases>,
    desk: Desk,
    waiting: VecDeque<Waiting>,
    asked: Said,
    tell: Tell,
    board: Arc<Board>,
    link: Arc<OnceLock<Observer>>,
    feed: Feed,
    neighbours: Neighbours,
    hooks: Hooks,
    abroad: Abroad,
    /// The next slot that is to be looked at because mail was lost.
    look_again: Option<u32>,
    /// It has stood in its fleet: from then on it never ends for what the fleet says.
    has_joined: bool,
    /// It has been said that the fleet is another one now.
    disagrees: bool,
    /// What has happened, as far as the metrics show it.
    shown: Counts,
    story: Story,
}

/// Some users of a call whose states are yet to be said.
struct Waiting {
    part: Part,
    /// Who of them has not been answered for, by place.
    open: Vec<usize>,
    until: Mono,
}

/// Requests that wait until something that was said once is done.
#[derive(Default)]
struct Said {
    waiting: BTreeMap<Ticket, Asking>,
    last: u64,
}

/// One of them.
struct Asking {
    user: UserBuf,
    asker: Asker,
    until: Mono,
    /// It counts here at once, and by itself elsewhere; else the database must have done it.
    counts: bool,
}

/// What the node's presence database takes for a presence node's feed.
struct Feed {
    birth: u64,
    number: u64,
    due: Mono,
}

impl Shards {
    /// `birth` names this life of the node; `link` is what metrics see of the connections.
    pub fn new(
        member: Member<Databases>,
        (desk, neighbours, hooks, abroad): (Desk, Neighbours, Hooks, Abroad),
        birth: u64,
        tell: Tell,
        board: Arc<Board>,
        link: Arc<OnceLock<Observer>>,
        now: Now,
    ) -> Shards {
        Shards {
            neighbours,
            hooks,
            abroad,
            member,
            desk,
            waiting: VecDeque::new(),
            asked: Said::default(),
            tell,
            board,
            link,
            look_again: None,
            has_joined: false,
            disagrees: false,
            shown: Counts::default(),
            story: Story::default(),
            feed: Feed {
                birth,
                number: 0,
                due: now.mono,
            },
        }
    }

    /// The core.
    pub fn member(&self) -> &Member<Databases> {
        &self.member
    }

    fn take_part(&mut self, part: Part, now: Now) {
        let local = self.member.local();
        let is_sure = |user: &UserBuf| {
            let slot = local.find(user.user());
            slot.is_some_and(|slot| local.told_of().is_sure(slot))
        };
        let all = part.users.iter().enumerate();
        let open: Vec<usize> = all
            .filter(|(_, user)| !is_sure(user))
            .map(|(at, _)| at)
            .collect();
        for at in &open {
            self.member.ask(part.users[*at].user(), false, now);
        }
        self.waiting.push_back(Waiting {
            part,
            open,
            until: now.mono.plus_ms(ANSWER_MS_MAX),
        });
    }

    /// Mail of all that the core has said since the last call.
    fn flush(&mut self, now: Now) {
        let news = self.member.local_mut().take_news(now);
        self.answer(&news, now);
        let News {
            answered,
            ended,
            done,
            ..
        } = news;
        if let Some(answered) = answered {
            (self.tell)(&Mail::Answered(Arc::new(answered)));
        }
        if !ended.is_empty() {
            (self.tell)(&Mail::LoggedOut(Arc::from(ended)));
        }
        // Behind the news of it.
        self.answer_said(&done, now);
    }

    /// A request waits until the core has done what it says.
    fn wait_for(&mut self, user: UserBuf, asker: Asker, counts: bool, now: Now) -> Ticket {
        self.asked.last += 1;
        let ticket = Ticket(self.asked.last);
        let answered_by = asker.until.minus_ms(ANSWERS_MS);
        let asking = Asking {
            user,
            asker,
            until: now.mono.plus_ms(ANSWER_MS_MAX).min(answered_by),
            counts,
        };
        self.asked.waiting.insert(ticket, asking);
        ticket
    }

    fn answer_said(&mut self, done: &[Ticket], now: Now) {
        let mut taken = Vec::new();
        for ticket in done {
            let asking = self.asked.waiting.remove(ticket);
            taken.extend(asking.map(|asking| (asking, true)));
        }
        // Tickets go up as time does.
        while let Some(first) = self.asked.waiting.first_entry()
            && first.get().until <= now.mono
        {
            let asking = first.remove();
            let counts = asking.counts;
            taken.push((asking, counts));
        }
        if taken.is_empty() {
            return;
        }
        let local = self.member.local();
        let of = |(asking, is_done): (Asking, bool)| Taken {
            asker: asking.asker,
            own: is_done.then(|| own(local, asking.user.user(), false, now)),
        };
        let taken: Vec<Taken> = taken.into_iter().map(of).collect();
        (self.tell)(&Mail::Taken(taken.into()));
    }

    /// Answers the calls that have been waited for, or that have waited for long.
    fn answer(&mut self, news: &News, now: Now) {
        if self.waiting.is_empty() {
            return;
        }
        let (slots, names) = Databases::spoken_of(news);
        let local = self.member.local();
        let mut passed = Vec::new();
        self.waiting.retain_mut(|call| {
            let users = &call.part.users;
            call.open.retain(|at| {
                let user = users[*at].user();
                let slot = local.find(user);
                !names.contains(user.as_str()) && !slot.is_some_and(|slot| slots.contains(&slot))
            });
            let is_due = call.open.is_empty() || call.until <= now.mono;
            if is_due {
                passed.push(Passed {
                    asker: call.part.asker,
                    index: call.part.index,
                    came: Some(came(local, call, now)),
                });
            }
            !is_due
        });
        if !passed.is_empty() {
            (self.tell)(&Mail::Passed(passed.into()));
        }
    }

    /// What the metrics show of the fleet.
    fn show(&mut self, now: Now) {
        let stands = self.member.standing(now);
        let stale = self.member.stale_partitions(now);
        let nodes = self.member.peers().len() as u64;
        self.story
            .tell(stands, nodes, stale, self.member.counts().lives);
        let standing = match stands {
            // Before it is known which tokens are void, nobody is to come.
            Standing::Member if !self.desk.has_read() => 1,
            Standing::Joining => 1,
            Standing::Member => 2,
            Standing::Doubtful => 3,
            Standing::Fenced => 4,
            Standing::Leaving => 5,
        };
        self.has_joined |= standing == 2;
        let disagreement = self.member.disagreement();
        if let Some(fault) = disagreement.filter(|_| self.has_joined && !self.disagrees) {
            tracing::error!(
                "the fleet's database was emptied and made anew by another node: {fault}. This \
                 node tells what it knows; restart those that are configured otherwise, empty the \
                 database once more, and restart this one"
            );
        }
        self.disagrees = disagreement.is_some();
        let refusal = self.member.take_refusal();
        if let Some(text) = refusal.or_else(|| self.hooks.take_refusal()) {
            self.story.refused(&text, now.mono);
        }
        let counts = *self.member.counts();
        let shown = std::mem::replace(&mut self.shown, counts);
        for (counter, by) in [
            (Counter::FleetWrites, counts.said - shown.said),
            (
                Counter::FleetRefused,
                counts.refused + counts.malformed - shown.refused - shown.malformed,
            ),
            (
                Counter::FleetSaidDropped,
                counts.acts_dropped - shown.acts_dropped,
            ),
            (Counter::FleetLives, counts.lives - shown.lives),
            (Counter::FleetFences, counts.fences - shown.fences),
            (Counter::FleetReaped, counts.reaped - shown.reaped),
            (
                Counter::FleetReconciles,
                counts.reconciles - shown.reconciles,
            ),
            (Counter::FleetRepairs, counts.repairs - shown.repairs),
            (
                Counter::FleetUsersRead,
                counts.users_read - shown.users_read,
            ),
            (Counter::FleetLate, counts.late - shown.late),
        ] {
            self.board.process.add(counter, by);
        }
        let figures = self.link.get().map(Observer::figures).unwrap_or_default();
        for (gauge, value) in [
            (Gauge::FleetStanding, standing),
            (Gauge::FleetNodes, nodes),
            (Gauge::FleetHomes, self.neighbours.homes() as u64),
            (Gauge::FleetPartitionsStale, u64::from(stale)),
            (Gauge::FleetConnections, u64::from(figures.connections)),
            (Gauge::FleetSubscriptions, u64::from(figures.subscriptions)),
        ] {
            self.board.process.set(gauge, value);
        }
    }

    /// A piece of the walk over all slots, because mail was lost.
    fn look_again(&mut self, now: Now) {
        let Some(from) = self.look_again else {
            return;
        };
        let slots = self.member.local().slots();
        let end = slots.min(from.saturating_add(LOOKED_AT));
        for slot in (from..end).map(Slot::new) {
            self.member.changed(slot, now);
        }
        self.look_again = (end < slots).then_some(end);
    }

    /// Says up to when everything has been told, as a presence node does with its messages.
    fn say_known(&mut self, now: Now) {
        if now.mono < self.feed.due {
            return;
        }
        self.feed.due = now.mono.plus_ms(FEED_MS);
        self.tell_known(now);
        // Behind that: what is not known is told as old before the node says that it is cut off.
        self.show(now);
    }

    fn tell_known(&mut self, now: Now) {
        let presence = Arc::clone(self.member.local().told_of());
        let Some(known_up_to) = self.member.known_up_to(now) else {
            return presence.source_failed(0);
        };
        let Feed { birth, number, .. } = self.feed;
        presence.source_answered(0, birth, now.unix, now.mono, now.mono);
        if !presence.is_in_step(0) {
            // The core asks for whatever it has missed, and says by then that it does not know.
            presence.begin_asking(0, |_| false);
            presence.asked_everything(0);
        }
        self.feed.number += 1;
        let place = Place {
            birth,
            previous: number,
            number: number + 1,
            up_to: Some(known_up_to.min(now.unix)),
        };
        let taken = presence.take_message(&place, now.mono);
        if let Some(up_to) = taken.and_then(|taken| taken.up_to) {
            (self.tell)(&Mail::Told { node: 0, up_to });
        }
    }
}

/// What is known of a call's users. Whoever has not been answered for is told with `stale`.
fn came(local: &Databases, call: &Waiting, now: Now) -> Came {
    let state = |(at, user): (usize, &UserBuf)| {
        let stale = call.open.contains(&at);
        match local.find(user.user()) {
            Some(slot) => told(local, slot, stale, now),
            None => Told {
                stale,
                ..nobody(user.user())
            },
        }
    };
    let states = call.part.users.iter().enumerate().map(state);
    match call.part.wanted {
        Wanted::Own => {
            let user = call.part.users.first();
            let is_open = !call.open.is_empty();
            Came::Own(user.map(|user| own(local, user.user(), is_open, now)))
        }
        Wanted::States | Wanted::Beats { .. } => Came::States(states.collect()),
    }
}

fn told(local: &Databases, slot: Slot, stale: bool, now: Now) -> Told {
    let (told_of, heard) = (local.told_of(), local.heard_here());
    let user = told_of.user(slot);
    // Redis had its time to say that this user hides.
    let is_heard = heard.is_online(slot) && !told_of.hidden(slot).invisible;
    let (state, stale) = match stale && is_heard && !told_of.is_online(slot) {
        true => (heard.state(slot, now), false),
        false => (told_of.state(slot, now), stale),
    };
    if !state.is_known() {
        return Told {
            stale,
            ..nobody(user)
        };
    }
    Told {
        user: user.into(),
        status: state.status,
        since: state.since,
        last_active: state.last_active,
        stale: stale || local.told_of().is_stale(slot),
        heard: None,
    }
}

/// A user as it is told itself, and whether it is invisible.
fn own(local: &Databases, user: User<'_>, stale: bool, now: Now) -> (Told, bool) {
    let Some(slot) = local.find(user) else {
        let told = Told {
            stale,
            ..nobody(user)
        };
        return (told, false);
    };
    let own = own_in_fleet(local.told_of(), local.heard_here(), slot, now);
    let told = Told {
        user: user.into(),
        status: own.state.status,
        since: own.state.since,
        last_active: own.state.last_active,
        stale,
        heard: None,
    };
    (told, own.invisible)
}

fn nobody(user: User<'_>) -> Told {
    Told {
        user: user.into(),
        status: Status::Offline,
        since: None,
        last_active: None,
        stale: false,
        heard: None,
    }
}

impl Core for Shards {
    type Mail = Outbound;

    fn handle_event(&mut self, event: Event, now: Now) {
        let event = self.desk.handle_event(event, now);
        let event = event.and_then(|event| self.hooks.handle_event(event, now));
        if let Some(event) = event {
            self.member.handle_event(event, now);
        }
    }

    fn handle_mail(&mut self, mail: Outbound, now: Now) {
        match mail {
            Outbound::Heard(slots) => {
                for slot in slots {
                    self.member.changed(slot, now);
                }
            }
            Outbound::Goodbyes(goodbyes) => {
                for (user, sent) in goodbyes {
                    let (kinds, last_active) = self.member.local().parted(user.user(), sent);
                    self.member
                        .said_goodbye(user.user(), kinds, sent, last_active, now);
                }
            }
            Outbound::Asks { users, anew, .. } => {
                let users = users.iter().filter_map(|user| User::from_text(user).ok());
                for user in users {
                    self.member.ask(user, anew, now);
                }
            }
            Outbound::FleetLogOut { users, at, asker } => {
                for user in users {
                    let ticket = self.wait_for(user.clone(), asker, true, now);
                    self.member.log_out(user.user(), at, Some(ticket), now);
                }
            }
            Outbound::Pass { part, .. } => self.take_part(part, now),
            Outbound::Words(words) => {
                for word in words {
                    self.neighbours.hear(word.as_str(), now);
                }
            }
            Outbound::Revoked(asker) => self.desk.revoke(asker, now),
            Outbound::Online {
                asker,
                since,
                prefix,
                limit,
                place,
            } => {
                let wanted = Listing {
                    since,
                    prefix,
                    limit,
                    place,
                };
                self.desk.list(asker, wanted);
            }
            Outbound::Streams(ask) => {
                let (peers, own) = (self.member.peers(), self.member.life());
                self.abroad.ask(ask, peers, own);
            }
            Outbound::Forward(forward) => self.abroad.forward(*forward, self.member.peers()),
            Outbound::Ticket { asker, id } => self.desk.ask_for_ticket(id, asker),
            Outbound::Say { say, .. } => {
                let said = Saying {
                    status: say.said.status,
                    invisible: say.said.invisible,
                };
                let ticket = self.wait_for(say.user.clone(), say.asker, true, now);
                self.member
                    .set_flags(say.user.user(), said, Some(ticket), now);
            }
            Outbound::Erase(user, asker) => {
                let ticket = self.wait_for(user.clone(), asker, false, now);
                self.member.erase(user.user(), Some(ticket), now);
            }
            // Nodes of split deployments, and webhooks, are told these.
            Outbound::Beats { .. }
            | Outbound::Homeward { .. }
            | Outbound::Bundled { .. }
            | Outbound::LogOut { .. }
            | Outbound::Sample { .. }
            | Outbound::Erased(_)
            | Outbound::Publish(_)
            | Outbound::Holders(_)
            | Outbound::EndStreams(_) => {}
        }
    }

    fn handle_lost(&mut self, _now: Now) {
        tracing::warn!("the bridge to the fleet is behind; all of this node's users are looked at");
        self.look_again = Some(0);
    }

    fn handle_timeout(&mut self, now: Now) {
        self.look_again(now);
        self.desk.handle_timeout(now);
        self.hooks.handle_timeout(now);
        if self.member.poll_timeout() <= now.mono {
            self.member.handle_timeout(now);
        }
    }

    fn end_turn(&mut self, now: Now) {
        // What is known has to be in the mail before it is said to be.
        self.flush(now);
        self.say_known(now);
        let draining = self.board.process.gauge(Gauge::Draining) != 0;
        self.neighbours.turn(&self.member, draining, now);
        self.hooks.turn(&mut self.member, draining, now);
    }

    fn may_end(&mut self, now: Now) -> bool {
        self.hooks.may_end(now)
    }

    fn poll_command(&mut self) -> Option<Command> {
        self.desk
            .poll_command()
            .or_else(|| self.hooks.poll_command())
            .or_else(|| self.member.poll_command())
    }

    fn fault(&self) -> Option<String> {
        let disagreement = self.member.disagreement().filter(|_| !self.has_joined);
        disagreement.map(ToString::to_string)
    }

    fn ticks(&self) -> Ticks {
        self.member.ticks()
    }

    fn poll_timeout(&self) -> Mono {
        let calls = self.waiting.front().map_or(Mono::NEVER, |call| call.until);
        let said = self.asked.waiting.first_key_value();
        let calls = calls.min(said.map_or(Mono::NEVER, |(_, asking)| asking.until));
        if self.look_again.is_some() {
            return Mono::default();
        }
        let own = self.feed.due.min(calls).min(self.desk.poll_timeout());
        let own = own.min(self.neighbours.due());
        let own = own.min(self.hooks.poll_timeout());
        self.member.poll_timeout().min(own)
    }
}
