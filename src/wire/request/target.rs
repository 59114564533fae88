//! Request targets: taken apart into path and query, and percent-decoded exactly once.
//!
//! Owns the forms of RFC 9112 section 3.2, RFC 3986 section 2.1 and the query form of
//! application/x-www-form-urlencoded. Never decodes what it decoded, never judges the bytes that
//! come out: [`crate::wire::User`] does.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::{Method, RequestFault};

/// Percent-decodes a path segment exactly once ('+' stays '+'); None on a bad escape. Borrowed when
/// nothing was escaped.
pub fn decode_segment(raw: &str) -> Option<Cow<'_, [u8]>> {
    if !has_any(raw, b"%") {
        return Some(Cow::Borrowed(raw.as_bytes()));
    }
    escapes_are_whole(raw.as_bytes()).then(|| percent_decode_str(raw).into())
}

/// Whether one of these bytes is in `raw`. Looks at all of it: words are short, and without a way
/// out the compiler compares many bytes at once.
fn has_any<const N: usize>(raw: &str, bytes: &[u8; N]) -> bool {
    let is_one = |byte| bytes.iter().fold(false, |is, one| is | (byte == *one));
    raw.bytes().fold(false, |has, byte| has | is_one(byte))
}

/// Name and value of a query's pair, decoded. A name with a bad escape is left as it stands: it is
/// nobody's. A value with one is None.
pub type QueryPair<'q> = (Cow<'q, [u8]>, Option<Cow<'q, [u8]>>);

/// The name=value pairs of a query, each decoded once ('+' is a space:
/// application/x-www-form-urlencoded). A pair without '=' has an empty value; nothing between two
/// '&' is no pair.
pub fn query_pairs(raw: &str) -> impl Iterator<Item = QueryPair<'_>> {
    raw.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode_form(name).unwrap_or(Cow::Borrowed(name.as_bytes()));
        (name, decode_form(value))
    })
}

fn decode_form(raw: &str) -> Option<Cow<'_, [u8]>> {
    if !has_any(raw, b"%+") {
        return Some(Cow::Borrowed(raw.as_bytes()));
    }
    let spaced = raw.replace('+', " ");
    decode_segment(&spaced).map(|decoded| Cow::Owned(decoded.into_owned()))
}

/// Whether every '%' is followed by two hex digits; percent-encoding would pass a broken one
/// through as it stands.
fn escapes_are_whole(raw: &[u8]) -> bool {
    let mut rest = raw;
    while let Some(at) = rest.iter().position(|&byte| byte == b'%') {
        match rest[at + 1..] {
            [high, low, ref after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                rest = after
            }
            _ => return false,
        }
    }
    true
}

/// A target's authority, if it has one, its path and its query.
type Target<'t> = (Option<&'t str>, &'t str, Option<&'t str>);

/// Takes a request target in origin-form, absolute-form or asterisk-form (RFC 9112 3.2) apart.
pub(super) fn split_target(method: Method, target: &str) -> Result<Target<'_>, RequestFault> {
    // httparse lets bytes through that no URI holds: those above ASCII, and the '#' that would
    // begin a fragment.
    if !target.is_ascii() || target.as_bytes().contains(&b'#') {
        return Err(RequestFault::BadHead);
    }
    if target == "*" && method == Method::Options {
        return Ok((None, target, None));
    }
    let (authority, origin_form) = if target.starts_with('/') {
        (None, target)
    } else {
        let rest = strip_scheme(target).ok_or(RequestFault::BadHead)?;
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if !is_authority(authority.as_bytes(), false) {
            return Err(RequestFault::BadHost);
        }
        (Some(authority), rest)
    };
    let (path, query) = match origin_form.split_once('?') {
        Some(("", query)) => ("/", Some(query)),
        Some((path, query)) => (path, Some(query)),
        None if origin_form.is_empty() => ("/", None),
        None => (origin_form, None),
    };
    Ok((authority, path, query))
}

