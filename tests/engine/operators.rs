//! Operators' calls: by which listener they are found, what they take there, whose pages may make
//! them, and what a session is good for.

use greendot::auth::{SESSION_MS, Scope};
use greendot::engine::{Operators, Role};
use greendot::metrics::{Counter, Gauge};
use greendot::wire::nodes::Nodes;

use super::harness::{Peer, START, World, status_and_slug};
use super::identity::{ALICE, asked, bearer, cell, identity, request, service, token};

/// Of a node with a listener for operators that other machines reach.
const APART: Operators = Operators {
    are_public: false,
    are_open: false,
    metrics_are_open: false,
    demo: false,
};
/// The same, on a loopback address.
const APART_HERE: Operators = Operators {
    are_open: true,
    ..APART
};

/// A key and its line of the file for each scope, and one for all.
fn keys() -> (Vec<String>, String) {
    let all = Scope::ALL.map(Scope::name);
    let made = all.map(|name| service(name, name));
    let mut made = Vec::from(made);
    made.push(service("all-of-them", &all.join(",")));
    let lines: Vec<String> = made.iter().map(|(_, line)| line.clone()).collect();
    let keys = made.into_iter().map(|(key, _)| key).collect();
    (keys, lines.join("\n"))
}

fn real_time() -> Role {
    Role::Realtime(std::sync::Arc::new(Nodes::new(["a:1"])))
}

fn world(role: Role, asks: bool, operators: Operators) -> World {
    let identity = asks.then(identity);
    World::with_operators(1, role, identity, &keys().1, operators)
}

fn said(world: &mut World, peer: Peer, line: &str, lines: &str, body: &str) -> String {
    world.send(peer, request(line, lines, body));
    world.received(peer)
}

/// Asks by the public listener.
fn public(world: &mut World, line: &str, lines: &str, body: &str) -> String {
    let peer = world.connect(0);
    said(world, peer, line, lines, body)
}

/// Asks by the operators' listener.
fn admin(world: &mut World, line: &str, lines: &str, body: &str) -> String {
    let peer = world.connect_to_admin(0);
    said(world, peer, line, lines, body)
}

/// The line with the cookie that signing in with a key gives.
fn session(world: &mut World, key: &str) -> String {
    let answer = admin(
        world,
        "POST /v1/session",
        "",
        &format!("{{\"key\":\"{key}\"}}"),
    );
    let (_, cookie) = answer.split_once("Set-Cookie: ").expect(&answer);
    let (cookie, _) = cookie.split_once(';').expect(&answer);
    format!("Cookie: {cookie}\r\n")
}

/// What a call reads as: its status, or a dot where a key lacks the scope.
fn told(answer: &str) -> String {
    match status_and_slug(answer) {
        (_, "not-permitted") => ".".to_owned(),
        _ => cell(answer),
    }
}

/// Paths that are operators' alone, and paths of which some methods are.
const HIDDEN: &[(&str, &[&str])] = &[
    ("/metrics", ALL),
    ("/", ALL),
    ("/v1/session", ALL),
    ("/v1/node", ALL),
    ("/v1/node/stream", ALL),
    // Not served at all by these nodes.
    ("/demo", ALL),
    ("/v1/revoke", ALL),
    ("/v1/streams/held", ALL),
    ("/v1/streams/end", ALL),
    ("/v1/streams", ALL),
    ("/v1/streams/0.0.0.00", ALL),
    ("/v1/online", ALL),
    ("/v1/presence/bob", &["PUT", "DELETE"]),
    ("/v1/presence", &["PUT"]),
    ("/v1/presence/query", &["PUT", "DELETE"]),
];
const ALL: &[&str] = &[
    "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE",
];

