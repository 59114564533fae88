//! Users who prove who they are: each kind of caller at each surface, what a token's end does, and
//! what a holder is told.

use std::sync::Arc;

use greendot::auth::{
    Claims, Identity, Keys, LastActive, Rates, Rules, Scope, Signer, Tickets, WatchDefault,
    new_service_key,
};
use greendot::engine::{Operators, Role};
use greendot::metrics::{Counter, Gauge};
use greendot::time::{Mono, Now, Unix};
use greendot::wire::nodes::Nodes;

use super::harness::{
    BOOT_MS, Peer, START, World, record, snapshot, status_and_slug, told, told_of_many, unseen,
};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
pub(super) const HOUR_MS: u64 = 3_600_000;

/// The world's beginning.
pub(super) fn begin() -> Now {
    Now {
        mono: Mono::default().plus_ms(BOOT_MS),
        unix: Unix::from_ms(START),
    }
}

pub(super) fn identity() -> Identity {
    let mut keys = Keys::default();
    keys.add("app", SECRET).expect("it has 32 bytes");
    Identity {
        rules: Rules {
            keys,
            audience: None,
            issuer: None,
            ttl_max_ms: 24 * HOUR_MS,
            watch_default: WatchDefault::Nobody,
        },
        cookie: Some("token".into()),
        query: false,
        tickets: Arc::new(Tickets::new(1, 1 << 20, begin())),
        rates: Arc::new(Rates::unlimited()),
    }
}

pub(super) fn world(shards: u16) -> World {
    World::asking(shards, Role::All, identity())
}

/// What a test's token says.
#[derive(Clone, Copy)]
pub(super) struct Said {
    pub(super) user: &'static str,
    pub(super) watch: &'static [&'static str],
    pub(super) last_active: LastActive,
    pub(super) publish: bool,
    /// Made so long after the world's beginning.
    pub(super) issued_ms: u64,
    /// It is good so long after the world's beginning.
    pub(super) ttl_ms: u64,
    pub(super) id: Option<&'static str>,
}

pub(super) const ALICE: Said = Said {
    user: "alice",
    watch: &["bob", "team-*"],
    last_active: LastActive::Exact,
    publish: true,
    issued_ms: 0,
    ttl_ms: HOUR_MS,
    id: None,
};

pub(super) fn token(said: &Said) -> String {
    let start = Unix::from_ms(START);
    let watch: Vec<String> = said.watch.iter().map(|entry| entry.to_string()).collect();
    let claims = Claims {
        user: said.user,
        issued: start.plus_ms(said.issued_ms),
        expires: start.plus_ms(said.ttl_ms),
        audience: None,
        issuer: None,
        id: said.id,
        watch: Some(&watch),
        last_active: said.last_active,
        publish: said.publish,
    };
    let signer = Signer::new(None, SECRET).expect("it has 32 bytes");
    signer.token(&claims).expect("a signature")
}

/// A token of this user, who may watch nobody.
pub(super) fn token_of(user: &str) -> String {
    let issued = Unix::from_ms(START);
    let claims = Claims {
        user,
        issued,
        expires: issued.plus_ms(HOUR_MS),
        audience: None,
        issuer: None,
        id: None,
        watch: None,
        last_active: LastActive::Exact,
        publish: true,
    };
    let signer = Signer::new(None, SECRET).expect("it has 32 bytes");
    signer.token(&claims).expect("a signature")
}

pub(super) fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// A request with more header lines, and a body of JSON if there is one.
pub(super) fn request(line: &str, lines: &str, body: &str) -> String {
    let typed = match body {
        "" => String::new(),
        body => {
            let bytes = body.len();
            format!("Content-Type: application/json\r\nContent-Length: {bytes}\r\n")
        }
    };
    format!("{line} HTTP/1.1\r\nHost: a\r\n{lines}{typed}\r\n{body}")
}

pub(super) fn asked(
    world: &mut World,
    shard: usize,
    line: &str,
    lines: &str,
    body: &str,
) -> String {
    let peer = world.connect(shard);
    world.send(peer, request(line, lines, body));
    world.received(peer)
}

/// Opens a stream and gives its id.
pub(super) fn stream(
    world: &mut World,
    query: &str,
    token: &str,
    watching: usize,
) -> (Peer, String) {
    let peer = world.connect(0);
    let line = format!("GET /v1/stream?{query}");
    world.send(peer, request(&line, &bearer(token), ""));
    let id = world.expect_hello(peer, watching);
    (peer, id)
}

/// A service's key, and its line of the file.
pub(super) fn service(name: &str, scopes: &str) -> (String, String) {
    let scopes = scopes.parse().expect("scopes");
    new_service_key(name, scopes, &[name.len() as u8; 32]).expect("a name")
}

