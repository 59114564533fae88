//! Webhooks of a fleet: who tells what of which partition, and from where on another goes on.
//!
//! Owns the names and bytes of what Redis keeps of them, the choice of a partition's sender, and
//! what a record of a message says to everybody. Never decides when anything is due.
//!
//! ```text
//! gd:{n}:hook:NAME     birth 8, number 6, since 6: of the message up to which all is told
//! gd:{n}:hook:NAME:by  who tells it, until the key expires
//! ```
//!
//! NAME is 16 hexadecimal digits of the BLAKE3 hash of the webhook as it is configured.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::bytes::{take, take_time, take_u48, time, u48};
use super::calls::Call;
use super::held::Meta;
use super::member::Peer;
use super::message::{Base, Record, What, encode};
use super::partition::{Partition, Partitions};
use super::{Birth, Life, Malformed};
use crate::status::Status;
use crate::time::Unix;
use crate::wire::nodes::{Nodes, digest};

/// What a node says of its webhooks in the lanes begins so.
const IN_INFO: &str = " hooks=";
/// And what a node that ends says of itself ends so.
const ENDED: &str = " ended";

/// Up to which message of a partition all has been told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Of which creation of the partition.
    pub birth: Birth,
    /// Its number; 0: before the first.
    pub number: u64,
    /// Its time: after a failover another message may have its number.
    pub since: Unix,
}

impl Mark {
    /// As it is kept.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.birth.0.to_vec();
        bytes.extend(u48(self.number));
        bytes.extend(time(self.since));
        bytes
    }

    /// Errors: anything else than 20 bytes.
    pub fn parse(mut bytes: &[u8]) -> Result<Mark, Malformed> {
        let rest = &mut bytes;
        let mark = (|| {
            Some(Mark {
                birth: Birth(take(rest)?),
                number: take_u48(rest)?,
                since: take_time(rest)?,
            })
        })();
        mark.filter(|_| rest.is_empty())
            .ok_or(Malformed("the position of a webhook"))
    }

    /// Whether these bytes of the ring begin with its message's head.
    pub fn is_of(&self, kept: &[u8]) -> bool {
        let (birth, number) = (self.birth, self.number.saturating_sub(1));
        kept.starts_with(&encode(Base { birth, number }, self.since, &[]))
    }
}

impl From<Meta> for Mark {
    fn from(meta: Meta) -> Mark {
        Mark {
            birth: meta.birth,
            number: meta.number,
            since: meta.since,
        }
    }
}

/// The name of a webhook in the database.
pub fn name_of(configured: &str) -> String {
    format!("{:016x}", digest(configured.as_bytes()))
}

/// What a node with these webhooks says of itself.
pub fn info_with(info: &str, names: &[&str]) -> String {
    match names {
        [] => info.to_owned(),
        names => format!("{info}{IN_INFO}{}", names.join(",")),
    }
}

/// What a node says of itself that has ended.
pub fn info_of_ended(info: &str) -> String {
    format!("{info}{ENDED}")
}

/// Whether a node has said that it ends.
pub fn has_ended(info: &str) -> bool {
    info.ends_with(ENDED)
}

/// What a node says of itself, and the names of its webhooks.
pub fn parts_of(info: &str) -> (&str, impl Iterator<Item = &str>) {
    let info = info.strip_suffix(ENDED).unwrap_or(info);
    let (info, names) = info.rsplit_once(IN_INFO).unwrap_or((info, ""));
    (info, names.split(',').filter(|name| !name.is_empty()))
}

/// The nodes that may tell a webhook.
#[derive(Debug, Default)]
pub struct Senders {
    lives: Vec<Life>,
    nodes: Nodes,
    name: String,
}

impl Senders {
    /// Of these those that have the webhook.
    pub fn new(peers: &[Peer], name: &str) -> Senders {
        let has_it = |peer: &&Peer| parts_of(&peer.info).1.any(|its| its == name);
        let lives: Vec<Life> = peers.iter().filter(has_it).map(|peer| peer.life).collect();
        let names = lives
            .iter()
            .map(|life| format!("{:08x}", u32::from_be_bytes(life.0)));
        let names: Vec<String> = names.collect();
        Senders {
            nodes: Nodes::new(names.iter().map(String::as_str)),
            lives,
            name: name.to_owned(),
        }
    }

