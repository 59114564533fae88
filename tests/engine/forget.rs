//! Users are forgotten, and their slots are another's only when nobody has anything of them.

use greendot::engine::{Decided, Mail};
use greendot::metrics::{Counter, Gauge};
use greendot::presence::Transition;
use greendot::slot::Slot;
use greendot::status::Status;
use greendot::wire::User;

use super::harness::{NO_CONTENT, Peer, World, record, unseen};

/// Nothing that a shard may not notice keeps a slot for longer.
const LET_GO_MS: u64 = 3_000;

/// `DELETE /v1/presence/{user}` with the service token.
pub(crate) fn erase(world: &mut World, shard: usize, user: &str) {
    let asker = world.connect(shard);
    let token = world.key().service_token();
    world.send(
        asker,
        format!(
            "DELETE /v1/presence/{user} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\
             \r\n"
        ),
    );
    world.expect(asker, NO_CONTENT);
}

fn slot(world: &World, user: &str) -> Option<Slot> {
    world
        .presence()
        .lookup(User::parse(user.as_bytes()).expect("legal"))
}

/// The write-back comes round so often.
fn write_back(world: &World, cycles: usize) {
    let mut rolling = world.presence().write_back(u64::MAX);
    for _ in 0..cycles {
        while rolling
            .slice(world.now())
            .expect("there is room")
            .cycle_ms
            .is_none()
        {}
    }
}

/// What a peer was told of users, in order.
fn told(world: &mut World, peer: Peer) -> Vec<String> {
    let received = world.received(peer);
    let lines = received
        .lines()
        .filter_map(|line| line.strip_prefix("data: {\"user\":"));
    lines.map(|line| format!("{{\"user\":{line}")).collect()
}

#[test]
fn who_is_erased_is_as_if_never_seen() {
    for shards in [1, 2] {
        let mut world = World::new(shards);
        let last = usize::from(shards) - 1;
        // One watches by the name that has got a slot since, the other by the slot.
        let early = world.stream(last, "watch=bob", 1).0;
        world.beat(0, &["bob", "ann"]).turn();
        let late = world.stream(0, "watch=bob&watch=ann", 2).0;
        let own = world.stream(last, "user=bob", 0).0;
        let watchers = [early, late];
        watchers.iter().for_each(|watcher| {
            world.received(*watcher);
        });
        world.at(1_000);
        erase(&mut world, 0, "bob");
        world.expect_closed(own);
        for watcher in watchers {
            assert_eq!(told(&mut world, watcher), [unseen("bob")]);
        }
        assert_eq!(world.ask(0, "bob"), unseen("bob"));
        assert_eq!(world.ask(0, "ann"), record("ann", "online", 0, 0));
        assert_eq!(world.presence().known(), 1);
        // Twice is once, and nobody is told from somebody who never was.
        erase(&mut world, last, "bob");
        erase(&mut world, last, "nobody");
        // Who comes back is new, and those who watched still do.
        world.at(2_000).beat(last, &["bob"]).turn();
        for watcher in watchers {
            let online = record("bob", "online", 2_000, 2_000);
            assert_eq!(told(&mut world, watcher), [online]);
        }
        for shard in 0..usize::from(shards) {
            assert_eq!(world.gauge(shard, Gauge::WatchesByName), 0);
            world.engine(shard).check_invariants();
        }
        world.presence().check_invariants();
    }
}

