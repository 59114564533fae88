//! Finds the slots whose freshness differs from what is published, and publishes the difference.
//!
//! Owns one shard's cursor over its chunks. Only a slot's owner runs this for it, so published
//! cells and online bits have one writer. Never reads a clock, never touches a connection. Cost:
//! eight bytes and one bit for each slot of a chunk in which somebody is online or something was
//! stamped; nothing but a flag for the others. Where somebody's status has changed, eight bytes
//! more for each who is online in the chunk.
//!
//! Every race heals: whatever crosses a sweep is still there for the next one, because a chunk with
//! a transition is looked at once more.

use std::sync::atomic::Ordering;

use super::Presence;
use super::flapping::{Allowed, Flapping};
use super::fresh::{Bounds, Comparison, WORD_SLOTS};
use super::mass_silence::MassSilenceRule;
use super::online::{CHUNK_WORDS, LOOK, STATUSES, chunk_of};
use crate::planted::{self, Planted};
use crate::slot::{CHUNK_SLOTS, Slot};
use crate::status::Status;
use crate::store::cells::{Published, Stamp, StampCell, StampFlags};
use crate::store::write_back::{PUBLISHED_DIRTY, STAMPS_DIRTY};
use crate::time::{Mono, Now, Unix};

/// Time from one count of who is overdue to the next, in ms.
const COUNT_MS: u64 = 1_000;

/// One transition, decided and already written to `published` by the slot's owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transition {
    pub slot: Slot,
    /// What it has become.
    pub status: Status,
    /// The slot's first ever: watches by name must be turned into watches by slot.
    pub first: bool,
}

/// What a sweep must know beside the stamps.
#[derive(Clone, Copy, Debug)]
pub struct SweepContext {
    /// The turn's moment.
    pub now: Now,
    /// Silence after which a publisher is offline, in ms.
    pub offline_after_ms: u64,
    /// After a stall, a step or a restart: nobody may be expired (LEFT still counts).
    pub hold_expiries: bool,
}

/// What a sweep does beside comparing. The default is nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct SweepRules {
    /// Of one user's transitions beyond so many in ten seconds the last is published, once they
    /// are over; 0: all are at once.
    pub flap_transitions_max: u32,
    /// What is done of many who fall silent at once.
    pub mass_silence: MassSilenceRule,
}

/// One shard's sweep over the chunks that it owns.
pub struct Sweep {
    shard: u16,
    shards: u16,
    comparison: Comparison,
    /// The next word to look at; `None` between two cycles.
    cursor: Option<Cursor>,
    /// Slots read since they were last asked for.
    slots_read: u64,
    mass_silence: MassSilenceRule,
    /// Who is overdue among those that this cycle has swept, if it counts them.
    overdue: u64,
    counts: bool,
    /// When the last cycle that counts began.
    counted_at: Option<Mono>,
    /// Who comes and goes too often, where that is asked.
    flapping: Option<Flapping>,
    /// Users who began to come and go too often, since they were last asked for.
    flaps: u64,
}

#[derive(Clone, Copy, Debug)]
struct Cursor {
    chunk: u32,
    /// Word within the chunk; 0: the chunk has not been asked whether it needs a look.
    word: u32,
    /// Statuses of the chunk are compared too.
    statuses: bool,
}

impl Sweep {
    /// For shard `shard` of `shards`.
    pub fn new(shard: u16, shards: u16) -> Sweep {
        assert!(shard < shards, "shards are numbered from 0");
        Sweep {
            shard,
            shards,
            comparison: Comparison::detect(),
            cursor: None,
            slots_read: 0,
            mass_silence: MassSilenceRule::default(),
            overdue: 0,
            counts: false,
            counted_at: None,
            flapping: None,
            flaps: 0,
        }
    }

    /// The same, with rules.
    pub fn with_rules(self, rules: SweepRules) -> Sweep {
        Sweep {
            mass_silence: rules.mass_silence,
            flapping: Flapping::new(rules.flap_transitions_max),
            ..self
        }
    }

    /// Starts a cycle over all owned chunks (a cycle under way goes on).
    pub fn begin(&mut self) {
        self.cursor.get_or_insert(Cursor {
            chunk: u32::from(self.shard),
            word: 0,
            statuses: false,
        });
    }

