//! Tokens that are void before their time, as the nodes of a fleet share them.
//!
//! They lie in one stream of Redis, [`REVOKED`]: an entry for each, which Redis dates. Every node
//! adds its own and reads on from the last entry that it has seen at each of its ticks. Whatever
//! is lost there, by a failover or by hand, each node says again that knows it. What an entry
//! means is for whoever asks: here it is 24 bytes.
//!
//! Owns what is said and read, and when. Without a kernel: calls and replies are values.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::Malformed;
use super::calls::Call;
use super::ticks::Ticks;
use super::traffic::{Reply, Server};
use crate::time::{Mono, Now, Unix};

/// The key of the stream: in the slot of the layout.
pub const REVOKED: &str = "gd:{layout}:revoked";

/// One revocation: whom or what it means, and before when, as one node tells another.
pub type Record = [u8; 24];

/// Pause after a command that came to nothing, in ms.
const AGAIN_MS: u64 = 500;
/// Entries that are read at a time.
const READ_MAX: usize = 1_000;
/// Entries that are added at a time.
const SAID_MAX: usize = 100;
/// How much longer Redis keeps an entry than it is in force, in ms: clocks differ.
const SLACK_MS: u64 = 60_000;
/// The only field of an entry.
const FIELD: &[u8] = b"r";

/// What one node says and reads of the stream.
#[derive(Debug)]
pub struct Revocations {
    life_ms: u64,
    /// Behind which entry the next read begins: its time, and its number at that time.
    read_to: (u64, u64),
    /// How many have been read since the stream was read from its beginning.
    read: u64,
    /// Its end has been reached since.
    is_whole: bool,
    /// Its end has been reached once.
    has_read: bool,
    server: Option<Server>,
    /// What the stream has, and until when it is in force.
    known: HashMap<Record, Unix, foldhash::fast::RandomState>,
    /// What it is to have, in the order in which it was said.
    unsaid: VecDeque<Record>,
    /// The numbers of those.
    numbers: HashMap<Record, u64, foldhash::fast::RandomState>,
    /// How many were said and taken.
    taken: u64,
    /// As many of the unsaid are in the command under way.
    flying: Option<usize>,
    next_at: Mono,
    ticks: Ticks,
}

/// What a read has come to.
#[derive(PartialEq, Eq, Default, Debug)]
pub struct Read {
    /// Those in force that were not known, and until when they are.
    pub news: Vec<(Record, Unix)>,
    /// The whole stream has been read from its beginning: whatever is in force and
    /// [`Revocations::knows`] nothing of was lost, and is to be said again.
    pub is_whole: bool,
    /// Entries that were passed over: no node of this version has made them.
    pub foreign: usize,
}

impl Revocations {
    /// Nothing is read yet. Each entry is in force for `life_ms`. It is read at each of `ticks`.
    pub fn new(life_ms: u64, ticks: Ticks) -> Revocations {
        Revocations {
            life_ms,
            read_to: (0, 0),
            read: 0,
            is_whole: false,
            has_read: false,
            server: None,
            known: HashMap::default(),
            unsaid: VecDeque::new(),
            numbers: HashMap::default(),
            taken: 0,
            flying: None,
            next_at: Mono::default(),
            ticks,
        }
    }

    /// One that all nodes are to know. Returns its number: it is taken once [`Revocations::taken`]
    /// has come so far.
    pub fn say(&mut self, record: Record) -> u64 {
        if self.known.contains_key(&record) {
            return self.taken;
        }
        if let Some(number) = self.numbers.get(&record) {
            return *number;
        }
        self.unsaid.push_back(record);
        let number = self.taken + self.unsaid.len() as u64;
        self.numbers.insert(record, number);
        self.next_at = Mono::default();
        number
    }

    /// How many of those that were said Redis has.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether the stream had it when it was read last.
    pub fn knows(&self, record: &Record) -> bool {
        self.known.contains_key(record)
    }

    /// Whether all that there was has been read once.
    pub fn has_read(&self) -> bool {
        self.has_read
    }

    /// When [`Revocations::poll_calls`] has something.
    pub fn next(&self) -> Mono {
        match self.flying {
            Some(_) => Mono::NEVER,
            None => self.next_at,
        }
    }

