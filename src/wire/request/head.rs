//! Gives the lines of a head their meaning.
//!
//! Owns the request line and what version, Host and Connection mean together (RFC 9112, sections 3
//! and 9; RFC 9110, sections 7.2 and 10.1.1). httparse splits the lines; it is called only once the
//! whole head is there. No allocation for a head of at most [`HEADERS_ON_STACK`] headers.

use std::mem::MaybeUninit;

use super::fields::Fields;
use super::scan::{Extent, scan};
use super::target::{is_authority, split_target};
use super::{Head, Method, Parsed, RequestFault, RequestLimits};

/// Headers parsed into an array on the stack; beyond it (only if the limit allows more) into a
/// vector.
const HEADERS_ON_STACK: usize = 64;

/// Parses one head from the start of `input` (leading CRLFs before the request line are skipped and
/// counted in `head_bytes`, RFC 9112 2.2).
///
/// An answer other than `Partial` stays the same however much more input follows. While the head is
/// not whole, a call costs one pass over at most `head_bytes_max` bytes.
pub fn parse_head<'b>(input: &'b [u8], limits: &RequestLimits) -> Parsed<'b> {
    let extent = match scan(input, limits) {
        Ok(Some(extent)) => extent,
        Ok(None) => return Parsed::Partial,
        Err(fault) => return Parsed::Fault(fault),
    };
    let parsed = if extent.header_count <= HEADERS_ON_STACK {
        parse_lines(
            input,
            extent,
            &mut [const { MaybeUninit::uninit() }; HEADERS_ON_STACK],
        )
    } else {
        parse_lines(
            input,
            extent,
            &mut vec![MaybeUninit::uninit(); extent.header_count],
        )
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
        Err(httparse::Error::Version) => {
            let line = &input[extent.start..extent.line_end];
            let (method, target) = (request.method, request.path);
            return match (later_minor(line), method, target) {
                (Some(true), Some(method), Some(target)) => {
                    // Served as the latest minor version that is known (RFC 9110 section 2.5).
                    let fields = &input[extent.line_end..extent.end];
                    let mut headers = vec![httparse::EMPTY_HEADER; extent.header_count];
                    match httparse::parse_headers(fields, &mut headers) {
                        Ok(httparse::Status::Complete((bytes, headers)))
                            if bytes == fields.len() =>
                        {
                            head_of(method, target, 1, headers, fields)
                        }
                        Ok(_) | Err(_) => Err(RequestFault::BadHead),
                    }
                }
                (Some(false), ..) => Err(RequestFault::BadVersion),
                _ => Err(RequestFault::BadHead),
            };
        }
        Ok(_) | Err(_) => return Err(RequestFault::BadHead),
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
    else {
        return Err(RequestFault::BadHead);
    };
    let fields = &input[extent.line_end..extent.end];
    head_of(method, target, minor, request.headers, fields)
}

fn head_of<'b>(
    method: &str,
    target: &'b str,
    minor: u8,
    headers: &[httparse::Header<'b>],
    lines: &'b [u8],
) -> Result<Head<'b>, RequestFault> {
    let method = method_of(method)?;
    let fields = Fields::read(headers)?;
    let http10 = minor == 0;
    match fields.host {
        Some(host) if !is_authority(host, true) => return Err(RequestFault::BadHost),
        None if !http10 => return Err(RequestFault::BadHost),
        Some(_) | None => {}
    }
    let (authority, path, query) = split_target(method, target)?;
    // RFC 9112 section 3.2.2: what the target names goes before Host. Both are ASCII.
    let host = authority.or(fields.host.and_then(|host| std::str::from_utf8(host).ok()));
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
        host,
        origin: fields.origin,
        fetch_site: fields.fetch_site,
        asked_headers: fields.asked_headers,
        authorization: fields.authorization,
        cookie: fields.cookie,
        feed: fields.feed,
        if_none_match: fields.if_none_match,
        user_agent: fields.user_agent,
        lines,
    })
}

/// Of a request line that httparse refused for its version: whether it names a later minor version
/// of HTTP/1 (RFC 9112 2.3), or another one; None: no version at all.
fn later_minor(line: &[u8]) -> Option<bool> {
    let line = line.strip_suffix(b"\r\n").unwrap_or(line);
    let version = line.splitn(3, |&byte| byte == b' ').nth(2)?;
    match version.strip_prefix(b"HTTP/")? {
        [major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            Some(*major == b'1' && *minor > b'1')
        }
        _ => None,
    }
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
        "TRACE" => Method::Trace,
        "QUERY" => Method::Query,
        _ => return Err(RequestFault::UnknownMethod),
    })
}
