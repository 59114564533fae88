//! `fanout`: transitions on a schedule, and when each watcher was told.

mod events;
mod reader;

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::time::Duration;

use clap::Args;
use reader::Reader;

use crate::cause::{Cause, How};
use crate::clock;
use crate::common::{Common, Peer};
use crate::effort::Effort;
use crate::exposition::Exposition;
use crate::fleet::Fleet;
use crate::gone::Gone;
use crate::ledger::{Allowance, Ledger};
use crate::population::Population;
use crate::procfs;
use crate::progress::ProgressLine;
use crate::report::{MEMORY_SERIES, Report};
use crate::schedule::Schedule;
use crate::server_clock::ServerClock;
use crate::shards::Work;
use crate::stats::{Latencies, Strain};
use crate::target::Target;
use crate::units::duration;
use crate::workers::{share_max, split};

/// Numbers of the publishers start here, so that they are nobody's who also holds a stream in
/// another run of the seed.
const FIRST_PUBLISHER: u64 = 1 << 32;
/// How far the senders' time may run ahead of the clock, ms; far below any `beat_skew_max_ms`.
const AHEAD_MS_MAX: u64 = 500;
/// Of changes that come closer together, those of so long go together, us: to wait for each without
/// sleeping takes a core from the server.
const GRAIN_US: u64 = 250;

/// What a turn of the server may take at most without its being a stall, ms.
const SLACK_MS_MAX: f64 = 1_000.0;

/// A server that has told all finals and then nothing for this long, us, has told all.
const QUIET_US: u64 = 200_000;

/// Flags of `fanout`.
#[derive(Args, Clone, Debug)]
pub struct FanoutArgs {
    /// Streams, each watching all publishers
    #[arg(long, default_value_t = 1_000)]
    pub watchers: usize,
    /// Publishers that change in turn
    #[arg(long, default_value_t = 1)]
    pub publishers: usize,
    /// Transitions in all
    #[arg(long, default_value_t = 50)]
    pub transitions: u64,
    /// Transitions a second; max: back to back, all publishers in every datagram
    #[arg(long, default_value = "5", value_parser = crate::units::rate)]
    pub rate: f64,
    /// With --rate max: the next round only when the last one has been told to all, so that nothing
    /// is coalesced
    #[arg(long)]
    pub lockstep: bool,
    /// How to cause them
    #[arg(long, value_enum, default_value_t = How::Udp)]
    pub cause: How,
    /// Connects a second while the watchers are set up
    #[arg(long, default_value = "5000", value_parser = crate::units::rate)]
    pub connect_rate: f64,
    /// A state that stood this long should have been told to everybody
    #[arg(long, default_value = "250ms", value_parser = duration)]
    pub settle: Duration,
    /// A delivery that takes longer is a failure; with --rate max nothing is late
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub late_after: Duration,
    /// How long to wait at the end without anything being told before giving up on final states
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub wait: Duration,
}

struct Watchers<'a> {
    args: &'a FanoutArgs,
    common: &'a Common,
    population: Population,
    /// Watchers whose views the ledger keeps.
    count: usize,
    ledger: Ledger,
    /// Deliveries that other processes have in their books.
    told_elsewhere: u64,
    ready: usize,
    /// States that each watcher was told to set out from; a long snapshot comes in several events,
    /// and what a real-time node did not know then comes later.
    told_at_start: Vec<usize>,
    /// Watchers and publishers of whom a snapshot said "unknown", until more is said.
    unknown: BTreeSet<(usize, usize)>,
    gone: u64,
    failed_at_setup: Option<Gone>,
    online_at_start: u64,
    unreadable: u64,
    offline_after_ms: Option<u64>,
    server_clock: ServerClock,
    /// When each watcher asked for its stream.
    asked_us: Vec<u64>,
    last_delivery_us: u64,
    /// From the first change on.
    effort: Option<Effort>,
    /// How busy this thread was until the last delivery, 0 to 1: the waiting after it strains
    /// nobody.
    busy: f64,
    /// The delivery up to which `busy` is known, us.
    busy_until_us: u64,
    started: bool,
}

