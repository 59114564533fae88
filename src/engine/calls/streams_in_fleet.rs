//! `GET /v1/streams` at a node of a fleet: its own streams, and then those of all other nodes.
//!
//! Owns the order of such a walk: this node, and the others by their addresses, one after the
//! other. Which nodes there are is the bridge's to know. Each answers for itself alone
//! (`GET /v1/node/streams`), so no question goes round. A node that is silent is named and passed
//! by.

use super::served::{Then, Waits, overloaded};
use super::streams::Listing;
use crate::engine::errand::Asker;
use crate::engine::mail::ShardId;
use crate::engine::parts::Engine;
use crate::engine::upstream::{NodeStreams, Outbound, StreamsAsk};
use crate::realtime::ConnId;
use crate::time::{Mono, Now};
use crate::wire::json::write_str;

/// No other node is asked so long after the page began, in ms: it is told, however few streams it
/// has.
const ASK_MS_MAX: u64 = 2_000;
/// A node that was asked by then has so much longer to answer, in ms, and its answer to come.
const ANSWER_MS_MAX: u64 = 1_500;

const BUSY: &str = "as many nodes are asked for their streams as may be at once; ask again";

/// The part of a page that is other nodes'.
#[derive(Debug)]
pub(in crate::engine) struct Abroad {
    /// The node that was asked last, and where in its streams the walk goes on; without that, at
    /// the next node. None: at the first.
    at: Option<(Box<str>, Option<Box<str>>)>,
    /// Nodes that have not answered.
    silent: Vec<Box<str>>,
    /// None is asked later.
    until: Mono,
    is_over: bool,
    has_moved: bool,
}

impl Abroad {
    /// From a place on; of no bytes, from the first node. None: they are no place's.
    pub(super) fn new(place: &[u8], now: Mono) -> Option<Abroad> {
        let at = match place {
            [] => None,
            place => {
                let (node, inner) = std::str::from_utf8(place).ok()?.split_once('\0')?;
                Some((node.into(), (!inner.is_empty()).then(|| inner.into())))
            }
        };
        Some(Abroad {
            at,
            silent: Vec::new(),
            until: now.plus_ms(ASK_MS_MAX),
            is_over: false,
            has_moved: false,
        })
    }

    /// Where it goes on.
    pub(super) fn place(&self) -> Vec<u8> {
        let Some((node, inner)) = &self.at else {
            return Vec::new();
        };
        let inner = inner.as_deref().unwrap_or_default();
        [node.as_bytes(), b"\0", inner.as_bytes()].concat()
    }

    /// When the request that waits for it is given up.
    pub(super) fn given_up(&self) -> Mono {
        self.until.plus_ms(ANSWER_MS_MAX)
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    pub(super) fn has_moved(&self) -> bool {
        self.has_moved
    }

    /// Writes who was silent.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"silent\":[");
        for (at, node) in self.silent.iter().enumerate() {
            out.extend_from_slice(if at > 0 { b"," } else { b"" });
            write_str(node, out);
        }
        out.push(b']');
    }
}

impl Engine {
    pub(super) fn ask_abroad(&mut self, ask: StreamsAsk) {
        if let Some(upstream) = &mut self.upstream {
            upstream.outbound.push_back(Outbound::Streams(ask));
        }
    }

    /// Another node has told of its streams, or has not.
    pub(in crate::engine) fn streams_abroad(&mut self, id: ConnId, told: &NodeStreams, now: Now) {
        let shard = self.node.shard;
        let Some(Waits {
            then: Then::Streams(listing),
            ..
        }) = self.conns.waits(id)
        else {
            return;
        };
        listing.take_abroad(told);
        let is_busy = matches!(told, NodeStreams::Busy);
        if let Some(ask) = listing.ask(shard, id, now).filter(|_| !is_busy) {
            return self.ask_abroad(ask);
        }
        let Some(mut pending) = self.conns.unpark(id) else {
            return;
        };
        let answer = match pending.waits.take().map(|waits| waits.then) {
            Some(Then::Streams(listing)) if !is_busy || listing.has_moved() => {
                self.listed_streams(*listing)
            }
            _ => overloaded(BUSY),
        };
        self.answer(id, pending, answer, now);
    }
}

impl Listing {
    /// What the next node is asked, if the page goes on there.
    pub(super) fn ask(&self, shard: ShardId, conn: ConnId, now: Now) -> Option<StreamsAsk> {
        let abroad = self.abroad.as_ref()?;
        if abroad.is_over || self.left == 0 || now.mono >= abroad.until {
            return None;
        }
        Some(StreamsAsk {
            asker: Asker {
                shard,
                conn,
                until: abroad.given_up(),
            },
            at: abroad.at.clone(),
            user: self.user.clone(),
            limit: self.left,
        })
    }

    fn take_abroad(&mut self, told: &NodeStreams) {
        let Some(abroad) = &mut self.abroad else {
            return;
        };
        match told {
            NodeStreams::Over => abroad.is_over = true,
            NodeStreams::Busy => return,
            NodeStreams::Silent { node } => {
                abroad.silent.push(node.clone());
                abroad.at = Some((node.clone(), None));
            }
            NodeStreams::Told {
                node,
                rows,
                found,
                next,
            } => {
                if !self.rows.is_empty() && !rows.is_empty() {
                    self.rows.push(b',');
                }
                self.rows.extend_from_slice(rows);
                self.left = self.left.saturating_sub(*found);
                abroad.at = Some((node.clone(), next.clone()));
            }
        }
        abroad.has_moved = true;
    }
}
