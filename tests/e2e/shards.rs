//! Watchers, publishers and edits that the kernel spreads over the shards.

use std::collections::BTreeSet;

use serde_json::json;

use crate::harness::{Deadline, FAST, Home, PATIENCE_MS, Record, Server, until};
use crate::stream::Stream;

const WATCHERS: usize = 24;
const PUBLISHERS: usize = 12;

/// A watcher, and what it was told so far.
struct Watcher {
    stream: Stream,
    id: String,
    view: Vec<Record>,
}

impl Watcher {
    fn open(server: &Server, query: &str) -> Watcher {
        let mut stream = server.stream(query);
        let (hello, view) = stream.begin();
        let id = hello["stream"].as_str().expect("an id").to_owned();
        Watcher { stream, id, view }
    }

    fn shard(&self) -> &str {
        self.id
            .split('.')
            .next()
            .expect("an id begins with its shard")
    }

    fn online(&self, user: &str) -> Option<bool> {
        let record = self.view.iter().find(|record| record.user == user);
        record.map(|record| record.online)
    }

    /// Reads until `user` is told as wanted. Per publisher, time never goes back.
    fn expect(&mut self, user: &str, online: bool) {
        let deadline = Deadline::in_ms(PATIENCE_MS);
        while self.online(user) != Some(online) {
            let event = self
                .stream
                .next_by(deadline)
                .unwrap_or_else(|| panic!("{user} is not told"));
            assert_eq!(event.kind, "presence", "{event:?}");
            let told = Record::of(&event.data);
            match self.view.iter_mut().find(|record| record.user == told.user) {
                Some(known) => {
                    assert!(told.since >= known.since, "{told:?} after {known:?}");
                    *known = told;
                }
                None => self.view.push(told),
            }
        }
    }
}

/// Streams, beats and edits by many connections, whichever shard each meets.
fn everything_meets(shards: usize) {
    let home = Home::new();
    let server = home.serve(&[FAST, &[&format!("--shards={shards}")]].concat());
    assert!(server.line.ends_with(&format!(" shards={shards}")));
    let users: Vec<String> = (0..PUBLISHERS).map(|n| format!("p{n}")).collect();
    let query: String = users.iter().map(|user| format!("watch={user}&")).collect();
    let query = query.trim_end_matches('&');
    let mut watchers: Vec<Watcher> = (0..WATCHERS)
        .map(|_| Watcher::open(&server, query))
        .collect();
    let used: BTreeSet<&str> = watchers.iter().map(Watcher::shard).collect();
    // One chance in eight million that the kernel puts all on one of two.
    assert!(used.len() > usize::from(shards > 1), "{used:?}");

    // Publishers of every kind, each over a connection of its own.
    let sender = server.sender();
    let mut streams = Vec::new();
    for (n, user) in users.iter().enumerate() {
        match n % 3 {
            0 => streams.push(server.stream(&format!("user={user}"))),
            1 => assert_eq!(
                server.post("/v1/beat", &json!({"users": [user]})).status,
                204
            ),
            _ => server.sender().beat(&[user]),
        }
    }
    for watcher in &mut watchers {
        for user in &users {
            watcher.expect(user, true);
        }
    }

    // Each stream is edited over several connections, which meet its shard or another.
    for watcher in &mut watchers {
        let target = format!("/v1/stream/{}/watch", watcher.id);
        for n in 0..4 {
            let answer = server.post(&target, &json!({"add": [format!("late{n}")]}));
            assert_eq!(
                (answer.status, answer.json()),
                (200, json!({"watching": PUBLISHERS + 1 + n}))
            );
            watcher.expect(&format!("late{n}"), false);
        }
        let answer = server.post(
            &target,
            &json!({"remove": ["late1", "late2", "late3", "p0"]}),
        );
        assert_eq!(answer.json(), json!({"watching": PUBLISHERS}));
    }
    sender.beat(&["late0", "late1"]);
    for watcher in &mut watchers {
        watcher.expect("late0", true);
        assert_ne!(
            watcher.online("late1"),
            Some(true),
            "nobody watches her any more"
        );
    }

    // Nobody's goodbye and everybody's silence are told to all.
    drop(streams);
    for watcher in &mut watchers {
        for user in &users[1..] {
            watcher.expect(user, false);
        }
        assert_eq!(
            watcher.online("p0"),
            Some(true),
            "he is not watched any more"
        );
    }

    refuse_edits_of_no_stream(&server, &watchers[0].id);
    let ended = watchers.remove(0).id;
    let target = format!("/v1/stream/{ended}/watch");
    let answer = until("the stream has ended", || {
        Some(server.post(&target, &json!({"add": ["x"]}))).filter(|answer| answer.status != 200)
    });
    answer.expect_problem(404, "unknown-stream");
}

