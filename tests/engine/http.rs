//! HTTP/1.1 as spoken on one connection: order, keep-alive, back-pressure, the ends.

use greendot::metrics::{Call, Counter, StatusClass};

use super::harness::{
    CLOSE, NO_CONTENT, RETRY_AFTER, World, json, json_head, posted, problem, request,
    status_and_slug, unseen,
};

#[test]
fn a_connection_is_kept_and_closed_as_asked() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    world
        .get(bob, "/v1/presence/bob")
        .expect(bob, json(&unseen("bob")));
    world
        .get(bob, "/v1/presence/eve")
        .expect(bob, json(&unseen("eve")))
        .expect_open(bob);
    world.send(
        bob,
        "GET /v1/presence/bob HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    let body = unseen("bob");
    world
        .expect(bob, json_head(body.len(), CLOSE) + &body)
        .expect_closed(bob);
    let requests = world
        .engine(0)
        .counters()
        .requests(Call::PresenceOne, StatusClass::Good);
    assert_eq!(requests, 3);
    assert_eq!(world.count(0, Counter::ClosedDone), 1);
}

#[test]
fn http_1_0_is_closed_unless_it_asks_to_be_kept() {
    let mut world = World::new(1);
    let body = unseen("bob");
    let old = world.connect(0);
    world
        .send(old, "GET /v1/presence/bob HTTP/1.0\r\n\r\n")
        .expect(old, json_head(body.len(), CLOSE) + &body)
        .expect_closed(old);
    let kept = world.connect(0);
    world
        .send(
            kept,
            "GET /v1/presence/bob HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
        )
        .expect(
            kept,
            json_head(body.len(), "Connection: keep-alive\r\n") + &body,
        )
        .expect_open(kept);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    let users: Vec<String> = (0..100).map(|n| format!("user-{n}")).collect();
    let asked: String = users
        .iter()
        .map(|user| request("GET", &format!("/v1/presence/{user}")))
        .collect();
    let answers: String = users.iter().map(|user| json(&unseen(user))).collect();
    world.send(bob, &asked).expect(bob, &answers);
    assert_eq!(world.count(0, Counter::Flushes), 1, "one write for all");
    for piece in asked.as_bytes().chunks(7) {
        world.send(bob, piece);
    }
    world.expect(bob, &answers);
}

#[test]
fn a_reader_that_stalls_stops_its_own_requests_and_loses_none() {
    let mut world = World::with(1, |settings| {
        settings.outbox_bytes_max = 4_096;
    });
    let bob = world.connect(0);
    let other = world.connect(0);
    world.stall(bob);
    let users: Vec<String> = (0..200).map(|n| format!("user-{n}")).collect();
    for user in &users {
        world.get(bob, &format!("/v1/presence/{user}"));
    }
    world.turn();
    assert!(world.is_paused(bob));
    assert!(world.count(0, Counter::LimitOutboxBytes) > 0);
    world.get(other, "/livez");
    world.expect(
        other,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\n\
         Cache-Control: no-store\r\n\r\nok\n",
    );
    // It reads slowly, longer than a request may take and a connection may idle: the pause is not
    // its own silence.
    let mut received = String::new();
    for _ in 0..40 {
        world.pass(5_000).read(bob, 900);
        received += &world.received(bob);
    }
    world.read(bob, None);
    received += &world.received(bob);
    let answers: String = users.iter().map(|user| json(&unseen(user))).collect();
    assert_eq!(received, answers);
    world.expect_open(bob);
    assert!(!world.is_paused(bob));
}

#[test]
fn the_time_of_a_request_held_back_runs_from_when_it_is_looked_at() {
    let mut world = World::with(1, |settings| settings.outbox_bytes_max = 2_048);
    let bob = world.connect(0);
    let get = request("GET", "/v1/presence/x");
    world.stall(bob);
    world
        .send(bob, get.clone() + &get[..10])
        .at(9_000)
        .read(bob, None);
    world.expect(bob, json(&unseen("x")));
    world.at(18_000).send(bob, &get[10..]);
    world.expect(bob, json(&unseen("x"))).expect_open(bob);
}

