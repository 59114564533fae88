//! Watch lists: edits from any shard, and watches of users who have never been seen.

use greendot::metrics::{Counter, Gauge};

use super::harness::{
    RETRY_AFTER, World, json, problem, record, snapshot, status_and_slug, told, told_of_many,
    unseen,
};

fn watching(n: usize) -> String {
    json(&format!("{{\"watching\":{n}}}"))
}

#[test]
fn edits_reach_a_stream_on_any_shard() {
    for shards in [1, 2, 7] {
        let mut world = World::new(shards);
        world.beat(0, &["bob"]);
        let held_by = usize::from(shards) - 1;
        let (alice, id) = world.stream(held_by, "watch=carol", 1);
        world.expect(alice, snapshot(0, &[unseen("carol")]));
        for from in 0..usize::from(shards) {
            let editor = world.connect(from);
            let path = format!("/v1/stream/{id}/watch");
            world.post(
                editor,
                &path,
                "{\"add\":[\"bob\",\"bob\",\"eve\",\"carol\"]}",
            );
            world.expect(editor, watching(3));
            world.expect(
                alice,
                told_of_many(&record("bob", "online", 0, 0))
                    + &told_of_many(&unseen("carol"))
                    + &told(0, &unseen("eve")),
            );
            // Told again though watched already: the asker may have lost what was told before.
            world
                .post(editor, &path, "{\"add\":[\"bob\"]}")
                .expect(editor, watching(3));
            world.expect(alice, told(0, &record("bob", "online", 0, 0)));
            world.post(editor, &path, "{\"remove\":[\"bob\",\"eve\",\"nobody\"]}");
            world.expect(editor, watching(1)).expect_nothing(alice);
            world.post(editor, &path, "{\"add\":[\"bob\"],\"remove\":[\"bob\"]}");
            world.expect(editor, watching(2));
            world.expect(alice, told(0, &record("bob", "online", 0, 0)));
            world.post(editor, &path, "{\"add\":[\"bob\"],\"remove\":[\"bob\"]}");
            world.expect(editor, watching(2));
            world.expect(alice, told(0, &record("bob", "online", 0, 0)));
            world
                .post(editor, &path, "{\"remove\":[\"bob\"]}")
                .expect(editor, watching(1));
            world.post(editor, &path, "{}").expect(editor, watching(1));
        }
    }
}

/// A shard that has yet to hear of a user's first beat still watches by name, and counts the watch
/// once. Who adds the user then is told the state as it is, and once more when the news has come.
#[test]
fn whoever_has_just_got_a_slot_is_not_watched_twice() {
    let mut world = World::with(2, |settings| settings.watches_per_stream_max = 1);
    let (alice, id) = world.stream(1, "watch=late", 1);
    world.expect(alice, snapshot(0, &[unseen("late")]));
    world.hold_mail(1, true).at(100).beat(0, &["late"]).turn();
    let editor = world.connect(1);
    world.post(
        editor,
        &format!("/v1/stream/{id}/watch"),
        "{\"add\":[\"late\"]}",
    );
    world.expect(editor, watching(1));
    world.expect(alice, told(100, &record("late", "online", 100, 100)));
    world.hold_mail(1, false);
    world.expect(alice, told(100, &record("late", "online", 100, 100)));
    world
        .post(
            editor,
            &format!("/v1/stream/{id}/watch"),
            "{\"remove\":[\"late\"]}",
        )
        .expect(editor, watching(0));
}

#[test]
fn an_edit_does_not_overtake_the_requests_around_it() {
    let mut world = World::new(2);
    let (_, id) = world.stream(1, "", 0);
    let editor = world.connect(0);
    let edit = super::harness::posted(&format!("/v1/stream/{id}/watch"), "{\"add\":[\"x\"]}");
    let get = super::harness::request("GET", "/v1/presence/y");
    world.send(editor, format!("{get}{edit}{get}{get}"));
    let y = json(&unseen("y"));
    world.expect(editor, format!("{y}{}{y}{y}", watching(1)));
    world.send(editor, &edit).shut(editor);
    world.expect(editor, watching(1)).expect_closed(editor);
}

