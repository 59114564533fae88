//! Beat datagrams of a wrong key are warned of, with the address from which they came.
//!
//! Owns how often: one line a minute for the whole node, and in it how many others there were. Owns
//! the words. Whoever sends such datagrams decides how many there are, and an address in UDP may be
//! forged.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::WrongKey;
use crate::time::Mono;

/// Time between two lines, in ms.
const PERIOD_MS: u64 = 60_000;

/// One for all shards of a node.
#[derive(Default, Debug)]
pub(super) struct WrongKeys {
    /// When the next line may be said, in ms; 0: none has been.
    next_ms: AtomicU64,
    /// Datagrams that no line has told of.
    untold: AtomicU64,
}

impl WrongKeys {
    /// These came from there. The line to log, if it is time for one.
    pub(super) fn note(&self, found: WrongKey, source: SocketAddr, now: Mono) -> Option<String> {
        self.untold.fetch_add(found.datagrams, Ordering::Relaxed);
        let due = |next_ms| (next_ms <= now.ms()).then(|| now.ms() + PERIOD_MS);
        let next_ms = &self.next_ms;
        next_ms
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, due)
            .ok()?;
        let others = self.untold.swap(0, Ordering::Relaxed).saturating_sub(1);
        let id = found.key_id;
        let why = match found.is_known {
            false => format!("is signed with a fleet key that this node does not have, {id:08x}"),
            true => format!("names the fleet key {id:08x}, which has not signed it"),
        };
        Some(format!(
            "a beat datagram from {source} was refused: it {why}; give its sender and this node \
             the same --key-file (`greendot key --id FILE` prints ids). {others} others were \
             refused since the last such line, of which there is one a minute"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_says_from_where_and_how_many_others_there_were() {
        let wrong_keys = WrongKeys::default();
        let note = |at_ms, datagrams, is_known| {
            let found = WrongKey {
                nth: 0,
                key_id: 0x1a2b,
                is_known,
                datagrams,
            };
            let source = SocketAddr::from(([192, 0, 2, 7], 4_000));
            wrong_keys.note(found, source, Mono::default().plus_ms(at_ms))
        };
        let line = |why: &str, others: u64| {
            Some(format!(
                "a beat datagram from 192.0.2.7:4000 was refused: it {why}; give its sender and \
                 this node the same --key-file (`greendot key --id FILE` prints ids). {others} \
                 others were refused since the last such line, of which there is one a minute"
            ))
        };
        let unknown = "is signed with a fleet key that this node does not have, 00001a2b";
        assert_eq!(note(5, 1, false), line(unknown, 0));
        assert_eq!(note(6, 1, false), None);
        assert_eq!(note(60_004, 1_000, true), None);
        let forged = "names the fleet key 00001a2b, which has not signed it";
        assert_eq!(note(60_005, 2, true), line(forged, 1_002));
        assert_eq!(note(120_004, 1, false), None);
    }
}
