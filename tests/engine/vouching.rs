//! A stream vouches for its holder, again and again, as long as it is open.

use greendot::metrics::Counter;

use super::harness::{START, World, status_and_slug};

/// When `user` was last vouched for.
fn last_active(world: &World, user: &str) -> u64 {
    let presence = world.presence();
    let user = greendot::wire::User::parse(user.as_bytes()).expect("a legal user");
    let slot = presence.lookup(user).expect("a slot");
    presence
        .state(slot, world.now())
        .last_active
        .expect("a beat")
        .ms()
        - START
}

#[test]
fn every_holder_is_vouched_for_while_the_table_grows() {
    let mut world = World::new(1);
    world.checks = false;
    let mut users: Vec<String> = Vec::new();
    for step in 0..400_u64 {
        world.at(step * 250);
        if step < 200 {
            for n in 0..5 {
                let user = format!("u{step}-{n}");
                world.stream(0, &format!("user={user}"), 0);
                users.push(user);
            }
        }
        for user in users.iter().step_by(7) {
            let age = world.ms() - last_active(&world, user);
            assert!(age <= 10_000 + 250, "{user} at {} ms: {age}", world.ms());
        }
    }
    assert_eq!(users.len(), 1_000);
    let beats = world.count(0, Counter::BeatsStream);
    world.at(200_000);
    let in_ten = (world.count(0, Counter::BeatsStream) - beats) as f64 / 10.025;
    assert!(
        (999.0..1_101.0).contains(&in_ten),
        "once an interval each: {in_ten}"
    );
    assert_eq!(world.count(0, Counter::TransitionsOffline), 0);
}

#[test]
fn nobody_is_vouched_for_after_the_close() {
    let mut world = World::new(2);
    let (reset, _) = world.stream(0, "user=a", 0);
    let (shut, _) = world.stream(1, "user=b", 0);
    let (stays, _) = world.stream(1, "user=c", 0);
    world.at(30_000).reset(reset).shut(shut).expect_closed(shut);
    let closed_at = ["a", "b"].map(|user| last_active(&world, user));
    world.at(54_000);
    assert_eq!(["a", "b"].map(|user| last_active(&world, user)), closed_at);
    assert!(closed_at.iter().all(|ms| (20_000..=30_000).contains(ms)));
    world.at(55_251);
    for user in ["a", "b"] {
        assert!(world.ask(0, user).contains("\"offline\""));
    }
    assert!(world.ask(0, "c").contains("\"online\""));
    // Another stream in the same place vouches for its own holder only.
    let (again, _) = world.stream(0, "", 0);
    world.at(80_000).expect_open(again).expect_open(stays);
    assert!(world.ask(1, "a").contains("\"offline\""));
}

#[test]
fn whoever_stays_when_a_crowd_goes_is_vouched_for_in_time() {
    let mut world = World::new(1);
    world.checks = false;
    let peers: Vec<_> = (0..2_000)
        .map(|n| world.stream(0, &format!("user=u{n}"), 0).0)
        .collect();
    world.at(15_000);
    for peer in &peers[100..] {
        world.reset(*peer);
    }
    for ms in (15_100..80_000).step_by(100) {
        world.at(ms);
        for n in (0..100).step_by(9) {
            let age = ms - last_active(&world, &format!("u{n}"));
            assert!(age <= 11_300, "u{n} at {ms} ms: {age}");
        }
    }
}

/// The posts of holders that answer each ping, in ms since the world began.
fn beat(world: &mut World, shard: usize, stream: &str) -> String {
    let peer = world.connect(shard);
    world.send(
        peer,
        format!(
            "POST /v1/stream/{stream}/beat HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\
             Connection: close\r\n\r\n"
        ),
    );
    world.received(peer)
}

const BEATEN: &str = "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";

