//! Webhooks: how they are typed, and what they need.
//!
//! Owns the form of a URL. Looks up no name: where it leads is found out when it is called.

use std::net::IpAddr;
use std::path::PathBuf;

use ureq::http::Uri;
use ureq::http::uri::Authority;

use super::{RoleName, value};
use crate::reach::{Reach, Whose, whose};
use crate::wire::User;
use crate::wire::request::query_pairs;

/// Most webhooks of a node, each with a thread.
const WEBHOOKS_MAX: usize = 16;
/// Longest URL in bytes.
const URL_BYTES_MAX: usize = 2_048;
/// What its query says that is not for the receiver.
const PREFIX: &str = "prefix";

/// A webhook, as it was typed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Webhook {
    /// As it was typed.
    typed: String,
    /// Where messages go: the same without the prefix.
    pub url: String,
    /// As much of it as may be logged: scheme, host and port.
    pub place: String,
    /// Users of other ids are not told of.
    pub prefix: String,
}

/// Where transitions are told, beside streams and nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WebhookConfig {
    /// Each of them; none: transitions cost nothing more.
    pub hooks: Vec<Webhook>,
    /// By what messages are signed: a file for each hook, or one for all.
    pub secret_files: Vec<PathBuf>,
    /// Whether they may lead into a network of one's own.
    pub private: bool,
    /// Most users whose state waits for one of them.
    pub queue_max: usize,
    /// Longest time for a message and its answer, in ms.
    pub timeout_ms: u64,
    /// Longest delay before a message is sent again, in ms.
    pub retry_ms_max: u64,
}

impl Default for WebhookConfig {
    fn default() -> WebhookConfig {
        WebhookConfig {
            hooks: Vec::new(),
            secret_files: Vec::new(),
            private: false,
            queue_max: 65_536,
            timeout_ms: 10_000,
            retry_ms_max: 60_000,
        }
    }
}

impl WebhookConfig {
    /// Whether there are any.
    pub fn are_on(&self) -> bool {
        !self.hooks.is_empty()
    }

    /// How far their requests may go.
    pub fn reach(&self) -> Reach {
        match self.private {
            true => Reach::WorldAndOwn,
            false => Reach::World,
        }
    }

    /// Whether any is called over TLS.
    pub(super) fn seal(&self) -> bool {
        self.hooks.iter().any(Webhook::seals)
    }

    pub(super) fn check(&self, role: RoleName, faults: &mut Vec<String>) {
        if role == RoleName::Realtime && self.are_on() {
            faults.push(
                "webhook is set, and a real-time node decides nothing that it could tell; set it \
                 at every presence node, or leave it out"
                    .into(),
            );
        }
        match (self.hooks.len(), self.secret_files.len()) {
            (0, 0) | (1.., 1) => {}
            (hooks, files) if hooks == files => {}
            (0, _) => faults.push(
                "webhook-secret-file is set, but no webhook; set --webhook, or leave it out".into(),
            ),
            (_, 0) => faults.push(
                "webhook-secret-file is not set, and a receiver must be able to tell who calls; \
                 make one with `(umask 077; echo whsec_$(openssl rand -base64 32) > hook.secret)`, \
                 give it to the receiver, and set --webhook-secret-file hook.secret"
                    .into(),
            ),
            (hooks, files) => faults.push(format!(
                "webhook-secret-file names {files} files for {hooks} webhooks; name one for each, \
                 in the order of the webhooks, or one for all"
            )),
        }
        for hook in &self.hooks {
            faults.extend(hook.fault(self.reach()));
        }
    }
}

impl Webhook {
    /// As it was typed: what tells it from others.
    pub fn typed(&self) -> &str {
        &self.typed
    }

    /// Whether it is called over TLS.
    pub fn seals(&self) -> bool {
        self.url.starts_with("https://")
    }

    /// Its `HOST:PORT`.
    pub fn authority(&self) -> String {
        let (port, authority) = match self.seals() {
            true => (443, self.place.strip_prefix("https://")),
            false => (80, self.place.strip_prefix("http://")),
        };
        let authority = authority.unwrap_or(&self.place);
        let named = authority.parse::<Authority>();
        match named.is_ok_and(|authority| authority.port().is_some()) {
            true => authority.to_owned(),
            false => format!("{authority}:{port}"),
        }
    }

