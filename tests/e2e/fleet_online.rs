//! `GET /v1/online` over several nodes and one real Redis: any node tells who is online at all.

use std::collections::BTreeMap;

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use crate::fleet::Fleet;
use crate::harness::{Home, Server, until};

/// Beats of so many users at a time.
const BEATEN: usize = 100;

fn beat(node: &Server, users: &[String]) {
    for users in users.chunks(BEATEN) {
        let answer = node.post("/v1/beat", &json!({ "users": users }));
        assert_eq!(answer.status, 204, "{}", answer.text());
    }
}

fn page(node: &Server, query: &str) -> Value {
    let answer = node.get(&format!("/v1/online?{query}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// All that a walk tells, the last word of each user, and the cursor for what is news later.
fn walked(node: &Server, filter: &str, limit: usize) -> (BTreeMap<String, String>, String) {
    walked_from(node, "", &format!("limit={limit}{filter}"))
}

/// The same from a cursor on, which stands in `from`.
fn walked_from(node: &Server, from: &str, asked: &str) -> (BTreeMap<String, String>, String) {
    let mut told = BTreeMap::new();
    let mut query = format!("{asked}{from}");
    loop {
        let page = page(node, &query);
        let records = page["presence"].as_array().expect("a list");
        assert!(
            !asked.starts_with("limit=7") || records.len() <= 7,
            "{page}"
        );
        for record in records {
            let text = |member: &str| record[member].as_str().expect("it is text").to_owned();
            told.insert(text("user"), text("status"));
        }
        let cursor = page["cursor"].as_str().expect("it is text").to_owned();
        if page["more"] == false {
            return (told, cursor);
        }
        query = format!("{asked}&cursor={cursor}");
    }
}

/// Many partitions have something to be read at once: none of them is forgotten meanwhile.
#[test]
fn a_long_question_about_users_of_other_nodes_is_answered_in_full() {
    let Some(fleet) = Fleet::in_home(Home::new()) else {
        return;
    };
    let many = ["--cluster-partitions=1024", "--offline-after-ms=60s"];
    let nodes = [(); 2].map(|()| fleet.node_with(&many));
    let users: Vec<String> = (0..600).map(|n| format!("user {n}")).collect();
    beat(&nodes[0], &users[..300]);
    until("all are in the database", || {
        let (told, _) = walked(&nodes[0], "", 1_000);
        (told.len() == 300).then_some(())
    });
    let answer = nodes[1].post("/v1/presence/query", &json!({ "users": users }));
    let answer = answer.json();
    let records = answer["presence"].as_array().expect("a list");
    let is = |record: &Value, status: &str| record["status"] == status;
    let stale = records.iter().filter(|record| record["stale"] == true);
    assert_eq!(stale.count(), 0, "{answer}");
    assert!(records[..300].iter().all(|it| is(it, "online")), "{answer}");
    assert!(
        records[300..].iter().all(|it| is(it, "offline")),
        "{answer}"
    );
}

#[test]
fn any_node_tells_who_is_online_at_all_and_what_is_news_since() {
    let Some(fleet) = Fleet::in_home(Home::new()) else {
        return;
    };
    let long = ["--offline-after-ms=60s", "--beat-interval-ms=10s"];
    let nodes = [(); 3].map(|()| fleet.node_with(&long));
    let users: Vec<String> = (0..300).map(|n| format!("user {n}")).collect();
    beat(&nodes[0], &users[..150]);
    beat(&nodes[1], &users[150..]);
    let all: BTreeMap<String, String> = users
        .iter()
        .map(|user| (user.clone(), "online".to_owned()))
        .collect();
    until("all are in the database", || {
        (walked(&nodes[2], "", 1_000).0 == all).then_some(())
    });
    let (told, cursor) = walked(&nodes[2], "", 7);
    assert_eq!(told, all);
    let (some, _) = walked(&nodes[0], "&prefix=user%2029", 1_000);
    let named = users.iter().filter(|user| user.starts_with("user 29"));
    assert_eq!(some.keys().collect::<Vec<_>>().len(), named.count());
    assert!(
        page(&nodes[0], "prefix=*")["presence"]
            .as_array()
            .expect("a list")
            .is_empty()
    );
    // Whoever goes and comes is told to who walks on.
    let leave = json!({ "users": [users[5]] });
    assert_eq!(nodes[1].post("/v1/leave", &leave).status, 204);
    beat(&nodes[0], &["newcomer".into()]);
    until("the news are told", || {
        let news = walked_on(&nodes[2], &cursor);
        let status = |user: &str| news.get(user).map(String::as_str);
        (status(&users[5]) == Some("offline") && status("newcomer") == Some("online")).then_some(())
    });
    // A cursor is good for its node and walk alone.
    for query in [
        format!("cursor={cursor}&prefix=user"),
        format!("cursor={}", cursor.replacen('0', "1", 1)),
    ] {
        assert_eq!(
            nodes[2].get(&format!("/v1/online?{query}")).status,
            410,
            "{query}"
        );
    }
    // Any node takes it.
    let [here, there] = [2, 0].map(|at| page(&nodes[at], &format!("cursor={cursor}&limit=7&x=y")));
    assert_eq!(
        (&here["presence"], &here["ignored"]),
        (&there["presence"], &there["ignored"])
    );
    assert_eq!(here["ignored"], json!(["x"]));
    let pid = fleet.redis.pid();
    kill_process(pid, Signal::STOP).expect("our own process");
    let away = nodes[2].get("/v1/online");
    assert_eq!(away.status, 503, "{}", away.text());
    kill_process(pid, Signal::CONT).expect("our own process");
}

/// What is news since a walk.
fn walked_on(node: &Server, cursor: &str) -> BTreeMap<String, String> {
    walked_from(node, &format!("&cursor={cursor}"), "limit=1000").0
}
