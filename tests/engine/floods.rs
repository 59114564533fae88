//! Datagrams without end: whoever else has something to do or to hear waits for a slice of them,
//! and they have all the time that nobody else wants. Time is made up: each call of datagrams takes
//! 250 us of a turn's 10 ms, and nothing else any.

use greendot::metrics::Counter;

use super::harness::{NO_CONTENT, Peer, World, posted, record, request, told};

const CALL_MICROS: u64 = 250;
/// What 30 % of a turn are.
const SHARE: usize = 12;

/// A stream that watches bob, somebody who asks, and a flood of datagrams of no key of ours.
fn world() -> (World, Peer, Peer) {
    let mut world = World::with(1, |settings| settings.turn_ms_max = 10);
    world.make_slots(1);
    let (stream, _) = world.stream(0, "watch=bob", 1);
    world.turn().received(stream);
    let asker = world.connect(0);
    world.flood(b"no key of ours", 64, CALL_MICROS);
    (world, stream, asker)
}

fn beat() -> String {
    posted("/v1/beat", r#"{"users":["bob"]}"#)
}

#[test]
fn a_flood_has_the_time_that_nobody_else_wants() {
    let (mut world, ..) = world();
    for turn in 1..=3 {
        assert!(world.turn_of(0), "the next turn begins at once");
        assert_eq!(world.pieces("beats"), SHARE);
        let received = world.count(0, Counter::DatagramsReceived);
        assert_eq!(received, (turn * SHARE * 64) as u64);
        assert_eq!(world.count(0, Counter::LimitBeatsPerTurn), turn as u64);
    }
}

#[test]
fn a_flood_ends_for_this_turn_when_somebody_comes() {
    let (mut world, stream, asker) = world();
    world.turn_of(0);
    for (nth, after) in [1, 5, SHARE - 1].into_iter().enumerate() {
        let (path, status) = [("/v1/beat", "online"), ("/v1/leave", "offline")][nth % 2];
        let call = posted(path, r#"{"users":["bob"]}"#);
        world.send_meanwhile(after, asker, &call);
        assert!(world.turn_of(0), "there are more datagrams");
        assert_eq!(world.pieces("beats"), after);
        // Asked, decided, answered and told in that turn.
        assert_eq!(world.taken(asker), NO_CONTENT);
        assert!(world.taken(stream).contains(status));
    }
    let hits = world.count(0, Counter::LimitBeatsPerTurn);
    assert_eq!(hits, 1, "of the first turn: to give way is no limit");
}

#[test]
fn who_waits_already_waits_for_one_call() {
    let (mut world, stream, asker) = world();
    world.whisper(asker, &beat()).turn_of(0);
    assert_eq!(world.pieces("beats"), 1);
    assert_eq!(world.taken(asker), NO_CONTENT);
    let online = told(world.ms(), &record("bob", "online", world.ms(), world.ms()));
    assert_eq!(world.taken(stream), online);
}

#[test]
fn who_is_to_be_told_of_what_a_datagram_says_waits_for_no_other() {
    let (mut world, stream, _) = world();
    let bob = world.sealed(&["bob"], world.now().unix, false);
    world.flood(&bob, 64, CALL_MICROS).turn_of(0);
    assert_eq!(world.pieces("beats"), 1);
    let online = told(world.ms(), &record("bob", "online", world.ms(), world.ms()));
    assert_eq!(world.taken(stream), online);
    world.turn_of(0);
    assert_eq!(
        world.pieces("beats"),
        SHARE,
        "there is no news in the others"
    );
}

#[test]
fn beats_beside_others_have_the_share_of_a_full_turn() {
    let (mut world, _, asker) = world();
    let livez = request("GET", "/livez");
    // How long a turn's only read takes, and how often datagrams are received in the next one.
    // Three parts of ten are theirs: 3/7 of what others take.
    for (micros, calls) in [(0, 1), (500, 1), (700, 2), (2_400, 5), (20_000, SHARE)] {
        world.reads_take(micros);
        for _ in 0..2 {
            world.whisper(asker, &livez).turn_of(0);
        }
        assert_eq!(world.pieces("beats"), calls, "{micros} us");
        assert_eq!(world.taken(asker).matches("HTTP/1.1 200 OK").count(), 2);
    }
}

#[test]
fn a_few_datagrams_are_read_to_their_end_whoever_waits() {
    let (mut world, _, asker) = world();
    world.flood(b"no key of ours", 64, 20);
    world.whisper(asker, &beat()).turn_of(0);
    // A look costs a call of the kernel: none is made in the first hundredth of a turn.
    assert_eq!(world.pieces("beats"), 5);
}
