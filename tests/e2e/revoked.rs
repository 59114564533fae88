//! Revoked tokens against real nodes: over a kill and a restart, and from node to node.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use crate::harness::{Home, Server, until};
use crate::http::{Answer, Conn};
use crate::stream::Stream;

pub(crate) fn token(home: &Home, flags: &[&str]) -> String {
    let token = home.token("alice", &[&["--watch=*"], flags].concat());
    format!("Authorization: Bearer {token}\r\n")
}

pub(crate) fn asked(to: SocketAddr, line: &str, lines: &str, body: &str) -> Answer {
    let mut conn = Conn::to(to);
    let typed = match body.len() {
        0 => String::new(),
        length => format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"),
    };
    conn.send(format!("{line} HTTP/1.1\r\nHost: a\r\n{lines}{typed}\r\n{body}").as_bytes());
    conn.answer()
}

/// The status of a query with this token at a node that decides.
pub(crate) fn query(to: SocketAddr, token: &str) -> u16 {
    asked(to, "GET /v1/presence/bob", token, "").status
}

/// The status that a stream with this token is opened with.
fn open(to: SocketAddr, token: &str) -> u16 {
    let mut conn = Conn::to(to);
    conn.send(format!("HEAD /v1/stream?watch=bob HTTP/1.1\r\nHost: a\r\n{token}\r\n").as_bytes());
    conn.head().status
}

#[test]
fn a_kill_right_after_the_answer_forgets_no_revocation() {
    let home = Home::with_secret();
    let flags = ["--jwt-keys=app.secret", "--shards=2"];
    let server = home.serve(&flags);
    let node = format!("Authorization: Bearer {}\r\n", server.key().service_token());
    let [one, other] = ["one", "other"].map(|id| token(&home, &[&format!("--jti={id}")]));
    let answer = asked(server.http, "POST /v1/revoke", &node, r#"{"jti":"one"}"#);
    assert_eq!(answer.status, 204, "{answer:?}");
    server.kill();
    let server = home.serve(&flags);
    assert_eq!(
        [&one, &other].map(|token| query(server.http, token)),
        [401, 200]
    );
    let answer = asked(server.http, "POST /v1/revoke", &node, r#"{"user":"alice"}"#);
    assert_eq!(answer.status, 204, "{answer:?}");
    server.terminate();
    let server = home.serve(&flags);
    assert_eq!(
        [&one, &other].map(|token| query(server.http, token)),
        [401, 401]
    );
    server.terminate();
    let kept = home
        .data_dir()
        .join("revocations.log")
        .metadata()
        .expect("it is there");
    assert_eq!(
        (kept.len(), kept.permissions().mode() & 0o777),
        (16 + 2 * 36, 0o600)
    );
}

#[test]
pub(crate) fn no_more_are_in_force_than_may_be() {
    let home = Home::with_secret();
    let server = home.serve(&["--jwt-keys=app.secret", "--revocations-max=2"]);
    let node = format!("Authorization: Bearer {}\r\n", server.key().service_token());
    for (jti, status) in [("a", 204), ("b", 204), ("c", 503), ("b", 204)] {
        let body = format!(r#"{{"jti":"{jti}"}}"#);
        let answer = asked(server.http, "POST /v1/revoke", &node, &body);
        assert_eq!(answer.status, status, "{jti} {answer:?}");
    }
    server.expect_limit_hits("revocations-max", |hits| hits == 1.0);
    server.terminate();
}

/// Where a node is to listen that has yet to start: others must know it before. No other home has
/// the address. Sockets that are bound to all addresses have higher ports, by the kernel's choice.
fn address(home: &Home) -> SocketAddr {
    (home.ip(), 8_490).into()
}

/// Two presence nodes that know nothing of each other, and a real-time node that knows both.
#[test]
fn nodes_tell_each_other_and_one_that_starts_anew_is_told_all() {
    let homes = [(); 3].map(|()| Home::with_secret());
    let key = homes[0].run(&["key"]).stdout;
    let key = String::from_utf8(key).expect("it is text");
    homes.iter().for_each(|home| home.keep("fleet.key", &key));
    let http = [0, 1, 2].map(|node| address(&homes[node]));
    let udp = [0, 1].map(|node| address(&homes[node]));
    let common = [
        "--key-file=fleet.key",
        "--jwt-keys=app.secret",
        "--shards=2",
    ];
    let start = |home: &Home, args: &[String]| -> Server {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        home.launch(home.command(&args).args(common))
    };
    let presence = |node: usize| {
        start(
            &homes[node],
            &[
                "presence".into(),
                format!("--http={}", http[node]),
                format!("--udp={}", udp[node]),
                format!("--data-dir={}", homes[node].data_dir().display()),
                format!("--realtime=http://{}", http[2]),
            ],
        )
    };
    let realtime = || {
        start(
            &homes[2],
            &[
                "realtime".into(),
                format!("--http={}", http[2]),
                format!("--presence=udp://{},http://{}", udp[0], http[0]),
                format!("--presence=udp://{},http://{}", udp[1], http[1]),
            ],
        )
    };
    let [first, second] = [presence(0), presence(1)];
    let real_time = realtime();
    for node in http {
        until("all are ready", || {
            (asked(node, "GET /readyz", "", "").text() == "ready\n").then_some(())
        });
    }
    let key = greendot::wire::beat::FleetKey::from_hex(key.trim()).expect("a key");
    let node = format!("Authorization: Bearer {}\r\n", key.service_token());
    let old = token(&homes[0], &[]);
    let mut conn = Conn::to(http[2]);
    conn.send(format!("GET /v1/stream?watch=bob HTTP/1.1\r\nHost: a\r\n{old}\r\n").as_bytes());
    let mut stream = Stream::answered(conn);
    stream.expect("hello");
    stream.expect("snapshot");
    assert_eq!(query(http[1], &old), 200);
    let answer = asked(http[0], "POST /v1/revoke", &node, r#"{"user":"alice"}"#);
    assert_eq!(answer.status, 204, "{answer:?}");
    // What bob is comes in its own time.
    while stream.next().kind != "expired" {}
    until("the other presence node knows", || {
        (query(http[1], &old) == 401).then_some(())
    });
    assert_eq!(open(http[2], &old), 401);

    real_time.kill();
    let real_time = realtime();
    until("it has been told again", || {
        (open(http[2], &old) == 401).then_some(())
    });
    for node in [real_time, second, first] {
        node.terminate();
    }
}
