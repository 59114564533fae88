//! Streams: what is told, when, and with which id.

use greendot::metrics::{Counter, Gauge};

use super::harness::{
    START, STREAM_HEAD, World, json, ping, record, snapshot, told, told_of_many, unseen,
};

#[test]
fn hello_snapshot_and_every_change() {
    let mut world = World::new(1);
    world.beat(0, &["carol"]).at(1_000);
    let (alice, _) = world.stream(0, "user=alice&watch=bob&watch=carol&watch=alice", 3);
    let online = |user, ms| record(user, "online", ms, ms);
    world.expect(
        alice,
        snapshot(
            1_000,
            &[online("carol", 0), online("alice", 1_000), unseen("bob")],
        ),
    );
    let (bob, _) = world.at(2_000).stream(0, "user=bob", 0);
    world.expect(bob, snapshot(2_000, &[]));
    world.expect(alice, told(2_000, &online("bob", 2_000)));
    assert_eq!(world.gauge(0, Gauge::Streams), 2);
    world.at(2_500).reset(bob);
    world.at(3_000).leave(0, &["carol"]).leave(0, &["bob"]);
    world.expect(
        alice,
        told_of_many(&record("carol", "offline", 3_000, 3_000))
            + &told(3_000, &record("bob", "offline", 3_000, 3_000)),
    );
    assert_eq!(world.gauge(0, Gauge::Streams), 1);
    world.shut(alice).expect_closed(alice);
    assert_eq!(world.gauge(0, Gauge::Streams), 0);
    assert_eq!(world.gauge(0, Gauge::Conns), 0);
}

#[test]
fn a_stream_by_post_and_on_an_old_protocol() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    world.post(
        bob,
        "/v1/stream",
        "{\"user\":\"bob\",\"watch\":[\"x\",\"x\"]}",
    );
    world.expect_hello(bob, 1);
    world.expect(bob, snapshot(0, &[unseen("x")]));
    let old = world.connect(0);
    world.send(old, "GET /v1/stream?watch=bob HTTP/1.0\r\n\r\n");
    let head = STREAM_HEAD.replace("Transfer-Encoding: chunked\r\n", "");
    world.expect_hello_behind(&head, old, 1);
    world.expect(old, snapshot(0, &[record("bob", "online", 0, 0)]));
    world
        .send(old, "GET / HTTP/1.1\r\nno more than noise")
        .expect_nothing(old)
        .expect_open(old);
}

