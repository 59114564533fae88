//! Server-sent events (WHATWG HTML, "Server-sent events"): the stream's blocks out, a reader in.
//!
//! Owns the form of each block that a stream carries (docs/PROTOCOL.md). Never decides whom to
//! tell or when; a record encoded once can be appended to any number of streams.

mod reader;

use crate::time::Unix;
use crate::wire::json::{write_str, write_u64};
use crate::wire::record::Record;

pub use reader::{Event, Reader};

/// Longest ping in bytes.
pub const PING_BYTES_MAX: usize = 40;

/// The first block of a stream.
#[derive(Clone, Debug)]
pub struct Hello<'a> {
    /// What the holder names in edits of this stream.
    pub stream: &'a str,
    /// How many watches the stream holds.
    pub watching: usize,
    /// The server's clock, Unix ms.
    pub server_time: u64,
    /// How often a publisher should beat, in ms.
    pub beat_interval_ms: u64,
    /// Silence after which a publisher is offline, in ms.
    pub offline_after_ms: u64,
    /// Longest silence of the stream while it lives, in ms.
    pub keep_alive_ms: u64,
    /// The reader's reconnect delay, in ms.
    pub retry_ms: u64,
    /// Further members, each with a comma before it.
    pub more: &'a [u8],
    /// The holder beats for itself, as it has asked: it is told so.
    pub by_holder: bool,
}

impl Hello<'_> {
    /// Appends `event: hello\nretry: ..\ndata: {..}\n\n` (docs/PROTOCOL.md).
    pub fn write(&self, out: &mut Vec<u8>) {
        write_retry(b"hello", self.retry_ms, out);
        out.extend_from_slice(b"{\"stream\":");
        write_str(self.stream, out);
        for (member, number) in [
            (&b",\"watching\":"[..], self.watching as u64),
            (b",\"server_time\":", self.server_time),
            (b",\"beat_interval_ms\":", self.beat_interval_ms),
            (b",\"offline_after_ms\":", self.offline_after_ms),
            (b",\"keep_alive_ms\":", self.keep_alive_ms),
        ] {
            out.extend_from_slice(member);
            write_u64(number, out);
        }
        if self.by_holder {
            out.extend_from_slice(b",\"vouch\":\"self\"");
        }
        out.extend_from_slice(self.more);
        out.extend_from_slice(b"}\n\n");
    }
}

/// Appends `event: ping\ndata: UNIX_MS\n\n`. It has data, for an EventSource dispatches nothing
/// without, and a page must notice that nothing comes any more.
pub fn write_ping(now: Unix, out: &mut Vec<u8>) {
    out.extend_from_slice(b"event: ping\ndata: ");
    write_u64(now.ms(), out);
    out.extend_from_slice(b"\n\n");
}

/// Longest goodbye block in bytes.
pub const GOODBYE_BYTES_MAX: usize = 256;

/// Appends `event: goodbye\nretry: N\ndata: {"reason":REASON}\n\n`.
pub fn write_goodbye(retry_ms: u64, reason: &'static str, out: &mut Vec<u8>) {
    write_retry(b"goodbye", retry_ms, out);
    out.extend_from_slice(b"{\"reason\":");
    write_str(reason, out);
    out.extend_from_slice(b"}\n\n");
}

/// The last event id of who has been logged out.
pub const BYE: &str = "bye";

/// Appends `event: bye\nid: bye\ndata: {}\n\n`: the user has been logged out. The id comes back
/// with the next request, whose answer keeps an EventSource from coming again.
pub fn write_bye(out: &mut Vec<u8>) {
    out.extend_from_slice(b"event: bye\nid: bye\ndata: {}\n\n");
}

/// Appends `event: expired\ndata: {}\n\n`: the token by which the stream was opened is void.
pub fn write_expired(out: &mut Vec<u8>) {
    out.extend_from_slice(b"event: expired\ndata: {}\n\n");
}

/// Appends `event: goodbye\ndata: {"reason":"left"}\n\n`: a goodbye has named this stream.
pub fn write_left(out: &mut Vec<u8>) {
    out.extend_from_slice(b"event: goodbye\ndata: {\"reason\":\"left\"}\n\n");
}

