//! The members of a JSON object, one by one and as they are written.
//!
//! Owns what serde leaves open: an array is no object, and a member that stands there twice is
//! refused, since two readers could take a different one for the true one.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// What becomes of a member that nobody asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Others {
    /// It is passed over.
    Ignored,
    /// The object is refused.
    Refused,
}

/// The values of the members `names`, each at most once; none if `text` is no such object.
pub(super) fn members<'t, const N: usize>(
    text: &'t str,
    names: [&str; N],
    others: Others,
) -> Option<[Option<&'t RawValue>; N]> {
    let mut json = serde_json::Deserializer::from_str(text);
    let object = Object { names, others };
    let values = object.deserialize(&mut json).ok()?;
    json.end().ok()?;
    Some(values)
}

/// A value that is of this type and nothing else: a number has no fraction, a string is a string.
pub(super) fn value<'t, T: Deserialize<'t>>(raw: &'t RawValue) -> Option<T> {
    serde_json::from_str(raw.get()).ok()
}

struct Object<'n, const N: usize> {
    names: [&'n str; N],
    others: Others,
}

impl<'de, const N: usize> DeserializeSeed<'de> for Object<'_, N> {
    type Value = [Option<&'de RawValue>; N];

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for Object<'_, N> {
    type Value = [Option<&'de RawValue>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values = [None; N];
        while let Some(place) = map.next_key_seed(Place(&self.names))? {
            match place {
                Some(place) if values[place].is_some() => return Err(de::Error::custom("twice")),
                Some(place) => values[place] = Some(map.next_value()?),
                None if self.others == Others::Refused => return Err(de::Error::custom("unknown")),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(values)
    }
}

/// Which of the names a member has.
struct Place<'n>(&'n [&'n str]);

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Place<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|known| *known == name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, others: Others) -> Option<[Option<&str>; 2]> {
        let values = members(text, ["a", "b"], others)?;
        Some(values.map(|value| value.map(RawValue::get)))
    }

    #[test]
    fn members_are_found_by_their_unescaped_name() {
        for others in [Others::Ignored, Others::Refused] {
            assert_eq!(read("{}", others), Some([None, None]));
            assert_eq!(
                read(" {\"b\": [1, {}] ,\"\\u0061\":\"\\u0061\"} ", others),
                Some([Some("\"\\u0061\""), Some("[1, {}]")])
            );
            assert_eq!(read("{\"a\":null}", others), Some([Some("null"), None]));
        }
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        for text in [
            "",
            "null",
            "[1,2]",
            "\"a\"",
            "{\"a\":1}x",
            "{\"a\":1,}",
            "{\"a\":1,\"a\":1}",
            "{\"a\":1,\"\\u0061\":1}",
            "{a:1}",
            "{\"a\":01}",
            "\u{feff}{}",
        ] {
            assert_eq!(read(text, Others::Ignored), None, "{text}");
        }
        let more = "{\"c\":1,\"a\":2,\"c\":3}";
        assert_eq!(read(more, Others::Ignored), Some([Some("2"), None]));
        assert_eq!(read(more, Others::Refused), None);
    }

    #[test]
    fn a_number_is_whole_and_a_string_is_a_string() {
        let number = |text| value::<u64>(serde_json::from_str(text).unwrap());
        assert_eq!(number("1764013200"), Some(1_764_013_200));
        for text in [
            "1.0",
            "1e3",
            "-1",
            "\"1\"",
            "null",
            "99999999999999999999999",
        ] {
            assert_eq!(number(text), None, "{text}");
        }
    }
}
