//! A bad network: beats that are lost, late, out of order or doubled.

use crate::harness::pause;

use super::tap::Manner;
use super::watcher::Watcher;
use super::world::{FAST, Setup, Split};

const PUBLISHERS_OF_EACH: usize = 30;
/// Datagrams that vouch for the same publishers within `offline-after-ms`: all must be lost for one
/// to flip, a chance of 1e-20.
const SETUP: Setup = Setup {
    flags: FAST,
    presence_flags: &[],
    taps: Some(Manner {
        datagram_delay_ms_max: 400,
        piece_delay_ms_max: 40,
        twice_percent: 10,
    }),
};
const LOST_PERCENT: u32 = 10;

#[test]
fn beats_lost_late_doubled_and_out_of_order_flip_nobody() {
    Split::run(SETUP, |split| {
        let lossy = split.lose_percent(LOST_PERCENT);
        let users = [
            split.users_of(0, PUBLISHERS_OF_EACH),
            split.users_of(1, PUBLISHERS_OF_EACH),
        ]
        .concat();
        let mut watchers = [0, 1].map(|node| Watcher::new(split.realtime[node].front(), &users));
        let publishers: Vec<_> = users
            .iter()
            .enumerate()
            .map(|(n, user)| split.realtime[n % 2].publish(user))
            .collect();
        for watcher in &mut watchers {
            watcher.expect_all(&users, true);
        }
        // Three times what would be a silence.
        pause(12_000);
        for watcher in &mut watchers {
            watcher.read_for(1);
            watcher.expect_no_flip(&users);
        }

        let (mut sent, mut reordered, mut received) = (0, 0, 0.0);
        for node in &split.presence {
            let (went, out_of_order) = node.udp_tap().passed_on();
            (sent, reordered) = (sent + went, reordered + out_of_order);
            received += node
                .server()
                .metrics()
                .sum("greendot_datagrams_received_total");
        }
        assert!(
            reordered > sent / 50,
            "{reordered} of {sent} came before an earlier one"
        );
        let came = received / sent as f64;
        assert!(
            !lossy || (0.75..0.99).contains(&came),
            "{received} of {sent} arrived"
        );

        // Who leaves is found out all the same.
        drop(publishers);
        for watcher in &mut watchers {
            watcher.expect_all(&users, false);
        }
    });
}
