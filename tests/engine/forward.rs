//! A node of a fleet, and calls about a stream that another one has.

use std::sync::Arc;

use greendot::engine::{Forward, Forwarded, Mail, NodeName, Onward, Outbound, Role, Shows};
use greendot::metrics::Counter;
use greendot::wire::nodes::Nodes;
use greendot::wire::request::Method;

use super::harness::{NO_CONTENT, OWN_HTTP, Peer, RETRY_AFTER, World, json, problem};

const UNKNOWN: (&str, &str, &str) = ("404 Not Found", "unknown-stream", "No such stream is open");

fn world() -> World {
    let role = Role::Fleet(Arc::new(Nodes::new(["redis"])));
    let mut world = World::of_role(1, role, 10_000);
    world.turn();
    world.outbound();
    world
}

fn other() -> NodeName {
    NodeName::of(([10, 0, 0, 1], 8080).into())
}

/// The id of a stream that another node has.
fn elsewhere() -> String {
    format!("{}.3.51.7.00112233445566778899aabbccddeeff", other())
}

/// What is for other nodes since the last look.
fn forwards(world: &mut World) -> Vec<Forward> {
    let outbound = world.outbound().into_iter();
    let forwards = outbound.filter_map(|(_, outbound)| match outbound {
        Outbound::Forward(forward) => Some(*forward),
        _ => None,
    });
    forwards.collect()
}

/// Who has said goodbye here since the last look.
fn goodbyes(world: &mut World) -> Vec<String> {
    let outbound = world.outbound().into_iter();
    let users = outbound.filter_map(|(_, outbound)| match outbound {
        Outbound::Goodbyes(goodbyes) => Some(goodbyes),
        _ => None,
    });
    let users = users.flatten().map(|(user, _)| user.as_str().to_owned());
    users.collect()
}

/// What the client is told when that has come of its only call.
fn told(world: &mut World, client: Peer, told: Forwarded) -> String {
    let [forward] = &forwards(world)[..] else {
        panic!("one call is forwarded");
    };
    let (conn, told) = (forward.asker.conn, Arc::new(told));
    world.tell_all(&Mail::Forwarded { conn, told });
    world.taken(client)
}

#[test]
fn a_call_about_another_nodes_stream_is_sent_there_as_it_came() {
    let mut world = world();
    let id = elsewhere();
    for (path, body) in [
        ("watch", "{\"add\":[\"bob\"]}"),
        ("watch?token=x%20y", "{\"remove\":[\"bob\"]}"),
        ("beat", ""),
        ("beat", "{\"idle_ms\":7}"),
    ] {
        let client = world.connect(0);
        let target = format!("/v1/stream/{id}/{path}");
        let typed = match body {
            "" => String::new(),
            _ => "Content-Type: application/json\r\n".to_owned(),
        };
        world.send(
            client,
            format!(
                "POST {target} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer a.b.c\r\n\
                 {typed}Content-Length: {}\r\n\r\n{body}",
                body.len()
            ),
        );
        let [forward] = &forwards(&mut world)[..] else {
            panic!("{path} is forwarded");
        };
        let path = target.split('?').next().expect("a path");
        let expected = Onward {
            method: Method::Post,
            path: path.into(),
            host: Some("here".into()),
            shows: Shows::Callers(Some("Bearer a.b.c".into())),
            body: body.as_bytes().into(),
        };
        assert_eq!((forward.node, &forward.request), (other(), &expected));
        assert_eq!(world.taken(client), "", "it waits");
    }
    assert_eq!(world.count(0, Counter::CallsForwarded), 4);
}

/// Bytes that a header may have here and that no client of ours sends on.
#[test]
fn what_is_not_plain_is_left_out() {
    let mut world = world();
    let target = format!("/v1/stream/{}/beat", elsewhere());
    for (line, shown) in [
        ("Authorization: Bearer a\r\n", Some("Bearer a")),
        ("Authorization: Bearer \u{e4}\r\n", None),
        ("Authorization: Bearer a\tb\r\n", None),
        ("", None),
    ] {
        let client = world.connect(0);
        let head = format!("POST {target} HTTP/1.1\r\nHost: here\r\n{line}\r\n");
        world.send(client, head);
        let [forward] = &forwards(&mut world)[..] else {
            panic!("{line:?} is forwarded: {}", world.received(client));
        };
        let shown = Shows::Callers(shown.map(Box::from));
        assert_eq!(forward.request.shows, shown, "{line:?}");
    }
}

