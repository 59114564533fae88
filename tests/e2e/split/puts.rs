//! What real-time nodes are told: by whom, in which order, how often.

use serde_json::json;

use crate::harness::until;
use crate::http::{Answer, Conn};

use super::tap::Manner;
use super::watcher::Watcher;
use super::world::{Node, Setup, Split};

fn put(node: &Node<'_>, path: &str, authorization: Option<&str>, body: &[u8]) -> Answer {
    let authorization =
        authorization.map_or(String::new(), |value| format!("Authorization: {value}\r\n"));
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: e2e\r\n{authorization}Content-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    let mut conn = Conn::to(node.server().http);
    conn.send(&[head.as_bytes(), body].concat());
    conn.answer()
}

#[test]
fn a_put_that_is_late_doubled_or_out_of_order_changes_nothing() {
    let setup = Setup {
        // Nobody turns offline by silence here.
        flags: &[
            "--beat-interval-ms=30s",
            "--offline-after-ms=60s",
            "--shards=2",
        ],
        presence_flags: &[],
        taps: Some(Manner::PLAIN),
    };
    Split::run(setup, |split| {
        let [bob, first] = [0, 1].map(|at| vec![split.users_of(0, 2)[at].clone()]);
        let mut watchers = [0, 1].map(|node| Watcher::new(split.realtime[node].front(), &bob));
        let sender = split.sender(0);
        // A link whose node took its time to start waits some seconds with what it has to tell.
        sender.beat(&[&first[0]]);
        for node in &split.realtime {
            node.server()
                .expect_metric("greendot_told_total", |told| told >= 1.0);
        }
        for online in [true, false, true] {
            if online {
                sender.beat(&[&bob[0]]);
            } else {
                sender.leave(&[&bob[0]]);
            }
            watchers
                .iter_mut()
                .for_each(|watcher| watcher.expect_all(&bob, online));
        }
        let newest = [0, 1].map(|node: usize| watchers[node].last(&bob[0]).clone());
        let path = format!("/v1/presence/{}", bob[0].replace('-', "%2D"));
        let mut puts = split.realtime[0].http_tap().exchanges("PUT ");
        puts.retain(|put| put.request.body_text().contains(&format!("\"{}\"", bob[0])));
        // One that was not answered in time comes again as it was.
        puts.dedup_by(|again, put| again.request.body == put.request.body);
        assert_eq!(puts.len(), 3);
        let bodies: Vec<&[u8]> = puts.iter().map(|put| &put.request.body[..]).collect();
        assert!(
            puts.iter()
                .all(|put| put.request.line == format!("PUT {path} HTTP/1.1")),
            "{puts:?}"
        );

        let token = format!("Bearer {}", split.key.service_token());
        let node = &split.realtime[0];
        let known = || {
            node.server()
                .metrics()
                .sum("greendot_told_total{kind=\"known\"}")
        };
        let known_before = known();
        for body in [bodies[0], bodies[2], bodies[1], bodies[2], bodies[0]] {
            assert_eq!(put(node, &path, Some(&token), body).status, 204);
        }
        let records: Vec<_> = bodies
            .iter()
            .rev()
            .map(|body| std::str::from_utf8(body).expect("text"))
            .collect();
        let batch = format!("{{\"presence\":[{}]}}", records.join(","));
        assert_eq!(
            put(node, "/v1/presence", Some(&token), batch.as_bytes()).status,
            204
        );
        until("all are counted", || {
            (known() >= known_before + 8.0).then_some(())
        });

        // Without the service token nobody is believed, however new what they say is.
        let forged = json!({
            "user": bob[0], "status": "offline",
            "since": newest[0].since() + 20_000, "last_active": null
        });
        let forged = forged.to_string();
        let longer = format!("{token}0");
        let basic = token.replace("Bearer", "Basic");
        let wrong = format!("Bearer {}", "0".repeat(64));
        for authorization in [
            None,
            Some(&*wrong),
            Some(&*longer),
            Some(&*basic),
            Some("Bearer "),
            Some("Bearer"),
        ] {
            let answer = put(node, &path, authorization, forged.as_bytes());
            answer.expect_problem(401, "unauthorized");
            assert_eq!(
                answer.field("www-authenticate"),
                Some("Bearer"),
                "{authorization:?}"
            );
            put(
                node,
                "/v1/presence",
                authorization,
                format!("{{\"presence\":[{forged}]}}").as_bytes(),
            )
            .expect_problem(401, "unauthorized");
        }

        for (node, watcher) in watchers.iter_mut().enumerate() {
            watcher.read_for(300);
            assert_eq!(watcher.last(&bob[0]), &newest[node]);
            let mut told: Vec<_> = watcher
                .known(&bob[0])
                .iter()
                .filter_map(|state| state.since)
                .collect();
            told.dedup();
            assert!(
                told.is_sorted_by(|earlier, later| earlier < later) && told.len() == 3,
                "{told:?}"
            );
            // The time of his last beat is told as no later than the node's clock, which may be a
            // little behind.
            let fresh = Watcher::new(split.realtime[node].front(), &bob);
            assert_eq!(fresh.view(), watcher.view());
        }

        // One that is newer is news, from whoever has the token.
        let newer = forged.replace("null", &newest[0].last_active().to_string());
        assert_eq!(put(node, &path, Some(&token), newer.as_bytes()).status, 204);
        watchers[0].expect_all(&bob, false);
        assert_eq!(
            watchers[0].last(&bob[0]).since(),
            newest[0].since() + 20_000
        );
    });
}

