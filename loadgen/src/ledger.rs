//! What was caused, what was told to whom, and how the two compare.
//!
//! Owns the judgement of `fanout`: latency of each delivery, and what is missing, coalesced,
//! doubled, out of order, or was never caused. Never reads a clock. Kept for each told state: 4
//! bytes a delivery; for each watcher and publisher: 12 bytes.

use serde::{Deserialize, Serialize};

use crate::server_clock::ServerClock;
use crate::stats::Latencies;

/// One change that was caused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Caused {
    intended_us: u64,
    /// When it was really sent, Unix ms by the clock that `since` is of.
    sent_ms: u64,
    online: bool,
}

impl Caused {
    /// Whether a state may be this change: it says the same, and came about after this was sent.
    fn explains(&self, online: bool, since: u64, slack_ms: u64) -> bool {
        self.online == online && self.sent_ms <= since + slack_ms
    }

    /// Whether a view shows this change, the last one of its publisher.
    fn is_told_by(&self, view: u64, slack_ms: u64) -> bool {
        self.explains(view & 1 == 1, view >> 1, slack_ms)
    }
}

/// One state as it was told, identified by its publisher, `since` and status: who is told another
/// status with the same `since` is told another state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Told {
    since: u64,
    online: bool,
    /// When each watcher that was told was told, us after the ledger's start.
    arrivals_us: Vec<u32>,
}

/// What one process's watchers were told, on its way to the process that knows what was caused.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Books {
    start_us: u64,
    told: Vec<Vec<Told>>,
    views: Vec<u64>,
    tellings: Vec<u32>,
    doubled: u64,
    out_of_order: u64,
    deliveries: u64,
}

/// The books of one run.
#[derive(Clone, Debug)]
pub struct Ledger {
    start_us: u64,
    watchers: usize,
    publishers: usize,
    /// By how much a state may seem to have come about before its cause was sent.
    slack_ms: u64,
    caused: Vec<Vec<Caused>>,
    told: Vec<Vec<Told>>,
    /// For each watcher, for each publisher: `since << 1 | online` of the last state told; 0: none.
    views: Vec<u64>,
    /// For each of these, how often anything was told: doubles count.
    tellings: Vec<u32>,
    doubled: u64,
    out_of_order: u64,
    deliveries: u64,
    /// Views told the last change of their publisher since the round began.
    settled: usize,
}

/// What the books say.
#[derive(Clone, Debug, Default)]
pub struct Judgement {
    /// From the intended time of a change to each watcher's bytes.
    pub each: Latencies,
    /// To the first watcher's bytes.
    pub first: Latencies,
    /// To the last watcher's bytes, of changes told to all.
    pub last: Latencies,
    /// Deliveries later than allowed.
    pub late: u64,
    /// States skipped by a watcher because a newer one came before they were sent.
    pub coalesced: u64,
    /// States that stood and were not told, and final states not told, counted for each watcher.
    pub missing: u64,
    /// Told states that no change explains.
    pub never_caused: u64,
}

/// What the judge allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowance {
    /// A state that stood this long, us, after it was last told to anybody (or, told to nobody,
    /// after it was caused), should have been told to all.
    pub settle_us: u64,
    /// A delivery that takes longer is late, us.
    pub late_us: u64,
}

impl Ledger {
    /// Empty books for `watchers`, each following all of `publishers`.
    pub fn new(start_us: u64, watchers: usize, publishers: usize) -> Ledger {
        Ledger {
            start_us,
            watchers,
            publishers,
            slack_ms: ServerClock::default().slack_ms(),
            caused: vec![Vec::new(); publishers],
            told: vec![Vec::new(); publishers],
            views: vec![0; watchers * publishers],
            tellings: vec![0; watchers * publishers],
            doubled: 0,
            out_of_order: 0,
            deliveries: 0,
            settled: 0,
        }
    }

    /// A state may seem to have come about this much before its cause was sent.
    pub fn set_slack(&mut self, slack_ms: u64) {
        self.slack_ms = slack_ms;
    }

    /// A change is sent now (`sent_ms`, Unix, by the clock that `since` is of), which should have
    /// been sent at `intended_us`.
    pub fn cause(&mut self, publisher: usize, online: bool, intended_us: u64, sent_ms: u64) {
        self.caused[publisher].push(Caused {
            intended_us,
            sent_ms,
            online,
        });
    }

    /// From now on all publishers change once more.
    pub fn begin_round(&mut self) {
        self.settled = 0;
    }

    /// Whether every watcher was told the last change of every publisher since the round began.
    pub fn round_is_told(&self) -> bool {
        self.settled == self.views.len()
    }

    /// The state from which a watcher sets out (its snapshot).
    pub fn set_view(&mut self, watcher: usize, publisher: usize, online: bool, since: u64) {
        self.views[watcher * self.publishers + publisher] = since << 1 | u64::from(online);
    }

