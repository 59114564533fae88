//! How exactly somebody is told when others were last active.

use super::Record;
use crate::time::Unix;

/// How exactly somebody learns when others were last active.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LastActive {
    /// To the millisecond.
    #[default]
    Exact,
    /// To the minute.
    Minutes,
    /// Not at all.
    None,
}

impl LastActive {
    /// As the claim has it.
    pub const ALL: [(&'static str, LastActive); 3] = [
        ("exact", LastActive::Exact),
        ("minutes", LastActive::Minutes),
        ("none", LastActive::None),
    ];

    /// Reads the claim's word.
    pub fn parse(word: &str) -> Option<LastActive> {
        let found = LastActive::ALL.into_iter().find(|(name, _)| *name == word);
        found.map(|(_, level)| level)
    }

    /// A time as it is told.
    pub fn of(self, time: Option<Unix>) -> Option<Unix> {
        const MINUTE_MS: u64 = 60_000;
        match self {
            LastActive::Exact => time,
            LastActive::Minutes => time.map(|at| Unix::from_ms(at.ms() / MINUTE_MS * MINUTE_MS)),
            LastActive::None => None,
        }
    }

    /// The claim's word.
    pub fn name(self) -> &'static str {
        let found = LastActive::ALL
            .into_iter()
            .find(|(_, level)| *level == self);
        found.map_or("exact", |(name, _)| name)
    }
}

impl<'u> Record<'u> {
    /// As it is told to somebody who learns that so exactly.
    #[must_use]
    pub fn told_at(self, level: LastActive) -> Record<'u> {
        Record {
            last_active: level.of(self.last_active),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_they_are_told() {
        let at = Some(Unix::from_ms(1_764_009_659_999));
        let minute = Some(Unix::from_ms(1_764_009_600_000));
        assert_eq!(LastActive::Exact.of(at), at);
        assert_eq!(LastActive::Minutes.of(at), minute);
        assert_eq!(LastActive::Minutes.of(minute), minute);
        assert_eq!(LastActive::None.of(at), None);
        for (word, level) in LastActive::ALL {
            assert_eq!(level.of(None), None);
            assert_eq!((LastActive::parse(word), level.name()), (Some(level), word));
        }
        assert_eq!(LastActive::parse("Exact"), None);
    }
}
