//! A whole number as JSON may write it: 375, 375.0 and 3.75e2 are one number (RFC 8259 knows no
//! integers, and JSON Schema counts all three as such).
//!
//! Owns which are refused: what is below zero, or has a fraction. What is larger than any time is
//! taken for the largest. Never decides what a number means.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Unexpected, Visitor};

/// A whole number that is not below zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Whole(pub(super) u64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Whole, D::Error> {
        json.deserialize_u64(Reader)
    }
}

struct Reader;

impl Visitor<'_> for Reader {
    type Value = Whole;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number that is not below zero")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Whole, E> {
        Ok(Whole(number))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Whole, E> {
        if number.fract() == 0.0 && number >= 0.0 {
            // Saturates.
            return Ok(Whole(number as u64));
        }
        Err(E::invalid_value(Unexpected::Float(number), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_numbers_are_whole() {
        let read = |json: &str| serde_json::from_str(json).ok().map(|Whole(number)| number);
        for (json, expected) in [
            ("375", Some(375)),
            ("375.0", Some(375)),
            ("3.75e2", Some(375)),
            ("0", Some(0)),
            ("-0.0", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("9007199254740992.0", Some(1 << 53)),
            ("18446744073709551616", Some(u64::MAX)),
            ("1e300", Some(u64::MAX)),
            ("1e999", None),
            ("375.5", None),
            ("-1", None),
            ("-1.0", None),
            ("\"375\"", None),
            ("true", None),
            ("null", None),
            ("[375]", None),
        ] {
            assert_eq!(read(json), expected, "{json}");
        }
    }
}