#[test]
fn a_half_closed_peer_still_gets_its_answers() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    world
        .stall(bob)
        .get(bob, "/v1/presence/bob")
        .shut(bob)
        .turn();
    world
        .read(bob, None)
        .expect(bob, json(&unseen("bob")))
        .expect_closed(bob);
    let silent = world.connect(0);
    world
        .shut(silent)
        .expect_nothing(silent)
        .expect_closed(silent);
    let half = world.connect(0);
    world
        .send(half, "GET /v1/pres")
        .shut(half)
        .expect_nothing(half)
        .expect_closed(half);
    assert_eq!(world.count(0, Counter::ClosedPeer), 3);
}

#[test]
fn a_half_closed_peer_with_requests_held_back_gets_all_answers() {
    let mut world = World::with(1, |settings| settings.outbox_bytes_max = 2_048);
    let bob = world.connect(0);
    world.stall(bob);
    let asked: String = (0..50)
        .map(|_| request("GET", "/v1/presence/bob"))
        .collect();
    world.send(bob, asked).shut(bob).turn();
    world.read(bob, None);
    world
        .expect(bob, json(&unseen("bob")).repeat(50))
        .expect_closed(bob);
}

#[test]
fn head_is_the_answer_without_its_body() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    world
        .send(bob, request("HEAD", "/v1/presence/bob"))
        .expect(bob, json_head(unseen("bob").len(), ""));
    world.send(bob, request("HEAD", "/nowhere"));
    let answer = world.received(bob);
    assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n") && answer.ends_with("\r\n\r\n"));
    world.send(bob, request("HEAD", "/v1/stream?watch=x"));
    world
        .expect(bob, super::harness::STREAM_HEAD)
        .expect_closed(bob);
}

#[test]
fn a_client_that_waits_to_be_asked_is_asked_once() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    let body = "{\"users\":[\"x\"]}";
    let head = |length: usize| {
        format!(
            "POST /v1/presence/query HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
             Expect: 100-continue\r\n\
             Content-Length: {length}\r\n\r\n"
        )
    };
    world
        .send(bob, head(body.len()))
        .expect(bob, "HTTP/1.1 100 Continue\r\n\r\n");
    let (first, rest) = body.split_at(4);
    let answer = json(&format!("{{\"presence\":[{}]}}", unseen("x")));
    world
        .send(bob, first)
        .expect_nothing(bob)
        .send(bob, rest)
        .expect(bob, &answer);
    // All at once: nobody waits.
    world
        .send(bob, head(body.len()) + body)
        .expect(bob, &answer);
    // Too large: refused without being asked for.
    world.send(bob, head(1_048_577));
    world.expect(
        bob,
        problem(
            "413 Content Too Large",
            "body-too-large",
            "The request body is too large",
            "the body is longer than the server takes; split the request into smaller ones",
            CLOSE,
        ),
    );
    assert_eq!(world.count(0, Counter::LimitBodyBytes), 1);
    // HTTP/1.0 knows no 100.
    let old = world.connect(0);
    world
        .send(old, head(body.len()).replace("HTTP/1.1", "HTTP/1.0"))
        .expect_nothing(old);
    let chunked = world.connect(0);
    let head = head(0).replace("Content-Length: 0", "Transfer-Encoding: chunked");
    world
        .send(chunked, &head)
        .expect(chunked, "HTTP/1.1 100 Continue\r\n\r\n");
    world
        .send(chunked, "e\r\n{\"users\":[\"x\"]\r\n1\r\n}\r\n0\r\n\r\n")
        .expect(chunked, &answer);
    world
        .send(chunked, head + "f\r\n{\"users\":[\"x\"]}\r\n0\r\n\r\n")
        .expect(chunked, &answer);
}