/// Nobody learns by the public listener that there is such a call, whatever they show.
#[test]
fn what_operators_have_of_their_own_is_nonsense_to_others() {
    let (keys, _) = keys();
    for (role, asks) in [
        (Role::All, false),
        (Role::All, true),
        (Role::Presence, true),
        (real_time(), true),
    ] {
        let mut world = world(role, asks, APART);
        let key = keys.last().expect("one for all");
        let shown = [
            String::new(),
            bearer(key),
            bearer(&world.key().service_token()),
            bearer(&token(&ALICE)),
            bearer("gds_x_y"),
            session(&mut world, key),
            "Origin: http://localhost:3000\r\n".to_owned(),
            "Expect: 100-continue\r\n".to_owned(),
        ];
        for (path, methods) in HIDDEN {
            for method in *methods {
                for lines in &shown {
                    for body in ["", r#"{"users":["bob"]}"#] {
                        let mut ask = |path: &str| {
                            public(&mut world, &format!("{method} {path}"), lines, body)
                        };
                        let (hidden, nonsense) = (ask(path), ask("/nonsense"));
                        assert!(nonsense.contains(" 404 "), "{nonsense}");
                        assert_eq!(hidden, nonsense, "{method} {path} {lines}");
                    }
                }
            }
        }
        assert_eq!(world.count(0, Counter::RequestsDeferred), 0);
        for path in ["/livez", "/readyz"] {
            let line = format!("GET {path}");
            assert_eq!(cell(&public(&mut world, &line, "", "")), "200");
            assert_eq!(cell(&admin(&mut world, &line, "", "")), "200");
        }
    }
}

/// What the public listener says of a path that is everybody's does not name operators' methods.
#[test]
fn allowed_methods_are_those_that_are_found() {
    let mut world = world(Role::All, false, APART);
    for (line, status) in [
        ("OPTIONS /v1/presence/bob", "204"),
        ("PATCH /v1/presence/bob", "405"),
    ] {
        let answer = public(&mut world, line, "", "");
        assert_eq!(cell(&answer), status);
        assert!(
            answer.contains("\r\nAllow: GET, HEAD, OPTIONS\r\n"),
            "{answer}"
        );
        let key = bearer(&keys().0[6]);
        let answer = admin(&mut world, line, &key, "");
        assert!(
            answer.contains("\r\nAllow: GET, HEAD, DELETE, OPTIONS\r\n"),
            "{answer}"
        );
    }
}

/// By a listener that other machines reach: each call, and who may make it.
#[rustfmt::skip]
const GUARDED: &[(&str, &str, [&str; 11])] = &[
    // nobody, a node, publish, beat, query, revoke, ticket, metrics, admin, all, their session
    ("GET /v1/presence/bob", "",
        ["401", "200", ".", ".", "200", ".", ".", ".", ".", "200", "200"]),
    ("POST /v1/presence/query", r#"{"users":["bob"]}"#,
        ["401", "200", ".", ".", "200", ".", ".", ".", ".", "200", "200"]),
    ("GET /v1/stream?watch=bob", "",
        ["401", "401", ".", ".", ".", ".", ".", ".", "200", "200", "200"]),
    ("GET /v1/stream?user=bob", "",
        ["401", "401", ".", ".", ".", ".", ".", ".", "user", "user", "user"]),
    ("POST /v1/stream/1.2.3/watch", r#"{"add":["bob"]}"#,
        ["401", "401", ".", ".", ".", ".", ".", ".", "404", "404", "404"]),
    ("POST /v1/stream/1.2.3/beat", "",
        ["401", "401", ".", ".", ".", ".", ".", ".", ".", ".", "."]),
    ("POST /v1/beat", r#"{"users":["bob"]}"#,
        ["401", "204", ".", "204", ".", ".", ".", ".", ".", "204", "204"]),
    ("POST /v1/status", r#"{"user":"bob","status":"busy"}"#,
        ["401", "200", ".", "200", ".", ".", ".", ".", ".", "200", "200"]),
    ("POST /v1/leave", r#"{"users":["bob"]}"#,
        ["401", "204", ".", "204", ".", ".", ".", ".", ".", "204", "204"]),
    ("POST /v1/leave", r#"{"users":["bob"],"everywhere":true}"#,
        ["401", "204", ".", "204", ".", ".", ".", ".", ".", "204", "204"]),
    ("POST /v1/device-key", r#"{"device":"phone"}"#,
        ["401", "401", ".", ".", ".", ".", ".", ".", ".", ".", "."]),
    ("POST /v1/revoke", r#"{"jti":"x"}"#,
        ["401", ".", ".", ".", ".", "204", ".", ".", ".", "204", "204"]),
    ("DELETE /v1/presence/nobody", "",
        ["401", ".", ".", ".", ".", ".", ".", ".", "204", "204", "204"]),
    ("GET /metrics", "",
        ["401", ".", ".", ".", ".", ".", ".", "200", ".", "200", "200"]),
    ("GET /v1/node", "",
        ["401", ".", ".", ".", ".", ".", ".", ".", "200", "200", "200"]),
    ("GET /v1/node/stream", "",
        ["401", ".", ".", ".", ".", ".", ".", "200", ".", "200", "200"]),
    ("GET /v1/streams", "",
        ["401", ".", ".", ".", ".", ".", ".", ".", "200", "200", "200"]),
    ("GET /v1/streams/1.2.3", "",
        ["401", ".", ".", ".", ".", ".", ".", ".", "404", "404", "404"]),
    ("DELETE /v1/streams/1.2.3", "",
        ["401", ".", ".", ".", ".", ".", ".", ".", "404", "404", "404"]),
    ("GET /v1/online", "",
        ["401", ".", ".", ".", ".", ".", ".", ".", "200", "200", "200"]),
    // What has nothing of anybody.
    ("GET /", "", ["200"; 11]),
    ("GET /client.js", "", ["200"; 11]),
    ("GET /openapi.json", "", ["200"; 11]),
    ("GET /readyz", "", ["200"; 11]),
    ("DELETE /v1/session", "", ["204"; 11]),
    ("GET /nonsense", "", ["404"; 11]),
];