/// The subcommand.
pub fn run(common: &Common, args: &FanoutArgs) -> io::Result<Report> {
    if let Some(share) = common.share {
        reader::work(common, args, share)?;
        return Ok(Report::default());
    }
    let shares = split(args.watchers, share_max(common));
    if shares.len() > 1 && args.lockstep {
        return Err(io::Error::other(format!(
            "--lockstep needs all watchers in one process, which holds at most {}",
            share_max(common)
        )));
    }
    let population = Population::new(common.seed);
    let publishers: Vec<u64> = (0..args.publishers as u64)
        .map(|p| FIRST_PUBLISHER + p)
        .collect();
    let target = Target::new(common)?;
    let mut cause = Cause::new(common, &target, args.cause)?;
    if common.peer == Peer::Greendot {
        // Whatever an earlier run left behind: everybody is offline before anybody watches.
        cause.change(&population, &publishers, false, clock::unix_ms())?;
        std::thread::sleep(Duration::from_millis(300));
    }
    let mut watchers = Watchers::new(common, args, args.watchers);
    let line = ProgressLine::new(common.quiet);
    let mut reader = Reader::start(&target, &shares, &mut watchers, &line)?;
    watchers.check_spacing()?;

    // Stream set-up must not be charged to the first transition.
    watchers.linger(&mut reader, Duration::from_millis(200))?;

    watchers.ledger.set_slack(watchers.slack_ms());
    let before = Sample::take(common, &target);
    reader.begin()?;
    watchers.effort = Some(Effort::begin(reader.asleep_us()));
    let mut lag = Latencies::default();
    let max = args.rate.is_infinite();
    let first_us = clock::now_us() + if max { 0 } else { 20_000 };
    let series = if max {
        watchers.back_to_back(&mut reader, &mut cause, &publishers)?
    } else {
        watchers.on_schedule(&mut reader, &mut cause, &publishers, first_us, &mut lag)?
    };
    let settled_us = watchers.settle(&mut reader, &line)?;
    let after = Sample::take(common, &target);
    watchers.linger(&mut reader, args.settle)?;
    let busy = reader.finish(&shares, &mut watchers)?.max(watchers.busy);
    let unsettled = watchers.ledger.unsettled(&watchers.allowance());
    if common.peer == Peer::Greendot {
        cause.change(
            &population,
            &publishers,
            false,
            clock::unix_ms() + AHEAD_MS_MAX,
        )?;
    }
    Ok(watchers.report(
        &before, &after, first_us, settled_us, unsettled, busy, &lag, series,
    ))
}

struct Sample {
    at_us: u64,
    server_cpu_us: Option<u64>,
    udp_drops: Option<u64>,
    work: Work,
}

impl Sample {
    fn take(common: &Common, target: &Target) -> Sample {
        Sample {
            at_us: clock::now_us(),
            server_cpu_us: common.server_pid.and_then(procfs::cpu_us),
            udp_drops: target.socket_drops(),
            // The nodes of a split deployment would be mixed up.
            work: (common.peer == Peer::Greendot && target.is_one())
                .then(|| Exposition::scrape(target.figures()[0]).ok())
                .flatten()
                .map_or_else(Work::default, |metrics| Work::of(&metrics)),
        }
    }
}

