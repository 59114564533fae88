//! `storm`: all streams are cut at once and come back as clients do.

use std::io;
use std::process::{Child, Command};
use std::time::Duration;

use clap::Args;

use crate::affinity::spawn_unpinned;
use crate::clock;
use crate::common::Common;
use crate::crew::Crew;
use crate::herd;
use crate::procfs;
use crate::progress::ProgressLine;
use crate::report::{MEMORY_SERIES, Report, number};
use crate::stats::Strain;
use crate::streams::{StreamsArgs, ramp};
use crate::target::Target;

/// Flags of `storm`.
#[derive(Args, Clone, Debug)]
pub struct StormArgs {
    /// The streams
    #[command(flatten)]
    pub streams: StreamsArgs,
    /// Restart the server with this shell command instead of resetting the connections
    #[arg(long, value_name = "COMMAND")]
    pub restart: Option<String>,
    /// Give up when not all are back after this long
    #[arg(long, default_value = "60s", value_parser = crate::units::duration)]
    pub patience: Duration,
}

/// Within this time every herd has heard an order.
const ORDER_HEARD: Duration = Duration::from_millis(100);

/// The subcommand.
pub fn run(common: &Common, args: &StormArgs) -> io::Result<Report> {
    let streams = &args.streams;
    if !Target::new(common)?.is_one() && args.restart.is_some() {
        // A node that has restarted says "unknown" and tells the state a moment later, which looks
        // like a transition.
        return Err(io::Error::other(
            "--restart takes one server, named by --http and --udp",
        ));
    }
    if let Some(share) = common.share {
        herd::run(streams.plan(common, share)?)?;
        return Ok(Report::default());
    }
    let line = ProgressLine::new(common.quiet);
    let mut crew = Crew::start(common, streams.streams, streams.conns_each(), &[])?;
    let ramped = ramp(&mut crew, streams.streams, streams.rate, &line, |_, _| {})?;
    if ramped.ready < streams.streams as u64 {
        return Err(io::Error::other(format!(
            "only {} of {} streams were ready before the storm",
            ramped.ready, streams.streams
        )));
    }
    // Whatever the ramp set off is told before the cut.
    let calm_until_us = clock::now_us() + streams.hold.as_micros() as u64;
    while clock::now_us() < calm_until_us {
        crew.listen(Duration::from_millis(100))?;
    }
    let cut_us = clock::now_us();
    let mut restart = None;
    match &args.restart {
        None => crew.order("cut")?,
        Some(command) => {
            crew.order("return")?;
            // A stream that ends before its herd has heard of the storm would be gone for good.
            std::thread::sleep(ORDER_HEARD);
            // Beside the streams: what they say meanwhile must not wait for it.
            restart = Some(spawn_unpinned(Command::new("sh").args(["-c", command]))?);
        }
    }
    let total = streams.streams as u64;
    let mut connects = Connects::new(ramped.connected);
    let mut memory = Vec::new();
    let mut back_s = None;
    while back_s.is_none() && clock::now_us() < cut_us + args.patience.as_micros() as u64 {
        let progress = crew.listen(Duration::from_millis(100))?;
        let elapsed_s = (clock::now_us() - cut_us) as f64 / 1e6;
        if let Some(status) = restart.as_mut().map(Child::try_wait).transpose()?.flatten() {
            restart = None;
            if !status.success() {
                return Err(io::Error::other(format!("--restart ended with {status}")));
            }
        }
        // However short the outage: each stream was lost once, and is there.
        if restart.is_none() && progress.lost >= total && progress.ready == total {
            back_s = Some(elapsed_s);
        }
        if connects.note(elapsed_s, progress.connected, back_s.is_some()) {
            memory.extend(procfs::user_mib(common.server_pid).map(|mib| (elapsed_s, mib)));
        }
        line.show(&format!(
            "{} of {} streams back",
            number(progress.ready as f64),
            number(streams.streams as f64)
        ));
    }
    line.show("");
    if let Some(mut restart) = restart {
        restart.kill()?;
        restart.wait()?;
        return Err(io::Error::other("--restart did not end within --patience"));
    }
    // A transition that the storm caused would be told now at the latest.
    let quiet_until_us = clock::now_us() + 1_000_000;
    let mut held = ramped;
    while clock::now_us() < quiet_until_us {
        held = crew.listen(Duration::from_millis(100))?;
    }
    let sum = crew.finish()?;

    let mut report = Report::new("storm");
    report.value("streams", streams.streams as f64);
    report.value("streams_back", held.ready as f64);
    report.value_if("all_back_s", back_s);
    report.value("connects_per_s_peak", connects.peak());
    report.value(
        "reconnects",
        (sum.progress.connected - ramped.connected) as f64,
    );
    report.value("false_transitions", sum.false_transitions as f64);
    report.value("given_up", sum.given_up as f64);
    for (name, count) in &sum.gone {
        report.value(&format!("streams_{name}"), *count as f64);
    }
    report.fail_if(
        streams.streams as u64 - held.ready.min(streams.streams as u64),
        "streams did not come back",
    );
    report.value("retry_ms_max", f64::from(sum.retry_ms_max));
    // A user whose stream comes back later than the server's patience did leave.
    if u64::from(sum.retry_ms_max) < sum.away_ms_max
        && back_s.is_some_and(|s| s * 1e3 < sum.away_ms_max as f64)
    {
        report.fail_if(
            sum.false_transitions,
            "transitions were told although nobody left",
        );
    } else {
        report.notes.push(format!(
            "some streams were away for longer than offline_after_ms less beat_interval_ms ({} \
             ms), so their users truly went offline: transitions are no failure of this run",
            sum.away_ms_max
        ));
    }
    report.fail_if(
        sum.given_up,
        "reconnects were answered in a way after which a browser gives up",
    );
    report.latencies("back (from the end of its retry delay)", sum.back);
    report.strain(&Strain {
        busy: sum.busy,
        lag_p99_us: sum.lag.percentile_us(99.0),
        server_gave_way: false,
    });
    report.series("connects a second", "s after the cut", connects.points);
    report.series(MEMORY_SERIES, "s after the cut", memory);
    Ok(report)
}

