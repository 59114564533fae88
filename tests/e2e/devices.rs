//! Devices with keys of their own against the real server, by the command-line tool.

use std::fs;

use crate::harness::{Home, Server};
use crate::http::Answer;

fn asked(server: &Server, token: &str, body: &str) -> Answer {
    let mut conn = server.connect();
    let lines = format!(
        "Host: a\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n",
        body.len()
    );
    conn.send(format!("POST /v1/device-key HTTP/1.1\r\n{lines}\r\n{body}").as_bytes());
    conn.answer()
}

#[test]
fn a_device_beats_with_its_own_key_until_that_lapses() {
    let home = Home::with_secret();
    let server = home.serve(&[
        "--jwt-keys=app.secret",
        "--device-key-epoch-ms=2s",
        "--log-level=trace",
    ]);
    let token = home.token("alice", &[]);
    let answer = asked(&server, &token, r#"{"device":"phone"}"#);
    assert_eq!(answer.status, 200);
    let said = answer.json();
    assert_eq!(
        (&said["user"], &said["device"]),
        (&"alice".into(), &"phone".into())
    );
    fs::write(home.path().join("phone.json"), answer.text()).expect("it is written");
    let udp = format!("--udp={}", server.udp());
    let beat = |more: &[&str]| {
        let mut args = vec!["beat", "--device-key-file", "phone.json", &udp];
        args.extend(more);
        home.run(&args)
    };
    let sent = beat(&[]);
    assert!(sent.status.success(), "{sent:?}");
    assert!(String::from_utf8_lossy(&sent.stdout).starts_with("beat alice sent_at="));
    server.expect_metric("greendot_datagrams_of_devices_total", |count| count == 1.0);
    server.expect_metric("greendot_users_online", |count| count == 1.0);
    let refused = beat(&["bob"]);
    assert!(!refused.status.success());
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(
        why.contains("the device's key beats for \"alice\" alone"),
        "{why}"
    );

    // Two epochs later it is nobody's.
    server.expect_metric(
        "greendot_datagrams_refused_total{reason=\"key\"}",
        |count| {
            assert!(beat(&[]).status.success());
            count > 0.0
        },
    );
    let log = server.log();
    let key = said["key"].as_str().expect("it is text");
    assert!(
        !log.contains(key) && !log.contains("fleet key of id"),
        "{log}"
    );
    fs::write(home.path().join("phone.json"), "{}").expect("it is written");
    let why = String::from_utf8(beat(&[]).stderr).expect("it prints text");
    assert!(
        why.contains("phone.json: no device's key; write there what POST"),
        "{why}"
    );
}
