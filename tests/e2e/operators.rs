//! The operators' listener of the real binary: what is found where, signing in, and what the tools
//! say to whoever asks at the wrong one.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;

use crate::harness::{Home, Server, until};
use crate::http::{Answer, Conn};

/// A service's key and its line.
pub(crate) fn made(home: &Home, name: &str, scopes: &str) -> (String, String) {
    let args = ["key", "new", "--service", name, "--scopes", scopes];
    let printed = String::from_utf8(home.run(&args).stdout).expect("it prints text");
    let (key, line) = printed.split_once('\n').expect("two lines");
    (key.to_owned(), line.to_owned())
}

pub(crate) fn write(home: &Home, name: &str, text: &str) {
    let path = home.path().join(name);
    fs::write(&path, text).expect("it is written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it has a mode");
}

/// Where this machine reaches the operators' listener, which is there for others too.
fn admin(server: &Server) -> SocketAddr {
    let port = server.admin.expect("it has one").port();
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn asked(to: SocketAddr, line: &str, lines: &str, body: &str) -> Answer {
    let mut conn = Conn::to(to);
    let length = body.len();
    conn.send(
        format!(
            "{line} HTTP/1.1\r\nHost: a\r\n{lines}Content-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .as_bytes(),
    );
    match line.starts_with("HEAD") {
        true => conn.head(),
        false => conn.answer(),
    }
}

fn serve(home: &Home) -> Server {
    let flags = ["--service-keys=services", "--admin=0.0.0.0:0", "--shards=2"];
    home.serve(&flags)
}

#[test]
fn operators_have_a_listener_of_their_own() {
    let home = Home::new();
    let (key, line) = made(&home, "ops", "metrics,admin");
    let (_, other_line) = made(&home, "else", "metrics");
    write(&home, "services", &format!("{line}{other_line}"));
    let server = serve(&home);
    let (http, udp) = (server.http, server.udp());
    let at = server.admin.expect("it has one");
    let expected = format!("listening http={http} udp={udp} admin={at} shards=2");
    assert_eq!(server.line, expected);
    server.expect_log(&format!("dashboard: http://{}/", admin(&server)));

    let said = |line: &str| {
        let answer = asked(http, line, "", "");
        let fields = answer.fields.iter().filter(|(name, _)| name != "date");
        let fields: Vec<_> = fields.cloned().collect();
        (answer.status, fields, answer.body)
    };
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let nonsense = said(&format!("{method} /nonsense"));
        assert_eq!(nonsense.0, 404);
        for path in ["/metrics", "/", "/v1/revoke", "/v1/session"] {
            assert_eq!(
                said(&format!("{method} {path}")),
                nonsense,
                "{method} {path}"
            );
        }
    }
    // Every shard has both.
    for _ in 0..20 {
        assert_eq!(asked(admin(&server), "GET /readyz", "", "").status, 200);
        asked(admin(&server), "GET /metrics", "", "").expect_problem(401, "unauthorized");
    }

    let body = format!("{{\"key\":\"{key}\"}}");
    let signed_in = asked(admin(&server), "POST /v1/session", "", &body);
    assert_eq!(signed_in.json()["service"], "ops");
    let cookie = signed_in.field("set-cookie").expect("a cookie");
    let (cookie, _) = cookie.split_once(';').expect("with attributes");
    let cookie = format!("Cookie: {cookie}\r\n");
    let by_cookie = |line: &str| asked(admin(&server), line, &cookie, "");
    let metrics = by_cookie("GET /metrics").text();
    assert!(metrics.contains("greendot_requests_total"), "{metrics}");
    assert_eq!(by_cookie("DELETE /v1/presence/zadie").status, 204);
    by_cookie("POST /v1/revoke").expect_problem(403, "not-permitted");
    server.expect_log("erased users service=\"ops\" users=1");
    server.expect_log("signed in service=\"ops\"");

    // Its key is listed no more.
    write(&home, "services", &other_line);
    server.process.signal(Signal::HUP);
    until("the session ends", || {
        (by_cookie("GET /metrics").status == 401).then_some(())
    });
    let log = server.log();
    assert!(!log.contains(&key) && !log.contains(cookie.trim()), "{log}");
    server.terminate();
}

#[test]
fn tools_say_where_the_metrics_are() {
    let home = Home::new();
    let ((key, line), (weak, weak_line)) = (
        made(&home, "scraper", "metrics"),
        made(&home, "weak", "query"),
    );
    write(&home, "services", &format!("{line}{weak_line}"));
    write(&home, "key", &format!("{key}\n"));
    write(&home, "weak", &weak);
    let server = serve(&home);
    let (http, admin) = (server.http.to_string(), admin(&server).to_string());
    let top = |more: &[&str]| {
        let output = home.run(&[&["top", "--count", "1", "--http"], more].concat());
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8(text).expect("text"),
        )
    };
    for (args, why) in [
        (
            &[&*http][..],
            "name the address behind admin= in the line that it prints",
        ),
        (&[&*admin], "name the file of one with --service-key"),
        (&[&*admin, "--service-key=weak"], "lacks the scope metrics"),
        (&[&*admin, "--service-key=none"], "none: "),
    ] {
        let (done, text) = top(args);
        assert!(!done && text.contains(why), "{args:?} {text}");
        assert!(!text.contains(&weak), "{text}");
    }
    let (done, text) = top(&[&admin, "--service-key=key"]);
    assert!(done && text.lines().count() >= 3, "{text}");
    server.terminate();
}
