//! Webhooks on the real binary: what a receiver is told, whatever it does and whatever becomes of
//! the server.

use std::fs;

use greendot::store::{POSITIONS_FILE, PositionFile};
use rustix::process::Signal;
use serde_json::json;

use crate::forget::erase;
use crate::harness::{Home, Server, pause, until};
use crate::receiver::{Manner, Receiver, SECRETS};
use crate::tls_client::issue;

const FAILURES: &str = "greendot_webhook_failures_total";

/// A server that tells a receiver, and whose users stay online until they say goodbye.
fn serve(home: &Home, receiver: &Receiver, more: &[&str]) -> Server {
    let own = receiver.flags(home);
    let own = own.iter().map(String::as_str);
    let flags: Vec<&str> = own.chain(["--offline-after-ms=60s"]).collect();
    home.serve(&[&flags, more].concat())
}

fn beat(server: &Server, user: &str) {
    let answer = server.post("/v1/beat", &json!({ "users": [user] }));
    assert_eq!(answer.status, 204, "{}", answer.text());
}

fn leave(server: &Server, user: &str) {
    let answer = server.post("/v1/leave", &json!({ "users": [user] }));
    assert_eq!(answer.status, 204, "{}", answer.text());
}

fn says(server: &Server, body: &serde_json::Value) {
    let answer = server.post("/v1/status", body);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn failures(server: &Server, reason: &str) -> f64 {
    let series = format!("{FAILURES}{{reason=\"{reason}\"}}");
    server.metrics().sum(&series)
}

/// Waits until it is on disk that everything of then has been told.
fn expect_kept(home: &Home, since: u64) {
    until("it is on disk that it was told", || {
        let (_, kept) = PositionFile::open(&home.data_dir()).expect("the file is whole");
        let is_kept = |ms: u64| ms >= since;
        kept.first()
            .is_some_and(|kept| is_kept(kept.told_up_to.ms()))
            .then_some(())
    });
}

#[test]
fn a_receiver_is_told_each_transition_as_everybody_sees_it() {
    let home = Home::new();
    let receiver = Receiver::new(&home);
    let server = serve(&home, &receiver, &["--shards=2"]);
    let mut watcher = server.stream("watch=bob");
    watcher.begin();
    beat(&server, "bob");
    receiver.expect("bob", "online");
    says(&server, &json!({"user": "bob", "status": "away"}));
    receiver.expect("bob", "away");
    says(&server, &json!({"user": "bob", "invisible": true}));
    receiver.expect("bob", "offline");
    says(
        &server,
        &json!({"user": "bob", "invisible": false, "status": "busy"}),
    );
    receiver.expect("bob", "busy");
    leave(&server, "bob");
    let since = receiver.expect("bob", "offline");
    let mut told = receiver.told("bob");
    // At least once: one that was not answered in time comes again.
    told.dedup();
    let statuses: Vec<&str> = told.iter().map(|(status, _)| status.as_str()).collect();
    assert_eq!(statuses, ["online", "away", "offline", "busy", "offline"]);
    // As those who watch: the same states, since when, under the same ids.
    let mut seen = Vec::new();
    while seen.last().is_none_or(|(_, at)| *at != since) {
        let record = watcher.expect("presence").data;
        let status = record["status"].as_str().expect("a status").to_owned();
        seen.push((status, record["since"].as_u64().expect("a time")));
    }
    assert!(
        seen.iter().all(|state| told.contains(state)),
        "{seen:?} of {told:?}"
    );
    for delivery in receiver.deliveries() {
        assert_eq!((&*delivery.target, delivery.signatures), ("/hook", 1));
    }
    let all = receiver
        .deliveries()
        .into_iter()
        .map(|it| it.presence.len());
    let all = all.sum::<usize>() as f64;
    server.expect_metric("greendot_webhook_states_total", |told| told == all);
    server.expect_metric("greendot_webhook_queue", |queue| queue == 0.0);
    server.expect_metric("greendot_webhook_behind_seconds", |behind| behind == 0.0);
    assert!(
        !server.log().contains("/hook"),
        "a path may be a secret: {}",
        server.log()
    );
    assert!(server.terminate().success());
}

#[test]
fn each_webhook_has_its_users_and_its_secret() {
    let home = Home::new();
    let (all, team) = (Receiver::new(&home), Receiver::new(&home));
    home.keep("all.secret", SECRETS[0]);
    home.keep("team.secret", SECRETS[1]);
    team.trust(SECRETS[1]);
    let server = home.serve(&[
        &format!("--webhook={}", all.url("/")),
        &format!("--webhook={}", team.url("/x?key=1&prefix=team-&b")),
        "--webhook-secret-file=all.secret",
        "--webhook-secret-file=team.secret",
        "--webhook-private",
        "--offline-after-ms=60s",
    ]);
    for user in ["bob", "team-a", "team"] {
        beat(&server, user);
    }
    for user in ["bob", "team-a", "team"] {
        all.expect(user, "online");
    }
    team.expect("team-a", "online");
    beat(&server, "team-z");
    team.expect("team-z", "online");
    let deliveries = team.deliveries();
    let records = team.records();
    let users: Vec<&str> = records
        .iter()
        .map(|record| record["user"].as_str().expect("a user"))
        .collect();
    assert_eq!(users, ["team-a", "team-z"]);
    assert!(
        deliveries
            .iter()
            .all(|delivery| delivery.target == "/x?key=1&b")
    );
}

/// Whatever the receiver does, streams are served meanwhile, and in the end it knows what is true.
#[test]
fn a_receiver_that_is_slow_or_dead_or_lies_is_told_in_the_end() {
    let home = Home::new();
    let receiver = Receiver::new(&home);
    // Longer than a machine that is busy takes to answer.
    let server = serve(&home, &receiver, &["--webhook-timeout-ms=2s"]);
    let mut watcher = server.stream("watch=bob");
    watcher.begin();
    let says = |words: &str| Manner::Says(words.into());
    for (manner, reason) in [
        (Manner::Hangs, "timeout"),
        (Manner::Trickles, "timeout"),
        (Manner::HangsUp, "connection"),
        (Manner::Babbles, "protocol"),
        (says("500 Oh no"), "5xx"),
        (says("410 Gone"), "4xx"),
        (says("429 Later\r\nRetry-After: 86400"), "4xx"),
    ] {
        receiver.set(manner.clone());
        let before = failures(&server, reason);
        beat(&server, "bob");
        watcher.expect_presence("bob", true);
        until(&format!("{manner:?} is counted as {reason}"), || {
            (failures(&server, reason) > before).then_some(())
        });
        leave(&server, "bob");
        watcher.expect_presence("bob", false);
        server.expect_metric("greendot_webhooks_failing", |failing| failing == 1.0);
        receiver.set(Manner::Takes);
        let since = server.record("bob").since();
        assert_eq!(receiver.expect("bob", "offline"), since, "{manner:?}");
        server.expect_metric("greendot_webhooks_failing", |failing| failing == 0.0);
    }
    // One that has said 200 has taken it, whatever becomes of its body.
    for manner in [Manner::BreaksOff, Manner::NeverEnds] {
        receiver.set(manner.clone());
        let before = receiver.deliveries().len();
        let failed = server.metrics().sum(FAILURES);
        beat(&server, "bob");
        receiver.expect_answered(&manner);
        receiver.set(Manner::Takes);
        server.expect_metric("greendot_webhook_queue", |queue| queue == 0.0);
        assert_eq!(receiver.deliveries().len(), before + 1, "{manner:?}");
        assert_eq!(server.metrics().sum(FAILURES), failed, "{manner:?}");
        leave(&server, "bob");
        receiver.expect("bob", "offline");
    }
    server.expect_log("the webhook's receiver does not take what it is told");
    server.expect_log("the webhook's receiver takes what it is told");
    assert!(server.terminate().success());
}

#[test]
fn what_was_not_told_before_a_kill_is_told_after_it_and_the_rest_is_not() {
    let home = Home::new();
    let receiver = Receiver::new(&home);
    let server = serve(&home, &receiver, &[]);
    beat(&server, "old");
    let since = receiver.expect("old", "online");
    // What is as new as the position may be told twice.
    pause(1_500);
    beat(&server, "kept");
    receiver.expect("kept", "online");
    expect_kept(&home, since + 1_001);
    receiver.set(Manner::Hangs);
    for user in ["a", "b", "c"] {
        beat(&server, user);
        leave(&server, user);
    }
    beat(&server, "c");
    server.expect_online("c");
    receiver.expect_answered(&Manner::Hangs);
    server.kill();
    receiver.set(Manner::Takes);
    let before = receiver.deliveries().len();
    let server = serve(&home, &receiver, &[]);
    for (user, status) in [("a", "offline"), ("b", "offline"), ("c", "online")] {
        let since = server.record(user).since();
        assert_eq!(receiver.expect(user, status), since);
    }
    server.expect_metric("greendot_webhook_queue", |queue| queue == 0.0);
    let after = &receiver.deliveries()[before..];
    let mut records = after.iter().flat_map(|delivery| &delivery.presence);
    assert!(records.all(|record| record["user"] != "old"), "{after:?}");
    // Nor are ids of messages used twice.
    let mut ids: Vec<String> = receiver.deliveries().into_iter().map(|it| it.id).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count);
}

