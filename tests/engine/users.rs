//! User ids at their bounds: accepted or refused the same way at every door.

use greendot::wire::beat::Writer;

use super::harness::{NO_CONTENT, World, json, problem, status_and_slug, unseen};
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
        let path = format!("/v1/presence/{}", escaped(user.as_bytes()));
        let absent = format!(
            "{{\"user\":{in_json},\"status\":\"offline\",\"since\":null,\"last_active\":null}}"
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

#[test]
fn illegal_ones_are_refused_at_every_door() {
    let too_long = "x".repeat(129);
    let too_wide = "é".repeat(64) + "x";
    let cases: &[(&[u8], &str)] = &[
        (too_long.as_bytes(), "the user id is longer than 128 bytes"),
        (too_wide.as_bytes(), "the user id is longer than 128 bytes"),
        (b"a\0b", "the user id holds a control character"),
        (b"a\nb", "the user id holds a control character"),
        (b"\x7f", "the user id holds a control character"),
        (
            "a\u{85}".as_bytes(),
            "the user id holds a control character",
        ),
        (b"\xff", "the user id is not UTF-8"),
        (b"\xc3", "the user id is not UTF-8"),
        (b"\xed\xa0\x80", "the user id is not UTF-8"),
    ];
    let mut world = World::new(1);
    let bob = world.connect(0);
    for (user, why) in cases {
        let refusal = |detail: &str| {
            problem(
                "400 Bad Request",
                "bad-user",
                "A user id is not legal",
                detail,
                "",
            )
        };
        let raw = escaped(user);
        world
            .get(bob, &format!("/v1/presence/{raw}"))
            .expect(bob, refusal(why));
        world
            .get(bob, &format!("/v1/presence?user={raw}"))
            .expect(bob, refusal(why));
        world.get(bob, &format!("/v1/stream?user={raw}"));
        world.expect(bob, refusal(&format!("user[0]: {why}")));
        world.get(bob, &format!("/v1/stream?watch=a&watch={raw}"));
        world.expect(bob, refusal(&format!("watch[1]: {why}")));
        if let Ok(user) = std::str::from_utf8(user) {
            let in_json = serde_json::to_string(user).expect("a string");
            world.post(bob, "/v1/beat", &format!("{{\"users\":[\"a\",{in_json}]}}"));
            world.expect(bob, refusal(&format!("users[1]: {why}")));
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
                ("HTTP/1.1 400 Bad Request", "bad-json")
            );
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
    world.get(bob, "/v1/presence?user=").expect(
        bob,
        problem(
            "400 Bad Request",
            "bad-user",
            "A user id is not legal",
            "the user id is empty; it takes 1 to 128 bytes of UTF-8",
            "",
        ),
    );
    assert_eq!(world.presence().users(), 0, "nothing was taken in");
}
