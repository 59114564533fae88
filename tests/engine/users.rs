//! User ids at their bounds: accepted or refused the same way at every door.

use greendot::wire::beat::Writer;

use super::harness::{NO_CONTENT, World, json, problem, record, status_and_slug, unseen};
use greendot::metrics::Counter;

/// Percent-encodes all bytes.
fn escaped(user: &[u8]) -> String {
    user.iter().map(|byte| format!("%{byte:02X}")).collect()
}

/// A signed datagram with one entry of these bytes, legal or not.
fn datagram(world: &World, user: &[u8]) -> Vec<u8> {
    let sealed = Writer::new(false, world.now().unix, world.key());
    let head = sealed.seal(world.key());
    let mut bytes = head[..16].to_vec();
    bytes.push(user.len() as u8);
    bytes.extend_from_slice(user);
    let fleet = blake3_mac(&bytes);
    bytes.extend_from_slice(&fleet);
    bytes
}

/// The MAC of the world's key, made by hand: the writer refuses illegal users.
fn blake3_mac(bytes: &[u8]) -> [u8; 16] {
    let hash = blake3::keyed_hash(&[7; 32], bytes);
    *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
}

#[test]
fn legal_ones_are_one_user_at_every_door() {
    let long = "x".repeat(128);
    let wide = "é".repeat(64);
    for user in [
        "b",
        &long,
        &wide,
        "a/b",
        "a%2Fb",
        "a+b",
        " a b ",
        "\u{1F7E2}",
        "a\"b\\c",
        "a&b=c",
        "\u{a0}\u{2028}",
    ] {
        let mut world = World::new(1);
        let in_json = serde_json::to_string(user).expect("a string");
        let in_json = in_json.replace('\u{2028}', "\\u2028");
        let path = format!("/v1/presence/{}", escaped(user.as_bytes()));
        let absent = format!(
            "{{\"user\":{in_json},\"status\":\"offline\",\"online\":false,\"since\":null,\
             \"last_active\":null}}"
        );
        let bob = world.connect(0);
        world.get(bob, &path).expect(bob, json(&absent));
        let bytes = datagram(&world, user.as_bytes());
        world.datagram(0, &bytes);
        assert_eq!(world.count(0, Counter::BeatsUdp), 1, "{user:?}");
        world
            .post(bob, "/v1/beat", &format!("{{\"users\":[{in_json}]}}"))
            .expect(bob, NO_CONTENT);
        let (_, _) = world.stream(0, &format!("user={}", escaped(user.as_bytes())), 0);
        assert_eq!(
            world.presence().users(),
            1,
            "one user at all doors: {user:?}"
        );
        let present = absent
            .replace("offline", "online")
            .replace("false", "true")
            .replace("null", &super::harness::START.to_string());
        world.get(bob, &path).expect(bob, json(&present));
        world.get(
            bob,
            &format!("/v1/presence?user={}", escaped(user.as_bytes())),
        );
        world.expect(bob, json(&format!("{{\"presence\":[{present}]}}")));
        world.post(
            bob,
            "/v1/presence/query",
            &format!("{{\"users\":[{in_json}]}}"),
        );
        world.expect(bob, json(&format!("{{\"presence\":[{present}]}}")));
    }
}

#[test]
fn percent_encoding_is_undone_once_and_a_plus_is_a_space_in_queries_only() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    world
        .get(bob, "/v1/presence/a%252Fb")
        .expect(bob, json(&unseen("a%2Fb")));
    world
        .get(bob, "/v1/presence/a%2Fb")
        .expect(bob, json(&unseen("a/b")));
    world
        .get(bob, "/v1/presence/a+b")
        .expect(bob, json(&unseen("a+b")));
    world.get(bob, "/v1/presence?user=a+b&user=a%2Bb&user=a%252Fb");
    let all = [unseen("a b"), unseen("a+b"), unseen("a%2Fb")].join(",");
    world.expect(bob, json(&format!("{{\"presence\":[{all}]}}")));
}

