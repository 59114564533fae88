//! Child processes and what they print.
//!
//! Owns the rule that no child outlives its owner, and that no wait for a line is endless.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::harness::{PATIENCE_MS, until};

/// A child process that does not outlive its owner.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> Process {
        Process(command.spawn().expect("the program starts"))
    }

    /// None: there is no such program here.
    pub(crate) fn try_start(command: &mut Command) -> Option<Process> {
        command.spawn().ok().map(Process)
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it runs");
    }

    /// Stops it (SIGSTOP) until [`Signal::CONT`], and waits until all its threads stand.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
        let stopped = waitpid(Some(self.pid()), WaitOptions::UNTRACED).expect("it is our child");
        assert!(
            stopped.is_some_and(|(_, status)| status.stopped()),
            "it has ended"
        );
    }

    pub(crate) fn take_stdout(&mut self) -> ChildStdout {
        self.0.stdout.take().expect("it is piped and taken once")
    }

    /// None: it goes elsewhere, or has been taken.
    pub(crate) fn try_take_stderr(&mut self) -> Option<ChildStderr> {
        self.0.stderr.take()
    }

    pub(crate) fn take_stderr(&mut self) -> ChildStderr {
        self.try_take_stderr().expect("it is piped and taken once")
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        until("a process ends", || {
            self.0.try_wait().expect("it is our child")
        })
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("it is our child").is_some()
    }

    /// Kills it at once, and waits for that.
    pub(crate) fn kill(&mut self) {
        // Fails only if it has been waited for already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Lines that another thread reads, so that no wait for one is endless.
pub(crate) struct Lines {
    incoming: Receiver<String>,
}

impl Lines {
    pub(crate) fn of(source: impl Read + Send + 'static) -> Lines {
        let (sender, incoming) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(source).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Lines { incoming }
    }

    /// The next one; None: there are no more.
    pub(crate) fn next(&self) -> Option<String> {
        match self
            .incoming
            .recv_timeout(Duration::from_millis(PATIENCE_MS))
        {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no line came"),
        }
    }

    /// The next one that `wanted` accepts.
    pub(crate) fn find(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut seen = String::new();
        while let Some(line) = self.next() {
            if wanted(&line) {
                return line;
            }
            seen.push_str(&line);
            seen.push('\n');
        }
        panic!("no line that {what} in:\n{seen}")
    }
}
