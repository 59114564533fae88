//! Nodes that die and links that are cut: nobody flips who should not, and afterwards every watcher
//! sees what is.

use std::collections::BTreeMap;

use crate::harness::{pause, unix_ms, until};
use crate::stream::Stream;

use super::tap::Manner;
use super::watcher::{State, Watcher};
use super::world::{FAST, OFFLINE_AFTER_MS, Setup, Split};

const SETUP: Setup = Setup {
    flags: FAST,
    presence_flags: &[],
    taps: None,
};
/// Publishers of each presence node: half of them at each real-time node.
const PUBLISHERS_OF_EACH: usize = 20;

/// Publishers' streams, and a watcher of all of them at each real-time node.
struct Crowd {
    users: Vec<String>,
    streams: BTreeMap<String, Stream>,
    watchers: [Watcher; 2],
}

impl Crowd {
    /// All are online, and both watchers know.
    fn gather(split: &Split<'_>) -> Crowd {
        let users = [
            split.users_of(0, PUBLISHERS_OF_EACH),
            split.users_of(1, PUBLISHERS_OF_EACH),
        ]
        .concat();
        let mut watchers = [0, 1].map(|node| Watcher::new(split.realtime[node].front(), &users));
        let publish =
            |(n, user): (usize, &String)| (user.clone(), split.realtime[n % 2].publish(user));
        let streams = users.iter().enumerate().map(publish).collect();
        watchers
            .iter_mut()
            .for_each(|watcher| watcher.expect_all(&users, true));
        Crowd {
            users,
            streams,
            watchers,
        }
    }

    /// Some of a presence node's publishers leave without a word. Who they are, and who stays.
    fn leave(
        &mut self,
        split: &Split<'_>,
        node: usize,
        count: usize,
    ) -> (Vec<String>, Vec<String>) {
        let of_node = |user: &&String| split.nodes.of(user.as_bytes()) == node;
        let leavers: Vec<String> = self
            .streams
            .keys()
            .filter(of_node)
            .take(count)
            .cloned()
            .collect();
        for leaver in &leavers {
            self.streams.remove(leaver).expect("it was there");
        }
        (leavers, self.streams.keys().cloned().collect())
    }
}

fn last_active(split: &Split<'_>, user: &str) -> u64 {
    split.owner(user).server().record(user).last_active()
}

/// A presence node is gone for longer than a silence: real-time nodes see it, say it, and serve
/// what they know. Then it is back.
fn lose_and_find(split: &mut Split<'_>, crowd: &mut Crowd, node: usize, power_cut: bool) {
    let before: BTreeMap<_, _> = crowd
        .streams
        .keys()
        .map(|user| (user.clone(), last_active(split, user)))
        .collect();
    let (leavers, stayers) = crowd.leave(split, node, 4);
    if power_cut {
        // Nobody is told that connections have ended.
        split.presence[node].vanish();
    }
    split.presence[node].kill();
    let killed_at = unix_ms();

    for node in &split.realtime {
        node.expect_nodes_down(1);
    }
    pause(OFFLINE_AFTER_MS + 1_000);
    for (node, watcher) in split.realtime.iter().zip(&mut crowd.watchers) {
        watcher.read_for(1);
        watcher.expect_no_flip(&stayers);
        watcher.expect_no_flip(&leavers);
        let fresh = Watcher::new(node.front(), &crowd.users);
        assert_eq!(fresh.view(), watcher.view());
    }

    split.presence[node].start();
    let returned_at = unix_ms();
    for node in &split.realtime {
        node.expect_nodes_down(0);
    }
    for watcher in &mut crowd.watchers {
        watcher.expect_all(&leavers, false);
        for leaver in &leavers {
            let gone = watcher.last(leaver);
            assert!(
                (before[leaver]..=killed_at).contains(&gone.last_active()),
                "{gone:?}"
            );
            // They had time to return.
            assert!(gone.since() >= returned_at, "{gone:?}");
        }
    }
    pause(OFFLINE_AFTER_MS);
    for (node, watcher) in split.realtime.iter().zip(&mut crowd.watchers) {
        watcher.read_for(1);
        watcher.expect_no_flip(&stayers);
        let mut fresh = Watcher::new(node.front(), &crowd.users);
        fresh.expect_all(&stayers, true);
        assert_eq!(fresh.view(), watcher.view());
        for user in &crowd.users {
            let now = split.owner(user).server().record(user);
            assert_eq!(
                (Some(now.online), now.since),
                watcher.view()[user.as_str()],
                "{user}"
            );
        }
    }
}

#[test]
fn a_presence_node_that_dies_and_returns_flips_nobody() {
    Split::run(SETUP, |split| {
        let mut crowd = Crowd::gather(split);
        lose_and_find(split, &mut crowd, 0, false);
        lose_and_find(split, &mut crowd, 1, true);
    });
}

