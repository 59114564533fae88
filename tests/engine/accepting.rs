//! Where no descriptor is free: who is refused, in which words, and who waits.

use greendot::metrics::Counter;

use super::harness::{Peer, World, json, request, unseen};

const LATER: &str = "HTTP/1.1 200 OK\r\n";
const REFUSED: &str = "HTTP/1.1 503 Service Unavailable\r\n";
const STREAM: &str = "GET /v1/stream?user=a HTTP/1.1\r\nHost: a\r\n\r\n";
/// Time that a connection has to say what it asks for.
const HEARING_MS: u64 = 100;

fn full() -> World {
    let mut world = World::new(1);
    world.fill_up(true);
    world
}

#[track_caller]
fn refused(world: &mut World, peer: Peer, status: &str) {
    world.has_received(peer, status);
    assert!(world.is_closed(peer));
}

#[test]
fn who_has_asked_is_refused_at_once() {
    let mut world = full();
    let asker = world.knock(0, &request("GET", "/livez"));
    refused(&mut world, asker, REFUSED);
    // The next attempt comes after a pause, however many knock.
    let stream = world.knock(0, STREAM);
    world.at(HEARING_MS - 1).expect_nothing(stream);
    world.at(HEARING_MS);
    refused(&mut world, stream, LATER);
    world.has_received(stream, "event: overloaded\nretry: ");
    world.has_received(stream, "data: {\"reason\":\"nofile\"}\n\n");
    assert_eq!(world.count(0, Counter::LimitFileDescriptors), 2);
}

#[test]
fn many_are_refused_in_one_pause() {
    let mut world = full();
    world.knock(0, &request("GET", "/livez"));
    let peers: Vec<_> = (0..40).map(|_| world.knock(0, STREAM)).collect();
    world.at(HEARING_MS);
    for peer in &peers[..32] {
        refused(&mut world, *peer, LATER);
    }
    for peer in &peers[32..] {
        assert!(!world.is_closed(*peer));
    }
    // A descriptor is free again: who still waits is served.
    world.fill_up(false).at(2 * HEARING_MS);
    for peer in &peers[32..] {
        world.has_received(*peer, "event: hello");
    }
}

#[test]
fn who_has_not_asked_yet_is_heard_first() {
    let mut world = full();
    let slow = world.knock(0, "");
    let next = world.knock(0, &request("GET", "/livez"));
    world.turn();
    assert!(!world.is_closed(slow) && !world.is_closed(next));
    world.send(slow, "GET /v1/str");
    assert!(!world.is_closed(slow), "it may still be one or the other");
    world.send(slow, "eam?user=a HTTP/1.1\r\nHost: a\r\n\r\n");
    refused(&mut world, slow, LATER);
    world.at(HEARING_MS);
    refused(&mut world, next, REFUSED);
}

#[test]
fn who_never_ends_its_head_or_says_nothing_is_refused_in_the_end() {
    for (sent, status) in [("", REFUSED), ("GET /v1/stream?user=a HTTP/1.1\r\n", LATER)] {
        let mut world = full();
        let endless = world.knock(0, sent);
        world.at(HEARING_MS - 1).expect_nothing(endless);
        world.at(HEARING_MS);
        refused(&mut world, endless, status);
    }
}

#[test]
fn who_goes_away_unheard_holds_nobody_up() {
    let mut world = full();
    let gone = world.knock(0, "");
    let next = world.knock(0, &request("GET", "/livez"));
    world.shut(gone);
    assert!(world.is_closed(gone));
    world.at(HEARING_MS);
    refused(&mut world, next, REFUSED);
}

#[test]
fn a_shard_that_is_full_serves_those_it_has_and_does_not_spin() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    world.fill_up(true).knock(0, "");
    for ms in (1_000..10_000).step_by(1_000) {
        world.at(ms).get(bob, "/v1/presence/x");
        world.expect(bob, json(&unseen("x")));
    }
    // Once for the one that came, and once to see that it was the only one.
    assert_eq!(world.count(0, Counter::LimitFileDescriptors), 2);
}

#[test]
fn a_listener_that_closes_refuses_the_one_that_has_not_asked() {
    let mut world = full();
    let silent = world.knock(0, "");
    world.drain().close().turn();
    refused(&mut world, silent, REFUSED);
}
