//! Resuming a stream: only what changed since, or everything when that cannot be known.

use greendot::metrics::Counter;

use super::harness::{Peer, START, World, record, snapshot, unseen};

/// A world at 100 s in which a changed at 10 s and b at 90 s; and nobody has seen n.
fn world() -> World {
    let mut world = World::new(1);
    world.at(10_000).beat(0, &["a"]);
    world.at(30_000).beat(0, &["a"]);
    world.at(50_000).beat(0, &["a"]);
    world.at(70_000).beat(0, &["a"]);
    world.at(90_000).beat(0, &["a", "b"]);
    world.at(100_000);
    world
}

fn resumed(world: &mut World, id: &str, header: Option<&str>) -> Peer {
    let peer = world.connect(0);
    let header = header.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
    world.send(
        peer,
        format!("GET /v1/stream?watch=a&watch=b&watch=n{id} HTTP/1.1\r\nHost: a\r\n{header}\r\n"),
    );
    world.expect_hello(peer, 3);
    peer
}

fn a() -> String {
    record("a", "online", 10_000, 90_000)
}

fn b() -> String {
    record("b", "online", 90_000, 90_000)
}

#[test]
fn only_what_changed_since() {
    let mut world = world();
    let since = |ms: u64| (START + ms).to_string();
    for ms in [30_000, 99_999] {
        let by_header = resumed(&mut world, "", Some(&since(ms)));
        world.expect(by_header, snapshot(100_000, &[b()]));
        let by_query = resumed(&mut world, &format!("&last_event_id={}", since(ms)), None);
        world.expect(by_query, snapshot(100_000, &[b()]));
    }
    // The slack: mail between shards, and clocks between nodes, may be 10 s late.
    let slack = resumed(&mut world, "", Some(&since(19_999)));
    world.expect(slack, snapshot(100_000, &[a(), b()]));
    let none = resumed(&mut world, "", Some(&since(20_000)));
    world.expect(none, snapshot(100_000, &[b()]));
    let both = resumed(
        &mut world,
        &format!("&last_event_id={START}"),
        Some(&since(30_000)),
    );
    world.expect(both, snapshot(100_000, &[b()]));
    let post = world.connect(0);
    let ask = format!(
        "{{\"watch\":[\"a\",\"b\",\"n\"],\"last_event_id\":\"{}\"}}",
        since(30_000)
    );
    world.post(post, "/v1/stream", &ask);
    world.expect_hello(post, 3);
    world.expect(post, snapshot(100_000, &[b()]));
    assert_eq!(world.count(0, Counter::ResumesPartial), 8);
    assert_eq!(world.count(0, Counter::ResumesFull), 0);
}

#[test]
fn everything_when_the_id_says_nothing() {
    let mut world = world();
    let ids = [
        (START + 101_001).to_string(),
        (START - 1).to_string(),
        "0".to_owned(),
        "18446744073709551615".to_owned(),
        "99999999999999999999999".to_owned(),
        "-5".to_owned(),
        "yesterday".to_owned(),
    ];
    for id in &ids {
        let peer = resumed(&mut world, "", Some(id));
        world.expect(peer, snapshot(100_000, &[a(), b(), unseen("n")]));
        let peer = resumed(&mut world, &format!("&last_event_id={id}"), None);
        world.expect(peer, snapshot(100_000, &[a(), b(), unseen("n")]));
    }
    assert_eq!(world.count(0, Counter::ResumesFull), 2 * ids.len() as u64);
    let reasons = [
        (Counter::ResumeRefusedFuture, 2),
        (Counter::ResumeRefusedBeforeStore, 2),
        (Counter::ResumeRefusedUnreadable, 3),
        (Counter::ResumeRefusedAmbiguous, 0),
    ];
    for (reason, count) in reasons {
        assert_eq!(world.count(0, reason), 2 * count, "{reason:?}");
    }
    let fresh = resumed(&mut world, "", None);
    world.expect(fresh, snapshot(100_000, &[a(), b(), unseen("n")]));
    assert_eq!(world.count(0, Counter::ResumesFull), 2 * ids.len() as u64);
}

#[test]
fn times_lived_through_twice_say_nothing() {
    let mut world = world();
    world.step_wall(-60_000).turn();
    let resumed = |world: &mut World| {
        let peer = world.connect(0);
        let id = START + 70_000;
        world.send(
            peer,
            format!("GET /v1/stream?watch=n HTTP/1.1\r\nHost: a\r\nLast-Event-ID: {id}\r\n\r\n"),
        );
        world.expect_hello(peer, 1);
        peer
    };
    let early = resumed(&mut world);
    world.expect(early, snapshot(40_000, &[unseen("n")]));
    assert_eq!(world.count(0, Counter::ResumeRefusedFuture), 1);
    // Once the clock has come there again.
    world.at(135_000);
    let again = resumed(&mut world);
    world.expect(again, snapshot(75_000, &[unseen("n")]));
    assert_eq!(world.count(0, Counter::ResumeRefusedAmbiguous), 1);
}

#[test]
fn a_restart_does_not_end_what_can_be_resumed() {
    let mut world = world();
    world.restart(5_000);
    let peer = resumed(&mut world, "", Some(&(START + 95_000).to_string()));
    world.expect(peer, snapshot(105_000, &[b()]));
}

/// Readers that can not set a header add a parameter, each by its own name, to a URL that may have
/// one already.
#[test]
fn an_id_is_understood_by_every_name_that_readers_give_it() {
    let mut world = world();
    let since = |ms: u64| (START + ms).to_string();
    let (old, new) = (since(0), since(30_000));
    for query in [
        format!("&lastEventId={new}"),
        format!("&Last-Event-ID={new}"),
        format!("&last_event_id={old}&lastEventId={new}"),
        format!("&lastEventId={new}&last_event_id={old}"),
        format!("&lastEventId={old}&lastEventId={new}"),
        format!("&last_event_id={old}&last_event_id={new}"),
    ] {
        let peer = resumed(&mut world, &query, None);
        world.expect(peer, snapshot(100_000, &[b()]));
    }
    // One that can not be read resumes nothing; the header goes before all.
    let torn = resumed(&mut world, "&lastEventId=%zz", None);
    world.expect(torn, snapshot(100_000, &[a(), b(), unseen("n")]));
    let header = resumed(&mut world, &format!("&lastEventId={old}"), Some(&new));
    world.expect(header, snapshot(100_000, &[b()]));
    // A reader that posts its list adds to the query all the same.
    let post = world.connect(0);
    let ask = format!("{{\"watch\":[\"a\",\"b\"],\"last_event_id\":\"{old}\"}}");
    world.post(post, &format!("/v1/stream?lastEventId={new}"), &ask);
    world.expect_hello(post, 2);
    world.expect(post, snapshot(100_000, &[b()]));
}
