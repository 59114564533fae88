//! Gives the lines of a head their meaning.
//!
//! Owns the request line, the headers that the server looks at and the refusal of whatever could be read two ways
//! (RFC 9112, sections 3, 6 and 9; RFC 9110, sections 7.2 and 10.1.1). httparse splits the lines; it is called only once
//! the whole head is there. No allocation for a head of at most [`HEADERS_ON_STACK`] headers.

use std::mem::MaybeUninit;

use super::scan::{Extent, scan};
use super::{Framing, Head, Method, Parsed, RequestFault, RequestLimits};

/// Headers parsed into an array on the stack; beyond it (only if the limit allows more) into a vector.
const HEADERS_ON_STACK: usize = 64;

/// Parses one head from the start of `input` (leading CRLFs before the request line are skipped and counted in
/// `head_bytes`, RFC 9112 2.2).
///
/// An answer other than `Partial` stays the same however much more input follows. While the head is not whole, a call
/// costs one pass over at most `head_bytes_max` bytes.
pub fn parse_head<'b>(input: &'b [u8], limits: &RequestLimits) -> Parsed<'b> {
    let extent = match scan(input, limits) {
        Ok(Some(extent)) => extent,
        Ok(None) => return Parsed::Partial,
        Err(fault) => return Parsed::Fault(fault),
    };
    let parsed = if extent.header_count <= HEADERS_ON_STACK {
        parse_lines(input, extent, &mut [const { MaybeUninit::uninit() }; HEADERS_ON_STACK])
    } else {
        parse_lines(input, extent, &mut vec![MaybeUninit::uninit(); extent.header_count])
    };
    match parsed {
        Ok(head) => Parsed::Head {
            head,
            head_bytes: extent.end,
        },
        Err(fault) => Parsed::Fault(fault),
    }
}

fn parse_lines<'b>(
    input: &'b [u8],
    extent: Extent,
    headers: &mut [MaybeUninit<httparse::Header<'b>>],
) -> Result<Head<'b>, RequestFault> {
    let lines = &input[extent.start..extent.end];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(lines, headers) {
        Ok(httparse::Status::Complete(bytes)) if bytes == lines.len() => {}
        Err(httparse::Error::Version) if names_other_version(&input[extent.start..extent.line_end]) => {
            return Err(RequestFault::BadVersion);
        }
        Ok(_) | Err(_) => return Err(RequestFault::BadHead),
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(RequestFault::BadHead);
    };
    let method = method_of(method)?;
    let fields = Fields::read(request.headers)?;
    let http10 = minor == 0;
    match fields.host {
        Some(host) if !is_authority(host, true) => return Err(RequestFault::BadHost),
        None if !http10 => return Err(RequestFault::BadHost),
        Some(_) | None => {}
    }
    let (path, query) = split_target(method, target)?;
    Ok(Head {
        method,
        path,
        query,
        http10,
        keep_alive: !fields.close && (!http10 || fields.keep_alive),
        expect_continue: fields.expect_continue && !http10,
        framing: fields.framing(http10)?,
        content_type: fields.content_type,
        last_event_id: fields.last_event_id,
        origin: fields.origin,
        authorization: fields.authorization,
    })
}

/// Whether a request line that httparse refused for its version has a well-formed one as its third word (RFC 9112 2.3): then it is
/// another version rather than no HTTP at all.
fn names_other_version(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\r\n").unwrap_or(line);
    let version = line.splitn(3, |&byte| byte == b' ').nth(2);
    matches!(version, Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]) if major.is_ascii_digit() && minor.is_ascii_digit())
}

fn method_of(name: &str) -> Result<Method, RequestFault> {
    Ok(match name {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "OPTIONS" => Method::Options,
        "PATCH" => Method::Patch,
        _ => return Err(RequestFault::UnknownMethod),
    })
}

