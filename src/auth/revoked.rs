//! Tokens that are void before their time.
//!
//! Owns what a revocation says, which are in force, and the journal by which they reach a file and
//! other nodes. Keeps no id of a user and no `jti`: 16 bytes of their hash stand for them. Shared
//! by all shards; where nothing is revoked, asking costs one load. Never decides who may revoke.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use hashbrown::HashMap;
use parking_lot::RwLock;

use super::token::ISSUED_AHEAD_MS_MAX;
use super::{Full, Grant};
use crate::time::Unix;
use crate::wire::User;

/// Most in one message between nodes.
pub const REVOCATIONS_PER_MESSAGE: usize = 1_000;
/// Bytes of one of them: the digest, and `before` in Unix ms, big-endian.
const TOLD_BYTES: usize = 24;

/// What stands for a user or a `jti`: the first 16 bytes of BLAKE3 of it and its kind.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Digest([u8; 16]);

impl Digest {
    /// Of all tokens of a user.
    pub fn of_user(user: User<'_>) -> Digest {
        Digest::of(b"user", user.as_bytes())
    }

    /// Of the token with this `jti`.
    pub fn of_token(jti: &str) -> Digest {
        Digest::of(b"jti ", jti.as_bytes())
    }

    /// Of the keys of one device of a user's.
    pub fn of_device(user: User<'_>, device: &[u8]) -> Digest {
        let user = user.as_bytes();
        // A user's id has no control character, so that the two are told apart.
        Digest::of(b"dev ", &[user, device].join(&0))
    }

    /// Of what a service's key opens: by the key's hash.
    pub fn of_service(hash: blake3::Hash) -> Digest {
        Digest::of(b"svc ", hash.as_bytes())
    }

    fn of(kind: &[u8; 4], text: &[u8]) -> Digest {
        let mut hasher = blake3::Hasher::new();
        let hash = hasher.update(kind).update(text).finalize();
        let bytes = hash.as_bytes().first_chunk();
        Digest(*bytes.expect("a BLAKE3 hash has 32 bytes"))
    }

    /// From the bytes that [`Digest::bytes`] gave.
    pub fn from_bytes(bytes: [u8; 16]) -> Digest {
        Digest(bytes)
    }

    /// As a file keeps it.
    pub fn bytes(self) -> [u8; 16] {
        self.0
    }
}

/// Tokens that are void: those of a user that were made before a time, or the one with a `jti`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Revocation {
    /// Whose, or which.
    pub digest: Digest,
    /// Those made before; those that do not say when they were made are meant too.
    pub before: Unix,
    /// So long it is remembered: by then every token that it meant is void by itself.
    pub until: Unix,
}

impl Revocation {
    /// What [`Revocation::write_told`] wrote, in force until then.
    pub fn from_told(told: &[u8; TOLD_BYTES], until: Unix) -> Revocation {
        let (digest, before) = told.split_at(16);
        let digest = Digest(*digest.first_chunk().expect("16 of 24 bytes"));
        let before = u64::from_be_bytes(*before.first_chunk().expect("8 of 24 bytes"));
        Revocation {
            digest,
            before: Unix::from_ms(before),
            until,
        }
    }

    /// Those that one node tells another. None: it is no such message.
    fn read_told(message: &[u8], until: Unix) -> Option<Vec<Revocation>> {
        let (told, rest) = message.as_chunks::<TOLD_BYTES>();
        let is_sound = rest.is_empty() && told.len() <= REVOCATIONS_PER_MESSAGE;
        let read = |told: &[u8; TOLD_BYTES]| Revocation::from_told(told, until);
        is_sound.then(|| told.iter().map(read).collect())
    }

    /// Adds what one node tells another.
    pub fn write_told(&self, message: &mut Vec<u8>) {
        message.extend_from_slice(&self.digest.0);
        message.extend_from_slice(&self.before.ms().to_be_bytes());
    }
}

/// What adding one came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Added {
    /// It says more than was known.
    News,
    /// All of it was known.
    Known,
}

/// The revocations in force: some 120 bytes each.
#[derive(Debug)]
pub struct Revoked {
    table: RwLock<Table>,
    len: AtomicUsize,
    /// Where the journal ends.
    end: AtomicU64,
    max: usize,
    life_ms: u64,
    /// All that other nodes had have been added, or they are no other node's.
    is_read: AtomicBool,
}

/// What is known of a token beside what it says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judged {
    /// It is not revoked.
    Good,
    /// It is.
    Void,
    /// It is not among those that are known, which may not be all.
    Unknown,
}

