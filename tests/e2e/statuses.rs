//! What users say of themselves, from one process to another: statuses, devices at which nobody is,
//! and who is invisible.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{FAST, Home, Server, pause, until};
use crate::stream::Stream;

/// What a watcher is told next of bob: his status, whether he is online, and since when.
fn told(stream: &mut Stream) -> (String, bool, u64) {
    state(&stream.expect("presence").data)
}

fn state(record: &Value) -> (String, bool, u64) {
    assert_eq!(record["user"], "bob", "{record}");
    let status = record["status"].as_str().expect("a status");
    let online = record["online"].as_bool().expect("online or not");
    (
        status.to_owned(),
        online,
        record["since"].as_u64().expect("a time"),
    )
}

fn says(server: &Server, body: &Value) -> Value {
    let answer = server.post("/v1/status", body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[test]
fn nobody_at_any_device_is_away_and_the_first_hand_is_back() {
    let home = Home::new();
    let server = home.serve(&[FAST, &["--away-after=2s", "--shards=2"]].concat());
    let mut watcher = server.stream("watch=bob");
    assert_eq!(watcher.expect("hello").data["watching"], 1);
    watcher.expect("snapshot");
    let beats = |idle_ms: u64| {
        let answer = server.post("/v1/beat", &json!({ "users": ["bob"], "idle_ms": idle_ms }));
        assert_eq!(answer.status, 204, "{}", answer.text());
    };
    beats(0);
    let (status, online, came) = told(&mut watcher);
    assert_eq!((status.as_str(), online), ("online", true));

    // Less than --away-after is not idle, for as long as it goes on.
    for _ in 0..10 {
        beats(1_999);
        pause(200);
    }
    watcher.expect_quiet(100);

    // Idle beats alone, for offline_after_ms: he is away, and still here.
    let away = until("bob is away", || {
        beats(2_000);
        let record = server.get("/v1/presence/bob").json();
        (record["status"] == "away").then_some(record)
    });
    let (status, online, since) = told(&mut watcher);
    assert_eq!((status.as_str(), online), ("away", true));
    assert_eq!(state(&away), (status, online, since));
    assert!(since >= came + 1_500, "away {since}, came {came}");

    // One device's word that somebody is there, while another goes on being idle.
    beats(0);
    let (status, online, back) = told(&mut watcher);
    assert_eq!((status.as_str(), online), ("online", true));
    assert!(back > since);

    // Silence says nothing: he was online to his end.
    let (status, online, _) = told(&mut watcher);
    assert_eq!((status.as_str(), online), ("offline", false));
}

#[test]
fn a_status_and_who_is_invisible_outlive_the_process() {
    let home = Home::new();
    let flags = [FAST, &["--restart-grace-ms=60s"]].concat();
    let server = home.serve(&flags);
    let mut watcher = server.stream("watch=bob");
    watcher.begin();
    let mut bob = server.stream("user=bob&status=busy");
    bob.begin();
    let (status, online, busy) = told(&mut watcher);
    assert_eq!((status.as_str(), online), ("busy", true));

    // Over a kill, while his stream comes back.
    server.kill();
    let server = home.serve(&flags);
    let mut watcher = server.stream("watch=bob");
    let snapshot = {
        watcher.expect("hello");
        watcher.expect("snapshot").data["presence"][0].clone()
    };
    assert_eq!(state(&snapshot), ("busy".to_owned(), true, busy));
    let mut bob = server.stream("user=bob");
    bob.begin();

    let own = says(&server, &json!({ "user": "bob", "invisible": true }));
    assert_eq!(
        (&own["status"], &own["online"], &own["invisible"]),
        (&json!("busy"), &json!(true), &json!(true))
    );
    let (status, online, gone) = told(&mut watcher);
    assert_eq!((status.as_str(), online), ("offline", false));
    assert!(gone > busy);
    drop(watcher);

    // His stream stays, and nothing shows, after a kill either.
    let hidden = server.get("/v1/presence/bob").text();
    server.kill();
    let server = home.serve(&flags);
    let mut bob = server.stream("user=bob");
    bob.begin();
    let mut watcher = server.stream("watch=bob");
    watcher.expect("hello");
    let snapshot = watcher.expect("snapshot").data["presence"][0].clone();
    assert_eq!(snapshot.to_string().len(), hidden.len());
    assert_eq!(server.get("/v1/presence/bob").text(), hidden);
    watcher.expect_quiet(2_000);

    says(
        &server,
        &json!({ "user": "bob", "invisible": false, "status": "online" }),
    );
    let (status, online, _) = told(&mut watcher);
    assert_eq!((status.as_str(), online), ("online", true));
    server.process.signal(Signal::TERM);
}
