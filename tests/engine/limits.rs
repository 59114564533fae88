//! Every limit is reached, answered, and counted.

use greendot::metrics::{Counter, Gauge};
use greendot::wire::User;
use greendot::wire::beat::Writer;

use super::harness::{
    CLOSE, NO_CONTENT, RETRY_AFTER, STREAM_HEAD, World, json, posted, problem, record, request,
    snapshot, status_and_slug, unseen,
};

/// A stream's refusal for load, after checking that its retry is wide.
#[track_caller]
pub(crate) fn overloaded(world: &World, received: &str, reason: &str) {
    let rest = received
        .strip_prefix(STREAM_HEAD)
        .and_then(|rest| rest.strip_prefix("event: overloaded\nretry: "))
        .unwrap_or_else(|| panic!("{received}"));
    let (retry, rest) = rest.split_once('\n').expect("a line");
    let retry: u64 = retry.parse().expect("a number");
    let base = world.settings.retry_ms;
    assert!((base..=11 * base).contains(&retry), "{retry}");
    assert_eq!(rest, format!("data: {{\"reason\":\"{reason}\"}}\n\n"));
}

/// One connection makes so many new users in a second and no more; they are named, and those who
/// are known are not held to it.
#[test]
fn a_connection_makes_new_users_at_a_bounded_rate() {
    let mut world = World::with(1, |settings| {
        settings.new_users_per_conn_second_max = 2;
        settings.new_users_per_second_max = 5;
    });
    let users = |names: &[&str]| serde_json::json!({ "users": names }).to_string();
    let (one, other) = (world.connect(0), world.connect(0));
    world.post(one, "/v1/beat", &users(&["a", "b", "c", "a"]));
    let refused = world.received(one);
    let expected = "{\"refused\":[{\"index\":2,\"reason\":\"too_fast\"}],\"refused_total\":1}";
    assert!(refused.ends_with(expected), "{refused}");
    // Another connection has a rate of its own, within the node's.
    world.post(other, "/v1/beat", &users(&["c", "d", "e"]));
    let refused = world.received(other);
    assert!(
        refused.contains("\"index\":2,\"reason\":\"too_fast\""),
        "{refused}"
    );
    assert_eq!(world.count(0, Counter::LimitNewUsersOfConn), 2);
    // The fleet's beats are held to the node's alone.
    world.beat(0, &["f", "g", "h"]).turn();
    assert_eq!(world.presence().users(), 5);
    assert_eq!(world.count(0, Counter::LimitNewUsers), 2);
    assert_eq!(world.count(0, Counter::BeatTooFast), 4);
    world.pass(500).post(one, "/v1/beat", &users(&["e"]));
    assert!(world.received(one).starts_with("HTTP/1.1 204"));
}

/// Many connections have the rate of each, and all of them together no more than the node's.
#[test]
fn a_hundred_connections_make_no_more_users_than_the_node_may() {
    let mut world = World::with(2, |settings| {
        settings.new_users_per_conn_second_max = 20;
        settings.new_users_per_second_max = 500;
    });
    let peers: Vec<_> = (0..100).map(|n| world.connect(n % 2)).collect();
    for second in 1..=3 {
        for (n, peer) in peers.iter().enumerate() {
            let users: Vec<String> = (0..30).map(|user| format!("{second}-{n}-{user}")).collect();
            let body = serde_json::json!({ "users": users }).to_string();
            world.post(*peer, "/v1/beat", &body);
        }
        for peer in &peers {
            world.received(*peer);
        }
        assert_eq!(world.presence().users(), second * 500);
        world.pass(1_000);
    }
    let refused = |world: &mut World, counter| world.count(0, counter) + world.count(1, counter);
    assert_eq!(refused(&mut world, Counter::ItemTooFast), 3 * (3_000 - 500));
    assert_eq!(refused(&mut world, Counter::LimitNewUsersOfConn), 3 * 1_000);
    assert_eq!(refused(&mut world, Counter::LimitNewUsers), 3 * 1_500);
}

