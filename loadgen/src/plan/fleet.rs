//! `plan`, of a fleet: how many nodes and primaries, what they keep, and what goes between them.
//!
//! Owns the arithmetic of a fleet. Costs are those of docs/PERFORMANCE.md, and of the fleet's
//! design.

use super::{Need, PlanArgs};
use crate::report::{Report, number};

/// Redis' processor time of a transition, told alone and with a replica, us.
const TRANSITION_US: f64 = 25.0;
/// Of handing one message to one more node, us.
const DELIVERY_US: f64 = 0.23;
/// Bytes of a transition on its way to one node, told alone, TCP and IP included.
const MESSAGE_BYTES: f64 = 80.0;
/// Redis' memory of a user who is online, and of one who is not, bytes; names of 16 bytes.
const ONLINE_BYTES: f64 = 107.0;
const OFFLINE_BYTES: f64 = 34.0;
/// Of a partition whose ring is full, bytes.
const RING_BYTES: f64 = 29_000.0;
/// Users who are online in one partition: more, and a move of its slot takes long.
const PARTITION_USERS_MAX: f64 = 30_000.0;
const PARTITIONS_MIN: f64 = 1_024.0;
const PARTITIONS_MAX: f64 = 16_384.0;
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
    let partitions = (online / PARTITION_USERS_MAX)
        .max(PARTITIONS_MIN)
        .log2()
        .ceil()
        .exp2()
        .min(PARTITIONS_MAX);
    let bytes = online * ONLINE_BYTES + (users - online) * OFFLINE_BYTES + partitions * RING_BYTES;
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
        redis_gib,
        redis_cores,
        primaries,
        node_mb_per_s,
        redis_mb_per_s,
    }
}

/// Adds what a fleet of `users` needs, with the arithmetic.
pub(super) fn tell(users: u64, fleet: &FleetNeed, args: &PlanArgs, report: &mut Report) {
    let f = fleet;
    let whole = |value: f64| number(value.round());
    report.notes.push(format!(
        "{} users as fleets: {} of at most {CELL_NODES_MAX} nodes and {} online, each of {} nodes \
         and {} partitions with {} online; each hears {} transitions/s x {MESSAGE_BYTES} bytes = \
         {:.1} MB/s",
        number(users as f64),
        number(f.cells),
        number(CELL_ONLINE_MAX),
        number(f.nodes),
        number(f.partitions),
        whole(f.partition_users),
        whole(f.transitions_per_s),
        f.node_mb_per_s,
    ));
    report.notes.push(format!(
        "{} users as fleets: Redis of each: cores = transitions/s x ({TRANSITION_US} + {} nodes x \
         {DELIVERY_US}) us = {:.2}; out = {:.1} MB/s x nodes = {:.0} MB/s; memory = online x \
         {ONLINE_BYTES} + offline x {OFFLINE_BYTES} + partitions x {} bytes = {:.1} GiB; primaries \
         = the largest of cores / {}, GiB / {} and Mbit/s / ({} x {}), at least {COUNT_MIN} = {}, \
         and a replica each",
        number(users as f64),
        number(f.nodes),
        f.redis_cores,
        f.node_mb_per_s,
        f.redis_mb_per_s,
        number(RING_BYTES),
        f.redis_gib,
        args.primary_load,
        args.primary_gib,
        number(args.primary_mbit_per_s),
        args.load,
        number(f.primaries),
    ));
    for (name, value) in [
        ("cells", f.cells),
        ("nodes", f.nodes),
        ("partitions", f.partitions),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common;

    fn of(online: f64, nodes: f64, transitions_per_s: f64) -> FleetNeed {
        let (_, args) = common::parsed::<PlanArgs>("--online-share 0.1").unwrap();
        let n = Need {
            online,
            nodes,
            transitions_per_s,
            ..super::super::need(0.0, &args, &super::super::ASSUMED)
        };
        fleet_need(online * 10.0, &n, &args)
    }

    /// The rows of the design's table.
    #[test]
    fn figures_are_those_of_the_design() {
        let small = of(1e6, 10.0, 10_000.0);
        assert_eq!(
            (small.cells, small.nodes, small.primaries),
            (1.0, 10.0, 3.0)
        );
        assert_eq!((small.node_mb_per_s, small.redis_mb_per_s), (0.8, 8.0));
        assert!((small.redis_cores - 0.273).abs() < 1e-9, "{small:?}");
        assert_eq!(small.partitions, 1_024.0);

        let large = of(1e8, 100.0, 60_000.0);
        assert_eq!((large.cells, large.nodes), (1.0, 100.0));
        assert_eq!((large.node_mb_per_s, large.redis_mb_per_s), (4.8, 480.0));
        assert!((large.redis_cores - 2.88).abs() < 1e-9, "{large:?}");
        assert_eq!((large.partitions, large.primaries), (4_096.0, 8.0));
        // 100 M x 107 + 900 M x 34 + 4,096 x 29,000 bytes.
        assert!((large.redis_gib - 38.58).abs() < 0.01, "{large:?}");
    }

    #[test]
    fn what_is_too_large_for_one_fleet_is_several() {
        let f = of(1e9, 1_010.0, 600_000.0);
        assert_eq!((f.cells, f.nodes), (11.0, 92.0));
        assert!((f.transitions_per_s - 54_545.0).abs() < 1.0);
        assert_eq!(f.partitions, 4_096.0);
        // And nothing is too small for three nodes.
        let f = of(1_000.0, 1.0, 1.0);
        assert_eq!(
            (f.cells, f.nodes, f.primaries, f.partitions),
            (1.0, 3.0, 3.0, 1_024.0)
        );
    }
}
