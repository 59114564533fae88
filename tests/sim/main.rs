//! The simulator: several engines in a seeded world of faults, an oracle, and its own proof that it would notice.
//!
//! `cargo test --test sim` runs some hundred seeds; docs/SIMULATION.md says what it models, how to replay a run and how to add to it.

mod checks;
mod client;
mod faults;
mod model;
#[cfg(feature = "planted")]
mod planted;
mod sse;
mod store;
mod workload;
mod world;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use world::{COUNTERS, Outcome, Plan, World};

const SEEDS: u64 = 300;
/// Of those, so many are new each time.
const FRESH_SEEDS: u64 = 20;
const STEPS: u32 = 2_000;

thread_local! {
    static STEP: Cell<u32> = const { Cell::new(0) };
}

fn from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    Some(number.unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn plan(seed: u64) -> Plan {
    Plan {
        seed,
        steps: from_env("SIM_STEPS").map_or(STEPS, |steps| steps as u32),
        flagless_mailbox: false,
        log: from_env("SIM_LOG").is_some(),
    }
}

/// Runs one plan to its end; Err: what went wrong.
fn run(plan: Plan) -> Result<Outcome, String> {
    let run = || {
        let mut world = World::new(plan);
        for step in 0..plan.steps {
            world.step = step;
            STEP.set(step);
            world.next_step();
        }
        world.converge();
        world.outcome()
    };
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let why = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|why| (*why).to_owned()))
            .unwrap_or_default();
        format!("seed 0x{:x}, step {}: {why}", plan.seed, STEP.get())
    })
}

/// Runs plans on as many threads as there are cores; outcomes in the order of the plans.
fn run_all(plans: &[Plan]) -> Vec<Result<Outcome, String>> {
    let next = AtomicU64::new(0);
    let results = Mutex::new(vec![None; plans.len()]);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(plan) = plans.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let result = run(*plan);
                    let at = plans
                        .iter()
                        .position(|other| other.seed == plan.seed)
                        .expect("one of them");
                    results.lock().expect("runs do not panic")[at] = Some(result);
                }
            });
        }
    });
    let results = results.into_inner().expect("runs do not panic");
    results
        .into_iter()
        .map(|result| result.expect("each plan was run"))
        .collect()
}

/// The seeds of a test run: one to replay, or a range and some fresh ones.
fn seeds() -> Vec<u64> {
    if let Some(seed) = from_env("SIM_SEED") {
        return vec![seed];
    }
    let count = from_env("SIM_SEEDS").unwrap_or(SEEDS);
    let fixed = count.saturating_sub(FRESH_SEEDS);
    let first_fresh = fastrand::u64(1 << 32..1 << 40);
    (1..=fixed)
        .chain(first_fresh..first_fresh + count.min(FRESH_SEEDS))
        .collect()
}

#[test]
fn many_seeds() {
    let seeds = seeds();
    let began = greendot::time::boottime();
    let plans: Vec<Plan> = seeds.iter().map(|seed| plan(*seed)).collect();
    let results = run_all(&plans);
    let failed: Vec<&String> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    let mut counters = vec![0; COUNTERS.len()];
    let mut lasted_ms = 0;
    for outcome in results.iter().flatten() {
        lasted_ms += outcome.lasted_ms;
        for (sum, count) in counters.iter_mut().zip(&outcome.counters) {
            *sum += count;
        }
    }
    for why in failed.iter().take(20) {
        println!("{}", why.lines().next().unwrap_or(""));
    }
    println!(
        "{} seeds (0x{:x} to 0x{:x}), {} s of virtual time in {} ms",
        seeds.len(),
        seeds[0],
        seeds[seeds.len() - 1],
        lasted_ms / 1_000,
        greendot::time::boottime().ms_since(began)
    );
    for (counter, count) in COUNTERS.iter().zip(&counters) {
        println!("  {counter:?} {count}");
    }
    assert!(
        failed.is_empty(),
        "{} of {} runs failed; the first:\n{}",
        failed.len(),
        seeds.len(),
        failed[0]
    );
    if seeds.len() >= 100 {
        let missed: Vec<_> = COUNTERS
            .iter()
            .zip(&counters)
            .filter(|(_, count)| **count == 0)
            .collect();
        assert!(missed.is_empty(), "never happened in any run: {missed:?}");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [3, 17, 99] {
        let plan = Plan {
            steps: 600,
            ..plan(seed)
        };
        let (first, second) = (run(plan), run(plan));
        match (first, second) {
            (Ok(first), Ok(second)) => assert_eq!(
                (first.trace, first.lasted_ms),
                (second.trace, second.lasted_ms),
                "seed {seed}"
            ),
            (first, second) => assert_eq!(first.err(), second.err(), "seed {seed}"),
        }
    }
}
