//! `churn`: a day in a minute, with every watcher's view checked against the truth.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::args::{Common, Share};
use crate::asks::write_stream_request;
use crate::beats::Count;
use crate::cause::Cause;
use crate::clock;
use crate::effort::Effort;
use crate::fleet::{Fleet, Gone, Handler};
use crate::graph::{Choice, Graph};
use crate::population::{Population, mix};
use crate::record;
use crate::report::Report;
use crate::sse::{Event, Lasting};
use crate::stats::{Latencies, Strain};
use crate::streams::ProgressLine;
use crate::truth::{History, Tolerance, Verdict};
use crate::workers::{Workers, say, share_max, split};

/// Views compared with the truth in one go.
const VIEWS_PER_CHECK: usize = 4_096;
/// A snapshot of this many records comes in one event; of more the end would not be known when only changes are told.
const CONTACTS_MAX: u32 = 400;
/// Numbers of these users start here, apart from those of the other scenarios.
const FIRST_USER: u64 = 2 << 32;

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
    #[arg(long, default_value = "10s", value_parser = crate::args::duration)]
    pub session: Duration,
    /// Share of the users who are online, averaged over the day
    #[arg(long, default_value_t = 0.3)]
    pub online_share: f64,
    /// Probability with which a session ends with a goodbye rather than in silence
    #[arg(long, default_value_t = 0.5)]
    pub goodbyes: f64,
    /// Mean time after which a watcher's link breaks and it comes back
    #[arg(long, default_value = "20s", value_parser = crate::args::duration)]
    pub link: Duration,
    /// A state that has been so for this long must have been told; at least the server's sweep interval
    #[arg(long, default_value = "1s", value_parser = crate::args::duration)]
    pub settle: Duration,
}

/// What happens next, and to whom.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Act {
    Begin(u64),
    Beat(u64),
    Break(usize),
    Return(usize),
}

struct Contact {
    user: u64,
    since: u64,
    online: bool,
    /// Found to disagree with the truth, and counted.
    wrong: bool,
}

struct Watcher {
    /// In order of `user`.
    contacts: Vec<Contact>,
    /// Its snapshot has come, so its view is to be believed.
    told: bool,
}

struct World<'a> {
    args: &'a ChurnArgs,
    target: SocketAddr,
    population: Population,
    /// Number of the first of its users in the population.
    first_user: u64,
    histories: Vec<History>,
    session_end_us: Vec<u64>,
    watchers: Vec<Watcher>,
    acts: BinaryHeap<Reverse<(u64, Act)>>,
    rng: fastrand::Rng,
    tolerance: Tolerance,
    beat_interval_ms: u64,
    checked: usize,
    start_us: u64,
    end_us: u64,
    found: Found,
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
    doubled: u64,
    out_of_order: u64,
    unreadable: u64,
    ended: u64,
    refused: u64,
}

/// The subcommand.
pub fn run(common: &Common, args: &ChurnArgs) -> io::Result<Report> {
    if args.contacts > CONTACTS_MAX {
        return Err(io::Error::other(format!("--contacts takes at most {CONTACTS_MAX}")));
    }
    let shares = split(args.watchers.max(1), share_max(common));
    if shares.len() as u64 > args.users {
        return Err(io::Error::other(format!(
            "{} processes share the users, so --users must be at least that many",
            shares.len()
        )));
    }
    if let Some(share) = common.share {
        say(&live(common, args, share)?)?;
        return Ok(Report::default());
    }
    let before = Count::take(common)?;
    let found = match shares[..] {
        [share] => live(common, args, share)?,
        _ => gather(args, &shares)?,
    };
    let after = Count::take(common)?;
    Ok(report(args, found, &before, &after))
}

