//! The JSON of presence: records both ways, lists of users in.
//!
//! Owns the form of a record and of every request body. Every user that comes out of a body is a
//! legal one; an item of a list that is none refuses itself alone. Never looks anybody up.

mod beaten;
mod body;
mod item;
mod last_active;
mod object;
mod said;
mod told;
mod whole;

use crate::status::Status;
use crate::time::Unix;
use crate::wire::User;
use crate::wire::json::{write_str, write_u64};

pub use beaten::{BeatsTaken, parse_beats_taken};
pub use body::{
    BAD_VOUCH, BODY_DEPTH_MAX, BeatAsk, BodyFault, LeaveAsk, RevokeAsk, StatusAsk, StreamAsk,
    Vouch, WatchEdit, parse_beat, parse_device, parse_idle, parse_leave, parse_revoke,
    parse_session, parse_status, parse_stream_ask, parse_users, parse_watch_edit,
};
pub use item::{Entry, ItemFault};
pub use last_active::LastActive;
pub use said::{BAD_INVISIBLE, BAD_STATUS, Said};
pub use told::{Told, parse_own_list, parse_told, parse_told_list};

/// One publisher's state as told to anybody who asks or watches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// The publisher.
    pub user: User<'a>,
    /// What it is.
    pub status: Status,
    /// Time of the last transition; None: never seen, or unknown.
    pub since: Option<Unix>,
    /// Time of the last beat; None: never seen, or unknown.
    pub last_active: Option<Unix>,
    /// The state is the last one known, and there may be a newer one: its source is out of sight.
    pub stale: bool,
}

impl<'a> Record<'a> {
    /// Of a publisher of whom no time is known.
    pub const fn timeless(user: User<'a>, status: Status) -> Record<'a> {
        Record {
            user,
            status,
            since: None,
            last_active: None,
            stale: false,
        }
    }

    /// Appends `{"user":"bob","status":"online","online":true,"since":1,"last_active":2}`, members
    /// in this order, no spaces; `,"stale":true` last if it is.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.write_open(out);
        out.push(b'}');
    }

    /// The same with `,"heard":3` behind it, if there is such a time.
    pub fn write_with(&self, heard: Option<Unix>, out: &mut Vec<u8>) {
        self.write_open(out);
        if let Some(heard) = heard {
            out.extend_from_slice(b",\"heard\":");
            write_u64(heard.ms(), out);
        }
        out.push(b'}');
    }

    /// The same with `,"invisible":true` or `false` behind it: as the user alone is told it.
    pub fn write_own(&self, invisible: bool, out: &mut Vec<u8>) {
        self.write_open(out);
        out.extend_from_slice(match invisible {
            true => &b",\"invisible\":true}"[..],
            false => b",\"invisible\":false}",
        });
    }

    fn write_open(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"user\":");
        write_str(self.user.as_str(), out);
        out.extend_from_slice(match self.status {
            Status::Online => &b",\"status\":\"online\",\"online\":true,\"since\":"[..],
            Status::Away => b",\"status\":\"away\",\"online\":true,\"since\":",
            Status::Busy => b",\"status\":\"busy\",\"online\":true,\"since\":",
            Status::Offline => b",\"status\":\"offline\",\"online\":false,\"since\":",
            Status::Unknown => b",\"status\":\"unknown\",\"online\":false,\"since\":",
        });
        write_time(self.since, out);
        out.extend_from_slice(b",\"last_active\":");
        write_time(self.last_active, out);
        if self.stale {
            out.extend_from_slice(b",\"stale\":true");
        }
    }
}

fn write_time(time: Option<Unix>, out: &mut Vec<u8>) {
    match time {
        Some(time) => write_u64(time.ms(), out),
        None => out.extend_from_slice(b"null"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(record: &Record<'_>) -> String {
        let mut out = Vec::new();
        record.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn records() {
        let bob = Record {
            user: User::parse(b"bob").unwrap(),
            status: Status::Online,
            since: Some(Unix::from_ms(1_764_009_600_123)),
            last_active: Some(Unix::from_ms(1_764_009_631_000)),
            stale: false,
        };
        assert_eq!(
            written(&bob),
            "{\"user\":\"bob\",\"status\":\"online\",\"online\":true,\
             \"since\":1764009600123,\"last_active\":1764009631000}"
        );
        let strange = User::parse("a\"\\/\u{2028}é".as_bytes()).unwrap();
        let never = Record::timeless(strange, Status::Offline);
        assert_eq!(
            written(&never),
            "{\"user\":\"a\\\"\\\\/\\u2028é\",\"status\":\"offline\",\"online\":false,\
             \"since\":null,\"last_active\":null}"
        );
        let unasked = Record::timeless(User::parse(b"c").unwrap(), Status::Unknown);
        assert_eq!(
            written(&unasked),
            r#"{"user":"c","status":"unknown","online":false,"since":null,"last_active":null}"#
        );
        let doubted = Record {
            status: Status::Away,
            stale: true,
            ..bob
        };
        assert_eq!(
            written(&doubted),
            "{\"user\":\"bob\",\"status\":\"away\",\"online\":true,\"since\":1764009600123,\
             \"last_active\":1764009631000,\"stale\":true}"
        );
    }

    proptest! {
        #[test]
        fn serde_json_reads_it(
            id in "[^\\p{Cc}]{1,32}",
            status in prop::sample::select(&Status::ALL[..]),
            since in any::<Option<u64>>(),
            last_active in any::<Option<u64>>(),
            stale in any::<bool>(),
        ) {
            let record = Record {
                user: User::parse(id.as_bytes()).unwrap(),
                status,
                since: since.map(Unix::from_ms),
                last_active: last_active.map(Unix::from_ms),
                stale,
            };
            let read: serde_json::Value = serde_json::from_str(&written(&record)).unwrap();
            let mut expected = serde_json::json!({
                "user": id, "status": status.name(), "online": status.is_online(),
                "since": since, "last_active": last_active
            });
            if stale {
                expected["stale"] = true.into();
            }
            prop_assert_eq!(read, expected);
        }
    }
}
