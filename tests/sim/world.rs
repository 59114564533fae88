//! The world: several engines of one node, one virtual clock, and what happens between them and
//! their clients.
//!
//! Owns time. Never sleeps: the clock jumps to the next thing due. A shard's turn is its driver's,
//! over the made-up kernel of `kernel.rs`. What the clients want is in `workload.rs`, what goes
//! wrong in `faults.rs`, what must hold in `checks.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use fastrand::Rng;
use greendot::auth::{Keyring, Revoked};
use greendot::engine::settings::Settings;
use greendot::engine::turn::{Driver, Order};
use greendot::engine::{Engine, EngineParts, Mail};
use greendot::metrics::{Board, Counter};
use greendot::presence::{MemoryChoice, OpenReport, Presence, WriteBack};
use greendot::shard::mailbox::Mailbox;
use greendot::slot::Slot;
use greendot::time::{Mono, Now, Unix};
use greendot::wire::beat::{FleetKey, Keys};

use crate::client::{Conn, Sub, Want};
use crate::farewells::{Ending, Later, Parting, may_end};
use crate::faults::shard_count;
use crate::kernel::{Served, budgets};
use crate::model::{Rules, User};
use crate::store::{self, EPOCH_MS, Folder};

/// Turns at one moment after which an engine is found to spin.
const SPIN_TURNS: u32 = 20_000;
/// Vouching is late by at most so much: a turn that comes with the next sweep, and the turn before.
pub(crate) const VOUCH_SLACK_MS: u64 = 250;

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) steps: u32,
    /// The simulator's own mailbox forgets to raise the flag: a planted bug.
    pub(crate) flagless_mailbox: bool,
    /// Tell what happens.
    pub(crate) log: bool,
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Of everything that the engines said, and when.
    pub(crate) trace: u64,
    /// Sums over all engines, by counter.
    pub(crate) counters: Vec<u64>,
    /// Starts that found an unfinished record at the end of users.log.
    pub(crate) torn_tails: u64,
    /// Slots of users who were erased that somebody else got.
    pub(crate) slots_used_again: u64,
    /// Virtual time, in ms.
    pub(crate) lasted_ms: u64,
}

/// A datagram on its way.
#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    pub(crate) bytes: Vec<u8>,
    /// No server may believe it.
    pub(crate) forged: bool,
    pub(crate) leave: bool,
    pub(crate) sent_at: u64,
    pub(crate) users: Vec<usize>,
}

/// A beat of a stream's holder on its way, which counts on the shard that holds the stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answering {
    /// The connection that asks.
    pub(crate) key: u32,
    pub(crate) user: usize,
    pub(crate) sent_at: u64,
    /// The connection of the stream.
    pub(crate) stream: u32,
    /// Its answer may come yet.
    pub(crate) open: bool,
}

/// Something that beats on its own for its user.
pub(crate) struct Device {
    pub(crate) user: usize,
    /// When next (mono).
    pub(crate) due: u64,
    /// So far its clock is off, in ms.
    pub(crate) off_ms: i64,
    /// Its source port: says which socket it reaches.
    pub(crate) port: usize,
    /// It misses no beat, loses none, and always reaches the same socket.
    pub(crate) faithful: bool,
}

pub(crate) struct Shard {
    /// None during its turn.
    pub(crate) driver: Option<Driver<u32>>,
    pub(crate) mailbox: Mailbox<Mail>,
    pub(crate) datagrams: VecDeque<Datagram>,
    /// Since the last edge.
    pub(crate) datagrams_came: bool,
    pub(crate) backlog: VecDeque<u32>,
    /// Since the last edge.
    pub(crate) clients_came: bool,
    /// No descriptor is free until then but the reserve, which may be with a client.
    pub(crate) nofile_until: u64,
    pub(crate) on_reserve: Option<u32>,
    pub(crate) conns: BTreeMap<(u32, u32), u32>,
    /// As of the last piece of work.
    pub(crate) served: Served,
    /// It has said so, under this order.
    pub(crate) drained: Option<Order>,
    /// Not driven until then.
    pub(crate) stalled_until: u64,
    /// Driven without a break since then.
    pub(crate) driven_since: u64,
    pub(crate) last_turn: u64,
    pub(crate) wake: u64,
}

