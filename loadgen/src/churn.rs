//! `churn`: a day in a minute, with every watcher's view checked against the truth.
//!
//! Owns the split among processes and the report; one process's part of the day is `world`'s.

mod fault;
mod holds;
mod roads;
mod world;

use std::io;
use std::time::Duration;

use clap::Args;
use fault::Fault;
use holds::Holds;
use serde::{Deserialize, Serialize};
use world::World;

use crate::cause::{Cause, How};
use crate::clock;
use crate::common::{Common, Share};
use crate::count::Count;
use crate::effort::Effort;
use crate::fleet::Fleet;
use crate::progress::ProgressLine;
use crate::report::Report;
use crate::stats::{Latencies, Strain};
use crate::target::Target;
use crate::workers::{Workers, say, share_max, split};

/// A snapshot of this many records comes in one event; of more the end would not be known when only
/// changes are told.
const CONTACTS_MAX: u32 = 400;
/// Flags of `churn`.
#[derive(Args, Clone, Debug)]
pub struct ChurnArgs {
    /// Publishers
    #[arg(long, default_value_t = 2_000)]
    pub users: u64,
    /// Streams that watch
    #[arg(long, default_value_t = 200)]
    pub watchers: usize,
    /// Publishers in each watcher's list, by a Zipf law
    #[arg(long, default_value_t = 50)]
    pub contacts: u32,
    /// Length of the day
    #[arg(long, default_value_t = 1.0)]
    pub minutes: f64,
    /// Probability with which a beat is lost on its way
    #[arg(long, default_value_t = 0.05)]
    pub loss: f64,
    /// Mean length of a session
    #[arg(long, default_value = "10s", value_parser = crate::units::duration)]
    pub session: Duration,
    /// Share of the users who are online, averaged over the day
    #[arg(long, default_value_t = 0.3)]
    pub online_share: f64,
    /// Probability with which a session ends with a goodbye rather than in silence
    #[arg(long, default_value_t = 0.5)]
    pub goodbyes: f64,
    /// Mean time after which a watcher's link breaks and it comes back
    #[arg(long, default_value = "20s", value_parser = crate::units::duration)]
    pub link: Duration,
    /// A state that has been so for this long must have been told; at least the server's sweep
    /// interval
    #[arg(long, default_value = "1s", value_parser = crate::units::duration)]
    pub settle: Duration,
    /// Run this command of the shell meanwhile: what it does to the servers must have nobody told
    /// wrong. What watchers are not told is excused until it has ended, and for --heal
    #[arg(long, value_name = "COMMAND")]
    pub fault: Option<String>,
    /// When --fault begins [default: after a third of the day]
    #[arg(long, value_name = "TIME", value_parser = crate::units::duration)]
    pub fault_at: Option<Duration>,
    /// So long after a fault, or after all nodes of a fleet are ready again, every view must be
    /// true
    #[arg(long, default_value = "15s", value_parser = crate::units::duration)]
    pub heal: Duration,
    /// Of a fleet: probability with which a beat, or a watcher that comes back, goes to another
    /// node than before
    #[arg(long, default_value_t = 0.05)]
    pub roam: f64,
}

/// What a process saw of its part of the world.
#[derive(Default, Serialize, Deserialize)]
struct Found {
    busy: f64,
    lag: Latencies,
    disagreements: u64,
    online: Latencies,
    goodbye: Latencies,
    late_offline: Latencies,
    states: u64,
    beats: u64,
    lost: u64,
    goodbyes: u64,
    reconnects: u64,
    false_offline: u64,
    false_online: u64,
    stale: u64,
    contradictions: u64,
    doubled: u64,
    out_of_order: u64,
    unreadable: u64,
    ended: u64,
    refused: u64,
    /// How often the process was not at work for a while.
    stalls: u64,
    /// Of some wrong views what is known of them.
    evidence: Vec<String>,
    /// States told in each half second of the day.
    told: Vec<u64>,
    /// Hellos whose time contradicts that of earlier ones.
    clock_set: u64,
    /// How often a user went to another node than before.
    moves: u64,
    /// What two nodes said differently of users, or wrongly.
    nodes_differ: u64,
    /// States that contradict earlier ones and came while something failed.
    corrections: u64,
    /// States that were told while something failed: truly offline, but since a time at which the
    /// user was online, as times are lost with what Redis has acknowledged; or online, of somebody
    /// whose goodbye could not be told yet.
    untimely: u64,
    /// Users of whom two nodes say the same, but since other times.
    since_differs: u64,
    /// At the day's end something was still excused.
    not_healed: u64,
    /// A fault was caused, or a node was not ready.
    was_troubled: bool,
}

