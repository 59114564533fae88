//! Reads an event stream as WHATWG HTML's "Interpreting an event stream" has it.
//!
//! Owns the line splitting and the fields of the block being read. Never reconnects: the caller
//! does, with [`Reader::last_event_id`] and [`Reader::retry_ms`]. Holds one block at a time, which
//! is as long as its sender makes it.

use std::mem;

/// A parsed event.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Event {
    /// `message` if none was named.
    pub event: String,
    /// Lines joined with \n.
    pub data: String,
    /// Last event id as it stands after this event.
    pub id: String,
}

/// Incremental reader: CR, LF and CRLF split anywhere, a leading BOM, comments, multi-line data,
/// `id` with NUL ignored, `retry` of digits only, no dispatch on empty data (but the id still
/// counts). A block that the stream's end cuts off is never dispatched.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    /// The unfinished line.
    line: Vec<u8>,
    /// The previous byte was a CR that ended a line: an LF now belongs to it.
    after_cr: bool,
    /// The first line, which alone may begin with a BOM, is over.
    started: bool,
    event: String,
    data: String,
    /// The id buffer of the standard: takes effect at the block's end and outlives it.
    id: String,
    last_event_id: String,
    retry_ms: Option<u64>,
}

impl Reader {
    /// Feeds bytes; calls `each` for every dispatched event.
    pub fn feed(&mut self, bytes: &[u8], each: &mut dyn FnMut(&Event)) {
        let mut rest = bytes;
        if let [first, after @ ..] = rest
            && mem::take(&mut self.after_cr)
            && *first == b'\n'
        {
            rest = after;
        }
        while let Some(end) = rest.iter().position(|&byte| byte == b'\r' || byte == b'\n') {
            if self.line.is_empty() {
                self.take_line(&rest[..end], each);
            } else {
                self.line.extend_from_slice(&rest[..end]);
                let line = mem::take(&mut self.line);
                self.take_line(&line, each);
                self.line = line;
                self.line.clear();
            }
            rest = match &rest[end..] {
                [b'\r', b'\n', after @ ..] => after,
                [b'\r'] => {
                    self.after_cr = true;
                    &[]
                }
                [_, after @ ..] => after,
                [] => &[],
            };
        }
        self.line.extend_from_slice(rest);
    }

    /// Last `retry` seen, ms.
    pub fn retry_ms(&self) -> Option<u64> {
        self.retry_ms
    }

