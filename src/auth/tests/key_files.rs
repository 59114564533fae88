//! What a key file may hold.

use super::super::forge::{FORGE, KINDS, SECRET, pem};
use super::super::{Algorithm, KeyFault, Keys, Signer, SignerFault, from_base64, to_base64url};

const P256: &str = r#""kty":"EC","crv":"P-256",
    "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0""#;
const ED25519: &str =
    r#""kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo""#;
const OCT: &str = r#""kty":"oct","k":"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY""#;

fn names(content: &[u8]) -> Result<Vec<(String, Algorithm)>, KeyFault> {
    let mut keys = Keys::default();
    let added = keys.add("stem", content);
    let names: Vec<_> = keys
        .names()
        .map(|(kid, alg)| (kid.to_owned(), alg))
        .collect();
    assert_eq!(added.is_err(), names.is_empty());
    added.map(|()| names)
}

fn one(kid: &str, algorithm: Algorithm) -> Result<Vec<(String, Algorithm)>, KeyFault> {
    Ok(vec![(kid.to_owned(), algorithm)])
}

#[test]
fn secrets() {
    let hs256 = one("stem", Algorithm::Hs256);
    for secret in [
        SECRET,
        b"0123456789abcdef0123456789abcdef\n",
        b"0123456789abcdef0123456789abcdef\r\n",
        b"a passphrase of more than thirty-two bytes, with spaces",
        &[0xff; 32],
        // Random bytes that begin as DER does, but are of another length.
        &[&[0x30, 0x82, 0x01, 0x22][..], &[0xfe; 60]].concat(),
    ] {
        assert_eq!(names(secret), hs256);
    }
    for short in [
        &b""[..],
        b"\n",
        &SECRET[1..],
        b"0123456789abcdef0123456789abcde\n",
        &[0xff; 31],
    ] {
        assert_eq!(names(short), Err(KeyFault::ShortSecret));
    }
    let lines = b"0123456789abcdef\n0123456789abcdef\n";
    assert_eq!(names(lines), Err(KeyFault::NoSecret));
    let two_ends = b"0123456789abcdef0123456789abcdef\n\n";
    assert_eq!(names(two_ends), Err(KeyFault::NoSecret));
}

/// A public key in a form that is not PEM would be a secret that everybody knows.
#[test]
fn public_keys_that_stray_are_no_secrets() {
    for kind in [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Rs256] {
        let file = String::from_utf8(FORGE.file(kind)).unwrap();
        let base64: String = file.lines().filter(|line| !line.starts_with('-')).collect();
        let der = from_base64(&base64).unwrap();
        assert_eq!(names(&der), Err(KeyFault::NoSecret), "{kind:?} in DER");
        for text in [
            base64.clone(),
            format!("{base64}\n"),
            format!("-----{base64}-----"),
        ] {
            assert_eq!(names(text.as_bytes()), Err(KeyFault::NoSecret), "{text}");
        }
    }
    for line in [
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl a@b",
        "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTY a@b",
    ] {
        assert_eq!(names(line.as_bytes()), Err(KeyFault::NoSecret));
    }
}

#[test]
fn pem_files() {
    for kind in KINDS {
        assert_eq!(names(&FORGE.file(kind)), one("stem", kind));
    }
    let rsa = FORGE.file(Algorithm::Rs256);
    let twice = [rsa.clone(), rsa].concat();
    for (content, fault) in [
        (twice, KeyFault::OneInPem),
        (FORGE.private_file(Algorithm::Es256), KeyFault::Private),
        (FORGE.private_file(Algorithm::EdDsa), KeyFault::Private),
        (pem("RSA PRIVATE KEY", b"").into(), KeyFault::Private),
        (pem("EC PRIVATE KEY", b"").into(), KeyFault::Private),
        (pem("ENCRYPTED PRIVATE KEY", b"").into(), KeyFault::Private),
        (pem("CERTIFICATE", &[0x30, 0]).into(), KeyFault::Pem),
        (pem("PUBLIC KEY", b"").into(), KeyFault::Pem),
        (pem("PUBLIC KEY", &[0x30, 0]).into(), KeyFault::Kind),
        // 32 bytes are a key of Ed25519, but not in PEM.
        (pem("PUBLIC KEY", &[9; 32]).into(), KeyFault::Pem),
        (b"-----BEGIN PUBLIC KEY-----\n".to_vec(), KeyFault::Pem),
        (
            pem("PUBLIC KEY", &rsa_of(&[0xff; 128])).into(),
            KeyFault::RsaBits,
        ),
        (
            pem("RSA PUBLIC KEY", &rsa_of(&[0xff; 128])).into(),
            KeyFault::RsaBits,
        ),
    ] {
        assert_eq!(
            names(&content),
            Err(fault),
            "{}",
            String::from_utf8_lossy(&content)
        );
    }
    // On P-384.
    let p384 = "MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEqofKIr6LBTeOscce8yCtdG4dO2KLp5uYWfdB4IJUKjhVAvJdv1\
                UpbDpUXjhydgq3NhfeSpYmLG9dnpi/kpLcKfj0Hb0omhR86doxE7XwuMAKYLHOHX6BnXpDHXyQ6g5f";
    let p384 = from_base64(p384).unwrap();
    assert_eq!(
        names(pem("PUBLIC KEY", &p384).as_bytes()),
        Err(KeyFault::Kind)
    );
}

