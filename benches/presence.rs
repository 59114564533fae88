//! The beat path, the sweep and the interner at size; the beat path beside a bare probe, compare
//! and store, the sweep beside a bare scan of as much memory.
//!
//! `GREENDOT_BENCH_USERS=10000000 cargo bench --bench presence` is the size of the budgets
//! (100000000 for the large sweep: some 7 GB of memory and 5 GB of disk under TMPDIR). The default
//! is small, to be run with the tests. Times are of the thread's processor time, so that a
//! neighbour who takes the core counts for less (who takes the memory bus still counts).
//!
//! `GREENDOT_BENCH_MEMORY=/dev/shm` has the cells in a memory there. `GREENDOT_BENCH_DIR=/a/folder`
//! keeps the store, and uses the one that a run before has left.

use std::hash::{BuildHasher, Hasher};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use criterion::{Criterion, Throughput};
use greendot::presence::{MemoryChoice, Presence, StoreOptions, Sweep, SweepContext};
use greendot::slot::Slot;
use greendot::time::{Mono, Now, Unix, boottime};
use greendot::wire::User;
use rustix::time::ClockId;

const USERS_DEFAULT: u32 = 200_000;
/// Users that the interning benchmark may add: more than it can in its time.
const INTERNED_MAX: u32 = 30_000_000;
/// Users whom the engine looks up together.
const BATCH_USERS: usize = 64;
const START_MS: u64 = 1_764_009_600_000;
const OFFLINE_AFTER_MS: u64 = 1_000_000_000;

fn at(ms: u64) -> Now {
    Now {
        mono: Mono::from_micros(ms * 1_000),
        unix: Unix::from_ms(START_MS + ms),
    }
}

/// A 16-byte id.
fn id_of(n: u32) -> [u8; 16] {
    let mut id = *b"user-00000000000";
    let mut rest = n;
    for digit in id[5..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    id
}

fn user(id: &[u8; 16]) -> User<'_> {
    User::parse(id).expect("digits and letters")
}

/// Where the cells are while the store is open.
fn memory_choice() -> MemoryChoice {
    match std::env::var_os("GREENDOT_BENCH_MEMORY") {
        Some(dir) => MemoryChoice::In(dir.into()),
        None => MemoryChoice::Off,
    }
}

fn options(dir: &Path, users_max: u32) -> StoreOptions {
    StoreOptions {
        dir: dir.to_owned(),
        users_max,
        offline_after_ms: OFFLINE_AFTER_MS,
        restart_grace_ms: u64::MAX,
        shards: 1,
        memory: memory_choice(),
        boot_id: [1; 16],
    }
}

/// A store in which everybody is online.
fn all_online(dir: &Path, users: u32) -> Presence {
    let presence = open(dir, users, 0);
    if presence.users() == users {
        return presence;
    }
    let began = boottime();
    for n in 0..users {
        presence.intern(user(&id_of(n))).expect("room under TMPDIR");
    }
    eprintln!(
        "{users} users interned in {} ms",
        boottime().ms_since(began)
    );
    let began = boottime();
    for n in 0..users {
        presence.record_beat(Slot::new(n), at(0).unix, at(0));
    }
    eprintln!("first beat of each in {} ms", boottime().ms_since(began));
    let began = boottime();
    let mut sweep = Sweep::new(0, 1);
    let mut out = Vec::new();
    sweep.begin();
    while !sweep.slice(&presence, context(0), u32::MAX, 100_000, &mut out) {
        out.clear();
    }
    eprintln!("all published online in {} ms", boottime().ms_since(began));
    assert_eq!(presence.online(), u64::from(users));
    presence
}

fn context(ms: u64) -> SweepContext {
    SweepContext {
        now: at(ms),
        offline_after_ms: OFFLINE_AFTER_MS,
        hold_expiries: false,
    }
}

