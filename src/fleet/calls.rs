//! The calls of the library's functions, as the words of a Redis command.
//!
//! Owns their arguments. Never sends one, and never decides whether one is due.
//!
//! ```text
//! gd1_vouch HOT HEAD OPS USER..   HEAD  life 4, mode 1, birth 8, k 6, not_after 6
//!                                 OPS   of each user: op, flags, kinds, sent 6, last_active 6
//! gd1_vouch HOT ENDS HEAD ..      with log-outs or erasures, whose `sent` is the user's tag
//! gd1_fence HOT HEAD              HEAD  life 4, birth 8, not_after 6
//! gd1_renew LANE HEAD INFO        HEAD  life 4, instance 8, not_after 6, silence 4, amnesty 4
//! ```

use super::bytes::{time, u48};
use super::flags::{Saying, UserFlags, parts};
use super::held::{Kinds, end_tag};
use super::partition::ends_key;
use super::{Birth, CALL_USERS_MAX, Life, library};
use crate::time::Unix;
use crate::wire::User;

/// Flags of a claim whose node does not know what its user says of itself.
const FLAGS_UNKNOWN: u8 = 3;
/// No time.
const NOTHING: [u8; 6] = [0; 6];

/// A command of Redis.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    words: Vec<Box<[u8]>>,
}

impl Call {
    /// Any other command than one of the library's functions.
    pub fn plain<'w>(words: impl IntoIterator<Item = &'w [u8]>) -> Call {
        Call {
            words: words.into_iter().map(Box::from).collect(),
        }
    }

    fn new(function: &str, keys: &[&str], args: impl IntoIterator<Item = Box<[u8]>>) -> Call {
        let function = library::function(function);
        let count = keys.len().to_string();
        let head = ["FCALL", function.as_str(), count.as_str()];
        let head = head
            .iter()
            .chain(keys)
            .map(|word| Box::from(word.as_bytes()));
        Call {
            words: head.chain(args).collect(),
        }
    }

    /// Its words in order, the command's name first.
    pub fn words(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.words.iter().map(|word| &**word)
    }
}

/// As what a life calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// In turn: its number must be the next one.
    InTurn,
    /// Enrols the life in the partition, or reconciles: its number may leap, but never back.
    Enrol,
    /// For a life that is fenced, by somebody else: only withdraws, and is not numbered.
    Reap,
}

/// `gd1_vouch`: what one life says of users of one partition, at most [`CALL_USERS_MAX`].
#[derive(Clone, Debug)]
pub struct Vouch {
    head: [u8; 25],
    ops: Vec<u8>,
    users: Vec<Box<[u8]>>,
    /// Streams end with it.
    ends: bool,
}

/// What is said with a call, and how it is identified.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// For which life.
    pub life: Life,
    /// As what.
    pub mode: Mode,
    /// What the partition is born as if there is none: random.
    pub birth: Birth,
    /// Its number among those of this life in this partition; the first is 1.
    pub k: u64,
    /// The call is void later than that, by Redis' clock.
    pub not_after: Unix,
}

impl Vouch {
    /// Says nothing yet.
    pub fn new(caller: &Caller) -> Vouch {
        let mode = match caller.mode {
            Mode::InTurn => b'v',
            Mode::Enrol => b'e',
            Mode::Reap => b'r',
        };
        let mut head = [0; 25];
        head[..4].copy_from_slice(&caller.life.0);
        head[4] = mode;
        head[5..13].copy_from_slice(&caller.birth.0);
        head[13..19].copy_from_slice(&u48(caller.k));
        head[19..].copy_from_slice(&time(caller.not_after));
        Vouch {
            head,
            ops: Vec::new(),
            users: Vec::new(),
            ends: false,
        }
    }

    /// Claims `user`. Kinds add up with those claimed before; an open stream alone is only kept of
    /// a user who is here. `known`: since when the user is known to be here with these flags. The
    /// flags count if that is later than what Redis has, which has lost something then. None: what
    /// the user says of itself is not known here, and stays as Redis has it.
    pub fn claim(
        &mut self,
        user: User<'_>,
        flags: Option<UserFlags>,
        kinds: Kinds,
        known: Option<Unix>,
    ) {
        let sent = kinds.beat.unwrap_or_default();
        let flags = flags.map_or(FLAGS_UNKNOWN, |flags| flags.said().byte());
        let times = (time(sent), known.unwrap_or_default());
        self.say(b'+', user, flags, kinds, times);
    }

