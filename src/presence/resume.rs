//! Which event ids (Unix ms up to which a watcher was told everything) may still be believed.
//!
//! Owns the ambiguous window: times that were lived through twice, or whose transitions a power cut may have taken. One
//! window for all of them, widened, never narrowed: an id in it costs a full snapshot and nothing else.

use parking_lot::Mutex;

use crate::time::Unix;

/// An id may be this far ahead of the clock, in ms: the shards' turns do not begin together.
const AHEAD_MS_MAX: u64 = 1_000;

#[derive(Debug)]
pub(super) struct Resume {
    created_at: Unix,
    ambiguous: Mutex<Option<(Unix, Unix)>>,
}

impl Resume {
    pub(super) fn new(created_at: Unix, ambiguous: Option<(Unix, Unix)>) -> Resume {
        Resume {
            created_at,
            ambiguous: Mutex::new(ambiguous),
        }
    }

    pub(super) fn resumable(&self, id: Unix, now: Unix) -> bool {
        let doubtful = self.ambiguous().is_some_and(|(from, to)| (from..=to).contains(&id));
        id >= self.created_at && id <= now.plus_ms(AHEAD_MS_MAX) && !doubtful
    }

    /// No id from `from` to `to`, both included, is believed any more.
    pub(super) fn doubt(&self, from: Unix, to: Unix) {
        let mut window = self.ambiguous.lock();
        let (first, last) = window.unwrap_or((from, to));
        *window = Some((first.min(from), last.max(to)));
    }

    pub(super) fn ambiguous(&self) -> Option<(Unix, Unix)> {
        *self.ambiguous.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_believed_within_the_stores_life_and_outside_the_window() {
        let unix = Unix::from_ms;
        let resume = Resume::new(unix(1_000), None);
        let believed = |ids: &[u64]| {
            ids.iter()
                .map(|id| resume.resumable(unix(*id), unix(5_000)))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            believed(&[999, 1_000, 5_000, 6_000, 6_001]),
            [false, true, true, true, false]
        );
        resume.doubt(unix(3_000), unix(4_000));
        assert_eq!(believed(&[2_999, 3_000, 4_000, 4_001]), [true, false, false, true]);
        resume.doubt(unix(2_000), unix(2_100));
        assert_eq!(
            believed(&[1_999, 2_000, 2_500, 4_000, 4_001]),
            [true, false, false, false, true]
        );
    }
}