/// A frozen page, or one behind a proxy that holds a dead socket: it reads, and says nothing.
#[test]
fn a_holder_that_beats_for_itself_and_answers_no_ping_is_offline_in_time() {
    for shards in [1, 2] {
        let mut world = World::new(shards);
        world.at(40_000);
        let (alice, _) = world.stream(0, "user=alice&vouch=self", 0);
        let mut pings = Vec::new();
        for ms in (40_000..=65_000).step_by(100) {
            world.at(ms);
            let received = world.received(alice);
            pings.extend(received.matches("event: ping").map(|_| ms));
        }
        assert!((2..=3).contains(&pings.len()), "{pings:?}");
        assert!(world.ask(0, "alice").contains("\"online\""));
        world.at(65_251);
        assert_eq!(last_active(&world, "alice"), 40_000);
        assert!(world.ask(0, "alice").contains("\"offline\""));
        world.expect_open(alice);
    }
}

#[test]
fn a_holder_that_answers_each_ping_on_any_shard_is_online() {
    let mut world = World::new(2);
    let (alice, stream) = world.stream(0, "user=alice&vouch=self&watch=bob", 1);
    let mut answered = 0;
    for ms in (0..120_000).step_by(100) {
        world.at(ms);
        // Other events put no ping off.
        if ms % 1_000 == 0 {
            let leave = ms % 2_000 == 0;
            world.datagram_of(1, &["bob"], world.now().unix, leave);
        }
        if world.received(alice).contains("event: ping\n") {
            assert_eq!(beat(&mut world, answered % 2, &stream), BEATEN);
            answered += 1;
            assert_eq!(last_active(&world, "alice"), ms);
        }
    }
    assert!((11..=12).contains(&answered), "{answered}");
    let from = |world: &mut World, counter| world.count(0, counter);
    assert_eq!(from(&mut world, Counter::BeatsHolder), answered as u64);
    // The opening's, and none of the platform's.
    assert_eq!(from(&mut world, Counter::BeatsStream), 1);
    assert_eq!(from(&mut world, Counter::EventsPing), answered as u64);
    assert!(world.ask(0, "alice").contains("\"online\""));
}

#[test]
fn a_beat_for_a_stream_that_is_gone_says_so() {
    let mut world = World::new(2);
    let (alice, stream) = world.stream(0, "user=alice&vouch=self", 0);
    let (_, bare) = world.stream(0, "watch=bob", 1);
    let (_, plain) = world.stream(1, "user=carol", 0);
    for shard in [0, 1] {
        // The holder of a plain stream may beat too.
        assert_eq!(beat(&mut world, shard, &plain), BEATEN);
        let answer = beat(&mut world, shard, &bare);
        let refused = ("HTTP/1.1 404 Not Found", "unknown-stream");
        assert_eq!(status_and_slug(&answer), refused, "nobody is the holder");
        let forged = stream.replacen("0.0.", "0.1.", 1);
        let answer = beat(&mut world, shard, &forged);
        assert_eq!(status_and_slug(&answer), refused, "made up");
    }
    world.reset(alice);
    for shard in [0, 1] {
        let answer = beat(&mut world, shard, &stream);
        let refused = ("HTTP/1.1 404 Not Found", "unknown-stream");
        assert_eq!(status_and_slug(&answer), refused, "ended");
    }
    let peer = world.connect(0);
    world.get(peer, "/v1/stream?user=a&vouch=me");
    let answer = world.received(peer);
    assert_eq!(
        status_and_slug(&answer),
        ("HTTP/1.1 400 Bad Request", "bad-query")
    );
}

