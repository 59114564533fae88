//! A fleet in a simulator: the cores of several nodes, servers of Redis that run the very library,
//! and a network and faults from a seed.
//!
//! docs/SIMULATION.md says what is modelled, what must hold, and which knobs there are.

#![expect(clippy::unwrap_used, reason = "a test's unwrap is an assertion")]

mod cluster;
mod db;
mod faults;
mod fleet;
mod lua;
mod one;
mod world;

use std::collections::BTreeMap;

use faults::Fault;
use greendot::planted::Planted;

fn knob(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn nobody_is_told_wrong_and_all_agree() {
    let (seeds, first) = (knob("FLEET_SIM_SEEDS", 8), knob("FLEET_SIM_SEED", 1));
    let mut failures = Vec::new();
    let mut seen = BTreeMap::<&str, u64>::new();
    let only = std::env::var("FLEET_SIM_FAULT").ok();
    for fault in Fault::ALL {
        if only
            .as_ref()
            .is_some_and(|only| *only != format!("{fault:?}"))
        {
            continue;
        }
        for seed in first..first + seeds {
            let run = fleet::run(seed, fault, None);
            failures.extend(run.failures.into_iter().take(2));
            for (what, count) in run.seen {
                *seen.entry(what).or_default() += count;
            }
        }
    }
    println!("{seen:?}");
    assert!(
        failures.is_empty(),
        "{}\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// Each bug is noticed within so many seeds of the faults that it is about.
const PLANTED_SEEDS: u64 = 30;

#[test]
fn planted_bugs_are_noticed() {
    let only = std::env::var("FLEET_SIM_BUG").ok();
    let mut missed = Vec::new();
    for bug in Planted::FLEET {
        if only
            .as_ref()
            .is_some_and(|only| *only != format!("{bug:?}"))
        {
            continue;
        }
        let faults = faults_of(bug);
        let mut runs = (1..=PLANTED_SEEDS).flat_map(|seed| faults.iter().map(move |f| (seed, *f)));
        let found = runs.find_map(|(seed, fault)| {
            let found = fleet::run(seed, fault, Some(bug))
                .failures
                .into_iter()
                .next()?;
            let without = fleet::run(seed, fault, None).failures;
            assert!(without.is_empty(), "{without:?}");
            Some(found)
        });
        match found {
            Some(found) => println!("{bug:?}: {found}"),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}

fn faults_of(bug: Planted) -> &'static [Fault] {
    match bug {
        Planted::VouchesNeverLate => &[Fault::AllStoppedAndNodeCut, Fault::OneStopped],
        Planted::SettleIgnored => &[Fault::AllStopped],
        Planted::AmnestyIgnored => &[Fault::AllStoppedAndNodeCut],
        Planted::AbsencesBelieved => &[Fault::Deleted],
        Planted::AuditOff => &[Fault::MessagesLost],
        Planted::BaseUntied => &[Fault::WritesLostAndNodeCut],
        Planted::FenceSkipped => &[Fault::NodeKilled],
        Planted::HistoryReplayed => &[Fault::NodeCutFromOne],
        Planted::ReapUnsettled => &[Fault::KilledAndStopped],
        Planted::BeatsNotHomed => &[Fault::NodeCutFromOne],
        Planted::FencesNeverLate => &[Fault::FencesStuck],
        Planted::NumbersIgnored | Planted::SaidWithAnother => &[Fault::AnswersLost],
        Planted::InvisibleArrives | Planted::FlagsDropped => &[Fault::None],
        Planted::EndsUnread => &[Fault::NodeCutLong, Fault::NodeStoppedLong],
        Planted::SinceAnew => &[Fault::Flushed, Fault::Deleted],
        _ => &[],
    }
}