#[test]
fn ids_of_no_stream_are_not_found() {
    let mut world = World::new(2);
    let (alice, id) = world.stream(1, "watch=bob", 1);
    let (_, other) = world.stream(1, "", 0);
    let editor = world.connect(0);
    let unknown = problem(
        "404 Not Found",
        "unknown-stream",
        "No such stream is open",
        "no stream with this id is open; a stream's id is in its hello event and ends with it",
        "",
    );
    let (place, tag) = id.rsplit_once('.').unwrap();
    let (_, other_tag) = other.rsplit_once('.').unwrap();
    let guesses = [
        format!("{place}.{other_tag}"),
        format!("{place}.{:032x}", 0),
        format!("0.0.0.{tag}"),
        format!("7.0.0.{tag}"),
        format!("1.4000000000.0.{tag}"),
        format!("1.0.1.{tag}"),
        "x".to_owned(),
    ];
    for guess in guesses {
        world.post(
            editor,
            &format!("/v1/stream/{guess}/watch"),
            "{\"add\":[\"x\"]}",
        );
        world.expect(editor, &unknown);
    }
    assert_eq!(
        world.count(0, Counter::MailPosted),
        0,
        "guesses cost no other shard anything"
    );
    world.reset(alice);
    // Its place is taken by another connection, which is not taken for it.
    world.stream(1, "", 0);
    world
        .post(editor, &format!("/v1/stream/{id}/watch"), "{}")
        .expect(editor, &unknown);
}

#[test]
fn an_edit_that_no_one_answers() {
    let mut world = World::new(2);
    let (_, id) = world.stream(1, "", 0);
    let editor = world.connect(0);
    world.hold_mail(1, true);
    world.post(
        editor,
        &format!("/v1/stream/{id}/watch"),
        "{\"add\":[\"x\"]}",
    );
    world
        .expect_nothing(editor)
        .at(9_900)
        .expect_nothing(editor)
        .at(10_100);
    let answer = world.received(editor);
    assert_eq!(
        status_and_slug(&answer),
        ("HTTP/1.1 503 Service Unavailable", "overloaded")
    );
    // Late, and for nobody: what its asker has asked for since must not be undone.
    world
        .hold_mail(1, false)
        .expect_nothing(editor)
        .expect_closed(editor);
    assert_eq!(world.gauge(1, Gauge::WatchesByName), 0);
}

#[test]
fn the_outcome_for_one_who_has_gone_is_not_that_of_the_next_in_its_place() {
    let mut world = World::new(2);
    let (_, id) = world.stream(1, "", 0);
    let target = format!("/v1/stream/{id}/watch");
    let gone = world.connect(0);
    world
        .hold_mail(1, true)
        .post(gone, &target, "{\"add\":[\"x\"]}")
        .turn()
        .reset(gone);
    let next = world.connect(0);
    world.post(next, &target, "{\"add\":[\"y\",\"z\"]}").turn();
    world
        .hold_mail(1, false)
        .expect(next, watching(3))
        .expect_open(next);
    world.shut(next).expect_closed(next);
    assert_eq!(world.gauge(0, Gauge::Conns), 0);
}

#[test]
fn an_edit_that_finds_a_full_mailbox() {
    let mut world = World::with(2, |settings| settings.mailbox_max = 1);
    let (_, id) = world.stream(1, "", 0);
    // Hints fill no room of an edit's.
    world.hold_mail(1, true).beat(0, &["bob"]).turn();
    let path = format!("/v1/stream/{id}/watch");
    let first = world.connect(0);
    world.post(first, &path, "{\"add\":[\"x\"]}");
    world.expect_nothing(first);
    let editor = world.connect(0);
    world.post(editor, &path, "{\"add\":[\"y\"]}");
    let busy = problem(
        "503 Service Unavailable",
        "overloaded",
        "The server is at a limit",
        "the shard that holds the stream is busy; nothing was changed",
        RETRY_AFTER,
    );
    world.expect(editor, busy).expect_open(editor);
    assert_eq!(world.count(0, Counter::LimitMailboxBytes), 1);
    world.hold_mail(1, false);
    world.expect(first, json("{\"watching\":1}"));
}

/// Edits that wait are bounded by what they hold, and a transition does not wait behind them.
#[test]
fn edits_that_wait_are_bounded_in_bytes_and_hold_up_no_transition() {
    let mut world = World::with(2, |settings| {
        settings.mailbox_bytes_max = 100_000;
        settings.mail_per_turn_max = 2;
    });
    world.make_slots(1);
    world.beat(0, &["bob"]).turn();
    let (watcher, id) = world.stream(1, "watch=bob", 1);
    world.received(watcher);
    let path = format!("/v1/stream/{id}/watch");
    let names: Vec<String> = (0..500).map(|n| format!("\"u{n:04}\"")).collect();
    let edit = format!("{{\"add\":[{}]}}", names.join(","));
    world.hold_mail(1, true);
    let editors: Vec<_> = (0..10).map(|_| world.connect(0)).collect();
    for editor in &editors {
        world.post(*editor, &path, &edit);
    }
    world.leave(0, &["bob"]).turn();
    let refused = editors.iter().filter(|editor| {
        let answer = world.received(**editor);
        answer.starts_with("HTTP/1.1 503")
    });
    // Each holds 500 ids of 5 bytes, and 40 for each of them.
    assert_eq!(refused.count(), 6);
    world.hold_mail(1, false).turn_of(1);
    world.has_received(watcher, "\"user\":\"bob\",\"status\":\"offline\"");
}