/// What is lost with its files is when each was seen: whoever beats is online again, and whoever
/// does not is offline.
#[test]
fn a_presence_node_that_returns_without_its_files_is_told_of_all_who_are_there() {
    Split::run(SETUP, |split| {
        let mut crowd = Crowd::gather(split);
        split.expect_all_told();
        let (leavers, stayers) = crowd.leave(split, 0, 4);
        split.presence[0].kill();
        for node in &split.realtime {
            node.expect_nodes_down(1);
        }
        split.presence[0].lose_files();
        split.presence[0].start();
        for node in &split.realtime {
            node.expect_nodes_down(0);
        }
        for (node, watcher) in split.realtime.iter().zip(&mut crowd.watchers) {
            watcher.expect_all(&leavers, false);
            watcher.expect_all(&stayers, true);
            node.expect_caught_up();
            let mut fresh = Watcher::new(node.front(), &crowd.users);
            fresh.expect_all(&leavers, false);
            fresh.expect_all(&stayers, true);
            for user in &stayers {
                let now = split.owner(user).server().record(user);
                assert_eq!(
                    (now.online, now.since),
                    (true, fresh.last(user).since),
                    "{user}"
                );
            }
        }
        // It knows nobody of before.
        for user in &leavers {
            let forgotten = split.owner(user).server().record(user);
            assert_eq!(forgotten, crate::harness::Record::never_seen(user));
        }
    });
}

#[test]
fn a_real_time_node_that_is_killed_and_returns_is_told_what_is() {
    let setup = Setup {
        flags: &[
            "--beat-interval-ms=1s",
            "--offline-after-ms=60s",
            "--sweep-interval-ms=50",
            "--shards=1",
        ],
        taps: Some(Manner::PLAIN),
        ..SETUP
    };
    const CHURNERS: usize = 25;
    Split::run(setup, |split| {
        let mut crowd = Crowd::gather(split);
        // These beat past the real-time nodes, to presence node 0.
        let churners = split
            .users_of(0, PUBLISHERS_OF_EACH + CHURNERS)
            .split_off(PUBLISHERS_OF_EACH);
        let churners_by_ref: Vec<&str> = churners.iter().map(String::as_str).collect();
        let sender = split.sender(0);

        split.expect_all_told();
        split.realtime[0].kill();
        let rest = |crowd: &mut Crowd| std::mem::take(&mut crowd.streams);
        let mut homeless = Vec::new();
        for (n, (user, stream)) in rest(&mut crowd).into_iter().enumerate() {
            let of_killed = crowd
                .users
                .iter()
                .position(|known| *known == user)
                .expect("known")
                % 2
                == 0;
            match of_killed {
                // Some reconnect to the other node at once, some wait for theirs.
                true if n % 4 == 0 => {
                    crowd
                        .streams
                        .insert(user.clone(), split.realtime[1].publish(&user));
                }
                true => homeless.push(user),
                false => {
                    crowd.streams.insert(user, stream);
                }
            }
        }

        // Many changes of a few publishers: one entry each waits.
        let relay = |series: &str| split.presence[0].server().metrics().sum(series);
        let online = || relay("greendot_users_online");
        let calm = online();
        for _ in 0..6 {
            sender.beat(&churners_by_ref);
            until("they come", || {
                (online() >= calm + CHURNERS as f64).then_some(())
            });
            sender.leave(&churners_by_ref);
            until("they go", || (online() <= calm).then_some(()));
            let queue = relay("greendot_relay_queue");
            assert!(
                queue <= 2.0 * (PUBLISHERS_OF_EACH + CHURNERS) as f64,
                "{queue}"
            );
        }
        sender.beat(&churners_by_ref);
        until("they come to stay", || {
            (online() >= calm + CHURNERS as f64).then_some(())
        });
        let record = |user: &String| split.owner(user).server().record(user);
        let newest: BTreeMap<_, _> = churners
            .iter()
            .map(|user| (user.clone(), record(user).since))
            .collect();
        let told_newest = |watcher: &Watcher| {
            churners
                .iter()
                .all(|user| watcher.last(user).since == newest[user])
        };
        let mut elsewhere = Watcher::new(split.realtime[1].front(), &churners);
        elsewhere.read_until("the living node is told", told_newest);
        elsewhere.expect_all(&churners, true);
        // The living node has been told; what is left waits for the dead one.
        let waits = until("the living node's share is told", || {
            let queue = relay("greendot_relay_queue");
            (queue <= CHURNERS as f64).then_some(queue)
        });
        assert_eq!(waits, CHURNERS as f64);
        until("the dead one is found so", || {
            (relay("greendot_nodes_down") == 1.0).then_some(())
        });
        let told_before = split.realtime[0].http_tap().exchanges("PUT ").len();

        split.realtime[0].start();
        for user in homeless {
            let stream = split.realtime[0].publish(&user);
            crowd.streams.insert(user, stream);
        }
        split.expect_all_told();
        split.presence[0].expect_nodes_down(0);
        let everybody = [crowd.users.clone(), churners.clone()].concat();
        let mut returned = Watcher::new(split.realtime[0].front(), &everybody);
        returned.read_until("the returned node is told", told_newest);
        returned.expect_all(&everybody, true);
        crowd.watchers[1].read_for(300);
        crowd.watchers[1].expect_no_flip(&crowd.users);
        for user in &crowd.users {
            assert_eq!(
                returned.last(user).since,
                crowd.watchers[1].last(user).since,
                "{user}"
            );
        }

        // Of those who changed while it was dead the last state and nothing else, however often
        // they did.
        let puts = split.realtime[0]
            .http_tap()
            .exchanges("PUT ")
            .split_off(told_before);
        for user in &churners {
            let quoted = format!("\"user\":\"{user}\"");
            let newest = format!(
                "{quoted},\"status\":\"online\",\"online\":true,\"since\":{},",
                newest[user].expect("online")
            );
            let bodies = puts.iter().map(|put| put.request.body_text());
            let told: Vec<&str> = bodies.filter(|body| body.contains(&quoted)).collect();
            assert!(!told.is_empty(), "{user}");
            for body in told {
                assert!(
                    body.contains(&newest) && body.matches(&quoted).count() == 1,
                    "{user}: {body}"
                );
            }
        }
    });
}

