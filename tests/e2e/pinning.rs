//! On which cores the shards' threads of a running server may run, as the kernel tells it
//! (proc(5)).

use std::collections::{BTreeMap, BTreeSet};

use crate::harness::{Home, Server};

type Cores = BTreeSet<usize>;

/// The cores that a `Cpus_allowed_list` names: `0-3,8`.
fn cores(list: &str) -> Cores {
    let number = |text: &str| text.parse::<usize>().expect("a number");
    list.split(',')
        .flat_map(|range| match range.split_once('-') {
            Some((first, last)) => number(first)..=number(last),
            None => number(range)..=number(range),
        })
        .collect()
}

fn allowed(status: &str) -> Cores {
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    cores(list.expect("Linux tells it").trim())
}

/// The cores of each shard's thread, by shard.
fn shards(server: &Server) -> BTreeMap<usize, Cores> {
    let tasks = format!("/proc/{}/task", server.process.pid());
    let mut found = BTreeMap::new();
    for task in std::fs::read_dir(tasks).expect("it runs") {
        let task = task.expect("an entry").path();
        let read = |file: &str| std::fs::read_to_string(task.join(file)).expect("the thread lives");
        let name = read("comm");
        if let Some(shard) = name.trim_end().strip_prefix("shard-") {
            let shard = shard.parse().expect("a shard's number");
            assert!(
                found.insert(shard, allowed(&read("status"))).is_none(),
                "{name}"
            );
        }
    }
    found
}

/// The same once every shard has made its first turn, before which its thread has pinned itself.
fn settled(server: &Server, count: usize) -> BTreeMap<usize, Cores> {
    for shard in 0..count {
        let series = format!("greendot_turn_duration_seconds_count{{shard=\"{shard}\"}}");
        server.expect_metric(&series, |turns| turns >= 1.0);
    }
    let found = shards(server);
    assert_eq!(found.len(), count, "{found:?}");
    found
}

fn own() -> Cores {
    allowed(&std::fs::read_to_string("/proc/thread-self/status").expect("Linux has it"))
}

#[test]
fn each_shard_has_a_core_of_its_own() {
    let own = own();
    let home = Home::new();
    // As many as there are cores, since nothing else is said.
    let server = home.serve(&[]);
    assert!(
        server.line.ends_with(&format!(" shards={}", own.len())),
        "{}",
        server.line
    );
    let shards = settled(&server, own.len());
    let mut taken = Cores::new();
    for (shard, cores) in &shards {
        assert_eq!(cores.len(), 1, "shard {shard}: {cores:?}");
        taken.extend(cores);
    }
    assert_eq!(taken, own, "each core once: {shards:?}");
}

#[test]
fn only_cores_that_the_process_may_use_are_taken() {
    let home = Home::new();
    let last = *own().last().expect("this runs on one");
    let server = home.serve_after(&format!("taskset -pc {last} $$ >&2"), &[]);
    assert!(server.line.ends_with(" shards=1"), "{}", server.line);
    assert_eq!(settled(&server, 1)[&0], Cores::from([last]));
}

/// Two nodes of one shard each on one machine would otherwise sit on the same core.
#[test]
fn fewer_shards_than_cores_are_left_to_the_kernel() {
    let own = own();
    if own.len() < 2 {
        eprintln!("skipped: one core, so one shard is as many");
        return;
    }
    let home = Home::new();
    let server = home.serve(&["--shards=1"]);
    assert_eq!(settled(&server, 1)[&0], own);
}

#[test]
fn more_shards_than_cores_are_left_to_the_kernel() {
    let own = own();
    let home = Home::new();
    let count = own.len() + 1;
    let server = home.serve(&[&format!("--shards={count}")]);
    for (shard, cores) in settled(&server, count) {
        assert_eq!(cores, own, "shard {shard}");
    }
}