/// Each caller at each surface: `{id}` stands for that of a stream that alice's token has opened.
#[rustfmt::skip]
const SURFACES: &[(&str, &str, [&str; 7])] = &[
    // no token, garbage, void, alice, alice as a viewer, zoe who may watch all, a node
    ("GET /v1/presence/bob", "",       ["401", "401", "401", "200", "200", "200", "200"]),
    ("HEAD /v1/presence/bob", "",      ["401", "401", "401", "200", "200", "200", "200"]),
    ("GET /v1/presence/alice", "",     ["401", "401", "401", "200", "200", "200", "200"]),
    ("GET /v1/presence/team-x", "",    ["401", "401", "401", "200", "200", "200", "200"]),
    ("GET /v1/presence/carol", "",     ["401", "401", "401", "watch", "watch", "200", "200"]),
    ("GET /v1/presence?user=bob&user=carol", "",
                                       ["401", "401", "401", "watch", "watch", "200", "200"]),
    ("POST /v1/presence/query", r#"{"users":["bob","alice"]}"#,
                                       ["401", "401", "401", "200", "200", "200", "200"]),
    ("POST /v1/presence/query", r#"{"users":["bob","carol"]}"#,
                                       ["401", "401", "401", "watch", "watch", "200", "200"]),
    ("GET /v1/stream?watch=bob", "",   ["401", "401", "401", "200", "200", "200", "401"]),
    ("GET /v1/stream?watch=carol", "", ["401", "401", "401", "watch", "watch", "200", "401"]),
    ("GET /v1/stream?watch=carol&last_event_id=1", "",
                                       ["401", "401", "401", "watch", "watch", "200", "401"]),
    ("POST /v1/stream", r#"{"watch":["bob","carol"]}"#,
                                       ["401", "401", "401", "watch", "watch", "200", "401"]),
    ("GET /v1/stream?user=alice", "",  ["401", "401", "401", "200", "user", "user", "401"]),
    ("GET /v1/stream?user=me", "",     ["401", "401", "401", "200", "user", "200", "401"]),
    ("POST /v1/stream", r#"{"user":"alice","watch":[]}"#,
                                       ["401", "401", "401", "200", "user", "user", "401"]),
    ("POST /v1/stream/{id}/watch", r#"{"add":["bob"]}"#,
                                       ["401", "401", "401", "200", "200", "404", "401"]),
    ("POST /v1/stream/{id}/watch", r#"{"remove":["carol"]}"#,
                                       ["401", "401", "401", "200", "200", "404", "401"]),
    ("POST /v1/stream/{id}/watch", r#"{"add":["bob","carol"]}"#,
                                       ["401", "401", "401", "watch", "watch", "404", "401"]),
    ("POST /v1/stream/{id}/token", "", ["401", "401", "401", "200", "user", "404", "401"]),
    ("POST /v1/stream/{id}/beat", "",  ["401", "401", "401", "204", "user", "404", "401"]),
    ("POST /v1/beat", r#"{"users":["alice"]}"#,
                                       ["401", "401", "401", "204", "user", "user", "204"]),
    ("POST /v1/beat", r#"{"users":["alice","bob"]}"#,
                                       ["401", "401", "401", "user", "user", "user", "204"]),
    ("POST /v1/status", r#"{"status":"busy"}"#,
                                       ["401", "401", "401", "200", "user", "200", "400"]),
    ("POST /v1/status", r#"{"user":"me","status":"busy"}"#,
                                       ["401", "401", "401", "200", "user", "200", "200"]),
    ("POST /v1/status", r#"{"user":"alice","status":"online"}"#,
                                       ["401", "401", "401", "200", "user", "user", "200"]),
    ("POST /v1/beat", r#"{"users":["bob"],"invisible":true}"#,
                                       ["401", "401", "401", "user", "user", "user", "200"]),
    ("GET /v1/stream?user=alice&status=busy", "",
                                       ["401", "401", "401", "200", "user", "user", "401"]),
    ("POST /v1/leave", r#"{"users":["alice"]}"#,
                                       ["401", "401", "401", "204", "user", "user", "204"]),
    ("POST /v1/leave", r#"{"users":["bob"]}"#,
                                       ["401", "401", "401", "user", "user", "user", "204"]),
    ("POST /v1/leave", r#"{"users":["alice"],"everywhere":true}"#,
                                       ["401", "401", "401", "204", "user", "user", "204"]),
    ("POST /v1/leave", r#"{"stream":"{id}"}"#,
                                       ["401", "401", "401", "204", "204", "404", "204"]),
    ("DELETE /v1/presence/nobody", "", ["401", "401", "401", "401", "401", "401", "204"]),
    ("POST /v1/revoke", r#"{"jti":"x"}"#,
                                       ["401", "401", "401", "401", "401", "401", "204"]),
    ("POST /v1/datagrams", "",         ["411", "411", "411", "411", "411", "411", "411"]),
    ("POST /v1/device-key", r#"{"device":"phone"}"#,
                                       ["401", "401", "401", "200", "user", "200", "401"]),
    ("POST /v1/ticket", "",            ["401", "401", "401", "200", "200", "200", "400"]),
    ("GET /metrics", "",               ["401", "401", "401", "401", "401", "401", "200"]),
    ("GET /v1/streams", "",            ["401", "401", "401", "401", "401", "401", "200"]),
    ("GET /v1/streams/{id}", "",       ["401", "401", "401", "401", "401", "401", "200"]),
    ("DELETE /v1/streams/{id}", "",    ["401", "401", "401", "401", "401", "401", "204"]),
    ("GET /v1/online", "",             ["401", "401", "401", "401", "401", "401", "200"]),
    ("GET /livez", "",                 ["200", "200", "200", "200", "200", "200", "200"]),
    ("GET /client.js", "",             ["200", "200", "200", "200", "200", "200", "200"]),
    ("GET /nonsense", "",              ["404", "404", "404", "404", "404", "404", "404"]),
    ("OPTIONS /v1/stream", "",         ["204", "204", "204", "204", "204", "204", "204"]),
];

