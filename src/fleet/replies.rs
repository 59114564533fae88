//! What the library's functions answer.
//!
//! Owns the forms of answers and refusals. Never decides what a node does about one.
//!
//! ```text
//! vouch  'o' birth 8, number 6, since 6, count 4, an outcome for each user | 'd' k 6, count 4
//! fence  'f' birth 8, number 6, count 4
//! renew  an array: 'r' now 6, amnesty until 6; then life, its time 6, instance 8, info; ..
//! ```

use super::bytes::{take, take_time, take_u8, take_u32, take_u48};
use super::calls::INFO_BYTES_MAX;
use super::{Birth, CALL_USERS_MAX, Life, Malformed};
use crate::time::Unix;

/// The answer to a vouch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Vouched {
    /// It was done.
    Done {
        /// Which creation of the partition this is.
        birth: Birth,
        /// The number of its last message, which is this call's if it made one.
        number: u64,
        /// That message's time.
        since: Unix,
        /// Users whom the life claims.
        count: u32,
        /// What came of each user, in the order of the call.
        outcomes: Vec<Outcome>,
    },
    /// It was done before: nothing has changed.
    Duplicate {
        /// The number of the life's last call.
        k: u64,
        /// Users whom the life claims.
        count: u32,
    },
}

/// What came of what a call says of one user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// `e`: it is in the message.
    Told,
    /// `.`: claims may have changed; nobody needs to be told.
    Quiet,
    /// `p`: it is in the message, and has gone; nodes alone know, for it is invisible.
    Private,
    /// `u`: it was here, and is told to be here otherwise.
    Updated,
    /// `n`: the user is not here, so there was nothing to change.
    NotHere,
    /// `s`: the goodbye changes nothing while a stream is open.
    Streams,
    /// `l`: the goodbye changes nothing, for a beat was sent later.
    Later,
}

impl Vouched {
    /// From the answer's bytes.
    ///
    /// Errors: it is none.
    pub fn parse(mut bytes: &[u8]) -> Result<Vouched, Malformed> {
        let rest = &mut bytes;
        let vouched = (|| match take_u8(rest)? {
            b'o' => Some(Vouched::Done {
                birth: Birth(take(rest)?),
                number: take_u48(rest)?,
                since: take_time(rest)?,
                count: take_u32(rest)?,
                outcomes: outcomes(std::mem::take(rest))?,
            }),
            b'd' => Some(Vouched::Duplicate {
                k: take_u48(rest)?,
                count: take_u32(rest)?,
            }),
            _ => None,
        })();
        vouched
            .filter(|_| rest.is_empty())
            .ok_or(Malformed("the answer to a vouch"))
    }
}

fn outcomes(bytes: &[u8]) -> Option<Vec<Outcome>> {
    if bytes.len() > CALL_USERS_MAX {
        return None;
    }
    let outcome = |byte: &u8| match byte {
        b'e' => Some(Outcome::Told),
        b'.' => Some(Outcome::Quiet),
        b'p' => Some(Outcome::Private),
        b'u' => Some(Outcome::Updated),
        b'n' => Some(Outcome::NotHere),
        b's' => Some(Outcome::Streams),
        b'l' => Some(Outcome::Later),
        _ => None,
    };
    bytes.iter().map(outcome).collect()
}

/// The answer to a fence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fenced {
    /// Which creation of the partition this is.
    pub birth: Birth,
    /// The number of its last message.
    pub number: u64,
    /// Users whom the life still claims: they are reaped until there are none.
    pub count: u32,
}

impl Fenced {
    /// From the answer's bytes.
    ///
    /// Errors: it is none.
    pub fn parse(mut bytes: &[u8]) -> Result<Fenced, Malformed> {
        let rest = &mut bytes;
        let fenced = (|| {
            take_u8(rest).filter(|&tag| tag == b'f')?;
            Some(Fenced {
                birth: Birth(take(rest)?),
                number: take_u48(rest)?,
                count: take_u32(rest)?,
            })
        })();
        fenced
            .filter(|_| rest.is_empty())
            .ok_or(Malformed("the answer to a fence"))
    }
}

