//! How many shards pay: what `cores` measured, in one sentence.
//!
//! Owns the speed-up, the knee and the advice. Measures nothing.

/// A shard pays if it adds at least this share of what one alone does.
const PAYS_MIN: f64 = 0.5;
/// Less busy than this, the shards were waiting for work: the load was the limit.
const BUSY_MIN: f64 = 0.7;

/// What one number of shards did.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Step {
    /// How many there were.
    pub shards: usize,
    /// How much they did a second.
    pub rate: f64,
    /// The busiest shard's share of time, 0 to 1, if the server told it.
    pub busiest: Option<f64>,
}

/// The sentence. `steps` begin with one shard and go up by one; `name` is what `rate` counts;
/// `cores` is how many cores server and generator shared.
pub fn verdict(name: &str, steps: &[Step], cores: usize, certified: bool) -> String {
    let (Some(one), true) = (steps.first(), steps.len() > 1) else {
        return "one number of shards shows no speed-up; set --max 2 or more".to_owned();
    };
    let added = |pair: &[Step]| (pair[1].rate - pair[0].rate) / one.rate.max(f64::MIN_POSITIVE);
    let bend = steps.windows(2).position(|pair| added(pair) < PAYS_MIN);
    let knee = steps[bend.unwrap_or(steps.len() - 1)];
    let (shards, speed_up) = (knee.shards, knee.rate / one.rate.max(f64::MIN_POSITIVE));
    if let Some(busiest) = knee.busiest.filter(|busiest| *busiest < BUSY_MIN) {
        return format!(
            "the load was too small to tell: with --shards {shards} the busiest shard worked {:.0} \
             % of the time; have --with ask for more a second, or give the generator cores of its \
             own",
            busiest * 100.0
        );
    }
    let doubt = if certified {
        ""
    } else {
        "a hint at best, for the runs were not certified: "
    };
    let shared = if shards + 1 + usize::from(bend.is_some()) > cores {
        format!(", on {cores} cores that the generator shares")
    } else {
        String::new()
    };
    match bend {
        Some(at) => format!(
            "{doubt}--shards {shards} does {speed_up:.2} times the {name} of one, and one more \
             adds {:.0} % of one: the knee is at {shards}{shared}; set --shards {shards}",
            added(&steps[at..at + 2]) * 100.0
        ),
        None => format!(
            "{doubt}--shards {shards} does {speed_up:.2} times the {name} of one, and the last \
             still added {:.0} % of one: no knee up to {shards}{shared}; set --shards {shards}, or \
             look further with --max",
            added(&steps[steps.len() - 2..]) * 100.0
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rates: &[f64], busiest: Option<f64>, cores: usize, certified: bool) -> String {
        let steps: Vec<Step> = (1..)
            .zip(rates)
            .map(|(shards, rate)| Step {
                shards,
                rate: *rate,
                busiest,
            })
            .collect();
        verdict("answers_per_s", &steps, cores, certified)
    }

    #[test]
    fn the_knee_is_where_one_more_adds_less_than_half_of_one() {
        assert_eq!(
            of(&[100.0, 190.0, 270.0, 310.0], Some(0.9), 16, true),
            "--shards 3 does 2.70 times the answers_per_s of one, and one more adds 40 % of one: \
             the knee is at 3; set --shards 3"
        );
        assert_eq!(
            of(&[100.0, 90.0], None, 16, true),
            "--shards 1 does 1.00 times the answers_per_s of one, and one more adds -10 % of one: \
             the knee is at 1; set --shards 1"
        );
        assert_eq!(
            of(&[100.0, 195.0], Some(0.9), 16, true),
            "--shards 2 does 1.95 times the answers_per_s of one, and the last still added 95 % of \
             one: no knee up to 2; set --shards 2, or look further with --max"
        );
    }

    #[test]
    fn what_can_not_be_told_is_not_told() {
        assert_eq!(
            of(&[100.0], None, 16, true),
            "one number of shards shows no speed-up; set --max 2 or more"
        );
        assert_eq!(
            of(&[100.0, 100.0], Some(0.2), 16, true),
            "the load was too small to tell: with --shards 1 the busiest shard worked 20 % of the \
             time; have --with ask for more a second, or give the generator cores of its own"
        );
        assert!(of(&[100.0, 190.0], None, 16, false).starts_with("a hint at best, for the runs"));
        for (cores, shares) in [(2, true), (3, false)] {
            let said = of(&[100.0, 190.0], None, cores, true);
            assert_eq!(
                said.contains("cores that the generator shares"),
                shares,
                "{said}"
            );
        }
        // The shard beyond the knee was one of those that shared.
        assert!(of(&[100.0, 110.0], None, 2, true).contains("at 1, on 2 cores that"));
    }
}
