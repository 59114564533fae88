//! What goes wrong: stalls, clocks, crashes, power cuts, shutdowns. And what ends well: the last
//! act of each run.

use fastrand::Rng;
use greendot::engine::turn::Order;
use greendot::slot::Slot;

use crate::model::User;
use crate::store::{CHUNK_BYTES, FILES, Folder, cut_memories, memories, remove_memories};
use crate::world::{Parcel, World, WrittenBack};

/// One in so many steps has a fault.
const FAULT_ONE_IN: u32 = 40;
/// One in so many steps is a start with a clock that nobody has kept.
const BOOT_BEHIND_ONE_IN: u32 = 800;
/// One in so many steps has a power cut while somebody who was erased is on the way out, and while
/// a slot is used again and nothing of its new user is on disk.
const CUT_ONE_IN_LEAVING: u32 = 600;
const CUT_ONE_IN_USED: u32 = 120;
/// Slices of a write-back: users.log, the stamps, what is published, and the maps' headers.
const SLICES: usize = 4;
/// Longest step of the wall clock, in ms.
const STEP_MS_MAX: i64 = 3 * 3_600_000;

impl World {
    /// One step: an action, seldom a fault, and some time.
    pub(crate) fn next_step(&mut self) {
        self.act();
        if self.faults.u32(0..FAULT_ONE_IN) == 0 {
            match self.faults.u8(0..20) {
                0..=5 => self.stall(),
                6..=9 => self.step_clock(),
                10..=11 => self.suspend(),
                12..=13 => self.crash(),
                14 => self.cut_power(),
                15 => self.restart_cleanly(),
                16 => self.run_out_of_descriptors(),
                17 => self.write_back(),
                _ => drop(self.write_slice()),
            }
        }
        if self.forgetful {
            self.disturb_erasures();
        }
        if self.downtime.u32(0..BOOT_BEHIND_ONE_IN) == 0 {
            self.boot_behind();
        }
        let grid = self.rules.sweep_interval_ms;
        let until = match self.workload.u8(0..10) {
            0 | 1 => self.mono,
            2 | 3 => self.mono + self.workload.u64(1..10),
            4..=7 => self.mono + self.workload.u64(10..80),
            _ => (self.mono / grid + 1) * grid,
        };
        self.run_until(until);
        if self.step.is_multiple_of(64) {
            self.presence().check_invariants();
        }
    }

    /// Where users are erased the write-back goes on all the time, now and then slower than slots
    /// get others, and the power may fail at any time of an erasure.
    fn disturb_erasures(&mut self) {
        if self.mono >= self.next_slice_at {
            self.write_slice();
            let pause_ms = match self.erasures.u8(0..3) {
                0 => self.erasures.u64(3_000..9_000),
                _ => self.erasures.u64(100..1_000),
            };
            self.next_slice_at = self.mono + pause_ms;
        }
        let one_in = match (self.used_again, self.mono < self.leaving_until) {
            (true, _) => CUT_ONE_IN_USED,
            (_, true) => CUT_ONE_IN_LEAVING,
            _ => return,
        };
        if self.erasures.u32(0..one_in) == 0 {
            self.cut_power();
        }
    }

    /// The next moment at which sweeps begin: where the shards look at the stamps while others are
    /// still reading their sockets, and where an expiry is decided to the millisecond.
    fn on_grid(&self, mono: u64) -> u64 {
        mono.next_multiple_of(self.rules.sweep_interval_ms)
    }

    /// One shard, some or all of them are not driven for a while; what comes for them waits in
    /// their sockets.
    fn stall(&mut self) {
        let length_ms = match self.faults.u8(0..4) {
            0 => self.faults.u64(50..900),
            _ => self.faults.u64(900..9_000),
        };
        let mut wake = self.mono + length_ms;
        if self.faults.bool() {
            wake = self.on_grid(wake);
        }
        let length_ms = wake - self.mono;
        self.say(|| format!("stall until {wake}"));
        let all = self.faults.bool();
        for at in 0..self.shards.len() {
            if all || self.faults.bool() {
                let shard = &mut self.shards[at];
                shard.stalled_until = shard.stalled_until.max(wake);
            }
        }
        self.disturbed_until(wake);
        if self.shards.iter().all(|shard| shard.stalled_until >= wake) {
            self.forgive(wake, length_ms);
        }
    }