#[derive(Debug, Default)]
struct Table {
    of: HashMap<Digest, Revocation, foldhash::fast::RandomState>,
    /// In the order in which they came.
    journal: VecDeque<Revocation>,
    /// How many have left the journal in front.
    first: u64,
}

impl Revoked {
    /// None, and at most `max` at a time. Each is in force for `life_ms`: a token lives no longer.
    pub fn new(max: usize, life_ms: u64) -> Revoked {
        Revoked {
            table: RwLock::default(),
            len: AtomicUsize::new(0),
            end: AtomicU64::new(0),
            max,
            life_ms: life_ms.saturating_add(ISSUED_AHEAD_MS_MAX),
            is_read: AtomicBool::new(true),
        }
    }

    /// They are shared with other nodes: which there are is yet to be read.
    pub fn await_reading(&self) {
        self.is_read.store(false, Ordering::Release);
    }

    /// All that there were have been added.
    pub fn have_been_read(&self) {
        self.is_read.store(true, Ordering::Release);
    }

    /// For how long a revocation is in force, in ms.
    pub fn life_ms(&self) -> u64 {
        self.life_ms
    }

    /// A revocation of all tokens of a user that were made before a time; without one, of all that
    /// were made up to and in the second of `now`.
    pub fn of_user(&self, user: User<'_>, before: Option<Unix>, now: Unix) -> Revocation {
        let second = Unix::from_ms(now.ms() / 1_000 * 1_000 + 1_000);
        Revocation {
            digest: Digest::of_user(user),
            before: before.unwrap_or(second),
            until: now.plus_ms(self.life_ms),
        }
    }

    /// A revocation of the token with this `jti`.
    pub fn of_token(&self, jti: &str, now: Unix) -> Revocation {
        Revocation {
            digest: Digest::of_token(jti),
            before: Unix::LATEST,
            until: now.plus_ms(self.life_ms),
        }
    }

    /// A revocation of the keys that a device of a user's has got up to now.
    pub fn of_device(&self, user: User<'_>, device: &[u8], now: Unix) -> Revocation {
        Revocation {
            digest: Digest::of_device(user, device),
            ..self.of_user(user, None, now)
        }
    }

    /// Those that another node tells. None: it is no such message.
    pub fn read_told(&self, message: &[u8], now: Unix) -> Option<Vec<Revocation>> {
        Revocation::read_told(message, now.plus_ms(self.life_ms))
    }

    /// Whether a token is void for one of these.
    pub fn covers(&self, grant: &Grant) -> bool {
        if self.len.load(Ordering::Acquire) == 0 {
            return false;
        }
        let table = self.table.read();
        let made_before = |digest| {
            let found = table.of.get(&digest);
            found.is_some_and(|found| grant.issued.is_none_or(|issued| issued < found.before))
        };
        let one = |digest| table.of.contains_key(&digest);
        grant.token.is_some_and(one) || made_before(Digest::of_user(grant.user.user()))
    }

    /// What becomes of a token that is genuine.
    pub fn judge(&self, grant: &Grant) -> Judged {
        self.judged(|| self.covers(grant))
    }

    /// What becomes of the keys that a device got from the moment `began` on.
    pub fn judge_device(&self, user: User<'_>, device: &[u8], began: Unix) -> Judged {
        self.judged(|| self.covers_device(user, device, began))
    }

    fn judged(&self, covers: impl FnOnce() -> bool) -> Judged {
        // Asked first: what has been read meanwhile is looked at behind it.
        let is_read = self.is_read.load(Ordering::Acquire);
        match (covers(), is_read) {
            (true, _) => Judged::Void,
            (false, true) => Judged::Good,
            (false, false) => Judged::Unknown,
        }
    }

    /// Whether the keys are void that a device got from the moment `began` on, in which their epoch
    /// began: its user is meant, or the device alone.
    pub fn covers_device(&self, user: User<'_>, device: &[u8], began: Unix) -> bool {
        if self.len.load(Ordering::Acquire) == 0 {
            return false;
        }
        let table = self.table.read();
        let digests = [Digest::of_user(user), Digest::of_device(user, device)];
        let mut found = digests.iter().filter_map(|digest| table.of.get(digest));
        found.any(|revocation| began < revocation.before)
    }

