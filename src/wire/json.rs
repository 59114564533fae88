//! The two pieces of JSON that are not serde_json's: numbers and strings.
//!
//! Owns the fast path of what every event holds.

/// Appends `number` in decimal.
pub(crate) fn write_u64(number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends `text` as a JSON string, quotes included. What a terminal, a log or a script could take
/// for the end of a line or for a command leaves escaped: all control characters (C0, DEL, C1), and
/// U+2028 and U+2029, which JSON allows.
pub(crate) fn write_str(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    // Folded rather than `any`: without an early exit the compiler compares sixteen bytes at once.
    if text
        .bytes()
        .fold(false, |found, byte| found | is_suspect(byte))
    {
        text.chars().for_each(|char| write_char(char, out));
    } else {
        out.extend_from_slice(text.as_bytes());
    }
    out.push(b'"');
}

/// Whether a byte of UTF-8 may belong to a character that is escaped: 0xC2 leads U+0080 to U+00BF,
/// 0xE2 leads U+2000 to U+2FFF.
fn is_suspect(byte: u8) -> bool {
    (byte < 0x20)
        | (byte == b'"')
        | (byte == b'\\')
        | (byte == 0x7f)
        | (byte == 0xc2)
        | (byte == 0xe2)
}

fn write_char(char: char, out: &mut Vec<u8>) {
    let short = match char {
        '"' | '\\' => char as u8,
        '\n' => b'n',
        '\r' => b'r',
        '\t' => b't',
        '\u{2028}' | '\u{2029}' => return write_escape(char as u16, out),
        _ if char.is_control() => return write_escape(char as u16, out),
        _ => {
            let mut bytes = [0; 4];
            return out.extend_from_slice(char.encode_utf8(&mut bytes).as_bytes());
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// Appends `\uXXXX`.
fn write_escape(unit: u16, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"\\u");
    for shift in [12, 8, 4, 0] {
        out.push(DIGITS[usize::from(unit >> shift & 15)]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(number: u64) -> String {
        let mut out = Vec::new();
        write_u64(number, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn string(text: &str) -> String {
        let mut out = Vec::new();
        write_str(text, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers() {
        for power in 0..20 {
            let at = 10_u64.pow(power);
            for value in [at - 1, at, at + 1] {
                assert_eq!(number(value), value.to_string());
            }
        }
        assert_eq!(number(u64::MAX), "18446744073709551615");
    }

    #[test]
    fn strings() {
        assert_eq!(string(""), r#""""#);
        assert_eq!(string("bob é \u{a0}\u{2027}/"), "\"bob é \u{a0}\u{2027}/\"");
        assert_eq!(string("a\"b\\c\n\r\t\0"), r#""a\"b\\c\n\r\t\u0000""#);
    }

    /// What ends a line for somebody, or moves a terminal's cursor.
    #[test]
    fn control_characters_and_line_separators_leave_as_escapes() {
        assert_eq!(
            string("a\u{2028}b\u{2029}c\u{7f}\u{80}\u{85}\u{9f}\u{1b}\u{8}"),
            r#""a\u2028b\u2029c\u007f\u0080\u0085\u009f\u001b\u0008""#
        );
    }

    proptest! {
        #[test]
        fn serde_json_reads_it(
            text in "([\\u{0}-\\u{a0}\\u{2020}-\\u{2030}]|.){0,20}",
            value in any::<u64>(),
        ) {
            let written = string(&text);
            let ends_lines = |char: char| char.is_control() || "\u{2028}\u{2029}".contains(char);
            prop_assert!(!written.chars().any(ends_lines));
            prop_assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
            prop_assert_eq!(number(value), value.to_string());
        }
    }
}
