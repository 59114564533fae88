//! Datagrams in, exact users or refusals out.

use proptest::prelude::*;

use super::*;

const NOW: Unix = Unix::from_ms(1_764_009_600_123);
const SKEW_MS: u64 = 30_000;

fn key() -> FleetKey {
    FleetKey::new([7; 32])
}

fn keys() -> Keys {
    Keys::parse(&format!(
        "{}\n{}\n",
        key().to_hex(),
        FleetKey::new([8; 32]).to_hex()
    ))
    .unwrap()
}

fn user(id: &str) -> User<'_> {
    User::parse(id.as_bytes()).unwrap()
}

fn sealed(leave: bool, sent_at: Unix, users: &[&str]) -> Vec<u8> {
    let mut writer = Writer::new(leave, sent_at, &key());
    for id in users {
        assert!(writer.push(user(id)));
    }
    writer.seal(&key())
}

/// A datagram of these bytes before the MAC, which is right.
fn signed(bytes: &[u8]) -> Vec<u8> {
    [bytes, &key().mac(bytes)].concat()
}

/// The head of a good datagram and these bytes as entries.
fn with_entries(entries: &[u8]) -> Vec<u8> {
    let head = &sealed(false, NOW, &["x"])[..HEAD_BYTES];
    signed(&[head, entries].concat())
}

fn opened(datagram: &[u8]) -> Result<(bool, u64, Vec<String>), BeatDrop> {
    open(datagram, &keys(), NOW, SKEW_MS).map(|beats| {
        (
            beats.flags.is_leave(),
            beats.sent_at.ms(),
            beats.users().map(|user| user.as_str().to_owned()).collect(),
        )
    })
}

#[test]
fn layout() {
    let datagram = sealed(true, NOW, &["bob", "é"]);
    let mut expected = b"GD\x01\x01".to_vec();
    expected.extend_from_slice(&key().id().to_be_bytes());
    expected.extend_from_slice(b"\x00\x00\x01\x9a\xb7\x2a\x64\x7b\x03bob\x02\xc3\xa9");
    assert_eq!(datagram[..datagram.len() - MAC_BYTES], expected);
    assert_eq!(
        datagram[datagram.len() - MAC_BYTES..],
        blake3::keyed_hash(&[7; 32], &expected).as_bytes()[..MAC_BYTES]
    );
    assert_eq!(
        opened(&datagram),
        Ok((true, NOW.ms(), vec!["bob".into(), "é".into()]))
    );
    assert_eq!(
        opened(&sealed(false, NOW, &["x"])),
        Ok((false, NOW.ms(), vec!["x".into()]))
    );
}

#[test]
fn short() {
    let datagram = sealed(false, NOW, &["x"]);
    assert_eq!(datagram.len(), DATAGRAM_BYTES_MIN);
    for len in 0..datagram.len() {
        assert_eq!(opened(&datagram[..len]), Err(BeatDrop::Short));
    }
    assert_eq!(opened(&sealed(false, NOW, &[])), Err(BeatDrop::Short));
    assert_eq!(opened(&[0; DATAGRAM_BYTES_MAX + 1]), Err(BeatDrop::Short));
    assert_eq!(opened(&[0; DATAGRAM_BYTES_MAX]), Err(BeatDrop::Magic));
}

#[test]
fn every_flipped_bit_is_refused() {
    let datagram = sealed(false, NOW, &["bob", "carol"]);
    for bit in 0..datagram.len() * 8 {
        let mut bent = datagram.clone();
        bent[bit / 8] ^= 1 << (bit % 8);
        let why = match bit / 8 {
            0..2 => BeatDrop::Magic,
            2 => BeatDrop::Version,
            3 if bit % 8 > 6 => BeatDrop::Version,
            4..8 => BeatDrop::Key,
            _ => BeatDrop::Mac,
        };
        assert_eq!(opened(&bent), Err(why), "bit {bit}");
    }
}

#[test]
fn cut_or_lengthened() {
    let datagram = sealed(false, NOW, &["bob", "carol"]);
    for len in DATAGRAM_BYTES_MIN..datagram.len() {
        assert_eq!(opened(&datagram[..len]), Err(BeatDrop::Mac));
    }
    assert_eq!(opened(&[&datagram[..], b"\0"].concat()), Err(BeatDrop::Mac));
}

#[test]
fn keys_by_id() {
    let mut writer = Writer::new(false, NOW, &FleetKey::new([8; 32]));
    assert!(writer.push(user("x")));
    assert!(
        opened(&writer.seal(&FleetKey::new([8; 32]))).is_ok(),
        "any key of the file opens"
    );

    let mut writer = Writer::new(false, NOW, &FleetKey::new([9; 32]));
    assert!(writer.push(user("x")));
    assert_eq!(
        opened(&writer.seal(&FleetKey::new([9; 32]))),
        Err(BeatDrop::Key)
    );

    let mut device = sealed(false, NOW, &["x"])[..HEAD_BYTES + 2].to_vec();
    device[4] |= 0x80;
    assert_eq!(
        opened(&signed(&device)),
        Err(BeatDrop::Key),
        "no device keys"
    );
}