/// Path and query of a request target in origin-form, absolute-form or asterisk-form (RFC 9112 3.2).
fn split_target(method: Method, target: &str) -> Result<(&str, Option<&str>), RequestFault> {
    // httparse lets bytes through that no URI holds: those above ASCII, and the '#' that would begin a fragment.
    if !target.is_ascii() || target.as_bytes().contains(&b'#') {
        return Err(RequestFault::BadHead);
    }
    if target == "*" && method == Method::Options {
        return Ok((target, None));
    }
    let origin_form = if target.starts_with('/') {
        target
    } else {
        let rest = strip_scheme(target).ok_or(RequestFault::BadHead)?;
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if !is_authority(authority.as_bytes(), false) {
            return Err(RequestFault::BadHost);
        }
        rest
    };
    Ok(match origin_form.split_once('?') {
        Some(("", query)) => ("/", Some(query)),
        Some((path, query)) => (path, Some(query)),
        None if origin_form.is_empty() => ("/", None),
        None => (origin_form, None),
    })
}

fn strip_scheme(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once("://")?;
    (scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")).then_some(rest)
}

/// Whether `text` is `host[:port]` (RFC 9110 7.2, RFC 3986 3.2.2): no user information, which RFC 9110 4.2.4 has us
/// refuse. An empty one stands for a target without authority and is legal in the Host header alone.
fn is_authority(text: &[u8], may_be_empty: bool) -> bool {
    let (host, port) = if let [b'[', rest @ ..] = text {
        let Some(end) = rest.iter().position(|&byte| byte == b']') else {
            return false;
        };
        let literal = &rest[..end];
        if literal.is_empty() || !literal.iter().all(|&byte| byte == b':' || is_reg_name(byte)) {
            return false;
        }
        (literal, &rest[end + 1..])
    } else {
        let (host, port) = text.split_at(text.iter().position(|&byte| byte == b':').unwrap_or(text.len()));
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
            [b'%', high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest = after,
            [byte, after @ ..] if is_reg_name(*byte) => rest = after,
            _ => return false,
        }
    }
}

/// Unreserved or sub-delims (RFC 3986 section 2).
fn is_reg_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

/// The headers that the server looks at. All but Connection and Expect may stand once at most: which of two would count
/// is what an attacker hopes that two servers decide differently.
#[derive(Default)]
struct Fields<'b> {
    host: Option<&'b [u8]>,
    content_length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    expect_continue: bool,
    content_type: Option<&'b str>,
    last_event_id: Option<&'b [u8]>,
    origin: Option<&'b str>,
    authorization: Option<&'b str>,
}

impl<'b> Fields<'b> {
    fn read(headers: &[httparse::Header<'b>]) -> Result<Fields<'b>, RequestFault> {
        use RequestFault::{BadExpect, BadFraming, BadHead, BadHost};
        let mut fields = Fields::default();
        for header in headers {
            let (name, value) = (header.name, header.value);
            let is = |known: &str| name.eq_ignore_ascii_case(known);
            // By length first: most headers of a browser are none of these.
            match name.len() {
                4 if is("host") => once(&mut fields.host, value, BadHost)?,
                6 if is("origin") => once(&mut fields.origin, text(value)?, BadHead)?,
                6 if is("expect") => {
                    if !value.eq_ignore_ascii_case(b"100-continue") {
                        return Err(BadExpect);
                    }
                    fields.expect_continue = true;
                }
                10 if is("connection") => fields.read_connection(value),
                12 if is("content-type") => once(&mut fields.content_type, text(value)?, BadHead)?,
                13 if is("last-event-id") => once(&mut fields.last_event_id, value, BadHead)?,
                13 if is("authorization") => once(&mut fields.authorization, text(value)?, BadHead)?,
                14 if is("content-length") => once(&mut fields.content_length, decimal(value)?, BadFraming)?,
                17 if is("transfer-encoding") => {
                    if fields.chunked {
                        return Err(BadFraming);
                    }
                    check_coding(value)?;
                    fields.chunked = true;
                }
                _ => {}
            }
        }
        Ok(fields)
    }

    fn read_connection(&mut self, value: &[u8]) {
        for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    fn framing(&self, http10: bool) -> Result<Framing, RequestFault> {
        match (self.content_length, self.chunked) {
            (Some(_), true) => Err(RequestFault::BadFraming),
            (None, true) if http10 => Err(RequestFault::BadFraming),
            (None, true) => Ok(Framing::Chunked),
            (Some(bytes), false) => Ok(Framing::Length(bytes)),
            (None, false) => Ok(Framing::None),
        }
    }
}

fn once<T>(field: &mut Option<T>, value: T, twice: RequestFault) -> Result<(), RequestFault> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(twice),
    }
}

fn text(value: &[u8]) -> Result<&str, RequestFault> {
    std::str::from_utf8(value).map_err(|_| RequestFault::BadHead)
}

/// One or more ASCII digits and nothing else; saturates, as RFC 9110 8.6 wants no overflow to be taken for a length.
fn decimal(value: &[u8]) -> Result<u64, RequestFault> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(RequestFault::BadFraming);
    }
    Ok(value.iter().fold(0_u64, |sum, digit| {
        sum.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
    }))
}

