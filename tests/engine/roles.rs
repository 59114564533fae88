//! The two halves of the platform: what a node of one role says, and what it hands over for the
//! other.

use std::sync::Arc;

use greendot::engine::{Mail, Outbound, REVOUCH_MS, Role, SETTLE_MS, Whom, adopt_answers};
use greendot::metrics::{Counter, Gauge};
use greendot::time::Unix;
use greendot::wire::beat::{FleetKey, Keys, open};
use greendot::wire::nodes::Nodes;
use greendot::wire::record::{Told, parse_told_list};

use super::harness::{
    NO_CONTENT, Peer, START, World, json, problem, record, request, snapshot, status_and_slug,
    told, told_of_many, unseen, without_pings,
};

const NODES: [&str; 2] = ["10.0.0.1:8081", "10.0.0.2:8081"];

fn realtime(shards: u16) -> World {
    let mut world = World::of_role(shards, Role::Realtime(Arc::new(Nodes::new(NODES))), 10_000);
    world.followed = true;
    world.hear();
    world
}

/// Something that a presence node told was missed.
fn miss(world: &World, node: usize) {
    world
        .presence()
        .begin_asking(node, |user| node_of(user.as_str()) == node);
    world.presence().asked_everything(node);
}

/// All that a pass asked for has been answered.
fn settled(world: &mut World, node: usize) {
    world.tell_all(&Mail::Settled { node, pass: 1 });
}

fn node_of(user: &str) -> usize {
    Nodes::new(NODES).of(user.as_bytes())
}

fn unknown(user: &str) -> String {
    record(user, "unknown", None, None)
}

/// A snapshot after which there is still something to be asked: no id.
fn snapshot_so_far(records: &[String]) -> String {
    format!("event: snapshot\ndata: {}\n\n", list(records))
}

/// A PUT with the fleet's service token.
fn put(world: &World, target: &str, body: &str) -> String {
    let token = world.key().service_token();
    put_as(&format!("Authorization: Bearer {token}\r\n"), target, body)
}

fn put_as(header: &str, target: &str, body: &str) -> String {
    let bytes = body.len();
    format!(
        "PUT {target} HTTP/1.1\r\nHost: a\r\n{header}Content-Type: application/json\r\n\
         Content-Length: {bytes}\r\n\r\n{body}"
    )
}

fn list(records: &[String]) -> String {
    format!("{{\"presence\":[{}]}}", records.join(","))
}

/// The records of a list, all of which are good.
fn records_of(list: &str) -> Vec<Told> {
    let told = parse_told_list(list.as_bytes(), 100).expect("a list");
    let told: Result<_, _> = told.into_iter().collect();
    told.expect("records")
}

/// The presence node of `users` answers as of now with these records.
fn answer(world: &mut World, records: &[String]) {
    let mail = answered(world, records);
    world.tell_all(&mail);
}

/// The same, taken over and not read by any shard yet.
fn answered(world: &World, records: &[String]) -> Mail {
    let told = records_of(&list(records));
    let now = world.now();
    let (answered, refused) = adopt_answers(world.presence(), &told, now.unix, now);
    assert_eq!(refused, 0);
    Mail::Answered(Arc::new(answered))
}

/// Who was asked about, by node.
fn asked(world: &mut World) -> Vec<(usize, Vec<String>)> {
    let asks = world
        .outbound()
        .into_iter()
        .filter_map(|(_, outbound)| match outbound {
            Outbound::Asks { node, users, .. } => Some((
                node,
                users.into_iter().map(String::from).collect::<Vec<_>>(),
            )),
            _ => None,
        });
    // A pass that goes on says so even if it finds nobody.
    asks.filter(|(_, users)| !users.is_empty()).collect()
}

/// For whom beats were sent: when, to which node, for whom.
fn beats(world: &mut World) -> Vec<(u64, usize, Vec<String>)> {
    let keys = Keys::single(world.key().clone());
    let now = world.now().unix;
    let mut sent = Vec::new();
    for (_, outbound) in world.outbound() {
        if let Outbound::Beats { node, datagrams } = outbound {
            for datagram in datagrams.iter() {
                let beats = open(datagram, &keys, now, 30_000).expect("a sealed datagram");
                let users = beats.users().map(|user| user.as_str().to_owned()).collect();
                sent.push((beats.sent_at.ms() - START, node, users));
            }
        }
    }
    sent
}

#[test]
fn whoever_is_not_known_is_unknown_until_the_answer_comes() {
    for shards in [1, 3] {
        let mut world = realtime(shards);
        let far = usize::from(shards) - 1;
        let (alice, _) = world.stream(0, "watch=bob&watch=carol", 2);
        world.expect(alice, snapshot_so_far(&[unknown("bob"), unknown("carol")]));
        let (eve, _) = world.stream(far, "watch=carol", 1);
        world.expect(eve, snapshot_so_far(&[unknown("carol")]));
        let mut asks = asked(&mut world);
        asks.sort();
        let mut expected = [
            (node_of("bob"), vec!["bob".to_owned()]),
            (node_of("carol"), vec!["carol".into()]),
        ]
        .to_vec();
        expected.push((node_of("carol"), vec!["carol".into()]));
        expected.sort();
        assert_eq!(asks, expected);

        world.at(40);
        let bob = record("bob", "online", 10, 30);
        answer(&mut world, &[bob.clone(), unseen("carol")]);
        world.expect(alice, told_of_many(&bob) + &told(40, &unseen("carol")));
        world.expect(eve, told(40, &unseen("carol")));

        // Known now, on every shard: nobody need be asked.
        let (dave, _) = world.stream(far, "watch=bob", 1);
        world.expect(dave, snapshot(40, &[bob]));
        assert_eq!(asked(&mut world), []);
        // Never seen leaves no slot.
        assert_eq!(world.presence().users(), 1);
    }
}

