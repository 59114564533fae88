//! A real-time node that takes connections and says nothing.

use std::collections::BTreeMap;

use rustix::process::Signal;

use super::tap::Manner;
use super::watcher::Watcher;
use super::world::{Setup, Split};

const SETUP: Setup = Setup {
    // Nobody turns offline by silence here: not even those whose node hangs.
    flags: &[
        "--beat-interval-ms=1s",
        "--offline-after-ms=60s",
        "--shards=1",
    ],
    presence_flags: &[],
    taps: Some(Manner::PLAIN),
};
const USERS: usize = 20;
const ROUNDS: usize = 4;

#[test]
fn a_node_that_hangs_holds_up_nobody_and_is_told_what_is() {
    Split::run(SETUP, |split| {
        let users = split.users_of(0, USERS);
        let by_ref: Vec<&str> = users.iter().map(String::as_str).collect();
        let sender = split.sender(0);
        let mut watchers = [0, 1].map(|node| Watcher::new(split.realtime[node].front(), &users));
        sender.beat(&by_ref);
        watchers
            .iter_mut()
            .for_each(|watcher| watcher.expect_all(&users, true));
        split.expect_all_told();

        split.realtime[0].server().process.stop();
        for _ in 0..ROUNDS {
            sender.leave(&by_ref);
            watchers[1].expect_all(&users, false);
            sender.beat(&by_ref);
            watchers[1].expect_all(&users, true);
        }
        // Half of them leave for good.
        let (gone, there) = users.split_at(USERS / 2);
        sender.leave(&by_ref[..gone.len()]);
        watchers[1].expect_all(gone, false);
        let presence = split.presence[0].server();
        presence.expect_metric("greendot_nodes_down", |down| down == 1.0);
        let waits = presence.metrics().sum("greendot_relay_queue");
        assert!(waits <= 2.0 * USERS as f64, "{waits}");

        split.realtime[0].server().process.signal(Signal::CONT);
        let record = |user: &String| presence.record(user);
        let newest: BTreeMap<_, _> = users
            .iter()
            .map(|user| (user, record(user).since))
            .collect();
        watchers[0].read_until("the final states", |watcher| {
            users
                .iter()
                .all(|user| watcher.last(user).since == newest[user])
        });
        watchers[0].expect_all(gone, false);
        watchers[0].expect_all(there, true);
        split.expect_all_told();
        presence.expect_metric("greendot_nodes_down", |down| down == 0.0);
    });
}

#[test]
fn many_states_go_over_one_connection() {
    Split::run(SETUP, |split| {
        let bob = split.users_of(0, 1);
        let sender = split.sender(0);
        let mut watcher = Watcher::new(split.realtime[0].front(), &bob);
        let presence = split.presence[0].server();
        // A node that was not listening yet is told a little later, by a link that works.
        sender.beat(&[&bob[0]]);
        watcher.expect_all(&bob, true);
        split.expect_all_told();
        let failed = || {
            presence
                .metrics()
                .sum("greendot_relay_requests_total{outcome=\"failed\"}")
        };
        let failed_before = failed();
        let put = format!("PUT /v1/presence/{} ", bob[0].replace('-', "%2D"));
        let connections = || {
            let asked = split.realtime[0]
                .http_tap()
                .bytes()
                .into_iter()
                .map(|(asked, _)| asked);
            let puts = asked.map(|asked| String::from_utf8_lossy(&asked).matches(&put).count());
            puts.filter(|puts| *puts > 0).collect::<Vec<usize>>()
        };
        let before = connections();
        for _ in 0..10 {
            sender.leave(&[&bob[0]]);
            watcher.expect_all(&bob, false);
            sender.beat(&[&bob[0]]);
            watcher.expect_all(&bob, true);
        }
        let after = connections();
        assert!(
            after.iter().sum::<usize>() >= before.iter().sum::<usize>() + 20,
            "{after:?}"
        );
        // What was told before may have gone in another form, over the same connection. One that
        // was not answered in time has cost its own.
        let most = before.len().max(1) as f64 + failed() - failed_before;
        assert!(after.len() as f64 <= most, "{after:?} after {before:?}");
    });
}