    /// Other threads of the process have taken every descriptor but the reserve of a shard.
    fn run_out_of_descriptors(&mut self) {
        let at = self.faults.usize(0..self.shards.len());
        let until = self.mono + self.faults.u64(10..1_500);
        self.say(|| format!("shard {at} has no descriptors until {until}"));
        self.shards[at].nofile_until = until;
    }

    /// Nothing need be in time before this, and a little later if stamps may be ahead of the clock:
    /// less than a second of that is let be.
    pub(crate) fn disturbed_until(&mut self, mono: u64) {
        let ahead_ms = if self.clock_went_back_at > 0 {
            1_300
        } else {
            0
        };
        self.calm_since = self.calm_since.max(mono + ahead_ms + 1);
    }

    /// Goes on until no shard is stalled.
    fn outlast_stalls(&mut self) {
        let awake = self.shards.iter().map(|shard| shard.stalled_until).max();
        self.run_until(awake.unwrap_or(0).max(self.mono));
    }

    /// The whole process is silent until `wake`: for as long again nobody may be expired.
    fn forgive(&mut self, wake: u64, length_ms: u64) {
        // The silence is counted from the turn that was promised, at most a sweep later.
        let gap_ms = length_ms.saturating_sub(self.rules.sweep_interval_ms + 1);
        if gap_ms > greendot::engine::settings::STALL_MS {
            self.hold_until = self
                .hold_until
                .max(wake + gap_ms.min(self.rules.offline_after_ms));
        }
    }

    /// The wall clock is stepped, by more than what is left to slewing.
    fn step_clock(&mut self) {
        let by_ms = match self.faults.u8(0..3) {
            0 => self.faults.i64(1_001..4_000),
            1 => self.faults.i64(4_000..60_000),
            _ => self.faults.i64(60_000..STEP_MS_MAX),
        };
        let forward = self.faults.bool();
        self.shift_clock(if forward { by_ms } else { -by_ms });
    }

    fn shift_clock(&mut self, by_ms: i64) {
        let before = self.wall();
        self.wall_max = self.wall_max.max(if by_ms < 0 { before } else { 0 });
        self.anchor += by_ms;
        self.jolted_at = self.mono;
        self.say(|| format!("clock stepped by {by_ms}"));
        if by_ms < 0 {
            self.clock_went_back_at = self.mono;
        }
        self.disturbed_until(self.mono + self.rules.sweep_interval_ms);
        if by_ms > 0 {
            self.hold_until = self.hold_until.max(self.mono + self.rules.offline_after_ms);
            for user in &mut self.users {
                user.active_exactly = None;
                user.online_due = None;
            }
        } else {
            for user in &mut self.users {
                user.clock_went_back(self.mono, before);
            }
        }
        for at in 0..self.shards.len() {
            self.wake(at);
        }
    }

    /// The machine sleeps: both clocks go on, nothing else does, and what the network had is lost.
    fn suspend(&mut self) {
        let wake = self.mono + self.faults.u64(500..60_000);
        let wake = self.on_grid(wake);
        let length_ms = wake - self.mono;
        self.mono = wake;
        self.say(|| format!("back from {length_ms} ms of sleep"));
        self.jolted_at = self.mono;
        self.lose_datagrams();
        self.disturbed_until(self.mono);
        self.forgive(self.mono, length_ms);
        self.put_off_devices();
    }

    /// Drops the datagrams that came while nobody was there.
    fn lose_datagrams(&mut self) {
        let mono = self.mono;
        self.parcels
            .retain(|(at, _), parcel| *at > mono || matches!(parcel, Parcel::Mail(..)));
    }

    fn put_off_devices(&mut self) {
        let next = (self.mono / 100 + 1) * 100;
        for device in &mut self.devices {
            device.due = device.due.max(next);
        }
    }

    /// The store is written back, to the end of the cycle under way.
    pub(crate) fn write_back(&mut self) {
        while !self.write_slice() {}
    }

    /// The next slice of a cycle is written back; what is on disk then is what a power cut leaves.
    /// Returns whether the cycle has ended.
    fn write_slice(&mut self) -> bool {
        let now = self.now();
        let mut writer = self.writer.take().expect("the node is up");
        let report = writer.slice(now);
        let report = report.unwrap_or_else(|error| self.fail(format!("write back: {error}")));
        self.writer = Some(writer);
        let step = std::mem::take(&mut self.slices);
        let ended = report.cycle_ms.is_some();
        if ended != (step == SLICES - 1) {
            self.fail(format!("slice {step} of a cycle: {report:?}"));
        }
        self.slices = if ended { 0 } else { step + 1 };
        self.keep_slice(step, report.bytes);
        ended
    }