/// How a cell of the matrix reads.
pub(super) fn cell(answer: &str) -> String {
    let (status, slug) = status_and_slug(answer);
    match slug {
        "watch-denied" => "watch".into(),
        "not-the-user" => "user".into(),
        _ => status[9..12].to_owned(),
    }
}

#[test]
fn each_caller_at_each_surface() {
    let mut world = world(2);
    let alice = token(&ALICE);
    let callers = [
        None,
        Some("a.b.c".to_owned()),
        Some(token(&Said {
            ttl_ms: 1_000,
            ..ALICE
        })),
        Some(alice.clone()),
        Some(token(&Said {
            publish: false,
            ..ALICE
        })),
        Some(token(&Said {
            user: "zoe",
            watch: &["*"],
            ..ALICE
        })),
        Some(world.key().service_token()),
    ];
    world.at(2_000);
    for (line, body, expected) in SURFACES {
        for (caller, expected) in callers.iter().zip(expected) {
            let (watcher, id) = stream(&mut world, "user=alice&watch=bob", &alice, 1);
            let lines = caller.as_deref().map(bearer).unwrap_or_default();
            let (line, body) = (line.replace("{id}", &id), body.replace("{id}", &id));
            for shard in [0, 1] {
                // What ends the stream can be said once.
                if shard == 1 && world.is_closed(watcher) {
                    continue;
                }
                let answer = asked(&mut world, shard, &line, &lines, &body);
                assert_eq!(
                    cell(&answer),
                    *expected,
                    "{line} {body} {caller:?} {answer}"
                );
            }
            world.reset(watcher);
        }
    }
    let refused = [
        Counter::TokenForm,
        Counter::TokenExpired,
        Counter::TokenSignature,
    ];
    let refused = refused.map(|reason| world.count(0, reason) > 0);
    assert_eq!(refused, [true, true, false]);
}