    /// Who tells of a partition, by its number. All nodes with the same view choose the same.
    pub fn of(&self, partition: usize) -> Option<Life> {
        let key = format!("{}/{partition}", self.name);
        self.lives.get(self.nodes.of(key.as_bytes())).copied()
    }
}

/// The keys of one webhook in one partition, and what is said to Redis of them.
#[derive(Debug)]
pub struct Keys {
    position: String,
    by: String,
}

impl Keys {
    /// See the module.
    pub fn new(partitions: &Partitions, partition: Partition, name: &str) -> Keys {
        let position = format!("gd:{{{}}}:hook:{name}", partitions.tag(partition));
        let by = format!("{position}:by");
        Keys { position, by }
    }

    /// Takes the partition for `ms` if nobody has it.
    pub fn claim(&self, token: &str, ms: u64) -> Call {
        let ms = ms.to_string();
        let words = ["SET", &self.by, token, "NX", "PX", &ms];
        Call::plain(words.map(str::as_bytes))
    }

    /// Who has it.
    pub fn holder(&self) -> Call {
        Call::plain([b"GET", self.by.as_bytes()])
    }

    /// Has whoever has it keep it for `ms` from now on.
    pub fn extend(&self, ms: u64) -> Call {
        let ms = ms.to_string();
        Call::plain([b"PEXPIRE", self.by.as_bytes(), ms.as_bytes()])
    }

    /// Has it end in `ms` if it has no end, which no claim is without. 1: it had none.
    pub fn end(&self, ms: u64) -> Call {
        let ms = ms.to_string();
        Call::plain([b"PEXPIRE", self.by.as_bytes(), ms.as_bytes(), b"NX"])
    }

    /// Nobody has it any more.
    pub fn release(&self) -> Call {
        Call::plain([b"DEL", self.by.as_bytes()])
    }

    /// Up to where all has been told.
    pub fn position(&self) -> Call {
        Call::plain([b"GET", self.position.as_bytes()])
    }

    /// Keeps that.
    pub fn keep(&self, mark: &Mark) -> Call {
        Call::plain([b"SET", self.position.as_bytes(), &mark.encode()])
    }
}

/// What everybody is told of a user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shown {
    /// This.
    State {
        /// Online, away, busy or offline.
        status: Status,
        /// Since when.
        since: Unix,
        /// None: it was erased.
        last_active: Option<Unix>,
    },
    /// It is here and invisible since then. If others saw it before, it has gone for them: then a
    /// bucket says so, soon.
    Hidden(Unix),
}

/// What a record says to everybody. None: nothing.
pub fn shown(message_since: Unix, what: What) -> Option<Shown> {
    let here = |status, since| Shown::State {
        status,
        since,
        last_active: Some(since),
    };
    let gone = |last_active| Shown::State {
        status: Status::Offline,
        since: message_since,
        last_active,
    };
    match what {
        What::Arrived(flags) => Some(here(flags.shown(), message_since)),
        What::StillHere { flags, since } => Some(here(flags.shown(), since)),
        What::Is { flags, since } if !flags.invisible => Some(here(flags.shown(), since)),
        What::Is { since, .. } => (since == message_since).then_some(Shown::Hidden(since)),
        What::Gone {
            flags, last_active, ..
        }
        | What::LoggedOut { flags, last_active } => {
            (!flags.invisible).then(|| gone(Some(last_active)))
        }
        What::Erased => Some(gone(None)),
        What::StreamsEnd(_) | What::Keeps(_) => None,
    }
}

