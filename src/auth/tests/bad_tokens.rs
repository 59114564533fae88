//! What must never be accepted, by key type: RFC 8725, and what libraries were found to take.

use super::super::forge::{message, sign_with};
use super::super::{TOKEN_BYTES_MAX, to_base64url};
use super::*;

/// Header and claims as written, well signed.
#[rustfmt::skip]
const WELL_SIGNED: &[(&str, &str, Refusal)] = &[
    // The header brings along a key, or changes what the rest means.
    (r#"{"alg":"ALG","jku":"https://evil.example/keys"}"#, CLAIMS, Refusal::Header),
    (r#"{"alg":"ALG","x5u":"https://evil.example/key"}"#, CLAIMS, Refusal::Header),
    (r#"{"alg":"ALG","jwk":{"kty":"oct","k":"AAAA"}}"#, CLAIMS, Refusal::Header),
    (r#"{"alg":"ALG","x5c":["AAAA"]}"#, CLAIMS, Refusal::Header),
    (r#"{"alg":"ALG","crit":["exp"],"exp":1}"#, CLAIMS, Refusal::Header),
    (r#"{"alg":"ALG","crit":[]}"#, CLAIMS, Refusal::Header),
    (r#"{"alg":"ALG","b64":false,"crit":["b64"]}"#, CLAIMS, Refusal::Header),
    (r#"{"alg":"ALG","zip":"DEF"}"#, CLAIMS, Refusal::Header),
    (r#"{"alg":"ALG","cty":"JWT"}"#, CLAIMS, Refusal::Header),
    (r#"{"alg":"ALG","jku":null}"#, CLAIMS, Refusal::Header),
    (r#"{"alg":"ALG","\u006aku":""}"#, CLAIMS, Refusal::Header),
    // It is no header.
    (r#"{"alg":"ALG","alg":"ALG"}"#, CLAIMS, Refusal::Header),
    (r#"{"alg":"none","alg":"ALG"}"#, CLAIMS, Refusal::Header),
    (r#"{"alg":"ALG","kid":"app","kid":"app"}"#, CLAIMS, Refusal::Header),
    (r#"{"alg":"ALG","kid":1}"#, CLAIMS, Refusal::Header),
    (r#"{"alg":"ALG","kid":null}"#, CLAIMS, Refusal::Header),
    (r#"{"alg":["ALG"]}"#, CLAIMS, Refusal::Header),
    (r#"["ALG"]"#, CLAIMS, Refusal::Header),
    (r#""ALG""#, CLAIMS, Refusal::Header),
    ("", CLAIMS, Refusal::Header),
    (r#"{"alg":"ALG"}{}"#, CLAIMS, Refusal::Header),
    // It is of another type.
    (r#"{"alg":"ALG","typ":"logout+jwt"}"#, CLAIMS, Refusal::Type),
    (r#"{"alg":"ALG","typ":"dpop+jwt"}"#, CLAIMS, Refusal::Type),
    (r#"{"alg":"ALG","typ":""}"#, CLAIMS, Refusal::Type),
    // Its key is none of ours, or for something else.
    (r#"{"alg":"ALG","kid":""}"#, CLAIMS, Refusal::Key),
    (r#"{"alg":"ALG","kid":"../app"}"#, CLAIMS, Refusal::Key),
    (r#"{"alg":"ALG","kid":"APP"}"#, CLAIMS, Refusal::Key),
    (r#"{}"#, CLAIMS, Refusal::Algorithm),
    (r#"{"alg":"none"}"#, CLAIMS, Refusal::Algorithm),
    (r#"{"alg":"None"}"#, CLAIMS, Refusal::Algorithm),
    (r#"{"alg":"NONE"}"#, CLAIMS, Refusal::Algorithm),
    (r#"{"alg":"nOnE"}"#, CLAIMS, Refusal::Algorithm),
    (r#"{"alg":""}"#, CLAIMS, Refusal::Algorithm),
    (r#"{"alg":"HS512"}"#, CLAIMS, Refusal::Algorithm),
    (r#"{"alg":"ES256K"}"#, CLAIMS, Refusal::Algorithm),
    (r#"{"alg":"Ed25519"}"#, CLAIMS, Refusal::Algorithm),
    (r#"{"alg":"PS256"}"#, CLAIMS, Refusal::Algorithm),
    (r#"{"alg":"ALG "}"#, CLAIMS, Refusal::Algorithm),
    // It is no object of claims, or one that two readers read differently.
    (HEADER, "", Refusal::Claims),
    (HEADER, "null", Refusal::Claims),
    (HEADER, r#"["alice",1764013200]"#, Refusal::Claims),
    (HEADER, r#"{"sub":"alice","exp":1764013200}}"#, Refusal::Claims),
    (HEADER, r#"{"sub":"alice","sub":"bob","exp":1764013200}"#, Refusal::Claims),
    (HEADER, r#"{"sub":"alice","exp":1,"exp":1764013200}"#, Refusal::Claims),
    (HEADER, r#"{"sub":"alice","exp":1764013200,"greendot":{},"greendot":{}}"#, Refusal::Claims),
    (HEADER, "{\"sub\":\"alice\",\"exp\":1764013200,\u{feff}}", Refusal::Claims),
    // Times.
    (HEADER, r#"{"sub":"alice"}"#, Refusal::NoExpiry),
    (HEADER, r#"{"sub":"alice","exp":"1764013200"}"#, Refusal::Claims),
    (HEADER, r#"{"sub":"alice","exp":1764013200.5}"#, Refusal::Claims),
    (HEADER, r#"{"sub":"alice","exp":1.7640132e9}"#, Refusal::Claims),
    (HEADER, r#"{"sub":"alice","exp":-1}"#, Refusal::Claims),
    (HEADER, r#"{"sub":"alice","exp":null}"#, Refusal::Claims),
    (HEADER, r#"{"sub":"alice","exp":true}"#, Refusal::Claims),
    (HEADER, r#"{"sub":"alice","exp":100000000000000000000000}"#, Refusal::Claims),
    (HEADER, r#"{"sub":"alice","exp":18446744073709551615}"#, Refusal::LongLived),
    (HEADER, r#"{"sub":"alice","exp":0}"#, Refusal::Expired),
    (HEADER, r#"{"sub":"alice","exp":1764009600}"#, Refusal::Expired),
    (HEADER, r#"{"sub":"alice","exp":1764096001}"#, Refusal::LongLived),
    (HEADER, r#"{"sub":"alice","exp":1764013200,"nbf":1764009611}"#, Refusal::Early),
    (HEADER, r#"{"sub":"alice","exp":1764013200,"iat":1764009611}"#, Refusal::Early),
    (HEADER, r#"{"sub":"alice","exp":1764013200,"nbf":"0"}"#, Refusal::Claims),
    (HEADER, r#"{"sub":"alice","exp":1764013200,"nbf":null}"#, Refusal::Claims),
    (HEADER, r#"{"sub":"alice","exp":1764013200,"iat":0.5}"#, Refusal::Claims),
    // Who.
    (HEADER, r#"{"exp":1764013200}"#, Refusal::Subject),
    (HEADER, r#"{"sub":"","exp":1764013200}"#, Refusal::Subject),
    (HEADER, r#"{"sub":null,"exp":1764013200}"#, Refusal::Subject),
    (HEADER, r#"{"sub":7,"exp":1764013200}"#, Refusal::Subject),
    (HEADER, r#"{"sub":["alice"],"exp":1764013200}"#, Refusal::Subject),
    (HEADER, r#"{"sub":"alice\u0000","exp":1764013200}"#, Refusal::Subject),
    (HEADER, r#"{"sub":"alice\u0085","exp":1764013200}"#, Refusal::Subject),
    (HEADER, r#"{"sub":"\ud83d","exp":1764013200}"#, Refusal::Subject),
    // For whom, and what.
    (HEADER, r#"{"sub":"alice","exp":1764013200,"aud":"another service"}"#, Refusal::Audience),
    (HEADER, r#"{"sub":"alice","exp":1764013200,"aud":[]}"#, Refusal::Audience),
    (HEADER, r#"{"sub":"alice","exp":1764013200,"greendot":{"watc":["*"]}}"#, Refusal::Grant),
    (HEADER, r#"{"sub":"alice","exp":1764013200,"greendot":[["*"]]}"#, Refusal::Grant),
    (HEADER, r#"{"sub":"alice","exp":1764013200,"greendot":null}"#, Refusal::Grant),
];

#[test]
fn what_is_well_signed_is_judged() {
    assert!(WELL_SIGNED.len() >= 60);
    for kind in KINDS {
        let rules = FORGE.rules(kind);
        for (header, claims, refusal) in WELL_SIGNED {
            let token = FORGE.token(kind, header, claims);
            assert_eq!(
                verify(&rules, &token),
                Err(*refusal),
                "{kind:?} {header} {claims}"
            );
        }
    }
}

#[test]
fn an_id_that_is_too_long() {
    for (length, expected) in [(128, Ok("x".repeat(128))), (129, Err(Refusal::Subject))] {
        let claims = format!(r#"{{"sub":"{}","exp":1764013200}}"#, "x".repeat(length));
        let token = FORGE.token(Algorithm::Hs256, HEADER, &claims);
        assert_eq!(verify(&FORGE.rules(Algorithm::Hs256), &token), expected);
    }
}

#[test]
fn what_is_cut_or_written_in_another_way() {
    for kind in KINDS {
        let rules = FORGE.rules(kind);
        let good = FORGE.token(kind, HEADER, CLAIMS);
        let [header, claims, signature] = parts(&good);
        let bytes = FORGE.sign(kind, message(kind, HEADER, CLAIMS).as_bytes());
        let refused = [
            (String::new(), Refusal::Form),
            (header.to_owned(), Refusal::Form),
            (format!("{header}.{claims}"), Refusal::Form),
            (format!("{header}.{claims}."), Refusal::Signature),
            (format!("{header}..{signature}"), Refusal::Signature),
            (format!(".{claims}.{signature}"), Refusal::Header),
            ("..".to_owned(), Refusal::Header),
            (format!("{good}."), Refusal::Form),
            (format!("{good}.{signature}"), Refusal::Form),
            // As many parts as an encrypted one has.
            (
                format!("{header}.{claims}.{claims}.{claims}.{signature}"),
                Refusal::Form,
            ),
            (format!("{header}=.{claims}.{signature}"), Refusal::Form),
            (format!("{header}.{claims}=.{signature}"), Refusal::Form),
            (format!("{good}="), Refusal::Form),
            (format!("{good}=="), Refusal::Form),
            (format!("{good}\n"), Refusal::Form),
            (format!(" {good}"), Refusal::Form),
            (format!("Bearer {good}"), Refusal::Form),
            (format!("{header}.{claims}.{signature}+/"), Refusal::Form),
            (format!("{header}.{claims}.é"), Refusal::Form),
            (
                format!("{header}.{claims}.{}", to_base64url(&bytes[1..])),
                Refusal::Signature,
            ),
            (
                format!(
                    "{header}.{claims}.{}",
                    to_base64url(&[&bytes[..], &[0]].concat())
                ),
                Refusal::Signature,
            ),
            (
                format!("{header}.{claims}.{}", to_base64url(&[0; 32])),
                Refusal::Signature,
            ),
            // As of r = s = 0.
            (
                format!("{header}.{claims}.{}", to_base64url(&[0; 64])),
                Refusal::Signature,
            ),
            (
                format!("{header}.{claims}.{}", to_base64url(&[0; 256])),
                Refusal::Signature,
            ),
            (
                format!("{header}.{claims}.{}", to_base64url(&[0xff; 64])),
                Refusal::Signature,
            ),
            ("a".repeat(TOKEN_BYTES_MAX + 1), Refusal::TooLong),
            ("a".repeat(TOKEN_BYTES_MAX), Refusal::Form),
        ];
        for (token, refusal) in &refused {
            assert_eq!(verify(&rules, token), Err(*refusal), "{kind:?} {token}");
        }
        let invalid = rules.verify(b"\xff.\xff.\xff", NOW);
        assert_eq!(invalid, Err(Refusal::Form));
        assert_eq!(verify(&rules, &good), Ok("alice".into()));
    }
}

#[test]
fn loose_last_bits_are_no_second_way_to_write_a_token() {
    for kind in KINDS {
        let rules = FORGE.rules(kind);
        let good = FORGE.token(kind, HEADER, CLAIMS);
        let last = good.len() - 1;
        for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".chars() {
            let other = format!("{}{letter}", &good[..last]);
            assert_eq!(
                verify(&rules, &other).is_ok(),
                other == good,
                "{kind:?} {letter}"
            );
        }
    }
}

#[test]
fn a_letter_changed_anywhere() {
    for kind in [Algorithm::Hs256, Algorithm::EdDsa] {
        let rules = FORGE.rules(kind);
        let good = FORGE.token(kind, HEADER, CLAIMS);
        for at in 0..good.len() {
            let mut other = good.clone().into_bytes();
            other[at] = if other[at] == b'A' { b'B' } else { b'A' };
            assert!(rules.verify(&other, NOW).is_err(), "{kind:?} {at}");
        }
    }
}

#[test]
fn somebody_elses_signature() {
    let stranger = stranger();
    for kind in [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Rs256] {
        let token = stranger.token(kind, HEADER, CLAIMS);
        assert_eq!(verify(&FORGE.rules(kind), &token), Err(Refusal::Signature));
    }
    let message = message(Algorithm::Hs256, HEADER, CLAIMS);
    let signature = sign_with(b"another secret, of thirty-two by", message.as_bytes());
    let token = format!("{message}.{}", to_base64url(&signature));
    let refused = verify(&FORGE.rules(Algorithm::Hs256), &token);
    assert_eq!(refused, Err(Refusal::Signature));
}

#[test]
fn other_claims_under_a_good_signature() {
    for kind in KINDS {
        let good = FORGE.token(kind, HEADER, CLAIMS);
        let [header, _, signature] = parts(&good);
        let claims = to_base64url(br#"{"sub":"mallory","exp":1764013200}"#);
        let token = format!("{header}.{claims}.{signature}");
        assert_eq!(verify(&FORGE.rules(kind), &token), Err(Refusal::Signature));
    }
}

/// The public key is known to all: used as a secret, anybody could sign (CVE-2015-9235).
#[test]
fn a_public_key_is_nobodys_secret() {
    let message = message(Algorithm::Hs256, HEADER, CLAIMS);
    for kind in [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Rs256] {
        let file = FORGE.file(kind);
        let trimmed = file.trim_ascii_end();
        for secret in [&file[..], trimmed] {
            let signature = sign_with(secret, message.as_bytes());
            let token = format!("{message}.{}", to_base64url(&signature));
            assert_eq!(verify(&FORGE.rules(kind), &token), Err(Refusal::Algorithm));
        }
    }
}

/// ES256 has its two numbers side by side; DER is how others write them.
#[test]
fn a_signature_in_der() {
    let message = message(Algorithm::Es256, HEADER, CLAIMS);
    let signature = FORGE.sign(Algorithm::Es256, message.as_bytes());
    let number = |bytes: &[u8]| {
        let mut der = vec![0x02, 33, 0];
        der.extend_from_slice(bytes);
        der
    };
    let (r, s) = signature.split_at(32);
    let der = [&[0x30, 70][..], &number(r), &number(s)].concat();
    let token = format!("{message}.{}", to_base64url(&der));
    let refused = verify(&FORGE.rules(Algorithm::Es256), &token);
    assert_eq!(refused, Err(Refusal::Signature));
}

fn parts(token: &str) -> [&str; 3] {
    token.split('.').collect::<Vec<_>>().try_into().unwrap()
}
