//! HTTP/1.x requests: head, framing, body, target (RFC 9112), stricter than httparse where it is lenient.

use std::borrow::Cow;

/// Bounds of a request (DESIGN.md section 8).
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /** request line and headers with their final blank line */
    pub head_bytes_max: usize,
    /** headers */
    pub header_count_max: usize,
    /** decoded body */
    pub body_bytes_max: usize,
}

/// Request methods that the server knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names of RFC 9110")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Patch,
}

/// How the body's end is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /** No body. */
    None,
    /** Content-Length. */
    Length(u64),
    /** Transfer-Encoding: chunked. */
    Chunked,
}

/// A request head, borrowed from the input.
#[derive(Clone, Debug)]
pub struct Head<'b> {
    /// Method.
    pub method: Method,
    /// Path as sent, percent-encoded, always starting with '/' (absolute-form reduced to its path; `*` for OPTIONS *).
    pub path: &'b str,
    /// After the first '?', as sent.
    pub query: Option<&'b str>,
    /// HTTP/1.0 rather than 1.1.
    pub http10: bool,
    /// The connection may carry another request after this one (version and Connection header together).
    pub keep_alive: bool,
    /// `Expect: 100-continue` was sent (HTTP/1.1 only).
    pub expect_continue: bool,
    /// Framing of the body.
    pub framing: Framing,
    /// Content-Type, as sent.
    pub content_type: Option<&'b str>,
    /// Last-Event-ID, as sent.
    pub last_event_id: Option<&'b [u8]>,
    /// Origin, as sent.
    pub origin: Option<&'b str>,
    /// Authorization, as sent.
    pub authorization: Option<&'b str>,
}

/// What the input so far amounts to.
#[derive(Debug)]
pub enum Parsed<'b> {
    /// Not yet a whole head.
    Partial,
    /// A head of `head_bytes` bytes.
    Head {
        /** the head */
        head: Head<'b>,
        /** its length; the body starts here */
        head_bytes: usize,
    },
    /// Refused; the connection must close after the answer.
    Fault(RequestFault),
}

/// Why a request was refused on its form alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestFault {
    /** 400: the head is not HTTP (bare LF or CR, bad token, obs-fold, NUL ...) */
    BadHead,
    /** 400: no Host, two, or a bad one */
    BadHost,
    /** 400: Content-Length and/or Transfer-Encoding do not name one framing */
    BadFraming,
    /** 400: a chunk header or trailer is malformed */
    BadChunk,
    /** 413 */
    BodyTooLarge,
    /** 414: request line alone longer than head_bytes_max */
    TargetTooLong,
    /** 417: an Expect other than 100-continue */
    BadExpect,
    /** 431 */
    HeadTooLarge,
    /** 431 */
    TooManyHeaders,
    /** 501: method unknown */
    UnknownMethod,
    /** 501: a transfer coding other than chunked */
    UnknownCoding,
    /** 505 */
    BadVersion,
}

/// Parses one head from the start of `input` (leading CRLFs before the request line are skipped and counted in `head_bytes`, RFC 9112 2.2).
pub fn parse_head<'b>(_input: &'b [u8], _limits: &RequestLimits) -> Parsed<'b> {
    todo!()
}

/// Incremental decoder of a chunked body.
#[derive(Clone, Debug, Default)]
pub struct ChunkDecoder {
    _p: (),
}
/// Progress of a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BodyStep {
    /** input bytes used */
    pub consumed: usize,
    /** the body is whole */
    pub done: bool,
}
impl ChunkDecoder {
    /// Takes what it can from `input`, appends decoded bytes to `body` (never beyond body_bytes_max).
    pub fn decode(
        &mut self,
        _input: &[u8],
        _body: &mut Vec<u8>,
        _limits: &RequestLimits,
    ) -> Result<BodyStep, RequestFault> {
        todo!()
    }
}

/// Percent-decodes a path segment exactly once ('+' stays '+'); None on a bad escape. Borrowed when nothing was escaped.
pub fn decode_segment(_raw: &str) -> Option<Cow<'_, [u8]>> {
    todo!()
}
/// The name=value pairs of a query, each decoded once ('+' is a space: application/x-www-form-urlencoded); None for a pair with a bad escape.
pub fn query_pairs(_raw: &str) -> impl Iterator<Item = Option<(Cow<'_, [u8]>, Cow<'_, [u8]>)>> {
    std::iter::empty()
}