/// A stream whose holder can not be made now is told what it watches, and its holder comes later.
#[test]
fn a_stream_stays_open_and_its_holder_is_tried_again_each_interval() {
    let mut world = World::with(1, |settings| settings.new_users_per_second_max = 1);
    world.beat(0, &["ann"]).turn();
    let (watcher, _) = world.stream(0, "watch=bob", 1);
    world.received(watcher);
    let (stream, _) = world.stream(0, "user=bob&watch=ann", 1);
    assert!(
        world
            .received(stream)
            .contains("\"user\":\"ann\",\"status\":\"online\"")
    );
    world.expect_nothing(watcher);
    let interval_ms = world.settings.beat_interval_ms;
    world.at(interval_ms - 1).expect_nothing(watcher);
    world.at(interval_ms).expect_open(stream);
    let told = world.received(watcher);
    assert!(
        told.contains("\"user\":\"bob\",\"status\":\"online\""),
        "{told}"
    );
    world.at(60_000);
    assert!(world.ask(0, "bob").contains("\"status\":\"online\""));
}

/// A holder that beats for itself is taken in by its own beat: nobody says that it is here but it.
#[test]
fn a_holder_that_beats_for_itself_is_taken_in_by_its_own_beat() {
    let mut world = World::with(2, |settings| settings.new_users_per_second_max = 1);
    world.beat(0, &["ann"]).turn();
    let (_, id) = world.stream(1, "user=bob&vouch=self", 0);
    let holder = world.connect(0);
    let beat =
        format!("POST /v1/stream/{id}/beat HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    world.send(holder, &beat).turn();
    assert!(world.received(holder).starts_with("HTTP/1.1 503 "));
    // Though there is room by then, it says nothing.
    world.pass(2 * world.settings.beat_interval_ms);
    assert!(world.ask(0, "bob").contains("\"since\":null"));
    assert_eq!(world.presence().users(), 1);
    world.send(holder, &beat).turn();
    assert!(world.received(holder).starts_with("HTTP/1.1 204 "));
    assert!(world.ask(0, "bob").contains("\"status\":\"online\""));
}

#[test]
fn connections() {
    let mut world = World::with(1, |settings| settings.conns_max = 3);
    let (first, _) = world.stream(0, "watch=x", 1);
    world.received(first);
    world.connect(0);
    world.connect(0);
    let stream = world.connect(0);
    world.get(stream, "/v1/stream?watch=x");
    let received = world.received(stream);
    overloaded(&world, &received, "connections");
    world.expect_closed(stream);
    let head = world.connect(0);
    world.send(head, request("HEAD", "/v1/stream?watch=x"));
    world.expect(head, STREAM_HEAD).expect_closed(head);
    let query = world.connect(0);
    let refusal = problem(
        "503 Service Unavailable",
        "overloaded",
        "The server is at a limit",
        "the server has all the connections that it takes; try again later",
        &format!("{RETRY_AFTER}{CLOSE}"),
    );
    world
        .get(query, "/v1/presence/x")
        .expect(query, refusal)
        .expect_closed(query);
    let health = world.connect(0);
    world.get(health, "/livez");
    assert!(
        world
            .received(health)
            .ends_with(&format!("{CLOSE}\r\nok\n"))
    );
    world.expect_closed(health);
    assert_eq!(world.count(0, Counter::LimitConns), 4);
    for _ in 0..64 {
        world.connect(0);
    }
    assert_eq!(world.try_connect(0), None);
    assert_eq!(world.count(0, Counter::LimitConns), 69);
    world.beat(0, &["x"]);
    assert!(
        world.received(first).starts_with("event: presence"),
        "nobody made room"
    );
}

/// Who holds one of the places in which a full shard hears what it is asked, and asks nothing, does
/// not hold it for long.
#[test]
fn surplus_connections_that_say_nothing_make_room() {
    let mut world = World::with(1, |settings| settings.conns_max = 1);
    let first = world.connect(0);
    world
        .get(first, "/v1/presence/x")
        .expect(first, json(&unseen("x")));
    let slow = world.connect(0);
    let silent: Vec<_> = (1..64).map(|_| world.connect(0)).collect();
    assert_eq!(world.try_connect(0), None);
    // What has begun to arrive may take its time, as published states from far away do.
    let get = request("GET", "/livez");
    world.send(slow, &get[..9]).at(499);
    assert_eq!(world.try_connect(0), None);
    world.at(564);
    for peer in silent {
        world.expect_nothing(peer).expect_closed(peer);
    }
    let health = world.connect(0);
    world.get(health, "/livez");
    assert!(world.received(health).starts_with("HTTP/1.1 200 OK\r\n"));
    world.at(9_999).send(slow, &get[9..]);
    assert!(world.received(slow).starts_with("HTTP/1.1 200 OK\r\n"));

    let slower = world.connect(0);
    world
        .send(slower, &get[..9])
        .at(19_998)
        .expect_open(slower)
        .at(20_100);
    let answer = world.received(slower);
    assert_eq!(
        status_and_slug(&answer),
        ("HTTP/1.1 408 Request Timeout", "request-timeout")
    );
    world.expect_open(first);
}

/// A shorter deadline stays as it is.
#[test]
fn surplus_connections_have_no_longer_than_others() {
    let mut world = World::with(1, |settings| {
        (
            settings.conns_max,
            settings.request_deadline_ms,
            settings.linger_ms,
        ) = (1, 200, 100);
    });
    world.connect(0);
    let silent = world.connect(0);
    world
        .at(199)
        .expect_open(silent)
        .at(264)
        .expect_closed(silent);
}

/// What a handshake took is of the first request's time; a refusal is heard all the same.
#[test]
fn a_first_request_has_its_time_from_when_its_connection_came() {
    let mut world = World::with(1, |settings| {
        (settings.request_deadline_ms, settings.conns_max) = (10_000, 2);
    });
    let (plain, late) = (world.connect(0), world.come_late(7_000).connect(0));
    let surplus = world.come_late(9_999).connect(0);
    world.get(surplus, "/v1/presence/bob");
    let refused = world.received(surplus);
    assert_eq!(
        status_and_slug(&refused),
        ("HTTP/1.1 503 Service Unavailable", "overloaded")
    );
    world
        .at(2_999)
        .expect_open(late)
        .at(3_064)
        .expect_closed(late)
        .at(9_999)
        .expect_open(plain)
        .at(10_064)
        .expect_closed(plain);
}

#[test]
fn heads() {
    let mut world = World::with(1, |settings| settings.header_count_max = 4);
    let refused = |world: &mut World, input: String| {
        let bob = world.connect(0);
        world.send(bob, input);
        let answer = world.received(bob);
        world.expect_write_shut(bob);
        let (status, slug) = status_and_slug(&answer);
        (status.to_owned(), slug.to_owned())
    };
    let too_large = "HTTP/1.1 431 Request Header Fields Too Large".to_owned();
    let long = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "x".repeat(8_192)
    );
    assert_eq!(
        refused(&mut world, long),
        (too_large.clone(), "head-too-large".into())
    );
    let target = request("GET", &format!("/{}", "x".repeat(8_192)));
    let too_long = (
        "HTTP/1.1 414 URI Too Long".to_owned(),
        "target-too-long".to_owned(),
    );
    assert_eq!(refused(&mut world, target), too_long);
    assert_eq!(world.count(0, Counter::LimitHeadBytes), 2);
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(4));
    assert_eq!(
        refused(&mut world, many),
        (too_large, "too-many-headers".into())
    );
    assert_eq!(world.count(0, Counter::LimitHeaderCount), 1);
    // Exactly at the limits all is well.
    let bob = world.connect(0);
    let head = "GET /v1/presence/x HTTP/1.1\r\nHost: a\r\nB: b\r\nC: c\r\nX: ";
    let fits = format!("{head}{}\r\n\r\n", "x".repeat(8_192 - head.len() - 4));
    world.send(bob, fits).expect(bob, json(&unseen("x")));
}

