//! Finds where a head ends, and refuses on the way what no head may hold.
//!
//! Owns the bounds of a head and the rule that every line ends in CR LF (RFC 9112 2.2 lets a
//! recipient take a lone LF; two recipients that disagree about it can be played against each
//! other). Eight bytes a step, so that a peer that sends its head byte by byte costs little each
//! time it is looked at again. Never gives a line a meaning.

use super::{RequestFault, RequestLimits};

/// Blank lines skipped before a request line (RFC 9112 2.2: at least one, for clients that add CRLF
/// after a POST body).
const BLANK_LINES_MAX: usize = 4;

/// Where a head stands in its input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    /// First byte of the request line.
    pub(super) start: usize,
    /// First byte after the request line, its CR LF included.
    pub(super) line_end: usize,
    /// First byte after the blank line that ends the head.
    pub(super) end: usize,
    /// Header lines between the two.
    pub(super) header_count: usize,
}

/// The head at the start of `input`; `None` while its end has not come and may still come within
/// the limits.
///
/// Decides on the first byte that is wrong, so a longer input never changes a refusal.
pub(super) fn scan(input: &[u8], limits: &RequestLimits) -> Result<Option<Extent>, RequestFault> {
    let bounded = &input[..input.len().min(limits.head_bytes_max)];
    let mut start = 0;
    let mut line_start = 0;
    let mut line_end = None;
    let mut lines: usize = 0;
    let mut at = 0;
    while let Some(control_at) = next_control(bounded, at) {
        at = control_at + 1;
        match bounded[control_at] {
            b'\t' => continue,
            b'\r' => {}
            _ => return Err(RequestFault::BadHead),
        }
        match bounded.get(at) {
            None => break,
            Some(b'\n') => at += 1,
            Some(_) => return Err(RequestFault::BadHead),
        }
        let blank = control_at == line_start;
        line_start = at;
        match (line_end, blank) {
            (None, true) => {
                start = at;
                if start > BLANK_LINES_MAX * 2 {
                    return Err(RequestFault::BadHead);
                }
            }
            (None, false) => {
                // At once: who speaks another protocol may never send a blank line.
                if !names_version(&bounded[start..control_at]) {
                    return Err(RequestFault::BadHead);
                }
                line_end = Some(at);
            }
            (Some(line_end), true) => {
                return Ok(Some(Extent {
                    start,
                    line_end,
                    end: at,
                    header_count: lines,
                }));
            }
            (Some(_), false) => {
                lines += 1;
                if lines > limits.header_count_max {
                    return Err(RequestFault::TooManyHeaders);
                }
            }
        }
    }
    if input.len() < limits.head_bytes_max {
        return Ok(None);
    }
    Err(match line_end {
        None => RequestFault::TargetTooLong,
        Some(_) => RequestFault::HeadTooLarge,
    })
}

