use proptest::prelude::*;

use super::*;

const LIMITS: RequestLimits = RequestLimits {
    head_bytes_max: 300,
    header_count_max: 2,
    body_bytes_max: 20,
};

/// Feeds `input` in pieces of `piece` bytes: the body and how much was used, or the refusal.
fn fed(
    input: &[u8],
    piece: usize,
    limits: &RequestLimits,
) -> Result<(Vec<u8>, usize, bool), RequestFault> {
    let mut decoder = ChunkDecoder::default();
    let mut body = Vec::new();
    let mut consumed = 0;
    for part in input.chunks(piece) {
        let step = decoder.decode(part, &mut body, limits)?;
        consumed += step.consumed;
        if step.done {
            return Ok((body, consumed, true));
        }
        assert_eq!(
            step.consumed,
            part.len(),
            "everything is taken until the body is whole"
        );
    }
    Ok((body, consumed, false))
}

fn decoded(input: &[u8]) -> Result<(Vec<u8>, usize, bool), RequestFault> {
    let whole = fed(input, input.len().max(1), &LIMITS);
    for piece in 1..input.len() {
        assert_eq!(fed(input, piece, &LIMITS), whole, "in pieces of {piece}");
    }
    whole
}

#[test]
fn bodies() {
    let ok = |body: &[u8], consumed| Ok((body.to_vec(), consumed, true));
    assert_eq!(decoded(b"0\r\n\r\nnext"), ok(b"", 5));
    assert_eq!(decoded(b"5\r\nhello\r\n0\r\n\r\nGET"), ok(b"hello", 15));
    assert_eq!(
        decoded(b"0000000000000005\r\nhello\r\n000\r\n\r\n"),
        ok(b"hello", 32)
    );
    assert_eq!(
        decoded(b"A;a=b;c=\"d\"\r\n0123456789\r\na\r\n0123456789\r\n0;x\r\n\r\n"),
        ok(b"01234567890123456789", 47)
    );
    assert_eq!(decoded(b"0\r\nA: b\r\nC:\r\n\r\n"), ok(b"", 15));
    assert_eq!(decoded(b"2\r\n\r\n\r\n0\r\n\r\n"), ok(b"\r\n", 12));
}

#[test]
fn unfinished() {
    let whole = b"5;x\r\nhello\r\n0\r\nA: b\r\n\r\n";
    for len in 0..whole.len() {
        let (_, consumed, done) = decoded(&whole[..len]).unwrap();
        assert_eq!((consumed, done), (len, false));
    }
}

#[test]
fn refusals() {
    for bad in [
        &b"\r\n"[..],
        b";x\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\n",
        b" 1\r\n",
        b"1 \r\n",
        b"1\n",
        b"1\rx",
        b"1;a\nb",
        b"1;a\rb",
        b"1;a\0",
        b"1;\x7f",
        b"00000000000000001\r\n",
        b"1\r\nab",
        b"1\r\na\n",
        b"1\r\na\rb",
        b"1\r\na\r\n\r\n",
        b"0\r\n\n",
        b"0\r\n\rx",
        b"0\r\n: x\r\n",
        b"0\r\n folded\r\n",
        b"0\r\nA\r\n",
        b"0\r\nA : b\r\n",
        b"0\r\nA: b\n",
        b"0\r\nA: b\rc",
        b"0\r\nA: \0",
    ] {
        assert_eq!(
            decoded(bad),
            Err(RequestFault::BadChunk),
            "{}",
            bad.escape_ascii()
        );
    }
}

#[test]
fn limits() {
    assert_eq!(
        decoded(b"15\r"),
        Err(RequestFault::BodyTooLarge),
        "at the size line, before the data"
    );
    assert_eq!(decoded(b"15;"), Err(RequestFault::BodyTooLarge));
    assert_eq!(
        decoded(b"ffffffffffffffff\r\n"),
        Err(RequestFault::BodyTooLarge)
    );
    assert_eq!(
        decoded(b"14\r\n01234567890123456789\r\n1\r\n"),
        Err(RequestFault::BodyTooLarge)
    );

    let extension =
        |bytes: usize| [b"0;".to_vec(), vec![b'x'; bytes - 1], b"\r\n\r\n".to_vec()].concat();
    assert!(decoded(&extension(CHUNK_EXTENSION_BYTES_MAX)).is_ok());
    assert_eq!(
        decoded(&extension(CHUNK_EXTENSION_BYTES_MAX + 1)),
        Err(RequestFault::BadChunk)
    );
    let many = [b"1;".to_vec(), vec![b'x'; 199], b"\r\na\r\n".to_vec()]
        .concat()
        .repeat(2);
    assert_eq!(
        decoded(&many),
        Err(RequestFault::HeadTooLarge),
        "extensions of a body are bounded together"
    );

    assert_eq!(
        decoded(b"0\r\na:\r\nb:\r\nc:"),
        Err(RequestFault::TooManyHeaders)
    );
    let long = [b"0\r\na:".to_vec(), vec![b'x'; 300]].concat();
    assert!(decoded(&long[..long.len() - 1]).is_ok());
    assert_eq!(decoded(&long), Err(RequestFault::HeadTooLarge));
}

#[test]
fn a_refusal_stands() {
    let mut decoder = ChunkDecoder::default();
    let mut body = Vec::new();
    assert_eq!(
        decoder.decode(b"x", &mut body, &LIMITS),
        Err(RequestFault::BadChunk)
    );
    assert_eq!(
        decoder.decode(b"0\r\n\r\n", &mut body, &LIMITS),
        Err(RequestFault::BadChunk)
    );
    assert_eq!(body, b"");
}

#[test]
fn nothing_is_taken_after_the_end() {
    let mut decoder = ChunkDecoder::default();
    let mut body = Vec::new();
    let done = |consumed| {
        Ok(BodyStep {
            consumed,
            done: true,
        })
    };
    assert_eq!(
        decoder.decode(b"0\r\n\r\n1\r\n", &mut body, &LIMITS),
        done(5)
    );
    assert_eq!(decoder.decode(b"1\r\n", &mut body, &LIMITS), done(0));
}

proptest! {
    #[test]
    fn encode_decode(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
        piece in 1_usize..64
    ) {
        let limits = RequestLimits { body_bytes_max: 1_000, ..LIMITS };
        let mut encoded = Vec::new();
        for chunk in &chunks {
            write_chunk(chunk, &mut encoded);
        }
        write_last_chunk(&mut encoded);
        prop_assert_eq!(fed(&encoded, piece, &limits), Ok((chunks.concat(), encoded.len(), true)));
    }
}