#[test]
fn a_server_stops_in_time_whatever_its_receiver_does() {
    let home = Home::new();
    let receiver = Receiver::new(&home);
    let server = serve(&home, &receiver, &["--webhook-timeout-ms=300s"]);
    receiver.set(Manner::Hangs);
    beat(&server, "bob");
    receiver.expect_answered(&Manner::Hangs);
    // The harness waits for less than that.
    assert!(server.terminate().success());
    receiver.set(Manner::Takes);
    let before = receiver.times_told("bob");
    let _server = serve(&home, &receiver, &[]);
    until("bob is told of again", || {
        (receiver.times_told("bob") > before).then_some(())
    });
}

#[test]
fn a_receiver_that_is_new_or_whose_position_is_lost_is_told_of_everybody() {
    let home = Home::new();
    let server = home.serve(&["--offline-after-ms=60s"]);
    for user in ["a", "b"] {
        beat(&server, user);
    }
    leave(&server, "b");
    assert!(server.terminate().success());
    let receiver = Receiver::new(&home);
    let server = serve(&home, &receiver, &[]);
    receiver.expect("a", "online");
    let since = receiver.expect("b", "offline");
    expect_kept(&home, since);
    assert!(server.terminate().success());
    fs::write(home.data_dir().join(POSITIONS_FILE), "greendot webhook").expect("our folder");
    let flags = receiver.flags(&home);
    let data_dir = format!("--data-dir={}", home.data_dir().display());
    let refused =
        home.run(&[&["serve", &data_dir], &flags.each_ref().map(|it| &**it)[..]].concat());
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(words.contains("webhooks.pos: at offset 16"), "{words}");
    assert!(words.contains("remove the file"), "{words}");
    fs::remove_file(home.data_dir().join(POSITIONS_FILE)).expect("it is there");
    let before = receiver.times_told("a");
    let server = serve(&home, &receiver, &[]);
    until("all are told of again", || {
        (receiver.times_told("a") > before).then_some(())
    });
    server.expect_log("nobody knows what the webhook's receiver has been told");
}