/// Whether a request line ends in a version (RFC 9112 2.3).
fn names_version(line: &[u8]) -> bool {
    matches!(
        line,
        [.., b' ', b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit()
    )
}

/// Index of the first byte below 0x20 at or after `from`.
fn next_control(bytes: &[u8], from: usize) -> Option<usize> {
    const ONES: u64 = u64::MAX / 0xff;
    const HIGHS: u64 = ONES * 0x80;
    let mut at = from;
    while let Some(eight) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*eight);
        // The high bit of every byte that is below 0x20. A borrow may mark bytes above a true one,
        // never below it, so the lowest mark is exact.
        let below = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
        if below != 0 {
            return Some(at + below.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    bytes
        .get(at..)?
        .iter()
        .position(|&byte| byte < 0x20)
        .map(|more| at + more)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RequestLimits = RequestLimits {
        head_bytes_max: 64,
        header_count_max: 2,
        body_bytes_max: 0,
    };

    #[test]
    fn extents() {
        let found = |start, line_end, end, header_count| {
            Ok(Some(Extent {
                start,
                line_end,
                end,
                header_count,
            }))
        };
        assert_eq!(
            scan(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest", &LIMITS),
            found(0, 16, 27, 1)
        );
        assert_eq!(
            scan(b"\r\n\r\nG / HTTP/1.1\r\n\r\n", &LIMITS),
            found(4, 18, 20, 0)
        );
        assert_eq!(
            scan(b"G HTTP/1.1\r\na:\tb\r\nc: d\r\n\r\n", &LIMITS),
            found(0, 12, 26, 2)
        );
        assert_eq!(scan(b"", &LIMITS), Ok(None));
        assert_eq!(scan(b"G HTTP/1.1\r\na: b\r\n\r", &LIMITS), Ok(None));
    }

    #[test]
    fn control_bytes() {
        for (input, at) in [
            (&b"GET / HTTP/1.1\n"[..], 15),
            (b"GET / HTTP/1.1\r\nHost: a\n\r\n", 24),
            (b"GET / HTTP/1.1\rHost", 16),
            (b"G HTTP/1.1\r\na: b\rc\r\n\r\n", 18),
            (b"G HTTP/1.1\r\na: b\r\n\n", 19),
            (b"G HTTP/1.1\r\na: b\r\r\n", 18),
            (b"G\0", 2),
            (b"G HTTP/1.1\r\na: \x01", 16),
            (b"\x16\x03\x01", 1),
            (b"\n", 1),
            (b"\r\n\r\n\r\n\r\n\r\n", 10),
            // A request line without a version, and what begins another protocol.
            (b"GET /\r\n", 7),
            (b"SSH-2.0-x\r\n", 11),
            (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 17),
        ] {
            assert_eq!(scan(&input[..at - 1], &LIMITS), Ok(None), "{input:?}");
            for len in at..=input.len() {
                assert_eq!(
                    scan(&input[..len], &LIMITS),
                    Err(RequestFault::BadHead),
                    "{input:?} at {len}"
                );
            }
        }
    }

    #[test]
    fn every_byte_at_every_place_of_a_word() {
        for place in 0..24 {
            for byte in 0..=255_u8 {
                let mut bytes = [b'a'; 24];
                bytes[place] = byte;
                assert_eq!(next_control(&bytes, 0), (byte < 0x20).then_some(place));
                bytes[place..].fill(byte);
                assert_eq!(next_control(&bytes, 0), (byte < 0x20).then_some(place));
            }
        }
        assert_eq!(next_control(b"\r\n", 1), Some(1));
        assert_eq!(next_control(b"\r\n", 2), None);
    }

    #[test]
    fn bounds_are_refused_as_soon_as_crossed() {
        let line = [b'G'; 65];
        assert_eq!(scan(&line[..63], &LIMITS), Ok(None));
        assert_eq!(scan(&line[..64], &LIMITS), Err(RequestFault::TargetTooLong));
        assert_eq!(scan(&line, &LIMITS), Err(RequestFault::TargetTooLong));

        let mut head = b"G HTTP/1.1\r\na: ".to_vec();
        head.resize(60, b'x');
        head.extend_from_slice(b"\r\n\r\n");
        assert_eq!(
            scan(&head, &LIMITS).map(|found| found.map(|extent| extent.end)),
            Ok(Some(64))
        );
        assert_eq!(scan(&head[..63], &LIMITS), Ok(None));
        head.insert(15, b'x');
        assert_eq!(scan(&head[..63], &LIMITS), Ok(None));
        assert_eq!(scan(&head[..64], &LIMITS), Err(RequestFault::HeadTooLarge));
        assert_eq!(scan(&head, &LIMITS), Err(RequestFault::HeadTooLarge));

        assert_eq!(scan(b"G HTTP/1.1\r\na:\r\nb:\r\nc:\r", &LIMITS), Ok(None));
        assert_eq!(
            scan(b"G HTTP/1.1\r\na:\r\nb:\r\nc:\r\n", &LIMITS),
            Err(RequestFault::TooManyHeaders)
        );
    }
}
