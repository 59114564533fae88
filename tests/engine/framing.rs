//! Strict framing: what two servers could read in two ways is refused, and nothing behind it runs.

use greendot::metrics::Counter;

use super::harness::{
    NO_CONTENT, World, json_head, posted, problem, request, status_and_slug, unseen,
};

/// A beat that would make "victim" known if it ran.
fn smuggled() -> String {
    posted("/v1/beat", "{\"users\":[\"victim\"]}")
}

/// The refusal of `input`, after checking that nothing behind it ran and that the connection ends
/// with a linger.
#[track_caller]
fn refused(input: &str) -> (String, String) {
    let mut world = World::new(1);
    let bob = world.connect(0);
    world.send(bob, input.to_owned() + &smuggled());
    let answer = world.received(bob);
    world.expect_write_shut(bob);
    world.send(bob, smuggled()).expect_nothing(bob);
    world.pass(1_064).expect_closed(bob);
    assert_eq!(world.ask(0, "victim"), unseen("victim"), "{input:?}");
    assert_eq!(world.presence().users(), 0);
    assert!(answer.contains("\r\nConnection: close\r\n"));
    assert_eq!(answer.matches("\r\nContent-Type: ").count(), 1);
    let (status, slug) = status_and_slug(&answer);
    (
        status
            .strip_prefix("HTTP/1.1 ")
            .expect("a status")
            .to_owned(),
        slug.to_owned(),
    )
}

#[test]
fn heads() {
    let cases: &[(&str, &str, &str)] = &[
        ("GET / HTTP/1.1\nHost: a\n\n", "400 Bad Request", "bad-head"),
        (
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "400 Bad Request",
            "bad-head",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n",
            "400 Bad Request",
            "bad-head",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n folded\r\n\r\n",
            "400 Bad Request",
            "bad-head",
        ),
        (
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "400 Bad Request",
            "bad-head",
        ),
        (
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "400 Bad Request",
            "bad-head",
        ),
        (
            "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
            "400 Bad Request",
            "bad-head",
        ),
        ("GET / HTTP/1.1\r\n\r\n", "400 Bad Request", "bad-host"),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "400 Bad Request",
            "bad-host",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "400 Bad Request",
            "bad-host",
        ),
        (
            "GET http://u@h/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "400 Bad Request",
            "bad-host",
        ),
        (
            "BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
            "501 Not Implemented",
            "unknown-method",
        ),
        (
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            "505 HTTP Version Not Supported",
            "bad-version",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nExpect: gold\r\n\r\n",
            "417 Expectation Failed",
            "bad-expect",
        ),
    ];
    for (input, status, slug) in cases {
        assert_eq!(
            refused(input),
            (status.to_string(), slug.to_string()),
            "{input:?}"
        );
    }
}

#[test]
fn lengths() {
    let cases: &[(&str, &str, &str)] = &[
        (
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "400 Bad Request",
            "bad-framing",
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 3",
            "400 Bad Request",
            "bad-framing",
        ),
        (
            "Content-Length: 3\r\nContent-Length: 3",
            "400 Bad Request",
            "bad-framing",
        ),
        ("Content-Length: 3, 3", "400 Bad Request", "bad-framing"),
        ("Content-Length: +3", "400 Bad Request", "bad-framing"),
        ("Content-Length: 0x3", "400 Bad Request", "bad-framing"),
        ("Content-Length: -1", "400 Bad Request", "bad-framing"),
        ("Content-Length:", "400 Bad Request", "bad-framing"),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "400 Bad Request",
            "bad-framing",
        ),
        (
            "Transfer-Encoding: chunked, chunked",
            "400 Bad Request",
            "bad-framing",
        ),
        (
            "Transfer-Encoding: gzip, chunked",
            "501 Not Implemented",
            "unknown-coding",
        ),
        (
            "Transfer-Encoding: xchunked",
            "400 Bad Request",
            "bad-framing",
        ),
        (
            "Transfer-Encoding: chunked, identity",
            "400 Bad Request",
            "bad-framing",
        ),
        (
            "Content-Length: 1048577",
            "413 Content Too Large",
            "body-too-large",
        ),
        (
            "Content-Length: 99999999999999999999999999",
            "413 Content Too Large",
            "body-too-large",
        ),
    ];
    for (lines, status, slug) in cases {
        let input = format!(
            "POST /v1/beat HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{lines}\r\n\r\n"
        );
        assert_eq!(
            refused(&input),
            (status.to_string(), slug.to_string()),
            "{lines:?}"
        );
    }
    let old = "POST /v1/beat HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(
        refused(old),
        ("400 Bad Request".into(), "bad-framing".into())
    );
}

