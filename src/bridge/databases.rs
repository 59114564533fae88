//! A node's two presence databases, as the core of its fleet asks and tells them.
//!
//! Owns what a state of the fleet means to the one of which the node tells, and what the node may
//! claim by the one that hears; and what callers here have said that the fleet has told by now.
//! Gathers what is news, and tells nobody.

use std::collections::HashSet;
use std::sync::Arc;

use crate::engine::{Answered, Decided, Homes};
use crate::fleet::flags::UserFlags;
use crate::fleet::held::Kinds;
use crate::fleet::member::{Ending, How, Local, Mirrored, Own, State, Ticket};
use crate::presence::{Hidden, Presence, Source, Transition};
use crate::slot::Slot;
use crate::status::Status;
use crate::time::{Mono, Now, Unix};
use crate::wire::record::{Said, Told};
use crate::wire::{User, UserBuf};

/// Later than anything that is known: whoever has read a state knows better.
const READ: Source = Source::Answered(Unix::from_ms(u64::MAX >> 1));

/// Clocks of nodes and of Redis that differ by less are as one, in ms.
const AHEAD_MS: u64 = 1_000;

/// The two databases, and what is news since it was last taken.
pub struct Databases {
    told: Arc<Presence>,
    heard: Arc<Presence>,
    homes: Homes,
    transitions: Vec<Transition>,
    sure: Vec<Slot>,
    unseen: Vec<Box<str>>,
    ended: Vec<Slot>,
    done: Vec<Ticket>,
}

/// What the fleet has said and the shards are to be told.
pub(super) struct News {
    /// None: nothing.
    pub(super) answered: Option<Answered>,
    /// Whose streams are to end.
    pub(super) ended: Vec<Slot>,
    /// What was said with these tickets has been done.
    pub(super) done: Vec<Ticket>,
}

impl Databases {
    /// Of which the node tells, and which hears: twins
    /// ([`Presence::follower_and_heard`]). `homes` has what callers here have said.
    pub fn new(told: Arc<Presence>, heard: Arc<Presence>, homes: Homes) -> Databases {
        Databases {
            told,
            heard,
            homes,
            transitions: Vec::new(),
            sure: Vec::new(),
            unseen: Vec::new(),
            ended: Vec::new(),
            done: Vec::new(),
        }
    }

    /// The one that hears.
    pub(super) fn heard_here(&self) -> &Arc<Presence> {
        &self.heard
    }

    /// The one of which the node tells.
    pub(super) fn told_of(&self) -> &Arc<Presence> {
        &self.told
    }

    /// The kinds of a claim that a goodbye of a device has ended here: none while it does not count
    /// here, and no stream that is open.
    pub(super) fn parted(&self, user: User<'_>, sent: Unix) -> (Kinds, Unix) {
        let Some(slot) = self.told.lookup(user) else {
            return (Kinds::default(), sent);
        };
        let is_held = self.told.is_held(slot);
        let has_left = self.heard.has_left(slot);
        let kinds = Kinds {
            beat: has_left.then_some(sent),
            stream: has_left && !is_held,
            open: !is_held,
            unattended: false,
        };
        (kinds, sent)
    }

    /// What is news since the last call.
    pub(super) fn take_news(&mut self, now: Now) -> News {
        let is_news = !self.transitions.is_empty() || !self.sure.is_empty();
        let answered = (is_news || !self.unseen.is_empty()).then(|| Answered {
            decided: Decided {
                at: now.mono,
                transitions: std::mem::take(&mut self.transitions),
            },
            unseen: std::mem::take(&mut self.unseen),
            sure: std::mem::take(&mut self.sure),
        });
        News {
            answered,
            ended: std::mem::take(&mut self.ended),
            done: std::mem::take(&mut self.done),
        }
    }

    /// What a user says of itself is the same on all nodes.
    fn note(&self, slot: Slot, flags: UserFlags, is_here: bool) {
        let hidden = Hidden {
            status: flags.status(),
            unattended: flags.unattended,
            invisible: flags.invisible,
            is_here,
        };
        self.told.note_hidden(slot, hidden);
        let said = Said {
            status: Some(flags.status()),
            invisible: None,
        };
        // Nobody is told by it: a sweep sees it in its time.
        self.heard.say(slot, said);
    }