    /// Of a cycle: users.log, stamps.map, published.map, the maps' headers.
    fn keep_slice(&mut self, step: usize, bytes: u64) {
        let mut written_back = self.written_back.take().expect("since the beginning");
        let (folder, from) = (&written_back.folder, self.folder.path());
        let take = |file| match &self.memory {
            None => folder.take_cells(from, file),
            Some(_) => {
                // Nothing is written there but by the write-back.
                folder.take(from, file);
                0
            }
        };
        let differ = match step {
            0 => {
                folder.take(from, "users.log");
                0
            }
            1 => take("stamps.map"),
            2 => take("published.map"),
            _ => {
                let maps = ["stamps.map", "published.map"];
                maps.iter().for_each(|map| folder.take_header(from, map));
                0
            }
        };
        if bytes < differ * CHUNK_BYTES as u64 {
            self.fail(format!(
                "{bytes} bytes were written back of {differ} chunks in slice {step}"
            ));
        }
        match step {
            1 => {
                (0..self.users.len()).for_each(|user| self.doubt_partings(user));
                written_back.users.clone_from(&self.users);
                written_back.stamped = self.all_slots();
                written_back.stamped_at = self.mono;
                self.used_again = false;
            }
            2 => written_back.published = self.all_slots(),
            3 => written_back.at = self.mono,
            _ => {}
        }
        self.written_back = Some(written_back);
    }

    fn all_slots(&mut self) -> Vec<Option<Slot>> {
        (0..self.names.len()).map(|user| self.slot(user)).collect()
    }

    /// All that the folder has is on disk.
    pub(crate) fn keep_written_back(&mut self) {
        (0..self.users.len()).for_each(|user| self.doubt_partings(user));
        let slots = self.all_slots();
        self.written_back = Some(WrittenBack {
            folder: Folder::copy_of(self.folder.path()),
            users: self.users.clone(),
            stamped_at: self.mono,
            stamped: slots.clone(),
            published: slots,
            at: self.mono,
        });
    }

    /// Ends the process without a word, and loses all connections.
    fn kill(&mut self) {
        for at in 0..self.shards.len() {
            self.collect(at);
        }
        let keys: Vec<u32> = self.conns.keys().copied().collect();
        for key in keys {
            let conn = &self.conns[&key];
            if let Some(user) = conn.user.filter(|_| !conn.by_holder || conn.opening) {
                self.note_vouched(conn.shard, key, user);
            }
            self.client_gone(key);
        }
        self.forget_partings();
        self.conns.clear();
        self.answers.clear();
        self.shards.clear();
        self.writer = None;
        self.presence = None;
        let down_ms = match self.faults.u8(0..3) {
            0 => 0,
            1 => self.faults.u64(1..2_000),
            _ => self.faults.u64(2_000..20_000),
        };
        self.mono = self.on_grid(self.mono + down_ms);
        self.parcels
            .retain(|_, parcel| matches!(parcel, Parcel::Datagram(..)));
        self.lose_datagrams();
        self.put_off_devices();
    }

    fn start_again(&mut self, power_failed: bool) {
        self.erased_at.clear();
        self.users.iter_mut().for_each(User::restarted);
        let shards = shard_count(&mut self.faults);
        self.say(|| format!("start with {shards} shards"));
        if self.downtime.u8(0..4) == 0 {
            self.start_in_vain(shards, power_failed);
        }
        self.boot(shards);
        let slots = self.all_slots();
        // Opening the store has written published.map back, the headers, and nothing else.
        if let Some(written_back) = &mut self.written_back {
            let (folder, from) = (&written_back.folder, self.folder.path());
            match &self.memory {
                None => {
                    folder.take_opening(from);
                    written_back.published = slots;
                }
                Some(_) => FILES.iter().for_each(|file| folder.take(from, file)),
            }
        }
    }