/// Connects a second, in windows of half a second.
struct Connects {
    last: (f64, u64),
    points: Vec<(f64, f64)>,
}

impl Connects {
    const WINDOW_S: f64 = 0.5;

    fn new(connected: u64) -> Connects {
        Connects {
            last: (0.0, connected),
            points: Vec::new(),
        }
    }

    /// `connected`, since the beginning of the run, at `elapsed_s`; the last window may be shorter
    /// than the others. True if a window ended.
    fn note(&mut self, elapsed_s: f64, connected: u64, is_last: bool) -> bool {
        let (since_s, before) = self.last;
        let passed_s = elapsed_s - since_s;
        let ends = passed_s >= Self::WINDOW_S || is_last;
        if ends {
            // A rest much shorter than a window would make a peak of its own out of a few connects.
            let rate = connected.saturating_sub(before) as f64 / passed_s.max(Self::WINDOW_S / 5.0);
            self.points.push((elapsed_s, rate));
            self.last = (elapsed_s, connected);
        }
        ends
    }

    fn peak(&self) -> f64 {
        self.points
            .iter()
            .map(|(_, rate)| *rate)
            .fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_window_counts_although_it_is_short() {
        let mut connects = Connects::new(100);
        connects.note(0.2, 100, false);
        connects.note(0.5, 150, false);
        connects.note(0.75, 400, true);
        assert_eq!(connects.points, [(0.5, 100.0), (0.75, 1_000.0)]);
        assert_eq!(connects.peak(), 1_000.0);
        let mut at_once = Connects::new(0);
        at_once.note(0.01, 100, true);
        assert_eq!(at_once.points, [(0.01, 1_000.0)]);
    }
}