/// Ids that are wrong by as little as possible.
fn refuse_edits_of_no_stream(server: &Server, id: &str) {
    let (place, tag) = id.rsplit_once('.').expect("the tag is last");
    let last = tag.chars().last().expect("a tag has digits");
    let other = if last == '0' { '1' } else { '0' };
    let numbers: Vec<u32> = place
        .split('.')
        .map(|part| part.parse().expect("a number"))
        .collect();
    let [shard, index, life] = numbers[..] else {
        panic!("shard, place and life are in {place}")
    };
    for guess in [
        format!("{place}.{}{other}", &tag[..tag.len() - 1]),
        format!("{shard}.{index}.{}.{tag}", life + 1),
        format!("{shard}.{}.{life}.{tag}", index + 1),
        format!("{}.{index}.{life}.{tag}", shard + 1),
        format!("250.{index}.{life}.{tag}"),
        format!("{place}.0"),
        "x".into(),
        "%00".into(),
    ] {
        let answer = server.post(&format!("/v1/stream/{guess}/watch"), &json!({"add": ["x"]}));
        answer.expect_problem(404, "unknown-stream");
    }
    let target = format!("/v1/stream/{id}/watch");
    assert_eq!(
        server.post(&target, &json!({"add": []})).status,
        200,
        "the true one"
    );
}

#[test]
fn one_shard() {
    everything_meets(1);
}

#[test]
fn two_shards() {
    everything_meets(2);
}

#[test]
fn seven_shards() {
    everything_meets(7);
}

#[test]
fn an_edit_is_all_or_nothing() {
    let home = Home::new();
    let server = home.serve(&["--shards=2", "--watches-per-stream-max=3"]);
    let watcher = Watcher::open(&server, "watch=a&watch=b");
    let target = format!("/v1/stream/{}/watch", watcher.id);
    for _ in 0..6 {
        server
            .post(&target, &json!({"add": ["c", "d"]}))
            .expect_problem(413, "too-many-users");
        assert_eq!(
            server.post(&target, &json!({})).json(),
            json!({"watching": 2})
        );
    }
    let answer = server.post(&target, &json!({"add": ["c", "d"], "remove": ["a"]}));
    assert_eq!(answer.json(), json!({"watching": 3}));
}

/// Every shard owns some of so many users, and tells the others what it decides.
#[test]
fn slots_of_every_owner() {
    const OWNERS: usize = 7;
    let home = Home::new();
    let flags = [
        "--shards=7",
        "--beat-interval-ms=30s",
        "--offline-after-ms=60s",
    ];
    let server = home.serve(&flags);
    let sender = server.sender();
    let slots = greendot::slot::CHUNK_SLOTS as usize;
    let users: Vec<String> = (0..slots * OWNERS).map(|n| format!("{n}")).collect();
    for batch in users.chunks(500) {
        let batch: Vec<&str> = batch.iter().map(String::as_str).collect();
        sender.beat(&batch);
        // Not faster than it is received: a full buffer drops, and these are not sent again.
        let so_far = batch
            .last()
            .and_then(|last| last.parse::<f64>().ok())
            .expect("a number")
            + 1.0;
        server.expect_metric("greendot_users", |known| known == so_far);
    }
    let chosen: Vec<String> = (0..OWNERS)
        .map(|owner| (owner * slots + 7).to_string())
        .collect();
    let chosen: Vec<&str> = chosen.iter().map(String::as_str).collect();
    let query: String = chosen.iter().map(|user| format!("watch={user}&")).collect();
    let mut watchers: Vec<Watcher> = (0..8)
        .map(|_| Watcher::open(&server, query.trim_end_matches('&')))
        .collect();
    sender.leave(&chosen);
    for watcher in &mut watchers {
        chosen.iter().for_each(|user| watcher.expect(user, false));
    }
    sender.beat(&chosen);
    for watcher in &mut watchers {
        chosen.iter().for_each(|user| watcher.expect(user, true));
    }
}