    /// Sweeps at most `slots_max` slots (rounded up to 64; a skipped chunk counts as one); appends
    /// at most `transitions_max` transitions, the rest is found by the next slice. True when the
    /// cycle is complete.
    ///
    /// Expiries are held beside `context.hold_expiries` while another shard is stalled or has not
    /// seen a step of the clock (see [`Presence::note_turn`]), and while
    /// [`Presence::hold_expiries_until`] says so.
    pub fn slice(
        &mut self,
        presence: &Presence,
        context: SweepContext,
        slots_max: u32,
        transitions_max: usize,
        out: &mut Vec<Transition>,
    ) -> bool {
        let Some(cursor) = self.cursor.take() else {
            return true;
        };
        let begins = cursor.chunk == u32::from(self.shard) && cursor.word == 0;
        if begins && self.mass_silence.overdue_after_ms > 0 {
            let now = context.now.mono;
            let counted_at = self.counted_at;
            self.counts = counted_at.is_none_or(|at| now.ms_since(at) >= COUNT_MS)
                && !presence.mass_silence.is_excused(now);
            self.overdue = 0;
        }
        let shards = u32::from(self.shards);
        let out_max = out.len().saturating_add(transitions_max);
        let mut pass = Pass::new(self, presence, context, out_max);
        let rest = pass.chunks(cursor, shards, slots_max, out);
        let Pass {
            slots_read,
            overdue,
            flaps,
            ..
        } = pass;
        self.slots_read += slots_read;
        self.overdue += overdue;
        self.flaps += flaps;
        self.cursor = rest;
        let done = self.cursor.is_none();
        if done && self.counts {
            self.counts = false;
            self.counted_at = Some(context.now.mono);
            let online = presence.online();
            presence
                .mass_silence
                .counted(self.shard, self.overdue, online);
        }
        done
    }

    /// Slots read by slices since the last call.
    pub fn take_slots_read(&mut self) -> u64 {
        std::mem::take(&mut self.slots_read)
    }

    /// Users who began to come and go too often, since the last call.
    pub fn take_flaps(&mut self) -> u64 {
        std::mem::take(&mut self.flaps)
    }

    /// Looks at one owned slot now (a beat came while it was offline, or a leave).
    pub fn look(
        &mut self,
        presence: &Presence,
        context: SweepContext,
        slot: Slot,
        out: &mut Vec<Transition>,
    ) {
        debug_assert_eq!(
            slot.owner(self.shards),
            self.shard,
            "only a slot's owner publishes it"
        );
        let mut pass = Pass::new(self, presence, context, usize::MAX);
        pass.decide(slot, out);
        self.flaps += pass.flaps;
    }
}

/// One call's view: the moment, the bounds that follow from it, and where to stop.
struct Pass<'a> {
    presence: &'a Presence,
    comparison: Comparison,
    shard: u16,
    now: Now,
    bounds: Bounds,
    /// The engine's own reason to hold.
    hold: bool,
    hold_mass_ms: u64,
    /// Who is older than these is overdue; None: that is not counted.
    punctual: Option<Bounds>,
    flapping: Option<&'a mut Flapping>,
    /// Length of `out` at which to stop.
    out_max: usize,
    slots_read: u64,
    overdue: u64,
    flaps: u64,
}

