//! Devices with keys of their own: what a key is good for, and until when.

use greendot::engine::Role;
use greendot::metrics::Counter;
use greendot::time::Unix;
use greendot::wire::beat::{DeviceKey, is_device_key};

use super::harness::{START, World, record};
use super::identity::{ALICE, Said, asked, bearer, cell, identity, token, token_of};

const EPOCH_MS: u64 = 60_000;
const PHONE: &str = r#"{"device":"phone"}"#;

/// A world whose epochs are a minute.
fn world(shards: u16) -> World {
    let mut world = World::asking(shards, Role::All, identity());
    world.settings.device_key_epoch_ms = EPOCH_MS;
    world.restart(0);
    world
}

/// The key of a device of a token's holder, and when it lapses, in ms of the world.
fn key(world: &mut World, shard: usize, token: &str, body: &str) -> (DeviceKey, u64) {
    let answer = asked(world, shard, "POST /v1/device-key", &bearer(token), body);
    let (head, json) = answer.split_once("\r\n\r\n").expect(&answer);
    assert!(head.contains("Cache-Control: no-store"), "{head}");
    let (key, until) = DeviceKey::read(json.as_bytes()).expect(json);
    (key, until.ms() - START)
}

#[test]
fn a_device_beats_for_its_user_and_nobody_else() {
    let mut world = world(2);
    let alice = token(&ALICE);
    let (key, until_ms) = key(&mut world, 0, &alice, PHONE);
    assert_eq!(until_ms, 2 * EPOCH_MS);
    let zoe = bearer(&token(&Said {
        user: "zoe",
        watch: &["*"],
        ..ALICE
    }));
    world.at(1_000);
    let now = Unix::from_ms(START + 1_000);
    world.datagram(1, &key.datagram(false, now)).turn();
    let line = "GET /v1/presence/alice";
    let answer = asked(&mut world, 0, line, &zoe, "");
    assert!(
        answer.ends_with(&record("alice", "online", 1_000, 1_000)),
        "{answer}"
    );
    let mut forged = key.datagram(false, now);
    let at = forged.len() - 17;
    forged[at] = b'f';
    world.datagram(1, &forged);
    world.at(2_000);
    world
        .datagram(0, &key.datagram(true, Unix::from_ms(START + 2_000)))
        .turn();
    let answer = asked(&mut world, 1, line, &zoe, "");
    assert!(
        answer.ends_with(&record("alice", "offline", 2_000, 2_000)),
        "{answer}"
    );
    assert_eq!(world.count(1, Counter::DatagramMac), 1);
    assert_eq!(world.count(0, Counter::DatagramsDevice), 1);
    assert_eq!(world.presence().users(), 1, "nobody else was made");
    let refused = world.refused();
    let told = refused.iter().map(|one| (one.why, one.nth, one.datagrams));
    assert!(told.eq([(Counter::DatagramMac, 0, 1)]), "{refused:?}");
    assert!(is_device_key(refused[0].key_id));
}

