//! Users' tokens against the real server: its flags, its refusals, and where no secret may stand.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::harness::{Home, Server};
use crate::http::Answer;

/// What no log, metric, answer or list of processes may hold.
const CANARY: &str = "canary-6f2a-of-32-bytes-or-more-9c31";

fn secret(home: &Home, mode: u32) -> PathBuf {
    let path = home.path().join("app.secret");
    fs::write(&path, format!("{CANARY}\n")).expect("it is written");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it has a mode");
    path
}

fn token(home: &Home, flags: &[&str]) -> String {
    let mut args = vec!["token", "--user", "alice", "--key", "app.secret"];
    args.extend(flags);
    let made = home.run(&args);
    assert!(made.status.success(), "{made:?}");
    let text = String::from_utf8(made.stdout).expect("it prints text");
    text.trim_end().to_owned()
}

fn asked(server: &Server, target: &str, lines: &str) -> Answer {
    let mut conn = server.connect();
    conn.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{lines}\r\n").as_bytes());
    conn.answer()
}

#[test]
fn users_prove_who_they_are_and_no_secret_is_told() {
    let home = Home::new();
    secret(&home, 0o640);
    let server = home.serve(&[
        "--jwt-keys=app.secret",
        "--jwt-aud=greendot",
        "--auth-cookie=session",
        "--shards=2",
    ]);
    let alice = token(&home, &["--watch", "bob", "--aud", "greendot"]);
    let other = token(&home, &["--watch", "*"]);
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    for (target, lines, status) in [
        ("/v1/presence/bob", String::new(), 401),
        ("/v1/presence/bob", bearer(&alice), 200),
        ("/v1/presence/bob", bearer(&other), 401),
        ("/v1/presence/bob", bearer(&format!("{alice}x")), 401),
        ("/v1/presence/bob", bearer(CANARY), 401),
        (
            "/v1/presence/bob",
            format!("Cookie: session={alice}\r\n"),
            200,
        ),
        ("/v1/presence/carol", bearer(&alice), 403),
        ("/v1/stream?user=bob", bearer(&alice), 403),
        ("/readyz", String::new(), 200),
        // For this machine alone, so whoever reaches it may read them.
        ("/metrics", String::new(), 200),
    ] {
        let answer = asked(&server, target, &lines);
        assert_eq!(answer.status, status, "{target} {lines}");
        let text = String::from_utf8_lossy(&answer.body);
        assert!(!text.contains(CANARY) && !text.contains(&alice), "{text}");
    }
    server.expect_metric("greendot_tokens_refused_total{reason=\"aud\"}", |count| {
        count > 0.0
    });
    let log = server.log();
    assert!(!log.contains(CANARY) && !log.contains(&alice), "{log}");
    let command = fs::read(format!(
        "/proc/{}/cmdline",
        server.process.pid().as_raw_nonzero()
    ))
    .expect("it runs");
    assert!(!String::from_utf8_lossy(&command).contains(CANARY));
    server.terminate();
}

/// Makes a ticket of a token.
pub(crate) fn ticket(server: &Server, token: &str) -> String {
    let mut conn = server.connect();
    let lines = format!("Host: a\r\nAuthorization: Bearer {token}\r\n");
    conn.send(format!("POST /v1/ticket HTTP/1.1\r\n{lines}\r\n").as_bytes());
    let made = conn.answer().json();
    assert_eq!(made["expires_in"], 30, "{made}");
    made["ticket"].as_str().expect("it is text").to_owned()
}

/// What stands in a URL stands in no log of ours, at whatever level.
#[test]
fn tickets_and_tokens_in_urls_are_told_to_nobody() {
    let home = Home::new();
    secret(&home, 0o600);
    let server = home.serve(&[
        "--jwt-keys=app.secret",
        "--auth-query",
        "--log-level=trace",
        "--shards=2",
    ]);
    server.expect_log("auth-query is set: tokens in URLs");
    let alice = token(&home, &["--watch", "bob"]);
    let ticket = ticket(&server, &alice);
    let mut texts = String::new();
    let by_ticket = format!("/v1/stream?user=me&watch=bob&ticket={ticket}");
    let mut stream = server.stream(&format!("user=me&watch=bob&ticket={ticket}"));
    texts += &stream.begin().0.to_string();
    let mut by_token = server.stream(&format!("watch=bob&token={alice}"));
    texts += &by_token.begin().0.to_string();
    let mut forged = ticket.clone();
    forged.truncate(40);
    for (target, status) in [
        (by_ticket, 204),
        (format!("/v1/stream?ticket={forged}"), 401),
        (format!("/v1/stream?token={alice}x"), 401),
        (format!("/v1/presence?user=bob&ticket={ticket}"), 401),
        (format!("/{ticket}?token={alice}"), 404),
    ] {
        let answer = asked(&server, &target, "");
        assert_eq!(answer.status, status, "{target}");
        texts += &answer.text();
    }
    texts += &server.get("/metrics").text();
    texts += &server.log();
    for secret in [&*forged, &*alice, CANARY] {
        assert!(!texts.contains(secret), "{texts}");
    }
    server.terminate();
}

#[test]
pub(crate) fn used_tickets_are_kept_in_so_many_bytes() {
    let home = Home::new();
    secret(&home, 0o600);
    let flags = [
        "--jwt-keys=app.secret",
        "--tickets-bytes-max=4K",
        "--tickets-per-user-second-max=0",
        "--streams-per-user-second-max=0",
    ];
    let server = home.serve(&flags);
    let alice = token(&home, &["--watch", "bob"]);
    let used_max = 4_096 / 80;
    let open = |_| {
        let ticket = ticket(&server, &alice);
        server.stream(&format!("watch=bob&ticket={ticket}"))
    };
    let mut streams: Vec<_> = (0..used_max).map(open).collect();
    streams.iter_mut().for_each(|stream| drop(stream.begin()));
    let refusal = open(0).expect("overloaded");
    assert_eq!(refusal.data["reason"], "tickets");
    assert!(refusal.retry_ms.is_some());
    server.expect_limit_hits("tickets-bytes-max", |hits| hits == 1.0);
}

