//! What the server and the kernel counted of the datagrams sent.
//!
//! Owns where they went: accepted, refused, dropped by a socket, or unaccounted for.

use std::io;
use std::time::Duration;

use crate::clock;
use crate::common::{Common, Peer};
use crate::exposition::Exposition;
use crate::procfs;
use crate::report::Report;
use crate::shards::Work;
use crate::target::Target;

/// Longest wait for a server to work through what waits in its sockets, us.
const SETTLE_US_MAX: u64 = 10_000_000;
/// Without another datagram counted for this long, us, none waits to be counted any more.
const QUIET_US: u64 = 2_000_000;

/// What server and kernel had counted at one moment.
pub struct Count {
    metrics: Option<Exposition>,
    socket_drops: Option<u64>,
    server_cpu_us: Option<u64>,
}

impl Count {
    /// Asks all presence nodes and the kernel now.
    pub fn take(common: &Common, target: &Target) -> io::Result<Count> {
        let scrape = || {
            target
                .presence
                .iter()
                .map(|node| Exposition::scrape(node.http))
                .sum()
        };
        Ok(Count {
            metrics: (common.peer == Peer::Greendot).then(scrape).transpose()?,
            socket_drops: target.socket_drops(),
            server_cpu_us: common.server_pid.and_then(procfs::cpu_us),
        })
    }

    /// The sum of all samples of a family; None where nothing is counted (a peer).
    pub(super) fn sum(&self, family: &str) -> Option<f64> {
        self.metrics
            .as_ref()
            .map(|metrics| metrics.sum(family, &[]))
    }

    /// Datagrams received since `before`; all of `sent` where nothing is counted.
    pub(super) fn received_since(&self, before: &Count, sent: u64) -> f64 {
        let received = |count: &Count| count.sum("greendot_datagrams_received_total");
        received(self)
            .zip(received(before))
            .map_or(sent as f64, |(after, before)| after - before)
    }

    pub(super) fn dropped_since(&self, before: &Count) -> Option<f64> {
        self.socket_drops
            .zip(before.socket_drops)
            .map(|(after, before)| after.saturating_sub(before) as f64)
    }