#[test]
pub(crate) fn a_full_queue_costs_nobody_their_last_state() {
    let home = Home::new();
    let receiver = Receiver::new(&home);
    let server = serve(
        &home,
        &receiver,
        &["--webhook-queue-max=2", "--webhook-timeout-ms=1s"],
    );
    receiver.set(Manner::Hangs);
    beat(&server, "first");
    receiver.expect_answered(&Manner::Hangs);
    let users: Vec<String> = (0..50).map(|n| format!("user {n}")).collect();
    for user in &users {
        beat(&server, user);
    }
    leave(&server, &users[7]);
    receiver.set(Manner::Takes);
    for (n, user) in users.iter().enumerate() {
        let status = if n == 7 { "offline" } else { "online" };
        receiver.expect(user, status);
    }
    for series in ["queue_overflows", "skipped"] {
        let series = format!("greendot_webhook_{series}_total");
        server.expect_metric(&series, |count| count >= 1.0);
    }
}

#[test]
fn addresses_out_of_reach_are_not_dialled_and_redirects_not_followed() {
    let home = Home::new();
    issue(&home);
    home.keep("hook.secret", SECRETS[0]);
    let receiver = Receiver::new(&home);
    let port = receiver.address.port();
    let refused = |url: &str, more: &[&str]| {
        let data_dir = format!("--data-dir={}", home.data_dir().display());
        let hook = format!("--webhook={url}");
        let secret = "--webhook-secret-file=hook.secret";
        let output = home.run(&[&["serve", &data_dir, &hook, secret], more].concat());
        assert!(!output.status.success(), "{url}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let words = refused(&receiver.url("/"), &[]);
    assert!(words.contains("--webhook-private"), "{words}");
    let words = refused(
        "https://169.254.169.254/",
        &["--webhook-private", "--tls-ca=tls.crt"],
    );
    assert!(words.contains("no server can be"), "{words}");
    let words = refused("https://127.0.0.1/", &["--tls-ca=tls.crt"]);
    assert!(words.contains("network of your own"), "{words}");
    // A name is found out when it is dialled.
    let server = home.serve(&[
        &format!("--webhook=https://localhost:{port}/"),
        "--webhook-secret-file=hook.secret",
        "--tls-ca=tls.crt",
    ]);
    beat(&server, "bob");
    until("it is refused", || {
        (failures(&server, "reach") >= 2.0).then_some(())
    });
    server.expect_log("its addresses are in a network of one's own");
    assert_eq!(receiver.conns(), 0);
    assert!(server.terminate().success());

    let elsewhere = Receiver::new(&home);
    let server = serve(&home, &receiver, &[]);
    let location = elsewhere.url("/");
    receiver.set(Manner::Says(format!(
        "307 Elsewhere\r\nLocation: {location}"
    )));
    beat(&server, "carol");
    until("it is counted", || {
        (failures(&server, "3xx") >= 2.0).then_some(())
    });
    assert_eq!(elsewhere.conns(), 0);
    receiver.set(Manner::Takes);
    receiver.expect("carol", "online");
}

#[test]
fn secrets_change_while_the_server_runs() {
    let home = Home::new();
    let receiver = Receiver::new(&home);
    let server = serve(&home, &receiver, &[]);
    beat(&server, "a");
    receiver.expect("a", "online");
    let both = SECRETS.join("\n");
    receiver.trust(&both);
    home.keep("hook.secret", &both);
    let series = "greendot_key_reloads_total{outcome=\"done\"}";
    server.process.signal(Signal::HUP);
    server.expect_metric(series, |count| count == 1.0);
    beat(&server, "b");
    receiver.expect("b", "online");
    home.keep("hook.secret", SECRETS[1]);
    receiver.trust(SECRETS[1]);
    server.process.signal(Signal::HUP);
    server.expect_metric(series, |count| count == 2.0);
    beat(&server, "c");
    receiver.expect("c", "online");
    // One that is none changes nothing.
    home.keep("hook.secret", "whsec_short");
    server.process.signal(Signal::HUP);
    server.expect_metric("greendot_key_reloads_total{outcome=\"failed\"}", |count| {
        count == 1.0
    });
    beat(&server, "d");
    receiver.expect("d", "online");
    let signatures = ["a", "b", "c", "d"].map(|user| receiver.signatures(user));
    assert_eq!(signatures, [Some(1), Some(2), Some(1), Some(1)]);
}

#[test]
fn who_is_erased_is_told_as_gone() {
    let home = Home::new();
    let receiver = Receiver::new(&home);
    let server = serve(&home, &receiver, &["--shards=2"]);
    beat(&server, "bob");
    receiver.expect("bob", "online");
    assert_eq!(erase(&server, "bob").status, 204);
    receiver.expect("bob", "offline");
    let last = receiver.deliveries().pop().expect("there are some");
    assert!(last.presence[0]["last_active"].is_null(), "{last:?}");
    beat(&server, "bob");
    receiver.expect("bob", "online");
}

#[test]
fn a_presence_node_tells_and_a_real_time_node_refuses_to() {
    let home = Home::new();
    let receiver = Receiver::new(&home);
    home.keep("fleet.key", &"11".repeat(32));
    let flags = receiver.flags(&home);
    let flags = flags.each_ref().map(|flag| flag.as_str());
    let [http, udp] = home.addresses();
    let data_dir = format!("--data-dir={}", home.data_dir().display());
    let own = [
        "--key-file=fleet.key",
        "--realtime=http://127.0.0.1:1",
        &http,
        &udp,
        &data_dir,
    ];
    let args = [
        &["presence"],
        &own[..],
        &flags[..],
        &["--offline-after-ms=60s"],
    ]
    .concat();
    let server = home.launch(&mut home.command(&args));
    beat_of_node(&server, &home, "bob");
    receiver.expect("bob", "online");
    assert!(server.terminate().success());

    let own = [
        "--key-file=fleet.key",
        "--presence=udp://127.0.0.1:1,http://127.0.0.1:1",
        &http,
    ];
    let refused = home.run(&[&["realtime"], &own[..], &flags[..]].concat());
    assert!(!refused.status.success());
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(
        words.contains("a real-time node decides nothing"),
        "{words}"
    );
}

/// A beat of a node's, by datagram.
fn beat_of_node(server: &Server, home: &Home, user: &str) {
    let text = fs::read_to_string(home.path().join("fleet.key")).expect("it was written");
    let keys = greendot::wire::beat::Keys::parse(&text).expect("it is a key");
    let sender = crate::harness::Sender::new(server.udp(), keys.signing().clone());
    sender.beat(&[user]);
}
