//! The processes that hold the streams, seen from the one that started them.
//!
//! Owns the sum of what the herds say.

use std::io;
use std::time::Duration;

use crate::common::Common;
use crate::herd::{Found, Progress, Word};
use crate::stats::Latencies;
use crate::workers::{Workers, share_max, split};

/// The herds of one run.
pub struct Crew {
    workers: Workers<Word>,
    progress: Vec<Progress>,
    found: Vec<Option<Found>>,
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
    /// Until the last stream of the ramp was ready, us.
    pub ramped_us: u64,
    /// From the time a stream was due to come back to its being ready.
    pub back: Latencies,
    /// From a ping to what its answer was answered.
    pub answer: Latencies,
    /// See [`Found`].
    pub answers_failed: u64,
    /// Of the final progress.
    pub pings_answered: u64,
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

impl Crew {
    /// Starts a worker for each share of `total` streams, which take so many connections each;
    /// `more`: flags besides those that this process was given.
    pub fn start(
        common: &Common,
        total: usize,
        conns_each: usize,
        more: &[&str],
    ) -> io::Result<Crew> {
        let workers = Workers::start(&split(total, share_max(common) / conns_each), more)?;
        Ok(Crew {
            progress: vec![Progress::default(); workers.count()],
            found: vec![None; workers.count()],
            workers,
        })
    }

    /// Listens for `wait` and returns the sum of how far all are.
    pub fn listen(&mut self, wait: Duration) -> io::Result<Progress> {
        self.workers.check()?;
        match self.workers.listen(wait)? {
            Some((worker, Word::Progress(progress))) => self.progress[worker] = progress,
            Some((worker, Word::Found(found))) => self.found[worker] = Some(*found),
            None => {}
        }
        Ok(self
            .progress
            .iter()
            .fold(Progress::default(), |sum, p| Progress {
                begun: sum.begun + p.begun,
                connected: sum.connected + p.connected,
                ready: sum.ready + p.ready,
                gone: sum.gone + p.gone,
                lost: sum.lost + p.lost,
                presence: sum.presence + p.presence,
                pings_answered: sum.pings_answered + p.pings_answered,
                own_bytes: sum.own_bytes + p.own_bytes,
            }))
    }

    /// Gives all herds an order.
    pub fn order(&mut self, order: &str) -> io::Result<()> {
        self.workers.order(order)
    }

    /// Has all streams closed and returns what was found.
    pub fn finish(mut self) -> io::Result<Sum> {
        self.order("close")?;
        while self.found.iter().any(Option::is_none) {
            self.listen(Duration::from_secs(30))?;
        }
        self.workers.wait()?;
        let mut sum = Sum::default();
        for found in self.found.iter().flatten() {
            sum.add(found)?;
        }
        Ok(sum)
    }
}

impl Sum {
    fn add(&mut self, found: &Found) -> io::Result<()> {
        let read = |text: &str| {
            Latencies::from_base64(text)
                .ok_or_else(|| io::Error::other("a worker's histogram is damaged"))
        };
        self.connect.merge(&read(&found.connect)?);
        self.hello.merge(&read(&found.hello)?);
        self.snapshot.merge(&read(&found.snapshot)?);
        self.back.merge(&read(&found.back)?);
        self.answer.merge(&read(&found.answer)?);
        self.ramped_us = self.ramped_us.max(found.ramped_us);
        self.answers_failed += found.answers_failed;
        self.pings_answered += found.progress.pings_answered;
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
        sum.lost += p.lost;
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
