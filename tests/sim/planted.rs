//! The simulator's own proof: bugs are planted, and each must be caught within a few seeds that
//! pass without it.

use greendot::planted::{Planted, plant};

use crate::{Plan, plan, restart, run, split};

/// Within so many seeds each bug must be caught.
const SEEDS: u64 = 80;
/// Seeds that caught a bug lately where the first few did not: they are tried before the others.
/// One that catches it no more costs time and nothing else.
const CAUGHT_LATELY: [(Planted, u64); 4] = [
    (Planted::SnapshotBeforeWatch, 0x27),
    (Planted::DeafResync, 0x11),
    (Planted::ResumeWithoutSlack, 0x16),
    (Planted::HolderVouchedFor, 0x3b),
];

/// The first seed whose run fails; panics if none does. The same seed must pass without the bug.
fn catch<O>(
    name: &str,
    bug: Option<Planted>,
    with: Plan,
    without: Plan,
    run: fn(Plan) -> Result<O, String>,
) -> String {
    let lately = CAUGHT_LATELY
        .iter()
        .filter(|(caught, _)| Some(*caught) == bug);
    for seed in lately.map(|(_, seed)| *seed).chain(1..=SEEDS) {
        plant(bug);
        let caught = run(Plan { seed, ..with });
        plant(None);
        if let Err(why) = caught {
            if let Err(why) = run(Plan { seed, ..without }) {
                panic!("fails without {name}, too: {why}");
            }
            let why = why.lines().next().unwrap_or("").to_owned();
            return format!("{name}: {}", why.chars().take(160).collect::<String>());
        }
    }
    panic!("{name} was not caught within {SEEDS} seeds");
}

fn each<O>(bugs: &[Planted], plan: Plan, run: fn(Plan) -> Result<O, String>) {
    // One alone, by its name.
    let chosen = std::env::var("SIM_BUG").ok();
    for bug in bugs {
        if chosen
            .as_ref()
            .is_some_and(|name| *name != format!("{bug:?}"))
        {
            continue;
        }
        println!(
            "{}",
            catch(&format!("{bug:?}"), Some(*bug), plan, plan, run)
        );
    }
}

#[test]
fn a_mailbox_that_drops_without_its_flag_is_caught() {
    let flagless = Plan {
        flagless_mailbox: true,
        ..plan(0)
    };
    println!("{}", catch("FlaglessMailbox", None, flagless, plan(0), run));
}

// Two tests, so that two cores have something to do.

#[test]
fn planted_bugs_are_caught_first_half() {
    each(&Planted::ALL[..Planted::ALL.len() / 2], plan(0), run);
}

#[test]
fn planted_bugs_are_caught_second_half() {
    each(&Planted::ALL[Planted::ALL.len() / 2..], plan(0), run);
}

#[test]
fn split_planted_bugs_are_caught() {
    each(&Planted::SPLIT, split::plan(0), split::run);
}

#[test]
fn restart_planted_bugs_are_caught() {
    each(&Planted::RESTART, restart::plan(0), restart::run);
}
