//! `GET /v1/streams`, `GET` and `DELETE /v1/streams/{stream}`: who is connected, on any shard.

use std::collections::BTreeSet;

use greendot::engine::Role;
use greendot::metrics::{Counter, Gauge};
use serde_json::Value;

use super::harness::{
    CLOSE, NO_CONTENT, Peer, RETRY_AFTER, START, World, json, problem, request, status_and_slug,
};
use super::identity::{asked, bearer};

/// What is answered by a shard.
fn told(world: &mut World, shard: usize, target: &str) -> String {
    asked(world, shard, &format!("GET {target}"), "", "")
}

fn read(answer: &str) -> Value {
    let (_, body) = answer.split_once("\r\n\r\n").expect(answer);
    serde_json::from_str(body).expect(answer)
}

fn ids(page: &Value) -> Vec<String> {
    let streams = page["streams"].as_array().expect("streams");
    let id = |stream: &Value| stream["stream"].as_str().expect("an id").to_owned();
    streams.iter().map(id).collect()
}

/// Opens a stream by a client of this name, from there.
fn open(world: &mut World, shard: usize, query: &str, lines: &str) -> (Peer, String) {
    let peer = world.connect(shard);
    let target = format!("/v1/stream?{query}");
    let head = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    world.send(peer, head);
    let watching = query.matches("watch=").count();
    let id = world.expect_hello(peer, watching);
    world.received(peer);
    (peer, id)
}

fn ends(world: &mut World, shard: usize, id: &str) -> String {
    let lines = bearer(&world.key().service_token());
    asked(
        world,
        shard,
        &format!("DELETE /v1/streams/{id}"),
        &lines,
        "",
    )
}

const UNKNOWN: &str = "no stream with this id is open; GET /v1/streams lists those that are";

fn unknown() -> String {
    let title = "No such stream is open";
    problem("404 Not Found", "unknown-stream", title, UNKNOWN, "")
}

#[test]
fn a_stream_is_told_whole_by_every_shard() {
    let mut world = World::new(3);
    world.at(1_000).come_from("192.0.2.7");
    let (_, bob) = open(
        &mut world,
        1,
        "user=bob&watch=x&watch=y",
        "User-Agent: Firefox\r\n",
    );
    world.pass(500).come_from("2001:db8:1:2::9");
    let (_, nobody) = open(&mut world, 2, "watch=x", "");
    world.pass(10_000).come_from("127.0.0.1");
    let of_bob = format!(
        "{{\"stream\":\"{bob}\",\"user\":\"bob\",\"address\":\"192.0.2.7\",\
         \"client\":\"Firefox\",\"since\":{},\"watching\":2,\"behind_bytes\":0,\
         \"behind_states\":0}}",
        // In steps of 110 ms.
        START + 930
    );
    let of_nobody = format!(
        "{{\"stream\":\"{nobody}\",\"user\":null,\"address\":\"2001:db8:1:2::/64\",\
         \"client\":null,\"since\":{},\"watching\":1,\"behind_bytes\":0,\
         \"behind_states\":0}}",
        START + 1_480
    );
    for shard in 0..3 {
        let all = format!("{{\"streams\":[{of_bob},{of_nobody}],\"cursor\":null}}");
        assert_eq!(told(&mut world, shard, "/v1/streams"), json(&all));
        let his = format!("{{\"streams\":[{of_bob}],\"cursor\":null}}");
        assert_eq!(told(&mut world, shard, "/v1/streams?user=bob"), json(&his));
        for nobodys in ["/v1/streams?user=x", "/v1/streams?user=stranger"] {
            let none = json("{\"streams\":[],\"cursor\":null}");
            assert_eq!(told(&mut world, shard, nobodys), none);
        }
        let one = told(&mut world, shard, &format!("/v1/streams/{bob}"));
        assert_eq!(one, json(&of_bob));
        let one = told(&mut world, shard, &format!("/v1/streams/{nobody}"));
        assert_eq!(one, json(&of_nobody));
    }
    let ignored = told(&mut world, 0, "/v1/streams?usr=bob&user=stranger");
    let named = "{\"streams\":[],\"cursor\":null,\"ignored\":[\"usr\"]}";
    assert_eq!(ignored, json(named));
}