/// The day of one process's part of the world: its share of the watchers, and as large a share of the users, whom only they watch.
/// A process thus knows the truth of everybody whom it judges, and none waits for another.
fn live(common: &Common, args: &ChurnArgs, share: Share) -> io::Result<Found> {
    let line = ProgressLine::new(common.quiet || common.share.is_some());
    let mut cause = Cause::new(common, false)?;
    let mut fleet = Fleet::new(common.http, share.first, share.count)?;
    let mut world = World::new(common, args, share);
    world.set_up(&mut fleet)?;
    let effort = Effort::begin(fleet.asleep_us());
    world.live(&mut fleet, &mut cause, &line)?;
    world.found.busy = effort.busy(fleet.asleep_us());
    world.found.disagreements = world.last_judgement(&mut fleet, &line)?;
    Ok(world.found)
}

/// Has a process live for each share and adds up what they saw.
fn gather(args: &ChurnArgs, shares: &[Share]) -> io::Result<Found> {
    let mut workers: Workers<Found> = Workers::start(shares)?;
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

impl Found {
    fn add(&mut self, other: &Found) {
        self.busy = self.busy.max(other.busy);
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
            (&mut self.doubled, other.doubled),
            (&mut self.out_of_order, other.out_of_order),
            (&mut self.unreadable, other.unreadable),
            (&mut self.ended, other.ended),
            (&mut self.refused, other.refused),
        ] {
            *sum += part;
        }
    }
}

fn report(args: &ChurnArgs, found: Found, before: &Count, after: &Count) -> Report {
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
        ("duplicated", found.doubled),
        ("out_of_order", found.out_of_order),
    ] {
        report.value(name, value as f64);
    }
    report.fail_if(found.false_offline, "states said offline of somebody who had beaten");
    report.fail_if(found.false_online, "states said online of somebody who had not beaten");
    report.fail_if(found.stale, "views disagreed with what had long been so");
    report.fail_if(found.disagreements, "final views disagreed with the truth");
    report.fail_if(found.doubled, "states were told twice on one stream");
    report.fail_if(found.out_of_order, "states were told after a newer one");
    report.fail_if(found.unreadable, "events could not be read");
    report.fail_if(found.ended, "streams were ended by the server");
    report.fail_if(found.refused, "streams were refused");
    let dropped = after.lost_since(before);
    if dropped > 0.0 {
        report.doubts.push(format!(
            "{dropped} datagrams were dropped or refused by the server: the truth is not known"
        ));
    }
    report.strain(&Strain {
        busy: found.busy,
        lag_p99_us: found.lag.percentile_us(99.0),
        measured_p99_us: found
            .online
            .percentile_us(99.0)
            .max(found.late_offline.percentile_us(99.0)),
        server_gave_way: false,
    });
    report.latencies("online: beat to told", found.online);
    report.latencies("goodbye to told", found.goodbye);
    report.latencies("late offline: expiry to told", found.late_offline);
    report
}

