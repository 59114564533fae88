//! What `greendot fleet` reads of the database: layout, leases, the numbers of partitions.

use std::collections::{BTreeMap, BTreeSet};

use super::Options;
use crate::bridge::{Options as Link, Survey};
use crate::fleet::Life;
use crate::fleet::calls::Call;
use crate::fleet::held::{Enrolment, META_FIELD, Meta, RING_MESSAGES, life_field};
use crate::fleet::hooks::{has_ended, parts_of};
use crate::fleet::library;
use crate::fleet::member::Layout;
use crate::fleet::partition::{LANES, LAYOUT, Partition, Partitions, key_slot};
use crate::fleet::replies::Renewed;
use crate::fleet::traffic::Reply;
use crate::key_files;
use crate::redis_url::{Password, Servers};
use crate::trust::Trust;

/// Partitions of one server that are asked about at once.
const PARTITIONS_A_TURN: usize = 128;

/// The field of a partition with the times of its fences.
const FENCES_FIELD: &[u8] = b"\0F";

/// The field of a lane with its newest renewal.
const NEWEST_FIELD: &[u8] = b"\0t";

/// A fleet's database, which is there.
pub(super) struct Database {
    pub(super) survey: Survey,
    /// As the fleet was made.
    pub(super) layout: Layout,
    pub(super) partitions: Partitions,
}

/// A node, as the lanes know it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Node {
    pub(super) life: Life,
    /// Of each lane: how long ago it was renewed, by the lane's clock, in ms. None: it is not in
    /// there, or the lane can not be read.
    pub(super) ages_ms: [Option<u64>; LANES.len()],
    /// It has said so itself.
    pub(super) has_ended: bool,
    pub(super) http: String,
    pub(super) udp: String,
    /// Which library of functions it calls.
    pub(super) library: String,
    pub(super) version: String,
}

/// What a partition's own fields say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Held {
    pub(super) partition: Partition,
    pub(super) server: Option<usize>,
    /// None: it has never been written, or its server can not be asked.
    pub(super) meta: Option<Meta>,
    /// Of the lives that were asked about.
    pub(super) lives: Vec<(Life, Enrolment)>,
    /// Bytes that its key takes in Redis.
    pub(super) bytes: u64,
    /// Users who are here.
    pub(super) users: u64,
    /// Why nothing is known of it.
    pub(super) fault: Option<String>,
}

impl Database {
    /// Errors: the options can not be meant, no server answers, or there is no fleet.
    pub(super) fn open(options: &Options) -> Result<Database, String> {
        let link = link(options)?;
        let mut survey = Survey::open(&link, false)?;
        let layout = layout(&mut survey)?;
        let partitions =
            Partitions::new(layout.partitions).map_err(|fault| format!("{LAYOUT}: {fault}"))?;
        Ok(Database {
            survey,
            layout,
            partitions,
        })
    }

    /// All nodes that any lane knows, by life; and what could not be read.
    pub(super) fn nodes(&mut self) -> (Vec<Node>, Vec<String>) {
        let mut nodes: BTreeMap<Life, Node> = BTreeMap::new();
        let mut faults = Vec::new();
        for (at, lane) in LANES.into_iter().enumerate() {
            match self.lane(lane) {
                Ok(renewed) => note(&mut nodes, at, &renewed),
                Err(why) => faults.push(format!("{lane}: {why}")),
            }
        }
        (nodes.into_values().collect(), faults)
    }

    /// A lane as a renewal would show it, without a renewal.
    fn lane(&mut self, lane: &str) -> Result<Renewed, String> {
        let server = self.survey.server_of(key_slot(lane.as_bytes()));
        let server = server.ok_or("no server has its slot")?;
        let asked = [
            Call::plain([&b"TIME"[..]]),
            Call::plain([&b"HGETALL"[..], lane.as_bytes()]),
        ];
        let replies = self.survey.ask(server, &asked)?;
        let [Reply::List(time), Reply::List(fields)] = &replies[..] else {
            return Err(odd(&replies));
        };
        let now_ms = ms_of(time).ok_or("TIME is no time")?;
        let fields: Vec<&[u8]> = fields.iter().filter_map(bytes).collect();
        let (pairs, _) = fields.as_chunks::<2>();
        // The form of a renewal's answer: its own clock, and until when nobody is taken for dead.
        let newest = pairs.iter().find(|[name, _]| *name == NEWEST_FIELD);
        let amnesty = newest
            .and_then(|[_, value]| value.get(6..12))
            .unwrap_or(&[0; 6]);
        let now = &now_ms.to_be_bytes()[2..];
        let head = [&b"r"[..], now, amnesty].concat();
        let lives = pairs.iter().filter(|[name, _]| *name != NEWEST_FIELD);
        let elements: Vec<&[u8]> = std::iter::once(&head[..])
            .chain(lives.flatten().copied())
            .collect();
        Renewed::parse(&elements).map_err(|fault| fault.to_string())
    }

