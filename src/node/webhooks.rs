//! A node's webhooks: what they are made of, and the thread that keeps up to when each receiver has
//! been told everything.
//!
//! Owns the file of that. A disk that stands still keeps no receiver waiting: what it has not taken
//! is told again after the next start.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver as Stop, RecvTimeoutError};

use super::ServeFault;
use super::background::Background;
use super::build::{Common, random};
use crate::config::webhooks::Webhook;
use crate::engine::Outbound;
use crate::links::webhooks::{
    Hook, HookOptions, Positions, Prepared, Receiver, ReceiverOptions, WebhookHandle, WebhookParts,
    Webhooks,
};
use crate::metrics::{Board, Counter};
use crate::shard::Outlet;
use crate::store::{Position, PositionFile};
use crate::time::Unix;

/// The file is written so often, in ms, where there is news.
const KEEP_MS: u64 = 1_000;

/// A node's webhooks.
pub(super) struct Hooks {
    webhooks: Webhooks,
    keeping: Background,
}

/// What is known of them before anything else is opened, in a folder that is locked.
pub(super) struct Told {
    file: PositionFile,
    positions: Vec<Position>,
}

impl Told {
    /// None: there are no webhooks.
    ///
    /// Errors: the file is damaged, or the system refuses to read it.
    pub(super) fn read(config: &crate::config::Config) -> Result<Option<Told>, ServeFault> {
        if !config.webhooks.are_on() {
            return Ok(None);
        }
        let (file, known) = PositionFile::open(&config.data_dir).map_err(ServeFault::Store)?;
        let position = |hook: &Webhook| {
            let digest = digest(hook);
            let known = known.iter().find(|known| known.digest == digest);
            // A webhook that is new has been told nothing.
            let told_up_to = known.map_or(Unix::from_ms(0), |known| known.told_up_to);
            Position { digest, told_up_to }
        };
        let positions = config.webhooks.hooks.iter().map(position).collect();
        Ok(Some(Told { file, positions }))
    }
}

fn digest(hook: &Webhook) -> [u8; 16] {
    let hash = blake3::hash(hook.typed().as_bytes());
    *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
}

impl Hooks {
    /// Starts the threads of the webhooks, and the one that keeps what has been told.
    ///
    /// Errors: a thread could not be started.
    pub(super) fn start(told: Told, common: &Common) -> Result<Hooks, ServeFault> {
        let config = &common.config.webhooks;
        let seed = u64::from_ne_bytes(random()?);
        let life = u64::from_ne_bytes(random()?);
        let prepare = |(at, hook): (usize, &Webhook)| {
            let told_up_to = told.positions[at].told_up_to;
            let options = HookOptions {
                prefix: hook.prefix.clone(),
                queue_max: config.queue_max,
                retry_ms_max: config.retry_ms_max,
                seed: seed ^ at as u64,
                life: life ^ at as u64,
            };
            let receiver = ReceiverOptions {
                url: hook.url.clone(),
                place: hook.place.clone(),
                reach: config.reach(),
                timeout_ms: config.timeout_ms,
            };
            Prepared {
                hook: Hook::new(options, told_up_to, common.clock.now()),
                receiver: Receiver::new(receiver, common.trust.as_ref()),
                told_up_to,
            }
        };
        let parts = WebhookParts {
            board: Arc::clone(&common.board),
            clock: Arc::clone(&common.clock),
            presence: Arc::clone(&common.presence),
            keyrings: Arc::clone(&common.keyrings),
            queue_max: config.queue_max,
            spawn: &spawn,
        };
        let hooks = config.hooks.iter().enumerate().map(prepare).collect();
        let webhooks = Webhooks::start(hooks, parts)
            .map_err(ServeFault::os("start the threads of webhooks"))?;
        let (positions, board) = (webhooks.positions(), Arc::clone(&common.board));
        let doing = "start the thread that keeps what webhooks were told";
        let keeping = Background::start("webhooks", doing, move |stop| {
            keep_until(stop, told, &positions, &board);
        })?;
        Ok(Hooks { webhooks, keeping })
    }

    /// A shard's way out, by which webhooks hear of transitions too.
    pub(super) fn outlet(&self, mut outlet: Outlet) -> Outlet {
        let handle: WebhookHandle = self.webhooks.handle();
        Box::new(move |outbound: Outbound| {
            handle.hand(&outbound);
            outlet(outbound);
        })
    }

    /// Once the shards have ended.
    pub(super) fn stop(self) {
        self.webhooks.stop();
        self.keeping.stop();
    }
}

fn spawn(name: String, work: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
    crate::shard::vital_thread(name, move || {
        work();
        Ok(())
    })
}

/// Writes what has been told, when there is news, until the sender of `stop` is dropped; and then
/// once more.
fn keep_until(stop: &Stop<()>, told: Told, positions: &Positions, board: &Board) {
    let Told {
        file,
        positions: mut kept,
    } = told;
    let mut failing = false;
    loop {
        let pause = Duration::from_millis(KEEP_MS);
        let stopped = stop.recv_timeout(pause) != Err(RecvTimeoutError::Timeout);
        let news: Vec<Position> = kept
            .iter()
            .zip(positions.read())
            .map(|(kept, told_up_to)| Position {
                told_up_to,
                ..*kept
            })
            .collect();
        if news != kept {
            let written = file.write(&news);
            if let (Err(error), false) = (&written, failing) {
                tracing::error!(
                    %error,
                    "what webhooks were told can not be written to disk; after a restart it would \
                     be told again"
                );
            }
            failing = written.is_err();
            board
                .process
                .add(Counter::StoreWriteBackErrors, u64::from(failing));
            if !failing {
                kept = news;
            }
        }
        if stopped {
            return;
        }
    }
}