/// The same at a real-time node, that is what presence nodes tell it.
#[rustfmt::skip]
const TOLD: &[(&str, &str, [&str; 11])] = &[
    ("PUT /v1/presence", r#"{"presence":[]}"#,
        ["401", "204", "204", ".", ".", ".", ".", ".", ".", "204", "204"]),
    ("POST /v1/streams/held", r#"{"users":["bob"]}"#,
        ["401", "200", ".", ".", ".", ".", ".", ".", "200", "200", "200"]),
    ("POST /v1/streams/end", r#"{"users":["bob"],"everywhere":true,"sent_at":1}"#,
        ["401", "204", ".", ".", ".", ".", ".", ".", "204", "204", "204"]),
];

#[test]
fn each_call_off_loopback_takes_its_scope() {
    let (keys, _) = keys();
    for asks in [false, true] {
        for (role, rows) in [(Role::All, GUARDED), (real_time(), TOLD)] {
            let mut world = world(role, asks, APART);
            let mut callers = vec![String::new(), bearer(&world.key().service_token())];
            callers.extend(keys.iter().map(|key| bearer(key)));
            callers.push(session(&mut world, keys.last().expect("one for all")));
            for (line, body, expected) in rows {
                for (lines, expected) in callers.iter().zip(expected) {
                    let answer = admin(&mut world, line, lines, body);
                    assert_eq!(told(&answer), *expected, "{line} {body} {lines} {answer}");
                }
                // A key that is none, wherever one is asked for.
                let answer = admin(&mut world, line, &bearer("gds_app_x"), body);
                let is_plain = expected[0] != "401";
                assert_eq!(cell(&answer) == "401", !is_plain, "{line} {answer}");
            }
        }
    }
}

/// By a listener of this machine alone whoever reaches it may look, and acts by a key.
#[test]
fn on_loopback_looking_is_free() {
    let (keys, _) = keys();
    let mut world = world(Role::All, false, APART_HERE);
    for (line, lines, expected) in [
        ("GET /metrics", "", "200"),
        ("GET /", "", "200"),
        ("GET /v1/stream?watch=bob", "", "200"),
        ("GET /v1/presence/bob", "", "200"),
        ("DELETE /v1/presence/bob", "", "401"),
        ("DELETE /v1/presence/bob", &bearer(&keys[6]), "204"),
        ("GET /v1/streams", "", "200"),
        ("GET /v1/streams/1.2.3", "", "404"),
        ("DELETE /v1/streams/1.2.3", "", "401"),
        ("DELETE /v1/streams/1.2.3", &bearer(&keys[6]), "404"),
        ("GET /v1/online", "", "200"),
        ("GET /v1/online", &bearer(&keys[5]), "."),
        // Who shows a key is held to its scopes.
        ("GET /metrics", &bearer(&keys[6]), "."),
    ] {
        let answer = admin(&mut world, line, lines, "");
        assert_eq!(told(&answer), expected, "{line} {answer}");
    }
}

