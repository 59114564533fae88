//! What an event on a watcher's stream means: the state from which it sets out, or one of the
//! changes.
//!
//! Owns when a watcher is ready. The ledger judges what was told, not this.

use std::net::SocketAddr;

use super::{FIRST_PUBLISHER, Watchers};
use crate::asks::write_stream_request;
use crate::common::Peer;
use crate::fleet::Handler;
use crate::gone::Gone;
use crate::record;
use crate::sse::{Event, Lasting};

impl Handler for Watchers<'_> {
    fn request(&mut self, _conn: usize, host: SocketAddr, _lasting: Lasting, out: &mut Vec<u8>) {
        let publishers: Vec<u64> = (0..self.args.publishers as u64)
            .map(|p| FIRST_PUBLISHER + p)
            .collect();
        write_stream_request(&self.population, host, None, &publishers, 0, false, out);
    }

    fn connected(&mut self, conn: usize, now_us: u64) {
        self.asked_us[conn] = now_us;
    }

    fn opened(&mut self, _conn: usize, _now_us: u64) {
        self.ready += usize::from(self.common.peer == Peer::Nchan);
    }

    fn event(&mut self, conn: usize, now_us: u64, event: &Event<'_>, _lasting: Lasting) {
        match event.name {
            b"presence" | b"message" => {
                let told = record::parse(&event.data)
                    .and_then(|r| Some((self.publisher(&r.user)?, r.online, r.since)));
                let Some((publisher, online, since)) = told else {
                    self.unreadable += 1;
                    return;
                };
                match (online, since) {
                    // What was not known when the stream began; of a publisher never seen there is
                    // no time.
                    (Some(online), _) if self.unknown.remove(&(conn, publisher)) => {
                        self.set_out(conn, publisher, online, since);
                        self.told_to_start(conn, 1);
                    }
                    (Some(online), Some(since)) if self.started => {
                        self.ledger.tell(conn, publisher, online, since, now_us);
                        self.last_delivery_us = now_us;
                    }
                    (Some(online), Some(since)) => {
                        self.ledger.set_view(conn, publisher, online, since)
                    }
                    _ => self.unreadable += 1,
                }
            }
            b"snapshot" => {
                let (mut states, mut told) = (Vec::new(), 0);
                let readable = record::parse_snapshot(&event.data, |record| {
                    if let Some(publisher) = self.publisher(&record.user) {
                        states.push((publisher, record.online, record.since));
                    }
                });
                self.unreadable += u64::from(!readable);
                for (publisher, online, since) in states {
                    match online {
                        Some(online) => {
                            self.set_out(conn, publisher, online, since);
                            told += 1;
                        }
                        None => drop(self.unknown.insert((conn, publisher))),
                    }
                }
                // A peer's snapshot is canned: one event, of somebody else.
                self.told_to_start(
                    conn,
                    if self.common.peer == Peer::Greendot {
                        told
                    } else {
                        1
                    },
                );
            }
            b"hello" => {
                let hello: serde_json::Value =
                    serde_json::from_slice(&event.data).unwrap_or_default();
                self.offline_after_ms =
                    hello["offline_after_ms"].as_u64().or(self.offline_after_ms);
                // A peer's hello is canned, and its time is none.
                if let (Some(unix_ms), Peer::Greendot) =
                    (hello["server_time"].as_u64(), self.common.peer)
                {
                    self.server_clock
                        .hello(self.asked_us[conn], now_us, unix_ms);
                }
            }
            _ => {}
        }
    }

    fn gone(&mut self, _conn: usize, _now_us: u64, why: Gone, _lasting: Lasting) {
        self.gone += 1;
        if !self.started {
            self.failed_at_setup = Some(why);
        }
    }
}

impl Watchers<'_> {
    /// The state from which a watcher sets out.
    fn set_out(&mut self, conn: usize, publisher: usize, online: bool, since: Option<u64>) {
        self.ledger
            .set_view(conn, publisher, online, since.unwrap_or(0));
        self.online_at_start += u64::from(online);
    }

    /// A watcher is ready when it was told a state of everybody.
    fn told_to_start(&mut self, conn: usize, states: usize) {
        let whole = if self.common.peer == Peer::Greendot {
            self.args.publishers
        } else {
            1
        };
        let before = self.told_at_start[conn];
        self.told_at_start[conn] = before + states;
        self.ready += usize::from(before < whole && before + states >= whole);
    }

    fn publisher(&self, user: &str) -> Option<usize> {
        let number = self
            .population
            .number(user.as_bytes())?
            .checked_sub(FIRST_PUBLISHER)?;
        usize::try_from(number)
            .ok()
            .filter(|p| *p < self.args.publishers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common;

    #[test]
    fn a_watcher_is_ready_when_it_was_told_of_everybody() {
        let (common, args) = common::parsed("--watchers 1 --publishers 2").unwrap();
        let mut watchers = Watchers::new(&common, &args, 1);
        let ids = [0, 1].map(|p| {
            String::from_utf8_lossy(&watchers.population.id(FIRST_PUBLISHER + p)).into_owned()
        });
        let record = |publisher: usize, status: &str, time: &str| {
            let id = &ids[publisher];
            format!(
                "{{\"user\":\"{id}\",\"status\":\"{status}\",\"online\":{},\
                 \"since\":{time},\"last_active\":{time}}}",
                status == "online",
            )
        };
        let mut tell = |name: &[u8], data: String| {
            let data = data.into_bytes().into();
            watchers.event(0, 0, &Event { name, data }, Lasting::default());
            (
                watchers.ready,
                watchers.unreadable,
                watchers.ledger.deliveries(),
            )
        };
        let both = format!(
            "{},{}",
            record(0, "offline", "5"),
            record(1, "unknown", "null")
        );
        assert_eq!(
            tell(b"snapshot", format!("{{\"presence\":[{both}]}}")),
            (0, 0, 0)
        );
        assert_eq!(tell(b"presence", record(1, "offline", "null")), (1, 0, 0));
        // Known by now: a state without a time is none.
        assert_eq!(tell(b"presence", record(1, "offline", "null")), (1, 1, 0));
        assert_eq!(tell(b"presence", record(1, "unknown", "null")), (1, 2, 0));
    }
}