    /// What is to be sent to the server of [`REVOKED`], if it is time: one command at a time.
    pub fn poll_calls(&mut self, now: Now) -> Option<Vec<Call>> {
        if now.mono < self.next() {
            return None;
        }
        let saying = self.unsaid.len().min(SAID_MAX);
        let kept_ms = self.life_ms.saturating_add(SLACK_MS);
        let oldest = now.unix.minus_ms(kept_ms).ms().to_string();
        let saying_of = self.unsaid.iter().take(saying);
        let mut calls: Vec<Call> = saying_of.map(|record| add(record, &oldest)).collect();
        if saying > 0 {
            let kept = kept_ms.to_string();
            calls.push(Call::plain([
                &b"PEXPIRE"[..],
                REVOKED.as_bytes(),
                kept.as_bytes(),
            ]));
        }
        calls.push(Call::plain([&b"XLEN"[..], REVOKED.as_bytes()]));
        let (ms, number) = self.read_to;
        let (from, most) = (format!("({ms}-{number}"), READ_MAX.to_string());
        let words: [&[u8]; 6] = [
            b"XRANGE",
            REVOKED.as_bytes(),
            from.as_bytes(),
            b"+",
            b"COUNT",
            most.as_bytes(),
        ];
        calls.push(Call::plain(words));
        self.flying = Some(saying);
        Some(calls)
    }

    /// The command has replies.
    ///
    /// Errors: they are none; it will be said again.
    pub fn answered(
        &mut self,
        server: Server,
        replies: &[Reply],
        now: Now,
    ) -> Result<Read, Malformed> {
        let saying = self.flying.take().unwrap_or(0);
        self.next_at = now.mono.plus_ms(AGAIN_MS);
        let (added, length, entries) = parse(replies, saying)?;
        for record in self.unsaid.drain(..added) {
            self.numbers.remove(&record);
            self.taken += 1;
        }
        // Another server may lack some, and so does one that has fewer than there were. Some of
        // what was old may have been dropped too: reading all again costs little.
        let is_other = self.server.replace(server).is_some_and(|it| it != server);
        if is_other || length < self.read {
            self.begin();
            return Ok(Read::default());
        }
        let mut read = Read::default();
        let is_end = entries.len() < READ_MAX;
        self.read += entries.len() as u64;
        for (id, record) in entries {
            self.read_to = self.read_to.max(id);
            let until = Unix::from_ms(id.0).plus_ms(self.life_ms);
            let Some(record) = record else {
                read.foreign += 1;
                continue;
            };
            if until > now.unix && self.known.insert(record, until).is_none() {
                read.news.push((record, until));
            }
        }
        self.next_at = match is_end && self.unsaid.is_empty() {
            true => self.ticks.own_after(now.mono, 0, 1),
            false => now.mono,
        };
        if is_end {
            read.is_whole = !std::mem::replace(&mut self.is_whole, true);
            self.has_read = true;
            if read.is_whole {
                self.known.retain(|_, until| *until > now.unix);
            }
        }
        Ok(read)
    }

    /// The command has no replies; what it said may have been taken, and is said again.
    pub fn failed(&mut self, now: Now) {
        self.flying = None;
        self.next_at = now.mono.plus_ms(AGAIN_MS);
    }

    /// All of it is to be read.
    fn begin(&mut self) {
        self.read_to = (0, 0);
        self.read = 0;
        self.is_whole = false;
        self.known.clear();
        self.next_at = Mono::default();
    }
}

/// Adds one, and lets Redis drop what is older than that.
fn add(record: &Record, oldest: &str) -> Call {
    let words: [&[u8]; 8] = [
        b"XADD",
        REVOKED.as_bytes(),
        b"MINID",
        b"~",
        oldest.as_bytes(),
        b"*",
        FIELD,
        record,
    ];
    Call::plain(words)
}

/// Its time and number, and what it says; None: nothing that is known.
type Entry = ((u64, u64), Option<Record>);

/// How many were added, how many there were then, and what is behind those that had been read.
fn parse(replies: &[Reply], saying: usize) -> Result<(usize, u64, Vec<Entry>), Malformed> {
    let none = Malformed("the answer about revocations");
    let (said, read) = replies.split_at_checked(saying).ok_or(none)?;
    let added = said
        .iter()
        .take_while(|reply| matches!(reply, Reply::Bytes(_)));
    let added = added.count();
    let [Reply::Number(length), Reply::List(entries)] = read.last_chunk().ok_or(none)? else {
        return Err(none);
    };
    let length = u64::try_from(*length).map_err(|_| none)?;
    let entries = entries.iter().map(entry).collect::<Option<_>>();
    Ok((added, length, entries.ok_or(Malformed("a revocation"))?))
}

