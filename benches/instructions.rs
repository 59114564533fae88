//! Instructions of the hot paths, counted by callgrind: the same on a busy machine as on an idle
//! one.
//!
//! `tests/instructions` runs these and holds them against `instructions.baseline`. Stores are
//! small: this counts work, not cache misses. Each body gives back what it was given, so that
//! nothing is dropped inside it.

use std::hint::black_box;

use greendot::metrics::Counter;
use greendot::presence::{Sweep, SweepContext, Transition};
use greendot::realtime::ConnId;
use greendot::time::Unix;
use greendot::wire::User;
use greendot::wire::beat::{Epochs, open, open_any};
use greendot::wire::record::Record;
use greendot::wire::request::{Parsed, RequestLimits, parse_head};
use gungraun::prelude::*;

use fixture::{BROWSER_HEAD, FULL, Flushed, Rig, WRK_HEAD, id_of, identity, stream_request, user};

mod fixture;

const USERS: u32 = 8_192;
const SWEPT: u32 = 65_536;
const SKEW_MS_MAX: u64 = 30_000;

const LIMITS: RequestLimits = RequestLimits {
    head_bytes_max: 8_192,
    header_count_max: 64,
    body_bytes_max: 1_048_576,
};

#[library_benchmark]
#[bench::wrk(WRK_HEAD)]
#[bench::browser(BROWSER_HEAD)]
fn head(input: &[u8]) {
    let Parsed::Head { head_bytes, .. } = parse_head(black_box(input), &LIMITS) else {
        panic!("a whole head");
    };
    assert_eq!(head_bytes, input.len());
}

/// A datagram of so many.
fn sealed(entries: u32) -> (Rig, Box<[u8]>, usize) {
    let rig = Rig::new(1);
    let datagram = rig.datagram(0..entries, false);
    (rig, datagram, entries as usize)
}

#[library_benchmark]
#[bench::one(sealed(1))]
#[bench::full(sealed(FULL as u32))]
fn open_beats((rig, datagram, entries): (Rig, Box<[u8]>, usize)) -> (Rig, Box<[u8]>) {
    let beats = open(black_box(&datagram), &rig.keys, rig.now().unix, SKEW_MS_MAX);
    assert_eq!(beats.map(|beats| beats.users().count()), Ok(entries));
    (rig, datagram)
}

fn of_device() -> (Rig, Epochs, Vec<u8>) {
    let rig = Rig::new(1);
    let (epochs, datagram) = (rig.epochs(), rig.device_datagram(0));
    (rig, epochs, datagram)
}

#[library_benchmark]
#[bench::one(of_device())]
fn open_device((rig, epochs, datagram): (Rig, Epochs, Vec<u8>)) -> (Rig, Epochs, Vec<u8>) {
    let now = rig.now().unix;
    let beats = open_any(black_box(&datagram), &rig.keys, &epochs, now, SKEW_MS_MAX);
    assert_eq!(beats.map(|beats| beats.users().count()), Ok(1));
    (rig, epochs, datagram)
}

fn singles() -> (Rig, Vec<Box<[u8]>>) {
    let mut rig = Rig::new(USERS);
    let datagrams = (0..64)
        .map(|n| rig.datagram(n * 97..n * 97 + 1, false))
        .collect();
    rig.begin();
    (rig, datagrams)
}

#[library_benchmark]
#[bench::of_64_datagrams(singles())]
fn handle_beats((mut rig, datagrams): (Rig, Vec<Box<[u8]>>)) -> (Rig, Vec<Box<[u8]>>) {
    let batch: [&[u8]; 64] = std::array::from_fn(|n| &*datagrams[n]);
    let now = rig.now();
    rig.engine().handle_beats(black_box(&batch), now);
    assert_eq!(rig.engine().counters().counter(Counter::BeatsUdp), 64);
    (rig, datagrams)
}

fn known() -> (Rig, Vec<[u8; 16]>) {
    let mut rig = Rig::new(USERS);
    rig.begin();
    (rig, (0..FULL as u32).map(|n| id_of(n * 97)).collect())
}

