//! The headers that the server looks at, and the framing that two of them name.
//!
//! Owns which may stand once, and the refusal of every message whose end could be found in two ways
//! (RFC 9112 section 6.3).

use super::{Framing, RequestFault};

/// The headers that the server looks at. All but Connection and Expect may stand once at most:
/// which of two would count is what an attacker hopes that two servers decide differently.
#[derive(Default)]
pub(super) struct Fields<'b> {
    pub(super) host: Option<&'b [u8]>,
    content_length: Option<u64>,
    coding: Coding,
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) expect_continue: bool,
    pub(super) content_type: Option<&'b str>,
    pub(super) last_event_id: Option<&'b [u8]>,
    pub(super) origin: Option<&'b str>,
    pub(super) fetch_site: Option<&'b str>,
    pub(super) asked_headers: Option<&'b str>,
    pub(super) authorization: Option<&'b str>,
    pub(super) cookie: Option<&'b str>,
    pub(super) feed: Option<&'b str>,
    pub(super) if_none_match: Option<&'b [u8]>,
    pub(super) user_agent: Option<&'b [u8]>,
}

impl<'b> Fields<'b> {
    pub(super) fn read(headers: &[httparse::Header<'b>]) -> Result<Fields<'b>, RequestFault> {
        use RequestFault::{BadExpect, BadFraming, BadHead, BadHost};
        let mut fields = Fields::default();
        for header in headers {
            let (name, value) = (header.name, header.value);
            let is = |known: &str| name.eq_ignore_ascii_case(known);
            // By length first: most headers of a browser are none of these.
            match name.len() {
                4 if is("host") => once(&mut fields.host, value, BadHost)?,
                // Of two (RFC 6265, section 5.4, allows one) neither counts, nor what is no text.
                6 if is("cookie") => {
                    let cookie = std::str::from_utf8(value).unwrap_or_default();
                    let first = fields.cookie.is_none();
                    fields.cookie = Some(if first { cookie } else { "" });
                }
                6 if is("origin") => once(&mut fields.origin, text(value)?, BadHead)?,
                6 if is("expect") => {
                    if !value.eq_ignore_ascii_case(b"100-continue") {
                        return Err(BadExpect);
                    }
                    fields.expect_continue = true;
                }
                10 if is("connection") => fields.read_connection(value),
                10 if is("user-agent") => fields.user_agent = Some(value),
                12 if is("content-type") => once(&mut fields.content_type, text(value)?, BadHead)?,
                // Of several lines one counts: the others would but spare more of an answer.
                13 if is("if-none-match") => fields.if_none_match = Some(value),
                13 if is("last-event-id") => once(&mut fields.last_event_id, value, BadHead)?,
                13 if is("authorization") => {
                    once(&mut fields.authorization, text(value)?, BadHead)?
                }
                13 if is("greendot-feed") => once(&mut fields.feed, text(value)?, BadHead)?,
                14 if is("content-length") => {
                    once(&mut fields.content_length, decimal(value)?, BadFraming)?
                }
                14 if is("sec-fetch-site") => once(&mut fields.fetch_site, text(value)?, BadHead)?,
                30 if is("access-control-request-headers") => {
                    once(&mut fields.asked_headers, text(value)?, BadHead)?
                }
                17 if is("transfer-encoding") => fields.coding.read(value)?,
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

    pub(super) fn framing(&self, http10: bool) -> Result<Framing, RequestFault> {
        match (self.content_length, self.coding) {
            (None, Coding::None) => Ok(Framing::None),
            (Some(bytes), Coding::None) => Ok(Framing::Length(bytes)),
            // Of a message whose last coding is not chunked nobody knows the end (RFC 9112 6.3).
            (Some(_), _) | (None, Coding::Unknown) => Err(RequestFault::BadFraming),
            (None, _) if http10 => Err(RequestFault::BadFraming),
            (None, Coding::Chunked) => Ok(Framing::Chunked),
            (None, Coding::UnknownChunked) => Err(RequestFault::UnknownCoding),
        }
    }
}

/// The transfer codings of a message, of one header line or several.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Coding {
    #[default]
    None,
    /// Chunked alone.
    Chunked,
    /// Others, and not yet chunked.
    Unknown,
    /// Others, and chunked behind them.
    UnknownChunked,
}

impl Coding {
    /// Reads one line. Nothing may stand behind chunked, which may stand once.
    fn read(&mut self, value: &[u8]) -> Result<(), RequestFault> {
        for coding in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            let chunked = coding.eq_ignore_ascii_case(b"chunked");
            *self = match (*self, chunked) {
                _ if coding.is_empty() => return Err(RequestFault::BadFraming),
                (Coding::Chunked | Coding::UnknownChunked, _) => {
                    return Err(RequestFault::BadFraming);
                }
                (Coding::None, true) => Coding::Chunked,
                (Coding::Unknown, true) => Coding::UnknownChunked,
                (Coding::None | Coding::Unknown, false) => Coding::Unknown,
            };
        }
        Ok(())
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

/// One or more ASCII digits and nothing else; saturates, as RFC 9110 8.6 wants no overflow to be
/// taken for a length.
fn decimal(value: &[u8]) -> Result<u64, RequestFault> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(RequestFault::BadFraming);
    }
    Ok(value.iter().fold(0_u64, |sum, digit| {
        sum.saturating_mul(10)
            .saturating_add(u64::from(digit - b'0'))
    }))
}
