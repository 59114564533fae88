use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::links::fixture::{OFFLINE_AFTER_MS, Store, at};
use crate::links::webhooks::Why;
use crate::presence::Transition;
use crate::wire::User;

const QUEUE_MAX: usize = 4;
const RETRY_MS_MAX: u64 = 60_000;
/// States of one message, at the beginning.
const STATES: usize = 3;

fn options(prefix: &str, life: u64) -> HookOptions {
    HookOptions {
        prefix: prefix.into(),
        queue_max: QUEUE_MAX,
        retry_ms_max: RETRY_MS_MAX,
        seed: 1,
        life,
    }
}

fn user(id: &str) -> User<'_> {
    User::parse(id.as_bytes()).unwrap()
}

fn failed(why: Why) -> Outcome {
    Outcome::lost(why)
}

/// What becomes of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Taken,
    /// Its receiver has it, and the node does not know.
    AnswerLost,
    Lost,
    TooLong,
}

/// A node with one hook, its receiver, and the file that outlives the node.
struct World {
    store: Store,
    hook: Hook,
    handed: Handed,
    ms: u64,
    lives: u64,
    /// What the receiver has seen, by user: since when, and the record.
    seen: BTreeMap<String, (u64, Value)>,
    bodies: BTreeMap<String, Vec<u8>>,
    kept: Unix,
    /// Who was erased, and whose erasure may have died with the process.
    forgiven: BTreeSet<String>,
    lost_erasures: bool,
    skipped: u64,
    taken: u64,
}

impl World {
    fn new(prefix: &str) -> World {
        let mut hook = Hook::new(options(prefix, 0), Unix::from_ms(0), at(2_000));
        hook.pace.states_max = STATES;
        World {
            store: Store::new(),
            hook,
            handed: Handed::default(),
            ms: 2_000,
            lives: 0,
            seen: BTreeMap::new(),
            bodies: BTreeMap::new(),
            kept: Unix::from_ms(0),
            forgiven: BTreeSet::new(),
            lost_erasures: false,
            skipped: 0,
            taken: 0,
        }
    }

    fn decide(&mut self, transitions: Vec<Transition>) {
        let at = at(self.ms).mono;
        let decided = Arc::new(Decided { at, transitions });
        self.handed.decided(&decided, QUEUE_MAX);
    }

    fn come(&mut self, id: &str) {
        self.ms += 1;
        self.forgiven.remove(id);
        let decided = self.store.beat(id, self.ms);
        self.decide(decided);
    }

    fn go(&mut self, id: &str) {
        self.ms += 1;
        let presence = &self.store.presence;
        if let Some(slot) = presence.lookup(user(id)) {
            presence.record_leave(slot, Unix::from_ms(self.ms), at(self.ms));
            let decided = self.store.look(slot, self.ms);
            self.decide(decided);
        }
    }

    fn erase(&mut self, id: &str) {
        self.ms += 1;
        let presence = &self.store.presence;
        let forgotten = presence.forget(user(id), usize::MAX, at(self.ms)).unwrap();
        if let Some(slot) = forgotten {
            presence.withdraw(slot);
            let erasure = Arc::new(Erasure {
                user: user(id).into(),
                since: presence.erased_since(slot).unwrap(),
            });
            presence.let_go(slot, 0);
            self.handed.erased(&erasure, QUEUE_MAX);
        }
    }

    /// The hook takes over what was handed over.
    fn hand_over(&mut self) {
        self.ms += 1;
        let presence = &self.store.presence;
        presence.note_turn(0, at(self.ms));
        let handed = std::mem::take(&mut self.handed);
        let effects = self
            .hook
            .take(handed, presence.published_up_to(), presence, at(self.ms));
        self.count(&effects);
        // And those of one message that was put back, made before messages were shorter.
        assert!(self.hook.order.len() <= 2 * QUEUE_MAX + STATES);
    }

