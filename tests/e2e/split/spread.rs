//! How beats are spread: over datagrams, source ports, the interval, and the shards that receive
//! them.

use std::collections::{BTreeMap, BTreeSet};

use greendot::limits::raise_nofile;
use greendot::time::Unix;
use greendot::wire::beat::{DATAGRAM_BYTES_MAX, HEAD_BYTES, Keys, MAC_BYTES, open};

use crate::harness::until;

use super::tap::{Datagram, Manner};
use super::world::{Setup, Split};

const BEAT_INTERVAL_MS: u64 = 500;
const PUBLISHERS: usize = 1_000;
/// Long ids: an interval's beats fill many datagrams.
const ID_BYTES: usize = 128;
const ENTRIES_MAX: usize = (DATAGRAM_BYTES_MAX - HEAD_BYTES - MAC_BYTES) / (ID_BYTES + 1);
/// By lot, shares of so many datagrams differ by a quarter once in 10^7 times.
const DATAGRAMS: f64 = 2_000.0;

fn publisher(n: usize) -> String {
    format!("{n:0>ID_BYTES$}")
}

/// The sum of a series over both real-time nodes.
fn sum(split: &Split<'_>, series: &str) -> f64 {
    split
        .realtime
        .iter()
        .map(|node| node.server().metrics().sum(series))
        .sum()
}

#[test]
fn beats_are_spread_over_shards_ports_and_the_interval() {
    let setup = Setup {
        flags: &[
            "--beat-interval-ms=500",
            "--offline-after-ms=10s",
            "--shards=2",
        ],
        presence_flags: &[],
        taps: Some(Manner::PLAIN),
    };
    Split::run(setup, |split| {
        raise_nofile().expect("the hard limit is ours to use");
        // Past the taps, which would need four descriptors and two threads for each.
        let publish = |n: usize| {
            split.realtime[n % 2]
                .server()
                .stream(&format!("user={}", publisher(n)))
        };
        let publishers: Vec<_> = (0..PUBLISHERS).map(publish).collect();
        let online = |split: &Split<'_>| -> f64 {
            split
                .presence
                .iter()
                .map(|node| node.server().metrics().sum("greendot_users_online"))
                .sum()
        };
        until("all are online", || {
            (online(split) == PUBLISHERS as f64).then_some(())
        });

        // From here on nobody connects: every beat comes in its turn.
        let beats_of_shard = |node: usize, shard: usize| {
            let series = format!("greendot_beats_total{{source=\"udp\",shard=\"{shard}\"}}");
            split.presence[node].server().metrics().sum(&series)
        };
        let shares = |node: usize| [0, 1].map(|shard| beats_of_shard(node, shard));
        let counted = || {
            [
                "greendot_beats_sent_total",
                "greendot_relay_datagrams_total",
            ]
            .map(|series| sum(split, series))
        };
        let came = |node: usize| split.presence[node].udp_tap().datagrams().len();
        let (before, counted_before, came_before) =
            ([0, 1].map(shares), counted(), [0, 1].map(came));
        until("enough datagrams have come", || {
            let least = [0, 1]
                .map(|node| came(node) - came_before[node])
                .into_iter()
                .min();
            (least >= Some(DATAGRAMS as usize)).then_some(())
        });
        let (after, counted_after) = ([0, 1].map(shares), counted());
        for node in 0..2 {
            let [one, other] = [0, 1].map(|shard| after[node][shard] - before[node][shard]);
            assert!(
                one.max(other) <= 1.25 * one.min(other),
                "node {node}: {one} and {other}"
            );
        }

        // As many entries as fit.
        let [beats, datagrams] = [0, 1].map(|n| counted_after[n] - counted_before[n]);
        assert!(
            beats / datagrams > ENTRIES_MAX as f64 * 0.9,
            "{beats} in {datagrams}"
        );

        let keys = Keys::single(split.key.clone());
        for (node, came_before) in came_before.into_iter().enumerate() {
            let datagrams = split.presence[node]
                .udp_tap()
                .datagrams()
                .split_off(came_before);
            let mut sent = [Sent::default(), Sent::default()];
            for datagram in datagrams {
                assert!(datagram.bytes.len() <= DATAGRAM_BYTES_MAX);
                let beats = open(
                    &datagram.bytes,
                    &keys,
                    Unix::from_ms(datagram.at_ms),
                    60_000,
                )
                .expect("it is whole");
                let users: Vec<usize> = beats
                    .users()
                    .map(|user| user.as_str().parse().expect("digits"))
                    .collect();
                sent[users[0] % 2].add(&datagram, users.len());
            }
            for sent in sent {
                assert!(sent.ports.len() >= 8, "{:?}", sent.ports);
                let median = sent.median_peak_percent();
                assert!(
                    median <= 60,
                    "the fullest fifth of an interval has {median} % of its beats"
                );
            }
        }
        drop(publishers);
    });
}

/// What one real-time node has sent to one presence node.
#[derive(Default)]
struct Sent {
    ports: BTreeSet<u16>,
    /// Beats by interval and by the fifth of it in which they came.
    intervals: BTreeMap<u64, [usize; 5]>,
}

impl Sent {
    fn add(&mut self, datagram: &Datagram, beats: usize) {
        self.ports.insert(datagram.from.port());
        let fifth = datagram.at_ms % BEAT_INTERVAL_MS / (BEAT_INTERVAL_MS / 5);
        self.intervals
            .entry(datagram.at_ms / BEAT_INTERVAL_MS)
            .or_default()[fifth as usize] += beats;
    }

    /// How much of an interval's beats its fullest fifth has. On a machine that is busy with others
    /// some intervals are bursts; not most.
    fn median_peak_percent(&self) -> usize {
        let peak = |fifths: &[usize; 5]| {
            100 * fifths.iter().max().expect("five") / fifths.iter().sum::<usize>()
        };
        let mut peaks: Vec<usize> = self.intervals.values().map(peak).collect();
        peaks.sort_unstable();
        peaks[peaks.len() / 2]
    }
}
