//! What must hold of the fleet's parsers for any bytes at all: one function a parser, each with
//! real assertions.
//!
//! Owns the bodies that `fuzz/` drives with libFuzzer and `tests/fuzz_seeded.rs` with seeded
//! mutations on stable. Never used by the server; compiled always, so that it cannot fall behind.

use super::CALL_USERS_MAX;
use super::held::{Enrolment, Gone, Here, Meta};
use super::message::{Base, Follows, HEAD_BYTES, Message, encode};
use super::replies::{Fenced, Refusal, Vouched};

/// A message: what is read is what was written, byte for byte, and its place is one of three.
pub fn message(data: &[u8]) {
    let kept = Message::parse_kept(data);
    let Ok(message) = Message::parse(data) else {
        assert!(!matches!(kept, Ok(Some(_))));
        assert!(!matches!(kept, Ok(None)) || data.len() == HEAD_BYTES);
        return;
    };
    assert_eq!(kept, Ok(Some(message)));
    let records: Vec<_> = message.records().collect();
    assert!((1..=CALL_USERS_MAX).contains(&records.len()));
    let base = Base {
        birth: message.birth,
        number: message.previous,
    };
    assert_eq!(encode(base, message.since, &records), data);
    assert_eq!(base.follows(&message), Follows::InStep);
    let number = message.number();
    assert_eq!(Base { number, ..base }.follows(&message), Follows::InBase);
}

/// What a partition keeps and what its functions answer: what is read is what was written.
pub fn kept(data: &[u8]) {
    if let Ok(here) = Here::parse(data) {
        assert_eq!(here.encode(), data);
        assert_eq!(here.is_here(), data.len() > 7);
    }
    if let Ok(gone) = Gone::parse(data) {
        assert_eq!(gone.encode()[..], *data);
        assert!(gone.last_active <= gone.since);
    }
    if let Ok(meta) = Meta::parse(data) {
        assert_eq!(meta.encode()[..], *data);
    }
    if let Ok(enrolment) = Enrolment::parse(data) {
        assert_eq!(enrolment.encode()[..], *data);
    }
    if let Ok(Vouched::Done { outcomes, .. }) = Vouched::parse(data) {
        assert!(outcomes.len() <= CALL_USERS_MAX);
    }
    let _ = Fenced::parse(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Refusal::parse(text);
    }
}
