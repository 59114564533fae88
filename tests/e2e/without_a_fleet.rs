//! What a server that is no node of a fleet does without.

use std::collections::BTreeSet;
use std::fs;

use crate::fleet::fleet;
use crate::harness::{Home, Server, until};

/// What a thread of a fleet's is called: the bridge and those that ask other nodes.
const OF_FLEET: [&str; 3] = ["fleet", "abroad-", "forward-"];

/// Where a server is asked and where it hears beats, and the pair by which signals come.
const OWN_SOCKETS: usize = 4;

/// Names of its threads.
fn threads(server: &Server) -> BTreeSet<String> {
    let dir = format!("/proc/{}/task", server.process.pid());
    let tasks = fs::read_dir(dir).expect("it runs");
    let name = |task: std::io::Result<fs::DirEntry>| {
        // One that has ended meanwhile has no name.
        fs::read_to_string(task.ok()?.path().join("comm")).ok()
    };
    let names = tasks.filter_map(name);
    names.map(|name| name.trim_end().to_owned()).collect()
}

/// How many sockets it has open.
fn sockets(server: &Server) -> usize {
    let dir = format!("/proc/{}/fd", server.process.pid());
    let open = fs::read_dir(dir).expect("it runs");
    let targets = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let is_socket = |target: &std::path::PathBuf| target.to_string_lossy().starts_with("socket:");
    targets.filter(is_socket).count()
}

fn of_fleet(threads: &BTreeSet<String>) -> BTreeSet<&str> {
    let is_its = |name: &&String| OF_FLEET.iter().any(|its| name.starts_with(its));
    threads.iter().filter(is_its).map(String::as_str).collect()
}

/// A node of a fleet is looked at beside it: it has what the other is to lack.
#[test]
fn a_server_alone_has_no_thread_and_no_socket_of_a_fleet() {
    let home = Home::new();
    let alone = home.serve(&["--shards=1"]);
    assert_eq!(alone.get("/readyz").status, 200);
    // What asked it is closed by then.
    until("it has its own sockets alone", || {
        (sockets(&alone) == OWN_SOCKETS).then_some(())
    });
    let own = threads(&alone);
    assert!(own.contains("shard-0"), "{own:?}");
    assert_eq!(of_fleet(&own), [].into(), "{own:?}");
    let Some(fleet) = fleet() else {
        return;
    };
    let node = fleet.node();
    let all = threads(&node);
    for its in OF_FLEET {
        assert!(
            all.iter().any(|name| name.starts_with(its)),
            "{its} {all:?}"
        );
    }
    let more: BTreeSet<&str> = all.difference(&own).map(String::as_str).collect();
    assert_eq!(more, of_fleet(&all), "of no other is it known whose it is");
    assert!(
        sockets(&node) > OWN_SOCKETS,
        "it has connections to its database"
    );
}
