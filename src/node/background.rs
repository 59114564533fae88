//! The threads that work behind the shards: one writes the store back, one gives freed memory back,
//! one looks at what the process takes.
//!
//! Owns how they are started and stopped. None of them serves a connection.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::build::Common;
use super::usage::Usage;
use super::{ServeFault, heap};
use crate::metrics::{Board, Counter, Gauge};
use crate::presence::WriteBack;
use crate::shard;
use crate::store::{FileLoss, Loss};
use crate::time::Clock;

/// Rest of the write-back after a failure, in ms.
const RETRY_MS: u64 = 1_000;

/// A thread that works until it is stopped.
pub(super) struct Background {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Background {
    /// `work` ends when the sender of what it is given is gone.
    pub(super) fn start(
        name: &str,
        doing: &'static str,
        work: impl FnOnce(&Receiver<()>) + Send + 'static,
    ) -> Result<Background, ServeFault> {
        let (stop, stopped) = bounded(0);
        let thread = shard::vital_thread(name.into(), move || {
            work(&stopped);
            Ok(())
        });
        let thread = thread.map_err(ServeFault::os(doing))?;
        Ok(Background { stop, thread })
    }

    pub(super) fn stop(self) {
        drop(self.stop);
        self.thread
            .join()
            .expect("a vital thread returns or ends the process");
    }
}

/// Starts the thread that writes the store back.
pub(super) fn start_write_back(common: &Common) -> Result<Background, ServeFault> {
    let writer = common
        .presence
        .write_back(common.config.write_back_bytes_per_second_max);
    let (board, clock) = (Arc::clone(&common.board), Arc::clone(&common.clock));
    Background::start("write-back", "start the write-back", move |stop| {
        write_back_until(stop, writer, &board, &clock);
    })
}

/// Starts the thread that gives freed memory back.
pub(super) fn start_heap(board: &Arc<Board>) -> Result<Background, ServeFault> {
    let board = Arc::clone(board);
    let doing = "start the thread that gives memory back";
    Background::start("heap", doing, move |stop| {
        heap::give_back_until(stop, &board);
    })
}

/// Starts the thread that looks at what the process takes.
pub(super) fn start_usage(board: &Arc<Board>) -> Result<Background, ServeFault> {
    let board = Arc::clone(board);
    let usage = Usage::first(&board);
    let doing = "start the thread that looks at what the process takes";
    Background::start("usage", doing, move |stop| {
        usage.look_until(stop, &board);
    })
}

/// Writes the store back, slice by slice, until the sender of `stop` is dropped.
fn write_back_until(stop: &Receiver<()>, mut writer: WriteBack, board: &Board, clock: &Clock) {
    let mut failing = false;
    let mut lost = None;
    loop {
        let pause_ms = match writer.slice(clock.now()) {
            Ok(report) => {
                failing = false;
                if report.loss != lost {
                    lost = report.loss;
                    tell_loss(lost, board);
                }
                board
                    .process
                    .add(Counter::StoreWrittenBackBytes, report.bytes);
                if let Some(cycle_ms) = report.cycle_ms {
                    board.process.add(Counter::StoreWriteBackCycles, 1);
                    board
                        .process
                        .set(Gauge::StoreWriteBackCycle, cycle_ms.saturating_mul(1_000));
                }
                report.pause_ms
            }
            Err(error) => {
                board.process.add(Counter::StoreWriteBackErrors, 1);
                // Once per row of failures: a disk that is full stays so for a while.
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(%error, "the store could not be written back; trying again \
                     every {RETRY_MS} ms");
                }
                RETRY_MS
            }
        };
        if stop.recv_timeout(Duration::from_millis(pause_ms)) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// Says what has become of the data folder, where it is not the one any more that is open.
fn tell_loss(loss: Option<Loss>, board: &Board) {
    board
        .process
        .set(Gauge::StoreFilesLost, u64::from(loss.is_some()));
    let Some(Loss { file, how }) = loss else {
        tracing::warn!("the data folder is the one again that this server has open");
        return;
    };
    let how = match how {
        FileLoss::Removed => "was removed",
        FileLoss::Replaced => "is another file now",
        FileLoss::Truncated => "was cut short",
    };
    tracing::error!(
        "{file} {how} under this server: the next start will not find what this one knows; put \
         the folder back, or stop the server and restore the folder from a backup"
    );
}
