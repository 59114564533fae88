//! The threads that work behind the shards: one writes the store back, one gives freed memory back,
//! one looks at what the process takes.
//!
//! Owns how they are started and stopped. None of them serves a connection.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::build::Common;
use super::usage::Usage;
use super::{ServeFault, heap};
use crate::engine::note_users;
use crate::metrics::{Board, Counter, Gauge};
use crate::presence::{Presence, WriteBack};
use crate::shard;
use crate::store::{FileLoss, LogRoom, Loss, LossOf};
use crate::time::{Clock, Now};

/// Rest of the write-back after a failure, in ms.
const RETRY_MS: u64 = 1_000;
/// The disk is late once the store has waited for it for so much longer than three cycles, in ms.
const LATE_MS: u64 = 10_000;
/// A server that stops waits no longer than this for one answer of the disk, in ms.
const ANSWER_MS_MAX: u64 = 5_000;

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

/// Starts the thread that looks at what the process takes, and how old the disk is.
pub(super) fn start_usage(common: &Common, writes_back: bool) -> Result<Background, ServeFault> {
    let (board, clock) = (Arc::clone(&common.board), Arc::clone(&common.clock));
    let presence = Arc::clone(&common.presence);
    let bytes_per_second = common.config.write_back_bytes_per_second_max;
    let usage = Usage::first(&board);
    note_users(&board, &presence);
    board.look(clock.now());
    let (mut log_is_scarce, mut overdue) = (false, 0);
    let doing = "start the thread that looks at what the process takes";
    Background::start("usage", doing, move |stop| {
        usage.look_until(stop, &board, || {
            if writes_back {
                tell_unwritten(&presence, bytes_per_second, &board, clock.now());
                log_is_scarce = tell_scarce(presence.log_room(), log_is_scarce);
                overdue = tell_overdue(&presence, overdue);
            }
            note_users(&board, &presence);
            board.look(clock.now());
        });
    })
}

/// Says when so many fall silent at once that they have hardly gone. `before`: how many were
/// overdue then, 0 unless it was a mass.
fn tell_overdue(presence: &Presence, before: u64) -> u64 {
    let overdue = presence.mass_silence();
    match (before, overdue) {
        (0, 1..) => tracing::warn!(
            "the beats of {overdue} users are overdue at once, of {} who are online: has a link or \
             a balancer failed? mass-offline-hold-ms says how long they are held online",
            presence.online()
        ),
        (1.., 0) => tracing::info!("the users who had fallen silent at once are heard or told"),
        _ => {}
    }
    overdue
}

/// Says how much of the last time a power cut would take, and whether that is more than it should
/// be. Not by the thread that writes back: it may be waiting for the disk.
fn tell_unwritten(presence: &Presence, bytes_per_second: u64, board: &Board, now: Now) {
    let unwritten_ms = presence.unwritten_ms(now);
    let cycle_ms = board.process.gauge(Gauge::StoreWriteBackCycle) / 1_000;
    let expected_ms = cycle_ms.max(WriteBack::cycle_ms(presence.users(), bytes_per_second));
    // What a cycle has on disk is as of its beginning, and another one follows.
    let is_late = unwritten_ms > expected_ms.saturating_mul(3).saturating_add(LATE_MS);
    let micros = unwritten_ms.saturating_mul(1_000);
    board.process.set(Gauge::StoreUnwritten, micros);
    let was_late = board.process.gauge(Gauge::StoreWriteBackLate) > 0;
    board
        .process
        .set(Gauge::StoreWriteBackLate, u64::from(is_late));
    match (was_late, is_late) {
        (false, true) => tracing::error!(
            "the disk has not taken the store for {} s: a power cut would lose what happened \
             since",
            unwritten_ms / 1_000
        ),
        (true, false) => tracing::warn!("the disk takes the store again"),
        _ => {}
    }
}

/// Says once that soon there is no room in users.log. Returns whether that is so.
fn tell_scarce(room: LogRoom, was_scarce: bool) -> bool {
    if room.is_scarce && !was_scarce {
        tracing::warn!(
            used_bytes = room.used_bytes,
            max_bytes = room.max_bytes,
            "four fifths of the room in users.log are used, by erasures and by users in the slots \
             of others: restart before new users are refused, or stop and run `greendot store \
             compact`"
        );
    }
    room.is_scarce
}

/// Ends the write-back and closes the store: the folder is complete then. Where a memory has the
/// store, a disk that stands still is left alone.
///
/// Errors: the system's; or the disk has not answered for [`ANSWER_MS_MAX`].
pub(super) fn close(
    writer: Background,
    presence: &Arc<Presence>,
    clock: &Arc<Clock>,
) -> Result<(), ServeFault> {
    let failed = ServeFault::os("write the store back; it will open as after a crash");
    let (done, closed) = bounded(1);
    let (store, clock) = (Arc::clone(presence), Arc::clone(clock));
    let thread = shard::vital_thread("close".into(), move || {
        writer.stop();
        // Nobody waits for it any more where this has taken too long.
        let _ = done.send(store.close(clock.now()));
        Ok(())
    });
    thread.map_err(&failed)?;
    loop {
        let answers = presence.disk_answers();
        match (
            closed.recv_timeout(Duration::from_millis(ANSWER_MS_MAX)),
            presence.memory(),
        ) {
            (Ok(closed), _) => return closed.map_err(failed),
            (Err(RecvTimeoutError::Timeout), Some(memory))
                if presence.disk_answers() == answers =>
            {
                tracing::error!(
                    "the disk has not answered for {ANSWER_MS_MAX} ms: stopping without it; the \
                     next start continues from the memory in {}",
                    memory.display()
                );
                return Err(failed(io::ErrorKind::TimedOut.into()));
            }
            (Err(RecvTimeoutError::Timeout), _) => {}
            (Err(RecvTimeoutError::Disconnected), _) => {
                return Err(failed(io::ErrorKind::BrokenPipe.into()));
            }
        }
    }
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
    let Some(Loss { file, how, whose }) = loss else {
        tracing::warn!("the files are those again that this server has open");
        return;
    };
    let is_mended = how == FileLoss::Truncated;
    let how = match how {
        FileLoss::Removed => "was removed",
        FileLoss::Replaced => "is another file now",
        FileLoss::Truncated => "was cut short",
    };
    match whose {
        LossOf::Memory => tracing::error!(
            "{file} in the store's memory {how} under this server: a crash is a power cut from now \
             on; restart the server when it suits, which writes everything to the data folder"
        ),
        LossOf::Follower if is_mended => tracing::error!(
            "{file} {how} under this server: it is written anew from the store's memory"
        ),
        LossOf::Store | LossOf::Follower => tracing::error!(
            "{file} {how} under this server: the next start will not find what this one knows; put \
             the folder back, or stop the server and restore the folder from a backup"
        ),
    }
}
