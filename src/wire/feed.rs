//! The header that numbers what one node tells another: `Greendot-Feed: BIRTH PREVIOUS NUMBER
//! [UP_TO]`.
//!
//! Owns its form. What a number means is the follower's (`presence/feeds.rs`).

use std::fmt;

use crate::time::Unix;

/// The header's name.
pub const FEED_HEADER: &str = "Greendot-Feed";

/// The place of a message in what its source tells one follower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Which life of the source tells it.
    pub birth: u64,
    /// The number of the message before it; 0: there was none.
    pub previous: u64,
    /// Its own, larger one.
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
        (ends && previous < number).then_some(Place {
            birth,
            previous,
            number,
            up_to,
        })
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
        for (place, text) in [
            (place, "00000000000000a7 4 5 17"),
            (held, "00000000000000a7 4 5"),
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

    proptest! {
        #[test]
        fn what_is_written_is_read(
            birth: u64,
            previous in 0..u64::MAX,
            ahead in 1..1_000_u64,
            up_to in proptest::option::of(any::<u64>()),
        ) {
            let number = previous.saturating_add(ahead);
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
