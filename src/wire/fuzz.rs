//! What must hold of the wire parsers for any bytes at all: one function a parser, each with real
//! assertions.
//!
//! Owns the bodies that `fuzz/` drives with libFuzzer and `tests/fuzz_seeded.rs` with seeded
//! mutations on stable. Never used by the server; compiled always, so that it cannot fall behind.

use std::borrow::Cow;
use std::fmt::Debug;

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde_json::value::RawValue;

use crate::status::Status;
use crate::time::Unix;
use crate::wire::beat::{
    self, BeatDrop, DATAGRAM_BYTES_MAX, FleetKey, HEAD_BYTES, KeyFault, Keys, MAC_BYTES,
};
use crate::wire::feed::{Held, Place, is_later};
use crate::wire::record::{self, Entry, Record};
use crate::wire::request::{
    self, ChunkDecoder, Framing, Head, Method, Parsed, RequestFault, RequestLimits, decode_segment,
    overhear, parse_head, query_pairs,
};
use crate::wire::response::{PROBLEMS, problem_of};
use crate::wire::sse::{self, Event, Reader};
use crate::wire::{User, UserBuf, UserFault};

/// The server's own limits, and ones that short inputs reach.
const LIMITS: [RequestLimits; 2] = [
    RequestLimits {
        head_bytes_max: 8_192,
        header_count_max: 64,
        body_bytes_max: 65_536,
    },
    RequestLimits {
        head_bytes_max: 64,
        header_count_max: 3,
        body_bytes_max: 16,
    },
];
/// Prefixes and pieces tried for one input at most: torn everywhere if short, at some places if
/// long.
const CUTS_MAX: usize = 256;

/// A bundle of datagrams: what is read is what was written, byte for byte.
pub fn bundle(data: &[u8]) {
    let Ok(datagrams) = beat::read_bundle(data) else {
        return;
    };
    assert!(datagrams.len() <= beat::BUNDLE_DATAGRAMS_MAX);
    let mut again = Vec::new();
    for datagram in datagrams
        .iter()
        .filter(|one| one.len() <= DATAGRAM_BYTES_MAX)
    {
        beat::write_bundled(datagram, &mut again);
    }
    let whole = datagrams.iter().all(|one| one.len() <= DATAGRAM_BYTES_MAX);
    assert!(!whole || again == data, "{datagrams:?}");
}

/// A head, whole and torn: an answer never changes with more input, and no head has a line that
/// ends in less than CR LF.
pub fn request(data: &[u8]) {
    for limits in &LIMITS {
        let whole = parse_head(data, limits);
        for cut in (0..data.len()).step_by(data.len() / CUTS_MAX + 1) {
            let part = parse_head(&data[..cut], limits);
            assert!(
                part == Parsed::Partial || part == whole,
                "{part:?} became {whole:?}"
            );
        }
        match whole {
            Parsed::Partial => assert!(
                data.len() < limits.head_bytes_max,
                "an endless head is refused"
            ),
            Parsed::Fault(fault) => assert!(PROBLEMS.contains(&problem_of(fault).0)),
            Parsed::Head {
                ref head,
                head_bytes,
            } => {
                assert!(head_bytes <= data.len().min(limits.head_bytes_max));
                check_head(head, &data[..head_bytes]);
                assert_eq!(parse_head(&data[..head_bytes], limits), whole);
            }
        }
    }
}

fn check_head(head: &Head<'_>, bytes: &[u8]) {
    assert!(bytes.ends_with(b"\r\n\r\n"));
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'\r' => assert_eq!(bytes[at + 1], b'\n'),
            b'\n' => assert_eq!(bytes[at - 1], b'\r'),
            _ => assert!(*byte >= 0x20 || *byte == b'\t'),
        }
    }
    assert!(head.path.starts_with('/') || (head.path == "*" && head.method == Method::Options));
    assert!(!head.path.contains('?'));
    assert!(
        head.path
            .bytes()
            .chain(head.query.unwrap_or("").bytes())
            .all(|byte| byte.is_ascii_graphic())
    );
    // What is overheard of a head is what it says.
    let overheard = overhear(bytes);
    assert_eq!(overheard.origin, head.origin);
    assert_eq!(overheard.http10, head.http10);
    assert_eq!(overheard.head_only, head.method == Method::Head);
    assert!(!head.http10 || (head.framing != Framing::Chunked && !head.expect_continue));
}

