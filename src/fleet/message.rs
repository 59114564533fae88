//! What is published when something of a partition changes.
//!
//! Owns the bytes of a message and what one means to somebody who knows the partition up to some
//! number. Never decides what a record does to a user.
//!
//! ```text
//! 0  8  birth                  records: kind, flags, times, length u8, user
//! 8  6  number of the one before   '+'               it is here
//! 14 6  since, Unix ms             '-'  last_active  it has gone
//! 20    1 to 200 records                with MORE also: sent
//!                                  '+'  with MORE: since
//!                                  '!'  last_active  it is logged out everywhere
//!                                       with MORE nothing: it was not here
//!                                  '='  since        it is here, with these flags
//!                                       with MORE nothing: flags of who is not here
//!                                  'x'               it is erased
//! ```

use super::bytes::{U48_MAX, take, take_time, take_u8, take_u48, time, u48};
use super::flags::{MORE, UserFlags};
use super::{Birth, CALL_USERS_MAX, Malformed};
use crate::time::Unix;
use crate::wire::{USER_BYTES_MAX, User};

/// Bytes before the records.
pub const HEAD_BYTES: usize = 20;

/// Longest message: each record has at most 15 bytes beside its user.
pub const MESSAGE_BYTES_MAX: usize = HEAD_BYTES + CALL_USERS_MAX * (15 + USER_BYTES_MAX);

/// A message, checked to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message<'a> {
    /// Which creation of the partition numbers it.
    pub birth: Birth,
    /// The number of the message before it; its own is one more.
    pub previous: u64,
    /// When what it says became so, by Redis' clock; later than any before in this partition.
    pub since: Unix,
    records: &'a [u8],
}

/// What a message says of one user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// Whom it is about.
    pub user: User<'a>,
    /// What happened.
    pub what: What,
}

/// What happened to a user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// `+`: it is here. Never of one who is invisible.
    Arrived(UserFlags),
    /// `+` with MORE: it is here, and has been since then as some node knew; Redis had lost it.
    StillHere {
        /// What it shows.
        flags: UserFlags,
        /// Since when.
        since: Unix,
    },
    /// `-`: nobody vouches for it any more.
    Gone {
        /// What it comes back with, and whether this is private.
        flags: UserFlags,
        /// When it was last heard of.
        last_active: Unix,
        /// It said goodbye, at this time of its sender's. Whoever heard a later beat claims it
        /// again.
        said_at: Option<Unix>,
    },
    /// `!`: it is logged out everywhere; its streams end. It may have been offline.
    LoggedOut {
        /// As it was while it was here.
        flags: UserFlags,
        /// When it was last heard of.
        last_active: Unix,
    },
    /// `!` with MORE: the same of one who was not here.
    StreamsEnd(UserFlags),
    /// `=`: it is here, and these are its flags from here on. If they say invisible, it is private.
    Is {
        /// What it shows.
        flags: UserFlags,
        /// Since when that shows, or since when it is here.
        since: Unix,
    },
    /// `=` with MORE: it is not here, and comes with these. For nodes alone.
    Keeps(UserFlags),
    /// `x`: nothing may be kept of it, and its streams end. It may have been offline.
    Erased,
}

/// What a partition is known up to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Base {
    /// Of which creation.
    pub birth: Birth,
    /// The number of the last message in it.
    pub number: u64,
}

/// What a message is to somebody with a base.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Follows {
    /// The next one: it is applied, and the base is one further.
    InStep,
    /// The base has it already: it was read after this was published.
    InBase,
    /// Something is missing, or it is of another creation: the partition is read again.
    Repair,
}

impl Base {
    /// What `message` is to it. Numbers count for one server only: after a change of server the
    /// base must be read from the new one first, since a failover may use numbers again.
    pub fn follows(self, message: &Message<'_>) -> Follows {
        if message.birth != self.birth {
            return Follows::Repair;
        }
        match message.previous.cmp(&self.number) {
            std::cmp::Ordering::Equal => Follows::InStep,
            std::cmp::Ordering::Less => Follows::InBase,
            std::cmp::Ordering::Greater => Follows::Repair,
        }
    }
}

