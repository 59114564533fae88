//! Datagrams that no fleet key of this node has signed, and which of those handed over they were.
//!
//! Owns no address: whoever received them knows from where they came, and says so.

/// The first of them, and how many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrongKey {
    /// Which of the datagrams handed over, from 0.
    pub nth: usize,
    /// The key that it names.
    pub key_id: u32,
    /// This node has a key of that id, which has not signed it.
    pub is_known: bool,
    pub datagrams: u64,
}

/// What was handed over since it was last asked.
#[derive(Default, Debug)]
pub(super) struct HandedOver {
    datagrams: usize,
    wrong_key: Option<WrongKey>,
}

impl HandedOver {
    /// The datagram at this place of the batch is one of them.
    pub(super) fn note(&mut self, at: usize, key_id: u32, is_known: bool) {
        let first = WrongKey {
            nth: self.datagrams + at,
            key_id,
            is_known,
            datagrams: 0,
        };
        self.wrong_key.get_or_insert(first).datagrams += 1;
    }

    /// The batch has come to its end.
    pub(super) fn go_on(&mut self, datagrams: usize) {
        self.datagrams += datagrams;
    }

    /// What it was, and nothing from here on.
    pub(super) fn take(&mut self) -> Option<WrongKey> {
        std::mem::take(self).wrong_key
    }
}
