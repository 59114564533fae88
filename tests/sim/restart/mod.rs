//! The restart world: one node that is stopped and started again, and readers who obey `retry:`.
//!
//! Owns one virtual clock, the node's lives, its clients and the claims. Settings are odd, and
//! others after each start; a life ends with a drain, within one, or without; a start is at once,
//! late, or after an outage. What must hold: who obeys is never published offline, whatever the
//! settings; who does not come back is, once the start has waited; after a long outage nobody is
//! online before a sign of life, and a watcher who resumes is told.

mod checks;
mod clients;
mod kernel;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use fastrand::Rng;
use greendot::auth::{Keyring, Revoked};
use greendot::engine::settings::Settings;
use greendot::engine::turn::{Budgets, Driver, Order};
use greendot::engine::{EngineParts, Role};
use greendot::metrics::Board;
use greendot::presence::{Presence, StoreOptions, WriteBack};
use greendot::shard::mailbox::Mailbox;
use greendot::time::{Mono, Now, Unix};
use greendot::wire::beat::{FleetKey, Keys};

use crate::sse::Told;
use crate::store::EPOCH_MS;
use crate::world::{Plan, hold_ms};
use clients::Client;
use kernel::{Conn, Shard};

/// Seeds of a test run.
const SEEDS: u64 = 60;
/// Lives that a run ends.
const ROUNDS: u32 = 3;
/// The watcher watches so many.
const WATCHED: usize = 8;
/// Beyond the drain a stopping node waits so long.
const MARGIN_MS: u64 = 5_000;

pub(crate) fn plan(seed: u64) -> Plan {
    crate::plan(seed)
}

#[test]
fn restart_many_seeds_flip_nobody_who_obeys() {
    let seeds = crate::seeds(SEEDS);
    let plans: Vec<Plan> = seeds.iter().map(|seed| plan(*seed)).collect();
    let outcomes = crate::all_pass(&plans, run, |outcome| outcome.lasted_ms);
    let sum = |of: fn(&Outcome) -> u32| outcomes.iter().map(of).sum::<u32>();
    let seen = [sum(|o| o.drains), sum(|o| o.kills), sum(|o| o.outages)];
    println!("  drains, kills, outages: {seen:?}");
    assert!(seeds.len() < 30 || seen.iter().all(|count| *count > 0));
}

#[test]
fn restart_of_ten_thousand_flips_nobody() {
    let outcome = crate::caught(plan(1), || {
        let mut world = Restarts::new(plan(1), Settings::default(), 10_000);
        world.live(12_000);
        world.drain(u64::MAX);
        world.mono += 700;
        world.boot(Settings::default());
        world.live(27_000);
        world.check_all();
        world.outcome
    });
    assert_eq!(outcome.map(|outcome| outcome.drains), Ok(1));
}

#[derive(Clone, Default, Debug)]
pub(crate) struct Outcome {
    lasted_ms: u64,
    drains: u32,
    kills: u32,
    outages: u32,
}

pub(crate) fn run(plan: Plan) -> Result<Outcome, String> {
    crate::caught(plan, || {
        let mut random = Rng::with_seed(plan.seed ^ 0x5eed);
        let settings = odd(&mut random);
        let publishers = random.usize(20..150);
        let mut world = Restarts::new(plan, settings, publishers);
        world.live(4_000);
        for _ in 0..ROUNDS {
            world.round();
        }
        world.outcome.lasted_ms = world.mono;
        world.outcome
    })
}

/// Settings that are checked, and none of them usual.
fn odd(random: &mut Rng) -> Settings {
    let (beat_interval_ms, offline_after_ms) =
        [(1_000, 2_500), (10_000, 25_000), (2_000, 60_000)][random.usize(0..3)];
    let settings = Settings {
        beat_interval_ms,
        offline_after_ms,
        drain_ms: [0, 1_000, 10_000, 40_000, 90_000][random.usize(0..5)],
        retry_ms: [1, 300, 3_000, 20_000][random.usize(0..4)],
        ..Settings::default()
    };
    assert_eq!(settings.check(), Ok(()));
    settings
}

pub(super) struct Restarts {
    random: Rng,
    mono: u64,
    folder: tempfile::TempDir,
    settings: Settings,
    /// Of the life before.
    settings_before: Settings,
    presence: Option<Arc<Presence>>,
    writer: Option<WriteBack>,
    flush_due: u64,
    booted_at: u64,
    shards: Vec<Shard>,
    conns: BTreeMap<u32, Conn>,
    conns_made: u32,
    /// Publishers, and the watcher last.
    clients: Vec<Client>,
    dues: BTreeSet<(u64, usize)>,
    views: BTreeMap<String, Told>,
    offline_seen: u64,
    seed: u64,
    outcome: Outcome,
}