fn strip_scheme(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once("://")?;
    (scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")).then_some(rest)
}

/// Whether `text` is `host[:port]` (RFC 9110 7.2, RFC 3986 3.2.2): no user information, which RFC
/// 9110 4.2.4 has us refuse. An empty one stands for a target without authority and is legal in the
/// Host header alone.
pub(super) fn is_authority(text: &[u8], may_be_empty: bool) -> bool {
    let (host, port) = if let [b'[', rest @ ..] = text {
        let Some(end) = rest.iter().position(|&byte| byte == b']') else {
            return false;
        };
        let literal = &rest[..end];
        if literal.is_empty()
            || !literal
                .iter()
                .all(|&byte| byte == b':' || is_reg_name(byte))
        {
            return false;
        }
        (literal, &rest[end + 1..])
    } else {
        let (host, port) = text.split_at(
            text.iter()
                .position(|&byte| byte == b':')
                .unwrap_or(text.len()),
        );
        if !reg_name_is_whole(host) {
            return false;
        }
        (host, port)
    };
    let port_is_whole = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    port_is_whole && (!host.is_empty() || (may_be_empty && port.is_empty()))
}

fn reg_name_is_whole(host: &[u8]) -> bool {
    let mut rest = host;
    loop {
        match rest {
            [] => return true,
            [b'%', high, low, after @ ..]
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                rest = after
            }
            [byte, after @ ..] if is_reg_name(*byte) => rest = after,
            _ => return false,
        }
    }
}

/// Unreserved or sub-delims (RFC 3986 section 2), but for the comma: it is how a proxy joins two
/// Host lines, of which another server may take the other.
fn is_reg_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments() {
        let decoded = |raw| decode_segment(raw).map(Cow::into_owned);
        assert!(matches!(decode_segment("bob"), Some(Cow::Borrowed(b"bob"))));
        assert_eq!(decoded(""), Some(vec![]));
        assert_eq!(decoded("a%2Fb+c%20%e9%00"), Some(b"a/b+c \xe9\0".to_vec()));
        assert_eq!(decoded("%252F"), Some(b"%2F".to_vec()), "once, not twice");
        assert_eq!(
            decoded("%F0%9F%9F%A2"),
            Some("\u{1F7E2}".as_bytes().to_vec())
        );
        for bad in ["%", "a%", "%2", "%2g", "%g2", "%%41", "%25%", "%+1", "% 1"] {
            assert_eq!(decode_segment(bad), None, "{bad}");
        }
    }

    #[test]
    fn queries() {
        let pairs = |raw| {
            query_pairs(raw)
                .map(|(name, value)| (name.into_owned(), value.map(Cow::into_owned)))
                .collect::<Vec<_>>()
        };
        let pair =
            |name: &str, value: &str| (name.as_bytes().to_vec(), Some(value.as_bytes().to_vec()));
        let torn = |name: &str| (name.as_bytes().to_vec(), None);
        assert_eq!(pairs(""), []);
        assert_eq!(pairs("&&"), []);
        assert_eq!(
            pairs("user=alice&watch=bob"),
            [pair("user", "alice"), pair("watch", "bob")]
        );
        assert_eq!(pairs("user"), [pair("user", "")]);
        assert_eq!(pairs("=x&a=b=c"), [pair("", "x"), pair("a", "b=c")]);
        assert_eq!(pairs("u%73er=a+b%2Bc%26d"), [pair("user", "a b+c&d")]);
        assert_eq!(pairs("a=%252F"), [pair("a", "%2F")]);
        assert_eq!(
            pairs("a=%zz&b=1&%=2"),
            [torn("a"), pair("b", "1"), pair("%", "2")]
        );
        assert_eq!(pairs("a=+%"), [torn("a")]);
        assert!(matches!(
            query_pairs("a=b").next(),
            Some((Cow::Borrowed(b"a"), Some(Cow::Borrowed(b"b"))))
        ));
    }
}