/// PKCS #1 of this modulus and 65,537.
fn rsa_of(modulus: &[u8]) -> Vec<u8> {
    let length = u8::try_from(modulus.len() + 1).unwrap();
    let content = [&[0x02, 0x81, length, 0][..], modulus, &[2, 3, 1, 0, 1]].concat();
    let length = u8::try_from(content.len()).unwrap();
    [&[0x30, 0x81, length][..], &content].concat()
}

#[test]
fn a_jwk_alone() {
    for (members, algorithm) in [
        (P256, Algorithm::Es256),
        (ED25519, Algorithm::EdDsa),
        (OCT, Algorithm::Hs256),
    ] {
        assert_eq!(
            names(format!("{{{members}}}").as_bytes()),
            one("stem", algorithm)
        );
        let alg = algorithm.name();
        let named = format!(
            r#"{{"kid":"k1","alg":"{alg}","use":"sig","key_ops":["sign","verify"],"x5t":1,
            {members}}}"#
        );
        assert_eq!(names(named.as_bytes()), one("k1", algorithm));
        for wrong in [
            r#""alg":"HS512""#,
            r#""alg":"none""#,
            r#""alg":"RS256""#,
            r#""use":"enc""#,
            r#""use":"""#,
            r#""key_ops":["sign"]"#,
            r#""key_ops":[]"#,
        ] {
            let jwk = format!("{{{members},{wrong}}}");
            assert_eq!(names(jwk.as_bytes()), Err(KeyFault::NoKey), "{jwk}");
        }
        for broken in [
            r#""alg":1"#,
            r#""use":null"#,
            r#""key_ops":"verify""#,
            r#""kid":7"#,
        ] {
            let jwk = format!("{{{members},{broken}}}");
            assert_eq!(names(jwk.as_bytes()), Err(KeyFault::Jwk { at: 1 }), "{jwk}");
        }
    }
    let private = format!(r#"{{{P256},"d":"AAAA"}}"#);
    assert_eq!(names(private.as_bytes()), Err(KeyFault::Private));
}

