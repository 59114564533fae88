//! Tokens that are revoked before their time: whose requests are refused, and whose streams end.

use greendot::engine::{Outbound, Role, Verdict};
use greendot::metrics::Counter;

use super::harness::{Peer, START, World, status_and_slug};
use super::identity::{ALICE, Said, asked, bearer, identity, service, stream, token, world};

const OK: &str = "HTTP/1.1 200 OK";
const NO_CONTENT: &str = "HTTP/1.1 204 No Content";
const UNAUTHORIZED: &str = "HTTP/1.1 401 Unauthorized";

/// Revokes, and gives the answer.
fn revoke(world: &mut World, shard: usize, body: &str) -> String {
    let node = bearer(&world.key().service_token());
    asked(world, shard, "POST /v1/revoke", &node, body)
}

fn revoked(world: &mut World, shard: usize, body: &str) {
    let answer = revoke(world, shard, body);
    assert_eq!(status_and_slug(&answer).0, NO_CONTENT, "{answer}");
}

/// The status that a query with a token gets.
fn status(world: &mut World, said: &Said) -> String {
    let answer = asked(world, 0, "GET /v1/presence/bob", &bearer(&token(said)), "");
    status_and_slug(&answer).0.to_owned()
}

/// The second of the world's beginning, in Unix time.
fn second(after: u64) -> u64 {
    START / 1_000 + after
}

/// A user's stream, on a shard.
fn open(world: &mut World, shard: usize, said: &Said) -> Peer {
    let peer = world.connect(shard);
    let line = "GET /v1/stream?watch=bob HTTP/1.1\r\nHost: a\r\n";
    world.send(peer, format!("{line}{}\r\n", bearer(&token(said))));
    world.expect_hello(peer, 1);
    world.received(peer);
    peer
}

fn expect_ended(world: &mut World, peer: Peer) {
    let received = world.received(peer);
    assert!(
        received.contains("event: expired\ndata: {}\n\n"),
        "{received}"
    );
    world.expect_closed(peer);
}

const OLD: Said = ALICE;
const NEW: Said = Said {
    issued_ms: 60_000,
    ..ALICE
};
const ZOE: Said = Said {
    user: "zoe",
    watch: &["*"],
    ..ALICE
};