impl<'a> World<'a> {
    fn new(common: &Common, args: &'a ChurnArgs, share: Share) -> World<'a> {
        let [first_user, end_user] =
            [share.first, share.first + share.count].map(|at| args.users * at as u64 / args.watchers.max(1) as u64);
        let users = end_user - first_user;
        let graph = Graph {
            publishers: users,
            watches: args.contacts,
            choice: Choice::Zipf { exponent: 0.8 },
            seed: common.seed,
        };
        let watchers = (share.first as u64..(share.first + share.count) as u64)
            .map(|watcher| {
                let mut users = graph.watches_of(users + watcher);
                users.sort_unstable();
                let contact = |user| Contact {
                    user,
                    since: 0,
                    online: false,
                    wrong: false,
                };
                Watcher {
                    contacts: users.into_iter().map(contact).collect(),
                    told: false,
                }
            })
            .collect();
        World {
            args,
            target: common.http,
            population: Population::new(common.seed),
            first_user: FIRST_USER + first_user,
            histories: vec![History::default(); users as usize],
            session_end_us: vec![0; users as usize],
            watchers,
            acts: BinaryHeap::new(),
            rng: fastrand::Rng::with_seed(mix(common.seed ^ share.first as u64)),
            tolerance: Tolerance {
                offline_after_ms: 0,
                clock_ms: 20,
                flight_ms: 200,
                settle_ms: args.settle.as_millis() as u64,
            },
            beat_interval_ms: 0,
            checked: 0,
            start_us: 0,
            end_us: 0,
            found: Found::default(),
        }
    }

    /// Opens all watchers and plans everybody's first session.
    fn set_up(&mut self, fleet: &mut Fleet) -> io::Result<()> {
        let limit_us = clock::now_us() + 30_000_000;
        for watcher in 0..self.watchers.len() {
            fleet.open(watcher)?;
            fleet.poll(clock::now_us() + 200, self)?;
        }
        while self.watchers.iter().any(|watcher| !watcher.told) {
            fleet.poll(clock::now_us() + 20_000, self)?;
            if clock::now_us() > limit_us || self.found.refused > 0 {
                return Err(io::Error::other("not every watcher was told hello and snapshot"));
            }
        }
        if self
            .watchers
            .iter()
            .any(|watcher| watcher.contacts.iter().any(|contact| contact.online))
        {
            return Err(io::Error::other("a user is online already; choose another --seed"));
        }
        if self.beat_interval_ms == 0 || self.tolerance.offline_after_ms <= self.tolerance.settle_ms {
            return Err(io::Error::other(format!(
                "the server's hello names offline_after_ms {}; it must be above --settle",
                self.tolerance.offline_after_ms
            )));
        }
        self.start_us = clock::now_us();
        self.end_us = self.start_us + (self.args.minutes * 60e6) as u64;
        for user in 0..self.histories.len() as u64 {
            let at_us = self.start_us + self.gap_us(self.start_us);
            self.acts.push(Reverse((at_us, Act::Begin(user))));
        }
        for watcher in 0..self.watchers.len() {
            self.plan_break(watcher, self.start_us);
        }
        Ok(())
    }

    fn live(&mut self, fleet: &mut Fleet, cause: &mut Cause, line: &ProgressLine) -> io::Result<()> {
        let mut next_check_us = self.start_us;
        loop {
            let now_us = clock::now_us();
            if now_us >= self.end_us {
                line.show("");
                return Ok(());
            }
            for _ in 0..64 {
                match self.acts.peek() {
                    Some(Reverse((due_us, act))) if *due_us <= now_us => {
                        let (due_us, act) = (*due_us, *act);
                        self.acts.pop();
                        self.found.lag.record(now_us - due_us);
                        self.act(act, fleet, cause)?;
                    }
                    _ => break,
                }
            }
            let due_us = self.acts.peek().map_or(self.end_us, |Reverse((due_us, _))| *due_us);
            fleet.poll(due_us.min(next_check_us).min(self.end_us), self)?;
            if now_us >= next_check_us {
                next_check_us = now_us + 10_000;
                self.check_views();
                let left_s = (self.end_us - now_us.min(self.end_us)) / 1_000_000;
                line.show(&format!(
                    "{} states told, {} wrong, {left_s} s to go",
                    self.found.states, self.found.stale
                ));
            }
        }
    }

    fn act(&mut self, act: Act, fleet: &mut Fleet, cause: &mut Cause) -> io::Result<()> {
        let now_us = clock::now_us();
        match act {
            Act::Begin(user) => {
                // Log-normal with sigma 1: most sessions are short, a few very long.
                let mean_us = self.args.session.as_micros() as f64;
                let length_us = mean_us * (self.normal() - 0.5).exp();
                self.session_end_us[user as usize] = now_us + length_us as u64;
                self.beat(user, now_us, cause)
            }
            Act::Beat(user) if now_us >= self.session_end_us[user as usize] => {
                if self.rng.f64() < self.args.goodbyes {
                    self.send(user, false, cause)?;
                    self.found.goodbyes += 1;
                }
                let at_us = now_us + self.gap_us(now_us);
                self.acts.push(Reverse((at_us, Act::Begin(user))));
                Ok(())
            }
            Act::Beat(user) => self.beat(user, now_us, cause),
            Act::Break(watcher) => {
                if !fleet.is_closed(watcher) {
                    fleet.close(watcher, self.rng.bool());
                    self.watchers[watcher].told = false;
                    // Away for less time than `retry` says: the server must cope with eager ones.
                    let back_us = now_us + self.rng.u64(1_000..1_000_000);
                    self.acts.push(Reverse((back_us, Act::Return(watcher))));
                }
                Ok(())
            }
            Act::Return(watcher) => {
                self.found.reconnects += 1;
                self.plan_break(watcher, now_us);
                fleet.open(watcher)
            }
        }
    }

    /// One beat, unless the link loses it; and the plan of the next.
    fn beat(&mut self, user: u64, now_us: u64, cause: &mut Cause) -> io::Result<()> {
        if self.rng.f64() < self.args.loss {
            self.found.lost += 1;
        } else {
            self.send(user, true, cause)?;
            self.found.beats += 1;
        }
        let end_us = self.session_end_us[user as usize];
        let next_us = now_us + self.beat_interval_ms * (900 + self.rng.u64(..200));
        self.acts
            .push(Reverse((next_us.min(end_us.max(now_us + 1)), Act::Beat(user))));
        Ok(())
    }

    fn send(&mut self, user: u64, online: bool, cause: &mut Cause) -> io::Result<()> {
        let history = &mut self.histories[user as usize];
        // Strictly later than the last act, or a beat could not undo a goodbye.
        let sent_at_ms = history.next_ms(clock::unix_ms());
        history.act(sent_at_ms, !online);
        cause.change(&self.population, &[self.first_user + user], online, sent_at_ms)
    }

    /// Time offline before the next session: exponential, shorter at noon than at midnight.
    fn gap_us(&mut self, now_us: u64) -> u64 {
        let day = self.end_us.saturating_sub(self.start_us).max(1) as f64;
        let hour = now_us.saturating_sub(self.start_us) as f64 / day;
        let crowd = 1.0 - 0.6 * (hour * std::f64::consts::TAU).cos();
        let share = self.args.online_share.clamp(0.01, 0.99);
        let mean_us = self.args.session.as_micros() as f64 * (1.0 - share) / share / crowd;
        (-(1.0 - self.rng.f64()).ln() * mean_us) as u64
    }

    fn plan_break(&mut self, watcher: usize, now_us: u64) {
        let mean_us = self.args.link.as_micros() as f64;
        let at_us = now_us + (-(1.0 - self.rng.f64()).ln() * mean_us) as u64 + 500_000;
        self.acts.push(Reverse((at_us, Act::Break(watcher))));
    }

    /// A standard normal variate (Box and Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.rng.f64()).ln()).sqrt();
        radius * (self.rng.f64() * std::f64::consts::TAU).cos()
    }

