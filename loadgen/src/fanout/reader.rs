//! Who reads the watchers' streams of a `fanout`: this process, or several workers where there are
//! too many for one.
//!
//! Owns what the two have in common, and what workers say. A worker only keeps the books of its
//! watchers: what was caused it need not know, because the process that causes it judges all books
//! together.

use std::io;
use std::sync::mpsc::TryRecvError;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{FanoutArgs, Watchers};
use crate::clock;
use crate::common::{Common, Share};
use crate::effort::Effort;
use crate::fleet::Fleet;
use crate::ledger::Books;
use crate::progress::ProgressLine;
use crate::server_clock::ServerClock;
use crate::target::Target;
use crate::workers::{Workers, orders, say};

/// Between two words of a worker, us.
const WORD_INTERVAL_US: u64 = 50_000;
/// Short of a deadline by what a sleep may overrun; the rest is spun.
const OVERRUN_US: u64 = 200;
/// Longest wait for a worker's books, us.
const BOOKS_WAIT_US: u64 = 60_000_000;

/// Words of a worker.
#[derive(Serialize, Deserialize)]
pub(super) enum Word {
    /// All its streams are ready.
    Ready {
        offline_after_ms: Option<u64>,
        server_clock: ServerClock,
    },
    /// How many states it was told, and when the last one.
    Progress {
        deliveries: u64,
        last_delivery_us: u64,
    },
    /// Everything, and its last word.
    Books(Box<Account>),
}

/// What a worker has at the end.
#[derive(Serialize, Deserialize)]
pub(super) struct Account {
    books: Books,
    gone: u64,
    unreadable: u64,
    busy: f64,
}

/// Whoever reads the streams.
pub(super) enum Reader {
    /// This process.
    Here(Fleet),
    /// Others; for each: deliveries and its account.
    Workers {
        workers: Workers<Word>,
        deliveries: Vec<u64>,
        accounts: Vec<Option<Account>>,
        asleep_us: u64,
    },
}

impl Reader {
    /// Opens the streams of `watchers`, here if there is one share, and waits until all are ready.
    pub(super) fn start(
        target: &Target,
        shares: &[Share],
        watchers: &mut Watchers<'_>,
        line: &ProgressLine,
    ) -> io::Result<Reader> {
        if shares.len() <= 1 {
            let mut fleet = Fleet::new(target.streams.clone(), 0, watchers.count)?
                .sealed_by(target.seal.clone());
            watchers.set_up(&mut fleet, line)?;
            return Ok(Reader::Here(fleet));
        }
        let mut workers = Workers::start(shares, &[])?;
        let mut ready = 0;
        while ready < shares.len() {
            workers.check()?;
            if let Some((
                _,
                Word::Ready {
                    offline_after_ms,
                    server_clock,
                },
            )) = workers.listen(Duration::from_millis(100))?
            {
                watchers.offline_after_ms = offline_after_ms;
                watchers.server_clock.merge(server_clock);
                ready += 1;
            }
            line.show(&format!(
                "{ready} of {} processes have all their watchers",
                shares.len()
            ));
        }
        line.show("");
        Ok(Reader::Workers {
            workers,
            deliveries: vec![0; shares.len()],
            accounts: shares.iter().map(|_| None).collect(),
            asleep_us: 0,
        })
    }

