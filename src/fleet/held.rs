//! What Redis holds of a partition: the fields of its hot key, and the entries of those who are
//! offline.
//!
//! Owns their names and bytes. Never writes them into Redis: the library does, but for the offline
//! entries, which a node sets before the call that withdraws.
//!
//! No user id begins with NUL, so the fields that do are nobody's.

use super::bytes::{take, take_time, take_u8, take_u32, take_u48, time, u48};
use super::flags::UserFlags;
use super::{Birth, Life, Malformed};
use crate::time::Unix;
use crate::wire::User;

/// The field with a partition's [`Meta`].
pub const META_FIELD: &[u8] = b"\0m";

/// The field with a life's [`Enrolment`].
pub fn life_field(life: Life) -> [u8; 6] {
    let [a, b, c, d] = life.0;
    [0, b'L', a, b, c, d]
}

/// The field with the message of that number, or of one 32 or more before or after it.
pub fn ring_field(number: u64) -> [u8; 3] {
    [0, b'r', (number % RING_MESSAGES) as u8]
}

/// Messages that a partition keeps. Of a million users in 1,024 partitions they are 7 of 114 bytes
/// a user, with the table of fields that they fill; whoever has missed more reads its users.
pub const RING_MESSAGES: u64 = 32;

/// Where a partition's numbers are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meta {
    /// Which creation this is.
    pub birth: Birth,
    /// The number of the last message.
    pub number: u64,
    /// Its time.
    pub since: Unix,
    /// When somebody went last.
    pub left: Unix,
}

/// What a partition knows of one life of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Enrolment {
    /// Nothing of it is taken any more.
    pub is_fenced: bool,
    /// The number of its last call.
    pub k: u64,
    /// Users whom it claims.
    pub count: u32,
}

/// A user who is here, in the field of its own name; or one who is not, and whose flags say
/// something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Here {
    /// When it came, or when what it shows changed last; or when it went, or said its flags.
    pub since: Unix,
    /// Its status, and whether others are told.
    pub flags: UserFlags,
    /// Who claims it. Empty: it is not here.
    pub claims: Vec<Claim>,
}

/// What one life says of a user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// Whose.
    pub life: Life,
    /// Of which kinds.
    pub kinds: Kinds,
}

/// Kinds of one claim: of a user a life may have heard beats and hold streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Kinds {
    /// A beat was heard, sent then: it proves a life until its life withdraws it.
    pub beat: Option<Unix>,
    /// A stream is open that vouches for its holder: it proves a life.
    pub stream: bool,
    /// A stream is open whose holder vouches for itself. It proves nothing, but another device's
    /// goodbye does not end it.
    pub open: bool,
    /// No kind: nobody is at the devices that are heard there.
    pub unattended: bool,
}

impl Kinds {
    const BEAT: u8 = 1;
    const STREAM: u8 = 2;
    const OPEN: u8 = 4;
    const ALL: u8 = 7;
    const UNATTENDED: u8 = 8;

    /// A beat that was sent then.
    pub const fn beat(sent: Unix) -> Kinds {
        Kinds {
            beat: Some(sent),
            stream: false,
            open: false,
            unattended: false,
        }
    }

    /// A stream that vouches.
    pub const STREAM_ONLY: Kinds = Kinds {
        beat: None,
        stream: true,
        open: false,
        unattended: false,
    };

    /// A stream whose holder vouches for itself.
    pub const OPEN_ONLY: Kinds = Kinds {
        beat: None,
        stream: false,
        open: true,
        unattended: false,
    };

    /// Whether one of them proves a life.
    pub const fn is_proof(self) -> bool {
        self.beat.is_some() || self.stream
    }

    /// Its bits.
    pub(super) const fn byte(self) -> u8 {
        let beat = if self.beat.is_some() { Kinds::BEAT } else { 0 };
        let stream = if self.stream { Kinds::STREAM } else { 0 };
        let open = if self.open { Kinds::OPEN } else { 0 };
        let unattended = if self.unattended {
            Kinds::UNATTENDED
        } else {
            0
        };
        beat | stream | open | unattended
    }