    /// Last event id, also from blocks without data.
    pub fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    fn take_line(&mut self, line: &[u8], each: &mut dyn FnMut(&Event)) {
        let line = match mem::replace(&mut self.started, true) {
            false => line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line),
            true => line,
        };
        if line.is_empty() {
            self.dispatch(each);
            return;
        }
        let (name, value) = match line.iter().position(|&byte| byte == b':') {
            Some(0) => return,
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"event" => self.event = String::from_utf8_lossy(value).into_owned(),
            b"data" => {
                self.data.push_str(&String::from_utf8_lossy(value));
                self.data.push('\n');
            }
            b"id" if !value.contains(&0) => self.id = String::from_utf8_lossy(value).into_owned(),
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                let add = |sum: u64, digit: &u8| {
                    sum.saturating_mul(10)
                        .saturating_add(u64::from(digit - b'0'))
                };
                self.retry_ms = Some(value.iter().fold(0, add));
            }
            _ => {}
        }
    }

    fn dispatch(&mut self, each: &mut dyn FnMut(&Event)) {
        self.last_event_id.clone_from(&self.id);
        let event = mem::take(&mut self.event);
        let mut data = mem::take(&mut self.data);
        // Every data line left a '\n', so an empty one still makes an event; the last '\n' is not
        // part of it.
        if data.pop().is_none() {
            return;
        }
        let event = if event.is_empty() {
            String::from("message")
        } else {
            event
        };
        each(&Event {
            event,
            data,
            id: self.last_event_id.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event: &str, data: &str, id: &str) -> Event {
        Event {
            event: event.into(),
            data: data.into(),
            id: id.into(),
        }
    }

    /// The events of `stream`, after checking that every way to tear it in two, and byte by byte,
    /// gives the same.
    fn read(stream: &[u8]) -> (Vec<Event>, Reader) {
        let feed = |parts: &[&[u8]]| {
            let mut reader = Reader::default();
            let mut events = Vec::new();
            for part in parts {
                reader.feed(part, &mut |event| events.push(event.clone()));
            }
            (events, reader)
        };
        let whole = feed(&[stream]);
        let facts = |(events, reader): &(Vec<Event>, Reader)| {
            (
                events.clone(),
                reader.last_event_id().to_owned(),
                reader.retry_ms(),
            )
        };
        for cut in 0..=stream.len() {
            let (left, right) = stream.split_at(cut);
            assert_eq!(
                facts(&feed(&[left, b"", right])),
                facts(&whole),
                "cut at {cut}"
            );
        }
        assert_eq!(
            facts(&feed(&stream.chunks(1).collect::<Vec<_>>())),
            facts(&whole)
        );
        whole
    }

    fn events(stream: &str) -> Vec<Event> {
        read(stream.as_bytes()).0
    }

    #[test]
    fn examples_of_the_standard() {
        assert_eq!(
            events("data: YHOO\ndata: +2\ndata: 10\n\n"),
            [event("message", "YHOO\n+2\n10", "")]
        );

        let (found, reader) = read(
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third \
              event\n\n",
        );
        let expected = [
            event("message", "first event", "1"),
            event("message", "second event", ""),
            event("message", " third event", ""),
        ];
        assert_eq!(found, expected);
        assert_eq!(reader.last_event_id(), "");

        assert_eq!(
            events("data\n\ndata\ndata\n\ndata:\n"),
            [event("message", "", ""), event("message", "\n", "")]
        );
        assert_eq!(
            events("data:test\n\ndata: test\n\n"),
            [event("message", "test", ""), event("message", "test", "")]
        );
        assert_eq!(
            events("event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\n"),
            [event("add", "73857293", ""), event("remove", "2153", "")]
        );
    }

    #[test]
    fn line_ends() {
        let two = [event("message", "a\nb", ""), event("message", "c", "")];
        for stream in [
            "data:a\ndata:b\n\ndata:c\n\n",
            "data:a\rdata:b\r\rdata:c\r\r",
            "data:a\r\ndata:b\r\n\r\ndata:c\r\n\r\n",
            "data:a\rdata:b\n\rdata:c\r\n\r",
            "data:a\ndata:b\r\n\ndata:c\r\r\n",
        ] {
            assert_eq!(events(stream), two, "{stream:?}");
        }
    }

    #[test]
    fn bom_and_encoding() {
        assert_eq!(events("\u{feff}data: a\n\n"), [event("message", "a", "")]);
        assert_eq!(
            events("\u{feff}\u{feff}data: a\n\n"),
            [],
            "only one is stripped"
        );
        assert_eq!(events("\n\u{feff}data: a\n\n"), [], "and only at the start");
        let (found, _) = read(b"data: \xf0\x9f\x9f\xa2\xff\xc3\n\n");
        assert_eq!(found, [event("message", "\u{1F7E2}\u{fffd}\u{fffd}", "")]);
    }

    #[test]
    fn fields() {
        assert_eq!(
            events("event: x\n\ndata: a\n\n"),
            [event("message", "a", "")],
            "a type does not outlive its block"
        );
        assert_eq!(
            events("Data: a\n data: b\ndata : c\nfoo: d\n:data: e\n\n"),
            []
        );
        assert_eq!(events("data: a: b\n\n"), [event("message", "a: b", "")]);
        assert_eq!(events("id: 1\0\ndata: a\n\n"), [event("message", "a", "")]);
        assert_eq!(
            events("data: a\nid: 7\n\ndata: b\n\n"),
            [event("message", "a", "7"), event("message", "b", "7")]
        );
        assert_eq!(events("data: a"), []);
        assert_eq!(events("data: a\n"), []);
    }

    #[test]
    fn ids_without_data_count_at_the_end_of_their_block() {
        let (found, reader) = read(b"id: 5\n\nid: 6\n");
        assert_eq!((found, reader.last_event_id()), (vec![], "5"));
    }

    #[test]
    fn retries() {
        let retry = |stream: &str| read(stream.as_bytes()).1.retry_ms();
        assert_eq!(retry("retry: 3417\n"), Some(3417));
        assert_eq!(retry("retry:007\n"), Some(7));
        assert_eq!(
            retry("retry: 1\nretry: 2x\nretry: -3\nretry:  4\nretry\nretry:\n"),
            Some(1)
        );
        assert_eq!(retry("retry: 99999999999999999999\n"), Some(u64::MAX));
        assert_eq!(retry("data: x\n\n"), None);
    }
}
