//! `streams`: ramp to N event streams, hold them, and weigh the server.

use std::io;
use std::time::Duration;

use clap::Args;

use crate::clock;
use crate::common::{Common, Peer, Share};
use crate::crew::Crew;
use crate::exposition::Exposition;
use crate::graph::{Choice, Graph};
use crate::herd::{self, Plan, Progress, Ready};
use crate::population::Population;
use crate::procfs;
use crate::progress::ProgressLine;
use crate::report::{MEMORY_SERIES, Report, number};
use crate::shards::Work;
use crate::stats::Strain;
use crate::target::Target;
use crate::units::duration;

/// Flags of `streams`, and of `storm` for its streams.
#[derive(Args, Clone, Debug)]
pub struct StreamsArgs {
    /// Streams to hold
    #[arg(long, default_value_t = 1_000)]
    pub streams: usize,
    /// Connects a second
    #[arg(long, default_value = "2000", value_parser = crate::units::rate)]
    pub rate: f64,
    /// Connect as soon as fewer than so many streams are on their way to being ready, and no faster
    /// than --rate: a storm of so many at a time
    #[arg(long, value_name = "MAX")]
    pub in_flight: Option<usize>,
    /// Publishers that each stream watches
    #[arg(long, default_value_t = 0)]
    pub watch: u32,
    /// Streams make nobody a publisher
    #[arg(long)]
    pub watch_only: bool,
    /// Streams vouch for themselves: each ping is answered, over a second connection each
    #[arg(long)]
    pub answer_pings: bool,
    /// Choose whom to watch by a Zipf law with this exponent instead of uniformly
    #[arg(long, value_name = "EXPONENT")]
    pub zipf: Option<f64>,
    /// How long to hold all streams
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub hold: Duration,
}

/// Flags of `streams` alone.
#[derive(Args, Clone, Debug)]
pub struct HoldArgs {
    /// The streams
    #[command(flatten)]
    pub streams: StreamsArgs,
    /// Hold as many streams without watches first, so that a watch is weighed apart from its stream
    #[arg(long)]
    pub weigh_watches: bool,
    /// This worker's streams are those without watches
    #[arg(long, hide = true)]
    pub unwatching: bool,
}

impl StreamsArgs {
    /// Connections that a stream takes.
    pub fn conns_each(&self) -> usize {
        1 + usize::from(self.answer_pings)
    }

    /// The herd's plan for `share` of all streams.
    pub fn plan(&self, common: &Common, share: Share) -> io::Result<Plan> {
        let choice = self
            .zipf
            .map_or(Choice::Uniform, |exponent| Choice::Zipf { exponent });
        let target = Target::new(common)?;
        if self.answer_pings && target.seal.is_some() {
            return Err(io::Error::other(
                "--answer-pings answers over plain HTTP: not with --https",
            ));
        }
        Ok(Plan {
            targets: target.streams,
            seal: target.seal,
            first: share.first,
            count: share.count,
            rate: self.rate * share.count as f64 / self.streams as f64,
            in_flight: self.in_flight.map_or(usize::MAX, |all| {
                (all * share.count).div_ceil(self.streams).max(1)
            }),
            population: Population::new(common.seed),
            graph: Graph {
                publishers: self.streams as u64,
                watches: self.watch,
                choice,
                seed: common.seed,
            },
            states: match common.peer {
                Peer::Greendot => {
                    u64::from(self.watch).min((self.streams as u64).saturating_sub(1)) as u32
                }
                _ => 0,
            },
            publish: !self.watch_only,
            answer_pings: self.answer_pings,
            ready: match common.peer {
                Peer::Nchan => Ready::Head,
                Peer::Greendot if self.watch == 0 => Ready::Hello,
                _ => Ready::Snapshot,
            },
        })
    }
}

/// What the server and the kernel used at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weight {
    server: Option<procfs::Memory>,
    slab_bytes: Option<u64>,
    tcp_bytes: Option<u64>,
    server_cpu_us: Option<u64>,
}

impl Weight {
    /// Weighs now.
    pub fn now(server_pid: Option<u32>) -> Weight {
        Weight {
            server: server_pid.and_then(procfs::memory),
            slab_bytes: procfs::slab_bytes(),
            tcp_bytes: procfs::tcp_buffer_bytes(),
            server_cpu_us: server_pid.and_then(procfs::cpu_us),
        }
    }