    fn take(rest: &mut &[u8]) -> Option<Kinds> {
        let byte = take_u8(rest).filter(|byte| byte & Kinds::ALL != 0 && *byte < 16)?;
        let beat = if byte & Kinds::BEAT != 0 {
            Some(take_time(rest)?)
        } else {
            None
        };
        Some(Kinds {
            beat,
            stream: byte & Kinds::STREAM != 0,
            open: byte & Kinds::OPEN != 0,
            unattended: byte & Kinds::UNATTENDED != 0,
        })
    }
}

impl Here {
    /// Most claims of one user that are read: one for each life that there may be.
    pub const CLAIMS_MAX: usize = 1_024;

    /// From a field's value.
    ///
    /// Errors: a time, flags or a claim that there is not.
    pub fn parse(mut bytes: &[u8]) -> Result<Here, Malformed> {
        let rest = &mut bytes;
        let here = (|| {
            let mut here = Here {
                since: take_time(rest)?,
                flags: UserFlags::read(take_u8(rest)?)?,
                claims: Vec::with_capacity(1),
            };
            while !rest.is_empty() && here.claims.len() < Here::CLAIMS_MAX {
                here.claims.push(Claim {
                    life: Life(take(rest)?),
                    kinds: Kinds::take(rest)?,
                });
            }
            Some(here)
        })();
        here.filter(|_| rest.is_empty())
            .ok_or(Malformed("the field of a user"))
    }

    /// As the library writes it.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(18);
        bytes.extend(time(self.since));
        bytes.push(self.flags.byte());
        for claim in &self.claims {
            bytes.extend(claim.life.0);
            bytes.push(claim.kinds.byte());
            bytes.extend(claim.kinds.beat.map(time).into_iter().flatten());
        }
        bytes
    }

    /// Whether anybody claims it.
    pub fn is_here(&self) -> bool {
        !self.claims.is_empty()
    }

    /// What `life` claims of it.
    pub fn claimed_by(&self, life: Life) -> Option<Kinds> {
        let mut claims = self.claims.iter();
        claims
            .find(|claim| claim.life == life)
            .map(|claim| claim.kinds)
    }
}

/// What everybody is told of a user who is offline, in the field of its own name in one of a
/// partition's buckets. Of one who is invisible too, whether it is here or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gone {
    /// When it went.
    pub since: Unix,
    /// When it was last heard of: not later, and written as at most 4.6 hours before.
    pub last_active: Unix,
}

impl Gone {
    /// Its bytes: since, how many ms before it was last heard of.
    pub fn encode(&self) -> [u8; 9] {
        let behind = self.since.ms_since(self.last_active).min(0xff_ffff) as u32;
        let [_, x, y, z] = behind.to_be_bytes();
        let [a, b, c, d, e, f] = time(self.since);
        [a, b, c, d, e, f, x, y, z]
    }

    /// From a field's value.
    ///
    /// Errors: it is not one.
    pub fn parse(mut bytes: &[u8]) -> Result<Gone, Malformed> {
        let rest = &mut bytes;
        let gone = (|| {
            let since = take_time(rest)?;
            let [x, y, z] = take(rest)?;
            let behind = u64::from(u32::from_be_bytes([0, x, y, z]));
            Some(Gone {
                since,
                last_active: Unix::from_ms(since.ms().checked_sub(behind)?),
            })
        })();
        gone.filter(|_| rest.is_empty())
            .ok_or(Malformed("the entry of a user who is offline"))
    }
}

/// A user whose streams ended everywhere: it was logged out, or erased. Kept by a tag, for nothing
/// names who is erased.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Ended {
    /// When, by the message that told it.
    pub since: Unix,
    /// Whose.
    pub tag: [u8; 6],
    /// Nothing is kept of it.
    pub is_erased: bool,
}

/// By what a user is told from others of its partition: the third eight bytes of its BLAKE3 hash,
/// the first six of them.
pub fn end_tag(user: User<'_>) -> [u8; 6] {
    let hash = blake3::hash(user.as_bytes());
    let third = hash.as_bytes()[16..].first_chunk();
    *third.expect("a BLAKE3 hash has 32 bytes")
}

