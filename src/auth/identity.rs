//! By what a node knows who calls.

use std::borrow::Cow;
use std::sync::Arc;

use super::{Rates, Rules, Tickets};
use crate::wire::request::{Head, query_pairs};

/// How a node that asks for tokens knows its users.
#[derive(Debug)]
pub struct Identity {
    /// By what tokens are verified.
    pub rules: Rules,
    /// The cookie that may hold one, if any may.
    pub cookie: Option<String>,
    /// Whether a token may stand in a URL.
    pub query: bool,
    /// The tickets that stand for tokens.
    pub tickets: Arc<Tickets>,
    /// How much the holders of tokens may ask.
    pub rates: Arc<Rates>,
}

/// What a request shows of its caller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Shown<'h> {
    /// A token, in a place that only who asks can fill.
    Token(Cow<'h, [u8]>),
    /// A token that a browser adds by itself, whoever's page asks.
    Cookie(&'h str),
    /// A ticket.
    Ticket(Cow<'h, [u8]>),
}

impl Identity {
    /// What a request shows: in its header, or else in its query if `opens` a stream, or else in
    /// the cookie.
    pub fn shown<'h>(&self, head: &Head<'h>, opens: bool) -> Option<Shown<'h>> {
        if let Some(header) = head.authorization {
            return bearer(header).map(|token| Shown::Token(token.as_bytes().into()));
        }
        let in_query = head.query.filter(|_| opens);
        in_query
            .and_then(|query| self.query_shows(query))
            .or_else(|| self.cookie_token(head).map(Shown::Cookie))
    }

    fn query_shows<'h>(&self, query: &'h str) -> Option<Shown<'h>> {
        query_pairs(query).find_map(|(name, value)| match &*name {
            b"ticket" => value.map(Shown::Ticket),
            b"token" if self.query => value.map(Shown::Token),
            _ => None,
        })
    }

    fn cookie_token<'h>(&self, head: &Head<'h>) -> Option<&'h str> {
        cookie(head, self.cookie.as_deref()?)
    }
}

/// What a request's cookie of this name holds.
pub fn cookie<'h>(head: &Head<'h>, name: &str) -> Option<&'h str> {
    let mut values = head.cookie?.split(';').filter_map(|pair| {
        let (key, value) = pair.trim().split_once('=')?;
        (key == name).then_some(value)
    });
    let value = values.next()?;
    // Which of two would count is what whoever planted the second one hopes for.
    values.next().is_none().then_some(value)
}

/// What stands behind `Bearer` (RFC 6750, section 2.1).
pub(super) fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Keys, WatchDefault};
    use crate::time::Now;
    use crate::wire::request::{Parsed, RequestLimits, parse_head};

    fn shown(cookie: Option<&str>, query: bool, target: &str, lines: &str) -> Option<String> {
        let identity = Identity {
            rules: Rules {
                keys: Keys::default(),
                audience: None,
                issuer: None,
                ttl_max_ms: 1,
                watch_default: WatchDefault::Nobody,
            },
            cookie: cookie.map(str::to_owned),
            query,
            tickets: Arc::new(Tickets::new(1, 0, Now::default())),
            rates: Arc::new(Rates::unlimited()),
        };
        let text = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let limits = RequestLimits {
            head_bytes_max: 4_096,
            header_count_max: 16,
            body_bytes_max: 0,
        };
        let Parsed::Head { head, .. } = parse_head(text.as_bytes(), &limits) else {
            panic!("{lines}")
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some(match identity.shown(&head, head.path == "/stream")? {
            Shown::Token(token) => text(&token),
            Shown::Cookie(token) => format!("cookie {token}"),
            Shown::Ticket(ticket) => format!("ticket {}", text(&ticket)),
        })
    }

    #[test]
    fn where_a_token_stands() {
        for (cookie, lines, expected) in [
            (None, "", None),
            (None, "Authorization: Bearer a.b.c\r\n", Some("a.b.c")),
            (None, "authorization: bEARER  a.b.c \r\n", Some("a.b.c")),
            (None, "Authorization: Bearer\r\n", None),
            (None, "Authorization: Bearer \r\n", None),
            (None, "Authorization: Basic YTpi\r\n", None),
            (None, "Cookie: t=a.b.c\r\n", None),
            (Some("t"), "Cookie: t=a.b.c\r\n", Some("cookie a.b.c")),
            (
                Some("t"),
                "Cookie: x=1; t=a.b.c; T=2\r\n",
                Some("cookie a.b.c"),
            ),
            (Some("t"), "Cookie: xt=a.b.c\r\n", None),
            (Some("t"), "Cookie: t\r\n", None),
            (Some("t"), "Cookie: t=a.b.c; t=d.e.f\r\n", None),
            // A header that is there counts, whatever it holds.
            (
                Some("t"),
                "Cookie: t=a\r\nAuthorization: Bearer b\r\n",
                Some("b"),
            ),
            (Some("t"), "Cookie: t=a\r\nAuthorization: Basic b\r\n", None),
        ] {
            let found = shown(cookie, false, "/", lines);
            assert_eq!(found.as_deref(), expected, "{cookie:?} {lines}");
        }
    }

    #[test]
    fn what_stands_in_a_streams_query() {
        let bearer = "Authorization: Bearer a.b.c\r\n";
        for (query, target, lines, expected) in [
            (false, "/stream?user=me&ticket=abc", "", Some("ticket abc")),
            (
                false,
                "/stream?ticket=a%62c&ticket=d",
                "",
                Some("ticket abc"),
            ),
            (false, "/stream?ticket=a%zz", "", None),
            (false, "/stream?token=a.b.c", "", None),
            (true, "/stream?token=a.b.c", "", Some("a.b.c")),
            (true, "/stream?ticket=abc", bearer, Some("a.b.c")),
            (
                true,
                "/stream?ticket=abc",
                "Cookie: t=d\r\n",
                Some("ticket abc"),
            ),
            (true, "/stream?x=1", "Cookie: t=d\r\n", Some("cookie d")),
            // Whatever else is called takes neither.
            (true, "/?ticket=abc&token=d", "", None),
        ] {
            let found = shown(Some("t"), query, target, lines);
            assert_eq!(found.as_deref(), expected, "{target} {lines}");
        }
    }
}