/// The subcommand.
pub fn run(common: &Common, args: &ChurnArgs) -> io::Result<Report> {
    if args.contacts > CONTACTS_MAX {
        return Err(io::Error::other(format!(
            "--contacts takes at most {CONTACTS_MAX}"
        )));
    }
    let shares = split(args.watchers.max(1), share_max(common));
    if shares.len() as u64 > args.users {
        return Err(io::Error::other(format!(
            "{} processes share the users, so --users must be at least that many",
            shares.len()
        )));
    }
    if args.fault.is_some() && (shares.len() > 1 || common.share.is_some()) {
        return Err(io::Error::other(
            "--fault takes one process: fewer --watchers, or a higher limit of descriptors",
        ));
    }
    if let Some(share) = common.share {
        say(&live(common, args, share)?)?;
        return Ok(Report::default());
    }
    let target = Target::new(common)?;
    // A node that was started anew has forgotten what it counted.
    let count = || match target.is_fleet {
        true => Ok(None),
        false => Count::take(common, &target).map(Some),
    };
    let before = count()?;
    let found = match shares[..] {
        [share] => live(common, args, share)?,
        _ => gather(args, &shares)?,
    };
    let counts = before.zip(count()?);
    let mut report = report(args, found, counts.as_ref());
    if target.is_fleet {
        report.value("nodes", target.presence.len() as f64);
    }
    Ok(report)
}

/// The day of one process's part of the world: its share of the watchers, and as large a share of
/// the users, whom only they watch. A process thus knows the truth of everybody whom it judges, and
/// none waits for another.
fn live(common: &Common, args: &ChurnArgs, share: Share) -> io::Result<Found> {
    let line = ProgressLine::new(common.quiet || common.share.is_some());
    let target = Target::new(common)?;
    let mut cause = Cause::new(common, &target, How::Udp)?;
    let nodes: Vec<_> = target.presence.iter().map(|node| node.http).collect();
    let holds = Holds::watch(&nodes);
    let is_fleet = target.is_fleet;
    let mut fleet = Fleet::new(target.streams, share.first, share.count)?.sealed_by(target.seal);
    let mut world = World::new(common, args, share);
    if is_fleet {
        world.spread(nodes.len());
    }
    world.set_up(&mut fleet, holds)?;
    let effort = Effort::begin(fleet.asleep_us());
    world.live(&mut fleet, &mut cause, &line)?;
    world.found.busy = effort.busy(fleet.asleep_us());
    world.found.disagreements = world.last_judgement(&mut fleet, &nodes, &line)?;
    Ok(std::mem::take(&mut world.found))
}

/// Has a process live for each share and adds up what they saw.
fn gather(args: &ChurnArgs, shares: &[Share]) -> io::Result<Found> {
    let mut workers: Workers<Found> = Workers::start(shares, &[])?;
    let limit_us = clock::now_us() + (args.minutes * 60e6) as u64 + 120_000_000;
    let (mut all, mut heard) = (Found::default(), 0);
    while heard < shares.len() {
        workers.check()?;
        if let Some((_, found)) = workers.listen(Duration::from_millis(250))? {
            all.add(&found);
            heard += 1;
        }
        if clock::now_us() > limit_us {
            return Err(io::Error::other("a worker did not end in time"));
        }
    }
    workers.wait()?;
    Ok(all)
}

/// Length of a step of [`Found::told`], us.
const STEP_US: u64 = 500_000;

impl Found {
    /// A state was told at `since_start_us` of the day.
    fn tell(&mut self, since_start_us: u64) {
        let step = (since_start_us / STEP_US) as usize;
        self.told.resize(self.told.len().max(step + 1), 0);
        self.told[step] += 1;
        self.states += 1;
    }

    fn add(&mut self, other: &Found) {
        self.busy = self.busy.max(other.busy);
        self.was_troubled |= other.was_troubled;
        self.evidence.extend_from_slice(&other.evidence);
        self.told.resize(self.told.len().max(other.told.len()), 0);
        for (sum, part) in self.told.iter_mut().zip(&other.told) {
            *sum += part;
        }
        for (sum, part) in [
            (&mut self.lag, &other.lag),
            (&mut self.online, &other.online),
            (&mut self.goodbye, &other.goodbye),
            (&mut self.late_offline, &other.late_offline),
        ] {
            sum.merge(part);
        }
        for (sum, part) in [
            (&mut self.disagreements, other.disagreements),
            (&mut self.states, other.states),
            (&mut self.beats, other.beats),
            (&mut self.lost, other.lost),
            (&mut self.goodbyes, other.goodbyes),
            (&mut self.reconnects, other.reconnects),
            (&mut self.false_offline, other.false_offline),
            (&mut self.false_online, other.false_online),
            (&mut self.stale, other.stale),
            (&mut self.contradictions, other.contradictions),
            (&mut self.stalls, other.stalls),
            (&mut self.clock_set, other.clock_set),
            (&mut self.doubled, other.doubled),
            (&mut self.out_of_order, other.out_of_order),
            (&mut self.unreadable, other.unreadable),
            (&mut self.ended, other.ended),
            (&mut self.refused, other.refused),
            (&mut self.moves, other.moves),
            (&mut self.nodes_differ, other.nodes_differ),
            (&mut self.corrections, other.corrections),
            (&mut self.not_healed, other.not_healed),
            (&mut self.untimely, other.untimely),
            (&mut self.since_differs, other.since_differs),
        ] {
            *sum += part;
        }
    }
}

