//! Whole heads in, exact answers out, each torn at every byte.

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
            // Of what is compared here it is said by the other members.
            Ok(Head { lines: b"", ..head })
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
        host: Some("a"),
        origin: None,
        fetch_site: None,
        asked_headers: None,
        authorization: None,
        cookie: None,
        feed: None,
        if_none_match: None,
        user_agent: None,
        lines: b"",
    }
}

#[test]
fn an_ordinary_head() {
    assert_eq!(
        parsed(b"GET /v1/presence/bob HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"),
        Ok(Head {
            host: Some("127.0.0.1:8080"),
            ..plain(Method::Get, "/v1/presence/bob")
        })
    );
}

#[test]
fn every_field() {
    let input = b"\r\n\r\nPOST /v1/stream?user=al%20ice&watch=b?c HTTP/1.1\r\nhost: [::1]:80\r\n\
                  Content-TYPE:application/json\r\n\
        Last-Event-ID: 17\xff\r\nOrigin: \t https://example.org \r\nAuthorization: Bearer x\r\n\
        Sec-Fetch-Site: none\r\nAccess-Control-Request-Headers: a, b\r\n\
        If-None-Match: \"a\", W/\"b\"\r\nConnection: TE, Close\r\n\
        User-Agent: a\r\nuser-agent: b\xff\r\n\
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
        host: Some("[::1]:80"),
        origin: Some("https://example.org"),
        fetch_site: Some("none"),
        asked_headers: Some("a, b"),
        authorization: Some("Bearer x"),
        cookie: None,
        feed: None,
        if_none_match: Some(b"\"a\", W/\"b\""),
        user_agent: Some(b"b\xff"),
        lines: b"",
    };
    assert_eq!(parsed(input), Ok(head));
}