/// The answer to a renewal: what one lane knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Renewed {
    /// The lane's clock.
    pub now: Unix,
    /// Before that nobody is taken for dead by this lane.
    pub amnesty_until: Unix,
    /// Everybody who renewed within the last hour, by life.
    pub lives: Vec<Lease>,
}

/// A node's lease, as a lane has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// Of which life.
    pub life: Life,
    /// When it was renewed last, by the lane's clock.
    pub renewed_at: Unix,
    /// Which node that is.
    pub instance: [u8; 8],
    /// What it says of itself.
    pub info: Box<str>,
}

impl Renewed {
    /// Most lives of a lane.
    pub const LIVES_MAX: usize = 1_024;

    /// From the elements of the answer.
    ///
    /// Errors: it is none.
    pub fn parse(elements: &[&[u8]]) -> Result<Renewed, Malformed> {
        Renewed::read(elements).ok_or(Malformed("the answer to a renewal"))
    }

    fn read(elements: &[&[u8]]) -> Option<Renewed> {
        let (head, pairs) = elements.split_first()?;
        let mut head = *head;
        let (pairs, odd) = pairs.as_chunks::<2>();
        if !odd.is_empty() || pairs.len() > Renewed::LIVES_MAX {
            return None;
        }
        take_u8(&mut head).filter(|&tag| tag == b'r')?;
        let (now, amnesty_until) = (take_time(&mut head)?, take_time(&mut head)?);
        // What somebody else has put into a lane is nobody's lease.
        let lives = pairs.iter().filter_map(|pair| Lease::read(*pair));
        let mut lives: Vec<Lease> = lives.collect();
        lives.sort_by_key(|lease| lease.life);
        head.is_empty().then_some(Renewed {
            now,
            amnesty_until,
            lives,
        })
    }
}

impl Lease {
    fn read([life, mut value]: [&[u8]; 2]) -> Option<Lease> {
        let life = Life(life.try_into().ok()?);
        let (renewed_at, instance) = (take_time(&mut value)?, take(&mut value)?);
        let info = std::str::from_utf8(value)
            .ok()
            .filter(|info| info.len() <= INFO_BYTES_MAX)?;
        Some(Lease {
            life,
            renewed_at,
            instance,
            info: info.into(),
        })
    }
}

/// Why a call was refused: nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// `GDLATE`: it came later than it may; this is Redis' clock.
    Late(Unix),
    /// `GDFENCED`: the life is fenced in this partition; the node chooses a new one.
    Fenced,
    /// `GDLIFE`: the life is not enrolled here; the partition may be a new one. The node
    /// reconciles. Of a reaper: the life is not fenced.
    NotEnrolled,
    /// `GDGAP`: calls are missing; this was the last one that there is. The node reconciles.
    Gap(u64),
    /// `GDTAKEN`: another node has this life; the node chooses a new one.
    Taken,
    /// `GDFULL`: more lives than any fleet has within an hour.
    Full,
    /// `GDARGS`: the call is malformed, which is a bug.
    Arguments,
    /// The library is not loaded there.
    NoLibrary,
}