#[test]
fn bodies() {
    let mut world = World::with(1, |settings| settings.body_bytes_max = 100);
    let bob = world.connect(0);
    let body = format!("{{\"users\":[\"{}\"]}}", "x".repeat(86));
    assert_eq!(body.len(), 100);
    world.post(bob, "/v1/beat", &body).expect(bob, NO_CONTENT);
    world.post(bob, "/v1/beat", &(body.clone() + " "));
    let answer = world.received(bob);
    assert_eq!(
        status_and_slug(&answer),
        ("HTTP/1.1 413 Content Too Large", "body-too-large")
    );
    let eve = world.connect(0);
    world.send(
        eve,
        format!(
            "POST /v1/beat HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n\
             {body}\r\n1\r\n"
        ),
    );
    let answer = world.received(eve);
    assert_eq!(
        status_and_slug(&answer),
        ("HTTP/1.1 413 Content Too Large", "body-too-large")
    );
    assert_eq!(world.count(0, Counter::LimitBodyBytes), 2);
}

#[test]
fn a_requests_time_runs_from_accept_and_no_byte_extends_it() {
    let mut world = World::new(1);
    let silent = world.connect(0);
    let slow = world.connect(0);
    let body = world.connect(0);
    let post = posted("/v1/beat", "{\"users\":[\"x\"]}");
    let (head, _) = post.split_at(post.len() - 5);
    world.send(body, head);
    for (second, byte) in "GET /v1/pr".bytes().enumerate() {
        world.send(slow, [byte]).at((second as u64 + 1) * 990);
    }
    world.at(9_999);
    for peer in [silent, slow, body] {
        world.expect_nothing(peer).expect_open(peer);
    }
    world
        .at(10_064)
        .expect_nothing(silent)
        .expect_closed(silent);
    let timeout = problem(
        "408 Request Timeout",
        "request-timeout",
        "The request did not arrive in time",
        "the request was not complete in time; its time is counted from its beginning",
        CLOSE,
    );
    for peer in [slow, body] {
        world.expect(peer, &timeout).expect_write_shut(peer);
    }
    assert_eq!(world.count(0, Counter::LimitRequestDeadline), 3);
    assert_eq!(world.presence().users(), 0);
}