#[test]
fn metrics_may_be_open_alone() {
    let open = Operators {
        metrics_are_open: true,
        ..APART
    };
    let mut world = world(Role::All, true, open);
    assert_eq!(cell(&admin(&mut world, "GET /metrics", "", "")), "200");
    let answer = admin(&mut world, "GET /v1/presence/bob", "", "");
    assert_eq!(cell(&answer), "401");
    for line in ["GET /v1/streams", "GET /v1/streams/1.2.3", "GET /v1/online"] {
        assert_eq!(cell(&admin(&mut world, line, "", "")), "401", "{line}");
    }
    assert_eq!(cell(&public(&mut world, "GET /metrics", "", "")), "404");
}

/// Whatever a page is listed for, where operators come in it is nobody.
#[test]
fn pages_of_others_are_not_let_in() {
    let (keys, _) = keys();
    let key = bearer(keys.last().expect("one for all"));
    for operators in [APART, APART_HERE] {
        let mut world = World::with_settings(Role::All, operators, &self::keys().1, |settings| {
            settings.cors_origins = vec!["http://localhost:3000".into(), "*".into()];
        });
        for (lines, expected) in [
            ("", "200"),
            ("Sec-Fetch-Site: same-origin\r\n", "200"),
            ("Sec-Fetch-Site: none\r\n", "200"),
            ("Origin: http://a\r\n", "200"),
            ("Origin: https://a\r\n", "200"),
            ("Origin: http://localhost:3000\r\n", "403"),
            ("Origin: http://evil.example\r\n", "403"),
            ("Origin: null\r\n", "403"),
            ("Sec-Fetch-Site: same-site\r\n", "403"),
            ("Sec-Fetch-Site: cross-site\r\n", "403"),
        ] {
            let shown = format!("{key}{lines}");
            for line in [
                "GET /metrics",
                "GET /v1/presence/bob",
                "DELETE /v1/presence/bob",
            ] {
                let answer = admin(&mut world, line, &shown, "");
                let expected = match (line, expected) {
                    ("DELETE /v1/presence/bob", "200") => "204",
                    _ => expected,
                };
                assert_eq!(cell(&answer), expected, "{line} {lines} {answer}");
                assert!(!answer.contains("Access-Control"), "{answer}");
            }
            // A link leads to the dashboard, and probes come from anywhere.
            for line in ["GET /", "GET /livez"] {
                assert_eq!(cell(&admin(&mut world, line, lines, "")), "200", "{lines}");
            }
            let body = r#"{"key":"gds_x_y"}"#;
            let answer = admin(&mut world, "POST /v1/session", lines, body);
            let refused = if expected == "200" { "401" } else { "403" };
            assert_eq!(cell(&answer), refused, "{lines}");
        }
    }
}

/// The name counts where operators come in, unless a program shows its key. A browser's session is
/// no key: it comes with any page's request to that name.
#[test]
fn a_foreign_name_is_refused() {
    let (keys, _) = keys();
    for (asks, operators) in [(true, APART), (false, APART), (true, APART_HERE)] {
        let mut world = world(Role::All, asks, operators);
        let all = keys.last().expect("one for all");
        let cookie = session(&mut world, all);
        let node = bearer(&world.key().service_token());
        for (line, lines, expected) in [
            ("GET /metrics", String::new(), "421"),
            ("GET /", String::new(), "421"),
            ("GET /client.js", String::new(), "421"),
            ("GET /metrics", cookie.clone(), "421"),
            ("GET /metrics", bearer("gds_x_y"), "421"),
            ("GET /v1/presence/bob", bearer(&token(&ALICE)), "421"),
            ("POST /v1/session", String::new(), "421"),
            ("GET /metrics", bearer(all), "200"),
            ("GET /v1/presence/bob", node, "200"),
            ("GET /livez", String::new(), "200"),
        ] {
            let foreign = request(line, &lines, "").replace("Host: a", "Host: evil.example");
            let peer = world.connect_to_admin(0);
            world.send(peer, foreign);
            let answer = world.received(peer);
            assert_eq!(cell(&answer), expected, "{line} {lines} {answer}");
        }
    }
}