#[test]
fn tokens_that_were_made_before_are_void_on_every_shard() {
    let mut world = world(2);
    world.at(90_000);
    let [old, new, zoe] =
        [OLD, NEW, ZOE].map(|said| [0, 1].map(|shard| open(&mut world, shard, &said)));
    let body = format!(r#"{{"user":"alice","before":{}}}"#, second(60));
    revoked(&mut world, 1, &body);
    world.at(91_000);
    for shard in [0, 1] {
        expect_ended(&mut world, old[shard]);
        world.expect_open(new[shard]).expect_open(zoe[shard]);
        assert_eq!(world.count(shard, Counter::ClosedRevoked), 1);
    }
    let statuses = [OLD, NEW, ZOE].map(|said| status(&mut world, &said));
    assert_eq!(statuses, [UNAUTHORIZED, OK, OK]);
    let answer = asked(
        &mut world,
        0,
        "GET /v1/presence/bob",
        &bearer(&token(&OLD)),
        "",
    );
    assert!(
        answer.contains("revoked: the token has been revoked"),
        "{answer}"
    );
    assert_eq!(world.count(0, Counter::TokenRevoked), 2);
}

#[test]
fn claims_without_a_time_that_a_service_shows_are_made_now() {
    let (key, line) = service("app", "ticket,revoke");
    let mut world = World::with_services(1, Role::All, Some(identity()), &line);
    let ticket = |world: &mut World| {
        let claims = r#"{"sub":"alice","exp":1764013200}"#;
        let answer = asked(world, 0, "POST /v1/ticket", &bearer(&key), claims);
        let (_, rest) = answer.split_once("{\"ticket\":\"").expect(&answer);
        rest.split_once('"').expect(&answer).0.to_owned()
    };
    let status = |world: &mut World, ticket: &str| {
        let line = format!("GET /v1/stream?user=me&ticket={ticket}");
        let answer = asked(world, 0, &line, "", "");
        status_and_slug(&answer).0.to_owned()
    };
    let old = ticket(&mut world);
    world.at(5_000);
    let body = r#"{"user":"alice"}"#;
    let answer = asked(&mut world, 0, "POST /v1/revoke", &bearer(&key), body);
    assert_eq!(status_and_slug(&answer).0, NO_CONTENT);
    assert_eq!(status(&mut world, &old), UNAUTHORIZED);
    world.at(6_000);
    let new = ticket(&mut world);
    assert_eq!(status(&mut world, &new), OK);
}

#[test]
fn without_a_time_all_tokens_up_to_this_second_are_meant() {
    let mut world = world(1);
    world.at(90_400);
    revoked(&mut world, 0, r#"{"user":"alice"}"#);
    let made = |issued_ms| Said { issued_ms, ..ALICE };
    let statuses = [made(90_000), made(91_000)].map(|said| status(&mut world, &said));
    assert_eq!(statuses, [UNAUTHORIZED, OK]);
}

#[test]
fn one_token_is_revoked_by_its_id() {
    let mut world = world(1);
    let [one, other] = ["one", "other"].map(|id| Said {
        id: Some(id),
        ..ALICE
    });
    let [first, second, without] = [one, other, ALICE].map(|said| open(&mut world, 0, &said));
    revoked(&mut world, 0, r#"{"jti":"one"}"#);
    world.at(1_000);
    expect_ended(&mut world, first);
    world.expect_open(second).expect_open(without);
    let statuses = [one, other, ALICE].map(|said| status(&mut world, &said));
    assert_eq!(statuses, [UNAUTHORIZED, OK, OK]);
}

fn revoking(world: &World, body: &str) -> String {
    let node = bearer(&world.key().service_token());
    let head = "POST /v1/revoke HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n";
    let length = body.len();
    format!("{head}{node}Content-Length: {length}\r\n\r\n{body}")
}

/// A stream whose request waits for another shard while its token is revoked: by the time it opens
/// all streams have been looked at.
#[test]
fn a_stream_that_opens_meanwhile_ends_too() {
    let mut world = world(2);
    let [peer, revoker] = [1, 1].map(|shard| world.connect(shard));
    let lines = bearer(&token(&ALICE));
    let line = "GET /v1/stream?user=me&watch=bob HTTP/1.1\r\nHost: a\r\n";
    world.whisper(peer, &format!("{line}{lines}\r\n"));
    world.turn_of(1);
    let revoke = revoking(&world, r#"{"user":"alice"}"#);
    world.whisper(revoker, &revoke);
    for _ in 0..4 {
        world.turn_of(1);
    }
    assert_eq!(world.count(1, Counter::EventsHello), 0, "it waits");
    let received = world.received(peer);
    assert!(
        received.ends_with("event: expired\ndata: {}\n\n"),
        "{received}"
    );
    world.expect_whole(peer).expect_closed(peer);
    assert_eq!(world.count(1, Counter::EventsHello), 1);
}

/// The same of a stream that is to get another token.
#[test]
fn a_token_that_is_revoked_on_its_way_renews_nothing() {
    let mut world = world(2);
    let (watcher, id) = stream(&mut world, "watch=bob", &token(&ZOE), 1);
    let [peer, revoker] = [1, 1].map(|shard| world.connect(shard));
    let lines = bearer(&token(&Said {
        id: Some("late"),
        ..ZOE
    }));
    let line = format!("POST /v1/stream/{id}/token HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    world.whisper(peer, &line).turn_of(1);
    let revoke = revoking(&world, r#"{"jti":"late"}"#);
    world.whisper(revoker, &revoke);
    world.turn_of(1);
    let answer = world.received(peer);
    assert_eq!(status_and_slug(&answer).0, UNAUTHORIZED, "{answer}");
    world.expect_open(watcher);
}

#[test]
fn it_is_answered_once_it_is_on_disk() {
    let mut world = world(2);
    world.disk(None);
    let stream = open(&mut world, 1, &ALICE);
    let peer = world.connect(0);
    let body = r#"{"user":"alice"}"#;
    let revoking = revoking(&world, body);
    world.send(peer, revoking);
    world.expect_nothing(peer);
    // It holds all the same.
    world.at(900);
    expect_ended(&mut world, stream);
    assert_eq!(status(&mut world, &ALICE), UNAUTHORIZED);
    world.at(2_000);
    assert_eq!(status_and_slug(&world.received(peer)).1, "overloaded");
    world.disk(Some(Verdict::NotKept));
    assert_eq!(
        status_and_slug(&revoke(&mut world, 0, body)).1,
        "overloaded"
    );
    world.disk(Some(Verdict::Done));
    revoked(&mut world, 0, body);
}

#[test]
fn what_is_no_revocation() {
    let mut world = world(1);
    let ahead = format!(r#"{{"user":"alice","before":{}}}"#, second(11));
    for body in [
        "{}",
        r#"{"user":"alice","jti":"x"}"#,
        r#"{"jti":"x","before":5}"#,
        r#"{"before":5}"#,
        r#"{"users":["alice"]}"#,
        r#"{"user":"alice","before":"5"}"#,
        &ahead,
    ] {
        let answer = revoke(&mut world, 0, body);
        assert_eq!(status_and_slug(&answer).1, "bad-json", "{body}");
    }
    let answer = revoke(&mut world, 0, r#"{"user":""}"#);
    assert_eq!(status_and_slug(&answer).1, "bad-user");
    assert_eq!(status(&mut world, &ALICE), OK);
}

/// Eighteen thousand streams of one user and one of another, on one shard.
#[test]
fn many_streams_end_within_a_second() {
    let mut world = world(1);
    world.checks = false;
    let streams: Vec<Peer> = (0..18_000).map(|_| open(&mut world, 0, &ALICE)).collect();
    let zoe = open(&mut world, 0, &ZOE);
    world.at(2_000);
    revoked(&mut world, 0, r#"{"user":"alice"}"#);
    world.at(3_000);
    assert_eq!(world.count(0, Counter::ClosedRevoked), 18_000);
    for peer in streams {
        world.expect_closed(peer);
    }
    world.expect_open(zoe);
}

/// What another node tells ends streams too, and is passed on once.
#[test]
fn nodes_tell_each_other() {
    let mut world = world(2);
    let alice = open(&mut world, 1, &ALICE);
    let bytes = {
        let revocation = world.revocations().of_token("x", world.now().unix);
        let mut message = Vec::new();
        revocation.write_told(&mut message);
        let user = greendot::wire::User::parse(b"alice").expect("an id");
        let all = world.revocations().of_user(user, None, world.now().unix);
        all.write_told(&mut message);
        message
    };
    let node = bearer(&world.key().service_token());
    let tell = |world: &mut World, bytes: &[u8]| {
        let peer = world.connect(0);
        let head = "POST /v1/revocations HTTP/1.1\r\nHost: a\r\n\
                    Content-Type: application/octet-stream\r\n";
        let head = format!("{head}{node}Content-Length: {}\r\n\r\n", bytes.len());
        world.send(peer, [head.as_bytes(), bytes].concat());
        let answer = world.received(peer);
        let passed_on = world.outbound().into_iter();
        let passed_on = passed_on.filter(|(_, told)| matches!(told, Outbound::Revoked(None)));
        (status_and_slug(&answer).0.to_owned(), passed_on.count())
    };
    world.outbound();
    assert_eq!(tell(&mut world, &bytes), (NO_CONTENT.to_owned(), 1));
    assert_eq!(tell(&mut world, &bytes), (NO_CONTENT.to_owned(), 0));
    let short = tell(&mut world, &bytes[1..]);
    assert_eq!(short, ("HTTP/1.1 400 Bad Request".to_owned(), 0));
    world.at(1_000);
    expect_ended(&mut world, alice);
    assert_eq!(status(&mut world, &ALICE), UNAUTHORIZED);
}
