//! `plan`: cores, memory, network and nodes for a number of users, with the arithmetic shown.
//!
//! Owns the model of nodes; `fleet` below has that of a fleet. Every cost comes from measured runs
//! (`--costs`, the JSON of earlier ones) or from a stated assumption.

mod fleet;

use std::fs;
use std::io;
use std::path::PathBuf;

use clap::Args;
use serde_json::Value as Json;

use crate::common::Common;
use crate::report::{Report, number};

/// Flags of `plan`.
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    /// Users known, comma-separated
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1000000,100000000,1000000000"
    )]
    pub users: Vec<u64>,
    /// Share of them online at the peak
    #[arg(long, default_value_t = 0.1)]
    pub online_share: f64,
    /// Sessions of each user a day
    #[arg(long, default_value_t = 8.0)]
    pub sessions_per_day: f64,
    /// Users that each one watches while online
    #[arg(long, default_value_t = 50.0)]
    pub contacts: f64,
    /// Seconds between two beats
    #[arg(long, default_value_t = 10.0)]
    pub beat_interval_s: f64,
    /// Seconds of silence after which a stream is sent a ping (the server's keep_alive_ms)
    #[arg(long, default_value_t = 15.0)]
    pub keep_alive_s: f64,
    /// How much more than the day's mean happens at the peak
    #[arg(long, default_value_t = 3.0)]
    pub peak: f64,
    /// Share of a core's time that may be planned for
    #[arg(long, default_value_t = 0.6)]
    pub load: f64,
    /// Cores of one node
    #[arg(long, default_value_t = 8.0)]
    pub node_cores: f64,
    /// Memory of one node, GiB
    #[arg(long, default_value_t = 32.0)]
    pub node_gib: f64,
    /// Share of a core that a primary of a fleet's Redis may be planned with: it has one, and takes
    /// over from another that fails
    #[arg(long, default_value_t = 0.4)]
    pub primary_load: f64,
    /// Memory of one primary for users, GiB
    #[arg(long, default_value_t = 16.0)]
    pub primary_gib: f64,
    /// Network of one primary, Mbit/s
    #[arg(long, default_value_t = 1_000.0)]
    pub primary_mbit_per_s: f64,
    /// Partitions that a fleet was created with; without it, as many as it needs
    #[arg(long, value_parser = fleet::partitions)]
    pub cluster_partitions: Option<u32>,
    /// Buckets of each partition that a fleet was created with; without it, as many as it needs
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub cluster_buckets: Option<u32>,
    /// JSON files of earlier streams, fanout and beats runs on this machine
    #[arg(long, value_delimiter = ',')]
    pub costs: Vec<PathBuf>,
    /// Plan with runs that are not certified as well; the plan is then not certified either
    #[arg(long)]
    pub uncertified: bool,
}

/// What things cost.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Costs {
    /// The server's user memory of a stream without watches, bytes.
    stream_bytes: f64,
    /// Of a watch.
    watch_bytes: f64,
    /// The kernel's memory of a stream, the server's end.
    kernel_bytes: f64,
    /// Of a known user, memory and disk.
    user_bytes: f64,
    beat_us: f64,
    delivery_us: f64,
    keep_alive_us: f64,
    /// Of a ping and the request that answers it.
    answered_ping_us: f64,
    connect_us: f64,
}

/// Where nothing was measured: the goals of the project, so that a plan without measurements says
/// what is hoped for.
const ASSUMED: Costs = Costs {
    stream_bytes: 160.0,
    watch_bytes: 16.0,
    kernel_bytes: 4_300.0,
    user_bytes: 64.0,
    beat_us: 0.1,
    delivery_us: 12.0,
    keep_alive_us: 12.0,
    answered_ping_us: 36.0,
    connect_us: 36.0,
};

