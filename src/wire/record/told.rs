//! Records in: what one node tells another of its publishers (steps 1 and 7 of docs/PROTOCOL.md).
//!
//! Owns their checks: every user is a legal id, every time fits a published state. A record's
//! `status` is online, away, busy or offline; "unknown" is what a real-time node says for itself
//! and never what it is told.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Record;
use super::body::{BODY_DEPTH_MAX, BodyFault};
use super::item::ItemFault;
use super::object::depth;
use super::whole::Whole;
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
    /// Of one who is invisible, told to nodes alone: the time of the last beat.
    pub heard: Option<Unix>,
}

impl Told {
    /// Of one who was never seen.
    pub fn unseen(user: UserBuf) -> Told {
        Told {
            user,
            status: Status::Offline,
            since: None,
            last_active: None,
            stale: false,
            heard: None,
        }
    }

    /// As others are told it.
    pub fn record(&self) -> Record<'_> {
        Record {
            user: self.user.user(),
            status: self.status,
            since: self.since,
            last_active: self.last_active,
            stale: self.stale,
        }
    }

    /// Whether the user has said goodbye, or has become invisible, and no silence made it offline:
    /// its last activity is the transition itself.
    pub fn is_goodbye(&self) -> bool {
        self.status == Status::Offline && self.since.is_some() && self.since == self.last_active
    }
}

// Members that are not known are passed over: nodes are upgraded one by one.
#[derive(Deserialize)]
struct Raw {
    user: String,
    status: RawStatus,
    since: Option<Whole>,
    last_active: Option<Whole>,
    #[serde(default)]
    stale: bool,
    heard: Option<Whole>,
    #[serde(default)]
    invisible: bool,
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
struct RawList<'b> {
    #[serde(borrow)]
    presence: Vec<&'b RawValue>,
}

/// Reads one record, the body of `PUT /v1/presence/{user}`.
///
/// Errors: it is no record, or no state that can be published.
pub fn parse_told(body: &[u8]) -> Result<Told, BodyFault> {
    check(read(body)?).map_err(|fault| match fault {
        ItemFault::User(fault) => BodyFault::User {
            member: "user",
            fault,
        },
        fault => BodyFault::Malformed(fault.explain().to_owned()),
    })
}

/// Reads `{"presence":[record..]}`, at most `records_max` of them: the body of `PUT /v1/presence`
/// and the answer to a query. A record that says nothing which can be published refuses itself
/// alone; its index is its place in the list.
///
/// Errors: it is no such list, or too long a one.
pub fn parse_told_list(
    body: &[u8],
    records_max: usize,
) -> Result<Vec<Result<Told, ItemFault>>, BodyFault> {
    let raw = raw_list(body, records_max)?.into_iter();
    Ok(raw.map(|raw| check(raw?)).collect())
}

/// Reads the same of records as their users alone are told them, each with whether it is invisible;
/// who has been so from the first is here since a time that nobody was told.
/// What is no such record is passed over.
///
/// Errors: it is no such list, or too long a one.
pub fn parse_own_list(body: &[u8], records_max: usize) -> Result<Vec<(Told, bool)>, BodyFault> {
    let raw = raw_list(body, records_max)?.into_iter().flatten();
    let own = |raw: Raw| {
        let invisible = raw.invisible;
        Some((read_times(raw).ok()?, invisible))
    };
    Ok(raw.filter_map(own).collect())
}

fn raw_list(body: &[u8], records_max: usize) -> Result<Vec<Result<Raw, ItemFault>>, BodyFault> {
    let list: RawList<'_> = read(body)?;
    if list.presence.len() > records_max {
        return Err(BodyFault::TooMany {
            member: "presence",
            max: records_max,
            given: list.presence.len(),
        });
    }
    let record =
        |json: &RawValue| serde_json::from_str(json.get()).map_err(|_| ItemFault::NotRecord);
    Ok(list.presence.into_iter().map(record).collect())
}

fn read<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Result<T, BodyFault> {
    if depth(body) > BODY_DEPTH_MAX {
        return Err(BodyFault::TooDeep);
    }
    serde_json::from_slice(body).map_err(|error| BodyFault::malformed(&error))
}

fn check(raw: Raw) -> Result<Told, ItemFault> {
    let told = read_times(raw)?;
    if told.status.is_online() && told.since.is_none() {
        return Err(ItemFault::NoSince);
    }
    Ok(told)
}

