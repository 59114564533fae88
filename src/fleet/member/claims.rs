//! What Redis has been told of each slot by this life, two bytes a slot.
//!
//! Owns the bytes, and which partition each slot's user belongs to.

use crate::fleet::held::Kinds;

pub(super) const BEAT: u16 = 1;
pub(super) const STREAM: u16 = 2;
pub(super) const OPEN: u16 = 4;
/// No kind: nobody is at the devices that are heard here.
pub(super) const UNATTENDED: u16 = 256;
pub(super) const KINDS: u16 = BEAT | STREAM | OPEN | UNATTENDED;
/// Kinds that prove a life.
pub(super) const PROOF: u16 = BEAT | STREAM;
/// It stands among the marks.
pub(super) const MARKED: u16 = 8;
/// Something is to be taken back of it, which waits.
pub(super) const HELD: u16 = 16;
/// Watchers here were told that it is here, and Redis does not know.
pub(super) const ALONE: u16 = 32;
/// It stands among those of whom is to be read.
pub(super) const ASKED: u16 = 64;
/// A call under way, or one that may have been done, names it.
pub(super) const FLYING: u16 = 128;

/// Redis has less of it than this node knows: it is said again.
pub(super) const LOST: u16 = 512;

/// It is told as here by what this node has heard alone: what it says of itself is not known.
pub(super) const GUESSED: u16 = 1_024;

/// Nobody but this node has told that it is here.
pub(super) const UNTOLD: u16 = 2_048;
/// It went by what this node heard, which Redis was not told: who is back then has come anew.
pub(super) const WENT: u16 = 4_096;
/// A call that may have been done said something of it: what Redis has of it is not known.
pub(super) const UNSURE: u16 = 8_192;
/// It was sent away, and the message of it missed: who is not here by what is read has gone.
pub(super) const TAKEN: u16 = 16_384;
/// What a word of the fleet about a user ends.
pub(super) const GUESSES: u16 = GUESSED | UNTOLD | WENT;

/// The partition of a slot whose user is not known.
pub(super) const NOWHERE: u16 = u16::MAX;

#[derive(Debug, Default)]
pub(super) struct Claims {
    bits: Vec<u16>,
    partitions: Vec<u16>,
}

impl Claims {
    pub(super) fn len(&self) -> u32 {
        self.bits.len() as u32
    }

    pub(super) fn push(&mut self, partition: u16) {
        self.bits.push(0);
        self.partitions.push(partition);
    }

    pub(super) fn partition(&self, slot: u32) -> u16 {
        self.partitions[slot as usize]
    }

    /// Another user has the slot.
    pub(super) fn set_partition(&mut self, slot: u32, partition: u16) {
        self.partitions[slot as usize] = partition;
    }

    pub(super) fn has(&self, slot: u32, flag: u16) -> bool {
        self.bits[slot as usize] & flag != 0
    }

    pub(super) fn set(&mut self, slot: u32, flag: u16) {
        self.bits[slot as usize] |= flag;
    }

    pub(super) fn clear(&mut self, slot: u32, flag: u16) {
        self.bits[slot as usize] &= !flag;
    }

    pub(super) fn kinds(&self, slot: u32) -> u16 {
        self.bits[slot as usize] & KINDS
    }

    /// How many users more are claimed by that.
    pub(super) fn set_kinds(&mut self, slot: u32, kinds: u16) -> i32 {
        let bits = &mut self.bits[slot as usize];
        let had = *bits & KINDS;
        let kinds = if kinds & !UNATTENDED == 0 { 0 } else { kinds };
        *bits = *bits & !KINDS | kinds;
        i32::from(kinds != 0) - i32::from(had != 0)
    }

    /// Of a new life nothing is claimed.
    pub(super) fn begin_life(&mut self) {
        for bits in &mut self.bits {
            *bits &= !(KINDS | FLYING | MARKED | HELD | LOST | UNSURE);
        }
    }

    /// Slots of a partition from `from` on, at most `most`, and where to go on. None: it is
    /// through.
    pub(super) fn of(&self, partition: u16, from: u32, most: usize) -> (Vec<u32>, Option<u32>) {
        let mut found = Vec::new();
        let rest = self.partitions.iter().enumerate().skip(from as usize);
        for (slot, _) in rest.filter(|(_, of)| **of == partition) {
            if found.len() == most {
                return (found, Some(slot as u32));
            }
            found.push(slot as u32);
        }
        (found, None)
    }
}

pub(super) fn bits_of(kinds: Kinds) -> u16 {
    let beat = if kinds.beat.is_some() { BEAT } else { 0 };
    let stream = if kinds.stream { STREAM } else { 0 };
    let open = if kinds.open { OPEN } else { 0 };
    let unattended = if kinds.unattended { UNATTENDED } else { 0 };
    beat | stream | open | unattended
}

/// What may be claimed and is not. Whether anybody is there is said with a claim that proves a
/// life.
pub(super) fn missing(own: u16, had: u16) -> u16 {
    let differs = if own & PROOF != 0 {
        (own ^ had) & UNATTENDED
    } else {
        0
    };
    own & !had & !UNATTENDED | differs
}

/// What is claimed and may not be.
pub(super) fn excess(own: u16, had: u16) -> u16 {
    had & !own & !UNATTENDED
}

/// Kinds with those bits; a beat's time is `own`'s.
pub(super) fn kinds_of(bits: u16, own: Kinds) -> Kinds {
    Kinds {
        beat: (bits & BEAT != 0).then(|| own.beat.unwrap_or_default()),
        stream: bits & STREAM != 0,
        open: bits & OPEN != 0,
        unattended: bits & UNATTENDED != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_a_partition_come_in_pieces() {
        let mut claims = Claims::default();
        for slot in 0..10 {
            claims.push(slot % 2);
        }
        assert_eq!(claims.of(1, 0, 3), (vec![1, 3, 5], Some(7)));
        assert_eq!(claims.of(1, 7, 3), (vec![7, 9], None));
        claims.set_partition(7, NOWHERE);
        assert_eq!(claims.of(1, 7, 3), (vec![9], None));
    }

    #[test]
    fn users_are_counted_once() {
        let mut claims = Claims::default();
        claims.push(0);
        claims.set(0, MARKED);
        assert_eq!(claims.set_kinds(0, BEAT), 1);
        assert_eq!(claims.set_kinds(0, BEAT | OPEN), 0);
        assert!(claims.has(0, MARKED));
        claims.begin_life();
        assert_eq!((claims.kinds(0), claims.has(0, MARKED)), (0, false));
    }
}