const MILLION: f64 = 1e6;
/// Bytes of one presence event on the wire, with its share of TCP and IP.
const EVENT_BYTES: f64 = 230.0;
/// Bytes of a ping in a segment of its own.
const KEEP_ALIVE_BYTES: f64 = 85.0;
/// Bytes of an answer's head and hello, with TCP's handshake.
const HELLO_BYTES: f64 = 700.0;
/// Bytes of one watched user in a snapshot.
const RECORD_BYTES: f64 = 105.0;
/// Bytes of a stream's request without its list, with TCP's handshake.
const REQUEST_BYTES: f64 = 300.0;
/// Bytes of one user in that list.
const WATCH_BYTES: f64 = 23.0;
/// Bytes with which a client acknowledges a segment.
const ACK_BYTES: f64 = 52.0;
/// Bytes of a beat in a full datagram, headers shared.
const BEAT_BYTES: f64 = 18.0;

/// What some users need.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Need {
    online: f64,
    beats_per_s: f64,
    transitions_per_s: f64,
    deliveries_per_s: f64,
    connects_per_s: f64,
    keep_alives_per_s: f64,
    cores: f64,
    memory_gib: f64,
    in_mbit_per_s: f64,
    out_mbit_per_s: f64,
    nodes: f64,
}

fn need(users: f64, args: &PlanArgs, costs: &Costs) -> Need {
    let online = users * args.online_share;
    let sessions_per_s = users * args.sessions_per_day / 86_400.0 * args.peak;
    let beats_per_s = online / args.beat_interval_s;
    let transitions_per_s = 2.0 * sessions_per_s;
    // A user is in as many lists as lists have entries, and those lists are open whose owners are
    // online.
    let deliveries_per_s = transitions_per_s * args.contacts * args.online_share;
    let connects_per_s = sessions_per_s;
    let keep_alives_per_s = online / args.keep_alive_s;
    let busy_us = beats_per_s * costs.beat_us
        + deliveries_per_s * costs.delivery_us
        + keep_alives_per_s * costs.keep_alive_us
        + connects_per_s * costs.connect_us;
    let cores = busy_us / 1e6 / args.load;
    let stream_bytes = costs.stream_bytes + costs.kernel_bytes + args.contacts * costs.watch_bytes;
    let memory_gib = (online * stream_bytes + users * costs.user_bytes) / 1_073_741_824.0;
    let told_bytes = deliveries_per_s * EVENT_BYTES
        + keep_alives_per_s * KEEP_ALIVE_BYTES
        + connects_per_s * (HELLO_BYTES + args.contacts * RECORD_BYTES);
    let heard_bytes = beats_per_s * BEAT_BYTES
        + connects_per_s * (REQUEST_BYTES + args.contacts * WATCH_BYTES)
        + (deliveries_per_s + keep_alives_per_s) * ACK_BYTES;
    let [in_mbit_per_s, out_mbit_per_s] = [heard_bytes, told_bytes].map(|bytes| bytes * 8.0 / 1e6);
    let nodes = (cores / args.node_cores)
        .max(memory_gib / args.node_gib)
        .ceil()
        .max(1.0);
    Need {
        online,
        beats_per_s,
        transitions_per_s,
        deliveries_per_s,
        connects_per_s,
        keep_alives_per_s,
        cores,
        memory_gib,
        in_mbit_per_s,
        out_mbit_per_s,
        nodes,
    }
}

/// Puts what `report` measured in the place of what was assumed; returns what it gave.
fn learn(costs: &mut Costs, report: &Json) -> Vec<&'static str> {
    let mut learnt = Vec::new();
    let mut take = |to: &mut f64, name: &'static str, scale: f64| {
        if let Some(value) = report["values"][name].as_f64().filter(|value| *value > 0.0) {
            *to = value * scale;
            learnt.push(name);
        }
    };
    match report["scenario"].as_str() {
        Some("streams") => {
            if report["values"]["watches_per_stream"].as_f64() == Some(0.0) {
                take(&mut costs.stream_bytes, "server_user_bytes_per_stream", 1.0);
            }
            take(
                &mut costs.stream_bytes,
                "server_user_bytes_per_stream_unwatching",
                1.0,
            );
            take(&mut costs.watch_bytes, "server_user_bytes_per_watch", 1.0);
            // Both ends were measured; the server's is half.
            take(
                &mut costs.kernel_bytes,
                "kernel_slab_bytes_per_stream_both_ends",
                0.5,
            );
            take(&mut costs.connect_us, "server_cpu_us_per_stream", 1.0);
            take(
                &mut costs.answered_ping_us,
                "server_cpu_us_per_answered_ping",
                1.0,
            );
        }
        Some("fanout") => take(&mut costs.delivery_us, "server_cpu_us_per_delivery", 1.0),
        Some("beats") => take(&mut costs.beat_us, "server_cpu_us_per_beat", 1.0),
        _ => {}
    }
    learnt
}