/// A key file: its keys are its lines of digits, of which the first signs, and what is refused is
/// refused for the line it names.
pub fn key_file(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let is_key = |line: &str| line.len() == 64 && line.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut expected = None;
    for (at, line) in text.lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let digits = line.to_ascii_lowercase();
        let line = at + 1;
        if !is_key(&digits) {
            expected = Some(KeyFault::NotHex { line });
        } else if lines.iter().any(|(_, other)| *other == digits) {
            expected = Some(KeyFault::Twice { line });
        }
        if expected.is_some() {
            break;
        }
        lines.push((line, digits));
    }
    if lines.is_empty() && expected.is_none() {
        expected = Some(KeyFault::Empty);
    }
    match (Keys::parse(&text), expected) {
        (Err(fault), Some(expected)) => assert_eq!(fault, expected),
        (Ok(keys), None) => {
            assert_eq!(keys.signing().to_hex(), lines[0].1);
            for (_, digits) in &lines {
                let key = FleetKey::from_hex(digits).expect("digits of a key");
                assert!(
                    keys.authorises(&format!("Bearer {}", key.service_token())),
                    "each is accepted"
                );
            }
        }
        (parsed, expected) => panic!("{parsed:?} instead of {expected:?}"),
    }
}

/// A chunked body: the same however it is torn, never beyond the limit, and what is encoded is
/// decoded.
pub fn chunked(data: &[u8]) {
    let (&seed, rest) = data.split_first().unwrap_or((&0, &[]));
    let piece = usize::from(seed) % 16 + 1;
    for limits in &LIMITS {
        let whole = decode_chunks(rest, rest.len().max(1), limits);
        assert_eq!(
            decode_chunks(rest, piece, limits),
            whole,
            "in pieces of {piece}"
        );
        assert_eq!(decode_chunks(rest, 1, limits), whole, "byte by byte");
        if let Ok((body, consumed, _)) = whole {
            assert!(body.len() <= limits.body_bytes_max.min(rest.len()));
            assert!(consumed <= rest.len());
        }
    }

    let body = &rest[..rest.len().min(LIMITS[0].body_bytes_max)];
    let mut encoded = Vec::new();
    for chunk in body.chunks(piece * 7) {
        request::write_chunk(chunk, &mut encoded);
    }
    request::write_last_chunk(&mut encoded);
    let len = encoded.len();
    encoded.extend_from_slice(b"GET / HTTP/1.1\r\n");
    assert_eq!(
        decode_chunks(&encoded, piece, &LIMITS[0]),
        Ok((body.to_vec(), len, true))
    );
}

fn decode_chunks(
    input: &[u8],
    piece: usize,
    limits: &RequestLimits,
) -> Result<(Vec<u8>, usize, bool), RequestFault> {
    let mut decoder = ChunkDecoder::default();
    let mut body = Vec::new();
    let mut consumed = 0;
    for part in input.chunks(piece) {
        let step = decoder.decode(part, &mut body, limits)?;
        consumed += step.consumed;
        if step.done {
            return Ok((body, consumed, true));
        }
        assert_eq!(
            step.consumed,
            part.len(),
            "all of it is taken until the body is whole"
        );
    }
    Ok((body, consumed, false))
}

