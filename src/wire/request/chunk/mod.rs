//! Chunked bodies (RFC 9112 section 7.1), both ways.
//!
//! Owns the decoder, which keeps a few numbers and no bytes between calls, and the encoder that
//! clients and tests use. Extensions and trailers are checked and thrown away. Never takes in a
//! byte beyond `body_bytes_max`.

use super::{RequestFault, RequestLimits};

/// Longest extension of one chunk in bytes, its ';' included.
pub const CHUNK_EXTENSION_BYTES_MAX: usize = 256;
/// A size of this many hex digits cannot overflow a `u64`.
const SIZE_DIGITS_MAX: u8 = 16;

/// Incremental decoder of one chunked body. May be fed at any split; after a refusal it only
/// repeats it.
#[derive(Clone, Debug, Default)]
pub struct ChunkDecoder {
    state: State,
    /// Bytes of extensions and trailers so far: a peer may not make up for a small body with an
    /// endless frame.
    discarded_bytes: usize,
    trailer_count: usize,
}

/// Progress of a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BodyStep {
    /// Input bytes used.
    pub consumed: usize,
    /// The body is whole; what follows in the input is the next request.
    pub done: bool,
}

/// What the next byte must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// A hex digit of the size, or its end.
    Size {
        value: u64,
        digits: u8,
    },
    /// A byte of the extension, or CR.
    Extension {
        value: u64,
        bytes: usize,
    },
    /// LF after the size line.
    SizeLf {
        value: u64,
    },
    /// A byte of the chunk.
    Data {
        left: u64,
    },
    /// CR after the chunk.
    DataCr,
    /// LF after the chunk.
    DataLf,
    /// The first byte of a trailer line, or CR of the blank line that ends the body.
    TrailerStart,
    /// A byte of a trailer's name, or ':'.
    TrailerName,
    /// A byte of a trailer's value, or CR.
    TrailerValue,
    /// LF after a trailer line.
    TrailerLf,
    /// LF of the blank line that ends the body.
    EndLf,
    /// Nothing: the body is whole.
    Done,
    Refused(RequestFault),
}

impl Default for State {
    fn default() -> State {
        State::Size {
            value: 0,
            digits: 0,
        }
    }
}

impl ChunkDecoder {
    /// Takes what it can from `input` and appends the decoded bytes to `body`, which never grows
    /// beyond `body_bytes_max`: a chunk that announces more than there is room for is refused at
    /// its size line.
    pub fn decode(
        &mut self,
        input: &[u8],
        body: &mut Vec<u8>,
        limits: &RequestLimits,
    ) -> Result<BodyStep, RequestFault> {
        let mut at = 0;
        while at < input.len() && self.state != State::Done {
            if let State::Data { left } = self.state {
                let rest = &input[at..];
                let taken = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
                body.extend_from_slice(&rest[..taken]);
                at += taken;
                self.state = match left - taken as u64 {
                    0 => State::DataCr,
                    left => State::Data { left },
                };
                continue;
            }
            match self.step(input[at], body.len(), limits) {
                Ok(next) => self.state = next,
                Err(fault) => self.state = State::Refused(fault),
            }
            if let State::Refused(fault) = self.state {
                return Err(fault);
            }
            at += 1;
        }
        Ok(BodyStep {
            consumed: at,
            done: self.state == State::Done,
        })
    }

    /// The state after one byte outside a chunk's data.
    fn step(
        &mut self,
        byte: u8,
        body_bytes: usize,
        limits: &RequestLimits,
    ) -> Result<State, RequestFault> {
        Ok(match (self.state, byte) {
            (State::Size { value, digits }, _)
                if byte.is_ascii_hexdigit() && digits < SIZE_DIGITS_MAX =>
            {
                State::Size {
                    value: value << 4 | u64::from(hex_value(byte)),
                    digits: digits + 1,
                }
            }
            (State::Size { value, digits: 1.. }, b'\r' | b';') => {
                if value > limits.body_bytes_max.saturating_sub(body_bytes) as u64 {
                    return Err(RequestFault::BodyTooLarge);
                }
                match byte {
                    b'\r' => State::SizeLf { value },
                    _ => State::Extension { value, bytes: 1 },
                }
            }
            (State::Extension { value, .. }, b'\r') => State::SizeLf { value },
            (State::Extension { value, bytes }, b'\t' | b' '..=b'~' | 0x80..)
                if bytes < CHUNK_EXTENSION_BYTES_MAX =>
            {
                self.discard(limits)?;
                State::Extension {
                    value,
                    bytes: bytes + 1,
                }
            }
            (State::SizeLf { value: 0 }, b'\n') => State::TrailerStart,
            (State::SizeLf { value }, b'\n') => State::Data { left: value },
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::default(),
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerStart, _) if is_token(byte) => {
                self.trailer_count += 1;
                if self.trailer_count > limits.header_count_max {
                    return Err(RequestFault::TooManyHeaders);
                }
                self.discard(limits)?;
                State::TrailerName
            }
            (State::TrailerName, _) if is_token(byte) => {
                self.discard(limits)?;
                State::TrailerName
            }
            (State::TrailerName, b':') => State::TrailerValue,
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => {
                self.discard(limits)?;
                State::TrailerValue
            }
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::Done,
            (State::Refused(fault), _) => return Err(fault),
            _ => return Err(RequestFault::BadChunk),
        })
    }

    /// Counts one byte that is checked and thrown away.
    fn discard(&mut self, limits: &RequestLimits) -> Result<(), RequestFault> {
        self.discarded_bytes += 1;
        if self.discarded_bytes > limits.head_bytes_max {
            return Err(RequestFault::HeadTooLarge);
        }
        Ok(())
    }
}

/// Appends `data` as one chunk; nothing for no data, since an empty chunk would end the body.
pub fn write_chunk(data: &[u8], out: &mut Vec<u8>) {
    if data.is_empty() {
        return;
    }
    out.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Appends the end of a chunked body, without trailers.
pub fn write_last_chunk(out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n\r\n");
}

/// The value of a hex digit.
fn hex_value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

/// Whether `byte` may stand in a token (RFC 9110 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;
