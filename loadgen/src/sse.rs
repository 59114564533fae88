//! A reader of event streams (WHATWG HTML, "Server-sent events", 9.2.6), made for very many
//! streams.
//!
//! Written apart from the server's own reader on purpose: a mistake in one is then seen by the
//! other. At rest, between two blocks, a stream costs 16 bytes here; only an unfinished block is
//! kept. Never allocates for a block that arrives whole.

use std::borrow::Cow;

/// One dispatched event, borrowed from the input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event<'a> {
    /// The event's type; `message` if none was named.
    pub name: &'a [u8],
    /// Data lines joined by line feeds.
    pub data: Cow<'a, [u8]>,
}

/// What lasts from block to block: kept by the caller, so that it may keep less.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lasting {
    /// The reader's reconnect delay as last set by the stream, ms; 0: never set.
    pub retry_ms: u32,
    /// The last event id, where it is a decimal number (as greendot's are); 0: none, or reset.
    pub last_id: u64,
}

/// The state of one stream.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    /// The unfinished block. Boxed twice so that an idle stream pays one word.
    #[expect(
        clippy::box_collection,
        reason = "one word for an idle stream; a Vec would be three"
    )]
    carry: Option<Box<Vec<u8>>>,
    /// A byte order mark can no longer come.
    started: bool,
    /// The last block ended with CR; a LF that comes now belongs to it.
    after_cr: bool,
}

/// Longest unfinished block that is kept; a longer one ends the stream.
pub const BLOCK_BYTES_MAX: usize = 64 << 20;

/// The stream sent a block longer than [`BLOCK_BYTES_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockTooLong;

impl Reader {
    /// Feeds bytes as they came; calls `each` for every event that they complete.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        lasting: &mut Lasting,
        mut each: impl FnMut(&Event<'_>, Lasting),
    ) -> Result<(), BlockTooLong> {
        let joined = self.carry.take().map(|mut carry| {
            carry.extend_from_slice(bytes);
            carry
        });
        let mut rest = joined.as_ref().map_or(bytes, |joined| joined.as_slice());
        if !self.started {
            const MARK: &[u8] = b"\xef\xbb\xbf";
            if rest.len() < MARK.len() && MARK.starts_with(rest) {
                return self.keep(rest);
            }
            rest = rest.strip_prefix(MARK).unwrap_or(rest);
            self.started = true;
        }
        if self.after_cr && !rest.is_empty() {
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            self.after_cr = false;
        }
        while !rest.is_empty() {
            match take_block(rest, lasting, &mut each) {
                Some(block) => {
                    self.after_cr = block.ended_with_cr && block.bytes == rest.len();
                    rest = &rest[block.bytes..];
                }
                None => return self.keep(rest),
            }
        }
        Ok(())
    }

    fn keep(&mut self, rest: &[u8]) -> Result<(), BlockTooLong> {
        if rest.len() > BLOCK_BYTES_MAX {
            return Err(BlockTooLong);
        }
        if !rest.is_empty() {
            self.carry = Some(Box::new(rest.to_vec()));
        }
        Ok(())
    }
}

struct Block {
    bytes: usize,
    ended_with_cr: bool,
}

