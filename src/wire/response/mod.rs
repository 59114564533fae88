//! HTTP/1.1 responses: heads and whole answers.
//!
//! Owns what an answer is made of, for whom it is written, and the header lines that answers have
//! in common ([`write_answer`] alone writes them). Which answer, and what its body says, is decided
//! elsewhere; errors are [`Problem`]s.

mod chunk;
mod date;
mod problem;

use std::borrow::Cow;

use crate::wire::json::write_u64;
use crate::wire::request::{Head, Method, Overheard};

pub use chunk::{CHUNK_BYTES_MAX, CHUNK_FRAME_BYTES, LAST_CHUNK, OpenChunk, open_chunk};
pub use date::HttpDate;
pub use problem::{PROBLEM_CONTENT_TYPE, PROBLEMS, Problem, problem_of, problems};

/// Status codes that the server uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
#[expect(missing_docs, reason = "the names of RFC 9110 and RFC 6585")]
pub enum StatusCode {
    Ok = 200,
    NoContent = 204,
    NotModified = 304,
    BadRequest = 400,
    Unauthorized = 401,
    Forbidden = 403,
    NotFound = 404,
    MethodNotAllowed = 405,
    RequestTimeout = 408,
    Gone = 410,
    LengthRequired = 411,
    ContentTooLarge = 413,
    UriTooLong = 414,
    UnsupportedMediaType = 415,
    ExpectationFailed = 417,
    MisdirectedRequest = 421,
    TooManyRequests = 429,
    HeadTooLarge = 431,
    InternalError = 500,
    NotImplemented = 501,
    ServiceUnavailable = 503,
    VersionNotSupported = 505,
}

impl StatusCode {
    const ALL: [StatusCode; 22] = [
        StatusCode::Ok,
        StatusCode::NoContent,
        StatusCode::NotModified,
        StatusCode::BadRequest,
        StatusCode::Unauthorized,
        StatusCode::Forbidden,
        StatusCode::NotFound,
        StatusCode::MethodNotAllowed,
        StatusCode::RequestTimeout,
        StatusCode::Gone,
        StatusCode::LengthRequired,
        StatusCode::ContentTooLarge,
        StatusCode::UriTooLong,
        StatusCode::UnsupportedMediaType,
        StatusCode::ExpectationFailed,
        StatusCode::MisdirectedRequest,
        StatusCode::TooManyRequests,
        StatusCode::HeadTooLarge,
        StatusCode::InternalError,
        StatusCode::NotImplemented,
        StatusCode::ServiceUnavailable,
        StatusCode::VersionNotSupported,
    ];

    /// The three digits as a number.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The one with this number, of those that the server uses.
    pub fn of(code: u16) -> Option<StatusCode> {
        StatusCode::ALL.into_iter().find(|one| one.code() == code)
    }

    /// Whether an answer of this status has a body.
    pub const fn has_body(self) -> bool {
        !matches!(self, StatusCode::NoContent | StatusCode::NotModified)
    }

