//! The browser as an attacker: what pages of other origins can not have it do here, by the very
//! requests that Chromium sends for them.

use greendot::engine::settings::{LOOPBACK, Settings};

use super::harness::{World, json, posted, status_and_slug, unseen};

const LISTED: &str = "https://app.example";

fn world(change: impl FnOnce(&mut Settings)) -> World {
    World::with(1, |settings| {
        settings.cors_origins = vec![LISTED.into()];
        change(settings);
    })
}

/// The status line's code and the problem of the answer to these bytes.
#[track_caller]
fn answered(world: &mut World, request: &str) -> (String, String) {
    let peer = world.connect(0);
    world.send(peer, request);
    let answer = world.received(peer);
    let (status, slug) = status_and_slug(&answer);
    (status["HTTP/1.1 ".len()..][..3].to_owned(), slug.to_owned())
}

fn get(target: &str, host: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")
}

fn beat(fields: &str) -> String {
    let plain = posted("/v1/beat", "{\"users\":[\"victim\"]}");
    plain.replacen(
        "Host: a\r\n",
        &format!("Host: 127.0.0.1:8080\r\n{fields}"),
        1,
    )
}

/// What a page may not do, by what its browser says of it.
const FOREIGN: &[&str] = &[
    // `new EventSource(..)` and `fetch(..)` of a page elsewhere.
    "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: cors\r\n",
    // `<img src=..>`, and `fetch(.., {mode: \"no-cors\"})` of a GET.
    "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n",
    // Another port, another name of the same site.
    "Origin: http://127.0.0.1:3000\r\nSec-Fetch-Site: same-site\r\n",
    "Sec-Fetch-Site: same-site\r\n",
    // A file, a sandboxed frame.
    "Origin: null\r\nSec-Fetch-Site: cross-site\r\n",
    "Origin: null\r\n",
    // Browsers that do not say how a page stands, and where none does: plain HTTP elsewhere.
    "Origin: https://evil.example\r\n",
    "Origin: http://127.0.0.1\r\n",
    "Origin: https://127.0.0.1\r\n",
    "Origin: http://127.0.0.1:8081\r\n",
    "Sec-Fetch-Site: \r\n",
    "Sec-Fetch-Site: same-origin, none\r\n",
];

/// And what it may.
const OWN: &[&str] = &[
    // No browser.
    "",
    // Greendot's own page; the visitor's own hand.
    "Origin: http://127.0.0.1:8080\r\nSec-Fetch-Site: same-origin\r\n",
    "Sec-Fetch-Site: same-origin\r\n",
    "Sec-Fetch-Site: none\r\n",
    "Origin: http://127.0.0.1:8080\r\n",
    // A listed one.
    "Origin: https://app.example\r\nSec-Fetch-Site: cross-site\r\n",
    "Origin: https://app.example\r\n",
];

#[test]
fn a_page_of_another_origin_makes_nobody_online() {
    let mut world = world(|_| ());
    let refused = ("403".to_owned(), "foreign-origin".to_owned());
    for fields in FOREIGN {
        for target in ["/v1/stream?user=victim", "/v1/stream?watch=a&%75ser=victim"] {
            let asked = answered(&mut world, &get(target, "127.0.0.1:8080", fields));
            assert_eq!(asked, refused, "{target} {fields}");
        }
        assert_eq!(answered(&mut world, &beat(fields)), refused, "{fields}");
        // To look is another matter: who may read the answer is said by CORS lines.
        let looks = get("/v1/stream?watch=victim", "127.0.0.1:8080", fields);
        assert_eq!(answered(&mut world, &looks).0, "200", "{fields}");
    }
    assert_eq!(world.presence().users(), 0);
    for fields in OWN {
        let streams = get("/v1/stream?user=victim", "127.0.0.1:8080", fields);
        assert_eq!(answered(&mut world, &streams).0, "200", "{fields}");
        assert_eq!(answered(&mut world, &beat(fields)).0, "204", "{fields}");
    }
    assert_eq!(
        world.ask(0, "victim"),
        super::harness::record("victim", "online", 0, 0)
    );
}

