//! `GET /v1/online`: a walk over who is online, and what changes meanwhile.

use std::collections::BTreeMap;

use greendot::engine::Role;
use greendot::wire::User;
use greendot::wire::nodes::Nodes;
use proptest::prelude::*;
use serde_json::Value;

use super::harness::{START, World, json, record, status_and_slug};
use super::identity::{asked, bearer};

fn told(world: &mut World, shard: usize, query: &str) -> String {
    asked(world, shard, &format!("GET /v1/online{query}"), "", "")
}

fn read(answer: &str) -> Value {
    let (_, body) = answer.split_once("\r\n\r\n").expect(answer);
    serde_json::from_str(body).expect(answer)
}

fn cursor(page: &Value) -> String {
    page["cursor"].as_str().expect("a page has one").to_owned()
}

fn users(page: &Value) -> Vec<&str> {
    let records = page["presence"].as_array().expect("records");
    let users = records.iter().map(|record| record["user"].as_str());
    users.flatten().collect()
}

/// A page without its cursor, which is in the last place.
fn without_cursor(answer: &str) -> String {
    let (_, body) = answer.split_once("\r\n\r\n").expect(answer);
    let (page, _) = body.split_once(",\"cursor\":").expect(answer);
    page.to_owned()
}

#[test]
fn a_small_node_is_told_in_one_page() {
    let mut world = World::new(2);
    world
        .at(1_000)
        .beat(0, &["bob", "bella", "carol", "gone", "hidden"]);
    world.pass(1_000).leave(0, &["gone"]).turn();
    let lines = bearer(&world.key().service_token());
    for said in [
        r#"{"user":"hidden","invisible":true}"#,
        r#"{"user":"carol","status":"away"}"#,
    ] {
        let answer = asked(&mut world, 0, "POST /v1/status", &lines, said);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    world.pass(1_000);
    let bob = record("bob", "online", 1_000, 1_000);
    let bella = record("bella", "online", 1_000, 1_000);
    let carol = record("carol", "away", 2_000, 1_000);
    for shard in 0..2 {
        let page = |records: &[&String]| {
            let records: Vec<&str> = records.iter().map(|record| record.as_str()).collect();
            let records = records.join(",");
            let as_of = START + 3_000;
            format!("{{\"presence\":[{records}],\"as_of\":{as_of},\"more\":false")
        };
        for (query, expected) in [
            ("", page(&[&bob, &bella, &carol])),
            ("?prefix=", page(&[&bob, &bella, &carol])),
            ("?prefix=b", page(&[&bob, &bella])),
            ("?prefix=bob", page(&[&bob])),
            ("?prefix=bobo", page(&[])),
            ("?prefix=hid", page(&[])),
        ] {
            let answer = told(&mut world, shard, query);
            assert_eq!(without_cursor(&answer), expected, "{query}");
        }
    }
    let answer = told(&mut world, 0, "?prefx=b&prefix=z");
    let at = cursor(&read(&answer));
    let expected = format!(
        "{{\"presence\":[],\"as_of\":{},\"more\":false,\"cursor\":\"{at}\",\
         \"ignored\":[\"prefx\"]}}",
        START + 3_000
    );
    assert_eq!(answer, json(&expected));
}

#[test]
fn what_changed_meanwhile_is_told_again() {
    let mut world = World::new(2);
    world.at(1_000).beat(0, &["a", "b", "c", "d"]).turn();
    let page = read(&told(&mut world, 0, "?limit=2"));
    assert_eq!(
        (users(&page), &page["more"]),
        (vec!["a", "b"], &true.into())
    );
    let began = page["as_of"].clone();
    assert_eq!(began, START + 1_000);
    // One goes whose page is over and one whose is not; one comes.
    world
        .pass(1_000)
        .leave(0, &["a", "c"])
        .beat(0, &["e"])
        .turn();
    let page = read(&told(
        &mut world,
        1,
        &format!("?limit=2&cursor={}", cursor(&page)),
    ));
    assert_eq!(users(&page), ["d", "e"]);
    assert_eq!((&page["more"], &page["as_of"]), (&true.into(), &began));
    // The second round: all that changed since the first began, whatever it is now.
    world.pass(1_000);
    let page = read(&told(&mut world, 0, &format!("?cursor={}", cursor(&page))));
    assert_eq!(users(&page), ["a", "b", "c", "d", "e"]);
    assert_eq!(page["presence"][0]["status"], "offline");
    assert_eq!(
        page["presence"][1]["status"], "online",
        "of the moment when the walk began"
    );
    assert_eq!(page["presence"][2]["since"], START + 2_000);
    assert_eq!(
        (&page["more"], &page["as_of"]),
        (&false.into(), &(START + 3_000).into())
    );
    // From here on what is news.
    let page = read(&told(&mut world, 0, &format!("?cursor={}", cursor(&page))));
    assert_eq!((users(&page), &page["more"]), (vec![], &false.into()));
    world.pass(5_000).beat(1, &["a"]).turn();
    let next = read(&told(&mut world, 0, &format!("?cursor={}", cursor(&page))));
    assert_eq!((users(&next), &next["more"]), (vec!["a"], &false.into()));
    // A page that got lost is asked for again.
    let again = read(&told(&mut world, 1, &format!("?cursor={}", cursor(&page))));
    assert_eq!(again, next);
}

#[test]
fn a_prefix_of_nobody_costs_a_page_no_more_than_another() {
    let mut world = World::new(1);
    world.checks = false;
    let crowd: Vec<String> = (0..5_000).map(|n| format!("user-{n}")).collect();
    for batch in crowd.chunks(50) {
        let batch: Vec<&str> = batch.iter().map(String::as_str).collect();
        world.beat(0, &batch);
    }
    world.turn();
    let (mut pages, mut at) = (Vec::new(), String::new());
    loop {
        let page = read(&told(&mut world, 0, &format!("?prefix=nobody{at}")));
        assert_eq!(users(&page), [""; 0]);
        at = format!("&cursor={}", cursor(&page));
        let more = page["more"] == true;
        pages.push(more);
        if !more {
            break;
        }
    }
    // 2,048 users are looked at for a page, in either round.
    assert_eq!(pages, [true, true, true, true, true, false]);
}

#[test]
fn a_cursor_is_good_for_its_walk() {
    let mut world = World::new(1);
    world.at(10_000).beat(0, &["a", "b", "c"]).turn();
    let page = read(&told(&mut world, 0, "?limit=1&prefix="));
    let at = cursor(&page);
    let streams = asked(&mut world, 0, "GET /v1/streams?limit=1", "", "");
    assert!(streams.contains("\"cursor\":null"), "{streams}");
    let bad = ("HTTP/1.1 400 Bad Request", "bad-query");
    let gone = ("HTTP/1.1 410 Gone", "cursor-gone");
    for (query, expected) in [
        (format!("?cursor={at}"), ("HTTP/1.1 200 OK", "")),
        (format!("?cursor={at}&limit=1"), ("HTTP/1.1 200 OK", "")),
        (format!("?cursor={at}&prefix=a"), gone),
        (format!("?cursor={at}0"), bad),
        (format!("?cursor={at}00"), bad),
        (format!("?cursor=00{}", &at[2..]), gone),
        (format!("?cursor={}{}", &at[16..], &at[..16]), gone),
        ("?cursor=00".into(), bad),
        ("?limit=1001".into(), bad),
        ("?prefix=a&prefix=b".into(), bad),
        (
            "?prefix=%01".into(),
            ("HTTP/1.1 400 Bad Request", "bad-user"),
        ),
        (
            "?prefix=%ff".into(),
            ("HTTP/1.1 400 Bad Request", "bad-user"),
        ),
    ] {
        let answer = told(&mut world, 0, &query);
        assert_eq!(status_and_slug(&answer), expected, "{query} {answer}");
    }
    // A step forward leaves the order of times as it is, one back does not.
    world.step_wall(60_000).pass(1_000);
    let answer = told(&mut world, 0, &format!("?cursor={at}"));
    assert_eq!(status_and_slug(&answer).0, "HTTP/1.1 200 OK");
    world.step_wall(-30_000).pass(1_000);
    let answer = told(&mut world, 0, &format!("?cursor={at}"));
    assert_eq!(status_and_slug(&answer), gone);
    let again = read(&told(&mut world, 0, "?limit=1"));
    let answer = told(&mut world, 0, &format!("?cursor={}", cursor(&again)));
    assert_eq!(status_and_slug(&answer).0, "HTTP/1.1 200 OK");
    world.restart(1_000);
    let answer = told(&mut world, 0, &format!("?cursor={}", cursor(&again)));
    assert_eq!(status_and_slug(&answer), gone);
}

#[test]
fn a_real_time_node_says_who_knows() {
    let nodes = Nodes::new(["127.0.0.1:1"]);
    let mut world = World::of_role(1, Role::Realtime(nodes.into()), 10);
    let lines = bearer(&world.key().service_token());
    let answer = asked(&mut world, 0, "GET /v1/online", &lines, "");
    assert_eq!(
        status_and_slug(&answer),
        ("HTTP/1.1 421 Misdirected Request", "wrong-role")
    );
    assert!(answer.contains("send this to a presence node"), "{answer}");
}

/// What happens between two pages.
#[derive(Clone, Debug)]
enum Step {
    Beat(usize, Vec<usize>),
    Leave(usize, Vec<usize>),
    Status(usize, usize, &'static str),
    Invisible(usize, usize, bool),
    Pass(u64),
    /// The wall clock goes ahead.
    Ahead(u64),
    /// A page is asked for, of a shard, of so many.
    Page(usize, usize),
}

const SHARDS: usize = 3;

fn step() -> impl Strategy<Value = Step> {
    let shard = 0..SHARDS;
    let user = 0..40_usize;
    let some = prop::collection::vec(user.clone(), 1..6);
    let status = prop::sample::select(vec!["online", "away", "busy"]);
    prop_oneof![
        4 => (shard.clone(), some.clone()).prop_map(|(shard, users)| Step::Beat(shard, users)),
        2 => (shard.clone(), some).prop_map(|(shard, users)| Step::Leave(shard, users)),
        1 => (shard.clone(), user.clone(), status)
            .prop_map(|(shard, user, status)| Step::Status(shard, user, status)),
        1 => (shard.clone(), user, any::<bool>())
            .prop_map(|(shard, user, hidden)| Step::Invisible(shard, user, hidden)),
        2 => prop_oneof![Just(0), 1..30_u64, 1_000..30_000_u64].prop_map(Step::Pass),
        1 => (1_500..100_000_u64).prop_map(Step::Ahead),
        4 => (shard, 1..6_usize).prop_map(|(shard, limit)| Step::Page(shard, limit)),
    ]
}

/// Users of several shards: a chunk is of one.
fn name(user: usize) -> String {
    let team = if user.is_multiple_of(3) {
        "red"
    } else {
        "blue"
    };
    format!("{team}-{user}")
}

/// A backend that keeps a list of who is online by walking.
struct Backend {
    prefix: &'static str,
    cursor: Option<String>,
    /// What was told last of each user: its time, and whether it is there, in which status.
    held: BTreeMap<String, (u64, String)>,
}

impl Backend {
    /// Asks for a page. Returns as of when the round is whole, if this is its last page.
    fn page(&mut self, world: &mut World, shard: usize, limit: usize) -> Option<u64> {
        let cursor = self.cursor.as_ref();
        let cursor = cursor.map_or(String::new(), |cursor| format!("&cursor={cursor}"));
        let query = format!("?prefix={}&limit={limit}{cursor}", self.prefix);
        let answer = told(world, shard, &query);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let page = read(&answer);
        let records = page["presence"].as_array().expect("records");
        assert!(records.len() <= limit);
        for record in records {
            let user = record["user"].as_str().expect("a user");
            assert!(user.starts_with(self.prefix));
            let since = record["since"].as_u64().expect("who is told has changed");
            let status = record["status"].as_str().expect("a status").to_owned();
            let before = self.held.insert(user.to_owned(), (since, status));
            assert!(before.is_none_or(|(before, _)| before <= since), "{user}");
        }
        self.cursor = Some(page["cursor"].as_str().expect("a cursor").to_owned());
        let whole = page["more"] == false;
        whole.then(|| page["as_of"].as_u64().expect("a time"))
    }

    /// What is held is what everybody is told, but for what was published later than `as_of`.
    fn check(&self, world: &mut World, as_of: u64) {
        for user in (0..40)
            .map(name)
            .filter(|user| user.starts_with(self.prefix))
        {
            let truth: Value = serde_json::from_str(&world.ask(0, &user)).expect("a record");
            let since = truth["since"].as_u64().unwrap_or_default();
            if since >= as_of {
                continue;
            }
            let status = truth["status"].as_str().expect("a status");
            match self.held.get(&user) {
                Some(held) => assert_eq!(held, &(since, status.to_owned()), "{user}"),
                // Nobody was ever told of it: it is as one who has gone.
                None => assert_eq!(status, "offline", "{user}"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever happens during a walk, after each round what is held is the truth as of when the
    /// round began, or later; and when nothing happens any more it is the truth.
    #[test]
    fn a_walk_reconciles_to_the_truth(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new(SHARDS as u16);
        world.checks = false;
        world.at(1_000);
        let lines = bearer(&world.key().service_token());
        // Slots of all shards.
        for user in 0..40 {
            if user % 10 == 0 {
                world.make_slots(user as u32 / 10 * 4_096);
            }
            let user = name(user);
            let user = User::parse(user.as_bytes()).expect("a user");
            world.presence().intern(user).expect("there is room");
        }
        let mut backends = ["", "red-"].map(|prefix| Backend {
            prefix,
            cursor: None,
            held: BTreeMap::new(),
        });
        for step in steps {
            let names = |users: &[usize]| users.iter().map(|user| name(*user)).collect::<Vec<_>>();
            match step {
                Step::Beat(shard, users) => {
                    let users = names(&users);
                    let users: Vec<&str> = users.iter().map(String::as_str).collect();
                    world.beat(shard, &users);
                }
                Step::Leave(shard, users) => {
                    let users = names(&users);
                    let users: Vec<&str> = users.iter().map(String::as_str).collect();
                    world.leave(shard, &users);
                }
                Step::Status(shard, user, status) => {
                    let said = format!("{{\"user\":\"{}\",\"status\":\"{status}\"}}", name(user));
                    asked(&mut world, shard, "POST /v1/status", &lines, &said);
                }
                Step::Invisible(shard, user, hidden) => {
                    let said =
                        format!("{{\"user\":\"{}\",\"invisible\":{hidden}}}", name(user));
                    asked(&mut world, shard, "POST /v1/status", &lines, &said);
                }
                Step::Pass(ms) => {
                    world.pass(ms);
                }
                Step::Ahead(ms) => {
                    world.step_wall(ms as i64);
                }
                Step::Page(shard, limit) => {
                    for backend in &mut backends {
                        if let Some(as_of) = backend.page(&mut world, shard, limit) {
                            backend.check(&mut world, as_of);
                        }
                    }
                }
            }
        }
        // Nobody does anything any more: whoever is still there falls silent, and all is told.
        world.pass(120_000);
        for backend in &mut backends {
            for _ in 0..2 {
                while backend.page(&mut world, 1, 7).is_none() {}
            }
            backend.check(&mut world, u64::MAX);
        }
    }
}