impl<'a> Pass<'a> {
    fn new(
        sweep: &'a mut Sweep,
        presence: &'a Presence,
        context: SweepContext,
        out_max: usize,
    ) -> Pass<'a> {
        let rule = sweep.mass_silence;
        // A silence that may be ours, or another shard's, is nobody's.
        let counts = sweep.counts
            && !context.hold_expiries
            && !presence.vigil.must_hold(sweep.shard, context.now);
        Pass {
            presence,
            comparison: sweep.comparison,
            shard: sweep.shard,
            now: context.now,
            bounds: Bounds::new(context.now.unix, context.offline_after_ms),
            hold: context.hold_expiries,
            hold_mass_ms: rule.hold_ms,
            punctual: counts.then(|| Bounds::new(context.now.unix, rule.overdue_after_ms)),
            flapping: sweep.flapping.as_mut(),
            out_max,
            slots_read: 0,
            overdue: 0,
            flaps: 0,
        }
    }

    /// Sweeps chunks from `cursor` on, as far as it may. What is left; None: nothing.
    fn chunks(
        &mut self,
        mut cursor: Cursor,
        shards: u32,
        slots_max: u32,
        out: &mut Vec<Transition>,
    ) -> Option<Cursor> {
        let presence = self.presence;
        let mut budget = i64::from(slots_max);
        while cursor.chunk < presence.users().div_ceil(CHUNK_SLOTS) {
            if budget <= 0 {
                return Some(cursor);
            }
            let chunk = cursor.chunk as usize;
            let asked = cursor.word > 0;
            // Lowered before the stamps are read: a beat that comes later raises it again.
            if !asked {
                cursor.statuses = presence.online.lower(chunk, STATUSES);
            }
            if !asked && !presence.online.lower(chunk, LOOK) && presence.online.count(chunk) == 0 {
                budget -= 1;
                cursor.chunk += shards;
                continue;
            }
            // Asked after that: a slot that was made before the flag was raised is read, or its
            // beat would wait for the next one.
            let words = presence
                .users()
                .saturating_sub(cursor.chunk * CHUNK_SLOTS)
                .min(CHUNK_SLOTS)
                .div_ceil(WORD_SLOTS as u32);
            while cursor.word < words && budget > 0 {
                let word = cursor.chunk * CHUNK_WORDS + cursor.word;
                if !self.word(word, cursor.statuses, out) {
                    // Full in the middle of a word: what is left of it shows when it is read again.
                    // At word 0 the chunk would be asked again, and must say yes.
                    presence.online.raise(chunk, LOOK | STATUSES);
                    return Some(cursor);
                }
                if let Some(punctual) = self.punctual {
                    self.count_overdue(word, punctual);
                }
                cursor.word += 1;
                budget -= WORD_SLOTS as i64;
                self.slots_read += WORD_SLOTS as u64;
            }
            if cursor.word >= words {
                cursor = Cursor {
                    chunk: cursor.chunk + shards,
                    word: 0,
                    statuses: false,
                };
            }
        }
        None
    }

    /// Counts who of 64 slots is online, has said no goodbye, and is not `punctual`.
    fn count_overdue(&mut self, word: u32, punctual: Bounds) {
        let online = self.presence.online.word(word);
        let stamps = self.stamps(word * WORD_SLOTS as u32);
        let late = online & !self.comparison.word(stamps, punctual).fresh;
        if late != 0 {
            let silent = late & self.comparison.word(stamps, Bounds::not_left()).fresh;
            self.overdue += u64::from(silent.count_ones());
        }
    }

    /// The stamps of 64 slots from `first` on.
    #[inline]
    fn stamps(&self, first: u32) -> &'a [StampCell; WORD_SLOTS] {
        self.presence.stamps.cells()[first as usize..]
            .first_chunk()
            .expect("the files grow by whole chunks, and a chunk by whole words")
    }

    /// Whether expiries are held, asked after the stamps were read: a peer that had already stamped
    /// by another clock has said so by now.
    fn holds(&self) -> bool {
        self.hold
            || self.presence.vigil.must_hold(self.shard, self.now)
            || self
                .presence
                .mass_silence
                .holds(self.hold_mass_ms, self.now)
    }

    /// Looks at 64 slots; false if `out` is full and something may be left.
    #[inline]
    fn word(&mut self, word: u32, statuses: bool, out: &mut Vec<Transition>) -> bool {
        let first = word * WORD_SLOTS as u32;
        if planted::is(Planted::PastRewritten) {
            self.rewrite_past(first as usize);
        }
        let stamps = self.stamps(first);
        let found = self.comparison.word(stamps, self.bounds);
        let online = self.presence.online.word(word);
        if found.fresh == online && !found.any_ahead && !statuses {
            return true;
        }
        self.differs(word, statuses, out)
    }

    /// The rare path of `word`: somebody came, went, is ahead of the clock, or may have another
    /// status.
    #[cold]
    fn differs(&mut self, word: u32, statuses: bool, out: &mut Vec<Transition>) -> bool {
        let first = word * WORD_SLOTS as u32;
        // Cells behind the last user's are nobody's, whatever they say.
        let mask = match self.presence.users().saturating_sub(first) {
            users @ 0..64 if !planted::is(Planted::CellsBeyondTrusted) => (1 << users) - 1,
            _ => u64::MAX,
        };
        let stamps = self.stamps(first);
        let found = self.comparison.word(stamps, self.bounds);
        let mut ahead = 0;
        if found.any_ahead {
            for (bit, stamp) in stamps.iter().enumerate() {
                let stamp = stamp.load(Ordering::Relaxed);
                ahead |= u64::from(self.bounds.is_ahead(stamp)) << bit;
            }
        }
        let online = self.presence.online.word(word);
        let mut wanted = found.fresh;
        if online & !wanted != 0 {
            let silent = self.comparison.word(stamps, Bounds::not_left()).fresh;
            let silent = online & !wanted & silent;
            if silent != 0 && self.holds() {
                wanted |= silent;
            }
        }
        let changed = match statuses {
            true => self.changed(first, online),
            false => 0,
        };
        // Whoever is ahead is looked at, online or not.
        let mut differing = ((wanted ^ online) | ahead | changed) & mask;
        if planted::is(Planted::SweepSkipsLastSlot) && word % CHUNK_WORDS == CHUNK_WORDS - 1 {
            differing &= !(1 << 63);
        }
        while differing != 0 {
            if out.len() >= self.out_max {
                return false;
            }
            let slot = Slot::new(first + differing.trailing_zeros());
            differing &= differing - 1;
            self.decide(slot, out);
        }
        true
    }

    /// Who of 64 slots, of those who are online, says another status than is published.
    fn changed(&self, first: u32, online: u64) -> u64 {
        let mut changed = 0;
        let mut left = online;
        while left != 0 {
            let bit = left.trailing_zeros();
            left &= left - 1;
            changed |= u64::from(self.has_changed(Slot::new(first + bit))) << bit;
        }
        changed
    }

    /// Whether a publisher says another status than is published of it.
    fn has_changed(&self, slot: Slot) -> bool {
        let stamp = self.presence.stamps.cell(slot).load(Ordering::Acquire);
        let published = self.presence.published.cell(slot).load(Ordering::Relaxed);
        stamp.shown_status() != published.status()
    }

    /// Whether a stamp ahead of the clock is evidence against the clock, asked after it was read.
    fn believes_ahead(&self) -> bool {
        self.presence.vigil.believes_ahead(self.shard, self.now)
    }

    /// Whether another shard may be stamping by another clock.
    fn unsettled(&self) -> bool {
        self.presence.vigil.others_unsettled(self.shard, self.now)
    }

    /// What a planted bug does: times that the clock has yet to reach are lost.
    fn rewrite_past(&self, first: usize) {
        let now = self.now.unix;
        for cell in &self.presence.stamps.cells()[first..first + WORD_SLOTS] {
            let _ = cell.fetch_update(Ordering::SeqCst, Ordering::Relaxed, |stamp| {
                let ahead = stamp.ms() > now.ms() + super::fresh::AHEAD_MS_MAX;
                ahead.then(|| Stamp::new(now, stamp.sent().min(now), stamp.flags()))
            });
        }
    }

    /// Says in the stamp itself that its silence is being published, so that only another beat
    /// makes it fresh. False: it changed, or seldom for no reason: the next sweep looks again.
    fn expire(&self, slot: Slot, stamp: Stamp) -> bool {
        self.presence
            .stamps
            .cell(slot)
            .compare_exchange_weak(
                stamp,
                stamp.with(StampFlags::EXPIRED),
                Ordering::SeqCst,
                Ordering::Relaxed,
            )
            .is_ok()
    }

    /// Whether a transition of the slot is held, because its user had too many; if so the next
    /// sweep looks again.
    fn flaps(&mut self, slot: Slot) -> bool {
        let Some(flapping) = &mut self.flapping else {
            return false;
        };
        let first = self.presence.published.cell(slot).load(Ordering::Relaxed) == Published::NEVER;
        let Allowed::No { first } = flapping.allows(slot, first, self.now.mono) else {
            return false;
        };
        self.flaps += u64::from(first);
        self.presence.online.raise(chunk_of(slot), LOOK | STATUSES);
        true
    }

    /// Compares one slot once more and publishes what it is, if that is news.
    fn decide(&mut self, slot: Slot, out: &mut Vec<Transition>) {
        if self.presence.forgetting.has(slot) {
            // Whoever stamps it has yet to hear that its user is gone.
            return;
        }
        let stamp = self.presence.stamps.cell(slot).load(Ordering::Acquire);
        let online = self.presence.online.has(slot);
        let ahead = self.bounds.is_ahead(stamp);
        if ahead {
            self.presence.vigil.found_ahead(self.now);
        }
        let believed = (ahead || stamp.has(StampFlags::EXPIRED)) && self.believes_ahead();
        if ahead && online && believed && !self.unsettled() {
            // Its silence began when the clock went back, and does not end when the clock has
            // caught up: only another beat does that. The time stays as it is.
            self.expire(slot, stamp);
        }
        let fresh = self.bounds.is_fresh(stamp) && (!ahead || believed);
        let silent = !fresh && !stamp.has(StampFlags::LEFT);
        if silent && online && (believed || self.holds()) {
            return;
        }
        if silent && ahead && !online {
            // Nobody was told of this one in time. It is not asked for again.
            self.expire(slot, stamp);
        }
        if fresh == online && !(fresh && self.has_changed(slot)) {
            return;
        }
        if self.flaps(slot) {
            return;
        }
        if silent && !self.expire(slot, stamp) {
            // A beat has just come.
            return;
        }
        let status = if fresh {
            stamp.shown_status()
        } else {
            Status::Offline
        };
        let transition = self.presence.publish(slot, status, self.now);
        if !self.presence.is_taken_back(slot) {
            out.push(transition);
        }
    }
}