#[test]
fn the_next_request_is_left_alone() {
    let two = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\n\r\n\r\n";
    assert_eq!(
        parse_head(two, &LIMITS),
        Parsed::Head {
            head: Head {
                lines: b"Host: a\r\n\r\n",
                ..plain(Method::Get, "/a")
            },
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
        ("TRACE", Method::Trace),
        ("QUERY", Method::Query),
    ] {
        assert_eq!(
            parsed(format!("{name} / HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()),
            Ok(plain(method, "/"))
        );
    }
    for name in ["get", "BREW", "G!#$%&'*+-.^_`|~1"] {
        let input = format!("{name} / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(
            parsed(input.as_bytes()),
            Err(RequestFault::UnknownMethod),
            "{name}"
        );
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
    assert_eq!(
        split("GET", "/a/b%2Fc?d=e?f"),
        to("/a/b%2Fc", Some("d=e?f"))
    );
    assert_eq!(split("GET", "//a"), to("//a", None));
    assert_eq!(
        split("GET", "http://example.org:80/a?b"),
        to("/a", Some("b"))
    );
    assert_eq!(split("GET", "HTTPS://[::1]/a"), to("/a", None));
    assert_eq!(split("GET", "http://example.org"), to("/", None));
    assert_eq!(
        split("GET", "http://example.org?x=/y"),
        to("/", Some("x=/y"))
    );
    assert_eq!(split("OPTIONS", "*"), to("*", None));
    let absolute = b"GET http://b:81/ HTTP/1.1\r\nHost: a\r\n\r\n";
    let host = parsed(absolute).map(|head| head.host);
    assert_eq!(host, Ok(Some("b:81")), "it goes before Host");
    for bad in [
        "*", "a", "a/b", "?a", "ftp://a/", "http:/a", "/a#b", "/\u{e9}", "a:443",
    ] {
        assert_eq!(split("GET", bad), Err(RequestFault::BadHead), "{bad}");
    }
    assert_eq!(split("OPTIONS", "*a"), Err(RequestFault::BadHead));
    for bad in [
        "http:///a",
        "http://u@b/a",
        "http://a:x/",
        "http://:80/",
        "http://?a",
    ] {
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
        assert_eq!(
            parsed(input.as_bytes()),
            Err(RequestFault::BadHead),
            "{bad}"
        );
    }
    assert_eq!(
        parsed(b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n"),
        Err(RequestFault::BadHead)
    );
}

#[test]
fn versions() {
    for version in ["HTTP/1.2", "HTTP/1.9"] {
        let input = format!("GET /a {version}\r\nHost: a\r\nOrigin: b\r\n\r\n");
        assert_eq!(
            parsed(input.as_bytes()),
            Ok(Head {
                origin: Some("b"),
                ..plain(Method::Get, "/a")
            }),
            "{version} is served as the latest that is known"
        );
    }
    assert_eq!(
        parsed(b"GET / HTTP/1.2\r\nHost: a\r\nX : y\r\n\r\n"),
        Err(RequestFault::BadHead)
    );
    for version in ["HTTP/0.9", "HTTP/2.0", "HTTP/3.0", "HTTP/9.9"] {
        let input = format!("GET / {version}\r\nHost: a\r\n\r\n");
        assert_eq!(
            parsed(input.as_bytes()),
            Err(RequestFault::BadVersion),
            "{version}"
        );
    }
    assert_eq!(
        parsed(b"PRI * HTTP/2.0\r\n\r\n"),
        Err(RequestFault::BadVersion)
    );
    assert_eq!(
        parsed(b"GET / HTTP/1.0\r\n\r\n"),
        Ok(Head {
            http10: true,
            keep_alive: false,
            host: None,
            ..plain(Method::Get, "/")
        })
    );
    assert_eq!(
        parsed(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\nExpect: 100-continue\r\n\r\n"),
        Ok(Head {
            http10: true,
            host: None,
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
    let host =
        |value: &str| parsed(format!("GET / HTTP/1.1\r\nHost:{value}\r\n\r\n").as_bytes()).err();
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
        ":80", "a:b", "a:123456", "a b", "a/b", "u@a", "[::1", "[]", "[::1]x", "a,b", "a,b@",
        "a%2", "\u{e9}", "::1", "a:8:9",
    ] {
        assert_eq!(host(bad), Some(RequestFault::BadHost), "{bad}");
    }
    assert_eq!(
        parsed(b"GET / HTTP/1.1\r\n\r\n"),
        Err(RequestFault::BadHost)
    );
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
    assert_eq!(
        framing("Transfer-Encoding: chunked\r\n"),
        Ok(Framing::Chunked)
    );
    assert_eq!(
        framing("TRANSFER-ENCODING: \t ChunKed \r\n"),
        Ok(Framing::Chunked)
    );
    for bad in [
        "", "+1", "-1", "1,1", "1, 1", "0x1", "1 1", "1.0", "a", "\u{661}",
    ] {
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
    for (other, expected) in [
        ("gzip, chunked", RequestFault::UnknownCoding),
        ("gzip,identity\t, CHUNKED", RequestFault::UnknownCoding),
        // Where chunked is not the last, nobody knows where the body ends.
        ("gzip", RequestFault::BadFraming),
        ("chunked, identity", RequestFault::BadFraming),
        ("xchunked", RequestFault::BadFraming),
        ("\"chunked\"", RequestFault::BadFraming),
        ("chunked;q=1", RequestFault::BadFraming),
        ("\x0bchunked", RequestFault::BadHead),
        (
            "gzip\r\nTransfer-Encoding: chunked",
            RequestFault::UnknownCoding,
        ),
        (
            "chunked\r\nTransfer-Encoding: gzip",
            RequestFault::BadFraming,
        ),
    ] {
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
    assert_eq!(
        Framing::Length(101).check(&LIMITS),
        Err(RequestFault::BodyTooLarge)
    );
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
        assert_eq!(
            fault(bad),
            Some(RequestFault::BadHead),
            "{}",
            bad.escape_debug()
        );
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
    assert_eq!(
        expects("Expect: 100-continue, x\r\n"),
        Err(RequestFault::BadExpect)
    );
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
        head: Head {
            lines: &input["POST / HTTP/1.1\r\n".len()..],
            ..plain(Method::Post, "/")
        },
        head_bytes: input.len(),
    };
    assert_eq!(
        parse_head(&input, &wide),
        whole,
        "a limit beyond the array on the stack"
    );
}
