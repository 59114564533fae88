//! Who is online in a fleet, read from its database piece by piece.
//!
//! Owns the order of such a walk: partition by partition, and in each a scan of those who are here.
//! A round that looks for what is news since some moment goes through the buckets of those who are
//! offline too. Redis says everybody who was there all the time at least once. So a piece is told
//! in the order of the users' names, and where it was broken off says after whom. Without a kernel:
//! calls and replies are values.

use super::Malformed;
use super::bytes::take;
use super::calls::Call;
use super::flags::UserFlags;
use super::held::{Gone, Here};
use super::partition::{Partition, Partitions};
use super::traffic::{Reply, Server};
use crate::time::Unix;
use crate::wire::{User, UserBuf};

/// About so many entries are read at a time.
const SCANNED: usize = 500;

/// Where a walk is.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Place {
    /// In which partition.
    pub partition: u16,
    /// 0: at those who are here; else in one of the buckets, counted from 1.
    pub stage: u32,
    /// Redis' own cursor.
    pub scan: u64,
    /// Whose it is: another server has another order.
    pub server: u32,
    /// Whom of the piece at that cursor it has told last. None: nobody yet.
    pub after: Option<UserBuf>,
}

impl Place {
    /// For whoever keeps it meanwhile.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.partition.to_be_bytes().to_vec();
        bytes.extend(self.stage.to_be_bytes());
        bytes.extend(self.scan.to_be_bytes());
        bytes.extend(self.server.to_be_bytes());
        let after = self.after.as_ref().map(|user| user.as_str().as_bytes());
        bytes.extend_from_slice(after.unwrap_or_default());
        bytes
    }

    /// The beginning, if there are no bytes.
    ///
    /// Errors: they are no place's.
    pub fn read(mut bytes: &[u8]) -> Result<Place, Malformed> {
        if bytes.is_empty() {
            return Ok(Place::default());
        }
        let rest = &mut bytes;
        let place = (|| {
            let partition = u16::from_be_bytes(take(rest)?);
            let stage = u32::from_be_bytes(take(rest)?);
            let scan = u64::from_be_bytes(take(rest)?);
            let server = u32::from_be_bytes(take(rest)?);
            let after = match *rest {
                [] => None,
                name => Some(UserBuf::from_text(std::str::from_utf8(name).ok()?).ok()?),
            };
            Some(Place {
                partition,
                stage,
                scan,
                server,
                after,
            })
        })();
        place.ok_or(Malformed("the place of a walk"))
    }
}

/// A user, as everybody is told it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Who.
    pub user: UserBuf,
    /// Its flags if it is here, and others are told so.
    pub here: Option<UserFlags>,
    /// Since when it is so.
    pub since: Unix,
    /// When it was last heard of; of one who is here that is not known.
    pub last_active: Option<Unix>,
}

/// A page of a walk.
#[derive(Debug)]
pub struct Walk {
    /// Only what is news since then. None: who is online.
    since: Option<Unix>,
    /// Whose ids begin so.
    prefix: Box<str>,
    /// So many more fit.
    left: usize,
    place: Place,
    buckets: u32,
    /// What it has found.
    found: Vec<Found>,
    is_over: bool,
}

impl Walk {
    /// At most `limit` from a place on.
    pub fn new(
        since: Option<Unix>,
        prefix: &str,
        limit: usize,
        place: Place,
        buckets: u32,
    ) -> Walk {
        Walk {
            since,
            prefix: prefix.into(),
            left: limit,
            place,
            buckets,
            found: Vec::new(),
            is_over: false,
        }
    }

    /// What is to be read next. None: the page is full, or the walk is over.
    pub fn call(&self, partitions: &Partitions) -> Option<(Partition, Call)> {
        if self.is_over || self.left == 0 {
            return None;
        }
        let partition = partitions.at(self.place.partition);
        let key = match self.place.stage {
            0 => partitions.hot_key(partition),
            stage => partitions.offline_key(partition, stage - 1),
        };
        Some((
            partition,
            scan(&key, self.place.scan, &self.prefix, SCANNED),
        ))
    }

