//! How many connections one address may have, whether it comes by itself or through a proxy.

use greendot::metrics::Counter;

use crate::harness::{CLOSE, Peer, RETRY_AFTER, World, problem};
use crate::limits::overloaded;

fn world() -> World {
    World::with(1, |settings| {
        settings.conns_max = 100;
        settings.conns_per_address_max = 2;
        settings.trusted_proxies = vec!["10.0.0.0/8".parse().expect("a net")];
    })
}

fn passed_on(lines: &str) -> String {
    format!("GET /v1/stream?watch=x HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
}

/// Whether a stream that a proxy asks for, with these headers, is opened.
fn opens(world: &mut World, lines: &str) -> (Peer, bool) {
    let peer = world.come_from("10.0.0.1").connect(0);
    world.send(peer, passed_on(lines)).turn();
    let received = world.received(peer);
    let opened = received.contains("event: hello");
    if !opened {
        overloaded(world, &received, "address");
        world.expect_closed(peer);
    }
    (peer, opened)
}

#[test]
fn beyond_its_number_an_address_is_told_so_and_others_are_not() {
    let mut world = world();
    world.come_from("192.0.2.1");
    let (first, second) = (world.connect(0), world.connect(0));
    let query = world.connect(0);
    let refusal = problem(
        "503 Service Unavailable",
        "overloaded",
        "The server is at a limit",
        "this address has all the connections that one may have; close some",
        &format!("{RETRY_AFTER}{CLOSE}"),
    );
    world
        .get(query, "/v1/presence/x")
        .expect(query, refusal)
        .expect_closed(query);
    let stream = world.connect(0);
    world.get(stream, "/v1/stream?watch=x");
    let received = world.received(stream);
    overloaded(&world, &received, "address");
    world.expect_closed(stream);
    assert_eq!(world.count(0, Counter::LimitConnsPerAddress), 2);
    assert_eq!(world.count(0, Counter::LimitConns), 0);

    // Others, those of this machine, and operators.
    for other in ["192.0.2.2", "2001:db8::1"] {
        let peer = world.come_from(other).connect(0);
        assert!(
            world.get(peer, "/livez").received(peer).ends_with("ok\n"),
            "{other}"
        );
    }
    for _ in 0..4 {
        let local = world.come_from("127.0.0.1").connect(0);
        assert!(world.get(local, "/livez").received(local).ends_with("ok\n"));
    }
    let operator = world.come_from("192.0.2.1").connect_to_admin(0);
    assert!(
        world
            .get(operator, "/livez")
            .received(operator)
            .ends_with("ok\n")
    );

    // There is room again.
    world.reset(first);
    let again = world.connect(0);
    assert!(world.get(again, "/livez").received(again).ends_with("ok\n"));
    assert!(
        world
            .get(second, "/livez")
            .received(second)
            .ends_with("ok\n")
    );
    assert_eq!(world.count(0, Counter::LimitConnsPerAddress), 2);
}

#[test]
fn an_ipv6_client_is_its_64() {
    let mut world = world();
    for address in ["2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1"] {
        world.come_from(address).connect(0);
    }
    let third = world.come_from("2001:db8:0:1::3").connect(0);
    world.get(third, "/v1/stream?watch=x");
    let received = world.received(third);
    overloaded(&world, &received, "address");
}

#[test]
fn those_that_are_heard_to_be_refused_are_bounded() {
    let mut world = world();
    world.come_from("192.0.2.1");
    for _ in 0..2 + 64 {
        world.connect(0);
    }
    assert_eq!(world.try_connect(0), None);
    world.come_from("192.0.2.2").connect(0);
    // They say nothing, and go.
    world.pass(600);
    assert!(world.come_from("192.0.2.1").try_connect(0).is_some());
}

#[test]
fn behind_a_proxy_streams_count_for_whom_it_names() {
    let mut world = world();
    let alice = "X-Forwarded-For: 203.0.113.9, 192.0.2.1\r\n";
    let (first, _) = opens(&mut world, alice);
    assert!(opens(&mut world, alice).1);
    assert!(!opens(&mut world, alice).1);
    // What a client writes before its proxy's word is no other client's.
    assert!(!opens(&mut world, "X-Forwarded-For: 198.51.100.1, 192.0.2.1\r\n").1);
    assert!(opens(&mut world, "Forwarded: for=198.51.100.1\r\n").1);
    assert_eq!(world.count(0, Counter::LimitConnsPerAddress), 2);
    // A stream that is refused for something else counts for nobody.
    let peer = world.connect(0);
    world.send(
        peer,
        format!("GET /v1/stream?watch=%00 HTTP/1.1\r\nHost: a\r\n{alice}\r\n"),
    );
    world.reset(first);
    assert!(opens(&mut world, alice).1);
    assert!(!opens(&mut world, alice).1);
    // Nor does a request that opens none, however many there are.
    for _ in 0..4 {
        let peer = world.connect(0);
        let query = format!("GET /v1/presence/x HTTP/1.1\r\nHost: a\r\n{alice}\r\n");
        world.send(peer, query).turn();
        assert!(world.received(peer).starts_with("HTTP/1.1 200 "));
    }
}

#[test]
fn whom_a_proxy_does_not_name_counts_as_one_with_all_such() {
    let mut world = world();
    // Two kinds of header that do not agree: one of them is the client's own word.
    let torn = "Forwarded: for=198.51.100.7\r\nX-Forwarded-For: 192.0.2.1\r\n";
    assert!(opens(&mut world, torn).1);
    assert!(opens(&mut world, "").1);
    assert!(!opens(&mut world, torn).1);
    assert!(!opens(&mut world, "").1);
    assert!(opens(&mut world, "X-Forwarded-For: 192.0.2.1\r\n").1);
    // This machine's own are exempt through a proxy too.
    for _ in 0..4 {
        assert!(opens(&mut world, "X-Forwarded-For: 127.0.0.1\r\n").1);
    }
}

/// A proxy keeps a few connections for all its clients: each of these has a rate of its own.
#[test]
fn new_users_are_made_at_the_rate_of_the_client_whom_a_proxy_names() {
    let mut world = World::with(1, |settings| {
        settings.new_users_per_conn_second_max = 2;
        settings.trusted_proxies = vec!["10.0.0.0/8".parse().expect("a net")];
    });
    let [one, other] = [0; 2].map(|_| world.come_from("10.0.0.1").connect(0));
    let mut refuses = |peer: Peer, client: &str, users: &[&str]| {
        let body = serde_json::json!({ "users": users }).to_string();
        let length = body.len();
        let asked = format!(
            "POST /v1/beat HTTP/1.1\r\nHost: a\r\n{client}Content-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        world.send(peer, asked).turn();
        world.received(peer).matches("too_fast").count()
    };
    let [alice, bob] = ["192.0.2.1", "192.0.2.2"].map(|at| format!("X-Forwarded-For: {at}\r\n"));
    assert_eq!(refuses(one, &alice, &["a1", "a2", "a3"]), 1);
    assert_eq!(refuses(one, &bob, &["b1", "b2", "b3"]), 1);
    assert_eq!(refuses(other, &alice, &["a4"]), 1);
    // Whom nobody names has what the connection has.
    assert_eq!(refuses(other, "", &["c1", "c2", "c3"]), 1);
    assert_eq!(refuses(one, "", &["d1", "d2"]), 0);
    assert_eq!(world.count(0, Counter::LimitNewUsersOfConn), 4);
    // So has the holder of a stream, who is tried again at that rate.
    let peer = world.come_from("10.0.0.1").connect(0);
    let opened = format!("GET /v1/stream?user=a5 HTTP/1.1\r\nHost: a\r\n{alice}\r\n");
    world.send(peer, opened).turn();
    assert!(world.received(peer).contains("event: hello"));
    assert_eq!(world.presence().users(), 8);
    world.pass(world.settings.beat_interval_ms);
    assert_eq!(world.presence().users(), 9);
}

#[test]
fn who_is_no_listed_proxy_is_not_believed() {
    let mut world = world();
    let mut opened = 0;
    for n in 0..4 {
        let peer = world.come_from("192.0.2.200").connect(0);
        world
            .send(
                peer,
                passed_on(&format!("X-Forwarded-For: 192.0.2.{n}\r\n")),
            )
            .turn();
        opened += usize::from(world.received(peer).contains("event: hello"));
    }
    assert_eq!(opened, 2);
}
