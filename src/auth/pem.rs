//! PEM files (RFC 7468) of one key.

/// A PEM block.
pub(super) struct Block {
    /// What stands behind BEGIN.
    pub(super) label: String,
    /// DER.
    pub(super) content: Vec<u8>,
}

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";

/// Whether the text means to be PEM.
pub(super) fn is_pem(text: &str) -> bool {
    text.contains(BEGIN)
}

/// The blocks of a file; none if one of them is broken. Text around them is no part of it.
pub(super) fn blocks(text: &str) -> Option<Vec<Block>> {
    let mut found = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(label) = between(line, BEGIN) else {
            continue;
        };
        let mut base64 = String::new();
        loop {
            let line = lines.next()?;
            if let Some(end) = between(line, END) {
                if end != label {
                    return None;
                }
                break;
            }
            base64.push_str(line);
        }
        found.push(Block {
            label: label.to_owned(),
            content: super::from_base64(&base64)?,
        });
    }
    Some(found)
}

fn between<'l>(line: &'l str, before: &str) -> Option<&'l str> {
    line.strip_prefix(before)?.strip_suffix(DASHES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Vec<(String, Vec<u8>)>> {
        let blocks = blocks(text)?.into_iter();
        Some(blocks.map(|block| (block.label, block.content)).collect())
    }

    #[test]
    fn blocks_with_text_around_them() {
        let text = "key of app\r\n-----BEGIN A B-----\r\n  AAEC\r\nAw==\r\n-----END A B-----\r\n\
                    -----BEGIN C-----\n-----END C-----";
        assert_eq!(
            read(text),
            Some(vec![
                ("A B".to_owned(), vec![0, 1, 2, 3]),
                ("C".to_owned(), vec![])
            ])
        );
        assert_eq!(read("no block"), Some(vec![]));
    }

    #[test]
    fn a_broken_block_spoils_the_file() {
        for text in [
            "-----BEGIN A-----\nAAEC",
            "-----BEGIN A-----\nAAEC\n-----END B-----",
            "-----BEGIN A-----\nA*EC\n-----END A-----",
            "-----BEGIN A-----\nProc-Type: 4,ENCRYPTED\nAAEC\n-----END A-----",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
