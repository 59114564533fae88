//! What one shard's engine costs without a kernel: beats, watches, fan-out, requests, connects.
//! Time is virtual.
//!
//! `cargo bench --bench engine` is the size of the budgets, 10,000,000 users known (some 700 MB
//! under TMPDIR); `GREENDOT_BENCH_USERS=1000000` makes it smaller. The crowds keep their sizes.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use greendot::auth::HOLDERS_MAX;
use greendot::engine::{Home, HomeList, PartitionSet};
use greendot::metrics::Counter;
use greendot::realtime::watches::{MarkCount, Target, Watches};
use greendot::wire::request::{Parsed, RequestLimits, parse_head};

use fixture::{BROWSER_HEAD, FULL, Rig, WRK_HEAD, id_of, identity, stream_request};

mod fixture;

const USERS_DEFAULT: u32 = 10_000_000;
/// Users below which the benches do not make sense.
const USERS_MIN: u32 = 1_000;
/// Datagrams given at once: what one `recvmmsg` brings.
const BATCH: usize = 64;
/// Users that beat in turn, at most: their cells and ids are more than the caches hold.
const BEATING_MAX: u32 = 1 << 20;
const CROWD: u32 = 100_000;

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn main() {
    let users = std::env::var("GREENDOT_BENCH_USERS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(USERS_DEFAULT)
        .max(USERS_MIN);
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    let mut rig = Rig::new(users);
    eprintln!("{users} users known and online");

    let mut group = criterion.benchmark_group(format!("engine/{users}"));
    beats(&mut group, &mut rig, 1, users);
    beats(&mut group, &mut rig, FULL, users);
    beats_of_devices(&mut group, &mut rig, users);
    beats_passed_on(&mut group, &mut rig, 1, users);
    beats_passed_on(&mut group, &mut rig, FULL, users);
    requests(&mut group, &mut rig);
    requests_with_a_token(&mut group);
    connect(&mut group, &mut rig);
    one_publisher(&mut group, &mut rig);
    many_publishers(&mut group, &mut rig);
    watches(&mut group, users);
    watches_of_a_crowd(&mut group);
    parse(&mut group);
    group.finish();
    criterion.final_summary();
}

/// Datagrams of `entries` random users each, MAC and all, in batches.
fn beats(group: &mut Group<'_>, rig: &mut Rig, entries: usize, users: u32) {
    let mut random = fastrand::Rng::with_seed(7);
    let count = BEATING_MAX.min(users) as usize / entries / BATCH * BATCH;
    let datagrams: Vec<Box<[u8]>> = (0..count.max(BATCH))
        .map(|_| rig.datagram((0..entries).map(|_| random.u32(0..users)), false))
        .collect();
    let batches: Vec<Vec<&[u8]>> = datagrams
        .chunks_exact(BATCH)
        .map(|batch| batch.iter().map(|datagram| &**datagram).collect())
        .collect();
    let mut batches = batches.iter().cycle();
    group.throughput(Throughput::Elements((BATCH * entries) as u64));
    group.bench_function(
        format!("handle_beats, {BATCH} datagrams of {entries}"),
        |bencher| {
            let before = rig.engine().counters().counter(Counter::BeatsUdp);
            let mut given = 0;
            bencher.iter(|| {
                given += BATCH * entries;
                let now = rig.begin();
                rig.engine()
                    .handle_beats(batches.next().expect("a cycle has no end"), now);
            });
            let taken = rig.engine().counters().counter(Counter::BeatsUdp) - before;
            assert_eq!(taken, given as u64, "every beat was taken");
        },
    );
}

/// Three nodes of a fleet that are homes, of which this is none.
fn homes_elsewhere() -> HomeList {
    let udp = |node: u8| std::net::SocketAddr::from(([10, 0, 0, node], 8_081));
    let home = |node| Home {
        udp: udp(node),
        away: PartitionSet::default(),
    };
    HomeList::new((1..=3).map(home).collect(), udp(9), 1_024)
}

/// Datagrams of `entries` random users each, all of whom have their home at one of three other
/// nodes of a fleet: until what is passed on is sealed.
fn beats_passed_on(group: &mut Group<'_>, rig: &mut Rig, entries: usize, users: u32) {
    let mut random = fastrand::Rng::with_seed(7);
    rig.homes.store(homes_elsewhere());
    let datagrams: Vec<Box<[u8]>> = (0..64 * BATCH)
        .map(|_| rig.datagram((0..entries).map(|_| random.u32(0..users)), false))
        .collect();
    let batches: Vec<Vec<&[u8]>> = datagrams
        .chunks_exact(BATCH)
        .map(|batch| batch.iter().map(|datagram| &**datagram).collect())
        .collect();
    let mut batches = batches.iter().cycle();
    group.throughput(Throughput::Elements((BATCH * entries) as u64));
    group.bench_function(
        format!("handle_beats, {BATCH} datagrams of {entries} passed on"),
        |bencher| {
            let before = rig.engine().counters().counter(Counter::FleetBeatsPassedOn);
            let mut given = 0;
            bencher.iter(|| {
                given += BATCH * entries;
                let now = rig.begin();
                let batch = batches.next().expect("a cycle has no end");
                rig.engine().handle_beats(batch, now);
                while rig.engine().poll_outbound(now).is_some() {}
            });
            let passed_on = rig.engine().counters().counter(Counter::FleetBeatsPassedOn) - before;
            assert_eq!(passed_on, given as u64, "every beat was passed on");
        },
    );
    rig.homes.store(HomeList::default());
    rig.begin();
}

/// Datagrams of one random user each, which that user's device has signed, in batches.
fn beats_of_devices(group: &mut Group<'_>, rig: &mut Rig, users: u32) {
    let mut random = fastrand::Rng::with_seed(7);
    let count = BEATING_MAX.min(users) as usize / BATCH * BATCH;
    let datagrams: Vec<Vec<u8>> = (0..count.max(BATCH))
        .map(|_| rig.device_datagram(random.u32(0..users)))
        .collect();
    let batches: Vec<Vec<&[u8]>> = datagrams
        .chunks_exact(BATCH)
        .map(|batch| batch.iter().map(|datagram| &**datagram).collect())
        .collect();
    let mut batches = batches.iter().cycle();
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function(
        format!("handle_beats, {BATCH} datagrams of devices"),
        |bencher| {
            let before = rig.engine().counters().counter(Counter::DatagramsDevice);
            let mut given = 0;
            bencher.iter(|| {
                given += BATCH;
                let now = rig.begin();
                rig.engine()
                    .handle_beats(batches.next().expect("a cycle has no end"), now);
            });
            let taken = rig.engine().counters().counter(Counter::DatagramsDevice) - before;
            assert_eq!(taken, given as u64, "every beat was taken");
        },
    );
}

fn requests(group: &mut Group<'_>, rig: &mut Rig) {
    let conn = rig.connect();
    for (name, head, count) in [
        ("GET presence, as wrk", WRK_HEAD, 1),
        ("GET presence, as a browser", BROWSER_HEAD, 1),
        ("GET presence, as wrk, 16 pipelined", WRK_HEAD, 16),
    ] {
        let input = head.repeat(count);
        rig.begin();
        rig.send(conn, head);
        let answer_bytes = rig.flush().bytes;
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                rig.begin();
                rig.send(conn, &input);
                let flushed = rig.flush();
                assert_eq!((flushed.writes, flushed.bytes), (1, count * answer_bytes));
            });
        });
    }
    rig.reset(conn);
}