    const fn line(self) -> &'static str {
        match self {
            StatusCode::Ok => "HTTP/1.1 200 OK\r\n",
            StatusCode::NoContent => "HTTP/1.1 204 No Content\r\n",
            StatusCode::NotModified => "HTTP/1.1 304 Not Modified\r\n",
            StatusCode::BadRequest => "HTTP/1.1 400 Bad Request\r\n",
            StatusCode::Unauthorized => "HTTP/1.1 401 Unauthorized\r\n",
            StatusCode::Forbidden => "HTTP/1.1 403 Forbidden\r\n",
            StatusCode::NotFound => "HTTP/1.1 404 Not Found\r\n",
            StatusCode::MethodNotAllowed => "HTTP/1.1 405 Method Not Allowed\r\n",
            StatusCode::RequestTimeout => "HTTP/1.1 408 Request Timeout\r\n",
            StatusCode::Gone => "HTTP/1.1 410 Gone\r\n",
            StatusCode::LengthRequired => "HTTP/1.1 411 Length Required\r\n",
            StatusCode::ContentTooLarge => "HTTP/1.1 413 Content Too Large\r\n",
            StatusCode::UriTooLong => "HTTP/1.1 414 URI Too Long\r\n",
            StatusCode::UnsupportedMediaType => "HTTP/1.1 415 Unsupported Media Type\r\n",
            StatusCode::ExpectationFailed => "HTTP/1.1 417 Expectation Failed\r\n",
            StatusCode::MisdirectedRequest => "HTTP/1.1 421 Misdirected Request\r\n",
            StatusCode::TooManyRequests => "HTTP/1.1 429 Too Many Requests\r\n",
            StatusCode::HeadTooLarge => "HTTP/1.1 431 Request Header Fields Too Large\r\n",
            StatusCode::InternalError => "HTTP/1.1 500 Internal Server Error\r\n",
            StatusCode::NotImplemented => "HTTP/1.1 501 Not Implemented\r\n",
            StatusCode::ServiceUnavailable => "HTTP/1.1 503 Service Unavailable\r\n",
            StatusCode::VersionNotSupported => "HTTP/1.1 505 HTTP Version Not Supported\r\n",
        }
    }
}

/// What a request is answered, whoever asked; [`write_answer`] writes it as the asker takes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Of the answer.
    pub status: StatusCode,
    /// Content-Type, e.g. `application/json`; ignored when the status has no body.
    pub content_type: &'static str,
    /// Body; ignored when the status has none.
    pub body: Cow<'static, [u8]>,
    /// How its end is found.
    pub ends: Ends,
    /// Who may keep it.
    pub cache: Cache,
    /// Header lines that this answer has and others have not, each `Name: value\r\n`, or empty.
    pub lines: Cow<'static, str>,
}

/// How the end of an answer's body is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ends {
    /// By Content-Length.
    Counted,
    /// By its last chunk; for HTTP/1.0, which knows no chunks, by the end of the connection. The
    /// connection ends with it either way.
    Chunked,
    /// The same, but only its head is written here: the body goes on as the connection does.
    Streaming,
}

/// What an answer says of its keeping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cache {
    /// Nothing: its status or method says it.
    Unsaid,
    /// Keep it, and ask each time whether it is still so.
    Revalidate,
    /// Keep it, and never ask: it has its version in its name.
    Forever,
    /// Do not keep it.
    Never,
    /// Do not keep it, and pass it on as it is.
    NeverNorTransform,
}

impl Cache {
    const fn line(self) -> &'static str {
        match self {
            Cache::Unsaid => "",
            Cache::Revalidate => "Cache-Control: no-cache\r\n",
            Cache::Forever => "Cache-Control: public, max-age=31536000, immutable\r\n",
            Cache::Never => "Cache-Control: no-store\r\n",
            Cache::NeverNorTransform => "Cache-Control: no-store, no-transform\r\n",
        }
    }
}

impl Answer {
    /// 200 with a body that is true now and need not be later.
    pub fn ok(content_type: &'static str, body: impl Into<Cow<'static, [u8]>>) -> Answer {
        Answer {
            status: StatusCode::Ok,
            content_type,
            body: body.into(),
            ends: Ends::Counted,
            cache: Cache::Never,
            lines: Cow::Borrowed(""),
        }
    }

    /// [`Answer::ok`] with JSON.
    pub fn json(body: impl Into<Cow<'static, [u8]>>) -> Answer {
        Answer::ok("application/json", body)
    }

    /// 204.
    pub fn no_content() -> Answer {
        Answer {
            status: StatusCode::NoContent,
            cache: Cache::Unsaid,
            ..Answer::ok("", &b""[..])
        }
    }

    /// An error; `detail` says what was wrong this time and what to do.
    pub fn problem(problem: Problem, detail: &str) -> Answer {
        let mut body = Vec::new();
        problem.write(detail, &mut body);
        Answer {
            status: problem.status,
            ..Answer::ok(PROBLEM_CONTENT_TYPE, body)
        }
    }

