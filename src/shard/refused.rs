//! Of beat datagrams that are refused the log has an example, with the address from which it came.
//!
//! Owns how often: one line a second and reason for the whole node, and in it how many others there
//! were. One of them a minute is a warning, so that a flood leaves room for others among the last
//! warnings. Owns the words. Whoever sends such datagrams decides how many there are, and an
//! address in UDP may be forged.

use std::array;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::{REASONS, Refused};
use crate::metrics::Counter;
use crate::time::Mono;
use crate::wire::beat::is_device_key;

/// Time between two lines of one reason, in ms.
const PERIOD_MS: u64 = 1_000;
/// Time between two that are warnings, in ms.
const WARNING_MS: u64 = 60_000;

/// One for all shards of a node.
#[derive(Debug)]
pub(super) struct RefusedLines([Reason; REASONS.len()]);

#[derive(Default, Debug)]
struct Reason {
    /// When the next line may be said, in ms; 0: none has been.
    next_ms: AtomicU64,
    /// When the next one is a warning.
    warning_ms: AtomicU64,
    /// Datagrams that no line has told of.
    untold: AtomicU64,
}

/// What is to be logged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Line {
    pub(super) is_warning: bool,
    pub(super) text: String,
}

impl Default for RefusedLines {
    fn default() -> RefusedLines {
        RefusedLines(array::from_fn(|_| Reason::default()))
    }
}

impl RefusedLines {
    /// These came, the first of them from `source`. The line to log, if it is time for one.
    pub(super) fn note(
        &self,
        refused: Refused,
        source: impl FnOnce() -> Option<SocketAddr>,
        now: Mono,
    ) -> Option<Line> {
        let reason = &self.0[refused.place()];
        reason
            .untold
            .fetch_add(refused.datagrams, Ordering::Relaxed);
        if !is_time(&reason.next_ms, PERIOD_MS, now) {
            return None;
        }
        let source = source()?;
        let others = reason.untold.swap(0, Ordering::Relaxed).saturating_sub(1);
        let name = refused.why.row().labels.first().map_or("", |label| label.1);
        let why = why(refused);
        Some(Line {
            is_warning: is_time(&reason.warning_ms, WARNING_MS, now),
            text: format!(
                "a beat datagram from {source} was refused ({name}): it {why}. {others} others \
                 were refused for that since the last such line, of which there is one a second"
            ),
        })
    }
}

/// Whether it is, for the one who asks first.
fn is_time(next_ms: &AtomicU64, period_ms: u64, now: Mono) -> bool {
    let due = |next_ms| (next_ms <= now.ms()).then(|| now.ms() + period_ms);
    let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
    next_ms.fetch_update(set, fetch, due).is_ok()
}

fn why(refused: Refused) -> String {
    let id = refused.key_id;
    let give = "give its sender and this node the same --key-file (`greendot key --id FILE` prints \
                ids)";
    match refused.why {
        Counter::DatagramShort => "is shorter than any, or longer than 1,400 bytes".into(),
        Counter::DatagramMagic => "begins as none does".into(),
        Counter::DatagramVersion => "is of a version that this node does not know".into(),
        Counter::DatagramMac if is_device_key(id) => {
            "names a device's key, which has not signed it".into()
        }
        Counter::DatagramMac => {
            format!("names the fleet key {id:08x}, which has not signed it; {give}")
        }
        Counter::DatagramKey => {
            format!("is signed with a fleet key that this node does not have, {id:08x}; {give}")
        }
        Counter::DatagramStale => "was sent longer ago than --beat-skew-max-ms, or as much \
                                   ahead: a clock is wrong, or somebody sends it again"
            .into(),
        Counter::DatagramRevoked => "is signed with a device's key that is revoked".into(),
        _ => "names what is no user".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: &str = "of which there is one a second";

    fn refused(why: Counter, key_id: u32, datagrams: u64) -> Refused {
        Refused {
            why,
            nth: 0,
            key_id,
            datagrams,
        }
    }

    fn note(lines: &RefusedLines, at_ms: u64, refused: Refused) -> Option<Line> {
        let source = || Some(SocketAddr::from(([192, 0, 2, 7], 4_000)));
        lines.note(refused, source, Mono::default().plus_ms(at_ms))
    }

    fn line(is_warning: bool, why: &str, others: u64) -> Option<Line> {
        Some(Line {
            is_warning,
            text: format!(
                "a beat datagram from 192.0.2.7:4000 was refused {why}. {others} others were \
                 refused for that since the last such line, {SECOND}"
            ),
        })
    }

    #[test]
    fn one_line_a_second_says_from_where_and_how_many_others_there_were() {
        let lines = RefusedLines::default();
        let stale = |at_ms, datagrams| {
            let refused = refused(Counter::DatagramStale, 0, datagrams);
            note(&lines, at_ms, refused)
        };
        let why = "(stale): it was sent longer ago than --beat-skew-max-ms, or as much ahead: a \
                   clock is wrong, or somebody sends it again";
        assert_eq!(stale(5, 1), line(true, why, 0));
        assert_eq!(stale(6, 1), None);
        assert_eq!(stale(1_004, 1_000_000), None);
        assert_eq!(stale(1_005, 2), line(false, why, 1_000_002));
        assert_eq!(stale(2_004, 1), None);
        // Nobody has been told of that one yet.
        assert_eq!(stale(60_004, 1), line(false, why, 1));
        assert_eq!(stale(61_004, 1), line(true, why, 0));
    }

    #[test]
    fn each_reason_has_its_own_second() {
        let lines = RefusedLines::default();
        let said: Vec<String> = (0..1_000)
            .flat_map(|ms| REASONS.map(|why| note(&lines, ms, refused(why, 0x1a2b, 7))))
            .flatten()
            .map(|line| line.text)
            .collect();
        let names = [
            "short", "magic", "version", "key", "mac", "stale", "entry", "revoked",
        ];
        assert_eq!(said.len(), names.len());
        for (said, name) in said.iter().zip(names) {
            assert!(
                said.contains(&format!(" was refused ({name}): it ")),
                "{said}"
            );
            assert!(said.contains(". 6 others "), "{said}");
        }
    }

    #[test]
    fn a_wrong_key_is_named() {
        let lines = RefusedLines::default();
        let give = "give its sender and this node the same --key-file (`greendot key --id FILE` \
                    prints ids)";
        let unknown = "is signed with a fleet key that this node does not have, 00001a2b";
        assert_eq!(
            note(&lines, 0, refused(Counter::DatagramKey, 0x1a2b, 1)),
            line(true, &format!("(key): it {unknown}; {give}"), 0)
        );
        let forged = "names the fleet key 00001a2b, which has not signed it";
        assert_eq!(
            note(&lines, 0, refused(Counter::DatagramMac, 0x1a2b, 1)),
            line(true, &format!("(mac): it {forged}; {give}"), 0)
        );
        let device = "(mac): it names a device's key, which has not signed it";
        assert_eq!(
            note(&lines, 1_000, refused(Counter::DatagramMac, 0x8000_002a, 1)),
            line(false, device, 0)
        );
    }
}
