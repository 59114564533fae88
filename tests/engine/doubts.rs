//! Publishers whom a presence node says are offline, while a stream of this node vouches for them.

use std::sync::Arc;

use greendot::engine::{Mail, Role, adopt_answers};
use greendot::metrics::Counter;
use greendot::presence::Source;
use greendot::slot::Slot;
use greendot::wire::User;
use greendot::wire::nodes::Nodes;
use greendot::wire::record::parse_told_list;

use super::harness::{World, record, told, told_of_many, without_pings};

fn realtime() -> World {
    let nodes = Nodes::new(["10.0.0.1:8081"]);
    let mut world = World::of_role(1, Role::Realtime(Arc::new(nodes)), 10_000);
    world.followed = true;
    world.hear();
    world
}

/// The presence node answers as of now with this record.
fn answer(world: &mut World, record: &str) {
    let list = format!("{{\"presence\":[{record}]}}");
    let told = parse_told_list(list.as_bytes(), 1).expect("a list");
    let told: Vec<_> = told
        .into_iter()
        .map(|told| told.expect("a record"))
        .collect();
    let now = world.now();
    let (answered, _) = adopt_answers(world.presence(), &told, now.unix, now);
    world.tell_all(&Mail::Answered(Arc::new(answered)));
}

#[test]
fn only_streams_that_watch_somebody_in_doubt_are_without_event_ids() {
    let mut world = realtime();
    let (bob, _) = world.stream(0, "user=bob", 0);
    for user in ["ann", "bob"] {
        answer(&mut world, &record(user, "online", 0, 0));
    }
    let (of_ann, _) = world.stream(0, "watch=ann", 1);
    let (of_both, _) = world.stream(0, "watch=ann&watch=bob", 2);
    for watcher in [of_ann, of_both] {
        assert!(world.received(watcher).contains("\nid: "), "all is known");
    }
    world.at(26_000);
    answer(&mut world, &record("bob", "offline", 25_500, 0));
    let stale = record("bob", "online", 0, 0).replace('}', ",\"stale\":true}");
    let news = without_pings(&world.received(of_both));
    assert_eq!(news, told_of_many(&stale));
    let offline = record("ann", "offline", 25_900, 0);
    answer(&mut world, &offline);
    assert_eq!(
        without_pings(&world.received(of_ann)),
        told(26_000, &offline)
    );
    assert_eq!(
        without_pings(&world.received(of_both)),
        told_of_many(&offline)
    );
    // His stream ends, and he is asked about before there is an id again.
    world.reset(bob);
    world.turn();
    let offline = record("bob", "offline", 25_500, 0);
    assert_eq!(
        without_pings(&world.received(of_both)),
        told_of_many(&offline)
    );
    world.at(27_000);
    answer(&mut world, &offline);
    answer(&mut world, &record("ann", "online", 27_000, 27_000));
    let online = told(27_000, &record("ann", "online", 27_000, 27_000));
    assert_eq!(without_pings(&world.received(of_both)), online);
    assert_eq!(without_pings(&world.received(of_ann)), online);
}

#[test]
fn doubts_are_settled_in_slices() {
    let mut world = realtime();
    let presence = Arc::clone(world.presence());
    let users = 1_000;
    let slots: Vec<Slot> = (0..users)
        .map(|n| {
            let user = format!("u{n}");
            presence
                .intern(User::from_text(&user).expect("a legal user"))
                .expect("room")
        })
        .collect();
    let tell = |world: &World, status: &str, ms: u64| {
        for (n, slot) in slots.iter().enumerate() {
            let list = record(&format!("u{n}"), status, ms, 0);
            let list = format!("{{\"presence\":[{list}]}}");
            let told = parse_told_list(list.as_bytes(), 1)
                .expect("a list")
                .remove(0);
            presence.adopt(*slot, &told.expect("a record"), Source::InStep, world.now());
        }
    };
    tell(&world, "online", 0);
    slots.iter().for_each(|slot| presence.hold(*slot));
    world.at(30_000);
    tell(&world, "offline", 30_000);
    world.turn();
    let believed = |world: &mut World| world.count(0, Counter::TransitionsOffline);
    assert_eq!((presence.online(), believed(&mut world)), (1_000, 0));
    // All their streams end at once.
    slots.iter().for_each(|slot| presence.release(*slot));
    let mut turns = Vec::new();
    loop {
        let goes_on = world.turn_of(0);
        turns.push(believed(&mut world));
        if !goes_on {
            break;
        }
    }
    assert_eq!(turns, [256, 512, 768, 1_000]);
    assert_eq!(presence.online(), 0);
    // Those in doubt to the end of their time.
    tell(&world, "online", 30_001);
    slots.iter().for_each(|slot| presence.hold(*slot));
    tell(&world, "offline", 30_002);
    world.at(79_999);
    assert_eq!(believed(&mut world), 1_000);
    world.at(80_000);
    assert_eq!((presence.online(), believed(&mut world)), (0, 2_000));
}