#[test]
fn pages_have_each_stream_once_whatever_their_length() {
    let mut world = World::new(3);
    let mut opened = BTreeSet::new();
    for n in 0..20 {
        let user = if n % 4 == 0 { "bob" } else { "carol" };
        let (_, id) = world.stream(n % 3, &format!("user={user}"), 0);
        opened.insert((id, user));
    }
    for (filter, expected) in [("", 20), ("user=bob&", 5), ("user=carol&", 15)] {
        for limit in [1, 2, 3, 7, 1_000] {
            let (mut listed, mut cursor) = (Vec::new(), String::new());
            loop {
                let target = format!("/v1/streams?{filter}limit={limit}{cursor}");
                let page = read(&told(&mut world, limit % 3, &target));
                let ids = ids(&page);
                assert!(ids.len() <= limit);
                listed.extend(ids);
                match page["cursor"].as_str() {
                    Some(text) => cursor = format!("&cursor={text}"),
                    None => break,
                }
            }
            assert_eq!(listed.len(), expected, "{filter} {limit}");
            let listed: BTreeSet<String> = listed.into_iter().collect();
            let meant = opened
                .iter()
                .filter(|(_, user)| filter.is_empty() || filter.contains(user));
            let meant: BTreeSet<String> = meant.map(|(id, _)| id.clone()).collect();
            assert_eq!(listed, meant, "{filter} {limit}");
        }
    }
}

/// The streams of one page end before the next is asked for, and others take their places.
#[test]
fn streams_that_end_between_two_pages_lose_nobody_who_stays() {
    let mut world = World::new(2);
    let streams: Vec<(Peer, String)> = (0..12).map(|n| world.stream(n % 2, "", 0)).collect();
    let page = read(&told(&mut world, 0, "/v1/streams?limit=4"));
    let first = ids(&page);
    assert_eq!(first.len(), 4);
    let mut stays: BTreeSet<String> = streams.iter().map(|(_, id)| id.clone()).collect();
    for (peer, id) in &streams {
        let was_told = first.contains(id);
        if was_told || id.starts_with("1.0.") {
            world.reset(*peer);
            stays.remove(id);
        }
    }
    // In a place that has been passed.
    let (_, again) = world.stream(0, "user=late", 0);
    let mut listed = BTreeSet::new();
    let mut cursor = page["cursor"].as_str().map(str::to_owned);
    while let Some(at) = cursor {
        let page = read(&told(
            &mut world,
            1,
            &format!("/v1/streams?limit=4&cursor={at}"),
        ));
        listed.extend(ids(&page));
        cursor = page["cursor"].as_str().map(str::to_owned);
    }
    assert_eq!(listed, stays);
    assert!(!listed.contains(&again));
}

/// A stream ends while its shard has yet to read the question.
#[test]
fn a_stream_that_ends_meanwhile_is_not_told() {
    let mut world = World::new(2);
    let (gone, id) = world.stream(1, "user=bob", 0);
    let (_, stays) = world.stream(1, "user=bob", 0);
    let asker = world.connect(0);
    let one = world.connect(0);
    world.hold_mail(1, true);
    world.get(asker, "/v1/streams?user=bob");
    world.get(one, &format!("/v1/streams/{id}"));
    world.expect_nothing(asker).expect_nothing(one);
    world.reset(gone).hold_mail(1, false);
    let received = world.received(asker);
    assert_eq!(ids(&read(&received)), [stays]);
    world.expect(one, unknown());
}