    /// The libraries of functions that any primary has loaded, in order. A primary that does not
    /// say has none.
    pub(super) fn libraries(&mut self) -> Vec<String> {
        let pattern = format!("{}*", library::PREFIX);
        let words = [
            &b"FUNCTION"[..],
            b"LIST",
            b"LIBRARYNAME",
            pattern.as_bytes(),
        ];
        let asked = [Call::plain(words)];
        let mut names = BTreeSet::new();
        for server in 0..self.survey.servers().len() {
            let replies = self.survey.ask(server, &asked);
            if let Some(Reply::List(libraries)) = replies.unwrap_or_default().first() {
                names.extend(libraries.iter().filter_map(library_name));
            }
        }
        names.into_iter().collect()
    }

    /// What all partitions say of themselves and of those lives, in order. `weighs`: with the bytes
    /// that each takes.
    pub(super) fn held(&mut self, lives: &[Life], weighs: bool) -> Vec<Held> {
        let all: Vec<Partition> = self.partitions.all().collect();
        let mut by_server: BTreeMap<Option<usize>, Vec<Partition>> = BTreeMap::new();
        for partition in all {
            let server = self.survey.server_of(self.partitions.slot(partition));
            by_server.entry(server).or_default().push(partition);
        }
        let mut held = Vec::new();
        for (server, partitions) in by_server {
            for some in partitions.chunks(PARTITIONS_A_TURN) {
                held.extend(self.held_of(server, some, lives, weighs));
            }
        }
        held.sort_by_key(|held| held.partition);
        held
    }

    fn held_of(
        &mut self,
        server: Option<usize>,
        partitions: &[Partition],
        lives: &[Life],
        weighs: bool,
    ) -> Vec<Held> {
        let lives_fields: Vec<[u8; 6]> = lives.iter().map(|life| life_field(*life)).collect();
        let mut calls = Vec::new();
        for partition in partitions {
            let hot = self.partitions.hot_key(*partition);
            let hot = hot.as_bytes();
            let words = [&b"HMGET"[..], hot, META_FIELD, FENCES_FIELD].into_iter();
            let fields = lives_fields.iter().map(|field| &field[..]);
            calls.push(Call::plain(words.chain(fields)));
            calls.push(Call::plain([&b"HLEN"[..], hot]));
            calls.push(match weighs {
                true => Call::plain([&b"MEMORY"[..], b"USAGE", hot]),
                false => Call::plain([&b"TIME"[..]]),
            });
        }
        let replies = match server {
            Some(server) => self.survey.ask(server, &calls),
            None => Err("no server has its slot".to_owned()),
        };
        let fault = replies.as_ref().err().cloned();
        let replies = replies.unwrap_or_default();
        let (chunks, _) = replies.as_chunks::<3>();
        let read = |(at, partition): (usize, &Partition)| {
            let nothing = Held {
                partition: *partition,
                server,
                meta: None,
                lives: Vec::new(),
                bytes: 0,
                users: 0,
                fault: fault.clone(),
            };
            chunks.get(at).map_or(nothing.clone(), |replies| {
                read_held(nothing, lives, replies)
            })
        };
        partitions.iter().enumerate().map(read).collect()
    }
}

/// What is said of answers that no key of a fleet gives: Redis' own words, if it has any.
pub(super) fn odd(replies: &[Reply]) -> String {
    let refused = replies.iter().find_map(|reply| match reply {
        Reply::Error(text) => Some(text.escape_debug().to_string()),
        _ => None,
    });
    refused.unwrap_or_else(|| {
        "it holds what no node has written; does another program write to this database?".to_owned()
    })
}

/// What an element of `FUNCTION LIST` is called.
fn library_name(listed: &Reply) -> Option<String> {
    let Reply::List(fields) = listed else {
        return None;
    };
    let (pairs, _) = fields.as_chunks::<2>();
    let named = pairs
        .iter()
        .find(|[name, _]| bytes(name) == Some(&b"library_name"[..]));
    let [_, name] = named?;
    Some(String::from_utf8_lossy(bytes(name)?).into_owned())
}

fn read_held(mut held: Held, lives: &[Life], replies: &[Reply; 3]) -> Held {
    let [Reply::List(fields), Reply::Number(length), weight] = replies else {
        held.fault = Some(odd(replies));
        return held;
    };
    let mut values = fields.iter().map(bytes);
    let meta = values.next().flatten().map(Meta::parse);
    let has_fences = values.next().flatten().is_some();
    match meta.transpose() {
        Ok(meta) => held.meta = meta,
        Err(fault) => held.fault = Some(fault.to_string()),
    }
    for (life, value) in lives.iter().zip(values) {
        match value.map(Enrolment::parse).transpose() {
            Ok(enrolment) => held.lives.extend(enrolment.map(|it| (*life, it))),
            Err(fault) => held.fault = Some(fault.to_string()),
        }
    }
    held.users = users_of(*length as u64, has_fences, &held);
    if let Reply::Number(bytes) = weight {
        held.bytes = *bytes as u64;
    }
    held
}