    /// Takes what this server said. Where it is another one than before the scan begins anew.
    ///
    /// Errors: it is not what the library writes.
    pub fn answered(
        &mut self,
        server: Server,
        replies: &[Reply],
        partitions: &Partitions,
    ) -> Result<(), Malformed> {
        let Server(server) = server;
        let is_other = std::mem::replace(&mut self.place.server, server) != server;
        let has_begun = self.place.scan != 0 || self.place.after.is_some();
        if is_other && has_begun {
            (self.place.scan, self.place.after) = (0, None);
            return Ok(());
        }
        let (next, fields) = scanned(replies)?;
        let mut found = Vec::new();
        for (name, value) in fields {
            let user = std::str::from_utf8(name).ok();
            let user = user.and_then(|name| User::from_text(name).ok());
            // What somebody else has put there is nobody's.
            let Some(user) = user else { continue };
            found.extend(self.read(user, value).unwrap_or_default());
        }
        found.sort_unstable_by(|one, other| one.user.cmp(&other.user));
        found.dedup_by(|one, other| one.user == other.user);
        if let Some(after) = self.place.after.take() {
            found.retain(|it| it.user > after);
        }
        if found.len() > self.left {
            found.truncate(self.left);
            self.place.after = found.last().map(|it| it.user.clone());
        } else {
            self.place.scan = next;
            if next == 0 {
                self.go_on(partitions);
            }
        }
        self.left -= found.len();
        self.found.append(&mut found);
        Ok(())
    }

    /// The place behind a key.
    fn go_on(&mut self, partitions: &Partitions) {
        self.place.stage += 1;
        if self.since.is_none() || self.place.stage > self.buckets {
            self.place.stage = 0;
            self.place.partition += 1;
            self.is_over = self.place.partition >= partitions.count();
        }
    }

    fn read(&self, user: User<'_>, value: &[u8]) -> Result<Option<Found>, Malformed> {
        let user = UserBuf::from(user);
        let found = match self.place.stage {
            0 => {
                let here = Here::parse(value)?;
                if !here.is_here() || here.flags.invisible {
                    // What everybody is told of those is in a bucket.
                    return Ok(None);
                }
                Found {
                    user,
                    here: Some(here.flags),
                    since: here.since,
                    last_active: None,
                }
            }
            _ => {
                let gone = Gone::parse(value)?;
                Found {
                    user,
                    here: None,
                    since: gone.since,
                    last_active: Some(gone.last_active),
                }
            }
        };
        let is_wanted = match self.since {
            None => found.here.is_some(),
            Some(since) => found.since >= since,
        };
        Ok(is_wanted.then_some(found))
    }

    /// What it has found, and where it goes on; None: it is over.
    pub fn page(self) -> (Vec<Found>, Option<Place>) {
        (self.found, (!self.is_over).then_some(self.place))
    }
}

/// Reads about `count` users of a hash from a cursor on, whose names begin so.
pub(crate) fn scan(key: &str, cursor: u64, prefix: &str, count: usize) -> Call {
    let (cursor, count) = (cursor.to_string(), count.to_string());
    let pattern = pattern(prefix);
    let words: [&[u8]; 7] = [
        b"HSCAN",
        key.as_bytes(),
        cursor.as_bytes(),
        b"MATCH",
        &pattern,
        b"COUNT",
        count.as_bytes(),
    ];
    Call::plain(words)
}

/// Names that begin so, and are users': fields of a partition's own begin with NUL.
fn pattern(prefix: &str) -> Vec<u8> {
    if prefix.is_empty() {
        return b"[^\0]*".to_vec();
    }
    let mut pattern = Vec::with_capacity(prefix.len() + 1);
    for byte in prefix.bytes() {
        if b"*?[]^-\\".contains(&byte) {
            pattern.push(b'\\');
        }
        pattern.push(byte);
    }
    pattern.push(b'*');
    pattern
}

pub(crate) type Field<'r> = (&'r [u8], &'r [u8]);

