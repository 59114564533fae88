//! Webhooks of a fleet, as its bridge deals with them: each partition is told by one node.
//!
//! Owns which of them this node tells and what of them is handed to the webhooks' threads. How a
//! receiver is spoken to is theirs; how Redis is reached is the link's.

mod claim;
mod feed;
mod follow;
mod hand;
mod missed;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::HashMap;
use std::sync::Arc;

use self::follow::Follow;
use crate::engine::{HookOrder, HookReport};
use crate::fleet::Life;
use crate::fleet::hooks::{Mark, Senders, info_of_ended, info_with};
use crate::fleet::member::{Local, Member, Peer, Standing};
use crate::fleet::partition::Partitions;
use crate::fleet::traffic::{Command, Event, Tag, To};
use crate::metrics::{Board, Counter};
use crate::time::{Mono, Now};

/// Its commands' tags have this bit and not the next higher one, which are the desk's.
const OURS: u64 = 1 << 62;
/// Who is there is looked at so often, in ms.
const CHOOSE_MS: u64 = 500;
/// A node that ends waits so long until others may go on, in ms.
const LEAVE_MS_MAX: u64 = 1_500;
/// And at least so long that they are told that it goes, in ms.
const LEAVE_MS_MIN: u64 = 100;

/// The thread of one webhook, as the bridge reaches it.
pub struct HookOutlet {
    /// What it is named by in the database.
    pub name: String,
    /// Users of other ids are not told of.
    pub prefix: String,
    /// Longest time for a request and its answer, in ms.
    pub request_ms: u64,
    /// Most users in its queue.
    pub queue_max: usize,
    /// Hands something over. Does not block.
    pub hand: Box<dyn Fn(HookOrder) + Send>,
    /// For how many more users there is room.
    pub room: Box<dyn Fn() -> usize + Send>,
    /// What it has said since the last call.
    pub reports: Box<dyn Fn() -> Vec<HookReport> + Send>,
}

/// What Redis was asked.
#[derive(Debug)]
enum Asked {
    Taken { sent: Mono },
    Ring,
    Buckets,
    Scan,
    Here,
    Missed,
    Kept { mark: Option<Mark>, sent: Mono },
    Released,
}

/// Of which partition, and in which turn of its feed.
type Question = (usize, Asked, u32);

/// See the module.
pub struct Hooks {
    follows: Vec<Follow>,
    partitions: Arc<Partitions>,
    /// Of which webhook.
    waiting: HashMap<Tag, (usize, Question)>,
    next_tag: u64,
    /// What the node says of itself beside its webhooks.
    info: Box<str>,
    /// By whom the senders were chosen last, and as whom.
    chosen: (Vec<Peer>, Option<Life>),
    choose_at: Mono,
    leaving_since: Option<Mono>,
    /// Since when nothing more comes in.
    ending_since: Option<Mono>,
    /// What the node said of itself last.
    said: String,
    board: Arc<Board>,
}

impl Hooks {
    /// `info` is what the node says of itself in the lanes. Departures are settled for `settle_ms`,
    /// and each partition has so many `buckets`.
    pub fn new(
        outlets: Vec<HookOutlet>,
        info: Box<str>,
        partitions: Arc<Partitions>,
        (buckets, settle_ms): (u32, u64),
        mut random: fastrand::Rng,
        board: Arc<Board>,
    ) -> Hooks {
        let follow = |outlet| {
            let partitions = Arc::clone(&partitions);
            Follow::new(outlet, partitions, buckets, settle_ms, &mut random)
        };
        let mut hooks = Hooks {
            follows: outlets.into_iter().map(follow).collect(),
            partitions,
            waiting: HashMap::new(),
            next_tag: OURS,
            info,
            chosen: (Vec::new(), None),
            choose_at: Mono::default(),
            leaving_since: None,
            ending_since: None,
            said: String::new(),
            board,
        };
        hooks.said = hooks.info();
        hooks
    }

    /// What the node says of itself: with its webhooks, unless others are not to count on it.
    pub fn info(&self) -> String {
        let names = self.follows.iter().map(|follow| &*follow.outlet.name);
        let names = names.filter(|_| self.leaving_since.is_none());
        let info = info_with(&self.info, &names.collect::<Vec<_>>());
        match self.ending_since {
            Some(_) => info_of_ended(&info),
            None => info,
        }
    }