impl<'a> Watchers<'a> {
    fn new(common: &'a Common, args: &'a FanoutArgs, count: usize) -> Watchers<'a> {
        let start_us = clock::now_us();
        Watchers {
            args,
            common,
            population: Population::new(common.seed),
            count,
            ledger: Ledger::new(start_us, count, args.publishers),
            told_elsewhere: 0,
            ready: 0,
            told_at_start: vec![0; count],
            unknown: BTreeSet::new(),
            gone: 0,
            failed_at_setup: None,
            online_at_start: 0,
            unreadable: 0,
            offline_after_ms: None,
            server_clock: ServerClock::default(),
            asked_us: vec![start_us; count],
            last_delivery_us: start_us,
            effort: None,
            busy: 0.0,
            busy_until_us: 0,
            started: false,
        }
    }

    /// What the clock that states are told by says at `now_us`, Unix ms: the server's, unless they
    /// are handed on as they are sent.
    fn sent_ms(&self, now_us: u64) -> u64 {
        if self.server_clock.is_known() && self.args.cause != How::Put {
            self.server_clock.unix_ms(now_us)
        } else {
            clock::unix_ms()
        }
    }

    /// By how much a state may seem to have come about before its cause was sent, ms. A server
    /// reads its clock once a turn, and a turn may be kept from its core; up to a quarter of the
    /// time between two changes of a publisher neither is taken for the other.
    fn slack_ms(&self) -> u64 {
        let between_ms = self.args.publishers as f64 / self.args.rate * 1e3;
        self.server_clock.slack_ms() + (between_ms / 4.0).min(SLACK_MS_MAX) as u64
    }

    /// Measures how busy this thread has been, if anything was delivered since it was last
    /// measured.
    fn note_effort(&mut self, reader: &Reader) {
        if let Some(effort) = &self.effort
            && self.last_delivery_us > self.busy_until_us
        {
            self.busy = effort.busy(reader.asleep_us());
            self.busy_until_us = self.last_delivery_us;
        }
    }

    /// Deliveries so far, those to other processes' watchers as well.
    fn deliveries(&self) -> u64 {
        self.ledger.deliveries() + self.told_elsewhere
    }

    fn set_up(&mut self, fleet: &mut Fleet, line: &ProgressLine) -> io::Result<()> {
        let rate = self.args.connect_rate * self.count as f64 / self.args.watchers as f64;
        let start_us = clock::now_us();
        let limit_us = start_us + (self.count as f64 / rate * 1e6) as u64 + 30_000_000;
        let mut schedule = Schedule::new(start_us, rate, self.count as u64);
        while self.ready < self.count {
            let now_us = clock::now_us();
            for _ in 0..32 {
                let Some((number, _)) = schedule.next_due(now_us) else {
                    break;
                };
                fleet.open(number as usize)?;
            }
            fleet.poll(
                schedule
                    .next_at_us()
                    .unwrap_or(u64::MAX)
                    .min(now_us + 50_000),
                self,
            )?;
            line.show(&format!("{} of {} watchers", self.ready, self.count));
            if let Some(why) = self.failed_at_setup {
                return Err(io::Error::other(format!(
                    "a watcher's stream failed: {why:?}"
                )));
            }
            if now_us > limit_us {
                return Err(io::Error::other(format!(
                    "only {} of {} watchers were ready in time",
                    self.ready, self.count
                )));
            }
        }
        line.show("");
        if self.online_at_start > 0 {
            return Err(io::Error::other(
                "a publisher was online before its first beat; choose another --seed",
            ));
        }
        self.started = true;
        Ok(())
    }

    /// Whether publishers expire: a real-time node believes what it was told until it is told
    /// otherwise.
    fn expires(&self) -> bool {
        self.common.peer == Peer::Greendot && self.args.cause != How::Put
    }

    /// A publisher beats once a transition; it must not expire in between.
    fn check_spacing(&self) -> io::Result<()> {
        let between_ms = self.args.publishers as f64 / self.args.rate * 1e3;
        match self.offline_after_ms {
            Some(offline_after_ms) if self.expires() && between_ms >= offline_after_ms as f64 => {
                Err(io::Error::other(format!(
                    "each publisher would change every {between_ms:.0} ms, but the server expires \
                     it after {offline_after_ms} ms: raise --rate or lower --publishers"
                )))
            }
            _ => Ok(()),
        }
    }

    fn on_schedule(
        &mut self,
        reader: &mut Reader,
        cause: &mut Cause,
        publishers: &[u64],
        first_us: u64,
        lag: &mut Latencies,
    ) -> io::Result<Series> {
        let mut schedule = Schedule::new(first_us, self.args.rate, self.args.transitions);
        // Of each publisher strictly later: one time for all would run ahead of the clock where
        // there are more changes than milliseconds.
        let mut sent_ms = vec![0; publishers.len()];
        let grain_us = match self.args.rate * GRAIN_US as f64 > 1e6 {
            true => GRAIN_US,
            false => 0,
        };
        let mut series = Series::new(first_us, self.common.server_pid);
        while !schedule.is_over() {
            let now_us = clock::now_us();
            // What is due together goes together, as it does from a platform.
            let mut due: Option<(Range<usize>, bool, u64)> = None;
            while let Some((number, intended_us)) = schedule.next_due(now_us) {
                let turn = number as usize % publishers.len();
                let online = (number as usize / publishers.len()).is_multiple_of(2);
                lag.record(now_us - intended_us);
                self.ledger
                    .cause(turn, online, intended_us, self.sent_ms(now_us));
                let sent_at_ms = clock::unix_ms().max(sent_ms[turn] + 1);
                sent_ms[turn] = sent_at_ms;
                let (turns, _, latest_ms) = due.get_or_insert((turn..turn, online, 0));
                turns.end = turn + 1;
                *latest_ms = sent_at_ms.max(*latest_ms);
                if turn + 1 == publishers.len() {
                    break;
                }
            }
            if let Some((turns, online, sent_at_ms)) = due {
                sent_ms[turns.clone()].fill(sent_at_ms);
                cause.change(&self.population, &publishers[turns], online, sent_at_ms)?;
            }
            series.note(now_us, self.deliveries());
            let next_us = schedule.next_at_us().unwrap_or(now_us);
            reader.poll(next_us.max(now_us + grain_us), self)?;
        }
        self.note_effort(reader);
        Ok(series)
    }

    /// All publishers change together, as fast as their strictly increasing times allow.
    fn back_to_back(
        &mut self,
        reader: &mut Reader,
        cause: &mut Cause,
        publishers: &[u64],
    ) -> io::Result<Series> {
        let rounds = self.args.transitions.div_ceil(publishers.len() as u64);
        let mut sent_at_ms = clock::unix_ms();
        let mut series = Series::new(clock::now_us(), self.common.server_pid);
        for round in 0..rounds {
            let online = round % 2 == 0;
            sent_at_ms = clock::unix_ms().max(sent_at_ms + 1);
            while sent_at_ms > clock::unix_ms() + AHEAD_MS_MAX {
                reader.poll(clock::now_us() + 1_000, self)?;
            }
            let now_us = clock::now_us();
            let now_ms = self.sent_ms(now_us);
            self.ledger.begin_round();
            for publisher in 0..publishers.len() {
                self.ledger.cause(publisher, online, now_us, now_ms);
            }
            cause.change(&self.population, publishers, online, sent_at_ms)?;
            series.note(now_us, self.deliveries());
            reader.poll(now_us, self)?;
            let limit_us = now_us + self.args.wait.as_micros() as u64;
            while self.args.lockstep && !self.ledger.round_is_told() && clock::now_us() < limit_us {
                reader.poll(clock::now_us() + 5_000, self)?;
                series.note(clock::now_us(), self.deliveries());
            }
        }
        self.note_effort(reader);
        // The very same last change again, in case its datagram met a full socket: it changes
        // nothing where it had arrived.
        if self.common.peer == Peer::Greendot {
            for _ in 0..3 {
                self.linger(reader, Duration::from_millis(100))?;
                cause.change(&self.population, publishers, rounds % 2 == 1, sent_at_ms)?;
            }
        }
        Ok(series)
    }

    /// Reads until every view is final and nothing more comes, or nothing has come for `--wait`.
    fn settle(&mut self, reader: &mut Reader, line: &ProgressLine) -> io::Result<u64> {
        let start_us = clock::now_us();
        loop {
            let unsettled = match reader {
                Reader::Here(_) => self.ledger.unsettled(&self.allowance()),
                // The views are elsewhere; all that were caused, told to all, is final for certain.
                Reader::Workers { .. } => (self.ledger.changes() * self.args.watchers as u64)
                    .saturating_sub(self.deliveries()),
            };
            let quiet_us = clock::now_us().saturating_sub(self.last_delivery_us.max(start_us));
            let settled = unsettled == 0 && quiet_us > QUIET_US;
            if settled || quiet_us > self.args.wait.as_micros() as u64 {
                line.show("");
                return Ok(self.last_delivery_us);
            }
            line.show(&format!("{unsettled} views to settle"));
            self.linger(reader, Duration::from_millis(20))?;
        }
    }

    /// What the judge allows.
    fn allowance(&self) -> Allowance {
        let late_us = match self.args.rate.is_infinite() {
            true => u64::MAX,
            false => self.args.late_after.as_micros() as u64,
        };
        Allowance {
            settle_us: self.args.settle.as_micros() as u64,
            late_us,
        }
    }

    fn linger(&mut self, reader: &mut Reader, time: Duration) -> io::Result<()> {
        let until_us = clock::now_us() + time.as_micros() as u64;
        while clock::now_us() < until_us {
            // In slices: the busy ratio counts waiting, and a far deadline would wait beyond what
            // is read.
            reader.poll(until_us, self)?;
            self.note_effort(reader);
        }
        Ok(())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the one place where all that was measured meets"
    )]
    fn report(
        &self,
        before: &Sample,
        after: &Sample,
        first_us: u64,
        settled_us: u64,
        unsettled: u64,
        busy: f64,
        lag: &Latencies,
        series: Series,
    ) -> Report {
        let max = self.args.rate.is_infinite();
        let judgement = self.ledger.judge(&self.allowance(), clock::now_us());
        let elapsed_s = settled_us.saturating_sub(first_us).max(1) as f64 / 1e6;
        let deliveries = self.ledger.deliveries() as f64;
        let mut report = Report::new("fanout");
        report.value("watchers", self.args.watchers as f64);
        report.value("publishers", self.args.publishers as f64);
        report.value("transitions", self.ledger.changes() as f64);
        report.value("elapsed_s", elapsed_s);
        report.value("deliveries", deliveries);
        report.value("deliveries_per_s", deliveries / elapsed_s);
        let cpu_us = after
            .server_cpu_us
            .zip(before.server_cpu_us)
            .map(|(after, before)| after.saturating_sub(before) as f64);
        report.value_if(
            "server_cpu_us_per_delivery",
            cpu_us.map(|us| us / deliveries.max(1.0)),
        );
        let server_busy = cpu_us.map(|us| us / (after.at_us - before.at_us).max(1) as f64);
        report.value_if("server_cores_busy", server_busy);
        after.work.report(&before.work, elapsed_s, &mut report);
        report.value("coalesced", judgement.coalesced as f64);
        report.value("missing", judgement.missing as f64);
        report.value("unsettled", unsettled as f64);
        report.value("duplicated", self.ledger.doubled() as f64);
        report.value("out_of_order", self.ledger.out_of_order() as f64);
        report.value("never_caused", judgement.never_caused as f64);
        report.value("late", judgement.late as f64);
        report.value("streams_dropped", self.gone as f64);
        let drops = after
            .udp_drops
            .zip(before.udp_drops)
            .map(|(after, before)| after.saturating_sub(before));
        report.value_if("datagrams_dropped_by_socket", drops.map(|d| d as f64));
        let lossy = max && drops.is_some_and(|d| d > 0);
        if lossy {
            report.notes.push(
                "datagrams met a full socket, so not every change reached the server: states never \
                 told may never have been"
                    .to_owned(),
            );
        } else {
            report.fail_if(judgement.missing, "states were not told to a watcher");
        }
        report.fail_if(unsettled, "final states were never told");
        report.fail_if(
            self.ledger.surplus(),
            "states were told to a watcher beyond one for each change",
        );
        report.fail_if(
            self.ledger.out_of_order(),
            "states were told after a newer one",
        );
        report.fail_if(
            judgement.never_caused,
            "states were told that nothing had caused",
        );
        report.fail_if(judgement.late, "deliveries were late");
        report.fail_if(self.unreadable, "events could not be read");
        report.fail_if(self.gone, "streams ended");
        if !max {
            report.latencies("each delivery", judgement.each);
            report.latencies("first watcher", judgement.first);
            report.latencies("last watcher", judgement.last);
        }
        report.strain(&Strain {
            busy,
            lag_p99_us: lag.percentile_us(99.0),
            server_gave_way: max && server_busy.is_some_and(|busy| busy > 0.95),
        });
        report.series("deliveries a second", "s", series.deliveries);
        report.series(MEMORY_SERIES, "s", series.memory);
        report
    }
}

/// Deliveries a second and the server's memory, sampled every quarter of a second.
struct Series {
    start_us: u64,
    server_pid: Option<u32>,
    last: (u64, u64),
    deliveries: Vec<(f64, f64)>,
    memory: Vec<(f64, f64)>,
}

impl Series {
    fn new(start_us: u64, server_pid: Option<u32>) -> Series {
        Series {
            start_us,
            server_pid,
            last: (start_us, 0),
            deliveries: Vec::new(),
            memory: Vec::new(),
        }
    }

    fn note(&mut self, now_us: u64, deliveries: u64) {
        let passed_us = now_us.saturating_sub(self.last.0);
        if passed_us >= 250_000 {
            let rate = (deliveries - self.last.1) as f64 * 1e6 / passed_us as f64;
            let at_s = (now_us - self.start_us) as f64 / 1e6;
            self.deliveries.push((at_s, rate));
            self.memory
                .extend(procfs::user_mib(self.server_pid).map(|mib| (at_s, mib)));
            self.last = (now_us, deliveries);
        }
    }
}
