//! The browser as an attacker: what a page may have its visitor's browser do here.
//!
//! Owns two rules, in front of the table of calls. Until users prove who they are, who reaches the
//! port may do anything, and every page's script reaches what its visitor's machine reaches. So a
//! page of another origin does nothing here unless it is listed. A name under which the server is
//! not known is nobody's: a page whose name is pointed at this machine (DNS rebinding) is of the
//! same origin as what it asks. Who is no browser says nothing of origins, and is not concerned.
//! Where operators come in, and for what a session does, no list counts.

use super::table::Row;
use crate::engine::settings::{Settings, octets};
use crate::wire::request::{Head, Method, query_pairs};
use crate::wire::response::{Answer, problems};

/// Most of what a peer said that is repeated to it, in characters.
const QUOTED_CHARS_MAX: usize = 100;

/// Names that nobody outside can have: RFC 6761 and RFC 6762; `.internal` is ICANN's.
const PRIVATE_SUFFIXES: [&str; 3] = [".localhost", ".local", ".internal"];

/// Whether the request is for a name of this server.
///
/// Err: it is for another.
pub(super) fn check_host(settings: &Settings, head: &Head<'_>) -> Result<(), Answer> {
    // HTTP/1.0 may leave it out, and a browser never does.
    let host = head.host.unwrap_or("");
    if host.is_empty() || is_own_name(settings, name_of(host)) {
        return Ok(());
    }
    let detail = format!(
        "this server is not known as {}; if it should be, list that name with --host",
        quoted(host)
    );
    Err(Answer::problem(problems::WRONG_HOST, &detail))
}

/// Which pages may do what a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pages {
    /// Any may read, own and listed ones may act.
    Listed,
    /// Own and listed ones: the browser proves by itself who asks, as it would for any page.
    ListedToRead,
    /// The node's own.
    Own,
}

/// Whether a page may do what the request does, if a page sent it.
///
/// Err: it is of another origin, which is not listed.
pub(super) fn check_origin(
    settings: &Settings,
    row: &Row,
    head: &Head<'_>,
    pages: Pages,
) -> Result<(), Answer> {
    let concerns = match pages {
        Pages::Listed => acts(row, head),
        Pages::ListedToRead => true,
        // Links of other pages lead to the dashboard.
        Pages::Own => !row.is_plain(),
    };
    let listed = |origin| pages != Pages::Own && settings.lists(origin);
    if !concerns || head.origin.is_some_and(listed) {
        return Ok(());
    }
    let same_origin = match (head.fetch_site, head.origin) {
        // The browser's word, which no script can set: its own page, or the visitor's own hand.
        (Some(site), _) => matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => is_of_host(origin, head.host.unwrap_or("")),
        (None, None) => true,
    };
    if same_origin {
        return Ok(());
    }
    let detail = match head.origin {
        _ if pages == Pages::Own => {
            "operators' calls are for no page but the node's own".to_owned()
        }
        Some(origin) => format!(
            "pages of {} may not do this; to let them, list that origin with --cors-origins",
            quoted(origin)
        ),
        None => "pages of other origins may not do this; to let them, list their origin with \
                 --cors-origins"
            .to_owned(),
    };
    Err(Answer::problem(problems::FOREIGN_ORIGIN, &detail))
}

/// Whether a request changes anything: all but reading, and a stream that has a holder.
fn acts(row: &Row, head: &Head<'_>) -> bool {
    match head.method {
        Method::Get | Method::Head => {
            let query = head.query.unwrap_or("");
            row.begins_stream() && query_pairs(query).any(|(name, _)| &*name == b"user")
        }
        _ => true,
    }
}

fn is_own_name(settings: &Settings, name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.starts_with('[') || octets(name).is_some() {
        return true;
    }
    // An escape is no name that a browser would send.
    let private = !name.contains('.')
        || PRIVATE_SUFFIXES
            .iter()
            .any(|suffix| ends_with(name, suffix));
    (private && !name.contains('%')) || settings.host.iter().any(|listed| matches(listed, name))
}

/// Whether `name` is the listed one, or of `*.example.com`, or any.
fn matches(listed: &str, name: &str) -> bool {
    match listed.strip_prefix('*') {
        Some(suffix) => ends_with(name, suffix),
        None => listed.eq_ignore_ascii_case(name),
    }
}

fn ends_with(name: &str, suffix: &str) -> bool {
    let at = name.len().checked_sub(suffix.len());
    at.and_then(|at| name.get(at..))
        .is_some_and(|end| end.eq_ignore_ascii_case(suffix))
}

/// `host` of `host:port`.
fn name_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        // Of `[::1]` the last colon is the address's own.
        Some((name, port)) if !port.contains(']') => name,
        _ => authority,
    }
}

/// Whether an origin's host and port are those that a request was sent to. The port that goes
/// without saying is the one of the origin's scheme: a proxy may have taken TLS off.
fn is_of_host(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else {
        return false;
    };
    let default = match scheme {
        "https" => ":443",
        _ => ":80",
    };
    strip(authority, default).eq_ignore_ascii_case(strip(host, default))
}

fn strip<'a>(authority: &'a str, port: &str) -> &'a str {
    authority.strip_suffix(port).unwrap_or(authority)
}

/// What a peer said, cut.
fn quoted(text: &str) -> String {
    let cut: String = text.chars().take(QUOTED_CHARS_MAX).collect();
    format!("{cut:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_hosts() {
        for (authority, name) in [
            ("a", "a"),
            ("a:80", "a"),
            ("a.b.:80", "a.b."),
            ("127.0.0.1:8080", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[::1]:80", "[::1]"),
        ] {
            assert_eq!(name_of(authority), name);
        }
    }

    #[test]
    fn own_names() {
        let settings = Settings {
            host: vec!["app.example.com".into(), "*.fleet.example".into()],
            ..Settings::default()
        };
        for name in [
            "127.0.0.1",
            "192.0.2.7",
            "[2001:db8::1]",
            "greendot",
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "nas.local",
            "db.eu.Internal",
            "app.example.com",
            "APP.example.com.",
            "a.b.fleet.example",
        ] {
            assert!(is_own_name(&settings, name), "{name}");
        }
        for name in [
            "evil.example",
            "app.example.com.evil.example",
            "example.com",
            "fleet.example",
            "notfleet.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.notlocal",
            "a%2eb",
        ] {
            assert!(!is_own_name(&settings, name), "{name}");
        }
        let any = Settings {
            host: vec!["*".into()],
            ..Settings::default()
        };
        assert!(is_own_name(&any, "evil.example"));
    }

    #[test]
    fn origins_of_hosts() {
        for (origin, host) in [
            ("http://a", "a"),
            ("http://a", "a:80"),
            ("http://a:80", "A"),
            ("https://a", "a:443"),
            ("https://a", "a"),
            ("http://a:8080", "a:8080"),
            ("http://[::1]:8080", "[::1]:8080"),
        ] {
            assert!(is_of_host(origin, host), "{origin} {host}");
        }
        for (origin, host) in [
            ("null", "a"),
            ("", "a"),
            ("a", "a"),
            ("http://a", "b"),
            ("http://a", "a:8080"),
            ("http://a", "a:443"),
            ("https://a", "a:80"),
            ("http://a:8080", "a"),
            ("http://a", ""),
        ] {
            assert!(!is_of_host(origin, host), "{origin} {host}");
        }
    }
}
