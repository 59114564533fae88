//! What of the settings contradicts what.
//!
//! Owns the checks between fields and their messages. Each says what is wrong and what to set.

use super::{
    HEAD_BYTES_FLOOR, HOLD_MS_MAX, LOOPBACK, ORIGIN_BYTES_MAX, OUTBOX_BYTES_FLOOR, Settings,
};
use crate::presence::BEHIND_MS_MAX;
use crate::time::ANCHOR_TOLERANCE_MS;

impl Settings {
    /// Holds the fields against each other. Each message says what is wrong and what to set; all
    /// are given, not the first.
    ///
    /// Errors: at least one field contradicts another.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut faults = Vec::new();
        self.check_zeroes(&mut faults);
        self.check_times(&mut faults);
        self.check_restart(&mut faults);
        self.check_sizes(&mut faults);
        for origin in &self.cors_origins {
            if let Some(why) = origin_fault(origin) {
                faults.push(format!(
                    "cors-origins has {origin:?}, which {why}; set it to `scheme://host[:port]`, \
                     to `loopback` for this machine, or to `*` for any"
                ));
            }
        }
        for host in &self.host {
            if !is_host(host) {
                faults.push(format!(
                    "host has {host:?}, which is no name; set it to a name without scheme and \
                     port, to `*.name` for all below it, or to `*` for any"
                ));
            }
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults)
        }
    }

    fn check_zeroes(&self, faults: &mut Vec<String>) {
        let positive = [
            ("beat-interval-ms", self.beat_interval_ms),
            ("offline-after-ms", self.offline_after_ms),
            ("sweep-interval-ms", self.sweep_interval_ms),
            ("keep-alive-ms", self.keep_alive_ms),
            ("device-key-epoch-ms", self.device_key_epoch_ms),
            ("ack-max-ms", self.ack_max_ms),
            ("retry-ms", self.retry_ms),
            ("conns-max", self.conns_max as u64),
            ("header-count-max", self.header_count_max as u64),
            ("body-bytes-max", self.body_bytes_max as u64),
            ("request-deadline-ms", self.request_deadline_ms),
            ("watches-per-stream-max", self.watches_per_stream_max as u64),
            ("query-users-max", self.query_users_max as u64),
            ("passed-users-max", self.passed_users_max as u64),
            ("leaves-put-off-max", self.leaves_put_off_max as u64),
            ("users-leaving-max", self.users_leaving_max as u64),
            ("write-stall-max-ms", self.write_stall_max_ms),
            ("turn-ms-max", self.turn_ms_max),
            ("work-per-slice-max", self.work_per_slice_max as u64),
            (
                "sweep-slots-per-turn-max",
                self.sweep_slots_per_turn_max as u64,
            ),
            ("flushes-per-turn-max", self.flushes_per_turn_max as u64),
            ("mail-per-turn-max", self.mail_per_turn_max as u64),
            ("beats-per-turn-max", self.beats_per_turn_max as u64),
            ("mailbox-max", self.mailbox_max as u64),
        ];
        for (name, value) in positive {
            if value == 0 {
                faults.push(format!(
                    "{name} is 0, with which nothing would work; set it to at least 1"
                ));
            }
        }
    }

    fn check_times(&self, faults: &mut Vec<String>) {
        let (beat, offline) = (self.beat_interval_ms, self.offline_after_ms);
        if offline < beat.saturating_mul(2) {
            faults.push(format!(
                "offline-after-ms ({offline}) is less than twice beat-interval-ms ({beat}), so one \
                 lost beat would turn a user offline; set offline-after-ms to at least {} or \
                 beat-interval-ms to at most {}",
                beat.saturating_mul(2),
                offline / 2
            ));
        }
        let sweep = self.sweep_interval_ms;
        if sweep.saturating_mul(2) > offline {
            faults.push(format!(
                "sweep-interval-ms ({sweep}) is more than half of offline-after-ms ({offline}), so \
                 offline would be told far too late; set sweep-interval-ms to at most {}",
                offline / 2
            ));
        }
        if self.beat_skew_max_ms < ANCHOR_TOLERANCE_MS {
            faults.push(format!(
                "beat-skew-max-ms ({}) is less than the {ANCHOR_TOLERANCE_MS} ms by which the \
                 server's own clock may be off, so honest beats would be refused; set \
                 beat-skew-max-ms to at least {ANCHOR_TOLERANCE_MS}",
                self.beat_skew_max_ms
            ));
        }
        if self.beat_skew_max_ms > BEHIND_MS_MAX {
            faults.push(format!(
                "beat-skew-max-ms ({}) is more than the {BEHIND_MS_MAX} ms by which a sending time \
                 can lie behind in a stamp, so beats and goodbyes would be put in a wrong order; \
                 set beat-skew-max-ms to at most {BEHIND_MS_MAX}",
                self.beat_skew_max_ms
            ));
        }
        if self.stream_life_ms < beat.saturating_mul(5) {
            faults.push(format!(
                "stream-life-ms ({}) is less than five times beat-interval-ms ({beat}), so streams \
                 would begin and end all the time; set stream-life-ms to at least {}",
                self.stream_life_ms,
                beat.saturating_mul(5)
            ));
        }
        let day_ms = 86_400_000;
        if (1..day_ms).contains(&self.forget_after) || (1..offline).contains(&self.forget_after) {
            faults.push(format!(
                "forget-after ({}) is less than a day or offline-after-ms, so users would be \
                 forgotten whom somebody still asks for; set it to at least {}, or to 0 to forget \
                 nobody",
                self.forget_after,
                offline.max(day_ms)
            ));
        }
        if self.linger_ms > self.request_deadline_ms {
            faults.push(format!(
                "linger-ms ({}) is more than request-deadline-ms ({}), so a refused request would \
                 be held longer than a good one; set linger-ms to at most {}",
                self.linger_ms, self.request_deadline_ms, self.request_deadline_ms
            ));
        }
    }

    fn check_restart(&self, faults: &mut Vec<String>) {
        let hold_ms = self.hold_ms(0, 0);
        if hold_ms > HOLD_MS_MAX.max(self.offline_after_ms) {
            faults.push(format!(
                "with retry-ms ({}) and drain-ms ({}) readers who were sent away may take so long \
                 that a start had to hold everybody online for {hold_ms} ms; set retry-ms so that \
                 it is at most {HOLD_MS_MAX}",
                self.retry_ms, self.drain_ms
            ));
        }
    }

    fn check_sizes(&self, faults: &mut Vec<String>) {
        if self.outbox_bytes_max < OUTBOX_BYTES_FLOOR {
            faults.push(format!(
                "outbox-bytes-max ({}) can not hold a stream's head, its hello and one event; set \
                 it to at least {OUTBOX_BYTES_FLOOR}",
                self.outbox_bytes_max
            ));
        }
        if self.buffer_bytes_max < self.buffer_bytes_floor() {
            faults.push(format!(
                "buffer-bytes-max ({}) can not hold one longest request and one full outbox; set \
                 it to at least {}, or lower body-bytes-max ({}), head-bytes-max ({}) or \
                 outbox-bytes-max ({})",
                self.buffer_bytes_max,
                self.buffer_bytes_floor(),
                self.body_bytes_max,
                self.head_bytes_max,
                self.outbox_bytes_max
            ));
        }
        if self.head_bytes_max < HEAD_BYTES_FLOOR {
            faults.push(format!(
                "head-bytes-max ({}) can not hold the request for a user id of 128 bytes and a \
                 browser's headers; set it to at least {HEAD_BYTES_FLOOR}",
                self.head_bytes_max
            ));
        }
        if self.watches_per_shard_max < self.watches_per_stream_max {
            faults.push(format!(
                "watches-per-shard-max ({}) is less than watches-per-stream-max ({}), so the \
                 latter could never be used; set watches-per-shard-max to at least {}",
                self.watches_per_shard_max,
                self.watches_per_stream_max,
                self.watches_per_stream_max
            ));
        }
    }
}