/// `counts`: what one server, or the presence nodes of a split deployment, counted before and
/// after.
fn report(args: &ChurnArgs, found: Found, counts: Option<&(Count, Count)>) -> Report {
    let mut report = Report::new("churn");
    for (name, value) in [
        ("users", args.users),
        ("watchers", args.watchers as u64),
        ("beats_sent", found.beats),
        ("beats_lost_on_purpose", found.lost),
        ("goodbyes", found.goodbyes),
        ("reconnects", found.reconnects),
        ("states_told", found.states),
        ("false_offline", found.false_offline),
        ("false_online", found.false_online),
        ("stale_views", found.stale),
        ("final_disagreements", found.disagreements),
        ("contradictions", found.contradictions),
        ("duplicated", found.doubled),
        ("out_of_order", found.out_of_order),
        ("generator_stalls", found.stalls),
        ("moves", found.moves),
        ("nodes_differ", found.nodes_differ),
        ("corrections", found.corrections),
        ("nodes_not_healed", found.not_healed),
        ("untimely", found.untimely),
        ("since_differs", found.since_differs),
        ("streams_ended", found.ended),
        ("streams_refused", found.refused),
    ] {
        report.value(name, value as f64);
    }
    report.fail_if(
        found.false_offline,
        "states said offline of somebody who had beaten",
    );
    report.fail_if(
        found.false_online,
        "states said online of somebody who had not beaten",
    );
    report.fail_if(found.stale, "views disagreed with what had long been so");
    report.fail_if(found.disagreements, "final views disagreed with the truth");
    report.fail_if(
        found.contradictions,
        "states contradicted what had been told of the same time",
    );
    report.fail_if(found.doubled, "states were told twice on one stream");
    report.fail_if(found.out_of_order, "states were told after a newer one");
    report.fail_if(found.unreadable, "events could not be read");
    report.fail_if(
        found.nodes_differ,
        "users are not the same at all nodes, or not as they should be",
    );
    report.fail_if(
        found.not_healed,
        "days ended less than --heal after nodes were not ready: not every view was judged",
    );
    // Redis may have lost times in a fault, and then they are another node's to say.
    if !found.was_troubled {
        report.fail_if(
            found.since_differs,
            "users are online or offline since other times at other nodes",
        );
    }
    // Of whom a fault is caused the streams may end.
    let (ended, refused) = match found.was_troubled {
        true => (0, 0),
        false => (found.ended, found.refused),
    };
    report.fail_if(ended, "streams were ended by the server");
    report.fail_if(refused, "streams were refused");
    if found.clock_set > 0 {
        report.doubts.push(
            "the server's clock was set while the day went on: when its states came about is not \
             known"
                .to_owned(),
        );
    }
    report.notes.extend(found.evidence);
    if let Some((before, after)) = counts {
        count(before, after, &mut report);
    }
    report.latencies("online: beat to told", found.online);
    report.latencies("goodbye to told", found.goodbye);
    report.latencies("late offline: expiry to told", found.late_offline);
    let step_s = STEP_US as f64 / 1e6;
    let told = found.told.iter().enumerate();
    let told = told.map(|(step, count)| ((step + 1) as f64 * step_s, *count as f64 / step_s));
    report.series("states told a second", "s", told.collect());
    report.strain(&Strain {
        busy: found.busy,
        lag_p99_us: found.lag.percentile_us(99.0),
        server_gave_way: false,
    });
    report
}

/// Adds what servers counted.
fn count(before: &Count, after: &Count, report: &mut Report) {
    let stalls = after.stalls_since(before);
    report.value("server_stalls", stalls);
    if stalls > 0.0 {
        report.notes.push(
            "the server was stalled and then held expiries, as it should: who expired meanwhile \
             was not expected to be told"
                .to_owned(),
        );
    }
    let dropped = after.lost_since(before);
    if dropped > 0.0 {
        report.doubts.push(format!(
            "{dropped} datagrams were dropped or refused by the server: the truth is not known"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_processes_were_told_adds_up_step_by_step() {
        let (mut one, mut other) = (Found::default(), Found::default());
        [0, 499_999, 500_000].iter().for_each(|us| one.tell(*us));
        [1_700_000].iter().for_each(|us| other.tell(*us));
        one.add(&other);
        assert_eq!((one.told, one.states), (vec![2, 1, 0, 1], 4));
    }
}