/// What is on its way through the network.
pub(crate) enum Parcel {
    Datagram(usize, Datagram),
    Mail(usize, Mail),
}

/// What a power cut leaves: the files, slice by slice, and the model as of then.
pub(crate) struct WrittenBack {
    pub(crate) folder: Folder,
    /// As of stamps.map, and when that was (mono).
    pub(crate) users: Vec<User>,
    pub(crate) stamped_at: u64,
    pub(crate) stamped: Vec<Option<Slot>>,
    /// As of published.map.
    pub(crate) published: Vec<Option<Slot>>,
    /// When the last cycle ended (mono).
    pub(crate) at: u64,
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) step: u32,
    pub(crate) settings: Arc<Settings>,
    pub(crate) rules: Rules,
    pub(crate) network: Rng,
    pub(crate) workload: Rng,
    pub(crate) faults: Rng,
    /// What happens to the files and the clock while the node is down.
    pub(crate) downtime: Rng,
    /// What happens in the middle of erasures.
    pub(crate) erasures: Rng,
    pub(crate) mono: u64,
    /// Wall clock less `mono`.
    pub(crate) anchor: i64,

    pub(crate) folder: Folder,
    /// The store's cells are in a memory in this folder while it runs.
    pub(crate) memory: Option<tempfile::TempDir>,
    pub(crate) written_back: Option<WrittenBack>,
    pub(crate) presence: Option<Arc<Presence>>,
    pub(crate) writer: Option<WriteBack>,
    /// Slices of the cycle under way.
    pub(crate) slices: usize,
    pub(crate) shards: Vec<Shard>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) key: FleetKey,
    pub(crate) boot: u64,
    pub(crate) drain: bool,

    pub(crate) parcels: BTreeMap<(u64, u64), Parcel>,
    pub(crate) parcels_sent: u64,
    pub(crate) conns: BTreeMap<u32, Conn>,
    pub(crate) conns_made: u32,
    pub(crate) subs: Vec<Sub>,
    pub(crate) devices: Vec<Device>,
    pub(crate) answers: Vec<Answering>,
    pub(crate) patient: bool,
    /// Users are erased in this run, and there is room for all who come.
    pub(crate) forgetful: bool,
    /// Who has been erased.
    pub(crate) erased: BTreeSet<usize>,
    /// What the wall clock showed then, since the last start.
    pub(crate) erased_at: BTreeMap<usize, u64>,
    /// The last of them may be on the way out until then (mono).
    pub(crate) leaving_until: u64,
    /// When the next slice of the write-back is due where users are erased (mono).
    pub(crate) next_slice_at: u64,
    /// Since stamps were last written back somebody has got a slot that was another's.
    pub(crate) used_again: bool,
    /// The last boot, suspend or step of the clock (mono).
    pub(crate) jolted_at: u64,
    pub(crate) sent: Vec<Datagram>,
    pub(crate) partings: Vec<Parting>,
    pub(crate) later: Vec<Later>,
    pub(crate) endings: Vec<Ending>,

    pub(crate) names: Vec<String>,
    pub(crate) slots: Vec<Option<Slot>>,
    pub(crate) users: Vec<User>,
    /// What is published of each user, each with the moment since which it has been so (mono).
    pub(crate) published: Vec<Vec<(u64, bool, Option<u64>)>>,
    /// Nobody may be expired before (mono).
    pub(crate) hold_until: u64,
    /// Nothing has disturbed the process since (mono); may lie ahead.
    pub(crate) calm_since: u64,
    /// The wall clock went back: until then (mono) goodbyes are of doubtful age.
    pub(crate) clock_went_back_at: u64,
    /// The latest that the wall clock had shown when it was set back.
    pub(crate) wall_max: u64,
    pub(crate) healed: bool,

    pub(crate) trace: u64,
    pub(crate) counters: Vec<u64>,
    pub(crate) reads: Vec<crate::sse::Read>,
    pub(crate) torn_tails: u64,
    /// Slots of users who were erased, until somebody else has one.
    pub(crate) left_slots: BTreeSet<u32>,
    pub(crate) slots_used_again: u64,
}