#[test]
fn stale() {
    let at = |ms| opened(&sealed(false, Unix::from_ms(ms), &["x"])).map(|(_, sent_at, _)| sent_at);
    for ms in [NOW.ms() - SKEW_MS, NOW.ms() + SKEW_MS] {
        assert_eq!(at(ms), Ok(ms));
    }
    for ms in [NOW.ms() - SKEW_MS - 1, NOW.ms() + SKEW_MS + 1, 0, u64::MAX] {
        assert_eq!(at(ms), Err(BeatDrop::Stale));
    }
}

#[test]
fn entries() {
    assert_eq!(
        opened(&with_entries(b"\x01a\x01b")),
        Ok((false, NOW.ms(), vec!["a".into(), "b".into()]))
    );
    let longest = [&[128][..], &[b'x'; 128]].concat();
    assert!(opened(&with_entries(&longest)).is_ok());
    let mixed = [&b"\x02\xc3\xa9"[..], &longest, b"\x04\xf0\x9f\x9f\xa2"].concat();
    let ids = vec!["é".into(), "x".repeat(128), "\u{1F7E2}".into()];
    assert_eq!(opened(&with_entries(&mixed)), Ok((false, NOW.ms(), ids)));
    let torn = [&longest[..], b"\x01\xc3\x01\xa9"].concat();
    let too_long = [&[129][..], &[b'x'; 129]].concat();
    for bad in [
        &b"\x00\x01a"[..],
        b"\x01a\x00",
        b"\x03ab",
        b"\x01a\x01",
        b"\x01a\xff",
        b"\x01\x00",
        b"\x01\x7f",
        b"\x02\xc2\x85",
        b"\x01\xff",
        b"\x01\xc3\x01\xa9",
        b"\x01\xc3\xa9",
        b"\x02a\xc3\xa9",
        &too_long,
        &torn,
    ] {
        assert_eq!(
            opened(&with_entries(bad)),
            Err(BeatDrop::Entry),
            "{}",
            bad.escape_ascii()
        );
    }
}

/// What entries say when each is taken by itself: nothing if one of them is bad.
fn one_by_one(mut bytes: &[u8]) -> Option<Vec<String>> {
    let mut ids = Vec::new();
    while let Some((length, rest)) = bytes.split_first() {
        let (id, rest) = rest.split_at_checked(usize::from(*length))?;
        ids.push(User::parse(id).ok()?.as_str().to_owned());
        bytes = rest;
    }
    Some(ids)
}

#[test]
fn a_full_datagram() {
    let mut writer = Writer::new(false, NOW, &key());
    assert!(writer.is_empty());
    let mut count = 0;
    while writer.push(user("sixteen-byte-id!")) {
        count += 1;
    }
    assert!(!writer.is_empty());
    assert_eq!(count, (DATAGRAM_BYTES_MAX - HEAD_BYTES - MAC_BYTES) / 17);
    assert!(
        writer.push(user("six")),
        "what does not fit leaves room for what does"
    );
    let datagram = writer.seal_in_place(&key()).to_vec();
    assert_eq!(
        opened(&datagram).map(|(_, _, users)| users.len()),
        Ok(count + 1)
    );

    writer.restart(Flags::LEAVE, NOW, &key());
    assert!(writer.push(user("x")));
    assert_eq!(writer.seal_in_place(&key()), sealed(true, NOW, &["x"]));
}

#[test]
fn labels() {
    let labels = BeatDrop::ALL.map(BeatDrop::label);
    assert_eq!(
        labels,
        ["short", "magic", "version", "key", "mac", "stale", "entry"]
    );
}

proptest! {
    #[test]
    fn write_open(
        leave in any::<bool>(),
        apart_ms in 0..=SKEW_MS,
        users in prop::collection::vec("[^\\p{Cc}]{1,32}", 1..9),
    ) {
        let sent_at = Unix::from_ms(NOW.ms() - apart_ms);
        let ids: Vec<&str> = users.iter().map(String::as_str).collect();
        prop_assert_eq!(opened(&sealed(leave, sent_at, &ids)), Ok((leave, sent_at.ms(), users)));
    }

    /// However all entries are looked at in one go, the verdict is that of each by itself.
    #[test]
    fn entries_are_judged_as_each_by_itself(
        ids in prop::collection::vec(
            "[\x00\x1f \
             -~\x7f\u{80}\u{9f}\u{a0}\u{bf}\u{c0}\u{7ff}\u{1f7e2}]{1,3}|[a-z]{31}|[a-zé]{120,128}",
            1..8
        ),
        bent in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut entries = Vec::new();
        for id in ids.iter().filter(|id| id.len() <= USER_BYTES_MAX) {
            entries.push(id.len() as u8);
            entries.extend_from_slice(id.as_bytes());
        }
        entries.extend_from_slice(b"\x01x");
        if let Some((at, byte)) = bent {
            let at = at.index(entries.len());
            entries[at] = byte;
        }
        let judged = opened(&with_entries(&entries)).map(|(_, _, ids)| ids);
        prop_assert_eq!(judged, one_by_one(&entries).ok_or(BeatDrop::Entry));
    }
}
