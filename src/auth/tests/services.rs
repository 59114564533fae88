//! Files of service keys, and the keys that they know.

use crate::auth::{Keyring, services};
use crate::auth::{Proof, Scope, Scopes, ServiceFault, ServiceKeys, new_service_key};
use crate::wire::beat::{FleetKey, Keys};

const HASH: &str = "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";

fn made(name: &str, scopes: &str, byte: u8) -> (String, String) {
    let scopes: Scopes = scopes.parse().unwrap();
    new_service_key(name, scopes, &[byte; 32]).unwrap()
}

#[test]
fn a_key_and_its_line() {
    let (key, line) = made("app", "query,beat", 7);
    assert_eq!(key, "gds_app_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc");
    assert_eq!(
        line,
        "app beat,query blake3:\
         21366819ad317429337c63d4811051529a1eba4afe35c9a85f31a9b20511d23f"
    );
    let known = ServiceKeys::parse(&format!("# services\n\n  {line}\r\n")).unwrap();
    let service = known.find(&key).unwrap();
    assert_eq!(&*service.name, "app");
    let has = Scope::ALL.map(|scope| service.scopes.has(scope));
    assert_eq!(has, [false, true, true, false, false, false, false]);
}

/// While a key changes both count, each with its own scopes.
#[test]
fn two_keys_of_a_name() {
    let (old, old_line) = made("app", "query", 1);
    let (new, new_line) = made("app", "query,beat", 2);
    let (third, third_line) = made("app", "query", 3);
    let (other, other_line) = made("app.eu-1", "admin", 1);
    let file = format!("{old_line}\n{other_line}\n{new_line}");
    let known = ServiceKeys::parse(&file).unwrap();
    let scopes = |key: &str| known.find(key).map(|service| service.scopes.to_string());
    assert_eq!(scopes(&old).as_deref(), Some("query"));
    assert_eq!(scopes(&new).as_deref(), Some("beat,query"));
    assert_eq!(scopes(&other).as_deref(), Some("admin"));
    assert_eq!(scopes(&third), None);
    let file = format!("{file}\n{third_line}");
    let fault = ServiceKeys::parse(&file).unwrap_err();
    assert_eq!(fault, (4, ServiceFault::PerName));
}

#[test]
fn what_is_no_key() {
    let (key, line) = made("app", "query", 7);
    let known = ServiceKeys::parse(&line).unwrap();
    let secret = key.strip_prefix("gds_app_").unwrap();
    for shown in [
        "",
        "gds_",
        "gds_app",
        "gds_app_",
        secret,
        &key[1..],
        &key[..key.len() - 1],
        &format!("{key}x"),
        &format!("gds_ap_{secret}"),
        &format!("gds_app{secret}"),
        &format!("gds__{secret}"),
        &format!("GDS_app_{secret}"),
        &format!("gds_app_{}é", &secret[..41]),
        &key.replace("Bwc", "Bwd"),
        &line,
        line.rsplit(':').next().unwrap(),
    ] {
        assert_eq!(known.find(shown), None, "{shown}");
    }
}

#[test]
fn what_is_no_line() {
    let good = format!("app query {HASH}");
    for (line, fault) in [
        ("app".to_owned(), ServiceFault::Line),
        (format!("{good} more"), ServiceFault::Line),
        (format!("a_b query {HASH}"), ServiceFault::Name),
        (format!("é query {HASH}"), ServiceFault::Name),
        (
            format!("{} query {HASH}", "a".repeat(65)),
            ServiceFault::Name,
        ),
        (format!("app all {HASH}"), ServiceFault::Scope),
        (format!("app query, {HASH}"), ServiceFault::Scope),
        (format!("app Query {HASH}"), ServiceFault::Scope),
        (format!("app query {}", &HASH[7..]), ServiceFault::Hash),
        (format!("app query {}", &HASH[..70]), ServiceFault::Hash),
        ("app query sha256:00".to_owned(), ServiceFault::Hash),
        (good.replace("app", "b"), ServiceFault::Twice),
    ] {
        let file = format!("{good}\n\n{line}");
        assert_eq!(ServiceKeys::parse(&file).unwrap_err(), (3, fault), "{line}");
    }
}

/// What a header shows: a node, a service, or something that may be a user's token.
#[test]
fn what_a_header_shows() {
    let fleet = FleetKey::new([9; 32]);
    let node = fleet.service_token();
    let (key, line) = made("app", "query", 7);
    let keyring = |services: &str| Keyring {
        services: ServiceKeys::parse(services).unwrap(),
        ..Keyring::of_fleet(Keys::single(fleet.clone()))
    };
    let (with, without) = (keyring(&line), keyring(""));
    let service = Proof::Service(with.services.find(&key).unwrap().clone());
    for (header, shown, shown_without) in [
        (format!("Bearer {node}"), Proof::Node, Proof::Node),
        (format!("bearer  {key} "), service.clone(), Proof::Other),
        (format!("Bearer {key}x"), Proof::UnknownKey, Proof::Other),
        (format!("Basic {key}"), Proof::Other, Proof::Other),
        (key.clone(), Proof::Other, Proof::Other),
        ("Bearer a.b.c".to_owned(), Proof::Other, Proof::Other),
        ("Bearer".to_owned(), Proof::Other, Proof::Other),
    ] {
        assert_eq!(with.proof(Some(&header)), shown, "{header}");
        assert_eq!(without.proof(Some(&header)), shown_without, "{header}");
    }
    assert_eq!(with.proof(None), Proof::Other);
    let told = format!("{:?}", with.services);
    assert!(told.contains("app") && !told.contains("blake3"), "{told}");
    assert!(services::is_service_key(&key));
}
