//! `greendot token`: makes tokens for development, and says what a token grants or why it is
//! refused.

use std::io::Read;
use std::path::PathBuf;

use crate::auth::{Claims, LastActive, Rules, TOKEN_BYTES_MAX, WatchDefault};
use crate::key_files;
use crate::time::Unix;

/// What `greendot token` was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Options {
    /// Make one.
    Make(Make),
    /// Judge the one on standard input.
    Check(Check),
}

/// What a new token shall say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Make {
    /// `sub`.
    pub user: String,
    /// Whom its holder may watch; none leaves it to the node.
    pub watch: Option<Vec<String>>,
    /// For how long it is good, in ms.
    pub ttl_ms: u64,
    pub last_active: LastActive,
    /// Its holder only watches.
    pub viewer: bool,
    pub audience: Option<String>,
    pub issuer: Option<String>,
    /// `jti`.
    pub id: Option<String>,
    /// What it calls its key.
    pub kid: Option<String>,
    /// File with the key.
    pub key: PathBuf,
}

/// By what a token is judged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check {
    /// Files with the keys, as of `--jwt-keys`.
    pub keys: Vec<PathBuf>,
    pub audience: Option<String>,
    pub issuer: Option<String>,
}

/// What to print, with its final newline.
///
/// Errors: a sentence for the terminal: no key, or the token is refused, which is not quoted.
pub fn run(options: &Options, now: Unix, input: &mut dyn Read) -> Result<String, String> {
    match options {
        Options::Make(make) => made(make, now),
        Options::Check(check) => checked(check, now, input),
    }
}

fn made(make: &Make, now: Unix) -> Result<String, String> {
    let claims = Claims {
        user: &make.user,
        issued: now,
        expires: now.plus_ms(make.ttl_ms),
        audience: make.audience.as_deref(),
        issuer: make.issuer.as_deref(),
        id: make.id.as_deref(),
        watch: make.watch.as_deref(),
        last_active: make.last_active,
        publish: !make.viewer,
    };
    let refused = |refusal: crate::auth::Refusal| {
        let why = refusal.explain();
        format!("such a token would be refused everywhere: {why}")
    };
    claims.check().map_err(refused)?;
    let signer =
        key_files::signing(&make.key, make.kid.clone()).map_err(|fault| fault.to_string())?;
    let token = signer
        .token(&claims)
        .ok_or("the kernel gave no random bytes")?;
    Ok(token + "\n")
}

fn checked(check: &Check, now: Unix, input: &mut dyn Read) -> Result<String, String> {
    let rules = Rules {
        keys: key_files::verifying(&check.keys).map_err(|fault| fault.to_string())?,
        audience: check.audience.clone(),
        issuer: check.issuer.clone(),
        // How long a life a node takes is its own affair.
        ttl_max_ms: u64::MAX,
        watch_default: WatchDefault::Nobody,
    };
    let mut token = Vec::new();
    // One more than is taken, and the end of a line.
    let mut input = input.take(TOKEN_BYTES_MAX as u64 + 3);
    let read = input.read_to_end(&mut token);
    read.map_err(|error| format!("standard input: {error}"))?;
    let grant = rules
        .verify(token.trim_ascii(), now)
        .map_err(|refusal| format!("refused ({}): {}", refusal.reason(), refusal.explain()))?;
    let told = serde_json::json!({
        "user": grant.user.as_str(),
        "expires_in_ms": grant.expires.ms_since(now),
        "watch": grant.watch_entries(),
        "last_active": grant.last_active.name(),
        "publish": grant.publish,
    });
    Ok(format!("{told}\n"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOW: Unix = Unix::from_ms(1_764_009_600_000);

    fn key(dir: &tempfile::TempDir) -> PathBuf {
        let path = dir.path().join("app.secret");
        fs::write(&path, "0123456789abcdef0123456789abcdef\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn make(key: PathBuf) -> Make {
        Make {
            user: "alice".into(),
            watch: Some(vec!["team-*".into(), "bob".into()]),
            ttl_ms: 3_600_000,
            last_active: LastActive::Minutes,
            viewer: true,
            audience: None,
            issuer: Some("me".into()),
            id: None,
            kid: None,
            key,
        }
    }

    fn check(key: PathBuf, token: &str, now: Unix) -> Result<String, String> {
        let options = Options::Check(Check {
            keys: vec![key],
            audience: None,
            issuer: Some("me".into()),
        });
        run(&options, now, &mut token.as_bytes())
    }

    #[test]
    fn a_token_is_made_and_judged() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::Make(make(key(&dir)));
        let token = run(&options, NOW, &mut std::io::empty()).unwrap();
        assert!(token.ends_with('\n'));
        assert_eq!(
            check(key(&dir), &token, NOW),
            Ok(
                "{\"expires_in_ms\":3600000,\"last_active\":\"minutes\",\"publish\":false,\
                \"user\":\"alice\",\"watch\":[\"bob\",\"team-*\"]}\n"
                    .into()
            )
        );
        assert_eq!(
            check(key(&dir), &token, NOW.plus_ms(3_600_000)),
            Err("refused (expired): the token has expired".into())
        );
        let long = "a".repeat(10_000);
        assert_eq!(
            check(key(&dir), &long, NOW),
            Err("refused (too_long): the token is longer than 4096 bytes".into())
        );
    }

    #[test]
    fn what_no_node_would_take_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |make| run(&Options::Make(make), NOW, &mut std::io::empty()).unwrap_err();
        let mut nobody = make(key(&dir));
        nobody.user = String::new();
        assert_eq!(
            refused(nobody),
            "such a token would be refused everywhere: the token's sub is missing or not a user id"
        );
        let mut pattern = make(key(&dir));
        pattern.watch = Some(vec!["team-*-a".into()]);
        assert!(refused(pattern).contains("greendot claim"));
    }
}
