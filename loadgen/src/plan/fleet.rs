//! `plan`, of a fleet: how many nodes and primaries, what it is created with, what they keep, and
//! what goes between them.
//!
//! Owns the arithmetic of a fleet. Costs are those of docs/PERFORMANCE.md, "What a fleet costs its
//! Redis".

use super::{Need, PlanArgs};
use crate::report::{Report, number};

/// Redis' processor time of a transition, with a replica, us: most of them told alone, by real
/// nodes, to a primary that is as busy as a plan has it. A server with less to do takes up to 50,
/// since it is woken for each.
const TRANSITION_US: f64 = 29.6;
/// Of handing one message to one more node, alone, us.
const DELIVERY_US: f64 = 0.45;
/// Bytes of a transition on its way to one node, told alone: 85, and 52 of TCP and IP.
const MESSAGE_BYTES: f64 = 137.0;
/// Redis' memory of a user who is online, beside what is kept of everybody, bytes; names of 16
/// bytes, as everywhere here. So many while a partition's table grows; soon after, four less.
const ONLINE_BYTES: f64 = 116.0;
/// Of everybody who has ever gone, in a bucket; it stays there while the user is online.
const KNOWN_BYTES: f64 = 33.2;
/// The same in a bucket that has become a table.
const TABLE_BYTES: f64 = 93.2;
/// Of the ring of a partition, full of single changes, bytes.
const RING_BYTES: f64 = 7_000.0;
/// Users who are online in one partition: more, and a move of its slot takes long.
const PARTITION_USERS_MAX: f64 = 30_000.0;
const PARTITIONS_MIN: f64 = 1_024.0;
const PARTITIONS_MAX: f64 = 16_384.0;
/// Users of a bucket, on average. With twice as many each takes as much memory, and more time.
const BUCKET_USERS: f64 = 128.0;
/// With more on average some bucket has more than 512, and becomes a table: users are spread by
/// chance. Of a million buckets of 400 none is expected to.
const BUCKET_USERS_MAX: f64 = 400.0;
/// As many as a fleet has that is not told otherwise, and the most there may be.
const BUCKETS_MIN: f64 = 16.0;
const BUCKETS_MAX: f64 = 4_096.0;
/// What one fleet is for: every node hears every transition, so what goes out of Redis grows with
/// the square of a fleet.
const CELL_NODES_MAX: f64 = 100.0;
const CELL_ONLINE_MAX: f64 = 1e8;
/// Fewer nodes, or primaries, leave too much to the others when one fails.
const COUNT_MIN: f64 = 3.0;

/// What one fleet needs; of more users there are several, each a cell.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct FleetNeed {
    pub(super) cells: f64,
    pub(super) nodes: f64,
    transitions_per_s: f64,
    partitions: f64,
    partition_users: f64,
    buckets: f64,
    bucket_users: f64,
    redis_gib: f64,
    redis_cores: f64,
    pub(super) primaries: f64,
    /// What each node hears of the others.
    node_mb_per_s: f64,
    /// What all primaries send.
    redis_mb_per_s: f64,
}

/// For `users`, of whom a single node, or several of them, need what `n` says.
pub(super) fn fleet_need(users: f64, n: &Need, args: &PlanArgs) -> FleetNeed {
    let cells = (n.nodes / CELL_NODES_MAX)
        .max(n.online / CELL_ONLINE_MAX)
        .ceil()
        .max(1.0);
    let nodes = (n.nodes / cells).ceil().max(COUNT_MIN);
    let [online, users] = [n.online, users].map(|all| all / cells);
    let transitions_per_s = n.transitions_per_s / cells;
    let power_of_two = |least: f64| least.log2().ceil().exp2();
    let partitions = args.cluster_partitions.map_or_else(
        || power_of_two((online / PARTITION_USERS_MAX).max(PARTITIONS_MIN)).min(PARTITIONS_MAX),
        f64::from,
    );
    // Who comes for the first time is in no bucket yet; that is nobody after a while.
    let buckets = args.cluster_buckets.map_or_else(
        || power_of_two((users / partitions / BUCKET_USERS).max(BUCKETS_MIN)).min(BUCKETS_MAX),
        f64::from,
    );
    let bucket_users = users / partitions / buckets;
    let bytes = online * ONLINE_BYTES + users * known_bytes(bucket_users) + partitions * RING_BYTES;
    let redis_gib = bytes / 1_073_741_824.0;
    let each_us = TRANSITION_US + nodes * DELIVERY_US;
    let redis_cores = transitions_per_s * each_us / 1e6;
    let node_mb_per_s = transitions_per_s * MESSAGE_BYTES / 1e6;
    let redis_mb_per_s = node_mb_per_s * nodes;
    let primaries = (redis_cores / args.primary_load)
        .max(redis_gib / args.primary_gib)
        .max(redis_mb_per_s * 8.0 / (args.primary_mbit_per_s * args.load))
        .ceil()
        .max(COUNT_MIN);
    FleetNeed {
        cells,
        nodes,
        transitions_per_s,
        partitions,
        partition_users: online / partitions,
        buckets,
        bucket_users,
        redis_gib,
        redis_cores,
        primaries,
        node_mb_per_s,
        redis_mb_per_s,
    }
}

