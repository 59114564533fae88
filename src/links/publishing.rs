//! A presence node's link to one real-time node, without a kernel: what is published to it, and
//! what each of its answers means.
//!
//! Owns what is warned of and when: once for each reason in a row. Which states are told and when
//! is the [`Announcer`]'s. Time is an argument; requests, replies and effects are values.

use std::sync::Arc;

use super::Standing;
use super::announcer::Announcer;
use super::effect::{Effect, Notice, Refusals, Warned, counts};
use super::farewells::Farewells;
use super::reply::{JSON, Meaning, Reply, Request, Said, reason};
use super::revocations::Revocations;
use crate::auth::Revoked;
use crate::engine::Outbound;
use crate::metrics::Counter;
use crate::presence::{Presence, Transition};
use crate::slot::Slot;
use crate::time::{Mono, Now, Unix};
use crate::wire::feed::FEED_HEADER;

#[derive(Debug)]
pub struct Publishing {
    announcer: Announcer,
    farewells: Farewells,
    revocations: Revocations,
    /// The last request was theirs: both take turns.
    farewell_last: bool,
    /// Which holder of slots it is (see [`Presence::link`]).
    holder: u16,
    /// Slots whose users are forgotten, of which the node has yet to be told.
    leaving: Vec<Slot>,
    /// States in the request under way.
    states: usize,
    /// Until the node takes something.
    warned: Warned,
    refusals: Refusals,
}

impl Publishing {
    /// Nothing to tell. `seed` is of the jitter, `birth` tells this life of this node from
    /// others; the link holds slots as `holder`.
    pub fn new(seed: u64, birth: u64, holder: u16, revoked: &Arc<Revoked>) -> Publishing {
        Publishing {
            announcer: Announcer::new(seed, birth),
            farewells: Farewells::new(),
            revocations: Revocations::new(Arc::clone(revoked)),
            farewell_last: false,
            holder,
            leaving: Vec::new(),
            states: 0,
            warned: Warned::default(),
            refusals: Refusals::default(),
        }
    }

    /// A shard has this for the node.
    pub fn take(&mut self, outbound: Outbound, presence: &Presence, now: Mono) -> Option<Effect> {
        match outbound {
            Outbound::Publish(decided) => self.mark(presence, &decided.transitions),
            Outbound::Holders(holders) => self.farewells.ask(&holders, now),
            Outbound::EndStreams(logged_out) => {
                let forgotten = self.farewells.end(logged_out) as u64;
                let counter = Counter::RelayLogOutsLost;
                return (forgotten > 0).then_some(Effect::Count(counter, forgotten));
            }
            // What another role says.
            Outbound::Beats { .. }
            | Outbound::Homeward { .. }
            | Outbound::Words(_)
            | Outbound::Heard(_)
            | Outbound::Goodbyes(_)
            | Outbound::Ticket { .. }
            | Outbound::Online { .. }
            | Outbound::Streams(_)
            | Outbound::Forward(_)
            | Outbound::Erase(..)
            | Outbound::FleetLogOut { .. }
            | Outbound::Bundled { .. }
            | Outbound::Sample { .. }
            | Outbound::Asks { .. }
            | Outbound::LogOut { .. }
            | Outbound::Say { .. }
            | Outbound::Pass { .. } => {}
            // To a real-time node it is a transition.
            Outbound::Erased(_) => {}
            // The journal is looked at before each request.
            Outbound::Revoked(_) => {}
        }
        None
    }

    /// These have changed.
    fn mark(&mut self, presence: &Presence, transitions: &[Transition]) {
        self.announcer.mark(transitions);
        let slots = transitions.iter().map(|transition| transition.slot);
        self.leaving
            .extend(slots.filter(|slot| presence.is_withdrawn(*slot)));
    }

    /// Lets go of slots whose users are forgotten, once the node has been told. A node that is out
    /// of reach keeps them from being used again.
    fn let_go(&mut self, presence: &Presence) {
        self.leaving.retain(|slot| {
            let holds = self.announcer.holds(*slot);
            if !holds {
                presence.let_go(*slot, self.holder);
            }
            holds
        });
    }

    /// When [`Publishing::poll_request`] has something.
    pub fn next(&self) -> Mono {
        match () {
            () if self.farewells.is_under_way() => Mono::NEVER,
            () if self.revocations.is_under_way() => Mono::NEVER,
            () if self.announcer.is_under_way() => Mono::NEVER,
            () if self.announcer.is_failing() => self.announcer.next(),
            () => {
                let others = self.farewells.next().min(self.revocations.next());
                self.announcer.next().min(others)
            }
        }
    }