/// A query of the holder of a token (HS256), one of a quarter of those whose limits are known at a
/// time, with limits and without.
fn requests_with_a_token(group: &mut Group<'_>) {
    for (name, limited) in [("unlimited", false), ("limited", true)] {
        let mut rig = Rig::asking(1_000, Some(identity(limited)));
        let holders = 0..HOLDERS_MAX as u32 / 4;
        let inputs: Vec<Vec<u8>> = holders.map(|n| rig.request_of(n)).collect();
        let mut inputs = inputs.iter().cycle();
        let conn = rig.connect();
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("GET presence, with a token, {name}"), |bencher| {
            bencher.iter(|| {
                rig.begin();
                rig.send(conn, inputs.next().expect("a cycle has no end"));
                assert_eq!(rig.flush().writes, 1);
            });
        });
        rig.reset(conn);
    }
}

/// From accept to the last byte of the snapshot, and the end.
fn connect(group: &mut Group<'_>, rig: &mut Rig) {
    for (name, request, watches) in [
        (
            "connect, a publisher, no watch",
            stream_request("user=user-00000000007&", 0..0),
            0,
        ),
        (
            "connect, a publisher, 10 watches",
            stream_request("user=user-00000000007&", 10..20),
            10,
        ),
    ] {
        group.throughput(Throughput::Elements(1));
        group.bench_function(name, |bencher| {
            let before = rig.engine().counters().counter(Counter::StatesDelivered);
            let mut connects = 0;
            bencher.iter(|| {
                connects += 1;
                rig.begin();
                let conn = rig.connect();
                rig.send(conn, request.as_bytes());
                assert_eq!(
                    rig.flush().writes,
                    1,
                    "head, hello and snapshot in one write"
                );
                rig.reset(conn);
            });
            let told = rig.engine().counters().counter(Counter::StatesDelivered) - before;
            assert_eq!(told, connects * watches);
        });
    }
}