    /// Takes back kinds of a claim. If no life's claims prove that the user lives any more, it has
    /// gone.
    pub fn withdraw(&mut self, user: User<'_>, kinds: Kinds, last_active: Unix) {
        self.say(b'-', user, 0, kinds, (NOTHING, last_active));
    }

    /// A device said goodbye at `sent`, by its sender's clock; `kinds` of our own claim have ended
    /// with it. Judged across all lives: the user has gone unless a stream is left anywhere, or a
    /// claimed beat was sent later.
    pub fn goodbye(&mut self, user: User<'_>, kinds: Kinds, sent: Unix, last_active: Unix) {
        self.say(b'g', user, 0, kinds, (time(sent), last_active));
    }

    /// Logs the user out everywhere.
    pub fn log_out(&mut self, user: User<'_>, last_active: Unix) {
        self.ends = true;
        let times = (end_tag(user), last_active);
        self.say(b'!', user, 0, Kinds::default(), times);
    }

    /// The user says this of itself from here on, here or not. Not nothing.
    pub fn set_flags(&mut self, user: User<'_>, said: Saying) {
        debug_assert!(parts(said) != 0);
        let flags = UserFlags::PLAIN.after(said).byte();
        self.ops.extend([b'=', flags, parts(said)]);
        self.ops.extend([0; 12]);
        self.users.push(user.as_bytes().into());
    }

    /// Erases the user from the partition and its ring.
    pub fn erase(&mut self, user: User<'_>) {
        self.ends = true;
        let times = (end_tag(user), Unix::default());
        self.say(b'x', user, 0, Kinds::default(), times);
    }

    /// The same, unless the user is here.
    pub fn forget(&mut self, user: User<'_>) {
        self.ops.extend([b'x', 0, 1]);
        self.ops.extend([0; 12]);
        self.users.push(user.as_bytes().into());
    }

    /// Users of whom something is said.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Nothing is said.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// No further user goes in.
    pub fn is_full(&self) -> bool {
        self.users.len() >= CALL_USERS_MAX
    }

    /// As a command upon the partition's hot key.
    pub fn call(self, hot_key: &str) -> Call {
        debug_assert!(self.users.len() <= CALL_USERS_MAX);
        let head: [Box<[u8]>; 2] = [Box::from(self.head), self.ops.into()];
        let ends_key = ends_key(hot_key);
        let keys = [hot_key, &ends_key];
        let keys = if self.ends { &keys[..] } else { &keys[..1] };
        Call::new("vouch", keys, head.into_iter().chain(self.users))
    }

    fn say(
        &mut self,
        op: u8,
        user: User<'_>,
        flags: u8,
        kinds: Kinds,
        (sent, last_active): ([u8; 6], Unix),
    ) {
        self.ops.extend([op, flags, kinds.byte()]);
        self.ops.extend(sent);
        self.ops.extend(time(last_active));
        self.users.push(user.as_bytes().into());
    }
}

/// `gd1_fence`: nothing of `life` is taken in this partition from here on.
pub fn fence(hot_key: &str, life: Life, birth: Birth, not_after: Unix) -> Call {
    let head = [&life.0[..], &birth.0[..], &time(not_after)[..]].concat();
    Call::new("fence", &[hot_key], [head.into()])
}

/// A node's lease.
#[derive(Clone, Copy, Debug)]
pub struct Renewal<'a> {
    /// Of which life.
    pub life: Life,
    /// Which node that is: random, so that two that chose the same life notice.
    pub instance: [u8; 8],
    /// The call is void later than that, by Redis' clock.
    pub not_after: Unix,
    /// If nobody renewed for so long, it was Redis that was away.
    pub silence_ms: u32,
    /// Then nobody is taken for dead for so long.
    pub amnesty_ms: u32,
    /// Where the node answers and which version it is; at most [`INFO_BYTES_MAX`].
    pub info: &'a str,
}

/// Longest info of a renewal.
pub const INFO_BYTES_MAX: usize = 512;

