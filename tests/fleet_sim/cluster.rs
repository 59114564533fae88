//! Servers of Redis: what they hold, who has which partition, and what they lose.

use std::collections::BTreeMap;

use greendot::fleet::calls::Call;
use greendot::fleet::partition::key_slot;
use greendot::fleet::traffic::Reply;

use crate::lua::{Data, Library, Published, TEXT, remove, set};

pub(crate) const SHARDS: usize = 3;

/// One life of one server process. Its index is its number.
pub(crate) struct Process {
    pub shard: usize,
    pub data: Data,
    /// Ahead of the world's time, in ms.
    pub skew_ms: i64,
    pub is_alive: bool,
    pub is_stopped: bool,
}

pub(crate) struct Cluster {
    library: Library,
    pub processes: Vec<Process>,
    /// The primary of each shard.
    pub primaries: [usize; SHARDS],
    /// Which shard has a slot: ranges of the key space, a few of which have moved.
    moved: BTreeMap<u16, usize>,
    /// What the replica of a shard has, if it has fallen behind.
    behind: [Option<Data>; SHARDS],
}

impl Cluster {
    pub(crate) fn new(skews: [i64; SHARDS]) -> Cluster {
        let process = |shard| Process {
            shard,
            data: Data::new(),
            skew_ms: skews[shard],
            is_alive: true,
            is_stopped: false,
        };
        Cluster {
            library: Library::load(),
            processes: (0..SHARDS).map(process).collect(),
            primaries: [0, 1, 2],
            moved: BTreeMap::new(),
            behind: [const { None }; SHARDS],
        }
    }

    /// Whose key that is.
    pub(crate) fn process_of(&self, key: &[u8]) -> usize {
        self.primaries[self.shard_of(key_slot(key))]
    }

    fn shard_of(&self, slot: u16) -> usize {
        let home = usize::from(slot) * SHARDS / 16_384;
        self.moved.get(&slot).copied().unwrap_or(home)
    }

    /// All that a server does with one command. None: it has not got the key.
    pub(crate) fn execute(
        &mut self,
        process: usize,
        key: &[u8],
        calls: &[Call],
        now_ms: u64,
    ) -> Option<(Vec<Reply>, Vec<Published>)> {
        if self.process_of(key) != process {
            return None;
        }
        let (mut replies, mut all) = (Vec::new(), Vec::new());
        for call in calls {
            let words: Vec<&[u8]> = call.words().collect();
            let (reply, published) = self.run(process, &words, now_ms);
            replies.push(reply);
            all.extend(published);
        }
        Some((replies, all))
    }

    fn run(&mut self, process: usize, words: &[&[u8]], now_ms: u64) -> (Reply, Vec<Published>) {
        let Process { data, skew_ms, .. } = &mut self.processes[process];
        let unix_ms = now_ms.saturating_add_signed(*skew_ms);
        let bytes = |bytes: &Vec<u8>| Reply::Bytes(bytes.clone());
        let owned = |words: &[&[u8]]| words.iter().map(|word| word.to_vec()).collect::<Vec<_>>();
        let reply = match words {
            [b"FCALL", function, count @ (b"1" | b"2"), rest @ ..] => {
                let function = std::str::from_utf8(function).unwrap();
                let (keys, args) = rest.split_at(usize::from(count[0] - b'0'));
                return self.library.call(data, unix_ms, function, keys, args);
            }
            [b"SPUBLISH", channel, message] => {
                return (Reply::Number(1), vec![(channel.to_vec(), message.to_vec())]);
            }
            [b"TIME"] => Reply::List(vec![
                Reply::Bytes((unix_ms / 1_000).to_string().into()),
                Reply::Bytes((unix_ms % 1_000 * 1_000).to_string().into()),
            ]),
            [b"GET", key] => {
                let text = data.get(*key).and_then(|text| text.get(TEXT));
                text.map_or(Reply::Nil, bytes)
            }
            [b"HMGET", key, fields @ ..] => {
                let hash = data.get(*key);
                let value = |field: &&[u8]| hash.and_then(|hash| hash.get(*field));
                let values = fields
                    .iter()
                    .map(|field| value(field).map_or(Reply::Nil, bytes));
                Reply::List(values.collect())
            }
            [b"HGETALL", key] => {
                let pairs = data.get(*key).into_iter().flatten();
                let pairs = pairs.flat_map(|(field, value)| [bytes(field), bytes(value)]);
                Reply::List(pairs.collect())
            }
            [b"HSET", key, pairs @ ..] => {
                set(data, key, &owned(pairs));
                Reply::Number(1)
            }
            [b"HSETNX", key, field, value] => {
                let hash = data.entry(key.to_vec()).or_default();
                hash.entry(field.to_vec()).or_insert(value.to_vec());
                Reply::Number(1)
            }
            [b"HDEL", key, fields @ ..] => {
                remove(data, key, &owned(fields));
                Reply::Number(1)
            }
            [b"HSCAN", key, cursor, rest @ ..] => {
                // The one pattern there is: no field that is nobody's.
                let users_only = match rest {
                    [b"COUNT", _] => false,
                    [b"MATCH", b"[^\0]*", b"COUNT", _] => true,
                    _ => panic!("{rest:?} is not modelled"),
                };
                let from: usize = std::str::from_utf8(cursor).unwrap().parse().unwrap();
                let hash = data.get(*key);
                let mut rest = hash.into_iter().flatten().skip(from);
                let some: Vec<_> = rest.by_ref().take(20).collect();
                let next = if rest.next().is_some() { from + 20 } else { 0 };
                let is_told = |field: &[u8]| !users_only || field.first() != Some(&0);
                let pairs = some
                    .iter()
                    .filter(|(field, _)| is_told(field))
                    .flat_map(|(field, value)| [bytes(field), bytes(value)]);
                Reply::List(vec![
                    Reply::Bytes(next.to_string().into()),
                    Reply::List(pairs.collect()),
                ])
            }
            _ => panic!("{words:?} is not modelled"),
        };
        (reply, Vec::new())
    }

    /// A shard's replica gets no more of what is written.
    pub(crate) fn fall_behind(&mut self, shard: usize) {
        let data = self.processes[self.primaries[shard]].data.clone();
        self.behind[shard].get_or_insert(data);
    }

    /// The replica takes over, with what it has; the primary is dead, or its replica.
    pub(crate) fn fail_over(&mut self, shard: usize, skew_ms: i64) -> usize {
        let old = &mut self.processes[self.primaries[shard]];
        (old.is_alive, old.is_stopped) = (false, false);
        let latest = std::mem::take(&mut old.data);
        let data = self.behind[shard].take().unwrap_or(latest);
        self.primaries[shard] = self.processes.len();
        self.processes.push(Process {
            shard,
            data,
            skew_ms,
            is_alive: true,
            is_stopped: false,
        });
        self.primaries[shard]
    }

    /// A slot and all its keys go to another shard.
    pub(crate) fn migrate(&mut self, slot: u16, to: usize) {
        let from = self.primaries[self.shard_of(slot)];
        let (from, into) = (from, self.primaries[to]);
        if from == into {
            return;
        }
        let data = std::mem::take(&mut self.processes[from].data);
        let (gone, kept): (Data, Data) =
            data.into_iter().partition(|(key, _)| key_slot(key) == slot);
        self.processes[from].data = kept;
        self.processes[into].data.extend(gone);
        self.moved.insert(slot, to);
    }
}
