//! What a datagram says beside its users, of all of them.
//!
//! Owns the bits of the flags byte.
//!
//! ```text
//! bit 0      LEAVE: goodbyes; then no other bit is set
//! bits 1, 2  the status of a user of whom nothing is known: 0 online, 1 away, 2 busy
//! bit 3      whoever that is, is invisible
//! bit 4      IDLE: nobody is at the device
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

    /// None: a bit that this version does not know, or such as do not go together.
    pub(super) const fn read(byte: u8) -> Option<Flags> {
        let is_beat = byte & !Flags::KNOWN == 0 && byte & Flags::STATUS != Flags::STATUS;
        if is_beat || byte == Flags::LEAVE.0 {
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
        self.0 == Flags::LEAVE.0
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
            if !flags.is_leave() {
                let written = Flags::of(flags.outset()).with_idle(flags.is_idle());
                assert_eq!(written, flags);
            }
        }
        assert_eq!(taken, [0, 1, 2, 4, 8, 10, 12, 16, 18, 20, 24, 26, 28]);
    }
}
