//! What one peer makes a shard do keeps no other waiting: work is done in slices, and a turn ends
//! in time. Work is counted, not timed.

use greendot::metrics::Counter;

use super::harness::{NO_CONTENT, Peer, World, posted, record, request};

/// Watches that a slice marks or ends here.
const SLICE: u64 = 64;

fn world() -> World {
    let mut world = World::with(1, |settings| {
        settings.work_per_slice_max = SLICE as usize;
        settings.watches_per_stream_max = 2_000;
        settings.query_users_max = 2_000;
    });
    world.checks = false;
    world
}

fn names(n: usize) -> Vec<String> {
    (0..n).map(|n| format!("u{n:04}")).collect()
}

/// Streams that watch all of them and have read their snapshots.
fn readers(world: &mut World, streams: usize, users: &[String]) -> Vec<Peer> {
    let ask = serde_json::json!({ "watch": users }).to_string();
    let peers: Vec<Peer> = (0..streams).map(|_| world.connect(0)).collect();
    for peer in &peers {
        world.post(*peer, "/v1/stream", &ask);
        world.received(*peer);
    }
    peers
}

/// A beat for some users, in more bytes than are served where they are read.
fn long_beat(of: &str) -> String {
    let users: Vec<String> = (0..20).map(|n| format!("{of}{n}")).collect();
    posted(
        "/v1/beat",
        &serde_json::json!({ "users": users }).to_string(),
    )
}

#[test]
fn a_short_request_is_answered_at_once_however_many_long_ones_wait() {
    const PEERS: usize = 10;
    const EACH: usize = 5;
    let mut world = world();
    let peers: Vec<Peer> = (0..PEERS).map(|_| world.connect(0)).collect();
    let asker = world.connect(0);
    // From here on each turn has time for one slice of each step.
    world.slow_down(20_000);
    for (n, peer) in peers.iter().enumerate() {
        world.send(*peer, long_beat(&format!("p{n}-")).repeat(EACH));
    }
    let mut served = 0;
    for turn in 0..2 * PEERS {
        world.turn_of(0);
        assert!(world.pieces("request") <= 1, "turn {turn}");
        served += world.pieces("request");
    }
    assert_eq!(
        served, PEERS,
        "a turn that timers made late leaves them to the next"
    );
    world.whisper(asker, &request("GET", "/livez"));
    world.turn_of(0);
    assert_eq!(world.pieces("bytes"), 1);
    served += world.pieces("request");
    assert!(world.received_bytes(asker) > 0, "answered in that turn");
    loop {
        let more = world.turn_of(0);
        assert!(world.pieces("request") <= 1);
        served += world.pieces("request");
        if !more {
            break;
        }
    }
    assert_eq!(served, PEERS * EACH);
    assert_eq!(
        world.count(0, Counter::RequestsDeferred),
        (PEERS * EACH) as u64
    );
    for peer in &peers {
        world.expect(*peer, NO_CONTENT.repeat(EACH));
    }
    world.engine(0).check_invariants();
}

#[test]
fn no_long_request_is_begun_before_the_answers_of_others_are_on_their_way() {
    let mut world = world();
    let peers: Vec<Peer> = (0..200).map(|_| world.connect(0)).collect();
    for peer in &peers {
        world.send(*peer, request("GET", "/metrics"));
    }
    world.turn_of(0);
    // 32 answers wait to be written when the 33rd is begun, none when the next turn begins.
    assert_eq!((world.pieces("request"), world.pieces("flush")), (33, 33));
    while world.turn_of(0) {}
    for peer in &peers {
        assert!(world.received(*peer).starts_with("HTTP/1.1 200 OK\r\n"));
    }
}

