//! Nodes that were set up wrongly: each says what is wrong, and claims no more than it knows.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;

use crate::harness::{Home, Sender, Server, pause, until};
use greendot::wire::beat::Keys;

const HTTP_PORT: u16 = 8_480;
const UDP_PORT: u16 = 8_481;
/// Longer than a real-time node waits for a presence node to say that everything is told.
const UNHEARD_MS: u64 = 6_000;

/// A presence node and a real-time node with a key each, and where the former publishes to.
struct Pair {
    presence: Server,
    realtime: Server,
    keys: [Keys; 2],
    _homes: [Home; 2],
}

impl Pair {
    fn start(same_key: bool, publish_to: impl Fn(Ipv4Addr) -> String) -> Pair {
        let homes = [Home::new(), Home::new()];
        let [first, second] =
            [0, 1].map(|_| String::from_utf8(homes[0].run(&["key"]).stdout).expect("text"));
        let texts = [&first, if same_key { &first } else { &second }];
        let key_files = [0, 1].map(|at| {
            let path = homes[at].path().join("fleet.key");
            std::fs::write(&path, texts[at]).expect("a folder of our own");
            let own = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(&path, own).expect("a file of our own");
            format!("--key-file={}", path.display())
        });
        let [presence_ip, realtime_ip] = [homes[0].ip(), homes[1].ip()];
        let presence = homes[0].launch(&mut homes[0].command(&[
            "presence",
            "--shards=1",
            &key_files[0],
            &format!("--http={presence_ip}:{HTTP_PORT}"),
            &format!("--udp={presence_ip}:{UDP_PORT}"),
            &format!("--data-dir={}", homes[0].data_dir().display()),
            &format!("--realtime={}", publish_to(realtime_ip)),
        ]));
        let realtime = homes[1].launch(&mut homes[1].command(&[
            "realtime",
            "--shards=1",
            "--beat-interval-ms=300",
            &key_files[1],
            &format!("--http={realtime_ip}:{HTTP_PORT}"),
            &format!("--presence=udp://{presence_ip}:{UDP_PORT},http://{presence_ip}:{HTTP_PORT}"),
        ]));
        Pair {
            presence,
            realtime,
            keys: texts.map(|text| Keys::parse(text).expect("greendot key has printed it")),
            _homes: homes,
        }
    }
}

#[test]
fn a_presence_node_that_publishes_elsewhere_leaves_the_ids_out() {
    // Nobody listens there.
    let pair = Pair::start(true, |ip| format!("http://{ip}:1"));
    let sender = Sender::new(pair.presence.udp(), pair.keys[0].signing().clone());
    sender.beat(&["bob"]);
    pair.presence.expect_online("bob");
    // Asked about, he is known; but not what changes.
    let mut alice = pair.realtime.stream("watch=bob");
    alice.expect("hello");
    assert_eq!(alice.expect("snapshot").id, None);
    alice.expect_presence("bob", true);
    pair.realtime
        .expect_log("does not tell this node everything; is this one in its --realtime");
    pause(UNHEARD_MS);
    let mut late = pair.realtime.stream("watch=bob");
    late.expect("hello");
    assert_eq!(late.expect("snapshot").id, None);
    pair.presence
        .expect_log("the real-time node does not take what is published");
    pair.presence
        .expect_metric("greendot_nodes_down", |down| down == 1.0);
}

#[test]
fn nodes_with_different_keys_believe_nothing_of_each_other() {
    let pair = Pair::start(false, |ip| format!("http://{ip}:{HTTP_PORT}"));
    let mut alice = pair.realtime.stream("user=alice&watch=bob");
    alice.expect("hello");
    let sender = Sender::new(pair.presence.udp(), pair.keys[0].signing().clone());
    sender.beat(&["bob"]);
    pair.presence.expect_online("bob");
    pair.presence
        .expect_log("it has another fleet key; give both the same --key-file");
    // What alice's node vouches for is refused, and so is what bob's publishes.
    let refused = "greendot_datagrams_refused_total{reason=\"key\"}";
    pair.presence
        .expect_metric(refused, |refused| refused >= 2.0);
    assert!(!pair.presence.record("alice").online);
    until("publishing is refused", || {
        let refused = pair
            .realtime
            .metrics()
            .sum("greendot_requests_total{call=\"presence_put\",class=\"4xx\"}");
        (refused >= 1.0).then_some(())
    });
    assert_eq!(pair.realtime.metrics().sum("greendot_told_total"), 0.0);
}

#[test]
fn a_node_of_another_role_is_no_presence_node() {
    let [home, other] = [Home::new(), Home::new()];
    let all = home.serve(&["--shards=1"]);
    let realtime = other.launch(&mut other.command(&[
        "realtime",
        "--shards=1",
        &format!("--key-file={}", home.data_dir().join("fleet.key").display()),
        &format!("--http={}:0", other.ip()),
        &format!("--presence=udp://{},http://{}", all.udp(), all.http),
    ]));
    realtime.expect_log(
        "the presence node does not answer (its answer is not that of a presence node)",
    );
    realtime.expect_metric("greendot_nodes_down", |down| down == 1.0);
    let mut alice = realtime.stream("watch=bob");
    alice.expect("hello");
    assert_eq!(alice.expect("snapshot").id, None);
}