#[test]
fn an_operators_call_is_judged_here_and_sent_with_the_fleets_token() {
    let mut world = world();
    let key = world.key().service_token();
    let id = elsewhere();
    for (verb, method) in [
        ("GET", Method::Get),
        ("HEAD", Method::Get),
        ("DELETE", Method::Delete),
    ] {
        let client = world.connect(0);
        let lines = format!("Host: here\r\nAuthorization: Bearer {key}\r\n");
        world.send(
            client,
            format!("{verb} /v1/streams/{id}?x=y HTTP/1.1\r\n{lines}\r\n"),
        );
        let [forward] = &forwards(&mut world)[..] else {
            panic!("{verb} is forwarded");
        };
        let expected = Onward {
            method,
            path: format!("/v1/node/streams/{id}").into(),
            host: None,
            shows: Shows::Fleets,
            body: Box::default(),
        };
        assert_eq!((forward.node, &forward.request), (other(), &expected));
    }
    // Nobody else's is sent anywhere.
    let client = world.connect(0);
    world.send(
        client,
        format!("DELETE /v1/streams/{id} HTTP/1.1\r\nHost: here\r\n\r\n"),
    );
    assert!(world.received(client).starts_with("HTTP/1.1 401 "));
    // Nor what a node sends, who is told of this node's own streams alone.
    let client = world.connect(0);
    let lines = format!("Host: here\r\nVia: 1.1 greendot\r\nAuthorization: Bearer {key}\r\n");
    world.send(
        client,
        format!("GET /v1/node/streams/{id} HTTP/1.1\r\n{lines}\r\n"),
    );
    assert!(world.received(client).starts_with("HTTP/1.1 404 "));
    assert_eq!(forwards(&mut world), []);
}

#[test]
fn a_call_that_nobody_answers_is_given_up_and_its_goodbye_said_here() {
    let mut world = world();
    let edit = world.connect(0);
    world.post(
        edit,
        &format!("/v1/stream/{}/watch", elsewhere()),
        "{\"add\":[\"bob\"]}",
    );
    let said = |users: &str| format!("{{\"stream\":\"{}\"{users}}}", elsewhere());
    let goodbye = world.connect(0);
    world.post(goodbye, "/v1/leave", &said(",\"users\":[\"bob\"]"));
    let nobodys = world.connect(0);
    world.post(nobodys, "/v1/leave", &said(""));
    let late = forwards(&mut world);
    assert_eq!(late.len(), 3);
    world.pass(9_900);
    assert_eq!(
        world.taken(edit) + &world.taken(goodbye) + &world.taken(nobodys),
        ""
    );
    world.pass(200);
    for peer in [edit, nobodys] {
        let answer = world.taken(peer);
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        let detail = "the node that has to answer this has not; it may have happened";
        assert!(
            answer.contains(detail) && answer.contains("Connection: close\r\n"),
            "{answer}"
        );
    }
    assert!(world.taken(goodbye).starts_with("HTTP/1.1 204 "));
    assert_eq!(goodbyes(&mut world), ["bob"]);
    // What comes of them later is nobody's.
    for forward in late {
        let (conn, told) = (forward.asker.conn, Arc::new(Forwarded::Nobody));
        world.tell_all(&Mail::Forwarded { conn, told });
    }
    assert_eq!(
        world.taken(edit) + &world.taken(goodbye) + &world.taken(nobodys),
        ""
    );
    assert_eq!(goodbyes(&mut world), [] as [String; 0]);
}