    /// A watcher was told a state.
    pub fn tell(
        &mut self,
        watcher: usize,
        publisher: usize,
        online: bool,
        since: u64,
        now_us: u64,
    ) {
        let pair = watcher * self.publishers + publisher;
        let view = &mut self.views[pair];
        let order = since.cmp(&(*view >> 1));
        if order.is_lt() {
            return self.out_of_order += 1;
        }
        self.tellings[pair] += 1;
        if order.is_eq() {
            return self.doubled += 1;
        }
        let (last, slack_ms) = (self.caused[publisher].last().copied(), self.slack_ms);
        let is_last = |view: u64| last.is_some_and(|last| last.is_told_by(view, slack_ms));
        let now = since << 1 | u64::from(online);
        self.settled += usize::from(is_last(now) && !is_last(*view));
        *view = now;
        self.deliveries += 1;
        let arrival_us = u32::try_from(now_us.saturating_sub(self.start_us)).unwrap_or(u32::MAX);
        self.told_mut(publisher, online, since)
            .arrivals_us
            .push(arrival_us);
    }

    /// The state of `publisher` that came about at `since`, entered if it was not known.
    fn told_mut(&mut self, publisher: usize, online: bool, since: u64) -> &mut Told {
        let told = &mut self.told[publisher];
        let at = match told.last() {
            Some(last) if (last.since, last.online) == (since, online) => told.len() - 1,
            _ => told.partition_point(|t| (t.since, t.online) < (since, online)),
        };
        if told
            .get(at)
            .is_none_or(|t| (t.since, t.online) != (since, online))
        {
            let arrivals_us = Vec::with_capacity(self.watchers.min(1 << 16));
            told.insert(
                at,
                Told {
                    since,
                    online,
                    arrivals_us,
                },
            );
        }
        &mut told[at]
    }

    /// What was told, for another process's [`Ledger::absorb`].
    pub fn into_books(self) -> Books {
        Books {
            start_us: self.start_us,
            told: self.told,
            views: self.views,
            tellings: self.tellings,
            doubled: self.doubled,
            out_of_order: self.out_of_order,
            deliveries: self.deliveries,
        }
    }

    /// Enters what the watchers from number `first` on were told, of whom another process had the
    /// books. None if they are of other publishers or of more watchers than there are.
    pub fn absorb(&mut self, first: usize, books: Books) -> Option<()> {
        let at = first * self.publishers;
        let views = self.views.get_mut(at..at + books.views.len())?;
        if books.told.len() != self.publishers || books.tellings.len() != books.views.len() {
            return None;
        }
        views.copy_from_slice(&books.views);
        self.tellings[at..at + books.tellings.len()].copy_from_slice(&books.tellings);
        self.doubled += books.doubled;
        self.out_of_order += books.out_of_order;
        self.deliveries += books.deliveries;
        for (publisher, states) in books.told.into_iter().enumerate() {
            for Told {
                since,
                online,
                arrivals_us,
            } in states
            {
                let start_us = self.start_us;
                let shifted = arrivals_us.iter().map(|us| {
                    let us = (books.start_us + u64::from(*us)).saturating_sub(start_us);
                    u32::try_from(us).unwrap_or(u32::MAX)
                });
                self.told_mut(publisher, online, since)
                    .arrivals_us
                    .extend(shifted);
            }
        }
        Some(())
    }

    /// States told so far, doubles not counted.
    pub fn deliveries(&self) -> u64 {
        self.deliveries
    }

    /// States told a second time to the same watcher.
    pub fn doubled(&self) -> u64 {
        self.doubled
    }

    /// Tellings beyond one a change, summed over watchers and publishers. Delivery is at least
    /// once: where a newer state is decided on one shard while another one is about to tell the
    /// last, it tells the newer one in its place, and again when word of it comes. A double that
    /// stands for no skipped state has no such excuse.
    pub fn surplus(&self) -> u64 {
        let changes = self.caused.iter().map(|caused| caused.len() as u64).cycle();
        let surplus = |(told, changes): (&u32, u64)| u64::from(*told).saturating_sub(changes);
        self.tellings.iter().zip(changes).map(surplus).sum()
    }

    /// States told after a newer one.
    pub fn out_of_order(&self) -> u64 {
        self.out_of_order
    }

    /// Changes caused so far.
    pub fn changes(&self) -> u64 {
        self.caused.iter().map(|caused| caused.len() as u64).sum()
    }

    /// Watched publishers, counted for each watcher, whose state is not told as it was last caused.
    /// A state that came about before the last change was sent is an earlier one, even if it says
    /// the same, unless both belong to one burst.
    pub fn unsettled(&self, allowance: &Allowance) -> u64 {
        let finals: Vec<Option<(Caused, bool)>> = self
            .caused
            .iter()
            .map(|caused| Some((*caused.last()?, ends_in_burst(caused, allowance))))
            .collect();
        let is_unsettled = |(at, view): &(usize, &u64)| {
            finals[at % self.publishers].is_some_and(|(last, in_burst)| {
                let is_same = (*view & 1 == 1) == last.online;
                !(last.is_told_by(**view, self.slack_ms) || in_burst && is_same)
            })
        };
        self.views.iter().enumerate().filter(is_unsettled).count() as u64
    }

