//! The two pieces of JSON written by hand: numbers and strings.
//!
//! Owns the fast path of what every event holds. Everything else about JSON is serde_json's.

/// Appends `number` in decimal.
pub(crate) fn write_u64(number: u64, out: &mut Vec<u8>) {
    /// Digits of `u64::MAX`.
    const DIGITS_MAX: usize = 20;
    let mut digits = [0; DIGITS_MAX];
    let mut at = DIGITS_MAX;
    let mut rest = number;
    while rest >= 100 {
        let pair = (rest % 100) as u8;
        rest /= 100;
        at -= 2;
        digits[at] = b'0' + pair / 10;
        digits[at + 1] = b'0' + pair % 10;
    }
    let last = rest as u8;
    at -= 1;
    digits[at] = b'0' + last % 10;
    if last >= 10 {
        at -= 1;
        digits[at] = b'0' + last / 10;
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends `text` as a JSON string, quotes included.
pub(crate) fn write_str(text: &str, out: &mut Vec<u8>) {
    let needs_escape = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    // Folded rather than `any`: without an early exit the compiler compares sixteen bytes at once.
    if text
        .bytes()
        .fold(false, |found, byte| found | needs_escape(byte))
    {
        serde_json::to_writer(out, text).expect("a str is JSON and a Vec takes every write");
        return;
    }
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
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
        assert_eq!(string("bob é \u{2028}/"), "\"bob é \u{2028}/\"");
        assert_eq!(string("a\"b\\c\n\0"), r#""a\"b\\c\n\u0000""#);
    }

    proptest! {
        #[test]
        fn as_serde_json(text in any::<String>(), value in any::<u64>()) {
            prop_assert_eq!(string(&text), serde_json::to_string(&text).unwrap());
            prop_assert_eq!(number(value), value.to_string());
        }
    }
}
