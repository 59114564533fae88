//! A cluster of three primaries with a replica each: keys lie where they should, and a partition
//! goes on after a failover and after a move of its slot.

use greendot::fleet::flags::UserFlags;
use greendot::fleet::message::What;
use greendot::fleet::partition::{LANES, LAYOUT, Partitions, key_slot};
use greendot::fleet::replies::Outcome::Told;

use crate::members::{cluster, id, info, ok};
use crate::redis::{Answer, Server, wait_until};
use crate::world::{ANN, HOT, World, beat, gone};

const PLAIN: UserFlags = UserFlags::PLAIN;
#[test]
fn keys_lie_where_partitions_say() {
    let Some(server) = Server::start_member() else {
        return;
    };
    let mut link = server.link();
    let mut check = |key: &str| {
        let slot = link.ask(["CLUSTER", "KEYSLOT", key]);
        assert_eq!(
            slot,
            Answer::Number(key_slot(key.as_bytes()).into()),
            "{key}"
        );
    };
    for key in LANES
        .into_iter()
        .chain([LAYOUT, "", "{}", "a{b}{c}", "a{b", "{{b}}", "123456789"])
    {
        check(key);
    }
    for count in [64, 1_024] {
        let partitions = Partitions::new(count).unwrap();
        for partition in partitions.all() {
            check(&partitions.hot_key(partition));
            check(&partitions.offline_key(partition, 7));
        }
    }
}

#[test]
fn a_partition_goes_on_after_a_failover_and_after_a_move() {
    let Some(members) = cluster() else {
        return;
    };
    // Heard at the replica.
    let mut world = World::of(members[0].link(), members[3].link());
    let arrived = |id| [(id, What::Arrived(PLAIN))];
    world
        .enrol(ANN, 1)
        .claim("bob", beat())
        .expect(&[Told], &arrived("bob"));
    assert_eq!(world.link.ask(["WAIT", "1", "5000"]), Answer::Number(1));

    let mut promoted = members[3].link();
    ok(promoted.ask(["CLUSTER", "FAILOVER"]));
    wait_until("the replica is promoted", || {
        info(&mut promoted, &["INFO", "replication"]).contains("role:master")
    });
    let refused = world
        .in_turn(ANN, 2)
        .claim("carol", beat())
        .answer()
        .refused();
    let moved = format!("MOVED {} 127.0.0.1:", key_slot(HOT.as_bytes()));
    assert!(refused.starts_with(&moved), "{refused}");
    // The library and the numbers are there, and the subscription stands.
    world.link = promoted;
    world
        .in_turn(ANN, 2)
        .claim("carol", beat())
        .expect(&[Told], &arrived("carol"));

    let (mut from, mut to) = (members[3].link(), members[1].link());
    let (slot, port) = (
        key_slot(HOT.as_bytes()).to_string(),
        members[1].port.unwrap().to_string(),
    );
    let (old, new) = (id(&mut from), id(&mut to));
    wait_until("the others know who was promoted", || {
        let importing = to.ask(["CLUSTER", "SETSLOT", &slot, "IMPORTING", &old]);
        importing == Answer::Word("OK".to_owned())
    });
    ok(from.ask(["CLUSTER", "SETSLOT", &slot, "MIGRATING", &new]));
    ok(from.ask(["MIGRATE", "127.0.0.1", &port, HOT, "0", "5000"]));
    for link in [&mut to, &mut from] {
        ok(link.ask(["CLUSTER", "SETSLOT", &slot, "NODE", &new]));
    }
    let push = world.push();
    assert_eq!(
        push[..2],
        [
            Answer::Bytes(b"sunsubscribe".into()),
            Answer::Bytes(HOT.into())
        ]
    );
    let base = world.base;
    let mut world = World::of(to, members[1].link());
    world.base = base;
    let ended = [("bob", gone(PLAIN))];
    world
        .in_turn(ANN, 3)
        .withdraw("bob", beat())
        .expect(&[Told], &ended);
    assert_eq!(world.count(ANN), 1);
}