fn check_coding(value: &[u8]) -> Result<(), RequestFault> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    // "chunked, chunked" and "chunked," are no other coding, only no single one.
    let is_chunked_or_empty = |coding: &[u8]| coding.is_empty() || coding.eq_ignore_ascii_case(b"chunked");
    if value
        .split(|&byte| byte == b',')
        .map(<[u8]>::trim_ascii)
        .all(is_chunked_or_empty)
    {
        return Err(RequestFault::BadFraming);
    }
    Err(RequestFault::UnknownCoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RequestLimits = RequestLimits {
        head_bytes_max: 8_192,
        header_count_max: 64,
        body_bytes_max: 100,
    };

    /// The answer to the whole input, after checking that no prefix gives another than it or `Partial`.
    fn parsed(input: &[u8]) -> Result<Head<'_>, RequestFault> {
        let whole = parse_head(input, &LIMITS);
        for len in 0..input.len() {
            let part = parse_head(&input[..len], &LIMITS);
            assert!(
                part == Parsed::Partial || part == whole,
                "{len} bytes of {}",
                input.escape_ascii()
            );
        }
        match whole {
            Parsed::Head { head, head_bytes } => {
                assert_eq!(head_bytes, input.len());
                Ok(head)
            }
            Parsed::Fault(fault) => Err(fault),
            Parsed::Partial => panic!("partial: {}", input.escape_ascii()),
        }
    }

    /// A head of HTTP/1.1 with a Host and these further lines.
    fn with(lines: &str) -> Vec<u8> {
        format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n").into_bytes()
    }

    fn fault(lines: &str) -> Option<RequestFault> {
        parsed(&with(lines)).err()
    }

    fn plain(method: Method, path: &str) -> Head<'_> {
        Head {
            method,
            path,
            query: None,
            http10: false,
            keep_alive: true,
            expect_continue: false,
            framing: Framing::None,
            content_type: None,
            last_event_id: None,
            origin: None,
            authorization: None,
        }
    }

    #[test]
    fn an_ordinary_head() {
        assert_eq!(
            parsed(b"GET /v1/presence/bob HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"),
            Ok(plain(Method::Get, "/v1/presence/bob"))
        );
    }

    #[test]
    fn every_field() {
        let input = b"\r\n\r\nPOST /v1/stream?user=al%20ice&watch=b?c HTTP/1.1\r\nhost: [::1]:80\r\nContent-TYPE:application/json\r\n\
            Last-Event-ID: 17\xff\r\nOrigin: \t https://example.org \r\nAuthorization: Bearer x\r\nConnection: TE, Close\r\n\
            Expect: 100-Continue\r\nContent-Length: 007\r\nX: \r\n\r\n";
        let head = Head {
            method: Method::Post,
            path: "/v1/stream",
            query: Some("user=al%20ice&watch=b?c"),
            http10: false,
            keep_alive: false,
            expect_continue: true,
            framing: Framing::Length(7),
            content_type: Some("application/json"),
            last_event_id: Some(b"17\xff"),
            origin: Some("https://example.org"),
            authorization: Some("Bearer x"),
        };
        assert_eq!(parsed(input), Ok(head));
    }

    #[test]
    fn the_next_request_is_left_alone() {
        let two = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\n\r\n\r\n";
        assert_eq!(
            parse_head(two, &LIMITS),
            Parsed::Head {
                head: plain(Method::Get, "/a"),
                head_bytes: 28
            }
        );
    }

    #[test]
    fn methods() {
        for (name, method) in [
            ("GET", Method::Get),
            ("HEAD", Method::Head),
            ("POST", Method::Post),
            ("PUT", Method::Put),
            ("DELETE", Method::Delete),
            ("OPTIONS", Method::Options),
            ("PATCH", Method::Patch),
        ] {
            assert_eq!(
                parsed(format!("{name} / HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()),
                Ok(plain(method, "/"))
            );
        }
        for name in ["get", "TRACE", "BREW", "G!#$%&'*+-.^_`|~1"] {
            let input = format!("{name} / HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(parsed(input.as_bytes()), Err(RequestFault::UnknownMethod), "{name}");
        }
        assert_eq!(
            parsed(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
            Err(RequestFault::UnknownMethod)
        );
    }

    #[test]
    fn targets() {
        let split = |method: &str, target: &str| {
            let input = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n");
            parsed(input.as_bytes()).map(|head| (head.path.to_owned(), head.query.map(str::to_owned)))
        };
        let to = |path: &str, query: Option<&str>| Ok((path.to_owned(), query.map(str::to_owned)));
        assert_eq!(split("GET", "/"), to("/", None));
        assert_eq!(split("GET", "/?"), to("/", Some("")));
        assert_eq!(split("GET", "/a/b%2Fc?d=e?f"), to("/a/b%2Fc", Some("d=e?f")));
        assert_eq!(split("GET", "//a"), to("//a", None));
        assert_eq!(split("GET", "http://example.org:80/a?b"), to("/a", Some("b")));
        assert_eq!(split("GET", "HTTPS://[::1]/a"), to("/a", None));
        assert_eq!(split("GET", "http://example.org"), to("/", None));
        assert_eq!(split("GET", "http://example.org?x=/y"), to("/", Some("x=/y")));
        assert_eq!(split("OPTIONS", "*"), to("*", None));
        for bad in ["*", "a", "a/b", "?a", "ftp://a/", "http:/a", "/a#b", "/\u{e9}", "a:443"] {
            assert_eq!(split("GET", bad), Err(RequestFault::BadHead), "{bad}");
        }
        assert_eq!(split("OPTIONS", "*a"), Err(RequestFault::BadHead));
        for bad in ["http:///a", "http://u@b/a", "http://a:x/", "http://:80/", "http://?a"] {
            assert_eq!(split("GET", bad), Err(RequestFault::BadHost), "{bad}");
        }
    }

    #[test]
    fn request_lines_that_are_none() {
        for bad in [
            "GET / HTTP/1.1 ",
            "GET  / HTTP/1.1",
            "GET /  HTTP/1.1",
            " GET / HTTP/1.1",
            "GET\t/ HTTP/1.1",
            "GET / http/1.1",
            "GET / HTTP/1.10",
            "GET / HTTP/11",
            "GET / HTP/1.1",
            "GET /",
            "GET",
            "G(T / HTTP/1.1",
            "GET /\x7f HTTP/1.1",
            "GET / a HTTP/1.1",
            "\u{e9} / HTTP/1.1",
        ] {
            let input = format!("{bad}\r\nHost: a\r\n\r\n");
            assert_eq!(parsed(input.as_bytes()), Err(RequestFault::BadHead), "{bad}");
        }
        assert_eq!(
            parsed(b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n"),
            Err(RequestFault::BadHead)
        );
    }

    #[test]
    fn versions() {
        for version in ["HTTP/0.9", "HTTP/1.2", "HTTP/2.0", "HTTP/3.0", "HTTP/9.9"] {
            let input = format!("GET / {version}\r\nHost: a\r\n\r\n");
            assert_eq!(parsed(input.as_bytes()), Err(RequestFault::BadVersion), "{version}");
        }
        assert_eq!(parsed(b"PRI * HTTP/2.0\r\n\r\n"), Err(RequestFault::BadVersion));
        assert_eq!(
            parsed(b"GET / HTTP/1.0\r\n\r\n"),
            Ok(Head {
                http10: true,
                keep_alive: false,
                ..plain(Method::Get, "/")
            })
        );
        assert_eq!(
            parsed(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\nExpect: 100-continue\r\n\r\n"),
            Ok(Head {
                http10: true,
                ..plain(Method::Get, "/")
            }),
            "an expectation of HTTP/1.0 is ignored"
        );
    }

    #[test]
    fn connections() {
        let stays = |lines| parsed(&with(lines)).map(|head| head.keep_alive);
        assert_eq!(stays(""), Ok(true));
        assert_eq!(stays("Connection: close\r\n"), Ok(false));
        assert_eq!(stays("Connection: keep-alive\r\n"), Ok(true));
        assert_eq!(stays("Connection: keep-alive,\t CLOSE ,x\r\n"), Ok(false));
        assert_eq!(stays("Connection: x\r\nConnection: close\r\n"), Ok(false));
        assert_eq!(stays("Connection: closed\r\n"), Ok(true));
    }

    #[test]
    fn hosts() {
        let host = |value: &str| parsed(format!("GET / HTTP/1.1\r\nHost:{value}\r\n\r\n").as_bytes()).err();
        for good in [
            "",
            " a",
            " a:",
            " a:80",
            " example.org",
            " [::1]",
            " [fe80::1]:8080",
            " a%20b",
            " _x.y-z~",
            " 127.0.0.1:1 ",
        ] {
            assert_eq!(host(good), None, "{good}");
        }
        for bad in [
            ":80", "a:b", "a:123456", "a b", "a/b", "u@a", "[::1", "[]", "[::1]x", "a,b@", "a%2", "\u{e9}", "::1",
            "a:8:9",
        ] {
            assert_eq!(host(bad), Some(RequestFault::BadHost), "{bad}");
        }
        assert_eq!(parsed(b"GET / HTTP/1.1\r\n\r\n"), Err(RequestFault::BadHost));
        assert_eq!(
            fault("Host: a\r\n"),
            Some(RequestFault::BadHost),
            "twice, even if equal"
        );
        assert_eq!(
            parsed(b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
            Err(RequestFault::BadHost)
        );
    }

    #[test]
    fn framings() {
        let framing = |lines| parsed(&with(lines)).map(|head| head.framing);
        assert_eq!(framing("Content-Length: 0\r\n"), Ok(Framing::Length(0)));
        assert_eq!(
            framing("Content-Length: 18446744073709551615\r\n"),
            Ok(Framing::Length(u64::MAX))
        );
        assert_eq!(
            framing("Content-Length: 99999999999999999999999\r\n"),
            Ok(Framing::Length(u64::MAX))
        );
        assert_eq!(framing("Transfer-Encoding: chunked\r\n"), Ok(Framing::Chunked));
        assert_eq!(framing("TRANSFER-ENCODING: \t ChunKed \r\n"), Ok(Framing::Chunked));
        for bad in ["", "+1", "-1", "1,1", "1, 1", "0x1", "1 1", "1.0", "a", "\u{661}"] {
            assert_eq!(
                fault(&format!("Content-Length: {bad}\r\n")),
                Some(RequestFault::BadFraming),
                "{bad}"
            );
        }
        for bad in [
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: chunked,\r\n",
            "Transfer-Encoding:\r\n",
        ] {
            assert_eq!(fault(bad), Some(RequestFault::BadFraming), "{bad}");
        }
        for other in [
            "gzip",
            "gzip, chunked",
            "chunked, identity",
            "xchunked",
            "\"chunked\"",
            "chunked;q=1",
            "\x0bchunked",
        ] {
            let expected = if other.starts_with('\x0b') {
                RequestFault::BadHead
            } else {
                RequestFault::UnknownCoding
            };
            assert_eq!(
                fault(&format!("Transfer-Encoding: {other}\r\n")),
                Some(expected),
                "{other}"
            );
        }
        assert_eq!(
            parsed(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
            Err(RequestFault::BadFraming)
        );
    }

    #[test]
    fn lengths_are_held_to_the_limit() {
        assert_eq!(Framing::Length(100).check(&LIMITS), Ok(()));
        assert_eq!(Framing::Length(101).check(&LIMITS), Err(RequestFault::BodyTooLarge));
        assert_eq!(
            Framing::Length(u64::MAX).check(&LIMITS),
            Err(RequestFault::BodyTooLarge)
        );
        assert_eq!(Framing::Chunked.check(&LIMITS), Ok(()));
        assert_eq!(Framing::None.check(&LIMITS), Ok(()));
    }

    #[test]
    fn headers_that_are_none() {
        for bad in [
            "Host : a\r\n",
            "X : b\r\n",
            "X\t: b\r\n",
            ": b\r\n",
            "X\r\n",
            " X: b\r\n",
            "X: b\r\n folded\r\n",
            "X: b\r\n\tfolded\r\n",
            "X Y: b\r\n",
            "X(: b\r\n",
            "X: \0\r\n",
            "X: \x7f\r\n",
            "X\0: b\r\n",
            "X: b\n",
            "X: b\rY: c\r\n",
            "\u{e9}: b\r\n",
            "Content-Type: a\r\nContent-Type: a\r\n",
            "Origin: a\r\norigin: b\r\n",
            "Authorization: a\r\nAuthorization: b\r\n",
            "Last-Event-ID: 1\r\nLast-Event-ID: 2\r\n",
        ] {
            assert_eq!(fault(bad), Some(RequestFault::BadHead), "{}", bad.escape_debug());
        }
        assert_eq!(
            parsed(b"GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
            Err(RequestFault::BadHead),
            "folded onto the request line"
        );
        let not_utf8 = b"GET / HTTP/1.1\r\nHost: a\r\nOrigin: \xff\r\n\r\n";
        assert_eq!(parsed(not_utf8), Err(RequestFault::BadHead));
    }

    #[test]
    fn expectations() {
        let expects = |lines| parsed(&with(lines)).map(|head| head.expect_continue);
        assert_eq!(expects("Expect: 100-continue\r\n"), Ok(true));
        assert_eq!(expects(""), Ok(false));
        assert_eq!(expects("Expect: 100-continue, x\r\n"), Err(RequestFault::BadExpect));
        assert_eq!(expects("Expect:\r\n"), Err(RequestFault::BadExpect));
    }

    #[test]
    fn many_headers() {
        let lines = |count: usize| "a: b\r\n".repeat(count);
        assert_eq!(fault(&lines(63)), None);
        assert_eq!(fault(&lines(64)), Some(RequestFault::TooManyHeaders));
        let input = with(&lines(99));
        let wide = RequestLimits {
            header_count_max: 100,
            ..LIMITS
        };
        let whole = Parsed::Head {
            head: plain(Method::Post, "/"),
            head_bytes: input.len(),
        };
        assert_eq!(
            parse_head(&input, &wide),
            whole,
            "a limit beyond the array on the stack"
        );
    }
}
