//! The processes that hold the streams, seen from the one that started them.
//!
//! Owns the split of N streams into shares below the descriptor limit, the workers' lives, and the sum of what they say.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::args::Share;
use crate::fleet::raise_descriptor_limit;
use crate::herd::{Found, Progress, Word};
use crate::stats::Latencies;

/// Descriptors that a worker needs besides its streams.
const DESCRIPTORS_RESERVED: u64 = 64;

/// The workers of one run.
pub struct Crew {
    workers: Vec<Child>,
    progress: Vec<Progress>,
    found: Vec<Option<Found>>,
    words: mpsc::Receiver<(usize, io::Result<Word>)>,
}

/// What all workers found together.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    /// Final progress.
    pub progress: Progress,
    /// From the intended connect to the response head.
    pub connect: Latencies,
    /// To the hello.
    pub hello: Latencies,
    /// To the snapshot.
    pub snapshot: Latencies,
    /// From the time a stream was due to come back to its being ready.
    pub back: Latencies,
    /// How late connects were begun.
    pub lag: Latencies,
    /// The busiest worker's ratio.
    pub busy: f64,
    /// See [`Found`].
    pub false_transitions: u64,
    /// See [`Found`].
    pub given_up: u64,
    /// See [`Found`].
    pub retry_ms_max: u32,
    /// See [`Found`].
    pub away_ms_max: u64,
    /// See [`Found`].
    pub gone: Vec<(String, u64)>,
}

/// `total` streams in shares of at most `share_max`, as equal as can be.
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

impl Crew {
    /// Starts a worker for each share of `total` streams: this program, with the same arguments.
    pub fn start(total: usize) -> io::Result<Crew> {
        let share_max = raise_descriptor_limit().saturating_sub(DESCRIPTORS_RESERVED) as usize;
        let (sender, words) = mpsc::channel();
        let mut workers = Vec::new();
        for (index, share) in split(total, share_max).iter().enumerate() {
            let mut worker = Command::new(std::env::current_exe()?)
                .args(std::env::args_os().skip(1))
                .arg(format!("--share={}:{}", share.first, share.count))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let out = worker
                .stdout
                .take()
                .ok_or_else(|| io::Error::other("a worker without output"))?;
            workers.push(worker);
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(out).lines() {
                    let word = line.and_then(|line| Ok(serde_json::from_str(&line)?));
                    if sender.send((index, word)).is_err() {
                        return;
                    }
                }
            });
        }
        let count = workers.len();
        Ok(Crew {
            workers,
            progress: vec![Progress::default(); count],
            found: vec![None; count],
            words,
        })
    }

    /// Listens for `wait` and returns the sum of how far all are.
    pub fn listen(&mut self, wait: Duration) -> io::Result<Progress> {
        match self.words.recv_timeout(wait) {
            Ok((worker, Ok(Word::Progress(progress)))) => self.progress[worker] = progress,
            Ok((worker, Ok(Word::Found(found)))) => self.found[worker] = Some(*found),
            Ok((_, Err(error))) => return Err(error),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("a worker ended before its time")),
        }
        Ok(self.progress.iter().fold(Progress::default(), |sum, p| Progress {
            begun: sum.begun + p.begun,
            connected: sum.connected + p.connected,
            ready: sum.ready + p.ready,
            gone: sum.gone + p.gone,
            presence: sum.presence + p.presence,
            own_bytes: sum.own_bytes + p.own_bytes,
        }))
    }

    /// Gives all workers an order.
    pub fn order(&mut self, order: &str) -> io::Result<()> {
        for worker in &mut self.workers {
            let Some(input) = &mut worker.stdin else {
                return Err(io::Error::other("a worker without input"));
            };
            writeln!(input, "{order}")?;
        }
        Ok(())
    }

    /// Has all streams closed and returns what was found.
    pub fn finish(mut self) -> io::Result<Sum> {
        self.order("close")?;
        while self.found.iter().any(Option::is_none) {
            self.listen(Duration::from_secs(30))?;
        }
        for worker in &mut self.workers {
            worker.wait()?;
        }
        let mut sum = Sum::default();
        for found in self.found.iter().flatten() {
            sum.add(found)?;
        }
        Ok(sum)
    }
}

impl Drop for Crew {
    /// A run that fails leaves no worker behind.
    fn drop(&mut self) {
        for worker in &mut self.workers {
            // One that has ended already is what is wanted.
            let _ = worker.kill();
            let _ = worker.wait();
        }
    }
}

impl Sum {
    fn add(&mut self, found: &Found) -> io::Result<()> {
        let read = |text: &str| {
            Latencies::from_base64(text).ok_or_else(|| io::Error::other("a worker's histogram is damaged"))
        };
        self.connect.merge(&read(&found.connect)?);
        self.hello.merge(&read(&found.hello)?);
        self.snapshot.merge(&read(&found.snapshot)?);
        self.back.merge(&read(&found.back)?);
        self.lag.merge(&read(&found.lag)?);
        self.busy = self.busy.max(found.busy);
        self.false_transitions += found.false_transitions;
        self.given_up += found.given_up;
        self.retry_ms_max = self.retry_ms_max.max(found.retry_ms_max);
        self.away_ms_max = self.away_ms_max.max(found.away_ms_max);
        let (sum, p) = (&mut self.progress, &found.progress);
        sum.begun += p.begun;
        sum.connected += p.connected;
        sum.ready += p.ready;
        sum.gone += p.gone;
        sum.presence += p.presence;
        sum.own_bytes += p.own_bytes;
        for (name, count) in &found.gone {
            match self.gone.iter_mut().find(|(known, _)| known == name) {
                Some((_, all)) => *all += count,
                None => self.gone.push((name.clone(), *count)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_equal_and_complete() {
        assert_eq!(split(10, 20), [Share { first: 0, count: 10 }]);
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