#[test]
fn a_slot_is_given_again_when_every_shard_has_let_go_and_all_of_it_is_on_disk() {
    let mut world = World::new(2);
    world.beat(0, &["bob"]).turn();
    let bobs = slot(&world, "bob").expect("he has beaten");
    let watcher = world.stream(1, "watch=bob", 1).0;
    world.received(watcher);
    world.hold_mail(1, true);
    erase(&mut world, 0, "bob");
    // The other shard has yet to hear of it.
    write_back(&world, 5);
    world.at(100).beat(0, &["eve"]).turn();
    assert_ne!(slot(&world, "eve"), Some(bobs));
    world.hold_mail(1, false).turn();
    assert_eq!(told(&mut world, watcher), [unseen("bob")]);
    // A request that was parked before could still have it.
    world.at(1_000);
    write_back(&world, 5);
    world.beat(0, &["tom"]).turn();
    assert_ne!(slot(&world, "tom"), Some(bobs));
    // Nothing of that is on disk for sure.
    world.pass(LET_GO_MS);
    write_back(&world, 1);
    world.beat(0, &["zoe"]).turn();
    assert_ne!(slot(&world, "zoe"), Some(bobs));
    write_back(&world, 1);
    world.at(10_000).beat(0, &["max"]).turn();
    assert_eq!(slot(&world, "max"), Some(bobs));
    assert_eq!(world.ask(1, "max"), record("max", "online", 10_000, 10_000));
    world.at(10_400).leave(0, &["max"]).turn();
    assert!(!world.received(watcher).contains("max"));
    assert_eq!(world.presence().known(), 4);
    // All of it is as it was after a crash.
    world.restart(50);
    world.turn();
    assert_eq!(slot(&world, "max"), Some(bobs));
    assert_eq!(world.ask(0, "bob"), unseen("bob"));
    assert_eq!(
        world.ask(0, "max"),
        record("max", "offline", 10_400, 10_400)
    );
    assert_eq!(world.presence().known(), 4);
}

/// However long its stream takes to end.
#[test]
fn a_slot_that_a_stream_holds_is_given_to_nobody() {
    let mut world = World::new(2);
    world.beat(0, &["bob"]).turn();
    let bobs = slot(&world, "bob").expect("he has beaten");
    world.presence().hold(bobs);
    erase(&mut world, 0, "bob");
    let mut next = |user: &str| {
        world.pass(LET_GO_MS);
        write_back(&world, 3);
        world.beat(0, &[user]).turn();
        if user == "eve" {
            world.presence().release(bobs);
        }
        slot(&world, user)
    };
    assert_ne!(next("eve"), Some(bobs));
    assert_eq!(next("max"), Some(bobs));
}

/// Erases bob, and gives his slot to the next who comes.
fn free_slot_of_bob(world: &mut World) -> Slot {
    let bobs = slot(world, "bob").expect("he has beaten");
    erase(world, 0, "bob");
    world.pass(LET_GO_MS);
    write_back(world, 2);
    bobs
}

#[test]
fn nothing_that_was_said_of_somebody_erased_is_done_to_who_has_the_slot_next() {
    let mut world = World::new(2);
    world.beat(0, &["bob"]).turn();
    let asker = world.connect(1);
    // It is due when the slot is another's.
    let body = r#"{"users":["bob"],"after_ms":15000}"#;
    world.post(asker, "/v1/leave", body);
    world.expect(asker, NO_CONTENT);
    let body = r#"{"users":["bob"],"everywhere":true}"#;
    world.post(asker, "/v1/leave", body);
    world.expect(asker, NO_CONTENT);
    let bobs = free_slot_of_bob(&mut world);
    world.at(10_000).beat(0, &["max"]).turn();
    assert_eq!(slot(&world, "max"), Some(bobs));
    let own = world.stream(1, "user=max", 0).0;
    let goodbyes = |world: &mut World| {
        let counters = [
            Counter::LeavesHeld,
            Counter::LeavesIgnored,
            Counter::LeavesHttp,
        ];
        [0, 1].map(|shard| counters.map(|counter| world.count(shard, counter)))
    };
    let before = goodbyes(&mut world);
    world.at(16_000).turn();
    assert_eq!(goodbyes(&mut world), before, "nobody said goodbye to max");
    world.expect_open(own);
    assert!(world.ask(0, "max").contains("online"));
    assert!(world.presence().is_held(bobs));
}