#[test]
fn a_second_requests_time_runs_from_its_beginning() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    let get = request("GET", "/v1/presence/x");
    world
        .at(9_000)
        .send(bob, &get)
        .expect(bob, json(&unseen("x")));
    world.at(50_000).send(bob, &get[..5]);
    world
        .at(55_000)
        .send(bob, &get[5..9])
        .at(59_999)
        .expect_nothing(bob);
    world.at(60_064);
    let answer = world.received(bob);
    assert_eq!(
        status_and_slug(&answer),
        ("HTTP/1.1 408 Request Timeout", "request-timeout")
    );
}

#[test]
fn a_connection_may_idle_for_so_long() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    world
        .get(bob, "/v1/presence/x")
        .expect(bob, json(&unseen("x")));
    world
        .at(74_000)
        .get(bob, "/v1/presence/x")
        .expect(bob, json(&unseen("x")));
    world
        .at(148_999)
        .expect_open(bob)
        .at(149_064)
        .expect_nothing(bob)
        .expect_closed(bob);
    assert_eq!(world.count(0, Counter::LimitKeepAliveIdle), 1);
    assert_eq!(world.count(0, Counter::ClosedIdle), 1);
    let mut world = World::with(1, |settings| settings.keep_alive_idle_ms = 0);
    let bob = world.connect(0);
    world
        .get(bob, "/v1/presence/x")
        .expect_write_shut(bob)
        .shut(bob)
        .expect_closed(bob);
}