fn main() {
    let users = std::env::var("GREENDOT_BENCH_USERS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(USERS_DEFAULT);
    let mut criterion = Criterion::default()
        .sample_size(20)
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    let temporary = tempfile::tempdir().expect("a folder under TMPDIR");
    let dir = std::env::var_os("GREENDOT_BENCH_DIR").map_or(temporary.path().into(), PathBuf::from);
    let presence = all_online(&dir, users);
    memory(users);

    beats(&mut criterion, &presence, users);
    sweep(&mut criterion, &presence, users);
    intern(&mut criterion, &presence, users);

    close(presence);
    for cold in [false, true] {
        if cold {
            forget_pages(&dir);
        }
        eprint!("{}: ", if cold { "cold" } else { "cached" });
        close(open(&dir, users, 1));
    }
    criterion.final_summary();
}

fn open(dir: &Path, users: u32, ms: u64) -> Presence {
    let (began, before) = (boottime(), time_of(ClockId::ProcessCPUTime));
    let options = options(dir, users + INTERNED_MAX);
    let (presence, _) = Presence::open(&options, at(ms)).expect("room under TMPDIR");
    let (ms, took) = (
        boottime().ms_since(began),
        time_of(ClockId::ProcessCPUTime) - before,
    );
    eprintln!(
        "{} users opened in {ms} ms, {took:.1?} of processors",
        presence.users()
    );
    presence
}

fn close(presence: Presence) {
    presence.close(at(1)).expect("room under TMPDIR");
}

/// Has the kernel drop what it has cached of the store's files, as after a start of the machine.
fn forget_pages(dir: &Path) {
    for file in std::fs::read_dir(dir).expect("a folder") {
        let file = std::fs::File::open(file.expect("a file").path()).expect("a file");
        let dropped = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        dropped.expect("a file that the kernel caches");
    }
}

/// What the process holds beside files: anonymous memory, from the kernel.
fn memory(users: u32) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let anonymous = status.lines().find(|line| line.starts_with("RssAnon"));
    eprintln!("{users} users: {}", anonymous.unwrap_or("no RssAnon"));
}

/// Runs `work` so many times; the processor time that this thread took.
fn cpu_time<T>(mut work: impl FnMut() -> T) -> impl FnMut(u64) -> Duration {
    move |iterations| {
        let began = thread_time();
        for _ in 0..iterations {
            black_box(work());
        }
        thread_time() - began
    }
}

fn thread_time() -> Duration {
    time_of(ClockId::ThreadCPUTime)
}