    /// From now on it holds. Those that mean nobody any more at `now` are forgotten.
    ///
    /// Errors: there are too many.
    pub fn add(&self, revocation: Revocation, now: Unix) -> Result<Added, Full> {
        let mut table = self.table.write();
        table.forget_until(now);
        let known = table.of.get(&revocation.digest);
        let added = match known.is_some_and(|known| known.before >= revocation.before) {
            true => Ok(Added::Known),
            false if table.journal.len() >= self.max => Err(Full),
            false => {
                table.of.insert(revocation.digest, revocation);
                table.journal.push_back(revocation);
                Ok(Added::News)
            }
        };
        self.len.store(table.of.len(), Ordering::Release);
        let end = table.first + table.journal.len() as u64;
        self.end.store(end, Ordering::Release);
        added
    }

    /// At most `max` of the journal from place `from` on, and the place behind them. Who was not
    /// told of one before it was forgotten need not be.
    pub fn journal(&self, from: u64, max: usize) -> (Vec<Revocation>, u64) {
        let table = self.table.read();
        let from = from.max(table.first);
        let skipped = (from - table.first) as usize;
        let entries = table.journal.iter().skip(skipped).take(max);
        let entries: Vec<Revocation> = entries.copied().collect();
        let behind = from + entries.len() as u64;
        (entries, behind)
    }