#[test]
fn changes_of_one_turn_are_one_write_and_only_the_last_has_an_id() {
    let mut world = World::new(1);
    let users: Vec<String> = (0..50).map(|n| format!("u{n:02}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let (alice, _) = world.stream(0, &format!("watch={}", users.join("&watch=")), 50);
    world.received(alice);
    let flushes = world.count(0, Counter::Flushes);
    world.at(10).beat(0, &users).beat(0, &users);
    let mut expected: String = users[..49]
        .iter()
        .map(|user| told_of_many(&record(user, "online", 10, 10)))
        .collect();
    expected += &told(10, &record("u49", "online", 10, 10));
    world.expect(alice, expected);
    assert_eq!(world.count(0, Counter::Flushes), flushes + 1);
    assert_eq!(world.count(0, Counter::EventsPresence), 50);
}

#[test]
fn silence_is_broken_by_a_ping_and_other_writes_put_it_off() {
    let mut world = World::new(1);
    let mut firsts = Vec::new();
    let streams: Vec<_> = (0..20).map(|_| world.stream(0, "watch=bob", 1).0).collect();
    for stream in &streams {
        world.received(*stream);
    }
    for ms in (0..16_000).step_by(64) {
        world.at(ms);
        for stream in &streams {
            let received = world.received(*stream);
            if !received.is_empty() {
                assert!(received.starts_with("event: ping\ndata: "), "{received}");
                // It shows the clock of the turn, up to 64 ms before.
                let said_at = received[18..31].parse::<u64>().unwrap() - START;
                assert!(said_at <= ms && ms < said_at + 64, "{received}");
                assert_eq!(received, ping(said_at));
                firsts.push(ms);
            }
        }
    }
    assert_eq!(firsts.len(), 20);
    // Between three quarters of keep_alive_ms and the whole, two ticks of 64 ms later at most, and
    // not all together.
    assert!(
        firsts.iter().all(|ms| (11_250..=15_128 + 64).contains(ms)),
        "{firsts:?}"
    );
    assert!(firsts.last().unwrap() - firsts[0] > 2_000, "{firsts:?}");
    world.beat(0, &["bob"]).turn();
    let spoke_at = world.ms();
    for stream in &streams {
        assert!(world.received(*stream).starts_with("event: presence"));
    }
    world.at(spoke_at + 11_000);
    for stream in &streams {
        world.expect_nothing(*stream);
    }
    world.at(spoke_at + 15_200);
    for stream in &streams {
        let received = world.received(*stream);
        assert!(received.starts_with("event: ping\n"), "{received}");
    }
}

#[test]
fn a_large_snapshot_comes_in_parts_and_the_last_has_the_id() {
    let mut world = World::with(1, |settings| settings.outbox_bytes_max = 8_192);
    let users: Vec<String> = (0..1_000).map(|n| format!("user-{n:04}")).collect();
    let known: Vec<&str> = users.iter().step_by(2).map(String::as_str).collect();
    for some in known.chunks(60) {
        world.beat(0, some);
    }
    let alice = world.connect(0);
    let ask = serde_json::json!({ "watch": users }).to_string();
    world.post(alice, "/v1/stream", &ask);
    world.expect_hello(alice, 1_000);
    let received = world.received(alice);
    let parts: Vec<&str> = received.split_terminator("\n\n").collect();
    assert!(parts.len() > 10);
    let mut seen = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        assert!(part.len() < 8_192);
        let body = part
            .strip_prefix("event: snapshot\ndata: {\"presence\":[")
            .unwrap();
        let (records, id) = body.split_once("]}").unwrap();
        let last = at + 1 == parts.len();
        let expected = if last {
            format!("\nid: {START}")
        } else {
            String::new()
        };
        assert_eq!(id, expected);
        let records: Vec<serde_json::Value> =
            serde_json::from_str(&format!("[{records}]")).unwrap();
        seen.extend(
            records
                .iter()
                .map(|one| one["user"].as_str().unwrap().to_owned()),
        );
    }
    seen.sort();
    assert_eq!(seen, users, "each exactly once");
    assert_eq!(world.count(0, Counter::EventsSnapshot), parts.len() as u64);
}

#[test]
fn a_stream_behind_pipelined_answers_keeps_its_bound() {
    let mut world = World::with(1, |settings| settings.outbox_bytes_max = 2_048);
    let bob = world.connect(0);
    world.stall(bob);
    for _ in 0..12 {
        world.get(bob, "/v1/presence/x");
    }
    world.get(bob, "/v1/stream?watch=x").turn();
    world.read(bob, 1).read(bob, None);
    let received = world.received(bob);
    let (answers, stream) = received.split_at(12 * super::harness::json(&unseen("x")).len());
    assert_eq!(answers, super::harness::json(&unseen("x")).repeat(12));
    assert!(stream.ends_with(&snapshot(0, &[unseen("x")])), "{stream}");
}

/// Who speaks HTTP/1.1 gets chunks, one a write, so that no reader on the way waits for more.
#[test]
fn a_stream_goes_in_chunks_one_a_write() {
    let mut world = World::with(1, |settings| settings.drain_ms = 0);
    let (alice, _) = world.stream(0, "watch=a&watch=b", 2);
    world.received(alice);
    let (chunks, flushes) = (world.chunks(alice), world.count(0, Counter::Flushes));
    world.beat(0, &["a", "b"]);
    let both = told_of_many(&record("a", "online", 0, 0)) + &told(0, &record("b", "online", 0, 0));
    world.expect(alice, both);
    assert_eq!(
        (world.chunks(alice), world.count(0, Counter::Flushes)),
        (chunks + 1, flushes + 1)
    );
    world.drain().expect_whole(alice).expect_closed(alice);
}

/// HTTP/1.0 knows no chunks: the body ends with the connection.
#[test]
fn a_stream_of_http_1_0_goes_as_it_is() {
    let mut world = World::with(1, |settings| settings.drain_ms = 0);
    let old = world.connect(0);
    world.send(old, "GET /v1/stream?watch=a HTTP/1.0\r\n\r\n");
    let head = STREAM_HEAD.replace("Transfer-Encoding: chunked\r\n", "");
    world.expect_hello_behind(&head, old, 1);
    world.expect(old, snapshot(0, &[unseen("a")]));
    world.beat(0, &["a"]);
    world.expect(old, told(0, &record("a", "online", 0, 0)));
    world.drain().turn();
    let goodbye = world.received(old);
    assert!(
        goodbye.ends_with("{\"reason\":\"draining\"}\n\n"),
        "{goodbye}"
    );
    world.expect_closed(old);
    assert_eq!(world.chunks(old), 0);
}

/// What gateways, cache-busters and readers add is passed over and named, so that a misspelling is
/// still seen.
#[test]
fn parameters_that_nobody_knows_are_passed_over_and_named() {
    let mut world = World::new(1);
    let ask = "{\"watch\":[\"a\"]}";
    for (target, named) in [
        ("/v1/stream?watch=a&_=1764009600123", "[\"_\"]"),
        ("/v1/stream?wacth=b&watch=a&wacth=c&x", "[\"wacth\",\"x\"]"),
        ("/v1/stream?%zz=b&watch=a&y=%", "[\"%zz\",\"y\"]"),
    ] {
        let alice = world.connect(0);
        world.get(alice, target);
        let received = world.received(alice);
        assert!(received.contains("\"watching\":1,"), "{received}");
        let expected = format!(",\"ignored\":{named}}}\n\n");
        assert!(received.contains(&expected), "{received}");
    }
    let posted = world.connect(0);
    world.post(posted, "/v1/stream?watch=b&token=1", ask);
    let received = world.received(posted);
    assert!(
        received.contains(",\"ignored\":[\"watch\",\"token\"]}\n\n"),
        "{received}"
    );
    let asker = world.connect(0);
    world.get(asker, "/v1/presence?_=17&user=x");
    let expected = format!("{{\"presence\":[{}],\"ignored\":[\"_\"]}}", unseen("x"));
    world.expect(asker, json(&expected));
}