#[test]
fn published_states_are_told_once_and_in_order() {
    for shards in [1, 3] {
        let mut world = realtime(shards);
        let far = usize::from(shards) - 1;
        let (alice, _) = world.stream(0, "watch=bob", 1);
        world.expect(alice, snapshot_so_far(&[unknown("bob")]));
        let node = world.connect(far);
        let publish = |world: &mut World, target: &str, body: &str| {
            let request = put(world, target, body);
            world.send(node, request).expect(node, NO_CONTENT);
        };
        let online = record("bob", "online", 100, 100);
        world.at(120);
        publish(&mut world, "/v1/presence/bob", &online);
        world.expect(alice, told_of_many(&online));
        // Nothing new, but now it is sure.
        answer(&mut world, std::slice::from_ref(&online));
        world.expect_nothing(alice);
        publish(&mut world, "/v1/presence/bob", &online);
        world.expect_nothing(alice);
        let offline = record("bob", "offline", 30_000, 5_000);
        world.at(30_010);
        publish(
            &mut world,
            "/v1/presence",
            &list(&[offline.clone(), record("x", "online", 30_000, 30_000)]),
        );
        let received = world.received(alice);
        assert_eq!(without_pings(&received), told(30_010, &offline));
        // Late, and out of order.
        publish(&mut world, "/v1/presence", &list(&[online]));
        world.expect_nothing(alice);
        let counts =
            [Counter::ToldAdopted, Counter::ToldKnown].map(|counter| world.count(far, counter));
        assert_eq!(counts, [3, 2]);
    }
}

#[test]
fn who_comes_for_the_first_time_is_asked_about_so_that_ids_come() {
    for shards in [1, 3] {
        let mut world = realtime(shards);
        let node = world.connect(usize::from(shards) - 1);
        let publish = |world: &mut World, user: &str, body: &str| {
            let request = put(world, &format!("/v1/presence/{user}"), body);
            world.send(node, request).expect(node, NO_CONTENT);
        };
        let carol = record("carol", "online", 0, 0);
        publish(&mut world, "carol", &carol);
        let (alice, _) = world.stream(0, "watch=bob&watch=carol", 2);
        world.expect(alice, snapshot_so_far(&[carol.clone(), unknown("bob")]));
        asked(&mut world);
        answer(&mut world, &[unseen("bob")]);
        world.expect(alice, told_of_many(&unseen("bob")));
        answer(&mut world, std::slice::from_ref(&carol));
        assert_eq!(asked(&mut world), []);

        world.at(20);
        let bob = record("bob", "online", 10, 10);
        publish(&mut world, "bob", &bob);
        world.expect(alice, told_of_many(&bob));
        assert_eq!(asked(&mut world), [(node_of("bob"), vec!["bob".into()])]);
        answer(&mut world, &[bob]);
        world.at(40);
        let carol = record("carol", "offline", 30, 0);
        publish(&mut world, "carol", &carol);
        world.expect(alice, told(40, &carol));
    }
}

/// Who was erased may be back, and this node have missed it: it was down when it was told.
#[test]
fn who_is_told_to_be_erased_is_asked_about_by_a_node_that_knew_nothing_of_them() {
    let mut world = realtime(1);
    let (alice, _) = world.stream(0, "watch=bob", 1);
    world.expect(alice, snapshot_so_far(&[unknown("bob")]));
    asked(&mut world);
    world.at(20);
    let node = world.connect(0);
    let token = world.key().service_token();
    let header = world.next_feed_header(node_of("bob"));
    let header = format!("Authorization: Bearer {token}\r\n{header}");
    let erased = record("bob", "offline", 10, None);
    world.send(node, put_as(&header, "/v1/presence/bob", &erased));
    world.expect(alice, told_of_many(&erased));
    assert_eq!(asked(&mut world), [(node_of("bob"), vec!["bob".into()])]);
    let back = record("bob", "online", 15, 15);
    answer(&mut world, std::slice::from_ref(&back));
    assert!(world.received(alice).contains(&back));
}

/// A stream beats on for whoever was erased, so the id is back before its node is told.
#[test]
fn streams_of_before_an_erasure_end_though_somebody_is_back_and_is_told_first() {
    for shards in [1, 3] {
        let far = usize::from(shards) - 1;
        let mut world = realtime(shards);
        let (old, _) = world.stream(far, "user=bob", 0);
        world.at(30);
        let (new, _) = world.stream(far, "user=bob", 0);
        world.at(40);
        let node = world.connect(0);
        for body in [
            record("bob", "online", 25, 25),
            record("bob", "offline", 20, None),
        ] {
            let token = world.key().service_token();
            let header = world.next_feed_header(node_of("bob"));
            let header = format!("Authorization: Bearer {token}\r\n{header}");
            world.send(node, put_as(&header, "/v1/presence/bob", &body));
            world.turn();
        }
        assert!(world.received(old).contains("event: bye\n"));
        world.expect_open(new);
    }
}