    /// An opening ends as the run before did, before it has said that it was one.
    fn start_in_vain(&mut self, shards: u16, power_fails: bool) {
        let root = self.memory.as_ref().map(|root| root.path().to_owned());
        if root.as_ref().is_some_and(|root| !memories(root).is_empty()) {
            // One that goes on with a memory begins nothing.
            return;
        }
        self.say(|| "an opening is cut short".to_owned());
        let before = Folder::copy_of(self.folder.path());
        let path = self.folder.path().to_owned();
        drop(self.open(&path, shards));
        match &root {
            Some(root) if power_fails => remove_memories(root),
            Some(root) => cut_memories(root),
            None => {}
        }
        self.folder.cut_opening(&before, &mut self.downtime);
    }

    /// kill -9, and a start on the files as they were.
    fn crash(&mut self) {
        self.kill();
        self.start_again(false);
        self.observe();
    }

    /// The power fails: a start on the files as they were last written back, with what the kernel
    /// has written back by itself since.
    fn cut_power(&mut self) {
        let now = self.all_slots();
        self.kill();
        let before = self.written_back.take().expect("since the beginning");
        if self.memory.is_none() || self.boot.is_multiple_of(2) {
            // A memory may be removed without the machine's being started again: nothing else tells
            // the next start that there was one.
            self.boot += 1 << 32;
        }
        let mut random = Rng::with_seed(self.faults.u64(..));
        let (folder, kept) = match &self.memory {
            None => self.folder.cut(&before.folder, &mut random),
            Some(root) => {
                let synced = &before.folder;
                self.folder
                    .cut_with_memory(root.path(), synced, &mut random)
            }
        };
        self.folder = folder;
        let slots = self.folder.slots_of(&self.names);
        let is_kept = |user: usize| slots[user].is_some_and(|slot| kept.stamp(slot));
        self.users = (0..slots.len())
            .map(|user| match slots[user] {
                None => User::new(false),
                slot if is_kept(user) && now[user] == slot => self.users[user].clone(),
                _ if is_kept(user) => User::erased_in_vain(self.mono),
                slot if before.stamped[user] == slot => before.users[user].clone(),
                // It has it since, and its cells were zero.
                _ => User::new(true),
            })
            .collect();
        // Whose cells are as they were before they had them.
        let lacks = |user: usize, then: &[Option<Slot>], is_kept: &dyn Fn(Slot) -> bool| {
            slots[user].is_some_and(|slot| !is_kept(slot) && then[user] != Some(slot))
        };
        let users = 0..slots.len();
        let unstamped: Vec<bool> = (users.clone())
            .map(|user| lacks(user, &before.stamped, &|slot| kept.stamp(slot)))
            .collect();
        let unpublished: Vec<bool> = users
            .map(|user| lacks(user, &before.published, &|slot| kept.published(slot)))
            .collect();
        let went_back = self.clock_went_back_at >= before.at.min(before.stamped_at);
        if went_back {
            // Stamps of the time before: no more than a second ahead of the clock, they are taken
            // for new ones.
            let wall = self.wall().max(self.wall_max);
            for user in &mut self.users {
                user.clock_went_back(self.mono, wall);
            }
        }
        // What is on disk now can not be lost by the next cut.
        self.written_back = Some(WrittenBack {
            folder: Folder::copy_of(self.folder.path()),
            users: self.users.clone(),
            stamped_at: before.stamped_at,
            stamped: slots.clone(),
            published: slots.clone(),
            at: before.at,
        });
        self.left_slots
            .retain(|left| !slots.contains(&Some(Slot::new(*left))));
        self.start_again(true);
        for sub in &mut self.subs {
            sub.floors.clear();
            if went_back {
                // Ids of a time that the store does not remember: from its future now, from its
                // past once the clock is there.
                sub.last_id = None;
            }
        }
        self.check_slots(&slots, &unstamped, &unpublished);
        self.accept_published();
    }

    /// A machine without a clock of its own starts anywhere in the past, and is set right later.
    /// When somebody who was offline was last active is not changed by that. But a goodbye counts
    /// when it is published, after a power cut anew; and a beat that was yet to be published shows
    /// once it is.
    fn boot_behind(&mut self) {
        if self.wall() < self.wall_max + 2_000 {
            // It has been ahead: stamps of then are told as something else until it is there again.
            return;
        }
        let by_ms = match self.downtime.bool() {
            true => self.downtime.i64(10_000..3_600_000),
            false => 400 * 86_400_000,
        };
        let (restarts, wait_ms) = (self.downtime.bool(), 2 * self.rules.offline_after_ms);
        // The store is written back each second.
        self.write_back();
        let before: Vec<_> = (0..self.users.len()).map(|user| self.state(user)).collect();
        self.crash_with_step(-by_ms);
        let words: Vec<_> = self.users.iter().map(|user| user.last_word()).collect();
        self.run_until(self.mono + wait_ms);
        if restarts {
            self.crash();
        }
        let same: Vec<bool> = (self.users.iter().zip(&words))
            .map(|(user, word)| user.last_word() == *word)
            .collect();
        self.crash_with_step(by_ms);
        for user in 0..self.users.len() {
            let (was, is) = (before[user], self.state(user));
            let told_later = is.online || is.last_active == is.since;
            let goodbye = was.last_active == was.since && told_later;
            if same[user] && !was.online && was.last_active != is.last_active && !goodbye {
                self.fail(format!(
                    "a clock that was behind has made {is:?} of user {user}, who was {was:?}"
                ));
            }
        }
    }

