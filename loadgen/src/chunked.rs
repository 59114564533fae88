//! The body of a response that never ends: as it is, or in chunks (RFC 9112 section 7.1).
//!
//! Owns 8 bytes of state a stream. Trailers are not expected of an event stream and end it.

use crate::gone::Gone;

/// Where in the framing a body is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Chunked {
    /// Not chunked: every byte is body.
    Plain,
    /// In the size line, the size so far.
    Size(u32),
    /// Behind the size, before its LF.
    Extension(u32),
    /// This many bytes of the chunk are to come.
    Data(u32),
    /// Before the LF that ends a chunk.
    DataEnd,
}

impl Chunked {
    /// The start of a body.
    pub fn new(chunked: bool) -> Chunked {
        if chunked {
            Chunked::Size(0)
        } else {
            Chunked::Plain
        }
    }

    /// Hands the body's bytes in `input` to `each`; true once the last chunk has come.
    pub fn decode(
        &mut self,
        mut input: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), Gone>,
    ) -> Result<bool, Gone> {
        while let Some(&byte) = input.first() {
            *self = match *self {
                Chunked::Plain => {
                    each(input)?;
                    return Ok(false);
                }
                Chunked::Data(left) => {
                    let taken = input.len().min(left as usize);
                    each(&input[..taken])?;
                    input = &input[taken..];
                    if taken < left as usize {
                        Chunked::Data(left - taken as u32)
                    } else {
                        Chunked::DataEnd
                    }
                }
                state => {
                    input = &input[1..];
                    match (state, byte) {
                        (Chunked::Extension(0), b'\n') => return Ok(true),
                        (Chunked::Extension(size), b'\n') => Chunked::Data(size),
                        (Chunked::Extension(size), _) => Chunked::Extension(size),
                        (Chunked::DataEnd, b'\r') => Chunked::DataEnd,
                        (Chunked::DataEnd, b'\n') => Chunked::Size(0),
                        (Chunked::Size(size), b'\r' | b';') => Chunked::Extension(size),
                        (Chunked::Size(size), digit) => {
                            let digit = char::from(digit).to_digit(16).ok_or(Gone::Malformed)?;
                            if size >> 28 != 0 {
                                return Err(Gone::Malformed);
                            }
                            Chunked::Size(size << 4 | digit)
                        }
                        _ => return Err(Gone::Malformed),
                    }
                }
            };
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(chunked: bool, pieces: &[&[u8]]) -> Result<(Vec<u8>, bool), Gone> {
        let (mut state, mut body, mut whole) = (Chunked::new(chunked), Vec::new(), false);
        for piece in pieces {
            whole = state.decode(piece, |bytes| {
                body.extend_from_slice(bytes);
                Ok(())
            })?;
        }
        Ok((body, whole))
    }

    #[test]
    fn a_plain_body_is_itself() {
        assert_eq!(
            decode(false, &[b"5\r\na", b"b"]),
            Ok((b"5\r\nab".to_vec(), false))
        );
    }

    #[test]
    fn chunks_split_anywhere() {
        let text = b"3;x=1\r\nabc\r\n0A\r\n0123456789\r\n0\r\n";
        for cut in 0..text.len() {
            assert_eq!(
                decode(true, &[&text[..cut], &text[cut..]]),
                Ok((b"abc0123456789".to_vec(), true)),
                "{cut}"
            );
        }
    }

    #[test]
    fn what_is_no_chunk() {
        assert_eq!(decode(true, &[b"g"]), Err(Gone::Malformed));
        assert_eq!(decode(true, &[b"1\r\nabc"]), Err(Gone::Malformed));
        assert_eq!(decode(true, &[b"123456789"]), Err(Gone::Malformed));
    }
}