#[test]
fn watches_of_a_stream() {
    let mut world = World::with(1, |settings| settings.watches_per_stream_max = 3);
    let bob = world.connect(0);
    let refusal = |member: &str| {
        problem(
            "413 Content Too Large",
            "too-many-users",
            "The request names too many users",
            &format!("{member} names 4 users or more; at most 3 are taken at once"),
            "",
        )
    };
    world
        .get(bob, "/v1/stream?watch=a&watch=b&watch=c&watch=d")
        .expect(bob, refusal("watch"));
    world
        .post(bob, "/v1/stream", "{\"watch\":[\"a\",\"b\",\"c\",\"d\"]}")
        .expect(bob, refusal("watch"));
    let (alice, id) = world.stream(0, "watch=a&watch=b", 2);
    world.received(alice);
    let path = format!("/v1/stream/{id}/watch");
    world
        .post(bob, &path, "{\"add\":[\"a\",\"b\",\"c\",\"d\"]}")
        .expect(bob, refusal("add"));
    let full = problem(
        "413 Content Too Large",
        "too-many-users",
        "The request names too many users",
        "the stream would watch more than 3 users; nothing was changed",
        "",
    );
    world
        .post(bob, &path, "{\"add\":[\"c\",\"d\"]}")
        .expect(bob, &full)
        .expect_nothing(alice);
    world
        .post(bob, &path, "{\"add\":[\"c\",\"d\"],\"remove\":[\"x\"]}")
        .expect(bob, &full);
    world.post(bob, &path, "{\"add\":[\"c\",\"d\"],\"remove\":[\"a\"]}");
    world.expect(bob, json("{\"watching\":3}"));
    assert_eq!(world.count(0, Counter::LimitWatchesPerStream), 5);
}

#[test]
fn watches_of_a_shard() {
    let mut world = World::with(1, |settings| {
        settings.watches_per_stream_max = 4;
        settings.watches_per_shard_max = 4;
    });
    let (_, id) = world.stream(0, "watch=a&watch=b&watch=c", 3);
    let eve = world.connect(0);
    world.get(eve, "/v1/stream?watch=a&watch=b");
    let received = world.received(eve);
    overloaded(&world, &received, "watches");
    world.stream(0, "watch=a", 1);
    let bob = world.connect(0);
    world.post(bob, &format!("/v1/stream/{id}/watch"), "{\"add\":[\"d\"]}");
    world.expect(
        bob,
        problem(
            "503 Service Unavailable",
            "overloaded",
            "The server is at a limit",
            "the server holds as many watches as it may; nothing was changed",
            RETRY_AFTER,
        ),
    );
    assert_eq!(world.count(0, Counter::LimitWatchesPerShard), 2);
    assert_eq!(world.gauge(0, Gauge::WatchesByName), 4);
}

#[test]
fn users_of_a_query() {
    let mut world = World::with(1, |settings| settings.query_users_max = 2);
    let bob = world.connect(0);
    let many = "{\"users\":[\"a\",\"b\",\"c\"]}";
    for path in ["/v1/presence/query", "/v1/beat", "/v1/leave"] {
        world.post(bob, path, many);
        let answer = world.received(bob);
        assert_eq!(
            status_and_slug(&answer),
            ("HTTP/1.1 413 Content Too Large", "too-many-users")
        );
    }
    world.get(bob, "/v1/presence?user=a&user=b&user=c");
    let answer = world.received(bob);
    assert_eq!(
        status_and_slug(&answer),
        ("HTTP/1.1 413 Content Too Large", "too-many-users")
    );
    assert_eq!(world.count(0, Counter::LimitQueryUsers), 4);
    assert_eq!(world.presence().users(), 0);
}