/// After a start so long is waited for who was sent away: for the rest of a drain, a start of half
/// a second, `retry_ms` and half as much again, a quarter more for those who jitter that, and five
/// seconds.
pub(crate) fn hold_ms(settings: &Settings) -> u64 {
    let away_ms = settings.drain_ms.min(60_000) + 500 + settings.retry_ms * 3 / 2;
    (away_ms * 5 / 4 + 5_000).max(settings.offline_after_ms)
}

/// Every third run erases users: the others are as they would be without.
pub(crate) fn is_forgetful(seed: u64) -> bool {
    seed.is_multiple_of(3)
}

/// Every third run has the cells in a memory, and every other of those that erase users.
fn has_memory(seed: u64) -> bool {
    seed % 3 == 2 || seed % 6 == 3
}

impl World {
    pub(crate) fn new(plan: Plan) -> World {
        let stream =
            |salt: u64| Rng::with_seed(plan.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ salt);
        let mut faults = stream(3);
        let shards = shard_count(&mut faults);
        let tiny = Settings::tiny();
        // A quarter of the runs leaves time for a stall of one shard to be noticed by the others,
        // and for its beats to be read late.
        let patient = faults.u8(0..4) == 0;
        let settings = Settings {
            sweep_slots_per_turn_max: [256, 1_024, 1_024, 4_096][faults.usize(0..4)],
            offline_after_ms: if patient {
                6_000
            } else {
                tiny.offline_after_ms
            },
            beat_skew_max_ms: if patient {
                12_000
            } else {
                tiny.beat_skew_max_ms
            },
            // Every other run serves its longer requests in slices of their own.
            work_per_slice_max: [tiny.work_per_slice_max, 400][(plan.seed & 1) as usize],
            ..tiny
        };
        assert_eq!(settings.check(), Ok(()));
        let rules = Rules {
            beat_interval_ms: settings.beat_interval_ms,
            offline_after_ms: settings.offline_after_ms,
            sweep_interval_ms: settings.sweep_interval_ms,
            beat_skew_max_ms: settings.beat_skew_max_ms,
            hold_ms: hold_ms(&settings),
        };
        let key = FleetKey::new([7; 32]);
        let keys = Keys::parse(&key.to_hex()).expect("one key");
        let names = store::users();
        let known = store::known_users();
        let users: Vec<User> = (0..names.len())
            .map(|user| User::new(user < known))
            .collect();
        let plan_seed = plan.seed;
        let mut world = World {
            plan,
            step: 0,
            settings: Arc::new(settings),
            rules,
            network: stream(1),
            workload: stream(2),
            faults,
            downtime: stream(4),
            erasures: stream(5),
            mono: 1_000,
            anchor: EPOCH_MS as i64 - 1_000,
            folder: Folder::new(),
            memory: has_memory(plan_seed).then(store::memory_root).flatten(),
            written_back: None,
            presence: None,
            writer: None,
            slices: 0,
            shards: Vec::new(),
            keys: Arc::new(keys),
            key,
            boot: 2,
            drain: false,
            parcels: BTreeMap::new(),
            parcels_sent: 0,
            conns: BTreeMap::new(),
            conns_made: 0,
            subs: Vec::new(),
            devices: Vec::new(),
            answers: Vec::new(),
            patient,
            forgetful: is_forgetful(plan.seed),
            erased: BTreeSet::new(),
            erased_at: BTreeMap::new(),
            leaving_until: 0,
            next_slice_at: 0,
            used_again: false,
            jolted_at: 0,
            sent: Vec::new(),
            partings: Vec::new(),
            later: Vec::new(),
            endings: Vec::new(),
            slots: vec![None; names.len()],
            published: vec![vec![(0, false, None)]; names.len()],
            names,
            users,
            hold_until: 0,
            calm_since: 0,
            clock_went_back_at: 0,
            wall_max: 0,
            healed: false,
            trace: 0xcbf2_9ce4_8422_2325,
            counters: vec![0; COUNTERS.len()],
            reads: Vec::new(),
            torn_tails: 0,
            left_slots: BTreeSet::new(),
            slots_used_again: 0,
        };
        world.boot(shards);
        world.populate();
        // The template was closed, so all of it is on disk.
        world.keep_written_back();
        world
    }