#[test]
fn bodies_may_be_torn_at_every_byte() {
    let query = "{\"users\":[\"é\",\"x\"]}";
    let answer = json(&format!(
        "{{\"presence\":[{},{}]}}",
        unseen("é"),
        unseen("x")
    ));
    let length = posted("/v1/presence/query", query);
    let chunked = format!(
        "POST /v1/presence/query HTTP/1.1\r\nHost: a\r\nContent-Type: application/json; \
         charset=utf-8\r\n\
         Transfer-Encoding: chunked\r\n\r\n5\r\n{}\r\n{:x};a=b\r\n{}\r\n0\r\nTrailer: x\r\n\r\n",
        &query[..5],
        query.len() - 5,
        &query[5..]
    );
    let next = request("GET", "/v1/presence/x");
    let next_answer = json(&unseen("x"));
    for whole in [length, chunked] {
        let input = whole + &next;
        let mut world = World::new(1);
        for at in 0..=input.len() {
            let bob = world.connect(0);
            let (first, rest) = input.as_bytes().split_at(at);
            world.send(bob, first).turn().send(bob, rest);
            world
                .expect(bob, format!("{answer}{next_answer}"))
                .expect_open(bob)
                .reset(bob);
        }
        let bob = world.connect(0);
        for byte in input.as_bytes() {
            world.send(bob, [*byte]);
        }
        world.expect(bob, format!("{answer}{next_answer}"));
    }
}

#[test]
fn targets_in_absolute_form_and_for_the_whole_server() {
    let mut world = World::with(1, |settings| {
        settings.host = vec!["presence.example".into()];
    });
    let bob = world.connect(0);
    world
        .get(bob, "http://presence.example:80/v1/presence/bob")
        .expect(bob, json(&unseen("bob")));
    world.send(bob, request("OPTIONS", "*"));
    world.expect(
        bob,
        "HTTP/1.1 204 No Content\r\nAllow: GET, HEAD, POST, OPTIONS\r\n\r\n",
    );
    world.send(bob, request("OPTIONS", "/v1/beat"));
    world.expect(
        bob,
        "HTTP/1.1 204 No Content\r\nAllow: POST, OPTIONS\r\n\r\n",
    );
}

#[test]
fn paths_methods_and_media_that_are_not_served() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    let not_found = problem(
        "404 Not Found",
        "not-found",
        "Nothing is found at this path",
        "see /openapi.json for the paths that are served",
        "",
    );
    for path in [
        "/nowhere",
        "/v1/presence/",
        "/v1/presence/a/b",
        "/v1/stream/",
        "/v2/presence/x",
    ] {
        world.get(bob, path).expect(bob, &not_found);
    }
    let not_allowed = |allow: &str| {
        problem(
            "405 Method Not Allowed",
            "method-not-allowed",
            "The path does not take this method",
            &format!("the path takes {allow}"),
            &format!("Allow: {allow}\r\n"),
        )
    };
    for (method, path, allow) in [
        ("PUT", "/v1/presence/x", "GET, HEAD, DELETE, OPTIONS"),
        ("DELETE", "/livez", "GET, HEAD, OPTIONS"),
        ("PATCH", "/v1/stream", "GET, HEAD, POST, OPTIONS"),
        ("GET", "/v1/beat", "POST, OPTIONS"),
        ("GET", "/v1/stream/0.0.00/watch", "POST, OPTIONS"),
    ] {
        world
            .send(bob, request(method, path))
            .expect(bob, not_allowed(allow));
    }
    world.send(bob, request("POST", "/v1/leave"));
    world.expect(
        bob,
        problem(
            "411 Length Required",
            "length-required",
            "The request needs a body",
            "send the JSON body with Content-Length or Transfer-Encoding: chunked",
            "",
        ),
    );
    for media in [
        "",
        "Content-Type: text/plain\r\n",
        "Content-Type: application/jsonp\r\n",
    ] {
        world.send(
            bob,
            format!("POST /v1/beat HTTP/1.1\r\nHost: a\r\n{media}Content-Length: 2\r\n\r\n{{}}"),
        );
        world.expect(
            bob,
            problem(
                "415 Unsupported Media Type",
                "unsupported-media-type",
                "The request body has the wrong media type",
                "send Content-Type: application/json",
                "",
            ),
        );
    }
    world.expect_open(bob);
}

