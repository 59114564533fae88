//! A server that is killed or stopped and started again on its folder.

use crate::harness::{BEAT_INTERVAL_MS, FAST, Home, OFFLINE_AFTER_MS, Record, unix_ms};

#[test]
fn who_returns_after_a_crash_was_never_gone() {
    let home = Home::new();
    let server = home.serve(FAST);
    let sender = server.sender();
    let mut alice = server.stream("watch=bob");
    alice.begin();
    sender.beat(&["bob"]);
    let before = alice.expect_presence("bob", true);
    let id = unix_ms();
    server.kill();

    let server = home.serve(FAST);
    server.expect_log(
        "1 users known, 1 held online until they have had time to return; it was not closed last \
         time",
    );
    let read = server.record("bob");
    assert_eq!((read.online, read.since), (true, before.since));
    assert!(read.last_active() >= before.last_active());
    let mut alice = server.stream(&format!("watch=bob&last_event_id={id}"));
    assert!(
        alice
            .begin()
            .1
            .iter()
            .all(|record| record.online && record.since == before.since)
    );
    for _ in 0..2 * OFFLINE_AFTER_MS / BEAT_INTERVAL_MS {
        sender.beat(&["bob"]);
        alice.expect_quiet(BEAT_INTERVAL_MS);
    }
    let read = server.record("bob");
    assert_eq!((read.online, read.since), (true, before.since));
}

#[test]
fn who_does_not_return_goes_with_his_true_last_beat() {
    let home = Home::new();
    let server = home.serve(FAST);
    let bob = server.stream("user=bob");
    server.expect_metric("greendot_users_online", |online| online == 1.0);
    let before = server.record("bob");
    server.kill();
    drop(bob);

    let restarted_at = unix_ms();
    let server = home.serve(FAST);
    let mut alice = server.stream("watch=bob");
    let (_, snapshot) = alice.begin();
    assert_eq!(
        (snapshot[0].online, snapshot[0].since),
        (true, before.since)
    );
    let gone = alice.expect_presence("bob", false);
    // He beat once more at most between the reading and the kill.
    assert!(
        (before.last_active()..=restarted_at).contains(&gone.last_active()),
        "{gone:?}"
    );
    assert!(
        gone.since() >= restarted_at + OFFLINE_AFTER_MS,
        "he had time to return: {gone:?}"
    );
}

#[test]
fn published_states_survive_a_stop() {
    let home = Home::new();
    // Nobody turns offline by silence while the two are compared.
    let flags = [
        "--beat-interval-ms=30s",
        "--offline-after-ms=60s",
        "--drain-ms=0",
    ];
    let server = home.serve(&flags);
    let sender = server.sender();
    sender.beat(&["bob", "carol", "d\u{e9}j\u{e0} vu/%2F"]);
    server.expect_metric("greendot_users_online", |online| online == 3.0);
    sender.leave(&["carol"]);
    server.expect_metric("greendot_users_online", |online| online == 2.0);
    let users = ["bob", "carol", "d%C3%A9j%C3%A0%20vu%2F%252F", "never"];
    let before = users.map(|user| server.record(user));
    assert!(before[0].online && !before[1].online && before[2].online);
    assert_eq!(before[3], Record::never_seen("never"));
    assert_eq!(server.terminate().code(), Some(0));

    let server = home.serve(&flags);
    server.expect_log(
        "3 users known, 2 held online until they have had time to return; it was closed cleanly",
    );
    assert_eq!(users.map(|user| server.record(user)), before);
    // The key is the same, so the same sender is believed.
    sender.beat(&["erin"]);
    server.expect_metric("greendot_users_online", |online| online == 3.0);
}

#[test]
fn many_crashes_lose_nothing() {
    let home = Home::new();
    let flags = ["--beat-interval-ms=30s", "--offline-after-ms=60s"];
    let mut known: Vec<String> = Vec::new();
    for round in 0..5 {
        let server = home.serve(&flags);
        let sender = server.sender();
        assert_eq!(server.metrics().sum("greendot_users"), known.len() as f64);
        let new: Vec<String> = (0..200).map(|n| format!("user {round}.{n}")).collect();
        let borrowed: Vec<&str> = new.iter().map(String::as_str).collect();
        sender.beat(&borrowed);
        known.extend(new);
        server.expect_metric("greendot_users_online", |online| {
            online == known.len() as f64
        });
        server.kill();
    }
    let server = home.serve(&flags);
    let answer = server
        .post("/v1/presence/query", &serde_json::json!({"users": known}))
        .json();
    let records: Vec<_> = answer["presence"]
        .as_array()
        .expect("a list")
        .iter()
        .map(Record::of)
        .collect();
    assert!(
        records.len() == 1_000
            && records
                .iter()
                .all(|record| record.online && record.last_active.is_some())
    );
}