impl Ended {
    /// Most that are kept of a partition.
    pub const MAX: usize = 256;

    /// All that a key holds, oldest first.
    ///
    /// Errors: it holds something else, or more than [`Ended::MAX`].
    pub fn parse_all(mut bytes: &[u8]) -> Result<Vec<Ended>, Malformed> {
        const WHAT: Malformed = Malformed("who was logged out or erased lately");
        let rest = &mut bytes;
        let mut all = Vec::new();
        while !rest.is_empty() && all.len() < Ended::MAX {
            let ended = (|| {
                let is_erased = match take_u8(rest)? {
                    b'!' => false,
                    b'x' => true,
                    _ => return None,
                };
                let (since, tag) = (take_time(rest)?, take(rest)?);
                Some(Ended {
                    since,
                    tag,
                    is_erased,
                })
            })();
            all.push(ended.ok_or(WHAT)?);
        }
        match rest.is_empty() {
            true => Ok(all),
            false => Err(WHAT),
        }
    }
}

impl Meta {
    /// From the field's value.
    ///
    /// Errors: it is not one.
    pub fn parse(mut bytes: &[u8]) -> Result<Meta, Malformed> {
        let rest = &mut bytes;
        let meta = (|| {
            Some(Meta {
                birth: Birth(take(rest)?),
                number: take_u48(rest)?,
                since: take_time(rest)?,
                left: take_time(rest)?,
            })
        })();
        meta.filter(|_| rest.is_empty())
            .ok_or(Malformed("the numbers of a partition"))
    }

    /// As the library writes it.
    pub fn encode(&self) -> Vec<u8> {
        [
            &self.birth.0[..],
            &u48(self.number)[..],
            &time(self.since)[..],
            &time(self.left)[..],
        ]
        .concat()
    }
}

impl Enrolment {
    /// From the field's value.
    ///
    /// Errors: it is not one.
    pub fn parse(mut bytes: &[u8]) -> Result<Enrolment, Malformed> {
        let rest = &mut bytes;
        let enrolment = (|| {
            Some(Enrolment {
                is_fenced: match take_u8(rest)? {
                    b'A' => false,
                    b'F' => true,
                    _ => return None,
                },
                k: take_u48(rest)?,
                count: take_u32(rest)?,
            })
        })();
        enrolment
            .filter(|_| rest.is_empty())
            .ok_or(Malformed("the enrolment of a life"))
    }

    /// As the library writes it.
    pub fn encode(&self) -> Vec<u8> {
        let state = if self.is_fenced { b'F' } else { b'A' };
        [
            &[state][..],
            &u48(self.k)[..],
            &self.count.to_be_bytes()[..],
        ]
        .concat()
    }
}

#[cfg(test)]
mod tests {
    use super::super::bytes::U48_MAX;
    use super::*;
    use crate::status::Status;

    const LIFE: Life = Life(*b"life");

    #[test]
    fn names_of_fields() {
        assert_eq!(&life_field(LIFE), b"\0Llife");
        for (number, last) in [(0, 0), (31, 31), (32, 0), (U48_MAX, 31)] {
            assert_eq!(ring_field(number), [0, b'r', last]);
        }
    }

    #[test]
    fn a_user_who_is_here() {
        let at = Unix::from_ms(0x0102);
        let kinds = Kinds {
            beat: Some(at),
            stream: false,
            open: true,
            unattended: true,
        };
        let here = Here {
            since: Unix::from_ms(3),
            flags: UserFlags::new(Status::Busy, true),
            claims: vec![
                Claim { life: LIFE, kinds },
                Claim {
                    life: Life(*b"lief"),
                    kinds: Kinds::STREAM_ONLY,
                },
            ],
        };
        let bytes = b"\0\0\0\0\0\x03\x06life\x0d\0\0\0\0\x01\x02lief\x02";
        assert_eq!(here.encode(), bytes);
        assert_eq!(Here::parse(bytes).as_ref(), Ok(&here));
        assert_eq!(here.claimed_by(LIFE), Some(kinds));
        assert_eq!(here.claimed_by(Life(*b"none")), None);
        for cut in 0..=bytes.len() {
            // A cut after the first claim leaves a field with one claim, and one before it none.
            let is_field = [7, 18, bytes.len()].contains(&cut);
            assert_eq!(Here::parse(&bytes[..cut]).is_ok(), is_field, "{cut}");
        }
        let mut bad = bytes.to_vec();
        assert!(!Here::parse(&bytes[..7]).unwrap().is_here());
        for kind in [0, 8, 16] {
            bad[11] = kind;
            assert!(Here::parse(&bad).is_err());
        }
    }

