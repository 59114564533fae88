//! By what a node knows who calls.

use super::Rules;
use crate::wire::request::Head;

/// How a node that asks for tokens knows its users.
#[derive(Debug)]
pub struct Identity {
    /// By what tokens are verified.
    pub rules: Rules,
    /// The cookie that may hold one, if any may.
    pub cookie: Option<String>,
    /// Whoever reaches the node may read its metrics: it listens for this machine alone.
    pub operators_open: bool,
}

impl Identity {
    /// The token that a request shows: in its header, or else in the cookie.
    pub fn token<'h>(&self, head: &Head<'h>) -> Option<&'h str> {
        match head.authorization {
            Some(header) => bearer(header),
            None => self.cookie_token(head),
        }
    }

    /// Whether the request's token is one that a browser adds by itself, whoever's page asks.
    pub fn is_by_cookie(&self, head: &Head<'_>) -> bool {
        head.authorization.is_none() && self.cookie_token(head).is_some()
    }

    fn cookie_token<'h>(&self, head: &Head<'h>) -> Option<&'h str> {
        let name = self.cookie.as_deref()?;
        let mut values = head.cookie?.split(';').filter_map(|pair| {
            let (key, value) = pair.trim().split_once('=')?;
            (key == name).then_some(value)
        });
        let value = values.next()?;
        // Which of two would count is what whoever planted the second one hopes for.
        values.next().is_none().then_some(value)
    }
}

/// What stands behind `Bearer` (RFC 6750, section 2.1).
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Keys, WatchDefault};
    use crate::wire::request::{Parsed, RequestLimits, parse_head};

    fn token(cookie: Option<&str>, lines: &str) -> (Option<String>, bool) {
        let identity = Identity {
            rules: Rules {
                keys: Keys::default(),
                audience: None,
                issuer: None,
                ttl_max_ms: 1,
                watch_default: WatchDefault::Nobody,
            },
            cookie: cookie.map(str::to_owned),
            operators_open: false,
        };
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let limits = RequestLimits {
            head_bytes_max: 4_096,
            header_count_max: 16,
            body_bytes_max: 0,
        };
        let Parsed::Head { head, .. } = parse_head(text.as_bytes(), &limits) else {
            panic!("{lines}")
        };
        let token = identity.token(&head).map(str::to_owned);
        (token, identity.is_by_cookie(&head))
    }

    #[test]
    fn where_a_token_stands() {
        let found = |text: &str, by_cookie| (Some(text.to_owned()), by_cookie);
        let nothing = (None, false);
        for (cookie, lines, expected) in [
            (None, "", nothing.clone()),
            (
                None,
                "Authorization: Bearer a.b.c\r\n",
                found("a.b.c", false),
            ),
            (
                None,
                "authorization: bEARER  a.b.c \r\n",
                found("a.b.c", false),
            ),
            (None, "Authorization: Bearer\r\n", nothing.clone()),
            (None, "Authorization: Bearer \r\n", nothing.clone()),
            (None, "Authorization: Basic YTpi\r\n", nothing.clone()),
            (None, "Cookie: t=a.b.c\r\n", nothing.clone()),
            (Some("t"), "Cookie: t=a.b.c\r\n", found("a.b.c", true)),
            (
                Some("t"),
                "Cookie: x=1; t=a.b.c; T=2\r\n",
                found("a.b.c", true),
            ),
            (Some("t"), "Cookie: xt=a.b.c\r\n", nothing.clone()),
            (Some("t"), "Cookie: t\r\n", nothing.clone()),
            (Some("t"), "Cookie: t=a.b.c; t=d.e.f\r\n", nothing.clone()),
            // A header that is there counts, whatever it holds.
            (
                Some("t"),
                "Cookie: t=a\r\nAuthorization: Bearer b\r\n",
                found("b", false),
            ),
            (
                Some("t"),
                "Cookie: t=a\r\nAuthorization: Basic b\r\n",
                nothing.clone(),
            ),
        ] {
            assert_eq!(token(cookie, lines), expected, "{cookie:?} {lines}");
        }
    }
}