    /// Adds what was used since `before`, for each of `streams`, of which this machine has both
    /// ends or one.
    pub fn report(&self, before: &Weight, streams: u64, both_ends: bool, report: &mut Report) {
        let ends = if both_ends { "both_ends" } else { "this_end" };
        let each = |after: Option<u64>, before: Option<u64>| {
            Some((after? as f64 - before? as f64) / streams.max(1) as f64)
        };
        let server =
            |of: fn(procfs::Memory) -> u64| each(self.server.map(of), before.server.map(of));
        report.value_if(
            "server_user_bytes_per_stream",
            server(|m| m.anonymous_bytes),
        );
        report.value_if("server_rss_bytes_per_stream", server(|m| m.rss_bytes));
        report.value_if(
            &format!("kernel_slab_bytes_per_stream_{ends}"),
            each(self.slab_bytes, before.slab_bytes),
        );
        report.value_if(
            &format!("kernel_tcp_buffer_bytes_per_stream_{ends}"),
            each(self.tcp_bytes, before.tcp_bytes),
        );
        report.value_if(
            "server_cpu_us_per_stream",
            each(self.server_cpu_us, before.server_cpu_us),
        );
    }
}

/// Waits until all `total` streams are ready or given up, for 30 s beyond the schedule at most;
/// `each` sees all progress.
pub fn ramp(
    crew: &mut Crew,
    total: usize,
    rate: f64,
    line: &ProgressLine,
    mut each: impl FnMut(f64, Progress),
) -> io::Result<Progress> {
    let start_us = clock::now_us();
    let limit_s = total as f64 / rate + 30.0;
    loop {
        let progress = crew.listen(Duration::from_millis(250))?;
        let elapsed_s = (clock::now_us() - start_us) as f64 / 1e6;
        each(elapsed_s, progress);
        let speed = progress.ready as f64 / elapsed_s.max(0.001);
        line.show(&format!(
            "{} of {} streams, {}/s, {} s to go",
            number(progress.ready as f64),
            number(total as f64),
            number(speed.round()),
            number(((total as u64).saturating_sub(progress.ready) as f64 / speed.max(1.0)).round()),
        ));
        if progress.ready + progress.gone >= total as u64 || elapsed_s > limit_s {
            line.show("");
            return Ok(progress);
        }
    }
}

/// What happened when, sampled every half second.
#[derive(Default)]
struct Course {
    last: (f64, Progress),
    connects: Vec<(f64, f64)>,
    told: Vec<(f64, f64)>,
    memory: Vec<(f64, f64)>,
}

impl Course {
    fn note(&mut self, common: &Common, elapsed_s: f64, progress: &Progress) {
        let passed_s = elapsed_s - self.last.0;
        if passed_s < 0.5 {
            return;
        }
        let rate = |now: u64, then: u64| (elapsed_s, now.saturating_sub(then) as f64 / passed_s);
        self.connects
            .push(rate(progress.connected, self.last.1.connected));
        self.told
            .push(rate(progress.presence, self.last.1.presence));
        self.memory
            .extend(procfs::user_mib(common.server_pid).map(|mib| (elapsed_s, mib)));
        self.last = (elapsed_s, *progress);
    }
}

/// Holds all streams without watches for a moment; the server's user memory then.
fn weigh_unwatching(
    common: &Common,
    args: &StreamsArgs,
    line: &ProgressLine,
) -> io::Result<Option<u64>> {
    let mut crew = Crew::start(common, args.streams, args.conns_each(), &["--unwatching"])?;
    let ramped = ramp(&mut crew, args.streams, args.rate, line, |_, _| {})?;
    if ramped.ready < args.streams as u64 {
        return Err(io::Error::other(format!(
            "--weigh-watches: only {} of {} streams were ready",
            ramped.ready, args.streams
        )));
    }
    let until_us = clock::now_us() + args.hold.as_micros() as u64;
    while clock::now_us() < until_us {
        crew.listen(Duration::from_millis(100))?;
    }
    let bytes = common
        .server_pid
        .and_then(procfs::memory)
        .map(|used| used.anonymous_bytes);
    crew.finish()?;
    // The server has to see that they are gone.
    std::thread::sleep(Duration::from_secs(1));
    Ok(bytes)
}

