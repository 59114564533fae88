//! Records in: what one node tells another of its publishers (steps 1 and 7 of docs/PROTOCOL.md).
//!
//! Owns their checks: every user is a legal id, every time fits a published state. A record's
//! `status` is online, away, busy or offline; "unknown" is what a real-time node says for itself
//! and never what it is told.

use serde::Deserialize;

use super::body::{BODY_DEPTH_MAX, BodyFault};
use super::object::depth;
use crate::status::Status;
use crate::time::Unix;
use crate::wire::UserBuf;

/// Largest time in ms that a published state can hold: 56 bits.
const MS_MAX: u64 = (1 << 56) - 1;

/// One publisher's state as another node tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    /// The publisher.
    pub user: UserBuf,
    /// Anything but unknown.
    pub status: Status,
    /// Time of the last transition by the teller's clock; None: never seen.
    pub since: Option<Unix>,
    /// Time of the last beat by the teller's clock; None: never seen.
    pub last_active: Option<Unix>,
    /// The teller says that it may not know the newest state itself.
    pub stale: bool,
}

// Members that are not known are passed over: nodes are upgraded one by one.
#[derive(Deserialize)]
struct Raw {
    user: String,
    status: RawStatus,
    since: Option<u64>,
    last_active: Option<u64>,
    #[serde(default)]
    stale: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawStatus {
    Online,
    Away,
    Busy,
    Offline,
}

#[derive(Deserialize)]
struct RawList {
    presence: Vec<Raw>,
}

/// Reads one record, the body of `PUT /v1/presence/{user}`.
///
/// Errors: it is no record, or no state that can be published.
pub fn parse_told(body: &[u8]) -> Result<Told, BodyFault> {
    check(0, read(body)?)
}

/// Reads `{"presence":[record..]}`, at most `records_max` of them: the body of `PUT /v1/presence`
/// and the answer to a query.
///
/// Errors: it is no such list, too long a one, or one of a state that can not be published.
pub fn parse_told_list(body: &[u8], records_max: usize) -> Result<Vec<Told>, BodyFault> {
    let list: RawList = read(body)?;
    if list.presence.len() > records_max {
        return Err(BodyFault::TooMany {
            member: "presence",
            max: records_max,
            given: list.presence.len(),
        });
    }
    let records = list.presence.into_iter().enumerate();
    records.map(|(index, raw)| check(index, raw)).collect()
}

fn read<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Result<T, BodyFault> {
    if depth(body) > BODY_DEPTH_MAX {
        return Err(BodyFault::TooDeep);
    }
    serde_json::from_slice(body).map_err(|error| BodyFault::malformed(&error))
}

fn check(index: usize, raw: Raw) -> Result<Told, BodyFault> {
    let user = UserBuf::from_text(raw.user).map_err(|fault| BodyFault::User {
        member: "presence",
        index,
        fault,
    })?;
    let malformed = |what: &str| Err(BodyFault::Malformed(format!("record {index}: {what}")));
    if raw.since.max(raw.last_active).is_some_and(|ms| ms > MS_MAX) {
        return malformed("a time is no Unix time in ms");
    }
    // Zero is how a published state says "never".
    let time = |ms: Option<u64>| ms.filter(|ms| *ms > 0).map(Unix::from_ms);
    let status = match raw.status {
        RawStatus::Online => Status::Online,
        RawStatus::Away => Status::Away,
        RawStatus::Busy => Status::Busy,
        RawStatus::Offline => Status::Offline,
    };
    if status.is_online() && time(raw.since).is_none() {
        return malformed("whoever is online came online at some time; `since` has none");
    }
    Ok(Told {
        user,
        status,
        since: time(raw.since),
        last_active: time(raw.last_active),
        stale: raw.stale,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Record;
    use super::*;
    use crate::wire::{User, UserFault};

    fn told(user: &str, status: Status, since: u64, last_active: u64) -> Told {
        let time = |ms| (ms > 0).then(|| Unix::from_ms(ms));
        Told {
            user: UserBuf::from_text(user).unwrap(),
            status,
            since: time(since),
            last_active: time(last_active),
            stale: false,
        }
    }

    #[test]
    fn records_and_lists() {
        let bob = r#"{"user":"bob","status":"online","since":5,"last_active":7}"#;
        let carol = r#"{"last_active":null,"since":null,"status":"offline","user":"c\u00e9"}"#;
        assert_eq!(
            parse_told(bob.as_bytes()),
            Ok(told("bob", Status::Online, 5, 7))
        );
        assert_eq!(
            parse_told_list(format!("{{\"presence\":[{bob},{carol}]}}").as_bytes(), 2),
            Ok(vec![
                told("bob", Status::Online, 5, 7),
                told("cé", Status::Offline, 0, 0)
            ])
        );
        assert_eq!(parse_told_list(br#"{"presence":[],"x":1}"#, 0), Ok(vec![]));
        let newer = r#"{"user":"bob","status":"online","since":5,"last_active":7,"mood":"calm"}"#;
        assert_eq!(
            parse_told(newer.as_bytes()),
            Ok(told("bob", Status::Online, 5, 7))
        );
        let stale = r#"{"user":"bob","status":"busy","since":5,"last_active":7,"stale":true}"#;
        assert_eq!(
            parse_told(stale.as_bytes()),
            Ok(Told {
                stale: true,
                ..told("bob", Status::Busy, 5, 7)
            })
        );
    }

    #[test]
    fn refusals_name_what_and_where() {
        let list = |record: &str| {
            let body = format!(r#"{{"presence":[{{"user":"a","status":"offline"}},{record}]}}"#);
            parse_told_list(body.as_bytes(), 2).unwrap_err()
        };
        let malformed = |what: &str| BodyFault::Malformed(what.into());
        assert_eq!(
            list(r#"{"user":"","status":"offline"}"#),
            BodyFault::User {
                member: "presence",
                index: 1,
                fault: UserFault::Empty
            }
        );
        assert_eq!(
            list(r#"{"user":"b","status":"online","since":null}"#),
            malformed("record 1: whoever is online came online at some time; `since` has none")
        );
        assert_eq!(
            list(r#"{"user":"b","status":"offline","since":72057594037927936}"#),
            malformed("record 1: a time is no Unix time in ms")
        );
        for (record, part) in [
            (
                r#"{"user":"b","status":"unknown"}"#,
                "unknown variant `unknown`",
            ),
            (r#"{"user":"b"}"#, "missing field `status`"),
            (
                r#"{"user":"b","status":"offline","since":-1}"#,
                "invalid value",
            ),
        ] {
            let BodyFault::Malformed(why) = list(record) else {
                panic!("{record}")
            };
            assert!(why.contains(part), "{record}: {why}");
        }
        assert_eq!(
            list(r#"{"user":"b","status":"offline"},{"user":"c","status":"offline"}"#),
            BodyFault::TooMany {
                member: "presence",
                max: 2,
                given: 3
            }
        );
        assert_eq!(
            parse_told("[".repeat(9).as_bytes()),
            Err(BodyFault::TooDeep)
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            id in "[^\\p{Cc}]{1,32}",
            status in prop::sample::select(
                &[Status::Online, Status::Away, Status::Busy, Status::Offline][..]
            ),
            since in 1..MS_MAX,
            last_active in 1..MS_MAX,
            stale in any::<bool>(),
        ) {
            let record = Record {
                user: User::parse(id.as_bytes()).unwrap(),
                status,
                since: Some(Unix::from_ms(since)),
                last_active: Some(Unix::from_ms(last_active)),
                stale,
            };
            let mut out = Vec::new();
            record.write(&mut out);
            let expected = Told { stale, ..told(&id, status, since, last_active) };
            prop_assert_eq!(parse_told(&out), Ok(expected));
        }
    }
}