/// Reads the block at the start of `input` up to and with its blank line, or a comment line alone;
/// None if it is not whole.
fn take_block(
    input: &[u8],
    lasting: &mut Lasting,
    each: &mut impl FnMut(&Event<'_>, Lasting),
) -> Option<Block> {
    let mut at = 0;
    let mut name: &[u8] = b"";
    let mut data: Option<Cow<'_, [u8]>> = None;
    let mut next = *lasting;
    loop {
        let length = memchr::memchr2(b'\n', b'\r', &input[at..])?;
        let line = &input[at..at + length];
        let ended_with_cr = input[at + length] == b'\r';
        let start = at;
        at += length + 1;
        let mut lf_may_follow = false;
        if ended_with_cr {
            match input.get(at) {
                Some(b'\n') => at += 1,
                Some(_) => {}
                None => lf_may_follow = true,
            }
        }
        if line.is_empty() {
            *lasting = next;
            if let Some(data) = data {
                let name = if name.is_empty() { b"message" } else { name };
                each(&Event { name, data }, *lasting);
            }
            return Some(Block {
                bytes: at,
                ended_with_cr: lf_may_follow,
            });
        }
        if line[0] == b':' {
            // A comment before any field stands for itself, so that a keep-alive leaves nothing to
            // carry.
            if start == 0 {
                return Some(Block {
                    bytes: at,
                    ended_with_cr: lf_may_follow,
                });
            }
            continue;
        }
        let (field, value) = match memchr::memchr(b':', line) {
            Some(colon) => (
                &line[..colon],
                line[colon + 1..]
                    .strip_prefix(b" ")
                    .unwrap_or(&line[colon + 1..]),
            ),
            None => (line, &b""[..]),
        };
        match field {
            b"event" => name = value,
            b"data" => match &mut data {
                None => data = Some(Cow::Borrowed(value)),
                Some(data) => {
                    data.to_mut().push(b'\n');
                    data.to_mut().extend_from_slice(value);
                }
            },
            b"id" if !value.contains(&0) => next.last_id = decimal(value).unwrap_or(0),
            // Unlike an id it counts from its own line on, whether or not the block comes to its
            // end.
            b"retry" => {
                next.retry_ms = decimal(value)
                    .map_or(next.retry_ms, |ms| u32::try_from(ms).unwrap_or(u32::MAX));
                lasting.retry_ms = next.retry_ms;
            }
            _ => {}
        }
    }
}

/// ASCII digits only, at least one; saturates.
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |number, digit| {
        digit.is_ascii_digit().then(|| {
            number
                .saturating_mul(10)
                .saturating_add(u64::from(digit - b'0'))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Told = (String, String, u64, u32);

    fn read(pieces: &[&[u8]]) -> Vec<Told> {
        let (mut reader, mut lasting, mut told) =
            (Reader::default(), Lasting::default(), Vec::new());
        for piece in pieces {
            reader
                .feed(piece, &mut lasting, |event, lasting| {
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                    told.push((
                        text(event.name),
                        text(&event.data),
                        lasting.last_id,
                        lasting.retry_ms,
                    ));
                })
                .unwrap();
        }
        told
    }

    fn told(name: &str, data: &str, id: u64, retry: u32) -> Told {
        (name.into(), data.into(), id, retry)
    }

    #[test]
    fn the_examples_of_the_standard() {
        assert_eq!(
            read(&[b"data: YHOO\ndata: +2\ndata: 10\n\n"]),
            [told("message", "YHOO\n+2\n10", 0, 0)]
        );
        assert_eq!(
            read(&[
                b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\n\
                  data:  third event\n\n"
            ]),
            [
                told("message", "first event", 1, 0),
                told("message", "second event", 0, 0),
                told("message", " third event", 0, 0)
            ]
        );
        assert_eq!(
            read(&[b"data\n\ndata\ndata\n\ndata:"]),
            [told("message", "", 0, 0), told("message", "\n", 0, 0)]
        );
        assert_eq!(
            read(&[b"data:test\n\ndata: test\n\n"]),
            [told("message", "test", 0, 0), told("message", "test", 0, 0)]
        );
    }

    #[test]
    fn split_anywhere_with_every_line_end() {
        let expected = [
            told("hello", "{}", 0, 3_417),
            told("presence", "a\nb", 17, 3_417),
            told("message", "c", 17, 3_417),
        ];
        for end in ["\n", "\r", "\r\n"] {
            let text = "\u{feff}event: hello\nretry: 3417\ndata: {}\n\n:\n:\nevent: presence\n\
                        id: 17\ndata: a\n: within\ndata: b\n\ndata: c\n\n"
                .replace('\n', end);
            let bytes = text.as_bytes();
            assert_eq!(read(&[bytes]), expected);
            assert_eq!(read(&bytes.chunks(1).collect::<Vec<_>>()), expected);
            for cut in 0..bytes.len() {
                assert_eq!(
                    read(&[&bytes[..cut], &bytes[cut..]]),
                    expected,
                    "{end:?} {cut}"
                );
            }
        }
    }

    #[test]
    fn what_is_ignored() {
        assert_eq!(
            read(&[b"retry: 1x\nid: 5\0\nnope: 1\ndata: d\n\n"]),
            [told("message", "d", 0, 0)]
        );
        // Without data there is no event, but the id counts.
        assert_eq!(
            read(&[b"event: e\nid: 9\n\ndata: d\n\n"]),
            [told("message", "d", 9, 0)]
        );
        // An unfinished block is never told, nor does its id count.
        assert_eq!(read(&[b"data: d\nid: 4\n"]), []);
        // But its delay does, once its line is whole.
        let (mut reader, mut lasting) = (Reader::default(), Lasting::default());
        for (bytes, retry_ms) in [(&b"id: 4\nretry: 70"[..], 0), (b"0\nretry: 9x\n", 700)] {
            reader.feed(bytes, &mut lasting, |_, _| {}).unwrap();
            assert_eq!(
                lasting,
                Lasting {
                    retry_ms,
                    last_id: 0
                }
            );
        }
        // Only the first byte order mark is one.
        assert_eq!(
            read(&["\u{feff}\u{feff}data: d\n\ndata: e\n\n".as_bytes()]),
            [told("message", "e", 0, 0)]
        );
    }

    #[test]
    fn an_idle_stream_is_small() {
        assert_eq!(size_of::<Reader>(), 16);
        let (mut reader, mut lasting) = (Reader::default(), Lasting::default());
        reader
            .feed(b"data: x\n\n:\n", &mut lasting, |_, _| {})
            .unwrap();
        assert!(reader.carry.is_none());
    }
}