    /// The first change is caused now: what it costs to read is measured from here on.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        match self {
            Reader::Here(_) => Ok(()),
            Reader::Workers { workers, .. } => workers.order("begin"),
        }
    }

    /// How long it has waited in all, us.
    pub(super) fn asleep_us(&self) -> u64 {
        match self {
            Reader::Here(fleet) => fleet.asleep_us(),
            Reader::Workers { asleep_us, .. } => *asleep_us,
        }
    }

    /// Reads, or hears of what was read, until `until_us` at most; one batch.
    pub(super) fn poll(&mut self, until_us: u64, watchers: &mut Watchers<'_>) -> io::Result<()> {
        let Reader::Workers {
            workers,
            deliveries,
            accounts,
            asleep_us,
        } = self
        else {
            let Reader::Here(fleet) = self else {
                return Ok(());
            };
            return fleet.poll(until_us, watchers);
        };
        workers.check()?;
        let before_us = clock::now_us();
        let wait_us = until_us.saturating_sub(before_us + OVERRUN_US);
        let word = workers.listen(Duration::from_micros(wait_us))?;
        *asleep_us += clock::now_us() - before_us;
        match word {
            Some((
                worker,
                Word::Progress {
                    deliveries: told,
                    last_delivery_us,
                },
            )) => {
                deliveries[worker] = told;
                watchers.told_elsewhere = deliveries.iter().sum();
                watchers.last_delivery_us = watchers.last_delivery_us.max(last_delivery_us);
            }
            Some((worker, Word::Books(account))) => accounts[worker] = Some(*account),
            Some((_, Word::Ready { .. })) | None => {}
        }
        Ok(())
    }

    /// Ends the streams and brings all books together; how busy the busiest worker was, 0 if there
    /// are none.
    pub(super) fn finish(
        &mut self,
        shares: &[Share],
        watchers: &mut Watchers<'_>,
    ) -> io::Result<f64> {
        if let Reader::Workers { workers, .. } = self {
            workers.order("close")?;
        }
        let limit_us = clock::now_us() + BOOKS_WAIT_US;
        while let Reader::Workers { accounts, .. } = self
            && accounts.iter().any(Option::is_none)
        {
            if clock::now_us() > limit_us {
                return Err(io::Error::other("a worker kept its books for itself"));
            }
            self.poll(clock::now_us() + 100_000, watchers)?;
        }
        let Reader::Workers {
            workers, accounts, ..
        } = self
        else {
            return Ok(0.0);
        };
        workers.wait()?;
        watchers.told_elsewhere = 0;
        let mut busy = 0.0f64;
        for (account, share) in accounts.drain(..).flatten().zip(shares) {
            watchers.gone += account.gone;
            watchers.unreadable += account.unreadable;
            busy = busy.max(account.busy);
            watchers
                .ledger
                .absorb(share.first, account.books)
                .ok_or_else(|| io::Error::other("a worker's books are of other watchers"))?;
        }
        Ok(busy)
    }
}

/// A worker: reads the streams of `share` until it is told to close (or its input ends), and hands
/// over its books.
pub(super) fn work(common: &Common, args: &FanoutArgs, share: Share) -> io::Result<()> {
    let target = Target::new(common)?;
    let mut fleet = Fleet::new(target.streams, share.first, share.count)?.sealed_by(target.seal);
    let mut watchers = Watchers::new(common, args, share.count);
    let orders = orders();
    watchers.set_up(&mut fleet, &ProgressLine::new(true))?;
    say(&Word::Ready {
        offline_after_ms: watchers.offline_after_ms,
        server_clock: watchers.server_clock,
    })?;
    let mut effort = Effort::begin(fleet.asleep_us());
    let mut busy = 0.0;
    let mut said = 0;
    let mut next_word_us = 0;
    loop {
        match orders.try_recv().as_deref() {
            Ok("begin") => effort = Effort::begin(fleet.asleep_us()),
            Ok(_) | Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {}
        }
        let now_us = clock::now_us();
        if now_us >= next_word_us {
            next_word_us = now_us + WORD_INTERVAL_US;
            let deliveries = watchers.ledger.deliveries();
            if deliveries > said {
                said = deliveries;
                busy = effort.busy(fleet.asleep_us());
                say(&Word::Progress {
                    deliveries,
                    last_delivery_us: watchers.last_delivery_us,
                })?;
            }
        }
        fleet.poll(next_word_us, &mut watchers)?;
    }
    say(&Word::Books(Box::new(Account {
        busy,
        gone: watchers.gone,
        unreadable: watchers.unreadable,
        books: watchers.ledger.into_books(),
    })))
}
