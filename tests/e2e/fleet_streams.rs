//! `GET /v1/streams` over several nodes and one real Redis: any node lists the streams of all.

use std::collections::BTreeMap;

use greendot::wire::beat::FleetKey;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::fleet::{Fleet, fleet};
use crate::fleet_says::watch;
use crate::harness::{Server, until};
use crate::http::Answer;
use crate::stream::Stream;

fn page(node: &Server, query: &str) -> Value {
    let answer = node.get(&format!("/v1/streams?{query}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// All that a walk in pages lists: each user's stream with the node that it is at, and who was
/// silent.
fn walked(node: &Server, limit: usize, filter: &str) -> (BTreeMap<String, Value>, Vec<Value>) {
    let (mut listed, mut silent) = (BTreeMap::new(), Vec::new());
    let mut query = format!("limit={limit}{filter}");
    loop {
        let page = page(node, &query);
        let streams = page["streams"].as_array().expect("a list");
        assert!(streams.len() <= limit, "{page}");
        for stream in streams {
            let user = stream["user"].as_str().expect("a user").to_owned();
            assert_eq!(listed.insert(user, stream.clone()), None, "twice");
        }
        silent.extend(page["silent"].as_array().expect("a list").clone());
        match page["cursor"].as_str() {
            Some(cursor) => query = format!("limit={limit}{filter}&cursor={cursor}"),
            None => return (listed, silent),
        }
    }
}

fn address(node: &Server) -> String {
    node.http.to_string()
}

/// Three streams at each node, and all nodes know each other.
fn streams(nodes: &[Server]) -> Vec<Stream> {
    for node in nodes {
        node.expect_metric("greendot_fleet_nodes", |seen| seen == nodes.len() as f64);
    }
    let mut streams = Vec::new();
    for (at, node) in nodes.iter().enumerate() {
        for number in 0..3 {
            let mut stream = node.stream(&format!("user=user-{at}-{number}"));
            stream.expect("hello");
            streams.push(stream);
        }
    }
    streams
}

#[test]
fn any_node_lists_the_streams_of_all() {
    let Some(fleet) = fleet() else { return };
    let nodes = [fleet.node(), fleet.node(), fleet.node()];
    let _streams = streams(&nodes);
    for (own, node) in nodes.iter().enumerate() {
        for limit in [1_000, 2] {
            let (listed, silent) = walked(node, limit, "");
            assert_eq!((listed.len(), silent), (9, vec![]));
            for (user, stream) in listed {
                let at: usize = user[5..6].parse().expect("a number");
                // Those of the node itself say nothing of where they are.
                let expected = match at == own {
                    true => Value::Null,
                    false => json!(address(&nodes[at])),
                };
                assert_eq!(stream["node"], expected, "{stream}");
            }
        }
        let (his, _) = walked(node, 10, "&user=user-1-2");
        assert_eq!(his.into_keys().collect::<Vec<_>>(), ["user-1-2"]);
        let (nobodys, silent) = walked(node, 10, "&user=nobody");
        assert_eq!((nobodys.len(), silent.len()), (0, 0));
    }
    // A cursor is good for its walk alone, and any node takes it.
    let (mut listed, mut query) = (Vec::new(), "limit=2".to_owned());
    for node in nodes.iter().cycle().take(6) {
        let page = page(node, &query);
        let streams = page["streams"].as_array().expect("a list").iter();
        listed.extend(streams.map(|stream| stream["stream"].clone()));
        let Some(cursor) = page["cursor"].as_str() else {
            break;
        };
        let answer = node.get(&format!("/v1/streams?cursor={cursor}&user=bob"));
        answer.expect_problem(410, "cursor-gone");
        query = format!("limit=2&cursor={cursor}");
    }
    listed.sort_by_key(Value::to_string);
    listed.dedup();
    assert_eq!(listed.len(), 9, "each once");
}

#[test]
fn a_node_answers_another_for_itself_alone_and_nobody_else() {
    let Some(fleet) = fleet() else { return };
    let nodes = [fleet.node(), fleet.node()];
    let _streams = streams(&nodes);
    let token = FleetKey::new([0x11; 32]).service_token();
    let own = get_as(&nodes[0], "/v1/node/streams", &token).json();
    assert_eq!(own["streams"].as_array().map(Vec::len), Some(3), "{own}");
    assert!(own.get("silent").is_none() && own["cursor"].is_null());
    assert_eq!(nodes[0].get("/v1/node/streams").status, 401);
}

fn get_as(node: &Server, target: &str, token: &str) -> Answer {
    call_as(node, "GET", target, token)
}

fn call_as(node: &Server, method: &str, target: &str, token: &str) -> Answer {
    let mut conn = node.connect();
    let header = format!("Host: e2e\r\nAuthorization: Bearer {token}\r\n");
    conn.send(format!("{method} {target} HTTP/1.1\r\n{header}\r\n").as_bytes());
    conn.answer()
}

#[test]
fn a_node_that_stands_still_is_named_and_one_that_has_ended_is_not_asked() {
    let Some(fleet) = Fleet::in_home(crate::harness::Home::new()) else {
        return;
    };
    // A node that stands still is not dead for so long.
    let long = ["--offline-after-ms=60s", "--beat-interval-ms=10s"];
    let [one, two, three] = [(); 3].map(|()| fleet.node_with(&long));
    let nodes = [one, two, three];
    let _streams = streams(&nodes);
    let [one, two, three] = nodes;
    two.process.stop();
    let (listed, silent) = walked(&one, 1_000, "");
    assert_eq!(silent, [json!(address(&two))]);
    let users: Vec<&str> = listed.keys().map(|user| &user[..6]).collect();
    assert_eq!(users, [["user-0"; 3], ["user-2"; 3]].concat());
    two.process.signal(Signal::CONT);
    until("it answers again", || {
        walked(&one, 1_000, "").1.is_empty().then_some(())
    });
    assert!(three.terminate().success());
    // Its lease has not run out.
    until("the others know that it has ended", || {
        let (listed, silent) = walked(&one, 1_000, "");
        (silent.is_empty() && listed.len() == 6).then_some(())
    });
    one.expect_metric("greendot_fleet_nodes", |nodes| nodes == 3.0);
}

/// A stream at a node, and its id.
fn opened(node: &Server, query: &str) -> (Stream, String) {
    let mut stream = node.stream(query);
    let hello = stream.expect("hello").data;
    let id = hello["stream"].as_str().expect("an id").to_owned();
    (stream, id)
}

#[test]
fn what_is_said_of_a_stream_reaches_it_by_any_node() {
    let Some(fleet) = fleet() else { return };
    let nodes = [fleet.node(), fleet.node(), fleet.node()];
    for node in &nodes {
        node.expect_metric("greendot_fleet_nodes", |seen| seen == 3.0);
    }
    let mut watcher = watch(&nodes[2]);
    watcher.expect_presence("bob", false);
    let (_alices, id) = opened(&nodes[0], "user=alice&watch=bob");
    let edits = format!("/v1/stream/{id}/watch");
    for (at, node) in nodes.iter().enumerate() {
        let answer = node.post(&edits, &json!({ "add": [format!("user-{at}")] }));
        assert_eq!(
            (answer.status, answer.json()),
            (200, json!({"watching": at + 2}))
        );
    }
    assert_eq!(
        nodes[0]
            .metrics()
            .sum("greendot_fleet_calls_forwarded_total"),
        0.0
    );
    assert_eq!(
        nodes[1]
            .metrics()
            .sum("greendot_fleet_calls_forwarded_total"),
        1.0
    );
    // Wrong is wrong there as here, and told in the same words.
    let asked = |node: &Server, target: &str, body: &Value| {
        let answer = node.post(target, body);
        let of_type = answer.field("content-type").map(str::to_owned);
        (answer.status, of_type, answer.text())
    };
    for (target, body) in [
        (&edits, json!({ "add": 7 })),
        (&format!("{edits}?token=x"), json!({ "add": ["carol"] })),
        (&format!("/v1/stream/{id}/token"), json!({})),
        (
            &format!("/v1/stream/{}0/watch", &id[..id.len() - 1]),
            json!({ "add": ["carol"] }),
        ),
    ] {
        let [here, there] = [0, 2].map(|at| asked(&nodes[at], target, &body));
        assert_eq!(here, there, "{target}");
    }
    // Its holder beats by another node, and is online; and says goodbye by the third.
    let (_bobs, id) = opened(&nodes[0], "user=bob&vouch=self");
    let beat = format!("/v1/stream/{id}/beat");
    assert_eq!(nodes[1].connect().post_bytes(&beat, b"").status, 204);
    watcher.expect_presence("bob", true);
    let answer = nodes[2].post("/v1/leave", &json!({ "stream": id, "users": ["bob"] }));
    assert_eq!(answer.status, 204, "{}", answer.text());
    watcher.expect_presence("bob", false);
    until("bob's stream has ended", || {
        let (his, _) = walked(&nodes[1], 10, "&user=bob");
        his.is_empty().then_some(())
    });
}

#[test]
fn an_operator_sees_and_ends_a_stream_by_any_node() {
    let Some(fleet) = fleet() else { return };
    let nodes = [fleet.node(), fleet.node()];
    for node in &nodes {
        node.expect_metric("greendot_fleet_nodes", |seen| seen == 2.0);
    }
    let (mut stream, id) = opened(&nodes[0], "user=bob&watch=alice");
    let target = format!("/v1/streams/{id}");
    for node in &nodes {
        let (status, seen) = (node.get(&target).status, node.get(&target).json());
        let what = ["stream", "user", "watching"].map(|name| seen[name].clone());
        assert_eq!((status, what), (200, [json!(id), json!("bob"), json!(1)]));
    }
    // Whoever may not end it here may not end it there, nor ask as nodes do.
    let token = FleetKey::new([0x11; 32]).service_token();
    for target in [&target, &format!("/v1/node/streams/{id}")] {
        let answer = call_as(&nodes[1], "DELETE", target, "gds_nobody");
        assert_eq!(answer.status, 401, "{target}: {}", answer.text());
    }
    let answer = call_as(&nodes[1], "DELETE", &target, &token);
    assert_eq!((answer.status, answer.text()), (204, String::new()));
    let told = stream.rest();
    let last = told.last().expect("a goodbye");
    assert_eq!(
        (&*last.kind, &last.data["reason"]),
        ("goodbye", &json!("ended"))
    );
    for node in &nodes {
        let answer = call_as(node, "DELETE", &target, &token);
        answer.expect_problem(404, "unknown-stream");
        node.get(&target).expect_problem(404, "unknown-stream");
    }
}

#[test]
fn what_is_said_of_a_dead_nodes_stream_is_told_so_and_its_goodbye_counts() {
    let Some(fleet) = fleet() else { return };
    let [one, two] = fleet.homes();
    let mut watcher = watch(&one);
    watcher.expect_presence("bob", false);
    // A stream that vouches for nobody; bob beats here.
    let (_stream, id) = opened(&two, "watch=carol");
    let beat = json!({ "users": ["bob"] });
    assert_eq!(one.post("/v1/beat", &beat).status, 204);
    watcher.expect_presence("bob", true);
    let cursor = two.get("/v1/online?limit=1").json()["cursor"].clone();
    two.kill();
    let edits = format!("/v1/stream/{id}/watch");
    let answer = one.post(&edits, &json!({ "add": ["dora"] }));
    answer.expect_problem(503, "overloaded");
    assert_eq!(answer.field("retry-after"), Some("5"));
    let answer = one.post("/v1/leave", &json!({ "stream": id, "users": ["bob"] }));
    assert_eq!(answer.status, 204, "{}", answer.text());
    // By the goodbye, and not because he has been silent for six seconds.
    let gone = watcher.expect_presence("bob", false);
    assert!(gone.since() < gone.last_active() + 6_000, "{gone:?}");
    until("the node is known to be dead", || {
        let answer = one.post(&edits, &json!({ "add": ["carol"] }));
        (answer.status == 404).then_some(())
    });
    // The list that it began is no more.
    let cursor = cursor.as_str().expect("there is always more");
    let answer = one.get(&format!("/v1/online?cursor={cursor}"));
    answer.expect_problem(410, "cursor-gone");
}
