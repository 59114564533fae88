//! Redis with an access list: a node may do what SECURITY.md allows it, and needs no less.

use serde_json::json;

use crate::fleet::{expect_homes, fleet, told};
use crate::fleet_says::erase;
use crate::harness::Server;
use crate::receiver::Receiver;

/// What the handbook gives to a node's user, behind its name and its password.
fn rules() -> Vec<&'static str> {
    let handbook = include_str!("../../docs/SECURITY.md");
    let (_, rest) = handbook
        .split_once("ACL SETUSER greendot reset on \">$(cat redis.password)\" ")
        .expect("the handbook has the list");
    let (list, _) = rest.split_once("\n$ ").expect("a command follows");
    let words = list.split_whitespace().filter(|&word| word != "\\");
    words.map(|word| word.trim_matches('\'')).collect()
}

fn post(node: &Server, path: &str, body: serde_json::Value) {
    let status = node.post(path, &body).status;
    assert!((200..300).contains(&status), "{path} {body}: {status}");
}

#[test]
fn a_node_needs_what_the_handbook_allows_it_and_no_less() {
    let Some(fleet) = fleet() else { return };
    let rules = rules();
    let user = ["ACL", "SETUSER", "greendot", "reset", "on", ">word"];
    assert_eq!(fleet.cli(&[&user[..], &rules].concat()), "OK\n");
    fleet.home.keep("redis.password", "word");
    let receiver = Receiver::new(&fleet.home);
    let hook = receiver.flags(&fleet.home);
    let cluster = fleet.url().replace("redis://", "redis://greendot@");
    let cluster = format!("--cluster={cluster}");
    let mut flags = vec![
        &*cluster,
        "--cluster-password-file=redis.password",
        "--forget-after=1d",
    ];
    flags.extend(hook.iter().map(String::as_str));
    let nodes: [Server; 2] = std::array::from_fn(|_| fleet.node_with(&flags));
    nodes.iter().for_each(|node| expect_homes(node, 2));
    let [one, two] = nodes;
    // All that may be said of somebody.
    let _bob = two.stream("user=bob");
    for user in ["carol", "dave", "eve"] {
        post(&one, "/v1/beat", json!({"users": [user]}));
        told(&two, user, true);
    }
    post(
        &two,
        "/v1/status",
        json!({"user": "carol", "status": "away"}),
    );
    post(&two, "/v1/leave", json!({"users": ["carol"]}));
    post(
        &two,
        "/v1/leave",
        json!({"users": ["dave"], "everywhere": true}),
    );
    assert_eq!(erase(&one, "eve").status, 204);
    for user in ["carol", "dave", "eve"] {
        told(&one, user, false);
    }
    assert_eq!(one.get("/v1/online").status, 200);
    // And that its node dies, which another one sees and takes over, webhooks too.
    told(&one, "bob", true);
    two.kill();
    told(&one, "bob", false);
    receiver.expect("bob", "offline");
    assert_eq!(one.get("/readyz").status, 200);
    assert_eq!(one.metrics().sum("greendot_fleet_refused_total"), 0.0);
    assert_eq!(fleet.cli(&["ACL", "LOG"]).trim(), "");
    // The list is no longer than it must be, as far as one server without revocations shows:
    // `doctor` sends what those are.
    let doctor = [
        "doctor",
        &*cluster,
        "--cluster-password-file=redis.password",
        "--key-file=fleet.key",
    ];
    fleet.home.run(&doctor);
    for rule in rules {
        let Some(command) = rule.strip_prefix('+') else {
            continue;
        };
        // Of clusters alone, and while one of its slots moves.
        if command != "asking" && !command.starts_with("cluster|") {
            assert!(fleet.calls(command) > 0, "{command}");
        }
    }
}