    /// Why it can not be called, if that can be told without asking for its name.
    fn fault(&self, reach: Reach) -> Option<String> {
        let place = &self.place;
        if reach == Reach::World && !self.seals() {
            return Some(format!(
                "webhook has {place}: whoever is on the way would read who is online; call it at \
                 https://, or, if it is in a network of your own, set --webhook-private"
            ));
        }
        let uri: Uri = self.url.parse().ok()?;
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
        let address: IpAddr = host.parse().ok()?;
        if reach.allows(address, self.seals()) {
            return None;
        }
        Some(match whose(address) {
            Whose::Own => format!(
                "webhook has {place}, an address in a network of your own; if that is meant, set \
                 --webhook-private"
            ),
            Whose::Nobodys => {
                format!("webhook has {place}, an address at which no server can be; name another")
            }
            Whose::Worlds => format!(
                "webhook has {place}, which is not in a network of your own: whoever is on the way \
                 would read who is online; call it at https://"
            ),
        })
    }
}

/// Reads URLs between commas.
pub(super) fn parse(text: &str) -> Result<Vec<Webhook>, String> {
    let words = value::list(text);
    if words.len() > WEBHOOKS_MAX {
        return Err(format!(
            "has {} webhooks; at most {WEBHOOKS_MAX} are called",
            words.len()
        ));
    }
    let hooks = words.iter().map(|word| webhook(word));
    let hooks = hooks.collect::<Result<Vec<_>, String>>()?;
    for (at, hook) in hooks.iter().enumerate() {
        if hooks[..at].contains(hook) {
            return Err(format!("has the webhook at {} twice", hook.place));
        }
    }
    Ok(hooks)
}