    /// kill -9, a step of the clock that nobody sees, and a start.
    fn crash_with_step(&mut self, by_ms: i64) {
        self.kill();
        self.shift_clock(by_ms);
        self.start_again(false);
        self.observe();
    }

    /// SIGTERM, and a start.
    fn restart_cleanly(&mut self) {
        self.shut_down();
        let slots = self.presence().users();
        self.kill();
        if self.downtime.bool() {
            // A bad disk, or a backup of another moment.
            self.folder.harm_unused_cells(slots, &mut self.downtime);
        }
        self.start_again(false);
        // Closing has written everything back, and opening has marked it as open.
        self.keep_written_back();
        self.observe();
    }

    /// Drains all shards: no connection may be left when the time for it is over.
    pub(crate) fn shut_down(&mut self) {
        self.outlast_stalls();
        self.drain = true;
        // Until the next start.
        self.hold_until = u64::MAX / 2;
        self.disturbed_until(self.mono);
        self.order(Order::Drain);
        self.run_until(self.mono + self.settings.drain_ms);
        self.order(Order::Close);
        let s = &self.settings;
        let longest_ms =
            s.write_stall_max_ms + s.request_deadline_ms + s.keep_alive_idle_ms + s.linger_ms + 500;
        self.run_until(self.mono + longest_ms);
        for at in 0..self.shards.len() {
            if self.shards[at].drained != Some(Order::Close) {
                let left: Vec<String> = self.shards[at]
                    .conns
                    .keys()
                    .map(|id| format!("{id:?}"))
                    .collect();
                self.fail(format!(
                    "shard {at} is not drained after {longest_ms} ms: {left:?}"
                ));
            }
        }
        let now = self.now();
        self.presence().check_invariants();
        if let Err(error) = self.presence().close(now) {
            self.fail(format!("close: {error}"));
        }
        let root = self.memory.as_ref().map(|root| root.path());
        let left = root.map_or(0, |root| crate::store::memories(root).len());
        if left > 0 {
            self.fail(format!("{left} memories are left by a close"));
        }
    }

    fn order(&mut self, order: Order) {
        for at in 0..self.shards.len() {
            if self.shards[at].mailbox.order(order) {
                self.wake(at);
            }
        }
    }

    /// The last act: everything heals, and everybody must end up knowing the truth.
    pub(crate) fn converge(&mut self) {
        self.healed = true;
        self.devices.clear();
        self.outlast_stalls();
        let keys: Vec<u32> = self.conns.keys().copied().collect();
        for key in keys {
            if self
                .conns
                .get(&key)
                .is_some_and(|conn| conn.vanished_at.is_some())
            {
                self.hang_up(key, true);
            } else {
                self.read_again(key, usize::MAX);
            }
        }
        for sub in &mut self.subs {
            sub.frozen_until = 0;
        }
        // Late parcels arrive, refused subscribers come back, the silent are found silent.
        let settle_ms = 8_000 + 2 * self.rules.offline_after_ms;
        let end = self.mono + settle_ms;
        while self.mono < end {
            for sub in 0..self.subs.len() {
                self.open_stream(sub);
            }
            self.run_until(self.mono + 500);
        }
        self.run_until(self.mono + 2 * self.rules.sweep_interval_ms);
        self.check_truth();
        self.presence().check_invariants();
        self.shut_down();
        for at in 0..self.shards.len() {
            self.collect(at);
        }
    }
}

/// How many shards a start has.
pub(crate) fn shard_count(faults: &mut Rng) -> u16 {
    [1, 2, 3, 4, 4, 7][faults.usize(0..6)]
}
