//! The thread that keeps revocations: it writes them to disk, so that a request is answered once
//! they outlive a power cut.
//!
//! Owns the file while the node runs. A disk that stands still keeps requests waiting, and no
//! shard.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::ServeFault;
use crate::auth::{Digest, Revocation, Revoked};
use crate::engine::{Asker, Mail, Verdict};
use crate::shard::{self, Teller};
use crate::store::{KeptRevocation, RevocationLog};
use crate::time::Unix;

/// What other nodes have told is written so soon, in ms.
const LOOK_MS: u64 = 1_000;
/// The file is made anew once it has so many records that mean nobody.
const DEAD_RECORDS_MAX: usize = 4_096;

/// What a shard says when it wants the journal on disk: who waits for it.
pub(super) type Wants = Option<Asker>;

/// The file, before the shards run.
pub(super) struct Keeper {
    log: RevocationLog,
    revoked: Arc<Revoked>,
    wants: (Sender<Wants>, Receiver<Wants>),
}

/// The running thread.
pub(super) struct Keeping {
    /// Without it no shard has one, and the thread ends.
    wants: Sender<Wants>,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Opens the file in a folder that is locked, and puts what is in force into the table.
    pub(super) fn open(
        dir: &Path,
        revoked: &Arc<Revoked>,
        now: Unix,
    ) -> Result<Keeper, ServeFault> {
        let (log, kept) = RevocationLog::open(dir).map_err(ServeFault::Store)?;
        let in_force = kept.iter().filter(|kept| kept.until > now);
        let lost = in_force.filter(|kept| revoked.add(revocation(kept), now).is_err());
        let lost = lost.count();
        if lost > 0 {
            tracing::error!(
                "{lost} revocations are not in force: raise --revocations-max, and start again"
            );
        }
        Ok(Keeper {
            log,
            revoked: Arc::clone(revoked),
            wants: unbounded(),
        })
    }

    /// For the shards.
    pub(super) fn wants(&self) -> Sender<Wants> {
        self.wants.0.clone()
    }

    pub(super) fn start(self, teller: Teller) -> Result<Keeping, ServeFault> {
        let Keeper {
            mut log,
            revoked,
            wants: (wants, wanted),
        } = self;
        let mut kept_to = revoked.end();
        let thread = shard::vital_thread("revocations".into(), move || {
            let mut failing = false;
            while let Some(askers) = next(&wanted) {
                let kept = keep(&mut log, &revoked, &mut kept_to);
                if let (Err(error), false) = (&kept, failing) {
                    tracing::error!(%error, "revocations can not be written to disk");
                }
                failing = kept.is_err();
                let verdict = match kept {
                    Ok(()) => Verdict::Done,
                    Err(_) => Verdict::NotKept,
                };
                for Asker { shard, conn, .. } in askers {
                    let more = 0;
                    teller.tell_one(
                        shard,
                        Mail::Ran {
                            conn,
                            more,
                            verdict,
                        },
                    );
                }
            }
            Ok(())
        });
        let thread = thread.map_err(ServeFault::os("start the thread that keeps revocations"))?;
        Ok(Keeping { wants, thread })
    }
}

impl Keeping {
    /// Once the shards have ended.
    pub(super) fn stop(self) {
        drop(self.wants);
        self.thread
            .join()
            .expect("a vital thread returns or ends the process");
    }
}

/// Who waits by now; nobody after some time. None: the node stops.
fn next(wanted: &Receiver<Wants>) -> Option<Vec<Asker>> {
    match wanted.recv_timeout(Duration::from_millis(LOOK_MS)) {
        Ok(first) => Some(
            first
                .into_iter()
                .chain(wanted.try_iter().flatten())
                .collect(),
        ),
        Err(RecvTimeoutError::Timeout) => Some(Vec::new()),
        Err(RecvTimeoutError::Disconnected) => None,
    }
}

/// Writes what the journal has behind `kept_to`.
fn keep(log: &mut RevocationLog, revoked: &Revoked, kept_to: &mut u64) -> std::io::Result<()> {
    let (news, end) = revoked.journal(*kept_to, usize::MAX);
    if news.is_empty() {
        return Ok(());
    }
    if log.records() > 2 * revoked.len() + DEAD_RECORDS_MAX {
        let (all, end) = revoked.journal(0, usize::MAX);
        let all: Vec<KeptRevocation> = all.iter().map(kept).collect();
        log.rewrite(&all)?;
        *kept_to = end;
        return Ok(());
    }
    let news: Vec<KeptRevocation> = news.iter().map(kept).collect();
    log.append(&news)?;
    *kept_to = end;
    Ok(())
}

fn kept(revocation: &Revocation) -> KeptRevocation {
    KeptRevocation {
        digest: revocation.digest.bytes(),
        before: revocation.before,
        until: revocation.until,
    }
}

fn revocation(kept: &KeptRevocation) -> Revocation {
    Revocation {
        digest: Digest::from_bytes(kept.digest),
        before: kept.before,
        until: kept.until,
    }
}