#[test]
fn users() {
    let mut world = World::of_users(2);
    world.beat(0, &["a", "b", "c"]);
    assert_eq!(world.count(0, Counter::BeatUsersFull), 1);
    let bob = world.connect(0);
    world
        .post(bob, "/v1/beat", "{\"users\":[\"d\",\"a\"]}")
        .expect(
            bob,
            json("{\"refused\":[{\"index\":0,\"reason\":\"users_max\"}],\"refused_total\":1}"),
        );
    let stream = world.connect(0);
    world.get(stream, "/v1/stream?user=e");
    let received = world.received(stream);
    overloaded(
        &world,
        &received,
        "the server knows as many users as it may (users_max)",
    );
    let (known, _) = world.stream(0, "user=a&watch=c", 1);
    world.expect(known, snapshot(0, &[unseen("c")]));
    assert_eq!(world.count(0, Counter::LimitUsers), 3);
    assert_eq!(world.count(0, Counter::BeatsHttp), 1);
    assert_eq!(world.ask(0, "a"), record("a", "online", 0, 0));
}

#[test]
fn a_sweep_is_cut_into_turns_and_loses_nobody() {
    let mut world = World::with(1, |settings| settings.sweep_slots_per_turn_max = 64);
    world.checks = false;
    world.make_slots(5_000);
    world.beat(0, &["last"]);
    let (alice, _) = world.stream(0, "watch=last", 1);
    world.received(alice);
    world.at(25_251);
    let received = world.received(alice);
    assert!(received.contains("\"status\":\"offline\""), "{received}");
    assert!(world.count(0, Counter::LimitSweepSlotsPerTurn) > 1);
    assert!(world.count(0, Counter::SweepCycles) > 90);
}

