//! Queries and beats at real-time nodes: who asks need not know whose presence node is which, and
//! nobody is called offline by a node that can not know.

use rustix::process::Signal;
use serde_json::json;

use crate::harness::until;
use crate::limits::limit_hits;

use super::world::{Node, Setup, Split};

const SETUP: Setup = Setup {
    flags: &[
        "--beat-interval-ms=1s",
        "--offline-after-ms=60s",
        "--shards=2",
    ],
    presence_flags: &[],
    taps: None,
};

fn base(node: &Node<'_>) -> String {
    format!("http://{}", node.front())
}

#[test]
fn any_real_time_node_answers_for_all_users() {
    Split::run(SETUP, |split| {
        let [first, second] = [0, 1].map(|node| split.users_of(node, 2));
        let nodes = [0, 1].map(|node| split.realtime[node].server());
        // A beat at one, of users of both presence nodes; every query says so from then on.
        let users = json!({"users": [first[0], second[0]]});
        assert_eq!(nodes[0].post("/v1/beat", &users).status, 204);
        let target = |user: &str| format!("/v1/presence/{user}");
        for user in [&first[0], &second[0]] {
            let known = split.owner(user).server().get(&target(user));
            for node in nodes {
                let told = node.get(&target(user));
                assert_eq!((told.status, told.text()), (200, known.text()));
                assert!(told.text().contains("\"online\":true"), "{}", told.text());
            }
        }
        // In the order asked, also of who has never been seen.
        let list = [&second[0], &first[1], &first[0]];
        let query = json!({ "users": list });
        let told = nodes[1].post("/v1/presence/query", &query).text();
        let of = |user: &&String| split.owner(user).server().get(&target(user)).text();
        let records: Vec<_> = list.iter().map(of).collect();
        assert_eq!(told, format!("{{\"presence\":[{}]}}", records.join(",")));

        // One presence node is gone: nobody else says anything of its users.
        split.presence[0].kill();
        let nodes = [0, 1].map(|node| split.realtime[node].server());
        let gone = base(&split.presence[0]);
        for node in nodes {
            let answer = node.get(&target(&first[0]));
            answer.expect_problem(503, "node-unreached");
            assert!(answer.text().contains(&gone), "{}", answer.text());
            let answer = node.post("/v1/presence/query", &query);
            answer.expect_problem(503, "node-unreached");
            node.post("/v1/beat", &users)
                .expect_problem(503, "node-unreached");
            assert_eq!(node.get(&target(&second[0])).status, 200);
        }
        split.presence[0].start();
        let node = split.realtime[0].server();
        until("it answers again", || {
            let told = node.get(&target(&first[0]));
            (told.status == 200).then(|| assert!(told.text().contains("\"online\":true")))
        });
    });
}

#[test]
pub(crate) fn what_waits_for_presence_nodes_is_bounded() {
    let setup = Setup {
        flags: &[
            "--offline-after-ms=60s",
            "--shards=1",
            "--passed-users-max=3",
        ],
        ..SETUP
    };
    Split::run(setup, |split| {
        let users = split.users_of(0, 3);
        let (realtime, presence) = (split.realtime[0].server(), split.presence[0].server());
        let body = json!({ "users": users }).to_string();
        // The node is not out of sight yet: after some tries one finds it so, on a slow machine.
        until("the limit is reached", || {
            split.realtime[0].expect_nodes_down(0);
            presence.process.stop();
            let mut conns = [0; 4].map(|_| realtime.connect());
            for conn in &mut conns {
                conn.send_post("/v1/presence/query", body.as_bytes());
            }
            let answers = conns.map(|mut conn| conn.answer());
            presence.process.signal(Signal::CONT);
            let refused = answers
                .iter()
                .filter(|answer| answer.text().contains("passed-users-max"));
            let refused = refused.inspect(|answer| answer.expect_problem(503, "overloaded"));
            (refused.count() > 0).then_some(())
        });
        assert!(limit_hits(realtime, "passed-users-max") > 0.0);
        until("nothing waits any more", || {
            let answer = realtime.post("/v1/presence/query", &json!({ "users": users }));
            (answer.status == 200).then_some(())
        });
    });
}