/// Whether a text is a name that a Host header can have, or stands for such names.
fn is_host(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    text == "*" || (!name.is_empty() && name.bytes().all(is_plain))
}

/// Why `origin` can be no value of `Access-Control-Allow-Origin` (WHATWG Fetch: a serialized
/// origin, or `*`).
fn origin_fault(origin: &str) -> Option<&'static str> {
    if origin == "*" || origin == LOOPBACK {
        return None;
    }
    if origin.len() > ORIGIN_BYTES_MAX {
        return Some("is longer than 256 bytes");
    }
    // An origin is compared byte by byte with what browsers send, and copied into a header: visible
    // ASCII, lower case.
    if !origin
        .bytes()
        .all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase())
    {
        return Some("holds something other than lower-case visible ASCII");
    }
    match origin.split_once("://") {
        None => Some("has no scheme"),
        Some((scheme, host)) if scheme.is_empty() || host.is_empty() => {
            Some("has no scheme or no host")
        }
        Some((_, host)) if host.contains(['/', '?', '#', '@', ',', '*']) => {
            Some("holds more than a scheme, a host and a port")
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(change: impl FnOnce(&mut Settings)) -> Vec<String> {
        let mut settings = Settings::default();
        change(&mut settings);
        settings.check().err().unwrap_or_default()
    }

    #[test]
    fn presets_pass() {
        assert_eq!(Settings::default().check(), Ok(()));
        assert_eq!(Settings::tiny().check(), Ok(()));
    }

    #[test]
    fn messages_name_the_fields_and_the_remedy() {
        assert_eq!(
            faults(|s| s.offline_after_ms = 19_999),
            [
                "offline-after-ms (19999) is less than twice beat-interval-ms (10000), so one lost \
                 beat would turn a user offline; set offline-after-ms to at least 20000 or \
                 beat-interval-ms to at most 9999"
            ]
        );
        assert_eq!(faults(|s| s.offline_after_ms = 20_000), [""; 0]);
    }

    #[test]
    fn each_rule_has_its_boundary() {
        let one = |change: fn(&mut Settings), name: &str| {
            let found = faults(change);
            assert!(
                found.len() == 1 && found[0].starts_with(name),
                "{name}: {found:?}"
            );
        };
        one(|s| s.sweep_interval_ms = 12_501, "sweep-interval-ms");
        one(|s| s.beat_skew_max_ms = 999, "beat-skew-max-ms");
        one(|s| s.beat_skew_max_ms = 65_521, "beat-skew-max-ms (65521)");
        one(|s| s.retry_ms = 2_000_000, "with retry-ms");
        one(|s| s.linger_ms = 10_001, "linger-ms");
        one(
            |s| s.outbox_bytes_max = OUTBOX_BYTES_FLOOR - 1,
            "outbox-bytes-max",
        );
        one(|s| s.buffer_bytes_max = 2_179_071, "buffer-bytes-max");
        one(
            |s| s.head_bytes_max = HEAD_BYTES_FLOOR - 1,
            "head-bytes-max",
        );
        one(|s| s.watches_per_shard_max = 9_999, "watches-per-shard-max");
        one(|s| s.mailbox_max = 0, "mailbox-max");
        one(|s| s.ack_max_ms = 0, "ack-max-ms");
        one(|s| s.stream_life_ms = 49_999, "stream-life-ms");
        let none = faults(|s| {
            s.sweep_interval_ms = 12_500;
            s.beat_skew_max_ms = 1_000;
            s.restart_grace_ms = 0;
            s.retry_ms = 1_900_000;
            s.linger_ms = 10_000;
            s.outbox_bytes_max = OUTBOX_BYTES_FLOOR;
            s.head_bytes_max = HEAD_BYTES_FLOOR;
            s.watches_per_shard_max = 10_000;
            s.buffer_bytes_max = s.buffer_bytes_floor();
            s.drain_ms = 0;
            s.keep_alive_idle_ms = 0;
        });
        assert_eq!(none, [""; 0]);
    }

    #[test]
    fn all_faults_are_told() {
        let found = faults(|s| {
            s.offline_after_ms = 1;
            s.mailbox_max = 0;
        });
        assert_eq!(found.len(), 3, "{found:?}");
    }

    #[test]
    fn extreme_values_do_not_overflow() {
        assert_eq!(
            faults(|s| (s.beat_interval_ms, s.sweep_interval_ms) = (u64::MAX, u64::MAX)).len(),
            3
        );
    }

    #[test]
    fn hosts() {
        for good in ["*", "app.example.com", "*.example.com", "a_b"] {
            assert!(is_host(good), "{good}");
        }
        for bad in ["", "*.", "https://a.b", "a.b:80", "a b", "*a.b", "[::1]"] {
            assert!(!is_host(bad), "{bad}");
        }
    }

    #[test]
    fn origins() {
        for good in [
            "*",
            "loopback",
            "https://example.com",
            "http://localhost:3000",
            "http://[::1]:8080",
        ] {
            assert_eq!(origin_fault(good), None, "{good}");
        }
        for bad in [
            "",
            "example.com",
            "https://",
            "https://a/",
            "https://a\r\nX: y",
            "https://A.com",
            "https://a,https://b",
            "https://*.a.com",
        ] {
            assert!(origin_fault(bad).is_some(), "{bad}");
        }
    }
}
