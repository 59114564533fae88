//! Mail from other shards, and what is done when some of it was lost.
//!
//! Owns the pass over the published states that stands in for lost mail.

use super::{CONNS_PER_CALL, Resync};
use crate::engine::Engine;
use crate::engine::mail::{Decided, EditOutcome, Mail};
use crate::metrics::Counter;
use crate::planted::{self, Planted};
use crate::presence::Transition;
use crate::slot::Slot;
use crate::time::{Now, Unix};
use crate::wire::User;

impl Engine {
    /// Mail from another shard.
    pub fn handle_mail(&mut self, mail: Mail, now: Now) {
        self.counters.add(Counter::MailReceived, 1);
        let decided_at = match &mail {
            Mail::Transitions(decided) => Some(decided.at),
            _ => None,
        };
        self.horizon.mail_read(decided_at, now);
        match mail {
            Mail::Transitions(decided) => {
                let Decided { at, transitions } = &*decided;
                for transition in transitions {
                    self.tell(*transition, *at);
                }
            }
            Mail::Look(slots) => {
                for slot in slots.iter() {
                    self.look_own(*slot, now);
                }
            }
            Mail::Edit(edit) => {
                let outcome = self.apply_edit(&edit, now);
                let (shard, conn) = edit.asker;
                self.posts.letter(shard, Mail::Edited { conn, outcome });
            }
            Mail::Answered(answered) => self.take_answers(&answered),
            Mail::Reask { .. } if planted::is(Planted::ReaskIgnored) => {}
            Mail::Reask {
                node,
                why,
                found_at,
            } => self.begin_reask(node, why, found_at),
            Mail::Edited { conn, outcome } => self.finish_edit(conn, outcome, now),
        }
    }

    /// Mail that the addressee's full mailbox did not take and that somebody waits for.
    pub fn handle_bounced(&mut self, mail: Mail, now: Now) {
        if let Mail::Edit(edit) = mail {
            self.finish_edit(edit.asker.1, EditOutcome::Busy, now);
        }
    }

    /// This shard's mailbox overflowed: reads the published states anew instead of the mail that
    /// was lost.
    pub fn handle_resync(&mut self, now: Now) {
        self.counters.add(Counter::Resyncs, 1);
        self.counters.add(Counter::LimitMailbox, 1);
        let floor = self.horizon.mail_lost();
        match &mut self.upkeep.resync {
            // Begun anew it would not end before mail stops overflowing.
            Some(under_way) => {
                under_way.again = Some(under_way.again.map_or(floor, |other| other.min(floor)))
            }
            None => self.begin_resync(floor, now),
        }
    }

    fn begin_resync(&mut self, floor: Unix, now: Now) {
        self.upkeep.resync = Some(Resync::new(floor));
        // Answers may have been among what was lost.
        self.reask_rest(now);
    }

    pub(super) fn resync_slice(&mut self, now: Now) {
        let Some(mut resync) = self.upkeep.resync else {
            return;
        };
        if let Some(end) = resync.name {
            self.resync_names(end, &mut resync, now);
        } else {
            let end = self
                .presence
                .users()
                .min(resync.slot.saturating_add(CONNS_PER_CALL));
            for slot in (resync.slot..end).map(Slot::new) {
                let told = !planted::is(Planted::DeafResync);
                if told && self.presence.changed_since(slot, resync.floor) {
                    let status = self.presence.state(slot, now).status;
                    self.tell(
                        Transition {
                            slot,
                            status,
                            first: false,
                        },
                        now.mono,
                    );
                }
            }
            resync.slot = end;
        }
        let done = resync.name.is_none() && resync.slot >= self.presence.users();
        match resync.again.filter(|_| done) {
            Some(floor) => self.begin_resync(floor, now),
            None => self.upkeep.resync = (!done).then_some(resync),
        }
        if self.upkeep.resync.is_none() {
            self.horizon.resync_ended();
            self.resync_done();
        }
    }

    /// Names that have got a slot since: the first transition that would have said so may be lost.
    fn resync_names(&mut self, end: usize, resync: &mut Resync, now: Now) {
        let mut found = Vec::new();
        let presence = &self.presence;
        resync.name = self
            .conns
            .watches
            .names_below(end, CONNS_PER_CALL as usize, |name, _| {
                let slot = User::parse(name.as_bytes())
                    .ok()
                    .and_then(|user| presence.lookup(user));
                // A slot of which a mirror knows nothing says less than the name, which may have
                // been answered for.
                found.extend(slot.filter(|slot| presence.state(*slot, now).is_known()));
            });
        for slot in found {
            let status = self.presence.state(slot, now).status;
            self.tell(
                Transition {
                    slot,
                    status,
                    first: true,
                },
                now.mono,
            );
        }
    }
}