#[library_benchmark]
#[bench::of_70(known())]
fn record_beats((rig, ids): (Rig, Vec<[u8; 16]>)) -> (Rig, Vec<[u8; 16]>) {
    let now = rig.now();
    let beats: [(User<'_>, Unix); FULL] = std::array::from_fn(|n| (user(&ids[n]), now.unix));
    let mut stored = 0;
    rig.presence
        .record_beats(black_box(&beats), now, &mut |_, outcome| {
            stored += usize::from(outcome.is_ok())
        });
    assert_eq!(stored, FULL);
    (rig, ids)
}

/// A stream that watches 64 users, and the datagram with which they all leave.
fn watching() -> (Rig, Box<[u8]>) {
    let mut rig = Rig::new(USERS);
    rig.begin();
    rig.stream(0..64);
    rig.begin();
    let datagram = rig.datagram(0..64, true);
    (rig, datagram)
}

// Marks, encoding and flush of 64 states on one stream, with the goodbyes that cause them.
#[library_benchmark]
#[bench::of_64(watching())]
fn states((mut rig, datagram): (Rig, Box<[u8]>)) -> (Rig, Box<[u8]>) {
    let now = rig.now();
    rig.engine().handle_beats(black_box(&[&datagram[..]]), now);
    assert_eq!(rig.flush().writes, 1);
    assert_eq!(rig.engine().counters().counter(Counter::EventsPresence), 64);
    (rig, datagram)
}

/// 512 streams that watch one user, and the datagram with which it leaves.
fn watched() -> (Rig, Box<[u8]>) {
    let mut rig = Rig::new(64);
    rig.begin();
    for _ in 0..512 {
        rig.stream(0..1);
    }
    rig.begin();
    let datagram = rig.datagram(0..1, true);
    (rig, datagram)
}

#[library_benchmark]
#[bench::to_512(watched())]
fn fan_out((mut rig, datagram): (Rig, Box<[u8]>)) -> (Rig, Box<[u8]>) {
    let now = rig.now();
    rig.engine().handle_beats(black_box(&[&datagram[..]]), now);
    assert_eq!(rig.flush().writes, 512);
    (rig, datagram)
}

fn swept() -> (Rig, Sweep, Vec<Transition>) {
    let rig = Rig::new(SWEPT);
    let mut sweep = Sweep::new(0, 1);
    let mut out = Vec::new();
    // Once, so that what coming online has left to look at is looked at.
    sweep.begin();
    assert!(sweep.slice(&rig.presence, context(&rig), u32::MAX, usize::MAX, &mut out));
    (rig, sweep, out)
}

fn context(rig: &Rig) -> SweepContext {
    SweepContext {
        now: rig.now(),
        offline_after_ms: 1_000_000_000,
        hold_expiries: false,
    }
}

#[library_benchmark]
#[bench::of_65536_online(swept())]
fn sweep(
    (rig, mut sweep, mut out): (Rig, Sweep, Vec<Transition>),
) -> (Rig, Sweep, Vec<Transition>) {
    sweep.begin();
    assert!(sweep.slice(
        black_box(&rig.presence),
        context(&rig),
        u32::MAX,
        usize::MAX,
        &mut out
    ));
    assert!(out.is_empty(), "nobody came or went");
    (rig, sweep, out)
}

#[library_benchmark]
#[bench::online(Vec::with_capacity(256))]
fn record(mut out: Vec<u8>) -> Vec<u8> {
    let record = Record {
        user: user(b"user-00000000001"),
        status: greendot::status::Status::Online,
        since: Some(Unix::from_ms(1_764_009_600_123)),
        last_active: Some(Unix::from_ms(1_764_009_631_000)),
        stale: false,
    };
    black_box(record).write(&mut out);
    assert_eq!(out.len(), 109);
    out
}

fn connected(requests: usize) -> (Rig, ConnId, Vec<u8>, usize) {
    let mut rig = Rig::new(64);
    rig.begin();
    let conn = rig.connect();
    (rig, conn, WRK_HEAD.repeat(requests), requests)
}

#[library_benchmark]
#[bench::one(connected(1))]
#[bench::pipelined_16(connected(16))]
fn get((mut rig, conn, input, requests): (Rig, ConnId, Vec<u8>, usize)) -> (Rig, Vec<u8>) {
    rig.send(conn, black_box(&input));
    let Flushed { writes, bytes } = rig.flush();
    assert!(writes == 1 && bytes > 150 * requests);
    (rig, input)
}

/// Whose token has been shown before.
fn holding(limited: bool) -> (Rig, ConnId, Vec<u8>) {
    let mut rig = Rig::asking(64, Some(identity(limited)));
    let input = rig.request_of(7);
    let conn = rig.connect();
    rig.send(conn, &input);
    rig.flush();
    rig.begin();
    (rig, conn, input)
}

#[library_benchmark]
#[bench::unlimited(holding(false))]
#[bench::limited(holding(true))]
fn get_with_token((mut rig, conn, input): (Rig, ConnId, Vec<u8>)) -> (Rig, Vec<u8>) {
    rig.send(conn, black_box(&input));
    assert_eq!(rig.flush().writes, 1);
    (rig, input)
}

fn asking() -> (Rig, String) {
    let mut rig = Rig::new(64);
    rig.begin();
    // The tables have grown once.
    let conn = rig.stream(10..20);
    rig.reset(conn);
    rig.begin();
    (rig, stream_request("user=user-00000000007&", 10..20))
}

// Accept, a publisher's request with ten watches, head, hello and snapshot, and the end.
#[library_benchmark]
#[bench::of_10_watches(asking())]
fn connect((mut rig, request): (Rig, String)) -> (Rig, String) {
    let conn = rig.connect();
    rig.send(conn, black_box(request.as_bytes()));
    assert_eq!(rig.flush().writes, 1);
    rig.reset(conn);
    (rig, request)
}

library_benchmark_group!(
    name = hot,
    benchmarks = [
        head,
        open_beats,
        open_device,
        handle_beats,
        record_beats,
        states,
        fan_out,
        sweep,
        record,
        get,
        get_with_token,
        connect
    ]
);

main!(library_benchmark_groups = hot);
