//! The certificate of a node that speaks TLS: read at the start, and anew when it is asked to.
//!
//! Owns what is said and counted of it. How it is used is the shards' (`shard/tls/`).

use std::sync::Arc;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::ServeFault;
use super::build::Common;
use crate::auth::Keyrings;
use crate::config::{Config, TlsVersion};
use crate::metrics::{Board, Counter, Gauge};
use crate::shard::tls::{Certificate, TlsFiles, TlsMin, TlsParts, TlsRead, TlsServer};
use crate::time::Clock;
use crate::trust::Trust;

/// Reads the certificate, if anything speaks TLS. From then on nobody else of this user may look
/// into the process, and it leaves no core behind: it holds what everybody says.
///
/// Errors: the files give no certificate; which one is named.
pub(super) fn read(config: &Config) -> Result<Option<TlsRead>, ServeFault> {
    let tls = &config.tls;
    let (true, Some(certificate), Some(key)) = (tls.is_on(), &tls.certificate, &tls.key) else {
        return Ok(None);
    };
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "other processes of this user may look into this one's memory");
    }
    let files = TlsFiles {
        certificate: certificate.clone(),
        key: key.clone(),
    };
    let min = match tls.min {
        TlsVersion::V1_2 => TlsMin::V1_2,
        TlsVersion::V1_3 => TlsMin::V1_3,
    };
    TlsRead::read(files, min).map(Some).map_err(ServeFault::Tls)
}

/// Reads by whom nodes at `https://` are believed, if any is there.
///
/// Errors: the file names nobody.
pub(super) fn trust(config: &Config) -> Result<Option<Trust>, ServeFault> {
    let read = config.tls.authorities.as_deref().map(Trust::read);
    read.transpose().map_err(ServeFault::Trust)
}

/// What reads the certificate anew while the node serves.
#[derive(Clone)]
pub(super) struct Certificates {
    server: Arc<TlsServer>,
    clock: Arc<Clock>,
    board: Arc<Board>,
}

impl Certificates {
    pub(super) fn new(
        read: TlsRead,
        keyrings: &Arc<Keyrings>,
        clock: &Arc<Clock>,
        board: &Arc<Board>,
    ) -> Certificates {
        note_expiry(&read.certificate, board);
        Certificates {
            server: read.serving(keyrings, clock),
            clock: Arc::clone(clock),
            board: Arc::clone(board),
        }
    }

    /// What the shards are told.
    pub(super) fn parts(self, common: &Common) -> TlsParts {
        let config = &common.config;
        TlsParts {
            server: self.server,
            admin: config.tls.admin,
            handshakes_max: config.tls.handshakes_max,
            settings: common.settings.clone(),
        }
    }

    /// Reads the files. If they give no certificate, the one before stays, and the log says why.
    pub(super) fn reload(&self) {
        let outcome = match self.server.reload() {
            Ok(certificate) => {
                note_expiry(&certificate, &self.board);
                for warning in certificate.warnings(self.clock.now().unix) {
                    tracing::warn!("{warning}");
                }
                tracing::info!("the TLS certificate was read anew; handshakes from now on have it");
                Counter::TlsReloadsDone
            }
            Err(fault) => {
                tracing::error!("the TLS certificate stays as it is: {fault}");
                Counter::TlsReloadsFailed
            }
        };
        self.board.process.add(outcome, 1);
    }
}

fn note_expiry(certificate: &Certificate, board: &Board) {
    let micros = certificate.expires.ms().saturating_mul(1_000);
    board.process.set(Gauge::TlsCertificateExpires, micros);
}
