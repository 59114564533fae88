//! Chunked bodies out (RFC 9112 section 7.1): the stretches of a stream.
//!
//! Owns a chunk's head, which has the same width whatever its size. So a chunk is begun before its
//! size is known, what is in it is written once behind the head, and the size is filled in last.
//! Costs ten bytes a chunk, and moves none.

/// Six digits and CR LF, before the size is known.
const HEAD: &[u8; 8] = b"000000\r\n";
const SIZE_DIGITS: usize = 6;
const END: &[u8; 2] = b"\r\n";

/// What a chunk adds to the bytes in it.
pub const CHUNK_FRAME_BYTES: usize = HEAD.len() + END.len();
/// Most bytes in one chunk.
pub const CHUNK_BYTES_MAX: usize = (1 << (4 * SIZE_DIGITS)) - 1;
/// The chunk that ends a body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A chunk that has begun: where.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct OpenChunk {
    at: usize,
}

/// Begins a chunk at the end of `out`. What is appended until [`OpenChunk::close`] is in it.
pub fn open_chunk(out: &mut Vec<u8>) -> OpenChunk {
    let at = out.len();
    out.extend_from_slice(HEAD);
    OpenChunk { at }
}

impl OpenChunk {
    /// Ends it. Of one with nothing in it nothing is left: an empty chunk would end the body.
    pub fn close(self, out: &mut Vec<u8>) {
        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
        let mut rest = out.len() - self.at - HEAD.len();
        if rest == 0 {
            return out.truncate(self.at);
        }
        assert!(rest <= CHUNK_BYTES_MAX, "a chunk of {rest} bytes");
        for digit in out[self.at..self.at + SIZE_DIGITS].iter_mut().rev() {
            *digit = DIGITS[rest & 15];
            rest >>= 4;
        }
        out.extend_from_slice(END);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::request::{ChunkDecoder, RequestLimits};

    #[test]
    fn a_size_is_filled_in_afterwards() {
        let mut out = b"before".to_vec();
        let chunk = open_chunk(&mut out);
        out.extend_from_slice(&[b'x'; 0x3A7]);
        chunk.close(&mut out);
        let expected = [
            b"before0003A7\r\n".to_vec(),
            vec![b'x'; 0x3A7],
            b"\r\n".to_vec(),
        ];
        assert_eq!(out, expected.concat());
    }

    #[test]
    fn an_empty_chunk_is_none() {
        let mut out = b"before".to_vec();
        open_chunk(&mut out).close(&mut out);
        assert_eq!(out, b"before");
    }

    #[test]
    fn what_is_written_is_decoded() {
        let limits = RequestLimits {
            head_bytes_max: 64,
            header_count_max: 1,
            body_bytes_max: CHUNK_BYTES_MAX,
        };
        for bytes in [1, 15, 16, 255, 4_096, 0x0F_FFFF, CHUNK_BYTES_MAX] {
            let mut out = Vec::new();
            let chunk = open_chunk(&mut out);
            out.resize(HEAD.len() + bytes, b'x');
            chunk.close(&mut out);
            assert_eq!(out.len(), bytes + CHUNK_FRAME_BYTES);
            out.extend_from_slice(LAST_CHUNK);
            let mut body = Vec::new();
            let step = ChunkDecoder::default()
                .decode(&out, &mut body, &limits)
                .unwrap();
            assert!(step.done && step.consumed == out.len());
            assert_eq!(body.len(), bytes);
        }
    }
}