#[test]
fn bodies_that_are_not_understood() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    for (path, body, slug) in [
        ("/v1/beat", "", "bad-json"),
        ("/v1/beat", "{}", "bad-json"),
        ("/v1/beat", "{\"users\":[\"a\"]} x", "bad-json"),
        ("/v1/beat", "{\"users\":[\"a\",]}", "bad-json"),
        ("/v1/stream", "{\"user\":\"\"}", "bad-user"),
        ("/v1/leave", "{\"user\":\"a\"}", "bad-json"),
        ("/v1/stream", "{\"watch\":\"a\"}", "bad-json"),
        ("/v1/presence/query", "[[[[[[[[[]]]]]]]]]", "bad-json"),
    ] {
        world.post(bob, path, body);
        let answer = world.received(bob);
        assert_eq!(
            status_and_slug(&answer),
            ("HTTP/1.1 400 Bad Request", slug),
            "{path} {body}"
        );
    }
    assert_eq!(world.count(0, Counter::LimitBodyDepth), 1);
    for target in [
        "/v1/stream?user=a&user=b",
        "/v1/presence",
        "/v1/presence?",
        "/v1/presence?usr=a",
    ] {
        world.get(bob, target);
        let answer = world.received(bob);
        assert_eq!(
            status_and_slug(&answer),
            ("HTTP/1.1 400 Bad Request", "bad-query"),
            "{target}"
        );
    }
    world.expect_open(bob);
}

#[test]
fn beats_and_goodbyes_over_http() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    world
        .post(bob, "/v1/beat", "{\"users\":[\"bob\",\"eve\"]}")
        .expect(bob, NO_CONTENT);
    let online = |user| super::harness::record(user, "online", 0, 0);
    world.post(
        bob,
        "/v1/presence/query",
        "{\"users\":[\"eve\",\"bob\",\"eve\"]}",
    );
    let body = format!(
        "{{\"presence\":[{},{},{}]}}",
        online("eve"),
        online("bob"),
        online("eve")
    );
    world.expect(bob, json(&body));
    world.get(bob, "/v1/presence?user=bob&user=zoe");
    world.expect(
        bob,
        json(&format!(
            "{{\"presence\":[{},{}]}}",
            online("bob"),
            unseen("zoe")
        )),
    );
    world.at(5);
    world
        .post(bob, "/v1/leave", "{\"users\":[\"bob\",\"zoe\"]}")
        .expect(bob, NO_CONTENT);
    assert_eq!(
        world.ask(0, "bob"),
        super::harness::record("bob", "offline", 5, 5)
    );
    let counted = [
        Counter::BeatsHttp,
        Counter::LeavesHttp,
        Counter::LeavesIgnored,
    ];
    assert_eq!(counted.map(|counter| world.count(0, counter)), [2, 1, 1]);
}

#[test]
fn health() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    let text = |body: &str| {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {}\r\nCache-Control: no-store\r\n\r\n{body}",
            body.len()
        )
    };
    world.get(bob, "/livez").expect(bob, text("ok\n"));
    world.get(bob, "/readyz").expect(bob, text("ready\n"));
    world.drain().get(bob, "/readyz").expect(
        bob,
        problem(
            "503 Service Unavailable",
            "draining",
            "The server is shutting down",
            "the server is shutting down",
            &format!("{RETRY_AFTER}{CLOSE}"),
        ),
    );
}

#[test]
fn origins_that_may_read() {
    let mut world = World::with(1, |settings| {
        settings.cors_origins = vec!["https://app.example".into()];
    });
    let bob = world.connect(0);
    let ask = |origin: &str| {
        format!("GET /v1/presence/bob HTTP/1.1\r\nHost: a\r\nOrigin: {origin}\r\n\r\n")
    };
    let body = unseen("bob");
    let cors = "Access-Control-Allow-Origin: https://app.example\r\n\
                Access-Control-Allow-Credentials: true\r\n";
    world
        .send(bob, ask("https://app.example"))
        .expect(bob, json_head(body.len(), cors) + &body);
    world
        .send(bob, ask("https://evil.example"))
        .expect(bob, json(&body));
    world.send(
        bob,
        "OPTIONS /v1/beat HTTP/1.1\r\nHost: a\r\nOrigin: https://app.example\r\n\
         Access-Control-Request-Headers: content-type,traceparent\r\n\r\n",
    );
    world.expect(
        bob,
        format!(
            "HTTP/1.1 204 No Content\r\nAllow: POST, OPTIONS\r\n\
             {cors}Access-Control-Allow-Methods: GET, HEAD, POST\r\n\
             Access-Control-Allow-Headers: Authorization, Cache-Control, Content-Type, \
             Last-Event-ID, X-Requested-With, traceparent\r\n\
             Access-Control-Max-Age: 86400\r\n\r\n"
        ),
    );
    let mut world = World::with(1, |settings| settings.cors_origins = vec!["*".into()]);
    let bob = world.connect(0);
    let any = "Access-Control-Allow-Origin: *\r\n";
    world
        .send(bob, ask("https://any.example"))
        .expect(bob, json_head(body.len(), any) + &body);
}

