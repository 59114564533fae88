//! What users say of themselves in a fleet, log-outs and erasures: said at one node, told by all.

use greendot::wire::beat::FleetKey;
use serde_json::{Value, json};

use crate::fleet::{Fleet, expect_homes, expect_ready, fleet, redis, told};
use crate::harness::{Record, Server, pause, until};
use crate::http::Answer;
use crate::stream::Stream;

fn says(node: &Server, body: &Value) -> Value {
    let answer = node.post("/v1/status", body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn state(node: &Server, user: &str) -> Value {
    let answer = node.get(&format!("/v1/presence/{user}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// A stream that watches bob at a node that knows him.
pub(crate) fn watch(node: &Server) -> Stream {
    until("the node knows", || {
        Some(state(node, "bob")).filter(|state| state.get("stale").is_none())
    });
    let mut stream = node.stream("watch=bob");
    stream.expect("hello");
    stream.expect("snapshot");
    stream
}

/// All nodes say this of bob, and since when.
fn all_say(nodes: &[Server], status: &str) -> u64 {
    let sinces = nodes.iter().map(|node| {
        let state = until(&format!("bob is {status}"), || {
            Some(state(node, "bob")).filter(|state| state["status"] == status)
        });
        assert!(state.get("stale").is_none(), "{state}");
        state["since"].as_u64()
    });
    let sinces: Vec<Option<u64>> = sinces.collect();
    assert!(sinces.iter().all(|since| *since == sinces[0]), "{sinces:?}");
    sinces[0].unwrap_or_default()
}

/// The next that a watcher is told of bob.
fn next(stream: &mut Stream) -> (String, u64) {
    let record = stream.expect("presence").data;
    assert_eq!(record["user"], "bob", "{record}");
    assert!(record.get("stale").is_none(), "{record}");
    let status = record["status"].as_str().expect("a status").to_owned();
    (status, record["since"].as_u64().unwrap_or_default())
}

#[test]
fn a_status_is_told_by_all_nodes_wherever_it_is_said() {
    let Some(fleet) = fleet() else { return };
    let nodes = [fleet.node(), fleet.node(), fleet.node()];
    let [one, two, three] = &nodes;
    // Before he has ever come.
    let own = says(three, &json!({"user": "bob", "status": "busy"}));
    assert_eq!(
        (&own["status"], &own["invisible"]),
        (&json!("offline"), &json!(false))
    );
    let mut alice = watch(one);
    assert_eq!(alice.presence(), Record::never_seen("bob"));
    let _bob = two.stream("user=bob");
    assert_eq!(next(&mut alice).0, "busy");
    all_say(&nodes, "busy");
    let own = says(three, &json!({"user": "bob", "status": "away"}));
    assert_eq!(
        own["status"], "away",
        "what is answered is what all are told"
    );
    assert_eq!(state(three, "bob")["status"], "away");
    let (status, since) = next(&mut alice);
    assert_eq!((status.as_str(), all_say(&nodes, "away")), ("away", since));
    // A second stream elsewhere that says something else.
    let _other = three.stream("user=bob&status=online");
    assert_eq!(next(&mut alice).0, "online");
    all_say(&nodes, "online");
}

#[test]
fn whoever_hides_at_one_node_has_gone_at_all() {
    let Some(fleet) = fleet() else { return };
    let nodes = [fleet.node(), fleet.node(), fleet.node()];
    let [one, two, three] = &nodes;
    let _bob = [two.stream("user=bob"), one.stream("user=bob")];
    told(three, "bob", true);
    let (mut alice, mut dave) = (watch(one), watch(two));
    let own = says(
        three,
        &json!({"user": "bob", "invisible": true, "status": "busy"}),
    );
    assert_eq!(
        (&own["status"], &own["invisible"]),
        (&json!("busy"), &json!(true))
    );
    let hid = all_say(&nodes, "offline");
    assert_eq!(next(&mut alice), ("offline".to_owned(), hid));
    assert_eq!(next(&mut dave), ("offline".to_owned(), hid));
    let first = state(one, "bob");
    // Beats, another stream and another status show in nothing.
    let beat = three.post("/v1/beat", &json!({"users": ["bob"]}));
    assert_eq!(beat.json(), json!({"invisible": ["bob"]}));
    let _third = three.stream("user=bob");
    let own = says(one, &json!({"user": "bob", "status": "away"}));
    assert_eq!(
        (&own["status"], &own["invisible"]),
        (&json!("away"), &json!(true))
    );
    alice.expect_quiet(2_500);
    for node in &nodes {
        assert_eq!(state(node, "bob"), first);
    }
    let late = fleet.node();
    let seen = until("a node that comes then knows", || {
        Some(state(&late, "bob")).filter(|state| state.get("stale").is_none())
    });
    assert_eq!(seen, first);
    says(two, &json!({"user": "bob", "invisible": false}));
    let came = all_say(&nodes, "away");
    assert_eq!(next(&mut alice), ("away".to_owned(), came));
    assert_eq!(next(&mut dave), ("away".to_owned(), came));
}

/// Whoever hides shows at no node, wherever it beats and wherever it said so.
#[test]
fn whoever_hides_and_beats_on_shows_nowhere() {
    let Some(fleet) = fleet() else { return };
    let nodes: [Server; 3] = fleet.homes();
    let beat = |node: &Server, user: &str| {
        let answer = node.post("/v1/beat", &json!({"users": [user]}));
        assert!(matches!(answer.status, 200 | 204), "{}", answer.text());
    };
    let is_shown = |node: &Server, user: &str| state(node, user)["status"] != "offline";
    for (at, hears) in nodes.iter().enumerate() {
        for (to, hides) in nodes.iter().enumerate() {
            // Before it has ever beaten.
            let first = format!("first-{at}-{to}");
            says(hides, &json!({"user": first, "invisible": true}));
            let user = format!("user-{at}-{to}");
            beat(hears, &user);
            assert!(is_shown(hears, &user), "its own write is read");
            says(hides, &json!({"user": user, "invisible": true}));
            // All have heard of it, the node that takes its beats too.
            for node in &nodes {
                until("it has gone for all", || {
                    beat(hears, &user);
                    (!is_shown(node, &user)).then_some(())
                });
            }
            for _ in 0..5 {
                beat(hears, &first);
                beat(hears, &user);
                for node in &nodes {
                    assert!(!is_shown(node, &first) && !is_shown(node, &user));
                }
            }
        }
    }
}

/// Nobody can tell who hides before they are ever seen, or after an erasure, from who never was.
#[test]
fn who_hides_before_they_come_is_as_if_never_seen() {
    let Some(fleet) = fleet() else { return };
    let nodes: [Server; 3] = fleet.homes();
    let mut streams = Vec::new();
    for round in 0..18 {
        let (says_so, comes) = (&nodes[round % 3], &nodes[round / 3 % 3]);
        let user = format!("user-{round}");
        if round >= 9 {
            let beat = comes.post("/v1/beat", &json!({"users": [user]}));
            assert_eq!(beat.status, 204);
            nodes.iter().for_each(|node| drop(told(node, &user, true)));
            assert_eq!(erase(says_so, &user).status, 204);
        }
        let own = says(says_so, &json!({"user": user, "invisible": true}));
        assert_eq!(own["invisible"], true, "{own}");
        assert!(own.get("stale").is_none(), "{own}");
        for node in &nodes {
            assert_eq!(state(node, &user), never_seen(&user), "{round}");
            let mut watcher = node.stream(&format!("watch={user}"));
            watcher.expect("hello");
            let snapshot = watcher.expect("snapshot").data;
            assert_eq!(snapshot["presence"][0], never_seen(&user), "{round}");
        }
        let query = format!("user={user}");
        streams.push((user, says_so, comes.stream(&query)));
    }
    // Long enough for beats of those streams, and whatever they claim.
    pause(2_500);
    for (user, says_so, _) in &streams {
        for node in &nodes {
            assert_eq!(state(node, user), never_seen(user));
        }
        let own = says(says_so, &json!({"user": user, "idle_ms": 0}));
        let expected = (&json!("online"), &json!(true));
        assert_eq!((&own["status"], &own["invisible"]), expected, "{own}");
    }
}

fn never_seen(user: &str) -> Value {
    json!({
        "user": user, "status": "offline", "online": false, "since": null, "last_active": null
    })
}

/// What a stream says as it opens may be on its way when its user is erased.
#[test]
fn who_is_erased_as_their_stream_opens_is_known_to_be_gone() {
    let Some(fleet) = fleet() else { return };
    let nodes: [Server; 3] = fleet.homes();
    for round in 0..24 {
        let (opens, ends) = (&nodes[round % 3], &nodes[(round + 1) % 3]);
        let user = format!("user-{round}");
        let mut stream = opens.stream(&format!("user={user}&status=busy"));
        stream.expect("hello");
        assert_eq!(erase(ends, &user).status, 204);
        for node in &nodes {
            // Its claim may come behind the erasure: then it has been here, and has gone.
            until("it is known to be gone", || {
                let state = state(node, &user);
                let is_known = state.get("stale").is_none();
                (is_known && state["status"] == "offline").then_some(())
            });
        }
    }
}

/// A node that has not heard of a user asks the fleet, as it does for whoever else asks.
#[test]
fn the_holder_is_told_what_is_true_by_nodes_that_have_not_heard_of_them() {
    let Some(fleet) = fleet() else { return };
    let nodes: [Server; 3] = fleet.homes();
    for round in 0..12 {
        let (hears, asked) = (&nodes[round % 3], &nodes[(round + 1 + round / 6) % 3]);
        let user = format!("user-{round}");
        let hides = json!({"users": [user], "invisible": round % 2 == 0, "status": "busy"});
        let beat = hears.post("/v1/beat", &hides);
        assert!(matches!(beat.status, 200 | 204), "{}", beat.text());
        // The first answer has what was said. The beat behind it is on its way to the fleet.
        let asks = json!({"user": user, "idle_ms": 0});
        assert_eq!(says(asked, &asks)["invisible"], round % 2 == 0, "{round}");
        until("it is here", || {
            let own = says(asked, &asks);
            assert_eq!(own["invisible"], round % 2 == 0, "{round}");
            (own["status"] == "busy").then_some(())
        });
        // From here on that node knows.
        if round % 2 == 0 {
            let beat = asked.post("/v1/beat", &json!({"users": [user]}));
            assert_eq!(beat.json(), json!({"invisible": [user]}));
        }
    }
    let own = says(&nodes[0], &json!({"user": "nobody", "idle_ms": 0}));
    let never = (&json!("offline"), &Value::Null, &json!(false));
    assert_eq!((&own["status"], &own["since"], &own["invisible"]), never);
}

/// A goodbye of another device counts neither at once nor when the stream has ended that it met:
/// who comes back from a short break has never gone.
#[test]
fn a_goodbye_that_met_a_stream_elsewhere_is_over() {
    let Some(fleet) = fleet() else { return };
    // Silence ends nobody's stay while this test looks.
    let nodes = [(); 3].map(|()| fleet.node_with(&["--offline-after-ms=300s"]));
    nodes.iter().for_each(|node| expect_homes(node, 3));
    let mut streams = Vec::new();
    for round in 0..24 {
        let user = format!("user-{round}");
        let stream = nodes[round % 3].stream(&format!("user={user}"));
        nodes.iter().for_each(|node| drop(told(node, &user, true)));
        streams.push((user, stream));
    }
    let came: Vec<Record> = streams
        .iter()
        .map(|(user, _)| nodes[0].record(user))
        .collect();
    // Longer than clocks are apart.
    pause(1_100);
    for (round, (user, stream)) in streams.drain(..).enumerate() {
        let leaves = &nodes[(round + 1 + round / 3 % 2) % 3];
        let body = json!({"users": [user]});
        assert_eq!(leaves.post("/v1/leave", &body).status, 204);
        pause(100);
        drop(stream);
    }
    pause(1_500);
    for came in came {
        for node in &nodes {
            let now = node.record(&came.user);
            assert_eq!((now.online, now.since()), (true, came.since()), "{now:?}");
        }
    }
}

/// Of two devices, or one that moves: what was said last counts.
#[test]
fn a_goodbye_at_another_node_right_after_a_first_beat_counts() {
    let Some(fleet) = fleet() else { return };
    // Silence ends nobody's stay while this test looks.
    let nodes = [(); 3].map(|()| fleet.node_with(&["--offline-after-ms=300s"]));
    nodes.iter().for_each(|node| expect_homes(node, 3));
    let users: Vec<String> = (0..60).map(|number| format!("user-{number}")).collect();
    for (number, user) in users.iter().enumerate() {
        let body = json!({"users": [user]});
        let (beaten, left) = (number % 3, (number / 3 % 2 + number + 1) % 3);
        assert_eq!(nodes[beaten].post("/v1/beat", &body).status, 204);
        assert_eq!(nodes[left].post("/v1/leave", &body).status, 204);
    }
    for user in &users {
        for node in &nodes {
            told(node, user, false);
        }
    }
    // It is not undone by what was under way, nor is anybody told as known no more.
    pause(1_000);
    for user in &users {
        for node in &nodes {
            told(node, user, false);
        }
    }
}

#[test]
fn away_is_whoever_is_at_no_device_of_any_node() {
    let Some(fleet) = fleet() else { return };
    let node = || fleet.node_with(&["--away-after=2s"]);
    let nodes = [node(), node()];
    // All beats count at one node, from the first on.
    nodes.iter().for_each(|node| expect_homes(node, 2));
    let [one, two] = &nodes;
    let beat = |node: &Server, idle_ms: u64| {
        let body = json!({"users": ["bob"], "idle_ms": idle_ms});
        assert_eq!(node.post("/v1/beat", &body).status, 204);
    };
    beat(one, 0);
    told(two, "bob", true);
    let mut alice = watch(two);
    until("nobody is at his device", || {
        beat(one, 3_000);
        (state(two, "bob")["status"] == "away").then_some(())
    });
    assert_eq!(next(&mut alice).0, "away");
    all_say(&nodes, "away");
    // Somebody is at another one, which another node hears.
    beat(two, 0);
    assert_eq!(next(&mut alice).0, "online");
    for _ in 0..10 {
        beat(one, 3_000);
        beat(two, 0);
        pause(200);
    }
    all_say(&nodes, "online");
    alice.expect_quiet(100);
}

#[test]
fn a_log_out_everywhere_ends_all_streams_and_moves_nothing_else() {
    let Some(fleet) = fleet() else { return };
    let nodes = [fleet.node(), fleet.node(), fleet.node()];
    let [one, two, three] = &nodes;
    let mut bob = [two.stream("user=bob"), one.stream("user=bob")];
    told(three, "bob", true);
    let out = json!({"users": ["bob", "nobody"], "everywhere": true});
    assert_eq!(three.post("/v1/leave", &out).status, 204);
    for stream in &mut bob {
        until("his stream is told to go", || {
            (stream.next().kind == "bye").then_some(())
        });
    }
    // Known, not stale, and with the same time everywhere.
    let gone = all_say(&nodes, "offline");
    assert_eq!(two.post("/v1/leave", &out).status, 204);
    pause(500);
    assert_eq!(all_say(&nodes, "offline"), gone);
    let late = fleet.node();
    let seen = |user: &str| {
        until("a node that comes then knows", || {
            Some(state(&late, user)).filter(|state| state.get("stale").is_none())
        })
    };
    assert_eq!(seen("bob")["since"], gone);
    assert_eq!(Record::of(&seen("nobody")), Record::never_seen("nobody"));
}

/// Once an ending is answered it is over, at all nodes: who comes then is a new stay.
#[test]
fn who_beats_on_behind_a_log_out_or_an_erasure_is_here() {
    let Some(fleet) = fleet() else { return };
    let nodes: [Server; 3] = fleet.homes();
    let beat = |node: &Server, user: &str| {
        let answer = node.post("/v1/beat", &json!({"users": [user]}));
        assert!(matches!(answer.status, 200 | 204), "{}", answer.text());
    };
    for round in 0..24 {
        let (ends, then, before) = (
            &nodes[round % 3],
            &nodes[round / 3 % 3],
            &nodes[round / 9 % 3],
        );
        let user = format!("user-{round}");
        if round % 2 == 0 {
            beat(before, &user);
            beat(then, &user);
            for node in &nodes {
                told(node, &user, true);
            }
        }
        match round / 12 {
            0 => {
                let out = json!({"users": [user], "everywhere": true});
                assert_eq!(ends.post("/v1/leave", &out).status, 204);
            }
            _ => assert_eq!(erase(ends, &user).status, 204),
        }
        beat(then, &user);
        assert!(then.record(&user).online, "{round}: its own write is read");
        pause(200);
        for node in &nodes {
            assert!(node.record(&user).online, "{round}: it counts everywhere");
        }
    }
}

#[test]
fn a_redis_that_has_lost_everything_changes_nothing_for_who_is_here() {
    let Some(mut fleet) = fleet() else { return };
    let nodes = [fleet.node(), fleet.node()];
    let [one, two] = &nodes;
    let _bob = two.stream("user=bob&status=busy");
    let came = all_say(&nodes, "busy");
    let mut alice = watch(one);
    fleet.redis.kill();
    until("the node says that it is cut off", || {
        (one.get("/readyz").status == 503).then_some(())
    });
    // Known, and perhaps not so any more; of whom nothing is known here that is said too.
    // What was so two seconds ago is no old word yet.
    for (user, status) in [("bob", "busy"), ("zoe", "offline")] {
        let known = until("it is told as known last", || {
            Some(state(one, user)).filter(|state| state["stale"] == true)
        });
        assert_eq!(known["status"], status);
    }
    // Who comes meanwhile is told here, and is here since then.
    let _dave = two.stream("user=dave");
    let dave = told(two, "dave", true).since();
    fleet.redis = redis(&fleet.home);
    nodes.iter().for_each(expect_ready);
    pause(2_000);
    assert_eq!(all_say(&nodes, "busy"), came);
    // The other node may have told Redis first, to which his beats were handed: he is here since
    // then, and all agree.
    let agreed = until("all agree since when dave is here", || {
        let [one, two] = [one, two].map(|node| told(node, "dave", true).since());
        (one == two).then_some(one)
    });
    assert!(agreed >= dave, "{agreed} is before {dave}");
    alice.expect_quiet(500);
    // An operator sees that what Redis has was compared, partition by partition.
    let metrics = two.metrics();
    assert!(metrics.sum("greendot_fleet_reconciles_total") > 0.0);
    assert!(metrics.sum("greendot_fleet_users_read_total") > 0.0);
}

#[test]
fn nothing_is_left_of_whoever_is_erased() {
    let Some(fleet) = fleet() else { return };
    let nodes = [fleet.node(), fleet.node()];
    let [one, two] = &nodes;
    let mut bob = two.stream("user=bob&status=busy");
    all_say(&nodes, "busy");
    let mut alice = watch(one);
    assert_eq!(erase(one, "bob").status, 204);
    until("his stream is told to go", || {
        (bob.next().kind == "bye").then_some(())
    });
    // As of a user who was never seen, at nodes that knew him too.
    assert_eq!(alice.presence(), Record::never_seen("bob"));
    for node in &nodes {
        told(node, "bob", false);
        assert_eq!(node.record("bob"), Record::never_seen("bob"));
    }
    pause(1_000);
    assert!(!keys_of(&fleet).contains("bob"), "{}", keys_of(&fleet));
    // And the next by that id says nothing yet.
    let _bob = two.stream("user=bob");
    assert_eq!(next(&mut alice).0, "online");
    fleet.redis.stop();
    until("the node says that it is cut off", || {
        (one.get("/readyz").status == 503).then_some(())
    });
    assert_eq!(erase(one, "bob").status, 503);
}

pub(crate) fn erase(node: &Server, user: &str) -> Answer {
    let token = FleetKey::new([0x11; 32]).service_token();
    let mut conn = node.connect();
    let header = format!("Host: e2e\r\nAuthorization: Bearer {token}\r\n");
    conn.send(format!("DELETE /v1/presence/{user} HTTP/1.1\r\n{header}\r\n").as_bytes());
    conn.answer()
}

/// All that Redis has, as `redis-cli` prints it.
fn keys_of(fleet: &Fleet) -> String {
    let script = "local all = {} for _, key in ipairs(redis.call('KEYS', '*')) do \
                  for _, part in ipairs(redis.call('HGETALL', key)) do all[#all + 1] = part end \
                  end return table.concat(all, ' ')";
    fleet.cli(&["EVAL", script, "0"])
}