impl Restarts {
    fn new(plan: Plan, settings: Settings, publishers: usize) -> Restarts {
        let mut random = Rng::with_seed(plan.seed);
        let shm = tempfile::Builder::new()
            .prefix("greendot-sim-")
            .tempdir_in("/dev/shm");
        let mut client = |query| Client {
            query,
            obeys: true,
            conn: None,
            due: 1_000 + random.u64(0..2_000),
            retry_ms: 1_000,
            jitter: [100, 100, 75, 125][random.usize(0..4)],
            last_id: None,
        };
        let mut clients: Vec<Client> = (0..publishers)
            .map(|n| client(format!("user=u{n}")))
            .collect();
        let watched: Vec<String> = (0..WATCHED.min(publishers))
            .map(|n| format!("watch=u{n}"))
            .collect();
        clients.push(client(watched.join("&")));
        let mut world = Restarts {
            mono: 1_000,
            folder: shm
                .or_else(|_| tempfile::tempdir())
                .expect("a folder can be made"),
            settings_before: settings.clone(),
            settings: settings.clone(),
            presence: None,
            writer: None,
            flush_due: 0,
            booted_at: 0,
            shards: Vec::new(),
            conns: BTreeMap::new(),
            conns_made: 0,
            dues: clients
                .iter()
                .enumerate()
                .map(|(at, client)| (client.due, at))
                .collect(),
            clients,
            views: BTreeMap::new(),
            offline_seen: 0,
            seed: plan.seed,
            outcome: Outcome::default(),
            random,
        };
        world.boot(settings);
        world
    }

    pub(super) fn fail(&self, why: &str) -> ! {
        let (booted_at, settings) = (self.booted_at, &self.settings);
        let (drain, retry) = (settings.drain_ms, settings.retry_ms);
        let offline = settings.offline_after_ms;
        panic!(
            "{why}\n  at {} ms, booted at {booted_at}; drain {drain}, retry {retry}, offline after \
             {offline}; seed 0x{:x}",
            self.mono, self.seed
        )
    }

    pub(super) fn now(&self) -> Now {
        Now {
            mono: Mono::from_micros(self.mono * 1_000),
            unix: Unix::from_ms(EPOCH_MS + self.mono),
        }
    }

    fn presence(&self) -> &Arc<Presence> {
        self.presence.as_ref().expect("the node is up")
    }

    /// Starts the node on its files.
    fn boot(&mut self, settings: Settings) {
        self.settings_before = std::mem::replace(&mut self.settings, settings);
        let (now, shards) = (self.now(), self.random.u16(1..=4));
        let options = StoreOptions {
            dir: self.folder.path().to_owned(),
            users_max: 20_000,
            offline_after_ms: self.settings.offline_after_ms,
            restart_grace_ms: self.settings.restart_grace_ms,
            shards,
            memory: greendot::presence::MemoryChoice::Off,
            boot_id: [1; 16],
        };
        let opened = Presence::open(&options, now);
        let (presence, _) = opened.unwrap_or_else(|fault| self.fail(&format!("open: {fault}")));
        let presence = Arc::new(presence);
        self.writer = Some(presence.write_back(u64::MAX));
        let (board, settings) = (
            Arc::new(Board::new(usize::from(shards))),
            Arc::new(self.settings.clone()),
        );
        let keys = Arc::new(Keys::parse(&FleetKey::new([7; 32]).to_hex()).expect("one key"));
        let shard = |shard| Shard {
            driver: Some(Driver::new(
                EngineParts {
                    settings: Arc::clone(&settings).into(),
                    shard,
                    shards,
                    role: Role::All,
                    operators: greendot::engine::Operators::default(),
                    presence: Arc::clone(&presence),
                    heard: Arc::clone(&presence),
                    keyrings: Keyring::of_fleet(Keys::clone(&keys)).shared(),
                    revoked: Arc::new(Revoked::new(1_000, 86_400_000)),
                    secret: [3; 32],
                    seed: self.seed ^ self.mono << 8 ^ u64::from(shard),
                    mirrors: 0,
                    has_webhooks: false,
                    homes: greendot::engine::Homes::default(),
                    name: None,
                    board: Arc::clone(&board),
                    now,
                },
                Budgets::of(&settings),
            )),
            mailbox: Mailbox::new(settings.mailbox_max, settings.mailbox_bytes_max),
            backlog: VecDeque::new(),
            edges: Vec::new(),
            wake: self.mono,
            listens: true,
            drained: None,
        };
        self.shards = (0..shards).map(shard).collect();
        self.presence = Some(presence);
        self.booted_at = self.mono;
        self.offline_seen = 0;
    }

