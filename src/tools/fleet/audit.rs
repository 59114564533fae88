//! `greendot fleet audit`: what lives have enrolled, against what the fields of users say.
//!
//! Reads every user of every partition, page by page, and changes nothing. Nodes audit themselves
//! twice a minute and mend what differs; what this finds twice in a row they do not.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use serde_json::json;

use super::database::{Database, bytes, odd};
use super::{counted, name_of};
use crate::fleet::Life;
use crate::fleet::calls::Call;
use crate::fleet::held::{Enrolment, Here, META_FIELD};
use crate::fleet::partition::Partition;
use crate::fleet::traffic::Reply;
use crate::time::Clock;

/// Fields of a page: it takes Redis less than a millisecond.
const PAGE_FIELDS: &[u8] = b"500";
/// How often a partition is read that changes while it is.
const READS_MAX: usize = 5;
/// Most pages of one partition: one that takes more is no partition of a fleet.
const PAGES_MAX: usize = 100_000;

/// All fields of a partition, as one reading has found them.
#[derive(Default)]
struct Fields {
    /// Those that are nobody's, rings aside.
    own: BTreeMap<Vec<u8>, Vec<u8>>,
    users: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What is wrong with a partition.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fault {
    /// A life has enrolled more or fewer users than have its claims.
    Differs {
        life: [u8; 4],
        enrolled: u32,
        claims: u32,
    },
    /// Bytes that the library does not write.
    Malformed(String),
    /// It can not be read, or not as it was at one moment.
    Unread(String),
}

/// Prints a line for each thing that differs, and at last the sum; whether nothing does.
pub(super) fn show(
    database: &mut Database,
    as_json: bool,
    clock: &Clock,
    out: &mut dyn Write,
) -> Result<(String, bool), String> {
    let began = clock.now().mono;
    let partitions: Vec<Partition> = database.partitions.all().collect();
    let (mut users, mut differing) = (0, 0_u64);
    for partition in &partitions {
        let (count, faults) = audit(database, *partition);
        users += count as u64;
        differing += u64::from(!faults.is_empty());
        for fault in faults {
            let line = line(*partition, &fault, as_json);
            // It may take long, so what is found is shown at once.
            if let Err(error) = writeln!(out, "{line}") {
                super::read_enough(&error)?;
                return Ok((String::new(), false));
            }
        }
    }
    let took_ms = clock.now().mono.ms_since(began);
    let sum = match as_json {
        true => json!({
            "partitions": partitions.len(), "users": users, "partitions_that_differ": differing,
            "took_ms": took_ms,
        })
        .to_string(),
        false => format!(
            "{} of {} differ, {} read in {:.1} s",
            differing,
            counted(partitions.len() as u64, "partition"),
            counted(users, "user"),
            took_ms as f64 / 1e3
        ),
    };
    Ok((format!("{sum}\n"), differing == 0))
}

fn line(partition: Partition, fault: &Fault, as_json: bool) -> String {
    let number = partition.index();
    if as_json {
        let told = match fault {
            Fault::Differs {
                life,
                enrolled,
                claims,
            } => json!({
                "partition": number, "node": name_of(Life(*life)), "enrolled": enrolled,
                "claims": claims,
            }),
            Fault::Malformed(what) => json!({"partition": number, "malformed": what}),
            Fault::Unread(why) => json!({"partition": number, "unread": why}),
        };
        return told.to_string();
    }
    match fault {
        Fault::Differs {
            life,
            enrolled,
            claims,
        } => format!(
            "partition {number}: node {} has enrolled {}, and {claims} have its claims",
            name_of(Life(*life)),
            counted(u64::from(*enrolled), "user"),
        ),
        Fault::Malformed(what) => format!("partition {number}: {what}"),
        Fault::Unread(why) => format!("partition {number}: {why}"),
    }
}

/// How many users a partition has, and what is wrong with it.
fn audit(database: &mut Database, partition: Partition) -> (usize, Vec<Fault>) {
    for _ in 0..READS_MAX {
        match read(database, partition) {
            Ok(Some(fields)) => return (fields.users.len(), judge(&fields)),
            Ok(None) => {}
            Err(why) => return (0, vec![Fault::Unread(why)]),
        }
    }
    let why = format!("it has changed during each of {READS_MAX} readings; try when less happens");
    (0, vec![Fault::Unread(why)])
}

/// All of it. None: it has changed meanwhile.
fn read(database: &mut Database, partition: Partition) -> Result<Option<Fields>, String> {
    let slot = database.partitions.slot(partition);
    let server = database
        .survey
        .server_of(slot)
        .ok_or("no server has its slot")?;
    let hot = database.partitions.hot_key(partition).into_bytes();
    let mut fields = Fields::default();
    let mut cursor = b"0".to_vec();
    for _ in 0..PAGES_MAX {
        let words = [&b"HSCAN"[..], &hot, &cursor, b"COUNT", PAGE_FIELDS];
        let replies = database.survey.ask(server, &[Call::plain(words)])?;
        let Some(Reply::List(page)) = replies.first() else {
            return Err(odd(&replies));
        };
        let [next, Reply::List(pairs)] = &page[..] else {
            return Err("HSCAN is answered by what is no page".to_owned());
        };
        let (pairs, _) = pairs.as_chunks::<2>();
        for [name, value] in pairs {
            if let (Some(name), Some(value)) = (bytes(name), bytes(value)) {
                fields.take(name, value);
            }
        }
        cursor = bytes(next).unwrap_or(b"0").to_vec();
        if cursor == b"0" {
            break;
        }
    }
    // Each call that changes anything changes one of these.
    let names: Vec<&[u8]> = fields
        .own
        .keys()
        .map(|name| &name[..])
        .chain([META_FIELD])
        .collect();
    let words = [&b"HMGET"[..], &hot]
        .into_iter()
        .chain(names.iter().copied());
    let replies = database.survey.ask(server, &[Call::plain(words)])?;
    let Some(Reply::List(now)) = replies.first() else {
        return Err(odd(&replies));
    };
    let is_same = names
        .iter()
        .zip(now)
        .all(|(name, now)| fields.own.get(*name).map(|had| &had[..]) == bytes(now));
    Ok(is_same.then_some(fields))
}

impl Fields {
    fn take(&mut self, name: &[u8], value: &[u8]) {
        match name {
            [0, b'r', ..] => {}
            [0, ..] => drop(self.own.insert(name.to_vec(), value.to_vec())),
            user => drop(self.users.insert(user.to_vec(), value.to_vec())),
        }
    }
}

fn judge(fields: &Fields) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut claims: BTreeMap<[u8; 4], u32> = BTreeMap::new();
    for (user, value) in &fields.users {
        match Here::parse(value) {
            Ok(here) => here
                .claims
                .iter()
                .for_each(|claim| *claims.entry(claim.life.0).or_default() += 1),
            Err(fault) => {
                let user = String::from_utf8_lossy(user);
                faults.push(Fault::Malformed(format!(
                    "user {}: {fault}",
                    user.escape_debug()
                )));
            }
        }
    }
    let mut enrolled: BTreeMap<[u8; 4], u32> = BTreeMap::new();
    for (name, value) in &fields.own {
        let [0, b'L', life @ ..] = &name[..] else {
            continue;
        };
        match (<[u8; 4]>::try_from(life), Enrolment::parse(value)) {
            (Ok(life), Ok(it)) => drop(enrolled.insert(life, it.count)),
            (_, Err(fault)) => faults.push(Fault::Malformed(fault.to_string())),
            (Err(_), _) => faults.push(Fault::Malformed("a life that is none".to_owned())),
        }
    }
    let lives = claims.keys().chain(enrolled.keys()).copied();
    let lives: BTreeSet<[u8; 4]> = lives.collect();
    for life in lives {
        let count = |of: &BTreeMap<[u8; 4], u32>| of.get(&life).copied().unwrap_or_default();
        let (claims, enrolled) = (count(&claims), count(&enrolled));
        if claims != enrolled {
            faults.push(Fault::Differs {
                life,
                enrolled,
                claims,
            });
        }
    }
    faults.sort();
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::flags::UserFlags;
    use crate::fleet::held::{Claim, Kinds, life_field};
    use crate::fleet::partition::Partitions;
    use crate::time::Unix;