#[test]
fn what_comes_of_it_is_told_as_the_other_node_tells_it() {
    let busy = "as many calls wait for other nodes as may; send it again";
    let gone = "the node that had the stream has gone, and the stream with it";
    let silent = "the node that has to answer this has not; it may have happened";
    let overloaded = |detail: &str| {
        let title = "The server is at a limit";
        problem(
            "503 Service Unavailable",
            "overloaded",
            title,
            detail,
            RETRY_AFTER,
        )
    };
    let answered = |status, body: &str| Forwarded::Answered {
        status,
        body: body.as_bytes().to_vec(),
    };
    let (status, slug, title) = UNKNOWN;
    for (outcome, expected) in [
        (answered(200, "{\"watching\":1}"), json("{\"watching\":1}")),
        (answered(204, ""), NO_CONTENT.to_owned()),
        (Forwarded::Nobody, problem(status, slug, title, gone, "")),
        (Forwarded::Busy, overloaded(busy)),
        (Forwarded::Silent, overloaded(silent)),
    ] {
        let mut world = world();
        let client = world.connect(0);
        let target = format!("/v1/stream/{}/watch", elsewhere());
        world.post(client, &target, "{\"add\":[\"bob\"]}");
        assert_eq!(told(&mut world, client, outcome), expected);
    }
    // A problem stays one, and what no node answers is none.
    for (status, begins) in [(404, "HTTP/1.1 404 Not Found"), (302, "HTTP/1.1 503 ")] {
        let mut world = world();
        let client = world.connect(0);
        world.post(client, &format!("/v1/stream/{}/beat", elsewhere()), "{}");
        let told = told(&mut world, client, answered(status, "{\"type\":\"x\"}"));
        assert!(told.starts_with(begins), "{told}");
        assert!(
            told.contains("Content-Type: application/problem+json\r\n"),
            "{told}"
        );
    }
}

#[test]
fn what_is_this_nodes_own_or_nobodys_stays() {
    let mut world = world();
    let (status, slug, title) = UNKNOWN;
    let client = world.connect(0);
    world.get(client, "/v1/stream?user=alice&watch=bob");
    let hello = world.received(client);
    let (_, id) = hello.split_once("\"stream\":\"").expect(&hello);
    let id = id.split('"').next().expect("an id").to_owned();
    assert!(
        id.starts_with(&format!("{}.0.", NodeName::of(OWN_HTTP))),
        "{id}"
    );
    let client = world.connect(0);
    world.post(
        client,
        &format!("/v1/stream/{id}/watch"),
        "{\"add\":[\"carol\"]}",
    );
    world.expect(client, json("{\"watching\":2}"));
    let unnamed = "3.51.7.00112233445566778899aabbccddeeff";
    let of_another_life = format!("{}.{unnamed}", NodeName::of(OWN_HTTP));
    let detail = "no stream with this id is open; a stream's id is in its hello event and ends \
                  with it";
    for id in [unnamed, &of_another_life, "nonsense", "01234567.nonsense"] {
        let client = world.connect(0);
        world.post(
            client,
            &format!("/v1/stream/{id}/watch"),
            "{\"add\":[\"bob\"]}",
        );
        world.expect(client, problem(status, slug, title, detail, ""));
    }
    // Nor does what another node has sent on go any further.
    let client = world.connect(0);
    let target = format!("/v1/stream/{}/beat", elsewhere());
    world.send(
        client,
        format!("POST {target} HTTP/1.1\r\nHost: a\r\nVia: 1.1 greendot\r\n\r\n"),
    );
    assert!(world.received(client).starts_with("HTTP/1.1 404 "));
    assert_eq!(forwards(&mut world), []);
}

#[test]
fn a_goodbye_is_said_here_if_the_node_that_has_its_stream_has_gone() {
    let said = |users: &str| format!("{{\"stream\":\"{}\"{users}}}", elsewhere());
    for outcome in [Forwarded::Nobody, Forwarded::Busy, Forwarded::Silent] {
        let mut world = world();
        let client = world.connect(0);
        world.post(client, "/v1/leave", &said(",\"users\":[\"bob\"]"));
        assert_eq!(goodbyes(&mut world), [] as [String; 0]);
        let client = world.connect(0);
        world.post(client, "/v1/leave", &said(",\"users\":[\"bob\"]"));
        assert_eq!(told(&mut world, client, outcome), NO_CONTENT);
        assert_eq!(goodbyes(&mut world), ["bob"]);
    }
    let mut world = world();
    let client = world.connect(0);
    world.post(client, "/v1/leave", &said(""));
    let answer = told(&mut world, client, Forwarded::Nobody);
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    // What says itself wrongly is told so here.
    let client = world.connect(0);
    world.post(client, "/v1/leave", &said(",\"everywhere\":true"));
    let answer = world.received(client);
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}