    /// An event stream (WHATWG HTML, "Server-sent events") that says this and ends.
    pub fn events(body: impl Into<Cow<'static, [u8]>>) -> Answer {
        Answer {
            ends: Ends::Chunked,
            cache: Cache::NeverNorTransform,
            lines: Cow::Borrowed("X-Accel-Buffering: no\r\n"),
            ..Answer::ok("text/event-stream; charset=utf-8", body)
        }
    }

    /// The head of an event stream that goes on.
    pub fn stream() -> Answer {
        Answer {
            ends: Ends::Streaming,
            ..Answer::events(&b""[..])
        }
    }

    /// The same with this answer's own header lines, each `Name: value\r\n`.
    pub fn with_lines(self, lines: impl Into<Cow<'static, str>>) -> Answer {
        let lines = lines.into();
        Answer { lines, ..self }
    }
}

/// Whom an answer is written for: what of a request's head outlives it until it is answered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Asker {
    /// It wants the head alone (HEAD), Content-Length as if with the body.
    pub head_only: bool,
    /// The connection stays open; else `Connection: close`. An HTTP/1.0 peer is told `Connection:
    /// keep-alive`.
    pub keep_alive: bool,
    /// It speaks HTTP/1.0.
    pub http10: bool,
    /// The CORS lines that its origin is told, or empty.
    pub cors: String,
}

impl Asker {
    /// Who is refused for a head that was only overheard, and is told `cors`.
    pub fn overheard(overheard: Overheard<'_>, cors: String) -> Asker {
        Asker {
            head_only: overheard.head_only,
            keep_alive: false,
            http10: overheard.http10,
            cors,
        }
    }

    /// Who sent `head`, whose origin is told `cors`.
    pub fn of(head: &Head<'_>, cors: String) -> Asker {
        Asker {
            head_only: head.method == Method::Head,
            keep_alive: head.keep_alive,
            http10: head.http10,
            cors,
        }
    }
}

/// What every answer says: that it may differ from origin to origin, so that no cache gives one
/// origin's to another; that it is of no other type than it says; that no page may frame it.
const COMMON: &str = "Vary: Origin\r\nX-Content-Type-Options: nosniff\r\n\
                      Content-Security-Policy: frame-ancestors 'none'\r\n";

/// Appends status line, headers, body. The one place that knows what lines answers have in common.
pub fn write_answer(out: &mut Vec<u8>, answer: &Answer, asker: &Asker, date: &HttpDate) {
    let mut text = |text: &str| out.extend_from_slice(text.as_bytes());
    text(answer.status.line());
    if answer.status.has_body() {
        text("Content-Type: ");
        text(answer.content_type);
        text("\r\n");
    }
    let chunked = answer.ends != Ends::Counted && !asker.http10;
    if answer.status.has_body() && answer.ends == Ends::Counted {
        text("Content-Length: ");
        write_u64(answer.body.len() as u64, out);
        out.extend_from_slice(b"\r\n");
    } else if chunked {
        text("Transfer-Encoding: chunked\r\n");
    }
    let connection = match (answer.ends, asker.keep_alive, asker.http10) {
        (Ends::Chunked | Ends::Streaming, ..) | (_, false, _) => "Connection: close\r\n\r\n",
        (Ends::Counted, true, true) => "Connection: keep-alive\r\n\r\n",
        (Ends::Counted, true, false) => "\r\n",
    };
    out.extend_from_slice(date.line());
    for lines in [
        COMMON,
        answer.cache.line(),
        &answer.lines,
        &asker.cors,
        connection,
    ] {
        out.extend_from_slice(lines.as_bytes());
    }
    if !answer.status.has_body() || asker.head_only || answer.ends == Ends::Streaming {
        return;
    }
    if !chunked {
        return out.extend_from_slice(&answer.body);
    }
    let chunk = open_chunk(out);
    out.extend_from_slice(&answer.body);
    chunk.close(out);
    out.extend_from_slice(LAST_CHUNK);
}

