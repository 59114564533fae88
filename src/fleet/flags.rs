//! What a fleet keeps and tells of a user beside whether it is here.
//!
//! Owns the bits of the flags byte.
//!
//! ```text
//! bits 0, 1  the status: 0 online, 1 away, 2 busy; offline, the one it comes back with
//! bit 2      INVISIBLE: a private record, of which only nodes may know
//! bit 3      MORE, in records only: `-` it said goodbye, and the record says when; `+` it was
//!            known to be here, since then; `=` and `!` it is not here
//! bit 4      UNATTENDED: nobody is at any of its devices; away, if the status is online
//! ```

use crate::status::Status;

/// What a user says of itself, in part: what it does not say stays as it is.
pub use crate::wire::record::Said as Saying;

/// A user's status, and whether others are told that it is here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserFlags {
    /// Online, away or busy.
    status: Status,
    /// Its public view is offline on every node.
    pub invisible: bool,
    /// Nobody is at any of its devices, as far as those say who vouch for it.
    pub unattended: bool,
}

/// The bit that says more in a record; what, depends on its kind.
pub(super) const MORE: u8 = 1 << 3;
const INVISIBLE: u8 = 1 << 2;
const UNATTENDED: u8 = 1 << 4;
const STATUS: u8 = 3;

impl UserFlags {
    /// Online, and seen to be.
    pub const PLAIN: UserFlags = UserFlags::new(Status::Online, false);

    /// Offline and unknown are no statuses of somebody's choice: they count as online.
    pub const fn new(status: Status, invisible: bool) -> UserFlags {
        let status = match status {
            Status::Away | Status::Busy => status,
            Status::Online | Status::Offline | Status::Unknown => Status::Online,
        };
        UserFlags {
            status,
            invisible,
            unattended: false,
        }
    }

    /// What it says that it is: online, away or busy.
    pub const fn status(self) -> Status {
        self.status
    }

    /// What it shows while it is here: away too if it says nothing else and nobody is there.
    pub const fn shown(self) -> Status {
        match self.status {
            Status::Online if self.unattended => Status::Away,
            said => said,
        }
    }

    /// The same, with somebody at its devices or nobody.
    pub const fn with_unattended(self, unattended: bool) -> UserFlags {
        UserFlags { unattended, ..self }
    }

    /// The same after its user has said this.
    pub fn after(self, said: Saying) -> UserFlags {
        let status = said.status.unwrap_or(self.status);
        let invisible = said.invisible.unwrap_or(self.invisible);
        UserFlags::new(status, invisible).with_unattended(self.unattended)
    }

    /// What it says of itself, and nothing of its devices.
    pub const fn said(self) -> UserFlags {
        UserFlags::new(self.status, self.invisible)
    }

    /// As it is kept and told.
    pub const fn byte(self) -> u8 {
        let status = match self.status {
            Status::Away => 1,
            Status::Busy => 2,
            Status::Online | Status::Offline | Status::Unknown => 0,
        };
        let invisible = if self.invisible { INVISIBLE } else { 0 };
        let unattended = if self.unattended { UNATTENDED } else { 0 };
        status | invisible | unattended
    }

    /// None: a bit or a status that there is not.
    pub const fn read(byte: u8) -> Option<UserFlags> {
        let status = match byte & STATUS {
            0 => Status::Online,
            1 => Status::Away,
            2 => Status::Busy,
            _ => return None,
        };
        if byte & !(STATUS | INVISIBLE | UNATTENDED) != 0 {
            return None;
        }
        let flags = UserFlags::new(status, byte & INVISIBLE != 0);
        Some(flags.with_unattended(byte & UNATTENDED != 0))
    }
}

/// Which parts are said, as bits: 1 the status, 2 whether it is invisible.
pub(super) fn parts(said: Saying) -> u8 {
    u8::from(said.status.is_some()) | u8::from(said.invisible.is_some()) << 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_read_as_it_was_written_or_refused() {
        let mut taken = Vec::new();
        for byte in 0..=u8::MAX {
            if let Some(flags) = UserFlags::read(byte) {
                assert_eq!(flags.byte(), byte);
                taken.push(byte);
            }
        }
        assert_eq!(taken, [0, 1, 2, 4, 5, 6, 16, 17, 18, 20, 21, 22]);
        let shown = taken
            .iter()
            .map(|byte| UserFlags::read(*byte).map(UserFlags::shown));
        let (away, busy) = (Some(Status::Away), Some(Status::Busy));
        let online = Some(Status::Online);
        let said = [online, away, busy, online, away, busy];
        let unattended = [away, away, busy, away, away, busy];
        assert!(shown.eq(said.into_iter().chain(unattended)));
        for status in [Status::Offline, Status::Unknown] {
            assert_eq!(UserFlags::new(status, false), UserFlags::PLAIN);
        }
    }
}
