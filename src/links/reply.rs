//! What one node asks of another over HTTP and what comes back, as values.
//!
//! Owns what a status means. Sends nothing: the links' threads and the simulator do.

use super::Answerer;
use crate::wire::feed::Held;

/// The status of what is too long.
const TOO_LONG: u16 = 413;
/// The other statuses that say that a request is refused for what is in it, and would be again.
/// Statuses that are not among these are about the node.
const REFUSED: [u16; 4] = [400, 414, 422, 431];

/// The type of most bodies.
pub(super) const JSON: &str = "application/json";

/// A request to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// `PUT` or `POST`.
    pub method: &'static str,
    /// Percent-encoded.
    pub path: String,
    /// What its body is.
    pub media: &'static str,
    /// A field beside those that every request has.
    pub field: Option<(&'static str, String)>,
    pub body: Vec<u8>,
    /// How many states it tells or asks for.
    pub states: usize,
}

/// What a node said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Said {
    /// The HTTP status.
    pub status: u16,
    /// What a presence node says of itself with an answer.
    pub node: Option<Answerer>,
    /// What a real-time node says of the feed that a message belongs to.
    pub held: Option<Held>,
    /// Which life of a real-time node says so.
    pub life: Option<u64>,
    /// The whole body.
    pub body: Vec<u8>,
}

/// Why there is no answer, in words: refused, timed out, cut off. Whether the node has taken the
/// request is not known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault(pub String);

/// The outcome of a request.
pub type Reply = Result<Said, Fault>;

/// What a reply means for the request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Meaning {
    /// It was taken or answered.
    Done,
    /// It was refused for its length, and others of that length would be.
    TooLong,
    /// It was refused for what is in it.
    Refused,
    /// The node cannot take it now, or there is no answer.
    Failed,
}

impl Meaning {
    pub(super) fn of(reply: &Reply) -> Meaning {
        match reply.as_ref().map(|said| said.status) {
            Ok(200 | 204) => Meaning::Done,
            Ok(TOO_LONG) => Meaning::TooLong,
            Ok(status) if REFUSED.contains(&status) => Meaning::Refused,
            Ok(_) | Err(_) => Meaning::Failed,
        }
    }
}

/// Why a reply is not what was hoped for, for the log.
pub(super) fn reason(reply: &Reply) -> String {
    let status = match reply {
        Err(Fault(why)) => return why.clone(),
        Ok(said) => said.status,
    };
    match status {
        401 => "401: it has another fleet key; give both the same --key-file".into(),
        404 => "404: that is not served there; at its --admin address it is, if it has one".into(),
        503 => "503: it has not seen this node, which may be missing in its --presence".into(),
        405 | 421 => "it has another role".into(),
        200 => "its answer is not that of a presence node".into(),
        _ => format!("status {status}"),
    }
}

#[cfg(test)]
pub(super) fn said(status: u16) -> Reply {
    let (node, held, life, body) = (None, None, None, Vec::new());
    Ok(Said {
        status,
        node,
        held,
        life,
        body,
    })
}

#[cfg(test)]
pub(super) fn lost() -> Reply {
    Err(Fault("timeout".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_status_means() {
        for (status, meaning) in [
            (200, Meaning::Done),
            (204, Meaning::Done),
            (400, Meaning::Refused),
            (401, Meaning::Failed),
            (413, Meaning::TooLong),
            (414, Meaning::Refused),
            (421, Meaning::Failed),
            (422, Meaning::Refused),
            (431, Meaning::Refused),
            (500, Meaning::Failed),
            (503, Meaning::Failed),
        ] {
            assert_eq!(Meaning::of(&said(status)), meaning, "{status}");
        }
        assert_eq!(Meaning::of(&lost()), Meaning::Failed);
    }

    #[test]
    fn a_reason_says_what_to_do() {
        assert_eq!(reason(&lost()), "timeout");
        assert_eq!(reason(&said(500)), "status 500");
        assert_eq!(reason(&said(421)), "it has another role");
        assert!(reason(&said(401)).contains("--key-file"));
        assert!(reason(&said(404)).contains("--admin"));
        assert!(reason(&said(503)).contains("--presence"));
    }
}