    /// Compares some views with the truth; all take their turn.
    fn check_views(&mut self) {
        let now_ms = clock::unix_ms();
        let mut budget = VIEWS_PER_CHECK;
        while budget > 0 && !self.watchers.is_empty() {
            self.checked = (self.checked + 1) % self.watchers.len();
            let watcher = &mut self.watchers[self.checked];
            budget = budget.saturating_sub(watcher.contacts.len().max(1));
            if !watcher.told {
                continue;
            }
            for contact in &mut watcher.contacts {
                let truth = self.histories[contact.user as usize].steady(now_ms, &self.tolerance);
                let wrong = truth.is_some_and(|online| online != contact.online);
                if wrong && !contact.wrong {
                    self.found.stale += 1;
                }
                contact.wrong = wrong || (contact.wrong && truth.is_none());
            }
        }
    }

    /// Everybody falls silent; when the last has expired, every view must say so.
    fn last_judgement(&mut self, fleet: &mut Fleet, line: &ProgressLine) -> io::Result<u64> {
        for watcher in 0..self.watchers.len() {
            if fleet.is_closed(watcher) {
                fleet.open(watcher)?;
            }
        }
        let until_us = clock::now_us() + (self.tolerance.offline_after_ms + 2 * self.tolerance.settle_ms) * 1_000;
        while clock::now_us() < until_us {
            fleet.poll((clock::now_us() + 100_000).min(until_us), self)?;
            line.show("waiting until the last user has expired");
        }
        line.show("");
        let online = |watcher: &Watcher| watcher.contacts.iter().filter(|contact| contact.online).count() as u64;
        let untold = self.watchers.iter().filter(|watcher| !watcher.told).count() as u64;
        Ok(untold + self.watchers.iter().map(online).sum::<u64>())
    }

