//! Streams of the node's figures: what the dashboard shows.
//!
//! Owns who follows them on this shard, and what each is told. A reader that has yet to read what
//! it was told is told nothing more until it has: figures are as of now, and none is missed. Never
//! counts anything itself.

use super::calls::node;
use super::parts::Engine;
use super::settings::NODE_STREAMS_MAX;
use crate::metrics::{Counter, WARNINGS_MAX};
use crate::pages::figures;
use crate::realtime::ConnId;
use crate::time::Now;
use crate::wire::response::CHUNK_FRAME_BYTES;
use crate::wire::sse;

/// Longest event that has the node in words: the outbox takes it beside the figures.
const NODE_BYTES_MAX: usize = 16_384;

/// Who follows the figures.
#[derive(Debug, Default)]
pub(super) struct Followers {
    all: Vec<Follower>,
    /// As many looks at the node have been told.
    looks: u64,
}

#[derive(Clone, Copy, Debug)]
struct Follower {
    id: ConnId,
    /// It is told of the node in words too.
    sees_node: bool,
}

impl Engine {
    /// Whether one more may follow.
    pub(super) fn has_room_for_follower(&mut self) -> bool {
        let (conns, followers) = (&self.conns, &mut self.followers.all);
        followers.retain(|follower| conns.is_stream(follower.id));
        followers.len() < NODE_STREAMS_MAX
    }

    /// A stream has begun that follows the figures: it is told how they have been, and how they
    /// are.
    pub(super) fn begin_to_follow(&mut self, id: ConnId, sees_node: bool, now: Now) {
        let follower = Follower { id, sees_node };
        self.followers.all.push(follower);
        // It watches nobody.
        self.conns.at(id.index).end_snapshot();
        let past = figures::of_the_past(&self.node.board);
        let blocks = self.figures(now);
        self.say_figures(id, "past", &past, now);
        for (name, data) in blocks.iter().filter(|block| follower.is_told(block.0)) {
            self.say_figures(id, name, data, now);
        }
    }

    /// Whoever follows the figures is told those of a look that is new.
    pub(super) fn tell_followers(&mut self, now: Now) {
        if self.followers.all.is_empty() {
            return;
        }
        let looks = self.node.board.figures().looks();
        if looks == self.followers.looks {
            return;
        }
        self.followers.looks = looks;
        let blocks = self.figures(now);
        let followers = std::mem::take(&mut self.followers.all);
        for follower in &followers {
            let Some(conn) = self.conns.get(follower.id) else {
                continue;
            };
            if conn.unsent_bytes() > 0 {
                continue;
            }
            for (name, data) in blocks.iter().filter(|block| follower.is_told(block.0)) {
                self.say_figures(follower.id, name, data, now);
            }
        }
        let conns = &self.conns;
        self.followers.all = followers;
        let all = &mut self.followers.all;
        all.retain(|follower| conns.is_stream(follower.id));
    }

    /// What is told of now, by the names of its events.
    fn figures(&mut self, now: Now) -> Vec<(&'static str, String)> {
        let mut warnings = WARNINGS_MAX;
        let about = loop {
            let about = node::about_json(self, warnings, now);
            if about.len() <= NODE_BYTES_MAX || warnings == 0 {
                break about;
            }
            warnings /= 2;
        };
        let figures = figures::of_now(&self.node.board).map(|figures| ("figures", figures));
        // The node first: its role decides which figures are shown.
        [(NODE, about)].into_iter().chain(figures).collect()
    }

    /// Says it if the outbox has room.
    fn say_figures(&mut self, id: ConnId, name: &str, data: &str, now: Now) {
        if !self.conns.is_stream(id) {
            return;
        }
        let conn = self.conns.at(id.index);
        let bytes = sse::block_bytes(name, data) + CHUNK_FRAME_BYTES;
        if conn.unsent_bytes() + bytes > self.settings.outbox_bytes_max {
            self.counters.add(Counter::LimitOutboxBytes, 1);
            return;
        }
        conn.say(|out| sse::write_block(name, data, out));
        self.counters.add(Counter::EventsFigures, 1);
        self.conns.queue_if_due(id.index, now.mono);
    }
}

/// The event that has the node in words.
const NODE: &str = "node";

impl Follower {
    fn is_told(self, name: &str) -> bool {
        self.sees_node || name != NODE
    }
}