    /// Waits until the server has received `sent` datagrams since `before`; false if it did not.
    pub(super) fn await_received(
        common: &Common,
        target: &Target,
        before: &Count,
        sent: u64,
    ) -> io::Result<bool> {
        let limit_us = clock::now_us() + QUIET_US;
        loop {
            if Count::take(common, target)?.received_since(before, sent) >= sent as f64 {
                return Ok(true);
            }
            if clock::now_us() > limit_us {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// As [`Count::take`], once what waits in the server's sockets has been counted too: when all
    /// that was sent is accounted for, or nothing more has come for a while. (A server that has no
    /// core for a moment counts nothing either.)
    pub(super) fn settled(
        common: &Common,
        target: &Target,
        before: &Count,
        sent: u64,
        per_drop: f64,
    ) -> io::Result<Count> {
        let start_us = clock::now_us();
        let mut count = Count::take(common, target)?;
        let mut changed_us = start_us;
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let now = Count::take(common, target)?;
            let now_us = clock::now_us();
            let received = now.received_since(before, sent);
            let is_quiet = received == count.received_since(before, sent);
            let lost = sent as f64 - received;
            let is_explained =
                lost == dropped_datagrams(now.dropped_since(before).unwrap_or(0.0), lost, per_drop);
            if !is_quiet {
                changed_us = now_us;
            }
            if is_quiet && (is_explained || now_us > changed_us + QUIET_US)
                || now_us > start_us + SETTLE_US_MAX
            {
                return Ok(now);
            }
            count = now;
        }
    }

    /// Datagrams that the server's socket dropped, and datagrams and beats that the server refused,
    /// since `before`.
    pub fn lost_since(&self, before: &Count) -> f64 {
        let dropped = self.dropped_since(before).unwrap_or(0.0);
        let refused = |count: &Count| {
            let sum = |family| {
                count
                    .metrics
                    .as_ref()
                    .map_or(0.0, |metrics| metrics.sum(family, &[]))
            };
            sum("greendot_datagrams_refused_total") + sum("greendot_beats_refused_total")
        };
        dropped + refused(self) - refused(before)
    }

    /// How often a presence node was stalled since `before`.
    pub fn stalls_since(&self, before: &Count) -> f64 {
        let stalls = |count: &Count| {
            let metrics = count.metrics.as_ref();
            metrics.map_or(0.0, |metrics| metrics.sum("greendot_stalls_total", &[]))
        };
        stalls(self) - stalls(before)
    }

    /// Adds what was counted since `before`; returns the datagrams that were lost in the server's
    /// socket.
    pub(super) fn report(
        &self,
        before: &Count,
        sent: u64,
        per_drop: f64,
        entries: f64,
        seconds: f64,
        report: &mut Report,
    ) -> f64 {
        let dropped = self.dropped_since(before);
        let cpu_us = self
            .server_cpu_us
            .zip(before.server_cpu_us)
            .map(|(after, before)| after.saturating_sub(before) as f64);
        report.value_if("drops_by_server_socket", dropped);
        let drops = dropped.unwrap_or(0.0);
        let (mut lost, mut received) = (drops, sent as f64 - drops);
        if let (Some(after), Some(before)) = (&self.metrics, &before.metrics) {
            let delta = |family: &str, labels: &[&str]| {
                after.sum(family, labels) - before.sum(family, labels)
            };
            received = delta("greendot_datagrams_received_total", &[]);
            let accepted = delta("greendot_beats_total", &["source=\"udp\""]);
            report.value("datagrams_received", received);
            report.value("beats_accepted", accepted);
            report.value("beats_accepted_per_s", accepted / seconds);
            let mut refused = 0.0;
            for family in [
                "greendot_datagrams_refused_total",
                "greendot_beats_refused_total",
            ] {
                for (reason, now) in after.by_label(family, "reason") {
                    let then = before
                        .by_label(family, "reason")
                        .iter()
                        .find(|(r, _)| *r == reason)
                        .map_or(0.0, |(_, count)| *count);
                    if now > then {
                        report.value(
                            &format!(
                                "{}_{reason}",
                                family
                                    .trim_start_matches("greendot_")
                                    .trim_end_matches("_total")
                            ),
                            now - then,
                        );
                        refused += now - then;
                    }
                }
            }
            Work::of(after).report(&Work::of(before), seconds, report);
            report.fail_if(refused as u64, "datagrams or beats were refused");
            lost = sent as f64 - received;
            let by_socket = dropped_datagrams(drops, lost, per_drop);
            report.value("datagrams_dropped_by_server_socket", by_socket);
            report.value("datagrams_unaccounted_for", lost - by_socket);
            if received == 0.0 && sent > 0 {
                report.doubt(
                    "the server counted none of the datagrams sent",
                    "let --http and --udp name the same one",
                );
            } else if lost < by_socket {
                report.doubt(
                    "the server received more than was sent: somebody else beats as well",
                    "load a server that nobody else uses",
                );
            }
            // On the way to another machine much may happen; on this one a datagram is received or
            // dropped by a socket.
            if dropped.is_some() && lost > by_socket {
                report.fail_if((lost - by_socket) as u64, "datagrams are unaccounted for");
            }
        }
        report.value("datagrams_lost_ratio", lost / sent.max(1) as f64);
        report.value_if(
            "server_cpu_us_per_datagram",
            cpu_us.map(|us| us / received.max(1.0)),
        );
        report.value_if(
            "server_cpu_us_per_beat",
            cpu_us.map(|us| us / received.max(1.0) / entries),
        );
        report.value_if("server_cores_busy", cpu_us.map(|us| us / 1e6 / seconds));
        lost
    }
}

/// How many of the `lost` datagrams a socket's `drops` explain, of which each stands for one
/// datagram up to `per_drop`.
fn dropped_datagrams(drops: f64, lost: f64, per_drop: f64) -> f64 {
    lost.clamp(drops, drops * per_drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_is_of_a_whole_send() {
        // Two drops of sends of up to 52: any loss of 2 to 104 is theirs, more is not, and less was
        // counted twice.
        for (lost, theirs) in [
            (2.0, 2.0),
            (90.0, 90.0),
            (104.0, 104.0),
            (105.0, 104.0),
            (1.0, 2.0),
        ] {
            assert_eq!(dropped_datagrams(2.0, lost, 52.0), theirs);
        }
        assert_eq!(dropped_datagrams(0.0, 7.0, 52.0), 0.0);
        assert_eq!(dropped_datagrams(3.0, 7.0, 1.0), 3.0);
    }
}
