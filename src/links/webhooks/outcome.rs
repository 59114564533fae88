//! What came of a message to a webhook's receiver, as values.
//!
//! Owns what a status means, and the words and the counter of each failure. Sends nothing.

use std::fmt;

use crate::metrics::Counter;

/// The status of what is too long.
const TOO_LONG: u16 = 413;

/// What came of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was taken.
    Taken,
    /// It was not, or nobody knows.
    Failed(Failure),
}

/// Why a message was not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub why: Why,
    /// The receiver asks to be left alone for so long, in ms.
    pub after_ms: Option<u64>,
}

/// One reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Why {
    /// Its name leads to no address.
    Lookup,
    /// Its name leads to addresses that may not be dialled.
    OutOfReach,
    /// There is no connection, or it was cut off.
    Connection(String),
    /// It is not believed, or speaks no TLS.
    Tls(String),
    /// It took too long.
    Timeout,
    /// What it answered is no HTTP.
    Protocol(String),
    /// It wants the message sent elsewhere, which nobody does for it.
    Redirect(u16),
    /// It refuses the message.
    Refused(u16),
    /// It has a fault.
    Fault(u16),
}

impl Outcome {
    /// Of an answer.
    pub fn of(status: u16, after_ms: Option<u64>) -> Outcome {
        let why = match status {
            200..300 => return Outcome::Taken,
            300..400 => Why::Redirect(status),
            400..500 => Why::Refused(status),
            500..600 => Why::Fault(status),
            _ => Why::Protocol(format!("status {status}")),
        };
        Outcome::Failed(Failure { why, after_ms })
    }

    /// Without an answer.
    pub fn lost(why: Why) -> Outcome {
        let after_ms = None;
        Outcome::Failed(Failure { why, after_ms })
    }
}

impl Why {
    /// Shorter messages may be taken.
    pub(super) fn is_length(&self) -> bool {
        *self == Why::Refused(TOO_LONG)
    }

    pub(super) fn counter(&self) -> Counter {
        match self {
            Why::Lookup => Counter::WebhookFailedLookup,
            Why::OutOfReach => Counter::WebhookFailedReach,
            Why::Connection(_) => Counter::WebhookFailedConnection,
            Why::Tls(_) => Counter::WebhookFailedTls,
            Why::Timeout => Counter::WebhookFailedTimeout,
            Why::Protocol(_) => Counter::WebhookFailedProtocol,
            Why::Redirect(_) => Counter::WebhookFailedRedirect,
            Why::Refused(_) => Counter::WebhookFailedRefused,
            Why::Fault(_) => Counter::WebhookFailedFault,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Lookup => f.write_str("its name leads to no address"),
            Why::OutOfReach => f.write_str(
                "its addresses are in a network of one's own, or plain HTTP would go out of it; \
                 name a server of the world at https://, or see --webhook-private",
            ),
            Why::Connection(why) => write!(f, "no connection: {why}"),
            Why::Tls(why) => write!(f, "no TLS: {why}; is its authority in --tls-ca?"),
            Why::Timeout => f.write_str("no answer in time"),
            Why::Protocol(why) => write!(f, "its answer is no HTTP: {why}"),
            Why::Redirect(status) => write!(
                f,
                "status {status}: it is elsewhere, and redirects are not followed; name where it is"
            ),
            Why::Refused(410) => f.write_str(
                "status 410: it is gone; take the webhook out of the settings, or bring it back",
            ),
            Why::Refused(401 | 403) => {
                f.write_str("it refuses the signature, or whoever calls; has it the same secret?")
            }
            Why::Refused(status) | Why::Fault(status) => write!(f, "status {status}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_status_means() {
        let of = |status| match Outcome::of(status, None) {
            Outcome::Taken => None,
            Outcome::Failed(failure) => Some(failure.why),
        };
        for (status, why) in [
            (200, None),
            (204, None),
            (299, None),
            (301, Some(Why::Redirect(301))),
            (400, Some(Why::Refused(400))),
            (410, Some(Why::Refused(410))),
            (413, Some(Why::Refused(413))),
            (500, Some(Why::Fault(500))),
            (101, Some(Why::Protocol("status 101".into()))),
        ] {
            assert_eq!(of(status), why, "{status}");
        }
        assert!(Why::Refused(413).is_length() && !Why::Refused(400).is_length());
    }
}