    fn adopt(&mut self, slot: Slot, told: &Told, source: Source, now: Now) {
        let transition = self.told.adopt(slot, told, source, now);
        if let Some(transition) = &transition {
            let is_here = transition.status.is_online();
            self.homes.told(told.user.user(), is_here);
        }
        self.transitions.extend(transition);
        self.sure.push(slot);
    }

    /// When somebody came of whom this node tells by itself: when it was heard here, which may be
    /// some time ago if Redis was waited for. Not by a clock that is ahead of Redis', whose time
    /// `guess` is.
    fn came(&self, slot: Slot, guess: Unix, now: Now) -> Unix {
        let heard = self
            .heard
            .is_online(slot)
            .then(|| self.heard.state(slot, now));
        let heard = heard.and_then(|state| state.since);
        let is_ahead = |since: &Unix| *since > guess.plus_ms(AHEAD_MS);
        heard.filter(|since| !is_ahead(since)).unwrap_or(guess)
    }

    /// What everybody is told of somebody of whom the fleet says this: status, since when, and when
    /// it was last heard of.
    fn public(&self, slot: Slot, state: State, now: Now) -> (Status, Option<Unix>, Option<Unix>) {
        // Of somebody who is here its node alone knows; it was heard when it came.
        let last_active = state.last_active.or(Some(state.since));
        if !state.flags.invisible {
            let status = match state.is_here {
                true => state.flags.shown(),
                false => Status::Offline,
            };
            return (status, Some(state.since), last_active);
        }
        let known = self.told.state(slot, now);
        match () {
            // It has said goodbye, as far as anybody sees, and nothing that comes then shows.
            () if known.status.is_online() => {
                (Status::Offline, Some(state.since), Some(state.since))
            }
            () if known.is_known() => (Status::Offline, self.known_since(slot), known.last_active),
            () => (Status::Offline, state.gone_since, state.gone_since),
        }
    }

    /// As of when something was told of a user here, an erasure too.
    fn known_since(&self, slot: Slot) -> Option<Unix> {
        self.told.since(slot).filter(|since| since.ms() > 0)
    }

    /// Those of whom the news speaks, by slot or name.
    pub(super) fn spoken_of(news: &News) -> (HashSet<Slot>, HashSet<&str>) {
        let answered = news.answered.as_ref();
        let slots = answered.into_iter().flat_map(|it| &it.sure).copied();
        let names = answered.into_iter().flat_map(|it| &it.unseen);
        (slots.collect(), names.map(|name| &**name).collect())
    }
}

impl Local for Databases {
    fn slots(&self) -> u32 {
        self.told.users()
    }

