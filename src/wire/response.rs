//! HTTP/1.1 responses: heads, whole answers, problem+json (RFC 9457).

use crate::wire::request::RequestFault;

/// Status codes that the server uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
#[allow(missing_docs, reason = "the names of RFC 9110")]
pub enum Status {
    Ok = 200,
    NoContent = 204,
    BadRequest = 400,
    NotFound = 404,
    MethodNotAllowed = 405,
    RequestTimeout = 408,
    LengthRequired = 411,
    ContentTooLarge = 413,
    UriTooLong = 414,
    UnsupportedMediaType = 415,
    ExpectationFailed = 417,
    TooManyRequests = 429,
    HeadTooLarge = 431,
    InternalError = 500,
    NotImplemented = 501,
    ServiceUnavailable = 503,
    VersionNotSupported = 505,
}

/// What a whole answer is made of; written by [`write_answer`].
#[derive(Clone, Debug)]
pub struct Answer<'a> {
    /// Status.
    pub status: Status,
    /// Content-Type, e.g. `application/json`; ignored when the status has no body.
    pub content_type: &'a str,
    /// Body.
    pub body: &'a [u8],
    /// Extra header lines, each `Name: value\r\n`, or empty.
    pub extra: &'a str,
    /// Send the head alone (HEAD), Content-Length as if with the body.
    pub head_only: bool,
    /// Whether the connection stays open; else `Connection: close`. An HTTP/1.0 peer is told `Connection: keep-alive`.
    pub keep_alive: bool,
    /// The peer speaks HTTP/1.0.
    pub http10: bool,
}
/// Appends status line, headers, body.
pub fn write_answer(_out: &mut Vec<u8>, _answer: &Answer<'_>) {
    todo!()
}

/// A problem's stable identity: `type` is `https://greendot.dev/problems/{slug}` (documented in docs/PROTOCOL.md), `title` fixed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Problem {
    /** HTTP status */
    pub status: Status,
    /** last path segment of `type` */
    pub slug: &'static str,
    /** short, the same for every occurrence */
    pub title: &'static str,
}
impl Problem {
    /// Appends `{"type":..,"title":..,"status":..,"detail":..}`.
    pub fn write(&self, _detail: &str, _out: &mut Vec<u8>) {
        todo!()
    }
}
/// The problem and the detail that answer a request refused on its form.
pub fn problem_of(_fault: RequestFault) -> (Problem, &'static str) {
    todo!()
}

/// Every problem the server can answer with, for docs and openapi; tests hold that docs list each slug.
pub const PROBLEMS: &[Problem] = &[];

/// `HTTP/1.1 100 Continue` and its blank line.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