#[test]
fn a_browser_signs_in_and_out() {
    let (keys, _) = keys();
    let all = keys.last().expect("one for all");
    let mut world = world(Role::All, true, APART);
    let body = format!("{{\"key\":\"{all}\"}}");
    for (lines, secure) in [
        ("", ""),
        ("Origin: http://a\r\n", ""),
        ("Origin: https://a\r\n", "; Secure"),
    ] {
        let answer = admin(&mut world, "POST /v1/session", lines, &body);
        assert_eq!(cell(&answer), "200");
        let (_, line) = answer
            .split_once("\r\nSet-Cookie: greendot-session=")
            .expect(&answer);
        let (value, attributes) = line.split_once("; ").expect(&answer);
        assert_eq!(value.len(), 82, "{answer}");
        let expected = format!("Path=/; HttpOnly; SameSite=Strict; Max-Age=43200{secure}\r\n");
        assert!(attributes.starts_with(&expected), "{answer}");
        assert!(
            !answer.contains(all.as_str()) && !answer.contains("gds_"),
            "{answer}"
        );
        let scopes = "publish,beat,query,revoke,ticket,metrics,admin";
        let told =
            format!("{{\"service\":\"all-of-them\",\"scopes\":\"{scopes}\",\"expires_in\":43200}}");
        assert!(answer.ends_with(&told), "{answer}");
    }
    for body in [
        r#"{"key":"gds_all-of-them_AAAA"}"#,
        r#"{"key":"eyJ"}"#,
        r#"{"key":""}"#,
    ] {
        let answer = admin(&mut world, "POST /v1/session", "", body);
        assert_eq!(cell(&answer), "401");
        assert!(answer.contains("no service key of this name and value is known"));
    }
    // What is wrong is not repeated: it may be a key.
    for body in [
        r#"{"ke":"gds_secret"}"#,
        r#""gds_secret""#,
        r#"{"key":7}"#,
        "gds_secret",
    ] {
        let answer = admin(&mut world, "POST /v1/session", "", body);
        assert_eq!(cell(&answer), "400");
        assert!(!answer.contains("secret"), "{answer}");
    }
    let answer = admin(&mut world, "DELETE /v1/session", "", "");
    let gone = "Set-Cookie: greendot-session=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0\r\n";
    assert!(answer.contains(gone), "{answer}");
}

