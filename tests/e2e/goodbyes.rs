//! Goodbyes and beats over real sockets: their order, whose they are, and what is said behind an
//! answer.

use serde_json::json;

use crate::harness::{Home, OFFLINE_AFTER_MS, Server, pause, unix_ms, until};

const SHARDS: [&str; 3] = ["--shards=1", "--shards=2", "--shards=4"];

/// So many of these users are offline.
fn offline(server: &Server, users: &[String]) -> usize {
    let asked = users.chunks(1_000).map(|users| {
        let answer = server.post("/v1/presence/query", &json!({"users": users}));
        let records = answer.json()["presence"]
            .as_array()
            .expect("a list")
            .clone();
        records
            .iter()
            .filter(|record| record["status"] == "offline")
            .count()
    });
    asked.sum()
}

/// Everybody says goodbye and is back so many ms later, by one socket.
#[test]
fn a_beat_right_behind_a_goodbye_undoes_it() {
    for shards in SHARDS {
        let home = Home::new();
        let server = home.serve(&[shards]);
        let sender = server.sender();
        let users: Vec<String> = (0..860).map(|n| format!("u{n}")).collect();
        let by_ref: Vec<&str> = users.iter().map(String::as_str).collect();
        sender.vouch(false, unix_ms(), &by_ref);
        until("everybody is online", || {
            (offline(&server, &users) == 0).then_some(())
        });
        const RECEIVED: &str = "greendot_datagrams_received_total";
        let (first, mut said) = (server.metrics().sum(RECEIVED), 0.0);
        for gap_ms in [0, 1, 5, 10] {
            // A crowd at a time, which no socket's buffer is too small for.
            for crowd in by_ref.chunks(86) {
                let at = unix_ms();
                for user in crowd {
                    sender.vouch(true, at, &[user]);
                    if gap_ms == 0 {
                        sender.vouch(false, at, &[user]);
                    }
                }
                if gap_ms > 0 {
                    pause(gap_ms);
                    let at = unix_ms();
                    crowd
                        .iter()
                        .for_each(|user| sender.vouch(false, at, &[user]));
                }
                said += crowd.len() as f64;
                let received = first + 2.0 * said;
                server.expect_metric(RECEIVED, |n| n == received);
            }
            until("nobody is offline", || {
                (offline(&server, &users) == 0).then_some(())
            });
        }
        // Each goodbye counted, and was undone.
        server.expect_metric("greendot_leaves_total", |left| left == said);
    }
}

/// What was sent 50 ms before an accepted beat of another socket does not undo it, and a fast clock
/// keeps nobody away.
#[test]
fn sending_times_order_what_different_sockets_sent() {
    for shards in SHARDS {
        let home = Home::new();
        let server = home.serve(&[shards]);
        let users: Vec<String> = (0..100).map(|n| format!("u{n}")).collect();
        let by_ref: Vec<&str> = users.iter().map(String::as_str).collect();
        let at = unix_ms();
        server.sender().vouch(false, at, &by_ref);
        until("everybody is online", || {
            (offline(&server, &users) == 0).then_some(())
        });
        for user in &by_ref {
            server.sender().vouch(true, at - 50, &[user]);
        }
        server.expect_metric("greendot_leaves_ignored_total{reason=\"no_news\"}", |n| {
            n == 100.0
        });
        assert_eq!(offline(&server, &users), 0, "{shards}");
        // 20 s ahead, all of them.
        server.sender().vouch(true, unix_ms() + 20_000, &by_ref);
        until("everybody is gone", || {
            (offline(&server, &users) == 100).then_some(())
        });
        pause(20);
        server.sender().vouch(false, unix_ms(), &by_ref);
        until("everybody is back", || {
            (offline(&server, &users) == 0).then_some(())
        });
        // What comes over a connection always counts.
        server.sender().vouch(false, unix_ms() + 20_000, &by_ref);
        server.expect_metric("greendot_beats_total{source=\"udp\"}", |n| n == 300.0);
        let all = json!({"users": users});
        assert_eq!(server.post("/v1/leave", &all).status, 204);
        assert_eq!(offline(&server, &users), 100, "{shards}");
    }
}

