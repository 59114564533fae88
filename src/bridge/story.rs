//! What the log says of a node's place in its fleet: each thing once, when it happens.
//!
//! Owns what has been said. Decides nothing.

use crate::fleet::member::Standing;
use crate::time::Mono;

/// What Redis refuses is said once in so many ms.
const REFUSED_MS: u64 = 10_000;

/// What was said last.
#[derive(Debug, Default)]
pub(super) struct Story {
    has_joined: bool,
    is_away: bool,
    lives: u64,
    refused_at: Option<Mono>,
}

/// Something that the log says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Line {
    Joined,
    Renamed,
    Away,
    Back,
}

impl Story {
    /// Says what is new. `nodes` are alive, `stale` partitions are told as they were last known,
    /// and the node has had so many `lives` after its first.
    pub(super) fn tell(&mut self, stands: Standing, nodes: u64, stale: u32, lives: u64) {
        for line in self.news(stands, lives) {
            match line {
                Line::Joined => tracing::info!(nodes, "this node has joined its fleet"),
                Line::Renamed => tracing::warn!(
                    "the fleet took this node for dead and has taken its users offline; it goes on \
                     under a new name and claims them anew"
                ),
                Line::Away => tracing::warn!(
                    stale_partitions = stale,
                    "the fleet's database is out of reach, or a part of it: users are told as they \
                     were last known, and /readyz is 503"
                ),
                Line::Back => tracing::info!(nodes, "the fleet's database is back"),
            }
        }
    }

    /// Redis has refused something: of which key, and in which words.
    pub(super) fn refused(&mut self, text: &str, now: Mono) {
        if self.is_due(now) {
            tracing::warn!(
                "Redis refuses what this node says or asks, and its users may be told as they \
                 were: {text}"
            );
        }
    }

    fn is_due(&mut self, now: Mono) -> bool {
        let is_recent = |at: &Mono| now.ms_since(*at) < REFUSED_MS;
        let is_due = self.refused_at.filter(is_recent).is_none();
        if is_due {
            self.refused_at = Some(now);
        }
        is_due
    }

    fn news(&mut self, stands: Standing, lives: u64) -> Vec<Line> {
        let mut lines = Vec::new();
        if lives > std::mem::replace(&mut self.lives, lives) {
            lines.push(Line::Renamed);
        }
        match stands {
            Standing::Member if !self.has_joined => {
                self.has_joined = true;
                lines.push(Line::Joined);
            }
            Standing::Member if std::mem::take(&mut self.is_away) => lines.push(Line::Back),
            Standing::Doubtful if !std::mem::replace(&mut self.is_away, true) => {
                lines.push(Line::Away);
            }
            _ => {}
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_said_once() {
        use Standing::{Doubtful, Fenced, Joining, Leaving, Member};
        let mut story = Story::default();
        for (stands, lives, expected) in [
            (Joining, 0, &[][..]),
            (Member, 0, &[Line::Joined]),
            (Member, 0, &[]),
            (Doubtful, 0, &[Line::Away]),
            (Doubtful, 0, &[]),
            (Member, 0, &[Line::Back]),
            (Doubtful, 0, &[Line::Away]),
            (Fenced, 1, &[Line::Renamed]),
            (Fenced, 1, &[]),
            (Member, 1, &[Line::Back]),
            (Leaving, 1, &[]),
        ] {
            assert_eq!(story.news(stands, lives), expected, "{stands:?}");
        }
    }

    #[test]
    fn what_redis_refuses_is_said_once_in_ten_seconds() {
        let mut story = Story::default();
        for (ms, is_due) in [
            (0, true),
            (1, false),
            (9_999, false),
            (10_000, true),
            (19_999, false),
            (40_000, true),
        ] {
            assert_eq!(story.is_due(Mono::default().plus_ms(ms)), is_due, "{ms}");
        }
    }
}
