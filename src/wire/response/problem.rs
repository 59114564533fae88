//! Errors as the client reads them: problem+json (RFC 9457).
//!
//! Owns the closed list of problems. A slug, once published, keeps its meaning; what was wrong this
//! time is the `detail`.

use super::StatusCode;
use crate::wire::json::{write_str, write_u64};
use crate::wire::request::RequestFault;

/// Content-Type of a written [`Problem`].
pub const PROBLEM_CONTENT_TYPE: &str = "application/problem+json";

/// A problem's stable identity: `type` is `https://greendot.dev/problems/{slug}` (documented in
/// docs/PROTOCOL.md), `title` fixed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The status code of the answer, repeated in its body (RFC 9457, 3.1.2).
    pub status: StatusCode,
    /// Last path segment of `type`.
    pub slug: &'static str,
    /// Short, the same for every occurrence.
    pub title: &'static str,
}

impl Problem {
    /// Appends `{"type":..,"title":..,"status":..,"detail":..}`.
    pub fn write(&self, detail: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"type\":\"https://greendot.dev/problems/");
        out.extend_from_slice(self.slug.as_bytes());
        out.extend_from_slice(b"\",\"title\":");
        write_str(self.title, out);
        out.extend_from_slice(b",\"status\":");
        write_u64(u64::from(self.status.code()), out);
        out.extend_from_slice(b",\"detail\":");
        write_str(detail, out);
        out.push(b'}');
    }
}

/// Declares each problem once: its name here, its status, slug and title, and its row in
/// [`PROBLEMS`].
macro_rules! table {
    ($($name:ident: $status:ident, $slug:literal, $title:literal;)*) => {
        /// The problems by name.
        pub mod problems {
            use super::{Problem, StatusCode};
            $(
                #[doc = concat!($title, ".")]
                pub const $name: Problem =
                    Problem { status: StatusCode::$status, slug: $slug, title: $title };
            )*
        }

        /// Every problem the server can answer with, for docs and openapi; tests hold that docs
        /// list each slug.
        pub const PROBLEMS: &[Problem] = &[$(problems::$name),*];
    };
}

table! {
    BAD_HEAD: BadRequest, "bad-head", "The request head is not valid HTTP/1.1";
    BAD_HOST: BadRequest, "bad-host", "The Host header is missing or malformed";
    BAD_FRAMING: BadRequest, "bad-framing", "The length of the request body is ambiguous";
    BAD_CHUNK: BadRequest, "bad-chunk", "The chunked request body is malformed";
    BAD_QUERY: BadRequest, "bad-query", "The query of the URL is not understood";
    BAD_USER: BadRequest, "bad-user", "A user id is not legal";
    BAD_JSON: BadRequest, "bad-json", "The request body is not the JSON expected";
    BAD_BUNDLE: BadRequest, "bad-bundle", "The request body is not beat datagrams";
    UNAUTHORIZED: Unauthorized, "unauthorized", "The request does not prove that it may do this";
    FOREIGN_ORIGIN: Forbidden, "foreign-origin", "Pages of this origin may not do this";
    WATCH_DENIED: Forbidden, "watch-denied", "The token does not let its holder see these users";
    NOT_THE_USER: Forbidden, "not-the-user", "The token does not speak for these users";
    NOT_PERMITTED: Forbidden, "not-permitted", "The key does not permit this call";
    NOT_FOUND: NotFound, "not-found", "Nothing is found at this path";
    UNKNOWN_STREAM: NotFound, "unknown-stream", "No such stream is open";
    METHOD_NOT_ALLOWED: MethodNotAllowed, "method-not-allowed", "The path does not take this \
     method";
    REQUEST_TIMEOUT: RequestTimeout, "request-timeout", "The request did not arrive in time";
    CURSOR_GONE: Gone, "cursor-gone", "The cursor is not of a walk that goes on here";
    LENGTH_REQUIRED: LengthRequired, "length-required", "The request needs a body";
    BODY_TOO_LARGE: ContentTooLarge, "body-too-large", "The request body is too large";
    TOO_MANY_USERS: ContentTooLarge, "too-many-users", "The request names too many users";
    TICKET_TOO_LONG: ContentTooLarge, "ticket-too-long", "The ticket would be too long for a URL";
    TARGET_TOO_LONG: UriTooLong, "target-too-long", "The request line is too long";
    UNSUPPORTED_MEDIA_TYPE: UnsupportedMediaType, "unsupported-media-type", "The request body has \
     the wrong media type";
    BAD_EXPECT: ExpectationFailed, "bad-expect", "The expectation is not understood";
    WRONG_HOST: MisdirectedRequest, "wrong-host", "The server is not known by this name";
    WRONG_ROLE: MisdirectedRequest, "wrong-role", "This node does not serve the path in its role";
    RATE_LIMITED: TooManyRequests, "rate-limited", "The holder of the token asks too much";
    HEAD_TOO_LARGE: HeadTooLarge, "head-too-large", "The request head is too large";
    TOO_MANY_HEADERS: HeadTooLarge, "too-many-headers", "The request has too many headers";
    INTERNAL: InternalError, "internal", "The server failed";
    UNKNOWN_METHOD: NotImplemented, "unknown-method", "The method is not implemented";
    UNKNOWN_CODING: NotImplemented, "unknown-coding", "The transfer coding is not implemented";
    OVERLOADED: ServiceUnavailable, "overloaded", "The server is at a limit";
    NODE_UNREACHED: ServiceUnavailable, "node-unreached", "A node that knows does not answer";
    DRAINING: ServiceUnavailable, "draining", "The server is shutting down";
    FLEET_AWAY: ServiceUnavailable, "fleet-away", "The node does not reach its fleet";
    BAD_VERSION: VersionNotSupported, "bad-version", "The HTTP version is not supported";
}

