//! Starting and being refused to start: what is printed where, what is made, and the exit codes.

use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;

use crate::harness::Home;

#[test]
fn without_a_command_it_serves_from_the_default_folder() {
    let home = Home::new();
    let [http, udp] = home.addresses();
    let mut server = home.launch(&mut home.command(&[&http, &udp, "--shards=2"]));
    let expected = format!(
        "listening http={} udp={} shards=2",
        server.http,
        server.udp()
    );
    assert_eq!(server.line, expected);
    assert!(server.http.port() > 0 && server.udp().port() > 0);

    let data = home.path().join("greendot-data");
    let mut names: Vec<_> = std::fs::read_dir(&data)
        .expect("the folder was made")
        .map(|entry| entry.expect("it can be read").file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "fleet.key",
            "published.map",
            "revocations.log",
            "stamps.map",
            "users.log"
        ]
    );
    for name in names {
        let found = std::fs::metadata(data.join(&name)).expect("it is there");
        // Who was seen when is as private as the key.
        assert_eq!(found.permissions().mode() & 0o7777, 0o600, "{name:?}");
    }

    for said in [
        &format!(
            "greendot {}; dashboard: http://{}/",
            greendot::version::LINE,
            server.http
        ),
        "limits: nofile=",
        " somaxconn=",
        "made a fleet key in ./greendot-data/fleet.key",
        &format!(
            "try: curl -N 'http://{}/v1/stream?user=alice&watch=bob'",
            server.http
        ),
    ] {
        server.expect_log(said);
    }
    assert_eq!(server.get("/readyz").status, 200);

    server.process.signal(Signal::INT);
    assert_eq!(server.process.wait().code(), Some(0));
    assert_eq!(server.stdout.next(), None, "one line and no more");
    server.expect_log("stopped; the store is written back");
}

#[test]
fn a_low_limit_is_warned_of_with_what_to_set() {
    let home = Home::new();
    let server = home.serve_after("ulimit -n 256", &["--shards=1"]);
    // 100,000 connections, 64 beside them; 8 and 64 to refuse on for the shard. No more than half
    // is held back.
    server.expect_log(
        "256 file descriptors are fewer than the 100136 that 100000 connections need, so a shard \
         takes 128 of them",
    );
    let log = server.log();
    let warning = log
        .lines()
        .find(|line| line.contains("nofile: 256"))
        .expect("it was said");
    assert!(
        warning.contains("WARN") && warning.contains("LimitNOFILE=100136"),
        "{warning}"
    );
    assert!(warning.contains("lower --conns-max"), "{warning}");
    drop(server);

    let server = home.serve_after("ulimit -n 256", &["--shards=1", "--conns-max=100"]);
    server.expect_log("and in another terminal");
    assert!(!server.log().contains("nofile: "), "{}", server.log());
}

#[test]
fn a_taken_port_is_told_with_its_flag() {
    let http = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
    let taken = [http.local_addr(), udp.local_addr()]
        .map(|address| address.expect("it is bound").to_string());
    for (flag, address, other) in [
        ("--http", &taken[0], "--udp"),
        ("--udp", &taken[1], "--http"),
    ] {
        let home = Home::new();
        let output = home.run(&["serve", flag, address, other, "127.0.0.1:0"]);
        let error = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(output.stdout.is_empty());
        let expected = format!("greendot: {flag} {address}: Address already in use");
        assert!(
            error.lines().any(|line| line.starts_with(&expected)),
            "{error}"
        );
    }
}

#[test]
fn two_servers_never_share_a_port() {
    let (one, other) = (Home::new(), Home::new());
    let server = one.serve(&["--shards=2"]);
    let http = format!("--http={}", server.http);
    let output = other.run(&["serve", &http, "--udp=127.0.0.1:0", "--shards=2"]);
    assert_eq!(output.status.code(), Some(1));
    for _ in 0..20 {
        assert_eq!(server.get("/livez").status, 200);
    }
}

#[test]
fn an_address_that_others_can_reach_needs_insecure() {
    let home = Home::new();
    let output = home.run(&["serve", "--http=127.0.0.1:0", "--udp=0.0.0.0:0"]);
    let error = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(
        error.starts_with("greendot: udp is 0.0.0.0:0") && error.contains("insecure"),
        "{error}"
    );
    assert!(!home.path().join("greendot-data").exists());
}

#[test]
fn flags_go_before_variables_before_the_file_before_defaults() {
    let home = Home::new();
    let file = home.path().join("g.toml");
    std::fs::write(&file, "retry_ms = 1001\ndrain_ms = 1001\nlinger_ms = 801\n")
        .expect("it can be written");
    let mut command = home.command(&["config", "--config=g.toml", "--retry-ms=1003"]);
    command
        .env("GREENDOT_RETRY_MS", "1002")
        .env("GREENDOT_DRAIN_MS", "1002");
    let output = command.output().expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    for (value, origin) in [
        ("retry_ms = 1003", "--retry-ms"),
        ("drain_ms = 1002", "GREENDOT_DRAIN_MS"),
        ("linger_ms = 801", "g.toml:3"),
        ("keep_alive_ms = 15000", "default"),
    ] {
        let line = text.lines().find(|line| line.starts_with(value));
        assert!(
            line.is_some_and(|line| line.ends_with(&format!("# {origin}"))),
            "{value}: {text}"
        );
    }

    std::fs::write(&file, "beat_intervall_ms = 1\n").expect("it can be written");
    let output = home.run(&["serve", "--config=g.toml"]);
    let error = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        error,
        "greendot: g.toml:1: beat_intervall_ms: no such key; did you mean beat_interval_ms?\n"
    );
}

#[test]
fn logs_can_be_json_and_never_name_a_user() {
    let home = Home::new();
    let server = home.serve(&["--log-format=json"]);
    let mut stream = server.stream("user=nobody-must-read-this&watch=nor-this");
    stream.begin();
    server.sender().beat(&["nor-that"]);
    server.expect_metric("greendot_users", |users| users == 2.0);
    server.expect_log("and in another terminal");
    let log = server.log();
    for line in log.lines() {
        let entry: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        assert!(
            entry["level"].is_string() && entry["timestamp"].is_string(),
            "{line}"
        );
    }
    for user in ["nobody-must-read-this", "nor-this", "nor-that"] {
        assert!(!log.contains(user), "{log}");
    }
    assert!(server.terminate().success());
}
