//! This program run several times over, each process with a share of the streams: what a process
//! may hold is limited.
//!
//! Owns the split into shares below the descriptor limit, the workers' lives, and the lines of JSON
//! they speak. What the lines mean is their readers' business.

use std::io::{self, BufRead, BufReader, Write};
use std::marker::PhantomData;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::common::{Common, Share};
use crate::fleet::raise_descriptor_limit;

/// Descriptors that a worker needs besides its streams.
const DESCRIPTORS_RESERVED: u64 = 64;

/// The workers of one run, which speak words `W`.
pub struct Workers<W> {
    processes: Vec<Child>,
    lines: mpsc::Receiver<(usize, io::Result<String>)>,
    words: PhantomData<W>,
}

/// Most streams that one process of this run may hold.
pub fn share_max(common: &Common) -> usize {
    let limit = raise_descriptor_limit().saturating_sub(DESCRIPTORS_RESERVED) as usize;
    common
        .streams_per_process
        .map_or(limit, |most| most.clamp(1, limit))
}

/// `total` in shares of at most `share_max`, as equal as can be.
pub fn split(total: usize, share_max: usize) -> Vec<Share> {
    let workers = total.div_ceil(share_max.max(1));
    (0..workers)
        .map(|worker| {
            let [first, end] = [worker, worker + 1].map(|w| total * w / workers);
            Share {
                first,
                count: end - first,
            }
        })
        .collect()
}

impl<W: DeserializeOwned> Workers<W> {
    /// Starts a worker for each of `shares`: this program, with the same arguments and `more`.
    pub fn start(shares: &[Share], more: &[&str]) -> io::Result<Workers<W>> {
        let (sender, lines) = mpsc::channel();
        let mut workers = Workers {
            processes: Vec::new(),
            lines,
            words: PhantomData,
        };
        for (index, share) in shares.iter().enumerate() {
            let mut process = Command::new(std::env::current_exe()?)
                .args(std::env::args_os().skip(1))
                .args(more)
                .arg(format!("--share={}:{}", share.first, share.count))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let out = process.stdout.take();
            workers.processes.push(process);
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in out.into_iter().flat_map(|out| BufReader::new(out).lines()) {
                    if sender.send((index, line)).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(workers)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.processes.len()
    }

    /// The next word of a worker; None if none comes within `wait`.
    pub fn listen(&mut self, wait: Duration) -> io::Result<Option<(usize, W)>> {
        match self.lines.recv_timeout(wait) {
            Ok((worker, line)) => Ok(Some((worker, serde_json::from_str(&line?)?))),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(io::Error::other("all workers ended before their time"))
            }
        }
    }

    /// An error if a worker has failed; what it died of it has said itself.
    pub fn check(&mut self) -> io::Result<()> {
        for process in &mut self.processes {
            if process.try_wait()?.is_some_and(|status| !status.success()) {
                return Err(io::Error::other("a worker ended before its time"));
            }
        }
        Ok(())
    }

    /// Gives all workers an order.
    pub fn order(&mut self, order: &str) -> io::Result<()> {
        for process in &mut self.processes {
            let Some(input) = &mut process.stdin else {
                return Err(io::Error::other("a worker without input"));
            };
            writeln!(input, "{order}")?;
        }
        Ok(())
    }

    /// Waits until all have ended.
    pub fn wait(&mut self) -> io::Result<()> {
        self.processes
            .iter_mut()
            .try_for_each(|process| process.wait().map(drop))
    }
}

impl<W> Drop for Workers<W> {
    /// A run that fails leaves no worker behind.
    fn drop(&mut self) {
        for process in &mut self.processes {
            // One that has ended already is what is wanted.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A worker's word to the process that started it.
pub fn say(word: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

/// The orders given to this worker, as they come; the channel closes with its input.
pub fn orders() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_equal_and_complete() {
        assert_eq!(
            split(10, 20),
            [Share {
                first: 0,
                count: 10
            }]
        );
        assert_eq!(
            split(7, 3),
            [
                Share { first: 0, count: 2 },
                Share { first: 2, count: 2 },
                Share { first: 4, count: 3 }
            ]
        );
        assert_eq!(split(1_000_000, 19_936).len(), 51);
        assert_eq!(split(0, 3), []);
    }
}
