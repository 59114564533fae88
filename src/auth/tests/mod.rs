//! Tokens and key files, by inputs and exact outputs.

mod bad_tokens;
mod key_files;
mod services;
mod vectors;

use super::forge::{FORGE, Forge, KINDS, NOW, rules};
use super::{Algorithm, Claims, Keys, LastActive, Refusal, Rules, Signer};
use crate::time::Unix;
use crate::wire::User;

const HEADER: &str = r#"{"alg":"ALG","typ":"JWT"}"#;
const CLAIMS: &str = r#"{"sub":"alice","exp":1764013200}"#;

fn verify(rules: &Rules, token: &str) -> Result<String, Refusal> {
    let grant = rules.verify(token.as_bytes(), NOW)?;
    Ok(grant.user.as_str().to_owned())
}

#[test]
fn a_good_token_of_each_kind() {
    for kind in KINDS {
        let rules = FORGE.rules(kind);
        for header in [
            HEADER,
            r#"{"alg":"ALG"}"#,
            r#"{"kid":"app","alg":"ALG","typ":"at+jwt","x5t":"a","nonce":{"a":[1]}}"#,
            r#"{"alg":"ALG","typ":"application/JWT"}"#,
            r#" {"\u0061lg" : "ALG"} "#,
        ] {
            let token = FORGE.token(kind, header, CLAIMS);
            assert_eq!(
                verify(&rules, &token),
                Ok("alice".into()),
                "{kind:?} {header}"
            );
        }
        let claims = r#"{"sub":"\u00e9","exp":1764096000,"nbf":1764009610,"iat":1764009610,
            "iss":"anybody","jti":"7","roles":["a"],"greendot":{"watch":["bob"],
            "last_active":"minutes","publish":false}}"#;
        let grant = rules
            .verify(FORGE.token(kind, HEADER, claims).as_bytes(), NOW)
            .unwrap();
        assert_eq!(grant.user.as_str(), "é");
        assert_eq!(grant.expires, Unix::from_ms(1_764_096_000_000));
        assert_eq!(
            (grant.last_active, grant.publish),
            (LastActive::Minutes, false)
        );
        let may = ["é", "bob", "carol"].map(|user| grant.may_watch(User::from_text(user).unwrap()));
        assert_eq!(may, [true, true, false]);
    }
}

#[test]
fn a_token_ends_when_it_says() {
    let rules = FORGE.rules(Algorithm::Hs256);
    let token = FORGE.token(Algorithm::Hs256, HEADER, CLAIMS);
    let at = |ms| {
        rules
            .verify(token.as_bytes(), Unix::from_ms(ms))
            .map(|grant| grant.expires.ms())
    };
    assert_eq!(at(1_764_013_199_999), Ok(1_764_013_200_000));
    assert_eq!(at(1_764_013_200_000), Err(Refusal::Expired));
    assert_eq!(at(1_763_926_800_000), Ok(1_764_013_200_000));
    assert_eq!(at(1_763_926_799_999), Err(Refusal::LongLived));
}