    /// The next request, if it is time. One at a time: its reply comes first. `up_to`: everything
    /// that was decided before it, by this node's clock, has been marked.
    pub fn poll_request(&mut self, presence: &Presence, up_to: Unix, now: Now) -> Option<Request> {
        if !self.leaving.is_empty() {
            self.let_go(presence);
        }
        if self.farewells.is_under_way() || self.revocations.is_under_way() {
            return None;
        }
        if self.announcer.is_failing() {
            self.farewells.out_of_sight(now.mono);
        } else if !self.announcer.is_under_way() {
            if let Some(request) = self.revocations.poll_request(now.mono) {
                return Some(request);
            }
            let turn = !self.farewell_last || self.announcer.next() > now.mono;
            let request = turn
                .then(|| self.farewells.poll_request(now.mono))
                .flatten();
            self.farewell_last = request.is_some();
            if request.is_some() {
                return request;
            }
        }
        let put = self.announcer.poll_request(presence, up_to, now)?;
        self.states = put.states;
        Some(Request {
            method: "PUT",
            path: put.path,
            media: JSON,
            field: Some((FEED_HEADER, put.place.to_string())),
            body: put.body,
            states: put.states,
        })
    }

    /// What came of the request.
    pub fn handle_reply(&mut self, reply: &Reply, now: Mono) -> Vec<Effect> {
        if self.farewells.is_under_way() {
            // Whether the node is there is found out by what is published.
            let mail = self.farewells.handle_reply(reply, now);
            return mail.into_iter().map(Effect::Tell).collect();
        }
        if self.revocations.is_under_way() {
            self.revocations.handle_reply(Meaning::of(reply), now);
            return Vec::new();
        }
        if let Some(life) = reply.as_ref().ok().and_then(|said| said.life) {
            self.revocations.lives(life);
        }
        match Meaning::of(reply) {
            Meaning::Done => self.taken(reply, now),
            meaning @ (Meaning::TooLong | Meaning::Refused) => {
                self.refusals.note(reason(reply));
                self.announcer
                    .handle_refusal(meaning == Meaning::TooLong, now);
                counts(None)
            }
            Meaning::Failed => self.failed(reply, now),
        }
    }

    fn taken(&mut self, reply: &Reply, now: Mono) -> Vec<Effect> {
        let mut effects = counts(Some(self.states));
        if self.warned.clear() {
            effects.push(Effect::Say(Notice::TakesAgain));
        }
        let held = reply.as_ref().ok().and_then(|said| said.held);
        if self.announcer.handle_done(held, now).is_some() {
            let (counter, notice) = (Counter::RelayStatesUntold, Notice::StatesRefused);
            effects.extend(self.refusals.passed_over(counter, notice));
        }
        if let Ok(said) = reply
            && said.status == 200
        {
            let (refused, why) = refused_of(said);
            effects.push(Effect::Count(Counter::RelayStatesRefused, refused));
            effects.push(Effect::Say(match &*why {
                "users_max" => Notice::NoRoom(refused),
                _ => Notice::ItemsRefused(refused, why),
            }));
        }
        effects
    }

    fn failed(&mut self, reply: &Reply, now: Mono) -> Vec<Effect> {
        let mut effects = counts(None);
        // One that has just started will have seen this node in a moment.
        let unseen =
            matches!(reply, Ok(said) if said.status == 503) && !self.announcer.was_away(now);
        // One that was not listening yet may have another key: each reason is said.
        if !unseen {
            effects.extend(self.warned.of(reason(reply), Notice::NotTaken));
        }
        self.announcer.handle_failure(now);
        effects
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        Standing {
            queued: self.announcer.len(),
            down: self.announcer.is_failing(),
            beats_gone: false,
        }
    }

    /// A node that stops has nothing left to tell here, or nobody to tell it to.
    pub fn may_stop(&self, now: Mono) -> bool {
        let announcer = &self.announcer;
        let told =
            announcer.is_empty() && self.farewells.is_empty() && !self.revocations.has_news();
        told || announcer.is_failing() || self.next() > now
    }
}