/// Its reader is slow, and its outbox full: the ping waits for room, and comes.
#[test]
fn a_ping_waits_for_room_and_comes_once() {
    let mut world = World::with(1, |settings| settings.outbox_bytes_max = 2_048);
    let users: Vec<String> = (0..40).map(|n| format!("user-{n:02}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    world.beat(0, &users).turn();
    let query = format!("user=alice&vouch=self&watch={}", users.join("&watch="));
    let (alice, _) = world.stream(0, &query, 40);
    world.received(alice);
    world.stall(alice).at(500).leave(0, &users).at(24_000);
    world.expect_nothing(alice);
    let received = world.read(alice, None).received(alice);
    assert_eq!(received.matches("event: ping\n").count(), 1, "{received}");
    assert_eq!(received.matches("\"offline\"").count(), 40);
}

/// An open socket stands for its holder only while the kernel at the other end answers.
#[test]
fn a_peer_that_acknowledges_nothing_is_vouched_for_no_longer_than_its_silence_shows() {
    for busy in [false, true] {
        let mut world = World::new(1);
        let (gone, _) = world.stream(0, "user=gone&watch=bob", 1);
        world.at(47_000).received(gone);
        world.vanish(gone);
        for ms in (47_100..100_000).step_by(100) {
            world.at(ms);
            if busy && ms % 1_000 == 0 {
                let leave = ms % 2_000 == 0;
                world.datagram_of(0, &["bob"], world.now().unix, leave);
            }
        }
        let active = last_active(&world, "gone");
        // Something was last acknowledged at most a keep-alive period before it went.
        assert!(
            (37_000..=47_000 + 15_000 + 5_000).contains(&active),
            "{active}"
        );
        assert!(world.ask(0, "gone").contains("\"offline\""));
        assert!(world.count(0, Counter::LimitAck) >= 2);
        // Its network is back before the kernel has given it up.
        world.reappear(gone).at(110_100);
        assert!(world.ask(0, "gone").contains("\"online\""));
    }
}

/// What was written after a stall of ours is on its way, and what was acknowledged is long ago.
#[test]
fn our_own_silence_is_not_taken_for_a_peers() {
    let mut world = World::new(1);
    let peers: Vec<_> = (0..200)
        .map(|n| world.stream(0, &format!("user=u{n}"), 0).0)
        .collect();
    world.at(47_000).jump(60_000);
    // Acknowledgements take a second and a half.
    for peer in &peers {
        world.vanish(*peer);
    }
    world.turn().pass(2_500);
    for peer in &peers {
        world.reappear(*peer);
    }
    world.at(140_000);
    assert_eq!(world.count(0, Counter::LimitAck), 0);
    assert_eq!(world.count(0, Counter::TransitionsOffline), 0);
}

#[test]
fn a_stream_ends_after_the_longest_life_and_its_holder_stays_online() {
    let mut world = World::with(1, |settings| settings.stream_life_ms = 100_000);
    let mut ends = Vec::new();
    let mut peers: Vec<_> = (0..40)
        .map(|n| world.stream(0, &format!("user=u{n}&watch=u0"), 1).0)
        .collect();
    for ms in (0..=130_000).step_by(100) {
        world.at(ms);
        for (n, peer) in peers.iter_mut().enumerate() {
            let received = world.received(*peer);
            if !world.is_closed(*peer) {
                continue;
            }
            ends.push(ms);
            let (_, goodbye) = received
                .split_once("event: goodbye\nretry: ")
                .expect("a goodbye");
            let (retry, data) = goodbye.split_once('\n').expect("a line");
            let retry: u64 = retry.parse().expect("a number");
            assert!((100..=500).contains(&retry), "{retry}");
            assert_eq!(data, "data: {\"reason\":\"stream-life\"}\n\n");
            (*peer, _) = world.stream(0, &format!("user=u{n}&watch=u0"), 1);
        }
    }
    assert_eq!(ends.len(), 40);
    assert!(
        ends.iter().all(|ms| (80_000..=100_500).contains(ms)),
        "{ends:?}"
    );
    // Not all together, though they came together.
    let apart = ends.last().unwrap() - ends[0];
    assert!(apart >= 15_000, "{ends:?}");
    assert_eq!(world.count(0, Counter::ClosedLife), 40);
    assert_eq!(world.count(0, Counter::TransitionsOffline), 0);
}
