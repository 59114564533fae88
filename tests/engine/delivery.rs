//! Beats that never arrive, from both ends of the link: what goes over the connection instead, and
//! what it is worth there.

use std::sync::Arc;

use greendot::engine::{Mail, Outbound, Refused, Role};
use greendot::metrics::Counter;
use greendot::time::Unix;
use greendot::wire::User;
use greendot::wire::beat::{FleetKey, Keys, Writer, open, write_bundled};
use greendot::wire::nodes::Nodes;

use super::harness::{NO_CONTENT, START, World, status_and_slug};

fn realtime() -> World {
    let nodes = Nodes::new(["10.0.0.1:8081"]);
    let mut world = World::of_role(1, Role::Realtime(Arc::new(nodes)), 10_000);
    world.followed = true;
    world.hear();
    world
}

/// Who was vouched for by UDP, over the connection, and whose beat is looked for.
fn said(world: &mut World) -> (Vec<String>, Vec<String>, Vec<String>) {
    let keys = Keys::single(world.key().clone());
    let now = world.now().unix;
    let (mut udp, mut bundled, mut looked_for) = (Vec::new(), Vec::new(), Vec::new());
    for (_, outbound) in world.outbound() {
        let (datagrams, to) = match outbound {
            Outbound::Beats { datagrams, .. } => (datagrams, &mut udp),
            Outbound::Bundled { datagrams, .. } => (datagrams, &mut bundled),
            Outbound::Sample { sample, .. } => {
                looked_for.push(sample.user.into());
                continue;
            }
            _ => continue,
        };
        for datagram in datagrams.iter() {
            let beats = open(datagram, &keys, now, 30_000).expect("sealed");
            to.extend(beats.users().map(|user| user.as_str().to_owned()));
        }
    }
    (udp, bundled, looked_for)
}

fn names(users: &[&str]) -> Vec<String> {
    users.iter().map(|user| (*user).to_owned()).collect()
}

#[test]
fn where_datagrams_do_not_arrive_they_go_over_the_connection_too_but_for_one_that_is_looked_for() {
    let mut world = realtime();
    for user in ["ann", "bob"] {
        world.stream(0, &format!("user={user}"), 0);
    }
    // One at a time is looked for.
    let (udp, bundled, looked_for) = said(&mut world);
    assert_eq!(udp, names(&["ann", "bob"]));
    assert_eq!((bundled, looked_for), (names(&[]), names(&["ann"])));
    // It was lost: somebody else's is looked for at once, and nothing else goes.
    let (node, user) = (0, Arc::from("ann"));
    let resample = Mail::Resample { node, user };
    world.tell_all(&resample);
    let other = (names(&["bob"]), names(&[]), names(&["bob"]));
    assert_eq!(said(&mut world), other);
    // All are. A second after it was looked for it goes in the other way.
    world.tell_all(&Mail::ByConnection { node, on: true });
    assert_eq!(said(&mut world).1, names(&[]));
    world.pass(1_000);
    assert!(said(&mut world).1.contains(&"bob".to_owned()));
    for n in 0..40 {
        world.stream(0, &format!("user=u{n}"), 0);
    }
    said(&mut world);
    world.pass(10_000);
    let (udp, bundled, looked_for) = said(&mut world);
    assert!(udp.len() >= 30, "{udp:?}");
    assert!((5..=10).contains(&looked_for.len()), "{looked_for:?}");
    // Those that are looked for a second later than all others.
    assert!(udp.iter().any(|user| bundled.contains(user)));
    let newest = looked_for.last();
    let mut others = udp.iter().filter(|user| Some(*user) != newest);
    assert!(others.all(|user| bundled.contains(user)), "{bundled:?}");
    // They arrive again.
    world.tell_all(&Mail::ByConnection { node, on: false });
    world.pass(11_000);
    assert_eq!(said(&mut world).1, names(&[]));
}

#[test]
fn who_has_no_stream_any_more_is_not_vouched_for_because_a_beat_was_lost() {
    let mut world = realtime();
    let (bob, _) = world.stream(0, "user=bob", 0);
    world.reset(bob);
    world.turn();
    said(&mut world);
    let (node, user) = (0, Arc::from("bob"));
    world.tell_all(&Mail::Resample { node, user });
    assert_eq!(said(&mut world), (names(&[]), names(&[]), names(&[])));
}

/// One alone says little of the link; where there is nobody else another beat of theirs has to do.
#[test]
fn whose_beat_was_lost_is_looked_at_again_only_if_there_is_nobody_else() {
    let mut world = realtime();
    world.stream(0, "user=ann", 0);
    said(&mut world);
    let (node, user) = (0, Arc::from("ann"));
    let resample = Mail::Resample { node, user };
    let only = |user| (names(&[user]), names(&[]), names(&[user]));
    world.tell_all(&resample);
    assert_eq!(said(&mut world), only("ann"));
    let (bob, _) = world.stream(0, "user=bob", 0);
    said(&mut world);
    world.tell_all(&resample);
    assert_eq!(said(&mut world), only("bob"));
    world.reset(bob);
    world.turn();
    said(&mut world);
    world.tell_all(&resample);
    assert_eq!(said(&mut world), only("ann"));
}

