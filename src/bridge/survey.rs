//! An operator's look at a fleet's database: each primary is asked, and nothing is changed.
//!
//! Owns the connections, and who has which slots. Blocks, on a runtime of its own; knows nothing of
//! what is asked. Nothing is dialled again: a look is over soon.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::Options;
use super::about::{self, Kind, View};
use super::dial::{Dialled, Useless, dial};
use super::resp::Frame;
use super::scout::view_words;
use super::wire::{Incoming, Outgoing};
use crate::fleet::calls::Call;
use crate::fleet::partition::CLUSTER_SLOTS;
use crate::fleet::traffic::Reply;
use crate::redis_url::Address;

/// How long the answers to one question may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Most servers that are looked at to find the primaries.
const CANDIDATES_MAX: usize = 1_024;

/// The servers of a database.
pub struct Survey {
    runtime: Runtime,
    servers: Vec<Surveyed>,
    /// None: it is no cluster.
    cluster: Option<Cluster>,
}

/// A primary.
pub struct Surveyed {
    /// Where it is.
    pub address: Address,
    /// First and last slot of each stretch that it has.
    pub slots: Vec<(u16, u16)>,
    /// Why it can not be asked.
    pub fault: Option<String>,
    line: Option<(Incoming, Outgoing)>,
}

/// What a cluster says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cluster {
    /// It serves, as whoever was asked believes.
    pub is_ok: bool,
    /// Slots that somebody has.
    pub slots: u32,
}

impl Survey {
    /// Finds the primaries of a database and connects to each. `loads`: they get the library, as a
    /// node gives it to them.
    ///
    /// Errors: none is found; the text says what each server that was asked has said.
    pub fn open(options: &Options, loads: bool) -> Result<Survey, String> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(super::dial::LOOKUPS_MAX)
            .build()
            .map_err(|error| format!("no runtime: {error}"))?;
        let (servers, cluster) = runtime.block_on(find(options, loads))?;
        Ok(Survey {
            runtime,
            servers,
            cluster,
        })
    }

    /// The primaries, in order of their slots.
    pub fn servers(&self) -> &[Surveyed] {
        &self.servers
    }

    /// None: the database is no cluster.
    pub fn cluster(&self) -> Option<Cluster> {
        self.cluster
    }

    /// Which of the servers has a slot. None: nobody.
    pub fn server_of(&self, slot: u16) -> Option<usize> {
        let has = |&(first, last): &(u16, u16)| (first..=last).contains(&slot);
        self.servers
            .iter()
            .position(|server| server.slots.iter().any(has))
    }

    /// Asks one of the servers several things at once; the answers in their order. An error of
    /// Redis is an answer.
    ///
    /// Errors: it does not answer, in words that name it. From then on it is not asked again.
    pub fn ask(&mut self, server: usize, calls: &[Call]) -> Result<Vec<Reply>, String> {
        let Surveyed {
            address,
            fault,
            line,
            ..
        } = &mut self.servers[server];
        let Some((incoming, outgoing)) = line else {
            let why = fault.as_deref().unwrap_or("it is not connected");
            return Err(format!("{address}: {why}"));
        };
        for call in calls {
            outgoing.say(call.words());
        }
        let asked = exchange(incoming, outgoing, calls.len());
        let answered = self
            .runtime
            .block_on(async { timeout(PATIENCE, asked).await });
        let why = match answered {
            Ok(Ok(replies)) => return Ok(replies),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        *line = None;
        let told = format!("{address}: {why}");
        *fault = Some(why);
        Err(told)
    }
}

async fn exchange(
    incoming: &mut Incoming,
    outgoing: &mut Outgoing,
    count: usize,
) -> std::io::Result<Vec<Reply>> {
    while !outgoing.is_done() {
        outgoing.advance().await?;
    }
    let mut replies = Vec::with_capacity(count);
    while replies.len() < count {
        if let Frame::Reply(reply) = incoming.next().await? {
            replies.push(reply);
        }
    }
    Ok(replies)
}

type Found = (Vec<Surveyed>, Option<Cluster>);

async fn find(options: &Options, loads: bool) -> Result<Found, String> {
    let mut queue: VecDeque<Address> = options.servers.addresses.iter().cloned().collect();
    let mut seen = Vec::new();
    let mut faults = Vec::new();
    while let Some(address) = queue.pop_front() {
        if seen.contains(&address) || seen.len() >= CANDIDATES_MAX {
            continue;
        }
        seen.push(address.clone());
        match dial(options, &address, loads).await {
            Ok(dialled) if dialled.kind == Kind::Single => {
                let server = Surveyed {
                    address,
                    slots: vec![(0, CLUSTER_SLOTS - 1)],
                    fault: None,
                    line: Some((dialled.incoming, dialled.outgoing)),
                };
                return Ok((vec![server], None));
            }
            Ok(dialled) => match view(dialled, &address).await {
                Ok((view, line)) => return Ok(primaries(options, view, address, line, loads).await),
                Err(why) => faults.push(format!("{address}: {why}")),
            },
            Err(Useless::Replica(_, others)) => queue.extend(others),
            Err(Useless::Fault(why)) => faults.push(format!("{address}: {why}")),
        }
    }
    Err(match &faults[..] {
        [] => "there are replicas only; name a primary as well".to_owned(),
        faults => faults.join("; "),
    })
}

type Line = (Incoming, Outgoing);

async fn view(dialled: Dialled, address: &Address) -> Result<(View, Line), String> {
    let (mut incoming, mut outgoing) = (dialled.incoming, dialled.outgoing);
    for words in view_words() {
        outgoing.say(words.into_iter());
    }
    let asked = timeout(PATIENCE, exchange(&mut incoming, &mut outgoing, 2));
    let replies = match asked.await {
        Ok(replies) => replies.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("no answer within {} s", PATIENCE.as_secs())),
    };
    for reply in &replies {
        if let Reply::Error(error) = reply {
            return Err(super::dial::refused(error));
        }
    }
    let view = about::view_of(&replies[0], &replies[1], address);
    let view = view.ok_or("CLUSTER does not say who has which slots")?;
    if view.ranges.is_empty() {
        return Err("the cluster has no slots; make it with redis-cli --cluster create".to_owned());
    }
    Ok((view, (incoming, outgoing)))
}

/// Whoever has slots; `asked` has been dialled already.
async fn primaries(
    options: &Options,
    view: View,
    asked: Address,
    line: Line,
    loads: bool,
) -> Found {
    let mut line = Some(line);
    let mut slots: BTreeMap<Address, Vec<(u16, u16)>> = BTreeMap::new();
    for (first, last, address) in view.ranges {
        slots.entry(address).or_default().push((first, last));
    }
    let width = |&(first, last): &(u16, u16)| u32::from(last - first) + 1;
    let cluster = Cluster {
        is_ok: view.is_ok,
        slots: slots.values().flatten().map(width).sum(),
    };
    let mut servers = Vec::new();
    for (address, slots) in slots {
        let dialled = match line.take_if(|_| address == asked) {
            Some(line) => Ok(line),
            None => dial(options, &address, loads)
                .await
                .map(|dialled| (dialled.incoming, dialled.outgoing)),
        };
        let (line, fault) = match dialled {
            Ok(line) => (Some(line), None),
            Err(Useless::Fault(why)) => (None, Some(why)),
            Err(Useless::Replica(..)) => (
                None,
                Some("it says that it is a replica; a failover goes on".into()),
            ),
        };
        servers.push(Surveyed {
            address,
            slots,
            fault,
            line,
        });
    }
    servers.sort_by_key(|server| server.slots[0]);
    (servers, Some(cluster))
}