/// Why a run's figures are not to be planned with; None: they are.
fn uncertified(report: &Json) -> Option<String> {
    if report["certified"].as_bool() == Some(true) {
        return None;
    }
    let texts = ["failures", "doubts"].map(|kind| report[kind].as_array());
    let texts = texts.into_iter().flatten().flatten();
    let first = texts.filter_map(Json::as_str).next();
    Some(first.unwrap_or("it says nothing of it").to_owned())
}

/// What a stream and a watch take, from two runs of `streams` that held streams with different
/// numbers of watches.
fn learn_watches(costs: &mut Costs, reports: &[Json]) -> bool {
    let weighed: Vec<(f64, f64)> = reports
        .iter()
        .filter(|report| report["scenario"] == "streams")
        .filter_map(|report| {
            let value = |name: &str| report["values"][name].as_f64();
            Some((
                value("watches_per_stream")?,
                value("server_user_bytes_per_stream")?,
            ))
        })
        .collect();
    let by_watches = |a: &&(f64, f64), b: &&(f64, f64)| a.0.total_cmp(&b.0);
    let (Some(few), Some(many)) = (
        weighed.iter().min_by(by_watches),
        weighed.iter().max_by(by_watches),
    ) else {
        return false;
    };
    let watch_bytes = (many.1 - few.1) / (many.0 - few.0);
    let learns = many.0 > few.0 && watch_bytes > 0.0;
    if learns {
        (costs.watch_bytes, costs.stream_bytes) = (watch_bytes, few.1 - few.0 * watch_bytes);
    }
    learns
}