/// One publisher comes or goes: from its datagram to the last of its watchers' bytes.
fn one_publisher(group: &mut Group<'_>, rig: &mut Rig) {
    const WATCHERS: usize = 10_000;
    let streams: Vec<_> = (0..WATCHERS).map(|_| rig.stream(0..1)).collect();
    let mut leave = false;
    group.throughput(Throughput::Elements(WATCHERS as u64));
    group.bench_function("fan-out of one publisher to 10000", |bencher| {
        bencher.iter(|| {
            leave = !leave;
            let now = rig.begin();
            let datagram = rig.datagram(0..1, leave);
            rig.engine().handle_beats(&[&datagram], now);
            assert_eq!(rig.flush().writes, WATCHERS);
        });
    });
    for conn in streams {
        rig.reset(conn);
    }
}

/// A hundred publishers come or go at once, and each of a thousand streams watches them all: what a
/// state costs.
fn many_publishers(group: &mut Group<'_>, rig: &mut Rig) {
    const WATCHERS: usize = 1_000;
    const PUBLISHERS: u32 = 100;
    let streams: Vec<_> = (0..WATCHERS)
        .map(|_| rig.stream(100..100 + PUBLISHERS))
        .collect();
    let mut leave = false;
    let states = WATCHERS as u64 * u64::from(PUBLISHERS);
    group.throughput(Throughput::Elements(states));
    group.bench_function("fan-out of 100 publishers to 1000", |bencher| {
        let before = rig.engine().counters().counter(Counter::StatesDelivered);
        let mut turns = 0;
        bencher.iter(|| {
            turns += 1;
            leave = !leave;
            let now = rig.begin();
            let datagrams = [rig.datagram(100..150, leave), rig.datagram(150..200, leave)];
            rig.engine()
                .handle_beats(&[&datagrams[0], &datagrams[1]], now);
            assert_eq!(rig.flush().writes, WATCHERS);
        });
        let told = rig.engine().counters().counter(Counter::StatesDelivered) - before;
        assert_eq!(told, turns * states);
    });
    for conn in streams {
        rig.reset(conn);
    }
}

/// A stream of ten watches comes and goes, beside a hundred thousand of them.
fn watches(group: &mut Group<'_>, users: u32) {
    const STREAMS: u32 = 100_000;
    const EACH: usize = 10;
    let mut random = fastrand::Rng::with_seed(7);
    let mut watches = Watches::default();
    let mut targets = |to: &mut Vec<Target>| {
        to.clear();
        to.extend((0..EACH).map(|_| Target::slot(random.u32(0..users))));
    };
    let mut list = Vec::new();
    for conn in 0..STREAMS {
        targets(&mut list);
        watches.add(conn, &mut list, false);
    }
    let mut conns = (0..STREAMS).cycle();
    group.throughput(Throughput::Elements(1));
    group.bench_function("end 10 watches and add 10 others", |bencher| {
        bencher.iter(|| {
            let conn = conns.next().expect("a cycle has no end");
            watches.clear(conn);
            targets(&mut list);
            let added = watches.add(conn, &mut list, true);
            assert_eq!(watches.marks(conn), added);
        });
    });
}

fn watches_of_a_crowd(group: &mut Group<'_>) {
    let mut watches = Watches::default();
    let star = Target::slot(1);
    for conn in 0..CROWD {
        watches.add(conn, &mut vec![star], false);
    }
    let mut conns = (0..CROWD).map(|n| n.wrapping_mul(7_919) % CROWD).cycle();
    let mut list = Vec::new();
    group.throughput(Throughput::Elements(1));
    group.bench_function("leave a crowd of 100000 and join it again", |bencher| {
        bencher.iter(|| {
            let conn = conns.next().expect("a cycle has no end");
            assert!(watches.remove(conn, star));
            list.push(star);
            assert_eq!(watches.add(conn, &mut list, false), 1);
            list.clear();
        });
    });
    group.throughput(Throughput::Elements(u64::from(CROWD)));
    group.bench_function("mark a crowd of 100000 and take the marks", |bencher| {
        bencher.iter(|| {
            let mut queued = 0;
            let count = watches.mark(1, |_| queued += 1);
            let expected = MarkCount {
                marks: u64::from(CROWD),
                coalesced: 0,
            };
            assert_eq!((count, queued), (expected, CROWD));
            let left: usize = (0..CROWD)
                .map(|conn| watches.take_marks(conn, 0, |_| true))
                .sum();
            assert_eq!(left, 0);
        });
    });
}

fn parse(group: &mut Group<'_>) {
    let limits = RequestLimits {
        head_bytes_max: 8_192,
        header_count_max: 64,
        body_bytes_max: 1_048_576,
    };
    let path = format!("/v1/presence/{}", String::from_utf8_lossy(&id_of(1)));
    for (name, input) in [
        ("parse_head, as wrk", WRK_HEAD),
        ("parse_head, as a browser", BROWSER_HEAD),
    ] {
        group.throughput(Throughput::Elements(1));
        group.bench_function(name, |bencher| {
            bencher.iter(|| match parse_head(input, &limits) {
                Parsed::Head { head, head_bytes } => {
                    assert_eq!((head.path.len(), head_bytes), (path.len(), input.len()));
                }
                other => panic!("{other:?}"),
            });
        });
    }
}