/// Who has been invisible from the first is online for itself alone: nobody was told since when.
fn read_times(raw: Raw) -> Result<Told, ItemFault> {
    let user = UserBuf::from_text(raw.user)?;
    let latest_ms = raw.since.max(raw.last_active).max(raw.heard);
    if latest_ms.is_some_and(|Whole(ms)| ms > MS_MAX) {
        return Err(ItemFault::BadTime);
    }
    // Zero is how a published state says "never".
    let time = |ms: Option<Whole>| ms.filter(|ms| ms.0 > 0).map(|Whole(ms)| Unix::from_ms(ms));
    let status = match raw.status {
        RawStatus::Online => Status::Online,
        RawStatus::Away => Status::Away,
        RawStatus::Busy => Status::Busy,
        RawStatus::Offline => Status::Offline,
    };
    Ok(Told {
        user,
        status,
        since: time(raw.since),
        last_active: time(raw.last_active),
        stale: raw.stale,
        heard: time(raw.heard),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
            heard: None,
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
                Ok(told("bob", Status::Online, 5, 7)),
                Ok(told("cé", Status::Offline, 0, 0))
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
                heard: None,
                ..told("bob", Status::Busy, 5, 7)
            })
        );
    }

    #[test]
    fn who_was_never_seen_is_online_for_itself_alone() {
        let hidden =
            r#"{"user":"a","status":"busy","since":null,"last_active":7,"invisible":true}"#;
        let list = format!("{{\"presence\":[{hidden}]}}");
        let own = (told("a", Status::Busy, 0, 7), true);
        assert_eq!(parse_own_list(list.as_bytes(), 1), Ok(vec![own]));
        let others = parse_told_list(list.as_bytes(), 1);
        assert_eq!(others, Ok(vec![Err(ItemFault::NoSince)]));
    }

    #[test]
    fn a_bad_record_refuses_itself_alone() {
        let good = r#"{"user":"a","status":"offline"}"#;
        for (record, fault) in [
            (
                r#"{"user":"","status":"offline"}"#,
                ItemFault::User(UserFault::Empty),
            ),
            (
                r#"{"user":"b","status":"online","since":null}"#,
                ItemFault::NoSince,
            ),
            (
                r#"{"user":"b","status":"offline","since":72057594037927936}"#,
                ItemFault::BadTime,
            ),
            (
                r#"{"user":"b","status":"offline","since":-1}"#,
                ItemFault::NotRecord,
            ),
            (r#"{"user":"b","status":"unknown"}"#, ItemFault::NotRecord),
            (r#"{"user":"b"}"#, ItemFault::NotRecord),
            (
                r#"{"user":"\ud800","status":"offline"}"#,
                ItemFault::NotRecord,
            ),
            ("[[]]", ItemFault::NotRecord),
            ("null", ItemFault::NotRecord),
        ] {
            let body = format!(r#"{{"presence":[{good},{record},{good}]}}"#);
            let stands = Ok(told("a", Status::Offline, 0, 0));
            assert_eq!(
                parse_told_list(body.as_bytes(), 3),
                Ok(vec![stands.clone(), Err(fault), stands]),
                "{record}"
            );
        }
    }

    #[test]
    fn what_is_no_list_is_refused_whole() {
        let list = |body: &str| parse_told_list(body.as_bytes(), 2).unwrap_err();
        assert_eq!(
            list(r#"{"presence":[1,2,3]}"#),
            BodyFault::TooMany {
                member: "presence",
                max: 2,
                given: 3
            }
        );
        for torn in [
            "",
            "[]",
            "{}",
            r#"{"presence":1}"#,
            r#"{"presence":[{]}"#,
            r#"{"presence":[]"#,
        ] {
            assert!(matches!(list(torn), BodyFault::Malformed(_)), "{torn}");
        }
        assert_eq!(
            parse_told("[".repeat(9).as_bytes()),
            Err(BodyFault::TooDeep)
        );
        let alone = |record: &str| parse_told(record.as_bytes()).unwrap_err();
        assert_eq!(
            alone(r#"{"user":"","status":"offline"}"#),
            BodyFault::User {
                member: "user",
                fault: UserFault::Empty
            }
        );
        assert_eq!(
            alone(r#"{"user":"b","status":"online"}"#),
            BodyFault::Malformed("who is online came online at some time; `since` has none".into())
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