    /// A state told to `watcher`: by itself, or in a snapshot, which may repeat what was known.
    fn tell(&mut self, watcher: usize, record: &record::Record<'_>, snapshot: bool) {
        let number = self
            .population
            .number(record.user.as_bytes())
            .and_then(|number| number.checked_sub(self.first_user));
        let contacts = &mut self.watchers[watcher].contacts;
        let contact = number.and_then(|user| contacts.binary_search_by_key(&user, |contact| contact.user).ok());
        let (Some(at), Some(since)) = (contact, record.since) else {
            // Never seen: all there is to say of it is that it is offline.
            let never_seen = contact.is_some() && snapshot && !record.online;
            self.found.unreadable += u64::from(!never_seen);
            return;
        };
        let contact = &mut contacts[at];
        match since.cmp(&contact.since) {
            std::cmp::Ordering::Less => return self.found.out_of_order += 1,
            std::cmp::Ordering::Equal if snapshot => return,
            std::cmp::Ordering::Equal => return self.found.doubled += 1,
            std::cmp::Ordering::Greater => {}
        }
        contact.since = since;
        contact.online = record.online;
        self.found.states += 1;
        if self.start_us == 0 {
            // Left by an earlier run of the seed; of that nothing is known.
            return;
        }
        let now_ms = clock::unix_ms();
        let after = |then_ms: u64| now_ms.saturating_sub(then_ms) * 1_000;
        match self.histories[contact.user as usize].judge(record.online, since, &self.tolerance) {
            Verdict::FalseOffline => self.found.false_offline += 1,
            Verdict::FalseOnline => self.found.false_online += 1,
            // A snapshot tells late by nature: its stream was not there.
            _ if snapshot => {}
            Verdict::CameOnline(beat_ms) => self.found.online.record(after(beat_ms)),
            Verdict::Left(goodbye_ms) => self.found.goodbye.record(after(goodbye_ms)),
            Verdict::Expired(beat_ms) => self
                .found
                .late_offline
                .record(after(beat_ms + self.tolerance.offline_after_ms)),
        }
    }
}

impl Handler for World<'_> {
    fn request(&mut self, conn: usize, lasting: Lasting, out: &mut Vec<u8>) {
        let users: Vec<u64> = self.watchers[conn]
            .contacts
            .iter()
            .map(|contact| self.first_user + contact.user)
            .collect();
        write_stream_request(&self.population, self.target, None, &users, lasting.last_id, out);
    }

    fn event(&mut self, conn: usize, _now_us: u64, event: &Event<'_>, _lasting: Lasting) {
        match event.name {
            b"presence" => match record::parse(&event.data) {
                Some(record) => self.tell(conn, &record, false),
                None => self.found.unreadable += 1,
            },
            b"snapshot" => {
                let readable = record::parse_snapshot(&event.data, |record| self.tell(conn, &record, true));
                self.found.unreadable += u64::from(!readable);
                self.watchers[conn].told = true;
            }
            b"hello" => {
                let hello: serde_json::Value = serde_json::from_slice(&event.data).unwrap_or_default();
                self.beat_interval_ms = hello["beat_interval_ms"].as_u64().unwrap_or(0);
                self.tolerance.offline_after_ms = hello["offline_after_ms"].as_u64().unwrap_or(0);
            }
            _ => {}
        }
    }

    fn gone(&mut self, conn: usize, _now_us: u64, why: Gone, lasting: Lasting) {
        self.watchers[conn].told = false;
        match why {
            Gone::Eof | Gone::Reset => self.found.ended += 1,
            _ => self.found.refused += 1,
        }
        let back_us = clock::now_us() + u64::from(lasting.retry_ms.max(100)) * 1_000;
        self.acts.push(Reverse((back_us, Act::Return(conn))));
    }
}
