//! What users say of themselves at one node, told at another.

use serde_json::{Value, json};

use crate::harness::Server;

use super::world::{Setup, Split};

const SETUP: Setup = Setup {
    flags: &[
        "--beat-interval-ms=500",
        "--offline-after-ms=3s",
        "--sweep-interval-ms=50",
        "--away-after=2s",
        "--shards=2",
    ],
    presence_flags: &[],
    taps: None,
};

fn says(server: &Server, body: &Value) -> Value {
    let answer = server.post("/v1/status", body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[test]
fn what_is_said_at_one_node_is_told_at_another() {
    Split::run(SETUP, |split| {
        let users = split.users_of(0, 1);
        let bob = &users[0];
        let [here, there] = [0, 1].map(|node| split.realtime[node].server());
        let mut watcher = there.stream(&format!("watch={bob}"));
        watcher.expect("hello");
        watcher.expect("snapshot");
        let mut stream = here.stream(&format!("user={bob}"));
        let id = stream.expect("hello").data["stream"].clone();
        let id = id.as_str().expect("its id");
        // Each word once, however often a state is told.
        let mut words: Vec<String> = Vec::new();
        let mut expect = |what: &str, watcher: &mut crate::stream::Stream| {
            while words.last().is_none_or(|last| last != what) {
                let record = watcher.expect("presence").data;
                words.push(record["status"].as_str().expect("a status").to_owned());
            }
            words.dedup();
        };
        expect("online", &mut watcher);

        let own = says(here, &json!({ "user": bob, "status": "busy" }));
        assert_eq!(
            (&own["status"], &own["online"]),
            (&json!("busy"), &json!(true))
        );
        expect("busy", &mut watcher);
        says(here, &json!({ "user": bob, "status": "online" }));
        expect("online", &mut watcher);

        // Nobody is at the device of his only stream, by its own word.
        let beat = format!("/v1/stream/{id}/beat");
        assert_eq!(here.post(&beat, &json!({ "idle_ms": 2_000 })).status, 204);
        expect("away", &mut watcher);
        assert_eq!(here.post(&beat, &json!({ "idle_ms": 0 })).status, 204);
        expect("online", &mut watcher);

        let own = says(here, &json!({ "user": bob, "invisible": true }));
        assert_eq!(
            (&own["online"], &own["invisible"]),
            (&json!(true), &json!(true))
        );
        expect("offline", &mut watcher);
        watcher.expect_quiet(2_000);
        says(here, &json!({ "user": bob, "invisible": false }));
        expect("online", &mut watcher);
        // That he has never been seen may be known after the snapshot.
        let words: Vec<_> = words.iter().skip_while(|word| *word == "offline").collect();
        let [on, off] = ["online", "offline"];
        assert_eq!(words, [on, "busy", on, "away", on, off, on]);
    });
}
