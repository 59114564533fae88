//! Datagrams that were refused as a whole, why, and which of those handed over they were.
//!
//! Owns no address: whoever received them knows from where they came, and says so. A refused
//! datagram costs two counters here, however many there are.

use crate::metrics::Counter;

/// Why a datagram is refused: each is counted as one of these, in the order of the table.
pub const REASONS: [Counter; 8] = [
    Counter::DatagramShort,
    Counter::DatagramMagic,
    Counter::DatagramVersion,
    Counter::DatagramKey,
    Counter::DatagramMac,
    Counter::DatagramStale,
    Counter::DatagramEntry,
    Counter::DatagramRevoked,
];

const _: () = {
    let mut at = 0;
    while at < REASONS.len() {
        assert!(place(REASONS[at]) == at, "they stand together");
        at += 1;
    }
};

/// Those of one reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    pub why: Counter,
    /// Which of the datagrams handed over was the first, from 0.
    pub nth: usize,
    /// The key that it names; 0 of one that is too short for one.
    pub key_id: u32,
    pub datagrams: u64,
}

impl Refused {
    /// Where its reason stands among [`REASONS`].
    pub fn place(&self) -> usize {
        place(self.why)
    }
}

const fn place(why: Counter) -> usize {
    why as usize - Counter::DatagramShort as usize
}

/// What was handed over since it was last asked.
#[derive(Default, Debug)]
pub(super) struct HandedOver {
    datagrams: usize,
    refused: [Option<Refused>; REASONS.len()],
    /// Any is there.
    any: bool,
}

impl HandedOver {
    /// The datagram at this place of the batch is refused for that reason.
    pub(super) fn note(&mut self, at: usize, why: Counter, key_id: impl FnOnce() -> u32) {
        let nth = self.datagrams + at;
        let first = || Refused {
            why,
            nth,
            key_id: key_id(),
            datagrams: 0,
        };
        self.refused[place(why)].get_or_insert_with(first).datagrams += 1;
        self.any = true;
    }

    /// The batch has come to its end.
    pub(super) fn go_on(&mut self, datagrams: usize) {
        self.datagrams += datagrams;
    }

    /// What of it was refused, reason by reason, and at last that nothing was.
    pub(super) fn take(&mut self) -> Option<Refused> {
        if self.any
            && let Some(refused) = self.refused.iter_mut().find_map(Option::take)
        {
            return Some(refused);
        }
        *self = HandedOver::default();
        None
    }
}
