//! Reads what a client receives: takes bodies out of their chunks (RFC 9112 section 7.1; stricter:
//! a chunk's size has six digits), and sees that each head has the lines that all heads have, which
//! it takes away. Shares no code with the server.

/// What a client has received of chunks.
#[derive(Default, Debug)]
pub(crate) struct Chunks {
    at: At,
    /// So many have begun, the last one left out.
    pub(crate) begun: usize,
    /// The line under way in what is not chunked, and what of it is withheld: it may be one that
    /// all heads have.
    line: Vec<u8>,
    withheld: Vec<u8>,
    /// It is none of those.
    is_own: bool,
    /// So many of those lines has the head under way.
    said: usize,
}

/// The lines that every head has, or how they begin.
const ALL_SAY: [&str; 4] = [
    DATE,
    "Vary: Origin\r\n",
    "X-Content-Type-Options: nosniff\r\n",
    "Content-Security-Policy: frame-ancestors 'none'\r\n",
];
const DATE: &str = "Date: ";

/// Where in what a client receives the next byte is.
#[derive(Clone, PartialEq, Eq, Debug)]
enum At {
    /// In answers that have no chunks; what has come of them.
    Plain(Vec<u8>),
    /// In a chunk's size line, as far as it has come.
    Size(String),
    /// So many bytes of a chunk are to come, and the CR LF behind them.
    Data(usize),
    /// So many bytes of a CR LF.
    DataEnd(usize),
    /// Behind the last chunk.
    Ended,
}

impl Default for At {
    fn default() -> At {
        At::Plain(Vec::new())
    }
}

impl Chunks {
    /// Whether the body has ended as a whole one does.
    pub(crate) fn is_whole(&self) -> bool {
        self.at == At::Ended
    }

    /// The bytes without the frames of chunks.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        let mut bytes = bytes;
        while let Some((byte, rest)) = bytes.split_first() {
            if let At::Data(left) = self.at {
                // By far most of all: at once.
                let (data, rest) = bytes.split_at(left.min(bytes.len()));
                body.extend_from_slice(data);
                if let At::Plain(seen) = &mut self.at
                    && self.is_own
                    && *byte != b'\n'
                {
                    // The rest of a line that is this answer's own: at once.
                    let end = bytes.iter().position(|byte| *byte == b'\n');
                    let (line, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
                    seen.extend_from_slice(line);
                    body.extend_from_slice(line);
                    bytes = rest;
                    continue;
                }
                bytes = rest;
                self.at = match left - data.len() {
                    0 => At::DataEnd(0),
                    left => At::Data(left),
                };
                continue;
            }
            bytes = rest;
            self.at = match std::mem::take(&mut self.at) {
                At::Plain(mut seen) => {
                    seen.push(*byte);
                    self.show(*byte, &mut body);
                    if !seen.ends_with(b"\r\n\r\n") {
                        At::Plain(seen)
                    } else if self.ends_head(&seen) {
                        At::Size(String::new())
                    } else {
                        At::Plain(Vec::new())
                    }
                }
                At::Size(mut line) => {
                    line.push(char::from(*byte));
                    let next = after_size(line);
                    self.begun += usize::from(matches!(next, At::Data(_)));
                    next
                }
                At::Data(_) => unreachable!("taken above"),
                At::DataEnd(seen) => {
                    assert_eq!(*byte, b"\r\n"[seen], "behind a chunk");
                    match seen {
                        0 => At::DataEnd(1),
                        _ => At::Size(String::new()),
                    }
                }
                At::Ended => panic!("bytes behind the last chunk"),
            };
        }
        body
    }

    /// Shows one byte of what is not chunked, unless it is of a line that all heads have.
    fn show(&mut self, byte: u8, body: &mut Vec<u8>) {
        self.line.push(byte);
        self.withheld.push(byte);
        self.is_own |= !may_be_said_by_all(&self.line);
        if self.is_own {
            body.append(&mut self.withheld);
        }
        if byte == b'\n' {
            self.said += usize::from(!self.is_own);
            self.withheld.clear();
            self.line.clear();
            self.is_own = false;
        }
    }

    /// A head has ended, of which `seen` ends: whether chunks follow.
    fn ends_head(&mut self, seen: &[u8]) -> bool {
        let text = String::from_utf8_lossy(seen);
        let head = text.rfind("HTTP/1.1 ").map_or("", |at| &text[at..]);
        if !head.starts_with("HTTP/1.1 100") {
            assert_eq!(std::mem::take(&mut self.said), ALL_SAY.len(), "{head}");
        }
        head.contains("\r\nTransfer-Encoding: chunked\r\n")
    }
}

/// Whether a line, as far as it has come, is one of [`ALL_SAY`].
fn may_be_said_by_all(line: &[u8]) -> bool {
    ALL_SAY.iter().any(|said| {
        let both = said.len().min(line.len());
        let date = *said == DATE && line.len() <= "Date: Mon, 24 Nov 2025 18:40:00 GMT\r\n".len();
        line[..both] == said.as_bytes()[..both] && (date || line.len() == both)
    })
}

fn after_size(line: String) -> At {
    if line == "0\r\n\r\n" {
        return At::Ended;
    }
    let last = "0\r\n\r\n".starts_with(&line);
    match line.strip_suffix("\r\n") {
        Some(digits) if !last => {
            assert_eq!(digits.len(), 6, "{line:?}");
            let size = usize::from_str_radix(digits, 16).expect("a size is hexadecimal");
            assert!(size > 0, "an empty chunk");
            At::Data(size)
        }
        _ => {
            assert!(line.len() < 8, "no size: {line:?}");
            At::Size(line)
        }
    }
}