/// What a burst of requests takes of the heap is a few answers, however many come at once.
#[test]
fn few_answers_wait_to_be_written_when_another_request_is_read() {
    let mut world = world();
    let peers: Vec<Peer> = (0..200).map(|_| world.connect(0)).collect();
    let reader = world.connect(0);
    for peer in &peers {
        world.whisper(*peer, &request("GET", "/v1/stream?watch=bob"));
    }
    for left in [168, 136, 104, 72, 40, 8] {
        assert!(world.turn_of(0), "the next turn begins at once");
        assert_eq!((world.pieces("bytes"), world.pieces("flush")), (32, 32));
        let waits = peers
            .iter()
            .filter(|peer| world.received_bytes(**peer) == 0);
        assert_eq!(waits.count(), left);
    }
    assert_eq!(world.count(0, Counter::LimitReadsPerTurn), 6);
    while world.turn_of(0) {}
    // Who has nothing to say yet, and who is told something by others, are no answers.
    world.send(reader, "GET ");
    world.beat(0, &["bob"]);
    for peer in &peers {
        let received = world.received(*peer);
        assert_eq!(received.matches("event: hello").count(), 1);
        assert!(received.contains("\"status\":\"online\""), "{received}");
    }
}

#[test]
fn a_long_request_waits_for_its_slice_whatever_its_peer_does_meanwhile() {
    let mut world = world();
    let [half_closed, gone, chunked, more, late] = [(); 5].map(|()| world.connect(0));
    world.slow_down(20_000);
    world.send(half_closed, long_beat("a")).shut(half_closed);
    world.send(gone, long_beat("b"));
    let body = long_beat("c")
        .split_once("\r\n\r\n")
        .expect("a body")
        .1
        .to_owned();
    let head = "POST /v1/beat HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    let (first, rest) = body.split_at(9);
    world.send(
        chunked,
        format!("{head}9\r\n{first}\r\n{:x}\r\n{rest}\r\n", rest.len()),
    );
    world.send(chunked, "0\r\n\r\n".to_owned() + &request("GET", "/livez"));
    world.send(more, long_beat("d"));
    world.send(late, long_beat("e"));
    world.turn_of(0);
    world.reset(gone);
    world.send(more, long_beat("d") + &request("GET", "/livez"));
    while world.turn_of(0) {}
    world
        .expect(half_closed, NO_CONTENT)
        .expect_closed(half_closed);
    let live = |received: &str| received.contains("HTTP/1.1 200 OK\r\n");
    let received = world.received(chunked);
    assert!(
        received.starts_with(NO_CONTENT) && live(&received),
        "{received}"
    );
    let received = world.received(more);
    assert!(
        received.starts_with(&NO_CONTENT.repeat(2)) && live(&received),
        "{received}"
    );
    world.expect(late, NO_CONTENT);
    world.engine(0).check_invariants();
    let online = |world: &mut World, user| world.ask(0, user).contains("online");
    assert!(
        ["a0", "c19", "d0", "e19"]
            .iter()
            .all(|user| online(&mut world, user))
    );
}

#[test]
fn a_first_beat_for_many_whom_many_watch_is_told_in_slices() {
    const USERS: usize = 500;
    const STREAMS: usize = 20;
    let mut world = world();
    let users = names(USERS);
    let peers = readers(&mut world, STREAMS, &users);
    let asker = world.connect(0);
    let body = serde_json::json!({ "users": users }).to_string();
    // From here on each turn has time for one slice of each step.
    world.slow_down(20_000);
    world.send(asker, posted("/v1/beat", &body));
    let mut turns = 0;
    let mut done = world.engine(0).work_done();
    while world.turn_of(0) {
        let before = std::mem::replace(&mut done, world.engine(0).work_done());
        // A slice, and the watchers of one slot, of whom a few are visited at once.
        assert!(done - before <= SLICE + STREAMS as u64 + 1, "turn {turns}");
        assert!(world.pieces("work") <= 1 && world.pieces("flush") <= 32);
        turns += 1;
        assert!(turns < 10_000);
    }
    world.engine(0).check_invariants();
    assert!(turns >= (USERS * STREAMS) as u64 / (SLICE + 21), "{turns}");
    world.expect(asker, NO_CONTENT);
    for peer in &peers {
        let received = world.received(*peer);
        for user in &users {
            let online = record(user, "online", 0, 0);
            assert_eq!(received.matches(&online).count(), 1, "{user}");
        }
    }
    assert_eq!(world.count(0, Counter::Marks), (USERS * STREAMS) as u64);
    assert!(world.count(0, Counter::LimitWorkPerSlice) > 0);
    assert!(world.count(0, Counter::LimitTurnTime) > 0);
}

