//! A node's webhooks: what they are made of, and the thread that keeps up to when each receiver has
//! been told everything.
//!
//! Owns the file of that. A disk that stands still keeps no receiver waiting: what it has not taken
//! is told again after the next start. In a fleet its database has that, and its bridge hands over
//! what is to be told.

use std::io;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver as Stop, RecvTimeoutError};

use super::ServeFault;
use super::background::Background;
use super::build::{Common, random};
use crate::config::RoleName;
use crate::config::webhooks::{Webhook, WebhookConfig};
use crate::engine::Outbound;
use crate::links::webhooks::{
    self as hooks, FleetHandle, Hook, HookOptions, Positions, Prepared, Queue, Receiver,
    ReceiverOptions, Said, Wake, WebhookHandle, WebhookParts, Webhooks,
};
use crate::metrics::{Board, Counter};
use crate::shard::Outlet;
use crate::store::{Position, PositionFile};
use crate::time::Unix;

/// The file is written so often, in ms, where there is news.
const KEEP_MS: u64 = 1_000;
/// A message may be on the way for so much longer than its timeout, in ms.
const REQUEST_MARGIN_MS: u64 = 1_000;

/// A node's webhooks.
pub(super) struct Hooks {
    webhooks: Webhooks,
    how: How,
}

/// Where what they were told is kept.
enum How {
    /// On disk, by this thread.
    Here(Background),
    /// In a fleet's database, by its bridge.
    Fleet {
        said: Vec<Said>,
        /// Set once the bridge can be woken.
        wake: Arc<OnceLock<Wake>>,
    },
}

/// What is known of them before anything else is opened, in a folder that is locked.
pub(super) enum Told {
    /// By a file.
    Here(Kept),
    /// The fleet knows.
    Fleet,
}

/// The file, and what it says.
pub(super) struct Kept {
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
        if config.role == RoleName::Fleet {
            return Ok(Some(Told::Fleet));
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
        Ok(Some(Told::Here(Kept { file, positions })))
    }
}

fn digest(hook: &Webhook) -> [u8; 16] {
    let hash = blake3::hash(hook.typed().as_bytes());
    *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
}

impl Hooks {
    /// Starts the threads of the webhooks, and where it takes one the one that keeps what has been
    /// told.
    ///
    /// Errors: a thread could not be started.
    pub(super) fn start(told: Told, common: &Common) -> Result<Hooks, ServeFault> {
        match told {
            Told::Here(kept) => Hooks::start_here(kept, common),
            Told::Fleet => Hooks::start_in_fleet(common),
        }
    }

    fn start_here(told: Kept, common: &Common) -> Result<Hooks, ServeFault> {
        let config = &common.config.webhooks;
        let seed = u64::from_ne_bytes(random()?);
        let life = u64::from_ne_bytes(random()?);
        let positions = Positions::new(told.positions.iter().map(|it| it.told_up_to));
        let prepare = |(at, hook): (usize, &Webhook)| {
            let options = HookOptions {
                prefix: hook.prefix.clone(),
                queue_max: config.queue_max,
                retry_ms_max: config.retry_ms_max,
                seed: seed ^ at as u64,
                life: life ^ at as u64,
            };
            let told_up_to = told.positions[at].told_up_to;
            hooks::Told::Own {
                hook: Box::new(Hook::new(options, told_up_to, common.clock.now())),
                presence: Arc::clone(&common.presence),
                positions: positions.clone(),
                at,
            }
        };
        let webhooks = start(common, config.hooks.iter().enumerate().map(prepare))?;
        let board = Arc::clone(&common.board);
        let doing = "start the thread that keeps what webhooks were told";
        let keeping = Background::start("webhooks", doing, move |stop| {
            keep_until(stop, told, &positions, &board);
        })?;
        let how = How::Here(keeping);
        Ok(Hooks { webhooks, how })
    }

    fn start_in_fleet(common: &Common) -> Result<Hooks, ServeFault> {
        let config = &common.config.webhooks;
        let seed = u64::from_ne_bytes(random()?);
        let wake: Arc<OnceLock<Wake>> = Arc::default();
        let said: Vec<Said> = config.hooks.iter().map(|_| Said::default()).collect();
        let prepare = |(at, said): (usize, &Said)| {
            let (request_ms, retry_ms_max) = (request_ms(config), config.retry_ms_max);
            let (seed, now) = (seed ^ at as u64, common.clock.now().mono);
            let wake = Arc::clone(&wake);
            hooks::Told::Fleet {
                queue: Box::new(Queue::new(request_ms, retry_ms_max, seed, now)),
                said: said.clone(),
                wake: Box::new(move || wake.get().map_or((), |wake| wake())),
            }
        };
        let webhooks = start(common, said.iter().enumerate().map(prepare))?;
        let how = How::Fleet { said, wake };
        Ok(Hooks { webhooks, how })
    }

    /// What the bridge to a fleet needs, which `wake` wakes: of each webhook in their order. None
    /// elsewhere.
    #[cfg_attr(
        not(feature = "cluster"),
        expect(dead_code, reason = "for the bridge to a fleet")
    )]
    pub(super) fn handles(&self, to_wake: Wake) -> Vec<FleetHandle> {
        let How::Fleet { said, wake } = &self.how else {
            return Vec::new();
        };
        let is_first = wake.set(to_wake).is_ok();
        debug_assert!(is_first, "there is one bridge");
        let handle = |(at, said): (usize, &Said)| said.handle(&self.webhooks, at);
        said.iter().enumerate().map(handle).collect()
    }

    /// A shard's way out, by which webhooks hear of transitions too.
    pub(super) fn outlet(&self, mut outlet: Outlet) -> Outlet {
        if matches!(self.how, How::Fleet { .. }) {
            return outlet;
        }
        let handle: WebhookHandle = self.webhooks.handle();
        Box::new(move |outbound: Outbound| {
            handle.hand(&outbound);
            outlet(outbound);
        })
    }

    /// Once the shards have ended.
    pub(super) fn stop(self) {
        self.webhooks.stop();
        if let How::Here(keeping) = self.how {
            keeping.stop();
        }
    }
}

/// A request and its answer take no longer, in ms.
pub(super) fn request_ms(config: &WebhookConfig) -> u64 {
    config.timeout_ms + REQUEST_MARGIN_MS
}

/// Starts a thread for each.
fn start(common: &Common, told: impl Iterator<Item = hooks::Told>) -> Result<Webhooks, ServeFault> {
    let config = &common.config.webhooks;
    let receiver = |hook: &Webhook| {
        let options = ReceiverOptions {
            url: hook.url.clone(),
            place: hook.place.clone(),
            reach: config.reach(),
            timeout_ms: config.timeout_ms,
        };
        Receiver::new(options, common.trust.as_ref())
    };
    let receivers = config.hooks.iter().map(receiver);
    let prepared = told.zip(receivers);
    let prepared = prepared.map(|(told, receiver)| Prepared { told, receiver });
    let parts = WebhookParts {
        board: Arc::clone(&common.board),
        clock: Arc::clone(&common.clock),
        keyrings: Arc::clone(&common.keyrings),
        queue_max: config.queue_max,
        spawn: &spawn,
    };
    Webhooks::start(prepared.collect(), parts)
        .map_err(ServeFault::os("start the threads of webhooks"))
}

fn spawn(name: String, work: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
    crate::shard::vital_thread(name, move || {
        work();
        Ok(())
    })
}

/// Writes what has been told, when there is news, until the sender of `stop` is dropped; and then
/// once more.
fn keep_until(stop: &Stop<()>, told: Kept, positions: &Positions, board: &Board) {
    let Kept {
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