/// `gd1_renew`: the life is alive.
pub fn renew(lane: &str, renewal: &Renewal<'_>) -> Call {
    debug_assert!(renewal.info.len() <= INFO_BYTES_MAX);
    let head = [
        &renewal.life.0[..],
        &renewal.instance[..],
        &time(renewal.not_after)[..],
        &renewal.silence_ms.to_be_bytes()[..],
        &renewal.amnesty_ms.to_be_bytes()[..],
    ]
    .concat();
    let args = [head.into(), renewal.info.as_bytes().into()];
    Call::new("renew", &[lane], args)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(call: &Call) -> Vec<&[u8]> {
        call.words().collect()
    }

    #[test]
    fn a_vouch() {
        let mut vouch = Vouch::new(&Caller {
            life: Life(*b"life"),
            mode: Mode::Enrol,
            birth: Birth(*b"birthday"),
            k: 7,
            not_after: Unix::from_ms(9),
        });
        assert!(vouch.is_empty());
        let (bob, at) = (User::from_text("bob").unwrap(), Unix::from_ms(0x0102));
        vouch.claim(bob, Some(UserFlags::PLAIN), Kinds::beat(at), None);
        let busy = UserFlags::new(crate::status::Status::Busy, false);
        vouch.claim(bob, Some(busy), Kinds::OPEN_ONLY, Some(at));
        vouch.withdraw(bob, Kinds::STREAM_ONLY, at);
        vouch.goodbye(bob, Kinds::OPEN_ONLY, at, Unix::from_ms(3));
        vouch.log_out(bob, at);
        let away = Some(crate::status::Status::Away);
        let (status, invisible) = (away, Some(true));
        vouch.set_flags(bob, Saying { status, invisible });
        vouch.erase(bob);
        vouch.forget(bob);
        assert_eq!((vouch.len(), vouch.is_full()), (8, false));
        let ops = [
            &b"+\0\x01\0\0\0\0\x01\x02\0\0\0\0\0\0"[..],
            b"+\x02\x04\0\0\0\0\0\0\0\0\0\0\x01\x02",
            b"-\0\x02\0\0\0\0\0\0\0\0\0\0\x01\x02",
            b"g\0\x04\0\0\0\0\x01\x02\0\0\0\0\0\x03",
            &[&b"!\0\0"[..], &end_tag(bob), b"\0\0\0\0\x01\x02"].concat(),
            b"=\x05\x03\0\0\0\0\0\0\0\0\0\0\0\0",
            &[&b"x\0\0"[..], &end_tag(bob), b"\0\0\0\0\0\0"].concat(),
            b"x\0\x01\0\0\0\0\0\0\0\0\0\0\0\0",
        ]
        .concat();
        let mut expected: Vec<&[u8]> = vec![b"FCALL", b"gd1_vouch", b"2", b"gd:{0}"];
        expected.push(b"gd:{0}:ends");
        expected.push(b"lifeebirthday\0\0\0\0\0\x07\0\0\0\0\0\x09");
        expected.push(&ops);
        expected.extend([&b"bob"[..]; 8]);
        assert_eq!(words(&vouch.call("gd:{0}")), expected);
    }

    #[test]
    fn a_fence_and_a_renewal() {
        let (life, at) = (Life(*b"life"), Unix::from_ms(9));
        assert_eq!(
            words(&fence("gd:{0}", life, Birth(*b"birthday"), at)),
            [
                &b"FCALL"[..],
                b"gd1_fence",
                b"1",
                b"gd:{0}",
                b"lifebirthday\0\0\0\0\0\x09"
            ]
        );
        let renewal = Renewal {
            life,
            instance: *b"instance",
            not_after: at,
            silence_ms: 1,
            amnesty_ms: 2,
            info: "10.0.0.1:8080",
        };
        assert_eq!(
            words(&renew("gd:lane:{l0}", &renewal)),
            [
                &b"FCALL"[..],
                b"gd1_renew",
                b"1",
                b"gd:lane:{l0}",
                b"lifeinstance\0\0\0\0\0\x09\0\0\0\x01\0\0\0\x02",
                b"10.0.0.1:8080"
            ]
        );
    }
}