/// The net effect of some records, each with its message's time and number: the last word of each
/// user, in the order of the first. Who was seen and hides in the same breath has gone.
pub fn net_effect<'r>(
    records: impl Iterator<Item = (Unix, u64, Record<'r>)>,
) -> Vec<(Record<'r>, u64, Shown)> {
    let mut all: Vec<(Record<'r>, u64, Shown)> = Vec::new();
    let mut places = BTreeMap::new();
    for (since, number, record) in records {
        let Some(shown) = shown(since, record.what) else {
            continue;
        };
        let one = (record, number, shown);
        match places.entry(record.user) {
            Entry::Vacant(place) => {
                place.insert(all.len());
                all.push(one);
            }
            Entry::Occupied(place) => {
                let before = &mut all[*place.get()];
                if let Some(one) = after(before.2, one) {
                    *before = one;
                }
            }
        }
    }
    all
}

/// What counts of two in a row. None: the first.
fn after<'r>(before: Shown, one: (Record<'r>, u64, Shown)) -> Option<(Record<'r>, u64, Shown)> {
    let (record, number, Shown::Hidden(since)) = one else {
        return Some(one);
    };
    let was_seen = matches!(before, Shown::State { status, .. } if status.is_online());
    let gone = Shown::State {
        status: Status::Offline,
        since,
        last_active: Some(since),
    };
    // Of who was gone or hidden nobody is told that it comes.
    was_seen.then_some((record, number, gone))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::flags::UserFlags;
    use crate::wire::User;

    const MARK: Mark = Mark {
        birth: Birth(*b"birthday"),
        number: 7,
        since: Unix::from_ms(9),
    };

    #[test]
    fn a_position_and_its_message() {
        let bytes = MARK.encode();
        assert_eq!(bytes, b"birthday\0\0\0\0\0\x07\0\0\0\0\0\x09");
        assert_eq!(Mark::parse(&bytes), Ok(MARK));
        assert!(Mark::parse(&bytes[1..]).is_err());
        let (birth, number) = (MARK.birth, 6);
        let message = encode(Base { birth, number }, MARK.since, &[]);
        assert!(MARK.is_of(&message) && MARK.is_of(&[&message[..], b"x"].concat()));
        let since = Unix::from_ms(10);
        assert!(!Mark { since, ..MARK }.is_of(&message));
        assert!(!Mark { number: 8, ..MARK }.is_of(&message));
    }

    #[test]
    fn keys_and_calls() {
        let partitions = Partitions::new(64).unwrap();
        let name = name_of("https://a.example/?prefix=b");
        assert_eq!(name.len(), 16);
        let keys = Keys::new(&partitions, partitions.at(1), &name);
        let words = |call: Call| -> Vec<String> {
            let words = call.words().map(String::from_utf8_lossy);
            words.map(String::from).collect()
        };
        let by = format!("gd:{{18}}:hook:{name}:by");
        assert_eq!(
            words(keys.claim("me", 5)),
            ["SET", &by, "me", "NX", "PX", "5"]
        );
        assert_eq!(words(keys.holder()), ["GET", &by]);
        assert_eq!(words(keys.extend(5)), ["PEXPIRE", &by, "5"]);
        assert_eq!(words(keys.end(5)), ["PEXPIRE", &by, "5", "NX"]);
        assert_eq!(words(keys.release()), ["DEL", &by]);
        let position = by.strip_suffix(":by").unwrap();
        assert_eq!(words(keys.position()), ["GET", position]);
        assert_eq!(&words(keys.keep(&MARK))[..2], ["SET", position]);
    }

    fn peer(life: u8, hooks: &[&str]) -> Peer {
        let info = info_with("a:1 a:2 0.1.0 (abc)", hooks);
        Peer {
            life: Life([life; 4]),
            info: info.into(),
        }
    }

    #[test]
    fn what_a_node_says_of_its_webhooks() {
        let info = info_with("a:1 a:2 0.1.0 (abc)", &["one", "two"]);
        let (rest, names) = parts_of(&info);
        assert_eq!(rest, "a:1 a:2 0.1.0 (abc)");
        assert_eq!(names.collect::<Vec<_>>(), ["one", "two"]);
        let (rest, mut names) = parts_of(rest);
        assert_eq!((rest, names.next()), ("a:1 a:2 0.1.0 (abc)", None));
    }

    #[test]
    fn each_partition_has_one_sender_among_those_who_have_the_webhook() {
        let all = [
            peer(1, &["x"]),
            peer(2, &["x", "y"]),
            peer(3, &["y"]),
            peer(4, &[]),
        ];
        let (x, y) = (Senders::new(&all, "x"), Senders::new(&all, "y"));
        let fewer = Senders::new(&all[1..], "x");
        let mut counts = BTreeMap::new();
        let mut differs = false;
        for partition in 0..1_024 {
            let (of_x, of_y) = (x.of(partition).unwrap(), y.of(partition).unwrap());
            *counts.entry(of_x).or_insert(0) += 1;
            assert!(of_y == Life([2; 4]) || of_y == Life([3; 4]));
            differs |= (of_x == Life([2; 4])) != (of_y == Life([2; 4]));
            assert_eq!(fewer.of(partition), Some(Life([2; 4])));
        }
        assert_eq!(counts.len(), 2);
        assert!(counts.values().all(|count| *count > 400), "{counts:?}");
        assert!(differs, "not all webhooks of a partition are at one node");
        assert_eq!(Senders::new(&all, "z").of(0), None);
        // Of those who stay none hands a partition to another.
        let one_more = [&all[..], &[peer(5, &["x"])]].concat();
        let one_more = Senders::new(&one_more, "x");
        let moved = (0..1_024).filter(|it| one_more.of(*it) != x.of(*it));
        assert!(
            moved
                .into_iter()
                .all(|it| one_more.of(it) == Some(Life([5; 4])))
        );
    }

    fn effect(records: &[(u64, What)]) -> Vec<(u64, Shown)> {
        let user = User::from_text("bob").unwrap();
        let records = records.iter();
        let records = records.map(|(at, what)| {
            let record = Record { user, what: *what };
            (Unix::from_ms(*at), *at, record)
        });
        let all = net_effect(records).into_iter();
        all.map(|(_, number, shown)| (number, shown)).collect()
    }

    #[test]
    fn nobody_is_told_of_who_is_invisible() {
        let (plain, hidden) = (UserFlags::PLAIN, UserFlags::new(Status::Busy, true));
        let at = Unix::from_ms;
        let is = |flags, since| What::Is {
            flags,
            since: at(since),
        };
        let gone = |flags| What::Gone {
            flags,
            last_active: at(1),
            said_at: None,
        };
        let state = |status, since, last_active: Option<u64>| Shown::State {
            status,
            since: at(since),
            last_active: last_active.map(at),
        };
        let (online, offline) = (Status::Online, Status::Offline);
        for (records, expected) in [
            (
                vec![(5, What::Arrived(plain))],
                vec![(5, state(online, 5, Some(5)))],
            ),
            (
                vec![(5, gone(plain))],
                vec![(5, state(offline, 5, Some(1)))],
            ),
            (vec![(5, gone(hidden))], vec![]),
            (vec![(5, What::Keeps(hidden))], vec![]),
            (vec![(5, What::StreamsEnd(plain))], vec![]),
            // It came hidden, or hides; and another status of one who is hidden.
            (vec![(5, is(hidden, 5))], vec![(5, Shown::Hidden(at(5)))]),
            (vec![(6, is(hidden, 5))], vec![]),
            (
                vec![(5, is(hidden, 5)), (6, gone(hidden)), (7, is(hidden, 7))],
                vec![(5, Shown::Hidden(at(5)))],
            ),
            (
                vec![(5, What::Arrived(plain)), (6, is(hidden, 6))],
                vec![(6, state(offline, 6, Some(6)))],
            ),
            (
                vec![(5, gone(plain)), (6, is(hidden, 6))],
                vec![(5, state(offline, 5, Some(1)))],
            ),
            (
                vec![(5, is(hidden, 5)), (6, is(plain, 6))],
                vec![(6, state(online, 6, Some(6)))],
            ),
            (vec![(5, What::Erased)], vec![(5, state(offline, 5, None))]),
        ] {
            assert_eq!(effect(&records), expected, "{records:?}");
        }
    }
}