/// Appends `event: NAME\ndata: DATA\n\n`; both are without line ends.
pub fn write_block(name: &str, data: &str, out: &mut Vec<u8>) {
    for part in ["event: ", name, "\ndata: ", data, "\n\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// As many bytes does [`write_block`] append.
pub const fn block_bytes(name: &str, data: &str) -> usize {
    "event: \ndata: \n\n".len() + name.len() + data.len()
}

/// Appends `event: overloaded\nretry: N\ndata: {"reason":REASON}\n\n`.
pub fn write_overloaded(retry_ms: u64, reason: &str, out: &mut Vec<u8>) {
    write_retry(b"overloaded", retry_ms, out);
    out.extend_from_slice(b"{\"reason\":");
    write_str(reason, out);
    out.extend_from_slice(b"}\n\n");
}

/// Appends `event: presence\n[id: N\n]data: {record}\n\n`. With an id, the stream has been told
/// everything up to it.
pub fn write_presence(record: &Record<'_>, id: Option<Unix>, out: &mut Vec<u8>) {
    open_presence(id, out);
    record.write(out);
    out.extend_from_slice(b"\n\n");
}

/// [`write_presence`] of a record that [`Record::write`] has encoded: once a turn, for every
/// stream.
pub fn write_presence_encoded(record: &[u8], id: Option<Unix>, out: &mut Vec<u8>) {
    open_presence(id, out);
    out.extend_from_slice(record);
    out.extend_from_slice(b"\n\n");
}

fn open_presence(id: Option<Unix>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"event: presence\n");
    if let Some(id) = id {
        write_id(id, out);
    }
    out.extend_from_slice(b"data: ");
}

/// Begins a snapshot block. Follow with any number of [`write_snapshot_append`] and one
/// [`write_snapshot_close`] on the same buffer; the id may be given here, as docs/PROTOCOL.md
/// shows it, or at the close when it is not known yet whether this part is the last.
pub fn write_snapshot_open(id: Option<Unix>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"event: snapshot\n");
    if let Some(id) = id {
        write_id(id, out);
    }
    out.extend_from_slice(b"data: {\"presence\":[");
}

/// Appends one record to the snapshot block that `out` ends in.
pub fn write_snapshot_append(record: &Record<'_>, out: &mut Vec<u8>) {
    separate(out);
    record.write(out);
}

/// [`write_snapshot_append`] of a record that [`Record::write`] has encoded.
pub fn write_snapshot_append_encoded(record: &[u8], out: &mut Vec<u8>) {
    separate(out);
    out.extend_from_slice(record);
}

/// Ends a snapshot block; `id` if this is the last part and the opening did not give it (the order
/// of fields in a block is free).
pub fn write_snapshot_close(id: Option<Unix>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"]}\n");
    if let Some(id) = id {
        write_id(id, out);
    }
    out.push(b'\n');
}

/// A comma unless the list has just been opened: a record ends in '}', so the last byte tells.
fn separate(out: &mut Vec<u8>) {
    if out.last() != Some(&b'[') {
        out.push(b',');
    }
}

fn write_id(id: Unix, out: &mut Vec<u8>) {
    out.extend_from_slice(b"id: ");
    write_u64(id.ms(), out);
    out.push(b'\n');
}