#[test]
fn audience_and_issuer() {
    let kind = Algorithm::Hs256;
    let mut rules = FORGE.rules(kind);
    rules.audience = Some("greendot".into());
    rules.issuer = Some("https://app.example".into());
    let with = |claims: &str| {
        let claims = format!(r#"{{"sub":"alice","exp":1764013200{claims}}}"#);
        FORGE.token(kind, HEADER, &claims)
    };
    let iss = r#","iss":"https://app.example""#;
    for (claims, expected) in [
        (r#","aud":"greendot""#, Ok("alice".to_owned())),
        (r#","aud":["other","greendot"]"#, Ok("alice".to_owned())),
        (r#","aud":["other"]"#, Err(Refusal::Audience)),
        (r#","aud":[]"#, Err(Refusal::Audience)),
        (r#","aud":"Greendot""#, Err(Refusal::Audience)),
        ("", Err(Refusal::Audience)),
        (r#","aud":null"#, Err(Refusal::Claims)),
        (r#","aud":[1]"#, Err(Refusal::Claims)),
        (r#","aud":{"greendot":1}"#, Err(Refusal::Claims)),
    ] {
        assert_eq!(
            verify(&rules, &with(&format!("{claims}{iss}"))),
            expected,
            "{claims}"
        );
    }
    for iss in [
        "",
        r#","iss":"https://app.example/""#,
        r#","iss":["https://app.example"]"#,
        r#","iss":null"#,
    ] {
        let token = with(&format!(r#","aud":"greendot"{iss}"#));
        assert_eq!(verify(&rules, &token), Err(Refusal::Issuer), "{iss}");
    }
    let twice = with(&format!(r#","aud":"other","aud":"greendot"{iss}"#));
    assert_eq!(verify(&rules, &twice), Err(Refusal::Claims));
}

#[test]
fn a_token_names_its_key_where_there_are_several() {
    let mut keys = Keys::default();
    for kind in KINDS {
        keys.add(kind.name(), &FORGE.file(kind)).unwrap();
    }
    let rules = rules(keys);
    for kind in KINDS {
        let named = FORGE.token(kind, r#"{"alg":"ALG","kid":"ALG"}"#, CLAIMS);
        assert_eq!(verify(&rules, &named), Ok("alice".into()));
        let unnamed = FORGE.token(kind, HEADER, CLAIMS);
        assert_eq!(
            verify(&rules, &unnamed),
            Err(Refusal::Key),
            "never are all tried"
        );
        let other = KINDS[(kind as usize + 1) % 4].name();
        let strange = format!(r#"{{"alg":"ALG","kid":"{other}"}}"#);
        let strange = FORGE.token(kind, &strange, CLAIMS);
        assert_eq!(verify(&rules, &strange), Err(Refusal::Algorithm));
    }
    assert_eq!(
        format!("{:?}", rules.keys),
        r#"[("HS256", Hs256), ("ES256", Es256), ("EdDSA", EdDsa), ("RS256", Rs256)]"#
    );
}

#[test]
fn what_is_made_here_is_taken_here() {
    let watch = ["team-*".to_owned(), "bob\u{85}\"".to_owned()];
    for kind in [Algorithm::Hs256, Algorithm::Es256, Algorithm::EdDsa] {
        let signer = Signer::new(Some("app".into()), &FORGE.private_file(kind)).unwrap();
        assert_eq!(signer.algorithm(), kind);
        let mut claims = Claims {
            user: "alice",
            issued: NOW,
            expires: NOW.plus_ms(3_600_000),
            audience: Some("greendot"),
            issuer: Some("me"),
            id: None,
            watch: Some(&watch[..1]),
            last_active: LastActive::None,
            publish: false,
        };
        let mut rules = FORGE.rules(kind);
        rules.audience = Some("greendot".into());
        rules.issuer = Some("me".into());
        let grant = rules
            .verify(signer.token(&claims).unwrap().as_bytes(), NOW)
            .unwrap();
        assert_eq!(
            (grant.user.as_str(), grant.expires),
            ("alice", claims.expires)
        );
        assert_eq!(
            (grant.last_active, grant.publish),
            (LastActive::None, false)
        );
        assert!(grant.may_watch(User::from_text("team-a").unwrap()));
        claims.watch = Some(&watch);
        let token = signer.token(&claims).unwrap();
        assert_eq!(verify(&rules, &token), Err(Refusal::Grant));
    }
    let signer = Signer::new(None, super::forge::SECRET).unwrap();
    let claims = Claims {
        user: "alice",
        issued: NOW,
        expires: NOW.plus_ms(3_600_000),
        audience: None,
        issuer: None,
        id: None,
        watch: None,
        last_active: LastActive::Exact,
        publish: true,
    };
    assert_eq!(
        signer.token(&claims).unwrap(),
        FORGE.token(
            Algorithm::Hs256,
            HEADER,
            "{\"sub\":\"alice\",\"iat\":1764009600,\"exp\":1764013200,\
             \"greendot\":{\"last_active\":\"exact\",\"publish\":true}}",
        )
    );
}

#[test]
fn reasons_are_told_apart_and_explained() {
    let mut reasons = Refusal::ALL.map(|(refusal, reason)| {
        assert_eq!(refusal.reason(), reason);
        assert!(refusal.explain().starts_with("the token") || reason == "key");
        reason
    });
    reasons.sort_unstable();
    assert!(reasons.is_sorted_by(|one, next| one < next), "{reasons:?}");
}

/// Somebody else's key of the same kind.
fn stranger() -> Forge {
    Forge::new()
}
