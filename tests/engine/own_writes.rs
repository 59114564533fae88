//! Read your own write: what was answered is what every query on the node says from then on.

use super::harness::{Peer, World};

const BOB: &str = r#"{"users":["bob"]}"#;
const DONE: &str = "HTTP/1.1 204 ";

/// So many shards, all of whose new users' slots belong to the last, which does not read its mail.
fn deaf(shards: u16) -> World {
    let mut world = World::new(shards);
    world.make_slots((u32::from(shards) - 1) * 4_096);
    // The next sweep is 250 ms away.
    world.at(1);
    world.hold_mail(usize::from(shards) - 1, true);
    world
}

fn is_online(world: &World, user: &str) -> bool {
    let user = greendot::wire::User::parse(user.as_bytes()).expect("a legal user");
    let presence = world.presence();
    let slot = presence.lookup(user).expect("a slot");
    presence.state(slot, world.now()).status.is_online()
}

/// The request is answered only once the owner of the slot has looked; by then it is so.
#[track_caller]
fn answered_when_looked(world: &mut World, owner: usize, asker: Peer, answer: &str, online: bool) {
    world.turn().expect_nothing(asker);
    assert_ne!(is_online(world, "bob"), online);
    world.hold_mail(owner, false);
    assert!(world.received(asker).starts_with(answer));
    assert_eq!(is_online(world, "bob"), online);
    world.hold_mail(owner, true);
}

#[test]
fn an_answer_waits_until_the_owner_has_looked() {
    for shards in [2, 4] {
        let owner = usize::from(shards) - 1;
        let mut world = deaf(shards);
        let asker = world.connect(0);
        world.post(asker, "/v1/beat", BOB);
        answered_when_looked(&mut world, owner, asker, DONE, true);
        // Who is online makes nobody wait, and who is offline has nothing to say.
        world.post(asker, "/v1/beat", BOB).turn();
        assert!(world.received(asker).starts_with(DONE));
        world.at(10).post(asker, "/v1/leave", BOB);
        answered_when_looked(&mut world, owner, asker, DONE, false);
        world.post(asker, "/v1/leave", BOB).turn();
        assert!(world.received(asker).starts_with(DONE));
        // What follows on the connection waits, too.
        world.at(20).post(asker, "/v1/beat", BOB);
        world.get(asker, "/livez");
        answered_when_looked(&mut world, owner, asker, DONE, true);

        world
            .post(asker, "/v1/leave", BOB)
            .hold_mail(owner, false)
            .turn();
        world.hold_mail(owner, true);
        let stream = world.connect(0);
        world.at(30).get(stream, "/v1/stream?user=bob&watch=bob");
        answered_when_looked(&mut world, owner, stream, "HTTP/1.1 200 ", true);
        world.expect_open(stream);
        let (again, _) = world.stream(0, "user=bob", 0);
        world.expect_open(again);
    }
}

#[test]
fn the_owners_own_shard_makes_nobody_wait() {
    for shards in [1, 2, 4] {
        let mut world = deaf(shards);
        let owner = usize::from(shards) - 1;
        let asker = world.connect(owner);
        for (path, online) in [("/v1/beat", true), ("/v1/leave", false)] {
            world.post(asker, path, BOB);
            assert!(world.received(asker).starts_with(DONE));
            assert_eq!(is_online(&world, "bob"), online);
        }
        world.stream(owner, "user=bob", 0);
        assert!(is_online(&world, "bob"));
    }
}

#[test]
fn an_owner_that_does_not_look_in_time_is_told_of() {
    let mut world = deaf(2);
    let (asker, reader) = (world.connect(0), world.connect(0));
    world.post(asker, "/v1/beat", BOB);
    world.get(reader, "/v1/stream?user=carol");
    world.at(900).expect_nothing(asker).expect_nothing(reader);
    world.at(1_200);
    let refused = world.received(asker);
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    world.expect_closed(asker);
    let refused = world.received(reader);
    assert!(refused.contains("event: overloaded"), "{refused}");
    world.expect_closed(reader);
    // What comes too late is nobody's answer.
    world.hold_mail(1, false).pass(1_000);
    assert!(is_online(&world, "bob"));
}

/// Its client goes while the request waits.
#[test]
fn who_hangs_up_while_it_waits_holds_nothing() {
    let mut world = deaf(2);
    let (gone, shut) = (world.connect(0), world.connect(0));
    world.get(gone, "/v1/stream?user=bob").turn().reset(gone);
    world.get(shut, "/v1/stream?user=bob").turn().shut(shut);
    world.hold_mail(1, false).turn();
    world.expect_closed(shut);
    // He has beaten, and holds no stream.
    assert!(is_online(&world, "bob"));
    world.at(10).leave(1, &["bob"]).turn();
    assert!(!is_online(&world, "bob"));
}