impl<'a> Message<'a> {
    /// From what came over the channel.
    ///
    /// Errors: anything else than a head and 1 to 200 whole records.
    pub fn parse(bytes: &'a [u8]) -> Result<Message<'a>, Malformed> {
        let message = Message::head(bytes)?;
        if message.records.is_empty() {
            return Err(Malformed("a message without records"));
        }
        Ok(message)
    }

    /// From an entry of the ring. None: what was published there was too long to be kept, or named
    /// somebody who is erased; the partition is read again.
    ///
    /// Errors: as those of a message.
    pub fn parse_kept(bytes: &'a [u8]) -> Result<Option<Message<'a>>, Malformed> {
        let message = Message::head(bytes)?;
        Ok((!message.records.is_empty()).then_some(message))
    }

    fn head(bytes: &'a [u8]) -> Result<Message<'a>, Malformed> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(Malformed("a message of more bytes than there are"));
        }
        let mut rest = bytes;
        let message = (|| {
            Some(Message {
                birth: Birth(take(&mut rest)?),
                previous: take_u48(&mut rest).filter(|&previous| previous < U48_MAX)?,
                since: take_time(&mut rest)?,
                records: rest,
            })
        })();
        let message = message.ok_or(Malformed("the head of a message"))?;
        let mut records = 0;
        while !rest.is_empty() {
            Record::take(&mut rest).ok_or(Malformed("a record of a message"))?;
            records += 1;
        }
        if records > CALL_USERS_MAX {
            return Err(Malformed("a message of more than 200 records"));
        }
        Ok(message)
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.previous + 1
    }

    /// What it says, in order. Not empty.
    pub fn records(&self) -> impl Iterator<Item = Record<'a>> + use<'a> {
        let mut rest = self.records;
        // Checked when it was parsed: it ends where the bytes do.
        std::iter::from_fn(move || Record::take(&mut rest))
    }
}

/// A message's bytes, as the library writes them.
pub fn encode(base: Base, since: Unix, records: &[Record<'_>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + records.len() * 32);
    bytes.extend(base.birth.0);
    bytes.extend(u48(base.number));
    bytes.extend(time(since));
    for record in records {
        record.write(&mut bytes);
    }
    bytes
}

impl<'a> Record<'a> {
    fn take(rest: &mut &'a [u8]) -> Option<Record<'a>> {
        let (kind, bits) = (take_u8(rest)?, take_u8(rest)?);
        let more = bits & MORE != 0;
        let flags = UserFlags::read(bits & !MORE)?;
        let what = match (kind, more) {
            (b'+', false) if !flags.invisible => What::Arrived(flags),
            (b'+', true) if !flags.invisible => What::StillHere {
                flags,
                since: take_time(rest)?,
            },
            (b'-', _) => What::Gone {
                flags,
                last_active: take_time(rest)?,
                said_at: if more { Some(take_time(rest)?) } else { None },
            },
            (b'!', false) => What::LoggedOut {
                flags,
                last_active: take_time(rest)?,
            },
            (b'!', true) => What::StreamsEnd(flags),
            (b'=', false) => What::Is {
                flags,
                since: take_time(rest)?,
            },
            (b'=', true) => What::Keeps(flags),
            (b'x', false) if flags == UserFlags::PLAIN => What::Erased,
            _ => return None,
        };
        let length = usize::from(take_u8(rest)?);
        let (user, after) = rest.split_at_checked(length)?;
        *rest = after;
        let user = User::parse(user).ok()?;
        Some(Record { user, what })
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        match self.what {
            What::Arrived(flags) => bytes.extend([b'+', flags.byte()]),
            What::StillHere { flags, since } => {
                bytes.extend([b'+', flags.byte() | MORE]);
                bytes.extend(time(since));
            }
            What::Gone {
                flags,
                last_active,
                said_at,
            } => {
                let left = if said_at.is_some() { MORE } else { 0 };
                bytes.extend([b'-', flags.byte() | left]);
                bytes.extend(time(last_active));
                bytes.extend(said_at.map(time).into_iter().flatten());
            }
            What::LoggedOut { flags, last_active } => {
                bytes.extend([b'!', flags.byte()]);
                bytes.extend(time(last_active));
            }
            What::StreamsEnd(flags) => bytes.extend([b'!', flags.byte() | MORE]),
            What::Is { flags, since } => {
                bytes.extend([b'=', flags.byte()]);
                bytes.extend(time(since));
            }
            What::Keeps(flags) => bytes.extend([b'=', flags.byte() | MORE]),
            What::Erased => bytes.extend([b'x', 0]),
        }
        bytes.push(self.user.as_bytes().len() as u8);
        bytes.extend(self.user.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::status::Status;

    const BIRTH: Birth = Birth(*b"birthday");

    fn user(id: &str) -> User<'_> {
        User::from_text(id).unwrap()
    }

    fn base(number: u64) -> Base {
        Base {
            birth: BIRTH,
            number,
        }
    }

    #[test]
    fn bytes_of_each_record() {
        let (at, flags) = (Unix::from_ms(0x0102), UserFlags::new(Status::Busy, false));
        let private = UserFlags::new(Status::Away, true);
        let gone = |said_at| What::Gone {
            flags: private,
            last_active: at,
            said_at,
        };
        let records = [
            (What::Arrived(flags), &b"+\x02\x03bob"[..]),
            (gone(None), b"-\x05\0\0\0\0\x01\x02\x03bob"),
            (
                gone(Some(at)),
                b"-\x0d\0\0\0\0\x01\x02\0\0\0\0\x01\x02\x03bob",
            ),
            (
                What::LoggedOut {
                    flags,
                    last_active: at,
                },
                b"!\x02\0\0\0\0\x01\x02\x03bob",
            ),
            (What::StreamsEnd(private), b"!\x0d\x03bob"),
            (
                What::StillHere { flags, since: at },
                b"+\x0a\0\0\0\0\x01\x02\x03bob",
            ),
            (
                What::Is {
                    flags: private,
                    since: at,
                },
                b"=\x05\0\0\0\0\x01\x02\x03bob",
            ),
            (What::Keeps(private), b"=\x0d\x03bob"),
            (What::Erased, b"x\0\x03bob"),
        ]
        .map(|(what, bytes)| {
            (
                Record {
                    user: user("bob"),
                    what,
                },
                bytes,
            )
        });
        let head = b"birthday\0\0\0\0\0\x07\0\0\0\0\0\x09";
        for (record, tail) in records {
            let bytes = encode(base(7), Unix::from_ms(9), &[record]);
            assert_eq!(bytes, [&head[..], tail].concat());
            let message = Message::parse(&bytes).unwrap();
            assert_eq!((message.number(), message.since), (8, Unix::from_ms(9)));
            assert_eq!(message.records().collect::<Vec<_>>(), [record]);
            for cut in 0..bytes.len() {
                assert!(Message::parse(&bytes[..cut]).is_err());
            }
        }
        let all = records.map(|(record, _)| record);
        let bytes = encode(base(7), Unix::from_ms(9), &all);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.records().collect::<Vec<_>>(), all);
    }

    #[test]
    fn what_no_library_writes() {
        let head = b"birthday\0\0\0\0\0\x07\0\0\0\0\0\x09";
        for tail in [
            // Invisible, and told to everybody; a status and a bit that there are not.
            &b"+\x04\x03bob"[..],
            b"+\x03\x03bob",
            b"+\x0c\0\0\0\0\x01\x02\x03bob",
            b"x\x08\x03bob",
            b"=\x20\0\0\0\0\x01\x02\x03bob",
            b"x\x01\x03bob",
            b"?\0\x03bob",
            b"+\0\0",
            b"+\0\x01\0",
            b"+\0\x03bob+",
        ] {
            assert!(Message::parse(&[&head[..], tail].concat()).is_err());
        }
        let last = [&b"birthday"[..], &[0xff; 6], &[0; 6], b"+\0\x03bob"].concat();
        assert!(
            Message::parse(&last).is_err(),
            "there is no number after it"
        );
    }

    #[test]
    fn a_ring_may_keep_a_head_alone() {
        let head = encode(base(7), Unix::from_ms(9), &[]);
        assert_eq!(Message::parse_kept(&head), Ok(None));
        assert!(Message::parse(&head).is_err());
        assert!(Message::parse_kept(&head[1..]).is_err());
    }

    #[test]
    fn no_more_records_than_users_of_a_call() {
        let records = [Record {
            user: user("b"),
            what: What::Keeps(UserFlags::PLAIN),
        }; CALL_USERS_MAX + 1];
        let most = encode(base(0), Unix::from_ms(1), &records[1..]);
        assert_eq!(Message::parse(&most).unwrap().records().count(), 200);
        assert!(Message::parse(&encode(base(0), Unix::from_ms(1), &records)).is_err());
        let long = "x".repeat(USER_BYTES_MAX);
        let longest = [Record {
            user: user(&long),
            what: What::Gone {
                flags: UserFlags::PLAIN,
                last_active: Unix::LATEST,
                said_at: Some(Unix::LATEST),
            },
        }; CALL_USERS_MAX];
        let bytes = encode(base(0), Unix::from_ms(1), &longest);
        assert_eq!(bytes.len(), MESSAGE_BYTES_MAX);
        assert!(Message::parse(&bytes).is_ok());
    }

    #[test]
    fn what_follows_a_base() {
        let message = |birth, previous| Message {
            birth,
            previous,
            since: Unix::from_ms(1),
            records: b"",
        };
        for (birth, previous, expected) in [
            (BIRTH, 7, Follows::InStep),
            (BIRTH, 6, Follows::InBase),
            (BIRTH, 0, Follows::InBase),
            (BIRTH, 8, Follows::Repair),
            (Birth(*b"anniver."), 7, Follows::Repair),
            (Birth(*b"anniver."), 6, Follows::Repair),
        ] {
            assert_eq!(base(7).follows(&message(birth, previous)), expected);
        }
    }

    fn times() -> impl Strategy<Value = Unix> {
        (0..=U48_MAX).prop_map(Unix::from_ms)
    }

    fn whats() -> impl Strategy<Value = What> {
        let flags = (0..3_usize, any::<bool>())
            .prop_map(|(status, invisible)| UserFlags::new(Status::ALL[status], invisible));
        prop_oneof![
            flags
                .clone()
                .prop_map(|flags| { What::Arrived(UserFlags::new(flags.status(), false)) }),
            (flags.clone(), times(), proptest::option::of(times())).prop_map(
                |(flags, last_active, said_at)| What::Gone {
                    flags,
                    last_active,
                    said_at
                }
            ),
            (flags.clone(), times())
                .prop_map(|(flags, last_active)| What::LoggedOut { flags, last_active }),
            (flags.clone(), times()).prop_map(|(flags, since)| What::Is { flags, since }),
            flags.clone().prop_map(What::Keeps),
            flags.prop_map(What::StreamsEnd),
            Just(What::Erased),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            birth: [u8; 8],
            number in 0..U48_MAX,
            since in times(),
            said in proptest::collection::vec(("[^\\pC]{1,20}", whats()), 1..20),
        ) {
            let records: Vec<Record<'_>> = said
                .iter()
                .map(|(id, what)| Record { user: user(id), what: *what })
                .collect();
            let base = Base { birth: Birth(birth), number };
            let bytes = encode(base, since, &records);
            let message = Message::parse(&bytes).unwrap();
            prop_assert_eq!(base.follows(&message), Follows::InStep);
            prop_assert_eq!(message.since, since);
            prop_assert_eq!(message.records().collect::<Vec<_>>(), records);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            super::super::fuzz::message(&bytes);
        }
    }
}
