//! What must hold of tokens and key files for any bytes at all; see `wire::fuzz`.

use super::session;
use super::ticket::{self, TicketId};
use super::token::Header;
use super::{Grant, Keys, Rules, ServiceKeys, TICKET_CHARS_MAX, WATCH_ENTRIES_MAX, WatchDefault};
use crate::time::Unix;
use crate::wire::User;
use crate::wire::beat::{self, FleetKey};

/// By which the corpus's tokens are signed.
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const NOW: Unix = Unix::from_ms(1_764_009_600_000);

/// Nobody without the secret makes a token; and what claims grant is what serde_json reads in them.
pub fn token(data: &[u8]) {
    let mut keys = Keys::default();
    keys.add("app", SECRET).expect("it has 32 bytes");
    let rules = Rules {
        keys,
        audience: None,
        issuer: None,
        ttl_max_ms: 86_400_000,
        watch_default: WatchDefault::Nobody,
    };
    if rules.verify(data, NOW).is_ok() {
        // There is one way to write it.
        for at in 0..data.len() {
            let mut other = data.to_vec();
            other[at] ^= 1;
            assert!(rules.verify(&other, NOW).is_err(), "byte {at}");
        }
    }
    if Header::read(data).is_ok() {
        let header: serde_json::Value = serde_json::from_slice(data).expect("it was read");
        assert!(header["alg"].is_string());
        assert!(
            ["jku", "x5u", "jwk", "x5c", "crit", "zip"]
                .iter()
                .all(|it| header[it].is_null())
        );
    }
    if let Ok(grant) = rules.judge(data, NOW) {
        let claims: serde_json::Value = serde_json::from_slice(data).expect("it was read");
        assert_eq!(claims["sub"].as_str(), Some(grant.user.as_str()));
        assert_eq!(
            claims["exp"].as_u64().map(|exp| exp * 1_000),
            Some(grant.expires.ms())
        );
        assert!(grant.expires > NOW && grant.expires.ms_since(NOW) <= rules.ttl_max_ms);
        assert_eq!(claims["greendot"]["publish"] != false, grant.publish);
        assert!(grant.may_watch(grant.user.user()));
        let watch = claims["greendot"]["watch"].as_array();
        assert!(watch.is_none_or(|list| list.len() <= WATCH_ENTRIES_MAX));
        for entry in watch
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.as_str())
        {
            let prefix = entry.trim_end_matches('*');
            let user = User::from_text(prefix).unwrap_or(User::NOBODY);
            assert!(grant.may_watch(user), "{entry}");
        }
    }
}

/// Nobody without a fleet key makes a ticket; and a grant comes out of one as it went in.
pub fn ticket(data: &[u8]) {
    let (ours, other) = (FleetKey::new([7; 32]), FleetKey::new([8; 32]));
    let keys = beat::Keys::single(ours.clone());
    if let Ok(grant) = ticket::open(data, &keys) {
        let id = grant.ticket.expect("it came in one");
        let again = id.seal(&grant, &ours).expect("it was no longer");
        assert_eq!(again.as_bytes(), data, "there is one way to write it");
    }
    let id = TicketId::of_test(NOW, 1, 2);
    let Some(grant) = Grant::carried(data, id) else {
        return;
    };
    assert!(grant.may_watch(grant.user.user()));
    let Ok(text) = id.seal(&grant, &ours) else {
        return;
    };
    assert!(text.len() <= TICKET_CHARS_MAX);
    assert_eq!(ticket::open(text.as_bytes(), &keys), Ok(grant.clone()));
    let foreign = id.seal(&grant, &other).expect("it is as long");
    assert!(ticket::open(foreign.as_bytes(), &keys).is_err());
    for at in 0..text.len() {
        let mut changed = text.clone().into_bytes();
        changed[at] ^= 1;
        assert!(ticket::open(&changed, &keys).is_err(), "byte {at}");
    }
}

/// A file is taken whole or not at all, and no name stands for two keys.
pub fn jwt_keys(data: &[u8]) {
    let mut keys = Keys::default();
    let added = keys.add("stem", data);
    let before: Vec<_> = keys
        .names()
        .map(|(kid, alg)| (kid.to_owned(), alg))
        .collect();
    assert_eq!(added.is_ok(), !before.is_empty());
    if let Err(fault) = added {
        assert!(!fault.to_string().is_empty());
        return;
    }
    assert!(keys.add("stem", data).is_err());
    assert!(
        keys.names()
            .eq(before.iter().map(|(kid, alg)| (kid.as_str(), *alg)))
    );
    assert!(before.iter().all(|(kid, _)| keys.find(Some(kid)).is_some()));
    assert_eq!(keys.find(None).is_some(), before.len() == 1);
}

/// A line is a key's or a fault with its number; and nothing that a file holds can be shown.
pub fn service_keys(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let lines = text.lines().count();
    match ServiceKeys::parse(&text) {
        Err((line, fault)) => {
            assert!((1..=lines).contains(&line) && !fault.to_string().is_empty());
        }
        Ok(keys) => {
            let words = text.split_whitespace();
            assert!(words.into_iter().all(|word| keys.find(word).is_none()));
            let ours = FleetKey::new([7; 32]);
            let fleet = beat::Keys::single(ours.clone());
            for service in keys.iter().take(2) {
                let text = session::seal(service, &ours, NOW);
                let opened = session::open(&text, &fleet, &keys, NOW);
                assert_eq!(opened.map(|(whose, _)| whose.hash), Some(service.hash));
                let before = ServiceKeys::default();
                assert_eq!(session::open(&text, &fleet, &before, NOW), None);
            }
        }
    }
}