/// Of each user who is known, where a bucket has so many on average. Some buckets become tables
/// before all do; they count as if all had.
fn known_bytes(bucket_users: f64) -> f64 {
    if bucket_users > BUCKET_USERS_MAX {
        TABLE_BYTES
    } else {
        KNOWN_BYTES
    }
}

/// What `--cluster-partitions` takes.
pub(super) fn partitions(text: &str) -> Result<u32, String> {
    let count = text.parse().ok();
    let count = count.filter(|count: &u32| count.is_power_of_two());
    count
        .filter(|count| (64..=16_384).contains(count))
        .ok_or_else(|| "it takes a power of two from 64 to 16384".into())
}

/// Adds what a fleet of `users` needs, with the arithmetic.
pub(super) fn tell(users: u64, fleet: &FleetNeed, args: &PlanArgs, report: &mut Report) {
    let f = fleet;
    let whole = |value: f64| number(value.round());
    let all = number(users as f64);
    report.notes.push(format!(
        "{all} users as fleets: {} of at most {CELL_NODES_MAX} nodes and {} online, each of {} \
         nodes; each of those hears {} transitions/s x {MESSAGE_BYTES} bytes = {:.1} MB/s",
        number(f.cells),
        number(CELL_ONLINE_MAX),
        number(f.nodes),
        whole(f.transitions_per_s),
        f.node_mb_per_s,
    ));
    report.notes.push(format!(
        "{all} users as fleets: each is created with --cluster-partitions {} --cluster-buckets {}: \
         {} online in a partition, of at most {}; {} known in a bucket, of at most {} on average",
        f.partitions,
        f.buckets,
        whole(f.partition_users),
        number(PARTITION_USERS_MAX),
        whole(f.bucket_users),
        number(BUCKET_USERS_MAX),
    ));
    report.notes.push(format!(
        "{all} users as fleets: Redis of each: cores = transitions/s x ({TRANSITION_US} + {} nodes \
         x {DELIVERY_US}) us = {:.2}; out = {:.1} MB/s x nodes = {:.0} MB/s; memory = online x \
         {ONLINE_BYTES} + users x {} + partitions x {} bytes = {:.1} GiB; primaries = the largest \
         of cores / {}, GiB / {} and Mbit/s / ({} x {}), at least {COUNT_MIN} = {}, and a replica \
         each",
        number(f.nodes),
        f.redis_cores,
        f.node_mb_per_s,
        f.redis_mb_per_s,
        known_bytes(f.bucket_users),
        number(RING_BYTES),
        f.redis_gib,
        args.primary_load,
        args.primary_gib,
        number(args.primary_mbit_per_s),
        args.load,
        number(f.primaries),
    ));
    report.notes.extend(
        f.warnings()
            .map(|warning| format!("WARNING, {all} users: {warning}")),
    );
    for (name, value) in [
        ("cells", f.cells),
        ("nodes", f.nodes),
        ("partitions", f.partitions),
        ("partition_online", f.partition_users),
        ("buckets", f.buckets),
        ("bucket_users", f.bucket_users),
        ("primaries", f.primaries),
        ("redis_cores", f.redis_cores),
        ("redis_gib", f.redis_gib),
        ("node_in_mb_per_s", f.node_mb_per_s),
        ("redis_out_mb_per_s", f.redis_mb_per_s),
    ] {
        let name = format!("users_{users}_fleet_{name}");
        report.value(&name, (value * 100.0).round() / 100.0);
    }
}

