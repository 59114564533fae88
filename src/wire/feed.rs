//! The header that numbers what one node tells another, `Greendot-Feed: BIRTH PREVIOUS NUMBER
//! [UP_TO]`, and the one that answers it, `Greendot-Feed: BIRTH NUMBER`.
//!
//! Owns their form, and which of two numbers is the later one: numbers go round (RFC 1982), so that
//! there is one after each, whatever a peer says. What a number means is the follower's
//! (`presence/feeds.rs`).

use std::fmt;

use crate::time::Unix;

/// The header's name.
pub const FEED_HEADER: &str = "Greendot-Feed";
/// The name of the header in which a follower says with its answer which life of it this is.
pub const LIFE_HEADER: &str = "Greendot-Life";

/// The place of a message in what its source tells one follower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Which life of the source tells it.
    pub birth: u64,
    /// The number of the message before it; 0: there was none.
    pub previous: u64,
    /// Its own, a later one.
    pub number: u64,
    /// With it everything has been told that the source decided before this time of its clock.
    /// None: something is held back.
    pub up_to: Option<Unix>,
}

impl Place {
    /// From the header's value. None: it is malformed.
    pub fn parse(value: &str) -> Option<Place> {
        let mut words = value.split(' ');
        let birth = u64::from_str_radix(words.next()?, 16).ok()?;
        let mut decimal = || words.next().map(|word| word.parse().ok());
        let (previous, number) = (decimal()??, decimal()??);
        let up_to = match decimal() {
            None => None,
            Some(ms) => Some(Unix::from_ms(ms?)),
        };
        let ends = words.next().is_none();
        (ends && is_later(number, previous)).then_some(Place {
            birth,
            previous,
            number,
            up_to,
        })
    }
}

/// Whether `number` comes after `other`: within half of all numbers.
pub fn is_later(number: u64, other: u64) -> bool {
    (number.wrapping_sub(other) as i64) > 0
}

/// What a follower says of a feed when it has taken a message of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Which life of the source.
    pub birth: u64,
    /// The latest number that it was told.
    pub number: u64,
}

impl Held {
    /// From the header's value in an answer. None: it is malformed.
    pub fn parse(value: &str) -> Option<Held> {
        let (birth, number) = value.split_once(' ')?;
        Some(Held {
            birth: u64::from_str_radix(birth, 16).ok()?,
            number: number.parse().ok()?,
        })
    }
}

impl fmt::Display for Held {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x} {}", self.birth, self.number)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (previous, number) = (self.previous, self.number);
        write!(out, "{:016x} {previous} {number}", self.birth)?;
        match self.up_to {
            Some(up_to) => write!(out, " {}", up_to.ms()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers() {
        let place = Place {
            birth: 0xa7,
            previous: 4,
            number: 5,
            up_to: Some(Unix::from_ms(17)),
        };
        let held = Place {
            up_to: None,
            ..place
        };
        let round = Place {
            previous: u64::MAX,
            number: 0,
            ..held
        };
        for (place, text) in [
            (place, "00000000000000a7 4 5 17"),
            (held, "00000000000000a7 4 5"),
            (round, "00000000000000a7 18446744073709551615 0"),
        ] {
            assert_eq!(place.to_string(), text);
            assert_eq!(Place::parse(text), Some(place));
        }
        for bad in [
            "",
            "a7",
            "a7 4",
            "x 4 5",
            "a7 4 -5",
            "a7 4 5 x",
            "a7 4 5 6 7",
            "a7 5 5",
            "a7 6 5",
            "a7  4 5",
            "a7 4 18446744073709551616",
        ] {
            assert_eq!(Place::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_held() {
        let (birth, number) = (0xa7, u64::MAX);
        let held = Held { birth, number };
        assert_eq!(held.to_string(), "00000000000000a7 18446744073709551615");
        assert_eq!(Held::parse(&held.to_string()), Some(held));
        for bad in ["", "a7", "a7 ", "x 4", "a7 -4", "a7 4 5"] {
            assert_eq!(Held::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn there_is_a_later_number_after_each() {
        for number in [0, 1, 1 << 63, u64::MAX] {
            let next = number.wrapping_add(1);
            assert!(is_later(next, number) && !is_later(number, next));
            assert!(!is_later(number, number));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            birth: u64,
            previous: u64,
            ahead in 1..1_000_u64,
            up_to in proptest::option::of(any::<u64>()),
        ) {
            let number = previous.wrapping_add(ahead);
            let up_to = up_to.map(Unix::from_ms);
            let place = Place { birth, previous, number, up_to };
            prop_assert_eq!(Place::parse(&place.to_string()), Some(place));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = Place::parse(&text);
        }
    }
}
