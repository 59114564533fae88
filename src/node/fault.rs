//! Why a node did not start, or did not stop cleanly.

use std::fmt;
use std::io;

use crate::fleet_key::FleetKeyFault;
use crate::key_files::FileFault;
use crate::shard::BindFault;
use crate::shard::tls::TlsFault;
use crate::store::StoreFault;
use crate::trust::TrustFault;

/// Why the node did not start, or did not stop cleanly.
#[derive(Debug)]
pub enum ServeFault {
    /// The presence database.
    Store(StoreFault),
    /// The fleet's key file.
    FleetKey(FleetKeyFault),
    /// A file with keys of users' tokens.
    KeyFile(FileFault),
    /// The files with the TLS certificate and its key.
    Tls(TlsFault),
    /// The file with those by whom other nodes are believed.
    Trust(TrustFault),
    /// A socket.
    Bind(BindFault),
    /// A node of the other role has no address.
    Node {
        /// As it was configured.
        address: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Anything else that the system refused.
    Os {
        /// What was being done.
        doing: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl ServeFault {
    pub(super) fn os(doing: &'static str) -> impl Fn(io::Error) -> ServeFault {
        move |source| ServeFault::Os { doing, source }
    }
}

impl fmt::Display for ServeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServeFault::Store(fault) => fault.fmt(f),
            ServeFault::FleetKey(fault) => fault.fmt(f),
            ServeFault::KeyFile(fault) => fault.fmt(f),
            ServeFault::Tls(fault) => fault.fmt(f),
            ServeFault::Trust(fault) => fault.fmt(f),
            ServeFault::Bind(fault) => fault.fmt(f),
            ServeFault::Node { address, source } => {
                write!(
                    f,
                    "--presence udp://{address}: no such address: {source}; name a host that \
                     resolves"
                )
            }
            ServeFault::Os { doing, source } => write!(f, "{doing}: {source}"),
        }
    }
}

impl std::error::Error for ServeFault {}