#[test]
fn an_answer_older_than_what_was_told_in_step_changes_nothing() {
    let mut world = realtime(1);
    let (alice, _) = world.stream(0, "watch=bob", 1);
    world.expect(alice, snapshot_so_far(&[unknown("bob")]));
    world.at(100);
    let node = world.connect(0);
    let (before, after) = (
        record("bob", "offline", 10, 5),
        record("bob", "online", 90, 90),
    );
    let header = world.next_feed_header(node_of("bob"));
    let token = world.key().service_token();
    let header = format!("Authorization: Bearer {token}\r\n{header}");
    let request = put_as(&header, "/v1/presence/bob", &after);
    // It says which number it holds, from which its source goes on.
    let place = header.rsplit("Greendot-Feed: ").next().expect("the header");
    let words: Vec<&str> = place.split_whitespace().collect();
    let held = format!("Greendot-Feed: {} {}\r\n", words[0], words[2]);
    let taken = NO_CONTENT.replacen("\r\n\r\n", &format!("\r\n{held}\r\n"), 1);
    let answer = world.send(node, request).received(node);
    let (rest, life) = answer.split_once("Greendot-Life: ").expect(&answer);
    let (life, rest_too) = life.split_once("\r\n").expect(&answer);
    assert!(u64::from_str_radix(life, 16).is_ok(), "{answer}");
    assert_eq!(format!("{rest}{rest_too}"), taken);
    // Told in step: it is sure, whatever is still awaited.
    world.expect(alice, told(100, &after));
    // Computed at 80, read at 100.
    let answers = records_of(&list(&[before]));
    let as_of = Unix::from_ms(START + 80);
    let (answered, _) = adopt_answers(world.presence(), &answers, as_of, world.now());
    world.tell_all(&Mail::Answered(Arc::new(answered)));
    world.expect_nothing(alice);
    world.at(120);
    let gone = record("bob", "offline", 110, 90);
    let request = put(&world, "/v1/presence/bob", &gone);
    world.send(node, request).expect(node, NO_CONTENT);
    world.expect(alice, told(120, &gone));
}

/// Microseconds, or a clock an hour ahead: it would stand against all that is true until then.
#[test]
fn a_since_that_is_yet_to_come_is_refused_and_freezes_nobody() {
    let mut world = realtime(1);
    let (alice, _) = world.stream(0, "watch=bob&watch=carol", 2);
    answer(
        &mut world,
        &[
            record("bob", "online", 10, 10),
            record("carol", "online", 20, 20),
        ],
    );
    world.received(alice);
    asked(&mut world);
    world.at(1_000);
    let node = world.connect(0);
    let skew_ms = world.settings.beat_skew_max_ms;
    let late = |user: &str, since: u64| record(user, "offline", since, 10);
    let refused = |index: usize| {
        let item = format!("{{\"index\":{index},\"reason\":\"since_ahead\"}}");
        json(&format!("{{\"refused\":[{item}],\"refused_total\":1}}"))
    };
    for since in [1_001 + skew_ms, 3_600_000, START * 1_000] {
        // The other one counts.
        let carol = record("carol", "offline", 900, 800);
        let request = put(&world, "/v1/presence", &list(&[carol, late("bob", since)]));
        world.send(node, request).expect(node, refused(1));
    }
    let carol = record("carol", "offline", 900, 800);
    world.expect(alice, told(1_000, &carol));
    // By hand nobody is asked; a source that says so is.
    assert_eq!(asked(&mut world), []);
    let header = world.next_feed_header(node_of("bob"));
    let token = world.key().service_token();
    let header = format!("Authorization: Bearer {token}\r\n{header}");
    let request = put_as(&header, "/v1/presence/bob", &late("bob", 3_600_000));
    world.send(node, request);
    let answer = world.received(node);
    assert!(
        answer.ends_with("\"reason\":\"since_ahead\"}],\"refused_total\":1}"),
        "{answer}"
    );
    assert_eq!(asked(&mut world), [(node_of("bob"), vec!["bob".into()])]);
    // As far ahead as a clock may be.
    world.at(1_100);
    let request = put(&world, "/v1/presence/bob", &late("bob", 1_100 + skew_ms));
    world.send(node, request).expect(node, NO_CONTENT);
    assert!(
        world
            .received(alice)
            .contains("\"user\":\"bob\",\"status\":\"offline\"")
    );
}

#[test]
fn only_who_proves_to_be_a_node_publishes() {
    let mut world = realtime(1);
    let bob = record("bob", "online", 0, 0);
    let refused = problem(
        "401 Unauthorized",
        "unauthorized",
        "The request does not prove that it may do this",
        "this call takes the token of a node, or a service key with the scope publish, as \
         Authorization: Bearer ..; all nodes share one file of fleet keys",
        "WWW-Authenticate: Bearer\r\n",
    );
    let other = format!(
        "Authorization: Bearer {}\r\n",
        FleetKey::new([8; 32]).service_token()
    );
    for header in ["", "Authorization: Basic eA==\r\n", &other] {
        let peer = world.connect(0);
        world
            .send(peer, put_as(header, "/v1/presence/bob", &bob))
            .expect(peer, &refused);
    }
    assert_eq!(world.presence().users(), 0);
    let bad = |world: &mut World, target: &str, body: &str| {
        let peer = world.connect(0);
        let request = put(world, target, body);
        world.send(peer, request);
        let answer = world.received(peer);
        let (status, slug) = status_and_slug(&answer);
        (status.to_owned(), slug.to_owned())
    };
    let (bad_request, bad_user, bad_json) = ("HTTP/1.1 400 Bad Request", "bad-user", "bad-json");
    for (target, body, slug) in [
        ("/v1/presence/carol", bob.as_str(), bad_user),
        ("/v1/presence/%zz", &bob, bad_user),
        ("/v1/presence/bob", "{}", bad_json),
        ("/v1/presence", &bob, bad_json),
        ("/v1/presence/bob", &unknown("bob"), bad_json),
    ] {
        assert_eq!(
            bad(&mut world, target, body),
            (bad_request.into(), slug.into()),
            "{target} {body}"
        );
    }
    let many: Vec<String> = (0..1_001)
        .map(|n| record(&format!("u{n}"), "online", 1, 1))
        .collect();
    let (status, slug) = bad(&mut world, "/v1/presence", &list(&many));
    assert_eq!(
        (status.as_str(), slug.as_str()),
        ("HTTP/1.1 413 Content Too Large", "too-many-users")
    );
    assert_eq!(world.presence().users(), 0);
}