    #[test]
    fn an_open_stream_proves_nothing() {
        assert!(Kinds::beat(Unix::default()).is_proof() && Kinds::STREAM_ONLY.is_proof());
        assert!(!Kinds::OPEN_ONLY.is_proof() && !Kinds::default().is_proof());
    }

    #[test]
    fn a_user_who_is_offline() {
        let gone = Gone {
            since: Unix::from_ms(0x1_0000),
            last_active: Unix::from_ms(0xfffe),
        };
        assert_eq!(&gone.encode(), b"\0\0\0\x01\0\0\0\0\x02");
        assert_eq!(Gone::parse(&gone.encode()), Ok(gone));
        let long = Gone {
            since: Unix::from_ms(1 << 40),
            last_active: Unix::default(),
        };
        let read = Gone::parse(&long.encode()).unwrap();
        assert_eq!(read.since.ms_since(read.last_active), 0xff_ffff);
        // It was heard of before there was a time; a byte is missing, or one is too many.
        assert!(Gone::parse(b"\0\0\0\0\0\x01\0\0\x02").is_err());
        assert!(Gone::parse(&gone.encode()[1..]).is_err());
        assert!(Gone::parse(&[&gone.encode()[..], b"x"].concat()).is_err());
    }

    #[test]
    fn who_was_logged_out_or_erased() {
        let ended = |ms, is_erased| Ended {
            since: Unix::from_ms(ms),
            tag: *b"abcdef",
            is_erased,
        };
        let bytes = b"!\0\0\0\0\x01\x02abcdefx\0\0\0\0\x01\x03abcdef";
        let both = vec![ended(0x0102, false), ended(0x0103, true)];
        assert_eq!(Ended::parse_all(bytes), Ok(both));
        assert_eq!(Ended::parse_all(b""), Ok(Vec::new()));
        for cut in 1..bytes.len() {
            let whole = cut == 13;
            assert_eq!(Ended::parse_all(&bytes[..cut]).is_ok(), whole, "{cut}");
        }
        assert!(Ended::parse_all(b"-\0\0\0\0\x01\x02abcdef").is_err());
        for (count, is_ok) in [(Ended::MAX, true), (Ended::MAX + 1, false)] {
            assert_eq!(Ended::parse_all(&bytes[..13].repeat(count)).is_ok(), is_ok);
        }
        // The same on every node.
        let alice = User::from_text("alice").unwrap();
        assert_eq!(end_tag(alice), blake3::hash(b"alice").as_bytes()[16..22]);
    }

    #[test]
    fn numbers_and_enrolments() {
        let meta = Meta {
            birth: Birth(*b"birthday"),
            number: 7,
            since: Unix::from_ms(9),
            left: Unix::from_ms(8),
        };
        let bytes = b"birthday\0\0\0\0\0\x07\0\0\0\0\0\x09\0\0\0\0\0\x08";
        assert_eq!(meta.encode(), bytes);
        assert_eq!(Meta::parse(bytes), Ok(meta));
        assert!(Meta::parse(&bytes[1..]).is_err());
        let fenced = Enrolment {
            is_fenced: true,
            k: 5,
            count: 258,
        };
        let bytes = b"F\0\0\0\0\0\x05\0\0\x01\x02";
        assert_eq!(fenced.encode(), bytes);
        assert_eq!(Enrolment::parse(bytes), Ok(fenced));
        for bad in [&b"B\0\0\0\0\0\x05\0\0\x01\x02"[..], b"A\0", b""] {
            assert!(Enrolment::parse(bad).is_err());
        }
    }
}
