//! RESP3, the language of Redis: commands to bytes, bytes to replies and pushes.
//!
//! Owns its forms and their limits. Never reads a socket, and never knows to which command a reply
//! belongs.

use crate::fleet::calls::Call;
use crate::fleet::traffic::Reply;

/// Longest frame that is taken. The largest that a fleet asks for is a page of a walk through a
/// partition, far below.
pub(super) const FRAME_BYTES_MAX: usize = 32 << 20;

/// Lists in lists. Redis' own answers have four levels.
const DEPTH_MAX: u32 = 16;

/// Longest line of a frame: of an error, or of a number.
const LINE_BYTES_MAX: usize = 64 << 10;

/// What a server sends.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Frame {
    /// To a command; they come in the order of the commands.
    Reply(Reply),
    /// Of a subscription; these come between replies.
    Push(Vec<Reply>),
}

/// What the bytes at hand are.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Decoded {
    /// A frame, and its length.
    Frame(Frame, usize),
    /// The beginning of one, which has so many bytes at least.
    More(usize),
}

/// The bytes are no RESP3, or more than any answer has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NoFrame;

/// Appends a command.
pub(super) fn encode<'w>(words: impl ExactSizeIterator<Item = &'w [u8]>, out: &mut Vec<u8>) {
    let mut digits = itoa::Buffer::new();
    out.push(b'*');
    out.extend_from_slice(digits.format(words.len()).as_bytes());
    out.extend_from_slice(b"\r\n");
    for word in words {
        out.push(b'$');
        out.extend_from_slice(digits.format(word.len()).as_bytes());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// Bytes of a command, about: what it counts against limits.
pub(super) fn bytes_of(call: &Call) -> usize {
    call.words().map(|word| word.len() + 16).sum()
}

/// The first frame of `bytes`.
///
/// Errors: there can be none, whatever follows.
pub(super) fn decode(bytes: &[u8]) -> Result<Decoded, NoFrame> {
    let mut reader = Reader { bytes, at: 0 };
    let frame = match bytes.first() {
        Some(b'>') => reader.list(1, DEPTH_MAX).map(Frame::Push),
        _ => reader.value(DEPTH_MAX).map(Frame::Reply),
    };
    match frame {
        Ok(frame) => Ok(Decoded::Frame(frame, reader.at)),
        Err(Stop::More(all)) if all <= FRAME_BYTES_MAX => Ok(Decoded::More(all)),
        Err(_) => Err(NoFrame),
    }
}

struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

enum Stop {
    More(usize),
    NoFrame,
}

impl Reader<'_> {
    fn value(&mut self, depth: u32) -> Result<Reply, Stop> {
        let kind = *self
            .bytes
            .get(self.at)
            .ok_or(Stop::More(self.bytes.len() + 1))?;
        Ok(match kind {
            b'+' | b',' | b'(' => Reply::Bytes(self.line()?.to_vec()),
            b'-' => Reply::Error(String::from_utf8_lossy(self.line()?).into_owned()),
            b':' => Reply::Number(self.number()?),
            b'_' => {
                self.line()?;
                Reply::Nil
            }
            b'#' => Reply::Number((self.line()? == b"t").into()),
            b'$' => self.bulk()?.map_or(Reply::Nil, Reply::Bytes),
            b'=' => {
                let mut text = self.bulk()?.ok_or(Stop::NoFrame)?;
                text.drain(..text.len().min(4));
                Reply::Bytes(text)
            }
            b'!' => {
                let text = self.bulk()?.ok_or(Stop::NoFrame)?;
                Reply::Error(String::from_utf8_lossy(&text).into_owned())
            }
            b'*' if self.bytes[self.at..].starts_with(b"*-1\r\n") => {
                self.at += 5;
                Reply::Nil
            }
            b'*' | b'~' => Reply::List(self.list(1, depth)?),
            b'%' => Reply::List(self.list(2, depth)?),
            b'|' => {
                // Attributes of what follows, which nobody asked for.
                self.list(2, depth)?;
                self.value(depth.checked_sub(1).ok_or(Stop::NoFrame)?)?
            }
            _ => return Err(Stop::NoFrame),
        })
    }

    /// The elements of what its length stands before; a map has two of each.
    fn list(&mut self, each: usize, depth: u32) -> Result<Vec<Reply>, Stop> {
        let depth = depth.checked_sub(1).ok_or(Stop::NoFrame)?;
        let count = self.number()?;
        let count = usize::try_from(count).map_err(|_| Stop::NoFrame)?;
        let count = count.checked_mul(each).ok_or(Stop::NoFrame)?;
        // The shortest element has three bytes, so nothing is allocated for what is only announced.
        let least = count.checked_mul(3).ok_or(Stop::NoFrame)?;
        self.has(least)?;
        let mut list = Vec::with_capacity(count);
        for _ in 0..count {
            list.push(self.value(depth)?);
        }
        Ok(list)
    }

    fn bulk(&mut self) -> Result<Option<Vec<u8>>, Stop> {
        let length = self.number()?;
        if length == -1 {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(|_| Stop::NoFrame)?;
        self.has(length.checked_add(2).ok_or(Stop::NoFrame)?)?;
        let end = self.at + length;
        if &self.bytes[end..end + 2] != b"\r\n" {
            return Err(Stop::NoFrame);
        }
        let bytes = self.bytes[self.at..end].to_vec();
        self.at = end + 2;
        Ok(Some(bytes))
    }

    fn number(&mut self) -> Result<i64, Stop> {
        let line = std::str::from_utf8(self.line()?).map_err(|_| Stop::NoFrame)?;
        line.parse().map_err(|_| Stop::NoFrame)
    }

    /// Up to the line's end, without its first byte.
    fn line(&mut self) -> Result<&[u8], Stop> {
        let rest = &self.bytes[self.at..];
        match rest.iter().take(LINE_BYTES_MAX).position(|&b| b == b'\r') {
            Some(end) if rest.get(end + 1) == Some(&b'\n') => {
                self.at += end + 2;
                rest.get(1..end).ok_or(Stop::NoFrame)
            }
            Some(end) if rest.len() > end + 1 => Err(Stop::NoFrame),
            None if rest.len() >= LINE_BYTES_MAX => Err(Stop::NoFrame),
            _ => Err(Stop::More(self.bytes.len() + 1)),
        }
    }

    /// So many bytes more are at hand.
    fn has(&self, length: usize) -> Result<(), Stop> {
        let all = self.at.checked_add(length).ok_or(Stop::NoFrame)?;
        match all <= self.bytes.len() {
            true => Ok(()),
            false => Err(Stop::More(all)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(bytes: &[u8]) -> Reply {
        match decode(bytes) {
            Ok(Decoded::Frame(Frame::Reply(reply), used)) if used == bytes.len() => reply,
            other => panic!("{other:?}"),
        }
    }

    fn bytes(text: &str) -> Reply {
        Reply::Bytes(text.into())
    }

    #[test]
    fn commands() {
        let call = Call::plain([&b"HGET"[..], b"gd:{0}", b"\0m"]);
        let mut out = b"before".to_vec();
        encode(call.words(), &mut out);
        assert_eq!(
            out,
            b"before*3\r\n$4\r\nHGET\r\n$6\r\ngd:{0}\r\n$2\r\n\0m\r\n"
        );
        assert_eq!(bytes_of(&call), 60);
    }

    #[test]
    fn replies() {
        for (text, expected) in [
            ("+OK\r\n", bytes("OK")),
            ("+\r\n", bytes("")),
            ("-ERR no\r\n", Reply::Error("ERR no".into())),
            ("!6\r\nERR no\r\n", Reply::Error("ERR no".into())),
            (":-7\r\n", Reply::Number(-7)),
            ("$2\r\n\r\n\r\n", bytes("\r\n")),
            ("$0\r\n\r\n", bytes("")),
            ("$-1\r\n", Reply::Nil),
            ("*-1\r\n", Reply::Nil),
            ("_\r\n", Reply::Nil),
            ("#t\r\n", Reply::Number(1)),
            ("#f\r\n", Reply::Number(0)),
            (",1.5\r\n", bytes("1.5")),
            ("(12345678901234567890\r\n", bytes("12345678901234567890")),
            ("=6\r\ntxt:ab\r\n", bytes("ab")),
            ("*0\r\n", Reply::List(vec![])),
            (
                "*2\r\n:1\r\n~1\r\n+a\r\n",
                Reply::List(vec![Reply::Number(1), Reply::List(vec![bytes("a")])]),
            ),
            (
                "%1\r\n+proto\r\n:3\r\n",
                Reply::List(vec![bytes("proto"), Reply::Number(3)]),
            ),
            ("|1\r\n+ttl\r\n:3\r\n+OK\r\n", bytes("OK")),
        ] {
            assert_eq!(reply(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn pushes_are_no_replies() {
        let text = b">2\r\n$8\r\nsmessage\r\n+x\r\n:1\r\n";
        let push = Frame::Push(vec![bytes("smessage"), bytes("x")]);
        assert_eq!(decode(text), Ok(Decoded::Frame(push, text.len() - 4)));
        // A list may not have one inside.
        assert_eq!(decode(b"*1\r\n>1\r\n+x\r\n"), Err(NoFrame));
    }

    #[test]
    fn a_part_is_waited_for() {
        let whole = b"*2\r\n$3\r\nabc\r\n%1\r\n+k\r\n_\r\n";
        for end in 0..whole.len() {
            let Ok(Decoded::More(all)) = decode(&whole[..end]) else {
                panic!("{end} bytes are whole");
            };
            assert!(end < all && all <= whole.len(), "{end}: {all}");
        }
        assert_eq!(decode(b"$1000\r\nabc"), Ok(Decoded::More(1_009)));
        assert_eq!(decode(b"*1000\r\n"), Ok(Decoded::More(3_007)));
    }

    #[test]
    fn whatever_comes_is_a_frame_or_none() {
        let frames =
            b"*2\r\n$3\r\nabc\r\n%1\r\n+k\r\n_\r\n>2\r\n$1\r\na\r\n:-5\r\n-E x\r\n~1\r\n#t\r\n";
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let mut bytes = frames.to_vec();
            for _ in 0..random.usize(0..4) {
                let at = random.usize(..bytes.len());
                bytes[at] = *random.choice(frames).unwrap_or(&0);
            }
            let mut rest = &bytes[..random.usize(..=bytes.len())];
            while let Ok(decoded) = decode(rest) {
                match decoded {
                    Decoded::Frame(_, used) => {
                        assert!((1..=rest.len()).contains(&used));
                        // It depends on nothing behind it.
                        assert_eq!(decode(&rest[..used]), decode(rest));
                        rest = &rest[used..];
                    }
                    Decoded::More(all) => {
                        assert!(all > rest.len());
                        break;
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_frame_is_told_at_once() {
        for bad in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"$-2\r\n",
            b"$x\r\n",
            b"$99999999999\r\n",
            b"*99999999999\r\n",
            b"*9223372036854775807\r\n",
            b"%9223372036854775807\r\n",
            b"$1\r\nabc",
            b":1x\r\n",
            b"+a\rb\r\n",
            b"$?\r\n",
            b"\r\n",
        ] {
            assert_eq!(decode(bad), Err(NoFrame), "{bad:?}");
        }
        let deep = b"*1\r\n".repeat(17);
        assert_eq!(decode(&deep), Err(NoFrame));
        assert_eq!(decode(&[b'+'; LINE_BYTES_MAX]), Err(NoFrame));
    }
}
