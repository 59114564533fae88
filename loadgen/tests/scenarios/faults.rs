//! What is done to the field: a function for each scenario.

use std::thread::sleep;
use std::time::Duration;

use greendot::fleet::partition::{Partition, Partitions};
use rustix::process::{Pid, Signal, kill_process};

use crate::field::{Field, LEASE_MS};
use crate::members::{id, info, ok};
use crate::redis::{Answer, Link, Server, wait_until};

/// As nodes have them by default.
const PARTITIONS: u32 = 1_024;
/// Each partition is audited once in this time.
const AUDIT_S: u32 = 30;

/// So many leases.
fn leases(count: f64) {
    sleep(Duration::from_millis((LEASE_MS as f64 * count) as u64));
}

fn signal(server: &Server, signal: Signal) {
    kill_process(Pid::from_child(&server.child), signal).unwrap();
}

fn is_primary(server: &Server) -> bool {
    info(&mut server.link(), &["INFO", "replication"]).contains("role:master")
}

/// The cluster serves again, as this server sees it.
fn await_cluster(server: &Server) {
    let mut link = server.link();
    wait_until("the cluster serves", || {
        info(&mut link, &["CLUSTER", "INFO"]).contains("cluster_state:ok")
    });
}

/// `at` has gone or hands over: its replica is the primary.
fn await_promotion(field: &Field, at: usize) {
    wait_until("the replica is promoted", || {
        is_primary(&field.redis[at + 3])
    });
    await_cluster(&field.redis[at + 3]);
}

pub(crate) fn a_node_is_killed(field: &mut Field) {
    field.nodes[1].kill();
}

pub(crate) fn all_nodes_but_one_are_killed(field: &mut Field) {
    field.nodes[0].kill();
    field.nodes[1].kill();
}

pub(crate) fn nodes_are_killed_and_started_in_turn(field: &mut Field) {
    for at in 0..field.nodes.len() {
        field.nodes[at].kill();
        field.start(at);
        field.await_ready(at);
        leases(0.5);
    }
}

pub(crate) fn nodes_are_restarted_in_turn(field: &mut Field) {
    for at in 0..field.nodes.len() {
        field.nodes[at].end();
        field.start(at);
        field.await_ready(at);
    }
}

/// Nodes of another version beside those that there were, each ended or killed, until all are.
pub(crate) fn two_versions_serve_side_by_side(field: &mut Field) {
    let next = Some("gd2");
    field.nodes[0].end();
    restart_as(field, 0, next);
    leases(1.0);
    // Either takes back what a dead one of the other has claimed.
    for at in [1, 0] {
        field.nodes[at].kill();
        leases(1.5);
        restart_as(field, at, next);
    }
    field.nodes[2].end();
    restart_as(field, 2, next);
    for server in &field.redis[..3] {
        let mut link = server.link();
        for name in ["gd1", "gd2"] {
            let listed = link.ask(["FUNCTION", "LIST", "LIBRARYNAME", name]).list();
            assert_eq!(
                listed.len(),
                1,
                "{name} is loaded; a release has no other version"
            );
        }
    }
}

fn restart_as(field: &mut Field, at: usize, library: Option<&'static str>) {
    field.nodes[at].library = library;
    field.start(at);
    field.await_ready(at);
}

pub(crate) fn a_failover_loses_acknowledged_writes(field: &mut Field) {
    let mut primary = field.redis[0].link();
    ok(primary.ask(["ACL", "SETUSER", "default", "-psync", "-sync"]));
    let killed = primary.ask(["CLIENT", "KILL", "TYPE", "replica"]);
    assert_eq!(killed, Answer::Number(1));
    let offset = |server: &Server, name: &str| -> u64 {
        let text = info(&mut server.link(), &["INFO", "replication"]);
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().parse().unwrap()
    };
    sleep(Duration::from_secs(4));
    let [had, kept] = [0, 3].map(|at| offset(&field.redis[at], "master_repl_offset:"));
    eprintln!("{} bytes of acknowledged writes are lost", had - kept);
    assert!(had > kept, "nothing was written meanwhile");
    field.redis[0].child.kill().unwrap();
    field.redis[0].child.wait().unwrap();
    await_promotion(field, 0);
}

pub(crate) fn primaries_are_killed_in_turn(field: &mut Field) {
    for at in 0..3 {
        field.redis[at].child.kill().unwrap();
        field.redis[at].child.wait().unwrap();
        await_promotion(field, at);
        // It comes back as a replica, without data.
        field.redis[at].restart();
        let mut link = field.redis[at].link();
        wait_until("it has everything", || {
            info(&mut link, &["INFO", "replication"]).contains("master_link_status:up")
        });
    }
}

pub(crate) fn primaries_hand_over(field: &mut Field) {
    for (at, how) in [
        (0, &["CLUSTER", "FAILOVER"][..]),
        (1, &["CLUSTER", "FAILOVER", "FORCE"]),
    ] {
        ok(field.redis[at + 3].link().ask(how));
        await_promotion(field, at);
    }
}

pub(crate) fn slots_move_under_load(field: &mut Field) {
    let partitions = Partitions::new(PARTITIONS).unwrap();
    for partition in partitions.all().take(20) {
        move_slot(field, &partitions, partition);
    }
}