    fn user(&self, slot: Slot) -> Option<User<'_>> {
        Some(self.told.user(slot))
    }

    fn find(&self, user: User<'_>) -> Option<Slot> {
        self.told.lookup(user)
    }

    fn make(&mut self, user: User<'_>) -> Option<Slot> {
        self.told.intern(user).ok()
    }

    fn own(&self, slot: Slot, now: Now) -> Own {
        // What the sweep has decided, for it may be holding expiries; but of a goodbye that it has
        // not seen yet.
        let is_here = self.heard.is_online(slot) && !self.heard.has_left(slot);
        let said = self.heard.said(slot);
        let state = self.heard.state(slot, now);
        let since = match self.heard.is_online(slot) == is_here {
            true => state.since,
            false => state.last_active,
        };
        Own {
            kinds: Kinds {
                beat: is_here.then_some(said.sent),
                stream: false,
                open: is_here && self.told.is_held(slot),
                unattended: is_here && said.unattended,
            },
            flags: UserFlags::new(said.status, self.told.is_invisible(slot)),
            last_active: state.last_active.unwrap_or_default(),
            since: since.unwrap_or_default(),
        }
    }

    fn is_sure(&self, slot: Slot) -> bool {
        self.told.is_sure(slot)
    }

    fn mirrored(&self, slot: Slot) -> Option<Mirrored> {
        let (since, hidden) = (self.told.since(slot), self.told.hidden(slot));
        // Of who has said here that it hides nothing was told, and yet that is known.
        let is_known = since.is_some() || hidden.invisible;
        let is_here = hidden.is_here;
        is_known.then_some(Mirrored { is_here, since })
    }

    fn comes_with(&mut self, slot: Slot, flags: UserFlags) {
        self.note(slot, flags, false);
    }

    fn told(&mut self, slot: Slot, state: State, how: How, now: Now) {
        let is_here = self.told.hidden(slot).is_here;
        if how == How::Unsettled && is_here && !state.is_here {
            return;
        }
        let (status, mut since, last_active) = self.public(slot, state, now);
        let known = self.told.state(slot, now);
        let known_since = self.known_since(slot);
        self.note(slot, state.flags, state.is_here);
        if how == How::Alone {
            if known.status == status {
                return;
            }
            if !known.status.is_online() {
                since = since.map(|guess| self.came(slot, guess, now));
            }
            // What this node does by itself is later than all that it was told.
            since = since.max(known_since.map(|since| since.plus_ms(1)));
        }
        let told = Told {
            user: UserBuf::from(self.told.user(slot)),
            status,
            since,
            last_active,
            stale: false,
            heard: None,
        };
        // What a server says in its turn is so, though its clock was behind another's.
        let is_behind = known.is_known() && since <= known_since && status != known.status;
        let source = match how {
            How::InStep if !is_behind => Source::InStep,
            How::InStep | How::Read | How::Unsettled => READ,
            How::Alone => Source::Told,
        };
        self.adopt(slot, &told, source, now);
    }

    fn unseen(&mut self, user: User<'_>, _now: Now) {
        self.unseen.push(user.as_str().into());
    }

    fn judged(&mut self, user: User<'_>) {
        self.homes.settle(user);
    }

    fn heard_of(&mut self, user: User<'_>, is_here: bool) {
        self.homes.told(user, is_here);
    }

    fn overruled(&mut self, user: User<'_>, at: Mono) {
        self.homes.overrule(user, at);
    }

    fn ended(&mut self, slot: Slot, ending: Ending, now: Now) {
        match ending {
            Ending::SaidGoodbye(sent) => {
                if !self.told.is_held(slot) {
                    self.heard.record_leave(slot, sent, now);
                }
            }
            Ending::LoggedOut(said) | Ending::Erased(said) => {
                // A stream vouches until it ends, whatever was said elsewhere meanwhile.
                let until = match self.told.is_held(slot) {
                    true => Unix::LATEST,
                    false => said,
                };
                self.heard.record_leave(slot, until, now);
                self.ended.push(slot);
            }
        }
    }

    fn erased(&mut self, slot: Slot, since: Unix, now: Now) {
        self.note(slot, UserFlags::PLAIN, false);
        let known = self.told.since(slot).unwrap_or_default();
        let since = since.max(known.plus_ms(1));
        // Whoever has a since and no last activity was erased.
        let told = Told {
            user: UserBuf::from(self.told.user(slot)),
            status: Status::Offline,
            since: Some(since),
            last_active: None,
            stale: false,
            heard: None,
        };
        self.adopt(slot, &told, Source::InStep, now);
    }

    fn done(&mut self, ticket: Ticket) {
        self.done.push(ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::{FollowerOptions, Sweep, SweepContext};

    fn at(ms: u64) -> Now {
        Now {
            mono: Mono::from_micros(ms * 1_000),
            unix: Unix::from_ms(ms),
        }
    }

    struct World {
        databases: Databases,
        sweep: Sweep,
        bob: Slot,
    }

    impl World {
        fn new() -> World {
            let options = FollowerOptions {
                sources: 1,
                users_max: 100,
                shards: 1,
                offline_after_ms: 25_000,
            };
            let (told, heard) = Presence::follower_and_heard(options, at(1_000)).unwrap();
            let mut databases = Databases::new(told, heard, Homes::default());
            let bob = databases.make(User::from_text("bob").unwrap()).unwrap();
            World {
                databases,
                sweep: Sweep::new(0, 1),
                bob,
            }
        }

        fn look(&mut self, ms: u64) {
            self.databases.heard.note_turn(0, at(ms));
            let context = SweepContext {
                now: at(ms),
                offline_after_ms: 25_000,
                hold_expiries: false,
            };
            let heard = Arc::clone(&self.databases.heard);
            self.sweep.look(&heard, context, self.bob, &mut Vec::new());
        }

        fn tell(&mut self, is_here: bool, since: u64, how: How) -> Vec<(Status, u64)> {
            let state = State {
                is_here,
                flags: UserFlags::PLAIN,
                since: Unix::from_ms(since),
                last_active: None,
                gone_since: None,
            };
            self.databases.told(self.bob, state, how, at(5_000));
            let news = self.databases.take_news(at(5_000));
            let transitions = news.answered.unwrap().decided.transitions;
            let since = |slot| {
                self.databases
                    .told
                    .state(slot, at(5_000))
                    .since
                    .unwrap()
                    .ms()
            };
            transitions
                .iter()
                .map(|it| (it.status, since(it.slot)))
                .collect()
        }
    }

    #[test]
    fn what_is_heard_is_claimed() {
        let mut world = World::new();
        let own = |world: &World| world.databases.own(world.bob, at(3_000)).kinds;
        assert_eq!(own(&world), Kinds::default());
        world
            .databases
            .heard
            .record_beat(world.bob, Unix::from_ms(2_000), at(2_000));
        assert_eq!(own(&world), Kinds::default(), "nobody has looked");
        world.look(2_000);
        let beat = Kinds::beat(Unix::from_ms(2_000));
        assert_eq!(own(&world), beat);
        world.databases.told.hold(world.bob);
        assert_eq!(own(&world), Kinds { open: true, ..beat });
        world.databases.told.release(world.bob);
        world
            .databases
            .heard
            .record_leave(world.bob, Unix::from_ms(2_500), at(2_500));
        let user = User::from_text("bob").unwrap();
        let (parted, _) = world.databases.parted(user, Unix::from_ms(2_500));
        let all = (Some(Unix::from_ms(2_500)), true, true);
        assert_eq!((parted.beat, parted.stream, parted.open), all);
        world.look(2_500);
        assert_eq!(own(&world), Kinds::default());
    }

    #[test]
    fn what_the_fleet_says_is_told() {
        let mut world = World::new();
        use Status::{Offline, Online};
        assert_eq!(world.tell(true, 4_000, How::InStep), [(Online, 4_000)]);
        assert_eq!(world.tell(true, 4_000, How::InStep), []);
        // Since when, the fleet knows best; and nobody is told, for how it is has not changed.
        for (how, since) in [(How::InStep, 3_500), (How::Read, 3_400), (How::Read, 4_000)] {
            let told = world.tell(true, since, how);
            assert_eq!(told.len(), usize::from(since == 4_000));
            let state = world.databases.told.state(world.bob, at(5_000));
            assert_eq!(state.since, Some(Unix::from_ms(since)));
        }
        // An absence that may be a lost write changes nothing, and one that was read does.
        assert_eq!(world.tell(true, 4_000, How::Unsettled), []);
        let state = State {
            is_here: false,
            flags: UserFlags::PLAIN,
            since: Unix::from_ms(3_000),
            last_active: Some(Unix::from_ms(3_000)),
            gone_since: None,
        };
        world
            .databases
            .told(world.bob, state, How::Unsettled, at(5_000));
        assert!(world.databases.take_news(at(5_000)).answered.is_none());
        assert_eq!(world.tell(false, 3_000, How::Read), [(Offline, 4_001)]);
        // Who is invisible is here for nodes alone.
        world.databases.told(
            world.bob,
            State {
                is_here: true,
                flags: UserFlags::new(Online, true),
                since: Unix::from_ms(6_000),
                last_active: None,
                gone_since: None,
            },
            How::InStep,
            at(7_000),
        );
        assert_eq!(
            world.databases.told.state(world.bob, at(7_000)).status,
            Offline
        );
    }

    #[test]
    fn a_guess_changes_nothing_of_who_is_known_to_be_here() {
        let mut world = World::new();
        assert_eq!(
            world.tell(true, 4_000, How::InStep),
            [(Status::Online, 4_000)]
        );
        let state = State {
            is_here: true,
            flags: UserFlags::PLAIN,
            since: Unix::from_ms(4_500),
            last_active: None,
            gone_since: None,
        };
        world
            .databases
            .told(world.bob, state, How::Alone, at(5_000));
        assert!(world.databases.take_news(at(5_000)).answered.is_none());
        let since = world.databases.told.state(world.bob, at(5_000)).since;
        assert_eq!(since, Some(Unix::from_ms(4_000)));
    }

    #[test]
    fn whoever_hides_is_here_for_nodes_alone() {
        let mut world = World::new();
        use Status::{Busy, Offline};
        let state = |is_here, invisible, since| State {
            is_here,
            flags: UserFlags::new(Busy, invisible),
            since: Unix::from_ms(since),
            last_active: (!is_here).then(|| Unix::from_ms(since)),
            gone_since: None,
        };
        let mut tell = |state: State, how| {
            let databases = &mut world.databases;
            databases.told(world.bob, state, how, at(30_000));
            let told = databases.take_news(at(30_000)).answered;
            let news = told.map_or(0, |it| it.decided.transitions.len());
            let public = databases.told.state(world.bob, at(30_000));
            let is_here = databases.mirrored(world.bob).is_some_and(|it| it.is_here);
            let hides = databases.own(world.bob, at(30_000)).flags.invisible;
            let ms = |time: Option<Unix>| time.map(Unix::ms);
            let times = (ms(public.since), ms(public.last_active));
            (news, public.status, times, is_here, hides)
        };
        let (instep, read) = (How::InStep, How::Read);
        let came = (Some(4_000), Some(4_000));
        let seen = tell(state(true, false, 4_000), instep);
        assert_eq!(seen, (1, Busy, came, true, false));
        // It has said goodbye, as far as anybody sees; and nothing that comes then shows.
        let hid = (Some(6_000), Some(6_000));
        let seen = tell(state(true, true, 6_000), instep);
        assert_eq!(seen, (1, Offline, hid, true, true));
        for (how, is_here, since) in [
            (instep, false, 9_000),
            (instep, true, 9_500),
            (read, true, 8),
        ] {
            let seen = tell(state(is_here, true, since), how);
            assert_eq!(seen, (0, Offline, hid, is_here, true));
        }
        let shown = (Some(9_600), Some(9_600));
        let seen = tell(state(true, false, 9_600), instep);
        assert_eq!(seen, (1, Busy, shown, true, false));
    }

    #[test]
    fn while_redis_is_away_nothing_is_told_that_is_known() {
        let mut world = World::new();
        use Status::Online;
        assert_eq!(world.tell(true, 4_000, How::InStep), [(Online, 4_000)]);
        let state = State {
            is_here: true,
            flags: UserFlags::PLAIN,
            since: Unix::from_ms(9_000),
            last_active: None,
            gone_since: None,
        };
        world
            .databases
            .told(world.bob, state, How::Alone, at(9_000));
        assert!(world.databases.take_news(at(9_000)).answered.is_none());
        let busy = State {
            flags: UserFlags::new(Status::Busy, false),
            since: Unix::from_ms(3_000),
            ..state
        };
        world.databases.told(world.bob, busy, How::Alone, at(9_000));
        let known = world.databases.told.state(world.bob, at(9_000));
        assert_eq!(
            (known.status, known.since),
            (Status::Busy, Some(Unix::from_ms(4_001)))
        );
    }

    #[test]
    fn who_comes_while_redis_is_away_came_when_it_was_heard() {
        for (guess, expected) in [(9_000, 4_000), (3_500, 4_000), (2_900, 2_900)] {
            let mut world = World::new();
            let heard = Arc::clone(&world.databases.heard);
            heard.record_beat(world.bob, Unix::from_ms(4_000), at(4_000));
            world.look(4_000);
            let state = State {
                is_here: true,
                flags: UserFlags::PLAIN,
                since: Unix::from_ms(guess),
                last_active: None,
                gone_since: None,
            };
            let databases = &mut world.databases;
            databases.told(world.bob, state, How::Alone, at(9_000));
            let since = databases.told.state(world.bob, at(9_000)).since;
            assert_eq!(since, Some(Unix::from_ms(expected)), "{guess}");
        }
    }

    #[test]
    fn of_whoever_is_erased_nothing_is_known() {
        let mut world = World::new();
        assert_eq!(world.tell(true, 4_000, How::InStep).len(), 1);
        let databases = &mut world.databases;
        databases.ended(world.bob, Ending::Erased(Unix::from_ms(5_000)), at(5_000));
        databases.erased(world.bob, Unix::from_ms(5_000), at(5_000));
        let news = databases.take_news(at(5_000));
        assert_eq!(news.ended, [world.bob]);
        assert_eq!(news.answered.unwrap().decided.transitions.len(), 1);
        let known = databases.told.state(world.bob, at(5_000));
        assert_eq!((known.status, known.last_active), (Status::Offline, None));
        assert!(databases.told.is_erased(world.bob));
    }

    #[test]
    fn who_was_erased_and_hides_from_the_first_is_known_to_hide_however_often_it_is_read() {
        let mut world = World::new();
        world.tell(true, 4_000, How::InStep);
        let (databases, bob) = (&mut world.databases, world.bob);
        databases.erased(bob, Unix::from_ms(5_000), at(5_000));
        let hides = State {
            is_here: true,
            flags: UserFlags::new(Status::Busy, true),
            since: Unix::from_ms(6_000),
            last_active: None,
            gone_since: None,
        };
        for how in [
            How::InStep,
            How::Read,
            How::Read,
            How::Unsettled,
            How::InStep,
        ] {
            databases.told(bob, hides, how, at(7_000));
            let expected = Hidden {
                status: Status::Busy,
                unattended: false,
                invisible: true,
                is_here: true,
            };
            assert_eq!(databases.told.hidden(bob), expected, "{how:?}");
            let state = databases.told.state(bob, at(7_000));
            let seen = (state.status, state.since, state.last_active);
            assert_eq!(seen, (Status::Offline, None, None), "{how:?}");
            assert_eq!(databases.told.since(bob), Some(Unix::from_ms(5_000)));
        }
    }

    #[test]
    fn a_stay_that_has_ended_is_claimed_no_more() {
        let mut world = World::new();
        let heard = Arc::clone(&world.databases.heard);
        heard.record_beat(world.bob, Unix::from_ms(2_000), at(2_000));
        world.look(2_000);
        // A later beat than the goodbye counts on.
        world.databases.ended(
            world.bob,
            Ending::SaidGoodbye(Unix::from_ms(1_000)),
            at(2_100),
        );
        world.look(2_100);
        assert!(heard.is_online(world.bob));
        world
            .databases
            .ended(world.bob, Ending::LoggedOut(at(2_200).unix), at(2_200));
        assert_eq!(
            world.databases.own(world.bob, at(2_200)).kinds,
            Kinds::default()
        );
        world.look(2_200);
        assert!(!heard.is_online(world.bob));
        assert_eq!(world.databases.take_news(at(2_200)).ended, [world.bob]);
    }

    #[test]
    fn a_beat_behind_a_log_out_counts_however_late_the_log_out_is_heard_of() {
        for (beat_ms, is_here) in [(2_150, false), (2_250, true)] {
            let mut world = World::new();
            let heard = Arc::clone(&world.databases.heard);
            heard.record_beat(world.bob, Unix::from_ms(beat_ms), at(beat_ms));
            world.look(beat_ms);
            let said = Ending::LoggedOut(at(2_200).unix);
            world.databases.ended(world.bob, said, at(2_900));
            let kinds = world.databases.own(world.bob, at(2_900)).kinds;
            assert_eq!(kinds.beat.is_some(), is_here, "{beat_ms}");
            world.look(2_900);
            assert_eq!(heard.is_online(world.bob), is_here, "{beat_ms}");
        }
    }
}