#[test]
fn the_watches_of_streams_that_end_are_ended_in_slices_and_their_places_kept_meanwhile() {
    const USERS: usize = 1_000;
    const STREAMS: usize = 10;
    let mut world = world();
    let users = names(USERS);
    let all: Vec<&str> = users.iter().map(String::as_str).collect();
    for some in all.chunks(100) {
        world.beat(0, some);
    }
    let peers = readers(&mut world, STREAMS, &users);
    world.slow_down(20_000);
    for peer in &peers {
        world.reset(*peer);
    }
    // One who comes now is found in nobody else's place.
    let newcomer = world.connect(0);
    world.get(newcomer, "/v1/stream?watch=u0007");
    let mut done = world.engine(0).work_done();
    let (mut turns, mut left) = (0, false);
    while world.turn_of(0) {
        let before = std::mem::replace(&mut done, world.engine(0).work_done());
        assert!(done - before <= SLICE, "turn {turns}");
        world.engine(0).check_invariants();
        if turns == 3 {
            world.leave(0, &["u0007", "u0900"]);
            left = true;
        }
        turns += 1;
        assert!(turns < 10_000);
    }
    assert!(left && turns >= (USERS * STREAMS) as u64 / SLICE, "{turns}");
    let received = world.received(newcomer);
    assert!(received.contains(&record("u0007", "offline", 0, 0)) || received.contains("u0007"));
    assert!(!received.contains("u0900"), "{received}");
    world.engine(0).check_invariants();
    assert_eq!(world.gauge(0, greendot::metrics::Gauge::WatchesBySlot), 1);
}

#[test]
fn a_turn_that_is_late_does_a_first_piece_of_each_kind() {
    let mut world = world();
    let askers: Vec<Peer> = (0..100).map(|_| world.connect(0)).collect();
    world.slow_down(20_000);
    for asker in &askers {
        // Told as an edge alone: nobody serves it outside of a turn.
        world.whisper(*asker, &request("GET", "/livez"));
    }
    let mut turns = 0;
    while world.turn_of(0) {
        assert!(world.pieces("bytes") <= 32);
        turns += 1;
    }
    assert!((3..=6).contains(&turns), "{turns}");
    for asker in &askers {
        assert!(world.received(*asker).contains("ok\n"));
    }
}

#[test]
fn metrics_are_rendered_once_a_turn() {
    let mut world = world();
    let asker = world.connect(0);
    let body = serde_json::json!({ "users": ["ann"] }).to_string();
    let metrics = request("GET", "/metrics");
    world.whisper(
        asker,
        &[&metrics[..], &posted("/v1/beat", &body), &metrics].concat(),
    );
    let received = world.received(asker);
    let users: Vec<&str> = received
        .lines()
        .filter(|line| line.starts_with("greendot_users "))
        .collect();
    assert_eq!(users, ["greendot_users 0", "greendot_users 0"]);
    world.send(asker, &metrics);
    assert!(world.received(asker).contains("\ngreendot_users 1\n"));
}

#[test]
fn a_list_beyond_its_limit_is_not_read_to_its_end() {
    let mut world = world();
    let asker = world.connect(0);
    // Behind one too many stands what is no JSON: nobody has looked.
    let mut users = names(2_001);
    users.push("\u{1}".into());
    let body = format!("{{\"users\":[\"{}\",!]}}", users.join("\",\""));
    world.send(asker, posted("/v1/beat", &body));
    let received = world.received(asker);
    assert!(
        received.contains("users names 2001 users or more; at most 2000"),
        "{received}"
    );
}