/// More places than one turn looks at, of which few are meant.
#[test]
fn a_shard_looks_through_a_crowd_in_slices() {
    let mut world = World::new(2);
    world.checks = false;
    let crowd = 20_000;
    for n in 0..crowd {
        let peer = world.connect(1);
        let user = if n == crowd - 1 { "last" } else { "crowd" };
        world.get(peer, &format!("/v1/stream?user={user}"));
        if n % 1_000 == 0 {
            world.turn();
        }
    }
    world.turn();
    assert_eq!(world.gauge(1, Gauge::Streams), crowd);
    let asker = world.connect(0);
    world.get(asker, "/v1/streams?user=last");
    // The asker posts the question in its turn, and the other reads it.
    for slice in 0..20 {
        world.turn_of(0);
        if world.has_any(asker) {
            assert!(slice >= crowd / 8_192, "{slice}");
            break;
        }
        world.turn_of(1);
    }
    let page = read(&world.received(asker));
    let [stream] = &page["streams"].as_array().expect("streams")[..] else {
        panic!("{page}");
    };
    assert_eq!(
        (&stream["user"], &page["cursor"]),
        (&"last".into(), &Value::Null)
    );
    let page = read(&told(&mut world, 0, "/v1/streams"));
    assert_eq!(ids(&page).len(), 1_000);
}

#[test]
fn a_shard_that_stands_still_costs_the_answer_its_part() {
    let mut world = World::new(2);
    let (_, here) = world.stream(0, "", 0);
    let (_, there) = world.stream(1, "", 0);
    let asker = world.connect(0);
    world.get(asker, "/v1/streams");
    world.pass_without(1, 1_200);
    let (taken, received) = (world.has_any(asker), world.taken(asker));
    assert!(taken, "it was answered");
    let page = read(&received);
    assert!(
        received.contains(CLOSE),
        "what comes late is for nobody else"
    );
    assert_eq!(ids(&page), [here]);
    let cursor = page["cursor"].as_str().expect("the rest").to_owned();
    let rest = format!("/v1/streams?cursor={cursor}");
    // Nothing was found, and nowhere is to be gone on: that is no page.
    let asker = world.connect(0);
    world.get(asker, &rest);
    world.pass_without(1, 1_200);
    let detail = "a shard of the server has not answered in time; ask again";
    let lines = format!("{RETRY_AFTER}{CLOSE}");
    let title = "The server is at a limit";
    let refused = problem(
        "503 Service Unavailable",
        "overloaded",
        title,
        detail,
        &lines,
    );
    assert_eq!(world.taken(asker), refused);
    world.turn();
    assert_eq!(ids(&read(&told(&mut world, 0, &rest))), [there]);
}

#[test]
fn a_full_mailbox_is_said() {
    let mut world = World::with(2, |settings| settings.mailbox_max = 1);
    let (_, id) = world.stream(1, "", 0);
    world.hold_mail(1, true);
    let fills = world.connect(0);
    world.get(fills, &format!("/v1/streams/{id}"));
    world.turn_of(0);
    for line in [
        format!("GET /v1/streams/{id}"),
        format!("DELETE /v1/streams/{id}"),
    ] {
        let lines = bearer(&world.key().service_token());
        let peer = world.connect(0);
        world.send(peer, super::identity::request(&line, &lines, ""));
        // It is posted in one turn, and has come back in the next.
        world.turn_of(0);
        world.turn_of(0);
        let answer = world.taken(peer);
        assert_eq!(
            status_and_slug(&answer),
            ("HTTP/1.1 503 Service Unavailable", "overloaded"),
            "{line}"
        );
    }
}