#[test]
fn a_node_publishes_only_its_own_users_once_it_has_been_seen() {
    let mut world = World::of_role(1, Role::Realtime(Arc::new(Nodes::new(NODES))), 10_000);
    let owner = node_of("bob");
    let online = record("bob", "online", 100, 100);
    let publish = |world: &mut World, birth: u64, records: &[String]| {
        let token = world.key().service_token();
        let header = format!(
            "Authorization: Bearer {token}\r\nGreendot-Feed: {birth:016x} 0 1 {}\r\n",
            world.now().unix.ms()
        );
        let peer = world.connect(0);
        world.send(peer, put_as(&header, "/v1/presence", &list(records)));
        let answer = world.received(peer);
        answer.split(' ').nth(1).unwrap_or("").to_owned()
    };
    world.at(200);
    assert_eq!(
        publish(&mut world, 7, std::slice::from_ref(&online)),
        "503",
        "not seen yet"
    );
    let answers = |world: &World, source: usize, birth: u64| {
        let now = world.now();
        let clock = now.unix.plus_ms(1);
        world
            .presence()
            .source_answered(source, birth, clock, now.mono, now.mono);
    };
    answers(&world, owner, 7);
    answers(&world, 1 - owner, 8);
    assert_eq!(publish(&mut world, 7, &[online]), "204");
    // Bob was the other node's before; it hears no more beats of him.
    let late = record("bob", "offline", 190, 50);
    assert_eq!(publish(&mut world, 8, &[late]), "204");
    assert_eq!(world.presence().online(), 1);
    assert_eq!(world.count(0, Counter::ToldForeign), 1);
    // A life that is over publishes no more.
    assert_eq!(world.presence().untold_ms(owner, world.now().mono), Some(0));
    answers(&world, owner, 9);
    assert_eq!(publish(&mut world, 7, &[]), "503");
    assert_eq!(world.presence().untold_ms(owner, world.now().mono), None);
}

#[test]
fn whoever_is_called_query_is_published_like_anybody() {
    let mut world = realtime(1);
    let (alice, _) = world.stream(0, "watch=query", 1);
    world.received(alice);
    let node = world.connect(0);
    let online = record("query", "online", 0, 0);
    let request = put(&world, "/v1/presence/query", &online);
    world.send(node, request).expect(node, NO_CONTENT);
    world.expect(alice, told_of_many(&online));
}

#[test]
fn a_full_node_is_still_told() {
    let mut world = World::with_role(Role::Realtime(Arc::new(Nodes::new(NODES))), |settings| {
        settings.conns_max = 1
    });
    world.connect(0);
    let node = world.connect(0);
    let request = put(&world, "/v1/presence/bob", &record("bob", "online", 0, 0));
    let answer = {
        world.send(node, request);
        world.received(node)
    };
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    assert_eq!(world.presence().online(), 1);
    // Nobody else gets in that way.
    let stranger = world.connect(0);
    world.send(
        stranger,
        put_as("", "/v1/presence/bob", &record("bob", "online", 0, 0)),
    );
    assert!(world.received(stranger).starts_with("HTTP/1.1 401 "));
}

