//! Beats that never arrive, while all else goes through: a firewall that drops UDP and says
//! nothing.

use crate::harness::{pause, until};

use super::tap::Manner;
use super::watcher::{State, Watcher};
use super::world::{Node, Setup, Split};

const OFFLINE_AFTER_MS: u64 = 6_000;
const SETUP: Setup = Setup {
    flags: &[
        "--beat-interval-ms=500",
        "--offline-after-ms=6000",
        "--sweep-interval-ms=50",
        "--shards=2",
    ],
    presence_flags: &[],
    taps: Some(Manner::PLAIN),
};
const PUBLISHERS: usize = 21;
/// As the defaults stand to each other.
const BRIEF: Setup = Setup {
    flags: &[
        "--beat-interval-ms=1000",
        "--offline-after-ms=2500",
        "--sweep-interval-ms=50",
    ],
    presence_flags: &[],
    taps: None,
};

/// What was told of a user from the first time online on, each state once.
fn flips<'w>(watcher: &'w Watcher, user: &str) -> Vec<&'w State> {
    let mut told = watcher.known(user);
    told.dedup_by_key(|state| (state.online, state.since));
    let first = told.iter().position(|state| state.online == Some(true));
    told.split_off(first.expect("online once"))
}

/// Lines of a node's log that say so.
fn said(node: &Node<'_>, what: &str) -> usize {
    node.server().log().matches(what).count()
}

#[test]
fn beats_that_never_arrive_are_noticed_and_flip_nobody() {
    Split::run(SETUP, |split| {
        let users = [split.users_of(0, PUBLISHERS), split.users_of(1, PUBLISHERS)].concat();
        let mut watchers = [0, 1].map(|node| Watcher::new(split.realtime[node].front(), &users));
        let publishers: Vec<_> = users
            .iter()
            .enumerate()
            .map(|(n, user)| split.realtime[n % 2].publish(user))
            .collect();
        for watcher in &mut watchers {
            watcher.expect_all(&users, true);
        }
        split.presence[0].udp_tap().drop_all(true);
        let link = format!(
            "degraded: beats do not arrive at http://{} as datagrams\n",
            split.presence[0].front()
        );
        for node in &split.realtime {
            until("it says which link", || {
                (node.server().get("/readyz").text() == link).then_some(())
            });
        }
        pause(OFFLINE_AFTER_MS + 1_000);
        for watcher in &mut watchers {
            watcher.read_for(1);
            watcher.expect_no_flip(&users);
        }
        for node in &split.realtime {
            let sent = node
                .server()
                .metrics()
                .sum("greendot_relay_datagrams_bundled_total");
            assert!(sent > 10.0, "{sent}");
            assert_eq!(
                said(node, "beats do not arrive"),
                1,
                "{}",
                node.server().log()
            );
        }

        split.presence[0].udp_tap().drop_all(false);
        for node in &split.realtime {
            until("they arrive again", || {
                (node.server().get("/readyz").text() == "ready\n").then_some(())
            });
            until("that is in the log", || {
                (said(node, "datagrams again") == 1).then_some(())
            });
        }
        // Who leaves is found out all the same.
        drop(publishers);
        for watcher in &mut watchers {
            watcher.expect_all(&users, false);
        }
    });
}

/// What a presence node does not store says nothing of the way there.
#[test]
fn a_user_for_whom_a_presence_node_has_no_room_leaves_the_link_trusted() {
    let setup = Setup {
        presence_flags: &["--users-max=1"],
        ..BRIEF
    };
    Split::run(setup, |split| {
        let users = split.users_of(0, 2);
        let (node, owner) = (&split.realtime[0], &split.presence[0]);
        let first = node.publish(&users[0]);
        let refused = "greendot_beats_refused_total{reason=\"users_max\"}";
        let refused = || owner.server().metrics().sum(refused);
        until("the one place is taken", || {
            owner.server().record(&users[0]).since.map(drop)
        });
        drop(first);
        let _stream = node.publish(&users[1]);
        // Looked for each second: many times.
        until("beats are refused again and again", || {
            (refused() >= 15.0).then_some(())
        });
        assert_eq!(node.server().get("/readyz").text(), "ready\n");
        assert_eq!(said(node, "beats do not arrive"), 0);
    });
}

#[test]
fn a_holder_that_answers_nothing_any_more_is_told_offline_once_and_in_time() {
    Split::run(BRIEF, |split| {
        let users = split.users_of(0, 3);
        let mut watchers = [0, 1].map(|node| Watcher::new(split.realtime[node].front(), &users));
        // The sockets stay open, and nobody reads or answers a ping.
        let frozen: Vec<_> = users
            .iter()
            .map(|user| split.realtime[0].publish(&format!("{user}&vouch=self")))
            .collect();
        for watcher in &mut watchers {
            watcher.expect_all(&users, true);
            watcher.expect_all(&users, false);
            watcher.read_for(4_000);
            for user in &users {
                let flips = flips(watcher, user);
                let online: Vec<_> = flips.iter().map(|state| state.online).collect();
                assert_eq!(online, [true, false].map(Some), "{user}: {flips:?}");
            }
        }
        for user in &users {
            let record = split.owner(user).server().record(user);
            let online = flips(&watchers[1], user)[0];
            // One who had been heard since would have been active later.
            assert!(
                record.last_active() <= online.since(),
                "{record:?}, {online:?}"
            );
        }
        drop(frozen);
    });
}