/// `POST /v1/datagrams` with these of bob, each with the time at which it was sent and whether it
/// is a goodbye.
fn bundle(world: &World, token: &str, datagrams: &[(u64, bool)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (sent_ms, leave) in datagrams {
        let sent_at = Unix::from_ms(START + sent_ms);
        let mut writer = Writer::new(*leave, sent_at, world.key());
        assert!(writer.push(User::parse(b"bob").expect("a legal user")));
        write_bundled(&writer.seal(world.key()), &mut body);
    }
    let head = format!(
        "POST /v1/datagrams HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Type: \
         application/octet-stream\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

fn is_online(world: &mut World) -> bool {
    world.ask(0, "bob").contains("\"status\":\"online\"")
}

/// A beat over the connection is what the same datagram would be: the time at which it was sent
/// orders it, not that at which it came.
#[test]
fn a_beat_that_comes_late_over_a_connection_undoes_no_goodbye() {
    let mut world = World::of_role(1, Role::Presence, 100);
    let token = world.key().service_token();
    let node = world.connect(0);
    world.at(2_000);
    let beat = bundle(&world, &token, &[(1_900, false)]);
    world.send(node, beat).expect(node, NO_CONTENT);
    assert!(is_online(&mut world));
    world.datagram_of(0, &["bob"], Unix::from_ms(START + 1_950), true);
    assert!(!is_online(&mut world));
    // It was held up, and comes again.
    world.at(3_000);
    let late = bundle(&world, &token, &[(1_900, false), (1_930, false)]);
    world.send(node, late).expect(node, NO_CONTENT);
    assert!(!is_online(&mut world));
    assert_eq!(world.count(0, Counter::BeatBeforeLeave), 2);
    // One that was sent since counts, and so does a goodbye behind it.
    let newer = bundle(&world, &token, &[(2_500, false)]);
    world.send(node, newer).expect(node, NO_CONTENT);
    assert!(is_online(&mut world));
    let goodbye = bundle(&world, &token, &[(2_900, true)]);
    world.send(node, goodbye).expect(node, NO_CONTENT);
    assert!(!is_online(&mut world));
    // One that is too old is refused, as by UDP.
    world.at(60_000);
    let stale = bundle(&world, &token, &[(3_000, false)]);
    world.send(node, stale).expect(node, NO_CONTENT);
    assert!(!is_online(&mut world));
    assert_eq!(world.count(0, Counter::DatagramStale), 1);
}

#[test]
fn datagrams_over_a_connection_take_the_service_token_and_are_whole() {
    let mut world = World::of_role(1, Role::Presence, 100);
    let mut answer = |request: &[u8]| {
        let node = world.connect(0);
        world.send(node, request);
        let answer = world.received(node);
        let (status, slug) = status_and_slug(&answer);
        let code = status.split(' ').nth(1).unwrap_or("");
        (code.to_owned(), slug.to_owned())
    };
    let other = World::of_role(1, Role::Presence, 100);
    let refused = answer(&bundle(&other, "nobody", &[(0, false)]));
    assert_eq!(refused, ("401".into(), "unauthorized".into()));
    let token = other.key().service_token();
    let mut torn = bundle(&other, &token, &[(0, false)]);
    let at = torn.len() - 38;
    // The length says more than there is.
    torn[at] = 1;
    assert_eq!(answer(&torn), ("400".into(), "bad-bundle".into()));
    let many = bundle(&other, &token, &[(0, false); 65]);
    assert_eq!(answer(&many), ("413".into(), "body-too-large".into()));
}

/// Whoever receives datagrams is told which of them were refused, once for each reason: it alone
/// knows from where they came.
#[test]
fn refused_datagrams_are_pointed_out() {
    let mut world = World::of_role(1, Role::All, 100);
    let sealed = |key: &FleetKey, ms| {
        let mut writer = Writer::new(false, Unix::from_ms(ms), key);
        assert!(writer.push(User::parse(b"bob").expect("a legal user")));
        writer.seal(key)
    };
    let (own, other) = (world.key().clone(), FleetKey::new([9; 32]));
    let (good, wrong) = (sealed(&own, START), sealed(&other, START));
    let stale = sealed(&own, START - 3_600_000);
    let changed = |at: usize| {
        let mut datagram = good.clone();
        datagram[at] ^= 1;
        datagram
    };
    let (forged, foreign, newer) = (changed(20), changed(0), changed(2));
    let found = |why, nth, key_id, datagrams| Refused {
        why,
        nth,
        key_id,
        datagrams,
    };
    world.arrive(0, &[&good, &good]);
    assert_eq!(world.refused(), []);
    world.arrive(0, &[&good, &wrong, &wrong, &forged]);
    let of_keys = [
        found(Counter::DatagramKey, 1, other.id(), 2),
        found(Counter::DatagramMac, 3, own.id(), 1),
    ];
    assert_eq!(world.refused(), of_keys);
    // In the order of the reasons, each with its own first one.
    world.arrive(
        0,
        &[&stale, b"short", &foreign, &newer, b"", &forged, &stale],
    );
    let all = [
        found(Counter::DatagramShort, 1, 0, 2),
        found(Counter::DatagramMagic, 2, own.id(), 1),
        found(Counter::DatagramVersion, 3, own.id(), 1),
        found(Counter::DatagramMac, 5, own.id(), 1),
        found(Counter::DatagramStale, 0, own.id(), 2),
    ];
    assert_eq!(world.refused(), all);
    world.arrive(0, &[&good, &forged]);
    assert_eq!(
        world.refused(),
        [found(Counter::DatagramMac, 1, own.id(), 1)]
    );
    assert_eq!(world.count(0, Counter::DatagramKey), 2);
    assert_eq!(world.count(0, Counter::DatagramMac), 3);
    assert!(is_online(&mut world));
}