#[test]
fn a_full_node_still_answers_the_other_half() {
    let mut world = World::with_role(Role::Presence, |settings| settings.conns_max = 1);
    world.connect(0);
    let query = |header: &str| {
        let body = "{\"users\":[\"bob\"]}";
        let bytes = body.len();
        format!(
            "POST /v1/presence/query HTTP/1.1\r\nHost: a\r\n{header}Content-Type: \
             application/json\r\nContent-Length: {bytes}\r\n\r\n{body}"
        )
    };
    let (token, wrong) = (world.key().service_token(), "0".repeat(64));
    for (header, status) in [
        (format!("Authorization: Bearer {token}\r\n"), 200),
        (format!("Authorization: Bearer {wrong}\r\n"), 503),
        (String::new(), 503),
    ] {
        let peer = world.connect(0);
        world.send(peer, query(&header));
        let answer = world.received(peer);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
}

#[test]
fn what_was_not_asked_about_for_want_of_room_is_asked_about_later() {
    let mut world = realtime(1);
    let users: Vec<String> = (0..6).map(|n| format!("u{n}")).collect();
    let watch: Vec<String> = users.iter().map(|user| format!("watch={user}")).collect();
    world.stream(0, &watch.join("&"), 6);
    asked(&mut world);
    // Half of them are answered for: one by slot, the others as never seen.
    answer(
        &mut world,
        &[record("u0", "online", 0, 0), unseen("u1"), unseen("u2")],
    );
    for node in 0..NODES.len() {
        let (pass, whom, not_before) = (1, Whom::Unsure, world.now().mono);
        world.tell_all(&Mail::Reask {
            node,
            pass,
            whom,
            not_before,
        });
    }
    let mut asks: Vec<String> = asked(&mut world)
        .into_iter()
        .flat_map(|(_, users)| users)
        .collect();
    asks.sort();
    assert_eq!(asks, users[3..]);
}

#[test]
fn who_finds_no_room_is_said_and_does_not_hold_up_the_others() {
    let mut world = World::of_role(1, Role::Realtime(Arc::new(Nodes::new(NODES))), 2);
    let peer = world.connect(0);
    let records: Vec<String> = ["a", "b", "c", "d"]
        .map(|user| record(user, "online", 1, 1))
        .into();
    let request = put(&world, "/v1/presence", &list(&records));
    world.send(peer, request).expect(
        peer,
        json(
            "{\"refused\":[{\"index\":2,\"reason\":\"users_max\"},\
                 {\"index\":3,\"reason\":\"users_max\"}],\"refused_total\":2}",
        ),
    );
    assert_eq!(
        (world.presence().users(), world.presence().online()),
        (2, 2)
    );
    assert_eq!(world.count(0, Counter::LimitUsers), 2);
}

#[test]
fn a_holder_is_vouched_for_at_once_and_then_in_turn() {
    let mut world = realtime(1);
    world.at(1_234);
    world.stream(0, "user=bob", 0);
    assert_eq!(
        beats(&mut world),
        [(1_234, node_of("bob"), vec!["bob".to_owned()])]
    );
    let mut seen = Vec::new();
    for ms in (1_300..42_000).step_by(50) {
        world.at(ms);
        seen.extend(beats(&mut world).into_iter().map(|(_, node, users)| {
            assert_eq!((node, users), (node_of("bob"), vec!["bob".to_owned()]));
            ms
        }));
    }
    // Once an interval, at most a step and a linger late.
    assert_eq!(seen.len(), 4, "{seen:?}");
    assert!(
        seen.windows(2)
            .all(|pair| (9_700..=10_300).contains(&(pair[1] - pair[0]))),
        "{seen:?}"
    );
}

/// Its answer is passed on as a datagram; whoever gives none is not vouched for. A presence node
/// that is back may have lost some: then it is asked at once.
#[test]
fn a_holder_that_beats_for_itself_is_vouched_for_when_it_answers() {
    let mut world = realtime(2);
    let (alice, stream) = world.stream(1, "user=alice&vouch=self", 0);
    let node = node_of("alice");
    assert_eq!(beats(&mut world), [(0, node, vec!["alice".to_owned()])]);
    world.at(20_050);
    assert_eq!(beats(&mut world), []);
    assert_eq!(without_pings(&world.received(alice)), snapshot(0, &[]));
    let holder = world.connect(0);
    let target = format!("/v1/stream/{stream}/beat");
    world.send(
        holder,
        format!("POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"),
    );
    world.expect(holder, NO_CONTENT);
    world.at(20_300);
    assert_eq!(
        beats(&mut world),
        [(20_050, node, vec!["alice".to_owned()])]
    );
    world.expect_nothing(alice);
    let found_at = world.now().mono;
    world.tell_all(&Mail::Revouch { node, found_at });
    world.at(20_300 + REVOUCH_MS);
    assert!(world.received(alice).starts_with("event: ping\n"));
    assert_eq!(beats(&mut world), []);
}

#[test]
fn beats_fill_datagrams_and_are_spread_over_the_interval() {
    let mut world = realtime(1);
    world.checks = false;
    let users: Vec<String> = (0..4_000).map(|n| format!("user-{n:04}")).collect();
    for user in &users {
        world.stream(0, &format!("user={user}"), 0);
    }
    beats(&mut world);
    world.at(10_000);
    beats(&mut world);
    let mut by_second = Vec::new();
    let (mut entries, mut datagrams) = (std::collections::BTreeMap::new(), 0);
    for second in 11..=20 {
        world.at(second * 1_000);
        let sent = beats(&mut world);
        datagrams += sent.len();
        by_second.push(sent.iter().map(|(.., users)| users.len()).sum::<usize>());
        for (_, node, users) in sent {
            for user in users {
                assert_eq!(node, node_of(&user));
                *entries.entry(user).or_insert(0) += 1;
            }
        }
    }
    assert!(
        by_second.iter().all(|count| (350..=450).contains(count)),
        "{by_second:?}"
    );
    let total: i32 = entries.values().sum();
    assert!(
        (3_900..=4_100).contains(&total) && entries.len() > 3_850,
        "{total} {}",
        entries.len()
    );
    // 136 entries of ten bytes fit; a datagram leaves when it is full, or 200 ms old.
    assert!(datagrams <= 2 * 10 * 6, "{datagrams}");
}

#[test]
fn a_node_that_was_out_of_sight_is_asked_about_everything_watched() {
    let mut world = realtime(2);
    let (alice, _) = world.stream(0, "watch=bob&watch=carol&watch=nobody", 3);
    let (eve, _) = world.stream(1, "watch=bob", 1);
    let bob = record("bob", "online", 10, 30);
    answer(
        &mut world,
        &[
            bob.clone(),
            record("carol", "offline", 20, 15),
            unseen("nobody"),
        ],
    );
    let peers: [Peer; 2] = [alice, eve];
    for peer in peers {
        world.received(peer);
    }
    asked(&mut world);

    world.at(100);
    let lost = node_of("bob");
    miss(&world, lost);
    let not_before = world.now().mono;
    world.tell_all(&Mail::Reask {
        node: lost,
        pass: 1,
        whom: Whom::Everybody,
        not_before,
    });
    let mut asks: Vec<String> = Vec::new();
    for (node, users) in asked(&mut world) {
        assert_eq!(node, lost);
        asks.extend(users);
    }
    asks.sort();
    let mut expected: Vec<String> = ["bob", "bob", "carol", "nobody"]
        .into_iter()
        .filter(|user| node_of(user) == lost)
        .map(String::from)
        .collect();
    expected.sort();
    assert_eq!(asks, expected);
    // What is known stands, and is told to whoever asks meanwhile, who has it asked again.
    let (dave, _) = world.stream(0, "watch=bob", 1);
    world.expect(dave, snapshot_so_far(&[bob]));
    assert_eq!(asked(&mut world), [(lost, vec!["bob".to_owned()])]);

    // He went offline while nobody could say so.
    let gone = record("bob", "offline", 9_000, 5_000);
    world.at(9_500);
    let mail = answered(&world, std::slice::from_ref(&gone));
    world.post_all(&mail);
    settled(&mut world, lost);
    for peer in [alice, eve, dave] {
        world.expect(peer, told(9_500, &gone));
    }
}

/// A stream that had been told everything before the gap: an id in between would say so of what the
/// gap held, and whoever came back elsewhere with it would not be told.
#[test]
fn after_a_gap_ids_come_when_the_answers_have_come_by_mail() {
    for shards in [1, 3] {
        let mut world = realtime(shards);
        let (alice, _) = world.stream(0, "watch=bob&watch=carol&watch=nobody", 3);
        let bob = record("bob", "online", 10, 10);
        let carol = record("carol", "online", 20, 20);
        answer(&mut world, &[bob, carol, unseen("nobody")]);
        world.received(alice);
        let peer = world.connect(usize::from(shards) - 1);
        let publish = |world: &mut World, record: &str| {
            let request = put(world, "/v1/presence", &list(&[record.to_owned()]));
            world.send(peer, request).expect(peer, NO_CONTENT);
        };
        world.at(100);
        let away = record("carol", "offline", 90, 80);
        publish(&mut world, &away);
        world.expect(alice, told(100, &away));

        // The last answer has been taken over, and is on its way to this shard.
        let lost = node_of("bob");
        let not_before = world.now().mono;
        world.tell_all(&Mail::Reask {
            node: lost,
            pass: 1,
            whom: Whom::Everybody,
            not_before,
        });
        asked(&mut world);
        world.at(200);
        let back = record("carol", "online", 190, 190);
        publish(&mut world, &back);
        world.expect(alice, told_of_many(&back));
        let gone = record("bob", "offline", 50, 40);
        answer(&mut world, std::slice::from_ref(&gone));
        world.tell_all(&Mail::Settled {
            node: lost,
            pass: 0,
        });
        world.expect(alice, told_of_many(&gone));
        settled(&mut world, lost);
        world.at(300);
        let away = record("carol", "offline", 290, 280);
        publish(&mut world, &away);
        world.expect(alice, told(300, &away));
    }
}

#[test]
fn a_node_that_was_cut_off_hears_of_everybody_before_it_is_asked() {
    let mut world = realtime(1);
    for user in 0..300 {
        world.stream(0, &format!("user=u{user}&watch=bob"), 1);
    }
    answer(&mut world, &[record("bob", "online", 0, 0)]);
    world.at(30_000);
    world.outbound();
    let node = node_of("bob");
    miss(&world, node);
    let found_at = world.now().mono;
    world.tell_all(&Mail::Revouch { node, found_at });
    world.tell_all(&Mail::Reask {
        node,
        pass: 1,
        whom: Whom::Everybody,
        not_before: found_at.plus_ms(SETTLE_MS),
    });
    world.at(31_300);
    // The lost one's within a second; the other's in their turn, some of theirs too.
    let mut vouched = [0, 0];
    for (_, node, users) in beats(&mut world) {
        vouched[node] += users.len();
    }
    let of_node = (0..300)
        .filter(|n| node_of(&format!("u{n}")) == node)
        .count();
    assert!(
        (of_node..=of_node + 30).contains(&vouched[node]),
        "{vouched:?}"
    );
    assert!((5..=30).contains(&vouched[1 - node]), "{vouched:?}");
    world.at(30_000 + SETTLE_MS - 1);
    let before = world.outbound();
    assert!(
        before
            .iter()
            // And a beat that is looked for.
            .all(|(_, outbound)| matches!(
                outbound,
                Outbound::Beats { .. } | Outbound::Sample { .. }
            ))
    );
    world.at(30_000 + SETTLE_MS);
    assert_eq!(asked(&mut world), [(node, vec!["bob".to_owned()])]);
}

#[test]
fn while_a_node_is_out_of_sight_nobody_is_told_everything() {
    let mut world = realtime(1);
    world.at(100);
    let (alice, _) = world.stream(0, "watch=bob", 1);
    answer(&mut world, &[record("bob", "online", 0, 0)]);
    world.received(alice);
    world.followed = false;
    world.presence().source_failed(0);
    let late = record("carol", "online", 5, 5);
    answer(&mut world, std::slice::from_ref(&late));
    let (eve, _) = world.stream(0, "watch=carol", 1);
    world.expect(eve, snapshot_so_far(&[late]));
    let off = record("bob", "offline", 50, 40);
    answer(&mut world, std::slice::from_ref(&off));
    world.expect(alice, told_of_many(&off));
    assert_eq!(world.count(0, Counter::IdWithheldSource), 2);
    world.followed = true;
    world.hear();
    let on = record("bob", "online", 60, 60);
    answer(&mut world, std::slice::from_ref(&on));
    world.expect(alice, told(100, &on));
    assert_eq!(world.count(0, Counter::IdWithheldSource), 2);
}

#[test]
fn a_resume_tells_what_was_heard_of_since_however_old() {
    let mut world = realtime(1);
    answer(
        &mut world,
        &[
            record("bob", "online", 0, 0),
            record("carol", "online", 0, 0),
        ],
    );
    world.at(100_000);
    // Decided long ago, and on its way since.
    let off = record("carol", "offline", 30_000, 5_000);
    let node = world.connect(0);
    let request = put(&world, "/v1/presence", &list(std::slice::from_ref(&off)));
    world.send(node, request).expect(node, NO_CONTENT);
    let query = format!("watch=bob&watch=carol&last_event_id={}", START + 80_000);
    let (alice, _) = world.stream(0, &query, 2);
    world.expect(alice, snapshot(100_000, &[off]));
}

/// It starts half an hour behind, hears of a change, and is set right. Elsewhere the stream was
/// told everything up to just before that.
#[test]
fn a_resume_tells_what_was_heard_before_the_clock_was_set_right() {
    for step_ms in [1_800_000, -1_800_000] {
        let mut world = realtime(1);
        answer(&mut world, &[record("bob", "online", 0, 0)]);
        world.at(100_000);
        let off = record("bob", "offline", 90_000, 65_000);
        let node = world.connect(0);
        let request = put(&world, "/v1/presence", &list(std::slice::from_ref(&off)));
        world.send(node, request).expect(node, NO_CONTENT);
        world.at(110_000);
        world.step_wall(step_ms);
        let id = (START + 95_000).saturating_add_signed(step_ms);
        let (alice, _) = world.stream(0, &format!("watch=bob&last_event_id={id}"), 1);
        let received = world.received(alice);
        let told = "\"user\":\"bob\",\"status\":\"offline\"";
        assert!(received.contains(told), "{received}");
    }
}

/// Whoever says goodbye over HTTP and is back at once is vouched for later than that, though the
/// node's clock is slow, and a beat that was sent before is earlier, though it is fast.
#[test]
fn beats_carry_the_time_of_the_presence_node() {
    for ahead_ms in [-60_i64, 60, 5_000] {
        let mut world = World::of_role(1, Role::Realtime(Arc::new(Nodes::new(NODES))), 10_000);
        let node = node_of("bob");
        let clock =
            |world: &World| Unix::from_ms(world.now().unix.ms().saturating_add_signed(ahead_ms));
        world.at(1_000);
        let now = world.now().mono;
        world
            .presence()
            .source_answered(node, 7, clock(&world), now, now);
        world.at(1_400);
        world.stream(0, "user=bob", 0);
        world.stream(0, "user=carol", 0);
        let sent: Vec<(u64, usize)> = beats(&mut world)
            .into_iter()
            .map(|(at, node, _)| (at, node))
            .collect();
        // A millisecond earlier, for it is not known to be later.
        let of_bob = ((1_399 + ahead_ms) as u64, node);
        assert_eq!(sent, [of_bob, (1_400, node_of("carol"))]);
    }
}

/// Goodbyes that were passed on: when they were said, to which node, whose.
fn goodbyes(world: &mut World) -> Vec<(u64, usize, Vec<String>)> {
    let keys = Keys::single(world.key().clone());
    let now = world.now().unix;
    let mut said = Vec::new();
    for (_, outbound) in world.outbound() {
        let Outbound::Beats { node, datagrams } = outbound else {
            continue;
        };
        let opened = datagrams
            .iter()
            .map(|datagram| open(datagram, &keys, now, 30_000));
        for leave in opened
            .map(|opened| opened.expect("sealed"))
            .filter(|opened| opened.flags.is_leave())
        {
            let users = leave.users().map(|user| user.as_str().to_owned()).collect();
            said.push((leave.sent_at.ms() - START, node, users));
        }
    }
    said
}

#[test]
fn a_real_time_node_passes_goodbyes_on() {
    let mut world = realtime(2);
    let (_bob, id) = world.stream(1, "user=bob", 0);
    let (_carol, _) = world.stream(0, "user=carol", 0);
    let whole = |user: &str| (1_000, node_of(user), vec![user.to_owned()]);
    let say = |world: &mut World, json: &str| {
        let asker = world.connect(0);
        world.post(asker, "/v1/leave", json);
        assert!(world.received(asker).starts_with("HTTP/1.1 204 "), "{json}");
    };
    // carol's stream is open here; of eve nothing is known here.
    world.at(1_000);
    say(&mut world, r#"{"users":["carol","eve"]}"#);
    assert_eq!(goodbyes(&mut world), [whole("eve")]);
    say(
        &mut world,
        &format!("{{\"stream\":\"{id}\",\"after_ms\":3000}}"),
    );
    world.at(3_900);
    assert_eq!(goodbyes(&mut world), []);
    // With the time at which it was said.
    world.at(4_100);
    assert_eq!(goodbyes(&mut world), [whole("bob")]);
}

#[test]
fn each_role_serves_its_half() {
    let mut realtime = realtime(1);
    let mut presence = World::of_role(1, Role::Presence, 100);
    let answer = |world: &mut World, method: &str, target: &str| {
        let peer = world.connect(0);
        let text = if method == "POST" {
            super::harness::posted(target, "{\"users\":[]}")
        } else {
            request(method, target)
        };
        world.send(peer, text);
        let received = world.received(peer);
        received.split_whitespace().nth(1).unwrap_or("").to_owned()
    };
    // Whom a real-time node asks about it waits for.
    for (method, target, at_realtime, at_presence) in [
        ("GET", "/v1/presence/bob", "", "200"),
        ("GET", "/v1/presence?user=bob", "", "200"),
        ("POST", "/v1/presence/query", "200", "200"),
        ("POST", "/v1/beat", "204", "204"),
        ("POST", "/v1/leave", "204", "204"),
        ("GET", "/v1/stream?watch=bob", "200", "421"),
        ("POST", "/v1/stream/x/watch", "400", "421"),
        ("PUT", "/v1/presence/bob", "411", "405"),
        ("GET", "/livez", "200", "200"),
        ("GET", "/readyz", "200", "200"),
        ("GET", "/metrics", "200", "200"),
        ("OPTIONS", "/v1/presence/bob", "204", "204"),
    ] {
        assert_eq!(
            answer(&mut realtime, method, target),
            at_realtime,
            "{method} {target} at a real-time node"
        );
        assert_eq!(
            answer(&mut presence, method, target),
            at_presence,
            "{method} {target} at a presence node"
        );
    }
    assert_eq!(realtime.gauge(0, Gauge::Streams), 1);
}

#[test]
fn a_presence_node_hands_over_its_transitions_and_names_its_life() {
    for shards in [1, 2] {
        let mut world = World::of_role(shards, Role::Presence, 100);
        world.beat(0, &["bob", "carol"]);
        let mut published = Vec::new();
        for (_, outbound) in world.outbound() {
            let Outbound::Publish(decided) = outbound else {
                panic!("{outbound:?}")
            };
            published.extend(
                decided
                    .transitions
                    .iter()
                    .map(|transition| (transition.slot.index(), transition.status.is_online())),
            );
        }
        assert_eq!(published, [(0, true), (1, true)]);
        let peer = world.connect(0);
        world.at(700);
        world.post(peer, "/v1/presence/query", "{\"users\":[\"bob\"]}");
        let answer = world.received(peer);
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        assert_eq!(body, list(&[record("bob", "online", 0, 0)]));
        let (_, header) = head.split_once("\r\nGreendot-Node: ").expect("the header");
        let (instance, times) = header.split_once(' ').expect("three words");
        assert_eq!(instance.len(), 16);
        let now = world.now().unix.ms();
        assert_eq!(times, format!("{now} {now}"));
    }
}

/// Real-time nodes learn by it that one who has never been heard of may not be stored.
#[test]
fn a_node_that_has_lately_refused_new_users_says_so_with_its_answers() {
    let mut world = World::of_role(1, Role::Presence, 2);
    let peer = world.connect(0);
    let is_full = |world: &mut World| {
        world.post(peer, "/v1/presence/query", "{\"users\":[]}");
        let answer = world.received(peer);
        let (_, header) = answer
            .split_once("\r\nGreendot-Node: ")
            .expect("the header");
        let (header, _) = header.split_once("\r\n").expect("a line");
        header.ends_with(" full")
    };
    world.beat(0, &["ann", "bob"]);
    assert!(!is_full(&mut world));
    world.beat(0, &["ann", "carol"]);
    assert!(is_full(&mut world));
    world.at(5_000);
    assert!(is_full(&mut world));
    world.beat(0, &["ann", "bob"]);
    world.at(5_001);
    assert!(!is_full(&mut world), "it is some time ago");
}

#[test]
fn the_other_role_out_of_reach_is_degraded_and_ready() {
    let mut world = realtime(1);
    let answer = |world: &mut World| {
        let peer = world.connect(0);
        world.get(peer, "/readyz");
        let received = world.received(peer);
        received
            .split_once("\r\n\r\n")
            .expect("an answer")
            .1
            .to_owned()
    };
    assert_eq!(answer(&mut world), "ready\n");
    // Which link it is, and why.
    let troubles = ["http://a:1 does not answer", "and more"].map(String::from);
    world.board().set_troubles(troubles.into());
    assert_eq!(
        answer(&mut world),
        "degraded: http://a:1 does not answer; and more\n"
    );
}

/// Presence nodes know of no drain, and wait for 25 s. Who is sent away is vouched for once more,
/// is back within half of that, and is vouched for by asking.
#[test]
fn a_drain_sends_nobody_away_for_as_long_as_presence_nodes_wait() {
    let role = Role::Realtime(Arc::new(Nodes::new(NODES)));
    let mut world = World::with_role(role, |settings| settings.drain_ms = 60_000);
    let streams: Vec<Peer> = (0..10)
        .map(|n| world.stream(0, &format!("user=u{n}"), 0).0)
        .collect();
    world.at(1_000).drain().at(6_900);
    world.received(streams[0]);
    beats(&mut world);
    let told_ms = |received: &str| -> u64 {
        let (_, rest) = received.split_once("retry: ").expect("when to come back");
        rest.split('\n')
            .next()
            .and_then(|ms| ms.parse().ok())
            .expect("digits")
    };
    let vouched = |world: &mut World| {
        let sent = beats(world);
        sent.iter()
            .any(|(_, _, users)| users.iter().any(|user| user == "u0"))
    };
    world.at(7_400).expect_closed(streams[0]);
    let retry_ms = told_ms(&world.received(streams[0]));
    assert!((12_500..=14_000).contains(&retry_ms), "{retry_ms}");
    assert!(vouched(&mut world), "as its stream was closed");
    let again = world.connect(0);
    world.get(again, "/v1/stream?user=u0");
    let retry_ms = told_ms(&world.received(again));
    assert!((12_500..=14_000).contains(&retry_ms), "{retry_ms}");
    world.at(7_800);
    assert!(vouched(&mut world), "as it asked");
}