fn webhook(word: &str) -> Result<Webhook, String> {
    let fault = |why: &str| Err(format!("has a webhook that {why}"));
    if word.len() > URL_BYTES_MAX {
        return fault("is longer than 2,048 bytes");
    }
    if word.contains('#') {
        return fault("has a #, which no server is ever sent; leave it and what is behind it out");
    }
    let Ok(uri) = word.parse::<Uri>() else {
        return fault("is no URL; write https://HOST/PATH, a comma in it as %2C");
    };
    let (Some(scheme @ ("http" | "https")), Some(authority)) = (uri.scheme_str(), uri.authority())
    else {
        return fault("is no http:// or https:// URL; write https://HOST/PATH");
    };
    if authority.as_str().contains('@') {
        return fault("names a user or a password; messages are signed, so leave it out");
    }
    if authority.host().is_empty() || authority.port_u16() == Some(0) {
        return fault("has no host, or port 0; write https://HOST/PATH");
    }
    let (mut prefix, mut theirs) = (None, Vec::new());
    for pair in uri.query().unwrap_or("").split('&') {
        match query_pairs(pair).next() {
            Some((name, value)) if *name == *PREFIX.as_bytes() => {
                let value = value.and_then(|value| String::from_utf8(value.into_owned()).ok());
                let value = value.filter(|value| User::from_text(value).is_ok());
                let Some(value) = value else {
                    return fault(
                        "has a prefix= that no id of a user begins with; write the beginning of \
                         ids, or leave it out for all users",
                    );
                };
                if prefix.replace(value).is_some() {
                    return fault("has prefix= twice; name the webhook once for each prefix");
                }
            }
            Some(_) => theirs.push(pair),
            None => {}
        }
    }
    let place = format!("{scheme}://{authority}");
    let query = match theirs.is_empty() {
        true => String::new(),
        false => format!("?{}", theirs.join("&")),
    };
    Ok(Webhook {
        url: format!("{place}{}{query}", uri.path()),
        typed: word.to_owned(),
        prefix: prefix.unwrap_or_default(),
        place,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, String> {
        let read = parse(text)?;
        Ok(read
            .into_iter()
            .map(|hook| (hook.url, hook.prefix))
            .collect())
    }

    #[test]
    fn the_prefix_is_taken_out_and_all_else_is_the_receivers() {
        for (text, url, prefix) in [
            ("https://a.example", "https://a.example/", ""),
            (
                "https://a.example/x?prefix=team-",
                "https://a.example/x",
                "team-",
            ),
            (
                "https://a.example:8443/x?k=%2C1&prefix=caf%C3%A9+&b",
                "https://a.example:8443/x?k=%2C1&b",
                "café ",
            ),
            (
                "http://[::1]:80/?my_prefix=1",
                "http://[::1]:80/?my_prefix=1",
                "",
            ),
        ] {
            assert_eq!(read(text), Ok(vec![(url.into(), prefix.into())]), "{text}");
        }
        let two = read("https://a/,https://a/?prefix=b").map(|hooks| hooks.len());
        assert_eq!((two, read("")), (Ok(2), Ok(vec![])));
    }

    #[test]
    fn where_they_are_called() {
        for (text, expected) in [
            ("https://a.example/x", "a.example:443"),
            ("http://a.example", "a.example:80"),
            ("https://a.example:8443/?k=1", "a.example:8443"),
            ("http://[::1]/", "[::1]:80"),
            ("https://[::1]:9/", "[::1]:9"),
        ] {
            assert_eq!(webhook(text).unwrap().authority(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_webhook_is_refused() {
        for (text, why) in [
            ("a.example/secret", "is no URL"),
            ("a.example", "is no http:// or https://"),
            ("ftp://a.example/secret", "is no http:// or https://"),
            ("https://a b/secret", "is no URL"),
            ("https://u:secret@a.example/", "names a user or a password"),
            ("https://a.example/secret#prefix=x", "has a #"),
            ("https://a.example:0/secret", "port 0"),
            ("https://a.example/?prefix=", "prefix= that no id"),
            ("https://a.example/?prefix=%ff", "prefix= that no id"),
            ("https://a.example/?prefix=a&prefix=b", "prefix= twice"),
            ("https://a.example/secret,https://a.example/secret", "twice"),
        ] {
            let refused = parse(text).unwrap_err();
            assert!(
                refused.contains(why) && !refused.contains("secret"),
                "{refused}"
            );
        }
        let long = format!("https://a.example/{}", "x".repeat(URL_BYTES_MAX));
        assert!(parse(&long).unwrap_err().contains("longer than"));
        let many = (0..=WEBHOOKS_MAX).map(|at| format!("https://a.example/{at}"));
        let many = many.collect::<Vec<_>>().join(",");
        assert!(parse(&many).unwrap_err().contains("at most 16"));
    }

    fn faults(url: &str, private: bool) -> Vec<String> {
        let config = WebhookConfig {
            hooks: parse(url).unwrap(),
            secret_files: vec!["a".into()],
            private,
            ..WebhookConfig::default()
        };
        let mut faults = Vec::new();
        config.check(RoleName::All, &mut faults);
        faults
    }

    #[test]
    fn addresses_of_ones_own_are_refused_unless_they_are_meant() {
        for (url, public, private) in [
            ("https://a.example/", None, None),
            ("https://1.1.1.1/", None, None),
            ("https://10.0.0.1/", Some("--webhook-private"), None),
            ("https://[fd00::1]/", Some("--webhook-private"), None),
            ("http://127.0.0.1/", Some("--webhook-private"), None),
            ("http://a.example/", Some("https://"), None),
            ("http://1.1.1.1/", Some("https://"), Some("https://")),
            (
                "https://169.254.169.254/",
                Some("no server"),
                Some("no server"),
            ),
            ("http://[fe80::1]/", Some("https://"), Some("no server")),
        ] {
            for (is_private, why) in [(false, public), (true, private)] {
                let faults = faults(url, is_private);
                assert_eq!(
                    faults.len(),
                    usize::from(why.is_some()),
                    "{url}: {faults:?}"
                );
                let says = |why: &str| faults[0].contains(why);
                assert!(why.is_none_or(says), "{url}: {faults:?}");
            }
        }
    }

    #[test]
    fn every_webhook_has_a_secret() {
        let faults = |hooks: &str, files: usize, role| {
            let config = WebhookConfig {
                hooks: parse(hooks).unwrap(),
                secret_files: vec!["a".into(); files],
                ..WebhookConfig::default()
            };
            let mut faults = Vec::new();
            config.check(role, &mut faults);
            faults
        };
        let two = "https://a/1,https://a/2";
        for (hooks, files, why) in [
            ("", 0, None),
            (two, 1, None),
            (two, 2, None),
            (two, 0, Some("is not set")),
            (two, 3, Some("3 files for 2 webhooks")),
            ("", 1, Some("but no webhook")),
        ] {
            let faults = faults(hooks, files, RoleName::Presence);
            assert_eq!(faults.len(), usize::from(why.is_some()), "{faults:?}");
            assert!(why.is_none_or(|why| faults[0].contains(why)), "{faults:?}");
        }
        let realtime = faults(two, 1, RoleName::Realtime);
        assert!(realtime[0].contains("decides nothing"), "{realtime:?}");
    }
}
