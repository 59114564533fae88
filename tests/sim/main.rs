//! The simulator: several engines in a seeded world of faults, an oracle, and its own proof that it
//! would notice.
//!
//! `cargo test --test sim` runs some hundred seeds; docs/SIMULATION.md says what it models, how to
//! replay a run and how to add to it.

mod checks;
mod client;
mod farewells;
mod faults;
mod kernel;
mod model;
#[cfg(any(debug_assertions, feature = "planted"))]
mod planted;
mod restart;
mod split;
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

/// Adds to a trace (FNV-1a).
fn trace(trace: u64, bytes: &[u8]) -> u64 {
    let add = |trace: u64, byte: &u8| (trace ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(trace, add)
}

/// Runs one plan to its end; Err: what went wrong.
fn run(plan: Plan) -> Result<Outcome, String> {
    caught(plan, || {
        let mut world = World::new(plan);
        for step in 0..plan.steps {
            world.step = step;
            STEP.set(step);
            world.next_step();
        }
        world.converge();
        world.outcome()
    })
}

/// Runs a plan; Err: what went wrong, and where.
fn caught<O>(plan: Plan, run: impl FnOnce() -> O) -> Result<O, String> {
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
fn run_all<O: Send>(plans: &[Plan], run: fn(Plan) -> Result<O, String>) -> Vec<Result<O, String>> {
    let next = AtomicU64::new(0);
    let results = Mutex::new(plans.iter().map(|_| None).collect::<Vec<_>>());
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

/// The seeds of a test run: one to replay, or a range, and as many fresh ones as are asked for. No
/// fresh ones by default: whether a change lands must not be luck.
fn seeds(usual: u64) -> Vec<u64> {
    if let Some(seed) = from_env("SIM_SEED") {
        return vec![seed];
    }
    let count = from_env("SIM_SEEDS").unwrap_or(usual);
    let fresh = from_env("SIM_FRESH").unwrap_or(0);
    let first_fresh = fastrand::u64(1 << 32..1 << 40);
    (1..=count)
        .chain(first_fresh..first_fresh + fresh)
        .collect()
}

/// Runs plans and says how long it took; panics if one fails.
fn all_pass<O: Send>(
    plans: &[Plan],
    run: fn(Plan) -> Result<O, String>,
    lasted_ms: fn(&O) -> u64,
) -> Vec<O> {
    let began = greendot::time::boottime();
    let (passed, failed): (Vec<_>, Vec<_>) =
        run_all(plans, run).into_iter().partition(Result::is_ok);
    let failed: Vec<String> = failed.into_iter().filter_map(Result::err).collect();
    let passed: Vec<O> = passed.into_iter().filter_map(Result::ok).collect();
    for why in failed.iter().take(20) {
        println!("{}", why.lines().next().unwrap_or(""));
    }
    println!(
        "{} seeds (0x{:x} to 0x{:x}), {} s of virtual time in {} ms",
        plans.len(),
        plans[0].seed,
        plans[plans.len() - 1].seed,
        passed.iter().map(lasted_ms).sum::<u64>() / 1_000,
        greendot::time::boottime().ms_since(began)
    );
    assert!(
        failed.is_empty(),
        "{} of {} runs failed; the first:\n{}",
        failed.len(),
        plans.len(),
        failed[0]
    );
    passed
}

#[test]
fn many_seeds() {
    let seeds = seeds(SEEDS);
    let plans: Vec<Plan> = seeds.iter().map(|seed| plan(*seed)).collect();
    let outcomes = all_pass(&plans, run, |outcome| outcome.lasted_ms);
    let mut counters = vec![0; COUNTERS.len()];
    for outcome in &outcomes {
        for (sum, count) in counters.iter_mut().zip(&outcome.counters) {
            *sum += count;
        }
    }
    for (counter, count) in COUNTERS.iter().zip(&counters) {
        println!("  {counter:?} {count}");
    }
    let torn_tails: u64 = outcomes.iter().map(|outcome| outcome.torn_tails).sum();
    println!("  torn tails of users.log {torn_tails}");
    let used_again = outcomes.iter().map(|outcome| outcome.slots_used_again);
    let used_again: u64 = used_again.sum();
    println!("  slots used again {used_again}");
    if seeds.len() >= 100 {
        assert!(used_again > 0, "no slot of an erased user was another's");
        assert!(torn_tails > 0, "no power cut left half a record");
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