/// From the first primary to the third, as `redis-cli --cluster reshard` does.
fn move_slot(field: &Field, partitions: &Partitions, partition: Partition) {
    let slot = partitions.slot(partition).to_string();
    let [from, to] = [0, 2].map(|at| &field.redis[at]);
    let (mut old, mut new) = (from.link(), to.link());
    let (old_id, new_id) = (id(&mut old), id(&mut new));
    ok(new.ask(["CLUSTER", "SETSLOT", &slot, "IMPORTING", &old_id]));
    ok(old.ask(["CLUSTER", "SETSLOT", &slot, "MIGRATING", &new_id]));
    let port = to.port.unwrap().to_string();
    loop {
        let keys = old.ask(["CLUSTER", "GETKEYSINSLOT", &slot, "10"]).list();
        if keys.is_empty() {
            break;
        }
        for key in keys {
            let key = key.bytes();
            let words: [&[u8]; 6] = [
                b"MIGRATE",
                b"127.0.0.1",
                port.as_bytes(),
                &key,
                b"0",
                b"5000",
            ];
            let moved = old.ask(words);
            assert!(matches!(moved, Answer::Word(_)), "{moved:?}");
        }
    }
    for link in [&mut new, &mut old] {
        ok(link.ask(["CLUSTER", "SETSLOT", &slot, "NODE", &new_id]));
    }
}

pub(crate) fn all_of_redis_stands_still(field: &mut Field) {
    field
        .redis
        .iter()
        .for_each(|server| signal(server, Signal::STOP));
    leases(2.4);
    field
        .redis
        .iter()
        .for_each(|server| signal(server, Signal::CONT));
    field.redis[..3].iter().for_each(await_cluster);
}

pub(crate) fn one_primary_stands_still(field: &mut Field) {
    signal(&field.redis[0], Signal::STOP);
    await_promotion(field, 0);
    leases(3.0);
    signal(&field.redis[0], Signal::CONT);
    wait_until("it is a replica", || !is_primary(&field.redis[0]));
}

pub(crate) fn partitions_are_deleted(field: &mut Field) {
    let partitions = Partitions::new(PARTITIONS).unwrap();
    let all: Vec<Partition> = partitions.all().collect();
    // Some of each server; one that nobody has used yet is not there.
    let mut lost = Vec::new();
    for partition in all.iter().step_by(10) {
        let server = &field.redis[partition.index() * 3 / all.len()];
        let hot = partitions.hot_key(*partition);
        let deleted = server.link().ask(["DEL", &hot]);
        if deleted == Answer::Number(1) {
            lost.push((server, hot.clone()));
        }
        let is_elsewhere = |why: &str| why.starts_with("MOVED");
        assert!(
            matches!(&deleted, Answer::Number(_))
                || matches!(&deleted, Answer::Refused(why) if is_elsewhere(why)),
            "{deleted:?}"
        );
    }
    assert!(!lost.is_empty(), "nobody was in any of them");
    // The next word in a partition finds its loss, or an audit does. Until then nobody knows, and
    // from then on departures wait. Of whom nobody is left nothing comes back.
    let is_back = |(server, hot): &(&Server, String)| {
        server.link().ask(["EXISTS", hot.as_str()]) == Answer::Number(1)
    };
    for _ in 0..AUDIT_S {
        if lost.iter().all(is_back) {
            break;
        }
        sleep(Duration::from_secs(1));
    }
}

pub(crate) fn everything_is_deleted(field: &mut Field) {
    for server in &field.redis[..3] {
        ok(server.link().ask(["FLUSHALL"]));
    }
}

pub(crate) fn subscriptions_are_killed_each_second(field: &mut Field) {
    for _ in 0..10 {
        for server in &field.redis[..3] {
            let killed = server.link().ask(["CLIENT", "KILL", "TYPE", "pubsub"]);
            assert!(matches!(killed, Answer::Number(_)), "{killed:?}");
        }
        sleep(Duration::from_secs(1));
    }
}

pub(crate) fn a_subscriber_is_cut_off_for_what_it_has_not_read(field: &mut Field) {
    let partitions = Partitions::new(PARTITIONS).unwrap();
    let all: Vec<Partition> = partitions.all().collect();
    let limit = "client-output-buffer-limit";
    for (server, partition) in field.redis[..3]
        .iter()
        .zip([0, all.len() / 2, all.len() - 1])
    {
        let mut link = server.link();
        ok(link.ask(["CONFIG", "SET", limit, "pubsub 1mb 1mb 1"]));
        let before = subscribers(&mut link);
        assert!(before.len() >= 3, "each node hears it: {before:?}");
        // More than fits is written to each subscriber at once.
        let junk = vec![b'x'; 8 << 20];
        let channel = partitions.hot_key(all[partition]);
        let told = link.ask([b"SPUBLISH", channel.as_bytes(), &junk]);
        assert_eq!(told, Answer::Number(3), "each node hears {channel}");
        wait_until("all of them are cut off", || {
            let now = subscribers(&mut link);
            !before.iter().any(|id| now.contains(id))
        });
    }
}

/// The ids of those who have subscribed to something at a server.
fn subscribers(link: &mut Link) -> Vec<String> {
    let list = info(link, &["CLIENT", "LIST", "TYPE", "pubsub"]);
    let ids = list.lines().filter_map(|line| line.split(' ').next());
    ids.map(str::to_owned).collect()
}

/// Ports of those servers of Redis.
fn ports(servers: &[Server]) -> Vec<u16> {
    servers.iter().filter_map(|server| server.port).collect()
}

pub(crate) fn a_node_is_cut_off_for_less_than_its_lease(field: &mut Field) {
    let cut = field.network.cut(1, &ports(&field.redis));
    leases(0.4);
    drop(cut);
}

pub(crate) fn a_node_is_cut_off_for_longer_than_its_lease(field: &mut Field) {
    let cut = field.network.cut(1, &ports(&field.redis));
    leases(2.4);
    drop(cut);
    field.await_ready(1);
}

pub(crate) fn a_node_is_cut_off_from_one_primary(field: &mut Field) {
    let cut = field.network.cut(1, &ports(&field.redis[..1]));
    leases(2.4);
    drop(cut);
    field.await_ready(1);
}