/// Beats are so rare that many would not be heard of again in their turn before anybody is told
/// that they are silent.
#[test]
fn a_link_that_is_cut_for_longer_than_a_silence_is_repaired() {
    const RARE_BEAT_MS: u64 = 9_000;
    let setup = Setup {
        flags: &[
            "--beat-interval-ms=9s",
            "--offline-after-ms=18s",
            "--sweep-interval-ms=50",
            "--shards=1",
        ],
        ..SETUP
    };
    Split::run(setup, |split| {
        let mut crowd = Crowd::gather(split);
        let users = crowd.users.clone();
        let since: BTreeMap<_, State> = users
            .iter()
            .map(|user| (user.clone(), crowd.watchers[0].last(user).clone()))
            .collect();
        if !split.cut() {
            return;
        }
        let cut_at = unix_ms();
        let (leavers, stayers) = crowd.leave(split, 1, 5);
        // No beats: that is what silence is.
        for node in &split.presence {
            node.server()
                .expect_metric("greendot_users_online", |online| online == 0.0);
        }
        for (node, watcher) in split.realtime.iter().zip(&mut crowd.watchers) {
            node.expect_nodes_down(2);
            pause(1_000);
            watcher.read_for(1);
            watcher.expect_no_flip(&users);
            assert_eq!(Watcher::new(node.front(), &users).view(), watcher.view());
        }
        // They have tried to say so, in vain.
        for node in &split.presence {
            node.server()
                .expect_metric("greendot_nodes_down", |down| down == 2.0);
        }
        let told_before: Vec<BTreeMap<String, usize>> = crowd.watchers.iter().map(counts).collect();

        split.heal();
        let healed_at = unix_ms();
        for node in &split.realtime {
            node.expect_nodes_down(0);
        }
        for (watcher, told_before) in crowd.watchers.iter_mut().zip(&told_before) {
            watcher.read_until("all have turned", |watcher| {
                stayers.iter().all(|user| {
                    watcher.last(user).since > since[user].since
                        && watcher.last(user).online == Some(true)
                }) && leavers
                    .iter()
                    .all(|user| watcher.last(user).online == Some(false))
            });
            watcher.read_for(RARE_BEAT_MS / 2);
            for user in &users {
                let now = &split.owner(user).server().record(user);
                let last = watcher.last(user);
                assert_eq!(
                    (last.online, last.since),
                    (Some(now.online), now.since),
                    "{user}"
                );
                // One state: nobody hears of a silence that was the cut's. (A PUT that was not
                // answered in time comes again.)
                let told = &watcher.known(user)[told_before[user]..];
                let final_state =
                    |state: &&State| (state.online, state.since) == (last.online, last.since);
                assert!(
                    !told.is_empty() && told.iter().all(final_state),
                    "{user}: {told:?}"
                );
            }
            for user in &leavers {
                let gone = watcher.last(user);
                assert!(
                    gone.last_active() <= cut_at + 1_000 && gone.since() < healed_at,
                    "{gone:?}"
                );
            }
        }
        split.expect_all_told();
    });
}

/// How many states were told of each.
fn counts(watcher: &Watcher) -> BTreeMap<String, usize> {
    watcher
        .view()
        .keys()
        .map(|user| ((*user).to_owned(), watcher.known(user).len()))
        .collect()
}