    pub(crate) fn now(&self) -> Now {
        Now {
            mono: Mono::from_micros(self.mono * 1_000),
            unix: Unix::from_ms(self.wall()),
        }
    }

    pub(crate) fn wall(&self) -> u64 {
        (self.mono as i64 + self.anchor).max(0) as u64
    }

    /// Opens the store that is in a folder.
    pub(crate) fn open(&mut self, folder: &Path, shards: u16) -> (Presence, OpenReport) {
        let now = self.now();
        let memory = self.memory.as_ref().map(|root| root.path().to_owned());
        let memory = memory.map_or(MemoryChoice::Off, MemoryChoice::In);
        let mut options = store::options(folder, shards, self.boot_id(), memory, &self.settings);
        // A slot that is free again is not always ready for the next.
        options.users_max += if self.forgetful { 1_000 } else { 0 };
        let opened = Presence::open(&options, now);
        let opened = opened.unwrap_or_else(|fault| self.fail(format!("open: {fault}")));
        self.torn_tails += u64::from(opened.1.torn_bytes > 0);
        opened
    }

    /// Opens the store as it is and starts the shards.
    pub(crate) fn boot(&mut self, shards: u16) {
        self.boot += 1;
        let now = self.now();
        let path = self.folder.path().to_owned();
        let (presence, report) = self.open(&path, shards);
        let presence = Arc::new(presence);
        self.writer = Some(presence.write_back(u64::MAX));
        self.slices = 0;
        let board = Arc::new(Board::new(usize::from(shards)));
        for shard in 0..shards {
            let parts = EngineParts {
                settings: self.settings.clone().into(),
                shard,
                shards,
                role: greendot::engine::Role::All,
                operators: greendot::engine::Operators::default(),
                presence: presence.clone(),
                heard: presence.clone(),
                keyrings: Keyring::of_fleet(Keys::clone(&self.keys)).shared(),
                revoked: Arc::new(Revoked::new(1_000, 86_400_000)),
                secret: [self.boot as u8; 32],
                seed: self.plan.seed ^ self.boot << 8 ^ u64::from(shard),
                mirrors: 0,
                has_webhooks: false,
                homes: greendot::engine::Homes::default(),
                name: None,
                board: board.clone(),
                now,
            };
            self.shards.push(Shard {
                driver: Some(Driver::new(parts, budgets(&self.settings))),
                mailbox: Mailbox::new(self.settings.mailbox_max, self.settings.mailbox_bytes_max),
                datagrams: VecDeque::new(),
                datagrams_came: false,
                backlog: VecDeque::new(),
                clients_came: false,
                nofile_until: 0,
                on_reserve: None,
                conns: BTreeMap::new(),
                served: Served::default(),
                drained: None,
                stalled_until: 0,
                driven_since: self.mono,
                last_turn: self.mono,
                wake: self.mono,
            });
        }
        // Where nobody was online nobody is waited for.
        self.hold_until = self.mono
            + match presence.online() {
                0 => self.rules.offline_after_ms,
                _ => self.rules.hold_ms,
            };
        self.presence = Some(presence);
        self.slots = vec![None; self.names.len()];
        if let Some((outage_ms, _)) = report.outage {
            self.check_outage(outage_ms);
        }
        self.disturbed_until(self.mono);
        self.drain = false;
        self.jolted_at = self.mono;
    }

    /// Power cuts give the machine another one; crashes do not.
    fn boot_id(&self) -> u64 {
        self.boot >> 32
    }

    pub(crate) fn presence(&self) -> &Arc<Presence> {
        self.presence.as_ref().expect("the node is up")
    }

    /// Ends the run: names what is needed to see it again.
    pub(crate) fn fail(&self, why: String) -> ! {
        panic!(
            "{why}\n  at step {} ({} ms, {} shards); replay with\n  SIM_SEED=0x{:x} SIM_STEPS={} \
             cargo test --test sim",
            self.step,
            self.mono,
            self.shards.len(),
            self.plan.seed,
            self.plan.steps
        )
    }

