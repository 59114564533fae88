//! What a publisher is said to be.
//!
//! Owns the five words and their names in JSON. Never decides which of them holds.

/// A publisher's status, as it is published, kept and told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Status {
    /// Heard of in time, and said nothing else.
    Online,
    /// Here, by its own account not at the device.
    Away,
    /// Here, by its own account not to be disturbed.
    Busy,
    /// Not vouched for within `offline_after_ms`, or it said goodbye; or it was never seen.
    Offline,
    /// Nothing was ever told of it: its presence node has not answered a real-time node yet.
    Unknown,
}

impl Status {
    /// All of them.
    pub const ALL: [Status; 5] = [
        Status::Online,
        Status::Away,
        Status::Busy,
        Status::Offline,
        Status::Unknown,
    ];

    /// Whether the publisher is here in some way: online, away or busy.
    #[inline]
    pub const fn is_online(self) -> bool {
        match self {
            Status::Online | Status::Away | Status::Busy => true,
            Status::Offline | Status::Unknown => false,
        }
    }

    /// Its value in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Status::Online => "online",
            Status::Away => "away",
            Status::Busy => "busy",
            Status::Offline => "offline",
            Status::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_of_them_are_here() {
        let here = Status::ALL.map(|status| (status.name(), status.is_online()));
        assert_eq!(
            here,
            [
                ("online", true),
                ("away", true),
                ("busy", true),
                ("offline", false),
                ("unknown", false)
            ]
        );
    }
}