    fn here(lives: &[Life]) -> Vec<u8> {
        let claim = |life: &Life| Claim {
            life: *life,
            kinds: Kinds::STREAM_ONLY,
        };
        let here = Here {
            since: Unix::from_ms(5),
            flags: UserFlags::PLAIN,
            claims: lives.iter().map(claim).collect(),
        };
        here.encode()
    }

    fn enrolled(count: u32) -> Vec<u8> {
        let enrolment = Enrolment {
            is_fenced: false,
            k: 3,
            count,
        };
        enrolment.encode()
    }

    #[test]
    fn each_life_has_enrolled_as_many_as_claim() {
        let [ann, bea, cid] = [*b"ann.", *b"bea.", *b"cid."].map(Life);
        let mut fields = Fields::default();
        fields.take(b"\0m", &[0; 20]);
        fields.take(b"\0r\x07", b"a message");
        fields.take(&life_field(ann), &enrolled(2));
        fields.take(&life_field(bea), &enrolled(1));
        fields.take(b"alice", &here(&[ann, bea]));
        // A page may repeat what another had.
        fields.take(b"alice", &here(&[ann, bea]));
        fields.take(b"bob", &here(&[ann]));
        assert_eq!(judge(&fields), []);
        fields.take(b"carol", &here(&[cid, bea]));
        fields.take(b"dave", b"odd");
        fields.take(b"\0Lx", &enrolled(1));
        let differs = |life: Life, enrolled, claims| Fault::Differs {
            life: life.0,
            enrolled,
            claims,
        };
        let odd = "user dave: the field of a user is malformed; does another program write to this \
                   database?";
        let expected = [
            differs(bea, 1, 2),
            differs(cid, 0, 1),
            Fault::Malformed("a life that is none".into()),
            Fault::Malformed(odd.into()),
        ];
        assert_eq!(judge(&fields), expected);
        let partition = Partitions::new(64).unwrap().all().nth(3).unwrap();
        assert_eq!(
            line(partition, &expected[0], false),
            "partition 3: node 6265612e has enrolled 1 user, and 2 have its claims"
        );
        assert_eq!(
            line(partition, &expected[0], true),
            r#"{"claims":2,"enrolled":1,"node":"6265612e","partition":3}"#
        );
    }
}
