//! Why a TLS connection comes to nothing.
//!
//! Owns the reasons, and how each is counted. What the peer is told is an alert of the library's.

use std::io;

use rustls::{Error, PeerIncompatible};

use crate::metrics::Counter;

/// Why a connection is of no use any more, or not now.
#[derive(Debug)]
pub(super) enum Fault {
    /// What the socket said.
    Io(io::Error),
    /// The peer ended it in the middle of the handshake.
    Gone,
    /// It speaks something else.
    NotTls,
    /// It speaks no version that is taken.
    Version,
    /// It shares no cipher suite, group, signature or protocol.
    Incompatible,
    /// It has refused us: our certificate, as a rule.
    Alert,
    /// What it sent does not open.
    Decrypt,
    /// It broke a rule.
    Misbehaved,
    /// The keys have sealed as much as they may.
    Worn,
    /// A record of it has not come whole, and such records take as much memory as they may.
    Crowded,
}

impl Fault {
    pub(super) fn of(error: &Error) -> Fault {
        match error {
            Error::AlertReceived(_) => Fault::Alert,
            Error::DecryptError => Fault::Decrypt,
            Error::PeerIncompatible(
                PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled,
            ) => Fault::Version,
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Fault::Incompatible,
            _ => Fault::Misbehaved,
        }
    }

    /// As what a handshake is counted that ended so.
    pub(super) fn of_handshake(&self) -> Counter {
        match self {
            Fault::Io(_) | Fault::Gone => Counter::TlsGone,
            Fault::NotTls => Counter::TlsNotTls,
            Fault::Version => Counter::TlsVersion,
            Fault::Incompatible => Counter::TlsIncompatible,
            Fault::Alert => Counter::TlsAlert,
            Fault::Decrypt | Fault::Misbehaved | Fault::Worn | Fault::Crowded => {
                Counter::TlsMisbehaved
            }
        }
    }

    /// As what a connection is counted that ended so after its handshake. None: the engine counts
    /// it.
    pub(super) fn of_connection(&self) -> Option<Counter> {
        match self {
            Fault::Io(_) | Fault::Gone | Fault::Version | Fault::Incompatible => None,
            Fault::Alert => Some(Counter::TlsBrokenAlert),
            Fault::Decrypt => Some(Counter::TlsBrokenDecrypt),
            Fault::NotTls | Fault::Misbehaved => Some(Counter::TlsBrokenMisbehaved),
            Fault::Worn => Some(Counter::TlsBrokenWorn),
            Fault::Crowded => Some(Counter::TlsBrokenBuffers),
        }
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> io::Error {
        match fault {
            Fault::Io(error) => error,
            _ => io::ErrorKind::InvalidData.into(),
        }
    }
}
