//! HTTP/1.1 responses: heads and whole answers.
//!
//! Owns the status line and the headers that every answer carries. Which answer, and what its body
//! says, is decided elsewhere; errors are [`Problem`]s. `Date` is left out: an origin server need
//! not send one it has no reason to.

mod problem;

use crate::wire::json::write_u64;

pub use problem::{PROBLEM_CONTENT_TYPE, PROBLEMS, Problem, problem_of, problems};

/// Status codes that the server uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
#[expect(missing_docs, reason = "the names of RFC 9110 and RFC 6585")]
pub enum Status {
    Ok = 200,
    NoContent = 204,
    BadRequest = 400,
    Unauthorized = 401,
    NotFound = 404,
    MethodNotAllowed = 405,
    RequestTimeout = 408,
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

impl Status {
    /// The three digits as a number.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// Whether an answer of this status has a body.
    pub const fn has_body(self) -> bool {
        !matches!(self, Status::NoContent)
    }

    const fn line(self) -> &'static str {
        match self {
            Status::Ok => "HTTP/1.1 200 OK\r\n",
            Status::NoContent => "HTTP/1.1 204 No Content\r\n",
            Status::BadRequest => "HTTP/1.1 400 Bad Request\r\n",
            Status::Unauthorized => "HTTP/1.1 401 Unauthorized\r\n",
            Status::NotFound => "HTTP/1.1 404 Not Found\r\n",
            Status::MethodNotAllowed => "HTTP/1.1 405 Method Not Allowed\r\n",
            Status::RequestTimeout => "HTTP/1.1 408 Request Timeout\r\n",
            Status::LengthRequired => "HTTP/1.1 411 Length Required\r\n",
            Status::ContentTooLarge => "HTTP/1.1 413 Content Too Large\r\n",
            Status::UriTooLong => "HTTP/1.1 414 URI Too Long\r\n",
            Status::UnsupportedMediaType => "HTTP/1.1 415 Unsupported Media Type\r\n",
            Status::ExpectationFailed => "HTTP/1.1 417 Expectation Failed\r\n",
            Status::MisdirectedRequest => "HTTP/1.1 421 Misdirected Request\r\n",
            Status::TooManyRequests => "HTTP/1.1 429 Too Many Requests\r\n",
            Status::HeadTooLarge => "HTTP/1.1 431 Request Header Fields Too Large\r\n",
            Status::InternalError => "HTTP/1.1 500 Internal Server Error\r\n",
            Status::NotImplemented => "HTTP/1.1 501 Not Implemented\r\n",
            Status::ServiceUnavailable => "HTTP/1.1 503 Service Unavailable\r\n",
            Status::VersionNotSupported => "HTTP/1.1 505 HTTP Version Not Supported\r\n",
        }
    }
}

/// What a whole answer is made of; written by [`write_answer`].
#[derive(Clone, Debug)]
pub struct Answer<'a> {
    /// Status.
    pub status: Status,
    /// Content-Type, e.g. `application/json`; ignored when the status has no body.
    pub content_type: &'a str,
    /// Body; ignored when the status has none.
    pub body: &'a [u8],
    /// Extra header lines, each `Name: value\r\n`, or empty.
    pub extra: &'a str,
    /// Send the head alone (HEAD), Content-Length as if with the body.
    pub head_only: bool,
    /// Whether the connection stays open; else `Connection: close`. An HTTP/1.0 peer is told
    /// `Connection: keep-alive`.
    pub keep_alive: bool,
    /// The peer speaks HTTP/1.0.
    pub http10: bool,
}

/// Appends status line, headers, body.
pub fn write_answer(out: &mut Vec<u8>, answer: &Answer<'_>) {
    out.extend_from_slice(answer.status.line().as_bytes());
    if answer.status.has_body() {
        out.extend_from_slice(b"Content-Type: ");
        out.extend_from_slice(answer.content_type.as_bytes());
        out.extend_from_slice(b"\r\nContent-Length: ");
        write_u64(answer.body.len() as u64, out);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(answer.extra.as_bytes());
    out.extend_from_slice(match (answer.keep_alive, answer.http10) {
        (false, _) => b"Connection: close\r\n\r\n",
        (true, true) => b"Connection: keep-alive\r\n\r\n",
        (true, false) => b"\r\n",
    });
    if answer.status.has_body() && !answer.head_only {
        out.extend_from_slice(answer.body);
    }
}

/// `HTTP/1.1 100 Continue` and its blank line.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn written(answer: &Answer<'_>) -> String {
        let mut out = Vec::new();
        write_answer(&mut out, answer);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn answers() {
        let answer = Answer {
            status: Status::Ok,
            content_type: "application/json",
            body: b"{\"watching\":2}",
            extra: "",
            head_only: false,
            keep_alive: true,
            http10: false,
        };
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n";
        assert_eq!(written(&answer), format!("{head}\r\n{{\"watching\":2}}"));
        assert_eq!(
            written(&Answer {
                head_only: true,
                ..answer.clone()
            }),
            format!("{head}\r\n")
        );
        assert_eq!(
            written(&Answer {
                http10: true,
                extra: "Allow: GET\r\n",
                head_only: true,
                ..answer.clone()
            }),
            format!("{head}Allow: GET\r\nConnection: keep-alive\r\n\r\n")
        );
        assert_eq!(
            written(&Answer {
                keep_alive: false,
                http10: true,
                ..answer.clone()
            }),
            format!("{head}Connection: close\r\n\r\n{{\"watching\":2}}")
        );
        assert_eq!(
            written(&Answer {
                status: Status::NoContent,
                ..answer
            }),
            "HTTP/1.1 204 No Content\r\n\r\n"
        );
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