    /// The place behind the journal's last.
    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// How many are in force.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Table {
    fn forget_until(&mut self, now: Unix) {
        while let Some(oldest) = self.journal.front().filter(|oldest| oldest.until <= now) {
            // A later one of the same user stays.
            if self.of.get(&oldest.digest) == Some(oldest) {
                self.of.remove(&oldest.digest);
            }
            self.journal.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{LastActive, WatchDefault};
    use crate::wire::UserBuf;

    fn user(id: &str) -> UserBuf {
        UserBuf::from_text(id).unwrap()
    }

    fn of_user(id: &str, before: u64, until: u64) -> Revocation {
        Revocation {
            digest: Digest::of_user(user(id).user()),
            before: Unix::from_ms(before),
            until: Unix::from_ms(until),
        }
    }

    fn of_token(jti: &str, until: u64) -> Revocation {
        Revocation {
            digest: Digest::of_token(jti),
            before: Unix::LATEST,
            until: Unix::from_ms(until),
        }
    }

    fn token(id: &str, issued: Option<u64>, jti: Option<&str>) -> Grant {
        let said = crate::auth::grant::Said {
            user: user(id),
            expires: Unix::from_ms(1_000_000),
            issued: issued.map(Unix::from_ms),
            token: jti.map(Digest::of_token),
        };
        let grant = Grant::read(said, None, WatchDefault::Nobody).unwrap();
        assert_eq!(grant.last_active, LastActive::Exact);
        grant
    }

    const NOW: Unix = Unix::from_ms(100);

    #[test]
    fn whom_they_mean() {
        let revoked = Revoked::new(9, 1);
        let alice = |issued, jti| token("alice", issued, jti);
        assert!(!revoked.covers(&alice(None, None)));
        assert_eq!(revoked.add(of_user("alice", 50, 900), NOW), Ok(Added::News));
        assert!(revoked.covers(&alice(Some(49), None)));
        assert!(!revoked.covers(&alice(Some(50), None)));
        assert!(
            revoked.covers(&alice(None, None)),
            "nobody knows how old it is"
        );
        assert!(!revoked.covers(&token("bob", None, None)));
        assert_eq!(revoked.add(of_token("x", 900), NOW), Ok(Added::News));
        assert!(revoked.covers(&alice(Some(60), Some("x"))));
        assert!(!revoked.covers(&alice(Some(60), Some("alice"))));
        assert!(
            !revoked.covers(&token("x", Some(60), None)),
            "a user is no jti"
        );
    }

    /// A key's epoch began at 50: a revocation of later bars it, one of before does not.
    #[test]
    fn which_devices_they_mean() {
        let revoked = Revoked::new(9, 1);
        let alice = user("alice");
        let covers = |revoked: &Revoked, id: &str, device: &str, began| {
            let id = user(id);
            revoked.covers_device(id.user(), device.as_bytes(), Unix::from_ms(began))
        };
        assert!(!covers(&revoked, "alice", "phone", 50));
        let one = revoked.of_device(alice.user(), b"phone", Unix::from_ms(60));
        revoked.add(one, NOW).unwrap();
        assert!(covers(&revoked, "alice", "phone", 50));
        assert!(
            !covers(&revoked, "alice", "phone", 1_000),
            "the second is over"
        );
        assert!(!covers(&revoked, "alice", "tablet", 50));
        assert!(!covers(&revoked, "alicephone", "phone", 50));
        assert!(
            !revoked.covers(&token("alice", Some(1), None)),
            "its tokens are good"
        );
        revoked.add(of_user("alice", 51, 900), NOW).unwrap();
        assert!(covers(&revoked, "alice", "tablet", 50));
        assert!(!covers(&revoked, "alice", "tablet", 51));
        assert!(!covers(&revoked, "bob", "phone", 50));
    }

    #[test]
    fn who_has_not_read_them_knows_those_that_are_void_alone() {
        let revoked = Revoked::new(9, 1);
        revoked.await_reading();
        let alice = token("alice", Some(49), None);
        let of_device = |revoked: &Revoked| {
            let alice = user("alice");
            revoked.judge_device(alice.user(), b"phone", Unix::from_ms(49))
        };
        let judged = |revoked: &Revoked| (revoked.judge(&alice), of_device(revoked));
        assert_eq!(judged(&revoked), (Judged::Unknown, Judged::Unknown));
        revoked.add(of_user("alice", 50, 900), NOW).unwrap();
        assert_eq!(judged(&revoked), (Judged::Void, Judged::Void));
        assert_eq!(revoked.judge(&token("bob", None, None)), Judged::Unknown);
        revoked.have_been_read();
        assert_eq!(judged(&revoked), (Judged::Void, Judged::Void));
        assert_eq!(revoked.judge(&token("bob", None, None)), Judged::Good);
    }

    #[test]
    fn the_later_of_two_holds_and_each_is_forgotten_in_time() {
        let revoked = Revoked::new(9, 1);
        assert_eq!(revoked.add(of_user("alice", 50, 200), NOW), Ok(Added::News));
        assert_eq!(
            revoked.add(of_user("alice", 40, 900), NOW),
            Ok(Added::Known)
        );
        assert_eq!(revoked.add(of_user("alice", 60, 300), NOW), Ok(Added::News));
        assert_eq!(revoked.len(), 1);
        let at = Unix::from_ms(200);
        assert_eq!(revoked.add(of_token("x", 900), at), Ok(Added::News));
        assert!(revoked.covers(&token("alice", Some(55), None)));
        let at = Unix::from_ms(300);
        assert_eq!(revoked.add(of_token("x", 900), at), Ok(Added::Known));
        assert!(!revoked.covers(&token("alice", Some(55), None)));
        assert_eq!(revoked.len(), 1);
    }

    #[test]
    fn the_journal_is_read_from_any_place() {
        let revoked = Revoked::new(9, 1);
        let all: Vec<Revocation> = (0..5)
            .map(|at| of_user(&format!("u{at}"), 1, 200 + at))
            .collect();
        for each in &all {
            revoked.add(*each, NOW).unwrap();
        }
        assert_eq!(revoked.journal(0, 2), (all[..2].to_vec(), 2));
        assert_eq!(revoked.journal(2, 9), (all[2..].to_vec(), 5));
        assert_eq!(revoked.end(), 5);
        assert_eq!(revoked.journal(5, 9), (Vec::new(), 5));
        // The first two mean nobody any more.
        revoked
            .add(of_user("u0", 0, 900), Unix::from_ms(201))
            .unwrap();
        let (left, behind) = revoked.journal(0, 9);
        assert_eq!((left[0], left.len(), behind), (all[2], 4, 6));
    }

    #[test]
    fn as_many_as_may_be() {
        let revoked = Revoked::new(2, 1);
        assert_eq!(revoked.add(of_token("a", 200), NOW), Ok(Added::News));
        assert_eq!(revoked.add(of_token("b", 300), NOW), Ok(Added::News));
        assert_eq!(revoked.add(of_token("c", 300), NOW), Err(Full));
        assert_eq!(revoked.add(of_token("b", 300), NOW), Ok(Added::Known));
        let at = Unix::from_ms(200);
        assert_eq!(revoked.add(of_token("c", 300), at), Ok(Added::News));
    }

    #[test]
    fn what_nodes_tell_each_other() {
        let until = Unix::from_ms(900);
        let all = [of_user("a", 7, 900), of_token("a", 900)];
        let mut message = Vec::new();
        all.iter().for_each(|each| each.write_told(&mut message));
        assert_eq!(message.len(), 48);
        assert_eq!(Revocation::read_told(&message, until), Some(all.to_vec()));
        assert_eq!(Revocation::read_told(&message[1..], until), None);
        assert_eq!(Revocation::read_told(&[], until), Some(Vec::new()));
        let many = vec![0; TOLD_BYTES * (REVOCATIONS_PER_MESSAGE + 1)];
        assert_eq!(Revocation::read_told(&many, until), None);
    }
}