fn entry(reply: &Reply) -> Option<Entry> {
    let Reply::List(parts) = reply else {
        return None;
    };
    let [Reply::Bytes(id), fields] = &parts[..] else {
        return None;
    };
    let id = std::str::from_utf8(id).ok()?;
    let (ms, number) = id.split_once('-')?;
    let id = (ms.parse().ok()?, number.parse().ok()?);
    // Whatever else somebody has put there must not hide what comes behind it.
    let record = match fields {
        Reply::List(fields) => match &fields[..] {
            [Reply::Bytes(name), Reply::Bytes(record)] if name == FIELD => {
                record.as_slice().try_into().ok()
            }
            _ => None,
        },
        _ => None,
    };
    Some((id, record))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Record = [b'a'; 24];
    const B: Record = [b'b'; 24];
    const LIFE_MS: u64 = 10_000;
    const ONE: Server = Server(1);

    fn at(ms: u64) -> Now {
        Now {
            mono: Mono::default().plus_ms(ms),
            unix: Unix::from_ms(100_000 + ms),
        }
    }

    /// At the first ms, and each second from then on.
    fn ticks() -> Ticks {
        Ticks::from(at(1).mono, 1_000)
    }

    fn stream(entries: &[(u64, Record)]) -> Reply {
        let entry = |(ms, record): &(u64, Record)| {
            let fields = [FIELD.to_vec(), record.to_vec()].map(Reply::Bytes);
            let id = Reply::Bytes(format!("{ms}-0").into());
            Reply::List(vec![id, Reply::List(fields.into())])
        };
        Reply::List(entries.iter().map(entry).collect())
    }

    fn replies(length: i64, entries: &[(u64, Record)]) -> Vec<Reply> {
        vec![Reply::Number(length), stream(entries)]
    }

    fn words(calls: Option<Vec<Call>>) -> Vec<String> {
        let text = |call: &Call| {
            let words = call.words().map(String::from_utf8_lossy);
            words.collect::<Vec<_>>().join(" ")
        };
        calls
            .into_iter()
            .flatten()
            .map(|call| text(&call))
            .collect()
    }

    #[test]
    fn what_is_there_is_read_once() {
        let mut revocations = Revocations::new(LIFE_MS, ticks());
        let read = [
            "XLEN gd:{layout}:revoked",
            "XRANGE gd:{layout}:revoked (0-0 + COUNT 1000",
        ];
        assert_eq!(words(revocations.poll_calls(at(0))), read);
        assert_eq!(words(revocations.poll_calls(at(0))), [""; 0]);
        assert!(!revocations.has_read());
        let found = [(100_000, A), (50_000, B)];
        let read = revocations.answered(ONE, &replies(2, &found), at(400));
        let news = vec![(A, Unix::from_ms(110_000))];
        let is_whole = true;
        let expected = Read {
            news,
            is_whole,
            foreign: 0,
        };
        assert_eq!(read, Ok(expected), "the other is over");
        assert!(revocations.has_read() && revocations.knows(&A));
        assert_eq!(revocations.next(), at(1_001).mono);
        let calls = words(revocations.poll_calls(at(1_001)));
        assert_eq!(
            calls[1],
            "XRANGE gd:{layout}:revoked (100000-0 + COUNT 1000"
        );
        let read = revocations.answered(ONE, &replies(2, &[]), at(1_002));
        assert_eq!(read, Ok(Read::default()));
    }

    #[test]
    fn what_is_said_is_taken_in_order_and_once() {
        let mut revocations = Revocations::new(LIFE_MS, ticks());
        assert_eq!((revocations.say(A), revocations.say(B)), (1, 2));
        assert_eq!(revocations.say(A), 1, "it is on its way");
        let calls = words(revocations.poll_calls(at(0)));
        let add = |record: char| {
            let record = String::from(record).repeat(24);
            format!("XADD gd:{{layout}}:revoked MINID ~ 30000 * r {record}")
        };
        let expire = "PEXPIRE gd:{layout}:revoked 70000".to_owned();
        assert_eq!(calls[..3], [add('a'), add('b'), expire]);
        revocations.failed(at(0));
        assert_eq!((revocations.taken(), revocations.next()), (0, at(500).mono));
        revocations.poll_calls(at(500)).unwrap();
        // The second was refused, and is said again at once.
        let id = Reply::Bytes(b"100500-0".to_vec());
        let refused = Reply::Error("OOM".into());
        let mut all = vec![id, refused, Reply::Number(1)];
        all.extend(replies(1, &[(100_500, A)]));
        let read = revocations.answered(ONE, &all, at(501)).unwrap();
        assert_eq!(read.news.len(), 1);
        assert_eq!((revocations.taken(), revocations.next()), (1, at(501).mono));
        assert_eq!(revocations.say(A), 1, "Redis has it");
        assert_eq!(revocations.say(B), 2);
    }

    #[test]
    fn what_redis_has_lost_is_noticed() {
        for (server, length) in [(Server(2), 1), (ONE, 0)] {
            let mut revocations = Revocations::new(LIFE_MS, ticks());
            revocations.poll_calls(at(0)).unwrap();
            let found = replies(1, &[(100_000, A)]);
            revocations.answered(ONE, &found, at(0)).unwrap();
            revocations.poll_calls(at(1_000)).unwrap();
            let read = revocations.answered(server, &replies(length, &[]), at(1_000));
            assert_eq!(read, Ok(Read::default()));
            assert!(!revocations.knows(&A) && revocations.has_read());
            let calls = words(revocations.poll_calls(at(1_000)));
            assert_eq!(calls[1], "XRANGE gd:{layout}:revoked (0-0 + COUNT 1000");
            let read = revocations.answered(server, &replies(0, &[]), at(1_001));
            assert!(read.unwrap().is_whole, "whoever knows it says it again");
        }
    }

    #[test]
    fn a_long_stream_is_read_in_pieces() {
        let mut revocations = Revocations::new(LIFE_MS, ticks());
        let all: Vec<(u64, Record)> = (0..READ_MAX as u64 + 1)
            .map(|at| {
                let mut record = A;
                record[..8].copy_from_slice(&at.to_be_bytes());
                (100_000 + at, record)
            })
            .collect();
        revocations.poll_calls(at(0)).unwrap();
        let read = revocations.answered(ONE, &replies(1_001, &all[..READ_MAX]), at(0));
        let read = read.unwrap();
        assert_eq!((read.news.len(), read.is_whole), (READ_MAX, false));
        assert_eq!(
            (revocations.has_read(), revocations.next()),
            (false, at(0).mono)
        );
        revocations.poll_calls(at(0)).unwrap();
        let read = revocations.answered(ONE, &replies(1_001, &all[READ_MAX..]), at(0));
        let read = read.unwrap();
        assert_eq!((read.news.len(), read.is_whole), (1, true));
    }

    #[test]
    fn what_another_program_added_is_passed_over() {
        let mut revocations = Revocations::new(LIFE_MS, ticks());
        let mut found = stream(&[(100_000, A), (100_001, A), (100_002, A), (100_003, B)]);
        let bytes = |bytes: &[u8]| Reply::Bytes(bytes.to_vec());
        if let Reply::List(entries) = &mut found {
            for (at, fields) in [
                Reply::List(vec![bytes(b"x"), bytes(&A)]),
                Reply::List(vec![bytes(b"r"), bytes(b"short")]),
                Reply::Nil,
            ]
            .into_iter()
            .enumerate()
            {
                if let Reply::List(parts) = &mut entries[at] {
                    parts[1] = fields;
                }
            }
        }
        revocations.poll_calls(at(0)).unwrap();
        let read = revocations.answered(ONE, &[Reply::Number(4), found], at(1));
        let expected = Read {
            news: vec![(B, Unix::from_ms(110_003))],
            is_whole: true,
            foreign: 3,
        };
        assert_eq!(read, Ok(expected));
        let calls = words(revocations.poll_calls(at(1_001)));
        assert_eq!(
            calls[1],
            "XRANGE gd:{layout}:revoked (100003-0 + COUNT 1000"
        );
    }

    #[test]
    fn what_another_program_wrote_is_refused() {
        let mut revocations = Revocations::new(LIFE_MS, ticks());
        let mut short = stream(&[(1, A)]);
        if let Reply::List(entries) = &mut short
            && let Reply::List(parts) = &mut entries[0]
        {
            parts[0] = Reply::Bytes(b"now".to_vec());
        }
        for replies in [
            vec![],
            vec![Reply::Number(1)],
            vec![Reply::Number(-1), stream(&[])],
            vec![
                Reply::Error("WRONGTYPE".into()),
                Reply::Error("WRONGTYPE".into()),
            ],
            vec![Reply::Number(1), short],
        ] {
            let due = revocations.next();
            revocations.poll_calls(Now { mono: due, ..at(0) }).unwrap();
            assert!(revocations.answered(ONE, &replies, at(0)).is_err());
            assert!(!revocations.has_read() && revocations.next() == at(500).mono);
        }
    }
}