    /// Tells what happens, if it was asked for with SIM_LOG=1.
    pub(crate) fn say(&self, what: impl FnOnce() -> String) {
        if self.plan.log {
            println!("{:>7} ms, step {}: {}", self.mono, self.step, what());
        }
    }

    /// Adds to the trace (FNV-1a).
    pub(crate) fn note(&mut self, bytes: &[u8]) {
        for byte in self.mono.to_le_bytes().iter().chain(bytes) {
            self.trace = (self.trace ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Sends something through the network, to arrive after `delay_ms`.
    pub(crate) fn send(&mut self, parcel: Parcel, delay_ms: u64) {
        self.parcels_sent += 1;
        self.parcels
            .insert((self.mono + delay_ms, self.parcels_sent), parcel);
    }

    /// Lets everything happen that is due up to `until`, and makes it that time.
    pub(crate) fn run_until(&mut self, until: u64) {
        let mut spins = 0;
        loop {
            let mut next = until;
            for shard in &self.shards {
                next = next.min(shard.wake.max(shard.stalled_until));
            }
            if let Some(((at, _), _)) = self.parcels.first_key_value() {
                next = next.min(*at);
            }
            for device in &self.devices {
                next = next.min(device.due);
            }
            let next = next.max(self.mono);
            if next > self.mono {
                spins = 0;
                self.mono = next;
            }
            self.fire_devices();
            while let Some(entry) = self
                .parcels
                .first_entry()
                .filter(|entry| entry.key().0 <= self.mono)
            {
                let parcel = entry.remove();
                self.deliver(parcel);
            }
            let mut turned = false;
            for shard in 0..self.shards.len() {
                let due = &self.shards[shard];
                if due.wake.max(due.stalled_until) <= self.mono {
                    self.turn(shard);
                    turned = true;
                }
            }
            spins += 1;
            if spins > SPIN_TURNS {
                let mut busy = Vec::new();
                for at in 0..self.shards.len() {
                    if self.shards[at].wake <= self.mono {
                        let (edges, due) = (self.has_edges(at), self.engine(at).poll_timeout());
                        busy.push(format!("shard {at}: edges {edges}, deadline {due:?}"));
                    }
                }
                self.fail(format!("turns without end at one moment: {busy:?}"));
            }
            if !turned && self.mono >= until {
                break;
            }
        }
        self.check_views();
        self.check_endings();
    }

    fn deliver(&mut self, parcel: Parcel) {
        match parcel {
            Parcel::Datagram(shard, datagram) => {
                // A socket's queue has an end too.
                let shard = shard % self.shards.len();
                if self.shards[shard].datagrams.len() < 256 {
                    self.shards[shard].datagrams.push_back(datagram);
                }
                self.shards[shard].datagrams_came = true;
                self.wake(shard);
            }
            Parcel::Mail(shard, mail) => self.deliver_late(shard, mail),
        }
    }

    pub(crate) fn wake(&mut self, shard: usize) {
        self.shards[shard].wake = 0;
    }

    pub(crate) fn engine(&mut self, at: usize) -> &mut Engine {
        let driver = self.shards[at].driver.as_mut();
        driver.expect("not in its turn").engine()
    }

    /// Mail that the network has held up reaches a mailbox. What bounces goes back to who asked.
    fn deliver_late(&mut self, to: usize, mail: Mail) {
        let mut bounced = Vec::new();
        let mailbox = &self.shards[to].mailbox;
        if mailbox.post(&mut vec![mail], &mut bounced).wake {
            self.wake(to);
        }
        for mail in bounced {
            let asker = match &mail {
                Mail::Edit(edit) => edit.asker.0,
                Mail::Errand(errand) => errand.asker().shard,
                Mail::StreamBeats { from, .. } => *from,
                other => unreachable!("{other:?} does not bounce"),
            };
            let (asker, now) = (usize::from(asker), self.now());
            self.engine(asker).handle_bounced(mail, now);
            self.wake(asker);
        }
    }

    fn turn(&mut self, at: usize) {
        let gap = self.mono - self.shards[at].last_turn;
        let shard = &mut self.shards[at];
        if gap > VOUCH_SLACK_MS / 2 {
            shard.driven_since = self.mono;
        }
        shard.last_turn = self.mono;
        let sleep_micros = self.drive(at);
        self.observe();
        self.shards[at].wake = if sleep_micros == 0 || self.has_edges(at) {
            0
        } else {
            self.mono + sleep_micros.div_ceil(1_000)
        };
    }

    /// Takes note of what the requests that were just answered did.
    pub(crate) fn settle_served(&mut self, key: u32, before: Served, after: Served) {
        let mut beats = after.beats - before.beats;
        let mut leaves = after.leaves - before.leaves;
        let mut forgotten = after.forgotten - before.forgotten;
        let hello = after.hellos > before.hellos;
        // One that was parked is the last.
        let parked = after.parked - before.parked;
        let served = after.answered - before.answered + parked;
        for left in (0..served).rev() {
            let conn = self.conns.get_mut(&key).expect("answered on this conn");
            let Some(want) = conn.unserved.pop_front() else {
                continue;
            };
            if left < parked {
                self.settle_parked(key, want);
                continue;
            }
            match want {
                Want::Beat(users) if beats > 0 => {
                    // If there was no room for one of them the others' beats counted.
                    beats -= 1;
                    for user in users {
                        self.beat(user, u64::MAX);
                    }
                }
                Want::Leave(users) if leaves > 0 => {
                    leaves -= 1;
                    for user in users {
                        self.leave(user, u64::MAX);
                    }
                }
                Want::Forget { user, .. } if forgotten > 0 => {
                    forgotten -= 1;
                    self.forgotten(user);
                }
                Want::Stream if hello => {
                    conn.live_since = Some(self.mono);
                    conn.leaving = may_end(&self.partings, conn.user);
                    (conn.pinged_at, conn.heard_at) = (self.mono, self.mono);
                    if let Some(user) = conn.user {
                        self.beat(user, u64::MAX);
                    }
                }
                _ => {}
            }
        }
    }

    /// A request has been carried out, and its answer waits for other shards.
    fn settle_parked(&mut self, key: u32, want: Want) {
        match want {
            Want::Beat(users) => users.iter().for_each(|user| self.beat(*user, u64::MAX)),
            Want::Leave(users) => users.iter().for_each(|user| self.leave(*user, u64::MAX)),
            Want::Stream => {
                let conn = self.conns.get_mut(&key).expect("parked on this conn");
                conn.opening = true;
                if let Some(user) = conn.user {
                    self.beat(user, u64::MAX);
                }
            }
            _ => {}
        }
    }

    /// A stream whose request was parked says hello.
    pub(crate) fn opened(&mut self, key: u32) {
        let mono = self.mono;
        let conn = self.conns.get_mut(&key).expect("open");
        if std::mem::take(&mut conn.opening) {
            conn.live_since = Some(mono);
            conn.leaving = may_end(&self.partings, conn.user);
            (conn.pinged_at, conn.heard_at) = (mono, mono);
            if let Some(user) = conn.user {
                let wall = self.wall();
                self.users[user].vouched(None, mono, wall);
            }
        }
    }

    /// The engine offers bytes to a socket: how many does it take?
    pub(crate) fn offered(&mut self, key: u32, bytes: &[u8]) -> usize {
        self.note(bytes);
        self.check_offer(key, bytes);
        let conn = self.conns.get_mut(&key).expect("open");
        if conn.ended {
            self.fail(format!("bytes for conn {key} after its end"));
        }
        let mut n = bytes.len().min(conn.room);
        // A fresh socket's buffer takes a refusal.
        let is_fresh = conn.id.is_none();
        if !is_fresh && !self.healed && n > 0 && self.network.u8(0..8) == 0 {
            n = self.network.usize(0..=n);
        }
        if conn.room != usize::MAX {
            conn.room -= n;
        }
        conn.blocked = n < bytes.len();
        conn.taken_bytes += n as u64;
        conn.unread.extend_from_slice(&bytes[..n]);
        if conn.vanished_at.is_some() {
            conn.owes = true;
        } else if conn.room == usize::MAX {
            self.client_reads(key);
        }
        n
    }

    /// The server's end of a conn is gone.
    pub(crate) fn gone(&mut self, key: u32) {
        let conn = self.conns.get_mut(&key).expect("open");
        if let Some(id) = conn.id.take() {
            let shard = conn.shard;
            if let Some(user) = conn.user.filter(|_| !conn.by_holder || conn.opening) {
                self.note_vouched(shard, key, user);
            }
            self.shards[shard].conns.remove(&(id.index, id.generation));
        }
        let conn = self.conns.get_mut(&key).expect("open");
        conn.live_since = None;
        conn.opening = false;
        if let Some(user) = conn.user {
            self.doubt_partings(user);
        }
        self.ended(key);
    }

    /// Adds an engine's counters to the run's.
    pub(crate) fn collect(&mut self, at: usize) {
        let driver = self.shards[at].driver.as_mut();
        let counters = driver.expect("not in its turn").engine().counters();
        for (sum, counter) in self.counters.iter_mut().zip(COUNTERS) {
            *sum += counters.counter(*counter);
        }
    }

    pub(crate) fn outcome(self) -> Outcome {
        Outcome {
            trace: self.trace,
            counters: self.counters,
            torn_tails: self.torn_tails,
            slots_used_again: self.slots_used_again,
            lasted_ms: self.mono,
        }
    }
}

/// The counters that the runs are asked about, by their rows.
pub(crate) const COUNTERS: &[Counter] = &[
    Counter::UsersForgotten,
    Counter::LimitUsersLeaving,
    Counter::LimitConns,
    Counter::LimitHeadBytes,
    Counter::LimitHeaderCount,
    Counter::LimitBodyBytes,
    Counter::LimitBodyDepth,
    Counter::LimitRequestDeadline,
    Counter::LimitKeepAliveIdle,
    Counter::LimitWatchesPerStream,
    Counter::LimitWatchesPerShard,
    Counter::LimitQueryUsers,
    Counter::LimitOutboxBytes,
    Counter::LimitWriteStall,
    Counter::LimitAck,
    Counter::LimitStreamLife,
    Counter::LimitSweepSlotsPerTurn,
    Counter::LimitFlushesPerTurn,
    Counter::LimitMailPerTurn,
    Counter::LimitBeatsPerTurn,
    Counter::LimitMailbox,
    Counter::LimitMailboxBytes,
    Counter::LimitTurnTime,
    Counter::LimitWorkPerSlice,
    Counter::LimitAcceptsPerTurn,
    Counter::LimitReadsPerTurn,
    Counter::LimitReadBytesPerTurn,
    Counter::LimitClosesPerTurn,
    Counter::MailOverflows,
    Counter::LimitFileDescriptors,
    Counter::LimitUsers,
    Counter::DatagramShort,
    Counter::DatagramMagic,
    Counter::DatagramVersion,
    Counter::DatagramKey,
    Counter::DatagramMac,
    Counter::DatagramStale,
    Counter::DatagramEntry,
    Counter::BeatBeforeLeave,
    Counter::LeavesIgnored,
    Counter::LeavesHeld,
    Counter::AnswersParked,
    Counter::LimitLeavesPutOff,
    Counter::ClosedLeft,
    Counter::ClosedBye,
    Counter::EventsBye,
    Counter::Resyncs,
    Counter::Stalls,
    Counter::ClockSteps,
    Counter::ResumesPartial,
    Counter::ResumesFull,
    Counter::MarksCoalesced,
    Counter::EventsPing,
    Counter::EventsGoodbye,
    Counter::EventsOverloaded,
    Counter::BeatsUdp,
    Counter::BeatsHttp,
    Counter::BeatsStream,
    Counter::BeatsHolder,
    Counter::LeavesUdp,
    Counter::LeavesHttp,
    Counter::TransitionsOnline,
    Counter::TransitionsOffline,
    Counter::EventsPresence,
    Counter::EventsSnapshot,
    Counter::StatesDelivered,
    Counter::IdWithheldShard,
    Counter::IdWithheldMail,
    Counter::IdWithheldResync,
    Counter::IdWithheldClockStep,
    Counter::ResumeRefusedUnreadable,
    Counter::ResumeRefusedBeforeStore,
    Counter::ResumeRefusedFuture,
    Counter::ResumeRefusedAmbiguous,
];