/// How many states a node did not take, and why not the first of them.
fn refused_of(said: &Said) -> (u64, String) {
    let body: serde_json::Value = serde_json::from_slice(&said.body).unwrap_or_default();
    let why = body["refused"][0]["reason"].as_str().unwrap_or("");
    (body["refused_total"].as_u64().unwrap_or(0), why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Store, at};
    use super::super::reply::{lost, said};
    use super::super::{OUTAGE_MS, PROBE_MS};
    use super::*;
    use crate::wire::User;

    const FAILED: &str = "Count(RelayRequestsFailed, 1)";
    const DONE: &str = "Count(RelayRequestsDone, 1)";
    /// As it is told of bob, who is erased.
    const OFFLINE: &str = concat!(
        r#"{"user":"bob","status":"offline","online":false,"#,
        r#""since":2001,"last_active":null}"#
    );

    fn user(id: &str) -> User<'_> {
        User::parse(id.as_bytes()).unwrap()
    }

    /// A link with the states of some users to tell, and the time.
    struct World {
        store: Store,
        link: Publishing,
        ms: u64,
    }

    impl World {
        fn new(users: &[&str]) -> World {
            let mut world = World {
                store: Store::new(),
                link: Publishing::new(1, 0xa7, 1, &Arc::new(Revoked::new(9, 1))),
                ms: 2_000,
            };
            users.iter().for_each(|user| drop(world.mark(user)));
            world
        }

        /// A user comes.
        fn mark(&mut self, user: &str) -> Vec<Transition> {
            let decided = self.store.beat(user, self.ms);
            self.link.mark(&self.store.presence, &decided);
            decided
        }

        /// How many states the next request tells, when it is time.
        fn poll(&mut self) -> usize {
            self.ms = self.ms.max(self.link.next().ms());
            let request =
                self.link
                    .poll_request(&self.store.presence, Unix::from_ms(17), at(self.ms));
            request.expect("it is time").states
        }

        fn reply(&mut self, reply: &Reply) -> Vec<String> {
            let effects = self.link.handle_reply(reply, at(self.ms).mono);
            effects.iter().map(|effect| format!("{effect:?}")).collect()
        }

        fn queued_and_down(&self) -> (usize, bool) {
            let standing = self.link.standing();
            (standing.queued, standing.down)
        }
    }

    #[test]
    fn a_request_says_who_tells_and_whether_that_is_all() {
        let mut world = World::new(&["bob"]);
        let request = world
            .link
            .poll_request(&world.store.presence, Unix::from_ms(17), at(2_000))
            .unwrap();
        assert_eq!(
            (request.method, &*request.path, request.states),
            ("PUT", "/v1/presence/bob", 1)
        );
        let field = Some((FEED_HEADER, "00000000000000a7 0 1 17".to_owned()));
        assert_eq!(request.field, field);
        let states = "Count(RelayStates, 1)";
        assert_eq!(world.reply(&said(204)), [DONE, states]);
    }

    #[test]
    fn a_slot_is_let_go_of_when_the_node_has_been_told_that_its_user_is_gone() {
        let mut world = World::new(&[]);
        world.store.presence.expect_links(1);
        let news = world.mark("bob");
        assert_eq!((world.poll(), world.reply(&said(204)).len()), (1, 2));
        let presence = &world.store.presence;
        let slot = presence
            .forget(user("bob"), 1, at(world.ms))
            .unwrap()
            .unwrap();
        presence.withdraw(slot);
        world.link.mark(presence, &news);
        presence.let_go(slot, 0);
        let left = |world: &World| world.store.presence.leaving_of(user("bob")).is_empty();
        // Its answer is lost.
        let (link, presence) = (&mut world.link, &world.store.presence);
        let request = link.poll_request(presence, Unix::from_ms(17), at(world.ms));
        assert_eq!(request.unwrap().body, OFFLINE.as_bytes());
        world.reply(&lost());
        assert_eq!((world.poll(), left(&world)), (1, false));
        world.reply(&said(204));
        assert!(!left(&world));
        world.poll();
        assert!(left(&world));
    }

    /// Whichever of the two slots a node is told of first: the later time is of who is back.
    #[test]
    fn who_comes_back_after_an_erasure_is_online_whatever_is_told_first() {
        let mut world = World::new(&["bob"]);
        world.store.presence.expect_links(1);
        let presence = &world.store.presence;
        let erased = presence.lookup(user("bob")).unwrap();
        // By a clock that was set back since.
        let slot = presence.forget(user("bob"), 1, at(1_500)).unwrap();
        assert_eq!(slot, Some(erased));
        // The slot's owner has yet to hear of that.
        let back = world.store.beat("bob", 1_502);
        assert_ne!(back[0].slot, erased);
        let gone = Transition {
            slot: erased,
            ..back[0]
        };
        world.link.mark(&world.store.presence, &[back[0], gone]);
        let (link, presence) = (&mut world.link, &world.store.presence);
        let request = link.poll_request(presence, Unix::from_ms(17), at(world.ms));
        let body = String::from_utf8(request.unwrap().body).unwrap();
        let online =
            r#"{"user":"bob","status":"online","online":true,"since":2002,"last_active":1502}"#;
        assert!(body.contains(OFFLINE) && body.contains(online), "{body}");
    }

    #[test]
    fn a_node_that_fails_is_warned_of_once_for_each_reason_and_told_again() {
        let mut world = World::new(&["bob", "carol"]);
        let not_taken = |why: &str| format!("Say(NotTaken({why:?}))");
        for (reply, warned) in [
            (lost(), Some(not_taken("timeout"))),
            (lost(), None),
            (said(500), Some(not_taken("status 500"))),
            (said(500), None),
            (lost(), Some(not_taken("timeout"))),
        ] {
            // After an outage an empty request feels the way.
            world.poll();
            let effects = std::iter::once(FAILED.to_owned()).chain(warned);
            assert_eq!(world.reply(&reply), effects.collect::<Vec<_>>());
            assert_eq!(world.queued_and_down(), (2, true));
        }
        world.poll();
        assert_eq!(world.reply(&said(204)).last().unwrap(), "Say(TakesAgain)");
        assert!(!world.link.standing().down);
    }

    #[test]
    fn a_node_that_has_just_started_is_not_warned_of() {
        let mut world = World::new(&["bob"]);
        let began = world.ms;
        while world.ms < began + OUTAGE_MS {
            world.poll();
            let effects = world.reply(&said(503));
            assert_eq!(
                effects.len(),
                1 + usize::from(world.ms >= began + OUTAGE_MS)
            );
        }
    }

    #[test]
    fn what_is_refused_for_its_content_is_made_shorter() {
        for status in [400, 413, 414, 422, 431] {
            let mut world = World::new(&["bob", "carol"]);
            assert_eq!(world.poll(), 2);
            assert_eq!(world.reply(&said(status)), [FAILED], "{status}");
            assert_eq!(world.queued_and_down(), (2, false));
            assert_eq!(world.poll(), 1, "{status}");
            // One that is refused alone is passed over once an empty request is taken.
            assert_eq!(world.reply(&said(status)), [FAILED]);
            assert_eq!(world.poll(), 0);
            let effects = world.reply(&said(204));
            let refused = format!("Say(StatesRefused(\"status {status}\"))");
            let untold = "Count(RelayStatesUntold, 1)";
            assert_eq!(effects[2..], [untold, &refused]);
            assert_eq!(world.poll(), 1);
            assert_eq!(world.reply(&said(204)).len(), 2);
            assert_eq!(world.link.standing(), Standing::default(), "{status}");
        }
    }

    #[test]
    fn a_node_without_room_says_for_how_many() {
        let mut world = World::new(&["bob"]);
        world.poll();
        let body = br#"{"refused":[{"index":0,"reason":"users_max"}],"refused_total":3}"#.to_vec();
        let (status, node, held) = (200, None, None);
        let effects = world.reply(&Ok(Said {
            status,
            node,
            held,
            life: None,
            body,
        }));
        assert_eq!(
            effects[2..],
            ["Count(RelayStatesRefused, 3)", "Say(NoRoom(3))"]
        );
        world.poll();
        let body = br#"{"refused":[{"index":0,"reason":"since_ahead"}],"refused_total":1}"#;
        let effects = world.reply(&Ok(Said {
            status,
            node,
            held,
            life: None,
            body: body.to_vec(),
        }));
        let said = "Say(ItemsRefused(1, \"since_ahead\"))";
        assert_eq!(effects[2..], ["Count(RelayStatesRefused, 1)", said]);
    }

    #[test]
    fn it_may_stop_when_there_is_nothing_to_tell_or_nobody_to_tell_it_to() {
        let mut world = World::new(&["bob"]);
        assert!(!world.link.may_stop(at(world.ms).mono));
        world.poll();
        world.reply(&lost());
        assert!(world.link.may_stop(at(world.ms).mono));
        world.poll();
        world.reply(&said(204));
        assert!(world.link.may_stop(at(world.ms).mono));
        assert_eq!(world.link.next(), at(world.ms + PROBE_MS).mono);
    }
}