/// The problem and the detail that answer a request refused on its form.
pub fn problem_of(fault: RequestFault) -> (Problem, &'static str) {
    match fault {
        RequestFault::BadHead => (
            problems::BAD_HEAD,
            "a line does not end in CR LF, or holds a byte or a form that HTTP does not allow \
             there; percent-encode what is not ASCII, do not fold header lines, and send \
             Content-Type, Origin, Authorization and Last-Event-ID once at most",
        ),
        RequestFault::BadHost => (
            problems::BAD_HOST,
            "send exactly one Host header of the form host or host:port",
        ),
        RequestFault::BadFraming => (
            problems::BAD_FRAMING,
            "send exactly one Content-Length of digits only, or exactly one Transfer-Encoding: \
             chunked (HTTP/1.1 only; it stands last), never both",
        ),
        RequestFault::BadChunk => (
            problems::BAD_CHUNK,
            "a chunk is a size of 1 to 16 hex digits, CR LF, that many bytes, CR LF; the last has \
             size 0",
        ),
        RequestFault::BodyTooLarge => (
            problems::BODY_TOO_LARGE,
            "the body is longer than the server takes; split the request into smaller ones",
        ),
        RequestFault::TargetTooLong => (
            problems::TARGET_TOO_LONG,
            "the request line is longer than the server takes; send long lists as a JSON body with \
             POST",
        ),
        RequestFault::BadExpect => (
            problems::BAD_EXPECT,
            "only Expect: 100-continue is understood",
        ),
        RequestFault::HeadTooLarge => (
            problems::HEAD_TOO_LARGE,
            "the request line and headers together are longer than the server takes; send fewer or \
             shorter headers",
        ),
        RequestFault::TooManyHeaders => (problems::TOO_MANY_HEADERS, "send fewer header lines"),
        RequestFault::UnknownMethod => (
            problems::UNKNOWN_METHOD,
            "the server knows GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH and TRACE, in capitals",
        ),
        RequestFault::UnknownCoding => (
            problems::UNKNOWN_CODING,
            "chunked is the only transfer coding that the server takes",
        ),
        RequestFault::BadVersion => (problems::BAD_VERSION, "speak HTTP/1.1 or HTTP/1.0"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_as_written() {
        let mut out = Vec::new();
        problems::BAD_USER.write("users[2]: the user id is \"empty\"\n", &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"type":"https://greendot.dev/problems/bad-user","title":"A user id is not legal","#
                .to_owned()
                + r#""status":400,"detail":"users[2]: the user id is \"empty\"\n"}"#
        );
    }

    #[test]
    fn slugs_are_distinct_and_plain() {
        for (index, problem) in PROBLEMS.iter().enumerate() {
            assert!(
                problem
                    .slug
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'-'),
                "{}",
                problem.slug
            );
            assert!(
                PROBLEMS[..index]
                    .iter()
                    .all(|other| other.slug != problem.slug),
                "{} twice",
                problem.slug
            );
        }
    }

    /// A row each, in this order: `| \`slug\` | status | when |`.
    #[test]
    fn the_protocol_lists_every_problem() {
        let page = include_str!("../../../docs/PROTOCOL.md");
        let (_, table) = page
            .split_once("| `type` ends in | status | when |\n|---|---|---|\n")
            .unwrap();
        let rows = table.lines().take_while(|line| line.starts_with('|'));
        let listed: Vec<(&str, &str)> = rows
            .map(|row| {
                let mut cells = row.trim_matches('|').split('|').map(str::trim);
                (
                    cells.next().unwrap().trim_matches('`'),
                    cells.next().unwrap(),
                )
            })
            .collect();
        let codes: Vec<String> = PROBLEMS
            .iter()
            .map(|problem| problem.status.code().to_string())
            .collect();
        let expected: Vec<(&str, &str)> = PROBLEMS
            .iter()
            .zip(&codes)
            .map(|(problem, code)| (problem.slug, code.as_str()))
            .collect();
        assert_eq!(listed, expected);
    }

    #[test]
    fn statuses_of_faults() {
        let codes = RequestFault::ALL.map(|fault| problem_of(fault).0.status.code());
        assert_eq!(
            codes,
            [400, 400, 400, 400, 413, 414, 417, 431, 431, 501, 501, 505]
        );
        for fault in RequestFault::ALL {
            assert!(PROBLEMS.contains(&problem_of(fault).0));
        }
    }
}
