//! What one user's tokens may ask in a time, on the real server.

use crate::harness::{Home, Server};
use crate::http::Answer;

/// More than is allowed at once, and in the time that so many take on a busy machine.
const ASKED: usize = 20;

/// The answers to the same request again and again, which have all been sent before the first is
/// read: how fast the client is does not matter.
fn asked(server: &Server, line: &str, token: &str, body: &str) -> Vec<Answer> {
    let typed = match body {
        "" => String::new(),
        body => format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ),
    };
    let mut conn = server.connect();
    let lines = format!("Host: a\r\nAuthorization: Bearer {token}\r\n{typed}");
    let request = format!("{line} HTTP/1.1\r\n{lines}\r\n{body}");
    conn.send(request.repeat(ASKED).as_bytes());
    (0..ASKED).map(|_| conn.answer()).collect()
}

/// Each is reached by asking once more than is allowed.
#[test]
pub(crate) fn who_asks_too_much_is_told_when_to_come_again() {
    let home = Home::with_secret();
    let server = home.serve(&[
        "--jwt-keys=app.secret",
        "--watch-default=everybody",
        "--shards=2",
        "--watches-per-stream-max=2",
        "--queries-per-user-second-max=1",
        "--queries-per-user-burst=2",
        "--ids-per-user-minute-max=3",
        "--edits-per-user-second-max=1",
        "--edits-per-user-burst=2",
        "--streams-per-user-second-max=1",
        "--streams-per-user-burst=2",
        "--watch-lists-per-user-minute-max=1",
        "--tickets-per-user-second-max=1",
        "--tickets-per-user-burst=2",
    ]);
    let token = |user: &str| home.token(user, &["--watch=*"]);
    let until_refused = |limit: &str, user: &str, line: &str, body: &str| {
        let token = token(user);
        let answers = asked(&server, line, &token, body);
        let refusal = answers.into_iter().find(|answer| answer.status != 200);
        let refusal = refusal.expect("it is limited");
        refusal.expect_problem(429, "rate-limited");
        let seconds: u64 = refusal
            .field("retry-after")
            .expect("a time")
            .parse()
            .expect("it");
        assert!((1..=60).contains(&seconds), "{limit}: {seconds}");
        server.expect_limit_hits(limit, |hits| hits >= 1.0);
    };
    let query = "POST /v1/presence/query";
    until_refused("queries-per-user-second-max", "a", query, r#"{"users":[]}"#);
    until_refused(
        "ids-per-user-minute-max",
        "b",
        query,
        r#"{"users":["x","x"]}"#,
    );
    until_refused("tickets-per-user-second-max", "c", "POST /v1/ticket", "");

    let streams = |user: &str, query: &str| {
        let token = token(user);
        let lines = format!("Host: a\r\nAuthorization: Bearer {token}\r\n\r\n");
        let request = format!("GET /v1/stream?{query} HTTP/1.1\r\n{lines}");
        let mut conns: Vec<_> = (0..ASKED).map(|_| server.connect()).collect();
        let all = conns.iter_mut();
        all.for_each(|conn| conn.send(request.as_bytes()));
        let opened = conns.into_iter().map(|conn| {
            let mut stream = crate::stream::Stream::answered(conn);
            (stream.next(), stream)
        });
        opened
            .filter(|(event, _)| event.kind == "hello")
            .collect::<Vec<_>>()
    };
    streams("d", "");
    server.expect_limit_hits("streams-per-user-second-max", |hits| hits >= 1.0);
    for (limit, user, body) in [
        ("edits-per-user-second-max", "e", r#"{"remove":["x"]}"#),
        (
            "watch-lists-per-user-minute-max",
            "f",
            r#"{"add":["x","x"]}"#,
        ),
    ] {
        let held = streams(user, "");
        let id = held[0].0.data["stream"].as_str().expect("an id");
        until_refused(limit, user, &format!("POST /v1/stream/{id}/watch"), body);
    }
}
