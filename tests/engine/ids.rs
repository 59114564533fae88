//! User ids at their bounds in a token: the same slot as through the other doors, or a refusal.
//! (Path, query, JSON and datagrams are compared on the real server.)

use super::harness::World;
use super::identity::{asked, bearer, cell, request, token_of, world};

const NARROW: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
                      0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const WIDE: &str = "\u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}\
                    \u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}\
                    \u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}\
                    \u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}\u{1f7e2}";

fn known(world: &World) -> u32 {
    world.presence().known()
}

#[test]
fn a_legal_id_in_a_token_is_whom_the_other_doors_mean() {
    let ids = [
        "a", "0", NARROW, WIDE, "b\u{f6}b", "a/b", "%2F", "a+b", "a b", " ", "\"\\", "..", "query",
        "me", "*", "team-*", "\u{a0}", "\u{7e}", "&=?#", "e\u{301}", "\u{e9}", "\u{feff}",
    ];
    let mut world = world(2);
    for (n, id) in ids.into_iter().enumerate() {
        let before = known(&world);
        world.beat(n % 2, &[id]).turn();
        assert_eq!(known(&world), before + 1, "{id:?}");
        let token = token_of(id);
        let peer = world.connect(0);
        world.send(peer, request("GET /v1/stream?user=me", &bearer(&token), ""));
        world.expect_hello(peer, 0);
        assert_eq!(known(&world), before + 1, "{id:?}");
        // Their own id is the one that they may always ask for.
        let body = serde_json::json!({ "users": [id] }).to_string();
        let line = "POST /v1/presence/query";
        let answer = asked(&mut world, 1, line, &bearer(&token), &body);
        assert!(answer.contains("\"status\":\"online\""), "{id:?}: {answer}");
        let said = format!("{{\"user\":{}", serde_json::json!(id));
        assert!(answer.contains(&said), "{id:?}: {answer}");
    }
}

#[test]
fn an_illegal_id_in_a_token_makes_it_void() {
    let too_long = format!("{NARROW}x");
    let too_wide = format!("{WIDE}x");
    let mut world = world(1);
    for id in [
        "", &too_long, &too_wide, "\0", "a\0b", "\n", "\u{1f}", "\u{7f}", "\u{80}", "a\u{9f}",
    ] {
        let lines = bearer(&token_of(id));
        for line in ["GET /v1/stream?user=me", "GET /v1/presence/bob"] {
            let answer = asked(&mut world, 0, line, &lines, "");
            assert_eq!(cell(&answer), "401", "{id:?}: {answer}");
        }
        let answer = asked(
            &mut world,
            0,
            "POST /v1/beat",
            &lines,
            r#"{"users":["bob"]}"#,
        );
        assert_eq!(cell(&answer), "401", "{id:?}: {answer}");
    }
    assert_eq!(known(&world), 0);
}
