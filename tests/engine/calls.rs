//! What is common to all calls, by the table of them: who may read an answer, what a late answer
//! still knows of its request, what is counted as what.

use greendot::metrics::{Call, StatusClass};

use crate::harness::{World, unseen};

const ORIGIN: &str = "https://app.example";
const CORS: &str = "\r\nAccess-Control-Allow-Origin: https://app.example\r\n\
                    Access-Control-Allow-Credentials: true\r\n";

fn world(shards: u16) -> World {
    World::with(shards, |settings| {
        settings.cors_origins = vec![ORIGIN.into()]
    })
}

fn from_page(line: &str, more: &str) -> String {
    format!("{line}\r\nHost: a\r\nOrigin: {ORIGIN}\r\n{more}\r\n")
}

/// Whatever the answer is, and whoever made it: a page of a listed origin may read it.
#[test]
fn every_answer_to_a_head_that_was_read_has_cors_lines() {
    let mut world = world(1);
    let json = |body: &str| {
        let length = body.len();
        format!("Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    for (line, more, status) in [
        ("GET /v1/presence/bob HTTP/1.1", "", "200"),
        ("HEAD /v1/presence/bob HTTP/1.0", "", "200"),
        ("GET /v1/presence?user=bob HTTP/1.1", "", "200"),
        ("GET /v1/presence?usr=bob HTTP/1.1", "", "400"),
        ("GET /v1/stream HTTP/1.1", "", "200"),
        ("HEAD /v1/stream HTTP/1.1", "", "200"),
        ("GET /livez HTTP/1.1", "", "200"),
        ("GET /readyz HTTP/1.1", "", "200"),
        ("GET /metrics HTTP/1.1", "", "200"),
        ("GET / HTTP/1.1", "", "200"),
        ("GET /nowhere HTTP/1.1", "", "404"),
        ("OPTIONS * HTTP/1.1", "", "204"),
        ("OPTIONS /v1/leave HTTP/1.1", "", "204"),
        ("DELETE /v1/presence/bob HTTP/1.1", "", "401"),
        ("PUT /v1/presence/bob HTTP/1.1", "", "405"),
        ("POST /v1/beat HTTP/1.1", "", "411"),
        (
            "POST /v1/beat HTTP/1.1",
            "Content-Length: 2\r\n\r\n{}",
            "415",
        ),
        (
            "POST /v1/beat HTTP/1.1",
            &json("{\"users\":[\"bob\"]}"),
            "204",
        ),
        ("POST /v1/leave HTTP/1.1", &json("{}"), "400"),
        ("POST /v1/stream/1.2/watch HTTP/1.1", &json("{}"), "404"),
        // Refused on their form: a script must see why, or it tries again for ever.
        (
            "POST /v1/beat HTTP/1.1",
            "Content-Length: 9999999\r\n\r\n",
            "413",
        ),
        (
            "POST /v1/beat HTTP/1.1",
            "Transfer-Encoding: chunked\r\n\r\nFFFFFF\r\n",
            "413",
        ),
        (
            "POST /v1/beat HTTP/1.1",
            "Transfer-Encoding: chunked\r\n\r\nno size\r\n",
            "400",
        ),
        ("POST /v1/beat HTTP/1.1", "Expect: tea\r\n\r\n", "417"),
        ("GET / HTTP/1.1", &"X: y\r\n".repeat(64), "431"),
        ("BREW / HTTP/1.1", "", "501"),
        ("GET / HTTP/2.7", "", "505"),
        ("GET / HTTP/1.1", "X : y\r\n", "400"),
    ] {
        let peer = world.connect(0);
        world.send(peer, from_page(line, more)).turn();
        let answer = world.received(peer);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{line}: {answer}"
        );
        let (head, _) = answer.split_once("\r\n\r\n").unwrap();
        assert!(format!("{head}\r\n").contains(CORS), "{line}: {head}");
    }
}

/// A request that has not come whole in its time, in each of the ways in which it may be torn; and
/// one whose head alone is too long.
#[test]
fn a_page_may_read_that_its_request_was_late_or_too_long() {
    let mut world = world(1);
    let torn = [
        ("POST /v1/beat HTTP/1.1", ""),
        ("POST /v1/beat HTTP/1.1", "Content-Length: 9\r\n\r\n{"),
        (
            "POST /v1/beat HTTP/1.1",
            "Transfer-Encoding: chunked\r\n\r\n9\r\n{",
        ),
    ];
    let late: Vec<_> = torn
        .iter()
        .map(|(line, more)| {
            let peer = world.connect(0);
            let whole = from_page(line, more);
            // Without the end that `from_page` gives a head.
            world.send(peer, whole.strip_suffix("\r\n").unwrap());
            peer
        })
        .collect();
    world.pass(20_000);
    for peer in late {
        let answer = world.received(peer);
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains(CORS), "{answer}");
    }
    for (line, status) in [
        (format!("GET /{} HTTP/1.1", "x".repeat(9_000)), "414"),
        (
            format!(
                "GET / HTTP/1.1\r\nOrigin: {ORIGIN}\r\nX: {}",
                "y".repeat(9_000)
            ),
            "431",
        ),
    ] {
        let peer = world.connect(0);
        let request = match status {
            "414" => from_page(&line, ""),
            _ => line.clone(),
        };
        world.send(peer, request);
        let answer = world.received(peer);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert!(answer.contains(CORS), "{answer}");
    }
}

/// A request is parked with all that its answer needs.
#[test]
fn a_late_answer_is_written_for_who_asked() {
    let mut world = world(2);
    let (_, id) = world.stream(1, "", 0);
    let body = "{\"add\":[\"bob\"]}";
    let more = format!(
        "Content-Type: application/json\r\nContent-Length: {}\r\nConnection: keep-alive\r\n",
        body.len()
    );
    let asker = world.connect(0);
    let line = format!("POST /v1/stream/{id}/watch HTTP/1.0");
    world.send(asker, from_page(&line, &more) + body).turn();
    world.expect(
        asker,
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\
             Cache-Control: no-store{CORS}Connection: keep-alive\r\n\r\n{{\"watching\":1}}"
        ),
    );
    let requests = world.engine(0).counters();
    assert_eq!(requests.requests(Call::StreamWatch, StatusClass::Good), 1);
}

/// A user may have the name of a path: it is that user who is asked for, and so it is counted.
#[test]
fn a_user_called_query() {
    let mut world = World::new(1);
    assert_eq!(world.ask(0, "query"), unseen("query"));
    let counters = world.engine(0).counters();
    assert_eq!(counters.requests(Call::PresenceOne, StatusClass::Good), 1);
    assert_eq!(counters.requests(Call::PresenceQuery, StatusClass::Good), 0);
}