/// No more are online than there are fields of users, who may be offline and keep a status, or than
/// nodes claim, two of which may claim the same user. All fields that are nobody's are known but
/// those of lives of more than an hour ago.
fn users_of(fields: u64, has_fences: bool, held: &Held) -> u64 {
    let Some(meta) = held.meta else {
        return 0;
    };
    let own = 1 + u64::from(has_fences) + held.lives.len() as u64 + meta.number.min(RING_MESSAGES);
    let claims: u64 = held.lives.iter().map(|(_, it)| u64::from(it.count)).sum();
    fields.saturating_sub(own).min(claims)
}

/// How the database is reached.
///
/// Errors: the URL, or a file that it needs.
pub(super) fn link(options: &Options) -> Result<Link, String> {
    let servers = Servers::parse(&options.cluster).map_err(|why| format!("--cluster {why}"))?;
    if servers.password.is_some() && options.password_file.is_some() {
        let why = "--cluster has a password, and --cluster-password-file is set too; leave one out";
        return Err(why.to_owned());
    }
    let password = options.password_file.as_deref().map(key_files::password);
    let password = password.transpose().map_err(|fault| fault.to_string())?;
    let trust = options.authorities.as_deref().map(Trust::read).transpose();
    Ok(Link {
        servers,
        password: password.map(Password::new),
        trust: trust.map_err(|fault| fault.to_string())?,
    })
}

/// What the fleet was made with.
///
/// Errors: there is none, or it can not be read.
pub(in crate::tools) fn layout(survey: &mut Survey) -> Result<Layout, String> {
    let server = survey.server_of(key_slot(LAYOUT.as_bytes()));
    let server = server.ok_or(format!("no server has the slot of {LAYOUT}"))?;
    let fields = Layout::FIELDS.iter().map(|field| field.as_bytes());
    let words = [&b"HMGET"[..], LAYOUT.as_bytes()].into_iter();
    let replies = survey.ask(server, &[Call::plain(words.chain(fields))])?;
    let Some(Reply::List(values)) = replies.first() else {
        return Err(format!("{LAYOUT}: {}", odd(&replies)));
    };
    let numbers: Option<Vec<u32>> = values
        .iter()
        .map(|value| std::str::from_utf8(bytes(value)?).ok()?.parse().ok())
        .collect();
    let numbers = numbers.and_then(|numbers| <[u32; 4]>::try_from(numbers).ok());
    let [partitions, buckets, offline_after_ms, format] = numbers.ok_or(
        "there is no fleet in this database: no node has joined it yet, or it has been emptied",
    )?;
    if format != Layout::FORMAT {
        return Err(format!(
            "the fleet keeps format {format}, and this greendot reads {}; take the version of its \
             nodes",
            Layout::FORMAT
        ));
    }
    Ok(Layout {
        partitions,
        buckets,
        offline_after_ms,
        format,
    })
}

fn note(nodes: &mut BTreeMap<Life, Node>, lane: usize, renewed: &Renewed) {
    for lease in &renewed.lives {
        let (info, _) = parts_of(&lease.info);
        let mut words = info.splitn(4, ' ').map(str::to_owned);
        let mut word = || words.next().unwrap_or_default();
        let node = nodes.entry(lease.life).or_insert_with(|| Node {
            life: lease.life,
            ages_ms: [None; LANES.len()],
            has_ended: false,
            http: word(),
            udp: word(),
            library: word(),
            version: word(),
        });
        // As nodes do: what is yet to come was dated by a clock that was set back since.
        node.ages_ms[lane] = Some(renewed.now.ms_apart(lease.renewed_at));
        node.has_ended |= has_ended(&lease.info);
    }
}

impl Node {
    /// Whether its lease holds, as far as is known: others take it for dead when it has run out in
    /// two lanes of three. Who has ended lets it run out.
    pub(super) fn is_alive(&self, lease_ms: u64) -> bool {
        let mut ages = self.ages_ms.iter().flatten();
        !self.has_ended && ages.any(|age_ms| *age_ms <= lease_ms)
    }
}

/// Unix ms, of the answer to TIME.
pub(in crate::tools) fn ms_of(time: &[Reply]) -> Option<u64> {
    let number = |at: usize| -> Option<u64> {
        std::str::from_utf8(bytes(time.get(at)?)?)
            .ok()?
            .parse()
            .ok()
    };
    Some(number(0)? * 1_000 + number(1)? / 1_000)
}

pub(super) fn bytes(reply: &Reply) -> Option<&[u8]> {
    match reply {
        Reply::Bytes(bytes) => Some(bytes),
        _ => None,
    }
}
