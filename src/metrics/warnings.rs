//! The last warnings and errors of the log, for whoever looks at the node itself.
//!
//! Owns how many are kept, and of each how much. Never writes a log.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::time::Unix;

/// So many are kept.
pub const WARNINGS_MAX: usize = 20;
/// So much of each, in bytes.
pub const WARNING_BYTES_MAX: usize = 500;

/// One of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    /// When it was last said.
    pub at: Unix,
    /// An error, sooner than a warning.
    pub error: bool,
    pub text: String,
    /// How often it was said in a row.
    pub times: u64,
}

/// The last ones, the oldest first.
#[derive(Debug, Default)]
pub struct Warnings(Mutex<VecDeque<Warning>>);

impl Warnings {
    /// One more has been logged.
    pub fn push(&self, at: Unix, error: bool, mut text: String) {
        text.truncate(text.floor_char_boundary(WARNING_BYTES_MAX));
        let mut kept = self.0.lock();
        if let Some(last) = kept.back_mut().filter(|last| last.text == text) {
            (last.at, last.times) = (at, last.times + 1);
            return;
        }
        if kept.len() == WARNINGS_MAX {
            kept.pop_front();
        }
        kept.push_back(Warning {
            at,
            error,
            text,
            times: 1,
        });
    }

    /// A copy of all.
    pub fn all(&self) -> Vec<Warning> {
        self.0.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_kept_and_what_is_said_again_is_counted() {
        let warnings = Warnings::default();
        let at = Unix::from_ms;
        for n in 0..30 {
            warnings.push(at(n), n == 29, format!("{n}"));
        }
        warnings.push(at(40), true, "29".into());
        let all = warnings.all();
        assert_eq!(all.len(), WARNINGS_MAX);
        assert_eq!(all[0].text, "10");
        let last = Warning {
            at: at(40),
            error: true,
            text: "29".into(),
            times: 2,
        };
        assert_eq!(all[19], last);
        warnings.push(at(41), false, "\u{e9}".repeat(300));
        assert_eq!(warnings.all()[19].text, "\u{e9}".repeat(250));
    }
}