/// RFC 9112 section 2.2: an empty line before a request, as old clients send it behind a body,
/// means nothing.
#[test]
fn an_empty_line_between_requests_begins_none() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    let get = request("GET", "/v1/presence/x");
    world
        .send(bob, format!("{get}\r\n"))
        .expect(bob, json(&unseen("x")));
    // No request's time runs: it may idle.
    world.pass(20_000).expect_open(bob);
    world
        .send(bob, format!("\r\n\r\n{get}"))
        .expect(bob, json(&unseen("x")));
    world.send(bob, "\n").turn();
    assert_eq!(status_and_slug(&world.received(bob)).1, "bad-head");
}

/// Half of an empty line begins no request either: it may be all that comes for long.
#[test]
fn a_lone_cr_after_an_answer_starts_no_deadline() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    let get = request("GET", "/v1/presence/x");
    world.send(bob, &get).expect(bob, json(&unseen("x")));
    world.send(bob, "\r").pass(20_000).expect_open(bob);
    world
        .send(bob, format!("\n{get}"))
        .expect(bob, json(&unseen("x")));
    world.send(bob, "\r").pass(20_000).expect_nothing(bob);
    world.send(bob, "x").turn();
    assert_eq!(status_and_slug(&world.received(bob)).1, "bad-head");
}

/// Whose head decides already is not asked for a body that nobody would read.
#[test]
fn a_client_that_waits_is_told_the_final_status_where_the_head_decides() {
    let json = "Content-Type: application/json\r\n";
    for (line, fields, status) in [
        ("POST /nowhere", json, "404 Not Found"),
        ("POST /livez", json, "405 Method Not Allowed"),
        ("DELETE /v1/beat", json, "405 Method Not Allowed"),
        ("POST /v1/beat", "", "415 Unsupported Media Type"),
        (
            "POST /v1/beat",
            "Content-Type: application/json\r\nOrigin: https://evil.example\r\n",
            "403 Forbidden",
        ),
    ] {
        for framing in ["Content-Length: 9", "Transfer-Encoding: chunked"] {
            let mut world = World::new(1);
            let bob = world.connect(0);
            world.send(
                bob,
                format!(
                    "{line} HTTP/1.1\r\nHost: a\r\n{fields}Expect: 100-continue\r\n\
                     {framing}\r\n\r\n"
                ),
            );
            let answer = world.received(bob);
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}\r\n")),
                "{line}: {answer}"
            );
            // The body may come all the same, and must not be taken for a request.
            assert!(answer.contains(&format!("\r\n{CLOSE}")), "{answer}");
            world.send(bob, "123456789").expect_nothing(bob);
        }
    }
    // On a real-time node a PUT without the token, which could be a megabyte.
    let nodes = greendot::wire::nodes::Nodes::new(["10.0.0.1:8081"]);
    let role = greendot::engine::Role::Realtime(std::sync::Arc::new(nodes));
    let mut world = World::of_role(1, role, 10);
    let bob = world.connect(0);
    world.send(
        bob,
        format!(
            "PUT /v1/presence HTTP/1.1\r\nHost: a\r\n{json}Expect: 100-continue\r\n\
             Content-Length: 9\r\n\r\n"
        ),
    );
    let answer = world.received(bob);
    assert!(
        answer.starts_with("HTTP/1.1 401 Unauthorized\r\n"),
        "{answer}"
    );
}
