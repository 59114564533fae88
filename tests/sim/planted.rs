//! The simulator's own proof: bugs are planted, and each must be caught within a few seeds that pass without it.

use greendot::planted::{Planted, plant};

use crate::{Plan, plan, run};

/// Within so many seeds each bug must be caught.
const SEEDS: u64 = 60;

/// The first seed whose run fails; panics if none does. The same seed must pass without the bug.
fn catch(name: &str, bug: Option<Planted>, flagless_mailbox: bool) -> String {
    for seed in 1..=SEEDS {
        plant(bug);
        let caught = run(Plan {
            flagless_mailbox,
            ..plan(seed)
        });
        plant(None);
        if let Err(why) = caught {
            if let Err(why) = run(plan(seed)) {
                panic!("fails without {name}, too: {why}");
            }
            let why = why.lines().next().unwrap_or("").to_owned();
            return format!("{name}: {}", why.chars().take(160).collect::<String>());
        }
    }
    panic!("{name} was not caught within {SEEDS} seeds");
}

fn each(bugs: &[Planted]) {
    for bug in bugs {
        println!("{}", catch(&format!("{bug:?}"), Some(*bug), false));
    }
}

#[test]
fn a_mailbox_that_drops_without_its_flag_is_caught() {
    println!("{}", catch("FlaglessMailbox", None, true));
}

// Two tests, so that two cores have something to do.

#[test]
fn planted_bugs_are_caught_first_half() {
    each(&Planted::ALL[..Planted::ALL.len() / 2]);
}

#[test]
fn planted_bugs_are_caught_second_half() {
    each(&Planted::ALL[Planted::ALL.len() / 2..]);
}