/// The subcommand.
pub fn run(common: &Common, all: &HoldArgs) -> io::Result<Report> {
    let args = &all.streams;
    let target = Target::new(common)?;
    if let Some(share) = common.share {
        let watch = if all.unwatching { 0 } else { args.watch };
        let args = StreamsArgs {
            watch,
            ..args.clone()
        };
        herd::run(args.plan(common, share)?)?;
        return Ok(Report::default());
    }
    if all.weigh_watches && (args.watch == 0 || common.server_pid.is_none()) {
        return Err(io::Error::other(
            "--weigh-watches needs --watch and --server-pid",
        ));
    }
    let mut report = Report::new("streams");
    let line = ProgressLine::new(common.quiet);
    let before = Weight::now(common.server_pid);
    // The nodes of a split deployment would be mixed up.
    let work = || {
        let of_one = common.peer == Peer::Greendot && target.is_one();
        of_one
            .then(|| Exposition::scrape(target.figures()[0]))
            .transpose()
    };
    let unwatching_bytes = match all.weigh_watches {
        true => weigh_unwatching(common, args, &line)?,
        false => None,
    };
    let cpu_before_us = common.server_pid.and_then(procfs::cpu_us);
    let work_before = work()?;
    let mut crew = Crew::start(common, args.streams, args.conns_each(), &[])?;
    let start_us = clock::now_us();
    let mut course = Course::default();
    let mut ramped_s = 0.0;
    let reached = ramp(
        &mut crew,
        args.streams,
        args.rate,
        &line,
        |elapsed_s, progress| {
            course.note(common, elapsed_s, &progress);
            ramped_s = elapsed_s;
        },
    )?;
    let ramp_cpu = Weight::now(common.server_pid);
    let work_after = work()?;
    let hold_until_us = clock::now_us() + args.hold.as_micros() as u64;
    let mut held = reached;
    while clock::now_us() < hold_until_us {
        held = crew.listen(Duration::from_millis(100))?;
        course.note(common, (clock::now_us() - start_us) as f64 / 1e6, &held);
    }
    let after = Weight::now(common.server_pid);
    let idle_cpu_us = after
        .server_cpu_us
        .zip(ramp_cpu.server_cpu_us)
        .map(|(after, before)| after.saturating_sub(before));
    let sum = crew.finish()?;

    report.value("streams_asked", args.streams as f64);
    report.value("streams_ready", reached.ready as f64);
    report.value("streams_held", held.ready as f64);
    report.value("watches_per_stream", f64::from(args.watch));
    let ramped_s = match sum.ramped_us {
        0 => ramped_s,
        us => us as f64 / 1e6,
    };
    report.value("ramp_s", ramped_s);
    report.value("connects_per_s", reached.ready as f64 / ramped_s.max(0.001));
    let user_memory = Weight {
        server_cpu_us: ramp_cpu.server_cpu_us,
        ..after
    };
    let before = Weight {
        server_cpu_us: cpu_before_us,
        ..before
    };
    let both_ends = target.streams_are_local();
    user_memory.report(&before, held.ready, both_ends, &mut report);
    if let (Some(bytes), Some(empty), Some(full)) = (unwatching_bytes, before.server, after.server)
    {
        let each = |bytes: u64, empty: u64| (bytes as f64 - empty as f64) / args.streams as f64;
        report.value(
            "server_user_bytes_per_stream_unwatching",
            each(bytes, empty.anonymous_bytes),
        );
        report.value(
            "server_user_bytes_per_watch",
            each(full.anonymous_bytes, bytes) / f64::from(args.watch),
        );
    }
    if let (Some(before), Some(after)) = (work_before, work_after) {
        Work::of(&after).report(&Work::of(&before), ramped_s, &mut report);
    }
    report.value_if(
        "server_cpu_s_while_held",
        idle_cpu_us.map(|us| us as f64 / 1e6),
    );
    if args.answer_pings {
        let (good, bad) = (sum.pings_answered, sum.answers_failed);
        report.value("pings_answered", good as f64);
        report.fail_if(bad, "answers to pings were refused or failed");
        report.value_if(
            "server_cpu_us_per_answered_ping",
            idle_cpu_us
                .filter(|_| held.pings_answered > reached.pings_answered)
                .map(|us| us as f64 / (held.pings_answered - reached.pings_answered) as f64),
        );
        report.latencies("answer", sum.answer);
    }
    report.value("presence_events_received", sum.progress.presence as f64);
    report.value(
        "generator_user_bytes_per_stream",
        held.own_bytes as f64 / held.ready.max(1) as f64,
    );
    for (name, count) in &sum.gone {
        report.value(&format!("streams_{name}"), *count as f64);
    }
    report.fail_if(
        args.streams as u64 - held.ready.min(args.streams as u64),
        "streams were not held to the end",
    );
    let note = match both_ends {
        true => {
            "both ends of every connection are on this machine: kernel memory is counted for both"
        }
        false => "the server is on another machine: kernel memory is that of the generator's end",
    };
    report.notes.push(note.to_owned());
    report.latencies("connect", sum.connect);
    report.latencies("hello", sum.hello);
    report.latencies("snapshot", sum.snapshot);
    report.strain(&Strain {
        busy: sum.busy,
        lag_p99_us: sum.lag.percentile_us(99.0),
        server_gave_way: false,
    });
    report.series("connects a second", "s", course.connects);
    report.series("states told a second", "s", course.told);
    report.series(MEMORY_SERIES, "s", course.memory);
    Ok(report)
}