/// One that stands alone is refused with 400; one of a list refuses itself, and spoils nothing.
#[test]
fn illegal_ones_are_refused_at_every_door() {
    let too_long = "x".repeat(129);
    let too_wide = "é".repeat(64) + "x";
    let (long, control) = (
        ("the user id is longer than 128 bytes", "too_long"),
        ("the user id holds a control character", "control"),
    );
    let not_utf8 = ("the user id is not UTF-8", "not_utf8");
    let empty = (
        "the user id is empty; it takes 1 to 128 bytes of UTF-8",
        "empty",
    );
    let cases: &[(&[u8], (&str, &str))] = &[
        (b"", empty),
        (too_long.as_bytes(), long),
        (too_wide.as_bytes(), long),
        (b"a\0b", control),
        (b"a\nb", control),
        (b"\x7f", control),
        ("a\u{85}".as_bytes(), control),
        (b"\xff", not_utf8),
        (b"\xc3", not_utf8),
        (b"\xed\xa0\x80", not_utf8),
    ];
    let mut world = World::new(1);
    let bob = world.connect(0);
    for (user, (why, word)) in cases {
        let refusal = |detail: &str| {
            problem(
                "400 Bad Request",
                "bad-user",
                "A user id is not legal",
                detail,
                "",
            )
        };
        let refused =
            format!("\"refused\":[{{\"index\":1,\"reason\":\"{word}\"}}],\"refused_total\":1");
        let raw = escaped(user);
        if !user.is_empty() {
            world
                .get(bob, &format!("/v1/presence/{raw}"))
                .expect(bob, refusal(why));
        }
        world.get(bob, &format!("/v1/presence?user=a&user={raw}&user=b"));
        let both = [unseen("a"), unseen("b")].join(",");
        world.expect(bob, json(&format!("{{\"presence\":[{both}],{refused}}}")));
        world.get(bob, &format!("/v1/stream?user={raw}"));
        world.expect(bob, refusal(&format!("user: {why}")));
        let watcher = world.connect(0);
        world.get(watcher, &format!("/v1/stream?watch=a&watch={raw}&watch=b"));
        let received = world.received(watcher);
        assert!(received.contains("\"watching\":2,"), "{received}");
        assert!(
            received.contains(&format!(",{refused}}}\n\n")),
            "{received}"
        );
        if let Ok(user) = std::str::from_utf8(user) {
            let in_json = serde_json::to_string(user).expect("a string");
            let users = format!("{{\"users\":[\"a\",{in_json}]}}");
            world.post(bob, "/v1/leave", &users);
            world.expect(bob, json(&format!("{{{refused}}}")));
            world.post(bob, "/v1/presence/query", &users);
            let answer = format!("{{\"presence\":[{}],{refused}}}", unseen("a"));
            world.expect(bob, json(&answer));
            world.post(bob, "/v1/stream", &format!("{{\"user\":{in_json}}}"));
            world.expect(bob, refusal(&format!("user: {why}")));
        } else {
            let body = [b"{\"users\":[\"", *user, b"\"]}"].concat();
            let mut post = format!(
                "POST /v1/beat HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n",
                body.len()
            )
            .into_bytes();
            post.extend_from_slice(&body);
            world.send(bob, post);
            let answer = world.received(bob);
            assert_eq!(
                status_and_slug(&answer),
                ("HTTP/1.1 400 Bad Request", "bad-json"),
                "it is no JSON text"
            );
        }
        if user.is_empty() {
            continue;
        }
        let refused = world.count(0, Counter::DatagramEntry);
        let bytes = datagram(&world, user);
        world.datagram(0, &bytes);
        assert_eq!(
            world.count(0, Counter::DatagramEntry),
            refused + 1,
            "{user:?}"
        );
    }
    let bad_escape = problem(
        "400 Bad Request",
        "bad-user",
        "A user id is not legal",
        "a % is not followed by two hex digits",
        "",
    );
    world.get(bob, "/v1/presence/%zz").expect(bob, bad_escape);
    world.get(bob, "/v1/presence?user=%zz").expect(
        bob,
        json(
            "{\"presence\":[],\"refused\":[{\"index\":0,\"reason\":\"bad_escape\"}],\
             \"refused_total\":1}",
        ),
    );
    assert_eq!(world.presence().users(), 0, "nothing was taken in");
}

/// One illegal id among a thousand: the others beat, say goodbye, and are watched.
#[test]
fn one_bad_item_spoils_nothing_else() {
    let mut world = World::new(2);
    let bob = world.connect(0);
    let mut users: Vec<String> = (0..999).map(|n| format!("\"u{n}\"")).collect();
    users.insert(500, "\"\\u0007\"".to_owned());
    let body = format!("{{\"users\":[{}]}}", users.join(","));
    let refused = "\"refused\":[{\"index\":500,\"reason\":\"control\"}],\"refused_total\":1";
    world
        .post(bob, "/v1/beat", &body)
        .expect(bob, json(&format!("{{{refused}}}")));
    assert_eq!(
        (world.presence().users(), world.presence().online()),
        (999, 999)
    );
    world
        .post(bob, "/v1/leave", &body)
        .expect(bob, json(&format!("{{{refused}}}")));
    assert_eq!(world.presence().online(), 0);
    assert_eq!(world.count(0, Counter::ItemControl), 2);

    // What is no string is no user either, and neither is half of a surrogate pair.
    let strange = "{\"users\":[1,null,[\"a\"],{\"a\":1},\"\\ud800\",\"good\"]}";
    world.post(bob, "/v1/beat", strange);
    let answer = world.received(bob);
    for (index, reason) in ["not_a_string"; 4].iter().chain(&["not_utf8"]).enumerate() {
        let item = format!("{{\"index\":{index},\"reason\":\"{reason}\"}}");
        assert!(answer.contains(&item), "{answer}");
    }
    assert!(answer.contains("\"refused_total\":5"), "{answer}");
    assert_eq!(world.ask(0, "good"), record("good", "online", 0, 0));

    // On another shard, too, an edit says which of its items are none.
    let (stream, id) = world.stream(1, "watch=u0", 1);
    world.received(stream);
    world.post(
        bob,
        &format!("/v1/stream/{id}/watch"),
        "{\"add\":[\"\",\"u1\"],\"remove\":[\"u0\",7]}",
    );
    world.expect(
        bob,
        json(
            "{\"watching\":1,\"refused\":[{\"list\":\"add\",\"index\":0,\"reason\":\"empty\"},\
             {\"list\":\"remove\",\"index\":1,\"reason\":\"not_a_string\"}],\
             \"refused_total\":2}",
        ),
    );
}