/// A path segment and a query: decoded once, so that what comes out, encoded again, comes out
/// again.
pub fn target_query(data: &[u8]) {
    let raw = String::from_utf8_lossy(data);
    if let Some(decoded) = decode_segment(&raw) {
        assert!(decoded.len() <= raw.len());
        assert_eq!(matches!(decoded, Cow::Borrowed(_)), !raw.contains('%'));
        let again = percent_encode(&decoded, NON_ALPHANUMERIC).to_string();
        assert_eq!(decode_segment(&again), Some(decoded));
    } else {
        assert!(raw.contains('%'));
    }

    let pairs: Vec<_> = query_pairs(&raw).collect();
    assert_eq!(
        pairs.len(),
        raw.split('&').filter(|pair| !pair.is_empty()).count()
    );
    for pair in pairs {
        let encode = |bytes| {
            percent_encode(bytes, NON_ALPHANUMERIC)
                .to_string()
                .replace("%20", "+")
        };
        let Some(value) = &pair.1 else {
            assert!(raw.contains('%'));
            continue;
        };
        let again = format!("{}={}", encode(&pair.0), encode(value));
        assert_eq!(query_pairs(&again).collect::<Vec<_>>(), [pair]);
    }
}

/// An event stream: the same events however it is torn; and any text put into an event is read back
/// out of it.
pub fn sse_reader(data: &[u8]) {
    let (&seed, rest) = data.split_first().unwrap_or((&0, &[]));
    let whole = read_events(rest, rest.len().max(1));
    for piece in [1, 2, usize::from(seed) + 1] {
        assert_eq!(read_events(rest, piece), whole, "in pieces of {piece}");
    }
    let (events, last_event_id, _) = &whole;
    for event in events {
        assert!(!event.event.is_empty() && !event.event.contains(['\r', '\n']));
        assert!(!event.id.contains(['\r', '\n', '\0']) && !event.data.contains('\r'));
    }
    assert!(!last_event_id.contains('\0'));

    let text = String::from_utf8_lossy(rest);
    let mut stream = Vec::new();
    sse::write_overloaded(u64::from(seed), &text, &mut stream);
    let (events, _, retry_ms) = read_events(&stream, usize::from(seed) + 1);
    assert_eq!(retry_ms, Some(u64::from(seed)));
    let [event] = &events[..] else {
        panic!("one block made {} events", events.len())
    };
    assert_eq!(event.event, "overloaded");
    assert_eq!(
        json(event.data.as_bytes()),
        serde_json::json!({ "reason": text })
    );
}

fn read_events(stream: &[u8], piece: usize) -> (Vec<Event>, String, Option<u64>) {
    let mut reader = Reader::default();
    let mut events = Vec::new();
    for part in stream.chunks(piece) {
        reader.feed(part, &mut |event| events.push(event.clone()));
    }
    (events, reader.last_event_id().to_owned(), reader.retry_ms())
}

/// A device speaks for its user, and nobody else with its key.
pub fn device_beat(data: &[u8]) {
    let key = FleetKey::new([7; 32]);
    let keys = Keys::single(key.clone());
    let now = Unix::from_ms(1_764_009_600_123);
    let epochs = beat::Epochs::new(&keys, 86_400_000, now);
    assert!(beat::open_any(data, &keys, &epochs, now, u64::MAX).is_err());
    let (name, rest) = data.split_at(data.len() / 2);
    let (Ok(user), Ok(device)) = (User::parse(name), beat::device_name(rest)) else {
        return;
    };
    let (made, until) = epochs.key_of(user, device);
    let mut json = Vec::new();
    made.write(until, &mut json);
    let (read, read_until) = beat::DeviceKey::read(&json).expect("it was written");
    assert!(read == made && read_until == until);
    let leave = data.len().is_multiple_of(3);
    let mut datagram = made.datagram(leave, now);
    let beats = beat::open_any(&datagram, &keys, &epochs, now, 0).expect("it is signed");
    assert_eq!(beats.flags.is_leave(), leave);
    assert_eq!(beats.users().collect::<Vec<_>>(), [user]);
    assert_eq!(
        beats.sender.map(|sender| sender.device),
        Some(device.as_bytes())
    );
    let bit = data.iter().fold(0_usize, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(usize::from(*byte))
    });
    let bit = bit % (datagram.len() * 8);
    datagram[bit / 8] ^= 1 << (bit % 8);
    assert!(beat::open_any(&datagram, &keys, &epochs, now, u64::MAX).is_err());
}

