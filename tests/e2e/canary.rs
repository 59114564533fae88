//! No secret is told: whatever shows one, wherever it is shown, whole or damaged, it stands in no
//! log, metric, answer, file or list of processes.

use std::fs;

use serde_json::json;

use crate::harness::{Home, Server};
use crate::http::Conn;

/// The secret of users' tokens.
const CANARY: &str = "canary-6f2a-of-32-bytes-or-more-9c31";
/// A part of a secret that is found is a secret found.
const PART_BYTES: usize = 16;

const STREAM: &str = "1.0.00000000";

/// Each call, with a body that it takes.
const CALLS: &[(&str, &str, &str)] = &[
    ("GET", "/v1/presence/bob", ""),
    ("GET", "/v1/presence?user=bob", ""),
    ("POST", "/v1/presence/query", r#"{"users":["bob"]}"#),
    ("PUT", "/v1/presence", r#"{"presence":[]}"#),
    ("DELETE", "/v1/presence/nobody", ""),
    ("HEAD", "/v1/stream?watch=bob", ""),
    ("POST", "/v1/stream/{id}/watch", r#"{"add":["bob"]}"#),
    ("POST", "/v1/stream/{id}/token", ""),
    ("POST", "/v1/stream/{id}/beat", ""),
    ("POST", "/v1/streams/held", r#"{"users":["bob"]}"#),
    ("GET", "/v1/streams?user=bob", ""),
    ("GET", "/v1/node/streams", ""),
    ("GET", "/v1/node/streams/{id}", ""),
    ("GET", "/v1/node/lists/streams", ""),
    ("GET", "/v1/node/lists/online", ""),
    ("GET", "/v1/streams/{id}", ""),
    ("DELETE", "/v1/streams/{id}", ""),
    ("GET", "/v1/online?prefix=b", ""),
    ("POST", "/v1/beat", r#"{"users":["alice"]}"#),
    ("POST", "/v1/datagrams", r#"{"datagrams":[]}"#),
    ("POST", "/v1/status", r#"{"user":"alice","status":"busy"}"#),
    ("POST", "/v1/leave", r#"{"users":["alice"]}"#),
    ("POST", "/v1/ticket", ""),
    ("POST", "/v1/device-key", r#"{"device":"phone"}"#),
    ("POST", "/v1/revoke", r#"{"jti":"nobodys"}"#),
    ("POST", "/v1/revocations", r#"{"revocations":[]}"#),
    ("POST", "/v1/session", r#"{"key":"gds_backend_x"}"#),
    ("DELETE", "/v1/session", ""),
    ("GET", "/readyz", ""),
    ("GET", "/metrics", ""),
    ("GET", "/", ""),
    ("OPTIONS", "/v1/presence", ""),
    ("BREW", "/v1/presence", ""),
    ("GET", "/nowhere", ""),
];

struct Secrets {
    /// What each is called, and the secret.
    shown: Vec<(&'static str, String)>,
}

impl Secrets {
    /// Fails if a part of one stands in what is told, other than in an answer that gives it.
    fn expect_none_in(&self, told: &[u8], place: &str) {
        for (name, secret) in &self.shown {
            // The first part of a token says what is no secret: its kind.
            let bytes = &secret.as_bytes()[secret.len().saturating_sub(40)..];
            for part in bytes.windows(PART_BYTES) {
                let found = told.windows(PART_BYTES).any(|window| window == part);
                assert!(
                    !found,
                    "a part of the {name} stands in {place}:\n{}",
                    String::from_utf8_lossy(told)
                );
            }
        }
    }
}

/// Everything that comes, until the peer closes.
fn answered(server: &Server, request: &str) -> Vec<u8> {
    let mut conn: Conn = server.connect();
    conn.send(request.as_bytes());
    conn.read_to_end()
}

fn requested(method: &str, target: &str, lines: &str, body: &str) -> String {
    format!(
        "{method} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{lines}\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn text_of(server: &Server, lines: &str, target: &str, body: &str, member: &str) -> String {
    let mut conn = server.connect();
    conn.send(requested("POST", target, lines, body).as_bytes());
    let made = conn.answer().json();
    made[member].as_str().expect("it is text").to_owned()
}

/// The session that a browser gets for a service key.
fn session_of(server: &Server, key: &str) -> String {
    let mut conn = server.connect();
    let body = json!({ "key": key }).to_string();
    conn.send(requested("POST", "/v1/session", "", &body).as_bytes());
    let answer = conn.answer();
    let cookie = answer.field("set-cookie").expect("a cookie");
    let (_, value) = cookie.split_once('=').expect("it has a name");
    let (value, _) = value.split_once(';').expect("it has attributes");
    value.to_owned()
}

fn service_key(home: &Home) -> (String, String) {
    let scopes = "--scopes=publish,beat,query,ticket,revoke,metrics,admin";
    let made = home.run(&["key", "new", "--service=backend", scopes]);
    let made = String::from_utf8(made.stdout).expect("it prints text");
    let mut lines = made.lines().map(str::to_owned);
    let key = lines.next().expect("the key");
    (key, lines.next().expect("the line of the file"))
}

#[test]
fn no_secret_is_told_by_whatever_door_it_comes() {
    let home = Home::new();
    home.keep("app.secret", CANARY);
    let (key, line) = service_key(&home);
    home.keep("services", &format!("{line}\n"));
    let server = home.serve(&[
        "--jwt-keys=app.secret",
        "--service-keys=services",
        "--auth-cookie=session",
        "--auth-query",
        "--log-level=trace",
        "--shards=2",
    ]);
    let alice = home.token("alice", &["--watch=*"]);
    let bearer = format!("Authorization: Bearer {alice}\r\n");
    let ticket = text_of(&server, &bearer, "/v1/ticket", "", "ticket");
    let body = json!({"device": "phone"}).to_string();
    let device_key = text_of(&server, &bearer, "/v1/device-key", &body, "key");
    let session = session_of(&server, &key);
    let secrets = Secrets {
        shown: vec![
            ("session", session),
            ("secret of tokens", CANARY.into()),
            ("service key", key),
            ("fleet key", server.key().to_hex().to_string()),
            ("token of nodes", server.key().service_token().to_string()),
            ("token of a user", alice),
            ("ticket", ticket),
            ("device's key", device_key),
        ],
    };
    for (name, secret) in &secrets.shown {
        let half = &secret[..secret.len() / 2];
        for shown in [secret.clone(), format!("{secret}x"), half.to_owned()] {
            for (method, target, body) in CALLS {
                let target = target.replace("{id}", STREAM);
                let mark = if target.contains('?') { '&' } else { '?' };
                for (target, lines) in [
                    (target.clone(), format!("Authorization: Bearer {shown}\r\n")),
                    (target.clone(), format!("Authorization: Basic {shown}\r\n")),
                    (target.clone(), format!("Cookie: session={shown}\r\n")),
                    (
                        target.clone(),
                        format!("Cookie: greendot-session={shown}\r\n"),
                    ),
                    (format!("{target}{mark}token={shown}"), String::new()),
                    (format!("{target}{mark}ticket={shown}"), String::new()),
                ] {
                    // These answers are made to give one.
                    if matches!(&*target, "/v1/ticket" | "/v1/device-key") && shown == *secret {
                        continue;
                    }
                    let request = requested(method, &target, &lines, body);
                    let answer = answered(&server, &request);
                    let place = format!("the answer to {method} {target} with the {name}");
                    secrets.expect_none_in(&answer, &place);
                }
            }
            for request in [
                requested("GET", &format!("/{shown}"), "", ""),
                requested("POST", "/v1/beat", &bearer, &shown),
                requested("POST", "/v1/session", "", &shown),
                requested(
                    "POST",
                    "/v1/session",
                    "",
                    &format!("{{\"key\":\"{shown}x\"}}"),
                ),
                format!("GET / HTTP/1.1\r\n{shown}\r\n\r\n"),
                format!("{shown}\r\n\r\n"),
            ] {
                secrets.expect_none_in(&answered(&server, &request), "an answer to nonsense");
            }
        }
    }
    secrets.expect_none_in(&server.get("/metrics").body, "the metrics");
    let pid = server.process.pid().as_raw_nonzero();
    for file in ["cmdline", "environ"] {
        let told = fs::read(format!("/proc/{pid}/{file}")).expect("it runs");
        secrets.expect_none_in(&told, file);
    }

    // Files that hold the right secret in the wrong place, or half of it.
    for (name, secret) in &secrets.shown {
        for text in [
            secret.clone(),
            format!("backend all {secret}"),
            secret[..9].to_owned(),
        ] {
            for file in ["app.secret", "services", "data/fleet.key"] {
                let path = home.path().join(file);
                let kept = fs::read(&path).expect("a file of ours");
                fs::write(&path, &text).expect("a file of ours");
                let data_dir = home.data_dir();
                let said = home.run(&["reload", "--data-dir", &data_dir.to_string_lossy()]);
                fs::write(&path, kept).expect("a file of ours");
                let place = format!("what a reload says of the {name} in {file}");
                secrets.expect_none_in(&[said.stdout, said.stderr].concat(), &place);
            }
        }
    }
    secrets.expect_none_in(server.log().as_bytes(), "the log");
    server.terminate();
    for entry in fs::read_dir(home.data_dir()).expect("a folder of ours") {
        let path = entry.expect("it can be read").path();
        if path.file_name().is_some_and(|name| name != "fleet.key") {
            let told = fs::read(&path).expect("a file of ours");
            secrets.expect_none_in(&told, &path.display().to_string());
        }
    }
}