/// Where the scan goes on, and what it has found.
pub(crate) fn scanned(replies: &[Reply]) -> Result<(u64, Vec<Field<'_>>), Malformed> {
    let none = Malformed("the answer to a scan");
    let [Reply::List(parts)] = replies else {
        return Err(none);
    };
    let [Reply::Bytes(next), Reply::List(fields)] = &parts[..] else {
        return Err(none);
    };
    let next = std::str::from_utf8(next).ok();
    let next = next.and_then(|next| next.parse().ok()).ok_or(none)?;
    let (pairs, []) = fields.as_chunks::<2>() else {
        return Err(none);
    };
    let pairs = pairs.iter().map(|pair| match pair {
        [Reply::Bytes(name), Reply::Bytes(value)] => Ok((&name[..], &value[..])),
        _ => Err(none),
    });
    Ok((next, pairs.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Life;
    use crate::fleet::held::{Claim, Kinds};
    use crate::status::Status;

    const ONE: Server = Server(1);

    fn at(ms: u64) -> Unix {
        Unix::from_ms(ms)
    }

    fn here(name: &str, since: u64, invisible: bool) -> (String, Vec<u8>) {
        let here = Here {
            since: at(since),
            flags: UserFlags::new(Status::Away, invisible),
            claims: vec![Claim {
                life: Life(*b"life"),
                kinds: Kinds::STREAM_ONLY,
            }],
        };
        (name.into(), here.encode())
    }

    fn gone(name: &str, since: u64) -> (String, Vec<u8>) {
        let gone = Gone {
            since: at(since),
            last_active: at(since - 5),
        };
        (name.into(), gone.encode().into())
    }

    fn scan(next: u64, fields: &[(String, Vec<u8>)]) -> Vec<Reply> {
        let bytes = |bytes: &[u8]| Reply::Bytes(bytes.into());
        let fields = fields.iter();
        let fields = fields.flat_map(|(name, value)| [bytes(name.as_bytes()), bytes(value)]);
        let next = bytes(next.to_string().as_bytes());
        vec![Reply::List(vec![next, Reply::List(fields.collect())])]
    }

    fn words(walk: &Walk, partitions: &Partitions) -> String {
        let (_, call) = walk.call(partitions).unwrap();
        let words: Vec<_> = call.words().map(String::from_utf8_lossy).collect();
        words.join(" ")
    }

    fn names(walk: &Walk) -> Vec<&str> {
        walk.found.iter().map(|it| it.user.as_str()).collect()
    }

    #[test]
    fn who_is_online_is_read_partition_by_partition() {
        let partitions = Partitions::new(64).unwrap();
        let mut walk = Walk::new(None, "", 1_000, Place::default(), 16);
        let first = "HSCAN gd:{10} 0 MATCH [^\0]* COUNT 500";
        assert_eq!(words(&walk, &partitions), first);
        let all = [here("b", 7, false), here("a", 8, false), here("c", 9, true)];
        walk.answered(ONE, &scan(5, &all), &partitions).unwrap();
        let next = "HSCAN gd:{10} 5 MATCH [^\0]* COUNT 500";
        assert_eq!(words(&walk, &partitions), next);
        walk.answered(ONE, &scan(0, &all[..1]), &partitions)
            .unwrap();
        assert!(words(&walk, &partitions).starts_with("HSCAN gd:{18} 0 "));
        assert_eq!(names(&walk), ["a", "b", "b"], "twice rather than never");
        for _ in 1..64 {
            walk.answered(ONE, &scan(0, &[]), &partitions).unwrap();
        }
        assert!(walk.call(&partitions).is_none());
        let (found, place) = walk.page();
        let away = UserFlags::new(Status::Away, false);
        let a = Found {
            user: UserBuf::from_text("a").unwrap(),
            here: Some(away),
            since: at(8),
            last_active: None,
        };
        assert_eq!((found[0].clone(), found.len(), place), (a, 3, None));
    }

    #[test]
    fn a_page_that_is_full_goes_on_behind_its_last_user() {
        let partitions = Partitions::new(64).unwrap();
        let all = ["d", "b", "a", "c"].map(|name| here(name, 7, false));
        let mut walk = Walk::new(None, "", 3, Place::default(), 16);
        walk.answered(ONE, &scan(9, &all), &partitions).unwrap();
        assert_eq!(names(&walk), ["a", "b", "c"]);
        assert!(walk.call(&partitions).is_none());
        let (_, place) = walk.page();
        let place = place.unwrap();
        assert_eq!(Place::read(&place.encode()), Ok(place.clone()));
        assert_eq!(Place::read(&[]), Ok(Place::default()));
        assert!(Place::read(&[1]).is_err());
        assert_eq!(
            (place.scan, place.after.as_ref().unwrap().as_str()),
            (0, "c")
        );
        let mut walk = Walk::new(None, "", 3, place, 16);
        walk.answered(ONE, &scan(9, &all), &partitions).unwrap();
        assert_eq!((names(&walk), walk.place.scan), (vec!["d"], 9));
    }

    #[test]
    fn another_server_has_another_order() {
        let partitions = Partitions::new(64).unwrap();
        let mut walk = Walk::new(None, "", 1_000, Place::default(), 16);
        let a = [here("a", 7, false)];
        walk.answered(ONE, &scan(5, &a), &partitions).unwrap();
        walk.answered(Server(2), &scan(9, &a), &partitions).unwrap();
        let anew = "HSCAN gd:{10} 0 MATCH [^\0]* COUNT 500";
        assert_eq!(words(&walk, &partitions), anew);
        walk.answered(Server(2), &scan(9, &a), &partitions).unwrap();
        assert_eq!((names(&walk), walk.place.scan), (vec!["a", "a"], 9));
    }

    #[test]
    fn what_is_news_is_looked_for_among_all() {
        let partitions = Partitions::new(64).unwrap();
        let mut walk = Walk::new(Some(at(100)), "", 1_000, Place::default(), 2);
        let all = [
            here("a", 99, false),
            here("b", 100, false),
            here("c", 101, true),
        ];
        walk.answered(ONE, &scan(0, &all), &partitions).unwrap();
        for (bucket, user) in [(0, gone("d", 99)), (1, gone("e", 100))] {
            let key = format!("HSCAN gd:{{10}}:off:{bucket} 0 ");
            assert!(words(&walk, &partitions).starts_with(&key));
            walk.answered(ONE, &scan(0, &[user]), &partitions).unwrap();
        }
        assert!(words(&walk, &partitions).starts_with("HSCAN gd:{18} 0 "));
        let seen = |it: &Found| (it.here.is_some(), it.since.ms(), it.last_active);
        assert_eq!(names(&walk), ["b", "e"]);
        let seen: Vec<_> = walk.found.iter().map(seen).collect();
        let expected = [(true, 100, None), (false, 100, Some(at(95)))];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_prefix_is_taken_as_it_is() {
        for (prefix, expected) in [
            ("", "[^\0]*"),
            ("team-", "team\\-*"),
            ("*?[a]^\\", "\\*\\?\\[a\\]\\^\\\\*"),
            ("é", "é*"),
        ] {
            assert_eq!(pattern(prefix), expected.as_bytes(), "{prefix}");
        }
    }

    #[test]
    fn what_another_program_wrote_is_refused() {
        let partitions = Partitions::new(64).unwrap();
        for replies in [vec![], vec![Reply::Error("WRONGTYPE".into())]] {
            let mut walk = Walk::new(None, "", 1, Place::default(), 16);
            assert!(
                walk.answered(ONE, &replies, &partitions).is_err(),
                "{replies:?}"
            );
        }
        // What it put among users is passed over.
        let nobody = ("\0".to_owned(), Vec::new());
        let all = [nobody, ("a".into(), b"a".to_vec()), here("b", 7, false)];
        let mut walk = Walk::new(None, "", 10, Place::default(), 16);
        walk.answered(ONE, &scan(5, &all), &partitions).unwrap();
        assert_eq!(names(&walk), ["b"]);
    }
}