    /// Ends the process, and every connection with it.
    fn kill(&mut self) {
        self.shards.clear();
        self.writer = None;
        self.presence = None;
        for (key, conn) in std::mem::take(&mut self.conns) {
            self.lost(conn.client, key);
        }
    }

    /// SIGTERM, and all that follows; or only so much of it before the process is killed.
    fn drain(&mut self, for_ms: u64) {
        self.order(Order::Drain);
        let drain_ms = self.settings.drain_ms;
        let cut_at = self.mono.saturating_add(for_ms);
        self.until_drained(Order::Drain, cut_at.min(self.mono + drain_ms));
        if self.mono < cut_at {
            self.order(Order::Close);
            self.until_drained(Order::Close, self.mono + MARGIN_MS);
            if !self.has_drained(Order::Close) {
                self.fail("the drain does not end");
            }
            if let Err(error) = self.presence().close(self.now()) {
                self.fail(&format!("close: {error}"));
            }
            self.outcome.drains += 1;
        }
        self.kill();
    }

    fn order(&mut self, order: Order) {
        for shard in &mut self.shards {
            let _awake = shard.mailbox.order(order);
            shard.wake = 0;
        }
    }

    fn has_drained(&self, order: Order) -> bool {
        self.shards.iter().all(|shard| shard.drained >= Some(order))
    }

    fn until_drained(&mut self, order: Order, until: u64) {
        while self.mono < until && !self.has_drained(order) {
            self.probe(order);
            self.live(20.min(until - self.mono));
        }
    }

    /// One life ends, and the next begins and settles.
    fn round(&mut self) {
        let gone = self.random.usize(0..4);
        let publishers = self.clients.len() - 1;
        for _ in 0..gone {
            let at = self.random.usize(0..publishers);
            self.clients[at].obeys = false;
            if let Some(key) = self.clients[at].conn.take() {
                self.conns.get_mut(&key).expect("it is open").hung_up = true;
                let shard = self.conns[&key].shard;
                self.shards[shard].edges.push(key);
                self.shards[shard].wake = 0;
            }
        }
        match self.random.u8(0..4) {
            0 => {
                self.outcome.kills += 1;
                self.kill();
            }
            1 => {
                let for_ms = self.random.u64(0..=self.settings.drain_ms);
                self.drain(for_ms);
            }
            _ => self.drain(u64::MAX),
        }
        let down_ms = match self.random.u8(0..6) {
            0 => self.settings.restart_grace_ms + self.random.u64(2_000..60_000),
            1 => self.random.u64(3_000..30_000),
            _ => self.random.u64(0..3_000),
        };
        self.live(down_ms);
        let settings = match self.random.bool() {
            true => odd(&mut self.random),
            false => self.settings.clone(),
        };
        let outage = down_ms > settings.restart_grace_ms;
        self.boot(settings);
        if outage {
            self.check_outage();
        }
        let holds = hold_ms(&self.settings).max(hold_ms(&self.settings_before));
        self.live(holds + 2 * self.settings.sweep_interval_ms + 1_000);
        self.check_all();
        let pause_ms = self.random.u64(0..5_000);
        self.live(pause_ms);
    }

    /// Lets everything happen that is due in the next `ms`.
    fn live(&mut self, ms: u64) {
        let until = self.mono + ms;
        loop {
            let wakes = self.shards.iter().map(|shard| shard.wake);
            let due = self.dues.first().map_or(u64::MAX, |(due, _)| *due);
            let next = wakes
                .chain([due])
                .min()
                .expect("one at least")
                .max(self.mono);
            if next > until {
                break;
            }
            self.mono = next;
            while let Some((due, client)) = self.dues.first().copied()
                && due <= self.mono
            {
                self.dues.remove(&(due, client));
                self.connect(client);
            }
            for at in 0..self.shards.len() {
                if self.shards[at].wake <= self.mono {
                    self.turn(at);
                    self.check_offline();
                }
            }
            self.write_back();
        }
        self.mono = until;
    }

    fn write_back(&mut self) {
        if let Some(writer) = self.writer.as_mut().filter(|_| self.mono >= self.flush_due) {
            let now = Now {
                mono: Mono::from_micros(self.mono * 1_000),
                unix: Unix::from_ms(EPOCH_MS + self.mono),
            };
            for _ in 0..4 {
                let _written = writer.slice(now);
            }
            self.flush_due = self.mono + 1_000;
        }
    }
}