    /// Judges the run; `end_us`: until when states were awaited.
    pub fn judge(&self, allowance: &Allowance, end_us: u64) -> Judgement {
        let mut judgement = Judgement::default();
        for publisher in 0..self.publishers {
            self.judge_publisher(publisher, allowance, end_us, &mut judgement);
        }
        judgement
    }

    /// Watchers who were last told another status.
    fn views_unlike(&self, publisher: usize, online: bool) -> u64 {
        let views = self.views.iter().skip(publisher).step_by(self.publishers);
        views.filter(|view| (**view & 1 == 1) != online).count() as u64
    }

    fn judge_publisher(
        &self,
        publisher: usize,
        allowance: &Allowance,
        end_us: u64,
        judgement: &mut Judgement,
    ) {
        let (caused, told) = (&self.caused[publisher], &self.told[publisher]);
        let mut told_of: Vec<Option<&Told>> = vec![None; caused.len()];
        for (number, told) in match_states(caused, told, self.slack_ms)
            .into_iter()
            .zip(told)
        {
            match number {
                Some(number) => told_of[number] = Some(told),
                None => judgement.never_caused += told.arrivals_us.len() as u64,
            }
        }
        for (number, (change, told)) in caused.iter().zip(&told_of).enumerate() {
            let mut last_us = change.intended_us;
            let receivers = told.map_or(0, |told| told.arrivals_us.len());
            if let Some(told) = told {
                let first_us = told
                    .arrivals_us
                    .iter()
                    .min()
                    .map_or(0, |us| self.start_us + u64::from(*us));
                for arrival_us in &told.arrivals_us {
                    let arrival_us = self.start_us + u64::from(*arrival_us);
                    let us = arrival_us.saturating_sub(change.intended_us);
                    judgement.each.record(us);
                    judgement.late += u64::from(us > allowance.late_us);
                    last_us = last_us.max(arrival_us);
                }
                judgement
                    .first
                    .record(first_us.saturating_sub(change.intended_us));
                if receivers == self.watchers {
                    judgement
                        .last
                        .record(last_us.saturating_sub(change.intended_us));
                }
            }
            let skipped = (self.watchers - receivers) as u64;
            let stood_until_us = caused
                .get(number + 1)
                .map_or(end_us, |next| next.intended_us);
            let is_final = number + 1 == caused.len();
            if is_final && ends_in_burst(caused, allowance) {
                let wrong = skipped.min(self.views_unlike(publisher, change.online));
                judgement.missing += wrong;
                judgement.coalesced += skipped - wrong;
            } else if is_final || stood_until_us > last_us + allowance.settle_us {
                judgement.missing += skipped;
            } else {
                judgement.coalesced += skipped;
            }
        }
    }
}

/// Whether the last change may be back to what was told before: there and back within one burst is
/// no change for whoever was told what it came back to.
fn ends_in_burst(caused: &[Caused], allowance: &Allowance) -> bool {
    let settle_us = allowance.settle_us;
    matches!(caused, [.., before, last] if last.intended_us - before.intended_us <= settle_us)
}

/// For each told state, in order, the number of the change that it is.
///
/// As many told as caused, each one at its time: one is the other. Otherwise, from the last one
/// back: the latest change, not yet given away, to that status, that had been sent when the state
/// came about. (A server that skips a state skips it for a newer one.) Of two that are said to have
/// come about at the same time one is a lie: the one that fewer were told, or that would be an
/// earlier change.
fn match_states(caused: &[Caused], told: &[Told], slack_ms: u64) -> Vec<Option<usize>> {
    let explains =
        |change: &Caused, told: &Told| change.explains(told.online, told.since, slack_ms);
    if caused.len() == told.len()
        && caused
            .iter()
            .zip(told)
            .all(|(change, told)| explains(change, told))
    {
        return (0..told.len()).map(Some).collect();
    }
    let mut numbers = vec![None; told.len()];
    let (mut below, mut end) = (caused.len(), told.len());
    for same in told.chunk_by(|a, b| a.since == b.since).rev() {
        let start = end - same.len();
        let found = (start..end)
            .filter_map(|at| {
                let number = caused[..below]
                    .iter()
                    .rposition(|change| explains(change, &told[at]))?;
                Some((told[at].arrivals_us.len(), number, at))
            })
            .max();
        if let Some((_, number, at)) = found {
            numbers[at] = Some(number);
            below = number;
        }
        end = start;
    }
    numbers
}

#[cfg(test)]
mod tests;
