//! Requests between being read and being answered.

use super::addresses::CountsFor;
use crate::engine::calls::refused::Refused;
use crate::engine::calls::served::Waits;
use crate::metrics::Call;
use crate::wire::response::Asker;

/// A request that has yet to be answered: all that its answer needs, however late it comes.
#[derive(Debug)]
pub(in crate::engine) struct Pending {
    /// What it is counted as.
    pub(in crate::engine) call: Call,
    /// For whom the stream counts that it asks for.
    pub(in crate::engine) address: CountsFor,
    /// By what name the stream's client goes that it asks for.
    pub(in crate::engine) client: Option<Box<str>>,
    /// For whom the answer is written.
    pub(in crate::engine) asker: Asker,
    /// Parked: what is said if no answer comes.
    pub(in crate::engine) unanswered: &'static str,
    /// Parked: which of its items were refused.
    pub(in crate::engine) refused: Refused,
    /// Parked until errands have been run; what then.
    pub(in crate::engine) waits: Option<Box<Waits>>,
}

impl Pending {
    /// One that nobody parks, yet.
    pub(in crate::engine) fn new(call: Call, asker: Asker) -> Pending {
        Pending {
            call,
            address: CountsFor::Exempt,
            client: None,
            asker,
            unanswered: "",
            refused: Refused::default(),
            waits: None,
        }
    }
}
