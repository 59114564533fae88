//! For whom a proxy asks: `Forwarded` (RFC 7239) and `X-Forwarded-For`. And whether one of these
//! nodes has sent it on: `Via` (RFC 9110, 7.6.3).
//!
//! Owns which of the addresses that they name counts. Each proxy adds its peer's at the end, and
//! what stands before may be anybody's word. So they are read from the end: the first that is no
//! proxy of ours is the client.

use core::net::{IpAddr, SocketAddr};

/// Most headers of a request that are read again.
const HEADERS_MAX: usize = 256;

/// By what a node says in `Via` that a request has come by it.
pub const VIA: &str = "1.1 greendot";

/// Whether a node has sent this request on, by its headers as for [`client_of`].
pub fn has_come_by_a_node(lines: &[u8]) -> bool {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let Ok(httparse::Status::Complete((_, headers))) = httparse::parse_headers(lines, &mut headers)
    else {
        return true;
    };
    let via = headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("via"));
    let mut values = via.filter_map(|header| std::str::from_utf8(header.value).ok());
    values.any(|value| value.split(',').any(|by| by.trim() == VIA))
}

/// Whose request a proxy passes on. `lines`: the headers, each with its end, and the empty line.
///
/// None: no header names an address, or two kinds of header do not agree. A proxy that writes one
/// of them passes on the other as it came, so that would be the client's own word.
pub fn client_of(lines: &[u8], is_proxy: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let Ok(httparse::Status::Complete((_, headers))) = httparse::parse_headers(lines, &mut headers)
    else {
        return None;
    };
    let named = |name: &str, read: fn(&str) -> Option<IpAddr>| {
        let values = headers
            .iter()
            .rev()
            .filter(|header| header.name.eq_ignore_ascii_case(name))
            .filter_map(|header| std::str::from_utf8(header.value).ok());
        let mut farthest = None;
        for part in values.flat_map(|value| value.rsplit(',')) {
            // What is no address is nobody's: the last proxy that named one stands for it.
            let Some(address) = read(part) else {
                return farthest;
            };
            farthest = Some(address);
            if !is_proxy(address) {
                break;
            }
        }
        farthest
    };
    match (
        named("forwarded", forwarded_for),
        named("x-forwarded-for", address_of),
    ) {
        (Some(one), Some(other)) if one != other => None,
        (one, other) => one.or(other),
    }
}

/// The `for` of one element of `Forwarded`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    let value = value.trim();
    let quoted = value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    address_of(quoted.unwrap_or(value))
}

/// An address, alone, in brackets, or with a port.
fn address_of(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse::<IpAddr>();
    let address = address.or_else(|_| text.parse().map(|with_port: SocketAddr| with_port.ip()));
    address.ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(lines: &[&str]) -> Option<String> {
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let is_proxy = |address: IpAddr| address.to_string().starts_with("10.");
        let client = client_of(format!("{lines}\r\n").as_bytes(), is_proxy);
        client.map(|address| address.to_string())
    }

    #[test]
    fn what_a_node_has_sent_on_says_so() {
        for (line, expected) in [
            ("Host: a", false),
            ("Via: 1.1 greendot", true),
            ("via: 1.0 fred, 1.1 greendot", true),
            ("Via: 1.1 greendots", false),
        ] {
            let lines = format!("Host: a\r\n{line}\r\n\r\n");
            assert_eq!(has_come_by_a_node(lines.as_bytes()), expected, "{line}");
        }
        assert!(
            has_come_by_a_node(b"no end"),
            "what can not be read goes no further"
        );
    }

    #[test]
    fn the_last_that_is_no_proxy_of_ours_counts() {
        for (lines, expected) in [
            (&["Host: a"][..], None),
            (&["X-Forwarded-For: 192.0.2.1"], Some("192.0.2.1")),
            // What the client has written stands in front.
            (
                &["x-forwarded-for: 198.51.100.9, 192.0.2.1"],
                Some("192.0.2.1"),
            ),
            (
                &["X-Forwarded-For: 192.0.2.1, 10.0.0.2,10.0.0.3"],
                Some("192.0.2.1"),
            ),
            // In lines of their own, as HAProxy adds them.
            (
                &[
                    "X-Forwarded-For: 198.51.100.9",
                    "X-Forwarded-For: 192.0.2.1",
                ],
                Some("192.0.2.1"),
            ),
            // All are proxies: the farthest.
            (&["X-Forwarded-For: 10.0.0.9, 10.0.0.3"], Some("10.0.0.9")),
            (&["X-Forwarded-For: unknown, 10.0.0.3"], Some("10.0.0.3")),
            (&["X-Forwarded-For: 192.0.2.1, nonsense"], None),
            (&["X-Forwarded-For: 192.0.2.1:4711"], Some("192.0.2.1")),
            (&["X-Forwarded-For: 2001:db8::1"], Some("2001:db8::1")),
            (
                &["X-Forwarded-For: [2001:db8::1]:4711"],
                Some("2001:db8::1"),
            ),
            (&["X-Forwarded-For: ::ffff:192.0.2.1"], Some("192.0.2.1")),
            (
                &["Forwarded: for=192.0.2.60;proto=http;by=203.0.113.43"],
                Some("192.0.2.60"),
            ),
            (
                &["Forwarded: For=\"[2001:db8:cafe::17]:4711\""],
                Some("2001:db8:cafe::17"),
            ),
            (
                &["Forwarded: for=192.0.2.43, for=10.0.0.1"],
                Some("192.0.2.43"),
            ),
            (&["Forwarded: for=_hidden"], None),
            (&["Forwarded: proto=http"], None),
            // Both, alike and not.
            (
                &["Forwarded: for=192.0.2.1", "X-Forwarded-For: 192.0.2.1"],
                Some("192.0.2.1"),
            ),
            (
                &["Forwarded: for=192.0.2.7", "X-Forwarded-For: 192.0.2.1"],
                None,
            ),
            (&["X-Forwarded-For:"], None),
            (&["X-Forwarded-For: \u{e9}"], None),
        ] {
            assert_eq!(client(lines).as_deref(), expected, "{lines:?}");
        }
    }
}