#[test]
fn chunks() {
    let cases: &[(&str, &str, &str)] = &[
        ("3\n{}\n", "400 Bad Request", "bad-chunk"),
        ("0x3\r\n", "400 Bad Request", "bad-chunk"),
        ("00000000000000003\r\n", "400 Bad Request", "bad-chunk"),
        ("-3\r\n", "400 Bad Request", "bad-chunk"),
        ("\r\n", "400 Bad Request", "bad-chunk"),
        ("3 \r\n", "400 Bad Request", "bad-chunk"),
        ("1\r\n{}\r\n", "400 Bad Request", "bad-chunk"),
        ("2\r\n{}\n0\r\n", "400 Bad Request", "bad-chunk"),
        ("0\r\nx: y\n\r\n", "400 Bad Request", "bad-chunk"),
        ("100001\r\n", "413 Content Too Large", "body-too-large"),
        (
            "ffffffffffffffff\r\n",
            "413 Content Too Large",
            "body-too-large",
        ),
    ];
    for (chunk, status, slug) in cases {
        let input = format!(
            "POST /v1/beat HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
             Transfer-Encoding: chunked\r\n\r\n{chunk}"
        );
        assert_eq!(
            refused(&input),
            (status.to_string(), slug.to_string()),
            "{chunk:?}"
        );
    }
}

#[test]
fn what_stood_before_the_fault_is_answered() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    let good = posted("/v1/beat", "{\"users\":[\"bob\"]}");
    world.send(bob, format!("{good}{}\n{}", "GET / HTTP/1.1", smuggled()));
    let refusal = problem(
        "400 Bad Request",
        "bad-head",
        "The request head is not valid HTTP/1.1",
        "a line does not end in CR LF, or holds a byte or a form that HTTP does not allow there; \
         percent-encode what is not ASCII, do not fold header lines, and send Content-Type, \
         Origin, Authorization and Last-Event-ID once at most",
        "Connection: close\r\n",
    );
    world
        .expect(bob, format!("{NO_CONTENT}{refusal}"))
        .expect_write_shut(bob);
    assert_eq!(world.presence().users(), 1);
    assert_eq!(world.count(0, Counter::ClosedFault), 1);
}

#[test]
fn a_refused_peer_is_listened_to_until_it_ends_or_a_second_is_over() {
    let mut world = World::new(1);
    let head = "POST /v1/beat HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\n";
    let ends = world.connect(0);
    world.send(ends, head).turn().expect_write_shut(ends);
    world
        .send(ends, "x".repeat(100_000))
        .expect_write_shut(ends);
    world.shut(ends).expect_closed(ends);
    let goes_on = world.connect(0);
    world.send(goes_on, head).expect_write_shut(goes_on);
    world.pass(999).expect_write_shut(goes_on);
    world.pass(65).expect_closed(goes_on);
    let ended = world.connect(0);
    world.stall(ended).send(ended, head).turn().shut(ended);
    world.read(ended, None).expect_closed(ended);
    let mut abrupt = World::with(1, |settings| settings.linger_ms = 0);
    let bob = abrupt.connect(0);
    abrupt.send(bob, head).expect_closed(bob);
}

#[test]
fn blank_lines_before_a_request_are_skipped() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    world.send(bob, format!("\r\n\r\n{}", request("GET", "/v1/presence/x")));
    world.expect(bob, super::harness::json(&unseen("x")));
}

/// Who speaks another protocol, or an HTTP without versions, may never send a blank line.
#[test]
fn what_begins_no_request_is_refused_at_once() {
    for line in ["SSH-2.0-OpenSSH_9.9", "GET /", "GET / HTTP/1", "QUIT"] {
        assert_eq!(
            refused(&format!("{line}\r\n")),
            ("400 Bad Request".to_owned(), "bad-head".to_owned()),
            "{line}"
        );
    }
    let mut world = World::new(1);
    let bob = world.connect(0);
    world
        .send(bob, "GET /livez HTTP/1.1\r\n")
        .expect_nothing(bob)
        .expect_open(bob);
}

#[test]
fn a_later_minor_version_is_served_as_1_1() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    let body = unseen("bob");
    world
        .send(bob, "GET /v1/presence/bob HTTP/1.2\r\nHost: a\r\n\r\n")
        .expect(bob, json_head(body.len(), "") + &body)
        .expect_open(bob);
}

#[test]
fn trace_is_known_and_taken_nowhere() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    world.send(bob, "TRACE /livez HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = world.received(bob);
    assert!(
        answer.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("\r\nAllow: GET, HEAD, OPTIONS\r\n"),
        "{answer}"
    );
    world.expect_open(bob);
}