    /// Takes an event that answers one of its own commands, and looks at those that tell of a
    /// partition. Those and other events come back.
    pub(super) fn handle_event(&mut self, event: Event, now: Now) -> Option<Event> {
        match event {
            Event::Answered {
                tag,
                server,
                replies,
            } if is_ours(tag) => {
                if let Some((hook, asked)) = self.waiting.remove(&tag) {
                    self.follows[hook].answered(asked, server, &replies, now);
                }
                return None;
            }
            Event::Failed { tag, .. } if is_ours(tag) => {
                if let Some((hook, asked)) = self.waiting.remove(&tag) {
                    self.follows[hook].failed(asked, now);
                }
                return None;
            }
            Event::Published {
                partition,
                ref message,
                ..
            } => {
                for follow in &mut self.follows {
                    follow.published(partition.index(), message, now);
                }
            }
            Event::Subscribed { partition, .. } => {
                for follow in &mut self.follows {
                    follow.subscribed(partition.index(), now.mono);
                }
            }
            _ => {}
        }
        Some(event)
    }

    /// Hears what the webhooks' threads say, and whose the partitions are now.
    pub(super) fn turn<L: Local>(&mut self, member: &mut Member<L>, is_draining: bool, now: Now) {
        for follow in &mut self.follows {
            for report in (follow.outlet.reports)() {
                follow.reported(report, now);
            }
            for (counter, by) in [
                (Counter::WebhookOverflows, &mut follow.overflows),
                (Counter::WebhookErasuresUntold, &mut follow.untold),
                (Counter::FleetRefused, &mut follow.refused),
            ] {
                self.board.process.add(counter, std::mem::take(by));
            }
        }
        let goes = is_draining || self.ending_since.is_some();
        let leaves = goes && self.leaving_since.is_none();
        if leaves {
            self.leaving_since = Some(now.mono);
        }
        if goes && self.info() != self.said {
            self.said = self.info();
            member.set_info(&self.said, now);
        }
        if now.mono < self.choose_at && !leaves {
            return;
        }
        self.choose_at = now.mono.plus_ms(CHOOSE_MS);
        let is_member = matches!(member.standing(now), Standing::Member | Standing::Doubtful);
        let own = (is_member && self.leaving_since.is_none()).then(|| member.life());
        if (member.peers(), own) == (&self.chosen.0, self.chosen.1) {
            return;
        }
        self.chosen = (member.peers().to_vec(), own);
        for follow in &mut self.follows {
            let senders = Senders::new(&self.chosen.0, &follow.outlet.name);
            follow.choose(&senders, own, now);
        }
    }

    /// What Redis refused lately, and of which key: the first of it since the last look.
    pub(super) fn take_refusal(&mut self) -> Option<Box<str>> {
        let mut follows = self.follows.iter_mut();
        follows.find_map(|follow| follow.refusal.take())
    }

    /// Whether the node may end: others can go on, or it has waited for long enough.
    pub(super) fn may_end(&mut self, now: Now) -> bool {
        let since = *self.ending_since.get_or_insert(now.mono);
        let has_left = || self.follows.iter().all(Follow::has_left);
        match now.mono.ms_since(since) {
            ..LEAVE_MS_MIN => false,
            LEAVE_MS_MIN..LEAVE_MS_MAX => has_left(),
            LEAVE_MS_MAX.. => true,
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Now) {
        for follow in &mut self.follows {
            follow.handle_timeout(now);
        }
    }

    pub(super) fn poll_command(&mut self) -> Option<Command> {
        let mut follows = self.follows.iter_mut().enumerate();
        let (hook, (question, calls)) =
            follows.find_map(|(hook, follow)| Some((hook, follow.asks.pop_front()?)))?;
        self.next_tag += 1;
        let tag = Tag(self.next_tag);
        let to = To::Partition(self.partitions.at(question.0 as u16));
        self.waiting.insert(tag, (hook, question));
        Some(Command { tag, to, calls })
    }

    pub(super) fn poll_timeout(&self) -> Mono {
        let follows = self.follows.iter().map(Follow::next).min();
        match follows {
            Some(next) => next.min(self.choose_at),
            None => Mono::NEVER,
        }
    }
}

fn is_ours(Tag(tag): Tag) -> bool {
    tag & !(OURS - 1) == OURS
}
