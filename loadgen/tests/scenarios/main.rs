//! A fleet of three nodes on a real cluster of Redis, under `churn`, while something fails: nobody
//! is told wrongly, and 15 s after it is mended all nodes agree with the truth.
//!
//! One driver (`field`) and one list of scenarios, below. Times are multiples of the lease, which
//! is `--offline-after-ms`. Five of them run in tests/run; all of them, with more users, in
//! tests/long. The server is the `greendot` beside the generator in the target folder; without it
//! or without redis-server they say so and pass.
//!
//! Knobs: SCENARIO_USERS (300), SCENARIO_SEED (1).

#![expect(clippy::unwrap_used, reason = "a test's unwrap is an assertion")]

mod faults;
mod field;
#[path = "../../../tests/fleet/members.rs"]
mod members;
mod network;
#[path = "../../../tests/fleet/redis.rs"]
#[allow(dead_code, reason = "the tests of the library ask more")]
mod redis;

use crate::field::{Kind, play};

/// Each is a test of its own name, which is also that of what is done to the field.
macro_rules! scenarios {
    ($($(#[$attribute:meta])* $name:ident: $kind:expr;)+) => {
        $(
            #[test]
            $(#[$attribute])*
            fn $name() {
                play(stringify!($name), $kind, faults::$name);
            }
        )+
    };
}

scenarios! {
    a_node_is_killed: Kind::Plain;
    a_failover_loses_acknowledged_writes: Kind::Plain;
    slots_move_under_load: Kind::Plain;
    all_of_redis_stands_still: Kind::Plain;
    nodes_are_restarted_in_turn: Kind::Plain;

    #[ignore = "tests/long"]
    all_nodes_but_one_are_killed: Kind::Plain;
    #[ignore = "tests/long"]
    nodes_are_killed_and_started_in_turn: Kind::Plain;
    #[ignore = "tests/long"]
    two_versions_serve_side_by_side: Kind::Plain;
    #[ignore = "tests/long"]
    primaries_are_killed_in_turn: Kind::Plain;
    #[ignore = "tests/long"]
    primaries_hand_over: Kind::Plain;
    #[ignore = "tests/long"]
    one_primary_stands_still: Kind::Plain;
    #[ignore = "tests/long"]
    partitions_are_deleted: Kind::Plain;
    #[ignore = "tests/long"]
    everything_is_deleted: Kind::Plain;
    #[ignore = "tests/long"]
    subscriptions_are_killed_each_second: Kind::Plain;
    #[ignore = "tests/long"]
    a_subscriber_is_cut_off_for_what_it_has_not_read: Kind::Plain;
    #[ignore = "tests/long"]
    a_node_is_cut_off_for_less_than_its_lease: Kind::Cut;
    #[ignore = "tests/long"]
    a_node_is_cut_off_for_longer_than_its_lease: Kind::LongCut;
    #[ignore = "tests/long"]
    a_node_is_cut_off_from_one_primary: Kind::Cut;
}
