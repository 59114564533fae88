//! Presence records as the server tells them, read quickly and strictly.
//!
//! The usual layout is matched byte by byte; whatever differs goes through serde_json, so any legal
//! JSON of the same meaning is understood, only more slowly. Never guesses: what is no record is
//! None.

use serde::Deserialize;
use std::borrow::Cow;

/// One publisher's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// Whose.
    pub user: Cow<'a, str>,
    /// online, rather than offline; None: "unknown", a real-time node was not told yet.
    pub online: Option<bool>,
    /// Time of the last transition, Unix ms.
    pub since: Option<u64>,
    /// Time of the last beat, Unix ms.
    pub last_active: Option<u64>,
    /// A node of a fleet says that it may know no better.
    pub stale: bool,
}

#[derive(Deserialize)]
struct Loose<'a> {
    #[serde(borrow)]
    user: Cow<'a, str>,
    status: Status,
    since: Option<u64>,
    last_active: Option<u64>,
    #[serde(default)]
    stale: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Online,
    Offline,
    Unknown,
}

#[derive(Deserialize)]
struct Snapshot<'a> {
    #[serde(borrow)]
    presence: Vec<Loose<'a>>,
}

impl<'a> From<Loose<'a>> for Record<'a> {
    fn from(loose: Loose<'a>) -> Record<'a> {
        let Loose {
            user,
            status,
            since,
            last_active,
            stale,
        } = loose;
        Record {
            user,
            online: match status {
                Status::Online => Some(true),
                Status::Offline => Some(false),
                Status::Unknown => None,
            },
            since,
            last_active,
            stale,
        }
    }
}

/// Reads the data of an `event: presence`.
pub fn parse(data: &[u8]) -> Option<Record<'_>> {
    usual(data).or_else(|| {
        serde_json::from_slice::<Loose<'_>>(data)
            .ok()
            .map(Record::from)
    })
}

/// Reads the data of an `event: snapshot`; calls `each` for every record. False if it is no
/// snapshot.
pub fn parse_snapshot(data: &[u8], mut each: impl FnMut(Record<'_>)) -> bool {
    let Ok(snapshot) = serde_json::from_slice::<Snapshot<'_>>(data) else {
        return false;
    };
    for loose in snapshot.presence {
        each(loose.into());
    }
    true
}

fn usual(data: &[u8]) -> Option<Record<'_>> {
    let rest = data.strip_prefix(b"{\"user\":\"")?;
    let end = memchr::memchr2(b'"', b'\\', rest)?;
    let user = std::str::from_utf8(&rest[..end]).ok()?;
    let rest = rest[end..].strip_prefix(b"\",\"status\":\"o")?;
    let (online, rest) = match rest.strip_prefix(b"nline\",\"online\":true,\"since\":") {
        Some(rest) => (true, rest),
        None => (
            false,
            rest.strip_prefix(b"ffline\",\"online\":false,\"since\":")?,
        ),
    };
    let (since, rest) = number(rest)?;
    let rest = rest.strip_prefix(b",\"last_active\":")?;
    let (last_active, rest) = number(rest)?;
    (rest == b"}").then_some(Record {
        user: Cow::Borrowed(user),
        online: Some(online),
        since: Some(since),
        last_active: Some(last_active),
        stale: false,
    })
}

/// At most 18 digits, so it cannot overflow; a leading zero is left to the slow path.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    if digits == 0 || digits > 18 || text[0] == b'0' {
        return None;
    }
    Some((
        text[..digits]
            .iter()
            .fold(0, |number, digit| number * 10 + u64::from(digit - b'0')),
        &text[digits..],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bob(
        online: impl Into<Option<bool>>,
        since: Option<u64>,
        last_active: Option<u64>,
    ) -> Option<Record<'static>> {
        Some(Record {
            user: Cow::Borrowed("bob"),
            online: online.into(),
            since,
            last_active,
            stale: false,
        })
    }

    #[test]
    fn the_usual_layout_takes_the_quick_path() {
        let data = b"{\"user\":\"bob\",\"status\":\"offline\",\"online\":false,\
            \"since\":1764009604000,\"last_active\":1764009579000}";
        assert_eq!(
            usual(data),
            bob(false, Some(1_764_009_604_000), Some(1_764_009_579_000))
        );
        let data = br#"{"user":"bob","status":"online","online":true,"since":12,"last_active":3}"#;
        assert_eq!(usual(data), bob(true, Some(12), Some(3)));
    }

    #[test]
    fn other_layouts_mean_the_same() {
        assert_eq!(
            parse(
                b"{\"user\":\"bob\",\"status\":\"offline\",\"online\":false,\
                \"since\":null,\"last_active\":null}"
            ),
            bob(false, None, None)
        );
        assert_eq!(
            parse(
                br#" {"status":"online", "last_active":3, "since":12, "user":"b\u006fb", "n":[]} "#
            ),
            bob(true, Some(12), Some(3))
        );
        assert_eq!(
            parse(
                b"{\"user\":\"bob\",\"status\":\"unknown\",\"online\":false,\
                \"since\":null,\"last_active\":null}"
            ),
            bob(None, None, None)
        );
    }

    #[test]
    fn what_may_be_old_is_known_by_its_flag() {
        let told = parse(
            b"{\"user\":\"bob\",\"status\":\"offline\",\"online\":false,\
                \"since\":12,\"last_active\":3,\"stale\":true}",
        );
        let mut bob = bob(false, Some(12), Some(3)).unwrap();
        bob.stale = true;
        assert_eq!(told, Some(bob));
    }

    #[test]
    fn what_is_no_record() {
        for data in [
            &b""[..],
            b"{}",
            b"nope",
            br#"{"user":"bob","status":"onlin","since":1,"last_active":1}"#,
            br#"{"user":"bob","status":"online","online":true,"since":1,"last_active":1"#,
        ] {
            assert_eq!(parse(data), None);
        }
        assert!(!parse_snapshot(b"{\"presence\":1}", |_| {}));
    }

    #[test]
    fn a_snapshot_tells_each_record_in_order() {
        let mut told = Vec::new();
        assert!(parse_snapshot(
            b"{\"presence\":[{\"user\":\"a\",\"status\":\"online\",\"since\":1,\"last_active\":2},\
              {\"user\":\"b\",\"status\":\"offline\",\"since\":null,\"last_active\":null}]}",
            |record| told.push((record.user.into_owned(), record.online)),
        ));
        assert_eq!(
            told,
            [("a".to_owned(), Some(true)), ("b".to_owned(), Some(false))]
        );
    }
}