/// `HTTP/1.1 100 Continue` and its blank line.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Unix;

    fn written(answer: &Answer, asker: &Asker) -> String {
        let mut out = Vec::new();
        write_answer(&mut out, answer, asker, &HttpDate::at(Unix::default()));
        String::from_utf8(out).unwrap()
    }

    /// What is between what an answer begins with and what is its own.
    const ALL_SAY: &str = "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nVary: Origin\r\n\
                           X-Content-Type-Options: nosniff\r\n\
                           Content-Security-Policy: frame-ancestors 'none'\r\n";

    /// An asker of HTTP/1.1 who goes on.
    fn asker() -> Asker {
        Asker {
            keep_alive: true,
            ..Asker::default()
        }
    }

    #[test]
    fn one_answer_for_several_askers() {
        let answer = Answer::json(&b"{\"watching\":2}"[..]);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\
             {ALL_SAY}Cache-Control: no-store\r\n"
        );
        let body = "{\"watching\":2}";
        assert_eq!(written(&answer, &asker()), format!("{head}\r\n{body}"));
        let head_only = true;
        let heads = Asker {
            head_only,
            ..asker()
        };
        assert_eq!(written(&answer, &heads), format!("{head}\r\n"));
        let http10 = true;
        let old = Asker { http10, ..asker() };
        assert_eq!(
            written(&answer, &old),
            format!("{head}Connection: keep-alive\r\n\r\n{body}")
        );
        let leaves = Asker {
            http10,
            ..Asker::default()
        };
        assert_eq!(
            written(&answer, &leaves),
            format!("{head}Connection: close\r\n\r\n{body}")
        );
        let cors = "Access-Control-Allow-Origin: *\r\n".to_owned();
        let page = Asker { cors, ..asker() };
        assert_eq!(
            written(&answer.with_lines("Allow: GET\r\n"), &page),
            format!("{head}Allow: GET\r\nAccess-Control-Allow-Origin: *\r\n\r\n{body}")
        );
    }

    #[test]
    fn answers_of_each_kind() {
        assert_eq!(
            written(&Answer::no_content(), &asker()),
            format!("HTTP/1.1 204 No Content\r\n{ALL_SAY}\r\n")
        );
        let problem = Answer::problem(problems::OVERLOADED, "later");
        assert_eq!(
            written(&problem.with_lines("Retry-After: 5\r\n"), &Asker::default()),
            format!(
                "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n\
                 Content-Length: 116\r\n{ALL_SAY}Cache-Control: no-store\r\nRetry-After: 5\r\n\
                 Connection: close\r\n\r\n\
                 {{\"type\":\"https://greendot.dev/problems/overloaded\",\"title\":\"The server is \
                 at a limit\",\"status\":503,\"detail\":\"later\"}}"
            )
        );
        // However the asker would go on: the connection ends with it.
        let head = |coding: &str| {
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n{coding}\
                 {ALL_SAY}Cache-Control: no-store, no-transform\r\nX-Accel-Buffering: no\r\n\
                 Connection: close\r\n\r\n"
            )
        };
        let chunked = head("Transfer-Encoding: chunked\r\n");
        let event = Answer::events(&b"data:\n\n"[..]);
        assert_eq!(
            written(&event, &asker()),
            format!("{chunked}000007\r\ndata:\n\n\r\n0\r\n\r\n")
        );
        assert_eq!(written(&Answer::stream(), &asker()), chunked);
        let http10 = true;
        let old = Asker { http10, ..asker() };
        assert_eq!(written(&event, &old), head("") + "data:\n\n");
        assert_eq!(written(&Answer::stream(), &old), head(""));
    }

    #[test]
    fn status_lines_say_their_code() {
        for problem in PROBLEMS {
            let code = format!("HTTP/1.1 {} ", problem.status.code());
            assert!(
                problem.status.line().starts_with(&code),
                "{:?}",
                problem.status
            );
        }
    }
}