fn write_retry(event: &[u8], retry_ms: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(event);
    out.extend_from_slice(b"\nretry: ");
    write_u64(retry_ms, out);
    out.extend_from_slice(b"\ndata: ");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::status::Status;
    use crate::wire::User;

    fn text(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn bob(status: Status) -> Record<'static> {
        Record {
            user: User::parse(b"bob").unwrap(),
            status,
            since: Some(Unix::from_ms(1_764_009_604_000)),
            last_active: Some(Unix::from_ms(1_764_009_579_000)),
            stale: false,
        }
    }

    const OFFLINE: &str = concat!(
        r#"{"user":"bob","status":"offline","online":false,"#,
        r#""since":1764009604000,"last_active":1764009579000}"#
    );

    const PING: &str = "event: ping\ndata: 5\n\n";

    #[test]
    fn a_ping_is_an_event_with_data() {
        assert_eq!(text(|out| write_ping(Unix::from_ms(5), out)), PING);
        assert!(text(|out| write_ping(Unix::LATEST, out)).len() <= PING_BYTES_MAX);
    }

    #[test]
    fn blocks() {
        let hello = Hello {
            stream: "2.51.9f3c\"",
            watching: 2,
            server_time: 1_764_009_600_123,
            beat_interval_ms: 10_000,
            offline_after_ms: 25_000,
            keep_alive_ms: 15_000,
            retry_ms: 3_417,
            more: b",\"refused_total\":1",
            by_holder: false,
        };
        assert_eq!(
            text(|out| hello.write(out)),
            "event: hello\nretry: 3417\ndata: \
             {\"stream\":\"2.51.9f3c\\\"\",\"watching\":2,\"server_time\":1764009600123,\
             \"beat_interval_ms\":10000,\"offline_after_ms\":25000,\"keep_alive_ms\":15000,\
             \"refused_total\":1}\n\n"
        );
        let by_holder = Hello {
            by_holder: true,
            ..hello
        };
        let said = text(|out| by_holder.write(out));
        assert!(
            said.ends_with(",\"vouch\":\"self\",\"refused_total\":1}\n\n"),
            "{said}"
        );
        assert_eq!(
            text(|out| write_goodbye(9, "draining", out)),
            "event: goodbye\nretry: 9\ndata: {\"reason\":\"draining\"}\n\n"
        );
        assert_eq!(
            text(|out| write_overloaded(60_000, "streams\n", out)),
            "event: overloaded\nretry: 60000\ndata: {\"reason\":\"streams\\n\"}\n\n"
        );
    }

    #[test]
    fn presence() {
        let id = Some(Unix::from_ms(7));
        assert_eq!(
            text(|out| write_presence(&bob(Status::Offline), None, out)),
            format!("event: presence\ndata: {OFFLINE}\n\n")
        );
        let block = format!("event: presence\nid: 7\ndata: {OFFLINE}\n\n");
        assert_eq!(
            text(|out| write_presence(&bob(Status::Offline), id, out)),
            block
        );
        assert_eq!(
            text(|out| write_presence_encoded(OFFLINE.as_bytes(), id, out)),
            block
        );
    }

    #[test]
    fn snapshots() {
        let id = Some(Unix::from_ms(7));
        let whole = |records: usize, opening, closing| {
            text(|out| {
                write_ping(Unix::from_ms(5), out);
                write_snapshot_open(opening, out);
                for index in 0..records {
                    match index % 2 {
                        0 => write_snapshot_append(&bob(Status::Offline), out),
                        _ => write_snapshot_append_encoded(OFFLINE.as_bytes(), out),
                    }
                }
                write_snapshot_close(closing, out);
            })
        };
        assert_eq!(
            whole(0, None, None),
            format!("{PING}event: snapshot\ndata: {{\"presence\":[]}}\n\n")
        );
        assert_eq!(
            whole(1, id, None),
            format!("{PING}event: snapshot\nid: 7\ndata: {{\"presence\":[{OFFLINE}]}}\n\n")
        );
        assert_eq!(
            whole(3, None, id),
            format!(
                "{PING}event: snapshot\ndata: \
                 {{\"presence\":[{OFFLINE},{OFFLINE},{OFFLINE}]}}\nid: 7\n\n"
            )
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            users in prop::collection::vec("[^\\p{Cc}]{1,32}", 1..5),
            reason in any::<String>(),
            id in any::<u64>(),
            cuts in prop::collection::vec(1_usize..50, 1..20),
        ) {
            let mut out = Vec::new();
            let mut expected = Vec::new();
            write_overloaded(5, &reason, &mut out);
            let data = serde_json::json!({"reason": reason});
            expected.push((String::from("overloaded"), data, String::new()));
            write_snapshot_open(None, &mut out);
            for user in &users {
                let user = User::parse(user.as_bytes()).unwrap();
                write_snapshot_append(&Record { user, ..bob(Status::Online) }, &mut out);
            }
            write_snapshot_close(Some(Unix::from_ms(id)), &mut out);
            let records: Vec<_> = users
                .iter()
                .map(|user| serde_json::json!({
                    "user": user, "status": "online", "online": true,
                    "since": 1_764_009_604_000_u64, "last_active": 1_764_009_579_000_u64
                }))
                .collect();
            let data = serde_json::json!({"presence": records});
            expected.push((String::from("snapshot"), data, id.to_string()));

            let mut reader = Reader::default();
            let mut events = Vec::new();
            let mut rest = &out[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (part, after) = rest.split_at(rest.len().min(*cut));
                reader.feed(part, &mut |event| {
                    let data = serde_json::from_str(&event.data).unwrap();
                    events.push((event.event.clone(), data, event.id.clone()));
                });
                rest = after;
            }
            prop_assert_eq!(events, expected);
            prop_assert_eq!(reader.retry_ms(), Some(5));
        }
    }
}
