//! The line that shows how far a run is.

use std::io::{self, IsTerminal as _, Write as _};

/// A line on standard error that is written over, unless nobody looks.
pub struct ProgressLine {
    shown: bool,
}

impl ProgressLine {
    /// Shown unless quiet or not a terminal.
    pub fn new(quiet: bool) -> ProgressLine {
        ProgressLine {
            shown: !quiet && io::stderr().is_terminal(),
        }
    }

    /// Shows `text`.
    pub fn show(&self, text: &str) {
        if self.shown {
            let mut out = io::stderr().lock();
            // Nobody is told that the line for looking at could not be written.
            let _ = write!(out, "\r\x1b[K{text}").and_then(|()| out.flush());
        }
    }
}
