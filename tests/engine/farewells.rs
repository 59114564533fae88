//! Goodbyes in a split deployment: a presence node asks its real-time nodes before it believes one,
//! and a log-out ends streams at all of them.

use std::sync::Arc;

use greendot::engine::{HOLDERS_MS_MAX, Held, Holders, LoggedOut, Mail, Outbound, Role};
use greendot::metrics::Counter;
use greendot::time::Unix;
use greendot::wire::beat::{Keys, open};
use greendot::wire::nodes::Nodes;

use super::forget::erase;
use super::harness::{NO_CONTENT, Peer, START, World, json};

/// A presence node with two real-time nodes, and bob online.
fn presence(shards: u16) -> World {
    let mut world = World::of_presence(shards, 2);
    world.beat(0, &["bob"]).turn();
    world.outbound();
    world
}

fn is_online(world: &mut World) -> bool {
    world.ask(0, "bob").contains("\"status\":\"online\"")
}

/// What is asked of the real-time nodes now.
fn asked(world: &mut World) -> Vec<Arc<Holders>> {
    let holders = |(_, outbound)| match outbound {
        Outbound::Holders(holders) => Some(holders),
        _ => None,
    };
    world.outbound().into_iter().filter_map(holders).collect()
}

/// One real-time node answers the same to all that was asked.
fn answer(world: &mut World, asked: &[Arc<Holders>], is_held: bool) {
    for holders in asked {
        let answers = holders.asks.iter().map(|(id, _)| (*id, is_held)).collect();
        let shard = holders.shard;
        world.tell_all(&Mail::Holders(Arc::new(Held { shard, answers })));
    }
}

#[test]
fn a_goodbye_is_believed_when_all_real_time_nodes_have_said_that_no_stream_is_open() {
    for shards in [1, 2] {
        let mut world = presence(shards);
        world.at(1_000).leave(0, &["bob"]);
        let asked = asked(&mut world);
        let users: Vec<_> = asked.iter().flat_map(|holders| &holders.asks).collect();
        assert_eq!(users.len(), 1, "{users:?}");
        assert_eq!(&*users[0].1, "bob");
        assert!(is_online(&mut world), "nobody has answered");
        answer(&mut world, &asked, false);
        assert!(is_online(&mut world), "one has not");
        world.at(1_030);
        answer(&mut world, &asked, false);
        assert!(!is_online(&mut world));
        // It counts when it is believed, as going invisible does.
        let said = format!("\"last_active\":{}", START + 1_030);
        assert!(world.ask(0, "bob").contains(&said));
    }
}

#[test]
fn a_goodbye_is_another_devices_where_a_stream_is_open() {
    let mut world = presence(1);
    world.at(1_000).leave(0, &["bob"]);
    let questions = asked(&mut world);
    answer(&mut world, &questions, false);
    answer(&mut world, &questions, true);
    world.at(1_000 + 2 * HOLDERS_MS_MAX);
    assert!(is_online(&mut world));
    assert_eq!(world.count(0, Counter::LeavesHeld), 1);
    assert_eq!(world.count(0, Counter::LeavesUnanswered), 0);
}

#[test]
fn a_real_time_node_that_is_silent_is_waited_for_two_seconds() {
    let mut world = presence(2);
    world.at(1_000).leave(0, &["bob"]);
    let asked = asked(&mut world);
    answer(&mut world, &asked, false);
    world.at(1_000 + HOLDERS_MS_MAX - 1);
    assert!(is_online(&mut world));
    world.at(1_000 + HOLDERS_MS_MAX);
    assert!(!is_online(&mut world));
    let unanswered = world.count(0, Counter::LeavesUnanswered);
    assert_eq!(unanswered + world.count(1, Counter::LeavesUnanswered), 1);
}

/// The order of what is sent is kept while answers are awaited.
#[test]
fn a_beat_behind_a_goodbye_undoes_it_while_answers_are_awaited_and_one_before_it_does_not() {
    for (beat_at, online) in [(1_000, true), (1_020, true), (950, false)] {
        let mut world = presence(1);
        world.at(1_000).leave(0, &["bob"]);
        let asked = asked(&mut world);
        world.at(1_050);
        let sent_at = Unix::from_ms(START + beat_at);
        world.datagram_of(0, &["bob"], sent_at, false);
        answer(&mut world, &asked, false);
        answer(&mut world, &asked, false);
        assert_eq!(is_online(&mut world), online, "{beat_at}");
    }
}