#[test]
fn whose_device_has_no_key() {
    let mut world = world(1);
    let alice = bearer(&token(&ALICE));
    let line = "POST /v1/device-key";
    let longest = format!("{{\"device\":\"{}\"}}", "x".repeat(64));
    let longer = format!("{{\"device\":\"{}\"}}", "x".repeat(65));
    for (body, expected) in [
        (&*longest, "200"),
        (&*longer, "400"),
        (r#"{"device":""}"#, "400"),
        (r#"{"device":"a\u0000"}"#, "400"),
        (r#"{"device":7}"#, "400"),
        ("{}", "400"),
    ] {
        assert_eq!(
            cell(&asked(&mut world, 0, line, &alice, body)),
            expected,
            "{body}"
        );
    }
    let viewer = bearer(&token(&Said {
        publish: false,
        ..ALICE
    }));
    assert_eq!(cell(&asked(&mut world, 0, line, &viewer, PHONE)), "user");
    let mut open = World::new(1);
    assert_eq!(cell(&asked(&mut open, 0, line, "", PHONE)), "404");
}

/// A revocation bars the keys of its epoch, all of a user's or one device's; those of the next
/// count again.
#[test]
fn a_revocation_bars_devices_until_the_next_epoch() {
    let mut world = world(2);
    let alice = token(&ALICE);
    let node = bearer(&world.key().service_token());
    let make = |world: &mut World, device: &str| {
        let body = format!("{{\"device\":\"{device}\"}}");
        key(world, 0, &alice, &body).0
    };
    let (phone, tablet) = (make(&mut world, "phone"), make(&mut world, "tablet"));
    let taken = |world: &mut World, key: &DeviceKey| {
        let before = world.count(0, Counter::DatagramRevoked);
        let datagram = key.datagram(false, world.now().unix);
        world.datagram(0, &datagram).turn();
        world.count(0, Counter::DatagramRevoked) == before
    };
    assert!(taken(&mut world, &phone) && taken(&mut world, &tablet));
    world.at(5_000);
    let line = "POST /v1/revoke";
    let one = r#"{"user":"alice","device":"phone"}"#;
    assert_eq!(cell(&asked(&mut world, 1, line, &node, one)), "204");
    assert!(!taken(&mut world, &phone) && taken(&mut world, &tablet));
    // Its token is good still, and there is no other key in this epoch.
    let line_key = "POST /v1/device-key";
    let answer = asked(&mut world, 0, line_key, &bearer(&alice), PHONE);
    assert!(
        answer.contains("until the next the device beats over HTTP"),
        "{answer}"
    );
    world.at(10_000);
    assert_eq!(
        cell(&asked(&mut world, 1, line, &node, r#"{"user":"alice"}"#)),
        "204"
    );
    assert!(!taken(&mut world, &phone) && !taken(&mut world, &tablet));
    world.at(EPOCH_MS);
    assert!(!taken(&mut world, &phone) && !taken(&mut world, &tablet));
    let renewed = token(&Said {
        issued_ms: 20_000,
        ..ALICE
    });
    let (phone, _) = key(&mut world, 1, &renewed, PHONE);
    assert!(taken(&mut world, &phone) && !taken(&mut world, &tablet));
}

/// A node of a fleet that has just begun: neither tokens nor devices' keys count before it knows
/// which are void.
#[test]
fn nobody_is_believed_before_it_is_known_who_is_barred() {
    let mut world = world(1);
    let alice = token(&ALICE);
    let phone = key(&mut world, 0, &alice, PHONE).0;
    world.revocations().await_reading();
    let beat_and_ask = |world: &mut World| {
        let datagram = phone.datagram(false, world.now().unix);
        world.datagram(0, &datagram).turn();
        let lines = ["GET /v1/presence/bob", "GET /v1/stream?user=me"];
        let answers = lines.map(|line| asked(world, 0, line, &bearer(&alice), ""));
        let refused = world.count(0, Counter::DatagramRevoked);
        (refused, world.presence().users(), answers)
    };
    let (refused, users, answers) = beat_and_ask(&mut world);
    assert_eq!((refused, users), (1, 0));
    for answer in answers {
        assert!(
            answer.contains("503") && answer.contains("fleet-away"),
            "{answer}"
        );
        assert!(answer.contains("Retry-After: 5\r\n"), "{answer}");
    }
    world.revocations().have_been_read();
    let (refused, users, answers) = beat_and_ask(&mut world);
    assert_eq!((refused, users), (1, 1));
    assert!(
        answers.iter().all(|answer| answer.contains(" 200 ")),
        "{answers:?}"
    );
}

/// 10,000 devices beat over five epochs, and each asks for another key some time in the epoch
/// behind that of its own. Nobody is ever taken for offline. Then they ask no more.
#[test]
fn an_epoch_turns_under_beating_devices() {
    const DEVICES: usize = 10_000;
    const BEAT_MS: u64 = 10_000;
    let mut world = world(2);
    world.checks = false;
    let tokens: Vec<String> = (0..DEVICES)
        .map(|n| token_of(&format!("user-{n}")))
        .collect();
    let mut keys = Vec::with_capacity(DEVICES);
    for (n, token) in tokens.iter().enumerate() {
        keys.push(key(&mut world, n % 2, token, PHONE));
    }
    let beat_all = |world: &mut World, keys: &[(DeviceKey, u64)]| {
        let now = world.now().unix;
        let datagrams: Vec<Vec<u8>> = keys
            .iter()
            .map(|(key, _)| key.datagram(false, now))
            .collect();
        for (n, batch) in datagrams.chunks(64).enumerate() {
            let batch: Vec<&[u8]> = batch.iter().map(|datagram| &**datagram).collect();
            world.arrive(n % 2, &batch);
        }
        world.turn();
    };
    let both = |world: &mut World, counter| world.count(0, counter) + world.count(1, counter);
    beat_all(&mut world, &keys);
    world.pass(1_000);
    assert_eq!(world.presence().online(), DEVICES as u64);
    while world.ms() < 5 * EPOCH_MS {
        world.pass(BEAT_MS);
        let epoch = world.ms() / EPOCH_MS;
        for (n, (held, until_ms)) in keys.iter_mut().enumerate() {
            // A sixth of them in each round of the epoch in which their keys lapse.
            let lapses_next = *until_ms / EPOCH_MS == epoch + 1;
            if lapses_next && n as u64 % 6 == world.ms() / BEAT_MS % 6 {
                (*held, *until_ms) = key(&mut world, n % 2, &tokens[n], PHONE);
            }
        }
        beat_all(&mut world, &keys);
    }
    assert_eq!(both(&mut world, Counter::TransitionsOffline), 0);
    assert_eq!(both(&mut world, Counter::DatagramKey), 0);
    assert_eq!(
        both(&mut world, Counter::DatagramsDevice),
        31 * DEVICES as u64
    );

    // All keys have lapsed, and are refused as such: silence decides.
    world.pass(2 * EPOCH_MS);
    beat_all(&mut world, &keys);
    assert_eq!(both(&mut world, Counter::DatagramKey), DEVICES as u64);
    assert_eq!(world.refused(), [], "no operator needs to know");
    assert_eq!(
        both(&mut world, Counter::TransitionsOffline),
        DEVICES as u64
    );
}