#[test]
fn broken_jwks() {
    let short = to_base64url(&SECRET[1..]);
    let modulus = to_base64url(&[0xff; 128]);
    let jwk = KeyFault::Jwk { at: 1 };
    for (text, fault) in [
        ("{}".to_owned(), jwk),
        ("[]".to_owned(), KeyFault::Json),
        ("{\"kty\":\"oct\",".to_owned(), KeyFault::Json),
        (r#"{"kty":"oct"}"#.to_owned(), jwk),
        (
            format!(r#"{{"kty":"oct","k":"{short}"}}"#),
            KeyFault::ShortSecret,
        ),
        (format!(r#"{{{OCT},"k":"AAAA"}}"#), jwk),
        (format!(r#"{{{OCT},"kty":"RSA"}}"#), jwk),
        (
            r#"{"kty":"EC","x":"AA","y":"AA"}"#.to_owned(),
            KeyFault::NoKey,
        ),
        (
            r#"{"kty":"EC","crv":"secp256k1"}"#.to_owned(),
            KeyFault::NoKey,
        ),
        (r#"{"kty":"EC","crv":"P-384"}"#.to_owned(), KeyFault::NoKey),
        (
            r#"{"kty":"OKP","crv":"X25519"}"#.to_owned(),
            KeyFault::NoKey,
        ),
        (
            r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#.to_owned(),
            jwk,
        ),
        // No point of the curve.
        (
            P256.replace("f83O", "f83P").replace("\"kty", "{\"kty") + "}",
            jwk,
        ),
        (
            P256.replace("f83O", "f83+").replace("\"kty", "{\"kty") + "}",
            jwk,
        ),
        (r#"{"kty":"OKP","crv":"Ed25519","x":"AA"}"#.to_owned(), jwk),
        (
            format!(r#"{{"kty":"RSA","n":"{modulus}","e":"AQAB"}}"#),
            KeyFault::RsaBits,
        ),
        (
            r#"{"kty":"RSA","n":"","e":"AQAB"}"#.to_owned(),
            KeyFault::RsaBits,
        ),
    ] {
        assert_eq!(names(text.as_bytes()), Err(fault), "{text}");
    }
    // An exponent of 1 leaves every message as it is.
    let modulus = to_base64url(&[0xff; 256]);
    for exponent in ["AQ", "", "AA"] {
        let text = format!(r#"{{"kty":"RSA","n":"{modulus}","e":"{exponent}"}}"#);
        assert!(names(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn jwk_sets() {
    let set = format!(
        r#"{{"keys":[{{"kid":"1",{P256}}},{{"kid":"e","use":"enc",{P256}}},{{"kty":"x"}},
        {{"kid":"2",{ED25519}}}]}}"#
    );
    let both = vec![
        ("1".to_owned(), Algorithm::Es256),
        ("2".to_owned(), Algorithm::EdDsa),
    ];
    assert_eq!(names(set.as_bytes()), Ok(both));
    let single = format!(r#"{{"keys":[{{{P256}}}]}}"#);
    assert_eq!(names(single.as_bytes()), one("stem", Algorithm::Es256));
    for (text, fault) in [
        (r#"{"keys":[]}"#.to_owned(), KeyFault::NoKey),
        (r#"{"keys":[{"kty":"x"}]}"#.to_owned(), KeyFault::NoKey),
        (r#"{"keys":{}}"#.to_owned(), KeyFault::Json),
        (r#"{"keys":null}"#.to_owned(), KeyFault::Json),
        (r#"{"keys":[1]}"#.to_owned(), KeyFault::Jwk { at: 1 }),
        (
            format!(r#"{{"keys":[{{"kid":"1",{P256}}},{{{P256}}}]}}"#),
            KeyFault::NoKid { at: 2 },
        ),
        (
            format!(r#"{{"keys":[{{"kid":"1",{P256}}},{{"kid":"1",{ED25519}}}]}}"#),
            KeyFault::KidTwice,
        ),
        (
            format!(
                r#"{{"keys":[{{"kid":"1",{P256}}},{{"kid":"2","kty":"OKP","crv":"Ed25519"}}]}}"#
            ),
            KeyFault::Jwk { at: 2 },
        ),
    ] {
        assert_eq!(names(text.as_bytes()), Err(fault), "{text}");
    }
}

#[test]
fn several_files() {
    let mut keys = Keys::default();
    keys.add("a", SECRET).unwrap();
    assert_eq!(
        keys.add("a", &FORGE.file(Algorithm::EdDsa)),
        Err(KeyFault::KidTwice)
    );
    keys.add("b", SECRET).unwrap();
    for more in 2..64 {
        keys.add(&more.to_string(), SECRET).unwrap();
    }
    assert_eq!(keys.add("c", SECRET), Err(KeyFault::TooMany));
    assert_eq!(keys.names().count(), 64);
}

#[test]
fn what_signs() {
    let kind = |content: &[u8]| Signer::new(None, content).map(|signer| signer.algorithm());
    assert_eq!(kind(SECRET), Ok(Algorithm::Hs256));
    for algorithm in [Algorithm::Es256, Algorithm::EdDsa] {
        assert_eq!(kind(&FORGE.private_file(algorithm)), Ok(algorithm));
        assert_eq!(kind(&FORGE.file(algorithm)), Err(SignerFault::Public));
    }
    for content in ["{}", &pem("EC PRIVATE KEY", b""), &pem("PRIVATE KEY", b"")] {
        assert_eq!(kind(content.as_bytes()), Err(SignerFault::Kind));
    }
    let short = Err(SignerFault::Key(KeyFault::ShortSecret));
    assert_eq!(kind(b"short"), short);
}