#[test]
fn what_is_no_page_is_refused() {
    let mut world = World::new(2);
    for shard in [0, 0, 1] {
        world.stream(shard, "user=bob", 0);
    }
    let page = read(&told(&mut world, 0, "/v1/streams?limit=1"));
    let cursor = page["cursor"].as_str().expect("there are more").to_owned();
    let of_bob = read(&told(&mut world, 0, "/v1/streams?limit=1&user=bob"));
    let of_bob = of_bob["cursor"]
        .as_str()
        .expect("there are more")
        .to_owned();
    let bad = "HTTP/1.1 400 Bad Request";
    let gone = "HTTP/1.1 410 Gone";
    for (query, expected) in [
        ("limit=0".to_owned(), (bad, "bad-query")),
        ("limit=1001".to_owned(), (bad, "bad-query")),
        ("limit=-1".to_owned(), (bad, "bad-query")),
        ("limit=".to_owned(), (bad, "bad-query")),
        ("limit=1&limit=1".to_owned(), (bad, "bad-query")),
        ("user=a&user=b".to_owned(), (bad, "bad-query")),
        ("cursor=%zz".to_owned(), (bad, "bad-query")),
        ("user=%00".to_owned(), (bad, "bad-user")),
        (format!("user={}", "x".repeat(129)), (bad, "bad-user")),
        ("cursor=".to_owned(), (bad, "bad-query")),
        ("cursor=nonsense".to_owned(), (bad, "bad-query")),
        (format!("cursor={}", &cursor[2..]), (bad, "bad-query")),
        (format!("cursor=f{}", &cursor[1..]), (gone, "cursor-gone")),
        (format!("cursor={cursor}&user=bob"), (gone, "cursor-gone")),
        (format!("cursor={of_bob}"), (gone, "cursor-gone")),
        (format!("cursor={cursor}&user="), (bad, "bad-user")),
        (format!("cursor={cursor}"), ("HTTP/1.1 200 OK", "")),
    ] {
        let answer = told(&mut world, 0, &format!("/v1/streams?{query}"));
        assert_eq!(status_and_slug(&answer), expected, "{query} {answer}");
    }
    world.restart(0);
    let answer = told(&mut world, 0, &format!("/v1/streams?cursor={cursor}"));
    let detail = "the cursor is of another walk, of before a start of this node, or of before its \
                  clock was set back; begin anew without one";
    let title = "The cursor is not of a walk that goes on here";
    let expected = problem("410 Gone", "cursor-gone", title, detail, "");
    assert_eq!(answer, expected);
}

#[test]
fn an_operator_ends_a_stream_on_any_shard() {
    let mut world = World::new(2);
    for shard in [0, 1] {
        let (peer, id) = world.stream(1, "user=bob", 0);
        world.received(peer);
        // Nobody is asked here, and yet it takes the key of somebody who is named in the log.
        let refused = asked(
            &mut world,
            shard,
            &format!("DELETE /v1/streams/{id}"),
            "",
            "",
        );
        assert_eq!(status_and_slug(&refused).1, "unauthorized");
        world.expect_open(peer);
        assert_eq!(ends(&mut world, shard, &id), NO_CONTENT);
        let parting = world.received(peer);
        let rest = parting
            .strip_prefix("event: goodbye\nretry: ")
            .expect(&parting);
        let (retry, rest) = rest.split_once('\n').expect("a line");
        let retry: u64 = retry.parse().expect("a number");
        assert!((1_000..=3_000).contains(&retry), "{retry}");
        assert_eq!(rest, "data: {\"reason\":\"ended\"}\n\n");
        world.expect_whole(peer).expect_closed(peer);
        assert_eq!(ends(&mut world, shard, &id), unknown());
        assert_eq!(
            told(&mut world, shard, &format!("/v1/streams/{id}")),
            unknown()
        );
    }
    assert_eq!(world.count(1, Counter::ClosedEnded), 2);
    // Its user is no sooner offline for it than for any stream that ends.
    assert!(world.ask(0, "bob").contains("\"status\":\"online\""));
    let another = "0.0.0.00112233445566778899aabbccddeeff";
    for id in [another, "held", "x"] {
        assert_eq!(ends(&mut world, 0, id), unknown());
        assert_eq!(told(&mut world, 0, &format!("/v1/streams/{id}")), unknown());
    }
}

#[test]
fn behind_a_proxy_the_client_is_told() {
    let mut world = World::with(1, |settings| {
        settings.trusted_proxies = vec!["10.0.0.0/8".parse().expect("a net")];
    });
    for (from, lines, expected) in [
        (
            "10.0.0.1",
            "X-Forwarded-For: 203.0.113.9\r\n",
            Some("203.0.113.9"),
        ),
        (
            "10.0.0.1",
            "Forwarded: for=\"[2001:db8::1]\"\r\n",
            Some("2001:db8::/64"),
        ),
        ("10.0.0.1", "X-Forwarded-For: 127.0.0.1\r\n", None),
        // Nobody says whose it is.
        ("10.0.0.1", "", None),
        // Its own word is not taken.
        (
            "192.0.2.1",
            "X-Forwarded-For: 203.0.113.9\r\n",
            Some("192.0.2.1"),
        ),
        ("127.0.0.1", "", None),
    ] {
        world.come_from(from);
        let (peer, id) = open(&mut world, 0, "watch=x", lines);
        let stream = read(&told(&mut world, 0, &format!("/v1/streams/{id}")));
        assert_eq!(stream["address"].as_str(), expected, "{from} {lines}");
        world.reset(peer);
    }
}