/// With keys a node may be reached from everywhere, and operators need a listener of their own.
#[test]
fn with_keys_an_address_of_all_needs_one_for_operators() {
    let home = Home::new();
    secret(&home, 0o600);
    let refused = home.run(&["serve", "--http=0.0.0.0:0", "--udp=127.0.0.1:0"]);
    assert_eq!(refused.status.code(), Some(2));
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(
        why.contains("--jwt-keys") && why.contains("--insecure"),
        "{why}"
    );

    let data_dir = format!("--data-dir={}", home.data_dir().display());
    let [_, udp] = home.addresses();
    let flags = [
        "serve",
        "--http=0.0.0.0:0",
        &udp,
        &data_dir,
        "--jwt-keys=app.secret",
    ];
    let refused = home.run(&flags);
    assert_eq!(refused.status.code(), Some(2));
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(
        why.contains("--admin 127.0.0.1:9090") && why.contains("--insecure"),
        "{why}"
    );
    let admin = format!("--admin={}:0", home.ip());
    let flags = [&flags[..], &[&admin]].concat();
    let server = home.launch(&mut home.command(&flags));
    assert_eq!(asked(&server, "/v1/presence/bob", "").status, 401);
    let node = server.key().service_token();
    let lines = format!("Authorization: Bearer {node}\r\n");
    assert_eq!(asked(&server, "/metrics", &lines).status, 404);
    // It is for this machine alone.
    assert!(server.metrics().sum("greendot_requests_total") > 0.0);
    server.terminate();
}

/// What a service does to users stands in the log with its name, and its key nowhere.
#[test]
fn services_are_held_to_their_scopes_and_leave_a_line() {
    let home = Home::new();
    let made = |name: &str, scopes: &str| {
        let args = ["key", "new", "--service", name, "--scopes", scopes];
        let printed = String::from_utf8(home.run(&args).stdout).expect("it prints text");
        let (key, line) = printed.split_once('\n').expect("two lines");
        (key.to_owned(), line.to_owned())
    };
    let ((app, app_line), (eraser, eraser_line)) = (made("app", "beat"), made("eraser", "admin"));
    let file = home.path().join("services");
    fs::write(&file, format!("# ours\n{app_line}{eraser_line}")).expect("it is written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("it has a mode");
    let server = home.serve(&["--service-keys=services"]);
    let did = |method: &str, target: &str, key: &str, body: &str| {
        let mut conn = server.connect();
        let length = body.len();
        let lines = format!(
            "Authorization: Bearer {key}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n"
        );
        conn.send(format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{lines}\r\n{body}").as_bytes());
        conn.answer().status
    };
    let users = r#"{"users":["zadie","zoltan"]}"#;
    let everywhere = r#"{"users":["zadie","zoltan"],"everywhere":true}"#;
    let node = server.key().service_token();
    for (method, target, key, body, status) in [
        ("POST", "/v1/beat", &app, users, 204),
        ("POST", "/v1/beat", &eraser, users, 403),
        ("POST", "/v1/leave", &app, everywhere, 204),
        ("DELETE", "/v1/presence/zadie", &app, "", 403),
        ("DELETE", "/v1/presence/zadie", &node, "", 403),
        ("DELETE", "/v1/presence/zadie", &eraser, "", 204),
        (
            "DELETE",
            "/v1/presence/zadie",
            &format!("{eraser}x"),
            "",
            401,
        ),
    ] {
        assert_eq!(
            did(method, target, key, body),
            status,
            "{method} {target} {key}"
        );
    }
    server.expect_log("audit: erased");
    let log = server.log();
    let audits: Vec<&str> = log.lines().filter(|line| line.contains("audit:")).collect();
    let [ended, erased] = audits[..] else {
        panic!("{log}")
    };
    assert!(
        ended.contains(r#"ended the streams of users service="app" users=2"#),
        "{ended}"
    );
    assert!(
        erased.contains(r#"erased users service="eraser" users=1"#),
        "{erased}"
    );
    assert!(
        log.contains("everybody on this machine may read which services there are"),
        "{log}"
    );
    for secret in [&*app, &*eraser, &*node, "zadie", "zoltan"] {
        assert!(!log.contains(secret), "{log}");
    }
    server.terminate();
}

#[test]
fn a_key_file_that_can_not_be_meant_refuses_the_start() {
    let home = Home::new();
    secret(&home, 0o644);
    let refused = |flags: &[&str]| {
        let mut args = vec!["serve", "--http=127.0.0.1:0", "--udp=127.0.0.1:0"];
        args.extend(flags);
        let refused = home.run(&args);
        assert!(!refused.status.success());
        let why = String::from_utf8(refused.stderr).expect("it prints text");
        assert!(!why.contains(CANARY), "{why}");
        why
    };
    let why = refused(&["--jwt-keys=app.secret"]);
    assert!(
        why.contains("everybody on this machine may use this secret"),
        "{why}"
    );
    let why = refused(&["--jwt-keys=missing.secret"]);
    assert!(
        why.contains("missing.secret: the key file can not be read"),
        "{why}"
    );
    let why = refused(&["--jwt-aud=greendot"]);
    assert!(why.contains("name their keys with --jwt-keys"), "{why}");
    assert!(
        !home.data_dir().join("fleet.key").exists(),
        "nothing was made"
    );
}