/// The refusal names the flag, and what it quotes of a peer is bounded.
#[test]
fn refusals_name_the_flag() {
    let mut world = world(|_| ());
    let mut detail = |request: &str| {
        let peer = world.connect(0);
        world.send(peer, request);
        let answer = world.received(peer);
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
        let problem: serde_json::Value = serde_json::from_str(body).expect("a problem");
        problem["detail"].as_str().expect("a text").to_owned()
    };
    assert_eq!(
        detail(&beat("Origin: https://evil.example\r\n")),
        "pages of \"https://evil.example\" may not do this; to let them, list that origin with \
         --cors-origins"
    );
    assert_eq!(
        detail(&beat("Sec-Fetch-Site: cross-site\r\n")),
        "pages of other origins may not do this; to let them, list their origin with \
         --cors-origins"
    );
    assert_eq!(
        detail(&get("/", "evil.example:8080", "")),
        "this server is not known as \"evil.example:8080\"; if it should be, list that name with \
         --host"
    );
    assert!(detail(&get("/", &format!("{}.b", "x".repeat(1_000)), "")).len() < 300);
}

/// A name that is pointed at this machine: its page is of the same origin as what it asks.
#[test]
fn a_name_that_is_not_the_servers_own_gets_nothing() {
    let mut world = world(|settings| settings.host = vec!["app.example".into()]);
    let same_origin = "Origin: http://evil.example\r\nSec-Fetch-Site: same-origin\r\n";
    for target in [
        "/",
        "/client.js",
        "/metrics",
        "/v1/presence/bob",
        "/v1/stream?watch=bob",
        "/v1/stream?user=bob",
    ] {
        for host in [
            "evil.example",
            "evil.example:8080",
            "127.0.0.1.evil.example",
        ] {
            assert_eq!(
                answered(&mut world, &get(target, host, same_origin)),
                ("421".to_owned(), "wrong-host".to_owned()),
                "{target} {host}"
            );
        }
        let absolute = format!("http://evil.example{target}");
        assert_eq!(answered(&mut world, &get(&absolute, "a", "")).0, "421");
        for host in [
            "127.0.0.1:8080",
            "[::1]:8080",
            "greendot",
            "localhost:1",
            "a.localhost",
            "nas.local",
            "db.internal",
            "app.example",
        ] {
            let asked = answered(&mut world, &get(target, host, ""));
            assert_eq!(asked.0, "200", "{target} {host}");
        }
    }
    // Health is asked for by whatever name a balancer has, and HTTP/1.0 needs none.
    for target in ["/livez", "/readyz"] {
        let asked = answered(&mut world, &get(target, "evil.example", ""));
        assert_eq!(asked.0, "200", "{target}");
    }
    let nameless = "GET /v1/presence/bob HTTP/1.0\r\n\r\n";
    assert_eq!(answered(&mut world, nameless).0, "200");
    // And so do nodes, which show their token.
    let token = world.key().service_token();
    let node = get(
        "/v1/presence/bob",
        "presence-1.example",
        &format!("Authorization: Bearer {token}\r\n"),
    );
    assert_eq!(answered(&mut world, &node).0, "200");
    let forged = node.replace(&token[..4], "0000");
    assert_eq!(answered(&mut world, &forged).0, "421");
}

/// `*` lists them all: their pages and names may do all, as their operator has said.
#[test]
fn a_star_lists_all() {
    let mut world = World::with(1, |settings| {
        settings.cors_origins = vec!["*".into()];
        settings.host = vec!["*".into()];
    });
    let fields = "Origin: https://any.example\r\nSec-Fetch-Site: cross-site\r\n";
    let stream = get("/v1/stream?user=a", "any.example", fields);
    assert_eq!(answered(&mut world, &stream).0, "200");
    // Who does not say its origin is not listed.
    assert_eq!(
        answered(&mut world, &beat("Sec-Fetch-Site: cross-site\r\n")).0,
        "403"
    );
}