#[test]
fn who_reads_slowly_is_seen_to_be_behind() {
    let mut world = World::with(1, |settings| settings.outbox_bytes_max = 16_384);
    let watched: Vec<String> = (0..400)
        .map(|n| format!("{n:03}{}", "x".repeat(100)))
        .collect();
    let users: Vec<&str> = watched.iter().map(String::as_str).collect();
    let list = serde_json::json!({ "watch": users }).to_string();
    let peer = world.connect(0);
    world.post(peer, "/v1/stream", &list);
    let id = world.expect_hello(peer, 400);
    world.received(peer);
    world.stall(peer);
    for batch in users.chunks(10) {
        world.beat(0, batch);
    }
    world.turn();
    let stream = read(&told(&mut world, 0, &format!("/v1/streams/{id}")));
    let behind = |name: &str| stream[name].as_u64().expect("a number");
    let (bytes, states) = (behind("behind_bytes"), behind("behind_states"));
    assert!(bytes > 0 && bytes <= 16_384, "{bytes}");
    assert!(states > 0 && states < 400, "{states}");
}

#[test]
fn a_user_who_waits_to_be_made_is_named() {
    let mut world = World::with(1, |settings| settings.new_users_per_second_max = 1);
    world.stream(0, "user=first", 0);
    let (_, id) = world.stream(0, "user=second", 0);
    let page = read(&told(&mut world, 0, "/v1/streams?user=second"));
    assert_eq!(ids(&page), [id]);
    assert_eq!(page["streams"][0]["user"], "second");
}

#[test]
fn names_of_clients_are_kept_up_to_a_number() {
    let mut world = World::new(1);
    world.checks = false;
    let mut last = (None, String::new());
    for n in 0..1_024 {
        let (peer, id) = open(&mut world, 0, "", &format!("User-Agent: c{n}\r\n"));
        last = (Some(peer), id);
    }
    assert_eq!(world.count(0, Counter::LimitClientNames), 1);
    let client = |world: &mut World, id: &str| {
        read(&told(world, 0, &format!("/v1/streams/{id}")))["client"].clone()
    };
    assert_eq!(client(&mut world, &last.1), Value::Null);
    let (_, known) = open(&mut world, 0, "", "User-Agent: c7\r\n");
    assert_eq!(client(&mut world, &known), "c7");
    let long = "x".repeat(200);
    let (_, cut) = {
        world.reset(last.0.expect("some were opened"));
        let first = read(&told(&mut world, 0, "/v1/streams?limit=1"));
        let first = ids(&first).remove(0);
        assert_eq!(ends(&mut world, 0, &first), NO_CONTENT);
        open(&mut world, 0, "", &format!("User-Agent: {long}\r\n"))
    };
    assert_eq!(client(&mut world, &cut), "x".repeat(128));
}

#[test]
fn a_presence_node_has_no_streams() {
    let mut world = World::of_role(1, Role::Presence, 10);
    let lines = bearer(&world.key().service_token());
    for line in [
        "GET /v1/streams",
        "GET /v1/streams/x",
        "DELETE /v1/streams/x",
    ] {
        let answer = asked(&mut world, 0, line, &lines, "");
        assert_eq!(
            status_and_slug(&answer),
            ("HTTP/1.1 421 Misdirected Request", "wrong-role"),
            "{line}"
        );
        assert!(answer.contains("real-time node"), "{answer}");
    }
}

#[test]
fn only_a_head_is_asked_for() {
    let mut world = World::new(2);
    let peer = world.connect(0);
    world.send(peer, request("HEAD", "/v1/streams"));
    let answer = world.received(peer);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
}