#[test]
fn a_refusal_names_whom_and_changes_nothing() {
    let mut world = world(1);
    let lines = bearer(&token(&ALICE));
    let denied = |world: &mut World, line: &str, body: &str| {
        let answer = asked(world, 0, line, &lines, body);
        let (_, detail) = answer.split_once("\"detail\":").expect(&answer);
        detail.trim_end_matches('}').to_owned()
    };
    assert_eq!(
        denied(
            &mut world,
            "GET /v1/presence?user=bob&user=carol&user=%C3%A9%22",
            ""
        ),
        r#""the token does not let its holder learn of [\"carol\",\"é\\\"\"]""#
    );
    let many: Vec<String> = (0..20).map(|n| format!("\"u{n}\"")).collect();
    let told = denied(
        &mut world,
        "POST /v1/stream",
        &format!(
            "{{\"user\":\"alice\",\"watch\":[\"bob\",{}]}}",
            many.join(",")
        ),
    );
    assert!(told.ends_with("\\\"u15\\\"] and 4 more\""), "{told}");
    for (line, body) in [
        ("POST /v1/beat", r#"{"users":["alice","mallory"]}"#),
        ("GET /v1/stream?user=mallory", ""),
        ("GET /v1/presence/carol", ""),
    ] {
        denied(&mut world, line, body);
    }
    let viewer = bearer(&token(&Said {
        publish: false,
        ..ALICE
    }));
    asked(&mut world, 0, "GET /v1/stream?user=me", &viewer, "");
    asked(
        &mut world,
        0,
        "POST /v1/beat",
        &viewer,
        r#"{"users":["alice"]}"#,
    );
    assert_eq!(world.presence().users(), 0, "nobody has been made a user");
    let watches = [Gauge::WatchesBySlot, Gauge::WatchesByName, Gauge::Streams];
    assert_eq!(watches.map(|gauge| world.gauge(0, gauge)), [0, 0, 0]);

    // An edit is all or nothing too.
    let (alice, id) = stream(&mut world, "watch=bob", &token(&ALICE), 1);
    world.expect(alice, snapshot(0, &[unseen("bob")]));
    let edit = format!("POST /v1/stream/{id}/watch");
    denied(
        &mut world,
        &edit,
        r#"{"add":["team-a","carol"],"remove":["bob"]}"#,
    );
    world.expect_nothing(alice);
    assert_eq!(world.gauge(0, Gauge::WatchesByName), 1);
}

/// Streams of one user are that user's, whichever token opened them; the other tokens' are not.
#[test]
fn me_is_whose_the_token_is() {
    let mut world = world(1);
    let (alice, id) = stream(&mut world, "user=me&watch=alice", &token(&ALICE), 1);
    world.expect(alice, snapshot(0, &[record("alice", "online", 0, 0)]));
    let renewed = token(&Said {
        watch: &["carol"],
        ttl_ms: 2 * HOUR_MS,
        ..ALICE
    });
    let edit = format!("POST /v1/stream/{id}/watch");
    let answer = asked(
        &mut world,
        0,
        &edit,
        &bearer(&renewed),
        r#"{"add":["carol"]}"#,
    );
    assert!(answer.ends_with("{\"watching\":2}"), "{answer}");
    world.expect(alice, told(0, &unseen("carol")));
}

/// What a new token makes of a stream, from either shard.
#[test]
fn a_stream_gets_another_token() {
    let mut world = world(2);
    let short = token(&Said {
        watch: &["*"],
        ttl_ms: 90_000,
        ..ALICE
    });
    for shard in [0, 1] {
        let query = "user=me&watch=bob&watch=carol&watch=team-x&watch=alice";
        let (watcher, id) = stream(&mut world, query, &short, 4);
        let line = format!("POST /v1/stream/{id}/token");
        let renew = |world: &mut World, said: &Said| {
            let answer = asked(world, shard, &line, &bearer(&token(said)), "");
            let (_, body) = answer.split_once("\r\n\r\n").expect(&answer);
            body.to_owned()
        };
        let later = Said {
            ttl_ms: HOUR_MS,
            ..ALICE
        };
        assert_eq!(
            renew(&mut world, &later),
            r#"{"dropped":["carol"],"dropped_total":1,"watching":3}"#
        );
        assert_eq!(
            renew(&mut world, &later),
            r#"{"dropped":[],"dropped_total":0,"watching":3}"#
        );
        for (said, slug) in [
            (
                Said {
                    publish: false,
                    ..ALICE
                },
                "not-the-user",
            ),
            (
                Said {
                    user: "zoe",
                    ..ALICE
                },
                "unknown-stream",
            ),
        ] {
            let answer = asked(&mut world, shard, &line, &bearer(&token(&said)), "");
            assert_eq!(status_and_slug(&answer).1, slug);
        }
        world.received(watcher);
        world.reset(watcher);
    }
}

#[test]
fn a_stream_lives_as_long_as_its_last_token() {
    let mut world = world(1);
    let open = |world: &mut World, ttl_ms| {
        let (peer, id) = stream(world, "watch=bob", &token(&Said { ttl_ms, ..ALICE }), 1);
        (peer, format!("POST /v1/stream/{id}/token"))
    };
    let (longer, renew_longer) = open(&mut world, 60_000);
    let (shorter, renew_shorter) = open(&mut world, HOUR_MS);
    for (line, ttl_ms) in [(renew_longer, 120_000), (renew_shorter, 90_000)] {
        let lines = bearer(&token(&Said { ttl_ms, ..ALICE }));
        let answer = asked(&mut world, 0, &line, &lines, "");
        assert_eq!(status_and_slug(&answer).0, "HTTP/1.1 200 OK");
    }
    let ends_at = |world: &mut World, peer, ms: u64| {
        world.at(ms - 1);
        world.received(peer);
        world.expect_open(peer);
        world.at(ms + 1_000);
        let received = world.received(peer);
        assert!(
            received.ends_with("event: expired\ndata: {}\n\n"),
            "{received}"
        );
    };
    ends_at(&mut world, shorter, 90_000);
    ends_at(&mut world, longer, 120_000);
}

/// A new token may let its holder learn less exactly when others were active.
#[test]
fn a_new_token_decides_how_exactly_is_told() {
    let mut world = world(1);
    let (watcher, id) = stream(&mut world, "watch=bob", &token(&ALICE), 1);
    world.expect(watcher, snapshot(0, &[unseen("bob")]));
    let coarse = Said {
        last_active: LastActive::None,
        ..ALICE
    };
    let line = format!("POST /v1/stream/{id}/token");
    asked(&mut world, 0, &line, &bearer(&token(&coarse)), "");
    let node = bearer(&world.key().service_token());
    asked(
        &mut world,
        0,
        "POST /v1/beat",
        &node,
        r#"{"users":["bob"]}"#,
    );
    let received = world.received(watcher);
    assert!(received.contains(r#""last_active":null"#), "{received}");
}

#[test]
fn where_nobody_is_asked_streams_have_no_token() {
    let mut world = World::new(1);
    let answer = asked(&mut world, 0, "POST /v1/stream/0.1.2.3/token", "", "");
    let (status, slug) = status_and_slug(&answer);
    assert_eq!((status, slug), ("HTTP/1.1 404 Not Found", "not-found"));
}

#[test]
fn a_stream_ends_with_its_token() {
    let mut world = world(1);
    let short = token(&Said {
        ttl_ms: 90_000,
        ..ALICE
    });
    let streams: Vec<Peer> = (0..1_000)
        .map(|_| stream(&mut world, "watch=bob", &short, 1).0)
        .collect();
    let (longer, _) = stream(&mut world, "watch=bob", &token(&ALICE), 1);
    world.at(89_999);
    for peer in &streams {
        world.received(*peer);
    }
    world.received(longer);
    world.at(91_000);
    for peer in streams {
        let received = world.received(peer);
        assert!(
            received.ends_with("event: expired\ndata: {}\n\n"),
            "{received}"
        );
        world.expect_whole(peer).expect_closed(peer);
    }
    world.expect_open(longer);
    assert_eq!(world.count(0, Counter::ClosedExpired), 1_000);
    let answer = asked(&mut world, 0, "GET /v1/stream", &bearer(&short), "");
    assert!(
        answer.contains("expired: the token has expired"),
        "{answer}"
    );
}

/// Who is told less is told less everywhere.
#[test]
fn how_exactly_others_were_last_active() {
    for (level, told_ms) in [
        (LastActive::Exact, Some(61_234)),
        (LastActive::Minutes, Some(60_000)),
        (LastActive::None, None),
    ] {
        let mut world = world(1);
        let told_so = token(&Said {
            last_active: level,
            ..ALICE
        });
        world.at(61_234).beat(0, &["bob"]);
        let bob = record("bob", "online", 61_234, told_ms);
        let lines = bearer(&told_so);
        for (line, body) in [
            ("GET /v1/presence/bob", ""),
            ("GET /v1/presence?user=bob", ""),
            ("POST /v1/presence/query", r#"{"users":["bob"]}"#),
        ] {
            let answer = asked(&mut world, 0, line, &lines, body);
            assert!(answer.contains(&bob), "{level:?} {line} {answer}");
        }
        let (peer, _) = stream(&mut world, "watch=bob&watch=team-a", &told_so, 2);
        // One who is told all shares a turn with one who is not.
        let (exact, _) = stream(&mut world, "watch=bob", &token(&ALICE), 1);
        world.expect(peer, snapshot(61_234, &[bob, unseen("team-a")]));
        world.received(exact);
        world.at(62_000).leave(0, &["bob"]);
        world.beat(0, &["team-a"]);
        let offline = |ms| record("bob", "offline", 62_000, ms);
        let team = record("team-a", "online", 62_000, told_ms.map(|ms| ms.max(60_000)));
        let team = match level {
            LastActive::Exact => record("team-a", "online", 62_000, 62_000),
            _ => team,
        };
        let bob = match level {
            LastActive::Exact => offline(Some(62_000)),
            _ => offline(told_ms),
        };
        world.expect(peer, told_of_many(&bob) + &told(62_000, &team));
        world.expect(exact, told(62_000, &offline(Some(62_000))));
    }
}

/// A cookie comes with any page's request: so the page counts too, even for reading.
#[test]
fn a_cookie_is_taken_from_own_pages() {
    let mut world = world(1);
    let cookie = format!("Cookie: a=b; token={}\r\n", token(&ALICE));
    for (more, expected) in [
        ("", "200"),
        ("Sec-Fetch-Site: same-origin\r\n", "200"),
        ("Origin: http://a\r\n", "200"),
        ("Sec-Fetch-Site: cross-site\r\n", "403"),
        ("Sec-Fetch-Site: same-site\r\n", "403"),
        ("Origin: http://evil.example\r\n", "403"),
        // A header counts, and the cookie beside it does not.
        ("Authorization: Bearer a.b.c\r\n", "401"),
        ("Cookie: token=a.b.c\r\n", "401"),
    ] {
        for line in ["GET /v1/presence/bob", "GET /v1/stream?watch=bob"] {
            let answer = asked(&mut world, 0, line, &format!("{cookie}{more}"), "");
            assert_eq!(cell(&answer), expected, "{line} {more} {answer}");
        }
    }
    // What takes no token is not concerned: a link on another page leads here.
    let followed = format!("{cookie}Sec-Fetch-Site: cross-site\r\n");
    let answer = asked(&mut world, 0, "GET /", &followed, "");
    assert_eq!(cell(&answer), "200");
}

/// Who proves who they are may come under any name: a proxy passes on the one that clients use.
#[test]
fn any_name_will_do_for_a_token() {
    let operators = Operators::default();
    let mut world = World::with_operators(1, Role::All, Some(identity()), "", operators);
    let lines = bearer(&token(&ALICE));
    for (line, expected) in [
        ("GET /v1/presence/bob", "200"),
        ("GET /v1/stream?user=me", "200"),
        ("GET /client.js", "200"),
        // Open to this machine, so to its browser too.
        ("GET /metrics", "421"),
    ] {
        let request = request(line, &lines, "").replace("Host: a", "Host: dots.example.com");
        let peer = world.connect(0);
        world.send(peer, request);
        assert_eq!(cell(&world.received(peer)), expected, "{line}");
    }
}

/// Tokens of others wait for slices of their own once verifying has taken its share of a turn.
#[test]
fn a_storm_of_tokens_waits_for_its_slices() {
    let mut world = world(1);
    let line = request("GET /v1/presence/bob", &bearer(&token(&ALICE)), "");
    let storm = line.repeat(40);
    let peers: Vec<Peer> = (0..50).map(|_| world.connect(0)).collect();
    for peer in &peers {
        world.whisper(*peer, &storm);
    }
    world.turn();
    for peer in peers {
        let answers = world.received(peer);
        assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 40);
    }
    assert!(world.count(0, Counter::RequestsDeferred) > 0);
}

/// Nobody is asked where no keys are configured, whatever they show.
#[test]
fn without_keys_all_is_open() {
    let mut world = World::new(1);
    for lines in [String::new(), bearer("a.b.c"), "Cookie: token=a\r\n".into()] {
        let answer = asked(
            &mut world,
            0,
            "GET /v1/stream?user=me&watch=carol",
            &lines,
            "",
        );
        assert_eq!(cell(&answer), "200");
    }
    assert_eq!(world.presence().users(), 1);
}

/// Nodes of all roles ask; what a node does not serve it says before it asks.
#[test]
fn a_presence_node_asks_too() {
    let mut world = World::asking(1, Role::Presence, identity());
    let alice = bearer(&token(&ALICE));
    let node = bearer(&world.key().service_token());
    for (line, body, lines, expected) in [
        ("GET /v1/presence/bob", "", "", "401"),
        ("GET /v1/presence/bob", "", &*alice, "200"),
        ("GET /v1/presence/carol", "", &*alice, "watch"),
        (
            "POST /v1/presence/query",
            r#"{"users":["carol"]}"#,
            &*node,
            "200",
        ),
        ("POST /v1/beat", r#"{"users":["bob"]}"#, &*alice, "user"),
        ("GET /v1/stream?watch=bob", "", "", "421"),
    ] {
        let answer = asked(&mut world, 0, line, lines, body);
        assert_eq!(cell(&answer), expected, "{line} {answer}");
    }
}

/// Where services have keys: each scope at each surface. A dot: what the scope is refused.
#[rustfmt::skip]
const SERVED: &[(&str, &str, [&str; 10])] = &[
    // publish, beat, query, revoke, ticket, metrics, admin, an unknown key, a node, alice
    ("GET /v1/presence/carol", "",
        [".", ".", "200", ".", ".", ".", ".", "401", "200", "watch"]),
    ("GET /v1/presence?user=carol", "",
        [".", ".", "200", ".", ".", ".", ".", "401", "200", "watch"]),
    ("POST /v1/presence/query", r#"{"users":["bob","carol"]}"#,
        [".", ".", "200", ".", ".", ".", ".", "401", "200", "watch"]),
    ("POST /v1/beat", r#"{"users":["bob"]}"#,
        [".", "204", ".", ".", ".", ".", ".", "401", "204", "user"]),
    ("POST /v1/status", r#"{"user":"bob","status":"busy"}"#,
        [".", "200", ".", ".", ".", ".", ".", "401", "200", "user"]),
    ("POST /v1/leave", r#"{"users":["bob"]}"#,
        [".", "204", ".", ".", ".", ".", ".", "401", "204", "user"]),
    ("POST /v1/leave", r#"{"users":["bob"],"everywhere":true}"#,
        [".", "204", ".", ".", ".", ".", ".", "401", "204", "user"]),
    ("POST /v1/leave", r#"{"stream":"{id}"}"#,
        [".", "204", ".", ".", ".", ".", ".", "401", "204", "204"]),
    ("GET /v1/stream?watch=bob", "",
        [".", ".", ".", ".", ".", ".", "200", "401", "401", "200"]),
    ("POST /v1/stream", r#"{"watch":["bob"]}"#,
        [".", ".", ".", ".", ".", ".", "200", "401", "401", "200"]),
    ("POST /v1/stream/{id}/watch", r#"{"add":["bob"]}"#,
        [".", ".", ".", ".", ".", ".", "200", "401", "401", "200"]),
    ("POST /v1/stream/{id}/beat", "",
        [".", ".", ".", ".", ".", ".", ".", "401", "401", "204"]),
    ("POST /v1/stream/{id}/token", "",
        [".", ".", ".", ".", ".", ".", ".", "401", "401", "200"]),
    ("POST /v1/revoke", r#"{"jti":"x"}"#,
        [".", ".", ".", "204", ".", ".", ".", "401", ".", "401"]),
    ("DELETE /v1/presence/nobody", "",
        [".", ".", ".", ".", ".", ".", "204", "401", ".", "401"]),
    ("POST /v1/ticket", r#"{"sub":"carol","exp":1764009700}"#,
        [".", ".", ".", ".", "200", ".", ".", "401", ".", "200"]),
    ("POST /v1/device-key", r#"{"device":"phone"}"#,
        [".", ".", ".", ".", ".", ".", ".", "401", "401", "200"]),
    ("GET /metrics", "",
        [".", ".", ".", ".", ".", "200", ".", "401", ".", "401"]),
    ("GET /v1/streams?user=alice", "",
        [".", ".", ".", ".", ".", ".", "200", "401", ".", "401"]),
    ("GET /v1/streams/{id}", "",
        [".", ".", ".", ".", ".", ".", "200", "401", ".", "401"]),
    ("DELETE /v1/streams/{id}", "",
        [".", ".", ".", ".", ".", ".", "204", "401", ".", "401"]),
    ("GET /v1/online", "",
        [".", ".", ".", ".", ".", ".", "200", "401", ".", "401"]),
    ("GET /livez", "",
        ["200", "200", "200", "200", "200", "200", "200", "200", "200", "200"]),
];

/// At a real-time node, that is what nodes call there.
#[rustfmt::skip]
const MIRRORED: &[(&str, &str, [&str; 10])] = &[
    ("PUT /v1/presence", r#"{"presence":[]}"#,
        ["204", ".", ".", ".", ".", ".", ".", "401", "204", "401"]),
    ("POST /v1/streams/held", r#"{"users":["bob"]}"#,
        [".", ".", ".", ".", ".", ".", "200", "401", "200", "401"]),
    ("POST /v1/streams/end", r#"{"users":["bob"],"everywhere":true,"sent_at":1}"#,
        [".", ".", ".", ".", ".", ".", "204", "401", "204", "401"]),
];

fn serves(world: &mut World, rows: &[(&str, &str, [&str; 10])], streams: bool) {
    let alice = token(&ALICE);
    let names = Scope::ALL.map(Scope::name);
    let mut callers: Vec<String> = names.map(|name| service(name, name).0).into();
    callers.extend([
        service("else", "admin").0,
        world.key().service_token(),
        alice.clone(),
    ]);
    for (line, body, expected) in rows {
        for (caller, expected) in callers.iter().zip(expected) {
            let held = streams.then(|| stream(world, "user=alice&watch=bob", &alice, 1));
            let id = held.as_ref().map_or("", |(_, id)| id);
            let (line, body) = (line.replace("{id}", id), body.replace("{id}", id));
            let answer = asked(world, 0, &line, &bearer(caller), &body);
            let cell = match status_and_slug(&answer) {
                (_, "not-permitted") => ".".to_owned(),
                _ => cell(&answer),
            };
            assert_eq!(cell, *expected, "{line} {body} {caller} {answer}");
            if let Some((watcher, _)) = held {
                world.reset(watcher);
            }
        }
    }
}

fn files_of_services() -> String {
    let lines = Scope::ALL.map(|scope| service(scope.name(), scope.name()).1);
    lines.join("\n")
}

#[test]
fn each_scope_at_each_surface() {
    let file = files_of_services();
    let mut world = World::with_services(1, Role::All, Some(identity()), &file);
    serves(&mut world, SERVED, true);
    assert!(world.count(0, Counter::TokenService) > 0);
    let nodes = Nodes::new(["a:1"]);
    let nodes = Role::Realtime(std::sync::Arc::new(nodes));
    let mut world = World::with_services(1, nodes, Some(identity()), &file);
    serves(&mut world, MIRRORED, false);
}

#[test]
fn a_refusal_names_the_scope() {
    let file = files_of_services();
    let mut world = World::with_services(1, Role::All, Some(identity()), &file);
    let mut detail = |line: &str, token: &str| {
        let answer = asked(&mut world, 0, line, &bearer(token), "");
        let (_, detail) = answer.split_once("\"detail\":").expect(&answer);
        detail.trim_end_matches('}').to_owned()
    };
    let beat = service("beat", "beat").0;
    assert_eq!(
        detail("GET /v1/presence/bob", &beat),
        r#""the service key of beat lacks the scope query""#
    );
    assert_eq!(
        detail("GET /v1/stream", &beat),
        "\"a service key holds no stream; streams are opened by their users, and to look, by the \
         scope admin\""
    );
    let node = greendot::wire::beat::FleetKey::new([7; 32]).service_token();
    assert_eq!(
        detail("DELETE /v1/presence/bob", &node),
        r#""the token of a node lacks the scope admin; show the key of a service that has it""#
    );
}

/// Where users are asked for nothing a service is held to its scopes all the same; and where no
/// services are known, what looks like a key of one is nothing.
#[test]
fn services_beside_open_users() {
    let (query, line) = service("q", "query");
    let mut world = World::with_services(1, Role::All, None, &line);
    for (request, lines, expected) in [
        ("GET /v1/presence/bob", String::new(), "200"),
        ("GET /v1/presence/bob", bearer(&query), "200"),
        ("GET /v1/presence/bob", bearer(&format!("{query}x")), "401"),
        ("GET /v1/stream?watch=bob", String::new(), "200"),
        ("GET /v1/stream?watch=bob", bearer(&query), "403"),
        ("DELETE /v1/presence/bob", String::new(), "401"),
        ("DELETE /v1/presence/bob", bearer(&query), "403"),
        ("GET /metrics", String::new(), "200"),
    ] {
        let answer = asked(&mut world, 0, request, &lines, "");
        assert_eq!(cell(&answer), expected, "{request} {lines} {answer}");
    }
    let mut world = World::new(1);
    let answer = asked(&mut world, 0, "GET /v1/stream", &bearer(&query), "");
    assert_eq!(cell(&answer), "200");
    let answer = asked(
        &mut world,
        0,
        "DELETE /v1/presence/bob",
        &bearer(&query),
        "",
    );
    assert_eq!(cell(&answer), "401");
}

/// A service is told all, to the millisecond, and makes users at the node's rate.
#[test]
fn a_service_speaks_for_all() {
    let (key, line) = service("app", "beat,query");
    let mut world = World::with_services(1, Role::All, Some(identity()), &line);
    world.at(61_234);
    let lines = bearer(&key);
    let users: Vec<String> = (0..900).map(|n| format!("\"u{n}\"")).collect();
    for _ in 0..4 {
        let body = format!("{{\"users\":[{}]}}", users.join(","));
        let answer = asked(&mut world, 0, "POST /v1/beat", &lines, &body);
        assert_eq!(cell(&answer), "204", "{answer}");
    }
    let answer = asked(&mut world, 0, "GET /v1/presence/u7", &lines, "");
    assert!(
        answer.contains(&record("u7", "online", 61_234, 61_234)),
        "{answer}"
    );
}

/// The holder of a token sees the truth of themselves, and nobody else does.
#[test]
fn who_is_invisible_is_seen_by_their_own_token_alone() {
    let mut world = world(2);
    let (_, _) = stream(&mut world, "user=alice&watch=bob", &token(&ALICE), 1);
    let hide = r#"{"invisible":true,"status":"busy"}"#;
    let answer = asked(
        &mut world,
        0,
        "POST /v1/status",
        &bearer(&token(&ALICE)),
        hide,
    );
    assert!(
        answer.contains("\"status\":\"busy\",\"online\":true"),
        "{answer}"
    );
    let zoe = token(&Said {
        user: "zoe",
        watch: &["*"],
        ..ALICE
    });
    for (caller, truth) in [
        (token(&ALICE), true),
        (zoe, false),
        (world.key().service_token(), false),
    ] {
        let lines = bearer(&caller);
        let answer = asked(&mut world, 1, "GET /v1/presence/alice", &lines, "");
        assert_eq!(answer.contains("\"status\":\"busy\""), truth, "{answer}");
        assert_eq!(answer.contains("\"invisible\":true"), truth, "{answer}");
        // Only a call for oneself alone is one's own.
        for line in ["GET /v1/presence?user=alice", "POST /v1/presence/query"] {
            let body = r#"{"users":["alice"]}"#;
            let body = if line.starts_with("POST") { body } else { "" };
            let answer = asked(&mut world, 1, line, &lines, body);
            assert!(
                answer.contains("\"status\":\"offline\",\"online\":false"),
                "{answer}"
            );
            assert!(!answer.contains("invisible"), "{answer}");
        }
    }
}