/// A datagram: as it stands; as the entries of one that is signed, which opens exactly if they are
/// legal ids and is then what the writer makes of them; and that one with a bit flipped, which
/// never opens.
pub fn beat(data: &[u8]) {
    const KEY: [u8; 32] = [7; 32];
    let key = FleetKey::new(KEY);
    let keys = Keys::single(key.clone());
    let now = Unix::from_ms(1_764_009_600_123);
    // Nothing but a signature opens, and this input has none but by one chance in 2^128.
    assert!(beat::open(data, &keys, now, u64::MAX).is_err());

    let entries = &data[..data.len().min(DATAGRAM_BYTES_MAX - HEAD_BYTES - MAC_BYTES)];
    let mut datagram = beat::Writer::new(data.len().is_multiple_of(2), now, &key).seal(&key);
    datagram.truncate(HEAD_BYTES);
    datagram.extend_from_slice(entries);
    let mac = blake3::keyed_hash(&KEY, &datagram);
    datagram.extend_from_slice(&mac.as_bytes()[..MAC_BYTES]);
    match (beat::open(&datagram, &keys, now, 0), walk_entries(entries)) {
        (Err(drop), _) if entries.len() < 2 => assert_eq!(drop, BeatDrop::Short),
        (Err(drop), expected) => {
            assert_eq!(drop, BeatDrop::Entry);
            assert_eq!(expected, None);
        }
        (Ok(beats), expected) => {
            let users: Vec<User<'_>> = beats.users().collect();
            assert_eq!(Some(&users), expected.as_ref());
            let mut writer = beat::Writer::of(beats.flags, beats.sent_at, &key);
            assert!(users.into_iter().all(|user| writer.push(user)));
            assert_eq!(
                writer.seal(&key),
                datagram,
                "there is one way to write what was read"
            );
        }
    }

    let bit = data.iter().fold(0_usize, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(usize::from(*byte))
    });
    let bit = bit % (datagram.len() * 8);
    datagram[bit / 8] ^= 1 << (bit % 8);
    assert!(beat::open(&datagram, &keys, now, u64::MAX).is_err());
}

/// The entries by the letter of the format, one by one.
fn walk_entries(mut rest: &[u8]) -> Option<Vec<User<'_>>> {
    let mut users = Vec::new();
    while let Some((&len, after)) = rest.split_first() {
        let (user, after) = after.split_at_checked(usize::from(len))?;
        users.push(User::parse(user).ok()?);
        rest = after;
    }
    Some(users)
}

/// The header that numbers what one node tells another, and its answer: what is read is written
/// back as it was read, and a message's number is later than the one before.
pub fn feed_header(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(place) = Place::parse(&text) {
        assert!(is_later(place.number, place.previous));
        assert!(!is_later(place.previous, place.number));
        assert_eq!(Place::parse(&place.to_string()), Some(place));
        assert_eq!(
            text.split(' ').count(),
            3 + usize::from(place.up_to.is_some())
        );
        // Without its time it is the same message, with which something is held back.
        let held_back = Place {
            up_to: None,
            ..place
        };
        assert_eq!(Place::parse(&held_back.to_string()), Some(held_back));
        assert_eq!(Held::parse(&place.to_string()), None, "no answer");
    }
    if let Some(held) = Held::parse(&text) {
        assert_eq!(Held::parse(&held.to_string()), Some(held));
        assert_eq!(Place::parse(&text), None, "no message");
    }
}