/// News of a slot may come behind the news that its user is gone: they are of different shards.
#[test]
fn late_news_of_somebody_erased_leads_no_name_to_the_slot() {
    let mut world = World::new(2);
    let watcher = world.stream(1, "watch=bob", 1).0;
    world.hold_mail(1, true).beat(0, &["bob"]).turn();
    world.received(watcher);
    let bobs = slot(&world, "bob").expect("he has beaten");
    erase(&mut world, 0, "bob");
    world.hold_mail(1, false).turn();
    let late = Decided {
        at: world.now().mono,
        transitions: vec![Transition {
            slot: bobs,
            status: Status::Online,
            first: true,
        }],
    };
    world.tell_all(&Mail::Transitions(late.into())).turn();
    assert_eq!(world.gauge(1, Gauge::WatchesByName), 1);
    world.received(watcher);
    world.pass(LET_GO_MS);
    write_back(&world, 2);
    world.at(10_000).beat(0, &["max"]).turn();
    assert_eq!(slot(&world, "max"), Some(bobs));
    assert!(!world.received(watcher).contains("max"));
}

#[test]
fn who_is_taken_off_a_list_while_being_erased_is_watched_no_more() {
    let mut world = World::new(2);
    world.beat(0, &["bob"]).turn();
    let (watcher, hello) = world.stream(1, "watch=bob", 1);
    world.received(watcher);
    // The shard with the stream has yet to hear of it.
    world.hold_mail(1, true);
    erase(&mut world, 0, "bob");
    let editor = world.connect(1);
    let target = format!("/v1/stream/{hello}/watch");
    world.post(editor, &target, r#"{"remove":["bob"]}"#);
    assert!(world.received(editor).contains("{\"watching\":0}"));
    world.hold_mail(1, false).turn();
    world.at(2_000).beat(0, &["bob"]).turn();
    assert!(!world.received(watcher).contains("bob"));
}

#[test]
fn a_beat_of_before_an_erasure_makes_no_user() {
    let mut world = World::new(2);
    world.beat(0, &["bob"]).turn();
    world.at(1_000);
    let before = world.now().unix;
    erase(&mut world, 0, "bob");
    world.at(20_000);
    for shard in [0, 1] {
        world.datagram_of(shard, &["bob", "ann"], before, false);
        world.turn();
        assert_eq!(slot(&world, "bob"), None);
        assert_eq!(world.count(shard, Counter::BeatBeforeErasure), 1);
    }
    assert!(world.ask(0, "ann").contains("online"));
    let since = before.plus_ms(1);
    world.datagram_of(1, &["bob"], since, false).turn();
    assert!(world.ask(0, "bob").contains("online"));
}

/// A stream that was told of somebody who has been erased since is told so when it comes back.
#[test]
fn who_comes_back_after_an_erasure_is_told_everything() {
    let mut world = World::new(1);
    world.beat(0, &["bob"]).turn();
    world.at(5_000);
    erase(&mut world, 0, "bob");
    world.at(60_000);
    let id = world.now().unix.ms() - 58_000;
    let (watcher, _) = world.stream(0, &format!("watch=bob&last_event_id={id}"), 1);
    assert!(world.received(watcher).contains(&unseen("bob")));
}

#[test]
fn those_who_are_silent_for_longer_than_anybody_is_kept_are_forgotten() {
    const DAY_MS: u64 = 86_400_000;
    let mut world = World::with(1, |settings| settings.forget_after = DAY_MS);
    world.checks = false;
    world.beat(0, &["bob", "ann"]).turn();
    world.at(60_000);
    assert!(world.ask(0, "bob").contains("offline"));
    let watcher = world.stream(0, "watch=bob", 1).0;
    world.received(watcher);
    world.jump(DAY_MS / 2).turn();
    world.beat(0, &["ann"]).turn();
    world.pass(60_000);
    world.jump(DAY_MS / 2).turn();
    world.pass(60_000);
    assert_eq!(world.presence().known(), 1);
    assert_eq!(told(&mut world, watcher), [unseen("bob")]);
    assert!(
        world
            .ask(0, "ann")
            .contains("\"status\":\"offline\",\"online\":false,\"since\":1")
    );
}
