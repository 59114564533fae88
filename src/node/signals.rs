//! SIGTERM and SIGINT: the first asks for a drain, the second ends the process. SIGHUP: what
//! can change while a node runs is read anew.
//!
//! Owns the handlers and their thread. Knows nothing of what is drained.

use std::fmt;
use std::io::{self, IsTerminal};

use crossbeam::channel::{Receiver, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::logs;
use crate::shard::vital_thread;

/// A signal that asks the process to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct StopSignal(i32);

impl StopSignal {
    /// Whether a person sent it, who waits at a terminal for the process to end (Ctrl-C). What a
    /// supervisor sends is no such thing: its service has no terminal.
    pub(super) fn is_from_a_terminal(self) -> bool {
        self.0 == SIGINT && (io::stdin().is_terminal() || io::stderr().is_terminal())
    }

    /// Exit status of a process that the signal ended, as shells report it.
    fn status(self) -> i32 {
        128 + self.0
    }
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(signal_hook::low_level::signal_name(self.0).unwrap_or("a signal"))
    }
}

/// From now on the first of the signals is sent to the receiver, and the second exits at once: what
/// has been accepted is in the mapped files, which outlive the process. SIGHUP has `reload` done,
/// unless the terminal hangs up at which a person started this: that ends it.
pub(super) fn listen(
    mut reload: impl FnMut() + Send + 'static,
) -> io::Result<Receiver<StopSignal>> {
    let at_terminal = io::stdin().is_terminal();
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let (sender, receiver) = bounded(1);
    vital_thread("signals".into(), move || {
        let mut asked = false;
        for signal in signals.forever() {
            let hung_up = at_terminal && !io::stdin().is_terminal();
            if signal == SIGHUP && !hung_up {
                reload();
            } else if asked {
                let signal = StopSignal(signal);
                tracing::warn!("got {signal} again: exiting without waiting for streams");
                logs::finish();
                std::process::exit(signal.status());
            } else {
                asked = true;
                if sender.send(StopSignal(signal)).is_err() {
                    break;
                }
            }
        }
        Ok(())
    })?;
    Ok(receiver)
}