#[test]
fn a_goodbye_over_http_is_answered_when_it_is_decided() {
    for is_held in [false, true] {
        let mut world = presence(2);
        let page = world.connect(1);
        world.at(1_000);
        world.post(page, "/v1/leave", r#"{"users":["bob"]}"#);
        let asked = asked(&mut world);
        world.expect_nothing(page);
        answer(&mut world, &asked, is_held);
        answer(&mut world, &asked, is_held);
        world.expect(page, NO_CONTENT);
        assert_eq!(is_online(&mut world), is_held);
    }
    // Also of whom nobody knows any more then.
    let mut world = presence(1);
    let page = world.connect(0);
    world.post(page, "/v1/leave", r#"{"users":["bob"]}"#);
    let questions = asked(&mut world);
    erase(&mut world, 0, "bob");
    answer(&mut world, &questions, false);
    answer(&mut world, &questions, false);
    world.expect(page, NO_CONTENT);
    // However long it takes.
    let mut world = presence(1);
    let page = world.connect(0);
    world.post(page, "/v1/leave", r#"{"users":["bob"]}"#);
    world.at(HOLDERS_MS_MAX);
    world.expect(page, NO_CONTENT);
    assert!(!is_online(&mut world));
}

#[test]
fn a_goodbye_that_was_put_off_is_asked_about_when_it_is_due() {
    for is_held in [false, true] {
        let mut world = presence(1);
        let page = world.connect(0);
        world.post(page, "/v1/leave", r#"{"users":["bob"],"after_ms":3000}"#);
        world.expect(page, NO_CONTENT);
        world.at(2_999);
        assert!(asked(&mut world).is_empty());
        world.at(3_000);
        let asked = asked(&mut world);
        assert_eq!(asked.len(), 1);
        answer(&mut world, &asked, is_held);
        answer(&mut world, &asked, is_held);
        assert_eq!(is_online(&mut world), is_held);
    }
}

#[test]
fn no_more_goodbyes_wait_than_may() {
    let mut world = World::of_presence(1, 1);
    let max = world.settings.leaves_put_off_max;
    let names: Vec<String> = (0..=max).map(|n| format!("u{n}")).collect();
    for users in names.chunks(50) {
        let users: Vec<&str> = users.iter().map(String::as_str).collect();
        world.beat(0, &users);
    }
    world.turn();
    for users in names.chunks(50) {
        let users: Vec<&str> = users.iter().map(String::as_str).collect();
        world.leave(0, &users);
    }
    let asks: usize = asked(&mut world).iter().map(|all| all.asks.len()).sum();
    assert_eq!(asks, max);
    assert_eq!(world.count(0, Counter::LimitLeavesPutOff), 1);
}

fn realtime() -> World {
    let nodes = Nodes::new(["10.0.0.1:8081"]);
    let mut world = World::of_role(2, Role::Realtime(Arc::new(nodes)), 10_000);
    world.followed = true;
    world.hear();
    world
}

/// A presence node's request, with the fleet's token.
fn told(world: &mut World, path: &str, body: &str) -> String {
    let token = world.key().service_token();
    let length = body.len();
    let node = world.connect(0);
    world.send(
        node,
        format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Type: \
             application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        ),
    );
    world.received(node)
}

#[test]
fn a_real_time_node_says_of_whom_a_stream_is_open() {
    let mut world = realtime();
    let (bob, _) = world.stream(1, "user=bob", 0);
    world.stream(0, "user=carol&vouch=self", 0);
    let held = |world: &mut World| {
        let body = r#"{"users":["eve","bob","","carol"]}"#;
        told(world, "/v1/streams/held", body)
    };
    assert_eq!(held(&mut world), json(r#"{"held":[1,3]}"#));
    world.reset(bob);
    assert_eq!(held(&mut world), json(r#"{"held":[3]}"#));
    // Who beats for herself and is silent may be gone.
    world.pass(40_000);
    assert_eq!(held(&mut world), json(r#"{"held":[]}"#));
}

/// Whom a log-out at this node is told of, and when it was said.
fn log_outs(world: &mut World) -> Vec<LoggedOut> {
    let logged_out = |(_, outbound)| match outbound {
        Outbound::LogOut { logged_out, .. } => Some(logged_out),
        _ => None,
    };
    world
        .outbound()
        .into_iter()
        .filter_map(logged_out)
        .collect()
}

#[track_caller]
fn is_told_bye(world: &mut World, stream: Peer) -> bool {
    world.turn();
    let received = world.received(stream);
    let bye = received.contains("event: bye\nid: bye\n");
    assert_eq!(bye, world.is_closed(stream), "{received}");
    bye
}

#[test]
fn a_log_out_at_a_real_time_node_ends_streams_there_and_is_told_to_the_presence_node() {
    let mut world = realtime();
    let (bob, _) = world.stream(1, "user=bob", 0);
    world.at(1_000);
    let page = world.connect(0);
    world.post(
        page,
        "/v1/leave",
        r#"{"users":["bob","eve"],"everywhere":true}"#,
    );
    world.expect(page, NO_CONTENT);
    assert!(is_told_bye(&mut world, bob));
    let users = vec!["bob".into(), "eve".into()];
    let at = Unix::from_ms(START + 1_000);
    assert_eq!(log_outs(&mut world), [LoggedOut { users, at }]);
}

/// A log-out that was said elsewhere ends what was open then, and nobody who has logged in since.
#[test]
fn a_log_out_elsewhere_spares_who_has_logged_in_since() {
    let mut world = realtime();
    let (before, _) = world.stream(0, "user=bob", 0);
    world.at(1_000);
    world.hear();
    let (since, _) = world.stream(1, "user=bob", 0);
    world.at(1_200);
    let body = format!(
        r#"{{"users":["bob"],"everywhere":true,"sent_at":{}}}"#,
        START + 500
    );
    assert_eq!(told(&mut world, "/v1/streams/end", &body), NO_CONTENT);
    assert!(is_told_bye(&mut world, before));
    assert!(!is_told_bye(&mut world, since));
    // It is not passed on, and bob is here.
    assert_eq!(log_outs(&mut world), []);
    let page = world.connect(0);
    world.post(page, "/v1/streams/end", &body);
    assert!(world.received(page).starts_with("HTTP/1.1 401 "));
}

/// What was beaten between the log-out and its being told here counts no more.
#[test]
fn the_last_stream_to_end_for_a_log_out_elsewhere_passes_a_goodbye_on() {
    let mut world = realtime();
    let streams = [0, 1].map(|shard| world.stream(shard, "user=bob", 0).0);
    world.at(1_000);
    goodbyes(&mut world);
    let body = format!(
        r#"{{"users":["bob"],"everywhere":true,"sent_at":{}}}"#,
        START + 500
    );
    assert_eq!(told(&mut world, "/v1/streams/end", &body), NO_CONTENT);
    assert!(
        streams
            .iter()
            .all(|stream| is_told_bye(&mut world, *stream))
    );
    assert_eq!(goodbyes(&mut world), 1);
}

/// Goodbyes that were passed on.
fn goodbyes(world: &mut World) -> usize {
    let (keys, now) = (Keys::single(world.key().clone()), world.now().unix);
    let mut said = 0;
    for (_, outbound) in world.outbound() {
        if let Outbound::Beats { datagrams, .. } = outbound {
            let opened = datagrams
                .iter()
                .map(|datagram| open(datagram, &keys, now, 30_000));
            said += opened
                .filter(|opened| opened.as_ref().is_ok_and(|opened| opened.flags.is_leave()))
                .count();
        }
    }
    said
}

#[test]
fn a_presence_node_tells_all_real_time_nodes_of_a_log_out() {
    let mut world = presence(2);
    world.at(1_000);
    let page = world.connect(1);
    world.post(
        page,
        "/v1/leave",
        r#"{"users":["bob","eve"],"everywhere":true}"#,
    );
    world.expect(page, NO_CONTENT);
    let ends = world
        .outbound()
        .into_iter()
        .filter_map(|(_, outbound)| match outbound {
            Outbound::EndStreams(logged_out) => Some(logged_out),
            _ => None,
        });
    let ends: Vec<_> = ends.collect();
    let users = vec!["bob".into(), "eve".into()];
    let at = Unix::from_ms(START + 1_000);
    assert_eq!(ends, [Arc::new(LoggedOut { users, at })]);
    // Nobody is asked, and what was sent before counts no more.
    assert!(!is_online(&mut world));
    world.datagram_of(0, &["bob"], Unix::from_ms(START + 900), false);
    assert!(!is_online(&mut world));
    // A real-time node that was told so says when.
    let body = format!(
        r#"{{"users":["bob"],"everywhere":true,"sent_at":{}}}"#,
        START + 800
    );
    world.datagram_of(0, &["bob"], Unix::from_ms(START + 1_000), false);
    let node = world.connect(0);
    world.post(node, "/v1/leave", &body);
    world.expect(node, NO_CONTENT);
    assert!(is_online(&mut world), "it was said before that login");
}
