//! HTTP/1.x requests: head, framing, body, target (RFC 9112), stricter than httparse where it is
//! lenient.
//!
//! Owns the words of a request and the order of its parts: `scan` finds where the head ends and
//! refuses stray control bytes, `head` and `fields` give the lines a meaning, `target` takes
//! targets apart, `chunk` chunked bodies. Never routes, never answers, never holds bytes between
//! calls.

mod chunk;
mod fields;
mod forwarded;
mod head;
mod overhear;
mod scan;
mod target;
#[cfg(test)]
mod tests;

pub use chunk::{BodyStep, CHUNK_EXTENSION_BYTES_MAX, ChunkDecoder, write_chunk, write_last_chunk};
pub use forwarded::{VIA, client_of, has_come_by_a_node};
pub use head::parse_head;
pub use overhear::{Overheard, overhear};
pub use target::{QueryPair, decode_segment, query_pairs};

/// Bounds of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Longest head in bytes: blank lines before it, request line, headers and the final blank line
    /// together.
    pub head_bytes_max: usize,
    /// Most header lines.
    pub header_count_max: usize,
    /// Longest decoded body in bytes.
    pub body_bytes_max: usize,
}

/// Request methods that the server knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names of RFC 9110")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Patch,
    Trace,
    Query,
}

/// How the body's end is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// No body.
    None,
    /// Content-Length. A number beyond `u64` reads as `u64::MAX`, which no limit allows.
    Length(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
}

impl Framing {
    /// Refuses a declared length beyond `body_bytes_max` before a byte of the body is taken in. A
    /// chunked body is held to the same limit by [`ChunkDecoder`].
    pub fn check(self, limits: &RequestLimits) -> Result<(), RequestFault> {
        match self {
            Framing::Length(bytes) if bytes > limits.body_bytes_max as u64 => {
                Err(RequestFault::BodyTooLarge)
            }
            Framing::None | Framing::Length(_) | Framing::Chunked => Ok(()),
        }
    }
}

/// A request head, borrowed from the input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head<'b> {
    /// One that the server serves somewhere; others were refused.
    pub method: Method,
    /// Path as sent, percent-encoded, always starting with '/' (absolute-form reduced to its path;
    /// `*` for OPTIONS *).
    pub path: &'b str,
    /// After the first '?', as sent.
    pub query: Option<&'b str>,
    /// HTTP/1.0 rather than 1.1.
    pub http10: bool,
    /// The connection may carry another request after this one (version and Connection header
    /// together).
    pub keep_alive: bool,
    /// `Expect: 100-continue` was sent (HTTP/1.1 only).
    pub expect_continue: bool,
    /// Framing of the body.
    pub framing: Framing,
    /// Content-Type, as sent.
    pub content_type: Option<&'b str>,
    /// Last-Event-ID, as sent.
    pub last_event_id: Option<&'b [u8]>,
    /// Whom the request is for: the target's authority, or else Host; `host` or `host:port`, or
    /// empty.
    pub host: Option<&'b str>,
    /// Origin, as sent.
    pub origin: Option<&'b str>,
    /// Sec-Fetch-Site, as sent: how the page that asks stands to this origin, as its browser says.
    pub fetch_site: Option<&'b str>,
    /// Access-Control-Request-Headers, as sent.
    pub asked_headers: Option<&'b str>,
    /// Authorization, as sent.
    pub authorization: Option<&'b str>,
    /// Cookie, as sent.
    pub cookie: Option<&'b str>,
    /// Greendot-Feed, as sent.
    pub feed: Option<&'b str>,
    /// If-None-Match, as sent.
    pub if_none_match: Option<&'b [u8]>,
    /// User-Agent, as sent; of several lines one.
    pub user_agent: Option<&'b [u8]>,
    /// All headers as sent, each with its end, and the empty line.
    pub lines: &'b [u8],
}

/// What the input so far amounts to.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "it stands on the stack, once a request"
)]
pub enum Parsed<'b> {
    /// Not yet a whole head.
    Partial,
    /// A whole head.
    Head {
        /// Parsed, and borrowed from the bytes read.
        head: Head<'b>,
        /// Its length in bytes, blank lines before it included; the body starts here.
        head_bytes: usize,
    },
    /// Refused; the connection must close after the answer.
    Fault(RequestFault),
}

/// Why a request was refused on its form alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestFault {
    /// 400: the head is not HTTP (bare LF or CR, bad token, obs-fold, NUL, a header twice that may
    /// stand once ...).
    BadHead,
    /// 400: no Host, two, or one that is not `host[:port]`.
    BadHost,
    /// 400: Content-Length and Transfer-Encoding do not name exactly one framing.
    BadFraming,
    /// 400: a chunk header or trailer is malformed.
    BadChunk,
    /// 413: the body is longer than `body_bytes_max`.
    BodyTooLarge,
    /// 414: the request line alone is longer than `head_bytes_max`.
    TargetTooLong,
    /// 417: an Expect other than 100-continue.
    BadExpect,
    /// 431: the head is longer than `head_bytes_max`, or a body's trailers are.
    HeadTooLarge,
    /// 431: more header lines than `header_count_max`.
    TooManyHeaders,
    /// 501: a method that the server does not know.
    UnknownMethod,
    /// 501: a transfer coding other than chunked, before it.
    UnknownCoding,
    /// 505: a version other than HTTP/1.
    BadVersion,
}

impl RequestFault {
    /// Every fault, for tables and tests.
    pub const ALL: [RequestFault; 12] = [
        RequestFault::BadHead,
        RequestFault::BadHost,
        RequestFault::BadFraming,
        RequestFault::BadChunk,
        RequestFault::BodyTooLarge,
        RequestFault::TargetTooLong,
        RequestFault::BadExpect,
        RequestFault::HeadTooLarge,
        RequestFault::TooManyHeaders,
        RequestFault::UnknownMethod,
        RequestFault::UnknownCoding,
        RequestFault::BadVersion,
    ];
}