/// The subcommand.
pub fn run(_common: &Common, args: &PlanArgs) -> io::Result<Report> {
    let mut costs = ASSUMED;
    let mut report = Report::new("plan");
    let mut reports = Vec::new();
    let mut has_learnt = false;
    for path in &args.costs {
        let text = fs::read(path)
            .map_err(|e| io::Error::new(e.kind(), format!("--costs {}: {e}", path.display())))?;
        let measured: Json = serde_json::from_slice(&text)
            .map_err(|e| io::Error::other(format!("--costs {}: no report: {e}", path.display())))?;
        if let Some(why) = uncertified(&measured) {
            let doubt = format!(
                "{} is of a run that was not certified: {why}",
                path.display()
            );
            if !args.uncertified {
                return Err(io::Error::other(format!(
                    "--costs {doubt}; run it again until it is, or plan with it all the same by \
                     --uncertified"
                )));
            }
            report.doubt(&doubt, "run it again until it is");
        }
        let learnt = learn(&mut costs, &measured);
        has_learnt |= !learnt.is_empty();
        let learnt = match &learnt[..] {
            [] => "nothing that a plan needs".to_owned(),
            names => names.join(", "),
        };
        report
            .notes
            .push(format!("measured, from {}: {learnt}", path.display()));
        reports.push(measured);
    }
    if has_learnt {
        report.certified_because = Some("so were the runs that --costs names".to_owned());
    } else {
        report.doubt(
            "nothing was measured: all costs are the project's goals",
            "name the --json files of streams, fanout and beats runs by --costs",
        );
    }
    if learn_watches(&mut costs, &reports) {
        report.notes.push(
            "measured, from two runs of streams with different --watch: bytes of a stream and of a \
             watch"
                .to_owned(),
        );
    }
    let Costs {
        stream_bytes,
        watch_bytes,
        kernel_bytes,
        user_bytes,
        beat_us,
        delivery_us,
        keep_alive_us,
        answered_ping_us,
        connect_us,
    } = costs;
    report.notes.push(format!(
        "costs: stream {} + kernel {} bytes, watch {} bytes, known user {user_bytes} bytes; beat \
         {beat_us:.3} us, delivery {delivery_us:.2} us, keep-alive {keep_alive_us:.2} us, connect \
         {connect_us:.1} us of one core; what no --costs file gave is the project's goal, not a \
         measurement",
        number(stream_bytes),
        number(kernel_bytes),
        number(watch_bytes),
    ));
    report.notes.push(format!(
        "on the wire, TCP and IP included: event {EVENT_BYTES} bytes, keep-alive \
         {KEEP_ALIVE_BYTES}, hello {HELLO_BYTES}, record of a snapshot {RECORD_BYTES}, request \
         {REQUEST_BYTES}, user in its list {WATCH_BYTES}, acknowledgement {ACK_BYTES}, beat \
         {BEAT_BYTES}"
    ));
    let each_s = MILLION / args.beat_interval_s;
    let cores = each_s * answered_ping_us / 1e6 / args.load;
    let gib = MILLION * (stream_bytes + kernel_bytes) / 1_073_741_824.0;
    report.notes.push(format!(
        "a million streams that vouch for themselves (vouch=self, as client.js does): 1,000,000 / \
         {} s = {} pings and as many requests a second x {answered_ping_us:.2} us / {} load = \
         {cores:.1} cores; their second connections {gib:.1} GiB",
        args.beat_interval_s,
        number(each_s.round()),
        args.load,
    ));
    report.value(
        "self_vouching_million_cores",
        (cores * 100.0).round() / 100.0,
    );
    report.value("self_vouching_million_gib", (gib * 100.0).round() / 100.0);
    for users in &args.users {
        let n = need(*users as f64, args, &costs);
        let whole = |value: f64| number(value.round());
        let contacts = args.contacts;
        report.notes.push(format!(
            "{} users: online = users x {} = {}; beats/s = online / {} s = {}; keep-alives/s = \
             online / {} s = {}; sessions/s at the peak = users x {} / 86,400 x {} = {}; \
             transitions/s = 2 x sessions/s = {}; deliveries/s = transitions/s x {contacts} \
             contacts x {} online = {}",
            number(*users as f64),
            args.online_share,
            number(n.online),
            args.beat_interval_s,
            whole(n.beats_per_s),
            args.keep_alive_s,
            whole(n.keep_alives_per_s),
            args.sessions_per_day,
            args.peak,
            whole(n.connects_per_s),
            whole(n.transitions_per_s),
            args.online_share,
            whole(n.deliveries_per_s),
        ));
        report.notes.push(format!(
            "{} users: cores = (beats/s x {beat_us:.3} + deliveries/s x {delivery_us:.2} + \
             keep-alives/s x {keep_alive_us:.2} + sessions/s x {connect_us:.1}) us / {} load = \
             {:.1}; memory = online x ({} + {} + {contacts} x {}) + users x {user_bytes} bytes = \
             {:.1} GiB; nodes = the larger of cores / {} and GiB / {}, rounded up = {}",
            number(*users as f64),
            args.load,
            n.cores,
            number(stream_bytes),
            number(kernel_bytes),
            number(watch_bytes),
            n.memory_gib,
            args.node_cores,
            args.node_gib,
            number(n.nodes),
        ));
        report.notes.push(format!(
            "{} users: network out = (deliveries/s x {EVENT_BYTES} + keep-alives/s x \
             {KEEP_ALIVE_BYTES} + sessions/s x ({HELLO_BYTES} + {contacts} x {RECORD_BYTES})) \
             bytes = {} Mbit/s; in = (beats/s x {BEAT_BYTES} + sessions/s x ({REQUEST_BYTES} + \
             {contacts} x {WATCH_BYTES}) + (deliveries/s + keep-alives/s) x {ACK_BYTES}) bytes = \
             {} Mbit/s",
            number(*users as f64),
            whole(n.out_mbit_per_s),
            whole(n.in_mbit_per_s),
        ));
        for (name, value) in [
            ("online", n.online),
            ("beats_per_s", n.beats_per_s),
            ("transitions_per_s", n.transitions_per_s),
            ("deliveries_per_s", n.deliveries_per_s),
            ("connects_per_s", n.connects_per_s),
            ("keep_alives_per_s", n.keep_alives_per_s),
            ("cores", n.cores),
            ("memory_gib", n.memory_gib),
            ("network_in_mbit_per_s", n.in_mbit_per_s),
            ("network_out_mbit_per_s", n.out_mbit_per_s),
            ("nodes", n.nodes),
        ] {
            report.value(
                &format!("users_{users}_{name}"),
                (value * 100.0).round() / 100.0,
            );
        }
        let as_fleet = fleet::fleet_need(*users as f64, &n, args);
        fleet::tell(*users, &as_fleet, args, &mut report);
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> PlanArgs {
        PlanArgs {
            users: vec![],
            online_share: 0.1,
            sessions_per_day: 8.64,
            contacts: 50.0,
            beat_interval_s: 10.0,
            keep_alive_s: 20.0,
            peak: 2.0,
            load: 0.5,
            node_cores: 8.0,
            node_gib: 32.0,
            primary_load: 0.4,
            primary_gib: 16.0,
            primary_mbit_per_s: 1_000.0,
            cluster_partitions: None,
            cluster_buckets: None,
            costs: vec![],
            uncertified: false,
        }
    }

    /// A plan with one report, which says of its certification what is given.
    fn planned(certified: Json, allowed: bool) -> Result<Report, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let beats = serde_json::json!({
            "scenario": "beats", "certified": certified, "doubts": ["too busy"],
            "failures": [], "values": {"server_cpu_us_per_beat": 0.2},
        });
        fs::write(file.path(), beats.to_string()).unwrap();
        let args = PlanArgs {
            costs: vec![file.path().to_owned()],
            uncertified: allowed,
            ..args()
        };
        let common = crate::common::parsed::<PlanArgs>("").unwrap().0;
        run(&common, &args).map_err(|fault| {
            fault
                .to_string()
                .replace(&file.path().display().to_string(), "FILE")
        })
    }

    #[test]
    fn a_plan_is_as_certified_as_its_runs() {
        for certified in [Json::from(false), Json::Null] {
            assert_eq!(
                planned(certified.clone(), false).unwrap_err(),
                "--costs FILE is of a run that was not certified: too busy; run it again until it \
                 is, or plan with it all the same by --uncertified"
            );
            let plan = planned(certified, true).unwrap();
            assert_eq!(plan.json()["certified"], false);
            assert!(plan.table().contains("NOT CERTIFIED: "), "{}", plan.table());
        }
        let plan = planned(Json::from(true), false).unwrap();
        assert_eq!(
            (plan.json()["certified"].as_bool(), plan.doubts.len()),
            (Some(true), 0)
        );
        let last = "  certified: so were the runs that --costs names\n";
        assert!(plan.table().ends_with(last), "{}", plan.table());
        // Goals are no measurements.
        let common = crate::common::parsed::<PlanArgs>("").unwrap().0;
        let plan = run(&common, &args()).unwrap();
        assert!(
            plan.doubts[0].starts_with("nothing was measured: "),
            "{:?}",
            plan.doubts
        );
    }

    #[test]
    fn the_arithmetic() {
        let n = need(
            1_000_000.0,
            &args(),
            &Costs {
                kernel_bytes: 3_040.0,
                ..ASSUMED
            },
        );
        assert_eq!(
            (n.online, n.beats_per_s, n.connects_per_s.round()),
            (100_000.0, 10_000.0, 200.0)
        );
        assert_eq!(
            (n.transitions_per_s.round(), n.deliveries_per_s.round()),
            (400.0, 2_000.0)
        );
        assert_eq!(n.keep_alives_per_s, 5_000.0);
        // (10,000 x 0.1 + 2,000 x 12 + 5,000 x 12 + 200 x 36) us a second, at half load.
        assert!((n.cores - 0.1844).abs() < 1e-9, "{}", n.cores);
        // 2,000 x 230 + 5,000 x 85 + 200 x (700 + 50 x 105) bytes; 10,000 x 18 + 200 x (300 + 50 x
        // 23) + 7,000 x 52.
        assert!(
            (n.out_mbit_per_s - 2.075 * 8.0).abs() < 1e-9,
            "{}",
            n.out_mbit_per_s
        );
        assert!(
            (n.in_mbit_per_s - 0.834 * 8.0).abs() < 1e-9,
            "{}",
            n.in_mbit_per_s
        );
        // 100,000 x (160 + 3,040 + 50 x 16) + 1,000,000 x 64 bytes.
        assert!((n.memory_gib * 1_073_741_824.0 - 464e6).abs() < 1.0);
        assert_eq!(n.nodes, 1.0);
        // Of a thousand million, whichever runs out first.
        let big = need(1e9, &args(), &ASSUMED);
        assert_eq!(big.nodes, (big.cores / 8.0).ceil());
        let many_cores = PlanArgs {
            node_cores: 1_000.0,
            ..args()
        };
        assert_eq!(
            need(1e9, &many_cores, &ASSUMED).nodes,
            (big.memory_gib / 32.0).ceil()
        );
    }

    #[test]
    fn two_weighings_tell_streams_and_watches_apart() {
        let weighed = |watches: f64, bytes: f64| {
            let values = serde_json::json!({
                "watches_per_stream": watches, "server_user_bytes_per_stream": bytes
            });
            serde_json::json!({"scenario": "streams", "values": values})
        };
        let mut costs = ASSUMED;
        assert!(!learn_watches(
            &mut costs,
            &[weighed(5.0, 160.0), weighed(5.0, 170.0)]
        ));
        assert!(!learn_watches(&mut costs, &[]));
        assert_eq!(costs, ASSUMED);
        assert!(learn_watches(
            &mut costs,
            &[weighed(20.0, 340.0), weighed(5.0, 160.0)]
        ));
        assert_eq!((costs.watch_bytes, costs.stream_bytes), (12.0, 100.0));
        let one = serde_json::json!({"scenario": "streams", "values": {
            "watches_per_stream": 10.0, "server_user_bytes_per_stream_unwatching": 90.0,
            "server_user_bytes_per_watch": 13.0}});
        let learnt = [
            "server_user_bytes_per_stream_unwatching",
            "server_user_bytes_per_watch",
        ];
        assert_eq!(learn(&mut costs, &one), learnt);
        assert_eq!((costs.watch_bytes, costs.stream_bytes), (13.0, 90.0));
    }

    #[test]
    fn measurements_replace_assumptions() {
        let mut costs = ASSUMED;
        let report = serde_json::json!({"scenario": "streams", "values": {
            "watches_per_stream": 0.0, "server_user_bytes_per_stream": 150.0,
            "kernel_slab_bytes_per_stream_both_ends": 8_000.0}});
        assert_eq!(
            learn(&mut costs, &report),
            [
                "server_user_bytes_per_stream",
                "kernel_slab_bytes_per_stream_both_ends"
            ]
        );
        assert_eq!(
            costs,
            Costs {
                stream_bytes: 150.0,
                kernel_bytes: 4_000.0,
                ..ASSUMED
            }
        );
        assert_eq!(
            learn(
                &mut costs,
                &serde_json::json!({"scenario": "beats", "values": {"server_cpu_us_per_beat": 0.2}})
            )
            .len(),
            1
        );
        assert_eq!(costs.beat_us, 0.2);
        assert!(learn(&mut costs, &serde_json::json!({})).is_empty());
    }
}