impl Presence {
    /// Writes a transition: the published cell, then the bit, so that whoever sees the bit sees the
    /// state.
    pub(super) fn publish(&self, slot: Slot, status: Status, now: Now) -> Transition {
        let cell = self.published.cell(slot);
        let previous = cell.load(Ordering::Relaxed);
        // Strictly increasing, whatever the clock does: watchers order the states of a publisher by
        // it.
        let earliest = match previous == Published::NEVER {
            true => self.earliest_since(slot),
            false => previous.since_ms() + 1,
        };
        let since = Unix::from_ms(now.unix.ms().max(earliest));
        cell.store(Published::new(since, status), Ordering::Release);
        self.online.set(slot, status.is_online());
        // A beat that crossed this saw the old bit and told nobody; the next sweep looks once more.
        self.online
            .raise(chunk_of(slot), LOOK | STAMPS_DIRTY | PUBLISHED_DIRTY);
        Transition {
            slot,
            status,
            first: previous == Published::NEVER,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{LeaveOutcome, StoreOptions};
    use super::*;
    use crate::time::Mono;
    use crate::wire::User;

    #[test]
    fn a_clock_set_back_brings_nobody_back() {
        let dir = tempfile::tempdir().unwrap();
        let at = |mono_ms: u64, unix_ms| Now {
            mono: Mono::from_micros(mono_ms * 1_000),
            unix: Unix::from_ms(unix_ms),
        };
        let options = StoreOptions {
            dir: dir.path().to_owned(),
            users_max: 10,
            offline_after_ms: 25_000,
            restart_grace_ms: u64::MAX,
            shards: 1,
            memory: crate::presence::MemoryChoice::Off,
            boot_id: [1; 16],
        };
        let (presence, _) = Presence::open(&options, at(0, 1_000_000)).unwrap();
        let mut sweep = Sweep::new(0, 1);
        let mut swept = |now| {
            let mut out = Vec::new();
            let context = SweepContext {
                now,
                offline_after_ms: 25_000,
                hold_expiries: false,
            };
            sweep.begin();
            assert!(sweep.slice(&presence, context, 4_096, 16, &mut out));
            out.iter()
                .map(|transition| transition.status.is_online())
                .collect::<Vec<_>>()
        };
        let bob = presence.intern(User::parse(b"bob").unwrap()).unwrap();
        let beat = |now: Now| presence.record_beat(bob, now.unix, now);
        beat(at(0, 1_000_000));
        assert_eq!(swept(at(0, 1_000_000)), [true]);
        assert_eq!(swept(at(25_001, 1_025_001)), [false]);
        // Back to when the stamp was fresh, and to long before it.
        assert_eq!(swept(at(25_100, 1_001_000)), [false; 0]);
        assert_eq!(swept(at(25_200, 500_000)), [false; 0]);
        beat(at(25_300, 500_100));
        assert_eq!(swept(at(25_300, 500_100)), [true]);
        assert_eq!(
            presence.record_leave(bob, Unix::from_ms(500_200), at(25_400, 500_200)),
            LeaveOutcome::Left
        );
        assert_eq!(swept(at(25_400, 500_200)), [false]);
    }
}
