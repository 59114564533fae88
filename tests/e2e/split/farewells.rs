//! Goodbyes across nodes: a device's says nothing of another's at another node, and a log-out ends
//! every stream.

use serde_json::json;

use crate::http::Conn;

use super::watcher::Watcher;
use super::world::{Setup, Split};

const SETUP: Setup = Setup {
    flags: &[
        "--beat-interval-ms=30s",
        "--offline-after-ms=60s",
        "--shards=2",
    ],
    presence_flags: &[],
    taps: None,
};

#[test]
fn a_goodbye_at_one_node_is_not_that_of_a_stream_at_another() {
    Split::run(SETUP, |split| {
        // A machine that is so busy that a node is silent for two seconds shows nothing.
        let users = split.users_of(0, 4);
        let shown = users.iter().any(|bob| goodbyes_of_one(split, bob));
        assert!(shown, "each time a node was silent");
    });
}

/// False: a real-time node was silent for so long that silence decided.
fn goodbyes_of_one(split: &Split<'_>, bob: &str) -> bool {
    let unanswered = || {
        let presence = split.presence[0].server();
        presence.metrics().sum("greendot_leaves_unanswered_total")
    };
    let before = unanswered();
    let users = [bob.to_owned()];
    let mut watcher = Watcher::new(split.realtime[0].front(), &users);
    let mut phone = split.realtime[0].publish(bob);
    let phone_id = phone.expect("hello").data["stream"].clone();
    let mut desk = split.realtime[1].publish(bob);
    let desk_id = desk.expect("hello").data["stream"].clone();
    watcher.expect_all(&users, true);
    // By name, by a datagram, for his stream here.
    let goodbye = json!({ "users": [bob] });
    for http in [
        split.presence[0].server().http,
        split.realtime[0].server().http,
    ] {
        assert_eq!(Conn::to(http).post("/v1/leave", &goodbye).status, 204);
    }
    split.sender(0).leave(&[bob]);
    let goodbye = json!({ "stream": phone_id });
    let answer = split.realtime[0].server().post("/v1/leave", &goodbye);
    assert_eq!(answer.status, 204);
    assert_eq!(phone.rest().last().expect("a goodbye").kind, "goodbye");
    watcher.read_for(2_500);
    if unanswered() > before {
        return false;
    }
    watcher.expect_no_flip(&users);
    // His last one is his.
    let goodbye = json!({ "stream": desk_id });
    let answer = split.realtime[1].server().post("/v1/leave", &goodbye);
    assert_eq!(answer.status, 204);
    watcher.expect_all(&users, false);
    true
}

#[test]
fn a_log_out_ends_streams_at_every_node_and_a_new_login_counts() {
    Split::run(SETUP, |split| {
        let users = split.users_of(1, 1);
        let bob = &users[0];
        let mut watcher = Watcher::new(split.realtime[0].front(), &users);
        for (said_at, http) in [
            ("a real-time node", split.realtime[0].server().http),
            ("a presence node", split.presence[1].server().http),
        ] {
            let mut streams = [0, 0, 1].map(|node| split.realtime[node].publish(bob));
            watcher.expect_all(&users, true);
            let log_out = json!({ "users": [bob], "everywhere": true });
            assert_eq!(Conn::to(http).post("/v1/leave", &log_out).status, 204);
            for stream in &mut streams {
                let last = stream.rest().pop().expect("a word");
                assert_eq!(last.kind, "bye", "{said_at}");
            }
            watcher.expect_all(&users, false);
        }
        let _again = split.realtime[1].publish(bob);
        watcher.expect_all(&users, true);
        watcher.read_for(1_000);
        assert_eq!(watcher.last(bob).online, Some(true));
    });
}
