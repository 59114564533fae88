//! What a node reads anew when it is asked to: its configuration, its keys and its certificate.
//!
//! Owns the order, what is said of the outcome, and that a fault in one of them holds up none of
//! the others. Which knobs a running node takes is `config`'s to say.

use std::sync::Arc;

use super::build::{Common, settings_of};
use super::keys::{self, Known};
use super::tls::Certificates;
use crate::auth::Keyrings;
use crate::config::{Config, LogLevel, Told};
use crate::engine::settings::SharedSettings;
use crate::metrics::{Board, Counter};

/// How a node asks again what it was told.
pub struct Reread {
    /// Whom it asks.
    pub told: Told,
    /// Has the log begin at another level.
    pub set_log_level: Box<dyn Fn(LogLevel) + Send>,
}

/// What reads all of it.
pub(super) struct Reloader {
    /// What the node runs with.
    config: Config,
    reread: Option<Reread>,
    settings: SharedSettings,
    known: Known,
    keyrings: Arc<Keyrings>,
    certificates: Option<Certificates>,
    board: Arc<Board>,
}

impl Reloader {
    pub(super) fn new(
        common: &Common,
        known: Known,
        certificates: Option<&Certificates>,
        reread: Option<Reread>,
    ) -> Reloader {
        Reloader {
            config: common.config.clone(),
            reread,
            settings: common.settings.clone(),
            known,
            keyrings: Arc::clone(&common.keyrings),
            certificates: certificates.cloned(),
            board: Arc::clone(&common.board),
        }
    }

    /// Reads all of it anew.
    pub(super) fn reload(&mut self) {
        self.reload_config();
        self.reload_keys();
        self.certificates.iter().for_each(Certificates::reload);
    }

    fn reload_config(&mut self) {
        let Some(reread) = &mut self.reread else {
            return;
        };
        let outcome = match reread.told.again(&mut self.config) {
            Ok(change) => {
                for refused in change.refused {
                    tracing::warn!("{refused} now: a running node does not take it; restart it");
                }
                for taken in &change.taken {
                    tracing::info!("{taken} from now on");
                }
                if !change.taken.is_empty() {
                    self.settings.store(settings_of(&self.config));
                    (reread.set_log_level)(self.config.log_level);
                }
                Counter::ConfigReloadsDone
            }
            Err(faults) => {
                for fault in faults {
                    tracing::error!("the configuration stays as it is: {fault}");
                }
                Counter::ConfigReloadsFailed
            }
        };
        self.board.process.add(outcome, 1);
    }

    /// If a file gives no key, the keys stay as they are, and the log says why.
    fn reload_keys(&self) {
        let outcome = match keys::read(&self.config, &self.known, false) {
            Ok(read) => {
                for warning in read.warnings {
                    tracing::warn!("{warning}");
                }
                let signs = read.keyring.fleet.signing().id();
                self.keyrings.store(Arc::new(read.keyring));
                tracing::info!("the files of keys were read anew; fleet key {signs:08x} signs");
                Counter::KeyReloadsDone
            }
            Err(fault) => {
                tracing::error!("no key has changed, for a file of keys gives none: {fault}");
                Counter::KeyReloadsFailed
            }
        };
        self.board.process.add(outcome, 1);
    }
}