#[test]
fn where_no_service_is_known_nobody_signs_in() {
    let mut world = World::with_operators(1, Role::All, None, "", Operators::default());
    let answer = public(&mut world, "POST /v1/session", "", r#"{"key":"gds_x_y"}"#);
    assert_eq!(cell(&answer), "404");
    assert!(answer.contains("name the file of their hashes with --service-keys"));
}

/// A browser sends the cookie to every port of the host; it counts where operators come in.
#[test]
fn a_session_is_nothing_elsewhere() {
    let (keys, _) = keys();
    let mut apart = world(Role::All, true, APART);
    let cookie = session(&mut apart, keys.last().expect("one for all"));
    for line in ["GET /v1/presence/bob", "GET /v1/stream?watch=bob"] {
        assert_eq!(cell(&admin(&mut apart, line, &cookie, "")), "200");
        assert_eq!(cell(&public(&mut apart, line, &cookie, "")), "401");
    }
    // Where all is on one listener it counts there, for own pages.
    let mut one = world(Role::All, true, Operators::default());
    for (lines, expected) in [
        ("Origin: http://a\r\n", "200"),
        ("Origin: http://evil.example\r\n", "403"),
    ] {
        let shown = format!("{cookie}{lines}");
        let answer = public(&mut one, "GET /v1/presence/bob", &shown, "");
        assert_eq!(cell(&answer), expected, "{answer}");
    }
    // A header counts, and the cookie beside it does not.
    let shown = format!("{cookie}Authorization: Bearer a.b.c\r\n");
    let answer = public(&mut one, "GET /v1/presence/bob", &shown, "");
    assert_eq!(cell(&answer), "401");
}

#[test]
fn a_session_ends_with_its_time() {
    let (keys, _) = keys();
    let mut world = world(Role::All, true, APART);
    let cookie = session(&mut world, keys.last().expect("one for all"));
    let metrics = |world: &mut World| cell(&admin(world, "GET /metrics", &cookie, ""));
    let before_ms = 600_000;
    world.jump(SESSION_MS - before_ms).turn();
    assert_eq!(metrics(&mut world), "200");
    let looker = world.connect_to_admin(0);
    let hello = said(&mut world, looker, "GET /v1/stream?watch=bob", &cookie, "");
    assert_eq!(cell(&hello), "200");
    world.pass(before_ms + 1_000);
    assert_eq!(metrics(&mut world), "401");
    let received = world.received(looker);
    assert!(
        received.ends_with("event: expired\ndata: {}\n\n"),
        "{received}"
    );
    world.expect_closed(looker);
}

/// A key that is listed no more is the end of its sessions, and of the streams that it opened.
#[test]
fn a_session_ends_with_its_key() {
    let (keys, file) = keys();
    let all = keys.last().expect("one for all");
    let mut world = world(Role::All, true, APART);
    let cookie = session(&mut world, all);
    let (looker, other) = (world.connect_to_admin(0), world.connect_to_admin(0));
    let looks = "GET /v1/stream?watch=bob";
    assert_eq!(cell(&said(&mut world, looker, looks, &cookie, "")), "200");
    let by_admin = bearer(&keys[6]);
    assert_eq!(cell(&said(&mut world, other, looks, &by_admin, "")), "200");
    let without: Vec<&str> = file
        .lines()
        .filter(|line| !line.contains("all-of-them"))
        .collect();
    world.read_keys(Some(identity()), &without.join("\n"));
    world.pass(1_000);
    let received = world.received(looker);
    assert!(
        received.ends_with("event: expired\ndata: {}\n\n"),
        "{received}"
    );
    world.expect_closed(looker).expect_open(other);
    assert_eq!(cell(&admin(&mut world, "GET /metrics", &cookie, "")), "401");
    assert_eq!(world.gauge(0, Gauge::Streams), 1);
}

#[test]
fn a_node_says_in_words_how_it_is() {
    let mut world = World::new(2);
    world.at(1_000);
    let now = START + 1_000;
    let about = |world: &mut World| {
        let answer = asked(world, 1, "GET /v1/node", "", "");
        answer.split_once("\r\n\r\n").expect(&answer).1.to_owned()
    };
    let version = env!("CARGO_PKG_VERSION");
    let told = |state: &str, troubles: &str, warnings: &str| {
        format!(
            "{{\"demo\":true,\"now\":{now},\"role\":\"serve\",\"shards\":2,\"state\":\"{state}\",\
             \"troubles\":[{troubles}],\"version\":\"{version}\",\"warnings\":[{warnings}]}}"
        )
    };
    assert_eq!(about(&mut world), told("ready", "", ""));
    world.board().set_troubles(vec!["a link".into()]);
    let at = world.now().unix;
    world
        .board()
        .warnings
        .push(at, false, "bob \"here\"".into());
    world.board().warnings.push(at, true, "gone".into());
    world.board().warnings.push(at, true, "gone".into());
    let warnings = format!(r#"{{"at":{now},"level":"warning","text":"bob \"here\"","times":1}},"#)
        + &format!(r#"{{"at":{now},"level":"error","text":"gone","times":2}}"#);
    let degraded = told("degraded", "\"a link\"", &warnings);
    assert_eq!(about(&mut world), degraded);
}