#[test]
fn every_query_behind_an_answer_says_so() {
    for shards in SHARDS {
        let home = Home::new();
        let server = home.serve(&[shards]);
        let (mut writer, mut reader) = (server.connect(), server.connect());
        let mut says = |user: &str, status: &str, behind: &str| {
            let record = reader.get(&format!("/v1/presence/{user}")).json();
            assert_eq!(record["status"], status, "{shards}: behind {behind}");
            assert!(!record["since"].is_null(), "{record}");
        };
        for n in 0..100 {
            let user = format!("u{n}");
            let body = json!({"users": [user]});
            assert_eq!(writer.post("/v1/beat", &body).status, 204);
            says(&user, "online", "a beat");
            assert_eq!(writer.post("/v1/leave", &body).status, 204);
            says(&user, "offline", "a goodbye");
        }
        for n in 0..30 {
            let user = format!("s{n}");
            let mut stream = server.stream(&format!("user={user}"));
            stream.begin();
            says(&user, "online", "hello");
        }
    }
}

/// A page says goodbye when it is hidden, and is there again: nobody is told. Then it is closed.
#[test]
fn a_page_that_is_reloaded_tells_nobody() {
    for shards in SHARDS {
        let home = Home::new();
        // A busy machine has three seconds for a page's way back.
        let unhurried = [
            "--beat-interval-ms=500",
            "--offline-after-ms=4000",
            "--sweep-interval-ms=50",
        ];
        let server = home.serve(&[&[shards], &unhurried[..]].concat());
        let mut watcher = server.stream("watch=bob");
        watcher.begin();
        let mut page = server.stream("user=bob");
        let mut id = page.begin().0["stream"].clone();
        let since = watcher.expect_presence("bob", true).since();
        for _ in 0..5 {
            let goodbye = json!({"stream": id, "users": ["bob"], "after_ms": 3_000});
            assert_eq!(server.post("/v1/leave", &goodbye).status, 204);
            let left = page.rest();
            assert_eq!(left.last().expect("a goodbye").kind, "goodbye");
            pause(100);
            page = server.stream("user=bob");
            id = page.begin().0["stream"].clone();
        }
        watcher.expect_quiet(3_500);
        // Another device's goodbye says nothing of this page.
        server.sender().leave(&["bob"]);
        assert_eq!(
            server.post("/v1/leave", &json!({"users": ["bob"]})).status,
            204
        );
        watcher.expect_quiet(300);
        assert_eq!(server.record("bob").since(), since);
        let said_at = unix_ms();
        let goodbye = json!({"stream": id, "after_ms": 1_000});
        assert_eq!(server.post("/v1/leave", &goodbye).status, 204);
        drop(page);
        let gone = watcher.expect_presence("bob", false);
        // Two readings of the clock: the server's may be some ms behind.
        assert!(
            gone.since() >= said_at + 980,
            "put off: {gone:?}, {said_at}"
        );
        // When it was said, which no beat of the stream's was.
        assert!(
            gone.last_active() >= said_at - 20,
            "{gone:?} after {said_at}"
        );
    }
}

#[test]
fn who_is_logged_out_stays_away() {
    for shards in SHARDS {
        let home = Home::new();
        let server = home.serve(&[shards]);
        let mut watcher = server.stream("watch=bob");
        watcher.begin();
        let mut streams: Vec<_> = (0..6).map(|_| server.stream("user=bob")).collect();
        streams.iter_mut().for_each(|stream| drop(stream.begin()));
        watcher.expect_presence("bob", true);
        let logout = json!({"users": ["bob"], "everywhere": true});
        assert_eq!(server.post("/v1/leave", &logout).status, 204);
        assert!(!server.record("bob").online);
        for mut stream in streams {
            let told = stream.rest();
            assert_eq!(told.last().expect("a bye").kind, "bye");
        }
        watcher.expect_presence("bob", false);
        let back = server.get("/v1/stream?user=bob&last_event_id=bye");
        assert_eq!(back.status, 204);
        watcher.expect_quiet(OFFLINE_AFTER_MS);
        server.stream("user=bob").begin();
        watcher.expect_presence("bob", true);
    }
}
