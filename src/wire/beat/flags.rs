//! What a datagram says beside its users, of all of them.
//!
//! Owns the bits of the flags byte.
//!
//! ```text
//! bit 0      LEAVE: goodbyes; then no other bit is set, but PASSED
//! bits 1, 2  the status of a user of whom nothing is known: 0 online, 1 away, 2 busy
//! bit 3      whoever that is, is invisible
//! bit 4      IDLE: nobody is at the device
//! bit 5      PASSED: a node of a fleet passes on what it has taken; with LEAVE too
//! bit 6      WORD: no users, but a word between nodes of a fleet; then no other bit is set
//! ```

use crate::status::Status;

/// What a datagram says of all its users.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flags(u8);

/// What a user is from the outset: it counts only for one of whom nothing is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outset {
    /// Online, away or busy.
    pub status: Status,
    /// Others are told that the user has gone.
    pub invisible: bool,
}

impl Outset {
    /// Online, and seen to be.
    pub const PLAIN: Outset = Outset {
        status: Status::Online,
        invisible: false,
    };
}

impl Flags {
    /// Beats that say nothing else.
    pub const BEAT: Flags = Flags(0);
    /// Goodbyes.
    pub const LEAVE: Flags = Flags(1);
    /// A word from one node of a fleet to another.
    pub const WORD: Flags = Flags(1 << 6);
    const PASSED: u8 = 1 << 5;
    const AWAY: u8 = 1 << 1;
    const BUSY: u8 = 2 << 1;
    const STATUS: u8 = 3 << 1;
    const INVISIBLE: u8 = 1 << 3;
    const IDLE: u8 = 1 << 4;
    const KNOWN: u8 = Flags::STATUS | Flags::INVISIBLE | Flags::IDLE;

    /// Beats that say what new users are.
    pub const fn of(outset: Outset) -> Flags {
        let status = match outset.status {
            Status::Away => Flags::AWAY,
            Status::Busy => Flags::BUSY,
            Status::Online | Status::Offline | Status::Unknown => 0,
        };
        let invisible = if outset.invisible {
            Flags::INVISIBLE
        } else {
            0
        };
        Flags(status | invisible)
    }

    /// The same of devices at which nobody is, or not.
    pub const fn with_idle(self, idle: bool) -> Flags {
        let idle = if idle { Flags::IDLE } else { 0 };
        Flags(self.0 & !Flags::IDLE | idle)
    }

    /// Whether nobody is at the devices that beat.
    #[inline]
    pub const fn is_idle(self) -> bool {
        self.0 & Flags::IDLE != 0
    }

    /// The same, passed on by a node of a fleet: whoever gets it passes it on no further.
    pub const fn passed_on(self) -> Flags {
        Flags(self.0 | Flags::PASSED)
    }

    /// The same as it was said first, whoever passes it on.
    pub const fn as_said(self) -> Flags {
        Flags(self.0 & !Flags::PASSED)
    }

    /// Whether a node of a fleet passes it on.
    #[inline]
    pub const fn is_passed_on(self) -> bool {
        self.0 & Flags::PASSED != 0
    }

    /// A word between nodes of a fleet.
    #[inline]
    pub const fn is_word(self) -> bool {
        self.0 == Flags::WORD.0
    }

    /// Whether nodes alone say such things.
    pub(super) const fn is_of_node(self) -> bool {
        self.is_passed_on() || self.is_word()
    }

    /// None: a bit that this version does not know, or such as do not go together.
    pub(super) const fn read(byte: u8) -> Option<Flags> {
        let said = byte & !Flags::PASSED;
        let is_beat = said & !Flags::KNOWN == 0 && said & Flags::STATUS != Flags::STATUS;
        if is_beat || said == Flags::LEAVE.0 || byte == Flags::WORD.0 {
            Some(Flags(byte))
        } else {
            None
        }
    }

    pub(super) const fn byte(self) -> u8 {
        self.0
    }

    /// Goodbyes rather than beats.
    #[inline]
    pub const fn is_leave(self) -> bool {
        self.as_said().0 == Flags::LEAVE.0
    }

    /// What users of whom nothing is known are from here on.
    #[inline]
    pub const fn outset(self) -> Outset {
        Outset {
            status: match self.0 & Flags::STATUS {
                Flags::AWAY => Status::Away,
                Flags::BUSY => Status::Busy,
                _ => Status::Online,
            },
            invisible: self.0 & Flags::INVISIBLE != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_read_as_it_was_written_or_refused() {
        let mut taken = Vec::new();
        for byte in 0..=u8::MAX {
            let Some(flags) = Flags::read(byte) else {
                continue;
            };
            taken.push(byte);
            assert_eq!(flags.byte(), byte);
            if !flags.is_leave() && !flags.is_of_node() {
                let written = Flags::of(flags.outset()).with_idle(flags.is_idle());
                assert_eq!(written, flags);
            }
        }
        let said = [0, 1, 2, 4, 8, 10, 12, 16, 18, 20, 24, 26, 28];
        let passed_on = said.map(|byte| byte | 1 << 5);
        assert_eq!(taken, [&said[..], &passed_on, &[1 << 6]].concat());
    }

    #[test]
    fn what_is_passed_on_says_the_same() {
        let busy = Flags::of(Outset {
            status: Status::Busy,
            invisible: true,
        });
        for said in [Flags::BEAT, Flags::LEAVE, busy, busy.with_idle(true)] {
            let passed_on = said.passed_on();
            assert!(passed_on.is_passed_on() && !said.is_passed_on());
            assert_eq!(passed_on.is_leave(), said.is_leave());
            assert_eq!(passed_on.is_idle(), said.is_idle());
            assert_eq!(passed_on.outset(), said.outset());
            assert_eq!(passed_on.as_said(), said);
        }
        assert!(Flags::WORD.is_word() && !Flags::WORD.is_leave());
    }
}