/// JSON bodies: what is taken in is JSON by serde_json's word too, holds legal ids only and,
/// written again, is taken in as the same; and any legal id in a record is read back out of it.
pub fn record_bodies(data: &[u8]) {
    const LIST_MAX: usize = 4;
    // What is refused by itself is left out.
    let legal = |users: &mut Vec<Entry>| {
        assert!(users.len() <= LIST_MAX);
        users.retain(Result::is_ok);
        let mut texts = users.iter().flatten().map(UserBuf::as_str);
        assert!(texts.all(|user| User::from_text(user).is_ok()));
    };
    let texts = |users: &[Entry]| -> Vec<String> {
        let users = users.iter().flatten();
        users.map(|user| user.as_str().to_owned()).collect()
    };
    if let Some(mut users) = taken(data, |body| record::parse_users(body, LIST_MAX)) {
        legal(&mut users);
        let again = serde_json::json!({ "users": texts(&users) }).to_string();
        assert_eq!(record::parse_users(again.as_bytes(), LIST_MAX), Ok(users));
    }
    if let Some(mut edit) = taken(data, |body| record::parse_watch_edit(body, LIST_MAX)) {
        legal(&mut edit.add);
        legal(&mut edit.remove);
        let again = serde_json::json!({ "remove": texts(&edit.remove), "add": texts(&edit.add) });
        let again = again.to_string();
        assert_eq!(
            record::parse_watch_edit(again.as_bytes(), LIST_MAX),
            Ok(edit)
        );
    }
    if let Some(mut ask) = taken(data, |body| record::parse_stream_ask(body, LIST_MAX)) {
        legal(&mut ask.watch);
        let user = ask.user.as_ref().map(UserBuf::as_str);
        assert!(user.is_none_or(|user| User::from_text(user).is_ok()));
        let again = serde_json::json!({
            "watch": texts(&ask.watch), "user": ask.user.as_ref().map(UserBuf::as_str),
            "last_event_id": ask.last_event_id
        });
        assert_eq!(
            record::parse_stream_ask(again.to_string().as_bytes(), LIST_MAX),
            Ok(ask)
        );
    }

    if let Some(told) = taken(data, |body| record::parse_told_list(body, LIST_MAX)) {
        assert!(told.len() <= LIST_MAX);
        let mut again = b"{\"presence\":[".to_vec();
        let told: Vec<_> = told.into_iter().filter(Result::is_ok).collect();
        for (at, told) in told.iter().flatten().enumerate() {
            let mut one = Vec::new();
            write_told(told, &mut one);
            assert_eq!(record::parse_told(&one).as_ref(), Ok(told));
            again.extend_from_slice(if at > 0 { b"," } else { b"" });
            again.append(&mut one);
        }
        again.extend_from_slice(b"]}");
        assert_eq!(record::parse_told_list(&again, LIST_MAX), Ok(told));
    }

    match User::parse(data) {
        Ok(user) => {
            let mut out = Vec::new();
            Record {
                last_active: Some(Unix::from_ms(u64::MAX)),
                ..Record::timeless(user, Status::Online)
            }
            .write(&mut out);
            let expected = serde_json::json!({
                "user": user.as_str(), "status": "online", "online": true, "since": null,
                "last_active": u64::MAX
            });
            assert_eq!(json(&out), expected);
        }
        Err(UserFault::Empty) => assert!(data.is_empty()),
        Err(fault) => assert!(!fault.explain().is_empty()),
    }
}

fn write_told(told: &record::Told, out: &mut Vec<u8>) {
    let user = told.user.user();
    let record = Record {
        user,
        status: told.status,
        since: told.since,
        last_active: told.last_active,
        stale: told.stale,
    };
    record.write(out);
}

/// What `parse` takes in, which must be a JSON object by its grammar. An entry may hold half of a
/// surrogate pair, which the grammar allows: it refuses itself.
fn taken<T, E: Debug>(body: &[u8], parse: impl Fn(&[u8]) -> Result<T, E>) -> Option<T> {
    let value = parse(body).ok()?;
    let object: &RawValue = serde_json::from_slice(body).expect("what was taken in is JSON");
    assert!(object.get().starts_with('{'));
    Some(value)
}

fn json(text: &[u8]) -> serde_json::Value {
    serde_json::from_slice(text).expect("what was written is JSON")
}