/// What the names of users without a slot take is bounded; others may be watched all the same.
#[test]
fn names_of_the_unseen_are_bounded_in_bytes() {
    let mut world = World::with(1, |settings| settings.names_bytes_max = 1_000);
    world.beat(0, &["bob"]).turn();
    let names = |from: usize| -> Vec<String> { (from..from + 9).map(|n| n.to_string()).collect() };
    let query = |from| format!("watch={}", names(from).join("&watch="));
    let (watcher, id) = world.stream(0, &query(0), 9);
    world.received(watcher);
    let other = world.connect(0);
    world.get(other, &format!("/v1/stream?{}", query(5)));
    let refusal = world.received(other);
    assert!(refusal.contains("event: overloaded"), "{refusal}");
    assert!(refusal.contains("{\"reason\":\"names\"}"), "{refusal}");
    let editor = world.connect(0);
    let path = format!("/v1/stream/{id}/watch");
    world.post(
        editor,
        &path,
        &serde_json::json!({ "add": names(5) }).to_string(),
    );
    assert!(world.received(editor).starts_with("HTTP/1.1 503"));
    assert_eq!(world.count(0, Counter::LimitNamesBytes), 2);
    // The names are there already, and one has a slot.
    world.stream(0, &format!("watch=bob&{}", query(0)), 10);
}

#[test]
fn the_first_beat_of_a_watched_name_is_told_on_every_shard() {
    for shards in [1, 2, 7] {
        let mut world = World::new(shards);
        let watchers: Vec<_> = (0..usize::from(shards))
            .map(|shard| world.stream(shard, "watch=late", 1).0)
            .collect();
        for watcher in &watchers {
            world.expect(*watcher, snapshot(0, &[unseen("late")]));
        }
        // Its slot belongs to the last shard; the beat arrives at the first.
        world.make_slots((u32::from(shards) - 1) * 4_096);
        world.at(100).beat(0, &["late"]);
        for (shard, watcher) in watchers.iter().enumerate() {
            world.expect(*watcher, told(100, &record("late", "online", 100, 100)));
            assert_eq!(world.gauge(shard, Gauge::WatchesByName), 0);
            assert_eq!(world.gauge(shard, Gauge::WatchesBySlot), 1);
        }
        world.at(200).leave(0, &["late"]);
        for watcher in &watchers {
            world.expect(*watcher, told(200, &record("late", "offline", 200, 200)));
        }
    }
}

#[test]
fn whoever_is_only_asked_about_leaves_nothing_behind() {
    let mut world = World::new(1);
    world.checks = false;
    let asker = world.connect(0);
    for round in 0..1_000 {
        let users: Vec<String> = (0..1_000).map(|n| format!("nobody-{round}-{n}")).collect();
        let ask = serde_json::json!({ "users": users }).to_string();
        world.post(asker, "/v1/presence/query", &ask);
        if round % 100 == 0 {
            world.received(asker);
        }
    }
    let streams: Vec<_> = (0..10)
        .map(|stream| {
            let users: Vec<String> = (0..10_000)
                .map(|n| format!("nobody-{stream}-{n}"))
                .collect();
            let peer = world.connect(0);
            let ask = serde_json::json!({ "watch": users }).to_string();
            world.post(peer, "/v1/stream", &ask).turn();
            peer
        })
        .collect();
    assert_eq!(world.gauge(0, Gauge::WatchesByName), 100_000);
    assert_eq!(world.presence().users(), 0);
    for stream in streams {
        world.reset(stream);
    }
    // Their watches end in slices.
    world.turn();
    assert_eq!(world.gauge(0, Gauge::WatchesByName), 0);
    assert_eq!(world.presence().users(), 0);
    // Also checks that no name is left.
    world.engine(0).check_invariants();
    world.beat(0, &["nobody-0-0"]).turn();
    assert_eq!(world.count(0, Counter::Marks), 0);
}