fn time_of(clock: ClockId) -> Duration {
    let time = rustix::time::clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn beats(criterion: &mut Criterion, presence: &Presence, users: u32) {
    let mut random = fastrand::Rng::with_seed(7);
    let ids: Vec<[u8; 16]> = (0..BATCH_USERS * 20_000)
        .map(|_| id_of(random.u32(0..users)))
        .collect();
    let batch: Vec<(User<'_>, Unix)> = ids.iter().map(|id| (user(id), at(1).unix)).collect();
    let mut datagrams = batch.chunks(BATCH_USERS).cycle();
    let mut ms = 1;
    let mut group = criterion.benchmark_group(format!("presence/{users}"));
    group.throughput(Throughput::Elements(BATCH_USERS as u64));
    group.bench_function("record_beats of 64", |bencher| {
        bencher.iter_custom(cpu_time(|| {
            ms += 1;
            let mut stored = 0;
            let datagram = datagrams.next().expect("a cycle has no end");
            presence.record_beats(datagram, at(ms), &mut |_, outcome| {
                stored += u32::from(outcome.is_ok())
            });
            stored
        }));
    });
    let mut bare = Bare::new(users);
    let mut datagrams = ids.chunks(BATCH_USERS).cycle();
    group.bench_function("bare probe, compare and store of 64", |bencher| {
        bencher.iter_custom(cpu_time(|| {
            ms += 1;
            let stored = bare.store(datagrams.next().expect("a cycle has no end"), ms);
            assert_eq!(stored, BATCH_USERS);
        }));
    });
    drop(bare);
    group.throughput(Throughput::Elements(1));
    let mut single = batch.iter().cycle();
    group.bench_function("lookup and record_beat of 1", |bencher| {
        bencher.iter_custom(cpu_time(|| {
            ms += 1;
            let slot = presence
                .lookup(single.next().expect("a cycle has no end").0)
                .expect("all were interned");
            presence.record_beat(slot, at(ms).unix, at(ms))
        }));
    });
    group.bench_function("user of a slot", |bencher| {
        bencher.iter_custom(cpu_time(|| {
            presence.user(Slot::new(random.u32(0..users))).as_bytes()[0]
        }));
    });
    group.finish();
}

/// What a beat costs at least where ids are strings: a probe of a hash table, a compare with the
/// id, a plain store, each ahead of its use by a whole batch of prefetches. One thread, no growth,
/// nobody ever leaves, nothing survives.
struct Bare {
    hasher: foldhash::fast::FixedState,
    /// Numbers of users plus one, by hash; at most half full.
    table: Vec<u32>,
    ids: Vec<[u8; 16]>,
    stamps: Vec<u64>,
}

impl Bare {
    fn new(users: u32) -> Bare {
        let mut bare = Bare {
            hasher: foldhash::fast::FixedState::with_seed(7),
            table: vec![0; (users as usize * 2).next_power_of_two()],
            ids: (0..users).map(id_of).collect(),
            stamps: vec![0; users as usize],
        };
        for n in 0..users {
            let mut at = bare.place(&bare.ids[n as usize]);
            while bare.table[at] != 0 {
                at = (at + 1) & (bare.table.len() - 1);
            }
            bare.table[at] = n + 1;
        }
        bare
    }

    fn place(&self, id: &[u8]) -> usize {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(id);
        hasher.finish() as usize & (self.table.len() - 1)
    }

    /// Stamps these users with `ms`; how many there were.
    fn store(&mut self, ids: &[[u8; 16]], ms: u64) -> usize {
        let mut places = [0; BATCH_USERS];
        let mut users = [0; BATCH_USERS];
        for (place, id) in places.iter_mut().zip(ids) {
            *place = self.place(id);
            prefetch(&self.table[*place]);
        }
        for (user, place) in users.iter_mut().zip(places) {
            *user = self.table[place].wrapping_sub(1) as usize;
            prefetch(self.ids.as_ptr().wrapping_add(*user));
        }
        for ((user, mut place), id) in users.iter_mut().zip(places).zip(ids) {
            while self.ids.get(*user).is_some_and(|other| other != id) {
                place = (place + 1) & (self.table.len() - 1);
                *user = self.table[place].wrapping_sub(1) as usize;
            }
            prefetch(self.stamps.as_ptr().wrapping_add(*user));
        }
        let known = users.iter().filter(|user| {
            self.stamps
                .get_mut(**user)
                .map(|stamp| *stamp = ms)
                .is_some()
        });
        known.count()
    }
}

fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint: it never faults, whatever the address.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

fn sweep(criterion: &mut Criterion, presence: &Presence, users: u32) {
    let mut sweep = Sweep::new(0, 1);
    let mut out = Vec::new();
    let bare: Vec<AtomicU64> = (0..u64::from(users)).map(AtomicU64::new).collect();
    let mut group = criterion.benchmark_group(format!("presence/{users}"));
    group.throughput(Throughput::Elements(u64::from(users)));
    group.bench_function("sweep, all online", |bencher| {
        bencher.iter_custom(cpu_time(|| {
            sweep.begin();
            assert!(sweep.slice(presence, context(2), u32::MAX, usize::MAX, &mut out));
        }));
    });
    assert_eq!(out, [], "nobody came or went");
    group.bench_function("bare scan of as many words", |bencher| {
        bencher.iter_custom(cpu_time(|| {
            bare.iter()
                .map(|word| black_box(word.load(Ordering::Relaxed)))
                .fold(0, u64::max)
        }));
    });
    group.bench_function("bare vectorised sum of as many words", |bencher| {
        // SAFETY: nobody writes `bare`, and an AtomicU64 has the layout of a u64.
        let words: &[u64] = unsafe { std::slice::from_raw_parts(bare.as_ptr().cast(), bare.len()) };
        bencher.iter_custom(cpu_time(|| {
            black_box(words)
                .iter()
                .fold(0, |sum: u64, word| sum.wrapping_add(*word))
        }));
    });
    group.finish();
}

fn intern(criterion: &mut Criterion, presence: &Presence, users: u32) {
    let mut n = users;
    let mut group = criterion.benchmark_group(format!("presence/{users}"));
    group.throughput(Throughput::Elements(1)).sample_size(10);
    group
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500));
    group.bench_function("intern a new user", |bencher| {
        bencher.iter_custom(cpu_time(|| {
            n += 1;
            presence
                .intern(user(&id_of(n)))
                .expect("more room than this benchmark has time")
        }));
    });
    group.finish();
}