    fn count(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Count(Counter::WebhookSkipped, by) => self.skipped += by,
                Effect::Count(Counter::WebhookStates, by) => self.taken += by,
                // There was no room for one that nothing says again. It may be anybody's.
                Effect::Count(Counter::WebhookErasuresUntold, _) => {
                    self.lost_erasures = true;
                    self.forgive_erased();
                }
                _ => {}
            }
        }
    }

    /// Those who are erased now may not be told of any more.
    fn forgive_erased(&mut self) {
        let presence = &self.store.presence;
        let gone = IDS.iter().filter(|id| presence.lookup(user(id)).is_none());
        self.forgiven.extend(gone.map(|id| (*id).to_owned()));
    }

    /// The hook's next message, if it is time.
    fn poll(&mut self) -> Option<Message> {
        let (message, effects) = self.hook.poll_message(&self.store.presence, at(self.ms));
        self.count(&effects);
        message
    }

    /// The next message of a hook that has one, and what becomes of it.
    fn send(&mut self, fate: Fate) -> Option<Message> {
        let message = self.poll()?;
        if matches!(fate, Fate::Taken | Fate::AnswerLost) {
            self.see(&message);
        }
        let outcome = match fate {
            Fate::Taken => Outcome::Taken,
            Fate::AnswerLost => failed(Why::Timeout),
            Fate::Lost => failed(Why::Connection("refused".into())),
            Fate::TooLong => Outcome::of(413, None),
        };
        let effects = self.hook.handle(outcome, at(self.ms).mono);
        self.count(&effects);
        Some(message)
    }

    /// The receiver has a message.
    fn see(&mut self, message: &Message) {
        let before = self
            .bodies
            .insert(message.id.to_string(), message.body.to_vec());
        assert!(
            before.is_none_or(|before| before == *message.body),
            "{}",
            message.id
        );
        let body: Value = serde_json::from_slice(&message.body).unwrap();
        assert_eq!(
            (&body["version"], &body["type"]),
            (&1.into(), &"presence".into())
        );
        let records = body["presence"].as_array().unwrap();
        assert_eq!(records.len(), message.states);
        for record in records {
            let since = record["since"].as_u64().unwrap();
            let id = record["user"].as_str().unwrap().to_owned();
            let before = self.seen.insert(id, (since, record.clone()));
            // Of two erasures the later may have been lost for want of room.
            let is_older = before.is_some_and(|(before, _)| before > since);
            assert!(!is_older || self.lost_erasures, "{record}");
        }
    }

    /// What is kept is on disk.
    fn keep(&mut self) {
        if let Some(position) = self.hook.poll_position() {
            self.kept = position;
        }
    }

    /// The process is killed and started again. What users do not outlive is forgiven.
    fn restart(&mut self) {
        self.ms += 1;
        self.lives += 1;
        self.handed = Handed::default();
        let states_max = self.hook.pace.states_max;
        self.hook = Hook::new(options("", self.lives), self.kept, at(self.ms));
        self.hook.pace.states_max = states_max;
        self.forgiven.extend(self.seen.keys().cloned());
    }

    /// The receiver takes everything, and the node has the time to tell it.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            self.hand_over();
            if self.hook.is_idle() {
                return;
            }
            self.ms = self.ms.max(self.hook.next().ms());
            self.send(Fate::Taken);
            self.keep();
        }
        panic!("it does not come to an end");
    }

    /// The receiver knows of everybody what is true.
    fn check(&self) {
        let presence = &self.store.presence;
        for (id, (since, record)) in &self.seen {
            let Some(slot) = presence.lookup(user(id)) else {
                let gone = record["status"] == "offline" && record["last_active"].is_null();
                assert!(gone || self.forgiven.contains(id), "{record}");
                continue;
            };
            let state = presence.state(slot, at(self.ms));
            assert_eq!(Some(Unix::from_ms(*since)), state.since, "{record}");
            assert_eq!(record["status"], state.status.name());
        }
        for slot in (0..presence.users()).map(Slot::new) {
            let is_theirs = presence.lookup(presence.user(slot)) == Some(slot);
            if is_theirs && presence.state(slot, at(self.ms)).since.is_some() {
                assert!(self.seen.contains_key(presence.user(slot).as_str()));
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Action {
    Come(usize),
    Go(usize),
    Erase(usize),
    HandOver,
    Send(Fate),
    Wait(u64),
    Keep,
    Restart,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let id = || 0..IDS.len();
    let fate =
        prop::sample::select(&[Fate::Taken, Fate::AnswerLost, Fate::Lost, Fate::TooLong][..]);
    let action = prop_oneof![
        6 => id().prop_map(Action::Come),
        6 => id().prop_map(Action::Go),
        1 => id().prop_map(Action::Erase),
        6 => Just(Action::HandOver),
        6 => fate.prop_map(Action::Send),
        4 => (1..RETRY_MS_MAX).prop_map(Action::Wait),
        4 => Just(Action::Keep),
        1 => Just(Action::Restart),
    ];
    prop::collection::vec(action, 1..120)
}

const IDS: [&str; 9] = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];

proptest! {
    /// Whatever fails, and whenever the process is killed: each message is told as it was or anew,
    /// no user's older state after a newer one, and in the end everybody's last one.
    #[test]
    fn everybodys_last_state_is_told(actions in actions()) {
        let mut world = World::new("");
        for action in actions {
            match action {
                Action::Come(id) => world.come(IDS[id]),
                Action::Go(id) => world.go(IDS[id]),
                Action::Erase(id) => world.erase(IDS[id]),
                Action::HandOver => world.hand_over(),
                Action::Send(fate) => drop(world.send(fate)),
                Action::Wait(ms) => world.ms += ms,
                Action::Keep => world.keep(),
                Action::Restart => world.restart(),
            }
        }
        world.settle();
        world.check();
        // And nothing of it is told again, once that is on disk.
        while world.hook.has_news() {
            world.ms += 500;
            world.hand_over();
            world.keep();
        }
        world.restart();
        let told = world.bodies.len();
        world.settle();
        prop_assert_eq!(world.bodies.len(), told);
        world.check();
    }
}

/// Of the next message: users and statuses.
fn said(message: &Message) -> Vec<(String, String)> {
    let body: Value = serde_json::from_slice(&message.body).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let records = body["presence"].as_array().unwrap().iter();
    records
        .map(|record| (text(&record["user"]), text(&record["status"])))
        .collect()
}

fn told(world: &mut World, fate: Fate) -> Vec<(String, String)> {
    world.ms = world.ms.max(world.hook.next().ms());
    said(&world.send(fate).expect("it is time"))
}

fn of(all: &[(&str, &str)]) -> Vec<(String, String)> {
    let each = all
        .iter()
        .map(|(user, status)| ((*user).into(), (*status).into()));
    each.collect()
}

#[test]
fn a_message_has_its_form() {
    let mut world = World::new("");
    world.come("a\"b");
    world.hand_over();
    let message = world.send(Fate::Taken).unwrap();
    assert_eq!(&*message.id, "0000000000000000-1");
    assert_eq!(
        std::str::from_utf8(&message.body).unwrap(),
        concat!(
            r#"{"version":1,"type":"presence","presence":[{"user":"a\"b","status":"online","#,
            r#""online":true,"since":2001,"last_active":2001}]}"#
        )
    );
}

#[test]
fn an_hours_outage_costs_each_user_one_state_and_the_rest_is_counted() {
    let mut world = World::new("");
    world.settle();
    let (mut sent, hour) = (0, world.ms + 3_600_000);
    let mut changes = 0;
    while world.ms < hour {
        for id in ["a", "b"] {
            world.come(id);
            world.go(id);
            changes += 2;
        }
        world.hand_over();
        if world.hook.next() <= at(world.ms).mono {
            sent += u64::from(world.send(Fate::Lost).is_some());
        }
        world.ms += 1_000;
    }
    // Twice a minute at most, when it has waited for long.
    assert!((60..=140).contains(&sent), "{sent}");
    assert!(world.hook.standing(at(world.ms).unix).behind_ms >= 3_599_000);
    assert_eq!(
        told(&mut world, Fate::Taken),
        of(&[("a", "offline"), ("b", "offline")])
    );
    assert!(world.hook.is_idle() && !world.hook.is_failing());
    assert_eq!((world.taken, world.skipped), (2, changes - 2));
    assert_eq!(
        world.hook.standing(at(world.ms).unix),
        HookStanding::default()
    );
}

#[test]
fn what_was_not_answered_comes_again_as_it_was_unless_somebody_changed() {
    let mut world = World::new("");
    world.come("a");
    world.hand_over();
    let first = world.send(Fate::AnswerLost).unwrap();
    world.come("b");
    world.hand_over();
    world.ms = world.hook.next().ms();
    let again = world.send(Fate::AnswerLost).unwrap();
    assert_eq!((&again.id, &again.body), (&first.id, &first.body));
    world.go("a");
    world.hand_over();
    world.ms = world.hook.next().ms();
    let anew = world.send(Fate::Taken).unwrap();
    assert_ne!(anew.id, first.id);
    assert_eq!(said(&anew), of(&[("a", "offline"), ("b", "online")]));
    assert!(world.poll().is_none());
}

#[test]
fn one_message_is_under_way_at_a_time() {
    let mut world = World::new("");
    world.come("a");
    world.hand_over();
    assert!(world.poll().is_some());
    world.come("b");
    world.hand_over();
    assert!(world.poll().is_none() && world.hook.next() == Mono::NEVER);
}

#[test]
fn a_full_queue_is_counted_and_each_user_is_told_once_after_it() {
    let mut world = World::new("");
    world.come("z");
    world.settle();
    world.seen.clear();
    let before = world.taken;
    world.ms += 10_000;
    // By what is handed over at once, and by what waits.
    for ids in [&IDS[..3], &IDS[3..6], &IDS[6..]] {
        for id in ids {
            world.come(id);
        }
        world.hand_over();
    }
    assert_eq!(
        (world.hook.overflows, world.hook.order.len()),
        (1, QUEUE_MAX)
    );
    world.settle();
    assert_eq!(world.seen.len(), IDS.len());
    assert_eq!(world.taken - before, IDS.len() as u64, "each once");
    let mut world = World::new("");
    world.settle();
    IDS.iter().for_each(|id| world.come(id));
    world.hand_over();
    assert_eq!((world.hook.overflows, world.skipped), (1, 5));
    world.settle();
    world.check();
}

/// What was sent before may be old by what is lost, and then has told nobody.
#[test]
fn what_is_under_way_when_the_queue_is_full_is_told_again() {
    for fate in [Fate::Taken, Fate::AnswerLost] {
        let mut world = World::new("");
        world.come("e");
        world.hand_over();
        let message = world.poll().unwrap();
        world.see(&message);
        IDS[..QUEUE_MAX].iter().for_each(|id| world.come(id));
        world.go("e");
        world.hand_over();
        let outcome = match fate {
            Fate::Taken => Outcome::Taken,
            _ => failed(Why::Timeout),
        };
        world.hook.handle(outcome, at(world.ms).mono);
        world.settle();
        assert_eq!(world.seen["e"].1["status"], "offline");
        world.check();
    }
}

#[test]
fn a_message_that_is_too_long_is_halved() {
    let mut world = World::new("");
    for id in ["a", "b", "c"] {
        world.come(id);
    }
    world.hand_over();
    assert_eq!(told(&mut world, Fate::TooLong).len(), 3);
    assert!(!world.hook.is_failing());
    assert_eq!(told(&mut world, Fate::TooLong).len(), 1);
    assert!(world.hook.is_failing());
    assert_eq!(told(&mut world, Fate::Taken), of(&[("a", "online")]));
    assert_eq!(told(&mut world, Fate::Taken), of(&[("b", "online")]));
}

#[test]
fn a_receiver_may_ask_for_time_within_reason() {
    for (asks_ms, at_least_ms, at_most_ms) in [
        (None, 100, 200),
        (Some(5_000), 5_000, 5_000),
        (Some(u64::MAX), RETRY_MS_MAX, RETRY_MS_MAX),
    ] {
        let mut world = World::new("");
        world.come("a");
        world.hand_over();
        world.poll().unwrap();
        world
            .hook
            .handle(Outcome::of(429, asks_ms), at(world.ms).mono);
        let delay_ms = world.hook.next().ms() - world.ms;
        assert!((at_least_ms..=at_most_ms).contains(&delay_ms), "{delay_ms}");
    }
}

#[test]
fn a_receiver_is_warned_of_once_for_each_reason() {
    let mut world = World::new("");
    world.come("a");
    world.hand_over();
    for (outcome, says) in [
        (Outcome::of(500, None), Some("status 500")),
        (Outcome::of(500, None), None),
        (Outcome::of(410, None), Some("status 410: it is gone")),
        (Outcome::Taken, Some("takes what it is told")),
    ] {
        world.ms = world.ms.max(world.hook.next().ms());
        world.poll().unwrap();
        let effects = world.hook.handle(outcome, at(world.ms).mono);
        let said = effects.iter().find_map(|effect| match effect {
            Effect::Say(notice) => Some(notice.to_string()),
            _ => None,
        });
        let as_said = match (&said, says) {
            (Some(said), Some(says)) => said.contains(says),
            (said, says) => said.is_none() && says.is_none(),
        };
        assert!(as_said, "{said:?}");
    }
}

#[test]
fn only_ids_that_begin_so_are_told_of() {
    let mut world = World::new("team-");
    for id in ["team-a", "team", "b", "team-c"] {
        world.come(id);
    }
    world.hand_over();
    let message = world.send(Fate::Taken).unwrap();
    assert_eq!(
        said(&message),
        of(&[("team-a", "online"), ("team-c", "online")])
    );
    // By the walk of a start, too.
    let mut hook = Hook::new(options("team-", 1), Unix::from_ms(0), at(world.ms));
    let (message, _) = hook.poll_message(&world.store.presence, at(world.ms));
    assert_eq!(said(&message.unwrap()).len(), 2);
}

#[test]
fn who_is_erased_is_told_as_gone_unless_somebody_has_the_id_anew() {
    let mut world = World::new("");
    for id in ["a", "b"] {
        world.come(id);
    }
    world.settle();
    world.ms += OFFLINE_AFTER_MS;
    world.erase("a");
    world.erase("b");
    world.come("b");
    world.hand_over();
    let message = world.send(Fate::Lost).unwrap();
    assert_eq!(said(&message), of(&[("b", "online"), ("a", "offline")]));
    assert!(String::from_utf8_lossy(&message.body).contains(r#""last_active":null"#));
    // Nothing of somebody's is sent once more after they were erased.
    world.erase("b");
    world.hand_over();
    assert_eq!(
        told(&mut world, Fate::Taken),
        of(&[("a", "offline"), ("b", "offline")])
    );
    world.settle();
    world.check();
}

#[test]
fn of_two_erasures_of_an_id_the_later_is_told() {
    let mut world = World::new("");
    world.hook.pace.states_max = 1;
    world.settle();
    world.come("b");
    world.erase("b");
    world.come("b");
    world.hand_over();
    assert_eq!(told(&mut world, Fate::Taken), of(&[("b", "online")]));
    world.erase("b");
    world.hand_over();
    // The receiver of the tests sees that no older state comes after a newer one.
    assert_eq!(told(&mut world, Fate::Taken), of(&[("b", "offline")]));
    assert!(world.poll().is_none());
    world.check();
}

/// A clock that was set back, a store that is another one: nobody knows what was told.
#[test]
fn a_position_that_is_not_to_be_trusted_has_everybody_told() {
    for position_ms in [1, 900_000] {
        let mut world = World::new("");
        world.come("a");
        world.ms += 60_000;
        world.kept = Unix::from_ms(position_ms);
        world.restart();
        let (message, effects) = world.hook.poll_message(&world.store.presence, at(world.ms));
        assert_eq!(said(&message.unwrap()), of(&[("a", "online")]));
        assert!(matches!(effects[..], [Effect::Say(Notice::HookToldAll)]));
    }
}
