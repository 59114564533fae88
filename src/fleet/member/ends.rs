//! Who was logged out or erased while a node did not hear it.
//!
//! A message says so once. Whoever has missed messages, or had its life taken, reads who was sent
//! away lately, before it reads or claims anybody: else the claims of those whose streams are open
//! here would bring them back.

use std::collections::{BTreeMap, VecDeque};

use super::claims::{FLYING, TAKEN};
use super::{Ending, Local, Member};
use crate::fleet::calls::Call;
use crate::fleet::held::{Ended, end_tag};
use crate::fleet::message::What;
use crate::fleet::partition::ends_key;
use crate::fleet::traffic::Reply;
use crate::planted::{self, Planted};
use crate::slot::Slot;
use crate::time::{Now, Unix};
use crate::wire::User;

/// Who was sent away is asked for again so long after it was refused, in ms.
const AGAIN_MS: u64 = 1_000;

/// What a node knows of who was sent away from one partition.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// They are to be read, before anybody is read or claimed.
    pub(super) are_due: bool,
    /// Those that were heard of or read, the last ones: none ends a stream twice.
    known: VecDeque<Ended>,
}

impl Ends {
    /// False: it is known.
    pub(super) fn add(&mut self, ended: Ended) -> bool {
        let is_new = !self.known.contains(&ended);
        if is_new {
            if self.known.len() >= Ended::MAX {
                self.known.pop_front();
            }
            self.known.push_back(ended);
        }
        is_new
    }
}

impl<L: Local> Member<L> {
    /// A record was heard. False: its log-out or erasure was read before, and has been done.
    pub(super) fn note_end(&mut self, at: usize, since: Unix, user: User<'_>, what: What) -> bool {
        let is_erased = what == What::Erased;
        match what {
            What::LoggedOut { .. } | What::StreamsEnd(_) | What::Erased => {
                let tag = end_tag(user);
                self.parts[at].ends.add(Ended {
                    since,
                    tag,
                    is_erased,
                })
            }
            _ => true,
        }
    }

    /// A look asks who was sent away too if messages may have been missed.
    pub(super) fn ends_call(&self, at: usize) -> Call {
        Call::plain([&b"GET"[..], ends_key(&self.hot_key(at)).as_bytes()])
    }

    /// An answer to [`Member::ends_call`].
    pub(super) fn ends_read(&mut self, at: usize, reply: Option<&Reply>, now: Now) {
        let all = match reply {
            Some(Reply::Bytes(bytes)) if !planted::is(Planted::EndsUnread) => {
                Ended::parse_all(bytes).map_err(|malformed| malformed.to_string())
            }
            Some(Reply::Bytes(_) | Reply::Nil) | None => return,
            Some(Reply::Error(text)) if text.starts_with("WRONGTYPE") => Err(text.to_string()),
            // It may be there and is not to be read now, so nobody is claimed before it is.
            Some(reply) => {
                let part = &mut self.parts[at];
                part.ends.are_due = true;
                part.look_at = now.mono.plus_ms(AGAIN_MS);
                return self.answered_oddly(at, std::slice::from_ref(reply), now);
            }
        };
        let all = match all {
            Ok(all) => all,
            // Whoever has put it there: the next log-out of the partition mends it.
            Err(why) => {
                self.counts.malformed += 1;
                let key = ends_key(&self.hot_key(at));
                return self.tell_refusal(&key, &why);
            }
        };
        let up_ms = now.mono.ms_since(self.started_at);
        let mut missed = BTreeMap::new();
        for ended in all {
            // Nobody had a stream here before this node was there.
            let is_before = self.age_ms(at, ended.since, now) > up_ms;
            if self.parts[at].ends.add(ended) && !is_before {
                missed.insert(ended.tag, ended);
            }
        }
        if missed.is_empty() {
            return;
        }
        let slots = self.local.slots();
        if slots > 0 {
            self.reach(slots - 1);
        }
        for slot in self.claims.of(at as u16, 0, usize::MAX).0 {
            let user = self.user_of(slot);
            let tag = user.map(|user| end_tag(user.user()));
            if let Some(ended) = tag.and_then(|tag| missed.get(&tag)) {
                self.end(at, slot, *ended, now);
            }
        }
    }

    /// A user whose message was missed.
    fn end(&mut self, at: usize, index: u32, ended: Ended, now: Now) {
        let age_ms = self.age_ms(at, ended.since, now);
        let (slot, said_here) = (Slot::new(index), now.unix.minus_ms(age_ms));
        if let Some(user) = self.user_of(index) {
            self.local.overruled(user.user(), now.mono.minus_ms(age_ms));
        }
        if !self.claims.has(index, FLYING) {
            self.set_kinds(index, 0);
        }
        match ended.is_erased {
            false => self.local.ended(slot, Ending::LoggedOut(said_here), now),
            true => {
                self.local.ended(slot, Ending::Erased(said_here), now);
                self.local.erased(slot, ended.since, now);
            }
        }
        // Whether it has come back elsewhere is read.
        self.claims.set(index, TAKEN);
        self.want(index);
        self.evaluate(index, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_known() {
        let ended = |ms: u64| Ended {
            since: Unix::from_ms(ms),
            tag: [0; 6],
            is_erased: false,
        };
        let mut ends = Ends::default();
        assert!((0..Ended::MAX as u64).all(|ms| ends.add(ended(ms))));
        assert!(!ends.add(ended(0)) && !ends.add(ended(255)));
        assert!(ends.add(ended(256)));
        assert!(ends.add(ended(0)), "it had to make room");
    }
}
