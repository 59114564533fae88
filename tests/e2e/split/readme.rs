//! README.md's four commands that start a split deployment, as they stand there.

use crate::harness::{Home, Server, until};
use crate::http::Conn;
use crate::stream::Stream;

const README: &str = include_str!("../../../README.md");
/// Where the commands put the nodes: replaced by an address that nobody else has, so that their
/// ports are free.
const LOCALHOST: &str = "127.0.0.1";

#[test]
fn the_four_commands_of_the_readme_work() {
    let home = Home::new();
    let key = home.run(&["key"]).stdout;
    let key_file = home.path().join("fleet.key");
    std::fs::write(&key_file, key).expect("a folder of our own");
    let own = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&key_file, own).expect("a file of our own");
    let ip = home.ip().to_string();
    let of_split = |line: &&str| line.starts_with("realtime ") || line.starts_with("presence ");
    // A long command goes on in the next line, as a shell reads it.
    let text = README.replace("\\\n    ", "");
    let commands = text
        .lines()
        .filter_map(|line| line.strip_prefix("$ target/release/greendot "));
    let commands: Vec<String> = commands
        .filter(of_split)
        .map(|line| line.replace(LOCALHOST, &ip))
        .collect();
    assert_eq!(commands.len(), 4, "{commands:?}");
    let launch = |line: &String| {
        let mut args: Vec<&str> = line.split(' ').collect();
        args.push("--shards=1");
        home.launch(&mut home.command(&args))
    };
    let nodes: Vec<Server> = commands.iter().map(launch).collect();
    for node in &nodes {
        node.expect_metric("greendot_nodes_down", |down| down == 0.0);
    }

    // What README.md tells to type next.
    let clients = README
        .lines()
        .filter_map(|line| line.strip_prefix("$ curl -N '"));
    let clients = clients.filter_map(|line| {
        let (address, target) = line.trim_end_matches('\'').split_once('/')?;
        let port = address.strip_prefix(LOCALHOST)?.strip_prefix(":73")?;
        Some((format!("{ip}:73{port}"), format!("/{target}")))
    });
    let streams: Vec<(String, String)> = clients.collect();
    let [alice, bob] = &streams[..] else {
        panic!("{streams:?}")
    };
    assert_ne!(alice.0, bob.0, "one at each real-time node");
    let open = |(address, target): &(String, String)| {
        Stream::open(Conn::to(address.parse().expect("an address")), target)
    };
    let mut alice = open(alice);
    alice.expect("hello");
    alice.expect("snapshot");
    let _bob = open(bob);
    // That he was never seen may come first.
    until("alice is told", || alice.presence().online.then_some(()));
}