impl Refusal {
    /// From an error's text, without its `-`. None: it is not of the library.
    pub fn parse(text: &str) -> Option<Refusal> {
        let (code, detail) = text.split_once(' ')?;
        Some(match code {
            "GDLATE" => Refusal::Late(Unix::from_ms(detail.parse().ok()?)),
            "GDFENCED" => Refusal::Fenced,
            "GDLIFE" => Refusal::NotEnrolled,
            "GDGAP" => Refusal::Gap(detail.parse().ok()?),
            "GDTAKEN" => Refusal::Taken,
            "GDFULL" => Refusal::Full,
            "GDARGS" => Refusal::Arguments,
            "ERR" if detail.starts_with("Function not found") => Refusal::NoLibrary,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_to_a_vouch() {
        let done = b"obirthday\0\0\0\0\0\x07\0\0\0\0\0\x09\0\0\0\x02e.nsl";
        let expected = Vouched::Done {
            birth: Birth(*b"birthday"),
            number: 7,
            since: Unix::from_ms(9),
            count: 2,
            outcomes: vec![
                Outcome::Told,
                Outcome::Quiet,
                Outcome::NotHere,
                Outcome::Streams,
                Outcome::Later,
            ],
        };
        assert_eq!(Vouched::parse(done), Ok(expected));
        let duplicate = Vouched::Duplicate { k: 7, count: 2 };
        assert_eq!(Vouched::parse(b"d\0\0\0\0\0\x07\0\0\0\x02"), Ok(duplicate));
        for bad in [
            &b""[..],
            b"o",
            b"d\0\0\0\0\0\x07\0\0\0\x02x",
            b"?",
            &done[..24],
        ] {
            assert!(Vouched::parse(bad).is_err());
        }
        assert!(Vouched::parse(&[&done[..], b"?"].concat()).is_err());
        assert!(Vouched::parse(&[&done[..], &[b'.'; CALL_USERS_MAX]].concat()).is_err());
    }

    #[test]
    fn answers_to_a_fence() {
        let bytes = b"fbirthday\0\0\0\0\0\x07\0\0\0\x02";
        let fenced = Fenced {
            birth: Birth(*b"birthday"),
            number: 7,
            count: 2,
        };
        assert_eq!(Fenced::parse(bytes), Ok(fenced));
        assert!(Fenced::parse(&bytes[1..]).is_err());
        assert!(Fenced::parse(&[&bytes[..], b"x"].concat()).is_err());
    }

    #[test]
    fn answers_to_a_renewal() {
        let head = &b"r\0\0\0\0\0\x07\0\0\0\0\0\x09"[..];
        let value = &b"\0\0\0\0\0\x05instance10.0.0.1:8080"[..];
        let lease = |life| Lease {
            life,
            renewed_at: Unix::from_ms(5),
            instance: *b"instance",
            info: "10.0.0.1:8080".into(),
        };
        let expected = Renewed {
            now: Unix::from_ms(7),
            amnesty_until: Unix::from_ms(9),
            lives: vec![lease(Life(*b"lief")), lease(Life(*b"life"))],
        };
        assert_eq!(
            Renewed::parse(&[head, b"life", value, b"lief", value]),
            Ok(expected)
        );
        let foreign = [
            &b"lif"[..],
            value,
            b"lies",
            &value[..13],
            b"lied",
            &[value, b"\xff"].concat(),
        ];
        let all = [&[head, b"life", value], &foreign[..]].concat();
        let lives = Renewed::parse(&all).unwrap().lives;
        assert_eq!(lives, [lease(Life(*b"life"))]);
        for bad in [&[][..], &[head, b"life"], &[&head[..12], b"life", value]] {
            assert!(Renewed::parse(bad).is_err());
        }
    }

    #[test]
    fn refusals() {
        for (text, refusal) in [
            ("GDLATE 17", Some(Refusal::Late(Unix::from_ms(17)))),
            ("GDFENCED choose a new life", Some(Refusal::Fenced)),
            ("GDLIFE not enrolled", Some(Refusal::NotEnrolled)),
            ("GDGAP 281474976710655", Some(Refusal::Gap((1 << 48) - 1))),
            ("GDTAKEN another", Some(Refusal::Taken)),
            ("GDFULL more", Some(Refusal::Full)),
            ("GDARGS more", Some(Refusal::Arguments)),
            ("ERR Function not found", Some(Refusal::NoLibrary)),
            ("ERR unknown command", None),
            ("GDLATE soon", None),
            ("MOVED 17 127.0.0.1:1", None),
            ("GDLATE", None),
            ("", None),
        ] {
            assert_eq!(Refusal::parse(text), refusal, "{text}");
        }
    }
}