#[test]
fn a_state_that_is_refused_does_not_hold_up_the_others() {
    let setup = Setup {
        // Too short for the record of a long id.
        flags: &[
            "--beat-interval-ms=30s",
            "--offline-after-ms=60s",
            "--shards=1",
            "--body-bytes-max=200",
        ],
        presence_flags: &[],
        taps: None,
    };
    Split::run(setup, |split| {
        let long = "x".repeat(128);
        let home = split.nodes.of(long.as_bytes());
        let users = split.users_of(home, 3);
        let mut watchers = [0, 1].map(|node| Watcher::new(split.realtime[node].front(), &users));
        let sender = split.sender(home);
        let all: Vec<&str> = std::iter::once(&long)
            .chain(&users)
            .map(String::as_str)
            .collect();
        sender.beat(&all);
        watchers
            .iter_mut()
            .for_each(|watcher| watcher.expect_all(&users, true));
        let presence = split.presence[home].server();
        presence.expect_metric("greendot_relay_states_untold_total", |untold| untold == 2.0);
        split.expect_all_told();
        // Again and again: one line for each node.
        sender.leave(&all);
        watchers
            .iter_mut()
            .for_each(|watcher| watcher.expect_all(&users, false));
        presence.expect_metric("greendot_relay_states_untold_total", |untold| untold == 4.0);
        let log = presence.log();
        assert_eq!(log.matches("refuses some states").count(), 2, "{log}");
    });
}

#[test]
fn each_role_refuses_what_is_the_others() {
    let setup = Setup {
        flags: &["--shards=1"],
        presence_flags: &[],
        taps: None,
    };
    Split::run(setup, |split| {
        let (realtime, presence) = (split.realtime[0].server(), split.presence[0].server());
        presence
            .get("/v1/stream?watch=bob")
            .expect_problem(421, "wrong-role");
        presence
            .post("/v1/stream", &json!({"watch": ["bob"]}))
            .expect_problem(421, "wrong-role");
        presence
            .post("/v1/stream/1.1.1/watch", &json!({"add": ["bob"]}))
            .expect_problem(421, "wrong-role");
        // Nobody publishes to a presence node: it decides.
        let token = format!("Bearer {}", split.key.service_token());
        let body = br#"{"user":"bob","status":"online","since":1,"last_active":1}"#;
        put(&split.presence[0], "/v1/presence/bob", Some(&token), body)
            .expect_problem(405, "method-not-allowed");
        // Nothing of it has made a real-time node know bob.
        until("nothing is known", || {
            (realtime.metrics().sum("greendot_users") <= 1.0).then_some(())
        });
    });
}