impl FleetNeed {
    /// Where keys are larger than they should be.
    fn warnings(&self) -> impl Iterator<Item = String> + use<> {
        let buckets = (self.bucket_users > BUCKET_USERS_MAX).then(|| {
            format!(
                "buckets of {} users on average pass the 512 entries up to which Redis keeps a \
                 hash as one piece (hash-max-listpack-entries), and each user takes {TABLE_BYTES} \
                 bytes there, not {KNOWN_BYTES}; a fleet can not be given more later",
                number(self.bucket_users.round()),
            )
        });
        let partitions = (self.partition_users > PARTITION_USERS_MAX).then(|| {
            format!(
                "partitions of {} users online are larger than {}: a move of one's slot stops its \
                 primary for long",
                number(self.partition_users.round()),
                number(PARTITION_USERS_MAX),
            )
        });
        buckets.into_iter().chain(partitions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common;

    fn of(online: f64, nodes: f64, transitions_per_s: f64, flags: &str) -> FleetNeed {
        let flags = format!("--online-share 0.1 {flags}");
        let (_, args) = common::parsed::<PlanArgs>(&flags).unwrap();
        let n = Need {
            online,
            nodes,
            transitions_per_s,
            ..super::super::need(0.0, &args, &super::super::ASSUMED)
        };
        fleet_need(online * 10.0, &n, &args)
    }

    /// The rows of the design's table, at what was measured.
    #[test]
    fn figures_are_those_of_the_design() {
        let small = of(1e6, 10.0, 10_000.0, "");
        assert_eq!(
            (small.cells, small.nodes, small.primaries),
            (1.0, 10.0, 3.0)
        );
        assert_eq!(
            (small.node_mb_per_s, small.redis_mb_per_s),
            (1.37, 1.37 * 10.0)
        );
        // 10,000 x (29.6 + 10 x 0.45) us.
        assert!((small.redis_cores - 0.341).abs() < 1e-9, "{small:?}");
        assert_eq!((small.partitions, small.buckets), (1_024.0, 128.0));
        assert_eq!(small.bucket_users, 1e7 / 1_024.0 / 128.0);

        let large = of(1e8, 100.0, 60_000.0, "");
        assert_eq!((large.cells, large.nodes), (1.0, 100.0));
        assert_eq!(
            (large.node_mb_per_s, large.redis_mb_per_s),
            (8.22, 8.22 * 100.0)
        );
        assert!((large.redis_cores - 4.476).abs() < 1e-9, "{large:?}");
        // By their time: 4.476 cores of 0.4 each.
        assert_eq!((large.partitions, large.primaries), (4_096.0, 12.0));
        assert_eq!(large.buckets, 2_048.0);
        let bytes = 1e8 * 116.0 + 1e9 * 33.2 + 4_096.0 * 7_000.0;
        assert_eq!(large.redis_gib, bytes / 1_073_741_824.0);
        assert_eq!(large.warnings().count(), 0);
    }

    #[test]
    fn what_is_too_large_for_one_fleet_is_several() {
        let f = of(1e9, 1_010.0, 600_000.0, "");
        assert_eq!((f.cells, f.nodes), (11.0, 92.0));
        assert!((f.transitions_per_s - 54_545.0).abs() < 1.0);
        assert_eq!((f.partitions, f.buckets), (4_096.0, 2_048.0));
        // And nothing is too small for three nodes.
        let f = of(1_000.0, 1.0, 1.0, "");
        assert_eq!((f.cells, f.nodes, f.primaries), (1.0, 3.0, 3.0));
        assert_eq!((f.partitions, f.buckets), (1_024.0, 16.0));
    }

    /// What greendot creates unless it is told otherwise.
    const DEFAULTS: &str = "--cluster-partitions 1024 --cluster-buckets 16";

    #[test]
    fn a_fleet_with_too_few_buckets_takes_three_times_as_much() {
        let f = of(1e7, 3.0, 60_000.0, DEFAULTS);
        assert_eq!((f.partitions, f.buckets), (1_024.0, 16.0));
        let bytes = 1e7 * 116.0 + 1e8 * 93.2 + 1_024.0 * 7_000.0;
        assert_eq!(f.redis_gib, bytes / 1_073_741_824.0);
        let warnings: Vec<String> = f.warnings().collect();
        assert_eq!(
            warnings,
            [
                "buckets of 6,104 users on average pass the 512 entries up to which Redis keeps a \
                 hash as one piece (hash-max-listpack-entries), and each user takes 93.2 bytes \
                 there, not 33.2; a fleet can not be given more later"
            ]
        );
        // 16,384 buckets of 400 users.
        assert_eq!(of(655_360.0, 3.0, 1.0, DEFAULTS).warnings().count(), 0);
        assert_eq!(of(655_370.0, 3.0, 1.0, DEFAULTS).warnings().count(), 1);
        // Told nothing, it has as many as it needs, up to a thousand million users and beyond.
        for online in [1e3, 1e5, 1e6, 1e7, 3e7, 1e8, 1e9] {
            let f = of(online, 100.0, 1.0, "");
            assert!(f.bucket_users <= BUCKET_USERS, "{f:?}");
            assert!(f.buckets <= BUCKETS_MAX, "{f:?}");
        }
        let f = of(1e7, 3.0, 1.0, "--cluster-partitions 64");
        assert_eq!(f.buckets, BUCKETS_MAX);
        let [warning] = &f.warnings().collect::<Vec<_>>()[..] else {
            panic!("{f:?}");
        };
        assert!(
            warning.starts_with("partitions of 156,250 users"),
            "{warning}"
        );
    }

    #[test]
    fn partitions_are_a_power_of_two() {
        assert_eq!(partitions("64"), Ok(64));
        for wrong in ["63", "100", "32", "32768", "many"] {
            assert!(partitions(wrong).is_err(), "{wrong}");
        }
    }
}