/// While nobody but this machine reaches the server, the pages of its other servers may call it.
#[test]
fn pages_of_this_machine_are_listed_where_the_node_says_so() {
    let page = "Origin: http://localhost:3000\r\nSec-Fetch-Site: cross-site\r\n";
    let mut world = World::with(1, |settings| settings.cors_origins = vec![LOOPBACK.into()]);
    let asker = world.connect(0);
    world.send(asker, get("/v1/presence/x", "127.0.0.1:8080", page));
    let answer = world.received(asker);
    assert!(
        answer.contains("\r\nAccess-Control-Allow-Origin: http://localhost:3000\r\n"),
        "{answer}"
    );
    assert_eq!(answered(&mut world, &beat(page)).0, "204");
    let evil = "Origin: http://localhost.evil.example\r\nSec-Fetch-Site: cross-site\r\n";
    assert_eq!(answered(&mut world, &beat(evil)).0, "403");
    let mut world = World::new(1);
    assert_eq!(answered(&mut world, &beat(page)).0, "403");
    let plain = world.connect(0);
    world
        .send(plain, get("/v1/presence/x", "127.0.0.1:8080", page))
        .expect(plain, json(&unseen("x")));
}

/// A browser that has a file asks whether it is still so, and one whose name has the version never
/// does.
#[test]
fn files_are_sent_once() {
    let mut world = World::new(1);
    let mut lines = |target: &str, fields: &str| {
        let peer = world.connect(0);
        world.send(peer, get(target, "a", fields));
        let answer = world.received(peer);
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let field = |name: &str| {
            let mut lines = head.lines();
            lines.find_map(|line| line.strip_prefix(name).map(str::to_owned))
        };
        let status = head["HTTP/1.1 ".len()..][..3].to_owned();
        let cache = field("Cache-Control: ").unwrap_or_default();
        (status, field("ETag: "), cache, body.len())
    };
    let pinned = concat!("/client/", env!("CARGO_PKG_VERSION"), "/client.js");
    for (target, cache) in [
        ("/demo", "no-cache"),
        ("/client.js", "no-cache"),
        ("/client.d.ts", "no-cache"),
        ("/green-dot.js", "no-cache"),
        (pinned, "public, max-age=31536000, immutable"),
        ("/openapi.json", "no-cache"),
    ] {
        let (status, tag, kept, length) = lines(target, "");
        assert_eq!((&*status, &*kept), ("200", cache), "{target}");
        assert!(length > 0);
        let tag = tag.expect("a tag");
        for known in [
            tag.clone(),
            format!("W/{tag}"),
            format!("\"another\", {tag}"),
        ] {
            let asked = lines(target, &format!("If-None-Match: {known}\r\n"));
            let same = ("304".to_owned(), Some(tag.clone()), cache.to_owned(), 0);
            assert_eq!(asked, same, "{target} {known}");
        }
        let asked = lines(target, "If-None-Match: \"another\"\r\n");
        assert_eq!((&*asked.0, asked.3), ("200", length), "{target}");
    }
    assert_eq!(lines("/client/0.0.1/client.js", "").0, "404");
}

/// Code for pages may be loaded by all of them, so that it can say what is missing.
#[test]
fn every_origin_may_load_the_client() {
    for (listed, target, origin, expected) in [
        ("", "/client.js", "null", Some("*")),
        ("", "/openapi.json", "https://a.example", Some("*")),
        ("", "/", "https://a.example", None),
        ("", "/livez", "https://a.example", None),
        (LISTED, "/client.js", LISTED, Some(LISTED)),
    ] {
        let mut world = World::with(1, |settings| settings.cors_origins = vec![listed.into()]);
        let peer = world.connect(0);
        world.send(peer, get(target, "a", &format!("Origin: {origin}\r\n")));
        let answer = world.received(peer);
        let lines = answer.lines();
        let allowed: Vec<_> = lines
            .filter_map(|line| line.strip_prefix("Access-Control-Allow-Origin: "))
            .collect();
        assert_eq!(
            allowed,
            expected.into_iter().collect::<Vec<_>>(),
            "{target}"
        );
    }
}