#[test]
fn datagrams_cost_their_beats_and_garbage_costs_one() {
    let mut world = World::with(1, |_| ());
    let (now, key) = (world.now().unix, world.key().clone());
    let sealed = |leave: bool, users: &[&str]| {
        let mut writer = Writer::new(leave, now, &key);
        for user in users {
            assert!(writer.push(User::parse(user.as_bytes()).expect("a legal user")));
        }
        writer.seal(&key)
    };
    let many: Vec<String> = (0..200).map(|n| format!("u{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let (beats, goodbyes) = (sealed(false, &many), sealed(true, &["u1", "u2", "nobody"]));
    assert_eq!(world.arrive(0, &[]), 0);
    assert_eq!(world.arrive(0, &[b""]), 1);
    assert_eq!(
        world.arrive(0, &[b"garbage", &beats, &goodbyes, &beats[1..]]),
        1 + 200 + 3 + 1
    );
    assert_eq!(world.count(0, Counter::BeatsUdp), 200);
    assert_eq!(world.count(0, Counter::LeavesUdp), 2);
}

/// A shard whose buffers hold seven longest requests, and not eight.
fn crowdable() -> World {
    World::with(1, |settings| {
        settings.body_bytes_max = 8_192;
        settings.outbox_bytes_max = 16_384;
        settings.buffer_bytes_max = 64_000;
    })
}

#[test]
fn who_sends_a_long_request_when_buffers_are_full_is_refused_and_the_others_are_served() {
    let mut world = crowdable();
    let body = format!("{{\"users\":[\"a\"]{}}}", " ".repeat(8_192 - 15));
    let (begun, rest) = body.split_at(8_000);
    let head = "POST /v1/beat HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
                Content-Length: 8192\r\n\r\n";
    let peers: Vec<_> = (0..7).map(|_| world.connect(0)).collect();
    for peer in &peers {
        world.send(*peer, format!("{head}{begun}"));
        world.expect_nothing(*peer);
    }
    let held = world.gauge(0, Gauge::BufferedBytes);
    assert!((7 * 8_000..64_000).contains(&held), "{held}");
    let late = world.connect(0);
    world.send(late, format!("{head}{begun}"));
    let refused = world.received(late);
    assert_eq!(
        status_and_slug(&refused),
        ("HTTP/1.1 503 Service Unavailable", "overloaded"),
        "{refused}"
    );
    assert!(refused.contains("(buffer-bytes-max)"), "{refused}");
    assert!(refused.contains(RETRY_AFTER), "{refused}");
    assert_eq!(world.count(0, Counter::LimitBufferBytes), 1);
    // In chunks, too.
    let chunked = world.connect(0);
    let head = "POST /v1/beat HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
                Transfer-Encoding: chunked\r\n\r\n1f40\r\n";
    world.send(chunked, format!("{head}{begun}"));
    let refused = world.received(chunked);
    assert_eq!(
        status_and_slug(&refused),
        ("HTTP/1.1 503 Service Unavailable", "overloaded"),
        "{refused}"
    );
    // Who was there before loses nothing, and leaves nothing.
    for peer in &peers {
        world.send(*peer, rest);
        world.expect(*peer, NO_CONTENT);
    }
    world.pass(2_000);
    assert_eq!(world.gauge(0, Gauge::BufferedBytes), 0);
}

#[test]
fn when_answers_that_nobody_reads_fill_the_buffers_short_requests_are_served() {
    let mut world = crowdable();
    let users: Vec<String> = (0..60).map(|n| format!("{n:0>100}")).collect();
    let ask = serde_json::json!({ "users": users }).to_string();
    let mut stalled = Vec::new();
    while world.gauge(0, Gauge::BufferedBytes) < 64_000 {
        let peer = world.connect(0);
        world.stall(peer).post(peer, "/v1/presence/query", &ask);
        stalled.push(peer);
    }
    assert_eq!(world.count(0, Counter::LimitBufferBytes), 0);
    let short = world.connect(0);
    world.get(short, "/v1/presence/a");
    assert!(world.received(short).starts_with("HTTP/1.1 200 "));
    world.post(short, "/v1/presence/query", &ask);
    let refused = world.received(short);
    assert_eq!(
        status_and_slug(&refused),
        ("HTTP/1.1 503 Service Unavailable", "overloaded"),
        "{refused}"
    );
    let long = format!("/v1/stream?watch={}", users[..12].join("&watch="));
    let stream = world.connect(0);
    assert!(world.gauge(0, Gauge::BufferedBytes) >= 64_000);
    world.get(stream, &long);
    let received = world.received(stream);
    overloaded(&world, &received, "buffers");
    assert_eq!(world.count(0, Counter::LimitBufferBytes), 2);
    // Strangers hold up no service.
    let backend = world.connect(0);
    let token = world.key().service_token();
    let asked = posted("/v1/presence/query", &ask);
    let authorization = format!("\r\nAuthorization: Bearer {token}\r\n");
    world.send(backend, asked.replacen("\r\n", &authorization, 1));
    assert!(world.received(backend).starts_with("HTTP/1.1 200 "));
    assert_eq!(world.count(0, Counter::LimitBufferBytes), 2);
    // A short one opens, and is told in pieces.
    let ids: Vec<&str> = users.iter().map(String::as_str).collect();
    let (stream, id) = world.stream(0, "watch=a", 1);
    world.received(stream);
    let edit = serde_json::json!({ "add": &ids[..12] }).to_string();
    let editor = world.connect(0);
    world.post(editor, &format!("/v1/stream/{id}/watch"), &edit);
    assert_eq!(
        status_and_slug(&world.received(editor)).0,
        "HTTP/1.1 503 Service Unavailable"
    );
    for some in ids.chunks(8) {
        let editor = world.connect(0);
        let edit = serde_json::json!({ "add": some }).to_string();
        world.post(editor, &format!("/v1/stream/{id}/watch"), &edit);
        assert!(world.received(editor).starts_with("HTTP/1.1 200 "));
    }
    world.received(stream);
    let (before, chunks) = (
        world.count(0, Counter::LimitBufferBytes),
        world.chunks(stream),
    );
    for some in ids.chunks(8) {
        world.beat(0, some);
    }
    world.turn();
    let told = world.received(stream);
    assert_eq!(told.matches("\"status\":\"online\"").count(), 60);
    assert!(world.count(0, Counter::LimitBufferBytes) > before);
    assert!(world.chunks(stream) > chunks + 3);
    for peer in stalled {
        world.read(peer, None);
        assert!(world.received(peer).starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(world.gauge(0, Gauge::BufferedBytes), 0);
}
